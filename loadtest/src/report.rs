//! What a command prints and saves: lines and tables on standard output, one JSON document in a
//! file.
//!
//! Nothing here is printed before it is complete: a run that fails leaves one line of error and no
//! results. Whoever does not read what is printed spoils no measurement: progress that nobody takes
//! is left out, and a standard output that has gone is told in the end ([`said`]), after files are
//! saved.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::audit::Findings;
use crate::link::has_room;
use crate::machine::Machine;
use crate::outcome::{Cost, FloorCost, Latency, Outcome, Storm};
use crate::unit::{Unit, grouped};
use crate::workload::{Behaviour, Crowd, Listens};

/// Columns of a terminal that every report fits.
const COLUMNS: usize = 100;

/// Why standard output took no more.
static UNSAID: OnceLock<io::Error> = OnceLock::new();

/// One line of output. That it cannot be written is told by [`said`].
pub fn say(line: &str) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        UNSAID.get_or_init(|| error);
    }
}

/// An error if not everything that was to be said has been.
pub fn said() -> Result<()> {
    match UNSAID.get() {
        Some(error) => bail!("the results are not printed to their end: standard output: {error}"),
        None => Ok(()),
    }
}

/// What is being done, on standard error, so that results stay clean. Left out if nobody reads it
/// now: waiting would stop whatever is being measured.
pub fn progress(line: &str) {
    let errors = io::stderr();
    if has_room(&errors) {
        // Who has closed it does not want to know.
        let _ = writeln!(errors.lock(), "loadtest: {line}");
    }
}

/// Text in lines that fit a terminal.
pub fn paragraph(text: &str) {
    wrapped("", text).iter().for_each(|line| say(line));
}

/// The saved form of a run.
#[derive(Debug, Serialize)]
struct Document<'a, T> {
    /// What was asked.
    command: &'a str,
    machine: &'a Machine,
    results: &'a T,
}

/// Refuses a file that cannot be written, before minutes are spent on what it shall hold.
pub fn check_place(file: &Path) -> Result<()> {
    if file.is_dir() {
        bail!("{} is a directory: name a file in it", file.display());
    }
    match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() && !directory.is_dir() => {
            bail!("cannot write {}: make the directory {} first", file.display(), directory.display())
        }
        _ => Ok(()),
    }
}

/// Saves a run's results with the machine, if a file was asked for.
pub fn save<T: Serialize>(file: Option<&Path>, command: &str, machine: &Machine, results: &T) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    write_json(file, &Document { command, machine, results })
}

/// Writes JSON to be kept in a repository: a line for each result, and no line within one.
pub fn write_json(file: &Path, document: &impl Serialize) -> Result<()> {
    let text = outline(&serde_json::to_value(document)?, 2) + "\n";
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

/// JSON whose outer `levels` have a line for each entry.
fn outline(value: &Value, levels: usize) -> String {
    let inner = |value| outline(value, levels - 1);
    let (open, close, entries): (char, char, Vec<String>) = match value {
        Value::Array(items) if levels > 0 => ('[', ']', items.iter().map(inner).collect()),
        Value::Object(fields) if levels > 0 => {
            let entry = |(name, value)| format!("{}: {}", Value::from(String::clone(name)), inner(value));
            ('{', '}', fields.iter().map(entry).collect())
        }
        other => return other.to_string(),
    };
    format!("{open}\n{}\n{close}", entries.join(",\n"))
}

/// Prints rows under a head, columns as wide as their widest cell; the first `left` columns lean
/// left.
pub fn table(left: usize, head: &[&str], rows: &[Vec<String>]) {
    for line in layout(left, head, rows) {
        say(&line);
    }
}

fn layout(left: usize, head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    all()
        .map(|row| {
            let cells =
                row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < left {
                    true => format!("{cell:<width$}"),
                    false => format!("{cell:>width$}"),
                });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

/// Prints one run: what was done, what came of it, what it cost, and what makes it doubtful.
pub fn outcome_table(outcome: &Outcome) {
    for line in outcome_lines(outcome) {
        say(&line);
    }
}

fn outcome_lines(outcome: &Outcome) -> Vec<String> {
    let workload = &outcome.workload;
    let mut lines = wrapped("", &format!("{}: {}", workload.name, workload.about));
    lines.push(String::new());
    let rows = outcome_rows(outcome);
    let width = rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
    for (what, figure) in &rows {
        lines.extend(wrapped(&format!("{what:<width$}  "), figure));
    }
    lines.push(String::new());
    let (head, rows) = latency_rows(outcome);
    lines.extend(layout(1, &head, &rows));
    if !outcome.warnings.is_empty() {
        lines.push(String::new());
    }
    for warning in &outcome.warnings {
        lines.extend(wrapped("WARNING  ", warning));
    }
    lines
}

/// What one run showed, latencies apart: what it is and the figures in words.
pub fn outcome_rows(outcome: &Outcome) -> Vec<(String, String)> {
    let workload = &outcome.workload;
    let seconds = outcome.seconds;
    let mut rows = Vec::new();
    let mut row = |what: &str, figure: String| rows.push((what.to_owned(), figure));
    row("server", format!("{} {}", outcome.server, outcome.version));
    row("subscribers", workload.subscribers.iter().map(crowd).collect::<Vec<_>>().join("; "));
    row(
        "published",
        format!(
            "{} events of {} bytes on {} in {} ({}); {} refused",
            grouped(outcome.published),
            grouped(workload.payload_bytes as u64),
            counted(workload.topics as u64, "topic"),
            Unit::Seconds.show(seconds),
            Unit::PerSecond.show(outcome.published as f64 / seconds),
            grouped(outcome.refused)
        ),
    );
    row(
        "delivered",
        format!(
            "{} ({}), {} on the wire",
            grouped(outcome.deliveries),
            Unit::PerSecond.show(outcome.deliveries as f64 / seconds),
            Unit::BytesPerSecond.show(outcome.bytes as f64 / seconds)
        ),
    );
    row("audit", audit_line(&outcome.findings));
    if outcome.others != Findings::default() {
        row("audit, others", audit_line(&outcome.others));
    }
    let handshakes = &outcome.handshakes;
    row(
        "handshakes",
        format!(
            "{} before the measurement in {} ({}); {} within it; {} closed by the server",
            grouped(handshakes.opened),
            Unit::Seconds.show(handshakes.seconds),
            Unit::PerSecond.show(handshakes.opened as f64 / handshakes.seconds),
            grouped(handshakes.again),
            grouped(handshakes.closed_by_server)
        ),
    );
    if let Some(storm) = &outcome.storm {
        row("storm", storm_line(storm));
    }
    match &outcome.cost {
        Some(cost) => {
            row("CPU", cpu_line(cost, outcome.floor.as_ref(), seconds, workload.topics));
            row("memory", memory_line(cost));
        }
        None => row("CPU and memory", "unknown: the server's processes are not on this machine".to_owned()),
    }
    let generator = &outcome.generator;
    row(
        "generator",
        format!(
            "{} used {} of one CPU{}, the publisher {}, the coordinator {}; their CPU was busy for {}",
            counted(generator.receivers as u64, "receiver"),
            Unit::Share.show(generator.receivers_share),
            generator
                .receivers_us_per_delivery
                .map_or_else(String::new, |us| format!(" ({} per delivery)", Unit::CpuMicroseconds.show(us))),
            Unit::Share.show(generator.publisher_share),
            Unit::Share.show(generator.coordinator_share),
            Unit::Share.show(generator.cpu_share)
        ),
    );
    rows
}

fn storm_line(storm: &Storm) -> String {
    let back = match storm.back_seconds {
        Some(seconds) => format!("the last was back after {}", Unit::Seconds.show(seconds)),
        None => "not all were back when the measurement ended".to_owned(),
    };
    let p99 = |latency: &Latency| Unit::Nanoseconds.show(latency.at(0.99).map_or(f64::NAN, |ns| ns as f64));
    format!(
        "{} dropped at once, {back}; p99 of those who stayed {} meanwhile, {} in calm",
        grouped(storm.dropped),
        p99(&storm.during),
        p99(&storm.calm)
    )
}

fn memory_line(cost: &Cost) -> String {
    let further = match (cost.rss_per_further_connection, cost.kernel_per_further_connection) {
        (Some(user), Some(kernel)) => format!(
            "each further connection {} in user space, {} in the kernel (both ends); ",
            Unit::Bytes.show(user),
            Unit::Bytes.show(kernel)
        ),
        _ => String::new(),
    };
    format!(
        "{further}the server's {} empty, {} connected, {} at most",
        Unit::Bytes.show(cost.rss_empty as f64),
        Unit::Bytes.show(cost.rss_connected as f64),
        Unit::Bytes.show(cost.rss_max as f64)
    )
}

fn cpu_line(cost: &Cost, floor: Option<&FloorCost>, seconds: f64, topics: usize) -> String {
    let mut text = format!("{:.2} s ({} of one CPU)", cost.cpu, Unit::Share.show(cost.cpu / seconds));
    if let Some(us) = cost.us_per_delivery {
        text.push_str(&format!(", {} per delivery", Unit::CpuMicroseconds.show(us)));
    }
    if let Some(floor) = floor {
        let ratio = floor.ratio.map_or_else(String::new, |ratio| format!(" = {}", Unit::Ratio.show(ratio)));
        let frames = match floor.frames {
            1 => "one frame".to_owned(),
            more => format!("{} frames at once", grouped(more)),
        };
        let pace = match floor.every_seconds {
            0.0 => "back to back".to_owned(),
            every => format!("every {}", Unit::Seconds.show(every)),
        };
        let link = if floor.ratio.is_some() { "" } else { ";" };
        let together = match topics {
            1 => "",
            _ => ", on all at the same moment, where the server sends topic by topic",
        };
        text.push_str(&format!(
            "{link}{ratio} the floor of {} (bare sends on {} connections, {frames} on each {pace}{together})",
            Unit::CpuMicroseconds.show(floor.us_per_delivery),
            grouped(floor.connections as u64)
        ));
        if let Some(why) = &floor.why_no_ratio {
            text.push_str(&format!("; no ratio to it: {why}"));
        }
    }
    text
}

/// Subscribers of one kind, in words.
fn crowd(crowd: &Crowd) -> String {
    let behaviour = match crowd.behaviour {
        Behaviour::Steady | Behaviour::Once => String::new(),
        Behaviour::Slow { bytes_per_second } => {
            format!(", reading {} each", Unit::BytesPerSecond.show(bytes_per_second as f64))
        }
        Behaviour::Stalled => ", stalled".to_owned(),
        Behaviour::Churn { per_second } => {
            format!(", {} leaving and coming", Unit::PerSecond.show(per_second))
        }
        Behaviour::Storm { at_seconds, share } => {
            format!(", {} reconnecting at {}", Unit::Share.show(share), Unit::Seconds.show(at_seconds))
        }
    };
    let listens = match crowd.listens {
        Listens::One => "",
        Listens::All => " on all topics",
        Listens::Both => " on all topics and on one of them",
    };
    let slow = crowd.slow.map(|slow| format!(", slow={}", slow.word())).unwrap_or_default();
    let (count, protocol) = (grouped(crowd.connections as u64), crowd.protocol.label());
    format!("{count} {protocol}{listens}{slow}{behaviour}")
}

fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// What the audit found, in words.
pub fn audit_line(findings: &Findings) -> String {
    if *findings == Findings::default() {
        return "nothing arrived that could be checked".to_owned();
    }
    let mut line = format!(
        "{} deliveries checked: {} lost, {} duplicated, {} out of order",
        grouped(findings.events),
        grouped(findings.lost),
        grouped(findings.duplicated),
        grouped(findings.out_of_order)
    );
    if findings.foreign > 0 {
        line.push_str(&format!(", {} without a stamp of this program", grouped(findings.foreign)));
    }
    if findings.gaps_told > 0 {
        line.push_str(&format!("; {} told by the server", counted(findings.gaps_told, "gap")));
    }
    line
}

/// The latencies of one run as a table, one distribution per row; those without values are left
/// out.
pub fn latency_rows(outcome: &Outcome) -> ([&'static str; 9], Vec<Vec<String>>) {
    let head = ["latency", "mean", "median", "p90", "p99", "p99.9", "p99.99", "largest", "values"];
    let all = [
        ("publish → each", Some(&outcome.each)),
        ("  in calm", outcome.storm.as_ref().map(|storm| &storm.calm)),
        ("  in the storm", outcome.storm.as_ref().map(|storm| &storm.during)),
        ("publish → last", outcome.last.as_ref()),
        ("late by (publisher)", Some(&outcome.lateness)),
        ("handshake, before", Some(&outcome.handshakes.latency)),
        ("handshake, within", Some(&outcome.handshakes.again_latency)),
    ];
    let rows = all.into_iter().filter_map(|(what, latency)| latency_row(what, latency?)).collect();
    (head, rows)
}

fn latency_row(what: &str, latency: &Latency) -> Option<Vec<String>> {
    if latency.count == 0 {
        return None;
    }
    let at = |quantile| latency.at(quantile).map_or(f64::NAN, |ns| ns as f64);
    let times = [latency.mean_ns].into_iter().chain([0.5, 0.9, 0.99, 0.999, 0.9999, 1.0].map(at));
    let times = times.map(|ns| Unit::Nanoseconds.show(ns));
    Some(
        std::iter::once(what.to_owned())
            .chain(times)
            .chain([Unit::Count.show(latency.count as f64)])
            .collect(),
    )
}

/// Text in lines of at most [`COLUMNS`], the first after `head`, the others set in as far; a longer
/// word stays whole.
fn wrapped(head: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(head.chars().count());
    let mut lines = Vec::new();
    let mut line = head.to_owned();
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(std::mem::replace(&mut line, indent.clone()));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

/// The median and the extremes of a few figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Middle value; the mean of the two middle ones of an even number.
    pub median: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
}

impl Spread {
    /// Over at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        assert!(!values.is_empty(), "a spread is over at least one value");
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { median: (low + high) / 2.0, min: values[0], max: values[values.len() - 1] }
    }

    /// `median (min to max)` with so many decimals.
    pub fn show(&self, decimals: usize) -> String {
        format!("{:.decimals$} ({:.decimals$} to {:.decimals$})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture::outcome;

    fn text(outcome: &Outcome) -> String {
        let lines = outcome_lines(outcome);
        for line in &lines {
            assert!(line.chars().count() <= COLUMNS, "{} columns: {line}", line.chars().count());
        }
        lines.join("\n")
    }

    /// The same as one line: where lines break is of no account.
    fn flat(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_run_is_one_table_that_fits_a_terminal() {
        let text = text(&outcome("fanwave"));
        for part in [
            "server fanwave 1.0.4",
            "subscribers 10,000 sse",
            "3,000 events of 200 bytes on 1 topic in 30.0 s (100/s); 0 refused",
            "30,000,000 deliveries checked: 0 lost, 0 duplicated, 0 out of order",
            "2.81 µs per delivery = 0.930 × the floor of 3.02 µs (bare sends on 10,000 connections, one frame on each \
             every 10 ms)",
            "each further connection 412 B in user space, 9.61 KiB in the kernel",
            "1 receiver used 61 % of one CPU (0.610 µs per delivery), the publisher 1 %, the coordinator 0.500 %; their CPU was busy for 63 %",
        ] {
            assert!(flat(&text).contains(part), "{part} in\n{text}");
        }
        for row in ["publish → each", "publish → last", "late by (publisher)", "handshake, before"] {
            assert!(text.contains(row), "{row} in\n{text}");
        }
        assert!(!text.contains("WARNING") && !text.contains("handshake, within"));
        let mut storm = outcome("fanwave");
        storm.handshakes.again_latency = storm.each.clone();
        let text = self::text(&storm);
        let figures = |head: &str| {
            let row = text.lines().find_map(|line| line.strip_prefix(head)).expect("a row of its own");
            row.trim_start().to_owned()
        };
        assert_eq!(figures("handshake, within"), figures("publish → each"));
        assert_ne!(figures("handshake, within"), figures("handshake, before"));
    }

    #[test]
    fn those_who_stayed_through_a_storm_have_latencies_apart_and_one_line() {
        let (mut stormy, of) =
            (outcome("fanwave"), |ns| Latency { quantiles: vec![(0.99, ns)], ..Latency::default() });
        assert!(!text(&stormy).contains("storm"));
        let calm = Latency { count: 3, ..of(20_000_000) };
        let storm =
            Storm { dropped: 15_000, back_seconds: Some(2.5), seconds: 3.0, calm, during: of(30_000_000) };
        stormy.storm = Some(storm.clone());
        let told = flat(&text(&stormy));
        let line = "15,000 dropped at once, the last was back after 2.50 s; p99 of those who stayed 30 ms \
                    meanwhile, 20 ms in calm";
        assert!(told.contains(line), "{told}");
        assert!(
            text(&stormy).contains("\n  in calm") && !text(&stormy).contains("\n  in the storm"),
            "no values"
        );
        stormy.storm = Some(Storm { back_seconds: None, ..storm });
        assert!(flat(&text(&stormy)).contains("not all were back when the measurement ended"));
    }

    #[test]
    fn what_is_missing_is_not_invented() {
        let mut empty = outcome("fanwave");
        (empty.cost, empty.floor, empty.last) = (None, None, None);
        (empty.each, empty.lateness) = (Latency::default(), Latency::default());
        empty.handshakes = crate::outcome::Handshakes::default();
        (empty.seconds, empty.published, empty.deliveries) = (0.0, 0, 0);
        let text = text(&empty);
        assert!(text.contains("unknown: the server's processes"));
        assert!(!text.contains("NaN") && !text.contains("inf") && !text.contains("publish → last"), "{text}");
    }

    #[test]
    fn losses_and_warnings_are_told_whole_within_the_columns() {
        let mut bad = outcome("fanwave");
        bad.findings.lost = 12_345;
        bad.findings.foreign = 1;
        bad.others = Findings { events: 5, duplicated: 2, gaps_told: 3, ..Findings::default() };
        bad.workload.topics = 7;
        bad.warnings = vec!["word ".repeat(60)];
        let crowd = |behaviour| Crowd { behaviour, ..bad.workload.subscribers[0].clone() };
        bad.workload.subscribers = vec![
            crowd(Behaviour::Slow { bytes_per_second: 2_000 }),
            crowd(Behaviour::Stalled),
            crowd(Behaviour::Churn { per_second: 50.0 }),
            crowd(Behaviour::Storm { at_seconds: 5.0, share: 0.5 }),
        ];
        let text = text(&bad);
        let flat = flat(&text);
        for part in [
            "12,345 lost",
            "1 without a stamp",
            "audit, others",
            "2 duplicated, 0 out of order; 3 gaps told by the server",
            "on each every 10 ms, on all at the same moment, where the server sends topic by topic)",
            "reading 2 kB/s each",
            "stalled",
            "50/s leaving and coming",
            "50 % reconnecting at 5 s",
        ] {
            assert!(flat.contains(part), "{part} in\n{text}");
        }
        assert_eq!((text.matches("word").count(), text.matches("WARNING").count()), (60, 1));
    }

    #[test]
    fn a_word_longer_than_a_line_stays_whole() {
        let word = "x".repeat(200);
        assert_eq!(
            wrapped("a ", &format!("b {word} c")),
            ["a b".to_owned(), format!("  {word}"), "  c".into()]
        );
        assert_eq!(wrapped("", ""), [""]);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([7.0]).show(1), "7.0 (7.0 to 7.0)");
    }

    #[test]
    fn columns_line_up() {
        let lines =
            layout(1, &["what", "n"], &[vec!["a".into(), "100".into()], vec!["longer".into(), "1".into()]]);
        assert_eq!(lines, ["what      n", "a       100", "longer    1"]);
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }

    #[test]
    fn saved_json_has_a_line_for_each_result_and_none_within_one() {
        let document = serde_json::json!({"command": "run", "results": [{"a": [1, 2]}, {"a": []}]});
        let lines = "{\n\"command\": \"run\",\n\"results\": [\n{\"a\":[1,2]},\n{\"a\":[]}\n]\n}";
        assert_eq!(outline(&document, 2), lines);
    }
}

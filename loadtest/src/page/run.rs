//! The page of `run` and whoever else has outcomes: one outcome in full, several side by side
//! first.

use std::collections::BTreeSet;

use super::svg::{Axis, Bar, Bars, Group, Line, Lines, bars, lines, percentiles};
use super::{Notice, Page, Tile};
use crate::audit::Findings;
use crate::engine::verdict::condemned;
use crate::machine::Machine;
use crate::outcome::{Interval, Latency, Outcome};
use crate::report::{audit_line, latency_rows, outcome_rows};
use crate::unit::{Unit, grouped};

/// Distributions in one picture: more cannot be told apart.
const COMPARED_MAX: usize = 6;

/// The page of one or several outcomes.
pub fn run_page(outcomes: &[Outcome], machine: &Machine) -> String {
    let [outcome] = outcomes else { return many(outcomes, machine) };
    let mut page = Page::new(&name(outcome), &outcome.workload.about, machine);
    let (kind, text) = verdict(outcome);
    page.notice(kind, &text);
    page.warnings(&others(outcome, &text));
    one(&mut page, outcome, Page::section);
    page.html()
}

fn many(outcomes: &[Outcome], machine: &Machine) -> String {
    let about = match outcomes {
        [] => "Nothing was measured.".to_owned(),
        _ => format!("{} runs, one after the other.", outcomes.len()),
    };
    let mut page = Page::new("loadtest", &about, machine);
    let names = names(outcomes);
    let all_good = outcomes.iter().all(|outcome| verdict(outcome).0 == Notice::Good);
    if all_good && !outcomes.is_empty() {
        let mut together = Findings::default();
        outcomes.iter().for_each(|outcome| together.add(&outcome.findings));
        page.notice(Notice::Good, &format!("all runs: {}", audit_line(&together)));
    }
    for (name, outcome) in names.iter().zip(outcomes) {
        let (kind, text) = verdict(outcome);
        if !all_good {
            page.notice(kind, &format!("{name}: {text}"));
        }
        let named: Vec<String> =
            others(outcome, &text).iter().map(|warning| format!("{name}: {warning}")).collect();
        page.warnings(&named);
    }
    if !outcomes.is_empty() {
        overview(&mut page, &names, outcomes);
    }
    for (name, outcome) in names.iter().zip(outcomes) {
        page.section(name);
        page.text(&outcome.workload.about);
        one(&mut page, outcome, Page::part);
    }
    page.html()
}

/// Everything of one outcome, under headings made by `heading`.
fn one(page: &mut Page, outcome: &Outcome, heading: fn(&mut Page, &str)) {
    page.tiles(&tiles(outcome));
    heading(page, "Latency");
    latency_pictures(page, outcome);
    if !outcome.series.is_empty() {
        heading(page, "The course of the run");
        course_pictures(page, outcome);
    }
    heading(page, "Everything");
    let rows: Vec<_> = outcome_rows(outcome).into_iter().map(|(what, figure)| vec![what, figure]).collect();
    page.table("", 2, &["what", "figure"], &rows);
    let (head, rows) = latency_rows(outcome);
    page.table("", 1, &head, &rows);
}

/// Workload and server.
fn name(outcome: &Outcome) -> String {
    format!("{} · {} {}", outcome.workload.name, outcome.server, outcome.version)
}

/// What tells outcomes apart, as short as it can be.
fn names(outcomes: &[Outcome]) -> Vec<String> {
    let distinct = |of: fn(&Outcome) -> String| {
        let names: Vec<String> = outcomes.iter().map(of).collect();
        let different: BTreeSet<&String> = names.iter().collect();
        (different.len() == names.len()).then_some(names)
    };
    let server = |outcome: &Outcome| format!("{} {}", outcome.server, outcome.version);
    distinct(server)
        .or_else(|| distinct(|outcome| outcome.workload.name.clone()))
        .unwrap_or_else(|| outcomes.iter().map(name).collect())
}

/// What the audit says of the run as a whole.
fn verdict(outcome: &Outcome) -> (Notice, String) {
    if let Some(cause) = condemned(outcome) {
        return (Notice::Bad, cause);
    }
    // Where nobody is steady, those who come and go are all there is.
    let nobody = outcome.findings.events == 0;
    let findings = if nobody { &outcome.others } else { &outcome.findings };
    let good = findings.events > 0 && findings.faults() == 0;
    let kind = if good { Notice::Good } else { Notice::Warning };
    (kind, audit_line(findings))
}

/// The warnings that say something else than `told`.
fn others(outcome: &Outcome, told: &str) -> Vec<String> {
    outcome.warnings.iter().filter(|warning| *warning != told).cloned().collect()
}

/// Several outcomes beside each other.
fn overview(page: &mut Page, names: &[String], outcomes: &[Outcome]) {
    page.section("Side by side");
    let each: Vec<(&str, &Latency)> =
        names.iter().map(String::as_str).zip(outcomes.iter().map(|outcome| &outcome.each)).collect();
    for some in each.chunks(COMPARED_MAX) {
        let about = "Latency from publish to each subscriber by percentile, one line per run";
        page.figure(
            &percentiles("Publish to each subscriber", about, some),
            "by percentile; further right is the tail",
        );
    }
    let ratios: Vec<Bar> = names
        .iter()
        .zip(outcomes)
        .filter_map(|(name, outcome)| Some(Bar::new(name, outcome.floor.as_ref()?.ratio?)))
        .collect();
    if !ratios.is_empty() {
        let picture = bars(&Bars {
            title: "CPU per delivery".into(),
            about: "The server's CPU per delivery as a multiple of the kernel's floor".into(),
            label: "times a bare send(2) loop".into(),
            unit: Unit::Ratio,
            groups: vec![Group { label: String::new(), bars: ratios }],
            reference: Some((1.0, "floor".into())),
        });
        page.figure(
            &picture,
            "beside what this kernel charges for bare sends of the same frames at the same pace; on all connections at \
             the same moment, also where a server sends topic by topic",
        );
    }
    let rows: Vec<Vec<String>> = names
        .iter()
        .zip(outcomes)
        .map(|(name, outcome)| {
            let cost = outcome.cost.as_ref();
            let percentile = |latency: &Latency| show_at(latency, 0.99);
            vec![
                name.clone(),
                Unit::PerSecond.show(rate(outcome.deliveries, outcome.seconds)),
                percentile(&outcome.each),
                outcome.last.as_ref().map_or_else(none, percentile),
                cost.and_then(|cost| cost.us_per_delivery)
                    .map_or_else(none, |us| Unit::CpuMicroseconds.show(us)),
                cost.and_then(|cost| cost.rss_per_further_connection)
                    .map_or_else(none, |bytes| Unit::Bytes.show(bytes)),
            ]
        })
        .collect();
    let head =
        ["run", "deliveries", "p99 each", "p99 last", "CPU per delivery", "memory, each further connection"];
    page.table("", 1, &head, &rows);
}

fn none() -> String {
    "–".to_owned()
}

fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

fn show_at(latency: &Latency, quantile: f64) -> String {
    latency.at(quantile).map_or_else(none, |ns| Unit::Nanoseconds.show(ns as f64))
}

fn tiles(outcome: &Outcome) -> Vec<Tile> {
    let mut tiles = vec![
        Tile::new(
            "deliveries",
            Unit::PerSecond.show(rate(outcome.deliveries, outcome.seconds)),
            format!("{} in {}", grouped(outcome.deliveries), Unit::Seconds.show(outcome.seconds)),
        ),
        Tile::new(
            "publish → each, p99",
            show_at(&outcome.each, 0.99),
            format!("median {}, p99.9 {}", show_at(&outcome.each, 0.5), show_at(&outcome.each, 0.999)),
        ),
    ];
    if let Some(last) = &outcome.last {
        let note = format!("median {}, p99.9 {}", show_at(last, 0.5), show_at(last, 0.999));
        tiles.push(Tile::new("publish → last, p99", show_at(last, 0.99), note));
    }
    if let Some(cost) = &outcome.cost {
        if let Some(us) = cost.us_per_delivery {
            let ratio = outcome.floor.as_ref().and_then(|floor| floor.ratio);
            let note =
                ratio.map_or_else(String::new, |ratio| format!("{} the floor", Unit::Ratio.show(ratio)));
            tiles.push(Tile::new("CPU per delivery", Unit::CpuMicroseconds.show(us), note));
        }
        if let (Some(user), Some(kernel)) =
            (cost.rss_per_further_connection, cost.kernel_per_further_connection)
        {
            tiles.push(Tile::new(
                "memory, each further connection",
                Unit::Bytes.show(user),
                format!("and {} in the kernel", Unit::Bytes.show(kernel)),
            ));
        }
    }
    let handshakes = &outcome.handshakes;
    if handshakes.opened > 0 {
        tiles.push(Tile::new(
            "connections",
            grouped(handshakes.opened),
            format!("{} while opening", Unit::PerSecond.show(rate(handshakes.opened, handshakes.seconds))),
        ));
    }
    if handshakes.again_latency.count > 0 {
        tiles.push(Tile::new(
            "handshake within the run, p99",
            show_at(&handshakes.again_latency, 0.99),
            format!(
                "{} connections; before it {}",
                grouped(handshakes.again),
                show_at(&handshakes.latency, 0.99)
            ),
        ));
    }
    tiles
}

fn latency_pictures(page: &mut Page, outcome: &Outcome) {
    let mut latencies = vec![("publish → each", &outcome.each)];
    latencies.extend(outcome.last.as_ref().map(|last| ("publish → last", last)));
    page.figure(
        &percentiles("Latency by percentile", "Latency by percentile, both axes logarithmic", &latencies),
        "from the time at which an event was due; further right is the tail",
    );
    if outcome.series.is_empty() {
        return;
    }
    let line = |name: &str, of: fn(&Interval) -> u64| {
        Line::new(name, course(outcome, |interval| of(interval) as f64))
    };
    let plot = Lines::new(
        "Latency over time",
        "Median, 99th percentile and largest latency to each subscriber, per interval",
        time(),
        Axis::log("publish → each subscriber", Unit::Nanoseconds),
        vec![
            line("median", |interval| interval.p50_ns),
            line("p99", |interval| interval.p99_ns),
            line("largest", |interval| interval.max_ns),
        ],
    );
    page.figure(&lines(&plot), "per interval; a gap is an interval in which nothing came");
}

fn time() -> Axis {
    Axis::linear("time into the measurement", Unit::Seconds)
}

/// One figure over the run.
fn course(outcome: &Outcome, of: impl Fn(&Interval) -> f64) -> Vec<(f64, f64)> {
    outcome.series.iter().map(|interval| (interval.at, of(interval))).collect()
}

fn course_pictures(page: &mut Page, outcome: &Outcome) {
    let line = |name: &str, of: fn(&Interval) -> f64| Line::new(name, course(outcome, of));
    let mut plot = |title: &str, caption: &str, about: &str, y: Axis, series: Vec<Line>| {
        page.figure(&lines(&Lines::new(title, about, time(), y, series)), caption);
    };
    plot(
        "Throughput",
        "event × subscriber",
        "Deliveries per second to all subscribers, per interval",
        Axis::linear("deliveries per second", Unit::PerSecond),
        vec![line("deliveries", |interval| rate(interval.deliveries, interval.seconds))],
    );
    plot(
        "Published",
        "over all topics",
        "Events published per second, per interval",
        Axis::linear("events per second", Unit::PerSecond),
        vec![line("events", |interval| rate(interval.published, interval.seconds))],
    );
    if outcome.cost.is_some() {
        plot(
            "CPU of the server",
            "user, system and softirq time of the server's processes; the generator's CPU is busy with receivers, \
             publisher, coordinator and whatever else runs there",
            "CPU of the server and busy time of the generator's CPU as a share of one CPU, per interval",
            Axis::linear("share of one CPU", Unit::Share),
            vec![
                line(&outcome.server, |interval| interval.server_share),
                line("generator's CPU", |interval| interval.generator_share),
            ],
        );
        // Apart: the machine's kernel memory is a hundred times that of a lean server.
        plot(
            "Memory of the server",
            "resident, in user space",
            "Resident user-space memory of the server at the end of each interval",
            Axis::linear("memory", Unit::Bytes),
            vec![line(&outcome.server, |interval| interval.server_rss as f64)],
        );
    }
    plot(
        "Memory of the kernel",
        "slab and socket buffers of the whole machine: both ends of every connection",
        "Kernel memory of the machine for sockets and their buffers at the end of each interval",
        Axis::linear("memory", Unit::Bytes),
        vec![line("kernel", |interval| interval.kernel_bytes as f64)],
    );
    plot(
        "Connections",
        "open at the end of each interval",
        "Connections open at the end of each interval",
        Axis::linear("connections", Unit::Count),
        vec![line("open", |interval| interval.connections as f64)],
    );
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{check, machine, outcome};
    use super::*;

    #[test]
    fn the_page_of_a_run_shows_every_picture_and_is_well_formed() {
        let page = run_page(&[outcome("fanwave")], &machine());
        check(&page);
        for title in [
            "Latency by percentile",
            "Latency over time",
            "Throughput",
            "Published",
            "CPU of the server",
            "Memory of the server",
            "Memory of the kernel",
            "Connections",
        ] {
            assert!(page.contains(&format!("<strong>{title}</strong>")), "{title}");
        }
        assert!(page.contains("0 lost, 0 duplicated, 0 out of order"));
        // Who changes how a page looks finds the example here.
        if let Some(file) = std::env::var_os("LOADTEST_EXAMPLE_PAGE") {
            std::fs::write(file, page).expect("the file can be written");
        }
    }

    #[test]
    fn several_outcomes_stand_side_by_side() {
        let outcomes = [outcome("fanwave"), outcome("nchan"), outcome("nats")];
        let page = run_page(&outcomes, &machine());
        check(&page);
        assert!(page.contains("Side by side") && page.contains("<h2>nchan 1.0.4</h2>"));
        if let Some(file) = std::env::var_os("LOADTEST_EXAMPLE_PAGES") {
            std::fs::write(file, page).expect("the file can be written");
        }
    }

    #[test]
    fn an_audit_that_failed_and_warnings_stand_above_all_figures() {
        let mut bad = outcome("fanwave");
        bad.findings.lost = 3;
        bad.warnings = vec!["the generator used 97 % of its CPU".into()];
        let page = run_page(&[bad], &machine());
        check(&page);
        let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text} is on the page"));
        assert!(place("class=\"notice bad\"") < place("class=\"tiles\""));
        assert!(place("3 lost") < place("class=\"tiles\""));
        assert!(place("97 %") < place("class=\"tiles\""));
        assert!(!page.contains("class=\"notice good\""));
    }

    #[test]
    fn a_run_whose_returning_subscribers_lost_something_has_failed_and_says_so_once() {
        let mut bad = outcome("fanwave");
        bad.others = Findings { events: 9, lost: 4, ..Findings::default() };
        bad.warnings = vec![condemned(&bad).expect("condemned")];
        for page in [run_page(&[bad.clone()], &machine()), run_page(&[bad, outcome("nchan")], &machine())] {
            check(&page);
            assert_eq!(page.matches("class=\"notice bad\"").count(), 1);
            assert_eq!(page.matches("the other subscribers found 4 lost").count(), 1);
        }
    }

    #[test]
    fn an_outcome_without_anything_in_it_is_a_page_without_nonsense() {
        let mut empty = outcome("fanwave");
        empty.series.clear();
        empty.each = Latency::default();
        empty.last = None;
        empty.cost = None;
        empty.floor = None;
        empty.lateness = Latency::default();
        empty.handshakes = crate::outcome::Handshakes::default();
        empty.findings = crate::audit::Findings::default();
        (empty.seconds, empty.deliveries, empty.published, empty.bytes) = (0.0, 0, 0, 0);
        check(&run_page(&[empty.clone()], &machine()));
        check(&run_page(&[empty, outcome("nchan")], &machine()));
        check(&run_page(&[], &machine()));
    }

    #[test]
    fn handshakes_of_a_storm_stand_apart_from_those_before_it() {
        let mut storm = outcome("fanwave");
        assert!(!run_page(&[storm.clone()], &machine()).contains("handshake within the run"));
        storm.handshakes.again_latency = storm.each.clone();
        let page = run_page(&[storm], &machine());
        check(&page);
        assert!(page.contains("handshake within the run, p99") && page.contains("handshake, within"));
    }

    #[test]
    fn a_series_of_one_interval_is_drawn() {
        let mut short = outcome("fanwave");
        short.series.truncate(1);
        let page = run_page(&[short], &machine());
        check(&page);
        assert!(!page.contains("nothing was measured"));
    }

    #[test]
    fn names_that_are_markup_stay_text() {
        let mut hostile = outcome("<script>alert(1)</script>");
        hostile.workload.name = "</title><img src=x onerror=alert(2)>".into();
        hostile.warnings = vec!["\" onload=\"x' &<b>".into()];
        let page = run_page(&[hostile.clone(), hostile], &machine());
        check(&page);
        assert!(page.contains("&lt;script&gt;") && page.contains("onerror=alert(2)&gt;"));
    }
}

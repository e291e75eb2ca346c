//! A plan in words: the model's costs, the held-out point, and the answer, as tables and as a page.

use super::answer::Answer;
use super::caveats::{self, Caveat};
use super::experiments::{CpuRow, Kind};
use super::fit::{Estimate, Fit, Term};
use super::held_out::{Compared, HeldOut};
use super::model::{ERROR_MAX, KERNEL_TERMS, Model, USER_TERMS, disturbed};
use super::work::{CPU_TERMS, Work};
use crate::framing::Protocol;
use crate::machine::Machine;
use crate::page::svg::{Axis, Line, Lines, lines};
use crate::page::{Notice, Page, Tile};
use crate::report::{say, table};
use crate::unit::Unit;

const COST_HEAD: [&str; 4] = ["cost of", "best", "90 % interval", "standard error"];
const HELD_OUT_HEAD: [&str; 5] = ["held out", "predicted", "90 % interval", "measured (min to max)", "error"];
const ANSWER_HEAD: [&str; 3] = ["needed", "", "how"];

fn cost_rows(model: &Model) -> Vec<Vec<String>> {
    let rows = |of: &'static str, unit: Unit, terms: &'static [(&str, &str)], fit: &Fit| {
        let row = move |((_, what), term): (&(&str, &str), &Term)| {
            let interval = format!("{} to {}", unit.show(term.low), unit.show(term.high));
            vec![format!("{of}: {what}"), unit.show(term.value), interval, unit.show(term.error)]
        };
        terms.iter().zip(&fit.terms).map(row).collect::<Vec<_>>()
    };
    let mut all = rows("CPU", Unit::CpuMicroseconds, &CPU_TERMS, &model.cpu);
    all.extend(rows("user memory", Unit::Bytes, &USER_TERMS, &model.user));
    all.extend(rows("kernel memory, both ends", Unit::Bytes, &KERNEL_TERMS, &model.kernel));
    all
}

/// What the fit is made of.
fn fit_notes(model: &Model) -> [String; 2] {
    let domain = &model.domain;
    let residual = |fit: &Fit| Unit::Share.show(fit.scatter);
    [
        format!(
            "Fitted to {} points of CPU, {} of user and {} of kernel memory (medians of {} rounds): {} to {} connections \
             per shard, {} to {} events/s per connection, {} to {} bytes, up to {} of a core. Typical residual: CPU {}, \
             user memory {}, kernel memory {}.",
            model.cpu.residuals.len(),
            model.user.residuals.len(),
            model.kernel.residuals.len(),
            model.design.rounds,
            Unit::Count.show(domain.connections.0),
            Unit::Count.show(domain.connections.1),
            Unit::Count.show(domain.rate.0),
            Unit::Count.show(domain.rate.1),
            Unit::Count.show(domain.bytes.0),
            Unit::Count.show(domain.bytes.1),
            Unit::Share.show(domain.share),
            residual(&model.cpu),
            residual(&model.user),
            residual(&model.kernel),
        ),
        format!(
            "\"Long after the last\" is half paid at {} ms between deliveries on a connection: each is then \
             acknowledged by itself.",
            model.apart_ms
        ),
    ]
}

fn held_out_rows(held_out: &HeldOut) -> Vec<Vec<String>> {
    let unit = |compared: &Compared| if compared.what.starts_with("CPU") { Unit::Share } else { Unit::Bytes };
    held_out
        .compared
        .iter()
        .map(|compared| {
            let (unit, predicted, measured) = (unit(compared), compared.predicted, compared.measured);
            vec![
                compared.what.to_owned(),
                unit.show(predicted.value),
                format!("{} to {}", unit.show(predicted.low), unit.show(predicted.high)),
                format!(
                    "{} ({} to {})",
                    unit.show(measured.median),
                    unit.show(measured.min),
                    unit.show(measured.max)
                ),
                compared.error.map_or("–".into(), |error| format!("{:+.1} %", error * 100.0)),
            ]
        })
        .collect()
}

fn held_out_title(held_out: &HeldOut) -> String {
    let load = held_out.group.loads.first();
    format!(
        "{} {} connections, {} events/s of {} bytes",
        Unit::Count.show(held_out.group.connections as f64),
        held_out.group.protocol.label(),
        load.map_or(0.0, |load| load.rate),
        load.map_or(0, |load| load.bytes)
    )
}

fn held_out_verdict(held_out: &HeldOut) -> String {
    let most = ERROR_MAX * 100.0;
    match held_out.worst() {
        Some(Compared { what, error: None, .. }) => {
            format!("Not every prediction is checked: {what} did not grow. Measure again on a quiet machine.")
        }
        _ if held_out.holds() => format!("Every prediction is within {most:.0} % of what was measured."),
        _ => format!("A prediction is more than {most:.0} % off: do not plan so far outside of the fit."),
    }
}

fn range(unit: Unit, estimate: Estimate) -> String {
    format!("{} ({} to {})", unit.show(estimate.value), unit.show(estimate.low), unit.show(estimate.high))
}

fn answer_rows(answer: &Answer) -> Vec<Vec<String>> {
    let question = &answer.question;
    let count = |value: f64| Unit::Count.show(value);
    let by = answer.nodes_by.iter().map(|(what, nodes)| format!("{} by {what}", count(*nodes)));
    let memory = Estimate {
        value: answer.user_per_node.value + answer.kernel_per_node.value + answer.under_way_per_node,
        low: answer.user_per_node.low + answer.kernel_per_node.low + answer.under_way_per_node,
        high: answer.user_per_node.high + answer.kernel_per_node.high + answer.under_way_per_node,
    };
    let rows = vec![
        ("CPU", range(Unit::Count, answer.cpu), "cores' worth of work, all nodes".into()),
        (
            "cores",
            count(answer.cores),
            format!("to keep each at most {} busy", Unit::Share.show(question.utilisation)),
        ),
        (
            "nodes",
            format!("{} + {} spare", count(answer.nodes), count(question.spare)),
            by.collect::<Vec<_>>().join(", "),
        ),
        (
            "cores busy",
            Unit::Share.show(answer.share),
            format!("{} when the spare nodes are missing", Unit::Share.show(answer.share_without_spare)),
        ),
        (
            "connections",
            format!("{} per node", count(answer.connections_per_node)),
            format!(
                "{} per shard, {} in the fullest; {} shards per node",
                count(answer.connections_per_shard),
                count(answer.settings.connections_per_shard_most),
                count(answer.shards_per_node)
            ),
        ),
        ("memory per node", range(Unit::Bytes, memory), "user space, kernel, and what is under way".into()),
        ("  user space", range(Unit::Bytes, answer.user_per_node), "resident, windows full".into()),
        (
            "  kernel",
            range(Unit::Bytes, answer.kernel_per_node),
            "sockets: half of both ends on loopback".into(),
        ),
        (
            "  under way",
            Unit::Bytes.show(answer.under_way_per_node),
            "one event in the socket buffer of everybody; slow readers hold more".into(),
        ),
        (
            "network out",
            Unit::BitsPerSecond.show(answer.bits_out),
            format!("all nodes, {} packets/s, TCP/IP and Ethernet included", count(answer.packets_out)),
        ),
        (
            "network in",
            Unit::BitsPerSecond.show(answer.bits_in),
            format!("acknowledgements and publishes, {} packets/s", count(answer.packets_in)),
        ),
        (
            "deliveries",
            Unit::PerSecond.show(answer.deliveries),
            format!("and {} heartbeats/s, all nodes", count(answer.heartbeats)),
        ),
    ];
    let rows =
        rows.into_iter().chain(stream_row(answer)).chain(setting_rows(answer)).chain(crowd_rows(answer));
    rows.map(|(what, value, how)| vec![what.to_owned(), value, how]).collect()
}

/// What the stream costs that all nodes read.
fn stream_row(answer: &Answer) -> Option<(&'static str, String, String)> {
    let (cpu, most) = (answer.stream_per_node?, answer.stream_rate_max?);
    let how = format!(
        "of a core on every node for reading every event; {} at most at this utilisation",
        Unit::PerSecond.show(most)
    );
    Some(("the stream", range(Unit::Share, cpu), how))
}

/// What must be set on each node.
fn setting_rows(answer: &Answer) -> Vec<(&'static str, String, String)> {
    let settings = &answer.settings;
    vec![
        ("descriptors", format!("ulimit -n {:.0}", settings.descriptors_direct), descriptors(answer)),
        (
            "open files",
            format!("fs.file-max {:.0}", settings.files),
            "per node at least, whatever the descriptors".into(),
        ),
        (
            "pages for TCP",
            format!("tcp_mem {:.0}", settings.tcp_pages),
            "net.ipv4.tcp_mem, its second number at least, per node: what is under way".into(),
        ),
        (
            "tracked",
            format!("nf_conntrack_max {:.0}", settings.tracked),
            "per node at least, where a firewall tracks connections: old and new ones after a storm".into(),
        ),
        ("flags", flags(answer), "of fanwave, where its defaults are other limits".into()),
    ]
}

/// What many clients of one place need, and how long all take to come back.
fn crowd_rows(answer: &Answer) -> Vec<(&'static str, String, String)> {
    vec![
        (
            "source addresses",
            Unit::Count.show(answer.addresses),
            "for a proxy or load generator towards one node (28,232 ports each)".into(),
        ),
        (
            "after a storm",
            answer.storm_seconds.map_or("never".into(), |seconds| range(Unit::Seconds, seconds)),
            match answer.storm_seconds {
                Some(_) => "until all are back at once, by CPU, events going on".into(),
                None => "no free CPU: the events fill the cores; lower --utilisation".into(),
            },
        ),
    ]
}

/// Where the limit of descriptors holds, and what it is otherwise.
fn descriptors(answer: &Answer) -> String {
    let plain = match answer.nodes_plain {
        Some(nodes) if nodes > answer.nodes => format!("need {} nodes", Unit::Count.show(nodes)),
        Some(_) => format!("{:.0}", answer.settings.descriptors_plain),
        None => "are too few for so many shards".into(),
    };
    format!(
        "per node, direct descriptors (Linux 6.13 on); plain ones {plain}; --connections-per-shard-max {:.0} or more",
        answer.settings.connections_per_shard_most
    )
}

fn flags(answer: &Answer) -> String {
    match answer.settings.flags.is_empty() {
        true => "none".into(),
        false => answer.settings.flags.join(" "),
    }
}

/// The question in a sentence.
fn asked(answer: &Answer) -> String {
    let question = &answer.question;
    format!(
        "{} {} subscribers on {} topics, {} events/s of {} bytes, {}/s come and go; nodes of {} cores, {} GiB, {} Gbit/s",
        Unit::Count.show(question.subscribers),
        question.protocol.label(),
        Unit::Count.show(question.topics),
        question.rate,
        question.bytes,
        question.churn,
        question.node_cores,
        question.node_memory,
        question.node_network
    )
}

/// Prints everything that there is.
pub fn print(model: &Model, held_out: Option<&HeldOut>, answer: Option<&Answer>) {
    say(&format!("model: {}\n", model.machine.line()));
    if answer.is_none() {
        table(1, &COST_HEAD, &cost_rows(model));
        say("");
        fit_notes(model).iter().for_each(|note| say(note));
        caveats::of_model(model).iter().for_each(|caveat| say(&caveat.line()));
    }
    if let Some(held_out) = held_out {
        say(&format!("\nheld out: {}\n", held_out_title(held_out)));
        table(1, &HELD_OUT_HEAD, &held_out_rows(held_out));
        say(&format!("\n{}", held_out_verdict(held_out)));
        held_out_caveat(held_out).iter().for_each(|caveat| say(&caveat.line()));
    }
    if let Some(answer) = answer {
        say(&format!("{}\n", asked(answer)));
        table(3, &ANSWER_HEAD, &answer_rows(answer));
        say("");
        answer.extrapolates.iter().for_each(|note| say(&format!("EXTRAPOLATED: {note}")));
        answer.caveats.iter().for_each(|caveat| say(&caveat.line()));
        say("In parentheses: 90 % intervals. A core is one of the model's machine.");
    }
}

/// Everything as one HTML document.
pub fn page(model: &Model, machine: &Machine, held_out: Option<&HeldOut>, answer: Option<&Answer>) -> String {
    let about =
        format!("What fanwave costs and how many servers are needed. Model: {}.", model.machine.line());
    let mut page = Page::new("Capacity plan", &about, machine);
    if let Some(answer) = answer {
        for note in &answer.extrapolates {
            page.notice(Notice::Warning, &format!("Extrapolated: {note}."));
        }
        page.section("How many servers");
        page.text(&format!("{}.", asked(answer)));
        page.tiles(&tiles(answer));
        page.table("What is needed", 1, &ANSWER_HEAD, &answer_rows(answer));
        show_caveats(&mut page, &answer.caveats);
    }
    if let Some(held_out) = held_out {
        page.section("A point outside of the fit");
        let kind = if held_out.holds() { Notice::Good } else { Notice::Warning };
        page.notice(kind, &held_out_verdict(held_out));
        page.table(&held_out_title(held_out), 1, &HELD_OUT_HEAD, &held_out_rows(held_out));
        show_caveats(&mut page, held_out_caveat(held_out).as_slice());
    }
    page.section("The cost model");
    page.figure(
        &lines(&delivery_plot(model)),
        "CPU per delivery by how often a connection hears something; points are measured legs of 200 bytes or so.",
    );
    page.table("Costs", 1, &COST_HEAD, &cost_rows(model));
    fit_notes(model).iter().for_each(|note| page.text(note));
    // With an answer they stand there.
    if answer.is_none() {
        show_caveats(&mut page, &caveats::of_model(model));
    }
    page.html()
}

fn show_caveats(page: &mut Page, caveats: &[Caveat]) {
    for caveat in caveats {
        match caveat.warning {
            true => page.notice(Notice::Warning, &caveat.text),
            false => page.text(&caveat.text),
        }
    }
}

fn held_out_caveat(held_out: &HeldOut) -> Option<Caveat> {
    caveats::disturbed(disturbed(&held_out.measured))
}

fn tiles(answer: &Answer) -> [Tile; 4] {
    let question = &answer.question;
    [
        Tile::new(
            "Nodes",
            Unit::Count.show(answer.nodes_in_all),
            format!("{} of them spare", Unit::Count.show(question.spare)),
        ),
        Tile::new(
            "Cores at work",
            Unit::Count.show(answer.cpu.value),
            format!("{} to {}", Unit::Count.show(answer.cpu.low), Unit::Count.show(answer.cpu.high)),
        ),
        Tile::new(
            "Memory per node",
            Unit::Bytes
                .show(answer.user_per_node.value + answer.kernel_per_node.value + answer.under_way_per_node),
            "user space and kernel",
        ),
        Tile::new("Network out", Unit::BitsPerSecond.show(answer.bits_out), "all nodes"),
    ]
}

/// Measured legs beside the model's line, per number of connections.
fn delivery_plot(model: &Model) -> Lines {
    const RATES: usize = 40;
    let small = |row: &&CpuRow| row.kind == Kind::Load && row.payload_bytes < 500 && row.topics == 1;
    let rows: Vec<&CpuRow> = model.measured.cpu.iter().filter(small).collect();
    let mut lines = Vec::new();
    for protocol in [Protocol::Ws, Protocol::Sse] {
        let mut points: Vec<(f64, f64)> = rows
            .iter()
            .filter(|row| row.protocol == protocol)
            .map(|row| (row.rate, row.cpu_ns as f64 / 1e3 / row.deliveries as f64))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        lines.push(Line::dots(format!("{}, measured", protocol.label()), points));
    }
    let (low, high) = model.domain.rate;
    let connections = model.domain.connections.1;
    let curve = (0..=RATES).map(|step| {
        let rate = low * (high / low).powf(step as f64 / RATES as f64);
        let frame_bytes = model.frame_bytes(Protocol::Ws, 200.0);
        let work = Work::second(Protocol::Ws, connections, rate, frame_bytes);
        (rate, model.cpu(&work).value * 1e6 / work.deliveries)
    });
    lines.push(Line::new(
        format!("ws, model at {} connections", Unit::Count.show(connections)),
        curve.collect(),
    ));
    Lines::new(
        "CPU per delivery",
        "CPU microseconds per delivery over events per second, measured and as the model has it",
        Axis::log("events/s of a connection", Unit::Count),
        Axis::linear("CPU per delivery", Unit::CpuMicroseconds),
        lines,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::fixture;
    use crate::plan::answer::answer;
    use crate::plan::design::{Group, Load};
    use crate::plan::experiments::Measured;
    use crate::plan::planted::model;
    use crate::plan::question::tests::asked;
    use crate::report::Spread;

    fn held_out(error: impl Into<Option<f64>>) -> HeldOut {
        let compared = Compared {
            what: "CPU, share of a core",
            predicted: Estimate { value: 0.4, low: 0.35, high: 0.45 },
            measured: Spread { median: 0.5, min: 0.4, max: 0.6 },
            error: error.into(),
        };
        let loads = vec![Load { rate: 6.0, bytes: 500 }];
        let group =
            Group { protocol: Protocol::Ws, connections: 16_000, topics: 1, heartbeat_ms: None, loads };
        HeldOut { group, compared: vec![compared], measured: Measured::default() }
    }

    #[test]
    fn a_page_holds_the_answer_the_held_out_point_and_the_model_and_is_well_formed() {
        let mut model = model();
        model.checked = held_out(-0.2).checked();
        let question = asked("--subscribers 1000000 --rate 2").expect("possible").expect("asked");
        let answer = answer(&model, &question).expect("possible");
        let page = page(&model, &fixture::machine(), Some(&held_out(-0.2)), Some(&answer));
        fixture::check(&page);
        for part in
            ["How many servers", "ulimit -n", "Extrapolated", "-20.0 %", "A WebSocket", "off: do not plan"]
        {
            assert!(page.to_lowercase().contains(&part.to_lowercase()), "{part}");
        }
    }

    #[test]
    fn a_prediction_within_the_promise_is_said_to_hold_and_one_beyond_is_not() {
        assert!(held_out_verdict(&held_out(0.15)).starts_with("Every prediction is within 15 %"));
        assert!(held_out_verdict(&held_out(-0.151)).contains("more than 15 % off"));
        assert_eq!(held_out_rows(&held_out(-0.2))[0][4], "-20.0 %");
        assert!(held_out_verdict(&held_out(None)).contains("CPU, share of a core did not grow"));
        assert_eq!(held_out_rows(&held_out(None))[0][4], "–");
    }

    #[test]
    fn units_are_those_that_people_read() {
        let model = model();
        let question = asked("--subscribers 100000 --rate 10 --bytes 196").expect("possible").expect("asked");
        let answer = answer(&model, &question).expect("possible");
        let rows = answer_rows(&answer);
        let value = |what: &str| rows.iter().find(|row| row[0] == what).map(|row| row[1].clone());
        // 1,000,000 deliveries/s of 200 + 90 bytes.
        assert_eq!(value("network out").as_deref(), Some("2.32 Gbit/s"));
        assert_eq!(value("deliveries").as_deref(), Some("1,000,000/s"));
    }

    #[test]
    fn both_limits_of_descriptors_are_said_or_the_nodes_that_plain_ones_need() {
        let how = |line: &str| {
            let question = asked(line).expect("possible").expect("asked");
            descriptors(&answer(&model(), &question).expect("possible"))
        };
        let few = how("--subscribers 400000 --rate 0 --node-memory 1000");
        assert!(few.contains("plain ones 406500;"), "{few}");
        let many = how("--subscribers 3000000 --rate 0 --node-cores 64 --node-memory 1000");
        assert!(many.contains("plain ones need 4 nodes;"), "{many}");
        let none = how("--subscribers 3000000 --rate 0 --node-cores 4096 --node-memory 1000");
        assert!(none.contains("plain ones are too few"), "{none}");
    }

    #[test]
    fn a_storm_that_finds_no_free_cpu_is_said_to_never_end() {
        let question = asked("--subscribers 100000 --rate 10").expect("possible").expect("asked");
        let mut answer = answer(&model(), &question).expect("possible");
        answer.storm_seconds = None;
        let rows = answer_rows(&answer);
        let storm = rows.iter().find(|row| row[0] == "after a storm").expect("told");
        assert!(storm[1] == "never" && storm[2].starts_with("no free CPU"), "{storm:?}");
    }

    #[test]
    fn the_caveats_are_on_every_page_with_and_without_an_answer_and_once() {
        let mut model = model();
        model.measured.cpu.iter_mut().for_each(|row| row.others_share = 0.5);
        let question = asked("--subscribers 100000 --rate 10").expect("possible").expect("asked");
        let answer = answer(&model, &question).expect("possible");
        for (answer, several) in [(Some(&answer), 1), (None, 0)] {
            let page = page(&model, &fixture::machine(), None, answer);
            let times = |part: &str| page.matches(part).count();
            assert_eq!((times("Measured on loopback"), times("other programs")), (1, 1));
            assert_eq!(times("CPU was measured with one shard"), several);
        }
    }
}

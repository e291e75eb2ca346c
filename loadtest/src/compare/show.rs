//! The tables of a comparison.

use super::Comparison;
use super::memory::Reading;
use crate::framing::Protocol;
use crate::prove::Bench;
use crate::prove::cells::{Cell, Column};
use crate::prove::leg::CHECKED;
use crate::report::{Spread, paragraph, say, table};
use crate::unit::grouped;

/// Heads of the table of CPU.
pub const CPU_HEAD: [&str; 10] = [
    "protocol",
    "connections",
    "in flight",
    "server",
    "µs per delivery",
    "× floor (min to max)",
    "fanwave / it",
    "deliveries/s",
    "receivers",
    "user + system µs",
];
/// Heads of the table of memory.
pub const MEMORY_HEAD: [&str; 7] =
    ["protocol", "server", "empty", "few", "many", "per idle connection", "times fanwave's"];

/// Prints everything.
pub fn show(bench: &Bench, outcome: &Comparison) {
    say(&format!("{}\n", bench.machine.line()));
    for server in &outcome.servers {
        say(&format!("{:<8} {}", server.name, server.version));
    }
    say("");
    table(4, &CPU_HEAD, &cpu_rows(outcome));
    say("");
    paragraph(&cpu_note(outcome));
    if !outcome.memory.is_empty() {
        say("");
        table(2, &MEMORY_HEAD, &memory_rows(&outcome.memory));
        say("");
        paragraph(&memory_note(&outcome.memory));
    }
    for warning in &outcome.warnings {
        say(&format!("WARNING: {warning}"));
    }
}

/// How to read the table of CPU.
pub fn cpu_note(outcome: &Comparison) -> String {
    format!(
        "Every server has its own subscribers; events of {} bytes; µs = CPU of the server, median of the rounds; ratios are taken \
         within each round; floor: one send(2) per socket of as many frames as are in flight; receivers = share of their \
         CPU meanwhile; user + system µs = the same in user space and in the kernel, by clock ticks. {}{}{CHECKED}",
        outcome.payload_bytes,
        if outcome.tls { "All servers speak TLS 1.3 with AES-128-GCM; the floor does not. " } else { "" },
        outcome.h2_streams.map(carried).unwrap_or_default()
    )
}

/// What subscribers are over HTTP/2.
fn carried(streams: usize) -> String {
    format!(
        "Event streams come over HTTP/2, {streams} on a connection; each is a subscriber and is checked by its stamps; the \
         floor has a socket for each. "
    )
}

/// How to read the table of memory.
pub fn memory_note(readings: &[Reading]) -> String {
    let (few, many) = readings.first().map_or((0, 0), |reading| (reading.stages.few, reading.stages.many));
    format!(
        "Resident memory of the server's own (VmRSS - RssFile) without subscribers, with {} and with {} that hear \
         nothing; per idle connection = growth from few to many.",
        grouped(few as u64),
        grouped(many as u64)
    )
}

/// A row for the floor and for every server, also for those that do not speak the protocol.
pub fn cpu_rows(outcome: &Comparison) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for cell in &outcome.cells {
        rows.push(cpu_row(cell, &cell.floor));
        for server in &outcome.servers {
            match cell.servers.iter().find(|column| column.name == server.name) {
                Some(column) => rows.push(cpu_row(cell, column)),
                None => rows.push(vec![
                    cell.protocol.label().into(),
                    grouped(cell.connections as u64),
                    cell.in_flight.to_string(),
                    server.name.clone(),
                    format!("no {}", full_name(cell.protocol)),
                ]),
            }
        }
    }
    rows
}

fn cpu_row(cell: &Cell, column: &Column) -> Vec<String> {
    let ratio = |spread: &Option<Spread>| spread.map_or_else(|| "-".into(), |spread| spread.show(2));
    vec![
        cell.protocol.label().into(),
        grouped(cell.connections as u64),
        cell.in_flight.to_string(),
        column.name.clone(),
        column.us_per_delivery().map_or_else(|| "not known".into(), |us| format!("{:.3}", us.median)),
        ratio(&column.to_floor),
        ratio(&column.fanwave_to_it),
        grouped(column.summary.deliveries_per_second.median as u64),
        format!("{:.0} %", column.summary.receiver_share.median * 100.0),
        column.summary.parts(),
    ]
}

/// A protocol as people call it.
pub fn full_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Sse => "Server-Sent Events",
        Protocol::Ws => "WebSocket",
        Protocol::Json => "JSON over WebSocket",
        Protocol::Raw => "raw frames",
    }
}

/// A row for every reading.
pub fn memory_rows(readings: &[Reading]) -> Vec<Vec<String>> {
    let kib = |bytes: u64| format!("{} KiB", grouped(bytes >> 10));
    readings
        .iter()
        .map(|reading| {
            vec![
                reading.protocol.label().into(),
                reading.server.clone(),
                kib(reading.stages.empty.rss_own),
                kib(reading.stages.at_few.rss_own),
                kib(reading.stages.at_many.rss_own),
                format!("{:.0} B", reading.per_connection),
                reading.times_fanwave.map_or_else(|| "-".into(), |times| format!("{times:.0}")),
            ]
        })
        .collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::compare::memory::tests::reading;
    use crate::prove::cells::Entry;
    use crate::prove::cells::tests::cell;

    pub fn outcome() -> Comparison {
        let entry = |name: &str| Entry { name: name.into(), version: "1.2.3".into(), cpus: vec![0] };
        let mut memory =
            vec![reading("fanwave", Protocol::Ws, 147.0), reading("<nchan>", Protocol::Ws, 7_350.0)];
        crate::compare::memory::relate(&mut memory);
        Comparison {
            servers: vec![entry("fanwave"), entry("<nchan>"), entry("nats")],
            tls: false,
            h2_streams: None,
            payload_bytes: 200,
            cells: vec![cell()],
            memory,
            warnings: vec!["a warning".into()],
        }
    }

    #[test]
    fn every_server_has_a_row_in_every_cell_even_if_it_cannot_have_a_figure() {
        let rows = cpu_rows(&outcome());
        let names: Vec<&str> = rows.iter().map(|row| row[3].as_str()).collect();
        assert_eq!(names, ["floor", "fanwave", "<nchan>", "nats"]);
        assert_eq!(rows[3][4], "no WebSocket");
        assert_eq!(rows[2][6], "0.50 (0.50 to 0.50)");
        assert_eq!(rows[1][6], "-");
    }

    #[test]
    fn memory_is_told_in_times_of_fanwave() {
        let rows = memory_rows(&outcome().memory);
        assert_eq!(rows[1][5..], ["7350 B".to_owned(), "50".to_owned()]);
        assert_eq!(rows[0][6], "-");
    }
}

//! Bulk in print: a row for each part, then what a row has no room for.

use super::{BACK_LIMIT, CUT_LIMIT, Judged, KEPT_BYTES, STALL_MS_MAX};
use crate::report::{paragraph, say, table};
use crate::unit::grouped;
use crate::workload::Pace;

const HEAD: [&str; 11] = [
    "part",
    "events",
    "bytes",
    "to",
    "expected",
    "received",
    "closed",
    "lost",
    "taken s",
    "all s",
    "grown MiB",
];

/// Prints all parts.
pub fn show(parts: &[Judged]) {
    let rows: Vec<Vec<String>> = parts.iter().map(row).collect();
    table(1, &HEAD, &rows);
    say("");
    for part in parts {
        notes(part).iter().for_each(|note| paragraph(note));
    }
    paragraph(
        "taken: until the server had taken all events, which a server that is busy draws out; all: until everybody had \
         everything; grown: the server's memory of its own at its peak, above that with everybody connected.",
    );
}

fn row(part: &Judged) -> Vec<String> {
    let events = match part.workload.publish {
        Pace::AtOnce { events, .. } => events,
        _ => part.published,
    };
    let seconds = |seconds: Option<f64>| seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.2}"));
    let grown = part.memory.as_ref().map_or("-".to_owned(), |memory| grouped(memory.grown() >> 20));
    vec![
        part.workload.name.clone(),
        grouped(events),
        grouped(part.workload.payload_bytes as u64),
        grouped(part.takers()),
        grouped(part.expected),
        grouped(part.received),
        grouped(part.closed),
        grouped(part.findings.lost),
        seconds(part.published_seconds),
        seconds(part.arrived_seconds),
        grown,
    ]
}

fn notes(part: &Judged) -> Vec<String> {
    let name = &part.workload.name;
    let mut notes = Vec::new();
    let mib = |bytes: u64| grouped(bytes >> 20);
    if let Some(memory) = &part.memory {
        let published = part.published * part.workload.payload_bytes as u64;
        notes.push(match memory.windows.zip(memory.declared) {
            Some((windows, declared)) => format!(
                "{name}: memory {} MiB with all connected, {} MiB at its peak; {} MiB published; declared are {} MiB for \
                 windows, {} MiB with queues and slow sends",
                mib(memory.connected),
                mib(memory.peak),
                mib(published),
                mib(windows),
                mib(declared)
            ),
            None => format!("{name}: the server does not declare what windows may use: memory is not judged"),
        });
    } else {
        notes.push(format!("{name}: the server's processes are not known: memory is not judged"));
    }
    if part.again > 0 {
        notes.push(format!(
            "{name}: {} POSTs were refused by a busy server and sent again",
            grouped(part.again)
        ));
    }
    if let Some(stalled) = &part.stalled {
        let cut = match stalled.cut_seconds {
            Some(seconds) => format!("closed {seconds:.1} s after the last event was taken"),
            None => "not closed".to_owned(),
        };
        let back = match (stalled.kept, stalled.back_seconds) {
            (Some(kept), Some(seconds)) => format!("; {} MiB kept {seconds:.1} s later", mib(kept)),
            (Some(kept), None) => format!("; {} MiB kept to the end", mib(kept)),
            _ => String::new(),
        };
        notes.push(format!(
            "{name}: {} stalled readers beside: {cut} (--stall-ms-max {STALL_MS_MAX}; at most {} s){back} (at most {} MiB \
             within {} s)",
            stalled.readers,
            CUT_LIMIT.as_secs(),
            mib(KEPT_BYTES),
            BACK_LIMIT.as_secs()
        ));
    }
    if !part.reasons.is_empty() {
        let reasons: Vec<String> =
            part.reasons.iter().map(|(reason, count)| format!("{reason} {}", grouped(*count))).collect();
        notes.push(format!("{name}: closed by the server: {}", reasons.join(", ")));
    }
    notes.extend(part.faults().iter().map(|fault| format!("FAULT  {name}: {fault}")));
    notes
}

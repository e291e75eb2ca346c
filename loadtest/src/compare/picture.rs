//! The page of a comparison: bars beside the floor, and the tables.

use super::Comparison;
use super::show::{CPU_HEAD, MEMORY_HEAD, cpu_note, cpu_rows, full_name, memory_note, memory_rows};
use crate::framing::Protocol;
use crate::machine::Machine;
use crate::page::Page;
use crate::page::svg::{Bar, Bars, Group, bars};
use crate::prove::cells::Entry;
use crate::prove::cells::{Cell, Column};
use crate::report::Spread;
use crate::unit::{Unit, grouped};

/// The comparison as one HTML document.
pub fn page(outcome: &Comparison, machine: &Machine) -> String {
    let names: Vec<String> =
        outcome.servers.iter().map(|server| format!("{} {}", server.name, server.version)).collect();
    let about =
        format!("{}: the same workload, on the same CPU, in turns, beside the floor.", names.join(", "));
    let mut page = Page::new("Comparison", &about, machine);
    page.warnings(&outcome.warnings);
    page.section("CPU per delivery");
    for cell in &outcome.cells {
        page.figure(&bars(&cpu_bars(outcome, cell)), &caption(cell));
    }
    page.table("CPU per delivery", 4, &CPU_HEAD, &cpu_rows(outcome));
    page.text(&cpu_note(outcome));
    page.section("Deliveries per second");
    page.figure(&bars(&rate_bars(outcome)), "Of one CPU, the receivers on another.");
    if !outcome.memory.is_empty() {
        page.section("Memory per idle connection");
        page.figure(&bars(&memory_bars(outcome)), "User-space memory of the server.");
        page.table("Memory per idle connection", 2, &MEMORY_HEAD, &memory_rows(&outcome.memory));
        page.text(&memory_note(&outcome.memory));
    }
    page.html()
}

/// fanwave's ratios in words.
fn caption(cell: &Cell) -> String {
    let ratio = |column: &Column| Some(format!("{:.2} of {}", column.fanwave_to_it?.median, column.name));
    let ratios: Vec<String> = cell.servers.iter().filter_map(ratio).collect();
    match ratios.is_empty() {
        true => String::new(),
        false => format!("fanwave takes {}.", ratios.join(", ")),
    }
}

fn heading(outcome: &Comparison, cell: &Cell) -> String {
    let events = match cell.in_flight {
        1 => "one event at a time".into(),
        many => format!("{many} events at once"),
    };
    let sizes = outcome.cells.iter().any(|other| other.connections != cell.connections);
    let size =
        if sizes { format!(", {} connections", grouped(cell.connections as u64)) } else { String::new() };
    format!("{}, {events}{size}", full_name(cell.protocol))
}

/// A bar for every server, so that all pictures have the same colours; without a figure where it
/// has none.
fn server_bars<'a>(
    outcome: &'a Comparison,
    cell: &'a Cell,
    figure: impl Fn(&Column) -> Option<Spread> + 'a,
) -> impl Iterator<Item = Bar> + 'a {
    outcome.servers.iter().map(move |server| {
        let column = cell.servers.iter().find(|column| column.name == server.name);
        match column.and_then(&figure) {
            Some(spread) => Bar::spread(&server.name, &spread),
            None => Bar::new(&server.name, f64::NAN),
        }
    })
}

fn cpu_bars(outcome: &Comparison, cell: &Cell) -> Bars {
    Bars {
        title: heading(outcome, cell),
        about: "CPU microseconds per delivery of each server, and the floor".into(),
        label: "CPU per delivery".into(),
        unit: Unit::CpuMicroseconds,
        groups: vec![Group {
            label: String::new(),
            bars: server_bars(outcome, cell, Column::us_per_delivery).collect(),
        }],
        reference: cell.floor.us_per_delivery().map(|us| (us.median, "floor".into())),
    }
}

fn rate_bars(outcome: &Comparison) -> Bars {
    let group = |cell: &Cell| Group {
        label: heading(outcome, cell),
        bars: server_bars(outcome, cell, |column| Some(column.summary.deliveries_per_second))
            .chain([Bar::spread("floor", &cell.floor.summary.deliveries_per_second)])
            .collect(),
    };
    Bars {
        title: "Deliveries per second".into(),
        about:
            "Deliveries per second of each server and of the floor, in groups by protocol and events at once"
                .into(),
        label: "deliveries per second".into(),
        unit: Unit::PerSecond,
        groups: outcome.cells.iter().map(group).collect(),
        reference: None,
    }
}

fn memory_bars(outcome: &Comparison) -> Bars {
    let mut groups: Vec<Group> = Vec::new();
    for protocol in [Protocol::Sse, Protocol::Ws, Protocol::Json] {
        let of = |server: &Entry| {
            let mut readings = outcome.memory.iter();
            let reading =
                readings.find(|reading| reading.protocol == protocol && reading.server == server.name);
            Bar::new(&server.name, reading.map_or(f64::NAN, |reading| reading.per_connection))
        };
        if outcome.memory.iter().any(|reading| reading.protocol == protocol) {
            groups.push(Group {
                label: full_name(protocol).into(),
                bars: outcome.servers.iter().map(of).collect(),
            });
        }
    }
    Bars {
        title: "Memory per idle connection".into(),
        about: "Resident user-space bytes per idle connection of each server, in groups by protocol".into(),
        label: "bytes per connection".into(),
        unit: Unit::Bytes,
        groups,
        reference: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::show::tests::outcome;
    use crate::page::fixture;

    #[test]
    fn the_page_is_well_formed_and_names_every_server_and_warning() {
        let page = page(&outcome(), &fixture::machine());
        fixture::check(&page);
        for text in ["fanwave 1.2.3", "&lt;nchan&gt;", "a warning", "no WebSocket", "0.50 of"] {
            assert!(page.contains(text), "{text}");
        }
    }
}

//! The page of a comparison: bars beside the floor, and the tables.

use super::Comparison;
use super::cells::{Cell, Column};
use super::show::{CPU_HEAD, MEMORY_HEAD, cpu_note, cpu_rows, full_name, memory_note, memory_rows};
use crate::machine::Machine;
use crate::page::Page;
use crate::page::svg::{Bar, Bars, Group, bars};
use crate::unit::Unit;

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
        page.figure(&bars(&cpu_bars(cell)), &caption(cell));
    }
    page.table("CPU per delivery", 3, &CPU_HEAD, &cpu_rows(outcome));
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

fn heading(cell: &Cell) -> String {
    let events = if cell.in_flight == 1 {
        "one event at a time".into()
    } else {
        format!("{} events at once", cell.in_flight)
    };
    format!("{}, {events}", full_name(cell.protocol))
}

fn cpu_bars(cell: &Cell) -> Bars {
    let measured =
        cell.servers.iter().filter_map(|column| Some(Bar::spread(&column.name, &column.us_per_delivery?)));
    Bars {
        title: heading(cell),
        about: "CPU microseconds per delivery of each server, and the floor".into(),
        label: "CPU per delivery".into(),
        unit: Unit::CpuMicroseconds,
        groups: vec![Group { label: String::new(), bars: measured.collect() }],
        reference: cell.floor.us_per_delivery.map(|us| (us.median, "floor".into())),
    }
}

fn rate_bars(outcome: &Comparison) -> Bars {
    let group = |cell: &Cell| Group {
        label: heading(cell),
        bars: std::iter::once(&cell.floor)
            .chain(&cell.servers)
            .map(|column| Bar::spread(&column.name, &column.deliveries_per_second))
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
    for reading in &outcome.memory {
        let label = full_name(reading.protocol);
        let bar = Bar::new(&reading.server, reading.per_connection);
        match groups.iter_mut().find(|group| group.label == label) {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group { label: label.into(), bars: vec![bar] }),
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

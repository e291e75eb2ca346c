//! `loadtest cpu`: the server's CPU per delivery beside the floor's (see `cells`).
//!
//! With `--beside-arg` a second server has its legs in the same rounds: `--beside-arg=--egress
//! --beside-arg=epoll` shows both rings beside one floor.

use anyhow::{Result, bail};
use clap::Args;

use super::cells::{self, Cell, Column};
use super::leg::{CHECKED, Window, leg_time};
use super::{Bench, ServerArgs};
use crate::framing::Protocol;
use crate::report::{paragraph, save, say, table};
use crate::server::ServerChoice;
use crate::unit::grouped;

/// Options of `cpu`.
#[derive(Debug, Clone, Args)]
pub struct CpuArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Subscribers, one series of cells for each number
    #[arg(long, value_delimiter = ',', default_value = "1000,9000")]
    connections: Vec<usize>,
    /// What the subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: usize,
    /// Events under way at once
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    in_flight: Vec<u64>,
    /// How more than one event is kept under way
    #[arg(long, value_delimiter = ',', default_value = "burst,sliding")]
    window: Vec<Window>,
    /// Pairs of legs per cell
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 3.0)]
    seconds_per_leg: f64,
    /// Check every connection's stamps too, beside its bytes; costs the receivers CPU
    #[arg(long)]
    audit: bool,
    /// Measure a second server in the same pairs, started with this further argument; repeatable
    #[arg(long = "beside-arg", value_name = "ARG", allow_hyphen_values = true)]
    beside: Vec<String>,
}

impl CpuArgs {
    /// The servers: one, or the one beside it too.
    fn servers(&self) -> Vec<ServerChoice> {
        let mut servers = vec![self.server.choice(); if self.beside.is_empty() { 1 } else { 2 }];
        servers[1..].iter_mut().for_each(|server| server.fanwave.more.extend(self.beside.clone()));
        servers
    }
}

/// Measures every cell and prints the table.
pub fn run(bench: &Bench, args: &CpuArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    if args.pairs == 0 || args.connections.contains(&0) || args.in_flight.contains(&0) {
        bail!("--pairs, --connections and --in-flight are at least 1");
    }
    let plan = cells::Plan {
        protocols: &args.protocol,
        connections: &args.connections,
        payload_bytes: args.size,
        audit: args.audit,
        in_flight: &args.in_flight,
        windows: &args.window,
        rounds: args.pairs,
        time,
    };
    let servers = args.servers();
    let (_, mut cells) = cells::measure(bench, &servers, &plan)?;
    if servers.len() > 1 {
        // Where there are two, their further arguments tell them apart.
        for column in cells.iter_mut().flat_map(|cell| cell.servers.iter_mut().zip(&servers)) {
            let (column, ServerChoice { fanwave, .. }) = column;
            column.name = if fanwave.more.is_empty() { "-".into() } else { fanwave.more.join(" ") };
        }
    }
    show(bench, args, &cells);
    save(bench.common.json.as_deref(), "cpu", &bench.machine, &cells)
}

fn row(cell: &Cell, server: &Column) -> Vec<String> {
    let (floor, summary) = (&cell.floor.summary, &server.summary);
    vec![
        server.name.clone(),
        cell.protocol.label().into(),
        if cell.in_flight == 1 { "-".into() } else { cell.window.label().into() },
        grouped(cell.connections as u64),
        cell.in_flight.to_string(),
        format!("{:.3}", floor.us_per_delivery.median),
        format!("{:.3}", summary.us_per_delivery.median),
        server.to_floor.map_or_else(|| "-".into(), |ratio| ratio.show(2)),
        grouped(floor.deliveries_per_second.median as u64),
        grouped(summary.deliveries_per_second.median as u64),
        format!("{:.0} %", summary.receiver_share.median * 100.0),
    ]
}

fn show(bench: &Bench, args: &CpuArgs, cells: &[Cell]) {
    say(&format!("{}\n", bench.machine.line()));
    let rows = cells.iter().flat_map(|cell| cell.servers.iter().map(move |server| row(cell, server)));
    let head = [
        "server",
        "protocol",
        "window",
        "connections",
        "in flight",
        "floor µs",
        "server µs",
        "ratio (min to max)",
        "floor del/s",
        "server del/s",
        "receivers",
    ];
    // A single server needs no name.
    let left_out = usize::from(args.beside.is_empty());
    let rows: Vec<Vec<String>> = rows.map(|row| row[left_out..].to_vec()).collect();
    table(3 - left_out, &head[left_out..], &rows);
    say(
        "\nµs = CPU of the sender per delivery, median; ratio = server / floor of each pair; floor: one send(2) per",
    );
    say("socket of as many frames as are in flight; receivers = share of their CPU while the server sent.");
    match args.audit {
        true => say("Every connection was checked to the byte and by its stamps."),
        false => paragraph(&format!("{CHECKED} --audit checks the stamps of all.")),
    }
    for (deep, gain) in throughput_gains(cells) {
        say(&format!("{deep}: {gain:.1} times the deliveries/s of 16 in flight"));
    }
    cells.iter().flat_map(Cell::warnings).for_each(|warning| say(&format!("WARNING: {warning}")));
}

/// Each server's cell with 256 in flight, and its deliveries per second over those of its sister
/// with 16.
fn throughput_gains(cells: &[Cell]) -> Vec<(String, f64)> {
    let mut gains = Vec::new();
    for deep in cells.iter().filter(|cell| cell.in_flight == 256) {
        let kind = |cell: &Cell| (cell.protocol, cell.connections, cell.window);
        let sister = cells.iter().find(|cell| cell.in_flight == 16 && kind(cell) == kind(deep));
        for (many, few) in deep.servers.iter().zip(sister.into_iter().flat_map(|sister| &sister.servers)) {
            let rate = |column: &Column| column.summary.deliveries_per_second.median;
            gains.push((format!("{}, {}", many.name, deep.name()), rate(many) / rate(few)));
        }
    }
    gains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prove::cells::tests::cell;
    use crate::report::Spread;

    #[test]
    fn the_gain_of_256_over_16_is_taken_within_one_series() {
        let cell = |protocol, in_flight, rate| {
            let mut cell = Cell { protocol, in_flight, ..cell() };
            cell.servers.truncate(1);
            cell.servers[0].summary.deliveries_per_second = Spread::of([rate]);
            cell
        };
        let cells =
            [cell(Protocol::Sse, 16, 2.0), cell(Protocol::Ws, 16, 5.0), cell(Protocol::Ws, 256, 15.0)];
        let gains: Vec<f64> = throughput_gains(&cells).into_iter().map(|(_, gain)| gain).collect();
        assert_eq!(gains, [3.0]);
    }
}

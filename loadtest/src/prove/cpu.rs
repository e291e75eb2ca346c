//! `loadtest cpu`: the server's CPU per delivery beside the floor's (see `cells`).
//!
//! With `--beside-arg` a second server has its legs in the same rounds: `--beside-arg=--egress
//! --beside-arg=epoll` shows both rings beside one floor. With `--tls` the second one is the same
//! build with subscribers that speak TLS, beside the plain ones of the first. With `--h2-streams`
//! the others are the same build with event streams over HTTP/2, beside those of the first over
//! HTTP/1.1: all of them through TLS with `--tls`, none without.

use anyhow::{Result, bail};
use clap::Args;

use super::cells::{self, Cell, Column};
use super::leg::{CHECKED, Window, leg_time};
use super::{Bench, ServerArgs};
use crate::framing::Protocol;
use crate::report::{paragraph, save, say, table};
use crate::unit::grouped;

/// How far TLS is checked, said beneath its figures.
const SKIMMED: &str = "Over TLS, bytes are those that records hold. The first connection opens its records; the others \
    count them by their heads, so that receivers have as much to do on both sides. --audit opens all.";

/// How far HTTP/2 is checked, said beneath its figures.
const CARRIED: &str = "Over HTTP/2 each stream is a subscriber, and a connection has as many as its row says. All sides are \
    checked alike: records are opened, frames are read, and each subscriber has its bytes and its stamps.";

/// What HTTP/2 is promised to cost at most, in times of HTTP/1.1 through the same TLS, with one event
/// in flight: with one stream on each connection, and with six.
const PROMISED_OF_STREAMS: [(usize, f64); 2] = [(1, 1.15), (6, 0.5)];

/// What TLS is promised to cost at most, in times of plain: one event in flight, and 256.
const PROMISED_RATIOS: [f64; 2] = [1.15, 1.6];

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
    /// Measure a second server in the same rounds, started with this further argument; repeatable
    #[arg(long = "beside-arg", value_name = "ARG", allow_hyphen_values = true, conflicts_with_all = ["tls", "h2_streams"])]
    beside: Vec<String>,
}

/// What a server is started with, in a row.
fn label(server: &ServerArgs) -> String {
    let tls = server.doors.tls.then(|| "TLS".to_owned());
    let streams = server.doors.h2_streams.iter().map(|streams| format!("HTTP/2 × {streams}"));
    let words: Vec<String> = tls.into_iter().chain(streams).chain(server.more.iter().cloned()).collect();
    if words.is_empty() { "-".into() } else { words.join(" ") }
}

impl CpuArgs {
    /// The servers, with the further arguments of each.
    fn servers(&self) -> Vec<ServerArgs> {
        let mut servers = vec![self.server.clone()];
        let streams = &self.server.doors.h2_streams;
        if !streams.is_empty() {
            let beside = [None].into_iter().chain(streams.iter().copied().map(Some));
            let with = |streams| ServerArgs {
                doors: self.server.doors.with_streams(streams),
                ..self.server.clone()
            };
            return beside.map(with).collect();
        }
        if self.server.doors.tls {
            servers[0].doors.tls = false;
            servers.push(self.server.clone());
        }
        if !self.beside.is_empty() {
            let more = [&self.server.more[..], &self.beside].concat();
            servers.push(ServerArgs { more, ..self.server.clone() });
        }
        servers
    }

    /// Each stream of HTTP/2 is looked at, and so are those that stand beside it.
    fn audits(&self) -> bool {
        self.audit || !self.server.doors.h2_streams.is_empty()
    }
}

/// Measures every cell and prints the table.
pub fn run(bench: &Bench, args: &CpuArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    if args.pairs == 0 || args.connections.contains(&0) || args.in_flight.contains(&0) {
        bail!("--pairs, --connections and --in-flight are at least 1");
    }
    args.server.doors.only_for_event_streams(&args.protocol)?;
    let plan = cells::Plan {
        protocols: &args.protocol,
        connections: &args.connections,
        payload_bytes: args.size,
        audit: args.audits(),
        in_flight: &args.in_flight,
        windows: &args.window,
        rounds: args.pairs,
        time,
    };
    let choices: Vec<_> = args.servers().iter().map(ServerArgs::choice).collect();
    let (_, cells) = cells::measure(bench, &choices, &plan)?;
    show(bench, args, &cells);
    save(bench.common.json.as_deref(), "cpu", &bench.machine, &cells)
}

/// The row of a cell's server, which was started so.
fn row(cell: &Cell, server: &Column, args: &ServerArgs) -> Vec<String> {
    let floor = &cell.floor.summary;
    let summary = &server.summary;
    vec![
        label(args),
        cell.protocol.label().into(),
        if cell.in_flight == 1 { "-".into() } else { cell.window.label().into() },
        grouped(cell.connections as u64),
        cell.in_flight.to_string(),
        format!("{:.3}", floor.us_per_delivery.median),
        format!("{:.3}", summary.us_per_delivery.median),
        server.to_floor.map_or_else(|| "-".into(), |ratio| ratio.show(2)),
        server.to_first.map_or_else(|| "-".into(), |ratio| ratio.show(2)),
        summary.parts(),
        grouped(floor.deliveries_per_second.median as u64),
        grouped(summary.deliveries_per_second.median as u64),
        format!("{:.0} %", summary.receiver_share.median * 100.0),
    ]
}

fn show(bench: &Bench, args: &CpuArgs, cells: &[Cell]) {
    say(&format!("{}\n", bench.machine.line()));
    let servers = args.servers();
    let rows: Vec<_> = cells
        .iter()
        .flat_map(|cell| cell.servers.iter().zip(&servers).map(|(server, args)| row(cell, server, args)))
        .collect();
    let head = [
        "arguments",
        "protocol",
        "window",
        "connections",
        "in flight",
        "floor µs",
        "server µs",
        "ratio (min to max)",
        "to the first",
        "user + system µs",
        "floor del/s",
        "server del/s",
        "receivers",
    ];
    table(3, &head, &rows);
    say(
        "\nµs = CPU of the sender per delivery, median; ratio = server / floor of each pair; floor: one send(2) per",
    );
    say("socket of as many frames as are in flight; receivers = share of their CPU while the server sent;");
    say("to the first = its CPU per delivery over that of the first server, of each pair.");
    if !args.server.doors.h2_streams.is_empty() {
        paragraph(CARRIED);
        let promised =
            PROMISED_OF_STREAMS.map(|(streams, ratio)| format!("{ratio} with {streams} on a connection"));
        say(&format!(
            "promised of HTTP/2 to HTTP/1.1 over TLS, 1 in flight: at most {}",
            promised.join(", ")
        ));
    } else if args.server.doors.tls {
        paragraph(SKIMMED);
        let [alone, many] = PROMISED_RATIOS;
        say(&format!("promised of TLS to plain: at most {alone} with 1 in flight, {many} with 256"));
    }
    match args.audits() {
        true => say("Every connection was checked to the byte and by its stamps."),
        false => paragraph(&format!("{CHECKED} --audit checks the stamps of all.")),
    }
    for (deep, gain) in throughput_gains(cells) {
        say(&format!("{}: {gain:.1} times the deliveries/s of 16 in flight", deep.name()));
    }
    cells.iter().flat_map(Cell::warnings).for_each(|warning| say(&format!("WARNING: {warning}")));
}

/// Each cell with 256 in flight, and its deliveries per second over those of its sister with 16.
fn throughput_gains(cells: &[Cell]) -> Vec<(&Cell, f64)> {
    let sister = |deep: &Cell| {
        cells.iter().find(|cell| {
            cell.in_flight == 16
                && (cell.protocol, cell.connections, cell.window)
                    == (deep.protocol, deep.connections, deep.window)
        })
    };
    cells
        .iter()
        .filter(|cell| cell.in_flight == 256)
        .filter_map(|deep| {
            let rate = |cell: &Cell| cell.servers[0].summary.deliveries_per_second.median;
            sister(deep).map(|shallow| (deep, rate(deep) / rate(shallow)))
        })
        .collect()
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
            cell.servers[0].summary.deliveries_per_second = Spread::of([rate]);
            cell
        };
        let cells =
            [cell(Protocol::Sse, 16, 2.0), cell(Protocol::Ws, 16, 5.0), cell(Protocol::Ws, 256, 15.0)];
        let gains: Vec<f64> = throughput_gains(&cells).into_iter().map(|(_, gain)| gain).collect();
        assert_eq!(gains, [3.0]);
    }
}

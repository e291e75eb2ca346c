//! `loadtest cpu`: the server's CPU per delivery beside the floor's, in the same minutes on the
//! same kind of sockets.
//!
//! Server and floor each keep their subscribers for the whole cell. Legs alternate, floor then
//! server, so that a drift of the machine falls on both; only the ratio of a pair counts. The floor
//! sends frames as long as the server's own, measured on the wire. With K events in flight the
//! floor does one send of K frames per socket.
//!
//! With `--beside-arg` a second server has its legs in the same pairs: `--beside-arg=--egress
//! --beside-arg=epoll` shows both rings beside one floor.
//!
//! The connections of all are opened in turns, since the order counts: see [`open_in_turns`].

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::leg::{CHECKED, Leg, Window, floor_leg, server_leg};
use super::{ARRIVE_LIMIT, Bench, ServerArgs, open_in_turns, path};
use crate::fleet::{Fleet, FleetPlan};
use crate::floor::Floor;
use crate::framing::Protocol;
use crate::publisher::Publisher;
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::Server;
use crate::target::Way;
use crate::unit::grouped;
use crate::usage::{CpuMeter, interrupts_are_apart};

/// Events that are published before anything is measured: they show the frame's length and touch
/// every page once.
const CALIBRATION_EVENTS: u64 = 8;
/// The floor's subscribers are numbered from here on, beyond those of the server.
const FLOOR_FIRST: usize = 1_000_000;
/// Above this share of their CPU the receivers, not the server, set the deliveries per second.
const RECEIVER_SHARE_HIGH: f64 = 0.95;

/// Above this share of the sender's CPU other programs disturb a cell.
const OTHERS_SHARE_HIGH: f64 = 0.05;

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
    /// How the server's events are published
    #[arg(long, default_value = "stream")]
    way: Way,
    /// Check every connection's stamps too, beside its bytes; costs the receivers CPU
    #[arg(long)]
    audit: bool,
    /// Measure a second server in the same pairs, started with this further argument; repeatable
    #[arg(long = "beside-arg", value_name = "ARG", allow_hyphen_values = true)]
    beside: Vec<String>,
}

/// One way of sending, measured against the floor.
#[derive(Debug, Serialize)]
struct Cell {
    /// The server's further arguments.
    server: String,
    protocol: Protocol,
    connections: usize,
    in_flight: u64,
    window: Window,
    floor_us_per_delivery: Spread,
    server_us_per_delivery: Spread,
    /// Server / floor, over the pairs.
    ratio: Spread,
    /// The same, pair by pair.
    ratios: Vec<f64>,
    server_deliveries_per_second: Spread,
    floor_deliveries_per_second: Spread,
    receiver_share: Spread,
    /// Share of the sender's CPU that others used, over the legs of both.
    others_share: Spread,
}

/// A leg's time from its option, whose name errors tell.
pub fn leg_time(option: &str, seconds: f64) -> Result<Duration> {
    if !(0.1..=600.0).contains(&seconds) {
        bail!("{option} {seconds} is not possible; give 0.1 to 600 seconds");
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Measures every cell and prints the table.
pub fn run(bench: &Bench, args: &CpuArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    if args.pairs == 0 || args.connections.contains(&0) || args.in_flight.contains(&0) {
        bail!("--pairs, --connections and --in-flight are at least 1");
    }
    let apart = interrupts_are_apart()?;
    if apart {
        progress(
            "this kernel accounts interrupts apart: the softirq time of the sender's CPU is added to both sides",
        );
    }
    let mut cells = Vec::new();
    for &connections in &args.connections {
        for &protocol in &args.protocol {
            let mut servers = Vec::new();
            for more in args.servers() {
                let server = Server::start(&args.server.program, Some(bench.common.sender_cpu), 1, &more)?;
                servers.push((more.join(" "), server));
            }
            let measured = series(bench, args, &servers, protocol, connections, time, apart);
            cells.extend(measured.map_err(|error| {
                servers.iter_mut().fold(error, |error, (_, server)| server.explain(error))
            })?);
            for (_, server) in servers {
                server.stop()?;
            }
        }
    }
    show(bench, args, &cells);
    save(bench.common.json.as_deref(), "cpu", &bench.machine, &cells)
}

impl CpuArgs {
    /// The further arguments of each server.
    fn servers(&self) -> Vec<Vec<String>> {
        let first = self.server.more.clone();
        let beside = [&first[..], &self.beside].concat();
        if self.beside.is_empty() { vec![first] } else { vec![first, beside] }
    }
}

/// A server with its subscribers, beside the floor and perhaps another one.
struct Side<'a> {
    /// Its further arguments.
    name: &'a str,
    fleet: Fleet,
    publisher: Publisher,
    meter: CpuMeter,
}

impl<'a> Side<'a> {
    fn new(
        bench: &Bench,
        args: &CpuArgs,
        server: &'a (String, Server),
        protocol: Protocol,
        apart: bool,
    ) -> Result<Side<'a>> {
        let (name, server) = server;
        Ok(Side {
            name,
            fleet: Fleet::new(FleetPlan {
                cpu: Some(bench.common.receiver_cpu),
                audit: args.audit,
                ..FleetPlan::steady(server.listen, protocol, path(protocol))
            }),
            publisher: super::publisher(server, args.way, args.size)?,
            meter: CpuMeter::new(server.pid(), bench.common.sender_cpu, apart),
        })
    }

    /// Publishes a few events. Returns the length of a frame.
    fn calibrate(&mut self) -> Result<f64> {
        let Side { fleet, publisher, .. } = self;
        fleet.zero(publisher.next(), 0)?;
        super::publish_one_by_one(publisher, CALIBRATION_EVENTS, |event, last| {
            fleet.wait_for(event, ARRIVE_LIMIT, last).map(drop)
        })?;
        let totals = fleet.check(CALIBRATION_EVENTS, CALIBRATION_EVENTS)?.totals;
        Ok(totals.scout_bytes as f64 / CALIBRATION_EVENTS as f64)
    }
}

/// All cells of one protocol and number of connections, over the same sockets.
fn series(
    bench: &Bench,
    args: &CpuArgs,
    servers: &[(String, Server)],
    protocol: Protocol,
    connections: usize,
    time: Duration,
    apart: bool,
) -> Result<Vec<Cell>> {
    let common = &bench.common;
    let mut sides = Vec::new();
    for server in servers {
        sides.push(Side::new(bench, args, server, protocol, apart)?);
    }
    let mut floor = Floor::start(0, common.sender_cpu, common.receiver_cpu, FLOOR_FIRST)?;
    open_in_turns(connections, |some| {
        for side in &mut sides {
            side.fleet.open(some)?;
        }
        floor.open(some)
    })?;
    let floor_meter = CpuMeter::new(floor.pid(), common.sender_cpu, apart);
    let mut frame_bytes = 0.0;
    for side in &mut sides {
        frame_bytes = side.calibrate()?;
    }

    let mut cells = Vec::new();
    for &in_flight in &args.in_flight {
        // With one event in flight both windows are the same.
        let windows = if in_flight == 1 { &[Window::Burst][..] } else { &args.window };
        let mut floor_legs = Vec::new();
        let kinds: Vec<(usize, Window)> =
            (0..sides.len()).flat_map(|side| windows.iter().map(move |window| (side, *window))).collect();
        let mut server_legs: Vec<Vec<Leg>> = kinds.iter().map(|_| Vec::new()).collect();
        for pair in 1..=args.pairs {
            progress(&format!(
                "{}, {connections} connections, {in_flight} in flight: pair {pair} of {}",
                protocol.label(),
                args.pairs
            ));
            floor_legs.push(floor_leg(
                &mut floor,
                &floor_meter,
                frame_bytes.round() as usize,
                in_flight,
                time,
            )?);
            for (&(side, window), legs) in kinds.iter().zip(&mut server_legs) {
                let Side { fleet, publisher, meter, .. } = &mut sides[side];
                let leg = server_leg(fleet, publisher, meter, in_flight, window, time)?;
                frame_bytes = leg.frame_bytes;
                legs.push(leg);
            }
        }
        for (&(side, window), legs) in kinds.iter().zip(server_legs) {
            let cell = Cell::new(protocol, connections, in_flight, window, floor_legs.clone(), legs);
            cells.push(Cell { server: sides[side].name.into(), ..cell });
        }
    }
    for side in sides {
        side.publisher.finish().context("after all legs")?;
    }
    Ok(cells)
}

impl Cell {
    fn new(
        protocol: Protocol,
        connections: usize,
        in_flight: u64,
        window: Window,
        floor_legs: Vec<Leg>,
        server_legs: Vec<Leg>,
    ) -> Cell {
        let us = |legs: &[Leg]| Spread::of(legs.iter().map(|leg| leg.us_per_delivery));
        let rate = |legs: &[Leg]| Spread::of(legs.iter().map(|leg| leg.deliveries_per_second));
        let pairs = floor_legs.iter().zip(&server_legs);
        let ratios: Vec<f64> =
            pairs.map(|(floor, server)| server.us_per_delivery / floor.us_per_delivery).collect();
        Cell {
            server: String::new(),
            protocol,
            connections,
            in_flight,
            window,
            floor_us_per_delivery: us(&floor_legs),
            server_us_per_delivery: us(&server_legs),
            ratio: Spread::of(ratios.iter().copied()),
            ratios,
            server_deliveries_per_second: rate(&server_legs),
            floor_deliveries_per_second: rate(&floor_legs),
            receiver_share: Spread::of(server_legs.iter().map(|leg| leg.receiver_share)),
            others_share: Spread::of(floor_legs.iter().chain(&server_legs).map(|leg| leg.others_share)),
        }
    }

    /// The cell in words.
    fn name(&self) -> String {
        format!(
            "{}{}{}, {} connections, {} in flight ({})",
            self.server,
            if self.server.is_empty() { "" } else { ", " },
            self.protocol.label(),
            grouped(self.connections as u64),
            self.in_flight,
            self.window.label()
        )
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.protocol.label().into(),
            if self.in_flight == 1 { "-".into() } else { self.window.label().into() },
            grouped(self.connections as u64),
            self.in_flight.to_string(),
            format!("{:.3}", self.floor_us_per_delivery.median),
            format!("{:.3}", self.server_us_per_delivery.median),
            self.ratio.show(2),
            grouped(self.floor_deliveries_per_second.median as u64),
            grouped(self.server_deliveries_per_second.median as u64),
            format!("{:.0} %", self.receiver_share.median * 100.0),
        ]
    }
}

fn show(bench: &Bench, args: &CpuArgs, cells: &[Cell]) {
    say(&format!("{}\n", bench.machine.line()));
    // Where there are two, each row says whose it is.
    let named = args.servers().len() > 1;
    let row = |cell: &Cell| {
        let server = if cell.server.is_empty() { "-" } else { &cell.server };
        if named { [vec![server.into()], cell.row()].concat() } else { cell.row() }
    };
    let rows: Vec<_> = cells.iter().map(row).collect();
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
    if named {
        table(3, &head, &rows)
    } else {
        table(2, &head[1..], &rows)
    }
    say(
        "\nµs = CPU of the sender per delivery, median; ratio = server / floor of each pair; floor: one send(2) per",
    );
    say("socket of as many frames as are in flight; receivers = share of their CPU while the server sent.");
    match args.audit {
        true => say("Every connection was checked to the byte and by its stamps."),
        false => paragraph(&format!("{CHECKED} --audit checks the stamps of all.")),
    }
    for (deep, gain) in throughput_gains(cells) {
        say(&format!("{}: {gain:.1} times the deliveries/s of 16 in flight", deep.name()));
    }
    for cell in cells {
        if cell.receiver_share.median > RECEIVER_SHARE_HIGH {
            say(&format!(
                "WARNING: {}: the receivers' CPU was full, the deliveries/s are theirs",
                cell.name()
            ));
        }
        if cell.others_share.median > OTHERS_SHARE_HIGH {
            let share = cell.others_share.median * 100.0;
            say(&format!("WARNING: {}: other programs used {share:.0} % of the sender's CPU", cell.name()));
        }
    }
}

/// Each cell with 256 in flight, and its deliveries per second over those of its sister with 16.
fn throughput_gains(cells: &[Cell]) -> Vec<(&Cell, f64)> {
    let sister = |deep: &Cell| {
        cells.iter().find(|cell| {
            cell.in_flight == 16
                && cell.server == deep.server
                && (cell.protocol, cell.connections, cell.window)
                    == (deep.protocol, deep.connections, deep.window)
        })
    };
    cells
        .iter()
        .filter(|cell| cell.in_flight == 256)
        .filter_map(|deep| {
            let rate = |cell: &Cell| cell.server_deliveries_per_second.median;
            sister(deep).map(|shallow| (deep, rate(deep) / rate(shallow)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_over_pairs_not_of_medians() {
        let floor = vec![Leg::example(1.0, 1.0), Leg::example(2.0, 1.0), Leg::example(4.0, 1.0)];
        let server = vec![Leg::example(2.0, 1.0), Leg::example(2.0, 1.0), Leg::example(2.0, 1.0)];
        let cell = Cell::new(Protocol::Sse, 10, 1, Window::Burst, floor, server);
        assert_eq!(cell.ratio, Spread { median: 1.0, min: 0.5, max: 2.0 });
    }

    #[test]
    fn the_gain_of_256_over_16_is_taken_within_one_series() {
        let cell = |protocol, in_flight, rate| {
            Cell::new(
                protocol,
                10,
                in_flight,
                Window::Sliding,
                vec![Leg::example(1.0, 1.0)],
                vec![Leg::example(1.0, rate)],
            )
        };
        let cells =
            [cell(Protocol::Sse, 16, 2.0), cell(Protocol::Ws, 16, 5.0), cell(Protocol::Ws, 256, 15.0)];
        let gains: Vec<f64> = throughput_gains(&cells).into_iter().map(|(_, gain)| gain).collect();
        assert_eq!(gains, [3.0]);
    }

    #[test]
    fn an_impossible_time_is_refused() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            let error = leg_time("--some-time", seconds).expect_err("impossible").to_string();
            assert!(error.contains("--some-time"), "{error}");
        }
        assert!(leg_time("--some-time", 0.5).is_ok());
    }
}

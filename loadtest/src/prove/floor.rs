//! `loadtest floor`: what this kernel charges for the same bytes, without any server.
//!
//! Two senders take turns on the same sockets: a bare `send(2)` loop, which is the floor of all
//! reports, and io_uring SENDs through the server's own ring. Legs alternate, so that a drift of
//! the machine falls on both; the ratio is that of each pair.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::Bench;
use super::leg::{Leg, Summary, floor_leg, leg_time, ratios};
use crate::floor::{Floor, SENDS_PER_ENTER, Sends};
use crate::report::{Spread, progress, save, say, table};
use crate::unit::grouped;
use crate::usage::{CpuMeter, interrupts_are_apart};

/// Options of `floor`.
#[derive(Debug, Clone, Args)]
pub struct FloorArgs {
    /// Subscribers
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Bytes of one frame on the wire
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    frame: usize,
    /// Frames per send
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    burst: Vec<u64>,
    /// Pairs of legs per cell
    #[arg(long, default_value_t = 5)]
    legs: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 2.0)]
    seconds_per_leg: f64,
}

#[derive(Debug, Serialize)]
struct Cell {
    connections: usize,
    frames_per_send: u64,
    /// Of the `send(2)` loop.
    send: Summary,
    ring: Summary,
    /// io_uring / `send(2)` loop, CPU per delivery, over the pairs.
    ring_ratio: Spread,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &FloorArgs) -> Result<()> {
    if args.connections == 0 || args.frame == 0 || args.legs == 0 || args.burst.contains(&0) {
        bail!("--connections, --frame, --legs and --burst are at least 1");
    }
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    let cells = measure(bench, args, time)?;
    say(&format!("{}\n", bench.machine.line()));
    let rows: Vec<_> = cells.iter().map(row).collect();
    let head = [
        "sockets",
        "frames",
        "send(2) µs/delivery",
        "per second",
        "io_uring µs",
        "per second",
        "io_uring / send(2)",
    ];
    table(0, &head, &rows);
    say(&format!(
        "\nCPU per delivery; median (smallest to largest) of {} pairs; {SENDS_PER_ENTER} io_uring sends per system call",
        args.legs
    ));
    save(bench.common.json.as_deref(), "floor", &bench.machine, &cells)
}

fn row(cell: &Cell) -> Vec<String> {
    vec![
        grouped(cell.connections as u64),
        cell.frames_per_send.to_string(),
        cell.send.us_per_delivery.show(3),
        grouped(cell.send.deliveries_per_second.median as u64),
        format!("{:.3}", cell.ring.us_per_delivery.median),
        grouped(cell.ring.deliveries_per_second.median as u64),
        cell.ring_ratio.show(2),
    ]
}

fn measure(bench: &Bench, args: &FloorArgs, time: Duration) -> Result<Vec<Cell>> {
    let common = &bench.common;
    let mut floor = Floor::start(args.connections, common.sender_cpu, common.receiver_cpu, 0)?;
    let meter = CpuMeter::new(floor.pid(), common.sender_cpu, interrupts_are_apart()?);
    let mut cells = Vec::new();
    for &frames in &args.burst {
        progress(&format!("floor: {} connections, {frames} frames per send", args.connections));
        let (mut legs, mut ring_legs) = (Vec::new(), Vec::new());
        for _ in 0..args.legs {
            for (sends, legs) in [(Sends::Loop, &mut legs), (Sends::Ring, &mut ring_legs)] {
                floor.sends_by(sends)?;
                legs.push(floor_leg(&mut floor, &meter, args.frame, frames, time)?);
            }
        }
        cells.push(Cell::new(args.connections, frames, &legs, &ring_legs));
    }
    Ok(cells)
}

impl Cell {
    /// Over pairs of legs, one of each sender.
    fn new(connections: usize, frames_per_send: u64, legs: &[Leg], ring_legs: &[Leg]) -> Cell {
        Cell {
            connections,
            frames_per_send,
            send: Summary::of(legs),
            ring: Summary::of(ring_legs),
            ring_ratio: Spread::of(ratios(ring_legs, legs)),
        }
    }
}

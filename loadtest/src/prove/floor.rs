//! `loadtest floor`: what this kernel charges for the same bytes, without any server.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::Bench;
use super::leg::{Leg, floor_leg};
use crate::floor::Floor;
use crate::report::{Spread, grouped, progress, save, say, table};
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
    /// Frames per send(2)
    #[arg(long, value_delimiter = ',', default_value = "1,16,256")]
    burst: Vec<u64>,
    /// Legs per cell
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
    us_per_delivery: Spread,
    deliveries_per_second: Spread,
    legs: Vec<Leg>,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &FloorArgs) -> Result<()> {
    if args.connections == 0 || args.frame == 0 || args.legs == 0 || args.burst.contains(&0) {
        bail!("--connections, --frame, --legs and --burst are at least 1");
    }
    let time = super::cpu::leg_time(args.seconds_per_leg)?;
    let cells = measure(bench, args, time)?;
    say(&format!("{}\n", bench.machine.line()));
    let rows: Vec<_> = cells
        .iter()
        .map(|cell| {
            vec![
                grouped(cell.connections as u64),
                cell.frames_per_send.to_string(),
                cell.us_per_delivery.show(3),
                grouped(cell.deliveries_per_second.median as u64),
            ]
        })
        .collect();
    table(0, &["connections", "frames per send", "µs CPU per delivery (min to max)", "deliveries/s"], &rows);
    save(bench.common.json.as_deref(), "floor", &bench.machine, &cells)
}

fn measure(bench: &Bench, args: &FloorArgs, time: Duration) -> Result<Vec<Cell>> {
    let common = &bench.common;
    let mut floor = Floor::start(args.connections, common.sender_cpu, common.receiver_cpu, 0)?;
    let meter = CpuMeter::new(floor.pid(), common.sender_cpu, interrupts_are_apart()?);
    let mut cells = Vec::new();
    for &frames in &args.burst {
        progress(&format!("floor: {} connections, {frames} frames per send", args.connections));
        let mut legs = Vec::new();
        for _ in 0..args.legs {
            legs.push(floor_leg(&mut floor, &meter, args.frame, frames, time)?);
        }
        cells.push(Cell {
            connections: args.connections,
            frames_per_send: frames,
            us_per_delivery: Spread::of(legs.iter().map(|leg| leg.us_per_delivery)),
            deliveries_per_second: Spread::of(legs.iter().map(|leg| leg.deliveries_per_second)),
            legs,
        });
    }
    Ok(cells)
}

//! Points whose truth is known, and models of them: what the tests of the planner stand on.

use std::collections::HashMap;
use std::sync::LazyLock;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

use super::design::{Design, Group, Load};
use super::experiments::{CpuRow, EMPTY_SHARDS, Kind, Measured, MemoryRow};
use super::model::Model;
use super::work::Work;
use crate::framing::Protocol;
use crate::machine::Machine;

/// CPU microseconds, in the order of `CPU_TERMS`.
pub const CPU_TRUTH: [f64; 13] = [700.0, 12.0, 2.0, 2.1, 2.5, 0.4, 0.3, 30.0, 7.0, 5.0, 13.0, 12.0, 9.0];
/// Bytes, in the order of `USER_TERMS`.
pub const USER_TRUTH: [f64; 7] = [0.9e6, 0.4e6, 0.6e6, 145.0, 135.0, 550.0, 1.5];
/// Bytes, in the order of `KERNEL_TERMS`.
pub const KERNEL_TRUTH: [f64; 3] = [0.5e6, 8_700.0, 8_600.0];
/// Interval at which half of `apart` is paid.
pub const APART_TRUTH: f64 = 43.0;

/// How figures differ from the truth, as standard deviations.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    /// Of a point in all of its rounds, relative.
    pub point: f64,
    /// Of one round, relative.
    pub round: f64,
    /// Of one round: CPU microseconds per second, bytes of user space, bytes of the kernel.
    pub floor: [f64; 3],
}

/// As on a real machine.
pub const NOISE: Noise = Noise { point: 0.04, round: 0.03, floor: [400.0, 40e3, 600e3] };
/// As on a machine that does nothing else.
pub const QUIET: Noise = Noise { point: 0.0, round: 0.01, floor: [0.0; 3] };

/// Draws figures.
struct Dice {
    noise: Noise,
    random: SmallRng,
    points: HashMap<String, f64>,
}

impl Dice {
    /// The figure of a round of a point, at least 0.
    fn figure(&mut self, point: &str, exact: f64, floor: f64) -> f64 {
        let mut normal = || self.random.sample::<f64, _>(StandardNormal);
        let (round, floor) = (self.noise.round * normal(), floor * normal());
        let point = *self.points.entry(point.to_owned()).or_insert_with(normal);
        (exact * (1.0 + self.noise.point * point + round) + floor).max(0.0)
    }
}

/// What a design would show on a machine that is exactly as the model says, but for noise.
pub fn planted(design: &Design, noise: Noise, seed: u64) -> Measured {
    let mut dice = Dice { noise, random: SmallRng::seed_from_u64(seed), points: HashMap::new() };
    let [cpu_floor, user_floor, kernel_floor] = noise.floor;
    let mut measured = Measured::default();
    for (round, groups) in design.schedule().iter().enumerate() {
        let empty = MemoryRow { round, shards: EMPTY_SHARDS, ..memory_row(Protocol::Ws, 0, 0, 0) };
        for mut row in groups.iter().flat_map(|group| memory_looks(group, round)).chain([empty]) {
            let [user, kernel] = memory_truth(&row);
            let at = (row.shards, row.protocol, row.connections, row.window_events > 0);
            row.user_bytes = dice.figure(&format!("user {at:?}"), user, user_floor) as u64;
            row.kernel_bytes = dice.figure(&format!("kernel {at:?}"), kernel, kernel_floor) as i64;
            measured.memory.push(row);
        }
        for mut row in groups.iter().flat_map(|group| cpu_legs(group, round)) {
            let us = dot(&Work::of(&row).amounts(APART_TRUTH), &CPU_TRUTH);
            let beats = row.heartbeats > 0;
            let at = (row.kind, row.protocol, row.connections, row.rate, row.payload_bytes, beats);
            row.cpu_ns = (1e3 * dice.figure(&format!("{at:?}"), us, cpu_floor * row.seconds)) as u64;
            measured.cpu.push(row);
        }
    }
    measured
}

/// User-space and kernel memory at a look.
fn memory_truth(row: &MemoryRow) -> [f64; 2] {
    let [process, shard, used, ws, sse, event, byte] = USER_TRUTH;
    let [kernel_shard, kernel_ws, kernel_sse] = KERNEL_TRUTH;
    let (each, kernel_each) = if row.protocol == Protocol::Ws { (ws, kernel_ws) } else { (sse, kernel_sse) };
    let (shards, connections) = (row.shards as f64, row.connections as f64);
    let window = row.window_events as f64 * event + row.window_bytes as f64 * byte;
    let used = if row.connections > 0 { shards * used } else { 0.0 };
    [process + shards * shard + used + connections * each + window, kernel_shard + connections * kernel_each]
}

/// The legs of a group, without their CPU.
fn cpu_legs(group: &Group, round: usize) -> Vec<CpuRow> {
    let connections = group.connections as u64;
    let leg = |kind, seconds| CpuRow::nothing(round, kind, group, seconds);
    let loads = group.loads.iter().map(|load| loaded(leg(Kind::Load, 1.5), load));
    let idle = match group.heartbeat_ms {
        Some(_) => CpuRow { heartbeats: connections * 7 / 2, ..leg(Kind::Idle, 4.0) },
        None => leg(Kind::Idle, 1.5),
    };
    let others = [
        CpuRow { handshakes: connections, ..leg(Kind::Open, 0.3) },
        CpuRow { closes: connections, ..leg(Kind::Close, 0.6) },
        idle,
    ];
    loads.chain(others).collect()
}

/// A leg with the events of a load.
fn loaded(leg: CpuRow, load: &Load) -> CpuRow {
    let events = (load.rate * leg.seconds).ceil() as u64;
    let overhead = if leg.protocol == Protocol::Sse { 30.0 } else { 4.0 };
    CpuRow {
        rate: load.rate,
        events,
        deliveries: events * leg.connections as u64,
        payload_bytes: load.bytes,
        frame_bytes: load.bytes as f64 + overhead,
        ..leg
    }
}

/// Two seconds of load on so many WebSockets.
pub fn load_row(connections: usize, rate: f64, bytes: usize) -> CpuRow {
    let load = Load { rate, bytes };
    let group =
        Group { protocol: Protocol::Ws, connections, topics: 1, heartbeat_ms: None, loads: vec![load] };
    loaded(CpuRow::nothing(0, Kind::Load, &group, 2.0), &load)
}

/// A look at the memory of a server with one shard, without what is seen.
pub fn memory_row(
    protocol: Protocol,
    connections: usize,
    window_events: u64,
    window_bytes: u64,
) -> MemoryRow {
    MemoryRow { protocol, shards: 1, connections, window_events, window_bytes, ..MemoryRow::default() }
}

/// The looks at the memory of a group.
fn memory_looks(group: &Group, round: usize) -> Vec<MemoryRow> {
    let events = |load: &Load| (load.rate * 1.7) as u64;
    let window_events = group.loads.iter().map(events).sum();
    let window_bytes = group.loads.iter().map(|load| events(load) * load.bytes as u64).sum();
    let look = |connections, events, bytes| MemoryRow {
        round,
        ..memory_row(group.protocol, connections, events, bytes)
    };
    let mut looks = vec![look(0, 0, 0), look(group.connections, 0, 0)];
    if !group.loads.is_empty() {
        looks.push(look(group.connections, window_events, window_bytes));
    }
    looks
}

pub fn machine() -> Machine {
    Machine::describe(20_000)
}

pub fn dot(x: &[f64], truth: &[f64]) -> f64 {
    x.iter().zip(truth).map(|(x, truth)| x * truth).sum()
}

/// A model of planted points with little noise; fitted once for all tests.
pub fn model() -> Model {
    static MODEL: LazyLock<Model> = LazyLock::new(|| {
        let design = Design::usual(false);
        Model::of(machine(), design.clone(), planted(&design, QUIET, 1)).expect("a regular design")
    });
    MODEL.clone()
}

/// A model with these costs and no uncertainty.
pub fn exact(cpu: [f64; 13], user: [f64; 7], kernel: [f64; 3]) -> Model {
    let mut model = model();
    let fits = [(&mut model.cpu, &cpu[..]), (&mut model.user, &user), (&mut model.kernel, &kernel)];
    for (fit, values) in fits {
        for (term, value) in fit.terms.iter_mut().zip(values) {
            (term.value, term.low, term.high) = (*value, *value, *value);
        }
        fit.resamples.iter_mut().for_each(|resample| resample.copy_from_slice(values));
        fit.scatter = 0.0;
    }
    model
}

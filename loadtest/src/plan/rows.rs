//! From measured legs to the rows of a fit: one for each point of the design, the median of its
//! rounds.
//!
//! The rounds of a point are not independent: what the terms do not explain there is the same in
//! each of them, and no number of rounds averages it away. Fitted one by one they would pass for
//! that many times the evidence, and the intervals would be too narrow. The median also drops what
//! disturbed one round.

use std::collections::HashMap;
use std::hash::Hash;

use super::experiments::{CpuRow, MemoryRow, OTHERS_SHARE_MAX};
use super::fit::Row;
use super::work::Work;
use crate::framing::Protocol;

/// What a CPU figure is uncertain by: relative, and microseconds per second of a leg.
const CPU_NOISE: (f64, f64) = (0.05, 500.0);
/// What a memory figure is uncertain by: relative, and bytes (of user space, of the kernel).
const MEMORY_NOISE: f64 = 0.02;
const USER_NOISE_BYTES: f64 = (64 << 10) as f64;
const KERNEL_NOISE_BYTES: f64 = (1 << 20) as f64;

/// CPU in microseconds by the terms of `work`.
pub fn cpu(rows: &[&CpuRow], apart_ms: f64) -> Vec<Row> {
    points(rows.iter().map(|row| {
        let y = row.cpu_ns as f64 / 1e3;
        // A leg in which the server had to share its CPU says less.
        let disturbed = 1.0 + row.others_share / OTHERS_SHARE_MAX;
        let sigma = (CPU_NOISE.0 * y).hypot(CPU_NOISE.1 * row.seconds) * disturbed;
        (cpu_point(row), Row { x: Work::of(row).amounts(apart_ms), y, sigma })
    }))
}

/// What the rounds of a point have in common.
fn cpu_point(row: &CpuRow) -> impl Eq + Hash + use<> {
    let load = (row.rate.to_bits(), row.payload_bytes);
    (row.kind, row.protocol.label(), row.connections, row.topics, load, row.heartbeats > 0)
}

/// User-space memory in bytes by `USER_TERMS`.
pub fn user(rows: &[MemoryRow]) -> Vec<Row> {
    points(rows.iter().map(|row| {
        let (ws, sse) = by_protocol(row.protocol, row.connections as f64);
        let y = row.user_bytes as f64;
        let shards = row.shards as f64;
        let used = if row.connections > 0 { shards } else { 0.0 };
        let x = vec![1.0, shards, used, ws, sse, row.window_events as f64, row.window_bytes as f64];
        (memory_point(row), Row { x, y, sigma: (MEMORY_NOISE * y).hypot(USER_NOISE_BYTES) })
    }))
}

/// Kernel memory in bytes by `KERNEL_TERMS`, right after the connections came: later rows hold what
/// the rest of the machine did meanwhile.
pub fn kernel(rows: &[MemoryRow]) -> Vec<Row> {
    let fresh = rows.iter().filter(|row| row.connections > 0 && row.window_events == 0);
    points(fresh.map(|row| {
        let (ws, sse) = by_protocol(row.protocol, row.connections as f64);
        let y = row.kernel_bytes as f64;
        let sigma = (MEMORY_NOISE * y).hypot(KERNEL_NOISE_BYTES);
        (memory_point(row), Row { x: vec![1.0, ws, sse], y, sigma })
    }))
}

/// An empty server is the same whatever its subscribers will speak.
fn memory_point(row: &MemoryRow) -> impl Eq + Hash + use<> {
    let protocol = (row.connections > 0).then_some(row.protocol.label());
    (row.shards, protocol, row.connections, row.window_events > 0)
}

/// So many connections as amounts of a WebSocket and of an SSE term.
pub fn by_protocol(protocol: Protocol, connections: f64) -> (f64, f64) {
    if protocol == Protocol::Sse { (0.0, connections) } else { (connections, 0.0) }
}

/// One row per point, in the order in which points first come.
fn points<Point: Eq + Hash>(rows: impl Iterator<Item = (Point, Row)>) -> Vec<Row> {
    let mut places = HashMap::new();
    let mut points: Vec<Vec<Row>> = Vec::new();
    for (point, row) in rows {
        let place = *places.entry(point).or_insert(points.len());
        if place == points.len() {
            points.push(Vec::new());
        }
        points[place].push(row);
    }
    points.into_iter().map(median).collect()
}

/// The round with the median value, or the mean of the two in the middle.
fn median(mut rounds: Vec<Row>) -> Row {
    rounds.sort_by(|a, b| a.y.total_cmp(&b.y));
    let (low, high) = (&rounds[(rounds.len() - 1) / 2], &rounds[rounds.len() / 2]);
    Row {
        x: low.x.iter().zip(&high.x).map(|(low, high)| f64::midpoint(*low, *high)).collect(),
        y: f64::midpoint(low.y, high.y),
        sigma: f64::midpoint(low.sigma, high.sigma),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::experiments::Kind;
    use crate::plan::planted::{load_row, memory_row};

    #[test]
    fn the_rounds_of_a_point_are_one_row_with_their_median() {
        let round = |round, connections, cpu_ns| CpuRow { round, cpu_ns, ..load_row(connections, 10.0, 200) };
        let rounds = [
            round(0, 1_000, 50_000_000),
            round(0, 4_000, 7_000),
            round(1, 1_000, 900_000_000),
            round(1, 4_000, 9_000),
            round(2, 1_000, 48_000_000),
        ];
        let rows = cpu(&rounds.iter().collect::<Vec<_>>(), 43.0);
        assert_eq!(rows.iter().map(|row| row.y).collect::<Vec<_>>(), [50_000.0, 8.0]);
        assert_eq!(rows[0].x, Work::of(&rounds[0]).amounts(43.0));
    }

    #[test]
    fn points_that_differ_in_anything_stay_apart() {
        let one = load_row(1_000, 10.0, 200);
        let others = [
            one.clone(),
            CpuRow { kind: Kind::Idle, ..one.clone() },
            CpuRow { protocol: Protocol::Sse, ..one.clone() },
            CpuRow { connections: 2_000, ..one.clone() },
            CpuRow { topics: 2, ..one.clone() },
            CpuRow { rate: 11.0, ..one.clone() },
            CpuRow { payload_bytes: 201, ..one.clone() },
            CpuRow { heartbeats: 5, ..one.clone() },
        ];
        assert_eq!(cpu(&others.iter().collect::<Vec<_>>(), 43.0).len(), others.len());
        let one = memory_row(Protocol::Ws, 1_000, 0, 0);
        let others = [
            one.clone(),
            MemoryRow { protocol: Protocol::Sse, ..one.clone() },
            MemoryRow { shards: 3, ..one.clone() },
            MemoryRow { window_events: 7, ..one.clone() },
            MemoryRow { connections: 0, ..one.clone() },
            MemoryRow { connections: 0, protocol: Protocol::Sse, ..one.clone() },
        ];
        assert_eq!(user(&others).len(), others.len() - 1, "without connections the protocol is nothing");
        assert_eq!(kernel(&others).len(), 3, "of those with connections, before events");
    }
}

//! The cost model: what a server's work costs in CPU and memory, fitted to measured points, saved as JSON.
//!
//! CPU is a sum over the work done: events, deliveries, bytes, heartbeats, handshakes, connections that end. Two
//! things make deliveries differ. One that comes long after the last on its connection is acknowledged by itself and
//! finds cold caches; the model lets this cost rise with the interval from 0 to all of it around the delay of a TCP
//! acknowledgement (`apart`). More connections may find less in the caches (`spread`, saturating). What the model does
//! not hold: near a full core deliveries to one connection merge and each costs less, so such points are left out of
//! the fit and a prediction there is an upper bound.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::design::Design;
use super::experiments::{CpuRow, Kind, Measured, MemoryRow};
use super::fit::{self, Estimate, Fit, Row};
use crate::framing::Protocol;
use crate::machine::Machine;

/// The form of the file; another one is refused.
const VERSION: u32 = 1;
/// Terms of the CPU, in microseconds each. The order is that of [`Work::amounts`].
pub const CPU_TERMS: [(&str, &str); 13] = [
    ("base", "a second of a running shard"),
    ("publish", "an event taken in"),
    ("delivery_ws", "a WebSocket delivery"),
    ("delivery_sse", "an SSE delivery"),
    ("apart", "more for a delivery long after the last"),
    ("spread", "more for a delivery among many connections"),
    ("kilobyte", "1,000 bytes delivered"),
    ("idle", "1,000 open connections for a second"),
    ("heartbeat_ws", "a ping and its pong"),
    ("heartbeat_sse", "a heartbeat of SSE"),
    ("handshake_ws", "a WebSocket handshake"),
    ("handshake_sse", "an SSE handshake"),
    ("close", "a connection that ends"),
];
/// Terms of user-space memory, in bytes each.
pub const USER_TERMS: [&str; 6] =
    ["process", "shard", "connection_ws", "connection_sse", "window_event", "window_byte"];
/// Terms of kernel memory of both ends on loopback, in bytes each.
pub const KERNEL_TERMS: [&str; 3] = ["shard", "connection_ws", "connection_sse"];
/// Connections at which half of `spread` is paid: the middle of what a shard usually holds.
const SPREAD_CONNECTIONS: f64 = 4_000.0;
/// Candidates for the interval at which half of `apart` is paid, in milliseconds; Linux acknowledges within 40.
const APART_MS: [f64; 9] = [20.0, 25.0, 30.0, 36.0, 43.0, 52.0, 62.0, 75.0, 90.0];
/// What a CPU figure is uncertain by: relative, and microseconds per second of a leg.
const CPU_NOISE: (f64, f64) = (0.05, 500.0);
/// What a memory figure is uncertain by: relative, and bytes (of user space, of the kernel).
const MEMORY_NOISE: f64 = 0.02;
const USER_NOISE_BYTES: f64 = (64 << 10) as f64;
const KERNEL_NOISE_BYTES: f64 = (1 << 20) as f64;
/// Above this share of a core deliveries merge, or the receivers are the bottleneck: such points are left out.
const SHARE_MAX: f64 = 0.85;

/// A fitted model with everything that it was fitted to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    version: u32,
    /// Where, when, from which commit and by which command it was measured.
    pub machine: Machine,
    /// What was measured.
    pub design: Design,
    /// Interval between deliveries at which half of `apart` is paid, in milliseconds.
    pub apart_ms: f64,
    /// Bytes that SSE adds to an event's data.
    pub sse_overhead_bytes: f64,
    /// CPU in microseconds; see [`CPU_TERMS`].
    pub cpu: Fit,
    /// User-space memory in bytes; see [`USER_TERMS`].
    pub user: Fit,
    /// Kernel memory of both ends in bytes; see [`KERNEL_TERMS`].
    pub kernel: Fit,
    /// Where the model has been checked against points.
    pub domain: Domain,
    /// The points.
    pub measured: Measured,
}

/// The range of the points that were fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Connections of one shard, fewest and most.
    pub connections: (f64, f64),
    /// Events per second of one connection.
    pub rate: (f64, f64),
    /// Bytes of one event's data.
    pub bytes: (f64, f64),
    /// The largest share of one core that was used.
    pub share: f64,
}

/// What one shard does in some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// What the subscribers speak.
    pub protocol: Protocol,
    /// Length in seconds.
    pub seconds: f64,
    /// Open connections.
    pub connections: f64,
    /// Events taken in, over all topics.
    pub events: f64,
    /// Event × connection.
    pub deliveries: f64,
    /// Events per second of one connection.
    pub rate: f64,
    /// Bytes on the wire per delivery.
    pub frame_bytes: f64,
    /// Connections opened.
    pub handshakes: f64,
    /// Connections closed.
    pub closes: f64,
    /// Heartbeats sent.
    pub heartbeats: f64,
}

impl Work {
    /// What a measured leg did.
    pub fn of(row: &CpuRow) -> Work {
        Work {
            protocol: row.protocol,
            seconds: row.seconds,
            // While they come or go, half of them are there on average.
            connections: row.connections as f64
                * if matches!(row.kind, Kind::Load | Kind::Idle) { 1.0 } else { 0.5 },
            events: row.events as f64,
            deliveries: row.deliveries as f64,
            rate: row.rate / row.topics as f64,
            frame_bytes: row.frame_bytes,
            handshakes: row.handshakes as f64,
            closes: row.closes as f64,
            heartbeats: row.heartbeats as f64,
        }
    }

    /// How much of each of [`CPU_TERMS`].
    fn amounts(&self, apart_ms: f64) -> Vec<f64> {
        let only = |protocol, amount| if self.protocol == protocol { amount } else { 0.0 };
        let interval_ms = if self.rate > 0.0 { 1_000.0 / self.rate } else { 0.0 };
        let apart = interval_ms * interval_ms / (interval_ms * interval_ms + apart_ms * apart_ms);
        let spread = self.connections / (self.connections + SPREAD_CONNECTIONS);
        vec![
            self.seconds,
            self.events,
            only(Protocol::Ws, self.deliveries),
            only(Protocol::Sse, self.deliveries),
            self.deliveries * apart,
            self.deliveries * spread,
            self.deliveries * self.frame_bytes / 1_000.0,
            self.connections / 1_000.0 * self.seconds,
            only(Protocol::Ws, self.heartbeats),
            only(Protocol::Sse, self.heartbeats),
            only(Protocol::Ws, self.handshakes),
            only(Protocol::Sse, self.handshakes),
            self.closes,
        ]
    }
}

impl Model {
    /// Fits a model to what a design showed.
    pub fn of(machine: Machine, design: Design, measured: Measured) -> Result<Model> {
        let seed = design.seed;
        let used: Vec<&CpuRow> = measured.cpu.iter().filter(|row| !saturated(row)).collect();
        let loads: Vec<&CpuRow> = used.iter().copied().filter(|row| row.kind == Kind::Load).collect();
        if loads.is_empty() {
            bail!("no measured point is below {SHARE_MAX} of a core: ask for lower rates");
        }
        let names = CPU_TERMS.map(|(name, _)| name);
        let apart_ms = best_apart_ms(&used);
        let cpu = Fit::of("CPU model", &names, &cpu_rows(&used, apart_ms), seed)?;
        let user = Fit::of("user memory model", &USER_TERMS, &user_rows(&measured.memory), seed)?;
        let kernel = Fit::of("kernel memory model", &KERNEL_TERMS, &kernel_rows(&measured.memory), seed)?;
        let overheads: Vec<f64> = loads
            .iter()
            .filter(|row| row.protocol == Protocol::Sse)
            .map(|row| row.frame_bytes - row.payload_bytes as f64)
            .collect();
        let sse_overhead_bytes = fit::rounded(overheads.iter().sum::<f64>() / overheads.len().max(1) as f64);
        let domain = Domain::of(&loads);
        let version = VERSION;
        Ok(Model { version, machine, design, apart_ms, sse_overhead_bytes, cpu, user, kernel, domain, measured })
    }

    /// Points that were measured and not fitted, since the machine was full.
    pub fn left_out(&self) -> usize {
        self.measured.cpu.iter().filter(|row| saturated(row)).count()
    }

    /// CPU seconds for the work.
    pub fn cpu(&self, work: &Work) -> Estimate {
        self.cpu.predict(&work.amounts(self.apart_ms)).times(1e-6)
    }

    /// User-space memory in bytes of a process whose shards hold so many connections together.
    pub fn user(&self, protocol: Protocol, shards: f64, connections: f64, window: (f64, f64)) -> Estimate {
        let (ws, sse) = by_protocol(protocol, connections);
        self.user.predict(&[1.0, shards, ws, sse, window.0, window.1])
    }

    /// Kernel memory of both ends in bytes of so many connections.
    pub fn kernel(&self, protocol: Protocol, shards: f64, connections: f64) -> Estimate {
        let (ws, sse) = by_protocol(protocol, connections);
        self.kernel.predict(&[shards, ws, sse])
    }

    /// Bytes on the wire of one event's delivery, before TCP.
    pub fn frame_bytes(&self, protocol: Protocol, payload_bytes: f64) -> f64 {
        match protocol {
            // RFC 6455 §5.2: the length takes 0, 2 or 8 bytes more.
            Protocol::Ws if payload_bytes < 126.0 => payload_bytes + 2.0,
            Protocol::Ws if payload_bytes < 65_536.0 => payload_bytes + 4.0,
            Protocol::Ws => payload_bytes + 10.0,
            Protocol::Sse => payload_bytes + self.sse_overhead_bytes,
            Protocol::Raw => payload_bytes,
        }
    }

    /// Saves the model.
    pub fn save(&self, file: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(file, text).with_context(|| format!("writing the model {}", file.display()))
    }

    /// Reads a saved model. What this program did not write is refused in one line.
    pub fn load(file: &Path) -> Result<Model> {
        let name = file.display();
        let text = fs::read_to_string(file)
            .with_context(|| format!("reading the model {name} (measure one with `loadtest plan --save {name}`)"))?;
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_str(&text).with_context(|| format!("{name} is no model"))?;
        if head.version != VERSION {
            bail!(
                "the model {name} has version {}, this program knows {VERSION}: measure it again with --save",
                head.version
            );
        }
        let model: Model = serde_json::from_str(&text).with_context(|| format!("the model {name} is broken"))?;
        model.check().with_context(|| format!("the model {name} is broken"))?;
        Ok(model)
    }

    fn check(&self) -> Result<()> {
        let fits: [(&Fit, Vec<&str>); 3] = [
            (&self.cpu, CPU_TERMS.map(|(name, _)| name).to_vec()),
            (&self.user, USER_TERMS.to_vec()),
            (&self.kernel, KERNEL_TERMS.to_vec()),
        ];
        for (fit, names) in fits {
            fit.check(&names)?;
        }
        let domain = &self.domain;
        let numbers = [
            self.apart_ms,
            self.sse_overhead_bytes,
            domain.connections.0,
            domain.connections.1,
            domain.rate.0,
            domain.rate.1,
            domain.bytes.0,
            domain.bytes.1,
            domain.share,
        ];
        if !numbers.iter().all(|number| number.is_finite() && *number >= 0.0) || self.apart_ms == 0.0 {
            bail!("it has a number that is impossible");
        }
        Ok(())
    }
}

impl Domain {
    fn of(loads: &[&CpuRow]) -> Domain {
        let range = |of: fn(&CpuRow) -> f64| {
            let values = || loads.iter().map(|row| of(row));
            (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
        };
        Domain {
            connections: range(|row| row.connections as f64),
            rate: range(|row| row.rate / row.topics as f64),
            bytes: range(|row| row.payload_bytes as f64),
            share: fit::rounded(range(share).1),
        }
    }

    /// What of this lies outside, in words; empty is good.
    pub fn outside(&self, connections: f64, rate: f64, bytes: f64) -> Vec<String> {
        let one = |what: &str, value: f64, (low, high): (f64, f64)| {
            (value > 0.0 && !(low..=high).contains(&value)).then(|| {
                format!("{} {what} lie outside the measured {} to {}", number(value), number(low), number(high))
            })
        };
        [
            one("connections per shard", connections, self.connections),
            one("events/s per connection", rate, self.rate),
            one("bytes per event", bytes, self.bytes),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A number in words: whole if it is large, three digits if it is small.
fn number(value: f64) -> String {
    if value >= 100.0 { crate::report::grouped(value.round() as u64) } else { format!("{}", fit::to_digits(value, 3)) }
}

fn share(row: &CpuRow) -> f64 {
    row.cpu_ns as f64 / 1e9 / row.seconds
}

fn saturated(row: &CpuRow) -> bool {
    row.kind == Kind::Load && (share(row) > SHARE_MAX || row.receiver_share > SHARE_MAX)
}

fn by_protocol(protocol: Protocol, connections: f64) -> (f64, f64) {
    if protocol == Protocol::Sse { (0.0, connections) } else { (connections, 0.0) }
}

fn cpu_rows(rows: &[&CpuRow], apart_ms: f64) -> Vec<Row> {
    let row = |row: &&CpuRow| {
        let y = row.cpu_ns as f64 / 1e3;
        let sigma = (CPU_NOISE.0 * y).hypot(CPU_NOISE.1 * row.seconds);
        Row { x: Work::of(row).amounts(apart_ms), y, sigma }
    };
    rows.iter().map(row).collect()
}

/// The candidate that leaves least unexplained.
fn best_apart_ms(rows: &[&CpuRow]) -> f64 {
    let loss = |apart_ms: f64| fit::loss(&cpu_rows(rows, apart_ms), CPU_TERMS.len());
    APART_MS.into_iter().min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap_or(APART_MS[0])
}

fn user_rows(rows: &[MemoryRow]) -> Vec<Row> {
    let row = |row: &MemoryRow| {
        let (ws, sse) = by_protocol(row.protocol, row.connections as f64);
        let y = row.user_bytes as f64;
        let used = f64::from(u8::from(row.connections > 0));
        let x = vec![1.0, used, ws, sse, row.window_events as f64, row.window_bytes as f64];
        Row { x, y, sigma: (MEMORY_NOISE * y).hypot(USER_NOISE_BYTES) }
    };
    rows.iter().map(row).collect()
}

/// Rows right after the connections came: later ones hold what the rest of the machine did meanwhile.
fn kernel_rows(rows: &[MemoryRow]) -> Vec<Row> {
    let fresh = rows.iter().filter(|row| row.connections > 0 && row.window_events == 0);
    let row = |row: &MemoryRow| {
        let (ws, sse) = by_protocol(row.protocol, row.connections as f64);
        let y = row.kernel_bytes as f64;
        Row { x: vec![1.0, ws, sse], y, sigma: (MEMORY_NOISE * y).hypot(KERNEL_NOISE_BYTES) }
    };
    fresh.map(row).collect()
}

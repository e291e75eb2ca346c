//! The work of a shard, and what each part of it is called in the cost model.
//!
//! Two things make deliveries differ. One that comes long after the last on its connection is
//! acknowledged by itself and finds cold caches; this cost rises with the interval from nothing to
//! all of it around the delay of a TCP acknowledgement (`apart`). More connections may find less in
//! the caches (`spread`, saturating).

use super::experiments::{CpuRow, Kind};
use crate::framing::Protocol;

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
/// Connections at which half of `spread` is paid: the middle of what a shard usually holds.
const SPREAD_CONNECTIONS: f64 = 4_000.0;

/// What one shard does in some time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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
    /// A second in which `rate` events of `frame_bytes` go to each of so many connections.
    pub fn second(protocol: Protocol, connections: f64, rate: f64, frame_bytes: f64) -> Work {
        Work {
            protocol,
            seconds: 1.0,
            connections,
            events: rate,
            deliveries: rate * connections,
            rate,
            frame_bytes,
            ..Work::default()
        }
    }

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
    pub fn amounts(&self, apart_ms: f64) -> Vec<f64> {
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

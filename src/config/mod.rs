//! What the process was told, validated and immutable. Hot code never parses.

use std::net::SocketAddr;
use std::path::PathBuf;

pub mod limits;

pub use limits::Limits;

/// Where the control API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket at this path.
    Unix(PathBuf),
}

/// What to do with a subscriber whose cursor fell out of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverrunPolicy {
    /// Close it: WebSocket 1013, SSE end of stream. The client reconnects and resumes.
    Close,
    /// Move it to the newest event and tell it of the gap.
    Skip,
}

/// Everything `fanwave serve` needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Data plane addresses; every shard listens on each.
    pub listen: Vec<SocketAddr>,
    /// Control plane addresses.
    pub control: Vec<ControlAddress>,
    /// One entry per shard: the CPU it is pinned to.
    pub shard_cpus: Vec<usize>,
    /// Value of `Access-Control-Allow-Origin` on the data plane; `None` sends no such header.
    pub cors_origin: Option<String>,
    /// What to do with those who cannot keep up.
    pub overrun: OverrunPolicy,
    /// Every bound.
    pub limits: Limits,
}

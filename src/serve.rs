//! Puts the stages together: binds the addresses, starts every shard, runs the hub until the drain is over.

use std::net::SocketAddr;

use crate::config::{Config, ControlAddress};

/// What is running, told once every shard has said that it is ready.
#[derive(Debug)]
pub struct Started {
    /// Data plane addresses as bound (port 0 replaced).
    pub listen: Vec<SocketAddr>,
    /// Control plane addresses as bound.
    pub control: Vec<ControlAddress>,
    /// CPU of each shard.
    pub shard_cpus: Vec<usize>,
    /// Connections that each shard has room for.
    pub connections_per_shard_max: usize,
    /// User-space memory at the limits: owner and bytes, one line each.
    pub memory: Vec<(&'static str, u64)>,
}

/// Why the server did not start or did not end well: one line with the cause, and the remedy if there is one.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address could not be bound.
    #[error("cannot listen on {address}: {source}; choose another with --listen or --control")]
    Bind {
        /// The address as the operator gave it.
        address: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A shard could not start or failed later.
    #[error("shard {shard}: {cause}")]
    Shard {
        /// The shard's number.
        shard: usize,
        /// Cause and remedy.
        cause: String,
    },
    /// The hub's own runtime or thread failed.
    #[error("hub: {0}")]
    Hub(String),
}

/// Serves until SIGTERM or SIGINT has drained everything. `started` is called once, before the first connection is
/// accepted.
pub fn run(_config: Config, _started: impl FnOnce(&Started)) -> Result<(), ServeError> {
    Err(ServeError::Hub("not assembled".into()))
}

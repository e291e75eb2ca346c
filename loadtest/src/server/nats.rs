//! NATS as a rival: nats-server with a WebSocket listener, on one CPU.

use anyhow::{Result, bail};

use super::{INSTALL, Running, version_of};

/// Starts nats-server.
pub fn start(_cpu: Option<usize>) -> Result<Running> {
    let version = version_of("nats-server".as_ref(), &["--version"], INSTALL)?;
    bail!("nats-server {version} cannot be started yet")
}

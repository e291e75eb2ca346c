//! nchan, a module of nginx, as a rival: one process with an event loop of its own on one CPU.

use anyhow::{Result, bail};

use super::{INSTALL, Running, version_of};

/// Starts nginx with nchan.
pub fn start(_cpu: Option<usize>) -> Result<Running> {
    let version = version_of("nginx".as_ref(), &["-v"], INSTALL)?;
    bail!("nchan {version} cannot be started yet")
}

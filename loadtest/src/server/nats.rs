//! NATS as a rival: nats-server with a WebSocket listener, on one CPU.
//!
//! Subscribers speak the NATS client protocol in WebSocket messages; events are published over
//! plain TCP, as a back end does. The configuration is `loadtest/rivals/nats.conf`. Go gets as many
//! threads as there are CPUs to use.

use std::net::SocketAddr;

use anyhow::Result;

use super::program::Program;
use super::{INSTALL, Running, scratch, version_of};
use crate::framing::Dialect;
use crate::target::Target;
use crate::way::Way;

const CONFIG: &str = include_str!("../../rivals/nats.conf");

/// Starts nats-server on `cpu` alone if one is given, and waits until it listens.
pub fn start(cpu: Option<usize>) -> Result<Running> {
    let version = version_of("nats-server".as_ref(), &["--version"], INSTALL)?;
    let (scratch, file) = scratch("nats", CONFIG)?;
    let mut args = Vec::new();
    if cpu.is_some() {
        args.push("GOMAXPROCS=1".into());
    }
    args.extend(["nats-server".into(), "-c".into(), file.into()]);
    let mut program = Program::start("nats-server", cpu, "env".as_ref(), &args)?;
    let (mut clients, mut websocket) = (None, None);
    let (publish, subscribe) = program.wait_ready(|line| {
        clients = clients.or_else(|| address_after(line, "Listening for client connections on "));
        websocket = websocket.or_else(|| address_after(line, "Listening for websocket clients on ws://"));
        clients.zip(websocket)
    })?;
    let target = Target {
        name: "nats".into(),
        version,
        pids: vec![program.pid()],
        cpus: cpu.into_iter().collect(),
        subscribe,
        sse_path: None,
        ws_path: Some("/{topic}".into()),
        dialect: Dialect::Nats,
        publish,
        way: Way::Nats,
        publish_path: "{topic}".into(),
    };
    Ok(Running { target, program: Some(program), _guard: None, _scratch: Some(scratch) })
}

/// The address behind `label` in a line of nats-server's log.
fn address_after(line: &str, label: &str) -> Option<SocketAddr> {
    line.split_once(label)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_read_from_the_log() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 40_659)));
        let label = "Listening for websocket clients on ws://";
        assert_eq!(
            address_after("[7] [INF] Listening for websocket clients on ws://127.0.0.1:40659", label),
            address
        );
        assert_eq!(address_after("[7] [INF] Server is ready", label), None);
    }
}

//! NATS as a rival: nats-server with a WebSocket listener, on one CPU.
//!
//! Subscribers speak the NATS client protocol in WebSocket messages; events are published over
//! plain TCP, as a back end does. The configuration is `loadtest/rivals/nats.conf`. Go gets as many
//! threads as there are CPUs to use.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::doors::{Certificate, scratch_directory};
use super::program::Program;
use super::{Doors, INSTALL, Running, version_of, write_config};
use crate::framing::Dialect;
use crate::target::Target;
use crate::way::Way;

const CONFIG: &str = include_str!("../../rivals/nats.conf");

/// Starts nats-server on `cpu` alone if one is given, and waits until it listens.
pub fn start(cpu: Option<usize>, doors: &Doors) -> Result<Running> {
    let version = version_of("nats-server".as_ref(), &["--version"], INSTALL)?;
    let scratch = scratch_directory("nats")?;
    let certificate = doors.certificate(scratch.path())?;
    let file = write_config(scratch.path(), "nats", &config(certificate.as_ref()))?;
    let mut args = Vec::new();
    if cpu.is_some() {
        args.push("GOMAXPROCS=1".into());
    }
    args.extend(["nats-server".into(), "-c".into(), file.into()]);
    let mut program = Program::start("nats-server", cpu, "env".as_ref(), &args)?;
    let (mut clients, mut websocket) = (None, None);
    let (publish, subscribe) = program.wait_ready(|line| {
        clients = clients.or_else(|| address_after(line, "Listening for client connections on "));
        websocket = websocket.or_else(|| address_after(line, "Listening for websocket clients on "));
        clients.zip(websocket)
    })?;
    let target = Target {
        name: "nats".into(),
        version,
        pids: vec![program.pid()],
        cpus: cpu.into_iter().collect(),
        subscribe,
        h2_streams: None,
        tls: certificate.map(|certificate| certificate.client),
        secret: None,
        clients: subscribe,
        sse_path: None,
        ws_path: Some("/{topic}".into()),
        dialect: Dialect::Nats,
        publish,
        way: Way::Nats,
        publish_path: "{topic}".into(),
    };
    Ok(Running { target, program: Some(program), _guard: None, _scratch: Some(scratch) })
}

/// The configuration, with the doors filled in.
fn config(certificate: Option<&Certificate>) -> String {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let tls = match certificate {
        None => "no_tls: true".to_owned(),
        Some(Certificate { cert, key, .. }) => {
            format!("tls {{ cert_file: {}, key_file: {} }}", quoted(cert), quoted(key))
        }
    };
    CONFIG.replace("@TLS@", &tls)
}

/// The address behind `label` in a line of nats-server's log, with or without a scheme.
pub fn address_after(line: &str, label: &str) -> Option<SocketAddr> {
    let text = line.split_once(label)?.1.trim();
    text.rsplit_once("://").map_or(text, |(_, address)| address).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_are_read_from_the_log() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 40_659)));
        let label = "Listening for websocket clients on ";
        assert_eq!(address_after("Listening for websocket clients on wss://127.0.0.1:40659", label), address);
        assert_eq!(
            address_after("Listening for client connections on 127.0.0.1:40659", "connections on "),
            address
        );
        assert_eq!(
            address_after("[7] [INF] Listening for websocket clients on ws://127.0.0.1:40659", label),
            address
        );
        assert_eq!(address_after("[7] [INF] Server is ready", label), None);
    }
    #[test]
    fn the_configuration_is_filled_in_with_or_without_tls() {
        assert!(config(None).contains("    no_tls: true\n") && !config(None).contains('@'));
        let directory = tempfile::tempdir().expect("room");
        let certificate = Certificate::make(directory.path()).expect("a certificate");
        let text = config(Some(&certificate));
        assert!(text.contains("cert_file: \"/") && !text.contains("no_tls"), "{text}");
    }
}

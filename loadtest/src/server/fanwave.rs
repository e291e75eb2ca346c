//! A fanwave process of our own.
//!
//! Ready is when it has printed `data plane <address>` and `control plane <address>`, and `data,
//! TLS <address>` where subscribers speak TLS.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::doors::{Certificate, scratch_directory};
use super::program::Program;
use super::{Doors, Running, version_of};
use crate::framing::Dialect;
use crate::target::Target;
use crate::way::Way;

/// Heartbeats would be bytes that nobody published: they are as rare as fanwave allows.
const HEARTBEAT: [&str; 2] = ["--heartbeat-ms", "600000"];

/// Streams that it takes on a connection if it is not told otherwise.
const STREAMS_TAKEN: usize = 100;

/// Starts `program serve` on free loopback ports, on `cpu` alone if one is given, with `shards`
/// shards, and waits until it is ready. Heartbeats are turned off in effect, unless `more` asks for
/// them.
pub fn start(
    program: &Path,
    cpu: Option<usize>,
    shards: usize,
    more: &[String],
    doors: &Doors,
) -> Result<Running> {
    let (secret, h2_streams) = (doors.secret()?, doors.streams()?);
    let version = version_of(program.as_os_str(), &["--version"], "build it with `cargo build --release`")?;
    let mut args: Vec<OsString> =
        ["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards"]
            .map(OsString::from)
            .into();
    args.push(shards.to_string().into());
    if !more.iter().any(|arg| arg.starts_with(HEARTBEAT[0])) {
        args.extend(HEARTBEAT.map(OsString::from));
    }
    if let Some(streams) = h2_streams.filter(|streams| *streams > STREAMS_TAKEN) {
        args.extend(["--h2-streams-max".into(), streams.to_string().into()]);
    }
    if let Some(cpu) = cpu {
        args.extend(["--cpus".into(), cpu.to_string().into()]);
    }
    args.extend(more.iter().map(OsString::from));
    let scratch = doors.tls.then(|| scratch_directory("fanwave")).transpose()?;
    let certificate = scratch.as_ref().map(|scratch| Certificate::make(scratch.path())).transpose()?;
    if let Some(Certificate { cert, key, .. }) = &certificate {
        args.extend(["--listen-tls", "127.0.0.1:0", "--tls-cert"].map(OsString::from));
        args.extend([cert.into(), "--tls-key".into(), key.into()]);
    }
    if let Some(file) = &doors.token_hs256_file {
        args.extend(["--auth-hs256-file".into(), file.into()]);
    }
    let name = format!("the server {}", program.display());
    let mut program = Program::start(&name, cpu, program.as_os_str(), &args)?;
    let (mut listen, mut secure, mut control) = (None, None, None);
    let (clients, subscribe, publish) = program.wait_ready(|line| {
        listen = listen.or_else(|| address_of(line, "data plane"));
        secure = secure.or_else(|| address_of(line, "data, TLS"));
        control = control.or_else(|| address_of(line, "control plane"));
        let subscribe = if certificate.is_some() { secure } else { listen };
        Some((listen?, subscribe?, control?))
    })?;
    let target = Target {
        name: "fanwave".into(),
        version,
        pids: vec![program.pid()],
        cpus: cpu.into_iter().collect(),
        subscribe,
        tls: certificate.map(|certificate| certificate.client),
        h2_streams,
        secret,
        clients,
        sse_path: Some("/sse/{topic}".into()),
        ws_path: Some("/ws/{topic}".into()),
        dialect: Dialect::Fanwave,
        publish,
        way: Way::Stream,
        publish_path: "/topics/{topic}".into(),
    };
    Ok(Running { target, program: Some(program), _guard: None, _scratch: scratch })
}

/// The address in a line such as `data plane   127.0.0.1:8080`.
fn address_of(line: &str, label: &str) -> Option<SocketAddr> {
    let rest = line.trim().strip_prefix(label)?;
    rest.split_whitespace()
        .find_map(|word| word.trim_start_matches("http://").trim_end_matches([',', '/']).parse().ok())
}

/// The rows of the table that begins with the label `memory`: owner, then an amount such as `2.7
/// MiB`.
pub fn declared_in(lines: &[String]) -> Vec<(String, u64)> {
    let mut rows = Vec::new();
    let table = lines.iter().skip_while(|line| !line.starts_with("memory "));
    for (at, line) in table.enumerate() {
        if at > 0 && !line.starts_with(' ') {
            break;
        }
        let row = line.trim_start_matches("memory").trim();
        let Some((owner, amount)) = row.split_once("  ") else { continue };
        if let Some(bytes) = bytes_of(amount.trim()) {
            rows.push((owner.trim().to_owned(), bytes));
        }
    }
    rows
}

/// Bytes of an amount such as `608 KiB`.
fn bytes_of(amount: &str) -> Option<u64> {
    let (number, unit) = amount.split_once(' ')?;
    let shift = ["B", "KiB", "MiB", "GiB", "TiB"].iter().position(|name| *name == unit)?;
    let number: f64 = number.replace(',', "").parse().ok()?;
    Some((number * (1_u64 << (10 * shift)) as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_may_use_is_read_from_its_table_alone() {
        let text = "control plane 127.0.0.1:1\nheartbeat     every 15 s\n\
                    memory        connections, when all are in use            2.5 MiB\n              \
                    windows, as published                       256 MiB\n              \
                    in user space, at these limits              4.5 GiB\n\n\
                    try           curl  1 MiB\n";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let rows = [
            ("connections, when all are in use", 5 << 19),
            ("windows, as published", 256 << 20),
            ("in user space, at these limits", 9 << 29),
        ];
        assert_eq!(declared_in(&lines), rows.map(|(owner, bytes)| (owner.to_owned(), bytes)));
        assert_eq!(declared_in(&lines[..2]), []);
    }

    #[test]
    fn addresses_are_read_from_the_lines_that_a_server_prints() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 8_080)));
        assert_eq!(address_of("data plane     127.0.0.1:8080", "data plane"), address);
        assert_eq!(address_of("  data plane http://127.0.0.1:8080/ (2 shards)", "data plane"), address);
        assert_eq!(address_of("control plane 127.0.0.1:8080", "data plane"), None);
        assert_eq!(address_of("data plane nowhere", "data plane"), None);
    }
}

//! The server under test: a fanwave process of our own, started, watched and stopped.
//!
//! Ready is when it has printed `data plane <address>` and `control plane <address>`. Its output is kept (the last
//! lines of it), so that an early end is told with the server's own reason.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::http;
use crate::process::{Child, describe};
use crate::usage::{Memory, memory};

/// How long the server may take to be ready.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long the server may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long an error waits for the end of a server that may be the cause.
const END_LIMIT: Duration = Duration::from_millis(300);
/// Lines of its output that are kept for an error.
const LINES_KEPT: usize = 6;

/// A running server. Dropping it kills it.
pub struct Server {
    child: Child,
    /// Data plane.
    pub listen: SocketAddr,
    /// Control plane.
    pub control: SocketAddr,
    last_lines: LastLines,
}

type LastLines = Arc<Mutex<VecDeque<String>>>;

impl Server {
    /// Starts `program serve` on free loopback ports, on `cpu` alone if one is given, with `shards` shards, and waits
    /// until it is ready. Heartbeats are turned off in effect: they would be bytes that nobody published.
    pub fn start(program: &Path, cpu: Option<usize>, shards: usize, more: &[String]) -> Result<Server> {
        let mut args: Vec<OsString> = ["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"]
            .into_iter()
            .chain(["--heartbeat-ms", "600000", "--shards"])
            .map(OsString::from)
            .collect();
        args.push(shards.to_string().into());
        if let Some(cpu) = cpu {
            args.extend(["--cpus".into(), cpu.to_string().into()]);
        }
        args.extend(more.iter().map(OsString::from));
        let stdio = [Stdio::null(), Stdio::piped(), Stdio::piped()];
        let mut child = Child::start("the server", cpu, program.as_os_str(), &args, stdio)?;
        let last_lines = LastLines::default();
        let (tell, told) = channel();
        let stdout = child.pipes().stdout.take().context("the server's output is a pipe")?;
        let stderr = child.pipes().stderr.take().context("the server's errors are a pipe")?;
        watch(stdout, Arc::clone(&last_lines), Some(tell));
        watch(stderr, Arc::clone(&last_lines), None);
        match wait_ready(&told) {
            Some((listen, control)) => Ok(Server { child, listen, control, last_lines }),
            None => {
                let end = match child.stop(Signal::KILL, STOP_LIMIT) {
                    Ok(status) if status.code().is_some() => describe(status),
                    _ => format!("not ready within {START_LIMIT:?}"),
                };
                bail!("the server {} did not start: {end}: {}", program.display(), shown(&last_lines))
            }
        }
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Memory now.
    pub fn memory(&self) -> Result<Memory> {
        memory(self.pid())
    }

    /// `GET /stats`.
    pub fn stats(&self) -> Result<serde_json::Value> {
        let answer = http::get(self.control, "/stats")?;
        serde_json::from_slice(&answer.body).context("/stats is no JSON")
    }

    /// Adds to an error what the server said, if it has ended. Its sockets close before its end can be seen.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.ended() {
                return error.context(format!(
                    "the server ended ({}): {}",
                    describe(status),
                    shown(&self.last_lines)
                ));
            }
            thread::sleep(Duration::from_millis(10));
        }
        error
    }

    /// SIGTERM, and exit code 0 within the limit.
    pub fn stop(mut self) -> Result<()> {
        let status = self.child.stop(Signal::TERM, STOP_LIMIT)?;
        if !status.success() {
            bail!("the server ended badly after SIGTERM ({}): {}", describe(status), shown(&self.last_lines));
        }
        Ok(())
    }
}

/// Copies lines away until the stream ends, so that the server never blocks on its output.
fn watch(from: impl Read + Send + 'static, last_lines: LastLines, tell: Option<Sender<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if let Some(tell) = &tell {
                // Nobody listens any more once the server is ready.
                let _ = tell.send(line.clone());
            }
            let mut kept = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back(line);
            if kept.len() > LINES_KEPT {
                kept.pop_front();
            }
        }
    });
}

fn shown(last_lines: &LastLines) -> String {
    let kept = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
    match kept.is_empty() {
        true => "it printed nothing".into(),
        false => kept.iter().map(String::as_str).collect::<Vec<_>>().join(" | "),
    }
}

fn wait_ready(told: &Receiver<String>) -> Option<(SocketAddr, SocketAddr)> {
    let deadline = Instant::now() + START_LIMIT;
    let (mut listen, mut control) = (None, None);
    loop {
        let line = told.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
        listen = listen.or_else(|| address_of(&line, "data plane"));
        control = control.or_else(|| address_of(&line, "control plane"));
        if let (Some(listen), Some(control)) = (listen, control) {
            return Some((listen, control));
        }
    }
}

/// The address in a line such as `data plane   127.0.0.1:8080`.
fn address_of(line: &str, label: &str) -> Option<SocketAddr> {
    let rest = line.trim().strip_prefix(label)?;
    rest.split_whitespace()
        .find_map(|word| word.trim_start_matches("http://").trim_end_matches([',', '/']).parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_the_lines_that_a_server_prints() {
        let address = Some(SocketAddr::from(([127, 0, 0, 1], 8_080)));
        assert_eq!(address_of("data plane     127.0.0.1:8080", "data plane"), address);
        assert_eq!(address_of("  data plane http://127.0.0.1:8080/ (2 shards)", "data plane"), address);
        assert_eq!(address_of("control plane 127.0.0.1:8080", "data plane"), None);
        assert_eq!(address_of("data plane nowhere", "data plane"), None);
    }

    #[test]
    fn a_server_that_does_not_exist_is_told_by_name() {
        let lines = LastLines::default();
        assert_eq!(shown(&lines), "it printed nothing");
        lines.lock().expect("not poisoned").extend(["a".to_string(), "b".to_string()]);
        assert_eq!(shown(&lines), "a | b");
    }
}

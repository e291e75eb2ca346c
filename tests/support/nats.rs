//! NATS servers with JetStream, each a process of its own, as one or as a cluster.
//!
//! `NATS_SERVER` names the program. A server has a directory and ports of its own, keeps both when
//! it is killed, and is killed when it is dropped.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use async_nats::jetstream;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

use super::{PATIENCE, Scratch, until};

/// Names the program.
const NATS_SERVER: &str = "NATS_SERVER";

/// One server.
pub struct Nats {
    process: Option<Child>,
    /// Where clients connect.
    pub address: SocketAddr,
    config: String,
    scratch: Scratch,
}

/// A port that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

impl Nats {
    /// One server with JetStream.
    pub async fn start() -> Nats {
        Nats::start_with("").await
    }

    /// One with more lines in its configuration.
    pub async fn start_with(more: &str) -> Nats {
        let mut nats = Nats::prepared("n1", free_port(), more);
        nats.run().await;
        nats
    }

    /// One without JetStream.
    pub async fn start_plain() -> Nats {
        let mut nats = Nats::configured(Scratch::new(), "n1", free_port(), "");
        nats.run().await;
        nats
    }

    fn prepared(name: &str, port: u16, more: &str) -> Nats {
        let scratch = Scratch::new();
        let store = scratch.path("store");
        let jetstream = format!(
            "jetstream {{ store_dir: {store:?}, max_memory_store: 64MB, max_file_store: 4GB }}\n{more}"
        );
        Nats::configured(scratch, name, port, &jetstream)
    }

    fn configured(scratch: Scratch, name: &str, port: u16, more: &str) -> Nats {
        let text = format!("listen: \"127.0.0.1:{port}\"\nserver_name: {name}\n{more}\n");
        let config = scratch.write("nats.conf", &text);
        Nats { process: None, address: SocketAddr::from(([127, 0, 0, 1], port)), config, scratch }
    }

    /// Three servers as a cluster, with a leader.
    pub async fn cluster() -> [Nats; 3] {
        let routes = [free_port(), free_port(), free_port()];
        let mut servers = [1, 2, 3].map(|number| {
            let urls = routes.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
            let own = routes[number - 1];
            let more = format!(
                "cluster {{ name: c, listen: \"127.0.0.1:{own}\", routes: [{urls}], no_advertise: true }}"
            );
            Nats::prepared(&format!("n{number}"), free_port(), &more)
        });
        for server in &mut servers {
            server.spawn();
        }
        for server in &servers {
            server.ready().await;
        }
        let context = servers[0].context().await;
        until("a leader of JetStream", async || context.query_account().await.ok()).await;
        servers
    }

    fn spawn(&mut self) {
        let program = std::env::var_os(NATS_SERVER).expect("NATS_SERVER names the program");
        let log = std::fs::File::options().create(true).append(true).open(self.scratch.path("log"));
        let log = log.expect("a file in our own directory");
        let mut command = Command::new(program);
        command.args(["-c", &self.config]).env_clear().stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a copy")).stderr(log);
        self.process = Some(command.spawn().expect("nats-server starts"));
    }

    /// Starts it, again perhaps, and waits until it answers.
    pub async fn run(&mut self) {
        self.spawn();
        self.ready().await;
    }

    async fn ready(&self) {
        until("a NATS server that greets", async || {
            let socket = TcpStream::connect(self.address).ok()?;
            socket.set_read_timeout(Some(PATIENCE)).ok()?;
            let mut line = String::new();
            BufReader::new(socket).read_line(&mut line).ok()?;
            line.starts_with("INFO ").then_some(())
        })
        .await;
    }

    /// Ends it at once, as a power cut would. Its directory stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Stops it, so that it is there and does nothing; resolves once all of its threads do nothing.
    pub async fn pause(&self) {
        self.signal(Signal::STOP);
        let process = self.process.as_ref().expect("it runs");
        let tasks = format!("/proc/{}/task", process.id());
        let is_stopped = |stat: &str| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'));
        until("all threads of a NATS server to stop", async || {
            let mut threads = std::fs::read_dir(&tasks).ok()?;
            threads
                .all(|thread| {
                    let stat = thread.and_then(|thread| std::fs::read_to_string(thread.path().join("stat")));
                    stat.is_ok_and(|stat| is_stopped(&stat))
                })
                .then_some(())
        })
        .await;
    }

    /// Continues a server that was stopped.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("it runs");
        kill_process(Pid::from_child(process), signal).expect("the process is there");
    }

    /// Loses all that a server that does not run has stored.
    pub fn forget(&self) {
        assert!(self.process.is_none(), "it runs");
        let _ = std::fs::remove_dir_all(self.scratch.path("store"));
    }

    /// Copies what a server that does not run has stored, or takes the copy back.
    pub fn copy_store(&self, back: bool) {
        assert!(self.process.is_none(), "it runs");
        let (store, copy) = (self.scratch.path("store"), self.scratch.path("copy"));
        let (from, to) = if back { (copy, store) } else { (store, copy) };
        let _ = std::fs::remove_dir_all(&to);
        let copied = Command::new("cp").arg("-a").arg(&from).arg(&to).status().expect("cp runs");
        assert!(copied.success());
    }

    /// The value of `--source`.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// A client of another program.
    pub async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("a client")
    }

    /// So many messages of a byte to a subject, all at once.
    pub async fn flood(&self, subject: &str, count: usize) {
        let mut socket = tokio::net::TcpStream::connect(self.address).await.expect("a connection");
        let publish = format!("PUB {subject} 1\r\nx\r\n");
        let all = format!("CONNECT {{\"verbose\":false}}\r\n{}PING\r\n", publish.repeat(count));
        socket.write_all(all.as_bytes()).await.expect("it is read");
        // It is answered behind all of them.
        let mut heard = String::new();
        let mut reader = tokio::io::BufReader::new(socket);
        while !heard.contains("PONG\r\n") {
            assert!(reader.read_line(&mut heard).await.expect("an answer") > 0, "{heard}");
        }
    }

    /// JetStream for another program.
    pub async fn context(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }
}

/// The value of `--source` for all of a cluster.
pub fn url_of(servers: &[Nats]) -> String {
    let hosts: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
    format!("nats://{}", hosts.join(","))
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.scratch.path("log")).unwrap_or_default();
            let tail = log.floor_char_boundary(log.len().saturating_sub(6_000));
            eprintln!("log of the NATS server on {}:\n{}", self.address, &log[tail..]);
        }
    }
}

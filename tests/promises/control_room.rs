//! Claim: control connections that say nothing keep nobody out: when room is short the idle ones go
//! first, and `/healthz` and `/stats` are answered always.
//!
//! Set-up: more silent connections than there is room for, with the default limit of descriptors
//! and with a very low one; publishers at work on all places.
//!
//! Expectation: probes, statistics and publishes are answered; a publisher at work stays; the log
//! tells it once.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::exchange;
use crate::support::server::lines_of;
use crate::support::{PATIENCE, raise_descriptor_limit, within};

/// A server under a descriptor limit; killed when dropped.
struct Limited {
    process: std::process::Child,
    log: std::sync::mpsc::Receiver<String>,
    control: SocketAddr,
}

impl Limited {
    fn start(descriptors: usize, sockets: &str) -> Limited {
        let script = format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"");
        let mut process = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_fanwave")])
            .args(["--listen=127.0.0.1:0", "--control=127.0.0.1:0", "--shards=1", "--sockets", sockets])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = lines_of(process.stdout.take().expect("piped"));
        let log = lines_of(process.stderr.take().expect("piped"));
        let mut banner = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok());
        let line = banner.find_map(|line| line.strip_prefix("control plane ").map(str::to_string));
        let control = line.expect("a banner with this address").parse().expect("an address");
        Limited { process, log, control }
    }

    async fn connect(&self) -> TcpStream {
        within("a connection", TcpStream::connect(self.control)).await.expect("the kernel accepts")
    }

    /// The status of a request on a connection of its own.
    async fn ask(&self, line: &str, body: &str) -> u16 {
        let request = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        exchange(self.control, request.as_bytes()).await.status
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Begins a publish without end, and returns once the server has begun to answer it.
async fn publish(server: &Limited) -> TcpStream {
    let mut socket = server.connect().await;
    let head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    within("room", socket.write_all(head)).await.expect("the server reads");
    let mut status = [0; 12];
    within("the head of an answer", socket.read_exact(&mut status)).await.expect("an answer");
    assert_eq!(&status, b"HTTP/1.1 200");
    socket
}

async fn silent_ones_keep_nobody_out(descriptors: usize, sockets: &str, silent: usize) {
    let server = Limited::start(descriptors, sockets);
    let mut at_work = publish(&server).await;
    let mut connections = Vec::new();
    for number in 0..silent {
        let mut socket = server.connect().await;
        if number % 2 == 1 {
            // One that was told to leave already takes no more.
            let _ = socket.write_all(b"GET /healthz HT").await;
        }
        connections.push(socket);
        if number % 97 == 0 {
            assert_eq!(server.ask("GET /healthz", "").await, 200, "beside {number} silent ones");
        }
    }
    for (line, body) in
        [("GET /healthz", ""), ("GET /stats", ""), ("POST /topics/t", "x"), ("GET /topics/t", "")]
    {
        assert_eq!(server.ask(line, body).await, 200, "{line}");
    }
    let line = b"1e\r\n{\"topic\":\"t\",\"data\":\"there\"}\n\r\n0\r\n\r\n";
    within("room", at_work.write_all(line)).await.expect("it was not told to leave");
    let mut answer = String::new();
    while !answer.contains("\"accepted\"") {
        let mut bytes = [0; 1_024];
        let read = within("the summary", at_work.read(&mut bytes)).await.expect("no reset");
        assert!(read > 0, "{answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    assert!(answer.contains("\"accepted\":1"), "{answer}");
    drop(connections);
    let Limited { log, .. } = &server;
    let told = log.try_iter().filter(|line| line.contains("control connections run short")).count();
    assert_eq!(told, 1, "the log tells it once");
}

#[tokio::test]
async fn more_silent_connections_than_there_is_room_for_keep_nobody_out() {
    raise_descriptor_limit();
    silent_ones_keep_nobody_out(8_192, "direct", 1_100).await;
}

#[tokio::test]
async fn under_a_low_descriptor_limit_too() {
    for sockets in ["direct", "plain"] {
        silent_ones_keep_nobody_out(64, sockets, 100).await;
    }
}

/// Publishers at work on every place stay; the places that are kept tell how the server is.
#[tokio::test]
async fn when_every_place_is_at_work_the_state_of_the_server_is_told() {
    let server = Limited::start(64, "direct");
    let mut at_work = Vec::new();
    let refused = loop {
        assert!(at_work.len() < 64, "more publishers than descriptors");
        let mut socket = server.connect().await;
        let head = b"POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
        within("room", socket.write_all(head)).await.expect("the server reads");
        let mut status = [0; 12];
        within("the head of an answer", socket.read_exact(&mut status)).await.expect("an answer");
        if &status != b"HTTP/1.1 200" {
            break status;
        }
        at_work.push(socket);
    };
    assert_eq!(&refused, b"HTTP/1.1 503");
    assert!(at_work.len() > 8, "only {} places", at_work.len());
    for _ in 0..20 {
        assert_eq!(server.ask("GET /healthz", "").await, 200);
        assert_eq!(server.ask("GET /stats", "").await, 200);
        assert_eq!(server.ask("POST /topics/t", "x").await, 503);
    }
    at_work.pop();
    crate::support::until("a free place", async || {
        (server.ask("POST /topics/t", "x").await == 200).then_some(())
    })
    .await;
}

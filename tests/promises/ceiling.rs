//! Claim: a process keeps below its ceiling of memory, the kernel's for its sockets included.
//! Histories go first, then newcomers are refused. Subscribers that read get everything. When it is
//! over all is as before.
//!
//! Set-up: a server with little memory, subscribers that read, and a hundred that do not, of which
//! each makes the kernel hold a full socket. Large events are published until newcomers are
//! refused. And servers that get too little to start.
//!
//! Expectation: the process stays below the ceiling at every look. A refusal is a 503 with its
//! reason, or an empty event stream after which a browser comes back. Every reader gets every event
//! that was taken. Then newcomers come in, and histories may grow again.

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::slow::padded;
use crate::support::{Protocol, Server, Subscriber, until, within};

const CEILING: usize = 64 << 20;
const SLEEPERS: usize = 100;
/// Far more than the sockets of those who sleep take, all together beyond the ceiling.
const EVENTS_MAX: usize = 1_000;

async fn process(server: &Server) -> Value {
    server.stats().await["hub"]["process"].clone()
}

fn bytes(process: &Value, kind: &str) -> usize {
    process[kind].as_u64().unwrap_or_else(|| panic!("no {kind}: {process}")) as usize
}

/// A subscriber that reads nothing and takes little.
async fn sleeper(server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4 << 10).expect("a size");
    let mut socket = within("a connection", socket.connect(server.data)).await.expect("it listens");
    let head = request(Protocol::Sse, &["t"], None);
    socket.write_all(head.as_bytes()).await.expect("room for a head");
    socket
}

/// Publishes the event unless publishers are refused for want of memory; true if it was taken.
async fn publish(server: &Server, number: usize) -> bool {
    let answer = server.answer(server.post("/topics/t").body(padded(number))).await;
    match answer.status {
        200 => true,
        503 => {
            assert!(answer.error().contains("nearly as much memory as it may take"), "{answer:?}");
            assert_eq!(answer.retry_after.as_deref(), Some("1"));
            false
        }
        _ => panic!("{answer:?}"),
    }
}

#[tokio::test]
async fn a_ceiling_takes_histories_first_then_refuses_newcomers_and_loses_nothing() {
    let server = Server::start(&["--shards", "1", "--memory-max", "64MiB"]);
    let told = server.banner.iter().find(|line| line.starts_with("ceiling"));
    assert_eq!(told.map(String::as_str), Some("ceiling       64 MiB: as --memory-max says"));
    let start = until("the first look at the memory", async || {
        let process = process(&server).await;
        (!process["bytes_max"].is_null()).then_some(process)
    })
    .await;
    assert_eq!((bytes(&start, "bytes_max"), &start["pressure"]), (CEILING, &"none".into()), "{start}");
    let mut readers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        readers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
    }
    let mut sleepers = Vec::new();
    for _ in 0..SLEEPERS {
        sleepers.push(sleeper(&server).await);
    }
    server.await_subscribers("t", 1 + SLEEPERS as u64, 1).await;
    let mut number = 0;
    loop {
        assert!(number < EVENTS_MAX, "{}", process(&server).await);
        if publish(&server, number).await {
            for reader in &mut readers {
                assert_eq!(reader.text().await, padded(number), "everybody gets everything");
            }
        }
        number += 1;
        let now = process(&server).await;
        assert!(server.resident_bytes() < CEILING, "{now}");
        if now["pressure"] == "newcomers" || now["pressure"] == "publishers" {
            assert!(bytes(&now, "history_cuts") > 0, "histories go first: {now}");
            break;
        }
    }
    let refused = exchange(server.data, request(Protocol::WebSocket, &["t"], None).as_bytes()).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.line().contains("nearly as much memory as it may take"), "{refused:?}");
    assert!((1..=4).contains(&refused.retry_after_s()), "{refused:?}");
    let browser = b"GET /sse/t HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n";
    let told = String::from_utf8(exchange(server.data, browser).await.body).expect("UTF-8");
    assert!(told.contains("retry: ") && told.contains(": memory: "), "{told}");
    server.await_closed("memory", 2).await;
    let health = exchange(server.data, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(health.status, 200, "probes are answered");

    let low = bytes(&process(&server).await, "history_bytes_max");
    let gone = "the end of those who sleep, and memory that is enough";
    until(gone, async || (process(&server).await["pressure"] == "none").then_some(())).await;
    assert_eq!(server.closed("stalled").await, SLEEPERS as u64, "slow sends have one second");
    readers.push(Subscriber::connect(server.data, Protocol::Sse, &["t"]).await);
    assert!(publish(&server, number).await, "publishers are taken");
    for reader in &mut readers {
        assert_eq!(reader.text().await, padded(number));
    }
    let now = process(&server).await;
    assert!(bytes(&now, "history_bytes_max") > low, "histories may grow again: {now}");
    drop(sleepers);
}

/// One line with the remedy, and no half start.
#[test]
fn a_ceiling_below_the_server_itself_is_refused_with_what_it_needs() {
    let start = |max: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fanwave"));
        let flags = ["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--memory-max", max];
        // So many that they take some 100 MiB.
        command.args(flags).args(["--shards", "48"]);
        let output = command.env_clear().output().expect("the program starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (max, code, told) in [
        ("0", 2, "at least 32MiB is needed; write none for no ceiling"),
        ("1GB", 2, "or auto, or none"),
        ("32MiB", 1, "are in use beside events: at least "),
    ] {
        let (ended, said) = start(max);
        assert!(ended == Some(code) && said.contains(told), "{max}: {ended:?} {said}");
    }
}

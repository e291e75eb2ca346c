//! Claim: `fanwave tail` speaks JSON over WebSocket, subscribes to patterns, begins where it is
//! told to, and over JSON loses and doubles nothing when its connection is cut.
//!
//! Set-up: the program against a server; a proxy that cuts connections after bytes by dice while
//! events go on; a server that is started again on the same port.
//!
//! Expectation: each protocol prints the same events; every event of every topic once and in order,
//! whatever was cut; errors that stay end it with 1, wrong flags with 2.

use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::Receiver;

use proptest::prelude::*;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::server::lines_of;
use crate::support::{PATIENCE, Server, within};

/// `fanwave tail` beside the server, ended when dropped.
struct Tail {
    process: Child,
    lines: Receiver<String>,
    notes: Receiver<String>,
}

impl Tail {
    fn start(url: &str, flags: &[&str]) -> Tail {
        let mut command = tail(url, flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let lines = lines_of(process.stdout.take().expect("piped"));
        let notes = lines_of(process.stderr.take().expect("piped"));
        Tail { process, lines, notes }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.line()).expect("JSON")
    }

    /// Waits for a note with this in it, and passes over others.
    fn await_note(&self, part: &str) -> String {
        loop {
            let note = self.notes.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no note with {part:?}"));
            if note.contains(part) {
                return note;
            }
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn tail(url: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command.args(["tail", url]).args(flags);
    command
}

fn told(output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(stderr.lines().filter(|line| !line.contains("connected to")).count(), 1, "{stderr}");
    stderr
}

const JSON: &str = "--json-protocol";

#[tokio::test]
async fn json_over_websocket_prints_what_the_publisher_said() {
    let server = Server::start(&["--shards", "2"]);
    let url = format!("ws://{}/ws/a?topic=b", server.data);
    let (plain, full) = (Tail::start(&url, &[JSON]), Tail::start(&url, &[JSON, "--json"]));
    server.await_subscribers("a", 0, 2).await;
    server.await_subscribers("b", 0, 2).await;
    let first = server.publish("a", "hi \"you\"").await;
    server.publish_with("b", "?event=price&id=mine&retry=500", "1").await;
    let binary = server.post("/topics/a").header("content-type", "application/octet-stream");
    server.answer(binary.body(vec![0u8, 255])).await;
    assert_eq!([plain.line(), plain.line(), plain.line()], ["hi \"you\"", "1", "<2 bytes binary>"]);
    let mut lines = [full.json(), full.json(), full.json()];
    for line in &mut lines {
        assert!(line["time"].take().is_u64(), "{line}");
    }
    let (at, third) = (first.id.replace("-1", "-2"), first.id.replace("-1", "-3"));
    let expected = [
        json!({ "topic": "a", "event": "message", "id": first.id, "data": "hi \"you\"", "time": null }),
        json!({ "topic": "b", "event": "price", "id": "mine", "data": "1", "retry": 500, "at": at, "time": null }),
        json!({ "topic": "a", "event": "message", "id": third, "base64": "AP8=", "time": null }),
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn patterns_and_starts_mean_the_same_over_every_protocol() {
    let server = Server::start(&["--shards", "2"]);
    let after = server.publish("news/a", "1").await.id;
    for (topic, data) in [("news/b", "2"), ("other", "3"), ("news/a", "4"), ("else", "5"), ("news/b/c", "6")]
    {
        server.publish(topic, data).await;
    }
    let [sse, raw] =
        [("http", "sse"), ("ws", "ws")].map(|(scheme, path)| format!("{scheme}://{}/{path}", server.data));
    let mut number = 0;
    for (url, json) in [(&sse, &[][..]), (&raw, &[]), (&raw, &[JSON])] {
        for (flags, expected) in [
            (&["--last", "1", "--match", "news/*"][..], &["3", "4"][..]),
            (&["--since", "1h", "--match", "news/**", "--match", "else"], &["1", "2", "3", "4", "5", "6"]),
            (&["--after", &after, "--match", "*/b"], &["2", "3"]),
            (&["--from", &after, "--slow", "skip"], &["3"]),
        ] {
            number += 1;
            let count = (expected.len() + 1).to_string();
            let flags = [flags, json, &["--count", &count]].concat();
            let mut tail = Tail::start(&format!("{url}?topic=other&topic=end{number}"), &flags);
            let mut lines: Vec<String> = expected.iter().map(|_| tail.line()).collect();
            // Over JSON each of them begins for itself.
            lines.sort_unstable();
            assert_eq!(lines, expected, "{url} {flags:?}");
            server.publish(&format!("end{number}"), "and no more").await;
            assert_eq!(tail.line(), "and no more", "{url} {flags:?}");
            assert!(tail.process.wait().expect("our own child").success());
        }
    }
}

/// A proxy before the server that cuts each connection after so many bytes of the server, the last
/// one never.
async fn cutting_proxy(server: SocketAddr, cuts: Vec<usize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut cuts = cuts.into_iter();
        while let Ok((client, _)) = listener.accept().await {
            let bytes = cuts.next().map_or(u64::MAX, |bytes| bytes as u64);
            // One after the other: a client comes back when it was cut.
            let _ = pass(client, server, bytes).await;
        }
    });
    address
}

/// Passes bytes on until so many came from the server, or one side ends.
async fn pass(mut client: TcpStream, server: SocketAddr, bytes: u64) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let (mut from_client, mut to_server, mut to_client) = (from_client, to_server, to_client);
    let mut answer = from_server.take(bytes);
    tokio::select! {
        done = tokio::io::copy(&mut answer, &mut to_client) => { to_client.flush().await?; done.map(drop) }
        done = tokio::io::copy(&mut from_client, &mut to_server) => done.map(drop),
    }
}

/// Each event of the topics, once and in order, however the connection is cut meanwhile.
async fn survives(server: &Server, name: &str, cuts: Vec<usize>, published: &[u8]) {
    let proxy = cutting_proxy(server.data, cuts).await;
    let url = format!("ws://{proxy}/ws?topic={name}/a&match={name}/b/*&match={name}/**&last=100");
    let topics = ["a", "b/1", "b/2", "c"].map(|topic| format!("{name}/{topic}"));
    // Numbers and lengths of the data.
    let mut expected: Vec<Vec<(usize, usize)>> = vec![Vec::new(); topics.len()];
    let count = published.len().to_string();
    let mut tail = Tail::start(&url, &[JSON, "--json", "--count", &count]);
    for (number, choice) in published.iter().enumerate() {
        let topic = usize::from(*choice) % topics.len();
        let data = format!("{number} {}", "x".repeat(usize::from(*choice)));
        expected[topic].push((number, data.len()));
        server.publish(&topics[topic], data).await;
    }
    let mut came: Vec<Vec<(usize, usize)>> = vec![Vec::new(); topics.len()];
    for _ in published {
        let event = tail.json();
        let topic =
            topics.iter().position(|topic| event["topic"] == topic.as_str()).expect("a topic of ours");
        let data = event["data"].as_str().unwrap_or_else(|| panic!("{event}"));
        let number = data.split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
        came[topic].push((number, data.len()));
    }
    assert_eq!(came, expected);
    tail.await_note("reconnecting");
    assert!(within("its end", async { tail.process.wait() }).await.expect("our own child").success());
}

#[test]
fn over_json_nothing_is_lost_or_doubled_wherever_the_connection_is_cut() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let server = {
        let _context = runtime.enter();
        Server::start(&["--shards", "2"])
    };
    let number = std::cell::Cell::new(0);
    let config = ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() };
    let cut = prop_oneof![1 => 1..300usize, 4 => 300..3_000usize];
    let dice = (proptest::collection::vec(cut, 1..5), proptest::collection::vec(any::<u8>(), 40..80));
    let outcome = proptest::test_runner::TestRunner::new(config).run(&dice, |(cuts, published)| {
        number.set(number.get() + 1);
        runtime.block_on(survives(&server, &format!("case{}", number.get()), cuts, &published));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

#[tokio::test]
async fn over_json_a_restart_is_followed_and_told_as_a_gap() {
    let mut first = Server::start(&["--shards", "1"]);
    let (data, control) = (first.data, first.control);
    let tail = Tail::start(&format!("ws://{data}/ws?topic=a&topic=b&last=5"), &[JSON]);
    first.await_subscribers("b", 0, 1).await;
    let id = first.publish("a", "before").await.id;
    assert_eq!(tail.line(), "before");
    first.signal(Signal::TERM);
    assert_eq!(first.ended().await.code(), Some(0));
    tail.await_note("closed: 1012");
    let second = Server::start_on(data, control, &["--shards", "1"]);
    let gap = tail.await_note("events are missing");
    assert!(gap.contains(&id) && gap.contains("unknown"), "{gap}");
    second.await_subscribers("b", 0, 1).await;
    second.publish("b", "after").await;
    second.publish("a", "and on").await;
    assert_eq!([tail.line(), tail.line()], ["after", "and on"]);
}

#[tokio::test]
async fn over_json_what_a_history_no_longer_holds_is_told() {
    let server = Server::start(&["--shards", "1", "--window-events-max", "4"]);
    let id = server.publish("a", "1").await.id;
    for number in 2..8 {
        server.publish("a", number.to_string()).await;
    }
    let tail = Tail::start(&format!("ws://{}/ws/a", server.data), &[JSON, "--json", "--after", &id]);
    let gap = tail.json();
    assert_eq!((&gap["event"], &gap["id"]), (&json!("fanwave-gap"), &json!(id)));
    let data: Value = serde_json::from_str(gap["data"].as_str().expect("text")).expect("JSON");
    assert_eq!(data["gap"]["reason"], "expired");
    for number in 4..8 {
        assert_eq!(tail.json()["data"], number.to_string());
    }
}

#[tokio::test]
async fn an_error_that_stays_ends_tail_with_1_and_wrong_flags_with_2() {
    let server = Server::start(&["--shards", "1", "--topics-per-connection-max", "2"]);
    let url = format!("ws://{}/ws", server.data);
    let many =
        tail(&url, &[JSON, "--match", "a", "--match", "b", "--match", "c/*"]).output().expect("it runs");
    assert_eq!(many.status.code(), Some(1));
    let line = told(&many);
    assert!(line.contains("c/*: too_many: more than 2 topics on one connection"), "{line}");
    for (url, flags, part) in [
        (url.as_str(), &[JSON][..], "names no topic"),
        ("http://127.0.0.1:1/sse/a", &[JSON], "is no WebSocket"),
        ("ws://127.0.0.1:1/ws/a*", &[JSON], "use --match"),
    ] {
        let output = tail(url, flags).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{url}");
        let line = told(&output);
        assert!(line.contains(part), "{line}");
    }
    for flags in [
        &["--match", "a*"][..],
        &["--since", "30"],
        &["--since", "1s", "--last", "2"],
        &["--after", "x", "--last", "2"],
        &["--slow", "never"],
    ] {
        let output = tail(&url, flags).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
    }
}

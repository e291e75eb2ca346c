//! Claim: with `--data` ids, history, retained values, removals and idempotency keys outlive the
//! process, and with `--fsync always` nothing acknowledged is lost or given twice, whatever ends it.
//!
//! Set-up: servers with a directory of their own that end in order, or by SIGKILL under load, and
//! others that begin where they ended. Publishers repeat what has no answer under its idempotency
//! key; event streams come back with `Last-Event-ID`.
//!
//! Expectation: subscribers who come back get what they lack, once, without a gap. A directory that
//! cannot be used ends the start with one line that names the remedy.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Protocol, Said, Scratch, Server, Subscriber, until};

fn flags<'a>(data: &'a str, fsync: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--shards", "2", "--data", data, "--fsync", fsync], more].concat()
}

fn directory(scratch: &Scratch) -> String {
    scratch.path("store").to_str().expect("a path in UTF-8").to_string()
}

#[tokio::test]
async fn a_restart_is_no_gap_and_ids_go_on() {
    let scratch = Scratch::new();
    let data = directory(&scratch);
    for fsync in ["always", "interval", "never"] {
        let mut server = Server::start(&flags(&data, fsync, &[]));
        let first = server.publish("t", "1").await;
        let second = server.publish("t", "2").await;
        let key = format!("?idempotency_key={fsync}");
        let keyed = server.publish_with("t", &key, "3").await;
        server.signal(Signal::TERM);
        assert!(server.ended().await.success());
        let server = Server::start_on(server.data, server.control, &flags(&data, fsync, &[]));
        let mut back = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&first.id)).await;
        let event = back.event().await;
        assert_eq!((event.text(), event.id.as_deref()), ("2", Some(second.id.as_str())), "{fsync}");
        assert_eq!(back.text().await, "3");
        let again = server.answer(server.post(&format!("/topics/t{key}")).body("3")).await;
        assert!(again.body.contains(&keyed.id) && again.body.contains("\"duplicate\":true"), "{again:?}");
        let next = server.publish("t", "4").await;
        assert_eq!(next.sequence, keyed.sequence + 1, "{fsync}: the log was left in order");
        assert_eq!(back.text().await, "4");
        let removed = server.answer(server.delete("/topics/t")).await;
        assert_eq!(removed.status, 200, "{removed:?}");
        server.into_log().await;
        let server = Server::start(&flags(&data, fsync, &[]));
        let mut behind = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&next.id)).await;
        assert!(matches!(behind.news().await, Said::Gap(_)), "{fsync}: the topic was removed");
    }
}

#[tokio::test]
async fn retained_values_and_the_last_events_are_there_after_a_kill() {
    let scratch = Scratch::new();
    let data = directory(&scratch);
    let file = scratch.write("fanwave.toml", "[[rule]]\nmatch = \"kept\"\nretain = true\n");
    let mut server = Server::start(&flags(&data, "always", &["--config", &file]));
    server.publish("kept", "value").await;
    server.publish("t", "1").await;
    let last = server.publish("t", "2").await;
    server.signal(Signal::KILL);
    server.ended().await;
    let server = Server::start(&flags(&data, "always", &["--config", &file]));
    let mut greeted = Subscriber::connect(server.data, Protocol::Sse, &["kept"]).await;
    assert_eq!(greeted.text().await, "value");
    let head = "GET /sse?topic=t&last=2 HTTP/1.1\r\nHost: test\r\n\r\n";
    let mut asks = Subscriber::request(server.data, Protocol::Sse, head).await;
    assert_eq!(asks.texts(2).await, ["1", "2"]);
    let next = server.publish("t", "3").await;
    assert!(next.sequence > last.sequence, "a sequence is given once");
    let stats = server.stats().await;
    assert!(stats["hub"]["store"]["entries"].as_u64() >= Some(1), "{stats}");
}

#[tokio::test]
async fn what_a_kill_may_have_lost_under_a_weaker_promise_is_told() {
    let scratch = Scratch::new();
    let data = directory(&scratch);
    let mut server = Server::start(&flags(&data, "never", &[]));
    let first = server.publish("t", "1").await;
    server.signal(Signal::KILL);
    server.ended().await;
    let server = Server::start(&flags(&data, "never", &[]));
    let mut back = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&first.id)).await;
    let Said::Gap(gap) = back.news().await else { panic!("a gap") };
    assert_eq!((&gap["reason"], &gap["after"]), (&"expired".into(), &first.id.into()));
    server.publish("t", "2").await;
    assert_eq!(back.text().await, "2");
}

/// What a start with these flags says on standard error.
fn refused(flags: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--log", "error"])
        .args(flags);
    let output =
        command.env_clear().env("FANWAVE_UPGRADE_SOCKET", "none").output().expect("the program starts");
    assert!(!output.status.success(), "{flags:?}");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    text.lines().last().expect("a line").to_string()
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named_with_the_remedy() {
    let scratch = Scratch::new();
    let data = directory(&scratch);
    let server = Server::start(&flags(&data, "always", &[]));
    let line = refused(&["--data", &data]);
    assert!(line.contains("another process uses this directory"), "{line}");
    drop(server);
    let line = refused(&["--fsync", "always"]);
    assert!(line.contains("--data DIR"), "{line}");
    let line = refused(&["--data", &data, "--upgrade"]);
    assert!(line.contains("stop"), "{line}");
    let line = refused(&["--data", "/proc/fanwave"]);
    assert!(line.contains("--data /proc/fanwave: cannot"), "{line}");
    std::fs::write(scratch.path("store").join("format"), "fanwave store\nformat 77\n")
        .expect("a file of ours");
    let line = refused(&["--data", &data]);
    assert!(line.contains("of format 77"), "{line}");
}

/// Publishes numbers one after the other, each until it has an answer that it was taken.
async fn publish(control: SocketAddr, number: Arc<AtomicU64>, taken: Arc<AtomicU64>, stop: Arc<AtomicBool>) {
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    while !stop.load(Ordering::Relaxed) {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let url = format!("http://{control}/topics/t?idempotency_key=n{number}");
        loop {
            let answer = client.post(&url).body(number.to_string()).send().await;
            match answer {
                Ok(answer) if answer.status() == 200 => break,
                Ok(answer) => assert!([503, 504].contains(&answer.status().as_u16()), "{answer:?}"),
                // The server is down.
                Err(_) => tokio::task::yield_now().await,
            }
        }
        taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Follows the topic over any number of connections, until it has so many numbers. Each comes once,
/// under a rising id.
async fn follow(data: SocketAddr, total: Arc<AtomicU64>) -> u64 {
    let (mut seen, mut last, mut newest, mut returns) = (HashSet::new(), String::new(), 0, 0);
    while (seen.len() as u64) < total.load(Ordering::Relaxed) {
        let Ok(mut socket) = TcpStream::connect(data).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let named = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
        let head = format!("GET /sse/t HTTP/1.0\r\nHost: test\r\n{named}\r\n");
        let mut text = Vec::new();
        if socket.write_all(head.as_bytes()).await.is_err() {
            continue;
        }
        returns += 1;
        while (seen.len() as u64) < total.load(Ordering::Relaxed) {
            let mut more = [0; 16 << 10];
            let Ok(Ok(bytes @ 1..)) = tokio::time::timeout(PATIENCE, socket.read(&mut more)).await else {
                break;
            };
            text.extend_from_slice(&more[..bytes]);
            while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
                let block = String::from_utf8(text.drain(..end + 2).collect()).expect("UTF-8");
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
                assert!(!block.contains("fanwave-gap"), "nothing acknowledged is missing: {block}");
                let Some(id) = field("id: ") else { continue };
                last = id.to_string();
                let Some(number) = field("data: ") else { continue };
                let number: u64 = number.parse().expect("a number");
                let (_, sequence) = id.rsplit_once('-').expect("an id of ours");
                let sequence: u64 = sequence.parse().expect("a number");
                assert!(sequence > newest, "ids rise: {sequence} after {newest}");
                newest = sequence;
                assert!(seen.insert(number), "{number} comes once");
            }
        }
    }
    returns
}

/// Kills a server under load so many times; what was acknowledged reaches everybody once.
async fn kill_rounds(rounds: u64, publishers: usize, subscribers: usize, events: u64) {
    let scratch = Scratch::new();
    let data = directory(&scratch);
    // Nobody is away for long, so windows need not be large.
    let flags = flags(&data, "always", &["--window-events-max", "100000", "--window-bytes-max", "32MiB"]);
    let mut server = Server::start(&flags);
    let (number, taken) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let (stop, total) = (Arc::<AtomicBool>::default(), Arc::new(AtomicU64::new(u64::MAX)));
    let followers: Vec<_> =
        (0..subscribers).map(|_| tokio::spawn(follow(server.data, total.clone()))).collect();
    server.await_subscribers("t", subscribers as u64, 0).await;
    let publishing: Vec<_> = (0..publishers)
        .map(|_| tokio::spawn(publish(server.control, number.clone(), taken.clone(), stop.clone())))
        .collect();
    for _ in 0..rounds {
        let before = taken.load(Ordering::Relaxed);
        until("more events", async || (taken.load(Ordering::Relaxed) >= before + events).then_some(())).await;
        server.signal(Signal::KILL);
        server.ended().await;
        server = Server::start_on(server.data, server.control, &flags);
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishing {
        publisher.await.expect("every event is taken in the end");
    }
    total.store(taken.load(Ordering::Relaxed), Ordering::Relaxed);
    // So that those who have everything hear that there is no more.
    let last = total.fetch_add(1, Ordering::Relaxed);
    server.publish("t", number.load(Ordering::Relaxed).max(last + 1).to_string()).await;
    for follower in followers {
        let returns = follower.await.expect("each event once, in order, without a gap");
        assert!(returns > rounds, "it came back after each kill: {returns}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_reaches_everybody_once_although_the_server_is_killed() {
    kill_rounds(2, 4, 10, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --long"]
async fn long_what_was_acknowledged_survives_twenty_kills_under_load() {
    kill_rounds(20, 64, 500, 5_000).await;
}

//! Claim: with `--data` ids, history, retained values, removals and idempotency keys outlive the
//! process.
//!
//! Set-up: servers with a directory of their own that end in order, or by SIGKILL, and others that
//! begin where they ended. Event streams come back with `Last-Event-ID`.
//!
//! Expectation: subscribers who come back get what they lack, once, without a gap. A directory that
//! cannot be used ends the start with one line that names the remedy.

use std::process::Command;

use rustix::process::Signal;

use crate::support::{Protocol, Said, Scratch, Server, Subscriber};

pub(super) fn flags<'a>(data: &'a str, fsync: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--shards", "2", "--data", data, "--fsync", fsync], more].concat()
}

pub(super) fn directory(scratch: &Scratch) -> String {
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
    server = Server::start(&flags(&data, "never", &[]));
    let mut back = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&first.id)).await;
    let Said::Gap(gap) = back.news().await else { panic!("a gap") };
    assert_eq!((&gap["reason"], &gap["after"]), (&"expired".into(), &first.id.clone().into()));
    let second = server.publish("t", "2").await;
    assert_eq!(back.text().await, "2");
    // Others come back later, when that life has ended too.
    for _ in 0..2 {
        server.signal(Signal::TERM);
        assert!(server.ended().await.success());
        server = Server::start(&flags(&data, "never", &[]));
        let mut late = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&first.id)).await;
        assert!(matches!(late.news().await, Said::Gap(_)), "it lacks what the kill has taken");
        server.publish("t", "3").await;
        let mut late = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&second.id)).await;
        assert_eq!(late.text().await, "3", "it lacks nothing");
    }
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
    for source in ["relay://127.0.0.1:1", "nats://127.0.0.1:1"] {
        let line = refused(&["--data", &data, "--source", source]);
        assert!(line.contains("--data keeps the events of --source local; leave it out"), "{line}");
    }
    let line = refused(&["--data", &data, "--upgrade"]);
    assert!(line.contains("stop"), "{line}");
    let line = refused(&["--data", "/proc/fanwave"]);
    assert!(line.contains("--data /proc/fanwave: cannot"), "{line}");
    std::fs::write(scratch.path("store").join("format"), "fanwave store\nformat 77\n")
        .expect("a file of ours");
    let line = refused(&["--data", &data]);
    assert!(line.contains("of format 77"), "{line}");
}

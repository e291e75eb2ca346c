//! Claim: a subscriber that takes what it is offered gets everything, however much is published at
//! once and however large the events are.
//!
//! Set-up: histories of the usual length; bursts far longer than these, in one body, to subscribers
//! of both protocols that read all the time.
//!
//! Expectation: every event arrives in order, nobody is closed, and no event is refused: a
//! publisher that is too fast for its subscribers waits. A publisher of single events is told so,
//! and another topic is not concerned.

use crate::support::{Protocol, Server, Subscriber};

/// A body of NDJSON with so many events of `topic`, each its number and padding up to `bytes`.
fn burst(topic: &str, events: usize, bytes: usize) -> String {
    let line = |number| {
        let data = format!("{number} {}", "x".repeat(bytes.saturating_sub(8)));
        format!("{{\"topic\":\"{topic}\",\"data\":\"{data}\"}}\n")
    };
    (0..events).map(line).collect()
}

async fn everybody_gets(flags: &[&str], subscribers: usize, events: usize, bytes: usize) {
    let server = Server::start(flags);
    let mut readers = Vec::new();
    for at in 0..subscribers {
        let protocol = [Protocol::Sse, Protocol::WebSocket][at % 2];
        let mut subscriber = Subscriber::connect(server.data, protocol, &["t"]).await;
        readers.push(tokio::spawn(async move {
            for number in 0..events {
                let text = subscriber.text().await;
                assert!(text.starts_with(&format!("{number} ")), "{number} is next: {:.20}", text);
            }
            subscriber
        }));
    }
    let answer = server.answer(server.post("/publish").body(burst("t", events, bytes))).await;
    let summary = answer.json();
    assert_eq!((&summary["accepted"], &summary["refused"]), (&events.into(), &0.into()), "{summary}");
    let mut still_there = Vec::new();
    for reader in readers {
        still_there.push(reader.await.expect("a subscriber that gets everything"));
    }
    let stats = server.stats().await;
    for label in ["overrun", "stalled"] {
        assert_eq!(stats["totals"]["closed"][label], 0, "{label}");
    }
}

#[tokio::test]
async fn a_burst_beyond_the_history_reaches_everybody() {
    everybody_gets(&["--shards", "2"], 20, 1_500, 4 << 10).await;
}

#[tokio::test]
async fn large_events_at_once_reach_everybody() {
    everybody_gets(&["--shards", "1"], 20, 12, 1 << 20).await;
}

/// Little memory: the publisher is held back many times.
#[tokio::test]
async fn a_publisher_that_is_too_fast_waits_and_loses_nothing() {
    let flags = ["--shards", "1", "--message-bytes-max=10000", "--window-bytes-max=100KiB"];
    let little = ["--window-bytes-total-max=1MiB", "--hub-queue-bytes-max=64KiB"];
    everybody_gets(&[&flags[..], &little].concat(), 4, 3_000, 4 << 10).await;
}

#[tokio::test]
async fn a_topic_without_room_refuses_single_events_and_no_other_topic_does() {
    let flags = ["--shards", "1", "--message-bytes-max=10000", "--window-bytes-max=100KiB"];
    let little = ["--window-bytes-total-max=1MiB", "--stall-ms-max=120000"];
    let server = Server::start(&[&flags[..], &little].concat());
    let behind = Subscriber::connect(server.data, Protocol::Sse, &["slow"]).await;
    let mut reader = Subscriber::connect(server.data, Protocol::WebSocket, &["fast"]).await;
    // The one subscriber of its topic reads nothing: it is the whole crowd, so that nobody is cut.
    let mut number = 0;
    let refused = loop {
        let answer = server.answer(server.post("/topics/slow").body("x".repeat(9_000))).await;
        if answer.status != 200 {
            break answer;
        }
        number += 1;
        assert!(number < 4_000, "sockets do not hold so much");
    };
    assert_eq!(refused.status, 503);
    assert!(refused.error().contains("subscribers are behind"), "{}", refused.error());
    assert_eq!(server.stats().await["hub"]["refused"]["behind"], 1);
    for number in 0..100 {
        server.publish("fast", number.to_string()).await;
        assert_eq!(reader.text().await, number.to_string());
    }
    drop(behind);
    crate::support::until("room for the next event", async || {
        let answer = server.answer(server.post("/topics/slow").body("again")).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

//! Claim: a subscriber that is too slow is hung up on once its topic holds as much memory as it
//! may, or skips with a notice what the history holds no more, as the operator chose.
//!
//! Set-up: histories of eight large events, little memory in all, and one subscriber that stops
//! reading until far more events have passed it; then it reads again.
//!
//! Expectation: what it had coming arrives in order and whole. Then `close` ends the stream
//! (WebSocket 1013), and `skip` tells the gap and goes on with newer events, and with everything of
//! topics that lost nothing. The other subscriber gets everything, and no publish is refused.

use serde_json::Value;

use crate::support::slow::{EVENT_BYTES, number_of, padded, publish_until_stuck};
use crate::support::{Protocol, Said, Server, Subscriber};

const WINDOW: usize = 8;
const FLAGS: [&str; 8] = [
    "--shards",
    "1",
    "--window-events-max",
    "8",
    "--stall-ms-max",
    "120000",
    // One topic has a quarter, and is short of room when it holds three quarters of that.
    "--window-bytes-total-max",
    "96MiB",
];
/// Events of 64 KiB that so much memory holds of one topic, each with its two frames.
const HELD: usize = (24 << 20) / (3 * EVENT_BYTES);

/// A server, the slow subscriber of `topics` that has fallen out of the window of `t`, two fast
/// ones of `t`, and the number after the last event.
async fn fallen_behind(
    policy: &str,
    slow: Protocol,
    topics: &[&str],
) -> (Server, Subscriber, [Subscriber; 2], usize) {
    let server = Server::start(&[&FLAGS[..], &["--overrun", policy]].concat());
    let behind = Subscriber::connect(server.data, slow, topics).await;
    let fast = match slow {
        Protocol::Sse => Protocol::WebSocket,
        Protocol::WebSocket => Protocol::Sse,
    };
    let mut fast = [
        Subscriber::connect(server.data, fast, &["t"]).await,
        Subscriber::connect(server.data, fast, &["t"]).await,
    ];
    let next = match policy {
        "skip" => publish_until_stuck(&server, "t", slow, &mut fast, 0, 3 * WINDOW).await,
        _ => publish_until_cut(&server, slow, &mut fast).await,
    };
    (server, behind, fast, next)
}

/// Publishes events to `t`, all of which the `fast` get, until the server gives the slow subscriber
/// up. Returns the number after the last event.
async fn publish_until_cut(server: &Server, slow: Protocol, fast: &mut [Subscriber]) -> usize {
    for number in 0..1_000 {
        server.publish("t", padded(number)).await;
        for fast in &mut *fast {
            assert_eq!(fast.text().await, padded(number));
        }
        if server.counter(slow, "overruns").await == 1 {
            assert!(number >= HELD / 2, "{number} events are not half of what the topic may hold");
            return number + 1;
        }
    }
    panic!("1,000 events of {EVENT_BYTES} bytes are more than 96 MiB hold");
}

/// Reads events, which must be gapless from 0, until something else comes. Returns the number after
/// the last.
async fn read_prefix(subscriber: &mut Subscriber) -> (usize, Option<String>, Said) {
    let mut next = 0;
    let mut last_id = None;
    loop {
        match subscriber.news().await {
            Said::Event(event) => {
                assert_eq!(number_of(event.text()), next, "what comes is in order");
                last_id = event.id;
                next += 1;
            }
            other => return (next, last_id, other),
        }
    }
}

async fn closed(slow: Protocol) {
    let (server, mut behind, mut fast, next) = fallen_behind("close", slow, &["t"]).await;
    let (read, last_id, said) = read_prefix(&mut behind).await;
    assert!(read <= next - 2 * WINDOW, "it had lost events: {read} of {next}");
    match slow {
        Protocol::Sse => assert_eq!(said, Said::End),
        Protocol::WebSocket => {
            assert!(matches!(&said, Said::Close(1013, reason) if reason.contains("slow")), "{said:?}");
            assert_eq!(behind.next().await, Said::End);
        }
    }
    server.await_closed("overrun", 1).await;
    assert_eq!(server.counter(slow, "overruns").await, 1);
    assert_eq!(server.stats().await["hub"]["refused"]["behind"], 0);
    server.publish("t", "live").await;
    for fast in &mut fast {
        assert_eq!(fast.text().await, "live");
    }
    if let Some(id) = last_id {
        // It comes back as an EventSource does, and is told what it lost.
        let mut again = Subscriber::resume(server.data, slow, &["t"], Some(&id)).await;
        let said = again.news().await;
        assert!(
            matches!(&said, Said::Gap(gap) if gap["reason"] == "expired" && gap["after"] == *id),
            "{said:?}"
        );
        assert_eq!(number_of(&again.text().await), next + 1 - WINDOW, "all of the history");
    }
}

async fn skipped(slow: Protocol) {
    let (server, mut behind, mut fast, next) = fallen_behind("skip", slow, &["t"]).await;
    let (read, last_id, said) = read_prefix(&mut behind).await;
    assert!(read <= next - 2 * WINDOW, "it had lost events: {read} of {next}");
    let Said::Gap(gap) = said else { panic!("a gap notice, not {said:?}") };
    assert_eq!((&gap["reason"], &gap["topics"]), (&"overrun".into(), &serde_json::json!(["t"])));
    let after = gap["after"].as_str().expect("the last event that it had");
    assert!(after.ends_with(&format!("-{read}")), "{after} after {read} events");
    assert!(last_id.is_none_or(|id| id == after));
    server.publish("t", "live").await;
    for fast in &mut fast {
        assert_eq!(fast.text().await, "live");
    }
    assert_eq!(behind.text().await, "live", "it goes on with the newest");
    assert_eq!(server.counter(slow, "overruns").await, 1);
    assert_eq!(server.closed("overrun").await, 0);
    let topic: Value = server.get("/topics/t").await.json();
    let (sse, websocket) = if slow == Protocol::Sse { (1, 2) } else { (2, 1) };
    assert_eq!(topic["subscribers"], serde_json::json!({ "sse": sse, "websocket": websocket }));
}

/// A subscriber that lost events of one topic still gets everything of its others.
async fn skipped_one_of_two(slow: Protocol) {
    let (server, mut behind, _fast, next) = fallen_behind("skip", slow, &["t", "quiet"]).await;
    server.publish("quiet", "still here").await;
    let (read, _, said) = read_prefix(&mut behind).await;
    assert!(read <= next - 2 * WINDOW, "it had lost events: {read} of {next}");
    let Said::Gap(gap) = said else { panic!("a gap notice, not {said:?}") };
    assert_eq!(gap["topics"], serde_json::json!(["t"]));
    assert_eq!(behind.text().await, "still here");
    server.publish("t", "live").await;
    assert_eq!(behind.text().await, "live");
}

#[tokio::test]
async fn skip_leaves_out_nothing_of_topics_that_lost_nothing() {
    for slow in [Protocol::Sse, Protocol::WebSocket] {
        skipped_one_of_two(slow).await;
    }
}

#[tokio::test]
async fn close_ends_an_event_stream() {
    closed(Protocol::Sse).await;
}

#[tokio::test]
async fn close_ends_a_websocket_with_1013() {
    closed(Protocol::WebSocket).await;
}

#[tokio::test]
async fn skip_tells_an_event_stream_of_the_gap_and_goes_on() {
    skipped(Protocol::Sse).await;
}

#[tokio::test]
async fn skip_tells_a_websocket_of_the_gap_and_goes_on() {
    skipped(Protocol::WebSocket).await;
}

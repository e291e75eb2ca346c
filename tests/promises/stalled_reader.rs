//! Claim: a reader that stalls delays nobody, and is hung up on under its own reason.
//!
//! Set-up: one shard with twenty readers of one protocol and one subscriber of the other that never
//! reads. Large events until its socket takes no more.
//!
//! Expectation: all others get every event, several of them while the stalled send is provably in
//! the kernel. Then the stalled one is closed and counted as stalled, and the others still get
//! events. While it stalls, `/slow` names it and nobody else.

use crate::support::slow::publish_until_stuck;
use crate::support::{Protocol, Server, Subscriber, until};

const OTHERS: usize = 20;

async fn stalled(slow: Protocol, fast: Protocol) {
    let server = Server::start(&["--shards", "1", "--stall-ms-max", "5000"]);
    let idle = Subscriber::connect(server.data, slow, &["t"]).await;
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        others.push(Subscriber::connect(server.data, fast, &["t"]).await);
    }
    publish_until_stuck(&server, "t", slow, &mut others, 0, 3).await;
    assert_eq!(server.closed("stalled").await, 0, "the others were served while it was stalled");

    server.await_closed("stalled", 1).await;
    server
        .await_subscribers("t", u64::from(fast == Protocol::Sse) * OTHERS as u64, {
            u64::from(fast == Protocol::WebSocket) * OTHERS as u64
        })
        .await;
    let stats = server.stats().await;
    assert_eq!(stats["totals"]["connections"], OTHERS, "only the stalled one is gone");
    server.publish("t", "after").await;
    for other in &mut others {
        assert_eq!(other.text().await, "after");
    }
    drop(idle);
}

#[tokio::test]
async fn a_stalled_websocket_delays_no_event_stream() {
    stalled(Protocol::WebSocket, Protocol::Sse).await;
}

#[tokio::test]
async fn a_stalled_event_stream_delays_no_websocket() {
    stalled(Protocol::Sse, Protocol::WebSocket).await;
}

#[tokio::test]
async fn a_slow_subscriber_is_named_until_it_is_gone() {
    let server = Server::start(&["--shards", "1", "--stall-ms-max", "60000"]);
    let idle = Subscriber::connect(server.data, Protocol::WebSocket, &["t", "quiet"]).await;
    let mut others = vec![Subscriber::connect(server.data, Protocol::Sse, &["t"]).await];
    assert_eq!(server.get("/slow").await.json()["slow"], serde_json::json!([]));
    publish_until_stuck(&server, "t", Protocol::WebSocket, &mut others, 0, 3).await;
    let slow = until("the slow one to be named", async || {
        let slow = server.get("/slow").await.json();
        (slow["slow"] != serde_json::json!([])).then_some(slow)
    })
    .await;
    assert_eq!(slow["slow"].as_array().map(Vec::len), Some(1), "the others are not slow: {slow}");
    let named = &slow["slow"][0];
    assert_eq!(named["peer"], idle.address().to_string());
    assert_eq!((&named["format"], &named["shard"]), (&"websocket".into(), &0.into()));
    assert_eq!((&named["topics"], &named["more_topics"]), (&serde_json::json!(["t", "quiet"]), &0.into()));
    assert!(named["lag_events"].as_u64() >= Some(2), "events wait behind the send: {named}");
    until("the send to wait for a while", async || {
        let metrics = server.get("/metrics").await.body;
        let line =
            metrics.lines().find_map(|line| line.strip_prefix("fanwave_oldest_send_seconds{shard=\"0\"} "));
        (line.expect("a sample").parse::<f64>().expect("a number") > 0.0).then_some(())
    })
    .await;
    drop(idle);
    until("nobody to be slow", async || {
        (server.get("/slow").await.json()["slow"] == serde_json::json!([])).then_some(())
    })
    .await;
}

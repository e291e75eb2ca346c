//! Claim: an idle connection shows signs of life, and a peer that shows none is hung up on.
//!
//! Set-up: heartbeats every second on connections without events: an event stream, a WebSocket that
//! answers pings, and one that does not.
//!
//! Expectation: comments on the event stream; pings that are answered keep a WebSocket open; the
//! silent one is closed and counted as ping_timeout. Events still arrive at the others.

use crate::support::peer::masked;
use crate::support::{Protocol, Said, Server, Subscriber};

#[tokio::test]
async fn an_event_stream_gets_comments() {
    let server = Server::start(&["--shards", "1", "--heartbeat-ms", "1000"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    for _ in 0..2 {
        assert_eq!(subscriber.next().await, Said::Alive(Vec::new()));
    }
    server.publish("t", "x").await;
    assert_eq!(subscriber.text().await, "x");
}

#[tokio::test]
async fn a_websocket_that_answers_pings_stays_and_one_that_does_not_goes() {
    let server = Server::start(&["--shards", "1", "--heartbeat-ms", "1000"]);
    let mut silent = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    let mut lively = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    for _ in 0..3 {
        let said = lively.next().await;
        let Said::Alive(payload) = said else { panic!("a ping, not {said:?}") };
        lively.send(&masked(0xa, &payload)).await;
    }
    assert!(matches!(silent.next().await, Said::Alive(_)), "the silent one was pinged");
    let end = silent.next().await;
    assert!(matches!(end, Said::End | Said::Reset), "then hung up on: {end:?}");
    server.await_closed("ping_timeout", 1).await;
    server.publish("t", "x").await;
    assert_eq!(lively.text().await, "x");
    assert_eq!(server.stats().await["totals"]["connections"], 1);
}

/// Whatever a WebSocket client sends counts as a sign of life.
#[tokio::test]
async fn a_client_that_talks_needs_no_pong() {
    let server = Server::start(&["--shards", "1", "--heartbeat-ms", "1000"]);
    let mut talker = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    for _ in 0..3 {
        assert!(matches!(talker.next().await, Said::Alive(_)));
        talker.send(&masked(0x1, b"no pong, but alive")).await;
    }
    server.publish("t", "x").await;
    assert_eq!(talker.text().await, "x");
    assert_eq!(server.closed("ping_timeout").await, 0);
}

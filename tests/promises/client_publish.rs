//! Claim: a WebSocket in raw mode publishes what it sends, where `--client-publish` lets it.
//!
//! Set-up: servers with patterns, subscribers of both protocols on two shards, frames written by
//! hand: whole, in fragments, cut anywhere, between pings, and as fast as a socket takes them.
//!
//! Expectation: each message comes to every subscriber of the topic, the sender included, once and
//! in order, as text or as binary data; what is not allowed is counted and dropped; a flood is held
//! back in the client's own socket, and nothing of it is lost.

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::support::peer::masked;
use crate::support::{Protocol, Said, Server, Subscriber, until, within};

async fn connect(server: &Server, protocol: Protocol, topics: &[&str]) -> Subscriber {
    Subscriber::connect(server.data, protocol, topics).await
}

/// The sum over all shards of a counter that stands below `totals`.
async fn total(server: &Server, path: &[&str]) -> u64 {
    let stats = server.stats().await;
    let value = path.iter().fold(&stats["totals"], |value, name| &value[*name]);
    value.as_u64().unwrap_or_else(|| panic!("no {path:?} in {stats}"))
}

/// A masked frame with this first byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(0x1, payload);
    frame[0] = first;
    frame
}

#[tokio::test]
async fn text_and_binary_messages_come_to_all_subscribers_and_to_the_sender() {
    let server = Server::start(&["--shards", "2", "--client-publish", "chat/*"]);
    let mut subscribers = Vec::new();
    for _ in 0..4 {
        subscribers.push(connect(&server, Protocol::WebSocket, &["chat/a"]).await);
        subscribers.push(connect(&server, Protocol::Sse, &["chat/a"]).await);
    }
    let mut sender = connect(&server, Protocol::WebSocket, &["chat/a"]).await;
    let hello = "Grüezi\n😀".as_bytes();
    let first = hello.len() - 6;
    let said = [
        masked(0x1, b"whole"),
        masked(0x9, b"?"),
        frame(0x01, &hello[..first]),
        masked(0x9, b"between"),
        frame(0x00, &hello[first..hello.len() - 2]),
        frame(0x80, &hello[hello.len() - 2..]),
        masked(0x2, &[0, 255, 7]),
        masked(0x1, b""),
    ]
    .concat();
    sender.send(&said).await;
    for byte in &said {
        sender.send(&[*byte]).await;
    }
    let expected: [&[u8]; 4] = [b"whole", hello, &[0, 255, 7], b""];
    let heard = async |subscriber: &mut Subscriber| {
        let mut data = Vec::new();
        while data.len() < 8 {
            match subscriber.next().await {
                Said::Event(event) => data.push(event.data),
                Said::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
        data
    };
    for subscriber in subscribers.iter_mut().chain([&mut sender]) {
        let data = heard(subscriber).await;
        for (at, data) in data.iter().enumerate() {
            assert_eq!(data, expected[at % 4], "message {at}");
        }
    }
    assert_eq!(total(&server, &["published"]).await, 8);
    assert_eq!(server.stats().await["hub"]["events"], Value::from(8));
}

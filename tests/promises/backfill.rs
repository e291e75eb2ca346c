//! Claim: with `--data` a subscriber that asks for more than the windows in memory hold gets all
//! that the store has of it, in order and once, and then the news.
//!
//! Set-up: servers with two shards, a directory and windows of a few events; some thousands of
//! events on several topics, among them some with a name, an id and binary data. Subscribers come
//! back from long before, by `Last-Event-ID`, by `after`, `since` and `last`, on one topic, several
//! and a pattern, over event streams, WebSockets and JSON, while events go on.
//!
//! Expectation: every event after the one that was named, as it was published, with the id that it
//! had, no gap and nothing twice. What was removed is told as a gap, and so is everything where the
//! operator allows no backfill.

use rustix::process::Signal;
use serde_json::{Value, json};

use super::conversation::Client;
use crate::support::{Protocol, Said, Scratch, Server, Subscriber, until};

/// Events that a window holds.
const WINDOW: &str = "16";
/// Events that are published before anybody comes back.
const EVENTS: usize = 3_000;

fn start(scratch: &Scratch, more: &[&str]) -> Server {
    let data = scratch.path("store").to_str().expect("a path in UTF-8").to_string();
    let flags = ["--shards", "2", "--data", &data, "--window-events-max", WINDOW];
    Server::start(&[&flags[..], more].concat())
}

/// The topic of an event: two of three are of `a`.
fn topic_of(number: usize) -> &'static str {
    ["a", "b/1", "a"][number % 3]
}

/// Publishes these events, whose data are their numbers.
async fn publish(server: &Server, numbers: std::ops::Range<usize>) {
    let line = |number: usize| format!("{{\"topic\":\"{}\",\"data\":\"{number}\"}}\n", topic_of(number));
    let body: String = numbers.clone().map(line).collect();
    let answer = server.answer(server.post("/publish").body(body)).await;
    let told: Value = serde_json::from_str(answer.body.lines().last().expect("a line")).expect("JSON");
    assert_eq!(told["accepted"], numbers.len(), "{told}");
    // The shards may still have some of them to take.
    until("all events", async || {
        let stats = server.stats().await;
        let shards = stats["shards"].as_array().expect("shards").clone();
        shards.iter().all(|shard| shard["events"] == stats["hub"]["events"]).then_some(())
    })
    .await;
}

/// The numbers of the events of these topics.
fn numbers(topics: &[&str], range: std::ops::Range<usize>) -> Vec<String> {
    range.filter(|number| topics.contains(&topic_of(*number))).map(|number| number.to_string()).collect()
}

async fn backfill(server: &Server, name: &str) -> u64 {
    server.stats().await["totals"]["backfill"][name].as_u64().expect("a counter")
}

#[tokio::test]
async fn who_comes_back_from_before_the_window_gets_all_of_it_and_then_the_news() {
    let scratch = Scratch::new();
    let mut server = start(&scratch, &[]);
    let first = server.publish("a", "first").await;
    publish(&server, 0..EVENTS / 2).await;
    // The store is read from a process before this one too.
    server.signal(Signal::TERM);
    assert!(server.ended().await.success());
    let server = start(&scratch, &[]);
    publish(&server, EVENTS / 2..EVENTS).await;
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        for topics in [&["a"][..], &["b/1"], &["a", "b/1"]] {
            let mut back = Subscriber::resume(server.data, protocol, topics, Some(&first.id)).await;
            let expected = numbers(topics, 0..EVENTS);
            assert_eq!(back.texts(expected.len()).await, expected, "{protocol:?} {topics:?}");
            subscribers.push(back);
        }
    }
    let head = format!("GET /sse?match=b/*&after={} HTTP/1.1\r\nHost: test\r\n\r\n", first.id);
    let mut pattern = Subscriber::request(server.data, Protocol::Sse, head).await;
    let expected = numbers(&["b/1"], 0..EVENTS);
    assert_eq!(pattern.texts(expected.len()).await, expected);
    let news = server.publish("a", "news").await;
    server.publish("b/1", "news").await;
    for subscriber in subscribers.iter_mut().chain([&mut pattern]) {
        assert_eq!(subscriber.text().await, "news");
    }
    // One that has it all needs nothing from the store, and an id is what it was.
    let mut last = Subscriber::resume(server.data, Protocol::Sse, &["a"], Some(&first.id)).await;
    let expected = numbers(&["a"], 0..EVENTS).len();
    let mut event = last.event().await;
    assert_eq!(
        event.id.as_deref().and_then(|id| id.rsplit_once('-')).map(|id| id.0),
        first.id.rsplit_once('-').map(|id| id.0)
    );
    for _ in 0..expected {
        event = last.event().await;
    }
    assert_eq!((event.text(), event.id.as_deref()), ("news", Some(news.id.as_str())));
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        assert_eq!(server.counter(protocol, "gaps").await, 0);
    }
    assert_eq!((backfill(&server, "begun").await, backfill(&server, "completed").await), (8, 8));
}

#[tokio::test]
async fn a_client_of_json_gets_the_past_of_one_topic_beside_the_news_of_others() {
    let scratch = Scratch::new();
    let server = start(&scratch, &[]);
    let first = server.publish_with("a", "?event=e&id=mine&retry=7", "first").await;
    let binary =
        server.post("/topics/a").header("content-type", "application/octet-stream").body(vec![0, 255]);
    server.answer(binary).await;
    publish(&server, 0..EVENTS).await;
    let before = first_id(&server, &first.id).await;
    let mut client = Client::connect(&server, &["b/1"], None).await;
    let ok = client.done(json!({ "ref": 1, "subscribe": { "topic": "a", "after": before } })).await;
    assert_eq!(ok, json!({ "topic": "a", "after": before }));
    server.publish("b/1", "live").await;
    let (mut heard, mut live) = (Vec::new(), 0);
    while heard.len() < 2 + numbers(&["a"], 0..EVENTS).len() || live == 0 {
        let event = client.hear().await;
        match event["topic"].as_str() {
            Some("a") => heard.push(event),
            _ => live += usize::from(event["data"] == "live"),
        }
    }
    assert_eq!(
        (&heard[0]["id"], &heard[0]["event"], &heard[0]["retry"]),
        (&json!("mine"), &json!("e"), &json!(7))
    );
    assert_eq!(heard[1]["base64"], "AP8=");
    let data: Vec<&str> = heard[2..].iter().map(|event| event["data"].as_str().expect("text")).collect();
    assert_eq!(data, numbers(&["a"], 0..EVENTS));
    server.publish("a", "news").await;
    assert_eq!(client.hear().await["data"], "news");
    assert_eq!((live, backfill(&server, "completed").await), (1, 1));
}

/// The id before everything, of the epoch of another one.
async fn first_id(server: &Server, id: &str) -> String {
    let epoch = server.stats().await["epoch"].as_str().expect("an epoch").to_string();
    assert!(!id.is_empty());
    format!("{epoch}-0")
}

#[tokio::test]
async fn an_id_of_a_publisher_that_has_left_memory_is_a_gap_and_where_it_stood_is_known_by_ours() {
    let scratch = Scratch::new();
    let server = start(&scratch, &[]);
    // An event before each of them, so that an id of ours stands for what its client has.
    let before = server.publish("a", "before").await;
    server.publish_with("a", "?id=mine", "old").await;
    publish(&server, 0..600).await;
    server.publish_with("a", "?id=recent", "new").await;
    let news = server.publish("a", "news").await;
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let mut back = Subscriber::resume(server.data, protocol, &["a"], Some("mine")).await;
        let Said::Gap(gap) = back.news().await else { panic!("{protocol:?}: the window has it no more") };
        assert_eq!(gap, json!({ "after": "mine", "reason": "unknown", "topics": ["a"] }));
        let window: usize = WINDOW.parse().expect("a number");
        let mut here = numbers(&["a"], 0..600).split_off(400 + 2 - window);
        here.extend(["new".to_string(), "news".to_string()]);
        assert_eq!(back.texts(window).await, here, "{protocol:?}: what memory has");
        let mut back = Subscriber::resume(server.data, protocol, &["a"], Some("recent")).await;
        assert_eq!(back.text().await, "news", "{protocol:?}: it is in memory");
    }
    assert_eq!(backfill(&server, "begun").await, 0, "nothing was looked for on the disk");
    let mut back = Subscriber::resume(server.data, Protocol::Sse, &["a"], Some(&before.id)).await;
    let old = back.event().await;
    assert_eq!((old.text(), old.id.as_deref()), ("old", Some("mine")));
    let rest = [numbers(&["a"], 0..600), vec!["new".into(), "news".into()]].concat();
    assert_eq!(back.texts(rest.len()).await, rest);
    assert_eq!(news.sequence, 604);
}

#[tokio::test]
async fn last_and_since_reach_back_into_the_store() {
    let scratch = Scratch::new();
    let server = start(&scratch, &[]);
    publish(&server, 0..EVENTS).await;
    let all = numbers(&["a"], 0..EVENTS);
    for (query, count) in
        [("last=5", 5), ("last=700", 700), ("last=1000000", all.len()), ("since=1h", all.len())]
    {
        let head = format!("GET /sse?topic=a&{query} HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut asks = Subscriber::request(server.data, Protocol::Sse, head).await;
        assert_eq!(asks.texts(count).await, all[all.len() - count..], "{query}");
    }
    let mut client = Client::connect(&server, &[], None).await;
    client.done(json!({ "ref": 1, "subscribe": { "topic": "b/1", "last": 100 } })).await;
    let of_b = numbers(&["b/1"], 0..EVENTS);
    for expected in &of_b[of_b.len() - 100..] {
        assert_eq!(client.hear().await["data"], *expected);
    }
    assert_eq!(server.counter(Protocol::Sse, "gaps").await, 0);
}

#[tokio::test]
async fn what_was_removed_or_may_not_be_read_is_told_as_a_gap() {
    let scratch = Scratch::new();
    let server = start(&scratch, &[]);
    let first = server.publish("a", "first").await;
    publish(&server, 0..600).await;
    assert_eq!(server.answer(server.delete("/topics/a")).await.status, 200);
    publish(&server, 600..1_200).await;
    let mut back = Subscriber::resume(server.data, Protocol::Sse, &["a", "b/1"], Some(&first.id)).await;
    let Said::Gap(gap) = back.news().await else { panic!("a gap") };
    assert_eq!(gap, json!({ "after": first.id, "reason": "expired", "topics": ["a"] }));
    let expected = [numbers(&["b/1"], 0..600), numbers(&["a", "b/1"], 600..1_200)].concat();
    assert_eq!(back.texts(expected.len()).await, expected, "nothing of what was removed");
    drop(server);
    let server = start(&scratch, &["--backfill-bytes-per-second", "0"]);
    let mut back = Subscriber::resume(server.data, Protocol::Sse, &["a"], Some(&first.id)).await;
    assert!(matches!(back.news().await, Said::Gap(_)));
    let window = numbers(&["a"], 600..1_200).split_off(400 - 16);
    assert_eq!(back.texts(window.len()).await, window);
    assert_eq!(backfill(&server, "begun").await, 0);
}

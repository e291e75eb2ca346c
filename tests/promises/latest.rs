//! Claim: a subscriber with `slow=latest` gets the newest event of its topic, or of each key where
//! a rule says so, however slow it is, is never closed for that, and makes no publisher wait.
//!
//! Set-up: subscribers over both protocols that read nothing while far more is published than
//! sockets take; they say so themselves, or a rule of the configuration file does. Beside them the
//! topic has no other subscriber.
//!
//! Expectation: all events are taken; then each subscriber reads some of them in order, the last
//! one at the end, without a gap notice.

use crate::support::peer::request;
use crate::support::{Protocol, Said, Server, Subscriber};

const EVENTS: usize = 6_000;

async fn reads_the_last_one(server: &Server, query: &str) {
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let head = request(protocol, &["quotes/EUR"], None).replacen(" HTTP", &format!("{query} HTTP"), 1);
        subscribers.push(Subscriber::request(server.data, protocol, &head).await);
    }
    let padding = "x".repeat(8_000);
    let line = |number: usize| format!("{{\"topic\":\"quotes/EUR\",\"data\":\"{number} {padding}\"}}\n");
    let lines: String = (1..=EVENTS).map(line).collect();
    let summary = server.answer(server.post("/publish").body(lines)).await.json();
    assert_eq!(summary["accepted"], EVENTS);
    for subscriber in &mut subscribers {
        let mut numbers: Vec<usize> = Vec::new();
        while numbers.last() != Some(&EVENTS) {
            match subscriber.next().await {
                Said::Event(event) => {
                    let (number, _) = event.text().split_once(' ').expect("a number and padding");
                    numbers.push(number.parse().expect("a number"));
                }
                Said::Alive(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(numbers.is_sorted_by(|before, after| before < after), "it never goes back");
        assert!(numbers.len() < EVENTS, "it was spared some");
    }
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        assert_eq!(server.counter(protocol, "overruns").await, 0, "{protocol:?}");
        assert_eq!(server.counter(protocol, "gaps").await, 0, "{protocol:?}");
    }
}

/// So little memory that a window for slow subscribers would fill it.
const FLAGS: [&str; 6] = ["--shards", "1", "--window-bytes-total-max", "96MiB", "--window-bytes-max", "6MiB"];

#[tokio::test]
async fn a_subscriber_may_ask_for_the_latest_alone() {
    let server = Server::start(&FLAGS);
    reads_the_last_one(&server, "&slow=latest").await;
}

#[tokio::test]
async fn a_rule_may_say_that_its_subscribers_get_the_latest_alone() {
    let path = std::env::temp_dir().join(format!("fanwave-latest-{}.toml", std::process::id()));
    std::fs::write(&path, "[[rule]]\nmatch = \"quotes/**\"\nslow = \"latest\"\n").expect("a temporary file");
    let server = Server::start(&[&FLAGS[..], &["--config", path.to_str().expect("UTF-8")]].concat());
    std::fs::remove_file(&path).expect("it was read");
    reads_the_last_one(&server, "").await;
}

#[tokio::test]
async fn a_rule_may_say_that_the_latest_is_of_each_key() {
    let path = std::env::temp_dir().join(format!("fanwave-latest-keys-{}.toml", std::process::id()));
    let rule = "[[rule]]\nmatch = \"quotes/*\"\nslow = \"latest\"\nconflate = \"key\"\n";
    std::fs::write(&path, rule).expect("a temporary file");
    let server = Server::start(&[&FLAGS[..], &["--config", path.to_str().expect("UTF-8")]].concat());
    std::fs::remove_file(&path).expect("it was read");
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        for name in ["quotes/EUR", "quotes/*"] {
            subscribers.push(Subscriber::connect(server.data, protocol, &[name]).await);
        }
    }
    let padding = "x".repeat(8_000);
    let line = |number: usize| {
        let key = ["bid", "ask", "size"][number % 3];
        format!("{{\"topic\":\"quotes/EUR\",\"key\":\"{key}\",\"data\":\"{number} {padding}\"}}\n")
    };
    let lines: String = (1..=EVENTS).map(line).collect();
    let summary = server.answer(server.post("/publish").body(lines)).await.json();
    assert_eq!(summary["accepted"], EVENTS);
    for subscriber in &mut subscribers {
        let mut numbers: Vec<usize> = Vec::new();
        while numbers.last() != Some(&EVENTS) {
            let event = subscriber.event().await;
            let (number, _) = event.text().split_once(' ').expect("a number and padding");
            numbers.push(number.parse().expect("a number"));
        }
        assert!(numbers.is_sorted_by(|before, after| before < after), "it never goes back");
        assert!(numbers.ends_with(&[EVENTS - 2, EVENTS - 1, EVENTS]), "the last one of each key");
        assert!(numbers.len() < EVENTS, "it was spared some");
    }
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        assert_eq!(server.counter(protocol, "gaps").await, 0, "{protocol:?}");
        assert!(server.counter(protocol, "conflated").await > 0, "{protocol:?}");
    }
}

//! Claim: a thousand subscribers that come back from ten thousand events ago get all of them from
//! the store, in order, while subscribers of other topics hardly notice.
//!
//! Set-up: a server with two shards and the usual limits; 10,000 events on one topic, of which
//! windows hold 1,024. A thousand event streams name the event before all of these at once. On a
//! thread of its own somebody publishes to another topic and waits for each event, before and
//! meanwhile.
//!
//! Expectation: every event once and in order, no gap. How long it took, and how long single live
//! events took in calm and beside it, is printed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, Protocol, Scratch, Server, Subscriber, raise_descriptor_limit, until};

const SUBSCRIBERS: usize = 1_000;
const EVENTS: usize = 10_000;

/// Comes back after an event and reads as many as there are since; their data are their numbers.
async fn come_back(data: SocketAddr, after: String) {
    let mut socket = TcpStream::connect(data).await.expect("the server accepts");
    let head = format!("GET /sse/past HTTP/1.0\r\nHost: test\r\nLast-Event-ID: {after}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.expect("the server reads");
    let (mut text, mut next) = (Vec::new(), 0);
    let mut more = vec![0; 64 << 10];
    while next < EVENTS {
        let read = tokio::time::timeout(4 * PATIENCE, socket.read(&mut more)).await;
        let bytes = read.expect("something comes in time").expect("the connection stays");
        assert!(bytes > 0, "the stream ends after {next} events");
        text.extend_from_slice(&more[..bytes]);
        let mut used = 0;
        while let Some(end) = text[used..].iter().position(|byte| *byte == b'\n') {
            let line = std::str::from_utf8(&text[used..used + end]).expect("UTF-8");
            assert_ne!(line, "event: fanwave-gap", "nothing is missing");
            if let Some(number) = line.strip_prefix("data: ") {
                assert_eq!(number.parse(), Ok(next), "in order and once");
                next += 1;
            }
            used += end + 1;
        }
        text.drain(..used);
    }
}

/// Publishes one event after the other and waits for each, until it is told to stop. Their times,
/// shortest first.
async fn live(data: SocketAddr, control: SocketAddr, stop: impl Fn(usize) -> bool) -> Vec<Duration> {
    let mut subscriber = Subscriber::connect(data, Protocol::Sse, &["live"]).await;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
    let mut times = Vec::new();
    while !stop(times.len()) {
        let began = Instant::now();
        let url = format!("http://{control}/topics/live");
        let sent = client.post(url).body(times.len().to_string()).send().await.expect("an answer");
        assert_eq!(sent.status(), 200);
        assert_eq!(subscriber.text().await, times.len().to_string());
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times
}

fn told(times: &[Duration]) -> String {
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
    format!("p50 {:?}, p99 {:?}, most {:?}, of {}", at(50), at(99), at(100), times.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: tests/run --long"]
async fn a_thousand_come_back_from_ten_thousand_events_ago() {
    raise_descriptor_limit();
    let scratch = Scratch::new();
    let store = scratch.path("store").to_str().expect("a path in UTF-8").to_string();
    let server = Server::start(&["--shards", "2", "--data", &store]);
    let first = server.publish("past", "first").await;
    let body: String =
        (0..EVENTS).map(|number| format!("{{\"topic\":\"past\",\"data\":\"{number}\"}}\n")).collect();
    assert_eq!(server.answer(server.post("/publish").body(body)).await.status, 200);
    until("all events", async || {
        let stats = server.stats().await;
        let shards = stats["shards"].as_array().expect("shards").clone();
        shards.iter().all(|shard| shard["events"] == stats["hub"]["events"]).then_some(())
    })
    .await;
    let (data, control, over) = (server.data, server.control, Arc::<AtomicBool>::default());
    let calm = live(data, control, |events| events == 1_000).await;
    let is_over = over.clone();
    let beside = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let stop = move |events: usize| events > 100 && is_over.load(Ordering::Relaxed);
        runtime.expect("a runtime").block_on(live(data, control, stop))
    });
    let began = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..SUBSCRIBERS {
        all.spawn(come_back(data, first.id.clone()));
    }
    while let Some(back) = all.join_next().await {
        back.expect("each gets everything");
    }
    let took = began.elapsed();
    over.store(true, Ordering::Relaxed);
    let beside = beside.join().expect("live events come");
    let backfill = server.stats().await["totals"]["backfill"].clone();
    eprintln!("{SUBSCRIBERS} subscribers, {EVENTS} events back: {took:?}; {backfill}");
    eprintln!("live events in calm: {}", told(&calm));
    eprintln!("live events beside it: {}", told(&beside));
    assert_eq!(backfill["gaps"], 0);
    assert_eq!(backfill["completed"], SUBSCRIBERS);
}

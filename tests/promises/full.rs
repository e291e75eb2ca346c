//! Claim: who comes when the server is full is told so with 503 and Retry-After, and what was
//! accepted is kept.
//!
//! Set-up: a shard of few connections; a hub and shards with queues of one, flooded by concurrent
//! publishers.
//!
//! Expectation: the connection beyond the limit is refused and the others are served, a place that
//! becomes free can be taken, and a flood opens no more sockets than the shard has room for. Those
//! for whom the kernel has no descriptor are let in when it has some. Of the
//! flood of events, every one that was answered 200 reaches every subscriber once and in order of
//! its sequence, and none of those that were answered 503.

use std::sync::Arc;

use fanwave::config::limits::{ACCEPTS_ARMED, SOCKETS_SPARE};
use rustix::process::{Resource, Rlimit, getrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::{Protocol, Server, Subscriber, raise_descriptor_limit, until, within};

#[tokio::test]
async fn connections_beyond_the_limit_are_refused_until_a_place_is_free() {
    let server = Server::start(&["--shards", "1", "--connections-per-shard-max", "4"]);
    let mut subscribers = Vec::new();
    for number in 0..4 {
        let protocol = [Protocol::Sse, Protocol::WebSocket][number % 2];
        subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
    }
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let refused = exchange(server.data, request(protocol, &["t"], None).as_bytes()).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!((1..=4).contains(&refused.retry_after_s()), "{refused:?}");
        assert!(refused.line().contains("as many subscribers as it takes"));
    }
    server.await_closed("full", 2).await;
    let health = exchange(server.data, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(health.status, 200, "a full server is healthy");
    server.publish("t", "x").await;
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "x");
    }

    drop(subscribers.remove(0));
    server.await_subscribers("t", 1, 2).await;
    let mut next = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    server.publish("t", "y").await;
    assert_eq!(next.text().await, "y");
}

/// A status ends an `EventSource` for good (WHATWG HTML §9.2.3), so a server that is full only for
/// now gives none to a client that asks for an event stream by name.
#[tokio::test]
async fn an_event_stream_by_name_is_asked_to_come_back_and_keeps_its_id() {
    let by_name = |method: &str, accept: &str| {
        format!("{method} /sse/t HTTP/1.1\r\nHost: x\r\nLast-Event-ID: abc-7\r\n{accept}\r\n")
    };
    for (flags, retries) in [(&[][..], true), (&["--refuse-sse-with", "status"], false)] {
        let server =
            Server::start(&[&["--shards", "1", "--connections-per-shard-max", "1"][..], flags].concat());
        let _only = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
        let mut times = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let head = by_name("GET", "Accept: text/event-stream\r\n");
            let answer = exchange(server.data, head.as_bytes()).await;
            if !retries {
                assert_eq!(answer.status, 503, "{answer:?}");
                continue;
            }
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("Cache-Control"), Some("no-store"));
            assert_eq!(answer.header("Content-Type"), Some("text/event-stream"));
            let body = String::from_utf8(answer.body.clone()).expect("UTF-8");
            assert!(!body.contains("id:") && body.contains("\n: full: "), "{body:?}");
            let retry = body.strip_prefix("retry: ").and_then(|rest| rest.lines().next()).expect("a time");
            let retry: u32 = retry.parse().expect("milliseconds");
            assert!((1_000..5_000).contains(&retry), "{retry}");
            times.insert(retry);
        }
        assert!(!retries || times.len() > 4, "they come back at {} times", times.len());
        let others = [
            by_name("HEAD", "Accept: text/event-stream\r\n"),
            by_name("GET", "Accept: */*\r\n"),
            by_name("GET", ""),
        ];
        for head in others {
            assert_eq!(exchange(server.data, head.as_bytes()).await.status, 503, "{head}");
        }
        assert_eq!(server.closed("full").await, 8 + 3, "each is counted under its reason");
    }
}

#[tokio::test]
async fn a_shard_opens_no_more_plain_sockets_than_it_has_room_for() {
    raise_descriptor_limit();
    let flags = ["--shards", "1", "--connections-per-shard-max", "4", "--sockets", "plain"];
    let server = Server::start(&flags);
    let own = server.descriptors();
    let mut flood = Vec::new();
    for _ in 0..2 * SOCKETS_SPARE {
        let silent = TcpStream::connect(server.data).await;
        flood.push(silent.expect("the kernel's queue of connections has room"));
    }
    until("as many as the shard takes", async || {
        (server.descriptors() >= own + 4 + SOCKETS_SPARE).then_some(())
    })
    .await;
    // The shard answers this in a turn of its own: it has taken since whomever it would.
    server.stats().await;
    let control = 8;
    assert!(
        server.descriptors() <= own + 4 + SOCKETS_SPARE + control,
        "{} descriptors",
        server.descriptors()
    );
}

/// Those for whom the kernel has no descriptor wait in its queue. More than the accepts that
/// io_uring has armed, to which the limit of before applies.
#[tokio::test]
async fn newcomers_wait_while_descriptors_lack_and_lose_nothing() {
    raise_descriptor_limit();
    for egress in ["uring", "epoll"] {
        let server = Server::start(&["--shards", "1", "--sockets", "plain", "--egress", egress]);
        let failures = async || server.stats().await["totals"]["accept_failures"].as_u64().expect("a count");
        // The connection that asks is open from here on.
        assert_eq!(failures().await, 0);
        let all = getrlimit(Resource::Nofile);
        server.limit_descriptors(Rlimit { current: Some(3), ..all });
        let mut newcomers = JoinSet::new();
        for _ in 0..2 * ACCEPTS_ARMED {
            newcomers.spawn(Subscriber::connect(server.data, Protocol::Sse, &["t"]));
        }
        until("the kernel to refuse", async || (failures().await > 0).then_some(())).await;
        server.limit_descriptors(all);
        let subscribers = within("everybody to be let in", newcomers.join_all()).await;
        server.publish("t", "hello").await;
        for mut subscriber in subscribers {
            assert_eq!(subscriber.text().await, "hello", "{egress}");
        }
    }
}

const SUBSCRIBERS: usize = 300;
const PUBLISHERS: usize = 8;
/// Refusals after which the flood ends, and the events after which it ends without.
const REFUSALS: usize = 40;
const EVENTS_MAX: usize = 20_000;
const END: &str = "end";

async fn read_to_the_end(mut subscriber: Subscriber) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match subscriber.text().await {
            text if text == END => return seen,
            text => seen.push(text),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_refused_in_part_and_what_is_accepted_arrives() {
    let queues =
        ["--hub-queue-events-max", "1", "--shard-queue-batches-max", "1", "--window-events-max", "4"];
    // A reader that this machine lets wait must not overrun so small a window.
    let server = Arc::new(Server::start(&[&["--shards", "1", "--overrun", "close"][..], &queues].concat()));
    let mut readers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        let protocol = [Protocol::Sse, Protocol::WebSocket][number % 2];
        let subscriber = Subscriber::connect(server.data, protocol, &["t"]).await;
        readers.spawn(read_to_the_end(subscriber));
    }
    let refused = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut publishers = JoinSet::new();
    for publisher in 0..PUBLISHERS {
        publishers.spawn(flood(server.clone(), refused.clone(), publisher));
    }
    let mut accepted: Vec<(u64, String)> = publishers.join_all().await.concat();
    accepted.sort_unstable();
    let sequences = accepted.iter().map(|(sequence, _)| *sequence);
    assert!(sequences.eq(1..=accepted.len() as u64), "accepted events have gapless sequences");
    let count = refused.load(std::sync::atomic::Ordering::SeqCst);
    assert!(count >= REFUSALS, "{count} of the flood were refused, {} accepted", accepted.len());
    let stats = server.stats().await;
    assert_eq!(stats["hub"]["refused"]["full"], count);
    assert!(stats["hub"]["shard_queue_stalls"].as_u64() > Some(0));

    until("room for the last event", async || {
        (server.answer(server.post("/topics/t").body(END)).await.status == 200).then_some(())
    })
    .await;
    let expected: Vec<String> = accepted.into_iter().map(|(_, data)| data).collect();
    while let Some(seen) = readers.join_next().await {
        assert_eq!(seen.expect("every subscriber reads to the end"), expected);
    }
}

/// Publishes until enough was refused, and gives what was accepted.
async fn flood(
    server: Arc<Server>,
    refused: Arc<std::sync::atomic::AtomicUsize>,
    publisher: usize,
) -> Vec<(u64, String)> {
    use std::sync::atomic::Ordering;

    let mut accepted = Vec::new();
    for number in 0..EVENTS_MAX / PUBLISHERS {
        if refused.load(Ordering::SeqCst) >= REFUSALS {
            break;
        }
        let data = format!("{publisher}/{number}");
        let answer = server.answer(server.post("/topics/t").body(data.clone())).await;
        match answer.status {
            200 => accepted.push((answer.json()["sequence"].as_u64().expect("a sequence"), data)),
            503 => {
                assert_eq!(answer.retry_after.as_deref(), Some("1"), "{answer:?}");
                assert!(answer.error().contains("full"), "{answer:?}");
                refused.fetch_add(1, Ordering::SeqCst);
            }
            _ => panic!("{answer:?}"),
        }
    }
    accepted
}

/// The operator of an overloaded server is answered in full: questions do not wait behind the
/// events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stats_are_whole_while_publishers_are_refused() {
    let queues =
        ["--hub-queue-events-max", "8", "--shard-queue-batches-max", "1", "--window-events-max", "4"];
    let server = Arc::new(Server::start(&[&["--shards", "2"][..], &queues].concat()));
    let mut readers = JoinSet::new();
    for number in 0..100 {
        let protocol = [Protocol::Sse, Protocol::WebSocket][number % 2];
        let mut subscriber = TcpStream::connect(server.data).await.expect("the server listens");
        subscriber.write_all(request(protocol, &["t"], None).as_bytes()).await.expect("room for a head");
        // Until it is cut: one that this machine lets wait overruns so small a window.
        readers.spawn(async move { drop(tokio::io::copy(&mut subscriber, &mut tokio::io::sink()).await) });
    }
    let line = format!("{{\"topic\":\"t\",\"data\":\"{}\"}}\n", "x".repeat(100_000));
    let mut publishers = JoinSet::new();
    for _ in 0..2 {
        let line = bytes::Bytes::from(line.clone());
        let lines = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(line.clone()));
        let stream = server.post("/publish").body(reqwest::Body::wrap_stream(lines));
        publishers.spawn(async move { drop(stream.send().await) });
    }
    for publisher in 0..PUBLISHERS {
        let server = server.clone();
        publishers.spawn(async move {
            loop {
                server.answer(server.post("/topics/t").body(publisher.to_string())).await;
            }
        });
    }
    let (mut behind, mut refused) = (0, 0);
    until("twenty answers past full queues, with publishers refused", async || {
        let stats = server.stats().await;
        let shards = stats["shards"].as_array().expect("shards");
        assert_eq!(shards.len(), 2, "{stats}");
        assert!(shards.iter().all(|shard| shard["state"] == "ok"), "{stats}");
        assert!(stats["totals"].is_object(), "{stats}");
        let listing = server.get("/topics").await.json();
        assert!(listing.get("unavailable").is_none(), "{listing}");
        assert_eq!(listing["topics"][0]["topic"], "t", "{listing}");
        behind += usize::from(shards.iter().any(|shard| shard["queue"].as_u64() > Some(0)));
        refused = stats["hub"]["refused"]["full"].as_u64().expect("a count");
        let done = behind >= 20 && refused >= REFUSALS as u64;
        if done || behind == 10 {
            let metrics = server.get("/metrics").await.body;
            for shard in 0..2 {
                let up = format!("fanwave_shard_up{{shard=\"{shard}\"}} 1");
                assert!(metrics.lines().any(|line| line == up), "no {up:?} in {metrics}");
            }
        }
        done.then_some(())
    })
    .await;
    publishers.shutdown().await;
    readers.shutdown().await;
}

//! Claim: a server that follows another one gives its events under its ids: a subscriber may leave
//! one relay and go on at another, and loses nothing and gets nothing twice, also when a relay dies.
//!
//! Set-up: an origin and relays, all of them processes. The origin asks for tokens, or begins anew;
//! a relay is killed while subscribers move between two of them.
//!
//! Expectation: events as at the origin, their ids included. What a relay cannot know is a gap.
//! Publishers hear where to go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, RwLock, broadcast};
use tokio_tungstenite::accept_hdr_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};

use super::jetstream_cluster::{Ledger, Nodes, publish, roam};
use super::tokens::{SECRET, granting};
use crate::support::{Protocol, Said, Scratch, Server, Subscriber, until, within};

/// A server that follows the origin.
fn relay(origin: &Server, flags: &[&str]) -> Server {
    let source = format!("relay://{}", origin.data);
    Server::start(&[&["--source", &source, "--shards", "2"], flags].concat())
}

async fn sse(server: &Server, topics: &[&str], after: Option<&str>) -> Subscriber {
    Subscriber::resume(server.data, Protocol::Sse, topics, after).await
}

#[tokio::test]
async fn events_are_the_same_at_the_origin_and_at_a_relay() {
    let origin = Server::start(&["--shards", "2"]);
    let first = origin.publish("news/a", "before").await;
    let edge = relay(&origin, &["--relay-match", "news/**,solo"]);
    let topics = ["news/a", "news/b", "solo"];
    let (mut here, mut there) = (sse(&origin, &topics, None).await, sse(&edge, &topics, None).await);
    origin.publish_with("news/a", "?event=x&id=mine&retry=250&key=k", "named\nlines").await;
    let binary = origin.post("/topics/news/b").header("content-type", "application/octet-stream");
    assert_eq!(origin.answer(binary.body(&b"\x00\xff"[..])).await.status, 200);
    origin.publish("other", "not followed").await;
    let last = origin.publish("solo", "last").await;
    for _ in 0..3 {
        assert_eq!(there.event().await, here.event().await);
    }
    // What was before the relay came is its history.
    let mut resumed = sse(&edge, &topics, Some(&first.id)).await;
    assert_eq!(resumed.event().await.id.as_deref(), Some("mine"));
    assert_eq!(resumed.texts(2).await, ["AP8=", "last"], "an event stream carries base64");
    let text = edge.get("/topics/solo").await.json();
    assert_eq!(text["last_id"], serde_json::json!(last.id));
    let source = edge.stats().await["source"].clone();
    assert_eq!((&source["kind"], &source["connected"]), (&"relay".into(), &true.into()), "{source}");
}

#[tokio::test]
async fn who_publishes_at_a_relay_hears_where_to_go() {
    let origin = Server::start(&["--shards", "1"]);
    let edge = relay(&origin, &["--client-publish", "**"]);
    for request in [edge.post("/topics/t").body("x"), edge.delete("/topics/t")] {
        let answer = edge.answer(request).await;
        let to = format!("this server follows relay://{}: publish there", origin.data);
        assert_eq!((answer.status, answer.error()), (421, to));
    }
    let stats = edge.stats().await;
    assert_eq!(stats["hub"]["refused"]["follows"], 2, "{stats}");
}

#[tokio::test]
async fn an_origin_that_begins_anew_is_a_gap_and_another_epoch() {
    let origin = Server::start(&["--shards", "1"]);
    let (data, control) = (origin.data, origin.control);
    let edge = relay(&origin, &[]);
    let mut subscriber = sse(&edge, &["t"], None).await;
    let old = origin.publish("t", "old").await;
    assert_eq!(subscriber.event().await.id, Some(old.id.clone()));
    origin.signal(Signal::KILL);
    drop(origin);
    let origin = Server::start_on(data, control, &["--shards", "1"]);
    assert!(matches!(subscriber.news().await, Said::Gap(_)), "what came meanwhile may be lost");
    let new = origin.publish("t", "new").await;
    assert_eq!(subscriber.event().await.id, Some(new.id.clone()));
    assert_ne!(new.id.split_once('-').map(|id| id.0), old.id.split_once('-').map(|id| id.0));
}

/// An origin of the test's own: it says these words to each connection that asks for a history, and
/// stands at the last of these sequences.
async fn origin_that_says(words: Vec<String>, last: u64) -> SocketAddr {
    origin_that_says_later(words, last).await.0
}

/// The same, and where to put what it says later to those who asked for a history.
async fn origin_that_says_later(words: Vec<String>, last: u64) -> (SocketAddr, broadcast::Sender<String>) {
    let (says, _) = broadcast::channel(16);
    let later = says.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (words, mut later) = (words.clone(), later.subscribe());
            tokio::spawn(async move {
                let mut asks_history = false;
                #[allow(clippy::result_large_err, reason = "the library's type")]
                let agree = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
                    asks_history = request.uri().query().is_some_and(|query| query.contains("last="));
                    let protocol = request.headers()["sec-websocket-protocol"].clone();
                    response.headers_mut().insert("sec-websocket-protocol", protocol);
                    Ok(response)
                };
                let mut socket = accept_hdr_async(stream, agree).await.expect("a handshake");
                let mut first = words.into_iter().filter(|_| asks_history);
                loop {
                    let message = tokio::select! {
                        Some(Ok(message)) = socket.next() => message,
                        Ok(word) = later.recv(), if asks_history => {
                            socket.send(Message::text(word)).await.expect("it is there");
                            continue;
                        }
                        else => return,
                    };
                    let Message::Text(text) = message else { continue };
                    let asked: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                    for word in first.by_ref() {
                        socket.send(Message::text(word)).await.expect("it is there");
                    }
                    let ok = format!(r#"{{"ref":{},"ok":{{"after":"1b2c3d4e5f6g7-{last}"}}}}"#, asked["ref"]);
                    let _ = socket.send(Message::text(ok)).await;
                }
            });
        }
    });
    (address, says)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_of_a_history_is_no_event_is_a_gap_of_its_topic_alone_and_a_gap_is_one_of_all() {
    let event = |topic: &str, sequence: u64, data: &str| {
        format!(r#"{{"topic":"{topic}","id":"1b2c3d4e5f6g7-{sequence}","time":9,{data}}}"#)
    };
    let (text, none) = (r#""data":"x""#, r#""base64":"!""#);
    let words = vec![event("t", 5, text), event("u", 6, text), event("t", 7, none), event("t", 8, text)];
    let origin = origin_that_says(words, 8).await;
    let source = format!("relay://{origin}");
    let edge = Server::start(&["--source", &source, "--shards", "1"]);
    let id = |sequence: u64| format!("1b2c3d4e5f6g7-{sequence}");
    let mut lacks = sse(&edge, &["t"], Some(&id(5))).await;
    let Said::Gap(gap) = lacks.news().await else { panic!("the seventh is no event here") };
    assert_eq!(gap["topics"], serde_json::json!(["t"]));
    assert_eq!(lacks.event().await.id, Some(id(8)));
    let mut whole = sse(&edge, &["t"], Some(&id(7))).await;
    assert_eq!(whole.event().await.id, Some(id(8)), "it has all before that");
    let mut other = sse(&edge, &["u"], Some(&id(5))).await;
    assert_eq!(other.event().await.id, Some(id(6)), "its topic lacks nothing");
    assert_eq!(edge.stats().await["hub"]["refused"]["foreign"], 1);

    let gap = r#"{"gap":{"after":null,"reason":"expired","topics":["t"]}}"#.to_string();
    let words = vec![event("t", 5, text), event("u", 6, text), gap, event("t", 8, text)];
    let source = format!("relay://{}", origin_that_says(words, 8).await);
    let edge = Server::start(&["--source", &source, "--shards", "1"]);
    for topic in ["t", "u"] {
        let mut lacks = sse(&edge, &[topic], Some(&id(6))).await;
        assert!(matches!(lacks.news().await, Said::Gap(_)), "{topic} may lack the seventh");
    }
    let mut whole = sse(&edge, &["t"], Some(&id(7))).await;
    assert_eq!(whole.event().await.id, Some(id(8)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_none_at_a_relay_is_a_gap_of_its_topic_alone_while_others_go_on() {
    let origin = Server::start(&["--shards", "1"]);
    let first = origin.publish("n/t", "zero").await;
    let edge = relay(&origin, &["--message-bytes-max", "1000"]);
    let mut lacks = sse(&edge, &["n/t"], None).await;
    let mut both = sse(&edge, &["n/t", "n/u"], None).await;
    let mut other = sse(&edge, &["n/u"], None).await;
    for round in ["before", "after"] {
        origin.publish("n/t", round).await;
        let last = origin.publish("n/u", round).await;
        assert_eq!((lacks.text().await, other.text().await), (round.into(), round.into()), "no gap in u");
        assert_eq!(both.texts(2).await, [round, round]);
        if round == "before" {
            origin.publish("n/t", "x".repeat(200_000)).await;
            for subscriber in [&mut lacks, &mut both] {
                let Said::Gap(gap) = subscriber.news().await else { panic!("it is too large here") };
                assert_eq!(gap["topics"], serde_json::json!(["n/t"]));
            }
            let mut back = sse(&edge, &["n/u"], Some(&first.id)).await;
            assert_eq!(back.event().await.id, Some(last.id), "its topic lacks nothing");
            let mut back = sse(&edge, &["n/t", "n/u"], Some(&first.id)).await;
            let Said::Gap(gap) = back.news().await else { panic!("it comes from before") };
            assert_eq!(gap["topics"], serde_json::json!(["n/t"]));
            assert_eq!(back.texts(2).await, [round, round], "all that is here comes");
        }
    }
    let stats = edge.stats().await;
    assert_eq!((&stats["hub"]["refused"]["too_large"], &stats["source"]["holes"]), (&1.into(), &1.into()));
}

/// A later version may know topics that are none here. A pattern may have had it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_topic_is_none_at_a_relay_is_a_gap_of_all() {
    let event = |topic: &str, sequence: u64| {
        format!(r#"{{"topic":"{topic}","id":"1b2c3d4e5f6g7-{sequence}","time":9,"data":"x"}}"#)
    };
    let (origin, says) = origin_that_says_later(vec![event("t", 5)], 5).await;
    let edge = Server::start(&["--source", &format!("relay://{origin}"), "--shards", "1"]);
    let mut here = sse(&edge, &["u"], None).await;
    for (topic, sequence) in [("n/*".to_string(), 6), ("long".repeat(100), 8)] {
        says.send(event(&topic, sequence)).expect("the relay is there");
        assert!(matches!(here.news().await, Said::Gap(_)), "for {topic}");
        says.send(event("u", sequence + 1)).expect("the relay is there");
        assert_eq!(here.event().await.id, Some(format!("1b2c3d4e5f6g7-{}", sequence + 1)));
    }
}

#[tokio::test]
async fn a_relay_brings_its_token_and_one_that_has_none_does_not_start() {
    let scratch = Scratch::new();
    let secret = scratch.write("secret", SECRET);
    let origin = Server::start(&["--auth-hs256-file", &secret, "--shards", "1"]);
    let source = format!("relay://{}", origin.data);
    let token = scratch.write("token", &granting(&["news/**"], &["news/**"], 600));
    let flags = ["--source", &source, "--relay-match", "news/**", "--relay-token-file", &token];
    let edge = Server::start(&flags);
    let mut subscriber = sse(&edge, &["news/a"], None).await;
    let post = origin.post("/topics/news/a").bearer_auth(granting(&[], &["news/**"], 600)).body("in");
    assert_eq!(origin.answer(post).await.status, 200);
    assert_eq!(subscriber.text().await, "in");
    for (flags, code, cause) in [
        (&flags[..4], 1, "401"),
        (&["--source", &source, "--relay-token-file", &token][..], 1, "403"),
        (&["--source", &source, "--nats-stream", "x"][..], 2, "--nats-stream needs"),
        (&["--relay-match", "a"][..], 2, "--relay-match needs"),
    ] {
        let refused = Command::new(env!("CARGO_BIN_EXE_fanwave"))
            .args(["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"])
            .args(flags)
            .env_clear()
            .stdin(Stdio::null())
            .output();
        let refused = refused.expect("the program runs");
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(code), "{flags:?}: {stderr}");
        assert!(stderr.contains(cause), "{flags:?}: {stderr}");
    }
}

/// Subscribers that move between two relays of one origin, while one of these is killed and comes
/// back, get each event once and in order. Returns the number of events.
pub async fn roamed(movers: u64, events: usize, moves_wanted: usize) -> usize {
    let origin = Server::start(&["--shards", "1"]);
    let relays = vec![relay(&origin, &[]), relay(&origin, &[])];
    let source = format!("relay://{}", origin.data);
    let (origin, relays): (Nodes, Nodes) =
        (Arc::new(RwLock::new(vec![origin])), Arc::new(RwLock::new(relays)));
    let (moves, over, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default(), Arc::default());
    let ledger: Ledger = Arc::new(Mutex::new(BTreeMap::new()));
    let publishers: Vec<_> = (0..2)
        .map(|number| tokio::spawn(publish(origin.clone(), ledger.clone(), Arc::clone(&stop), number)))
        .collect();
    let movers: Vec<_> = (0..movers)
        .map(|seed| {
            tokio::spawn(roam(relays.clone(), moves.clone(), over.clone(), SmallRng::seed_from_u64(seed)))
        })
        .collect();
    for round in 0..2 {
        let (before, moved) = (ledger.lock().await.len(), moves.load(Ordering::Relaxed));
        until("more events and moves", async || {
            let is_done = ledger.lock().await.len() >= before + events / 2
                && moves.load(Ordering::Relaxed) >= moved + moves_wanted / 2;
            is_done.then_some(())
        })
        .await;
        let dead = {
            let mut relays = relays.write().await;
            let next = Server::start(&["--source", &source, "--shards", "2"]);
            std::mem::replace(&mut relays[round], next)
        };
        dead.signal(Signal::KILL);
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("a publisher ends well");
    }
    over.store(true, Ordering::Relaxed);
    let last = origin.read().await[0].publish("t", "last").await;
    let mut ledger = ledger.lock().await.clone();
    ledger.insert(last.sequence, "last".to_string());
    for mover in movers {
        let got = within("the last event on each relay", mover).await.expect("no mover panics");
        let first = got.first().expect("something").0;
        let expected: Vec<(u64, String)> =
            ledger.range(first..).map(|(sequence, data)| (*sequence, data.clone())).collect();
        assert!(got == expected, "each event once, in order: {} of {}", got.len(), expected.len());
    }
    ledger.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_move_between_relays_lose_nothing_when_one_dies() {
    assert!(roamed(10, 200, 60).await > 200);
}

//! Claim: the control API takes events in every form, says what is wrong with the others and where,
//! and tells what the server is doing.
//!
//! Set-up: publishes with every option and with every mistake; the read-only endpoints; a Unix
//! socket.
//!
//! Expectation: what is accepted reaches a subscriber as published. What is refused is answered
//! with its status and `{"error":"one line"}`, counted under its label, and reaches nobody.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::raw::exchange;
use crate::support::server::{answer, client};
use crate::support::subscriber::Event;
use crate::support::{Protocol, Server, Subscriber};

#[tokio::test]
async fn an_event_arrives_with_name_id_and_retry() {
    let server = Server::start(&["--shards", "2"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let query = "?event=gr%C3%BC%C3%9Fe&id=no+1%2B&retry=5000";
    let accepted = server.publish_with("t", query, "one\ntwo\r\nthree\rfour").await;
    assert_eq!((accepted.id.as_str(), accepted.sequence), ("no 1+", 1));
    let expected = Event {
        id: Some("no 1+".into()),
        name: Some("grüße".into()),
        retry: Some(5_000),
        data: b"one\ntwo\nthree\nfour".to_vec(),
        binary: false,
    };
    assert_eq!(subscriber.event().await, expected, "every line break becomes a line of data");
    let accepted = server.publish("t", "").await;
    assert_eq!(accepted.sequence, 2);
    let empty = Event { id: Some(accepted.id), ..Event::default() };
    assert_eq!(subscriber.event().await, empty, "an event may be empty");
}

#[tokio::test]
async fn what_is_wrong_with_a_publish_is_told_and_counted() {
    let server = Server::start(&["--shards", "1", "--message-bytes-max", "1000"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let own = server.publish("other", "x").await.id;
    let own = format!("/topics/t?id={own}");
    let large = "x".repeat(1_001);
    let long = format!("/topics/{}", "t".repeat(256));
    let cases: [(&str, &[u8], u16, &str, &str); 21] = [
        ("/topics/", b"x", 400, "bad_topic", "empty"),
        (&long, b"x", 400, "bad_topic", "256 bytes"),
        ("/topics/a%0Ab", b"x", 400, "bad_topic", "byte 1"),
        ("/topics/%FF", b"x", 400, "bad_topic", "UTF-8"),
        ("/topics/%zz", b"x", 400, "bad_topic", "bad percent escape"),
        ("/topics/t?id=%zz", b"x", 400, "bad_query", "bad percent escape"),
        ("/topics/t?event=%", b"x", 400, "bad_query", "bad percent escape"),
        ("/topics/t?id=a%00b", b"x", 400, "bad_id", "byte 1"),
        ("/topics/t?id=a%0Ab", b"x", 400, "bad_id", "line break"),
        ("/topics/t?id=a%0Db", b"x", 400, "bad_id", "line break"),
        ("/topics/t?id=", b"x", 400, "bad_id", "empty"),
        (&own, b"x", 400, "reserved_id", "own ids"),
        ("/topics/t?id=23z405fz79tds-0", b"x", 400, "reserved_id", "<epoch>-<number>"),
        ("/topics/t?event=fanwave-gap", b"x", 400, "reserved_event", "fanwave-gap"),
        ("/topics/t?event=a%0Ab", b"x", 400, "bad_event", "event"),
        ("/topics/t?retry=soon", b"x", 400, "bad_retry", "soon"),
        ("/topics/t?retry=-1", b"x", 400, "bad_retry", "-1"),
        ("/topics/t?evnt=x", b"x", 400, "bad_query", "evnt"),
        ("/topics/t?id=a&id=b", b"x", 400, "bad_query", "twice"),
        ("/topics/t", b"ab\xffc", 400, "not_utf8", "byte 2"),
        ("/topics/t", large.as_bytes(), 413, "too_large", "1001 bytes"),
    ];
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (path, body, status, label, part) in cases {
        let refused = server.answer(server.post(path).body(body.to_vec())).await;
        assert_eq!(refused.status, status, "{path}: {refused:?}");
        assert!(refused.error().contains(part), "{path}: no {part:?} in {refused:?}");
        assert_eq!(refused.retry_after, None, "{path}: a retry does not help");
        *counts.entry(label).or_default() += 1;
    }
    let stats = server.stats().await;
    for (label, count) in &counts {
        assert_eq!(stats["hub"]["refused"][label], *count, "{label}");
    }
    let refused = stats["hub"]["refused"].as_object().expect("by label");
    assert_eq!(refused.values().filter_map(Value::as_u64).sum::<u64>(), cases.len() as u64);
    let largest = "x".repeat(1_000);
    assert_eq!(server.publish("t", largest.clone()).await.sequence, 2, "refused events get no sequence");
    assert_eq!(subscriber.text().await, largest, "what was refused reaches nobody");
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_refused() {
    let server = Server::start(&["--shards", "1"]);
    for path in ["/nothing", "/topic/t", "/publish/t", "/sse/t"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
        assert!(server.get(path).await.error().contains(path));
    }
    for path in ["/publish"] {
        assert_eq!(server.get(path).await.status, 405, "{path}");
    }
    for path in ["/stats", "/topics", "/healthz"] {
        assert_eq!(server.answer(server.post(path)).await.status, 405, "{path}");
    }
    assert_eq!(server.get("/stats?x=1").await.status, 400);
    assert_eq!(server.get("/topics?limit=0").await.status, 400);
    let unheard = server.get("/topics/unheard").await;
    assert_eq!(unheard.status, 404);
    assert!(unheard.error().contains("unheard"));
    let health = server.get("/healthz").await;
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let help = server.get("/").await;
    assert!(help.body.contains("POST /topics/TOPIC"));
    for url in
        [format!("http://{}/topics/news\n", server.control), format!("http://{}/sse/news\n", server.data)]
    {
        assert!(help.body.contains(&url), "no {url:?} in {}", help.body);
    }
    let refused = &server.stats().await["hub"]["refused"];
    let counts = ["unknown_path", "wrong_method", "bad_query"].map(|label| refused[label].as_u64());
    assert_eq!(counts, [Some(8), Some(4), Some(2)], "{refused}");
}

/// Heads that no route sees get an answer of the same kind.
#[tokio::test]
async fn a_head_that_is_no_request_is_told_why_and_counted() {
    let server = Server::start(&["--shards", "1", "--handshake-bytes-max", "1000"]);
    let long = format!("POST /topics/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "t".repeat(1_000));
    let large = format!("GET /stats HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(1_000));
    for (head, status, label, part) in [
        ("POST /topics/a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_head", "malformed"),
        ("GET /stats HTTP/1.1\r\nHost : x\r\n\r\n", 400, "bad_head", "header"),
        (&long, 414, "target_too_long", "too long"),
        (&large, 431, "head_too_large", "1000 bytes"),
    ] {
        let answer = exchange(server.control, head.as_bytes()).await;
        assert_eq!(answer.status, status, "{head}");
        assert_eq!(answer.header("Content-Type"), Some("application/json"), "{head}");
        let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert!(body["error"].as_str().is_some_and(|error| error.contains(part)), "no {part:?} in {body}");
        let refused = &server.stats().await["hub"]["refused"];
        assert!(refused[label].as_u64() > Some(0), "{label}: {refused}");
    }
}

#[tokio::test]
async fn topics_tell_subscribers_and_window() {
    let server = Server::start(&["--shards", "2"]);
    let _sse = Subscriber::connect(server.data, Protocol::Sse, &["a", "b"]).await;
    let _websocket = Subscriber::connect(server.data, Protocol::WebSocket, &["a"]).await;
    server.publish("a", "12345").await;
    let last = server.publish_with("a", "?id=mine", "123").await;
    server.publish("räume/1", "x").await;
    server.await_subscribers("a", 1, 1).await;
    let mut view = server.get("/topics/a").await.json();
    let held = view["window"]["bytes"].take();
    assert!(held.as_u64() >= Some(14), "a window counts what its events cost: {held}");
    let expected = json!({
        "topic": "a",
        "subscribers": { "sse": 1, "websocket": 1 },
        "last_id": "mine",
        "sequence": last.sequence,
        "published": { "events": 2, "bytes": 14 },
        "window": { "events": 2, "bytes": null },
    });
    assert_eq!(view, expected);
    let silent = server.get("/topics/b").await.json();
    assert_eq!((&silent["last_id"], &silent["subscribers"]["sse"]), (&Value::Null, &1.into()));
    assert_eq!(server.get("/topics/r%C3%A4ume/1").await.json()["topic"], "räume/1");

    let names = |page: &Value| -> Vec<String> {
        let topics = page["topics"].as_array().expect("a list").iter();
        topics.map(|topic| topic["topic"].as_str().expect("a name").to_string()).collect()
    };
    let all = server.get("/topics").await.json();
    assert_eq!(names(&all), ["a", "b", "räume/1"]);
    assert!(all.get("next").is_none());
    let first = server.get("/topics?limit=2").await.json();
    assert_eq!((names(&first), &first["next"]), (vec!["a".to_string(), "b".into()], &"b".into()));
    let second = server.get("/topics?limit=2&after=b").await.json();
    assert_eq!((names(&second), second.get("next")), (vec!["räume/1".to_string()], None));
}

#[tokio::test]
async fn stats_add_up() {
    let server = Server::start(&["--shards", "2"]);
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket, Protocol::Sse, Protocol::WebSocket] {
        subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
    }
    for number in 0..10 {
        server.publish("t", number.to_string()).await;
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.text().await, number.to_string());
        }
    }
    // A send is counted when its completion is reaped, which may be after its bytes were read.
    let stats = crate::support::until("all frames to be counted", async || {
        let stats = server.stats().await;
        let frames = |label: &str| stats["totals"]["formats"][label]["frames"].as_u64();
        (frames("sse") == Some(20) && frames("websocket") == Some(20)).then_some(stats)
    })
    .await;
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&stats["hub"]["events"], &stats["hub"]["sequence"]), (&10.into(), &10.into()));
    let shards = stats["shards"].as_array().expect("a list");
    assert_eq!(shards.len(), 2);
    let sum = |name: &str| shards.iter().filter_map(|shard| shard[name].as_u64()).sum::<u64>();
    assert_eq!((sum("connections"), sum("accepted")), (4, 4));
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!((&shard["shard"], &shard["state"]), (&number.into(), &"ok".into()));
        assert_eq!(shard["events"], 10, "every shard gets every event");
        let latency = &shard["latency_us"]["intake_to_shard"];
        assert_eq!(latency["count"], 10);
        assert!(latency["p50"].as_f64() <= latency["p99"].as_f64());
        assert!(latency["p99"].as_f64() <= latency["max"].as_f64());
    }
    let totals = &stats["totals"];
    for label in ["sse", "websocket"] {
        let counters = &totals["formats"][label];
        assert_eq!((&counters["connections"], &counters["opened"]), (&2.into(), &2.into()));
        assert!(counters["sends"].as_u64() >= Some(20), "{counters}");
        assert!(counters["bytes"].as_u64() > Some(20), "{counters}");
        assert_eq!(totals["latency_us"]["intake_to_written"][label]["count"], 20);
    }
    assert_eq!(totals["window"]["events"], 10, "shards share their windows");
}

#[tokio::test]
async fn a_unix_socket_carries_the_control_api() {
    let directory = std::env::temp_dir().join(format!("fanwave-promises-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let path = directory.join("control.sock");
    let address = format!("unix:{}", path.display());
    // A socket file that a dead server left behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket file"));
    let server = Server::start(&["--shards", "1", "--control", &address]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let unix = client(reqwest::Client::builder().unix_socket(path.as_path()));
    let accepted = answer(unix.post("http://localhost/topics/t").body("over a file")).await;
    assert_eq!(accepted.status, 200, "{accepted:?}");
    assert_eq!(subscriber.text().await, "over a file");
    let health = answer(unix.get("http://localhost/healthz")).await;
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let help = answer(unix.get("http://localhost/")).await.body;
    let command = format!("curl --unix-socket {} -d 'hello' http://localhost/topics/news\n", path.display());
    assert!(help.contains(&command), "no {command:?} in {help}");
    drop(server);
    std::fs::remove_dir_all(&directory).expect("our own directory");
}

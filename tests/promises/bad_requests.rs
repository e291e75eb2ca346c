//! Claim: every bad request gets its status and one line of reason, is counted under its
//! CloseReason, and touches no other connection.
//!
//! Set-up: a table of requests on bare sockets: malformed, oversized, truncated, slow, on wrong
//! paths, with wrong methods, headers, topics and ids. A healthy subscriber listens all the while.
//!
//! Expectation: the status of the table, `text/plain` with one line, then the end of the
//! connection; the counters of `GET /stats` add up to the table; the healthy subscriber gets an
//! event after each.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::{RawAnswer, exchange, exchange_bytes, rest};
use crate::support::{Protocol, Server, Subscriber, until, within};

/// One bad request: what it is, its bytes, the status that it gets, the reason under which it is
/// counted.
type Case = (&'static str, Vec<u8>, u16, &'static str);

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").into()
}

/// An upgrade that is right but for what `change` does to it.
fn upgrade(change: impl Fn(&str) -> String) -> Vec<u8> {
    let right = "GET /ws/t HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let changed = change(right);
    assert_ne!(changed, right);
    changed.into()
}

fn malformed() -> Vec<Case> {
    let bad = |what, bytes: &[u8]| (what, bytes.to_vec(), 400, "bad_request");
    vec![
        bad("no request line", b"hello\r\n\r\n"),
        bad("no version", b"GET /sse/t\r\n\r\n"),
        bad("another version", b"GET /sse/t HTTP/3.0\r\nHost: x\r\n\r\n"),
        bad("half a preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n"),
        bad("a TLS client", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 and so on"),
        bad("a NUL in the target", b"GET /sse/\0 HTTP/1.1\r\nHost: x\r\n\r\n"),
        bad("a space in a field name", b"GET /sse/t HTTP/1.1\r\nHo st: x\r\n\r\n"),
        bad("a control character in a field value", b"GET /sse/t HTTP/1.1\r\nHost: x\x01\r\n\r\n"),
        bad("no Host", b"GET /sse/t HTTP/1.1\r\n\r\n"),
        bad("two Hosts", b"GET /sse/t HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
        bad(
            "a Content-Length that is none",
            b"GET /sse/t HTTP/1.1\r\nHost: x\r\nContent-Length: one\r\n\r\n",
        ),
        bad("a negative Content-Length", b"GET /sse/t HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
        bad("a fragment", b"GET /sse/t#x HTTP/1.1\r\nHost: x\r\n\r\n"),
        bad("a bracket that must be escaped", b"GET /sse/<t> HTTP/1.1\r\nHost: x\r\n\r\n"),
        bad("a backtick that must be escaped", b"GET /sse/`t HTTP/1.1\r\nHost: x\r\n\r\n"),
        bad("a Host that is none", b"GET /sse/t HTTP/1.1\r\nHost: u@h\r\n\r\n"),
    ]
}

fn oversized() -> Vec<Case> {
    let field = format!("GET /sse/t HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(2_000));
    let fields = format!("GET /sse/t HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(70));
    let target = get(&format!("/sse/{}", "t".repeat(2_000)));
    let endless = [b"GET /sse/".as_slice(), &[b'a'; 4_000]].concat();
    let post = b"GET /sse/t HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".to_vec();
    let chunked =
        b"GET /sse/t HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    vec![
        ("a head that is too large", field.into(), 431, "head_too_large"),
        ("too many fields", fields.into(), 431, "head_too_large"),
        ("a target that is too long", target, 414, "target_too_long"),
        ("a request line without end", endless, 414, "target_too_long"),
        ("a body", post, 413, "body_not_allowed"),
        ("a chunked body", chunked.to_vec(), 413, "body_not_allowed"),
    ]
}

fn wrong() -> Vec<Case> {
    let method = |method: &str| format!("{method} /sse/t HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    let accept = b"GET /sse/t HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\n\r\n".to_vec();
    let none = b"GET /sse/t HTTP/1.1\r\nHost: x\r\nAccept: */*, text/event-stream;q=0\r\n\r\n".to_vec();
    vec![
        ("an unknown path", get("/nowhere"), 404, "not_found"),
        ("a path that begins like ours", get("/ssex/t"), 404, "not_found"),
        ("another case", get("/SSE/t"), 404, "not_found"),
        ("a path of the control plane", get("/stats"), 404, "not_found"),
        ("POST", method("POST"), 405, "method_not_allowed"),
        ("an invented method", method("SUBSCRIBE"), 405, "method_not_allowed"),
        ("a client of JSON", accept, 406, "not_acceptable"),
        ("a client of all but event streams", none, 406, "not_acceptable"),
        ("a WebSocket path without upgrade", get("/ws/t"), 426, "upgrade_required"),
        ("another upgrade", upgrade(|head| head.replace("websocket\r", "h2c\r")), 426, "upgrade_required"),
        ("no Connection: Upgrade", upgrade(|head| head.replace(", Upgrade", "")), 426, "upgrade_required"),
        ("another version", upgrade(|head| head.replace(": 13", ": 8")), 426, "upgrade_required"),
        ("no key", upgrade(|head| head.replace("-Key:", "-Nothing:")), 400, "bad_request"),
        ("a short key", upgrade(|head| head.replace("dGhlIHNh", "")), 400, "bad_request"),
        ("a key that is not base64", upgrade(|head| head.replace("dGhl", "!!!!")), 400, "bad_request"),
    ]
}

fn topics_and_values() -> Vec<Case> {
    let bad = |what, target: &str| (what, get(target), 400, "bad_request");
    let id = b"GET /sse/t HTTP/1.1\r\nHost: x\r\nLast-Event-ID: a\0\r\n\r\n".to_vec();
    let long = format!("/sse/{}", "t".repeat(256));
    let many = format!("/sse?{}", (0..5).map(|n| format!("topic=t{n}&")).collect::<String>());
    vec![
        bad("no topic", "/sse"),
        bad("no topic in the query", "/sse?last-event-id=a-1"),
        bad("an empty topic", "/sse/"),
        bad("an empty topic in the query", "/sse?topic=t&topic="),
        bad("a topic of 256 bytes", &long),
        bad("a line break in a topic", "/sse/a%0Ab"),
        bad("a NUL in a topic", "/sse?topic=%00"),
        bad("a C1 control character in a topic", "/sse/%C2%85"),
        bad("a topic that is not UTF-8", "/sse/%FF"),
        bad("a bad percent escape", "/sse/%2"),
        bad("more topics than allowed", &many),
        ("a NUL in an id", id, 400, "bad_request"),
        ("a topic of a WebSocket", upgrade(|head| head.replace("/ws/t", "/ws/%00")), 400, "bad_request"),
    ]
}

fn check(what: &str, answer: &RawAnswer, status: u16) {
    assert_eq!(answer.status, status, "{what}: {:?}", answer.line());
    assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"), "{what}");
    assert_eq!(answer.header("Content-Length"), Some(answer.body.len().to_string().as_str()), "{what}");
    assert!(answer.header("Connection").is_some_and(|value| value.contains("close")), "{what}");
    match status {
        405 => assert_eq!(answer.header("Allow"), Some("GET, HEAD, OPTIONS"), "{what}"),
        426 => assert_eq!(answer.header("Sec-WebSocket-Version"), Some("13"), "{what}"),
        _ => {}
    }
    answer.line();
}

#[tokio::test]
async fn every_bad_request_gets_its_status_and_touches_nobody_else() {
    let flags = ["--shards", "1", "--handshake-bytes-max", "1500", "--topics-per-connection-max", "4"];
    let server = Server::start(&flags);
    let mut healthy = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (what, bytes, status, label) in
        [malformed(), oversized(), wrong(), topics_and_values()].into_iter().flatten()
    {
        check(what, &exchange(server.data, &bytes).await, status);
        *counts.entry(label).or_default() += 1;
        server.publish("t", what).await;
        assert_eq!(healthy.text().await, what, "a healthy subscriber goes on");
    }
    for (label, count) in counts {
        server.await_closed(label, count).await;
    }
    assert_eq!(server.stats().await["totals"]["connections"], 1, "only the healthy one is left");
}

/// Bytes that come one at a time make the same head, good or bad.
#[tokio::test]
async fn a_head_may_come_in_pieces() {
    let server = Server::start(&["--shards", "1"]);
    let mut socket = within("a connection", TcpStream::connect(server.data)).await.expect("accepted");
    socket.set_nodelay(true).expect("a TCP socket");
    for byte in get("/nowhere") {
        within("room", socket.write_all(&[byte])).await.expect("the server reads");
    }
    let answer = rest(&mut socket).await;
    assert!(answer.starts_with(b"HTTP/1.1 404 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn slow_and_truncated_heads_hold_no_place() {
    let server = Server::start(&["--shards", "1", "--handshake-ms-max", "500"]);
    let mut healthy = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    // Without an answer, because any status would end an EventSource for good.
    for head in ["GET /sse/t HTTP/1.1\r\nHo", ""] {
        assert_eq!(exchange_bytes(server.data, head.as_bytes()).await, b"", "{head:?} just ends");
    }
    server.await_closed("handshake_timeout", 2).await;

    for (head, answer) in [("GET /sse/t HT", Some(400)), ("", None)] {
        let mut socket = within("a connection", TcpStream::connect(server.data)).await.expect("accepted");
        within("room", socket.write_all(head.as_bytes())).await.expect("the server reads");
        within("the end of our side", socket.shutdown()).await.expect("open");
        let said = rest(&mut socket).await;
        match answer {
            Some(status) => check("a truncated head", &RawAnswer::parse(&said), status),
            None => assert_eq!(said, b"", "nothing was asked"),
        }
    }
    server.await_closed("bad_request", 1).await;
    server.await_closed("client_gone", 1).await;
    until("the truncated one to be gone", async || {
        (server.stats().await["totals"]["connections"] == 1).then_some(())
    })
    .await;
    server.publish("t", "x").await;
    assert_eq!(healthy.text().await, "x");
}

/// A client that drips bytes has as long as all others, not as long as it likes.
#[tokio::test]
async fn dripping_bytes_does_not_extend_the_time() {
    let server = Server::start(&["--shards", "1", "--handshake-ms-max", "500"]);
    let mut socket = within("a connection", TcpStream::connect(server.data)).await.expect("accepted");
    let mut answer = [0; 12];
    within("the end in spite of the dripping", async {
        socket.write_all(b"GET /sse/t HTTP/1.1\r\nHost: x\r\nX: ").await.expect("open");
        loop {
            let pause = tokio::time::sleep(std::time::Duration::from_millis(50));
            tokio::select! {
                read = socket.read(&mut answer) => break assert!(matches!(read, Ok(0) | Err(_)), "no answer"),
                () = pause => {
                    // Once the server has hung up the write may fail; the read has the end.
                    let _ = socket.try_write(b"y");
                }
            };
        }
    })
    .await;
    server.await_closed("handshake_timeout", 1).await;
}

#[tokio::test]
async fn the_health_probe_and_the_preflight_are_answered() {
    let server = Server::start(&["--shards", "1"]);
    let answer = exchange(server.data, &get("/healthz")).await;
    assert_eq!((answer.status, answer.line()), (200, "ok"));
    let head = exchange(server.data, b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let head = exchange(server.data, b"\r\nHEAD /sse/t HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((head.status, head.body.len()), (200, 0), "the head of the stream alone");
    assert_eq!(head.header("Content-Type"), Some("text/event-stream"));
    let preflight =
        exchange(server.data, b"OPTIONS /sse/t HTTP/1.1\r\nHost: x\r\nOrigin: http://y\r\n\r\n").await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("Access-Control-Allow-Origin"), Some("*"));
    let head = exchange(server.data, b"\r\nHEAD /ws/t HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(
        (head.status, head.body.len()),
        (405, 0),
        "an answer to HEAD has no body; line breaks before a head are nothing (RFC 9112 section 2.2)"
    );
    server.await_closed("answered", 4).await;
    let refused = exchange(server.data, &get("/nowhere")).await;
    assert_eq!(refused.header("Access-Control-Allow-Origin"), Some("*"), "a page may read why");
}

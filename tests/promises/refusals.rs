//! Claim: every refusal, on both planes, is a whole HTTP answer: its status, `Date`, `Allow` where
//! a method is wrong, `Connection: close` where the connection ends, and one line of reason. This
//! table is the list of them.
//!
//! Set-up: one server, each request on a bare socket of its own.
//!
//! Expectation: what the row says, and nothing else of the kind.

use std::net::SocketAddr;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::RawAnswer;
use crate::support::slow::publish_until_stuck;
use crate::support::{Protocol, Server, Subscriber, until, within};

/// A row: the request without its `Host`, which is named after it, status, `Allow`, another field,
/// reason.
struct Row {
    request: String,
    status: u16,
    allow: Option<&'static str>,
    field: Option<(&'static str, &'static str)>,
    reason: &'static str,
}

fn row(request: impl Into<String>, status: u16, reason: &'static str) -> Row {
    Row { request: request.into(), status, allow: None, field: None, reason }
}

impl Row {
    fn allow(self, allow: &'static str) -> Row {
        Row { allow: Some(allow), ..self }
    }

    fn field(self, name: &'static str, value: &'static str) -> Row {
        Row { field: Some((name, value)), ..self }
    }
}

const HOST: &str = "Host: localhost\r\n";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const STREAM: &str = "GET, HEAD, OPTIONS";

/// Each of these ends its connection.
fn data_plane() -> Vec<Row> {
    let ask = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\n{HOST}{fields}\r\n");
    let ws = |fields: &str| ask("GET /ws/t", &format!("{UPGRADE}{fields}"));
    let get = |fields: &str| format!("GET /sse/t HTTP/1.1\r\n{fields}\r\n");
    vec![
        row("hello\r\n\r\n", 400, "the request line is not of the form"),
        row("GET /sse/t HTTP/3.0\r\n\r\n", 400, "does not end in HTTP/1.1"),
        row("\x16\x03\x01\x02", 400, "plain HTTP, not TLS"),
        row(get(""), 400, "the Host header field is missing"),
        row(get("Host: a\r\nHost: a\r\n"), 400, "the Host header field comes twice"),
        row(get("Host: a b\r\n"), 400, "the Host header field is malformed"),
        row(get("Host: u@h\r\n"), 400, "the Host header field is malformed"),
        row(get("Host: h:80:80\r\n"), 400, "the Host header field is malformed"),
        row(get("Host: [::1\r\n"), 400, "the Host header field is malformed"),
        row(ask("GET /sse/<t>", ""), 400, "write it as %3C"),
        row(ask("GET /sse/`t", ""), 400, "write it as %60"),
        row(ask("GET /sse?topic=>", ""), 400, "write it as %3E"),
        row(ask("GET /sse", ""), 400, "no topic"),
        row(ask("GET /sse/%FF", ""), 400, "not UTF-8"),
        row(ws("Sec-WebSocket-Protocol: fanwave.v2.json\r\n"), 400, "raw messages"),
        row(ws("Origin: https://evil.example\r\n"), 403, "--cors-origin"),
        row(ws("Origin: null\r\n"), 403, "--cors-origin"),
        row(ask("GET /nowhere", ""), 404, "not a path of ours"),
        row(ask("POST /sse/t", ""), 405, "a subscription is a GET").allow(STREAM),
        row(ask("HEAD /ws/t", ""), 405, "").allow("GET, OPTIONS"),
        row(ask("DELETE /ws/t", ""), 405, "a subscription is a GET").allow("GET, OPTIONS"),
        row(ask("POST /healthz", ""), 405, "only GET, HEAD, OPTIONS").allow(STREAM),
        row(ask("POST /", ""), 405, "only GET, HEAD, OPTIONS").allow(STREAM),
        row(ask("GET /sse/t", "Accept: text/html\r\n"), 406, "no text/event-stream"),
        row(ask("GET /sse/t", "Content-Length: 5\r\n"), 413, "a request body is not wanted"),
        row(
            ask(&format!("GET /sse/{}", "t".repeat(2_000)), ""),
            414,
            "the request line has more than 1500 bytes",
        ),
        row(ask("GET /ws/t", ""), 426, "Upgrade: websocket is missing").field("Upgrade", "websocket"),
        row(ask("GET /sse/t", &format!("X: {}\r\n", "x".repeat(2_000))), 431, "more than 1500 bytes"),
        row(ask("GET /sse/t", "Transfer-Encoding: gzip, chunked\r\n"), 501, "chunked"),
        row(ws(""), 503, "as many subscribers as it takes").field("Retry-After", "1"),
    ]
}

/// Whether each of these ends its connection stands with it.
fn control_plane() -> Vec<(Row, bool)> {
    let ask = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\n{HOST}{fields}\r\n");
    let get = |fields: &str| format!("GET /stats HTTP/1.1\r\n{fields}\r\n");
    let post = |target: &str, fields: &str| {
        format!("POST {target} HTTP/1.1\r\n{HOST}{fields}Content-Length: 9\r\n\r\n")
    };
    vec![
        (row("hello\r\n\r\n", 400, "the request head is malformed"), true),
        (row("GET /stats HTTP/3.0\r\n\r\n", 400, "version"), true),
        (row(get(""), 400, "the Host header field is missing"), false),
        (row(get("Host: a\r\nHost: a\r\n"), 400, "the Host header field comes twice"), false),
        (row(get("Host: a b\r\n"), 400, "the Host header field is malformed"), false),
        (row(get("Host: u@h\r\n"), 400, "the Host header field is malformed"), false),
        (row(get("Host: h:80:80\r\n"), 400, "the Host header field is malformed"), false),
        (row(get("Host: [::1\r\n"), 400, "the Host header field is malformed"), false),
        (row(ask("GET /topics/<t>", ""), 400, "URI"), true),
        (row(ask("GET /topics/`t", ""), 400, "URI"), true),
        (row(ask("GET /topics?after=>", ""), 400, "URI"), true),
        (row(ask("GET /stats?x", ""), 400, "unknown query parameter"), false),
        (row(ask("POST /topics/t?id=23z405fz79tds-1", ""), 400, "the server's own ids"), false),
        (row(ask("POST /topics/t?event=fanwave-gap", ""), 400, "the server's own notice"), false),
        (row(post("/topics/t?colour=1", ""), 400, "unknown query parameter"), true),
        (row(get("Host: evil.example\r\n"), 403, "--control-host"), false),
        (row(ask("GET /stats", "Origin: https://evil.example\r\n"), 403, "--control-origin"), false),
        (row(post("/topics/t", "Origin: null\r\n"), 403, "--control-origin"), true),
        (row(ask("GET /nowhere", ""), 404, "no such path"), false),
        (row(ask("GET /topics/unheard", ""), 404, "nobody has published"), false),
        (
            row(ask("PUT /topics/t", ""), 405, "PUT is not allowed")
                .allow("GET, HEAD, POST, DELETE, OPTIONS"),
            false,
        ),
        (row(ask("GET /publish", ""), 405, "GET is not allowed").allow("POST, OPTIONS"), false),
        (row(post("/stats", ""), 405, "POST is not allowed").allow(STREAM), true),
        (row(post("/topics/t", ""), 413, "the data has 9 bytes"), true),
        (row(ask(&format!("GET /{}", "t".repeat(2_000)), ""), 414, "too long"), true),
        (
            row(post("/topics/t", "Content-Encoding: gzip\r\n"), 415, "Content-Encoding")
                .field("Accept-Encoding", "identity"),
            true,
        ),
        (row(ask("GET /stats", &format!("X: {}\r\n", "x".repeat(2_000))), 431, "1500 bytes"), true),
        (row(ask("POST /topics/t", "Transfer-Encoding: gzip, chunked\r\n"), 501, "chunked"), true),
    ]
}

/// The first answer on a connection, which may stay open. Its body ends by its length.
async fn first_answer(server: SocketAddr, request: &[u8]) -> RawAnswer {
    let mut socket = within("a connection", TcpStream::connect(server)).await.expect("the server accepts");
    within("room to write", socket.write_all(request)).await.expect("the server reads");
    let is_head = request.starts_with(b"HEAD ");
    let mut bytes = Vec::new();
    loop {
        if memchr::memmem::find(&bytes, b"\r\n\r\n").is_some() {
            let answer = RawAnswer::parse(&bytes);
            let length =
                answer.header("Content-Length").expect("a length").parse::<usize>().expect("a number");
            if is_head || answer.body.len() >= length {
                return answer;
            }
        }
        let read = within("an answer", socket.read_buf(&mut bytes)).await.expect("no reset");
        assert!(read > 0, "a whole answer: {}", String::from_utf8_lossy(&bytes));
    }
}

async fn check(plane: &str, server: SocketAddr, row: &Row, ends: bool) {
    let what = format!("{plane}: {:?}", &row.request[..row.request.len().min(80)]);
    let answer = first_answer(server, row.request.as_bytes()).await;
    assert_eq!(answer.status, row.status, "{what}: {answer:?}");
    let date = answer.header("Date").unwrap_or_else(|| panic!("{what}: no date: {answer:?}"));
    httpdate::parse_http_date(date).unwrap_or_else(|_| panic!("{what}: {date}"));
    assert_eq!(answer.header("Allow"), row.allow, "{what}");
    let closes = answer.header("Connection").is_some_and(|value| value.contains("close"));
    assert_eq!(closes, ends, "{what}: {answer:?}");
    if let Some((name, value)) = row.field {
        // The data plane spreads those that come again.
        match (answer.header(name), name, plane) {
            (Some(given), "Retry-After", "data plane") => {
                assert!(
                    given.parse().is_ok_and(|seconds: u32| (1..=4).contains(&seconds)),
                    "{what}: {given}"
                );
            }
            (given, ..) => assert_eq!(given, Some(value), "{what}"),
        }
    }
    if !row.request.starts_with("HEAD ") {
        assert!(answer.line().contains(row.reason), "{what}: no {:?} in {:?}", row.reason, answer.line());
    }
}

#[tokio::test]
async fn every_refusal_is_a_whole_answer() {
    let server = Server::start(&[
        "--shards=1",
        "--connections-per-shard-max=1",
        "--handshake-bytes-max=1500",
        "--handshake-ms-max=500",
        "--message-bytes-max=8",
        "--cors-origin=https://a.example",
    ]);
    let _only_one = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    for row in data_plane() {
        check("data plane", server.data, &row, true).await;
    }
    for (row, ends) in control_plane() {
        check("control plane", server.control, &row, ends).await;
    }
}

/// The rest of the table: what a server says that is about to end.
#[tokio::test]
async fn every_refusal_of_a_draining_server_is_a_whole_answer() {
    let server = Server::start(&["--shards=1", "--drain-ms-max=120000", "--stall-ms-max=120000"]);
    let _behind = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    publish_until_stuck(&server, "t", Protocol::Sse, &mut [], 0, 3).await;
    server.signal(Signal::TERM);
    until("the drain", async || (server.get("/healthz").await.status == 503).then_some(())).await;
    let ask = |line: &str, fields: &str| format!("{line} HTTP/1.1\r\n{HOST}{fields}\r\n");
    for row in [
        row(ask("GET /ws/t", UPGRADE), 503, "draining"),
        row(ask("HEAD /sse/t", ""), 503, ""),
        row(ask("GET /healthz", ""), 503, "draining"),
    ] {
        check("data plane", server.data, &row.field("Retry-After", "1"), true).await;
    }
    for row in [
        row(ask("POST /topics/t", "Content-Length: 0\r\n"), 503, "draining"),
        row(ask("POST /publish", "Content-Length: 0\r\n"), 503, "draining"),
        row(ask("GET /healthz", ""), 503, "draining"),
    ] {
        check("control plane", server.control, &row.field("Retry-After", "1"), false).await;
    }
}

//! Claim: `POST /topics/{topic}` on the data plane publishes where `--client-publish` lets it, and
//! is answered like that of the control plane.
//!
//! Set-up: requests written by hand on bare sockets: one after the other, many ahead, in chunks,
//! cut byte by byte, with `Expect: 100-continue`, and wrong in every way; subscribers on other
//! shards.
//!
//! Expectation: each request has one answer, in its order; what was taken comes to every
//! subscriber; a refusal says why in one line of JSON, and touches no other connection.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::{RawAnswer, exchange, exchange_bytes};
use crate::support::{Protocol, Server, Subscriber, until, within};

const TEXT: &str = "Host: localhost\r\nContent-Type: text/plain\r\n";

fn server(flags: &[&str]) -> Server {
    Server::start(&[&["--shards", "2", "--client-publish", "t,chat/*"], flags].concat())
}

/// A connection that reads its answers one by one.
struct Client {
    socket: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    async fn connect(server: SocketAddr) -> Client {
        let socket = within("a connection", TcpStream::connect(server)).await.expect("it listens");
        Client { socket, unread: Vec::new() }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("room", self.socket.write_all(bytes.as_ref())).await.expect("the server reads");
    }

    async fn read_to(&mut self, bytes: usize) {
        while self.unread.len() < bytes {
            let read = within("an answer", self.socket.read_buf(&mut self.unread)).await.expect("a socket");
            assert!(read > 0, "an end after {:?}", String::from_utf8_lossy(&self.unread));
        }
    }

    async fn head(&mut self) -> Vec<u8> {
        loop {
            if let Some(end) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
                return self.unread.drain(..end + 4).collect();
            }
            self.read_to(self.unread.len() + 1).await;
        }
    }

    /// The next answer, whose length it tells.
    async fn answer(&mut self) -> RawAnswer {
        let mut bytes = self.head().await;
        let length =
            RawAnswer::parse(&bytes).header("content-length").map(|text| text.parse().expect("a number"));
        let length = length.unwrap_or_else(|| panic!("no length: {:?}", String::from_utf8_lossy(&bytes)));
        self.read_to(length).await;
        bytes.extend(self.unread.drain(..length));
        RawAnswer::parse(&bytes)
    }

    async fn sequence(&mut self) -> u64 {
        let answer = self.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.line());
        json(&answer)["sequence"].as_u64().expect("a number")
    }

    /// The server ends the connection, and has nothing more to say.
    async fn ends(&mut self) {
        let read = within("an end", self.socket.read_buf(&mut self.unread)).await;
        assert!(matches!(read, Ok(0)) && self.unread.is_empty(), "{read:?} {:?}", self.unread);
    }
}

fn json(answer: &RawAnswer) -> Value {
    serde_json::from_str(answer.line()).unwrap_or_else(|error| panic!("{error}: {}", answer.line()))
}

fn post(target: &str, fields: &str, body: &str) -> String {
    format!("POST {target} HTTP/1.1\r\n{TEXT}{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_connection_carries_one_publish_after_the_other() {
    let server = server(&[]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["chat/a%20b"]).await;
    let mut client = Client::connect(server.data).await;
    for number in 1..=3 {
        let request =
            post("/topics/chat/a%20b?event=tick&id=x%22y&retry=500", "", &format!("hello {number}"));
        client.send(&request).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.line(), format!("{{\"id\":\"x\\\"y\",\"sequence\":{number}}}"));
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert!(
            answer.header("date").is_some_and(|date| date.ends_with(" GMT"))
                && answer.header("connection").is_none()
        );
        let event = subscriber.event().await;
        assert_eq!((event.text(), event.name.as_deref()), (&*format!("hello {number}"), Some("tick")));
        assert_eq!((event.id.as_deref(), event.retry), (Some("x\"y"), Some(500)));
    }
    // The same words from the control plane.
    let control = exchange(server.control, post("/topics/t", "Connection: close\r\n", "x").as_bytes()).await;
    client.send(post("/topics/t", "", "x")).await;
    let data = client.answer().await;
    let keys =
        |answer: &RawAnswer| json(answer).as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&control), keys(&data));
    assert_eq!(json(&data)["id"].as_str().map(str::len), json(&control)["id"].as_str().map(str::len));
    // It may end with a stream, on the same connection.
    client.send("GET /sse/t HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let head = client.head().await;
    assert!(head.starts_with(b"HTTP/1.1 200 OK\r\n") && head.ends_with(b"\r\n\r\n"), "{head:?}");
    server.publish("t", "at last").await;
    while memchr::memmem::find(&client.unread, b"data: at last\n").is_none() {
        client.read_to(client.unread.len() + 1).await;
    }
}

#[tokio::test]
async fn a_hundred_that_are_sent_ahead_are_answered_in_their_order() {
    let server = server(&[]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    let mut client = Client::connect(server.data).await;
    let mut ahead: String = (0..100).map(|number| post("/topics/t", "", &number.to_string())).collect();
    ahead.push_str(&post("/topics/t?nonsense=1", "", "no"));
    ahead.push_str(&post("/topics/t", "", "never read"));
    client.send(&ahead).await;
    for number in 1..=100 {
        assert_eq!(client.sequence().await, number);
    }
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.header("connection")), (400, Some("close")));
    client.ends().await;
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(subscriber.texts(100).await, texts);
    // Byte by byte, and what is refused for its body alone goes on.
    let mut client = Client::connect(server.data).await;
    let bytes = [
        post("/topics/t", "", "one").into_bytes(),
        b"\r\n".to_vec(),
        b"POST /topics/t HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n\xff\xff".to_vec(),
        b"POST /topics/t HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\ncontent-type: application/octet-stream\r\n\r\n\xff\xff".to_vec(),
        post("/topics/t", "Connection: close\r\n", "two").into_bytes(),
    ]
    .concat();
    for byte in bytes {
        client.send([byte]).await;
    }
    assert_eq!(client.sequence().await, 101);
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.header("connection")), (400, None));
    assert!(json(&refused)["error"].as_str().is_some_and(|text| text.contains("not UTF-8 at byte 0")));
    assert_eq!(client.sequence().await, 102);
    let last = client.answer().await;
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    client.ends().await;
    assert_eq!(subscriber.text().await, "one");
    assert_eq!(subscriber.event().await.data, [0xff, 0xff]);
    assert_eq!(subscriber.text().await, "two");
}

#[tokio::test]
async fn bodies_come_in_chunks_and_after_they_are_asked_for() {
    let server = server(&["--message-bytes-max", "200000"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    let mut client = Client::connect(server.data).await;
    let chunked = "POST /topics/t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;x=y\r\nabc\r\n02\r\nde\r\n0\r\nTrailer: x\r\n\r\n";
    client.send(chunked.repeat(2)).await;
    for byte in chunked.bytes() {
        client.send([byte]).await;
    }
    for sequence in 1..=3 {
        assert_eq!(client.sequence().await, sequence);
        assert_eq!(subscriber.text().await, "abcde");
    }
    let head = "POST /topics/t HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    // Behind a publish that is not answered yet.
    client.send(post("/topics/t", "", "first") + head).await;
    assert_eq!(client.sequence().await, 4);
    assert_eq!(client.head().await, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("xyz").await;
    assert_eq!(client.sequence().await, 5);
    client.send(format!("{head}now")).await;
    assert_eq!(client.sequence().await, 6, "nobody waited");
    let large = "x".repeat(200_000);
    client.send(post("/topics/t", "", &large)).await;
    assert_eq!(client.sequence().await, 7);
    assert_eq!(subscriber.texts(4).await, ["first", "xyz", "now", &large]);
    // HTTP/1.0 asks for what it wants; a client may end its side and wait.
    let old = b"POST /topics/t HTTP/1.0\r\nContent-Length: 1\r\n\r\nx";
    let answer = exchange(server.data, old).await;
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    let mut old = Client::connect(server.data).await;
    old.send("POST /topics/t HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(old.answer().await.header("connection"), Some("keep-alive"));
    old.send(post("/topics/t", "", "y")).await;
    old.socket.shutdown().await.expect("a socket");
    assert_eq!(old.sequence().await, 10);
    old.ends().await;
}

#[tokio::test]
async fn what_is_refused_says_why_and_ends_no_other_connection() {
    let server = server(&["--message-bytes-max", "1000", "--cors-origin", "https://a.example"]);
    let mut healthy = Client::connect(server.data).await;
    let chunks = "Transfer-Encoding: chunked\r\n\r\n";
    let large = format!("{chunks}{}0\r\n\r\n", format!("1f4\r\n{}\r\n", "x".repeat(500)).repeat(3));
    let cases: [(&str, String, u16, &str); 16] = [
        ("/topics/closed", "Content-Length: 1\r\n\r\nx".into(), 403, "not_allowed"),
        ("/topics/chat/a/b", "Content-Length: 1\r\n\r\nx".into(), 403, "not_allowed"),
        (
            "/topics/t",
            "Origin: https://b.example\r\nContent-Length: 1\r\n\r\nx".into(),
            403,
            "foreign_origin",
        ),
        ("/topics/t", "Content-Length: 1001\r\n\r\n".into(), 413, "too_large"),
        ("/topics/t", "Content-Length: 99999999999999999999999\r\n\r\n".into(), 413, "too_large"),
        ("/topics/t", large, 413, "too_large"),
        ("/topics/t", "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx".into(), 415, "content_coding"),
        ("/topics/", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_topic"),
        ("/topics/chat/%0a", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_topic"),
        ("/topics/chat/%zz", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_topic"),
        ("/topics/t?id=%0a", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_id"),
        ("/topics/t?event=", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_event"),
        ("/topics/t?retry=x", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_retry"),
        ("/topics/t?a=b", "Content-Length: 1\r\n\r\nx".into(), 400, "bad_query"),
        (
            "/topics/t?event=fanwave-gap",
            "Connection: close\r\nContent-Length: 1\r\n\r\nx".into(),
            400,
            "reserved_event",
        ),
        ("/topics/t", format!("{chunks}3\nabc"), 400, "body_broken"),
    ];
    for (target, rest, status, reason) in cases {
        let count = async || server.stats().await["totals"]["refused"][reason].as_u64().expect("a count");
        let before = count().await;
        let request = format!("POST {target} HTTP/1.1\r\nHost: h\r\n{rest}");
        let answer = exchange(server.data, request.as_bytes()).await;
        assert_eq!(answer.status, status, "{target} {rest}: {}", answer.line());
        assert!(json(&answer)["error"].as_str().is_some_and(|text| !text.is_empty()));
        assert_eq!(answer.header("connection"), Some("close"), "{target} {rest}");
        assert_eq!(answer.header("accept-encoding"), (status == 415).then_some("identity"));
        assert_eq!(count().await, before + 1, "{reason}");
        healthy.send(post("/topics/t", "", "x")).await;
        healthy.sequence().await;
    }
    // Heads that are none, and other methods, are refused as everywhere on this plane.
    for (request, status) in [
        ("POST /topics/t HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n", 400),
        ("POST /topics/t HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", 400),
        ("POST /topics/t HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        ("GET /topics/t HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("DELETE /topics/t HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("POST /sse/t HTTP/1.1\r\nHost: h\r\n\r\n", 405),
        ("POST /topic/t HTTP/1.1\r\nHost: h\r\n\r\n", 404),
    ] {
        let answer = exchange(server.data, request.as_bytes()).await;
        assert_eq!(answer.status, status, "{request}");
        // The same behind a publish.
        let behind = [post("/topics/t", "", "x"), request.to_string()].concat();
        let both = String::from_utf8(exchange_bytes(server.data, behind.as_bytes()).await).expect("ASCII");
        assert!(
            both.starts_with("HTTP/1.1 200 OK") && both.contains(&format!("HTTP/1.1 {status} ")),
            "{both}"
        );
    }
    // What breaks off is told so; who asks nothing is just gone.
    for request in ["POST /topics/t HTT", "POST /topics/t HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx"]
    {
        let mut client = Client::connect(server.data).await;
        client.send(request).await;
        client.socket.shutdown().await.expect("a socket");
        assert_eq!(client.answer().await.status, 400, "{request}");
    }
}

#[tokio::test]
async fn pages_ask_first_and_are_told_what_they_may() {
    let server = server(&["--cors-origin", "https://a.example"]);
    let ask = "OPTIONS /topics/t HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example\r\n\
               Access-Control-Request-Method: POST\r\n\r\n";
    let answer = exchange(server.data, ask.as_bytes()).await;
    assert_eq!((answer.status, answer.header("allow")), (204, Some("POST, OPTIONS")));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST"));
    assert_eq!(answer.header("access-control-allow-headers"), Some("Content-Type, Authorization"));
    let mut client = Client::connect(server.data).await;
    client.send(post("/topics/t", "Origin: https://a.example\r\n", "x")).await;
    let answer = client.answer().await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!((answer.status, answer.header("vary")), (200, Some("Origin")));
}

/// A client that reads no answers is read no further: what it goes on to say stays in its own
/// socket.
#[tokio::test]
async fn a_client_that_reads_no_answers_is_held_back_and_loses_none() {
    const REQUESTS: usize = 20_000;
    let server = server(&[]);
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4_096).expect("an option of every socket");
    let socket = within("a connection", socket.connect(server.data)).await.expect("it listens");
    let (reading, mut writing) = socket.into_split();
    let flood = tokio::spawn(async move {
        writing
            .write_all(post("/topics/t", "", "x").repeat(REQUESTS).as_bytes())
            .await
            .expect("the server reads");
        writing
    });
    let totals = async || server.stats().await["totals"].clone();
    until("a pause", async || (totals().await["pauses"].as_u64() > Some(0)).then_some(())).await;
    let before = server.resident_bytes();
    let mut answered = 0;
    let mut reading = tokio::io::BufReader::new(reading);
    while answered < REQUESTS {
        let mut line = String::new();
        within("an answer", tokio::io::AsyncBufReadExt::read_line(&mut reading, &mut line))
            .await
            .expect("text");
        if line.starts_with('{') {
            answered += 1;
            assert!(line.ends_with(&format!("\"sequence\":{answered}}}\n")), "{line}");
        }
    }
    let more = server.resident_bytes().saturating_sub(before);
    assert!(more < 64 << 20, "{more} bytes more for what it has not read");
    drop(within("the end of a flood", flood).await);
    assert_eq!(totals().await["published"].as_u64(), Some(REQUESTS as u64));
}

//! Claim: a WebSocket follows RFC 6455: pings are echoed, closes are answered, fragments are
//! accepted, and a client that breaks the protocol is told by its close code and touches no other.
//!
//! Set-up: frames written byte by byte on bare sockets, and tungstenite as a client of another
//! make. A healthy subscriber listens all the while.
//!
//! Expectation: the answer of the RFC for each; each violation counted under its reason; the
//! healthy subscriber gets an event after each of them.

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::support::peer::masked;
use crate::support::raw::exchange;
use crate::support::{Protocol, Said, Server, Subscriber, until, within};

async fn connect(server: &Server) -> Subscriber {
    Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await
}

/// [`masked`] with another first byte: reserved bits, no FIN.
fn with_first(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(0x1, payload);
    frame[0] = first;
    frame
}

/// A masked frame whose length takes two more bytes, whatever it is.
fn long(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 1, 200, 99];
    let mut frame = vec![0x80 | opcode, 0x80 | 126];
    frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

#[tokio::test]
async fn a_ping_comes_back_as_a_pong() {
    let server = Server::start(&["--shards", "1"]);
    let mut subscriber = connect(&server).await;
    for payload in [&b""[..], b"x", &[0xff; 125]] {
        subscriber.send(&masked(0x9, payload)).await;
        assert_eq!(subscriber.next().await, Said::Pong(payload.to_vec()));
    }
    for byte in masked(0x9, b"in pieces") {
        subscriber.send(&[byte]).await;
    }
    assert_eq!(subscriber.next().await, Said::Pong(b"in pieces".to_vec()));
    // A pong that nobody asked for is legal and needs no answer.
    subscriber.send(&masked(0xa, b"unasked")).await;
    server.publish("t", "x").await;
    assert_eq!(subscriber.next().await, Said::Event(event(b"x")));
}

/// However many come at once: Autobahn's cases 2.10 and 2.11 send ten.
#[tokio::test]
async fn every_ping_of_a_burst_is_answered_in_order() {
    let server = Server::start(&["--shards", "1"]);
    let mut subscriber = connect(&server).await;
    let payload = |number: usize| format!("payload-{number}").into_bytes();
    let burst: Vec<u8> = (0..10).flat_map(|number| masked(0x9, &payload(number))).collect();
    subscriber.send(&burst).await;
    for number in 0..10 {
        assert_eq!(subscriber.next().await, Said::Pong(payload(number)));
    }
    for byte in burst {
        subscriber.send(&[byte]).await;
    }
    for number in 0..10 {
        assert_eq!(subscriber.next().await, Said::Pong(payload(number)));
    }
    let close = [masked(0x9, b"first"), masked(0x8, &1000u16.to_be_bytes())].concat();
    subscriber.send(&close).await;
    assert_eq!(subscriber.next().await, Said::Pong(b"first".to_vec()));
    assert!(matches!(subscriber.next().await, Said::Close(1000, _)));
}

/// A browser fails a connection whose offer is not answered.
#[tokio::test]
async fn the_first_subprotocol_that_is_offered_is_given_back() {
    let server = Server::start(&["--shards", "1"]);
    let restricted = Server::start(&["--shards", "1", "--ws-subprotocols", "chat,v2"]);
    let none = Server::start(&["--shards", "1", "--ws-subprotocols", "none"]);
    let head = |offers: &[&str]| {
        let head = crate::support::peer::request(Protocol::WebSocket, &["t"], None);
        let lines: String =
            offers.iter().map(|offer| format!("Sec-WebSocket-Protocol: {offer}\r\n")).collect();
        format!("{}{lines}\r\n", head.strip_suffix("\r\n").expect("a head ends in a blank line"))
    };
    for (server, offers, given) in [
        (&server, &["protocolOne"][..], Some("protocolOne")),
        (&server, &["soap, wamp"], Some("soap")),
        (&server, &["", "fanwave.v2.json", "b c, d"], Some("d")),
        (&server, &[], None),
        (&restricted, &["soap, v2", "chat"], Some("v2")),
        (&restricted, &["soap"], None),
        (&none, &["soap"], None),
    ] {
        let mut subscriber = Subscriber::request(server.data, Protocol::WebSocket, head(offers)).await;
        let mut lines = subscriber.head.lines();
        let told = lines.find_map(|line| line.strip_prefix("Sec-WebSocket-Protocol: "));
        assert_eq!(told, given, "{offers:?}");
        server.publish("t", "x").await;
        assert_eq!(subscriber.text().await, "x");
    }
    for server in [&server, &restricted, &none] {
        let answer = exchange(server.data, head(&["fanwave.v2.json", "fanwave.v2"]).as_bytes()).await;
        assert_eq!(answer.status, 400);
        assert!(answer.line().contains("raw messages"), "{}", answer.line());
    }
    // A client of another make fails as a browser does.
    let mut request = tokio_tungstenite::tungstenite::client::IntoClientRequest::into_client_request(
        format!("ws://{}/ws/t", server.data),
    )
    .expect("a request");
    request.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static("one, two"));
    let socket = within("a connection", tokio::net::TcpStream::connect(server.data)).await.expect("accepted");
    let (_, response) = within("the handshake", tokio_tungstenite::client_async(request, socket))
        .await
        .expect("tungstenite finds its offer answered");
    assert_eq!(response.headers()["sec-websocket-protocol"], "one");
}

fn event(data: &[u8]) -> crate::support::subscriber::Event {
    crate::support::subscriber::Event { data: data.to_vec(), ..Default::default() }
}

#[tokio::test]
async fn a_close_is_answered_with_its_code() {
    let server = Server::start(&["--shards", "1"]);
    let cases: [(&[u8], u16); 4] =
        [(b"", 1000), (&[0x03, 0xe8], 1000), (&[0x03, 0xe9, b'b', b'y', b'e'], 1001), (&[0x0f, 0xa0], 4000)];
    for (payload, code) in cases {
        let mut subscriber = connect(&server).await;
        subscriber.send(&masked(0x8, payload)).await;
        let said = subscriber.next().await;
        assert!(matches!(said, Said::Close(answer, _) if answer == code), "{said:?} to {payload:?}");
        assert_eq!(subscriber.next().await, Said::End);
    }
    server.await_closed("client_gone", cases.len() as u64).await;
}

#[tokio::test]
async fn messages_whole_and_in_fragments_are_read_and_counted() {
    let server = Server::start(&["--shards", "1"]);
    let mut subscriber = connect(&server).await;
    subscriber.send(&masked(0x1, "räume".as_bytes())).await;
    subscriber.send(&masked(0x2, &[0xff, 0xfe])).await;
    subscriber.send(&masked(0x1, b"")).await;
    // One text in three fragments, a character cut between two of them, a ping in between.
    subscriber.send(&with_first(0x01, &[b'r', 0xc3])).await;
    subscriber.send(&masked(0x9, b"between")).await;
    subscriber.send(&with_first(0x00, &[0xa4, b'u'])).await;
    subscriber.send(&with_first(0x80, b"me")).await;
    assert_eq!(subscriber.next().await, Said::Pong(b"between".to_vec()));
    subscriber.send(&long(0x2, &[7; 60_000])).await;
    until("5 messages counted", async || {
        (server.counter(Protocol::WebSocket, "messages_in").await == 5).then_some(())
    })
    .await;
    server.publish("t", "still there").await;
    assert_eq!(subscriber.text().await, "still there");
}

#[tokio::test]
async fn each_violation_has_its_close_code_and_touches_nobody_else() {
    let server = Server::start(&["--shards", "1", "--message-in-bytes-max", "1000"]);
    let mut healthy = connect(&server).await;
    let unmasked = vec![0x81, 0x01, b'x'];
    let begun = |rest: Vec<u8>| [with_first(0x01, b"a"), rest].concat();
    let cases: [(&str, Vec<u8>, u16); 19] = [
        ("an unmasked frame", unmasked, 1002),
        ("the first reserved bit", with_first(0xc1, b"x"), 1002),
        ("the second reserved bit", with_first(0xa1, b"x"), 1002),
        ("the third reserved bit", with_first(0x91, b"x"), 1002),
        ("a reserved opcode", with_first(0x83, b"x"), 1002),
        ("a reserved control opcode", with_first(0x8b, b"x"), 1002),
        ("a control frame of 126 bytes", long(0x9, &[b'x'; 126]), 1002),
        ("a fragmented control frame", with_first(0x09, b"x"), 1002),
        ("a continuation of nothing", with_first(0x80, b"x"), 1002),
        ("a message inside of another", begun(masked(0x1, b"b")), 1002),
        ("a length that is not in its shortest form", long(0x1, b"short"), 1002),
        ("a close code of one byte", masked(0x8, &[3]), 1002),
        ("a close code that is not for the wire", masked(0x8, &1005u16.to_be_bytes()), 1002),
        ("a text that is not UTF-8", masked(0x1, &[b'a', 0xff]), 1007),
        ("a text that ends within a character", masked(0x1, &[0xc3]), 1007),
        ("a surrogate across fragments", begun(with_first(0x80, &[0xed, 0xa0, 0x80])), 1007),
        ("a close reason that is not UTF-8", masked(0x8, &[0x03, 0xe8, 0xff]), 1007),
        ("a message that is too large", long(0x2, &[0; 1_001]), 1009),
        (
            "fragments that are too large together",
            begun([with_first(0x00, b"b"), long(0x0, &[b'c'; 999])].concat()),
            1009,
        ),
    ];
    for (what, bytes, code) in &cases {
        let mut subscriber = connect(&server).await;
        subscriber.send(bytes).await;
        let said = subscriber.next().await;
        let Said::Close(answer, reason) = &said else { panic!("{what}: {said:?}") };
        assert_eq!(answer, code, "{what}");
        assert!(!reason.is_empty() && !reason.contains('\n'), "{what}: one line of reason: {reason:?}");
        assert_eq!(subscriber.next().await, Said::End, "{what}");
        server.publish("t", *what).await;
        assert_eq!(healthy.text().await, *what, "a healthy subscriber goes on");
    }
    for (label, code) in [("ws_protocol", 1002), ("ws_not_utf8", 1007), ("ws_too_big", 1009)] {
        let count = cases.iter().filter(|case| case.2 == code).count();
        server.await_closed(label, count as u64).await;
    }
    healthy.send(&masked(0x9, b"?")).await;
    assert_eq!(healthy.next().await, Said::Pong(b"?".to_vec()));
}

/// What one read brings may hold the upgrade and the first frames: nothing of it is lost.
#[tokio::test]
async fn frames_may_follow_the_request_at_once() {
    let server = Server::start(&["--shards", "1"]);
    let head = crate::support::peer::request(Protocol::WebSocket, &["t"], None);
    let mut eager = head.into_bytes();
    eager.extend(masked(0x9, b"early"));
    let mut subscriber = Subscriber::request(server.data, Protocol::WebSocket, eager).await;
    assert_eq!(subscriber.next().await, Said::Pong(b"early".to_vec()));
}

#[tokio::test]
async fn binary_events_are_binary_messages_and_base64_on_an_event_stream() {
    let server = Server::start(&["--shards", "1"]);
    let mut websocket = connect(&server).await;
    let mut sse = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let request = server.post("/topics/t").header("content-type", "application/octet-stream");
    let answer = server.answer(request.body(vec![0u8, b'\n', 0xff, 0xfe])).await;
    assert_eq!(answer.status, 200);
    let message = websocket.event().await;
    assert_eq!((message.binary, message.data.as_slice()), (true, &[0, b'\n', 0xff, 0xfe][..]));
    assert_eq!(sse.text().await, "AAr//g==");
    server.publish("t", "text").await;
    let message = websocket.event().await;
    assert_eq!((message.binary, message.text()), (false, "text"));
}

/// A client of another make agrees on the handshake, on every length, and on the close.
#[tokio::test]
async fn a_client_of_another_make_agrees() {
    let server = Server::start(&["--shards", "1"]);
    let socket = within("a connection", tokio::net::TcpStream::connect(server.data)).await.expect("accepted");
    let url = format!("ws://{}/ws/t", server.data);
    let (mut client, _) = within("the handshake", tokio_tungstenite::client_async(url, socket))
        .await
        .expect("tungstenite accepts our handshake");
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 300_000] {
        let data = "y".repeat(length);
        server.publish("t", data.clone()).await;
        let message = within("a message", client.next()).await.expect("open").expect("legal");
        assert_eq!(message, Message::text(data));
    }
    within("room", client.send(Message::Ping("p".into()))).await.expect("open");
    assert_eq!(
        within("a pong", client.next()).await.expect("open").expect("legal"),
        Message::Pong("p".into())
    );
    let frame = CloseFrame { code: CloseCode::Away, reason: "leaving".into() };
    within("room", client.close(Some(frame))).await.expect("open");
    let answer = within("the answer to our close", client.next()).await.expect("open").expect("legal");
    assert!(matches!(&answer, Message::Close(Some(frame)) if frame.code == CloseCode::Away), "{answer:?}");
    assert!(within("the end", client.next()).await.is_none());
}

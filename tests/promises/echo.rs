//! Claim: with `--diagnostic-echo` a WebSocket on `/echo` and on `/` gets back every message that
//! it sends, within bounds; without it both paths are what they always are.
//!
//! Set-up: frames written on bare sockets, whole, in fragments and byte by byte, and a client that
//! writes for ever and never reads.
//!
//! Expectation: one unfragmented message of the same type for each; the codes of RFC 6455 for what
//! is too large or no text; the client that does not read is closed, and nobody else.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::peer::masked;
use crate::support::raw::exchange;
use crate::support::subscriber::Event;
use crate::support::{Protocol, Said, Server, Subscriber, within};

/// The opening handshake on `path`, with these further lines.
fn head(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

async fn connect(server: &Server, path: &str) -> Subscriber {
    Subscriber::request(server.data, Protocol::WebSocket, head(path, "")).await
}

fn message(binary: bool, data: &[u8]) -> Said {
    Said::Event(Event { data: data.to_vec(), binary, ..Event::default() })
}

/// [`masked`] with another first byte: no FIN.
fn with_first(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = masked(0x1, payload);
    frame[0] = first;
    frame
}

/// A binary message of so many zero bytes, at least 65,536, masked with zeros.
fn large(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x82, 0x80 | 127];
    frame.extend_from_slice(&(bytes as u64).to_be_bytes());
    frame.resize(frame.len() + 4 + bytes, 0);
    frame
}

#[tokio::test]
async fn every_message_comes_back_whole_and_of_its_type() {
    let server = Server::start(&["--shards", "1", "--diagnostic-echo"]);
    for path in ["/", "/echo", "/echo?agent=x"] {
        let mut echo = connect(&server, path).await;
        echo.send(&masked(0x1, "räume".as_bytes())).await;
        assert_eq!(echo.next().await, message(false, "räume".as_bytes()), "{path}");
        echo.send(&masked(0x2, &[0xff, 0xfe, 0])).await;
        assert_eq!(echo.next().await, message(true, &[0xff, 0xfe, 0]));
        echo.send(&masked(0x1, b"")).await;
        assert_eq!(echo.next().await, message(false, b""));
        // A text in three fragments, a character cut between two of them, a ping in between.
        let fragments = [
            with_first(0x01, &[b'r', 0xc3]),
            masked(0x9, b"between"),
            with_first(0x00, &[0xa4, b'u']),
            with_first(0x80, b"me"),
        ];
        for byte in fragments.concat() {
            echo.send(&[byte]).await;
        }
        assert_eq!(echo.next().await, Said::Pong(b"between".to_vec()));
        assert_eq!(echo.next().await, message(false, "räume".as_bytes()));
        echo.send(&large(65_536)).await;
        assert_eq!(echo.next().await, message(true, &[0; 65_536]));
        echo.send(&masked(0x8, &[&3001u16.to_be_bytes()[..], b"done"].concat())).await;
        assert!(matches!(echo.next().await, Said::Close(3001, _)));
        assert_eq!(echo.next().await, Said::End);
    }
    assert_eq!(server.counter(Protocol::WebSocket, "connections").await, 0);
    assert_eq!(server.counter(Protocol::WebSocket, "messages_in").await, 15);
}

#[tokio::test]
async fn answers_come_in_the_order_of_what_they_answer() {
    let server = Server::start(&["--shards", "1", "--diagnostic-echo"]);
    let mut echo = connect(&server, "/echo").await;
    let payload = |number: usize| format!("payload-{number}").into_bytes();
    let pairs =
        (0..500).map(|number| [masked(0x1, &payload(number)), masked(0x9, &payload(number))].concat());
    echo.send(&pairs.collect::<Vec<_>>().concat()).await;
    for number in 0..500 {
        assert_eq!(echo.next().await, message(false, &payload(number)));
        assert_eq!(echo.next().await, Said::Pong(payload(number)));
    }
}

#[tokio::test]
async fn what_breaks_a_rule_is_not_given_back() {
    let server = Server::start(&["--shards", "1", "--diagnostic-echo", "--message-in-bytes-max", "70000"]);
    let mut echo = connect(&server, "/echo").await;
    echo.send(&large(70_000)).await;
    assert_eq!(echo.next().await, message(true, &[0; 70_000]));
    for (what, frame, code) in [
        ("one byte too many", large(70_001), 1009),
        ("no text", masked(0x1, &[b'a', 0xff]), 1007),
        ("a reserved bit", with_first(0xc1, b"a"), 1002),
    ] {
        let mut other = connect(&server, "/").await;
        other.send(&[masked(0x1, b"before"), frame].concat()).await;
        assert_eq!(other.next().await, message(false, b"before"), "{what}");
        let said = other.next().await;
        assert!(matches!(said, Said::Close(told, _) if told == code), "{what}: {said:?}");
    }
    echo.send(&masked(0x1, b"still here")).await;
    assert_eq!(echo.next().await, message(false, b"still here"));
}

/// Its socket fills, then what may wait behind the send does, and that is the end of it.
#[tokio::test]
async fn a_client_that_never_reads_is_closed_before_it_costs_memory() {
    let server = Server::start(&["--shards", "1", "--diagnostic-echo"]);
    let mut other = connect(&server, "/echo").await;
    let before = server.resident_bytes();
    let mut socket = within("a connection", TcpStream::connect(server.data)).await.expect("accepted");
    within("room", socket.write_all(head("/echo", "").as_bytes())).await.expect("the server reads");
    within("the head", socket.read_u8()).await.expect("an answer");
    let frame = large(65_536);
    let written = within("the end of its connection", async {
        let mut written = 0;
        while socket.write_all(&frame).await.is_ok() {
            written += frame.len();
        }
        written
    });
    let written = written.await;
    server.await_closed("stalled", 1).await;
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more after {written} bytes that nobody read");
    other.send(&masked(0x1, b"still here")).await;
    assert_eq!(other.next().await, message(false, b"still here"));
}

#[tokio::test]
async fn an_echo_is_admitted_and_drained_as_a_subscriber_is() {
    let flags = ["--shards", "1", "--diagnostic-echo", "--cors-origin", "https://a.example"];
    let server = Server::start(&flags);
    let foreign = head("/echo", "Origin: https://b.example\r\n");
    assert_eq!(exchange(server.data, foreign.as_bytes()).await.status, 403);
    let old = head("/echo", "").replace("HTTP/1.1", "HTTP/1.0");
    assert_eq!(exchange(server.data, old.as_bytes()).await.status, 400);
    let plain = exchange(server.data, b"GET /echo HTTP/1.1\r\nHost: test\r\n\r\n").await;
    assert_eq!((plain.status, plain.header("Upgrade")), (426, Some("websocket")));
    let front = exchange(server.data, b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").await;
    assert_eq!(front.status, 200);
    let offers = "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
    let mut echo = Subscriber::request(server.data, Protocol::WebSocket, head("/echo", offers)).await;
    assert!(echo.head.contains("\r\nSec-WebSocket-Protocol: chat\r\n"), "{}", echo.head);
    assert!(!echo.head.to_ascii_lowercase().contains("extensions"), "{}", echo.head);
    server.signal(rustix::process::Signal::TERM);
    assert!(matches!(echo.next().await, Said::Close(1012, _)));
}

#[tokio::test]
async fn without_the_flag_there_is_no_echo() {
    let server = Server::start(&["--shards", "1"]);
    assert_eq!(exchange(server.data, head("/echo", "").as_bytes()).await.status, 404);
    let front = exchange(server.data, head("/", "").as_bytes()).await;
    assert_eq!((front.status, front.header("Upgrade")), (200, None));
}

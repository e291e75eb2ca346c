//! Claim: a client that ends its own side with its request gets the whole answer, and then the end.
//!
//! Set-up: bare sockets that send a request and the end of their stream at once, as `nc` and some
//! proxies do; a window that holds more than one send carries.
//!
//! Expectation: of an event stream its head and all that the window holds after the id that was
//! named, then the end of the stream; of every other request its answer.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::peer::request;
use crate::support::raw::rest;
use crate::support::{Protocol, Server, until, within};

/// All that the server says to somebody who ends its side with its request.
async fn said(server: &Server, address: std::net::SocketAddr, request: &str) -> Vec<u8> {
    let mut socket = within("a connection", TcpStream::connect(address)).await.expect("accepted");
    within("room", socket.write_all(request.as_bytes())).await.expect("the server reads");
    within("the end of our side", socket.shutdown()).await.expect("open");
    let said = rest(&mut socket).await;
    until("the connection to be gone", async || {
        (server.stats().await["totals"]["connections"] == 0).then_some(())
    })
    .await;
    said
}

#[tokio::test]
async fn a_stream_is_sent_as_far_as_the_window_goes() {
    let server = Server::start(&["--shards", "1", "--send-bytes-max", "4KiB"]);
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(server.publish("t", format!("{number} {}", "x".repeat(1_000))).await.id);
    }
    for after in [0, 10, 18, 19] {
        let head = request(Protocol::Sse, &["t"], Some(&ids[after]));
        let text = String::from_utf8(said(&server, server.data, &head).await).expect("UTF-8");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text:.200}");
        let numbers: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("data: ")?.split(' ').next()).collect();
        let expected: Vec<String> = (after + 1..20).map(|number| number.to_string()).collect();
        assert_eq!(numbers, expected, "after {after}");
        assert!(text.ends_with("\n\n\r\n0\r\n\r\n"), "whole events and the last chunk");
        let head = request(Protocol::WebSocket, &["t"], Some(&ids[after]));
        let bytes = said(&server, server.data, &head).await;
        assert!(bytes.starts_with(b"HTTP/1.1 101 "));
        let messages = memchr::memmem::find_iter(&bytes, b" xxx").count();
        assert_eq!(messages, 19 - after, "after {after}");
    }
    server.await_closed("client_gone", 8).await;
}

#[tokio::test]
async fn every_other_request_has_its_answer() {
    let server = Server::start(&["--shards", "1"]);
    for (address, path, begin) in [
        (server.data, "/healthz", "HTTP/1.1 200 OK\r\n"),
        (server.data, "/nowhere", "HTTP/1.1 404 Not Found\r\n"),
        (server.data, "/", "HTTP/1.1 200 OK\r\n"),
        (server.control, "/healthz", "HTTP/1.1 200 OK\r\n"),
        (server.control, "/nowhere", "HTTP/1.1 404 Not Found\r\n"),
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let answer = String::from_utf8(said(&server, address, &head).await).expect("UTF-8");
        assert!(answer.starts_with(begin) && answer.ends_with('\n'), "{path}: {answer}");
    }
}

//! Claim: nobody keeps others out by taking all the places, and a proxy may tell who its clients
//! are.
//!
//! Set-up: 5,000 connections from one address that say nothing, to a server with fewer sockets;
//! with and without a limit per address. Listeners that take the PROXY protocol, with TLS behind it
//! and without.
//!
//! Expectation: others come in within the patience for a request head. Those beyond the limit of an
//! address get 429, behind a proxy by the address of the client.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::net::{TcpSocket, TcpStream};

use super::http2;
use crate::support::peer::request;
use crate::support::raw::{RawAnswer, exchange, exchange_bytes, rest};
use crate::support::secure::{self, Client, certificate, trusting};
use crate::support::{Protocol, Scratch, Server, Subscriber, proxied, raise_descriptor_limit, within};

const FLOOD: usize = 5_000;
const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// A connection that says nothing, from this address. `None` where the kernel's queue is full.
async fn silent(ip: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from((ip, 0))).expect("all of 127.0.0.0/8 is loopback");
    within("a connection", socket.connect(server)).await.expect("the kernel takes it")
}

async fn others_come_in(flags: &[&str]) -> (Server, Vec<TcpStream>) {
    raise_descriptor_limit();
    let flags = [&["--shards", "2", "--connections-per-shard-max", "2000"], flags].concat();
    let server = Server::start(&flags);
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        flood.push(silent(FLOODER, server.data).await);
    }
    let mut subscribers = Vec::new();
    for number in 0..20 {
        let protocol = [Protocol::Sse, Protocol::WebSocket][number % 2];
        subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
    }
    server.publish("t", "to all").await;
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "to all");
    }
    (server, flood)
}

#[tokio::test]
async fn silent_connections_from_one_address_keep_nobody_out() {
    others_come_in(&[]).await;
}

#[tokio::test]
async fn an_address_has_its_places_and_no_more() {
    let (server, flood) = others_come_in(&["--connections-per-address-max", "1000"]).await;
    assert!(server.closed("address_full").await > 0);
    drop(flood);
    // Those that were let in hold their places while they are there.
    let limited = Server::start(&["--shards", "2", "--connections-per-address-max", "3"]);
    let mut inside = Vec::new();
    for _ in 0..3 {
        inside.push(Subscriber::connect(limited.data, Protocol::Sse, &["t"]).await);
    }
    let refused = exchange(limited.data, request(Protocol::WebSocket, &["t"], None).as_bytes()).await;
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!((1..=4).contains(&refused.retry_after_s()), "{refused:?}");
    assert!(refused.line().contains("as many connections as one may have"));
    let health = exchange(limited.data, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(health.status, 200, "probes are answered");
    limited.await_closed("address_full", 1).await;
}

#[tokio::test]
async fn a_proxy_tells_the_address_of_its_client() {
    let address = "127.0.0.1:0";
    let flags = ["--shards", "1", "--proxy-protocol", address, "--connections-per-address-max", "1"];
    let server = Server::start(&flags);
    let subscribe = String::from_utf8(request(Protocol::Sse, &["t"], None).into_bytes()).expect("ASCII");
    let by = |client: &str| format!("PROXY TCP4 {client} 127.0.0.1 50000 80\r\n{subscribe}");
    let mut first = TcpStream::connect(server.data).await.expect("it listens");
    tokio::io::AsyncWriteExt::write_all(&mut first, by("192.0.2.1").as_bytes()).await.expect("room");
    server.await_subscribers("t", 1, 0).await;
    let refused = exchange(server.data, by("192.0.2.1").as_bytes()).await;
    assert!(refused.status == 429 || refused.body.starts_with(b"retry: "), "{refused:?}");
    let _second = {
        let mut second = TcpStream::connect(server.data).await.expect("it listens");
        let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\0\x02\x02\x7f\0\0\x01\xc3\x50\x00\x50";
        let whole = [&header[..], subscribe.as_bytes()].concat();
        tokio::io::AsyncWriteExt::write_all(&mut second, &whole).await.expect("room");
        second
    };
    server.await_subscribers("t", 2, 0).await;
    let bare = exchange(server.data, subscribe.as_bytes()).await;
    assert_eq!((bare.status, bare.line().contains("a PROXY header is expected")), (400, true), "{bare:?}");
    server.await_closed("bad_proxy_header", 1).await;

    let plain = Server::start(&["--shards", "1"]);
    let mut stranger = TcpStream::connect(plain.data).await.expect("it listens");
    tokio::io::AsyncWriteExt::write_all(&mut stranger, by("192.0.2.1").as_bytes()).await.expect("room");
    let refused = RawAnswer::parse(&rest(&mut stranger).await);
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(refused.line().contains("no PROXY header is expected"), "{refused:?}");
}

/// The header stands before TLS, and nothing of it gets into the handshake.
#[tokio::test]
async fn a_proxy_that_passes_tls_through_tells_the_address_of_its_client() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let address = |last: u8| SocketAddr::from(([192, 0, 2, last], 50_000));
    for egress in ["auto", "epoll"] {
        let flags = ["--shards", "1", "--proxy-protocol", "127.0.0.1:0", "--egress", egress, "--access-log"];
        let limit = ["--connections-per-address-max", "1"];
        let (mut server, secure) = secure::start(&scratch, &[&flags[..], &limit].concat());
        let behind = |header: &[u8]| Client::behind(secure, Arc::new(trusting(&trusted)), header);
        let mut first = behind(&proxied::v1(address(1)));
        first.says(request(Protocol::Sse, &["t"], None).as_bytes());
        server.await_subscribers("t", 1, 0).await;
        let mut second =
            http2::Client::secure_behind(secure, &trusted, &proxied::v2(address(2), b"\x04\0\0"));
        let stream = second.get("/sse/t", &[]);
        server.await_subscribers("t", 2, 0).await;
        server.publish("t", "to both").await;
        first.hears("data: to both");
        second.hears(stream, "data: to both");

        // On an address without TLS it is the same client.
        let subscribe = request(Protocol::WebSocket, &["t"], None);
        let plain = [&proxied::v1(address(1))[..], subscribe.as_bytes()].concat();
        assert_eq!(exchange(server.data, &plain).await.status, 429);
        let mut crowd = behind(&proxied::v2(address(1), b""));
        crowd.says(subscribe.as_bytes());
        let refused = crowd.hears("\r\n\r\n");
        assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
        server.await_closed("address_full", 2).await;

        let mut bare = behind(b"");
        let told = bare.stream.read(&mut [0]).expect_err("an alert");
        assert!(told.to_string().contains("UnexpectedMessage"), "{told}");
        let request = exchange(secure, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(request.status == 400 && request.line().contains("PROXY header is expected"), "{request:?}");
        let alert = exchange_bytes(secure, b"PROXY TCP4 192.0.2.1 192.0.2.9 1\r\n").await;
        assert_eq!(alert, [21, 3, 3, 0, 2, 2, 10]);
        server.await_closed("bad_proxy_header", 3).await;

        drop((first, second, crowd));
        server.signal(rustix::process::Signal::TERM);
        assert!(server.ended().await.success());
        let log = server.log();
        for client in [address(1), address(2)] {
            assert!(log.contains(&format!("subscribed shard=0 peer={client} ")), "{log}");
        }
        assert!(log.contains("not of the form: PROXY TCP4 SOURCE"), "{log}");
    }
}

/// The kernel's queue is the valve: nobody is refused, they wait.
#[tokio::test]
async fn a_storm_is_let_in_at_the_rate_that_was_set() {
    let server = Server::start(&["--shards", "1", "--handshakes-per-second-max", "200"]);
    let mut storm = Vec::new();
    for _ in 0..300 {
        storm.push(tokio::spawn(Subscriber::connect(server.data, Protocol::Sse, &["t"])));
    }
    for subscriber in storm {
        within("everybody to come in", subscriber).await.expect("a subscriber");
    }
    assert_eq!(server.closed("full").await, 0);
}

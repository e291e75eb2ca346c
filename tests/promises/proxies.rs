//! Claim: event streams and WebSockets pass through nginx and HAProxy with the configurations of
//! `deploy/`, as they come; so does HTTP/2 through a proxy that ends TLS and passes on what is in it,
//! and TLS itself through one that passes it on.
//!
//! Set-up: Debian's packages, the examples with ports replaced and without TLS, a server behind
//! them.
//!
//! Expectation: subscribers of both protocols get each event while their connections stay open;
//! behind HAProxy the server knows the address of its client, and counts by it.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::http2::Client;
use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::secure::{self, certificate, start};
use crate::support::{Protocol, Scratch, Server, Subscriber, until};

/// A proxy in the foreground, gone with its value.
struct Proxy(Child);

impl Proxy {
    fn start(command: &mut Command) -> Proxy {
        Proxy(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the proxy starts"))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // nginx ends its workers only when it is told to end by itself.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let _ = self.0.wait();
    }
}

fn example(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// An address that nobody listens on just now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// `text` with each of these replaced, which must all be there.
fn replaced(mut text: String, pairs: &[(&str, &str)]) -> String {
    for (from, to) in pairs {
        assert!(text.contains(from), "no {from:?} in the example");
        text = text.replace(from, to);
    }
    text
}

async fn await_proxy(address: SocketAddr) {
    until("the proxy to reach the server", async || {
        if tokio::net::TcpStream::connect(address).await.is_err() {
            return None;
        }
        let answer =
            exchange(address, b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Subscribers of both protocols get three events one by one, then both leave.
async fn events_pass(server: &Server, proxy: SocketAddr) {
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        subscribers.push(Subscriber::connect(proxy, protocol, &["t"]).await);
    }
    for number in 0..3 {
        server.publish("t", format!("event {number}")).await;
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.text().await, format!("event {number}"));
        }
    }
    drop(subscribers);
    server.await_subscribers("t", 0, 0).await;
}

#[tokio::test]
#[ignore = "needs nginx"]
async fn proxy_nginx() {
    let server = Server::start(&["--shards", "1"]);
    let (scratch, front) = (Scratch::new(), free_address());
    let (listen, upstream) = (format!("listen {front};"), server.data.to_string());
    let site = replaced(
        example("nginx/fanwave.conf"),
        &[
            ("listen 443 ssl http2;", &listen),
            ("ssl_certificate     /etc/ssl/events.pem;", ""),
            ("ssl_certificate_key /etc/ssl/events.key;", ""),
            ("127.0.0.1:8080", &upstream),
        ],
    );
    let site = scratch.write("site.conf", &site);
    let place = scratch.path("");
    let place = place.display();
    let main = scratch.write(
        "nginx.conf",
        &format!(
            "daemon off; pid {place}nginx.pid; error_log stderr;\nevents {{ worker_connections 64; }}\n\
             http {{ access_log off; client_body_temp_path {place}body; proxy_temp_path {place}proxy;\n\
             fastcgi_temp_path {place}f; uwsgi_temp_path {place}u; scgi_temp_path {place}s;\n\
             include {site}; }}\n"
        ),
    );
    let _nginx = Proxy::start(Command::new("nginx").args(["-c", &main, "-e", "stderr"]));
    await_proxy(front).await;
    events_pass(&server, front).await;
}

#[tokio::test]
#[ignore = "needs haproxy"]
async fn proxy_haproxy() {
    let flags = ["--proxy-protocol", "127.0.0.1:0", "--connections-per-address-max", "3"];
    let server = Server::start(&[&["--shards", "1"], &flags[..]].concat());
    let (scratch, front) = (Scratch::new(), free_address());
    let (bind, upstream) = (format!("bind {front}"), format!("edge1 {}", server.data));
    let site = replaced(
        example("haproxy/haproxy.cfg"),
        &[
            ("bind :443 ssl crt /etc/ssl/events.pem alpn h2,http/1.1", &bind),
            ("edge1 127.0.0.1:8080", &upstream),
            ("maxconn 100000", "maxconn 100"),
            // So long does a connection stay open behind an answer, too.
            ("timeout http-request 10s", "timeout http-request 1s"),
        ],
    );
    let file = scratch.write("haproxy.cfg", &site);
    let checked = Command::new("haproxy").args(["-c", "-q", "-f", &file]).output().expect("it runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let _haproxy = Proxy::start(Command::new("haproxy").args(["-db", "-f", &file]));
    await_proxy(front).await;
    events_pass(&server, front).await;

    // Three of this address, and then no more; HAProxy's own checks are not counted among them.
    let mut inside = Vec::new();
    for _ in 0..3 {
        inside.push(Subscriber::connect(front, Protocol::Sse, &["t"]).await);
    }
    let refused = exchange(front, request(Protocol::WebSocket, &["t"], None).as_bytes()).await;
    assert_eq!(refused.status, 429, "{refused:?}");
}

/// All streams of a client share one connection behind the proxy, too.
#[tokio::test]
#[ignore = "needs haproxy"]
async fn proxy_haproxy_passes_http_2_on() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let text = |name: &str| std::fs::read_to_string(scratch.path(name)).expect("it was written");
    let pem = scratch.write("both.pem", &[text("cert.pem"), text("key.pem")].concat());
    for version in ["send-proxy", "send-proxy-v2"] {
        let server = Server::start(&["--shards", "1", "--proxy-protocol", "127.0.0.1:0"]);
        let (front, back) = (free_address(), server.data);
        let site = format!(
            "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
             listen fanwave\n    bind {front} ssl crt {pem} alpn h2,http/1.1\n    server edge1 {back} {version}\n"
        );
        let file = scratch.write("haproxy.cfg", &site);
        let _haproxy = Proxy::start(Command::new("haproxy").args(["-db", "-f", &file]));
        until("the proxy to listen", async || std::net::TcpStream::connect(front).ok()).await;
        let mut client = Client::secure(front, &trusted);
        let streams = [(); 2].map(|()| client.get("/sse/t", &[]));
        server.await_subscribers("t", 2, 0).await;
        server.publish("t", "hello").await;
        for stream in streams {
            client.hears(stream, "data: hello");
        }
        let http2 = server.stats().await["totals"]["http2"].clone();
        assert_eq!(http2, serde_json::json!({ "carriers": 1, "opened": 2, "streams": 2 }), "{version}");
    }
}

/// The client's own TLS, and before it who it is. HAProxy's checks speak TLS behind headers of its
/// own.
#[tokio::test]
#[ignore = "needs haproxy"]
async fn proxy_haproxy_passes_tls_through() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    for version in ["send-proxy", "send-proxy-v2"] {
        let flags = ["--shards", "1", "--proxy-protocol", "127.0.0.1:0", "--access-log"];
        let (mut server, back) = start(&scratch, &flags);
        let front = free_address();
        let site = format!(
            "defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
             listen fanwave\n    bind {front}\n    option httpchk\n    http-check send meth GET uri /healthz \
             ver HTTP/1.1 hdr Host localhost\n    server edge1 {back} {version} check inter 100 check-ssl \
             verify none\n"
        );
        let file = scratch.write("haproxy.cfg", &site);
        let _haproxy = Proxy::start(Command::new("haproxy").args(["-db", "-f", &file]));
        until("the proxy to listen", async || std::net::TcpStream::connect(front).ok()).await;
        // Its checks are answered, and are nobody's who broke anything.
        until("checks", async || (server.closed("answered").await >= 2).then_some(())).await;
        let mut sse = secure::Client::subscribe(front, &trusted, Protocol::Sse, None);
        let mut client = Client::secure(front, &trusted);
        let stream = client.get("/sse/t", &[]);
        server.await_subscribers("t", 2, 0).await;
        server.publish("t", "hello").await;
        sse.hears("data: hello");
        client.hears(stream, "data: hello");
        for label in ["bad_proxy_header", "tls_handshake", "tls_record"] {
            assert_eq!(server.closed(label).await, 0, "{label} by {version}");
        }
        let peer = sse.stream.sock.local_addr().expect("it is connected");
        drop((sse, client));
        server.signal(rustix::process::Signal::TERM);
        assert!(server.ended().await.success());
        let log = server.log();
        assert!(log.contains(&format!("subscribed shard=0 peer={peer} ")), "{log}");
    }
}

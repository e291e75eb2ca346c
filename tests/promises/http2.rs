//! Claim: over HTTP/2 a subscriber gets what it gets over HTTP/1.1, and all tabs of a browser share
//! one connection.
//!
//! Set-up: a server with TLS and without, behind a proxy that tells the address of its client or not,
//! io_uring or epoll below. Clients are of others: curl and nghttp2, python-h2, hpack and hyperframe
//! (`tests/conformance/http2.py`), and Chromium.
//!
//! Expectation: event streams are whole, resume, and go on beside publishes; `--h2-streams-max 0`
//! offers none of it. 30 event streams of one tab are complete and in order, and a `fetch` beside
//! them is answered at once. WebSockets still come by HTTP/1.1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use serde_json::json;

use crate::support::chromium::Chromium;
use crate::support::secure::{self, certificate, start};
use crate::support::{PATIENCE, Scratch, Server, h2, raw, until};

/// What a client writes to and reads from.
trait Link: Read + Write + Send {}

impl<L: Read + Write + Send> Link for L {}

/// A client of HTTP/2.
pub struct Client {
    socket: Box<dyn Link>,
    h2: h2::Client,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        Client::behind(address, &[])
    }

    /// These bytes of a proxy come first.
    fn behind(address: SocketAddr, header: &[u8]) -> Client {
        let socket = TcpStream::connect(address).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Client::on(socket, header)
    }

    /// With TLS.
    pub fn secure(address: SocketAddr, trusted: &CertificateDer<'static>) -> Client {
        Client::secure_behind(address, trusted, &[])
    }

    /// With TLS, behind these bytes of a proxy.
    pub fn secure_behind(address: SocketAddr, trusted: &CertificateDer<'static>, header: &[u8]) -> Client {
        let mut config = secure::trusting(trusted);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let secure::Client { stream, .. } = secure::Client::behind(address, Arc::new(config), header);
        Client::on(stream, &[])
    }

    fn on(socket: impl Link + 'static, header: &[u8]) -> Client {
        let mut client = Client { socket: Box::new(socket), h2: h2::Client::default() };
        let hello = [header, &client.h2.hello(&[])].concat();
        client.say(&hello);
        client
    }

    fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the server is there");
        self.socket.flush().expect("the server is there");
    }

    pub fn get(&mut self, path: &str, fields: &[(&str, &str)]) -> u32 {
        let (stream, bytes) = self.h2.request("GET", path, fields, true);
        self.say(&bytes);
        stream
    }

    /// Reads until `text` has come on a stream. Returns all that came on it.
    pub fn hears(&mut self, stream: u32, text: &str) -> String {
        loop {
            let heard = String::from_utf8_lossy(&self.h2.streams[&stream].body).into_owned();
            if heard.contains(text) {
                return heard;
            }
            let mut bytes = [0; 16_384];
            let read = self.socket.read(&mut bytes).expect("no fault");
            assert!(read > 0, "the connection ends before {text:?}: {heard}");
            let answer = self.h2.hear(&bytes[..read]);
            self.say(&answer);
        }
    }
}

#[tokio::test]
async fn streams_of_one_connection_are_whole_and_resume() {
    let server = Server::start(&["--shards", "1"]);
    let mut client = Client::connect(server.data);
    let streams: Vec<u32> = (0..6).map(|_| client.get("/sse/t", &[])).collect();
    server.await_subscribers("t", 6, 0).await;
    let first = server.publish("t", "one").await;
    server.publish("t", "two").await;
    for stream in &streams {
        let heard = client.hears(*stream, "data: two");
        assert!(heard.contains("data: one"), "{heard}");
    }
    let late = client.get("/sse/t", &[("last-event-id", &first.id)]);
    let heard = client.hears(late, "data: two");
    assert!(!heard.contains("data: one") && !heard.contains("fanwave-gap"), "{heard}");
    let health = client.get("/healthz", &[]);
    client.hears(health, "ok\n");
    // All of it are connections of one socket. The last of them is gone a little after its answer.
    let expected = json!({ "carriers": 1, "opened": 8, "streams": 7 });
    until("seven streams", async || (server.stats().await["totals"]["http2"] == expected).then_some(()))
        .await;
    assert_eq!(server.stats().await["totals"]["connections"], 1);
}

#[tokio::test]
async fn who_wants_no_http_2_has_none() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (server, _) = start(&scratch, &["--shards", "1", "--h2-streams-max", "0"]);
    let answer = raw::exchange(server.data, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(answer.line(), "this port speaks HTTP/1.1, not HTTP/2");
}

#[tokio::test]
async fn a_drain_ends_streams_in_order_and_says_farewell() {
    let mut server = Server::start(&["--shards", "1"]);
    let mut client = Client::connect(server.data);
    let stream = client.get("/sse/t", &[]);
    server.await_subscribers("t", 1, 0).await;
    server.publish("t", "last").await;
    server.signal(rustix::process::Signal::TERM);
    while client.h2.goaway.is_none() || !client.h2.streams[&stream].ended {
        let mut bytes = [0; 4_096];
        let read = client.socket.read(&mut bytes).expect("no fault");
        assert!(read > 0, "{:?}", client.h2);
        client.h2.hear(&bytes[..read]);
    }
    let heard = String::from_utf8_lossy(&client.h2.streams[&stream].body).into_owned();
    assert!(heard.contains("data: last\n\n"), "{heard}");
    assert_eq!(client.h2.goaway, Some((stream, 0)));
    drop(client);
    assert!(server.ended().await.success());
}

#[tokio::test]
async fn a_proxy_tells_who_connects_before_the_preface() {
    let flags = ["--proxy-protocol", "127.0.0.1:0", "--connections-per-address-max", "1"];
    let server = Server::start(&[&["--shards", "1"], &flags[..]].concat());
    let v1 = |last: u8| format!("PROXY TCP4 198.51.100.{last} 192.0.2.9 50000 80\r\n").into_bytes();
    let v2 = |last: u8| {
        let addresses = [198, 51, 100, last, 192, 0, 2, 9, 195, 80, 0, 80];
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &addresses].concat()
    };
    let mut clients = [v1(7), v2(8)].map(|header| Client::behind(server.data, &header));
    let streams = clients.each_mut().map(|client| client.get("/sse/t", &[]));
    server.await_subscribers("t", 2, 0).await;
    server.publish("t", "hello").await;
    for (client, stream) in clients.iter_mut().zip(streams) {
        client.hears(stream, "data: hello");
    }
    // All come from this machine. The addresses that they are of have one connection each.
    let _cut = [v1(8), v2(7)].map(|header| Client::behind(server.data, &header));
    server.await_closed("address_full", 2).await;
}

fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn curl(arguments: &[&str]) -> String {
    let usual = ["--silent", "--show-error", "--insecure", "--max-time", "60"];
    let output = run("curl", &[&usual, arguments].concat());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
#[ignore = "needs curl"]
async fn http2_curl() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (server, secure) = start(&scratch, &["--shards", "1", "--client-publish", "t"]);
    let (plain, secure) = (format!("http://{}", server.data), format!("https://{secure}"));
    for (way, at) in [("--http2-prior-knowledge", plain), ("--http2", secure)] {
        let version = ["--write-out", "%{http_version} %{http_code}"];
        let health = curl(&[&[way, &format!("{at}/healthz")][..], &version].concat());
        assert_eq!(health, "ok\n2 200");
        let said = curl(&[&[way, "--data", "hello", &format!("{at}/topics/t")][..], &version].concat());
        assert!(said.ends_with("}\n2 200"), "{said}");
        // The stream ends with the time that curl has.
        let url = format!("{at}/sse/t?last=1");
        let stream = curl(&[way, "--no-buffer", "--max-time", "2", &url]);
        assert!(stream.contains("data: hello"), "{stream}");
    }
}

#[tokio::test]
#[ignore = "needs nghttp2-client"]
async fn http2_nghttp() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (server, secure) = start(&scratch, &["--shards", "1"]);
    for at in [format!("http://{}", server.data), format!("https://{secure}")] {
        let load = ["-n", "2000", "-c", "10", "-m", "20", &format!("{at}/healthz")];
        let told = String::from_utf8_lossy(&run("h2load", &load).stdout).into_owned();
        assert!(told.contains("2000 succeeded, 0 failed, 0 errored"), "{told}");
    }
    server.publish("t", "hello").await;
    let url = format!("https://{secure}/sse/t?last=1");
    let stream = run("nghttp", &["--timeout=2", &url]);
    assert!(String::from_utf8_lossy(&stream.stdout).contains("data: hello"), "{stream:?}");
}

#[tokio::test]
#[ignore = "needs python-h2, hpack, hyperframe and httpx"]
async fn http2_python() {
    let python = std::env::var("INTEROP_PYTHON").expect("tests/run sets it");
    let server = Server::start(&["--shards", "1", "--client-publish", "t"]);
    let (data, control) = (server.data.to_string(), server.control.to_string());
    let told = run(&format!("{python}/bin/python"), &["tests/conformance/http2.py", &data, &control]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs chromium"]
async fn browser_has_thirty_event_streams_in_one_tab() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (server, secure) = start(&scratch, &["--shards", "1"]);
    let chromium = Chromium::start("http2").await;
    let mut page = chromium.window(&format!("https://localhost:{}/", secure.port())).await;
    let open = "window.heard = Array.from({ length: 30 }, () => []);
        window.sources = heard.map(heard => {
            const source = new EventSource('/sse/t');
            source.onmessage = event => heard.push(event.data);
            return source;
        }); 0";
    page.value(open).await;
    server.await_subscribers("t", 30, 0).await;
    assert_eq!(page.value("fetch('/healthz').then(answer => answer.text())").await, "ok\n");
    for text in 0..20 {
        server.publish("t", text.to_string()).await;
    }
    let all: Vec<String> = (0..20).map(|text| text.to_string()).collect();
    page.await_true(&format!("heard.every(heard => heard.join() === '{}')", all.join(","))).await;
    let by = "performance.getEntriesByType('navigation')[0].nextHopProtocol";
    assert_eq!(page.value(by).await, "h2");
    let opened = "new Promise(done => {
            const socket = new WebSocket(`wss://${location.host}/ws/t`);
            socket.onopen = () => done('open');
            socket.onerror = () => done('error');
        })";
    assert_eq!(page.value(opened).await, "open", "by HTTP/1.1");
    let totals = server.stats().await["totals"].clone();
    assert_eq!(totals["http2"]["carriers"], 1, "one connection carries all: {totals}");
}

//! Claim: over TLS 1.3 a subscriber gets what it gets without, and the certificates may change
//! under it.
//!
//! Set-up: a server with `--listen-tls` and a certificate of its own making. Clients are rustls and
//! curl, neither of which shares code with the server's record layer.
//!
//! Expectation: event streams and WebSockets are whole, also for who comes back with an id, be it
//! to a process that has taken the place of the first one. A reload takes new certificates and cuts
//! nobody; one that cannot be used changes nothing, and is named. What is no TLS, or an older one,
//! is refused with a reason and counted.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::peer::{Protocol, masked, request};
use crate::support::raw::exchange;
use crate::support::server::{answer, client};
use crate::support::{PATIENCE, Scratch, Server, Subscriber, until};

/// The files of a certificate for `localhost`, written into `scratch`.
pub(super) fn certificate(scratch: &Scratch) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    scratch.write("cert.pem", &made.cert.pem());
    scratch.write("key.pem", &made.signing_key.serialize_pem());
    made.cert.der().clone()
}

/// A server with these files; its address with TLS.
pub(super) fn start(scratch: &Scratch, flags: &[&str]) -> (Server, SocketAddr) {
    let path = |name: &str| scratch.path(name).to_str().expect("UTF-8").to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let tls = ["--listen-tls", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    let server = Server::start(&[&tls, flags].concat());
    let line = server.banner.iter().find_map(|line| line.strip_prefix("data, TLS "));
    let address = line.expect("the banner names the address").trim().parse().expect("an address");
    (server, address)
}

/// A client that trusts one certificate.
struct Client {
    stream: StreamOwned<ClientConnection, TcpStream>,
    heard: String,
}

impl Client {
    fn connect(address: SocketAddr, trusted: &CertificateDer<'static>) -> Client {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Client { stream: StreamOwned::new(connection, stream), heard: String::new() }
    }

    fn subscribe(
        address: SocketAddr,
        trusted: &CertificateDer<'static>,
        protocol: Protocol,
        after: Option<&str>,
    ) -> Client {
        let mut client = Client::connect(address, trusted);
        client.says(request(protocol, &["t"], after).as_bytes());
        client.hears("\r\n\r\n");
        client
    }

    fn says(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server is there");
    }

    /// Reads until `text` has come; returns all up to its end.
    fn hears(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.heard.find(text) {
                let rest = self.heard.split_off(at + text.len());
                return std::mem::replace(&mut self.heard, rest);
            }
            let mut bytes = [0; 4_096];
            let read = self.stream.read(&mut bytes).expect("no fault");
            assert!(read > 0, "the stream ends before {text:?}: {:?}", self.heard);
            self.heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }

    /// Reads to the end of the stream, which is that of TLS too.
    fn hears_the_end(mut self) {
        while self.stream.read(&mut [0; 4_096]).expect("no fault") > 0 {}
    }
}

#[tokio::test]
async fn event_streams_and_websockets_are_whole_over_tls() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let mut sse = Client::subscribe(address, &trusted, Protocol::Sse, None);
    let mut websocket = Client::subscribe(address, &trusted, Protocol::WebSocket, None);
    let large = "x".repeat(300_000);
    for text in ["first", &large, "last"] {
        server.publish("t", text.to_string()).await;
        sse.hears(text);
    }
    websocket.hears("first");
    websocket.hears(&large);
    websocket.hears("last");
    // A ping is answered, and a key that changes is followed.
    for word in ["one", "two"] {
        websocket.stream.conn.refresh_traffic_keys().expect("after the handshake");
        websocket.says(&masked(0x9, word.as_bytes()));
        websocket.hears(word);
    }
}

#[tokio::test]
async fn a_subscriber_that_comes_back_with_its_id_gets_the_rest() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let first = server.publish("t", "one").await;
    for text in ["two", "three"] {
        server.publish("t", text).await;
    }
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let mut client = Client::subscribe(address, &trusted, protocol, Some(&first.id));
        let heard = client.hears("three");
        assert!(heard.contains("two") && !heard.contains("one"), "{heard}");
    }
}

/// The new process has fewer shards: each has several listeners of both addresses, with TLS and
/// without.
#[tokio::test]
async fn an_upgrade_takes_the_listeners_along_and_subscribers_come_back_with_their_ids() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let socket = scratch.path("upgrade").join("socket");
    let socket = ["--upgrade-socket", socket.to_str().expect("UTF-8")];
    let (mut old, address) = start(&scratch, &[&socket[..], &["--shards", "3"]].concat());
    let both = [Protocol::Sse, Protocol::WebSocket];
    let before = both.map(|protocol| Client::subscribe(address, &trusted, protocol, None));
    old.publish("t", "one").await;
    let last = old.publish("t", "two").await;
    let (new, same) = start(&scratch, &[&socket[..], &["--shards", "1", "--upgrade"]].concat());
    assert_eq!((new.data, same), (old.data, address), "the same listeners");
    for mut client in before {
        client.hears("two");
        client.hears_the_end();
    }
    assert_eq!(old.ended().await.code(), Some(0));
    new.publish("t", "three").await;
    // So many that every queue has some.
    for protocol in both.into_iter().cycle().take(12) {
        let mut client = Client::subscribe(address, &trusted, protocol, Some(&last.id));
        let heard = client.hears("three");
        assert!(!heard.contains("two"), "{heard}");
        let mut plain = Subscriber::resume(new.data, protocol, &["t"], Some(&last.id)).await;
        assert_eq!(plain.text().await, "three");
    }
}

#[tokio::test]
async fn a_reload_takes_new_certificates_and_cuts_nobody() {
    let scratch = Scratch::new();
    let old = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let http = client(reqwest::Client::builder());
    let reload = || answer(http.post(server.url("/reload")));
    let mut before = Client::subscribe(address, &old, Protocol::Sse, None);

    let new = certificate(&scratch);
    let told = reload().await;
    assert_eq!(told.status, 200, "{told:?}");
    let mut after = Client::subscribe(address, &new, Protocol::Sse, None);
    server.publish("t", "to all").await;
    before.hears("to all");
    after.hears("to all");

    scratch.write("key.pem", "no key");
    let wrong = reload().await;
    assert_eq!(wrong.status, 422, "{wrong:?}");
    assert!(wrong.error().contains("key.pem"), "{wrong:?}");
    Client::subscribe(address, &new, Protocol::Sse, None);
}

#[tokio::test]
async fn what_is_no_tls_1_3_is_refused_and_counted() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let plain = exchange(address, b"GET /sse/t HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(plain.status, 400);
    // The reverse: a handshake where HTTP is spoken.
    let hello = exchange(server.data, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n").await;
    assert_eq!(hello.status, 400);
    let old = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--tls-max", "1.2"])
        .arg(format!("https://{address}/healthz"))
        .output()
        .expect("curl is there");
    let told = String::from_utf8_lossy(&old.stderr);
    assert!(!old.status.success() && told.contains("protocol version"), "{told}");
    until("both to be counted", async || {
        let closed = &server.stats().await["totals"]["closed"];
        (closed["tls_handshake"] == 2 && closed["bad_request"] == 1).then_some(())
    })
    .await;
    Client::subscribe(address, &trusted, Protocol::Sse, None);
}

#[tokio::test]
async fn curl_reads_an_event_stream_over_tls() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    server.publish("t", "hello").await;
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "60", "--cacert"])
        .arg(scratch.path("cert.pem"))
        .args(["--connect-to", &format!("localhost:443:{address}")])
        .arg("https://localhost/healthz")
        .output()
        .await
        .expect("curl is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
    let mut stream = tokio::process::Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "60", "--cacert"])
        .arg(scratch.path("cert.pem"))
        .args(["--connect-to", &format!("localhost:443:{address}")])
        .arg("https://localhost/sse/t?last=1")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("curl is there");
    let mut heard = String::new();
    let mut out = stream.stdout.take().expect("piped");
    while !heard.contains("data: hello\n\n") {
        let mut bytes = [0; 1_024];
        let read = tokio::io::AsyncReadExt::read(&mut out, &mut bytes).await.expect("a pipe");
        assert!(read > 0, "curl ends early: {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

#[test]
fn a_start_without_a_usable_certificate_names_the_file() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (cert, key) = (scratch.path("cert.pem"), scratch.write("other.pem", "nothing"));
    let cert = cert.to_str().expect("UTF-8");
    for (flags, told) in [
        (&["--tls-cert", cert, "--tls-key", &key][..], "--tls-key"),
        (&["--tls-cert", "/nowhere", "--tls-key", &key], "--tls-cert /nowhere"),
        (&["--tls-cert", cert], "each needs the other"),
        (&[], "--listen-tls needs --tls-cert"),
    ] {
        let output = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_fanwave"), "--listen", "127.0.0.1:0", "--shards", "1"])
            .args(["--control", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"])
            .args(flags)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()
            .expect("the program runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(told), "no {told:?} in {stderr}");
    }
}

//! Claim: clients of other makes get every event at once, whatever it holds, and come back to where
//! they were.
//!
//! Set-up: each client is a small program of a few lines under `tests/interop`, which prints what
//! it hears. Readers of event streams go through a relay that cuts their connection.
//!
//! The same clients, and openssl, come over TLS with the test's own authority: by name of its file
//! in the variable that each of them reads.
//!
//! Expectation: each event before the next one is published, so nothing is held back; after the cut
//! the event that was published meanwhile, once, and no gap. WebSockets agree on the subprotocol,
//! on text and binary, on pings and on the close.
//!
//! `tests/run` installs the clients, and says where in `INTEROP_NODE` and
//! `INTEROP_PYTHON`.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::peer::{masked, request};
use crate::support::secure::{Authority, start};
use crate::support::server::lines_of;
use crate::support::{PATIENCE, Protocol, Scratch, Server, until};

/// A client that is not let in tries again, but not for ever.
const TRIES_MAX: usize = 100;

/// A program that prints a line of JSON for each thing that it hears.
struct Client {
    process: Child,
    lines: Receiver<String>,
}

impl Client {
    fn start(program: &str, args: &[&str], door: &Door) -> Client {
        let mut process = Command::new(program)
            .args(args)
            .envs(TRUST.into_iter().zip(&door.authority))
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let lines = lines_of(process.stdout.take().expect("piped"));
        Client { process, lines }
    }

    /// What it hears next. Other tasks of this test go on meanwhile.
    fn next(&self) -> Value {
        let line = tokio::task::block_in_place(|| self.lines.recv_timeout(PATIENCE));
        let line = line.unwrap_or_else(|error| panic!("the client says nothing more: {error}"));
        serde_json::from_str(&line).unwrap_or_else(|_| json!(line))
    }

    /// What it hears next besides lost and new connections.
    fn news(&self) -> Value {
        for _ in 0..TRIES_MAX {
            let heard = self.next();
            if heard.get("open").is_none() && heard.get("error").is_none() {
                return heard;
            }
        }
        panic!("{TRIES_MAX} connections bring no news; the last: {}", self.next());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where Node.js, Python's `ssl`, requests and curl read whom to trust.
const TRUST: [&str; 4] = ["NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// A server, and one of its addresses.
struct Door {
    server: Server,
    address: SocketAddr,
    /// What the scheme of its URLs has in addition.
    secure: &'static str,
    /// The file of whom to trust, once for each variable.
    authority: Vec<String>,
    _scratch: Scratch,
}

impl Door {
    fn plain() -> Door {
        let server = Server::start(&["--shards", "1"]);
        let address = server.data;
        Door { server, address, secure: "", authority: Vec::new(), _scratch: Scratch::new() }
    }

    fn tls() -> Door {
        let scratch = Scratch::new();
        let authority = vec![Authority::new(&scratch).file; TRUST.len()];
        let (server, address) = start(&scratch, &["--shards", "1"]);
        Door { server, address, secure: "s", authority, _scratch: scratch }
    }
}

/// Where the clients of Node.js or Python are installed.
fn place(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("tests/run sets {variable}"))
}

fn python() -> String {
    format!("{}/bin/python", place("INTEROP_PYTHON"))
}

/// Passes connections on to a server, and cuts all that there are when it is told to.
struct Relay {
    address: SocketAddr,
    cut: Arc<Notify>,
}

impl Relay {
    async fn to(server: SocketAddr) -> Relay {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, cut) = (listener.local_addr().expect("bound"), Arc::new(Notify::new()));
        let told = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let told = told.clone();
                tokio::spawn(async move {
                    let cut = told.notified();
                    let mut upstream = TcpStream::connect(server).await.expect("the server accepts");
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut upstream) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Relay { address, cut }
    }
}

/// Texts that a careless reader or writer breaks.
const TEXTS: [&str; 3] = ["first", "räume 😀 \u{2028}", "two\nlines"];

/// An event stream as `start` reads it, from the URL that it is given.
async fn reads_an_event_stream(door: Door, start: impl FnOnce(&str, &Door) -> Client) {
    let relay = Relay::to(door.address).await;
    let client = start(&format!("http{}://{}/sse/t", door.secure, relay.address), &door);
    let server = &door.server;
    server.await_subscribers("t", 1, 0).await;
    for text in TEXTS {
        // The next one is published when this one was heard.
        let id = server.publish("t", text).await.id;
        assert_eq!(client.news(), json!({ "data": text, "id": id }));
    }
    let id = server.publish_with("t", "?event=named&id=r%C3%A4ume-1", "x").await.id;
    assert_eq!(client.news(), json!({ "data": "x", "id": id, "name": "named" }));
    let request = server.post("/topics/t").header("content-type", "application/octet-stream");
    let id = server.answer(request.body(vec![0u8, b'\n', 0xff, 0xfe])).await.json()["id"].clone();
    assert_eq!(client.news(), json!({ "data": "AAr//g==", "id": id }));

    // It comes back with an id of ours, and then with a publisher's that is not ASCII.
    for query in ["?id=r%C3%A4ume-2", ""] {
        relay.cut.notify_waiters();
        server.await_subscribers("t", 0, 0).await;
        let id = server.publish("t", "meanwhile").await.id;
        assert_eq!(client.news(), json!({ "data": "meanwhile", "id": id }));
        let id = server.publish_with("t", query, "afterwards").await.id;
        assert_eq!(client.news(), json!({ "data": "afterwards", "id": id }));
    }
}

/// A WebSocket as `start` uses it, at the URL that it is given.
async fn speaks_websocket(door: Door, start: impl FnOnce(&str, &Door) -> Client) {
    let client = start(&format!("ws{}://{}/ws/t", door.secure, door.address), &door);
    let server = &door.server;
    assert_eq!(client.next(), json!({ "open": "chat" }));
    assert_eq!(client.next(), json!({ "pong": "here?" }));
    for text in TEXTS {
        server.publish("t", text).await;
        assert_eq!(client.next(), json!({ "data": text }));
    }
    let request = server.post("/topics/t").header("content-type", "application/octet-stream");
    assert_eq!(server.answer(request.body(vec![0u8, b'\n', 0xff, 0xfe])).await.status, 200);
    assert_eq!(client.next(), json!({ "binary": "AAr//g==" }));
    server.publish("t", "bye").await;
    assert_eq!(client.next(), json!({ "data": "bye" }));
    assert_eq!(client.next(), json!({ "close": 3001 }));
    server.await_subscribers("t", 0, 0).await;
    server.await_closed("client_gone", 1).await;
}

async fn node_reads_an_event_stream(door: Door, name: &str) {
    let place = place("INTEROP_NODE");
    let start = |url: &str, door: &Door| Client::start("node", &["sse.mjs", &place, name, url], door);
    reads_an_event_stream(door, start).await;
}

async fn node_speaks_websocket(door: Door) {
    let place = place("INTEROP_NODE");
    speaks_websocket(door, |url, door| Client::start("node", &["ws.mjs", &place, url], door)).await;
}

async fn python_reads_an_event_stream(door: Door, name: &str) {
    reads_an_event_stream(door, |url, door| Client::start(&python(), &["sse.py", name, url], door)).await;
}

async fn python_speaks_websocket(door: Door, name: &str) {
    speaks_websocket(door, |url, door| Client::start(&python(), &["ws.py", name, url], door)).await;
}

/// Tests of one kind of client: their names, and what each does.
macro_rules! clients {
    ($needs:literal: $($(#[$about:meta])* $name:ident: $work:expr;)+) => {
        $(
            $(#[$about])*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = $needs]
            async fn $name() {
                $work.await;
            }
        )+
    };
}

clients! { "needs node with npm's clients":
    interop_node_ws: node_speaks_websocket(Door::plain());
    interop_node_ws_over_tls: node_speaks_websocket(Door::tls());
    interop_node_eventsource: node_reads_an_event_stream(Door::plain(), "eventsource");
    interop_node_eventsource_over_tls: node_reads_an_event_stream(Door::tls(), "eventsource");
    /// Its older form, which sends the last event id as Latin-1.
    interop_node_eventsource_2: node_reads_an_event_stream(Door::plain(), "eventsource-2");
    interop_node_event_source_polyfill: node_reads_an_event_stream(Door::plain(), "event-source-polyfill");
}

clients! { "needs Python's clients":
    interop_python_websockets: python_speaks_websocket(Door::plain(), "websockets");
    interop_python_websockets_over_tls: python_speaks_websocket(Door::tls(), "websockets");
    interop_python_tornado_websocket: python_speaks_websocket(Door::plain(), "tornado");
    interop_python_httpx_sse: python_reads_an_event_stream(Door::plain(), "httpx-sse");
    interop_python_httpx_sse_over_tls: python_reads_an_event_stream(Door::tls(), "httpx-sse");
    interop_python_requests_sseclient: python_reads_an_event_stream(Door::plain(), "sseclient-py");
    interop_python_tornado_event_stream: python_reads_an_event_stream(Door::plain(), "tornado");
    /// Python's own `http.client` over its own `ssl`.
    interop_python_ssl: python_reads_an_event_stream(Door::tls(), "http.client");
}

clients! { "needs curl":
    interop_curl: curl_reads_an_event_stream(Door::plain());
    interop_curl_over_tls: curl_reads_an_event_stream(Door::tls());
}

/// curl prints the lines of the stream, and is asked again with the last id by hand.
async fn curl_reads_an_event_stream(door: Door) {
    let server = &door.server;
    let url = format!("http{}://{}/sse/t", door.secure, door.address);
    let start = |last_id: &str| {
        let last_id = format!("Last-Event-ID: {last_id}");
        let quiet = ["--silent", "--no-buffer", "--fail", "--noproxy", "*", "-H"];
        Client::start("curl", &[&quiet[..], &[&last_id, &url]].concat(), &door)
    };
    // The lines of one block that has data, without comments.
    let block = |client: &Client| loop {
        let mut lines = Vec::new();
        loop {
            let line = tokio::task::block_in_place(|| client.lines.recv_timeout(PATIENCE));
            match line.expect("curl prints the stream").as_str() {
                "" => break,
                line if line.starts_with(':') || line.starts_with("retry:") => {}
                line => lines.push(line.to_string()),
            }
        }
        if lines.iter().any(|line| line.starts_with("data: ")) {
            return lines;
        }
    };
    let client = start("");
    server.await_subscribers("t", 1, 0).await;
    let mut last_id = String::new();
    for text in TEXTS {
        last_id = server.publish("t", text).await.id;
        let mut lines = vec![format!("id: {last_id}")];
        lines.extend(text.split('\n').map(|line| format!("data: {line}")));
        assert_eq!(block(&client), lines);
    }
    drop(client);
    server.await_subscribers("t", 0, 0).await;
    let id = server.publish("t", "meanwhile").await.id;
    assert_eq!(block(&start(&last_id)), [format!("id: {id}"), "data: meanwhile".to_string()]);
}

/// `openssl s_client`: what is written to it is sent, save for its own commands.
struct Openssl {
    process: Child,
    heard: [Arc<Mutex<Vec<u8>>>; 2],
}

impl Openssl {
    /// It notes every message of TLS in `notes`.
    fn start(door: &Door, notes: &str) -> Openssl {
        let mut process = Command::new("openssl")
            .args(["s_client", "-connect", &door.address.to_string(), "-servername", "localhost"])
            .args(["-CAfile", &door.authority[0], "-verify_return_error", "-alpn", "http/1.1"])
            .args(["-msg", "-msgfile", notes])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is installed");
        let stdout = collected(process.stdout.take().expect("piped"));
        let heard = [stdout, collected(process.stderr.take().expect("piped"))];
        Openssl { process, heard }
    }

    fn says(&mut self, bytes: &[u8]) {
        let stdin = self.process.stdin.as_mut().expect("piped");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("openssl reads");
    }

    /// Waits until one of its outputs holds a text so many times.
    async fn prints(&self, output: usize, text: &str, times: usize) {
        until(text, async || {
            let heard = self.heard[output].lock().expect("alive");
            let count = memchr::memmem::find_iter(&heard, text).count();
            (count >= times).then_some(())
        })
        .await;
    }
}

impl Drop for Openssl {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a program prints, as far as it has come.
fn collected(mut output: impl Read + Send + 'static) -> Arc<Mutex<Vec<u8>>> {
    let heard = Arc::<Mutex<Vec<u8>>>::default();
    let shared = heard.clone();
    std::thread::spawn(move || {
        let mut bytes = [0; 4_096];
        while let Ok(read @ 1..) = output.read(&mut bytes) {
            shared.lock().expect("alive").extend_from_slice(&bytes[..read]);
        }
    });
    heard
}

/// `K` changes its key and asks for a new one of ours, `k` only changes its own.
#[tokio::test]
#[ignore = "needs openssl"]
async fn interop_openssl_changes_the_keys_of_both_sides() {
    const ROUNDS: usize = 5;
    let door = Door::tls();
    let scratch = Scratch::new();
    let notes = scratch.write("messages", "");
    let mut client = Openssl::start(&door, &notes);
    client.says(request(Protocol::WebSocket, &["t"], None).as_bytes());
    client.prints(0, "101 Switching Protocols", 1).await;
    for round in 0..ROUNDS {
        for (at, command) in ["K\n", "k\n"].into_iter().enumerate() {
            client.says(command.as_bytes());
            client.prints(1, "KEYUPDATE", 2 * round + at + 1).await;
            let ping = format!("ping {round} {at}");
            client.says(&masked(0x9, ping.as_bytes()));
            client.prints(0, &ping, 1).await;
            let text = format!("event {round} {at}");
            door.server.publish("t", text.clone()).await;
            client.prints(0, &text, 1).await;
        }
    }
    client.says(b"Q\n");
    door.server.await_subscribers("t", 0, 0).await;
    let notes = std::fs::read_to_string(&notes).expect("openssl's file");
    let updates =
        |way: &str| notes.lines().filter(|line| line.starts_with(way) && line.ends_with("KeyUpdate")).count();
    assert_eq!((updates(">>>"), updates("<<<")), (2 * ROUNDS, ROUNDS), "{notes}");
    assert_eq!(door.server.closed("tls_record").await, 0);
}

#[tokio::test]
#[ignore = "needs openssl"]
async fn interop_openssl_reads_an_event_stream_and_comes_back() {
    let door = Door::tls();
    let scratch = Scratch::new();
    let notes = scratch.write("messages", "");
    let mut client = Openssl::start(&door, &notes);
    client.says(request(Protocol::Sse, &["t"], None).as_bytes());
    door.server.await_subscribers("t", 1, 0).await;
    let last = door.server.publish("t", "an event").await.id;
    client.prints(0, "data: an event\n\n", 1).await;
    drop(client);
    door.server.await_subscribers("t", 0, 0).await;
    door.server.publish("t", "meanwhile").await;
    let mut client = Openssl::start(&door, &notes);
    client.says(request(Protocol::Sse, &["t"], Some(&last)).as_bytes());
    client.prints(0, "data: meanwhile\n\n", 1).await;
    let heard = client.heard[0].lock().expect("alive");
    assert!(memchr::memmem::find(&heard, b"data: an event").is_none(), "it was heard before");
}

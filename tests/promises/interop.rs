//! Claim: clients of other makes get every event at once, whatever it holds, and come back to where
//! they were.
//!
//! Set-up: each client is a small program of a few lines under `tests/interop`, which prints what
//! it hears. Readers of event streams go through a relay that cuts their connection.
//!
//! Expectation: each event before the next one is published, so nothing is held back; after the cut
//! the event that was published meanwhile, once, and no gap. WebSockets agree on the subprotocol,
//! on text and binary, on pings and on the close.
//!
//! `tests/run` installs the clients, and says where in `INTEROP_NODE` and
//! `INTEROP_PYTHON`.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::server::lines_of;
use crate::support::{PATIENCE, Server};

/// A client that is not let in tries again, but not for ever.
const TRIES_MAX: usize = 100;

/// A program that prints a line of JSON for each thing that it hears.
struct Client {
    process: Child,
    lines: Receiver<String>,
}

impl Client {
    fn start(program: &str, args: &[&str]) -> Client {
        let mut process = Command::new(program)
            .args(args)
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
async fn reads_an_event_stream(start: impl FnOnce(&str) -> Client) {
    let server = Server::start(&["--shards", "1"]);
    let relay = Relay::to(server.data).await;
    let client = start(&format!("http://{}/sse/t", relay.address));
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
async fn speaks_websocket(start: impl FnOnce(&str) -> Client) {
    let server = Server::start(&["--shards", "1"]);
    let client = start(&format!("ws://{}/ws/t", server.data));
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

async fn node_reads_an_event_stream(name: &str) {
    let place = place("INTEROP_NODE");
    reads_an_event_stream(|url| Client::start("node", &["sse.mjs", &place, name, url])).await;
}

async fn python_reads_an_event_stream(name: &str) {
    reads_an_event_stream(|url| Client::start(&python(), &["sse.py", name, url])).await;
}

async fn python_speaks_websocket(name: &str) {
    speaks_websocket(|url| Client::start(&python(), &["ws.py", name, url])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node with npm's clients"]
async fn interop_node_ws() {
    let place = place("INTEROP_NODE");
    speaks_websocket(|url| Client::start("node", &["ws.mjs", &place, url])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node with npm's clients"]
async fn interop_node_eventsource() {
    node_reads_an_event_stream("eventsource").await;
}

/// Its older form, which sends the last event id as Latin-1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node with npm's clients"]
async fn interop_node_eventsource_2() {
    node_reads_an_event_stream("eventsource-2").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs node with npm's clients"]
async fn interop_node_event_source_polyfill() {
    node_reads_an_event_stream("event-source-polyfill").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's clients"]
async fn interop_python_websockets() {
    python_speaks_websocket("websockets").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's clients"]
async fn interop_python_tornado_websocket() {
    python_speaks_websocket("tornado").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's clients"]
async fn interop_python_httpx_sse() {
    python_reads_an_event_stream("httpx-sse").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's clients"]
async fn interop_python_requests_sseclient() {
    python_reads_an_event_stream("sseclient-py").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Python's clients"]
async fn interop_python_tornado_event_stream() {
    python_reads_an_event_stream("tornado").await;
}

/// curl prints the lines of the stream, and is asked again with the last id by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs curl"]
async fn interop_curl() {
    let server = Server::start(&["--shards", "1"]);
    let url = format!("http://{}/sse/t", server.data);
    let start = |last_id: &str| {
        let last_id = format!("Last-Event-ID: {last_id}");
        Client::start("curl", &["--silent", "--no-buffer", "--fail", "--noproxy", "*", "-H", &last_id, &url])
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

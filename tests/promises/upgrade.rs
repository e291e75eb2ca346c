//! Claim: a new process takes the place of a running one (`serve --upgrade`), and nobody loses an
//! event, gets one twice, or is refused a connection. A new process that does not come so far
//! changes nothing.
//!
//! Set-up: servers that find each other by a socket of the test's own, a steady publisher that
//! repeats what is answered with 503, subscribers that come back with their last id, clients that
//! connect all the time; and in the place of a new process the test itself, which stops half-way.
//!
//! Expectation: the ids go on, on event streams, raw WebSockets and in JSON; every connection is
//! accepted and answered; after a failure the old process publishes and accepts as before.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::peer::request;
use crate::support::server::{Answer, answer, client};
use crate::support::{PATIENCE, Protocol, Said, Scratch, Server, Subscriber, until};

/// Where the processes of a test find each other.
struct Meeting(Scratch);

impl Meeting {
    fn new() -> Meeting {
        Meeting(Scratch::new())
    }

    fn path(&self) -> PathBuf {
        self.0.path("upgrade").join("socket")
    }

    fn start(&self, flags: &[&str]) -> Server {
        let path = self.path();
        let path = path.to_str().expect("a path in UTF-8");
        Server::start(&[&["--upgrade-socket", path], flags].concat())
    }

    /// Runs a new process that is expected to fail.
    fn fail(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--upgrade"]);
        command.arg("--upgrade-socket").arg(self.path()).args(flags).env_clear().stdin(Stdio::null());
        command.output().expect("the program runs")
    }

    /// Connects as a new process does.
    fn connect(&self) -> Heir {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None);
        let socket = socket.expect("a socket");
        socket.connect(&socket2::SockAddr::unix(self.path()).expect("a path")).expect("somebody waits");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Heir(UnixStream::from(OwnedFd::from(socket)))
    }
}

/// The test in the place of a new process. What it is passed it drops.
struct Heir(UnixStream);

impl Heir {
    fn say(&mut self, word: &Value) {
        self.0.write_all(word.to_string().as_bytes()).expect("room for a word");
    }

    fn hear(&mut self) -> Value {
        let mut bytes = vec![0; 128 << 10];
        let length = self.0.read(&mut bytes).expect("a word");
        assert!(length > 0, "the other process has hung up");
        serde_json::from_slice(&bytes[..length]).expect("JSON")
    }

    fn hello(&mut self, format: u64) -> Value {
        self.say(&json!({ "hello": { "format": format, "version": "7.8.9" } }));
        self.hear()
    }

    /// Goes on until the old process has said this word.
    fn go_on_to(&mut self, word: &str) {
        assert!(self.hello(1)["offer"]["epoch"].is_u64());
        assert_eq!(self.hear(), "listeners");
        for (says, hears) in [("ready", "state"), ("restored", "go")] {
            self.say(&json!(says));
            assert_eq!(self.hear(), hears);
            if hears == word {
                return;
            }
        }
    }
}

/// Publishes numbers, one after the other, until told to stop.
struct Publisher {
    stop: Arc<AtomicBool>,
    published: Arc<AtomicU64>,
    work: JoinHandle<u64>,
}

impl Publisher {
    fn start(control: SocketAddr) -> Publisher {
        let (stop, published) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let work = tokio::spawn(publish_numbers(control, stop.clone(), published.clone()));
        Publisher { stop, published, work }
    }

    /// Waits until so many more are published.
    async fn some_more(&self, more: u64) {
        let wanted = self.published.load(Ordering::Relaxed) + more;
        let is_there = async || (self.published.load(Ordering::Relaxed) >= wanted).then_some(());
        until("publishes", is_there).await;
    }

    /// Ends it; returns the last number.
    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.work.await.expect("nothing failed")
    }
}

async fn publish_numbers(control: SocketAddr, stop: Arc<AtomicBool>, published: Arc<AtomicU64>) -> u64 {
    let client = client(reqwest::Client::builder());
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let url = format!("http://{control}/topics/t?idempotency_key={number}");
        loop {
            let told: Answer = answer(client.post(&url).body(format!("{number} "))).await;
            if told.status != 503 {
                assert_eq!(told.status, 200, "{told:?}");
                assert_eq!(told.json()["sequence"], number, "sequences go on: {told:?}");
                break;
            }
            let why = told.error();
            assert!(why.contains("hands over") || why.contains("draining"), "{why}");
            assert_eq!(told.retry_after.as_deref(), Some("1"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        published.store(number, Ordering::Relaxed);
    }
    number
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    EventStream,
    Raw,
    Json,
}

/// Reads numbers up to `last`, once it is told, and comes back whenever its stream ends. Returns how
/// often it came back.
async fn follow(data: SocketAddr, kind: Kind, epoch: String, last: Arc<AtomicU64>) -> usize {
    let (mut number, mut id) = (0, format!("{epoch}-0"));
    let mut returns = 0;
    while number != last.load(Ordering::Relaxed) {
        let mut subscriber = match kind {
            Kind::EventStream => Subscriber::resume(data, Protocol::Sse, &["t"], Some(&id)).await,
            Kind::Raw => Subscriber::resume(data, Protocol::WebSocket, &["t"], Some(&id)).await,
            Kind::Json => {
                let head = request(Protocol::WebSocket, &["t"], Some(&id));
                let head = head.strip_suffix("\r\n").expect("a head ends in a blank line");
                let head = format!("{head}Sec-WebSocket-Protocol: fanwave.v1.json\r\n\r\n");
                Subscriber::request(data, Protocol::WebSocket, head).await
            }
        };
        while number != last.load(Ordering::Relaxed) {
            let event = match subscriber.news().await {
                Said::Event(event) => event,
                Said::Close(1012, _) => continue,
                Said::End => break,
                other => panic!("{kind:?} after {number}: {other:?}"),
            };
            let (text, its_id) = match kind {
                Kind::EventStream => (event.text().to_string(), event.id.clone().expect("an id")),
                // It counts: every event is of its topic.
                Kind::Raw => (event.text().to_string(), format!("{epoch}-{}", number + 1)),
                Kind::Json => {
                    let object: Value = serde_json::from_str(event.text()).expect("JSON");
                    let text = |name: &str| object[name].as_str().expect("a text").to_string();
                    (text("data"), text("id"))
                }
            };
            assert_eq!(text, format!("{} ", number + 1), "{kind:?}: nothing is lost, and nothing is twice");
            assert_eq!(its_id, format!("{epoch}-{}", number + 1), "{kind:?}: ids go on");
            (number, id) = (number + 1, its_id);
        }
        returns += 1;
    }
    returns
}

/// Connects to both planes again and again, and asks each connection for `/healthz`. Returns how
/// many were answered.
fn knock(addresses: [SocketAddr; 2], stop: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let mut answered = 0;
        while !stop.load(Ordering::Relaxed) {
            for address in addresses {
                let mut peer = TcpStream::connect(address).expect("nobody is refused");
                peer.set_read_timeout(Some(PATIENCE)).expect("a socket");
                let head = "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
                peer.write_all(head.as_bytes()).expect("somebody has it");
                let mut text = String::new();
                peer.read_to_string(&mut text).expect("an answer to its end");
                assert!(text.starts_with("HTTP/1.1 200 ") || text.starts_with("HTTP/1.1 503 "), "{text:?}");
                answered += 1;
            }
        }
        answered
    })
}

/// With fewer shards and with more, over either ring, three times in a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_nothing_is_lost_nothing_is_twice_and_nobody_is_refused() {
    let meeting = Meeting::new();
    let mut server = meeting.start(&["--shards", "2"]);
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").mode() & 0o777;
    let path = meeting.path();
    assert_eq!((mode(path.parent().expect("its own")), mode(&path)), (0o700, 0o600));
    let (data, control) = (server.data, server.control);
    let epoch =
        epoch_of(&server.stats().await["epoch"].as_str().map_or_else(String::new, |e| format!("{e}-0")));
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let followers: Vec<_> = [Kind::EventStream, Kind::Raw, Kind::Json]
        .into_iter()
        .cycle()
        .take(12)
        .map(|kind| tokio::spawn(follow(data, kind, epoch.clone(), last.clone())))
        .collect();
    let publisher = Publisher::start(control);
    let stop = Arc::new(AtomicBool::new(false));
    let knocking = knock([data, control], stop.clone());
    publisher.some_more(50).await;
    for flags in [["--shards", "1", "--egress", "epoll"], ["--shards", "3", "--egress", "auto"]] {
        let new = meeting.start(&[&["--upgrade"], &flags[..]].concat());
        assert_eq!((new.data, new.control), (data, control), "the same listeners");
        let mut old = std::mem::replace(&mut server, new);
        publisher.some_more(50).await;
        assert_eq!(old.ended().await.code(), Some(0), "the old one has drained");
    }
    let topic = server.get("/topics/t").await.json();
    assert_eq!(
        topic["published"]["events"], topic["sequence"],
        "it knows of all that was published: {topic}"
    );
    stop.store(true, Ordering::Relaxed);
    assert!(knocking.join().expect("every connection was answered") > 10);
    last.store(publisher.stop().await, Ordering::Relaxed);
    server.publish("t", format!("{} ", last.load(Ordering::Relaxed) + 1)).await;
    last.fetch_add(1, Ordering::Relaxed);
    for follower in followers {
        assert_eq!(follower.await.expect("nothing failed"), 3, "each stream ended with its process");
    }
}

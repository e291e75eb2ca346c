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
use crate::support::{PATIENCE, Protocol, Said, Scratch, Server, Subscriber, proxied, secure, until};

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
        assert!(self.hello(3)["offer"]["epoch"].is_u64());
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

/// Reads numbers up to `last`, once it is told, and comes back whenever its stream ends. Returns
/// how often it came back.
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
    let epoch = server.stats().await["epoch"].as_str().expect("a text").to_string();
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
    // Told before it is published, so that each of them sees it when it comes.
    let final_number = publisher.stop().await + 1;
    last.store(final_number, Ordering::Relaxed);
    server.publish("t", format!("{final_number} ")).await;
    for follower in followers {
        assert_eq!(follower.await.expect("nothing failed"), 3, "each stream ended with its process");
    }
}

/// In the place of a new process: each begins, and ends somewhere before the last word.
#[tokio::test]
async fn a_new_process_that_ends_half_way_leaves_the_old_one_as_it_was() {
    let meeting = Meeting::new();
    let mut server = meeting.start(&["--shards", "2"]);
    let first = server.publish("t", "1").await;
    let mut live = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let goes_on = async |live: &mut Subscriber, number: u64| {
        let taken = until("a publish that is taken", async || {
            let told = server.answer(server.post("/topics/t").body(format!("{number}"))).await;
            assert!(told.status == 200 || told.error().contains("hands over"), "{told:?}");
            (told.status == 200).then(|| told.json()["sequence"].as_u64())
        });
        assert_eq!(taken.await, Some(number), "sequences go on");
        assert_eq!(live.text().await, number.to_string(), "subscribers stay");
        // Both rings accept again, on each shard.
        for protocol in [Protocol::Sse, Protocol::WebSocket, Protocol::Sse, Protocol::WebSocket] {
            let mut new = Subscriber::resume(server.data, protocol, &["t"], Some(&first.id)).await;
            assert_eq!(new.text().await, "2");
        }
    };
    goes_on(&mut live, 2).await;
    for (number, word) in (3..).zip(["hello", "offer", "state", "go", "nonsense", "too soon"]) {
        let mut heir = meeting.connect();
        match word {
            "hello" => {}
            "offer" => assert!(heir.hello(3)["offer"].is_object()),
            "nonsense" => heir.say(&json!({ "GET": "/" })),
            "too soon" => heir.say(&json!("taken")),
            word => heir.go_on_to(word),
        }
        drop(heir);
        goes_on(&mut live, number).await;
    }
    // One that is there all the time and says nothing: the others are told, and the old one serves.
    let mut silent = meeting.connect();
    silent.go_on_to("state");
    let mut second = meeting.connect();
    assert_eq!(second.hear(), json!({ "refused": { "why": "another upgrade is under way" } }));
    let failed = meeting.fail(&[]);
    let told = String::from_utf8(failed.stderr).expect("UTF-8");
    assert_eq!(failed.status.code(), Some(1), "{told}");
    assert!(told.contains("which goes on: another upgrade is under way"), "{told}");
    let told = server.answer(server.post("/topics/t").body("x")).await;
    assert!(told.status == 503 && told.error().contains("hands over"), "{told:?}");
    assert_eq!(server.stats().await["hub"]["refused"]["upgrading"], 1);
    assert_eq!(server.get("/healthz").await.status, 200, "subscribers are served");
    drop(silent);
    goes_on(&mut live, 9).await;
    assert!(server.runs());
    // And then one that comes to its end.
    let mut new = meeting.start(&["--shards", "2", "--upgrade"]);
    let resumed = Subscriber::resume(new.data, Protocol::Sse, &["t"], Some(&first.id));
    assert_eq!(resumed.await.texts(8).await, ["2", "3", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(new.runs());
}

#[tokio::test]
async fn a_new_process_that_cannot_start_says_why_and_the_old_one_goes_on() {
    let meeting = Meeting::new();
    let told = |output: Output| {
        let told = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{told}");
        told.lines().last().expect("a line").to_string()
    };
    let nobody = told(meeting.fail(&[]));
    assert!(nobody.contains("nobody waits for it at ") && nobody.contains("--upgrade-socket"), "{nobody}");
    let mut server = meeting.start(&["--shards", "1"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let in_use = told(meeting.fail(&["--listen", &address]));
    assert!(in_use.contains(&format!("cannot listen on {address}")), "{in_use}");
    // Its shards have run, and have ended. So many take some 100 MiB.
    let too_low = told(meeting.fail(&["--memory-max", "32MiB", "--shards", "48"]));
    assert!(too_low.contains("--memory-max is 32MiB") && too_low.contains("in use"), "{too_low}");
    let mut foreign = meeting.connect();
    let refused = foreign.hello(99);
    let why = refused["refused"]["why"].as_str().expect("a text");
    assert!(why.contains("format 3") && why.contains("fanwave 7.8.9 takes format 99"), "{why}");
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let mut subscriber = Subscriber::connect(server.data, protocol, &["t"]).await;
        server.publish("t", "x").await;
        assert_eq!(subscriber.text().await, "x", "it still listens");
    }
    assert!(server.runs());
    // It waits for nobody any more once it drains, and leaves no file behind.
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(!meeting.path().exists());
}

/// What the new process does not listen on is closed with the old one; what is new is added.
#[tokio::test]
async fn addresses_may_come_and_go_with_an_upgrade() {
    let meeting = Meeting::new();
    let one = meeting.start(&["--shards", "1", "--listen", "127.0.0.2:0"]);
    let gone = data_addresses(&one)[1];
    let two = meeting.start(&["--shards", "2", "--listen", "127.0.0.3:0", "--upgrade"]);
    let [kept, added] = data_addresses(&two)[..] else { panic!("two addresses: {:?}", two.banner) };
    assert_eq!((kept, added.ip().to_string().as_str()), (one.data, "127.0.0.3"));
    let mut one = one;
    assert_eq!(one.ended().await.code(), Some(0));
    for address in [kept, added] {
        let mut subscriber = Subscriber::connect(address, Protocol::Sse, &["t"]).await;
        two.publish("t", "x").await;
        assert_eq!(subscriber.text().await, "x");
    }
    let refused = TcpStream::connect(gone).expect_err("nobody listens there any more");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// An address with TLS behind a proxy stays one: what the proxy says of a client is read before TLS.
#[tokio::test]
async fn an_address_behind_a_proxy_with_tls_goes_on_with_an_upgrade() {
    let meeting = Meeting::new();
    let trusted = secure::certificate(&meeting.0);
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| meeting.0.path(name).display().to_string());
    let flags = ["--listen-tls", "127.0.0.2:0", "--proxy-protocol", "127.0.0.2:0", "--tls-cert", &cert];
    let flags = [&flags[..], &["--tls-key", &key, "--shards", "1"]].concat();
    let mut one = meeting.start(&flags);
    let address = secure::address(&one);
    let header = proxied::v2("192.0.2.7:50000".parse().expect("an address"), b"");
    let subscribe = |after: Option<&str>| {
        let config = Arc::new(secure::trusting(&trusted));
        let mut client = secure::Client::behind(address, config, &header);
        client.says(request(Protocol::Sse, &["t"], after).as_bytes());
        client.hears("\r\n\r\n");
        client
    };
    let mut before = subscribe(None);
    let id = one.publish("t", "before").await.id;
    before.hears("before");
    let two = meeting.start(&[&flags[..], &["--upgrade"]].concat());
    assert_eq!(secure::address(&two), address);
    before.hears_the_end();
    assert_eq!(one.ended().await.code(), Some(0));
    two.publish("t", "behind").await;
    subscribe(Some(&id)).hears("behind");
    let mut plain = TcpStream::connect(address).expect("it listens");
    plain.set_read_timeout(Some(PATIENCE)).expect("a socket");
    plain.write_all(b"\x16\x03\x01\x00\x05hello").expect("the server is there");
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest);
    assert_eq!(rest, b"\x15\x03\x03\x00\x02\x02\x0a", "no proxy speaks for it: unexpected_message");
}

/// Where subscribers connect, as the banner says.
fn data_addresses(server: &Server) -> Vec<SocketAddr> {
    let addresses = server.banner.iter().filter_map(|line| line.strip_prefix("data plane "));
    addresses.map(|address| address.trim().parse().expect("an address")).collect()
}

/// A signal starts the program that is there now, and the service manager is told whom to follow.
#[tokio::test]
async fn a_signal_starts_the_successor_and_the_manager_follows_it() {
    let meeting = Meeting::new();
    let manager = UnixDatagram::bind(meeting.0.path("notify")).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let told = || {
        let mut buffer = [0; 1_024];
        let length = manager.recv(&mut buffer).expect("the manager is told");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1"]);
    command.arg("--upgrade-socket").arg(meeting.path()).env_clear().stdin(Stdio::null());
    command.env("NOTIFY_SOCKET", meeting.0.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut server = Server::run(command);
    let event = server.publish("t", "1").await;
    assert!(told().starts_with("READY=1"));
    server.signal(Signal::USR2);
    let heir = loop {
        if let Some(heir) = told().strip_prefix("MAINPID=") {
            break Pid::from_raw(heir.trim().parse().expect("a number")).expect("a process");
        }
    };
    let followed = Heirs(heir);
    assert_eq!(server.ended().await.code(), Some(0));
    // Nobody else is left to say so.
    while told() != "WATCHDOG=1\n" {}
    assert_eq!(server.publish("t", "2").await.sequence, event.sequence + 1);
    let mut subscriber = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&event.id)).await;
    assert_eq!(subscriber.text().await, "2");
    drop((subscriber, followed));
}

/// A process that the server has started; it is killed with the test.
struct Heirs(Pid);

impl Drop for Heirs {
    fn drop(&mut self) {
        // It may have ended.
        let _ = kill_process(self.0, Signal::KILL);
    }
}

/// What is retained comes along although it is no history, a removed topic stays removed, and a
/// topic of which nothing is left makes no gap.
#[tokio::test]
async fn retained_values_removals_and_quiet_topics_come_along() {
    let meeting = Meeting::new();
    let rules = "[[rule]]\nmatch = \"price\"\nhistory.events = 0\nretain = true\nconflate = \"key\"\n\
                 [[rule]]\nmatch = \"quiet\"\nhistory.events = 0\n";
    let file = meeting.0.write("fanwave.toml", rules);
    let flags = ["--shards", "2", "--config", &file];
    let mut old = meeting.start(&flags);
    for (key, data) in [("a", "1"), ("b", "2"), ("a", "3")] {
        old.publish_with("price", &format!("?key={key}"), data).await;
    }
    let quiet = old.publish("quiet", "x").await;
    let before = old.publish("removed", "x").await;
    let removed = client(reqwest::Client::builder()).delete(old.url("/topics/removed"));
    assert_eq!(answer(removed).await.status, 200);
    let new = meeting.start(&[&flags[..], &["--upgrade"]].concat());
    assert_eq!(old.ended().await.code(), Some(0));
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let mut prices = Subscriber::connect(new.data, protocol, &["price"]).await;
        assert_eq!(prices.texts(2).await, ["2", "3"], "{protocol:?}");
        let mut gone = Subscriber::resume(new.data, protocol, &["removed"], Some(&before.id)).await;
        assert!(matches!(gone.news().await, Said::Gap(_)), "{protocol:?}");
    }
    let mut nothing = Subscriber::resume(new.data, Protocol::Sse, &["quiet"], Some(&quiet.id)).await;
    new.publish("quiet", "y").await;
    assert_eq!(nothing.text().await, "y", "nothing was lost, and no gap is told");
}

/// A stream that is open waits while a new process is half-way, and loses no line.
#[tokio::test]
async fn an_open_publish_waits_while_the_process_hands_over() {
    let meeting = Meeting::new();
    let server = meeting.start(&["--shards", "1"]);
    let mut heir = meeting.connect();
    heir.go_on_to("state");
    let lines: String = (0..200).map(|n| format!("{{\"topic\":\"t\",\"data\":\"{n}\"}}\n")).collect();
    let publishing = tokio::spawn(answer(server.post("/publish").body(lines)));
    // The stream is there: its first line meets the hand-over.
    until("a request under way", async || {
        let stats = server.stats().await;
        (stats["hub"]["events"] == 0 && !publishing.is_finished()).then_some(())
    })
    .await;
    drop(heir);
    let summary = publishing.await.expect("nothing failed");
    assert_eq!(summary.json()["accepted"], 200, "{summary:?}");
}

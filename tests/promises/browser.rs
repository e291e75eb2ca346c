//! Claim: a browser's own EventSource and WebSocket work against fanwave, from a page of another
//! origin.
//!
//! Set-up: Chromium without a window opens `tests/browser/page.html` from a small server in this
//! test; the page subscribes with both and reports what it hears. Between the browser and fanwave
//! stands a relay that the test can cut.
//!
//! A third page speaks JSON and publishes by raw messages; a page within it hears an event stream.
//!
//! Another page has several event streams: the server is stopped while a stalled reader holds up
//! its end, started again, and is full.
//!
//! Expectation: both get text, several lines, named and binary events. When the event stream is
//! cut, before its first event or later, the browser comes back by itself and gets exactly what it
//! missed. What one page publishes comes to the other; a page that speaks JSON subscribes,
//! unsubscribes and comes back where it was; text, Blob and ArrayBuffer go both ways. At a shutdown
//! the WebSocket closes cleanly with 1012. Neither the drain nor the full server ends an event
//! stream for good: each comes back by itself, and gets what the server still holds.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::support::chromium::NAMES;
use crate::support::slow::publish_until_stuck;
use crate::support::{Protocol, Server, Subscriber, until, within};

const PAGE: &str = include_str!("../browser/page.html");
const RETURNING: &str = include_str!("../browser/returning.html");
const CONVERSATION: &str = include_str!("../browser/conversation.html");

/// Serves the page, and passes on what it reports.
async fn serve_page(listener: TcpListener, reports: mpsc::UnboundedSender<String>) {
    loop {
        let (socket, _) = listener.accept().await.expect("a listener accepts");
        tokio::spawn(serve_one(socket, reports.clone()));
    }
}

/// Answers one request and closes.
async fn serve_one(mut socket: TcpStream, reports: mpsc::UnboundedSender<String>) {
    let mut request = Vec::new();
    let (head_bytes, body_bytes) = loop {
        // A browser opens connections ahead and drops them unused.
        if !matches!(socket.read_buf(&mut request).await, Ok(1..)) {
            return;
        }
        let Some(end) = memchr::memmem::find(&request, b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |length| length.trim().parse().expect("a number"));
        if request.len() >= end + 4 + length {
            break (end + 4, length);
        }
    };
    let (status, body) = if request.starts_with(b"GET /page") {
        ("200 OK", PAGE)
    } else if request.starts_with(b"GET /returning") {
        ("200 OK", RETURNING)
    } else if request.starts_with(b"GET /conversation") {
        ("200 OK", CONVERSATION)
    } else if request.starts_with(b"POST /report") {
        let body = &request[head_bytes..head_bytes + body_bytes];
        // The test may have seen enough.
        let _ = reports.send(String::from_utf8_lossy(body).into_owned());
        ("204 No Content", "")
    } else {
        ("404 Not Found", "")
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
}

/// Relays connections to `server`; each ends when the number in `cut` changes and its request is an
/// event stream, or a WebSocket without a topic in its path.
async fn relay(listener: TcpListener, server: SocketAddr, cut: watch::Receiver<u32>) {
    loop {
        let (mut browser, _) = listener.accept().await.expect("a listener accepts");
        let mut cut = cut.clone();
        cut.mark_unchanged();
        tokio::spawn(async move {
            let mut start = [0; 8];
            if !matches!(browser.peek(&mut start).await, Ok(1..)) {
                return;
            }
            let Ok(mut upstream) = TcpStream::connect(server).await else { return };
            let relayed = copy_bidirectional(&mut browser, &mut upstream);
            if start.starts_with(b"GET /sse") || start.starts_with(b"GET /ws?") {
                tokio::select! {
                    _ = relayed => {}
                    _ = cut.changed() => {}
                }
            } else {
                let _ = relayed.await;
            }
        });
    }
}

/// Chromium on one page, its profile in a directory of its own. Both are gone when this is dropped.
struct Browser {
    process: Child,
    profile: PathBuf,
}

impl Browser {
    fn open(url: &str) -> Browser {
        // The port of the page's server is this test's alone.
        let port = url.split([':', '/']).nth(4).expect("a URL with a port");
        let profile = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("browser-profile-{port}"));
        // An earlier run may have left one behind.
        let _ = std::fs::remove_dir_all(&profile);
        let name = NAMES.into_iter().find(|name| {
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        });
        let process = Command::new(name.expect("chromium is installed"))
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium starts");
        Browser { process, profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Its helper processes end with it, but maybe not before this; the next run clears what
        // they leave.
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// What the page says next.
async fn reported(reports: &mut mpsc::UnboundedReceiver<String>) -> String {
    within("a report of the page", reports.recv()).await.expect("the page's server runs")
}

/// The next reports are these, in any order: the two connections are independent.
async fn both(reports: &mut mpsc::UnboundedReceiver<String>, mut expected: Vec<String>) {
    let mut seen = Vec::new();
    for _ in 0..expected.len() {
        seen.push(reported(reports).await);
    }
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

/// A page that is open in a browser and reaches the server through a relay.
struct Visit {
    /// What the page says.
    reports: mpsc::UnboundedReceiver<String>,
    /// Cuts its connections at each change.
    cut: watch::Sender<u32>,
    _browser: Browser,
}

impl Visit {
    async fn new(server: &Server, page: &str) -> Visit {
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (pages, relayed) = (bind().await, bind().await);
        let [page_address, relay_address] =
            [&pages, &relayed].map(|listener| listener.local_addr().expect("bound"));
        let (sender, reports) = mpsc::unbounded_channel();
        let cut = watch::Sender::new(0);
        tokio::spawn(serve_page(pages, sender));
        tokio::spawn(relay(relayed, server.data, cut.subscribe()));
        let url = format!("http://{page_address}/{page}?server={relay_address}");
        Visit { reports, cut, _browser: Browser::open(&url) }
    }
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_hears_everything_over_both_protocols() {
    let mut server = Server::start(&["--shards", "2"]);
    let Visit { mut reports, cut, _browser } = Visit::new(&server, "page").await;

    both(&mut reports, vec!["sse open".into(), "ws open".into()]).await;
    // The id that the stream began with is enough to come back with.
    cut.send_modify(|times| *times += 1);
    assert_eq!(reported(&mut reports).await, "sse error connecting");
    let id = server.publish("browser", "first").await.id;
    let first = [format!(r#"sse message {id} "first""#), r#"ws text "first""#.into(), "sse open".into()];
    both(&mut reports, first.into()).await;

    let id = server.publish("browser", "one\ntwo").await.id;
    both(&mut reports, vec![format!(r#"sse message {id} "one\ntwo""#), r#"ws text "one\ntwo""#.into()]).await;
    let id = server.publish_with("browser", "?event=named&id=räume&retry=200", "3").await.id;
    both(&mut reports, vec![format!(r#"sse named {id} "3""#), r#"ws text "3""#.into()]).await;
    let binary = server.post("/topics/browser").header("content-type", "application/octet-stream");
    let id =
        server.answer(binary.body(vec![0u8, 255])).await.json()["id"].as_str().expect("an id").to_string();
    both(&mut reports, vec![format!(r#"sse message {id} "AP8=""#), "ws binary 0,255".into()]).await;

    cut.send_modify(|times| *times += 1);
    assert_eq!(reported(&mut reports).await, "sse error connecting");
    let missed = [server.publish("browser", "missed 1").await, server.publish("browser", "missed 2").await];
    let mut expected: Vec<String> =
        (1..).zip(&missed).map(|(n, event)| format!(r#"sse message {} "missed {n}""#, event.id)).collect();
    expected.extend(["sse open".into(), r#"ws text "missed 1""#.into(), r#"ws text "missed 2""#.into()]);
    both(&mut reports, expected).await;
    let id = server.publish("browser", "live").await.id;
    both(&mut reports, vec![format!(r#"sse message {id} "live""#), r#"ws text "live""#.into()]).await;

    server.signal(Signal::TERM);
    until("the clean close of the WebSocket", async || {
        let line = reported(&mut reports).await;
        assert!(!line.contains("gap"), "{line}");
        (line == "ws close 1012 clean").then_some(())
    })
    .await;
    assert_eq!(server.ended().await.code(), Some(0));
}

/// The next reports are these; those that begin alike come in this order.
async fn all(reports: &mut mpsc::UnboundedReceiver<String>, expected: &[&str]) {
    let kind = |line: &str| line.split(' ').next().unwrap_or_default().to_string();
    let mut left: Vec<&str> = expected.to_vec();
    while !left.is_empty() {
        let line = reported(reports).await;
        let next = left.iter().position(|other| kind(other) == kind(&line));
        assert_eq!(next.map(|at| left.remove(at)), Some(line.as_str()), "{left:?} are awaited besides");
    }
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_speaks_json_and_publishes_to_other_pages() {
    let server = Server::start(&["--shards", "2", "--client-publish", "chat/*"]);
    let Visit { mut reports, cut, _browser } = Visit::new(&server, "conversation").await;
    all(
        &mut reports,
        &[
            "listener open",
            "json open fanwave.v1.json",
            "json 1 topic,after",
            "raw open protocolOne",
            "raw String text ü",
            "raw ArrayBuffer 1,255",
            "raw ArrayBuffer 0,2",
            "raw String text ü",
            "raw Blob 1,255",
            "raw Blob 0,2",
        ],
    )
    .await;
    server.publish("chat/a", "publish").await;
    let own = "json event chat/a \"{\\\"from\\\":\\\"a page\\\"}\"";
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(reported(&mut reports).await);
    }
    // The answer to a publish and its event may change places.
    seen.sort_unstable();
    let mut expected = vec![
        r#"json event chat/a "publish""#,
        own,
        "json 2 id,sequence",
        "listener publish",
        r#"listener {"from":"a page"}"#,
    ];
    expected.sort_unstable();
    assert_eq!(seen, expected);

    cut.send_modify(|times| *times += 1);
    assert_eq!(reported(&mut reports).await, "json closed");
    server.publish("chat/a", "missed").await;
    all(
        &mut reports,
        &[
            "json open fanwave.v1.json",
            "json 1 topic,after",
            r#"json event chat/a "missed""#,
            "listener open",
            "listener missed",
        ],
    )
    .await;
    server.publish("chat/a", "leave").await;
    all(
        &mut reports,
        &[
            r#"json event chat/a "leave""#,
            r#"json "three" topic"#,
            "json 4 topic,sse,websocket",
            "listener leave",
        ],
    )
    .await;
}

/// What the streams of the other page have said, in order, each its own.
struct Streams {
    reports: mpsc::UnboundedReceiver<String>,
    said: [Vec<String>; 2],
}

impl Streams {
    /// Waits until both have said these lines, one after the other, after what they were waited for
    /// before; other lines may lie between, but none that says that a stream has given up.
    async fn await_both(&mut self, lines: &[&str]) {
        let mut at = [0; 2];
        while at.iter().any(|at| *at < lines.len()) {
            for (stream, at) in at.iter_mut().enumerate() {
                for line in self.said[stream].drain(..) {
                    *at += usize::from(lines.get(*at) == Some(&line.as_str()));
                }
            }
            if at.iter().all(|at| *at == lines.len()) {
                break;
            }
            let report = reported(&mut self.reports).await;
            let (stream, line) = report.split_once(' ').expect("a number and a line");
            assert_ne!(line, "closed", "a browser has given up, waiting for {lines:?}");
            self.said[stream.parse::<usize>().expect("a number")].push(line.to_string());
        }
    }
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_comes_back_to_a_draining_a_restarted_and_a_full_server() {
    let mut server = Server::start(&["--shards", "1", "--drain-ms-max", "8000", "--stall-ms-max", "60000"]);
    let (data, control) = (server.data, server.control);
    let page = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let page_address = page.local_addr().expect("bound");
    let (sender, reports) = mpsc::unbounded_channel();
    tokio::spawn(serve_page(page, sender));
    let _browser = Browser::open(&format!("http://{page_address}/returning?server={data}&streams=2"));
    let mut streams = Streams { reports, said: Default::default() };
    streams.await_both(&["open"]).await;
    server.publish("browser", "before").await;
    streams.await_both(&["message before"]).await;

    // A subscriber that reads nothing: the drain waits for it, and the browser comes back
    // meanwhile.
    let stalled = Subscriber::connect(data, Protocol::WebSocket, &["stalled"]).await;
    publish_until_stuck(&server, "stalled", Protocol::WebSocket, &mut [], 0, 3).await;
    server.signal(Signal::TERM);
    streams.await_both(&["again", "open", "again"]).await;
    assert!(server.runs(), "it drains still");
    assert_eq!(server.ended().await.code(), Some(0));
    drop(stalled);

    // The new server has room for two, and these are here first.
    let again = Server::start_on(data, control, &["--shards", "1", "--connections-per-shard-max", "2"]);
    let mut first = Vec::new();
    for _ in 0..2 {
        first.push(Subscriber::connect(data, Protocol::WebSocket, &["browser"]).await);
    }
    again.publish("browser", "held").await;
    streams.await_both(&["open", "again"]).await;
    drop(first);
    // The ids are of the server before: what lies between is told as a gap, and the rest is what
    // this one holds.
    streams.await_both(&["open", "gap unknown", "message held"]).await;
    again.publish("browser", "live").await;
    streams.await_both(&["message live"]).await;
}

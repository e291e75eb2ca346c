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

use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::support::secure::{Authority, start};
use crate::support::slow::publish_until_stuck;
use crate::support::visit::{Browser, Make, Trust, Visit, both, gate, reported, reported_for, serve_page};
use crate::support::{Protocol, Scratch, Server, Subscriber};

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_hears_everything_over_both_protocols() {
    hears_everything(Make::Chromium).await;
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_hears_everything_over_tls_whose_certificate_changes() {
    hears_everything_over_tls(Make::Chromium).await;
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_speaks_json_and_publishes_to_other_pages() {
    speaks_json(Make::Chromium).await;
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_comes_back_to_a_draining_a_restarted_and_a_full_server() {
    comes_back(Make::Chromium).await;
}

pub async fn hears_everything(make: Make) {
    let server = Server::start(&["--shards", "2"]);
    let visit = Visit::new(make, server.data, "page", None).await;
    // Firefox keeps no id of a block without data, though it should (WHATWG HTML §9.2.6).
    hears(make, server, visit, make != Make::Firefox, async |_| {}).await;
}

pub async fn hears_everything_over_tls(make: Make) {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let trust = Trust { key: authority.key_digest(), authority: authority.file.clone() };
    let (server, address) = start(&scratch, &["--shards", "2"]);
    let visit = Visit::new(make, address, "page", Some(&trust)).await;
    let reload = async |server: &Server| {
        authority.renew(&scratch);
        let told = server.answer(server.post("/reload")).await;
        assert_eq!(told.status, 200, "{told:?}");
    };
    // Over HTTP/2 a break is an error, not an end: a stream that breaks milliseconds after it has
    // opened may leave a browser on a busy machine without the id that the stream began with.
    hears(make, server, visit, false, reload).await;
}

/// The page hears everything; in the midst of it `meanwhile` happens. The first id that the browser
/// comes back with is the one that the stream began with, or that of an event.
async fn hears(
    make: Make,
    mut server: Server,
    visit: Visit,
    begins_with_id: bool,
    meanwhile: impl AsyncFn(&Server),
) {
    let Visit { mut reports, cut, .. } = visit;

    both(&mut reports, vec!["sse open".into(), "ws open".into()]).await;
    if !begins_with_id {
        let id = server.publish("browser", "an id").await.id;
        both(&mut reports, vec![format!(r#"sse message {id} "an id""#), r#"ws text "an id""#.into()]).await;
    }
    cut.send_modify(|times| *times += 1);
    assert_eq!(reported(&mut reports).await, "sse error connecting");
    let id = server.publish("browser", "first").await.id;
    let first = [format!(r#"sse message {id} "first""#), r#"ws text "first""#.into(), "sse open".into()];
    both(&mut reports, first.into()).await;

    meanwhile(&server).await;
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
    // Firefox calls it unclean, because the end of the stream follows before it has answered.
    let close = if make == Make::Firefox { "ws close 1012 unclean" } else { "ws close 1012 clean" };
    let mut seen = Vec::new();
    while seen.last().map(String::as_str) != Some(close) {
        let what = format!("{close:?} after {seen:?}");
        let line = reported_for(&mut reports, &what).await;
        assert!(!line.contains("gap"), "{line}");
        seen.push(line);
    }
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

pub async fn speaks_json(make: Make) {
    let server = Server::start(&["--shards", "2", "--client-publish", "chat/*"]);
    let visit = Visit::new(make, server.data, "conversation", None).await;
    let Visit { mut reports, cut, .. } = visit;
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

pub async fn comes_back(make: Make) {
    let mut server = Server::start(&["--shards", "1", "--drain-ms-max", "8000", "--stall-ms-max", "60000"]);
    let (data, control) = (server.data, server.control);
    let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (page, gated) = (bind().await, bind().await);
    let [page_address, gate_address] = [&page, &gated].map(|listener| listener.local_addr().expect("bound"));
    let (sender, reports) = mpsc::unbounded_channel();
    let open = watch::Sender::new(true);
    tokio::spawn(serve_page(page, sender));
    tokio::spawn(gate(gated, data, open.subscribe()));
    let url = format!("http://{page_address}/returning?server={gate_address}&streams=2");
    let _browser = Browser::open(make, &url, None);
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
    open.send_replace(false);
    let again = Server::start_on(data, control, &["--shards", "1", "--connections-per-shard-max", "2"]);
    let mut first = Vec::new();
    for _ in 0..2 {
        first.push(Subscriber::connect(data, Protocol::WebSocket, &["browser"]).await);
    }
    open.send_replace(true);
    again.publish("browser", "held").await;
    streams.await_both(&["open", "again"]).await;
    drop(first);
    // The ids are of the server before: what lies between is told as a gap, and the rest is what
    // this one holds.
    streams.await_both(&["open", "gap unknown", "message held"]).await;
    again.publish("browser", "live").await;
    streams.await_both(&["message live"]).await;
}

//! Claim: a page of the server shows what it does, on one topic over both protocols, and six small
//! pages show the usual uses. `--playground` opens their topics to pages of this machine, and to no
//! others.
//!
//! Set-up: servers with and without `--playground`; requests with each kind of `Host` and `Origin`;
//! Chromium with the playground, and with two windows of each example.
//!
//! Expectation: nothing foreign is answered, and nothing is published outside of `play/**`. In the
//! browser nothing is written to the console and no policy is broken; what is published in one
//! window is seen in the other one; a stream that was cut goes on from the id that its button
//! names.

use std::process::Command;

use serde_json::json;

use crate::support::chromium::Page;
use crate::support::peer::request;
use crate::support::raw::{RawAnswer, exchange};
use crate::support::{Chromium, Protocol, Server, Subscriber, until};

const EXAMPLES: [&str; 6] = ["news", "monitor", "quotes", "chat", "board", "game"];

async fn page(server: &Server, path: &str, host: &str) -> (RawAnswer, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = exchange(server.control, request.as_bytes()).await;
    assert_eq!(answer.status, 200, "{path}");
    let body = String::from_utf8(answer.body.clone()).expect("UTF-8");
    (answer, body)
}

#[tokio::test]
async fn the_pages_speak_to_this_server_alone_and_say_how_to_start_it() {
    for (flags, is_open) in [(&["--shards=1"][..], false), (&["--shards=1", "--playground"], true)] {
        let server = Server::start(flags);
        let first = server.banner.first().expect("a line");
        assert!(first.contains(&format!("http://{}/playground", server.control)), "{first}");
        assert_eq!(server.banner.iter().any(|line| line.contains("--playground")), is_open);
        let (_, front) = page(&server, "/playground", "localhost").await;
        for path in
            EXAMPLES.map(|name| format!("/examples/{name}")).iter().chain([&"/playground".to_string()])
        {
            assert!(path == "/playground" || front.contains(&format!("href=\"{path}\"")), "{path}");
            let (answer, body) = page(&server, path, "localhost").await;
            let policy = answer.header("content-security-policy").expect("a policy");
            assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
            let data = server.data;
            assert!(policy.contains(&format!("connect-src 'self' http://{data} ws://{data};")), "{policy}");
            for part in body.split("://").skip(1) {
                assert!(part.starts_with(&data.to_string()), "{path} names another host: {part}");
            }
            assert_eq!(body.contains("fanwave serve --playground"), !is_open, "{path}");
            for part in body.split("=\"/").skip(1) {
                let path = part.split(['"', '#']).next().expect("the end of an attribute");
                assert_eq!(server.get(&format!("/{path}")).await.status, 200, "/{path}");
            }
        }
    }
}

#[tokio::test]
async fn the_data_plane_is_found_where_it_listens_and_a_host_cannot_write_into_a_page() {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let everywhere = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
    let server = Server::start_on(everywhere, any, &["--shards=1"]);
    let port = server.data.port();
    for (host, data) in [
        ("127.0.0.2:9", format!("127.0.0.2:{port}")),
        ("localhost", format!("localhost:{port}")),
        ("", format!("127.0.0.1:{port}")),
    ] {
        let (answer, body) = page(&server, "/examples/news", host).await;
        assert!(body.contains(&format!("const server = \"http://{data}\";")), "{host}: {body}");
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.contains(&format!("http://{data} ws://{data};")), "{policy}");
    }
    for host in ["a';alert(1);'", "<script>", "evil.example"] {
        let request = format!("GET /examples/news HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = exchange(server.control, request.as_bytes()).await;
        assert!([400, 403].contains(&answer.status), "{host}");
    }
}

#[tokio::test]
async fn the_playground_is_for_pages_and_names_of_loopback_alone() {
    let server = Server::start(&["--shards=1", "--playground"]);
    let posted = async |host: &str, origin: &str, topic: &str| {
        let fields = format!("Host: {host}\r\n{origin}Content-Length: 1\r\nConnection: close\r\n");
        let post = format!("POST /topics/{topic} HTTP/1.1\r\n{fields}\r\nx");
        exchange(server.data, post.as_bytes()).await
    };
    let asked = async |protocol, host: &str, origin: &str| {
        let head =
            request(protocol, &["play/a"], None).replace("Host: test\r\n", &format!("Host: {host}\r\n"));
        let head = format!("{}{origin}\r\n", head.strip_suffix("\r\n").expect("a head ends in a blank line"));
        exchange(server.data, head.as_bytes()).await
    };
    let evil = "Origin: https://evil.example\r\n";
    for (host, origin) in [
        ("localhost", evil),
        ("127.0.0.1:8080", "Origin: null\r\n"),
        ("localhost", "Origin: http://192.0.2.1:8081\r\n"),
        ("evil.example", ""),
        ("evil.example", "Origin: http://evil.example\r\n"),
        ("192.0.2.1:8080", ""),
    ] {
        for answer in [
            posted(host, origin, "play/a").await,
            asked(Protocol::Sse, host, origin).await,
            asked(Protocol::WebSocket, host, origin).await,
        ] {
            assert_eq!(answer.status, 403, "{host} {origin}");
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(text.contains("--playground"), "{text}");
            assert_eq!(
                answer
                    .header("Access-Control-Allow-Origin")
                    .filter(|_| !origin.is_empty() && host != "evil.example"),
                None
            );
        }
        let preflight = format!("OPTIONS /topics/play/a HTTP/1.1\r\nHost: {host}\r\n{origin}\r\n");
        assert_eq!(exchange(server.data, preflight.as_bytes()).await.status, 403, "{host} {origin}");
        let probe = format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n{origin}\r\n");
        assert_eq!(exchange(server.data, probe.as_bytes()).await.status, 200, "{host} {origin}");
    }
    let stats = server.stats().await;
    assert_eq!(stats["hub"]["events"], 0, "nothing of a stranger was published");
    // Three of each, twice as GET and once as OPTIONS; a POST is counted among the publishes.
    assert_eq!(stats["totals"]["closed"]["foreign_origin"], 9);
    assert_eq!(stats["totals"]["closed"]["foreign_host"], 9);
    assert_eq!(stats["totals"]["refused"]["foreign_origin"], 3);
    assert_eq!(stats["totals"]["refused"]["foreign_host"], 3);

    let head = request(Protocol::Sse, &["play/a"], None).replace("Host: test\r\n", "Host: localhost\r\n");
    let mut subscriber = Subscriber::request(server.data, Protocol::Sse, head).await;
    for (host, origin) in [
        ("localhost:8080", "Origin: http://localhost:3000\r\n"),
        ("127.0.0.1", "Origin: http://127.0.0.1:8081\r\n"),
        ("[::1]:8080", ""),
    ] {
        let answer = posted(host, origin, "play/a").await;
        assert_eq!(answer.status, 200, "{host} {origin}");
        assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
        assert_eq!(subscriber.text().await, "x");
        for topic in ["play", "player/a", "news"] {
            assert_eq!(posted(host, origin, topic).await.status, 403, "{topic}");
        }
    }
}

/// The code of the element `id`, run by a shell as a user pastes it; gives what it prints.
async fn run_printed(page: &mut Page, id: &str, seconds: &str) -> String {
    let line = page.text(id).await;
    let output = Command::new("timeout").args([seconds, "sh", "-c", &line]).output().expect("a shell");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
#[ignore = "needs chromium and curl: tests/run installs them"]
async fn a_browser_plays_on_one_topic_over_both_protocols() {
    let server = Server::start(&["--shards=2", "--playground"]);
    let chromium = Chromium::start("playground").await;
    let mut page = chromium.window(&server.url("/playground")).await;
    for pane in ["sse", "ws"] {
        page.await_true(&format!("document.getElementById('{pane}-state').textContent === 'open'")).await;
    }
    // By keyboard, and each way once; a name that nobody listened to before is heard.
    page.write("data", "it's on <b>both</b>").await;
    page.write("name", "greeting").await;
    page.press("Enter", 13, "\r").await;
    for log in ["sse-log", "ws-log"] {
        page.await_text(log, "it's on <b>both</b>").await;
    }
    page.value("document.getElementById('plane').value = 'data'").await;
    page.write("data", "as a client").await;
    page.press("Enter", 13, "\r").await;
    page.await_text("sse-log", "greeting: as a client").await;
    page.await_text("publish-curl", &format!("http://{}/topics/play/hello?event=greeting", server.data))
        .await;
    let accepted = run_printed(&mut page, "publish-curl", "20").await;
    assert!(accepted.contains("\"sequence\":3"), "{accepted}");

    // Cut both, publish, and go on from the id that the button names.
    until("three events in both panes", async || {
        let mut pages = 0;
        for log in ["sse-log", "ws-log"] {
            pages += usize::from(page.text(log).await.matches("as a client").count() == 2);
        }
        (pages == 2).then_some(())
    })
    .await;
    for pane in ["sse", "ws"] {
        page.click(&format!("{pane}-cut")).await;
        page.await_text(&format!("{pane}-state"), "cut").await;
    }
    server.await_subscribers("play/hello", 0, 0).await;
    let missed = server.publish("play/hello", "missed").await.id;
    let last = missed.replace("-4", "-3");
    for pane in ["sse", "ws"] {
        assert_eq!(page.text(&format!("{pane}-resume")).await, format!("Resume after {last}"));
        let heard = run_printed(&mut page, &format!("{pane}-resume-curl"), "2").await;
        assert!(heard.contains("missed") && !heard.contains("as a client"), "{heard}");
        page.click(&format!("{pane}-resume")).await;
        page.await_text(&format!("{pane}-log"), "missed").await;
        let log = page.text(&format!("{pane}-log")).await;
        assert_eq!(log.matches("as a client").count(), 2, "nothing comes twice: {log}");
        assert!(!log.contains("gap"), "{log}");
    }
    // What the WebSocket may say, in both of its languages.
    for command in ["presence", "ping", "subscribe", "unsubscribe", "publish"] {
        let choose = "document.getElementById('ws-command')";
        page.value(&format!("{choose}.value = '{command}'; {choose}.dispatchEvent(new Event('change'))"))
            .await;
        let number = page.value("talk.reference").await;
        page.value("document.getElementById('ws-send').requestSubmit()").await;
        page.await_text("ws-log", &format!("{{\"ref\":{number},\"ok\"")).await;
    }
    page.await_text("sse-log", "from the WebSocket").await;
    let there = "document.getElementById('ws-mode')";
    page.value(&format!("{there}.value = 'raw'; {there}.dispatchEvent(new Event('change'))")).await;
    page.await_true("talk.socket?.readyState === WebSocket.OPEN && talk.socket.protocol === ''").await;
    page.write("ws-message", "a raw message").await;
    page.await_text("ws-send-curl", "curl -d 'a raw message' ").await;
    page.press("Enter", 13, "\r").await;
    for log in ["sse-log", "ws-log"] {
        page.await_text(log, "a raw message").await;
    }
    assert_eq!(page.text("ws-resume").await, "Resume: raw messages have no ids");
    page.look_at("playground").await;
    assert_eq!(page.complaints, Vec::<String>::new());
}

/// Two windows of an example.
async fn two_windows(chromium: &Chromium, server: &Server, name: &str) -> [Page; 2] {
    let url = server.url(&format!("/examples/{name}"));
    [chromium.window(&url).await, chromium.window(&url).await]
}

async fn done(name: &str, mut windows: [Page; 2]) {
    windows[1].look_at(name).await;
    for window in &mut windows {
        assert_eq!(window.complaints, Vec::<String>::new(), "{name}");
        // A browser has six event streams to one host, all windows together.
        window.ask("Page.close", json!({})).await;
    }
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_shows_each_example_of_event_streams_in_two_windows() {
    let server = Server::start(&["--shards=2", "--playground"]);
    let chromium = Chromium::start("streams").await;

    let mut news = two_windows(&chromium, &server, "news").await;
    news[0].write("headline", "<i>Nothing</i> happened").await;
    news[0].press("Enter", 13, "\r").await;
    for window in &mut news {
        window.await_text("news", "<i>Nothing</i> happened").await;
    }
    news[1].click("is-breaking").await;
    news[1].write("headline", "Something did").await;
    news[1].press("Enter", 13, "\r").await;
    news[0].await_true("document.querySelector('#news .breaking')?.textContent === 'Something did'").await;
    done("news", news).await;

    let mut monitor = two_windows(&chromium, &server, "monitor").await;
    let name = monitor[0].text("machine").await;
    monitor[0]
        .value("document.getElementById('load').value = 93; document.getElementById('load').dispatchEvent(new Event('change'))")
        .await;
    for window in &mut monitor {
        window.await_true(&format!("rows.get('{name}')?.meter.value === 93")).await;
        window.await_text("count", "2 machines").await;
    }
    done("monitor", monitor).await;

    let mut quotes = two_windows(&chromium, &server, "quotes").await;
    quotes[0].click("market").await;
    for window in &mut quotes {
        window.await_true("[...quotes.values()].every((quote) => quote.past.length > 1)").await;
    }
    quotes[0].click("market").await;
    // A window that comes later has the last price of each.
    let mut late = chromium.window(&server.url("/examples/quotes")).await;
    late.await_true("[...quotes.values()].every((quote) => quote.past.length === 1)").await;
    assert_eq!(late.complaints, Vec::<String>::new());
    done("quotes", quotes).await;

    // A policy has no word for an address of IPv6.
    let any = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
    let server = Server::start_on(any, any, &["--shards=1", "--playground"]);
    let mut news = chromium.window(&server.url("/examples/news")).await;
    news.await_text("status", "Live.").await;
    assert_eq!(news.complaints, Vec::<String>::new());
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_shows_each_example_of_websockets_in_two_windows() {
    let server = Server::start(&["--shards=2", "--playground"]);
    let chromium = Chromium::start("sockets").await;

    let mut chat = two_windows(&chromium, &server, "chat").await;
    for window in &mut chat {
        window.await_text("status", "2 windows are here.").await;
    }
    for (writer, text) in [(0, "who is <there>?"), (1, "me")] {
        chat[writer].write("text", text).await;
        chat[writer].press("Enter", 13, "\r").await;
        for window in &mut chat {
            window.await_text("messages", text).await;
        }
    }
    done("chat", chat).await;

    let mut board = two_windows(&chromium, &server, "board").await;
    let painted = "board.toDataURL() !== empty";
    for window in &mut board {
        window.await_true("socket.readyState === WebSocket.OPEN").await;
        window.value("globalThis.empty = board.toDataURL()").await;
    }
    let drawn = "const at = (type, x) => board.dispatchEvent(new PointerEvent(type, \
                 { clientX: board.getBoundingClientRect().x + x, clientY: board.getBoundingClientRect().y + 90, pointerId: 1 })); \
                 board.setPointerCapture = () => {}; at('pointerdown', 20); at('pointermove', 200); at('pointerup', 200);";
    board[0].value(&format!("{{ {drawn} }}")).await;
    for window in &mut board {
        window.await_true(painted).await;
    }
    board[1].click("clear").await;
    for window in &mut board {
        window.await_true("board.toDataURL() === empty").await;
    }
    board[1].value("board.focus()").await;
    for _ in 0..8 {
        board[1].press("ArrowRight", 39, "").await;
    }
    board[0].await_true(painted).await;
    done("board", board).await;

    let mut game = two_windows(&chromium, &server, "game").await;
    for window in &mut game {
        window.await_true("socket.readyState === WebSocket.OPEN").await;
        window.await_text("turn", "Anybody new is to move.").await;
    }
    let column = |column: usize| format!("document.querySelectorAll('#grid button')[{column}].click()");
    for moved in 1..=7 {
        let player = usize::from(moved % 2 == 0);
        if moved > 1 {
            // The other one is out of turn: its move comes, and does not count.
            let before = game[player].value("lastId").await;
            game[1 - player].value(&column(6)).await;
            game[player].await_true(&format!("lastId !== {before}")).await;
        }
        game[player].value(&column(player)).await;
        for window in &mut game {
            window.await_true(&format!("game.moves === {moved}")).await;
        }
        if moved == 1 {
            game[0].await_text("turn", "Anybody new").await;
        }
    }
    game[0].await_text("turn", "You won.").await;
    game[1].await_text("turn", "The other window won.").await;
    done("game", game).await;
}

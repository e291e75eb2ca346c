//! Claim: a browser that opens the control plane sees how the server is, how fast it is and who is
//! slow, with the figures of `/stats`; everybody else gets the text.
//!
//! Set-up: a server with traffic, refusals and a stalled subscriber behind it. Chromium without a
//! window opens its front page, light and dark, on a phone's and on a desk's width; the test speaks
//! the protocol of its developer tools.
//!
//! Expectation: nothing is written to the console and no policy is broken; the page is never wider
//! than its window; each figure that names its place in `/stats` is the one that stands there. What
//! subscribers have counted themselves, the page shows at its next look. Where the control plane
//! wants a token the page asks for it, and shows nothing before.

use serde_json::json;

use crate::support::raw::exchange;
use crate::support::{Chromium, Protocol, Server, Subscriber, until};

async fn front(server: &Server, accept: &str) -> (Option<String>, Option<String>, String) {
    let request =
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    let answer = exchange(server.control, request.as_bytes()).await;
    assert_eq!(answer.status, 200);
    let field = |name| answer.header(name).map(str::to_string);
    (field("content-type"), field("content-security-policy"), String::from_utf8_lossy(&answer.body).into())
}

#[tokio::test]
async fn browsers_get_the_page_and_everybody_else_the_text() {
    let server = Server::start(&["--shards", "1"]);
    let (kind, policy, body) = front(&server, "text/html,application/xhtml+xml,*/*;q=0.8").await;
    assert_eq!(kind.as_deref(), Some("text/html; charset=utf-8"));
    let policy = policy.expect("a policy");
    assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
    assert!(body.starts_with("<!doctype html>") && !body.contains("://"), "no other host is named");
    for part in body.split("\"/pages/").skip(1) {
        let path = format!("/pages/{}", part.split('"').next().expect("the end of an attribute"));
        assert_eq!(server.get(&path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/pages/other.js").await.status, 404);
    let (kind, policy, body) = front(&server, "*/*").await;
    assert_eq!((kind.as_deref(), policy), (Some("text/plain; charset=utf-8"), None));
    assert!(body.contains("POST /topics/TOPIC"), "{body}");
}

/// Path and value of each figure that says where it stands in `/stats`.
const FIGURES: &str =
    "[...document.querySelectorAll('data[data-path]')].map((one) => [one.dataset.path, one.value])";

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_shows_the_figures_of_stats_light_and_dark_wide_and_narrow() {
    let server = Server::start(&["--shards", "2", "--stall-ms-max", "120000"]);
    let mut subscribers = Vec::new();
    for topic in ["news", "prices/eur"] {
        for protocol in [Protocol::Sse, Protocol::WebSocket, Protocol::Sse] {
            subscribers.push((topic, Subscriber::connect(server.data, protocol, &[topic]).await));
        }
    }
    let chromium = Chromium::start("dashboard").await;
    let mut page = chromium.window(&server.url("/")).await;
    // While the page looks on: rates and quantiles of now are those of its own time.
    for number in 0..200 {
        for topic in ["news", "prices/eur"] {
            server.publish(topic, number.to_string()).await;
        }
        for (_, subscriber) in &mut subscribers {
            assert_eq!(subscriber.text().await, number.to_string());
        }
    }
    // The look after the one that may be under way.
    let looks = page.value("turn").await.as_u64().expect("a number");
    page.await_true(&format!("turn >= {}", looks + 2)).await;
    for (format, delivered) in [("sse", 200 * 4), ("websocket", 200 * 2)] {
        let shown = format!("document.querySelector('[data-path=\"totals.formats.{format}.frames\"]').value");
        assert_eq!(page.value(&shown).await, delivered.to_string(), "deliveries over {format}");
        let rates = format!(
            "past.slice(1).reduce((sum, one, at) => sum + one.rates.{format}frames * (one.at - past[at].at), 0)"
        );
        let charted = page.value(&rates).await.as_f64().expect("a number") / 1_000.0;
        assert!((charted - f64::from(delivered)).abs() < 0.01, "the chart of {format} adds up to {charted}");
    }
    until("a rate of deliveries", async || {
        let rate = page.value("document.getElementById('frames-rate').textContent").await;
        server.publish("news", "more").await;
        rate.as_str().is_some_and(|rate| !["–", "0"].contains(&rate)).then_some(())
    })
    .await;
    assert_eq!(server.get("/nothing").await.status, 404);
    // It answers no ping, so it comes only now.
    let _slow = Subscriber::connect(server.data, Protocol::WebSocket, &["stalled"]).await;
    publish_stuck(&server).await;

    // Nothing changes any more, so both are of one moment.
    let (figures, stats) = until("the page to be up to date", async || {
        let stats = server.stats().await;
        let figures = page.value(FIGURES).await;
        let told = figures.as_array()?.iter().find(|figure| figure[0] == "hub.events")?;
        let slow = page.value("document.getElementById('slowest').textContent").await;
        let is_it = told[1].as_str() == Some(&stats["hub"]["events"].to_string())
            && slow.as_str().is_some_and(|text| text.contains("stalled"));
        is_it.then_some((figures, stats))
    })
    .await;
    let figures = figures.as_array().expect("a list");
    assert!(figures.len() > 25, "the page has {} figures", figures.len());
    for figure in figures {
        let path = figure[0].as_str().expect("a path");
        let value = path.split('.').fold(&stats, |value, name| &value[name]);
        let shown = figure[1].as_str().and_then(|text| text.parse::<f64>().ok());
        assert_eq!(shown, value.as_f64(), "{path}");
    }
    let refused = figures.iter().any(|figure| figure[0] == "hub.refused.unknown_path");
    assert!(refused, "a refusal is told: {figures:?}");
    let topics = page.value("document.getElementById('topics').textContent").await.to_string();
    assert!(topics.contains("prices/eur") && topics.contains("news"), "{topics}");
    let ring = page.value("document.getElementById('ring').textContent").await.to_string();
    assert!(ring.contains(stats["egress"]["ring"].as_str().expect("a ring")), "{ring}");

    page.look_at("dashboard").await;
    // By keyboard: the first stop is the button, and it stops and goes on.
    for (pressed, text) in [("true", "Go on"), ("false", "Pause")] {
        page.value("document.getElementById('pause').focus()").await;
        page.press(" ", 32, " ").await;
        let state = page.value(
            "[document.getElementById('pause').ariaPressed, document.getElementById('pause').textContent]",
        );
        assert_eq!(state.await, json!([pressed, text]));
    }
    assert_eq!(page.complaints, Vec::<String>::new());
    drop(server);
    until("the page to say that the server is gone", async || {
        let said = page.value("document.getElementById('health').textContent").await;
        said.as_str().is_some_and(|said| said.contains("does not answer")).then_some(())
    })
    .await;
}

/// Brings the subscriber of `stalled` to a standstill, beside others.
async fn publish_stuck(server: &Server) {
    let waiting = async || {
        let slow = server.get("/slow").await.json();
        slow["slow"].as_array().is_some_and(|slow| !slow.is_empty())
    };
    let line = "x".repeat(64 << 10);
    until("the stalled one to be slow", async || {
        server.publish("stalled", line.clone()).await;
        waiting().await.then_some(())
    })
    .await;
}

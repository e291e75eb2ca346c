//! Claim: a browser that opens the control plane sees how the server is, how fast it is and who is
//! slow, with the figures of `/stats`; everybody else gets the text.
//!
//! Set-up: a server with traffic, refusals and a stalled subscriber behind it. Chromium without a
//! window opens its front page, light and dark, on a phone's and on a desk's width; the test speaks
//! the protocol of its developer tools.
//!
//! Expectation: nothing is written to the console and no policy is broken; the page is never wider
//! than its window; each figure that names its place in `/stats` is the one that stands there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::browser::NAMES;
use crate::support::raw::exchange;
use crate::support::{Protocol, Server, Subscriber, until, within};

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

/// Chromium with one page, heard and told through its developer tools. Ended when dropped.
struct Page {
    process: Child,
    profile: PathBuf,
    tools: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    /// What the console and the log of the page said.
    complaints: Vec<String>,
}

impl Page {
    async fn open(name: &str) -> Page {
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dashboard-profile-{name}"));
        // An earlier run may have left one behind.
        let _ = std::fs::remove_dir_all(&profile);
        let program = NAMES.into_iter().find(|name| {
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        });
        let process = Command::new(program.expect("chromium is installed"))
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium starts");
        let port = until("the port of the developer tools", async || {
            let file = std::fs::read_to_string(profile.join("DevToolsActivePort")).ok()?;
            file.lines().next()?.parse::<u16>().ok()
        })
        .await;
        let client = reqwest::Client::builder().no_proxy().build().expect("a client without TLS");
        let url = until("a page to speak to", async || {
            let list = client.get(format!("http://127.0.0.1:{port}/json/list")).send().await.ok()?;
            let list: Value = serde_json::from_str(&list.text().await.ok()?).ok()?;
            let page = list.as_array()?.iter().find(|target| target["type"] == "page")?;
            page["webSocketDebuggerUrl"].as_str().map(str::to_string)
        })
        .await;
        let tools = within("the developer tools", connect_async(url)).await.expect("they listen").0;
        let mut page = Page { process, profile, tools, asked: 0, complaints: Vec::new() };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.ask(&format!("{domain}.enable"), json!({})).await;
        }
        page
    }

    /// Asks for something and gives the answer; hears complaints meanwhile.
    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let question = json!({ "id": self.asked, "method": method, "params": params });
        self.tools.send(Message::text(question.to_string())).await.expect("chromium runs");
        loop {
            let heard = within(method, self.tools.next()).await.expect("chromium runs").expect("a message");
            let Message::Text(text) = heard else { continue };
            let said: Value = serde_json::from_str(&text).expect("JSON");
            match said["method"].as_str() {
                Some("Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown") => {
                    self.complaints.push(said["params"].to_string());
                }
                Some("Network.requestWillBeSent") => {
                    let url = said["params"]["request"]["url"].as_str().expect("a URL");
                    let ours = url.starts_with("http://127.0.0.1:");
                    assert!(ours, "the page asks {url}");
                }
                _ => {}
            }
            if said["id"] == self.asked {
                assert!(said.get("error").is_none(), "{method}: {said}");
                return said["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    async fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        self.ask("Runtime.evaluate", params).await["result"]["value"].clone()
    }

    async fn screenshot(&mut self, name: &str) {
        let shot = self
            .ask("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }))
            .await;
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("a picture"));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dashboard-{name}.png"));
        std::fs::write(path, png.expect("base64")).expect("a file of our own");
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
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
    let _slow = Subscriber::connect(server.data, Protocol::WebSocket, &["stalled"]).await;
    let mut page = Page::open(&server.control.port().to_string()).await;
    page.ask("Emulation.setDeviceMetricsOverride", metrics(1_400, 1_000)).await;
    page.ask("Page.navigate", json!({ "url": server.url("/") })).await;
    // While the page looks on: rates and quantiles of now are those of its own time.
    for number in 0..200 {
        for topic in ["news", "prices/eur"] {
            server.publish(topic, number.to_string()).await;
        }
        for (_, subscriber) in &mut subscribers {
            assert_eq!(subscriber.text().await, number.to_string());
        }
    }
    until("a rate of deliveries", async || {
        let rate = page.value("document.getElementById('frames-rate').textContent").await;
        server.publish("news", "more").await;
        rate.as_str().is_some_and(|rate| !["–", "0"].contains(&rate)).then_some(())
    })
    .await;
    assert_eq!(server.get("/nothing").await.status, 404);
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

    for scheme in ["light", "dark"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        page.ask("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        for width in [390, 1_400] {
            page.ask("Emulation.setDeviceMetricsOverride", metrics(width, 1_000)).await;
            let wide = page.value("document.documentElement.scrollWidth").await;
            assert!(wide.as_u64() <= Some(width), "{wide} pixels in a window of {width}");
            page.screenshot(&format!("{scheme}-{width}")).await;
        }
    }
    // By keyboard: the first stop is the button, and it stops and goes on.
    for (pressed, text) in [("true", "Go on"), ("false", "Pause")] {
        page.value("document.getElementById('pause').focus()").await;
        for kind in ["keyDown", "keyUp"] {
            let key = json!({ "type": kind, "key": " ", "code": "Space", "windowsVirtualKeyCode": 32, "text": " " });
            page.ask("Input.dispatchKeyEvent", key).await;
        }
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

fn metrics(width: u64, height: u64) -> Value {
    json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 })
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

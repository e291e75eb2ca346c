//! Chromium without a window on the screen, told and heard through its developer tools.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::server::client;
use super::{until, within};

/// Names of the program, the Debian one first.
pub const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

/// The program, with a profile of its own. Ended when dropped.
pub struct Chromium {
    process: Child,
    profile: PathBuf,
    port: u16,
}

impl Chromium {
    /// Starts it; `name` is the test's alone.
    pub async fn start(name: &str) -> Chromium {
        let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("chromium-profile-{name}"));
        // An earlier run may have left one behind.
        let _ = std::fs::remove_dir_all(&profile);
        let program = NAMES.into_iter().find(|name| {
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        });
        let process = Command::new(program.expect("chromium is installed"))
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0"])
            .args(["--disable-background-timer-throttling", "--disable-renderer-backgrounding"])
            // Certificates of tests are signed by nobody.
            .args(["--disable-backgrounding-occluded-windows", "--ignore-certificate-errors"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromium starts");
        let mut chromium = Chromium { process, profile, port: 0 };
        chromium.port = until("the port of the developer tools", async || {
            let file = std::fs::read_to_string(chromium.profile.join("DevToolsActivePort")).ok()?;
            file.lines().next()?.parse::<u16>().ok()
        })
        .await;
        chromium
    }

    /// A window of its own that shows `url`.
    pub async fn window(&self, url: &str) -> Page {
        let client = client(reqwest::Client::builder());
        let opened = until("a window", async || {
            let address = format!("http://127.0.0.1:{}/json/new?about:blank", self.port);
            let text = client.put(address).send().await.ok()?.text().await.ok()?;
            serde_json::from_str::<Value>(&text).ok()?["webSocketDebuggerUrl"].as_str().map(str::to_string)
        })
        .await;
        let tools = within("the developer tools", connect_async(opened)).await.expect("they listen").0;
        let mut page = Page { tools, asked: 0, complaints: Vec::new() };
        for domain in ["Page", "Runtime", "Log", "Network"] {
            page.ask(&format!("{domain}.enable"), json!({})).await;
        }
        page.ask("Emulation.setFocusEmulationEnabled", json!({ "enabled": true })).await;
        page.show(1_400, "light").await;
        page.ask("Page.navigate", json!({ "url": url })).await;
        page.await_true("document.readyState === 'complete'").await;
        page
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Its helper processes end with it, but maybe not before this; the next run clears what
        // they leave.
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// One window.
pub struct Page {
    tools: WebSocketStream<MaybeTlsStream<TcpStream>>,
    asked: u64,
    /// What the console and the log of the page said, broken policies included.
    pub complaints: Vec<String>,
}

impl Page {
    /// Asks for something and gives the answer.
    pub async fn ask(&mut self, method: &str, params: Value) -> Value {
        let said = self.said_to(method, params).await;
        assert!(said.get("error").is_none(), "{method}: {said}");
        said["result"].clone()
    }

    /// Asks for something and gives what is said to it, refusals too; hears complaints meanwhile.
    async fn said_to(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let question = json!({ "id": self.asked, "method": method, "params": params });
        self.tools.send(Message::text(question.to_string())).await.expect("chromium runs");
        within(method, async {
            loop {
                let heard = self.tools.next().await.expect("chromium runs").expect("a message");
                let Message::Text(text) = heard else { continue };
                let said: Value = serde_json::from_str(&text).expect("JSON");
                self.hear(&said);
                if said["id"] == self.asked {
                    return said;
                }
            }
        })
        .await
    }

    /// Keeps what the page complains about. It asks nothing of strangers.
    fn hear(&mut self, said: &Value) {
        match said["method"].as_str() {
            Some("Log.entryAdded" | "Runtime.consoleAPICalled" | "Runtime.exceptionThrown") => {
                self.complaints.push(said["params"].to_string());
            }
            Some("Network.requestWillBeSent") => {
                let url = said["params"]["request"]["url"].as_str().expect("a URL");
                let ours = ["//127.0.0.1:", "//localhost:", "//[::1]:"];
                let is_ours = |url: &str| ours.iter().any(|ours| url.starts_with(ours));
                let rest = url.strip_prefix("https:").or(url.strip_prefix("http:"));
                assert!(rest.is_some_and(is_ours) || url == "about:blank", "the page asks {url}");
            }
            _ => {}
        }
    }

    /// The value of an expression in the page; that of a promise when it is kept. None while the
    /// page goes to another address: then there is nothing in which to evaluate it.
    async fn value_unless_it_navigates(&mut self, expression: &str) -> Option<Value> {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let said = self.said_to("Runtime.evaluate", params).await;
        let Some(error) = said.get("error") else { return Some(said["result"]["result"]["value"].clone()) };
        let message = error["message"].as_str().unwrap_or_default();
        let navigates = ["navigated or closed", "context was destroyed", "Cannot find context"];
        assert!(navigates.iter().any(|words| message.contains(words)), "{expression}: {said}");
        None
    }

    /// The value of an expression in the page; that of a promise when it is kept.
    pub async fn value(&mut self, expression: &str) -> Value {
        self.value_unless_it_navigates(expression)
            .await
            .unwrap_or_else(|| panic!("{expression}: the page left"))
    }

    /// Loads the page anew, and waits until it is there.
    pub async fn reload(&mut self) {
        self.value("window.isOld = true").await;
        self.ask("Page.reload", json!({})).await;
        self.await_true("window.isOld === undefined && document.readyState === 'complete'").await;
    }

    /// The text of the element `id`.
    pub async fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}').textContent")).await;
        text.as_str().unwrap_or_else(|| panic!("no element {id}")).to_string()
    }

    /// Waits until an expression in the page is true.
    pub async fn await_true(&mut self, expression: &str) {
        until(expression, async || (self.value_unless_it_navigates(expression).await? == true).then_some(()))
            .await;
    }

    /// Waits until the element `id` holds `text`.
    pub async fn await_text(&mut self, id: &str, text: &str) {
        let text = json!(text);
        self.await_true(&format!("document.getElementById('{id}').textContent.includes({text})")).await;
    }

    /// Clicks the element `id`, which may lead to another page.
    pub async fn click(&mut self, id: &str) {
        self.value_unless_it_navigates(&format!("document.getElementById('{id}').click()")).await;
    }

    /// Writes `text` in place of what stands in the field `id`, by keyboard.
    pub async fn write(&mut self, id: &str, text: &str) {
        let select = "field.focus(); field.select();";
        self.value(&format!("{{ const field = document.getElementById('{id}'); {select} }}")).await;
        self.ask("Input.insertText", json!({ "text": text })).await;
    }

    /// Presses a key where the focus is: its name, and what it writes.
    pub async fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let press =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            self.ask("Input.dispatchKeyEvent", press).await;
        }
    }

    /// Shows the page in a window of this width, in a light or dark one.
    pub async fn show(&mut self, width: u64, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.ask("Emulation.setEmulatedMedia", json!({ "features": features })).await;
        let mobile = width < 500;
        let metrics = json!({ "width": width, "height": 1_000, "deviceScaleFactor": 1, "mobile": mobile });
        self.ask("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// The page is never wider than its window: narrow and wide, light and dark. `FANWAVE_PICTURES`
    /// names a directory for a picture of each.
    pub async fn look_at(&mut self, name: &str) {
        let pictures = std::env::var_os("FANWAVE_PICTURES").map(PathBuf::from);
        // Of a page behind others no picture is made.
        self.ask("Page.bringToFront", json!({})).await;
        for scheme in ["light", "dark"] {
            for width in [390, 1_400] {
                self.show(width, scheme).await;
                let wide = self.value("document.documentElement.scrollWidth").await;
                assert!(wide.as_u64() <= Some(width), "{name}: {wide} pixels in a window of {width}");
                if let Some(directory) = &pictures {
                    self.screenshot(&directory.join(format!("{name}-{scheme}-{width}.png"))).await;
                }
            }
        }
        self.show(1_400, "light").await;
    }

    async fn screenshot(&mut self, path: &Path) {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.ask("Page.captureScreenshot", params).await;
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().expect("a picture"));
        std::fs::write(path, png.expect("base64")).expect("the directory is there");
    }
}

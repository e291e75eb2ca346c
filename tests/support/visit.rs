//! A page in a browser of another make: served by this test, it tells what it hears by `POST`, and
//! reaches the server through a relay that the test can cut.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

use super::chromium::NAMES;
use super::within;

const PAGE: &str = include_str!("../browser/page.html");
const RETURNING: &str = include_str!("../browser/returning.html");
const CONVERSATION: &str = include_str!("../browser/conversation.html");
const MANY: &str = include_str!("../browser/many.html");

/// A browser of Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    Chromium,
    Firefox,
}

/// How a browser knows the test's own certificate.
#[derive(Debug)]
pub struct Trust {
    /// The digest of its public key, for Chromium.
    pub key: [u8; 32],
    /// The file of its authority, for Firefox.
    pub authority: String,
}

/// Serves the page, and passes on what it reports.
pub async fn serve_page(listener: TcpListener, reports: mpsc::UnboundedSender<String>) {
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
    } else if request.starts_with(b"GET /many") {
        ("200 OK", MANY)
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

/// How connections begin that a relay cuts: an event stream, a WebSocket without a topic in its
/// path, and TLS, which hides what it is.
const CUT: [&[u8]; 3] = [b"GET /sse", b"GET /ws?", b"\x16"];

/// Relays connections to `server`; those that begin like one of [`CUT`] end when the number in `cut`
/// changes.
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
            if CUT.iter().any(|cut| start.starts_with(cut)) {
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

/// Relays connections to `server`, or ends them as they come while it is not `open`.
pub async fn gate(listener: TcpListener, server: SocketAddr, open: watch::Receiver<bool>) {
    loop {
        let (mut browser, _) = listener.accept().await.expect("a listener accepts");
        if *open.borrow() {
            tokio::spawn(async move {
                let Ok(mut upstream) = TcpStream::connect(server).await else { return };
                let _ = copy_bidirectional(&mut browser, &mut upstream).await;
            });
        }
    }
}

/// A browser on one page, its profile in a directory of its own. Both are gone when this is dropped.
pub struct Browser {
    process: Child,
    profile: PathBuf,
}

impl Browser {
    pub fn open(make: Make, url: &str, trust: Option<&Trust>) -> Browser {
        // The port of the page's server is this test's alone.
        let port = url.split([':', '/']).nth(4).expect("a URL with a port");
        let profile = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("browser-profile-{port}"));
        // An earlier run may have left one behind.
        let _ = std::fs::remove_dir_all(&profile);
        let mut command = match make {
            Make::Chromium => chromium(&profile, trust),
            Make::Firefox => firefox(&profile, trust),
        };
        let command = command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Browser { process: command.spawn().expect("the browser starts"), profile }
    }
}

fn chromium(profile: &Path, trust: Option<&Trust>) -> Command {
    let name = NAMES.into_iter().find(|name| {
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    });
    let mut command = Command::new(name.expect("chromium is installed"));
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--no-proxy-server", "--remote-debugging-port=0"])
        .arg(format!("--user-data-dir={}", profile.display()));
    if let Some(Trust { key, .. }) = trust {
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        command.arg(format!("--ignore-certificate-errors-spki-list={key}"));
    }
    command
}

/// What Firefox asks of the network besides the page goes to a proxy that is not there.
const FIREFOX: &str = r#"
user_pref("network.proxy.type", 1);
user_pref("network.proxy.http", "127.0.0.1");
user_pref("network.proxy.http_port", 9);
user_pref("network.proxy.ssl", "127.0.0.1");
user_pref("network.proxy.ssl_port", 9);
user_pref("network.proxy.no_proxies_on", "127.0.0.1");
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("app.normandy.enabled", false);
user_pref("app.update.disabledForTesting", true);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.startup.homepage_override.mstone", "ignore");
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("extensions.update.enabled", false);
user_pref("services.settings.server", "data:,");
user_pref("toolkit.telemetry.server", "data:,");
"#;

fn firefox(profile: &Path, trust: Option<&Trust>) -> Command {
    std::fs::create_dir_all(profile).expect("a directory of our own");
    std::fs::write(profile.join("user.js"), FIREFOX).expect("a file in it");
    if let Some(Trust { authority, .. }) = trust {
        let database = format!("sql:{}", profile.display());
        let new = ["-N", "--empty-password"];
        let add = ["-A", "-n", "an authority of a test", "-t", "C,,", "-i", authority];
        for args in [&new[..], &add] {
            let made = Command::new("certutil").args(args).args(["-d", &database]).output();
            let made = made.expect("certutil is installed");
            assert!(made.status.success(), "{made:?}");
        }
    }
    let mut command = Command::new("firefox-esr");
    command.args(["--headless", "--no-remote", "--profile"]).arg(profile).env("HOME", profile);
    command
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
pub async fn reported(reports: &mut mpsc::UnboundedReceiver<String>) -> String {
    reported_for(reports, "a report of the page").await
}

/// The same, which is waited for because of `what`.
pub async fn reported_for(reports: &mut mpsc::UnboundedReceiver<String>, what: &str) -> String {
    within(what, reports.recv()).await.expect("the page's server runs")
}

/// The next reports are these, in any order: the two connections are independent.
pub async fn both(reports: &mut mpsc::UnboundedReceiver<String>, mut expected: Vec<String>) {
    let mut seen = Vec::new();
    for _ in 0..expected.len() {
        let what = format!("a report of the page: {seen:?} came of {expected:?}");
        seen.push(reported_for(reports, &what).await);
    }
    seen.sort_unstable();
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

/// A page that is open in a browser and reaches the server through a relay.
pub struct Visit {
    /// What the page says.
    pub reports: mpsc::UnboundedReceiver<String>,
    /// Cuts its connections at each change.
    pub cut: watch::Sender<u32>,
    _browser: Browser,
}

impl Visit {
    /// `server` speaks TLS if the browser is told whom to trust. Then WebSockets of the page are not
    /// cut: they pass by the relay.
    pub async fn new(make: Make, server: SocketAddr, page: &str, trust: Option<&Trust>) -> Visit {
        let bind = async || TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (pages, relayed) = (bind().await, bind().await);
        let [page_address, relay_address] =
            [&pages, &relayed].map(|listener| listener.local_addr().expect("bound"));
        let (sender, reports) = mpsc::unbounded_channel();
        let cut = watch::Sender::new(0);
        tokio::spawn(serve_page(pages, sender));
        tokio::spawn(relay(relayed, server, cut.subscribe()));
        let (secure, socket) = if trust.is_some() { ("s", server) } else { ("", relay_address) };
        let url =
            format!("http://{page_address}/{page}?server={relay_address}&secure={secure}&socket={socket}");
        Visit { reports, cut, _browser: Browser::open(make, &url, trust) }
    }
}

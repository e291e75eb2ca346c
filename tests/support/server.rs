//! One fanwave process, its addresses, and what its control API says.
//!
//! The process is killed when the [`Server`] is dropped; if the test is failing then, its log is
//! printed first.
//!
//! `FANWAVE_EGRESS` of the tests is the server's: with `epoll` every promise is kept over epoll.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::{PATIENCE, Protocol, until, within};

/// Names the ring that the server stands on.
const EGRESS: &str = "FANWAVE_EGRESS";

/// A running server.
pub struct Server {
    process: Child,
    /// Reads standard error to its end.
    log: Option<JoinHandle<String>>,
    client: reqwest::Client,
    /// What it printed when it was ready, line by line.
    pub banner: Vec<String>,
    /// Where subscribers connect.
    pub data: SocketAddr,
    /// Where publishers connect.
    pub control: SocketAddr,
}

/// The answer to an accepted event.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Accepted {
    pub id: String,
    pub sequence: u64,
}

/// An answer of the control API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `error` of the body, which is one line.
    pub fn error(&self) -> String {
        let text = self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_string();
        assert!(!text.is_empty() && !text.contains('\n'), "an error is one line: {text:?}");
        text
    }
}

impl Server {
    /// A server on ports that the kernel chooses, with these further flags.
    pub fn start(flags: &[&str]) -> Server {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Server::start_on(any, any, flags)
    }

    /// A server on these addresses.
    pub fn start_on(data: SocketAddr, control: SocketAddr, flags: &[&str]) -> Server {
        let (data, control) = (data.to_string(), control.to_string());
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
        command.args(["serve", "--listen", &data, "--control", &control, "--log", "fanwave=debug"]);
        command.args(flags).env_clear().stdin(Stdio::null());
        // Most are killed, and would leave their sockets behind.
        command.env("FANWAVE_UPGRADE_SOCKET", "none");
        command.envs(std::env::var_os(EGRESS).map(|egress| (EGRESS, egress)));
        Server::run(command)
    }

    /// A server that this command runs.
    pub fn run(command: Command) -> Server {
        Server::run_with_stderr(command, Stdio::piped())
    }

    /// The same with another standard error.
    pub fn run_with_stderr(mut command: Command, stderr: Stdio) -> Server {
        let mut process = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("the program starts");
        let stderr = process.stderr.take();
        let log = std::thread::spawn(move || {
            let mut log = Vec::new();
            // A log that breaks off is shown as far as it came.
            let _ = stderr.map(|mut stderr| stderr.read_to_end(&mut log));
            String::from_utf8_lossy(&log).into_owned()
        });
        let lines = lines_of(process.stdout.take().expect("piped"));
        let mut server = Server {
            process,
            log: Some(log),
            client: client(reqwest::Client::builder()),
            banner: Vec::new(),
            data: SocketAddr::from(([0; 4], 0)),
            control: SocketAddr::from(([0; 4], 0)),
        };
        // The last line of the banner is the command that publishes to this topic.
        while !server.banner.last().is_some_and(|line: &String| line.contains("/topics/hello")) {
            let line = lines.recv_timeout(PATIENCE);
            server.banner.push(line.expect("the server prints its banner; its log follows"));
        }
        server.data = server.address("data plane ");
        server.control = server.address("control plane ");
        server
    }

    /// The first address in the banner under this label.
    fn address(&self, label: &str) -> SocketAddr {
        let line = self.banner.iter().find_map(|line| line.strip_prefix(label));
        line.expect("the banner names the address").trim().parse().expect("an address")
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process is there");
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        until("the end of the process", async || self.process.try_wait().expect("our own child")).await
    }

    /// All that an ended process has logged.
    pub fn log(&mut self) -> String {
        self.log.take().and_then(|log| log.join().ok()).expect("it is read once")
    }

    /// Ends the process in an orderly way and gives what it logged.
    pub async fn into_log(mut self) -> String {
        self.signal(Signal::TERM);
        self.ended().await;
        self.log()
    }

    /// True while the process runs.
    pub fn runs(&mut self) -> bool {
        self.process.try_wait().expect("our own child").is_none()
    }

    /// Descriptors that the process has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).expect("our own child").count()
    }

    /// Gives the process this limit of descriptors; it keeps those that it has.
    pub fn limit_descriptors(&self, limit: Rlimit) {
        prlimit(Some(self.pid()), Resource::Nofile, limit).expect("the process is there");
    }

    /// Bytes of memory that the process has resident (`VmRSS` in proc_pid_status(5)).
    pub fn resident_bytes(&self) -> usize {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("our own child");
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<usize>().ok()).expect("a number of KiB") << 10
    }

    /// URL of a path of the control API.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.control)
    }

    /// A POST to the control API that is not sent yet.
    pub fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(self.url(path))
    }

    /// A DELETE to the control API that is not sent yet.
    pub fn delete(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.delete(self.url(path))
    }

    /// Sends `request` and reads its answer to the end.
    pub async fn answer(&self, request: reqwest::RequestBuilder) -> Answer {
        answer(request).await
    }

    /// GET on the control API.
    pub async fn get(&self, path: &str) -> Answer {
        answer(self.client.get(self.url(path))).await
    }

    /// Publishes text that must be accepted.
    pub async fn publish(&self, topic: &str, data: impl Into<reqwest::Body>) -> Accepted {
        self.publish_with(topic, "", data).await
    }

    /// Publishes text with a query (`?id=…`) that must be accepted.
    pub async fn publish_with(&self, topic: &str, query: &str, data: impl Into<reqwest::Body>) -> Accepted {
        let answer = self.answer(self.post(&format!("/topics/{topic}{query}")).body(data)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).expect("id and sequence")
    }

    /// `GET /stats`.
    pub async fn stats(&self) -> Value {
        let answer = self.get("/stats").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Connections closed for the reason with this label.
    pub async fn closed(&self, label: &str) -> u64 {
        self.stats().await["totals"]["closed"][label].as_u64().unwrap_or_else(|| panic!("no label {label}"))
    }

    /// Waits until so many connections were closed for this reason, and not one more.
    pub async fn await_closed(&self, label: &str, count: u64) {
        let what = format!("{count} connections closed as {label}");
        until(&what, async || (self.closed(label).await >= count).then_some(())).await;
        assert_eq!(self.closed(label).await, count, "{what}");
    }

    /// A counter of one protocol over all shards.
    pub async fn counter(&self, protocol: Protocol, name: &str) -> u64 {
        let stats = self.stats().await;
        let counters = &stats["totals"]["formats"][label(protocol)];
        counters[name].as_u64().unwrap_or_else(|| panic!("no counter {name}: {counters}"))
    }

    /// Waits until the topic has exactly so many subscribers.
    pub async fn await_subscribers(&self, topic: &str, sse: u64, websocket: u64) {
        let what = format!("{sse} SSE and {websocket} WebSocket subscribers of {topic}");
        let wanted = serde_json::json!({ "sse": sse, "websocket": websocket });
        until(&what, async || {
            let answer = self.get(&format!("/topics/{topic}")).await;
            (answer.status == 200 && answer.json()["subscribers"] == wanted).then_some(())
        })
        .await;
    }
}

/// The word for a protocol in the stats.
pub fn label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Sse => "sse",
        Protocol::WebSocket => "websocket",
    }
}

/// A client that goes nowhere but to the address that it is given.
pub fn client(builder: reqwest::ClientBuilder) -> reqwest::Client {
    builder.no_proxy().tls_certs_only([]).build().expect("a client without TLS")
}

/// Sends `request` and reads its answer to the end.
pub async fn answer(request: reqwest::RequestBuilder) -> Answer {
    within("an answer of the control API", async {
        let response = request.send().await.expect("the control API answers");
        let retry_after = response.headers().get("retry-after");
        Answer {
            status: response.status().as_u16(),
            retry_after: retry_after.map(|value| value.to_str().expect("ASCII").to_string()),
            body: response.text().await.expect("the whole body"),
        }
    })
    .await
}

/// The lines that a program prints, as they come.
pub fn lines_of(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            // A test that has read enough is gone; the pipe is drained all the same.
            let _ = sender.send(line);
        }
    });
    lines
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let log = self.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        if std::thread::panicking() {
            let (head, tail) = (8_000, 32_000);
            eprintln!("log of the server on {}:", self.data);
            if log.len() <= head + tail {
                eprintln!("{log}");
            } else {
                let (head, tail) = (log.floor_char_boundary(head), log.floor_char_boundary(log.len() - tail));
                eprintln!("{}\n[...]\n{}", &log[..head], &log[tail..]);
            }
        }
    }
}

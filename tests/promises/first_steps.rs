//! Claim: the commands that the server prints at its start work as printed, and `tail` and
//! `publish` are all that a first visitor needs.
//!
//! Set-up: a server; its printed commands in every shell that is there; `fanwave tail` over both
//! protocols; a restart on the same port.
//!
//! Expectation: one publish appears at every subscriber's standard output. `tail` comes back after
//! a restart by itself and prints what is published then.

use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::Receiver;

use rustix::process::Signal;

use crate::support::server::{answer, client, lines_of};
use crate::support::{PATIENCE, Protocol, Server, Subscriber, until};

/// A program that runs beside the server, and the lines that it prints. Ended when dropped.
struct Running {
    process: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = spawned.expect("the command starts");
        let lines = lines_of(process.stdout.take().expect("piped"));
        Running { process, lines }
    }

    /// A line as the server printed it, in a shell.
    fn shell(shell: &str, line: &str) -> Running {
        // With `exec` the process that is ended is the command itself.
        Running::start(Command::new(shell).args(["-c", &format!("exec {line}")]))
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the command prints a line")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn fanwave(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command.args(arguments);
    command
}

/// The commands at the end of the banner.
fn printed(server: &Server) -> Vec<String> {
    let first = server.banner.iter().position(|line| line.starts_with("try ")).expect("commands to try");
    server.banner[first..].iter().map(|line| line.strip_prefix("try").unwrap_or(line).trim().into()).collect()
}

/// The shells of this machine that people paste commands into.
fn shells() -> impl Iterator<Item = &'static str> {
    let runs = |shell: &&str| Command::new(shell).args(["-c", ":"]).status().is_ok();
    ["sh", "bash", "zsh"].into_iter().filter(runs)
}

#[tokio::test]
#[ignore = "needs curl: tests/run installs it"]
async fn the_printed_commands_work_as_printed() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let address = address.parse().expect("an address");
        if std::net::TcpListener::bind(address).is_err() {
            eprintln!("skipped: this machine has no {address}");
            continue;
        }
        for shell in shells() {
            the_commands_work(Server::start_on(address, address, &["--shards", "2"]), shell).await;
        }
    }
}

async fn the_commands_work(server: Server, shell: &str) {
    let commands = printed(&server);
    let [curl, tail, publish] = commands.as_slice() else { panic!("three commands: {commands:?}") };
    assert!(curl.starts_with("curl -N ") && tail.contains(" tail "), "{commands:?}");
    let curl = Running::shell(shell, curl);
    let tail = Running::shell(shell, tail);
    server.await_subscribers("hello", 1, 1).await;
    let publish = Running::shell(shell, publish);
    assert_eq!(tail.line(), "hello, world", "{shell}: {commands:?}");
    let lines = [curl.line(), curl.line(), curl.line(), curl.line(), curl.line()];
    let [retry, begin, blank, id, data] = lines.each_ref().map(String::as_str);
    assert!(retry.starts_with("retry: "), "{shell}: {lines:?}");
    assert!(begin.starts_with("id: ") && begin.ends_with("-0"), "{shell}: {lines:?}");
    assert!(blank.is_empty() && id.starts_with("id: ") && id.ends_with("-1"), "{shell}: {lines:?}");
    assert_eq!(data, "data: hello, world");
    assert!(publish.line().starts_with("{\"id\":\""), "the publisher is told the id");
}

/// curl's address and words, as each shell passes them on.
#[tokio::test]
async fn the_commands_of_the_help_reach_curl_in_every_shell() {
    let server = Server::start(&["--shards", "1"]);
    let client = client(reqwest::Client::builder());
    let help = answer(client.get(server.url("/")).header("host", "[::1]:99")).await.body;
    let commands: Vec<&str> = help.lines().filter(|line| line.contains("curl ")).collect();
    assert_eq!(commands.len(), 7, "{help}");
    for shell in shells() {
        for command in &commands {
            let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}; {command}");
            let output = Command::new(shell).args(["-c", &script]).output().expect("it runs");
            let words = String::from_utf8_lossy(&output.stdout);
            let url = words.lines().last().unwrap_or_default();
            assert!(output.status.success() && url.starts_with("http://"), "{shell}: {command}: {output:?}");
            assert!(command.contains(url) && !url.contains('\''), "{shell}: {command}: {words}");
            assert_eq!(output.stderr, b"", "{shell}: {command}");
        }
    }
}

#[tokio::test]
async fn tail_and_publish_meet_over_both_protocols() {
    let server = Server::start(&["--shards", "2"]);
    let [sse, websocket] = [("http", "sse"), ("ws", "ws")].map(|(scheme, path)| {
        let url = format!("{scheme}://{}/{path}/hello", server.data);
        Running::start(&mut fanwave(&["tail", "--json", &url]))
    });
    server.await_subscribers("hello", 1, 1).await;
    let control = format!("http://{}", server.control);
    let options = ["--server", &control, "--event", "greeting", "--id", "one"];
    let output = fanwave(&["publish", "hello", "hello, world"]).args(options).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"one\n");
    let json = |line: String| serde_json::from_str::<serde_json::Value>(&line).expect("one line of JSON");
    let expected = serde_json::json!({ "event": "greeting", "id": "one", "data": "hello, world" });
    assert_eq!(json(sse.line()), expected);
    assert_eq!(json(websocket.line())["data"], "hello, world");

    let bad_topic = ["publish", "a\u{1}b", "x", "--server", &control];
    let bad_id = ["publish", "hello", "x", "--id", "\u{1}", "--server", &control];
    for arguments in [&bad_topic[..], &bad_id] {
        let refused = fanwave(arguments).output().expect("it runs");
        assert_eq!(refused.status.code(), Some(1));
        let stderr = String::from_utf8(refused.stderr).expect("UTF-8");
        assert!(stderr.contains("control character") && stderr.lines().count() == 1, "{stderr}");
    }
}

/// Runs a command to its end with this standard input.
fn fed(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("the command starts");
    let mut stdin = process.stdin.take().expect("piped");
    stdin.write_all(input).expect("the command reads");
    drop(stdin);
    process.wait_with_output().expect("the command ends")
}

/// Wherever a line is refused, it bears its number in standard input.
#[tokio::test]
async fn bad_lines_cost_no_good_ones() {
    let server = Server::start(&["--shards", "1", "--message-bytes-max", "10"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let control = format!("http://{}", server.control);
    let input = b"one\n\xff\nthree\nfour: too long\n\xfe\nsix";
    let output = fed(&mut fanwave(&["publish", "t", "--lines", "--server", &control]), input);
    assert_eq!(subscriber.texts(3).await, ["one", "three", "six"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a summary");
    assert_eq!((&summary["accepted"], &summary["refused"]), (&3.into(), &1.into()), "{summary}");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    for part in [
        "line 2 is left out: not UTF-8",
        "line 4: the data has 14 bytes",
        "line 5 is left out: not UTF-8",
        "lines: 3 accepted, 1 refused by the server, 2 left out here",
    ] {
        assert!(stderr.contains(part), "no {part:?} in {stderr}");
    }
}

#[tokio::test]
async fn an_input_that_cannot_be_read_is_a_failure() {
    let server = Server::start(&["--shards", "1"]);
    let control = format!("http://{}", server.control);
    for more in [&[][..], &["--lines"]] {
        let directory = std::fs::File::open("/").expect("a directory");
        let mut publish = fanwave(&["publish", "t", "--server", &control]);
        let output = publish.args(more).stdin(directory).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(stderr.contains("standard input"), "{stderr}");
    }
}

/// `end` ends the first server.
async fn restarted(end: impl AsyncFnOnce(Server)) {
    let first = Server::start(&["--shards", "2"]);
    let (data, control) = (first.data, first.control);
    let tails = [("http", "sse"), ("ws", "ws")].map(|(scheme, path)| {
        Running::start(&mut fanwave(&["tail", &format!("{scheme}://{data}/{path}/t")]))
    });
    first.await_subscribers("t", 1, 1).await;
    first.publish("t", "before").await;
    for tail in &tails {
        assert_eq!(tail.line(), "before");
    }
    end(first).await;
    let second = Server::start_on(data, control, &["--shards", "2"]);
    second.await_subscribers("t", 1, 1).await;
    second.publish("t", "after").await;
    for tail in &tails {
        assert_eq!(tail.line(), "after");
    }
}

#[tokio::test]
async fn tail_follows_a_restart_on_the_same_port() {
    restarted(async |mut server| {
        server.signal(Signal::TERM);
        assert_eq!(server.ended().await.code(), Some(0));
    })
    .await;
}

/// The kernel frees what a ring held some time after the process is gone; the next one waits for
/// it.
#[tokio::test]
async fn tail_follows_a_restart_after_a_crash() {
    // Dropping it kills it.
    restarted(async |server| drop(server)).await;
}

#[tokio::test]
async fn tail_says_at_once_that_nobody_listens_and_is_there_when_somebody_does() {
    for (scheme, path) in [("http", "sse"), ("ws", "ws")] {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("bound");
        drop(taken);
        let url = format!("{scheme}://{address}/{path}/t");
        let mut tail = fanwave(&["tail", "--count", "1", &url]);
        let mut tail = tail.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let notes = lines_of(tail.stderr.take().expect("piped"));
        let note = notes.recv_timeout(PATIENCE).expect("a note");
        assert!(
            note.contains(&format!("nobody listens at {url}")) && note.contains("reconnecting"),
            "{note}"
        );
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Server::start_on(address, any, &["--shards", "1"]);
        let lines = lines_of(tail.stdout.take().expect("piped"));
        let (sse, websocket) = if path == "sse" { (1, 0) } else { (0, 1) };
        server.await_subscribers("t", sse, websocket).await;
        server.publish("t", "there").await;
        assert_eq!(lines.recv_timeout(PATIENCE).expect("an event"), "there");
        assert!(tail.wait().expect("our own child").success());
    }
}

/// An event stream carries bytes as base64, and says so.
#[tokio::test]
async fn tail_tells_binary_events_from_text_over_both_protocols() {
    let server = Server::start(&["--shards", "1"]);
    let tails = [("http", "sse"), ("ws", "ws")].map(|(scheme, path)| {
        Running::start(&mut fanwave(&["tail", "--json", &format!("{scheme}://{}/{path}/t", server.data)]))
    });
    server.await_subscribers("t", 1, 1).await;
    let binary = server.post("/topics/t").header("content-type", "application/octet-stream");
    assert_eq!(server.answer(binary.body(vec![0u8, 255])).await.status, 200);
    server.publish("t", "AP8=").await;
    for tail in &tails {
        let [binary, text] = [(); 2]
            .map(|()| serde_json::from_str::<serde_json::Value>(&tail.line()).expect("one line of JSON"));
        assert_eq!((&binary["base64"], &binary["data"]), (&"AP8=".into(), &serde_json::Value::Null));
        assert_eq!((&text["base64"], &text["data"]), (&serde_json::Value::Null, &"AP8=".into()));
    }
}

#[tokio::test]
async fn tail_ends_after_its_count_and_when_it_is_refused() {
    let server = Server::start(&["--shards", "1"]);
    let id = server.publish("t", "first").await.id;
    server.publish("t", "second").await;
    let url = format!("http://{}/sse/t", server.data);
    let mut tail = Running::start(&mut fanwave(&["tail", &url, "--from", &id, "--count", "1"]));
    assert_eq!(tail.line(), "second");
    let ended = until("the end of tail", async || tail.process.try_wait().expect("our own child")).await;
    assert_eq!(ended.code(), Some(0));
    let refused = fanwave(&["tail", &format!("http://{}/nowhere", server.data)]).output().expect("it runs");
    assert_eq!(refused.status.code(), Some(1));
    let stderr = String::from_utf8(refused.stderr).expect("UTF-8");
    assert!(stderr.contains("404") && stderr.lines().count() == 1, "{stderr}");
}

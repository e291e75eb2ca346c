//! Claim: `fanwave tail` and `fanwave publish` speak TLS, and believe only whom they should.
//!
//! Set-up: a server with `--listen-tls` and `--control-tls` whose certificate nobody else has
//! signed; the program's own clients with `--ca` and without.
//!
//! Expectation: event streams, WebSockets, JSON, single publishes and streams of lines come through
//! as they do without TLS. Without `--ca`, and with that of somebody else, each of them ends with 1
//! and one line that says why, and does not try again.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use crate::support::secure::certificate;
use crate::support::{Scratch, Server};

struct Setup {
    scratch: Scratch,
    server: Server,
    /// `localhost:PORT`
    data: String,
    control: String,
}

fn start() -> Setup {
    let scratch = Scratch::new();
    certificate(&scratch);
    let files = ["cert.pem", "key.pem"].map(|name| scratch.path(name).display().to_string());
    let server = Server::start(&[
        "--shards=1",
        "--listen-tls=127.0.0.1:0",
        "--control-tls=127.0.0.1:0",
        "--client-publish=t",
        "--tls-cert",
        &files[0],
        "--tls-key",
        &files[1],
    ]);
    let of = |label: &str| {
        let line =
            server.banner.iter().find_map(|line| line.strip_prefix(label)).expect("the banner says it");
        format!("localhost:{}", line.rsplit(':').next().expect("a port"))
    };
    let (data, control) = (of("data, TLS "), of("control, TLS "));
    Setup { scratch, server, data, control }
}

impl Setup {
    fn command(&self, args: &[&str], ca: Option<&str>) -> Command {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_fanwave")]).args(args);
        if let Some(ca) = ca {
            command.arg("--ca").arg(self.scratch.path(ca));
        }
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], ca: Option<&str>, input: &str) -> Output {
        let mut process = self.command(args, ca).spawn().expect("the program runs");
        // One that refuses its flags reads nothing.
        let _ = process.stdin.take().expect("piped").write_all(input.as_bytes());
        process.wait_with_output().expect("our own child")
    }
}

#[tokio::test]
async fn every_way_to_publish_and_to_listen_goes_over_tls() {
    let setup = start();
    let (data, control) = (&setup.data, &setup.control);
    let ways = [
        (format!("https://{data}/sse/t"), &[][..]),
        (format!("https://{data}/ws/t"), &[]),
        (format!("wss://{data}/ws/t"), &[]),
        (format!("wss://{data}/ws/t"), &["--json-protocol"]),
    ];
    let mut tails = Vec::new();
    for (url, flags) in &ways {
        let args = [&["tail", url, "--count", "5"][..], flags].concat();
        tails.push(setup.command(&args, Some("cert.pem")).spawn().expect("the program runs"));
    }
    setup.server.await_subscribers("t", 1, 3).await;
    let (http, wss) = (format!("https://{control}"), format!("wss://{data}"));
    for (args, input) in [
        (&["publish", "t", "one", "--server", &http][..], ""),
        (&["publish", "t", "--lines", "--server", &http], "two\nthree\n"),
        (&["publish", "t", "four", "--ws", &wss], ""),
        (&["publish", "t", "--lines", "--ws", &wss], "five\n"),
    ] {
        let output = setup.run(args, Some("cert.pem"), input);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    for (tail, (url, _)) in tails.into_iter().zip(&ways) {
        let output = tail.wait_with_output().expect("our own child");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\nthree\nfour\nfive\n", "{url}");
        assert!(output.status.success(), "{url}");
    }
}

#[test]
fn a_server_whose_certificate_is_not_believed_is_told_so_once() {
    let setup = start();
    let (data, control) = (&setup.data, &setup.control);
    let other = Scratch::new();
    certificate(&other);
    std::fs::copy(other.path("cert.pem"), setup.scratch.path("other.pem")).expect("a file");
    let (sse, wss, http) =
        (format!("https://{data}/sse/t"), format!("wss://{data}/ws/t"), format!("https://{control}"));
    for args in [
        &["tail", &sse][..],
        &["tail", &wss],
        &["tail", &wss, "--json-protocol"],
        &["publish", "t", "x", "--server", &http],
        &["publish", "t", "--lines", "--server", &http],
        &["publish", "t", "x", "--ws", &wss],
    ] {
        let output = setup.run(args, Some("other.pem"), "line\n");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.lines().count()), (Some(1), 1), "{args:?}: {told}");
        assert!(told.contains("signed by nobody") && told.contains("--ca FILE"), "{args:?}: {told}");
    }
    // Where the machine has no authorities at all, that is why.
    for args in [&["tail", &sse][..], &["publish", "t", "x", "--server", &http]] {
        let mut process = setup.command(args, None).spawn().expect("the program runs");
        drop(process.stdin.take());
        let mut notes = BufReader::new(process.stderr.take().expect("piped")).lines();
        let told = notes.next().expect("a line").expect("UTF-8");
        assert!(told.contains("certificate") || told.contains("CA"), "{args:?}: {told}");
        let _ = process.kill();
        let _ = process.wait();
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let setup = start();
    let plain = format!("http://{}", setup.server.control);
    for (args, ca, part) in [
        (&["publish", "t", "x", "--server", &plain][..], "cert.pem", "has no TLS"),
        (&["tail", "https://localhost/sse/t"], "key.pem", "no certificate"),
        (&["tail", "https://localhost/sse/t"], "missing.pem", "--ca "),
    ] {
        let output = setup.run(args, Some(ca), "");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.lines().count()), (Some(2), 1), "{args:?}: {told}");
        assert!(told.contains(part), "{args:?}: {told}");
    }
}

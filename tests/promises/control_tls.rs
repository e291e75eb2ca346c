//! Claim: over TLS the control plane is what it is without, and no weaker than it says.
//!
//! Set-up: a server with `--control-tls` and a certificate of its own making; publishers and
//! operators are reqwest, rustls and curl.
//!
//! Expectation: publishes, streams and pages come through, and so they do to a process that has
//! taken the place of the first one. A reload takes new certificates and cuts no stream. What is no
//! TLS 1.3 is refused with a reason and counted; a page that came without TLS is foreign. Beyond
//! loopback a token is needed as without TLS.

use std::net::SocketAddr;
use std::process::Command;

use reqwest::Certificate;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;

use crate::support::raw::exchange;
use crate::support::secure::certificate;
use crate::support::server::{Answer, answer};
use crate::support::{Protocol, Scratch, Server, Subscriber, until};

/// A server with the certificate in `scratch`; the address of its control plane with TLS.
fn start(scratch: &Scratch, flags: &[&str]) -> (Server, SocketAddr) {
    let files = ["cert.pem", "key.pem"].map(|name| scratch.path(name).display().to_string());
    let tls = ["--shards=1", "--control-tls=127.0.0.1:0", "--tls-cert", &files[0], "--tls-key", &files[1]];
    let server = Server::start(&[&tls, flags].concat());
    let line = server.banner.iter().find_map(|line| line.strip_prefix("control, TLS "));
    let address = line.expect("the banner names the address").trim().parse().expect("an address");
    (server, address)
}

/// A client that trusts one certificate, and reaches `localhost` at loopback.
fn trusting(certificate: &CertificateDer<'static>) -> reqwest::Client {
    let certificate = Certificate::from_der(certificate).expect("a certificate");
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([certificate]);
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    client.resolve("localhost", loopback).build().expect("a client")
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("https://localhost:{}{path}", address.port())
}

async fn get(client: &reqwest::Client, address: SocketAddr, path: &str) -> Answer {
    answer(client.get(url(address, path))).await
}

#[tokio::test]
async fn publishers_and_operators_are_served_over_tls() {
    let scratch = Scratch::new();
    let http = trusting(&certificate(&scratch));
    let (server, address) = start(&scratch, &["--listen-tls=127.0.0.1:0"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let large = "x".repeat(500_000);
    for text in ["first", &large, "last"] {
        let told = answer(http.post(url(address, "/topics/t")).body(text.to_string())).await;
        assert_eq!(told.status, 200, "{told:?}");
        assert_eq!(subscriber.text().await, text);
    }
    let lines = "{\"topic\":\"t\",\"data\":\"a\"}\n{\"topic\":\"t\",\"data\":\"b\"}\n";
    let told = answer(http.post(url(address, "/publish")).body(lines)).await;
    assert_eq!((told.status, told.body.contains(r#""accepted":2"#)), (200, true), "{told:?}");
    assert_eq!(subscriber.text().await, "a");

    // All commands and addresses that are told name TLS.
    let help = get(&http, address, "/").await.body;
    assert!(help.contains(&url(address, "/topics/news")) && !help.contains("http://"), "{help}");
    let page = get(&http, address, "/examples/news").await.body;
    assert!(page.contains("const server = \"https://127.0.0.1:") && !page.contains("http://"), "{page}");
    let playground = get(&http, address, "/playground").await.body;
    assert!(playground.contains("data-server=\"https://127.0.0.1:"), "{playground}");
    let curl = tokio::process::Command::new("curl")
        .args(["--silent", "--max-time", "60", "--write-out", "%{http_version}", "--cacert"])
        .arg(scratch.path("cert.pem"))
        .args(["--connect-to", &format!("localhost:443:{address}"), "https://localhost/healthz"])
        .output()
        .await
        .expect("curl is there");
    assert_eq!(String::from_utf8_lossy(&curl.stdout), "ok\n1.1");
    let stats = get(&http, address, "/stats").await.json();
    assert_eq!(stats["hub"]["tls_handshakes"], 2, "of reqwest, which keeps its connection, and curl");
}

#[tokio::test]
async fn a_page_that_came_without_tls_is_foreign_to_a_control_plane_with_it() {
    let scratch = Scratch::new();
    let http = trusting(&certificate(&scratch));
    let (server, address) = start(&scratch, &[]);
    let own = format!("https://localhost:{}", address.port());
    for (origin, status) in
        [(own.as_str(), 200), (&own.replace("https", "http"), 403), ("https://evil.example", 403)]
    {
        let post = http.post(url(address, "/topics/t")).header("Origin", origin).body("x");
        assert_eq!(answer(post).await.status, status, "{origin}");
    }
    assert_eq!(server.stats().await["hub"]["refused"]["foreign_origin"], 2);
}

#[tokio::test]
async fn a_reload_takes_new_certificates_and_cuts_no_stream() {
    let scratch = Scratch::new();
    let old = trusting(&certificate(&scratch));
    let (server, address) = start(&scratch, &[]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let (body, lines) = tokio::sync::mpsc::channel::<String>(1);
    let lines = futures_util::stream::unfold(lines, async |mut lines| {
        Some((Ok::<_, std::io::Error>(lines.recv().await?), lines))
    });
    let stream = old.post(url(address, "/publish")).body(reqwest::Body::wrap_stream(lines)).send();
    let stream = tokio::spawn(stream);
    body.send("{\"topic\":\"t\",\"data\":\"before\"}\n".to_string()).await.expect("it is read");
    assert_eq!(subscriber.text().await, "before");

    let new = trusting(&certificate(&scratch));
    let told = server.answer(server.post("/reload")).await;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(get(&new, address, "/healthz").await.status, 200);
    body.send("{\"topic\":\"t\",\"data\":\"after\"}\n".to_string()).await.expect("it is read");
    assert_eq!(subscriber.text().await, "after");
    drop(body);
    assert_eq!(stream.await.expect("no panic").expect("an answer").status(), 200);
}

#[tokio::test]
async fn what_is_no_tls_1_3_is_told_so_and_counted() {
    let scratch = Scratch::new();
    let http = trusting(&certificate(&scratch));
    let (server, address) = start(&scratch, &[]);
    let plain = exchange(address, b"POST /topics/t HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
    assert_eq!(plain.status, 400);
    let mut noise = tokio::net::TcpStream::connect(address).await.expect("it listens");
    noise.write_all(b"\x16\x03\x01\xff\xff nonsense").await.expect("it is there");
    let old = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--max-time", "60", "--tls-max", "1.2"])
        .arg(format!("https://{address}/healthz"))
        .output()
        .expect("curl is there");
    let told = String::from_utf8_lossy(&old.stderr);
    assert!(!old.status.success() && told.contains("protocol version"), "{told}");
    // A connection that says nothing is refused nothing.
    drop(tokio::net::TcpStream::connect(address).await.expect("it listens"));
    let refused = until("all of them to be counted", async || {
        let refused = server.stats().await["hub"]["refused"]["tls_handshake"].as_u64()?;
        (refused >= 3).then_some(refused)
    })
    .await;
    assert_eq!((refused, get(&http, address, "/healthz").await.status), (3, 200));
    // The reverse: a handshake where HTTP is spoken.
    let mut socket = tokio::net::TcpStream::connect(server.control).await.expect("it listens");
    socket.write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n").await.expect("it is there");
    until("it to be counted", async || {
        (server.stats().await["hub"]["refused"]["bad_head"] == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_takes_the_control_plane_with_tls_along() {
    let scratch = Scratch::new();
    let http = trusting(&certificate(&scratch));
    let socket = scratch.path("upgrade").join("socket");
    let socket = ["--upgrade-socket", socket.to_str().expect("UTF-8")];
    let (mut old, address) = start(&scratch, &socket);
    old.publish("t", "one").await;
    let (new, same) = start(&scratch, &[&socket[..], &["--upgrade"]].concat());
    assert_eq!((new.control, same), (old.control, address), "the same listeners");
    let told = answer(http.post(url(address, "/topics/t")).body("two")).await;
    assert_eq!((told.status, told.json()["sequence"].as_u64()), (200, Some(2)), "{told:?}");
    assert_eq!(old.ended().await.code(), Some(0));
}

#[test]
fn a_start_that_leaves_it_open_to_the_network_or_has_no_certificate_is_refused() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let files = ["cert.pem", "key.pem"].map(|name| scratch.path(name).display().to_string());
    let certificate = ["--tls-cert", &files[0], "--tls-key", &files[1]];
    let of = |flags: &[&str], with: bool| {
        let output = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_fanwave"), "--listen=127.0.0.1:0", "--shards=1"])
            .arg("--control=127.0.0.1:0")
            .args(if with { &certificate[..] } else { &[] })
            .args(flags)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()
            .expect("the program runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        stderr
    };
    for (flags, with, parts) in [
        (
            &["--control-tls=0.0.0.0:0"][..],
            true,
            &["--control-tls 0.0.0.0:0", "--control-token-file FILE"][..],
        ),
        (&["--control-tls=127.0.0.1:0"], false, &["--control-tls needs --tls-cert"]),
        (&["--control-tls=127.0.0.1:9,127.0.0.1:9"], true, &["--control-tls 127.0.0.1:9", "twice"]),
        (&["--control-tls=127.0.0.1:9", "--listen=127.0.0.1:9"], true, &["--control-tls 127.0.0.1:9"]),
        (&[], true, &["--tls-cert is given without --listen-tls and --control-tls"]),
    ] {
        let told = of(flags, with);
        for part in parts {
            assert!(told.contains(part), "no {part:?} in {told}");
        }
    }
}

#[test]
fn a_file_whose_certificates_cannot_be_used_is_told_before_it_is_served() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let path = |name: &str| scratch.path(name).display().to_string();
    let check = |key: &str| {
        let text = format!(
            "control_tls = [\"127.0.0.1:8444\"]\ntls_cert = {:?}\ntls_key = {:?}\n",
            path("cert.pem"),
            path(key)
        );
        let file = scratch.write("fanwave.toml", &text);
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
        let output = command.args(["check-config", &file]).env_clear().output().expect("the program runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check("key.pem").0, Some(0));
    let (code, told) = check("cert.pem");
    assert!(code == Some(2) && told.contains("--tls-key"), "{told}");
}

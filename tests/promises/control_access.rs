//! Claim: nobody uses a control plane that other machines reach unless the operator has said who
//! may.
//!
//! Set-up: control planes on loopback, beyond it and on a Unix socket, with a token, without one,
//! and open by decree.
//!
//! Expectation: a start that would leave it open by mistake is refused with the remedy; without the
//! token nothing but `/healthz` is answered, with it everything is, whatever page asks; nothing
//! prints the token.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::support::raw::exchange;
use crate::support::server::{answer, client};
use crate::support::{Chromium, Protocol, Scratch, Server, Subscriber};

const TOKEN: &str = "correct-horse-battery-staple";

fn refused_start(flags: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_fanwave"), "--listen", "127.0.0.1:0", "--shards", "1"])
        .args(flags)
        // The one line is the refusal: no setting of the test run's own is told of beside it.
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
    assert_eq!(output.stdout, b"");
    stderr
}

#[test]
fn a_start_that_leaves_the_control_plane_open_to_the_network_is_refused() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8081", "127.0.0.1:0,0.0.0.0:0"] {
        let told = refused_start(&["--control", address]);
        for part in ["--control ", "--control-token-file FILE", "--control-open"] {
            assert!(told.contains(part), "{told}");
        }
    }
    let scratch = Scratch::new();
    let token = scratch.write("token", TOKEN);
    let told = refused_start(&["--control-open", "--control-token-file", &token]);
    assert!(told.contains("contradict"), "{told}");
    let told = refused_start(&["--control-token-file", &scratch.write("empty", "\n")]);
    assert!(told.contains("--control-token-file") && told.contains("the token is empty"), "{told}");
}

#[tokio::test]
async fn an_operator_may_open_it_by_decree() {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let mut server = Server::start_on(any, everywhere, &["--shards", "1", "--control-open"]);
    server.control.set_ip(any.ip());
    server.publish("t", "by anybody").await;
}

#[tokio::test]
async fn with_a_token_only_who_brings_it_is_answered() {
    let scratch = Scratch::new();
    let file = scratch.write("token", &format!("{TOKEN}\n"));
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let socket = format!("unix:{}", scratch.path("control.sock").display());
    let flags = ["--shards", "1", "--control-token-file", &file, "--control", &socket];
    let mut server = Server::start_on(any, everywhere, &flags);
    server.control.set_ip(any.ip());
    assert!(server.banner.iter().any(|line| line.contains(&format!("Bearer $(cat {file})"))));
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let http = client(reqwest::Client::builder());

    for path in ["/", "/stats", "/topics", "/topics/t", "/nowhere"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    for brought in [None, Some("Bearer wrong"), Some("Basic YTpi"), Some("Bearer"), Some("")] {
        for path in ["/topics/t", "/publish"] {
            let request = server.post(path).body("{\"topic\":\"t\",\"data\":\"x\"}\n");
            let request = match brought {
                Some(value) => request.header("Authorization", value),
                None => request,
            };
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 401, "{path} {brought:?}");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
        }
    }
    let health = server.get("/healthz").await;
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));

    // With it a page of any origin may ask, under any name.
    let foreign = server.post("/topics/t").bearer_auth(TOKEN).body("with the token");
    let foreign = foreign.header("Origin", "https://evil.example").header("Host", "evil.example");
    assert_eq!(server.answer(foreign).await.status, 200);
    assert_eq!(subscriber.text().await, "with the token");
    let stats = answer(http.get(server.url("/stats")).bearer_auth(TOKEN)).await;
    assert_eq!(stats.json()["hub"]["refused"]["unauthorized"], 5 + 2 * 5);
    let help = answer(http.get(server.url("/")).bearer_auth(TOKEN)).await;
    for text in [stats.body, help.body] {
        assert!(!text.contains(TOKEN));
    }
    // A client that may open the socket's file needs none.
    let unix = client(reqwest::Client::builder().unix_socket(scratch.path("control.sock").as_path()));
    assert_eq!(answer(unix.get("http://localhost/stats")).await.status, 200);
}

#[tokio::test]
async fn with_a_token_the_pages_come_without_it_and_nothing_that_they_show() {
    let scratch = Scratch::new();
    let file = scratch.write("token", &format!("{TOKEN}\n"));
    let server = Server::start(&["--shards", "1", "--control-token-file", &file]);
    let ask = async |path: &str, fields: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Connection: close\r\n\r\n");
        exchange(server.control, request.as_bytes()).await.status
    };
    let html = "Accept: text/html\r\n";
    for path in ["/", "/playground", "/examples/chat", "/pages/session.js"] {
        assert_eq!(ask(path, html).await, 200, "{path}");
        let foreign = format!("{html}Origin: https://evil.example\r\n");
        assert_eq!(ask(path, &foreign).await, 403, "{path}");
    }
    for path in ["/", "/stats", "/topics", "/metrics", "/slow"] {
        assert_eq!(ask(path, "Accept: */*\r\n").await, 401, "{path}");
    }
    for path in ["/stats", "/topics", "/examples/none", "/pages/none.js"] {
        assert_eq!(ask(path, html).await, 401, "{path}");
    }
    let posted = server.post("/playground").send().await.expect("an answer").status();
    assert_eq!(posted, 401, "a page is read, not posted to");
}

#[tokio::test]
#[ignore = "needs chromium: tests/run installs it"]
async fn a_browser_signs_in_with_the_token_and_with_no_other() {
    let scratch = Scratch::new();
    let file = scratch.write("token", &format!("{TOKEN}\n"));
    let server = Server::start(&["--shards", "1", "--control-token-file", &file]);
    let chromium = Chromium::start("token").await;
    for (path, said) in [("/", "wants its control token"), ("/playground", "")] {
        let mut page = chromium.window(&server.url(path)).await;
        page.await_true("!document.getElementById('sign-in').hidden").await;
        if !said.is_empty() {
            page.await_text("health", said).await;
        }
        if path == "/" {
            page.look_at("sign-in").await;
        }
        for wrong in ["wrong", "wörter ✗"] {
            page.write("token", wrong).await;
            page.press("Enter", 13, "\r").await;
            page.await_text("sign-in-said", "does not take this token").await;
            assert_eq!(page.value("sessionStorage.length").await, 0);
        }
        page.write("token", TOKEN).await;
        page.press("Enter", 13, "\r").await;
        page.await_true("document.getElementById('sign-in').hidden").await;
        let found = page.value("document.cookie + document.documentElement.outerHTML + location.href").await;
        assert!(!found.as_str().expect("text").contains(TOKEN), "the page shows the token");
        if path == "/" {
            page.await_text("health", "It is well").await;
            // A page of this tab goes on with it.
            page.reload().await;
            page.await_text("health", "It is well").await;
        } else {
            page.click("sse-open").await;
            page.await_text("sse-state", "open").await;
            page.write("data", "with the token").await;
            page.press("Enter", 13, "\r").await;
            page.await_text("published", "published as").await;
            page.await_text("sse-log", "with the token").await;
            page.await_text("publish-curl", "Authorization: Bearer $TOKEN").await;
        }
        page.await_true("!document.getElementById('sign-out').hidden").await;
        page.click("sign-out").await;
        page.await_true("!document.getElementById('sign-in').hidden && sessionStorage.length === 0").await;
        let policies: Vec<_> =
            page.complaints.iter().filter(|line| !line.contains("status of 401")).collect();
        assert_eq!(policies, Vec::<&String>::new());
    }
}

#[tokio::test]
async fn publish_brings_the_token_of_its_file() {
    let scratch = Scratch::new();
    let file = scratch.write("token", &format!("{TOKEN}\n"));
    let wrong = scratch.write("wrong", "another");
    let server = Server::start(&["--shards", "1", "--control-token-file", &file]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let publish = |flags: &[&str], environment: &[(&str, &str)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fanwave"))
            .args(["publish", "--server", &server.url(""), "t", "hello"])
            .args(flags)
            .envs(environment.iter().copied())
            .output()
            .expect("the program runs");
        (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    assert_eq!(publish(&["--token-file", &file], &[]).0, Some(0));
    assert_eq!(subscriber.text().await, "hello");
    assert_eq!(publish(&[], &[("FANWAVE_TOKEN_FILE", &file)]).0, Some(0));
    let (code, told) = publish(&["--token-file", &wrong], &[]);
    assert!(
        code == Some(1) && told.contains("not that of this server") && !told.contains("another"),
        "{told}"
    );
    let (code, told) = publish(&[], &[]);
    assert!(code == Some(1) && told.contains("a token is needed here"), "{told}");
    let (code, told) = publish(&["--token-file", "/nowhere/token"], &[]);
    assert!(code == Some(2) && told.contains("--token-file /nowhere/token: "), "{told}");
}

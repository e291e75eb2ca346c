//! Claim: what can change without a dropped connection does, and the operator is told what cannot.
//!
//! Set-up: a server with a file and a token, its subscribers, SIGHUP and `POST /reload`.
//!
//! Expectation: the new settings are valid for hub and shards, subscribers stay; what needs a
//! restart is named; a wrong file changes nothing and says where it is wrong.

use rustix::process::Signal;
use serde_json::json;

use crate::support::raw::exchange;
use crate::support::server::{answer, client};
use crate::support::{Protocol, Scratch, Server, Subscriber, until};

fn file(scratch: &Scratch, text: &str) -> String {
    let token = scratch.path("token");
    scratch.write("fanwave.toml", &format!("control_token_file = \"{}\"\n{text}", token.display()))
}

#[tokio::test]
async fn a_reload_changes_what_it_can_and_keeps_everybody() {
    let scratch = Scratch::new();
    scratch.write("token", "first\n");
    let config = file(&scratch, "handshake_bytes_max = 2048\n");
    let server = Server::start(&["--shards", "2", "--config", &config]);
    let http = client(reqwest::Client::builder());
    let reload = |token: &str| answer(http.post(server.url("/reload")).bearer_auth(token));
    let publish = |token: &str| answer(http.post(server.url("/topics/t")).bearer_auth(token).body("x"));
    let mut subscriber = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;

    let same = reload("first").await;
    assert_eq!((same.status, same.json()), (200, json!({"changed": [], "needs_restart": []})));

    scratch.write("token", "second\n");
    file(&scratch, "handshake_bytes_max = 512\ntopics_max = 7\ncors_origin = \"https://a.example\"\n");
    let answered = reload("first").await.json();
    assert_eq!(answered["changed"], json!(["control-token-file", "cors-origin", "handshake-bytes-max"]));
    assert_eq!(answered["needs_restart"], json!(["topics-max"]));
    assert_eq!(publish("first").await.status, 401);
    assert_eq!(publish("second").await.status, 200);
    assert_eq!(subscriber.text().await, "x", "nobody was disconnected");
    let long = format!("GET /sse/t HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1_000));
    until("the shards to have heard", async || {
        let mut all = true;
        // Either shard may be asked.
        for _ in 0..8 {
            all &= exchange(server.data, format!("{long}HEAD").as_bytes()).await.status == 431;
        }
        all.then_some(())
    })
    .await;

    file(&scratch, "handshake_bytes_max = 5\n");
    let wrong = reload("second").await;
    assert_eq!(wrong.status, 422, "{wrong:?}");
    let told = wrong.error();
    assert!(told.contains("fanwave.toml") && told.contains("--handshake-bytes-max is 5"), "{told}");
    std::fs::remove_file(scratch.path("token")).expect("our own file");
    file(&scratch, "");
    let wrong = reload("second").await;
    assert!(wrong.status == 422 && wrong.error().contains("--control-token-file"), "{wrong:?}");
    assert_eq!(publish("second").await.status, 200, "the old token is valid");
    assert_eq!(subscriber.text().await, "x");
}

#[tokio::test]
async fn sighup_reloads() {
    let scratch = Scratch::new();
    scratch.write("token", "first\n");
    let config = file(&scratch, "");
    let server = Server::start(&["--shards", "1", "--config", &config]);
    let http = client(reqwest::Client::builder());
    scratch.write("token", "second\n");
    server.signal(Signal::HUP);
    until("the second token", async || {
        let answer = answer(http.get(server.url("/topics")).bearer_auth("second")).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

//! Claim: with keys configured nobody hears or says anything that its token does not allow, on
//! whatever way it comes, nor later than a second after its token is over.
//!
//! Set-up: servers with a secret, with public keys in a file and at an address; clients with tokens
//! of every kind on every route, tokens made here and by `fanwave token`.
//!
//! Expectation: 401 and 403 with the reason, 4401 and 4403 where a WebSocket runs; what is public
//! stays open; nothing prints a token; an address of keys that fails changes nothing.

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use fanwave::auth::Signer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::peer::masked;
use crate::support::raw::{RawAnswer, exchange};
use crate::support::server::{answer, client};
use crate::support::{Protocol, Said, Scratch, Server, Subscriber, until};

pub const SECRET: &str = "0123456789abcdef0123456789abcdef";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const JSON: &str = "Sec-WebSocket-Protocol: fanwave.v1.json\r\n";
/// RFC 8037 appendix A.1.
const ED25519: &str = r#"{"kty":"OKP","crv":"Ed25519","kid":"ed","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;

fn now_s() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs()
}

fn sign(claims: Value) -> String {
    Signer::from_secret(SECRET.as_bytes()).expect("a secret").sign(&claims).expect("a token")
}

/// A token that is over after so many seconds.
pub fn granting(subscribe: &[&str], publish: &[&str], seconds: u64) -> String {
    sign(json!({ "exp": now_s() + seconds, "fanwave": { "subscribe": subscribe, "publish": publish } }))
}

/// A token of this subject that may publish everywhere.
pub fn named(subject: &str) -> String {
    sign(json!({ "sub": subject, "exp": now_s() + 600, "fanwave": { "publish": ["**"] } }))
}

/// A server with the secret and these flags, and where its secret is.
fn start(scratch: &Scratch, flags: &[&str]) -> Server {
    let secret = scratch.write("secret", &format!("{SECRET}\n"));
    Server::start(&[&["--auth-hs256-file", &secret, "--shards", "2"], flags].concat())
}

async fn get(server: &Server, target: &str, lines: &str) -> RawAnswer {
    // A stream that opens is ended by our side: the answer is read to its end.
    let head = format!("HEAD {target} HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    exchange(server.data, head.as_bytes()).await
}

async fn refusal(server: &Server, request: &str) -> RawAnswer {
    exchange(server.data, request.as_bytes()).await
}

/// A client that speaks JSON.
async fn json_client(server: &Server, target: &str) -> Subscriber {
    let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{UPGRADE}{JSON}\r\n");
    Subscriber::request(server.data, Protocol::WebSocket, head).await
}

async fn ask(subscriber: &mut Subscriber, command: Value) -> Value {
    subscriber.send(&masked(0x1, command.to_string().as_bytes())).await;
    loop {
        match subscriber.next().await {
            Said::Event(event) => {
                let said: Value = serde_json::from_str(event.text()).expect("JSON");
                if said["ref"] == command["ref"] {
                    return said;
                }
            }
            Said::Alive(_) | Said::Pong(_) => {}
            other => panic!("{command}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn every_route_asks_for_a_token_and_heeds_what_it_grants() {
    let scratch = Scratch::new();
    let rules = "[[rule]]\nmatch = \"open/**\"\npublic = true\nclient_publish = true\n\
                 [[rule]]\nmatch = \"chat/**\"\nclient_publish = true\n";
    let config = scratch.write("fanwave.toml", rules);
    let server = start(&scratch, &["--config", &config]);
    let good = granting(&["news/**", "chat/a"], &["chat/*"], 600);
    let hostile = [
        (String::new(), 401),
        ("x".to_string(), 401),
        (format!("{good}x"), 401),
        ("eyJhbGciOiJub25lIn0.eyJmYW53YXZlIjp7InN1YnNjcmliZSI6WyIqKiJdfX0.".to_string(), 401),
        (granting(&["**"], &["**"], 0), 401),
        (sign(json!({ "nbf": now_s() + 600, "fanwave": { "subscribe": ["**"], "publish": ["**"] } })), 401),
        (sign(json!({ "fanwave": { "subscribe": ["a*"] } })), 401),
        (sign(json!({ "aud": "others", "fanwave": { "subscribe": ["**"] } })), 401),
        (sign(json!({ "exp": now_s() + 600 })), 403),
        (granting(&["other"], &["other"], 600), 403),
        (granting(&["news/*/*"], &["chat"], 600), 403),
    ];
    let subscriptions = ["/sse/news/a", "/sse?topic=news/a", "/sse?match=news/*", "/sse?match=news/**"];
    let sockets = ["/ws/news/a", "/ws?topic=news/a", "/ws?match=news/*", "/ws?match=news/**"];
    for (token, status) in &hostile {
        let bearer = match token.is_empty() {
            true => String::new(),
            false => format!("Authorization: Bearer {token}\r\n"),
        };
        for target in subscriptions {
            let refused =
                refusal(&server, &format!("GET {target} HTTP/1.1\r\nHost: h\r\n{bearer}\r\n")).await;
            assert_eq!(refused.status, *status, "{target} {token}: {refused:?}");
            assert_eq!(refused.header("WWW-Authenticate"), (*status == 401).then_some("Bearer"));
            let mark = if target.contains('?') { '&' } else { '?' };
            if !token.is_empty() {
                let refused =
                    refusal(&server, &format!("GET {target}{mark}token={token} HTTP/1.1\r\nHost: h\r\n\r\n"))
                        .await;
                assert_eq!(refused.status, *status, "{target} {token}: {refused:?}");
            }
            assert_eq!(get(&server, target, &bearer).await.status, *status, "HEAD {target}");
        }
        for target in sockets {
            for protocol in ["", JSON] {
                let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{UPGRADE}{protocol}{bearer}\r\n");
                let refused = refusal(&server, &head).await;
                assert_eq!(refused.status, *status, "{target} {token}: {refused:?}");
            }
        }
        let head = "POST /topics/chat/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n";
        let refused = refusal(&server, &format!("{head}{bearer}\r\nx")).await;
        assert_eq!(refused.status, *status, "POST {token}: {refused:?}");
        let mut talker = json_client(&server, "/ws").await;
        let code = if *status == 401 { "unauthorized" } else { "not_allowed" };
        let expired = token.len() > 50 && refused.line().contains("expired");
        if !token.is_empty() {
            let told = ask(&mut talker, json!({ "ref": 0, "auth": { "token": token } })).await;
            let code = if expired { "expired" } else { code };
            match *status {
                401 => assert_eq!(told["error"]["code"], code, "{told}"),
                _ => assert!(told["ok"].is_object(), "{told}"),
            }
        }
        for command in [
            json!({ "ref": 1, "subscribe": { "topic": "news/a" } }),
            json!({ "ref": 2, "subscribe": { "match": "news/*" } }),
            json!({ "ref": 3, "presence": { "topic": "news/a" } }),
            json!({ "ref": 4, "publish": { "topic": "chat/a", "data": "x" } }),
        ] {
            let told = ask(&mut talker, command).await;
            assert_eq!(told["error"]["code"], code, "{token}: {told}");
        }
    }

    // What is public needs none, through patterns too.
    let anyone = Subscriber::connect(server.data, Protocol::Sse, &["open/a"]).await;
    drop(anyone);
    assert_eq!(get(&server, "/sse?match=open/*", "").await.status, 200);
    assert_eq!(get(&server, "/sse?match=**", "").await.status, 401);
    let post = "POST /topics/open/a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(refusal(&server, post).await.status, 200);

    // And the good one opens all of them.
    let mut all = Vec::new();
    for (protocol, target, lines) in subscriptions
        .map(|target| (Protocol::Sse, target, ""))
        .into_iter()
        .chain(sockets.map(|target| (Protocol::WebSocket, target, UPGRADE)))
    {
        let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n{lines}Authorization: Bearer {good}\r\n\r\n");
        all.push(Subscriber::request(server.data, protocol, head).await);
    }
    server.publish("news/a", "heard").await;
    for subscriber in &mut all {
        assert_eq!(subscriber.text().await, "heard");
    }
    let head = format!("GET /ws/chat/a?token={good} HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\n");
    let mut raw = Subscriber::request(server.data, Protocol::WebSocket, head).await;
    raw.send(&masked(0x1, b"by a raw client")).await;
    assert_eq!(raw.text().await, "by a raw client");
    let head = format!(
        "POST /topics/chat/a?event=n&token={good} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4\r\n\r\npost"
    );
    assert_eq!(refusal(&server, &head).await.status, 200);
    assert_eq!(raw.text().await, "post");
    let keys = server.stats().await["hub"]["keys"].clone();
    assert_eq!(keys, json!({ "keys": 1, "fetches": 0, "failures": 0, "checked": 0, "remembered": 0 }));
    drop((all, raw));
    let log = server.into_log().await;
    for (token, _) in hostile.iter().filter(|(token, _)| token.len() > 50) {
        assert!(!log.contains(token.as_str()), "a token is in the log");
    }
    assert!(!log.contains(&good) && !log.contains(good.rsplit('.').next().expect("a signature")));
}

#[tokio::test]
async fn a_token_ends_its_streams_within_a_second_and_json_renews_it() {
    let scratch = Scratch::new();
    let server = start(&scratch, &["--access-log"]);
    let short = granting(&["t"], &[], 3);
    let over = now_s() + 3;
    let mut streams = Vec::new();
    for (protocol, head) in [
        (Protocol::Sse, format!("GET /sse/t?token={short} HTTP/1.1\r\nHost: h\r\n\r\n")),
        (Protocol::WebSocket, format!("GET /ws/t?token={short} HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\n")),
    ] {
        streams.push(Subscriber::request(server.data, protocol, head).await);
    }
    let mut renewed = json_client(&server, &format!("/ws/t?token={short}")).await;
    let mut narrowed = json_client(&server, &format!("/ws/t?token={short}")).await;
    let long = granting(&["t"], &[], 600);
    let told = ask(&mut renewed, json!({ "ref": 1, "auth": { "token": long } })).await;
    assert!(told["ok"]["expires"].as_u64() > Some(over), "{told}");
    let told = ask(&mut narrowed, json!({ "ref": 1, "auth": { "token": granting(&["u"], &[], 600) } })).await;
    assert_eq!(told["error"]["code"], "not_allowed");
    assert!(matches!(narrowed.news().await, Said::Close(4403, _)));
    server.publish("t", "in time").await;
    for stream in &mut streams {
        assert_eq!(stream.text().await, "in time");
    }
    let ends = [streams[0].news().await, streams[1].news().await];
    assert_eq!(ends[0], Said::End);
    assert!(matches!(&ends[1], Said::Close(4401, text) if text.contains("expired")), "{ends:?}");
    let late = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
    assert!(late >= (over - 1) * 1_000, "not before its time");
    server.await_closed("expired", 2).await;
    server.publish("t", "later").await;
    loop {
        match renewed.news().await {
            Said::Event(event) if event.text().contains("later") => break,
            Said::Event(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let log = server.into_log().await;
    assert!(!log.contains(&short) && !log.contains(&long));
}

#[tokio::test]
async fn a_cookie_counts_for_known_pages_alone() {
    let scratch = Scratch::new();
    let server = start(&scratch, &["--auth-cookie", "token", "--cors-origin", "https://a.example"]);
    let good = granting(&["t"], &[], 600);
    for (lines, status) in [
        ("", 401),
        ("Sec-Fetch-Site: same-origin\r\n", 200),
        ("Sec-Fetch-Site: cross-site\r\n", 401),
        ("Origin: http://h\r\n", 200),
        ("Origin: https://a.example\r\n", 200),
        ("Origin: https://evil.example\r\n", 401),
        ("Origin: null\r\n", 401),
    ] {
        let lines = format!("{lines}Cookie: other=1; token={good}\r\n");
        assert_eq!(get(&server, "/sse/t", &lines).await.status, status, "{lines}");
    }
    let preflight = "OPTIONS /sse/t HTTP/1.1\r\nHost: h\r\nOrigin: https://a.example\r\n\r\n";
    let told = refusal(&server, preflight).await;
    assert!(told.header("Access-Control-Allow-Headers").expect("named").contains("Authorization"));
}

/// Signatures that the control plane has checked.
async fn signatures(server: &Server) -> u64 {
    let http = client(reqwest::Client::builder());
    let told = answer(http.get(server.url("/metrics")).bearer_auth("correct-horse")).await;
    let line = told.body.lines().find_map(|line| line.strip_prefix("fanwave_control_tokens_checked_total "));
    line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count: {told:?}"))
}

#[tokio::test]
async fn a_publisher_with_claims_publishes_there_and_does_nothing_else() {
    let scratch = Scratch::new();
    let operators = scratch.write("operators", "correct-horse\n");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let secret = scratch.write("secret", SECRET);
    let flags = ["--auth-hs256-file", &secret, "--shards", "1"];
    let http = client(reqwest::Client::builder());
    for with_operators in [false, true] {
        let more: &[&str] = if with_operators { &["--control-token-file", &operators] } else { &[] };
        // Beyond loopback keys are enough for a start.
        let mut server = Server::start_on(any, everywhere, &[&flags, more].concat());
        server.control.set_ip(any.ip());
        let good = granting(&[], &["chat/*"], 600);
        let post = |path: &str, token: &str, body: &str| {
            answer(http.post(server.url(path)).bearer_auth(token).body(body.to_string()))
        };
        assert_eq!(post("/topics/chat/a", &good, "x").await.status, 200);
        for (path, token, status) in [
            ("/topics/news", good.as_str(), 403),
            ("/topics/chat/a", "correct-house", 401),
            ("/topics/chat/a", &granting(&["**"], &[], 600), 403),
            ("/topics/chat/a", &granting(&[], &["**"], 0), 401),
            ("/reload", &good, 403),
        ] {
            let told = post(path, token, "x").await;
            assert_eq!((told.status, told.error().contains(token)), (status, false), "{path}: {told:?}");
        }
        for path in ["/stats", "/metrics", "/topics", "/topics/chat/a", "/slow", "/"] {
            let asked = answer(http.get(server.url(path)).bearer_auth(&good)).await;
            assert_eq!(asked.status, 403, "{path}");
            assert_eq!(server.get(path).await.status, 401, "{path}");
            let wrong = answer(http.get(server.url(path)).bearer_auth("correct-house")).await;
            assert_eq!(wrong.status, 401, "{path}");
        }
        if with_operators {
            // Each of the four tokens that wanted to publish was checked once; what is no publish was
            // refused without a look at a signature.
            assert_eq!(signatures(&server).await, 4);
            for _ in 0..3 {
                assert_eq!(post("/topics/chat/a", &good, "x").await.status, 200);
            }
            assert_eq!(signatures(&server).await, 4);
        }
        assert_eq!(server.get("/healthz").await.status, 200);
        let lines = "{\"topic\":\"chat/a\",\"data\":\"1\"}\n{\"topic\":\"news\",\"data\":\"2\"}\n";
        let told = post("/publish", &good, lines).await;
        assert_eq!(told.status, 200);
        let said: Vec<Value> =
            told.body.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((said[0]["line"].as_u64(), said[1]["accepted"].as_u64()), (Some(2), Some(1)), "{told:?}");
        assert!(said[0]["error"].as_str().expect("a reason").contains("does not allow"));
        if with_operators {
            assert_eq!(post("/topics/news", "correct-horse", "x").await.status, 200);
            assert_eq!(answer(http.get(server.url("/stats")).bearer_auth("correct-horse")).await.status, 200);
        }
    }
}

/// Answers every request with what it holds at that time.
async fn key_server(answer: Arc<Mutex<String>>) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let url = format!("http://{}/jwks.json", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let answer = answer.lock().expect("alive").clone();
            let _ = socket.read(&mut [0; 4_096]).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    url
}

fn http_answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

fn public_set(signer: &Signer) -> String {
    signer.public_set().expect("public").expect("a set").to_string()
}

/// A server of keys on a thread of its own. From its second request on, it first tries the token at
/// `place` and keeps what it was told there.
fn curious_key_server(
    answer: Arc<Mutex<String>>,
    place: Arc<Mutex<Option<(SocketAddr, String)>>>,
) -> (String, Arc<Mutex<Vec<String>>>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let url = format!("http://{}/jwks.json", listener.local_addr().expect("bound"));
    let heard = Arc::new(Mutex::new(Vec::new()));
    let told = heard.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.expect("a connection");
            if let Some((address, token)) = place.lock().expect("alive").clone() {
                let mut subscriber = std::net::TcpStream::connect(address).expect("it listens");
                let head = format!("GET /sse/t HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n");
                subscriber.write_all(head.as_bytes()).expect("it is there");
                let mut line = String::new();
                BufReader::new(subscriber).read_line(&mut line).expect("an answer");
                told.lock().expect("alive").push(line.trim_end().to_string());
            }
            let _ = socket.read(&mut [0; 4_096]);
            let answer = answer.lock().expect("alive").clone();
            let _ = socket.write_all(answer.as_bytes());
        }
    });
    (url, heard)
}

#[tokio::test]
async fn a_process_that_takes_over_has_its_keys_before_it_does() {
    let signer = Signer::read(ED25519.as_bytes()).expect("a key");
    let token =
        signer.sign(&json!({ "exp": now_s() + 600, "fanwave": { "subscribe": ["t"] } })).expect("a token");
    let said = Arc::new(Mutex::new(http_answer("200 OK", &public_set(&signer))));
    let place = Arc::new(Mutex::new(None));
    let (url, heard) = curious_key_server(said.clone(), place.clone());
    let scratch = Scratch::new();
    let socket = scratch.path("upgrade").join("socket").display().to_string();
    let flags = ["--shards=1", "--auth-jwks", &url, "--upgrade-socket", &socket];
    let mut old = Server::start(&flags);
    until("the keys", async || (old.stats().await["hub"]["keys"]["keys"] == 1).then_some(())).await;
    *place.lock().expect("alive") = Some((old.data, token.clone()));

    // Without keys it does not take over, and says why.
    *said.lock().expect("alive") = http_answer("500 Oops", "");
    let failed = tokio::process::Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_fanwave"), "--upgrade"])
        .args(["--listen", &old.data.to_string(), "--control", &old.control.to_string()])
        .args(flags)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .output()
        .await
        .expect("the program runs");
    let told = String::from_utf8(failed.stderr).expect("UTF-8");
    assert_eq!(failed.status.code(), Some(1), "{told}");
    let line = told.lines().last().expect("a line");
    assert!(
        line.contains("which goes on: keys of") && line.contains("--auth-jwks): the answer is 500"),
        "{line}"
    );
    assert!(old.runs());

    *said.lock().expect("alive") = http_answer("200 OK", &public_set(&signer));
    let new = Server::start_on(old.data, old.control, &[&flags[..], &["--upgrade"]].concat());
    assert_eq!(new.data, old.data);
    let head = format!("GET /sse/t?token={token} HTTP/1.1\r\nHost: h\r\n\r\n");
    drop(Subscriber::request(new.data, Protocol::Sse, &head).await);
    old.ended().await;
    assert_eq!(new.closed("no_keys").await, 0);
    let heard = heard.lock().expect("alive").clone();
    assert!(!heard.is_empty() && heard.iter().all(|line| line == "HTTP/1.1 200 OK"), "{heard:?}");
}

#[tokio::test]
async fn keys_are_fetched_and_the_last_good_set_is_kept() {
    let signer = Signer::read(ED25519.as_bytes()).expect("a key");
    let token =
        signer.sign(&json!({ "exp": now_s() + 600, "fanwave": { "subscribe": ["t"] } })).expect("a token");
    let said = Arc::new(Mutex::new(http_answer("404 Not Found", "gone")));
    let url = key_server(said.clone()).await;
    let server = Server::start(&["--shards", "1", "--auth-jwks", &url]);
    let keys = async || server.stats().await["hub"]["keys"].clone();
    let failures = async |most: u64| {
        until("a failed fetch", async || (keys().await["failures"].as_u64() >= Some(most)).then_some(()))
            .await;
    };
    failures(1).await;
    let head = format!("GET /ws/t?token={token} HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\n");
    let early = refusal(&server, &head).await;
    assert_eq!((early.status, early.header("Retry-After").is_some()), (503, true), "{early:?}");
    *said.lock().expect("alive") = http_answer("200 OK", &public_set(&signer));
    until("the keys", async || (keys().await["keys"] == 1).then_some(())).await;
    let mut subscriber = Subscriber::request(server.data, Protocol::WebSocket, &head).await;
    // Whatever goes wrong later, they stay. A reload fetches at once.
    let large = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", " ".repeat(10 << 20));
    for wrong in
        [http_answer("500 Oops", ""), http_answer("200 OK", "{\"keys\":[]}"), large, "rubbish".into()]
    {
        let before = keys().await["failures"].as_u64().expect("a number");
        *said.lock().expect("alive") = wrong;
        assert_eq!(server.answer(server.post("/reload")).await.status, 200);
        failures(before + 1).await;
        assert_eq!(keys().await["keys"], 1);
    }
    server.publish("t", "still").await;
    assert_eq!(subscriber.text().await, "still");
    // Another key takes its place, and ends what the first one opened.
    let other =
        Signer::read(ED25519.replace("nWGx", "nWGy").as_bytes()).expect("a key").named(Some("k2".into()));
    *said.lock().expect("alive") = http_answer("200 OK", &public_set(&other));
    assert_eq!(server.answer(server.post("/reload")).await.status, 200);
    assert!(matches!(subscriber.news().await, Said::Close(4401, _)));
    assert_eq!(refusal(&server, &head).await.status, 401);
}

#[tokio::test]
async fn a_reload_reads_key_files_again() {
    let scratch = Scratch::new();
    let server = start(&scratch, &[]);
    let head = format!("GET /ws/t?token={} HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\n", granting(&["t"], &[], 600));
    let mut subscriber = Subscriber::request(server.data, Protocol::WebSocket, &head).await;
    let told = server.answer(server.post("/reload")).await;
    assert_eq!(told.json(), json!({ "changed": [], "needs_restart": [] }));
    scratch.write("secret", "short");
    assert_eq!(server.answer(server.post("/reload")).await.status, 422, "the old secret stays");
    server.publish("t", "still").await;
    assert_eq!(subscriber.text().await, "still");
    scratch.write("secret", &SECRET.replace('0', "z"));
    let told = server.answer(server.post("/reload")).await;
    assert_eq!(told.json(), json!({ "changed": ["auth-hs256-file"], "needs_restart": [] }));
    assert!(matches!(subscriber.news().await, Said::Close(4401, _)));
    assert_eq!(refusal(&server, &head).await.status, 401);
}

fn fanwave(args: &[&str], input: &str) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_fanwave"))
        .args(args)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    std::io::Write::write_all(&mut process.stdin.take().expect("piped"), input.as_bytes()).expect("read");
    process.wait_with_output().expect("it ends")
}

#[tokio::test]
async fn tokens_are_made_explained_and_used_from_the_command_line() {
    let scratch = Scratch::new();
    let key = scratch.write("key", ED25519);
    let public = fanwave(&["token", "keys", "--key", &key], "");
    let jwks = scratch.write("jwks", &String::from_utf8(public.stdout).expect("UTF-8"));
    assert!(!std::fs::read_to_string(&jwks).expect("our file").contains("\"d\""), "the public half alone");
    let made = fanwave(
        &[
            "token",
            "make",
            "--key",
            &key,
            "--subscribe",
            "news/**,chat",
            "--publish",
            "chat",
            "--subject",
            "u1",
        ],
        "",
    );
    let token = String::from_utf8(made.stdout).expect("UTF-8");
    let explained = fanwave(&["token", "explain", "--auth-jwks", &jwks], &token);
    let text = String::from_utf8(explained.stdout).expect("UTF-8");
    for line in [
        "alg        EdDSA",
        "kid        ed",
        "subject    u1",
        "subscribe  news/**, chat",
        "publish    chat",
        "verdict    taken",
    ] {
        assert!(text.lines().any(|other| other == line), "no {line:?} in\n{text}");
    }
    assert_eq!(explained.status.code(), Some(0));
    let secret = scratch.write("secret", SECRET);
    for (args, part) in [
        (&["--auth-hs256-file", &secret][..], "refused: the token's alg is EdDSA"),
        (&["--auth-jwks", &jwks, "--auth-issuer", "us"], "refused: the token's issuer"),
        (&["--auth-jwks", &jwks, "--auth-audience", "us"], "refused: the token's audience"),
    ] {
        let refused = fanwave(&[&["token", "explain"], args].concat(), &token);
        let text = String::from_utf8(refused.stdout).expect("UTF-8");
        assert!(text.contains(part) && refused.status.code() == Some(1), "{text}");
    }
    let unchecked = fanwave(&["token", "explain"], &token);
    assert!(String::from_utf8_lossy(&unchecked.stdout).contains("not checked: name keys"));
    let file = scratch.write("token", &token);
    let server = Server::start(&["--shards", "1", "--auth-jwks", &jwks]);
    for url in [format!("http://{}/sse/news/a", server.data), format!("ws://{}/ws/news/a", server.data)] {
        let tail = |flags: &[&str]| {
            Command::new(env!("CARGO_BIN_EXE_fanwave"))
                .args(["tail", &url, "--count", "1"])
                .args(flags)
                .env_clear()
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the program starts")
        };
        let refused = tail(&[]).wait_with_output().expect("it ends");
        let told = String::from_utf8(refused.stderr).expect("UTF-8");
        assert!(refused.status.code() == Some(1) && told.contains("a token is needed here"), "{told}");
        let tail = tail(&["--token-file", &file]);
        let heard = tokio::task::spawn_blocking(move || tail.wait_with_output().expect("it ends"));
        until("a subscriber", async || {
            let topic = server.get("/topics/news/a").await;
            let all = topic.json()["subscribers"].clone();
            (all["sse"].as_u64().unwrap_or(0) + all["websocket"].as_u64().unwrap_or(0) > 0).then_some(())
        })
        .await;
        server.publish("news/a", "for its bearer").await;
        let heard = heard.await.expect("it ends");
        assert_eq!(String::from_utf8_lossy(&heard.stdout), "for its bearer\n");
        until("nobody", async || {
            let all = server.stats().await["totals"]["connections"].as_u64();
            (all == Some(0)).then_some(())
        })
        .await;
    }
}

/// Two that choose the same key do not meet, and one is the same on both planes.
#[tokio::test]
async fn an_idempotency_key_belongs_to_who_publishes_under_it() {
    let scratch = Scratch::new();
    let server = start(&scratch, &["--client-publish", "**"]);
    let http = client(reqwest::Client::builder());
    let publish = async |plane: SocketAddr, subject: &str, data: &'static str| {
        let url = format!("http://{plane}/topics/t?idempotency_key=k");
        answer(http.post(url).bearer_auth(named(subject)).body(data)).await
    };
    let (data, control) = (server.data, server.control);
    assert_eq!(publish(control, "ann", "of ann").await.json()["sequence"], 1);
    assert_eq!(publish(data, "bob", "of bob").await.json()["sequence"], 2);
    for (plane, subject, text, sequence) in
        [(data, "ann", "of ann", 1), (control, "bob", "of bob", 2), (data, "bob", "of bob", 2)]
    {
        let again = publish(plane, subject, text).await.json();
        assert_eq!((&again["sequence"], &again["duplicate"]), (&sequence.into(), &true.into()), "{again}");
    }
    let conflict = publish(data, "ann", "of bob").await;
    assert_eq!(conflict.status, 409, "{conflict:?}");
    assert_eq!(conflict.error(), "the idempotency key was used for another event of this topic");
    let line = r#"{"topic":"t","data":"of ann","idempotency_key":"k"}"#;
    let lines = answer(http.post(server.url("/publish")).bearer_auth(named("ann")).body(line)).await.body;
    assert!(lines.contains(r#""accepted":1"#), "{lines}");
    let operator = server.answer(server.post("/topics/t?idempotency_key=k").body("of operators")).await;
    assert_eq!(operator.json()["sequence"], 3, "all between were repeats");
}

//! Claim: nobody hears or says anything that its token does not grant, on whatever way it comes,
//! nor later than a second after its token is over.
//!
//! Set-up: a server with a secret and an issuer, where clients may publish everywhere; tokens of
//! every kind that is refused, and some that grant different things. Each of them tries every route,
//! every way to name topics and every start, over event streams, raw WebSockets and JSON, and every
//! way to publish.
//!
//! Expectation: a reading of patterns that is the test's own says who may what. Those who may hear
//! exactly their topics, old events and new ones; the others get 401, 403, or the error of JSON.
//! What was published is exactly what was granted.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fanwave::auth::Signer;
use serde_json::{Value, json};

use crate::support::peer::masked;
use crate::support::raw::{RawAnswer, exchange};
use crate::support::server::{answer, client};
use crate::support::{Protocol, Said, Scratch, Server, Subscriber, within};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const JSON: &str = "Sec-WebSocket-Protocol: fanwave.v1.json\r\n";
const TOPICS: [&str; 6] = ["news/a", "news/b", "news/a/deep", "chat/a", "chat/b", "secret"];

/// What a subscriber asks for: topics and patterns.
const ASKS: [&[&str]; 7] = [
    &["news/a"],
    &["news/a", "news/b"],
    &["news/*"],
    &["news/**"],
    &["news/a", "chat/*"],
    &["secret"],
    &["**"],
];

fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64
}

fn now_s() -> u64 {
    now_ms() / 1_000
}

/// A pattern's meaning, segment by segment.
fn matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["**"], [_, ..]) => true,
        ([first, pattern @ ..], [name, topic @ ..]) => {
            (*first == "*" || first == name) && matches(pattern, topic)
        }
        _ => false,
    }
}

fn is_in<'a>(name: &'a str, patterns: &[&'a str]) -> bool {
    let segments = |name: &'a str| name.split('/').collect::<Vec<_>>();
    patterns.iter().any(|pattern| matches(&segments(pattern), &segments(name)))
}

/// All names of up to three segments of these words; `zz` stands for what nobody names.
static UNIVERSE: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut names = vec![String::new()];
    let mut all = Vec::new();
    for _ in 0..3 {
        let longer = |name: &String| {
            ["news", "chat", "a", "b", "secret", "zz"].map(|word| match name.as_str() {
                "" => word.to_string(),
                name => format!("{name}/{word}"),
            })
        };
        names = names.iter().flat_map(longer).collect();
        all.extend(names.iter().cloned());
    }
    all
});

/// Who brings a token.
struct Bearer {
    name: &'static str,
    token: String,
    /// What it grants: to hear, and to publish to. None: it is refused.
    grants: Option<(&'static [&'static str], &'static [&'static str])>,
}

impl Bearer {
    /// True if all that `asked` stands for may be heard.
    fn may_hear(&self, asked: &[&str]) -> bool {
        let topics = asked.iter().copied().filter(|name| !name.contains('*'));
        let names = UNIVERSE.iter().map(String::as_str).filter(|name| is_in(name, asked));
        self.grants.is_some_and(|(subscribe, _)| topics.chain(names).all(|name| is_in(name, subscribe)))
    }

    fn may_publish(&self, topic: &str) -> bool {
        self.grants.is_some_and(|(_, publish)| is_in(topic, publish))
    }
}

fn sign(claims: Value) -> String {
    Signer::from_secret(SECRET).expect("a secret").sign(&claims).expect("a token")
}

/// A token by hand: any header, any payload, HMAC of any kind.
fn by_hand(header: Value, claims: &Value, algorithm: hmac::Algorithm, secret: &[u8]) -> String {
    let [header, claims] = [&header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let signed = format!("{header}.{claims}");
    let tag = hmac::sign(&hmac::Key::new(algorithm, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

/// Everything, for one of our issuer, over after so many seconds.
fn everything(seconds: u64) -> Value {
    json!({ "iss": "us", "exp": now_s() + seconds, "fanwave": { "subscribe": ["**"], "publish": ["**"] } })
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn refused() -> Vec<Bearer> {
    let usual = everything(600);
    let granted = |value: Value| sign(with(everything(600), "fanwave", value));
    let good = sign(usual.clone());
    let (body, _) = good.rsplit_once('.').expect("a signature");
    let unsigned = format!(
        "{}.",
        by_hand(json!({ "alg": "none" }), &usual, hmac::HMAC_SHA256, SECRET)
            .rsplit_once('.')
            .expect("a signature")
            .0
    );
    let tokens = [
        ("none", String::new()),
        ("garbage", "x.y.z".to_string()),
        ("cut off", good[..good.len() - 1].to_string()),
        ("without a signature", format!("{body}.")),
        ("expired", sign(with(everything(0), "exp", json!(now_s() - 1)))),
        ("of the future", sign(with(everything(600), "nbf", json!(now_s() + 600)))),
        ("unsigned", unsigned),
        ("HS384", by_hand(json!({ "alg": "HS384" }), &usual, hmac::HMAC_SHA384, SECRET)),
        ("HS512", by_hand(json!({ "alg": "HS512" }), &usual, hmac::HMAC_SHA512, SECRET)),
        ("a lie about its algorithm", by_hand(json!({ "alg": "RS256" }), &usual, hmac::HMAC_SHA256, SECRET)),
        ("of another key", by_hand(json!({ "alg": "HS256" }), &usual, hmac::HMAC_SHA256, &[7; 32])),
        ("of a foreign issuer", sign(with(everything(600), "iss", json!("others")))),
        ("of no issuer", sign(json!({ "fanwave": { "subscribe": ["**"], "publish": ["**"] } }))),
        ("for another audience", sign(with(everything(600), "aud", json!("others")))),
        ("huge", sign(with(everything(600), "sub", json!("x".repeat(9_000))))),
        ("of no object", granted(json!("**"))),
        ("of no list", granted(json!({ "subscribe": "**", "publish": "**" }))),
        ("of numbers", granted(json!({ "subscribe": [1], "publish": [1] }))),
        ("of no pattern", granted(json!({ "subscribe": ["**", "a*"], "publish": ["**"] }))),
        ("of an unknown member", granted(json!({ "subscribe": ["**"], "publish": ["**"], "all": true }))),
        ("of a time that is text", sign(with(everything(600), "exp", json!("tomorrow")))),
    ];
    tokens.map(|(name, token)| Bearer { name, token, grants: None }).into()
}

fn granting() -> Vec<Bearer> {
    let grants: [(&str, &[&str], &[&str]); 7] = [
        ("nothing", &[], &[]),
        ("another topic", &["other"], &["other"]),
        ("one topic", &["news/a"], &["chat/a"]),
        ("two topics", &["news/a", "news/b"], &["chat/a", "secret"]),
        ("one level", &["news/*", "chat/*"], &["chat/*"]),
        ("all below", &["news/**"], &["news/**"]),
        ("everything", &["**"], &["**"]),
    ];
    let bearer = |(name, subscribe, publish)| {
        let claims = json!({ "subscribe": subscribe, "publish": publish });
        let token = sign(with(everything(600), "fanwave", claims));
        Bearer { name, token, grants: Some((subscribe, publish)) }
    };
    grants.map(bearer).into()
}

/// How a subscriber comes: protocol, fields of its request, where its token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Sse,
    SseTokenInQuery,
    Raw,
    Json,
    /// It connects without topics, brings its token by command, and subscribes by command.
    Commands,
}

const WAYS: [Way; 5] = [Way::Sse, Way::SseTokenInQuery, Way::Raw, Way::Json, Way::Commands];

/// The head of a request for topics and patterns from some start on.
fn head(way: Way, token: &str, asked: &[&str], start: &str) -> String {
    let path = if matches!(way, Way::Sse | Way::SseTokenInQuery) { "sse" } else { "ws" };
    let fields = match way {
        Way::Sse | Way::SseTokenInQuery => String::new(),
        Way::Raw => UPGRADE.to_string(),
        Way::Json | Way::Commands => format!("{UPGRADE}{JSON}"),
    };
    let mut query: Vec<String> = Vec::new();
    let mut target = format!("/{path}");
    match asked {
        // The topic of a path, if there is but one.
        [topic] if !topic.contains('*') => target.push_str(&format!("/{topic}")),
        asked => query.extend(asked.iter().map(|name| match name.contains('*') {
            true => format!("match={name}"),
            false => format!("topic={name}"),
        })),
    }
    if !start.is_empty() {
        query.push(start.to_string());
    }
    let mut bearer = String::new();
    if way == Way::SseTokenInQuery && !token.is_empty() {
        query.push(format!("token={token}"));
    } else if !token.is_empty() {
        bearer = format!("Authorization: Bearer {token}\r\n");
    }
    let mark = if query.is_empty() { "" } else { "?" };
    format!("GET {target}{mark}{} HTTP/1.1\r\nHost: h\r\n{fields}{bearer}\r\n", query.join("&"))
}

fn protocol(way: Way) -> Protocol {
    if matches!(way, Way::Sse | Way::SseTokenInQuery) { Protocol::Sse } else { Protocol::WebSocket }
}

/// A command, and the answer to it; events that come before it are kept.
async fn ask(subscriber: &mut Subscriber, events: &mut Vec<String>, command: Value) -> Value {
    subscriber.send(&masked(0x1, command.to_string().as_bytes())).await;
    loop {
        let text = subscriber.text().await;
        let said: Value = serde_json::from_str(&text).expect("JSON");
        match said.get("ref") {
            Some(reference) if *reference == command["ref"] => return said,
            _ => events.push(said["data"].as_str().expect("text").to_string()),
        }
    }
}

async fn json_client(server: &Server) -> Subscriber {
    let head = format!("GET /ws HTTP/1.1\r\nHost: h\r\n{UPGRADE}{JSON}\r\n");
    Subscriber::request(server.data, Protocol::WebSocket, head).await
}

/// A subscriber that was let in, and what it has heard already.
struct Stream {
    what: String,
    way: Way,
    asked: &'static [&'static str],
    subscriber: Subscriber,
    heard: Vec<String>,
}

impl Stream {
    /// Hears so many events more; returns all that it has not told yet, without order.
    async fn hears(&mut self, count: usize) -> Vec<String> {
        let mut heard = std::mem::take(&mut self.heard);
        while heard.len() < count {
            let text = self.subscriber.text().await;
            heard.push(match self.way {
                Way::Json | Way::Commands => {
                    let event: Value = serde_json::from_str(&text).expect("JSON");
                    event["data"].as_str().unwrap_or_else(|| panic!("{}: {text}", self.what)).to_string()
                }
                _ => text,
            });
        }
        heard.sort_unstable();
        heard
    }
}

/// What one round of events has for a subscriber.
fn round(number: usize, asked: &[&str]) -> Vec<String> {
    let mut texts: Vec<String> =
        TOPICS.iter().filter(|topic| is_in(topic, asked)).map(|topic| format!("{number} {topic}")).collect();
    texts.sort_unstable();
    texts
}

async fn publish_round(server: &Server, number: usize) -> String {
    let mut first = String::new();
    for topic in TOPICS {
        let id = server.publish(topic, format!("{number} {topic}")).await.id;
        if first.is_empty() {
            first = id;
        }
    }
    first
}

fn start(scratch: &Scratch) -> Server {
    let secret = scratch.write("secret", std::str::from_utf8(SECRET).expect("text"));
    let keys = ["--auth-hs256-file", &secret, "--auth-issuer", "us", "--client-publish", "**"];
    Server::start(&[&keys[..], &["--shards", "2", "--handshake-bytes-max", "16384"]].concat())
}

/// Tries to subscribe; the status or the error's code if it is refused.
async fn subscribe(
    server: &Server,
    bearer: &Bearer,
    way: Way,
    asked: &'static [&'static str],
    (start, member): (&str, &Value),
) -> Result<Stream, String> {
    let what = format!("a token that is {:?}, {way:?}, {asked:?}, {start:?}", bearer.name);
    let (mut subscriber, mut heard) = match way {
        Way::Commands => (json_client(server).await, Vec::new()),
        way => {
            let head = head(way, &bearer.token, asked, start);
            if !bearer.may_hear(asked) {
                let refused = exchange(server.data, head.as_bytes()).await;
                return Err(refused.status.to_string());
            }
            let subscriber = Subscriber::request(server.data, protocol(way), head).await;
            return Ok(Stream { what, way, asked, subscriber, heard: Vec::new() });
        }
    };
    if !bearer.token.is_empty() {
        let told =
            ask(&mut subscriber, &mut heard, json!({ "ref": 0, "auth": { "token": bearer.token } })).await;
        assert_eq!(told["ok"].is_object(), bearer.grants.is_some(), "{what}: {told}");
    }
    for (number, name) in (1..).zip(asked) {
        let key = if name.contains('*') { "match" } else { "topic" };
        let mut members = member.clone();
        members[key] = json!(name);
        let told = ask(&mut subscriber, &mut heard, json!({ "ref": number, "subscribe": members })).await;
        let alone: &'static [&'static str] = &asked[number - 1..number];
        let may = bearer.may_hear(alone);
        assert_eq!(told["ok"].is_object(), may, "{what}: {told}");
        if !may {
            assert!(heard.is_empty() || number > 1, "{what}: {heard:?}");
            return Err(told["error"]["code"].as_str().expect("a code").to_string());
        }
    }
    Ok(Stream { what, way, asked, subscriber, heard })
}

/// The starts, in a query and in a command, and whether they reach back to the first round.
fn starts(before: &str) -> [(String, Value, bool); 4] {
    [
        (String::new(), json!({}), false),
        ("last=50".to_string(), json!({ "last": 50 }), true),
        ("since=1h".to_string(), json!({ "since_ms": 3_600_000 }), true),
        (format!("last-event-id={before}"), json!({ "after": before }), true),
    ]
}

#[tokio::test]
async fn each_token_hears_what_it_grants_on_every_way_and_nothing_else() {
    let scratch = Scratch::new();
    let server = start(&scratch);
    let first = publish_round(&server, 0).await;
    // What comes after the event before the first is everything.
    let before = format!("{}-0", first.strip_suffix("-1").expect("the first of all"));
    let starts = starts(&before);
    // All that are refused, on every way.
    for bearer in refused() {
        for way in WAYS {
            for asked in ASKS {
                for (query, member, _) in &starts[..] {
                    let refused = subscribe(&server, &bearer, way, asked, (query, member)).await;
                    let Err(code) = refused else { panic!("{}: {way:?} {asked:?} is let in", bearer.name) };
                    let expected = if way == Way::Commands { "unauthorized" } else { "401" };
                    assert_eq!(code, expected, "{}: {way:?} {asked:?} {query}", bearer.name);
                }
            }
        }
    }
    // The others hear theirs.
    let mut streams = Vec::new();
    for bearer in granting() {
        for way in WAYS {
            for asked in ASKS {
                for (query, member, reaches_back) in &starts[..] {
                    let what = format!("{}: {way:?} {asked:?} {query}", bearer.name);
                    match subscribe(&server, &bearer, way, asked, (query, member)).await {
                        Err(code) => {
                            assert!(!bearer.may_hear(asked), "{what}: {code}");
                            let expected = if way == Way::Commands { "not_allowed" } else { "403" };
                            assert_eq!(code, expected, "{what}");
                        }
                        Ok(stream) => {
                            assert!(bearer.may_hear(asked), "{what} is let in");
                            streams.push((stream, *reaches_back));
                        }
                    }
                }
            }
        }
    }
    assert!(streams.len() > 250, "{} are let in", streams.len());
    for (stream, reaches_back) in &mut streams {
        if *reaches_back {
            let expected = round(0, stream.asked);
            assert_eq!(stream.hears(expected.len()).await, expected, "{}", stream.what);
        }
    }
    // What is heard in the second round shows that nothing more came in the first.
    for number in 1..3 {
        publish_round(&server, number).await;
        for (stream, _) in &mut streams {
            let expected = round(number, stream.asked);
            assert_eq!(stream.hears(expected.len()).await, expected, "{}", stream.what);
        }
    }
    // Presence is for those who may hear.
    for bearer in refused().into_iter().chain(granting()) {
        let mut talker = json_client(&server).await;
        if !bearer.token.is_empty() {
            ask(&mut talker, &mut Vec::new(), json!({ "ref": 0, "auth": { "token": bearer.token } })).await;
        }
        for topic in TOPICS {
            let command = json!({ "ref": 1, "presence": { "topic": topic } });
            let told = ask(&mut talker, &mut Vec::new(), command).await;
            let may = bearer.may_hear(&[topic]);
            assert_eq!(told["ok"].is_object(), may, "{}, {topic}: {told}", bearer.name);
        }
    }
}

async fn post(server: &Server, target: &str, token: &str, text: &str) -> RawAnswer {
    let bearer = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let length = text.len();
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n{bearer}\r\n{text}"
    );
    exchange(server.data, head.as_bytes()).await
}

#[tokio::test]
async fn each_token_publishes_where_it_may_on_every_way_and_nowhere_else() {
    let scratch = Scratch::new();
    let server = start(&scratch);
    let http = client(reqwest::Client::builder());
    let everybody = sign(everything(600));
    let listener = head(Way::Raw, &everybody, &["**"], "");
    let mut listener = Subscriber::request(server.data, Protocol::WebSocket, listener).await;
    let mut accepted = Vec::new();
    for bearer in refused().into_iter().chain(granting()) {
        let Bearer { name, token, grants } = &bearer;
        let mut talker = json_client(&server).await;
        if !token.is_empty() {
            ask(&mut talker, &mut Vec::new(), json!({ "ref": 0, "auth": { "token": token } })).await;
        }
        for topic in TOPICS {
            let may = bearer.may_publish(topic);
            let status = if may {
                200
            } else if grants.is_some() {
                403
            } else {
                401
            };
            let text = |way: &str| format!("{name}, {topic}, {way}");
            let told = post(&server, &format!("/topics/{topic}"), token, &text("POST")).await;
            assert_eq!(told.status, status, "{name}, {topic}: {told:?}");
            if !token.is_empty() {
                let target = format!("/topics/{topic}?token={token}");
                let told = post(&server, &target, "", &text("POST with a query")).await;
                assert_eq!(told.status, status, "{name}, {topic}: {told:?}");
            }
            let publish = json!({ "ref": 1, "publish": { "topic": topic, "data": text("JSON") } });
            let told = ask(&mut talker, &mut Vec::new(), publish).await;
            assert_eq!(told["ok"].is_object(), may, "{name}, {topic}: {told}");
            // A publisher of the control plane; without a token everybody on loopback is an operator.
            if !token.is_empty() {
                let request = http.post(server.url(&format!("/topics/{topic}"))).bearer_auth(token);
                let told = answer(request.body(text("control"))).await;
                assert_eq!(told.status, status, "{name}, {topic}: {told:?}");
                let line = json!({ "topic": topic, "data": text("NDJSON") }).to_string();
                let told = answer(http.post(server.url("/publish")).bearer_auth(token).body(line)).await;
                let taken = told.status == 200 && told.body.contains("\"accepted\":1");
                assert_eq!(taken, may, "{name}, {topic}: {told:?}");
            }
            // A raw client must hear the topic to be there at all.
            if bearer.may_hear(&[topic]) {
                let request = format!("GET /ws/{topic}?token={token} HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\n");
                let mut raw = Subscriber::request(server.data, Protocol::WebSocket, request).await;
                raw.send(&masked(0x1, text("raw").as_bytes())).await;
                // What is not taken has no answer; a ping behind it has.
                raw.send(&masked(0x9, b"ping")).await;
                let heard = [raw.next().await, if may { raw.next().await } else { Said::End }];
                let events = heard.iter().filter(|said| matches!(said, Said::Event(_))).count();
                assert_eq!(events, usize::from(may), "{name}, {topic}: {heard:?}");
                assert!(heard.contains(&Said::Pong(b"ping".to_vec())), "{name}, {topic}: {heard:?}");
            }
            let ways: &[&str] = match (may, bearer.may_hear(&[topic])) {
                (false, _) => &[],
                (true, false) => &["POST", "POST with a query", "JSON", "control", "NDJSON"],
                (true, true) => &["POST", "POST with a query", "JSON", "control", "NDJSON", "raw"],
            };
            accepted.extend(ways.iter().map(|way| text(way)));
        }
    }
    server.publish("secret", "the last").await;
    let mut heard = listener.texts(accepted.len() + 1).await;
    assert_eq!(heard.pop().as_deref(), Some("the last"));
    assert_eq!(heard, accepted);
}

/// Events say when they were published. What a stream hears was published in time, and the stream
/// ends.
#[tokio::test]
async fn nobody_hears_what_was_published_a_second_after_its_token_was_over() {
    let scratch = Scratch::new();
    let server = start(&scratch);
    let first = server.publish("news/a", "0").await.id;
    let over = now_s() + 6;
    let token = sign(with(everything(0), "exp", json!(over)));
    let bearer = Bearer { name: "short", token, grants: Some((&["**"], &["**"])) };
    let mut streams = Vec::new();
    for way in WAYS {
        for asked in ASKS {
            for (query, member, _) in &starts(&first)[..] {
                let stream = subscribe(&server, &bearer, way, asked, (query, member)).await;
                streams.push(stream.unwrap_or_else(|code| panic!("{way:?} {asked:?}: {code}")));
            }
        }
    }
    assert!(now_s() < over, "the test comes too late by itself");
    let count = streams.len();
    let listening = streams.into_iter().map(|mut stream| {
        tokio::spawn(async move {
            let mut newest = 0;
            let end = loop {
                match stream.subscriber.news().await {
                    Said::Event(event) => {
                        let text = event.text();
                        let text = match stream.way {
                            Way::Json | Way::Commands => {
                                let event: Value = serde_json::from_str(text).expect("JSON");
                                event["data"].as_str().expect("text").to_string()
                            }
                            _ => text.to_string(),
                        };
                        newest = newest.max(text.parse::<u64>().expect("a time"));
                    }
                    end => break end,
                }
            };
            match (protocol(stream.way), &end) {
                (Protocol::Sse, Said::End) | (Protocol::WebSocket, Said::Close(4401, _)) => {}
                _ => panic!("{}: {end:?}", stream.what),
            }
            assert!(newest < (over + 1) * 1_000, "{}: {newest}", stream.what);
            assert!(newest > 0, "{}: it heard some", stream.what);
        })
    });
    let mut listening: Vec<_> = listening.collect();
    while !listening.iter().all(|task| task.is_finished()) {
        for topic in TOPICS {
            server.publish(topic, now_ms().to_string()).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for task in &mut listening {
        within("a stream's end", task).await.expect("in time");
    }
    server.await_closed("expired", count as u64).await;
}

//! Promise: a shard lets each client do what its token allows, as long as it allows it, and checks
//! a bounded number of tokens in a turn.
//!
//! Set-up: one shard on the simulated ring with one secret; peers with tokens of all kinds.

use serde_json::{Value, json};

use super::PASSING_MAX;
use crate::auth::{Key, KeySet, Keys, Signer};
use crate::broadcast::{Answer, EncodedBatch, Memory, Message, Outbox, Question, Taken, path};
use crate::clock::Stamp;
use crate::close::CloseReason;
use crate::config::limits::{TICK_MS, UNANSWERED_MAX, UPLINK_PUBLISHES_MAX, VERIFICATIONS_PER_TURN_MAX};
use crate::config::rules::{RuleText, Rules};
use crate::config::{Config, Limits, TokenRules};
use crate::egress::Slot;
use crate::egress::sim::{SimRing, Weather};
use crate::event::Epoch;
use crate::shard::fixtures::encoded_with;
use crate::shard::{Shard, ShardSetup};
use std::sync::Arc;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER: &[u8] = b"another secret of thirty-two bytes or more";
/// The time of day at the begin.
const NOW_S: u64 = 1_800_000_000;

struct Bench {
    shard: Shard<SimRing>,
    outbox: Outbox,
    now: Stamp,
    sequence: u64,
}

fn keys(secret: &[u8]) -> KeySet {
    KeySet::of(Key::from_secret(secret).expect("a secret"))
}

/// A rule by which this topic needs no token.
fn public(topic: &str) -> Rules {
    let text = format!("rule = [{{ match = {topic:?}, public = true }}]");
    let file = toml::de::DeTable::parse(&text).expect("TOML");
    let (_, value) = file.get_ref().iter().next().expect("rules");
    let texts = RuleText::read(value, &text).expect("rules");
    Rules::new(&texts, &Limits::default()).expect("valid")
}

fn token(claims: &Value) -> String {
    Signer::from_secret(SECRET).expect("a secret").sign(claims).expect("a token")
}

/// A publish, which is answered with its long id.
fn post(token: &str) -> String {
    let id = "i".repeat(250);
    format!(
        "POST /topics/chat/a?id={id} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: 1\r\n\r\nx"
    )
}

/// A token that is over after so many seconds.
fn granting(subscribe: &[&str], publish: &[&str], seconds: u64) -> String {
    let fanwave = json!({ "subscribe": subscribe, "publish": publish });
    token(&json!({ "exp": NOW_S + seconds, "fanwave": fanwave }))
}

impl Bench {
    fn new() -> Bench {
        let config = Config {
            tokens: TokenRules { hs256: Some(keys(SECRET)), ..TokenRules::default() },
            client_publish: vec!["chat/*".parse().expect("a pattern")],
            rules: public("public"),
            ..Config::default()
        };
        let (outbox, inbox) = path(64).expect("eventfd");
        let now = Stamp(1_000_000_000);
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            memory: Memory::new(&config.limits),
            config: Arc::new(config),
            epoch: Epoch(7),
            demand: Arc::default(),
            connections_max: 400,
            admission: Default::default(),
        };
        let ring = SimRing::new(800, Weather::Fair, 1).recording();
        let mut shard = Shard::new(setup, ring, inbox, now);
        shard.set_time(NOW_S * 1_000, now);
        Bench { shard, outbox, now, sequence: 0 }
    }

    fn turn(&mut self) {
        self.now = Stamp(self.now.0 + 100_000);
        self.shard.turn(self.now).expect("a turn does not fail");
    }

    fn turns(&mut self) {
        (0..12).for_each(|_| self.turn());
    }

    /// It is so many milliseconds after the begin.
    fn wait_until(&mut self, ms: u64) {
        while self.now.0 < 1_000_000_000 + ms * 1_000_000 {
            self.now = Stamp(self.now.0 + TICK_MS * 250_000);
            self.shard.turn(self.now).expect("a turn does not fail");
        }
        self.turns();
    }

    fn connect(&mut self, request: &str) -> Slot {
        let slot = self.shard.ring_mut().connect().expect("a free slot");
        self.shard.ring_mut().peer_sends(slot, request.as_bytes());
        slot
    }

    fn sse(&mut self, target: &str, fields: &str) -> Slot {
        let slot = self.connect(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n{fields}\r\n"));
        self.turns();
        slot
    }

    fn websocket(&mut self, target: &str, fields: &str) -> Slot {
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        self.sse(target, &format!("{upgrade}{fields}"))
    }

    fn json(&mut self, target: &str) -> Slot {
        let slot = self.websocket(target, "Sec-WebSocket-Protocol: fanwave.v1.json\r\n");
        assert!(self.heard(slot).starts_with("HTTP/1.1 101 "));
        slot
    }

    /// A command and what is answered.
    fn command(&mut self, slot: Slot, text: &str) -> String {
        let length = u16::try_from(text.len()).expect("a short command").to_be_bytes();
        let length = if text.len() < 126 { vec![0x80 | length[1]] } else { [&[0xfe][..], &length].concat() };
        let frame = [&[0x81][..], &length, &[0; 4], text.as_bytes()].concat();
        self.shard.ring_mut().peer_sends(slot, &frame);
        self.turns();
        self.heard(slot)
    }

    fn heard(&mut self, slot: Slot) -> String {
        String::from_utf8_lossy(&self.shard.ring_mut().peer_takes(slot)).into_owned()
    }

    fn publish(&mut self, topic: &str, text: &str) {
        self.sequence += 1;
        let events = [encoded_with(topic, self.sequence, text.into())].into();
        self.outbox.try_send(Message::Batch(Arc::new(EncodedBatch { events }))).expect("room");
        self.turns();
    }

    fn tell_keys(&mut self, set: &KeySet) {
        let (taken, _) = tokio::sync::oneshot::channel();
        assert!(self.outbox.ask(Question::Keys(Arc::new(Keys::new([Some(set)])), taken)));
        self.turns();
    }

    /// The hub takes all that it is offered. Returns how much that was.
    fn hub_answers(&mut self) -> usize {
        let taken: Vec<_> = std::iter::from_fn(|| self.outbox.uplink().take()).collect();
        let words: Vec<Answer> = taken
            .into_iter()
            .map(|publish| {
                self.sequence += 1;
                let taken = Taken { sequence: self.sequence, duplicate: false };
                Answer { ticket: publish.ticket, outcome: Ok(taken) }
            })
            .collect();
        let count = words.len();
        if count > 0 {
            self.outbox.answer(words);
        }
        self.turns();
        count
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.shard.metrics().closed[reason.index()]
    }
}

#[test]
fn a_turn_checks_a_bounded_number_of_tokens_and_all_come_in_in_the_order_of_their_coming() {
    let mut bench = Bench::new();
    let all: Vec<Slot> = (0..100)
        .map(|n| {
            let token = granting(&["news"], &[], 60 + n);
            bench.connect(&format!("GET /sse/news?token={token} HTTP/1.1\r\nHost: h\r\n\r\n"))
        })
        .collect();
    let mut checked = 0;
    for _ in 0..100 {
        bench.turn();
        let now = bench.shard.metrics().tokens.checked;
        assert!(now - checked <= VERIFICATIONS_PER_TURN_MAX as u64);
        checked = now;
    }
    assert_eq!(checked, 100, "each once");
    assert!(all.iter().all(|slot| bench.heard(*slot).starts_with("HTTP/1.1 200 ")));
    // Those that come back cost nothing.
    let again = granting(&["news"], &[], 60);
    let slot = bench.sse(&format!("/sse/news?token={again}"), "");
    assert!(bench.heard(slot).starts_with("HTTP/1.1 200 "));
    let tokens = bench.shard.metrics().tokens.clone();
    assert_eq!((tokens.checked, tokens.remembered), (100, 1));
    assert!(tokens.waits > 0);
}

#[test]
fn requests_and_commands_that_wait_for_the_check_of_their_token_go_on() {
    let mut bench = Bench::new();
    let talker = bench.json("/ws");
    let mut posts = Vec::new();
    for n in 0..30 {
        let token = granting(&["news"], &["chat/*"], 60 + n);
        posts.push(bench.connect(&format!(
            "POST /topics/chat/a HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\nContent-Length: 1\r\n\r\nx"
        )));
    }
    let auth = json!({ "ref": 1, "auth": { "token": granting(&["news"], &[], 99) } }).to_string();
    assert!(bench.command(talker, &auth).contains(r#"{"ref":1,"ok":{"expires":1800000099}}"#));
    bench.turns();
    let published = std::iter::from_fn(|| bench.outbox.uplink().take()).count();
    assert_eq!(published, 30);
    assert_eq!(bench.shard.metrics().tokens.checked, 31);
    // One that leaves while it waits is nobody's burden.
    for n in 0..40 {
        let token = granting(&["news"], &[], 200 + n);
        let slot = bench.connect(&format!("GET /sse/news?token={token} HTTP/1.1\r\nHost: h\r\n\r\n"));
        bench.turn();
        bench.shard.ring_mut().peer_resets(slot);
    }
    bench.turns();
    let last = bench.sse(&format!("/sse/news?token={}", granting(&["news"], &[], 500)), "");
    assert!(bench.heard(last).starts_with("HTTP/1.1 200 "));
}

#[test]
fn publishers_that_cannot_go_on_hold_up_no_check() {
    let mut bench = Bench::new();
    let mut others = 0;
    let mut newcomer = |bench: &mut Bench| {
        others += 1;
        let token = granting(&["news"], &[], 1_000 + others);
        bench.connect(&format!("GET /sse/news?token={token} HTTP/1.1\r\nHost: h\r\n\r\n"))
    };
    // The uplink is full of publishes with a token that is known.
    let known = granting(&[], &["chat/*"], 60);
    let publishers: Vec<Slot> = (0..UPLINK_PUBLISHES_MAX / UNANSWERED_MAX)
        .map(|_| {
            let slot = bench.connect(&post(&known).repeat(UNANSWERED_MAX));
            bench.shard.ring_mut().stall(slot, true);
            slot
        })
        .collect();
    (0..20).for_each(|_| bench.turns());
    assert!(!bench.shard.state.publishers.has_room());
    // Each of them goes on with a token of its own, among newcomers.
    let crowd: Vec<Slot> = (0..30).map(|_| newcomer(&mut bench)).collect();
    for (seconds, slot) in (100..).zip(&publishers) {
        let own = granting(&[], &["chat/*"], seconds);
        bench.shard.ring_mut().peer_sends(*slot, post(&own).as_bytes());
    }
    (0..4).for_each(|_| bench.turns());
    assert!(bench.shard.state.tokens.paused.len() > PASSING_MAX, "they wait for the uplink");
    assert!(!bench.shard.state.has_waiting(), "and nobody turns round for them");
    for slot in crowd {
        assert!(bench.heard(slot).starts_with("HTTP/1.1 200 "), "newcomers do not wait for it");
    }
    // Their answers, which they do not read, hold them back when it is their turn.
    let mut published = bench.hub_answers();
    (0..4).for_each(|_| bench.turns());
    let last = newcomer(&mut bench);
    let late = bench.connect(&post(&granting(&[], &["chat/*"], 500)));
    (0..4).for_each(|_| bench.turns());
    assert!(bench.heard(last).starts_with("HTTP/1.1 200 "), "their turns are not lost");
    published += bench.hub_answers();
    assert!(bench.heard(late).starts_with("HTTP/1.1 200 "));
    for slot in publishers {
        bench.shard.ring_mut().stall(slot, false);
    }
    for _ in 0..20 {
        published += bench.hub_answers();
    }
    assert_eq!(published, UPLINK_PUBLISHES_MAX + UPLINK_PUBLISHES_MAX / UNANSWERED_MAX + 1);
}

#[test]
fn a_token_is_over_by_the_clock_on_the_wall_however_that_is_set() {
    let mut bench = Bench::new();
    let granted = granting(&["news"], &[], 60);
    let request = format!("/sse/news?token={granted}");
    let slot = bench.sse(&request, "");
    // As after a sleep of the machine, which no other clock counts.
    bench.shard.set_time((NOW_S + 61) * 1_000, bench.now);
    bench.wait_until(1_250);
    assert!(bench.shard.ring_mut().ended(slot));
    assert_eq!(bench.closed(CloseReason::Expired), 1);
    bench.shard.set_time((NOW_S - 60) * 1_000, bench.now);
    let slot = bench.sse(&request, "");
    bench.wait_until(100_000);
    assert!(!bench.shard.ring_mut().ended(slot), "its time is not over");
    bench.wait_until(123_000);
    assert!(bench.shard.ring_mut().ended(slot));
}

#[test]
fn a_token_ends_its_stream_within_a_second_and_a_new_one_extends_it() {
    let mut bench = Bench::new();
    let short = granting(&["news"], &[], 10);
    let sse = bench.sse("/sse/news", &format!("Authorization: Bearer {short}\r\n"));
    let raw = bench.websocket(&format!("/ws/news?token={short}"), "");
    let talker = bench.json(&format!("/ws/news?token={short}"));
    bench.wait_until(9_700);
    bench.publish("news", "in time");
    for slot in [sse, raw, talker] {
        assert!(bench.heard(slot).contains("in time"));
    }
    let renewal = json!({ "ref": 1, "auth": { "token": granting(&["**"], &[], 20) } }).to_string();
    assert!(bench.command(talker, &renewal).contains(r#""expires":1800000020"#));
    bench.wait_until(11_000);
    bench.publish("news", "too late");
    for slot in [sse, raw] {
        assert!(!bench.heard(slot).contains("too late"));
        assert!(bench.shard.ring_mut().ended(slot));
    }
    assert!(bench.heard(talker).contains("too late"), "it has another token");
    assert_eq!(bench.closed(CloseReason::Expired), 2);
    bench.wait_until(21_000);
    assert_eq!(bench.closed(CloseReason::Expired), 3);
    let late = bench.sse("/sse/news", &format!("Authorization: Bearer {short}\r\n"));
    assert!(bench.heard(late).starts_with("HTTP/1.1 401 "));
}

#[test]
fn a_client_that_speaks_json_does_what_its_token_allows() {
    let mut bench = Bench::new();
    let talker = bench.json("/ws");
    let subscribe = |topic: &str| format!(r#"{{"ref":1,"subscribe":{{"topic":"{topic}"}}}}"#);
    for command in [
        subscribe("news"),
        r#"{"ref":1,"presence":{"topic":"news"}}"#.into(),
        r#"{"ref":1,"publish":{"topic":"chat/a","data":"x"}}"#.into(),
    ] {
        let told = bench.command(talker, &command);
        assert!(told.contains(r#"{"ref":1,"error":{"code":"unauthorized","#), "{told}");
    }
    assert!(bench.command(talker, r#"{"ref":2,"ping":{}}"#).contains(r#"{"ref":2,"ok":{}}"#));
    let bad = bench.command(talker, r#"{"ref":3,"auth":{"token":"a.b.c"}}"#);
    assert!(bad.contains(r#""code":"unauthorized""#), "{bad}");
    let auth = |token: &str| json!({ "ref": 4, "auth": { "token": token } }).to_string();
    let good = granting(&["news/**"], &["chat/b"], 60);
    assert!(bench.command(talker, &auth(&good)).contains(r#"{"ref":4,"ok":{"expires":1800000060}}"#));
    for (command, part) in [
        (subscribe("news/a"), r#""ok":{"topic":"news/a""#),
        (r#"{"ref":1,"subscribe":{"match":"news/*"}}"#.into(), r#""ok":{"match":"news/*""#),
        (subscribe("news"), r#""code":"not_allowed""#),
        (r#"{"ref":1,"subscribe":{"match":"**"}}"#.into(), r#""code":"not_allowed""#),
        (r#"{"ref":1,"subscribe":{"match":"*/a"}}"#.into(), r#""code":"not_allowed""#),
        (r#"{"ref":1,"presence":{"topic":"chat/b"}}"#.into(), r#""code":"not_allowed""#),
        (r#"{"ref":1,"publish":{"topic":"chat/a","data":"x"}}"#.into(), r#""code":"not_allowed""#),
        (r#"{"ref":1,"publish":{"topic":"news/a","data":"x"}}"#.into(), r#""code":"not_allowed""#),
    ] {
        let told = bench.command(talker, &command);
        assert!(told.contains(part), "{command}: {told}");
    }
    bench.command(talker, r#"{"ref":1,"publish":{"topic":"chat/b","data":"x"}}"#);
    assert_eq!(std::iter::from_fn(|| bench.outbox.uplink().take()).count(), 1);
    // One that never brings a token has not for ever.
    let silent = bench.json("/ws");
    bench.wait_until(bench.shard.state.setup.config.limits.handshake_ms_max + 1_500);
    assert!(bench.heard(silent).contains("no token came in time"));
    // Nor has one that hears nothing any more, but one that hears a public topic has.
    let (left, stays) = (bench.json("/ws/public"), bench.json("/ws/public"));
    let unsubscribe = r#"{"ref":1,"unsubscribe":{"topic":"public"}}"#;
    assert!(bench.command(left, unsubscribe).contains(r#"{"ref":1,"ok":"#));
    assert!(bench.command(stays, unsubscribe).contains(r#"{"ref":1,"ok":"#));
    assert!(bench.command(stays, &subscribe("public")).contains(r#""ok":{"topic":"public""#));
    bench.wait_until(2 * bench.shard.state.setup.config.limits.handshake_ms_max + 3_000);
    assert!(bench.heard(left).contains("no token came in time"));
    assert!(!bench.heard(stays).contains("no token"), "it hears a topic");
    assert_eq!(bench.closed(CloseReason::Unauthorized), 2);
}

#[test]
fn a_key_that_is_taken_back_ends_the_streams_of_its_tokens() {
    let mut bench = Bench::new();
    let good = granting(&["news"], &[], 600);
    let slot = bench.sse(&format!("/sse/news?token={good}"), "");
    bench.tell_keys(&keys(SECRET));
    bench.wait_until(2_000);
    assert!(!bench.shard.ring_mut().ended(slot), "the same key again");
    bench.tell_keys(&keys(OTHER));
    bench.wait_until(3_500);
    assert!(bench.shard.ring_mut().ended(slot));
    assert_eq!(bench.closed(CloseReason::Unauthorized), 1);
    let again = bench.sse(&format!("/sse/news?token={good}"), "");
    assert!(bench.heard(again).starts_with("HTTP/1.1 401 "));
}

#[test]
fn what_a_raw_websocket_says_goes_where_its_token_allows() {
    let mut bench = Bench::new();
    let frame = [&[0x81, 0x82, 0, 0, 0, 0][..], b"hi"].concat();
    for (publish, taken) in [(&["chat/*"][..], 1), (&["news"], 0), (&[], 0)] {
        let token = granting(&["chat/a"], publish, 60);
        let slot = bench.websocket(&format!("/ws/chat/a?token={token}"), "");
        bench.shard.ring_mut().peer_sends(slot, &frame);
        bench.turns();
        assert_eq!(std::iter::from_fn(|| bench.outbox.uplink().take()).count(), taken, "{publish:?}");
    }
    // After its time nothing more is taken, although the walk has not come by.
    let slot = bench.websocket(&format!("/ws/chat/a?token={}", granting(&["chat/a"], &["**"], 3)), "");
    bench.shard.set_time((NOW_S + 3) * 1_000, bench.now);
    bench.shard.ring_mut().peer_sends(slot, &frame);
    bench.turn();
    assert_eq!(std::iter::from_fn(|| bench.outbox.uplink().take()).count(), 0);
}

#[test]
fn keys_that_are_not_here_yet_ask_event_streams_to_come_back() {
    let mut bench = Bench::new();
    let (taken, _) = tokio::sync::oneshot::channel();
    assert!(bench.outbox.ask(Question::Keys(Arc::new(Keys::new([None])), taken)));
    bench.turns();
    let good = granting(&["news"], &[], 600);
    let slot = bench.sse(&format!("/sse/news?token={good}"), "Accept: text/event-stream\r\n");
    let told = bench.heard(slot);
    assert!(told.starts_with("HTTP/1.1 200 ") && told.contains("retry: "), "{told}");
    let slot = bench.websocket(&format!("/ws/news?token={good}"), "");
    assert!(bench.heard(slot).starts_with("HTTP/1.1 503 "));
    bench.tell_keys(&keys(SECRET));
    let slot = bench.sse(&format!("/sse/news?token={good}"), "");
    assert!(bench.heard(slot).starts_with("HTTP/1.1 200 "), "nothing wrong was remembered");
}

//! Promise: nobody hears a topic outside of the claims of its token, nor later than a second after
//! the token is over or its key is gone; and who may hear does. The clock on the wall says when a
//! token is over, however it is set.
//!
//! Set-up: one shard with two secrets, and dice that make tokens: their patterns, how long they
//! last, which secret signed them, what is wrong with them. Clients bring them on every way, come
//! back with the same ones, subscribe and renew over JSON; keys are taken back and come again; the
//! clock on the wall is set forward and back.
//!
//! Expectation: checked for each event that a client reads, against what its tokens said when the
//! event was published, by a matcher of the test's own.

use fanwave::auth::{Key, KeySet, Keys, Signer};
use fanwave::config::TokenRules;
use serde_json::json;

use super::*;

const SECRETS: [&[u8]; 2] = [b"the first secret of this test, long", b"the second secret of this test, long"];
/// The time of day at the begin.
const BEGIN_MS: u64 = 1_800_000_000_000;
/// How long after its end a token may still be heard with, in milliseconds that pass.
const LATE_MS: u64 = 1_000;

/// The same as a pattern, by recursion over segments.
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

fn stands_for(pattern: &str, topic: &str) -> bool {
    matches(&pattern.split('/').collect::<Vec<_>>(), &topic.split('/').collect::<Vec<_>>())
}

/// A token and what it says.
#[derive(Debug, Clone)]
struct Made {
    text: String,
    patterns: Vec<&'static str>,
    /// Milliseconds since 1970.
    begins: u64,
    expires: u64,
    secret: usize,
    is_sound: bool,
}

/// What a client may hear from one time to another.
#[derive(Debug)]
struct Grant {
    patterns: Vec<&'static str>,
    secret: usize,
    /// On the wall.
    until: u64,
    /// When the clock on the wall came to `until`, in milliseconds that passed; if it is there.
    over: Option<u64>,
}

#[derive(Debug)]
struct Client {
    slot: Slot,
    speaks_json: bool,
    /// What it wants to hear.
    wants: Vec<&'static str>,
    grants: Vec<Grant>,
    read: Vec<u8>,
    /// Events that it has heard.
    heard: usize,
}

struct Tokens {
    dice: Dice,
    outbox: Outbox,
    shard: Shard<Wire>,
    demand: Arc<Demand>,
    now: Stamp,
    /// Milliseconds on the wall beyond those that passed.
    set: i64,
    /// Topic of each event and the milliseconds that had passed, by its number from 1.
    events: Vec<(usize, u64)>,
    clients: Vec<Client>,
    made: Vec<Made>,
    /// When each secret was taken back, if it was, in milliseconds that passed.
    gone: [Option<u64>; 2],
    heard: usize,
    refused: usize,
}

impl Tokens {
    fn new(seed: u64) -> Tokens {
        let dice = Dice::new(seed);
        let set = |secret: usize| KeySet::of(Key::from_secret(SECRETS[secret]).expect("a secret"));
        let tokens = TokenRules { hs256: Some(set(0)), ..TokenRules::default() };
        let config = Arc::new(Config { tokens, ..Config::default() });
        let now = Stamp(1_000_000_000);
        let (demand, memory) = (Arc::new(Demand::default()), Memory::new(&config.limits));
        let (outbox, shard) = build(config, Weather::Fair, seed, now, demand.clone(), memory);
        let mut world = Tokens {
            dice,
            outbox,
            shard,
            demand,
            now,
            set: 0,
            events: Vec::new(),
            clients: Vec::new(),
            made: Vec::new(),
            gone: [None; 2],
            heard: 0,
            refused: 0,
        };
        world.tell_keys();
        world
    }

    /// Milliseconds that have passed.
    fn passed(&self) -> u64 {
        self.now.0 / 1_000_000
    }

    fn unix_ms(&self) -> u64 {
        (BEGIN_MS + self.passed()).strict_add_signed(self.set)
    }

    /// Time passes, and the clock on the wall is set by so much beyond that.
    fn pass(&mut self, ms: u64, set: i64) {
        self.now = Stamp(self.now.0 + ms * 1_000_000);
        self.set += set;
        let (passed, unix_ms) = (self.passed(), self.unix_ms());
        for grant in self.clients.iter_mut().flat_map(|client| &mut client.grants) {
            // A clock that is set comes there at once.
            let late = unix_ms.checked_sub(grant.until).map(|late| late.min(ms));
            grant.over = late.map(|late| grant.over.unwrap_or(passed - late));
        }
    }

    fn turns(&mut self, count: usize) {
        self.shard.set_time(self.unix_ms(), self.now);
        for _ in 0..count {
            self.shard.turn(self.now).expect("a turn does not fail");
        }
    }

    /// The secrets that are not gone are in force.
    fn tell_keys(&mut self) {
        let key = |secret: &[u8]| KeySet::of(Key::from_secret(secret).expect("a secret"));
        let here = SECRETS.iter().zip(self.gone).filter(|(_, gone)| gone.is_none());
        let sets: Vec<KeySet> = here.map(|(secret, _)| key(secret)).collect();
        let (taken, _) = oneshot::channel();
        // A server always has a source of keys, be it an empty one.
        let sources = sets.iter().map(Some).chain(sets.is_empty().then_some(None));
        assert!(self.outbox.ask(Question::Keys(Arc::new(Keys::new(sources)), taken)));
        self.turns(2);
    }

    fn make(&mut self) -> Made {
        if !self.made.is_empty() && self.dice.chance(1, 3) {
            return self.made[self.dice.roll(self.made.len() as u64) as usize].clone();
        }
        let all: Vec<&'static str> = TOPICS.iter().chain(&PATTERNS).copied().collect();
        let count = self.dice.roll(3);
        let patterns: Vec<_> = (0..count).map(|_| all[self.dice.roll(all.len() as u64) as usize]).collect();
        let now_s = self.unix_ms() / 1_000;
        let expires = now_s + self.dice.roll(6);
        let begins = if self.dice.chance(1, 8) { now_s + 2 } else { now_s - 5 };
        let secret = self.dice.roll(2) as usize;
        let claims = json!({
            "exp": expires, "nbf": begins, "jti": self.made.len(), "fanwave": { "subscribe": patterns }
        });
        let mut text =
            Signer::from_secret(SECRETS[secret]).expect("a secret").sign(&claims).expect("a token");
        let is_sound = !self.dice.chance(1, 8);
        if !is_sound {
            let middle = text.find('.').expect("a dot") + 5;
            let other = if text.as_bytes()[middle] == b'A' { "B" } else { "A" };
            text.replace_range(middle..=middle, other);
        }
        let made =
            Made { text, patterns, begins: begins * 1_000, expires: expires * 1_000, secret, is_sound };
        self.made.push(made.clone());
        made
    }

    /// True if a token is one that the shard takes now.
    fn is_taken(&self, made: &Made) -> bool {
        let now = self.unix_ms();
        made.is_sound && self.gone[made.secret].is_none() && (made.begins..made.expires).contains(&now)
    }

    /// True if one of these stands for all topics of another one; patterns stand for topics that
    /// the test does not name, too.
    fn covers(patterns: &[&'static str], wanted: &str) -> bool {
        let strangers = ["x", "x/e", "d/x", "x/y", "d/x/y", "x/y/z"];
        let all = TOPICS.iter().chain(&strangers).filter(|topic| stands_for(wanted, topic));
        let topics: Vec<_> = all.collect();
        patterns.iter().any(|pattern| topics.iter().all(|topic| stands_for(pattern, topic)))
    }

    fn connect(&mut self) {
        let Some(slot) = self.shard.ring_mut().connect() else { return };
        let made = self.make();
        let all: Vec<&'static str> = TOPICS.iter().chain(&PATTERNS).copied().collect();
        let kind = self.dice.roll(4);
        let speaks_json = kind >= 2;
        let count = if speaks_json { self.dice.roll(3) } else { 1 + self.dice.roll(2) };
        let mut wants: Vec<_> = (0..count).map(|_| all[self.dice.roll(all.len() as u64) as usize]).collect();
        wants.sort_unstable();
        wants.dedup();
        let brings = !speaks_json || !wants.is_empty();
        let protocol = if kind == 0 { Protocol::Sse } else { Protocol::WebSocket };
        let mut head = support::peer::request(protocol, &wants, None);
        let end = head.len() - 2;
        if brings {
            head.insert_str(end, &format!("Authorization: Bearer {}\r\n", made.text));
        }
        if speaks_json {
            head.insert_str(end, "Sec-WebSocket-Protocol: fanwave.v1.json\r\n");
        }
        self.shard.ring_mut().peer_sends(slot, head.as_bytes());
        self.turns(20);
        let read = self.shard.ring_mut().peer_takes(slot);
        let status: u16 = String::from_utf8_lossy(&read[9..12]).parse().expect("a status");
        let is_covered = wants.iter().all(|wanted| Tokens::covers(&made.patterns, wanted));
        let expected = match (brings, self.is_taken(&made), is_covered) {
            (false, ..) => 101,
            (true, false, _) => 401,
            (true, true, false) => 403,
            (true, true, true) if protocol == Protocol::Sse => 200,
            (true, true, true) => 101,
        };
        // Without any key tokens are awaited; a full server says so.
        let is_awaited = self.gone.iter().all(Option::is_some);
        match status {
            503 => assert!(is_awaited || self.clients.len() >= SOCKETS - 1, "{made:?}"),
            _ => assert_eq!(status, expected, "{made:?} {wants:?}"),
        }
        if status >= 400 {
            self.refused += 1;
            self.shard.ring_mut().peer_resets(slot);
            self.turns(4);
            return;
        }
        let grants = match brings {
            true => {
                vec![Grant { patterns: made.patterns, secret: made.secret, until: made.expires, over: None }]
            }
            false => Vec::new(),
        };
        self.clients.push(Client { slot, speaks_json, wants, grants, read, heard: 0 });
    }

    fn publish(&mut self) {
        let topic = self.dice.roll(TOPICS.len() as u64) as usize;
        self.events.push((topic, self.passed()));
        let sequence = self.events.len() as u64;
        let event = Event {
            topic: Topic::new(TOPICS[topic]).expect("legal"),
            data: Data::text(Bytes::from(format!("<{sequence}>"))).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        let encoded = Arc::new(Encoded::new(event, EPOCH, sequence, self.now));
        self.demand.announce(sequence);
        let batch = EncodedBatch { events: [encoded].into() };
        self.outbox.try_send(Message::Batch(Arc::new(batch))).expect("room");
        self.turns(12);
        self.listen();
    }

    /// Reads what has come for everybody, and checks it.
    fn listen(&mut self) {
        let mut at = 0;
        while at < self.clients.len() {
            let slot = self.clients[at].slot;
            let more = self.shard.ring_mut().peer_takes(slot);
            let has_ended = self.shard.ring_mut().ended(slot) || !self.shard.ring_mut().is_open(slot);
            let client = &mut self.clients[at];
            client.read.extend(more);
            let text = String::from_utf8_lossy(&client.read).into_owned();
            let mut heard = 0;
            for number in text.split('<').skip(1).filter_map(|rest| rest.split_once('>')?.0.parse().ok()) {
                heard += 1;
                let number: usize = number;
                let (topic, published) = self.events[number - 1];
                let topic = TOPICS[topic];
                let allowed = client.grants.iter().any(|grant| {
                    let key_gone = self.gone[grant.secret].unwrap_or(u64::MAX);
                    let over = grant.over.unwrap_or(u64::MAX);
                    let until = over.min(key_gone).saturating_add(LATE_MS);
                    grant.patterns.iter().any(|pattern| stands_for(pattern, topic)) && published <= until
                });
                assert!(allowed, "{topic} of {published} by {client:?}");
            }
            self.heard += heard - client.heard;
            client.heard = heard;
            if has_ended {
                self.shard.ring_mut().peer_resets(slot);
                self.clients.swap_remove(at);
                self.turns(4);
            } else {
                at += 1;
            }
        }
    }

    /// A client that speaks JSON says something.
    fn talk(&mut self) {
        let talkers: Vec<usize> =
            (0..self.clients.len()).filter(|at| self.clients[*at].speaks_json).collect();
        if talkers.is_empty() {
            return;
        }
        let at = talkers[self.dice.roll(talkers.len() as u64) as usize];
        let slot = self.clients[at].slot;
        let all: Vec<&'static str> = TOPICS.iter().chain(&PATTERNS).copied().collect();
        let command = if self.dice.chance(1, 2) {
            let name = all[self.dice.roll(all.len() as u64) as usize];
            self.clients[at].wants.push(name);
            let kind = if name.contains('*') { "match" } else { "topic" };
            json!({ "ref": 1, "subscribe": { kind: name } })
        } else {
            let made = self.make();
            // It counts only if it is taken; then it takes the place of the one before.
            if self.is_taken(&made) {
                let (patterns, secret, until) = (made.patterns.clone(), made.secret, made.expires);
                self.clients[at].grants.push(Grant { patterns, secret, until, over: None });
            }
            json!({ "ref": 2, "auth": { "token": made.text } })
        };
        let frame = support::peer::masked(0x1, command.to_string().as_bytes());
        self.shard.ring_mut().peer_sends(slot, &frame);
        self.turns(12);
        self.listen();
    }

    fn step(&mut self) {
        match self.dice.roll(12) {
            0..=2 => self.connect(),
            3..=6 => self.publish(),
            7..=8 => self.talk(),
            9 if self.dice.chance(1, 6) => {
                let secret = self.dice.roll(2) as usize;
                // One that comes again is another story: what it opened is over by then.
                if self.gone[secret].is_none() {
                    self.gone[secret] = Some(self.passed());
                    self.tell_keys();
                }
            }
            _ => {
                let ms = 1 + self.dice.roll(TICK_MS);
                let set = match self.dice.roll(12) {
                    0 => self.dice.roll(4_000) as i64,
                    1 => -(self.dice.roll(2_000) as i64),
                    _ => 0,
                };
                self.pass(ms, set);
                self.turns(3);
            }
        }
    }
}

#[test]
fn nobody_hears_outside_of_its_claims_nor_after_its_time() {
    let (mut heard, mut refused) = (0, 0);
    for seed in seeds(16) {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = Tokens::new(seed);
            (0..500).for_each(|_| world.step());
            (world.heard, world.refused)
        });
        match outcome {
            Ok((some, more)) => (heard, refused) = (heard + some, refused + more),
            Err(panic) => {
                eprintln!("FANWAVE_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(
        heard > 100 && refused > 100 || std::env::var_os("FANWAVE_SIM_SEED").is_some(),
        "{heard} {refused}"
    );
}

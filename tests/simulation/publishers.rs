//! Promise: whatever sockets, clients and the hub do, each publish of a client comes to the hub
//! once and in order, and its answer meets nobody else.
//!
//! Set-up: one shard on the simulated ring. Clients publish as raw WebSockets and by POST, in
//! bursts larger than what may be unanswered; they reset, end their side, and others take their
//! slots. The test plays the hub: it takes publishes late or at once, takes or refuses them, and
//! answers in parts. A failing seed is printed.
//!
//! Expectation: the hub hears each client's numbers in their order, without one left out; each POST
//! is answered once, by the word on its own event; at the end nothing that a client sent is unread.

use std::collections::{HashMap, VecDeque};

use fanwave::broadcast::{Answer, Publish, Taken};
use fanwave::refusal::{Refusal, RefusalReason};
use fanwave::topic_pattern::Pattern;

use super::*;

/// A client in a slot.
struct Client {
    /// Nobody else has it.
    name: u64,
    posts: bool,
    /// Messages that it has sent whole.
    sent: u64,
    /// What it has read and not understood yet.
    unread: Vec<u8>,
    /// Outcomes that it was told, in order: sequences, or a refusal.
    told: Vec<Option<u64>>,
    has_ended: bool,
}

struct Room {
    dice: Dice,
    shard: Shard<Wire>,
    outbox: Outbox,
    now: Stamp,
    clients: Vec<Option<Client>>,
    /// So many at once: all of them may want more of the uplink than it has, or a few.
    clients_max: usize,
    /// Those that ended their side and were seen off.
    left: Vec<Client>,
    /// Names given so far.
    names: u64,
    /// Taken by the hub and not answered.
    pending: VecDeque<Publish>,
    /// By client, the numbers that the hub heard, with its decisions.
    heard: HashMap<u64, Vec<Option<u64>>>,
    sequence: u64,
    answered: u64,
}

impl Room {
    fn new(seed: u64) -> Room {
        let mut dice = Dice::new(seed);
        let limits = Limits { heartbeat_ms: 1_000_000, ..Limits::default() };
        let client_publish = vec![Pattern::new("a").expect("a pattern")];
        let config = Arc::new(Config { client_publish, limits, ..Config::default() });
        let weather = if dice.chance(1, 4) { Weather::Fair } else { Weather::Rough };
        let memory = Memory::new(&config.limits);
        let now = Stamp(1_000_000_000);
        let (outbox, shard) = build(config, weather, seed, now, Arc::default(), memory);
        Room {
            shard,
            outbox,
            now,
            clients: (0..SOCKETS).map(|_| None).collect(),
            clients_max: [3, SOCKETS][dice.roll(2) as usize],
            left: Vec::new(),
            names: 0,
            pending: VecDeque::new(),
            heard: HashMap::new(),
            sequence: 0,
            answered: 0,
            dice,
        }
    }

    fn connect(&mut self) {
        if self.clients.iter().flatten().count() >= self.clients_max {
            return;
        }
        let Some(slot) = self.shard.ring_mut().connect() else { return };
        self.names += 1;
        let posts = self.dice.chance(1, 2);
        if !posts {
            let head = support::peer::request(Protocol::WebSocket, &["a"], None);
            self.shard.ring_mut().peer_sends(slot, head.as_bytes());
        }
        let client = Client {
            name: self.names,
            posts,
            sent: 0,
            unread: Vec::new(),
            told: Vec::new(),
            has_ended: false,
        };
        assert!(self.clients[slot as usize].replace(client).is_none(), "the slot was left");
    }

    /// A client says something, or goes.
    fn meddle(&mut self) {
        let slot = self.dice.roll(SOCKETS as u64) as usize;
        let Some(client) = &mut self.clients[slot] else { return };
        let ring = self.shard.ring_mut();
        match self.dice.roll(12) {
            0 => {
                ring.peer_resets(slot as Slot);
                self.clients[slot] = None;
            }
            1 if !client.has_ended => {
                client.has_ended = true;
                ring.peer_closes(slot as Slot);
            }
            _ if client.has_ended => {}
            _ => {
                let count = [1, 3, 100, 300][self.dice.roll(4) as usize];
                for _ in 0..count {
                    let text = format!("{} {}", client.name, client.sent);
                    client.sent += 1;
                    let bytes = match (client.posts, self.dice.roll(4)) {
                        (false, 0) => fragments(&text),
                        (false, _) => support::peer::masked(0x1, text.as_bytes()),
                        (true, 0) => chunks(&text),
                        (true, _) => post(&text),
                    };
                    ring.peer_sends(slot as Slot, &bytes);
                }
            }
        }
    }

    /// The hub takes some of what waits, and answers some of it.
    fn play_hub(&mut self, all: bool) {
        let take = if all { usize::MAX } else { self.dice.roll(200) as usize };
        for _ in 0..take {
            let Some(publish) = self.outbox.uplink().take() else { break };
            self.pending.push_back(publish);
        }
        let count =
            if all { self.pending.len() } else { self.dice.roll(self.pending.len() as u64 + 1) as usize };
        let mut answers = Vec::new();
        for Publish { ticket, event, .. } in self.pending.drain(..count) {
            let text = std::str::from_utf8(event.data.bytes()).expect("text");
            let (name, number) = text.split_once(' ').expect("a name and a number");
            let heard = self.heard.entry(name.parse().expect("a name")).or_default();
            assert_eq!(number, heard.len().to_string(), "client {name}: none is left out or comes twice");
            let outcome = if self.dice.chance(1, 5) {
                heard.push(None);
                Err(Refusal::new(RefusalReason::Full, "no"))
            } else {
                self.sequence += 1;
                heard.push(Some(self.sequence));
                Ok(Taken { epoch: EPOCH, sequence: self.sequence, duplicate: false })
            };
            answers.push(Answer { ticket, outcome });
        }
        self.answered += answers.len() as u64;
        if !answers.is_empty() {
            self.outbox.answer(answers);
        }
    }

    fn turn(&mut self) -> Turn {
        self.now = Stamp(self.now.0 + self.dice.roll(3) * 1_000_000);
        let turn = self.shard.turn(self.now).expect("the simulated ring does not fail");
        for slot in 0..SOCKETS {
            let Some(client) = &mut self.clients[slot] else { continue };
            client.unread.extend(self.shard.ring_mut().peer_takes(slot as Slot));
            if client.posts {
                client.read_answers();
            }
            if self.shard.ring_mut().ended(slot as Slot) {
                assert!(client.has_ended, "client {} was hung up on", client.name);
                self.shard.ring_mut().peer_closes(slot as Slot);
                self.left.extend(self.clients[slot].take());
            }
        }
        turn
    }

    /// All that the client has sent came to the hub, and each POST has its answer.
    fn check(&self, client: &Client) {
        let nothing = Vec::new();
        let heard = self.heard.get(&client.name).unwrap_or(&nothing);
        assert_eq!(heard.len() as u64, client.sent, "client {}", client.name);
        if client.posts {
            let (told, heard) = (&client.told, heard);
            assert!(told == heard, "client {}: each answer is that on its own event", client.name);
            assert!(client.unread.is_empty());
        }
    }

    fn settle(&mut self) {
        for _ in 0..20_000 {
            self.play_hub(true);
            let is_idle = self.turn() == Turn::Idle && self.shard.may_sleep();
            self.shard.awake();
            let ring = self.shard.ring_mut();
            let is_read = (0..SOCKETS as Slot)
                .all(|slot| !ring.is_open(slot) || ring.unreceived(slot) + ring.waiting(slot) == 0);
            if is_idle && is_read && self.outbox.uplink().is_empty() && self.pending.is_empty() {
                break;
            }
        }
        for slot in (0..SOCKETS).filter(|slot| self.clients[*slot].is_some()) {
            assert_eq!(self.shard.ring_mut().unreceived(slot as Slot), 0, "slot {slot} is still read");
        }
        self.clients.iter().flatten().chain(&self.left).for_each(|client| self.check(client));
        let metrics = self.shard.metrics();
        let refused = metrics.refused.get(RefusalReason::Full);
        assert_eq!(
            metrics.published + refused,
            self.answered,
            "each answer is counted, its client gone or not"
        );
    }
}

impl Client {
    fn read_answers(&mut self) {
        while let Some(end) = memchr::memmem::find(&self.unread, b"\r\n\r\n") {
            let head = std::str::from_utf8(&self.unread[..end]).expect("ASCII");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
            let length: usize = length.expect("a length").parse().expect("a number");
            if self.unread.len() < end + 4 + length {
                return;
            }
            let body = std::str::from_utf8(&self.unread[end + 4..][..length]).expect("UTF-8");
            let told = match body.split_once("\"sequence\":") {
                Some((_, rest)) => {
                    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
                    Some(rest.trim_end().trim_end_matches('}').parse().expect("a sequence"))
                }
                None => {
                    assert!(
                        head.starts_with("HTTP/1.1 503 ") && body == "{\"error\":\"no\"}\n",
                        "{head} {body}"
                    );
                    None
                }
            };
            self.told.push(told);
            self.unread.drain(..end + 4 + length);
        }
    }
}

fn fragments(text: &str) -> Vec<u8> {
    let (first, rest) = text.split_at(text.len() / 2);
    let mut first = support::peer::masked(0x1, first.as_bytes());
    first[0] = 0x01;
    let ping = support::peer::masked(0x9, b"?");
    [first, ping, support::peer::masked(0x0, rest.as_bytes())].concat()
}

fn post(text: &str) -> Vec<u8> {
    format!("POST /topics/a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
}

fn chunks(text: &str) -> Vec<u8> {
    let (first, rest) = text.split_at(1);
    let head = "POST /topics/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    format!("{head}1\r\n{first}\r\n{:x}\r\n{rest}\r\n0\r\n\r\n", rest.len()).into_bytes()
}

fn run_room(seed: u64) -> u64 {
    let mut room = Room::new(seed);
    for _ in 0..300 {
        match room.dice.roll(8) {
            0 | 7 => room.connect(),
            1 | 2 => room.meddle(),
            3 => room.play_hub(false),
            _ => drop(room.turn()),
        }
    }
    room.settle();
    room.shard.metrics().pauses
}

#[test]
fn each_publish_comes_to_the_hub_once_and_its_answer_to_nobody_else() {
    let mut pauses = 0;
    for seed in seeds(30) {
        match std::panic::catch_unwind(|| run_room(seed)) {
            Ok(more) => pauses += more,
            Err(panic) => {
                eprintln!("FANWAVE_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(pauses > 50 || std::env::var_os("FANWAVE_SIM_SEED").is_some(), "{pauses} pauses");
}

//! Promise: whatever sockets, clients and the hub do, each command is answered once and in order,
//! and each topic's events come without a gap from the place that the `ok` of its subscription
//! named: none before it, and none after the `ok` of its end.
//!
//! Set-up: one shard on the simulated ring, which cuts what clients send at any byte. Clients that
//! speak JSON subscribe, from now on, from an id, with the last events, and unsubscribe, publish,
//! ask, and say nonsense, one by one and in bursts; they stop reading, end their side, reset, and
//! others take their slots. The test plays the hub: it takes and answers late or at once.
//!
//! Expectation: checked per client from its own bytes, see [`Client::hear`]. At the end every
//! client that stayed has the newest event of each of its topics, and an answer to each of its
//! commands.

use std::collections::{HashMap, VecDeque};

use fanwave::broadcast::{Answer, Publish, Taken, Ticket, Wanted};
use fanwave::refusal::{Refusal, RefusalReason};
use fanwave::topic_pattern::Pattern;
use fanwave::wire::Format;
use serde_json::{Value, json};

use super::*;

/// A command that has no answer yet.
#[derive(Debug)]
enum Owed {
    Subscribed { topic: usize, after: Option<u64> },
    Unsubscribed(usize),
    Published,
    Present,
    Pong,
    Error,
}

/// A client in a slot.
#[derive(Debug, Default)]
struct Client {
    /// Nobody else has it.
    name: u64,
    /// The `ref` of its last command.
    last_ref: u64,
    /// In the order of the commands.
    owed: VecDeque<(u64, Owed)>,
    /// Its topics, each with the place up to which it has everything.
    topics: HashMap<usize, u64>,
    unread: Vec<u8>,
    is_open: bool,
    has_ended: bool,
}

struct Parlour {
    world: World,
    clients: Vec<Option<Client>>,
    names: u64,
    /// Taken by the hub and not answered.
    pending: VecDeque<Publish>,
    asks: VecDeque<Ticket>,
    /// By sequence, which client published it with which `ref`.
    published: HashMap<u64, (u64, u64)>,
    events: u64,
    answers: u64,
}

impl Parlour {
    fn new(seed: u64) -> Parlour {
        let mut dice = Dice::new(seed);
        let limits = Limits {
            heartbeat_ms: 1_000_000,
            stall_ms_max: 1_000_000,
            // Histories that never lose an event, and sends that carry some of it.
            window_events_max: 1 << 20,
            window_bytes_max: 64 << 20,
            send_bytes_max: [4 << 10, 256 << 10][dice.roll(2) as usize],
            zero_copy_bytes_min: [0, 6 << 10][dice.roll(2) as usize],
            shard_queue_batches_max: 1 + dice.roll(4) as usize,
            ..Limits::default()
        };
        let client_publish = vec![Pattern::new("**").expect("a pattern")];
        let config = Arc::new(Config { client_publish, limits, ..Config::default() });
        let weather = if dice.chance(1, 4) { Weather::Fair } else { Weather::Rough };
        Parlour {
            world: World::with(config, 1 << 20, SlowPolicy::Close, weather, seed, dice),
            clients: (0..SOCKETS).map(|_| None).collect(),
            names: 0,
            pending: VecDeque::new(),
            asks: VecDeque::new(),
            published: HashMap::new(),
            events: 0,
            answers: 0,
        }
    }

    fn connect(&mut self) {
        let Some(slot) = self.world.shard.ring_mut().connect() else { return };
        self.names += 1;
        // Topics of the URL begin at a place that an id names, so that all of them can be checked.
        let topics = if self.world.dice.chance(1, 2) { Vec::new() } else { self.world.some_topics() };
        let after = self.world.dice.roll(self.world.shard.metrics().events + 1);
        let names: Vec<&str> = topics.iter().map(|topic| TOPICS[*topic]).collect();
        let id = EventId { epoch: EPOCH, sequence: after }.to_string();
        let head = support::peer::request(Protocol::WebSocket, &names, Some(&id));
        let head = head.strip_suffix("\r\n").expect("a head ends in a blank line");
        let head = format!("{head}Sec-WebSocket-Protocol: fanwave.v1.json\r\n\r\n");
        self.world.shard.ring_mut().peer_sends(slot, head.as_bytes());
        let topics = topics.into_iter().map(|topic| (topic, after)).collect();
        let client = Client { name: self.names, topics, ..Client::default() };
        assert!(self.clients[slot as usize].replace(client).is_none(), "the slot was left");
    }

    /// A client says something, or goes.
    fn meddle(&mut self) {
        let slot = self.world.dice.roll(SOCKETS as u64) as usize;
        let Some(client) = &mut self.clients[slot] else { return };
        let dice = &mut self.world.dice;
        let ring = self.world.shard.ring_mut();
        match dice.roll(24) {
            0 => {
                ring.peer_resets(slot as Slot);
                self.clients[slot] = None;
            }
            1 if !client.has_ended => {
                client.has_ended = true;
                ring.peer_closes(slot as Slot);
            }
            2 | 3 => ring.stall(slot as Slot, true),
            4..=7 => ring.stall(slot as Slot, false),
            _ if client.has_ended => {}
            _ => {
                let newest = self.world.log.len() as u64;
                let count = [1, 2, 5, 5, 100, 400][dice.roll(6) as usize];
                for _ in 0..count {
                    let command = client.command(dice, newest, count);
                    let frames = match dice.roll(4) {
                        0 => fragments(&command, dice.chance(1, 2)),
                        _ => support::peer::masked(0x1, &command),
                    };
                    ring.peer_sends(slot as Slot, &frames);
                }
            }
        }
    }

    /// The hub takes some of what waits, and answers some of it.
    fn play_hub(&mut self, all: bool) {
        let take = if all { usize::MAX } else { self.world.dice.roll(100) as usize };
        let takes = |outbox: &Outbox| outbox.uplink().take();
        self.pending.extend(std::iter::from_fn(|| takes(&self.world.outbox)).take(take));
        self.asks
            .extend(std::iter::from_fn(|| self.world.outbox.presence().take()).map(|(ticket, _)| ticket));
        let some = |dice: &mut Dice, waiting: usize| match all {
            true => waiting,
            false => dice.roll(waiting as u64 + 1) as usize,
        };
        for ticket in self.asks.drain(..some(&mut self.world.dice, self.asks.len())) {
            self.world.outbox.tell_presence(ticket, Some([3, 4]));
        }
        if self.world.stuck.is_some() {
            return;
        }
        let count = some(&mut self.world.dice, self.pending.len());
        let (mut answers, mut events) = (Vec::new(), Vec::new());
        for Publish { ticket, event, .. } in self.pending.drain(..count) {
            let text = std::str::from_utf8(event.data.bytes()).expect("text");
            let (name, number) = text.split_once(' ').expect("a name and a number");
            let from = (name.parse().expect("a name"), number.parse().expect("a number"));
            let outcome = if self.world.dice.chance(1, 8) {
                Err(Refusal::new(RefusalReason::Full, "no"))
            } else {
                let topic = TOPICS.iter().position(|topic| *topic == event.topic.as_str());
                let sequence = self.world.log.len() as u64 + 1;
                self.world.log.push(topic.expect("a topic of this test"));
                self.world.demand.announce(sequence);
                let account = self.world.accounts.record(&event, sequence, event.published_bytes()).account;
                let keeps =
                    if self.world.dice.chance(1, 2) { Wanted::of([Format::Json]) } else { Wanted::NONE };
                let encoded = Encoded::new(event, EPOCH, sequence, self.world.now).keeping(keeps);
                events.push(Arc::new(encoded.counted_in(&account)));
                self.published.insert(sequence, from);
                Ok(Taken { epoch: EPOCH, sequence, duplicate: false })
            };
            answers.push(Answer { ticket, outcome });
        }
        if !events.is_empty() {
            self.world.stuck = Some(Message::Batch(Arc::new(EncodedBatch { events: events.into() })));
            self.world.offer();
        }
        if !answers.is_empty() {
            self.world.outbox.answer(answers);
        }
    }

    fn turn(&mut self) -> Turn {
        let ms = self.world.dice.roll(3);
        let turn = self.world.turn(ms);
        for slot in 0..SOCKETS {
            let Some(client) = &mut self.clients[slot] else { continue };
            client.unread.extend(self.world.shard.ring_mut().peer_takes(slot as Slot));
            while let Some(heard) = client.next() {
                let is_event = client.hear(&heard, &self.world.log, &self.published);
                self.events += u64::from(is_event);
                self.answers += u64::from(!is_event);
            }
            if self.world.shard.ring_mut().ended(slot as Slot) {
                assert!(client.has_ended, "client {} was hung up on", client.name);
                assert!(client.owed.is_empty(), "client {} is owed answers: {:?}", client.name, client.owed);
                self.world.shard.ring_mut().peer_closes(slot as Slot);
                self.clients[slot] = None;
            }
        }
        turn
    }

    fn settle(&mut self) {
        for slot in 0..SOCKETS {
            self.world.shard.ring_mut().stall(slot as Slot, false);
        }
        for _ in 0..20_000 {
            self.world.offer();
            self.play_hub(true);
            let is_idle = self.turn() == Turn::Idle && self.world.shard.may_sleep();
            self.world.shard.awake();
            let ring = self.world.shard.ring_mut();
            let is_read = (0..SOCKETS as Slot)
                .all(|slot| !ring.is_open(slot) || ring.unreceived(slot) + ring.waiting(slot) == 0);
            let is_quiet = self.world.outbox.uplink().is_empty() && self.world.outbox.presence().is_empty();
            if is_idle && is_read && is_quiet && self.pending.is_empty() && self.world.stuck.is_none() {
                break;
            }
        }
        for (slot, client) in self.clients.iter().enumerate() {
            let Some(client) = client else { continue };
            assert_eq!(self.world.shard.ring_mut().unreceived(slot as Slot), 0, "slot {slot} is still read");
            assert!(client.is_open && client.owed.is_empty() && client.unread.is_empty(), "{client:?}");
            for (topic, has) in &client.topics {
                let newest = newest_of(&[*topic], &self.world.log, self.world.log.len() as u64);
                assert!(newest.unwrap_or(0) <= *has, "slot {slot} lacks events of {topic}: {client:?}");
            }
        }
    }
}

impl Client {
    /// The next command, one of `count` that are sent together.
    fn command(&mut self, dice: &mut Dice, newest: u64, count: usize) -> Vec<u8> {
        self.last_ref += 1;
        let number = self.last_ref;
        let topic = dice.roll(TOPICS.len() as u64) as usize;
        let name = TOPICS[topic];
        let id = |sequence| EventId { epoch: EPOCH, sequence }.to_string();
        // Many together are small, so that answers to them fill what may wait.
        let kind = if count >= 400 { 8 + dice.roll(2) } else { dice.roll(10) };
        let (mut command, owed) = match kind {
            0 => (json!({ "subscribe": { "topic": name } }), Owed::Subscribed { topic, after: None }),
            1 => {
                let after = dice.roll(newest + 1);
                let command = json!({ "subscribe": { "topic": name, "after": id(after) } });
                (command, Owed::Subscribed { topic, after: Some(after) })
            }
            2 => {
                let last = dice.roll(20);
                let command = json!({ "subscribe": { "topic": name, "last": last } });
                (command, Owed::Subscribed { topic, after: None })
            }
            3 | 4 => (json!({ "unsubscribe": { "topic": name } }), Owed::Unsubscribed(topic)),
            5 | 6 => {
                let data = format!("{} {number}", self.name);
                (json!({ "publish": { "topic": name, "data": data } }), Owed::Published)
            }
            7 if dice.chance(1, 2) => (json!({ "presence": { "topic": name } }), Owed::Present),
            7 | 8 => (json!({ "ping": {} }), Owed::Pong),
            _ => (json!({ "nonsense": {} }), Owed::Error),
        };
        command["ref"] = number.into();
        self.owed.push_back((number, owed));
        command.to_string().into_bytes()
    }

    /// The next text message that is whole.
    fn next(&mut self) -> Option<Value> {
        if !self.is_open {
            let end = memchr::memmem::find(&self.unread, b"\r\n\r\n")?;
            let head = String::from_utf8(self.unread.drain(..end + 4).collect()).expect("ASCII");
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            self.is_open = true;
        }
        loop {
            let [first, second, ..] = *self.unread.as_slice() else { return None };
            let (header, length) = match second {
                126 => (4, usize::from(u16::from_be_bytes([*self.unread.get(2)?, *self.unread.get(3)?]))),
                127 => panic!("nothing here is so long"),
                short => (2, usize::from(short)),
            };
            if self.unread.len() < header + length {
                return None;
            }
            let frame: Vec<u8> = self.unread.drain(..header + length).collect();
            match first {
                0x81 => return Some(serde_json::from_slice(&frame[header..]).expect("JSON")),
                0x8a => {}
                0x88 => assert!(self.has_ended, "client {} was hung up on", self.name),
                other => panic!("unexpected {other:#x}"),
            }
        }
    }

    /// Checks what was heard. True for an event.
    fn hear(&mut self, heard: &Value, log: &[usize], published: &HashMap<u64, (u64, u64)>) -> bool {
        let sequence_in = |text: &Value| -> u64 {
            let id = text.as_str().unwrap_or_else(|| panic!("an id in {heard}"));
            id.rsplit_once('-').expect("an id").1.parse().expect("a sequence")
        };
        // Whether events of a topic lie between two places.
        let some_between = |topic: usize, after: u64, until: u64| {
            (after + 1..=until).any(|sequence| log[sequence as usize - 1] == topic)
        };
        if heard["topic"].is_string() {
            let sequence = sequence_in(&heard["id"]);
            let topic = log[sequence as usize - 1];
            assert_eq!(heard["topic"], TOPICS[topic]);
            let has = self.topics.get_mut(&topic);
            let has = has.unwrap_or_else(|| panic!("{} hears {heard} outside of a subscription", self.name));
            assert!(sequence > *has, "{} has {has} and hears {heard}", self.name);
            assert!(!some_between(topic, *has, sequence - 1), "{} has {has} and hears {heard}", self.name);
            *has = sequence;
            return true;
        }
        let (number, owed) = self.owed.pop_front().unwrap_or_else(|| panic!("nothing is owed: {heard}"));
        assert_eq!(heard["ref"], number, "{heard} answers {owed:?} of {}", self.name);
        let ok = &heard["ok"];
        match owed {
            Owed::Subscribed { topic, after } => {
                assert_eq!(ok["topic"], TOPICS[topic], "{heard}");
                let begins = sequence_in(&ok["after"]);
                match self.topics.get(&topic) {
                    Some(has) => {
                        assert!(begins >= *has, "{heard} is behind {has}");
                        assert!(!some_between(topic, *has, begins), "{heard} leaves out some after {has}");
                    }
                    None => {
                        assert!(
                            after.is_none_or(|after| after == begins || !some_between(topic, after, begins))
                        );
                        self.topics.insert(topic, begins);
                    }
                }
            }
            Owed::Unsubscribed(topic) => {
                assert_eq!(ok["topic"], TOPICS[topic], "{heard}");
                self.topics.remove(&topic);
            }
            Owed::Published => match ok["sequence"].as_u64() {
                Some(sequence) => assert_eq!(published[&sequence], (self.name, number), "{heard}"),
                None => assert_eq!(heard["error"]["code"], "full", "{heard}"),
            },
            Owed::Present => assert_eq!((&ok["sse"], &ok["websocket"]), (&json!(3), &json!(4)), "{heard}"),
            Owed::Pong => assert_eq!(*ok, json!({})),
            Owed::Error => assert_eq!(heard["error"]["code"], "bad_command", "{heard}"),
        }
        false
    }
}

/// A client that names an event on its way waits for it, and what it says meanwhile waits too.
#[test]
fn a_subscription_after_an_event_on_its_way_waits_for_it() {
    let mut parlour = Parlour::new(1);
    let world = &mut parlour.world;
    let fair = Arc::new(Config::default());
    (world.outbox, world.shard) =
        build(fair, Weather::Fair, 2, world.now, world.demand.clone(), world.memory.clone());
    let head = support::peer::request(Protocol::WebSocket, &[], None);
    let head = head.strip_suffix("\r\n").expect("a head ends in a blank line");
    let head = format!("{head}Sec-WebSocket-Protocol: fanwave.v1.json\r\n\r\n");
    let slot = world.shard.ring_mut().connect().expect("a free slot");
    world.shard.ring_mut().peer_sends(slot, head.as_bytes());
    world.turns();
    world.shard.ring_mut().peer_takes(slot);
    world.demand.announce(1);
    for command in [&br#"{"ref":1,"subscribe":{"topic":"a","after":"mine"}}"#[..], br#"{"ref":2,"ping":{}}"#]
    {
        world.shard.ring_mut().peer_sends(slot, &support::peer::masked(0x1, command));
    }
    world.turns();
    assert_eq!(world.shard.ring_mut().peer_takes(slot), b"", "nobody knows the event yet");
    let event = Event {
        topic: Topic::new("a").expect("legal"),
        data: Data::text(Bytes::from("1")).expect("UTF-8"),
        name: None,
        id: Some(CustomId::new("mine").expect("a legal id")),
        retry_ms: None,
        key: None,
    };
    let recorded = world.accounts.record(&event, 1, event.published_bytes());
    let encoded = Encoded::new(event, EPOCH, 1, world.now).counted_in(&recorded.account);
    world.stuck = Some(Message::Batch(Arc::new(EncodedBatch { events: [Arc::new(encoded)].into() })));
    world.offer();
    world.turns();
    let mut client = Client { is_open: true, ..Client::default() };
    client.unread.extend(world.shard.ring_mut().peer_takes(slot));
    assert_eq!(client.next(), Some(json!({ "ref": 1, "ok": { "topic": "a", "after": "9ix-1" } })));
    assert_eq!(client.next(), Some(json!({ "ref": 2, "ok": {} })));
    assert_eq!(client.next(), None, "it has that event");
}

/// A text message in two frames, perhaps with a ping between them.
fn fragments(text: &[u8], pings: bool) -> Vec<u8> {
    let (first, rest) = text.split_at(text.len() / 3);
    let mut first = support::peer::masked(0x1, first);
    first[0] = 0x01;
    let ping = if pings { support::peer::masked(0x9, b"?") } else { Vec::new() };
    [first, ping, support::peer::masked(0x0, rest)].concat()
}

fn run_parlour(seed: u64) -> (u64, u64, u64) {
    let mut parlour = Parlour::new(seed);
    for _ in 0..500 {
        match parlour.world.dice.roll(12) {
            0 => parlour.connect(),
            1..=3 => parlour.meddle(),
            4 => parlour.world.publish(),
            5 => parlour.play_hub(false),
            _ => {
                parlour.world.offer();
                parlour.turn();
            }
        }
    }
    parlour.settle();
    (parlour.events, parlour.answers, parlour.world.shard.metrics().pauses)
}

#[test]
fn commands_are_answered_once_and_topics_have_no_gap_from_where_they_began() {
    let (mut events, mut answers, mut pauses) = (0, 0, 0);
    for seed in seeds(40) {
        match std::panic::catch_unwind(|| run_parlour(seed)) {
            Ok((some_events, some_answers, some_pauses)) => {
                events += some_events;
                answers += some_answers;
                pauses += some_pauses;
            }
            Err(panic) => {
                eprintln!("FANWAVE_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let is_all = std::env::var_os("FANWAVE_SIM_SEED").is_none();
    assert!(!is_all || events > 5_000 && answers > 5_000 && pauses > 500, "{events} {answers} {pauses}");
}

//! The whole shard over the simulated ring, driven by opcodes.
//!
//! The first eight bytes are the seed of the ring's weather. Each further byte is an operation, and
//! the bytes behind it what that needs: peers connect, send heads, frames and rubbish, stall, end
//! and vanish; events are published, by peers too; time passes; the shard drains.

use std::sync::Arc;

use bytes::Bytes;
use fanwave::broadcast::{
    Answer, Demand, Drain, Encoded, EncodedBatch, Memory, Message, Outbox, Publish, Question, Refused, Taken,
    path,
};
use fanwave::clock::Stamp;
use fanwave::config::limits::{
    BATCH_EVENTS_MAX, EVENTS_PER_TURN_MAX, SWEEP_VISITS_MAX, TICK_MS, VISIT_BYTES,
};
use fanwave::config::{Config, Limits, SlowPolicy};
use fanwave::egress::Slot;
use fanwave::egress::sim::{SimRing, Weather};
use fanwave::event::{Data, Epoch, Event, EventId, Topic};
use fanwave::hub::TopicTable;
use fanwave::refusal::{Refusal, RefusalReason};
use fanwave::shard::{Shard, ShardSetup, Turn};

const EPOCH: Epoch = Epoch(12_345);
const SOCKETS: usize = 12;
const OPERATIONS_MAX: usize = 400;
const TOPICS: [&str; 3] = ["a", "b", "c/d"];
const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The bytes that are left; zeros when there are none.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// A publish that is well formed, or nearly.
fn post(input: &mut Input<'_>) -> Vec<u8> {
    let choice = input.byte();
    let target = ["/topics/a", "/topics/b", "/topics/c%2fd?event=x&id=y", "/topics/%zz"];
    let target = target[usize::from(choice % 4)];
    let count = input.below(200);
    let body = input.bytes(count);
    let head = format!("POST {target} HTTP/1.1\r\nHost: e\r\n");
    let (fields, body) = match choice / 4 % 8 {
        0 => ("Transfer-Encoding: chunked\r\n".to_string(), [b"1;x\r\na\r\n", body].concat()),
        1 => (
            "Transfer-Encoding: chunked\r\n".to_string(),
            [format!("{:x}\r\n", body.len() + 1).as_bytes(), b"x", body, b"\r\n0\r\n\r\n"].concat(),
        ),
        2 => (format!("Expect: 100-continue\r\nContent-Length: {}\r\n", body.len()), body.to_vec()),
        3 => (format!("Content-Length: {}\r\n", 4_000), body.to_vec()),
        4 => (format!("Connection: close\r\nContent-Length: {}\r\n", body.len()), body.to_vec()),
        _ => (format!("Content-Length: {}\r\n", body.len()), body.to_vec()),
    };
    [format!("{head}{fields}\r\n").as_bytes(), &body].concat()
}

struct World {
    shard: Shard<SimRing>,
    outbox: Outbox,
    demand: Arc<Demand>,
    memory: Arc<Memory>,
    accounts: TopicTable,
    limits: Limits,
    /// A message that the shard's queue had no room for.
    stuck: Option<Message>,
    sequence: u64,
    now: Stamp,
    /// What each peer has read and has not understood yet, and the newest sequence in it.
    read: Vec<(Vec<u8>, u64)>,
}

/// Runs the operations, then lets every peer vanish: the shard must let go of all of them.
pub fn whole_shard(data: &[u8]) {
    let Some((seed, operations)) = data.split_first_chunk() else { return };
    let mut input = Input(operations);
    let mut world = World::new(u64::from_le_bytes(*seed));
    let mut is_draining = false;
    for _ in 0..OPERATIONS_MAX {
        if input.0.is_empty() {
            break;
        }
        world.operate(&mut input, &mut is_draining);
    }
    world.end();
}

impl World {
    fn new(seed: u64) -> World {
        let limits = Limits {
            window_events_max: [4, 64][(seed % 2) as usize],
            send_bytes_max: 4 << 10,
            zero_copy_bytes_min: [0, 3 << 10][(seed / 2 % 2) as usize],
            message_in_bytes_max: 2_048,
            handshake_bytes_max: 512,
            topics_per_connection_max: 2,
            topics_max: 2 + (seed / 4 % 2) as usize,
            heartbeat_ms: 2_000,
            stall_ms_max: 5_000,
            shard_queue_batches_max: 2,
            ..Limits::default()
        };
        let slow = if (seed / 8).is_multiple_of(2) { SlowPolicy::Close } else { SlowPolicy::Skip };
        let client_publish = ["a", "c/*"].map(|text| text.parse().expect("a pattern")).into();
        let config = Config {
            limits: limits.clone(),
            slow,
            client_publish,
            diagnostic_echo: true,
            access_log: true,
            ..Config::default()
        };
        let (outbox, inbox) = path(limits.shard_queue_batches_max).expect("eventfd");
        let (demand, memory) = (Arc::<Demand>::default(), Memory::new(&limits));
        let weather = if (seed / 16).is_multiple_of(4) { Weather::Fair } else { Weather::Rough };
        let room = [8, 20, 2_048][(seed % 3) as usize];
        let ring = SimRing::new(SOCKETS, weather, seed).recording().with_room(room);
        let now = Stamp(1_000_000_000);
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            config: Arc::new(config),
            epoch: EPOCH,
            demand: demand.clone(),
            memory: memory.clone(),
            connections_max: SOCKETS - 2,
            admission: Default::default(),
        };
        World {
            shard: Shard::new(setup, ring, inbox, now),
            outbox,
            demand,
            accounts: TopicTable::new(limits.topics_max, memory.clone()),
            memory,
            limits,
            stuck: None,
            sequence: 0,
            now,
            read: vec![Default::default(); SOCKETS],
        }
    }

    fn operate(&mut self, input: &mut Input<'_>, is_draining: &mut bool) {
        let operation = input.byte() % 19;
        let slot = if !(9..=16).contains(&operation) { input.below(SOCKETS) as Slot } else { 0 };
        let is_open = self.shard.ring_mut().is_open(slot);
        match operation {
            0 | 1 => {
                if let Some(slot) = self.shard.ring_mut().connect() {
                    self.read[slot as usize] = Default::default();
                    let head = self.head(input);
                    self.shard.ring_mut().peer_sends(slot, head.as_bytes());
                }
            }
            2 if is_open => {
                let count = input.below(64);
                self.shard.ring_mut().peer_sends(slot, input.bytes(count));
            }
            3 | 4 if is_open => {
                let (first, count) = (input.byte(), input.below(126));
                // Seven of eight are whole text frames.
                let first = if first & 7 == 0 { first } else { 0x81 };
                let frame = [&[first, 0x80 | count as u8, 0, 0, 0, 0], input.bytes(count)].concat();
                self.shard.ring_mut().peer_sends(slot, &frame);
            }
            5 if is_open => {
                let count = 126 + 8 * input.below(256);
                let mut frame = vec![0x82, 0x80 | 126];
                frame.extend_from_slice(&(count as u16).to_be_bytes());
                frame.resize(frame.len() + 4 + count, 0);
                for _ in 0..1 + input.below(32) {
                    self.shard.ring_mut().peer_sends(slot, &frame);
                }
            }
            6 if is_open => {
                let stalled = input.byte().is_multiple_of(2);
                self.shard.ring_mut().stall(slot, stalled);
            }
            7 if is_open => self.shard.ring_mut().peer_closes(slot),
            8 if is_open => self.shard.ring_mut().peer_resets(slot),
            9 | 10 => self.publish(input),
            11 => {
                let ms = [1, TICK_MS, 2_500, 20_000][input.below(4)];
                self.turn(ms);
            }
            12 if input.byte() == 0 && !*is_draining && self.stuck.is_none() => {
                *is_draining = true;
                let deadline = Stamp(self.now.0 + 3_000_000_000);
                self.stuck = Some(Message::Drain(Drain::new(deadline).0));
                self.offer();
            }
            16 => self.play_hub(input.below(40)),
            17 | 18 => {
                // On a connection that is there, or a new one.
                let slot = if is_open { Some(slot) } else { self.shard.ring_mut().connect() };
                let Some(slot) = slot else { return };
                if !is_open {
                    self.read[slot as usize] = Default::default();
                }
                let request = post(input);
                for _ in 0..1 + input.below(80) {
                    self.shard.ring_mut().peer_sends(slot, &request);
                }
            }
            13 => {
                let (answer, _) = tokio::sync::oneshot::channel();
                self.outbox.ask(Question::Counters(answer));
            }
            _ => {
                for _ in 0..1 + input.below(8) {
                    self.turn(1);
                }
            }
        }
    }

    /// Takes so many publishes of peers, and answers each: with a place, or a refusal.
    fn play_hub(&mut self, most: usize) {
        let taken = std::iter::from_fn(|| self.outbox.uplink().take()).take(most);
        let answers: Vec<Answer> = taken
            .map(|Publish { ticket, event, .. }| {
                let outcome = match event.data.bytes().len() % 3 {
                    0 => Err(Refusal::new(RefusalReason::Full, "no")),
                    _ => Ok(Taken { epoch: EPOCH, sequence: self.sequence, duplicate: false }),
                };
                Answer { ticket, outcome }
            })
            .collect();
        if !answers.is_empty() {
            self.outbox.answer(answers);
        }
    }

    /// A head that is well formed, or nearly.
    fn head(&mut self, input: &mut Input<'_>) -> String {
        let choice = input.byte();
        let topics = ["topic=a", "topic=b&topic=a", "topic=c/d", "topic=a&topic=b&topic=c/d"];
        let query = topics[usize::from(choice / 8 % 4)];
        let after = match choice / 32 {
            0 | 1 => String::new(),
            2 => "&after=nobody".to_string(),
            3 => format!("&after={}", EventId { epoch: EPOCH, sequence: u64::from(input.byte()) }),
            back => {
                let sequence = self.sequence.saturating_sub(u64::from(back) - 4);
                format!("&after={}", EventId { epoch: EPOCH, sequence })
            }
        };
        match choice % 8 {
            0 | 1 => format!("GET /sse?{query}{after} HTTP/1.1\r\nHost: e\r\n\r\n"),
            2 => format!("GET /sse?{query}{after} HTTP/1.0\r\n\r\n"),
            3 => format!("GET /sse?{query}{after} HTTP/1.1\r\nHost: e\r\nAccept: text/event-stream\r\n\r\n"),
            4 | 5 => format!("GET /ws?{query}{after} HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n"),
            6 => format!("GET /echo HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n"),
            _ => "GET /healthz HTTP/1.1\r\nHost: e\r\n\r\n".to_string(),
        }
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        if self.stuck.is_some() {
            return;
        }
        let mut events = Vec::new();
        for _ in 0..1 + input.below(6) {
            let choice = input.byte();
            let topic = Topic::new(TOPICS[usize::from(choice) % TOPICS.len()]).expect("legal");
            let padding = [0, 3, 40, 1_000, 9_000][usize::from(choice / 4) % 5];
            let text = format!("{} {}", self.sequence + 1, "x".repeat(padding));
            let data = Data::text(Bytes::from(text)).expect("UTF-8");
            let event = Event { topic, data, name: None, id: None, retry_ms: None, key: None };
            if !self.accounts.has_room(&event.topic, Encoded::memory_of(&event)) {
                continue;
            }
            self.sequence += 1;
            self.demand.announce(self.sequence);
            let recorded = self.accounts.record(&event, self.sequence, event.published_bytes());
            let encoded = Encoded::new(event, EPOCH, self.sequence, self.now);
            let encoded = encoded.forgetting(recorded.forgets).counted_in(&recorded.account);
            events.push(Arc::new(encoded));
        }
        if !events.is_empty() {
            self.stuck = Some(Message::Batch(Arc::new(EncodedBatch { events: events.into() })));
            self.offer();
        }
    }

    fn offer(&mut self) {
        let Some(message) = self.stuck.take() else { return };
        match self.outbox.try_send(message) {
            Ok(()) => {}
            Err(Refused::Full(message)) => self.stuck = Some(message),
            Err(Refused::Gone(_)) => panic!("the shard is there"),
        }
    }

    fn turn(&mut self, ms: u64) -> Turn {
        self.now = Stamp(self.now.0 + ms * 1_000_000);
        let turn = self.shard.turn(self.now).expect("the simulated ring does not fail");
        self.offer();
        let work = self.shard.work();
        let visits_max = SWEEP_VISITS_MAX + SWEEP_VISITS_MAX / 2;
        assert!(work.visits <= visits_max, "{work:?}");
        assert!(work.events < EVENTS_PER_TURN_MAX + BATCH_EVENTS_MAX, "{work:?}");
        let send_max = self.limits.send_bytes_max.max(self.limits.frame_bytes_max());
        assert!(work.bytes <= visits_max * VISIT_BYTES + 2 * send_max, "{work:?}");
        let (windows, held) = (self.shard.window_memory(), self.memory.held());
        assert!(windows <= held && held <= self.memory.bytes_max(), "{windows} of {held} bytes");
        for slot in 0..SOCKETS {
            self.listen_to(slot);
        }
        turn
    }

    /// Sequences rise on every event stream.
    fn listen_to(&mut self, slot: usize) {
        let (unread, newest) = &mut self.read[slot];
        unread.extend(self.shard.ring_mut().peer_takes(slot as Slot));
        let start = format!("id: {}", EventId { epoch: EPOCH, sequence: 0 });
        let start = start.strip_suffix('0').expect("it ends in its sequence").as_bytes();
        let mut used = 0;
        while let Some(at) = memchr::memmem::find(&unread[used..], start) {
            let number = &unread[used + at + start.len()..];
            let Some(end) = memchr::memchr(b'\n', number) else { break };
            let number = std::str::from_utf8(&number[..end]).expect("ASCII").trim_end();
            let sequence: u64 = number.parse().expect("a sequence");
            // A stream may begin with the id of the event before its first.
            assert!(sequence > *newest || *newest == 0, "{sequence} after {newest}");
            *newest = sequence;
            used += at + start.len() + end;
        }
        // An id may begin at the end of what is here.
        let kept = unread.len().saturating_sub(start.len() + 24).max(used);
        unread.drain(..kept.min(unread.len()));
    }

    fn end(&mut self) {
        for slot in 0..SOCKETS as Slot {
            if self.shard.ring_mut().is_open(slot) {
                self.shard.ring_mut().stall(slot, false);
                self.shard.ring_mut().peer_resets(slot);
            }
        }
        let is_over = |world: &mut World| {
            let open = (0..SOCKETS as Slot).any(|slot| world.shard.ring_mut().is_open(slot));
            !open && world.stuck.is_none() && world.outbox.is_empty()
        };
        for _ in 0..2_000 {
            self.play_hub(usize::MAX);
            if self.turn(100) == Turn::Idle && is_over(self) {
                break;
            }
        }
        assert!(is_over(self), "a shard lets go of peers that are gone");
        let connections = self.shard.metrics().families.iter().map(|counters| counters.connections);
        assert_eq!(connections.sum::<u64>(), 0);
    }
}

//! A shard on the simulated ring in fair weather, with subscribers who take everything at once.
//!
//! The caller plays the hub: it makes events outside of what is timed and counted, then has them
//! delivered. What is timed includes the simulated ring; what is counted is all allocations inside
//! the shard's turns.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fanwave::broadcast::{Demand, EncodedBatch, Memory, Message, Outbox, path};
use fanwave::clock::Stamp;
use fanwave::config::{Config, Limits};
use fanwave::egress::sim::{SimRing, Weather};
use fanwave::egress::{EgressRing, Slot};
use fanwave::event::Topic;
use fanwave::shard::{Shard, ShardSetup, Turn};
use fanwave::wire::Format;

use super::counting::counted;
use super::events::{EPOCH, encoded};

/// A subscriber: its format and its topics.
pub type Subscription<'a> = (Format, &'a [&'a str]);

/// A shard and all of its subscribers.
pub struct Crowd {
    shard: Shard<SimRing>,
    outbox: Outbox,
    /// Of the subscribers, in their order.
    slots: Vec<Slot>,
    sequence: u64,
    now: Stamp,
    /// How much time passes with each turn.
    pub turn_time: Duration,
    /// Print where the first allocation of a delivery happens.
    pub trace: bool,
}

fn request((format, topics): &Subscription<'_>) -> String {
    let query: Vec<String> = topics.iter().map(|topic| format!("topic={topic}")).collect();
    let query = query.join("&");
    match format {
        Format::Sse => format!("GET /sse?{query} HTTP/1.0\r\n\r\n"),
        Format::SseChunked => format!("GET /sse?{query} HTTP/1.1\r\nHost: bench\r\n\r\n"),
        Format::WebSocket | Format::Json => {
            let offer = match format {
                Format::Json => "Sec-WebSocket-Protocol: fanwave.v1.json\r\n",
                _ => "",
            };
            format!(
                "GET /ws?{query} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}\r\n"
            )
        }
    }
}

impl Crowd {
    /// A shard with these subscribers, all of them let in and idle.
    pub fn gather(limits: Limits, subscriptions: &[Subscription<'_>]) -> Crowd {
        let (outbox, inbox) = path(limits.shard_queue_batches_max).expect("an eventfd");
        let config = Arc::new(Config { limits, ..Config::default() });
        let demand = Arc::new(Demand::default());
        let connections_max = subscriptions.len();
        let memory = Memory::new(&config.limits);
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            config,
            epoch: EPOCH,
            demand,
            memory,
            connections_max,
            admission: Default::default(),
        };
        let mut ring = SimRing::new(connections_max, Weather::Fair, 0);
        let mut slots = Vec::new();
        for subscription in subscriptions {
            let slot = ring.connect().expect("a slot per subscriber");
            ring.peer_sends(slot, request(subscription).as_bytes());
            slots.push(slot);
        }
        let now = Stamp(1_000_000_000);
        let mut crowd = Crowd {
            shard: Shard::new(setup, ring, inbox, now),
            outbox,
            slots,
            sequence: 0,
            now,
            turn_time: Duration::from_micros(1),
            trace: false,
        };
        crowd.turns();
        assert_eq!(crowd.open(), connections_max as u64, "everybody was let in");
        crowd
    }

    /// The hub's part: one message with one event of this text for each of `topics`, in order.
    pub fn message<'a>(&mut self, topics: impl Iterator<Item = &'a Topic>, text: &Bytes) -> Message {
        let intake = self.now;
        let events = topics.map(|topic| {
            self.sequence += 1;
            encoded(topic, self.sequence, intake, text)
        });
        Message::Batch(Arc::new(EncodedBatch { events: events.collect() }))
    }

    /// Broadcasts `message` and turns the shard until it is idle; returns the allocations of the
    /// turns.
    pub fn deliver(&mut self, message: Message) -> u64 {
        self.outbox.try_send(message).expect("an idle shard's queue has room");
        self.turns()
    }

    fn turns(&mut self) -> u64 {
        let mut allocations = 0;
        loop {
            self.now = self.now.plus(self.turn_time);
            let (turn, made) = counted(self.trace, || self.shard.turn(self.now));
            allocations += made;
            // The end of a turn without work is the time to look whether the last sends have
            // completed.
            let turn = turn.expect("the simulated ring does not fail");
            if turn == Turn::Idle && self.shard.ring_mut().may_sleep() {
                return allocations;
            }
        }
    }

    /// Broadcasts `message` and turns the shard once: it has taken the message and is on its way
    /// round.
    #[allow(dead_code, reason = "each program uses a part of it")]
    pub fn begin(&mut self, message: Message) {
        self.outbox.try_send(message).expect("an idle shard's queue has room");
        self.now = self.now.plus(self.turn_time);
        self.shard.turn(self.now).expect("the simulated ring does not fail");
    }

    /// The subscribers of these numbers leave, all at once, and the shard turns until it knows.
    #[allow(dead_code, reason = "each program uses a part of it")]
    pub fn leave(&mut self, numbers: impl Iterator<Item = usize>) {
        let mut left = self.open();
        for number in numbers {
            self.shard.ring_mut().peer_closes(self.slots[number]);
            left -= 1;
        }
        while self.open() > left {
            self.now = self.now.plus(self.turn_time);
            self.shard.turn(self.now).expect("the simulated ring does not fail");
        }
    }

    /// Subscribers now.
    pub fn open(&self) -> u64 {
        self.shard.metrics().families.iter().map(|family| family.connections).sum()
    }

    /// Frames that the sockets have taken so far.
    pub fn frames(&self) -> u64 {
        self.shard.metrics().families.iter().map(|family| family.frames).sum()
    }
}

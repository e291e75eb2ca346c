//! Promise: streams of HTTP/2 are subscribers like any other. Whatever windows, sockets and resets
//! do, each stream is whole and in order; a slow one delays nobody on another connection, and those
//! of its own only as far as their room is one.
//!
//! Set-up: one shard on the simulated ring, some of whose peers speak TLS. Each connection is fast
//! or slow. Slow ones have windows of a few bytes that grow and shrink at any time, sockets that
//! stall, and resets of streams and of all of them. The client counts what it allowed.
//!
//! Expectation: a stream gets the events after its begin one by one until its client resets it. Fast
//! connections have everything after some turns, whatever the slow ones do. In the end all have.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use fanwave::broadcast::{Encoded, EncodedBatch, Memory, Message, Outbox, path};
use fanwave::clock::Stamp;
use fanwave::config::{Config, Limits};
use fanwave::egress::sim::{Dice, SimRing, Weather};
use fanwave::egress::{EgressRing, Slot};
use fanwave::event::{Data, Event, EventId, Topic};
use fanwave::http2::{Http2, StreamRules};
use fanwave::shard::{Shard, ShardSetup};

use super::h2::{Client, WINDOW_SETTING, frame_of};
use super::wire::Wire;
use super::{EPOCH, seeds};

const SOCKETS: usize = 8;
const STREAMS_MAX: usize = 40;
/// More than all events of a run.
const AMPLE: u32 = 1 << 24;

/// What a client makes of one stream.
#[derive(Default)]
struct Tail {
    /// A line that is not whole.
    line: Vec<u8>,
    /// The last event, or where the stream began.
    last: Option<u64>,
    is_reset: bool,
}

struct Peer {
    slot: Slot,
    client: Client,
    is_fast: bool,
    stalled: bool,
    tails: BTreeMap<u32, Tail>,
}

struct World {
    dice: Dice,
    shard: Shard<Http2<Wire>>,
    outbox: Outbox,
    now: Stamp,
    sequence: u64,
    peers: Vec<Peer>,
}

impl World {
    fn new(seed: u64) -> World {
        let limits = Limits {
            stall_ms_max: 3_600_000,
            heartbeat_ms: 3_600_000,
            handshake_ms_max: 3_600_000,
            ..Limits::default()
        };
        let rules = StreamRules {
            first_slot: SOCKETS as Slot,
            streams_max: STREAMS_MAX,
            per_carrier_max: 12,
            head_bytes_max: limits.handshake_bytes_max,
            head_ms_max: 3_600_000,
            stall_ms_max: limits.stall_ms_max,
        };
        let (outbox, inbox) = path(64).expect("eventfd");
        let now = Stamp(1_000_000_000);
        let room = [8, 20, 2_048][(seed % 3) as usize];
        let ring = SimRing::new(SOCKETS, Weather::Rough, seed ^ 0x42).recording().with_room(room);
        let mut wire = Wire::new(ring, seed);
        if seed % 2 == 1 {
            wire.speak_tls(2);
        }
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            memory: Memory::new(&limits),
            config: Arc::new(Config { limits, ..Config::default() }),
            epoch: EPOCH,
            demand: Arc::default(),
            connections_max: STREAMS_MAX,
            admission: Default::default(),
        };
        let shard = Shard::new(setup, Http2::new(wire, rules), inbox, now);
        World { dice: Dice::new(seed), shard, outbox, now, sequence: 0, peers: Vec::new() }
    }

    fn wire(&mut self) -> &mut Wire {
        self.shard.ring_mut().inner_mut()
    }

    fn turn(&mut self) {
        // What TLS has to say, and had no room, is said at the next tick.
        self.now = Stamp(self.now.0 + 10_000_000);
        self.shard.turn(self.now).expect("the simulated ring does not fail");
        for at in 0..self.peers.len() {
            let slot = self.peers[at].slot;
            let heard = self.wire().peer_takes(slot);
            let peer = &mut self.peers[at];
            let mut answer = peer.client.hear(&heard);
            assert_eq!(peer.client.goaway, None, "nobody did anything wrong");
            peer.check();
            if peer.is_fast && peer.client.window < 1 << 20 {
                answer.extend(peer.client.allow(0, AMPLE));
            }
            self.wire().peer_sends(slot, &answer);
        }
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    fn connect(&mut self) {
        let Some(slot) = self.wire().connect() else { return };
        let is_fast = self.dice.chance(1, 3);
        let mut client = Client::default();
        let window = if is_fast { AMPLE } else { self.dice.roll(3_000) as u32 };
        let hello = client.hello(&[(WINDOW_SETTING, window)]);
        self.wire().peer_sends(slot, &hello);
        self.peers.push(Peer { slot, client, is_fast, stalled: false, tails: BTreeMap::new() });
    }

    fn publish(&mut self) {
        let count = 1 + self.dice.roll(4);
        let events = (0..count).map(|_| {
            self.sequence += 1;
            let padding = [5, 50, 900, 9_000][self.dice.roll(4) as usize];
            let event = Event {
                topic: Topic::new("t").expect("legal"),
                data: Data::text(Bytes::from("x".repeat(padding))).expect("UTF-8"),
                name: None,
                id: None,
                retry_ms: None,
                key: None,
            };
            Arc::new(Encoded::new(event, EPOCH, self.sequence, self.now))
        });
        let events: Vec<_> = events.collect();
        let batch = EncodedBatch { events: events.into() };
        self.outbox.try_send(Message::Batch(Arc::new(batch))).expect("the shard keeps up");
    }

    /// Something happens to one of the connections.
    fn meddle(&mut self) {
        if self.peers.is_empty() {
            return;
        }
        let at = self.dice.roll(self.peers.len() as u64) as usize;
        let (what, bytes) = (self.dice.roll(12), 1 + self.dice.roll(4_000) as u32);
        let some = self.dice.roll(12) as u32 * 2 + 1;
        let peer = &mut self.peers[at];
        let slot = peer.slot;
        let has_stream = peer.client.streams.get(&some).is_some_and(|stream| stream.reset.is_none());
        let is_living = has_stream && !peer.tails[&some].is_reset;
        let said = match what {
            0..=3 if peer.tails.len() < 12 => {
                let (stream, request) = peer.client.get("/sse/t");
                peer.tails.insert(stream, Tail::default());
                request
            }
            4 if !peer.is_fast => peer.client.set(&[(WINDOW_SETTING, bytes)]),
            5 | 6 if is_living => peer.client.allow(some, bytes),
            7 | 8 => peer.client.allow(0, bytes),
            9 if is_living => {
                peer.tails.get_mut(&some).expect("it was asked for").is_reset = true;
                peer.client.reset(some, 8)
            }
            10 => frame_of(6, 0, 0, &[1; 8]),
            11 if !peer.is_fast => {
                peer.stalled = !peer.stalled;
                let stalled = peer.stalled;
                return self.wire().stall(slot, stalled);
            }
            _ => return,
        };
        self.wire().peer_sends(slot, &said);
    }

    /// A connection is gone without a word, or with one.
    fn leave(&mut self) {
        if self.peers.len() < 3 {
            return;
        }
        let at = self.dice.roll(self.peers.len() as u64) as usize;
        let slot = self.peers.swap_remove(at).slot;
        match self.dice.chance(1, 2) {
            true => self.wire().peer_resets(slot),
            false => self.wire().peer_closes(slot),
        }
        // Its slot may be another's soon.
        self.turns(60);
        self.wire().peer_takes(slot);
    }

    /// Fast connections have everything, whatever the others do.
    fn check_fast(&mut self) {
        // A handshake in rough weather takes its time.
        for _ in 0..50 {
            self.turns(20);
            if self.peers.iter().all(|peer| !peer.is_fast || peer.lacks(self.sequence).is_none()) {
                return;
            }
        }
        self.peers.iter().filter(|peer| peer.is_fast).for_each(|peer| peer.check_whole(self.sequence));
    }

    /// With room enough everybody has everything.
    fn settle(&mut self) {
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            let mut said = peer.client.allow(0, AMPLE);
            said.extend(peer.client.set(&[(WINDOW_SETTING, AMPLE)]));
            let slot = peer.slot;
            self.wire().stall(slot, false);
            self.wire().peer_sends(slot, &said);
        }
        self.turns(400);
        self.peers.iter().for_each(|peer| peer.check_whole(self.sequence));
        // Nothing is left of those who leave.
        for at in 0..self.peers.len() {
            let slot = self.peers[at].slot;
            self.wire().peer_resets(slot);
        }
        self.peers.clear();
        self.turns(200);
        let slots = 0..SOCKETS as Slot;
        assert!(slots.clone().all(|slot| !self.wire().is_open(slot)));
        assert!(slots.into_iter().all(|slot| self.shard.ring().streams(slot) == 0));
        assert_eq!(self.shard.metrics().families[0].connections, 0);
    }
}

impl Peer {
    /// Reads what has come: the next event each time.
    fn check(&mut self) {
        let prefix = EventId { epoch: EPOCH, sequence: 0 }.to_string();
        let prefix = prefix.strip_suffix('0').expect("a sequence of 0");
        for (id, tail) in &mut self.tails {
            tail.line.extend(self.client.take(*id));
            let stream = &self.client.streams[id];
            let is_refused = stream.reset == Some(7) || stream.status.is_some_and(|status| status != 200);
            let ends = stream.ended || stream.reset.is_some();
            assert!(!ends || is_refused || tail.is_reset, "stream {id} ends: {stream:?}");
            tail.is_reset |= is_refused;
            while let Some(end) = tail.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = tail.line.drain(..=end).collect();
                let text = std::str::from_utf8(&line).expect("UTF-8").trim_end();
                assert!(!text.contains("fanwave-gap"), "everything is kept for it");
                let Some(sequence) = text.strip_prefix("id:").and_then(|id| id.trim().strip_prefix(prefix))
                else {
                    continue;
                };
                let sequence: u64 = sequence.parse().expect("a number");
                if let Some(last) = tail.last {
                    assert_eq!(sequence, last + 1, "stream {id} has a gap");
                }
                tail.last = Some(sequence);
            }
        }
    }

    /// A stream that does not have everything.
    fn lacks(&self, sequence: u64) -> Option<u32> {
        let mut living = self.tails.iter().filter(|(_, tail)| !tail.is_reset);
        living.find(|(_, tail)| tail.last != Some(sequence)).map(|(id, _)| *id)
    }

    fn check_whole(&self, sequence: u64) {
        if let Some(id) = self.lacks(sequence) {
            panic!("stream {id} lacks events up to {sequence}: {:?}", self.client.streams[&id]);
        }
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for step in 0..400 {
        match world.dice.roll(12) {
            0 => world.connect(),
            1 | 2 => world.publish(),
            3..=7 => world.meddle(),
            8 if world.dice.chance(1, 8) => world.leave(),
            _ => world.turn(),
        }
        if step % 100 == 99 {
            world.check_fast();
        }
    }
    world.settle();
}

#[test]
fn every_stream_is_whole_and_a_slow_one_delays_nobody_elsewhere() {
    for seed in seeds(14) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = outcome {
            eprintln!("FANWAVE_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

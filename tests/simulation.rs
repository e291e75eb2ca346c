//! Promise: whatever sockets, peers and schedules do, every subscriber sees a gap-free ordered
//! sequence of its topics' events, or is told of the gap, or is hung up on.
//!
//! Set-up: one shard on the simulated ring. A seed decides everything: who connects, to which
//! topics, in which protocol, with which last id; what is published when; which sends are taken in
//! part, wait, or fail; in which order completions come; who stalls, pings, resets and leaves; how
//! much a window holds and how much memory there is. The test plays the hub and the peers.
//!
//! Expectation: checked per peer from its own bytes, see [`Peer`]. A failing seed is printed; run
//! it alone with `FANWAVE_SIM_SEED=<seed> cargo test --test simulation`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use fanwave::broadcast::{
    Demand, Drain, Encoded, EncodedBatch, Memory, Message, Outbox, Question, Refused, Removal, path,
};
use fanwave::clock::Stamp;
use fanwave::close::CLOSE_TABLE;
use fanwave::config::limits::{
    BATCH_EVENTS_MAX, EVENTS_PER_TURN_MAX, SWEEP_VISITS_MAX, TICK_MS, VISIT_BYTES,
};
use fanwave::config::{Config, Limits, SlowPolicy};
use fanwave::egress::Slot;
use fanwave::egress::sim::{Dice, SimRing, Weather};
use fanwave::event::{CustomId, Data, Epoch, Event, EventId, Topic};
use fanwave::hub::TopicTable;
use fanwave::metrics::{FamilyCounters, ShardMetrics, ShardReport};
use fanwave::shard::{Shard, ShardSetup, Turn};
use tokio::sync::oneshot;

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/conversation.rs"]
mod conversation;
#[path = "support/h2.rs"]
mod h2;
#[path = "simulation/memory.rs"]
mod memory;
#[path = "simulation/nodes.rs"]
mod nodes;
#[path = "support/proxied.rs"]
mod proxied;
#[path = "simulation/proxies.rs"]
mod proxies;
#[path = "simulation/publishers.rs"]
mod publishers;
#[path = "simulation/questions.rs"]
mod questions;
#[path = "simulation/retained.rs"]
mod retained;
#[path = "simulation/rules.rs"]
mod rules;
#[path = "support/scratch.rs"]
mod scratch;
#[path = "simulation/shares.rs"]
mod shares;
#[path = "simulation/storms.rs"]
mod storms;
#[path = "simulation/streams.rs"]
mod streams;
mod support;
#[path = "simulation/together.rs"]
mod together;
#[path = "simulation/tokens.rs"]
mod tokens;
#[path = "support/wire.rs"]
mod wire;
use checks::*;
use support::peer::{Ending, Heard, Peer, Protocol};
use wire::Wire;

const EPOCH: Epoch = Epoch(12_345);
const TOPICS: [&str; 4] = ["a", "b", "c", "d/e"];
/// Patterns of some of these.
const PATTERNS: [&str; 5] = ["*", "**", "d/*", "d/**", "*/e"];
const SOCKETS: usize = 24;
/// In the place of a topic: the sequence was left out.
const HOLE: usize = usize::MAX;

/// The world of one seed.
struct World {
    dice: Dice,
    shard: Shard<Wire>,
    outbox: Outbox,
    demand: Arc<Demand>,
    memory: Arc<Memory>,
    /// Whose account an event is counted in, as in the hub.
    accounts: TopicTable,
    limits: Limits,
    /// A message that the shard's queue had no room for.
    stuck: Option<Message>,
    /// Where the answer to a scrape comes.
    scrape: Option<oneshot::Receiver<ShardReport>>,
    /// The counters of the last scrape.
    told: ShardMetrics,
    now: Stamp,
    window_events: usize,
    /// Windows keep events for so short a time, or so few for want of memory, that a topic's
    /// history may be shorter than `window_events`.
    forgetful: bool,
    /// So little memory that slow subscribers may be cut.
    scarce: bool,
    policy: SlowPolicy,
    /// Topic of every event, by sequence - 1; [`HOLE`] for a sequence that no event has.
    log: Vec<usize>,
    /// Sequences have holes.
    has_holes: bool,
    peers: Vec<Option<Peer>>,
    /// The topics and patterns that the peer of each slot asked for.
    asked: Vec<Vec<&'static str>>,
    /// By slot, the newest sequence that the peer read of each topic, if it wants the latest alone.
    latest: Vec<Option<HashMap<usize, u64>>>,
    /// What peers that left had asked for, and their last ids, to resume from.
    left: Vec<(Vec<&'static str>, u64)>,
    /// Events that peers read.
    heard: u64,
    draining: bool,
}

fn config(window_events: usize, policy: SlowPolicy, dice: &mut Dice) -> Arc<Config> {
    let limits = Limits {
        window_events_max: window_events,
        // Some sends carry a few frames only, some frames go out as zero copy.
        send_bytes_max: [4 << 10, 20 << 10, 256 << 10][dice.roll(3) as usize],
        zero_copy_bytes_min: [0, 6 << 10][dice.roll(2) as usize],
        heartbeat_ms: 2_000,
        window_ms_max: [15, 60_000, 60_000][dice.roll(3) as usize],
        stall_ms_max: 30_000,
        shard_queue_batches_max: 1 + dice.roll(4) as usize,
        window_bytes_total_max: [4 << 20, 512 << 20, 512 << 20][dice.roll(3) as usize],
        ..Limits::default()
    };
    Arc::new(Config { slow: policy, limits, access_log: true, ..Config::default() })
}

fn build(
    config: Arc<Config>,
    weather: Weather,
    seed: u64,
    now: Stamp,
    demand: Arc<Demand>,
    memory: Arc<Memory>,
) -> (Outbox, Shard<Wire>) {
    build_for(SOCKETS, config, weather, seed, now, demand, memory)
}

fn build_for(
    sockets: usize,
    config: Arc<Config>,
    weather: Weather,
    seed: u64,
    now: Stamp,
    demand: Arc<Demand>,
    memory: Arc<Memory>,
) -> (Outbox, Shard<Wire>) {
    let (outbox, inbox) = path(config.limits.shard_queue_batches_max).expect("eventfd");
    // Little room in the ring makes sweeps stop in mid-lap.
    let room = [8, 20, 2_048][(seed % 3) as usize];
    let ring = SimRing::new(sockets, weather, seed ^ 0xfa).recording().with_room(room);
    let ring = Wire::new(ring, seed);
    let setup = ShardSetup {
        number: 0,
        cpu: 0,
        config,
        epoch: EPOCH,
        demand,
        memory,
        connections_max: sockets,
        admission: Default::default(),
    };
    (outbox, Shard::new(setup, ring, inbox, now))
}

impl World {
    fn new(seed: u64, weather: Weather) -> World {
        let mut dice = Dice::new(seed);
        let window_events = [4, 8, 64, 1_024][dice.roll(4) as usize];
        let policy = if dice.chance(1, 3) { SlowPolicy::Skip } else { SlowPolicy::Close };
        let config = config(window_events, policy, &mut dice);
        World::with(config, window_events, policy, weather, seed, dice)
    }

    fn with(
        config: Arc<Config>,
        window_events: usize,
        policy: SlowPolicy,
        weather: Weather,
        seed: u64,
        dice: Dice,
    ) -> World {
        let limits = config.limits.clone();
        let scarce = limits.window_bytes_total_max < 512 << 20;
        let forgetful = limits.window_ms_max < 60_000 || scarce;
        let now = Stamp(1_000_000_000);
        let demand = Arc::new(Demand::default());
        let memory = Memory::new(&limits);
        let (outbox, shard) = build(config, weather, seed, now, demand.clone(), memory.clone());
        World {
            dice,
            shard,
            outbox,
            demand,
            accounts: TopicTable::new(limits.topics_max, memory.clone()),
            memory,
            limits,
            stuck: None,
            scrape: None,
            told: ShardMetrics::default(),
            now,
            window_events,
            forgetful,
            scarce,
            policy,
            log: Vec::new(),
            has_holes: seed.is_multiple_of(3),
            peers: (0..SOCKETS).map(|_| None).collect(),
            asked: vec![Vec::new(); SOCKETS],
            latest: vec![None; SOCKETS],
            left: Vec::new(),
            heard: 0,
            draining: false,
        }
    }

    /// So many slots, for a shard that has as many.
    fn make_room_for(&mut self, sockets: usize) {
        self.peers.resize_with(sockets, || None);
        self.asked.resize(sockets, Vec::new());
        self.latest.resize(sockets, None);
    }

    fn some_topics(&mut self) -> Vec<usize> {
        let count = 1 + self.dice.roll(3) as usize;
        let mut topics: Vec<usize> =
            (0..count).map(|_| self.dice.roll(TOPICS.len() as u64) as usize).collect();
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    /// Some topics and patterns.
    fn some_names(&mut self) -> Vec<&'static str> {
        let count = 1 + self.dice.roll(3) as usize;
        let some = |_| match self.dice.chance(1, 4) {
            true => PATTERNS[self.dice.roll(PATTERNS.len() as u64) as usize],
            false => TOPICS[self.dice.roll(TOPICS.len() as u64) as usize],
        };
        let mut topics: Vec<&str> = (0..count).map(some).collect();
        if self.dice.chance(1, 20) {
            // So many that those with news are looked for by the newest events.
            topics.extend(TOPICS.iter().chain(&PATTERNS));
        }
        topics.sort_unstable();
        topics.dedup();
        topics
    }

    fn connect(&mut self) {
        let protocol = if self.dice.chance(1, 2) { Protocol::Sse } else { Protocol::WebSocket };
        let (names, after) = match self.left.pop() {
            Some((names, sequence)) if self.dice.chance(3, 4) => (names, Some(sequence)),
            _ => (self.some_names(), None),
        };
        let Some(slot) = self.shard.ring_mut().connect() else { return };
        let taken = position_of(&self.log, self.shard.metrics().events);
        let after_id = after.map(|sequence| EventId { epoch: EPOCH, sequence }.to_string());
        let mut head = support::peer::request(protocol, &names, after_id.as_deref());
        if protocol == Protocol::Sse && self.dice.chance(1, 2) {
            // Its stream comes without chunks.
            head = head.replace("HTTP/1.1", "HTTP/1.0");
        }
        let latest = self.dice.chance(1, 5);
        if latest {
            head = head.replacen(" HTTP/", "&slow=latest HTTP/", 1);
        }
        self.shard.ring_mut().peer_sends(slot, head.as_bytes());
        let topics = covered(&names);
        self.latest[slot as usize] = latest.then(HashMap::new);
        self.asked[slot as usize] = names;
        self.peers[slot as usize] = Some(Peer::new(protocol, topics, after, taken));
    }

    fn publish(&mut self) {
        let count = 1 + self.dice.roll(8);
        let sizes = (0..count).map(|_| match self.dice.roll(12) {
            0 => 9_000,
            1 => 1_000,
            _ => self.dice.roll(40) as usize,
        });
        let sizes: Vec<usize> = sizes.collect();
        self.publish_events(&sizes);
    }

    /// Publishes events of these sizes at once, as far as the hub takes them. Returns how many it
    /// took.
    fn publish_events(&mut self, sizes: &[usize]) -> usize {
        if self.stuck.is_some() {
            return 0;
        }
        let mut events = Vec::new();
        for padding in sizes {
            let topic = self.dice.roll(TOPICS.len() as u64) as usize;
            if self.has_holes && self.dice.chance(1, 3) {
                let more = self.dice.roll(4) as usize;
                self.log.resize(self.log.len() + more, HOLE);
            }
            let sequence = self.log.len() as u64 + 1;
            let event = Event {
                topic: Topic::new(TOPICS[topic]).expect("legal"),
                data: Data::text(Bytes::from(format!("{sequence} {}", "x".repeat(*padding)))).expect("UTF-8"),
                name: None,
                id: None,
                retry_ms: None,
                key: None,
            };
            if !self.accounts.has_room(&event.topic, Encoded::memory_of(&event)) {
                continue;
            }
            self.log.push(topic);
            self.demand.announce(sequence);
            let recorded = self.accounts.record(&event, sequence, event.published_bytes());
            let encoded = Encoded::new(event, EPOCH, sequence, self.now).counted_in(&recorded.account);
            events.push(Arc::new(encoded));
        }
        let taken = events.len();
        if taken > 0 {
            self.stuck = Some(Message::Batch(Arc::new(EncodedBatch { events: events.into() })));
            self.offer();
        }
        taken
    }

    fn ask_for_counters(&mut self) {
        if self.scrape.is_some() {
            return;
        }
        let (answer, scrape) = oneshot::channel();
        self.scrape = Some(scrape);
        assert!(self.outbox.ask(Question::Counters(answer)), "the only question");
    }

    /// No counter falls between two scrapes, whatever was counted too early.
    fn compare_counters(&mut self) {
        let Some(scrape) = &mut self.scrape else { return };
        let Ok(report) = scrape.try_recv() else { return };
        self.compare_with(report);
        self.scrape = None;
    }

    fn compare_with(&mut self, report: ShardReport) {
        let counted = |metrics: &ShardMetrics| {
            let formats = metrics.families.each_ref();
            formats.map(|counters| (counters.sends, counters.frames, counters.bytes))
        };
        for (before, now) in counted(&self.told).into_iter().zip(counted(&report.metrics)) {
            assert!(
                before.0 <= now.0 && before.1 <= now.1 && before.2 <= now.2,
                "sends, frames and bytes fell from {before:?} to {now:?}"
            );
        }
        self.told = report.metrics;
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
        self.compare_counters();
        self.check_bounds();
        let has_read_all = self.stuck.is_none() && self.outbox.is_empty();
        assert!(
            turn != Turn::Idle || !has_read_all || self.scrape.is_none(),
            "a sleeping shard owes an answer"
        );
        for slot in 0..self.peers.len() {
            self.listen_to(slot);
        }
        turn
    }

    /// No turn does more than its share of work, and memory is within what was declared.
    fn check_bounds(&self) {
        let work = self.shard.work();
        let visits_max = SWEEP_VISITS_MAX + SWEEP_VISITS_MAX / 2;
        // The last visit of either half of a step may outgrow it by one send.
        let send_max = self.limits.send_bytes_max.max(self.limits.frame_bytes_max());
        assert!(work.visits <= visits_max, "{work:?}");
        assert!(work.bytes <= visits_max * VISIT_BYTES + 2 * send_max, "{work:?}");
        assert!(work.events < EVENTS_PER_TURN_MAX + BATCH_EVENTS_MAX, "{work:?}");
        let (windows, held) = (self.shard.window_memory(), self.memory.held());
        assert!(windows <= held && held <= self.memory.bytes_max(), "{windows} of {held} bytes");
    }

    /// As many turns as it takes to accept, answer or close.
    fn turns(&mut self) {
        for _ in 0..8 {
            self.turn(1);
        }
    }

    /// The peer of `slot` reads what has come, and is checked.
    fn listen_to(&mut self, slot: usize) {
        let Some(peer) = &mut self.peers[slot] else { return };
        let taken = position_of(&self.log, self.shard.metrics().events);
        let bytes = self.shard.ring_mut().peer_takes(slot as Slot);
        for heard in peer.hear(&bytes) {
            let newest = self.log.len() as u64;
            match heard {
                Heard::Opened => peer.opened_at = Some(newest),
                Heard::Event(sequence) => {
                    self.heard += 1;
                    match &mut self.latest[slot] {
                        Some(seen) => check_latest(peer, sequence, &self.log, seen),
                        None => check_event(peer, sequence, &self.log),
                    }
                }
                Heard::Gap(topics) => {
                    let window_events = if self.forgetful { 0 } else { self.window_events };
                    check_gap(peer, &topics, &self.log[..taken as usize], window_events);
                }
                Heard::Refused(line) => panic!("refused: {line}"),
            }
        }
        for (number, by_id) in peer.ids.drain(..) {
            assert_eq!(number, by_id, "the data of this test begins with the sequence");
        }
        for _ in 0..std::mem::take(&mut peer.pongs_owed) {
            self.shard.ring_mut().peer_sends(slot as Slot, &support::peer::masked(0xa, b""));
        }
        if self.shard.ring_mut().ended(slot as Slot) {
            self.peer_ended(slot);
        }
    }

    fn peer_ended(&mut self, slot: usize) {
        let Some(peer) = self.peers[slot].take() else { return };
        // Nobody is hung up on without a reason: only slow sockets are, and only for want of
        // memory.
        let is_latest = self.latest[slot].is_some();
        let may_overrun = self.scarce && self.policy == SlowPolicy::Close && !is_latest;
        if self.draining && !peer.left && peer.opened_at.is_some() {
            let legal = match peer.ending() {
                Ending::CloseFrame(code) => code == 1012 || code == 1013 && may_overrun,
                Ending::EndOfStream => peer.protocol == Protocol::Sse && peer.is_whole(),
            };
            assert!(legal, "slot {slot} is told that the server goes: {:?}", peer.ending());
            if !may_overrun {
                self.check_complete(slot, &peer);
            }
        } else if !peer.left && peer.opened_at.is_some() {
            let legal = match peer.ending() {
                Ending::CloseFrame(1013) => may_overrun,
                Ending::EndOfStream => may_overrun && peer.is_whole(),
                Ending::CloseFrame(_) => false,
            };
            let closed = &self.shard.metrics().closed;
            let closed = CLOSE_TABLE.iter().filter(|row| closed[row.reason.index()] > 0);
            let reasons: Vec<_> = closed.map(|row| row.label).collect();
            assert!(legal, "slot {slot} was hung up on: {:?}, reasons so far: {reasons:?}", peer.ending());
        }
        if let Some(last) = peer.last.or(peer.after) {
            self.left.push((std::mem::take(&mut self.asked[slot]), last));
        }
        self.shard.ring_mut().peer_closes(slot as Slot);
    }

    /// One thing happens to a peer.
    fn meddle(&mut self) {
        let slot = self.dice.roll(SOCKETS as u64) as usize;
        let Some(peer) = &mut self.peers[slot] else { return };
        let ring = self.shard.ring_mut();
        match self.dice.roll(8) {
            0 | 1 => {
                peer.was_stalled = true;
                ring.stall(slot as Slot, true);
            }
            2..=4 => ring.stall(slot as Slot, false),
            5 => {
                peer.left = true;
                ring.peer_resets(slot as Slot);
            }
            6 => {
                peer.left = true;
                ring.peer_closes(slot as Slot);
            }
            _ if peer.protocol == Protocol::WebSocket && peer.opened_at.is_some() => {
                peer.pings += 1;
                ring.peer_sends(slot as Slot, &support::peer::masked(0x9, b"still there?"));
            }
            _ => {}
        }
    }

    /// Everybody may read again; afterwards nobody may lack anything.
    fn settle(&mut self) {
        for slot in 0..self.peers.len() {
            self.shard.ring_mut().stall(slot as Slot, false);
        }
        let mut idle = 0;
        for _ in 0..20_000 {
            self.offer();
            let rests = self.turn(1) == Turn::Idle && self.stuck.is_none();
            idle = if rests && self.shard.ring_mut().is_heard() { idle + 1 } else { 0 };
            if idle > 50 {
                break;
            }
        }
        assert!(idle > 50, "the shard comes to rest");
        // What nobody lacks any more goes with the next ticks. What TLS itself says to a socket
        // without room is tried again at each.
        let ticks = if self.shard.ring_mut().is_secure() { 40 } else { 8 };
        for _ in 0..ticks {
            self.turn(TICK_MS / 2);
            self.turns();
        }
        // A heartbeat of just now may still be in the ring.
        while self.turn(0) != Turn::Idle {}
        for (slot, peer) in self.peers.iter().enumerate() {
            let Some(peer) = peer.as_ref().filter(|peer| !peer.left) else { continue };
            assert!(
                peer.opened_at.is_some(),
                "slot {slot} stayed and was not let in: {peer:?} {:?}",
                self.shard
            );
            self.check_complete(slot, peer);
        }
        assert_eq!(self.shard.excess(), (0, 0), "nobody lacks anything");
        self.check_counters();
    }

    /// The last events are published while some do not read, and the shard is told to end: all who
    /// stayed get before the end what no notice names as lost.
    fn drain(&mut self) {
        for slot in 0..self.peers.len() {
            if let Some(peer) = &mut self.peers[slot]
                && self.dice.chance(1, 2)
            {
                peer.was_stalled = true;
                self.shard.ring_mut().stall(slot as Slot, true);
            }
        }
        for _ in 0..60 {
            self.publish();
            self.turn(1);
            self.offer();
        }
        let deadline = self.now.plus(std::time::Duration::from_secs(60));
        let (drain, mut done) = Drain::new(deadline);
        let mut messages = [Message::Drain(drain)].into_iter();
        while self.stuck.is_some() || messages.len() > 0 {
            self.stuck = self.stuck.take().or_else(|| messages.next());
            self.offer();
            self.turn(0);
        }
        self.draining = true;
        for slot in 0..self.peers.len() {
            self.shard.ring_mut().stall(slot as Slot, false);
        }
        for _ in 0..50_000 {
            if done.try_recv().is_ok() {
                self.stuck = Some(Message::End);
            }
            self.offer();
            if self.turn(1) == Turn::Ended {
                return;
            }
        }
        panic!("the drain comes to an end before its deadline");
    }
}

fn run(seed: u64, weather: Weather) {
    let mut world = World::new(seed, weather);
    // In one world of eight half of the peers speak TLS.
    if seed % 8 == 1 {
        world.shard.ring_mut().speak_tls(2);
    }
    for _ in 0..400 {
        match world.dice.roll(10) {
            0 => world.connect(),
            1..=3 => world.publish(),
            4 => world.meddle(),
            5 => world.ask_for_counters(),
            _ => {
                world.offer();
                let ms = if world.dice.chance(1, 50) { 900 } else { world.dice.roll(5) };
                world.turn(ms);
            }
        }
    }
    world.settle();
    world.drain();
}

/// The seed that `FANWAVE_SIM_SEED` names, else the first `many`, `FANWAVE_SIM_SEEDS` times as many
/// where that is set.
fn seeds(many: u64) -> std::ops::Range<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    match number("FANWAVE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..many * number("FANWAVE_SIM_SEEDS").unwrap_or(1),
    }
}

#[test]
fn every_subscriber_sees_a_gap_free_sequence_or_an_explicit_gap() {
    for seed in seeds(80) {
        let outcome = std::panic::catch_unwind(|| run(seed, Weather::Rough));
        if let Err(panic) = outcome {
            eprintln!("FANWAVE_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// A heartbeat that finds an answer waiting is no ping, and nobody owes it a pong.
#[test]
fn a_client_that_was_not_pinged_is_not_missed() {
    let mut world = World::new(0, Weather::Fair);
    let calm = config(64, SlowPolicy::Close, &mut world.dice);
    let heartbeat_ms = calm.limits.heartbeat_ms;
    (world.outbox, world.shard) =
        build(calm, Weather::Fair, 2, world.now, world.demand.clone(), world.memory.clone());
    let head = support::peer::request(Protocol::WebSocket, &[TOPICS[0]], None);
    let slot = world.shard.ring_mut().connect().expect("a free slot");
    world.shard.ring_mut().peer_sends(slot, head.as_bytes());
    world.turns();
    world.shard.ring_mut().peer_takes(slot);

    world.shard.ring_mut().peer_sends(slot, &support::peer::masked(0x9, b"ping"));
    world.turn(0); // the ring has read the ping, the shard has not
    world.turn(heartbeat_ms);
    world.turns();
    assert_eq!(world.shard.ring_mut().peer_takes(slot), b"\x8a\x04ping", "the answer to its own ping");
    world.turn(heartbeat_ms);
    world.turns();
    assert!(!world.shard.ring_mut().ended(slot), "it was asked nothing yet");
    assert_eq!(world.shard.ring_mut().peer_takes(slot), b"\x89\x00", "a ping");
}

/// A client that names an event on its way waits for it, also in the slot of another client that
/// waited for it and left.
#[test]
fn an_event_on_its_way_is_waited_for_in_a_slot_that_was_used_before() {
    let mut world = World::new(0, Weather::Fair);
    let fair = Arc::new(Config::default());
    (world.outbox, world.shard) =
        build(fair, Weather::Fair, 2, world.now, world.demand.clone(), world.memory.clone());
    let resume = support::peer::request(Protocol::Sse, &[TOPICS[0]], Some("mine"));
    let connect = |world: &mut World| {
        let ring = world.shard.ring_mut();
        let slot = ring.connect().expect("a free slot");
        ring.peer_sends(slot, resume.as_bytes());
        world.turns();
        slot
    };
    world.demand.announce(1);
    let first = connect(&mut world);
    assert_eq!(world.shard.ring_mut().peer_takes(first), b"", "nobody knows the event yet");
    world.shard.ring_mut().peer_resets(first);
    world.turns();
    assert_eq!(connect(&mut world), first, "the slot is used again");
    let event = Event {
        topic: Topic::new(TOPICS[0]).expect("legal"),
        data: Data::text(Bytes::from("1")).expect("UTF-8"),
        name: None,
        id: Some(CustomId::new("mine").expect("a legal id")),
        retry_ms: None,
        key: None,
    };
    let recorded = world.accounts.record(&event, 1, event.published_bytes());
    let encoded = Encoded::new(event, EPOCH, 1, world.now).counted_in(&recorded.account);
    let events = [Arc::new(encoded)].into();
    world.stuck = Some(Message::Batch(Arc::new(EncodedBatch { events })));
    world.offer();
    world.turns();
    let answer = String::from_utf8(world.shard.ring_mut().peer_takes(first)).expect("UTF-8");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(!answer.contains("fanwave-gap"), "nothing is missing after that event: {answer}");
}

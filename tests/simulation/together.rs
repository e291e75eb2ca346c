//! Promise: what the hub has accepted reaches every subscriber of every shard once and in one
//! order, what it has refused reaches nobody, and a topic without room holds up no other one.
//!
//! Set-up: the hub's own routes, intake, streams and drain, without sockets, on a runtime whose
//! time stands still; the real queues and doorbells; one to three shards, each on a simulated ring
//! of its own. In half of the worlds memory has a ceiling, and the meter that the hub reads is the
//! test's. In a third of them a source of dice gives the sequences, and half of these keep what has
//! left the windows. A seed decides who publishes
//! what and in which pieces, how far the hub's tasks run between two turns, which shard turns next
//! and how much time passes, who connects where, stalls, leaves, and comes back to another shard.
//! One more queue of the hub is read by the test itself.
//!
//! Expectation: each peer is checked from its own bytes, as with one shard; what each publisher was
//! told agrees with what the test's own queue brings; all shards have the same histories, however
//! short memory was, and nobody is refused any more once it is not; where a source keeps the past
//! nobody who reads is told of a gap that is no hole; the drain ends with all shards
//! done, and then no memory is held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fanwave::broadcast::{Doorbell, Inbox, Pressure, Taken};
use fanwave::config::{MemoryMax, StoreRules};
use fanwave::egress::EgressRing;
use fanwave::hub::memory::Reading;
use fanwave::hub::sim::SimHub;
use fanwave::hub::source::{Remote, Source};
use fanwave::hub::{EgressReport, HubError, HubSetup, ShardEnd, Surroundings};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use super::*;

#[path = "together/acts.rs"]
mod acts;
#[path = "together/publishers.rs"]
mod publishers;
#[path = "together/source.rs"]
mod source;
#[path = "together/tally.rs"]
mod tally;
use publishers::{Fate, MESSAGE_BYTES_MAX, Publishers};
use tally::Tally;

/// The topics of the other simulations, one that is to have no room, and one beside it.
const NAMES: [&str; 6] = [TOPICS[0], TOPICS[1], TOPICS[2], TOPICS[3], "hot", "cold"];
const HOT: usize = 4;
const COLD: usize = 5;
const SOCKETS_EACH: usize = 32;
/// The ceiling of memory, where there is one.
const CEILING: u64 = 64 << 20;
/// Worlds of one run.
const SEEDS: u64 = 50;

/// One shard and its peers.
struct Seat {
    shard: Shard<SimRing>,
    doorbell: Arc<Doorbell>,
    /// Since when it sleeps on its doorbell.
    asleep: Option<Stamp>,
    has_ended: bool,
    peers: Vec<Option<Peer>>,
}

struct Together {
    tally: Tally,
    dice: Dice,
    hub: SimHub,
    life: JoinHandle<Result<(), HubError>>,
    drain: Arc<Notify>,
    ends: mpsc::UnboundedSender<ShardEnd>,
    seats: Vec<Seat>,
    /// The test's own end of the broadcast.
    tap: Inbox,
    publishers: Publishers,
    /// Topic of every event that was broadcast, by sequence - 1; [`HOLE`] for what was left out.
    log: Vec<usize>,
    /// Another one gives the sequences.
    is_remote: bool,
    /// It keeps what has left the windows.
    is_kept: bool,
    /// The newest hole that was told of.
    hole: u64,
    /// The same of each topic alone.
    holes_of: [u64; NAMES.len()],
    /// Sequence of each of them, by the number in its data.
    sequences: HashMap<u64, u64>,
    demand: Arc<Demand>,
    memory: Arc<Memory>,
    limits: Limits,
    weather: Weather,
    policy: SlowPolicy,
    /// A history may be shorter than `window_events_max`.
    forgetful: bool,
    /// So little memory that slow subscribers may be cut.
    scarce: bool,
    draining: bool,
    /// What the process takes, by the meter that the hub reads; `None` without a ceiling.
    resident: Option<Arc<AtomicU64>>,
    /// Memory was so short that newcomers are refused and slow subscribers cut.
    squeezed: bool,
    /// A shard that turns less often than others, until the world comes to rest.
    lazy: usize,
    /// Last ids of peers that left.
    left: Vec<(Vec<usize>, u64)>,
}

fn pick<T: Copy>(dice: &mut Dice, from: &[T]) -> T {
    from[dice.roll(from.len() as u64) as usize]
}

/// True if a gap of these topics may be that of a hole: of all topics, or of one of these.
fn may_be_of_hole(peer: &Peer, topics: &[String], (all, of): (u64, &[u64])) -> bool {
    let from = peer.last.or(peer.after).unwrap_or(peer.connected_at);
    from < all || topics.iter().any(|name| from < of[index_of(name)])
}

/// The index of a topic.
fn index_of(name: &str) -> usize {
    NAMES.iter().position(|other| *other == name).expect("a topic")
}

fn small_limits(dice: &mut Dice) -> Limits {
    let mut limits = Limits {
        message_bytes_max: MESSAGE_BYTES_MAX,
        window_events_max: pick(dice, &[4, 8, 64, 1_024]),
        window_bytes_max: pick(dice, &[46_000, 1 << 20]),
        window_ms_max: pick(dice, &[1_000, 60_000, 60_000]),
        window_bytes_total_max: pick(dice, &[2 << 20, 4 << 20, 512 << 20]),
        hub_queue_events_max: pick(dice, &[1, 8, 64, 16_384]),
        shard_queue_batches_max: 1 + dice.roll(4) as usize,
        send_bytes_max: pick(dice, &[4 << 10, 20 << 10, 256 << 10]),
        zero_copy_bytes_min: pick(dice, &[0, 6 << 10]),
        heartbeat_ms: 2_000,
        drain_ms_max: 120_000,
        backfill_bytes_per_second: pick(dice, &[1 << 20, 16 << 20]),
        backfills_per_shard_max: pick(dice, &[1, 2, 64]),
        ..Limits::default()
    };
    limits.hub_queue_bytes_max = pick(dice, &[limits.event_memory_max(), 64 << 20]);
    limits.check().expect("legal limits");
    limits
}

impl Together {
    /// `needs_source`: a source of dice gives the sequences; else a third of the seeds have one.
    fn new(seed: u64, needs_source: bool) -> Together {
        let mut dice = Dice::new(seed);
        let weather = if dice.chance(1, 2) { Weather::Fair } else { Weather::Rough };
        let policy = if dice.chance(1, 3) { SlowPolicy::Skip } else { SlowPolicy::Close };
        let mut limits = small_limits(&mut dice);
        let is_remote = dice.chance(1, 3) || needs_source;
        let is_kept = is_remote && dice.chance(1, 2);
        if is_kept {
            limits.window_events_max = 4;
        }
        let resident = dice.chance(1, 2).then(Arc::<AtomicU64>::default);
        let memory_max = resident.as_ref().map_or(MemoryMax::None, |_| MemoryMax::Bytes(CEILING as usize));
        // Shards ask the hub for the past where there is a store; here the test answers.
        let store = is_kept.then(|| StoreRules {
            data: "nowhere".into(),
            promise: Default::default(),
            bytes_max: 0,
            age_ms_max: None,
        });
        let config = Config { slow: policy, limits: limits.clone(), memory_max, store, ..Config::default() };
        let config = Arc::new(config);
        let planted = resident.clone();
        let meter = move || Reading {
            resident: planted.as_ref().map_or(0, |resident| resident.load(Ordering::Relaxed)),
            ..Reading::default()
        };
        let (demand, memory) = (Arc::<Demand>::default(), Memory::new(&limits));
        let (ends, shard_ends) = mpsc::unbounded_channel();
        let (mut outboxes, mut inboxes) = (Vec::new(), Vec::new());
        for _ in 0..1 + dice.roll(3) {
            let (outbox, inbox) = path(limits.shard_queue_batches_max).expect("eventfd");
            outboxes.push(outbox);
            inboxes.push(inbox);
        }
        // It never holds up the hub.
        let (outbox, tap) = path(1 << 16).expect("eventfd");
        outboxes.push(outbox);
        let (remote, submissions) = Remote::new();
        let source = if is_remote { Source::Remote(remote) } else { Source::Local };
        let setup = HubSetup {
            estate: None,
            config: config.clone(),
            epoch: EPOCH,
            source,
            outboxes,
            demand: demand.clone(),
            memory: memory.clone(),
            egress: EgressReport::default(),
            listen: Default::default(),
            control: Vec::new(),
            control_connections_max: 0,
            shard_ends,
            surroundings: Surroundings { meter: Box::new(meter), ..Surroundings::default() },
        };
        let drain = Arc::new(Notify::new());
        let drained = drain.clone();
        let address = "127.0.0.1:8081".parse().expect("an address");
        let (hub, life) = SimHub::new(setup, address, async move { drained.notified().await });
        if is_remote {
            let kept = source::Kept::default();
            if is_kept {
                hub.keep_past(Box::new(source::Past::new(kept.clone(), seed)));
            }
            tokio::spawn(source::serve(hub.clone(), submissions, seed, kept));
        }
        let mut seats = Vec::new();
        for (number, inbox) in inboxes.into_iter().enumerate() {
            let room = pick(&mut dice, &[8, 20, 2_048]);
            let ring = SimRing::new(SOCKETS_EACH, weather, seed ^ number as u64).recording().with_room(room);
            let setup = ShardSetup {
                number,
                cpu: 0,
                config: config.clone(),
                epoch: EPOCH,
                demand: demand.clone(),
                memory: memory.clone(),
                connections_max: SOCKETS_EACH,
                admission: Default::default(),
            };
            seats.push(Seat {
                doorbell: inbox.doorbell().clone(),
                shard: Shard::new(setup, ring, inbox, hub.now()),
                asleep: None,
                has_ended: false,
                peers: (0..SOCKETS_EACH).map(|_| None).collect(),
            });
        }
        let scarce = limits.window_bytes_total_max < 512 << 20;
        let lazy = dice.roll(4) as usize;
        Together {
            tally: Tally::default(),
            dice,
            hub,
            life: tokio::spawn(life),
            drain,
            ends,
            seats,
            tap,
            publishers: Publishers::new(),
            log: Vec::new(),
            is_remote,
            is_kept,
            hole: 0,
            holes_of: [0; NAMES.len()],
            sequences: HashMap::new(),
            demand,
            memory,
            weather,
            policy,
            forgetful: limits.window_ms_max < 60_000
                || limits.window_bytes_max < 1 << 20
                || scarce
                || resident.is_some(),
            scarce,
            limits,
            draining: false,
            resident,
            squeezed: false,
            lazy,
            left: Vec::new(),
        }
    }

    /// A peer comes to some shard; with the id of one that left, perhaps elsewhere.
    fn connect(&mut self) {
        let (topics, after) = match self.left.pop() {
            // Some have been away for long.
            Some((topics, sequence)) if self.is_kept && self.dice.chance(1, 2) => {
                (topics, Some(self.dice.roll(sequence + 1)))
            }
            Some((topics, sequence)) if self.dice.chance(3, 4) => (topics, Some(sequence)),
            _ => {
                let count = 1 + self.dice.roll(3);
                let mut topics: Vec<usize> =
                    (0..count).map(|_| self.dice.roll(TOPICS.len() as u64) as usize).collect();
                topics.sort_unstable();
                topics.dedup();
                let is_back = self.is_kept && !self.log.is_empty() && self.dice.chance(1, 2);
                (topics, is_back.then(|| self.dice.roll(self.log.len() as u64 + 1)))
            }
        };
        let at = self.dice.roll(self.seats.len() as u64) as usize;
        self.join(at, topics, after);
    }

    fn join(&mut self, at: usize, topics: Vec<usize>, after: Option<u64>) -> Option<Slot> {
        let protocol = if self.dice.chance(1, 2) { Protocol::Sse } else { Protocol::WebSocket };
        let without_chunks = protocol == Protocol::Sse && self.dice.chance(1, 2);
        let seat = &mut self.seats[at];
        let slot = seat.shard.ring_mut().connect()?;
        let names: Vec<&str> = topics.iter().map(|topic| NAMES[*topic]).collect();
        let after_id = after.map(|sequence| EventId { epoch: EPOCH, sequence }.to_string());
        let mut head = support::peer::request(protocol, &names, after_id.as_deref());
        if without_chunks {
            head = head.replace("HTTP/1.1", "HTTP/1.0");
        }
        seat.shard.ring_mut().peer_sends(slot, head.as_bytes());
        let taken = position_of(&self.log, seat.shard.metrics().events);
        self.tally.came_early += usize::from(after.is_some_and(|after| after > taken));
        seat.peers[slot as usize] = Some(Peer::new(protocol, topics, after, taken));
        // Its ring wakes a shard too.
        seat.doorbell.ring();
        Some(slot)
    }

    /// Somebody publishes, goes on with a stream, or ends one.
    fn publish(&mut self) {
        let dice = &mut self.dice;
        let topic = |dice: &mut Dice| dice.roll(TOPICS.len() as u64) as usize;
        let padding = |dice: &mut Dice| match dice.roll(16) {
            0 => 9_000,
            1 => 5_000,
            2 => 1_000,
            3 if dice.chance(1, 8) => MESSAGE_BYTES_MAX,
            _ => dice.roll(40) as usize,
        };
        match dice.roll(8) {
            0..=2 => {
                let (topic, padding) = (topic(dice), padding(dice));
                self.publishers.single(&self.hub, topic, padding);
            }
            kind => {
                let is_batch = kind == 3;
                let going_on = self.publishers.some_open(dice).filter(|_| !is_batch);
                let stream = match going_on {
                    Some(stream) if dice.chance(5, 6) => stream,
                    _ => self.publishers.open(&self.hub),
                };
                for _ in 0..dice.roll(12) {
                    let (topic, padding) = (topic(dice), padding(dice));
                    self.publishers.write(stream, topic, padding, dice);
                }
                match dice.roll(8) {
                    _ if is_batch => self.publishers.close(stream),
                    0 => self.publishers.close(stream),
                    1 => self.publishers.break_off(stream),
                    _ => self.publishers.send_piece(stream, dice),
                }
            }
        }
    }

    /// One thing happens to a peer.
    fn meddle(&mut self) {
        let here =
            |at: usize, slot: &usize| self.seats[at].peers[*slot].as_ref().is_some_and(|peer| !peer.left);
        let peers = (0..self.seats.len())
            .flat_map(|at| (0..SOCKETS_EACH).filter(move |slot| here(at, slot)).map(move |slot| (at, slot)));
        let peers: Vec<(usize, usize)> = peers.collect();
        if peers.is_empty() {
            return;
        }
        let (at, slot) = pick(&mut self.dice, &peers);
        let seat = &mut self.seats[at];
        let peer = seat.peers[slot].as_mut().expect("it is here");
        let (ring, slot) = (seat.shard.ring_mut(), slot as Slot);
        match self.dice.roll(6) {
            0 | 1 => {
                peer.was_stalled = true;
                ring.stall(slot, true);
            }
            2 | 3 => ring.stall(slot, false),
            4 => {
                peer.left = true;
                ring.peer_resets(slot);
            }
            _ => {
                peer.left = true;
                ring.peer_closes(slot);
            }
        }
        let gone = peer.left.then(|| (peer.topics.clone(), peer.last.or(peer.after)));
        seat.doorbell.ring();
        if let Some((topics, Some(last))) = gone {
            // Some come back at once, to the shard that is furthest behind.
            let taken = |at: &usize| self.seats[*at].shard.metrics().events;
            let furthest = (0..self.seats.len()).min_by_key(taken).expect("a shard");
            if self.dice.chance(1, 2) {
                self.join(furthest, topics, Some(last));
            } else {
                self.left.push((topics, last));
            }
        }
    }

    fn stall_all(&mut self, stalled: bool) {
        for seat in &mut self.seats {
            for slot in 0..SOCKETS_EACH {
                if stalled && self.dice.chance(1, 2) {
                    continue;
                }
                if let Some(peer) = &mut seat.peers[slot] {
                    peer.was_stalled |= stalled;
                }
                seat.shard.ring_mut().stall(slot as Slot, stalled);
            }
            seat.doorbell.ring();
        }
    }

    /// Lets the hub's tasks run some steps, as many as the dice say, and hears what they say.
    async fn breathe(&mut self) {
        for _ in 0..self.dice.roll(5) {
            tokio::task::yield_now().await;
        }
        self.read_tap();
        self.publishers.hear(self.draining);
    }

    /// Reads what the hub has broadcast.
    fn read_tap(&mut self) {
        while let Some(message) = self.tap.try_recv() {
            match message {
                Message::Batch(batch) => {
                    for encoded in &batch.events {
                        let data = std::str::from_utf8(encoded.event.data.bytes()).expect("UTF-8");
                        let number = data.split(' ').next().and_then(|number| number.parse().ok());
                        let number: u64 = number.expect("data begins with a number");
                        let tried = self.publishers.of(number);
                        let next = self.log.len() as u64 + 1;
                        assert!(
                            encoded.sequence == next || self.is_remote && encoded.sequence > next,
                            "what this process gives has no hole: {} after {next}",
                            encoded.sequence
                        );
                        self.log.resize(encoded.sequence as usize - 1, HOLE);
                        assert_eq!(encoded.event.topic.as_str(), NAMES[tried.topic]);
                        assert_ne!(tried.fate, Fate::Refused, "event {number} was refused");
                        self.log.push(tried.topic);
                        let twice = self.sequences.insert(number, encoded.sequence);
                        assert_eq!(twice, None, "event {number} is broadcast once");
                    }
                }
                Message::Histories(_) | Message::Reload(_) | Message::Removal(_) => {}
                Message::Hole(position) => {
                    assert!(position > self.log.len() as u64);
                    self.log.resize(position as usize, HOLE);
                    self.hole = position;
                }
                Message::TopicHole(hole) => {
                    assert!(hole.position > self.log.len() as u64);
                    self.log.resize(hole.position as usize, HOLE);
                    self.holes_of[index_of(hole.topic.as_str())] = hole.position;
                }
                Message::Restore(..) | Message::Doors(..) | Message::Era(_) => {}
                Message::Drain(mut drain) => drain.say_done(),
                Message::End => {
                    let end = ShardEnd::new(self.seats.len(), Ok::<(), String>(()));
                    self.ends.send(end).expect("the hub listens");
                }
            }
        }
    }

    /// A turn of one shard, unless it sleeps. True if it has nothing to do.
    fn turn(&mut self, at: usize) -> bool {
        self.read_tap();
        let now = self.hub.now();
        let seat = &mut self.seats[at];
        if seat.has_ended {
            return true;
        }
        if let Some(since) = seat.asleep {
            if now.ns_since(since) >= TICK_MS * 1_000_000 {
                seat.doorbell.ring();
            }
            if !seat.doorbell.wait(Duration::ZERO).expect("an eventfd") {
                return true;
            }
            seat.asleep = None;
            seat.shard.awake();
        }
        self.squeezed |= self.memory.pressure() >= Pressure::Newcomers;
        let turn = seat.shard.turn(now).expect("the simulated ring does not fail");
        let (windows, held) = (seat.shard.window_memory(), self.memory.held());
        assert!(windows <= held && held <= self.memory.bytes_max(), "{windows} of {held} bytes");
        for slot in 0..SOCKETS_EACH {
            self.listen_to(at, slot);
        }
        let seat = &mut self.seats[at];
        if turn == Turn::Ended {
            seat.has_ended = true;
            self.ends.send(ShardEnd::new(at, Ok::<(), String>(()))).expect("the hub listens");
        }
        // What peers do on the simulated ring rings no doorbell.
        let is_quiet = turn == Turn::Idle && !seat.shard.ring_mut().wants_submit();
        if is_quiet && self.dice.chance(1, 2) && seat.shard.may_sleep() {
            seat.asleep = Some(now);
            self.tally.slept += 1;
        }
        turn == Turn::Idle
    }

    /// Time passes, the hub's tasks run, and every shard turns, in an order by dice. True if none
    /// of them has anything to do.
    async fn round(&mut self, ms: u64) -> bool {
        if ms > 0 {
            tokio::time::advance(Duration::from_millis(ms)).await;
        }
        let mut at_rest = true;
        let first = self.dice.roll(self.seats.len() as u64) as usize;
        for at in 0..self.seats.len() {
            self.breathe().await;
            at_rest &= self.turn((first + at) % self.seats.len());
        }
        let is_over = |seat: &Seat| {
            let backfill = &seat.shard.metrics().backfill;
            (backfill.serving, backfill.waiting) == (0, 0)
        };
        at_rest
            && self.publishers.waiting == 0
            && self.hub.queue() == (0, 0)
            && self.seats.iter().all(is_over)
    }

    /// The peer of `slot` reads what has come, and is checked.
    fn listen_to(&mut self, at: usize, slot: usize) {
        let seat = &mut self.seats[at];
        let Some(mut peer) = seat.peers[slot].take() else { return };
        let taken = position_of(&self.log, seat.shard.metrics().events) as usize;
        let bytes = seat.shard.ring_mut().peer_takes(slot as Slot);
        for heard in peer.hear(&bytes) {
            match heard {
                Heard::Opened => peer.opened_at = Some(self.demand.newest()),
                Heard::Event(number) => {
                    self.tally.heard += 1;
                    let sequence = self.sequences.get(&number).copied();
                    let sequence = sequence.unwrap_or_else(|| panic!("event {number} was not broadcast"));
                    check_event(&mut peer, sequence, &self.log);
                }
                Heard::Gap(topics) if may_be_of_hole(&peer, &topics, (self.hole, &self.holes_of)) => {
                    let newest = self.log.len() as u64;
                    peer.lost.extend(topics.iter().map(|name| (index_of(name), newest)));
                    self.tally.holes += 1;
                }
                Heard::Gap(topics) => {
                    let is_slow = self.weather == Weather::Rough || peer.was_stalled;
                    assert!(is_slow || peer.last.is_none(), "a peer that keeps up has a gap: {peer:?}");
                    assert!(is_slow || !self.is_kept, "a source has it all: {peer:?}");
                    let window_events = if self.forgetful { 0 } else { self.limits.window_events_max };
                    check_gap(&mut peer, &topics, &self.log[..taken], window_events);
                    self.tally.gaps += 1;
                }
                Heard::Refused(line) => {
                    assert!(self.draining || self.squeezed, "refused: {line}");
                    self.tally.turned_away += usize::from(!self.draining);
                }
            }
        }
        for (number, by_id) in peer.ids.drain(..) {
            assert_eq!(self.sequences[&number], by_id, "shard {at} has the ids of all");
        }
        for _ in 0..std::mem::take(&mut peer.pongs_owed) {
            seat.shard.ring_mut().peer_sends(slot as Slot, &support::peer::masked(0xa, b""));
        }
        if seat.shard.ring_mut().ended(slot as Slot) {
            self.peer_ended(at, slot, peer);
        } else {
            seat.peers[slot] = Some(peer);
        }
    }

    fn peer_ended(&mut self, at: usize, slot: usize, peer: Peer) {
        let is_slow = self.weather == Weather::Rough || peer.was_stalled;
        // One that does not read what it lacks gives its place to others.
        let may_be_cut = (self.scarce || self.squeezed || self.is_kept) && is_slow;
        if !peer.left && peer.opened_at.is_some() {
            let drained = self.draining
                && match peer.ending() {
                    Ending::CloseFrame(code) => code == 1012,
                    Ending::EndOfStream => peer.protocol == Protocol::Sse && peer.is_whole(),
                };
            let cut = may_be_cut && matches!(peer.ending(), Ending::EndOfStream | Ending::CloseFrame(1013));
            let closed = self.seats[at].shard.metrics().closed;
            let closed = CLOSE_TABLE.iter().filter(|row| closed[row.reason.index()] > 0);
            let reasons: Vec<_> = closed.map(|row| row.label).collect();
            assert!(drained || cut, "shard {at} hung up: {:?}, reasons so far: {reasons:?}", peer.ending());
            self.tally.drained += usize::from(drained);
            self.tally.cut += usize::from(!drained);
            if drained && !may_be_cut {
                self.check_complete(&peer);
            }
        }
        if let (false, Some(last)) = (peer.left, peer.last.or(peer.after)) {
            self.left.push((peer.topics, last));
        }
        self.seats[at].shard.ring_mut().peer_closes(slot as Slot);
    }

    /// The process takes more or less than before.
    fn plant(&mut self, share: u64) {
        let Some(resident) = &self.resident else { return };
        resident.store(CEILING / 100 * share, Ordering::Relaxed);
    }

    /// The hub runs a little, and then some shard turns, or time passes.
    async fn step(&mut self) {
        self.breathe().await;
        if self.dice.chance(1, 60) {
            // All turn after that: a shard that sees much time pass at once would miss a pong.
            self.round(900).await;
            self.round(0).await;
            self.round(0).await;
        }
        if self.dice.chance(1, 12) {
            let share = pick(&mut self.dice, &[0, 30, 85, 89, 89, 95, 98, 400]);
            self.plant(share);
        }
        self.squeezed |= self.memory.pressure() >= Pressure::Newcomers;
        let ms = self.dice.roll(3);
        tokio::time::advance(Duration::from_millis(ms)).await;
        let at = self.dice.roll(self.seats.len() as u64) as usize;
        if at != self.lazy || self.dice.chance(1, 6) {
            self.turn(at);
        }
    }
}

async fn play(seed: u64, needs_source: bool) -> (Arc<Memory>, Tally) {
    let mut world = Together::new(seed, needs_source);
    let memory = world.memory.clone();
    for _ in 0..200 {
        match world.dice.roll(10) {
            0 => world.connect(),
            1..=3 => world.publish(),
            4 => world.meddle(),
            _ => world.step().await,
        }
    }
    if world.resident.is_some() {
        world.squeeze().await;
    }
    world.settle().await;
    // Subscribers that skip keep no memory.
    if world.scarce && world.policy == SlowPolicy::Close && !world.is_remote {
        world.saturate().await;
        world.cut_one().await;
    }
    world.drain().await;
    world.tally.accepted = count_of(&world.log) as usize;
    world.tally.refused = world.publishers.tried.len() - world.tally.accepted;
    world.tally.left_out = world.log.len() - world.tally.accepted;
    for seat in &world.seats {
        world.tally.backfills += seat.shard.metrics().backfill.completed as usize;
        world.tally.backfilled += seat.shard.metrics().backfill.events as usize;
    }
    world.tally.stalls = world.hub.stalls() as usize;
    world.tally.history_cuts = world.hub.history_cuts() as usize;
    (memory, world.tally)
}

/// Plays with these seeds.
fn play_all(seeds: impl Iterator<Item = u64>, needs_source: bool) -> Tally {
    let mut all = Tally::default();
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
            let (memory, tally) = runtime.block_on(play(seed, needs_source));
            drop(runtime);
            assert_eq!(memory.held(), 0, "no event is held by anybody");
            tally
        });
        match outcome {
            Ok(tally) => all.add(&tally),
            Err(panic) => {
                eprintln!("FANWAVE_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    all
}

#[test]
fn what_is_accepted_reaches_everybody_on_every_shard_and_what_is_refused_nobody() {
    let all = play_all(seeds(SEEDS), false);
    if seeds(SEEDS).count() as u64 >= SEEDS {
        assert!(all.accepted > 10_000 && all.refused > 4_000 && all.heard > 40_000, "{all:?}");
        assert!(all.gaps > 10 && all.cut > 3 && all.drained > 500 && all.saturated > 10, "{all:?}");
        assert!(all.left_out > 1_000 && all.holes > 100, "{all:?}");
        assert!(all.backfills > 20 && all.backfilled > 200, "{all:?}");
        assert!(all.turned_away > 5 && all.history_cuts > 20, "{all:?}");
        assert!(all.came_early > 5 && all.slept > 1_000 && all.stalls > 1_000, "{all:?}");
    }
    eprintln!("{all:?}");
}

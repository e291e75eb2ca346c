//! Promise: nodes that read one log are one service. A subscriber that moves between them gets what
//! its topics have, once and in the order of the log, or is told of a gap; and it is told of one
//! only where something may be missing.
//!
//! Set-up: a log of dice, and two hubs with one or two shards each. The log takes what is published
//! on either node. It answers late or not at all, leaves sequences out, drops its oldest lines,
//! loses its newest ones, or is made anew: then its epoch is another one. Each node reads it at its
//! own pace, in pieces, and is cut off from it now and then. Peers come to any node, and go on at
//! any other with the id that they had last.
//!
//! Expectation: each peer is checked from its own bytes against the log; an id that a publisher was
//! told is that of its event; in the end both nodes have the same epoch, and nobody lacks anything.
//!
//! `FANWAVE_DICE_SEEDS` says how many worlds are played, `FANWAVE_SIM_SEEDS` how many times as many.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use fanwave::broadcast::Taken;
use fanwave::hub::sim::SimHub;
use fanwave::hub::source::{Remote, Source, Submission, Submissions, Wish};
use fanwave::hub::{EgressReport, HubSetup, Surroundings};
use fanwave::refusal::{Refusal, RefusalReason};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::advance;

use super::*;

#[path = "nodes/log.rs"]
mod log;
use log::*;

const NODES: usize = 2;
/// Worlds of one run.
const SEEDS: u64 = 100;
const SOCKETS_EACH: usize = 12;

/// A subscriber of one node.
struct Mover {
    peer: Peer,
    /// It has all of its topics up to this place, save what it was told to have lost; `None` until
    /// it has begun.
    has: Option<usize>,
    /// Topics of which it was told that something up to a place may be missing.
    lost: HashMap<usize, usize>,
    /// It named an event that its node had not read.
    is_early: bool,
}

struct Seat {
    node: usize,
    shard: Shard<SimRing>,
    movers: Vec<Option<Mover>>,
}

/// What happened in all worlds, so that no promise is kept for want of a case.
#[derive(Debug, Default)]
struct Tally {
    heard: usize,
    moved: usize,
    early: usize,
    gaps: usize,
    answers: usize,
    epochs: usize,
}

struct Nodes {
    dice: Dice,
    log: SharedLog,
    hubs: Vec<SimHub>,
    tasks: Vec<JoinHandle<()>>,
    seats: Vec<Seat>,
    /// Who has left: topics, the last id, and up to where they have everything.
    left: Vec<(Vec<usize>, String, usize)>,
    published: u64,
    answered: mpsc::UnboundedReceiver<(u64, u16, String)>,
    tell: mpsc::UnboundedSender<(u64, u16, String)>,
    tally: Tally,
    /// Whether shards had something to do at last, and nodes something to read.
    is_restless: (bool, bool),
}

impl Nodes {
    fn new(seed: u64) -> Nodes {
        let mut dice = Dice::new(seed);
        let log = SharedLog::default();
        lock(&log).floors.push(0);
        let (mut hubs, mut tasks, mut seats) = (Vec::new(), Vec::new(), Vec::new());
        for node in 0..NODES {
            let limits = Limits {
                hub_queue_events_max: [4, 64, 16_384][dice.roll(3) as usize],
                shard_queue_batches_max: 1 + dice.roll(4) as usize,
                heartbeat_ms: 2_000,
                ..Limits::default()
            };
            let config = Arc::new(Config { limits: limits.clone(), ..Config::default() });
            let (demand, memory) = (Arc::<Demand>::default(), Memory::new(&limits));
            let mut outboxes = Vec::new();
            for number in 0..1 + dice.roll(2) as usize {
                let (outbox, inbox) = path(limits.shard_queue_batches_max).expect("eventfd");
                outboxes.push(outbox);
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
                let ring = SimRing::new(SOCKETS_EACH, Weather::Fair, seed ^ number as u64).recording();
                let shard = Shard::new(setup, ring, inbox, Stamp::now());
                let movers = (0..SOCKETS_EACH).map(|_| None).collect();
                seats.push(Seat { node, shard, movers });
            }
            let (remote, submissions) = Remote::new();
            let (ends, shard_ends) = mpsc::unbounded_channel();
            let setup = HubSetup {
                estate: None,
                config,
                epoch: EPOCH,
                source: Source::Remote(remote),
                outboxes,
                demand,
                memory,
                egress: EgressReport::default(),
                listen: Default::default(),
                control: Vec::new(),
                control_connections_max: 0,
                shard_ends,
                surroundings: Surroundings::default(),
            };
            let address = "127.0.0.1:8081".parse().expect("an address");
            let (hub, life) = SimHub::new(setup, address, std::future::pending());
            tasks.push(tokio::spawn(async move {
                let _ends = ends;
                let _ = life.await;
            }));
            let seed = seed.wrapping_mul(2) + node as u64;
            tasks.push(tokio::spawn(take(log.clone(), node, submissions, seed)));
            tasks.push(tokio::spawn(read(hub.clone(), log.clone(), node, seed)));
            hubs.push(hub);
        }
        let (tell, answered) = mpsc::unbounded_channel();
        let (left, tally) = (Vec::new(), Tally::default());
        Nodes {
            dice,
            log,
            hubs,
            tasks,
            seats,
            left,
            published: 0,
            answered,
            tell,
            tally,
            is_restless: (true, true),
        }
    }

    /// A peer comes to some node, perhaps with the id that it had elsewhere.
    fn connect(&mut self) {
        let at = self.dice.roll(self.seats.len() as u64) as usize;
        let back = if self.dice.chance(3, 4) { self.left.pop() } else { None };
        let (topics, after, has) = match back {
            Some((topics, id, has)) => (topics, Some(id), Some(has)),
            None => {
                let count = 1 + self.dice.roll(3);
                let mut topics: Vec<usize> =
                    (0..count).map(|_| self.dice.roll(TOPICS.len() as u64) as usize).collect();
                topics.sort_unstable();
                topics.dedup();
                (topics, None, None)
            }
        };
        let seat = &mut self.seats[at];
        let Some(slot) = seat.shard.ring_mut().connect() else { return };
        let names: Vec<&str> = topics.iter().map(|topic| TOPICS[*topic]).collect();
        let head = support::peer::request(Protocol::Sse, &names, after.as_deref());
        seat.shard.ring_mut().peer_sends(slot, head.as_bytes());
        let read = lock(&self.log).place_of(self.hubs[seat.node].last());
        let is_early = has.is_some_and(|has| has > read);
        self.tally.moved += usize::from(has.is_some());
        self.tally.early += usize::from(is_early);
        let mut peer = Peer::new(Protocol::Sse, topics, None, 0);
        peer.last_id = after;
        seat.movers[slot as usize] = Some(Mover { peer, has, lost: HashMap::new(), is_early });
    }

    fn leave(&mut self) {
        let at = self.dice.roll(self.seats.len() as u64) as usize;
        let slot = self.dice.roll(SOCKETS_EACH as u64) as usize;
        let seat = &mut self.seats[at];
        let Some(mover) = seat.movers[slot].as_ref().filter(|mover| mover.peer.opened_at.is_some()) else {
            return;
        };
        // What it was told as lost it does not ask for again.
        if let (Some(id), Some(has)) = (&mover.peer.last_id, mover.has)
            && mover.lost.is_empty()
        {
            self.left.push((mover.peer.topics.clone(), id.clone(), has));
        }
        seat.shard.ring_mut().peer_resets(slot as Slot);
        seat.movers[slot] = None;
    }

    fn publish(&mut self) {
        self.published += 1;
        let number = self.published;
        let topic = TOPICS[self.dice.roll(TOPICS.len() as u64) as usize];
        let data = format!("{number} {}", "x".repeat(self.dice.roll(60) as usize));
        let node = self.dice.roll(NODES as u64) as usize;
        let request = Request::post(format!("/topics/{topic}")).header("host", "localhost");
        let answer = self.hubs[node].ask(request.body(Body::from(data)).expect("a request"));
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let (head, body) = answer.await.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.expect("a whole answer");
            let text = String::from_utf8(body.into()).expect("UTF-8");
            let _ = tell.send((number, head.status.as_u16(), text));
        });
    }

    /// An id that was told is that of its event, and what was refused is nowhere.
    fn hear_answers(&mut self) {
        while let Ok((number, status, text)) = self.answered.try_recv() {
            let log = lock(&self.log);
            let place = log.places.get(&number);
            match status {
                200 => {
                    let id = log.lines[place.expect("it was taken") - 1].id;
                    assert!(text.contains(&format!("\"id\":\"{id}\"")), "{number} is {id}: {text}");
                    self.tally.answers += 1;
                }
                503 => assert_eq!(place, None, "{number} was refused"),
                504 => {}
                other => panic!("{other}: {text}"),
            }
        }
    }

    /// Something befalls the log.
    fn befall(&mut self) {
        let mut log = lock(&self.log);
        let node = self.dice.roll(NODES as u64) as usize;
        match self.dice.roll(16) {
            0..=3 => log.away[node] = true,
            4..=11 => log.away = [false; NODES],
            12 | 13 => log.drop_oldest(self.dice.roll(20) as usize),
            14 => log.lose_head(self.dice.roll(5) as usize),
            _ => log.make_anew(),
        }
    }

    /// The hubs' tasks run a little, then a shard turns, and its peers read.
    async fn step(&mut self, ms: u64) {
        for _ in 0..self.dice.roll(6) {
            tokio::task::yield_now().await;
        }
        self.hear_answers();
        advance(Duration::from_millis(ms)).await;
        let at = self.dice.roll(self.seats.len() as u64) as usize;
        self.turn(at);
    }

    /// True if the shard has nothing to do.
    fn turn(&mut self, at: usize) -> bool {
        let seat = &mut self.seats[at];
        let now = self.hubs[seat.node].now();
        let turn = seat.shard.turn(now).expect("the simulated ring does not fail");
        for slot in 0..SOCKETS_EACH {
            let bytes = seat.shard.ring_mut().peer_takes(slot as Slot);
            let Some(mover) = &mut seat.movers[slot] else { continue };
            mover.hear(&bytes, &lock(&self.log), &mut self.tally);
            assert_eq!(mover.peer.pongs_owed, 0, "an event stream is not pinged");
            assert!(!seat.shard.ring_mut().ended(slot as Slot), "nobody is hung up on: {:?}", mover.peer);
        }
        turn == Turn::Idle
    }

    /// Everything is there again, and then nobody lacks anything.
    async fn settle(&mut self) {
        lock(&self.log).away = [false; NODES];
        self.rest().await;
        for (at, name) in TOPICS.into_iter().enumerate() {
            self.published += 1;
            let data = Data::string(self.published.to_string());
            let topic = Topic::new(name).expect("legal");
            let event = Event { topic, data, name: None, id: None, retry_ms: None, key: None };
            lock(&self.log).append(event, self.published, at, 0);
        }
        self.rest().await;
        let log = lock(&self.log);
        for hub in &self.hubs {
            assert_eq!(hub.last(), log.lines.last().expect("a line").id, "both have come to the end");
        }
        for mover in self.seats.iter().flat_map(|seat| seat.movers.iter().flatten()) {
            let has = mover.has.expect("all are let in");
            let newest = (1..=log.lines.len()).rev();
            for topic in &mover.peer.topics {
                let newest = newest.clone().find(|place| log.lines[place - 1].topic == *topic);
                assert!(newest.is_none_or(|newest| newest <= has), "{newest:?} of {topic}: {:?}", mover.peer);
            }
        }
    }

    /// Returns once nobody has anything to do, not even one who waits for an event.
    async fn rest(&mut self) {
        let mut rest = 0;
        for _ in 0..5_000 {
            rest = if self.round().await { rest + 1 } else { 0 };
            if rest > 25 {
                return;
            }
        }
        let movers = self.seats.iter().flat_map(|seat| seat.movers.iter().flatten());
        let waiting: Vec<&Mover> = movers.filter(|mover| !mover.is_in()).collect();
        let ends: Vec<EventId> = self.hubs.iter().map(SimHub::last).collect();
        panic!("hubs and shards come to rest: {ends:?}, {} wait: {:?}", waiting.len(), self.is_restless);
    }

    async fn round(&mut self) -> bool {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        self.hear_answers();
        advance(Duration::from_millis(100)).await;
        // The first turn may be that of a tick.
        let mut is_quiet = true;
        for at in 0..self.seats.len() {
            is_quiet &= (0..4).map(|_| self.turn(at)).last().expect("four turns");
        }
        let is_read = {
            let log = lock(&self.log);
            let newest = log.lines.iter().rposition(|line| line.lost_in.is_none()).map_or(0, |at| at + 1);
            log.read.iter().all(|read| read.0 == log.epoch() && read.1 >= newest.max(log.dropped))
        };
        let mut movers = self.seats.iter().flat_map(|seat| seat.movers.iter().flatten());
        self.is_restless = (!is_quiet, !is_read);
        is_quiet && is_read && movers.all(Mover::is_in)
    }
}

impl Mover {
    /// It has been let in.
    fn is_in(&self) -> bool {
        self.has.is_some() && self.peer.opened_at.is_some()
    }

    fn hear(&mut self, bytes: &[u8], log: &Log, tally: &mut Tally) {
        let before = self.peer.last_id.clone();
        let all = self.peer.hear(bytes);
        if let (Some(_), Some(id)) = (self.peer.after.take(), &self.peer.first_id) {
            // A stream without a start begins with an id. So does one whose start is of an epoch
            // before; where that is not known here, all that the node has follows behind a gap.
            let begins = log.place_of(id.parse().expect("an id of ours"));
            self.has = Some(self.has.map_or(begins, |_| 0));
        }
        for heard in all {
            match heard {
                Heard::Opened => self.peer.opened_at = Some(0),
                Heard::Refused(line) => panic!("refused: {line}"),
                Heard::Gap(topics) => {
                    tally.gaps += 1;
                    let has = self.has.expect("it has begun");
                    assert!(
                        log.trouble.is_some_and(|trouble| has <= trouble) || self.is_early,
                        "nothing is missing after {has} ({before:?}, trouble at {:?}): {:?}",
                        log.trouble,
                        self.peer
                    );
                    for name in topics {
                        let topic = TOPICS.iter().position(|topic| *topic == name).expect("one of ours");
                        self.lost.insert(topic, log.lines.len());
                    }
                }
                Heard::Event(number) => {
                    tally.heard += 1;
                    let place = log.places[&number];
                    self.check(place, log);
                }
            }
        }
    }

    /// This event must be the next of its topics, save what was told as lost.
    fn check(&mut self, place: usize, log: &Log) {
        let line = &log.lines[place - 1];
        assert!(self.peer.topics.contains(&line.topic), "an event of another topic");
        let has = self.has.expect("it has begun");
        // What was lost before its epoch began was never one of it.
        let id: EventId = self.peer.last_id.as_ref().expect("it has one").parse().expect("one of ours");
        let epoch = id.epoch.0 - EPOCH.0;
        let is_owed = |line: &Line| line.lost_in.is_none_or(|lost| lost > epoch);
        assert!(place > has, "once, and in order: {place} after {has}: {:?}", self.peer);
        for topic in &self.peer.topics {
            let lost = self.lost.get(topic).copied().unwrap_or(0);
            let from = has.max(lost).min(place);
            let lines = (from + 1..place).map(|at| (at, &log.lines[at - 1]));
            let missing = lines.filter(|(_, line)| is_owed(line)).find(|(_, line)| line.topic == *topic);
            let missing = missing.map(|(at, _)| at);
            assert_eq!(missing, None, "of topic {topic}, between {has} and {place}: {:?}", self.peer);
        }
        // What was under way comes behind the notice.
        if self.lost.get(&line.topic).is_some_and(|lost| *lost < place) {
            self.lost.remove(&line.topic);
        }
        self.has = Some(place);
    }
}

async fn play(seed: u64) -> Tally {
    let mut world = Nodes::new(seed);
    for _ in 0..250 {
        match world.dice.roll(12) {
            0 | 1 => world.connect(),
            2..=4 => world.publish(),
            5 => world.leave(),
            6 if world.dice.chance(1, 2) => world.befall(),
            _ => {
                let ms = if world.dice.chance(1, 20) { 300 } else { world.dice.roll(3) };
                world.step(ms).await;
            }
        }
    }
    world.settle().await;
    world.tally.epochs = lock(&world.log).epoch();
    for task in world.tasks {
        task.abort();
    }
    world.tally
}

#[test]
fn dice_nodes_that_read_one_log_are_one_service() {
    let mut all = Tally::default();
    let many = std::env::var("FANWAVE_DICE_SEEDS").ok().and_then(|many| many.parse().ok());
    let is_one = std::env::var_os("FANWAVE_SIM_SEED").is_some();
    let seeds = many.filter(|_| !is_one).map_or_else(|| seeds(SEEDS), |many| 0..many);
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
            runtime.block_on(play(seed))
        });
        match outcome {
            Ok(Tally { heard, moved, early, gaps, answers, epochs }) => {
                all.heard += heard;
                all.moved += moved;
                all.early += early;
                all.gaps += gaps;
                all.answers += answers;
                all.epochs += epochs;
            }
            Err(panic) => {
                eprintln!("FANWAVE_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{all:?}");
    if seeds.count() as u64 >= SEEDS {
        assert!(all.heard > 20_000 && all.answers > 3_000 && all.moved > 400, "{all:?}");
        assert!(all.early > 15 && all.gaps > 1_500 && all.epochs > 80, "{all:?}");
    }
}

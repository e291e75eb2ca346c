//! All that a shard knows except its ring: connections, topics, batches, counters, and the queue of
//! those to attend to.
//!
//! Handlers of completions and messages work on this alone; whatever needs the ring is marked here
//! and done in the bounded steps of a turn.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::access::Access;
use super::backfill::Backfills;
use super::batch::Batches;
use super::connections::{Connections, FAR, Membership, Phase};
use super::greeting::Greeting;
use super::holes::Telling;
use super::publishers::Publishers;
use super::slots::Slots;
use super::slow::SlowSends;
use super::subscribe::HeldBack;
use super::ticks::{DrainPass, HangUps, Look};
use super::tokens::Tokens;
use super::topics::Topics;
use crate::admission::{Admission, Bucket};
use crate::broadcast::{
    Asker, Demand, Drain, EncodedBatch, Eras, HistorySlice, Holdings, Memory, Past, PastAsker, Question,
    Removal, TopicQuery, Uplink,
};
use crate::clock::Stamp;
use crate::close::CloseReason;
use crate::config::Config;
use crate::config::limits::{TICK_MS, TOPICS_PER_ANSWER_MAX};
use crate::egress::{Batch, Ledger, Payload, Slot};
use crate::event::{Epoch, Topic};
use crate::log::Pace;
use crate::metrics::{ShardMetrics, ShardReport, TopicReport};
use crate::wire::{Family, Format};

/// What a shard is told at start.
#[derive(Debug, Clone)]
pub struct ShardSetup {
    /// The shard's number, from 0.
    pub number: usize,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Of the whole process.
    pub config: Arc<Config>,
    /// Whose sequences come first.
    pub epoch: Epoch,
    /// Where to say which formats have subscribers.
    pub demand: Arc<Demand>,
    /// What all events alive weigh.
    pub memory: Arc<Memory>,
    /// Subscribers that this shard takes.
    pub connections_max: usize,
    /// Who may come in besides.
    pub admission: Admission,
}

/// What every connection of a format may need.
#[derive(Debug)]
pub(super) struct Answers {
    pub heartbeat: [Rc<Batch>; Format::COUNT],
    /// Stands for what is still to be found (`greeting`).
    pub nothing: Rc<Batch>,
}

/// Numbers without a pattern (xorshift64*): enough to spread clients, and the same for the same
/// shard of an epoch.
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    fn new(seed: u64) -> Jitter {
        // Zero would stay zero.
        Jitter(seed | 1)
    }

    /// A number below `bound`, which is not 0.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32 % bound
    }
}

/// What one turn has done: each count is bounded, whatever waits (`config/limits`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Events taken from the hub.
    pub events: usize,
    /// Connections that a sweep step attended to or passed.
    pub visits: usize,
    /// Bytes handed to the ring.
    pub bytes: usize,
}

/// The counters that a send which was not taken takes back.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    sends: u64,
    frames: u64,
    bytes: u64,
}

/// A shard without its ring.
#[derive(Debug)]
pub struct State {
    pub(super) setup: ShardSetup,
    pub(super) connections: Connections,
    /// Connections with TLS, and their streams.
    pub(super) secure: Slots,
    pub(super) topics: Topics,
    pub(super) batches: Batches,
    pub(super) publishers: Publishers,
    pub(super) tokens: Tokens,
    pub(super) asker: Asker,
    /// Answers to the commands of one client that are to be sent together; empty between two.
    pub(super) replies: Vec<u8>,
    /// An empty buffer for the next message of a client.
    pub(super) message: Vec<u8>,
    pub(super) ledger: Ledger,
    pub(super) metrics: ShardMetrics,
    /// What was sent, as far as the ring has told which sends it did not take.
    settled: [Sent; Family::COUNT],
    pub(super) answers: Answers,
    /// Slots to attend to, each at most once (`Connection::queued`).
    pub(super) ready: VecDeque<Slot>,
    /// Who named an event that another shard may have had first: asked again when the sequence
    /// beside it is taken.
    pub(super) held_back: Vec<HeldBack>,
    /// Who waits until its patterns are known, with its topics; at most `HELD_BACK_MAX`.
    pub(super) learning: Vec<(Slot, Vec<Topic>)>,
    /// Who still gets retained values before any news.
    pub(super) greetings: HashMap<Slot, Greeting>,
    /// Who still gets events from before the windows.
    pub(super) backfills: Backfills,
    /// Position of the newest event, removal or hole taken from the hub.
    pub(super) sequence: u64,
    /// What ids of ours mean.
    pub(super) eras: Eras,
    /// Events up to this position may be missing that never came here; 0 if none are.
    pub(super) hole: u64,
    /// How far all connections have been told of that; `None` once they have.
    pub(super) telling: Option<Telling>,
    /// `sequence` at the last tick.
    pub(super) sequence_at_tick: u64,
    /// The ring has HTTP/2.
    pub(super) carries: bool,
    /// Subscribers now, by format; those that give commands count also while they have no topic.
    pub(super) subscribers: [usize; Format::COUNT],
    /// Memberships of topics now, by format: what the hub encodes a format for.
    pub(super) memberships: [usize; Format::COUNT],
    /// Which entries are to be looked at because time has passed.
    pub(super) look: Look,
    /// What was told of its memory.
    holdings: Holdings,
    /// Whose sends wait longest.
    pub(super) slow: SlowSends,
    /// `None` while serving.
    pub(super) drain: Option<Drain>,
    /// How fast a draining shard hangs up.
    pub(super) hang_ups: HangUps,
    /// How many connections may be accepted by now.
    pub(super) bucket: Bucket,
    /// How far the drain's look at all connections has come; `None` between two of them.
    pub(super) drain_pass: Option<DrainPass>,
    /// The date for answers; `None` until the shard is told.
    pub(super) date: Option<String>,
    /// Why accepts failed since the last tick.
    pub(super) accept_errno: Option<i32>,
    /// Batches of which sends were taken whole since the last turn, by format.
    pub(super) completed: [Vec<Rc<Batch>>; Format::COUNT],
    /// What subscribers got; `None` without an access log.
    pub(super) access: Option<Access>,
    /// Of lines that say why a connection ends or a request is refused, by reason.
    paces: [Pace; CloseReason::COUNT],
    /// Of warnings that retained values are given up, and how many that were at the last look.
    retained_pace: Pace,
    given_up_told: u64,
    /// Of warnings that accepts fail.
    pub(super) accept_pace: Pace,
    /// Spreads clients that are asked to come back.
    pub(super) jitter: Jitter,
    /// Runs of events that the elevator has offered to everybody, to be recorded in the next turn.
    pub(super) offered: Vec<(Stamp, u32)>,
    /// When this turn began.
    pub(super) now: Stamp,
    /// The number of this turn, from 1.
    pub(super) turn: u64,
    /// `now` in ticks of `TICK_MS` since `start`.
    pub(super) tick: u32,
    /// What this turn has done.
    pub(super) work: Work,
    start: Stamp,
}

impl State {
    pub(super) fn new(
        setup: ShardSetup,
        (uplink, asker, past_asker): (Uplink, Asker, PastAsker),
        now: Stamp,
    ) -> State {
        let ledger = Ledger::default();
        let answers = Answers {
            heartbeat: Format::ALL
                .map(|format| Batch::answer(Bytes::from_static(format.spec().heartbeat), &ledger)),
            nothing: Batch::answer(Bytes::new(), &ledger),
        };
        State {
            connections: Connections::default(),
            secure: Slots::default(),
            topics: Topics::new(&setup.config.limits, &setup.config.rules),
            batches: Batches::new(setup.config.limits.send_bytes_max, &ledger),
            publishers: Publishers::new(uplink),
            tokens: Tokens::new(setup.config.tokens.keys(None), now),
            asker,
            replies: Vec::new(),
            message: Vec::new(),
            ledger,
            metrics: ShardMetrics::default(),
            settled: Default::default(),
            answers,
            ready: VecDeque::new(),
            held_back: Vec::new(),
            learning: Vec::new(),
            greetings: HashMap::new(),
            backfills: Backfills::new(past_asker, now),
            sequence: 0,
            eras: Eras::new(setup.epoch.into()),
            hole: 0,
            telling: None,
            sequence_at_tick: 0,
            carries: false,
            subscribers: [0; Format::COUNT],
            memberships: [0; Format::COUNT],
            look: Look::default(),
            holdings: Holdings::default(),
            slow: SlowSends::default(),
            drain: None,
            hang_ups: HangUps::default(),
            bucket: Bucket::default(),
            drain_pass: None,
            date: None,
            accept_errno: None,
            completed: Default::default(),
            offered: Vec::new(),
            access: setup.config.access_log.then(Access::default),
            paces: [Pace::DETAIL; CloseReason::COUNT],
            retained_pace: Pace::WARNING,
            given_up_told: 0,
            accept_pace: Pace::WARNING,
            jitter: Jitter::new(setup.epoch.0 ^ setup.number as u64),
            now,
            turn: 0,
            tick: 0,
            work: Work::default(),
            start: now,
            setup,
        }
    }

    /// Begins a turn: the time is `now` until the next one. Returns how many ticks have passed.
    pub(super) fn begin_turn(&mut self, now: Stamp) -> u32 {
        self.now = now;
        self.turn += 1;
        self.work = Work::default();
        self.topics.begin_turn();
        self.tokens.begin_turn();
        let tick = (now.ns_since(self.start) / (TICK_MS * 1_000_000)) as u32;
        let passed = tick - self.tick;
        self.tick = tick;
        passed
    }

    /// Milliseconds from the begin of the current tick to now.
    pub(super) fn ms_in_tick(&self) -> u64 {
        self.now.ns_since(self.start) / 1_000_000 % TICK_MS
    }

    /// Tells the hub what this shard holds.
    pub(super) fn tell_holdings(&mut self) {
        let waiting: u64 = self.metrics.families.iter().map(|family| family.sends_in_flight).sum();
        let now = Holdings {
            sockets: self.connections.sockets(),
            waiting: waiting as usize,
            histories: self.topics.history_memory(),
        };
        self.setup.memory.tell(std::mem::replace(&mut self.holdings, now), now);
    }

    /// Puts a batch of events into the windows and sends the elevators round.
    pub(super) fn take_events(&mut self, batch: &EncodedBatch) {
        for event in &batch.events {
            assert!(event.sequence > self.sequence, "the hub broadcasts in order");
            self.sequence = event.sequence;
            self.metrics.intake_to_shard.saturating_record(self.now.ns_since(event.intake));
            self.topics.push(event);
        }
        self.tell_of_retained();
        self.metrics.events += batch.events.len() as u64;
        self.work.events += batch.events.len();
    }

    /// Begins with what a former process had.
    pub(super) fn restore(&mut self, past: &Past) {
        assert!(self.connections.is_empty(), "nobody was let in before");
        self.sequence = past.sequence;
        self.hole = past.hole;
        self.topics.restore(past);
    }

    /// The operator is told that retained values were given up: by one shard, for all have the
    /// same.
    fn tell_of_retained(&mut self) {
        let given_up = self.topics.retained_totals().given_up;
        let more = given_up - std::mem::replace(&mut self.given_up_told, given_up);
        if more > 0
            && self.setup.number == 0
            && let Some(left_out) = self.retained_pace.admit(self.now)
        {
            tracing::warn!(
                given_up,
                left_out,
                "retained values take a sixteenth of --window-bytes-total-max: the oldest are given up"
            );
        }
    }

    /// What came of a topic so far goes.
    pub(super) fn take_removal(&mut self, removal: &Removal) {
        assert!(removal.sequence > self.sequence, "the hub broadcasts in order");
        self.sequence = removal.sequence;
        self.topics.remove(&removal.topic, removal.sequence);
    }

    /// Queues `slot` for attention, once.
    pub(super) fn mark_ready(&mut self, slot: Slot) {
        let connection = self.connections.get_mut(slot);
        if !connection.queued {
            connection.queued = true;
            self.ready.push_back(slot);
        }
    }

    /// Queues bytes that only this connection gets, behind those that already wait.
    pub(super) fn answer(&mut self, slot: Slot, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let control = &mut self.connections.get_mut(slot).control;
        let batch = match control {
            None => Batch::answer(bytes, &self.ledger),
            Some(waiting) => {
                let both = [waiting.bytes_at(0), &bytes].concat().into();
                Batch::retold(Payload::Own(both), waiting.frames(), &self.ledger)
            }
        };
        *control = Some(batch);
        self.mark_ready(slot);
    }

    /// Ends a connection after its last words: no more events, the peer gets what is queued and
    /// then the end of the stream.
    pub(super) fn finish(&mut self, slot: Slot, reason: CloseReason) {
        assert!(reason.row().ending.may_be_in_order(), "{reason:?} cuts");
        self.depart(slot, reason);
        let tick = self.tick;
        let connection = self.connections.get_mut(slot);
        connection.phase = Phase::Finishing;
        connection.since = tick;
        self.mark_ready(slot);
    }

    /// Cuts a connection. One that was about to end in order keeps the reason for that.
    pub(super) fn abort(&mut self, slot: Slot, reason: CloseReason) {
        let ends_already = !matches!(self.connections.get(slot).phase, Phase::Handshake | Phase::Open);
        assert!(ends_already || reason.row().ending.may_cut(), "{reason:?} does not cut");
        self.depart(slot, reason);
        let tick = self.tick;
        let connection = self.connections.get_mut(slot);
        if connection.phase != Phase::Closing {
            connection.phase = Phase::Aborting;
            connection.since = tick;
            connection.control = None;
            connection.partial = None;
            self.mark_ready(slot);
        }
    }

    /// Counts the end of a connection and takes a subscriber out of its topics; does nothing the
    /// second time.
    fn depart(&mut self, slot: Slot, reason: CloseReason) {
        let connection = self.connections.get_mut(slot);
        let subscriber = match connection.phase {
            Phase::Handshake | Phase::Carrying | Phase::Serving => false,
            Phase::Open => true,
            _ => return,
        };
        connection.reason = reason;
        // It has nothing more to say, and hears of what it said only by its events.
        self.publishers.forget(slot);
        self.tokens.forget(slot);
        self.greetings.remove(&slot);
        self.backfills.forget(slot);
        self.metrics.closed[reason.index()] += 1;
        let peer = connection.peer();
        if let Some(left_out) = self.detail(reason) {
            tracing::debug!(%peer, reason = reason.row().label, left_out, "closing");
        }
        if !subscriber {
            return;
        }
        let connection = self.connections.get(slot);
        let (format, latest) = (connection.format, connection.wants_latest());
        while let Some(member) = self.connections.get_mut(slot).memberships.pop() {
            self.leave_topic(member, format, latest);
        }
        self.subscribers[format.index()] -= 1;
        self.metrics.families[format.family().index()].connections -= 1;
    }

    /// A subscriber with this place in a topic is one no more.
    pub(super) fn leave_topic(&mut self, member: Membership, format: Format, latest: bool) {
        if latest {
            self.topics.end_latest(member.topic);
        }
        let memberships = &mut self.memberships[format.index()];
        *memberships -= 1;
        if *memberships == 0 {
            self.setup.demand.end(format);
        }
        let left = self.topics.leave(member.topic, member.position, format.family());
        let Some((moved, under_way)) = left else { return };
        let connection = self.connections.get_mut(moved);
        let members = connection.memberships.as_mut_slice();
        let place = members.binary_search_by_key(&member.topic, |place| place.topic);
        members[place.expect("a subscriber knows its topics")].position = member.position;
        if under_way {
            // The elevator may miss it.
            let mut from = connection.memberships.begins_after(member.topic, connection.cursor);
            if from == FAR {
                from = self.backfills.held(moved, member.topic);
            }
            match connection.wants_latest() {
                true => self.topics.meet_latest(member.topic, from),
                false => drop(self.topics.meet(member.topic, from, from, false)),
            }
            self.mark_ready(moved);
        }
    }

    /// `Some` if the log takes another line about a connection for this reason now: with the number
    /// of those that were left out.
    pub(super) fn detail(&mut self, reason: CloseReason) -> Option<u64> {
        let wanted = tracing::enabled!(tracing::Level::DEBUG);
        wanted.then(|| self.paces[reason.index()].admit(self.now)).flatten()
    }

    /// The ring has told all that came of the sends so far: what they count for is right.
    pub(super) fn settle(&mut self) {
        for (settled, counters) in self.settled.iter_mut().zip(&self.metrics.families) {
            *settled = Sent { sends: counters.sends, frames: counters.frames, bytes: counters.bytes };
        }
    }

    /// Answers a question. An asker that has gone meanwhile misses nothing.
    pub(super) fn reply(&mut self, question: Question, enters: u64) {
        match question {
            Question::Keys(keys, taken) => {
                self.take_keys(keys);
                let _ = taken.send(());
            }
            Question::Counters(answer) => drop(answer.send(self.report(enters))),
            Question::Presence(topics, answer) => drop(answer.send(self.crowds(&topics))),
            Question::Slow(answer) => drop(answer.send(self.slowest())),
            Question::Topics(query, answer) => drop(answer.send(self.list(&query))),
            // The ring has them.
            Question::Listeners(_) => {}
            Question::History(from, answer) => {
                let slice = self.topics.history(from.as_ref());
                drop(answer.send(HistorySlice { sequence: self.sequence, ..slice }));
            }
        }
    }

    /// The counters. None of them falls between two reports: sends that the ring has yet to tell of
    /// are left out.
    fn report(&self, enters: u64) -> ShardReport {
        let mut metrics = self.metrics.clone();
        metrics.enters = enters;
        metrics.connections = self.connections.sockets() as u64;
        metrics.http2.streams = self.connections.streams() as u64;
        for (counters, settled) in metrics.families.iter_mut().zip(self.settled) {
            let Sent { sends, frames, bytes } = settled;
            (counters.sends, counters.frames, counters.bytes) = (sends, frames, bytes);
        }
        let (excess_events, excess_bytes) = self.topics.excess();
        ShardReport {
            shard: self.setup.number,
            cpu: self.setup.cpu,
            metrics,
            window_events: self.topics.window_events() as u64,
            window_bytes: self.topics.window_bytes() as u64,
            excess_events: excess_events as u64,
            excess_bytes: excess_bytes as u64,
            retained: self.topics.retained_totals(),
            pinned_bytes: self.ledger.bytes() as u64,
            oldest_send_ms: self.slowest().first().map_or(0, |slowest| slowest.waits_ms),
            sequence: self.sequence,
            subscribers_max: self.setup.connections_max as u64,
        }
    }

    fn crowds(&self, topics: &[Topic]) -> Vec<[u64; Family::COUNT]> {
        let here = |topic: &Topic| {
            let index = self.topics.find(topic);
            index.map_or([0; Family::COUNT], |index| self.topics.get(index).by_family.map(u64::from))
        };
        topics.iter().map(here).collect()
    }

    fn list(&self, query: &TopicQuery) -> Vec<TopicReport> {
        match query {
            TopicQuery::One(name) => {
                let index = self.topics.find(name);
                index.map(|index| topic_report(self.topics.get(index))).into_iter().collect()
            }
            TopicQuery::Page { after, most } => {
                let most = (*most).min(TOPICS_PER_ANSWER_MAX);
                self.topics.after(after).take(most).map(topic_report).collect()
            }
        }
    }
}

fn topic_report(topic: &super::topics::TopicState) -> TopicReport {
    let (retained, retained_newest) = topic.retained_report();
    TopicReport {
        topic: topic.name.clone(),
        subscribers: topic.by_family.map(u64::from),
        window_events: topic.window.len() as u64,
        window_bytes: topic.window.weight().published as u64,
        oldest: topic.window.front().map_or(0, |event| event.sequence),
        newest: if topic.window.is_empty() { retained_newest } else { topic.window.newest() },
        retained: retained as u64,
    }
}

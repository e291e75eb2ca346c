//! Takes events in, gives them their sequence or has their source give it, encodes them, and hands
//! them to every shard in batches.
//!
//! Invariants worth naming:
//! - Sequences rise, over events, removals of topics and holes; what is refused gets none. Those of
//!   this process are gapless, those of another source need not be (`source`).
//! - The queue is `queued` (no shard has these events) after `sending` (some shards may have this
//!   batch). Its events and bytes stay counted until every shard has them, and bound what
//!   publishers can make us hold.
//! - A batch goes to every shard before the next batch goes to any, so all shards see one order and
//!   nothing is lost.
//! - `stalled` is true exactly while a shard's queue refused the batch in `sending`.
//!
//! Not here: waiting. All functions return at once; who retries a stalled queue, and who waits for
//! room, is the [`Hub`](super::Hub)'s business.

use std::collections::VecDeque;
use std::sync::Arc;

use super::backfill::Removals;
use super::keys::Keys;
use super::source::{Published, Source, Wish};
use super::topics::{Recorded, TopicTable};
use crate::broadcast::{
    Demand, Encoded, EncodedBatch, Era, Memory, Message, Outbox, Pressure, Refused, Removal, Taken,
    TopicHole, Wanted,
};
use crate::clock::Stamp;
use crate::config::Limits;
use crate::config::limits::{HISTORY_STEPS, SINGLES_SHARE};
use crate::event::{Epoch, Event, TOPIC_BYTES_MAX, Topic};
use crate::handover::state::PastKey;
use crate::log::Pace;
use crate::publishing::{IdempotencyKey, names_many, reserved};
use crate::refusal::{Refusal, RefusalCounts, RefusalReason};
use crate::wire::Format;

/// No frame is longer than so many times the weight of its event: a line break, the dearest of all
/// bytes, takes 7 on an event stream, and what frames have besides is less than what an event
/// weighs besides.
const FRAME_GROWTH_MAX: usize = 7;

/// What the hub counts, from the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubCounters {
    /// Events accepted.
    pub events: u64,
    /// Their bytes: data, topic, name and id.
    pub bytes: u64,
    /// Batches that every shard has got.
    pub batches: u64,
    /// Topics that were removed.
    pub removals: u64,
    /// Holes that subscribers were told of.
    pub holes: u64,
    /// Times a batch met a full shard queue.
    pub stalls: u64,
    /// What was not taken, by reason.
    pub refused: RefusalCounts,
}

/// What became of a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// Every shard has every accepted event.
    All,
    /// At least one shard's queue is full; try again later.
    Stalled,
}

/// What goes to all shards in one order.
#[derive(Debug)]
enum Package {
    Batch(Arc<EncodedBatch>),
    Removal(Arc<Removal>),
    Hole(u64),
    TopicHole(Arc<TopicHole>),
    Era(Era),
    /// [`Message::Histories`].
    Histories(usize),
}

/// What waits for its turn, in its order.
#[derive(Debug)]
enum Queued {
    Event(Arc<Encoded>),
    /// It goes alone.
    Word(Package),
}

impl Package {
    fn message(&self) -> Message {
        match self {
            Package::Batch(batch) => Message::Batch(batch.clone()),
            Package::Removal(removal) => Message::Removal(removal.clone()),
            Package::Hole(position) => Message::Hole(*position),
            Package::TopicHole(hole) => Message::TopicHole(hole.clone()),
            Package::Era(era) => Message::Era(*era),
            Package::Histories(bytes) => Message::Histories(*bytes),
        }
    }
}

/// A package on its way.
#[derive(Debug)]
struct Sending {
    package: Package,
    /// Events that it counts in the queue; any other word is one.
    events: usize,
    /// Memory of its events.
    bytes: usize,
    /// Indexes of the shards that have not got it, never empty between calls.
    waiting: Vec<usize>,
}

/// The sequence, the queue and what is remembered of both.
#[derive(Debug)]
pub struct Intake {
    /// Whose sequences come now.
    pub(super) era: Era,
    /// Who gives them.
    pub(super) source: Source,
    /// Why the source takes no publishes, if it does not.
    degraded: Option<String>,
    pub(super) demand: Arc<Demand>,
    outboxes: Vec<Outbox>,
    /// Position of the last accepted event, removal or hole, 0 before the first.
    pub(super) sequence: u64,
    /// The newest hole; 0 if there is none.
    pub(super) hole: u64,
    queued: VecDeque<Queued>,
    sending: Option<Sending>,
    /// Events of `queued` and `sending`, and other words; at most `queue_events_max`.
    events: usize,
    /// Memory of `queued` and `sending`; at most `queue_bytes_max`.
    bytes: usize,
    stalled: bool,
    /// What all histories may take by the word that was sent last, and what they may take.
    histories: usize,
    histories_max: usize,
    /// The last parcel was such a word: events have their turn.
    said_histories: bool,
    /// The log knows that publishers are refused for lack of room; until the queue is empty.
    full_told: bool,
    /// Of warnings that publishers are refused for lack of room, and because subscribers are
    /// behind.
    full_pace: Pace,
    behind_pace: Pace,
    memory_pace: Pace,
    /// True from the begin of the drain on; nothing is accepted then.
    draining: bool,
    /// Nothing is placed any more, wherever it comes from.
    over: bool,
    /// True while the process hands over; nothing is accepted then.
    pub(super) paused: bool,
    /// The time of day, as it was told last, in milliseconds since 1970.
    unix_ms: u64,
    /// Formats that had subscribers at the last flush: between two of them what an event weighs
    /// does not change.
    wanted: Wanted,
    pub(super) topics: TopicTable,
    pub(super) keys: Keys,
    /// What is past, and no past any more.
    pub(super) removals: Removals,
    counters: HubCounters,
    queue_events_max: usize,
    queue_bytes_max: usize,
    batch_events_max: usize,
    batch_bytes_max: usize,
    /// Bytes of the longest frame that an event may have.
    frame_bytes_max: usize,
    /// Memory that an event may take.
    pub(super) event_memory_max: usize,
}

/// Why an event is not taken now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// The queue to the shards is full.
    Queue,
    /// Events of its topic, or of all topics, take as much memory as they may, until subscribers
    /// have come on.
    Memory,
    /// The process takes nearly as much memory as it may.
    Ceiling,
    /// The source has as much to do as it may.
    Source,
}

impl Intake {
    /// An empty queue before the first event.
    pub fn new(
        epoch: Epoch,
        limits: &Limits,
        demand: Arc<Demand>,
        memory: Arc<Memory>,
        outboxes: Vec<Outbox>,
    ) -> Intake {
        Intake {
            era: epoch.into(),
            source: Source::Local,
            degraded: None,
            demand,
            outboxes,
            sequence: 0,
            hole: 0,
            queued: VecDeque::new(),
            sending: None,
            events: 0,
            bytes: 0,
            stalled: false,
            full_told: false,
            histories: limits.history_memory_max(),
            histories_max: limits.history_memory_max(),
            said_histories: false,
            full_pace: Pace::DETAIL,
            behind_pace: Pace::WARNING,
            memory_pace: Pace::WARNING,
            draining: false,
            over: false,
            paused: false,
            unix_ms: 0,
            wanted: Wanted::NONE,
            topics: TopicTable::new(limits.topics_max, memory),
            keys: Keys::default(),
            removals: Removals::default(),
            counters: HubCounters::default(),
            queue_events_max: limits.hub_queue_events_max,
            queue_bytes_max: limits.hub_queue_bytes_max,
            batch_events_max: limits.batch_events_max(),
            batch_bytes_max: limits.batch_bytes_max(),
            frame_bytes_max: limits.frame_bytes_max(),
            event_memory_max: limits.event_memory_max(),
        }
    }

    /// The time of day, as it was told last.
    pub(super) fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    /// The same with another source of sequences.
    pub fn with_source(self, source: Source) -> Intake {
        Intake { source, ..self }
    }

    /// Tells the time of day, which the events from now on were taken in at.
    pub fn tell_time(&mut self, unix_ms: u64) {
        self.unix_ms = unix_ms;
    }

    /// Memory that `event` would take now.
    pub fn memory_of(&self, event: &Event) -> usize {
        Encoded::memory_of(event) + Encoded::memory_of_rare(event, self.kept_of(event))
    }

    /// Rare formats whose frames `event` would keep: those wanted, if it then takes no more memory
    /// than any event may.
    fn kept_of(&self, event: &Event) -> Wanted {
        let memory = || Encoded::memory_of(event) + Encoded::memory_of_rare(event, self.wanted);
        let fits = self.wanted == Wanted::NONE || memory() <= self.event_memory_max;
        if fits { self.wanted } else { Wanted::NONE }
    }

    /// Whether an event of `topic` that takes so much memory would be taken now. An empty queue
    /// takes any event.
    pub fn room(&self, topic: &Topic, memory: usize) -> Result<(), NoRoom> {
        self.fits(topic, memory, self.queue_events_max, self.queue_bytes_max)
    }

    /// The same for an event of a stream. Streams wait, and take every place as soon as it is free;
    /// so some places are left to single publishes, which are refused instead. While the process
    /// hands over they wait too.
    pub fn room_for_stream(&self, topic: &Topic, memory: usize) -> Result<(), NoRoom> {
        if self.paused {
            return Err(NoRoom::Queue);
        }
        let (events, bytes) = (self.queue_events_max, self.queue_bytes_max);
        self.fits(topic, memory, events - events / SINGLES_SHARE, bytes - bytes / SINGLES_SHARE)
    }

    fn fits(&self, topic: &Topic, memory: usize, events_max: usize, bytes_max: usize) -> Result<(), NoRoom> {
        if self.topics.memory().pressure() == Pressure::Publishers {
            return Err(NoRoom::Ceiling);
        }
        if !self.source.has_room() {
            return Err(NoRoom::Source);
        }
        let queue = self.events == 0 || (self.events < events_max && self.bytes + memory <= bytes_max);
        match queue {
            false => Err(NoRoom::Queue),
            true if self.topics.has_room(topic, memory) => Ok(()),
            true => Err(NoRoom::Memory),
        }
    }

    /// Hands `event` to its source, unless it was taken before under `key`.
    pub fn publish(
        &mut self,
        event: Event,
        key: Option<IdempotencyKey>,
        now: Stamp,
    ) -> Result<Published, Refusal> {
        match &self.source {
            Source::Local => return self.accept_once(event, key, now).map(Published::Taken),
            Source::Store(_) => return self.publish_stored(event, key, now),
            Source::Remote(_) => {}
        }
        if let Some(key) = &key
            && let Some(sequence) = self.find_key(&event, key, now)?
        {
            return Ok(Published::Taken(self.taken(sequence, true)));
        }
        self.admit(&event, now)?;
        self.submit(Wish::Publish(event, key), now)
    }

    /// The same with a removal of what came of a topic so far.
    pub fn publish_removal(&mut self, topic: Topic, now: Stamp) -> Result<Published, Refusal> {
        match &self.source {
            Source::Local => {
                let sequence = self.remove(topic, now)?;
                return Ok(Published::Taken(self.taken(sequence, false)));
            }
            Source::Store(_) => return self.remove_stored(topic, now),
            Source::Remote(_) => {}
        }
        self.admit_removal(&topic, now)?;
        self.submit(Wish::Remove(topic), now)
    }

    fn submit(&mut self, wish: Wish, now: Stamp) -> Result<Published, Refusal> {
        let Source::Remote(remote) = &self.source else { unreachable!("a local source is not asked") };
        match remote.submit(wish, now, self.unix_ms) {
            Ok(waiting) => Ok(Published::Later(waiting)),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Takes `event` in and returns its sequence. A batch's worth of queued events is flushed, less
    /// is left for [`Intake::flush`], so that the events of one body chunk travel together.
    pub fn accept(&mut self, event: Event, intake: Stamp) -> Result<u64, Refusal> {
        self.admit(&event, intake)?;
        let sequence = self.sequence + 1;
        self.place(event, sequence, self.unix_ms, intake);
        Ok(sequence)
    }

    /// Refuses what may not come in, or not now.
    pub(super) fn admit(&mut self, event: &Event, intake: Stamp) -> Result<(), Refusal> {
        if self.draining {
            return self.refuse(Refusal::draining());
        }
        if self.paused {
            return self.refuse(Refusal::upgrading());
        }
        if let Some(frame) = self.frame_too_long(event) {
            return self.refuse(frame);
        }
        self.admit_by_source()?;
        if let Err(no_room) = self.room(&event.topic, self.memory_of(event)) {
            return self.refuse_for_room(no_room, &event.topic, intake);
        }
        match reserved(event) {
            Some(refusal) => self.refuse(refusal),
            None => Ok(()),
        }
    }

    /// Refuses everything while the source takes nothing.
    fn admit_by_source(&mut self) -> Result<(), Refusal> {
        match &self.degraded {
            Some(why) => self.refuse(Refusal::new(RefusalReason::Source, why.clone())),
            None => Ok(()),
        }
    }

    /// Takes `event` in, unless it was taken before under `key`.
    pub fn accept_once(
        &mut self,
        event: Event,
        key: Option<IdempotencyKey>,
        now: Stamp,
    ) -> Result<Taken, Refusal> {
        let Some(key) = key else {
            let sequence = self.accept(event, now)?;
            return Ok(self.taken(sequence, false));
        };
        if let Some(sequence) = self.find_key(&event, &key, now)? {
            return Ok(self.taken(sequence, true));
        }
        let (topic, said) = (event.topic.clone(), PastKey::said_by(&event));
        let sequence = self.accept(event, now)?;
        self.keys.note(topic, key, said, sequence, now);
        Ok(self.taken(sequence, false))
    }

    /// Removes what came of a topic so far. Returns the place of that in the order.
    pub fn remove(&mut self, topic: Topic, now: Stamp) -> Result<u64, Refusal> {
        self.admit_removal(&topic, now)?;
        let sequence = self.sequence + 1;
        self.place_removal(topic, sequence);
        Ok(sequence)
    }

    pub(super) fn admit_removal(&mut self, topic: &Topic, now: Stamp) -> Result<(), Refusal> {
        if self.draining {
            return self.refuse(Refusal::draining());
        }
        if self.paused {
            return self.refuse(Refusal::upgrading());
        }
        if let Some(refusal) = names_many(topic, "remove one") {
            return self.refuse(refusal);
        }
        self.admit_by_source()?;
        if self.events > 0 && self.events >= self.queue_events_max {
            return self.refuse_for_room(NoRoom::Queue, topic, now);
        }
        Ok(())
    }

    /// The refusal of an event one of whose frames would be longer than any may be.
    pub(super) fn frame_too_long(&self, event: &Event) -> Option<Refusal> {
        if event.weight() * FRAME_GROWTH_MAX <= self.frame_bytes_max {
            return None;
        }
        let frames = Format::ALL.map(|format| (format.frame_bytes_max(event), format));
        let (longest, format) = frames.into_iter().max_by_key(|(bytes, _)| *bytes)?;
        (longest > self.frame_bytes_max).then(|| {
            let (place, reason) = match format {
                Format::Json => ("in JSON", "each control character of its name costs 5 more"),
                _ => ("on an event stream", "each line of its data costs 7 more"),
            };
            let most = self.frame_bytes_max;
            let text =
                format!("the event would take {longest} bytes {place}, at most {most} are allowed: {reason}");
            Refusal::new(RefusalReason::TooLarge, text)
        })
    }

    fn refuse_for_room<T>(&mut self, no_room: NoRoom, topic: &Topic, now: Stamp) -> Result<T, Refusal> {
        match no_room {
            NoRoom::Queue => {
                if !std::mem::replace(&mut self.full_told, true)
                    && let Some(left_out) = self.full_pace.admit(now)
                {
                    tracing::warn!(
                        left_out,
                        "publishers get 503: the shards cannot take more, and the queue to them is full"
                    );
                }
                self.refuse(Refusal::full())
            }
            NoRoom::Memory => {
                if let Some(left_out) = self.behind_pace.admit(now) {
                    tracing::warn!(
                        %topic,
                        left_out,
                        "publishers get 503: subscribers are behind, and their events take as much memory as they may"
                    );
                }
                self.refuse(Refusal::behind())
            }
            NoRoom::Ceiling => {
                if let Some(left_out) = self.memory_pace.admit(now) {
                    tracing::warn!(
                        left_out,
                        "publishers get 503: the process takes nearly as much memory as it may"
                    );
                }
                self.refuse(Refusal::memory())
            }
            NoRoom::Source => self.refuse(Refusal::source_full()),
        }
    }

    /// Counts a refusal of the intake or of a room before it.
    pub fn count(&mut self, refusal: &Refusal) {
        self.counters.refused.add(refusal.reason);
    }

    /// Counts a refusal and gives it back as an error.
    pub fn refuse<T>(&mut self, refusal: Refusal) -> Result<T, Refusal> {
        self.count(&refusal);
        Err(refusal)
    }

    /// Hands what is queued to every shard, in as few batches as the limits allow, until done or
    /// until a shard's queue is full.
    pub fn flush(&mut self) -> Flushed {
        self.wanted = self.demand.wanted();
        loop {
            if self.sending.is_none() {
                match self.next_package() {
                    Some(sending) => self.sending = Some(sending),
                    None => return Flushed::All,
                }
            }
            if self.send() == Flushed::Stalled {
                return Flushed::Stalled;
            }
        }
    }

    /// Offers the batch in `sending` to the shards that have not got it. Shards that have ended are
    /// passed over.
    fn send(&mut self) -> Flushed {
        let Some(Sending { package, events, bytes, waiting }) = &mut self.sending else {
            return Flushed::All;
        };
        let first_try = !self.stalled;
        let mut full = 0;
        waiting.retain(|&shard| match self.outboxes[shard].try_send(package.message()) {
            Ok(()) | Err(Refused::Gone(_)) => false,
            Err(Refused::Full(_)) => {
                full += 1;
                true
            }
        });
        if full > 0 {
            self.counters.stalls += if first_try { full } else { 0 };
            self.stalled = true;
            return Flushed::Stalled;
        }
        self.events -= *events;
        self.bytes -= *bytes;
        self.full_told &= self.events > 0;
        self.counters.batches += u64::from(matches!(package, Package::Batch(_)));
        self.stalled = false;
        self.sending = None;
        Flushed::All
    }

    /// All histories together may take so much memory.
    pub fn hold_histories(&mut self, bytes: usize) {
        self.histories_max = bytes;
    }

    fn next_package(&mut self) -> Option<Sending> {
        let changes = self.histories != self.histories_max;
        let has_turn = !self.said_histories || self.queued.is_empty();
        self.said_histories = changes && has_turn;
        if self.said_histories { Some(self.next_step()) } else { self.next_in_order() }
    }

    /// The next word of what histories may take. Much less is said in steps, each of which is some
    /// milliseconds of work for a shard.
    fn next_step(&mut self) -> Sending {
        let step = (self.topics.memory().bytes_max() / 2 / HISTORY_STEPS).max(1);
        self.histories = self.histories_max.max(self.histories.saturating_sub(step));
        Sending {
            package: Package::Histories(self.histories),
            events: 0,
            bytes: 0,
            waiting: (0..self.outboxes.len()).collect(),
        }
    }

    /// The oldest queued events, up to the bounds of a batch; a single event may exceed the bytes.
    /// Any other word goes alone.
    fn next_in_order(&mut self) -> Option<Sending> {
        let waiting = (0..self.outboxes.len()).collect();
        let (mut bytes, mut memory) = match self.queued.front()? {
            Queued::Event(front) => (front.event.weight(), front.memory()),
            Queued::Word(_) => {
                let Some(Queued::Word(package)) = self.queued.pop_front() else { unreachable!("seen above") };
                return Some(Sending { package, events: 1, bytes: 0, waiting });
            }
        };
        let mut count = 1;
        for queued in self.queued.iter().skip(1).take(self.batch_events_max - 1) {
            let Queued::Event(encoded) = queued else { break };
            let more = encoded.event.weight();
            if bytes + more > self.batch_bytes_max {
                break;
            }
            bytes += more;
            memory += encoded.memory();
            count += 1;
        }
        let events = self.queued.drain(..count).map(|queued| match queued {
            Queued::Event(encoded) => encoded,
            Queued::Word(_) => unreachable!("a word goes alone"),
        });
        let events = events.collect();
        let package = Package::Batch(Arc::new(EncodedBatch { events }));
        Some(Sending { package, events: count, bytes: memory, waiting })
    }

    /// From now on nothing is accepted.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// True once the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// From now on nothing is placed.
    pub(super) fn end_placing(&mut self) {
        self.over = true;
    }

    /// True once nothing is placed any more.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// True while the process hands over.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// True while a shard's full queue holds up the broadcast.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Position of the last accepted event, 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Events and bytes that not every shard has.
    pub fn queue(&self) -> (usize, usize) {
        (self.events, self.bytes)
    }

    /// What is remembered of each topic.
    pub fn topics(&self) -> &TopicTable {
        &self.topics
    }

    /// What was counted.
    pub fn counters(&self) -> &HubCounters {
        &self.counters
    }

    /// The queues to the shards, by shard number, for messages that need no order with events.
    pub fn outboxes(&self) -> &[Outbox] {
        &self.outboxes
    }
}

mod places;
#[cfg(test)]
mod tests;

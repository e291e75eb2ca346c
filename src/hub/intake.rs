//! Takes events in, gives them their sequence, encodes them, and hands them to every shard in
//! batches.
//!
//! Invariants worth naming:
//! - Sequences are gapless from 1; an event that is refused gets none.
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

use super::keys::Keys;
use super::topics::{Recorded, TopicTable};
use crate::broadcast::{
    Demand, Encoded, EncodedBatch, Memory, Message, Outbox, Pressure, Refused, Taken, Wanted,
};
use crate::clock::Stamp;
use crate::config::Limits;
use crate::config::limits::{HISTORY_STEPS, SINGLES_SHARE};
use crate::event::{Epoch, Event, Topic};
use crate::log::Pace;
use crate::publishing::{IdempotencyKey, reserved};
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
enum Parcel {
    Batch(Arc<EncodedBatch>),
    /// [`Message::Histories`].
    Histories(usize),
}

impl Parcel {
    fn message(&self) -> Message {
        match self {
            Parcel::Batch(batch) => Message::Batch(batch.clone()),
            Parcel::Histories(bytes) => Message::Histories(*bytes),
        }
    }
}

/// A parcel on its way.
#[derive(Debug)]
struct Sending {
    parcel: Parcel,
    /// Its events, and their memory.
    events: usize,
    bytes: usize,
    /// Indexes of the shards that have not got it, never empty between calls.
    waiting: Vec<usize>,
}

/// The sequence, the queue and what is remembered of both.
#[derive(Debug)]
pub struct Intake {
    epoch: Epoch,
    demand: Arc<Demand>,
    outboxes: Vec<Outbox>,
    /// Sequence of the last accepted event, 0 before the first.
    sequence: u64,
    queued: VecDeque<Arc<Encoded>>,
    sending: Option<Sending>,
    /// Events of `queued` and `sending`; at most `queue_events_max`.
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
    /// The time of day, as it was told last, in milliseconds since 1970.
    unix_ms: u64,
    /// Formats that had subscribers at the last flush: between two of them what an event weighs
    /// does not change.
    wanted: Wanted,
    topics: TopicTable,
    keys: Keys,
    counters: HubCounters,
    queue_events_max: usize,
    queue_bytes_max: usize,
    batch_events_max: usize,
    batch_bytes_max: usize,
    /// Bytes of the longest frame that an event may have.
    frame_bytes_max: usize,
    /// Memory that an event may take.
    event_memory_max: usize,
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
            epoch,
            demand,
            outboxes,
            sequence: 0,
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
            unix_ms: 0,
            wanted: Wanted::NONE,
            topics: TopicTable::new(limits.topics_max, memory),
            keys: Keys::default(),
            counters: HubCounters::default(),
            queue_events_max: limits.hub_queue_events_max,
            queue_bytes_max: limits.hub_queue_bytes_max,
            batch_events_max: limits.batch_events_max(),
            batch_bytes_max: limits.batch_bytes_max(),
            frame_bytes_max: limits.frame_bytes_max(),
            event_memory_max: limits.event_memory_max(),
        }
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
    /// so some places are left to single publishes, which are refused instead.
    pub fn room_for_stream(&self, topic: &Topic, memory: usize) -> Result<(), NoRoom> {
        let (events, bytes) = (self.queue_events_max, self.queue_bytes_max);
        self.fits(topic, memory, events - events / SINGLES_SHARE, bytes - bytes / SINGLES_SHARE)
    }

    fn fits(&self, topic: &Topic, memory: usize, events_max: usize, bytes_max: usize) -> Result<(), NoRoom> {
        if self.topics.memory().pressure() == Pressure::Publishers {
            return Err(NoRoom::Ceiling);
        }
        let queue = self.events == 0 || (self.events < events_max && self.bytes + memory <= bytes_max);
        match queue {
            false => Err(NoRoom::Queue),
            true if self.topics.has_room(topic, memory) => Ok(()),
            true => Err(NoRoom::Memory),
        }
    }

    /// Takes `event` in and returns its sequence. A batch's worth of queued events is flushed, less
    /// is left for [`Intake::flush`], so that the events of one body chunk travel together.
    pub fn accept(&mut self, event: Event, intake: Stamp) -> Result<u64, Refusal> {
        let bytes = event.published_bytes();
        if self.draining {
            return self.refuse(Refusal::draining());
        }
        if let Some(frame) = self.frame_too_long(&event) {
            return self.refuse(frame);
        }
        if let Err(no_room) = self.room(&event.topic, self.memory_of(&event)) {
            return self.refuse_for_room(no_room, &event.topic, intake);
        }
        if let Some(refusal) = reserved(&event) {
            return self.refuse(refusal);
        }
        self.sequence += 1;
        self.demand.announce(self.sequence);
        let kept = self.kept_of(&event);
        let Recorded { account, forgets } = self.topics.record(&event, self.sequence, bytes);
        self.counters.events += 1;
        self.counters.bytes += bytes as u64;
        let encoded = Encoded::new(event, self.epoch, self.sequence, intake);
        let encoded = encoded.taken_at(self.unix_ms).keeping(kept);
        let encoded = encoded.forgetting(forgets).counted_in(&account);
        self.events += 1;
        self.bytes += encoded.memory();
        for format in Format::ALL {
            if self.demand.wants(format) && encoded.keeps(format) {
                encoded.frame(format);
            }
        }
        self.queued.push_back(Arc::new(encoded));
        if self.queued.len() >= self.batch_events_max && !self.stalled {
            self.flush();
        }
        Ok(self.sequence)
    }

    /// Takes `event` in, unless it was taken before under `key`.
    pub fn accept_once(
        &mut self,
        event: Event,
        key: Option<IdempotencyKey>,
        now: Stamp,
    ) -> Result<Taken, Refusal> {
        let Some(key) = key else {
            return self.accept(event, now).map(|sequence| Taken { sequence, duplicate: false });
        };
        match self.keys.find(&event, &key, now) {
            Ok(Some(sequence)) => return Ok(Taken { sequence, duplicate: true }),
            Ok(None) => {}
            Err(refusal) => return self.refuse(refusal),
        }
        let (topic, said) = (event.topic.clone(), self.keys.said(&event));
        let sequence = self.accept(event, now)?;
        self.keys.note(topic, key, said, sequence, now);
        Ok(Taken { sequence, duplicate: false })
    }

    /// The refusal of an event one of whose frames would be longer than any may be.
    fn frame_too_long(&self, event: &Event) -> Option<Refusal> {
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
                match self.next_parcel() {
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
        let Some(Sending { parcel, events, bytes, waiting }) = &mut self.sending else { return Flushed::All };
        let first_try = !self.stalled;
        let mut full = 0;
        waiting.retain(|&shard| match self.outboxes[shard].try_send(parcel.message()) {
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
        self.counters.batches += u64::from(*events > 0);
        self.stalled = false;
        self.sending = None;
        Flushed::All
    }

    /// All histories together may take so much memory.
    pub fn hold_histories(&mut self, bytes: usize) {
        self.histories_max = bytes;
    }

    fn next_parcel(&mut self) -> Option<Sending> {
        let changes = self.histories != self.histories_max;
        let has_turn = !self.said_histories || self.queued.is_empty();
        self.said_histories = changes && has_turn;
        if self.said_histories { Some(self.next_step()) } else { self.next_batch() }
    }

    /// The next word of what histories may take. Much less is said in steps, each of which is some
    /// milliseconds of work for a shard.
    fn next_step(&mut self) -> Sending {
        let step = (self.topics.memory().bytes_max() / 2 / HISTORY_STEPS).max(1);
        self.histories = self.histories_max.max(self.histories.saturating_sub(step));
        Sending {
            parcel: Parcel::Histories(self.histories),
            events: 0,
            bytes: 0,
            waiting: (0..self.outboxes.len()).collect(),
        }
    }

    /// The oldest queued events, up to the bounds of a batch; a single event may exceed the bytes.
    fn next_batch(&mut self) -> Option<Sending> {
        let front = self.queued.front()?;
        let (mut bytes, mut memory) = (front.event.weight(), front.memory());
        let mut count = 1;
        for encoded in self.queued.iter().skip(1).take(self.batch_events_max - 1) {
            let more = encoded.event.weight();
            if bytes + more > self.batch_bytes_max {
                break;
            }
            bytes += more;
            memory += encoded.memory();
            count += 1;
        }
        let events = self.queued.drain(..count).collect();
        Some(Sending {
            parcel: Parcel::Batch(Arc::new(EncodedBatch { events })),
            events: count,
            bytes: memory,
            waiting: (0..self.outboxes.len()).collect(),
        })
    }

    /// From now on nothing is accepted.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// True once the drain has begun.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// True while a shard's full queue holds up the broadcast.
    pub fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Sequence of the last accepted event, 0 before the first.
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::broadcast::{Inbox, path};
    use crate::event::{CustomId, Data, EVENT_BYTES_FIXED, EventId, EventName};

    const EPOCH: Epoch = Epoch(10_000_000_000_000_000_000);

    fn event(data: &str) -> Event {
        Event {
            topic: Topic::new("t").expect("a topic"),
            data: Data::text(Bytes::copy_from_slice(data.as_bytes())).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
        }
    }

    fn intake(shards: usize, shard_queue: usize, limits: &Limits) -> (Intake, Vec<Inbox>) {
        let (outboxes, inboxes) = (0..shards).map(|_| path(shard_queue).expect("eventfd")).unzip();
        (Intake::new(EPOCH, limits, Arc::default(), Memory::new(limits), outboxes), inboxes)
    }

    /// The sequences of each batch that waits in `inbox`, up to `messages`.
    fn take(inbox: &Inbox, messages: usize) -> Vec<Vec<u64>> {
        std::iter::from_fn(|| inbox.try_recv())
            .take(messages)
            .map(|message| match message {
                Message::Batch(batch) => batch.events.iter().map(|encoded| encoded.sequence).collect(),
                other => panic!("not a batch: {other:?}"),
            })
            .collect()
    }

    #[test]
    fn every_shard_gets_the_same_gapless_order() {
        let (mut intake, inboxes) = intake(2, 1_000, &Limits::default());
        for n in 1..=1_000u64 {
            assert_eq!(intake.accept(event("x"), Stamp(n)), Ok(n));
            if n % 7 == 0 {
                assert_eq!(intake.flush(), Flushed::All);
            }
        }
        intake.flush();
        let seen: Vec<Vec<Vec<u64>>> = inboxes.iter().map(|inbox| take(inbox, usize::MAX)).collect();
        assert_eq!(seen[0], seen[1]);
        assert_eq!(seen[0].concat(), (1..=1_000).collect::<Vec<u64>>());
        assert_eq!(intake.queue(), (0, 0));
    }

    #[test]
    fn a_full_batch_leaves_at_once_and_a_shorter_one_waits_for_the_flush() {
        let limits = Limits { window_events_max: 16, ..Limits::default() };
        let (mut intake, inboxes) = intake(1, 64, &limits);
        for _ in 0..9 {
            intake.accept(event("x"), Stamp(0)).expect("room");
        }
        assert_eq!(take(&inboxes[0], usize::MAX), [[1, 2, 3, 4], [5, 6, 7, 8]]);
        intake.flush();
        assert_eq!(take(&inboxes[0], usize::MAX), [[9]]);
    }

    #[test]
    fn a_batch_ends_at_its_bytes_but_holds_at_least_one_event() {
        let limits = Limits { window_bytes_max: 4 * (2 * EVENT_BYTES_FIXED + 10), ..Limits::default() };
        let (mut intake, inboxes) = intake(1, 64, &limits);
        for data in ["1234", "1234", "1", &"large".repeat(10), "1"] {
            intake.accept(event(data), Stamp(0)).expect("room");
        }
        intake.flush();
        assert_eq!(take(&inboxes[0], usize::MAX), [vec![1, 2], vec![3], vec![4], vec![5]]);
    }

    #[test]
    fn a_full_shard_queue_fills_ours_and_then_everything_arrives_once_and_in_order() {
        let limits = Limits { hub_queue_events_max: 10, window_events_max: 8, ..Limits::default() };
        let (mut intake, inboxes) = intake(2, 2, &limits);
        let mut accepted = 0;
        loop {
            match intake.accept(event("x"), Stamp(0)) {
                Ok(sequence) => accepted = sequence,
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::full());
                    break;
                }
            }
            intake.flush();
        }
        assert_eq!(accepted, 12, "two events in the shards' queues, ten in ours");
        assert_eq!(intake.counters().refused.get(RefusalReason::Full), 1);
        assert_eq!(intake.counters().stalls, 2, "once per shard, however often it is retried");
        assert!(intake.is_stalled());

        // Shard 1 works on while shard 0 does not: it gets one batch more, and not the one after
        // that.
        let mut seen = [Vec::new(), Vec::new()];
        seen[1].extend(take(&inboxes[1], usize::MAX).concat());
        assert_eq!(intake.flush(), Flushed::Stalled);
        seen[1].extend(take(&inboxes[1], usize::MAX).concat());
        assert_eq!(seen[1], [1, 2, 3]);
        assert_eq!(intake.queue().0, 10, "an event counts until every shard has it");

        while intake.queue().0 > 0 {
            for (seen, inbox) in seen.iter_mut().zip(&inboxes) {
                seen.extend(take(inbox, 1).concat());
            }
            intake.flush();
        }
        for (seen, inbox) in seen.iter_mut().zip(&inboxes) {
            seen.extend(take(inbox, usize::MAX).concat());
            assert_eq!(*seen, (1..=12).collect::<Vec<u64>>());
        }
        assert!(!intake.is_stalled());
        assert_eq!(intake.accept(event("x"), Stamp(0)), Ok(13), "the refused event got no sequence");
    }

    #[test]
    fn the_queue_is_bounded_in_bytes_too() {
        let (large, small) = (Encoded::memory_of(&event("12345678")), Encoded::memory_of(&event("1")));
        assert!(small > EVENT_BYTES_FIXED + 3 * "1".len(), "frames count too");
        let limits = Limits { hub_queue_bytes_max: 2 * large + small, ..Limits::default() };
        let (mut intake, _inboxes) = intake(1, 1, &limits);
        intake.accept(event("12345678"), Stamp(0)).expect("room");
        intake.accept(event("12345678"), Stamp(0)).expect("room");
        assert_eq!(intake.queue(), (2, 2 * large));
        assert_eq!(intake.accept(event("12"), Stamp(0)), Err(Refusal::full()));
        assert_eq!(intake.accept(event("1"), Stamp(0)), Ok(3));
    }

    #[test]
    fn an_event_whose_frame_is_too_long_is_refused_and_tells_why() {
        let limits = Limits { message_bytes_max: 10_000, ..Limits::default() };
        let (mut intake, _inboxes) = intake(1, 1, &limits);
        let refusal = intake.accept(event(&"\n".repeat(10_000)), Stamp(0)).expect_err("70,000 bytes");
        assert_eq!(refusal.reason, RefusalReason::TooLarge);
        assert!(refusal.text.contains("at most 21261 are allowed"), "{}", refusal.text);
        assert_eq!(intake.counters().refused.get(RefusalReason::TooLarge), 1);
        intake.accept(event(&"\n".repeat(2_900)), Stamp(0)).expect("20,307 bytes and an id");
        intake.accept(event(&"x".repeat(10_000)), Stamp(0)).expect("a long line costs 7 bytes");
        intake.accept(event(&"\u{1}".repeat(10_000)), Stamp(0)).expect("JSON takes it as base64");
        intake.accept(event(&"\"".repeat(10_000)), Stamp(0)).expect("a quote costs one byte more");
        let name = EventName::new(&"\u{1}".repeat(255)).expect("a name");
        let long = Event { name: Some(name), ..event(&"\"".repeat(10_000)) };
        let refusal = intake.accept(long, Stamp(0)).expect_err("a name of 1,532 bytes");
        assert!(refusal.text.contains("in JSON"), "{refusal}");
    }

    #[test]
    fn a_topic_whose_events_are_still_needed_has_no_room_and_the_others_have() {
        let limits = Limits { window_bytes_total_max: 40_000, ..Limits::default() };
        let (mut intake, inboxes) = intake(1, 64, &limits);
        let other = || Event { topic: Topic::new("other").expect("a topic"), ..event("x") };
        let accepted = (0..1_000u64).take_while(|n| intake.accept(event("x"), Stamp(*n)).is_ok()).count();
        assert_eq!(accepted, 10_000 / Encoded::memory_of(&event("x")), "a quarter of the whole");
        assert_eq!(intake.counters().refused.get(RefusalReason::Behind), 1);
        intake.accept(other(), Stamp(0)).expect("another topic has its own share");
        intake.flush();
        let kept: Vec<Message> = std::iter::from_fn(|| inboxes[0].try_recv()).collect();
        assert_eq!(intake.accept(event("x"), Stamp(0)), Err(Refusal::behind()), "a shard has them still");
        drop(kept);
        intake.accept(event("x"), Stamp(0)).expect("nobody needs the former ones");
        assert_eq!(intake.topics().memory().held(), Encoded::memory_of(&event("x")));
    }

    #[test]
    fn a_shard_that_is_gone_holds_nobody_up() {
        let (mut intake, mut inboxes) = intake(2, 1, &Limits::default());
        inboxes.remove(0);
        intake.accept(event("x"), Stamp(0)).expect("room");
        assert_eq!(intake.flush(), Flushed::All);
        assert_eq!(take(&inboxes[0], usize::MAX), [[1]]);
    }

    #[test]
    fn what_only_the_server_says_is_refused_and_what_looks_like_it_is_not() {
        let (mut intake, _inboxes) = intake(1, 8, &Limits::default());
        let with_id = |id: &str| Event { id: Some(CustomId::new(id).expect("an id")), ..event("x") };
        let named = |name: &str| Event { name: Some(EventName::new(name).expect("a name")), ..event("x") };
        let ours = EventId { epoch: EPOCH, sequence: 7 }.to_string();
        let foreign = EventId { epoch: Epoch(u64::MAX), sequence: 0 }.to_string();
        for id in [&ours, &foreign] {
            let refusal = intake.accept(with_id(id), Stamp(0)).expect_err("reserved");
            assert_eq!(refusal.reason, RefusalReason::ReservedId);
            assert!(refusal.text.contains(id), "{refusal}");
        }
        let refusal = intake.accept(named("fanwave-gap"), Stamp(0)).expect_err("reserved");
        assert_eq!(refusal.reason, RefusalReason::ReservedEvent);
        assert!(refusal.text.contains("fanwave-gap"), "{refusal}");
        let refused = &intake.counters().refused;
        assert_eq!(
            (refused.get(RefusalReason::ReservedId), refused.get(RefusalReason::ReservedEvent)),
            (2, 1)
        );
        // The last two are of a shop and of Redis Streams.
        let others = ["7", &format!("{ours}x"), "1-01", "A-1", "a-b-1", "order-7", "1526919030474-55"];
        for id in others {
            assert!(intake.accept(with_id(id), Stamp(0)).is_ok(), "{id}");
        }
        assert!(intake.accept(named("fanwave-gaps"), Stamp(0)).is_ok());
        assert_eq!(intake.sequence(), 8);
    }

    #[test]
    fn an_event_is_encoded_before_it_leaves_for_the_formats_that_have_subscribers() {
        let (mut intake, inboxes) = intake(1, 8, &Limits::default());
        // What lies within another frame brings that one.
        let mut steps = vec![(None, 3), (Some(Format::Sse), 2), (Some(Format::WebSocket), 1)];
        // An event that weighs the frames of a rare format came after the flush that saw its need.
        steps.extend([(Some(Format::Json), 1), (None, 0)]);
        for (wanted, absent) in steps {
            if let Some(format) = wanted {
                intake.demand.begin(format);
            }
            intake.accept(event("x"), Stamp(0)).expect("room");
            intake.flush();
            let sent = format!("{:?}", inboxes[0].try_recv());
            assert_eq!(sent.matches("<uninit>").count(), absent, "{sent}");
        }
    }

    /// Else every event would weigh what nobody asks for.
    #[test]
    fn json_weighs_in_events_that_come_while_somebody_reads_it_and_in_no_others() {
        let (mut intake, inboxes) = intake(1, 8, &Limits::default());
        let take = |intake: &mut Intake| {
            intake.tell_time(1_764_460_800_000);
            intake.accept(event("x"), Stamp(0)).expect("room");
            intake.flush();
            let Some(Message::Batch(batch)) = inboxes[0].try_recv() else { panic!("a batch") };
            batch.events[0].clone()
        };
        let plain = take(&mut intake);
        assert_eq!(plain.memory(), Encoded::memory_of(&event("x")));
        intake.demand.begin(Format::Json);
        intake.flush();
        let wanted = take(&mut intake);
        let json = Format::Json.frame_bytes_max(&event("x"));
        assert_eq!(wanted.memory(), plain.memory() + json);
        assert_eq!(intake.topics().memory().held(), plain.memory() + wanted.memory());
        for (encoded, is_kept) in [(plain, false), (wanted, true)] {
            let (frame, again) = (encoded.frame(Format::Json), encoded.frame(Format::Json));
            assert_eq!(frame, again);
            assert!(frame.ends_with(br#""data":"x","time":1764460800000}"#), "{frame:?}");
            assert_eq!(frame.as_ptr() == again.as_ptr(), is_kept);
        }
    }

    /// So the least memory that a server needs is the same, whatever format is read.
    #[test]
    fn an_event_that_would_be_too_heavy_with_its_json_keeps_none() {
        let limits = Limits { message_bytes_max: 10_000, ..Limits::default() };
        let (mut intake, _inboxes) = intake(1, 8, &limits);
        intake.demand.begin(Format::Json);
        intake.flush();
        // Line breaks weigh seven times on an event stream.
        let heavy = event(&format!("{}{}", "\n".repeat(1_650), "\"".repeat(8_350)));
        let light = event(&"x".repeat(10_000));
        for (event, is_kept) in [(heavy, false), (light, true)] {
            let json = Format::Json.frame_bytes_max(&event);
            let with = Encoded::memory_of(&event) + json;
            assert_eq!(with <= limits.event_memory_max(), is_kept, "{with}");
            assert_eq!(intake.memory_of(&event), if is_kept { with } else { with - json });
            intake.accept(event, Stamp(0)).expect("room");
        }
    }

    #[test]
    fn nothing_is_accepted_while_draining() {
        let (mut intake, inboxes) = intake(1, 8, &Limits::default());
        intake.accept(event("x"), Stamp(0)).expect("room");
        intake.drain();
        assert_eq!(intake.accept(event("x"), Stamp(0)), Err(Refusal::draining()));
        intake.flush();
        assert_eq!(take(&inboxes[0], usize::MAX), [[1]]);
    }
}

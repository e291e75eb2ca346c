//! From the hub to every shard: one message per batch of events, through one bounded queue per
//! shard, and beside it a side path of questions, bounded as well. And back: what clients publish
//! (`uplink`).
//!
//! Invariants worth naming:
//! - The hub is the only sender, so every shard sees the same events in the same order.
//! - A message is either in a queue or still with the hub; nothing is dropped on a full queue.
//! - A question needs no order with events, so that it may overtake them where they wait for a
//!   shard that has much to take.
//! - The doorbell is written only when its shard may be asleep, and never left out then:
//!   [`Inbox::may_sleep`] announces sleep *before* it looks at both queues, [`Outbox::try_send`]
//!   and [`Outbox::ask`] look for sleep *after* they filled one (`sleep`).
//!
//! Not here: what a shard does with a message, and who waits for the doorbell (`runtime`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{self, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use tokio::sync::oneshot;

use crate::clock::Stamp;
use crate::config::Config;
use crate::config::limits::QUESTIONS_MAX;
use crate::event::{Event, EventId, Topic};
use crate::wire::Format;
use crate::wire::format::{Frame, Given};

mod account;
mod backfill;
mod eras;
mod past;
mod presence;
mod pressure;
mod question;
mod sleep;
mod uplink;

pub use account::{Account, Crowd, Memory};
pub use backfill::{PastAnswer, PastAsk, PastAsker, PastDesk, PastTopicAsk, Stretch};
pub use eras::{Era, Eras};
pub use past::{Cut, Doors, HistorySlice, Past, PastTopic};
pub use presence::{Answerer, Asker, Crowds};
pub use pressure::{Holdings, Pressure};
pub use question::{Question, TopicQuery};
use sleep::Sleep;
pub use uplink::{Answer, HubEnd, Outcome, Publish, Taken, Ticket, Uplink};

/// One event with its sequence and its frames.
#[derive(Debug)]
pub struct Encoded {
    /// Its position in the order of all topics. They rise, with holes (`eras`).
    pub sequence: u64,
    /// When the hub took the event in.
    pub intake: Stamp,
    /// What the publisher said.
    pub event: Event,
    /// The topic that the hub has forgotten for this event's, if that was one too many.
    forgets: Option<Topic>,
    era: Era,
    /// Milliseconds since 1970 at the intake.
    unix_ms: u64,
    /// Bytes of memory, with all frames that it keeps.
    memory: usize,
    /// Where these are counted; `None` outside of the hub.
    held: Option<Arc<Held>>,
    /// Which frames of rare formats it keeps.
    keeps: Wanted,
    /// One per format whose frames are made, by the hub where the format has subscribers, else by
    /// the first shard that needs it.
    frames: [OnceLock<Bytes>; Format::MADE],
}

impl Encoded {
    /// Gives `event` its sequence; no frame is made yet.
    pub fn new(event: Event, era: impl Into<Era>, sequence: u64, intake: Stamp) -> Encoded {
        let memory = Encoded::memory_of(&event);
        Encoded {
            sequence,
            intake,
            event,
            forgets: None,
            era: era.into(),
            unix_ms: 0,
            memory,
            held: None,
            keeps: Wanted::NONE,
            frames: Default::default(),
        }
    }

    /// The same event, taken in at this time of day.
    pub fn taken_at(self, unix_ms: u64) -> Encoded {
        Encoded { unix_ms, ..self }
    }

    /// The same event, which keeps its frames of these formats too, rare ones included.
    pub fn keeping(self, keeps: Wanted) -> Encoded {
        let more =
            Encoded::memory_of_rare(&self.event, keeps) - Encoded::memory_of_rare(&self.event, self.keeps);
        Encoded { memory: self.memory + more, keeps, ..self }
    }

    /// The same event, for whose topic the hub has forgotten another one.
    pub fn forgetting(mut self, forgets: Option<Topic>) -> Encoded {
        self.memory += forgets.as_ref().map_or(0, |topic| topic.as_str().len());
        Encoded { forgets, ..self }
    }

    /// The same event, counted in its topic's account for as long as it or one of its frames lives.
    pub fn counted_in(mut self, account: &Arc<Account>) -> Encoded {
        account.take(self.memory);
        self.held = Some(Arc::new(Held { account: account.clone(), bytes: self.memory }));
        self
    }

    /// Bytes that `event` takes with all frames that every event keeps, whether they are made or
    /// not.
    pub fn memory_of(event: &Event) -> usize {
        let kept = Format::ALL.into_iter().filter(|format| !format.is_rare());
        event.weight() + kept.map(|format| format.frame_bytes_max(event)).sum::<usize>()
    }

    /// Bytes that the frames of rare formats take besides, of those that are wanted.
    pub fn memory_of_rare(event: &Event, wanted: Wanted) -> usize {
        let kept = Format::ALL.into_iter().filter(|format| format.is_rare() && wanted.has(*format));
        kept.map(|format| format.frame_bytes_max(event)).sum()
    }

    /// Bytes of memory that count for it.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Where it is counted, if the hub made it.
    pub fn account(&self) -> Option<&Arc<Account>> {
        self.held.as_ref().map(|held| &held.account)
    }

    /// The topic that is forgotten for this event's: where nobody subscribes to it, it may go.
    pub fn forgets(&self) -> Option<&Topic> {
        self.forgets.as_ref()
    }

    /// Bytes as published that a topic's history counts for it: what the event weighs, and the name
    /// of what is forgotten for it.
    pub fn weight(&self) -> usize {
        self.event.weight() + self.forgets.as_ref().map_or(0, |topic| topic.as_str().len())
    }

    /// The wire bytes in `format`, encoded on the first call; on each one, if the event does not
    /// keep them.
    pub fn frame(&self, format: Format) -> Bytes {
        let (cell, encode) = match format.spec().frame {
            Frame::Made { cell, encode, .. } => (cell, encode),
            Frame::Within { format, cut } => return cut(&self.frame(format)),
        };
        let EventId { epoch, sequence } = self.era.id(self.sequence);
        let given = Given { epoch, sequence, unix_ms: self.unix_ms };
        if !self.keeps(format) {
            return encode(&self.event, &given);
        }
        let kept = self.frames[cell].get_or_init(|| {
            // The count that all clones share is allocated here, so that no shard pays for it
            // between broadcast and submit. It keeps the event counted: a slow send may hold its
            // frame for longer than any window.
            let frame = encode(&self.event, &given);
            Bytes::from_owner(CountedFrame { frame, _held: self.held.clone() })
        });
        kept.clone()
    }

    /// True if the frame in `format` is kept, and counted in the event's memory.
    pub fn keeps(&self, format: Format) -> bool {
        !format.is_rare() || self.keeps.has(format)
    }

    /// When it was taken in, in milliseconds since 1970.
    pub fn unix_ms(&self) -> u64 {
        self.unix_ms
    }

    /// Whose sequence it has.
    pub fn era(&self) -> Era {
        self.era
    }
}

/// The part of an account that one event takes.
#[derive(Debug)]
struct Held {
    account: Arc<Account>,
    bytes: usize,
}

/// A frame, and what counts it.
struct CountedFrame {
    frame: Bytes,
    _held: Option<Arc<Held>>,
}

impl AsRef<[u8]> for CountedFrame {
    fn as_ref(&self) -> &[u8] {
        &self.frame
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.account.give_back(self.bytes);
    }
}

/// Events of one broadcast, in sequence order, never empty.
#[derive(Debug)]
pub struct EncodedBatch {
    /// The events, in sequence order.
    pub events: Box<[Arc<Encoded>]>,
}

/// The hub's wish that a shard comes to its end: take no more subscribers, deliver what was
/// accepted, hang up on everybody.
#[derive(Debug)]
pub struct Drain {
    /// When to hang up on those that still have not taken everything.
    pub deadline: Stamp,
    /// `None` once the shard has said that it is done.
    done: Option<oneshot::Sender<()>>,
}

impl Drain {
    /// A wish, and where it is said that the shard is done or gone.
    pub fn new(deadline: Stamp) -> (Drain, oneshot::Receiver<()>) {
        let (done, said) = oneshot::channel();
        (Drain { deadline, done: Some(done) }, said)
    }

    /// Says that no subscriber is left.
    pub fn say_done(&mut self) {
        if let Some(done) = self.done.take() {
            // A hub that does not listen any more has given the wait up.
            let _ = done.send(());
        }
    }

    /// True once that was said.
    pub fn is_done(&self) -> bool {
        self.done.is_none()
    }
}

/// History and retained values of a topic are to go.
#[derive(Debug)]
pub struct Removal {
    /// The topic.
    pub topic: Topic,
    /// Its place in the order of events.
    pub sequence: u64,
}

/// Events of one topic may be missing.
#[derive(Debug)]
pub struct TopicHole {
    /// The topic.
    pub topic: Topic,
    /// Up to here, which is its place in the order of events.
    pub position: u64,
}

/// What the hub says to a shard, in order.
#[derive(Debug)]
pub enum Message {
    /// Events to hand to the subscribers.
    Batch(Arc<EncodedBatch>),
    /// What came of a topic so far is to go.
    Removal(Arc<Removal>),
    /// Up to this position events may be missing that were not here: a subscriber with a cursor
    /// below it is told.
    Hole(u64),
    /// The same of one topic; no other one lacks anything.
    TopicHole(Arc<TopicHole>),
    /// The same, and from there on ids are of another epoch.
    Era(Era),
    /// Begin to drain. A shard that is done still answers new clients, until all shards are.
    Drain(Drain),
    /// All histories together may take so much memory from now on, at most what settings allow. It
    /// stands between the same events for all shards, so that their histories stay the same.
    Histories(usize),
    /// The configuration from now on.
    Reload(Arc<Config>),
    /// Begin with what a former process had, and say so. Nobody was let in yet.
    Restore(Arc<Past>, oneshot::Sender<()>),
    /// Let clients in or not, and say when that is so.
    Doors(Doors, oneshot::Sender<()>),
    /// End now: every shard is done, or out of time.
    End,
}

/// The wake-up of one shard: an eventfd, and whether its shard may be asleep.
#[derive(Debug)]
pub struct Doorbell {
    sleep: Sleep,
    eventfd: OwnedFd,
}

impl Doorbell {
    /// A doorbell for a shard that is awake.
    pub fn new() -> std::io::Result<Doorbell> {
        use rustix::event::{EventfdFlags, eventfd};
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Doorbell { sleep: Sleep::default(), eventfd })
    }

    /// Wakes the shard if it may be asleep.
    pub fn ring(&self) {
        if self.sleep.must_wake() {
            // The only failure of a blocking eventfd write of 1 is an invalid descriptor, and we
            // own this one.
            rustix::io::write(&self.eventfd, &1u64.to_ne_bytes())
                .expect("a doorbell's eventfd takes a write");
        }
    }

    /// Blocks the calling thread until it is rung, at most `limit`; true if it was. A signal may
    /// end the wait early. Two system calls, one if nobody rings. An error is a fault of the
    /// system's.
    pub fn wait(&self, limit: Duration) -> std::io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        // A limit that no clock holds is none.
        let limit = Timespec::try_from(limit).ok();
        match poll(&mut [PollFd::new(self, PollFlags::IN)], limit.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(false),
            Ok(_) => rustix::io::read(&self.eventfd, &mut [0; 8]).map(|_| true).map_err(Into::into),
            Err(error) => Err(error.into()),
        }
    }

    /// The shard woke up, by a ring or by itself.
    pub fn awake(&self) {
        self.sleep.end();
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

/// The hub's end of one shard's queues.
#[derive(Debug)]
pub struct Outbox {
    queue: Sender<Message>,
    side: Sender<Question>,
    uplink: HubEnd,
    presence: Answerer,
    past: PastDesk,
    doorbell: Arc<Doorbell>,
}

/// The shard's end of its queues.
#[derive(Debug)]
pub struct Inbox {
    queue: Receiver<Message>,
    side: Receiver<Question>,
    /// Until the shard takes it.
    uplink: Option<Uplink>,
    answers: Receiver<Vec<Answer>>,
    /// Until the shard takes it.
    asker: Option<Asker>,
    crowds: Receiver<(Ticket, Crowds)>,
    /// Until the shard takes it.
    past_asker: Option<PastAsker>,
    pasts: Receiver<(u64, PastAnswer)>,
    doorbell: Arc<Doorbell>,
}

/// Why a message stays with the hub.
#[derive(Debug)]
pub enum Refused {
    /// The queue is full: the shard works on what it has. A retry helps.
    Full(Message),
    /// The shard has ended. A retry does not help.
    Gone(Message),
}

/// A queue of at most `messages_max` messages to one shard, a side path of [`QUESTIONS_MAX`]
/// questions, and an uplink.
pub fn path(messages_max: usize) -> std::io::Result<(Outbox, Inbox)> {
    let (sender, receiver) = crossbeam_channel::bounded(messages_max);
    let (asker, asked) = crossbeam_channel::bounded(QUESTIONS_MAX);
    let doorbell = Arc::new(Doorbell::new()?);
    let (uplink, hub_end) = uplink::uplink();
    let (presence_asker, presence) = presence::presence();
    let (past_asker, past) = backfill::backfill();
    let outbox =
        Outbox { queue: sender, side: asker, uplink: hub_end, presence, past, doorbell: doorbell.clone() };
    let (answers, crowds) = (uplink.receiver(), presence_asker.receiver());
    let pasts = past_asker.receiver();
    let inbox = Inbox {
        queue: receiver,
        side: asked,
        uplink: Some(uplink),
        answers,
        asker: Some(presence_asker),
        crowds,
        past_asker: Some(past_asker),
        pasts,
        doorbell,
    };
    Ok((outbox, inbox))
}

impl Outbox {
    /// Queues `message` and wakes the shard if it sleeps; never blocks.
    pub fn try_send(&self, message: Message) -> Result<(), Refused> {
        match self.queue.try_send(message) {
            Ok(()) => {
                self.doorbell.ring();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(Refused::Full(message)),
            Err(TrySendError::Disconnected(message)) => Err(Refused::Gone(message)),
        }
    }

    /// Asks the shard and wakes it if it sleeps; never blocks. False if it has ended, or has left
    /// [`QUESTIONS_MAX`] questions alone: then it has not turned for as long as the hub waits for
    /// answers.
    pub fn ask(&self, question: Question) -> bool {
        let asked = self.side.try_send(question).is_ok();
        if asked {
            self.doorbell.ring();
        }
        asked
    }

    /// The hub's end of the uplink.
    pub fn uplink(&self) -> &HubEnd {
        &self.uplink
    }

    /// Answers publishes of the shard's clients, at least one, and wakes it if it sleeps.
    pub fn answer(&self, answers: Vec<Answer>) {
        self.uplink.answer(answers);
        self.doorbell.ring();
    }

    /// The hub's end of the asks for subscribers.
    pub fn presence(&self) -> &Answerer {
        &self.presence
    }

    /// Answers such an ask, and wakes the shard if it sleeps.
    pub fn tell_presence(&self, ticket: Ticket, crowds: Crowds) {
        self.presence.answer(ticket, crowds);
        self.doorbell.ring();
    }

    /// The hub's end of the asks for the past.
    pub fn past(&self) -> &PastDesk {
        &self.past
    }

    /// Answers such an ask, and wakes the shard if it sleeps.
    pub fn tell_past(&self, number: u64, answer: PastAnswer) {
        self.past.answer(number, answer);
        self.doorbell.ring();
    }

    /// Messages waiting in the queue, without questions.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// True if the shard has taken everything.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Inbox {
    /// The next message, if one waits.
    pub fn try_recv(&self) -> Option<Message> {
        // A hub that is gone leaves an empty queue behind; its end is told otherwise.
        self.queue.try_recv().ok()
    }

    /// The next question that somebody waits for, if there is one. Those that were given up are
    /// dropped.
    pub fn next_question(&self) -> Option<Question> {
        self.side.try_iter().find(|question| !question.is_given_up())
    }

    /// The shard's end of the uplink, to be taken once. Its answers wake the shard like messages
    /// do.
    pub fn take_uplink(&mut self) -> Uplink {
        self.uplink.take().expect("a shard takes its uplink once")
    }

    /// The shard's end of the asks for subscribers, to be taken once. Answers wake the shard.
    pub fn take_asker(&mut self) -> Asker {
        self.asker.take().expect("a shard takes its asker once")
    }

    /// The shard's end of the asks for the past, to be taken once. Answers wake the shard.
    pub fn take_past_asker(&mut self) -> PastAsker {
        self.past_asker.take().expect("a shard takes its asker once")
    }

    /// Announces sleep and says whether all queues are empty, so that the shard may await its
    /// doorbell. On `false` the shard counts as awake again.
    pub fn may_sleep(&self) -> bool {
        let is_quiet = || {
            let is_told_nothing = self.queue.is_empty() && self.side.is_empty();
            is_told_nothing && self.answers.is_empty() && self.crowds.is_empty() && self.pasts.is_empty()
        };
        self.doorbell.sleep.begin(is_quiet)
    }

    /// The wake-up of this shard.
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }
}

/// Formats that have subscribers, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted(u8);

const _: () = assert!(Format::COUNT <= u8::BITS as usize);

impl Wanted {
    /// None has any.
    pub const NONE: Wanted = Wanted(0);

    /// These formats.
    pub fn of(formats: impl IntoIterator<Item = Format>) -> Wanted {
        Wanted(formats.into_iter().fold(0, |bits, format| bits | 1 << format.index()))
    }

    /// True if `format` is one of them.
    pub fn has(self, format: Format) -> bool {
        self.0 & 1 << format.index() != 0
    }
}

/// What hub and shards tell each other outside of the queues; never touched per delivery.
#[derive(Debug, Default)]
pub struct Demand {
    /// How many shards have subscribers of each format, so that the hub encodes only what has a
    /// use. Shards touch it when their first subscriber of a format comes and when the last one
    /// goes.
    shards: [AtomicU32; Format::COUNT],
    /// The newest position that has an event, a removal or a hole. A shard asks when a client names
    /// an event that it does not know: another shard may have been faster.
    newest: AtomicU64,
    /// The base of its era ([`Era::base`]). A shard may not have heard of that era yet.
    newest_base: AtomicU64,
    /// Why the source of events takes no publishes, if it does not. Read where somebody asks for
    /// the health of the process.
    degraded: Mutex<Option<Arc<str>>>,
}

impl Demand {
    /// The source takes no publishes, and this is why, in one line; `None`: it does.
    pub fn tell_degraded(&self, why: Option<&str>) {
        *self.degraded.lock().unwrap_or_else(PoisonError::into_inner) = why.map(Arc::from);
    }

    /// Why the source takes no publishes, if it does not.
    pub fn degraded(&self) -> Option<Arc<str>> {
        self.degraded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One more shard has subscribers of `format`.
    pub fn begin(&self, format: Format) {
        self.shards[format.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// One shard fewer has subscribers of `format`.
    pub fn end(&self, format: Format) {
        self.shards[format.index()].fetch_sub(1, Ordering::Relaxed);
    }

    /// True while some shard has subscribers of `format`.
    pub fn wants(&self, format: Format) -> bool {
        self.shards[format.index()].load(Ordering::Relaxed) > 0
    }

    /// The formats that have subscribers on some shard.
    pub fn wanted(&self) -> Wanted {
        Wanted::of(Format::ALL.into_iter().filter(|format| self.wants(*format)))
    }

    /// Something got this position, and no shard has been told of it yet.
    pub fn announce(&self, sequence: u64) {
        self.newest.store(sequence, Ordering::Release);
    }

    /// An era has begun, whose base is the newest position.
    pub fn announce_era(&self, base: u64) {
        self.newest_base.store(base, Ordering::Release);
        self.announce(base);
    }

    /// The newest position that was given.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// The same, if that is one of `era`: none if another one has begun meanwhile.
    pub fn newest_of(&self, era: Era) -> Option<u64> {
        // In this order: a position of another era comes with the base of that one or a later one.
        let newest = self.newest();
        (self.newest_base.load(Ordering::Acquire) == era.base).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message::Drain(Drain::new(Stamp(0)).0)
    }

    fn rung(bell: &Doorbell) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") > 0
    }

    #[test]
    fn a_full_queue_gives_the_message_back() {
        let (outbox, inbox) = path(1).expect("eventfd");
        assert!(outbox.try_send(message()).is_ok());
        assert!(matches!(outbox.try_send(message()), Err(Refused::Full(Message::Drain(..)))));
        assert!(inbox.try_recv().is_some());
        drop(inbox);
        assert!(matches!(outbox.try_send(message()), Err(Refused::Gone(_))));
    }

    #[test]
    fn only_a_sleeping_shard_is_rung_and_only_once() {
        let (outbox, inbox) = path(4).expect("eventfd");
        outbox.try_send(message()).expect("room");
        assert!(!rung(inbox.doorbell()), "an awake shard needs no doorbell");
        assert!(!inbox.may_sleep(), "a message waits");
        inbox.try_recv().expect("the message");
        assert!(inbox.may_sleep());
        outbox.try_send(message()).expect("room");
        assert!(rung(inbox.doorbell()));
        assert!(inbox.doorbell().wait(Duration::MAX).expect("an eventfd"));
        assert!(!inbox.doorbell().wait(Duration::ZERO).expect("an eventfd"), "the wait has used the ring up");
        outbox.try_send(message()).expect("room");
        assert!(!rung(inbox.doorbell()), "the shard was already woken");
    }

    #[test]
    fn a_question_passes_a_full_queue_and_wakes_a_sleeping_shard() {
        let (outbox, inbox) = path(1).expect("eventfd");
        assert!(inbox.may_sleep());
        let (answer, answered) = oneshot::channel();
        assert!(outbox.ask(Question::Counters(answer)));
        assert!(inbox.doorbell().wait(Duration::MAX).expect("an eventfd"));
        inbox.doorbell().awake();
        assert!(!inbox.may_sleep(), "a question waits");
        outbox.try_send(message()).expect("room");
        assert!(outbox.try_send(message()).is_err(), "the queue is full");
        let (again, waits) = oneshot::channel();
        assert!(outbox.ask(Question::Counters(again)));
        drop(answered);
        let question = inbox.next_question().expect("one that somebody waits for");
        assert!(matches!(question, Question::Counters(answer) if !answer.is_closed()));
        assert!(inbox.next_question().is_none(), "the other one was given up");
        drop(waits);
    }

    #[test]
    fn the_side_path_is_bounded_and_ends_with_its_shard() {
        let (outbox, inbox) = path(1).expect("eventfd");
        let ask = || outbox.ask(Question::Counters(oneshot::channel().0));
        assert_eq!((0..2 * QUESTIONS_MAX).filter(|_| ask()).count(), QUESTIONS_MAX);
        drop(inbox);
        assert!(!ask(), "nobody is there");
    }
}

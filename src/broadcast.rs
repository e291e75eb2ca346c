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
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use tokio::sync::oneshot;

use crate::clock::Stamp;
use crate::config::limits::QUESTIONS_MAX;
use crate::event::{Epoch, Event, Topic};
use crate::wire::Format;
use crate::wire::format::Frame;

mod account;
mod question;
mod sleep;
mod uplink;

pub use account::{Account, Crowd, Memory};
pub use question::{Question, TopicQuery};
use sleep::Sleep;
pub use uplink::{Answer, HubEnd, Outcome, Publish, Taken, Ticket, Uplink};

/// One event with its sequence and its frames.
#[derive(Debug)]
pub struct Encoded {
    /// The hub's gapless number over all topics, from 1.
    pub sequence: u64,
    /// When the hub took the event in.
    pub intake: Stamp,
    /// What the publisher said.
    pub event: Event,
    /// The topic that the hub has forgotten for this event's, if that was one too many.
    forgets: Option<Topic>,
    epoch: Epoch,
    /// Bytes of memory, with all frames that it can have.
    memory: usize,
    /// Where these are counted; `None` outside of the hub.
    held: Option<Arc<Held>>,
    /// One per format, made by the hub where the format has subscribers, else by the first shard
    /// that needs it.
    frames: [OnceLock<Bytes>; Format::COUNT],
}

impl Encoded {
    /// Gives `event` its sequence; no frame is made yet.
    pub fn new(event: Event, epoch: Epoch, sequence: u64, intake: Stamp) -> Encoded {
        let memory = Encoded::memory_of(&event);
        Encoded {
            sequence,
            intake,
            event,
            forgets: None,
            epoch,
            memory,
            held: None,
            frames: Default::default(),
        }
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

    /// Bytes that `event` takes with all frames that it can have, whether they are made or not.
    pub fn memory_of(event: &Event) -> usize {
        event.weight() + Format::ALL.map(|format| format.frame_bytes_max(event)).iter().sum::<usize>()
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

    /// The wire bytes in `format`, encoded on the first call.
    pub fn frame(&self, format: Format) -> &Bytes {
        self.frames[format.index()].get_or_init(|| match format.spec().frame {
            Frame::Made { encode, .. } => {
                // The count that all clones share is allocated here, so that no shard pays for it
                // between broadcast and submit. It keeps the event counted: a slow send may hold
                // its frame for longer than any window.
                let frame = encode(&self.event, self.epoch, self.sequence);
                Bytes::from_owner(CountedFrame { frame, _held: self.held.clone() })
            }
            Frame::Within { format, cut } => cut(self.frame(format)),
        })
    }

    /// The process that gave the sequence.
    pub fn epoch(&self) -> Epoch {
        self.epoch
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

/// What the hub says to a shard, in order.
#[derive(Debug)]
pub enum Message {
    /// Events to hand to the subscribers.
    Batch(Arc<EncodedBatch>),
    /// Begin to drain. A shard that is done still answers new clients, until all shards are.
    Drain(Drain),
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
    let outbox = Outbox { queue: sender, side: asker, uplink: hub_end, doorbell: doorbell.clone() };
    let answers = uplink.receiver();
    Ok((outbox, Inbox { queue: receiver, side: asked, uplink: Some(uplink), answers, doorbell }))
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

    /// Announces sleep and says whether all queues are empty, so that the shard may await its
    /// doorbell. On `false` the shard counts as awake again.
    pub fn may_sleep(&self) -> bool {
        let is_quiet = || self.queue.is_empty() && self.side.is_empty() && self.answers.is_empty();
        self.doorbell.sleep.begin(is_quiet)
    }

    /// The wake-up of this shard.
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }
}

/// What hub and shards tell each other outside of the queues; never touched per delivery.
#[derive(Debug, Default)]
pub struct Demand {
    /// How many shards have subscribers of each format, so that the hub encodes only what has a
    /// use. Shards touch it when their first subscriber of a format comes and when the last one
    /// goes.
    shards: [AtomicU32; Format::COUNT],
    /// The newest sequence that the hub has given. A shard asks when a client names an event that
    /// it does not know: another shard may have been faster.
    newest: AtomicU64,
}

impl Demand {
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

    /// The hub gave `sequence`, and has told no shard of it yet.
    pub fn announce(&self, sequence: u64) {
        self.newest.store(sequence, Ordering::Release);
    }

    /// The newest sequence that the hub has given.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
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

//! From the shards to the hub: what clients publish, and what came of it.
//!
//! Invariants worth naming:
//! - A shard has at most [`UPLINK_PUBLISHES_MAX`] publishes without an answer. That bounds both
//!   queues: what has no place stays with the shard. They take memory as they are used, so a server
//!   whose clients do not publish pays nothing for them.
//! - Each publish is answered once, in the order of the queue, while hub and shard live.
//! - The hub is woken only when it may be asleep: it registers *before* it looks at the queues, a
//!   shard looks for it *after* it has queued ([`AtomicWaker`]). A shard wakes it once for all that
//!   it queued in a turn ([`Uplink::wake_hub`]).
//! - Answers go beside the broadcast and beside questions, so that a saturated shard hears them.
//!
//! Not here: what may be published (`shard`), and whether there is room for it (`hub`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_util::task::AtomicWaker;

use crate::config::limits::{UPLINK_BYTES_MAX, UPLINK_PUBLISHES_MAX};
use crate::event::{Epoch, Event, EventId};
use crate::publishing::IdempotencyKey;
use crate::refusal::Refusal;

/// Which publish of which client: the next client in the slot has another number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// The client's slot on its shard.
    pub slot: u32,
    /// Given by the shard to the client that has the slot now, to no other one before or after.
    pub number: u64,
    /// What the client's protocol knows the publish by.
    pub tag: u64,
}

/// What a client publishes.
#[derive(Debug)]
pub struct Publish {
    /// Where the answer belongs.
    pub ticket: Ticket,
    /// What it says.
    pub event: Event,
    /// Under which it may come again.
    pub key: Option<IdempotencyKey>,
}

/// An event of a client that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whose sequence it has: another epoch may have begun since.
    pub epoch: Epoch,
    /// Its place in the order.
    pub sequence: u64,
    /// It was taken before, under the same idempotency key, and is not published again.
    pub duplicate: bool,
}

impl Taken {
    /// Our id of it.
    pub fn id(&self) -> EventId {
        EventId { epoch: self.epoch, sequence: self.sequence }
    }
}

/// What became of a publish.
pub type Outcome = Result<Taken, Refusal>;

/// The hub's word on one publish.
#[derive(Debug)]
pub struct Answer {
    /// Whose publish it was.
    pub ticket: Ticket,
    /// What became of it.
    pub outcome: Outcome,
}

/// What both ends share.
#[derive(Debug, Default)]
struct Shared {
    /// The hub, while it waits.
    hub: AtomicWaker,
    /// Bytes of events in the queue.
    bytes: AtomicUsize,
}

/// A shard's end.
#[derive(Debug)]
pub struct Uplink {
    queue: Sender<Publish>,
    answers: Receiver<Vec<Answer>>,
    shared: Arc<Shared>,
    /// 0 <= unanswered <= UPLINK_PUBLISHES_MAX.
    unanswered: usize,
    /// Something was queued since the hub was woken last.
    has_news: bool,
}

/// The hub's end.
#[derive(Debug)]
pub struct HubEnd {
    queue: Receiver<Publish>,
    answers: Sender<Vec<Answer>>,
    shared: Arc<Shared>,
}

/// An empty uplink.
pub(super) fn uplink() -> (Uplink, HubEnd) {
    let ((publishes, queue), (answer, answers)) = (unbounded(), unbounded());
    let shared = Arc::new(Shared::default());
    let shard = Uplink { queue: publishes, answers, shared: shared.clone(), unanswered: 0, has_news: false };
    (shard, HubEnd { queue, answers: answer, shared })
}

impl Uplink {
    /// How many publishes more may be queued now; the last one of them may be of any size.
    pub fn room(&self) -> usize {
        match self.shared.bytes.load(Ordering::Relaxed) < UPLINK_BYTES_MAX {
            true => UPLINK_PUBLISHES_MAX - self.unanswered,
            false => 0,
        }
    }

    /// Queues a publish for which there is room. False if the hub is gone: then nobody answers, and
    /// the process is about to end.
    pub fn send(&mut self, publish: Publish) -> bool {
        assert!(self.unanswered < UPLINK_PUBLISHES_MAX, "a shard asks for room before it publishes");
        self.shared.bytes.fetch_add(publish.event.weight(), Ordering::Relaxed);
        let sent = self.queue.send(publish).is_ok();
        self.unanswered += usize::from(sent);
        self.has_news |= sent;
        sent
    }

    /// Wakes the hub if something was queued and it may be asleep.
    pub fn wake_hub(&mut self) {
        if std::mem::take(&mut self.has_news) {
            self.shared.hub.wake();
        }
    }

    /// Answers that are there, in the order of their publishes.
    pub fn answers(&mut self) -> Option<Vec<Answer>> {
        let answers = self.answers.try_recv().ok()?;
        self.unanswered -= answers.len();
        Some(answers)
    }

    /// Where answers come, for a look whether one is there.
    pub(super) fn receiver(&self) -> Receiver<Vec<Answer>> {
        self.answers.clone()
    }
}

impl HubEnd {
    /// Takes the next publish, if there is one.
    pub fn take(&self) -> Option<Publish> {
        let publish = self.queue.try_recv().ok()?;
        self.shared.bytes.fetch_sub(publish.event.weight(), Ordering::Relaxed);
        Some(publish)
    }

    /// True if nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Has `waker` woken when the shard queues something from now on. What it queued before is to
    /// be looked for afterwards.
    pub fn wake_with(&self, waker: &Waker) {
        self.shared.hub.register(waker);
    }

    /// Queues answers, at least one, to as many publishes; a shard that has ended misses nothing.
    pub(super) fn answer(&self, answers: Vec<Answer>) {
        debug_assert!(!answers.is_empty());
        let _ = self.answers.send(answers);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use bytes::Bytes;

    use super::*;
    use crate::event::{Data, Topic};

    fn publish(tag: u64, bytes: usize) -> Publish {
        let event = Event {
            topic: Topic::new("t").expect("a topic"),
            data: Data::binary(Bytes::from(vec![0; bytes])),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        Publish { ticket: Ticket { slot: 1, number: 2, tag }, event, key: None }
    }

    fn answer(publish: Publish) -> Answer {
        Answer {
            ticket: publish.ticket,
            outcome: Ok(Taken { epoch: Epoch(1), sequence: 1, duplicate: false }),
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_has_no_answer_has_a_place_and_no_more_than_those() {
        let (mut shard, hub) = uplink();
        for tag in 0..UPLINK_PUBLISHES_MAX as u64 {
            assert!(shard.room() > 0 && shard.send(publish(tag, 1)));
        }
        assert_eq!(shard.room(), 0);
        let taken: Vec<Publish> = std::iter::from_fn(|| hub.take()).collect();
        assert_eq!(shard.room(), 0, "they are taken, but not answered");
        for publish in taken {
            hub.answer(vec![answer(publish)]);
        }
        for tag in 0..UPLINK_PUBLISHES_MAX as u64 {
            assert_eq!(shard.answers().expect("an answer")[0].ticket.tag, tag);
        }
        assert!(shard.answers().is_none());
        assert_eq!(shard.room(), UPLINK_PUBLISHES_MAX);
    }

    #[test]
    fn large_events_take_the_room_until_the_hub_has_taken_them() {
        let (mut shard, hub) = uplink();
        assert!(shard.send(publish(0, 2 * UPLINK_BYTES_MAX)), "one of any size");
        assert_eq!(shard.room(), 0);
        hub.take().expect("the large one");
        assert_eq!(shard.room(), UPLINK_PUBLISHES_MAX - 1);
    }

    #[test]
    fn a_hub_that_waits_is_woken_once_for_all_of_a_turn() {
        let (mut shard, hub) = uplink();
        let wakes = Arc::new(Wakes::default());
        hub.wake_with(&wakes.clone().into());
        shard.wake_hub();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "there is nothing for it");
        for tag in 0..3 {
            shard.send(publish(tag, 1));
        }
        shard.wake_hub();
        shard.send(publish(3, 1));
        shard.wake_hub();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "it is awake from then on");
        assert!(!hub.is_empty());
    }
}

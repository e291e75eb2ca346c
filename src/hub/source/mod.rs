//! Where events and their sequences come from.
//!
//! ```text
//!                 publish                    place, place_removal, tell_hole(_of), begin_era
//!   publishers ──────────►  Intake ──► Source ─────────────────────────────────► Intake ──► shards
//!        ▲                    │           │
//!        │  Published::Taken  │           │  Reply
//!        ╰────────────────────┴───────────╯
//! ```
//!
//! What a source is to do:
//! - **Identity.** It has an epoch, from the start ([`HubSetup`](super::HubSetup)). Where its log
//!   is lost or made anew, it says so with another one ([`Intake::begin_era`](super::Intake)).
//! - **Publish.** *Local* gives the next sequence at once, and so does a *store* that promises no
//!   more than to write it soon; one that promises more answers when the disk has it. A *remote*
//!   one gets a [`Submission`] and answers it by its [`Reply`], whenever it knows. What was handed
//!   over and has no answer is bounded in number and bytes. All of it is handed over in the order
//!   of its coming.
//! - **Read.** What a remote source gives comes in by `Hub::place_at` and `Hub::place_word`, which
//!   wait for room, in the order of its sequences, which rise, with holes. What this process handed
//!   over comes in that way too, once: who publishes gets an answer, not a place.
//! - **History.** Before anybody listens, hub and shards begin with what the source holds
//!   ([`OpenHub::restore`](super::OpenHub)).
//! - **Health.** What keeps it from taking publishes is told by
//!   [`Intake::degrade`](super::Intake), and that it is over.
//!
//! Not here: who may publish, and room for events (`intake`); encoding and order towards the
//! shards.

mod core;
pub mod jetstream;
mod nodes;
pub mod relay;
pub(super) mod stats;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::{Hub, Intake};
use crate::broadcast::{Outcome, Taken};
use crate::clock::Stamp;
use crate::config::limits::{
    REMOTE_BYTES_MAX, REMOTE_PUBLISHES_MAX, SOURCE_SETTLE_MS_MAX, STALL_RETRY_MS, TOPIC_RETRY_MS,
};
use crate::event::{Event, Topic};
use crate::publishing::IdempotencyKey;
use crate::refusal::{Refusal, RefusalReason};
use crate::store::StoreReport;
pub use store::{Owed, Stored, news};

pub(super) mod store;

/// Who gives the sequences.
#[derive(Debug, Default)]
pub enum Source {
    /// This process, without a memory that outlives it.
    #[default]
    Local,
    /// This process, and a store keeps what it takes.
    Store(Box<Stored>),
    /// Somebody who answers later.
    Remote(Remote),
}

impl Source {
    /// True if another publish would be taken.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Source::Local => true,
            Source::Store(stored) => stored.has_room(),
            Source::Remote(remote) => remote.has_room(),
        }
    }

    /// What a store has counted.
    pub(super) fn store_report(&self) -> Option<StoreReport> {
        match self {
            Source::Store(stored) => Some(stored.report()),
            Source::Local | Source::Remote(_) => None,
        }
    }

    /// True if it owes nobody an answer.
    fn is_idle(&self) -> bool {
        match self {
            Source::Local => true,
            Source::Store(stored) => stored.is_idle(),
            Source::Remote(remote) => held(&remote.held) == 0,
        }
    }
}

/// What became of a publish by the time it was handed to the source.
#[derive(Debug)]
pub enum Published {
    /// It has its place.
    Taken(Taken),
    /// The source has it, and answers later.
    Later(Waiting),
}

impl Published {
    /// What becomes of it.
    pub async fn outcome(self) -> Outcome {
        match self {
            Published::Taken(taken) => Ok(taken),
            Published::Later(waiting) => waiting.await,
        }
    }
}

/// What is asked of a source.
#[derive(Debug)]
pub enum Wish {
    /// To take an event, unless it was taken before under the key.
    Publish(Event, Option<IdempotencyKey>),
    /// To remove what came of a topic so far.
    Remove(Topic),
}

/// A wish on its way to a remote source.
#[derive(Debug)]
pub struct Submission {
    /// What is wanted.
    pub wish: Wish,
    /// When it came.
    pub intake: Stamp,
    /// The same in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who is to hear what became of it.
    pub reply: Reply,
}

/// Where a source says what became of a wish. One that is dropped says that nobody knows.
#[derive(Debug)]
pub struct Reply {
    answer: oneshot::Sender<Outcome>,
    held: Held,
}

impl Reply {
    /// It got this sequence, or was taken before, or was refused.
    pub fn tell(self, outcome: Outcome) {
        // One that has left wants no answer.
        let _ = self.answer.send(outcome);
        drop(self.held);
    }
}

/// The part that a wish without an answer takes of what a source may hold.
#[derive(Debug)]
struct Held {
    bytes: usize,
    of: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An answer that is owed, and where it comes; it counts so many bytes until then.
fn owed(bytes: usize, of: &Arc<AtomicUsize>) -> (Reply, Waiting) {
    of.fetch_add(bytes, Ordering::Relaxed);
    let (answer, answered) = oneshot::channel();
    (Reply { answer, held: Held { bytes, of: of.clone() } }, Waiting(answered))
}

/// Bytes without an answer.
fn held(of: &AtomicUsize) -> usize {
    of.load(Ordering::Relaxed)
}

/// An answer that is to come.
#[derive(Debug)]
pub struct Waiting(oneshot::Receiver<Outcome>);

impl Waiting {
    /// The answer, if it is there.
    pub fn try_take(&mut self) -> Option<Outcome> {
        match self.0.try_recv() {
            Ok(outcome) => Some(outcome),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(Refusal::outcome_unknown())),
        }
    }
}

impl Future for Waiting {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let answer = Pin::new(&mut self.0).poll(context);
        answer.map(|answer| answer.unwrap_or_else(|_| Err(Refusal::outcome_unknown())))
    }
}

/// The way to a source that answers later.
#[derive(Debug)]
pub struct Remote {
    wishes: mpsc::Sender<Submission>,
    /// Bytes of what was handed over and has no answer.
    held: Arc<AtomicUsize>,
    bytes_max: usize,
}

/// What a remote source does with the hub.
impl Hub {
    /// Takes in an event that its source has given this sequence, once there is room for it. It
    /// goes to the shards with the next [`Hub::flush`], at the latest with a batch's worth. One
    /// that is not fit for this process is counted as refused, and only its sequence is used. False
    /// once the hub takes nothing more.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) async fn place(&self, event: Event, sequence: u64, unix_ms: u64) -> bool {
        self.place_at(event, sequence, unix_ms, self.now()).await
    }

    /// The same for an event that is as old as if it had come then.
    pub(crate) async fn place_at(&self, event: Event, sequence: u64, unix_ms: u64, intake_at: Stamp) -> bool {
        let (memory, unfit) = {
            let intake = self.intake();
            (intake.memory_of(&event), intake.unfit(&event))
        };
        if let Some(refusal) = unfit {
            tracing::debug!(topic = %event.topic, sequence, "an event of the source is not taken: {refusal}");
            self.counted(refusal);
            return !self.intake().is_over();
        }
        let has_room = |intake: &Intake| intake.room_to_place(memory).is_ok();
        self.place_where(has_room, |intake| intake.place(event, sequence, unix_ms, intake_at)).await
    }

    /// The same with a word that is no event: a removal, a hole, another epoch.
    pub(crate) async fn place_word(&self, place: impl FnOnce(&mut Intake)) -> bool {
        self.place_where(Intake::room_for_word, place).await
    }

    /// Places something once there is room for it. While the process hands over it waits: what is
    /// handed over has an end. False once the hub takes nothing more.
    async fn place_where(&self, has_room: impl Fn(&Intake) -> bool, place: impl FnOnce(&mut Intake)) -> bool {
        loop {
            let changed = self.room.notified();
            {
                let mut intake = self.intake();
                if intake.is_over() {
                    return false;
                }
                if !intake.is_paused() && has_room(&intake) {
                    place(&mut intake);
                    break;
                }
            }
            self.flush();
            let _ = timeout(Duration::from_millis(TOPIC_RETRY_MS), changed).await;
        }
        if self.intake().is_stalled() {
            self.stalled.notify_one();
        }
        true
    }

    /// Waits until a remote source has answered all that was handed to it, but not for ever. Then
    /// nothing more is placed.
    pub(super) async fn settle_source(&self) {
        let settled = async {
            while !self.intake().source.is_idle() {
                sleep(Duration::from_millis(STALL_RETRY_MS)).await;
            }
        };
        if timeout(Duration::from_millis(SOURCE_SETTLE_MS_MAX), settled).await.is_err() {
            tracing::warn!("the source has not answered all publishes before the end");
        }
        self.intake().end_placing();
        self.room.notify_waiters();
    }
}

/// How a remote source holds the end of its way.
pub type Submissions = mpsc::Receiver<Submission>;

impl Remote {
    /// A way, and the end where wishes come out.
    pub fn new() -> (Remote, Submissions) {
        Remote::bounded(REMOTE_PUBLISHES_MAX, REMOTE_BYTES_MAX)
    }

    /// The same with room for so many that the source has not looked at, and so many bytes without
    /// an answer; the last of those may have any size.
    pub fn bounded(publishes_max: usize, bytes_max: usize) -> (Remote, Submissions) {
        let (wishes, submissions) = mpsc::channel(publishes_max);
        (Remote { wishes, held: Arc::default(), bytes_max }, submissions)
    }

    /// True if another wish would be taken.
    pub(super) fn has_room(&self) -> bool {
        held(&self.held) < self.bytes_max && self.wishes.capacity() > 0
    }

    /// Hands a wish over. It was not sent anywhere if it is refused here.
    pub(super) fn submit(&self, wish: Wish, intake: Stamp, unix_ms: u64) -> Result<Waiting, Refusal> {
        if !self.has_room() {
            return Err(Refusal::source_full());
        }
        let bytes = match &wish {
            Wish::Publish(event, _) => event.weight(),
            Wish::Remove(topic) => topic.as_str().len(),
        };
        let (reply, waiting) = owed(bytes, &self.held);
        match self.wishes.try_send(Submission { wish, intake, unix_ms, reply }) {
            Ok(()) => Ok(waiting),
            Err(_) => Err(Refusal::new(RefusalReason::Source, "the source of events is gone")),
        }
    }
}

#[cfg(test)]
mod tests;

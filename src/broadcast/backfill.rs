//! From the shards to the hub and back: the past that subscribers ask for and windows do not hold.
//!
//! Invariants worth naming:
//! - A shard bounds what it asks: each of its backfills and each search has at most one ask without
//!   an answer, and with those of clients that have left they are bounded too. So neither queue
//!   needs a bound of its own.
//! - Each ask is answered once, while hub and shard live.
//! - The hub registers *before* it looks at the queues, a shard wakes it *after* it has asked
//!   ([`AtomicWaker`]).
//! - All numbers here are positions (`eras`).
//!
//! Not here: who may ask for how much (`shard/backfill`), and where the past is (`hub/backfill`).

use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_util::task::AtomicWaker;

use crate::event::Topic;
use crate::wire::Format;

/// A topic or a pattern, and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PastTopicAsk {
    /// Its name.
    pub name: Topic,
    /// Of a stretch: its events after this position. Of a search: those up to it.
    pub at: u64,
    /// It is known that it was removed, if that was up to here.
    pub told: u64,
}

/// What a shard asks for.
#[derive(Debug, Clone)]
pub enum PastAsk {
    /// The next events of these topics.
    Stretch {
        /// At least one.
        topics: Arc<[PastTopicAsk]>,
        /// After this position.
        after: u64,
        /// Up to this one; above `after`.
        until: u64,
        /// As bytes in this format.
        format: Format,
    },
    /// After which position each topic has its last so many events, up to where it is asked for; one
    /// number for each.
    Last(Arc<[PastTopicAsk]>, Vec<u64>),
    /// After which position events were taken in at this time or later, in milliseconds since 1970.
    Since(Arc<[PastTopicAsk]>, u64),
}

/// Events of the past, in the order of their positions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stretch {
    /// Their frames, one behind the other.
    pub bytes: Bytes,
    /// How many they are.
    pub frames: u32,
    /// Nothing that was asked for is missing up to here, save what `lost` tells.
    pub to: u64,
    /// Which of the topics, by their place in the ask, may lack events that were asked for, and up to
    /// where.
    pub lost: Vec<(usize, u64)>,
}

/// What a shard is answered.
#[derive(Debug)]
pub enum PastAnswer {
    /// The next events.
    Stretch(Stretch),
    /// Positions, one for each topic.
    Begins(Vec<u64>),
    /// The source cannot be read now.
    Away,
}

/// A shard's end.
#[derive(Debug)]
pub struct PastAsker {
    asks: Sender<(u64, PastAsk)>,
    answers: Receiver<(u64, PastAnswer)>,
    hub: Arc<AtomicWaker>,
}

/// The hub's end.
#[derive(Debug)]
pub struct PastDesk {
    asks: Receiver<(u64, PastAsk)>,
    answers: Sender<(u64, PastAnswer)>,
    hub: Arc<AtomicWaker>,
}

/// A path without asks.
pub(super) fn backfill() -> (PastAsker, PastDesk) {
    let ((asks, asked), (answer, answers)) = (unbounded(), unbounded());
    let hub = Arc::new(AtomicWaker::new());
    (PastAsker { asks, answers, hub: hub.clone() }, PastDesk { asks: asked, answers: answer, hub })
}

impl PastAsker {
    /// Asks; the answer has the same number. False if the hub is gone.
    pub fn ask(&self, number: u64, ask: PastAsk) -> bool {
        let asked = self.asks.send((number, ask)).is_ok();
        if asked {
            self.hub.wake();
        }
        asked
    }

    /// The next answer that is there.
    pub fn next_answer(&self) -> Option<(u64, PastAnswer)> {
        self.answers.try_recv().ok()
    }

    /// Where answers come, for a look whether one is there.
    pub(super) fn receiver(&self) -> Receiver<(u64, PastAnswer)> {
        self.answers.clone()
    }
}

impl PastDesk {
    /// Takes the next ask, if there is one.
    pub fn take(&self) -> Option<(u64, PastAsk)> {
        self.asks.try_recv().ok()
    }

    /// True if nobody asks.
    pub fn is_empty(&self) -> bool {
        self.asks.is_empty()
    }

    /// Has `waker` woken when the shard asks from now on. What it asked before is to be looked for
    /// afterwards.
    pub fn wake_with(&self, waker: &Waker) {
        self.hub.register(waker);
    }

    /// Answers an ask that was taken; a shard that has ended misses nothing.
    pub(super) fn answer(&self, number: u64, answer: PastAnswer) {
        let _ = self.answers.send((number, answer));
    }
}

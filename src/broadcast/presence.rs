//! From the shards to the hub and back: how many subscribers a topic has on all shards.
//!
//! Invariants worth naming:
//! - A shard has at most [`PRESENCES_MAX`] asks without an answer, so neither queue is ever full.
//! - Each ask is answered once, while hub and shard live.
//! - The hub registers *before* it looks at the queues, a shard wakes it *after* it has asked
//!   ([`AtomicWaker`]).
//!
//! Not here: how the hub finds out (`hub/presence`).

use std::sync::Arc;
use std::task::Waker;

use crossbeam_channel::{Receiver, Sender, bounded};
use futures_util::task::AtomicWaker;

use super::Ticket;
use crate::config::limits::PRESENCES_MAX;
use crate::event::Topic;
use crate::wire::Family;

/// Subscribers by family, on all shards; `None` if some shard did not say.
pub type Crowds = Option<[u64; Family::COUNT]>;

/// A shard's end.
#[derive(Debug)]
pub struct Asker {
    asks: Sender<(Ticket, Topic)>,
    answers: Receiver<(Ticket, Crowds)>,
    hub: Arc<AtomicWaker>,
    /// 0 <= unanswered <= PRESENCES_MAX.
    unanswered: usize,
}

/// The hub's end.
#[derive(Debug)]
pub struct Answerer {
    asks: Receiver<(Ticket, Topic)>,
    answers: Sender<(Ticket, Crowds)>,
    hub: Arc<AtomicWaker>,
}

/// A path without asks.
pub(super) fn presence() -> (Asker, Answerer) {
    let (asks, asked) = bounded(PRESENCES_MAX);
    let (answer, answers) = bounded(PRESENCES_MAX);
    let hub = Arc::new(AtomicWaker::new());
    let shard = Asker { asks, answers, hub: hub.clone(), unanswered: 0 };
    (shard, Answerer { asks: asked, answers: answer, hub })
}

impl Asker {
    /// Asks for the subscribers of `topic`. False if too many asks have no answer yet, or the hub
    /// is gone.
    pub fn ask(&mut self, ticket: Ticket, topic: Topic) -> bool {
        let asked = self.unanswered < PRESENCES_MAX && self.asks.try_send((ticket, topic)).is_ok();
        if asked {
            self.unanswered += 1;
            self.hub.wake();
        }
        asked
    }

    /// The next answer that is there.
    pub fn next_answer(&mut self) -> Option<(Ticket, Crowds)> {
        let answer = self.answers.try_recv().ok()?;
        self.unanswered -= 1;
        Some(answer)
    }

    /// Where answers come, for a look whether one is there.
    pub(super) fn receiver(&self) -> Receiver<(Ticket, Crowds)> {
        self.answers.clone()
    }
}

impl Answerer {
    /// Takes the next ask, if there is one.
    pub fn take(&self) -> Option<(Ticket, Topic)> {
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
    pub(super) fn answer(&self, ticket: Ticket, crowds: Crowds) {
        let _ = self.answers.try_send((ticket, crowds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_answer_has_a_place_and_no_more_than_those() {
        let (mut shard, hub) = presence();
        let topic = Topic::new("t").expect("a topic");
        let ticket = |tag| Ticket { slot: 1, number: 2, tag };
        for tag in 0..PRESENCES_MAX as u64 {
            assert!(shard.ask(ticket(tag), topic.clone()));
        }
        assert!(!shard.ask(ticket(0), topic.clone()));
        let asked: Vec<Ticket> = std::iter::from_fn(|| hub.take()).map(|(ticket, _)| ticket).collect();
        assert!(!shard.ask(ticket(0), topic.clone()), "they are taken, but not answered");
        asked.into_iter().for_each(|ticket| hub.answer(ticket, Some([ticket.tag, 0])));
        for tag in 0..PRESENCES_MAX as u64 {
            assert_eq!(shard.next_answer(), Some((ticket(tag), Some([tag, 0]))));
        }
        assert!(shard.next_answer().is_none() && shard.ask(ticket(0), topic));
    }
}

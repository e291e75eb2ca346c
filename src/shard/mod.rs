//! One shard: all connections of one core, and the turn that serves them.
//!
//! A turn is: take what the hub sent, reap what the kernel finished, answer a question, let time
//! pass, sweep, submit. What clients publish goes to the hub as it is reaped. Each part is bounded
//! and works at its own pace; completions and messages only mark what is to be done. The shard
//! neither sleeps nor reads the clock: its driver
//! (`runtime`, a test, a benchmark) passes the time and heeds [`Turn`].

use tokio::sync::oneshot;

use crate::admission::Bucket;
use crate::broadcast::{Doors, Encoded, Inbox, Message, Question};
use crate::clock::Stamp;
use crate::config::limits::{EVENTS_PER_TURN_MAX, MESSAGES_PER_TURN_MAX};
use crate::egress::{EgressRing, RingError};

mod access;
mod admit;
mod backfill;
pub mod batch;
mod commands;
pub mod connections;
mod echo;
#[cfg(test)]
mod fixtures;
mod forgotten;
mod greeting;
mod holes;
mod ids;
mod names;
mod posts;
mod publishers;
mod raw;
mod reap;
mod slots;
mod slow;
mod start;
mod state;
mod subscribe;
mod sweep;
#[cfg(test)]
mod tests;
mod ticks;
mod tokens;
pub mod topics;
pub mod window;

pub use state::{ShardSetup, State, Work};

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do at once.
    Busy,
    /// Nothing to do until the doorbell rings or a tick passes.
    Idle,
    /// The hub has told the shard to end, which it does when every shard's subscribers are gone.
    Ended,
}

/// A shard and its ring.
#[derive(Debug)]
pub struct Shard<R> {
    ring: R,
    inbox: Inbox,
    state: State,
    /// True from [`Message::End`] on.
    told_to_end: bool,
    /// Where it is to be said that nobody comes in any more.
    closing: Option<oneshot::Sender<()>>,
}

impl<R: EgressRing> Shard<R> {
    /// A shard without connections.
    pub fn new(setup: ShardSetup, ring: R, mut inbox: Inbox, now: Stamp) -> Shard<R> {
        let mut state =
            State::new(setup, (inbox.take_uplink(), inbox.take_asker(), inbox.take_past_asker()), now);
        state.carries = ring.carries_streams();
        Shard { ring, inbox, state, told_to_end: false, closing: None }
    }

    /// The date for the answers from now on (RFC 9110 §6.6.1). A shard that was never told tells
    /// none.
    pub fn set_date(&mut self, date: String) {
        self.state.date = Some(date);
    }

    /// The time of day at `now`: milliseconds since 1970. A shard that was never told believes in
    /// 1970.
    pub fn set_time(&mut self, unix_ms: u64, now: Stamp) {
        self.state.tell_time(unix_ms, now);
    }

    /// One turn at the time `now`.
    pub fn turn(&mut self, now: Stamp) -> Result<Turn, RingError> {
        let ticks = self.state.begin_turn(now);
        // A question is looked at before the messages, however many wait, and answered after them:
        // so it knows the events that were sent before it, unless there are more to take than a
        // turn does. One per turn: a question is answered within `QUESTIONS_MAX` turns, whatever
        // the ring and the queue of messages do.
        let question = self.inbox.next_question();
        // Before what clients say: one that comes from another shard may name an event that waits
        // here.
        let messages = self.take_messages()?;
        let per_second = self.state.setup.config.limits.handshakes_per_second_max;
        match per_second {
            0 => self.ring.allow_accepts(usize::MAX, usize::MAX),
            _ => {
                let more = self.state.bucket.fill(per_second, now.0);
                self.ring.allow_accepts(more, Bucket::most(per_second));
            }
        }
        let state = &mut self.state;
        // Before what clients say: they may say more once they are answered.
        state.take_crowds();
        state.check_waiting();
        state.take_answers();
        if !state.held_back.is_empty() {
            state.ask_again();
        }
        if state.topics.is_learning() || !state.learning.is_empty() {
            state.learn();
        }
        self.ring.reap(&mut |completion| state.handle_completion(completion));
        // Now it is known which sends of the last turn were not taken.
        state.go_on_with_backfills();
        if self.closing.is_some() && self.ring.holds_accepts() {
            // A hub that does not listen any more has given the wait up.
            let _ = self.closing.take().map(|closed| closed.send(()));
        }
        state.publishers.wake_hub();
        state.record_latencies();
        // A ring without room has not told yet which instant sends of the last turn it did not
        // take.
        if self.ring.room() > 0 {
            state.settle();
        }
        let asked_us = question.is_some();
        match question {
            None => {}
            // One that asks no more gives them back.
            Some(Question::Listeners(answer)) => drop(answer.send(self.ring.copy_listeners())),
            Some(question) => state.reply(question, self.ring.enters()),
        }
        if ticks > 0 {
            self.ring.retry_accepts();
            state.handle_ticks(ticks);
        }
        state.look_at_some();
        state.tell_of_hole();
        let room = self.ring.room();
        state.end_receives(&mut self.ring);
        let asked = state.sweep(&mut self.ring) || self.ring.room() != room;
        state.drain(ticks > 0 || !asked);
        if self.told_to_end {
            return Ok(Turn::Ended);
        }
        if asked || self.ring.wants_submit() {
            self.ring.submit()?;
        }
        let to_do = !state.ready.is_empty() || state.topics.is_active() || state.has_more_to_look_at();
        let to_do =
            to_do || state.telling.is_some() || state.topics.is_learning() || !state.learning.is_empty();
        let to_do = to_do || state.publishers.has_due() || state.has_waiting();
        let to_do = to_do || state.has_backfill_to_do();
        let more = asked || messages > 0 || asked_us || to_do;
        Ok(if more { Turn::Busy } else { Turn::Idle })
    }

    /// Takes what the hub sent, a bounded number of events. Returns how many messages.
    fn take_messages(&mut self) -> Result<usize, RingError> {
        let (mut taken, mut evicted) = (0, 0);
        while taken < MESSAGES_PER_TURN_MAX
            && self.state.work.events + evicted < EVENTS_PER_TURN_MAX
            // Nothing comes behind a hole before all know of it.
            && self.state.telling.is_none()
        {
            let Some(message) = self.inbox.try_recv() else { break };
            taken += 1;
            match message {
                Message::Batch(batch) => self.state.take_events(&batch),
                Message::Removal(removal) => self.state.take_removal(&removal),
                Message::Hole(position) => self.state.take_hole(position),
                Message::TopicHole(hole) => self.state.take_topic_hole(&hole),
                Message::Era(era) => self.state.take_era(era),
                Message::Drain(drain) => self.state.begin_drain(drain),
                Message::Histories(bytes) => evicted += self.state.topics.hold_histories(bytes),
                Message::Reload(config) => {
                    self.ring.allow_heads(config.limits.handshake_bytes_max, config.limits.handshake_ms_max);
                    self.state.setup.config = config;
                }
                Message::Restore(past, said) => {
                    self.state.restore(&past);
                    let _ = said.send(());
                }
                Message::Doors(doors, said) => self.turn_doors(doors, said)?,
                Message::End => self.told_to_end = true,
            }
        }
        Ok(taken)
    }

    /// Lets clients in or not. That none comes in any more is said once the ring says so.
    fn turn_doors(&mut self, doors: Doors, said: oneshot::Sender<()>) -> Result<(), RingError> {
        self.closing = None;
        match doors {
            Doors::Open => self.ring.open_accepts()?,
            Doors::Left => self.ring.leave_listeners(),
            Doors::Closed => {
                self.ring.hold_accepts();
                self.closing = Some(said);
                return Ok(());
            }
        }
        let _ = said.send(());
        Ok(())
    }

    /// The ring, for a test that asks after its streams.
    pub fn ring(&self) -> &R {
        &self.ring
    }

    /// True if the shard may await its doorbell: nothing is queued, reaped or sent meanwhile.
    pub fn may_sleep(&mut self) -> bool {
        if !self.ring.may_sleep() {
            return false;
        }
        if !self.inbox.may_sleep() {
            self.ring.awake();
            return false;
        }
        self.state.metrics.sleeps += 1;
        true
    }

    /// The shard was woken.
    pub fn awake(&mut self) {
        self.inbox.doorbell().awake();
        self.ring.awake();
    }

    /// The ring, for a driver that sleeps in it, and for a test that plays the peers.
    pub fn ring_mut(&mut self) -> &mut R {
        &mut self.ring
    }

    /// What the last turn has done.
    pub fn work(&self) -> Work {
        self.state.work
    }

    /// Bytes of memory of the events in the windows.
    pub fn window_memory(&self) -> usize {
        self.state.topics.memory()
    }

    /// Events that stay beyond the histories, for subscribers that still lack them, and their
    /// memory.
    pub fn excess(&self) -> (usize, usize) {
        self.state.topics.excess()
    }

    /// The retained values, oldest first.
    pub fn retained_values(&self) -> impl Iterator<Item = &std::sync::Arc<Encoded>> {
        self.state.topics.retained_values()
    }

    /// Sequence and memory of every event that is in a window or retained, by sequence.
    pub fn living_events(&self) -> std::collections::BTreeSet<(u64, usize)> {
        let topics = &self.state.topics;
        let windows = topics.after("").flat_map(|topic| topic.window.newest_first());
        windows.chain(topics.retained_values()).map(|event| (event.sequence, event.memory())).collect()
    }

    /// The sequences of the events in all histories, by topic.
    pub fn histories(&self) -> impl Iterator<Item = u64> {
        let windows = self.state.topics.after("").map(|topic| &topic.window);
        windows.flat_map(|window| window.history().map(|event| event.sequence))
    }

    /// The counters.
    pub fn metrics(&self) -> &crate::metrics::ShardMetrics {
        &self.state.metrics
    }
}

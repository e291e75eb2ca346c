//! What clients of the shards publish: taken from the uplinks, answered on the side paths.
//!
//! Invariants worth naming:
//! - All that waits when the hub wakes up is accepted together, flushed once, and answered with one
//!   message per shard. Then other work of the hub has its turn.
//! - No shard waits for another one's flood: each has its share of a round
//!   ([`UPLINK_SHARE`]), and the next round begins with the next shard.
//! - A shard's publishes are answered in their order: what a source answers later holds up the
//!   answers behind it, and nothing else.
//! - A publish is admitted like a single one of the control plane: nobody waits for room here.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::source::{Published, Waiting};
use super::{Hub, Intake};
use crate::broadcast::{Answer, Outbox, Outcome, Publish, Ticket};
use crate::clock::{Stamp, unix_ms};
use crate::config::limits::{UPLINK_ROUND_MAX, UPLINK_SHARE};
use crate::refusal::Refusal;

/// What shards are still to be told, by shard, in the order of their publishes.
#[derive(Debug, Default)]
pub(super) struct Owed(Vec<VecDeque<(Ticket, Word)>>);

/// What became of a publish, or where that is to be said.
#[derive(Debug)]
enum Word {
    Known(Outcome),
    Later(Waiting),
    /// What was said then.
    Said(Outcome),
}

impl Owed {
    /// Notes what became of the next publish of a shard.
    fn push(&mut self, shard: usize, ticket: Ticket, published: Result<Published, Refusal>) {
        let word = match published {
            Ok(Published::Taken(taken)) => Word::Known(Ok(taken)),
            Ok(Published::Later(waiting)) => Word::Later(waiting),
            Err(refusal) => Word::Known(Err(refusal)),
        };
        self.0[shard].push_back((ticket, word));
    }

    /// Ready once an answer has come that the oldest of some shard waited for.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for owed in &mut self.0 {
            if let Some((_, word)) = owed.front_mut()
                && let Word::Later(waiting) = word
                && let Poll::Ready(outcome) = Pin::new(waiting).poll(context)
            {
                *word = Word::Said(outcome);
            }
        }
        let is_due = |owed: &VecDeque<(Ticket, Word)>| {
            owed.front().is_some_and(|(_, word)| !matches!(word, Word::Later(_)))
        };
        if self.0.iter().any(is_due) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The answers for a shard that are there, in their order.
    fn due(&mut self, shard: usize, hub: &Hub) -> Vec<Answer> {
        let owed = &mut self.0[shard];
        let mut due = Vec::new();
        while let Some((ticket, word)) = owed.pop_front() {
            let outcome = match word {
                Word::Known(outcome) => outcome,
                Word::Said(outcome) => hub.counted_outcome(outcome),
                Word::Later(mut waiting) => match waiting.try_take() {
                    Some(outcome) => hub.counted_outcome(outcome),
                    None => {
                        owed.push_front((ticket, Word::Later(waiting)));
                        break;
                    }
                },
            };
            due.push(Answer { ticket, outcome });
        }
        due
    }
}

/// Serves the uplinks as long as the hub lives: while it drains, clients are told so.
pub(super) async fn serve(hub: Arc<Hub>) {
    let mut first = 0;
    let mut owed = Owed::default();
    loop {
        poll_fn(|context| {
            if owed.poll(context).is_ready() {
                return Poll::Ready(());
            }
            let intake = hub.intake();
            // Registered before the look: see `broadcast::uplink`.
            intake.outboxes().iter().for_each(|outbox| outbox.uplink().wake_with(context.waker()));
            match intake.outboxes().iter().all(|outbox| outbox.uplink().is_empty()) {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
        // The hand-over may have begun meanwhile.
        hub.resumed().await;
        hub.take_uplinks(first, &mut owed);
        first += 1;
        tokio::task::yield_now().await;
    }
}

impl Hub {
    /// Resolves at once, but while the process hands over. What clients publish waits then: some of
    /// them would not hear that it was refused.
    async fn resumed(&self) {
        loop {
            let changed = self.room.notified();
            let waits = {
                let intake = self.intake();
                intake.paused && !intake.is_draining()
            };
            if !waits {
                return;
            }
            changed.await;
        }
    }

    /// Takes what waits on the uplinks, a bounded number, beginning with shard `first`.
    pub(super) fn take_uplinks(&self, first: usize, owed: &mut Owed) {
        self.change(|intake| accept_round(intake, first, self.now(), owed));
        self.flush();
        for shard in 0..owed.0.len() {
            let answers = owed.due(shard, self);
            if !answers.is_empty() {
                self.intake().outboxes()[shard].answer(answers);
            }
        }
    }
}

/// Accepts or refuses publishes of all shards, in turns of a share, and notes what became of them.
fn accept_round(intake: &mut Intake, first: usize, now: Stamp, owed: &mut Owed) {
    let shards = intake.outboxes().len();
    owed.0.resize_with(shards, VecDeque::new);
    intake.tell_time(unix_ms());
    let mut left = UPLINK_ROUND_MAX;
    let mut idle = 0;
    let mut turn = first;
    while left > 0 && idle < shards {
        let shard = turn % shards;
        turn += 1;
        let mut taken = 0;
        while taken < UPLINK_SHARE.min(left)
            && let Some(Publish { ticket, event, key }) = next(intake.outboxes(), shard)
        {
            taken += 1;
            owed.push(shard, ticket, intake.publish(event, key, now));
        }
        left -= taken;
        // One that had less than its share is not asked again in this round.
        idle = if taken < UPLINK_SHARE { idle + 1 } else { 0 };
    }
}

fn next(outboxes: &[Outbox], shard: usize) -> Option<Publish> {
    outboxes[shard].uplink().take()
}

//! What clients of the shards publish: taken from the uplinks, answered on the side paths.
//!
//! Invariants worth naming:
//! - All that waits when the hub wakes up is accepted together, flushed once, and answered with one
//!   message per shard. Then other work of the hub has its turn.
//! - No shard waits for another one's flood: each has its share of a round
//!   ([`UPLINK_SHARE`]), and the next round begins with the next shard.
//! - A publish is admitted like a single one of the control plane: nobody waits for room here.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::{Hub, Intake};
use crate::broadcast::{Answer, Outbox, Publish};
use crate::clock::{Stamp, unix_ms};
use crate::config::limits::{UPLINK_ROUND_MAX, UPLINK_SHARE};

/// Serves the uplinks as long as the hub lives: while it drains, clients are told so.
pub(super) async fn serve(hub: Arc<Hub>) {
    let mut first = 0;
    loop {
        poll_fn(|context| {
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
        hub.take_uplinks(first);
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
    pub(super) fn take_uplinks(&self, first: usize) {
        let answers = self.change(|intake| accept_round(intake, first, self.now()));
        self.flush();
        let intake = self.intake();
        for (outbox, answers) in intake.outboxes().iter().zip(answers) {
            if !answers.is_empty() {
                outbox.answer(answers);
            }
        }
    }
}

/// Accepts or refuses publishes of all shards, in turns of a share. Returns the answers by shard.
fn accept_round(intake: &mut Intake, first: usize, now: Stamp) -> Vec<Vec<Answer>> {
    let shards = intake.outboxes().len();
    let mut answers: Vec<Vec<Answer>> = (0..shards).map(|_| Vec::new()).collect();
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
            let outcome = intake.accept_once(event, key, now);
            answers[shard].push(Answer { ticket, outcome });
        }
        left -= taken;
        // One that had less than its share is not asked again in this round.
        idle = if taken < UPLINK_SHARE { idle + 1 } else { 0 };
    }
    answers
}

fn next(outboxes: &[Outbox], shard: usize) -> Option<Publish> {
    outboxes[shard].uplink().take()
}

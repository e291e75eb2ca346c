//! The sends that wait longest for room in their socket, for the operator who asks.
//!
//! The walk over the slab that time asks for meets each of them once a second, and the oldest are
//! kept: a bounded number, and nothing per connection. What is told was looked at again.

use super::connections::Phase;
use super::state::State;
use crate::config::limits::{SLOW_SENDS_MAX, SLOW_TOPICS_MAX, TICK_MS};
use crate::egress::Slot;
use crate::metrics::SlowReport;

/// A send that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    /// Tick of its submission.
    since: u32,
    slot: Slot,
}

/// The oldest sends of one walk: sorted, at most [`SLOW_SENDS_MAX`].
#[derive(Debug, Default)]
struct Oldest(Vec<Waiting>);

impl Oldest {
    fn meet(&mut self, waiting: Waiting) {
        let at = self.0.partition_point(|other| *other < waiting);
        // The last walk may have met it too.
        if at < SLOW_SENDS_MAX && self.0.get(at) != Some(&waiting) {
            self.0.truncate(SLOW_SENDS_MAX - 1);
            self.0.insert(at, waiting);
        }
    }
}

/// What the walks have met.
#[derive(Debug, Default)]
pub(super) struct SlowSends {
    /// By the walk that is under way.
    met: Oldest,
    /// By the last whole one.
    before: Oldest,
}

impl SlowSends {
    /// The walk meets a send of `slot` that waits since the tick `since`.
    pub(super) fn meet(&mut self, slot: Slot, since: u32) {
        self.met.meet(Waiting { since, slot });
    }

    /// The walk begins anew.
    pub(super) fn end_walk(&mut self) {
        std::mem::swap(&mut self.met, &mut self.before);
        self.met.0.clear();
    }

    /// The oldest of both walks, the oldest first. Some may be over.
    fn all(&self) -> Vec<Waiting> {
        let mut all = Oldest(self.before.0.clone());
        self.met.0.iter().for_each(|waiting| all.meet(*waiting));
        all.0
    }
}

impl State {
    /// The subscribers whose sends wait longest, the slowest first.
    pub(super) fn slowest(&self) -> Vec<SlowReport> {
        let waiting = self.slow.all().into_iter().filter(|waiting| {
            let connection = self.connections.get(waiting.slot);
            connection.phase == Phase::Open && connection.sending && connection.since == waiting.since
        });
        waiting.map(|waiting| self.slow_report(waiting)).collect()
    }

    fn slow_report(&self, waiting: Waiting) -> SlowReport {
        let connection = self.connections.get(waiting.slot);
        let lacks = |(topic, from)| self.topics.get(topic).window.newer_than(from) as u64;
        let members = connection.memberships.as_slice();
        SlowReport {
            peer: connection.peer(),
            family: connection.format.family(),
            topics: self.names(members.iter().take(SLOW_TOPICS_MAX).map(|member| member.topic)),
            more_topics: members.len().saturating_sub(SLOW_TOPICS_MAX),
            lag_events: connection.memberships.iter_from(connection.cursor).map(lacks).sum(),
            waits_ms: u64::from(self.tick - waiting.since) * TICK_MS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_many_are_kept_the_oldest_first() {
        let mut slow = SlowSends::default();
        for walk in 0..3 {
            for slot in 0..1_000 {
                // In no order; those of the last walk are met again.
                slow.meet(slot, slot * 7 % 1_000 + walk / 2);
            }
            if walk < 2 {
                slow.end_walk();
            }
        }
        let told: Vec<u32> = slow.all().iter().map(|waiting| waiting.since).collect();
        assert_eq!(told.len(), SLOW_SENDS_MAX);
        assert!(told.is_sorted() && told[0] == 0 && told[15] < 16, "{told:?}");
    }

    #[test]
    fn one_that_both_walks_met_is_told_once_and_is_forgotten_after_a_walk_without_it() {
        let mut slow = SlowSends::default();
        slow.meet(3, 5);
        slow.end_walk();
        slow.meet(3, 5);
        assert_eq!(slow.all(), [Waiting { since: 5, slot: 3 }]);
        slow.end_walk();
        slow.end_walk();
        assert_eq!(slow.all(), []);
    }
}

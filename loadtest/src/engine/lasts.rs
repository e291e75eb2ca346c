//! When an event had reached the last of all steady subscribers, from what each receiver tells.
//!
//! A receiver tells an event once all of its own subscribers of the event's topic have it. An event
//! is through once every receiver that has subscribers of its topic has told it; the latest of them
//! counts. Receivers tell at different times, so events wait here; what waits is bounded, and the
//! oldest is given up first. Receivers that have much to tell leave events out, each its own share,
//! but by one rule ([`is_told`]): what the one with the smallest share tells, all of them tell.

use std::collections::{HashMap, VecDeque};

use crate::fleet::Group;
use crate::receiver::{LastArrival, is_told};

/// Events that wait for a further receiver.
const WAITING_MAX: usize = 1 << 18;

/// Merges what receivers tell.
#[derive(Debug, Default)]
pub struct Lasts {
    groups: Vec<Group>,
    /// One of 2^shift events is told by all.
    shift: u32,
    /// By the event's number.
    waiting: HashMap<u64, Waiting>,
    /// Numbers in the order in which they began to wait; some have gone since.
    order: VecDeque<u64>,
}

#[derive(Debug)]
struct Waiting {
    latest_ns: u64,
    /// Receivers that have not told yet, at least 1.
    missing: usize,
}

impl Lasts {
    /// For receivers of these connections.
    pub fn new(groups: Vec<Group>) -> Lasts {
        Lasts { groups, ..Lasts::default() }
    }

    /// Takes what a receiver tells, which is one of 2^`shift` events. Adds to `through` the
    /// nanoseconds from stamp to last arrival of the events that are through now, and how many
    /// events each of them stands for.
    pub fn take(&mut self, told: &[LastArrival], shift: u32, through: &mut Vec<(u64, u64)>) {
        if shift > self.shift {
            self.shift = shift;
            self.waiting.retain(|&number, _| is_told(number, shift));
        }
        let shift = self.shift;
        for last in told.iter().filter(|last| is_told(last.number, shift)) {
            let key = last.number;
            let hears = |group: &&Group| group.hears(key);
            let waiting = self.waiting.entry(key).or_insert_with(|| {
                self.order.push_back(key);
                Waiting { latest_ns: 0, missing: self.groups.iter().filter(hears).count() }
            });
            waiting.latest_ns = waiting.latest_ns.max(last.arrival_ns);
            waiting.missing = waiting.missing.saturating_sub(1);
            if waiting.missing == 0 {
                through.push((waiting.latest_ns.saturating_sub(last.stamp_ns), 1 << shift));
                self.waiting.remove(&key);
                if self.order.back() == Some(&key) {
                    self.order.pop_back();
                }
            }
        }
        while self.waiting.len() > WAITING_MAX || self.order.len() > 2 * WAITING_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.waiting.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receiver::Rota;

    fn told(number: u64, arrival_ns: u64) -> LastArrival {
        LastArrival { number, stamp_ns: 1_000, arrival_ns }
    }

    fn group(first: usize, connections: usize, streams: usize) -> Group {
        Group { first, connections, rota: Rota { streams, voices: 1 } }
    }

    #[test]
    fn an_event_is_through_with_the_latest_of_all_groups_whoever_tells_first() {
        let groups = vec![group(0, 5, 1), group(5, 5, 1)];
        let mut lasts = Lasts::new(groups);
        let mut through = Vec::new();
        lasts.take(&[told(1, 1_500), told(2, 1_700)], 0, &mut through);
        assert!(through.is_empty());
        lasts.take(&[told(2, 1_600)], 0, &mut through);
        lasts.take(&[told(1, 1_900)], 0, &mut through);
        assert_eq!(through, [(700, 1), (900, 1)]);
        assert!(lasts.waiting.is_empty());
    }

    #[test]
    fn only_groups_that_subscribe_to_the_topic_are_waited_for() {
        // Connections 0 to 2 have topics 0 to 2, connections 3 and 4 have topics 3 and 0.
        let groups = vec![group(0, 3, 4), group(3, 2, 4)];
        let mut lasts = Lasts::new(groups);
        let mut through = Vec::new();
        lasts.take(&[told(1, 1_100), told(2, 1_200)], 0, &mut through);
        assert_eq!(through, [(200, 1)]);
        lasts.take(&[told(4, 1_300), told(1, 1_400)], 0, &mut through);
        assert_eq!(through, [(200, 1), (300, 1), (400, 1)]);
        assert!(lasts.waiting.is_empty());
    }

    #[test]
    fn of_two_selections_the_smaller_one_counts_and_nothing_stays_behind() {
        let all: Vec<LastArrival> = (1..=1_000).map(|event| told(event, 1_050)).collect();
        let some: Vec<LastArrival> = all.iter().copied().filter(|last| is_told(last.number, 3)).collect();
        let mut lasts = Lasts::new(vec![group(0, 5, 1), group(5, 5, 1)]);
        let mut through = Vec::new();
        lasts.take(&all, 0, &mut through);
        lasts.take(&some, 3, &mut through);
        assert_eq!(through, vec![(50, 8); some.len()]);
        assert!(lasts.waiting.is_empty());
    }

    #[test]
    fn what_never_comes_is_given_up_in_the_end() {
        let groups = vec![group(0, 1, 1), group(1, 1, 1)];
        let mut lasts = Lasts::new(groups);
        let mut through = Vec::new();
        for event in 1..=WAITING_MAX as u64 + 10 {
            lasts.take(&[told(event, 2_000)], 0, &mut through);
        }
        assert_eq!(lasts.waiting.len(), WAITING_MAX);
        lasts.take(&[told(1, 2_000)], 0, &mut through);
        assert!(through.is_empty(), "the first was given up");
    }
}

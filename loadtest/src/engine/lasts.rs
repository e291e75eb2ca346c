//! When an event had reached the last of all steady subscribers, from what each group of them
//! tells.
//!
//! A group is a fleet: it tells an event once all of its own subscribers of the event's topic have
//! it. An event is through once every group that has subscribers of its topic has told it; the
//! latest of them counts. Groups tell at different times, so events wait here; what waits is
//! bounded, and the oldest is given up first.

use std::collections::{HashMap, VecDeque};

use crate::fleet::LastArrival;
use crate::receiver::listeners;

/// Events that wait for a further group.
const WAITING_MAX: usize = 1 << 18;

/// Connections of one fleet.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Number of the first.
    pub first: usize,
    /// How many.
    pub connections: usize,
}

/// Merges the groups' tellings.
#[derive(Debug)]
pub struct Lasts {
    topics: usize,
    groups: Vec<Group>,
    waiting: HashMap<Key, Waiting>,
    /// Keys in the order in which they began to wait; some have gone since.
    order: VecDeque<Key>,
}

/// Topic and sequence within it.
type Key = (usize, u64);

#[derive(Debug)]
struct Waiting {
    latest_ns: u64,
    weight: u64,
    /// Groups that have not told yet, at least 1.
    missing: usize,
}

impl Lasts {
    /// For groups of connections over so many topics.
    pub fn new(topics: usize, groups: Vec<Group>) -> Lasts {
        Lasts { topics, groups, waiting: HashMap::new(), order: VecDeque::new() }
    }

    /// Takes what a group tells, each standing for `weight` events; adds to `through` the
    /// nanoseconds from stamp to last arrival of the events that are through now, with their
    /// weight.
    pub fn take(&mut self, told: &[LastArrival], weight: u64, through: &mut Vec<(u64, u64)>) {
        for last in told {
            let concerned = self.groups.iter().filter(|group| group.has(last.topic, self.topics)).count();
            let key = (last.topic, last.event);
            let (mut latest_ns, mut weight) = (last.arrival_ns, weight);
            let mut missing = concerned.saturating_sub(1);
            if let Some(waiting) = self.waiting.get(&key) {
                latest_ns = latest_ns.max(waiting.latest_ns);
                weight = weight.max(waiting.weight);
                missing = waiting.missing - 1;
            } else if missing > 0 {
                self.order.push_back(key);
            }
            if missing == 0 {
                self.waiting.remove(&key);
                through.push((latest_ns.saturating_sub(last.stamp_ns), weight));
            } else {
                self.waiting.insert(key, Waiting { latest_ns, weight, missing });
            }
        }
        while self.waiting.len() > WAITING_MAX || self.order.len() > 2 * WAITING_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            self.waiting.remove(&oldest);
        }
    }
}

impl Group {
    /// True if one of the connections subscribes to `topic`.
    fn has(&self, topic: usize, topics: usize) -> bool {
        listeners(topic, topics, self.first, self.connections) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(event: u64, topic: usize, arrival_ns: u64) -> LastArrival {
        LastArrival { event, topic, stamp_ns: 1_000, arrival_ns }
    }

    #[test]
    fn an_event_is_through_with_the_latest_of_all_groups_whoever_tells_first() {
        let groups = vec![Group { first: 0, connections: 5 }, Group { first: 5, connections: 5 }];
        let mut lasts = Lasts::new(1, groups);
        let mut through = Vec::new();
        lasts.take(&[told(1, 0, 1_500), told(2, 0, 1_700)], 1, &mut through);
        assert!(through.is_empty());
        lasts.take(&[told(2, 0, 1_600)], 1, &mut through);
        lasts.take(&[told(1, 0, 1_900)], 1, &mut through);
        assert_eq!(through, [(700, 1), (900, 1)]);
        assert!(lasts.waiting.is_empty());
    }

    #[test]
    fn only_groups_that_subscribe_to_the_topic_are_waited_for() {
        // Connections 0 to 2 have topics 0 to 2, connections 3 and 4 have topics 3 and 0.
        let groups = vec![Group { first: 0, connections: 3 }, Group { first: 3, connections: 2 }];
        let mut lasts = Lasts::new(4, groups);
        let mut through = Vec::new();
        lasts.take(&[told(1, 0, 1_100), told(1, 1, 1_200)], 2, &mut through);
        assert_eq!(through, [(200, 2)]);
        lasts.take(&[told(1, 3, 1_300), told(1, 0, 1_400)], 1, &mut through);
        assert_eq!(through, [(200, 2), (300, 1), (400, 2)]);
    }

    #[test]
    fn what_never_comes_is_given_up_in_the_end() {
        let groups = vec![Group { first: 0, connections: 1 }, Group { first: 1, connections: 1 }];
        let mut lasts = Lasts::new(1, groups);
        let mut through = Vec::new();
        for event in 1..=WAITING_MAX as u64 + 10 {
            lasts.take(&[told(event, 0, 2_000)], 1, &mut through);
        }
        assert_eq!(lasts.waiting.len(), WAITING_MAX);
        lasts.take(&[told(1, 0, 2_000)], 1, &mut through);
        assert!(through.is_empty(), "the first was given up");
    }
}

//! Which topics were removed when: what came before is no past of theirs any more, although a source
//! may still have it.

use std::collections::{BTreeMap, HashMap};

use crate::config::limits::REMOVALS_MAX;
use crate::event::Topic;

/// The last removal of each topic, of a bounded number of topics.
#[derive(Debug, Default)]
pub(in crate::hub) struct Removals {
    by_position: BTreeMap<u64, Topic>,
    by_topic: HashMap<Topic, u64>,
    /// The newest that is not remembered: nothing before it counts, of any topic.
    floor: u64,
}

impl Removals {
    /// A topic was removed at this position.
    pub(in crate::hub) fn note(&mut self, topic: Topic, position: u64) {
        if let Some(before) = self.by_topic.insert(topic.clone(), position) {
            self.by_position.remove(&before);
        }
        self.by_position.insert(position, topic);
        if self.by_position.len() > REMOVALS_MAX
            && let Some((oldest, topic)) = self.by_position.pop_first()
        {
            self.by_topic.remove(&topic);
            // Those of a former process come in any order.
            self.floor = self.floor.max(oldest);
        }
    }

    /// Those after a position, oldest first.
    pub(super) fn after(&self, position: u64) -> impl Iterator<Item = (u64, &Topic)> {
        self.by_position.range(position + 1..).map(|(position, topic)| (*position, topic))
    }

    /// What is up to here counts no more.
    pub(super) fn floor(&self) -> u64 {
        self.floor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_removal_counts_and_of_too_many_the_oldest_stands_for_all() {
        let mut removals = Removals::default();
        let topic = |number: usize| Topic::new(&format!("t{number}")).expect("a topic");
        removals.note(topic(1), 5);
        removals.note(topic(2), 7);
        removals.note(topic(1), 9);
        let after = |removals: &Removals, position| {
            removals.after(position).map(|(position, _)| position).collect::<Vec<_>>()
        };
        assert_eq!(after(&removals, 0), [7, 9]);
        assert_eq!(after(&removals, 7), [9]);
        assert_eq!(removals.floor(), 0);
        for number in 0..REMOVALS_MAX {
            removals.note(topic(10 + number), 10 + number as u64);
        }
        assert_eq!(removals.floor(), 9, "those of t2 and t1 are forgotten");
        assert_eq!(after(&removals, 0).len(), REMOVALS_MAX);
    }
    #[test]
    fn removals_of_a_former_process_that_are_not_remembered_stand_for_all_in_any_order() {
        let mut removals = Removals::default();
        let topic = |number: u64| Topic::new(&format!("t{number}")).expect("a topic");
        for position in (10..10 + REMOVALS_MAX as u64).chain([7, 3]) {
            removals.note(topic(position), position);
        }
        assert_eq!(removals.floor(), 7, "that of 7 is not remembered, so nothing before it counts");
    }
}

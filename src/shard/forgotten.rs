//! What a shard keeps of topics that it has forgotten: the sequence of the last event that left
//! each.
//!
//! A client that comes back to a topic after a quiet time has lost nothing, although no window of
//! it is left. So a few bytes are kept for longer than the topic, of a bounded number of topics.
//! Beyond it one sequence stands for all that were dropped: a client that comes back to one of
//! those is told of a gap that may be none.

use std::collections::{BTreeMap, HashMap};

use crate::event::Topic;
use crate::topic_pattern::Pattern;

/// Last sequences by topic.
#[derive(Debug, Default)]
pub struct Forgotten {
    by_name: HashMap<Topic, u64>,
    /// The same; an event belongs to one topic, so no two have the same sequence.
    by_sequence: BTreeMap<u64, Topic>,
    /// The newest sequence of those that were dropped.
    dropped: u64,
}

impl Forgotten {
    /// Remembers that the events of `name` up to `sequence` are gone.
    pub fn note(&mut self, name: Topic, sequence: u64) {
        // Nothing ever came here, or what all strangers are taken for says as much.
        if sequence > self.dropped {
            self.by_sequence.insert(sequence, name.clone());
            self.by_name.insert(name, sequence);
        }
    }

    /// What a former process remembered.
    pub fn restored(past: &[(Topic, u64)], dropped: u64) -> Forgotten {
        let mut forgotten = Forgotten { dropped, ..Forgotten::default() };
        past.iter().for_each(|(name, sequence)| forgotten.note(name.clone(), *sequence));
        forgotten
    }

    /// All that are kept, and the newest sequence of those that were dropped.
    pub fn all(&self) -> (Vec<(Topic, u64)>, u64) {
        (self.by_sequence.iter().map(|(sequence, name)| (name.clone(), *sequence)).collect(), self.dropped)
    }

    /// Up to which sequence events of `name` may be gone. It is known again from now on, and
    /// forgotten here.
    pub fn take(&mut self, name: &Topic) -> u64 {
        let Some(sequence) = self.by_name.remove(name) else { return self.dropped };
        self.by_sequence.remove(&sequence);
        sequence
    }

    /// The same of a topic that is not known again.
    pub fn peek(&self, name: &Topic) -> u64 {
        self.by_name.get(name).copied().unwrap_or(self.dropped)
    }

    /// Up to which sequence events of the topics of a pattern may be gone, if that is found among
    /// `most` of those whose sequence is below `below`, the newest first. Gives the sequence below
    /// which to go on, 0 if there is nothing more to find.
    pub fn newest_of(&self, pattern: &Pattern, below: u64, most: usize) -> (u64, u64) {
        let mut next = below;
        for (sequence, name) in self.by_sequence.range(..below).rev().take(most) {
            if pattern.matches(name.as_str()) {
                return (*sequence, 0);
            }
            next = *sequence;
        }
        let is_all = self.by_sequence.range(..next).next().is_none();
        // One that was dropped may be one of them.
        if is_all { (self.dropped, 0) } else { (0, next) }
    }

    /// Drops those that have been quiet longest until at most `most` are left.
    pub fn shrink_to(&mut self, most: usize) {
        while self.by_name.len() > most {
            let Some((sequence, name)) = self.by_sequence.pop_first() else { return };
            self.by_name.remove(&name);
            self.dropped = sequence;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a legal topic")
    }

    #[test]
    fn each_topic_has_its_own_last_sequence_until_too_many_are_kept() {
        let mut forgotten = Forgotten::default();
        for (name, sequence) in [("a", 1), ("c", 9), ("b", 5)] {
            forgotten.note(topic(name), sequence);
        }
        assert_eq!((forgotten.take(&topic("b")), forgotten.take(&topic("stranger"))), (5, 0));
        forgotten.note(topic("b"), 7);
        forgotten.shrink_to(1);
        assert_eq!(
            (forgotten.take(&topic("c")), forgotten.take(&topic("a"))),
            (9, 7),
            "a and b are as strangers"
        );
        forgotten.note(topic("quiet"), 7);
        forgotten.shrink_to(0);
        assert_eq!(forgotten.take(&topic("quiet")), 7, "it needed no room");
    }
}

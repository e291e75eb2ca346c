//! Retained values: the newest event of a topic, or of each of its keys, where its rule says so.
//!
//! A value is held here, whatever becomes of it in the window of its topic: neither age nor the
//! bounds of the history count for it. A subscriber that names no start gets the values of its
//! topics first (`shard::greeting`).
//!
//! Invariants worth naming:
//! - Which events are values depends on what was pushed and removed alone, so all shards have the
//!   same ones.
//! - All values of a shard are events alive, so the hub counts them. Together they weigh at most
//!   `retained_memory_max`. One too many gives up the oldest of all, which is then an event like
//!   others.
//! - `owners` has each value of each topic, and nothing else. A topic that has one stays in the
//!   table, also when the hub has forgotten it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::history::Bounds;
use super::{TopicIndex, TopicState, Topics};
use crate::broadcast::Encoded;
use crate::config::Limits;
use crate::config::limits::RETAINED_VALUE_BYTES;
use crate::config::rules::Conflate;
use crate::event::{Key, Topic};
use crate::metrics::RetainedTotals;
use crate::shard::window::Window;

/// The values of one topic.
#[derive(Debug, Default)]
pub(super) struct Retained {
    /// The sequence of each key's value. Events without a key belong together.
    by_key: HashMap<Option<Key>, u64>,
    values: BTreeMap<u64, Arc<Encoded>>,
}

/// All values of a shard.
#[derive(Debug)]
pub(super) struct RetainedValues {
    /// The topic of each, by sequence.
    owners: BTreeMap<u64, TopicIndex>,
    /// What they weigh.
    memory: usize,
    memory_max: usize,
    /// Values that were given up for want of room, from the start.
    given_up: u64,
}

impl RetainedValues {
    pub(super) fn new(limits: &Limits) -> RetainedValues {
        RetainedValues {
            owners: BTreeMap::new(),
            memory: 0,
            memory_max: limits.retained_memory_max(),
            given_up: 0,
        }
    }
}

/// What a value counts against the bound.
fn weight(event: &Encoded) -> usize {
    event.memory() + RETAINED_VALUE_BYTES
}

/// What an event is a value of, within its topic.
pub(super) fn key_of(event: &Encoded, conflate: Conflate) -> Option<Key> {
    match conflate {
        Conflate::Topic => None,
        Conflate::Key => event.event.key.clone(),
    }
}

impl TopicState {
    /// How many values it has, and the sequence of the newest one.
    pub fn retained_report(&self) -> (usize, u64) {
        let Some(retained) = &self.retained else { return (0, 0) };
        (retained.values.len(), retained.values.last_key_value().map_or(0, |(sequence, _)| *sequence))
    }
}

impl Topics {
    /// What is retained here.
    pub fn retained_totals(&self) -> RetainedTotals {
        RetainedTotals {
            values: self.retained.owners.len() as u64,
            bytes: self.retained.memory as u64,
            given_up: self.retained.given_up,
        }
    }

    /// Every retained value, oldest first.
    pub fn retained_values(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.retained.owners.iter().map(|(sequence, owner)| self.value_at(*owner, *sequence))
    }

    /// True if a newcomer to a topic or pattern may have values to get.
    pub fn may_greet(&self, index: TopicIndex) -> bool {
        match self.get(index).is_pattern() {
            true => !self.retained.owners.is_empty(),
            false => self.get(index).retained.is_some(),
        }
    }

    /// The values of a topic after one sequence and up to another, oldest first.
    pub fn retained_in(
        &self,
        index: TopicIndex,
        after: u64,
        until: u64,
    ) -> impl Iterator<Item = &Arc<Encoded>> {
        let range = (Bound::Excluded(after), Bound::Included(until.max(after + 1)));
        let values = self.get(index).retained.iter().flat_map(move |retained| retained.values.range(range));
        values.map(|(_, event)| event).filter(move |event| event.sequence <= until)
    }

    /// Every value of a shard after one sequence and up to another, oldest first: its topic, and
    /// its sequence.
    pub fn retained_owners(&self, after: u64, until: u64) -> impl Iterator<Item = (TopicIndex, u64)> {
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let values = self.retained.owners.range(range).map(|(sequence, owner)| (*owner, *sequence));
        values.take_while(move |(_, sequence)| *sequence <= until)
    }

    /// The value with this sequence, which `owner` has.
    pub fn value_at(&self, owner: TopicIndex, sequence: u64) -> &Arc<Encoded> {
        let retained = self.get(owner).retained.as_ref();
        retained.and_then(|retained| retained.values.get(&sequence)).expect("a value has an owner")
    }

    /// An event has come: it is the value of its topic or key from now on, if the rule says so.
    pub(super) fn retain(&mut self, index: TopicIndex, event: &Arc<Encoded>) {
        let Bounds { retain: true, conflate, .. } = *self.bounds_of(index) else { return };
        let retained = self.get_mut(index).retained.get_or_insert_default();
        let before = retained.by_key.insert(key_of(event, conflate), event.sequence);
        retained.values.insert(event.sequence, event.clone());
        let before = before.and_then(|before| retained.values.remove(&before));
        self.retained.owners.insert(event.sequence, index);
        self.retained.memory += weight(event);
        if let Some(before) = before {
            self.disown(&before);
        }
        while self.retained.memory > self.retained.memory_max {
            let Some((&sequence, &owner)) = self.retained.owners.first_key_value() else { break };
            self.retained.given_up += 1;
            self.give_up(owner, sequence);
            if owner != index {
                self.forget_if_unused(owner);
            }
        }
    }

    /// A value of a topic is one no more.
    fn give_up(&mut self, owner: TopicIndex, sequence: u64) {
        let conflate = self.bounds_of(owner).conflate;
        let topic = self.get_mut(owner);
        let Some(retained) = &mut topic.retained else { return };
        let Some(event) = retained.values.remove(&sequence) else { return };
        retained.by_key.remove(&key_of(&event, conflate));
        if retained.values.is_empty() {
            topic.retained = None;
        }
        self.disown(&event);
    }

    fn disown(&mut self, event: &Encoded) {
        self.retained.owners.remove(&event.sequence);
        self.retained.memory -= weight(event);
    }

    /// The publisher's side wants all of a topic gone, as of this place in the order. What
    /// subscribers here still lack stays for them; a client that names an event before is told of a
    /// gap.
    pub fn remove(&mut self, name: &Topic, sequence: u64) {
        let Some(index) = self.find(name) else {
            // It may be remembered without being here.
            self.forgotten.take(name);
            self.removed_from_patterns(&self.patterns_of(name), sequence);
            self.forgotten.note(name.clone(), sequence);
            self.bound_forgotten();
            return;
        };
        if let Some(retained) = self.get_mut(index).retained.take() {
            retained.values.values().for_each(|event| self.disown(event));
        }
        while !self.get(index).window.is_empty() {
            self.evict(index, Window::evict);
        }
        self.get_mut(index).window.remove_up_to(sequence);
        let patterns = self.get(index).patterns.clone();
        self.removed_from_patterns(&patterns, sequence);
        self.forget_if_unused(index);
    }

    fn removed_from_patterns(&mut self, patterns: &[TopicIndex], sequence: u64) {
        for pattern in patterns {
            self.get_mut(*pattern).window.note_evicted(sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;
    use crate::clock::Stamp;
    use crate::config::Rules;
    use crate::config::rules::{KEY, RuleText};
    use crate::event::Event;
    use crate::shard::fixtures::{encoded, encoded_alone};

    fn topics(rules: &str, change: impl FnOnce(&mut Limits)) -> Topics {
        let mut limits = Limits::default();
        change(&mut limits);
        let file = DeTable::parse(rules).expect("TOML");
        let (_, value) = file.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).expect("rules");
        let texts = RuleText::read(value, rules).expect("rules");
        Topics::new(&limits, &Rules::new(&texts, &limits).expect("valid"))
    }

    fn keyed(sequence: u64, key: &str) -> Arc<Encoded> {
        let encoded = encoded_alone("a", sequence);
        let event = Event { key: Some(Key::new(key).expect("a key")), ..encoded.event.clone() };
        Arc::new(Encoded::new(event, encoded.era(), sequence, encoded.intake))
    }

    fn values(topics: &Topics) -> Vec<u64> {
        topics.retained_values().map(|event| event.sequence).collect()
    }

    const RETAIN: &str = "[[rule]]\nmatch = \"a\"\nretain = true\nhistory.age = \"1s\"\n";

    #[test]
    fn the_newest_event_of_a_topic_or_of_each_key_is_its_value() {
        let mut by_topic = topics(RETAIN, |_| ());
        let mut by_key = topics(&format!("{RETAIN}conflate = \"key\"\n"), |_| ());
        for topics in [&mut by_topic, &mut by_key] {
            for event in [keyed(1, "x"), encoded("a", 2), keyed(3, "y"), encoded("b", 4), keyed(5, "x")] {
                topics.push(&event);
            }
        }
        assert_eq!((values(&by_topic), values(&by_key)), (vec![5], vec![2, 3, 5]));
        let retained = by_key.retained_totals();
        let weight: usize = by_key.retained_values().map(|event| weight(event)).sum();
        assert_eq!((retained.values, retained.bytes, retained.given_up), (3, weight as u64, 0));
    }

    #[test]
    fn a_value_outlives_its_history_and_what_the_hub_remembers() {
        let mut topics = topics(RETAIN, |_| ());
        topics.push(&encoded("a", 1));
        let forgets = encoded_alone("b", 2).forgetting(Topic::new("a").ok());
        topics.push(&Arc::new(forgets));
        let index = topics.find(&Topic::new("a").expect("a topic")).expect("its value is here");
        assert!(topics.get(index).window.is_empty(), "its history is not");
        assert_eq!(values(&topics), [1]);
        topics.push(&encoded("a", 3));
        topics.expire(Stamp(10_000_000_000));
        assert_eq!((values(&topics), topics.window_events()), (vec![3], 1), "b has no age");
        topics.remove(&Topic::new("a").expect("a topic"), 4);
        assert_eq!((values(&topics), topics.find(&Topic::new("a").expect("a topic"))), (vec![], None));
        assert_eq!(topics.retained_totals(), RetainedTotals::default());
    }

    #[test]
    fn the_oldest_value_of_all_is_given_up_for_one_too_many() {
        let rule = "[[rule]]\nmatch = \"**\"\nretain = true\nhistory.events = 0\n";
        let room = 16 * (Limits::default().event_memory_max() + RETAINED_VALUE_BYTES);
        let mut topics = topics(rule, |limits| limits.window_bytes_total_max = room);
        let large = |topic: &str, sequence| {
            crate::shard::fixtures::encoded_with(topic, sequence, vec![b'x'; 1 << 20])
        };
        topics.push(&large("a", 1));
        topics.push(&encoded("b", 2));
        let (mut sequence, mut given_up) = (2, 0);
        while given_up == 0 {
            sequence += 1;
            topics.push(&large(&sequence.to_string(), sequence));
            given_up = topics.retained_totals().given_up;
        }
        assert_eq!(values(&topics), (1 + given_up..=sequence).collect::<Vec<_>>());
        assert_eq!(topics.find(&Topic::new("a").expect("a topic")), None, "nothing is left of its topic");
        assert!(topics.retained_totals().bytes <= (room / 16) as u64);
    }

    #[test]
    fn what_is_removed_is_a_gap_also_where_nothing_was_left_of_it() {
        let mut topics = topics(RETAIN, |_| ());
        let name = Topic::new("quiet").expect("a topic");
        topics.push(&encoded("quiet", 1));
        topics.remove(&name, 2);
        topics.remove(&Topic::new("unknown").expect("a topic"), 3);
        for (name, evicted) in [("quiet", 2), ("unknown", 3), ("other", 0)] {
            let index = topics.intern(&Topic::new(name).expect("a topic"));
            assert_eq!(topics.get(index).window.evicted(), evicted, "{name}");
        }
    }
}

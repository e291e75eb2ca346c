//! What the hub remembers of each topic: its last event and how much was published to it.
//!
//! Invariants worth naming:
//! - At most `topics_max` topics are remembered. One more makes the hub forget the topic that was
//!   published to longest ago; its counts are lost, and shards where nobody subscribes to it drop
//!   its window.
//! - Recording an event costs one hash lookup and a few links, whatever the number of topics:
//!   `places` are chained from the newest to the oldest publish by index.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::broadcast::{Account, Memory};
use crate::config::limits::TOPICS_RESERVED_MAX;
use crate::event::{CustomId, Event, TOPIC_BYTES_MAX, Topic};

/// Marks the end of the chain.
const NONE: usize = usize::MAX;

/// What is known of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRecord {
    /// The topic.
    pub topic: Topic,
    /// Sequence of its last event or removal, from 1.
    pub sequence: u64,
    /// The publisher's id of its last event, if it gave one.
    pub id: Option<CustomId>,
    /// Events published since the topic is remembered.
    pub events: u64,
    /// Their bytes: data, topic, names and ids.
    pub bytes: u64,
}

#[derive(Debug)]
struct Place {
    record: TopicRecord,
    /// What its events alive weigh.
    account: Arc<Account>,
    /// The place published to next after this one; [`NONE`] exactly for `newest`.
    newer: usize,
    /// The place published to last before this one; [`NONE`] exactly for `oldest`.
    older: usize,
}

/// The topics by name and by age.
#[derive(Debug)]
pub struct TopicTable {
    /// Place of each topic; as many entries as `places`.
    index: HashMap<Topic, usize>,
    /// The same in the order of names. Only topics that come and go cost a step here.
    in_order: BTreeMap<Topic, usize>,
    places: Vec<Place>,
    newest: usize,
    oldest: usize,
    topics_max: usize,
    memory: Arc<Memory>,
}

/// What becomes of an event by its topic.
#[derive(Debug)]
pub struct Recorded {
    /// Where it is counted.
    pub account: Arc<Account>,
    /// The topic that was forgotten for its topic, if one was.
    pub forgets: Option<Topic>,
}

impl TopicTable {
    /// Remembers at most `topics_max` topics, at least one.
    pub fn new(topics_max: usize, memory: Arc<Memory>) -> TopicTable {
        let topics_max = topics_max.max(1);
        // Growing would move all at once. Places that are not used take no memory.
        let places = topics_max.min(TOPICS_RESERVED_MAX);
        TopicTable {
            index: HashMap::with_capacity(places),
            in_order: BTreeMap::new(),
            places: Vec::with_capacity(places),
            newest: NONE,
            oldest: NONE,
            topics_max,
            memory,
        }
    }

    /// `event` of so many bytes got `sequence`.
    pub fn record(&mut self, event: &Event, sequence: u64, bytes: usize) -> Recorded {
        let (at, forgotten) = match self.index.get(event.topic.as_str()) {
            Some(&at) => {
                self.unlink(at);
                (at, None)
            }
            None => self.enter(&event.topic),
        };
        let place = &mut self.places[at];
        let account = place.account.clone();
        let record = &mut place.record;
        record.sequence = sequence;
        record.id.clone_from(&event.id);
        record.events += 1;
        record.bytes += bytes as u64;
        self.link_newest(at);
        Recorded { account, forgets: forgotten }
    }

    /// All of `topic` was removed, as of this place in the order. What it counted stays.
    pub fn removed(&mut self, topic: &Topic, sequence: u64) {
        if let Some(&at) = self.index.get(topic) {
            let record = &mut self.places[at].record;
            record.sequence = sequence;
            record.id = None;
        }
    }

    /// True if `topic` may have an event of so much memory more.
    pub fn has_room(&self, topic: &Topic, memory: usize) -> bool {
        match self.index.get(topic) {
            Some(&at) => self.places[at].account.has_room(memory),
            // It may be forgotten for another one, whose name goes with the event.
            None => self.memory.has_room(memory + TOPIC_BYTES_MAX),
        }
    }

    /// What all events alive weigh.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What is known of `topic`.
    pub fn get(&self, topic: &Topic) -> Option<&TopicRecord> {
        self.index.get(topic).map(|&at| &self.places[at].record)
    }

    /// The topics whose names come after `after`, in the order of names (by bytes).
    pub fn after(&self, after: &str) -> impl Iterator<Item = &TopicRecord> {
        let names = self.in_order.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
        names.map(|(_, &at)| &self.places[at].record)
    }

    /// How many topics are remembered.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// A place for a new topic, not linked yet: a fresh one, or that of the topic published to
    /// longest ago, which is given too.
    fn enter(&mut self, topic: &Topic) -> (usize, Option<Topic>) {
        let record = TopicRecord { topic: topic.clone(), sequence: 0, id: None, events: 0, bytes: 0 };
        let account = Account::new(&self.memory);
        let (at, forgotten) = if self.places.len() < self.topics_max {
            self.places.push(Place { record, account, newer: NONE, older: NONE });
            (self.places.len() - 1, None)
        } else {
            let at = self.oldest;
            self.unlink(at);
            self.places[at].account = account;
            let forgotten = std::mem::replace(&mut self.places[at].record, record).topic;
            self.index.remove(&forgotten);
            self.in_order.remove(&forgotten);
            (at, Some(forgotten))
        };
        self.index.insert(topic.clone(), at);
        self.in_order.insert(topic.clone(), at);
        (at, forgotten)
    }

    fn unlink(&mut self, at: usize) {
        let Place { newer, older, .. } = self.places[at];
        match newer {
            NONE => self.newest = older,
            newer => self.places[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.places[older].newer = newer,
        }
    }

    fn link_newest(&mut self, at: usize) {
        self.places[at].newer = NONE;
        self.places[at].older = self.newest;
        match self.newest {
            NONE => self.oldest = at,
            newest => self.places[newest].newer = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Limits;
    use crate::event::Data;

    fn event(topic: &str) -> Event {
        let topic = Topic::new(topic).expect("a topic");
        Event { topic, data: Data::binary(Bytes::new()), name: None, id: None, retry_ms: None, key: None }
    }

    fn table(topics_max: usize) -> TopicTable {
        TopicTable::new(topics_max, Memory::new(&Limits::default()))
    }

    fn names(table: &TopicTable) -> Vec<String> {
        table.after("").map(|record| record.topic.to_string()).collect()
    }

    #[test]
    fn counts_add_up_per_topic_and_the_last_event_wins() {
        let mut table = table(10);
        table.record(&event("a"), 1, 10);
        table.record(&event("b"), 2, 5);
        let mut last = event("a");
        last.id = Some(CustomId::new("mine").expect("an id"));
        table.record(&last, 3, 20);
        let a = table.get(&last.topic).expect("a is known");
        assert_eq!((a.sequence, a.events, a.bytes), (3, 2, 30));
        assert_eq!(a.id, last.id);
    }

    #[test]
    fn the_topic_published_to_longest_ago_is_forgotten() {
        let mut table = table(3);
        for (sequence, topic) in ["a", "b", "c", "a", "d", "e"].into_iter().enumerate() {
            table.record(&event(topic), sequence as u64 + 1, 1);
        }
        assert_eq!(names(&table), ["a", "d", "e"]);
        assert_eq!(table.record(&event("e"), 7, 1).forgets, None, "it is known");
        assert_eq!(table.record(&event("f"), 8, 1).forgets, Topic::new("a").ok());
        assert_eq!(names(&table), ["d", "e", "f"]);
        let after: Vec<&str> = table.after("d").map(|record| record.topic.as_str()).collect();
        assert_eq!(after, ["e", "f"]);
        assert_eq!(table.count(), 3);
    }

    #[test]
    fn a_table_of_one_topic_keeps_the_newest() {
        let mut table = table(1);
        for (sequence, topic) in ["a", "a", "b", "b", "c"].into_iter().enumerate() {
            table.record(&event(topic), sequence as u64 + 1, 1);
            assert_eq!(names(&table), [topic]);
        }
    }
}

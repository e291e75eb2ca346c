//! What a process begins with: the histories that its log holds, within the bounds of rules and
//! memory, and the retained values.

use std::collections::{HashMap, HashSet, VecDeque};

use super::log::{Opening, Reader};
use super::record::{Record, Stored};
use crate::clock::Stamp;
use crate::config::limits::{IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_MS, REMOVALS_MAX};
use crate::config::rules::{Conflate, History};
use crate::config::{Limits, Rules};
use crate::event::{Event, Key, Topic};
use crate::handover::state::{PastEvent, PastKey, State, TopicState};

/// What a log has told.
#[derive(Debug)]
pub struct StorePast {
    /// Hub and shards begin with it.
    pub state: State,
    /// Topics that were removed, each with the sequence of its last removal, the oldest first.
    pub removals: Vec<(Topic, u64)>,
}

/// One topic, as far as the log was read.
#[derive(Debug)]
struct OfTopic {
    name: Topic,
    history: History,
    retain: bool,
    by_key: bool,
    events: VecDeque<Stored>,
    bytes: usize,
    /// The newest sequence that is no history any more.
    evicted: u64,
    /// What came up to here was removed.
    removed: u64,
    /// The newest event or removal.
    newest: u64,
    newest_id: Option<crate::event::CustomId>,
    count: u64,
    count_bytes: u64,
    values: HashMap<Option<Key>, Stored>,
}

/// Reads a log into histories: at any time it holds what windows would.
#[derive(Debug)]
pub(super) struct Windows {
    limits: Limits,
    rules: Rules,
    memory_of: fn(&Event) -> usize,
    unix_ms: u64,
    now: Stamp,
    topics: Vec<OfTopic>,
    by_name: HashMap<Topic, usize>,
    /// The oldest events of all, by sequence and topic; some have gone already.
    order: VecDeque<(u64, usize)>,
    live: usize,
    memory: usize,
    /// The newest event of the topics that were let go of; 0 if none were.
    lost: u64,
    /// Removals of those, the newest at the end.
    removals: Vec<(Topic, u64)>,
    /// The newest keys under which may still be repeated.
    keys: VecDeque<PastKey>,
}

impl Windows {
    /// Nothing yet; it is `unix_ms`, which is `now`.
    pub fn new(
        limits: &Limits,
        rules: &Rules,
        memory_of: fn(&Event) -> usize,
        unix_ms: u64,
        now: Stamp,
    ) -> Windows {
        Windows {
            limits: limits.clone(),
            rules: rules.clone(),
            memory_of,
            unix_ms,
            now,
            topics: Vec::new(),
            by_name: HashMap::new(),
            order: VecDeque::new(),
            live: 0,
            memory: 0,
            lost: 0,
            removals: Vec::new(),
            keys: VecDeque::new(),
        }
    }

    fn topic(&mut self, name: &Topic) -> usize {
        if let Some(&at) = self.by_name.get(name) {
            return at;
        }
        if self.topics.len() >= self.limits.topics_max.saturating_mul(2) {
            self.let_go_of_topics();
        }
        let rule = self.rules.of(name.as_str());
        self.topics.push(OfTopic {
            name: name.clone(),
            history: rule.map_or_else(|| History::of(&self.limits), |rule| rule.history),
            retain: rule.is_some_and(|rule| rule.retain),
            by_key: rule.is_some_and(|rule| rule.conflate == Conflate::Key),
            events: VecDeque::new(),
            bytes: 0,
            // It may be one that was let go of.
            evicted: self.lost,
            removed: 0,
            newest: 0,
            newest_id: None,
            count: 0,
            count_bytes: 0,
            values: HashMap::new(),
        });
        self.by_name.insert(name.clone(), self.topics.len() - 1);
        self.topics.len() - 1
    }

    /// More topics than are remembered: those that were published to longest ago are as good as
    /// gone.
    fn let_go_of_topics(&mut self) {
        let surplus = self.topics.len().saturating_sub(self.limits.topics_max);
        let mut oldest: Vec<usize> = (0..self.topics.len()).collect();
        oldest.sort_unstable_by_key(|at| self.topics[*at].newest);
        let gone: HashSet<usize> = oldest.into_iter().take(surplus).collect();
        for at in &gone {
            self.lost = self.lost.max(self.topics[*at].newest);
            self.evict_all(*at);
        }
        let mut places = vec![None; self.topics.len()];
        for (at, topic) in std::mem::take(&mut self.topics).into_iter().enumerate() {
            if !gone.contains(&at) {
                places[at] = Some(self.topics.len());
                self.topics.push(topic);
            } else if topic.removed > 0 {
                self.removals.push((topic.name, topic.removed));
            }
        }
        self.by_name = self.topics.iter().enumerate().map(|(at, topic)| (topic.name.clone(), at)).collect();
        let order = std::mem::take(&mut self.order).into_iter();
        self.order = order.filter_map(|(sequence, at)| Some((sequence, places[at]?))).collect();
        self.removals.sort_unstable_by_key(|(_, sequence)| *sequence);
        // A hub remembers one less, and takes the oldest for all before.
        self.removals.drain(..self.removals.len().saturating_sub(REMOVALS_MAX + 1));
    }

    /// When something was taken in, as far as the clock of the day is right.
    fn stamp(&self, unix_ms: u64) -> Stamp {
        let age_ns = self.unix_ms.saturating_sub(unix_ms).saturating_mul(1_000_000);
        Stamp(self.now.0.saturating_sub(age_ns))
    }

    /// The oldest event of a topic is no history any more.
    fn evict(&mut self, at: usize) {
        let topic = &mut self.topics[at];
        if let Some(stored) = topic.events.pop_front() {
            topic.bytes -= stored.event.weight();
            topic.evicted = stored.sequence;
            self.memory -= (self.memory_of)(&stored.event);
            self.live -= 1;
        }
    }

    /// No event of a topic is history any more.
    fn evict_all(&mut self, at: usize) {
        while !self.topics[at].events.is_empty() {
            self.evict(at);
        }
    }

    fn event(&mut self, stored: Stored) {
        let at = self.topic(&stored.event.topic);
        let is_old = |age_ms: u64| self.unix_ms.saturating_sub(stored.unix_ms) > age_ms;
        if let Some(key) = &stored.idempotency
            && !is_old(IDEMPOTENCY_MS)
        {
            let said = PastKey::said_by(&stored.event);
            let (topic, key, sequence) = (stored.event.topic.clone(), key.clone(), stored.sequence);
            let since = self.stamp(stored.unix_ms);
            self.keys.push_back(PastKey { topic, key, said, sequence, since });
            if self.keys.len() > IDEMPOTENCY_KEYS_MAX {
                self.keys.pop_front();
            }
        }
        let too_old = is_old(self.topics[at].history.age_ms);
        let weight = stored.event.weight();
        let topic = &mut self.topics[at];
        (topic.newest, topic.newest_id) = (stored.sequence, stored.event.id.clone());
        topic.count += 1;
        topic.count_bytes += stored.event.published_bytes() as u64;
        topic.value(&stored);
        if too_old {
            // A history is one piece: where the clock has gone back, what came before goes too.
            self.evict_all(at);
            self.topics[at].evicted = stored.sequence;
            return;
        }
        topic.bytes += weight;
        self.memory += (self.memory_of)(&stored.event);
        self.order.push_back((stored.sequence, at));
        self.live += 1;
        topic.events.push_back(stored);
        loop {
            let topic = &self.topics[at];
            if topic.events.len() <= topic.history.events && topic.bytes <= topic.history.bytes {
                break;
            }
            self.evict(at);
        }
        while self.memory > self.limits.history_memory_max()
            && let Some((sequence, at)) = self.order.pop_front()
        {
            if self.topics[at].events.front().is_some_and(|oldest| oldest.sequence == sequence) {
                self.evict(at);
            }
        }
        if self.order.len() > 2 * self.live + 1_024 {
            let topics = &self.topics;
            let lives = |(sequence, at): &(u64, usize)| {
                topics[*at].events.front().is_some_and(|oldest| oldest.sequence <= *sequence)
            };
            self.order.retain(lives);
        }
    }

    /// All of it.
    pub fn past(mut self, opening: &Opening) -> StorePast {
        self.let_go_of_topics();
        self.topics.sort_by_key(|topic| topic.newest);
        let removed = self.topics.iter().filter(|topic| topic.removed > 0);
        let mut removals: Vec<(Topic, u64)> =
            removed.map(|topic| (topic.name.clone(), topic.removed)).chain(self.removals.drain(..)).collect();
        removals.sort_unstable_by_key(|(_, sequence)| *sequence);
        let mut events: Vec<PastEvent> = Vec::new();
        let mut topics = Vec::new();
        for topic in std::mem::take(&mut self.topics) {
            // What was before the log may have been of any topic.
            let evicted = topic.evicted.max(opening.floor);
            let values = topic.values.into_values().filter(|value| value.sequence <= evicted);
            for Stored { sequence, unix_ms, event, .. } in values.chain(topic.events) {
                events.push(PastEvent { sequence, intake: self.stamp(unix_ms), unix_ms, event });
            }
            topics.push(TopicState {
                name: topic.name,
                remembered: true,
                sequence: topic.newest,
                id: topic.newest_id,
                events: topic.count,
                bytes: topic.count_bytes,
                evicted,
                cut: None,
                hole: 0,
            });
        }
        events.sort_unstable_by_key(|event| event.sequence);
        let mut newest = Stamp(0);
        for event in &mut events {
            newest = newest.max(event.intake);
            event.intake = newest;
        }
        StorePast {
            removals,
            state: State {
                epoch: opening.epoch,
                sequence: opening.sequence,
                hole: opening.hole,
                topics,
                events,
                forgotten: Vec::new(),
                dropped: opening.floor.max(self.lost),
                keys: self.keys.into(),
            },
        }
    }
}

impl OfTopic {
    /// Its newest event, or that of a key, is kept for as long as a rule retains it.
    fn value(&mut self, stored: &Stored) {
        if self.retain {
            let key = stored.event.key.clone().filter(|_| self.by_key);
            self.values.insert(key, stored.clone());
        }
    }
}

impl Reader for Windows {
    fn record(&mut self, record: Record) {
        match record {
            Record::Event(stored) => self.event(stored),
            Record::Kept(stored) => {
                let at = self.topic(&stored.event.topic);
                let topic = &mut self.topics[at];
                let key = stored.event.key.clone().filter(|_| topic.by_key);
                let is_newer = topic.values.get(&key).is_none_or(|value| value.sequence < stored.sequence);
                if topic.retain && is_newer && stored.sequence > topic.removed {
                    topic.newest = topic.newest.max(stored.sequence);
                    topic.values.insert(key, stored);
                }
            }
            Record::Removal(sequence, name) => {
                let at = self.topic(&name);
                self.evict_all(at);
                let topic = &mut self.topics[at];
                topic.values.clear();
                (topic.evicted, topic.removed) = (sequence, sequence);
                (topic.newest, topic.newest_id) = (sequence, None);
            }
            Record::Reserved(..) | Record::Closed(_) => {}
        }
    }

    fn broken(&mut self) {
        self.topics.clear();
        self.by_name.clear();
        self.order.clear();
        self.keys.clear();
        self.removals.clear();
        (self.live, self.memory, self.lost) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Data, Epoch};
    use crate::publishing::IdempotencyKey;

    const NOW_MS: u64 = 1_700_000_000_000;

    fn windows(limits: Limits) -> Windows {
        Windows::new(&limits, &Rules::default(), Event::weight, NOW_MS, Stamp(1 << 60))
    }

    fn stored(topic: &str, sequence: u64, age_ms: u64) -> Stored {
        let event = Event {
            topic: Topic::new(topic).expect("a topic"),
            data: Data::string("x".into()),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        Stored { sequence, unix_ms: NOW_MS - age_ms, event, idempotency: None }
    }

    fn past(windows: Windows, sequence: u64) -> StorePast {
        windows.past(&Opening { epoch: Epoch(1), sequence, hole: 0, floor: 0 })
    }

    #[test]
    fn a_clock_that_has_gone_back_leaves_a_history_in_one_piece() {
        let mut windows = windows(Limits::default());
        let long_ago = Limits::default().window_ms_max + 1;
        for (sequence, age_ms) in [(1, 10), (2, long_ago), (3, 5)] {
            windows.record(Record::Event(stored("a", sequence, age_ms)));
        }
        let state = past(windows, 3).state;
        assert_eq!(state.topics[0].evicted, 2);
        let left: Vec<u64> = state.events.iter().map(|event| event.sequence).collect();
        assert_eq!(left, [3], "1 is no retained value");
    }

    #[test]
    fn a_log_of_very_many_topics_and_keys_takes_the_memory_of_those_that_are_remembered() {
        let mut windows = windows(Limits { topics_max: 10, ..Limits::default() });
        let many = IDEMPOTENCY_KEYS_MAX as u64 + 100;
        for sequence in 1..=many {
            let key = IdempotencyKey::new(&sequence.to_string()).ok();
            let event = Stored { idempotency: key, ..stored(&format!("t{sequence}"), sequence, 0) };
            windows.record(Record::Event(event));
            assert!(windows.topics.len() <= 20 && windows.by_name.len() <= 20);
        }
        // One that was let go of has lost what it had.
        windows.record(Record::Event(stored("t1", many + 1, 0)));
        let state = past(windows, many + 1).state;
        assert_eq!((state.topics.len(), state.events.len()), (10, 10));
        assert_eq!(state.dropped, many - 9);
        let again = state.topics.iter().find(|topic| topic.name.as_str() == "t1").expect("it is known");
        assert!((1..=many).contains(&again.evicted), "{}", again.evicted);
        assert_eq!(state.keys.len(), IDEMPOTENCY_KEYS_MAX);
        assert_eq!(state.keys[0].sequence, 101, "the oldest are forgotten");
    }

    #[test]
    fn removals_of_topics_that_are_not_remembered_are_told_the_oldest_first() {
        let mut windows = windows(Limits { topics_max: 10, ..Limits::default() });
        let topic = |number: u64| Topic::new(&format!("t{number}")).expect("a topic");
        let many = REMOVALS_MAX as u64 + 50;
        windows.record(Record::Removal(1, topic(0)));
        for sequence in 2..=many {
            windows.record(Record::Removal(sequence, topic(sequence)));
        }
        let removals = past(windows, many).removals;
        assert!(removals.is_sorted_by_key(|(_, sequence)| *sequence));
        assert!((REMOVALS_MAX + 1..REMOVALS_MAX + 12).contains(&removals.len()), "{}", removals.len());
        assert_eq!(removals.last(), Some(&(topic(many), many)));
    }
}

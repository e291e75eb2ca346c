//! What a process begins with: the histories that its log holds, within the bounds of rules and
//! memory, and the retained values.

use std::collections::{HashMap, VecDeque};

use super::log::{Opening, Reader};
use super::record::{Record, Stored};
use crate::clock::Stamp;
use crate::config::limits::IDEMPOTENCY_MS;
use crate::config::rules::{Conflate, History};
use crate::config::{Limits, Rules};
use crate::event::{Event, Key, Topic};
use crate::handover::state::{PastEvent, State, TopicState};
use crate::publishing::IdempotencyKey;

/// What a log has told.
#[derive(Debug)]
pub struct StorePast {
    /// Hub and shards begin with it; its keys are still to be made of `keyed`.
    pub state: State,
    /// Topics that were removed, each with the sequence of its last removal.
    pub removals: Vec<(Topic, u64)>,
    /// Events that were published under a key which may still be repeated.
    pub keyed: Vec<(Event, IdempotencyKey, u64, Stamp)>,
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
    keyed: VecDeque<(Event, IdempotencyKey, u64, u64)>,
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
            keyed: VecDeque::new(),
        }
    }

    fn topic(&mut self, name: &Topic) -> usize {
        if let Some(&at) = self.by_name.get(name) {
            return at;
        }
        let rule = self.rules.of(name.as_str());
        self.topics.push(OfTopic {
            name: name.clone(),
            history: rule.map_or_else(|| History::of(&self.limits), |rule| rule.history),
            retain: rule.is_some_and(|rule| rule.retain),
            by_key: rule.is_some_and(|rule| rule.conflate == Conflate::Key),
            events: VecDeque::new(),
            bytes: 0,
            evicted: 0,
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

    fn event(&mut self, stored: Stored) {
        let at = self.topic(&stored.event.topic);
        let is_old = |age_ms: u64| self.unix_ms.saturating_sub(stored.unix_ms) > age_ms;
        if let Some(key) = &stored.idempotency
            && !is_old(IDEMPOTENCY_MS)
        {
            self.keyed.push_back((stored.event.clone(), key.clone(), stored.sequence, stored.unix_ms));
        }
        let too_old = is_old(self.topics[at].history.age_ms);
        let weight = stored.event.weight();
        let topic = &mut self.topics[at];
        (topic.newest, topic.newest_id) = (stored.sequence, stored.event.id.clone());
        topic.count += 1;
        topic.count_bytes += stored.event.published_bytes() as u64;
        topic.value(&stored);
        if too_old {
            topic.evicted = stored.sequence;
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
        // A stamp rises with the sequence, whatever the clock did.
        let age = |unix_ms: u64, now: u64| now.saturating_sub(unix_ms).saturating_mul(1_000_000);
        let (unix_ms, now) = (self.unix_ms, self.now);
        let stamp = |at: u64| Stamp(now.0.saturating_sub(age(at, unix_ms)));
        let removed = self.topics.iter().filter(|topic| topic.removed > 0);
        let removals = removed.map(|topic| (topic.name.clone(), topic.removed)).collect();
        self.topics.sort_by_key(|topic| topic.newest);
        // More topics than are remembered: those of the others are as good as gone.
        let surplus = self.topics.len().saturating_sub(self.limits.topics_max);
        let lost = self.topics.drain(..surplus).map(|topic| topic.newest).max().unwrap_or(0);
        let mut events: Vec<PastEvent> = Vec::new();
        let mut topics = Vec::new();
        for topic in self.topics {
            // What was before the log may have been of any topic.
            let evicted = topic.evicted.max(opening.floor);
            let values = topic.values.into_values().filter(|value| value.sequence <= evicted);
            for Stored { sequence, unix_ms, event, .. } in values.chain(topic.events) {
                events.push(PastEvent { sequence, intake: stamp(unix_ms), unix_ms, event });
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
        let keyed =
            self.keyed.into_iter().map(|(event, key, sequence, at)| (event, key, sequence, stamp(at)));
        StorePast {
            keyed: keyed.collect(),
            removals,
            state: State {
                epoch: opening.epoch,
                sequence: opening.sequence,
                hole: opening.hole,
                topics,
                events,
                forgotten: Vec::new(),
                dropped: opening.floor.max(lost),
                keys: Vec::new(),
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
                while !self.topics[at].events.is_empty() {
                    self.evict(at);
                }
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
        self.keyed.clear();
        (self.live, self.memory) = (0, 0);
    }
}

//! What each topic's history holds: bounds by rule, and what leaves it when.
//!
//! Invariants worth naming:
//! - A history has the newest events of its topic within the bounds of its rule in number, bytes
//!   and age, within the memory of one topic's history, and of all histories together. It depends
//!   on what was pushed alone (and on age), so all shards have the same.
//! - `fronts` has the oldest event of each history, one queue per rule. The topics of a rule have
//!   one age, so its queue tells which of their events expires next; the oldest event of all is the
//!   oldest of the queues' first ones.

use std::collections::BTreeMap;

use super::{TopicIndex, Topics};
use crate::clock::Stamp;
use crate::config::limits::EXPIRED_PER_TICK_MAX;
use crate::config::rules::{Conflate, History, Rule};
use crate::config::{Limits, Rules};
use crate::shard::window::{Cut, Weight, Window};

/// The bounds of one rule, and what it keeps besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    events: usize,
    bytes: usize,
    age_ns: u64,
    /// The newest event is a retained value.
    pub(super) retain: bool,
    /// Of which events it is the newest.
    pub(super) conflate: Conflate,
}

impl Bounds {
    /// Those of topics without a rule.
    fn of(history: History) -> Bounds {
        Bounds {
            events: history.events,
            bytes: history.bytes,
            age_ns: history.age_ms.saturating_mul(1_000_000),
            retain: false,
            conflate: Conflate::default(),
        }
    }

    fn of_rule(rule: &Rule) -> Bounds {
        Bounds { retain: rule.retain, conflate: rule.conflate, ..Bounds::of(rule.history) }
    }
}

/// The histories of a shard.
#[derive(Debug)]
pub(super) struct Histories {
    rules: Rules,
    /// By rule; the last ones are those of topics without a rule.
    bounds: Vec<Bounds>,
    /// By rule, the topic of the oldest event of each history, by sequence.
    fronts: Vec<BTreeMap<u64, TopicIndex>>,
    topic_memory: usize,
    memory: usize,
    /// What settings allow; `memory` is at most this.
    memory_max: usize,
    /// Events in all histories, and what they weigh.
    pub(super) events: usize,
    pub(super) weight: Weight,
}

impl Histories {
    /// Nothing yet.
    pub(super) fn new(limits: &Limits, rules: &Rules) -> Histories {
        let usual = Bounds::of(History::of(limits));
        let bounds: Vec<Bounds> = rules.iter().map(Bounds::of_rule).chain([usual]).collect();
        Histories {
            rules: rules.clone(),
            fronts: bounds.iter().map(|_| BTreeMap::new()).collect(),
            bounds,
            topic_memory: limits.topic_history_memory_max(),
            memory: limits.history_memory_max(),
            memory_max: limits.history_memory_max(),
            events: 0,
            weight: Weight::default(),
        }
    }

    /// The index of the rule of a topic.
    pub(super) fn rule_of(&self, topic: &str) -> u8 {
        self.rules.index_of(topic)
    }

    /// An event that weighs this has come; it is the oldest of its topic's history if `is_first`.
    pub(super) fn add(&mut self, rule: u8, sequence: u64, index: TopicIndex, weight: Weight, is_first: bool) {
        self.events += 1;
        self.weight.add(weight);
        if is_first {
            self.fronts[usize::from(rule)].insert(sequence, index);
        }
    }

    /// Histories that have events.
    #[cfg(test)]
    pub(super) fn fronts(&self) -> usize {
        self.fronts.iter().map(BTreeMap::len).sum()
    }

    /// The oldest event of all.
    fn oldest(&self) -> Option<TopicIndex> {
        let firsts = self.fronts.iter().filter_map(BTreeMap::first_key_value);
        firsts.min_by_key(|(sequence, _)| **sequence).map(|(_, index)| *index)
    }
}

impl Topics {
    /// What the rule of a topic says.
    pub(super) fn bounds_of(&self, index: TopicIndex) -> &Bounds {
        &self.histories.bounds[usize::from(self.get(index).rule)]
    }

    /// Brings the histories back into their bounds after an event of a topic has come.
    pub(super) fn bound_histories(&mut self, index: TopicIndex) {
        let bounds = *self.bounds_of(index);
        loop {
            let window = &self.get(index).window;
            let weight = window.weight();
            if window.len() > bounds.events || weight.published > bounds.bytes {
                self.evict(index, Window::evict);
            } else if weight.memory > self.histories.topic_memory {
                self.evict(index, Window::cut);
            } else {
                break;
            }
        }
        while self.histories.weight.memory > self.histories.memory {
            self.evict_oldest();
        }
    }

    /// All histories together may take so much memory from now on; the oldest events of all leave
    /// them. Returns how many.
    pub fn hold_histories(&mut self, bytes: usize) -> usize {
        self.histories.memory = bytes.min(self.histories.memory_max);
        let before = self.histories.events;
        while self.histories.weight.memory > self.histories.memory {
            self.evict_oldest();
        }
        before - self.histories.events
    }

    /// Takes what is older than its rule says out of the histories, a bounded number of events at a
    /// time.
    pub fn expire(&mut self, now: Stamp) {
        let mut left = EXPIRED_PER_TICK_MAX;
        for rule in 0..self.histories.bounds.len() {
            let age_ns = self.histories.bounds[rule].age_ns;
            while let Some((_, &index)) = self.histories.fronts[rule].first_key_value()
                && left > 0
            {
                let front = self.get(index).window.front().expect("a history's first event");
                if now.ns_since(front.intake) <= age_ns {
                    break;
                }
                left -= 1;
                self.evict(index, Window::evict);
                self.forget_if_unused(index);
            }
        }
    }

    /// The sequence after which the events of a topic's history come that are at most `ms` old, and
    /// whether some of those have left it for want of memory.
    pub fn since(&self, index: TopicIndex, ms: u64, now: Stamp) -> (u64, bool) {
        let stamp = Stamp(now.0.saturating_sub(ms.saturating_mul(1_000_000)));
        if let Some(log) = &self.get(index).log {
            return self.since_in(index, log, stamp, now);
        }
        let cut = self.promised_cut(index, now).filter(|cut| cut.intake >= stamp);
        (self.get(index).window.before_intake(stamp), cut.is_some())
    }

    /// The sequence after which the last `events` events of a topic's history come, and whether
    /// some of those have left it for want of memory.
    pub fn last(&self, index: TopicIndex, events: u64, now: Stamp) -> (u64, bool) {
        let events = usize::try_from(events).unwrap_or(usize::MAX);
        if let Some(log) = &self.get(index).log {
            return self.last_in(index, log, events, now);
        }
        let window = &self.get(index).window;
        let is_short = window.len() < events && self.promised_cut(index, now).is_some();
        (window.before_last(events), is_short)
    }

    /// The newest event that is no history any more although the bounds of its rule have room for
    /// it.
    fn promised_cut(&self, index: TopicIndex, now: Stamp) -> Option<Cut> {
        let topic = self.get(index);
        let bounds = self.bounds_of(index);
        topic.window.last_cut().filter(|cut| {
            now.ns_since(cut.intake) <= bounds.age_ns
                && topic.window.len() < bounds.events
                && topic.window.weight().published + cut.published <= bounds.bytes
        })
    }

    /// Until when an event that was cut was promised by its age.
    pub(super) fn promised_until(&self, index: TopicIndex, cut: Cut) -> Stamp {
        let bounds = self.bounds_of(index);
        Stamp(cut.intake.0.saturating_add(bounds.age_ns))
    }

    /// Takes the oldest event of one topic out of its history, by its bounds ([`Window::evict`]) or
    /// for want of memory ([`Window::cut`]); it stays as excess while it is needed.
    pub(super) fn evict(&mut self, index: TopicIndex, how: fn(&mut Window) -> Weight) {
        let topic = self.get_mut(index);
        let Some(event) = topic.window.front() else { return };
        let front = event.sequence;
        let event = (!topic.patterns.is_empty()).then(|| event.clone());
        let weight = how(&mut topic.window);
        let next = topic.window.front().map(|event| event.sequence);
        let fronts = usize::from(topic.rule);
        let fronts = &mut self.histories.fronts[fronts];
        fronts.remove(&front);
        if let Some(next) = next {
            fronts.insert(next, index);
        }
        self.histories.events -= 1;
        self.histories.weight.remove(weight);
        self.excess += 1;
        self.excess_memory += weight.memory;
        if let Some(event) = event {
            self.evicted_from(index, &event);
        }
        self.trim(index);
    }

    /// Takes the oldest event of all out of its history.
    pub(super) fn evict_oldest(&mut self) {
        let Some(index) = self.histories.oldest() else { return };
        self.evict(index, Window::cut);
        self.forget_if_unused(index);
    }
}

//! The histories and retained values of a shard, told to a process that takes its place, and taken
//! over from one.
//!
//! Histories are the same on all shards, so one shard of the former process tells them, and every
//! shard of the new one takes them. What is kept beyond them was for subscribers that are not here.

use std::sync::Arc;

use super::{TopicIndex, Topics};
use crate::broadcast::{Encoded, HistorySlice, Past, PastTopic};
use crate::config::limits::HISTORY_PER_ANSWER_MAX;
use crate::event::Topic;
use crate::shard::forgotten::Forgotten;
use crate::shard::window::Window;

impl Topics {
    /// The next part of all histories, after a sequence of a topic; a bounded number of events and
    /// topics. An event that leaves its history meanwhile is not told, or told as evicted later.
    pub fn history(&self, from: Option<&(Topic, u64)>) -> HistorySlice {
        let mut slice = HistorySlice::default();
        let mut left = HISTORY_PER_ANSWER_MAX;
        let first = from.and_then(|(name, _)| self.find(name)).map(|index| (index, self.get(index)));
        let after = from.map_or("", |(name, _)| name.as_str());
        let others = self.after(after).filter_map(|topic| Some((self.find(&topic.name)?, topic)));
        let first = first.into_iter();
        for (index, topic) in first.chain(others).filter(|(_, topic)| !topic.is_pattern()) {
            let told = from.filter(|(name, _)| *name == topic.name).map_or(0, |(_, sequence)| *sequence);
            let (events, is_all) = self.next_of(index, told, left);
            left = left.saturating_sub(1 + events.len());
            if !is_all || left == 0 {
                let last = events.last().map_or(told, |event| event.sequence);
                slice.next = Some((topic.name.clone(), if is_all { u64::MAX } else { last }));
            }
            let window = &topic.window;
            let past = PastTopic {
                name: topic.name.clone(),
                remembered: !topic.hub_forgot,
                retains: topic.retained.is_some(),
                evicted: window.evicted(),
                cut: window.last_cut(),
                hole: window.hole(),
            };
            slice.topics.push((past, events));
            if slice.next.is_some() {
                return slice;
            }
        }
        (slice.forgotten, slice.dropped) = self.forgotten.all();
        slice
    }

    /// The retained values and the events of the history of a topic after a sequence, `most` at
    /// most, and whether these are all.
    fn next_of(&self, index: TopicIndex, after: u64, most: usize) -> (Vec<Arc<Encoded>>, bool) {
        // All of it was told.
        if after == u64::MAX {
            return (Vec::new(), true);
        }
        let window = &self.get(index).window;
        // Values that are history too come with it.
        let values = self.retained_in(index, after, window.evicted());
        let first = window.index_after(after.max(window.evicted()));
        let history = (first..).map_while(|at| window.get(at));
        let mut next = values.chain(history);
        let events: Vec<Arc<Encoded>> = next.by_ref().take(most).cloned().collect();
        let is_all = next.next().is_none();
        (events, is_all)
    }

    /// Takes over what a former process had. Nobody has subscribed yet.
    pub fn restore(&mut self, past: &Past) {
        assert!(self.by_name.len() == 0, "a shard begins with the past");
        self.forgotten = Forgotten::restored(&past.forgotten, past.dropped);
        // Nothing waits for this.
        self.drops_left = usize::MAX;
        let mut indexes: Vec<TopicIndex> = Vec::with_capacity(past.topics.len());
        for topic in &past.topics {
            let index = self.intern(&topic.name);
            let state = self.get_mut(index);
            state.window = Window::restored(topic.evicted, topic.cut, topic.hole);
            state.hub_forgot = !topic.remembered;
            indexes.push(index);
        }
        for event in &past.events {
            match self.find(&event.event.topic) {
                // No history any more; whether it is a value, its rule says here.
                Some(index) if event.sequence <= self.get(index).window.evicted() => {
                    self.retain(index, event)
                }
                _ => self.push(event),
            }
        }
        // Some may have lost all of their events by the bounds of this process already.
        for (index, topic) in indexes.into_iter().zip(&past.topics) {
            if self.find(&topic.name) == Some(index) {
                self.forget_if_unused(index);
            }
        }
        // What was evicted before is unknown here.
        self.recent.clear();
        self.before_recent = past.sequence;
        self.begin_turn();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limits, Rules};
    use crate::shard::fixtures::encoded;

    fn topics(limits: &Limits) -> Topics {
        Topics::new(limits, &Rules::default())
    }

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    /// All slices of a shard, put together as the hub does.
    fn told(from: &Topics) -> Past {
        let mut past = Past { sequence: 1_000_000, ..Past::default() };
        let mut next = None;
        loop {
            let slice = from.history(next.as_ref());
            for (topic, events) in slice.topics {
                past.events.extend(events);
                past.topics.retain(|other| other.name != topic.name);
                past.topics.push(topic);
            }
            (past.forgotten, past.dropped) = (slice.forgotten, slice.dropped);
            next = slice.next;
            if next.is_none() {
                past.events.sort_by_key(|event| event.sequence);
                return past;
            }
        }
    }

    fn sequences(topics: &Topics, name: &str) -> (u64, Vec<u64>) {
        let topic = topics.get(topics.find(&topic(name)).expect("it is known"));
        (topic.window.evicted(), topic.window.history().map(|event| event.sequence).collect())
    }

    #[test]
    fn another_shard_has_the_same_histories_however_many_slices_they_take() {
        let limits = Limits { window_events_max: 3 * HISTORY_PER_ANSWER_MAX, ..Limits::default() };
        let mut old = topics(&limits);
        let last = 4 * HISTORY_PER_ANSWER_MAX as u64;
        for sequence in 1..=last {
            let name = if sequence % 1_000 == 0 { format!("t{}", sequence / 1_000) } else { "long".into() };
            old.push(&encoded(&name, sequence));
        }
        let mut new = topics(&limits);
        new.restore(&told(&old));
        for name in ["long", "t1", "t9", "t16"] {
            assert_eq!(sequences(&new, name), sequences(&old, name), "{name}");
        }
        assert!(sequences(&new, "long").0 > 0, "it had more than a history holds");
        assert_eq!(new.window_events(), old.window_events());
        new.push(&encoded("long", last + 1));
        assert_eq!(sequences(&new, "long").1.last(), Some(&(last + 1)));
    }

    #[test]
    fn smaller_bounds_take_the_newest_and_remember_what_they_left() {
        let mut old = topics(&Limits::default());
        for sequence in 1..=9 {
            old.push(&encoded(if sequence == 5 { "other" } else { "t" }, sequence));
        }
        let limits = Limits { window_events_max: 3, ..Limits::default() };
        let mut new = topics(&limits);
        new.restore(&told(&old));
        assert_eq!(sequences(&new, "t"), (6, vec![7, 8, 9]));
        assert_eq!(sequences(&new, "other"), (0, vec![5]));
        assert_eq!(new.excess(), (0, 0), "nobody needs more");
    }

    #[test]
    fn a_topic_without_events_and_a_forgotten_one_keep_their_last_sequence() {
        let mut new = topics(&Limits::default());
        let name = topic("quiet");
        let past = PastTopic { name, remembered: true, retains: false, evicted: 6, cut: None, hole: 7 };
        let forgotten = vec![(topic("gone"), 5)];
        new.restore(&Past { sequence: 9, topics: vec![past], forgotten, dropped: 2, ..Past::default() });
        assert_eq!(new.find(&topic("quiet")), None, "it takes no room");
        for (name, evicted) in [("quiet", 7), ("gone", 5), ("stranger", 2)] {
            let index = new.intern(&topic(name));
            assert_eq!(new.get(index).window.evicted(), evicted, "{name}");
        }
    }
}

//! Which events of a log are retained values: they outlive their segments.

use std::collections::HashMap;

use super::Settings;
use super::record::Stored;
use crate::event::{Key, Topic};

/// Retained values that are written again when their segment goes; of more some are lost.
const KEPT_MAX: usize = 1 << 18;

/// Which events are the retained values of topics, as far as rules say.
#[derive(Debug, Default)]
pub(super) struct Kept {
    newest: HashMap<Topic, HashMap<Option<Key>, u64>>,
    count: usize,
}

impl Kept {
    /// An event is in the log.
    pub fn note(&mut self, stored: &Stored, settings: &Settings) {
        let event = &stored.event;
        let Some(rule) = settings.rules.of(event.topic.as_str()).filter(|rule| rule.retain) else { return };
        let by_key = rule.conflate == crate::config::rules::Conflate::Key;
        let key = event.key.clone().filter(|_| by_key);
        let known = self.newest.get_mut(&event.topic).and_then(|of_topic| of_topic.get_mut(&key));
        match known {
            Some(newest) => *newest = stored.sequence.max(*newest),
            None if self.count < KEPT_MAX => {
                self.count += 1;
                self.newest.entry(event.topic.clone()).or_default().insert(key, stored.sequence);
            }
            None => {}
        }
    }

    /// What came of a topic so far is gone.
    pub fn remove(&mut self, topic: &Topic) {
        self.count -= self.newest.remove(topic).map_or(0, |of_topic| of_topic.len());
    }

    /// True if it is a retained value still.
    pub fn has(&self, stored: &Stored) -> bool {
        let of_topic = self.newest.get(&stored.event.topic);
        let is_it = |key: &Option<Key>| {
            of_topic.and_then(|of_topic| of_topic.get(key)).is_some_and(|newest| *newest == stored.sequence)
        };
        is_it(&stored.event.key) || is_it(&None)
    }
}

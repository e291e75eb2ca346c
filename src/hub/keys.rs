//! What was published under which idempotency key, so that a publisher may ask again.
//!
//! Invariants worth naming:
//! - A key belongs to a topic, and to its publisher by what it is ([`IdempotencyKey::of`]). It is
//!   remembered for [`IDEMPOTENCY_MS`] from the first publish on, and at most
//!   [`IDEMPOTENCY_KEYS_MAX`] are: one more forgets the oldest.
//! - Only what was taken is remembered: a publish that was refused may come again.
//! - What was said is kept as a hash, not as data. The hash is the same in every process, because
//!   keys are handed over.

use std::collections::{HashMap, VecDeque};

use crate::clock::Stamp;
use crate::config::limits::{IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_MS};
use crate::event::{Event, Topic};
use crate::handover::state::PastKey;
use crate::publishing::IdempotencyKey;
use crate::refusal::{Refusal, RefusalReason};

/// A publish that was taken.
#[derive(Debug)]
struct Taken {
    sequence: u64,
    said: u64,
}

/// The keys of the last minutes.
#[derive(Debug, Default)]
pub(super) struct Keys {
    taken: HashMap<(Topic, IdempotencyKey), Taken>,
    /// The same in the order in which they came, each with when.
    order: VecDeque<(Stamp, (Topic, IdempotencyKey))>,
}

impl Keys {
    /// The sequence that this event got before under `key`; `None` if the key is new. Another event
    /// under it is refused.
    pub(super) fn find(
        &mut self,
        event: &Event,
        key: &IdempotencyKey,
        now: Stamp,
    ) -> Result<Option<u64>, Refusal> {
        self.forget_old(now);
        // Tuples are looked for as they are kept; a topic and a key are counted references.
        let Some(taken) = self.taken.get(&(event.topic.clone(), key.clone())) else { return Ok(None) };
        if taken.said == PastKey::said_by(event) {
            return Ok(Some(taken.sequence));
        }
        let named = key.given().map_or_else(String::new, |text| format!(" {text:?}"));
        let text = format!("the idempotency key{named} was used for another event of this topic");
        Err(Refusal::new(RefusalReason::Conflict, text))
    }

    /// A new event was taken.
    pub(super) fn note(&mut self, topic: Topic, key: IdempotencyKey, said: u64, sequence: u64, now: Stamp) {
        let key = (topic, key);
        self.taken.insert(key.clone(), Taken { sequence, said });
        self.order.push_back((now, key));
        if self.order.len() > IDEMPOTENCY_KEYS_MAX {
            self.forget_oldest();
        }
    }

    /// The publish was not taken after all.
    pub(super) fn forget(&mut self, topic: &Topic, key: &IdempotencyKey) {
        let name = (topic.clone(), key.clone());
        if self.taken.remove(&name).is_some() {
            // It is one of the last.
            if let Some(at) = self.order.iter().rposition(|(_, other)| *other == name) {
                self.order.remove(at);
            }
        }
    }

    /// All keys, the oldest first.
    pub(super) fn all(&self) -> Vec<PastKey> {
        let past = |(since, name): &(Stamp, (Topic, IdempotencyKey))| {
            let Taken { sequence, said } = *self.taken.get(name)?;
            let (topic, key) = name.clone();
            Some(PastKey { topic, key, said, sequence, since: *since })
        };
        self.order.iter().filter_map(past).collect()
    }

    /// Those of a former process, the oldest first.
    pub(super) fn restore(&mut self, past: Vec<PastKey>) {
        for PastKey { topic, key, said, sequence, since } in past {
            self.note(topic, key, said, sequence, since);
        }
    }

    fn forget_old(&mut self, now: Stamp) {
        let is_old = |since: &Stamp| now.ns_since(*since) > IDEMPOTENCY_MS * 1_000_000;
        while self.order.front().is_some_and(|(since, _)| is_old(since)) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.order.pop_front() {
            self.taken.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CustomId, Data, EventName, Key};

    fn event(topic: &str, data: &str) -> Event {
        let topic = Topic::new(topic).expect("a topic");
        Event { topic, data: Data::string(data.to_string()), name: None, id: None, retry_ms: None, key: None }
    }

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey::new(text).expect("a key")
    }

    #[test]
    fn a_key_stands_for_one_event_of_its_topic_for_two_minutes() {
        let mut keys = Keys::default();
        let (first, minute) = (event("a", "1"), 60_000_000_000);
        assert_eq!(keys.find(&first, &key("k"), Stamp(0)), Ok(None));
        let said = PastKey::said_by(&first);
        keys.note(first.topic.clone(), key("k"), said, 7, Stamp(0));
        assert_eq!(keys.find(&first, &key("k"), Stamp(2 * minute)), Ok(Some(7)));
        assert_eq!(keys.find(&event("b", "1"), &key("k"), Stamp(0)), Ok(None), "of another topic");
        assert_eq!(keys.find(&first, &key("l"), Stamp(0)), Ok(None), "another key");
        let others = [
            event("a", "2"),
            Event { retry_ms: Some(1), ..event("a", "1") },
            Event { id: CustomId::new("x").ok(), ..event("a", "1") },
            Event { name: EventName::new("x").ok(), ..event("a", "1") },
            Event { key: Key::new("x").ok(), ..event("a", "1") },
            Event { data: Data::binary("1".into()), ..event("a", "1") },
        ];
        for other in others {
            let refusal = keys.find(&other, &key("k"), Stamp(0)).expect_err("another event");
            assert_eq!(refusal.reason, RefusalReason::Conflict, "{other:?}");
        }
        assert_eq!(keys.find(&first, &key("k"), Stamp(2 * minute + 1)), Ok(None), "forgotten");
        assert!(keys.order.is_empty() && keys.taken.is_empty());
    }

    #[test]
    fn one_key_too_many_forgets_the_oldest() {
        let mut keys = Keys::default();
        let event = event("a", "1");
        let said = PastKey::said_by(&event);
        for number in 0..=IDEMPOTENCY_KEYS_MAX {
            keys.note(event.topic.clone(), key(&number.to_string()), said, number as u64, Stamp(0));
        }
        assert_eq!(keys.find(&event, &key("0"), Stamp(0)), Ok(None));
        assert_eq!(keys.find(&event, &key("1"), Stamp(0)), Ok(Some(1)));
        assert_eq!((keys.taken.len(), keys.order.len()), (IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_KEYS_MAX));
    }
}

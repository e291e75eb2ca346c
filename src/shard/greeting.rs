//! What a newcomer gets before any news: the retained values of its topics, in the order of their
//! sequences.
//!
//! A subscriber that names no start stands at the shard's sequence, like any other, and is owed the
//! values up to there. They go out in pieces, each as an answer: while there is one to come,
//! `control` holds the last one that was made, so that no news overtakes it and no elevator hands
//! over anything. A value whose place another one has taken meanwhile is left out: that one comes
//! as news.
//!
//! Invariants worth naming:
//! - A connection with an entry in `State::greetings` has something in `control`, if nothing else
//!   `Answers::nothing`, which is sent to nobody.
//! - A step makes one piece: [`GREETING_BYTES_MAX`] bytes or one value, and for patterns
//!   [`GREETING_LOOKS_MAX`] values looked at.
//! - An event stream is given the id of its place behind the values, not before: a browser that
//!   comes back names the last one, and that is its place.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::connections::TopicIndex;
use super::state::State;
use super::topics::Topics;
use crate::broadcast::Encoded;
use crate::config::limits::{GREETING_BYTES_MAX, GREETING_LOOKS_MAX};
use crate::egress::{Batch, Payload, Slot};
use crate::wire::Format;

/// Values of one topic that are taken into account for one piece: more than it holds.
const VALUES_PER_PIECE: usize = 64;

/// What one subscriber is still to get.
#[derive(Debug, Default)]
pub(super) struct Greeting {
    parts: Vec<Part>,
    /// What comes behind the values.
    last: Option<Bytes>,
}

/// The values of one topic or pattern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    /// The topic; it lives as long as it has the subscriber.
    pub(super) topic: TopicIndex,
    /// Those after this sequence.
    pub(super) after: u64,
    /// Those up to this one; the subscriber's news begin there.
    pub(super) until: u64,
}

impl State {
    /// A newcomer gets these values, and `last` behind them. Something is in its `control`, or will
    /// be before the end of the turn's look at it.
    pub(super) fn greet(&mut self, slot: Slot, parts: Vec<Part>, last: Option<Bytes>) {
        let greeting = self.greetings.entry(slot).or_default();
        greeting.parts.extend(parts);
        greeting.last = last.or(greeting.last.take());
    }

    /// A subscriber leaves one of its topics.
    pub(super) fn greet_no_more_of(&mut self, slot: Slot, topic: TopicIndex) {
        if let Some(greeting) = self.greetings.get_mut(&slot) {
            greeting.parts.retain(|part| part.topic != topic);
        }
    }

    /// What was in `control` is on its way: puts the next piece there, if there is one.
    pub(super) fn greet_on(&mut self, slot: Slot) {
        if self.greetings.is_empty() {
            return;
        }
        let Some(greeting) = self.greetings.get_mut(&slot) else { return };
        let connection = self.connections.get_mut(slot);
        let format = connection.format;
        let values = greeting.next_values(&self.topics, format);
        let piece = match (values.as_slice(), greeting.parts.is_empty()) {
            ([], false) => self.answers.nothing.clone(),
            ([], true) => {
                let greeting = self.greetings.remove(&slot).expect("looked at above");
                let Some(last) = greeting.last else { return };
                Batch::answer(last, &self.ledger)
            }
            ([(event, frame)], _) if event.keeps(format) => {
                Batch::retold(Payload::Frame(frame.clone()), 1, &self.ledger)
            }
            (values, _) => {
                let bytes = values.iter().flat_map(|(_, frame)| frame.iter().copied()).collect();
                Batch::retold(Payload::Own(bytes), values.len() as u32, &self.ledger)
            }
        };
        connection.control = Some(piece);
    }
}

impl Greeting {
    /// The values that come next, with their frames. None, with parts left, if more have to be
    /// looked at to find one.
    fn next_values(&mut self, topics: &Topics, format: Format) -> Vec<(Arc<Encoded>, Bytes)> {
        // What is found is whole up to here.
        let mut whole = u64::MAX;
        let mut found: Vec<(TopicIndex, u64)> = Vec::new();
        for part in self.parts.iter().filter(|part| !topics.get(part.topic).is_pattern()) {
            let values = topics.retained_in(part.topic, part.after, part.until).take(VALUES_PER_PIECE);
            let before = found.len();
            found.extend(values.map(|event| (part.topic, event.sequence)));
            if found.len() - before == VALUES_PER_PIECE {
                whole = whole.min(found.last().map_or(u64::MAX, |last| last.1));
            }
        }
        let patterns: Vec<Part> =
            self.parts.iter().filter(|part| topics.get(part.topic).is_pattern()).copied().collect();
        if let Some(after) = patterns.iter().map(|part| part.after).min() {
            let until = patterns.iter().map(|part| part.until).max().unwrap_or(after);
            let (mut looks, mut last) = (0, 0);
            for (owner, sequence) in topics.retained_owners(after, until).take(GREETING_LOOKS_MAX) {
                (looks, last) = (looks + 1, sequence);
                let is_one = |part: &Part| {
                    part.after < sequence && sequence <= part.until && topics.is_of(owner, part.topic)
                };
                if patterns.iter().any(is_one) {
                    found.push((owner, sequence));
                }
            }
            if looks == GREETING_LOOKS_MAX {
                whole = whole.min(last);
            }
        }
        // A topic and its patterns have the same value, which goes out once.
        found.sort_unstable_by_key(|(_, sequence)| *sequence);
        found.dedup_by_key(|(_, sequence)| *sequence);
        let mut values: Vec<(Arc<Encoded>, Bytes)> = Vec::new();
        let mut bytes = 0;
        for (owner, sequence) in found.into_iter().take_while(|(_, sequence)| *sequence <= whole) {
            let event = topics.value_at(owner, sequence);
            let frame = event.frame(format);
            bytes += frame.len();
            if bytes > GREETING_BYTES_MAX && !values.is_empty() {
                whole = values.last().map_or(whole, |(event, _)| event.sequence);
                break;
            }
            values.push((event.clone(), frame));
        }
        self.parts.retain_mut(|part| {
            part.after = part.after.max(whole);
            part.after < part.until
        });
        values
    }
}

impl Topics {
    /// True if a topic is one of a pattern's.
    fn is_of(&self, topic: TopicIndex, pattern: TopicIndex) -> bool {
        self.with_patterns(topic).skip(1).any(|one| one == pattern)
    }
}

impl State {
    /// The values that a newcomer to a topic gets whose news begin after `until`: none, if it has
    /// named a start.
    pub(super) fn greeting_of(&self, topic: TopicIndex, after: Option<u64>, until: u64) -> Option<Part> {
        let after = after.filter(|_| self.topics.may_greet(topic))?;
        (after < until).then_some(Part { topic, after, until })
    }

    /// True if something that is sent to nobody stands for what is to be sent.
    pub(super) fn is_nothing(&self, batch: &Rc<Batch>) -> bool {
        Rc::ptr_eq(batch, &self.answers.nothing)
    }
}

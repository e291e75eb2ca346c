//! The newest event of each topic, or of each of its keys, for subscribers with `slow=latest`,
//! while one of them lacks it.
//!
//! Such a subscriber gets the newest event of each of its topics, however far behind it is, and
//! nothing else. So one run serves all of them, and their cursors are no floors: a window keeps
//! nothing for them, and its publishers never wait for them. What they may still lack is one event
//! of a topic or key, which stays here although it may have left the window. It goes as soon as a
//! round of the elevator has met nobody who lacks it; a send that waits for too long ends its
//! connection. At most `VALUES_MAX` are kept: beyond it the oldest goes, and is a loss.
//!
//! What they pass over is counted by what the windows still have of it ([`Topics::newer_than`]).

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use super::retained::key_of;
use super::{TopicIndex, Topics};
use crate::broadcast::Encoded;
use crate::config::limits::{VALUES_LOOKED_AT_MAX, VALUES_MAX};
use crate::config::rules::Conflate;
use crate::event::{Key, Topic};

/// What an event is the newest of.
type About = (Topic, Option<Key>);

/// The newest events of a topic, or of those of a pattern.
#[derive(Debug)]
pub struct Values {
    /// The sequence of each topic's or key's newest event.
    newest: HashMap<About, u64>,
    /// These events, each with what its topic's rule says.
    events: BTreeMap<u64, (Arc<Encoded>, Conflate)>,
    /// Of the events after this sequence each topic's or key's newest one is here.
    since: u64,
    /// Subscribers that want them.
    subscribers: u32,
    /// The lowest cursor of theirs that this round has met.
    low: u64,
}

impl Values {
    fn after(since: u64) -> Values {
        Values { newest: HashMap::new(), events: BTreeMap::new(), since, subscribers: 0, low: u64::MAX }
    }

    /// An event of a topic or key; it takes the place of the one before.
    fn note(&mut self, event: &Arc<Encoded>, conflate: Conflate) {
        let newest = self.newest.entry(about(event, conflate)).or_insert(event.sequence);
        if *newest > event.sequence {
            return;
        }
        let before = std::mem::replace(newest, event.sequence);
        self.events.remove(&before);
        self.events.insert(event.sequence, (event.clone(), conflate));
        if self.events.len() > VALUES_MAX
            && let Some((&oldest, _)) = self.events.first_key_value()
        {
            self.forget(oldest);
        }
    }

    /// Those up to `sequence` are here no more.
    fn forget(&mut self, sequence: u64) {
        while let Some(first) = self.events.first_entry().filter(|first| *first.key() <= sequence) {
            let (event, conflate) = first.remove();
            self.newest.remove(&about(&event, conflate));
        }
        self.since = self.since.max(sequence);
    }

    /// The newest of all; 0 if there is none.
    pub fn newest(&self) -> u64 {
        self.events.last_key_value().map_or(0, |(sequence, _)| *sequence)
    }

    /// A cursor below may lack what is not here any more.
    pub fn since(&self) -> u64 {
        self.since
    }

    /// Those after `cursor`, in order.
    pub fn from(&self, cursor: u64) -> impl Iterator<Item = &Arc<Encoded>> {
        self.events.range((Bound::Excluded(cursor), Bound::Unbounded)).map(|(_, (event, _))| event)
    }

    /// A cursor from here to `cursor` lacks the same.
    pub fn sequence_before(&self, cursor: u64) -> u64 {
        self.events.range(..=cursor).next_back().map_or(self.since, |(sequence, _)| *sequence)
    }
}

fn about(event: &Encoded, conflate: Conflate) -> About {
    (event.event.topic.clone(), key_of(event, conflate))
}

impl Topics {
    /// The newest events of a topic; it has a subscriber that wants them.
    pub fn values(&self, index: TopicIndex) -> &Values {
        self.get(index).values.as_deref().expect("a subscriber of the newest events is counted")
    }

    /// A subscriber at `cursor` that has joined wants the newest events alone.
    pub fn begin_latest(&mut self, index: TopicIndex, cursor: u64) {
        let newest = self.newest(index);
        let values = self.get_mut(index).values.get_or_insert_with(|| Values::after(newest).into());
        values.subscribers += 1;
        values.low = values.low.min(cursor);
        if cursor < values.since {
            self.look_back_for_values(index);
        }
    }

    /// One that wanted them is about to leave.
    pub fn end_latest(&mut self, index: TopicIndex) {
        let topic = self.get_mut(index);
        let values = topic.values.as_mut().expect("a subscriber of the newest events is counted");
        values.subscribers -= 1;
        if values.subscribers == 0 {
            topic.values = None;
        }
    }

    /// A visit has met one of them at `cursor`.
    #[inline]
    pub fn meet_latest(&mut self, index: TopicIndex, cursor: u64) {
        if let Some(values) = &mut self.get_mut(index).values {
            values.low = values.low.min(cursor);
        }
    }

    /// An event has come to a topic, or to one of a pattern; `conflate` is what its topic's rule
    /// says.
    pub(super) fn note_value(&mut self, index: TopicIndex, event: &Arc<Encoded>, conflate: Conflate) {
        if let Some(values) = &mut self.get_mut(index).values {
            values.note(event, conflate);
        }
    }

    /// How many events of a topic are after `cursor`, as far as they are still here; of a pattern
    /// [`VALUES_LOOKED_AT_MAX`] at most.
    pub fn newer_than(&self, index: TopicIndex, cursor: u64) -> usize {
        let topic = self.get(index);
        match &topic.log {
            None => topic.window.newer_than(cursor),
            Some(log) => log.count_after(cursor, VALUES_LOOKED_AT_MAX),
        }
    }

    /// A round has met everybody.
    pub(super) fn end_round_of_latest(&mut self, index: TopicIndex) {
        if let Some(values) = &mut self.get_mut(index).values {
            let low = std::mem::replace(&mut values.low, u64::MAX);
            // A round that has met none of them says nothing.
            if low < u64::MAX {
                values.forget(low);
            }
        }
    }

    /// Finds the newest event of each topic or key among those that are still in windows.
    fn look_back_for_values(&mut self, index: TopicIndex) {
        let topic = self.get(index);
        let mut since = topic.window.gone();
        let mut found = Vec::new();
        match &topic.log {
            None => {
                let conflate = self.bounds_of(index).conflate;
                let most = if conflate == Conflate::Topic { 1 } else { VALUES_LOOKED_AT_MAX };
                found.extend(topic.window.newest_first().take(most).map(|event| (event.clone(), conflate)));
            }
            Some(log) => {
                let places = log.newest_first().take(VALUES_LOOKED_AT_MAX);
                found.extend(places.map(|(sequence, owner)| {
                    (self.event_of(owner, sequence).clone(), self.bounds_of(owner).conflate)
                }));
            }
        }
        if found.len() == VALUES_LOOKED_AT_MAX {
            since = since.max(found.last().map_or(0, |(event, _)| event.sequence - 1));
        }
        let values = self.get_mut(index).values.as_mut().expect("the caller has made them");
        // The newest first: older ones of the same topic or key are passed over.
        for (event, conflate) in &found {
            values.note(event, *conflate);
        }
        values.since = values.since.min(since);
    }
}

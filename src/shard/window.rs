//! A shard's events of one topic, as shared pointers, oldest first: the history that settings
//! promise, and before it what subscribers that are behind it still need.
//!
//! ```text
//!    gone      excess          evicted     history         newest
//!      |          |               |           |               |
//!  ....x     [ e  e  e  e  e  e   e ][ e  e  e  e  e  e  e  e ]
//!                 ^                                ^
//!              a cursor that is far behind      another one
//! ```
//!
//! Sequences rise to the right, with holes: other topics' events lie between.
//!
//! History is the same on all shards: a client that comes back gets what is in it and nothing
//! older. The excess serves cursors that were here before; `topics` says how far it may go. A
//! cursor below `gone` has lost events of this topic; any other cursor finds all that it has not
//! seen in here. Where a topic was removed its history ends at that place in the order, behind its
//! newest event. (After a gap a subscriber of several topics may begin later in some of them: then
//! its start there stands for the cursor.)

use std::collections::VecDeque;
use std::sync::Arc;

use super::ids::Ids;
pub use crate::broadcast::Cut;
use crate::broadcast::Encoded;
use crate::clock::Stamp;

/// Events that fit before the memory of a shrunken window is given back.
const EVENTS_KEPT: usize = 32;

/// What an event counted in its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weight {
    /// As published: bounds one topic's history.
    pub published: usize,
    /// With its frames: bounds memory.
    pub memory: usize,
}

impl Weight {
    /// What `event` counts.
    pub fn of(event: &Encoded) -> Weight {
        Weight { published: event.weight(), memory: event.memory() }
    }

    /// Adds another one.
    pub fn add(&mut self, other: Weight) {
        self.published += other.published;
        self.memory += other.memory;
    }

    /// Takes away one that was added.
    pub fn remove(&mut self, other: Weight) {
        self.published -= other.published;
        self.memory -= other.memory;
    }
}

/// Events of one topic.
#[derive(Debug, Default)]
pub struct Window {
    events: VecDeque<Arc<Encoded>>,
    /// Events at the front that are no history any more; `excess <= events.len()`.
    excess: usize,
    /// What the events of the history weigh.
    weight: Weight,
    /// Memory of the excess.
    excess_memory: usize,
    /// Sequence of the newest event that is here no more; 0 if none ever left.
    gone: u64,
    /// Sequence of the newest event that is no history any more, or of the removal of all events;
    /// `gone <= evicted`.
    evicted: u64,
    /// Sequence of the newest event ever seen.
    newest: u64,
    /// The newest event that left the history for want of memory.
    cut: Option<Cut>,
    /// Events of this topic up to here may be missing that never came; 0 if none are.
    hole: u64,
    /// Where publishers' ids stand.
    ids: Ids,
}

impl Window {
    /// An empty window of a topic whose events up to `evicted` are unknown.
    pub fn after(evicted: u64) -> Window {
        Window { gone: evicted, evicted, newest: evicted, ..Window::default() }
    }

    /// The same of a topic that a former process had.
    pub fn restored(evicted: u64, cut: Option<Cut>, hole: u64) -> Window {
        Window { cut, hole, ..Window::after(evicted) }
    }

    /// Appends the newest event.
    pub fn push(&mut self, event: Arc<Encoded>) {
        assert!(event.sequence > self.newest, "sequences rise");
        self.newest = event.sequence;
        self.weight.add(Weight::of(&event));
        if let Some(id) = &event.event.id {
            self.ids.note(id.as_str(), event.sequence);
        }
        self.events.push_back(event);
    }

    /// Makes the oldest event of the history excess and returns what it weighed there.
    pub fn evict(&mut self) -> Weight {
        let Some(event) = self.events.get(self.excess) else { return Weight::default() };
        let weight = Weight::of(event);
        self.evicted = event.sequence;
        if let Some(id) = &event.event.id {
            self.ids.forget(id.as_str(), event.sequence);
        }
        self.excess += 1;
        self.excess_memory += weight.memory;
        self.weight.remove(weight);
        weight
    }

    /// The topic is removed, as of this place in the order; its history is empty.
    pub fn remove_up_to(&mut self, sequence: u64) {
        assert!(self.is_empty() && sequence > self.newest, "what there was is excess");
        self.evicted = sequence;
    }

    /// Does the same for want of memory: less is left than was promised.
    pub fn cut(&mut self) -> Weight {
        let cut = self.front().map(|event| Cut {
            sequence: event.sequence,
            intake: event.intake,
            published: event.weight(),
        });
        self.cut = cut.or(self.cut);
        self.evict()
    }

    /// The event that left the history last, if it left for want of memory.
    pub fn last_cut(&self) -> Option<Cut> {
        self.cut.filter(|cut| cut.sequence == self.evicted)
    }

    /// The sequence after which the last `events` events of the history come, all of it if it has
    /// fewer.
    pub fn before_last(&self, events: usize) -> u64 {
        self.before(self.events.len() - events.min(self.len()))
    }

    /// The sequence after which the events of the history come that were taken in at `stamp` or
    /// later.
    pub fn before_intake(&self, stamp: Stamp) -> u64 {
        // The hub's stamps rise with its sequences.
        self.before(self.events.partition_point(|event| event.intake < stamp).max(self.excess))
    }

    /// Sequence of the event before the one at `index` of the history.
    fn before(&self, index: usize) -> u64 {
        if index == self.excess { self.evicted } else { self.events[index - 1].sequence }
    }

    /// Drops the excess up to `sequence`, `most` events at most, each told to `dropped`. Returns
    /// how many events that were, and their memory.
    pub fn drop_excess(
        &mut self,
        sequence: u64,
        most: usize,
        mut dropped: impl FnMut(u64),
    ) -> (usize, usize) {
        let before = (self.excess, self.excess_memory);
        let least = self.excess - most.min(self.excess);
        while self.excess > least && self.events[0].sequence <= sequence {
            let event = self.events.pop_front().expect("looked at above");
            self.excess -= 1;
            self.excess_memory -= event.memory();
            self.gone = event.sequence;
            dropped(event.sequence);
        }
        if self.events.capacity() > EVENTS_KEPT && self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(2 * self.events.len());
        }
        (before.0 - self.excess, before.1 - self.excess_memory)
    }

    /// The events of the history, oldest first.
    pub fn history(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.events.iter().skip(self.excess)
    }

    /// The events that are still here, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Arc<Encoded>> {
        self.events.iter().rev()
    }

    /// Where publishers' ids stand.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// An event has come that is kept elsewhere: this is the window of a pattern.
    pub fn note(&mut self, event: &Encoded) {
        self.newest = self.newest.max(event.sequence);
        if let Some(id) = &event.event.id {
            self.ids.note(id.as_str(), event.sequence);
        }
    }

    /// An event that is kept elsewhere is no history any more.
    pub fn forget_id(&mut self, event: &Encoded) {
        if let Some(id) = &event.event.id {
            self.ids.forget(id.as_str(), event.sequence);
        }
    }

    /// The newest event that is no history any more has this sequence, elsewhere.
    pub fn note_evicted(&mut self, sequence: u64) {
        self.evicted = sequence;
        self.newest = self.newest.max(sequence);
    }

    /// A cursor below this sequence has lost an event that is gone elsewhere.
    pub fn note_gone(&mut self, sequence: u64) {
        self.gone = self.gone.max(sequence);
    }

    /// Events up to this position may be missing that never came.
    pub fn note_hole(&mut self, position: u64) {
        self.hole = position.max(self.hole);
    }

    /// Up to where events may be missing that never came; 0 if none are.
    pub fn hole(&self) -> u64 {
        self.hole
    }

    /// Sequence of the newest event ever seen here.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Sequence of the newest event that is no history any more: a subscriber that comes now begins
    /// after it.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Sequence of the newest event that is here no more: a cursor below has lost events.
    pub fn gone(&self) -> u64 {
        self.gone
    }

    /// The oldest event of the history.
    pub fn front(&self) -> Option<&Arc<Encoded>> {
        self.events.get(self.excess)
    }

    /// Index of the first event newer than `cursor`, excess included.
    pub fn index_after(&self, cursor: u64) -> usize {
        // Most cursors stand right before the newest event or a few before it.
        let length = self.events.len();
        let near = length.saturating_sub(4);
        if length > near && (near == 0 || self.events[near - 1].sequence <= cursor) {
            let newer = self.events.iter().skip(near).position(|event| event.sequence > cursor);
            return near + newer.unwrap_or(length - near);
        }
        self.events.partition_point(|event| event.sequence <= cursor)
    }

    /// How many events are newer than `cursor`, excess included.
    pub fn newer_than(&self, cursor: u64) -> usize {
        self.events.len() - self.index_after(cursor)
    }

    /// The event at `index`, oldest first, excess included.
    pub fn get(&self, index: usize) -> Option<&Arc<Encoded>> {
        self.events.get(index)
    }

    /// Sequence of the oldest event of the history that has this id of its publisher's.
    pub fn oldest_with_id(&self, id: &str) -> Option<u64> {
        self.ids.oldest(id, |sequence| {
            let event = self.events.get(self.index_after(sequence - 1));
            event.and_then(|event| event.event.id.as_ref()).is_some_and(|custom| custom.as_str() == id)
        })
    }

    /// Events of the history.
    pub fn len(&self) -> usize {
        self.events.len() - self.excess
    }

    /// True if the history is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the history weighs.
    pub fn weight(&self) -> Weight {
        self.weight
    }

    /// Events beyond the history.
    pub fn excess(&self) -> usize {
        self.excess
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CustomId, Epoch, Event};
    use crate::shard::fixtures::{encoded, encoded_alone};

    #[test]
    fn every_cursor_finds_the_first_event_that_it_has_not_seen() {
        let mut window = Window::default();
        let sequences: Vec<u64> = (1..60).map(|n| n * 3).collect();
        for sequence in &sequences {
            window.push(encoded("t", *sequence));
        }
        for cursor in 0..200 {
            let expected =
                sequences.iter().position(|sequence| *sequence > cursor).unwrap_or(sequences.len());
            assert_eq!(window.index_after(cursor), expected, "cursor {cursor}");
        }
    }

    #[test]
    fn an_id_stands_for_its_oldest_event_as_long_as_that_is_history() {
        let mut window = Window::default();
        for (sequence, id) in [(3, "a"), (5, "b"), (8, "a"), (9, "c")] {
            let encoded = encoded_alone("t", sequence);
            let event = Event { id: Some(CustomId::new(id).expect("an id")), ..encoded.event };
            window.push(Arc::new(Encoded::new(event, Epoch(7), sequence, encoded.intake)));
        }
        window.push(encoded("t", 11));
        let found = |window: &Window| ["a", "b", "c", "x"].map(|id| window.oldest_with_id(id));
        assert_eq!(found(&window), [Some(3), Some(5), Some(9), None]);
        window.evict();
        assert_eq!(found(&window), [Some(8), Some(5), Some(9), None]);
        window.evict();
        window.evict();
        assert_eq!(found(&window), [None, None, Some(9), None]);
    }

    #[test]
    fn an_evicted_event_serves_old_cursors_until_it_is_dropped() {
        let mut window = Window::default();
        for sequence in [5, 9, 12] {
            window.push(encoded("t", sequence));
        }
        let whole = window.weight();
        assert_eq!((window.evicted(), window.gone(), window.newest()), (0, 0, 12));
        window.evict();
        window.evict();
        assert_eq!((window.evicted(), window.gone(), window.len(), window.excess()), (9, 0, 1, 2));
        assert_eq!(window.index_after(5), 1, "a cursor in the excess finds what it lacks");
        assert_eq!([0, 5, 9, 12].map(|cursor| window.newer_than(cursor)), [3, 2, 1, 0]);
        assert_eq!(window.front().map(|event| event.sequence), Some(12), "the history");
        assert!(window.weight().memory < whole.memory);
        assert_eq!(window.drop_excess(8, 10, |_| ()), (1, encoded("t", 5).memory()));
        assert_eq!((window.evicted(), window.gone(), window.excess()), (9, 5, 1));
        assert_eq!(window.drop_excess(100, 10, |_| ()).0, 1, "what is history stays");
        assert_eq!((window.gone(), window.len()), (9, 1));
        window.evict();
        window.drop_excess(12, 10, |_| ());
        assert_eq!((window.evicted(), window.gone(), window.weight()), (12, 12, Weight::default()));
        assert_eq!(window.evict(), Weight::default());
    }

    #[test]
    fn a_window_that_has_emptied_gives_its_memory_back() {
        let mut window = Window::default();
        for sequence in 1..=1_000 {
            window.push(encoded("t", sequence));
        }
        for _ in 0..1_000 {
            window.evict();
            window.drop_excess(u64::MAX, 1, |_| ());
        }
        assert!(window.events.capacity() <= EVENTS_KEPT, "{} places", window.events.capacity());
    }
}

//! A shard's recent events of one topic, as shared pointers, oldest first.
//!
//! ```text
//!   evicted        front                 back
//!      |             |                     |
//!  ....x  (gone)  [ e  e  e  e  e  e  e  e ]      sequences rise to the right, with holes:
//!                         ^                       other topics' events lie between
//!                      cursor: everything up to here was handed to the kernel
//! ```
//!
//! A cursor below `evicted` has lost events of this topic; any other cursor finds all that it has not seen in here. (After a gap a
//! subscriber of several topics may begin later in some of them: then its start there stands for the cursor.)

use std::collections::VecDeque;
use std::sync::Arc;

use super::ids::Ids;
use crate::broadcast::Encoded;

/// Recent events of one topic.
#[derive(Debug, Default)]
pub struct Window {
    events: VecDeque<Arc<Encoded>>,
    /// Sum of the events' weights.
    bytes: usize,
    /// Sequence of the newest event that is here no more; 0 if none ever left.
    evicted: u64,
    /// Sequence of the newest event ever seen; `evicted <= newest`.
    newest: u64,
    /// Where publishers' ids stand.
    ids: Ids,
}

impl Window {
    /// An empty window of a topic whose events up to `evicted` are unknown.
    pub fn after(evicted: u64) -> Window {
        Window { evicted, newest: evicted, ..Window::default() }
    }

    /// Appends the newest event.
    pub fn push(&mut self, event: Arc<Encoded>) {
        assert!(event.sequence > self.newest, "sequences rise");
        self.newest = event.sequence;
        self.bytes += event.weight();
        if let Some(id) = &event.event.id {
            self.ids.note(id.as_str(), event.sequence);
        }
        self.events.push_back(event);
    }

    /// Drops the oldest event and returns its weight.
    pub fn evict(&mut self) -> usize {
        let Some(event) = self.events.pop_front() else { return 0 };
        let weight = event.weight();
        self.bytes -= weight;
        self.evicted = event.sequence;
        if let Some(id) = &event.event.id {
            self.ids.forget(id.as_str(), event.sequence);
        }
        weight
    }

    /// Sequence of the newest event ever seen here.
    pub fn newest(&self) -> u64 {
        self.newest
    }

    /// Sequence of the newest event that is here no more.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// The oldest event.
    pub fn front(&self) -> Option<&Arc<Encoded>> {
        self.events.front()
    }

    /// Index of the first event newer than `cursor`.
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

    /// The event at `index`, oldest first.
    pub fn get(&self, index: usize) -> Option<&Arc<Encoded>> {
        self.events.get(index)
    }

    /// Sequence of the oldest event here that has this id of its publisher's.
    pub fn oldest_with_id(&self, id: &str) -> Option<u64> {
        self.ids.oldest(id, |sequence| {
            let event = self.events.get(self.index_after(sequence - 1));
            event.and_then(|event| event.event.id.as_ref()).is_some_and(|custom| custom.as_str() == id)
        })
    }

    /// Events in the window.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// True if no event is in the window.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Sum of the events' weights.
    pub fn bytes(&self) -> usize {
        self.bytes
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
    fn an_id_stands_for_its_oldest_event_as_long_as_that_is_here() {
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
    fn an_evicted_event_is_remembered_by_its_sequence() {
        let mut window = Window::default();
        window.push(encoded("t", 5));
        window.push(encoded("t", 9));
        assert_eq!((window.evicted(), window.newest()), (0, 9));
        window.evict();
        assert_eq!((window.evicted(), window.len()), (5, 1));
        window.evict();
        assert_eq!((window.evicted(), window.newest(), window.bytes()), (9, 9, 0));
        assert_eq!(window.evict(), 0);
    }
}

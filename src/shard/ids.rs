//! Where publishers' ids stand in a window, so that a client that names one is not answered by a
//! walk over all events.
//!
//! An id is kept as its hash, with a key of this process: two ids may share one, so the caller
//! looks at the event itself. An event without an id of its publisher's costs nothing here, one
//! with such an id [`ID_PLACE_BYTES`](crate::config::limits::ID_PLACE_BYTES), until it leaves the
//! window.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

/// Random, so that no publisher can choose ids that share their hashes.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// The places of publishers' ids in one window.
#[derive(Debug, Default)]
pub struct Ids {
    /// Hash of the id and sequence of the event, for every event of the window that has one.
    places: BTreeSet<(u64, u64)>,
}

impl Ids {
    /// The event of this sequence has this id.
    pub fn note(&mut self, id: &str, sequence: u64) {
        self.places.insert((KEY.hash_one(id), sequence));
    }

    /// That event leaves the window.
    pub fn forget(&mut self, id: &str, sequence: u64) {
        self.places.remove(&(KEY.hash_one(id), sequence));
    }

    /// The sequence of the oldest event with this id. `has_id` says whether the event of a sequence
    /// has it; it is asked once, and once more for each older event whose id has the same hash by
    /// chance.
    pub fn oldest(&self, id: &str, mut has_id: impl FnMut(u64) -> bool) -> Option<u64> {
        if self.places.is_empty() {
            return None;
        }
        let hash = KEY.hash_one(id);
        let mut places = self.places.range((hash, 0)..=(hash, u64::MAX));
        places.find(|(_, sequence)| has_id(*sequence)).map(|(_, sequence)| *sequence)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::egress::sim::Dice;

    /// Whatever comes and goes, the answer is that of a walk over the window, for one look at most.
    #[test]
    fn the_oldest_event_with_an_id_is_found_without_a_walk() {
        let mut dice = Dice::new(1);
        let mut ids = Ids::default();
        let mut window: VecDeque<(u64, String)> = VecDeque::new();
        for sequence in 1..5_000 {
            // Some ids are used again and again.
            let id = format!("order {}", dice.roll(200));
            ids.note(&id, sequence);
            window.push_back((sequence, id));
            while window.len() > 300 || !window.is_empty() && dice.chance(1, 3) {
                let (sequence, id) = window.pop_front().expect("not empty");
                ids.forget(&id, sequence);
            }
            assert_eq!(ids.places.len(), window.len(), "what leaves the window leaves nothing behind");
            let named = format!("order {}", dice.roll(250));
            let walked = window.iter().find(|(_, id)| *id == named).map(|(sequence, _)| *sequence);
            let mut looks = 0;
            let found = ids.oldest(&named, |sequence| {
                looks += 1;
                window.iter().any(|(other, id)| *other == sequence && *id == named)
            });
            assert_eq!((found, looks), (walked, usize::from(walked.is_some())), "{named}");
        }
    }

    /// Hashes may collide; the event decides.
    #[test]
    fn an_event_with_another_id_is_passed_over() {
        let mut ids = Ids::default();
        ids.note("a", 1);
        ids.note("a", 2);
        assert_eq!(ids.oldest("a", |sequence| sequence == 2), Some(2));
        assert_eq!(ids.oldest("a", |_| false), None);
        assert_eq!(ids.oldest("b", |sequence| panic!("{sequence} is of another hash")), None);
    }
}

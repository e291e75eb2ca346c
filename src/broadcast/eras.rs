//! Which sequence of which epoch stands where in the order of hub and shards.
//!
//! Hub and shards count in positions, which only ever rise. A position is the source's sequence,
//! moved by the base of its epoch. The base is 0 in all processes whose source never begins a new
//! epoch, and then positions are sequences. Where a source does (its log was lost or made anew), its
//! sequences begin again at 1, while cursors and windows go on: only the base changes.

use crate::event::{Epoch, EventId};

/// Epochs before the present one whose ids are still understood.
const FORMER_MAX: usize = 4;

/// An epoch, and where its sequences begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era {
    /// Whose sequences these are.
    pub epoch: Epoch,
    /// The position that stands before its first sequence. In all eras but the first of a process no
    /// event has it.
    pub base: u64,
}

impl From<Epoch> for Era {
    /// The first one of a process.
    fn from(epoch: Epoch) -> Era {
        Era { epoch, base: 0 }
    }
}

impl Era {
    /// What clients see of a position. One before this epoch stands before its first event.
    pub fn id(self, position: u64) -> EventId {
        EventId { epoch: self.epoch, sequence: position.saturating_sub(self.base) }
    }
}

/// The present era, and some before it.
#[derive(Debug, Clone)]
pub struct Eras {
    present: Era,
    /// The oldest first.
    former: Vec<Era>,
}

impl Eras {
    /// There was none before this one.
    pub fn new(first: Era) -> Eras {
        Eras { present: first, former: Vec::new() }
    }

    /// The one in which events come now.
    pub fn present(&self) -> Era {
        self.present
    }

    /// Another one has begun.
    pub fn begin(&mut self, era: Era) {
        if self.former.len() == FORMER_MAX {
            self.former.remove(0);
        }
        self.former.push(std::mem::replace(&mut self.present, era));
    }

    /// What clients see of a position.
    pub fn id(&self, position: u64) -> EventId {
        self.present.id(position)
    }

    /// True if ids of this epoch have a meaning here.
    pub fn knows(&self, epoch: Epoch) -> bool {
        self.present.epoch == epoch || self.former.iter().any(|era| era.epoch == epoch)
    }

    /// The position that an id means, if it is one of ours; `newest` is the newest that was given.
    /// An id of a former epoch that stands behind all that came of it here is of another node, and
    /// what that one had before it may never have come here.
    pub fn position_of(&self, id: EventId, newest: u64) -> Option<u64> {
        let mut end = newest;
        for era in std::iter::once(&self.present).chain(self.former.iter().rev()) {
            if era.epoch == id.epoch {
                return id.sequence.checked_add(era.base).filter(|position| *position <= end);
            }
            end = era.base.saturating_sub(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_first_era_positions_are_sequences() {
        let eras = Eras::new(Epoch(7).into());
        assert_eq!(eras.id(5), EventId { epoch: Epoch(7), sequence: 5 });
        let at = |epoch, sequence| eras.position_of(EventId { epoch: Epoch(epoch), sequence }, 5);
        assert_eq!([at(7, 0), at(7, 5), at(7, 6), at(8, 1)], [Some(0), Some(5), None, None]);
    }

    #[test]
    fn ids_of_former_epochs_are_understood_and_no_position_has_two_meanings() {
        let mut eras = Eras::new(Epoch(1).into());
        eras.begin(Era { epoch: Epoch(2), base: 10 });
        eras.begin(Era { epoch: Epoch(3), base: 14 });
        let at = |epoch, sequence| eras.position_of(EventId { epoch: Epoch(epoch), sequence }, 20);
        assert_eq!([at(1, 9), at(1, 10), at(1, 11)], [Some(9), None, None], "it never gave more than nine");
        assert_eq!([at(2, 3), at(2, 4), at(2, 5)], [Some(13), None, None]);
        assert_eq!([at(3, 6), at(3, 7), at(3, u64::MAX)], [Some(20), None, None]);
        assert_eq!(eras.id(15), EventId { epoch: Epoch(3), sequence: 1 });
        assert_eq!(eras.id(12).sequence, 0, "it stands before the first event of this epoch");
        for base in 20..30 {
            eras.begin(Era { epoch: Epoch(base), base });
        }
        assert_eq!(eras.position_of(EventId { epoch: Epoch(1), sequence: 1 }, 40), None, "long ago");
    }
}

//! The elevator of one topic: where it stands, what a round has met, and which events it still
//! carries to their last subscriber. `topics` moves it.

use std::collections::VecDeque;

use crate::clock::Stamp;
use crate::config::limits::MARKS_MAX;

/// An event run that is done when the elevator has made its `due`-th visit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) due: u64,
    pub(super) intake: Stamp,
    pub(super) events: u32,
}

/// The elevator of one topic.
#[derive(Debug)]
pub struct Lap {
    /// Next subscriber to visit; below the number of subscribers, or 0.
    pub(super) position: usize,
    /// Visits until everybody has been offered what is there now.
    pub(super) left: usize,
    /// Visits since the last round was complete.
    pub(super) visited: usize,
    /// Visits ever.
    pub(super) visits: u64,
    /// The lowest sequence after which a subscriber needs events, of those that this round has met.
    pub(super) low: u64,
    /// The lowest cursor of theirs.
    pub(super) true_low: u64,
    /// A cursor below is far behind: it stands in the older half of the excess, as that was when
    /// the round began.
    pub(super) far: u64,
    /// Subscribers far behind that this round has met.
    pub(super) behind: usize,
    /// Those of them that wait for their own sockets are cut.
    pub(super) cuts: bool,
    /// Whose events reach their last subscriber when; dues never fall. At most `MARKS_MAX`.
    pub(super) marks: VecDeque<Mark>,
}

impl Default for Lap {
    fn default() -> Lap {
        Lap {
            position: 0,
            left: 0,
            visited: 0,
            visits: 0,
            low: u64::MAX,
            true_low: u64::MAX,
            far: 0,
            behind: 0,
            cuts: false,
            marks: VecDeque::new(),
        }
    }
}

impl Lap {
    /// Nobody has been met yet.
    pub(super) fn begin_round(&mut self) {
        self.visited = 0;
        self.low = u64::MAX;
        self.true_low = u64::MAX;
        self.behind = 0;
    }

    /// Remembers that an event taken in at `intake` is done after a whole round from here.
    pub(super) fn note(&mut self, intake: Stamp) {
        let due = self.visits + self.left as u64;
        let full = self.marks.len() >= MARKS_MAX;
        match self.marks.back_mut() {
            Some(last) if last.due == due && last.intake == intake => last.events += 1,
            // A backlog: what comes now is told with what came a little before, rather too late
            // than too early.
            Some(last) if full => {
                last.due = due;
                last.events += 1;
            }
            _ => self.marks.push_back(Mark { due, intake, events: 1 }),
        }
    }
}

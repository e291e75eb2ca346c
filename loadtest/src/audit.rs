//! What became of the events of one connection: lost, duplicated, out of order.
//!
//! The publisher numbers events from 1 without gaps, so each connection expects exactly the next number. A number
//! that was skipped and comes later is out of order, not lost; a number that comes again is a duplicate. The list of
//! skipped numbers exists only while something is missing and is bounded: beyond it a late event counts as a
//! duplicate while its loss stays counted, so an audit can overstate a disaster but never hide one.

use serde::{Deserialize, Serialize};

/// Skipped numbers that one connection remembers.
const MISSING_MAX: usize = 1_024;

/// Counts over any number of connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// Events that arrived, whatever else is said of them.
    pub events: u64,
    /// Numbers that were skipped and have not come since.
    pub lost: u64,
    /// Numbers that came again.
    pub duplicated: u64,
    /// Numbers that came after a larger one.
    pub out_of_order: u64,
    /// Events without a stamp: not from this publisher.
    pub foreign: u64,
    /// Notices of the server that events are missing; what a notice covers is not lost.
    #[serde(default)]
    pub gaps_told: u64,
}

impl Findings {
    /// Events that arrived wrongly or not at all without being told of.
    pub fn faults(&self) -> u64 {
        self.lost + self.duplicated + self.out_of_order + self.foreign
    }

    /// True if every event that arrived was the expected one. Subscribers that resume may be told of gaps: for those
    /// [`faults`](Self::faults) is what counts.
    pub fn clean(&self) -> bool {
        self.faults() == 0 && self.gaps_told == 0
    }

    /// Adds the counts of other connections.
    pub fn add(&mut self, other: &Findings) {
        self.events += other.events;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.out_of_order += other.out_of_order;
        self.foreign += other.foreign;
        self.gaps_told += other.gaps_told;
    }
}

/// The audit of one connection.
#[derive(Debug)]
pub struct Audit {
    /// The number expected next; all below have arrived or are counted as lost.
    next: u64,
    missing: Vec<u64>,
    found: Findings,
}

impl Audit {
    /// Expects `next` as the first event.
    pub fn new(next: u64) -> Audit {
        Audit { next, missing: Vec::new(), found: Findings::default() }
    }

    /// Takes the next event of the connection: its number, or `None` if it carried no stamp.
    pub fn take(&mut self, sequence: Option<u64>) {
        self.found.events += 1;
        let Some(sequence) = sequence else {
            self.found.foreign += 1;
            return;
        };
        if sequence >= self.next {
            let skipped = sequence - self.next;
            self.found.lost += skipped;
            let room = MISSING_MAX.saturating_sub(self.missing.len()) as u64;
            self.missing.extend(self.next..self.next + skipped.min(room));
            self.next = sequence + 1;
        } else if let Some(at) = self.missing.iter().position(|&missing| missing == sequence) {
            self.missing.swap_remove(at);
            self.found.lost -= 1;
            self.found.out_of_order += 1;
        } else {
            self.found.duplicated += 1;
        }
    }

    /// What was found, if `last` was the last event published: those never seen at the end are lost too.
    pub fn findings(&self, last: u64) -> Findings {
        let mut found = self.found;
        found.lost += (last + 1).saturating_sub(self.next);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn audit(sequences: &[u64], last: u64) -> Findings {
        let mut audit = Audit::new(1);
        for &sequence in sequences {
            audit.take(Some(sequence));
        }
        audit.findings(last)
    }

    #[test]
    fn a_complete_stream_is_clean() {
        let found = audit(&[1, 2, 3, 4], 4);
        assert!(found.clean());
        assert_eq!(found.events, 4);
    }

    #[test]
    fn each_planted_loss_is_found_at_the_start_in_the_middle_and_at_the_end() {
        assert_eq!(audit(&[2, 3], 3).lost, 1);
        assert_eq!(audit(&[1, 5], 5).lost, 3);
        assert_eq!(audit(&[1, 2], 4).lost, 2);
        assert_eq!(audit(&[], 7).lost, 7);
    }

    #[test]
    fn each_planted_duplicate_is_found() {
        let found = audit(&[1, 2, 2, 3, 1], 3);
        assert_eq!((found.duplicated, found.lost, found.out_of_order), (2, 0, 0));
    }

    #[test]
    fn each_planted_swap_is_found_and_is_no_loss() {
        let found = audit(&[2, 1, 3, 6, 5, 4], 6);
        assert_eq!((found.out_of_order, found.lost, found.duplicated), (3, 0, 0));
    }

    #[test]
    fn a_loss_beyond_what_is_remembered_is_still_counted() {
        let mut audit = Audit::new(1);
        audit.take(Some(1_000_000));
        assert_eq!(audit.findings(1_000_000).lost, 999_999);
        assert_eq!(audit.missing.len(), MISSING_MAX);
    }

    #[test]
    fn an_event_of_someone_else_is_foreign() {
        let mut audit = Audit::new(1);
        audit.take(None);
        assert!(!audit.findings(0).clean());
        assert_eq!(audit.findings(0).foreign, 1);
    }
}

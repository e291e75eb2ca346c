//! What became of the events of one connection: lost, duplicated, out of order.
//!
//! The publisher numbers events from 1 without gaps, so each connection expects exactly the next
//! number. A number that was skipped and comes later is out of order, not lost; a number that comes
//! again is a duplicate. The list of skipped numbers exists only while something is missing and is
//! bounded: beyond it a late event counts as a duplicate while its loss stays counted, so an audit
//! can overstate a disaster but never hide one.
//!
//! A subscriber that joins a stream under way takes its first event for the beginning, unless
//! somebody who knows says from which event on it is owed. One that resumes goes on as if its
//! connection had never broken, but what the server told it that it misses is not lost: it too is
//! owed something only from an event that is said to be later.
//!
//! A subscriber that wants the latest alone may miss any event but the newest of each value. Its
//! events go round the values, and those that come must come in order.

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

    /// True if every event that arrived was the expected one. Subscribers that resume may be told
    /// of gaps: for those [`faults`](Self::faults) is what counts.
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
    /// Which numbers the next event may leave out.
    leave: Leave,
    /// Unless it may leave out none: the first number that it may not. [`u64::MAX`] as long as none
    /// is known.
    owed: u64,
    /// The newest number of each value, where only these are owed.
    newest: Box<[u64]>,
    found: Findings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// None.
    Nothing,
    /// Those from the expected one on, as the server told.
    Told,
    /// Whatever was before: it is the first event.
    Everything,
    /// All that is not the newest of its value.
    Older,
}

impl Audit {
    /// Expects `next` as the first event.
    pub fn new(next: u64) -> Audit {
        Audit {
            next,
            missing: Vec::new(),
            leave: Leave::Nothing,
            owed: u64::MAX,
            newest: Box::default(),
            found: Findings::default(),
        }
    }

    /// Takes whatever event comes first for the beginning.
    pub fn joining() -> Audit {
        Audit { leave: Leave::Everything, ..Audit::new(0) }
    }

    /// Expects the newest event of each of `values` values, from `first` on.
    pub fn newest(first: u64, values: usize) -> Audit {
        Audit { leave: Leave::Older, owed: first, newest: vec![0; values].into(), ..Audit::new(first) }
    }

    /// The connection is a new subscriber from here on. What was found stays; whatever it should
    /// have had up to `settled` and has not is lost.
    pub fn rejoin(&mut self, settled: u64) {
        self.found.lost = self.found.lost.saturating_add(self.tail(settled));
        (self.leave, self.owed) = (Leave::Everything, u64::MAX);
        self.missing.clear();
    }

    /// A subscriber that waits for its first event, or for the first after a gap, is owed those
    /// from `first` on.
    pub fn owe(&mut self, first: u64) {
        if matches!(self.leave, Leave::Told | Leave::Everything) {
            self.owed = self.owed.min(first);
        }
    }

    /// True while nobody knows from which event on something is owed.
    pub fn owed_unknown(&self) -> bool {
        self.leave != Leave::Nothing && self.owed == u64::MAX
    }

    /// True until the first event of a subscriber that joined.
    pub fn is_joining(&self) -> bool {
        self.leave == Leave::Everything
    }

    /// Forgets what was found and expects what it expected. A number skipped before that comes now
    /// is a duplicate.
    pub fn forget(&mut self) {
        self.found = Findings::default();
        self.missing.clear();
    }

    /// The server told that events are missing here, by so many notices that were not counted yet.
    pub fn gap(&mut self, notices: u64) {
        self.found.gaps_told += notices;
        if self.leave == Leave::Older {
            return;
        }
        self.owed = u64::MAX;
        if self.leave == Leave::Nothing {
            self.leave = Leave::Told;
        }
    }

    /// Takes the next event of the connection: its number, or `None` if it carried no stamp. True
    /// if it was not here before.
    #[inline]
    pub fn take(&mut self, sequence: Option<u64>) -> bool {
        self.found.events += 1;
        match sequence {
            Some(sequence) if sequence == self.next && self.leave == Leave::Nothing => {
                self.next = sequence.saturating_add(1);
                true
            }
            Some(sequence) => self.take_unexpected(sequence),
            None => {
                self.found.foreign += 1;
                false
            }
        }
    }

    fn take_unexpected(&mut self, sequence: u64) -> bool {
        if self.leave == Leave::Older {
            return self.take_newest(sequence);
        }
        if self.leave == Leave::Everything || sequence >= self.next {
            let first = self.first_owed();
            if let Some(skipped) = sequence.checked_sub(first) {
                self.found.lost = self.found.lost.saturating_add(skipped);
                let room = MISSING_MAX.saturating_sub(self.missing.len()) as u64;
                self.missing.extend(first..first + skipped.min(room));
            }
            self.leave = Leave::Nothing;
            self.next = sequence.saturating_add(1);
            true
        } else if let Some(at) = self.missing.iter().position(|&missing| missing == sequence) {
            self.missing.swap_remove(at);
            self.found.lost -= 1;
            self.found.out_of_order += 1;
            true
        } else {
            self.found.duplicated += 1;
            false
        }
    }

    /// What was found so far.
    pub fn found(&self) -> Findings {
        self.found
    }

    /// The first number that the next event may not leave out.
    fn first_owed(&self) -> u64 {
        match self.leave {
            Leave::Nothing | Leave::Older => self.next,
            Leave::Told => self.owed.max(self.next),
            Leave::Everything => self.owed,
        }
    }

    fn take_newest(&mut self, sequence: u64) -> bool {
        let values = self.newest.len() as u64;
        let newest = &mut self.newest[(sequence.saturating_sub(1) % values) as usize];
        let is_new = sequence >= self.next;
        if is_new {
            *newest = sequence;
            self.next = sequence.saturating_add(1);
        } else if *newest == sequence {
            self.found.duplicated += 1;
        } else {
            self.found.out_of_order += 1;
        }
        is_new
    }

    /// Values whose newest event up to `last` is not here.
    fn values_missing(&self, last: u64) -> u64 {
        let values = self.newest.len() as u64;
        let missing = |&(at, here): &(u64, u64)| {
            let newest = last.checked_sub(at + 1).map_or(0, |beyond| last - beyond % values);
            newest >= self.owed && here < newest
        };
        (0..).zip(self.newest.iter().copied()).filter(missing).count() as u64
    }

    /// Events never seen at the end, if `last` was the last event published. None before a joining
    /// subscriber's first and behind a told gap, as long as nobody said that some are owed.
    pub fn tail(&self, last: u64) -> u64 {
        if self.leave == Leave::Older {
            return self.values_missing(last);
        }
        last.saturating_add(1).saturating_sub(self.first_owed())
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
        let mut found = audit.found();
        found.lost += audit.tail(last);
        found
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
        assert_eq!(audit.found().lost, 999_999);
        assert_eq!(audit.missing.len(), MISSING_MAX);
    }

    #[test]
    fn an_event_of_someone_else_is_foreign() {
        let mut audit = Audit::new(1);
        audit.take(None);
        assert!(!audit.found().clean());
        assert_eq!(audit.found().foreign, 1);
    }

    #[test]
    fn a_subscriber_that_joins_begins_with_its_first_event_and_is_audited_from_there() {
        let mut audit = Audit::joining();
        assert_eq!(audit.tail(100), 0, "nothing was owed yet");
        for sequence in [41, 42, 44] {
            assert!(audit.take(Some(sequence)));
        }
        assert_eq!((audit.found().lost, audit.tail(46)), (1, 2));
        audit.rejoin(44);
        assert!(audit.is_joining() && audit.take(Some(7)) && !audit.is_joining());
        assert_eq!((audit.found().lost, audit.found().duplicated, audit.tail(7)), (1, 0, 0));
    }

    #[test]
    fn what_a_subscriber_lacked_when_its_connection_ended_is_lost_although_it_begins_anew() {
        let mut audit = Audit::new(1);
        audit.rejoin(700);
        assert_eq!((audit.found().lost, audit.tail(5_000)), (700, 0));
        audit.rejoin(900);
        assert_eq!(audit.found().lost, 700, "nothing was owed yet");
        audit.take(Some(1_000));
        audit.rejoin(990);
        assert_eq!(audit.found().lost, 700);
    }

    #[test]
    fn a_subscriber_that_is_owed_events_loses_them_whether_others_come_or_none() {
        let mut audit = Audit::joining();
        assert!(audit.owed_unknown());
        audit.owe(50);
        audit.owe(60);
        assert_eq!((audit.tail(49), audit.tail(52), audit.owed_unknown()), (0, 3, false));
        audit.take(Some(53));
        audit.take(Some(52));
        assert_eq!((audit.found().lost, audit.found().out_of_order, audit.tail(54)), (2, 1, 1));
        audit.owe(1);
        assert_eq!(audit.tail(54), 1, "its first event has come");
        let mut early = Audit::joining();
        early.owe(50);
        early.take(Some(40));
        assert_eq!(early.found().lost, 0, "more than it was owed");
    }

    #[test]
    fn what_a_told_gap_covers_is_not_lost_at_the_end_either_but_what_is_later_is() {
        let mut audit = Audit::new(1);
        audit.take(Some(1));
        audit.gap(1);
        assert_eq!(audit.tail(10), 0);
        audit.owe(9);
        assert_eq!(audit.tail(10), 2);
        audit.gap(1);
        assert_eq!(audit.tail(10), 0, "told again");
    }

    #[test]
    fn what_a_told_gap_covers_is_not_lost_but_a_duplicate_behind_it_is_found() {
        let mut audit = Audit::new(1);
        audit.take(Some(1));
        audit.gap(1);
        audit.take(Some(10));
        assert_eq!(audit.found(), Findings { events: 2, gaps_told: 1, ..Findings::default() });
        assert!(!audit.found().clean(), "a gap is not the expected event");
        assert_eq!(audit.found().faults(), 0);
        audit.gap(1);
        assert!(!audit.take(Some(10)), "it was here");
        audit.take(Some(12));
        audit.take(Some(14));
        assert_eq!((audit.found().duplicated, audit.found().lost), (1, 1));
    }

    #[test]
    fn of_values_only_the_newest_is_owed_and_what_comes_must_rise() {
        // Value 0 has the events 1, 4, 7; value 1 has 2, 5; value 2 has 3, 6.
        let mut audit = Audit::newest(1, 3);
        assert!(!audit.owed_unknown() && !audit.is_joining());
        for sequence in [1, 3, 5, 7] {
            assert!(audit.take(Some(sequence)));
        }
        assert_eq!((audit.tail(7), audit.found().faults()), (1, 0), "the last of value 2 is not here");
        audit.take(Some(6));
        audit.take(Some(7));
        assert_eq!((audit.found().out_of_order, audit.found().duplicated), (1, 1));
        audit.gap(1);
        assert_eq!((audit.tail(10), Audit::newest(8, 3).tail(8)), (3, 1), "from the first that is owed");
    }

    #[test]
    fn a_number_that_was_skipped_before_forgetting_takes_no_loss_away() {
        let mut audit = Audit::new(1);
        audit.take(Some(1));
        audit.take(Some(3));
        audit.forget();
        audit.take(Some(2));
        assert_eq!((audit.found().lost, audit.found().out_of_order, audit.found().duplicated), (0, 0, 1));
    }

    #[test]
    fn the_largest_number_there_is_does_no_harm() {
        let mut audit = Audit::new(1);
        audit.take(Some(u64::MAX));
        audit.take(Some(u64::MAX));
        assert_eq!(audit.found().events, 2);
        assert_eq!(audit.tail(u64::MAX), 0);
    }
}

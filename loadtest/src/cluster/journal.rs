//! What one topic of a cluster has published, as its subscribers tell it, and whether they tell the
//! same.
//!
//! The first subscriber that hears an event writes it down with its sequence; every other one must
//! hear the same events under the same sequences, in the same order, wherever it is connected. No
//! I/O and no clock.

use std::collections::HashMap;

use serde::Serialize;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The sequence in its id.
    pub sequence: u64,
    /// The publisher's number, from its data.
    pub number: u64,
    /// Subscribers that have it.
    pub heard: usize,
}

/// What a subscriber got.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The part of the id before its dash.
    pub epoch: &'a str,
    /// The part behind it.
    pub sequence: u64,
    /// The publisher's number, from its data.
    pub number: u64,
}

/// What was wrong, and how much was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Deliveries that were checked.
    pub deliveries: u64,
    /// Event × subscriber that did not arrive.
    pub lost: u64,
    /// Deliveries of what the subscriber had already, or of what the stream has under another id.
    pub twice: u64,
    /// Deliveries under another id, in another order, or with other data than elsewhere.
    pub differing: u64,
    /// Gaps that subscribers were told of.
    pub gaps: u64,
}

impl Findings {
    /// True if every delivery was as it must be.
    pub fn are_clean(&self) -> bool {
        Findings { deliveries: 0, ..self.clone() } == Findings::default()
    }

    /// In words.
    pub fn line(&self) -> String {
        format!(
            "{} deliveries checked: {} lost, {} twice, {} in another order or under another id; {} gaps told",
            crate::unit::grouped(self.deliveries),
            self.lost,
            self.twice,
            self.differing,
            self.gaps
        )
    }
}

/// All events of a topic behind a first one, in their order.
#[derive(Debug)]
pub struct Journal {
    epoch: String,
    /// The sequence of the event that all subscribers begin behind.
    begin: u64,
    entries: Vec<Entry>,
    /// The sequence of each number.
    numbers: HashMap<u64, u64>,
}

impl Journal {
    /// Of the events behind the one with this id; none if it is no id of fanwave's form.
    pub fn behind(id: &str) -> Option<Journal> {
        let (epoch, begin) = parts(id)?;
        let epoch = epoch.to_owned();
        Some(Journal { epoch, begin, entries: Vec::new(), numbers: HashMap::new() })
    }

    /// Events so far.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The sequence of the last event, or of the one before the first.
    pub fn last(&self) -> u64 {
        self.entries.last().map_or(self.begin, |entry| entry.sequence)
    }

    /// The sequence under which subscribers have this number.
    pub fn sequence_of(&self, number: u64) -> Option<u64> {
        self.numbers.get(&number).copied()
    }

    /// Takes what a subscriber got that had `place` events before; `place` moves behind it. Gives
    /// how many subscribers have the event now, if this is one more.
    pub fn take(
        &mut self,
        place: &mut usize,
        delivery: Delivery<'_>,
        findings: &mut Findings,
    ) -> Option<usize> {
        let Delivery { epoch, sequence, number } = delivery;
        findings.deliveries += 1;
        if epoch != self.epoch {
            findings.differing += 1;
            return None;
        }
        if sequence > self.last() {
            findings.lost += (self.entries.len() - *place) as u64;
            if self.numbers.insert(number, sequence).is_some() {
                findings.twice += 1;
            }
            self.entries.push(Entry { sequence, number, heard: 1 });
            *place = self.entries.len();
            return Some(1);
        }
        let at = match self.entries.get(*place) {
            Some(entry) if entry.sequence == sequence => *place,
            _ => self.entries.partition_point(|entry| entry.sequence < sequence),
        };
        if at < *place {
            findings.twice += 1;
            return None;
        }
        let entry = &mut self.entries[at];
        if entry.sequence != sequence || entry.number != number {
            // Others have heard later events and not this one, or another one in its place.
            findings.differing += 1;
            return None;
        }
        findings.lost += (at - *place) as u64;
        *place = at + 1;
        entry.heard += 1;
        Some(entry.heard)
    }
}

/// Epoch and sequence of an id.
pub fn parts(id: &str) -> Option<(&str, u64)> {
    let (epoch, sequence) = id.rsplit_once('-')?;
    Some((epoch, sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What subscribers, each with its deliveries as sequence and number, are found to have.
    fn found(subscribers: &[&[(u64, u64)]]) -> (Findings, Journal) {
        let (mut journal, mut findings) = (Journal::behind("e-10").expect("an id"), Findings::default());
        for deliveries in subscribers {
            let mut place = 0;
            for &(sequence, number) in *deliveries {
                journal.take(&mut place, Delivery { epoch: "e", sequence, number }, &mut findings);
            }
        }
        (findings, journal)
    }

    #[test]
    fn the_same_events_in_the_same_order_are_clean_and_sequences_may_have_holes() {
        let events = [(11, 1), (15, 3), (16, 2)];
        let (findings, journal) = found(&[&events, &events, &events[..2]]);
        assert!(findings.are_clean() && findings.deliveries == 8, "{findings:?}");
        assert_eq!((journal.len(), journal.last(), journal.sequence_of(3)), (3, 16, Some(15)));
        assert_eq!(journal.entries.iter().map(|entry| entry.heard).collect::<Vec<_>>(), [3, 3, 2]);
    }

    #[test]
    fn what_is_lost_twice_swapped_or_under_another_id_is_each_counted_as_that() {
        let whole = [(11, 1), (12, 2), (13, 3)];
        let check = |second: &[(u64, u64)], lost, twice, differing| {
            let (findings, _) = found(&[&whole, second]);
            let expected = (lost, twice, differing);
            assert_eq!((findings.lost, findings.twice, findings.differing), expected, "{second:?}");
        };
        check(&[(11, 1), (13, 3)], 1, 0, 0);
        check(&[(13, 3), (14, 4)], 2, 0, 0);
        check(&[(11, 1), (14, 4)], 2, 0, 0);
        check(&[(11, 1), (11, 1), (12, 2)], 0, 1, 0);
        check(&[(12, 2), (11, 1), (13, 3)], 1, 1, 0);
        check(&[(11, 2)], 0, 0, 1);
        check(&[(11, 1), (12, 2), (13, 3), (14, 1)], 0, 1, 0);
    }

    #[test]
    fn an_event_that_only_the_second_subscriber_has_and_another_epoch_are_differences() {
        let (findings, _) = found(&[&[(11, 1), (13, 3)], &[(11, 1), (12, 2), (13, 3)]]);
        assert_eq!((findings.lost, findings.differing), (0, 1));
        let mut journal = Journal::behind("e-10").expect("an id");
        let (mut findings, mut place) = (Findings::default(), 0);
        journal.take(&mut place, Delivery { epoch: "f", sequence: 11, number: 1 }, &mut findings);
        assert_eq!((findings.differing, place, journal.len()), (1, 0, 0));
        assert!(Journal::behind("mine").is_none());
    }
}

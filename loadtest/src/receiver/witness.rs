//! What one receiver knows of the events published, from those that reached any of its subscribers.
//!
//! A subscriber that joins a stream under way cannot tell by itself what it was owed, and one that
//! breaks off cannot tell what it still lacked. Others can: events go round the strands by one
//! count, so that an event of any strand says how far all of them are, and the time in its stamp
//! says that it was published later than a handshake ended.
//!
//! What may be on its way is not owed. An event counts against a subscriber that joined (or was
//! told of a gap) if it is stamped [`JOIN_NS`] later. It counts against one that breaks off once
//! somebody has had it for [`GRACE_NS`]: what goes missing last of all in that time, with nothing
//! behind it that would show it, is not seen. Churn avoids that: who lacks what another has does
//! not leave before it is here or counts. Event streams that resume are audited over the break and
//! need none of this; so it is WebSockets that storm, or that the server closes, whose last two
//! seconds are in doubt. Where nobody at all gets anything, the number last published speaks, less
//! twice what the rate so far can have brought meanwhile. No I/O, no clock.

use std::collections::VecDeque;

use super::tally::events_of;
use crate::stamp::Stamp;

/// What a server may need to bring an event to one that another has already: far longer than it
/// takes in good order, and short beside a measurement.
pub const GRACE_NS: u64 = 2_000_000_000;
/// What a server may need after its answer until the subscription holds. Most need nothing; who is
/// not subscribed after that misses events although its subscriber was told that it is there.
pub const JOIN_NS: u64 = 250_000_000;
/// Between two looks that are remembered.
const LOOK_NS: u64 = 100_000_000;

/// Subscribers that wait at once; beyond it, after as many joins without any event, the oldest are
/// no longer followed.
const WAITING_MAX: usize = 1 << 20;

/// An event that somebody has.
#[derive(Debug, Clone, Copy)]
struct Seen {
    /// Its number over all topics, from 1.
    number: u64,
    stamp_ns: u64,
    seen_ns: u64,
}

/// A subscriber that is owed events from one on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owed {
    /// The subscriber.
    pub member: u32,
    /// Since when it had waited.
    pub since_ns: u64,
    /// The first event, numbered over all topics.
    pub number: u64,
}

/// The events seen since zero, and who waits for one.
#[derive(Debug)]
pub struct Witness {
    strands: usize,
    first: Option<Seen>,
    newest: Option<Seen>,
    /// The newest event at times in the past, [`LOOK_NS`] apart, oldest first; all but the first
    /// younger than [`GRACE_NS`].
    looks: VecDeque<Seen>,
    /// Since when who waits, oldest first.
    waiting: VecDeque<(u64, u32)>,
    owed: Vec<Owed>,
}

impl Witness {
    /// Nothing seen yet, of so many strands.
    pub fn new(strands: usize) -> Witness {
        Witness {
            strands,
            first: None,
            newest: None,
            looks: VecDeque::new(),
            waiting: VecDeque::new(),
            owed: Vec::new(),
        }
    }

    /// A subscriber waits for its first event since this time, which is not before that of those
    /// who wait already.
    pub fn wait(&mut self, since_ns: u64, member: u32) {
        if self.waiting.len() == WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back((since_ns, member));
    }

    /// Somebody has an event.
    #[inline]
    pub fn saw(&mut self, stamp: Stamp, now_ns: u64) {
        let number = stamp.sequence;
        if self.newest.is_none_or(|newest| number > newest.number) {
            self.advance(Seen { number, stamp_ns: stamp.time_ns, seen_ns: now_ns });
        }
    }

    fn advance(&mut self, seen: Seen) {
        self.first.get_or_insert(seen);
        self.newest = Some(seen);
        if self.looks.back().is_none_or(|look| look.seen_ns.saturating_add(LOOK_NS) <= seen.seen_ns) {
            self.looks.push_back(seen);
        }
        while self.looks.get(1).is_some_and(|look| look.seen_ns.saturating_add(GRACE_NS) <= seen.seen_ns) {
            self.looks.pop_front();
        }
        while let Some(&(since_ns, member)) = self.waiting.front()
            && since_ns.saturating_add(JOIN_NS) < seen.stamp_ns
        {
            self.waiting.pop_front();
            self.owed.push(Owed { member, since_ns, number: seen.number });
        }
    }

    /// Who is owed something, once each.
    pub fn owed(&mut self) -> Option<Owed> {
        self.owed.pop()
    }

    /// Sequence of the strand's last event that everybody must have by now; 0 if there is none.
    pub fn settled(&self, strand: usize, now_ns: u64) -> u64 {
        let old = |seen: &&Seen| seen.seen_ns.saturating_add(GRACE_NS) <= now_ns;
        let seen = self.newest.iter().chain(self.looks.iter().rev()).find(old);
        events_of(seen.map_or(0, |seen| seen.number), strand, self.strands)
    }

    /// Sequence of the strand's last event that was published before one that somebody has; 0 if
    /// there is none.
    pub fn known(&self, strand: usize) -> u64 {
        events_of(self.newest.map_or(0, |seen| seen.number), strand, self.strands)
    }

    /// Sequence of the first event of `strand` from event `number` on.
    pub fn from(&self, number: u64, strand: usize) -> u64 {
        events_of(number.saturating_sub(1), strand, self.strands).saturating_add(1)
    }

    /// The first event that, if it was published at all, must have been after this time, while
    /// nobody has seen any such; `None` if too little was seen to tell.
    pub fn after_silence(&self, since_ns: u64) -> Option<u64> {
        let (first, newest) = (self.first?, self.newest?);
        let seen_ns = newest.stamp_ns.checked_sub(first.stamp_ns).filter(|&span| span >= GRACE_NS)?;
        let silent_ns = since_ns.saturating_add(GRACE_NS).checked_sub(newest.stamp_ns)?;
        let per_ns = (newest.number - first.number) as f64 / seen_ns as f64;
        let meanwhile = (2.0 * per_ns * silent_ns as f64).ceil() as u64;
        Some(newest.number.saturating_add(meanwhile).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn saw(witness: &mut Witness, strand: u64, sequence: u64, stamp_ns: u64, now_ns: u64) {
        let number = (sequence - 1) * witness.strands as u64 + strand + 1;
        witness.saw(Stamp { sequence: number, time_ns: stamp_ns }, now_ns);
    }

    #[test]
    fn who_joined_is_owed_from_the_first_event_that_is_clearly_younger() {
        let mut witness = Witness::new(3);
        witness.wait(10 * S, 7);
        witness.wait(20 * S, 8);
        saw(&mut witness, 1, 4, 10 * S + JOIN_NS, 12 * S);
        assert_eq!(witness.owed(), None, "it may have been published before the subscription held");
        saw(&mut witness, 1, 5, 10 * S + JOIN_NS + 1, 12 * S);
        assert_eq!(witness.owed(), Some(Owed { member: 7, since_ns: 10 * S, number: 14 }));
        assert_eq!(witness.owed(), None);
        // Event 14 is the fifth of topic 1; those after it are of topics 2 and 0.
        assert_eq!([0, 1, 2].map(|topic| witness.from(14, topic)), [6, 5, 5]);
    }

    #[test]
    fn what_somebody_has_had_for_long_everybody_must_have() {
        let mut witness = Witness::new(2);
        assert_eq!(witness.settled(0, 100 * S), 0);
        for sequence in 1..=100 {
            saw(&mut witness, 1, sequence, 1, sequence * LOOK_NS);
        }
        assert_eq!(witness.looks.len() as u64, GRACE_NS / LOOK_NS + 1);
        let now = 100 * LOOK_NS;
        assert_eq!((witness.settled(1, now), witness.known(1), witness.known(0)), (80, 100, 100));
        assert_eq!(witness.settled(0, now), 80);
        assert_eq!(witness.settled(1, now + GRACE_NS), 100);
        saw(&mut witness, 0, 200, 1, now + LOOK_NS / 2);
        assert_eq!(witness.settled(0, now + LOOK_NS / 2 + GRACE_NS), 200, "the newest needs no look");
    }

    #[test]
    fn in_silence_only_what_twice_the_rate_cannot_explain_came_later() {
        let mut witness = Witness::new(1);
        assert_eq!(witness.after_silence(S), None);
        saw(&mut witness, 0, 1, S, S);
        saw(&mut witness, 0, 31, 4 * S, 4 * S);
        // Ten per second; joined 0.5 s later, and the grace.
        assert_eq!(witness.after_silence(4 * S + S / 2), Some(31 + 50 + 1));
        assert_eq!(witness.after_silence(S), None, "somebody has seen later ones");
    }
}

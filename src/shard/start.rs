//! Where each topic of a subscriber begins: now, after an event that it names, so many milliseconds
//! or events ago.
//!
//! All of them are starts in the promised history, which is the same on all shards: what a window
//! keeps beyond it serves those who were here before. A topic without an older event begins now.
//!
//! A gap is told where less is here than was promised: after an event that a client names, all that
//! came later is; `since` and `last` ask for what the history of a topic holds, and the bounds of
//! that history are no loss. Events that left it earlier, for want of memory, are. What never came
//! here is told to those who name an event from before it (`holes`).
//!
//! A subscriber that names no start gets retained values first (`greeting`). So does one whose id
//! the history of its only topic does not reach: those that are newer than the id.
//!
//! Where the source keeps more than the windows, what is older comes from there (`backfill`), and
//! the bounds of a history are neither a loss nor an end.

use super::backfill::PastPart;
use super::connections::{FAR, Memberships, TopicIndex};
use super::greeting::Part;
use super::state::State;
use crate::egress::Slot;
use crate::event::EventId;
use crate::wire::gap::{Gap, GapReason};
use crate::wire::http::LastEventId;
use crate::wire::{SlowPolicy, Start};

/// Where a stream begins.
pub(super) struct Beginning {
    /// The least sequence after which one of its topics begins for the windows.
    pub(super) cursor: u64,
    /// The same for its client.
    pub(super) at: u64,
    /// What comes from before the windows, of all of its topics; else none.
    pub(super) past: Vec<PastPart>,
    /// What is missing of what the client asked for.
    pub(super) gap: Option<Gap>,
    /// The client named no event, or one of a process that is gone: it is given an id to come back
    /// with, should it leave before the first event. A client that named another one goes on naming
    /// it until then.
    pub(super) is_new: bool,
    /// The retained values that come first.
    pub(super) greeting: Vec<Part>,
}

/// Where one topic begins.
pub(super) struct Begin {
    /// Its events come that are after this one.
    pub(super) after: u64,
    /// Less is here than was promised.
    pub(super) is_short: bool,
    /// Its retained values come first, those after this sequence.
    pub(super) greets_after: Option<u64>,
}

impl State {
    /// Sets where the topics of a subscriber begin.
    pub(super) fn start(
        &mut self,
        slot: Slot,
        memberships: &mut Memberships,
        start: &Start,
        slow: SlowPolicy,
    ) -> Beginning {
        let named = start.after().and_then(|id| self.named_by(memberships, id));
        let mut pasts: Vec<Option<u64>> = Vec::new();
        if self.may_backfill(slow) {
            let members = memberships.as_slice().iter();
            pasts.extend(members.map(|member| self.begins_in_past(slot, member.topic, start, named)));
        }
        let is_past = pasts.iter().any(Option::is_some) && self.admits_backfill();
        let (mut starts, mut short, mut greeting) = (Vec::new(), Vec::new(), Vec::new());
        let is_alone = memberships.as_slice().len() == 1;
        for (at, member) in memberships.as_slice().iter().enumerate() {
            let mut begin = self.begins(member.topic, start, named);
            if let Some(after) = pasts.get(at).copied().flatten().filter(|_| is_past) {
                begin = self.begins_from_past(member.topic, after, start);
            }
            let Begin { after, is_short, greets_after } = begin;
            starts.push(after);
            if is_short {
                short.push(member.topic);
            }
            // Behind a gap the ids of one topic's values would hide what others still have.
            let greets_after = greets_after.filter(|_| is_alone || !is_short);
            greeting.extend(self.greeting_of(member.topic, greets_after, after));
        }
        let topics = self.names(short.into_iter());
        let after = start.after().map(LastEventId::as_str);
        let is_unknown = after.is_some() && named.is_none();
        let is_new = after.is_none_or(|id| is_unknown && id.parse::<EventId>().is_ok());
        let reason = if is_unknown { GapReason::Unknown } else { GapReason::Expired };
        let gap = (!topics.is_empty()).then(|| Gap { after: after.map(str::to_string), reason, topics });
        if !is_past {
            let cursor = memberships.start_after(starts);
            return Beginning { cursor, at: cursor, past: Vec::new(), gap, is_new, greeting };
        }
        let at = starts.iter().copied().min().unwrap_or(0);
        let parts = memberships.as_slice().iter().zip(starts);
        let past = parts
            .map(|(member, after)| PastPart::new(member.topic, after, self.told_by(start, after)))
            .collect();
        Beginning { cursor: FAR, at, past, gap, is_new, greeting }
    }

    /// How a topic begins whose events come from before its window. A hole may have had more.
    pub(super) fn begins_from_past(&self, topic: TopicIndex, after: u64, start: &Start) -> Begin {
        let is_short = start.after().is_some() && after < self.hole_of(topic);
        Begin { after, is_short, greets_after: None }
    }

    /// Where `topic` begins. `named` is what the client's id stands for ([`State::named_by`]).
    pub(super) fn begins(&self, topic: TopicIndex, start: &Start, named: Option<u64>) -> Begin {
        let (after, is_short) = match start {
            Start::Now => {
                return Begin { after: self.sequence, is_short: false, greets_after: Some(0) };
            }
            // From its start on the topic is whole.
            Start::After(_) => {
                let state = self.topics.get(topic);
                if let Some(named) = named.filter(|named| state.window.evicted() <= *named) {
                    // All that is here comes, but a hole may have had more.
                    let is_short = named < self.hole_of(topic);
                    return Begin { after: named, is_short, greets_after: None };
                }
                // A pattern's history is not in one piece: what is left of it after the event.
                let named = named.unwrap_or(0);
                let after = named.max(self.topics.before_history(topic));
                let greets_after = (!state.is_pattern()).then_some(named);
                return Begin { after, is_short: true, greets_after };
            }
            Start::Since(ms) => self.topics.since(topic, *ms, self.now),
            Start::Last(events) => self.topics.last(topic, *events, self.now),
        };
        // A topic without an older event need not hold the cursor back.
        let has_older = after < self.topics.newest(topic);
        let after = if has_older { after } else { self.sequence };
        Begin { after, is_short, greets_after: None }
    }

    /// The sequence that a client means by its last event id, if that is any of ours in one of its
    /// readings.
    pub(super) fn named_by(&self, memberships: &Memberships, id: &LastEventId) -> Option<u64> {
        id.readings().find_map(|id| self.sequence_of(memberships, id))
    }

    /// The sequence that a last event id stands for, if it is one of ours or of an event in these
    /// windows. Ours are taken at their word: nobody remembers who got which event.
    fn sequence_of(&self, memberships: &Memberships, id: &str) -> Option<u64> {
        if let Ok(ours) = id.parse::<EventId>()
            && self.eras.knows(ours.epoch)
        {
            // Another shard may be ahead of us. But if another epoch has begun since, it is not
            // known here how far this one came.
            let newest = self.setup.demand.newest_of(self.eras.present()).unwrap_or(self.sequence);
            return self.eras.position_of(ours, newest);
        }
        let topics = memberships.as_slice().iter().map(|member| member.topic);
        // Of several events with this id the oldest, so that nothing after the one that was meant
        // is lost.
        topics.filter_map(|topic| self.topics.oldest_with_id(topic, id)).min()
    }
}

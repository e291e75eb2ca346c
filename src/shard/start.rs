//! Where each topic of a subscriber begins: now, after an event that it names, so many milliseconds
//! or events ago.
//!
//! All of them are starts in the promised history, which is the same on all shards: what a window
//! keeps beyond it serves those who were here before. A topic without an older event begins now.
//!
//! A gap is told where less is here than was promised: after an event that a client names, all that
//! came later is; `since` and `last` ask for what the history of a topic holds, and the bounds of
//! that history are no loss. Events that left it earlier, for want of memory, are.

use super::connections::{Memberships, TopicIndex};
use super::state::State;
use crate::event::EventId;
use crate::wire::Start;
use crate::wire::gap::{Gap, GapReason};
use crate::wire::http::LastEventId;

/// Where a stream begins.
pub(super) struct Beginning {
    /// The least sequence after which one of its topics begins.
    pub(super) cursor: u64,
    /// What is missing of what the client asked for.
    pub(super) gap: Option<Gap>,
    /// The client named no event, or one of a process that is gone: it is given an id to come back
    /// with, should it leave before the first event. A client that named another one goes on naming
    /// it until then.
    pub(super) is_new: bool,
}

impl State {
    /// Sets where the topics of a subscriber begin.
    pub(super) fn start(&self, memberships: &mut Memberships, start: &Start) -> Beginning {
        let named = start.after().and_then(|id| self.named_by(memberships, id));
        let (mut starts, mut short) = (Vec::new(), Vec::new());
        for member in memberships.as_slice() {
            let (after, is_short) = self.begins(member.topic, start, named);
            starts.push(after);
            if is_short {
                short.push(member.topic);
            }
        }
        let topics = self.names(short.into_iter());
        let after = start.after().map(LastEventId::as_str);
        let is_unknown = after.is_some() && named.is_none();
        let is_new = after.is_none_or(|id| is_unknown && id.parse::<EventId>().is_ok());
        let reason = if is_unknown { GapReason::Unknown } else { GapReason::Expired };
        let gap = (!topics.is_empty()).then(|| Gap { after: after.map(str::to_string), reason, topics });
        Beginning { cursor: memberships.start_after(starts), gap, is_new }
    }

    /// The sequence after which `topic` begins, and whether less is here than was promised. `named`
    /// is what the client's id stands for ([`State::named_by`]).
    pub(super) fn begins(&self, topic: TopicIndex, start: &Start, named: Option<u64>) -> (u64, bool) {
        let (after, is_short) = match start {
            Start::Now => (self.sequence, false),
            // From its start on the topic is whole.
            Start::After(_) => match (named, &self.topics.get(topic).window) {
                (Some(named), window) if window.evicted() <= named => return (named, false),
                // A pattern's history is not in one piece: what is left of it after the event.
                (named, _) => return (named.unwrap_or(0).max(self.topics.before_history(topic)), true),
            },
            Start::Since(ms) => self.topics.since(topic, *ms, self.now),
            Start::Last(events) => self.topics.last(topic, *events, self.now),
        };
        // A topic without an older event need not hold the cursor back.
        let has_older = after < self.topics.newest(topic);
        (if has_older { after } else { self.sequence }, is_short)
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
            && ours.epoch == self.setup.epoch
        {
            // Another shard may be ahead of us.
            return (ours.sequence <= self.setup.demand.newest()).then_some(ours.sequence);
        }
        let topics = memberships.as_slice().iter().map(|member| member.topic);
        // Of several events with this id the oldest, so that nothing after the one that was meant
        // is lost.
        topics.filter_map(|topic| self.topics.oldest_with_id(topic, id)).min()
    }
}

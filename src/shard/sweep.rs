//! The sweep: one bounded step past those who are behind, and what each of them is owed.
//!
//! First those marked ready (answers, receives, ends, and subscribers whose last send blocked), then the elevators of the active
//! topics, a quantum each. A visit hands the kernel everything from the cursor up to the head as it is now.

use std::rc::Rc;

use super::close::CloseReason;
use super::connections::Phase;
use super::state::State;
use crate::config::OverrunPolicy;
use crate::config::limits::{SWEEP_VISITS_MAX, TOPIC_VISITS_MAX};
use crate::egress::{Batch, EgressRing, SendMode, Slot};
use crate::event::EventId;
use crate::wire::gap::{Gap, GapReason};

/// The most requests that attending to one connection submits.
const REQUESTS_PER_CONNECTION: usize = 4;

impl State {
    /// One step of the sweep. Returns true if something was asked of the ring.
    pub(super) fn sweep(&mut self, ring: &mut impl EgressRing) -> bool {
        let room = ring.room();
        let mut ready = self.ready.len().min(SWEEP_VISITS_MAX / 2);
        while ready > 0 && ring.room() >= REQUESTS_PER_CONNECTION {
            let Some(slot) = self.ready.pop_front() else { break };
            self.attend(slot, ring);
            ready -= 1;
        }
        let mut budget = SWEEP_VISITS_MAX;
        while budget > 0 {
            let Some(topic) = self.topics.next_active() else { break };
            let mut quantum = TOPIC_VISITS_MAX.min(budget);
            while quantum > 0 && self.topics.next_active() == Some(topic) {
                if ring.room() < REQUESTS_PER_CONNECTION {
                    return true;
                }
                let slot = self.topics.visit(topic, &mut self.offered);
                self.visit(slot, ring);
                quantum -= 1;
                budget -= 1;
            }
            if quantum == 0 {
                self.topics.rotate();
            }
        }
        ring.room() != room
    }

    /// The elevator passes a subscriber. Whoever got a send in this turn already has all there is, or is marked ready.
    #[inline]
    fn visit(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        if connection.sending {
            // What it lacks goes out in one send when this one completes.
            connection.missed = true;
            self.metrics.formats[connection.format.index()].deferred += 1;
        } else if connection.control.is_some() || connection.partial.is_some() {
            // Its turn comes from the ready queue: first what it is owed, then the news.
            debug_assert!(connection.queued, "whoever is owed something is marked");
        } else if connection.turn != self.turn {
            self.send_news(slot, ring);
        }
    }

    /// Sends the events after the cursor, if there are any.
    fn send_news(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        let members = connection.memberships.as_slice();
        let cursor = connection.cursor;
        if members.iter().any(|member| self.topics.get(member.topic).window.evicted() > cursor) {
            self.overrun(slot);
            return;
        }
        let run = self.batches.run_after(&self.topics, members, connection.format, cursor);
        let Some(run) = run else { return };
        self.submit_send(slot, run.batch, SendMode::Instant, run.more, ring);
    }

    /// Events after the cursor are gone.
    fn overrun(&mut self, slot: Slot) {
        let connection = self.connections.get(slot);
        self.metrics.formats[connection.format.index()].overruns += 1;
        let cursor = connection.cursor;
        match self.setup.config.overrun {
            OverrunPolicy::Close => {
                self.hang_up(slot, CloseReason::Overrun, "too slow: events were lost, reconnect to resume");
            }
            OverrunPolicy::Skip => {
                let head = self.sequence;
                let topics = self.lost_topics(&connection.memberships, cursor, head);
                let after = EventId { epoch: self.setup.epoch, sequence: cursor };
                let gap = Gap { after: Some(after.to_string()), reason: GapReason::Overrun, topics };
                let connection = self.connections.get_mut(slot);
                connection.cursor = head;
                self.tell_gap(slot, &gap);
            }
        }
    }

    /// Does what one connection is owed now. Asks at most `REQUESTS_PER_CONNECTION` things of the ring.
    fn attend(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        connection.queued = false;
        assert!(connection.turn != self.turn, "nothing is done beside the send of this turn");
        let listens =
            matches!(connection.phase, Phase::Handshake | Phase::Open | Phase::Finishing | Phase::Lingering);
        if listens && !connection.receiving && !connection.ended {
            connection.receiving = true;
            ring.receive(slot);
        }
        match connection.phase {
            Phase::Vacant | Phase::Handshake | Phase::Lingering | Phase::Closing => {}
            Phase::Open => self.attend_open(slot, ring),
            Phase::Finishing => self.attend_finishing(slot, ring),
            Phase::Aborting => self.attend_aborting(slot, ring),
        }
    }

    /// The rest of a send, then answers, then events.
    fn attend_open(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        if connection.sending {
            connection.missed = true;
            return;
        }
        if self.send_owed(slot, ring) {
            return;
        }
        self.send_news(slot, ring);
        let connection = self.connections.get(slot);
        let has_everything = !connection.sending && connection.turn != self.turn;
        if self.drain_deadline.is_some() && connection.phase == Phase::Open && has_everything {
            self.hang_up(slot, CloseReason::Draining, "the server is draining");
        }
    }

    /// Sends the rest of a batch or a waiting answer; false if there is neither.
    fn send_owed(&mut self, slot: Slot, ring: &mut impl EgressRing) -> bool {
        let connection = self.connections.get_mut(slot);
        let (batch, mode) = match (connection.partial.take(), connection.control.take()) {
            (Some(batch), behind) => {
                connection.control = behind;
                (batch, SendMode::Waiting)
            }
            (None, Some(batch)) => (batch, SendMode::Instant),
            (None, None) => return false,
        };
        // Whoever was owed this may be owed more: an elevator may have passed meanwhile.
        self.submit_send(slot, batch, mode, true, ring);
        true
    }

    fn attend_finishing(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        if self.connections.get(slot).sending || self.send_owed(slot, ring) {
            return;
        }
        let tick = self.tick;
        let connection = self.connections.get_mut(slot);
        if connection.ended {
            // The peer waits for nothing more: everything was sent, and its end of stream is here.
            connection.phase = Phase::Aborting;
            self.attend_aborting(slot, ring);
        } else {
            connection.phase = Phase::Lingering;
            connection.since = tick;
            connection.ending = true;
            ring.end_stream(slot);
        }
    }

    fn attend_aborting(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        if connection.receiving || connection.sending {
            if !connection.cancelled {
                connection.cancelled = true;
                ring.cancel(slot);
            }
        } else if !connection.ending {
            connection.phase = Phase::Closing;
            ring.close(slot);
        }
    }

    /// Hands a batch to the ring, from where the kernel stopped taking it. `owes`: the connection needs attention again afterwards.
    #[inline]
    fn submit_send(
        &mut self,
        slot: Slot,
        batch: Rc<Batch>,
        mode: SendMode,
        owes: bool,
        ring: &mut impl EgressRing,
    ) {
        let connection = self.connections.get_mut(slot);
        let offset = connection.offset as usize;
        let zero_copy_bytes_min = self.setup.config.limits.zero_copy_bytes_min;
        let zero_copy =
            zero_copy_bytes_min > 0 && !connection.copies && batch.len() - offset >= zero_copy_bytes_min;
        let mode = if zero_copy { SendMode::ZeroCopy } else { mode };
        ring.send(slot, &batch, offset, mode);
        connection.since = self.tick;
        let format = connection.format;
        let counters = &mut self.metrics.formats[format.index()];
        if mode == SendMode::Instant {
            // Almost every socket takes all of it, and then the ring is silent. `handle_short` puts right what it is told.
            connection.turn = self.turn;
            connection.cursor = connection.cursor.max(batch.to());
            if connection.subscribed {
                counters.sends += 1;
                counters.bytes += batch.len() as u64;
            }
            self.note_taken(format, batch);
            if owes {
                self.mark_ready(slot);
            }
        } else {
            connection.sending = true;
            connection.missed = owes;
            counters.sends_in_flight += u64::from(connection.subscribed);
        }
    }
}

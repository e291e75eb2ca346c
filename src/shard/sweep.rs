//! The sweep: one bounded step past those who are behind, and what each of them is owed.
//!
//! First those marked ready (answers, receives, ends, and subscribers whose last send blocked), then the elevators of the active
//! topics, a quantum each. A visit hands the kernel everything from the cursor up to the head as it is now.

use std::rc::Rc;

use super::close::CloseReason;
use super::connections::{Connection, Phase};
use super::state::State;
use crate::config::limits::SWEEP_VISITS_MAX;
use crate::config::{Limits, OverrunPolicy};
use crate::egress::{Batch, EgressRing, Slot};
use crate::event::EventId;
use crate::metrics::ShardMetrics;
use crate::wire::gap::{Gap, GapReason};

/// Visits that one topic gets before the next has its turn.
const QUANTUM: usize = 128;
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
            let mut quantum = QUANTUM.min(budget);
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

    /// The elevator passes a subscriber.
    #[inline]
    fn visit(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        if connection.sending {
            // What it lacks goes out in one send when this one completes.
            connection.missed = true;
            self.metrics.formats[connection.format.index()].deferred += 1;
        } else if connection.control.is_some() || connection.partial.is_some() {
            connection.missed = true;
            self.mark_ready(slot);
        } else {
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
        connection.missed = run.more;
        submit_send(
            connection,
            slot,
            &run.batch,
            self.tick,
            &self.setup.config.limits,
            &mut self.metrics,
            ring,
        );
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
        if self.drain_deadline.is_some() && connection.phase == Phase::Open && !connection.sending {
            self.hang_up(slot, CloseReason::Draining, "the server is draining");
        }
    }

    /// Sends the rest of a batch or a waiting answer; false if there is neither.
    fn send_owed(&mut self, slot: Slot, ring: &mut impl EgressRing) -> bool {
        let connection = self.connections.get_mut(slot);
        let batch = match (connection.partial.take(), connection.control.take()) {
            (Some(batch), waiting) => {
                connection.control = waiting;
                batch
            }
            (None, Some(batch)) => batch,
            (None, None) => return false,
        };
        // The completion looks for news: an elevator may have passed while this waited.
        connection.missed = true;
        submit_send(connection, slot, &batch, self.tick, &self.setup.config.limits, &mut self.metrics, ring);
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
}

/// Hands a batch to the ring, from where the kernel stopped taking it. The caller has looked the connection up.
#[inline]
fn submit_send(
    connection: &mut Connection,
    slot: Slot,
    batch: &Rc<Batch>,
    tick: u32,
    limits: &Limits,
    metrics: &mut ShardMetrics,
    ring: &mut impl EgressRing,
) {
    let offset = connection.offset as usize;
    let zero_copy_bytes_min = limits.zero_copy_bytes_min;
    let zero_copy =
        zero_copy_bytes_min > 0 && !connection.copies && batch.len() - offset >= zero_copy_bytes_min;
    connection.sending = true;
    connection.since = tick;
    metrics.formats[connection.format.index()].sends_in_flight += u64::from(connection.subscribed);
    ring.send(slot, batch, offset, zero_copy);
}

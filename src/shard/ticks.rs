//! Time: heartbeats, limits of patience, and the drain. Everything is coarse: an entry is looked at once a second.

use super::connections::{CHUNK, Phase};
use super::state::State;
use crate::close::CloseReason;
use crate::config::limits::{CANCEL_RETRY_MS, LINGER_MS_MAX, STALL_MS_UNDER_PRESSURE, TICK_MS};
use crate::egress::Slot;
use crate::wire::Format;

/// The slab is walked once in this many ticks.
const TICKS_PER_WALK: usize = (1_000 / TICK_MS) as usize;

fn ticks(ms: u64) -> u32 {
    ms.div_ceil(TICK_MS).min(u64::from(u32::MAX)) as u32
}

impl State {
    /// `passed` ticks have gone by: walks that share of the slab and drops expired events.
    pub(super) fn handle_ticks(&mut self, passed: u32) {
        self.topics.expire(self.now);
        self.topics.look_at_excess();
        if let Some(errno) = self.accept_errno.take() {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(shard = self.setup.number, %error, "cannot accept connections");
        }
        // A whole tick without events: nobody asks for the same run again soon.
        if !self.topics.is_active() && self.sequence == self.sequence_at_tick {
            self.batches.forget();
        }
        self.sequence_at_tick = self.sequence;
        let capacity = self.connections.capacity();
        let shares = (passed as usize).min(TICKS_PER_WALK);
        for share in 0..shares {
            let part = (self.tick as usize - share) % TICKS_PER_WALK;
            // Whole chunks: the core sees neighbours coming and waits for none of them.
            for first in (part * CHUNK..capacity).step_by(TICKS_PER_WALK * CHUNK) {
                for slot in first..first + CHUNK {
                    self.check(slot as Slot);
                }
            }
        }
    }

    /// Looks whether the patience with one connection is at its end, or a sign of life is due.
    fn check(&mut self, slot: Slot) {
        let limits = &self.setup.config.limits;
        let pressed = self.ledger.bytes() > limits.pinned_bytes_max || self.setup.memory.is_pressed();
        let stall_ms = if pressed { STALL_MS_UNDER_PRESSURE } else { limits.stall_ms_max };
        let connection = self.connections.get_mut(slot);
        let quiet = self.tick - connection.since;
        match connection.phase {
            Phase::Vacant | Phase::Closing => {}
            Phase::Aborting => {
                // A cancellation finds nothing in the moment in which a request is between two waits: ask again.
                if quiet >= ticks(CANCEL_RETRY_MS) {
                    connection.cancelled = false;
                    connection.since = self.tick;
                    self.mark_ready(slot as Slot);
                }
            }
            Phase::Handshake => {
                if quiet >= ticks(limits.handshake_ms_max) {
                    let timeout = CloseReason::HandshakeTimeout;
                    self.end_handshake(slot, timeout, timeout, "the request head did not arrive in time");
                }
            }
            Phase::Open | Phase::Finishing if connection.sending => {
                if quiet >= ticks(stall_ms) {
                    self.abort(slot, CloseReason::Stalled);
                }
            }
            Phase::Open => {
                if quiet >= ticks(limits.heartbeat_ms) {
                    self.beat(slot);
                }
            }
            Phase::Finishing => {}
            Phase::Lingering => {
                if quiet >= ticks(LINGER_MS_MAX) {
                    let reason = connection.reason;
                    self.abort(slot, reason);
                }
            }
        }
    }

    /// A sign of life on an idle connection.
    fn beat(&mut self, slot: Slot) {
        let connection = self.connections.get_mut(slot);
        if connection.pinged {
            self.abort(slot, CloseReason::PingTimeout);
            return;
        }
        // Should the ring have no room for it yet, the next look must not take it for an unanswered one.
        connection.since = self.tick;
        let format = connection.format;
        // An answer that waits is a sign of life too, but asks for none.
        if connection.control.is_none() {
            connection.pinged = format == Format::WebSocket;
            connection.control = Some(self.answers.heartbeat[format.index()].clone());
        }
        self.mark_ready(slot);
    }

    /// One look at all connections of a draining shard that is not done. Subscribers who have everything are hung up on; at
    /// the deadline all are. Says so when no subscriber is left; whoever else is there was told to go elsewhere, or
    /// asked nothing yet.
    pub(super) fn drain(&mut self) {
        let Some(drain) = self.drain.as_ref().filter(|drain| !drain.is_done()) else { return };
        let overdue = self.now >= drain.deadline;
        let mut serving = false;
        for slot in 0..self.connections.capacity() as Slot {
            let connection = self.connections.get(slot);
            if !connection.subscribed {
                continue;
            }
            serving = true;
            match connection.phase {
                Phase::Open | Phase::Finishing | Phase::Lingering if overdue => {
                    self.abort(slot, CloseReason::Draining);
                }
                Phase::Open if !connection.sending => self.mark_ready(slot),
                _ => {}
            }
        }
        if let (false, Some(drain)) = (serving, &mut self.drain) {
            drain.say_done();
        }
    }
}

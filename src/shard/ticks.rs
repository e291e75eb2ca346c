//! Time: heartbeats, limits of patience, and the drain. Everything is coarse: an entry is looked at
//! once a second.
//!
//! Invariants worth naming:
//! - A turn looks at a bounded number of entries. What is due beyond that is looked at in the next
//!   turns, before the shard sleeps.
//! - A connection whose time has come is queued for attention only as far as the step of the same
//!   turn reaches. Where others wait, a few are queued behind them. So a mass of heartbeats delays
//!   nobody's first bytes.
//! - No heartbeat is due later than `heartbeat_ms`, and those of equal subscribers are not due
//!   together.

use super::connections::{CHUNK, Phase, Session, Standing};
use super::posts::Awaited;
use super::state::State;
use super::subscribe::HeldBack;
use crate::broadcast::{Drain, Pressure};
use crate::clock::Stamp;
use crate::close::CloseReason;
use crate::config::limits::{
    CANCEL_RETRY_MS, CUT_MS_MAX, DUE_PER_TURN, DUE_PER_TURN_MIN, ENTRIES_LOOKED_AT_MAX, H2_IDLE_MS_MAX,
    HANDSHAKE_MS_SHORT, HANG_UPS_PER_MS, LINGER_MS_MAX, POST_BODY_MS_MAX, POST_IDLE_MS_MAX,
    POST_SILENCE_MS_MIN, RETURN_MS_MIN, RETURN_MS_SPREAD, SOCKETS_FREE_SHARE, STALL_MS_UNDER_PRESSURE,
    TICK_MS,
};
use crate::egress::Slot;
use crate::refusal::{Refusal, RefusalReason};
use crate::wire::SlowPolicy;

/// The slab is walked once in this many ticks.
const TICKS_PER_WALK: usize = (1_000 / TICK_MS) as usize;

/// The walk over the slab that time asks for.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// The entry to be looked at next.
    next: usize,
    /// So many are due; at most all.
    left: usize,
}

/// One walk of the drain over the slab.
#[derive(Debug, Default)]
pub(super) struct DrainPass {
    /// The entry to be looked at next.
    next: usize,
    /// Some entry before it was a subscriber's.
    serving: bool,
}

/// How fast a draining shard hangs up on its subscribers: spread over most of the time that it has,
/// so that they do not all come to another server at once. A few are gone at once.
#[derive(Debug, Default)]
pub(super) struct HangUps {
    begun: Stamp,
    /// Nanoseconds from the first to the last; 0 for all at once.
    spread_ns: u64,
    /// Subscribers at the begin.
    all: u64,
    /// Those that were hung up on since.
    done: u64,
}

impl HangUps {
    /// For so many subscribers, from now to the deadline.
    fn new(all: u64, now: Stamp, deadline: Stamp) -> HangUps {
        // The last ones get their last words before the deadline.
        let longest_ms = deadline.ns_since(now) / 1_000_000 * 3 / 4;
        let spread_ms = (all / HANG_UPS_PER_MS).min(longest_ms);
        let spread_ms = if spread_ms < TICK_MS { 0 } else { spread_ms };
        HangUps { begun: now, spread_ns: spread_ms * 1_000_000, all, done: 0 }
    }

    /// True if it is time for one more.
    fn has_one(&self, now: Stamp) -> bool {
        let passed = u128::from(now.ns_since(self.begun));
        self.spread_ns == 0
            || u128::from(self.done) * u128::from(self.spread_ns) <= passed * u128::from(self.all)
    }

    /// Milliseconds over which those that were hung up on may come back.
    fn return_ms(&self) -> u32 {
        RETURN_MS_SPREAD.max(u32::try_from(self.spread_ns / 1_000_000).unwrap_or(u32::MAX))
    }
}

fn ticks(ms: u64) -> u32 {
    ms.div_ceil(TICK_MS).min(u64::from(u32::MAX)) as u32
}

impl State {
    /// `passed` ticks have gone by: that share of the slab is to be looked at. Drops expired
    /// events.
    pub(super) fn handle_ticks(&mut self, passed: u32) {
        self.topics.expire(self.now);
        self.topics.look_at_excess();
        self.topics.look_at_patterns();
        self.tell_holdings();
        if let Some(errno) = self.accept_errno.take() {
            let error = std::io::Error::from_raw_os_error(errno);
            if let Some(left_out) = self.accept_pace.admit(self.now) {
                tracing::warn!(shard = self.setup.number, %error, left_out, "cannot accept connections");
            }
        }
        // A whole tick without events: nobody asks for the same run again soon. And remembered runs
        // keep frames that others may need the memory of.
        let is_quiet = !self.topics.is_active() && self.sequence == self.sequence_at_tick;
        if is_quiet || self.setup.memory.is_pressed() {
            self.batches.forget();
        }
        self.sequence_at_tick = self.sequence;
        let capacity = self.connections.capacity();
        let chunks = capacity / CHUNK;
        for share in 0..(passed as usize).min(TICKS_PER_WALK) {
            let part = (self.tick as usize - share) % TICKS_PER_WALK;
            self.look.left += CHUNK * ((part + 1) * chunks / TICKS_PER_WALK - part * chunks / TICKS_PER_WALK);
        }
        self.look.left = self.look.left.min(capacity);
    }

    /// Looks at a bounded number of the entries that are due for it.
    pub(super) fn look_at_some(&mut self) {
        let ready_max = self.ready_max();
        let capacity = self.connections.capacity();
        let mut budget = ENTRIES_LOOKED_AT_MAX;
        while self.look.left > 0 && budget > 0 && self.ready.len() < ready_max {
            let place = self.look.next;
            self.look.next = if place + 1 == capacity { 0 } else { place + 1 };
            if place == 0 {
                self.slow.end_walk();
            }
            self.look.left -= 1;
            budget -= 1;
            self.check(self.connections.slot_at(place));
        }
    }

    /// True if entries are still to be looked at at once.
    pub(super) fn has_more_to_look_at(&self) -> bool {
        self.look.left > 0 || self.drain_pass.is_some()
    }

    /// How many may wait for attention once those are queued whose time has come.
    fn ready_max(&self) -> usize {
        DUE_PER_TURN.max(self.ready.len() + DUE_PER_TURN_MIN)
    }

    /// Looks whether the patience with one connection is at its end, or a sign of life is due.
    fn check(&mut self, slot: Slot) {
        if self.connections.get(slot).phase == Phase::Open && self.is_over(slot) {
            return;
        }
        let limits = &self.setup.config.limits;
        let is_short = self.setup.admission.is_short(self.connections.sockets(), SOCKETS_FREE_SHARE)
            || self.setup.memory.pressure() >= Pressure::Newcomers;
        let connection = self.connections.get_mut(slot);
        let since = connection.since;
        let quiet = self.tick - since;
        match connection.phase {
            Phase::Vacant | Phase::Closing => {}
            Phase::Aborting => {
                // A cancellation finds nothing in the moment in which a request is between two
                // waits: ask again.
                if quiet >= ticks(CANCEL_RETRY_MS) {
                    connection.cancelled = false;
                    connection.since = self.tick;
                    self.mark_ready(slot as Slot);
                }
            }
            Phase::Handshake => {
                let is_crowded = connection.standing == Standing::Crowded || is_short;
                let patience_ms = match is_crowded {
                    true => limits.handshake_ms_max.min(HANDSHAKE_MS_SHORT),
                    false => limits.handshake_ms_max,
                };
                // One that may be ahead of this node has a time of its own, unless room is short.
                let never = Stamp(u64::MAX);
                let may_wait = |held: &HeldBack| !is_crowded && held.slot == slot && held.deadline < never;
                if quiet >= ticks(patience_ms) && !self.held_back.iter().any(may_wait) {
                    // Without an answer: a status would end an EventSource for good.
                    self.abort(slot, CloseReason::HandshakeTimeout);
                }
            }
            Phase::Carrying => {
                if is_idle(quiet, self.is_short_of_sockets()) {
                    self.mark_ready(slot);
                }
            }
            Phase::Serving | Phase::Open | Phase::Finishing if connection.sending => {
                let stall_ms = limits.stall_ms_max;
                let is_cut =
                    connection.reason == CloseReason::Overrun && connection.phase == Phase::Finishing;
                let is_late = is_cut && quiet >= ticks(CUT_MS_MAX)
                    || quiet >= ticks(STALL_MS_UNDER_PRESSURE) && self.is_pressed_by(slot);
                if is_late || quiet >= ticks(stall_ms) {
                    self.abort(slot, CloseReason::Stalled);
                } else {
                    self.slow.meet(slot, since);
                }
            }
            Phase::Open => {
                if quiet >= beat_after(slot, limits.heartbeat_ms) {
                    self.beat(slot);
                }
            }
            Phase::Serving => self.check_serving(slot, quiet),
            Phase::Finishing => {}
            Phase::Lingering => {
                if quiet >= ticks(LINGER_MS_MAX) {
                    let reason = connection.reason;
                    self.abort(slot, reason);
                }
            }
        }
    }

    /// Looks whether a client that publishes has been quiet for too long. One whose publishes are
    /// on their way waits for us.
    fn check_serving(&mut self, slot: Slot, quiet: u32) {
        let Session::Posts(posts) = &self.connections.get(slot).session else { return };
        let idle_ms_max = if self.is_short_of_sockets() { POST_SILENCE_MS_MIN } else { POST_IDLE_MS_MAX };
        match posts.awaits() {
            Some(Awaited::Request) if quiet >= ticks(idle_ms_max) => self.finish(slot, CloseReason::Answered),
            Some(Awaited::Head) if quiet >= ticks(self.setup.config.limits.handshake_ms_max) => {
                self.abort(slot, CloseReason::HandshakeTimeout);
            }
            Some(Awaited::Body) if quiet >= ticks(POST_BODY_MS_MAX) => {
                let text = format!("the body did not arrive within {POST_BODY_MS_MAX} ms");
                self.end_posts(slot, &Refusal::new(RefusalReason::BodyTimeout, text));
            }
            _ => {}
        }
    }

    /// True while memory is short, and so is the patience with a slow send: memory of batches, of
    /// all events, or of a topic of which it holds events beyond the history. For a subscriber that
    /// skips none of these are kept.
    fn is_pressed_by(&self, slot: Slot) -> bool {
        let connection = self.connections.get(slot);
        let config = &self.setup.config;
        let holds = |(topic, from)| self.topics.get(topic).is_pressed_by(from);
        self.ledger.bytes() > config.limits.pinned_bytes_max
            || self.setup.memory.is_pressed()
            || connection.slow == Some(SlowPolicy::Close)
                && connection.memberships.iter_from(connection.cursor).any(holds)
    }

    /// A sign of life on an idle connection.
    fn beat(&mut self, slot: Slot) {
        // A client that is paused cannot show one.
        let is_paused = self.publishers.is_paused(slot);
        let connection = self.connections.get_mut(slot);
        if connection.pinged && !is_paused {
            self.abort(slot, CloseReason::PingTimeout);
            return;
        }
        // Should the ring have no room for it yet, the next look must not take it for an unanswered
        // one.
        connection.since = self.tick;
        let format = connection.format;
        // An answer that waits is a sign of life too, but asks for none.
        if connection.control.is_none() {
            connection.pinged = format.spec().heartbeat_is_answered;
            connection.control = Some(self.answers.heartbeat[format.index()].clone());
        }
        self.mark_ready(slot);
    }

    /// The hub wants the shard to come to its end.
    pub(super) fn begin_drain(&mut self, drain: Drain) {
        let all: usize = self.subscribers.iter().sum();
        self.hang_ups = HangUps::new(all as u64, self.now, drain.deadline);
        self.drain = Some(drain);
    }

    /// A subscriber has everything: while draining it is hung up on when its time has come. True if
    /// it was.
    pub(super) fn drained(&mut self, slot: Slot) -> bool {
        if self.drain.is_none() || !self.hang_ups.has_one(self.now) {
            return false;
        }
        self.hang_ups.done += 1;
        if let Some(come_back) = self.connections.get(slot).format.spec().come_back {
            let ms = RETURN_MS_MIN.saturating_add(self.jitter.below(self.hang_ups.return_ms()));
            self.answer(slot, come_back(ms));
        }
        self.hang_up(slot, CloseReason::Draining, "the server is draining");
        true
    }

    /// Goes on with the look at all connections of a draining shard that is not done; with a new
    /// one, if the last is over and `may_begin`. Subscribers who have everything are hung up on; at
    /// the deadline all are. A look that finds no subscriber says so: nobody becomes one any more.
    /// The other connections were told to go elsewhere, or asked nothing yet.
    pub(super) fn drain(&mut self, may_begin: bool) {
        let Some(drain) = self.drain.as_ref().filter(|drain| !drain.is_done()) else { return };
        let overdue = self.now >= drain.deadline;
        let Some(mut pass) = self.drain_pass.take().or_else(|| may_begin.then(DrainPass::default)) else {
            return;
        };
        let capacity = self.connections.capacity();
        let (end, ready_max) = (capacity.min(pass.next + ENTRIES_LOOKED_AT_MAX), self.ready_max());
        while pass.next < end && self.ready.len() < ready_max {
            let slot = self.connections.slot_at(pass.next);
            pass.next += 1;
            let connection = self.connections.get(slot);
            if matches!(connection.session, Session::Carrier) {
                pass.serving |= self.drain_carrier(slot, overdue);
                continue;
            }
            if !connection.subscribed() {
                // What was published is answered.
                pass.serving |= connection.phase == Phase::Serving
                    && (connection.is_owed() || self.publishers.unanswered(slot) > 0);
                continue;
            }
            pass.serving = true;
            match connection.phase {
                Phase::Open | Phase::Finishing | Phase::Lingering if overdue => {
                    self.abort(slot, CloseReason::Draining);
                }
                // Those that nobody waits for are looked at again at the next tick.
                Phase::Open if !connection.sending && self.hang_ups.has_one(self.now) => {
                    self.mark_ready(slot);
                }
                _ => {}
            }
        }
        if pass.next < capacity {
            self.drain_pass = Some(pass);
        } else if let (false, Some(drain)) = (pass.serving, &mut self.drain) {
            drain.say_done();
        }
    }
}

impl State {
    /// A carrier of a draining shard is told to ask nothing more, and ends when its streams have.
    /// True while it is there.
    fn drain_carrier(&mut self, slot: Slot, overdue: bool) -> bool {
        let connection = self.connections.get(slot);
        match connection.phase {
            Phase::Carrying | Phase::Finishing | Phase::Lingering if overdue => {
                self.abort(slot, CloseReason::Draining);
            }
            // It is looked at again at the next tick.
            Phase::Carrying if connection.since != self.tick => self.mark_ready(slot),
            Phase::Carrying | Phase::Finishing | Phase::Lingering => {}
            _ => return false,
        }
        true
    }
}

/// True for a client whose carrier has had no stream for so long.
pub(super) fn is_idle(quiet: u32, is_short: bool) -> bool {
    quiet >= ticks(if is_short { POST_SILENCE_MS_MIN } else { H2_IDLE_MS_MAX })
}

/// After how many ticks of quiet a connection shows a sign of life. Some slots do up to a quarter
/// earlier, always by the same time: all subscribers of a topic begin to be quiet together, and
/// would go on beating together.
fn beat_after(slot: Slot, heartbeat_ms: u64) -> u32 {
    let latest = ticks(heartbeat_ms);
    // Fibonacci hashing: neighbours are far apart.
    let spread = (u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
    latest - spread % (latest / 4).max(1)
}

#[cfg(test)]
mod tests;

//! The sweep: one bounded step past those who are behind, and what each of them is owed.
//!
//! First those marked ready (answers, receives, ends, and subscribers whose last send blocked),
//! then the elevators of the active topics, a quantum each. A visit hands the kernel what lies
//! between the cursor and the head, as far as one send carries it. A step is bounded in visits, and
//! in bytes: a visit that hands over much counts as several.

use std::rc::Rc;

use super::batch::{News, Run};
use super::connections::{FAR, LANES, Memberships, Phase, Session, TopicIndex, lane};
use super::publishers::Until;
use super::state::State;
use super::ticks::is_idle;
use crate::close::CloseReason;
use crate::config::limits::{SLOW_BYTES_PER_TICK, SWEEP_VISITS_MAX, TOPIC_VISITS_MAX, VISIT_BYTES};
use crate::egress::{Batch, EgressRing, SendMode, Slot};
use crate::wire::gap::{Gap, GapReason};
use crate::wire::{Format, SlowPolicy};

/// The most requests that attending to one connection submits.
const REQUESTS_PER_CONNECTION: usize = 4;

/// How many visits before its own a connection's entry is asked for: a dozen visits take as long as
/// memory to answer.
const VISITS_AHEAD: usize = 12;

/// By lane, the run that was sent last in this step: what the last one lacked, the next one
/// mostly lacks too.
type AtHand = [Option<Run>; LANES];

impl State {
    /// One step of the sweep. Returns true if something was asked of the ring.
    pub(super) fn sweep(&mut self, ring: &mut impl EgressRing) -> bool {
        let room = ring.room();
        let mut at_hand = AtHand::default();
        let mut budget = SWEEP_VISITS_MAX / 2;
        for _ in 0..self.ready.len() {
            if budget == 0 || ring.room() < REQUESTS_PER_CONNECTION {
                break;
            }
            let Some(slot) = self.ready.pop_front() else { break };
            let before = self.work.bytes;
            self.attend(slot, &mut at_hand, ring);
            self.work.visits += 1;
            budget = budget.saturating_sub(cost(self.work.bytes - before));
        }
        let mut budget = SWEEP_VISITS_MAX;
        while budget > 0 {
            let Some(topic) = self.topics.next_active() else { break };
            let mut quantum = TOPIC_VISITS_MAX.min(budget);
            while quantum > 0 && self.topics.next_active() == Some(topic) {
                if ring.room() < REQUESTS_PER_CONNECTION {
                    return true;
                }
                let before = self.work.bytes;
                let mut passed = self.pass(topic, quantum, &at_hand, ring);
                if passed == 0 {
                    self.visit_next(topic, &mut at_hand, ring);
                    passed = 1;
                }
                self.work.visits += passed;
                let spent = (passed + (self.work.bytes - before) / VISIT_BYTES).min(quantum);
                quantum -= spent;
                budget -= spent;
            }
            if quantum == 0 {
                self.topics.rotate();
            }
        }
        if self.topics.was_pressed() {
            // Remembered runs keep frames that nobody needs any more, and with them the memory of
            // their events.
            self.batches.forget();
        }
        ring.room() != room
    }

    /// The elevator passes those in a row who are owed nothing but a run at hand, as nearly
    /// everybody is: what `visit` does for each of them, with what they have in common done once.
    /// Returns how many.
    fn pass(
        &mut self,
        topic: TopicIndex,
        quantum: usize,
        at_hand: &AtHand,
        ring: &mut impl EgressRing,
    ) -> usize {
        let runs = at_hand
            .each_ref()
            .map(|run| run.as_ref().filter(|run| !run.more && !self.wants_zero_copy(run.batch.len())));
        let dearest = runs.iter().flatten().map(|run| cost(run.batch.len())).max().unwrap_or(1);
        let most = (quantum / dearest).max(1).min(ring.room());
        let mut sends = [0; LANES];
        let mut conflated = [0; Format::COUNT];
        let ahead = self.topics.next_visits(topic, most);
        for (at, slot) in ahead.iter().enumerate() {
            if let Some(later) = ahead.get(at + VISITS_AHEAD) {
                self.connections.prefetch(*later);
            }
            let connection = self.connections.get_mut(*slot);
            let lane = connection.lane();
            let Some(run) = runs[lane] else { break };
            let plain = !connection.is_owed() && connection.turn != self.turn;
            if !plain || !run.serves(connection.memberships.as_slice(), connection.cursor) {
                break;
            }
            debug_assert_eq!(connection.offset, 0, "a connection that is owed nothing is not in mid-batch");
            if lane >= Format::COUNT {
                let frames = run.batch.frames() as usize;
                let newer = self.topics.newer_than(topic, connection.cursor);
                conflated[lane - Format::COUNT] += newer.saturating_sub(frames) as u64;
            }
            ring.send(*slot, &run.batch, 0, SendMode::Instant);
            connection.handed(run.batch.to(), self.turn, self.tick);
            sends[lane] += 1;
        }
        let passed = sends.iter().sum::<u32>() as usize;
        if let Some(access) = &mut self.access {
            for slot in &ahead[..passed] {
                let run = runs[self.connections.get(*slot).lane()];
                let batch = &run.expect("it was sent one").batch;
                access.add(*slot, batch.frames(), batch.len());
            }
        }
        for (format, latest) in Format::ALL.into_iter().flat_map(|format| [(format, false), (format, true)]) {
            let at = lane(format, latest);
            let sends = sends[at];
            if let (1.., Some(run)) = (sends, runs[at]) {
                // Each connection in a topic's list is a subscriber, and counted as one.
                let counters = &mut self.metrics.families[format.family().index()];
                counters.sends += u64::from(sends);
                counters.bytes += u64::from(sends) * run.batch.len() as u64;
                self.work.bytes += sends as usize * run.batch.len();
                counters.conflated += if latest { conflated[format.index()] } else { 0 };
                match latest {
                    true => self.topics.meet_latest(topic, run.batch.to()),
                    false => drop(self.topics.meet(topic, run.batch.to(), run.batch.to(), false)),
                }
                self.note_taken(format, &run.batch, sends);
            }
        }
        if passed > 0 {
            self.topics.advance(topic, passed, &mut self.offered);
        }
        passed
    }

    /// The elevator passes one subscriber, whatever it is owed.
    fn visit_next(&mut self, topic: TopicIndex, at_hand: &mut AtHand, ring: &mut impl EgressRing) {
        let slot = self.topics.next_visits(topic, 1)[0];
        let connection = self.connections.get(slot);
        let mut cursor = connection.memberships.begins_after(topic, connection.cursor);
        if cursor == FAR {
            cursor = self.backfills.held(slot, topic);
        }
        let mut from = cursor;
        // A send of this turn has not had the time to wait.
        let waits = connection.sending && connection.turn != self.turn;
        if connection.wants_latest() {
            self.topics.meet_latest(topic, cursor);
            self.topics.advance(topic, 1, &mut self.offered);
            self.visit(slot, at_hand, ring);
            return;
        }
        if waits && connection.slow == Some(SlowPolicy::Skip) {
            // It would rather have what is new than all that it missed: nothing beyond the history
            // is kept for it.
            from = from.max(self.topics.get(topic).window.evicted());
        }
        let too_slow = self.topics.meet(topic, cursor, from, waits && self.is_slow(slot, topic, from));
        self.topics.advance(topic, 1, &mut self.offered);
        if too_slow {
            self.overrun(slot);
        } else {
            self.visit(slot, at_hand, ring);
        }
    }

    /// True if the send of a subscriber waits for longer than its socket needs at a modest rate.
    fn is_slow(&self, slot: Slot, topic: TopicIndex, from: u64) -> bool {
        // What is under way is about as large as what comes next.
        let next = self.topics.event_at(topic, self.topics.place_after(topic, from));
        let next = next.map_or(0, |event| event.memory());
        let bytes = next.max(self.setup.config.limits.send_bytes_max);
        let waited = self.tick - self.connections.get(slot).since;
        waited as usize > bytes / SLOW_BYTES_PER_TICK
    }

    /// A subscriber that got a send in this turn already has what one send carries, and is marked
    /// ready if there is more.
    fn visit(&mut self, slot: Slot, at_hand: &mut AtHand, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        if connection.sending {
            // What it lacks goes out in one send when this one completes.
            connection.missed = true;
            self.metrics.families[connection.format.family().index()].deferred += 1;
        } else if connection.control.is_some() || connection.partial.is_some() {
            // Its turn comes from the ready queue: first what it is owed, then the news.
            debug_assert!(connection.queued, "a connection that is owed something is marked");
        } else if connection.turn != self.turn {
            self.send_news(slot, at_hand, ring);
        }
    }

    /// Sends the events after the cursor, if there are any, and keeps their run at hand.
    fn send_news(&mut self, slot: Slot, at_hand: &mut AtHand, ring: &mut impl EgressRing) {
        let connection = self.connections.get(slot);
        let (memberships, format, cursor) = (&connection.memberships, connection.format, connection.cursor);
        let latest = connection.wants_latest();
        let at_hand = &mut at_hand[connection.lane()];
        if !at_hand.as_ref().is_some_and(|run| run.serves(memberships.as_slice(), cursor)) {
            match self.batches.news_after(&self.topics, memberships, (format, latest), cursor) {
                News::Run(run) => *at_hand = Some(run),
                News::None => {
                    self.reach_head(slot);
                    return;
                }
                News::Lost => {
                    self.overrun(slot);
                    return;
                }
            }
        }
        let Some(run) = at_hand else { return };
        let more = run.more;
        if latest {
            let (to, sent) = (run.batch.to(), run.batch.frames() as usize);
            let newer = |topic, from| self.topics.newer_than(topic, from);
            let passed = memberships
                .iter_from(cursor)
                .map(|(topic, from)| newer(topic, from) - if more { newer(topic, from.max(to)) } else { 0 });
            let passed = passed.sum::<usize>().saturating_sub(sent) as u64;
            self.metrics.families[format.family().index()].conflated += passed;
        }
        self.submit_send(slot, &run.batch, SendMode::Instant, more, ring);
        if !more {
            self.reach_head(slot);
        }
    }

    /// A subscriber of several topics has everything that is here: its cursor need not look back
    /// any more.
    fn reach_head(&mut self, slot: Slot) {
        let connection = self.connections.get_mut(slot);
        if matches!(connection.memberships, Memberships::Many(_)) {
            connection.cursor = connection.cursor.max(self.sequence);
            connection.memberships.reach(connection.cursor);
        }
    }

    /// A subscriber is too slow.
    fn overrun(&mut self, slot: Slot) {
        let connection = self.connections.get(slot);
        self.metrics.families[connection.format.family().index()].overruns += 1;
        match connection.slow.unwrap_or_default() {
            SlowPolicy::Close => {
                self.hang_up(slot, CloseReason::Overrun, "too slow: events were lost, reconnect to resume");
            }
            SlowPolicy::Skip | SlowPolicy::Latest => self.skip_what_is_lost(slot),
        }
    }

    /// Goes on with the next event of each topic that lost some, tells so, and leaves out nothing
    /// of the others.
    fn skip_what_is_lost(&mut self, slot: Slot) {
        let connection = self.connections.get_mut(slot);
        let after = self.eras.id(connection.cursor);
        let mut lost = Vec::new();
        let latest = connection.wants_latest();
        let starts = connection.memberships.iter_from(connection.cursor).map(|(topic, from)| {
            let (gone, next) = match latest {
                true => (self.topics.values(topic).since(), self.topics.values(topic).since()),
                false => (self.topics.get(topic).window.gone(), self.sequence),
            };
            if gone <= from {
                return from;
            }
            lost.push(topic);
            next
        });
        let starts = starts.collect();
        connection.cursor = connection.memberships.start_after(starts);
        let topics = self.names(lost.into_iter());
        self.tell_gap(slot, &Gap { after: Some(after.to_string()), reason: GapReason::Overrun, topics });
    }

    /// Does what one connection is owed now. Asks at most `REQUESTS_PER_CONNECTION` things of the
    /// ring.
    fn attend(&mut self, slot: Slot, at_hand: &mut AtHand, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        connection.queued = false;
        assert!(connection.turn != self.turn, "nothing is done beside the send of this turn");
        let listens = matches!(
            connection.phase,
            Phase::Handshake
                | Phase::Carrying
                | Phase::Serving
                | Phase::Open
                | Phase::Finishing
                | Phase::Lingering
        );
        if listens && !connection.receiving && !connection.ended && !self.publishers.is_paused(slot) {
            connection.receiving = true;
            ring.receive(slot);
        }
        match connection.phase {
            Phase::Vacant | Phase::Handshake | Phase::Lingering | Phase::Closing => {}
            Phase::Carrying => self.attend_carrying(slot, ring),
            Phase::Serving => self.attend_serving(slot, ring),
            Phase::Open => self.attend_open(slot, at_hand, ring),
            Phase::Finishing => self.attend_finishing(slot, ring),
            Phase::Aborting => self.attend_aborting(slot, ring),
        }
    }

    /// The ring gets a carrier, and ends one that has nothing to carry any more.
    fn attend_carrying(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        let (is_draining, is_short, tick) = (self.drain.is_some(), self.is_short_of_sockets(), self.tick);
        let connection = self.connections.get_mut(slot);
        if let Session::Handshake(bytes) = &mut connection.session {
            let bytes = std::mem::take(bytes);
            connection.session = Session::Carrier;
            connection.since = tick;
            self.metrics.http2.carriers += 1;
            ring.carry(slot, bytes, connection.receiving);
            return;
        }
        if !is_draining && !is_idle(tick - connection.since, is_short) {
            return;
        }
        connection.since = tick;
        let carries_none = ring.streams(slot) == 0;
        if is_draining || carries_none {
            // A request that is on its way meanwhile is known not to be heard.
            ring.say_farewell(slot);
        }
        if carries_none {
            self.finish(slot, if is_draining { CloseReason::Draining } else { CloseReason::Answered });
        }
    }

    /// The rest of a send, then answers.
    fn attend_serving(&mut self, slot: Slot, ring: &mut impl EgressRing) {
        if !self.connections.get(slot).sending && !self.send_owed(slot, ring) {
            self.publishers.let_go_on(slot, Until::Sent);
        }
    }

    /// The rest of a send, then answers, then events.
    fn attend_open(&mut self, slot: Slot, at_hand: &mut AtHand, ring: &mut impl EgressRing) {
        let connection = self.connections.get_mut(slot);
        if connection.sending {
            connection.missed = true;
            return;
        }
        if self.send_owed(slot, ring) {
            return;
        }
        self.publishers.let_go_on(slot, Until::Sent);
        self.send_news(slot, at_hand, ring);
        let connection = self.connections.get(slot);
        let has_everything = !connection.is_owed() && connection.turn != self.turn;
        let has_everything = has_everything && !self.publishers.awaits_hub(slot);
        if connection.phase != Phase::Open || has_everything && self.drained(slot) {
            return;
        }
        if self.connections.get(slot).ended {
            self.see_off(slot);
        }
    }

    /// The peer has ended its stream: it gets what the windows hold by now, and then the end of
    /// ours.
    fn see_off(&mut self, slot: Slot) {
        let connection = self.connections.get_mut(slot);
        if connection.sending {
            connection.missed = true;
            return;
        }
        let connection = self.connections.get(slot);
        let latest = connection.wants_latest();
        let is_lacking = |(topic, from)| match latest {
            true => self.topics.values(topic).newest() > from,
            false => self.topics.newest(topic) > from,
        };
        let lacks_some = connection.memberships.iter_from(connection.cursor).any(is_lacking);
        if self.backfills.has(slot) {
            // What it asked for is still to come. It is marked when that is over.
        } else if self.publishers.is_paused(slot) || self.publishers.awaits_hub(slot) {
            // What it said before its end is still to be read, or to be answered. It is marked when
            // it goes on, or is answered.
        } else if lacks_some || connection.is_owed() {
            self.mark_ready(slot);
        } else {
            self.hang_up(slot, CloseReason::ClientGone, "");
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
            (None, Some(batch)) => {
                self.greet_on(slot);
                (batch, SendMode::Instant)
            }
            (None, None) => return false,
        };
        if self.is_nothing(&batch) {
            // It stood for what has just been found, or is still to be.
            let is_more = self.connections.get(slot).control.is_some();
            if is_more {
                self.mark_ready(slot);
            }
            return is_more;
        }
        // The rest of a batch moved the cursor when it was handed over first; a command may have
        // set it back since.
        let cursor = self.connections.get(slot).cursor;
        // It may be owed more: an elevator may have passed meanwhile.
        self.submit_send(slot, &batch, mode, true, ring);
        self.connections.get_mut(slot).cursor = cursor;
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

    /// True if the kernel is to send so many bytes from where they are.
    fn wants_zero_copy(&self, bytes: usize) -> bool {
        let bytes_min = self.setup.config.limits.zero_copy_bytes_min;
        bytes_min > 0 && bytes >= bytes_min
    }

    /// Hands a batch to the ring, from where the kernel stopped taking it. `owes`: the connection
    /// needs attention again afterwards.
    #[inline]
    fn submit_send(
        &mut self,
        slot: Slot,
        batch: &Rc<Batch>,
        mode: SendMode,
        owes: bool,
        ring: &mut impl EgressRing,
    ) {
        let connection = self.connections.get(slot);
        let offset = connection.offset as usize;
        self.work.bytes += batch.len() - offset;
        let zero_copy = !connection.copies && self.wants_zero_copy(batch.len() - offset);
        let mode = if zero_copy { SendMode::ZeroCopy } else { mode };
        ring.send(slot, batch, offset, mode);
        let connection = self.connections.get_mut(slot);
        let format = connection.format;
        let counters = &mut self.metrics.families[format.family().index()];
        if mode == SendMode::Instant {
            // Almost every socket takes all of it, and then the ring is silent. `handle_short` puts
            // right what it is told.
            connection.handed(batch.to(), self.turn, self.tick);
            if connection.subscribed() {
                counters.sends += 1;
                counters.bytes += batch.len() as u64;
            }
            if let Some(access) = &mut self.access {
                access.add(slot, batch.frames(), batch.len());
            }
            self.note_taken(format, batch, 1);
            if owes {
                self.mark_ready(slot);
            }
        } else {
            connection.handed(batch.to(), self.turn, self.tick);
            connection.sending = true;
            connection.missed = owes;
            counters.sends_in_flight += u64::from(connection.subscribed());
            self.metrics.zero_copy_sends += u64::from(mode == SendMode::ZeroCopy);
        }
    }
}

/// What so many bytes to one socket take of a step's budget.
fn cost(bytes: usize) -> usize {
    1 + bytes / VISIT_BYTES
}

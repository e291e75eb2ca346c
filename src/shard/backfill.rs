//! Backfill: what a subscriber asks for and the windows hold no more comes from the source.
//!
//! ```text
//!    asked for           reached             evicted      newest
//!       |                   |                   |            |
//!  .....x===================x...................[ e  e  e  e ]
//!            handed over       still to be read     window
//! ```
//!
//! Invariants worth naming:
//! - A topic that is backfilled begins at [`FAR`] for all others: no elevator hands over anything of
//!   it, no floor is held by it, and nothing is looked up for it on the way of an event. Once
//!   everything up to a place is handed over behind which the window has all, it begins there.
//! - A connection's topics that it asked for together are backfilled together, in the order of
//!   positions: so an id says of all of them what its client has.
//! - Each backfill has at most one stretch that is asked for or not taken by its socket yet. So what
//!   is pinned is bounded by how many are served at once, and a slow socket slows down itself.
//! - What the source has lost is told as a gap before anything that comes behind it. So is all that
//!   is left when a backfill is given up.
//! - A window that moves on faster than its past can be read holds its events for the few
//!   milliseconds that the last stretch takes.
//!
//! Subscribers of the newest events alone are not backfilled, nor is anybody while a shard drains.
//!
//! Not here: where the past is (`hub/backfill`).

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;

use super::connections::{FAR, TopicIndex};
use super::state::State;
use crate::broadcast::{PastAnswer, PastAsk, PastAsker, PastTopicAsk, Stretch};
use crate::clock::Stamp;
use crate::close::CloseReason;
use crate::config::limits::{
    ASKS_UNANSWERED_MAX, BACKFILL_AWAY_MS_MAX, BACKFILL_HOLD_MS_MAX, BACKFILL_SLOW_MS_MAX,
    BACKFILLS_WAITING_MAX, STRETCH_BYTES_MAX, STRETCHES_PER_TURN_MAX, TICK_MS,
};
use crate::egress::{Batch, Payload, Slot};
use crate::wire::gap::{Gap, GapReason};
use crate::wire::{SlowPolicy, Start};
use search::Search;

/// What a stretch without an event counts, so that looking is not for nothing.
const LOOK_BYTES: i64 = 1 << 10;

/// One topic of a backfill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PastPart {
    /// It lives as long as it has the subscriber.
    pub(super) topic: TopicIndex,
    /// Its events come that are after this one.
    pub(super) after: u64,
    /// Its client knows of removals up to here, or need not.
    told: u64,
    /// What is after this one stays in its window meanwhile; [`FAR`] if nothing has to.
    held: u64,
}

impl PastPart {
    /// Events of a topic after this position. Removals up to `told` are no loss.
    pub(super) fn new(topic: TopicIndex, after: u64, told: u64) -> PastPart {
        PastPart { topic, after, told, held: FAR }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Others have their turn.
    Waiting,
    /// The next stretch is to be asked for, from this tick on.
    Due(u32),
    /// It is on its way since this tick, and goes up to here.
    Asked(u64, u32),
    /// It is on its way, but of no use: it has a topic that its client has left.
    Stale,
    /// Its socket is to take it first.
    Sent,
}

/// What one subscriber is still to get.
#[derive(Debug)]
struct Backfill {
    slot: Slot,
    parts: Vec<PastPart>,
    /// Everything up to here was handed over.
    reached: u64,
    stage: Stage,
    /// The tick of the last progress.
    moved: u32,
    /// Since when windows hold events for it.
    holds: Option<u32>,
}

/// All backfills of a shard.
#[derive(Debug)]
pub(super) struct Backfills {
    asker: PastAsker,
    by_number: HashMap<u64, Backfill>,
    /// The numbers of each connection, in the order of their coming.
    by_slot: HashMap<Slot, Vec<u64>>,
    /// Those that wait for their turn; some are over.
    waiting: VecDeque<u64>,
    /// Those that have it, at most `backfills_per_shard_max`.
    served: Vec<u64>,
    searches: HashMap<Slot, Search>,
    /// The number that was given last.
    last: u64,
    /// Backfills for which windows hold events.
    holding: usize,
    /// Asks without an answer, also those of clients that have left, each with the bytes that it
    /// was reckoned at.
    unanswered: HashMap<u64, i64>,
    /// Bytes that may be asked for at once; below 0 where an event was longer than expected.
    credit: i64,
    filled: Stamp,
}

impl Backfills {
    pub(super) fn new(asker: PastAsker, now: Stamp) -> Backfills {
        Backfills {
            asker,
            by_number: HashMap::new(),
            by_slot: HashMap::new(),
            waiting: VecDeque::new(),
            served: Vec::new(),
            searches: HashMap::new(),
            last: 0,
            holding: 0,
            unanswered: HashMap::new(),
            credit: 0,
            filled: now,
        }
    }

    fn is_idle(&self) -> bool {
        self.by_number.is_empty() && self.searches.is_empty()
    }

    fn has_room(&self) -> bool {
        self.by_number.len() - self.served.len() < BACKFILLS_WAITING_MAX
    }

    /// True while a connection has a backfill.
    pub(super) fn has(&self, slot: Slot) -> bool {
        !self.by_slot.is_empty() && self.by_slot.contains_key(&slot)
    }

    fn of(&self, slot: Slot) -> impl Iterator<Item = &Backfill> {
        self.by_slot.get(&slot).into_iter().flatten().map(|number| &self.by_number[number])
    }

    /// Up to where a connection has the events of a topic that is backfilled.
    pub(super) fn reached(&self, slot: Slot, topic: TopicIndex) -> Option<u64> {
        let part = |backfill: &Backfill| {
            let part = backfill.parts.iter().find(|part| part.topic == topic)?;
            Some(part.after.max(backfill.reached))
        };
        self.of(slot).find_map(part)
    }

    /// The least position up to which a connection has all of what is backfilled.
    pub(super) fn lowest(&self, slot: Slot) -> Option<u64> {
        self.of(slot).map(|backfill| backfill.reached).min()
    }

    /// After which event a window is to keep those of a topic for a connection that is backfilled.
    pub(super) fn held(&self, slot: Slot, topic: TopicIndex) -> u64 {
        if self.holding == 0 {
            return FAR;
        }
        let parts = self.of(slot).flat_map(|backfill| &backfill.parts);
        parts.filter(|part| part.topic == topic).map(|part| part.held).min().unwrap_or(FAR)
    }

    /// A number that nothing else has.
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Takes one out, wherever it stands.
    fn take(&mut self, number: u64) -> Option<Backfill> {
        let backfill = self.by_number.remove(&number)?;
        if let Some(numbers) = self.by_slot.get_mut(&backfill.slot) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_slot.remove(&backfill.slot);
            }
        }
        self.served.retain(|other| *other != number);
        self.holding -= usize::from(backfill.holds.is_some());
        if self.waiting.len() > 2 * self.by_number.len() + STRETCHES_PER_TURN_MAX {
            self.waiting.retain(|number| self.by_number.contains_key(number));
        }
        Some(backfill)
    }

    /// A connection is a subscriber no more.
    pub(super) fn forget(&mut self, slot: Slot) {
        for number in self.by_slot.get(&slot).cloned().unwrap_or_default() {
            self.take(number);
        }
        self.forget_search(slot);
    }

    /// The client of a slot asks for nothing any more.
    pub(super) fn forget_search(&mut self, slot: Slot) {
        if !self.searches.is_empty() {
            self.searches.remove(&slot);
        }
    }

    /// True while a client waits for a search.
    pub(super) fn searches_for(&self, slot: Slot) -> bool {
        self.searches.get(&slot).is_some_and(|search| search.found.is_none())
    }

    /// Asks the source, which is reckoned at so many bytes until there is an answer.
    fn ask(&mut self, number: u64, ask: PastAsk, bytes: i64) {
        self.credit -= bytes;
        if self.asker.ask(number, ask) {
            self.unanswered.insert(number, bytes);
        }
    }

    /// The next answer that is there, and its number.
    fn next_answer(&mut self) -> Option<(u64, PastAnswer)> {
        let (number, answer) = self.asker.next_answer()?;
        self.credit += self.unanswered.remove(&number).unwrap_or(0);
        Some((number, answer))
    }

    /// True if the source may be asked for one thing more.
    fn may_ask(&self) -> bool {
        self.unanswered.len() < ASKS_UNANSWERED_MAX
    }

    fn fill(&mut self, per_second: usize, now: Stamp) {
        let passed = i128::from(now.ns_since(self.filled));
        self.filled = now;
        let per_second = i128::try_from(per_second).unwrap_or(i128::MAX >> 64);
        let most = per_second / 4 + STRETCH_BYTES_MAX as i128;
        let credit = i128::from(self.credit) + passed * per_second / 1_000_000_000;
        self.credit = credit.min(most) as i64;
    }
}

fn ticks(ms: u64) -> u32 {
    ms.div_ceil(TICK_MS) as u32
}

/// What comes before a subscriber's windows.
impl State {
    /// True if a subscriber with this policy may get what left the windows.
    pub(super) fn may_backfill(&self, slow: SlowPolicy) -> bool {
        let config = &self.setup.config;
        config.keeps_past()
            && config.limits.backfill_bytes_per_second > 0
            && slow != SlowPolicy::Latest
            && self.drain.is_none()
    }

    /// After which position the events of a topic are to be read from the source, if those that the
    /// client asks for begin before its window does. `named` is what its id stands for.
    pub(super) fn begins_in_past(
        &self,
        slot: Slot,
        topic: TopicIndex,
        start: &Start,
        named: Option<u64>,
    ) -> Option<u64> {
        let evicted = self.topics.get(topic).window.evicted();
        let after = match start {
            Start::Now => None,
            Start::After(_) => named,
            Start::Since(_) | Start::Last(_) => {
                let search = self.backfills.searches.get(&slot)?;
                let at = search.topics.iter().position(|asked| asked.name == self.topics.get(topic).name)?;
                search.found.as_ref()?.as_ref()?.get(at).copied()
            }
        };
        after.filter(|after| *after < evicted)
    }

    /// Up to where removals are no loss for a subscriber that begins like this after `after`: who
    /// asks for what is held has lost nothing of what is not.
    pub(super) fn told_by(&self, start: &Start, after: u64) -> u64 {
        if start.after().is_some() { after } else { self.sequence }
    }

    /// True if a backfill more may wait for its turn; else that is counted.
    pub(super) fn admits_backfill(&mut self) -> bool {
        let has_room = self.backfills.has_room();
        self.metrics.backfill.refused += u64::from(!has_room);
        has_room
    }

    /// A subscriber gets the events of these topics, at least one, which begin at [`FAR`] for it
    /// until then.
    pub(super) fn begin_backfill(&mut self, slot: Slot, parts: Vec<PastPart>) {
        let reached = parts.iter().map(|part| part.after).min().expect("a backfill has a topic");
        let number = self.backfills.number();
        let (stage, moved) = (Stage::Waiting, self.tick);
        self.backfills.by_number.insert(number, Backfill { slot, parts, reached, stage, moved, holds: None });
        self.backfills.by_slot.entry(slot).or_default().push(number);
        self.backfills.waiting.push_back(number);
        self.metrics.backfill.begun += 1;
    }

    /// A subscriber leaves one of its topics.
    pub(super) fn backfill_no_more_of(&mut self, slot: Slot, topic: TopicIndex) {
        for number in self.backfills.by_slot.get(&slot).cloned().unwrap_or_default() {
            let Some(backfill) = self.backfills.by_number.get_mut(&number) else { continue };
            let before = backfill.parts.len();
            backfill.parts.retain(|part| part.topic != topic);
            if backfill.parts.is_empty() {
                self.backfills.take(number);
            } else if backfill.parts.len() < before && matches!(backfill.stage, Stage::Asked(..)) {
                backfill.stage = Stage::Stale;
            }
        }
    }

    /// Goes on with all backfills, a bounded step.
    pub(super) fn go_on_with_backfills(&mut self) {
        while let Some((number, answer)) = self.backfills.next_answer() {
            match answer {
                PastAnswer::Begins(positions) => self.search_ends(number, Some(positions)),
                PastAnswer::Stretch(stretch) => self.take_stretch(number, Some(stretch)),
                PastAnswer::Away if self.backfills.by_number.contains_key(&number) => {
                    self.take_stretch(number, None);
                }
                PastAnswer::Away => self.search_ends(number, None),
            }
        }
        if self.backfills.is_idle() {
            (self.metrics.backfill.serving, self.metrics.backfill.waiting) = (0, 0);
            return;
        }
        let limits = &self.setup.config.limits;
        let (per_second, most) = (limits.backfill_bytes_per_second, limits.backfills_per_shard_max);
        self.backfills.fill(per_second, self.now);
        self.end_late_searches();
        while self.backfills.served.len() < most
            && let Some(number) = self.backfills.waiting.pop_front()
        {
            if let Some(backfill) = self.backfills.by_number.get_mut(&number) {
                (backfill.stage, backfill.moved) = (Stage::Due(self.tick), self.tick);
                self.backfills.served.push(number);
            }
        }
        let mut asks = 0;
        for number in self.backfills.served.clone() {
            self.look_at_sent(number);
            let Some(backfill) = self.backfills.by_number.get(&number) else { continue };
            let Stage::Due(tick) = backfill.stage else { continue };
            if per_second == 0 {
                // The operator wants none any more.
                self.give_up(number, GapReason::Expired);
                continue;
            }
            let may_ask = self.backfills.may_ask() && (self.backfills.credit > 0 || backfill.holds.is_some());
            if tick <= self.tick && may_ask && asks < STRETCHES_PER_TURN_MAX && self.drain.is_none() {
                asks += 1;
                self.ask_for_stretch(number);
            }
        }
        // The next turn begins with those that had no turn in this one.
        if asks > 0 && !self.backfills.served.is_empty() {
            let at = asks % self.backfills.served.len();
            self.backfills.served.rotate_left(at);
        }
        self.metrics.backfill.serving = self.backfills.served.len() as u64;
        self.metrics.backfill.waiting = (self.backfills.by_number.len() - self.backfills.served.len()) as u64;
    }

    /// True if a backfill could go on at once.
    pub(super) fn has_backfill_to_do(&self) -> bool {
        if self.backfills.served.is_empty() || self.drain.is_some() || !self.backfills.may_ask() {
            return false;
        }
        let is_due = |number: &u64| {
            let backfill = &self.backfills.by_number[number];
            let may_ask = self.backfills.credit > 0 || backfill.holds.is_some();
            matches!(backfill.stage, Stage::Due(tick) if tick <= self.tick) && may_ask
        };
        self.backfills.served.iter().any(is_due)
    }

    /// Looks whether a socket has taken its stretch.
    fn look_at_sent(&mut self, number: u64) {
        let others_wait = self.backfills.by_number.len() > self.backfills.served.len();
        let Some(backfill) = self.backfills.by_number.get_mut(&number) else { return };
        let (slot, tick) = (backfill.slot, self.tick);
        let connection = self.connections.get(slot);
        if backfill.stage == Stage::Sent && !connection.is_owed() && connection.turn != self.turn {
            (backfill.stage, backfill.moved) = (Stage::Due(tick), tick);
        }
        if backfill.stage == Stage::Sent
            && others_wait
            && tick - backfill.moved >= ticks(BACKFILL_SLOW_MS_MAX)
        {
            self.backfill_is_slow(number, slot);
            return;
        }
        let Some(backfill) = self.backfills.by_number.get_mut(&number) else { return };
        if let Stage::Asked(_, since) = backfill.stage
            && tick - since >= ticks(BACKFILL_AWAY_MS_MAX)
        {
            // What comes after all is nobody's.
            return self.give_up(number, GapReason::Expired);
        }
        if backfill.holds.is_some_and(|since| tick - since >= ticks(BACKFILL_HOLD_MS_MAX)) {
            backfill.holds = None;
            backfill.parts.iter_mut().for_each(|part| part.held = FAR);
            self.backfills.holding -= 1;
        }
    }

    /// A socket keeps its place from others for too long.
    fn backfill_is_slow(&mut self, number: u64, slot: Slot) {
        let connection = self.connections.get(slot);
        self.metrics.families[connection.format.family().index()].overruns += 1;
        match connection.slow.unwrap_or_default() {
            SlowPolicy::Close => {
                let detail = "too slow for what it lacks, and others wait: reconnect to resume";
                self.hang_up(slot, CloseReason::Overrun, detail);
            }
            SlowPolicy::Skip | SlowPolicy::Latest => self.give_up(number, GapReason::Overrun),
        }
    }

    /// True if the windows have all that a backfill has not handed over.
    fn meets_windows(&self, backfill: &Backfill) -> bool {
        backfill.parts.iter().all(|part| {
            let window = &self.topics.get(part.topic).window;
            let from = part.after.max(backfill.reached);
            window.evicted() <= from || part.held <= from && window.gone() <= from
        })
    }

    fn ask_for_stretch(&mut self, number: u64) {
        let Some(backfill) = self.backfills.by_number.get(&number) else { return };
        if self.meets_windows(backfill) {
            return self.end_backfill(number);
        }
        let ends = backfill.parts.iter().map(|part| match part.held {
            FAR => self.topics.get(part.topic).window.evicted(),
            held => held.max(self.topics.get(part.topic).window.gone()),
        });
        let until = ends.max().unwrap_or(0).max(backfill.reached + 1);
        let asked = |part: &PastPart| PastTopicAsk {
            name: self.topics.get(part.topic).name.clone(),
            at: part.after.max(backfill.reached),
            told: part.told,
        };
        let topics = backfill.parts.iter().map(asked).collect();
        let format = self.connections.get(backfill.slot).format;
        let ask = PastAsk::Stretch { topics, after: backfill.reached, until, format };
        self.metrics.backfill.asks += 1;
        self.backfills.ask(number, ask, STRETCH_BYTES_MAX as i64);
        let tick = self.tick;
        if let Some(backfill) = self.backfills.by_number.get_mut(&number) {
            backfill.stage = Stage::Asked(until, tick);
        }
    }

    /// What came of an ask; `None`: the source cannot be read.
    fn take_stretch(&mut self, number: u64, stretch: Option<Stretch>) {
        let bytes = stretch.as_ref().map_or(0, |stretch| stretch.bytes.len()) as i64;
        self.backfills.credit -= bytes.max(LOOK_BYTES);
        let tick = self.tick;
        let Some(backfill) = self.backfills.by_number.get_mut(&number) else { return };
        let until = match backfill.stage {
            Stage::Asked(until, _) => until,
            _ => {
                backfill.stage = Stage::Due(tick);
                return;
            }
        };
        let (slot, before) = (backfill.slot, backfill.reached);
        // What was asked for had the same topics.
        let mut lost: Vec<TopicIndex> = Vec::new();
        for (at, up_to) in stretch.iter().flat_map(|stretch| &stretch.lost) {
            if let Some(part) = backfill.parts.get_mut(*at) {
                part.told = part.told.max(*up_to);
                lost.push(part.topic);
            }
        }
        let (to, frames) = stretch.as_ref().map_or((before, 0), |stretch| (stretch.to, stretch.frames));
        backfill.reached = before.max(to);
        if backfill.reached > before {
            backfill.moved = tick;
        }
        let has_moved = backfill.reached > before;
        let is_late = tick - backfill.moved >= ticks(BACKFILL_AWAY_MS_MAX);
        backfill.stage = match (frames, has_moved) {
            (0, true) => Stage::Due(tick),
            (0, false) => Stage::Due(tick + 1),
            _ => Stage::Sent,
        };
        let reached = backfill.reached;
        if !lost.is_empty() {
            self.metrics.backfill.gaps += 1;
            let after = Some(self.eras.id(before).to_string());
            let topics = self.names(lost.into_iter());
            self.tell_gap(slot, &Gap { after, reason: GapReason::Expired, topics });
        }
        if let Some(Stretch { bytes, frames: 1.., .. }) = stretch {
            self.metrics.backfill.events += u64::from(frames);
            self.metrics.backfill.bytes += bytes.len() as u64;
            self.answer_with_past(slot, bytes, frames);
        }
        if is_late {
            return self.give_up(number, GapReason::Expired);
        }
        if reached >= until {
            self.come_up_to_windows(number);
        }
    }

    /// All that was asked for is handed over: what is left is in the windows, or has left them since.
    fn come_up_to_windows(&mut self, number: u64) {
        let Some(backfill) = self.backfills.by_number.get(&number) else { return };
        if self.meets_windows(backfill) {
            return self.end_backfill(number);
        }
        // They hold the rest until it is read: that is little.
        let ends =
            backfill.parts.iter().map(|part| (part.topic, self.topics.get(part.topic).window.evicted()));
        let ends: Vec<(TopicIndex, u64)> = ends.collect();
        ends.iter().for_each(|(topic, evicted)| self.topics.hold(*topic, *evicted));
        let Some(backfill) = self.backfills.by_number.get_mut(&number) else { return };
        self.backfills.holding += usize::from(backfill.holds.is_none());
        backfill.holds.get_or_insert(self.tick);
        backfill.parts.iter_mut().zip(ends).for_each(|(part, (_, evicted))| part.held = evicted);
    }

    /// A subscriber has all that its windows do not hold, and goes on like any other.
    fn end_backfill(&mut self, number: u64) {
        self.metrics.backfill.completed += 1;
        let Some(backfill) = self.backfills.take(number) else { return };
        let starts = backfill.parts.iter().map(|part| (part.topic, part.after.max(backfill.reached)));
        self.join_windows(backfill.slot, starts.collect());
    }

    /// The rest of a backfill is told as a gap, and its subscriber goes on with what the windows have.
    fn give_up(&mut self, number: u64, reason: GapReason) {
        self.metrics.backfill.gaps += 1;
        let Some(backfill) = self.backfills.take(number) else { return };
        let after = Some(self.eras.id(backfill.reached).to_string());
        let topics = self.names(backfill.parts.iter().map(|part| part.topic));
        self.tell_gap(backfill.slot, &Gap { after, reason, topics });
        let start = |part: &PastPart| {
            (part.topic, part.after.max(backfill.reached).max(self.topics.before_history(part.topic)))
        };
        self.join_windows(backfill.slot, backfill.parts.iter().map(start).collect());
    }

    /// These topics of a subscriber begin after these positions from now on; all others stay where
    /// they are.
    fn join_windows(&mut self, slot: Slot, starts: Vec<(TopicIndex, u64)>) {
        starts.iter().for_each(|(topic, from)| self.topics.hold(*topic, *from));
        let connection = self.connections.get_mut(slot);
        let begin = |(topic, from): (TopicIndex, u64)| {
            starts.iter().find(|(other, _)| *other == topic).map_or(from, |(_, start)| *start)
        };
        let all = connection.memberships.iter_from(connection.cursor).map(begin).collect();
        connection.cursor = connection.memberships.start_after(all);
        self.mark_ready(slot);
    }

    /// Queues events of the past behind what waits already.
    fn answer_with_past(&mut self, slot: Slot, bytes: Bytes, frames: u32) {
        let control = &mut self.connections.get_mut(slot).control;
        let batch: Rc<Batch> = match control {
            None => Batch::retold(Payload::Own(bytes), frames, &self.ledger),
            Some(waiting) => {
                let both = [waiting.bytes_at(0), &bytes].concat().into();
                Batch::retold(Payload::Own(both), waiting.frames() + frames, &self.ledger)
            }
        };
        *control = Some(batch);
        self.mark_ready(slot);
    }
}

mod search;
#[cfg(test)]
mod tests;

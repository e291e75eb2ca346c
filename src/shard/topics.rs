//! The shard's table of topics: windows, subscribers, and the laps of the sweep.
//!
//! A lap is the elevator's way past all subscribers of one topic. Each push asks for a whole round
//! from where the elevator is (`left` visits), so everybody is visited after every push, and a
//! visit hands over what has come by then, as far as one send carries it.
//!
//! Invariants worth naming:
//! - A topic with `lap.left > 0` is in `active`. Others there are stale and passed over.
//! - Histories are the same on all shards (`history`).
//! - What leaves a history stays in the window while a subscriber may lack it: above `floor`, which
//!   no subscriber's cursor is below. A whole round knows the lowest cursor that it met, and sets
//!   it. (The sweep reports a higher one for a subscriber that would rather skip what it is late
//!   for.)
//! - While a topic has such an excess its elevator goes round at every tick, so that a floor never
//!   stands still.
//! - The hub gives a topic no more than its share (`broadcast::Account`). Subscribers that are far
//!   behind use most of that up. Where they are few, those that wait for their own sockets are cut.

use std::collections::VecDeque;
use std::sync::Arc;

mod history;
mod holes;
mod lap;
mod past;
mod patterns;
mod retained;
mod values;

use history::Histories;
use lap::Lap;
use patterns::Log;
use retained::{Retained, RetainedValues};
use values::Values;

use super::connections::TopicIndex;
use super::forgotten::Forgotten;
use super::names::Names;
use super::window::{Weight, Window};
use crate::broadcast::{Account, Crowd, Encoded};
use crate::config::limits::{
    DROPS_PER_TURN_MAX, EXCESS_TOPICS_PER_TICK_MAX, RECENT_EVENTS, TOPICS_RESERVED_MAX,
};
use crate::config::{Limits, Rules};
use crate::egress::Slot;
use crate::event::Topic;
use crate::wire::Family;

/// One topic on one shard.
#[derive(Debug)]
pub struct TopicState {
    /// The name.
    pub name: Topic,
    /// Its events.
    pub window: Window,
    /// Slots of the subscribers, in no order.
    pub subscribers: Vec<Slot>,
    /// Subscribers by family.
    pub by_family: [u32; Family::COUNT],
    /// The index of its rule.
    rule: u8,
    /// The patterns that it is one of, in no order.
    patterns: Vec<TopicIndex>,
    /// Some exactly for a pattern.
    log: Option<Box<Log>>,
    /// Some while it has retained values.
    retained: Option<Box<Retained>>,
    /// Some while a subscriber wants the newest events alone.
    values: Option<Box<Values>>,
    /// The hub has forgotten it: it goes with its events when nobody subscribes to it any more.
    hub_forgot: bool,
    /// It is in `Topics::active`.
    queued: bool,
    /// It is in `Topics::exceeding`.
    exceeds: bool,
    /// No subscriber needs what is up to here.
    floor: u64,
    /// No subscriber's cursor is below; lower than `floor` where one would rather skip.
    true_floor: u64,
    lap: Lap,
    /// Where its newest event is counted.
    account: Option<Arc<Account>>,
    /// What `account` was told of its subscribers.
    told: Crowd,
}

/// Entries of a chunk of the table.
const CHUNK: usize = 256;

/// All topics of a shard.
#[derive(Debug)]
pub struct Topics {
    by_name: Names,
    /// Chunks, so that growing copies nothing. All but the last are full.
    table: Vec<Vec<Option<TopicState>>>,
    free: Vec<TopicIndex>,
    /// Topics whose lap is under way, in the order in which the sweep serves them, and stale ones.
    active: VecDeque<TopicIndex>,
    /// Topics whose lap is under way.
    laps: usize,
    /// Topics with an excess, and some that had one at the last tick.
    exceeding: VecDeque<TopicIndex>,
    histories: Histories,
    retained: RetainedValues,
    /// All patterns, in no order; at most `PATTERNS_MAX`.
    patterns: Vec<TopicIndex>,
    /// Patterns that topics are still to be told of.
    chores: VecDeque<TopicIndex>,
    /// Events in all logs.
    places: usize,
    /// The newest event that a subscriber of a pattern has lost.
    pattern_gone: u64,
    /// Events beyond the histories, and their memory.
    excess: usize,
    excess_memory: usize,
    /// The last `RECENT_EVENTS` events, by sequence.
    recent: VecDeque<(u64, TopicIndex)>,
    /// Sequence of the newest event that is not in `recent`.
    before_recent: u64,
    /// Topics that have gone: an index may have another one since.
    gone: u64,
    /// Events that may still be dropped in this turn.
    drops_left: usize,
    /// A round has ended whose topic is pressed.
    pressed: bool,
    /// Topics with subscribers.
    heard: usize,
    /// Topics that are here no more. These and those in the table are at most `topics_max` with
    /// subscribers and as many others.
    forgotten: Forgotten,
    topics_max: usize,
}

impl Topics {
    /// An empty table.
    pub fn new(limits: &Limits, rules: &Rules) -> Topics {
        Topics {
            by_name: Names::for_topics(limits.topics_max.saturating_mul(2).min(TOPICS_RESERVED_MAX)),
            table: Vec::new(),
            free: Vec::new(),
            active: VecDeque::new(),
            laps: 0,
            exceeding: VecDeque::new(),
            histories: Histories::new(limits, rules),
            retained: RetainedValues::new(limits),
            patterns: Vec::new(),
            chores: VecDeque::new(),
            places: 0,
            pattern_gone: 0,
            excess: 0,
            excess_memory: 0,
            recent: VecDeque::with_capacity(RECENT_EVENTS),
            before_recent: 0,
            gone: 0,
            drops_left: DROPS_PER_TURN_MAX,
            pressed: false,
            heard: 0,
            forgotten: Forgotten::default(),
            topics_max: limits.topics_max,
        }
    }

    /// The index of `name`, made if it is new.
    pub fn intern(&mut self, name: &Topic) -> TopicIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let log = patterns::pattern_of(name).map(|pattern| Box::new(Log::new(pattern)));
        let is_pattern = log.is_some();
        let topic = TopicState {
            name: name.clone(),
            window: if is_pattern { Window::default() } else { Window::after(self.forgotten.take(name)) },
            patterns: if is_pattern { Vec::new() } else { self.patterns_of(name) },
            log,
            retained: None,
            values: None,
            subscribers: Vec::new(),
            by_family: [0; Family::COUNT],
            rule: self.histories.rule_of(name.as_str()),
            hub_forgot: false,
            queued: false,
            exceeds: false,
            floor: 0,
            true_floor: 0,
            lap: Lap::default(),
            account: None,
            told: Crowd::default(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                *self.entry(index) = Some(topic);
                index
            }
            None => {
                if self.table.last().is_none_or(|chunk| chunk.len() == CHUNK) {
                    self.table.push(Vec::with_capacity(CHUNK));
                }
                let full = self.table.len() - 1;
                let chunk = &mut self.table[full];
                chunk.push(Some(topic));
                (full * CHUNK + chunk.len() - 1) as TopicIndex
            }
        };
        self.by_name.insert(name.clone(), index);
        if is_pattern {
            self.begin_pattern(index);
        }
        self.bound_forgotten();
        index
    }

    /// The index of `name`, if it is known.
    pub fn find(&self, name: &Topic) -> Option<TopicIndex> {
        self.by_name.get(name).copied()
    }

    /// The topic at `index`.
    #[inline]
    pub fn get(&self, index: TopicIndex) -> &TopicState {
        self.living(index).expect("an index is held only while its topic lives")
    }

    #[inline]
    fn get_mut(&mut self, index: TopicIndex) -> &mut TopicState {
        self.entry(index).as_mut().expect("an index is held only while its topic lives")
    }

    /// The topic at `index`, if one lives there.
    #[inline]
    fn living(&self, index: TopicIndex) -> Option<&TopicState> {
        self.table[index as usize / CHUNK][index as usize % CHUNK].as_ref()
    }

    #[inline]
    fn entry(&mut self, index: TopicIndex) -> &mut Option<TopicState> {
        &mut self.table[index as usize / CHUNK][index as usize % CHUNK]
    }

    /// True if a subscriber of these topics leaves those that have subscribers at `topics_max` or
    /// less.
    pub fn has_room_for(&self, names: &[Topic]) -> bool {
        let heard =
            |name: &Topic| self.find(name).is_some_and(|index| !self.get(index).subscribers.is_empty());
        let new = names.iter().filter(|name| !heard(name)).count();
        let is_new = |name: &&Topic| name.as_str().contains('*') && self.find(name).is_none();
        let patterns = names.iter().filter(is_new).count();
        (new == 0 || self.heard + new <= self.topics_max) && self.has_room_for_patterns(patterns)
    }

    /// The topics whose names come after `after`, in the order of names.
    pub fn after(&self, after: &str) -> impl Iterator<Item = &TopicState> {
        self.by_name.after(after).map(|index| self.get(index))
    }

    /// Events in all histories.
    pub fn window_events(&self) -> usize {
        self.histories.events
    }

    /// Bytes in all histories, as published.
    pub fn window_bytes(&self) -> usize {
        self.histories.weight.published
    }

    /// Memory of all histories.
    pub fn history_memory(&self) -> usize {
        self.histories.weight.memory
    }

    /// Events that stay beyond the histories, for subscribers that still lack them, and their
    /// memory.
    pub fn excess(&self) -> (usize, usize) {
        (self.excess, self.excess_memory)
    }

    /// Memory of everything in the windows.
    pub fn memory(&self) -> usize {
        self.histories.weight.memory + self.excess_memory
    }

    /// A turn begins: a bounded number of events may be dropped in it.
    pub fn begin_turn(&mut self) {
        self.drops_left = DROPS_PER_TURN_MAX;
    }

    /// How many topics have gone: what is remembered by index from before may be of another topic.
    pub fn gone(&self) -> u64 {
        self.gone
    }

    /// Puts an event into its topic's window and sends the elevator round.
    pub fn push(&mut self, event: &Arc<Encoded>) {
        if let Some(name) = event.forgets() {
            self.forget_unless_heard(name);
        }
        let index = self.intern(&event.event.topic);
        if self.recent.len() == RECENT_EVENTS {
            self.before_recent = self.recent.pop_front().map_or(0, |(sequence, _)| sequence);
        }
        self.recent.push_back((event.sequence, index));
        let topic = self.get_mut(index);
        topic.hub_forgot = false;
        let (rule, is_first) = (topic.rule, topic.window.is_empty());
        topic.window.push(event.clone());
        if !topic.subscribers.is_empty() {
            topic.take_account(event.account());
            self.note_value(index, event, self.bounds_of(index).conflate);
            self.send_round(index, event.intake);
        }
        if !self.get(index).patterns.is_empty() {
            self.push_to_patterns(index, event);
        }
        self.histories.add(rule, event.sequence, index, Weight::of(event), is_first);
        self.retain(index, event);
        self.bound_histories(index);
    }

    /// The topics of the events after `cursor`, newest first; `None` if some are too long ago to be
    /// known, or more than `most` are.
    pub fn recent_after(&self, cursor: u64, most: usize) -> Option<impl Iterator<Item = TopicIndex>> {
        let older = self.recent.partition_point(|(sequence, _)| *sequence <= cursor);
        let newer = self.recent.len() - older;
        // A pattern that has lost events may be found at none of its topics.
        let is_known = cursor >= self.before_recent.max(self.pattern_gone) && newer <= most;
        is_known.then(|| self.recent.iter().rev().take(newer).map(|(_, topic)| *topic))
    }

    /// Sends the elevator of each topic with an excess round, if it rests: subscribers may have
    /// come on meanwhile, and what they needed may go. A bounded number of topics at a time.
    pub fn look_at_excess(&mut self) {
        for _ in 0..self.exceeding.len().min(EXCESS_TOPICS_PER_TICK_MAX) {
            let Some(index) = self.exceeding.pop_front() else { break };
            // The index may have another topic by now, which is looked at for nothing.
            let Some(topic) = self.entry(index).as_mut() else { continue };
            topic.exceeds = topic.window.excess() > 0;
            if !topic.exceeds {
                continue;
            }
            for at in 0..topic.patterns.len() {
                let pattern = self.get(index).patterns[at];
                self.begin_round_of(pattern);
            }
            if self.get(index).subscribers.is_empty() {
                // What one turn might not drop, or a subscriber of a pattern no longer lacks.
                self.get_mut(index).exceeds = false;
                self.trim(index);
                self.forget_if_unused(index);
                continue;
            }
            self.begin_round_of(index);
            self.exceeding.push_back(index);
        }
    }

    /// Drops what no subscriber of a topic lacks any more and is no history.
    fn trim(&mut self, index: TopicIndex) {
        let (drops_left, floor) = (self.drops_left, self.floor_of(index));
        let topic = self.get_mut(index);
        let mut dropped = Vec::new();
        let has_patterns = !topic.patterns.is_empty();
        let note = |sequence| {
            if has_patterns {
                dropped.push(sequence);
            }
        };
        let (events, memory) = topic.window.drop_excess(floor, drops_left, note);
        let exceeds = topic.window.excess() > 0 && !topic.exceeds;
        topic.exceeds |= exceeds;
        if exceeds {
            self.exceeding.push_back(index);
        }
        self.drops_left -= events;
        self.excess -= events;
        self.excess_memory -= memory;
        self.dropped_from(index, &dropped);
    }

    /// Takes the oldest event of all out of its history, as for want of memory.
    #[cfg(test)]
    pub fn forget_oldest(&mut self) {
        self.evict_oldest();
    }

    /// Removes a topic without subscribers and retained values that has no events either, or that
    /// the hub has forgotten.
    fn forget_if_unused(&mut self, index: TopicIndex) {
        let topic = self.get(index);
        if !topic.subscribers.is_empty() || topic.is_pattern() {
            return;
        }
        while self.get(index).hub_forgot && !self.get(index).window.is_empty() {
            self.evict(index, Window::cut);
        }
        let topic = self.get(index);
        if topic.window.is_empty() && topic.window.excess() == 0 && topic.retained.is_none() {
            let topic = self.release(index);
            let evicted = topic.window.evicted().max(topic.window.hole());
            self.forgotten_with(&topic.name, evicted);
            self.forgotten.note(topic.name, evicted);
            self.bound_forgotten();
        }
    }

    /// Takes a topic out of the table.
    fn release(&mut self, index: TopicIndex) -> TopicState {
        self.gone += 1;
        let mut topic = self.entry(index).take().expect("an index is held only while its topic lives");
        topic.take_account(None);
        self.by_name.remove(&topic.name);
        // Else it is free once `active` has come to it.
        if !topic.queued {
            self.free.push(index);
        }
        topic
    }

    /// The hub has forgotten a topic. It goes with its events as soon as nobody subscribes to it.
    fn forget_unless_heard(&mut self, name: &Topic) {
        let Some(index) = self.find(name) else { return };
        self.get_mut(index).hub_forgot = true;
        self.forget_if_unused(index);
    }

    fn bound_forgotten(&mut self) {
        self.forgotten.shrink_to((2 * self.topics_max).saturating_sub(self.by_name.len()));
    }

    /// Up to which sequence events of a topic that is not here may be gone.
    pub fn forgotten_up_to(&self, name: &Topic) -> u64 {
        self.forgotten.peek(name)
    }

    /// A subscriber needs what is after `cursor`, from now until the elevator has met it.
    pub fn hold(&mut self, index: TopicIndex, cursor: u64) {
        let topic = self.get_mut(index);
        topic.floor = topic.floor.min(cursor);
        topic.true_floor = topic.true_floor.min(cursor);
        if topic.lap.left > 0 {
            topic.lap.low = topic.lap.low.min(cursor);
            topic.lap.true_low = topic.lap.true_low.min(cursor);
        }
    }

    /// Adds a subscriber at `cursor` and returns its position.
    pub fn join(&mut self, index: TopicIndex, slot: Slot, family: Family, cursor: u64) -> u32 {
        let topic = self.get_mut(index);
        let is_first = topic.subscribers.is_empty();
        if is_first {
            (topic.floor, topic.true_floor) = (cursor, cursor);
        }
        self.hold(index, cursor);
        let topic = self.get_mut(index);
        topic.subscribers.push(slot);
        // The newcomer takes a visit of the round; the last one of the round must not go without.
        topic.lap.left += usize::from(topic.lap.left > 0);
        topic.by_family[family.index()] += 1;
        let position = topic.subscribers.len() as u32 - 1;
        self.heard += usize::from(is_first);
        position
    }

    /// Removes the subscriber at `position`. Returns who moved there from the end of the list, if
    /// anybody, and whether a lap is under way that may miss the one who moved.
    pub fn leave(&mut self, index: TopicIndex, position: u32, family: Family) -> Option<(Slot, bool)> {
        let topic = self.get_mut(index);
        topic.by_family[family.index()] -= 1;
        topic.subscribers.swap_remove(position as usize);
        let moved = topic.subscribers.get(position as usize).copied();
        let lap = &mut topic.lap;
        let under_way = lap.left > 0;
        if lap.position >= topic.subscribers.len() {
            lap.position = 0;
        }
        lap.left = lap.left.min(topic.subscribers.len());
        // One visit fewer makes a round, perhaps one that was made.
        lap.visited = lap.visited.saturating_sub(1);
        let is_empty = topic.subscribers.is_empty();
        if is_empty {
            topic.subscribers = Vec::new();
            topic.take_account(None);
            self.heard -= 1;
            if under_way {
                self.laps -= 1;
                self.end_lap(index, false);
            }
            if !self.get(index).is_pattern() {
                self.trim(index);
            }
        }
        self.forget_if_unused(index);
        moved.map(|slot| (slot, under_way))
    }
}

impl TopicState {
    /// True while its events take most of its share, a subscriber at `cursor` lacks some that are
    /// no history any more, and most others do not.
    pub fn is_pressed_by(&self, cursor: u64) -> bool {
        let is_short = |account: &Arc<Account>| account.is_pressed() && !account.behind_are_most();
        // Where they are the same it is in the midst of the newest one of them.
        cursor <= self.window.evicted() && self.account.as_ref().is_some_and(is_short)
    }

    /// The newest event is counted in `account`; that of former events, if it is another one, is
    /// told no more.
    fn take_account(&mut self, account: Option<&Arc<Account>>) {
        let same = match (&self.account, account) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.tell_account(Crowd::default());
            self.account = account.cloned();
        }
    }

    /// Tells the account how it stands with the subscribers here.
    fn tell_account(&mut self, now: Crowd) {
        if let Some(account) = &self.account
            && now != self.told
        {
            account.count(self.told, now);
            self.told = now;
        }
    }
}

#[cfg(test)]
mod tests;

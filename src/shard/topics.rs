//! The shard's table of topics: windows, subscribers, and the laps of the sweep.
//!
//! A lap is the elevator's way past all subscribers of one topic. Each push asks for a whole round from where the elevator is
//! (`left` visits), so everybody is visited after every push, and whoever is visited gets all that has come by then.
//!
//! Invariants worth naming:
//! - A topic is in `active` exactly while `lap.left > 0`.
//! - What was pushed during the current and the previous round is all that a subscriber who keeps up can lack. The
//!   table says it is [`Topics::saturated`] before that outgrows a window, and the shard takes no more until the elevator
//!   has come round. So only those who wait for their own sockets can overrun.
//! - Windows are bounded by events, bytes and age per topic and by bytes in all; `order` finds the oldest event of all.

use std::collections::VecDeque;
use std::sync::Arc;

use super::connections::TopicIndex;
use super::forgotten::Forgotten;
use super::names::Names;
use super::window::Window;
use crate::broadcast::Encoded;
use crate::clock::Stamp;
use crate::config::Limits;
use crate::config::limits::{EXPIRED_PER_TICK_MAX, LAP_OVERLAP, WINDOW_BATCHES_MIN};
use crate::egress::Slot;
use crate::event::Topic;
use crate::wire::Format;

/// An event run that is done when the elevator has made its `due`-th visit.
#[derive(Debug, Clone, Copy)]
struct Mark {
    due: u64,
    intake: Stamp,
    events: u32,
}

/// The elevator of one topic.
#[derive(Debug, Default)]
pub struct Lap {
    /// Next subscriber to visit; below the number of subscribers, or 0.
    position: usize,
    /// Visits until everybody has been offered what is there now.
    left: usize,
    /// Visits since the last round was complete.
    visited: usize,
    /// Visits ever.
    visits: u64,
    /// Events and bytes pushed since the last round was complete.
    events: usize,
    bytes: usize,
    /// True while these reach the quota of a round.
    saturated: bool,
    /// Whose events reach their last subscriber when; dues never fall.
    marks: VecDeque<Mark>,
}

/// One topic on one shard.
#[derive(Debug)]
pub struct TopicState {
    /// The name.
    pub name: Topic,
    /// Recent events.
    pub window: Window,
    /// Slots of the subscribers, in no order.
    pub subscribers: Vec<Slot>,
    /// Subscribers by format.
    pub by_format: [u32; Format::COUNT],
    /// The hub has forgotten it: it goes with its events when nobody subscribes to it any more.
    hub_forgot: bool,
    lap: Lap,
}

/// How much a round may bring, from the limits.
#[derive(Debug, Clone, Copy)]
struct Quota {
    window_events: usize,
    window_bytes: usize,
    total_bytes: usize,
    round_events: usize,
    round_bytes: usize,
    age_ns: u64,
}

/// All topics of a shard.
#[derive(Debug)]
pub struct Topics {
    by_name: Names,
    table: Vec<Option<TopicState>>,
    free: Vec<TopicIndex>,
    /// Topics whose lap is under way, in the order in which the sweep serves them.
    active: VecDeque<TopicIndex>,
    /// Every event in a window and some that left early, by sequence.
    order: VecDeque<(u64, TopicIndex)>,
    /// Events and bytes in all windows.
    events: usize,
    bytes: usize,
    /// Topics whose lap is saturated.
    saturated: usize,
    /// Bytes pushed and not yet carried round, over all topics.
    unswept_bytes: usize,
    /// Bytes pushed to topics that nobody hears while laps were under way elsewhere; they may press out what those carry.
    unheard_bytes: usize,
    /// Topics with subscribers.
    heard: usize,
    /// Topics that are here no more. These and those in the table are at most `topics_max` with subscribers and as many others.
    forgotten: Forgotten,
    topics_max: usize,
    quota: Quota,
}

impl Topics {
    /// An empty table.
    pub fn new(limits: &Limits) -> Topics {
        Topics {
            by_name: Names::default(),
            table: Vec::new(),
            free: Vec::new(),
            active: VecDeque::new(),
            order: VecDeque::new(),
            events: 0,
            bytes: 0,
            saturated: 0,
            unswept_bytes: 0,
            unheard_bytes: 0,
            heard: 0,
            forgotten: Forgotten::default(),
            topics_max: limits.topics_max,
            quota: Quota {
                window_events: limits.window_events_max,
                window_bytes: limits.window_bytes_max,
                total_bytes: limits.window_bytes_total_max,
                round_events: limits.batch_events_max(),
                round_bytes: limits.batch_bytes_max(),
                age_ns: limits.window_ms_max.saturating_mul(1_000_000),
            },
        }
    }

    /// The index of `name`, made if it is new.
    pub fn intern(&mut self, name: &Topic) -> TopicIndex {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let topic = TopicState {
            name: name.clone(),
            window: Window::after(self.forgotten.take(name)),
            subscribers: Vec::new(),
            by_format: [0; Format::COUNT],
            hub_forgot: false,
            lap: Lap::default(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.table[index as usize] = Some(topic);
                index
            }
            None => {
                self.table.push(Some(topic));
                self.table.len() as TopicIndex - 1
            }
        };
        self.by_name.insert(name.clone(), index);
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
        self.table[index as usize].as_ref().expect("an index is held only while its topic lives")
    }

    #[inline]
    fn get_mut(&mut self, index: TopicIndex) -> &mut TopicState {
        self.table[index as usize].as_mut().expect("an index is held only while its topic lives")
    }

    /// True if a subscriber of these topics leaves those that have subscribers at `topics_max` or less.
    pub fn has_room_for(&self, names: &[Topic]) -> bool {
        let heard =
            |name: &Topic| self.find(name).is_some_and(|index| !self.get(index).subscribers.is_empty());
        let new = names.iter().filter(|name| !heard(name)).count();
        new == 0 || self.heard + new <= self.topics_max
    }

    /// The topics whose names come after `after`, in the order of names.
    pub fn after(&self, after: &str) -> impl Iterator<Item = &TopicState> {
        self.by_name.after(after).map(|index| self.get(index))
    }

    /// Events in all windows.
    pub fn window_events(&self) -> usize {
        self.events
    }

    /// Bytes in all windows.
    pub fn window_bytes(&self) -> usize {
        self.bytes
    }

    /// Puts an event into its topic's window and sends the elevator round.
    pub fn push(&mut self, event: &Arc<Encoded>) {
        if let Some(name) = event.forgets() {
            self.forget_unless_heard(name);
        }
        let index = self.intern(&event.event.topic);
        let weight = event.weight();
        let quota = self.quota;
        self.order.push_back((event.sequence, index));
        self.events += 1;
        self.bytes += weight;
        let topic = self.get_mut(index);
        topic.hub_forgot = false;
        topic.window.push(event.clone());
        if !topic.subscribers.is_empty() {
            let lap = &mut topic.lap;
            let started = lap.left == 0;
            lap.left = topic.subscribers.len();
            lap.events += 1;
            lap.bytes += weight;
            lap.note(event.intake);
            let saturates =
                !lap.saturated && (lap.events >= quota.round_events || lap.bytes >= quota.round_bytes);
            lap.saturated |= saturates;
            self.saturated += usize::from(saturates);
            self.unswept_bytes += weight;
            if started {
                self.active.push_back(index);
            }
        } else if !self.active.is_empty() {
            self.unheard_bytes += weight;
        }
        let (window_events, window_bytes) = (quota.window_events, quota.window_bytes);
        while self.get(index).window.len() > window_events || self.get(index).window.bytes() > window_bytes {
            self.evict(index);
        }
        while self.bytes > quota.total_bytes {
            self.evict_oldest();
        }
    }

    /// The oldest cursor from which a subscriber that was told of a gap goes on with every event of this topic. While the
    /// window is nearly full that leaves out its oldest quarter, which could be gone before the first send.
    pub fn resume_floor(&self, index: TopicIndex) -> u64 {
        let window = &self.get(index).window;
        let nearly = |used: usize, max: usize| used > max - max / 4;
        let quota = &self.quota;
        let pressed = nearly(window.len(), quota.window_events)
            || nearly(window.bytes(), quota.window_bytes)
            || nearly(self.bytes, quota.total_bytes);
        let skipped = if pressed { window.len() / 4 } else { 0 };
        let last_skipped = skipped.checked_sub(1).and_then(|last| window.get(last));
        last_skipped.map_or(window.evicted(), |event| event.sequence)
    }

    /// True while taking more events could overrun subscribers that keep up.
    pub fn saturated(&self) -> bool {
        self.saturated > 0
            || self.unswept_bytes + self.unheard_bytes >= self.quota.total_bytes / WINDOW_BATCHES_MIN
    }

    /// Drops what is older than the limit, a bounded number of events at a time.
    pub fn expire(&mut self, now: Stamp) {
        for _ in 0..EXPIRED_PER_TICK_MAX {
            let Some((sequence, index)) = self.order.front().copied() else { break };
            let front = self.table[index as usize].as_ref().and_then(|topic| topic.window.front());
            match front {
                Some(event) if event.sequence == sequence => {
                    if now.ns_since(event.intake) <= self.quota.age_ns {
                        break;
                    }
                    self.evict_oldest();
                }
                _ => {
                    self.order.pop_front();
                }
            }
        }
    }

    /// Drops the oldest event of one topic.
    fn evict(&mut self, index: TopicIndex) {
        let weight = self.get_mut(index).window.evict();
        self.events -= 1;
        self.bytes -= weight;
        // Events leave `order` when they come to its front; those evicted early must not pile up behind it.
        if self.order.len() > 2 * self.events + 1_024 {
            let table = &self.table;
            // Whoever had the index before had older events only.
            self.order.retain(|(sequence, index)| {
                let window = table[*index as usize].as_ref().map(|topic| &topic.window);
                window.and_then(Window::front).is_some_and(|front| front.sequence <= *sequence)
            });
        }
    }

    /// Drops the oldest event of all.
    fn evict_oldest(&mut self) {
        while let Some((sequence, index)) = self.order.pop_front() {
            let front = self.table[index as usize].as_ref().and_then(|topic| topic.window.front());
            if front.is_some_and(|event| event.sequence == sequence) {
                self.evict(index);
                self.forget_if_unused(index);
                return;
            }
        }
    }

    /// Removes a topic without subscribers that has no events either, or that the hub has forgotten.
    fn forget_if_unused(&mut self, index: TopicIndex) {
        if !self.get(index).subscribers.is_empty() {
            return;
        }
        while self.get(index).hub_forgot && !self.get(index).window.is_empty() {
            self.evict(index);
        }
        if self.get(index).window.is_empty() {
            let topic = self.table[index as usize].take().expect("checked above");
            self.by_name.remove(&topic.name);
            self.free.push(index);
            self.forgotten.note(topic.name, topic.window.evicted());
            self.bound_forgotten();
        }
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

    /// Adds a subscriber and returns its position.
    pub fn join(&mut self, index: TopicIndex, slot: Slot, format: Format) -> u32 {
        self.heard += usize::from(self.get(index).subscribers.is_empty());
        let topic = self.get_mut(index);
        topic.subscribers.push(slot);
        // The newcomer takes a visit of the round; whoever the round ends with must not go without.
        topic.lap.left += usize::from(topic.lap.left > 0);
        topic.by_format[format.index()] += 1;
        topic.subscribers.len() as u32 - 1
    }

    /// Removes the subscriber at `position`. Returns who moved there from the end of the list, if anybody, and whether a
    /// lap is under way that may miss the one who moved.
    pub fn leave(&mut self, index: TopicIndex, position: u32, format: Format) -> Option<(Slot, bool)> {
        let topic = self.get_mut(index);
        topic.by_format[format.index()] -= 1;
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
        let ended = under_way && lap.left == 0;
        self.heard -= usize::from(topic.subscribers.is_empty());
        if ended {
            self.active.retain(|active| *active != index);
            self.end_lap(index);
        }
        self.forget_if_unused(index);
        moved.map(|slot| (slot, under_way))
    }

    /// The topic that the sweep serves next.
    pub fn next_active(&self) -> Option<TopicIndex> {
        self.active.front().copied()
    }

    /// True while a lap is under way somewhere.
    pub fn is_active(&self) -> bool {
        !self.active.is_empty()
    }

    /// Lets another topic have its turn.
    pub fn rotate(&mut self) {
        self.active.rotate_left(usize::from(self.active.len() > 1));
    }

    /// Whom the elevator of an active topic passes next: `most` at most, at least one, and not beyond the end of the list, of the
    /// round or of the lap.
    pub fn next_visits(&self, index: TopicIndex, most: usize) -> &[Slot] {
        let topic = self.get(index);
        let lap = &topic.lap;
        let ahead = &topic.subscribers[lap.position..];
        let round = topic.subscribers.len().saturating_sub(lap.visited).max(1);
        &ahead[..ahead.len().min(round).min(lap.left).min(most)]
    }

    /// Moves the elevator of an active topic on by one and returns whom it passes; see `advance`.
    pub fn visit(&mut self, index: TopicIndex, done: &mut Vec<(Stamp, u32)>) -> Slot {
        let slot = self.next_visits(index, 1)[0];
        self.advance(index, 1, done);
        slot
    }

    /// Moves the elevator of an active topic on, past so many of `next_visits`. Runs of events that have now been offered to
    /// everybody are told to `done` with their intake and number. The lap ends with the last visit.
    pub fn advance(&mut self, index: TopicIndex, passed: usize, done: &mut Vec<(Stamp, u32)>) {
        let topic = self.get_mut(index);
        let length = topic.subscribers.len();
        let lap = &mut topic.lap;
        lap.position = if lap.position + passed == length { 0 } else { lap.position + passed };
        lap.left -= passed;
        lap.visited += passed;
        lap.visits += passed as u64;
        let left = lap.left;
        let round = lap.visited >= length;
        while lap.marks.front().is_some_and(|mark| mark.due <= lap.visits || left == 0) {
            let mark = lap.marks.pop_front().expect("looked at above");
            done.push((mark.intake, mark.events));
        }
        if left == 0 {
            let front = self.active.pop_front();
            assert!(front == Some(index), "the sweep serves the front of the active topics");
            self.end_lap(index);
        } else if round {
            self.end_round(index);
        }
    }

    /// The elevator has come round once.
    fn end_round(&mut self, index: TopicIndex) {
        let lap = &mut self.get_mut(index).lap;
        let (bytes, saturated) = (lap.bytes, lap.saturated);
        lap.visited = 0;
        lap.events = 0;
        lap.bytes = 0;
        lap.saturated = false;
        self.unswept_bytes -= bytes;
        self.saturated -= usize::from(saturated);
    }

    /// Everybody has been visited since the last push. The next lap starts with those whom this one visited last, because their
    /// sockets are still in the core's cache. So laps start somewhere else each time, and nobody is always last.
    fn end_lap(&mut self, index: TopicIndex) {
        self.end_round(index);
        if self.active.is_empty() {
            self.unheard_bytes = 0;
        }
        let topic = self.get_mut(index);
        topic.lap.marks.clear();
        let length = topic.subscribers.len();
        let again = LAP_OVERLAP.min(length.saturating_sub(1));
        topic.lap.position = if length == 0 { 0 } else { (topic.lap.position + length - again) % length };
    }
}

impl Lap {
    /// Remembers that an event taken in at `intake` is done after a whole round from here.
    fn note(&mut self, intake: Stamp) {
        let due = self.visits + self.left as u64;
        match self.marks.back_mut() {
            Some(last) if last.due == due && last.intake == intake => last.events += 1,
            _ => self.marks.push_back(Mark { due, intake, events: 1 }),
        }
    }
}

#[cfg(test)]
mod tests;

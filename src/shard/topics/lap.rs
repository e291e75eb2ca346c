//! The elevator of one topic: where it stands, what a round has met, and which events it still
//! carries to their last subscriber; and how elevators move.

use std::collections::VecDeque;

use super::{TopicIndex, Topics};
use crate::broadcast::Crowd;
use crate::clock::Stamp;
use crate::config::limits::{LAP_OVERLAP, MARKS_MAX};
use crate::egress::Slot;

/// An event run that is done when the elevator has made its `due`-th visit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) due: u64,
    pub(super) intake: Stamp,
    pub(super) events: u32,
}

/// The elevator of one topic.
#[derive(Debug)]
pub struct Lap {
    /// Next subscriber to visit; below the number of subscribers, or 0.
    pub(super) position: usize,
    /// Visits until everybody has been offered what is there now.
    pub(super) left: usize,
    /// Visits since the last round was complete.
    pub(super) visited: usize,
    /// Visits ever.
    pub(super) visits: u64,
    /// The lowest sequence after which a subscriber needs events, of those that this round has met.
    pub(super) low: u64,
    /// The lowest cursor of theirs.
    pub(super) true_low: u64,
    /// A cursor below is far behind: it stands in the older half of the excess, as that was when
    /// the round began.
    pub(super) far: u64,
    /// Subscribers far behind that this round has met.
    pub(super) behind: usize,
    /// Those of them that wait for their own sockets are cut.
    pub(super) cuts: bool,
    /// Whose events reach their last subscriber when; dues never fall. At most `MARKS_MAX`.
    pub(super) marks: VecDeque<Mark>,
}

impl Default for Lap {
    fn default() -> Lap {
        Lap {
            position: 0,
            left: 0,
            visited: 0,
            visits: 0,
            low: u64::MAX,
            true_low: u64::MAX,
            far: 0,
            behind: 0,
            cuts: false,
            marks: VecDeque::new(),
        }
    }
}

impl Lap {
    /// Nobody has been met yet.
    pub(super) fn begin_round(&mut self) {
        self.visited = 0;
        self.low = u64::MAX;
        self.true_low = u64::MAX;
        self.behind = 0;
    }

    /// Remembers that an event taken in at `intake` is done after a whole round from here.
    pub(super) fn note(&mut self, intake: Stamp) {
        let due = self.visits + self.left as u64;
        let full = self.marks.len() >= MARKS_MAX;
        match self.marks.back_mut() {
            Some(last) if last.due == due && last.intake == intake => last.events += 1,
            // A backlog: what comes now is told with what came a little before, rather too late
            // than too early.
            Some(last) if full => {
                last.due = due;
                last.events += 1;
            }
            _ => self.marks.push_back(Mark { due, intake, events: 1 }),
        }
    }
}

/// Marks that a resting elevator keeps places for.
const MARKS_KEPT: usize = 16;

/// How the elevators move.
impl Topics {
    /// The topic that the sweep serves next.
    pub fn next_active(&mut self) -> Option<TopicIndex> {
        while let Some(&index) = self.active.front() {
            match self.entry(index) {
                Some(topic) if topic.lap.left > 0 => return Some(index),
                Some(topic) => topic.queued = false,
                None => self.free.push(index),
            }
            self.active.pop_front();
        }
        None
    }

    /// True if a topic was pressed at the end of one of its rounds since this was asked last.
    pub fn was_pressed(&mut self) -> bool {
        std::mem::take(&mut self.pressed)
    }

    /// True while a lap is under way somewhere.
    pub fn is_active(&self) -> bool {
        self.laps > 0
    }

    /// Lets another topic have its turn.
    pub fn rotate(&mut self) {
        self.active.rotate_left(usize::from(self.active.len() > 1));
    }

    /// Whom the elevator of an active topic passes next: `most` at most, at least one, and not
    /// beyond the end of the list, of the round or of the lap.
    pub fn next_visits(&self, index: TopicIndex, most: usize) -> &[Slot] {
        let topic = self.get(index);
        let lap = &topic.lap;
        let ahead = &topic.subscribers[lap.position..];
        let round = topic.subscribers.len().saturating_sub(lap.visited).max(1);
        &ahead[..ahead.len().min(round).min(lap.left).min(most)]
    }

    /// A visit of `index` has met a subscriber at `cursor` that needs what is after `needs`;
    /// `is_slow`: its own socket keeps it, for long. True if it has to go.
    #[inline]
    pub fn meet(&mut self, index: TopicIndex, cursor: u64, needs: u64, is_slow: bool) -> bool {
        let lap = &mut self.get_mut(index).lap;
        lap.low = lap.low.min(needs);
        lap.true_low = lap.true_low.min(cursor);
        let is_behind = needs < lap.far;
        lap.behind += usize::from(is_behind);
        is_behind && is_slow && lap.cuts
    }

    /// Moves the elevator of an active topic on, past so many of `next_visits`. Runs of events that
    /// have now been offered to everybody are told to `done` with their intake and number. The lap
    /// ends with the last visit.
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
            self.laps -= 1;
            self.end_lap(index, round);
        } else if round {
            self.end_round(index);
        }
    }

    /// The elevator has come round once, so that it has met every subscriber.
    pub(super) fn end_round(&mut self, index: TopicIndex) {
        let exceeding = self.exceeding_of(index);
        let excess = exceeding.map_or(0, |index| self.get(index).window.excess());
        let middle =
            exceeding.filter(|_| excess > 0).and_then(|index| self.get(index).window.get(excess / 2));
        let far = middle.map_or(0, |event| event.sequence);
        let topic = self.get_mut(index);
        let lap = &mut topic.lap;
        let before = topic.floor;
        topic.floor = lap.low;
        topic.true_floor = lap.true_low;
        let behind = lap.behind;
        self.end_round_of_latest(index);
        let topic = self.get_mut(index);
        // Most topics have neither an excess nor too little room, and look at their account for
        // nothing else.
        let pressed = topic.account.as_ref().is_some_and(|account| account.is_pressed());
        let now = match pressed || excess > 0 {
            true => Crowd { subscribers: topic.subscribers.len(), behind },
            false => Crowd::default(),
        };
        topic.tell_account(now);
        let few = || topic.account.as_ref().is_some_and(|account| account.behind_are_few());
        topic.lap.cuts = pressed && behind > 0 && few();
        self.pressed |= pressed;
        let topic = self.get_mut(index);
        topic.lap.far = far;
        topic.lap.begin_round();
        match topic.is_pattern() {
            true => self.trim_below(index, before),
            false => self.trim(index),
        }
    }

    /// Everybody has been visited since the last push. The next lap starts with those whom this one
    /// visited last, because their sockets are still in the core's cache. So laps start somewhere
    /// else each time, and nobody is always last.
    pub(super) fn end_lap(&mut self, index: TopicIndex, round: bool) {
        if round {
            self.end_round(index);
        }
        let topic = self.get_mut(index);
        topic.lap.begin_round();
        topic.lap.marks.clear();
        if topic.lap.marks.capacity() > MARKS_KEPT {
            topic.lap.marks.shrink_to(MARKS_KEPT);
        }
        let length = topic.subscribers.len();
        let again = LAP_OVERLAP.min(length.saturating_sub(1));
        topic.lap.position = if length == 0 { 0 } else { (topic.lap.position + length - again) % length };
    }

    /// Sends an elevator that rests past all subscribers, if there are any.
    pub(super) fn begin_round_of(&mut self, index: TopicIndex) {
        let topic = self.get_mut(index);
        if topic.lap.left == 0 && !topic.subscribers.is_empty() {
            topic.lap.left = topic.subscribers.len();
            self.begin_lap(index);
        }
    }

    /// The elevator of a topic is to go round for an event taken in at `intake`.
    pub(super) fn send_round(&mut self, index: TopicIndex, intake: Stamp) {
        let topic = self.get_mut(index);
        let rests = topic.lap.left == 0;
        topic.lap.left = topic.subscribers.len();
        topic.lap.note(intake);
        if rests {
            self.begin_lap(index);
        }
    }

    /// The elevator of a topic sets off.
    pub(super) fn begin_lap(&mut self, index: TopicIndex) {
        self.laps += 1;
        let queued = std::mem::replace(&mut self.get_mut(index).queued, true);
        if !queued {
            self.active.push_back(index);
        }
    }
}

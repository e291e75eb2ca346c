//! Patterns: topics that stand for many.
//!
//! A pattern has a name with `*`, subscribers and an elevator like any topic, but no events of its
//! own. Its log names the events of its topics, in sequence order, and finds each in the window of
//! its topic. So it holds no event: a history is what the rule of its topic says, and the pattern's
//! is the union of those.
//!
//! Invariants worth naming:
//! - A topic knows its patterns (`TopicState::patterns`) from when it appears. A new pattern is
//!   told to the topics that are there, and fills its log, in bounded steps. Nobody subscribes to
//!   it before it is known to all of them.
//! - An event that is in the window of a topic, and that was its history when the pattern became
//!   known or came later, is in the log of each of its patterns. It goes from there when it is
//!   dropped, or as one too many.
//! - What leaves a history stays while a subscriber of the topic *or of one of its patterns* lacks
//!   it: the floors of all of them count ([`Topics::floor_of`]).
//! - Of an event that is dropped all the same, because a subscriber would rather skip, the pattern
//!   keeps the sequence (`Window::gone`), as a topic does. What had left a history before a
//!   subscriber came is a hole that was told to it, and no loss.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::{TopicIndex, TopicState, Topics};
use crate::broadcast::Encoded;
use crate::clock::Stamp;
use crate::config::limits::{
    PATTERN_IDLE_TICKS, PATTERN_LAST_MAX, PATTERN_PLACES_MAX, PATTERN_WORK_PER_TURN, PATTERNS_MAX,
};
use crate::event::Topic;
use crate::shard::window::{Cut, Window};
use crate::topic_pattern::Pattern;

/// How far a pattern is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is being told to the topics that are there.
    Learning,
    /// All of them know it.
    Known,
    /// Nobody has wanted it for a while: they are told to forget it.
    Leaving,
}

/// What makes a topic a pattern.
#[derive(Debug)]
pub(super) struct Log {
    pattern: Pattern,
    stage: Stage,
    /// The topic of each event that is here, by sequence.
    places: BTreeMap<u64, TopicIndex>,
    /// How many of them are histories.
    history: usize,
    /// The topic whose account the pattern speaks to.
    account_of: Option<TopicIndex>,
    /// The newest event of its topics that left a history for want of memory, and until when it was
    /// promised.
    cut: Option<(Cut, Stamp)>,
    /// Learning and leaving: the names up to here were told.
    told: Arc<str>,
    /// Learning: forgotten topics whose last sequence is below this were not looked at.
    forgotten_below: u64,
    /// Ticks without a subscriber.
    idle: u32,
}

impl Log {
    pub(super) fn new(pattern: Pattern) -> Log {
        Log {
            pattern,
            stage: Stage::Learning,
            places: BTreeMap::new(),
            history: 0,
            account_of: None,
            cut: None,
            told: "".into(),
            forgotten_below: u64::MAX,
            idle: 0,
        }
    }

    /// The part of its name before the first `*`: its topics begin with it.
    fn prefix(&self) -> &str {
        let name = self.pattern.as_str();
        name.split('*').next().unwrap_or(name)
    }

    /// An event of a topic is history, and was not known.
    fn add(&mut self, sequence: u64, topic: TopicIndex) -> bool {
        let is_new = self.places.insert(sequence, topic).is_none();
        self.history += usize::from(is_new);
        is_new
    }

    /// All places, the newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = (u64, TopicIndex)> {
        self.places.iter().rev().map(|(sequence, topic)| (*sequence, *topic))
    }

    /// How many places are after `cursor`; `most`, if there are more.
    pub(super) fn count_after(&self, cursor: u64, most: usize) -> usize {
        self.places.range((Bound::Excluded(cursor), Bound::Unbounded)).take(most).count()
    }

    /// The first place after `cursor`.
    fn after(&self, cursor: u64) -> Option<(u64, TopicIndex)> {
        let mut later = self.places.range((Bound::Excluded(cursor), Bound::Unbounded));
        later.next().map(|(sequence, topic)| (*sequence, *topic))
    }
}

/// The name of a topic that is a pattern, as one.
pub(super) fn pattern_of(name: &Topic) -> Option<Pattern> {
    let name = name.as_str();
    name.contains('*').then(|| Pattern::new(name).expect("the wire lets only patterns have a `*`"))
}

impl TopicState {
    /// True for a pattern.
    pub fn is_pattern(&self) -> bool {
        self.log.is_some()
    }
}

/// For everybody who looks for events: those of a topic are in its window, those of a pattern in
/// the windows of its topics. A place is an index there and a sequence here; both rise.
impl Topics {
    /// A topic and its patterns, whatever has its index by now.
    pub fn with_patterns(&self, index: TopicIndex) -> impl Iterator<Item = TopicIndex> {
        let patterns = self.living(index).map_or(&[][..], |topic| &topic.patterns);
        std::iter::once(index).chain(patterns.iter().copied())
    }

    /// The place of the first event of a topic after `cursor`.
    pub fn place_after(&self, index: TopicIndex, cursor: u64) -> u64 {
        let topic = self.get(index);
        match &topic.log {
            None => topic.window.index_after(cursor) as u64,
            Some(log) => log.after(cursor).map_or(u64::MAX, |(sequence, _)| sequence),
        }
    }

    /// The event at a place, if there is one.
    pub fn event_at(&self, index: TopicIndex, place: u64) -> Option<&Arc<Encoded>> {
        let topic = self.get(index);
        match &topic.log {
            None => topic.window.get(place as usize),
            Some(log) => log.places.get(&place).map(|owner| self.event_of(*owner, place)),
        }
    }

    /// The place behind one that has an event.
    pub fn place_behind(&self, index: TopicIndex, place: u64) -> u64 {
        match self.get(index).log {
            None => place + 1,
            Some(_) => self.place_after(index, place),
        }
    }

    /// Sequence of the event before a place; a cursor from there on finds that place next.
    pub fn sequence_before(&self, index: TopicIndex, place: u64) -> u64 {
        let topic = self.get(index);
        let before = match &topic.log {
            None => (place as usize).checked_sub(1).and_then(|before| topic.window.get(before)),
            Some(log) => {
                let before = log.places.range(..place).next_back();
                return before.map_or(0, |(sequence, _)| *sequence).max(topic.window.gone());
            }
        };
        before.map_or(topic.window.gone(), |event| event.sequence)
    }

    /// Sequence of the newest event that a subscriber of a topic may get; 0 if there is none.
    pub fn newest(&self, index: TopicIndex) -> u64 {
        let topic = self.get(index);
        match &topic.log {
            None => topic.window.newest(),
            Some(log) => log.places.last_key_value().map_or(0, |(sequence, _)| *sequence),
        }
    }

    /// The sequence after which the whole history of a topic comes.
    pub fn before_history(&self, index: TopicIndex) -> u64 {
        let topic = self.get(index);
        match &topic.log {
            None => topic.window.evicted(),
            // A pattern's is not in one piece.
            Some(log) => {
                let first =
                    log.places.first_key_value().map_or(topic.window.newest(), |(first, _)| first - 1);
                first.max(topic.window.gone())
            }
        }
    }

    /// Sequence of the oldest event of a topic's history that has this id of its publisher's.
    pub fn oldest_with_id(&self, index: TopicIndex, id: &str) -> Option<u64> {
        let topic = self.get(index);
        match &topic.log {
            None => topic.window.oldest_with_id(id),
            Some(log) => topic.window.ids().oldest(id, |sequence| {
                let event = log.places.get(&sequence).map(|owner| self.event_of(*owner, sequence));
                event.and_then(|event| event.event.id.as_ref()).is_some_and(|custom| custom.as_str() == id)
            }),
        }
    }

    /// An event that a log names.
    pub(super) fn event_of(&self, topic: TopicIndex, sequence: u64) -> &Arc<Encoded> {
        let window = &self.get(topic).window;
        let event = window.get(window.index_after(sequence - 1));
        event.filter(|event| event.sequence == sequence).expect("a log names what is in a window")
    }

    /// [`Topics::since`] for a pattern.
    pub(super) fn since_in(&self, index: TopicIndex, log: &Log, stamp: Stamp, now: Stamp) -> (u64, bool) {
        let is_short = log.cut.is_some_and(|(cut, until)| cut.intake >= stamp && now <= until);
        let (mut low, mut high) = (self.before_history(index), self.newest(index));
        // The hub's stamps rise with its sequences: after `high` all is new enough, up to `low`
        // nothing is.
        while low < high {
            let middle = low + (high - low) / 2;
            match log.after(middle).filter(|(sequence, _)| *sequence <= high) {
                Some((sequence, owner)) if self.event_of(owner, sequence).intake < stamp => low = sequence,
                _ => high = middle,
            }
        }
        (low, is_short)
    }

    /// [`Topics::last`] for a pattern.
    pub(super) fn last_in(&self, index: TopicIndex, log: &Log, events: usize, now: Stamp) -> (u64, bool) {
        let is_short = log.history < events && log.cut.is_some_and(|(_, until)| now <= until);
        if events >= log.history {
            return (self.before_history(index), is_short);
        }
        let is_history =
            |(sequence, owner): &(&u64, &TopicIndex)| **sequence > self.get(**owner).window.evicted();
        let mut newest = log.places.iter().rev().filter(is_history);
        let before = newest.nth(events.min(PATTERN_LAST_MAX)).map(|(sequence, _)| *sequence);
        (before.unwrap_or_else(|| self.before_history(index)).max(self.get(index).window.gone()), is_short)
    }
}

/// What changes a log.
impl Topics {
    /// True if so many patterns more are within the bound.
    pub(super) fn has_room_for_patterns(&self, more: usize) -> bool {
        self.patterns.len() + more <= PATTERNS_MAX
    }

    /// True once every pattern among these names may be subscribed to, and no name is a pattern
    /// that is not here.
    pub fn know(&self, names: &[Topic]) -> bool {
        names.iter().filter(|name| name.as_str().contains('*')).all(|name| {
            let log = self.find(name).and_then(|index| self.get(index).log.as_ref());
            log.is_some_and(|log| log.stage == Stage::Known)
        })
    }

    /// Sees to it that the patterns among these names become known.
    pub fn want(&mut self, names: &[Topic]) {
        for name in names.iter().filter(|name| name.as_str().contains('*')) {
            let index = self.intern(name);
            let topic = self.get_mut(index);
            let log = topic.log.as_mut().expect("its name has a `*`");
            log.idle = 0;
            if log.stage != Stage::Leaving {
                continue;
            }
            // Those that have forgotten it are told again.
            let again = Log::new(log.pattern.clone());
            let places = std::mem::replace(&mut **log, again).places.len();
            topic.window = Window::default();
            self.places -= places;
            if !self.chores.contains(&index) {
                self.chores.push_back(index);
            }
        }
    }

    /// A new pattern is to be told to all topics.
    pub(super) fn begin_pattern(&mut self, index: TopicIndex) {
        self.patterns.push(index);
        self.chores.push_back(index);
    }

    /// The patterns of a topic that appears.
    pub(super) fn patterns_of(&self, name: &Topic) -> Vec<TopicIndex> {
        let matches = |index: &&TopicIndex| {
            let log = self.get(**index).log.as_ref().expect("a pattern");
            log.stage != Stage::Leaving && log.pattern.matches(name.as_str())
        };
        self.patterns.iter().filter(matches).copied().collect()
    }

    /// True while patterns are to be told to topics.
    pub fn is_learning(&self) -> bool {
        !self.chores.is_empty()
    }

    /// Tells patterns to topics, a bounded number of them.
    pub fn learn_some(&mut self) {
        let mut budget = PATTERN_WORK_PER_TURN;
        while budget > 0
            && let Some(&index) = self.chores.front()
        {
            budget = self.tell_topics_of(index, budget);
            if budget > 0 {
                self.chores.pop_front();
            }
        }
    }

    /// Goes on with one pattern. Returns what is left of the budget, 0 if that is not done.
    fn tell_topics_of(&mut self, index: TopicIndex, budget: usize) -> usize {
        let log = self.get(index).log.as_ref().expect("chores are patterns");
        let stage = log.stage;
        if stage == Stage::Learning && log.forgotten_below > 0 {
            let pattern = log.pattern.clone();
            let (evicted, below) = self.forgotten.newest_of(&pattern, log.forgotten_below, budget);
            let topic = self.get_mut(index);
            topic.window.note_evicted(evicted.max(topic.window.evicted()));
            topic.log.as_mut().expect("a pattern").forgotten_below = below;
            if below > 0 {
                return 0;
            }
        }
        let log = self.get(index).log.as_ref().expect("chores are patterns");
        let prefix = log.prefix().to_string();
        let names: Vec<TopicIndex> = self.by_name.from(&log.told, &prefix).take(budget).collect();
        let mut left = budget;
        for topic in &names {
            let spent = match stage {
                Stage::Leaving => {
                    self.get_mut(*topic).patterns.retain(|pattern| *pattern != index);
                    1
                }
                Stage::Learning | Stage::Known => self.tell(index, *topic),
            };
            let name: Arc<str> = self.get(*topic).name.as_str().into();
            self.get_mut(index).log.as_mut().expect("a pattern").told = name;
            left = left.saturating_sub(spent);
            if left == 0 {
                return 0;
            }
        }
        match stage {
            Stage::Leaving => self.end_pattern(index),
            Stage::Learning | Stage::Known => {
                self.get_mut(index).log.as_mut().expect("a pattern").stage = Stage::Known;
            }
        }
        left
    }

    /// Tells a pattern to a topic, if that is one of its own. Returns what that cost.
    fn tell(&mut self, index: TopicIndex, of: TopicIndex) -> usize {
        let topic = self.get(of);
        let log = self.get(index).log.as_ref().expect("a pattern");
        if topic.is_pattern() || !log.pattern.matches(topic.name.as_str()) {
            return 1;
        }
        let events: Vec<Arc<Encoded>> = topic.window.history().cloned().collect();
        let (evicted, cut, hole) = (topic.window.evicted(), topic.window.last_cut(), topic.window.hole());
        let until = cut.map(|cut| self.promised_until(of, cut));
        let topic = self.get_mut(of);
        if !topic.patterns.contains(&index) {
            topic.patterns.push(index);
        }
        for event in &events {
            self.place(index, of, event);
        }
        let pattern = self.get_mut(index);
        pattern.window.note_evicted(evicted.max(pattern.window.evicted()));
        pattern.window.note_hole(hole);
        pattern.note_cut(cut.zip(until));
        1 + events.len()
    }

    /// Puts an event of a topic's history into the log of one of its patterns. Where there are too
    /// many places those are given up first that no subscriber lacks.
    fn place(&mut self, index: TopicIndex, of: TopicIndex, event: &Encoded) {
        let pattern = self.get_mut(index);
        let log = pattern.log.as_mut().expect("a pattern");
        let places = usize::from(log.add(event.sequence, of));
        pattern.window.note(event);
        if self.places + places > PATTERN_PLACES_MAX {
            self.places -= self.give_up_a_place(index);
        }
        self.places += places;
    }

    /// Drops the oldest event of a log, unless a subscriber lacks it. Returns how many that were.
    fn give_up_a_place(&mut self, index: TopicIndex) -> usize {
        let pattern = self.get(index);
        let floor = if pattern.subscribers.is_empty() { u64::MAX } else { pattern.true_floor };
        let first = pattern.log.as_ref().and_then(|log| log.places.first_key_value());
        let Some((&sequence, &of)) = first.filter(|(sequence, _)| **sequence <= floor) else { return 0 };
        let is_history = sequence > self.get(of).window.evicted();
        let pattern = self.get_mut(index);
        let log = pattern.log.as_mut().expect("a pattern");
        log.places.remove(&sequence);
        log.history -= usize::from(is_history);
        pattern.window.note_evicted(sequence.max(pattern.window.evicted()));
        1
    }

    /// An event has come to a topic: its patterns have it too, and their elevators go round.
    pub(super) fn push_to_patterns(&mut self, of: TopicIndex, event: &Arc<Encoded>) {
        let conflate = self.bounds_of(of).conflate;
        for at in 0..self.get(of).patterns.len() {
            let index = self.get(of).patterns[at];
            self.place(index, of, event);
            let pattern = self.get_mut(index);
            if pattern.subscribers.is_empty() {
                continue;
            }
            // It speaks to one account, and to a pressed one for as long as that is.
            if !pattern.account.as_ref().is_some_and(|account| account.is_pressed()) {
                pattern.take_account(event.account());
                pattern.log.as_mut().expect("a pattern").account_of = Some(of);
            }
            self.note_value(index, event, conflate);
            self.send_round(index, event.intake);
        }
    }

    /// An event has left the history of a topic.
    pub(super) fn evicted_from(&mut self, of: TopicIndex, event: &Encoded) {
        let cut = self.get(of).window.last_cut().map(|cut| (cut, self.promised_until(of, cut)));
        for at in 0..self.get(of).patterns.len() {
            let index = self.get(of).patterns[at];
            let pattern = self.get_mut(index);
            pattern.window.note_evicted(event.sequence.max(pattern.window.evicted()));
            pattern.window.forget_id(event);
            let log = pattern.log.as_mut().expect("a pattern");
            log.history -= usize::from(log.places.contains_key(&event.sequence));
            pattern.note_cut(cut);
        }
    }

    /// These events have left the window of a topic.
    pub(super) fn dropped_from(&mut self, of: TopicIndex, sequences: &[u64]) {
        for at in 0..self.get(of).patterns.len() {
            let index = self.get(of).patterns[at];
            let pattern = self.get_mut(index);
            let is_heard = !pattern.subscribers.is_empty();
            let log = pattern.log.as_mut().expect("a pattern");
            let mut removed = 0;
            for sequence in sequences {
                removed += usize::from(log.places.remove(sequence).is_some());
                if is_heard && *sequence > pattern.true_floor {
                    pattern.window.note_gone(*sequence);
                }
            }
            let gone = pattern.window.gone();
            self.pattern_gone = self.pattern_gone.max(gone);
            self.places -= removed;
        }
    }

    /// A topic with this last sequence is forgotten: what is told of it to patterns that are being
    /// learned is told now.
    pub(super) fn forgotten_with(&mut self, name: &Topic, evicted: u64) {
        for at in 0..self.patterns.len() {
            let index = self.patterns[at];
            let pattern = self.get_mut(index);
            let log = pattern.log.as_ref().expect("a pattern");
            if log.stage == Stage::Learning && log.pattern.matches(name.as_str()) {
                pattern.window.note_evicted(evicted.max(pattern.window.evicted()));
            }
        }
    }

    /// No cursor of a subscriber that gets the events of a topic is below, itself or by a pattern.
    pub(super) fn floor_of(&self, index: TopicIndex) -> u64 {
        let topic = self.get(index);
        let own = if topic.subscribers.is_empty() { u64::MAX } else { topic.floor };
        topic.patterns.iter().fold(own, |floor, pattern| {
            let pattern = self.get(*pattern);
            if pattern.subscribers.is_empty() { floor } else { floor.min(pattern.floor) }
        })
    }

    /// The floor of a pattern has risen: what its topics kept for it may go.
    pub(super) fn trim_below(&mut self, index: TopicIndex, before: u64) {
        let pattern = self.get(index);
        let (Some(log), floor) = (&pattern.log, pattern.floor) else { return };
        if self.excess == 0 || floor <= before {
            return;
        }
        let passed = log.places.range((Bound::Excluded(before), Bound::Included(floor)));
        let exceeds = |topic: &TopicIndex| self.get(*topic).window.excess() > 0;
        let mut topics: Vec<TopicIndex> =
            passed.take(self.drops_left).map(|(_, topic)| *topic).filter(exceeds).collect();
        topics.sort_unstable();
        topics.dedup();
        for topic in topics {
            self.trim(topic);
        }
    }

    /// The topic in whose excess those stand who are behind: its own, or that of the account that a
    /// pattern speaks to.
    pub(super) fn exceeding_of(&self, index: TopicIndex) -> Option<TopicIndex> {
        let topic = self.get(index);
        let Some(log) = &topic.log else { return Some(index) };
        let of = log.account_of?;
        self.living(of).is_some_and(|topic| topic.patterns.contains(&index)).then_some(of)
    }

    /// Once per tick: patterns that nobody has wanted for a while go.
    pub fn look_at_patterns(&mut self) {
        for at in 0..self.patterns.len() {
            let index = self.patterns[at];
            let topic = self.get_mut(index);
            let is_heard = !topic.subscribers.is_empty();
            let log = topic.log.as_mut().expect("a pattern");
            log.idle = if is_heard { 0 } else { log.idle.saturating_add(1) };
            if log.stage == Stage::Known && log.idle > PATTERN_IDLE_TICKS {
                log.stage = Stage::Leaving;
                log.told = "".into();
                self.chores.push_back(index);
            }
        }
    }

    /// No topic knows a pattern any more.
    fn end_pattern(&mut self, index: TopicIndex) {
        let log = self.get(index).log.as_ref().expect("a pattern");
        self.places -= log.places.len();
        self.patterns.retain(|other| *other != index);
        self.release(index);
    }
}

impl TopicState {
    fn note_cut(&mut self, cut: Option<(Cut, Stamp)>) {
        let log = self.log.as_mut().expect("a pattern");
        if let Some((cut, until)) = cut
            && log.cut.is_none_or(|(newest, _)| newest.sequence < cut.sequence)
        {
            log.cut = Some((cut, until));
        }
    }
}

//! What the hub and its shards know, told to a process that takes their place, and taken over from
//! one.
//!
//! Invariants worth naming:
//! - The hub takes nothing in meanwhile, and every shard has all that was taken in before. So a
//!   shard's slices fit together; only age and want of memory take events out of its histories.
//! - What the new process has no room for is dropped from the oldest on, and remembered as evicted:
//!   a client that lacks it is told of a gap.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::sleep;

use super::source::Source;
use super::{Hub, Intake, TopicRecord};
use crate::broadcast::{Account, Cut, Encoded, HistorySlice, Past, PastTopic, Question};
use crate::clock::Stamp;
use crate::config::limits::HAND_OVER_RETRY_MS;
use crate::event::Topic;
use crate::handover::state::{EventView, PastCut, PastEvent, State, TopicState};

/// A state, and its events where they are.
#[derive(Debug)]
pub(super) struct Gathered {
    /// Without its events.
    pub state: State,
    /// What their positions are to be moved by.
    base: u64,
    /// These, in the order of their sequences.
    pub events: Vec<Arc<Encoded>>,
}

impl Gathered {
    /// Writes all of it.
    pub fn write(&self, out: impl std::io::Write) -> std::io::Result<()> {
        self.state.write(self.events.iter().map(|event| view(event, self.base)), out)
    }
}

fn view(encoded: &Arc<Encoded>, base: u64) -> EventView<'_> {
    let (intake, unix_ms) = (encoded.intake, encoded.unix_ms());
    EventView { sequence: encoded.sequence - base, intake, unix_ms, event: &encoded.event }
}

impl Hub {
    /// All that is known, once a shard has taken everything that was accepted. Nothing is accepted
    /// meanwhile. The error is one line.
    pub(super) async fn gather(&self) -> Result<Gathered, String> {
        let mut topics: HashMap<Topic, PastTopic> = HashMap::new();
        let mut events = Vec::new();
        let mut next = None;
        let (forgotten, dropped) = loop {
            let slice = self.history_slice(next.clone()).await?;
            if slice.sequence != self.intake().sequence() {
                // It has more to take first.
                sleep(Duration::from_millis(HAND_OVER_RETRY_MS)).await;
                continue;
            }
            for (topic, more) in slice.topics {
                events.extend(more);
                topics.insert(topic.name.clone(), topic);
            }
            next = slice.next;
            if next.is_none() {
                break (slice.forgotten, slice.dropped);
            }
        };
        Ok(self.intake().gathered(topics, events, forgotten, dropped))
    }

    /// A part of the histories of the first shard: all have the same.
    async fn history_slice(&self, from: Option<(Topic, u64)>) -> Result<HistorySlice, String> {
        let (answer, answered) = oneshot::channel();
        let asked = self.intake().outboxes()[0].ask(Question::History(from, answer));
        let slice = if asked { answered.await.ok() } else { None };
        slice.ok_or_else(|| "a shard does not tell its histories".to_string())
    }
}

impl Intake {
    /// Puts together what the hub knows and what a shard told.
    fn gathered(
        &self,
        windows: HashMap<Topic, PastTopic>,
        mut events: Vec<Arc<Encoded>>,
        mut forgotten: Vec<(Topic, u64)>,
        dropped: u64,
    ) -> Gathered {
        let last_of: HashMap<&Topic, u64> = forgotten.iter().map(|(topic, last)| (topic, *last)).collect();
        let state_of = |record: &TopicRecord| {
            // Of a topic without a window nothing is left, and a hole may be behind its last event.
            let window = windows.get(&record.topic);
            let last = last_of.get(&record.topic).map_or(record.sequence, |last| record.sequence.max(*last));
            TopicState {
                name: record.topic.clone(),
                remembered: true,
                sequence: record.sequence,
                id: record.id.clone(),
                events: record.events,
                bytes: record.bytes,
                evicted: window.map_or(last, |window| window.evicted),
                cut: window.and_then(|window| window.cut).map(PastCut::from),
                hole: window.map_or(0, |window| window.hole),
            }
        };
        let mut topics: Vec<TopicState> = self.topics.by_age().map(state_of).collect();
        // A topic that the hub has forgotten has a window where somebody subscribes to it, and
        // retained values everywhere.
        let mut lost: HashMap<Topic, (u64, bool)> = HashMap::new();
        for window in windows.values().filter(|window| self.topics.get(&window.name).is_none()) {
            lost.insert(window.name.clone(), (window.evicted.max(window.hole), window.retains));
        }
        events.retain(|event| match lost.get_mut(&event.event.topic) {
            Some((newest, retains)) => {
                *newest = event.sequence.max(*newest);
                *retains
            }
            None => true,
        });
        events.sort_unstable_by_key(|event| event.sequence);
        forgotten.retain(|(topic, _)| self.topics.get(topic).is_none());
        for (name, (evicted, retains)) in lost {
            match retains {
                false => forgotten.push((name, evicted)),
                true => topics.push(TopicState {
                    name,
                    remembered: false,
                    sequence: evicted,
                    id: None,
                    events: 0,
                    bytes: 0,
                    evicted,
                    cut: None,
                    hole: 0,
                }),
            }
        }
        // The next process begins with this epoch, in sequences: what was before it is no more.
        let base = self.era.base;
        let sequence = |position: u64| position.saturating_sub(base);
        events.retain(|event| event.sequence > base);
        for topic in &mut topics {
            topic.sequence = sequence(topic.sequence);
            topic.evicted = sequence(topic.evicted);
            topic.hole = sequence(topic.hole);
            topic.cut = topic
                .cut
                .filter(|cut| cut.sequence > base)
                .map(|cut| PastCut { sequence: sequence(cut.sequence), ..cut });
        }
        forgotten.retain(|(_, newest)| *newest > base);
        forgotten.iter_mut().for_each(|(_, newest)| *newest = sequence(*newest));
        let state = State {
            epoch: self.era.epoch,
            sequence: sequence(self.sequence),
            hole: sequence(self.hole),
            topics,
            events: Vec::new(),
            forgotten,
            dropped: sequence(dropped),
            keys: self.keys.all(),
        };
        Gathered { base, state, events }
    }

    /// Goes on where a former process has stopped. Histories may take so much memory here, and
    /// retained values besides. Returns what every shard begins with.
    pub fn restore(&mut self, state: State, memory_max: usize, values_max: usize, now: Stamp) -> Past {
        assert!(self.sequence == 0 && self.era.epoch == state.epoch, "a hub begins with the past");
        self.sequence = state.sequence;
        if let Source::Store(stored) = &mut self.source {
            stored.begin_after(state.sequence);
        }
        self.hole = state.hole;
        self.demand.announce(state.sequence);
        let mut known = self.restore_topics(state.topics);
        let mut events = Vec::with_capacity(state.events.len());
        let (mut memory, mut values, mut is_full) = (0, 0, false);
        for PastEvent { sequence, intake, unix_ms, event } in state.events.into_iter().rev() {
            let Some((topic, account, _)) = known.get_mut(&event.topic) else { continue };
            let (fits, weighs) = (self.fits_alone(&event), Encoded::memory_of(&event));
            if sequence > topic.evicted {
                is_full |= fits && memory + weighs > memory_max;
                if is_full || !fits {
                    // It was promised, and so was all before it.
                    topic.evicted = sequence;
                    topic.cut = Some(Cut { sequence, intake: intake.min(now), published: event.weight() });
                } else {
                    memory += weighs;
                }
            }
            // It may be a retained value still; the newest ones come first.
            if sequence <= topic.evicted {
                if !fits || values + weighs > values_max {
                    continue;
                }
                values += weighs;
            }
            let encoded = Encoded::new(event, self.era, sequence, intake.min(now));
            events.push(Arc::new(encoded.taken_at(unix_ms).counted_in(account)));
        }
        events.reverse();
        self.keys.restore(state.keys);
        Past {
            sequence: state.sequence,
            hole: state.hole,
            topics: known.into_values().map(|(topic, ..)| topic).collect(),
            events,
            forgotten: state.forgotten,
            dropped: state.dropped,
        }
    }

    /// Remembers the topics of a former process. Returns each with where its events are counted,
    /// and the sequence of its last event.
    fn restore_topics(&mut self, topics: Vec<TopicState>) -> HashMap<Topic, (PastTopic, Arc<Account>, u64)> {
        let mut known: HashMap<Topic, (PastTopic, Arc<Account>, u64)> = HashMap::with_capacity(topics.len());
        for topic in topics {
            let TopicState { name, remembered, sequence, id, events, bytes, evicted, cut, hole } = topic;
            let cut = cut.map(Cut::from);
            let past = PastTopic { name: name.clone(), remembered, retains: !remembered, evicted, cut, hole };
            if !remembered {
                known.insert(name, (past, Account::new(self.topics.memory()), sequence));
                continue;
            }
            let record = TopicRecord { topic: name.clone(), sequence, id, events, bytes };
            let recorded = self.topics.restore(record);
            known.insert(name, (past, recorded.account, sequence));
            // There may be fewer topics than there were: nothing of one too many is history.
            if let Some((past, _, last)) = recorded.forgets.and_then(|name| known.get_mut(&name)) {
                (past.remembered, past.evicted, past.cut) = (false, past.evicted.max(*last), None);
            }
        }
        known
    }

    /// True if an event of a former process may be one of this.
    fn fits_alone(&self, event: &crate::event::Event) -> bool {
        Encoded::memory_of(event) <= self.event_memory_max && self.frame_too_long(event).is_none()
    }
}

impl From<Cut> for PastCut {
    fn from(Cut { sequence, intake, published }: Cut) -> PastCut {
        PastCut { sequence, intake, published: published as u64 }
    }
}

impl From<PastCut> for Cut {
    fn from(PastCut { sequence, intake, published }: PastCut) -> Cut {
        Cut { sequence, intake, published: usize::try_from(published).unwrap_or(usize::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::{Memory, path};
    use crate::config::Limits;
    use crate::event::{Data, Epoch, Event};

    const EPOCH: Epoch = Epoch(10_000_000_000_000_000_000);

    fn intake(limits: &Limits) -> Intake {
        let (outbox, _) = path(8).expect("eventfd");
        Intake::new(EPOCH, limits, Arc::default(), Memory::new(limits), vec![outbox])
    }

    fn event(topic: &str, data: &str) -> Event {
        let topic = Topic::new(topic).expect("a topic");
        let data = Data::string(data.to_string());
        Event { topic, data, name: None, id: None, retry_ms: None, key: None }
    }

    /// Ten events of two topics, as a former process hands them over.
    fn state() -> State {
        let topic = |name: &str, sequence| TopicState {
            name: Topic::new(name).expect("a topic"),
            remembered: true,
            sequence,
            id: None,
            events: 5,
            bytes: 10,
            evicted: 0,
            cut: None,
            hole: 0,
        };
        let past = |sequence: u64| {
            let event = event(if sequence % 2 == 1 { "odd" } else { "even" }, "x");
            PastEvent { sequence, intake: Stamp(sequence), unix_ms: 7, event }
        };
        State {
            epoch: EPOCH,
            sequence: 10,
            hole: 0,
            topics: vec![topic("odd", 9), topic("even", 10)],
            events: (1..=10).map(past).collect(),
            forgotten: Vec::new(),
            dropped: 0,
            keys: Vec::new(),
        }
    }

    fn kept(past: &Past) -> Vec<u64> {
        past.events.iter().map(|event| event.sequence).collect()
    }

    fn evicted(past: &Past, name: &str) -> (u64, Option<u64>) {
        let topic = past.topics.iter().find(|topic| topic.name.as_str() == name).expect("it is known");
        (topic.evicted, topic.cut.map(|cut| cut.sequence))
    }

    #[test]
    fn sequences_topics_and_memory_go_on() {
        let mut new = intake(&Limits::default());
        let past = new.restore(state(), usize::MAX, 0, Stamp(100));
        assert_eq!(kept(&past), (1..=10).collect::<Vec<u64>>());
        let held: usize = past.events.iter().map(|event| event.memory()).sum();
        assert_eq!(new.topics().memory().held(), held, "they count as if they were published here");
        assert_eq!(new.accept(event("odd", "y"), Stamp(101)), Ok(11));
        let record = new.topics().get(&Topic::new("odd").expect("a topic")).expect("it is known");
        assert_eq!((record.events, record.sequence), (6, 11));
    }

    #[test]
    fn what_has_no_room_is_dropped_from_the_oldest_on_and_told_as_evicted() {
        let one = Encoded::memory_of(&event("even", "x"));
        let past = intake(&Limits::default()).restore(state(), 3 * one, 0, Stamp(100));
        assert_eq!(kept(&past), [8, 9, 10]);
        assert_eq!((evicted(&past, "odd"), evicted(&past, "even")), ((7, Some(7)), (6, Some(6))));
    }

    #[test]
    fn an_event_that_is_too_large_here_takes_the_older_ones_of_its_topic_with_it() {
        let limits = Limits { message_bytes_max: 100, ..Limits::default() };
        let mut state = state();
        state.events[4].event.data = Data::string("x".repeat(100_000));
        let past = intake(&limits).restore(state, usize::MAX, 0, Stamp(100));
        assert_eq!(kept(&past), [2, 4, 6, 7, 8, 9, 10]);
        assert_eq!((evicted(&past, "odd"), evicted(&past, "even")), ((5, Some(5)), (0, None)));
    }

    #[test]
    fn topics_beyond_the_bound_are_forgotten_with_their_events() {
        let limits = Limits { topics_max: 1, ..Limits::default() };
        let past = intake(&limits).restore(state(), usize::MAX, 0, Stamp(100));
        assert_eq!(kept(&past), [2, 4, 6, 8, 10]);
        assert_eq!((evicted(&past, "odd"), evicted(&past, "even")), ((9, None), (0, None)));
    }

    #[test]
    fn a_retained_value_has_room_of_its_own() {
        let one = Encoded::memory_of(&event("even", "x"));
        let mut state = state();
        state.topics[0].evicted = 9;
        let past = intake(&Limits::default()).restore(state, one, 2 * one, Stamp(100));
        assert_eq!(kept(&past), [8, 9, 10], "history, and the newest that may be values");
        assert_eq!((evicted(&past, "odd"), evicted(&past, "even")), ((9, None), (8, Some(8))));
    }

    #[test]
    fn a_hole_of_one_topic_is_known_to_the_next_process_also_behind_all_that_is_left_of_it() {
        let name = |name: &str| Topic::new(name).expect("a topic");
        let mut old = intake(&Limits::default());
        for (sequence, topic) in [(1, "here"), (2, "quiet")] {
            old.place(event(topic, "x"), sequence, 0, Stamp(sequence));
        }
        old.tell_hole_of(name("quiet"), 3);
        old.tell_hole_of(name("here"), 4);
        let here = PastTopic {
            name: name("here"),
            remembered: true,
            retains: false,
            evicted: 0,
            cut: None,
            hole: 4,
        };
        let windows = HashMap::from([(name("here"), here)]);
        let state = old.gathered(windows, Vec::new(), vec![(name("quiet"), 3)], 0).state;
        let past = intake(&Limits::default()).restore(state, usize::MAX, 0, Stamp(9));
        let told = |topic: &str| {
            let found = past.topics.iter().find(|other| other.name == name(topic));
            found.map(|topic| (topic.evicted, topic.hole)).expect("it is known")
        };
        assert_eq!((past.sequence, told("here"), told("quiet")), (4, (0, 4), (3, 0)));
    }

    #[test]
    fn a_repeat_is_one_in_the_next_process_too() {
        let key = |text: &str| crate::publishing::IdempotencyKey::new(text).ok();
        let mut old = intake(&Limits::default());
        let taken = old.accept_once(event("t", "x"), key("k"), Stamp(5)).expect("room");
        let gathered = old.gathered(HashMap::new(), Vec::new(), Vec::new(), 0);
        let mut new = intake(&Limits::default());
        new.restore(gathered.state, usize::MAX, 0, Stamp(6));
        let again = new.accept_once(event("t", "x"), key("k"), Stamp(7)).expect("it was taken");
        assert_eq!((again.sequence, again.duplicate), (taken.sequence, true));
        assert!(new.accept_once(event("t", "y"), key("k"), Stamp(7)).is_err(), "another event");
    }
}

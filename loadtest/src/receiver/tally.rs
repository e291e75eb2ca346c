//! What the connections of one receiver got, counted per topic; no I/O.
//!
//! There are two ways to know that an event has arrived everywhere. *By bytes*, whose cost does not
//! depend on a protocol's framing: all connections of a topic receive the same bytes, so one of
//! them, the scout, is split, and event k has arrived everywhere once all bytes of the topic
//! together are connections × the scout's bytes at the end of event k. With one event in flight
//! that is exact for every single connection; with more in flight it is the connections' average.
//! What a scout gets is audited; what counting cannot see is a fault of the same length on another
//! connection: an event in place of another, two of them swapped, one lost and one twice. *By
//! events*: every connection is split, and an event has arrived once every connection of its topic
//! has it.
//!
//! Event k, from 1, goes to topic (k - 1) mod topics and carries the sequence (k - 1) / topics + 1.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{LastArrival, latency_histogram};
use crate::stamp::Stamp;

/// Events that are followed at once, over all topics. A sequence beyond comes from a broken or
/// hostile stream.
const PENDING_MAX: usize = 1 << 20;
/// Last arrivals told in one sample; beyond it every second one is left out, and so on.
const LASTS_MAX: usize = 4_096;

/// How arrival is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counting {
    /// By the bytes of all connections and the events of one.
    Bytes,
    /// By the events of every connection.
    Events,
    /// Not at all: who comes and goes or reads slowly has no common end of an event. Deliveries are
    /// counted.
    Deliveries,
}

/// What adds up, over receivers, crowds and time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Deliveries.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
    /// Handshakes that ended.
    pub opened: u64,
    /// Connections that the server ended.
    pub closed_by_server: u64,
    /// CPU nanoseconds of the receivers.
    pub cpu_ns: u64,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, more: &Counts) {
        self.events += more.events;
        self.bytes += more.bytes;
        self.opened += more.opened;
        self.closed_by_server += more.closed_by_server;
        self.cpu_ns += more.cpu_ns;
    }

    /// Mean bytes of an event on the wire, if there was any.
    pub fn frame_bytes(&self) -> Option<usize> {
        (self.events > 0).then(|| (self.bytes as f64 / self.events as f64).round() as usize)
    }
}

/// What happened since the last sample in one receiver.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SampleWord {
    /// What adds up.
    #[serde(flatten)]
    pub counts: Counts,
    /// Connections open now.
    pub connections: u64,
    /// Nanoseconds from the stamp to the arrival, and count.
    pub latencies: Vec<(u64, u64)>,
    /// Events that have reached all connections of their topic in this receiver.
    pub lasts: Vec<LastArrival>,
    /// One of 2^shift events is in `lasts`; never falls.
    pub lasts_shift: u32,
    /// Nanoseconds from when the handshake was due to the response head, and count.
    pub handshakes: Vec<(u64, u64)>,
}

/// How many of the first `events` events go to `topic`.
pub fn events_of_topic(events: u64, topic: usize, topics: usize) -> u64 {
    events.saturating_sub(topic as u64).div_ceil(topics as u64)
}

/// Whether event `event` of `topic` is told although only one of 2^`shift` is: the same choice in
/// every receiver, and no regular one.
pub fn is_told(event: u64, topic: usize, topics: usize, shift: u32) -> bool {
    let number = event.wrapping_mul(topics as u64).wrapping_add(topic as u64);
    shift == 0 || number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - shift) == 0
}

/// How many of `connections` connections from number `first` on are of `topic`: connection k is of
/// topic k mod topics.
pub fn listeners(topic: usize, topics: usize, first: usize, connections: usize) -> usize {
    let ahead = (topic + topics - first % topics) % topics;
    connections.saturating_sub(ahead).div_ceil(topics)
}

/// Deliveries that the events after `from` up to `to` make on `connections` connections from number
/// `first` on.
pub fn owed(topics: usize, first: usize, connections: usize, from: u64, to: u64) -> u64 {
    (0..topics)
        .map(|topic| {
            let events = events_of_topic(to, topic, topics) - events_of_topic(from.min(to), topic, topics);
            events * listeners(topic, topics, first, connections) as u64
        })
        .sum()
}

/// The values and counts of a histogram.
pub fn recorded(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
}

/// Adds values with their counts to a histogram.
pub fn record(histogram: &mut Histogram<u64>, values: &[(u64, u64)]) {
    values.iter().for_each(|&(value, count)| histogram.saturating_record_n(value, count));
}

#[derive(Debug, Default)]
struct Topic {
    connections: u64,
    /// Bytes of all of its connections since zero.
    bytes: u64,
    /// Bytes of its scout at the end of the events that are not complete, oldest first; by bytes
    /// only.
    ends: VecDeque<u64>,
    /// Whole events of its scout since zero, and its bytes at the end of the last of them.
    scout: (u64, u64),
    /// Sequence of the first event since zero.
    first: u64,
    /// Events since zero that all connections have, without a gap.
    complete: u64,
    /// How many connections have each of those after them, the first being `first + complete`; by
    /// events only.
    pending: VecDeque<u64>,
    /// True while it stands in `Tally::dirty`.
    dirty: bool,
}

/// The counters of one receiver.
#[derive(Debug)]
pub struct Tally {
    counting: Counting,
    audit: bool,
    topics: Vec<Topic>,
    /// Entries of all topics' `pending`. 0 <= pending <= PENDING_MAX.
    pending: usize,
    /// Topics with new bytes since the last look.
    dirty: Vec<u32>,
    connections: u64,
    /// Number of the first event since zero, from 1.
    next: u64,
    /// Events since zero that are complete on all topics, without a gap, and how many of them were
    /// told.
    complete: u64,
    told: u64,
    /// Since zero.
    bytes: u64,
    deliveries: u64,
    latencies: Histogram<u64>,
    /// Since the last sample.
    recent: Recent,
}

#[derive(Debug)]
struct Recent {
    /// `Tally::bytes` and `Tally::deliveries` at the last sample.
    bytes: u64,
    deliveries: u64,
    latencies: Histogram<u64>,
    lasts: Vec<LastArrival>,
    lasts_shift: u32,
    opened: u64,
    handshakes: Histogram<u64>,
    closed_by_server: u64,
}

impl Recent {
    fn new() -> Recent {
        Recent {
            bytes: 0,
            deliveries: 0,
            latencies: latency_histogram(),
            lasts: Vec::new(),
            lasts_shift: 0,
            opened: 0,
            handshakes: latency_histogram(),
            closed_by_server: 0,
        }
    }
}

impl Tally {
    /// Counters of connections on `topics` topics; latencies are recorded with `audit`.
    pub fn new(counting: Counting, audit: bool, topics: usize) -> Tally {
        let topics = (0..topics.max(1)).map(|_| Topic { first: 1, ..Topic::default() }).collect();
        Tally {
            counting,
            audit,
            topics,
            pending: 0,
            dirty: Vec::new(),
            connections: 0,
            next: 1,
            complete: 0,
            told: 0,
            bytes: 0,
            deliveries: 0,
            latencies: latency_histogram(),
            recent: Recent::new(),
        }
    }

    /// Counts by events from here on; nothing may have arrived since zero.
    pub fn count_events(&mut self) {
        self.counting = Counting::Events;
        self.topics.iter_mut().for_each(|topic| topic.ends.clear());
    }

    /// One connection more on `topic`; true if it is the topic's first, its scout.
    pub fn join(&mut self, topic: u32) -> bool {
        self.connections += 1;
        let topic = &mut self.topics[topic as usize];
        topic.connections += 1;
        topic.connections == 1
    }

    /// Sequence of the topic's first event since zero.
    pub fn first_of(&self, topic: u32) -> u64 {
        self.topics[topic as usize].first
    }

    /// A connection of `topic` received so many bytes.
    #[inline]
    pub fn add_bytes(&mut self, topic: u32, bytes: u64) {
        self.bytes += bytes;
        if self.counting != Counting::Bytes {
            return;
        }
        let state = &mut self.topics[topic as usize];
        state.bytes += bytes;
        if !state.dirty {
            state.dirty = true;
            self.dirty.push(topic);
        }
    }

    /// The scout of `topic` has a whole event that ends at its byte `end` since zero.
    pub fn scouted(&mut self, topic: u32, end: u64) {
        let topic = &mut self.topics[topic as usize];
        topic.scout = (topic.scout.0 + 1, end);
        // More come from a broken or hostile stream only; what has no end here is never complete.
        if self.counting == Counting::Bytes && topic.ends.len() < PENDING_MAX {
            topic.ends.push_back(end);
        }
    }

    /// A connection of `topic` has an event, and `is_new` unless it had it before.
    #[inline]
    pub fn delivered(&mut self, topic: u32, stamp: Option<Stamp>, is_new: bool, now_ns: u64) {
        self.deliveries += 1;
        let Some(stamp) = stamp else { return };
        if self.audit {
            self.recent.latencies.saturating_record(now_ns.saturating_sub(stamp.time_ns));
        }
        if is_new && self.counting == Counting::Events {
            self.follow(topic, stamp, now_ns);
        }
    }

    fn follow(&mut self, number: u32, stamp: Stamp, now_ns: u64) {
        let topic = &mut self.topics[number as usize];
        let Some(at) = stamp.sequence.checked_sub(topic.first + topic.complete) else { return };
        if at >= topic.pending.len() as u64 {
            let grown = (at - topic.pending.len() as u64).saturating_add(1);
            if grown > (PENDING_MAX - self.pending) as u64 {
                return;
            }
            self.pending += grown as usize;
            topic.pending.resize(at as usize + 1, 0);
        }
        let at = at as usize;
        topic.pending[at] += 1;
        if topic.pending[at] < topic.connections {
            return;
        }
        while topic.pending.front().is_some_and(|arrived| *arrived >= topic.connections) {
            topic.pending.pop_front();
            self.pending -= 1;
            topic.complete += 1;
        }
        if self.audit {
            self.arrived_everywhere(LastArrival {
                event: stamp.sequence,
                topic: number as usize,
                stamp_ns: stamp.time_ns,
                arrival_ns: now_ns,
            });
        }
    }

    fn arrived_everywhere(&mut self, last: LastArrival) {
        let topics = self.topics.len();
        let recent = &mut self.recent;
        if !is_told(last.event, last.topic, topics, recent.lasts_shift) {
            return;
        }
        recent.lasts.push(last);
        while recent.lasts.len() > LASTS_MAX {
            recent.lasts_shift += 1;
            let shift = recent.lasts_shift;
            recent.lasts.retain(|last| is_told(last.event, last.topic, topics, shift));
        }
    }

    /// A handshake ended after so many nanoseconds.
    pub fn opened(&mut self, handshake_ns: u64) {
        self.recent.opened += 1;
        self.recent.handshakes.saturating_record(handshake_ns);
    }

    /// The server ended a connection.
    pub fn closed_by_server(&mut self) {
        self.recent.closed_by_server += 1;
    }

    /// How many events since zero are complete everywhere, if that has not been told.
    pub fn progress(&mut self) -> Option<u64> {
        for number in std::mem::take(&mut self.dirty) {
            let topic = &mut self.topics[number as usize];
            topic.dirty = false;
            while topic.ends.front().is_some_and(|end| topic.bytes >= end * topic.connections) {
                topic.ends.pop_front();
                topic.complete += 1;
                self.deliveries += topic.connections;
            }
        }
        let topics = self.topics.len() as u64;
        while self.connections > 0 && self.counting != Counting::Deliveries {
            let before = self.next + self.complete - 1;
            let topic = &self.topics[(before % topics) as usize];
            if topic.connections > 0 && before / topics + 1 >= topic.first + topic.complete {
                break;
            }
            self.complete += 1;
        }
        if self.complete == self.told {
            return None;
        }
        self.told = self.complete;
        Some(self.complete)
    }

    /// Sets everything to zero; `next` is the number of the event expected first.
    pub fn zero(&mut self, next: u64) {
        let topics = self.topics.len();
        for (number, topic) in self.topics.iter_mut().enumerate() {
            let first = events_of_topic(next.saturating_sub(1), number, topics) + 1;
            let connections = topic.connections;
            *topic = Topic { connections, first, ..Topic::default() };
        }
        self.dirty.clear();
        self.pending = 0;
        self.next = next.max(1);
        (self.complete, self.told, self.bytes, self.deliveries) = (0, 0, 0, 0);
        self.latencies.reset();
        let shift = self.recent.lasts_shift;
        self.recent = Recent { lasts_shift: shift, ..Recent::new() };
    }

    /// Bytes of all connections since zero.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Deliveries since zero; by bytes those of complete events.
    pub fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Whole events of the topic's scout since zero, and its bytes at the end of the last of them.
    pub fn scout(&self, topic: u32) -> (u64, u64) {
        self.topics[topic as usize].scout
    }

    /// Latencies since zero.
    pub fn latencies(&self) -> Vec<(u64, u64)> {
        let mut all = self.latencies.clone();
        all.add(&self.recent.latencies).expect("both have the same bounds");
        recorded(&all)
    }

    /// What happened since the last sample; the caller adds what it alone knows.
    pub fn sample(&mut self) -> SampleWord {
        let recent = &mut self.recent;
        self.latencies.add(&recent.latencies).expect("both have the same bounds");
        let sample = SampleWord {
            counts: Counts {
                events: self.deliveries - recent.deliveries,
                bytes: self.bytes - recent.bytes,
                opened: std::mem::take(&mut recent.opened),
                closed_by_server: std::mem::take(&mut recent.closed_by_server),
                cpu_ns: 0,
            },
            connections: 0,
            latencies: recorded(&recent.latencies),
            lasts: std::mem::take(&mut recent.lasts),
            lasts_shift: recent.lasts_shift,
            handshakes: recorded(&recent.handshakes),
        };
        (recent.bytes, recent.deliveries) = (self.bytes, self.deliveries);
        recent.latencies.reset();
        recent.handshakes.reset();
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(sequence: u64) -> Option<Stamp> {
        Some(Stamp { sequence, time_ns: 100 })
    }

    #[test]
    fn events_go_round_the_topics() {
        assert_eq!((0..3).map(|topic| events_of_topic(7, topic, 3)).collect::<Vec<_>>(), [3, 2, 2]);
        assert_eq!((0..3).map(|topic| events_of_topic(0, topic, 3)).collect::<Vec<_>>(), [0, 0, 0]);
        assert_eq!(events_of_topic(9, 0, 1), 9);
    }

    #[test]
    fn what_is_owed_is_what_counting_one_by_one_gives() {
        for (topics, first, connections, from, to) in [
            (1, 0, 10, 0, 7),
            (1, 7, 10, 47, 50),
            (3, 0, 10, 0, 7),
            (3, 2, 4, 2, 9),
            (3, 4, 4, 4, 7),
            (5, 0, 2, 0, 5),
            (5, 7, 3, 1, 100),
            (4, 1, 0, 0, 9),
            (2, 5, 9, 3, 3),
        ] {
            let counted: usize = (from + 1..=to)
                .map(|event| (event as usize - 1) % topics)
                .map(|topic| (first..first + connections).filter(|k| k % topics == topic).count())
                .sum();
            let case = (topics, first, connections, from, to);
            assert_eq!(owed(topics, first, connections, from, to), counted as u64, "{case:?}");
        }
        assert_eq!((0..5).map(|topic| listeners(topic, 5, 3, 2)).collect::<Vec<_>>(), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn by_events_an_event_is_complete_when_each_connection_of_its_topic_has_it() {
        let mut tally = Tally::new(Counting::Events, true, 2);
        assert_eq!([0, 0, 1].map(|topic| tally.join(topic)), [true, false, true]);
        tally.zero(4); // topic 1 is next, with its sequence 2
        assert_eq!((tally.first_of(0), tally.first_of(1)), (3, 2));
        tally.delivered(0, stamp(3), true, 150);
        tally.delivered(0, stamp(3), true, 160);
        assert_eq!(tally.progress(), None, "event 4 is missing");
        tally.delivered(1, stamp(2), false, 170);
        assert_eq!(tally.progress(), None, "a duplicate is no arrival");
        tally.delivered(1, stamp(2), true, 170);
        assert_eq!(tally.progress(), Some(2));
        let sample = tally.sample();
        assert_eq!(sample.counts.events, 4);
        let last = |event, topic, arrival_ns| LastArrival { event, topic, stamp_ns: 100, arrival_ns };
        assert_eq!(sample.lasts, [last(3, 0, 160), last(2, 1, 170)]);
        assert_eq!(sample.latencies.iter().map(|(_, count)| count).sum::<u64>(), 4);
        assert_eq!(tally.sample().counts.events, 0);
        assert_eq!(tally.latencies().iter().map(|(_, count)| count).sum::<u64>(), 4, "since zero");
    }

    #[test]
    fn by_bytes_an_event_is_complete_when_all_bytes_up_to_its_end_are_here() {
        let mut tally = Tally::new(Counting::Bytes, false, 1);
        assert_eq!([0, 0].map(|topic| tally.join(topic)), [true, false]);
        tally.add_bytes(0, 10);
        tally.scouted(0, 10);
        assert_eq!(tally.progress(), None);
        tally.add_bytes(0, 9);
        assert_eq!(tally.progress(), None);
        tally.add_bytes(0, 1);
        assert_eq!(tally.progress(), Some(1));
        assert_eq!((tally.deliveries(), tally.scout(0)), (2, (1, 10)));
    }

    #[test]
    fn an_absurd_sequence_costs_no_memory() {
        let mut tally = Tally::new(Counting::Events, true, 1);
        tally.join(0);
        tally.delivered(0, stamp(u64::MAX), true, 150);
        assert!(tally.topics[0].pending.is_empty());
    }

    #[test]
    fn all_topics_share_one_limit_of_followed_events_and_give_back_what_is_complete() {
        let mut tally = Tally::new(Counting::Events, true, 3);
        for topic in 0..3 {
            tally.join(topic);
        }
        let half = PENDING_MAX as u64 / 2;
        tally.delivered(0, stamp(half + 1), true, 150);
        tally.delivered(1, stamp(half + 1), true, 150);
        assert!(tally.topics[1].pending.is_empty(), "one too many");
        tally.delivered(1, stamp(half - 1), true, 150);
        tally.delivered(2, stamp(1), true, 150);
        assert_eq!(tally.topics[2].complete, 0, "no room for it");
        tally.delivered(1, stamp(1), true, 150);
        tally.delivered(2, stamp(1), true, 150);
        assert_eq!((tally.pending, tally.topics[2].complete), (PENDING_MAX - 1, 1));
        tally.zero(1);
        assert_eq!(tally.pending, 0);
    }

    #[test]
    fn too_many_last_arrivals_are_told_by_an_even_selection() {
        let mut tally = Tally::new(Counting::Events, true, 1);
        tally.join(0);
        for sequence in 1..=40_000 {
            tally.delivered(0, stamp(sequence), true, 150);
        }
        let sample = tally.sample();
        assert!(sample.lasts.len() <= LASTS_MAX && sample.lasts_shift >= 4, "{}", sample.lasts_shift);
        let standing_for = sample.lasts.len() << sample.lasts_shift;
        assert!((36_000..44_000).contains(&standing_for), "{standing_for}");
        assert!(sample.lasts.iter().all(|last| is_told(last.event, 0, 1, sample.lasts_shift)));
    }
}

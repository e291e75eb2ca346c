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
//! What is counted is counted per strand (see [`Rota`]): one publisher's events to one topic.

use std::collections::VecDeque;
use std::ops::Range;

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

/// How the events of a crowd go round: event k, from 1, is of strand (k - 1) mod strands, and has
/// the sequence (k - 1) / strands + 1 there. A strand is what one voice says on one stream; a
/// stream is what a connection hears, one topic or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rota {
    /// Connection k hears stream k mod streams. At least 1.
    pub streams: usize,
    /// Publishers that take turns on each topic. At least 1.
    pub voices: usize,
}

impl Rota {
    /// Lanes of all streams.
    pub fn strands(self) -> usize {
        self.streams * self.voices
    }

    /// The strands that a connection of `stream` hears.
    pub fn heard(self, stream: u32) -> Range<usize> {
        let first = stream as usize * self.voices;
        first..first + self.voices
    }

    /// Strand and sequence of event `number`; none of number 0, which no publisher gives.
    pub fn place(self, number: u64) -> Option<(usize, u64)> {
        let (before, strands) = (number.checked_sub(1)?, self.strands() as u64);
        Some(((before % strands) as usize, before / strands + 1))
    }

    /// How many of `connections` connections from number `first` on hear `strand`.
    pub fn listeners(self, strand: usize, first: usize, connections: usize) -> usize {
        let (stream, streams) = (strand / self.voices, self.streams);
        let ahead = (stream + streams - first % streams) % streams;
        connections.saturating_sub(ahead).div_ceil(streams)
    }

    /// Deliveries that the events after `from` up to `to` make on `connections` connections from
    /// number `first` on.
    pub fn owed(self, first: usize, connections: usize, from: u64, to: u64) -> u64 {
        let strands = self.strands();
        (0..strands)
            .map(|strand| {
                let events = events_of(to, strand, strands) - events_of(from.min(to), strand, strands);
                events * self.listeners(strand, first, connections) as u64
            })
            .sum()
    }
}

/// How many of the first `events` events go to `strand`.
pub fn events_of(events: u64, strand: usize, strands: usize) -> u64 {
    events.saturating_sub(strand as u64).div_ceil(strands as u64)
}

/// Whether event `number` is told although only one of 2^`shift` is: the same choice in every
/// receiver, and no regular one.
pub fn is_told(number: u64, shift: u32) -> bool {
    shift == 0 || number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - shift) == 0
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
struct Strand {
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
    strands: Vec<Strand>,
    /// Entries of all strands' `pending`. 0 <= pending <= PENDING_MAX.
    pending: usize,
    /// Lanes with new bytes since the last look.
    dirty: Vec<u32>,
    connections: u64,
    /// Number of the first event since zero, from 1.
    next: u64,
    /// Events since zero that are complete on all strands, without a gap, and how many of them were
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
    /// Counters of connections that hear `strands` strands; latencies are recorded with `audit`.
    pub fn new(counting: Counting, audit: bool, strands: usize) -> Tally {
        let strands = (0..strands.max(1)).map(|_| Strand { first: 1, ..Strand::default() }).collect();
        Tally {
            counting,
            audit,
            strands,
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
        self.strands.iter_mut().for_each(|strand| strand.ends.clear());
    }

    /// One connection more that hears these strands; true if it is the first, the scout.
    pub fn join(&mut self, heard: Range<usize>) -> bool {
        self.connections += 1;
        let strands = &mut self.strands[heard];
        strands.iter_mut().for_each(|strand| strand.connections += 1);
        strands[0].connections == 1
    }

    /// Sequence of the strand's first event since zero.
    pub fn first_of(&self, strand: usize) -> u64 {
        self.strands[strand].first
    }

    /// A connection of `strand` received so many bytes.
    #[inline]
    pub fn add_bytes(&mut self, strand: u32, bytes: u64) {
        self.bytes += bytes;
        if self.counting != Counting::Bytes {
            return;
        }
        let state = &mut self.strands[strand as usize];
        state.bytes += bytes;
        if !state.dirty {
            state.dirty = true;
            self.dirty.push(strand);
        }
    }

    /// The scout of `strand` has a whole event that ends at its byte `end` since zero.
    pub fn scouted(&mut self, strand: u32, end: u64) {
        let strand = &mut self.strands[strand as usize];
        strand.scout = (strand.scout.0 + 1, end);
        // More come from a broken or hostile stream only; what has no end here is never complete.
        if self.counting == Counting::Bytes && strand.ends.len() < PENDING_MAX {
            strand.ends.push_back(end);
        }
    }

    /// A connection of `strand` has an event, and `is_new` unless it had it before.
    #[inline]
    pub fn delivered(&mut self, strand: u32, stamp: Option<Stamp>, is_new: bool, now_ns: u64) {
        self.deliveries += 1;
        let Some(stamp) = stamp else { return };
        if self.audit {
            self.recent.latencies.saturating_record(now_ns.saturating_sub(stamp.time_ns));
        }
        if is_new && self.counting == Counting::Events {
            self.follow(strand, stamp, now_ns);
        }
    }

    fn follow(&mut self, number: u32, stamp: Stamp, now_ns: u64) {
        let sequence = stamp.sequence.saturating_sub(1) / self.strands.len() as u64 + 1;
        let strand = &mut self.strands[number as usize];
        let Some(at) = sequence.checked_sub(strand.first + strand.complete) else { return };
        if at >= strand.pending.len() as u64 {
            let grown = (at - strand.pending.len() as u64).saturating_add(1);
            if grown > (PENDING_MAX - self.pending) as u64 {
                return;
            }
            self.pending += grown as usize;
            strand.pending.resize(at as usize + 1, 0);
        }
        let at = at as usize;
        strand.pending[at] += 1;
        if strand.pending[at] < strand.connections {
            return;
        }
        while strand.pending.front().is_some_and(|arrived| *arrived >= strand.connections) {
            strand.pending.pop_front();
            self.pending -= 1;
            strand.complete += 1;
        }
        if self.audit {
            self.arrived_everywhere(LastArrival {
                number: stamp.sequence,
                stamp_ns: stamp.time_ns,
                arrival_ns: now_ns,
            });
        }
    }

    fn arrived_everywhere(&mut self, last: LastArrival) {
        let recent = &mut self.recent;
        if !is_told(last.number, recent.lasts_shift) {
            return;
        }
        recent.lasts.push(last);
        while recent.lasts.len() > LASTS_MAX {
            recent.lasts_shift += 1;
            let shift = recent.lasts_shift;
            recent.lasts.retain(|last| is_told(last.number, shift));
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
            let strand = &mut self.strands[number as usize];
            strand.dirty = false;
            while strand.ends.front().is_some_and(|end| strand.bytes >= end * strand.connections) {
                strand.ends.pop_front();
                strand.complete += 1;
                self.deliveries += strand.connections;
            }
        }
        let strands = self.strands.len() as u64;
        while self.connections > 0 && self.counting != Counting::Deliveries {
            let before = self.next + self.complete - 1;
            let strand = &self.strands[(before % strands) as usize];
            if strand.connections > 0 && before / strands + 1 >= strand.first + strand.complete {
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
        let strands = self.strands.len();
        for (number, strand) in self.strands.iter_mut().enumerate() {
            let first = events_of(next.saturating_sub(1), number, strands) + 1;
            let connections = strand.connections;
            *strand = Strand { connections, first, ..Strand::default() };
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

    /// Whole events of the strand's scout since zero, and its bytes at the end of the last of them.
    pub fn scout(&self, strand: u32) -> (u64, u64) {
        self.strands[strand as usize].scout
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

    /// Of event `number`.
    fn stamp(number: u64) -> Option<Stamp> {
        Some(Stamp { sequence: number, time_ns: 100 })
    }

    #[test]
    fn events_go_round_the_strands() {
        assert_eq!((0..3).map(|strand| events_of(7, strand, 3)).collect::<Vec<_>>(), [3, 2, 2]);
        assert_eq!((0..3).map(|strand| events_of(0, strand, 3)).collect::<Vec<_>>(), [0, 0, 0]);
        assert_eq!(events_of(9, 0, 1), 9);
    }

    #[test]
    fn what_is_owed_is_what_counting_one_by_one_gives() {
        for (strands, first, connections, from, to) in [
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
                .map(|event| (event as usize - 1) % strands)
                .map(|strand| (first..first + connections).filter(|k| k % strands == strand).count())
                .sum();
            let case = (strands, first, connections, from, to);
            let rota = Rota { streams: strands, voices: 1 };
            assert_eq!(rota.owed(first, connections, from, to), counted as u64, "{case:?}");
        }
        let five = Rota { streams: 5, voices: 1 };
        assert_eq!([0, 1, 2, 3, 4].map(|strand| five.listeners(strand, 3, 2)), [0, 0, 0, 1, 1]);
    }

    #[test]
    fn every_voice_of_a_topic_has_a_strand_of_its_own_and_a_pattern_hears_all() {
        let rota = Rota { streams: 3, voices: 2 };
        assert_eq!([1, 2, 3, 7].map(|number| rota.place(number)), [(0, 1), (1, 1), (2, 1), (0, 2)].map(Some));
        assert_eq!((rota.place(0), rota.heard(2)), (None, 4..6));
        // Four connections on three topics: both voices of topic 0 are heard twice.
        assert_eq!((rota.listeners(1, 0, 4), rota.owed(0, 4, 0, 6), rota.owed(0, 4, 0, 1)), (2, 8, 2));
        let all = Rota { streams: 1, voices: 2 };
        assert_eq!((all.place(4), all.heard(0), all.owed(5, 4, 0, 6)), (Some((1, 2)), 0..2, 24));
    }

    #[test]
    fn by_events_an_event_is_complete_when_each_connection_of_its_strand_has_it() {
        let mut tally = Tally::new(Counting::Events, true, 2);
        assert_eq!([0, 0, 1].map(|strand| tally.join(strand..strand + 1)), [true, false, true]);
        tally.zero(4); // strand 1 is next, with its sequence 2
        assert_eq!((tally.first_of(0), tally.first_of(1)), (3, 2));
        tally.delivered(0, stamp(5), true, 150);
        tally.delivered(0, stamp(5), true, 160);
        assert_eq!(tally.progress(), None, "event 4 is missing");
        tally.delivered(1, stamp(4), false, 170);
        assert_eq!(tally.progress(), None, "a duplicate is no arrival");
        tally.delivered(1, stamp(4), true, 170);
        assert_eq!(tally.progress(), Some(2));
        let sample = tally.sample();
        assert_eq!(sample.counts.events, 4);
        let last = |number, arrival_ns| LastArrival { number, stamp_ns: 100, arrival_ns };
        assert_eq!(sample.lasts, [last(5, 160), last(4, 170)]);
        assert_eq!(sample.latencies.iter().map(|(_, count)| count).sum::<u64>(), 4);
        assert_eq!(tally.sample().counts.events, 0);
        assert_eq!(tally.latencies().iter().map(|(_, count)| count).sum::<u64>(), 4, "since zero");
    }

    #[test]
    fn by_bytes_an_event_is_complete_when_all_bytes_up_to_its_end_are_here() {
        let mut tally = Tally::new(Counting::Bytes, false, 1);
        assert_eq!([0, 0].map(|strand| tally.join(strand..strand + 1)), [true, false]);
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
        tally.join(0..1);
        tally.delivered(0, stamp(u64::MAX), true, 150);
        assert!(tally.strands[0].pending.is_empty());
    }

    #[test]
    fn all_strands_share_one_limit_of_followed_events_and_give_back_what_is_complete() {
        let mut tally = Tally::new(Counting::Events, true, 3);
        for strand in 0..3 {
            tally.join(strand..strand + 1);
        }
        let half = PENDING_MAX as u64 / 2;
        let stamp = |strand: u64, sequence: u64| stamp((sequence - 1) * 3 + strand + 1);
        tally.delivered(0, stamp(0, half + 1), true, 150);
        tally.delivered(1, stamp(1, half + 1), true, 150);
        assert!(tally.strands[1].pending.is_empty(), "one too many");
        tally.delivered(1, stamp(1, half - 1), true, 150);
        tally.delivered(2, stamp(2, 1), true, 150);
        assert_eq!(tally.strands[2].complete, 0, "no room for it");
        tally.delivered(1, stamp(1, 1), true, 150);
        tally.delivered(2, stamp(2, 1), true, 150);
        assert_eq!((tally.pending, tally.strands[2].complete), (PENDING_MAX - 1, 1));
        tally.zero(1);
        assert_eq!(tally.pending, 0);
    }

    #[test]
    fn too_many_last_arrivals_are_told_by_an_even_selection() {
        let mut tally = Tally::new(Counting::Events, true, 1);
        tally.join(0..1);
        for sequence in 1..=40_000 {
            tally.delivered(0, stamp(sequence), true, 150);
        }
        let sample = tally.sample();
        assert!(sample.lasts.len() <= LASTS_MAX && sample.lasts_shift >= 4, "{}", sample.lasts_shift);
        let standing_for = sample.lasts.len() << sample.lasts_shift;
        assert!((36_000..44_000).contains(&standing_for), "{standing_for}");
        assert!(sample.lasts.iter().all(|last| is_told(last.number, sample.lasts_shift)));
    }
}

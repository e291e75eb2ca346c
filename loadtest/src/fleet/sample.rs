//! Samples of several receivers, made one.
//!
//! An event has reached all subscribers when every receiver that has connections of its topic has
//! told so; the last of these arrivals counts. Receivers that have much to tell leave events out,
//! each its own share, but by one rule (`is_told`): what the one with the smallest share tells, all
//! of them tell.

use std::collections::HashMap;

use crate::receiver::{
    Counts, LastArrival, SampleWord, is_told, latency_histogram, listeners, record, recorded,
};

/// Last arrivals that wait for the word of further receivers. Beyond it something was lost, and the
/// audit tells what.
const PENDING_MAX: usize = 1 << 18;

/// What happened since the last sample, over all receivers.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// What adds up.
    pub counts: Counts,
    /// Connections open at present.
    pub connections: u64,
    /// From the stamp to each subscriber: nanoseconds and count; empty without audit.
    pub latencies: Vec<(u64, u64)>,
    /// Events that have reached all of the fleet's connections of their topic; only with audit and
    /// steady subscribers.
    pub lasts: Vec<LastArrival>,
    /// How many events each of `lasts` stands for: 1 unless there are too many to tell.
    pub lasts_weight: u64,
    /// From the connect, or from when it was due at a time of its own, to the response head:
    /// nanoseconds and count.
    pub handshakes: Vec<(u64, u64)>,
}

/// Events that some of the receivers have told: how many of these, and the latest arrival.
#[derive(Debug, Default)]
pub struct Lasts {
    pending: HashMap<(usize, u64), (usize, LastArrival)>,
}

impl Sample {
    /// The sum of what receivers said, whose numbers of connections, in order from number `first`
    /// on, are `receivers`.
    pub fn merge(
        samples: Vec<SampleWord>,
        lasts: &mut Lasts,
        topics: usize,
        first: usize,
        receivers: &[usize],
    ) -> Sample {
        let mut merged = Sample::default();
        let (mut latencies, mut handshakes) = (latency_histogram(), latency_histogram());
        let mut shift = 0;
        let mut told = Vec::new();
        for sample in samples {
            merged.counts.add(&sample.counts);
            merged.connections += sample.connections;
            record(&mut latencies, &sample.latencies);
            record(&mut handshakes, &sample.handshakes);
            shift = shift.max(sample.lasts_shift);
            told.extend(sample.lasts);
        }
        merged.latencies = recorded(&latencies);
        merged.handshakes = recorded(&handshakes);
        merged.lasts =
            lasts.merge(told, topics, shift, |topic| receivers_of(topic, topics, first, receivers));
        merged.lasts_weight = 1 << shift;
        merged
    }
}

impl Lasts {
    /// The events that are now told by as many receivers as `wanted` says for their topic.
    fn merge(
        &mut self,
        told: Vec<LastArrival>,
        topics: usize,
        shift: u32,
        wanted: impl Fn(usize) -> usize,
    ) -> Vec<LastArrival> {
        let mut merged = Vec::new();
        for last in told {
            if !is_told(last.event, last.topic, topics, shift) {
                continue;
            }
            let key = (last.topic, last.event);
            let (receivers, latest) = self.pending.entry(key).or_insert((0, last));
            *receivers += 1;
            latest.arrival_ns = latest.arrival_ns.max(last.arrival_ns);
            if *receivers >= wanted(last.topic) {
                merged.push(*latest);
                self.pending.remove(&key);
            }
        }
        self.pending.retain(|&(topic, event), _| is_told(event, topic, topics, shift));
        if self.pending.len() > PENDING_MAX {
            self.pending.clear();
        }
        merged
    }
}

/// How many of the receivers have connections of `topic`.
fn receivers_of(topic: usize, topics: usize, first: usize, receivers: &[usize]) -> usize {
    let mut from = first;
    let mut found = 0;
    for &connections in receivers {
        found += usize::from(listeners(topic, topics, from, connections) > 0);
        from += connections;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(event: u64, topic: usize, arrival_ns: u64) -> LastArrival {
        LastArrival { event, topic, stamp_ns: 1, arrival_ns }
    }

    fn word(lasts: &[LastArrival]) -> SampleWord {
        let counts = Counts { events: 5, ..Counts::default() };
        SampleWord { counts, latencies: vec![(5_000, 2)], lasts: lasts.to_vec(), ..SampleWord::default() }
    }

    #[test]
    fn an_event_has_arrived_when_the_last_receiver_of_its_topic_says_so() {
        // Topics 0, 1 | 2 | 0: only topic 0 is on two receivers.
        let receivers = [2, 1, 1];
        let mut lasts = Lasts::default();
        let mut merge = |words: Vec<SampleWord>| Sample::merge(words, &mut lasts, 3, 0, &receivers);
        let sample = merge(vec![word(&[last(1, 0, 70), last(1, 1, 20)]), word(&[last(1, 2, 30)]), word(&[])]);
        assert_eq!(sample.lasts, [last(1, 1, 20), last(1, 2, 30)]);
        assert_eq!((sample.counts.events, sample.lasts_weight), (15, 1));
        assert_eq!(sample.latencies.iter().map(|(_, count)| count).sum::<u64>(), 6);
        let sample = merge(vec![word(&[]), word(&[]), word(&[last(1, 0, 60)])]);
        assert_eq!(sample.lasts, [last(1, 0, 70)], "the later of both arrivals");
        assert!(lasts.pending.is_empty());
    }

    #[test]
    fn of_two_selections_the_smaller_one_counts_and_nothing_stays_behind() {
        let all: Vec<LastArrival> = (1..=1_000).map(|event| last(event, 0, 50)).collect();
        let some: Vec<LastArrival> =
            all.iter().copied().filter(|last| is_told(last.event, 0, 1, 3)).collect();
        let mut lasts = Lasts::default();
        let words = vec![word(&all), SampleWord { lasts_shift: 3, ..word(&some) }];
        let sample = Sample::merge(words, &mut lasts, 1, 0, &[5, 5]);
        assert_eq!((sample.lasts.len(), sample.lasts_weight), (some.len(), 8));
        assert!(lasts.pending.is_empty());
    }

    #[test]
    fn a_topic_is_on_the_receivers_that_its_connections_fall_to() {
        assert_eq!(
            (0..5).map(|topic| receivers_of(topic, 5, 3, &[2, 4])).collect::<Vec<_>>(),
            [1, 1, 1, 2, 1]
        );
        assert_eq!(receivers_of(0, 1, 9, &[1, 1, 1]), 3);
    }
}

//! What a storm does to the subscribers that stay: their latencies while it lasts, beside those of
//! calm.
//!
//! It lasts from the interval in which subscribers are dropped to the one in which the last of them
//! is back, both of them whole. So the interval's length blurs its bounds, and what counts for it
//! is never less than it should be.

use hdrhistogram::Histogram;

use crate::outcome::{Interval, Latency, Storm};
use crate::receiver::latency_histogram;
use crate::workload::{Behaviour, Workload};

/// Sorts the latencies of a run.
pub struct StormWatch {
    /// Seconds from the start of the measurement to the first drop.
    at_seconds: f64,
    /// Subscribers that are dropped, over all crowds that storm.
    dropped: u64,
    /// Of them, those that are back. It may count others too, if any come and go.
    back: u64,
    /// Seconds in which subscribers were away.
    seconds: f64,
    calm: Histogram<u64>,
    during: Histogram<u64>,
}

impl StormWatch {
    /// For a run of `workload`; none if nobody storms.
    pub fn of(workload: &Workload) -> Option<StormWatch> {
        let (mut at_seconds, mut dropped) = (f64::INFINITY, 0);
        for crowd in &workload.subscribers {
            if let Behaviour::Storm { at_seconds: at, share } = crowd.behaviour {
                at_seconds = at_seconds.min(at);
                dropped += (crowd.connections as f64 * share.clamp(0.0, 1.0)).round() as u64;
            }
        }
        (dropped > 0).then(|| StormWatch {
            at_seconds,
            dropped,
            back: 0,
            seconds: 0.0,
            calm: latency_histogram(),
            during: latency_histogram(),
        })
    }

    /// Takes an interval: what was recorded in it, and how many connections were opened.
    pub fn take(&mut self, interval: &Interval, recorded: &Histogram<u64>, opened: u64) {
        let lasts = interval.at > self.at_seconds && self.back < self.dropped;
        let of = if lasts { &mut self.during } else { &mut self.calm };
        of.add(recorded).expect("all latencies have the same bounds");
        if lasts {
            self.back += opened;
            self.seconds += interval.seconds;
        }
    }

    /// What it came to. `last_back` is the longest time from a drop to the answer at the return, in
    /// nanoseconds.
    pub fn told(&self, last_back: u64) -> Storm {
        Storm {
            dropped: self.dropped,
            back_seconds: (self.back >= self.dropped).then_some(last_back as f64 / 1e9),
            seconds: self.seconds,
            calm: Latency::of(&self.calm),
            during: Latency::of(&self.during),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Overrides, load};

    fn recorded(ms: u64) -> Histogram<u64> {
        let mut histogram = latency_histogram();
        histogram.saturating_record(ms * 1_000_000);
        histogram
    }

    #[test]
    fn latencies_count_for_the_storm_until_everybody_is_back() {
        let storm = load("storm", &Overrides { connections: Some(160), ..Overrides::default() });
        let mut watch = StormWatch::of(&storm.expect("built in")).expect("it storms");
        // At 8 s 150 are dropped. The last of them is back in the third interval from there.
        for (at, ms, opened) in
            [(7.6, 1, 0), (8.1, 10, 40), (8.6, 11, 60), (9.1, 12, 50), (9.6, 2, 0), (10.1, 3, 0)]
        {
            watch.take(&Interval { at, seconds: 0.5, ..Interval::default() }, &recorded(ms), opened);
        }
        let told = watch.told(900_000_000);
        assert_eq!((told.dropped, told.back_seconds, told.seconds), (150, Some(0.9), 1.5));
        let largest = |latency: &Latency| latency.at(1.0).map(|ns| ns / 1_000_000);
        assert_eq!((told.calm.count, largest(&told.calm)), (3, Some(3)));
        assert_eq!((told.during.count, largest(&told.during)), (3, Some(12)));
    }

    #[test]
    fn a_storm_that_is_not_over_has_no_end_and_calm_runs_have_no_storm() {
        let load = |name| load(name, &Overrides::default()).expect("built in");
        let mut watch = StormWatch::of(&load("reconnect-storm")).expect("it storms");
        watch.take(&Interval { at: 3.2, seconds: 0.5, ..Interval::default() }, &recorded(5), 999);
        let told = watch.told(7);
        assert_eq!((told.dropped, told.back_seconds, told.during.count), (1_000, None, 1));
        assert!(StormWatch::of(&load("ticker")).is_none());
    }
}

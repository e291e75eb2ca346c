//! A topic with its subscribers, published to on an open loop by a process of its own: events carry
//! the time at which they were due, so a publisher that is held up shows in the latencies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::ARRIVE_LIMIT;
use crate::fleet::Fleet;
use crate::publisher::PublishProcess;
use crate::receiver::latency_histogram;
use crate::workload::Pace;

/// How long the neighbour's last events may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// From one look at processes to the next.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Latencies in microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latencies {
    /// Deliveries.
    pub count: u64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Largest.
    pub max_us: f64,
}

impl Latencies {
    /// From a histogram in nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Latencies {
        let us = |ns: u64| ns as f64 / 1e3;
        Latencies {
            count: histogram.len(),
            p50_us: us(histogram.value_at_quantile(0.5)),
            p99_us: us(histogram.value_at_quantile(0.99)),
            max_us: us(histogram.max()),
        }
    }
}

/// A topic that is published to at a rate, its publisher being a process of its own.
pub struct Topic {
    fleets: Vec<Fleet>,
    publisher: PublishProcess,
    /// Events per second.
    pub rate: f64,
    /// CPU nanoseconds of its receivers and its publisher that nobody asked for yet.
    used_ns: u64,
}

impl Topic {
    /// Subscribers that are all there, and the publisher that is theirs.
    pub fn new(fleets: Vec<Fleet>, publisher: PublishProcess, rate: f64) -> Topic {
        Topic { fleets, publisher, rate, used_ns: 0 }
    }

    /// CPU nanoseconds of its receivers and its publisher since this was last asked.
    pub fn used(&mut self) -> Result<u64> {
        let mut used = std::mem::take(&mut self.used_ns) + self.publisher.sample()?.cpu_ns;
        for fleet in &mut self.fleets {
            used += fleet.sample()?.iter().map(|word| word.counts.cpu_ns).sum::<u64>();
        }
        Ok(used)
    }

    /// Begins to publish for `time`; gives the number of the first event.
    pub fn go(&mut self, time: Duration) -> Result<u64> {
        let next = self.publisher.next();
        self.fleets.iter_mut().try_for_each(|fleet| fleet.zero(next, 0))?;
        self.publisher.go(Pace::Rate { per_second: self.rate }, time.as_secs_f64())?;
        Ok(next)
    }

    /// Waits until all of it is published; gives how many events that were since `first`.
    fn published(&mut self, first: u64, time: Duration) -> Result<u64> {
        let limit = Instant::now() + time + ARRIVE_LIMIT;
        while self.publisher.poll()?.is_none() {
            if Instant::now() > limit {
                bail!("the server has not taken what was published within {ARRIVE_LIMIT:?}");
            }
            let look = Instant::now() + LOOK_EVERY;
            for fleet in &mut self.fleets {
                fleet.pump(look)?;
            }
        }
        Ok(self.publisher.next() - first)
    }

    /// Publishes for `time`; gives the latencies of all deliveries, each of which must arrive.
    pub fn measured(&mut self, time: Duration) -> Result<Histogram<u64>> {
        let first = self.go(time)?;
        self.heard(first, time)
    }

    /// Waits for all that [`Topic::go`] began; gives the latencies of all deliveries, each of which
    /// must arrive.
    pub fn heard(&mut self, first: u64, time: Duration) -> Result<Histogram<u64>> {
        let events = self.published(first, time)?;
        let last = self.publisher.next() - 1;
        let mut latencies = latency_histogram();
        for fleet in &mut self.fleets {
            fleet.wait_for(events, ARRIVE_LIMIT, last)?;
            let report = fleet.check(events, last).context("the topic that is measured")?;
            latencies.add(&report.latencies).context("histograms have the same bounds")?;
        }
        Ok(latencies)
    }

    /// Waits until what was begun has arrived everywhere; tells what kept it from that.
    pub fn settle(&mut self, first: u64) -> Result<Option<String>> {
        let events = self.published(first, Duration::ZERO)?;
        let limit = Instant::now() + DRAIN_LIMIT;
        for fleet in &mut self.fleets {
            let words = fleet.sample()?;
            self.used_ns += words.iter().map(|word| word.counts.cpu_ns).sum::<u64>();
            let closed = fleet.connections() as u64 - words.iter().map(|word| word.connections).sum::<u64>();
            if closed > 0 {
                return Ok(Some(format!("{closed} of the neighbour's subscribers were closed")));
            }
            while fleet.complete() < events {
                if !fleet.pump(limit)? {
                    return Ok(Some("the neighbour's events did not arrive".to_owned()));
                }
            }
        }
        Ok(None)
    }

    /// Ends the publishing; the server must have taken every event.
    pub fn finish(self) -> Result<()> {
        self.publisher.finish()
    }
}

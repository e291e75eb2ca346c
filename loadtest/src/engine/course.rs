//! The course of a measurement: a sample of everything every half second, summed up and kept as a
//! series.
//!
//! A sample asks receivers, publisher, server and kernel one after the other; it costs the
//! generator's CPU some milliseconds and the server's none. Latencies are those that the receivers
//! recorded between two samples.
//!
//! Invariant: the sums are over whole intervals, from [`Course::begin`] to the last
//! [`Course::sample`].

use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::storm::StormWatch;
use super::{Stage, kernel};
use crate::outcome::Interval;
use crate::receiver::{Counts, latency_histogram, record};
use crate::report::progress;
use crate::unit::grouped;
use crate::usage::{CpuMeter, CpuSample, cpu_busy_ns, own_cpu_ns};
use crate::workload::Workload;

/// Time from one sample to the next.
pub const SAMPLE_EVERY: Duration = Duration::from_millis(500);
/// Time from one progress line to the next.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What has been measured so far.
pub struct Course {
    /// When the measurement began.
    pub begin: Instant,
    /// Publish to each measured subscriber.
    pub each: Histogram<u64>,
    /// Publish to the last steady subscriber.
    pub last: Histogram<u64>,
    /// How late the publisher was.
    pub lateness: Histogram<u64>,
    /// Handshakes within the measurement.
    pub handshakes: Histogram<u64>,
    /// Sums over all intervals.
    pub sums: Sums,
    /// The intervals.
    pub series: Vec<Interval>,
    /// The latencies once more, apart for storm and calm, if there is a storm.
    pub storm: Option<StormWatch>,
    name: String,
    planned_seconds: f64,
    meter: Option<CpuMeter>,
    server_first: Option<CpuSample>,
    server_last: Option<CpuSample>,
    own_cpu_ns: u64,
    /// CPU of the receivers, and how long it has been busy.
    receiver_cpu: usize,
    generator_busy_ns: u64,
    sampled: Instant,
    told: Instant,
}

/// Sums over all intervals.
#[derive(Debug, Default)]
pub struct Sums {
    /// Events that the publisher's samples told of.
    pub published: u64,
    /// Events refused.
    pub refused: u64,
    /// Of steady subscribers.
    pub steady: Counts,
    /// Of all.
    pub all: Counts,
    /// CPU nanoseconds of the publisher's process.
    pub publisher_ns: u64,
    /// CPU nanoseconds of this process, unless it is the publisher.
    pub own_ns: u64,
    /// Nanoseconds in which the receivers' CPU was busy.
    pub generator_busy_ns: u64,
    /// The server's largest resident memory at a sample.
    pub rss_max: u64,
}

impl Course {
    /// Forgets everything before and begins. The workload's name and seconds are for the progress
    /// line.
    pub fn begin(
        stage: &mut Stage<'_>,
        apart: bool,
        receiver_cpu: usize,
        workload: &Workload,
    ) -> Result<Course> {
        stage.crowds.sample()?;
        stage.source.sample()?;
        let meter = stage.running.meter(apart);
        let server = meter.as_ref().map(CpuMeter::sample).transpose()?;
        let now = Instant::now();
        Ok(Course {
            begin: now,
            each: latency_histogram(),
            last: latency_histogram(),
            lateness: latency_histogram(),
            handshakes: latency_histogram(),
            sums: Sums::default(),
            series: Vec::new(),
            storm: StormWatch::of(workload),
            name: workload.name.clone(),
            planned_seconds: workload.seconds,
            meter,
            server_first: server.clone(),
            server_last: server,
            own_cpu_ns: own_cpu_ns(),
            receiver_cpu,
            generator_busy_ns: cpu_busy_ns(receiver_cpu)?,
            sampled: now,
            told: now,
        })
    }

    /// Takes a sample if one is due.
    pub fn tick(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        if self.sampled.elapsed() < SAMPLE_EVERY { Ok(()) } else { self.sample(stage) }
    }

    /// Seconds up to the last sample.
    pub fn seconds(&self) -> f64 {
        (self.sampled - self.begin).as_secs_f64()
    }

    /// CPU nanoseconds that the server, and others on its CPUs, used up to the last sample.
    pub fn server_cpu(&self) -> Option<(u64, u64)> {
        let (first, last) = (self.server_first.as_ref()?, self.server_last.as_ref()?);
        Some((last.since(first), last.others_since(first)))
    }

    /// Takes a sample.
    pub fn sample(&mut self, stage: &mut Stage<'_>) -> Result<()> {
        let heard = stage.crowds.sample()?;
        let source = stage.source.sample()?;
        let server = self.meter.as_ref().map(CpuMeter::sample).transpose()?;
        let server_rss = stage.running.memory()?.map_or(0, |memory| memory.rss_own);
        let kernel_bytes = kernel::bytes()?;
        let (now, own, busy) = (Instant::now(), own_cpu_ns(), cpu_busy_ns(self.receiver_cpu)?);
        let busy_ns = busy.saturating_sub(self.generator_busy_ns);
        let seconds = (now - self.sampled).as_secs_f64();

        let mut slice = latency_histogram();
        record(&mut slice, &heard.latencies);
        record(&mut self.each, &heard.latencies);
        record(&mut self.last, &heard.lasts);
        record(&mut self.lateness, &source.lateness);
        record(&mut self.handshakes, &heard.handshakes);
        let sums = &mut self.sums;
        sums.published += source.published;
        sums.refused += source.refused;
        sums.steady.add(&heard.steady);
        sums.all.add(&heard.all);
        sums.publisher_ns += source.cpu_ns;
        if !stage.source.is_own() {
            sums.own_ns += own.saturating_sub(self.own_cpu_ns);
        }
        sums.generator_busy_ns += busy_ns;
        sums.rss_max = sums.rss_max.max(server_rss);
        let server_ns = match (&server, &self.server_last) {
            (Some(now), Some(before)) => now.since(before),
            _ => 0,
        };
        let interval = Interval {
            at: (now - self.begin).as_secs_f64(),
            seconds,
            published: source.published,
            deliveries: heard.all.events,
            bytes: heard.all.bytes,
            connections: heard.connections,
            p50_ns: slice.value_at_quantile(0.5),
            p99_ns: slice.value_at_quantile(0.99),
            max_ns: slice.max(),
            server_share: server_ns as f64 / 1e9 / seconds,
            generator_share: busy_ns as f64 / 1e9 / seconds,
            server_rss,
            kernel_bytes,
        };
        if let Some(storm) = &mut self.storm {
            storm.take(&interval, &slice, heard.all.opened);
        }
        self.series.push(interval);
        (self.server_last, self.own_cpu_ns, self.sampled) = (server, own, now);
        self.generator_busy_ns = busy;
        if self.told.elapsed() + SAMPLE_EVERY / 2 >= TELL_EVERY {
            self.told = now;
            self.tell(heard.all.cpu_ns as f64 / 1e9 / seconds);
        }
        Ok(())
    }

    /// The progress line, over the last interval.
    fn tell(&self, receivers_share: f64) {
        let Some(last) = self.series.last() else { return };
        let per_second = |count: u64| grouped((count as f64 / last.seconds).round() as u64);
        let latencies = match last.deliveries {
            0 => String::new(),
            _ => format!(", p50 {:.2} ms, p99 {:.2} ms", last.p50_ns as f64 / 1e6, last.p99_ns as f64 / 1e6),
        };
        let server = match &self.server_last {
            Some(_) => format!(", server {:.0} %", last.server_share * 100.0),
            None => String::new(),
        };
        progress(&format!(
            "{}: {:.0} of {} s, {} connections, {} events/s, {} deliveries/s{latencies}{server}, receivers {:.0} %",
            self.name,
            last.at,
            self.planned_seconds,
            grouped(last.connections),
            per_second(last.published),
            per_second(last.deliveries),
            receivers_share * 100.0
        ));
    }
}

//! `GET /stats`: counters and latencies of the hub, of each shard, and of all shards together, as
//! JSON.
//!
//! All counts are from the start of the process, save where "now" is said. Latencies are
//! microseconds. A shard that gave no report has `"state":"unavailable"` and no counters. Then
//! `totals` is `null`: a sum that lacks a shard would fall, and rise again with the next scrape.

use std::sync::atomic::Ordering;

use hdrhistogram::Histogram;
use serde::Serialize;
use serde::ser::Serializer;

use super::jwks::KeyStats;
use super::memory::ProcessStats;
use super::source::stats::SourceStats;
use super::{CertificateStats, Hub, RefusalCounts};
use crate::broadcast::Question;
use crate::close::{CLOSE_TABLE, CloseReason, ERROR_TABLE, ErrorCode};
use crate::metrics::{
    BackfillCounters, FamilyCounters, Http2Counters, RetainedTotals, ShardMetrics, ShardReport, TokenCounters,
};
use crate::store::StoreReport;
use crate::wire::Family;

/// How the shards reach their sockets, for operators.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EgressReport {
    /// `uring` or `epoll`.
    pub ring: &'static str,
    /// `direct` or `plain` descriptors.
    pub sockets: &'static str,
    /// Why it is this one.
    pub why: String,
    /// What it costs beside the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<&'static str>,
    /// What to do to have the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The whole answer.
#[derive(Serialize)]
pub(super) struct Stats {
    version: &'static str,
    epoch: String,
    uptime_ms: u64,
    egress: EgressReport,
    source: SourceStats,
    hub: HubStats,
    /// `None` if a shard gave no report.
    totals: Option<Counts>,
    shards: Vec<ShardStats>,
}

/// What the hub and the shards know, read at one time: the shards first, so that the hub knows all
/// that they tell of.
pub(super) struct Moment {
    /// By shard; `None` where none came.
    pub(super) reports: Vec<Option<ShardReport>>,
    /// Messages that wait in the queue of each shard.
    pub(super) queues: Vec<usize>,
    pub(super) hub: HubStats,
}

#[derive(Serialize)]
pub(super) struct HubStats {
    /// Sequence of the last accepted event.
    pub(super) sequence: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
    pub(super) batches: u64,
    /// What not every shard has, now.
    pub(super) queue: Amount,
    /// Now, in queues and windows.
    pub(super) memory: MemoryStats,
    /// Of the whole process, against its ceiling, at the last look.
    pub(super) process: ProcessStats,
    /// Topics remembered, now.
    pub(super) topics: usize,
    pub(super) refused: RefusalCounts,
    /// What tokens are checked with.
    pub(super) keys: KeyStats,
    /// TLS handshakes of control connections that came to their end.
    pub(super) tls_handshakes: u64,
    /// What an authority has signed by itself; left out where it is not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) certificate: Option<CertificateStats>,
    /// Topics that were removed.
    pub(super) removed_topics: u64,
    /// What keeps events, if something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) store: Option<StoreReport>,
    /// Times the source told that events may be missing.
    pub(super) holes: u64,
    /// Times a batch met a full shard queue.
    pub(super) shard_queue_stalls: u64,
}

/// Events and their bytes.
#[derive(Serialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Amount {
    pub(super) events: u64,
    pub(super) bytes: u64,
}

impl Amount {
    /// The larger of both, in each respect.
    fn max(self, other: Amount) -> Amount {
        Amount { events: self.events.max(other.events), bytes: self.bytes.max(other.bytes) }
    }
}

/// Memory of all events alive, with their frames.
#[derive(Serialize)]
pub(super) struct MemoryStats {
    pub(super) bytes: usize,
    pub(super) bytes_max: usize,
}

#[derive(Serialize)]
struct ShardStats {
    shard: usize,
    cpu: Option<usize>,
    state: &'static str,
    /// Messages that wait in its queue, now.
    queue: usize,
    #[serde(flatten)]
    counts: Option<Counts>,
}

/// The counters of one shard, or the sums over all.
#[derive(Serialize)]
struct Counts {
    accepted: u64,
    accept_failures: u64,
    tls_handshakes: u64,
    http2: Http2Counters,
    /// What came from before the windows.
    backfill: BackfillCounters,
    connections: u64,
    closed: ByReason,
    events: u64,
    /// What clients published and the hub took.
    published: u64,
    /// What clients wanted to publish and was not taken, here or at the hub.
    refused: RefusalCounts,
    tokens: TokenCounters,
    pauses: u64,
    commands: u64,
    command_errors: ByCode,
    enters: u64,
    sleeps: u64,
    zero_copy: ZeroCopy,
    /// Now. Windows share their events, so the total is the largest of the shards'.
    window: Amount,
    /// Now, save for those given up. Shards share them, so the total is that of one.
    retained: RetainedTotals,
    /// Now, beyond the windows' histories, for subscribers that are behind; memory with all frames.
    /// The total is the largest of the shards'.
    excess: Amount,
    formats: ByFamily<FamilyCounters>,
    latency_us: Latencies,
}

/// Sends that the kernel was asked not to copy.
#[derive(Serialize)]
struct ZeroCopy {
    sends: u64,
    /// Those that it copied all the same.
    copied: u64,
}

#[derive(Serialize)]
struct Latencies {
    intake_to_shard: Latency,
    intake_to_written: ByFamily<Latency>,
    intake_to_last: Latency,
}

/// A histogram of nanoseconds, told in microseconds.
#[derive(Serialize)]
struct Latency {
    count: u64,
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// One value per family; an object by label.
#[derive(Clone, Default)]
pub(super) struct ByFamily<T>(pub(super) [T; Family::COUNT]);

impl<T: Serialize> Serialize for ByFamily<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Family::ALL.iter().zip(&self.0).map(|(family, value)| (family.label(), value)))
    }
}

/// Commands that were not carried out; an object by code.
struct ByCode([u64; ErrorCode::COUNT]);

impl Serialize for ByCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(ERROR_TABLE.iter().zip(&self.0).map(|((_, code), count)| (code, count)))
    }
}

/// Closed connections; an object by label.
struct ByReason([u64; CloseReason::COUNT]);

impl Serialize for ByReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(CLOSE_TABLE.iter().zip(&self.0).map(|(row, count)| (row.label, count)))
    }
}

impl Hub {
    /// Asks the shards, and then the hub.
    pub(super) async fn moment(&self) -> Moment {
        let reports = self.scrape(Question::Counters).await;
        let intake = self.intake();
        let counters = intake.counters();
        let (queue_events, queue_bytes) = intake.queue();
        let hub = HubStats {
            sequence: intake.sequence(),
            events: counters.events,
            bytes: counters.bytes,
            batches: counters.batches,
            queue: Amount { events: queue_events as u64, bytes: queue_bytes as u64 },
            memory: MemoryStats {
                bytes: intake.topics().memory().held(),
                bytes_max: intake.topics().memory().bytes_max(),
            },
            process: self.process_stats(),
            topics: intake.topics().count(),
            refused: counters.refused.clone(),
            keys: self.keyring.stats(),
            certificate: (self.surroundings.certificate)(),
            tls_handshakes: self.control_handshakes.load(Ordering::Relaxed),
            removed_topics: counters.removals,
            store: intake.source.store_report(),
            holes: counters.holes,
            shard_queue_stalls: counters.stalls,
        };
        Moment { reports, queues: intake.outboxes().iter().map(|outbox| outbox.len()).collect(), hub }
    }

    /// Puts everything together.
    pub(super) async fn stats(&self) -> Stats {
        let Moment { reports, queues, hub } = self.moment().await;
        let shards = reports.iter().zip(queues).enumerate();
        let shards = shards.map(|(shard, (report, queue))| ShardStats {
            shard,
            cpu: report.as_ref().map(|report| report.cpu).or(self.config().shard_cpus.get(shard).copied()),
            state: if report.is_some() { "ok" } else { "unavailable" },
            queue,
            counts: report.as_ref().map(counts_of),
        });
        Stats {
            version: env!("CARGO_PKG_VERSION"),
            epoch: self.epoch().to_string(),
            uptime_ms: self.now().ns_since(self.started) / 1_000_000,
            egress: self.egress.clone(),
            source: self.source_stats(),
            hub,
            totals: totals(&reports),
            shards: shards.collect(),
        }
    }
}

/// The sums over all shards, if all have reported.
fn totals(reports: &[Option<ShardReport>]) -> Option<Counts> {
    let mut total = ShardMetrics::default();
    let (mut window, mut excess) = (Amount::default(), Amount::default());
    let (mut retained, mut newest) = (RetainedTotals::default(), 0);
    for report in reports {
        let report = report.as_ref()?;
        add(&mut total, &report.metrics);
        window = window.max(window_of(report));
        excess = excess.max(excess_of(report));
        // One shard may lag another one.
        retained = if report.sequence >= newest { report.retained } else { retained };
        newest = newest.max(report.sequence);
    }
    Some(counts(&total, window, excess, retained))
}

fn counts_of(report: &ShardReport) -> Counts {
    counts(&report.metrics, window_of(report), excess_of(report), report.retained)
}

fn window_of(report: &ShardReport) -> Amount {
    Amount { events: report.window_events, bytes: report.window_bytes }
}

fn excess_of(report: &ShardReport) -> Amount {
    Amount { events: report.excess_events, bytes: report.excess_bytes }
}

fn counts(metrics: &ShardMetrics, window: Amount, excess: Amount, retained: RetainedTotals) -> Counts {
    Counts {
        accepted: metrics.accepted,
        accept_failures: metrics.accept_failures,
        tls_handshakes: metrics.tls_handshakes,
        http2: metrics.http2.clone(),
        backfill: metrics.backfill.clone(),
        connections: metrics.connections,
        closed: ByReason(metrics.closed),
        events: metrics.events,
        published: metrics.published,
        refused: metrics.refused.clone(),
        tokens: metrics.tokens.clone(),
        pauses: metrics.pauses,
        commands: metrics.commands,
        command_errors: ByCode(metrics.command_errors),
        enters: metrics.enters,
        sleeps: metrics.sleeps,
        zero_copy: ZeroCopy { sends: metrics.zero_copy_sends, copied: metrics.zero_copy_copied },
        window,
        retained,
        excess,
        formats: ByFamily(metrics.families.clone()),
        latency_us: Latencies {
            intake_to_shard: latency(&metrics.intake_to_shard),
            intake_to_written: ByFamily(metrics.intake_to_written.each_ref().map(latency)),
            intake_to_last: latency(&metrics.intake_to_last),
        },
    }
}

/// All zero while nothing is recorded.
fn latency(histogram: &Histogram<u64>) -> Latency {
    let us = |ns: u64| ns as f64 / 1_000.0;
    let quantile = |quantile: f64| us(histogram.value_at_quantile(quantile));
    Latency {
        count: histogram.len(),
        min: us(histogram.min()),
        mean: histogram.mean() / 1_000.0,
        p50: quantile(0.5),
        p90: quantile(0.9),
        p99: quantile(0.99),
        p999: quantile(0.999),
        max: us(histogram.max()),
    }
}

/// Adds one shard to the total. The patterns name every field, so that a new one cannot be
/// forgotten.
fn add(total: &mut ShardMetrics, shard: &ShardMetrics) {
    let ShardMetrics {
        families,
        accepted,
        accept_failures,
        tls_handshakes,
        http2: Http2Counters { carriers, opened, streams },
        backfill:
            BackfillCounters {
                begun,
                completed,
                refused: unserved,
                gaps,
                asks,
                events: past,
                bytes,
                serving,
                waiting,
            },
        connections,
        closed,
        events,
        published,
        refused,
        tokens: TokenCounters { checked, remembered, waits },
        pauses,
        commands,
        command_errors,
        enters,
        sleeps,
        zero_copy_sends,
        zero_copy_copied,
        intake_to_shard,
        intake_to_written,
        intake_to_last,
    } = shard;
    for (total, one) in total.families.iter_mut().zip(families) {
        add_family(total, one);
    }
    for (total, one) in total.closed.iter_mut().zip(closed) {
        *total += one;
    }
    total.accepted += accepted;
    total.accept_failures += accept_failures;
    total.tls_handshakes += tls_handshakes;
    total.http2.carriers += carriers;
    total.http2.opened += opened;
    total.http2.streams += streams;
    total.backfill.begun += begun;
    total.backfill.completed += completed;
    total.backfill.refused += unserved;
    total.backfill.gaps += gaps;
    total.backfill.asks += asks;
    total.backfill.events += past;
    total.backfill.bytes += bytes;
    total.backfill.serving += serving;
    total.backfill.waiting += waiting;
    total.connections += connections;
    total.events += events;
    total.published += published;
    total.refused.add_all(refused);
    total.tokens.checked += checked;
    total.tokens.remembered += remembered;
    total.tokens.waits += waits;
    total.pauses += pauses;
    total.commands += commands;
    for (total, one) in total.command_errors.iter_mut().zip(command_errors) {
        *total += one;
    }
    total.enters += enters;
    total.sleeps += sleeps;
    total.zero_copy_sends += zero_copy_sends;
    total.zero_copy_copied += zero_copy_copied;
    merge(&mut total.intake_to_shard, intake_to_shard);
    merge(&mut total.intake_to_last, intake_to_last);
    for (total, one) in total.intake_to_written.iter_mut().zip(intake_to_written) {
        merge(total, one);
    }
}

fn add_family(total: &mut FamilyCounters, one: &FamilyCounters) {
    let FamilyCounters {
        connections,
        opened,
        frames,
        bytes,
        sends,
        sends_in_flight,
        deferred,
        overruns,
        gaps,
        conflated,
        messages_in,
    } = one;
    total.connections += connections;
    total.opened += opened;
    total.frames += frames;
    total.bytes += bytes;
    total.sends += sends;
    total.sends_in_flight += sends_in_flight;
    total.deferred += deferred;
    total.overruns += overruns;
    total.gaps += gaps;
    total.conflated += conflated;
    total.messages_in += messages_in;
}

fn merge(total: &mut Histogram<u64>, one: &Histogram<u64>) {
    total.add(one).expect("all latency histograms have the same bounds");
}

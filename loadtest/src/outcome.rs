//! What a run showed: the one form that tables, JSON, pages, knee and plan read.
//!
//! Times are seconds unless the name says otherwise, memory is bytes, CPU is seconds of one CPU.

use serde::{Deserialize, Serialize};

use crate::audit::Findings;
use crate::workload::Workload;

/// The outcome of one workload against one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// What was done.
    pub workload: Workload,
    /// Name of the server, for example `fanwave`.
    pub server: String,
    /// What it calls its version.
    pub version: String,
    /// Measured time, from the end of the warm-up until everything published in it had arrived.
    pub seconds: f64,
    /// Events published in it.
    pub published: u64,
    /// Events that the server refused (a status, a line of its answer).
    pub refused: u64,
    /// Deliveries in it: event × steady connection.
    pub deliveries: u64,
    /// Bytes that all subscribers received in it.
    pub bytes: u64,
    /// Losses, duplicates, swaps over the subscribers that must not have any.
    pub findings: Findings,
    /// The same over slow, stalled, churning and storming subscribers, whose connections end.
    pub others: Findings,
    /// Publish (as intended) to each subscriber.
    pub each: Latency,
    /// Publish (as intended) to the last subscriber of each event; absent where the set of
    /// subscribers changes.
    pub last: Option<Latency>,
    /// How late the publisher was against its own schedule.
    pub lateness: Latency,
    /// Connections opened before the measurement and again within it.
    pub handshakes: Handshakes,
    /// What the server cost; absent where its processes are not known.
    pub cost: Option<Cost>,
    /// What the kernel alone charges for bare sends of the same frames at the same pace; absent if
    /// it was not measured.
    pub floor: Option<FloorCost>,
    /// What the generator cost.
    pub generator: Generator,
    /// Share of one CPU that other programs used on the server's CPUs.
    pub others_share: f64,
    /// What a storm did to those who stayed; absent where nobody was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
    /// What makes the figures doubtful; empty is good.
    pub warnings: Vec<String>,
    /// The course of the run.
    pub series: Vec<Interval>,
}

/// A latency distribution.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Values recorded.
    pub count: u64,
    /// Nanoseconds.
    pub mean_ns: f64,
    /// Quantile (0.5, 0.9, 0.99, 0.999, 0.9999, 1) and nanoseconds, rising.
    pub quantiles: Vec<(f64, u64)>,
    /// The whole histogram: nanoseconds (highest equivalent value) and count, rising. Pages draw it
    /// and interval logs hold it; JSON has the summary alone.
    #[serde(skip)]
    pub recorded: Vec<(u64, u64)>,
}

/// Handshakes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Handshakes {
    /// Connections opened before the measurement.
    pub opened: u64,
    /// Seconds it took.
    pub seconds: f64,
    /// Connections opened within the measurement (churn, storms, those that the server had closed).
    pub again: u64,
    /// Connections that the server closed within the measurement (too slow, for example).
    pub closed_by_server: u64,
    /// From the connect to the response head, of those before the measurement.
    pub latency: Latency,
    /// The same of those within it.
    pub again_latency: Latency,
}

/// Subscribers that drop at once and come back, beside those that stay.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Storm {
    /// Connections dropped.
    pub dropped: u64,
    /// From the drop until the server had answered all of them again; absent if some were still
    /// away when the measurement ended.
    pub back_seconds: Option<f64>,
    /// Seconds of the intervals that count for the storm.
    pub seconds: f64,
    /// Publish to each of the subscribers that stay, before the storm and after it.
    pub calm: Latency,
    /// The same while subscribers are away.
    pub during: Latency,
}

/// What the server cost.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cost {
    /// CPU seconds within the measurement.
    pub cpu: f64,
    /// CPU microseconds per delivery; absent if nothing was delivered.
    pub us_per_delivery: Option<f64>,
    /// Resident user-space memory at the start of the run (no subscribers), with all connected, and
    /// at its highest.
    pub rss_empty: u64,
    /// With all connected.
    pub rss_connected: u64,
    /// At its highest.
    pub rss_max: u64,
    /// Resident user-space memory of each connection after the first few (of each kind of
    /// subscribers a quarter, at most 500), so that what the server needs for any number is not in
    /// it; absent if there was none, or if it was not looked at.
    pub rss_per_further_connection: Option<f64>,
    /// Kernel memory of both ends (slab and socket buffers of the machine) of each of these.
    pub kernel_per_further_connection: Option<f64>,
}

/// The floor beside the run. Where the run has several topics, the server's sends go out topic by
/// topic, the floor's on all connections at the same moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct FloorCost {
    /// Connections of the floor; fewer than the run's where one process cannot hold as many.
    pub connections: usize,
    /// Frames in one bare `send(2)` on each socket.
    pub frames: u64,
    /// Seconds from one such send to the next; 0 if they came back to back.
    pub every_seconds: f64,
    /// CPU microseconds per delivery.
    pub us_per_delivery: f64,
    /// Server / floor; absent where it would say nothing.
    pub ratio: Option<f64>,
    /// Why not, if a comparison is not possible.
    pub why_no_ratio: Option<String>,
}

/// The generator's own cost, as shares of one CPU within the measurement.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Generator {
    /// Receiver processes.
    pub receivers: usize,
    /// Share of one CPU that they used together.
    pub receivers_share: f64,
    /// CPU microseconds of the receivers per delivery; absent if nothing was delivered.
    pub receivers_us_per_delivery: Option<f64>,
    /// Share of one CPU that the publisher used.
    pub publisher_share: f64,
    /// Share of one CPU that the process used which directs both; 0 where it is the publisher
    /// itself.
    pub coordinator_share: f64,
    /// Share of the receivers' CPU that was busy, other programs included.
    pub cpu_share: f64,
}

/// A slice of the run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Interval {
    /// Its end, seconds from the start of the measurement.
    pub at: f64,
    /// Its length.
    pub seconds: f64,
    /// Events published.
    pub published: u64,
    /// Events delivered to subscribers of every kind.
    pub deliveries: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Connections open at its end.
    pub connections: u64,
    /// Publish to each subscriber: median, nanoseconds; 0 if nothing came.
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// Largest, nanoseconds.
    pub max_ns: u64,
    /// Share of one CPU that the server used.
    pub server_share: f64,
    /// Share of the receivers' CPU that was busy, whoever used it.
    pub generator_share: f64,
    /// Its resident user-space memory at the end.
    pub server_rss: u64,
    /// Kernel memory (slab and socket buffers) of the machine at the end.
    pub kernel_bytes: u64,
}

impl Latency {
    /// From a histogram in nanoseconds.
    pub fn of(histogram: &hdrhistogram::Histogram<u64>) -> Latency {
        if histogram.is_empty() {
            return Latency::default();
        }
        Latency {
            count: histogram.len(),
            mean_ns: histogram.mean(),
            quantiles: [0.5, 0.9, 0.99, 0.999, 0.9999, 1.0]
                .map(|quantile| (quantile, histogram.value_at_quantile(quantile)))
                .to_vec(),
            recorded: histogram
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_at_value()))
                .collect(),
        }
    }

    /// Nanoseconds at one of the quantiles that are kept.
    pub fn at(&self, quantile: f64) -> Option<u64> {
        self.quantiles.iter().find(|(kept, _)| *kept == quantile).map(|&(_, ns)| ns)
    }
}

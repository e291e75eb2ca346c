//! `GET /slow`: the subscribers whose sends wait longest for room in their socket, as JSON.

use serde::Serialize;

use super::Hub;
use super::listing::silent;
use crate::broadcast::Question;
use crate::event::Topic;
use crate::metrics::SlowReport;

/// The whole answer.
#[derive(Serialize)]
pub(super) struct Slow {
    /// The slowest first.
    slow: Vec<SlowSubscriber>,
    /// Shards that gave no report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailable: Vec<usize>,
}

#[derive(Serialize)]
struct SlowSubscriber {
    shard: usize,
    peer: String,
    format: &'static str,
    topics: Vec<Topic>,
    /// Topics that are left out.
    more_topics: usize,
    /// Events that wait behind the send.
    lag_events: u64,
    /// Since when the send waits.
    seconds: f64,
}

impl Hub {
    /// Asks the shards and puts their answers in order.
    pub(super) async fn slow(&self) -> Slow {
        let reports = self.scrape(Question::Slow).await;
        let unavailable = silent(&reports).collect();
        let of_shard = |(shard, reports): (usize, Option<Vec<SlowReport>>)| {
            reports.into_iter().flatten().map(move |report| subscriber(shard, report))
        };
        let mut slow: Vec<SlowSubscriber> = reports.into_iter().enumerate().flat_map(of_shard).collect();
        slow.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
        Slow { slow, unavailable }
    }
}

fn subscriber(shard: usize, report: SlowReport) -> SlowSubscriber {
    SlowSubscriber {
        shard,
        peer: report.peer.to_string(),
        format: report.family.label(),
        topics: report.topics,
        more_topics: report.more_topics,
        lag_events: report.lag_events,
        seconds: report.waits_ms as f64 / 1_000.0,
    }
}

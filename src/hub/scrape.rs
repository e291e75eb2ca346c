//! Asks every shard for its counters, histograms and topics.
//!
//! A scrape waits at most [`SCRAPE_MS_MAX`] for all shards together. A shard whose queue is
//! full, that has ended, or that does not answer in time is missing from the result; the others are not.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Hub;
use crate::broadcast::{Message, Scrape, TopicQuery};
use crate::config::limits::SCRAPE_MS_MAX;
use crate::metrics::ShardReport;

impl Hub {
    /// The report of each shard, by shard number; `None` for those that gave none.
    pub(super) async fn scrape(&self, query: TopicQuery) -> Vec<Option<ShardReport>> {
        // The semaphore is never closed; without a permit the scrape would only be less bounded.
        let _permit = self.scrapes.acquire().await.ok();
        let asked: Vec<Option<oneshot::Receiver<ShardReport>>> = self
            .intake()
            .outboxes()
            .iter()
            .map(|outbox| {
                let (answer, answered) = oneshot::channel();
                outbox
                    .try_send(Message::Report(Scrape { query: query.clone(), answer }))
                    .ok()
                    .map(|()| answered)
            })
            .collect();
        let deadline = Instant::now() + Duration::from_millis(SCRAPE_MS_MAX);
        let mut reports = Vec::with_capacity(asked.len());
        for answered in asked {
            reports.push(match answered {
                Some(answered) => timeout_at(deadline, answered).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        reports
    }
}

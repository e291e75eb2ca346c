//! Asks every shard on the side path: for its counters and histograms, or for topics.
//!
//! A scrape waits at most [`SCRAPE_MS_MAX`] for all shards together. A shard that has ended, or
//! that does not answer in time, is missing from the result; the others are not. A shard that is
//! busy answers within a few turns.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Hub;
use crate::broadcast::{Outbox, Question};
use crate::config::limits::SCRAPE_MS_MAX;

impl Hub {
    /// The answer of each shard to `question`, by shard number; `None` for those that gave none.
    pub(super) async fn scrape<T>(
        &self,
        question: impl Fn(oneshot::Sender<T>) -> Question,
    ) -> Vec<Option<T>> {
        self.scrape_without(&BTreeSet::new(), question).await
    }

    /// The same without asking those `left_out`.
    pub(super) async fn scrape_without<T>(
        &self,
        left_out: &BTreeSet<usize>,
        question: impl Fn(oneshot::Sender<T>) -> Question,
    ) -> Vec<Option<T>> {
        // The semaphore is never closed; without a permit the scrape would only be less bounded.
        let _permit = self.scrapes.acquire().await.ok();
        let ask = |(shard, outbox): (usize, &Outbox)| {
            let (answer, answered) = oneshot::channel();
            (!left_out.contains(&shard) && outbox.ask(question(answer))).then_some(answered)
        };
        let asked: Vec<Option<oneshot::Receiver<T>>> =
            self.intake().outboxes().iter().enumerate().map(ask).collect();
        let deadline = Instant::now() + Duration::from_millis(SCRAPE_MS_MAX);
        let mut answers = Vec::with_capacity(asked.len());
        for answered in asked {
            answers.push(match answered {
                Some(answered) => timeout_at(deadline, answered).await.ok().and_then(Result::ok),
                None => None,
            });
        }
        answers
    }
}

//! The newest message of each subject, from before a place of the stream: what is retained of
//! topics that a start does not read back so far.
//!
//! Invariants worth naming:
//! - Nothing at or behind the place is given out: that is read in its turn
//!   ([`Reader`](super::Reader)).
//! - What is kept weighs a bounded number of bytes; the oldest go first, as they do in the shards.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::connect::innermost;
use super::epoch::Mark;
use super::message::{Said, understand};
use super::past::is_next;
use super::read::Received;
use super::{Session, Subjects};
use crate::config::limits::{NATS_CONSUMER_S_MAX, NATS_HEARTBEAT_MS, NATS_PULL_MS, NATS_VALUES_MS_MAX};
use crate::topic_pattern::Pattern;

impl Session {
    /// The newest event of each topic of these patterns, if its topic has none from `until` on: in
    /// the order of their sequences, and so many bytes of them. The error is one line.
    pub async fn values(
        &self,
        patterns: &[Pattern],
        until: u64,
        bytes_max: usize,
    ) -> Result<Vec<Received>, String> {
        let deadline = Instant::now() + Duration::from_millis(NATS_VALUES_MS_MAX);
        let mut found = Found { values: BTreeMap::new(), bytes: 0, bytes_max };
        for (at, pattern) in patterns.iter().enumerate() {
            if patterns[..at].iter().any(|earlier| earlier.contains(pattern)) {
                continue;
            }
            let reading = self.read_values(pattern, until, &mut found);
            timeout_at(deadline, reading).await.map_err(|_| "it takes too long".to_string())??;
        }
        Ok(found.values.into_values().collect())
    }

    async fn read_values(&self, pattern: &Pattern, until: u64, found: &mut Found) -> Result<(), String> {
        let config = Config {
            description: Some("a node of fanwave that starts".to_string()),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: self.subjects.filter(pattern),
            inactive_threshold: Duration::from_secs(NATS_CONSUMER_S_MAX),
            num_replicas: 1,
            memory_storage: true,
            ..Config::default()
        };
        let failed = |error: &(dyn std::error::Error + 'static)| innermost(error);
        let consumer: PullConsumer =
            self.stream.create_consumer(config).await.map_err(|error| failed(&error))?;
        if consumer.cached_info().num_pending == 0 {
            return Ok(());
        }
        let messages = consumer
            .stream()
            .heartbeat(Duration::from_millis(NATS_HEARTBEAT_MS))
            .expires(Duration::from_millis(NATS_PULL_MS))
            .messages();
        let mut messages = messages.await.map_err(|error| failed(&error))?;
        let mut read = 0;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| failed(&error))?;
            let info = message.info().map_err(|error| error.to_string())?;
            if !is_next(&info, read) {
                return Err("a message went missing on its way".to_string());
            }
            read += 1;
            // They come in the order of the stream.
            if info.stream_sequence >= until {
                break;
            }
            let unix_ns = i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(i64::MAX);
            let mark = Mark { sequence: info.stream_sequence, unix_ns };
            found.take(&self.subjects, mark, &message, self.message_bytes_max);
            if info.pending == 0 {
                break;
            }
        }
        Ok(())
    }
}

/// Values by their sequences.
struct Found {
    values: BTreeMap<u64, Received>,
    bytes: usize,
    bytes_max: usize,
}

impl Found {
    fn take(
        &mut self,
        subjects: &Subjects,
        mark: Mark,
        message: &async_nats::jetstream::Message,
        message_bytes_max: usize,
    ) {
        let (headers, payload) = (message.headers.as_ref(), message.payload.clone());
        let understood = understand(subjects, &message.subject, headers, payload, message_bytes_max);
        // Of a topic that was removed nothing is retained.
        let Ok(Said::Event(event)) = understood.map(|understood| understood.said) else { return };
        self.bytes += event.weight();
        let value = Received { mark, said: Said::Event(event), sent: None };
        if let Some(twice) = self.values.insert(mark.sequence, value) {
            self.bytes -= weight(&twice);
        }
        while self.bytes > self.bytes_max
            && let Some((_, oldest)) = self.values.pop_first()
        {
            self.bytes -= weight(&oldest);
        }
    }
}

fn weight(received: &Received) -> usize {
    match &received.said {
        Said::Event(event) => event.weight(),
        Said::Removal(_) => 0,
    }
}

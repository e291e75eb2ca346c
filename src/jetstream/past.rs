//! Reading the stream's past, a span at a time, for subscribers who lack more than windows hold.
//!
//! Invariants worth naming:
//! - It has a connection of its own: a message that the client library cannot read ends a connection,
//!   and that is not the one by which news come.
//! - A span is read by a consumer of its own, which is taken away at its end. Nothing is left out of
//!   it but what the stream does not have any more.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use async_nats::jetstream::stream::Stream;
use futures_util::StreamExt;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::connect::{Link, innermost};
use super::epoch::{Mark, created_ns};
use super::message::{Said, understand};
use super::read::Received;
use super::{Session, Subjects};
use crate::config::Nats;
use crate::config::limits::{NATS_API_MS_MAX, NATS_CONSUMER_S_MAX, NATS_TAKE_MAX};
use crate::event::Topic;
use crate::topic_pattern::Pattern;

/// The stream, as its past is read.
pub struct PastStream {
    nats: Nats,
    subjects: Subjects,
    message_bytes_max: usize,
    /// `None` before the first look.
    stream: Option<Stream>,
}

impl std::fmt::Debug for PastStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PastStream").finish_non_exhaustive()
    }
}

/// What a span has.
#[derive(Debug, Default)]
pub struct Span {
    /// Its messages, as far as they were read.
    pub messages: Vec<Received>,
    /// None that is there is missing up to here.
    pub to: u64,
    /// The first sequence that the stream has.
    pub first: u64,
}

impl Session {
    /// What reads the past of this stream.
    pub fn past(&self) -> PastStream {
        PastStream {
            nats: self.nats.clone(),
            subjects: self.subjects.clone(),
            message_bytes_max: self.message_bytes_max,
            stream: None,
        }
    }
}

/// Where a consumer begins.
enum From {
    Sequence(u64),
    Time(u64),
}

impl PastStream {
    /// The subjects of these topics and patterns. The server takes none that overlap, so several
    /// with a pattern among them are all.
    pub fn filters<'a>(&self, names: impl Iterator<Item = &'a Topic>) -> Vec<String> {
        let names: Vec<&Topic> = names.collect();
        let is_pattern = |name: &&Topic| name.as_str().contains('*');
        if names.len() > 1 && names.iter().any(is_pattern) {
            return vec![self.subjects.all()];
        }
        let filter = |name: &Topic| match Pattern::new(name.as_str()) {
            Ok(pattern) => self.subjects.filter(&pattern),
            Err(_) => self.subjects.subject(name),
        };
        names.into_iter().map(filter).collect()
    }

    async fn stream(&mut self) -> Result<Stream, String> {
        if let Some(stream) = &self.stream {
            return Ok(stream.clone());
        }
        let limit = Duration::from_millis(NATS_API_MS_MAX);
        let link = timeout(limit, Link::connect(&self.nats)).await;
        let link = link.map_err(|_| silent())?.map_err(|error| error.to_string())?;
        let stream = link.context.get_stream(&self.nats.stream).await;
        let stream = stream.map_err(|error| innermost(&error))?;
        self.stream = Some(stream.clone());
        Ok(stream)
    }

    async fn consumer(
        stream: &Stream,
        filter_subjects: Vec<String>,
        from: From,
    ) -> Result<PullConsumer, String> {
        let deliver_policy = match from {
            From::Sequence(start_sequence) => DeliverPolicy::ByStartSequence { start_sequence },
            From::Time(unix_ms) => {
                let unix_ns = i128::from(unix_ms) * 1_000_000;
                match OffsetDateTime::from_unix_timestamp_nanos(unix_ns) {
                    Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
                    Err(_) => DeliverPolicy::All,
                }
            }
        };
        let config = Config {
            description: Some("the past, for a node of fanwave".to_string()),
            deliver_policy,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subjects,
            inactive_threshold: Duration::from_secs(NATS_CONSUMER_S_MAX),
            num_replicas: 1,
            memory_storage: true,
            ..Config::default()
        };
        stream.create_consumer(config).await.map_err(|error| innermost(&error))
    }

    /// Takes a consumer away; should that fail the server does, a little later.
    async fn end(stream: &Stream, consumer: &PullConsumer) {
        let _ = stream.delete_consumer(&consumer.cached_info().name).await;
    }

    /// The next messages after `after` and up to `until`, until they have so many bytes of data. The
    /// stream must be the one that was created then. The error is one line; a retry may help.
    pub async fn span(
        &mut self,
        filters: Vec<String>,
        (after, until): (u64, u64),
        created: i64,
        bytes_max: usize,
    ) -> Result<Span, String> {
        let stream = self.stream().await?;
        let info = stream.get_info().await.map_err(|error| innermost(&error))?;
        if created_ns(&info) != created || info.state.last_sequence < until {
            return Err("the stream is another one, or its head is behind".to_string());
        }
        let first = info.state.first_sequence;
        let mut span =
            Span { messages: Vec::new(), to: after.max(first.saturating_sub(1)).min(until), first };
        if span.to >= until {
            return Ok(span);
        }
        let consumer = PastStream::consumer(&stream, filters, From::Sequence(span.to + 1)).await?;
        let read = self.read(&consumer, &mut span, until, bytes_max).await;
        PastStream::end(&stream, &consumer).await;
        read.map(|()| span)
    }

    async fn read(
        &self,
        consumer: &PullConsumer,
        span: &mut Span,
        until: u64,
        bytes_max: usize,
    ) -> Result<(), String> {
        if consumer.cached_info().num_pending == 0 {
            span.to = until;
            return Ok(());
        }
        let limit = Duration::from_millis(NATS_API_MS_MAX);
        let batch = consumer.fetch().max_messages(NATS_TAKE_MAX).expires(limit).messages().await;
        let mut batch = batch.map_err(|error| innermost(&error))?;
        let (mut bytes, mut read) = (0, 0u64);
        while let Some(message) = timeout(2 * limit, batch.next()).await.map_err(|_| silent())? {
            let message = message.map_err(|error| error.to_string())?;
            let info = message.info().map_err(|error| error.to_string())?;
            let (sequence, pending) = (info.stream_sequence, info.pending);
            if !is_next(&info, read) {
                // What is before it went to a connection that had broken.
                break;
            }
            if sequence > until {
                span.to = until;
                return Ok(());
            }
            let unix_ns = i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(i64::MAX);
            read += 1;
            bytes += message.payload.len();
            let headers = message.headers.as_ref();
            let most = self.message_bytes_max;
            let payload = message.payload.clone();
            if let Ok(understood) = understand(&self.subjects, &message.subject, headers, payload, most) {
                let mark = Mark { sequence, unix_ns };
                span.messages.push(Received { mark, said: understood.said, sent: None });
            }
            span.to = sequence;
            if pending == 0 {
                span.to = until;
            }
            if pending == 0 || bytes >= bytes_max {
                return Ok(());
            }
        }
        if read > 0 { Ok(()) } else { Err(silent()) }
    }

    /// How many messages there are from a sequence on.
    async fn count_from(&mut self, filters: &[String], sequence: u64) -> Result<u64, String> {
        let stream = self.stream().await?;
        let consumer = PastStream::consumer(&stream, filters.to_vec(), From::Sequence(sequence)).await?;
        let count = consumer.cached_info().num_pending;
        PastStream::end(&stream, &consumer).await;
        Ok(count)
    }

    /// The sequence after which the last so many messages up to `until` come, or all.
    pub async fn before_last(
        &mut self,
        filters: Vec<String>,
        until: u64,
        messages: u64,
    ) -> Result<u64, String> {
        let stream = self.stream().await?;
        let info = stream.get_info().await.map_err(|error| innermost(&error))?;
        let (mut low, mut high) = (info.state.first_sequence.saturating_sub(1), until);
        let behind = self.count_from(&filters, until + 1).await?;
        let enough = behind.saturating_add(messages);
        // After `high` there are too few, or just enough.
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            match self.count_from(&filters, middle + 1).await? >= enough {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Ok(low)
    }

    /// The sequence after which messages come of this time or later.
    pub async fn before_time(&mut self, unix_ms: u64) -> Result<u64, String> {
        let stream = self.stream().await?;
        let info = stream.get_info().await.map_err(|error| innermost(&error))?;
        let filters = vec![self.subjects.all()];
        let consumer = PastStream::consumer(&stream, filters, From::Time(unix_ms)).await?;
        let mut span = Span::default();
        let read = self.read(&consumer, &mut span, u64::MAX, 1).await;
        PastStream::end(&stream, &consumer).await;
        read?;
        let first = span.messages.first().map_or(info.state.last_sequence + 1, |first| first.mark.sequence);
        Ok(first.saturating_sub(1))
    }
}

/// True if nothing went missing on the way from a new consumer that has given so many messages.
pub(super) fn is_next(info: &async_nats::jetstream::message::Info<'_>, read: u64) -> bool {
    info.consumer_sequence == read + 1
}

fn silent() -> String {
    "no answer in time".to_string()
}

/// The event of a message, if it is one.
pub fn event_of(received: Received) -> Option<(Mark, crate::event::Event)> {
    match received.said {
        Said::Event(event) => Some((received.mark, event)),
        Said::Removal(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::message::Info;

    use super::*;

    #[test]
    fn a_message_behind_one_that_went_missing_is_not_the_next_one() {
        let info = |consumer_sequence| Info {
            domain: None,
            acc_hash: None,
            stream: "fanwave",
            consumer: "c",
            stream_sequence: 70,
            consumer_sequence,
            delivered: 1,
            pending: 3,
            published: OffsetDateTime::UNIX_EPOCH,
            token: None,
        };
        assert!(is_next(&info(1), 0) && is_next(&info(8), 7));
        assert!(!is_next(&info(2), 0) && !is_next(&info(9), 7));
    }
}

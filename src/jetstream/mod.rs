//! NATS JetStream as the place where events and their sequences come from.
//!
//! One stream holds the events of all topics. Its sequence is what subscribers see in ids, so an id
//! means the same on every node. This room knows the client library and the stream, and nothing of
//! the hub: `hub/source` joins the two.
//!
//! Reading order: `subject` and `message` (what an event is in NATS, pure), `connect`, `stream`,
//! `publish`, `read`, `values`, `epoch` (what all nodes agree on).

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::stream::{Info, Stream};
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use crate::config::Nats;
use crate::config::limits::{NATS_API_MS_MAX, NATS_CREATE_MS_MAX, NATS_LOOK_MS, NATS_RETRY_MS};
use crate::event::{Event, Topic};
use connect::{code_of, innermost};

mod connect;
mod epoch;
mod message;
mod nodes;
mod past;
mod publish;
mod read;
mod stream;
mod subject;
mod values;

pub use connect::{ConnectError, Link};
pub use epoch::{Entry, EpochError, EpochPlace, Mark, created_ns};
pub use message::{DATA, EVENT, ID, KEY, REMOVE, RETRY, SENT, Said, Understood, understand, understand_core};
pub use nodes::{Counts, Crowd, Nodes};
pub use past::{PastStream, Span, event_of};
pub use publish::{PublishFault, Publisher, Receipt, Sent};
pub use read::{Foreign, ReadFault, Reader, Received, Start};
pub use stream::{StreamError, certain, largest, open, warnings};
pub use subject::Subjects;

/// A stream that is open, and all that is done with it.
#[derive(Debug, Clone)]
pub struct Session {
    /// The connection.
    pub link: Link,
    /// The stream.
    pub stream: Stream,
    /// Where its epoch stands.
    pub place: EpochPlace,
    /// Its epoch, as it was at the start.
    pub entry: Entry,
    /// Where events go.
    pub publisher: Publisher,
    /// How topics are named there.
    pub subjects: Subjects,
    /// Data of an event.
    message_bytes_max: usize,
    nats: Nats,
}

/// Why there is nothing to see of the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookFault {
    /// JetStream says that there is none.
    #[error("the stream is not there any more")]
    Missing,
    /// JetStream does not answer.
    #[error("{0}")]
    Away(String),
}

/// Why a session does not begin. One line with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// There is no epoch.
    #[error(transparent)]
    Epoch(#[from] EpochError),
}

impl Session {
    /// Connects, opens or creates the stream, and finds its epoch.
    pub async fn begin(nats: &Nats, message_bytes_max: usize) -> Result<Session, SessionError> {
        let link = Link::connect(nats).await?;
        let server = link.client.server_info();
        let stream = open(&link.context, nats, server.cluster.is_some()).await?;
        let info = stream.cached_info();
        for warning in warnings(info, message_bytes_max, server.max_payload) {
            tracing::warn!(stream = nats.stream, "NATS: {warning}");
        }
        let place = EpochPlace::open(&link.context, &nats.stream, info.config.num_replicas).await?;
        let deadline = Instant::now() + Duration::from_millis(NATS_CREATE_MS_MAX);
        let entry = loop {
            match place.settle(&stream, None).await {
                // Its servers may be choosing a leader.
                Err(EpochError::Silent(_)) if Instant::now() < deadline => {
                    sleep(Duration::from_millis(NATS_RETRY_MS)).await;
                }
                settled => break settled?,
            }
        };
        let subjects = Subjects::new(&nats.prefix);
        let message_max = usize::try_from(info.config.max_message_size).unwrap_or(0);
        let publisher = Publisher::new(link.clone(), subjects.clone(), &nats.stream, message_max);
        let nats = nats.clone();
        Ok(Session { link, stream, place, entry, publisher, subjects, message_bytes_max, nats })
    }

    /// The stream's name.
    pub fn stream_name(&self) -> &str {
        &self.nats.stream
    }

    /// Subjects outside of the stream that are heard too.
    pub fn core(&self) -> &[String] {
        &self.nats.core
    }

    /// Those that read this stream, where this one is called `own`.
    pub fn nodes(&self, own: String) -> Nodes {
        Nodes::new(self.link.clone(), &self.nats.stream, own)
    }

    /// A reader of the stream as it is in `entry`.
    pub fn reader(&self, entry: &Entry, start: Start) -> Reader {
        Reader::new(
            self.link.clone(),
            self.stream.clone(),
            self.subjects.clone(),
            self.message_bytes_max,
            entry.created_ns,
            start,
        )
    }

    /// The stream as it is now.
    pub async fn look(&self) -> Result<Info, LookFault> {
        let info = timeout(Duration::from_millis(NATS_LOOK_MS), self.stream.get_info()).await;
        let info = info.map_err(|_| LookFault::Away("no answer in time".to_string()))?;
        info.map_err(|error| match code_of(&error) {
            Some(ErrorCode::STREAM_NOT_FOUND) => LookFault::Missing,
            _ => LookFault::Away(innermost(&error)),
        })
    }

    /// True if the stream, which looks so, is the one that `seen` tells of.
    pub async fn is_same(&self, info: &Info, seen: &Entry) -> Result<bool, EpochError> {
        epoch::is_same(&self.stream, info, seen).await
    }

    /// Makes a stream that is not there any more, or the place of its epoch. The error is one line.
    pub async fn make_anew(&self) -> Result<(), String> {
        let in_cluster = self.link.client.server_info().cluster.is_some();
        let stream =
            open(&self.link.context, &self.nats, in_cluster).await.map_err(|error| error.to_string())?;
        let replicas = stream.cached_info().config.num_replicas;
        let place = EpochPlace::open(&self.link.context, &self.nats.stream, replicas).await;
        place.map(drop).map_err(|error| error.to_string())
    }

    /// True unless the message of this sequence is there and says something else than `event`.
    pub async fn says(&self, sequence: u64, event: &Event) -> bool {
        let limit = Duration::from_millis(NATS_API_MS_MAX);
        let Ok(Ok(message)) = timeout(limit, self.stream.get_raw_message(sequence)).await else {
            return true;
        };
        let payload: Bytes = message.payload;
        let most = payload.len();
        let understood = understand(&self.subjects, &message.subject, Some(&message.headers), payload, most);
        understood.is_ok_and(|understood| understood.said == Said::Event(event.clone()))
    }

    /// Takes a topic's messages before `sequence` out of the stream. The error is one line.
    pub async fn purge(&self, topic: &Topic, sequence: u64) -> Result<(), String> {
        let purge = self.stream.purge().sequence(sequence).filter(self.subjects.subject(topic));
        let limit = Duration::from_millis(NATS_API_MS_MAX);
        let purged = timeout(limit, purge).await.map_err(|_| "no answer in time".to_string())?;
        purged.map(drop).map_err(|error| innermost(&error))
    }
}

//! Publishing to the stream: sent in order, acknowledged with a sequence.
//!
//! Invariants worth naming:
//! - What fails before it was sent is told apart from what was sent and not acknowledged: the first
//!   may be published again, the second may be in the stream. So nothing is sent while there is no
//!   connection, and what waits too long for its acknowledgement has an unknown outcome.
//! - Publishes without acknowledgement are bounded, in number and in bytes.
//! - A repeat under an idempotency key has the same `Nats-Msg-Id`, on every node.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connect::{Link, one_line};
use super::message;
use super::subject::Subjects;
use crate::config::limits::{NATS_ACK_MS_MAX, NATS_IN_FLIGHT_BYTES_MAX, NATS_IN_FLIGHT_MAX};
use crate::event::{Event, Topic};
use crate::publishing::IdempotencyKey;

/// What a message takes in flight besides its payload.
const MESSAGE_BYTES: usize = 512;

/// What the stream acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// The message's sequence in the stream.
    pub sequence: u64,
    /// It was there before, under the same idempotency key.
    pub duplicate: bool,
}

/// Why an event is not published, or not known to be. One line for the publisher.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishFault {
    /// It was not sent: it may be published again.
    #[error("not published: {0}")]
    NotSent(String),
    /// Too many are on their way: it may be published again.
    #[error("not published: too many events wait for JetStream's acknowledgement")]
    Full,
    /// The server does not take it.
    #[error("JetStream did not take the event: {0}")]
    Refused(String),
    /// It is too large for server or stream.
    #[error(
        "the event takes {bytes} bytes in NATS, at most {most} are allowed there (max_payload, max_msg_size)"
    )]
    TooLarge {
        /// What it takes, with its headers.
        bytes: usize,
        /// What may be.
        most: usize,
    },
    /// It was sent, and may be in the stream.
    #[error(
        "sent, but not acknowledged within {} ms; it may be repeated with its idempotency_key",
        NATS_ACK_MS_MAX
    )]
    Unknown,
    /// Another event is in the stream under this idempotency key.
    #[error("the idempotency key was used for another event of this topic")]
    Conflict,
}

/// Where events go.
#[derive(Debug, Clone)]
pub struct Publisher {
    link: Link,
    /// JetStream with the patience for acknowledgements.
    context: Context,
    subjects: Subjects,
    stream: String,
    /// Bytes of the largest message that the stream takes; 0 if it has no limit of its own.
    message_max: usize,
    places: Arc<Semaphore>,
    /// In units of a KiB.
    room: Arc<Semaphore>,
}

/// A publish that was sent.
#[derive(Debug)]
pub struct Sent {
    ack: PublishAckFuture,
    _place: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

/// A message before it is sent.
struct Outgoing {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Publisher {
    /// Publishes to `stream`, whose own limit is `message_max` bytes, 0 for none.
    pub fn new(link: Link, subjects: Subjects, stream: &str, message_max: usize) -> Publisher {
        let context = ContextBuilder::new()
            .timeout(Duration::from_millis(NATS_ACK_MS_MAX))
            .max_ack_inflight(2 * NATS_IN_FLIGHT_MAX)
            .ack_timeout(Duration::from_millis(NATS_ACK_MS_MAX))
            .backpressure_on_inflight(false)
            .build(link.client.clone());
        Publisher {
            link,
            context,
            subjects,
            stream: stream.to_string(),
            message_max,
            places: Arc::new(Semaphore::new(NATS_IN_FLIGHT_MAX)),
            room: Arc::new(Semaphore::new(NATS_IN_FLIGHT_BYTES_MAX >> 10)),
        }
    }

    /// Sends an event, or refuses it at once. `principal` is who publishes: their keys are their own.
    pub async fn send(
        &self,
        event: &Event,
        key: Option<&IdempotencyKey>,
        principal: &str,
    ) -> Result<Sent, PublishFault> {
        let mut headers = message::headers(event);
        if let Some(key) = key {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id(&event.topic, principal, key));
        }
        let payload = event.data.bytes().clone();
        self.send_out(Outgoing { subject: self.subjects.subject(&event.topic), headers, payload }).await
    }

    /// Sends the removal of what came of a topic so far.
    pub async fn send_removal(&self, topic: &Topic) -> Result<Sent, PublishFault> {
        let headers = message::removal_headers();
        let subject = self.subjects.subject(topic);
        self.send_out(Outgoing { subject, headers, payload: Bytes::new() }).await
    }

    /// Resolves once a publish of so many bytes has a place; for publishers that wait.
    pub async fn room(&self, bytes: usize) {
        // Never closed. The permit is given back at once: a look, not a reservation.
        let _ = tokio::join!(self.places.acquire(), self.room.acquire_many(units(bytes)));
    }

    /// Publishes on their way.
    pub fn in_flight(&self) -> usize {
        NATS_IN_FLIGHT_MAX - self.places.available_permits()
    }

    /// Bytes of the largest message that is taken now, headers included.
    pub fn largest(&self) -> usize {
        let most = self.link.client.max_payload();
        if self.message_max == 0 { most } else { most.min(self.message_max) }
    }

    async fn send_out(&self, outgoing: Outgoing) -> Result<Sent, PublishFault> {
        let Outgoing { subject, headers, payload } = outgoing;
        let bytes = payload.len() + message::headers_bytes(&headers);
        let most = self.largest();
        if bytes > most {
            return Err(PublishFault::TooLarge { bytes, most });
        }
        if let Some(cause) = self.away() {
            return Err(PublishFault::NotSent(cause));
        }
        let place = self.places.clone().try_acquire_owned();
        let room = self.room.clone().try_acquire_many_owned(units(bytes));
        let (Ok(place), Ok(room)) = (place, room) else { return Err(PublishFault::Full) };
        // A stream of another name may have our subjects by now: that is not where we read.
        let message = PublishMessage::build().payload(payload).headers(headers).expected_stream(&self.stream);
        match self.context.send_publish(subject, message).await {
            Ok(ack) => Ok(Sent { ack, _place: (place, room) }),
            Err(error) => Err(match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => PublishFault::TooLarge { bytes, most },
                PublishErrorKind::MaxAckPending => PublishFault::Full,
                // The client did not take it over for all this time.
                _ => PublishFault::NotSent("the connection to NATS does not move".to_string()),
            }),
        }
    }

    fn away(&self) -> Option<String> {
        if !self.link.is_up() {
            return Some("no NATS server is connected".to_string());
        }
        self.link.fault()
    }
}

impl Sent {
    /// What became of it; resolves within [`NATS_ACK_MS_MAX`].
    pub async fn outcome(self) -> Result<Receipt, PublishFault> {
        let Sent { ack, _place } = self;
        let limit = Duration::from_millis(NATS_ACK_MS_MAX);
        let Ok(outcome) = timeout(limit, ack.into_future()).await else { return Err(PublishFault::Unknown) };
        match outcome {
            Ok(ack) => Ok(Receipt { sequence: ack.sequence, duplicate: ack.duplicate }),
            Err(error) => Err(match error.kind() {
                // Nobody listens to the subject, so nobody has it.
                PublishErrorKind::StreamNotFound => {
                    PublishFault::NotSent("the stream has no leader now".to_string())
                }
                PublishErrorKind::Other => refused(&error),
                _ => PublishFault::Unknown,
            }),
        }
    }
}

/// What the server says about a message that it does not take.
fn refused(error: &async_nats::jetstream::context::PublishError) -> PublishFault {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<async_nats::jetstream::Error>() {
            let text = one_line(&error.to_string());
            return match error.error_code() {
                // What happened to it is not known to the one who answers.
                ErrorCode::CLUSTER_NOT_LEADER | ErrorCode::CLUSTER_NOT_AVAILABLE => {
                    PublishFault::NotSent(text)
                }
                _ => PublishFault::Refused(text),
            };
        }
        cause = error.source();
    }
    PublishFault::Unknown
}

fn units(bytes: usize) -> u32 {
    let most = NATS_IN_FLIGHT_BYTES_MAX >> 10;
    u32::try_from((bytes + MESSAGE_BYTES).div_ceil(1 << 10).min(most)).unwrap_or(u32::MAX)
}

/// The same for the same key of the same publisher and topic, on every node.
fn message_id(topic: &Topic, principal: &str, key: &IdempotencyKey) -> String {
    let mut hash = Sha256::new();
    for part in [topic.as_str(), principal, key.as_str()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(16).fold(String::with_capacity(32), |mut text, byte| {
        let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{byte:02x}"));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_is_a_matter_of_topic_publisher_and_key() {
        let topic = |name: &str| Topic::new(name).expect("a topic");
        let key = |text: &str| IdempotencyKey::new(text).expect("a key");
        let id = message_id(&topic("a"), "p", &key("k"));
        assert_eq!(id, message_id(&topic("a"), "p", &key("k")));
        assert_eq!(id.len(), 32);
        for other in [("b", "p", "k"), ("a", "q", "k"), ("a", "p", "l"), ("ap", "", "k"), ("a", "", "pk")] {
            assert_ne!(id, message_id(&topic(other.0), other.1, &key(other.2)), "{other:?}");
        }
    }

    #[test]
    fn no_message_takes_more_room_than_there_is() {
        assert_eq!((units(0), units(1 << 10)), (1, 2));
        assert_eq!(units(usize::MAX / 2) as usize, NATS_IN_FLIGHT_BYTES_MAX >> 10);
    }
}

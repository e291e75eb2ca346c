//! Publishing to the stream: sent in order, acknowledged with a sequence.
//!
//! Invariants worth naming:
//! - What fails before it was sent is told apart from what was sent and not acknowledged: the first
//!   may be published again, the second may be in the stream. So nothing is sent while there is no
//!   connection, and what waits too long for its acknowledgement has an unknown outcome.
//! - Publishes without acknowledgement are bounded, in number and in bytes.
//! - A repeat under an idempotency key has the same `Nats-Msg-Id`, on every node.
//! - An acknowledgement does not say of which stream its sequence is: another one may have taken
//!   the place of the one that was meant. So each message has a number of its own, and where this
//!   node has read it is told beside the acknowledgement ([`Sent::place`]).

use std::collections::HashMap;
use std::future::IntoFuture;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{ContextBuilder, PublishAckFuture, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::connect::{Link, one_line};
use super::message;
use super::subject::Subjects;
use crate::config::limits::{NATS_ACK_MS_MAX, NATS_IN_FLIGHT_BYTES_MAX, NATS_IN_FLIGHT_MAX};
use crate::event::{Epoch, Event, EventId, Topic};
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
    awaited: Arc<Awaited>,
}

/// A publish that was sent.
#[derive(Debug)]
pub struct Sent {
    ack: Option<PublishAckFuture>,
    number: u64,
    read: oneshot::Receiver<EventId>,
    awaited: Arc<Awaited>,
    _place: Places,
}

/// What a publish takes of what may be in flight.
type Places = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// Messages of this process that it has not read yet, by their numbers.
#[derive(Debug)]
struct Awaited {
    next: AtomicU64,
    readers: Mutex<HashMap<u64, oneshot::Sender<EventId>>>,
}

impl Awaited {
    /// Numbers begin anywhere, so that no other node has the same.
    fn new() -> Awaited {
        let first = Epoch::random().map_or_else(|_| u64::from(std::process::id()) << 32, |epoch| epoch.0);
        Awaited { next: AtomicU64::new(first), readers: Mutex::default() }
    }

    fn readers(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<EventId>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new number, and where it is told that its message was read.
    fn one_more(&self) -> (u64, oneshot::Receiver<EventId>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, read) = oneshot::channel();
        self.readers().insert(number, tell);
        (number, read)
    }
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
            awaited: Arc::new(Awaited::new()),
        }
    }

    /// Sends an event, or refuses it at once. A publisher's key is its own
    /// ([`IdempotencyKey::of`]).
    pub async fn send(&self, event: &Event, key: Option<&IdempotencyKey>) -> Result<Sent, PublishFault> {
        let mut headers = message::headers(event);
        if let Some(key) = key {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, message_id(&event.topic, key));
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

    /// A message of this number, if it is one of ours, was read here, and this is its place.
    pub fn was_read(&self, number: u64, at: EventId) {
        let reader = self.awaited.readers().remove(&number);
        // One that has given up wants to hear nothing.
        reader.map(|reader| reader.send(at));
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
        let Outgoing { subject, mut headers, payload } = outgoing;
        let (number, read) = self.awaited.one_more();
        headers.insert(message::SENT, &*format!("{number:016x}"));
        let sent = self.send_numbered(Outgoing { subject, headers, payload }).await;
        match sent {
            Ok((ack, place)) => {
                Ok(Sent { ack: Some(ack), number, read, awaited: self.awaited.clone(), _place: place })
            }
            Err(fault) => {
                self.awaited.readers().remove(&number);
                Err(fault)
            }
        }
    }

    async fn send_numbered(&self, outgoing: Outgoing) -> Result<(PublishAckFuture, Places), PublishFault> {
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
            Ok(ack) => Ok((ack, (place, room))),
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
    pub async fn outcome(mut self) -> Result<Receipt, PublishFault> {
        self.acknowledgement().await
    }

    /// The same once, and its place may be asked for besides.
    pub async fn acknowledgement(&mut self) -> Result<Receipt, PublishFault> {
        let ack = self.ack.take().expect("it is awaited once");
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

impl Sent {
    /// Where this node has read the message, once it has: not that of an earlier publish under the
    /// same key.
    pub async fn place(&mut self) -> EventId {
        match (&mut self.read).await {
            Ok(at) => at,
            // Nobody will tell.
            Err(_) => std::future::pending().await,
        }
    }

    /// The same, if it has.
    pub fn place_now(&mut self) -> Option<EventId> {
        self.read.try_recv().ok()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.awaited.readers().remove(&self.number);
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

/// The same for the same key of the same topic, on every node.
fn message_id(topic: &Topic, key: &IdempotencyKey) -> String {
    let mut hash = Sha256::new();
    for part in [topic.as_str(), key.as_str()] {
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
    fn a_message_id_is_a_matter_of_topic_and_key() {
        let topic = |name: &str| Topic::new(name).expect("a topic");
        let key = |text: &str| IdempotencyKey::new(text).expect("a key");
        let id = message_id(&topic("a"), &key("k"));
        assert_eq!(id, message_id(&topic("a"), &key("k")));
        assert_eq!(id.len(), 32);
        for other in [("b", "k"), ("a", "l"), ("ak", "k"), ("a", "kk")] {
            assert_ne!(id, message_id(&topic(other.0), &key(other.1)), "{other:?}");
        }
    }

    #[test]
    fn no_message_takes_more_room_than_there_is() {
        assert_eq!((units(0), units(1 << 10)), (1, 2));
        assert_eq!(units(usize::MAX / 2) as usize, NATS_IN_FLIGHT_BYTES_MAX >> 10);
    }
}

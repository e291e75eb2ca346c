//! The epoch of a stream: what all nodes write before its sequences.
//!
//! Invariants worth naming:
//! - It stands in one entry of a JetStream key-value bucket, beside what identifies the stream: when
//!   it was created, and the newest message that somebody has noted, with its time.
//! - It is replaced by compare-and-set alone, so all nodes that find the stream changed agree on one
//!   new epoch, and the others follow.
//! - A stream is the same one only if it was created at the same time, its head is not below the
//!   noted one, and the noted message, if it is still there, has the same time. A stream that lost
//!   its newest messages and got others in their place is another one.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Store, UpdateErrorKind};
use async_nats::jetstream::stream::{Info, RawMessageErrorKind, Stream};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::connect::innermost;
use super::stream::certain;
use crate::config::limits::NATS_API_MS_MAX;
use crate::event::{Epoch, EventId};

/// The key of the one entry.
const KEY: &str = "epoch";
/// Tries to write against other nodes; each failure is another node's success.
const WRITES_MAX: usize = 16;

/// A message that identifies a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mark {
    /// Its sequence; 0 if there was none yet.
    pub sequence: u64,
    /// When the stream took it, in nanoseconds since 1970.
    pub unix_ns: i64,
}

impl Mark {
    /// When the stream took it, in milliseconds since 1970.
    pub fn unix_ms(self) -> u64 {
        u64::try_from(self.unix_ns / 1_000_000).unwrap_or(0)
    }
}

/// The entry as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct EntryJson {
    epoch: String,
    created_ns: i64,
    head: Mark,
}

/// The epoch as it stands in the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The epoch.
    pub epoch: Epoch,
    /// When the stream was created, in nanoseconds since 1970.
    pub created_ns: i64,
    /// The newest message that was noted.
    pub head: Mark,
    /// The revision, for compare-and-set.
    pub revision: u64,
}

/// Why the epoch is not known. A retry may help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// JetStream does not answer.
    #[error("JetStream does not answer about the epoch ({0})")]
    Silent(String),
    /// The entry is not ours.
    #[error(
        "the key {KEY} of the bucket {bucket} holds {value:?}, which is no epoch; delete the key (nats kv del)"
    )]
    Foreign {
        /// The bucket.
        bucket: String,
        /// The begin of the value.
        value: String,
    },
    /// The kernel gives no random bits.
    #[error("no random bits for a new epoch: {0}")]
    Random(String),
}

/// Where the epoch of a stream stands.
#[derive(Debug, Clone)]
pub struct EpochPlace {
    store: Store,
    bucket: String,
}

/// When a stream was created, in nanoseconds since 1970.
pub fn created_ns(info: &Info) -> i64 {
    i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(i64::MAX)
}

impl EpochPlace {
    /// Opens the bucket beside the stream, or creates it with as many copies.
    pub async fn open(context: &Context, stream: &str, replicas: usize) -> Result<EpochPlace, EpochError> {
        let bucket = format!("{stream}_epoch");
        let config = kv::Config {
            bucket: bucket.clone(),
            description: "epoch of fanwave's events".to_string(),
            history: 1,
            num_replicas: replicas.max(1),
            ..Default::default()
        };
        let silent = |error: String| EpochError::Silent(error);
        let store = match context.get_key_value(&bucket).await {
            Ok(store) => store,
            Err(_) => match context.create_key_value(config).await {
                Ok(store) => store,
                // Another node may have created it.
                Err(error) => {
                    let cause = innermost(&error);
                    context.get_key_value(&bucket).await.map_err(|_| silent(cause))?
                }
            },
        };
        Ok(EpochPlace { store, bucket })
    }

    /// The entry, if there is one.
    pub async fn read(&self) -> Result<Option<Entry>, EpochError> {
        let entry = timeout(Duration::from_millis(NATS_API_MS_MAX), self.store.entry(KEY)).await;
        let entry = entry
            .map_err(|_| EpochError::Silent("no answer in time".to_string()))?
            .map_err(|error| EpochError::Silent(innermost(&error)))?;
        let Some(entry) = entry.filter(|entry| entry.operation == kv::Operation::Put) else {
            return Ok(None);
        };
        self.parse(&entry.value, entry.revision).map(Some)
    }

    fn parse(&self, value: &[u8], revision: u64) -> Result<Entry, EpochError> {
        let read = || {
            let json: EntryJson = serde_json::from_slice(value).ok()?;
            let id: EventId = format!("{}-0", json.epoch).parse().ok()?;
            let EntryJson { created_ns, head, .. } = json;
            id.epoch.is_ours().then_some(Entry { epoch: id.epoch, created_ns, head, revision })
        };
        read().ok_or_else(|| {
            let value = String::from_utf8_lossy(value).chars().take(40).collect();
            EpochError::Foreign { bucket: self.bucket.clone(), value }
        })
    }

    /// The epoch of the stream as it is now: the one that stands there if the stream is still the
    /// same, else a new one, on which all nodes agree. `seen` is what this process has read of it.
    pub async fn settle(&self, stream: &Stream, seen: Option<&Entry>) -> Result<Entry, EpochError> {
        for _ in 0..WRITES_MAX {
            let info = certain(stream).await.map_err(EpochError::Silent)?;
            let entry = self.read().await?;
            if let Some(entry) = &entry
                && is_same(stream, &info, entry).await?
            {
                match seen {
                    // This process knows that the stream is not what it was, whatever stands there.
                    Some(seen) if seen.epoch == entry.epoch && !is_same(stream, &info, seen).await? => {}
                    _ => return Ok(*entry),
                }
            }
            let epoch = match (&entry, seen) {
                // The bucket is gone, the stream is not.
                (None, Some(seen)) if is_same(stream, &info, seen).await? => seen.epoch,
                _ => Epoch::random().map_err(|error| EpochError::Random(error.to_string()))?,
            };
            let head = mark_of(&info);
            let new = Entry { epoch, created_ns: created_ns(&info), head, revision: 0 };
            if let Some(written) = self.write(&new, entry.as_ref().map(|entry| entry.revision)).await? {
                return Ok(written);
            }
        }
        Err(EpochError::Silent("other nodes write it all the time".to_string()))
    }

    /// Notes a newer message of the same stream; the entry as it is now. Other nodes may be faster.
    pub async fn note(&self, entry: &Entry, head: Mark) -> Result<Option<Entry>, EpochError> {
        self.write(&Entry { head, ..*entry }, Some(entry.revision)).await
    }

    /// Writes an entry where `revision` stands, or where there is none. `None` if another one stands
    /// there now.
    async fn write(&self, entry: &Entry, revision: Option<u64>) -> Result<Option<Entry>, EpochError> {
        let id = EventId { epoch: entry.epoch, sequence: 0 }.to_string();
        let epoch = id.strip_suffix("-0").unwrap_or(&id).to_string();
        let json = EntryJson { epoch, created_ns: entry.created_ns, head: entry.head };
        let value = Bytes::from(serde_json::to_vec(&json).expect("text and numbers are JSON"));
        let limit = Duration::from_millis(NATS_API_MS_MAX);
        let written = async {
            match revision {
                Some(revision) => match self.store.update(KEY, value, revision).await {
                    Ok(revision) => Ok(Some(revision)),
                    Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(None),
                    Err(error) => Err(EpochError::Silent(innermost(&error))),
                },
                None => match self.store.create(KEY, value).await {
                    Ok(revision) => Ok(Some(revision)),
                    Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(None),
                    Err(error) => Err(EpochError::Silent(innermost(&error))),
                },
            }
        };
        let written = timeout(limit, written)
            .await
            .map_err(|_| EpochError::Silent("no answer in time".to_string()))??;
        Ok(written.map(|revision| Entry { revision, ..*entry }))
    }
}

fn mark_of(info: &Info) -> Mark {
    let sequence = info.state.last_sequence;
    let unix_ns = i64::try_from(info.state.last_timestamp.unix_timestamp_nanos()).unwrap_or(0);
    Mark { sequence, unix_ns: if sequence == 0 { 0 } else { unix_ns } }
}

/// True if the stream is the one that `entry` was written for.
pub(super) async fn is_same(stream: &Stream, info: &Info, entry: &Entry) -> Result<bool, EpochError> {
    let Mark { sequence, unix_ns } = entry.head;
    if entry.created_ns != created_ns(info) || info.state.last_sequence < sequence {
        return Ok(false);
    }
    if sequence == 0 || sequence < info.state.first_sequence {
        return Ok(true);
    }
    let limit = Duration::from_millis(NATS_API_MS_MAX);
    let read = timeout(limit, stream.get_raw_message(sequence)).await;
    match read.map_err(|_| EpochError::Silent("no answer in time".to_string()))? {
        Ok(message) => Ok(i64::try_from(message.time.unix_timestamp_nanos()).ok() == Some(unix_ns)),
        // It was deleted.
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(true),
        Err(error) => Err(EpochError::Silent(innermost(&error))),
    }
}

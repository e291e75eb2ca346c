//! Why a hub or a shard ends.

use std::error::Error;

/// A shard's thread ended.
#[derive(Debug)]
pub struct ShardEnd {
    /// The shard's number.
    pub shard: usize,
    /// `Err` if it failed.
    pub result: Result<(), ShardFailure>,
}

impl ShardEnd {
    /// The end of a shard's thread with its result; an error tells the cause and, if there is one,
    /// the remedy.
    pub fn new(shard: usize, result: Result<(), impl Into<Box<dyn Error + Send + Sync>>>) -> ShardEnd {
        ShardEnd { shard, result: result.map_err(|error| ShardFailure::Failed(error.into())) }
    }
}

/// How a shard ended that should not have ended so.
#[derive(Debug, thiserror::Error)]
pub enum ShardFailure {
    /// It failed.
    #[error(transparent)]
    Failed(Box<dyn Error + Send + Sync>),
    /// It ended well, and nobody had told it to.
    #[error("ended without being told to")]
    Untold,
    /// Its thread is gone and has said nothing.
    #[error("ended without a word")]
    Silent,
}

/// Why the hub did not end well. None of these heals by itself.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A shard failed, or ended before it was told to.
    #[error("shard {shard}: {failure}")]
    Shard {
        /// The shard's number.
        shard: usize,
        /// How it ended.
        failure: ShardFailure,
    },
    /// Some shards did not end in time after a drain.
    #[error("shards {0:?} did not end in time after the drain")]
    Unfinished(Vec<usize>),
    /// A control listener could not be taken over.
    #[error("control listener: {0}")]
    Listener(#[source] std::io::Error),
}

//! Events that outlive their process (`--data DIR`): a log on disk, written by a thread of its own,
//! and what is read from it when the next process begins.
//!
//! Three promises, by `--fsync`:
//! - `always`: an event is on the disk before it is answered and broadcast. What came in meanwhile
//!   goes to the disk together.
//! - `interval`: it is answered at once; the disk has it within `STORE_SYNC_MS`. A power failure
//!   may take what came since, the end of the process what is still in the queue.
//! - `never`: the same, but the kernel decides when the disk has it.
//!
//! Where some may be lost that somebody got, subscribers who come back are told of a gap. No
//! sequence is ever given twice (`log`).
//!
//! Why segments of our own: `fjall` cuts its journal off at the first byte that it does not
//! understand, also where whole batches follow. Of 134 flipped bits in its journal 9 were opened
//! without an error and with synced events missing, up to 94 of 100. What it would be needed for,
//! looking up by key, is not needed here: histories are read once, from the begin to the end. And it
//! takes no file system of ours, so its crashes cannot be rolled by dice (`tests/dice`).
//!
//! Not here: sequences, room, who may publish (`hub`); what histories hold (`shard`).

use std::io;

use crate::config::Rules;
pub use crate::config::store::Promise;

mod files;
mod format;
mod kept;
mod log;
mod open;
mod past;
mod progress;
mod reader;
mod record;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

pub use files::Directory;
pub use past::StorePast;
pub use reader::{PastReader, Stretch};
pub use record::Stored;
pub use writer::{Entry, News, Said, Store, StoreReport};

/// What a store heeds.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When an event counts as kept.
    pub promise: Promise,
    /// What its segments may take on disk, about.
    pub bytes_max: u64,
    /// A segment is full with so many.
    pub segment_bytes: u64,
    /// What is older goes, a segment at a time; [`u64::MAX`]: nothing is too old.
    pub age_ms_max: u64,
    /// What topics retain.
    pub rules: Rules,
}

/// Why a directory does not open as a store. One line, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("--data {0}: another process uses this directory; each needs one of its own")]
    Locked(String),
    /// The system says no.
    #[error("--data {place}: cannot {what} it: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The directory.
        place: String,
        /// What the system said.
        source: io::Error,
    },
    /// There are other files.
    #[error("--data {place}: it holds {what:?} and is no store of fanwave; name an empty or a new directory")]
    Foreign {
        /// The directory.
        place: String,
        /// One of them.
        what: String,
    },
    /// Another version of the program wrote it.
    #[error(
        "--data {place}: it is of format {found}, and this fanwave knows format {known}; use the fanwave \
         that wrote it, or name a new directory"
    )]
    Format {
        /// The directory.
        place: String,
        /// What it is.
        found: u32,
        /// What it should be.
        known: u32,
    },
    /// A disk has changed what was written.
    #[error(
        "--data: {file} is damaged at byte {at}: {why}; restore it from a copy, or move it and all *.log before it \
         away: then clients that lack their events are told of a gap"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
}

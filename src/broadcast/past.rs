//! What a process takes over from the one before it: the histories of its topics, from a shard of
//! the one to all shards of the other (`hub/past`).

use std::sync::Arc;

use super::Encoded;
use crate::clock::Stamp;
use crate::event::Topic;

/// An event that left a history before the bounds of that history asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Its sequence.
    pub sequence: u64,
    /// When the hub took it in.
    pub intake: Stamp,
    /// Bytes that it counted as published.
    pub published: usize,
}

/// A topic of a former process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastTopic {
    /// Its name.
    pub name: Topic,
    /// The hub remembers it.
    pub remembered: bool,
    /// It has retained values.
    pub retains: bool,
    /// No event up to this sequence is history.
    pub evicted: u64,
    /// The newest event that left the history for want of memory.
    pub cut: Option<Cut>,
    /// Events up to this position may be missing that never came; 0 if none are.
    pub hole: u64,
}

/// What a shard begins with.
#[derive(Debug, Default)]
pub struct Past {
    /// The newest sequence that was given.
    pub sequence: u64,
    /// Events up to this position may be missing, of whatever topic; 0 if none are.
    pub hole: u64,
    /// Topics that the hub remembers, and others that may have retained values.
    pub topics: Vec<PastTopic>,
    /// The events of their histories, in the order of their sequences, and among them those that
    /// may be retained values: these are not newer than what their topic has evicted.
    pub events: Vec<Arc<Encoded>>,
    /// The last sequences of topics of which nothing is left.
    pub forgotten: Vec<(Topic, u64)>,
    /// The newest sequence of forgotten topics that are not among those.
    pub dropped: u64,
}

/// A part of all histories, as a shard tells it.
#[derive(Debug, Default)]
pub struct HistorySlice {
    /// The newest event that the shard has taken.
    pub sequence: u64,
    /// Topics in the order of their names, with the next of their events.
    pub topics: Vec<(PastTopic, Vec<Arc<Encoded>>)>,
    /// Where the next slice begins: in this topic after this sequence. `None` behind the last one.
    pub next: Option<(Topic, u64)>,
    /// Topics of which nothing is left, behind the last slice.
    pub forgotten: Vec<(Topic, u64)>,
    /// The newest sequence of those that were dropped of them.
    pub dropped: u64,
}

/// Whether clients come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doors {
    /// They do.
    Open,
    /// They wait in the kernel.
    Closed,
    /// They come in to another process.
    Left,
}

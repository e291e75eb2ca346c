//! The access log: a line for each subscriber that comes, and one that says what it got when its
//! connection is closed (`--access-log`).
//!
//! What a subscriber got is counted beside the slab, and only with an access log: without one the
//! entry of a connection knows nothing of it, and a row of sends costs one comparison.

use std::fmt;

use super::connections::CHUNK;
use super::state::State;
use crate::clock::Stamp;
use crate::config::limits::ACCESS_TOPICS_MAX;
use crate::egress::Slot;
use crate::event::Topic;
use crate::log::ACCESS;

/// What is counted of each subscriber, by slot.
#[derive(Debug, Default)]
pub(super) struct Access(Vec<Option<Box<Entry>>>);

#[derive(Debug)]
struct Entry {
    since: Stamp,
    topics: Topics,
    /// Frames whose bytes the kernel took.
    events: u64,
    /// Bytes that the kernel took.
    bytes: u64,
}

/// The first topics of a subscriber, and how many more it has.
struct Topics(Box<[Topic]>, usize);

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(Topic::as_str)).finish()
    }
}

impl Access {
    /// The kernel has taken so many frames and bytes.
    pub(super) fn add(&mut self, slot: Slot, frames: u32, bytes: usize) {
        if let Some(entry) = self.entry(slot) {
            entry.events += u64::from(frames);
            entry.bytes += bytes as u64;
        }
    }

    /// It has not taken so many of those that were added.
    pub(super) fn take_back(&mut self, slot: Slot, frames: u32, bytes: usize) {
        if let Some(entry) = self.entry(slot) {
            entry.events -= u64::from(frames);
            entry.bytes -= bytes as u64;
        }
    }

    fn entry(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.0.get_mut(slot as usize)?.as_deref_mut()
    }
}

impl State {
    /// A subscriber has come.
    pub(super) fn log_subscribed(&mut self, slot: Slot) {
        let Some(access) = &mut self.access else { return };
        let connection = self.connections.get(slot);
        let members = connection.memberships.as_slice();
        let told = members.iter().take(ACCESS_TOPICS_MAX);
        let topics = told.map(|member| self.topics.get(member.topic).name.clone()).collect();
        let topics = Topics(topics, members.len().saturating_sub(ACCESS_TOPICS_MAX));
        let (shard, format) = (self.setup.number, connection.format.family().label());
        let peer = connection.peer();
        let more_topics = topics.1;
        tracing::info!(target: ACCESS, shard, %peer, format, ?topics, more_topics, "subscribed");
        if access.0.len() <= slot as usize {
            access.0.resize_with((slot as usize / CHUNK + 1) * CHUNK, || None);
        }
        access.0[slot as usize] = Some(Box::new(Entry { since: self.now, topics, events: 0, bytes: 0 }));
    }

    /// The connection is closed. Nothing is said of one that was no subscriber.
    pub(super) fn log_closed(&mut self, slot: Slot) {
        let entry = self.access.as_mut().and_then(|access| access.0.get_mut(slot as usize)?.take());
        let Some(entry) = entry else { return };
        let connection = self.connections.get(slot);
        let (shard, format) = (self.setup.number, connection.format.family().label());
        let (peer, reason) = (connection.peer(), connection.reason.row().label);
        let Entry { since, topics, events, bytes } = *entry;
        let (more_topics, seconds) = (topics.1, self.now.ns_since(since) as f64 / 1e9);
        tracing::info!(
            target: ACCESS, shard, %peer, format, ?topics, more_topics, reason, seconds, events, bytes,
            "closed"
        );
    }
}

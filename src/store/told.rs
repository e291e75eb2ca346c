//! What the thread that writes a log tells those that read it meanwhile.
//!
//! A segment does not only grow: what a disk refuses to sync is taken back, and other records may
//! stand there next. So readers are told before that happens: what they know of the last segment is
//! worth nothing then.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a log is.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The log has all events up to here that it will ever have.
    written: AtomicU64,
    /// Times that something was taken back.
    cuts: AtomicU64,
    /// Events up to here are gone, or may be.
    floor: AtomicU64,
}

impl Told {
    /// Of a log that is opened.
    pub fn new(written: u64, floor: u64) -> Told {
        Told { written: written.into(), cuts: 0.into(), floor: floor.into() }
    }

    /// The log has all events up to here, and did not have them before.
    pub fn write_up_to(&self, sequence: u64) {
        self.written.fetch_max(sequence, Ordering::Release);
    }

    /// What is behind this sequence is still to be written again.
    pub fn lack_behind(&self, sequence: u64) {
        self.written.fetch_min(sequence, Ordering::Release);
    }

    /// The end of the log is about to be taken back.
    pub fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::AcqRel);
    }

    /// Events up to here are lost that were broadcast.
    pub fn lose_up_to(&self, sequence: u64) {
        self.floor.fetch_max(sequence, Ordering::Release);
    }

    /// Up to where the log has all.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// How often something was taken back.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// Up to where events may be gone.
    pub fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }
}

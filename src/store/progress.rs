//! How far a log is, for the thread that reads it while another one writes it.
//!
//! Invariants worth naming:
//! - A cut is counted before bytes are taken back from the end of the log. So a reader that finds
//!   the same count before and after it has read was told of nothing that has gone meanwhile.
//! - Before the bytes of events that somebody has heard of go, `written` does: up to there the log
//!   has all that it will ever have, save what may be gone up to `lost`.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a reader asks of the writer.
#[derive(Debug, Default)]
pub(super) struct Progress {
    written: AtomicU64,
    lost: AtomicU64,
    cuts: AtomicU64,
}

impl Progress {
    /// The log has all up to this sequence that it will ever have.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Events up to this sequence may be gone.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Acquire)
    }

    /// How often something was taken back from the end of the log.
    pub fn cuts(&self) -> u64 {
        self.cuts.load(Ordering::Acquire)
    }

    /// It has all up to this sequence.
    pub fn wrote(&self, sequence: u64) {
        self.written.fetch_max(sequence, Ordering::AcqRel);
    }

    /// What is behind this sequence goes, and comes again. Returns up to where that was written.
    pub fn take_back(&self, sequence: u64) -> u64 {
        self.written.fetch_min(sequence, Ordering::AcqRel)
    }

    /// Events up to this sequence may be gone from now on.
    pub fn lose(&self, sequence: u64) {
        self.lost.fetch_max(sequence, Ordering::AcqRel);
    }

    /// Something is about to be taken back from the end of the log.
    pub fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::AcqRel);
    }
}

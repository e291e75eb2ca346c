//! How short the process is of memory, and what shards tell of theirs: read and written a few times
//! in a second, never per delivery.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

/// How short memory is, by what is done about it. Each one includes those before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Pressure {
    /// It is not.
    #[default]
    None,
    /// Histories are shorter than settings promise.
    Histories,
    /// Newcomers are refused, and slow sends have less patience.
    Newcomers,
    /// Publishers are refused.
    Publishers,
}

impl Pressure {
    /// All of them, by number.
    pub const ALL: [Pressure; 4] =
        [Pressure::None, Pressure::Histories, Pressure::Newcomers, Pressure::Publishers];

    /// The word in statistics and logs.
    pub fn label(self) -> &'static str {
        ["none", "histories", "newcomers", "publishers"][self as usize]
    }
}

/// What a shard tells of its memory, or all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Sockets open.
    pub sockets: usize,
    /// Sends that wait for room in their socket.
    pub waiting: usize,
    /// Memory of the histories, which are the same on all shards.
    pub histories: usize,
}

/// What hub and shards tell each other of it.
#[derive(Debug, Default)]
pub(super) struct Told {
    pressure: AtomicU8,
    sockets: AtomicUsize,
    waiting: AtomicUsize,
    histories: AtomicUsize,
}

impl Told {
    pub(super) fn pressure(&self) -> Pressure {
        Pressure::ALL[usize::from(self.pressure.load(Ordering::Relaxed))]
    }

    pub(super) fn set_pressure(&self, pressure: Pressure) {
        self.pressure.store(pressure as u8, Ordering::Relaxed);
    }

    pub(super) fn replace(&self, before: Holdings, now: Holdings) {
        // Wraps around and back: what a shard takes away it has added.
        let replace = |sum: &AtomicUsize, before: usize, now: usize| {
            sum.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        };
        replace(&self.sockets, before.sockets, now.sockets);
        replace(&self.waiting, before.waiting, now.waiting);
        self.histories.store(now.histories, Ordering::Relaxed);
    }

    pub(super) fn holdings(&self) -> Holdings {
        let read = |value: &AtomicUsize| value.load(Ordering::Relaxed);
        Holdings {
            sockets: read(&self.sockets),
            waiting: read(&self.waiting),
            histories: read(&self.histories),
        }
    }
}

//! User data: what a completion is about.

use crate::egress::ring::Slot;

/// What a completion is about, in the top byte of its user data; the low half is a slot or an
/// index. In between, an instant send has the index of its batch.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    Accept = 1,
    Receive = 2,
    Send = 3,
    SendZeroCopy = 4,
    EndStream = 5,
    Close = 6,
    Cancel = 7,
    SendInstant = 8,
}

impl Op {
    pub fn user_data(self, index: u32) -> u64 {
        (self as u64) << 56 | u64::from(index)
    }

    pub fn user_data_with_batch(self, slot: Slot, batch: usize) -> u64 {
        self.user_data(slot) | (batch as u64) << 32
    }

    pub fn batch(user_data: u64) -> usize {
        (user_data >> 32) as usize & (INSTANT_BATCHES_MAX - 1)
    }

    pub fn of(user_data: u64) -> Option<(Op, u32)> {
        let op = match (user_data >> 56) as u8 {
            1 => Op::Accept,
            2 => Op::Receive,
            3 => Op::Send,
            4 => Op::SendZeroCopy,
            5 => Op::EndStream,
            6 => Op::Close,
            7 => Op::Cancel,
            8 => Op::SendInstant,
            _ => return None,
        };
        Some((op, user_data as u32))
    }
}

/// Batches of instant sends at most, since the last reap that found all of them taken and told: as
/// many as user data can tell apart. A shard that reaps after each submit never has more than the
/// queue has entries.
pub const INSTANT_BATCHES_MAX: usize = 1 << 24;

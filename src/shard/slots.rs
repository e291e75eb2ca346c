//! Some of the slots of a shard.

use crate::egress::Slot;

/// A bit of each slot, as far as one was put in.
#[derive(Debug, Default)]
pub(super) struct Slots(Vec<u64>);

impl Slots {
    /// True if `slot` is one of them.
    pub(super) fn has(&self, slot: Slot) -> bool {
        self.0.get(slot as usize / 64).is_some_and(|word| (word >> (slot % 64)) & 1 == 1)
    }

    /// Puts `slot` in, or takes it out.
    pub(super) fn set(&mut self, slot: Slot, is_in: bool) {
        let at = slot as usize / 64;
        if is_in && self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        if let Some(word) = self.0.get_mut(at) {
            *word = (*word & !(1 << (slot % 64))) | (u64::from(is_in) << (slot % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_among_some_until_it_is_taken_out() {
        let mut some = Slots::default();
        some.set(1_000_000, false);
        assert!(some.0.is_empty(), "nothing is kept of those that are not");
        for slot in [0, 63, 64, 700] {
            some.set(slot, true);
            assert!(some.has(slot) && !some.has(slot + 1) && !some.has(slot + 64));
            some.set(slot, false);
            assert!(!some.has(slot));
        }
    }
}

//! Carriers that are none now: the memory of the next ones.
//!
//! It is made for many carriers at once and kept. So an idle carrier does not lie between what TLS
//! handshakes take and give back, which would be lost for larger things.

use super::carrier::Carrier;
use crate::config::limits::{H2_CARRIERS_AT_ONCE, H2_STREAMS_USUAL};
use crate::egress::Slot;

/// What a carrier has beside itself.
pub(super) const STREAMS_BYTES: usize = H2_STREAMS_USUAL * size_of::<(u32, Slot)>();

/// Room for the usual number of streams, of which there are none now.
pub(super) fn shrink(streams: &mut Vec<(u32, Slot)>) {
    if streams.capacity() != H2_STREAMS_USUAL {
        *streams = Vec::with_capacity(H2_STREAMS_USUAL);
    }
}

/// Those that nobody has.
#[derive(Debug, Default)]
#[expect(clippy::vec_box, reason = "the box of a carrier is what is used again")]
pub(super) struct Spare(Vec<Box<Carrier>>);

impl Spare {
    /// A carrier whose client has said nothing yet.
    pub fn take(&mut self, receiving: bool, tick: u32) -> Box<Carrier> {
        if self.0.is_empty() {
            let fresh = || Box::new(Carrier::new(Vec::with_capacity(H2_STREAMS_USUAL), false, 0));
            self.0.extend(std::iter::repeat_with(fresh).take(H2_CARRIERS_AT_ONCE));
        }
        let mut carrier = self.0.pop().expect("some were made");
        *carrier = Carrier::new(std::mem::take(&mut carrier.streams), receiving, tick);
        carrier
    }

    /// A carrier is none any more. Its streams are none of it.
    pub fn give_back(&mut self, mut carrier: Box<Carrier>) {
        let mut streams = std::mem::take(&mut carrier.streams);
        shrink(&mut streams);
        *carrier = Carrier::new(streams, false, 0);
        self.0.push(carrier);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrier_that_has_ended_leaves_the_next_one_its_memory_and_nothing_else() {
        let mut spare = Spare::default();
        let mut first = spare.take(true, 3);
        let place: *const Carrier = &raw const *first;
        assert!(first.receiving && first.streams.capacity() == H2_STREAMS_USUAL);
        first.streams.extend((0..20).map(|at| (2 * at + 1, at)));
        (first.last, first.has_settings) = (39, true);
        first.warm_up().is_over = true;
        first.streams.clear();
        spare.give_back(first);
        let next = spare.take(false, 9);
        assert!(std::ptr::eq(place, &raw const *next));
        assert_eq!(
            (next.last, next.has_settings, next.receiving, next.cold.is_none()),
            (0, false, false, true)
        );
        assert_eq!((next.streams.len(), next.streams.capacity()), (0, H2_STREAMS_USUAL));
    }
}

//! What is done for want of memory: a pure rule from what is in use to what is ordered.
//!
//! ```text
//!   0                        13/16   7/8  15/16 31/32  ceiling
//!   |--------------------------|------|-----|-----|------|
//!                            target   |     |     publishers get 503
//!                                     |     newcomers get 503
//!                                     histories are cut down to the target
//! ```
//!
//! Invariants worth naming:
//! - Histories go first. They may take what they hold and what is free below the target, whether
//!   memory is short or not: so events that come between two looks do not reach the marks above.
//! - Bytes of histories are counted with all frames that an event can have, and many have fewer. So
//!   a cut is as much larger as the process is smaller than what is counted.
//! - What was cut has some seconds to show, because the allocator gives freed memory back late.
//!   Histories are not cut again for the same bytes meanwhile. Newcomers and publishers are judged
//!   by what the process really has.
//! - Each measure ends at the mark below the one at which it began.

use crate::broadcast::Pressure;
use crate::config::MemoryMax;
use crate::config::limits::{HISTORY_BYTES_LEAST, MEMORY_CUT_LOOKS};

/// What the process has in use, in bytes. All but `sockets` is what is resident.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InUse {
    /// Events alive, with their frames.
    pub events: u64,
    /// Entries of connections.
    pub connections: u64,
    /// The kernel's for sockets.
    pub sockets: u64,
    /// All else.
    pub rest: u64,
}

impl InUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.events + self.connections + self.sockets + self.rest
    }

    /// What no history can give back.
    pub fn beside_events(&self) -> u64 {
        self.connections + self.sockets + self.rest
    }
}

/// Up to where histories are cut.
pub fn target(ceiling: u64) -> u64 {
    ceiling - ceiling / 16 * 3
}

/// The least ceiling for a process with so much in use.
pub fn least_ceiling(in_use: u64) -> u64 {
    in_use.saturating_add(HISTORY_BYTES_LEAST as u64).saturating_mul(16).div_ceil(13)
}

/// One look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look {
    /// What the process has in use.
    pub in_use: InUse,
    /// What all events alive count, with the frames that they can have.
    pub events: u64,
    /// What those in histories do.
    pub histories: u64,
    /// The ceiling that is asked for.
    pub max: MemoryMax,
    /// What the cgroup may have.
    pub limit: Option<u64>,
}

/// Counted bytes of events may be so many times those that are resident: an event and its frames.
const COUNTED_MOST: u64 = 8;

/// What was cut and has not shown yet.
#[derive(Debug, Clone, Copy, Default)]
struct Cut {
    bytes: u64,
    looks_left: u32,
}

/// What was seen and ordered so far.
#[derive(Debug, Clone)]
pub struct Watch {
    /// What settings allow to histories.
    declared: u64,
    /// What they may take now: `least <= histories <= declared`.
    histories: u64,
    pressure: Pressure,
    cut: Cut,
    /// What was in use at the first look, before any event.
    base: Option<u64>,
    /// Times that histories were cut.
    cuts: u64,
    /// What was in use at the last look, and the ceiling then.
    in_use: InUse,
    ceiling: Option<u64>,
}

impl Watch {
    /// Nothing was seen yet; histories may take `declared` bytes by the settings.
    pub fn new(declared: usize) -> Watch {
        Watch {
            declared: declared as u64,
            histories: declared as u64,
            pressure: Pressure::None,
            cut: Cut::default(),
            base: None,
            cuts: 0,
            in_use: InUse::default(),
            ceiling: None,
        }
    }

    /// What follows from a look: [`Watch::histories`] and [`Watch::pressure`].
    pub fn look(&mut self, look: Look) {
        let Look { in_use, max, limit, .. } = look;
        let used_before = std::mem::replace(&mut self.in_use, in_use).total();
        let base = *self.base.get_or_insert(in_use.beside_events());
        self.ceiling = kept_ceiling(max, limit, base);
        let Some(ceiling) = self.ceiling else {
            (self.histories, self.pressure, self.cut) = (self.declared, Pressure::None, Cut::default());
            return;
        };
        let used = in_use.total();
        // Whatever fell may have been cut.
        self.cut.bytes = self.cut.bytes.saturating_sub(used_before.saturating_sub(used));
        self.bound_histories(&look, ceiling);
        let was = self.pressure;
        let above = |begins: u64, ends: u64, measure| {
            used > ceiling - ceiling / begins || was >= measure && used > ceiling - ceiling / ends
        };
        self.pressure = if above(32, 16, Pressure::Publishers) {
            Pressure::Publishers
        } else if above(16, 8, Pressure::Newcomers) {
            Pressure::Newcomers
        } else if used > ceiling - ceiling / 8 || self.cut.looks_left > 0 {
            Pressure::Histories
        } else {
            Pressure::None
        };
    }

    fn bound_histories(&mut self, look: &Look, ceiling: u64) {
        // Shards tell late what they were told to drop.
        let held = look.histories.min(self.histories);
        let used = look.in_use.total();
        self.cut.looks_left = self.cut.looks_left.saturating_sub(1);
        let pending = if self.cut.looks_left > 0 { self.cut.bytes } else { 0 };
        let least = self.declared.min(HISTORY_BYTES_LEAST as u64);
        let (expected, target) = (used.saturating_sub(pending), target(ceiling));
        let is_short = used > ceiling - ceiling / 8;
        if is_short && expected > target && held > least {
            let resident = look.in_use.events + look.in_use.rest;
            let resident = resident.saturating_sub(self.base.unwrap_or_default()).max(1);
            let counted = (look.events / resident).clamp(1, COUNTED_MOST);
            let wanted = held.saturating_sub((expected - target).saturating_mul(counted)).max(least);
            let looks_left = if pending > 0 { self.cut.looks_left } else { MEMORY_CUT_LOOKS };
            self.cut = Cut { bytes: pending + (held - wanted) / counted, looks_left };
            self.cuts += 1;
            self.histories = wanted;
            return;
        }
        // Only where memory is short they are cut below what they hold. Small changes are no news.
        let free = target.saturating_sub(expected);
        let wanted = held.saturating_add(free).clamp(least, self.declared);
        let step = (self.histories / 64).max(1);
        let is_more = wanted >= self.histories.saturating_add(step) || wanted == self.declared;
        let may_grow = is_more && pending == 0 && !is_short;
        if may_grow || wanted < self.histories.saturating_sub(step) {
            self.histories = wanted;
        }
    }

    /// What all histories may take.
    pub fn histories(&self) -> u64 {
        self.histories
    }

    /// How short memory is.
    pub fn pressure(&self) -> Pressure {
        self.pressure
    }

    /// Times that histories were cut.
    pub fn cuts(&self) -> u64 {
        self.cuts
    }

    /// What was in use at the last look.
    pub fn in_use(&self) -> InUse {
        self.in_use
    }

    /// What was in use at the first look.
    pub fn base(&self) -> Option<u64> {
        self.base
    }

    /// The ceiling at the last look.
    pub fn ceiling(&self) -> Option<u64> {
        self.ceiling
    }
}

/// The ceiling that is kept. One that nobody asked for, and that a server at rest is above, is not.
pub fn kept_ceiling(max: MemoryMax, limit: Option<u64>, base: u64) -> Option<u64> {
    let ceiling = max.ceiling(limit);
    ceiling.filter(|ceiling| matches!(max, MemoryMax::Bytes(_)) || *ceiling >= least_ceiling(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A process of which histories are all that grows, with an allocator that is slow or fast.
    struct World {
        watch: Watch,
        rest: u64,
        sockets: u64,
        held: u64,
        /// Freed, and not given back yet.
        freed: u64,
        /// Counted bytes are so many times those that are resident.
        counted: u64,
        max: MemoryMax,
    }

    impl World {
        fn new(declared: u64, ceiling: u64) -> World {
            let max = MemoryMax::Bytes((ceiling * MIB) as usize);
            let watch = Watch::new((declared * MIB) as usize);
            World { watch, rest: 20 * MIB, sockets: 0, held: 0, freed: 0, counted: 1, max }
        }

        /// So much is published, and histories do as they are told.
        fn look(&mut self, published: u64) -> Pressure {
            let reused = published.min(self.freed);
            self.freed -= reused;
            self.held += published;
            let gone = self.held.saturating_sub(self.watch.histories());
            self.held -= gone;
            self.freed += gone;
            let (events, rest) = (self.held / self.counted, self.rest + self.freed / self.counted);
            let in_use = InUse { events, connections: 0, sockets: self.sockets, rest };
            let (events, histories) = (self.held, self.held);
            self.watch.look(Look { in_use, events, histories, max: self.max, limit: None });
            self.watch.pressure()
        }

        /// The allocator gives back.
        fn give_back(&mut self) {
            self.freed = 0;
        }
    }

    #[test]
    fn histories_fill_what_is_free_below_the_target_and_nobody_is_refused() {
        for declared in [16, 256, 4_096] {
            let mut world = World::new(declared, 128);
            for _ in 0..200 {
                let pressure = world.look(4 * MIB);
                assert!(pressure <= Pressure::Histories, "{pressure:?} with {declared} MiB declared");
            }
            let room = target(128 * MIB) - 20 * MIB;
            assert!(world.held <= room + 4 * MIB, "{} of {room}", world.held);
            assert!(world.held >= (declared * MIB).min(room) * 9 / 10, "{} of {room}", world.held);
        }
    }

    #[test]
    fn histories_go_first_then_newcomers_then_publishers_and_all_come_back() {
        let mut world = World::new(256, 128);
        world.look(0);
        for _ in 0..16 {
            world.look(4 * MIB);
        }
        assert_eq!((world.held, world.watch.pressure(), world.watch.cuts()), (64 * MIB, Pressure::None, 0));
        // Sockets take what the histories had.
        let mut seen = vec![Pressure::None];
        for _ in 0..200 {
            world.sockets += MIB;
            world.give_back();
            let pressure = world.look(0);
            if seen.iter().all(|before| *before < pressure) {
                seen.push(pressure);
            }
            if pressure >= Pressure::Newcomers {
                assert_eq!(world.held, HISTORY_BYTES_LEAST as u64, "histories have given all they can");
            }
        }
        assert_eq!(seen, Pressure::ALL);
        assert!(world.watch.cuts() > 1);
        // They go again.
        let mut seen = vec![Pressure::Publishers];
        while world.sockets > 0 {
            world.sockets = world.sockets.saturating_sub(MIB);
            let pressure = world.look(0);
            if seen.last() != Some(&pressure) {
                seen.push(pressure);
            }
        }
        assert_eq!(seen.last(), Some(&Pressure::None), "{seen:?}");
        assert!(seen.is_sorted_by(|a, b| a > b), "{seen:?}");
        let cuts = world.watch.cuts();
        for _ in 0..100 {
            world.look(4 * MIB);
        }
        assert!(world.held > 60 * MIB && world.watch.cuts() == cuts, "histories grow again");
    }

    #[test]
    fn memory_that_the_allocator_keeps_for_a_while_is_not_cut_twice() {
        let mut world = World::new(256, 128);
        for _ in 0..20 {
            world.look(4 * MIB);
        }
        assert!(world.held > 79 * MIB, "{}", world.held);
        world.sockets = 14 * MIB;
        world.look(0);
        assert_eq!(world.watch.cuts(), 1);
        let cut = world.watch.histories();
        for _ in 0..MEMORY_CUT_LOOKS - 1 {
            world.look(0);
            assert_eq!((world.watch.cuts(), world.watch.histories()), (1, cut));
        }
        world.look(0);
        assert_eq!(world.watch.cuts(), 2, "it has shown nothing in all that time");
        world.give_back();
        for _ in 0..40 {
            world.look(0);
        }
        assert_eq!(world.watch.pressure(), Pressure::None);
    }

    /// Events of which no frame was made take a fifth of what they count.
    #[test]
    fn events_that_count_more_than_they_take_are_cut_by_what_they_take() {
        let mut world = World::new(4_096, 128);
        world.counted = 5;
        world.look(0);
        for _ in 0..100 {
            world.look(4 * MIB);
        }
        let held = world.held;
        assert!(held > 350 * MIB && world.watch.pressure() == Pressure::None, "{held}");
        world.sockets = 14 * MIB;
        world.look(0);
        let cut = held - world.watch.histories();
        let deficit = (20 + 14) * MIB + held / 5 - target(128 * MIB);
        assert!((deficit * 4..=deficit * 5 + 20 * MIB).contains(&cut), "{cut} for {deficit}");
        world.look(0);
        world.give_back();
        for _ in 0..40 {
            world.look(0);
        }
        assert_eq!((world.watch.pressure(), world.watch.cuts()), (Pressure::None, 1));
    }

    #[test]
    fn without_a_ceiling_nothing_is_done_and_a_new_one_is_kept_at_once() {
        let mut world = World::new(256, 128);
        world.max = MemoryMax::None;
        world.look(0);
        world.sockets = 1 << 40;
        assert_eq!(world.look(200 * MIB), Pressure::None);
        assert_eq!((world.watch.histories(), world.watch.ceiling()), (256 * MIB, None));
        world.sockets = 0;
        world.max = MemoryMax::Bytes(128 << 20);
        assert!(world.look(0) > Pressure::None);
        assert!(world.watch.histories() <= target(128 * MIB) - 20 * MIB);
    }

    #[test]
    fn a_cgroup_too_small_for_a_server_at_rest_is_no_ceiling_unless_one_is_asked_for() {
        let at = |max, limit| {
            let mut watch = Watch::new(256 << 20);
            let in_use = InUse { rest: 30 * MIB, ..InUse::default() };
            watch.look(Look { in_use, max, limit: Some(limit), ..Look::default() });
            watch.ceiling()
        };
        assert_eq!(at(MemoryMax::Auto, 40 * MIB), None);
        assert_eq!(at(MemoryMax::Auto, 64 * MIB), Some(64 * MIB - 64 * MIB / 10));
        assert_eq!(at(MemoryMax::Bytes(33 << 20), 40 * MIB), Some(33 * MIB));
        let least = least_ceiling(30 * MIB);
        let needed = 30 * MIB + HISTORY_BYTES_LEAST as u64;
        assert!(target(least) >= needed && target(least - 16) <= needed, "{least}");
    }

    /// Whatever is in use, the orders are within their bounds.
    #[test]
    fn absurd_readings_do_no_harm() {
        for declared in [1, 1 << 10, 1 << 40] {
            for ceiling in [MemoryMax::Bytes(32 << 20), MemoryMax::Bytes(usize::MAX)] {
                let mut watch = Watch::new(declared);
                for used in [0, 1, 40 * MIB, u64::MAX / 8, 0, 3 * MIB, u64::MAX / 8] {
                    let in_use = InUse { events: used, connections: used, sockets: used, rest: used };
                    for held in [0, declared as u64] {
                        watch.look(Look { in_use, events: held, histories: held, max: ceiling, limit: None });
                        let least = (declared as u64).min(HISTORY_BYTES_LEAST as u64);
                        assert!((least..=declared as u64).contains(&watch.histories()));
                    }
                }
                for _ in 0..60 {
                    watch.look(Look { max: ceiling, ..Look::default() });
                }
                assert_eq!(watch.pressure(), Pressure::None);
            }
        }
    }
}

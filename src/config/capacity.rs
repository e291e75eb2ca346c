//! How many connections the descriptor limit has room for.
//!
//! The kernel bounds a ring's table of direct descriptors by the limit, each shard's anew; the
//! server itself only has to fit under it as well. Plain descriptors are shared by all shards and
//! whatever else the process has open; that part is set aside, so that no flood of subscribers
//! takes it.

use std::fmt;

use super::limits::{
    ACCEPTS_ARMED, CONTROL_CONNECTIONS_MAX, CONTROL_CONNECTIONS_MIN, DESCRIPTORS_OF_HUB,
    DESCRIPTORS_OF_SHARD, SOCKETS_LIMIT, SOCKETS_SPARE,
};

/// What shares the process's descriptors.
#[derive(Debug, Clone, Copy)]
pub struct Sharers {
    /// Shards.
    pub shards: usize,
    /// Addresses that subscribers connect to; every shard listens on each.
    pub listens: usize,
    /// Addresses of the control API.
    pub controls: usize,
}

impl Sharers {
    /// Descriptors that are open before anybody connects, at most.
    pub const fn own(self) -> usize {
        DESCRIPTORS_OF_HUB + self.shards * (DESCRIPTORS_OF_SHARD + self.listens)
    }

    /// Control connections at most.
    pub const fn control_connections(self) -> usize {
        self.controls * CONTROL_CONNECTIONS_MAX
    }
}

/// Room for connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Slots of each shard's ring. The slot of a plain descriptor is its number, which may be any.
    pub slots: usize,
    /// Sockets that each shard has open at a time.
    pub sockets_max: usize,
    /// Subscribers that each shard takes; the rest of the sockets is for those who come too many
    /// and still get an answer.
    pub connections_max: usize,
    /// Connections that each control listener has open at a time.
    pub control_connections_max: usize,
    /// Accepts that each listener of a shard has waiting, at least 1. Each holds the place of a
    /// socket, so those of idle listeners leave the busy one a place for every subscriber that the
    /// shard takes.
    pub accepts_per_listener: usize,
}

/// The descriptor limit has too little room. The operator mends it, and the message says how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCapacity {
    /// The limit.
    pub descriptors: usize,
    /// What the server itself takes of it, where that stands in the way of subscribers.
    pub own: Option<usize>,
    /// Connections per shard that there is room for.
    pub room: usize,
    /// Connections per shard that the operator asked for; 0 where any number would have done.
    pub wanted: usize,
}

impl fmt::Display for NoCapacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoCapacity { descriptors, own, room, wanted } = self;
        write!(f, "the descriptor limit of {descriptors}")?;
        if let Some(own) = own {
            write!(f, ", of which the server itself needs {own},")?;
        }
        write!(f, " has room for {room} connections per shard")?;
        if *wanted > 0 {
            write!(f, ", --connections-per-shard-max asks for {wanted}")?;
        }
        // Each shard has the whole limit of direct descriptors; plain ones are shared.
        let remedy = if own.is_none() { "raise ulimit -n or use more shards" } else { "raise ulimit -n" };
        write!(f, ": {remedy}")
    }
}

impl std::error::Error for NoCapacity {}

impl Capacity {
    /// What a limit of `descriptors` allows; `wanted` connections per shard, 0 for all.
    pub fn of(
        descriptors: usize,
        direct: bool,
        sharers: Sharers,
        wanted: usize,
    ) -> Result<Capacity, NoCapacity> {
        let descriptors = descriptors.min(SOCKETS_LIMIT);
        let controls = match direct {
            true => CONTROL_CONNECTIONS_MIN,
            // A low limit is for subscribers first: publishers are few.
            false => (descriptors / 4).max(CONTROL_CONNECTIONS_MIN),
        };
        let beside = sharers.own() + sharers.control_connections().min(controls);
        let fits = beside <= descriptors;
        // Direct descriptors leave them all that the limit has beside the server's own.
        let left = if direct { descriptors.saturating_sub(sharers.own()) } else { controls };
        // Two at least: one of them is kept for questions after the state of the server.
        let control_connections_max = (left / sharers.controls.max(1)).clamp(2, CONTROL_CONNECTIONS_MAX);
        let share = match direct {
            true if fits => descriptors,
            true => 0,
            false => descriptors.saturating_sub(beside) / sharers.shards,
        };
        // A listener holds at least one place beside all subscribers.
        let most = share.saturating_sub(sharers.listens);
        let connections_max = match wanted {
            0 => share.saturating_sub(SOCKETS_SPARE).max(share / 2).min(most),
            wanted => wanted,
        };
        if connections_max == 0 || connections_max > most {
            let own = if direct && fits { None } else { Some(beside) };
            return Err(NoCapacity { descriptors, own, room: most, wanted });
        }
        let spare = SOCKETS_SPARE.max(sharers.listens).min(share - connections_max);
        let sockets_max = connections_max + spare;
        Ok(Capacity {
            slots: if direct { sockets_max } else { descriptors },
            sockets_max,
            connections_max,
            control_connections_max,
            accepts_per_listener: accepts_per_listener(sharers.listens, spare),
        })
    }
}

/// All of them but one listener's fit into the `spare` places beside all subscribers, and leave
/// one.
fn accepts_per_listener(listeners: usize, spare: usize) -> usize {
    let share = (ACCEPTS_ARMED / listeners).max(1);
    match listeners - 1 {
        0 => share,
        others => share.min((spare - 1) / others),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(descriptors: usize, direct: bool, shards: usize, wanted: usize) -> Result<Capacity, NoCapacity> {
        Capacity::of(descriptors, direct, Sharers { shards, listens: 1, controls: 1 }, wanted)
    }

    #[test]
    fn every_shard_has_the_whole_limit_of_direct_descriptors() {
        for shards in [1, 8] {
            let all = room(20_000, true, shards, 0).expect("room");
            assert_eq!((all.slots, all.sockets_max, all.connections_max), (20_000, 20_000, 19_744));
        }
        let few = room(20_000, true, 1, 100).expect("room");
        assert_eq!((few.slots, few.sockets_max), (356, 356));
        let error = room(20_000, true, 1, 20_000).expect_err("too many").to_string();
        assert!(
            error.contains("limit of 20000 has room for 19999 connections per shard")
                && error.ends_with("asks for 20000: raise ulimit -n or use more shards"),
            "{error}"
        );
    }

    #[test]
    fn control_connections_are_what_the_limit_leaves() {
        assert_eq!(room(20_000, true, 2, 0).expect("room").control_connections_max, 1_024);
        // 32 of the hub and 9 of each shard are taken.
        assert_eq!(room(64, true, 2, 0).expect("room").control_connections_max, 64 - 32 - 18);
    }

    #[test]
    fn plain_descriptors_are_shared_with_the_server_itself() {
        // 32 of the hub and 9 of each shard, and 1,024 control connections.
        let one = room(20_000, false, 1, 0).expect("room");
        assert_eq!(one.control_connections_max, 1_024);
        assert_eq!((one.slots, one.sockets_max, one.connections_max), (20_000, 18_935, 18_679));
        let four = room(20_000, false, 4, 0).expect("room");
        assert_eq!((four.slots, four.sockets_max), (20_000, (20_000 - 32 - 36 - 1_024) / 4));
        let error = room(20_000, false, 1, 18_935).expect_err("too many").to_string();
        assert!(
            error.contains("20000, of which the server itself needs 1065, has room for 18934 connections"),
            "{error}"
        );
        assert!(error.ends_with("raise ulimit -n"), "more shards would have less each: {error}");
    }

    #[test]
    fn a_limit_below_what_the_server_itself_needs_is_refused_for_direct_descriptors_too() {
        // The least that is enough: 32 of the hub, 9 of each shard, and 8 control connections.
        for (shards, least) in [(1, 49), (2, 58), (8, 112)] {
            for (descriptors, wanted) in [(0, 0), (16, 0), (least - 1, 0), (least - 1, 1)] {
                let error =
                    room(descriptors, true, shards, wanted).expect_err("the server does not fit").to_string();
                let told = format!(
                    "limit of {descriptors}, of which the server itself needs {least}, has room for 0 connections"
                );
                assert!(error.contains(&told) && error.ends_with("raise ulimit -n"), "{error}");
            }
            let enough = room(least, true, shards, 0).expect("room");
            assert_eq!((enough.slots, enough.sockets_max), (least, least), "all of it is each shard's");
        }
        let unheard = Sharers { shards: 1, listens: 1, controls: 0 };
        assert!(Capacity::of(41, true, unheard, 0).is_ok(), "without the control API nobody connects to it");
    }

    #[test]
    fn control_connections_fit_under_the_limit_with_the_server_itself() {
        for (descriptors, direct, controls, each) in [
            (20_000, true, 1, 1_024),
            (20_000, false, 1, 1_024),
            (64, true, 1, 23),
            (64, true, 2, 11),
            (49, true, 1, 8),
            (64, false, 1, 16),
            (256, false, 2, 32),
            (64, true, 20, 2),
        ] {
            let sharers = Sharers { shards: 1, listens: 1, controls };
            let room = Capacity::of(descriptors, direct, sharers, 0).expect("room");
            assert_eq!(room.control_connections_max, each, "{descriptors} {direct} {controls}");
        }
    }

    #[test]
    fn no_limit_leaves_room_for_no_subscriber_at_all() {
        for descriptors in 0..200 {
            for (direct, shards) in [(true, 1), (true, 2), (false, 1), (false, 2)] {
                let Ok(room) = room(descriptors, direct, shards, 0) else { continue };
                assert!(room.connections_max > 0, "{descriptors} {direct} {shards}: {room:?}");
            }
        }
    }

    #[test]
    fn idle_listeners_leave_the_busy_one_a_place_for_every_subscriber() {
        for listens in [1, 2, 3, 64, 100, 300] {
            let sharers = Sharers { shards: 1, listens, controls: 0 };
            let most = 1_000 - listens;
            for wanted in [0, 1, 300, most - 1, most] {
                let room = Capacity::of(1_000, true, sharers, wanted).expect("room");
                let idle = (listens - 1) * room.accepts_per_listener;
                assert!(room.accepts_per_listener > 0, "{listens} {wanted} {room:?}");
                assert!(room.connections_max + idle < room.sockets_max, "{listens} {wanted} {room:?}");
            }
            let error = Capacity::of(1_000, true, sharers, most + 1)
                .expect_err("no place for a listener")
                .to_string();
            assert!(error.contains(&format!("has room for {most} connections per shard")), "{error}");
        }
        let several = |wanted| {
            let sharers = Sharers { shards: 1, listens: 2, controls: 0 };
            Capacity::of(1_000, true, sharers, wanted).expect("room").accepts_per_listener
        };
        assert_eq!([100, 960, 990, 998].map(several), [32, 32, 9, 1], "as many as fit");
    }

    #[test]
    fn all_that_a_low_limit_may_open_fits_under_it() {
        for descriptors in [48, 64, 256, 1_024, 4_096] {
            for shards in [1, 2, 8, 32] {
                let Ok(room) = room(descriptors, false, shards, 0) else { continue };
                let sharers = Sharers { shards, listens: 1, controls: 1 };
                assert!(
                    shards * room.sockets_max + sharers.own() < descriptors,
                    "{descriptors} {shards} {room:?}"
                );
                assert!(room.connections_max > 0 && room.sockets_max > room.connections_max);
            }
        }
        assert!(room(64, false, 1, 0).is_ok());
        let error = room(64, false, 8, 0).expect_err("the shards themselves need more").to_string();
        assert!(error.ends_with("has room for 0 connections per shard: raise ulimit -n"), "{error}");
    }
}

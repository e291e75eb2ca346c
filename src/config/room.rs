//! How many connections the descriptor limit has room for.
//!
//! The kernel bounds a ring's table of direct descriptors by the limit, each shard's anew. Plain descriptors are shared by all shards
//! and whatever else the process has open; that part is set aside, so that no flood of subscribers takes it.

use super::limits::{
    CONTROL_CONNECTIONS_MAX, DESCRIPTORS_OF_HUB, DESCRIPTORS_OF_SHARD, SOCKETS_LIMIT, SOCKETS_SPARE,
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
pub struct Room {
    /// Slots of each shard's ring. The slot of a plain descriptor is its number, which may be any.
    pub slots: usize,
    /// Sockets that each shard has open at a time.
    pub sockets_max: usize,
    /// Subscribers that each shard takes; the rest of the sockets is for those who come too many and still get an answer.
    pub connections_max: usize,
}

impl Room {
    /// What a limit of `descriptors` allows; `wanted` connections per shard, 0 for all. Fails with what is wrong.
    pub fn of(descriptors: usize, direct: bool, sharers: Sharers, wanted: usize) -> Result<Room, String> {
        let descriptors = descriptors.min(SOCKETS_LIMIT);
        let (beside, shards) = match direct {
            true => (0, 1),
            // A low limit is for subscribers first: publishers are few.
            false => (sharers.own() + sharers.control_connections().min(descriptors / 4), sharers.shards),
        };
        let share = descriptors.saturating_sub(beside) / shards;
        let connections_max = match wanted {
            0 => share.saturating_sub(SOCKETS_SPARE).max(share / 2),
            wanted => wanted,
        };
        if connections_max >= share {
            let (own, remedy) = match direct {
                true => (String::new(), "raise ulimit -n or use more shards"),
                false => (format!(", of which the server itself needs {beside},"), "raise ulimit -n"),
            };
            let asked = match wanted {
                0 => String::new(),
                wanted => format!(", --connections-per-shard-max asks for {wanted}"),
            };
            return Err(format!(
                "the descriptor limit of {descriptors}{own} has room for {} connections per shard{asked}: {remedy}",
                share.saturating_sub(1)
            ));
        }
        let sockets_max = share.min(connections_max + SOCKETS_SPARE);
        Ok(Room { slots: if direct { sockets_max } else { descriptors }, sockets_max, connections_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(descriptors: usize, direct: bool, shards: usize, wanted: usize) -> Result<Room, String> {
        Room::of(descriptors, direct, Sharers { shards, listens: 1, controls: 1 }, wanted)
    }

    #[test]
    fn every_shard_has_the_whole_limit_of_direct_descriptors() {
        for shards in [1, 8] {
            let all = room(20_000, true, shards, 0).expect("room");
            assert_eq!((all.slots, all.sockets_max, all.connections_max), (20_000, 20_000, 19_744));
        }
        let few = room(20_000, true, 1, 100).expect("room");
        assert_eq!((few.slots, few.sockets_max), (356, 356));
        let error = room(20_000, true, 1, 20_000).expect_err("too many");
        assert!(
            error.contains("limit of 20000 has room for 19999 connections per shard")
                && error.ends_with("asks for 20000: raise ulimit -n or use more shards"),
            "{error}"
        );
    }

    #[test]
    fn plain_descriptors_are_shared_with_the_server_itself() {
        // 32 of the hub and 9 of each shard, and 1,024 control connections.
        let one = room(20_000, false, 1, 0).expect("room");
        assert_eq!((one.slots, one.sockets_max, one.connections_max), (20_000, 18_935, 18_679));
        let four = room(20_000, false, 4, 0).expect("room");
        assert_eq!((four.slots, four.sockets_max), (20_000, (20_000 - 32 - 36 - 1_024) / 4));
        let error = room(20_000, false, 1, 18_935).expect_err("too many");
        assert!(
            error.contains("20000, of which the server itself needs 1065, has room for 18934 connections"),
            "{error}"
        );
        assert!(error.ends_with("raise ulimit -n"), "more shards would have less each: {error}");
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
        let error = room(64, false, 8, 0).expect_err("the shards themselves need more");
        assert!(error.ends_with("has room for 0 connections per shard: raise ulimit -n"), "{error}");
    }
}

//! Accepts of several listeners that share a shard's room.

use super::*;
use crate::config::capacity::Sharers;

/// Each client that comes while there is room gets in, whichever listener the others come to.
fn an_idle_listener_keeps_nobody_out_of_a_busy_one<K: Kind>() {
    const LISTENERS: [&str; 3] = ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"];
    let sharers = Sharers { shards: 1, listens: LISTENERS.len(), controls: 0 };
    for descriptors in [100, 120, 200] {
        let wanted = 100 - LISTENERS.len();
        let room = Capacity::of(descriptors, true, sharers, wanted).expect("room");
        for busy in 0..LISTENERS.len() {
            let mut rig = Rig::<K>::in_room(&LISTENERS, room);
            let mut peers = Vec::new();
            for _ in 0..wanted {
                peers.push(TcpStream::connect(rig.addresses[busy]).expect("a place in the backlog"));
                rig.accepted();
            }
            // Beside all subscribers everybody's listener has a place, for an answer to one too
            // many.
            for address in rig.addresses.clone() {
                peers.push(TcpStream::connect(address).expect("a place in the backlog"));
                rig.accepted();
            }
        }
    }
}

/// The others wait in the kernel's queue.
fn no_more_come_in_than_may<K: Kind>() {
    let mut rig = Rig::<K>::new(16);
    rig.ring.allow_accepts(0, 0);
    let mut peers = Vec::new();
    for _ in 0..6 {
        peers.push(TcpStream::connect(rig.addresses[0]).expect("a place in the backlog"));
    }
    rig.settle();
    assert!(rig.seen.is_empty(), "nobody may come: {:?}", rig.seen);
    for (more, most) in [(2, 5), (9, 1)] {
        rig.ring.allow_accepts(more, most);
        for _ in 0..more.min(most) {
            rig.accepted();
        }
        rig.settle();
        assert!(rig.seen.is_empty(), "one too many: {:?}", rig.seen);
    }
    rig.ring.allow_accepts(usize::MAX, usize::MAX);
    for _ in 0..3 {
        rig.accepted();
    }
}

on_every_ring!(an_idle_listener_keeps_nobody_out_of_a_busy_one, no_more_come_in_than_may,);

//! Accepts of several listeners that share a shard's room.

use super::*;
use crate::config::capacity::Sharers;

/// Whoever comes while there is room gets in, wherever everybody comes.
#[test]
fn an_idle_listener_keeps_nobody_out_of_a_busy_one() {
    const LISTENERS: [&str; 3] = ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"];
    let sharers = Sharers { shards: 1, listens: LISTENERS.len(), controls: 0 };
    for descriptors in [100, 120, 200] {
        let wanted = 100 - LISTENERS.len();
        let room = Capacity::of(descriptors, true, sharers, wanted).expect("room");
        for busy in 0..LISTENERS.len() {
            let mut rig = Rig::in_room(&LISTENERS, room, true);
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

/// Of those who come, as many get in as may; the others wait in the kernel's queue.
#[test]
fn no_more_come_in_than_may_and_each_tells_its_listener() {
    const LISTENERS: [&str; 2] = ["127.0.0.1:0", "127.0.0.2:0"];
    let sharers = Sharers { shards: 1, listens: LISTENERS.len(), controls: 0 };
    let room = Capacity::of(200, true, sharers, 0).expect("room");
    let mut rig = Rig::in_room(&LISTENERS, room, true);
    // The accepts that are armed first are of either listener: so one for each that may come.
    rig.ring.allow_accepts(0, 0);
    rig.turn();
    assert_eq!(rig.ring.accepts_armed(), 0);
    assert!(!rig.ring.wants_submit(), "the shard may sleep");
    let peers = [0, 1, 0, 1].map(|at| TcpStream::connect(rig.addresses[at]).expect("a place in the backlog"));
    let accepts = rig.ring.accepts.len();
    let mut came = Vec::new();
    for (more, most, armed) in [(1, 100, 1), (2, 3, 3), (5, 2, 5), (usize::MAX, usize::MAX, accepts)] {
        rig.ring.allow_accepts(more, most);
        let before = came.len();
        let start = Instant::now();
        // Until all that were allowed are in the kernel, or have brought somebody.
        loop {
            rig.ring.submit().expect("a submit does not fail");
            rig.ring.reap(&mut |completion| {
                if let Completion::Accepted { peer, listener, .. } = completion {
                    came.push((peer, listener));
                }
            });
            let done =
                if most == usize::MAX { came.len() == peers.len() } else { !rig.ring.can_arm_accept() };
            if done {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{came:?}");
        }
        assert!(came.len() - before <= armed, "{came:?}");
    }
    for (at, peer) in peers.iter().enumerate() {
        let address = peer.local_addr().expect("connected");
        assert!(came.contains(&(address, at % 2)), "{address} came to {}: {came:?}", at % 2);
    }
}

//! What only the ring of epoll has: sockets that say when to try again, and a look that a busy
//! shard must not forget. What it shares with the other is in `egress/tests`.

use std::io::Write;

use super::*;
use crate::egress::Payload;
use crate::egress::tests::{PATIENCE, Polled, Rig, Seen, batch, pattern};

/// Of 10,000 bytes a receive brings 2,048 at most; no edge tells of the rest.
#[test]
fn what_one_receive_does_not_bring_comes_with_the_next_ones_and_nobody_waits_for_it() {
    let mut rig = Rig::<Polled>::new(4);
    let (mut large, large_slot) = rig.peer();
    let (mut small, small_slot) = rig.peer();
    for slot in [large_slot, small_slot] {
        rig.ring.receive(slot);
    }
    large.write_all(&pattern(10_000, 1)).expect("room in the socket");
    small.write_all(b"small").expect("room in the socket");
    let mut received = Vec::new();
    let mut rounds = 0;
    while received.len() < 10_000 {
        let more = rig.wait("the large one's bytes", |seen| match seen {
            Seen::Received(slot, bytes) if *slot == large_slot => Some(bytes.clone()),
            _ => None,
        });
        received.extend(more);
        rounds += 1;
    }
    assert!(received == pattern(10_000, 1) && rounds >= 5, "{rounds} rounds");
    rig.wait("the small one's bytes", |seen| {
        matches!(seen, Seen::Received(slot, bytes) if *slot == small_slot && bytes == b"small").then_some(())
    });
    assert!(rig.ring.to_receive.is_empty(), "a receive that brought less than it could was the last");
}

/// A shard that asks nothing of its ring would never hear of its sockets.
#[test]
fn a_busy_shard_looks_at_its_sockets_every_other_turn() {
    let mut rig = Rig::<Polled>::new(4);
    rig.settle();
    rig.ring.wait(Duration::ZERO).expect("an epoll can be waited for");
    let mut wants = Vec::new();
    for _ in 0..4 {
        rig.ring.reap(&mut |completion| panic!("{completion:?}"));
        wants.push(rig.ring.wants_submit());
        if wants.ends_with(&[true]) {
            rig.ring.submit().expect("a submit does not fail");
        }
    }
    assert_eq!(wants, [false, true, false, true]);
}

/// The system calls of one event to one subscriber: one send, and one look.
#[test]
fn a_send_that_is_taken_whole_is_one_system_call() {
    let mut rig = Rig::<Polled>::new(4);
    let (mut peer, slot) = rig.peer();
    let small = batch(Payload::Contiguous(pattern(200, 1)));
    let before = rig.ring.enters();
    rig.ring.send(slot, &small, 0, SendMode::Instant);
    assert_eq!(rig.ring.enters(), before + 1);
    assert_eq!(Rc::strong_count(&small), 1, "it is over already");
    assert!(rig.read(&mut peer, 200) == pattern(200, 1));
}

/// What a peer that was hung up on had queued does not reach the next one with its number.
#[test]
fn a_slot_that_is_closed_while_its_bytes_wait_tells_nothing_of_them() {
    let mut rig = Rig::<Polled>::new(4);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    peer.write_all(b"never read").expect("room in the socket");
    while rig.ring.to_receive.is_empty() {
        rig.ring.wait(PATIENCE).expect("an epoll can be waited for");
    }
    rig.ring.cancel(slot);
    rig.ring.close(slot);
    rig.ring.submit().expect("a submit does not fail");
    let mut told = Vec::new();
    rig.ring.reap(&mut |completion| told.push(format!("{completion:?}")));
    let [ended, closed] = told.as_slice() else { panic!("{told:?}") };
    assert!(ended.starts_with("ReceiveEnded") && closed.starts_with("Closed"), "{told:?}");
}

//! Receives: every byte in order, and an end for each: the peer's, ours, or one for want of
//! buffers.

use std::collections::HashMap;

use super::*;

fn a_receive_delivers_every_byte_and_then_the_end_of_the_stream<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    let mut received = Vec::new();
    for round in 0..10 {
        let bytes = pattern(1 + round * 700, round as u32);
        peer.write_all(&bytes).expect("room in the socket");
        received.clear();
        while received.len() < bytes.len() {
            let more = rig.wait("a receive", |seen| match seen {
                Seen::Received(from, bytes) if *from == slot => Some(bytes.clone()),
                _ => None,
            });
            assert!(!more.is_empty() && more.len() <= RECEIVE_BUFFER_BYTES);
            received.extend(more);
        }
        assert_eq!(received, bytes);
    }
    peer.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(rig.receive_end(slot), ReceiveEnd::EndOfStream);
    assert!(rig.seen.is_empty(), "nothing else happened: {:?}", rig.seen);
    rig.close(slot);
}

fn cancelling_a_receive_ends_that_of_one_slot_and_of_no_other<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (_peer, slot) = rig.peer();
    let (mut other, other_slot) = rig.peer();
    for slot in [slot, other_slot] {
        rig.ring.receive(slot);
    }
    rig.settle();
    rig.ring.cancel(slot);
    assert_eq!(rig.receive_end(slot), ReceiveEnd::Cancelled);
    rig.close(slot);
    other.write_all(b"still here").expect("room in the socket");
    let heard = rig.wait("the other's words", |seen| match seen {
        Seen::Received(from, bytes) if *from == other_slot => Some(bytes.clone()),
        _ => None,
    });
    assert_eq!(heard, b"still here");
    // One that has ended by itself is no fault.
    other.shutdown(Shutdown::Write).expect("a socket");
    assert_eq!(rig.receive_end(other_slot), ReceiveEnd::EndOfStream);
    rig.ring.cancel(other_slot);
    rig.close(other_slot);
    assert!(rig.seen.is_empty(), "nothing else happened: {:?}", rig.seen);
}

/// What comes meanwhile stays in the kernel, and so does the end of the stream.
fn a_receive_that_is_paused_tells_nothing_until_it_is_armed_again_and_loses_nothing<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    rig.settle();
    rig.ring.pause(slot);
    assert_eq!(rig.receive_end(slot), ReceiveEnd::Cancelled);
    peer.write_all(b"meanwhile").expect("room in the socket");
    peer.shutdown(Shutdown::Write).expect("a socket");
    rig.settle();
    assert!(rig.seen.is_empty(), "nobody listens: {:?}", rig.seen);
    // One that has ended already is no fault.
    rig.ring.pause(slot);
    rig.settle();
    assert!(rig.seen.is_empty(), "there was nothing to end: {:?}", rig.seen);
    rig.ring.receive(slot);
    let heard = rig.wait("the peer's words", |seen| match seen {
        Seen::Received(from, bytes) if *from == slot => Some(bytes.clone()),
        _ => None,
    });
    assert_eq!(heard, b"meanwhile");
    assert_eq!(rig.receive_end(slot), ReceiveEnd::EndOfStream);
    rig.close(slot);
}

fn more_bytes_than_receive_buffers_are_delivered_in_order_and_without_loss<K: Kind>() {
    const PEERS: usize = RECEIVE_BUFFERS as usize / 2;
    const BYTES: usize = 5 * RECEIVE_BUFFER_BYTES;
    let mut rig = Rig::<K>::new(PEERS as u32);
    let mut peers: Vec<_> = (0..PEERS).map(|_| rig.peer()).collect();
    // Everything waits before the first receive is armed, so one turn runs out of buffers.
    for (peer, slot) in &mut peers {
        for part in pattern(BYTES, *slot).chunks(100) {
            peer.write_all(part).expect("room in the socket");
        }
        peer.shutdown(Shutdown::Write).expect("a socket");
        rig.ring.receive(*slot);
    }
    let mut received: HashMap<Slot, Vec<u8>> = peers.iter().map(|(_, slot)| (*slot, Vec::new())).collect();
    let (mut open, mut starved) = (PEERS, 0);
    let start = Instant::now();
    while open > 0 {
        assert!(start.elapsed() < PATIENCE, "{open} streams have not ended");
        rig.turn();
        for seen in std::mem::take(&mut rig.seen) {
            match seen {
                Seen::Received(slot, bytes) => received.entry(slot).or_default().extend(bytes),
                Seen::ReceiveEnded(_, ReceiveEnd::EndOfStream) => open -= 1,
                Seen::ReceiveEnded(slot, ReceiveEnd::NoBuffers) => {
                    starved += 1;
                    rig.ring.receive(slot);
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    assert_eq!(starved > 0, K::SHARES_BUFFERS, "the buffers ran out");
    for (slot, received) in received {
        assert!(received == pattern(BYTES, slot), "slot {slot} got {} bytes", received.len());
    }
}

on_every_ring!(
    a_receive_delivers_every_byte_and_then_the_end_of_the_stream,
    cancelling_a_receive_ends_that_of_one_slot_and_of_no_other,
    a_receive_that_is_paused_tells_nothing_until_it_is_armed_again_and_loses_nothing,
    more_bytes_than_receive_buffers_are_delivered_in_order_and_without_loss,
);

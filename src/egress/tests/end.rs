//! The end of a ring that has requests in the kernel.

use super::*;

fn a_ring_with_everything_in_flight_ends_cleanly<K: Kind>() {
    let whole = pattern(8 << 20, 3);
    let large = batch(Payload::Contiguous(whole.clone()));
    let segments = pattern(8 << 20, 4);
    let vectored = Bytes::from(segments.clone());
    let vectored = (0..512).map(|number| vectored.slice(number << 14..(number + 1) << 14)).collect();
    let vectored = batch(Payload::Vectored(vectored));
    for _ in 0..50 {
        let mut rig = Rig::<K>::new(8);
        let mut peers: Vec<_> = (0..4).map(|_| rig.peer()).collect();
        for (number, (peer, slot)) in peers.iter_mut().enumerate() {
            rig.ring.receive(*slot);
            rig.ring.send(*slot, if number < 2 { &large } else { &vectored }, 0, SendMode::Waiting);
            peer.write_all(b"not yet received").expect("room in the socket");
        }
        rig.ring.submit().expect("a submit does not fail");
        assert_eq!((Rc::strong_count(&large), Rc::strong_count(&vectored)), (3, 3), "the ring holds them");
        drop(rig);
        for (number, (peer, _)) in peers.into_iter().enumerate() {
            let expected = if number < 2 { &whole } else { &segments };
            let got = read_to_some_end(peer);
            assert!(
                got.len() < expected.len() && got == expected[..got.len()],
                "{} bytes arrived",
                got.len()
            );
        }
    }
    assert_eq!((Rc::strong_count(&large), Rc::strong_count(&vectored)), (1, 1), "nothing was leaked");
}

/// The kernel reads the bytes of a zero-copy send until its socket is gone, so they may outlive the
/// ring.
fn a_ring_with_zero_copy_sends_in_flight_ends_without_freeing_their_bytes<K: Kind>() {
    for round in 0..4 {
        let bytes = pattern(8 << 20, round);
        let large = batch(Payload::Contiguous(bytes.clone()));
        let mut rig = Rig::<K>::new(4);
        let (peer, slot) = rig.peer();
        rig.ring.send(slot, &large, 0, SendMode::ZeroCopy);
        rig.settle();
        drop(rig);
        drop(large);
        let got = read_to_some_end(peer);
        assert!(got.len() < bytes.len() && got == bytes[..got.len()], "{} bytes arrived", got.len());
    }
}

// The kernel closes what is in a table of direct descriptors. Plain ones that io_uring has accepted
// are the process's, and end with it.
on_ring!(
    direct, Direct:
    a_ring_with_everything_in_flight_ends_cleanly,
    a_ring_with_zero_copy_sends_in_flight_ends_without_freeing_their_bytes,
);
on_ring!(
    epoll, Polled:
    a_ring_with_everything_in_flight_ends_cleanly,
    a_ring_with_zero_copy_sends_in_flight_ends_without_freeing_their_bytes,
);

//! The end of a ring that has requests in the kernel.

use super::*;

#[test]
fn a_ring_with_everything_in_flight_ends_cleanly() {
    let whole = pattern(8 << 20, 3);
    let large = batch(Payload::Contiguous(whole.clone()));
    let segments = pattern(8 << 20, 4);
    let vectored = Bytes::from(segments.clone());
    let vectored = (0..512).map(|number| vectored.slice(number << 14..(number + 1) << 14)).collect();
    let vectored = batch(Payload::Vectored(vectored));
    for _ in 0..50 {
        let mut rig = Rig::new(8);
        let mut peers: Vec<_> = (0..4).map(|_| rig.peer()).collect();
        for (number, (peer, slot)) in peers.iter_mut().enumerate() {
            rig.ring.receive(*slot);
            rig.ring.send(*slot, if number < 2 { &large } else { &vectored }, 0, SendMode::Waiting);
            peer.write_all(b"not yet received").expect("room in the socket");
        }
        rig.ring.submit().expect("a submit does not fail");
        assert!(rig.ring.receives == 4 && rig.ring.sends == 4);
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
#[test]
fn a_ring_with_zero_copy_sends_in_flight_ends_without_freeing_their_bytes() {
    for round in 0..4 {
        let bytes = pattern(8 << 20, round);
        let large = batch(Payload::Contiguous(bytes.clone()));
        let mut rig = Rig::new(4);
        let (peer, slot) = rig.peer();
        rig.ring.send(slot, &large, 0, SendMode::ZeroCopy);
        rig.settle();
        drop(rig);
        drop(large);
        let got = read_to_some_end(peer);
        assert!(got.len() < bytes.len() && got == bytes[..got.len()], "{} bytes arrived", got.len());
    }
}

/// More requests than the kernel finishes in one go, and more than the completion queue holds:
/// nothing needs to be leaked.
#[test]
fn a_ring_with_thousands_of_receives_ends_cleanly() {
    for direct in [true, false] {
        let mut rig = Rig::on(&["127.0.0.1:0"], 4, direct);
        let (_peer, slot) = rig.peer();
        for _ in 0..COMPLETIONS_MAX + 1_000 {
            if rig.ring.room() == 0 {
                rig.ring.submit().expect("a submit does not fail");
            }
            rig.ring.receive(slot);
        }
        rig.settle();
        assert!(rig.seen.is_empty(), "all wait: {:?}", rig.seen);
        let mut ring = rig.ring;
        // SAFETY: the ring is forgotten.
        let let_go = unsafe { ring.end() };
        std::mem::forget(ring);
        assert!(let_go, "the kernel has let go of everything, direct: {direct}");
    }
}

//! Sends: instant, waiting and zero-copy ones, of every kind of payload, to peers
//! that read, that do not, and that are gone.

use super::*;

/// One frame, a contiguous run, and a vectored run, each from the start and from the middle.
fn payloads() -> Vec<(Rc<Batch>, Vec<u8>, usize)> {
    let segments: Vec<Vec<u8>> = [5_000, 9_000, 4_500].map(|length| pattern(length, length as u32)).into();
    let mut list = Vec::new();
    for offset in [0, 1, 5_000, 6_000] {
        let bytes = pattern(20_000, offset as u32);
        list.push((batch(Payload::Frame(bytes.clone().into())), bytes[offset..].to_vec(), offset));
        list.push((batch(Payload::Contiguous(bytes.clone())), bytes[offset..].to_vec(), offset));
        let vectored = segments.iter().cloned().map(Bytes::from).collect();
        // From the middle on, a send carries the rest of one segment.
        let whole = segments.concat();
        let end = match offset {
            0 => whole.len(),
            1 => 5_000,
            _ => 14_000,
        };
        list.push((batch(Payload::Vectored(vectored)), whole[offset..end].to_vec(), offset));
    }
    list
}

fn plain_sends_arrive_byte_for_byte<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    for (batch, expected, offset) in payloads() {
        rig.ring.send(slot, &batch, offset, SendMode::Waiting);
        assert!(rig.read(&mut peer, expected.len()) == expected, "offset {offset} of {batch:?}");
        assert_eq!(rig.sent(slot), Ok(expected.len()));
        assert_eq!(Rc::strong_count(&batch), 1, "the ring has let go of the batch");
    }
    assert!(rig.seen.is_empty(), "nothing else happened: {:?}", rig.seen);
}

fn instant_sends_arrive_byte_for_byte_and_silently<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    for (batch, expected, offset) in payloads() {
        rig.ring.send(slot, &batch, offset, SendMode::Instant);
        rig.turn();
        assert_eq!(Rc::strong_count(&batch), 1, "the ring has let go of the batch");
        assert!(rig.read(&mut peer, expected.len()) == expected, "offset {offset} of {batch:?}");
    }
    assert!(rig.seen.is_empty(), "nothing was heard: {:?}", rig.seen);
}

fn an_instant_send_takes_what_there_is_room_for_and_says_how_much<K: Kind>() {
    let bytes = pattern(24 << 20, 3);
    let segments = Bytes::from(bytes.clone());
    let segments = (0..24).map(|number| segments.slice(number << 20..(number + 1) << 20)).collect();
    for payload in [Payload::Contiguous(bytes.clone()), Payload::Vectored(segments)] {
        let mut rig = Rig::<K>::new(4);
        let (mut peer, slot) = rig.peer();
        let (mut other, other_slot) = rig.peer();
        let (large, small) = (batch(payload), batch(Payload::Contiguous(pattern(200, 1))));
        rig.ring.send(other_slot, &small, 0, SendMode::Instant);
        let mut taken = 0;
        loop {
            rig.ring.send(slot, &large, taken, SendMode::Instant);
            rig.turn();
            taken += match rig.seen.pop() {
                None => large.bytes_at(taken).len(),
                Some(Seen::Short(short, Ok(0))) if short == slot => break,
                Some(Seen::Short(short, Ok(some))) if short == slot => some,
                other => panic!("{other:?} after {taken} bytes"),
            };
            assert!(taken < bytes.len(), "the peer reads nothing");
        }
        assert!(taken > 0, "the first took what there was room for");
        assert_eq!(rig.read(&mut other, 200), pattern(200, 1), "the other one's was taken whole");
        assert_eq!((Rc::strong_count(&large), Rc::strong_count(&small)), (1, 1));
        rig.ring.send(slot, &large, taken, SendMode::Waiting);
        let rest = large.bytes_at(taken).len();
        assert!(rig.read(&mut peer, taken + rest) == bytes[..taken + rest], "not a byte lost or twice");
        assert_eq!(rig.sent(slot), Ok(rest));
        assert!(rig.seen.is_empty(), "nothing else happened: {:?}", rig.seen);
    }
}

fn zero_copy_sends_arrive_byte_for_byte_and_loopback_says_that_it_copied<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    for (batch, expected, offset) in payloads() {
        rig.ring.send(slot, &batch, offset, SendMode::ZeroCopy);
        assert!(rig.read(&mut peer, expected.len()) == expected, "offset {offset} of {batch:?}");
        assert_eq!(rig.sent(slot), Ok(expected.len()));
        rig.wait("the word that it copied", |seen| {
            matches!(seen, Seen::Copied(copied) if *copied == slot).then_some(())
        });
        assert_eq!(Rc::strong_count(&batch), 1, "the ring has let go of the batch");
    }
    assert!(rig.seen.is_empty(), "nothing else happened: {:?}", rig.seen);
}

/// One batch, many peers: the message header of a vectored payload is shared.
fn one_batch_goes_to_many_peers_at_once<K: Kind>() {
    let mut rig = Rig::<K>::new(32);
    let mut peers: Vec<_> = (0..32).map(|_| rig.peer()).collect();
    let segments: Vec<Vec<u8>> = (0..4).map(|seed| pattern(6_000, seed)).collect();
    let batch = batch(Payload::Vectored(segments.iter().cloned().map(Bytes::from).collect()));
    let modes = [SendMode::Instant, SendMode::Waiting, SendMode::ZeroCopy];
    for (_, slot) in &peers {
        rig.ring.send(*slot, &batch, 0, modes[*slot as usize % 3]);
    }
    let expected = segments.concat();
    for (peer, slot) in &mut peers {
        assert!(rig.read(peer, expected.len()) == expected, "slot {slot}");
        if modes[*slot as usize % 3] != SendMode::Instant {
            assert_eq!(rig.sent(*slot), Ok(expected.len()));
        }
    }
}

/// More segments than one sendmsg(2) over epoll carries, in a send that is taken whole
/// and in one that has to wait.
fn a_payload_of_hundreds_of_segments_arrives_in_order<K: Kind>() {
    for (mode, bytes) in [(SendMode::Instant, 100), (SendMode::Waiting, 60_000)] {
        let mut rig = Rig::<K>::new(4);
        let (mut peer, slot) = rig.peer();
        let segments: Vec<Vec<u8>> = (0..300).map(|seed| pattern(bytes, seed)).collect();
        let expected = segments.concat();
        let batch = batch(Payload::Vectored(segments.into_iter().map(Bytes::from).collect()));
        rig.ring.send(slot, &batch, 0, mode);
        assert!(rig.read(&mut peer, expected.len()) == expected, "{mode:?}");
        if mode == SendMode::Waiting {
            assert_eq!(rig.sent(slot), Ok(expected.len()));
        }
        assert!(rig.seen.is_empty(), "nothing else happened: {:?}", rig.seen);
    }
}

fn a_send_waits_in_the_ring_for_a_peer_that_does_not_read<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut slow, slow_slot) = rig.peer();
    let (mut quick, quick_slot) = rig.peer();
    // More than both sockets' buffers hold.
    let bytes = pattern(24 << 20, 3);
    let large = batch(Payload::Contiguous(bytes.clone()));
    rig.ring.send(slow_slot, &large, 0, SendMode::Waiting);
    for number in 0..20 {
        let small = batch(Payload::Contiguous(pattern(200, number)));
        rig.ring.send(quick_slot, &small, 0, SendMode::Waiting);
        assert_eq!(rig.read(&mut quick, 200), pattern(200, number), "nobody waits for the slow one");
        assert_eq!(rig.sent(quick_slot), Ok(200));
    }
    rig.settle();
    assert!(rig.seen.is_empty(), "the slow one's send has not ended: {:?}", rig.seen);
    assert_eq!(Rc::strong_count(&large), 2, "the ring holds the batch");
    assert!(rig.read(&mut slow, bytes.len()) == bytes, "every byte arrives once the peer reads");
    assert_eq!(rig.sent(slow_slot), Ok(bytes.len()));
    assert_eq!(Rc::strong_count(&large), 1);
}

fn a_reset_ends_the_receive_and_the_send<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (peer, slot) = rig.peer();
    rig.ring.receive(slot);
    let large = batch(Payload::Contiguous(pattern(24 << 20, 3)));
    rig.ring.send(slot, &large, 0, SendMode::Waiting);
    rig.settle();
    assert!(rig.seen.is_empty(), "both wait: {:?}", rig.seen);
    reset_on_close(&peer);
    drop(peer);
    // The kernel tells the error once: whichever of the two hears it, the other sees an end. What
    // the peer had taken of the send may be counted first; then the next send fails.
    let end = rig.receive_end(slot);
    assert!(matches!(end, ReceiveEnd::Failed(libc::ECONNRESET) | ReceiveEnd::EndOfStream), "{end:?}");
    if rig.sent(slot).is_ok() {
        rig.ring.send(slot, &large, 0, SendMode::Waiting);
        assert!(matches!(rig.sent(slot), Err(SendError::Gone(libc::ECONNRESET | libc::EPIPE))));
    }
    assert_eq!(Rc::strong_count(&large), 1);
    rig.close(slot);
}

fn a_send_to_a_peer_that_is_gone_says_so<K: Kind>() {
    for mode in [SendMode::Waiting, SendMode::ZeroCopy] {
        let mut rig = Rig::<K>::new(4);
        let (peer, slot) = rig.peer();
        rig.ring.receive(slot);
        rig.settle();
        reset_on_close(&peer);
        drop(peer);
        assert_eq!(rig.receive_end(slot), ReceiveEnd::Failed(libc::ECONNRESET));
        let small = batch(Payload::Contiguous(pattern(200, 1)));
        rig.ring.send(slot, &small, 0, mode);
        assert!(matches!(rig.sent(slot), Err(SendError::Gone(libc::ECONNRESET | libc::EPIPE))));
        rig.close(slot);
        assert_eq!(Rc::strong_count(&small), 1, "{mode:?}");
    }
}

fn an_instant_send_to_a_peer_that_is_gone_says_so<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (peer, slot) = rig.peer();
    reset_on_close(&peer);
    drop(peer);
    let small = batch(Payload::Contiguous(pattern(200, 1)));
    rig.ring.send(slot, &small, 0, SendMode::Instant);
    assert!(matches!(rig.short(slot), Err(SendError::Gone(libc::ECONNRESET | libc::EPIPE))));
    rig.close(slot);
    assert_eq!(Rc::strong_count(&small), 1);
}

/// The kernel reads what the batch holds now, not where its last bytes were.
fn a_batch_that_is_filled_again_is_sent_as_it_is_now<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    let mut batch = Batch::empty(&Ledger::default());
    for segments in [["one", " and ", "two"], ["three", " or ", "four"]] {
        batch.fill(Payload::Vectored(segments.map(|text| Bytes::from_static(text.as_bytes())).to_vec()), 1);
        let shared = Rc::new(batch);
        rig.ring.send(slot, &shared, 0, SendMode::Waiting);
        assert_eq!(rig.read(&mut peer, shared.len()), segments.concat().as_bytes());
        rig.sent(slot).expect("the peer is there");
        batch = Rc::into_inner(shared).expect("the ring has let go of the batch");
    }
}

on_every_ring!(
    plain_sends_arrive_byte_for_byte,
    instant_sends_arrive_byte_for_byte_and_silently,
    an_instant_send_takes_what_there_is_room_for_and_says_how_much,
    zero_copy_sends_arrive_byte_for_byte_and_loopback_says_that_it_copied,
    one_batch_goes_to_many_peers_at_once,
    a_payload_of_hundreds_of_segments_arrives_in_order,
    a_send_waits_in_the_ring_for_a_peer_that_does_not_read,
    a_reset_ends_the_receive_and_the_send,
    a_send_to_a_peer_that_is_gone_says_so,
    an_instant_send_to_a_peer_that_is_gone_says_so,
    a_batch_that_is_filled_again_is_sent_as_it_is_now,
);

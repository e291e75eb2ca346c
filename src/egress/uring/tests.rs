//! What only the ring of io_uring has: a queue, completions that ring the doorbell, sockets that
//! were opened elsewhere, an end that is waited for. What it shares with the other is in
//! `egress/tests`.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use super::*;
use crate::broadcast::Doorbell;
use crate::egress::Payload;
use crate::egress::tests::{Direct, Kind, PATIENCE, Plain, Rig, Seen, batch, pattern, reset_on_close};

/// A ring of sockets that were opened elsewhere, with few and small buffers: the socket's
/// descriptor is its slot.
#[test]
fn a_ring_without_listeners_receives_on_sockets_of_others_into_buffers_of_the_size_asked_for() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let own = TcpStream::connect(address).expect("the backlog has room");
    let (mut peer, _) = listener.accept().expect("a peer");
    let doorbell = Doorbell::new().expect("an eventfd");
    let options = UringOptions {
        keeps_listeners: false,
        holds_accepts: false,
        listeners: Vec::new(),
        accepts_per_listener: 0,
        slots: 1_024,
        sockets_max: 1_024,
        direct: false,
        receive_buffers: 4,
        receive_buffer_bytes: 100,
    };
    let ring = Uring::new(options, doorbell.as_fd()).expect("this kernel makes the ring");
    let mut rig = Rig::<Plain> { ring, doorbell, addresses: vec![address], seen: Vec::new() };
    assert!(!rig.ring.wants_submit(), "there is no accept to arm");
    let slot = own.as_raw_fd() as Slot;
    let bytes = pattern(1_000, 1);
    peer.write_all(&bytes).expect("room in the socket");
    peer.shutdown(Shutdown::Write).expect("a socket");
    rig.ring.receive(slot);
    let (mut received, mut starved) = (Vec::new(), 0);
    loop {
        let seen = rig.wait("bytes or an end", |seen| match seen {
            Seen::Received(from, bytes) if *from == slot => Some(Ok(bytes.clone())),
            Seen::ReceiveEnded(from, end) if *from == slot => Some(Err(*end)),
            _ => None,
        });
        match seen {
            Ok(bytes) => {
                assert!(bytes.len() <= 100, "{} bytes in a buffer of 100", bytes.len());
                received.extend(bytes);
            }
            Err(ReceiveEnd::NoBuffers) => {
                starved += 1;
                rig.ring.receive(slot);
            }
            Err(end) => {
                assert_eq!(end, ReceiveEnd::EndOfStream);
                break;
            }
        }
    }
    assert_eq!(received, bytes);
    assert!(starved > 0, "four buffers of 100 bytes do not take 1,000 bytes at once");
}

#[test]
fn a_waiting_submit_ends_with_the_first_completion_or_the_limit() {
    let mut rig = Rig::<Direct>::new(4);
    let (peer, slot) = rig.peer();
    rig.ring.receive(slot);
    rig.settle();

    let limit = Duration::from_millis(30);
    let start = Instant::now();
    rig.ring.submit_and_wait(Some(limit)).expect("a submit does not fail");
    assert!(start.elapsed() >= limit, "nothing has happened");
    assert!(rig.ring.ring.completion().is_empty());

    for limit in [Some(PATIENCE), None] {
        let start = Instant::now();
        let writer = std::thread::spawn({
            let mut peer = peer.try_clone().expect("a descriptor");
            move || peer.write_all(b"word").expect("room in the socket")
        });
        rig.ring.submit_and_wait(limit).expect("a submit does not fail");
        assert!(start.elapsed() < PATIENCE && !rig.ring.ring.completion().is_empty(), "the word ended it");
        writer.join().expect("it has written");
        // What can be reaped already is not waited for.
        rig.ring.submit_and_wait(None).expect("a submit does not fail");
        rig.wait("the word", |seen| matches!(seen, Seen::Received(..)).then_some(()));
    }
}

#[test]
fn completions_ring_the_doorbell_of_a_sleeping_shard_and_of_no_other() {
    let mut rig = Rig::<Direct>::new(4);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    rig.settle();
    let start = Instant::now();
    peer.write_all(b"while awake").expect("room in the socket");
    while !rig.ring.wants_submit() && rig.ring.ring.completion().is_empty() {
        assert!(start.elapsed() < PATIENCE, "the bytes arrive");
    }
    let is_rung = |doorbell: &Doorbell| doorbell.wait(Duration::ZERO).expect("a doorbell");
    assert!(!is_rung(&rig.doorbell), "a shard that is awake looks by itself");
    assert!(!rig.ring.may_sleep(), "there is something to reap");
    rig.wait("the bytes", |seen| matches!(seen, Seen::Received(..)).then_some(()));
    assert!(!is_rung(&rig.doorbell));
}

#[test]
fn instant_sends_that_the_kernel_has_not_seen_are_held() {
    let mut rig = Rig::<Direct>::new(4);
    let (_peer, slot) = rig.peer();
    let small = batch(Payload::Contiguous(pattern(200, 1)));
    for _ in 0..3 {
        rig.ring.send(slot, &small, 0, SendMode::Instant);
    }
    rig.ring.reap(&mut |completion| panic!("{completion:?} of what was not submitted"));
    assert_eq!(Rc::strong_count(&small), 2, "sends in a row share their hold");
    rig.turn();
    assert_eq!(Rc::strong_count(&small), 1);
}

/// More completions than the queue holds: until the last is told, nothing is let go of and nothing
/// new is taken.
#[test]
fn a_completion_queue_that_overflows_stops_the_ring_until_all_is_told() {
    let mut rig = Rig::<Direct>::new(4);
    let (peer, slot) = rig.peer();
    reset_on_close(&peer);
    drop(peer);
    // No two sends in a row share a batch, so each is held by itself.
    let small = [1, 2].map(|seed| batch(Payload::Contiguous(pattern(200, seed))));
    let mut sends = 0;
    while rig.ring.room() > 0 {
        assert!(sends <= COMPLETIONS_MAX as usize + SUBMISSIONS_MAX as usize, "the queue overflows");
        for _ in 0..rig.ring.room() {
            rig.ring.send(slot, &small[sends % 2], 0, SendMode::Instant);
            sends += 1;
        }
        rig.ring.submit().expect("a submit does not fail");
    }
    assert!(sends > COMPLETIONS_MAX as usize);
    let held = || small.each_ref().map(|batch| Rc::strong_count(batch) - 1);
    let mut told = 0;
    while told < sends {
        assert_eq!(held(), [sends.div_ceil(2), sends / 2], "all are held while {told} are told");
        rig.ring.reap(&mut |completion| match completion {
            Completion::Short { slot: of, batch, result: Err(SendError::Gone(_)) } if of == slot => {
                assert!(Rc::ptr_eq(&batch, &small[told % 2]), "each is told with its own batch");
                told += 1;
            }
            other => panic!("{other:?}"),
        });
        assert!(told == sends || rig.ring.wants_submit(), "the rest comes with the next submit");
        rig.ring.submit().expect("a submit does not fail");
    }
    assert_eq!((rig.ring.room(), held()), (SUBMISSIONS_MAX as usize, [0, 0]));
}

/// More requests than the kernel finishes in one go, and more than the completion queue holds:
/// nothing needs to be leaked.
fn a_ring_with_thousands_of_receives_ends_cleanly<K: Kind<Ring = Uring>>() {
    let mut rig = Rig::<K>::new(4);
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
    assert!(let_go, "the kernel has let go of everything");
}

#[test]
fn a_ring_with_thousands_of_receives_on_direct_descriptors_ends_cleanly() {
    a_ring_with_thousands_of_receives_ends_cleanly::<Direct>();
}

#[test]
fn a_ring_with_thousands_of_receives_on_plain_descriptors_ends_cleanly() {
    a_ring_with_thousands_of_receives_ends_cleanly::<Plain>();
}

//! The real ring on loopback sockets. The test is the shard: it submits and reaps in its own
//! thread, and plays the peers with ordinary sockets. Every wait is for something that must happen
//! and fails after `PATIENCE`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::*;
use crate::broadcast::Doorbell;
use crate::config::capacity::Capacity;
use crate::config::limits::{RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS};
use crate::egress::listener::listen;
use crate::egress::{Ledger, Payload};

mod accepts;
mod end;
mod sends;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// A completion that owns its bytes.
#[derive(Debug)]
enum Seen {
    Accepted(Slot, SocketAddr),
    Received(Slot, Vec<u8>),
    ReceiveEnded(Slot, ReceiveEnd),
    Short(Slot, Result<usize, SendError>),
    Sent(Slot, Result<usize, SendError>),
    Copied(Slot),
    StreamEnded(Slot),
    Closed(Slot),
}

/// A ring, where it listens, and what it has reported and no test has looked at yet.
struct Rig {
    ring: Uring,
    doorbell: Doorbell,
    addresses: Vec<SocketAddr>,
    seen: Vec<Seen>,
}

impl Rig {
    fn new(sockets_max: u32) -> Rig {
        Rig::on(&["127.0.0.1:0"], sockets_max, true)
    }

    fn on(addresses: &[&str], sockets_max: u32, direct: bool) -> Rig {
        let sockets_max = sockets_max as usize;
        let room = Capacity {
            slots: sockets_max,
            sockets_max,
            connections_max: sockets_max,
            control_connections_max: 1,
            accepts_per_listener: 16,
        };
        Rig::in_room(addresses, room, direct)
    }

    fn in_room(addresses: &[&str], room: Capacity, direct: bool) -> Rig {
        let doorbell = Doorbell::new().expect("an eventfd");
        let (addresses, listeners) = addresses
            .iter()
            .map(|address| {
                let address = address.parse().expect("an address");
                let (bound, mut listeners) = listen(address, 1, PATIENCE).expect("a free port");
                (bound, listeners.remove(0))
            })
            .unzip();
        let options = UringOptions {
            keeps_listeners: false,
            listeners,
            accepts_per_listener: room.accepts_per_listener,
            slots: if direct { room.slots as u32 } else { 20_000 },
            sockets_max: room.sockets_max as u32,
            direct,
            receive_buffers: RECEIVE_BUFFERS,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        };
        let ring = Uring::new(options, doorbell.as_fd()).expect("this kernel makes the ring");
        Rig { ring, doorbell, addresses, seen: Vec::new() }
    }

    /// Submits what is queued and reaps what is there.
    fn turn(&mut self) {
        self.ring.submit().expect("a submit does not fail");
        let seen = &mut self.seen;
        self.ring.reap(&mut |completion| {
            seen.push(match completion {
                Completion::Accepted { slot, peer, .. } => Seen::Accepted(slot, peer),
                Completion::AcceptFailed(errno) => panic!("accept failed with errno {errno}"),
                Completion::Received { slot, bytes } => Seen::Received(slot, bytes.to_vec()),
                Completion::ReceiveEnded { slot, end } => Seen::ReceiveEnded(slot, end),
                Completion::Short { slot, result, .. } => Seen::Short(slot, result),
                Completion::Sent { slot, result, .. } => Seen::Sent(slot, result),
                Completion::Copied { slot } => Seen::Copied(slot),
                Completion::StreamEnded { slot } => Seen::StreamEnded(slot),
                Completion::Closed { slot } => Seen::Closed(slot),
            });
        });
    }

    /// Turns until something that `wanted` takes was seen; the rest stays for later.
    fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let found = self.seen.iter().enumerate().find_map(|(at, seen)| Some((at, wanted(seen)?)));
            if let Some((at, found)) = found {
                self.seen.remove(at);
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "{what} did not happen; seen: {:?}", self.seen);
            self.turn();
        }
    }

    /// Turns until the ring has nothing more to do by itself.
    fn settle(&mut self) {
        let start = Instant::now();
        while !self.ring.may_sleep() {
            assert!(start.elapsed() < PATIENCE, "the ring comes to rest");
            self.turn();
        }
        self.ring.awake();
    }

    fn accepted(&mut self) -> (Slot, SocketAddr) {
        self.wait("an accept", |seen| match seen {
            Seen::Accepted(slot, peer) => Some((*slot, *peer)),
            _ => None,
        })
    }

    /// A peer that has connected and was accepted.
    fn peer(&mut self) -> (TcpStream, Slot) {
        let peer = TcpStream::connect(self.addresses[0]).expect("the listener's backlog has room");
        let (slot, address) = self.accepted();
        assert_eq!(address, peer.local_addr().expect("an address"));
        peer.set_nonblocking(true).expect("a mode");
        (peer, slot)
    }

    fn sent(&mut self, slot: Slot) -> Result<usize, SendError> {
        self.wait("the end of a send", |seen| match seen {
            Seen::Sent(sent, result) if *sent == slot => Some(*result),
            _ => None,
        })
    }

    fn short(&mut self, slot: Slot) -> Result<usize, SendError> {
        self.wait("an instant send that is not taken whole", |seen| match seen {
            Seen::Short(sent, result) if *sent == slot => Some(*result),
            _ => None,
        })
    }

    fn receive_end(&mut self, slot: Slot) -> ReceiveEnd {
        self.wait("the end of a receive", |seen| match seen {
            Seen::ReceiveEnded(ended, end) if *ended == slot => Some(*end),
            _ => None,
        })
    }

    fn close(&mut self, slot: Slot) {
        self.ring.close(slot);
        self.wait("a close", |seen| matches!(seen, Seen::Closed(closed) if *closed == slot).then_some(()));
    }

    /// Turns until `peer` has read `length` bytes, and returns them; fewer only at the end of the
    /// stream.
    fn read(&mut self, peer: &mut TcpStream, length: usize) -> Vec<u8> {
        let start = Instant::now();
        let mut bytes = vec![0; length];
        let mut here = 0;
        while here < length {
            match peer.read(&mut bytes[here..]) {
                Ok(0) => break,
                Ok(more) => here += more,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < PATIENCE, "{here} of {length} bytes arrived");
                    self.turn();
                }
                Err(error) => panic!("reading: {error}"),
            }
        }
        bytes.truncate(here);
        bytes
    }

    /// True if the eventfd becomes readable within `patience`.
    fn rung(&self, patience: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.doorbell, PollFlags::IN)], Some(&timeout)).expect("poll") > 0
    }
}

/// Bytes that differ from place to place, so that a shift or a swap shows.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 13) as u8)
        .collect()
}

fn batch(payload: Payload) -> Rc<Batch> {
    let mut batch = Batch::empty(&Ledger::default());
    batch.fill(payload, 1);
    Rc::new(batch)
}

/// What `peer` reads until it sees an end: of the stream, or by a reset.
fn read_to_some_end(mut peer: TcpStream) -> Vec<u8> {
    peer.set_nonblocking(false).expect("a mode");
    peer.set_read_timeout(Some(PATIENCE)).expect("a mode");
    let mut bytes = Vec::new();
    match peer.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "no end: {error}"),
    }
    bytes
}

/// Makes the kernel answer with a reset when `peer` is dropped.
fn reset_on_close(peer: &TcpStream) {
    socket2::SockRef::from(peer).set_linger(Some(Duration::ZERO)).expect("a mode");
}

#[test]
fn every_listener_accepts_and_names_the_peer() {
    let mut addresses = vec!["127.0.0.1:0", "127.0.0.2:0"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        addresses.push("[::1]:0");
    }
    let mut rig = Rig::on(&addresses, 16, true);
    for address in rig.addresses.clone() {
        let peer = TcpStream::connect(address).expect("the listener's backlog has room");
        assert_eq!(rig.accepted().1, peer.local_addr().expect("an address"));
    }
}

#[test]
fn a_receive_delivers_every_byte_and_then_the_end_of_the_stream() {
    let mut rig = Rig::new(4);
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

#[test]
fn plain_descriptors_serve_as_well() {
    let mut rig = Rig::on(&["127.0.0.1:0"], 4_096, false);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    peer.write_all(b"hello").expect("room in the socket");
    let hello = rig.wait("the peer's words", |seen| match seen {
        Seen::Received(from, bytes) if *from == slot => Some(bytes.clone()),
        _ => None,
    });
    assert_eq!(hello, b"hello");
    for mode in [SendMode::Waiting, SendMode::ZeroCopy] {
        let answer = batch(Payload::Contiguous(pattern(20_000, 1)));
        rig.ring.send(slot, &answer, 0, mode);
        assert!(rig.read(&mut peer, 20_000) == pattern(20_000, 1));
        assert_eq!(rig.sent(slot), Ok(20_000));
    }
    rig.ring.cancel(slot);
    assert_eq!(rig.receive_end(slot), ReceiveEnd::Failed(libc::ECANCELED));
    rig.close(slot);
    assert_eq!(rig.read(&mut peer, 1), b"", "the close reached the peer");
}

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
        listeners: Vec::new(),
        accepts_per_listener: 0,
        slots: 1_024,
        sockets_max: 1_024,
        direct: false,
        receive_buffers: 4,
        receive_buffer_bytes: 100,
    };
    let ring = Uring::new(options, doorbell.as_fd()).expect("this kernel makes the ring");
    let mut rig = Rig { ring, doorbell, addresses: vec![address], seen: Vec::new() };
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
    let mut rig = Rig::new(4);
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
fn the_end_of_our_stream_follows_the_last_words_and_the_peer_may_still_speak() {
    let mut rig = Rig::new(4);
    let (mut peer, slot) = rig.peer();
    let last = batch(Payload::Contiguous(b"last words".to_vec()));
    rig.ring.receive(slot);
    rig.ring.send(slot, &last, 0, SendMode::Waiting);
    assert_eq!(rig.sent(slot), Ok(10));
    rig.ring.end_stream(slot);
    rig.wait("the end of our stream", |seen| {
        matches!(seen, Seen::StreamEnded(ended) if *ended == slot).then_some(())
    });
    assert_eq!(rig.read(&mut peer, 100), b"last words", "then the stream ends");
    peer.write_all(b"bye").expect("room in the socket");
    peer.shutdown(Shutdown::Write).expect("a socket");
    let bye = rig.wait("the peer's words", |seen| match seen {
        Seen::Received(from, bytes) if *from == slot => Some(bytes.clone()),
        _ => None,
    });
    assert_eq!(bye, b"bye");
    assert_eq!(rig.receive_end(slot), ReceiveEnd::EndOfStream);
    rig.close(slot);
}

#[test]
fn a_stream_that_the_peer_has_reset_ends_too() {
    let mut rig = Rig::new(4);
    let (peer, slot) = rig.peer();
    rig.ring.receive(slot);
    rig.settle();
    reset_on_close(&peer);
    drop(peer);
    assert_eq!(rig.receive_end(slot), ReceiveEnd::Failed(libc::ECONNRESET));
    rig.ring.end_stream(slot);
    rig.wait("the end of our stream", |seen| {
        matches!(seen, Seen::StreamEnded(ended) if *ended == slot).then_some(())
    });
    rig.close(slot);
}

#[test]
fn cancelling_ends_the_send_and_the_receive_of_one_slot_and_of_no_other() {
    for mode in [SendMode::Waiting, SendMode::ZeroCopy] {
        let mut rig = Rig::new(4);
        let (peer, slot) = rig.peer();
        let (mut other, other_slot) = rig.peer();
        let bytes = pattern(24 << 20, 3);
        let large = batch(Payload::Contiguous(bytes.clone()));
        for slot in [slot, other_slot] {
            rig.ring.receive(slot);
            rig.ring.send(slot, &large, 0, mode);
        }
        rig.settle();
        assert!(rig.seen.is_empty(), "all wait: {:?}", rig.seen);
        rig.ring.cancel(slot);
        assert_eq!(rig.receive_end(slot), ReceiveEnd::Failed(libc::ECANCELED));
        match rig.sent(slot) {
            Ok(taken) => assert!(taken < large.len(), "cut short"),
            Err(error) => assert_eq!(error, SendError::Gone(libc::ECANCELED)),
        }
        rig.close(slot);
        // What the kernel had taken arrives, and then an end of some kind.
        let got = read_to_some_end(peer);
        assert!(got.len() < bytes.len() && got == bytes[..got.len()], "{} bytes arrived", got.len());
        assert!(rig.read(&mut other, bytes.len()) == bytes, "the other's send goes on");
        assert_eq!(rig.sent(other_slot), Ok(bytes.len()));
    }
}

#[test]
fn cancelling_a_receive_ends_that_of_one_slot_and_of_no_other() {
    for direct in [true, false] {
        let mut rig = Rig::on(&["127.0.0.1:0"], 4, direct);
        let (_peer, slot) = rig.peer();
        let (mut other, other_slot) = rig.peer();
        for slot in [slot, other_slot] {
            rig.ring.receive(slot);
        }
        rig.settle();
        rig.ring.cancel(slot);
        assert_eq!(rig.receive_end(slot), ReceiveEnd::Failed(libc::ECANCELED));
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
}

#[test]
fn peers_beyond_the_table_wait_and_a_slot_is_used_again_only_after_it_was_closed() {
    let mut rig = Rig::new(2);
    let first = rig.peer();
    let second = rig.peer();
    assert_ne!(first.1, second.1);
    let waiting: Vec<TcpStream> =
        (0..3).map(|_| TcpStream::connect(rig.addresses[0]).expect("a place in the backlog")).collect();
    let mut last = first;
    for next in waiting {
        rig.settle();
        assert!(rig.seen.is_empty(), "nobody gets in: {:?}", rig.seen);
        // The peer leaves, which alone frees nothing.
        rig.ring.receive(last.1);
        drop(last.0);
        assert_eq!(rig.receive_end(last.1), ReceiveEnd::EndOfStream);
        rig.settle();
        assert!(rig.seen.is_empty(), "the slot is not free yet: {:?}", rig.seen);
        rig.close(last.1);
        let (slot, address) = rig.accepted();
        assert_eq!(slot, last.1, "the slot that was freed");
        assert_eq!(address, next.local_addr().expect("an address"), "in the order of arrival");
        last = (next, slot);
    }
    drop(second);
}

#[test]
fn completions_ring_the_doorbell_of_a_sleeping_shard_and_of_no_other() {
    let mut rig = Rig::new(4);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    rig.settle();
    let start = Instant::now();
    peer.write_all(b"while awake").expect("room in the socket");
    while !rig.ring.wants_submit() && rig.ring.ring.completion().is_empty() {
        assert!(start.elapsed() < PATIENCE, "the bytes arrive");
    }
    assert!(!rig.rung(Duration::ZERO), "whoever is awake looks by itself");
    assert!(!rig.ring.may_sleep(), "there is something to reap");
    rig.wait("the bytes", |seen| matches!(seen, Seen::Received(..)).then_some(()));
    assert!(!rig.rung(Duration::ZERO));

    rig.turn();
    assert!(rig.ring.may_sleep(), "everything is reaped");
    assert!(!rig.rung(Duration::ZERO), "nothing has happened");
    peer.write_all(b"while asleep").expect("room in the socket");
    assert!(rig.rung(PATIENCE), "the kernel rings");
    rig.ring.awake();
    rustix::io::read(&rig.doorbell, &mut [0; 8]).expect("the count");
    rig.wait("the bytes", |seen| matches!(seen, Seen::Received(..)).then_some(()));

    // A new peer wakes the shard as well.
    rig.settle();
    assert!(rig.ring.may_sleep());
    let _newcomer = TcpStream::connect(rig.addresses[0]).expect("the listener's backlog has room");
    assert!(rig.rung(PATIENCE), "the kernel rings");
    rig.ring.awake();
    rig.accepted();
}

#[test]
fn more_bytes_than_receive_buffers_are_delivered_in_order_and_without_loss() {
    const PEERS: usize = RECEIVE_BUFFERS as usize / 2;
    const BYTES: usize = 5 * RECEIVE_BUFFER_BYTES;
    let mut rig = Rig::new(PEERS as u32);
    let mut peers: Vec<_> = (0..PEERS).map(|_| rig.peer()).collect();
    // Everything waits before the first receive is armed, so one turn runs out of buffers.
    for (peer, slot) in &mut peers {
        for part in pattern(BYTES, *slot).chunks(100) {
            peer.write_all(part).expect("room in the socket");
        }
        peer.shutdown(Shutdown::Write).expect("a socket");
        rig.ring.receive(*slot);
    }
    let mut received = vec![Vec::new(); PEERS];
    let (mut open, mut starved) = (PEERS, 0);
    let start = Instant::now();
    while open > 0 {
        assert!(start.elapsed() < PATIENCE, "{open} streams have not ended");
        rig.turn();
        for seen in std::mem::take(&mut rig.seen) {
            match seen {
                Seen::Received(slot, bytes) => received[slot as usize].extend(bytes),
                Seen::ReceiveEnded(_, ReceiveEnd::EndOfStream) => open -= 1,
                Seen::ReceiveEnded(slot, ReceiveEnd::NoBuffers) => {
                    starved += 1;
                    rig.ring.receive(slot);
                }
                other => panic!("unexpected: {other:?}"),
            }
        }
    }
    assert!(starved > 0, "the buffers ran out");
    for (slot, received) in received.iter().enumerate() {
        assert!(*received == pattern(BYTES, slot as u32), "slot {slot} got {} bytes", received.len());
    }
}

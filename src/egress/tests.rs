//! What the trait promises, on every ring that has real sockets, over loopback. The test is the
//! shard: it submits and reaps in its own thread, and plays the peers with ordinary sockets. Every
//! wait is for something that must happen and fails after `PATIENCE`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::epoll::{Epoll, EpollOptions};
use super::ring::{Completion, EgressRing, ReceiveEnd, SendError, SendMode, Slot};
use super::uring::{Uring, UringOptions};
use super::{Batch, Ledger, Payload};
use crate::broadcast::Doorbell;
use crate::config::capacity::Capacity;
use crate::config::limits::{RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS};
use crate::egress::listener::listen;

/// Makes each claim a test of one kind of ring.
macro_rules! on_ring {
    ($module:ident, $kind:ident: $($claim:ident),+ $(,)?) => {
        mod $module { $(#[test] fn $claim() { super::$claim::<$crate::egress::tests::$kind>(); })+ }
    };
}

/// Makes each claim a test of every kind of ring.
macro_rules! on_every_ring {
    ($($claim:ident),+ $(,)?) => {
        on_ring!(direct, Direct: $($claim),+);
        on_ring!(plain, Plain: $($claim),+);
        on_ring!(epoll, Polled: $($claim),+);
    };
}

mod accepts;
mod end;
mod receives;
mod sends;

/// How long anything may take before the test fails.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A kind of ring, and how it differs from the others.
pub(super) trait Kind {
    type Ring: EgressRing;
    /// The slots are the ring's own; else descriptors of the process, where every test has some.
    const HAS_OWN_SLOTS: bool = false;
    /// All sockets share a few receive buffers, which may run out.
    const SHARES_BUFFERS: bool = true;

    fn open(listeners: Vec<OwnedFd>, room: Capacity, doorbell: &Doorbell) -> Self::Ring;

    /// Sleeps as a shard does whose ring says that it may. True if it was woken within `patience`.
    fn sleep(ring: &mut Self::Ring, doorbell: &Doorbell, patience: Duration) -> bool;
}

/// io_uring with direct descriptors.
pub(super) struct Direct;
/// io_uring with plain descriptors.
pub(super) struct Plain;
/// epoll.
pub(super) struct Polled;

/// More than the numbers of the descriptors that the tests have open.
const DESCRIPTORS: u32 = 20_000;

fn uring(listeners: Vec<OwnedFd>, room: Capacity, direct: bool, doorbell: &Doorbell) -> Uring {
    let options = UringOptions {
        keeps_listeners: false,
        holds_accepts: false,
        listeners,
        accepts_per_listener: room.accepts_per_listener,
        slots: if direct { room.slots as u32 } else { DESCRIPTORS },
        sockets_max: room.sockets_max as u32,
        direct,
        receive_buffers: RECEIVE_BUFFERS,
        receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
    };
    Uring::new(options, doorbell.as_fd()).expect("this kernel makes the ring")
}

impl Kind for Direct {
    type Ring = Uring;
    const HAS_OWN_SLOTS: bool = true;

    fn open(listeners: Vec<OwnedFd>, room: Capacity, doorbell: &Doorbell) -> Uring {
        uring(listeners, room, true, doorbell)
    }

    fn sleep(_: &mut Uring, doorbell: &Doorbell, patience: Duration) -> bool {
        doorbell.wait(patience).expect("a doorbell can be waited for")
    }
}

impl Kind for Plain {
    type Ring = Uring;

    fn open(listeners: Vec<OwnedFd>, room: Capacity, doorbell: &Doorbell) -> Uring {
        uring(listeners, room, false, doorbell)
    }

    fn sleep(ring: &mut Uring, doorbell: &Doorbell, patience: Duration) -> bool {
        Direct::sleep(ring, doorbell, patience)
    }
}

impl Kind for Polled {
    type Ring = Epoll;
    const SHARES_BUFFERS: bool = false;

    fn open(listeners: Vec<OwnedFd>, room: Capacity, doorbell: &Doorbell) -> Epoll {
        let options = EpollOptions {
            listeners,
            holds_accepts: false,
            accepts_per_listener: room.accepts_per_listener,
            sockets_max: room.sockets_max as u32,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        };
        Epoll::new(options, doorbell.as_fd()).expect("this kernel makes an epoll")
    }

    fn sleep(ring: &mut Epoll, _: &Doorbell, patience: Duration) -> bool {
        let start = Instant::now();
        ring.wait(patience).expect("an epoll can be waited for");
        start.elapsed() < patience
    }
}

/// A completion that owns its bytes.
#[derive(Debug)]
pub(super) enum Seen {
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
pub(super) struct Rig<K: Kind> {
    pub ring: K::Ring,
    pub doorbell: Doorbell,
    pub addresses: Vec<SocketAddr>,
    pub seen: Vec<Seen>,
}

impl<K: Kind> Rig<K> {
    pub fn new(sockets_max: u32) -> Rig<K> {
        Rig::on(&["127.0.0.1:0"], sockets_max)
    }

    fn on(addresses: &[&str], sockets_max: u32) -> Rig<K> {
        let sockets_max = sockets_max as usize;
        let room = Capacity {
            slots: sockets_max,
            sockets_max,
            connections_max: sockets_max,
            control_connections_max: 1,
            accepts_per_listener: 16,
        };
        Rig::in_room(addresses, room)
    }

    fn in_room(addresses: &[&str], room: Capacity) -> Rig<K> {
        let doorbell = Doorbell::new().expect("an eventfd");
        let (addresses, listeners) = addresses
            .iter()
            .map(|address| {
                let address = address.parse().expect("an address");
                let (bound, mut listeners) = listen(address, 1, PATIENCE).expect("a free port");
                (bound, listeners.remove(0))
            })
            .unzip();
        let ring = K::open(listeners, room, &doorbell);
        Rig { ring, doorbell, addresses, seen: Vec::new() }
    }

    /// Submits what is queued and reaps what is there.
    pub fn turn(&mut self) {
        self.ring.submit().expect("a submit does not fail");
        let seen = &mut self.seen;
        self.ring.reap(&mut |completion| {
            seen.push(match completion {
                Completion::Accepted { slot, peer, .. } => Seen::Accepted(slot, peer),
                Completion::AcceptFailed(errno) => panic!("accept failed with errno {errno}"),
                Completion::Introduced { slot, .. } | Completion::Secured { slot } => {
                    panic!("slot {slot} speaks TLS in a ring without it")
                }
                Completion::StreamOpened { .. } | Completion::StreamRefused { .. } => {
                    panic!("a ring of sockets carries no streams")
                }
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
    pub fn wait<T>(&mut self, what: &str, mut wanted: impl FnMut(&Seen) -> Option<T>) -> T {
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

    /// Turns until the ring has nothing more to do by itself, once at least.
    pub fn settle(&mut self) {
        let start = Instant::now();
        self.turn();
        while !self.ring.may_sleep() {
            assert!(start.elapsed() < PATIENCE, "the ring comes to rest");
            self.turn();
        }
        self.ring.awake();
    }

    pub fn accepted(&mut self) -> (Slot, SocketAddr) {
        self.wait("an accept", |seen| match seen {
            Seen::Accepted(slot, peer) => Some((*slot, *peer)),
            _ => None,
        })
    }

    /// A peer that has connected and was accepted.
    pub fn peer(&mut self) -> (TcpStream, Slot) {
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

    pub fn close(&mut self, slot: Slot) {
        self.ring.close(slot);
        self.wait("a close", |seen| matches!(seen, Seen::Closed(closed) if *closed == slot).then_some(()));
    }

    /// Turns until `peer` has read `length` bytes, and returns them; fewer only at the end of the
    /// stream.
    pub fn read(&mut self, peer: &mut TcpStream, length: usize) -> Vec<u8> {
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
}

/// Bytes that differ from place to place, so that a shift or a swap shows.
pub(super) fn pattern(length: usize, seed: u32) -> Vec<u8> {
    (0..length as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 13) as u8)
        .collect()
}

pub(super) fn batch(payload: Payload) -> Rc<Batch> {
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
pub(super) fn reset_on_close(peer: &TcpStream) {
    socket2::SockRef::from(peer).set_linger(Some(Duration::ZERO)).expect("a mode");
}

fn every_listener_accepts_and_names_the_peer<K: Kind>() {
    let mut addresses = vec!["127.0.0.1:0", "127.0.0.2:0"];
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        addresses.push("[::1]:0");
    }
    let mut rig = Rig::<K>::on(&addresses, 16);
    for address in rig.addresses.clone() {
        let peer = TcpStream::connect(address).expect("the listener's backlog has room");
        assert_eq!(rig.accepted().1, peer.local_addr().expect("an address"));
    }
}

fn a_connection_is_served_from_the_first_words_to_the_close<K: Kind>() {
    let mut rig = Rig::<K>::new(4_096);
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
    assert_eq!(rig.receive_end(slot), ReceiveEnd::Cancelled);
    rig.close(slot);
    assert_eq!(rig.read(&mut peer, 1), b"", "the close reached the peer");
}

fn the_end_of_our_stream_follows_the_last_words_and_the_peer_may_still_speak<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
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

fn a_stream_that_the_peer_has_reset_ends_too<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
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

fn cancelling_ends_the_send_and_the_receive_of_one_slot_and_of_no_other<K: Kind>() {
    for mode in [SendMode::Waiting, SendMode::ZeroCopy] {
        let mut rig = Rig::<K>::new(4);
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
        assert_eq!(rig.receive_end(slot), ReceiveEnd::Cancelled);
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

fn peers_beyond_the_table_wait_and_a_slot_is_used_again_only_after_it_was_closed<K: Kind>() {
    let mut rig = Rig::<K>::new(2);
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
        if K::HAS_OWN_SLOTS {
            assert_eq!(slot, last.1, "the slot that was freed");
        }
        assert_eq!(address, next.local_addr().expect("an address"), "in the order of arrival");
        last = (next, slot);
    }
    drop(second);
}

fn what_happens_to_a_socket_wakes_a_sleeping_shard_and_so_does_its_doorbell<K: Kind>() {
    let mut rig = Rig::<K>::new(4);
    let (mut peer, slot) = rig.peer();
    rig.ring.receive(slot);
    rig.settle();
    assert!(rig.ring.may_sleep(), "everything is reaped");
    let short = Duration::from_millis(20);
    assert!(!K::sleep(&mut rig.ring, &rig.doorbell, short), "nothing has happened");
    peer.write_all(b"while asleep").expect("room in the socket");
    assert!(K::sleep(&mut rig.ring, &rig.doorbell, PATIENCE), "the bytes wake it");
    rig.ring.awake();
    rig.wait("the bytes", |seen| matches!(seen, Seen::Received(..)).then_some(()));

    // A new peer wakes the shard as well.
    rig.settle();
    assert!(rig.ring.may_sleep());
    let _newcomer = TcpStream::connect(rig.addresses[0]).expect("the listener's backlog has room");
    assert!(K::sleep(&mut rig.ring, &rig.doorbell, PATIENCE), "the newcomer wakes it");
    rig.ring.awake();
    rig.accepted();

    // And so does the hub, each time.
    for _ in 0..3 {
        rig.settle();
        assert!(rig.ring.may_sleep());
        assert!(!K::sleep(&mut rig.ring, &rig.doorbell, short), "nobody has rung");
        rustix::io::write(&rig.doorbell, &1u64.to_ne_bytes()).expect("an eventfd takes a write");
        assert!(K::sleep(&mut rig.ring, &rig.doorbell, PATIENCE), "the hub wakes it");
        rig.ring.awake();
    }
}

on_every_ring!(
    every_listener_accepts_and_names_the_peer,
    a_connection_is_served_from_the_first_words_to_the_close,
    the_end_of_our_stream_follows_the_last_words_and_the_peer_may_still_speak,
    a_stream_that_the_peer_has_reset_ends_too,
    cancelling_ends_the_send_and_the_receive_of_one_slot_and_of_no_other,
    peers_beyond_the_table_wait_and_a_slot_is_used_again_only_after_it_was_closed,
    what_happens_to_a_socket_wakes_a_sleeping_shard_and_so_does_its_doorbell,
);

//! The rings themselves: sends that are taken whole, sends that wait, and what peers say. Each with
//! real sockets, since only these tell what a ring does about them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fanwave::broadcast::Doorbell;
use fanwave::egress::epoll::{Epoll, EpollOptions};
use fanwave::egress::listener::listen;
use fanwave::egress::uring::{Uring, UringOptions};
use fanwave::egress::{Batch, Completion, EgressRing, Ledger, Payload, SendMode, Slot};

use super::counting::counted;

const PEERS: usize = 16;
/// Rounds until every queue of a ring has its size, and rounds that are counted.
const ROUNDS: [usize; 2] = [3, 5];
const PATIENCE: Duration = Duration::from_secs(60);
/// More than a socket takes at once.
const LARGE_BYTES: usize = 6 << 20;

/// A ring with peers, and what has happened in this round.
struct Scene<R> {
    ring: R,
    peers: Vec<(TcpStream, Slot)>,
    /// Bytes that came from peers, and waiting sends that ended.
    received: usize,
    sent: usize,
    /// Receives to be armed again.
    ended: Vec<Slot>,
}

impl<R: EgressRing> Scene<R> {
    fn new(address: SocketAddr, ring: R) -> Scene<R> {
        let mut scene =
            Scene { ring, peers: Vec::new(), received: 0, sent: 0, ended: Vec::with_capacity(PEERS) };
        while scene.peers.len() < PEERS {
            let peer = TcpStream::connect(address).expect("a place in the backlog");
            peer.set_nonblocking(true).expect("a mode");
            let start = Instant::now();
            let slot = loop {
                assert!(start.elapsed() < PATIENCE, "a peer is accepted");
                scene.ring.submit().expect("a submit does not fail");
                let mut accepted = None;
                scene.ring.reap(&mut |completion| {
                    if let Completion::Accepted { slot, .. } = completion {
                        accepted = Some(slot);
                    }
                });
                if let Some(slot) = accepted {
                    break slot;
                }
            };
            scene.ring.receive(slot);
            scene.peers.push((peer, slot));
        }
        scene
    }

    fn turn(&mut self) {
        self.ring.submit().expect("a submit does not fail");
        let Scene { ring, received, sent, ended, .. } = self;
        ring.reap(&mut |completion| match completion {
            Completion::Received { bytes, .. } => *received += bytes.len(),
            // Buffers may run out; armed again it goes on.
            Completion::ReceiveEnded { slot, .. } => ended.push(slot),
            Completion::Sent { result, .. } => *sent += result.expect("the peers are there"),
            other => panic!("{other:?}"),
        });
        for slot in ended.drain(..) {
            ring.receive(slot);
        }
    }

    /// Turns until each peer has read so many bytes.
    fn read(&mut self, each: usize, buffer: &mut [u8]) {
        let start = Instant::now();
        for number in 0..PEERS {
            let mut left = each;
            while left > 0 {
                assert!(start.elapsed() < PATIENCE, "{left} bytes have not come");
                let some = buffer.len().min(left);
                match self.peers[number].0.read(&mut buffer[..some]) {
                    Ok(0) => panic!("the stream has ended"),
                    Ok(some) => left -= some,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => self.turn(),
                    Err(error) => panic!("reading: {error}"),
                }
            }
        }
    }

    fn round(&mut self, small: &[Rc<Batch>], large: &Rc<Batch>, buffer: &mut [u8]) {
        (self.received, self.sent) = (0, 0);
        for batch in small {
            for (_, slot) in &self.peers {
                self.ring.send(*slot, batch, 0, SendMode::Instant);
            }
            self.turn();
            self.read(batch.len(), buffer);
        }
        for (peer, slot) in &mut self.peers {
            self.ring.send(*slot, large, 0, SendMode::Waiting);
            peer.write_all(b"still here").expect("room in the socket");
        }
        self.read(large.len(), buffer);
        let start = Instant::now();
        while self.sent < PEERS * large.len() || self.received < PEERS * 10 {
            assert!(start.elapsed() < PATIENCE, "{} bytes sent, {} received", self.sent, self.received);
            self.turn();
        }
    }

    fn steady(&mut self) {
        let batch = |payload| {
            let mut batch = Batch::empty(&Ledger::default());
            batch.fill(payload, 1);
            Rc::new(batch)
        };
        let segments = || vec![Bytes::from(vec![b'x'; 5_000]); 3];
        let small = [batch(Payload::Contiguous(vec![b'x'; 200])), batch(Payload::Vectored(segments()))];
        let large = batch(Payload::Contiguous(vec![b'x'; LARGE_BYTES]));
        let mut buffer = vec![0; 1 << 20];
        for (at, rounds) in ROUNDS.into_iter().enumerate() {
            let ((), allocations) = counted(at == 1, || {
                for _ in 0..rounds {
                    self.round(&small, &large, &mut buffer);
                }
            });
            assert!(at == 0 || allocations == 0, "{allocations} allocations in {rounds} rounds");
        }
    }
}

fn listener() -> (SocketAddr, Vec<OwnedFd>) {
    listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1, PATIENCE).expect("a free port")
}

#[test]
fn a_ring_of_epoll_allocates_nothing() {
    let (address, listeners) = listener();
    let options = EpollOptions {
        listeners,
        holds_accepts: false,
        accepts_per_listener: 4,
        sockets_max: PEERS as u32,
        receive_buffer_bytes: 2_048,
    };
    let doorbell = Doorbell::new().expect("an eventfd");
    Scene::new(address, Epoll::new(options, doorbell.as_fd()).expect("an epoll")).steady();
}

#[test]
fn a_ring_of_io_uring_allocates_nothing() {
    let (address, listeners) = listener();
    let options = UringOptions {
        keeps_listeners: false,
        holds_accepts: false,
        listeners,
        accepts_per_listener: 4,
        slots: PEERS as u32,
        sockets_max: PEERS as u32,
        direct: true,
        receive_buffers: 16,
        receive_buffer_bytes: 2_048,
    };
    let doorbell = Doorbell::new().expect("an eventfd");
    Scene::new(address, Uring::new(options, doorbell.as_fd()).expect("an io_uring")).steady();
}

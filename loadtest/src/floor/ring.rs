//! The second floor: the same bytes over the same sockets, by io_uring SENDs.
//!
//! One entry per socket, a fixed number of them per `io_uring_enter`, through the server's own ring
//! without anything of the server around it. As in the server, the first try is silent unless the
//! socket has too little room; the rest then goes out by a send that waits. A burst is over once
//! every socket has taken all of it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fanwave::egress::uring::{Uring, UringOptions};
use fanwave::egress::{Batch, Completion, EgressRing, Ledger, SendMode, Slot};
use rustix::event::{EventfdFlags, eventfd};

/// Sends handed to the kernel with one `io_uring_enter`.
pub const SENDS_PER_ENTER: usize = 128;
/// The longest time until every socket has taken a burst.
const BURST_LIMIT: Duration = Duration::from_secs(20);

/// A ring over plain sockets; the slot of a socket is its descriptor's number.
pub struct Ring {
    uring: Uring,
    /// Descriptors that the ring has room for: all below this.
    descriptors: u32,
    burst: Rc<Batch>,
    /// Sockets that have taken only so many bytes of the burst.
    short: Vec<(Slot, usize)>,
    /// Sends that wait in the kernel for room.
    waiting: usize,
}

impl Ring {
    /// A ring for `sockets` that sends `burst`. Fails with the remedy where io_uring is not allowed
    /// or too old.
    pub fn new(sockets: &[OwnedFd], burst: &[u8]) -> Result<Ring> {
        let descriptors = sockets.iter().map(|socket| socket.as_raw_fd() as u32 + 1).max().unwrap_or(1);
        let doorbell =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("making an eventfd")?;
        let options = UringOptions {
            keeps_listeners: false,
            holds_accepts: false,
            listeners: Vec::new(),
            accepts_per_listener: 0,
            slots: descriptors,
            sockets_max: descriptors,
            direct: false,
            // Nothing is received through this ring.
            receive_buffers: 1,
            receive_buffer_bytes: 1,
        };
        let uring = Uring::new(options, doorbell.as_fd()).context("the floor's io_uring")?;
        let burst = Batch::answer(burst.to_vec(), &Ledger::default());
        Ok(Ring { uring, descriptors, burst, short: Vec::new(), waiting: 0 })
    }

    /// From here on a burst is `bytes`.
    pub fn load(&mut self, bytes: &[u8]) {
        self.burst = Batch::answer(bytes.to_vec(), &Ledger::default());
    }

    /// Sends the burst on every socket and waits until each has taken it. A burst of no bytes sends
    /// nothing.
    pub fn send_all(&mut self, sockets: &[OwnedFd]) -> Result<()> {
        if self.burst.is_empty() {
            return Ok(());
        }
        let limit = Instant::now() + BURST_LIMIT;
        for some in sockets.chunks(SENDS_PER_ENTER) {
            while self.uring.room() < some.len() {
                self.wait(limit)?;
            }
            for socket in some {
                let slot = socket.as_raw_fd() as Slot;
                if slot >= self.descriptors {
                    bail!("a socket came after the ring was made");
                }
                self.uring.send(slot, &self.burst, 0, SendMode::Instant);
            }
            self.uring.submit()?;
            self.reap()?;
        }
        while self.waiting > 0 || !self.short.is_empty() {
            self.wait(limit)?;
        }
        Ok(())
    }

    /// Waits for a completion, not beyond `limit`.
    fn wait(&mut self, limit: Instant) -> Result<()> {
        let time = limit.saturating_duration_since(Instant::now());
        if time.is_zero() {
            bail!("not every socket has taken its bytes within {BURST_LIMIT:?}");
        }
        self.uring.submit_and_wait(Some(time))?;
        self.reap()
    }

    /// Hears what was not taken whole, and queues the rest of it.
    fn reap(&mut self) -> Result<()> {
        let bytes = self.burst.len();
        let (short, waiting) = (&mut self.short, &mut self.waiting);
        let mut failed = None;
        self.uring.reap(&mut |completion| match completion {
            Completion::Short { slot, result: Ok(taken), .. } => short.push((slot, taken)),
            Completion::Sent { result: Ok(_), .. } => *waiting -= 1,
            Completion::Short { result, .. } | Completion::Sent { result, .. } => failed = Some(result),
            _ => {}
        });
        if let Some(result) = failed {
            bail!("the floor's io_uring send of {bytes} bytes: {result:?}");
        }
        while self.uring.room() > 0
            && let Some((slot, taken)) = self.short.pop()
        {
            self.uring.send(slot, &self.burst, taken, SendMode::Waiting);
            self.waiting += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pairs(count: usize) -> (Vec<OwnedFd>, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("an address");
        let pair = |_| {
            let peer = TcpStream::connect(address).expect("the listener listens");
            peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
            (OwnedFd::from(listener.accept().expect("a peer").0), peer)
        };
        (0..count).map(pair).unzip()
    }

    #[test]
    fn every_socket_gets_every_burst_whole() {
        let (sockets, mut peers) = pairs(SENDS_PER_ENTER + 3);
        let mut ring = Ring::new(&sockets, b"").expect("an io_uring");
        ring.send_all(&sockets).expect("nothing to send");
        ring.load(b"first,");
        ring.send_all(&sockets).expect("open sockets");
        ring.send_all(&sockets).expect("open sockets");
        ring.load(b"second");
        ring.send_all(&sockets).expect("open sockets");
        for peer in &mut peers {
            let mut bytes = [0; 18];
            peer.read_exact(&mut bytes).expect("all bytes come");
            assert_eq!(&bytes, b"first,first,second");
        }
    }

    #[test]
    fn a_burst_larger_than_a_socket_takes_at_once_arrives_whole() {
        const BYTES: usize = 16 << 20;
        let (sockets, peers) = pairs(1);
        let reader = std::thread::spawn(move || {
            let (mut total, mut chunk) = (0, vec![0; 1 << 16]);
            let mut peer = &peers[0];
            while total < BYTES {
                let read = peer.read(&mut chunk).expect("bytes come");
                assert!(read > 0 && chunk[..read].iter().all(|byte| *byte == b'x'));
                total += read;
            }
            total
        });
        let mut ring = Ring::new(&sockets, &vec![b'x'; BYTES]).expect("an io_uring");
        ring.send_all(&sockets).expect("an open socket");
        assert_eq!(reader.join().expect("the reader ends"), BYTES);
    }

    #[test]
    fn a_peer_that_left_is_an_error() {
        let (sockets, peers) = pairs(2);
        drop(peers);
        let mut ring = Ring::new(&sockets, &[b'x'; 1_000]).expect("an io_uring");
        let result = (0..100).try_for_each(|_| ring.send_all(&sockets));
        assert!(result.expect_err("nobody is there").to_string().contains("io_uring send"));
    }
}

//! The EgressRing where io_uring is forbidden or missing: plain nonblocking sockets, one epoll per
//! shard, one system call per send. Safe calls only.
//!
//! Invariants worth naming:
//! - What is asked is done at once, and the next reap tells what came of it. So an instant send is
//!   over when `send` returns, and no batch is held for it.
//! - A socket is registered once and edge-triggered. An edge only says "try again": a socket is
//!   tried until it takes or brings less than it could (epoll(7)), so no edge is missed, and one
//!   too many does no harm.
//! - A slot is the number of its descriptor, which the process may give anew once it is closed.
//!   Sockets are accepted in `reap` alone, behind all completions of before, so nobody meets a
//!   stranger.
//! - The doorbell is edge-triggered too, and never read: each ring of it is an edge.
//!
//! Not here: accepts (`accepts`), how bytes go into a socket (`sends`).

use std::collections::VecDeque;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown};

use super::batch::Batch;
use super::ring::{Completion, EgressRing, ReceiveEnd, RingError, SendError, SendMode, Slot};
use crate::config::limits::{EPOLL_EVENTS_MAX, RECEIVES_PER_REAP_MAX, SUBMISSIONS_MAX};
use accepts::Listener;
use sends::{Waits, wanted};

mod accepts;
mod sends;

/// What an event is about: a slot, or one of these.
const LISTENERS: u64 = 1 << 32;
const DOORBELL: u64 = 1 << 33;

/// What the ring needs to know at start.
#[derive(Debug)]
pub struct EpollOptions {
    /// Listeners of this shard.
    pub listeners: Vec<OwnedFd>,
    /// Nobody is accepted before [`EgressRing::open_accepts`]: the listeners belong to another
    /// process until then.
    pub holds_accepts: bool,
    /// Peers that each listener lets in before the others have their turn.
    pub accepts_per_listener: usize,
    /// Sockets open at a time.
    pub sockets_max: u32,
    /// Bytes that one receive brings at most, at least 1.
    pub receive_buffer_bytes: usize,
}

/// One socket: what it was asked, and what its last edges said.
#[derive(Debug, Default)]
struct Socket {
    descriptor: Option<OwnedFd>,
    /// Where its send waits in `Ring::waits`, from 1; 0 while none does.
    wait: u32,
    /// A receive is armed.
    receiving: bool,
    /// A receive may bring something.
    readable: bool,
    /// The peer has ended its stream or the connection failed: the end is read too.
    ending: bool,
    /// It is in `Ring::to_receive`.
    queued: bool,
}

const _: () = assert!(std::mem::size_of::<Socket>() <= 12, "this is kept for every descriptor number");

/// Most bytes of user space that a ring takes for each slot: vectors grow by doubling, and a send
/// may wait on every one.
pub const SLOT_BYTES: usize = 2 * (std::mem::size_of::<Socket>() + sends::WAIT_BYTES);

/// A completion that was not told yet.
#[derive(Debug)]
enum Done {
    Short(Slot, Rc<Batch>, Result<usize, SendError>),
    Sent(Slot, Rc<Batch>, Result<usize, SendError>),
    Copied(Slot),
    ReceiveEnded(Slot, ReceiveEnd),
    StreamEnded(Slot),
    Closed(Slot),
}

/// The shard's epoll and its sockets. Lives and dies on the shard's thread.
pub struct Epoll {
    /// They end before the sockets do: nobody comes while those are closed.
    listeners: Vec<Listener>,
    /// Nobody is accepted.
    holding: bool,
    accepts_per_listener: usize,
    /// Connections that may still be accepted (`allow_accepts`).
    accepts_left: usize,
    /// The listener that is first at the next reap.
    first_listener: usize,
    epoll: OwnedFd,
    /// By slot, as far as there were any.
    sockets: Vec<Socket>,
    sockets_max: usize,
    /// Slots in use, those included whose close was not told yet.
    open: usize,
    waits: Waits,
    done: VecDeque<Done>,
    /// Sockets whose receive may bring something, each at most once.
    to_receive: VecDeque<Slot>,
    buffer: Box<[u8]>,
    events: Vec<epoll::Event>,
    /// Requests that may be asked before the next submit.
    room: usize,
    /// Reaps since the epoll was last looked at.
    reaps_since_look: u32,
    calls: u64,
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoll")
            .field("open", &self.open)
            .field("waits", &self.waits)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

/// A failure of the epoll itself.
fn failed(what: &'static str) -> impl Fn(Errno) -> RingError {
    move |errno| {
        let remedy = match errno {
            Errno::MFILE | Errno::NFILE => "; raise ulimit -n",
            Errno::NOSPC => "; raise sysctl fs.epoll.max_user_watches",
            Errno::NOMEM => "; raise the memory limit of the container",
            _ => "",
        };
        RingError { what, source: errno.into(), remedy }
    }
}

impl Epoll {
    /// Makes the epoll of a shard whose doorbell this is.
    pub fn new(options: EpollOptions, doorbell: BorrowedFd<'_>) -> Result<Epoll, RingError> {
        assert!(options.receive_buffer_bytes > 0, "a receive brings bytes");
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("making an epoll"))?;
        epoll::add(&epoll, doorbell, EventData::new_u64(DOORBELL), EventFlags::IN | EventFlags::ET)
            .map_err(failed("adding the doorbell to the epoll"))?;
        let mut ring = Epoll {
            listeners: options.listeners.into_iter().map(Listener::new).collect(),
            holding: true,
            accepts_per_listener: options.accepts_per_listener,
            accepts_left: usize::MAX,
            first_listener: 0,
            epoll,
            sockets: Vec::new(),
            sockets_max: options.sockets_max as usize,
            open: 0,
            waits: Waits::default(),
            // As many as one turn makes, so that neither grows under load.
            done: VecDeque::with_capacity(SUBMISSIONS_MAX as usize + EPOLL_EVENTS_MAX),
            to_receive: VecDeque::with_capacity(EPOLL_EVENTS_MAX),
            buffer: vec![0; options.receive_buffer_bytes].into(),
            events: Vec::with_capacity(EPOLL_EVENTS_MAX),
            room: SUBMISSIONS_MAX as usize,
            reaps_since_look: 0,
            calls: 0,
        };
        if !options.holds_accepts {
            ring.open_accepts()?;
        }
        Ok(ring)
    }

    /// Waits until something happens to a socket or the doorbell is rung, at most `limit`. A signal
    /// may end the wait early. One system call.
    pub fn wait(&mut self, limit: Duration) -> Result<(), RingError> {
        // A limit that no clock holds is none.
        self.look(Timespec::try_from(limit).ok().as_ref())
    }

    /// Takes what the epoll has to tell, and goes on with sends that waited.
    fn look(&mut self, limit: Option<&Timespec>) -> Result<(), RingError> {
        self.calls += 1;
        self.reaps_since_look = 0;
        let mut events = std::mem::take(&mut self.events);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), limit) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("waiting for the epoll")(errno)),
        }
        for event in events.drain(..) {
            let (about, flags) = (event.data.u64(), event.flags);
            if about >= DOORBELL {
                continue;
            }
            match about.checked_sub(LISTENERS) {
                Some(index) => {
                    // One that was left may still tell of those who come to it elsewhere.
                    if let Some(listener) = self.listeners.get_mut(index as usize) {
                        listener.has_peers = true;
                    }
                }
                None => self.heed(about as Slot, flags),
            }
        }
        self.events = events;
        Ok(())
    }

    /// An edge of a socket.
    fn heed(&mut self, slot: Slot, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        let ending = broken || flags.contains(EventFlags::RDHUP);
        if ending || flags.contains(EventFlags::IN) {
            let socket = &mut self.sockets[slot as usize];
            socket.readable = true;
            socket.ending |= ending;
            self.queue_receive(slot);
        }
        if broken || flags.contains(EventFlags::OUT) {
            self.go_on_sending(slot);
        }
    }

    /// Queues a socket whose receive is armed and may bring something.
    fn queue_receive(&mut self, slot: Slot) {
        let socket = &mut self.sockets[slot as usize];
        if socket.receiving && socket.readable && !socket.queued {
            socket.queued = true;
            self.to_receive.push_back(slot);
        }
    }

    /// Receives once from a socket. Returns how many completions it told.
    fn receive_once(&mut self, slot: Slot, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        let socket = &mut self.sockets[slot as usize];
        // The slot may have been closed since it was queued, and be another socket's by now.
        if !std::mem::take(&mut socket.queued) || !socket.receiving || !socket.readable {
            return 0;
        }
        let descriptor = socket.descriptor.as_ref().expect("a receive needs an open slot");
        self.calls += 1;
        let end = match recv(descriptor, &mut self.buffer[..], RecvFlags::empty()) {
            Ok((0, _)) => ReceiveEnd::EndOfStream,
            Ok((length, _)) => {
                socket.readable = length == self.buffer.len() || socket.ending;
                handle(Completion::Received { slot, bytes: &mut self.buffer[..length] });
                self.queue_receive(slot);
                return 1;
            }
            Err(Errno::AGAIN) => {
                socket.readable = false;
                return 0;
            }
            Err(Errno::INTR) => {
                self.queue_receive(slot);
                return 0;
            }
            Err(Errno::NOBUFS) => ReceiveEnd::NoBuffers,
            Err(errno) => ReceiveEnd::Failed(errno.raw_os_error()),
        };
        socket.receiving = false;
        handle(Completion::ReceiveEnded { slot, end });
        1
    }

    /// One more request; the caller has checked `room`.
    fn ask(&mut self) {
        assert!(self.room > 0, "the caller leaves room for what it submits");
        self.room -= 1;
    }
}

impl EgressRing for Epoll {
    fn room(&self) -> usize {
        self.room
    }

    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        assert!(offset < batch.len(), "a send has bytes");
        self.ask();
        let end = offset + wanted(batch, offset);
        if mode == SendMode::Instant {
            self.send_now(slot, batch, offset, end);
        } else {
            assert!(self.sockets[slot as usize].wait == 0, "one send in flight per connection");
            self.begin_sending(slot, batch, offset, end, mode);
        }
    }

    fn receive(&mut self, slot: Slot) {
        self.ask();
        self.sockets[slot as usize].receiving = true;
        self.queue_receive(slot);
    }

    fn pause(&mut self, slot: Slot) {
        self.ask();
        if std::mem::take(&mut self.sockets[slot as usize].receiving) {
            self.done.push_back(Done::ReceiveEnded(slot, ReceiveEnd::Cancelled));
        }
    }

    fn end_stream(&mut self, slot: Slot) {
        self.ask();
        self.calls += 1;
        if let Some(descriptor) = &self.sockets[slot as usize].descriptor {
            // A socket without a stream has come to its end as well.
            let _ = shutdown(descriptor, Shutdown::Write);
        }
        self.done.push_back(Done::StreamEnded(slot));
    }

    fn cancel(&mut self, slot: Slot) {
        self.ask();
        let socket = &mut self.sockets[slot as usize];
        if std::mem::take(&mut socket.receiving) {
            self.done.push_back(Done::ReceiveEnded(slot, ReceiveEnd::Cancelled));
        }
        self.stop_sending(slot, Some(Errno::CANCELED));
    }

    fn close(&mut self, slot: Slot) {
        self.ask();
        let socket = std::mem::take(&mut self.sockets[slot as usize]);
        assert!(socket.wait == 0 && !socket.receiving, "a quiet slot is closed");
        self.calls += 1;
        drop(socket);
        self.done.push_back(Done::Closed(slot));
    }

    /// The epoll tells nothing by itself: a shard that is busy looks at it every other turn at
    /// least.
    fn wants_submit(&mut self) -> bool {
        self.reaps_since_look > 1
    }

    fn submit(&mut self) -> Result<(), RingError> {
        self.room = SUBMISSIONS_MAX as usize;
        self.look(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    fn allow_accepts(&mut self, more: usize, most: usize) {
        self.accepts_left = self.accepts_left.saturating_add(more).min(most);
    }

    fn hold_accepts(&mut self) {
        self.holding = true;
    }

    fn holds_accepts(&self) -> bool {
        self.holding
    }

    fn open_accepts(&mut self) -> Result<(), RingError> {
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            listener
                .register(&self.epoll, LISTENERS | index as u64)
                .map_err(failed("adding a listener to the epoll"))?;
        }
        self.holding = false;
        Ok(())
    }

    fn copy_listeners(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.listeners.iter().map(Listener::copy).collect()
    }

    fn leave_listeners(&mut self) {
        self.holding = true;
        for listener in self.listeners.drain(..) {
            listener.leave(&self.epoll);
        }
    }

    fn retry_accepts(&mut self) {
        for listener in &mut self.listeners {
            listener.has_failed = false;
        }
    }

    fn reap(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        self.reaps_since_look += 1;
        let mut told = self.done.len();
        while let Some(done) = self.done.pop_front() {
            handle(match done {
                Done::Short(slot, batch, result) => Completion::Short { slot, batch, result },
                Done::Sent(slot, batch, result) => Completion::Sent { slot, batch, result },
                Done::Copied(slot) => Completion::Copied { slot },
                Done::ReceiveEnded(slot, end) => Completion::ReceiveEnded { slot, end },
                Done::StreamEnded(slot) => Completion::StreamEnded { slot },
                Done::Closed(slot) => {
                    self.open -= 1;
                    Completion::Closed { slot }
                }
            });
        }
        for _ in 0..self.to_receive.len().min(RECEIVES_PER_REAP_MAX) {
            let Some(slot) = self.to_receive.pop_front() else { break };
            told += self.receive_once(slot, handle);
        }
        told + self.accept_some(handle)
    }

    fn may_sleep(&mut self) -> bool {
        self.done.is_empty() && self.to_receive.is_empty() && !self.may_accept()
    }

    fn awake(&mut self) {}

    fn enters(&self) -> u64 {
        self.calls
    }
}

#[cfg(test)]
mod tests;

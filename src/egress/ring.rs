//! What a shard asks of the kernel, and what it hears back.
//!
//! Invariants worth naming:
//! - A [`Slot`] is a socket's index in the ring's table, or its number as a descriptor of the
//!   process, and the connection's index in the shard's slab. It is given by
//!   [`Completion::Accepted`] and free again after [`Completion::Closed`].
//! - One send per slot is in the ring at a time; the ring holds its batch until the kernel has let
//!   go of the bytes. An instant send is over once a submit has returned and there is room again,
//!   any other with its [`Completion::Sent`].
//! - After a submit that the kernel did not take whole there is no room: nothing overtakes an
//!   instant send that it has not seen.
//! - A receive is armed once and delivers until [`Completion::ReceiveEnded`].
//! - A slot may be closed only while neither a send, a receive nor an end of stream of it is in the
//!   ring: the kernel may look a socket up late, and would meet the next one in the slot.
//! - Completions only report. Their handler marks what is to be done and asks the ring later.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::batch::Batch;
use crate::close::CloseReason;

/// A socket's index in the ring's table, or its number, and the connection's index in the slab.
pub type Slot = u32;

/// What becomes of a send that meets a full socket buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendMode {
    /// It ends: [`Completion::Short`] tells how much the socket took. A send that was taken whole
    /// completes silently.
    Instant,
    /// It waits in the ring for room, until every byte is taken.
    Waiting,
    /// It waits, and the kernel is asked to send the bytes from where they are.
    ZeroCopy,
}

/// Why a send took no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendError {
    /// The peer is gone or the connection failed; the errno says how. A retry does not help.
    Gone(i32),
    /// The kernel cannot send this one without copying (memory lock limit, no support). A plain
    /// send helps.
    NoZeroCopy,
}

/// Why a receive delivers no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// The peer has sent its end of stream, or our side was shut down.
    EndOfStream,
    /// No receive buffer was free; arming it again helps once some are back.
    NoBuffers,
    /// It was asked to end. What had come before was told.
    Cancelled,
    /// The connection failed; the errno says how.
    Failed(i32),
    /// What came is not what TLS allows; whatever comes yet is dropped.
    Insecure(Insecure),
    /// The client has reset its stream.
    Reset,
    /// The carrier of the stream has ended.
    CarrierGone,
    /// What came is not what HTTP/2 allows, for this reason; whatever comes yet is dropped.
    Against(CloseReason),
}

/// What broke a TLS connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insecure {
    /// The PROXY header before its handshake, which is missing, wrong, too long or broken off: one
    /// line for a human.
    Header(&'static str),
    /// Its handshake: no common version or protocol, a certificate that is missing, no TLS at all.
    Handshake,
    /// A record behind the handshake: changed, replayed, too large, out of place.
    Record,
}

/// What happened to a socket.
#[derive(Debug)]
pub enum Completion<'a> {
    /// A peer connected.
    Accepted {
        /// Its new slot.
        slot: Slot,
        /// Its address.
        peer: SocketAddr,
        /// Which of the ring's listeners it came to.
        listener: usize,
    },
    /// The kernel could not accept for want of resources, by errno; asked again after
    /// [`EgressRing::retry_accepts`].
    AcceptFailed(i32),
    /// The PROXY header of a connection with TLS is whole; its handshake follows. It comes once, and
    /// only where the header is expected.
    Introduced {
        /// Whose connection.
        slot: Slot,
        /// Who the client is; `None` if that is the proxy itself, or is not known.
        client: Option<SocketAddr>,
    },
    /// The peer of this slot and we have agreed on keys: what is received from now on was sealed.
    Secured {
        /// Whose connection.
        slot: Slot,
    },
    /// A request came on a carrier ([`EgressRing::carry`]). Its stream is a connection like any, with
    /// a slot that belongs to no socket. Its receive is in the ring already.
    StreamOpened {
        /// The slot of the stream.
        slot: Slot,
        /// The slot of its carrier.
        carrier: Slot,
    },
    /// A request came on a carrier that makes no stream.
    StreamRefused {
        /// Why.
        reason: CloseReason,
    },
    /// The peer sent something. The bytes are gone after the call; they may be changed in place.
    Received {
        /// Whose bytes.
        slot: Slot,
        /// One receive buffer's worth, never empty.
        bytes: &'a mut [u8],
    },
    /// The receive of this slot has ended and may be armed again.
    ReceiveEnded {
        /// Whose receive.
        slot: Slot,
        /// Why.
        end: ReceiveEnd,
    },
    /// The instant send of this slot was not taken whole.
    Short {
        /// Whose send.
        slot: Slot,
        /// What it sent.
        batch: Rc<Batch>,
        /// How many bytes from its offset on the kernel took, 0 if the socket had no room.
        result: Result<usize, SendError>,
    },
    /// The waiting or zero-copy send of this slot has ended.
    Sent {
        /// Whose send.
        slot: Slot,
        /// What it sent.
        batch: Rc<Batch>,
        /// How many bytes from its offset on the kernel took, never 0.
        result: Result<usize, SendError>,
    },
    /// The kernel copied a zero-copy send of this slot after all; plain sends are cheaper for it.
    Copied {
        /// Whose send.
        slot: Slot,
    },
    /// The end of our stream is on its way to the peer of this slot, or its socket had no stream
    /// any more.
    StreamEnded {
        /// Whose stream.
        slot: Slot,
    },
    /// The slot is free.
    Closed {
        /// Which slot.
        slot: Slot,
    },
}

/// The ring itself failed: a fault of the operator's system or ours, never of one connection.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}{remedy}")]
pub struct RingError {
    /// What was tried.
    pub what: &'static str,
    /// What the kernel said.
    pub source: std::io::Error,
    /// What the operator can do, with a leading separator; empty if nothing is known to help.
    pub remedy: &'static str,
}

/// The sockets of one shard.
pub trait EgressRing {
    /// How many more requests fit before the next [`submit`](Self::submit). None while the kernel
    /// has not taken all of the last submit, or not told all that came of it.
    fn room(&self) -> usize;

    /// Sends `batch` from byte `offset` on.
    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode);

    /// Arms the receive of `slot`.
    fn receive(&mut self, slot: Slot);

    /// Ends the receive of `slot` that is in the ring, so that the peer finds no more room once the
    /// kernel's buffers are full; it completes. Finds nothing if it has just ended by itself.
    fn pause(&mut self, slot: Slot);

    /// Ends our side of the stream: the peer reads what was sent and then the end.
    fn end_stream(&mut self, slot: Slot);

    /// Ends the send and the receive of `slot` that are in the ring; both complete, with an error
    /// if they had not finished. Takes the room of two requests at most.
    fn cancel(&mut self, slot: Slot);

    /// Closes the socket and frees the slot.
    fn close(&mut self, slot: Slot);

    /// True if a connection may become a carrier of streams.
    fn carries_streams(&self) -> bool {
        false
    }

    /// `slot` is a carrier from now on: it carries the streams of a client of HTTP/2. What its
    /// client has sent so far is in `bytes`. `receiving`: its receive is in the ring. The shard
    /// still owns the connection, but sends nothing on it.
    fn carry(&mut self, slot: Slot, bytes: Vec<u8>, receiving: bool) {
        let _ = (slot, bytes, receiving);
        unreachable!("a ring that carries no streams");
    }

    /// Streams that a carrier has now.
    fn streams(&self, carrier: Slot) -> usize {
        let _ = carrier;
        0
    }

    /// The client of a carrier is told to ask nothing more on it. Its streams go on.
    fn say_farewell(&mut self, carrier: Slot) {
        let _ = carrier;
    }

    /// Request heads may have so many bytes from now on, and take so many milliseconds to come.
    fn allow_heads(&mut self, bytes_max: usize, ms_max: u64) {
        let _ = (bytes_max, ms_max);
    }

    /// True if a submit is useful although nobody asked anything: the kernel has deferred work, or
    /// accepts to arm.
    fn wants_submit(&mut self) -> bool;

    /// Hands all queued requests to the kernel and lets it finish what is finished.
    fn submit(&mut self) -> Result<(), RingError>;

    /// Time has passed: accepts that failed for want of resources may be asked again.
    fn retry_accepts(&mut self);

    /// So many more connections may be accepted, at most `most` with those that were not; the
    /// others wait in the kernel. Without a word all are.
    fn allow_accepts(&mut self, more: usize, most: usize);

    /// From now on nobody is accepted, and accepts that wait in the kernel are called back. One of
    /// them may still bring a peer.
    fn hold_accepts(&mut self);

    /// True once none waits in the kernel any more, until [`EgressRing::open_accepts`].
    fn holds_accepts(&self) -> bool;

    /// Accepts again, or for the first time.
    fn open_accepts(&mut self) -> Result<(), RingError>;

    /// Copies of the descriptors of the listeners.
    fn copy_listeners(&self) -> io::Result<Vec<OwnedFd>>;

    /// Lets go of the listeners, which live on in another process. Nobody is accepted any more.
    fn leave_listeners(&mut self);

    /// Tells `handle` all completions that are there now; returns how many.
    fn reap(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize;

    /// True if nothing is queued and nothing waits to be reaped; from then on what happens wakes
    /// the shard, by its doorbell or where it sleeps in the ring itself.
    fn may_sleep(&mut self) -> bool;

    /// The shard is awake: completions need not wake it.
    fn awake(&mut self);

    /// System calls made so far.
    fn enters(&self) -> u64;
}

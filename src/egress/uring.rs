//! The kernel's EgressRing: one io_uring per shard, its sockets as direct or plain descriptors, one
//! provided-buffer ring.
//!
//! Why the `unsafe` here and in the files below is sound, in one place (each block names the point
//! it stands on):
//! - S1, bytes of sends: the kernel reads them until the last completion of the send (the
//!   notification, for zero copy), and those of an instant send only while it takes it from the
//!   queue. The batch is held in `held`, `lent` or `instant` until then, a shared [`Batch`] never
//!   changes, and its memory does not move.
//! - S2, receive buffers and the buffer ring: owned by `ReceiveBuffers`, which outlives the ring.
//!   The kernel writes a buffer only between its hand-over and the completion that names it.
//! - S3, peer addresses: each armed accept owns one `AcceptPlace` (`accepts`) until its completion.
//! - S4, the end (`end`): `drop` closes the ring and waits until the kernel has let go of all of
//!   it; what it has not let go of in time is leaked, not freed.
//!
//! Not here: when to do what (the shard), and what bytes mean (wire).

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::batch::Batch;
use super::ring::{Completion, EgressRing, ReceiveEnd, RingError, SendError, SendMode, Slot};
use crate::config::limits::{COMPLETIONS_MAX, SUBMISSIONS_MAX};
use accepts::AcceptPlace;
use buffers::{BUFFER_GROUP, ReceiveBuffers};
use header::MessageHeader;
use op::{INSTANT_BATCHES_MAX, Op};
use zero_copy::{Lent, ZERO_COPY_REPORT};

mod accepts;
mod buffers;
mod end;
pub(super) mod header;
mod op;
mod prefetch;
mod setup;
mod zero_copy;

pub use prefetch::prefetch;
pub use setup::{adopt_doorbell, frees_direct_descriptors};

/// What the ring needs to know at start.
#[derive(Debug)]
pub struct UringOptions {
    /// Listeners of this shard. Without any the ring serves sockets that were opened elsewhere.
    pub listeners: Vec<OwnedFd>,
    /// Accepts that each listener has waiting, as long as there is room for those whom they bring.
    pub accepts_per_listener: usize,
    /// Slots. Of direct descriptors the entries of their table, at most RLIMIT_NOFILE; the slot of
    /// a plain one is its number, so these are more than any number that the process gives.
    pub slots: u32,
    /// Sockets open at a time; at most `slots`.
    pub sockets_max: u32,
    /// Accepted sockets are direct descriptors, entries of the ring's own table; else plain
    /// descriptors of the process.
    pub direct: bool,
    /// The listeners are shared with others, who go on listening: the end of the ring does not end
    /// them.
    pub keeps_listeners: bool,
    /// Nobody is accepted before [`EgressRing::open_accepts`]: the listeners belong to another
    /// process until then.
    pub holds_accepts: bool,
    /// Receive buffers, shared by all sockets: a power of two.
    pub receive_buffers: u16,
    /// Bytes of one receive buffer, at least 1.
    pub receive_buffer_bytes: usize,
}

/// The shard's io_uring. Lives and dies on the shard's thread.
pub struct Uring {
    ring: ManuallyDrop<IoUring>,
    listeners: Vec<OwnedFd>,
    keeps_listeners: bool,
    /// No accept is armed any more.
    holding: bool,
    /// So many accepts were called back since.
    recalled: usize,
    direct: bool,
    accepts: Box<[AcceptPlace]>,
    /// Accepts that are not in the kernel.
    accepts_idle: Vec<u32>,
    /// Accepts that failed for want of resources and wait for `retry_accepts`.
    accepts_failed: Vec<u32>,
    /// By slot: the batch of the waiting send in the kernel.
    held: Vec<Option<Rc<Batch>>>,
    /// Batches of the instant sends since the last reap that let go of them, by index; neighbours
    /// share one.
    instant: Vec<Rc<Batch>>,
    /// Zero-copy sends in the kernel, by index.
    lent: Vec<Option<Lent>>,
    lent_free: Vec<u32>,
    /// The index of a slot's zero-copy send, until its bytes are queued.
    lent_at: HashMap<Slot, u32>,
    /// By slot: how often it was closed, so that a late notification is not taken for a stranger's.
    closes: Vec<u8>,
    buffers: ReceiveBuffers,
    /// Entries that the submission queue takes before the next submit; see [`EgressRing::room`].
    room: usize,
    /// Accepts that may still be armed (`allow_accepts`).
    accepts_left: usize,
    /// Slots in use, at most `sockets_max`.
    open: usize,
    sockets_max: usize,
    /// Receives in the kernel.
    receives: usize,
    /// Waiting sends in the kernel.
    sends: usize,
    enters: u64,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("open", &self.open)
            .field("receives", &self.receives)
            .field("sends", &self.sends)
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}

/// Finds out whether this kernel, container and user allow a shard's ring; fails with cause and
/// remedy.
pub fn try_out() -> Result<(), RingError> {
    setup::try_out(SUBMISSIONS_MAX, COMPLETIONS_MAX)
}

impl Uring {
    /// Makes the ring on the calling thread, tests it, and registers `doorbell` with it.
    pub fn new(options: UringOptions, doorbell: BorrowedFd<'_>) -> Result<Uring, RingError> {
        let mut ring = setup::build(SUBMISSIONS_MAX, COMPLETIONS_MAX)?;
        setup::self_test(&mut ring, doorbell)?;
        if options.direct {
            setup::sockets_table(&ring, options.slots)?;
        }
        let buffers = ReceiveBuffers::register(&ring, options.receive_buffers, options.receive_buffer_bytes)?;
        let accepts = accepts::places(options.listeners.len(), options.accepts_per_listener);
        Ok(Uring {
            ring: ManuallyDrop::new(ring),
            listeners: options.listeners,
            keeps_listeners: options.keeps_listeners,
            holding: options.holds_accepts,
            recalled: 0,
            direct: options.direct,
            accepts_idle: (0..accepts.len() as u32).collect(),
            accepts_failed: Vec::new(),
            accepts,
            held: (0..options.slots).map(|_| None).collect(),
            instant: Vec::with_capacity(SUBMISSIONS_MAX as usize),
            lent: Vec::new(),
            lent_free: Vec::new(),
            lent_at: HashMap::new(),
            closes: vec![0; options.slots as usize],
            buffers,
            room: SUBMISSIONS_MAX as usize,
            accepts_left: usize::MAX,
            open: 0,
            sockets_max: options.sockets_max as usize,
            receives: 0,
            sends: 0,
            enters: 0,
        })
    }

    /// Hands all queued requests to the kernel and waits until a completion can be reaped, at most
    /// `limit`; without one for as long as it takes. One system call.
    pub fn submit_and_wait(&mut self, limit: Option<Duration>) -> Result<(), RingError> {
        self.arm_accepts();
        if !self.ring.completion().is_empty() {
            return self.submit();
        }
        self.enters += 1;
        let submitted = match limit {
            None => self.ring.submit_and_wait(1),
            Some(limit) => {
                let limit = Timespec::from(limit);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
        self.after_enter(submitted)
    }

    /// Entries that the kernel has not taken yet.
    pub fn queued(&mut self) -> usize {
        self.ring.submission().len()
    }

    /// Counts the room again and sorts out what is no failure.
    fn after_enter(&mut self, submitted: io::Result<usize>) -> Result<(), RingError> {
        let queue = self.ring.submission();
        let settled = queue.is_empty() && !queue.cq_overflow();
        self.room = if settled { queue.capacity() } else { 0 };
        drop(queue);
        if self.ring.completion().overflow() > 0 {
            // What is lost may have told that a send was not taken whole: its stream could not be
            // trusted any more.
            let source = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(RingError {
                what: "the kernel lost completions of the io_uring",
                source,
                remedy: "",
            });
        }
        match submitted {
            Ok(_) => Ok(()),
            // Out of time, interrupted, or completions must be reaped first: what is queued stays
            // queued for the next call.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) =>
            {
                Ok(())
            }
            Err(source) => Err(RingError { what: "submitting to the io_uring", source, remedy: "" }),
        }
    }

    /// Queues one entry; the caller has checked `room`.
    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: S1, S2, S3: every pointer in an entry that this module builds stays valid until
        // its completion.
        unsafe { self.ring.submission().push(entry) }.expect("the caller leaves room for what it submits");
        self.room -= 1;
    }

    /// Queues one entry on the socket of a slot, built for `socket(slot)`.
    fn push_on_socket(&mut self, entry: squeue::Entry) {
        let entry = if self.direct { entry.flags(squeue::Flags::FIXED_FILE) } else { entry };
        self.push(&entry);
    }

    /// Queues the cancellation of a request of `slot`. The kernel finds it by a hash of its user
    /// data; asked for those of a socket, it would look at all that waits, 0.5 ms with 20,000
    /// receives.
    fn cancel_request(&mut self, slot: Slot, user_data: u64) {
        let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(user_data)).build();
        self.push(&entry.user_data(Op::Cancel.user_data(slot)));
    }

    /// The kernel has read the bytes of all instant sends that it took from the queue, and has told
    /// which it did not take whole.
    fn let_go_of_instant_sends(&mut self) {
        if self.instant.is_empty() {
            return;
        }
        let queue = self.ring.submission();
        let over = queue.is_empty() && !queue.cq_overflow();
        drop(queue);
        if over {
            self.instant.clear();
        }
    }
}

/// The socket of `slot`, by its number; [`Uring::push_on_socket`] says of which kind.
fn socket(slot: Slot) -> Fd {
    Fd(slot as RawFd)
}

const SEND_FLAGS: i32 = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;

impl EgressRing for Uring {
    fn room(&self) -> usize {
        self.room
    }

    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        assert!(offset < batch.len(), "a send has bytes");
        let header = match batch.segments() {
            Some(segments) if offset == 0 => {
                Some(&*batch.header.get_or_init(|| MessageHeader::new(segments)).header)
            }
            _ => None,
        };
        let bytes = batch.bytes_at(offset);
        let flags = match mode {
            SendMode::Instant => SEND_FLAGS | libc::MSG_DONTWAIT,
            SendMode::Waiting | SendMode::ZeroCopy => SEND_FLAGS,
        };
        let entry = match (header, mode) {
            (None, SendMode::Instant | SendMode::Waiting) => {
                opcode::Send::new(socket(slot), bytes.as_ptr(), bytes.len() as u32).flags(flags).build()
            }
            (Some(header), SendMode::Instant | SendMode::Waiting) => {
                opcode::SendMsg::new(socket(slot), header).flags(flags as u32).build()
            }
            (None, SendMode::ZeroCopy) => {
                opcode::SendZc::new(socket(slot), bytes.as_ptr(), bytes.len() as u32)
                    .flags(flags)
                    .zc_flags(ZERO_COPY_REPORT)
                    .build()
            }
            (Some(header), SendMode::ZeroCopy) => opcode::SendMsgZc::new(socket(slot), header)
                .flags(flags as u32)
                .ioprio(ZERO_COPY_REPORT)
                .build(),
        };
        let entry = match mode {
            SendMode::Instant => {
                if !self.instant.last().is_some_and(|last| Rc::ptr_eq(last, batch)) {
                    assert!(self.instant.len() < INSTANT_BATCHES_MAX, "a shard that sends also reaps");
                    self.instant.push(batch.clone());
                }
                let user_data = Op::SendInstant.user_data_with_batch(slot, self.instant.len() - 1);
                entry.flags(squeue::Flags::SKIP_SUCCESS).user_data(user_data)
            }
            SendMode::Waiting => {
                let held = &mut self.held[slot as usize];
                assert!(held.is_none(), "one send in flight per connection");
                *held = Some(batch.clone());
                self.sends += 1;
                entry.user_data(Op::Send.user_data(slot))
            }
            SendMode::ZeroCopy => entry.user_data(Op::SendZeroCopy.user_data(self.lend(slot, batch))),
        };
        self.push_on_socket(entry);
    }

    fn receive(&mut self, slot: Slot) {
        self.receives += 1;
        let entry = opcode::RecvMulti::new(socket(slot), BUFFER_GROUP).build();
        self.push_on_socket(entry.user_data(Op::Receive.user_data(slot)));
    }

    fn pause(&mut self, slot: Slot) {
        self.cancel_request(slot, Op::Receive.user_data(slot));
    }

    fn end_stream(&mut self, slot: Slot) {
        let entry = opcode::Shutdown::new(socket(slot), libc::SHUT_WR).build();
        self.push_on_socket(entry.user_data(Op::EndStream.user_data(slot)));
    }

    fn cancel(&mut self, slot: Slot) {
        self.cancel_request(slot, Op::Receive.user_data(slot));
        if self.held[slot as usize].is_some() {
            self.cancel_request(slot, Op::Send.user_data(slot));
        }
        if let Some(index) = self.lent_at.get(&slot) {
            self.cancel_request(slot, Op::SendZeroCopy.user_data(*index));
        }
    }

    fn close(&mut self, slot: Slot) {
        assert!(self.held[slot as usize].is_none(), "no send is in the kernel when a slot is closed");
        let close = match self.direct {
            true => opcode::Close::new(Fixed(slot)),
            false => opcode::Close::new(socket(slot)),
        };
        self.push(&close.build().user_data(Op::Close.user_data(slot)));
    }

    fn wants_submit(&mut self) -> bool {
        let queue = self.ring.submission();
        let waiting = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        waiting || self.room == 0 || self.can_arm_accept() || self.can_recall_accept()
    }

    fn submit(&mut self) -> Result<(), RingError> {
        self.arm_accepts();
        self.enters += 1;
        let submitted = self.ring.submit();
        self.after_enter(submitted)
    }

    fn retry_accepts(&mut self) {
        self.accepts_idle.append(&mut self.accepts_failed);
        // A cancellation finds nothing in the moment in which an accept is between two waits.
        self.recalled = 0;
    }

    fn allow_accepts(&mut self, more: usize, most: usize) {
        self.accepts_left = self.accepts_left.saturating_add(more).min(most);
    }

    fn hold_accepts(&mut self) {
        self.holding = true;
        self.recalled = 0;
    }

    fn holds_accepts(&self) -> bool {
        self.holding && self.accepts_armed() == 0
    }

    fn open_accepts(&mut self) -> Result<(), RingError> {
        for listener in &self.listeners {
            // An accept in the ring waits only on a socket that blocks.
            rustix::io::ioctl_fionbio(listener, false).map_err(|errno| RingError {
                what: "opening a listener",
                source: errno.into(),
                remedy: "",
            })?;
        }
        self.holding = false;
        Ok(())
    }

    fn copy_listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.listeners.iter().map(OwnedFd::try_clone).collect()
    }

    fn leave_listeners(&mut self) {
        self.hold_accepts();
        self.keeps_listeners = true;
        // Accepts that the kernel has still not given back find their places, and no listener.
        if self.accepts_armed() == 0 {
            self.listeners.clear();
        }
    }

    fn reap(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        let mut reaped = 0;
        // One snapshot at a time: completions that arrive meanwhile belong to the next turn.
        let waiting = self.ring.completion().len();
        while reaped < waiting {
            let Some(entry) = self.ring.completion().next() else { break };
            reaped += 1;
            let (op, index) = Op::of(entry.user_data()).expect("only this module writes user data");
            match op {
                Op::Accept => self.accepted(index, entry.result(), handle),
                Op::Receive => self.received(index, &entry, handle),
                Op::Send => {
                    self.sends -= 1;
                    let batch = self.held[index as usize].take().expect("a send that completes was held");
                    handle(Completion::Sent { slot: index, batch, result: plain_result(entry.result()) });
                }
                Op::SendInstant => {
                    let batch = self.instant[Op::batch(entry.user_data())].clone();
                    handle(Completion::Short { slot: index, batch, result: instant_result(entry.result()) });
                }
                Op::SendZeroCopy => self.zero_copy_sent(index, &entry, handle),
                Op::EndStream => handle(Completion::StreamEnded { slot: index }),
                Op::Cancel => {} // what it cancelled tells for itself
                Op::Close => {
                    self.open -= 1;
                    self.closes[index as usize] = self.closes[index as usize].wrapping_add(1);
                    handle(Completion::Closed { slot: index });
                }
            }
        }
        self.buffers.publish();
        self.let_go_of_instant_sends();
        reaped
    }

    fn may_sleep(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel looks at the flag after it posts; we post the flag before we look.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let queue = self.ring.submission();
        let quiet = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if quiet && self.ring.completion().is_empty() {
            return true;
        }
        self.ring.completion().disable_eventfd();
        false
    }

    fn awake(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    fn enters(&self) -> u64 {
        self.enters
    }
}

fn instant_result(result: i32) -> Result<usize, SendError> {
    match -result {
        // No room in the socket, or no memory for a moment: a send that waits will do.
        libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS => Ok(0),
        _ => plain_result(result),
    }
}

fn plain_result(result: i32) -> Result<usize, SendError> {
    match result {
        1.. => Ok(result as usize),
        // A send of some bytes that takes none has no more room to come.
        0 => Err(SendError::Gone(libc::EPIPE)),
        error => Err(SendError::Gone(-error)),
    }
}

impl Uring {
    fn received(&mut self, slot: Slot, entry: &cqueue::Entry, handle: &mut dyn FnMut(Completion<'_>)) {
        let more = cqueue::more(entry.flags());
        if let Some(buffer) = cqueue::buffer_select(entry.flags()) {
            let length = entry.result().max(0) as usize;
            if length > 0 {
                let bytes = self.buffers.bytes(buffer, length);
                handle(Completion::Received { slot, bytes });
            }
            self.buffers.give_back(buffer);
        }
        if !more {
            self.receives -= 1;
            let end = match -entry.result() {
                // A multishot receive that ends after data may simply be armed again.
                i32::MIN..0 => ReceiveEnd::NoBuffers,
                0 => ReceiveEnd::EndOfStream,
                libc::ENOBUFS => ReceiveEnd::NoBuffers,
                libc::ECANCELED => ReceiveEnd::Cancelled,
                errno => ReceiveEnd::Failed(errno),
            };
            handle(Completion::ReceiveEnded { slot, end });
        }
    }
}

#[cfg(test)]
mod tests;

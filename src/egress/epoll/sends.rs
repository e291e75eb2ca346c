//! Sends: offered to the socket at once; what it has no room for waits here for an edge, or is told
//! as short.

use std::io::IoSlice;
use std::rc::Rc;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};

use super::{Done, Epoll};
use crate::config::limits::EPOLL_SEGMENTS_MAX;
use crate::egress::batch::Batch;
use crate::egress::ring::{SendError, SendMode, Slot};

/// A send whose socket has no room for the rest.
#[derive(Debug)]
pub(super) struct Waiting {
    batch: Rc<Batch>,
    /// Where it began in the batch, and where it ends: `offset + taken < end`.
    offset: usize,
    end: usize,
    /// Bytes that the socket took.
    taken: usize,
    mode: SendMode,
}

/// Bytes that a send takes while it waits, and the number of its place afterwards.
pub(super) const WAIT_BYTES: usize = std::mem::size_of::<Option<Waiting>>() + std::mem::size_of::<u32>();

/// Sends that wait, by number from 1.
#[derive(Debug, Default)]
pub(super) struct Waits {
    places: Vec<Option<Waiting>>,
    free: Vec<u32>,
}

impl Waits {
    fn put(&mut self, waiting: Waiting) -> u32 {
        match self.free.pop() {
            Some(number) => {
                self.places[number as usize - 1] = Some(waiting);
                number
            }
            None => {
                self.places.push(Some(waiting));
                self.places.len() as u32
            }
        }
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut Waiting> {
        self.places.get_mut((number as usize).checked_sub(1)?)?.as_mut()
    }

    fn take(&mut self, number: u32) -> Option<Waiting> {
        let waiting = self.places.get_mut((number as usize).checked_sub(1)?)?.take();
        self.free.push(number);
        waiting
    }
}

/// Bytes that a send from `offset` on is to carry: all, or from the middle of a vectored payload on
/// the rest of one segment.
pub(super) fn wanted(batch: &Batch, offset: usize) -> usize {
    match offset {
        0 => batch.len(),
        offset => batch.bytes_at(offset).len(),
    }
}

impl Epoll {
    /// A send that does not wait: silent if it is taken whole.
    #[inline]
    pub(super) fn send_now(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, end: usize) {
        let (taken, stopped) = self.offer(slot, batch, offset, end);
        let result = match stopped {
            None => return,
            // No room in the socket, or no memory for a moment: a send that waits will do.
            Some(Errno::AGAIN | Errno::NOMEM | Errno::NOBUFS) => Ok(taken),
            stopped => ended(taken, stopped),
        };
        self.done.push_back(Done::Short(slot, batch.clone(), result));
    }

    /// A send that waits for room if there is too little.
    pub(super) fn begin_sending(
        &mut self,
        slot: Slot,
        batch: &Rc<Batch>,
        offset: usize,
        end: usize,
        mode: SendMode,
    ) {
        let (taken, stopped) = self.offer(slot, batch, offset, end);
        let waiting = Waiting { batch: batch.clone(), offset, end, taken, mode };
        match stopped {
            Some(Errno::AGAIN) => self.sockets[slot as usize].wait = self.waits.put(waiting),
            stopped => self.sent(slot, waiting, stopped),
        }
    }

    /// The socket of a send that waits may have room again.
    pub(super) fn go_on_sending(&mut self, slot: Slot) {
        let number = self.sockets[slot as usize].wait;
        let Some(waiting) = self.waits.get_mut(number) else { return };
        let (batch, from, end) = (waiting.batch.clone(), waiting.offset + waiting.taken, waiting.end);
        let (more, stopped) = self.offer(slot, &batch, from, end);
        if let Some(waiting) = self.waits.get_mut(number) {
            waiting.taken += more;
        }
        if stopped != Some(Errno::AGAIN) {
            self.stop_sending(slot, stopped);
        }
    }

    /// Ends a send that waits, if there is one: it is through, or was stopped.
    pub(super) fn stop_sending(&mut self, slot: Slot, stopped: Option<Errno>) {
        let number = std::mem::take(&mut self.sockets[slot as usize].wait);
        if let Some(waiting) = self.waits.take(number) {
            self.sent(slot, waiting, stopped);
        }
    }

    fn sent(&mut self, slot: Slot, waiting: Waiting, stopped: Option<Errno>) {
        let result = ended(waiting.taken, stopped);
        self.done.push_back(Done::Sent(slot, waiting.batch, result));
        // There is no zero copy here: the shard learns that plain sends are cheaper.
        if waiting.mode == SendMode::ZeroCopy && result.is_ok() {
            self.done.push_back(Done::Copied(slot));
        }
    }

    /// Offers the bytes from `from` to `end` to a socket, as far as it takes them. Returns how many
    /// it took, and what stopped it before the end: EAGAIN if it has no more room.
    #[inline]
    fn offer(&mut self, slot: Slot, batch: &Batch, from: usize, end: usize) -> (usize, Option<Errno>) {
        let descriptor = self.sockets[slot as usize].descriptor.as_ref().expect("a send needs an open slot");
        let mut taken = 0;
        while from + taken < end {
            let at = from + taken;
            let bytes = batch.bytes_at(at);
            let (offered, sent) = match batch.segments() {
                Some(segments) if bytes.len() < end - at => {
                    let mut slices = [IoSlice::new(&[]); EPOLL_SEGMENTS_MAX];
                    let (count, offered) = slices_at(segments, at, &mut slices);
                    let none = &mut SendAncillaryBuffer::default();
                    (offered, sendmsg(descriptor, &slices[..count], none, SendFlags::NOSIGNAL))
                }
                _ => (bytes.len(), send(descriptor, bytes, SendFlags::NOSIGNAL)),
            };
            self.calls += 1;
            match sent {
                // A send of some bytes that takes none has no more room to come.
                Ok(0) => return (taken, Some(Errno::PIPE)),
                Ok(some) => {
                    taken += some;
                    if some < offered {
                        return (taken, Some(Errno::AGAIN));
                    }
                }
                Err(Errno::INTR) => {}
                Err(errno) => return (taken, Some(errno)),
            }
        }
        (taken, None)
    }
}

/// The result of a send that is through or was stopped. What was taken counts first; then the next
/// send hears of the failure.
fn ended(taken: usize, stopped: Option<Errno>) -> Result<usize, SendError> {
    match stopped {
        Some(errno) if taken == 0 => Err(SendError::Gone(errno.raw_os_error())),
        _ => Ok(taken),
    }
}

/// Fills `slices` with the bytes of a vectored payload from `at` on, as far as they go. Returns how
/// many slices there are, and their bytes.
fn slices_at<'a>(segments: &'a [bytes::Bytes], at: usize, slices: &mut [IoSlice<'a>]) -> (usize, usize) {
    let (mut start, mut count, mut offered) = (0, 0, 0);
    for segment in segments {
        let end = start + segment.len();
        if at < end {
            let Some(slice) = slices.get_mut(count) else { break };
            *slice = IoSlice::new(&segment[at.saturating_sub(start)..]);
            offered += slice.len();
            count += 1;
        }
        start = end;
    }
    (count, offered)
}

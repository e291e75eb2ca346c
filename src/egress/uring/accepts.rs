//! Accepts: each armed one has a place of its own for the peer's address (S3).

use std::cell::UnsafeCell;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::types::{DestinationSlot, Fd};

use super::Uring;
use super::op::Op;
use crate::egress::ring::{Completion, EgressRing, Slot};

/// Where the kernel writes the address of the next peer.
pub struct AcceptPlace {
    address: UnsafeCell<libc::sockaddr_storage>,
    length: UnsafeCell<libc::socklen_t>,
    /// Index of the listener that this accept waits on.
    listener: usize,
}

/// Places for `each` accepts of so many listeners.
pub fn places(listeners: usize, each: usize) -> Box<[AcceptPlace]> {
    (0..listeners * each)
        .map(|index| AcceptPlace {
            // SAFETY: sockaddr_storage is plain old data for which all zeroes means "unspecified
            // family".
            address: UnsafeCell::new(unsafe { std::mem::zeroed() }),
            length: UnsafeCell::new(0),
            listener: index % listeners,
        })
        .collect()
}

impl Uring {
    /// Accepts in the kernel.
    pub(super) fn accepts_armed(&self) -> usize {
        self.accepts.len() - self.accepts_idle.len() - self.accepts_failed.len()
    }

    /// True if an accept is idle and there is room for whom it would bring.
    pub(super) fn can_arm_accept(&self) -> bool {
        let armed = self.accepts_armed();
        !self.holding
            && self.accepts_left > 0
            && !self.accepts_idle.is_empty()
            && self.open + armed < self.sockets_max
    }

    /// True if an accept in the kernel is to be called back.
    pub(super) fn can_recall_accept(&self) -> bool {
        self.holding && self.recalled < self.accepts.len() && self.accepts_armed() > 0
    }

    /// Arms as many accepts as there is room for sockets; while nobody is to be accepted, calls
    /// them back.
    pub(super) fn arm_accepts(&mut self) {
        while self.room() > 0 && self.can_recall_accept() {
            // One that is not in the kernel is not found there.
            let index = self.recalled as u32;
            self.recalled += 1;
            self.cancel_request(index, Op::Accept.user_data(index));
        }
        while self.room() > 0 && self.can_arm_accept() {
            let Some(index) = self.accepts_idle.pop() else { return };
            self.accepts_left -= 1;
            let place = &self.accepts[index as usize];
            let listener = Fd(self.listeners[place.listener].as_raw_fd());
            let length = place.length.get();
            // SAFETY: S3: this accept is not in the kernel, so nobody else touches its place.
            unsafe { *length = std::mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t };
            let accept = opcode::Accept::new(listener, place.address.get().cast(), length);
            let accept = match self.direct {
                true => accept.file_index(Some(DestinationSlot::auto_target())),
                false => accept.flags(libc::SOCK_CLOEXEC),
            };
            self.push(&accept.build().user_data(Op::Accept.user_data(index)));
        }
    }

    pub(super) fn accepted(&mut self, index: u32, result: i32, handle: &mut dyn FnMut(Completion<'_>)) {
        if result >= 0 {
            self.open += 1;
            let place = &self.accepts[index as usize];
            // SAFETY: S3: the accept completed, so the kernel has written address and length and is
            // done with both.
            let peer = unsafe { socket2::SockAddr::new(socket_address(place), *place.length.get()) };
            let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
            let peer = peer.as_socket().unwrap_or(unspecified);
            handle(Completion::Accepted { slot: result as Slot, peer, listener: place.listener });
            self.accepts_idle.push(index);
        } else if matches!(-result, libc::ECONNABORTED | libc::ECANCELED | libc::EINTR | libc::EAGAIN) {
            self.accepts_idle.push(index);
        } else {
            self.accepts_failed.push(index);
            handle(Completion::AcceptFailed(-result));
        }
    }
}

/// The address that the kernel wrote, as socket2 wants it.
fn socket_address(place: &AcceptPlace) -> socket2::SockAddrStorage {
    let mut storage = socket2::SockAddrStorage::zeroed();
    // SAFETY: S3: the accept completed, so nobody writes the place; SockAddrStorage is a
    // transparent sockaddr_storage.
    unsafe { *storage.view_as::<libc::sockaddr_storage>() = *place.address.get() };
    storage
}

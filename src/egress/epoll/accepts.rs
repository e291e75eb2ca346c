//! Accepts: as many as there is room for sockets, each listener in its turn. Peers without room
//! wait in the kernel's queue.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SocketFlags, acceptfrom_with};

use super::{Epoll, Socket};
use crate::egress::ring::{Completion, Slot};

/// A listener, and what is known of its queue.
#[derive(Debug)]
pub(super) struct Listener {
    socket: OwnedFd,
    /// It is in the epoll.
    is_known: bool,
    /// Peers may wait in its queue.
    pub has_peers: bool,
    /// An accept failed for want of resources; none is tried until `retry_accepts`.
    pub has_failed: bool,
}

impl Listener {
    /// A listener that the epoll does not know yet.
    pub fn new(socket: OwnedFd) -> Listener {
        Listener { socket, is_known: false, has_peers: false, has_failed: false }
    }

    /// Adds a listener to the epoll, if it is not there, whose events are about `about`.
    pub fn register(&mut self, epoll: &OwnedFd, about: u64) -> rustix::io::Result<()> {
        // Another process may have let it block meanwhile.
        ioctl_fionbio(&self.socket, true)?;
        if !self.is_known {
            epoll::add(epoll, &self.socket, EventData::new_u64(about), EventFlags::IN | EventFlags::ET)?;
            self.is_known = true;
        }
        // Those who came meanwhile were told of once.
        self.has_peers = true;
        Ok(())
    }

    /// A copy of its descriptor.
    pub fn copy(&self) -> std::io::Result<OwnedFd> {
        self.socket.try_clone()
    }

    /// Lets go of a listener that others have too: their sockets would be told of for ever.
    pub fn leave(self, epoll: &OwnedFd) {
        if self.is_known {
            // It is in the epoll, so this does not fail.
            let _ = epoll::delete(epoll, &self.socket);
        }
    }

    fn may_accept(&self) -> bool {
        self.has_peers && !self.has_failed
    }
}

/// What a connection is listened to for; edge-triggered, so that it is said once for all.
const EDGES: EventFlags =
    EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

impl Epoll {
    /// True if peers wait and there is room for one.
    pub(super) fn may_accept(&self) -> bool {
        !self.holding
            && self.accepts_left > 0
            && self.open < self.sockets_max
            && self.listeners.iter().any(Listener::may_accept)
    }

    /// Lets in whom there is room for, a bounded number. Returns how many completions it told.
    pub(super) fn accept_some(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        if !self.may_accept() {
            return 0;
        }
        let first = self.first_listener;
        // Where room is short, no listener is always the first to get it.
        self.first_listener = (first + 1) % self.listeners.len();
        let mut told = 0;
        for turn in 0..self.listeners.len() {
            let index = (first + turn) % self.listeners.len();
            for _ in 0..self.accepts_per_listener {
                if !self.listeners[index].may_accept()
                    || self.open == self.sockets_max
                    || self.accepts_left == 0
                {
                    break;
                }
                told += usize::from(self.accept(index, handle));
            }
        }
        told
    }

    /// Accepts one peer. True if it told a completion.
    fn accept(&mut self, index: usize, handle: &mut dyn FnMut(Completion<'_>)) -> bool {
        let listener = &mut self.listeners[index];
        self.calls += 1;
        let accepted = acceptfrom_with(&listener.socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
        let registered = accepted.and_then(|(socket, peer)| {
            let slot = socket.as_raw_fd() as Slot;
            self.calls += 1;
            // A peer that cannot be listened to is hung up on.
            epoll::add(&self.epoll, &socket, EventData::new_u64(slot.into()), EDGES)?;
            Ok((socket, slot, peer))
        });
        match registered {
            Ok((socket, slot, peer)) => {
                if self.sockets.len() <= slot as usize {
                    self.sockets.resize_with(slot as usize + 1, Socket::default);
                }
                self.sockets[slot as usize] = Socket { descriptor: Some(socket), ..Socket::default() };
                self.open += 1;
                self.accepts_left -= 1;
                let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).unwrap_or(unspecified);
                handle(Completion::Accepted { slot, peer, listener: index });
                true
            }
            Err(Errno::AGAIN) => {
                listener.has_peers = false;
                false
            }
            Err(Errno::CONNABORTED | Errno::CANCELED | Errno::INTR) => false,
            Err(errno) => {
                listener.has_failed = true;
                handle(Completion::AcceptFailed(errno.raw_os_error()));
                true
            }
        }
    }
}

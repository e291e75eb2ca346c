//! What a receiver waits for: the io_uring that its sockets are in, the epoll of those that are not
//! open yet, and the coordinator's orders.
//!
//! While only open connections matter, one `io_uring_enter` per wake-up does everything: it hands
//! over what was asked, waits, and finishes receives. Orders come through the ring too: a thread
//! copies standard input into a socket that the ring receives on. Only while handshakes are under
//! way (or stalled readers watched) does the receiver sleep in `epoll_wait`, in which the ring's
//! doorbell is one of the descriptors.
//!
//! A slot of the ring is the number of a plain descriptor. A descriptor is closed only after the
//! ring has said that its receive ended and has taken the cancellation if there was one, so that a
//! number is never reused under either.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use fanwave::egress::uring::{Uring, UringOptions};
use fanwave::egress::{EgressRing, Slot};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::io::Errno;

/// Receive buffers of a receiver: many, so that a burst to all connections seldom runs out of them.
const RECEIVE_BUFFERS: u16 = 1_024;
/// Bytes of one: what a socket holds after a burst comes in few pieces, and all buffers together
/// stay small.
const RECEIVE_BUFFER_BYTES: usize = 16 << 10;
/// Descriptor numbers that the ring may meet.
const SLOTS_MAX: u32 = 32 << 10;
/// Events taken from epoll at once.
const EPOLL_EVENTS: usize = 256;
/// The epoll token of the ring's doorbell; sockets have the number of their connection.
const DOORBELL: u64 = u64::MAX;
/// Bytes of orders copied at once.
const ORDER_BYTES: usize = 16 << 10;

/// All that a receiver waits for.
pub struct Wires {
    /// The receives of all open connections and of the orders.
    pub ring: Uring,
    doorbell: OwnedFd,
    epoll: OwnedFd,
    orders: UnixStream,
    events: Vec<epoll::Event>,
}

impl Wires {
    /// Makes the ring and begins to listen to standard input.
    pub fn new() -> Result<Wires> {
        let (orders, copied) = UnixStream::pair().context("making a pair of sockets")?;
        std::thread::spawn(move || copy_orders(copied));
        Wires::obeying(orders)
    }

    /// The same for orders that come by a socket.
    pub fn obeying(orders: UnixStream) -> Result<Wires> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let doorbell = rustix::event::eventfd(0, flags).context("making an eventfd")?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll")?;
        epoll::add(&epoll, &doorbell, epoll::EventData::new_u64(DOORBELL), epoll::EventFlags::IN)?;
        let options = UringOptions {
            keeps_listeners: false,
            holds_accepts: false,
            listeners: Vec::new(),
            accepts_per_listener: 0,
            slots: SLOTS_MAX,
            sockets_max: SLOTS_MAX,
            direct: false,
            receive_buffers: RECEIVE_BUFFERS,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        };
        let ring = Uring::new(options, doorbell.as_fd())?;
        let mut wires = Wires { ring, doorbell, epoll, orders, events: Vec::with_capacity(EPOLL_EVENTS) };
        let slot = wires.order_slot();
        wires.ring.receive(slot);
        Ok(wires)
    }

    /// The slot on which orders arrive; its end of stream is the end of the process.
    pub fn order_slot(&self) -> Slot {
        slot(&self.orders)
    }

    /// Arms the receive of an open connection.
    pub fn receive(&mut self, socket: impl AsFd) -> Result<()> {
        self.receive_slot(slot(socket))
    }

    /// The same by its slot, for a receive that has ended.
    pub fn receive_slot(&mut self, slot: Slot) -> Result<()> {
        self.make_room()?;
        self.ring.receive(slot);
        Ok(())
    }

    /// Ends the receive of a connection; the ring says when it has.
    pub fn cancel(&mut self, socket: impl AsFd) -> Result<()> {
        self.make_room()?;
        self.ring.cancel(slot(socket));
        Ok(())
    }

    /// True if the kernel has not taken all that was asked of the ring: a cancellation among it
    /// would hit whoever has the descriptor's number by then.
    pub fn asks(&mut self) -> bool {
        self.ring.queued() > 0
    }

    fn make_room(&mut self) -> Result<()> {
        while self.ring.room() == 0 {
            self.ring.submit()?;
        }
        Ok(())
    }

    /// Watches a socket that is not in the ring.
    pub fn watch(&mut self, socket: impl AsFd, number: u32, flags: epoll::EventFlags) -> Result<()> {
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(number.into()), flags)
            .context("watching a socket")
    }

    /// Watches it no more.
    pub fn unwatch(&mut self, socket: impl AsFd) -> Result<()> {
        epoll::delete(&self.epoll, socket).context("watching a socket no more")
    }

    /// Waits until something can be reaped, at most `limit`.
    pub fn wait(&mut self, limit: Option<Duration>) -> Result<()> {
        Ok(self.ring.submit_and_wait(limit)?)
    }

    /// Waits until something can be reaped or a watched socket is ready, at most `limit`. Gives the
    /// numbers of the sockets.
    pub fn wait_watching(&mut self, limit: Option<Duration>) -> Result<Vec<u32>> {
        self.ring.submit()?;
        let limit = if self.ring.may_sleep() { limit } else { Some(Duration::ZERO) };
        let timeout = limit
            .map(|limit| Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for sockets"),
        }
        self.ring.awake();
        let mut ready = Vec::new();
        for event in self.events.drain(..) {
            match event.data.u64() {
                // The count says nothing; whoever is awake looks by itself. A doorbell that is
                // quiet again is no failure.
                DOORBELL => drop(rustix::io::read(&self.doorbell, &mut [0; 8])),
                number => ready.push(number as u32),
            }
        }
        if ready.is_empty() && self.ring.wants_submit() {
            self.ring.submit()?;
        }
        Ok(ready)
    }
}

/// The slot of a plain descriptor.
pub fn slot(socket: impl AsFd) -> Slot {
    socket.as_fd().as_raw_fd() as Slot
}

/// Copies standard input until either end is closed; dropping the socket is the end of the orders.
fn copy_orders(mut to: UnixStream) {
    let mut buffer = [0; ORDER_BYTES];
    loop {
        match rustix::io::read(std::io::stdin(), &mut buffer) {
            Ok(0) => return,
            Ok(read) => {
                if to.write_all(&buffer[..read]).is_err() {
                    return;
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

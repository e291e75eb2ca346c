//! A ring without a kernel: sockets are queues, time is a turn, and one seed decides everything.
//!
//! Under [`Weather::Fair`] every send is taken whole at once, which is what benchmarks want. Under
//! [`Weather::Rough`] sends are taken in part, find or wait for room, fail, and completions of
//! different sockets arrive in any order; the order within one socket is the kernel's: bytes before
//! the end of the stream, and nothing after `Closed`. In some rough weathers a submit takes nothing
//! from the queue now and then, as when the kernel lacks memory.
//!
//! The test plays the peer through `connect`, `peer_sends`, `peer_takes`, `peer_closes`,
//! `peer_resets` and `stall`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::batch::Batch;
use super::ring::{Completion, EgressRing, Insecure, ReceiveEnd, RingError, SendError, SendMode, Slot};
use crate::config::limits::SUBMISSIONS_MAX;

const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;
const ECANCELED: i32 = 125;

/// How the sockets behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weather {
    /// Every send is taken whole at once.
    Fair,
    /// Anything that a network may do, decided by the seed.
    Rough,
}

/// Chooses among schedules; the same seed chooses the same.
#[derive(Debug, Clone)]
pub struct Dice(SmallRng);

impl Dice {
    /// The dice of one seed.
    pub fn new(seed: u64) -> Dice {
        Dice(SmallRng::seed_from_u64(seed))
    }

    /// A number below `sides`, which is at least 1.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0.random_range(..sides)
    }

    /// True `times` out of `of`.
    pub fn chance(&mut self, times: u64, of: u64) -> bool {
        self.roll(of) < times
    }
}

#[derive(Debug)]
struct SendInRing {
    batch: Rc<Batch>,
    offset: usize,
    mode: SendMode,
}

impl SendInRing {
    /// Bytes that it asks the socket to take: all, or from the middle on the rest of one segment.
    fn wanted(&self) -> usize {
        match self.offset {
            0 => self.batch.len(),
            offset => self.batch.bytes_at(offset).len(),
        }
    }
}

#[derive(Debug, Default)]
struct Socket {
    open: bool,
    /// What the peer sent and we have not received.
    inbound: VecDeque<u8>,
    /// What we sent and the peer has not taken.
    outbound: Vec<u8>,
    taken: u64,
    receiving: bool,
    send: Option<SendInRing>,
    /// The peer sends no more.
    peer_ended: bool,
    reset: bool,
    /// What comes from the peer is not what TLS allows.
    insecure: Option<Insecure>,
    /// The peer reads nothing: sends wait.
    stalled: bool,
    /// Our side has ended its stream.
    ended: bool,
    /// An end of stream is in the ring.
    ending: bool,
    /// What is in the ring is to end.
    cancelled: bool,
    /// The receive in the ring is to end.
    pausing: bool,
    closing: bool,
    /// True exactly while the slot is in `SimRing::busy`.
    busy: bool,
}

/// A completion that owns its bytes.
#[derive(Debug)]
enum Event {
    Received(Vec<u8>),
    ReceiveEnded(ReceiveEnd),
    Short(Rc<Batch>, Result<usize, SendError>),
    Sent(Rc<Batch>, Result<usize, SendError>),
    Copied,
    StreamEnded,
    Closed,
}

/// The ring of a test.
#[derive(Debug)]
pub struct SimRing {
    weather: Weather,
    /// Bytes are kept for `peer_takes`; else they are only counted.
    recording: bool,
    dice: Dice,
    sockets: Vec<Socket>,
    queued: usize,
    /// Now and then a submit takes nothing from the queue: in every second rough weather.
    pub refuses: bool,
    /// The last submit took nothing from the queue.
    unsettled: bool,
    /// Requests that fit before a submit.
    submissions_max: usize,
    /// Slots on which something may happen at the next submit.
    busy: Vec<Slot>,
    done: VecDeque<(Slot, Event)>,
    accepted: VecDeque<(Slot, SocketAddr, usize)>,
    /// Connections that may still be accepted.
    accepts_left: usize,
    /// Nobody is accepted.
    holding: bool,
    enters: u64,
    /// Sends that the sockets took, whole or in part.
    pub sends: u64,
    /// Bytes that the sockets took.
    pub bytes: u64,
}

impl SimRing {
    /// A ring with room for `sockets_max` connections.
    pub fn new(sockets_max: usize, weather: Weather, seed: u64) -> SimRing {
        let mut dice = Dice::new(seed);
        SimRing {
            weather,
            recording: false,
            refuses: weather == Weather::Rough && dice.chance(1, 2),
            dice,
            sockets: (0..sockets_max).map(|_| Socket::default()).collect(),
            queued: 0,
            unsettled: false,
            submissions_max: SUBMISSIONS_MAX as usize,
            busy: Vec::new(),
            done: VecDeque::new(),
            accepted: VecDeque::new(),
            accepts_left: usize::MAX,
            holding: false,
            enters: 0,
            sends: 0,
            bytes: 0,
        }
    }

    /// The same ring, keeping what the peers get.
    pub fn recording(self) -> SimRing {
        SimRing { recording: true, ..self }
    }

    /// The same ring with room for fewer requests, so that a sweep stops in mid-lap.
    pub fn with_room(self, submissions_max: usize) -> SimRing {
        SimRing { submissions_max, ..self }
    }

    /// A peer connects; `None` if the table is full.
    pub fn connect(&mut self) -> Option<Slot> {
        self.connect_from(Ipv4Addr::LOCALHOST, 0)
    }

    /// A peer with this address connects to one of the listeners.
    pub fn connect_from(&mut self, ip: Ipv4Addr, listener: usize) -> Option<Slot> {
        let slot = self.sockets.iter().position(|socket| !socket.open)?;
        let busy = self.sockets[slot].busy;
        self.sockets[slot] = Socket { open: true, busy, ..Socket::default() };
        let peer = SocketAddr::from((ip, 10_000 + (slot % 50_000) as u16));
        self.accepted.push_back((slot as Slot, peer, listener));
        Some(slot as Slot)
    }

    /// The peer of `slot` sends `bytes`.
    pub fn peer_sends(&mut self, slot: Slot, bytes: &[u8]) {
        self.touch(slot).inbound.extend(bytes);
    }

    /// What the peer of `slot` has not read yet.
    pub fn peer_takes(&mut self, slot: Slot) -> Vec<u8> {
        std::mem::take(&mut self.sockets[slot as usize].outbound)
    }

    /// The peer ends its stream.
    pub fn peer_closes(&mut self, slot: Slot) {
        self.touch(slot).peer_ended = true;
    }

    /// The peer is gone without a word.
    pub fn peer_resets(&mut self, slot: Slot) {
        self.touch(slot).reset = true;
    }

    /// A layer of TLS finds fault with what the peer sends.
    pub fn peer_is_insecure(&mut self, slot: Slot, fault: Insecure) {
        self.touch(slot).insecure = Some(fault);
    }

    /// What the peer of `slot` has sent and nobody has received.
    pub fn unreceived(&self, slot: Slot) -> usize {
        self.sockets[slot as usize].inbound.len()
    }

    /// While stalled, the peer reads nothing and sends to it wait.
    pub fn stall(&mut self, slot: Slot, stalled: bool) {
        self.touch(slot).stalled = stalled;
    }

    /// True while the slot is in use.
    pub fn is_open(&self, slot: Slot) -> bool {
        self.sockets[slot as usize].open
    }

    /// True once our side ended the stream of `slot`.
    pub fn ended(&self, slot: Slot) -> bool {
        let socket = &self.sockets[slot as usize];
        !socket.open || socket.ended || socket.cancelled
    }

    /// True if our side ended the stream of `slot`, before it was closed or instead; also after the
    /// close, until the slot is used again.
    pub fn ended_in_order(&self, slot: Slot) -> bool {
        self.sockets[slot as usize].ended
    }

    /// Bytes that the kernel took for `slot` in all.
    pub fn taken(&self, slot: Slot) -> u64 {
        self.sockets[slot as usize].taken
    }

    /// Bytes of the send in the ring that are not taken yet.
    pub fn waiting(&self, slot: Slot) -> usize {
        self.sockets[slot as usize].send.as_ref().map_or(0, |send| send.batch.len() - send.offset)
    }

    fn may_accept(&self) -> bool {
        self.accepts_left > 0 && !self.holding
    }

    /// Lets every busy socket make what progress the weather allows.
    fn step(&mut self) {
        let mut index = 0;
        while index < self.busy.len() {
            let slot = self.busy[index] as usize;
            if self.sockets[slot].open {
                self.step_send(slot);
                self.step_receive(slot);
                self.step_end(slot);
                self.sockets[slot].cancelled = false;
                self.step_close(slot);
            }
            let socket = &mut self.sockets[slot];
            let receivable =
                !socket.inbound.is_empty() || socket.peer_ended || socket.reset || socket.cancelled;
            if socket.send.is_some() || socket.closing || socket.ending || (socket.receiving && receivable) {
                index += 1;
            } else {
                socket.busy = false;
                self.busy.swap_remove(index);
            }
        }
    }

    /// The socket of `slot`, which may make progress at the next submit.
    fn touch(&mut self, slot: Slot) -> &mut Socket {
        let socket = &mut self.sockets[slot as usize];
        if !socket.busy {
            socket.busy = true;
            self.busy.push(slot);
        }
        socket
    }

    fn step_send(&mut self, slot: usize) {
        let rough = self.weather == Weather::Rough;
        let socket = &mut self.sockets[slot];
        let Some(send) = socket.send.take() else { return };
        let errno = match (socket.reset, socket.cancelled, socket.ended) {
            (true, _, _) => Some(ECONNRESET),
            (false, true, _) => Some(ECANCELED),
            (false, false, true) => Some(EPIPE),
            (false, false, false) => None,
        };
        if let Some(errno) = errno {
            self.send_ends(slot, send, Err(SendError::Gone(errno)));
            return;
        }
        if socket.stalled || (rough && self.dice.chance(1, 4)) {
            // EAGAIN
            match send.mode {
                SendMode::Instant => self.send_ends(slot, send, Ok(0)),
                SendMode::Waiting | SendMode::ZeroCopy => socket.send = Some(send),
            }
            return;
        }
        if send.mode == SendMode::ZeroCopy && rough && self.dice.chance(1, 8) {
            self.send_ends(slot, send, Err(SendError::NoZeroCopy));
            return;
        }
        let mut taken = send.wanted();
        if rough && self.dice.chance(1, 5) {
            taken = 1 + self.dice.roll(taken as u64) as usize;
        }
        let socket = &mut self.sockets[slot];
        socket.taken += taken as u64;
        if self.recording {
            let mut offset = send.offset;
            while offset < send.offset + taken {
                let bytes = send.batch.bytes_at(offset);
                let part = bytes.len().min(send.offset + taken - offset);
                socket.outbound.extend_from_slice(&bytes[..part]);
                offset += part;
            }
        }
        self.sends += 1;
        self.bytes += taken as u64;
        self.send_ends(slot, send, Ok(taken));
    }

    /// Reports the end of a send as its mode wants it.
    fn send_ends(&mut self, slot: usize, send: SendInRing, result: Result<usize, SendError>) {
        let slot = slot as Slot;
        let whole = result == Ok(send.wanted());
        match send.mode {
            SendMode::Instant if whole => {}
            SendMode::Instant => self.done.push_back((slot, Event::Short(send.batch, result))),
            SendMode::Waiting => self.done.push_back((slot, Event::Sent(send.batch, result))),
            SendMode::ZeroCopy => {
                self.done.push_back((slot, Event::Sent(send.batch, result)));
                if result.is_ok() {
                    self.done.push_back((slot, Event::Copied));
                }
            }
        }
    }

    fn step_receive(&mut self, slot: usize) {
        let socket = &mut self.sockets[slot];
        if !socket.receiving {
            socket.pausing = false;
            return;
        }
        // One that is between two waits is not found.
        let is_missed = |dice: &mut Dice| self.weather == Weather::Rough && dice.chance(1, 8);
        let is_paused = std::mem::take(&mut socket.pausing) && !is_missed(&mut self.dice);
        let ended = if socket.reset {
            Some(ReceiveEnd::Failed(ECONNRESET))
        } else if let Some(fault) = socket.insecure {
            Some(ReceiveEnd::Insecure(fault))
        } else if socket.cancelled || is_paused {
            Some(ReceiveEnd::Cancelled)
        } else if !socket.inbound.is_empty() {
            let rough = self.weather == Weather::Rough;
            let all = socket.inbound.len();
            let part = if rough { 1 + self.dice.roll(all as u64) as usize } else { all };
            let bytes: Vec<u8> = socket.inbound.drain(..part).collect();
            self.done.push_back((slot as Slot, Event::Received(bytes)));
            (rough && self.dice.chance(1, 16)).then_some(ReceiveEnd::NoBuffers)
        } else {
            socket.peer_ended.then_some(ReceiveEnd::EndOfStream)
        };
        if let Some(end) = ended {
            self.sockets[slot].receiving = false;
            self.done.push_back((slot as Slot, Event::ReceiveEnded(end)));
        }
    }

    fn step_end(&mut self, slot: usize) {
        // The kernel hands an end of stream to a worker, which may take its time.
        let late = self.weather == Weather::Rough && self.dice.chance(1, 2);
        let socket = &mut self.sockets[slot];
        if socket.ending && !late {
            socket.ending = false;
            socket.ended = true;
            self.done.push_back((slot as Slot, Event::StreamEnded));
        }
    }

    fn step_close(&mut self, slot: usize) {
        let socket = &mut self.sockets[slot];
        if socket.closing {
            socket.closing = false;
            self.done.push_back((slot as Slot, Event::Closed));
        }
    }

    /// The next completion: the oldest, or in rough weather the oldest of some slot.
    fn next_done(&mut self) -> Option<(Slot, Event)> {
        if self.weather == Weather::Fair || self.done.len() < 2 {
            return self.done.pop_front();
        }
        let chosen = self.done[self.dice.roll(self.done.len() as u64) as usize].0;
        let first = self.done.iter().position(|(slot, _)| *slot == chosen)?;
        self.done.remove(first)
    }

    fn queue(&mut self) {
        assert!(self.room() > 0, "the caller leaves room for what it submits");
        self.queued += 1;
    }
}

impl EgressRing for SimRing {
    fn room(&self) -> usize {
        if self.unsettled { 0 } else { self.submissions_max - self.queued }
    }

    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        self.queue();
        assert!(offset < batch.len(), "a send has bytes");
        let socket = self.touch(slot);
        assert!(socket.open, "a send needs an open slot");
        assert!(socket.send.is_none(), "one send in flight per connection");
        socket.send = Some(SendInRing { batch: batch.clone(), offset, mode });
    }

    fn receive(&mut self, slot: Slot) {
        self.queue();
        let socket = self.touch(slot);
        assert!(socket.open && !socket.receiving, "one receive per open slot");
        socket.receiving = true;
    }

    fn pause(&mut self, slot: Slot) {
        self.queue();
        let socket = self.touch(slot);
        assert!(socket.open, "an open slot is paused");
        socket.pausing = true;
    }

    fn end_stream(&mut self, slot: Slot) {
        self.queue();
        let socket = self.touch(slot);
        assert!(socket.open && !socket.ended, "a stream ends once");
        socket.ending = true;
    }

    fn cancel(&mut self, slot: Slot) {
        self.queue();
        let socket = self.touch(slot);
        assert!(socket.open, "an open slot is cancelled");
        socket.cancelled = true;
    }

    fn close(&mut self, slot: Slot) {
        self.queue();
        let socket = self.touch(slot);
        assert!(
            socket.open && socket.send.is_none() && !socket.receiving && !socket.ending && !socket.closing,
            "a quiet slot is closed"
        );
        socket.closing = true;
    }

    fn retry_accepts(&mut self) {}

    fn hold_accepts(&mut self) {
        self.holding = true;
    }

    fn holds_accepts(&self) -> bool {
        self.holding
    }

    fn open_accepts(&mut self) -> Result<(), RingError> {
        self.holding = false;
        Ok(())
    }

    fn copy_listeners(&self) -> std::io::Result<Vec<std::os::fd::OwnedFd>> {
        // Its peers come from nowhere.
        Ok(Vec::new())
    }

    fn leave_listeners(&mut self) {
        self.holding = true;
    }

    fn wants_submit(&mut self) -> bool {
        !self.busy.is_empty()
    }

    fn submit(&mut self) -> Result<(), RingError> {
        self.enters += 1;
        self.unsettled = self.queued > 0 && self.refuses && self.dice.chance(1, 32);
        if !self.unsettled {
            self.queued = 0;
            self.step();
        }
        Ok(())
    }

    fn allow_accepts(&mut self, more: usize, most: usize) {
        self.accepts_left = self.accepts_left.saturating_add(more).min(most);
    }

    fn reap(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        let mut reaped = 0;
        while self.may_accept()
            && let Some((slot, peer, listener)) = self.accepted.pop_front()
        {
            self.accepts_left -= 1;
            handle(Completion::Accepted { slot, peer, listener });
            reaped += 1;
        }
        while let Some((slot, event)) = self.next_done() {
            match event {
                Event::Received(mut bytes) => handle(Completion::Received { slot, bytes: &mut bytes }),
                Event::ReceiveEnded(end) => handle(Completion::ReceiveEnded { slot, end }),
                Event::Short(batch, result) => handle(Completion::Short { slot, batch, result }),
                Event::Sent(batch, result) => handle(Completion::Sent { slot, batch, result }),
                Event::Copied => handle(Completion::Copied { slot }),
                Event::StreamEnded => handle(Completion::StreamEnded { slot }),
                Event::Closed => {
                    self.sockets[slot as usize].open = false;
                    handle(Completion::Closed { slot });
                }
            }
            reaped += 1;
        }
        reaped
    }

    fn may_sleep(&mut self) -> bool {
        self.queued == 0 && self.done.is_empty() && (self.accepted.is_empty() || !self.may_accept())
    }

    fn awake(&mut self) {}

    fn enters(&self) -> u64 {
        self.enters
    }
}

//! TLS 1.3 for subscribers: a ring around a ring.
//!
//! The shard hands [`Tls`] the batches that it shares among all subscribers, as it would hand them
//! to the kernel's ring, and hears of plain bytes alone. Here they are sealed into a piece of the
//! connection's own, which the inner ring sends like any batch: silently, many per system call.
//! Sockets stay plain TCP. A connection that came to another listener passes through untouched, and
//! a server without TLS has no such ring at all.
//!
//! Invariants worth naming:
//! - Bytes are sealed once, when they are handed to the inner ring. What a socket does not take is
//!   kept sealed (`Rest`), and goes out before anything else. The shard is told that its socket
//!   took nothing, so it offers the same batch again, whole.
//! - What the connection itself has to say (`own`) goes in front of the next piece, or by itself
//!   when a submit comes first: never while a send of the connection is under way.
//! - What is asked for here, and not by the shard, is asked at a submit, one thing per connection:
//!   nothing is asked beside an instant send of the same turn.
//! - A fault is told as the end of the receive. The inner receive may go on until the slot is
//!   closed; what it brings is dropped.
//! - Steps of handshakes are bounded per turn; the others wait in a queue.
//! - The client's goodbye is told as the end of its stream, whether its socket ends or not. Ours
//!   goes out before a socket is closed, where no half record of ours stands before it.
//! - A PROXY header is taken from the first bytes of a connection before its handshake sees any
//!   (`proxied`), and only where it is expected.
//! - A record that was begun has `TLS_RECORD_MS_MAX` to become whole, while it is received.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::config::limits::TLS_HANDSHAKE_BYTES_MAX;
use crate::egress::places::Places;
use crate::egress::{
    Batch, Completion, EgressRing, Insecure, ReceiveEnd, RingError, SendError, SendMode, Slot,
};
pub use automatic::{Automatic, Signed, SignedError};
use handshake::Handshake;
pub use identity::{Identity, IdentityError, load, load_with, without_http2};
use pieces::Pieces;
use session::{Rest, Session};

mod automatic;
mod handshake;
mod identity;
mod pieces;
mod proxied;
mod receiving;
mod record;
mod session;
#[cfg(test)]
mod tests;

const _: () = assert!(record::HEADER + record::SEALED_MAX <= TLS_HANDSHAKE_BYTES_MAX);

/// The errno that a send finds whose connection has no keys.
const EPROTO: i32 = 71;
/// The errno of a send that was cancelled.
const ECANCELED: i32 = 125;

/// A ring some of whose listeners speak TLS.
#[derive(Debug)]
pub struct Tls<R> {
    ring: R,
    layer: Layer,
}

/// Everything but the inner ring, so that both may be borrowed at a time.
#[derive(Debug)]
struct Layer {
    identity: Identity,
    /// Listeners from this one on speak TLS, of so many addresses.
    from: usize,
    addresses: usize,
    /// By address: true where connections begin with a PROXY header. Empty where none do.
    proxied: Vec<bool>,
    /// By slot.
    sessions: Places<Session>,
    /// Instant sends since the last reap that found all of them told.
    instant: Vec<Instant>,
    /// Slots for which something is to be asked at a submit.
    due: VecDeque<Slot>,
    /// Number of this submit.
    submits: u32,
    /// Slots that are due again at the next tick.
    late: Vec<Slot>,
    /// Slots whose handshake can go on.
    shaking: VecDeque<Slot>,
    /// Steps of handshakes in this turn that did not wait for theirs.
    ahead: usize,
    /// Ticks that have passed, at most.
    ticks: u32,
    /// One has since the last reap.
    has_ticked: bool,
    /// Slots whose client is, or was at the last tick, in the middle of a record. May hold one twice.
    partial: Vec<Slot>,
    /// What the shard is to be told, and the inner ring does not know of.
    told: VecDeque<Told>,
    pieces: Pieces,
}

/// An instant send.
#[derive(Debug)]
struct Instant {
    slot: Slot,
    /// What the shard sent; none, if the bytes are the connection's own.
    plain: Option<Rc<Batch>>,
    piece: Rc<Batch>,
}

/// A completion of a send that the inner ring never saw.
#[derive(Debug)]
struct Told {
    slot: Slot,
    batch: Rc<Batch>,
    errno: i32,
    instant: bool,
}

impl<R> Tls<R> {
    /// Listeners of `ring` for the addresses from `from` on speak TLS. Where there are more
    /// listeners than `addresses`, they are in the same order again.
    pub fn new(ring: R, from: usize, addresses: usize, identity: Identity) -> Tls<R> {
        assert!(from < addresses, "an address speaks TLS");
        let layer = Layer {
            identity,
            from,
            addresses,
            proxied: Vec::new(),
            sessions: Places::default(),
            instant: Vec::new(),
            due: VecDeque::new(),
            submits: 0,
            late: Vec::new(),
            shaking: VecDeque::new(),
            ahead: 0,
            ticks: 1,
            has_ticked: false,
            partial: Vec::new(),
            told: VecDeque::new(),
            pieces: Pieces::default(),
        };
        Tls { ring, layer }
    }

    /// By address, plain ones included: true where connections begin with a PROXY header. Those of
    /// plain addresses are the shard's to read.
    pub fn behind_proxies(mut self, proxied: Vec<bool>) -> Tls<R> {
        self.layer.proxied = proxied;
        self
    }

    /// The inner ring.
    pub fn inner(&self) -> &R {
        &self.ring
    }

    /// The inner ring, for a driver that sleeps in it, and for a test that plays the peers.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.ring
    }
}

impl Layer {
    #[inline]
    fn session(&mut self, slot: Slot) -> Option<&mut Session> {
        self.sessions.get_mut(slot)
    }

    /// A client has connected to a listener of TLS.
    fn begin(&mut self, slot: Slot, listener: usize) -> Option<ReceiveEnd> {
        match Handshake::new(self.identity.now()) {
            Ok(mut handshake) => {
                handshake.header = self.expects_header(listener).then(Vec::new);
                self.sessions.put(slot, Session::new(handshake));
                None
            }
            // No random bits or no memory: as if the peer had failed.
            Err(error) => {
                tracing::debug!(%error, "a TLS handshake cannot begin");
                let mut session = Session::default();
                session.warm_up().fault = Some(Insecure::Handshake);
                self.sessions.put(slot, session);
                Some(ReceiveEnd::Insecure(Insecure::Handshake))
            }
        }
    }

    /// Hands a completion of the inner ring on, as the shard understands it.
    fn translate(&mut self, completion: Completion<'_>, handle: &mut dyn FnMut(Completion<'_>)) {
        match completion {
            Completion::Accepted { slot, listener, .. } if listener % self.addresses >= self.from => {
                let failed = self.begin(slot, listener);
                handle(completion);
                if let Some(end) = failed {
                    handle(Completion::ReceiveEnded { slot, end });
                }
            }
            Completion::Received { slot, bytes } if self.session(slot).is_some() => {
                self.received(slot, bytes, handle);
            }
            Completion::ReceiveEnded { slot, end } if self.session(slot).is_some() => {
                self.receive_ended(slot, end, handle);
            }
            Completion::Short { slot, batch, result } if self.session(slot).is_some() => {
                self.short(slot, batch, result, handle);
            }
            Completion::Sent { slot, batch, result } if self.session(slot).is_some() => {
                self.sent(slot, batch, result, handle);
            }
            Completion::Closed { slot } => {
                self.sessions.remove(slot);
                handle(completion);
            }
            other => handle(other),
        }
    }

    /// An instant send was not taken whole.
    fn short(
        &mut self,
        slot: Slot,
        piece: Rc<Batch>,
        result: Result<usize, SendError>,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let of = |sent: &Instant| sent.slot == slot && Rc::ptr_eq(&sent.piece, &piece);
        let Some(at) = self.instant.iter().position(of) else { return };
        let plain = self.instant.swap_remove(at).plain;
        match (plain, result) {
            (Some(batch), Ok(taken)) => {
                let Some(session) = self.session(slot) else { return };
                let rest = Rest { piece, at: taken, plain: None, zero_copy: false, sending: false };
                session.warm_up().rest = Some(rest);
                handle(Completion::Short { slot, batch, result: Ok(0) });
            }
            (Some(batch), Err(error)) => handle(Completion::Short { slot, batch, result: Err(error) }),
            (None, Ok(taken)) => {
                let Some(session) = self.session(slot) else { return };
                let cold = session.warm_up();
                // The socket has no room for our last words.
                if !cold.closing && !cold.ending {
                    let mut own = piece.bytes_at(taken).to_vec();
                    own.append(&mut cold.own);
                    cold.own = own;
                    self.late.push(slot);
                }
            }
            // The receive tells it too.
            (None, Err(_)) => {}
        }
    }

    /// A send that waited has ended.
    fn sent(
        &mut self,
        slot: Slot,
        piece: Rc<Batch>,
        result: Result<usize, SendError>,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let Some(session) = self.session(slot) else { return };
        let Some(cold) = session.cold() else { return };
        let Some(mut rest) = cold.rest.take() else { return };
        let Some(batch) = rest.plain.clone() else { return };
        rest.sending = false;
        let result = match result {
            Ok(taken) if rest.at + taken < piece.len() && cold.cancelled => Err(SendError::Gone(ECANCELED)),
            Ok(taken) if rest.at + taken < piece.len() => {
                rest.at += taken;
                cold.rest = Some(rest);
                self.due.push_back(slot);
                return;
            }
            Ok(_) => Ok(batch.len()),
            Err(error) => Err(error),
        };
        session.cool_down();
        drop(rest.piece);
        self.pieces.take_back(piece);
        let is_sent = result.is_ok();
        handle(Completion::Sent { slot, batch, result });
        if rest.zero_copy && is_sent {
            handle(Completion::Copied { slot });
        }
    }
}

impl<R: EgressRing> Tls<R> {
    /// Asks the inner ring what is due.
    fn ask(&mut self) {
        self.layer.submits = self.layer.submits.wrapping_add(1);
        for _ in 0..self.layer.due.len() {
            // The end of a stream takes two, in two turns.
            if self.ring.room() == 0 {
                return;
            }
            let Some(slot) = self.layer.due.pop_front() else { return };
            self.ask_for(slot);
        }
    }

    /// Asks one thing for a connection, if there is one; what is left is due at the next submit.
    fn ask_for(&mut self, slot: Slot) {
        let Tls { ring, layer } = self;
        let Some(session) = layer.sessions.get_mut(slot) else {
            return;
        };
        // A slot may be due twice.
        if std::mem::replace(&mut session.asked, layer.submits) == layer.submits {
            layer.due.push_back(slot);
            return;
        }
        let receiving = session.receiving;
        let Some(cold) = session.cold() else { return };
        if let Some(rest) = &mut cold.rest {
            if rest.plain.is_some() && !rest.sending {
                rest.sending = true;
                ring.send(slot, &rest.piece, rest.at, SendMode::Waiting);
            }
            // While something of it is under way, nothing else may follow.
            return;
        }
        if !cold.own.is_empty() {
            // Nobody else refers to these bytes, so they are not of a pool.
            let piece = Batch::answer(std::mem::take(&mut cold.own), &layer.pieces.ledger);
            cold.updates = false;
            ring.send(slot, &piece, 0, SendMode::Instant);
            layer.instant.push(Instant { slot, plain: None, piece });
            if cold.closing || cold.ending {
                layer.due.push_back(slot);
            }
        } else if cold.ending {
            cold.ending = false;
            ring.end_stream(slot);
        } else if cold.closing {
            match receiving {
                // It may not be found: it is asked again at the next tick.
                true => {
                    ring.pause(slot);
                    layer.late.push(slot);
                }
                false => {
                    // The slot may be due twice, and is closed once.
                    cold.closing = false;
                    ring.close(slot);
                }
            }
        }
        session.cool_down();
    }
}

impl<R: EgressRing> EgressRing for Tls<R> {
    fn room(&self) -> usize {
        if self.layer.pieces.have_room() { self.ring.room() } else { 0 }
    }

    #[inline]
    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        let Tls { ring, layer } = self;
        let Some(session) = layer.sessions.get_mut(slot) else {
            ring.send(slot, batch, offset, mode);
            return;
        };
        assert!(offset == 0, "the shard is told that a socket took all of a batch, or nothing");
        let instant = mode == SendMode::Instant;
        if let Some(cold) = session.cold() {
            if cold.handshake.is_some() || cold.fault.is_some() {
                layer.told.push_back(Told { slot, batch: batch.clone(), errno: EPROTO, instant });
                return;
            }
            if let Some(rest) = &mut cold.rest {
                assert!(!instant && !rest.sending, "the rest of a batch goes out first");
                rest.plain = Some(batch.clone());
                rest.zero_copy = mode == SendMode::ZeroCopy;
                rest.sending = true;
                ring.send(slot, &rest.piece, rest.at, SendMode::Waiting);
                return;
            }
        }
        let piece = layer.pieces.seal(session, batch);
        if instant {
            session.cool_down();
            ring.send(slot, &piece, 0, SendMode::Instant);
            layer.instant.push(Instant { slot, plain: Some(batch.clone()), piece });
        } else {
            ring.send(slot, &piece, 0, SendMode::Waiting);
            let zero_copy = mode == SendMode::ZeroCopy;
            let plain = Some(batch.clone());
            session.warm_up().rest = Some(Rest { piece, at: 0, plain, zero_copy, sending: true });
        }
    }

    fn receive(&mut self, slot: Slot) {
        if let Some(session) = self.layer.session(slot) {
            session.receiving = true;
        }
        self.ring.receive(slot);
    }

    fn pause(&mut self, slot: Slot) {
        self.ring.pause(slot);
    }

    fn end_stream(&mut self, slot: Slot) {
        let Some(session) = self.layer.session(slot) else { return self.ring.end_stream(slot) };
        let is_open = session.cold().is_none_or(|cold| cold.handshake.is_none() && cold.fault.is_none());
        if is_open {
            session.close_notify();
        }
        session.warm_up().ending = true;
        self.layer.due.push_back(slot);
    }

    fn cancel(&mut self, slot: Slot) {
        let Tls { ring, layer } = self;
        if let Some(session) = layer.session(slot)
            && let Some(cold) = session.cold()
        {
            cold.cancelled = true;
            cold.own.clear();
            if let Some(batch) = cold.rest.take_if(|rest| !rest.sending).and_then(|rest| rest.plain) {
                layer.told.push_back(Told { slot, batch, errno: ECANCELED, instant: false });
            }
        }
        ring.cancel(slot);
    }

    fn close(&mut self, slot: Slot) {
        let Tls { ring, layer } = self;
        if let Some(session) = layer.session(slot) {
            let says_goodbye = session.say_goodbye();
            // A client that has said goodbye may be received from still.
            let receiving = session.receiving;
            let has_cold = session.cold().is_some();
            if receiving || has_cold {
                let cold = session.warm_up();
                cold.ending = false;
                // Nobody offers the rest of that batch again, and an alert behind half a record says
                // nothing.
                if cold.rest.take().is_some() || !says_goodbye && cold.fault.is_none() {
                    cold.own.clear();
                }
                if receiving || says_goodbye || cold.fault.is_some() {
                    // What it has to say is to be sent first, and the receive to be ended.
                    cold.closing = true;
                    layer.due.push_back(slot);
                    return;
                }
            }
        }
        ring.close(slot);
    }

    fn wants_submit(&mut self) -> bool {
        !self.layer.due.is_empty() || !self.layer.shaking.is_empty() || self.ring.wants_submit()
    }

    fn submit(&mut self) -> Result<(), RingError> {
        self.ask();
        self.ring.submit()
    }

    fn retry_accepts(&mut self) {
        self.layer.ticks = self.layer.ticks.wrapping_add(1).max(1);
        self.layer.has_ticked = true;
        self.layer.due.extend(self.layer.late.drain(..));
        self.ring.retry_accepts();
    }

    fn allow_accepts(&mut self, more: usize, most: usize) {
        self.ring.allow_accepts(more, most);
    }

    fn hold_accepts(&mut self) {
        self.ring.hold_accepts();
    }

    fn holds_accepts(&self) -> bool {
        self.ring.holds_accepts()
    }

    fn open_accepts(&mut self) -> Result<(), RingError> {
        self.ring.open_accepts()
    }

    fn copy_listeners(&self) -> io::Result<Vec<OwnedFd>> {
        self.ring.copy_listeners()
    }

    fn leave_listeners(&mut self) {
        self.ring.leave_listeners();
    }

    fn reap(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        let Tls { ring, layer } = self;
        let mut reaped = layer.told.len();
        for Told { slot, batch, errno, instant } in layer.told.drain(..) {
            let result = Err(SendError::Gone(errno));
            handle(match instant {
                true => Completion::Short { slot, batch, result },
                false => Completion::Sent { slot, batch, result },
            });
        }
        if std::mem::take(&mut layer.has_ticked) {
            layer.end_late_records(handle);
        }
        reaped += ring.reap(&mut |completion| layer.translate(completion, handle));
        if ring.room() > 0 {
            for Instant { piece, .. } in layer.instant.drain(..) {
                layer.pieces.take_back(piece);
            }
            layer.pieces.settle();
        }
        reaped + layer.shake(handle)
    }

    fn may_sleep(&mut self) -> bool {
        let layer = &self.layer;
        layer.due.is_empty() && layer.shaking.is_empty() && layer.told.is_empty() && self.ring.may_sleep()
    }

    fn awake(&mut self) {
        self.ring.awake();
    }

    fn enters(&self) -> u64 {
        self.ring.enters()
    }
}

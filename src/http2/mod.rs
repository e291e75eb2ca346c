//! HTTP/2 for subscribers: a ring around a ring, which carries many connections on one socket.
//!
//! The shard hands over a connection whose client begins like one of HTTP/2 ([`Http2::carry`]).
//! From then on it is a *carrier*. Each request on it is a connection of its own for the shard,
//! with a slot behind those of all sockets: it is accepted, its head is that of HTTP/1, batches are
//! sent to it, and it is closed. Here the head becomes a block of fields and the bytes become
//! frames, put together for one send of the carrier in each turn. Nothing is copied per stream but
//! into that piece. A connection of HTTP/1.1 costs one comparison of its slot.
//!
//! Invariants worth naming:
//! - A stream is a socket whose room is the smallest of three: its own window, its carrier's, and
//!   what is left of the piece. What does not fit is told as a short send, or waits.
//! - What was taken of a stream goes out. A piece that the socket does not take whole stays with
//!   the carrier, bounded, and until it is out nothing is taken of its streams.
//! - Streams that wait have their turns in a circle, a frame each. A stream without a window keeps
//!   nobody waiting.
//! - What is asked of the inner ring for a carrier is asked at a submit, one thing each: nothing is
//!   asked beside an instant send of the same turn.
//! - A fault of a client is told as the end of the receive, of its stream or its carrier, with its
//!   reason. What such a carrier brings yet is dropped.
//! - What a client can make us do for nothing has a budget (`carrier::Budgets`).
//!
//! The parts: `carrier` (what is remembered), `completions` (of the inner ring), `reading` (frames
//! of clients), `writing` (frames for them). The bytes themselves are in `wire::http2`.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::config::limits::H2_PIECE_BYTES_MAX;
use crate::egress::places::Places;
use crate::egress::{Batch, Completion, EgressRing, ReceiveEnd, RingError, SendError, SendMode, Slot};
use crate::wire::http2::hpack::Scratch;
use crate::wire::http2::request::Request;
use crate::wire::http2::{ErrorCode, PREFACE, frame};
use carrier::{ALL, Carrier, Stream};
use pieces::Pieces;

mod carrier;
mod completions;
mod pieces;
mod reading;
#[cfg(test)]
pub(crate) mod tests;
mod writing;

/// The errno of a send on a stream that has ended.
const EPIPE: i32 = 32;
/// The errno of a send that was cancelled.
const ECANCELED: i32 = 125;

/// What the operator allows, and where streams begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRules {
    /// Slots from this one on are those of streams: no socket has one of them.
    pub first_slot: Slot,
    /// Streams of all carriers.
    pub streams_max: usize,
    /// Streams of one carrier; 0 for no HTTP/2.
    pub per_carrier_max: usize,
    /// Bytes of a request head.
    pub head_bytes_max: usize,
    /// Milliseconds that a frame or a block of fields may take to come.
    pub head_ms_max: u64,
    /// Milliseconds that a send of a carrier may take.
    pub stall_ms_max: u64,
}

/// A ring whose connections may carry streams.
#[derive(Debug)]
pub struct Http2<R> {
    ring: R,
    layer: Layer,
}

/// Everything but the inner ring, so that both may be borrowed at a time.
#[derive(Debug)]
struct Layer {
    rules: StreamRules,
    /// By slot.
    carriers: Places<Carrier>,
    /// Carriers now.
    carried: usize,
    /// By slot, behind `first_slot`.
    streams: Vec<Stream>,
    /// Free places of them.
    free: Vec<Slot>,
    /// Carriers for which something is to be asked at a submit.
    due: Vec<Slot>,
    /// Carriers that are due again at the next tick.
    late: Vec<Slot>,
    /// Carriers whose streams waited for room in the last piece.
    again: Vec<Slot>,
    /// What clients sent before they had a carrier.
    unread: Vec<(Slot, Vec<u8>)>,
    /// What came for streams to which the shard does not listen.
    held: HashMap<Slot, Vec<u8>>,
    /// Those to which it listens again.
    unheld: Vec<Slot>,
    /// Instant sends of carriers, since the last reap that found all of them told.
    instant: Vec<(Slot, Rc<Batch>)>,
    /// What the shard is to be told, and the inner ring does not know of.
    told: VecDeque<Told>,
    /// Carriers of which something has to come to its end, and when that is looked at.
    watched: VecDeque<(u32, Slot)>,
    /// Ticks since the start, from 1.
    tick: u32,
    pieces: Pieces,
    scratch: Scratch,
    request: Request,
    /// A head, or a piece of a body, as the shard is to hear it.
    heard: Vec<u8>,
}

/// A completion of a stream. Bytes are told at once.
#[derive(Debug)]
enum Told {
    Short(Slot, Rc<Batch>, Result<usize, SendError>),
    Sent(Slot, Rc<Batch>, Result<usize, SendError>),
    Copied(Slot),
    ReceiveEnded(Slot, ReceiveEnd),
    StreamEnded(Slot),
    Closed(Slot),
}

impl<R> Http2<R> {
    /// Connections of `ring` may carry streams.
    pub fn new(ring: R, rules: StreamRules) -> Http2<R> {
        let layer = Layer {
            rules,
            carriers: Places::default(),
            carried: 0,
            streams: Vec::new(),
            free: Vec::new(),
            due: Vec::new(),
            late: Vec::new(),
            again: Vec::new(),
            unread: Vec::new(),
            held: HashMap::new(),
            unheld: Vec::new(),
            instant: Vec::new(),
            told: VecDeque::new(),
            watched: VecDeque::new(),
            tick: 1,
            pieces: Pieces::default(),
            scratch: Scratch::default(),
            request: Request::default(),
            heard: Vec::new(),
        };
        Http2 { ring, layer }
    }

    /// The inner ring.
    pub fn inner(&self) -> &R {
        &self.ring
    }

    /// The inner ring, for a driver that sleeps in it, and for a test that plays the peers.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.ring
    }

    /// The slot of a stream by its number, for a test that plays the peers.
    pub fn stream(&self, carrier: Slot, id: u32) -> Option<Slot> {
        self.layer.carriers.get(carrier)?.find(id)
    }
}

impl<R: EgressRing> Http2<R> {
    /// Asks the inner ring what is due.
    fn ask(&mut self) {
        let due = std::mem::take(&mut self.layer.due);
        for (at, slot) in due.iter().enumerate() {
            // A cancellation takes two.
            if self.ring.room() < 2 {
                // These stay due.
                self.layer.due.extend_from_slice(&due[at..]);
                return;
            }
            if let Some(carrier) = self.layer.carrier(*slot) {
                carrier.is_due = false;
                self.ask_for(*slot);
            }
        }
        if self.layer.due.is_empty() {
            // Its memory is used again.
            self.layer.due = due;
            self.layer.due.clear();
        }
    }

    /// Asks one thing for a carrier, if there is one; what is left is due at the next submit.
    fn ask_for(&mut self, slot: Slot) {
        let Http2 { ring, layer } = self;
        let Layer { carriers, due, late, again, instant, pieces, tick, .. } = layer;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        let (tick, receiving) = (*tick, carrier.receiving);
        if let Some(cold) = carrier.cold.as_deref_mut()
            && let Some(rest) = &mut cold.rest
        {
            match (rest.sending, cold.closing) {
                // It may not be found: it is asked again at the next tick.
                (Some(_), true) => {
                    cold.cancelled = true;
                    ring.cancel(slot);
                    late.push(slot);
                }
                (Some(_), false) => {}
                (None, true) => {
                    // A word behind half a piece says nothing.
                    cold.rest = None;
                    carrier.out.clear();
                    Layer::mark_due(due, slot, carrier);
                }
                (None, false) => {
                    rest.sending = Some(tick);
                    ring.send(slot, &rest.piece, rest.at, SendMode::Waiting);
                    layer.watch(slot);
                }
            }
            return;
        }
        if !carrier.out.is_empty() {
            let piece = pieces.piece(std::mem::take(&mut carrier.out));
            ring.send(slot, &piece, 0, SendMode::Instant);
            instant.push((slot, piece));
            let Some(cold) = &carrier.cold else { return };
            if !cold.waiting.is_empty() {
                again.push(slot);
            }
            if cold.ending || cold.closing {
                Layer::mark_due(due, slot, carrier);
            }
            return;
        }
        let Some(cold) = carrier.cold.as_deref_mut() else { return };
        if cold.closing {
            match receiving {
                // It may not be found: it is asked again at the next tick.
                true => {
                    ring.cancel(slot);
                    late.push(slot);
                }
                false => {
                    cold.closing = false;
                    ring.close(slot);
                }
            }
        } else if cold.ending {
            cold.ending = false;
            ring.end_stream(slot);
        }
    }

    /// What the shard asks of a stream.
    fn send_on_stream(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        self.layer.send(slot, batch, offset, mode);
    }
}

impl<R: EgressRing> EgressRing for Http2<R> {
    fn room(&self) -> usize {
        // Each carrier that is due takes one request.
        self.ring.room().saturating_sub(self.layer.due.len())
    }

    #[inline]
    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        match slot < self.layer.rules.first_slot {
            true => self.ring.send(slot, batch, offset, mode),
            false => self.send_on_stream(slot, batch, offset, mode),
        }
    }

    fn receive(&mut self, slot: Slot) {
        if self.layer.is_stream(slot) {
            return self.layer.listen(slot);
        }
        if let Some(carrier) = self.layer.carrier(slot) {
            carrier.receiving = true;
        }
        self.ring.receive(slot);
    }

    fn pause(&mut self, slot: Slot) {
        if !self.layer.is_stream(slot) {
            return self.ring.pause(slot);
        }
        let stream = self.layer.stream(slot);
        if std::mem::take(&mut stream.armed) {
            stream.paused = true;
            self.layer.told.push_back(Told::ReceiveEnded(slot, ReceiveEnd::Cancelled));
        }
    }

    fn end_stream(&mut self, slot: Slot) {
        if self.layer.is_stream(slot) {
            return self.layer.end_stream(slot);
        }
        if self.layer.carrier(slot).is_none() {
            return self.ring.end_stream(slot);
        }
        self.say_farewell(slot);
        let Layer { carriers, due, .. } = &mut self.layer;
        if let Some(carrier) = carriers.get_mut(slot) {
            let cold = carrier.warm_up();
            (cold.part, cold.block) = (Vec::new(), None);
            cold.ending = true;
            cold.has_ended = true;
            Layer::mark_due(due, slot, carrier);
        }
    }

    fn cancel(&mut self, slot: Slot) {
        if self.layer.is_stream(slot) {
            return self.layer.cancel(slot);
        }
        if self.layer.carrier(slot).is_some() {
            self.layer.part_with_streams(slot);
            if let Some(carrier) = self.layer.carrier(slot) {
                carrier.out.clear();
                let cold = carrier.warm_up();
                cold.cancelled = true;
                let was_ending = std::mem::take(&mut cold.ending);
                cold.rest.take_if(|rest| rest.sending.is_none());
                if was_ending {
                    // The shard waits for it.
                    self.layer.told.push_back(Told::StreamEnded(slot));
                }
            }
        }
        self.ring.cancel(slot);
    }

    fn close(&mut self, slot: Slot) {
        if self.layer.is_stream(slot) {
            self.layer.reset(slot, ErrorCode::Cancel);
            self.layer.told.push_back(Told::Closed(slot));
            return;
        }
        if self.layer.carrier(slot).is_none() {
            return self.ring.close(slot);
        }
        // A last word is to be sent first, and what is in the ring to be ended.
        self.layer.part_with_streams(slot);
        let Layer { carriers, due, .. } = &mut self.layer;
        if let Some(carrier) = carriers.get_mut(slot) {
            let cold = carrier.warm_up();
            cold.is_over = true;
            cold.closing = true;
            cold.ending = false;
            Layer::mark_due(due, slot, carrier);
        }
    }

    fn carries_streams(&self) -> bool {
        self.layer.rules.per_carrier_max > 0
    }

    fn carry(&mut self, slot: Slot, bytes: Vec<u8>, receiving: bool) {
        let layer = &mut self.layer;
        let mut carrier = Carrier::new(receiving, layer.tick);
        layer.greet(&mut carrier);
        Layer::mark_due(&mut layer.due, slot, &mut carrier);
        layer.carriers.put(slot, carrier);
        layer.carried += 1;
        layer.unread.push((slot, bytes));
    }

    fn streams(&self, carrier: Slot) -> usize {
        self.layer.carriers.get(carrier).map_or(0, |carrier| carrier.streams.len())
    }

    fn say_farewell(&mut self, slot: Slot) {
        let Layer { carriers, due, .. } = &mut self.layer;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        if carrier.heard_to == ALL {
            carrier.push_goaway(ErrorCode::NoError);
            Layer::mark_due(due, slot, carrier);
        }
    }

    fn allow_heads(&mut self, bytes_max: usize, ms_max: u64) {
        self.layer.rules.head_bytes_max = bytes_max;
        self.layer.rules.head_ms_max = ms_max;
    }

    fn wants_submit(&mut self) -> bool {
        !self.layer.due.is_empty() || self.ring.wants_submit()
    }

    fn submit(&mut self) -> Result<(), RingError> {
        if !self.layer.due.is_empty() {
            self.ask();
        }
        self.ring.submit()
    }

    fn retry_accepts(&mut self) {
        self.layer.tick += 1;
        for slot in std::mem::take(&mut self.layer.late) {
            let Layer { carriers, due, .. } = &mut self.layer;
            if let Some(carrier) = carriers.get_mut(slot) {
                Layer::mark_due(due, slot, carrier);
            }
        }
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
        let Http2 { ring, layer } = self;
        let mut reaped = layer.tell(handle);
        for slot in std::mem::take(&mut layer.unheld) {
            layer.tell_held(slot, handle);
        }
        for (slot, bytes) in std::mem::take(&mut layer.unread) {
            // The shard has seen the preface.
            let frames = bytes.strip_prefix(PREFACE).expect("it stands before everything");
            layer.read(slot, frames, handle);
        }
        reaped += ring.reap(&mut |completion| layer.translate(completion, handle));
        if ring.room() > 0 {
            // Whatever came of them was told.
            let Layer { instant, pieces, .. } = layer;
            instant.drain(..).for_each(|(_, piece)| pieces.take_back(piece));
            for slot in std::mem::take(&mut layer.again) {
                layer.go_on(slot);
            }
        }
        if layer.watched.front().is_some_and(|next| next.0 <= layer.tick) {
            layer.look_at_watched(handle);
        }
        reaped + layer.tell(handle)
    }

    fn may_sleep(&mut self) -> bool {
        let Layer { due, told, again, unread, unheld, .. } = &self.layer;
        let is_quiet =
            due.is_empty() && told.is_empty() && again.is_empty() && unread.is_empty() && unheld.is_empty();
        is_quiet && self.ring.may_sleep()
    }

    fn awake(&mut self) {
        self.ring.awake();
    }

    fn enters(&self) -> u64 {
        self.ring.enters()
    }
}

const _: () = assert!(H2_PIECE_BYTES_MAX > frame::PAYLOAD_MAX + frame::HEADER);

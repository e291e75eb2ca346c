//! What the inner ring tells of carriers, and what the shard is told of streams.

use std::rc::Rc;

use super::carrier::{Carrier, NOBODY, Rest, Stream};
use super::{Layer, Told};
use crate::config::limits::TICK_MS;
use crate::egress::{Batch, Completion, ReceiveEnd, SendError, Slot};
use crate::wire::http2::Fault;

impl Layer {
    pub(super) fn carrier(&mut self, slot: Slot) -> Option<&mut Carrier> {
        self.carriers.get_mut(slot)
    }

    pub(super) fn stream(&mut self, slot: Slot) -> &mut Stream {
        &mut self.streams[(slot - self.rules.first_slot) as usize]
    }

    #[inline]
    pub(super) fn is_stream(&self, slot: Slot) -> bool {
        slot >= self.rules.first_slot
    }

    /// Something is to be asked for a carrier at the next submit.
    pub(super) fn mark_due(due: &mut Vec<Slot>, slot: Slot, carrier: &mut Carrier) {
        if !std::mem::replace(&mut carrier.is_due, true) {
            due.push(slot);
        }
    }

    /// Hands a completion of the inner ring on, as the shard understands it.
    pub(super) fn translate(&mut self, completion: Completion<'_>, handle: &mut dyn FnMut(Completion<'_>)) {
        if self.carried == 0 {
            return handle(completion);
        }
        match completion {
            Completion::Received { slot, bytes } if self.carrier(slot).is_some() => {
                self.read(slot, bytes, handle);
            }
            Completion::ReceiveEnded { slot, end } if self.carrier(slot).is_some() => {
                self.receive_ended(slot, end, handle);
            }
            Completion::Short { slot, batch, result } if self.carrier(slot).is_some() => {
                self.short(slot, batch, result, handle);
            }
            Completion::Sent { slot, batch, result } if self.carrier(slot).is_some() => {
                self.sent(slot, batch, result, handle);
            }
            Completion::Copied { slot } if self.carrier(slot).is_some() => {}
            Completion::Closed { slot } if self.carrier(slot).is_some() => {
                self.part_with_streams(slot);
                self.carriers.remove(slot);
                self.carried -= 1;
                handle(completion);
            }
            other => handle(other),
        }
    }

    fn receive_ended(&mut self, slot: Slot, end: ReceiveEnd, handle: &mut dyn FnMut(Completion<'_>)) {
        let Layer { carriers, due, .. } = self;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        carrier.receiving = false;
        if carrier.is_over() {
            // It was told.
            Layer::mark_due(due, slot, carrier);
            return;
        }
        // A client that has ended its side can ask for nothing more, not even for room.
        if !matches!(end, ReceiveEnd::NoBuffers | ReceiveEnd::Cancelled) {
            self.part_with_streams(slot);
        }
        handle(Completion::ReceiveEnded { slot, end });
    }

    /// An instant send of a carrier was not taken whole.
    fn short(
        &mut self,
        slot: Slot,
        piece: Rc<Batch>,
        result: Result<usize, SendError>,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let of = |sent: &(Slot, Rc<Batch>)| sent.0 == slot && Rc::ptr_eq(&sent.1, &piece);
        let Some(at) = self.instant.iter().position(of) else { return };
        self.instant.swap_remove(at);
        let Layer { carriers, due, .. } = self;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        match result {
            Ok(at) => {
                carrier.warm_up().rest = Some(Rest { piece, at, sending: None });
                Layer::mark_due(due, slot, carrier);
            }
            Err(error) => self.socket_failed(slot, error, handle),
        }
    }

    /// A send of a carrier that waited has ended.
    fn sent(
        &mut self,
        slot: Slot,
        piece: Rc<Batch>,
        result: Result<usize, SendError>,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let Layer { carriers, due, pieces, .. } = self;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        let Some(mut rest) = carrier.warm_up().rest.take() else { return };
        rest.sending = None;
        Layer::mark_due(due, slot, carrier);
        match result {
            // It was cancelled in the midst of it.
            Ok(taken) if rest.at + taken < piece.len() && carrier.warm_up().cancelled => {}
            Ok(taken) if rest.at + taken < piece.len() => {
                rest.at += taken;
                carrier.warm_up().rest = Some(rest);
            }
            Ok(_) => {
                drop(rest);
                pieces.take_back(piece);
                carrier.cool_down();
                self.go_on(slot);
            }
            Err(error) => self.socket_failed(slot, error, handle),
        }
    }

    /// The socket of a carrier takes no more.
    fn socket_failed(&mut self, slot: Slot, error: SendError, handle: &mut dyn FnMut(Completion<'_>)) {
        let errno = match error {
            SendError::Gone(errno) => errno,
            SendError::NoZeroCopy => unreachable!("a carrier asks for no zero copy"),
        };
        self.part_with_streams(slot);
        let Some(carrier) = self.carrier(slot) else { return };
        carrier.out.clear();
        let cold = carrier.warm_up();
        cold.rest = None;
        let is_told = cold.is_over || cold.closing || cold.cancelled;
        if !is_told {
            cold.is_over = true;
            handle(Completion::ReceiveEnded { slot, end: ReceiveEnd::Failed(errno) });
        }
    }

    /// A carrier is at its end: its streams are told, and are none of it any more.
    pub(super) fn part_with_streams(&mut self, slot: Slot) {
        let Some(carrier) = self.carrier(slot) else { return };
        let streams = std::mem::take(&mut carrier.streams);
        if let Some(cold) = &mut carrier.cold {
            cold.waiting.clear();
        }
        for (_, stream) in streams {
            self.stream(stream).carrier = NOBODY;
            self.end_receive(stream, ReceiveEnd::CarrierGone);
        }
    }

    /// Tells that nothing more is received on a stream.
    pub(super) fn end_receive(&mut self, slot: Slot, end: ReceiveEnd) {
        self.stream(slot).armed = false;
        self.held.remove(&slot);
        self.told.push_back(Told::ReceiveEnded(slot, end));
    }

    /// A stream is no part of its carrier any more. Returns the carrier, for a last word.
    pub(super) fn detach(&mut self, slot: Slot) -> Option<&mut Carrier> {
        let first = self.rules.first_slot;
        let Layer { streams, carriers, due, .. } = self;
        let stream = &mut streams[(slot - first) as usize];
        let of = stream.carrier;
        let carrier = carriers.get_mut(of)?;
        carrier.let_go(stream, slot);
        Layer::mark_due(due, of, carrier);
        Some(carrier)
    }

    /// Tells what the inner ring does not know of.
    pub(super) fn tell(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        let mut told = 0;
        while let Some(next) = self.told.pop_front() {
            told += 1;
            handle(match next {
                Told::Short(slot, batch, result) => Completion::Short { slot, batch, result },
                Told::Sent(slot, batch, result) => Completion::Sent { slot, batch, result },
                Told::Copied(slot) => Completion::Copied { slot },
                Told::ReceiveEnded(slot, end) => Completion::ReceiveEnded { slot, end },
                Told::StreamEnded(slot) => Completion::StreamEnded { slot },
                Told::Closed(slot) => {
                    *self.stream(slot) = Stream::free();
                    // The next stream with this slot has not sent it.
                    self.held.remove(&slot);
                    self.free.push(slot);
                    Completion::Closed { slot }
                }
            });
        }
        told
    }

    /// Looks at carriers of which something should have come to its end by now.
    pub(super) fn look_at_watched(&mut self, handle: &mut dyn FnMut(Completion<'_>)) {
        for _ in 0..self.watched.len() {
            let Some((_, slot)) = self.watched.front().copied().filter(|next| next.0 <= self.tick) else {
                return;
            };
            self.watched.pop_front();
            let (tick, rules) = (self.tick, self.rules);
            let Some(carrier) = self.carrier(slot) else { continue };
            carrier.is_watched = false;
            let Some(cold) = carrier.cold.as_deref().filter(|cold| !cold.is_over) else { continue };
            let sending = cold.rest.as_ref().and_then(|rest| rest.sending);
            let begun = cold.is_partial().then_some(cold.since);
            let patience = ticks(cold.patience_ms(rules.head_ms_max));
            if begun.is_some_and(|since| tick - since >= patience) {
                self.fail(slot, Fault::TOO_SLOW, handle);
            } else if sending.is_some_and(|since| tick - since >= ticks(rules.stall_ms_max)) {
                self.fail(slot, Fault::STALLED, handle);
            } else if begun.or(sending).is_some() {
                self.watch(slot);
            }
        }
    }

    /// Something of a carrier is to come to its end in time.
    pub(super) fn watch(&mut self, slot: Slot) {
        let due = self.tick + ticks(self.rules.head_ms_max.min(self.rules.stall_ms_max)).max(1);
        let Some(carrier) = self.carrier(slot) else { return };
        if !std::mem::replace(&mut carrier.is_watched, true) {
            self.watched.push_back((due, slot));
        }
    }
}

fn ticks(ms: u64) -> u32 {
    ms.div_ceil(TICK_MS).min(u64::from(u32::MAX >> 1)) as u32
}

//! Frames for clients: heads and bytes of streams, as far as there is room, and their ends.

use std::rc::Rc;

use super::carrier::{Carrier, Stream, Waiting};
use super::{ECANCELED, EPIPE, Layer, Told};
use crate::config::limits::H2_PIECE_BYTES_MAX;
use crate::egress::{Batch, ReceiveEnd, SendError, SendMode, Slot};
use crate::wire::http2::frame::{self, HEADER, Header, PAYLOAD_MAX, flag, kind};
use crate::wire::http2::settings::push_ours;
use crate::wire::http2::{ErrorCode, hpack, response};

impl Layer {
    /// Our first words on a carrier.
    pub(super) fn greet(&self, carrier: &mut Carrier) {
        let rules = self.rules;
        push_ours(&mut carrier.out, rules.per_carrier_max as u32, rules.head_bytes_max as u32);
    }

    /// A send of the shard on a stream.
    #[inline]
    pub(super) fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        let first = self.rules.first_slot;
        let Layer { streams, carriers, due, pieces, told, .. } = self;
        let stream = &mut streams[(slot - first) as usize];
        let carrier = carriers.get_mut(stream.carrier);
        let Some(carrier) = carrier else {
            let gone = Err(SendError::Gone(EPIPE));
            told.push_back(match mode {
                SendMode::Instant => Told::Short(slot, batch.clone(), gone),
                SendMode::Waiting | SendMode::ZeroCopy => Told::Sent(slot, batch.clone(), gone),
            });
            return;
        };
        let mut at = offset;
        if !carrier.is_stuck() {
            if carrier.out.capacity() == 0 {
                carrier.out = pieces.buffer();
            }
            // Where others may want their share, a frame is enough for one turn.
            let most = if carrier.streams.len() > 1 { PAYLOAD_MAX } else { usize::MAX };
            at = push(stream, carrier, batch, offset, most);
            if at > offset {
                Layer::mark_due(due, stream.carrier, carrier);
            }
        }
        if mode == SendMode::Instant {
            if at < batch.len() {
                told.push_back(Told::Short(slot, batch.clone(), Ok(at - offset)));
            }
            return;
        }
        let zero_copy = mode == SendMode::ZeroCopy;
        if at == batch.len() {
            told.push_back(Told::Sent(slot, batch.clone(), Ok(at - offset)));
            if zero_copy {
                told.push_back(Told::Copied(slot));
            }
            return;
        }
        let (from, at) = (offset as u32, at as u32);
        stream.waiting = Some(Waiting { batch: batch.clone(), from, at });
        stream.zero_copy = zero_copy;
        carrier.warm_up().waiting.push_back(slot);
    }

    /// There may be room again on a carrier: its streams that wait have their turns.
    pub(super) fn go_on(&mut self, slot: Slot) {
        let first = self.rules.first_slot;
        let Layer { streams, carriers, due, pieces, told, .. } = self;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        if carrier.is_stuck() {
            return;
        }
        let Some(mut waiting) = carrier.cold.as_mut().map(|cold| std::mem::take(&mut cold.waiting)) else {
            return;
        };
        // So many in a row had no room. Also without a window of the carrier all are asked: no head
        // waits for one (RFC 9113 §6.9).
        let mut idle = 0;
        while idle < waiting.len()
            && carrier.out.len() < H2_PIECE_BYTES_MAX
            && let Some(next) = waiting.pop_front()
        {
            let stream = &mut streams[(next - first) as usize];
            let Some(mut send) = stream.waiting.take() else { continue };
            if carrier.out.capacity() == 0 {
                carrier.out = pieces.buffer();
            }
            let at = push(stream, carrier, &send.batch, send.at as usize, PAYLOAD_MAX);
            idle = if at > send.at as usize { 0 } else { idle + 1 };
            send.at = at as u32;
            if at < send.batch.len() {
                stream.waiting = Some(send);
                waiting.push_back(next);
                continue;
            }
            told.push_back(Told::Sent(next, send.batch, Ok(at - send.from as usize)));
            if stream.zero_copy {
                told.push_back(Told::Copied(next));
            }
        }
        if !waiting.is_empty() {
            carrier.warm_up().waiting = waiting;
        }
        if !carrier.out.is_empty() {
            Layer::mark_due(due, slot, carrier);
        }
        carrier.cool_down();
    }

    /// Our side of a stream ends in order.
    pub(super) fn end_stream(&mut self, slot: Slot) {
        self.told.push_back(Told::StreamEnded(slot));
        let (id, has_head, is_silent) = {
            let stream = self.stream(slot);
            (stream.id, stream.has_head, stream.is_silent)
        };
        let Some(carrier) = self.detach(slot) else { return };
        match has_head {
            true => frame::push(&mut carrier.out, kind::DATA, flag::END_STREAM, id, &[]),
            false => carrier.push_reset(id, ErrorCode::Cancel),
        }
        if has_head && !is_silent {
            // All is said, and the rest of the request is not needed (RFC 9113 §8.1).
            carrier.push_reset(id, ErrorCode::NoError);
        }
        // Nothing more comes from the client either.
        self.end_receive(slot, ReceiveEnd::EndOfStream);
    }

    /// What is under way on a stream ends.
    pub(super) fn cancel(&mut self, slot: Slot) {
        let stream = self.stream(slot);
        let (was_armed, waiting, of) = (stream.armed, stream.waiting.take(), stream.carrier);
        if was_armed {
            self.end_receive(slot, ReceiveEnd::Cancelled);
        }
        if let Some(waiting) = waiting {
            self.told.push_back(Told::Sent(slot, waiting.batch, Err(SendError::Gone(ECANCELED))));
            if let Some(cold) = self.carrier(of).and_then(|carrier| carrier.cold.as_mut()) {
                cold.waiting.retain(|waiting| *waiting != slot);
            }
        }
    }

    /// Takes a stream from its carrier, if it has one still, whose client is told why.
    pub(super) fn reset(&mut self, slot: Slot, code: ErrorCode) {
        let id = self.stream(slot).id;
        if let Some(carrier) = self.detach(slot) {
            carrier.push_reset(id, code);
        }
    }
}

/// Puts bytes of `batch` from `at` on into frames, at most `most`, as far as there is room. Returns
/// up to where.
#[inline]
fn push(stream: &mut Stream, carrier: &mut Carrier, batch: &Batch, mut at: usize, most: usize) -> usize {
    if !stream.has_head {
        if carrier.out.len() >= H2_PIECE_BYTES_MAX {
            return at;
        }
        at += push_head(stream, carrier, batch.bytes_at(at));
    }
    let end = batch.len().min(at.saturating_add(most));
    let payload_max = PAYLOAD_MAX.min(carrier.settings.payload_max as usize);
    while at < end {
        let windows = stream.window.min(carrier.window).max(0) as usize;
        let piece = H2_PIECE_BYTES_MAX.saturating_sub(carrier.out.len() + HEADER);
        let bytes = batch.bytes_at(at);
        let length = bytes.len().min(end - at).min(payload_max).min(windows).min(piece);
        if length == 0 {
            break;
        }
        let header = Header { length, kind: kind::DATA, flags: 0, stream: stream.id };
        carrier.out.extend_from_slice(&header.bytes());
        carrier.out.extend_from_slice(&bytes[..length]);
        stream.window -= length as i32;
        carrier.window -= length as i32;
        carrier.budgets.allow_updates();
        at += length;
    }
    at
}

/// The head of an answer, with which its first bytes begin. Returns the bytes of it.
fn push_head(stream: &mut Stream, carrier: &mut Carrier, answer: &[u8]) -> usize {
    let mut block = Vec::with_capacity(256);
    if std::mem::take(&mut carrier.settings.table_changed) {
        hpack::push_no_table(&mut block);
    }
    let length = response::push_head(answer, &mut block).expect("an answer begins with its whole head");
    stream.has_head = true;
    let mut parts = block.chunks(PAYLOAD_MAX).peekable();
    let mut frame = kind::HEADERS;
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_none() { flag::END_HEADERS } else { 0 };
        frame::push(&mut carrier.out, frame, flags, stream.id, part);
        frame = kind::CONTINUATION;
    }
    length
}

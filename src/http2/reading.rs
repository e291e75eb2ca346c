//! Frames of clients (RFC 9113 §6): what each of them does to its carrier, and what the shard hears
//! of it.

use std::io::Write as _;

use super::Layer;
use super::carrier::{Carrier, Kind, NOBODY, Stream};
use crate::config::limits::{H2_CONTINUATIONS_MAX, H2_WORDS_BYTES_MAX};
use crate::egress::{Completion, ReceiveEnd, Slot};
use crate::wire::http2::Fault;
use crate::wire::http2::frame::{
    self, HEADER, Header, PAYLOAD_MAX, WINDOW, WINDOW_MAX, flag, kind, without_padding,
};
use crate::wire::http2::request::Body;

type Handle<'a> = &'a mut dyn FnMut(Completion<'_>);

impl Layer {
    /// The client of a carrier has sent something.
    pub(super) fn read(&mut self, slot: Slot, bytes: &[u8], handle: Handle<'_>) {
        let Some(mut carrier) = self.carriers.take(slot) else { return };
        let read = match carrier.is_deaf() {
            true => Ok(()),
            false => self.read_frames(slot, &mut carrier, bytes, handle),
        };
        if !carrier.out.is_empty() {
            Layer::mark_due(&mut self.due, slot, &mut carrier);
        }
        let is_partial = carrier.cold.as_ref().is_some_and(|cold| cold.is_partial());
        carrier.cool_down();
        self.carriers.put(slot, carrier);
        match read {
            Err(fault) => self.fail(slot, fault, handle),
            Ok(()) if is_partial => self.watch(slot),
            Ok(()) => {}
        }
    }

    /// Tells that a carrier is of no use any more, its client and the shard.
    pub(super) fn fail(&mut self, slot: Slot, fault: Fault, handle: Handle<'_>) {
        self.part_with_streams(slot);
        let Layer { carriers, due, .. } = self;
        let Some(carrier) = carriers.get_mut(slot) else { return };
        carrier.push_goaway(fault.code);
        let cold = carrier.warm_up();
        (cold.part, cold.block) = (Vec::new(), None);
        cold.is_over = true;
        Layer::mark_due(due, slot, carrier);
        handle(Completion::ReceiveEnded { slot, end: ReceiveEnd::Against(fault.reason) });
    }

    fn read_frames(
        &mut self,
        slot: Slot,
        carrier: &mut Carrier,
        mut bytes: &[u8],
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        let mut part = match &mut carrier.cold {
            Some(cold) => std::mem::take(&mut cold.part),
            None => Vec::new(),
        };
        let mut has_moved = false;
        while !bytes.is_empty() {
            if part.is_empty()
                && let Some(header) = bytes.first_chunk::<HEADER>()
            {
                let header = self.check(carrier, Header::read(*header))?;
                if let Some((frame, behind)) = bytes.split_at_checked(HEADER + header.length) {
                    self.read_frame(slot, carrier, header, &frame[HEADER..], handle)?;
                    bytes = behind;
                    has_moved = true;
                    continue;
                }
            }
            // The header first, which says how much is missing.
            let whole = match part.first_chunk::<HEADER>() {
                Some(header) => HEADER + self.check(carrier, Header::read(*header))?.length,
                None => HEADER,
            };
            let (taken, behind) = bytes.split_at((whole - part.len()).min(bytes.len()));
            part.extend_from_slice(taken);
            bytes = behind;
            if let Some(header) = part.first_chunk::<HEADER>() {
                let header = self.check(carrier, Header::read(*header))?;
                if part.len() == HEADER + header.length {
                    self.read_frame(slot, carrier, header, &part[HEADER..], handle)?;
                    part.clear();
                    has_moved = true;
                }
            }
        }
        if !part.is_empty() {
            carrier.warm_up().part = part;
        }
        let tick = self.tick;
        if let Some(cold) = &mut carrier.cold
            && cold.is_partial()
        {
            // A block of fields has begun with its first frame.
            let is_older = cold.since > 0 && (cold.block.is_some() || !has_moved);
            cold.since = if is_older { cold.since } else { tick };
        } else if let Some(cold) = &mut carrier.cold {
            cold.since = 0;
        }
        Ok(())
    }

    /// Whether a frame may stand here, as far as its header says.
    fn check(&self, carrier: &Carrier, header: Header) -> Result<Header, Fault> {
        if header.length > PAYLOAD_MAX {
            return Err(Fault::FRAME_SIZE);
        }
        if !carrier.has_settings && header.kind != kind::SETTINGS {
            return Err(Fault::PROTOCOL);
        }
        // Nothing stands within a block of fields (RFC 9113 §6.10).
        let block = carrier.cold.as_ref().and_then(|cold| cold.block.as_ref()).map(|block| block.0.stream);
        match (block, header.kind) {
            (Some(stream), kind::CONTINUATION) if stream == header.stream => Ok(header),
            (Some(_), _) | (None, kind::CONTINUATION) => Err(Fault::PROTOCOL),
            (None, _) => Ok(header),
        }
    }

    fn read_frame(
        &mut self,
        slot: Slot,
        carrier: &mut Carrier,
        header: Header,
        payload: &[u8],
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        let is_of_stream = header.stream != 0;
        match header.kind {
            kind::DATA if is_of_stream => self.read_data(carrier, header, payload, handle),
            kind::HEADERS if is_of_stream => self.read_headers(slot, carrier, header, payload, handle),
            kind::CONTINUATION => self.read_continuation(slot, carrier, header, payload, handle),
            kind::PRIORITY if is_of_stream && payload.len() == 5 => {
                carrier.budgets.charge(Kind::EmptyFrames, self.tick)
            }
            kind::PRIORITY if is_of_stream => Err(Fault::FRAME_SIZE),
            kind::RST_STREAM if is_of_stream => self.read_reset(carrier, header, payload),
            kind::SETTINGS if !is_of_stream => self.read_settings(carrier, header, payload),
            kind::PING if !is_of_stream => self.read_ping(carrier, header, payload),
            kind::GOAWAY if !is_of_stream && payload.len() < 8 => Err(Fault::FRAME_SIZE),
            // It asks for nothing more; its streams go on.
            kind::GOAWAY if !is_of_stream => carrier.budgets.charge(Kind::EmptyFrames, self.tick),
            kind::WINDOW_UPDATE => self.read_window_update(carrier, header, payload),
            kind::DATA
            | kind::HEADERS
            | kind::PRIORITY
            | kind::RST_STREAM
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::PING
            | kind::GOAWAY => Err(Fault::PROTOCOL),
            // RFC 9113 §5.5.
            _ => carrier.budgets.charge(Kind::EmptyFrames, self.tick),
        }
    }

    /// A word of ours, which waits while the client reads nothing, but not without a bound.
    fn say(&self, carrier: &mut Carrier, kind: Kind) -> Result<(), Fault> {
        carrier.budgets.charge(kind, self.tick)?;
        let fault = match kind {
            Kind::Settings => Fault::SETTINGS,
            Kind::Resets => Fault::RESETS,
            Kind::Pings | Kind::EmptyFrames | Kind::WindowUpdates => Fault::PINGS,
        };
        if carrier.is_stuck() && carrier.out.len() > H2_WORDS_BYTES_MAX { Err(fault) } else { Ok(()) }
    }

    fn read_data(
        &mut self,
        carrier: &mut Carrier,
        header: Header,
        payload: &[u8],
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        let id = header.stream;
        let length = payload.len() as u32;
        carrier.received += length;
        if carrier.received > WINDOW {
            return Err(Fault::FLOW_CONTROL);
        }
        let data = without_padding(header, payload).ok_or(Fault::PROTOCOL)?;
        if data.is_empty() && !header.has(flag::END_STREAM) {
            carrier.budgets.charge(Kind::EmptyFrames, self.tick)?;
        }
        let Some(slot) = carrier.find(id) else {
            carrier.give_back(length);
            return self.meet_gone(carrier, id);
        };
        let tick = self.tick;
        let stream = self.stream(slot);
        let fault = if stream.is_silent {
            Some(Fault::STREAM_CLOSED)
        } else if u32::from(stream.received) + length > WINDOW {
            Some(Fault::FLOW_CONTROL)
        } else if matches!(stream.body, Body::Known(left) if data.len() > left as usize)
            || header.has(flag::END_STREAM)
                && matches!(stream.body, Body::Known(left) if data.len() != left as usize)
        {
            // RFC 9113 §8.1.1.
            Some(Fault::PROTOCOL)
        } else {
            None
        };
        if let Some(fault) = fault {
            carrier.give_back(length);
            carrier.budgets.charge(Kind::Resets, tick)?;
            self.end_with(carrier, slot, fault);
            return Ok(());
        }
        stream.received += length as u16;
        stream.is_silent = header.has(flag::END_STREAM);
        let (body, is_silent) = (stream.body, stream.is_silent);
        let mut heard = std::mem::take(&mut self.heard);
        heard.clear();
        match body {
            Body::None => {}
            Body::Known(left) => {
                heard.extend_from_slice(data);
                self.stream(slot).body = Body::Known(left - data.len() as u32);
            }
            Body::Chunked => push_chunk(&mut heard, data, is_silent),
        }
        // What stands beside the data of this frame is read with it.
        self.hear(carrier, slot, &mut heard, length, handle);
        self.heard = heard;
        // It is given room, and does not read that.
        if carrier.is_stuck() && carrier.out.len() > H2_WORDS_BYTES_MAX {
            return Err(Fault::STALLED);
        }
        Ok(())
    }

    /// Bytes of a request for the shard, for which so much room is given back once it has them.
    fn hear(&mut self, carrier: &mut Carrier, slot: Slot, bytes: &mut [u8], length: u32, handle: Handle<'_>) {
        let stream = self.stream(slot);
        if stream.paused {
            self.held.entry(slot).or_default().extend_from_slice(bytes);
            return;
        }
        carrier.give_back(length);
        stream.give_back(length as u16, &mut carrier.out);
        if !bytes.is_empty() {
            handle(Completion::Received { slot, bytes });
        }
    }

    /// The shard listens to a stream, again or for the first time.
    pub(super) fn listen(&mut self, slot: Slot) {
        let stream = self.stream(slot);
        stream.armed = true;
        if std::mem::take(&mut stream.paused) {
            self.unheld.push(slot);
        }
    }

    /// Tells what came while the shard did not listen.
    pub(super) fn tell_held(&mut self, slot: Slot, handle: Handle<'_>) {
        let stream = self.stream(slot);
        if stream.paused || stream.carrier == NOBODY {
            return;
        }
        let (of, length) = (stream.carrier, stream.unread());
        let mut held = self.held.remove(&slot).unwrap_or_default();
        let Some(mut carrier) = self.carriers.take(of) else { return };
        self.hear(&mut carrier, slot, &mut held, length.into(), handle);
        if !carrier.out.is_empty() {
            Layer::mark_due(&mut self.due, of, &mut carrier);
        }
        self.carriers.put(of, carrier);
    }

    /// A frame came for a stream that is gone, or was never there. Nothing is said on a stream that
    /// is closed (RFC 9113 §5.1), and none is reset twice (§5.4.2).
    fn meet_gone(&self, carrier: &mut Carrier, id: u32) -> Result<(), Fault> {
        if id > carrier.last || id.is_multiple_of(2) {
            return Err(Fault::PROTOCOL);
        }
        if id > carrier.reset {
            // Its client has ended it.
            return Err(Fault::STREAM_CLOSED);
        }
        carrier.budgets.charge(Kind::EmptyFrames, self.tick)
    }

    fn read_headers(
        &mut self,
        slot: Slot,
        carrier: &mut Carrier,
        header: Header,
        payload: &[u8],
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        if header.stream.is_multiple_of(2) {
            return Err(Fault::PROTOCOL);
        }
        let fragment = without_padding(header, payload).ok_or(Fault::PROTOCOL)?;
        if header.has(flag::END_HEADERS) {
            return self.read_block(slot, carrier, header, fragment, handle);
        }
        let cold = carrier.warm_up();
        cold.block = Some((header, fragment.to_vec()));
        cold.continuations = 0;
        cold.since = self.tick;
        Ok(())
    }

    fn read_continuation(
        &mut self,
        slot: Slot,
        carrier: &mut Carrier,
        header: Header,
        payload: &[u8],
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        let cold = carrier.warm_up();
        let Some((_, block)) = &mut cold.block else { return Err(Fault::PROTOCOL) };
        cold.continuations += 1;
        let block_bytes_max = 2 * self.rules.head_bytes_max + PAYLOAD_MAX;
        if cold.continuations > H2_CONTINUATIONS_MAX || block.len() + payload.len() > block_bytes_max {
            return Err(Fault::CONTINUATIONS);
        }
        block.extend_from_slice(payload);
        if !header.has(flag::END_HEADERS) {
            return Ok(());
        }
        let Some((begin, block)) = cold.block.take() else { return Err(Fault::PROTOCOL) };
        self.read_block(slot, carrier, begin, &block, handle)
    }

    /// A block of fields is whole: a request, or what stands behind the body of one.
    fn read_block(
        &mut self,
        slot: Slot,
        carrier: &mut Carrier,
        header: Header,
        block: &[u8],
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        let Layer { request, scratch, rules, .. } = self;
        request.begin(rules.head_bytes_max);
        let each = &mut |name: &[u8], value: &[u8]| request.take(name, value);
        if !carrier.decoder.read(block, scratch, each).map_err(|_| Fault::COMPRESSION)? {
            return Err(Fault::FIELD_BOMB);
        }
        let id = header.stream;
        if let Some(stream) = carrier.find(id) {
            return self.read_trailers(carrier, stream, header, handle);
        }
        if id <= carrier.last {
            return match request.are_trailers() {
                true => self.meet_gone(carrier, id),
                false => Err(Fault::PROTOCOL),
            };
        }
        carrier.last = id;
        let is_over = header.has(flag::END_STREAM);
        let mut heard = std::mem::take(&mut self.heard);
        heard.clear();
        let body = match id > carrier.heard_to || carrier.streams.len() >= self.rules.per_carrier_max {
            true => Err(Fault::REFUSED),
            false => self.request.finish(is_over, &mut heard),
        };
        let opened = body.and_then(|body| {
            let stream = self.free_slot().ok_or(Fault::REFUSED)?;
            *self.stream(stream) = Stream {
                id,
                carrier: slot,
                window: carrier.settings.window as i32,
                body,
                is_silent: is_over,
                // It may be paused before the shard has asked for anything.
                armed: true,
                ..Stream::free()
            };
            Ok(stream)
        });
        match opened {
            Ok(stream) => {
                carrier.streams.reserve_exact(usize::from(carrier.streams.is_empty()));
                carrier.streams.push((id, stream));
                handle(Completion::StreamOpened { slot: stream, carrier: slot });
                handle(Completion::Received { slot: stream, bytes: &mut heard });
            }
            Err(fault) => {
                self.say(carrier, Kind::Resets)?;
                carrier.push_reset(id, fault.code);
                handle(Completion::StreamRefused { reason: fault.reason });
            }
        }
        self.heard = heard;
        Ok(())
    }

    fn free_slot(&mut self) -> Option<Slot> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        let at = self.streams.len();
        (at < self.rules.streams_max).then(|| {
            self.streams.push(Stream::free());
            self.rules.first_slot + at as Slot
        })
    }

    /// Fields behind the body of a request: they end it.
    fn read_trailers(
        &mut self,
        carrier: &mut Carrier,
        slot: Slot,
        header: Header,
        handle: Handle<'_>,
    ) -> Result<(), Fault> {
        let are_trailers = self.request.are_trailers() && header.has(flag::END_STREAM);
        let stream = self.stream(slot);
        let fault = match (stream.is_silent, stream.body) {
            (true, _) => Some(Fault::STREAM_CLOSED),
            (false, Body::Known(1..)) => Some(Fault::PROTOCOL),
            (false, _) => (!are_trailers).then_some(Fault::PROTOCOL),
        };
        if let Some(fault) = fault {
            carrier.budgets.charge(Kind::Resets, self.tick)?;
            self.end_with(carrier, slot, fault);
            return Ok(());
        }
        stream.is_silent = true;
        if stream.body == Body::Chunked {
            let mut last = Vec::new();
            push_chunk(&mut last, &[], true);
            self.hear(carrier, slot, &mut last, 0, handle);
        }
        Ok(())
    }

    /// A stream ends for a fault of its client, which is told.
    fn end_with(&mut self, carrier: &mut Carrier, slot: Slot, fault: Fault) {
        let stream = self.stream(slot);
        carrier.push_reset(stream.id, fault.code);
        carrier.let_go(stream, slot);
        self.end_receive(slot, ReceiveEnd::Against(fault.reason));
    }

    fn read_reset(&mut self, carrier: &mut Carrier, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() != 4 {
            return Err(Fault::FRAME_SIZE);
        }
        let id = header.stream;
        if id > carrier.last || id.is_multiple_of(2) {
            return Err(Fault::PROTOCOL);
        }
        carrier.budgets.charge(Kind::Resets, self.tick)?;
        if let Some(slot) = carrier.find(id) {
            carrier.let_go(self.stream(slot), slot);
            self.end_receive(slot, ReceiveEnd::Reset);
        }
        Ok(())
    }

    fn read_settings(&mut self, carrier: &mut Carrier, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if header.has(flag::ACK) {
            let may_come = payload.is_empty();
            if !carrier.has_settings {
                return Err(Fault::PROTOCOL);
            }
            carrier.budgets.charge(Kind::Settings, self.tick)?;
            // There is one to be answered, so this is its answer.
            carrier.decoder.forget();
            return if may_come { Ok(()) } else { Err(Fault::FRAME_SIZE) };
        }
        self.say(carrier, Kind::Settings)?;
        let before = i64::from(carrier.settings.window);
        carrier.settings.apply(payload)?;
        carrier.has_settings = true;
        // Streams that are open have the new window too, less what they have used of it (RFC 9113
        // §6.9.2).
        let more = i64::from(carrier.settings.window) - before;
        for (_, slot) in &carrier.streams {
            let stream = &mut self.streams[(slot - self.rules.first_slot) as usize];
            stream.window = grown(stream.window, more).ok_or(Fault::FLOW_CONTROL)?;
        }
        frame::push(&mut carrier.out, kind::SETTINGS, flag::ACK, 0, &[]);
        self.wake(carrier);
        Ok(())
    }

    fn read_ping(&mut self, carrier: &mut Carrier, header: Header, payload: &[u8]) -> Result<(), Fault> {
        if payload.len() != 8 {
            return Err(Fault::FRAME_SIZE);
        }
        self.say(carrier, Kind::Pings)?;
        if !header.has(flag::ACK) {
            frame::push(&mut carrier.out, kind::PING, flag::ACK, 0, payload);
        }
        Ok(())
    }

    fn read_window_update(
        &mut self,
        carrier: &mut Carrier,
        header: Header,
        payload: &[u8],
    ) -> Result<(), Fault> {
        let payload: [u8; 4] = payload.try_into().map_err(|_| Fault::FRAME_SIZE)?;
        carrier.budgets.charge(Kind::WindowUpdates, self.tick)?;
        let more = i64::from(u32::from_be_bytes(payload) & !(1 << 31));
        let id = header.stream;
        if id == 0 {
            if more == 0 {
                return Err(Fault::PROTOCOL);
            }
            carrier.window = grown(carrier.window, more).ok_or(Fault::FLOW_CONTROL)?;
            self.wake(carrier);
            return Ok(());
        }
        let Some(slot) = carrier.find(id) else {
            // It may have been on its way when the stream ended.
            let is_idle = id > carrier.last || id.is_multiple_of(2);
            return if is_idle { Err(Fault::PROTOCOL) } else { Ok(()) };
        };
        let stream = self.stream(slot);
        let fault = match grown(stream.window, more) {
            _ if more == 0 => Fault::PROTOCOL,
            None => Fault::FLOW_CONTROL,
            Some(window) => {
                stream.window = window;
                self.wake(carrier);
                return Ok(());
            }
        };
        carrier.budgets.charge(Kind::Resets, self.tick)?;
        self.end_with(carrier, slot, fault);
        Ok(())
    }

    /// Windows have grown: streams that wait for room have their turns at the end of this reap.
    fn wake(&mut self, carrier: &Carrier) {
        let Some(cold) = &carrier.cold else { return };
        if let Some(slot) = cold.waiting.front() {
            let of = self.stream(*slot).carrier;
            if self.again.last() != Some(&of) {
                self.again.push(of);
            }
        }
    }
}

/// A window that has grown by so many bytes, or by less than none; `None` if it is too large.
fn grown(window: i32, more: i64) -> Option<i32> {
    let grown = i64::from(window) + more;
    // It shrinks by less than the largest window, and is never below what was sent of that.
    if grown > WINDOW_MAX { None } else { i32::try_from(grown).ok() }
}

/// A piece of a body as a chunk (RFC 9112 §7.1), and the end of the body.
fn push_chunk(out: &mut Vec<u8>, data: &[u8], is_last: bool) {
    if !data.is_empty() {
        write!(out, "{:x}\r\n", data.len()).expect("memory takes it");
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
    if is_last {
        out.extend_from_slice(b"0\r\n\r\n");
    }
}

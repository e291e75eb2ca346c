//! Frames from WebSocket clients (RFC 6455 §5.2 to §5.6), read as they come off the socket in
//! pieces of any size.
//!
//! Invariants worth naming:
//! - No payload is stored: data is unmasked where it lies, checked, counted and forgotten. Only a
//!   control frame that is cut by the end of a piece is kept, in a box that lives until the frame
//!   is whole.
//! - [`Decoder::feed_showing`] also shows the payload of messages, piece by piece, where it lies.
//!   [`Decoder::feed_until`] stops between two messages as well.
//! - A limit is enforced at the frame's header, before the first byte of its payload is looked at.
//! - Nothing is read after a close frame or a violation.
//! - One decoder per idle connection: it stays within [`DECODER_BYTES_MAX`].
//!
//! Not here: what is answered. Later formats that take commands get the payload of text messages at
//! the one place that checks it.

use std::ops::ControlFlow;

use super::mask::unmask;
use super::utf8::Utf8;
use super::{
    BINARY_OPCODE, CLOSE_OPCODE, CONTINUATION_OPCODE, CONTROL_BYTES_MAX, FIN, MASKED, PING_OPCODE,
    PONG_OPCODE, RESERVED_BITS, TEXT_OPCODE,
};
use crate::close::CloseReason;

/// Most bytes of a [`Decoder`], because every idle connection has one.
pub const DECODER_BYTES_MAX: usize = 40;
const _: () = assert!(size_of::<Decoder>() <= DECODER_BYTES_MAX);

/// What a client said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incoming<'a> {
    /// A ping; a pong with this payload is owed. At most 125 bytes.
    Ping(&'a [u8]),
    /// A pong, asked for or not.
    Pong,
    /// The next piece of a data message's payload, unmasked and never empty; only from
    /// [`Decoder::feed_showing`].
    Payload(&'a [u8]),
    /// A close frame; nothing is read after it.
    Close {
        /// The client's code; `None` if its frame had no payload.
        code: Option<u16>,
        /// The code for the close frame that answers: the client's own, 1000 if it gave none (RFC
        /// 6455 §5.5.1).
        reply: Option<u16>,
    },
    /// The last frame of a data message has ended. Its payload was checked and dropped.
    Message {
        /// Payload bytes of all its frames.
        bytes: u64,
        /// Text, and so valid UTF-8; else binary.
        text: bool,
    },
}

/// The client broke the protocol or a limit. The connection is to be closed with the reason's code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Violation {
    /// `WsProtocol`, `WsNotUtf8` or `WsTooBig`.
    pub reason: CloseReason,
    /// What the client did, in a few words: fits into a close frame.
    pub detail: &'static str,
}

/// Which part of a frame the next byte belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Part {
    /// FIN, reserved bits, opcode.
    #[default]
    First,
    /// Mask bit and short length.
    Second,
    /// The long length.
    Length {
        /// Bytes still to come, 1 to 8.
        left: u8,
        /// Eight bytes in all; else two.
        eight: bool,
    },
    /// The masking key: so many of its bytes are here, 0 to 3.
    Mask(u8),
    /// The payload: `remaining` bytes are still to come.
    Payload,
    /// A close frame or a violation was seen.
    Closed,
}

/// The data message that is open between its first and its last frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Message {
    #[default]
    None,
    Text,
    Binary,
}

/// The payload of a control frame that came in pieces.
#[derive(Debug)]
struct Control {
    bytes: [u8; CONTROL_BYTES_MAX],
    /// 0 <= len <= the frame's payload length.
    len: u8,
}

/// Reads one client's frames. `Default` is the state after the opening handshake.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Payload bytes of this frame that are still to come; collects the length while the header is
    /// read.
    remaining: u64,
    /// Some exactly while a control frame's payload is cut.
    control: Option<Box<Control>>,
    /// Payload bytes announced by the frames of the open message. In 32 bits a decoder takes 32
    /// bytes of a connection's entry.
    message_bytes: u32,
    /// The masking key, rotated so that its first byte belongs to the next byte of payload.
    mask: [u8; 4],
    part: Part,
    /// The frame's first byte.
    first: u8,
    message: Message,
    utf8: Utf8,
}

impl Decoder {
    /// Reads the next bytes from the socket and calls `on` for each thing that they complete.
    /// Unmasks in place, so `bytes` hold nothing of use afterwards. `message_bytes_max` bounds a
    /// data message over all its fragments.
    pub fn feed(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: u64,
        on: impl FnMut(Incoming<'_>),
    ) -> Result<(), Violation> {
        let mut on = on;
        self.feed_as::<false>(bytes, message_bytes_max, |incoming| {
            on(incoming);
            ControlFlow::Continue(())
        })
        .map(drop)
    }

    /// [`Decoder::feed`] that also shows the payload of data messages ([`Incoming::Payload`]). What
    /// it showed of a text is valid only once its [`Incoming::Message`] has come.
    pub fn feed_showing(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: u64,
        on: impl FnMut(Incoming<'_>),
    ) -> Result<(), Violation> {
        let mut on = on;
        self.feed_until(bytes, message_bytes_max, |incoming| {
            on(incoming);
            ControlFlow::Continue(())
        })
        .map(drop)
    }

    /// [`Decoder::feed_showing`] that reads no further than the first [`Incoming::Message`] after
    /// which `on` breaks off. Returns how many bytes it has read; the others are as they were.
    pub fn feed_until(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: u64,
        on: impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<usize, Violation> {
        self.feed_as::<true>(bytes, message_bytes_max, on)
    }

    fn feed_as<const SHOWING: bool>(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: u64,
        mut on: impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<usize, Violation> {
        let result = self.read::<SHOWING>(bytes, message_bytes_max, &mut on);
        if result.is_err() {
            self.close();
        }
        result
    }

    fn read<const SHOWING: bool>(
        &mut self,
        bytes: &mut [u8],
        message_bytes_max: u64,
        on: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<usize, Violation> {
        let mut read = 0;
        while read < bytes.len() {
            let rest = &mut bytes[read..];
            let after = match self.part {
                Part::Closed => return Ok(read + rest.len()),
                Part::Payload => {
                    let here = rest.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
                    read += here;
                    self.payload::<SHOWING>(&mut rest[..here], on)?
                }
                _ => {
                    read += 1;
                    self.header_byte(rest[0], message_bytes_max)?;
                    match self.part == Part::Payload && self.remaining == 0 {
                        true => self.payload::<SHOWING>(&mut [], on)?,
                        false => ControlFlow::Continue(()),
                    }
                }
            };
            if after.is_break() {
                break;
            }
        }
        Ok(read)
    }

    /// Takes one byte of a frame's header (RFC 6455 §5.2).
    fn header_byte(&mut self, byte: u8, message_bytes_max: u64) -> Result<(), Violation> {
        match self.part {
            Part::First => {
                self.first = byte;
                self.check_first()?;
                self.part = Part::Second;
            }
            Part::Second => {
                if byte & MASKED == 0 {
                    return Err(protocol("a client's frame is not masked"));
                }
                let short = byte & !MASKED;
                if self.is_control() && short as usize > CONTROL_BYTES_MAX {
                    return Err(protocol("a control frame has more than 125 bytes"));
                }
                self.remaining = 0;
                match short {
                    126 => self.part = Part::Length { left: 2, eight: false },
                    127 => self.part = Part::Length { left: 8, eight: true },
                    short => {
                        self.remaining = short.into();
                        self.length_is_known(message_bytes_max)?;
                    }
                }
            }
            Part::Length { left, eight } => {
                if left == 8 && byte >= 0x80 {
                    return Err(protocol("a length has its top bit set"));
                }
                self.remaining = self.remaining << 8 | u64::from(byte);
                self.part = Part::Length { left: left - 1, eight };
                if left == 1 {
                    if self.remaining <= if eight { 0xFFFF } else { 125 } {
                        return Err(protocol("a length is not in its shortest form"));
                    }
                    self.length_is_known(message_bytes_max)?;
                }
            }
            Part::Mask(at) => {
                self.mask[at as usize] = byte;
                self.part = if at == 3 { Part::Payload } else { Part::Mask(at + 1) };
            }
            Part::Payload | Part::Closed => unreachable!("no header byte is expected here"),
        }
        Ok(())
    }

    /// Checks the frame's first byte against what may come now (RFC 6455 §5.2, §5.4), and opens the
    /// message that it begins.
    fn check_first(&mut self) -> Result<(), Violation> {
        if self.first & RESERVED_BITS != 0 {
            return Err(protocol("a reserved bit is set"));
        }
        match (self.opcode(), self.message) {
            (CONTINUATION_OPCODE, Message::None) => Err(protocol("a continuation continues no message")),
            (CONTINUATION_OPCODE, _) => Ok(()),
            (TEXT_OPCODE | BINARY_OPCODE, Message::Text | Message::Binary) => {
                Err(protocol("a message begins inside of another"))
            }
            (opcode @ (TEXT_OPCODE | BINARY_OPCODE), Message::None) => {
                self.message = if opcode == TEXT_OPCODE { Message::Text } else { Message::Binary };
                self.message_bytes = 0;
                Ok(())
            }
            (CLOSE_OPCODE | PING_OPCODE | PONG_OPCODE, _) if !self.is_last() => {
                Err(protocol("a control frame is fragmented"))
            }
            (CLOSE_OPCODE | PING_OPCODE | PONG_OPCODE, _) => Ok(()),
            _ => Err(protocol("an opcode is reserved")),
        }
    }

    /// The payload's length has been read into `remaining`: what can be refused by it is refused
    /// here.
    fn length_is_known(&mut self, message_bytes_max: u64) -> Result<(), Violation> {
        if !self.is_control() {
            let sum = u64::from(self.message_bytes).saturating_add(self.remaining);
            self.message_bytes = u32::try_from(sum).unwrap_or(u32::MAX);
            if sum > message_bytes_max.min(u32::MAX.into()) {
                let detail = "a message is larger than allowed";
                return Err(Violation { reason: CloseReason::WsTooBig, detail });
            }
        } else if self.opcode() == CLOSE_OPCODE && self.remaining == 1 {
            return Err(protocol("a close code has one byte"));
        }
        self.part = Part::Mask(0);
        Ok(())
    }

    /// Takes the next piece of the frame's payload, and ends the frame if that was all of it.
    fn payload<const SHOWING: bool>(
        &mut self,
        payload: &mut [u8],
        on: &mut impl FnMut(Incoming<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Violation> {
        self.remaining -= payload.len() as u64;
        let ends = self.remaining == 0;
        if ends {
            self.part = Part::First;
        }
        if SHOWING || self.is_control() || self.message == Message::Text {
            unmask(payload, self.mask, 0);
            self.mask.rotate_left(payload.len() % 4);
        }
        if self.is_control() {
            self.control_payload(payload, ends, &mut |incoming| {
                let _ = on(incoming);
            })?;
            return Ok(ControlFlow::Continue(()));
        }
        if self.message == Message::Text {
            let valid = self.utf8.push(payload);
            if !valid || (ends && self.is_last() && !self.utf8.is_whole()) {
                return Err(not_utf8("a text message is not UTF-8"));
            }
        }
        if SHOWING && !payload.is_empty() {
            let _ = on(Incoming::Payload(payload));
        }
        if ends && self.is_last() {
            let text = std::mem::take(&mut self.message) == Message::Text;
            return Ok(on(Incoming::Message { bytes: self.message_bytes.into(), text }));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Collects a control frame's payload, without a copy if it is here in one piece.
    fn control_payload(
        &mut self,
        payload: &[u8],
        ends: bool,
        on: &mut impl FnMut(Incoming<'_>),
    ) -> Result<(), Violation> {
        if ends && self.control.is_none() {
            return self.control_frame(payload, on);
        }
        let mut control = self.control.take().unwrap_or_default();
        control.push(payload);
        if ends {
            return self.control_frame(control.payload(), on);
        }
        self.control = Some(control);
        Ok(())
    }

    /// Reports a whole control frame (RFC 6455 §5.5).
    fn control_frame(&mut self, payload: &[u8], on: &mut impl FnMut(Incoming<'_>)) -> Result<(), Violation> {
        match self.opcode() {
            PING_OPCODE => on(Incoming::Ping(payload)),
            PONG_OPCODE => on(Incoming::Pong),
            _ => {
                let code = close_code(payload)?;
                self.close();
                on(Incoming::Close { code, reply: code.or(Some(1000)) });
            }
        }
        Ok(())
    }

    /// Reads nothing from here on.
    fn close(&mut self) {
        *self = Decoder { part: Part::Closed, ..Decoder::default() };
    }

    fn opcode(&self) -> u8 {
        self.first & 0x0F
    }

    fn is_control(&self) -> bool {
        self.first & 0x08 != 0
    }

    fn is_last(&self) -> bool {
        self.first & FIN != 0
    }
}

impl Default for Control {
    fn default() -> Control {
        Control { bytes: [0; CONTROL_BYTES_MAX], len: 0 }
    }
}

impl Control {
    /// Appends a piece; the header promised that all of them fit.
    fn push(&mut self, piece: &[u8]) {
        let start = self.len as usize;
        let end = start + piece.len();
        self.bytes[start..end].copy_from_slice(piece);
        self.len = end as u8;
    }

    fn payload(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// The code of a close frame's payload, which does not have one byte (RFC 6455 §5.5.1, §7.4). Codes
/// of the protocol itself end at 1014 so far; 3000 to 4999 are for libraries and applications.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else { return Ok(None) };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a close code is not allowed on the wire"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(not_utf8("a close reason is not UTF-8")),
    }
}

fn protocol(detail: &'static str) -> Violation {
    Violation { reason: CloseReason::WsProtocol, detail }
}

fn not_utf8(detail: &'static str) -> Violation {
    Violation { reason: CloseReason::WsNotUtf8, detail }
}

#[cfg(test)]
mod tests;

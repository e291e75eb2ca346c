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
    /// Payload bytes announced by the frames of the open message.
    message_bytes: u64,
    /// Some exactly while a control frame's payload is cut.
    control: Option<Box<Control>>,
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
            self.message_bytes = self.message_bytes.saturating_add(self.remaining);
            if self.message_bytes > message_bytes_max {
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
            return Ok(on(Incoming::Message { bytes: self.message_bytes, text }));
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `Incoming` says, without the borrow.
    #[derive(Clone, PartialEq, Eq, Debug)]
    enum Said {
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>, Option<u16>),
        Message(u64, bool),
    }

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// Feeds pieces of the given sizes in turn, the last one as often as needed.
    fn feed_pieces(
        decoder: &mut Decoder,
        bytes: &[u8],
        sizes: &[usize],
        max: u64,
    ) -> (Vec<Said>, Result<(), Violation>) {
        let mut said = Vec::new();
        let mut bytes = bytes.to_vec();
        let mut rest = &mut bytes[..];
        let mut sizes = sizes.iter().copied();
        let mut size = usize::MAX;
        while !rest.is_empty() {
            size = sizes.next().unwrap_or(size);
            let (piece, after) = rest.split_at_mut(size.min(rest.len()));
            let result = decoder.feed(piece, max, |incoming| {
                said.push(match incoming {
                    Incoming::Ping(payload) => Said::Ping(payload.to_vec()),
                    Incoming::Pong => Said::Pong,
                    Incoming::Close { code, reply } => Said::Close(code, reply),
                    Incoming::Message { bytes, text } => Said::Message(bytes, text),
                    Incoming::Payload(_) => unreachable!("only a decoder that shows payload tells it"),
                });
            });
            if result.is_err() {
                return (said, result);
            }
            rest = after;
        }
        (said, Ok(()))
    }

    /// In one piece and byte by byte; both must agree.
    fn decode(bytes: &[u8], max: u64) -> (Vec<Said>, Result<(), Violation>) {
        let whole = feed_pieces(&mut Decoder::default(), bytes, &[], max);
        assert_eq!(feed_pieces(&mut Decoder::default(), bytes, &[1], max), whole);
        whole
    }

    /// A client's frame; `first` is FIN, reserved bits and opcode.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            bytes @ 0..=125 => frame.push(0x80 | bytes as u8),
            bytes @ 126..=0xFFFF => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(bytes as u16).to_be_bytes());
            }
            bytes => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(bytes as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
        frame
    }

    fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
        frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
    }

    #[test]
    fn the_masked_examples_of_the_standard_read_as_it_says() {
        // RFC 6455 §5.7: a masked text, a masked pong.
        let (said, result) = decode(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 5);
        assert_eq!((said, result), (vec![Said::Message(5, true)], Ok(())));
        let mut pong = *b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        assert_eq!(decode(&pong, 0), (vec![Said::Pong], Ok(())));
        pong[0] = 0x89;
        assert_eq!(decode(&pong, 0), (vec![Said::Ping(b"Hello".to_vec())], Ok(())));
    }

    #[test]
    fn the_unmasked_examples_of_the_standard_are_refused() {
        for example in [
            &b"\x81\x05Hello"[..],
            b"\x01\x03Hel\x80\x02lo",
            b"\x89\x05Hello",
            b"\x82\x7e\x01\x00",
            b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
        ] {
            let expected = protocol("a client's frame is not masked");
            assert_eq!(decode(example, u64::MAX), (vec![], Err(expected)), "{example:x?}");
        }
    }

    #[test]
    fn messages_count_all_their_fragments_and_let_control_frames_pass() {
        let bytes = frames(&[
            (0x01, "Grü".as_bytes()),
            (0x89, b"?"),
            (0x00, b""),
            (0x8a, b""),
            (0x80, b"ezi"),
            (0x82, &[0xff; 126]),
            (0x82, &[0; 70_000]),
            (0x81, b""),
        ]);
        let said = [
            Said::Ping(b"?".to_vec()),
            Said::Pong,
            Said::Message(7, true),
            Said::Message(126, false),
            Said::Message(70_000, false),
            Said::Message(0, true),
        ];
        assert_eq!(decode(&bytes, 70_000), (said.to_vec(), Ok(())));
    }

    #[test]
    fn a_character_may_be_cut_by_a_fragment_but_not_by_the_end() {
        let smile = "😀".as_bytes();
        let whole = frames(&[(0x01, &smile[..1]), (0x00, &smile[1..3]), (0x89, b""), (0x80, &smile[3..])]);
        assert_eq!(decode(&whole, 9), (vec![Said::Ping(vec![]), Said::Message(4, true)], Ok(())));
        for cut in [frame(0x81, &smile[..3]), frames(&[(0x01, &smile[..3]), (0x80, b"")])] {
            assert_eq!(decode(&cut, 9), (vec![], Err(not_utf8("a text message is not UTF-8"))));
        }
    }

    #[test]
    fn each_violation_is_named() {
        use CloseReason::{WsNotUtf8, WsProtocol, WsTooBig};
        let table: &[(&[u8], CloseReason, &str)] = &[
            (&frame(0xC1, b""), WsProtocol, "reserved bit"),
            (&frame(0xA1, b""), WsProtocol, "reserved bit"),
            (&frame(0x91, b""), WsProtocol, "reserved bit"),
            (&frame(0x83, b""), WsProtocol, "opcode"),
            (&frame(0x87, b""), WsProtocol, "opcode"),
            (&frame(0x8B, b""), WsProtocol, "opcode"),
            (&frame(0x8F, b""), WsProtocol, "opcode"),
            (&frame(0x0B, b""), WsProtocol, "opcode"),
            (&frame(0x09, b""), WsProtocol, "control frame is fragmented"),
            (&frame(0x0A, b""), WsProtocol, "control frame is fragmented"),
            (&frame(0x08, b""), WsProtocol, "control frame is fragmented"),
            (&frame(0x89, &[0; 126]), WsProtocol, "more than 125 bytes"),
            (&frame(0x80, b"a"), WsProtocol, "continues no message"),
            (&frames(&[(0x81, b"a"), (0x80, b"b")]), WsProtocol, "continues no message"),
            (&frames(&[(0x01, b"a"), (0x81, b"b")]), WsProtocol, "inside of another"),
            (&frames(&[(0x02, b"a"), (0x02, b"b")]), WsProtocol, "inside of another"),
            (b"\x82\xfe\x00\x7d", WsProtocol, "shortest"),
            (b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", WsProtocol, "shortest"),
            (b"\x82\xff\x80", WsProtocol, "top bit"),
            (&frame(0x88, b"\x03"), WsProtocol, "one byte"),
            (&frame(0x88, b"\x03\xe8\xff"), WsNotUtf8, "close reason"),
            (&frame(0x81, b"\xc0\x80"), WsNotUtf8, "text message"),
            // At the header: the payload is not there.
            (b"\x82\xfe\x00\x7f", WsTooBig, "larger than allowed"),
            (b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff", WsTooBig, "larger than allowed"),
            (&[&frame(0x02, &[0; 100])[..], b"\x80\x9b"].concat(), WsTooBig, "larger than allowed"),
        ];
        for (bytes, reason, detail) in table {
            let (said, result) = decode(bytes, 126);
            let violation = result.expect_err(detail);
            assert_eq!(violation.reason, *reason, "{detail}: {bytes:x?}");
            assert!(violation.detail.contains(detail), "{detail}: {violation:?}");
            assert!(said.iter().all(|said| matches!(said, Said::Message(1, true))), "{detail}: {said:?}");
        }
    }

    #[test]
    fn invalid_text_is_refused_before_its_frame_is_whole() {
        let mut bytes = frame(0x81, &[0xff; 100]);
        bytes.truncate(7);
        assert_eq!(decode(&bytes, 100).1, Err(not_utf8("a text message is not UTF-8")));
    }

    #[test]
    fn only_codes_that_may_be_sent_close() {
        for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999] {
            let close = frame(0x88, &[&u16::to_be_bytes(code)[..], b"bye"].concat());
            assert_eq!(decode(&close, 0), (vec![Said::Close(Some(code), Some(code))], Ok(())));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, u16::MAX] {
            let expected = protocol("a close code is not allowed on the wire");
            assert_eq!(decode(&frame(0x88, &code.to_be_bytes()), 0), (vec![], Err(expected)), "{code}");
        }
        assert_eq!(decode(&frame(0x88, b""), 0), (vec![Said::Close(None, Some(1000))], Ok(())));
    }

    #[test]
    fn nothing_is_read_after_a_close_or_a_violation() {
        let bytes = frames(&[(0x89, b"1"), (0x88, b""), (0x89, b"2"), (0xFF, b"")]);
        assert_eq!(
            decode(&bytes, 9),
            (vec![Said::Ping(b"1".to_vec()), Said::Close(None, Some(1000))], Ok(()))
        );
        let mut decoder = Decoder::default();
        assert!(feed_pieces(&mut decoder, &frame(0xFF, b""), &[], 9).1.is_err());
        assert_eq!(feed_pieces(&mut decoder, &frame(0x89, b""), &[], 9), (vec![], Ok(())));
    }

    #[test]
    fn a_box_is_held_only_while_a_control_frame_is_cut() {
        let ping = frame(0x89, b"abcdef");
        let mut decoder = Decoder::default();
        for (bytes, held) in [(&ping[..7], true), (&ping[7..8], true), (&ping[8..], false), (&ping, false)] {
            assert_eq!(feed_pieces(&mut decoder, bytes, &[], 0).1, Ok(()));
            assert_eq!(decoder.control.is_some(), held);
        }
    }

    #[test]
    fn every_two_cuts_of_a_conversation_give_the_same_events() {
        let bytes = frames(&[
            (0x01, "aü".as_bytes()),
            (0x89, b"ping"),
            (0x80, "😀".as_bytes()),
            (0x82, &[7; 130]),
            (0x8A, b"x"),
            (0x81, b""),
            (0x88, b"\x03\xe9bye"),
        ]);
        let expected = decode(&bytes, 130);
        assert_eq!(expected.0.len(), 6);
        for first in 0..bytes.len() {
            for second in 0..bytes.len() - first {
                let cut = feed_pieces(&mut Decoder::default(), &bytes, &[first, second, usize::MAX], 130);
                assert_eq!(cut, expected, "cut after {first} and {second} more bytes");
            }
        }
    }

    #[test]
    fn the_payload_is_shown_whole_and_unmasked_however_it_is_cut() {
        let binary = [0xfe; 130];
        let bytes = frames(&[
            (0x01, "Grü".as_bytes()),
            (0x89, b"not payload"),
            (0x80, b"ezi"),
            (0x82, &binary),
            (0x82, b""),
            (0x88, b"\x03\xe8bye"),
        ]);
        for size in 1..=bytes.len() {
            let (mut decoder, mut messages, mut payload) = (Decoder::default(), Vec::new(), Vec::new());
            for piece in bytes.clone().chunks_mut(size) {
                let fed = decoder.feed_showing(piece, 130, |incoming| match incoming {
                    Incoming::Payload(piece) => payload.extend_from_slice(piece),
                    Incoming::Message { text, .. } => messages.push((text, std::mem::take(&mut payload))),
                    _ => {}
                });
                assert_eq!(fed, Ok(()));
            }
            let expected = [(true, "Grüezi".into()), (false, binary.to_vec()), (false, Vec::new())];
            assert_eq!((messages.as_slice(), payload.len()), (&expected[..], 0), "in pieces of {size}");
        }
    }

    #[test]
    fn a_caller_that_breaks_off_reads_the_next_message_later() {
        let first = frames(&[(0x89, b"1"), (0x01, b"a"), (0x80, b"b")]);
        let bytes = [first.clone(), frames(&[(0x81, b"c"), (0x82, b""), (0x8a, b"")])].concat();
        let mut decoder = Decoder::default();
        let (mut rest, mut ends, mut payloads) = (bytes.clone(), Vec::new(), Vec::new());
        let mut at = 0;
        while at < rest.len() {
            at += decoder
                .feed_until(&mut rest[at..], 9, |incoming| match incoming {
                    Incoming::Message { .. } => ControlFlow::Break(()),
                    Incoming::Payload(piece) => {
                        payloads.extend_from_slice(piece);
                        ControlFlow::Break(())
                    }
                    _ => ControlFlow::Break(()),
                })
                .expect("valid frames");
            ends.push(at);
        }
        assert_eq!(payloads, b"abc");
        assert_eq!(ends, [first.len(), first.len() + 7, first.len() + 13, bytes.len()]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_cuts_make_no_difference(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            sizes in proptest::collection::vec(1usize..20, 1..30),
        ) {
            let whole = feed_pieces(&mut Decoder::default(), &bytes, &[], 1 << 20);
            prop_assert_eq!(feed_pieces(&mut Decoder::default(), &bytes, &sizes, 1 << 20), whole);
        }

        #[test]
        fn almost_valid_frames_never_panic_and_cuts_make_no_difference(
            frames in proptest::collection::vec(
                (any::<u8>(), proptest::collection::vec(0u8..0x80, 0..140)),
                0..5,
            ),
            size in 1usize..40,
        ) {
            let frames = frames.iter().map(|(first, payload)| frame(first & 0x8F, payload));
            let bytes: Vec<u8> = frames.flatten().collect();
            let whole = feed_pieces(&mut Decoder::default(), &bytes, &[], 1 << 20);
            prop_assert_eq!(feed_pieces(&mut Decoder::default(), &bytes, &[size], 1 << 20), whole);
        }
    }
}

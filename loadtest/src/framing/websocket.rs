//! WebSocket (RFC 6455 §5.2): frames from a server, and the frames of a client.
//!
//! [`Frames`] takes the frame headers out of a stream and gives the payload in pieces, as it
//! arrives; [`WsSplitter`] makes events of whole messages. Control frames stand between: pings are
//! counted and the latest one's payload kept for the answer, a close frame is an error with its
//! reason. Client frames are masked with a key of zeros, which leaves their bytes as they are: the
//! key hides nothing that a load test sends.

use std::ops::Range;

use super::{EventEnd, Fed, GAP_DATA};
use crate::stamp::{STAMP_BYTES, Stamp};

/// Opcodes of frames that a client sends.
pub const TEXT: u8 = 1;
/// See [`TEXT`].
pub const BINARY: u8 = 2;
/// See [`TEXT`].
pub const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// How the reason begins where the server has sent a close frame.
pub const CLOSED: &str = "the server closed the WebSocket";
/// The largest payload of a control frame.
const CONTROL_BYTES_MAX: u8 = 125;

/// The head of a masked client frame that is a whole message: opcode, length, key.
pub fn client_head(opcode: u8, payload_bytes: usize) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match payload_bytes {
        0..126 => head.push(0x80 | payload_bytes as u8),
        126..65_536 => {
            head.push(0x80 | 126);
            head.extend((payload_bytes as u16).to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend((payload_bytes as u64).to_be_bytes());
        }
    }
    head.extend([0; 4]);
    head
}

/// A whole client frame.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = client_head(opcode, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// A run of payload within the bytes just fed.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it is; empty for an empty message.
    pub payload: Range<usize>,
    /// True if a message ends with it.
    pub ends: bool,
}

/// Takes frame headers and control frames out of a server's stream.
#[derive(Debug, Default)]
pub struct Frames {
    /// The header of the current frame as far as it has arrived: 2, 4 or 10 bytes.
    header: [u8; 10],
    header_bytes: usize,
    /// Payload bytes of the current frame still to come; meaningful once its header is complete.
    payload_left: u64,
    /// True from the end of a frame's header to the end of its payload.
    in_payload: bool,
    /// The payload of the current control frame as far as it has arrived.
    control: Vec<u8>,
    /// The payload of the latest ping.
    ping: Vec<u8>,
    /// Pings that have not been answered.
    unanswered: u32,
}

impl Frames {
    /// The next piece of payload in `bytes` from `at` on, which moves behind it; `None` when all is
    /// taken.
    pub fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<Piece>, String> {
        loop {
            if !self.in_payload {
                if *at == bytes.len() {
                    return Ok(None);
                }
                self.header[self.header_bytes] = bytes[*at];
                self.header_bytes += 1;
                *at += 1;
                self.header_grew()?;
                continue;
            }
            let here = self.payload_left.min((bytes.len() - *at) as u64) as usize;
            let payload = *at..*at + here;
            self.payload_left -= here as u64;
            *at += here;
            self.in_payload = self.payload_left > 0;
            if self.header[0] & 0x08 != 0 {
                self.control.extend_from_slice(&bytes[payload]);
                if self.in_payload {
                    return Ok(None);
                }
                self.control_ends()?;
            } else if here > 0 || !self.in_payload {
                return Ok(Some(Piece { payload, ends: !self.in_payload && self.header[0] & 0x80 != 0 }));
            } else {
                return Ok(None);
            }
        }
    }

    fn header_grew(&mut self) -> Result<(), String> {
        if self.header_bytes < 2 {
            return Ok(());
        }
        if self.header[0] & 0x70 != 0 {
            return Err("the server set reserved bits in a WebSocket frame".into());
        }
        if self.header[1] & 0x80 != 0 {
            return Err("the server masked a WebSocket frame".into());
        }
        if self.header[0] & 0x08 != 0 && self.header[1] > CONTROL_BYTES_MAX {
            return Err("the server sent a WebSocket control frame of more than 125 bytes".into());
        }
        self.payload_left = match (self.header[1], self.header_bytes) {
            (126, 4) => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            (127, 10) => u64::from_be_bytes(self.header[2..10].try_into().expect("eight bytes")),
            (126 | 127, _) => return Ok(()),
            (length, _) => u64::from(length),
        };
        self.header_bytes = 0;
        self.in_payload = true;
        Ok(())
    }

    fn control_ends(&mut self) -> Result<(), String> {
        match self.header[0] & 0x0f {
            CLOSE => return Err(close_reason(&self.control)),
            PING => {
                std::mem::swap(&mut self.ping, &mut self.control);
                self.unanswered += 1;
            }
            _ => {}
        }
        self.control.clear();
        Ok(())
    }

    /// Pings that have not been answered.
    pub fn unanswered(&self) -> u32 {
        self.unanswered
    }

    /// The frame that answers the latest ping, and with it those before (§5.5.3); empty if there
    /// was none.
    pub fn answer(&mut self) -> Vec<u8> {
        match std::mem::take(&mut self.unanswered) {
            0 => Vec::new(),
            _ => client_frame(PONG, &self.ping),
        }
    }
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, text @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            format!("{CLOSED}: {code} {}", String::from_utf8_lossy(text)).trim_end().into()
        }
        _ => format!("{CLOSED} without a code"),
    }
}

/// Splits a stream into messages.
#[derive(Debug, Default)]
pub struct WsSplitter {
    frames: Frames,
    /// The first bytes of the current message.
    prefix: Vec<u8>,
}

impl WsSplitter {
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) -> Result<Fed, String> {
        let mut at = 0;
        while let Some(piece) = self.frames.next(bytes, &mut at)? {
            let payload = &bytes[piece.payload];
            self.prefix.extend_from_slice(&payload[..payload.len().min(STAMP_BYTES - self.prefix.len())]);
            if piece.ends {
                let (stamp, gap) = (Stamp::read(&self.prefix), self.prefix.starts_with(GAP_DATA));
                on_event(EventEnd { at, stamp, gap });
                self.prefix.clear();
            }
        }
        Ok(Fed { pings: self.frames.unanswered(), pongs: 0 })
    }

    pub(super) fn answers(&mut self) -> Vec<u8> {
        self.frames.answer()
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::tests::{payload, split};
    use super::super::{Protocol, Splitter};
    use super::*;
    use crate::framing::Dialect;

    /// A server's frame, which is never masked.
    pub fn server_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = client_head(first & 0x0f, payload.len());
        frame.truncate(frame.len() - 4);
        frame[0] = first;
        frame[1] &= 0x7f;
        frame.extend(payload);
        frame
    }

    fn split_ws(stream: &[u8], piece: usize) -> Result<Vec<(usize, Option<u64>)>, String> {
        split(&mut Splitter::new(Protocol::Ws, Dialect::Plain, 0), stream, piece)
    }

    #[test]
    fn websocket_messages_end_at_their_final_frame_however_the_bytes_arrive() {
        let mut stream = server_frame(0x89, b"ping");
        let mut ends = Vec::new();
        for (sequence, bytes) in [(1, 100), (2, 200), (3, 70_000)] {
            stream.extend(server_frame(0x81, &payload(sequence, bytes)));
            ends.push((stream.len(), Some(sequence)));
        }
        let fragmented = payload(4, 60);
        stream.extend(server_frame(0x01, &fragmented[..20]));
        stream.extend(server_frame(0x89, b"between"));
        stream.extend(server_frame(0x80, &fragmented[20..]));
        ends.push((stream.len(), Some(4)));
        stream.extend(server_frame(0x82, b""));
        ends.push((stream.len(), None));
        for piece in [1, 2, 3, 7, 4_096, stream.len()] {
            assert_eq!(split_ws(&stream, piece).as_ref(), Ok(&ends), "pieces of {piece}");
        }
    }

    #[test]
    fn a_websocket_close_and_a_frame_against_the_rules_are_told() {
        let closed = split_ws(&server_frame(0x88, b"\x03\xf5slow"), 1).expect_err("closed");
        assert!(closed.contains("1013 slow"), "{closed}");
        assert!(split_ws(&[0x81, 0x81], 1).expect_err("masked").contains("masked"));
        assert!(split_ws(&[0xc1, 0x01], 1).expect_err("reserved").contains("reserved"));
        assert!(split_ws(&[0x89, 0x7e], 1).expect_err("too long").contains("125"));
    }

    #[test]
    fn pings_are_counted_and_the_latest_is_answered_once() {
        let stream = [server_frame(0x89, b"one"), server_frame(0x89, b"two")].concat();
        for piece in [1, 3, stream.len()] {
            let mut splitter = Splitter::new(Protocol::Ws, Dialect::Plain, 0);
            assert_eq!(splitter.answers(), b"");
            let mut pings = 0;
            for bytes in stream.chunks(piece) {
                pings = splitter.feed(bytes, |_| ()).expect("no fault").pings;
            }
            assert_eq!(pings, 2, "pieces of {piece}");
            assert_eq!(splitter.answers(), b"\x8a\x83\0\0\0\0two");
            assert_eq!(splitter.answers(), b"");
        }
    }

    #[test]
    fn a_gap_notice_is_told_from_an_event() {
        let stream = [server_frame(0x81, b"{\"gap\":{}}"), server_frame(0x81, b"{\"gap\"}")].concat();
        let mut splitter = Splitter::new(Protocol::Ws, Dialect::Plain, 0);
        let mut gaps = Vec::new();
        splitter.feed(&stream, |event| gaps.push(event.gap)).expect("no fault");
        assert_eq!(gaps, [true, false]);
    }

    #[test]
    fn client_frames_say_their_length_and_that_they_are_masked() {
        assert_eq!(client_frame(TEXT, b"hi"), b"\x81\x82\0\0\0\0hi");
        assert_eq!(client_head(BINARY, 126), b"\x82\xfe\0\x7e\0\0\0\0");
        assert_eq!(client_head(TEXT, 65_536), b"\x81\xff\0\0\0\0\0\x01\0\0\0\0\0\0");
    }
}

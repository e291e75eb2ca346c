//! WebSocket after the opening handshake (RFC 6455 §5): what the server writes, and the closing
//! codes.
//!
//! A server's frames are unmasked (§5.1), so one event is the same bytes for every subscriber; each
//! is one unfragmented message. Clients' frames are read by [`Decoder`]. Not here: the opening
//! handshake (`http`), and when to ping or close (`shard`).

use bytes::Bytes;

use crate::event::Event;

mod decoder;
mod mask;
mod utf8;

pub use decoder::{DECODER_BYTES_MAX, Decoder, Incoming, Violation};
pub use mask::unmask;

/// A ping without payload, whole.
pub const PING: &[u8] = &[FIN | PING_OPCODE, 0];

/// Largest payload of a control frame, in bytes (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Longest header of a frame that is not masked (RFC 6455 §5.2).
const HEADER_BYTES_MAX: usize = 10;

// RFC 6455 §5.2.
const FIN: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
const MASKED: u8 = 0x80;
const CONTINUATION_OPCODE: u8 = 0x0;
const TEXT_OPCODE: u8 = 0x1;
const BINARY_OPCODE: u8 = 0x2;
const CLOSE_OPCODE: u8 = 0x8;
const PING_OPCODE: u8 = 0x9;
const PONG_OPCODE: u8 = 0xA;

/// The frame of one event: its data as one text or binary message. Name, id and retry are not
/// carried.
pub fn encode_event(event: &Event) -> Bytes {
    let opcode = if event.data.is_binary() { BINARY_OPCODE } else { TEXT_OPCODE };
    Bytes::from(frame(opcode, event.data.bytes()))
}

/// The most bytes that the frame of `event` may have: the longest header, and the data.
pub fn frame_bytes_max(event: &Event) -> usize {
    HEADER_BYTES_MAX + event.data.bytes().len()
}

/// A text message in one frame.
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(TEXT_OPCODE, text.as_bytes())
}

/// The begin of a text message of so many bytes in one frame, with room for them.
pub fn begin_text(bytes: usize) -> Vec<u8> {
    begin(TEXT_OPCODE, bytes)
}

/// Bytes of the frame of a text message of so many bytes.
pub fn text_bytes(bytes: usize) -> usize {
    header_bytes(bytes) + bytes
}

/// The text of a frame of ours, if it is a text message and nothing else.
pub fn text_of(frame: &[u8]) -> Option<&str> {
    let header = match frame {
        [first, 126, ..] if *first == FIN | TEXT_OPCODE => 4,
        [first, 127, ..] if *first == FIN | TEXT_OPCODE => 10,
        [first, _, ..] if *first == FIN | TEXT_OPCODE => 2,
        _ => return None,
    };
    let text = std::str::from_utf8(frame.get(header..)?).ok()?;
    (begin_text(text.len())[..] == frame[..header]).then_some(text)
}

/// A message in one frame: text, which must be valid UTF-8, or binary.
pub fn message_frame(text: bool, payload: &[u8]) -> Vec<u8> {
    frame(if text { TEXT_OPCODE } else { BINARY_OPCODE }, payload)
}

/// A close frame with `code` and as much of `reason` as fits: 123 bytes, cut between two characters
/// (RFC 6455 §5.5.1).
pub fn close_frame(code: u16, reason: &str) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    let mut payload = Vec::with_capacity(CONTROL_BYTES_MAX);
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    frame(CLOSE_OPCODE, &payload)
}

/// The answer to a ping with this payload (RFC 6455 §5.5.3).
///
/// # Panics
/// If the payload is longer than [`CONTROL_BYTES_MAX`], which no ping of the [`Decoder`] is.
pub fn pong_frame(payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() <= CONTROL_BYTES_MAX, "a pong's payload is a ping's payload");
    frame(PONG_OPCODE, payload)
}

/// One whole unmasked frame in one allocation of its exact size.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = begin(opcode, payload.len());
    frame.extend_from_slice(payload);
    frame
}

/// The header of an unmasked frame, the length in its shortest form (RFC 6455 §5.2), in an
/// allocation of the exact size of the whole.
fn begin(opcode: u8, bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(header_bytes(bytes) + bytes);
    frame.push(FIN | opcode);
    match bytes {
        0..=125 => frame.push(bytes as u8),
        126..=0xFFFF => {
            frame.push(126);
            frame.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
    frame
}

/// Bytes of the header of an unmasked frame with so much payload.
fn header_bytes(bytes: usize) -> usize {
    match bytes {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => HEADER_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Data, Field, Topic};

    fn event(data: Data) -> Event {
        let topic = Topic::new("t").expect("a topic");
        Event {
            topic,
            data,
            name: Some(Field::new("n").expect("a name")),
            id: None,
            retry_ms: Some(1),
            key: None,
        }
    }

    #[test]
    fn an_event_is_one_unmasked_message_of_its_kind() {
        let text = event(Data::text(Bytes::from_static(b"Hello")).expect("UTF-8"));
        assert_eq!(&encode_event(&text)[..], b"\x81\x05Hello");
        let binary = event(Data::binary(Bytes::from_static(b"\0\xff")));
        assert_eq!(&encode_event(&binary)[..], b"\x82\x02\0\xff");
        let empty = event(Data::text(Bytes::new()).expect("UTF-8"));
        assert_eq!(&encode_event(&empty)[..], b"\x81\0");
    }

    #[test]
    fn lengths_take_their_shortest_form() {
        for (bytes, header) in [
            (0, &b"\x82\x00"[..]),
            (125, b"\x82\x7d"),
            (126, b"\x82\x7e\x00\x7e"),
            (256, b"\x82\x7e\x01\x00"),
            (65_535, b"\x82\x7e\xff\xff"),
            (65_536, b"\x82\x7f\0\0\0\0\0\x01\0\0"),
        ] {
            let frame = encode_event(&event(Data::binary(Bytes::from(vec![b'x'; bytes]))));
            assert_eq!(&frame[..header.len()], header, "{bytes}");
            assert_eq!(frame.len(), header.len() + bytes);
            let vector = Vec::from(frame);
            assert_eq!(vector.capacity(), vector.len(), "one allocation of the exact size");
        }
    }

    #[test]
    fn control_frames_stay_within_125_bytes_and_cut_no_character() {
        assert_eq!(PING, b"\x89\0");
        assert_eq!(pong_frame(b"Hello"), b"\x8a\x05Hello");
        assert_eq!(close_frame(1000, ""), b"\x88\x02\x03\xe8");
        assert_eq!(close_frame(1001, "bye"), b"\x88\x05\x03\xe9bye");
        assert_eq!(text_frame("ü"), b"\x81\x02\xc3\xbc");
        let full = "x".repeat(123);
        assert_eq!(close_frame(1001, &full)[4..], *full.as_bytes());
        assert_eq!(close_frame(1001, &"x".repeat(124))[4..], *full.as_bytes());
        let cut = close_frame(1001, &"ü".repeat(80));
        assert_eq!((cut[1], cut.len()), (124, 126));
        assert_eq!(std::str::from_utf8(&cut[4..]), Ok("ü".repeat(61).as_str()));
    }
}

//! Event streams in chunks (RFC 9112 §7.1): each event, notice and sign of life is one chunk, so
//! that clients which wait for a buffer to fill when a body is framed by its end alone hand each of
//! them on at once, and a stream that was cut off can be told from one that ended.
//!
//! The bytes of a chunk are those of the event stream that ends with its connection (`sse`): that
//! format's frames lie within ours.

use std::io::Write as _;

use bytes::Bytes;

use super::sse::{self, IdText};
use crate::event::{Epoch, Event, EventId};

/// A sign of life as a chunk.
pub const HEARTBEAT: &[u8] = b"3\r\n:\n\n\r\n";

/// The end of a body in chunks, without trailer fields.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

const CRLF: &[u8] = b"\r\n";

/// The frame of one event as a chunk, in one allocation of its exact size.
pub fn encode_event(event: &Event, epoch: Epoch, sequence: u64) -> Bytes {
    let id = IdText::new(EventId { epoch, sequence });
    let size = sse::event_size(event, &id);
    let mut frame = begin(size);
    sse::write_event(&mut frame, event, &id);
    frame.extend_from_slice(CRLF);
    debug_assert_eq!(frame.len(), frame_size(size), "the size is computed as the frame is written");
    Bytes::from(frame)
}

/// The most bytes that the frame of `event` may have, whatever its sequence.
pub fn frame_bytes_max(event: &Event) -> usize {
    frame_size(sse::event_size_max(event))
}

/// `content`, which is not empty, as a chunk.
pub fn chunk(content: &[u8]) -> Bytes {
    let mut frame = begin(content.len());
    frame.extend_from_slice(content);
    frame.extend_from_slice(CRLF);
    Bytes::from(frame)
}

/// The content of a chunk of ours, which shares its memory.
pub fn content(chunk: &Bytes) -> Bytes {
    let line = memchr::memchr(b'\n', chunk).expect("a chunk begins with the line of its size");
    chunk.slice(line + 1..chunk.len() - CRLF.len())
}

/// A buffer with the line of a chunk's size and room for the chunk.
fn begin(content_bytes: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(frame_size(content_bytes));
    write!(frame, "{content_bytes:x}\r\n").expect("a vector takes every write");
    frame
}

/// Bytes of a chunk with so many bytes of content.
fn frame_size(content_bytes: usize) -> usize {
    let digits = (usize::BITS - content_bytes.leading_zeros()).div_ceil(4) as usize;
    digits.max(1) + CRLF.len() + content_bytes + CRLF.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Data, Topic};

    fn event(bytes: usize) -> Event {
        let data = Data::text(Bytes::from("x".repeat(bytes))).expect("UTF-8");
        Event {
            topic: Topic::new("t").expect("a topic"),
            data,
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        }
    }

    #[test]
    fn an_event_is_one_chunk_around_the_bytes_of_the_other_format() {
        assert_eq!(
            &encode_event(&event(3), Epoch(36), 7)[..],
            b"14\r\nid: 10-7\ndata: xxx\n\n\r\n",
            "20 bytes in hexadecimal"
        );
        for bytes in [0, 1, 200, 4_000, 65_500, 70_000] {
            let chunk = encode_event(&event(bytes), Epoch(36), 7);
            let mut content_alone = Vec::new();
            let id = IdText::new(EventId { epoch: Epoch(36), sequence: 7 });
            sse::write_event(&mut content_alone, &event(bytes), &id);
            assert_eq!(content(&chunk), content_alone);
            assert!(chunk.len() <= frame_bytes_max(&event(bytes)));
            let vector = Vec::from(chunk);
            assert_eq!(vector.capacity(), vector.len(), "one allocation of the exact size");
        }
    }

    #[test]
    fn what_is_constant_is_a_chunk_too() {
        assert_eq!(chunk(sse::HEARTBEAT), HEARTBEAT);
        assert_eq!(content(&chunk(&[b'y'; 16])), [b'y'; 16][..]);
        assert_eq!(&chunk(&[b'y'; 16])[..4], b"10\r\n");
    }
}

//! Server-Sent Events (WHATWG HTML §9.2.6): events end at blank lines.
//!
//! Lines end in LF or CRLF. A block without `data` is no event, but an `id` in it holds all the
//! same. A line that is here as a whole is looked at where it is; only what is cut off at the end
//! of a feed is kept, and only its start.

use memchr::memchr;

use super::{EventEnd, GAP_DATA};
use crate::stamp::Stamp;

/// Bytes of a line that are looked at. An id that does not fit is passed over, as if there were
/// none.
const LINE_BYTES_MAX: usize = 1 << 10;

/// Splits an event stream.
#[derive(Debug, Default)]
pub struct SseSplitter {
    /// The start of the current line, if it began in an earlier feed; at most [`LINE_BYTES_MAX`]
    /// bytes.
    line: Vec<u8>,
    /// Bytes of the current line in earlier feeds.
    line_bytes: usize,
    block: Block,
}

/// What is known of the current block.
#[derive(Debug, Default)]
struct Block {
    /// True once it has a `data` line.
    has_data: bool,
    stamp: Option<Stamp>,
    gap: bool,
    /// The last `id` so far, and whether it differs from the one in force.
    id: Vec<u8>,
    id_is_new: bool,
    /// The `id` in force at the end of the last block.
    last_id: Vec<u8>,
}

impl SseSplitter {
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) {
        let mut at = 0;
        while let Some(length) = memchr(b'\n', &bytes[at..]) {
            let part = &bytes[at..at + length];
            at += length + 1;
            let ended = if self.line_bytes == 0 {
                self.block.line(part, part.len())
            } else {
                self.keep(part);
                let ended = self.block.line(&self.line, self.line_bytes);
                self.line.clear();
                self.line_bytes = 0;
                ended
            };
            if ended {
                on_event(EventEnd { at, stamp: self.block.stamp, gap: self.block.gap });
                (self.block.has_data, self.block.stamp, self.block.gap) = (false, None, false);
            }
        }
        self.keep(&bytes[at..]);
    }

    pub(super) fn last_id(&self) -> &[u8] {
        &self.block.last_id
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&part[..part.len().min(room)]);
        self.line_bytes += part.len();
    }
}

impl Block {
    /// Takes a line of `bytes` bytes that starts with `start`; true if it ends an event.
    fn line(&mut self, start: &[u8], bytes: usize) -> bool {
        let whole = bytes <= LINE_BYTES_MAX;
        if bytes == 0 || (whole && start == b"\r") {
            if self.id_is_new {
                self.last_id.clone_from(&self.id);
                self.id_is_new = false;
            }
            self.gap &= self.has_data;
            return self.has_data;
        }
        if let Some(data) = value(start, b"data:") {
            if !self.has_data {
                self.stamp = Stamp::read(data);
                self.gap |= data.starts_with(GAP_DATA);
            }
            self.has_data = true;
        } else if let Some(id) = value(start, b"id:") {
            if whole {
                self.id.clear();
                self.id.extend_from_slice(id.strip_suffix(b"\r").unwrap_or(id));
                self.id_is_new = true;
            }
        } else if let Some(name) = value(start, b"event:") {
            self.gap |= name.strip_suffix(b"\r").unwrap_or(name) == b"fanwave-gap";
        }
        false
    }
}

/// What follows the field's name and colon, and a space if there is one.
fn value<'a>(line: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(field)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{payload, split};
    use super::super::{Protocol, Splitter};
    use super::*;
    use crate::framing::Dialect;

    fn splitter() -> Splitter {
        Splitter::new(Protocol::Sse, Dialect::Plain, 0)
    }

    #[test]
    fn sse_events_end_at_their_blank_line_however_the_bytes_arrive() {
        let mut stream = b": hello\n\nretry: 5\n\n".to_vec();
        let mut ends = Vec::new();
        for (sequence, end) in [(1, "\n"), (2, "\r\n"), (3, "\n")] {
            let data = String::from_utf8(payload(sequence, 2_000)).expect("ASCII");
            stream.extend(format!("id: a-{sequence}{end}data: {data}{end}data: more{end}{end}").into_bytes());
            ends.push((stream.len(), Some(sequence)));
        }
        stream.extend(b"data:foreign\n\n");
        ends.push((stream.len(), None));
        for piece in [1, 2, 3, 7, 64, stream.len()] {
            assert_eq!(split(&mut splitter(), &stream, piece).as_ref(), Ok(&ends), "pieces of {piece}");
        }
    }

    #[test]
    fn the_last_id_is_that_of_the_last_whole_event() {
        let long = "i".repeat(LINE_BYTES_MAX);
        for (stream, id) in [
            ("data: 1\n\n", ""),
            ("id: a-1\ndata: 1\n\nid: a-2\ndata: 2\n", "a-1"),
            ("id: a-1\r\ndata: 1\r\n\r\nid:a-2\r\ndata: 2\r\n\r\n", "a-2"),
            ("id: a-1\ndata: 1\n\ndata: 2\n\n", "a-1"),
            ("id: a-1\n\n: an id holds without data\n\n", "a-1"),
            (&format!("id: a-1\n\nid: {long}\ndata: 1\n\n"), "a-1"),
        ] {
            for piece in [1, 4, stream.len()] {
                let mut splitter = splitter();
                split(&mut splitter, stream.as_bytes(), piece).expect("SSE never fails");
                assert_eq!(splitter.last_id(), id.as_bytes(), "{stream:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_gap_notice_is_told_from_an_event_however_the_bytes_arrive() {
        let stream = b"event: fanwave-gap\ndata: {}\n\nevent: other\ndata: 1\n\ndata: {\"gap\":{}}\r\n\r\n\
            event: fanwave-gap\n\ndata: 2\n\n";
        for piece in [1, 5, stream.len()] {
            let mut splitter = splitter();
            let mut gaps = Vec::new();
            for bytes in stream.chunks(piece) {
                splitter.feed(bytes, |event| gaps.push(event.gap)).expect("SSE never fails");
            }
            assert_eq!(gaps, [true, false, true, false], "pieces of {piece}");
        }
    }
}

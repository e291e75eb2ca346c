//! Where the events end in a stream of bytes, for each protocol that a receiver speaks.
//!
//! A splitter is fed whatever arrived and tells, for each event that ended, how many of these bytes it took up to
//! and including the event's last byte, and the stamp it carried. It keeps a bounded prefix of the current event and
//! nothing else: the cost of an event does not depend on what came before. No I/O, no clock.

use memchr::memchr;
use serde::{Deserialize, Serialize};

use crate::stamp::{STAMP_BYTES, Stamp};

/// What a connection speaks after its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Server-Sent Events (WHATWG HTML §9.2).
    Sse,
    /// WebSocket (RFC 6455), server to client.
    Ws,
    /// The floor: frames of one fixed length, no protocol.
    #[value(skip)]
    Raw,
}

impl Protocol {
    /// The word in tables and reports.
    pub fn label(self) -> &'static str {
        match self {
            Protocol::Sse => "sse",
            Protocol::Ws => "ws",
            Protocol::Raw => "raw",
        }
    }
}

/// An event that ended within the bytes just fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventEnd {
    /// Bytes of this feed up to and including the last one of the event. 0 < at <= bytes.len().
    pub at: usize,
    /// What the payload carried at its start.
    pub stamp: Option<Stamp>,
}

/// The splitter of one connection.
#[derive(Debug)]
pub enum Splitter {
    /// Server-Sent Events.
    Sse(SseSplitter),
    /// WebSocket.
    Ws(WsSplitter),
    /// Fixed length.
    Raw(RawSplitter),
}

impl Splitter {
    /// A splitter at the first byte after the handshake. `raw_frame_bytes` is the frame length of [`Protocol::Raw`].
    pub fn new(protocol: Protocol, raw_frame_bytes: usize) -> Splitter {
        match protocol {
            Protocol::Sse => Splitter::Sse(SseSplitter::default()),
            Protocol::Ws => Splitter::Ws(WsSplitter::default()),
            Protocol::Raw => Splitter::Raw(RawSplitter { frame_bytes: raw_frame_bytes.max(1), taken: 0 }),
        }
    }

    /// Takes the bytes that arrived next. An error means that the server broke the protocol or hung up within it.
    pub fn feed(&mut self, bytes: &[u8], on_event: impl FnMut(EventEnd)) -> Result<(), String> {
        match self {
            Splitter::Sse(splitter) => {
                splitter.feed(bytes, on_event);
                Ok(())
            }
            Splitter::Ws(splitter) => splitter.feed(bytes, on_event),
            Splitter::Raw(splitter) => {
                splitter.feed(bytes, on_event);
                Ok(())
            }
        }
    }
}

/// Prefix of a line that is kept: `data: ` and a stamp, with a margin.
const LINE_PREFIX_BYTES: usize = 48;

/// Splits an event stream at its blank lines. Lines end in LF or CRLF; blocks without `data` are no events.
#[derive(Debug)]
pub struct SseSplitter {
    prefix: [u8; LINE_PREFIX_BYTES],
    /// Bytes of the current line so far, its end excluded; the prefix holds the first of them.
    line_bytes: usize,
    /// True once the current block has a `data` line.
    has_data: bool,
    stamp: Option<Stamp>,
}

impl Default for SseSplitter {
    fn default() -> SseSplitter {
        SseSplitter { prefix: [0; LINE_PREFIX_BYTES], line_bytes: 0, has_data: false, stamp: None }
    }
}

impl SseSplitter {
    fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) {
        let mut at = 0;
        while let Some(length) = memchr(b'\n', &bytes[at..]) {
            self.keep(&bytes[at..at + length]);
            at += length + 1;
            if self.line_ends() {
                on_event(EventEnd { at, stamp: self.stamp.take() });
                self.has_data = false;
            }
        }
        self.keep(&bytes[at..]);
    }

    fn keep(&mut self, part: &[u8]) {
        if self.line_bytes < LINE_PREFIX_BYTES {
            let room = LINE_PREFIX_BYTES - self.line_bytes;
            let part = &part[..part.len().min(room)];
            self.prefix[self.line_bytes..self.line_bytes + part.len()].copy_from_slice(part);
        }
        self.line_bytes += part.len();
    }

    /// True if the line that ends here ends an event.
    fn line_ends(&mut self) -> bool {
        let kept = &self.prefix[..self.line_bytes.min(LINE_PREFIX_BYTES)];
        let blank = self.line_bytes == 0 || (self.line_bytes == 1 && kept[0] == b'\r');
        self.line_bytes = 0;
        if blank {
            return self.has_data;
        }
        if let Some(data) = kept.strip_prefix(b"data:") {
            if !self.has_data {
                self.stamp = Stamp::read(data.strip_prefix(b" ").unwrap_or(data));
            }
            self.has_data = true;
        }
        false
    }
}

/// Splits server frames into messages (RFC 6455 §5.2). Control frames are passed over; a close frame is an error.
#[derive(Debug)]
pub struct WsSplitter {
    /// The header of the current frame as far as it has arrived: 2, 4 or 10 bytes.
    header: [u8; 10],
    header_bytes: usize,
    /// Payload bytes of the current frame still to come; meaningful once its header is complete.
    payload_left: u64,
    /// True from the end of a frame's header to the end of its payload.
    in_payload: bool,
    /// The first bytes of the current message, or of a control frame.
    prefix: [u8; STAMP_BYTES],
    prefix_bytes: usize,
    /// What was kept of a message while a control frame stands between its fragments.
    set_aside: Option<([u8; STAMP_BYTES], usize)>,
}

impl Default for WsSplitter {
    fn default() -> WsSplitter {
        WsSplitter {
            header: [0; 10],
            header_bytes: 0,
            payload_left: 0,
            in_payload: false,
            prefix: [0; STAMP_BYTES],
            prefix_bytes: 0,
            set_aside: None,
        }
    }
}

impl WsSplitter {
    fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) -> Result<(), String> {
        let mut at = 0;
        loop {
            if !self.in_payload {
                if at == bytes.len() {
                    return Ok(());
                }
                self.header[self.header_bytes] = bytes[at];
                self.header_bytes += 1;
                at += 1;
                self.header_grew()?;
            }
            if self.in_payload {
                let here = self.payload_left.min((bytes.len() - at) as u64) as usize;
                let kept = here.min(STAMP_BYTES - self.prefix_bytes);
                self.prefix[self.prefix_bytes..self.prefix_bytes + kept]
                    .copy_from_slice(&bytes[at..at + kept]);
                self.prefix_bytes += kept;
                self.payload_left -= here as u64;
                at += here;
                if self.payload_left > 0 {
                    return Ok(());
                }
                if let Some(stamp) = self.frame_ends()? {
                    on_event(EventEnd { at, stamp });
                }
            }
        }
    }

    fn is_control(&self) -> bool {
        self.header[0] & 0x08 != 0
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
        self.payload_left = match (self.header[1], self.header_bytes) {
            (126, 4) => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            (127, 10) => u64::from_be_bytes(self.header[2..10].try_into().expect("eight bytes")),
            (126 | 127, _) => return Ok(()),
            (length, _) => u64::from(length),
        };
        self.header_bytes = 0;
        self.in_payload = true;
        if self.is_control() {
            self.set_aside = Some((self.prefix, self.prefix_bytes));
            self.prefix_bytes = 0;
        }
        Ok(())
    }

    /// `Some` if a whole message ends here, with its stamp if it has one.
    fn frame_ends(&mut self) -> Result<Option<Option<Stamp>>, String> {
        self.in_payload = false;
        if self.is_control() {
            if self.header[0] & 0x0f == 8 {
                return Err(close_reason(&self.prefix[..self.prefix_bytes]));
            }
            if let Some((prefix, prefix_bytes)) = self.set_aside.take() {
                self.prefix = prefix;
                self.prefix_bytes = prefix_bytes;
            }
            return Ok(None);
        }
        if self.header[0] & 0x80 == 0 {
            return Ok(None);
        }
        let stamp = Stamp::read(&self.prefix[..self.prefix_bytes]);
        self.prefix_bytes = 0;
        Ok(Some(stamp))
    }
}

fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, text @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            format!("the server closed the WebSocket: {code} {}", String::from_utf8_lossy(text))
                .trim_end()
                .into()
        }
        _ => "the server closed the WebSocket without a code".into(),
    }
}

/// Splits a stream into frames of one length. Frames carry no stamp.
#[derive(Debug)]
pub struct RawSplitter {
    frame_bytes: usize,
    /// 0 <= taken < frame_bytes.
    taken: usize,
}

impl RawSplitter {
    fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) {
        let mut at = 0;
        while bytes.len() - at >= self.frame_bytes - self.taken {
            at += self.frame_bytes - self.taken;
            self.taken = 0;
            on_event(EventEnd { at, stamp: None });
        }
        self.taken += bytes.len() - at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(sequence: u64, bytes: usize) -> Vec<u8> {
        let mut payload = vec![b'x'; bytes];
        Stamp { sequence, time_ns: 9 }.write(&mut payload);
        payload
    }

    fn ws_frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(length as u8),
            length @ 126..65_536 => {
                frame.push(126);
                frame.extend((length as u16).to_be_bytes());
            }
            length => {
                frame.push(127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        frame
    }

    /// Feeds `stream` in pieces of `piece` bytes; gives the absolute end and the sequence of each event.
    fn split(protocol: Protocol, stream: &[u8], piece: usize) -> Result<Vec<(usize, Option<u64>)>, String> {
        let mut splitter = Splitter::new(protocol, 10);
        let mut events = Vec::new();
        let mut base = 0;
        for bytes in stream.chunks(piece) {
            splitter.feed(bytes, |event| {
                events.push((base + event.at, event.stamp.map(|stamp| stamp.sequence)))
            })?;
            base += bytes.len();
        }
        Ok(events)
    }

    #[test]
    fn sse_events_end_at_their_blank_line_however_the_bytes_arrive() {
        let mut stream = b": hello\n\nretry: 5\n\n".to_vec();
        let mut ends = Vec::new();
        for (sequence, end) in [(1, "\n"), (2, "\r\n"), (3, "\n")] {
            let data = String::from_utf8(payload(sequence, 100)).expect("ASCII");
            stream.extend(format!("id: a-{sequence}{end}data: {data}{end}data: more{end}{end}").into_bytes());
            ends.push((stream.len(), Some(sequence)));
        }
        stream.extend(b"data:foreign\n\n");
        ends.push((stream.len(), None));
        for piece in [1, 2, 3, 7, 64, stream.len()] {
            assert_eq!(split(Protocol::Sse, &stream, piece).as_ref(), Ok(&ends), "pieces of {piece}");
        }
    }

    #[test]
    fn websocket_messages_end_at_their_final_frame_however_the_bytes_arrive() {
        let mut stream = ws_frame(0x89, b"ping");
        let mut ends = Vec::new();
        for (sequence, bytes) in [(1, 100), (2, 200), (3, 70_000)] {
            stream.extend(ws_frame(0x81, &payload(sequence, bytes)));
            ends.push((stream.len(), Some(sequence)));
        }
        let fragmented = payload(4, 60);
        stream.extend(ws_frame(0x01, &fragmented[..20]));
        stream.extend(ws_frame(0x89, b"between"));
        stream.extend(ws_frame(0x80, &fragmented[20..]));
        ends.push((stream.len(), Some(4)));
        stream.extend(ws_frame(0x82, b""));
        ends.push((stream.len(), None));
        for piece in [1, 2, 3, 7, 4_096, stream.len()] {
            assert_eq!(split(Protocol::Ws, &stream, piece).as_ref(), Ok(&ends), "pieces of {piece}");
        }
    }

    #[test]
    fn a_websocket_close_and_a_masked_frame_are_told() {
        let closed = split(Protocol::Ws, &ws_frame(0x88, b"\x03\xf5slow"), 1).expect_err("closed");
        assert!(closed.contains("1013 slow"), "{closed}");
        assert!(split(Protocol::Ws, &[0x81, 0x81], 1).expect_err("masked").contains("masked"));
        assert!(split(Protocol::Ws, &[0xc1, 0x01], 1).expect_err("reserved").contains("reserved"));
    }

    #[test]
    fn raw_frames_end_every_so_many_bytes() {
        for piece in [1, 3, 10, 11, 35] {
            let events = split(Protocol::Raw, &[0; 35], piece).expect("raw never fails");
            assert_eq!(events, [(10, None), (20, None), (30, None)]);
        }
    }
}

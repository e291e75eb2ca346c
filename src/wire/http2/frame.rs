//! Frames (RFC 9113 §4.1, §6): their headers, and the short ones that we send.

use super::ErrorCode;

/// Bytes of a frame's header.
pub const HEADER: usize = 9;

/// Where its type stands in it.
pub const KIND_AT: usize = 3;

/// Payload bytes of a frame that everybody takes (RFC 9113 §4.2). We take no more.
pub const PAYLOAD_MAX: usize = 1 << 14;

/// The largest window (RFC 9113 §6.9.1).
pub const WINDOW_MAX: i64 = (1 << 31) - 1;

/// A window before anybody has said anything of it (RFC 9113 §6.9.2).
pub const WINDOW: u32 = 65_535;

/// Types of frames (RFC 9113 §6).
pub mod kind {
    /// What a request or an answer holds.
    pub const DATA: u8 = 0;
    /// The begin of a block of fields.
    pub const HEADERS: u8 = 1;
    /// Which streams are dearer to a client; it is read over.
    pub const PRIORITY: u8 = 2;
    /// The end of a stream that nothing more is heard of.
    pub const RST_STREAM: u8 = 3;
    /// What the other side has to know.
    pub const SETTINGS: u8 = 4;
    /// A promised answer, which no client may send.
    pub const PUSH_PROMISE: u8 = 5;
    /// A sign of life.
    pub const PING: u8 = 6;
    /// A farewell.
    pub const GOAWAY: u8 = 7;
    /// More room in a window.
    pub const WINDOW_UPDATE: u8 = 8;
    /// More of a block of fields.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// Of DATA and HEADERS: the sender says no more on this stream.
    pub const END_STREAM: u8 = 1;
    /// Of SETTINGS and PING: an answer.
    pub const ACK: u8 = 1;
    /// Of HEADERS and CONTINUATION: the block of fields is whole.
    pub const END_HEADERS: u8 = 4;
    /// Of DATA and HEADERS: padding follows.
    pub const PADDED: u8 = 8;
    /// Of HEADERS: what stood for a priority stands before the fields.
    pub const PRIORITY: u8 = 32;
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes behind the header, below 2^24.
    pub length: usize,
    /// Which type.
    pub kind: u8,
    /// Flags of that type.
    pub flags: u8,
    /// Which stream, 0 for the connection.
    pub stream: u32,
}

impl Header {
    /// Reads one.
    pub fn read(bytes: [u8; HEADER]) -> Header {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        Header {
            length: u32::from_be_bytes([0, a, b, c]) as usize,
            kind,
            flags,
            // The highest bit has no meaning.
            stream: u32::from_be_bytes(stream) & !(1 << 31),
        }
    }

    /// The bytes of it.
    #[inline]
    pub fn bytes(self) -> [u8; HEADER] {
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        let [d, e, f, g] = self.stream.to_be_bytes();
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    /// True if this flag is set.
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A frame of any type.
pub fn push(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&Header { length: payload.len(), kind, flags, stream }.bytes());
    out.extend_from_slice(payload);
}

/// The end of a stream, in the middle of it.
pub fn push_reset(out: &mut Vec<u8>, stream: u32, code: ErrorCode) {
    push(out, kind::RST_STREAM, 0, stream, &(code as u32).to_be_bytes());
}

/// A farewell: streams up to `last` were looked at.
pub fn push_goaway(out: &mut Vec<u8>, last: u32, code: ErrorCode) {
    let [a, b, c, d] = last.to_be_bytes();
    let [e, f, g, h] = (code as u32).to_be_bytes();
    push(out, kind::GOAWAY, 0, 0, &[a, b, c, d, e, f, g, h]);
}

/// So many more bytes may be sent to us.
pub fn push_window_update(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    push(out, kind::WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
}

/// What stands between padding and priority, of the payload of DATA or HEADERS; `None` if it is
/// padded with more than there is (RFC 9113 §6.1, §6.2).
pub fn without_padding(header: Header, payload: &[u8]) -> Option<&[u8]> {
    let (padding, mut inner) = match header.has(flag::PADDED) {
        true => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
        false => (0, payload),
    };
    if header.kind == kind::HEADERS && header.has(flag::PRIORITY) {
        inner = inner.get(5..)?;
    }
    inner.get(..inner.len().checked_sub(padding)?)
}

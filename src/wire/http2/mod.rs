//! HTTP/2 (RFC 9113) and its compression of header fields (RFC 7541), as bytes: frames, fields, a
//! request as a head of HTTP/1, a head of HTTP/1 as a block of fields. No I/O, no clock, and no
//! state but the table of fields that a client fills.
//!
//! The parts: `frame` (headers of frames, and the frames that we send), `settings`, `huffman`,
//! `hpack` (blocks of fields), `request`, `response`. What a connection remembers, and when it has
//! said enough, is in the room `http2`.

use crate::close::CloseReason;

pub mod frame;
pub mod hpack;
mod huffman;
pub mod request;
pub mod response;
pub mod settings;

#[cfg(test)]
mod tests;

/// What a client of HTTP/2 says first (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// True if `bytes` are the preface, as far as they go, and not the begin of anything else.
pub fn begins_preface(bytes: &[u8]) -> bool {
    let both = bytes.len().min(PREFACE.len());
    !bytes.is_empty() && bytes[..both] == PREFACE[..both]
}

/// Error codes (RFC 9113 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// An end in order.
    NoError = 0,
    /// A frame, or a request, is not as the standard wants it.
    Protocol = 1,
    /// More was sent than there was room for, or a window grew too large.
    FlowControl = 3,
    /// A frame came for a stream that the client had ended.
    StreamClosed = 5,
    /// A frame has a size that its type does not allow.
    FrameSize = 6,
    /// The request was not looked at, and may be asked again.
    Refused = 7,
    /// The stream is not needed any more, or we cannot go on with it.
    Cancel = 8,
    /// A block of fields cannot be read.
    Compression = 9,
    /// More work was asked for than is reasonable.
    EnhanceYourCalm = 11,
}

/// What a client did wrong: why its stream, or all of its connection, comes to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What it is counted as.
    pub reason: CloseReason,
    /// What the client is told.
    pub code: ErrorCode,
}

impl Fault {
    const fn new(reason: CloseReason, code: ErrorCode) -> Fault {
        Fault { reason, code }
    }

    /// Against the standard in any way that has no word of its own.
    pub const PROTOCOL: Fault = Fault::new(CloseReason::H2Protocol, ErrorCode::Protocol);
    /// A frame for a stream that the client had ended.
    pub const STREAM_CLOSED: Fault = Fault::new(CloseReason::H2StreamClosed, ErrorCode::StreamClosed);
    /// A size that a frame of its type may not have.
    pub const FRAME_SIZE: Fault = Fault::new(CloseReason::H2FrameSize, ErrorCode::FrameSize);
    /// More than a window allows, or a window beyond 2^31 - 1.
    pub const FLOW_CONTROL: Fault = Fault::new(CloseReason::H2FlowControl, ErrorCode::FlowControl);
    /// A block of fields that cannot be read.
    pub const COMPRESSION: Fault = Fault::new(CloseReason::H2Compression, ErrorCode::Compression);
    /// More streams at a time than were offered, or one behind our farewell.
    pub const REFUSED: Fault = Fault::new(CloseReason::H2RefusedStream, ErrorCode::Refused);
    /// Requests that are reset as soon as they are asked (CVE-2023-44487).
    pub const RESETS: Fault = Fault::calm(CloseReason::H2Resets);
    /// A block of fields in too many frames, or of too many bytes.
    pub const CONTINUATIONS: Fault = Fault::calm(CloseReason::H2Continuations);
    /// Too many SETTINGS.
    pub const SETTINGS: Fault = Fault::calm(CloseReason::H2Settings);
    /// Too many pings.
    pub const PINGS: Fault = Fault::calm(CloseReason::H2Pings);
    /// Too many frames that say nothing.
    pub const EMPTY_FRAMES: Fault = Fault::calm(CloseReason::H2EmptyFrames);
    /// Too many updates of windows.
    pub const WINDOW_UPDATES: Fault = Fault::calm(CloseReason::H2WindowUpdates);
    /// A few bytes that stand for very many bytes of fields.
    pub const FIELD_BOMB: Fault = Fault::calm(CloseReason::H2FieldBomb);
    /// A frame, or a block of fields, that does not come to its end.
    pub const TOO_SLOW: Fault = Fault::calm(CloseReason::HandshakeTimeout);

    /// A client that reads nothing.
    pub const STALLED: Fault = Fault::new(CloseReason::Stalled, ErrorCode::Cancel);

    const fn calm(reason: CloseReason) -> Fault {
        Fault::new(reason, ErrorCode::EnhanceYourCalm)
    }
}

//! Bytes of the protocols: pure functions and small state machines, no I/O, no clock.

use bytes::Bytes;

use crate::event::{Epoch, Event};

pub mod gap;
pub mod http;
pub mod sse;
pub mod sse_parser;
pub mod websocket;

/// How the wire bytes of an event look. An open set: compressed forms and the JSON envelope come later.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Format {
    /// `text/event-stream` (WHATWG HTML §9.2).
    Sse = 0,
    /// One WebSocket message per event, its payload the event's data (RFC 6455 §5).
    WebSocket = 1,
}

impl Format {
    /// How many formats there are; arrays by format have this length.
    pub const COUNT: usize = 2;
    /// Every format, by index.
    pub const ALL: [Format; Format::COUNT] = [Format::Sse, Format::WebSocket];

    /// The index into arrays by format.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The label of this format in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Format::Sse => "sse",
            Format::WebSocket => "websocket",
        }
    }

    /// The most bytes that the frame of `event` may have, whatever its sequence. Takes a look at the data.
    pub fn frame_bytes_max(self, event: &Event) -> usize {
        match self {
            Format::Sse => sse::frame_bytes_max(event),
            Format::WebSocket => websocket::frame_bytes_max(event),
        }
    }

    /// The frame of one event: its wire bytes in this format.
    pub fn encode(self, event: &Event, epoch: Epoch, sequence: u64) -> Bytes {
        match self {
            Format::Sse => sse::encode_event(event, epoch, sequence),
            Format::WebSocket => websocket::encode_event(event),
        }
    }
}

//! The table of formats: how events, signs of life, notices and ends look on a connection. An open
//! set: compressed forms come later.
//!
//! Everything that depends on the format of a subscriber is a field of [`FormatSpec`], so that a
//! new [`Format`] does not compile before its row says all of it. What is counted and told to
//! operators depends on the [`Family`] alone.
//!
//! Not here: the heads of answers (`http`), whose lines depend on the request.

use bytes::Bytes;

use super::gap::Gap;
use super::{chunked, json, sse, websocket};
use crate::event::{Epoch, Event, EventId};

/// The protocol of a subscriber, as operators count it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Family {
    /// `text/event-stream` (WHATWG HTML §9.2).
    EventStream = 0,
    /// WebSocket (RFC 6455).
    WebSocket = 1,
}

impl Family {
    /// How many families there are; arrays by family have this length.
    pub const COUNT: usize = 2;
    /// Every family, by index.
    pub const ALL: [Family; Family::COUNT] = [Family::EventStream, Family::WebSocket];

    /// The index into arrays by family.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The label of this family in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Family::EventStream => "sse",
            Family::WebSocket => "websocket",
        }
    }
}

/// How the wire bytes of a subscriber look.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Format {
    /// An event stream that ends with its connection, for clients of HTTP/1.0.
    Sse = 0,
    /// An event stream in chunks, one per event (RFC 9112 §7.1).
    SseChunked = 1,
    /// One WebSocket message per event, its payload the event's data (RFC 6455 §5).
    WebSocket = 2,
    /// `fanwave.v1.json`: one WebSocket text message per event, a JSON object with all that the
    /// publisher said.
    Json = 3,
}

/// One row of the table.
#[derive(Debug)]
pub struct FormatSpec {
    /// The format of this row.
    pub format: Format,
    /// The protocol.
    pub family: Family,
    /// Where the frame of an event comes from.
    pub frame: Frame,
    /// A sign of life on an idle connection.
    pub heartbeat: &'static [u8],
    /// The client owes an answer to a sign of life.
    pub heartbeat_is_answered: bool,
    /// What a stream begins with, with the id of where it begins, if the client is to be given one.
    pub opening: Option<fn(Option<EventId>) -> Bytes>,
    /// The notice of a gap.
    pub gap: fn(&Gap) -> Bytes,
    /// Asks the client to come back after so many milliseconds, before an orderly end.
    pub come_back: Option<fn(u32) -> Bytes>,
    /// The last words of an orderly end, with the close code of its reason, if it has one, and a
    /// detail; may be empty.
    pub close: fn(Option<u16>, &str) -> Bytes,
}

/// What the hub gives an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Given {
    /// The process that gives the sequence.
    pub epoch: Epoch,
    /// The hub's number of the event.
    pub sequence: u64,
    /// Milliseconds since 1970 at the intake.
    pub unix_ms: u64,
}

/// Where the frame of an event comes from.
#[derive(Debug)]
pub enum Frame {
    /// It is made, and takes memory of its own.
    Made {
        /// Which of an event's cells holds it.
        cell: usize,
        /// An event counts it and keeps it only if it came while this format had subscribers. Of
        /// others the frame is made for each batch that needs it, as for a subscriber that resumes.
        is_rare: bool,
        /// Makes it.
        encode: fn(&Event, &Given) -> Bytes,
        /// The most bytes that it may have, whatever the sequence is. Takes a look at the data.
        bytes_max: fn(&Event) -> usize,
    },
    /// It is a part of the frame in another format, and takes none.
    Within {
        /// The other format.
        format: Format,
        /// Cuts it out.
        cut: fn(&Bytes) -> Bytes,
    },
}

/// The rows, by index.
static TABLE: [FormatSpec; Format::COUNT] = [
    FormatSpec {
        format: Format::Sse,
        family: Family::EventStream,
        frame: Frame::Within { format: Format::SseChunked, cut: chunked::content },
        heartbeat: sse::HEARTBEAT,
        heartbeat_is_answered: false,
        opening: Some(sse::opening),
        gap: sse::gap_notice,
        come_back: Some(sse::retry),
        close: |_, _| Bytes::new(),
    },
    FormatSpec {
        format: Format::SseChunked,
        family: Family::EventStream,
        frame: Frame::Made {
            cell: 0,
            is_rare: false,
            encode: |event, given| chunked::encode_event(event, given.epoch, given.sequence),
            bytes_max: chunked::frame_bytes_max,
        },
        heartbeat: chunked::HEARTBEAT,
        heartbeat_is_answered: false,
        opening: Some(|at| chunked::chunk(&sse::opening(at))),
        gap: |gap| chunked::chunk(&sse::gap_notice(gap)),
        come_back: Some(|ms| chunked::chunk(&sse::retry(ms))),
        close: |_, _| Bytes::from_static(chunked::LAST_CHUNK),
    },
    FormatSpec {
        format: Format::WebSocket,
        family: Family::WebSocket,
        frame: Frame::Made {
            cell: 1,
            is_rare: false,
            encode: |event, _| websocket::encode_event(event),
            bytes_max: websocket::frame_bytes_max,
        },
        heartbeat: websocket::PING,
        heartbeat_is_answered: true,
        opening: None,
        gap: |gap| websocket::text_frame(&gap.json()).into(),
        come_back: None,
        close: websocket_close,
    },
    FormatSpec {
        format: Format::Json,
        family: Family::WebSocket,
        frame: Frame::Made {
            cell: 2,
            is_rare: true,
            encode: json::encode_event,
            bytes_max: json::frame_bytes_max,
        },
        heartbeat: websocket::PING,
        heartbeat_is_answered: true,
        opening: None,
        gap: |gap| websocket::text_frame(&gap.json()).into(),
        come_back: None,
        close: websocket_close,
    },
];

fn websocket_close(code: Option<u16>, detail: &str) -> Bytes {
    code.map_or(Bytes::new(), |code| websocket::close_frame(code, detail).into())
}

impl Format {
    /// How many formats there are; arrays by format have this length.
    pub const COUNT: usize = 4;
    /// Formats whose frames take memory of their own.
    pub const MADE: usize = 3;
    /// Those of them that every event keeps.
    pub const KEPT: usize = 2;
    /// Every format, by index.
    pub const ALL: [Format; Format::COUNT] =
        [Format::Sse, Format::SseChunked, Format::WebSocket, Format::Json];

    /// The index into arrays by format.
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }

    /// Its row in the table.
    #[inline]
    pub fn spec(self) -> &'static FormatSpec {
        &TABLE[self as usize]
    }

    /// Its protocol.
    #[inline]
    pub fn family(self) -> Family {
        self.spec().family
    }

    /// True if events keep its frame only where it has subscribers as they come.
    pub fn is_rare(self) -> bool {
        matches!(self.spec().frame, Frame::Made { is_rare: true, .. })
    }

    /// The most memory that the frame of `event` may take, whatever its sequence. Takes a look at
    /// the data.
    pub fn frame_bytes_max(self, event: &Event) -> usize {
        match self.spec().frame {
            Frame::Made { bytes_max, .. } => bytes_max(event),
            Frame::Within { .. } => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_formats() {
        for format in Format::ALL {
            assert_eq!((format.spec().format, format.index()), (format, format as usize));
        }
        let cell = |format: &Format| match format.spec().frame {
            Frame::Made { cell, .. } => Some(cell),
            Frame::Within { .. } => None,
        };
        let cells: Vec<usize> = Format::ALL.iter().filter_map(cell).collect();
        assert_eq!(Format::KEPT, Format::MADE - Format::ALL.iter().filter(|format| format.is_rare()).count());
        assert_eq!(cells, (0..Format::MADE).collect::<Vec<_>>(), "each has a cell of its own");
        for (at, family) in Family::ALL.into_iter().enumerate() {
            assert_eq!(family.index(), at);
            assert!(Format::ALL.iter().any(|format| format.family() == family));
        }
    }
}

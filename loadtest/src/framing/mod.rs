//! Where the events end in a stream of bytes, for each protocol that a receiver speaks.
//!
//! A splitter is fed whatever arrived and tells, for each event that ended, how many of these bytes
//! it took up to and including the event's last byte, the stamp it carried, and whether it is a
//! notice that events are missing. It keeps a bounded prefix of the current event and nothing else:
//! the cost of an event does not depend on what came before. No I/O, no clock: pings are counted,
//! and their answers given as bytes for the caller to send.

use serde::{Deserialize, Serialize};

use crate::stamp::Stamp;

pub mod chunked;
pub mod http2;
pub mod json;
pub mod nats;
mod sse;
pub mod websocket;

use chunked::Chunks;
use json::JsonSplitter;
use nats::NatsSplitter;
use sse::SseSplitter;
use websocket::WsSplitter;

/// What a connection speaks after its handshake.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Server-Sent Events (WHATWG HTML §9.2).
    #[default]
    Sse,
    /// WebSocket (RFC 6455), server to client.
    Ws,
    /// Events and commands as JSON over WebSocket (`fanwave.v1.json`).
    Json,
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
            Protocol::Json => "json",
            Protocol::Raw => "raw",
        }
    }
}

/// What flows over a server's connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// A message is an event's data.
    #[default]
    Plain,
    /// The same, and where an event stream comes in chunks, each event is one: all connections get
    /// the same bytes.
    Fanwave,
    /// The NATS client protocol in binary messages; a subscriber sends CONNECT and SUB and answers
    /// PING.
    Nats,
}

/// True if all connections of a topic receive the same bytes, so that arrival may be counted in
/// bytes. Where the server cuts its stream into frames as it likes, and says other things in
/// between, only events count; so they do where it cuts an event stream into chunks, which only its
/// response head tells.
pub fn same_bytes_everywhere(protocol: Protocol, dialect: Dialect) -> bool {
    !(protocol == Protocol::Ws && dialect == Dialect::Nats)
}

/// An event that ended within the bytes just fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventEnd {
    /// Bytes of this feed up to and including the last one of the event. 0 < at <= bytes.len().
    pub at: usize,
    /// What the payload carried at its start.
    pub stamp: Option<Stamp>,
    /// True for the server's notice that events are missing: SSE event `fanwave-gap`, or data that
    /// begins `{"gap":`.
    pub gap: bool,
}

/// What else was in the bytes just fed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fed {
    /// Pings that want an answer: send what [`Splitter::answers`] gives.
    pub pings: u32,
    /// `PONG` of the NATS protocol, or answers to commands of the JSON protocol.
    pub pongs: u32,
}

/// The start of a gap notice's data.
const GAP_DATA: &[u8] = b"{\"gap\":";

/// The splitter of one connection.
#[derive(Debug)]
pub enum Splitter {
    /// Server-Sent Events.
    Sse(SseSplitter),
    /// Server-Sent Events in chunks.
    ChunkedSse(Chunks, SseSplitter),
    /// WebSocket; a message is an event.
    Ws(WsSplitter),
    /// The JSON protocol.
    Json(JsonSplitter),
    /// The NATS client protocol in WebSocket messages.
    Nats(NatsSplitter),
    /// Fixed length.
    Raw(RawSplitter),
}

impl Splitter {
    /// A splitter at the first byte after the handshake. `dialect` matters to [`Protocol::Ws`]
    /// alone, `raw_frame_bytes` is the frame length of [`Protocol::Raw`].
    pub fn new(protocol: Protocol, dialect: Dialect, raw_frame_bytes: usize) -> Splitter {
        match (protocol, dialect) {
            (Protocol::Sse, _) => Splitter::Sse(SseSplitter::default()),
            (Protocol::Ws, Dialect::Plain | Dialect::Fanwave) => Splitter::Ws(WsSplitter::default()),
            (Protocol::Json, _) => Splitter::Json(JsonSplitter::default()),
            (Protocol::Ws, Dialect::Nats) => Splitter::Nats(NatsSplitter::default()),
            (Protocol::Raw, _) => {
                Splitter::Raw(RawSplitter { frame_bytes: raw_frame_bytes.max(1), taken: 0 })
            }
        }
    }

    /// A splitter of an event stream in chunks, at the first byte after the handshake.
    pub fn in_chunks() -> Splitter {
        Splitter::ChunkedSse(Chunks::default(), SseSplitter::default())
    }

    /// Takes the bytes that arrived next. An error means that the server broke the protocol, said
    /// that it failed, or hung up within it.
    pub fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) -> Result<Fed, String> {
        match self {
            Splitter::Sse(splitter) => splitter.feed(bytes, on_event),
            Splitter::ChunkedSse(chunks, splitter) => {
                let mut at = 0;
                while let Some(data) = chunks.next(bytes, &mut at)? {
                    let start = data.start;
                    splitter.feed(&bytes[data], |event| on_event(EventEnd { at: start + event.at, ..event }));
                }
            }
            Splitter::Ws(splitter) => return splitter.feed(bytes, on_event),
            Splitter::Json(splitter) => return splitter.feed(bytes, on_event),
            Splitter::Nats(splitter) => return splitter.feed(bytes, on_event),
            Splitter::Raw(splitter) => splitter.feed(bytes, on_event),
        }
        Ok(Fed::default())
    }

    /// The bytes that answer the pings fed since the last call; empty if there were none.
    pub fn answers(&mut self) -> Vec<u8> {
        match self {
            Splitter::Ws(splitter) => splitter.answers(),
            Splitter::Json(splitter) => splitter.answers(),
            Splitter::Nats(splitter) => splitter.answers(),
            Splitter::Sse(_) | Splitter::ChunkedSse(..) | Splitter::Raw(_) => Vec::new(),
        }
    }

    /// The `id` in force at the end of the last whole event, as `Last-Event-ID` wants it; empty if
    /// there is none.
    pub fn last_id(&self) -> &[u8] {
        match self {
            Splitter::Sse(splitter) | Splitter::ChunkedSse(_, splitter) => splitter.last_id(),
            Splitter::Json(splitter) => splitter.last_id(),
            _ => &[],
        }
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
            on_event(EventEnd { at, stamp: None, gap: false });
        }
        self.taken += bytes.len() - at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A payload of `bytes` bytes with a stamp.
    pub fn payload(sequence: u64, bytes: usize) -> Vec<u8> {
        let mut payload = vec![b'x'; bytes];
        Stamp { sequence, time_ns: 9 }.write(&mut payload);
        payload
    }

    /// Feeds `stream` in pieces of `piece` bytes; gives the absolute end and the sequence of each
    /// event.
    pub fn split(
        splitter: &mut Splitter,
        stream: &[u8],
        piece: usize,
    ) -> Result<Vec<(usize, Option<u64>)>, String> {
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
    fn raw_frames_end_every_so_many_bytes() {
        for piece in [1, 3, 10, 11, 35] {
            let mut splitter = Splitter::new(Protocol::Raw, Dialect::Plain, 10);
            let events = split(&mut splitter, &[0; 35], piece).expect("raw never fails");
            assert_eq!(events, [(10, None), (20, None), (30, None)]);
        }
    }

    #[test]
    fn events_in_chunks_are_those_without_wherever_the_chunks_are_cut() {
        let mut stream = Vec::new();
        for sequence in 1..=3 {
            let data = String::from_utf8(payload(sequence, 90)).expect("ASCII");
            stream.extend(format!("id: a-{sequence}\ndata: {data}\n\n").into_bytes());
        }
        for chunk in [1, 10, 16, 100, stream.len()] {
            let mut coded = Vec::new();
            for data in stream.chunks(chunk) {
                coded.extend(format!("{:x}\r\n", data.len()).into_bytes());
                coded.extend([data, b"\r\n"].concat());
            }
            for piece in [1, 9, coded.len()] {
                let mut splitter = Splitter::in_chunks();
                let events = split(&mut splitter, &coded, piece).expect("whole chunks");
                assert_eq!(
                    events.iter().map(|event| event.1).collect::<Vec<_>>(),
                    [Some(1), Some(2), Some(3)]
                );
                assert!(events.iter().all(|&(end, _)| coded[end - 1] == b'\n'), "{events:?}");
                assert_eq!(splitter.last_id(), b"a-3");
            }
        }
    }

    #[test]
    fn bytes_count_as_arrival_everywhere_but_on_nats() {
        assert!(same_bytes_everywhere(Protocol::Sse, Dialect::Nats));
        assert!(same_bytes_everywhere(Protocol::Ws, Dialect::Plain));
        assert!(!same_bytes_everywhere(Protocol::Ws, Dialect::Nats));
    }
}

//! Ends of connections of HTTP/2, and of their streams.

use super::*;
use crate::http2::tests::h2::{Client, block, frame_of};

/// What a client of HTTP/2 says, and what it is told.
struct Carried {
    case: Case,
    slot: Slot,
    client: Client,
}

impl Carried {
    fn new() -> Carried {
        let (mut case, mut client) = (Case::new(), Client::default());
        let slot = case.connect(client.hello(&[]));
        Carried { case, slot, client }
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.case.shard.ring_mut().inner_mut().peer_sends(self.slot, bytes.as_ref());
        self.case.turns();
        let heard = self.case.shard.ring_mut().inner_mut().peer_takes(self.slot);
        self.client.hear(&heard);
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.case.shard.metrics().closed[reason.index()]
    }

    /// The connection ends for this reason, and its client is told this code.
    fn see(mut self, reason: CloseReason, code: u32) -> Seen {
        self.say([]);
        assert_eq!(self.client.goaway.map(|goaway| goaway.1), Some(code), "{reason:?}");
        self.case.see(self.slot, reason)
    }

    /// A stream ends for this reason, and its client is told this code; its connection goes on.
    fn see_stream(mut self, stream: u32, reason: CloseReason, code: u32) -> Seen {
        self.say([]);
        assert_eq!(self.client.streams[&stream].reset, Some(code), "{reason:?}");
        assert_eq!(self.closed(reason), 1, "{reason:?}: counted");
        let (health, bytes) = self.client.get("/healthz");
        self.say(bytes);
        assert_eq!(self.client.take(health), b"ok\n", "{reason:?}: the connection goes on");
        CUT
    }
}

/// A connection of HTTP/2 ends at these bytes.
pub(super) fn after_frames(bytes: impl AsRef<[u8]>, reason: CloseReason, code: u32) -> Seen {
    let mut carried = Carried::new();
    carried.say(bytes);
    carried.see(reason, code)
}

/// So many of a frame at once.
pub(super) fn flood(kind: u8, stream: u32, payload: &[u8], times: usize, reason: CloseReason) -> Seen {
    after_frames(frame_of(kind, 0, stream, payload).repeat(times), reason, CALM)
}

/// ENHANCE_YOUR_CALM
const CALM: u32 = 11;

pub(super) fn carrier_gone() -> Seen {
    let mut carried = Carried::new();
    let (_, bytes) = carried.client.get("/sse/t");
    carried.say(bytes);
    carried.case.shard.ring_mut().inner_mut().peer_resets(carried.slot);
    carried.case.turns();
    assert_eq!(carried.closed(CloseReason::SocketError), 1);
    assert_eq!(carried.closed(CloseReason::CarrierGone), 1);
    carried.case.wait(LINGER_MS_MAX);
    assert_eq!(carried.case.shard.metrics().closed.iter().sum::<u64>(), 2);
    CUT
}

pub(super) fn stream_closed() -> Seen {
    let mut carried = Carried::new();
    let (stream, bytes) = carried.client.get("/sse/t");
    carried.say(bytes);
    carried.say(frame_of(0, 0, stream, b"more"));
    carried.see_stream(stream, CloseReason::H2StreamClosed, 5)
}

pub(super) fn malformed_request() -> Seen {
    let mut carried = Carried::new();
    let (stream, bytes) = carried.client.fields(&block(&[(":method", "GET"), (":path", "/")]), true);
    carried.say(bytes);
    carried.see_stream(stream, CloseReason::H2Protocol, 1)
}

pub(super) fn refused_stream() -> Seen {
    let mut carried = Carried::new();
    for _ in 0..STREAMS_MAX {
        let (_, bytes) = carried.client.get("/sse/t");
        carried.say(bytes);
    }
    let (stream, bytes) = carried.client.get("/sse/t");
    carried.say(bytes);
    let first = carried.client.reset(1, 8);
    carried.say(first);
    carried.see_stream(stream, CloseReason::H2RefusedStream, 7)
}

/// CVE-2023-44487.
pub(super) fn rapid_resets() -> Seen {
    let mut carried = Carried::new();
    let mut bytes = Vec::new();
    for _ in 0..500 {
        let (stream, request) = carried.client.get("/healthz");
        bytes.extend([request, carried.client.reset(stream, 8)].concat());
    }
    carried.say(bytes);
    carried.say([]);
    assert_eq!(carried.client.goaway.map(|goaway| goaway.1), Some(CALM));
    assert_eq!(carried.closed(CloseReason::H2Resets), 1);
    carried.case.wait(LINGER_MS_MAX);
    assert!(!carried.case.shard.ring_mut().inner_mut().is_open(carried.slot));
    CUT
}

/// A block of fields that never ends, in frames without a byte.
pub(super) fn continuations() -> Seen {
    let begin = frame_of(1, 0, 1, &block(&[(":method", "GET")]));
    let more = frame_of(9, 0, 1, b"").repeat(100);
    after_frames([begin, more].concat(), CloseReason::H2Continuations, CALM)
}

/// One field of 4,000 bytes that is told once and meant 4,000 times.
pub(super) fn field_bomb() -> Seen {
    let mut block = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
    block.extend([b'x'; 4_000]);
    block.extend([0xbe; 4_000]);
    after_frames(frame_of(1, 5, 1, &block), CloseReason::H2FieldBomb, CALM)
}

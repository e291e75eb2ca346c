//! Promise: each connection ends as the row of its reason in the close table says.
//!
//! Set-up: for each reason, and for each way to end that its row allows, one shard on the simulated
//! ring and one peer that brings it about.
//!
//! Expectation: the peer gets the status or the close code of the row and no other, the end of the
//! stream where the row says that it ends in order, and the end is counted under the reason alone.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::fixtures::encoded_with;
use super::{Shard, ShardSetup};
use crate::admission::{Addresses, Admission};
use crate::auth::{Key, KeySet, Keys, Signer};
use crate::broadcast::{
    Demand, Drain, Encoded, EncodedBatch, Memory, Message, Outbox, Pressure, Question, path,
};
use crate::clock::Stamp;
use crate::close::{CLOSE_TABLE, CloseCode, CloseReason};
use crate::config::limits::{LINGER_MS_MAX, TICK_MS};
use crate::config::{Config, Limits, PageRules, TokenRules};
use crate::egress::sim::{SimRing, Weather};
use crate::egress::{Insecure, Slot};
use crate::event::Epoch;
use crate::http2::tests::h2::frame_of;
use crate::http2::{Http2, StreamRules};
use crate::wire::http::Origins;
use carried::*;

mod carried;
mod secure;

const SUBSCRIBERS_MAX: usize = 4;
/// Streams of HTTP/2.
const STREAMS_MAX: usize = 3;
const WEBSOCKET: &str = "GET /ws/t HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// One shard, and the peers of one case.
struct Case {
    shard: Shard<Http2<SimRing>>,
    outbox: Outbox,
    memory: Arc<Memory>,
    now: Stamp,
    sequence: u64,
    /// Where the shard says that it has drained.
    said: Vec<tokio::sync::oneshot::Receiver<()>>,
}

/// What a peer got.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    /// Status of the answer to its request.
    status: Option<u16>,
    /// Code of its close frame.
    code: Option<u16>,
    /// The end of our stream came, before the connection was gone.
    in_order: bool,
}

/// Nothing was said.
const CUT: Seen = Seen { status: None, code: None, in_order: false };

/// An answer to a request, and the end.
const fn refused(status: u16) -> Seen {
    Seen { status: Some(status), code: None, in_order: true }
}

/// A close frame, and the end.
const fn closed(code: u16) -> Seen {
    Seen { status: None, code: Some(code), in_order: true }
}

impl Case {
    fn new() -> Case {
        Case::with(Limits::default())
    }

    fn with(limits: Limits) -> Case {
        Case::admitting(Config { limits, ..Config::default() }, Admission::default())
    }

    fn admitting(config: Config, admission: Admission) -> Case {
        let pages = PageRules { origins: Origins::None, ..config.pages };
        let config = Arc::new(Config { pages, ..config });
        let config_limits = config.limits.clone();
        let (outbox, inbox) = path(8).expect("eventfd");
        let now = Stamp(1_000_000_000);
        let memory = Memory::new(&config.limits);
        let demand = Arc::<Demand>::default();
        let connections_max = SUBSCRIBERS_MAX;
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            config,
            epoch: Epoch(7),
            demand,
            memory: memory.clone(),
            connections_max,
            admission,
        };
        let rules = StreamRules {
            first_slot: 16,
            streams_max: STREAMS_MAX,
            per_carrier_max: STREAMS_MAX,
            head_bytes_max: config_limits.handshake_bytes_max,
            head_ms_max: config_limits.handshake_ms_max,
            stall_ms_max: config_limits.stall_ms_max,
        };
        let ring = Http2::new(SimRing::new(16, Weather::Fair, 1).recording(), rules);
        let shard = Shard::new(setup, ring, inbox, now);
        Case { shard, outbox, memory, now, sequence: 0, said: Vec::new() }
    }

    fn turns(&mut self) {
        for _ in 0..8 {
            self.now = Stamp(self.now.0 + 1_000_000);
            self.shard.turn(self.now).expect("a turn does not fail");
        }
    }

    /// Lets so much time pass, tick by tick.
    fn wait(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) + 4 {
            self.now = Stamp(self.now.0 + TICK_MS * 1_000_000);
            self.shard.turn(self.now).expect("a turn does not fail");
            self.turns();
        }
    }

    /// A peer that has sent these bytes.
    fn connect(&mut self, bytes: impl AsRef<[u8]>) -> Slot {
        let slot = self.shard.ring_mut().inner_mut().connect().expect("a free slot");
        self.shard.ring_mut().inner_mut().peer_sends(slot, bytes.as_ref());
        self.turns();
        slot
    }

    /// A subscriber over WebSocket that has sent these bytes after its head.
    fn websocket(&mut self, bytes: impl AsRef<[u8]>) -> Slot {
        self.connect([WEBSOCKET.as_bytes(), bytes.as_ref()].concat())
    }

    fn stall(&mut self, slot: Slot, stalled: bool) {
        self.shard.ring_mut().inner_mut().stall(slot, stalled);
        self.turns();
    }

    fn publish(&mut self, events: &[Arc<Encoded>]) {
        let batch = EncodedBatch { events: events.into() };
        self.outbox.try_send(Message::Batch(Arc::new(batch))).expect("the shard keeps up");
        self.turns();
    }

    /// Publishes an event of so many bytes.
    fn publish_bytes(&mut self, bytes: usize) {
        self.sequence += 1;
        let event = encoded_with("t", self.sequence, vec![b'x'; bytes]);
        self.publish(&[event]);
    }

    /// Begins a drain that may take so long.
    fn drain(&mut self, ms: u64) {
        let (drain, said) = Drain::new(self.now.plus(std::time::Duration::from_millis(ms)));
        self.outbox.try_send(Message::Drain(drain)).expect("room");
        self.said.push(said);
        self.turns();
    }

    /// The end of the connection of `slot`, counted under `reason`.
    fn see(&mut self, slot: Slot, reason: CloseReason) -> Seen {
        assert_eq!(self.shard.metrics().closed[reason.index()], 1, "{reason:?}: counted");
        self.wait(LINGER_MS_MAX);
        assert!(!self.shard.ring_mut().inner_mut().is_open(slot), "{reason:?}: its slot is free again");
        assert_eq!(self.shard.metrics().closed.iter().sum::<u64>(), 1, "{reason:?}: counted once");
        let bytes = self.shard.ring_mut().inner_mut().peer_takes(slot);
        let in_order = self.shard.ring_mut().inner_mut().ended_in_order(slot);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = text.strip_prefix("HTTP/1.1 ").map(|rest| rest[..3].parse().expect("a status"));
        // Frames of a server are not masked, and these are short; data frames hold no 0x88.
        let body = text.find("\r\n\r\n").map_or(bytes.len(), |head| head + 4);
        let frame = bytes[body..].iter().position(|byte| *byte == 0x88).filter(|_| status == Some(101));
        let code = frame.map(|at| u16::from_be_bytes([bytes[body + at + 2], bytes[body + at + 3]]));
        Seen { status: status.filter(|status| *status != 101), code, in_order }
    }
}

/// A masked frame of a client, whose key is zero.
fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[0x80 | opcode, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

fn request(line: &str, fields: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
}

/// The end that one request meets at once.
fn answered(request: impl AsRef<[u8]>, reason: CloseReason) -> Seen {
    let mut case = Case::new();
    let slot = case.connect(request);
    case.see(slot, reason)
}

/// The end that one frame of a WebSocket meets at once.
fn after_frame(frame: &[u8], reason: CloseReason) -> Seen {
    let mut case = Case::new();
    let slot = case.websocket(frame);
    case.see(slot, reason)
}

fn handshake_timeout() -> Seen {
    let mut case = Case::new();
    let slot = case.connect("GET /");
    case.wait(Limits::default().handshake_ms_max);
    case.see(slot, CloseReason::HandshakeTimeout)
}

fn socket_error() -> Seen {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.shard.ring_mut().inner_mut().peer_resets(slot);
    case.turns();
    case.see(slot, CloseReason::SocketError)
}

fn insecure(fault: Insecure, reason: CloseReason) -> Seen {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.shard.ring_mut().inner_mut().peer_is_insecure(slot, fault);
    case.turns();
    case.see(slot, reason)
}

fn gone_without_a_word() -> Seen {
    let mut case = Case::new();
    let slot = case.connect("");
    case.shard.ring_mut().inner_mut().peer_closes(slot);
    case.turns();
    case.see(slot, CloseReason::ClientGone)
}

fn full() -> Seen {
    let mut case = Case::new();
    for _ in 0..SUBSCRIBERS_MAX {
        case.websocket("");
    }
    let slot = case.websocket("");
    case.see(slot, CloseReason::Full)
}

fn memory_is_short() -> Seen {
    let mut case = Case::new();
    let inside = case.websocket("");
    case.memory.set_pressure(Pressure::Newcomers);
    let slot = case.websocket("");
    let seen = case.see(slot, CloseReason::Memory);
    case.publish_bytes(10);
    case.turns();
    assert!(!case.shard.ring_mut().inner_mut().ended(inside), "who is inside stays");
    case.memory.set_pressure(Pressure::Histories);
    let back = case.websocket("");
    assert!(!case.shard.ring_mut().inner_mut().ended(back), "newcomers come in again");
    seen
}

/// One more than the address of all peers may have, that has `most`, in a shard of so many sockets.
fn address_full(most: usize, sockets_max: usize) -> Seen {
    let addresses = Some(Arc::new(Addresses::new(most)));
    let mut case = Case::admitting(Config::default(), Admission { addresses, sockets_max });
    for _ in 0..most {
        case.connect("");
    }
    let slot = case.websocket("");
    case.see(slot, CloseReason::AddressFull)
}

fn no_proxy_header() -> Seen {
    let mut config = Config::default();
    config.proxy_protocol = config.listen.clone();
    let mut case = Case::admitting(config, Admission::default());
    let slot = case.connect("PROXY nonsense\r\n");
    case.see(slot, CloseReason::BadProxyHeader)
}

fn refused_in_the_drain() -> Seen {
    let mut case = Case::new();
    case.drain(60_000);
    let slot = case.websocket("");
    case.see(slot, CloseReason::Draining)
}

fn drained() -> Seen {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.drain(60_000);
    case.see(slot, CloseReason::Draining)
}

fn cut_by_the_drain() -> Seen {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.stall(slot, true);
    case.publish_bytes(10);
    case.drain(1_000);
    case.wait(1_000);
    case.see(slot, CloseReason::Draining)
}

fn stalled() -> Seen {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.stall(slot, true);
    case.publish_bytes(10);
    case.wait(Limits::default().stall_ms_max);
    case.see(slot, CloseReason::Stalled)
}

fn ping_timeout() -> Seen {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.wait(2 * Limits::default().heartbeat_ms + 2_000);
    case.see(slot, CloseReason::PingTimeout)
}

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const EXPIRES: u64 = 1_800_000_010;

/// A shard that asks for tokens, ten seconds before they are over.
fn asking_for_tokens() -> Case {
    let hs256 = Some(KeySet::of(Key::from_secret(SECRET).expect("a secret")));
    let tokens = TokenRules { hs256, ..TokenRules::default() };
    let mut case = Case::admitting(Config { tokens, ..Config::default() }, Admission::default());
    case.shard.set_time((EXPIRES - 10) * 1_000, case.now);
    case
}

fn token(topic: &str) -> String {
    let claims = serde_json::json!({ "exp": EXPIRES, "fanwave": { "subscribe": [topic] } });
    Signer::from_secret(SECRET).expect("a secret").sign(&claims).expect("a token")
}

/// A WebSocket that asks for `t` with a token for this topic.
fn websocket_with_token(topic: &str) -> String {
    WEBSOCKET.replace("/ws/t", &format!("/ws/t?token={}", token(topic)))
}

fn refused_for_its_token(request: &str, reason: CloseReason, wait_ms: u64) -> Seen {
    let mut case = asking_for_tokens();
    case.wait(wait_ms);
    let slot = case.connect(request);
    case.see(slot, reason)
}

fn expired() -> Seen {
    let mut case = asking_for_tokens();
    let slot = case.connect(websocket_with_token("t"));
    case.wait(11_000);
    case.see(slot, CloseReason::Expired)
}

fn tell_keys(case: &mut Case, keys: Keys) {
    let (taken, _) = tokio::sync::oneshot::channel();
    assert!(case.outbox.ask(Question::Keys(Arc::new(keys), taken)));
    case.turns();
}

fn key_taken_back() -> Seen {
    let mut case = asking_for_tokens();
    let slot = case.connect(websocket_with_token("t"));
    let other = KeySet::of(Key::from_secret(&[b'x'; 32]).expect("a secret"));
    tell_keys(&mut case, Keys::new([Some(&other)]));
    case.wait(1_000);
    case.see(slot, CloseReason::Unauthorized)
}

fn no_keys() -> Seen {
    let mut case = asking_for_tokens();
    tell_keys(&mut case, Keys::new([None]));
    let slot = case.connect(websocket_with_token("t"));
    case.see(slot, CloseReason::NoKeys)
}

/// A client that speaks JSON brings a token that allows less than it hears.
fn not_allowed_any_more() -> Seen {
    let mut case = asking_for_tokens();
    let json =
        websocket_with_token("t").replace("Host: h", "Host: h\r\nSec-WebSocket-Protocol: fanwave.v1.json");
    let slot = case.connect(json);
    let text = serde_json::json!({ "ref": 1, "auth": { "token": token("other") } }).to_string();
    let length = u16::try_from(text.len()).expect("short").to_be_bytes();
    let frame = [&[0x81, 0xfe][..], &length, &[0; 4], text.as_bytes()].concat();
    case.shard.ring_mut().inner_mut().peer_sends(slot, &frame);
    case.turns();
    case.see(slot, CloseReason::NotAllowed)
}

/// One of three subscribers does not read while its topic uses up what it may hold.
fn overrun() -> Seen {
    let mut limits = Limits { message_bytes_max: 10_000, window_bytes_max: 46_000, ..Limits::default() };
    limits.window_bytes_total_max = 16 * limits.event_memory_max();
    let memory = Memory::new(&limits);
    let account = crate::broadcast::Account::new(&memory);
    let mut case = Case::with(limits);
    let slots = [(); 3].map(|()| case.websocket(""));
    case.stall(slots[0], true);
    while case.shard.metrics().closed[CloseReason::Overrun.index()] == 0 {
        case.sequence += 1;
        assert!(case.sequence < 1_000, "it is cut");
        let event = Arc::into_inner(encoded_with("t", case.sequence, vec![b'x'; 9_900])).expect("alone");
        if account.has_room(event.memory()) {
            case.publish(&[Arc::new(event.counted_in(&account))]);
        } else {
            case.sequence -= 1;
        }
        case.now = Stamp(case.now.0 + 100 * 1_000_000);
        case.turns();
    }
    case.stall(slots[0], false);
    case.see(slots[0], CloseReason::Overrun)
}

fn foreign_host() -> Seen {
    let pages = PageRules { playground: true, ..PageRules::default() };
    let mut case = Case::admitting(Config { pages, ..Config::default() }, Admission::default());
    let slot = case.connect("GET /sse/t HTTP/1.1\r\nHost: evil.example\r\n\r\n");
    case.see(slot, CloseReason::ForeignHost)
}

#[test]
fn every_reason_ends_a_connection_as_its_row_of_the_table_says() {
    use CloseReason::*;
    let long = "x".repeat(9_000);
    let seen = [
        (ClientGone, after_frame(&masked(0x8, b""), ClientGone), closed(1000)),
        (ClientGone, gone_without_a_word(), CUT),
        (SocketError, socket_error(), CUT),
        (TlsHandshake, insecure(Insecure::Handshake, TlsHandshake), CUT),
        (TlsRecord, insecure(Insecure::Record, TlsRecord), CUT),
        (BadRequest, answered("nonsense\r\n\r\n", BadRequest), refused(400)),
        (
            HeadTooLarge,
            answered(request("GET /sse/t", &format!("A: {long}\r\n")), HeadTooLarge),
            refused(431),
        ),
        (TargetTooLong, answered(request(&format!("GET /sse/{long}"), ""), TargetTooLong), refused(414)),
        (HandshakeTimeout, handshake_timeout(), CUT),
        (NotFound, answered(request("GET /nowhere", ""), NotFound), refused(404)),
        (MethodNotAllowed, answered(request("POST /sse/t", ""), MethodNotAllowed), refused(405)),
        (
            NotAcceptable,
            answered(request("GET /sse/t", "Accept: image/png\r\n"), NotAcceptable),
            refused(406),
        ),
        (UpgradeRequired, answered(request("GET /ws/t", ""), UpgradeRequired), refused(426)),
        (Answered, answered(request("GET /healthz", ""), Answered), refused(200)),
        (
            BodyNotAllowed,
            answered(request("GET /sse/t", "Content-Length: 5\r\n"), BodyNotAllowed),
            refused(413),
        ),
        (
            UnknownCoding,
            answered(request("GET /sse/t", "Transfer-Encoding: gzip\r\n"), UnknownCoding),
            refused(501),
        ),
        (
            ForeignOrigin,
            answered(WEBSOCKET.replace("Host: h", "Host: h\r\nOrigin: https://a.example"), ForeignOrigin),
            refused(403),
        ),
        (ForeignHost, foreign_host(), refused(403)),
        (Unauthorized, refused_for_its_token(WEBSOCKET, Unauthorized, 0), refused(401)),
        (Unauthorized, key_taken_back(), closed(4401)),
        (NotAllowed, refused_for_its_token(&websocket_with_token("u"), NotAllowed, 0), refused(403)),
        (NotAllowed, not_allowed_any_more(), closed(4403)),
        (Expired, refused_for_its_token(&websocket_with_token("t"), Expired, 11_000), refused(401)),
        (Expired, expired(), closed(4401)),
        (NoKeys, no_keys(), refused(503)),
        (Full, full(), refused(503)),
        (Memory, memory_is_short(), refused(503)),
        (AddressFull, address_full(0, 0), refused(429)),
        (AddressFull, address_full(7, 8), CUT),
        (BadProxyHeader, no_proxy_header(), refused(400)),
        (BadProxyHeader, insecure(Insecure::Header("none"), BadProxyHeader), CUT),
        (Draining, drained(), closed(1012)),
        (Draining, cut_by_the_drain(), CUT),
        (WsProtocol, after_frame(b"\x81\x01a", WsProtocol), closed(1002)),
        (WsNotUtf8, after_frame(&masked(0x1, b"\xff"), WsNotUtf8), closed(1007)),
        (WsTooBig, after_frame(b"\x81\xff\0\0\0\0\x40\0\0\0\0\0\0\0", WsTooBig), closed(1009)),
        (PingTimeout, ping_timeout(), CUT),
        (Overrun, overrun(), closed(1013)),
        (Stalled, stalled(), CUT),
        (CarrierGone, carrier_gone(), CUT),
        (H2Protocol, after_frames(frame_of(5, 0, 1, &[0; 4]), H2Protocol, 1), CUT),
        (H2Protocol, malformed_request(), CUT),
        (H2StreamClosed, stream_closed(), CUT),
        (H2FrameSize, after_frames(frame_of(6, 0, 0, b"short"), H2FrameSize, 6), CUT),
        (H2FlowControl, after_frames(frame_of(8, 0, 0, &[0x7f, 255, 255, 255]), H2FlowControl, 3), CUT),
        (H2Compression, after_frames(frame_of(1, 5, 1, &[0x80]), H2Compression, 9), CUT),
        (H2RefusedStream, refused_stream(), CUT),
        (H2Resets, rapid_resets(), CUT),
        (H2Continuations, continuations(), CUT),
        (H2Settings, flood(4, 0, b"", 100, H2Settings), CUT),
        (H2Pings, flood(6, 0, &[0; 8], 300, H2Pings), CUT),
        (H2EmptyFrames, flood(2, 1, &[0; 5], 500, H2EmptyFrames), CUT),
        (H2WindowUpdates, flood(8, 0, &[0, 0, 0, 1], 5_000, H2WindowUpdates), CUT),
        (H2FieldBomb, field_bomb(), CUT),
    ];
    for (reason, seen, expected) in &seen {
        assert_eq!(seen, expected, "{reason:?}");
        let row = reason.row();
        let is_subscriber = row.http_status.is_none() || seen.code.is_some() || *reason == Draining;
        let by_row = Seen {
            status: match reason {
                Answered => Some(200),
                AddressFull | BadProxyHeader if !seen.in_order => None,
                _ => row.http_status.filter(|_| !is_subscriber),
            },
            code: row.websocket_code.unasked().filter(|_| seen.in_order && seen.status.is_none()),
            in_order: seen.in_order,
        };
        assert_eq!(*seen, by_row, "{reason:?}");
    }
    let found: BTreeSet<_> = seen.iter().map(|(reason, seen, _)| (reason.index(), seen.in_order)).collect();
    let told = CLOSE_TABLE.iter().flat_map(|row| {
        let ways = [(true, row.ending.may_be_in_order()), (false, row.ending.may_cut())];
        ways.into_iter().filter(|way| way.1).map(|way| (row.reason.index(), way.0))
    });
    assert_eq!(found, told.collect(), "each reason in each way that its row allows, and in no other");
}

#[test]
fn a_refusal_in_the_drain_has_the_status_of_its_row() {
    let seen = refused_in_the_drain();
    assert_eq!(seen, refused(503));
    assert_eq!(seen.status, CloseReason::Draining.row().http_status);
}

/// RFC 6455 §5.5.1.
#[test]
fn a_client_that_closes_gets_its_own_code_back() {
    assert_eq!(CloseReason::ClientGone.row().websocket_code, CloseCode::Echo(1000));
    for (payload, code) in [(&b""[..], 1000), (b"\x03\xe9", 1001), (b"\x0b\xb9later", 3001)] {
        let seen = after_frame(&masked(0x8, payload), CloseReason::ClientGone);
        assert_eq!(seen, closed(code));
    }
}

/// A client that ends its stream without a close frame has asked for nothing: 1000 is ours.
#[test]
fn a_client_that_ends_its_stream_gets_the_code_of_the_row() {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.shard.ring_mut().inner_mut().peer_closes(slot);
    case.turns();
    let seen = case.see(slot, CloseReason::ClientGone);
    assert_eq!((seen.status, seen.code), (None, Some(1000)));
}

/// A silent client holds memory too.
#[test]
fn patience_with_silence_shrinks_while_memory_is_short() {
    let mut case = Case::new();
    let slot = case.connect("");
    case.wait(4_000);
    assert!(!case.shard.ring_mut().inner_mut().ended(slot));
    case.memory.set_pressure(Pressure::Newcomers);
    case.wait(1_000);
    assert_eq!(case.shard.metrics().closed[CloseReason::HandshakeTimeout.index()], 1);
}

#[test]
fn a_shard_tells_what_it_holds_at_every_tick() {
    let mut case = Case::new();
    let slot = case.websocket("");
    case.stall(slot, true);
    case.publish_bytes(10);
    case.wait(TICK_MS);
    let told = case.memory.holdings();
    assert_eq!((told.sockets, told.waiting), (1, 1));
    assert!(told.histories > 10 && told.histories == case.shard.window_memory());
    case.outbox.try_send(Message::Histories(0)).expect("room");
    case.stall(slot, false);
    case.wait(TICK_MS);
    let told = case.memory.holdings();
    assert_eq!((told.sockets, told.waiting, told.histories), (1, 0, 0));
}

//! What clients of HTTP/2 may send: blocks of fields, and frames on a connection of a shard.

use std::sync::Arc;

use fanwave::broadcast::{Memory, path};
use fanwave::clock::Stamp;
use fanwave::config::{Config, Limits};
use fanwave::egress::EgressRing;
use fanwave::egress::sim::{SimRing, Weather};
use fanwave::event::Epoch;
use fanwave::http2::{Http2, StreamRules};
use fanwave::shard::{Shard, ShardSetup};
use fanwave::wire::http2::PREFACE;
use fanwave::wire::http2::frame::{HEADER, Header, PAYLOAD_MAX};
use fanwave::wire::http2::hpack::{Decoder, Scratch};
use fanwave::wire::http2::request::{Body, Request};

const HEAD_BYTES_MAX: usize = 1_000;
const SOCKETS: usize = 2;

/// Blocks of one client, each behind a byte with its length. A request that has a head has one
/// head, which ends where it ends and names nothing that the client did not.
pub fn fields(data: &[u8]) {
    let (mut decoder, mut scratch, mut request) =
        (Decoder::default(), Scratch::default(), Request::default());
    let mut rest = data;
    while let Some((length, behind)) = rest.split_first() {
        if *length == 0 {
            decoder.forget();
        }
        let (block, behind) = behind.split_at(usize::from(*length).min(behind.len()));
        rest = behind;
        request.begin(HEAD_BYTES_MAX);
        let mut names = 0;
        let each = &mut |name: &[u8], value: &[u8]| {
            names += 1;
            request.take(name, value)
        };
        let Ok(true) = decoder.read(block, &mut scratch, each) else { return };
        let mut head = Vec::new();
        let Ok(body) = request.finish(length % 2 == 0, &mut head) else { continue };
        let lines = head.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(lines, head.iter().filter(|byte| **byte == b'\r').count());
        assert!(lines <= names + 5, "{}", head.escape_ascii());
        if head.len() <= HEAD_BYTES_MAX {
            let end = memchr::memmem::find(&head, b"\r\n\r\n").expect("it ends");
            assert_eq!(end + 4, head.len(), "{}", head.escape_ascii());
        }
        // A body that another method has is announced, so that it is refused as over HTTP/1.1.
        assert!(body != Body::Chunked || head.starts_with(b"POST "), "{}", head.escape_ascii());
    }
}

/// What comes behind the preface, in pieces of a size that the first byte chooses. The shard says
/// nothing but frames, and lets go of everything.
pub fn frames(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let limits = Limits { handshake_bytes_max: HEAD_BYTES_MAX, ..Limits::default() };
    let rules = StreamRules {
        first_slot: SOCKETS as u32,
        streams_max: 8,
        per_carrier_max: 4,
        head_bytes_max: HEAD_BYTES_MAX,
        head_ms_max: limits.handshake_ms_max,
        stall_ms_max: limits.stall_ms_max,
    };
    let (_outbox, inbox) = path(4).expect("eventfd");
    let mut now = Stamp(1_000_000_000);
    let setup = ShardSetup {
        number: 0,
        cpu: 0,
        memory: Memory::new(&limits),
        config: Arc::new(Config {
            client_publish: vec!["**".parse().expect("a pattern")],
            limits,
            ..Config::default()
        }),
        epoch: Epoch(7),
        demand: Arc::default(),
        connections_max: 8,
        admission: Default::default(),
    };
    let ring = SimRing::new(SOCKETS, Weather::Fair, 1).recording();
    let mut shard = Shard::new(setup, Http2::new(ring, rules), inbox, now);
    let slot = shard.ring_mut().inner_mut().connect().expect("a free socket");
    let mut heard = Vec::new();
    let mut turn = |shard: &mut Shard<Http2<SimRing>>, ms: u64| {
        now = Stamp(now.0 + ms * 1_000_000);
        shard.turn(now).expect("a turn does not fail");
        heard.extend(shard.ring_mut().inner_mut().peer_takes(slot));
    };
    let size = 1 + usize::from(*choice) * 7;
    for piece in [&PREFACE[..]].into_iter().chain(bytes.chunks(size)) {
        if shard.ring().inner().is_open(slot) {
            shard.ring_mut().inner_mut().peer_sends(slot, piece);
        }
        turn(&mut shard, 1);
    }
    (0..4).for_each(|_| turn(&mut shard, 1));
    if shard.ring().inner().is_open(slot) {
        shard.ring_mut().inner_mut().peer_resets(slot);
    }
    (0..16).for_each(|_| turn(&mut shard, 250));
    assert!(!shard.ring().inner().is_open(slot), "its socket is closed");
    assert_eq!(shard.ring().streams(slot), 0);
    let metrics = shard.metrics();
    assert_eq!(metrics.families[0].connections, 0, "no subscriber is left");
    let mut rest = &heard[..];
    while let Some(header) = rest.first_chunk::<HEADER>() {
        let header = Header::read(*header);
        assert!(header.length <= PAYLOAD_MAX && header.kind <= 9, "{header:?}");
        let Some(behind) = rest.get(HEADER + header.length..) else { break };
        rest = behind;
    }
}

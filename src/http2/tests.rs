//! Promises of carriers and their streams: one shard on the simulated ring, and clients that count
//! what they are sent.

use std::sync::Arc;

use bytes::Bytes;

use super::{Http2, StreamRules};
use crate::broadcast::{
    Answer, Demand, Drain, Encoded, EncodedBatch, Memory, Message, Outbox, Publish, Taken, path,
};
use crate::clock::Stamp;
use crate::close::CloseReason;
use crate::config::limits::{H2_IDLE_MS_MAX, LINGER_MS_MAX, POST_BODY_MS_MAX, TICK_MS};
use crate::config::{Config, Limits};
use crate::egress::Slot;
use crate::egress::sim::{SimRing, Weather};
use crate::event::{Data, Epoch, Event, Topic};
use crate::shard::{Shard, ShardSetup};
use crate::wire::http2::PREFACE;
use h2::{Client, WINDOW_SETTING, block, frame_of};

mod bodies;
mod ends;
#[path = "../../tests/support/h2.rs"]
pub mod h2;

const SOCKETS: usize = 32;

struct Bench {
    shard: Shard<Http2<SimRing>>,
    outbox: Outbox,
    now: Stamp,
    sequence: u64,
}

/// A connection of HTTP/2.
struct Peer {
    slot: Slot,
    client: Client,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(Limits::default())
    }

    fn with(limits: Limits) -> Bench {
        let client_publish = vec!["t".parse().expect("a pattern")];
        Bench::of(Config { limits, client_publish, ..Config::default() })
    }

    fn of(config: Config) -> Bench {
        let config = Arc::new(config);
        let (outbox, inbox) = path(8).expect("eventfd");
        let now = Stamp(1_000_000_000);
        let rules = StreamRules {
            first_slot: SOCKETS as Slot,
            streams_max: 64,
            per_carrier_max: config.limits.h2_streams_max,
            head_bytes_max: config.limits.handshake_bytes_max,
            head_ms_max: config.limits.handshake_ms_max,
            stall_ms_max: config.limits.stall_ms_max,
        };
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            memory: Memory::new(&config.limits),
            config,
            epoch: Epoch(7),
            demand: Arc::<Demand>::default(),
            connections_max: 64,
            admission: Default::default(),
        };
        let ring = Http2::new(SimRing::new(SOCKETS, Weather::Fair, 1).recording(), rules);
        Bench { shard: Shard::new(setup, ring, inbox, now), outbox, now, sequence: 0 }
    }

    fn turns(&mut self) {
        for _ in 0..8 {
            self.shard.turn(self.now).expect("a turn does not fail");
        }
    }

    fn wait(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(TICK_MS) + 1 {
            self.now = Stamp(self.now.0 + TICK_MS * 1_000_000);
            self.turns();
        }
    }

    fn sim(&mut self) -> &mut SimRing {
        self.shard.ring_mut().inner_mut()
    }

    fn connect(&mut self, settings: &[(u16, u32)]) -> Peer {
        let slot = self.sim().connect().expect("a free socket");
        let mut peer = Peer { slot, client: Client::default() };
        let hello = peer.client.hello(settings);
        self.say(&mut peer, hello);
        peer
    }

    /// The peer says this, and hears what it is told until it has answered everything.
    fn say(&mut self, peer: &mut Peer, bytes: impl AsRef<[u8]>) {
        self.sim().peer_sends(peer.slot, bytes.as_ref());
        self.hear(peer);
    }

    fn hear(&mut self, peer: &mut Peer) {
        loop {
            self.turns();
            let heard = self.sim().peer_takes(peer.slot);
            let answer = peer.client.hear(&heard);
            if answer.is_empty() {
                return;
            }
            self.sim().peer_sends(peer.slot, &answer);
        }
    }

    /// Asks for something and hears the answer.
    fn get(&mut self, peer: &mut Peer, path: &str) -> u32 {
        let (stream, bytes) = peer.client.get(path);
        self.say(peer, bytes);
        stream
    }

    fn publish(&mut self, bytes: usize) {
        self.sequence += 1;
        let event = Event {
            topic: Topic::new("t").expect("a topic"),
            data: Data::text(Bytes::from("x".repeat(bytes))).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        let event = Encoded::new(event, Epoch(7), self.sequence, self.now);
        let batch = EncodedBatch { events: [Arc::new(event)].into() };
        self.outbox.try_send(Message::Batch(Arc::new(batch))).expect("the shard keeps up");
        self.turns();
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.shard.metrics().closed[reason.index()]
    }
}

/// The ids of events that came on a stream, without their epoch.
fn ids(body: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(body).expect("UTF-8");
    let lines = text.lines().filter_map(|line| line.strip_prefix("id: 7-").or(line.strip_prefix("id:7-")));
    let mut ids: Vec<u64> = lines.map(|id| id.parse().expect("a number")).collect();
    // The first one says where the stream begins.
    ids.remove(0);
    ids
}

#[test]
fn six_streams_of_a_carrier_get_an_event_in_one_send() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let streams: Vec<u32> = (0..6).map(|_| bench.get(&mut peer, "/sse/t")).collect();
    assert!(streams.iter().all(|stream| peer.client.streams[stream].status == Some(200)));
    let sends = bench.sim().sends;
    bench.publish(200);
    assert_eq!(bench.sim().sends, sends + 1, "one send carries six");
    bench.hear(&mut peer);
    for stream in streams {
        let fields = &peer.client.streams[&stream].fields;
        assert!(fields.contains(&("content-type".into(), "text/event-stream".into())), "{fields:?}");
        assert!(!fields.iter().any(|(name, _)| name == "connection" || name == "transfer-encoding"));
        assert_eq!(ids(&peer.client.take(stream)), [1]);
    }
    assert_eq!(bench.shard.metrics().http2.carriers, 1);
}

#[test]
fn a_window_is_kept_and_what_it_holds_back_comes_when_it_opens() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[(WINDOW_SETTING, 100)]);
    let (slow, fast) = (bench.get(&mut peer, "/sse/t"), bench.get(&mut peer, "/sse/t"));
    let more = peer.client.allow(fast, 60_000);
    bench.say(&mut peer, more);
    for _ in 0..20 {
        bench.publish(1_000);
        bench.hear(&mut peer);
    }
    assert_eq!(ids(&peer.client.take(fast)).len(), 20, "the other one is not held up");
    let mut got = peer.client.take(slow);
    assert_eq!(got.len(), 100);
    while peer.client.window > 2_000 && got.len() < 20_000 {
        let more = peer.client.allow(slow, 700);
        bench.say(&mut peer, more);
        got.extend(peer.client.take(slow));
    }
    assert!(ids(&got).iter().copied().eq(1..=19) || ids(&got).iter().copied().eq(1..=20), "no gap");
}

#[test]
fn a_window_of_the_connection_is_shared_in_turns() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[(WINDOW_SETTING, 1 << 20)]);
    let streams: Vec<u32> = (0..4).map(|_| bench.get(&mut peer, "/sse/t")).collect();
    for _ in 0..60 {
        bench.publish(1_000);
        bench.hear(&mut peer);
    }
    assert_eq!(peer.client.window, 0, "all of it is used");
    let more = peer.client.allow(0, 8 * 16_384);
    bench.say(&mut peer, more);
    let got: Vec<usize> = streams.iter().map(|stream| peer.client.streams[stream].body.len()).collect();
    let (least, most) = (got.iter().min().expect("four"), got.iter().max().expect("four"));
    assert!(most - least <= 2 * 16_384, "each has its share: {got:?}");
    let more = peer.client.allow(0, 1 << 20);
    bench.say(&mut peer, more);
    for stream in streams {
        assert!(ids(&peer.client.take(stream)).into_iter().eq(1..=60), "stream {stream}");
    }
}

/// RFC 9113 §6.9.2.
#[test]
fn a_window_that_was_made_smaller_goes_below_zero() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let stream = bench.get(&mut peer, "/sse/t");
    bench.publish(5_000);
    bench.hear(&mut peer);
    let smaller = peer.client.set(&[(WINDOW_SETTING, 10)]);
    bench.say(&mut peer, smaller);
    assert!(peer.client.streams[&stream].window < 0);
    bench.publish(10);
    bench.hear(&mut peer);
    assert_eq!(ids(&peer.client.streams[&stream].body), [1], "nothing is sent on credit");
    let larger = peer.client.set(&[(WINDOW_SETTING, 20_000)]);
    bench.say(&mut peer, larger);
    assert_eq!(ids(&peer.client.streams[&stream].body), [1, 2]);
}

#[test]
fn a_socket_that_is_full_loses_nothing_and_ends_no_stream() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[(WINDOW_SETTING, 1 << 20)]);
    let streams: Vec<u32> = (0..3).map(|_| bench.get(&mut peer, "/sse/t")).collect();
    let more = peer.client.allow(0, 1 << 20);
    bench.say(&mut peer, more);
    bench.sim().stall(peer.slot, true);
    for _ in 0..30 {
        bench.publish(1_000);
    }
    bench.sim().stall(peer.slot, false);
    bench.hear(&mut peer);
    for stream in streams {
        assert!(ids(&peer.client.take(stream)).into_iter().eq(1..=30), "stream {stream}");
    }
}

#[test]
fn a_reset_ends_one_stream_and_the_others_go_on() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let (gone, stays) = (bench.get(&mut peer, "/sse/t"), bench.get(&mut peer, "/sse/t"));
    let reset = peer.client.reset(gone, 8);
    bench.say(&mut peer, reset);
    bench.publish(10);
    bench.hear(&mut peer);
    assert_eq!(ids(&peer.client.take(stays)), [1]);
    assert_eq!((bench.closed(CloseReason::ClientGone), bench.shard.metrics().http2.opened), (1, 2));
    let (health, bytes) = peer.client.get("/healthz");
    bench.say(&mut peer, bytes);
    let answer = &peer.client.streams[&health];
    assert_eq!((answer.status, answer.ended, &answer.body[..]), (Some(200), true, &b"ok\n"[..]));
}

#[test]
fn a_publish_is_answered_beside_the_streams() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    bench.get(&mut peer, "/sse/t");
    for (length, pieces) in [(None, vec!["hel", "", "lo"]), (Some("5"), vec!["hello"])] {
        let fields: Vec<(&str, &str)> = length.map(|length| ("content-length", length)).into_iter().collect();
        let (post, mut bytes) = peer.client.request("POST", "/topics/t", &fields, false);
        for (at, piece) in pieces.iter().enumerate() {
            bytes.extend(frame_of(0, u8::from(at + 1 == pieces.len()), post, piece.as_bytes()));
        }
        bench.say(&mut peer, bytes);
        let Some(Publish { event, ticket, .. }) = bench.outbox.uplink().take() else { panic!("it came") };
        assert_eq!(event.data.bytes(), &b"hello"[..]);
        bench.outbox.answer(vec![Answer {
            ticket,
            outcome: Ok(Taken { epoch: Epoch(7), sequence: 9, duplicate: false }),
        }]);
        bench.hear(&mut peer);
        let answer = &peer.client.streams[&post];
        assert_eq!((answer.status, answer.ended, answer.reset), (Some(200), true, None));
        assert_eq!(answer.body, b"{\"id\":\"7-9\",\"sequence\":9}\n");
    }
}

#[test]
fn a_body_of_another_length_than_told_is_reset() {
    for (data, is_over) in [("toolong", false), ("sho", true)] {
        let mut bench = Bench::new();
        let mut peer = bench.connect(&[]);
        let (post, mut bytes) = peer.client.request("POST", "/topics/t", &[("content-length", "5")], false);
        bytes.extend(frame_of(0, u8::from(is_over), post, data.as_bytes()));
        bench.say(&mut peer, bytes);
        assert_eq!(peer.client.streams[&post].reset, Some(1), "PROTOCOL_ERROR");
        assert_eq!(bench.closed(CloseReason::H2Protocol), 1);
    }
}

#[test]
fn a_head_that_is_too_large_is_refused_as_over_http_1() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let long = "x".repeat(9_000);
    let (stream, bytes) = peer.client.request("GET", "/sse/t", &[("a", &long)], true);
    bench.say(&mut peer, bytes);
    assert_eq!(peer.client.streams[&stream].status, Some(431));
    assert!(peer.client.streams[&stream].ended);
}

/// RFC 9113 §6.8.
#[test]
fn a_drain_says_farewell_and_ends_the_carrier_behind_its_streams() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let stream = bench.get(&mut peer, "/sse/t");
    bench.publish(10);
    let (drain, mut done) = Drain::new(bench.now.plus(std::time::Duration::from_secs(60)));
    bench.outbox.try_send(Message::Drain(drain)).expect("room");
    bench.wait(TICK_MS);
    bench.hear(&mut peer);
    assert_eq!(peer.client.goaway, Some((stream, 0)));
    let answer = &peer.client.streams[&stream];
    assert!(answer.ended && answer.reset.is_none(), "in order, after its last event");
    assert_eq!(ids(&answer.body), [1]);
    bench.wait(2 * TICK_MS);
    let slot = peer.slot;
    assert!(bench.sim().ended_in_order(slot));
    bench.sim().peer_closes(slot);
    bench.wait(LINGER_MS_MAX);
    assert!(!bench.sim().is_open(slot));
    done.try_recv().expect("the shard says that it is done");
    assert_eq!(bench.closed(CloseReason::Draining), 2, "the stream and its carrier");
}

#[test]
fn a_carrier_without_streams_ends_after_a_while() {
    let mut bench = Bench::new();
    let mut idle = bench.connect(&[]);
    let mut busy = bench.connect(&[]);
    bench.get(&mut busy, "/sse/t");
    bench.wait(H2_IDLE_MS_MAX + 2_000);
    bench.hear(&mut idle);
    assert_eq!(idle.client.goaway, Some((0, 0)));
    let (idle, busy) = (idle.slot, busy.slot);
    assert!(bench.sim().ended_in_order(idle) && !bench.sim().ended(busy));
}

#[test]
fn what_does_not_come_to_its_end_in_time_ends_its_carrier() {
    let head_ms_max = Limits::default().handshake_ms_max;
    let (post, post_bytes) = Client::default().request("POST", "/topics/t", &[], false);
    let body = [post_bytes, frame_of(0, 1, post, b"hello")[..11].to_vec()].concat();
    for (bytes, ms_max, last) in [
        (frame_of(1, 0, 1, &block(&[(":method", "GET")])), head_ms_max, 0),
        (frame_of(1, 5, 1, &block(&[(":method", "GET")]))[..12].to_vec(), head_ms_max, 0),
        (body, POST_BODY_MS_MAX, post),
    ] {
        let mut bench = Bench::new();
        let mut peer = bench.connect(&[]);
        peer.client.get("/");
        bench.say(&mut peer, &bytes);
        bench.wait(ms_max / 2);
        assert_eq!(peer.client.goaway, None);
        bench.wait(2 * ms_max);
        bench.hear(&mut peer);
        assert_eq!(peer.client.goaway, Some((last, 11)));
        assert_eq!(bench.closed(CloseReason::HandshakeTimeout), 1);
    }
}

#[test]
fn a_carrier_whose_client_reads_nothing_is_cut_and_holds_no_more_than_a_piece() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[(WINDOW_SETTING, 1 << 24)]);
    bench.get(&mut peer, "/sse/t");
    let more = peer.client.allow(0, 1 << 24);
    bench.say(&mut peer, more);
    let slot = peer.slot;
    bench.sim().stall(slot, true);
    for _ in 0..100 {
        bench.publish(5_000);
    }
    assert!(bench.sim().waiting(slot) <= 64 << 10);
    bench.wait(2 * Limits::default().stall_ms_max);
    assert!(!bench.sim().is_open(slot));
    assert!(bench.closed(CloseReason::Stalled) >= 1);
}

#[test]
fn bytes_may_come_one_by_one() {
    let mut bench = Bench::new();
    let slot = bench.sim().connect().expect("a free socket");
    let mut peer = Peer { slot, client: Client::default() };
    let hello = peer.client.hello(&[]);
    let (stream, get) = peer.client.get("/sse/t");
    for byte in [hello, get].concat() {
        bench.sim().peer_sends(slot, &[byte]);
        bench.turns();
    }
    bench.hear(&mut peer);
    assert_eq!(peer.client.streams[&stream].status, Some(200));
    // A client of HTTP/1.1 may begin like one of HTTP/2.
    let old = bench.sim().connect().expect("a free socket");
    for byte in b"POST /topics/t HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" {
        bench.sim().peer_sends(old, &[*byte]);
        bench.turns();
    }
    assert!(bench.outbox.uplink().take().is_some());
}

/// Versions 1 and 2, cut anywhere, before a client that is known by its address from then on.
#[test]
fn a_proxy_header_may_stand_before_the_preface_in_any_pieces() {
    let listen = ["127.0.0.1:1", "127.0.0.1:2"].map(|text| text.parse().expect("an address"));
    let v1 = b"PROXY TCP4 198.51.100.7 192.0.2.9 50000 80\r\n".to_vec();
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[198, 51, 100, 7, 192, 0, 2, 9, 195, 80, 0, 80]];
    for header in [v1, v2.concat()] {
        for cut in [1, 16, header.len() - 1, header.len(), header.len() + 1, header.len() + 23] {
            let (listen, proxy_protocol) = (listen.to_vec(), vec![listen[1]]);
            let mut bench = Bench::of(Config { listen, proxy_protocol, ..Config::default() });
            let slot = bench.sim().connect_from(std::net::Ipv4Addr::LOCALHOST, 1).expect("a free socket");
            let mut peer = Peer { slot, client: Client::default() };
            let hello = [&header[..], &peer.client.hello(&[])].concat();
            bench.say(&mut peer, &hello[..cut]);
            bench.say(&mut peer, &hello[cut..]);
            let stream = bench.get(&mut peer, "/sse/t");
            bench.publish(10);
            bench.hear(&mut peer);
            assert_eq!(ids(&peer.client.take(stream)), [1], "cut at {cut}");
        }
    }
}

/// RFC 9113, by section: what a client says, and the code with which its connection ends.
#[test]
fn frames_that_may_not_come_end_the_connection_with_the_code_of_the_standard() {
    let (protocol, flow, size, compression) = (1, 3, 6, 9);
    let get = || Client::default().get("/sse/t").1;
    let backwards = || {
        let mut client = Client::default();
        let (one, two) = (client.get("/sse/t").1, client.get("/sse/t").1);
        [two, one].concat()
    };
    let settings = |setting: u16, value: u32| {
        let payload = [&setting.to_be_bytes()[..], &value.to_be_bytes()].concat();
        frame_of(4, 0, 0, &payload)
    };
    let cases: Vec<(&str, Vec<u8>, u32)> = vec![
        ("4.2 a frame that is too large", frame_of(0, 0, 1, &vec![0; 16_385]), size),
        ("4.3 fields that cannot be read", frame_of(1, 5, 1, &[0xff; 9]), compression),
        ("5.1 DATA before a request", frame_of(0, 0, 1, b"x"), protocol),
        ("5.1 RST_STREAM before a request", frame_of(3, 0, 1, &[0; 4]), protocol),
        ("5.1 WINDOW_UPDATE before a request", frame_of(8, 0, 1, &[0, 0, 0, 1]), protocol),
        ("5.1.1 an even number", frame_of(1, 5, 2, &block(&[])), protocol),
        ("5.1.1 a number that is lower", backwards(), protocol),
        ("6.1 DATA on the connection", frame_of(0, 0, 0, b"x"), protocol),
        ("6.1 more padding than there is", [get(), frame_of(0, 8, 1, &[9, 0])].concat(), protocol),
        ("6.2 HEADERS on the connection", frame_of(1, 5, 0, &block(&[])), protocol),
        ("6.2 another frame within a block", [frame_of(1, 0, 1, &[]), settings(4, 1)].concat(), protocol),
        ("6.3 PRIORITY on the connection", frame_of(2, 0, 0, &[0; 5]), protocol),
        ("6.3 PRIORITY of another size", frame_of(2, 0, 1, &[0; 4]), size),
        ("6.4 RST_STREAM on the connection", frame_of(3, 0, 0, &[0; 4]), protocol),
        ("6.4 RST_STREAM of another size", [get(), frame_of(3, 0, 1, &[0; 3])].concat(), size),
        ("6.5 SETTINGS on a stream", frame_of(4, 0, 1, &[]), protocol),
        ("6.5 an answer that says something", frame_of(4, 1, 0, &[0; 6]), size),
        ("6.5 SETTINGS of another size", frame_of(4, 0, 0, &[0; 5]), size),
        ("6.5.2 ENABLE_PUSH of 2", settings(2, 2), protocol),
        ("6.5.2 a window that is too large", settings(4, 1 << 31), flow),
        ("6.5.2 frames that are too small", settings(5, 16_383), protocol),
        ("6.5.2 frames that are too large", settings(5, 1 << 24), protocol),
        ("6.6 a promise of a client", frame_of(5, 4, 1, &[0; 4]), protocol),
        ("6.7 a ping on a stream", frame_of(6, 0, 1, &[0; 8]), protocol),
        ("6.7 a ping of another size", frame_of(6, 0, 0, &[0; 6]), size),
        ("6.8 a farewell on a stream", frame_of(7, 0, 1, &[0; 8]), protocol),
        ("6.8 a farewell of another size", frame_of(7, 0, 0, &[0; 7]), size),
        ("6.9 no more room", frame_of(8, 0, 0, &[0; 4]), protocol),
        ("6.9 WINDOW_UPDATE of another size", frame_of(8, 0, 0, &[0; 3]), size),
        ("6.9.1 a window that grows too large", frame_of(8, 0, 0, &[0x7f, 255, 255, 255]), flow),
        (
            "6.9.2 a window of a stream that grows too large",
            [get(), frame_of(8, 0, 1, &[0x40, 0, 0, 0]), settings(4, (1 << 31) - 1)].concat(),
            flow,
        ),
        ("6.10 CONTINUATION of nothing", frame_of(9, 4, 1, &[]), protocol),
        ("6.10 CONTINUATION of another", [frame_of(1, 0, 1, &[]), frame_of(9, 4, 3, &[])].concat(), protocol),
        ("7541 2.3.3 index 0", frame_of(1, 5, 1, &[0x80]), compression),
        ("7541 4.2 a table that is too large", frame_of(1, 5, 1, &[0x3f, 0xe2, 0x1f]), compression),
        ("7541 5.2 padding of zeros", frame_of(1, 5, 1, &[0, 1, b'a', 0x81, 0]), compression),
    ];
    for (what, bytes, code) in cases {
        let mut bench = Bench::new();
        let mut peer = bench.connect(&[]);
        peer.client.get("/");
        bench.say(&mut peer, bytes);
        bench.hear(&mut peer);
        assert_eq!(peer.client.goaway.map(|goaway| goaway.1), Some(code), "{what}");
        bench.wait(LINGER_MS_MAX);
        let slot = peer.slot;
        assert!(!bench.sim().is_open(slot), "{what}: its socket is closed");
    }
    // What is no preface is no HTTP/2, and frames begin with SETTINGS.
    for bytes in [[&PREFACE[..], &frame_of(6, 0, 0, &[0; 8])].concat(), PREFACE.repeat(2)] {
        let mut bench = Bench::new();
        let slot = bench.sim().connect().expect("a free socket");
        let mut peer = Peer { slot, client: Client::default() };
        bench.say(&mut peer, bytes);
        bench.hear(&mut peer);
        assert!(matches!(peer.client.goaway, Some((0, 1 | 6))), "{:?}", peer.client.goaway);
    }
}

/// RFC 9113: what ends a stream alone.
#[test]
fn frames_that_may_not_come_on_a_stream_end_it_with_the_code_of_the_standard() {
    let cases: [(&str, Vec<u8>, u32); 4] = [
        ("6.9 no more room", frame_of(8, 0, 1, &[0; 4]), 1),
        ("6.9.1 a window that grows too large", frame_of(8, 0, 1, &[0x7f, 255, 255, 255]), 3),
        ("5.1 DATA behind the end", frame_of(0, 0, 1, b"x"), 5),
        ("5.1 HEADERS behind the end", frame_of(1, 5, 1, &block(&[("a", "b")])), 5),
    ];
    for (what, bytes, code) in cases {
        let mut bench = Bench::new();
        let mut peer = bench.connect(&[]);
        let stream = bench.get(&mut peer, "/sse/t");
        bench.say(&mut peer, bytes);
        assert_eq!((peer.client.streams[&stream].reset, peer.client.goaway), (Some(code), None), "{what}");
    }
}

/// RFC 9113 §5.5, §5.3, §6.2.
#[test]
fn what_means_nothing_to_us_is_read_over() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[(0xfa, 7)]);
    bench.say(&mut peer, [frame_of(0xbe, 0xff, 0, b"grease"), frame_of(2, 0, 9, &[0; 5])].concat());
    let (_, request) = peer.client.get("/sse/t");
    let priority = [&[4, 0, 0, 0, 0, 9][..], &request[9..], &[0; 4]].concat();
    bench.say(&mut peer, frame_of(1, 5 | 8 | 32, 1, &priority));
    assert_eq!(peer.client.streams[&1].status, Some(200));
    let ping = frame_of(6, 0, 0, &[7; 8]);
    bench.say(&mut peer, ping);
    assert_eq!((peer.client.pongs, peer.client.goaway), (1, None));
}

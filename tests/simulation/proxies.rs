//! Promise: behind a proxy that tells of its clients, before TLS or before a plain request, a
//! connection is its client's: each address has as many as one may have, and no other one has less
//! for it. However the header comes, what stands behind it is heard whole.
//!
//! Set-up: one shard on the simulated ring, TLS and HTTP/2 around it; two listeners that expect the
//! header, one of them with TLS. Proxies say headers of both versions in any pieces, of few clients,
//! of themselves, and wrong ones. Clients speak HTTP/1.1 and HTTP/2 and stay, leave or vanish.
//!
//! Expectation: the test counts by address itself. A client that fits hears every event, one that
//! does not gets 429; what is no header is counted, and takes nobody's place.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use fanwave::admission::{Addresses, Admission};
use fanwave::broadcast::{Encoded, EncodedBatch, Memory, Message, Outbox, path};
use fanwave::clock::Stamp;
use fanwave::close::CloseReason;
use fanwave::config::{Config, Limits};
use fanwave::egress::Slot;
use fanwave::egress::sim::{Dice, SimRing, Weather};
use fanwave::event::{Data, Event, Topic};
use fanwave::http2::{Http2, StreamRules};
use fanwave::shard::{Shard, ShardSetup};
use fanwave::tls::{Identity, Tls};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::h2;
use super::proxied::{v1, v2};
use super::wire::{both_ends, said};
use super::{EPOCH, seeds};

const SOCKETS: usize = 24;
/// Connections that an address may have.
const MOST: usize = 2;
const PLAIN: usize = 0;
const SECURE: usize = 1;
const PROXY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const REQUEST: &[u8] = b"GET /sse/t HTTP/1.1\r\nHost: h\r\nAccept: */*\r\n\r\n";

/// The client of one connection.
struct Peer {
    slot: Slot,
    /// Whose connection it is.
    ip: IpAddr,
    tls: Option<ClientConnection>,
    /// HTTP/2, once its stream was asked for.
    carrier: Option<(h2::Client, u32)>,
    has_asked: bool,
    wants_http2: bool,
    heard: Vec<u8>,
}

impl Peer {
    fn new(slot: Slot, ip: IpAddr, listener: usize, wants_http2: bool) -> Peer {
        let tls = (listener == SECURE).then(|| {
            let mut config = both_ends().1.as_ref().clone();
            config.alpn_protocols = vec![if wants_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
            let name = ServerName::try_from("localhost").expect("a name");
            ClientConnection::new(Arc::new(config), name).expect("a client")
        });
        let (carrier, has_asked, heard) = (None, false, Vec::new());
        Peer { slot, ip, tls, carrier, has_asked, wants_http2, heard }
    }

    /// Hears what has come; returns what is to be sent.
    fn hear(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut plain = bytes.to_vec();
        if let Some(tls) = &mut self.tls {
            plain.clear();
            while !bytes.is_empty() && tls.read_tls(&mut bytes).expect("a slice can be read") > 0 {
                tls.process_new_packets().expect("the server keeps to RFC 8446");
                let _ = tls.reader().read_to_end(&mut plain);
            }
        }
        let mut answer = Vec::new();
        if !self.has_asked && self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking()) {
            self.has_asked = true;
            if self.wants_http2 {
                let mut client = h2::Client::default();
                answer = client.hello(&[]);
                let (stream, request) = client.get("/sse/t");
                answer.extend(request);
                self.carrier = Some((client, stream));
            } else {
                answer = REQUEST.to_vec();
            }
        }
        match &mut self.carrier {
            Some((client, stream)) => {
                answer.extend(client.hear(&plain));
                self.heard.extend(client.take(*stream));
            }
            None => self.heard.extend(plain),
        }
        let Some(tls) = &mut self.tls else { return answer };
        tls.writer().write_all(&answer).expect("rustls keeps it");
        said(tls)
    }

    fn status(&self) -> Option<u16> {
        match &self.carrier {
            Some((client, stream)) => client.streams[stream].status,
            None => std::str::from_utf8(self.heard.get(9..12)?).ok()?.parse().ok(),
        }
    }

    fn has_heard(&self, sequence: u64) -> bool {
        String::from_utf8_lossy(&self.heard).contains(&format!("data: event {sequence};"))
    }
}

struct World {
    shard: Shard<Http2<Tls<SimRing>>>,
    outbox: Outbox,
    now: Stamp,
    sequence: u64,
    peers: Vec<Peer>,
    /// Connections by the address of their client.
    counts: HashMap<IpAddr, usize>,
    bad_headers: u64,
}

impl World {
    fn new(weather: Weather, seed: u64) -> World {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (listen, listen_tls) = (vec![address(1)], vec![address(2)]);
        let limits = Limits { heartbeat_ms: 3_600_000, stall_ms_max: 3_600_000, ..Limits::default() };
        let rules = StreamRules {
            first_slot: SOCKETS as Slot,
            streams_max: SOCKETS,
            per_carrier_max: 4,
            head_bytes_max: limits.handshake_bytes_max,
            head_ms_max: 3_600_000,
            stall_ms_max: limits.stall_ms_max,
        };
        let memory = Memory::new(&limits);
        let proxy_protocol = [&listen[..], &listen_tls].concat();
        let config = Config { listen, listen_tls, proxy_protocol, limits, ..Config::default() };
        let proxied = (0..2).map(|listener| config.is_proxied(listener)).collect();
        let ring = SimRing::new(SOCKETS, weather, seed).recording();
        let ring = Tls::new(ring, SECURE, 2, Identity::new(both_ends().0.clone())).behind_proxies(proxied);
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            memory,
            config: Arc::new(config),
            epoch: EPOCH,
            demand: Arc::default(),
            connections_max: SOCKETS,
            admission: Admission { addresses: Some(Arc::new(Addresses::new(MOST))), sockets_max: SOCKETS },
        };
        let (outbox, inbox) = path(64).expect("eventfd");
        let now = Stamp(1_000_000_000);
        let shard = Shard::new(setup, Http2::new(ring, rules), inbox, now);
        let (peers, counts) = (Vec::new(), HashMap::new());
        World { shard, outbox, now, sequence: 0, peers, counts, bad_headers: 0 }
    }

    fn sim(&mut self) -> &mut SimRing {
        self.shard.ring_mut().inner_mut().inner_mut()
    }

    fn turns(&mut self, count: usize) {
        for _ in 0..count {
            // A connection has ten seconds for its request.
            self.now = Stamp(self.now.0 + 1_000_000);
            self.shard.turn(self.now).expect("the simulated ring does not fail");
            for at in 0..self.peers.len() {
                let slot = self.peers[at].slot;
                let bytes = self.sim().peer_takes(slot);
                let answer = self.peers[at].hear(&bytes);
                self.sim().peer_sends(slot, &answer);
            }
        }
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.shard.metrics().closed[reason.index()]
    }

    /// A connection on which these pieces come, one by one; the begin of its client's own bytes
    /// stands in the last of them.
    fn connect(&mut self, ip: IpAddr, listener: usize, wants_http2: bool, pieces: &[&[u8]]) -> usize {
        let slot = self.sim().connect_from(PROXY, listener).expect("a free socket");
        self.turns(2);
        let mut peer = Peer::new(slot, ip, listener, wants_http2);
        let hello = peer.hear(&[]);
        let (last, first) = pieces.split_last().expect("a header");
        for piece in first {
            self.sim().peer_sends(slot, piece);
            self.turns(2);
        }
        self.sim().peer_sends(slot, &[last, &hello[..]].concat());
        let count = self.counts.entry(ip).or_default();
        let expected = if *count < MOST { 200 } else { 429 };
        *count += 1;
        self.peers.push(peer);
        for _ in 0..2_000 {
            self.turns(1);
            if let Some(status) = self.peers.last().and_then(Peer::status) {
                assert_eq!(status, expected, "of {ip}");
                break;
            }
        }
        let at = self.peers.len() - 1;
        assert!(self.peers[at].status().is_some(), "it is answered: {:?}", self.shard.metrics().closed);
        if expected == 429 {
            self.leave(at, false);
            return usize::MAX;
        }
        at
    }

    fn leave(&mut self, at: usize, in_order: bool) {
        let Peer { slot, ip, .. } = self.peers.swap_remove(at);
        match in_order {
            true => self.sim().peer_closes(slot),
            false => self.sim().peer_resets(slot),
        }
        self.is_gone(slot);
        *self.counts.get_mut(&ip).expect("it was counted") -= 1;
    }

    fn is_gone(&mut self, slot: Slot) {
        for _ in 0..200 {
            self.turns(1);
            if !self.sim().is_open(slot) {
                return;
            }
        }
        panic!("slot {slot} is not closed");
    }

    fn publish(&mut self) {
        self.sequence += 1;
        let event = Event {
            topic: Topic::new("t").expect("legal"),
            data: Data::text(Bytes::from(format!("event {};", self.sequence))).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        let events = [Arc::new(Encoded::new(event, EPOCH, self.sequence, self.now))];
        let batch = EncodedBatch { events: events.into() };
        self.outbox.try_send(Message::Batch(Arc::new(batch))).expect("the shard keeps up");
        let sequence = self.sequence;
        for _ in 0..200 {
            self.turns(1);
            if self.peers.iter().all(|peer| peer.has_heard(sequence)) {
                return;
            }
        }
        panic!("not everybody heard event {sequence}");
    }

    /// Something that is no header, and may look like one.
    fn no_header(&mut self, listener: usize, bytes: &[u8], ends: bool) {
        let slot = self.sim().connect_from(PROXY, listener).expect("a free socket");
        self.sim().peer_sends(slot, bytes);
        if ends {
            self.sim().peer_closes(slot);
        }
        self.bad_headers += 1;
        for _ in 0..200 {
            self.turns(1);
            if self.closed(CloseReason::BadProxyHeader) == self.bad_headers {
                self.sim().peer_closes(slot);
                return self.is_gone(slot);
            }
        }
        panic!("{} passes for a header", bytes.escape_ascii());
    }
}

/// The client that a header may tell of, by number.
fn client(number: u64) -> SocketAddr {
    let ip: IpAddr = match number {
        0 => Ipv4Addr::new(198, 51, 100, 7).into(),
        1 => Ipv4Addr::new(198, 51, 100, 8).into(),
        _ => "2001:db8::7".parse().expect("an address"),
    };
    SocketAddr::new(ip, 50_000)
}

fn run(seed: u64) {
    let mut world = World::new(Weather::Rough, seed);
    let mut dice = Dice::new(seed);
    for _ in 0..40 {
        let (listener, number) = (dice.roll(2) as usize, dice.roll(4));
        match dice.roll(6) {
            0..=2 => {
                let told = client(number % 3);
                let more = vec![0xee; dice.roll(300) as usize];
                let (header, ip) = match (number, dice.chance(1, 2)) {
                    // The proxy's own.
                    (3, true) => (b"PROXY UNKNOWN\r\n".to_vec(), PROXY.into()),
                    (3, false) => (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), PROXY.into()),
                    (_, true) => (v1(told), told.ip()),
                    (_, false) => (v2(told, &more), told.ip()),
                };
                let mut pieces = Vec::new();
                let mut rest = &header[..];
                while !rest.is_empty() {
                    let (piece, behind) = rest.split_at(1 + dice.roll(rest.len() as u64) as usize);
                    pieces.push(piece);
                    rest = behind;
                }
                // What stands behind it may come a little later, too.
                if dice.chance(1, 2) {
                    pieces.push(b"");
                }
                world.connect(ip, listener, dice.chance(1, 2), &pieces);
            }
            3 if !world.peers.is_empty() => {
                let at = dice.roll(world.peers.len() as u64) as usize;
                world.leave(at, dice.chance(1, 2));
            }
            4 => {
                let header = v1(client(0));
                let part = &header[..1 + dice.roll(header.len() as u64 - 1) as usize];
                match dice.roll(3) {
                    0 => world.no_header(listener, part, true),
                    1 => world.no_header(listener, b"\x16\x03\x01\x02\0\x01", false),
                    _ => world.no_header(listener, &[part, b"\x01\n"].concat(), false),
                }
            }
            _ => world.publish(),
        }
    }
    world.publish();
    while !world.peers.is_empty() {
        world.leave(0, true);
    }
    let slots = 0..SOCKETS as Slot;
    assert!(slots.into_iter().all(|slot| !world.sim().is_open(slot)));
    // Nobody's place is taken by one who has left.
    for number in 0..3 {
        world.connect(client(number).ip(), SECURE, false, &[&v1(client(number))]);
    }
    assert_eq!(world.peers.len(), 3);
    assert_eq!(world.closed(CloseReason::BadProxyHeader), world.bad_headers);
    assert_eq!(world.closed(CloseReason::TlsHandshake) + world.closed(CloseReason::TlsRecord), 0);
}

#[test]
fn each_client_behind_a_proxy_has_its_own_places_whatever_comes_before_tls() {
    for seed in seeds(8) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = outcome {
            eprintln!("FANWAVE_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn a_header_before_tls_may_be_cut_at_every_byte() {
    let mut world = World::new(Weather::Fair, 1);
    let told = client(1);
    for header in [v1(told), v2(told, b"\x04\0\x01\0")] {
        for cut in 1..=header.len() {
            for pieces in [[&header[..cut], &header[cut..]], [&header[..], &[]]] {
                let at = world.connect(told.ip(), SECURE, cut % 2 == 0, &pieces);
                world.publish();
                world.leave(at, cut % 3 == 0);
            }
        }
    }
    assert_eq!(world.closed(CloseReason::AddressFull), 0);
}

#[test]
fn a_header_before_tls_that_never_ends_has_the_time_of_a_request() {
    let mut world = World::new(Weather::Fair, 1);
    let header = v1(client(0));
    let limit = Limits::default().handshake_ms_max;
    for (number, step) in [(1, 300), (2, 1_000)] {
        let slot = world.sim().connect_from(PROXY, SECURE).expect("a free socket");
        for byte in header[..header.len() - 1].iter().take(limit as usize / step + 1) {
            world.sim().peer_sends(slot, &[*byte]);
            world.turns(step);
        }
        world.is_gone(slot);
        assert_eq!(world.closed(CloseReason::HandshakeTimeout), number);
    }
}

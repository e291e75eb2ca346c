//! Who connects, and whether it may: the PROXY header before a request, and connections by address.
//! The header before TLS is read by the ring, which tells what it says.

use std::net::SocketAddr;

use super::connections::{Phase, Session, Standing};
use super::state::State;
use crate::close::CloseReason;
use crate::config::limits::SOCKETS_FREE_SHARE;
use crate::egress::Slot;
use crate::wire::http::{Manner, RefusedRequest};
use crate::wire::proxy::{self, Preface};

impl State {
    /// First bytes of a connection that begins with a PROXY header.
    pub(super) fn handle_proxy_header(&mut self, slot: Slot, bytes: &mut [u8]) {
        let connection = self.connections.get_mut(slot);
        let Session::Handshake(header) = &mut connection.session else { return };
        let before = header.len();
        header.extend_from_slice(bytes);
        match proxy::parse(header) {
            Ok(Preface::Partial) => {}
            Ok(Preface::Whole { bytes: whole, client }) => {
                connection.session = Session::Handshake(Vec::new());
                self.introduce(slot, client);
                // Every byte of the header before these was a part of it.
                let rest = &mut bytes[whole - before..];
                if !rest.is_empty() && self.connections.get(slot).phase == Phase::Handshake {
                    self.handle_received(slot, rest);
                }
            }
            Err(detail) => {
                let reason = CloseReason::BadProxyHeader;
                let refusal = RefusedRequest { reason, detail: detail.to_string() };
                self.refuse(slot, &refusal, &Manner::default());
            }
        }
    }

    /// The PROXY header is whole. `client` takes the proxy's place, where it is told.
    pub(super) fn introduce(&mut self, slot: Slot, client: Option<SocketAddr>) {
        let connection = self.connections.get_mut(slot);
        assert!(connection.standing == Standing::Untold, "a header is expected, once");
        connection.standing = Standing::Known;
        if let Some(client) = client {
            connection.set_peer(client);
        }
        self.count_at_address(slot);
    }

    /// What comes before TLS is no PROXY header. The ring has told the peer so.
    pub(super) fn abort_header(&mut self, slot: Slot, detail: &str) {
        let reason = CloseReason::BadProxyHeader;
        if let Some(left_out) = self.detail(reason) {
            let peer = self.connections.get(slot).peer();
            tracing::debug!(%peer, reason = reason.row().label, detail, left_out, "connection refused");
        }
        self.abort(slot, reason);
    }

    /// It is known who connects. A connection too many of one address is answered, as long as there
    /// is room for that.
    pub(super) fn count_at_address(&mut self, slot: Slot) {
        let Some(addresses) = &self.setup.admission.addresses else { return };
        let connection = self.connections.get_mut(slot);
        let may_come = addresses.enter(connection.peer().ip());
        connection.standing = if may_come { Standing::Counted } else { Standing::Crowded };
        let open = self.connections.sockets();
        if !may_come && self.setup.admission.is_short(open, SOCKETS_FREE_SHARE) {
            self.abort(slot, CloseReason::AddressFull);
        }
    }

    /// The connection is gone.
    pub(super) fn leave_address(&mut self, slot: Slot) {
        let connection = self.connections.get(slot);
        let is_counted = matches!(connection.standing, Standing::Counted | Standing::Crowded);
        if let Some(addresses) = self.setup.admission.addresses.as_ref().filter(|_| is_counted) {
            addresses.leave(connection.peer().ip());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::time::Duration;

    use crate::admission::{Addresses, Admission};
    use crate::broadcast::{Memory, Outbox, path};
    use crate::clock::Stamp;
    use crate::close::CloseReason;
    use crate::config::{Config, Limits};
    use crate::egress::Slot;
    use crate::egress::sim::{SimRing, Weather};
    use crate::event::Epoch;
    use crate::shard::{Shard, ShardSetup};

    const ONE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
    const SOCKETS: usize = 64;
    const REQUEST: &[u8] = b"GET /sse/t HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";

    /// A shard whose second listener takes the PROXY protocol.
    struct Bench {
        shard: Shard<SimRing>,
        _outbox: Outbox,
        now: Stamp,
    }

    impl Bench {
        fn new(limits: Limits, per_address: usize) -> Bench {
            let (outbox, inbox) = path(8).expect("eventfd");
            let now = Stamp(1_000_000_000);
            let memory = Memory::new(&limits);
            let listen = ["127.0.0.1:1", "127.0.0.1:2"].map(|text| text.parse().expect("an address"));
            let config = Config {
                listen: listen.to_vec(),
                proxy_protocol: vec![listen[1]],
                limits,
                ..Config::default()
            };
            let setup = ShardSetup {
                number: 0,
                cpu: 0,
                config: Arc::new(config),
                epoch: Epoch(7),
                demand: Arc::default(),
                memory,
                connections_max: SOCKETS,
                admission: Admission {
                    addresses: Some(Arc::new(Addresses::new(per_address))),
                    sockets_max: SOCKETS,
                },
            };
            let ring = SimRing::new(SOCKETS, Weather::Fair, 1).recording();
            Bench { shard: Shard::new(setup, ring, inbox, now), _outbox: outbox, now }
        }

        fn connect(&mut self, ip: Ipv4Addr, listener: usize) -> Slot {
            self.shard.ring_mut().connect_from(ip, listener).expect("a free socket")
        }

        /// The peer says this in one piece and reads what is answered.
        fn say(&mut self, slot: Slot, bytes: &[u8]) -> String {
            self.shard.ring_mut().peer_sends(slot, bytes);
            self.turns();
            String::from_utf8_lossy(&self.shard.ring_mut().peer_takes(slot)).into_owned()
        }

        fn turns(&mut self) {
            for _ in 0..8 {
                self.shard.turn(self.now).expect("the simulated ring does not fail");
            }
        }

        fn wait(&mut self, ms: u64) {
            for _ in 0..ms / 250 {
                self.now = self.now.plus(Duration::from_millis(250));
                self.turns();
            }
        }

        fn closed(&self, reason: CloseReason) -> u64 {
            self.shard.metrics().closed[reason.index()]
        }
    }

    #[test]
    fn an_address_beyond_its_limit_is_refused_and_comes_in_once_it_has_left() {
        let mut bench = Bench::new(Limits::default(), 2);
        let slots = [(); 3].map(|()| bench.connect(ONE, 0));
        // In the order of their coming, whichever request arrives first.
        let refused = bench.say(slots[2], REQUEST);
        assert!(refused.starts_with("HTTP/1.1 429 ") && refused.contains("\r\nRetry-After: "), "{refused}");
        for slot in [slots[1], slots[0]] {
            assert!(bench.say(slot, REQUEST).starts_with("HTTP/1.1 200 "));
        }
        let other = bench.connect(OTHER, 0);
        assert!(bench.say(other, REQUEST).starts_with("HTTP/1.1 200 "), "another address has its own");
        let again = bench.connect(ONE, 0);
        assert!(bench.say(again, REQUEST).starts_with("HTTP/1.1 429 "));
        assert_eq!(bench.closed(CloseReason::AddressFull), 2);

        for slot in [slots[0], slots[2], again] {
            bench.shard.ring_mut().peer_closes(slot);
        }
        bench.turns();
        let back = bench.connect(ONE, 0);
        assert!(bench.say(back, REQUEST).starts_with("HTTP/1.1 200 "), "one of its two has left");
    }

    #[test]
    fn an_event_source_beyond_the_limit_is_told_to_come_back() {
        let mut bench = Bench::new(Limits::default(), 0);
        let slot = bench.connect(ONE, 0);
        let told = bench.say(slot, b"GET /sse/t HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n");
        assert!(told.starts_with("HTTP/1.1 200 ") && told.contains("retry: "), "{told}");
        assert!(told.contains(": address_full: "), "{told}");
        let health = bench.connect(ONE, 0);
        assert!(bench.say(health, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn silent_connections_beyond_the_limit_take_no_room_that_is_short() {
        let mut bench = Bench::new(Limits::default(), 8);
        for _ in 0..SOCKETS {
            bench.connect(ONE, 0);
        }
        bench.turns();
        // Seven of eight parts may be taken by those that are waited for.
        assert_eq!(bench.closed(CloseReason::AddressFull), 8);
        bench.wait(4_000);
        assert_eq!(bench.closed(CloseReason::HandshakeTimeout), 48, "what was too many has 2 s");
        bench.wait(10_000);
        assert_eq!(bench.closed(CloseReason::HandshakeTimeout), 56, "the eight have the usual patience");
    }

    #[test]
    fn patience_with_silence_shrinks_while_room_is_short() {
        let mut bench = Bench::new(Limits::default(), 1_000);
        for _ in 0..SOCKETS - 8 {
            bench.connect(ONE, 0);
        }
        bench.turns();
        bench.wait(4_000);
        assert_eq!(bench.closed(CloseReason::HandshakeTimeout), 0, "an eighth is free");
        for _ in 0..4 {
            bench.connect(OTHER, 0);
        }
        bench.wait(1_000);
        assert!(bench.closed(CloseReason::HandshakeTimeout) >= 4, "there is room again");
        let last = bench.connect(OTHER, 0);
        assert!(bench.say(last, REQUEST).starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_proxy_tells_who_connects_in_any_pieces() {
        let header = b"PROXY TCP4 198.51.100.7 192.0.2.9 50000 80\r\n";
        for cut in [1, 7, 30, header.len() - 1, header.len(), header.len() + 4] {
            let mut bench = Bench::new(Limits::default(), 1);
            let whole = [&header[..], REQUEST].concat();
            let first = bench.connect(ONE, 1);
            assert_eq!(bench.say(first, &whole[..cut]), "");
            assert!(bench.say(first, &whole[cut..]).starts_with("HTTP/1.1 200 "), "{cut}");
            // Both come from the proxy; only one of them from this client.
            let same = bench.connect(ONE, 1);
            assert!(bench.say(same, &whole).starts_with("HTTP/1.1 429 "), "{cut}");
            let other = bench.connect(ONE, 1);
            let header = b"PROXY TCP4 198.51.100.8 192.0.2.9 50000 80\r\n";
            assert!(bench.say(other, &[&header[..], REQUEST].concat()).starts_with("HTTP/1.1 200 "));
        }
    }

    #[test]
    fn what_is_no_header_or_comes_where_none_is_expected_is_refused_and_counted() {
        let mut bench = Bench::new(Limits::default(), 100);
        for wrong in [REQUEST, b"PROXY nonsense\r\n", &[b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat()] {
            let slot = bench.connect(ONE, 1);
            let told = bench.say(slot, wrong);
            assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("PROXY header"), "{told}");
        }
        let slot = bench.connect(ONE, 1);
        bench.say(slot, b"PROXY TCP4 ");
        bench.shard.ring_mut().peer_closes(slot);
        bench.turns();
        assert_eq!(bench.closed(CloseReason::BadProxyHeader), 4);
        let late = bench.connect(ONE, 1);
        bench.say(late, b"PROXY TCP4 ");
        bench.wait(12_000);
        assert_eq!(bench.closed(CloseReason::HandshakeTimeout), 1);
        for unexpected in
            [&b"PROXY TCP4 192.0.2.1 192.0.2.9 1 80\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"]
        {
            let slot = bench.connect(ONE, 0);
            let told = bench.say(slot, unexpected);
            assert!(
                told.starts_with("HTTP/1.1 400 ") && told.contains("no PROXY header is expected"),
                "{told}"
            );
        }
        assert_eq!(bench.closed(CloseReason::BadRequest), 2);
    }

    #[test]
    fn so_many_connections_are_accepted_in_a_second() {
        let limits = Limits { handshakes_per_second_max: 8, ..Limits::default() };
        let mut bench = Bench::new(limits, 1_000);
        for _ in 0..40 {
            bench.connect(ONE, 0);
        }
        bench.turns();
        let mut accepted = vec![bench.shard.metrics().accepted];
        for _ in 0..3 {
            bench.wait(1_000);
            accepted.push(bench.shard.metrics().accepted);
        }
        assert_eq!(accepted, [4, 12, 20, 28], "half a second's at once, and then at the rate");
    }
}

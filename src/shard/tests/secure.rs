//! Promise: what came without TLS is not trusted where TLS is spoken.

use std::net::{Ipv4Addr, SocketAddr};

use super::*;

#[test]
fn a_page_that_came_without_tls_is_foreign_where_tls_is_spoken() {
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let config = Config { listen: vec![address(1)], listen_tls: vec![address(2)], ..Config::default() };
    let mut case = Case::admitting(config, Admission::default());
    for (listener, origin, status) in [
        (0, "http://h", 101),
        (0, "https://h", 101),
        (1, "http://h", 403),
        (1, "https://h", 101),
        // The next one in a slot that spoke TLS.
        (0, "http://h", 101),
    ] {
        let ring = case.shard.ring_mut().inner_mut();
        let slot = ring.connect_from(Ipv4Addr::LOCALHOST, listener).expect("a free slot");
        let request = WEBSOCKET.replace("Host: h", &format!("Host: h\r\nOrigin: {origin}"));
        ring.peer_sends(slot, request.as_bytes());
        case.turns();
        let ring = case.shard.ring_mut().inner_mut();
        let heard = String::from_utf8_lossy(&ring.peer_takes(slot)).into_owned();
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{origin} at {listener}: {heard}");
        ring.peer_resets(slot);
        case.turns();
    }
}

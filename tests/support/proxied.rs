//! PROXY headers, as proxies write them.

use std::net::{IpAddr, SocketAddr};

/// A header of version 1.
pub fn v1(client: SocketAddr) -> Vec<u8> {
    let (word, destination) = if client.is_ipv4() { ("TCP4", "192.0.2.9") } else { ("TCP6", "2001:db8::9") };
    format!("PROXY {word} {} {destination} {} 443\r\n", client.ip(), client.port()).into_bytes()
}

/// A header of version 2 with these bytes behind its addresses.
pub fn v2(client: SocketAddr, more: &[u8]) -> Vec<u8> {
    let (family, mut addresses) = match client.ip() {
        IpAddr::V4(ip) => (0x11, [ip.octets(), [192, 0, 2, 9]].concat()),
        IpAddr::V6(ip) => (0x21, [ip.octets(), [9; 16]].concat()),
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(443_u16.to_be_bytes());
    addresses.extend(more);
    let length = u16::try_from(addresses.len()).expect("a short header");
    [&b"\r\n\r\n\0\r\nQUIT\n\x21"[..], &[family], &length.to_be_bytes(), &addresses].concat()
}

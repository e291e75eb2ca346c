//! What a proxy says of its client before the client's own bytes: the PROXY protocol, versions 1
//! and 2 (HAProxy, `doc/proxy-protocol.txt`).
//!
//! A sender of this header may call itself as it likes. So it is read only where the operator
//! expects it, and there every connection begins with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, its line break included (§2.1).
const V1_BYTES_MAX: usize = 107;
/// The longest header of version 2 that is taken: what follows the addresses may be a certificate's
/// names, and is passed over.
const V2_BYTES_MAX: usize = 4 << 10;
/// How every header of version 1 begins.
const V1: &[u8] = b"PROXY ";
/// How every header of version 2 begins (§2.2).
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of version 2: signature, version and command, family, length.
const V2_FIXED: usize = 16;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preface {
    /// The header is not whole yet.
    Partial,
    /// A header of so many bytes; the client's own follow.
    Whole {
        /// Its length.
        bytes: usize,
        /// Who the client is; `None` if that is the proxy itself, or is not known.
        client: Option<SocketAddr>,
    },
}

/// Reads the header from the first byte of a connection on. Call again with more bytes while it is
/// [`Preface::Partial`]; that ends after some KiB. The error is one line for a human.
pub fn parse(bytes: &[u8]) -> Result<Preface, &'static str> {
    match bytes.first() {
        None => Ok(Preface::Partial),
        Some(b'P') => parse_v1(bytes),
        Some(b'\r') => parse_v2(bytes),
        Some(_) => Err("a PROXY header is expected here (--proxy-protocol)"),
    }
}

/// True if the bytes begin as a header does, or as far as they go.
pub fn begins_like_one(bytes: &[u8]) -> bool {
    bytes.len() >= V1.len() && (bytes.starts_with(V1) || begins(bytes, V2) && bytes.contains(&0))
}

fn begins(bytes: &[u8], with: &[u8]) -> bool {
    let both = bytes.len().min(with.len());
    bytes[..both] == with[..both]
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 50000 80` and a line break (§2.1).
fn parse_v1(bytes: &[u8]) -> Result<Preface, &'static str> {
    if !begins(bytes, V1) {
        return Err("a PROXY header is expected here (--proxy-protocol)");
    }
    let allowed = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', allowed) else {
        return match allowed.len() < V1_BYTES_MAX {
            true => Ok(Preface::Partial),
            false => Err("the PROXY header has more than 107 bytes"),
        };
    };
    let malformed = "the PROXY header is not of the form: PROXY TCP4 SOURCE DESTINATION PORT PORT";
    let line = std::str::from_utf8(&bytes[..end]).ok().and_then(|line| line.strip_suffix('\r'));
    let words: Vec<&str> = line.ok_or(malformed)?.split(' ').collect();
    let client = match words.as_slice() {
        // What follows is to be ignored.
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", "TCP4", source, destination, source_port, destination_port] => {
            destination.parse::<Ipv4Addr>().map_err(|_| malformed)?;
            port(destination_port).ok_or(malformed)?;
            let ip: Ipv4Addr = source.parse().map_err(|_| malformed)?;
            Some(SocketAddr::new(ip.into(), port(source_port).ok_or(malformed)?))
        }
        ["PROXY", "TCP6", source, destination, source_port, destination_port] => {
            destination.parse::<Ipv6Addr>().map_err(|_| malformed)?;
            port(destination_port).ok_or(malformed)?;
            let ip: Ipv6Addr = source.parse().map_err(|_| malformed)?;
            Some(SocketAddr::new(ip.into(), port(source_port).ok_or(malformed)?))
        }
        _ => return Err(malformed),
    };
    Ok(Preface::Whole { bytes: end + 1, client })
}

/// Digits without a leading zero.
fn port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

/// Signature, version and command, family, length, addresses, and more that is passed over (§2.2).
fn parse_v2(bytes: &[u8]) -> Result<Preface, &'static str> {
    if !begins(bytes, V2) {
        return Err("a PROXY header is expected here (--proxy-protocol)");
    }
    let Some((fixed, rest)) = bytes.split_at_checked(V2_FIXED) else { return Ok(Preface::Partial) };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if V2_FIXED + length > V2_BYTES_MAX {
        return Err("the PROXY header has more than 4096 bytes");
    }
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err("the PROXY header is of a version or command that is not known"),
    };
    // Of a stream over IPv4 and IPv6; over a Unix socket or not told; nothing else comes over TCP.
    let addresses = match fixed[13] {
        0x11 => 12,
        0x21 => 36,
        0x00 | 0x31 => 0,
        // The proxy's own connection: whatever it says of a client is to be ignored.
        _ if is_local => 0,
        _ => return Err("the PROXY header is not of a TCP connection"),
    };
    if length < addresses && !is_local {
        return Err("the PROXY header is too short for its addresses");
    }
    if rest.len() < length {
        return Ok(Preface::Partial);
    }
    let client = match addresses {
        _ if is_local => None,
        12 => {
            let ip: [u8; 4] = rest[..4].try_into().expect("four bytes");
            Some(SocketAddr::new(IpAddr::from(ip), u16::from_be_bytes([rest[8], rest[9]])))
        }
        36 => {
            let ip: [u8; 16] = rest[..16].try_into().expect("sixteen bytes");
            Some(SocketAddr::new(IpAddr::from(ip), u16::from_be_bytes([rest[32], rest[33]])))
        }
        _ => None,
    };
    Ok(Preface::Whole { bytes: V2_FIXED + length, client })
}

/// Headers for unit tests.
#[cfg(test)]
pub mod fixtures {
    use super::*;

    /// A header of version 2 with these bytes behind its addresses.
    pub fn v2(client: SocketAddr, more: &[u8]) -> Vec<u8> {
        let (family, mut addresses) = match client.ip() {
            IpAddr::V4(ip) => (0x11, [ip.octets(), [127, 0, 0, 1]].concat()),
            IpAddr::V6(ip) => (0x21, [ip.octets(), Ipv6Addr::LOCALHOST.octets()].concat()),
        };
        addresses.extend(client.port().to_be_bytes());
        addresses.extend([0x1f, 0x90]);
        addresses.extend(more);
        [&V2[..], &[0x21, family], &(addresses.len() as u16).to_be_bytes(), &addresses].concat()
    }

    /// A header of version 1.
    pub fn v1(client: SocketAddr) -> Vec<u8> {
        let (word, destination) = if client.is_ipv4() { ("TCP4", "127.0.0.1") } else { ("TCP6", "::1") };
        format!("PROXY {word} {} {destination} {} 8080\r\n", client.ip(), client.port()).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::fixtures::{v1, v2};
    use super::*;

    fn client(text: &str) -> Option<SocketAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        let longest = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
                        ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        for (header, told) in [
            (
                &b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"[..],
                client("255.255.255.255:65535"),
            ),
            (longest, client("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535")),
            (b"PROXY UNKNOWN\r\n", None),
            (b"PROXY UNKNOWN anything at all\r\n", None),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00", None),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\x11\x00\x02xx", None),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x00\x00\x00", None),
            (
                b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\xc0\0\x02\x01\x7f\0\0\x01\xc3\x50\x00\x50",
                client("192.0.2.1:50000"),
            ),
        ] {
            let whole = Ok(Preface::Whole { bytes: header.len(), client: told });
            assert_eq!(parse(header), whole, "{}", header.escape_ascii());
            assert_eq!(parse(&[header, b"GET / HTTP/1.1\r\n"].concat()), whole);
        }
    }

    #[test]
    fn what_is_no_header_is_told() {
        for (header, word) in [
            (&b"GET / HTTP/1.1\r\n"[..], "expected here"),
            (b"POST / HTTP/1.1\r\n", "expected here"),
            (b"\r\nGET / HTTP/1.1\r\n", "expected here"),
            (b"\x16\x03\x01", "expected here"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "form"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n", "form"),
            (b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "form"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n", "form"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n", "form"),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n", "form"),
            (b"PROXY TCP4 ::1 ::1 1 2\r\n", "form"),
            (b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n", "form"),
            (&[b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(), "more than 107"),
            (b"\r\n\r\n\0\r\nQUIT\n\x11\x11\x00\x0c", "version"),
            (b"\r\n\r\n\0\r\nQUIT\n\x22\x11\x00\x0c", "version"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x12\x00\x0c", "not of a TCP"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0b", "too short"),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "more than 4096"),
        ] {
            let error = parse(header).expect_err("no header");
            assert!(error.contains(word), "{}: {error}", header.escape_ascii());
        }
    }

    #[test]
    fn a_header_where_none_is_expected_is_known() {
        for (bytes, is_one) in [
            (&b"PROXY TCP4 "[..], true),
            (&V2[..], true),
            (&V2[..7], true),
            (b"\r\n\r\nGET ", false),
            (b"PROX", false),
            (b"GET /sse", false),
        ] {
            assert_eq!(begins_like_one(bytes), is_one, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn a_header_is_read_back_and_never_sooner_than_its_last_byte(
            client: SocketAddr,
            more in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let client = match client {
                // Neither version tells a scope.
                SocketAddr::V6(v6) => SocketAddr::new((*v6.ip()).into(), v6.port()),
                v4 => v4,
            };
            for header in [v1(client), v2(client, &more)] {
                for end in 0..header.len() {
                    prop_assert_eq!(parse(&header[..end]), Ok(Preface::Partial));
                }
                let whole = Ok(Preface::Whole { bytes: header.len(), client: Some(client) });
                prop_assert_eq!(parse(&header), whole);
                prop_assert_eq!(parse(&[&header, &more[..]].concat()), whole);
                prop_assert!(begins_like_one(&header));
            }
        }

        #[test]
        fn any_bytes_are_told_in_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..64), version in 0..3) {
            let start: &[u8] = [&b""[..], V1, &V2[..]][version as usize];
            let bytes = [start, &bytes, &[b'x'; V2_BYTES_MAX]].concat();
            prop_assert_ne!(parse(&bytes), Ok(Preface::Partial));
        }
    }
}

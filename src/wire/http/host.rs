//! The `Host` field (RFC 9110 §7.2): whether it is one, and whether its name is ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// True for `uri-host [ ":" port ]` (RFC 3986 §3.2.2), and for nothing at all: a target without an
/// authority has an empty `Host`.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let (host, port) = split_port(text);
    let port = port.unwrap_or_default();
    if port.len() > 5 || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return false;
    }
    match host.strip_prefix('[') {
        Some(literal) => literal.strip_suffix(']').is_some_and(is_ip_literal),
        None => is_registered_name(host),
    }
}

/// True if the `Host` field `value` names this machine wherever the name is resolved: `localhost`,
/// an IP address as such, or nothing. Any other name may lead here by the will of a stranger who
/// owns it (DNS rebinding); those in `names` are the operator's.
pub(crate) fn is_ours(value: &str, names: &[String]) -> bool {
    let (host, _) = split_port(value);
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
    let known = names.iter().any(|known| known.eq_ignore_ascii_case(name));
    name.is_empty() || is_address || name.eq_ignore_ascii_case("localhost") || known
}

/// True if an authority names this machine and no other one: `localhost`, or an address of
/// loopback. No stranger can make such a name lead anywhere else.
pub(super) fn is_loopback(authority: &str) -> bool {
    let (host, _) = split_port(authority);
    let name = host.strip_suffix('.').unwrap_or(host);
    let address = match host.strip_prefix('[') {
        Some(literal) => literal.trim_end_matches(']').parse().map(IpAddr::V6).ok(),
        None => host.parse().map(IpAddr::V4).ok(),
    };
    name.eq_ignore_ascii_case("localhost")
        || address.is_some_and(|address| address.to_canonical().is_loopback())
}

/// Host and port of an authority; a bracketed address keeps its brackets.
pub(super) fn split_port(authority: &str) -> (&str, Option<&str>) {
    let after_brackets = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[after_brackets..].find(':') {
        Some(colon) => {
            let colon = after_brackets + colon;
            (&authority[..colon], Some(&authority[colon + 1..]))
        }
        None => (authority, None),
    }
}

/// An IPv6 address, perhaps with a zone (RFC 6874), or an address of a later version (RFC 3986
/// §3.2.2).
fn is_ip_literal(literal: &str) -> bool {
    let (address, zone) = match literal.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (literal, None),
    };
    let later = |text: &str| {
        let (version, rest) = text.split_once('.').unwrap_or_default();
        !version.is_empty()
            && version.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !rest.is_empty()
            && rest.bytes().all(|byte| byte == b':' || is_name_byte(byte))
    };
    let zoned = zone.is_none_or(|zone| !zone.is_empty() && zone.bytes().all(is_name_byte));
    zoned && address.parse::<Ipv6Addr>().is_ok() || literal.strip_prefix(['v', 'V']).is_some_and(later)
}

/// `reg-name`, which an IPv4 address is too.
fn is_registered_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
        byte => is_name_byte(*byte),
    })
}

/// `unreserved` and `sub-delims`.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_at_most_one_port() {
        for host in [
            "",
            "h",
            "edge.example",
            "EDGE:8080",
            "h:",
            "a_b:1",
            "a,b",
            "%41",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:8080",
            "[fe80::1%2]",
            "[v1.x:y]",
            "xn--bcher-kva.example.",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "a b", "u@h", "h:80:80", "[::1", "::1", "[::1]x", "[h]", "h:x", "h:123456", "h/", "h?", "<h>",
            "%4", "[]", "[::1%]", "räume", "h\"",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
        assert!(!is_host(b"\xff"));
    }

    #[test]
    fn localhost_and_addresses_are_ours_and_other_names_are_the_operators_matter() {
        let names = ["Edge.example".to_string()];
        for host in [
            "localhost",
            "LOCALHOST:8081",
            "localhost.",
            "127.0.0.1:8081",
            "10.1.2.3",
            "[::1]:1",
            "",
            "edge.EXAMPLE:9",
        ] {
            assert!(is_ours(host, &names), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:8081", "127.0.0.1.evil.example", "1.2.3", "0x7f.1"]
        {
            assert!(!is_ours(host, &names), "{host}");
        }
        assert!(!is_ours("edge.example", &[]));
    }

    #[test]
    fn loopback_is_localhost_and_the_addresses_of_loopback() {
        for host in
            ["localhost", "LocalHost.:8080", "127.0.0.1:1", "127.9.9.9", "[::1]:8080", "[::ffff:127.0.0.1]"]
        {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "10.0.0.1:8080",
            "0.0.0.0",
            "[::]",
            "[fe80::1]",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example:80",
            "a.localhost",
            "2130706433",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}

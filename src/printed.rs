//! Commands that we print for people to paste: addresses that one can connect to, words that a
//! shell takes whole.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Where a client on this machine connects to reach `address`, as host and port of a URL: "every
/// interface" becomes the loopback one. A scope stays, written as RFC 6874 wants it:
/// `[fe80::1%252]:8080`; curl takes that, URLs of browsers and of our own clients have no scopes.
pub fn reachable(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    match scope(address) {
        Some(scope) => format!("[{ip}%25{scope}]:{}", address.port()),
        None => SocketAddr::new(ip, address.port()).to_string(),
    }
}

/// The interface to which an IPv6 address is confined, by its number.
pub fn scope(address: SocketAddr) -> Option<u32> {
    match address {
        SocketAddr::V6(address) => Some(address.scope_id()).filter(|scope| *scope != 0),
        SocketAddr::V4(_) => None,
    }
}

/// `text` as one word of bash, zsh and any POSIX shell: as it is where none of them would change
/// it, else in quotes.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_string()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_interface_is_reached_on_the_loopback_one() {
        for (bound, reached) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("10.0.0.1:3", "10.0.0.1:3"),
            ("[fe80::1]:4", "[fe80::1]:4"),
        ] {
            assert_eq!(reachable(bound.parse().expect("an address")), reached);
        }
    }

    #[test]
    fn a_scope_stays_in_the_form_that_urls_have_for_it() {
        let bound = "[fe80::1%2]:8080".parse().expect("an address with a scope");
        assert_eq!(reachable(bound), "[fe80::1%252]:8080");
    }

    #[test]
    fn a_word_is_quoted_only_where_a_shell_would_change_it() {
        for (text, word) in [
            ("/run/a.sock", "/run/a.sock"),
            ("/run/a,b@c+d-e_f", "/run/a,b@c+d-e_f"),
            ("http://127.0.0.1:1/sse/räume%20", "'http://127.0.0.1:1/sse/räume%20'"),
            ("http://127.0.0.1:1/sse/a%20b", "http://127.0.0.1:1/sse/a%20b"),
            ("http://[::1]:1/sse/hello", "'http://[::1]:1/sse/hello'"),
            ("http://a:1/t?event=e&id=1", "'http://a:1/t?event=e&id=1'"),
            ("/run/a b", "'/run/a b'"),
            ("it's", r"'it'\''s'"),
            ("$x", "'$x'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(text), word);
        }
    }

    /// Every ASCII character that can be typed, alone, at the start, in the middle and at the end
    /// of a word; and those words of which shells make something else only as a whole.
    #[test]
    fn every_shell_takes_a_quoted_word_as_it_was() {
        let printable =
            (' '..='~').flat_map(|c| [format!("{c}"), format!("{c}a"), format!("a{c}b"), format!("a{c}")]);
        let whole = [
            "http://[::1]:1/a?b=c&d",
            "[fe80::1%252]:1",
            "{a,b}",
            "a{1..3}",
            "~root",
            "a:~",
            "=ls",
            "!!",
            "räume",
        ];
        let texts: Vec<String> = printable.chain(whole.map(String::from)).collect();
        let words: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
        let script = format!("printf '<%s>\\n' {}", words.join(" "));
        let expected: String = texts.iter().map(|text| format!("<{text}>\n")).collect();
        for shell in ["sh", "bash", "zsh"] {
            let Ok(output) = Command::new(shell).args(["-c", &script]).output() else {
                eprintln!("skipped: this machine has no {shell}");
                continue;
            };
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{shell}");
            assert!(output.status.success(), "{shell}: {output:?}");
        }
    }
}

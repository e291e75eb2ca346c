//! The flags about another server as the source: where it is, what of it is followed.

use std::path::PathBuf;

use reqwest::Url;

use crate::config::limits::RELAY_MATCHES_MAX;
use crate::topic_pattern::Pattern;

/// A server that is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// `relay://HOST:PORT`, as the operator wrote it.
    pub name: String,
    /// The same as the address of a WebSocket.
    pub origin: Url,
    /// What of it is followed, at least one.
    pub matches: Vec<Pattern>,
    /// A file with the token that lets us in there.
    pub token_file: Option<PathBuf>,
    /// Who signs its certificate, in PEM; else the system's.
    pub ca: Option<PathBuf>,
}

/// What flags about a relay say that they may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// No address of a server.
    #[error("--source {0}: write relay://HOST:PORT, or relays://HOST:PORT where the origin speaks TLS")]
    Address(String),
    /// A flag that has no meaning with another source.
    #[error("--{0} needs another server as the source, such as --source relay://127.0.0.1:8080")]
    WithoutSource(&'static str),
    /// Authorities, and nobody to believe because of them.
    #[error("--relay-ca needs an origin with TLS: relays://HOST:PORT")]
    NoTls,
    /// More than [`RELAY_MATCHES_MAX`].
    #[error("--relay-match: at most {RELAY_MATCHES_MAX} patterns may be followed; use * and **")]
    TooMany,
}

/// The flags of [`Relay`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Source")]
pub(super) struct RelayFlags {
    /// What of the origin is followed: a list of patterns, * for one segment, ** at the end for the
    /// rest [default: **]
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern)]
    relay_match: Vec<Pattern>,
    /// File with the bearer token that the origin asks for; read at each connection
    #[arg(long, value_name = "FILE")]
    relay_token_file: Option<PathBuf>,
    /// Certificates of those who sign the origin's certificate, in PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    relay_ca: Option<PathBuf>,
}

impl RelayFlags {
    /// Checked; none without an address.
    pub(super) fn relay(self, address: Option<&str>) -> Result<Option<Relay>, RelayError> {
        let Some(name) = address else {
            let given = [
                ("relay-match", !self.relay_match.is_empty()),
                ("relay-token-file", self.relay_token_file.is_some()),
                ("relay-ca", self.relay_ca.is_some()),
            ];
            let first = given.into_iter().find(|(_, given)| *given);
            return first.map_or(Ok(None), |(flag, _)| Err(RelayError::WithoutSource(flag)));
        };
        let origin = origin(name).ok_or_else(|| RelayError::Address(name.to_string()))?;
        if self.relay_ca.is_some() && origin.scheme() != "wss" {
            return Err(RelayError::NoTls);
        }
        if self.relay_match.len() > RELAY_MATCHES_MAX {
            return Err(RelayError::TooMany);
        }
        let all = || vec![Pattern::new("**").expect("a pattern")];
        let matches = if self.relay_match.is_empty() { all() } else { self.relay_match };
        let (token_file, ca) = (self.relay_token_file, self.relay_ca);
        Ok(Some(Relay { name: name.to_string(), origin, matches, token_file, ca }))
    }
}

/// True for an address of a server to follow, well-formed or not.
pub(super) fn is_relay(source: &str) -> bool {
    source.starts_with("relay:") || source.starts_with("relays:")
}

/// The address of the origin's WebSockets.
fn origin(name: &str) -> Option<Url> {
    let (scheme, place) = name.split_once("://")?;
    let scheme = match scheme {
        "relay" => "ws",
        "relays" => "wss",
        _ => return None,
    };
    let place = place.strip_suffix('/').unwrap_or(place);
    let url = Url::parse(&format!("{scheme}://{place}")).ok()?;
    let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let is_bare = is_bare && url.username().is_empty() && url.password().is_none() && !place.contains('@');
    (is_bare && url.has_host()).then_some(url)
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(patterns: &[&str]) -> RelayFlags {
        let relay_match = patterns.iter().map(|text| Pattern::new(text).expect("a pattern")).collect();
        RelayFlags { relay_match, relay_token_file: None, relay_ca: None }
    }

    #[test]
    fn an_origin_is_a_host_and_a_port() {
        for (name, url) in [
            ("relay://a:8080", "ws://a:8080/"),
            ("relay://a:8080/", "ws://a:8080/"),
            ("relays://edge.example", "wss://edge.example/"),
            ("relay://[::1]:1", "ws://[::1]:1/"),
        ] {
            let relay = flags(&[]).relay(Some(name)).expect(name).expect("a relay");
            assert_eq!((relay.origin.as_str(), relay.name.as_str()), (url, name));
            assert_eq!(relay.matches, [Pattern::new("**").expect("a pattern")]);
        }
        for name in [
            "relay://",
            "relay:a",
            "relay://a/b",
            "relay://a?x",
            "relay://me@a",
            "relay://me:x@a",
            "relay://a:x",
            "relay://a b",
            "relay:///",
            "relay://a#b",
        ] {
            assert_eq!(flags(&[]).relay(Some(name)), Err(RelayError::Address(name.into())), "{name}");
        }
    }

    #[test]
    fn flags_of_a_relay_need_one() {
        assert_eq!(flags(&[]).relay(None), Ok(None));
        assert_eq!(flags(&["a/**"]).relay(None), Err(RelayError::WithoutSource("relay-match")));
        let ca = RelayFlags { relay_ca: Some("ca.pem".into()), ..flags(&[]) };
        assert_eq!(ca.relay(Some("relay://a")), Err(RelayError::NoTls));
        let many = vec!["a/*"; RELAY_MATCHES_MAX + 1];
        assert_eq!(flags(&many).relay(Some("relay://a")), Err(RelayError::TooMany));
    }
}

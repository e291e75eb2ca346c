//! Which web pages may read our answers and open WebSockets (Fetch §3.3, RFC 6455 §10.2).
//!
//! An origin is compared as text, in the one form in which browsers write it: lower case, without
//! the scheme's own port. `null`, which sandboxed pages and files send, is nobody's.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::host::{is_host, is_loopback, split_port};

/// The origin of a page: `scheme://host[:port]` as browsers serialize it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Arc<str>);

impl Origin {
    /// As browsers write it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What text lacks to be an origin; the message says what to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// `://` is missing.
    #[error("write an origin such as https://example.com")]
    NoScheme,
    /// What stands before `://` is no scheme (RFC 3986 §3.1).
    #[error("an origin begins with its scheme, as https://example.com does")]
    Scheme,
    /// What stands behind it is no host with or without a port.
    #[error("an origin is scheme://host or scheme://host:port, without a path")]
    Host,
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Origin, OriginError> {
        let lower = text.to_ascii_lowercase();
        let Some((scheme, authority)) = lower.split_once("://") else {
            return Err(OriginError::NoScheme);
        };
        let scheme_bytes = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_alphabetic()) || !scheme.bytes().all(scheme_bytes)
        {
            return Err(OriginError::Scheme);
        }
        if authority.is_empty() || !is_host(authority.as_bytes()) {
            return Err(OriginError::Host);
        }
        Ok(Origin(format!("{scheme}://{}", without_default_port(scheme, authority)).into()))
    }
}

/// Which pages of other origins the operator lets in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    #[default]
    Any,
    /// These, and a page of our own.
    These(Vec<Origin>),
    /// None but a page of our own.
    None,
    /// Those of this machine, where they ask for it by a name of loopback. All other requests that
    /// a browser may have sent for a page are refused.
    Loopback,
}

/// What of a request names a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// Its page is of an origin that the operator has not named.
    Unnamed,
    /// Its page is not of this machine.
    Origin,
    /// The name under which it asks may be a stranger's.
    Host,
}

impl Foreign {
    /// One line for a human.
    pub fn text(self) -> &'static str {
        match self {
            Foreign::Unnamed => {
                "pages of this Origin may neither open WebSockets nor publish here (--cors-origin)"
            }
            Foreign::Origin => {
                "only pages of localhost and of loopback addresses may ask here (--playground)"
            }
            Foreign::Host => {
                "this server is asked as localhost or by a loopback address alone (--playground)"
            }
        }
    }
}

/// What an answer tells the browser of a page about who may read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cors {
    /// Nothing.
    #[default]
    Silent,
    /// Every page may.
    Any,
    /// Pages of this origin may, with credentials.
    Named(Origin),
    /// This page may not, another one might.
    Other,
}

impl Origins {
    /// What to tell a page of `origin`, the value of its field.
    pub fn cors(&self, origin: Option<&[u8]>) -> Cors {
        match self {
            Origins::Any => Cors::Any,
            Origins::None => Cors::Silent,
            Origins::Loopback if origin.is_none_or(is_loopback_origin) => Cors::Any,
            Origins::Loopback => Cors::Silent,
            Origins::These(listed) => {
                let known = listed.iter().find(|known| origin == Some(known.0.as_bytes()));
                known.map_or(Cors::Other, |known| Cors::Named(known.clone()))
            }
        }
    }

    /// Refuses a page of `origin` that may not open a WebSocket at `host`, nor publish there, where
    /// TLS is spoken or not. A client that names no origin is no page.
    pub fn admit(&self, origin: Option<&[u8]>, host: Option<&[u8]>, is_secure: bool) -> Result<(), Foreign> {
        let is_admitted = |origin: &[u8]| match self {
            Origins::Any | Origins::Loopback => true,
            Origins::These(listed) if listed.iter().any(|known| known.0.as_bytes() == origin) => true,
            Origins::These(_) | Origins::None => {
                host.is_some_and(|host| is_own_page(origin, host, is_secure))
            }
        };
        if !origin.is_none_or(is_admitted) {
            return Err(Foreign::Unnamed);
        }
        self.admit_reader(origin, host)
    }

    /// Refuses what no request may, also one that only reads: what a browser keeps from a foreign
    /// page is not refused.
    pub fn admit_reader(&self, origin: Option<&[u8]>, host: Option<&[u8]>) -> Result<(), Foreign> {
        let is_ours = |host: &[u8]| std::str::from_utf8(host).is_ok_and(is_loopback);
        match self {
            Origins::Any | Origins::These(_) | Origins::None => Ok(()),
            // Every browser names a host (RFC 9112 §3.2).
            Origins::Loopback if !host.is_none_or(is_ours) => Err(Foreign::Host),
            Origins::Loopback if !origin.is_none_or(is_loopback_origin) => Err(Foreign::Origin),
            Origins::Loopback => Ok(()),
        }
    }
}

/// True for the origin of a page that this machine has served by a name of loopback.
fn is_loopback_origin(origin: &[u8]) -> bool {
    let origin = std::str::from_utf8(origin).unwrap_or_default();
    matches!(origin.split_once("://"), Some(("http" | "https", authority)) if is_loopback(authority))
}

/// True if `origin` is that of a page that came from `host`, the value of the `Host` field. A proxy
/// may speak TLS for us. Where we do (`is_secure`), a page that came without it is not ours: others
/// may have written into it on its way.
pub(crate) fn is_own_page(origin: &[u8], host: &[u8], is_secure: bool) -> bool {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_ascii_lowercase);
    let (Some(origin), Some(host)) = (text(origin), text(host)) else { return false };
    let Some((scheme @ ("http" | "https"), authority)) = origin.split_once("://") else { return false };
    !authority.is_empty()
        && (scheme == "https" || !is_secure)
        && without_default_port(scheme, authority) == without_default_port(scheme, &host)
}

/// An authority without the port that its scheme means anyway.
fn without_default_port<'a>(scheme: &str, authority: &'a str) -> &'a str {
    match (scheme, split_port(authority)) {
        ("http", (host, Some("80" | ""))) | ("https", (host, Some("443" | ""))) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(origins: &[&str]) -> Origins {
        Origins::These(origins.iter().map(|text| text.parse().expect(text)).collect())
    }

    #[test]
    fn an_origin_is_read_as_browsers_write_it() {
        for (text, origin) in [
            ("https://a.example", "https://a.example"),
            ("HTTPS://A.Example:443", "https://a.example"),
            ("http://localhost:80", "http://localhost"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("https://a.example:80", "https://a.example:80"),
            ("http://[::1]:5173", "http://[::1]:5173"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ] {
            assert_eq!(text.parse::<Origin>().expect(text).as_str(), origin);
        }
        for text in [
            "",
            "null",
            "a.example",
            "https://",
            "https://a/",
            "https://a b",
            "://a",
            "1x://a",
            "https://u@a",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_listed_page_is_named_and_a_foreign_one_is_told_nothing() {
        let listed = these(&["https://a.example", "https://b.example:8443"]);
        let named = |text: &str| Cors::Named(text.parse().expect(text));
        for (origin, cors) in [
            (Some("https://a.example"), named("https://a.example")),
            (Some("https://b.example:8443"), named("https://b.example:8443")),
            (Some("https://b.example"), Cors::Other),
            (Some("http://a.example"), Cors::Other),
            (Some("null"), Cors::Other),
            (Some(""), Cors::Other),
            (None, Cors::Other),
        ] {
            assert_eq!(listed.cors(origin.map(str::as_bytes)), cors, "{origin:?}");
            assert_eq!(Origins::Any.cors(origin.map(str::as_bytes)), Cors::Any);
            assert_eq!(Origins::None.cors(origin.map(str::as_bytes)), Cors::Silent);
        }
    }

    #[test]
    fn a_websocket_is_for_our_own_pages_and_those_that_are_let_in() {
        let listed = these(&["https://a.example"]);
        for (origin, host, in_list, in_none) in [
            (None, Some("h"), true, true),
            (Some("https://a.example"), Some("h"), true, false),
            (Some("https://evil.example"), Some("h"), false, false),
            (Some("null"), Some("null"), false, false),
            (Some("http://h:8080"), Some("H:8080"), true, true),
            (Some("https://h"), Some("h:443"), true, true),
            (Some("https://h"), Some("h"), true, true),
            (Some("http://h"), Some("h:8080"), false, false),
            (Some("https://a.example"), None, true, false),
            (Some("http://h"), None, false, false),
            (Some("\u{fffd}"), Some("h"), false, false),
            (Some("http://"), Some(""), false, false),
        ] {
            let bytes = |text: Option<&'static str>| text.map(str::as_bytes);
            let admits = |rules: &Origins| rules.admit(bytes(origin), bytes(host), false).is_ok();
            assert_eq!(admits(&listed), in_list, "{origin:?} at {host:?}");
            assert_eq!(admits(&Origins::None), in_none, "{origin:?} at {host:?}");
            assert!(admits(&Origins::Any));
        }
    }

    #[test]
    fn a_page_that_came_without_tls_is_foreign_where_tls_is_spoken() {
        for (origin, host, plain, secure) in [
            ("https://edge:8444", "edge:8444", true, true),
            ("https://edge", "edge", true, true),
            ("https://edge", "edge:443", true, true),
            ("HTTPS://edge", "edge", true, true),
            ("http://edge", "edge", true, false),
            ("http://edge:8444", "edge:8444", true, false),
            ("https://other", "edge", false, false),
            ("null", "edge", false, false),
        ] {
            let admits = |is_secure| {
                Origins::None.admit(Some(origin.as_bytes()), Some(host.as_bytes()), is_secure).is_ok()
            };
            assert_eq!((admits(false), admits(true)), (plain, secure), "{origin} at {host}");
        }
        let listed = these(&["http://edge"]);
        assert_eq!(listed.admit(Some(b"http://edge"), Some(b"edge"), true), Ok(()), "it was named");
    }

    #[test]
    fn on_loopback_alone_every_foreign_page_and_name_is_refused() {
        for (origin, host, expected) in [
            (None, Some("127.0.0.1:8080"), Ok(())),
            (None, None, Ok(())),
            (Some("http://127.0.0.1:8081"), Some("127.0.0.1:8080"), Ok(())),
            (Some("http://localhost:3000"), Some("[::1]:8080"), Ok(())),
            (Some("https://localhost"), Some("localhost"), Ok(())),
            (Some("https://evil.example"), Some("127.0.0.1:8080"), Err(Foreign::Origin)),
            (Some("null"), Some("127.0.0.1:8080"), Err(Foreign::Origin)),
            (Some("file://localhost"), Some("localhost"), Err(Foreign::Origin)),
            (Some("http://192.0.2.1:8081"), Some("127.0.0.1:8080"), Err(Foreign::Origin)),
            (None, Some("evil.example:8080"), Err(Foreign::Host)),
            (None, Some("192.0.2.1:8080"), Err(Foreign::Host)),
            (Some("http://localhost:3000"), Some("evil.example"), Err(Foreign::Host)),
        ] {
            let bytes = |text: Option<&'static str>| text.map(str::as_bytes);
            let rules = Origins::Loopback;
            assert_eq!(rules.admit(bytes(origin), bytes(host), true), expected, "{origin:?} at {host:?}");
            assert_eq!(rules.admit_reader(bytes(origin), bytes(host)), expected, "{origin:?} at {host:?}");
            let is_foreign = expected == Err(Foreign::Origin);
            assert_eq!(rules.cors(bytes(origin)), if is_foreign { Cors::Silent } else { Cors::Any });
        }
    }
}

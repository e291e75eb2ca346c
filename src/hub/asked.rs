//! How a client of the control plane asks, and where it finds the data plane: by the host under
//! which it asked, and with TLS if that is how it asked.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderValue;
use axum::http::uri::Authority;

use crate::printed::reachable;

/// Host and port of a `Host` field, if they make an address. A link-local one makes none: a `Host`
/// has no scope.
pub(super) fn authority(host: &HeaderValue) -> Option<Authority> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let host: Authority = host.to_str().ok().filter(|host| host.bytes().all(plain))?.parse().ok()?;
    let bracketed = host.host().contains(['[', ']']);
    let global = |ip| matches!(ip, IpAddr::V6(ip) if !ip.is_unicast_link_local());
    let named = !host.host().is_empty() && (!bracketed || ip_of(host.host()).is_some_and(global));
    // A port that is none reads as nothing, although something stands there.
    let ported = host.port_u16().is_some() || host.as_str() == host.host();
    (named && ported).then_some(host)
}

fn ip_of(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

/// Whether clients of a listener speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// They do not.
    Http,
    /// They do.
    Https,
}

impl Scheme {
    /// In a URL.
    pub(super) fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    /// The same for WebSockets.
    pub(super) fn of_websockets(self) -> &'static str {
        match self {
            Scheme::Http => "ws",
            Scheme::Https => "wss",
        }
    }
}

/// Where subscribers connect, as bound.
#[derive(Debug, Clone, Default)]
pub struct DataAddresses {
    /// Without TLS.
    pub plain: Vec<SocketAddr>,
    /// With TLS.
    pub tls: Vec<SocketAddr>,
}

impl DataAddresses {
    /// Where the caller finds the data plane. A page that came with TLS may only speak to an
    /// address with TLS (Mixed Content §4.4), so that is named to a caller that speaks it, where
    /// there is one.
    pub(super) fn found(&self, scheme: Scheme, asked: Option<&Authority>) -> Option<(Scheme, String)> {
        let plain = || Some((Scheme::Http, data_address(&self.plain, asked)?));
        let tls = || Some((Scheme::Https, data_address(&self.tls, asked)?));
        match scheme {
            Scheme::Http => plain().or_else(tls),
            Scheme::Https => tls().or_else(plain),
        }
    }
}

/// Where the caller finds the data plane: on the host that it `asked`, if that is bound on every
/// interface.
fn data_address(listen: &[SocketAddr], asked: Option<&Authority>) -> Option<String> {
    let on_asked = asked.map(Authority::host).and_then(|host| {
        let same_family = |bound: &&SocketAddr| ip_of(host).is_none_or(|ip| ip.is_ipv4() == bound.is_ipv4());
        let bound = listen.iter().filter(|bound| bound.ip().is_unspecified()).find(same_family)?;
        Some(format!("{host}:{}", bound.port()))
    });
    on_asked.or_else(|| listen.first().map(|bound| reachable(*bound)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_repeated_only_if_it_makes_an_address() {
        for (host, taken) in [
            ("edge.example:8081", true),
            ("10.0.0.1", true),
            ("[::1]:8081", true),
            ("[fe80::1]:8081", false),
            (":99", false),
            ("[]:1", false),
            ("a[b]", false),
            ("x:999999", false),
            ("x:", false),
            ("$(reboot)", false),
            ("a b", false),
        ] {
            assert_eq!(authority(&HeaderValue::from_static(host)).is_some(), taken, "{host}");
        }
    }

    #[test]
    fn the_data_plane_is_found_on_the_host_that_was_asked_where_its_family_listens() {
        let both: Vec<SocketAddr> =
            ["[::]:80", "0.0.0.0:81"].map(|text| text.parse().expect("an address")).into();
        for (listen, asked, found) in [
            (&both[..], "192.0.2.2:8081", "192.0.2.2:81"),
            (&both[..], "[2001:db8::1]:8081", "[2001:db8::1]:80"),
            (&both[..], "edge.example:8081", "edge.example:80"),
            (&both[1..], "[2001:db8::1]:8081", "127.0.0.1:81"),
        ] {
            let asked: Authority = asked.parse().expect("host and port");
            assert_eq!(data_address(listen, Some(&asked)).as_deref(), Some(found), "{asked}");
        }
        assert_eq!(data_address(&both, None).as_deref(), Some("[::1]:80"), "nobody said where it asked");
        assert_eq!(data_address(&[], None), None);
    }

    #[test]
    fn a_caller_with_tls_finds_the_data_plane_with_tls_where_there_is_one() {
        let address = |text: &str| vec![text.parse().expect("an address")];
        let both = DataAddresses { plain: address("0.0.0.0:80"), tls: address("0.0.0.0:443") };
        let plain = DataAddresses { plain: address("0.0.0.0:80"), tls: Vec::new() };
        let asked = "edge.example:8444".parse().ok();
        let found = |addresses: &DataAddresses, scheme| addresses.found(scheme, asked.as_ref());
        let (http, https) = ("edge.example:80".to_string(), "edge.example:443".to_string());
        assert_eq!(found(&both, Scheme::Http), Some((Scheme::Http, http.clone())));
        assert_eq!(found(&both, Scheme::Https), Some((Scheme::Https, https)));
        assert_eq!(found(&plain, Scheme::Https), Some((Scheme::Http, http)));
    }
}

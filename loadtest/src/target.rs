//! The server under test, whoever it is: where to subscribe, where and how to publish, which
//! processes to charge.
//!
//! Where a path or subject holds `{topic}`, the name of a topic stands in its place (see
//! [`topic_name`]).

use std::net::SocketAddr;
use std::time::Duration;

use crate::framing::{Dialect, Protocol};
use crate::secure::TlsClient;
use crate::token::Secret;
use crate::way::Way;
use crate::workload::{Listens, Slow};

/// A running server.
#[derive(Debug, Clone)]
pub struct Target {
    /// `fanwave`, `nchan`, `nats`, or what the user called it.
    pub name: String,
    /// What it calls its version.
    pub version: String,
    /// Processes whose CPU and memory are its cost; empty if it is not on this machine.
    pub pids: Vec<u32>,
    /// CPUs it is pinned to; empty if unknown.
    pub cpus: Vec<usize>,
    /// Where subscribers connect.
    pub subscribe: SocketAddr,
    /// How they speak TLS there, if they do.
    pub tls: Option<TlsClient>,
    /// How many event streams share a connection there, if they come over HTTP/2.
    pub h2_streams: Option<usize>,
    /// What the tokens are signed with that the server asks for, if it does.
    pub secret: Option<Secret>,
    /// Where clients that publish connect, always in plain.
    pub clients: SocketAddr,
    /// Path of a Server-Sent Events subscription with `{topic}`; absent if it has none.
    pub sse_path: Option<String>,
    /// Path of a WebSocket subscription with `{topic}`; absent if it has none. With
    /// [`Dialect::Nats`] the subject is the path without its first slash.
    pub ws_path: Option<String>,
    /// What flows over its connections.
    pub dialect: Dialect,
    /// Where publishers connect.
    pub publish: SocketAddr,
    /// How events are published.
    pub way: Way,
    /// Path or subject of a publish with `{topic}`; unused by [`Way::Stream`].
    pub publish_path: String,
}

impl Target {
    /// Path of a subscription with `{topic}`; `None` if the server does not speak the protocol.
    pub fn path(&self, protocol: Protocol) -> Option<&str> {
        match protocol {
            Protocol::Sse => self.sse_path.as_deref(),
            Protocol::Ws => self.ws_path.as_deref(),
            Protocol::Json => (self.dialect == Dialect::Fanwave).then_some("/ws"),
            Protocol::Raw => None,
        }
    }

    /// How many subscribers of a protocol share a connection of HTTP/2; `None` over HTTP/1.1, as
    /// WebSockets always are.
    pub fn streams(&self, protocol: Protocol) -> Option<usize> {
        self.h2_streams.filter(|_| protocol == Protocol::Sse)
    }

    /// Path of a subscription, and the commands that follow where it is made by commands. `None` if
    /// the server does not speak the protocol, or knows neither patterns nor policies.
    pub fn subscription(
        &self,
        protocol: Protocol,
        listens: Listens,
        slow: Option<Slow>,
    ) -> Option<(String, Vec<String>)> {
        let path = self.path(protocol)?;
        let plain = listens == Listens::One && slow.is_none();
        if !plain && self.dialect != Dialect::Fanwave {
            return None;
        }
        if protocol == Protocol::Json {
            let slow = slow.map(|slow| format!(",\"slow\":\"{}\"", slow.word())).unwrap_or_default();
            let one = (listens != Listens::All).then_some("\"topic\":\"{topic}\"");
            let all = (listens != Listens::One).then_some("\"match\":\"*\"");
            let commands = [one, all].into_iter().flatten().map(|of| format!("{{{of}{slow}}}"));
            return Some((path.to_owned(), commands.collect()));
        }
        let path = match listens {
            Listens::One => path.to_owned(),
            Listens::All => path.replace("/{topic}", "?match=*"),
            Listens::Both => path.replace("/{topic}", "?topic={topic}&match=*"),
        };
        let before = if path.contains('?') { '&' } else { '?' };
        let slow = slow.map(|slow| format!("{before}slow={}", slow.word())).unwrap_or_default();
        Some((path + &slow, Vec::new()))
    }

    /// How long after a subscriber has connected the server may say something that nobody
    /// published: a NATS server sends its first PING 2 s after the opening.
    pub fn talks_after_connect(&self) -> Duration {
        match self.dialect {
            Dialect::Plain | Dialect::Fanwave => Duration::ZERO,
            Dialect::Nats => Duration::from_secs(3),
        }
    }
}

/// The name of topic `index`.
pub fn topic_name(index: usize) -> String {
    format!("loadtest-{index}")
}

/// `pattern` with `{topic}` replaced by the name of topic `index`.
pub fn with_topic(pattern: &str, index: usize) -> String {
    pattern.replace("{topic}", &topic_name(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            name: "fanwave".into(),
            version: String::new(),
            pids: Vec::new(),
            cpus: Vec::new(),
            subscribe: ([127, 0, 0, 1], 1).into(),
            tls: None,
            h2_streams: None,
            secret: None,
            clients: ([127, 0, 0, 1], 1).into(),
            sse_path: Some("/sse/{topic}".into()),
            ws_path: Some("/ws/{topic}".into()),
            dialect: Dialect::Fanwave,
            publish: ([127, 0, 0, 1], 2).into(),
            way: Way::Stream,
            publish_path: "/topics/{topic}".into(),
        }
    }

    #[test]
    fn a_subscription_says_what_it_hears_and_its_policy_in_the_url_or_by_commands() {
        let fanwave = target();
        let of = |protocol, listens, slow| fanwave.subscription(protocol, listens, slow).expect("possible");
        let latest = Some(Slow::Latest);
        assert_eq!(of(Protocol::Ws, Listens::One, None).0, "/ws/{topic}");
        assert_eq!(of(Protocol::Sse, Listens::One, latest).0, "/sse/{topic}?slow=latest");
        assert_eq!(of(Protocol::Ws, Listens::Both, latest).0, "/ws?topic={topic}&match=*&slow=latest");
        let (path, commands) = of(Protocol::Json, Listens::Both, latest);
        let expected =
            ["{\"topic\":\"{topic}\",\"slow\":\"latest\"}", "{\"match\":\"*\",\"slow\":\"latest\"}"];
        assert_eq!((path.as_str(), commands), ("/ws", expected.map(String::from).to_vec()));
        let other = Target { dialect: Dialect::Plain, ..fanwave };
        assert_eq!(other.subscription(Protocol::Ws, Listens::All, None), None);
        assert_eq!(other.subscription(Protocol::Json, Listens::One, None), None);
    }
}

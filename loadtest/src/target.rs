//! The server under test, whoever it is: where to subscribe, where and how to publish, which
//! processes to charge.
//!
//! Where a path or subject holds `{topic}`, the name of a topic stands in its place (see
//! [`topic_name`]).

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::framing::{Dialect, Protocol};

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
            Protocol::Raw => None,
        }
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

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// One endless `POST /publish`, one NDJSON line per event (fanwave).
    Stream,
    /// One POST per event on a kept connection; the body is the data.
    Post,
    /// One WebSocket per topic; a message is an event.
    #[value(name = "ws")]
    WebSocket,
    /// `PUB` of the NATS client protocol over TCP.
    Nats,
    /// A program of the user's own, run by `sh -c`: the data of one event per line on its standard
    /// input. The path of the publish is the command; where it holds `{topic}`, every topic has a
    /// process of its own.
    #[value(skip)]
    Command,
}

/// The name of topic `index`.
pub fn topic_name(index: usize) -> String {
    format!("loadtest-{index}")
}

/// `pattern` with `{topic}` replaced by the name of topic `index`.
pub fn with_topic(pattern: &str, index: usize) -> String {
    pattern.replace("{topic}", &topic_name(index))
}

//! Which way events take to a server.

use serde::{Deserialize, Serialize};

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
    #[serde(alias = "ws")]
    WebSocket,
    /// The same, an event being a command of `fanwave.v1.json`.
    #[value(skip)]
    Json,
    /// `PUB` of the NATS client protocol over TCP.
    Nats,
    /// A program of the user's own, run by `sh -c`: the data of one event per line on its standard
    /// input. The path of the publish is the command; where it holds `{topic}`, every topic has a
    /// process of its own.
    #[value(skip)]
    Command,
}

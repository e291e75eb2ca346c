//! What is to be done to a server: subscribers of several kinds, events at a pace, for a time. A
//! scenario file is a [`Workload`] in TOML.

use serde::{Deserialize, Serialize};

use crate::framing::Protocol;
use crate::way::Way;

/// One workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// A short name: file names and titles use it.
    pub name: String,
    /// One sentence: what it stands for.
    pub about: String,
    /// Seconds of measurement, after everybody has connected and after the warm-up.
    pub seconds: f64,
    /// Seconds of publishing before the measurement.
    #[serde(default = "one")]
    pub warm_up_seconds: f64,
    /// Topics; connection k subscribes to topic k mod topics, event k goes to topic k mod topics.
    #[serde(default = "one_topic")]
    pub topics: usize,
    /// Bytes of one event's data, the stamp included.
    pub payload_bytes: usize,
    /// Values of each topic, told apart by the events' keys; one without keys if it is 1.
    #[serde(default = "one_topic")]
    pub keys: usize,
    /// Clients that publish over the data plane and hear what they said, in place of the one
    /// publisher: on each topic one of each of these kinds.
    #[serde(default)]
    pub speakers: Vec<Way>,
    /// How events come.
    pub publish: Pace,
    /// Who listens.
    pub subscribers: Vec<Crowd>,
}

impl Workload {
    /// Subscribers of all kinds.
    pub fn connections(&self) -> usize {
        self.subscribers.iter().fold(0, |sum, crowd| sum.saturating_add(crowd.connections))
    }
}

/// How events come, over all topics together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "pace")]
pub enum Pace {
    /// Open loop: so many events per second at even intervals, stamped with the time when each was
    /// due.
    Rate {
        /// Events per second.
        per_second: f64,
    },
    /// Open loop: so many events at once, again and again.
    Burst {
        /// Events at once.
        events: u64,
        /// Milliseconds from one burst to the next.
        every_ms: u64,
    },
    /// Closed loop: so many events are kept under way until they have arrived everywhere.
    InFlight {
        /// Events under way.
        events: u64,
    },
    /// All events of the run at once. Such a workload is judged, not measured: everybody must get
    /// everything.
    AtOnce {
        /// Events.
        events: u64,
        /// Each event in a POST of its own, in place of one stream.
        #[serde(default)]
        posts: bool,
    },
    /// Nothing is published but a few events at the end, which must reach everybody.
    Idle {},
}

/// Subscribers of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crowd {
    /// What they speak.
    pub protocol: Protocol,
    /// How many.
    pub connections: usize,
    /// Handshakes started per second while they connect; as fast as the server answers if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp_per_second: Option<f64>,
    /// What they do once they are connected.
    #[serde(default)]
    pub behaviour: Behaviour,
    /// What each of them hears.
    #[serde(default)]
    pub listens: Listens,
    /// What is to happen when one falls behind; the server's choice if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<Slow>,
}

impl Crowd {
    /// True for subscribers that take everything at once, so that they are owed every event.
    pub fn takes_all(&self) -> bool {
        self.behaviour.takes_all() && self.slow != Some(Slow::Latest)
    }
}

/// What a subscriber hears.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Listens {
    /// One topic.
    #[default]
    One,
    /// All topics, by a pattern.
    All,
    /// All topics, one of them both by its name and by a pattern.
    Both,
}

/// What happens to a subscriber that falls behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slow {
    /// It is closed.
    Close,
    /// It is told of a gap.
    Skip,
    /// It gets the newest event of each value.
    Latest,
}

impl Slow {
    /// The word in a subscription.
    pub fn word(self) -> &'static str {
        match self {
            Slow::Close => "close",
            Slow::Skip => "skip",
            Slow::Latest => "latest",
        }
    }
}

impl Behaviour {
    /// True for subscribers that take everything at once on their first connection, so that they
    /// are owed everything.
    pub fn takes_all(&self) -> bool {
        matches!(self, Behaviour::Steady | Behaviour::Once)
    }
}

/// What subscribers do once they are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields, tag = "kind")]
pub enum Behaviour {
    /// Read everything at once and stay.
    #[default]
    Steady,
    /// Read everything at once; one that the server closes is counted and stays away.
    Once,
    /// Read no faster than this, through a small receive buffer.
    Slow {
        /// Bytes per second and connection.
        bytes_per_second: u64,
    },
    /// Never read after the handshake.
    Stalled,
    /// Leave and come back as somebody new, all together at this rate.
    Churn {
        /// Connections replaced per second.
        per_second: f64,
    },
    /// Drop a share of the connections at once, and reconnect them at once, resuming after the last
    /// event received.
    Storm {
        /// Seconds from the start of the measurement to the storm.
        at_seconds: f64,
        /// Share of the crowd, above 0 and at most 1.
        share: f64,
    },
}

fn one() -> f64 {
    1.0
}

fn one_topic() -> usize {
    1
}

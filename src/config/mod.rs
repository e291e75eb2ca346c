//! What the process was told, validated and immutable. Hot code never parses.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

mod acme;
pub mod capacity;
mod control;
pub mod flags;
pub mod limits;
mod memory;
pub mod nats;
mod pages;
pub mod relay;
mod reload;
pub mod rules;
pub mod store;
mod tls;
mod tokens;
pub mod units;
mod upgrade;

pub use acme::{AcmeError, AcmeRules};
pub use control::ControlError;
pub use limits::{LimitError, Limits};
pub use memory::{MemoryMax, MemoryMaxError};
pub use nats::{Login, Nats, NatsError, NatsServers};
pub use pages::PageError;
pub use relay::{Relay, RelayError};
pub use reload::Reloaded;
pub use rules::Rules;
pub use store::StoreRules;
pub use tls::{TlsError, TlsFiles};
pub use tokens::{Jwks, TokenError, TokenRules};
pub use upgrade::UpgradeSocket;

pub use crate::wire::SlowPolicy;

use crate::secret::Secret;
use crate::topic_pattern::Pattern;
use crate::wire::http::{Origin, Origins, Subprotocols};

/// The topics of the pattern `play/**`, which `--playground` opens.
const PLAY: &str = "play/";

/// Where the control API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix stream socket at this path.
    Unix(PathBuf),
}

impl ControlAddress {
    /// True if only this machine reaches it: a Unix socket, or loopback.
    pub fn is_local(&self) -> bool {
        match self {
            ControlAddress::Tcp(address) => address.ip().to_canonical().is_loopback(),
            ControlAddress::Unix(_) => true,
        }
    }
}

/// Written as it is read: `127.0.0.1:8081` or `unix:/run/fanwave.sock`.
impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlAddress::Tcp(address) => address.fmt(f),
            ControlAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What text lacks to be a [`ControlAddress`]; the message says what to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ControlAddressError {
    /// Nothing follows `unix:`.
    #[error("the path is missing, write unix:/run/fanwave.sock")]
    NoPath,
    /// Neither kind of address.
    #[error("write IP:PORT or unix:PATH, for example 127.0.0.1:8081 or unix:/run/fanwave.sock")]
    Unknown,
}

impl FromStr for ControlAddress {
    type Err = ControlAddressError;

    fn from_str(text: &str) -> Result<ControlAddress, ControlAddressError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(ControlAddressError::NoPath),
            Some(path) => Ok(ControlAddress::Unix(path.into())),
            None => tcp_address(text).map(ControlAddress::Tcp).ok_or(ControlAddressError::Unknown),
        }
    }
}

/// `IP:PORT`, or `localhost:PORT`, which is the same on every machine: 127.0.0.1. No other name is
/// resolved.
fn tcp_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| {
        let (_, port) = text.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("localhost"))?;
        format!("127.0.0.1:{port}").parse().ok()
    })
}

/// The value of a flag with addresses of subscribers.
fn socket_address(text: &str) -> Result<SocketAddr, String> {
    tcp_address(text).ok_or_else(|| "write IP:PORT, for example 0.0.0.0:8080 or [::]:8080".to_string())
}

/// How the shards reach their sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Egress {
    /// By io_uring where it works, else by epoll.
    Auto,
    /// By io_uring, or not at all.
    Uring,
    /// By epoll: one system call per send.
    Epoll,
}

/// Where subscriber sockets live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sockets {
    /// As direct descriptors where the kernel frees them at once (Linux 6.13), else as plain ones.
    Auto,
    /// In the rings' own tables: each shard has as many as the process may have descriptors.
    Direct,
    /// In the process's table of descriptors: all shards share them, less what is kept for the
    /// server itself.
    Plain,
}

/// How the lines of the log look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What an event stream gets that cannot come in now, but may later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SseRefusals {
    /// 200 and the end of the stream, where the client asks for an event stream by name: a browser
    /// comes back.
    #[default]
    Retry,
    /// The status.
    Status,
}

/// What pages in browsers may do. The default is that of a server without flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRules {
    /// Whose pages may subscribe.
    pub origins: Origins,
    /// WebSocket subprotocols that are given back.
    pub subprotocols: Subprotocols,
    /// What event streams get that cannot come in now.
    pub sse_refusals: SseRefusals,
    /// Whose pages may use the control plane, besides its own.
    pub control_origins: Vec<Origin>,
    /// Names of the control plane, besides `localhost`.
    pub control_hosts: Vec<String>,
    /// Clients may publish to `play/**`, and the data plane is for pages of this machine alone.
    pub playground: bool,
}

/// Who may use the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlRules {
    /// What every request must bring, but those over a Unix socket and `/healthz`.
    pub token: Option<Secret>,
    /// Every client that reaches the control plane may use it, by decree.
    pub open: bool,
}

/// Everything `fanwave serve` needs to know. `Default` is a server without flags, with one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Data plane addresses; every shard listens on each.
    pub listen: Vec<SocketAddr>,
    /// Those of `listen` and `listen_tls` on which every connection begins with a PROXY header.
    pub proxy_protocol: Vec<SocketAddr>,
    /// Data plane addresses with TLS; every shard listens on each.
    pub listen_tls: Vec<SocketAddr>,
    /// Certificates and keys of all addresses with TLS.
    pub tls: Option<TlsFiles>,
    /// Certificates that an authority signs by itself.
    pub acme: Option<AcmeRules>,
    /// Control plane addresses.
    pub control: Vec<ControlAddress>,
    /// Control plane addresses with TLS.
    pub control_tls: Vec<SocketAddr>,
    /// Who may use the control plane.
    pub control_rules: ControlRules,
    /// Who may hear and say what.
    pub tokens: TokenRules,
    /// The stream that events come from, if it is not this process that gives their sequences.
    pub nats: Option<Nats>,
    /// The server that is followed, if one is.
    pub relay: Option<Relay>,
    /// One entry per shard: the CPU it is pinned to.
    pub shard_cpus: Vec<usize>,
    /// What pages in browsers may do.
    pub pages: PageRules,
    /// Topics to which clients of the data plane may publish.
    pub client_publish: Vec<Pattern>,
    /// What to do with those who cannot keep up.
    pub slow: SlowPolicy,
    /// How the shards reach their sockets.
    pub egress: Egress,
    /// Where subscriber sockets live.
    pub sockets: Sockets,
    /// WebSockets on `/echo` and `/` get back what they send.
    pub diagnostic_echo: bool,
    /// What to log: directives of `tracing_subscriber::EnvFilter`, checked.
    pub log: String,
    /// How its lines look.
    pub log_format: LogFormat,
    /// The log has a line for each subscriber that comes and goes.
    pub access_log: bool,
    /// Where to wait for the process that takes the place of this one.
    pub upgrade_socket: UpgradeSocket,
    /// How much memory the process may take.
    pub memory_max: MemoryMax,
    /// Where events outlive the process.
    pub store: Option<StoreRules>,
    /// Every bound.
    pub limits: Limits,
    /// What the file says of the topics of patterns.
    pub rules: Rules,
}

impl Config {
    /// True if no other server gives the ids that this one gives.
    pub fn is_alone(&self) -> bool {
        self.nats.is_none() && self.relay.is_none()
    }

    /// True if events may be found in the source that have left the windows.
    pub fn keeps_past(&self) -> bool {
        self.store.is_some() || self.nats.is_some()
    }

    /// True if clients of the data plane may publish to `topic`: what its rule says, else the flag.
    pub fn lets_clients_publish(&self, topic: &str) -> bool {
        let by_rule = self.rules.of(topic).and_then(|rule| rule.client_publish);
        let is_play = || self.pages.playground && topic.starts_with(PLAY);
        let by_flag = || is_play() || self.client_publish.iter().any(|pattern| pattern.matches(topic));
        by_rule.unwrap_or_else(by_flag)
    }

    /// Whose pages the data plane lets in.
    pub fn origins(&self) -> &Origins {
        if self.pages.playground { &Origins::Loopback } else { &self.pages.origins }
    }

    /// True if a topic, or every topic of a pattern, needs no token although tokens are configured.
    pub fn is_public(&self, name: &str) -> bool {
        match Pattern::new(name) {
            Ok(pattern) if pattern.topic().is_none() => self.rules.is_public(&pattern),
            _ => self.rules.of(name).is_some_and(|rule| rule.public),
        }
    }

    /// What happens to subscribers of a topic or pattern that say nothing of it: what its rule
    /// says, else the flag. Of a pattern's rules the strictest counts.
    pub fn slow_of(&self, name: &str) -> SlowPolicy {
        let by_rule = |rule: Option<&rules::Rule>| rule.and_then(|rule| rule.slow).unwrap_or(self.slow);
        match Pattern::new(name) {
            Ok(pattern) if pattern.topic().is_none() => {
                let rules = self.rules.iter().filter(|rule| rule.pattern.overlaps(&pattern));
                let strictest = rules.map(|rule| by_rule(Some(rule))).min();
                let is_covered = self.rules.iter().any(|rule| rule.pattern.contains(&pattern));
                let other = if is_covered { SlowPolicy::Latest } else { self.slow };
                strictest.map_or(other, |strictest| strictest.min(other))
            }
            _ => by_rule(self.rules.of(name)),
        }
    }

    /// True if clients of the data plane may ask how many subscribers `topic` has.
    pub fn tells_presence(&self, topic: &str) -> bool {
        self.rules.of(topic).is_none_or(|rule| rule.presence)
    }

    /// True if there may be topics to which clients may publish.
    pub fn has_client_publishers(&self) -> bool {
        let by_flag = self.pages.playground || !self.client_publish.is_empty();
        by_flag || self.rules.iter().any(|rule| rule.client_publish == Some(true))
    }
}

impl Default for Config {
    fn default() -> Config {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            listen: vec![loopback(8080)],
            proxy_protocol: Vec::new(),
            listen_tls: Vec::new(),
            tls: None,
            acme: None,
            control: vec![ControlAddress::Tcp(loopback(8081))],
            control_tls: Vec::new(),
            control_rules: ControlRules::default(),
            tokens: TokenRules::default(),
            nats: None,
            relay: None,
            shard_cpus: vec![0],
            pages: PageRules::default(),
            client_publish: Vec::new(),
            slow: SlowPolicy::Close,
            egress: Egress::Auto,
            sockets: Sockets::Auto,
            diagnostic_echo: false,
            log: "info".to_string(),
            log_format: LogFormat::Text,
            access_log: false,
            upgrade_socket: UpgradeSocket::Derived,
            memory_max: MemoryMax::default(),
            store: None,
            limits: Limits::default(),
            rules: Rules::default(),
        }
    }
}

impl Config {
    /// True if connections to this listener of a shard begin with a PROXY header. The listeners are
    /// in the order of `listen` and then `listen_tls`; a shard that has more of them has that order
    /// again.
    pub fn is_proxied(&self, listener: usize) -> bool {
        let at = listener % (self.listen.len() + self.listen_tls.len()).max(1);
        let address = self.listen.iter().chain(&self.listen_tls).nth(at);
        address.is_some_and(|address| self.proxy_protocol.contains(address))
    }

    /// True if connections to this listener of a shard speak TLS.
    pub fn is_secure(&self, listener: usize) -> bool {
        listener % (self.listen.len() + self.listen_tls.len()).max(1) >= self.listen.len()
            && !self.listen_tls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxied_address_is_so_in_every_round_of_listeners_and_no_other_one_is() {
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let config = Config {
            listen: vec![address(1), address(2)],
            listen_tls: vec![address(3), address(4)],
            proxy_protocol: vec![address(4), address(2)],
            ..Config::default()
        };
        let secure: Vec<usize> = (0..8).filter(|listener| config.is_secure(*listener)).collect();
        assert_eq!(secure, [2, 3, 6, 7]);
        let proxied: Vec<usize> = (0..8).filter(|listener| config.is_proxied(*listener)).collect();
        assert_eq!(proxied, [1, 3, 5, 7]);
    }
}

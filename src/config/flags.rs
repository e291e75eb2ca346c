//! What the user typed, as types; [`ServeFlags::config`] turns it into the validated, immutable
//! [`Config`].
//!
//! Every flag of `fanwave serve` is also a `FANWAVE_*` variable and a key of the `--config` file;
//! the help is the only list of their names. Every field of [`Limits`] is a flag: the macro below
//! builds `Limits` without a rest.
//!
//! Not here: where the values come from (`command::sources`), relations between limits
//! ([`Limits::check`]), the flags of the clients (`client::publish`, `client::tail`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use tracing_subscriber::filter::LevelFilter;

use super::acme::{AcmeError, AcmeFlags};
use super::control::{ControlError, ControlFlags};
use super::nats::{NatsError, NatsFlags};
use super::pages::PageFlags;
use super::relay::{RelayError, RelayFlags};
use super::rules::{RuleError, RuleText, Rules};
use super::store::{StoreFlagError, StoreFlags};
use super::tls::{TlsError, TlsFlags};
use super::tokens::{TokenError, TokenFlags};
use super::units::{Count, Millis, Size};
use super::{
    Config, ControlAddress, Egress, LimitError, Limits, LogFormat, MemoryMax, PageError, SlowPolicy, Sockets,
    UpgradeSocket, socket_address,
};
use crate::topic_pattern::{Pattern, PatternError};

/// Limits whose smallest value is another limit's matter; their help says so in words.
const BOUNDED_BY_OTHERS: [&str; 3] = ["window-bytes-max", "window-bytes-total-max", "hub-queue-bytes-max"];

/// What the help tells of each other limit: `[1 to 1GiB]`, `[at least 512]`.
pub(crate) fn bounds() -> BTreeMap<&'static str, String> {
    let limits = Limits::default();
    let minima = limits.minima().map(|(name, _, min, _)| (name, min));
    let minima: BTreeMap<&str, u64> =
        minima.into_iter().filter(|(name, _)| !BOUNDED_BY_OTHERS.contains(name)).collect();
    let maxima: BTreeMap<&str, u64> =
        limits.maxima().into_iter().map(|(name, _, max, _)| (name, max)).collect();
    let shown = |name: &str, value: u64| {
        if name.contains("-bytes-") { Size(value as usize).to_string() } else { value.to_string() }
    };
    let told = |name: &'static str| {
        let bound = |bounds: &BTreeMap<&str, u64>| bounds.get(name).map(|value| shown(name, *value));
        let told = match (bound(&minima), bound(&maxima)) {
            (Some(min), Some(max)) => format!("[{min} to {max}]"),
            (Some(min), None) => format!("[at least {min}]"),
            (None, Some(max)) => format!("[at most {max}]"),
            (None, None) => String::new(),
        };
        (name, told)
    };
    minima.keys().chain(maxima.keys()).map(|name| told(name)).collect()
}

/// What flags mean together, or on this machine, and may not: one line that names the flag.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A limit is out of its bounds.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A rule of the file does not agree with the others, or with the limits.
    #[error("--config {}: {error}", .path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: RuleError,
    },
    /// A flag about pages is wrong.
    #[error(transparent)]
    Page(#[from] PageError),
    /// A flag about tokens is wrong.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A flag about the control plane is wrong.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A flag about NATS is wrong.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// A flag about a server to follow is wrong.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// A flag about TLS is wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A flag about the store is wrong.
    #[error(transparent)]
    Store(#[from] StoreFlagError),
    /// A flag about ACME is wrong.
    #[error(transparent)]
    Acme(#[from] AcmeError),
    /// The PROXY protocol is meant for an address that nobody listens on.
    #[error("--proxy-protocol {0} is none of the --listen and --listen-tls addresses")]
    ProxiedNowhere(SocketAddr),
    /// An address for subscribers stands twice.
    #[error("--listen {0} is given twice, or for --listen-tls as well")]
    ListenTwice(SocketAddr),
    /// An address is meant for both planes.
    #[error("--control {0} is also a --listen address; choose another port")]
    ControlIsListen(SocketAddr),
    /// An address for publishers with TLS stands twice, or somewhere else too.
    #[error("--control-tls {0} is given twice, or for --control or --listen as well; choose another port")]
    ControlTlsTwice(SocketAddr),
    /// A CPU that the scheduler does not let this process use.
    #[error("--cpus: CPU {cpu} is not among those that this process may use: {allowed}")]
    Cpu {
        /// Its number.
        cpu: usize,
        /// Those that it may use.
        allowed: CpuList,
    },
    /// Direct descriptors are asked for without the ring that has them.
    #[error("--sockets direct is a matter of io_uring; leave it out with --egress epoll")]
    DirectWithoutUring,
    /// The kernel does not say which CPUs this process may use.
    #[error("cannot read the CPUs of this process: {0}")]
    UnknownCpus(#[source] rustix::io::Errno),
}

/// The flags of `fanwave serve`.
#[derive(Debug, clap::Args)]
pub struct ServeFlags {
    /// Where subscribers connect; repeat it for several addresses
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',', default_value = "127.0.0.1:8080")]
    #[arg(value_parser = socket_address, help_heading = "Addresses")]
    listen: Vec<SocketAddr>,
    /// Where publishers and operators connect; beyond loopback and Unix sockets it needs
    /// --control-token-file
    #[arg(long, value_name = "IP:PORT|unix:PATH", value_delimiter = ',', default_value = "127.0.0.1:8081")]
    #[arg(help_heading = "Addresses")]
    control: Vec<ControlAddress>,
    /// Which --listen and --listen-tls addresses take the PROXY protocol, version 1 or 2: there every
    /// connection begins with it, before TLS too, so nobody but the proxy may reach them
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',', value_parser = socket_address)]
    #[arg(help_heading = "Addresses")]
    proxy_protocol: Vec<SocketAddr>,
    /// Take the place of the fanwave that runs here, with the same --control or --upgrade-socket:
    /// its history, its ids and its listeners
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    #[arg(action = clap::ArgAction::Set, help_heading = "Upgrade")]
    upgrade: bool,
    /// Unix socket on which a server waits for the one that takes its place, in a directory of its
    /// own; auto: by the first --control address; none: no process takes its place
    #[arg(long, value_name = "auto|none|PATH", default_value = "auto", help_heading = "Upgrade")]
    upgrade_socket: UpgradeSocket,
    #[command(flatten)]
    operators: ControlFlags,
    #[command(flatten)]
    tls: TlsFlags,
    #[command(flatten)]
    acme: AcmeFlags,
    #[command(flatten)]
    pages: PageFlags,
    #[command(flatten)]
    tokens: TokenFlags,
    #[command(flatten)]
    nats: NatsFlags,
    #[command(flatten)]
    relay: RelayFlags,
    /// Topics to which clients of --listen may publish, by WebSocket and by POST /topics/TOPIC: a
    /// list of patterns, * for one segment, ** at the end for the rest [default: none]
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = client_publish)]
    #[arg(help_heading = "Publishing")]
    client_publish: Vec<Pattern>,

    /// Threads that hold subscribers; more than CPUs share them in turn [default: one per CPU]
    #[arg(long, value_name = "N", value_parser = shard_count, help_heading = "Shards")]
    shards: Option<usize>,
    /// CPUs to pin the shards to, for example 0,2-5 [default: all that the process may use]
    #[arg(long, value_name = "LIST", help_heading = "Shards")]
    cpus: Option<CpuList>,

    /// Memory of the whole process, the kernel's for its sockets included. Before it is reached
    /// histories are shortened, then newcomers get 503, then publishers. auto: what the cgroup may
    /// have, less a tenth; at least 32MiB
    #[arg(long, value_name = "BYTES|auto|none", default_value = "auto", help_heading = "Windows")]
    memory_max: MemoryMax,
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    limits: LimitFlags,
    /// How subscribers are reached. uring: by io_uring, or no start; epoll: one system call per
    /// send; auto: io_uring where it is allowed
    #[arg(long, value_name = "auto|uring|epoll", value_enum, default_value = "auto")]
    #[arg(hide_possible_values = true, help_heading = "Connections")]
    egress: Egress,
    /// Where subscriber sockets live. direct: each shard may have `ulimit -n`; plain: all shards
    /// share it; auto: by the kernel's version
    #[arg(long, value_name = "auto|direct|plain", value_enum, default_value = "auto")]
    #[arg(hide_possible_values = true, help_heading = "Connections")]
    sockets: Sockets,
    /// Subscribers that are too slow: close them, to come back and resume; skip to the next event;
    /// or always send the latest event of each topic alone
    #[arg(long, alias = "overrun", value_name = "close|skip|latest", default_value = "close")]
    #[arg(help_heading = "Windows")]
    slow: SlowPolicy,

    /// A WebSocket on /echo and on / gets back what it sends, for test suites; not for production
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    #[arg(action = clap::ArgAction::Set, help_heading = "Proof")]
    diagnostic_echo: bool,

    /// TOML file with the same names
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    /// What to log on stderr, for example warn or fanwave=debug,info
    #[arg(long, value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    #[arg(help_heading = "Settings")]
    log: String,
    /// Lines of the log for people, or one JSON object each
    #[arg(long, value_name = "text|json", value_enum, default_value = "text")]
    #[arg(hide_possible_values = true, help_heading = "Settings")]
    log_format: LogFormat,
    /// Log each subscriber that comes, and what it got when it goes
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    #[arg(action = clap::ArgAction::Set, help_heading = "Settings")]
    access_log: bool,

    /// The rules of the file.
    #[arg(skip)]
    rules: Vec<RuleText>,
    /// The path of the file.
    #[arg(skip)]
    rules_source: PathBuf,
}

/// One line per limit: its help, its name, how it is written. The flag is the name in kebab-case.
macro_rules! limit_flags {
    ($($heading:literal { $($(#[doc = $help:literal])+ $name:ident: $kind:ident;)+ })+) => {
        /// The flags of [`Limits`].
        #[derive(Debug, clap::Args)]
        struct LimitFlags {
            $($(
                $(#[doc = $help])+
                #[arg(long, help_heading = $heading, value_name = $kind::UNIT)]
                #[arg(default_value_t = $kind(Limits::default().$name))]
                $name: $kind,
            )+)+
        }

        impl From<LimitFlags> for Limits {
            fn from(flags: LimitFlags) -> Limits {
                Limits { $($($name: flags.$name.0,)+)+ }
            }
        }

        impl Limits {
            /// Name, unit (`N`, `BYTES` or `MS`) and value of every limit.
            pub fn values(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$($((stringify!($name), $kind::UNIT, self.$name as u64),)+)+].into_iter()
            }
        }
    };
}

limit_flags! {
    "Connections" {
        /// Connections of one shard; 0 takes what the descriptor limit allows
        connections_per_shard_max: Count;
        /// Connections of one address, or of one IPv6 network of 64 bits; 0 for any number, as
        /// behind a proxy without --proxy-protocol
        connections_per_address_max: Count;
        /// Connections that a shard accepts in a second; others wait in the kernel; 0 for any
        /// number
        handshakes_per_second_max: Count;
        /// Request head
        handshake_bytes_max: Size;
        /// From accept to a whole request head
        handshake_ms_max: Millis;
        /// Topics of one connection
        topics_per_connection_max: Count;
        /// One message from a WebSocket client
        message_in_bytes_max: Size;
        /// Most between signs of life on an idle connection: SSE comment, WebSocket ping
        heartbeat_ms: Millis;
        /// A send that takes longer than this ends its connection
        stall_ms_max: Millis;
        /// From SIGTERM until the rest is cut off
        drain_ms_max: Millis;
        /// Streams of one connection of HTTP/2; 0 for HTTP/1.1 alone
        h2_streams_max: Count;
    }
    "Windows" {
        /// Topics remembered, and topics with subscribers per shard; about 640 bytes each, twice
        /// per shard
        topics_max: Count;
        /// Data of one published event
        message_bytes_max: Size;
        /// Events of one topic that a returning subscriber still gets
        window_events_max: Count;
        /// Bytes of these events; at least 4 x (--message-bytes-max + 1,325 B)
        window_bytes_max: Size;
        /// Age of these events
        window_ms_max: Millis;
        /// Memory of all events alive with their frames, those that slow subscribers still lack
        /// included; one topic has at most a quarter; at least --window-bytes-max and 80 x
        /// --message-bytes-max + 63,600 B
        window_bytes_total_max: Size;
    }
    "Queues and sends" {
        /// Events accepted and not yet broadcast; beyond it publishers get 503
        hub_queue_events_max: Count;
        /// Memory of these events with their frames, at least 5 x --message-bytes-max + 3,975 B
        hub_queue_bytes_max: Size;
        /// Broadcasts waiting for one shard; a full queue holds the hub back
        shard_queue_batches_max: Count;
        /// One send to one subscriber
        send_bytes_max: Size;
        /// Bytes that only slow sends still hold, per shard; beyond it the slowest are closed
        pinned_bytes_max: Size;
        /// Smallest send without a copy in the kernel; 0 copies always
        zero_copy_bytes_min: Size;
    }
    "Backfill" {
        /// What a shard sends in a second to subscribers who lack more than its windows hold, from
        /// --data or the stream; 0: a gap is told instead
        backfill_bytes_per_second: Size;
        /// Subscribers of one shard that are sent that at once; others wait
        backfills_per_shard_max: Count;
    }
}

impl ServeFlags {
    /// What to log: directives of `tracing_subscriber::EnvFilter`, checked.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Takes the rules of the file `source`.
    pub(crate) fn set_rules(&mut self, rules: Vec<RuleText>, source: PathBuf) {
        self.rules = rules;
        self.rules_source = source;
    }

    /// Sockets that were passed take the place of the addresses of their plane.
    pub fn take_over(&mut self, listen: Vec<SocketAddr>, control: Vec<ControlAddress>) {
        if !listen.is_empty() {
            self.listen = listen;
        }
        if !control.is_empty() {
            self.control = control;
        }
    }

    /// Where to find the process whose place is to be taken, and the first control address; `None`
    /// if this one begins anew.
    pub fn upgrade(&self) -> Option<(&UpgradeSocket, Option<&ControlAddress>)> {
        self.upgrade.then_some((&self.upgrade_socket, self.control.first()))
    }

    /// True if events are to outlive the process.
    pub fn has_store(&self) -> bool {
        self.store.is_used()
    }

    /// How the lines of the log look.
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// Whether the log has a line for each subscriber that comes and goes.
    pub fn access_log(&self) -> bool {
        self.access_log
    }

    /// Checks each limit by itself. What one limit asks of another is checked by
    /// [`ServeFlags::config`].
    pub(crate) fn check_each_limit(self) -> Result<(), LimitError> {
        let limits = Limits {
            window_bytes_max: usize::MAX,
            window_bytes_total_max: usize::MAX,
            hub_queue_bytes_max: usize::MAX,
            ..Limits::from(self.limits)
        };
        limits.check()
    }

    /// Checks what flags mean together and on this machine.
    pub fn config(self) -> Result<Config, ConfigError> {
        let allowed = allowed_cpus().map_err(ConfigError::UnknownCpus)?;
        self.config_on(&allowed)
    }

    /// [`ServeFlags::config`] where the process may use the CPUs `allowed`.
    fn config_on(self, allowed: &[usize]) -> Result<Config, ConfigError> {
        let limits = Limits::from(self.limits);
        limits.check()?;
        let listen_tls = self.tls.listen_tls.clone();
        let control_tls = self.tls.control_tls.clone();
        check_addresses(&[&self.listen[..], &listen_tls].concat(), &self.control, &control_tls)?;
        let is_other =
            |address: &&SocketAddr| !self.listen.contains(address) && !listen_tls.contains(address);
        if let Some(other) = self.proxy_protocol.iter().find(is_other) {
            return Err(ConfigError::ProxiedNowhere(*other));
        }
        let acme = self.acme.rules(!listen_tls.is_empty())?;
        let pages = self.pages.rules()?;
        let tokens = self.tokens.rules(&pages.origins)?;
        let control_rules = self.operators.rules(&self.control, &control_tls, tokens.is_configured())?;
        if (self.egress, self.sockets) == (Egress::Epoll, Sockets::Direct) {
            return Err(ConfigError::DirectWithoutUring);
        }
        let cpus = self.cpus.map_or_else(|| allowed.to_vec(), |list| list.0);
        if let Some(cpu) = cpus.iter().find(|cpu| !allowed.contains(cpu)) {
            return Err(ConfigError::Cpu { cpu: *cpu, allowed: CpuList(allowed.to_vec()) });
        }
        let shards = self.shards.unwrap_or(cpus.len());
        let relay = self.relay.relay(self.nats.relay())?;
        let (nats, store) = (self.nats.nats()?, self.store.rules()?);
        if (nats.is_some() || relay.is_some()) && store.is_some() {
            return Err(StoreFlagError::OtherSource.into());
        }
        let rules = Rules::new(&self.rules, &limits)
            .map_err(|error| ConfigError::Rule { path: self.rules_source, error })?;
        store.as_ref().map_or(Ok(()), |store| store.check(&limits, &rules))?;
        Ok(Config {
            listen: self.listen,
            control: self.control,
            control_tls,
            proxy_protocol: self.proxy_protocol,
            listen_tls,
            tls: self.tls.files(acme.is_some())?,
            acme,
            control_rules,
            tokens,
            nats,
            relay,
            shard_cpus: cpus.into_iter().cycle().take(shards).collect(),
            pages,
            client_publish: self.client_publish,
            slow: self.slow,
            egress: self.egress,
            sockets: self.sockets,
            diagnostic_echo: self.diagnostic_echo,
            log: self.log,
            log_format: self.log_format,
            access_log: self.access_log,
            upgrade_socket: self.upgrade_socket,
            memory_max: self.memory_max,
            store,
            limits,
            rules,
        })
    }
}

/// An address that stands twice would be bound twice: subscriber listeners share their port.
fn check_addresses(
    listen: &[SocketAddr],
    control: &[ControlAddress],
    control_tls: &[SocketAddr],
) -> Result<(), ConfigError> {
    for (index, address) in control_tls.iter().enumerate().filter(|(_, address)| address.port() != 0) {
        let is_plain = control.contains(&ControlAddress::Tcp(*address));
        if control_tls[..index].contains(address) || listen.contains(address) || is_plain {
            return Err(ConfigError::ControlTlsTwice(*address));
        }
    }
    for (index, address) in listen.iter().enumerate().filter(|(_, address)| address.port() != 0) {
        if listen[..index].contains(address) {
            return Err(ConfigError::ListenTwice(*address));
        }
        if control.contains(&ControlAddress::Tcp(*address)) {
            return Err(ConfigError::ControlIsListen(*address));
        }
    }
    Ok(())
}

/// CPUs that the scheduler lets this process use, in ascending order.
fn allowed_cpus() -> rustix::io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// CPUs by number, at least one, each once, in the order given: `0,2-5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(Vec<usize>);

/// What text lacks to be a [`CpuList`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// A part that is no number.
    #[error("`{0}` is no CPU number; write a list such as 0,2-5")]
    Number(String),
    /// A range whose end stands before its beginning.
    #[error("`{0}` runs backwards")]
    Backwards(String),
    /// A CPU that was named before.
    #[error("CPU {0} is listed twice; --shards may exceed the CPUs")]
    Twice(usize),
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<CpuList, CpuListError> {
        let number = |text: &str| {
            let cpu = text.trim().parse::<usize>().ok();
            cpu.filter(|cpu| *cpu < rustix::thread::CpuSet::MAX_CPU)
                .ok_or_else(|| CpuListError::Number(text.to_string()))
        };
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(CpuListError::Backwards(part.to_string()));
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(CpuListError::Twice(cpu));
                }
                cpus.push(cpu);
            }
        }
        Ok(CpuList(cpus))
    }
}

impl std::fmt::Display for CpuList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, run) in self.0.chunk_by(|a, b| a + 1 == *b).enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match run {
                [cpu] => write!(f, "{comma}{cpu}")?,
                run => write!(f, "{comma}{}-{}", run[0], run[run.len() - 1])?,
            }
        }
        Ok(())
    }
}

fn client_publish(text: &str) -> Result<Pattern, String> {
    text.trim().parse().map_err(|error: PatternError| error.to_string())
}

/// Shards are threads with rings of their own; more than this on one machine is a slip of the
/// finger.
const SHARDS_MAX: usize = 1_024;

fn shard_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=SHARDS_MAX).contains(count));
    count.ok_or_else(|| format!("write a number from 1 to {SHARDS_MAX}"))
}

fn log_filter(text: &str) -> Result<String, String> {
    // A mistyped level would be a target that nothing logs to.
    let is_target = |word: &str| word.contains(['=', '[']) || word.contains("::");
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty() && !is_target(word)) {
        if word.parse::<LevelFilter>().is_err() {
            let levels = "off, error, warn, info, debug or trace";
            return Err(format!("`{word}` is no level; write {levels}, or target=level"));
        }
    }
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_string()),
        Err(error) => Err(format!("{error}; write a level or target=level, separated by commas")),
    }
}

#[cfg(test)]
pub(crate) mod tests;

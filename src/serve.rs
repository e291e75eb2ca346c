//! Puts the stages together: binds the addresses, starts every shard, runs the hub until the drain
//! is over.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::ServerConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::acme::{self, Keeper};
use crate::admission::{Addresses, Admission};
use crate::broadcast::{Demand, Memory, Message, path};
use crate::config::capacity::{Capacity, NoCapacity, Sharers};
use crate::config::limits::{
    ACCESS_ENTRY_BYTES, ACCESS_LINE_BYTES_MAX, CLAIMS_BYTES_MAX, COMPLETIONS_MAX, CONNECTION_BYTES,
    CONTROL_BUFFER_BYTES_MAX, CONTROL_TLS_BYTES_MAX, EPOLL_EVENTS_MAX, H2_CARRIER_BYTES, H2_STREAM_BYTES,
    H2_STREAMS_SPARE, ID_PLACE_BYTES, KNOWN_TOKEN_BYTES, LOG_LINES_MAX, PATTERN_PLACE_BYTES,
    PATTERN_PLACES_MAX, RECEIVE_BUFFER_BYTES, RECEIVE_BUFFERS, RELAY_START_MS_MAX, RETAINED_VALUE_BYTES,
    STRETCH_BYTES_MAX, STRETCHES_KEPT, SUBMISSIONS_MAX, TLS_HANDSHAKE_BYTES_MAX, TLS_HANDSHAKE_STATE_BYTES,
    TLS_SESSION_BYTES, TOKENS_KNOWN_MAX, TOPIC_BYTES, UPLINK_BYTES_MAX,
};
use crate::config::{Config, ControlAddress, Limits};
use crate::egress::epoll::{EpollOptions, SLOT_BYTES};
use crate::egress::uring::UringOptions;
use crate::egress::{RingError, Slot};
use crate::event::{EVENT_BYTES_FIXED, Epoch};
use crate::http2::StreamRules;
use crate::hub::CertificateStats;
use crate::hub::memory::{self, CeilingReport, Meter};
use crate::hub::source::relay::Greeting;
use crate::hub::source::{Remote, Source};
use crate::hub::{
    self, Certificates, DataAddresses, EgressReport, HubError, ShardEnd, ShardFailure, Surroundings, Tidings,
};
use crate::jetstream::{Session, SessionError};
use crate::log;
use crate::relay::Unheard;
use crate::runtime::{Layers, RingOptions, RuntimeError, Secure, ShardHandle, ShardStart, spawn_shard};
use crate::shard;
use crate::shard::connections::Connection;
use crate::store::StoreError;
use crate::systemd::{Manager, Passed};
use crate::tls::{self, Automatic, Identity, IdentityError};
use egress::Ring;
use listeners::{DataAddress, Failures};
pub use upgrade::Predecessor;

mod egress; // which ring
mod listeners; // of both planes
mod store; // what outlives the process
mod sums; // of memory, for the banner
mod upgrade; // takes the place of a running process

/// What is running, told once every shard has said that it is ready.
#[derive(Debug)]
pub struct Started {
    /// Data plane addresses as bound (port 0 replaced).
    pub listen: Vec<SocketAddr>,
    /// Data plane addresses with TLS, as bound.
    pub listen_tls: Vec<SocketAddr>,
    /// Control plane addresses as bound.
    pub control: Vec<ControlAddress>,
    /// Control plane addresses with TLS, as bound.
    pub control_tls: Vec<SocketAddr>,
    /// The file with the token that publishers bring, if they need one.
    pub token_file: Option<PathBuf>,
    /// Subscribers need tokens.
    pub asks_for_tokens: bool,
    /// Pages of this machine may publish to `play/**` (`--playground`).
    pub playground: bool,
    /// CPU of each shard.
    pub shard_cpus: Vec<usize>,
    /// Connections that each shard has room for.
    pub connections_per_shard_max: usize,
    /// How the shards reach their sockets.
    pub egress: EgressReport,
    /// User-space memory at the limits: owner and bytes, one line each.
    pub memory: Vec<(&'static str, u64)>,
    /// The ceiling of all memory.
    pub ceiling: CeilingReport,
    /// What an authority signs by itself.
    pub acme: Option<Acme>,
}

/// A certificate that an authority signs by itself.
#[derive(Debug)]
pub struct Acme {
    /// Its names.
    pub domains: Vec<String>,
    /// When the one in force ends, in seconds since 1970; 0 if there is none yet.
    pub expires: u64,
}

/// Whom a running server asks for another configuration.
pub struct Operator {
    /// Reads it again; the error is one line.
    pub reread: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// It is valid from now on.
    pub adopt: Box<dyn Fn(&Config) + Send + Sync>,
}

/// Why the server did not start or did not end well: one line with the cause, and the remedy if
/// there is one.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// These addresses could not be bound.
    #[error("cannot listen on {}; {remedy}", .failures.join(", nor on "))]
    Bind {
        /// Each address as the operator gave it, and what the kernel said.
        failures: Vec<String>,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The place of a running process is not taken; that one goes on.
    #[error("cannot take the place of the process that runs, which goes on: {0}")]
    Upgrade(String),
    /// The socket for upgrades cannot be opened.
    #[error("{0}")]
    UpgradeSocket(String),
    /// The descriptor limit is too low for what the operator wants.
    #[error(transparent)]
    Descriptors(#[from] NoCapacity),
    /// What an authority signs cannot be kept.
    #[error("{0}")]
    Acme(String),
    /// A certificate or a key cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The stream of events is not there.
    #[error(transparent)]
    Source(#[from] SessionError),
    /// The server that is to be followed is not there, or does not want us.
    #[error("--source: {0}")]
    Relay(#[from] Unheard),
    /// This machine does not give a shard its ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The directory of events does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A shard could not start.
    #[error("shard {shard}: {source}")]
    Shard {
        /// The shard's number.
        shard: usize,
        /// Cause and remedy.
        source: RuntimeError,
    },
    /// A shard failed later.
    #[error("shard {shard}: {failure}")]
    ShardEnd {
        /// The shard's number.
        shard: usize,
        /// How it ended.
        failure: ShardFailure,
    },
    /// The ceiling of memory is too low for the server itself.
    #[error("{0}; or take fewer shards")]
    Ceiling(String),
    /// The hub's own runtime or thread failed.
    #[error("hub: {0}")]
    Hub(String),
}

/// Serves until SIGTERM or SIGINT has drained everything, or another process has its place.
/// `started` is called once, before the first connection is accepted.
///
/// `passed` are sockets of the service manager, `predecessor` is a process whose place this one
/// takes, `operator` is asked for another configuration.
pub fn run(
    config: Config,
    passed: Passed,
    mut predecessor: Option<Predecessor>,
    operator: Operator,
    started: impl FnOnce(&Started),
) -> Result<(), ServeError> {
    let config = Arc::new(config);
    raise_descriptor_limit();
    let choice = egress::choose(config.egress, config.sockets)?;
    let automatic = config.acme.as_ref().map(|_| Automatic::default());
    let has_http2 = config.limits.h2_streams_max > 0;
    let identity = handshakes(&config, automatic.as_ref(), has_http2)?.map(Identity::new);
    let keeper = config.acme.as_ref().zip(automatic.clone()).map(|(rules, held)| Keeper::open(rules, held));
    let keeper = keeper.transpose().map_err(ServeError::Acme)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ServeError::Hub(format!("cannot make the runtime: {error}")))?;
    let session = match &config.nats {
        Some(nats) => Some(runtime.block_on(Session::begin(nats, config.limits.message_bytes_max))?),
        None => None,
    };
    let greeting = match &config.relay {
        Some(relay) if predecessor.is_none() => {
            let (events, patience) =
                (config.limits.window_events_max, Duration::from_millis(RELAY_START_MS_MAX));
            Some(runtime.block_on(Greeting::get(relay, events, patience))?)
        }
        _ => None,
    };
    let epoch = match (&predecessor, &session, &greeting) {
        (Some(predecessor), ..) => predecessor.epoch(),
        (None, Some(session), _) => session.entry.epoch,
        (None, None, Some(greeting)) => greeting.at().epoch,
        (None, None, None) => Epoch::random()
            .map_err(|error| ServeError::Hub(format!("cannot get random bits for the epoch: {error}")))?,
    };
    let stored = config.store.as_ref().map(|rules| store::open(&config, rules, epoch)).transpose()?;
    let epoch = stored.as_ref().map_or(epoch, |(_, past)| past.state.epoch);
    // Nobody comes in before the histories are there.
    let holds_accepts = predecessor.is_some() || !config.is_alone() || stored.is_some();
    // Before the first thread, so that every thread leaves the signals to this one.
    let Signals { drain, hangups, upgrades } = {
        let _entered = runtime.enter();
        signals().map_err(|error| ServeError::Hub(format!("cannot listen for signals: {error}")))?
    };
    // All of them, so that one start tells of every address that is in use.
    let mut failures = Failures::default();
    let mut control = match passed.control.is_empty() {
        true => listeners::control_plane(&config, &mut predecessor, &mut failures),
        false => listeners::passed_control_plane(passed.control),
    };
    let plain_controls = control.len();
    if let Some(identity) = identity.clone() {
        let certificates = Certificates::new(move || identity.control());
        let secure = listeners::secure_control_plane(&config, &certificates, &mut predecessor, &mut failures);
        control.extend(secure);
    }
    let mut data = match passed.data.is_empty() {
        true => listeners::data_plane(&config, &config.listen, &mut predecessor, &mut failures),
        false => listeners::passed_data_plane(&config, passed.data, &mut failures),
    };
    data.extend(listeners::data_plane(&config, &config.listen_tls, &mut predecessor, &mut failures));
    failures.check()?;
    let capacity = capacity(&config, choice.ring.is_direct(), &data)?;
    let descriptors = |error| ServeError::Hub(format!("cannot copy a listener: {error}"));
    let first_control = control.first().map(|address| &address.bound);
    let place = upgrade::open_place(&config, first_control, &mut predecessor)?;
    let estate = place.map(|place| upgrade::estate(place, &data, &control));
    let shards = config.shard_cpus.len();
    let rounds = listeners::rounds(&data, shards);
    let by_shard = listeners::by_shard(&data, shards, rounds).map_err(descriptors)?;
    let mut listen: Vec<SocketAddr> = data.iter().map(|address| address.bound).collect();
    // They are behind the plain ones.
    let listen_tls = listen.split_off(config.listen.len());
    let proxied: Vec<bool> = (0..data.len()).map(|at| config.is_proxied(at)).collect();
    let doors = RingDoors { keeps_listeners: data.iter().any(|address| address.passed), holds_accepts };
    // The shards have theirs. Those of a former process are dealt with once they are ours.
    let inherited: Vec<DataAddress> = data.into_iter().filter(|address| address.inherited).collect();

    let demand = Arc::new(Demand::default());
    let memory = Memory::new(&config.limits);
    let per_address = config.limits.connections_per_address_max;
    let addresses = (per_address > 0).then(|| Arc::new(Addresses::new(per_address)));
    let (end_sender, shard_ends) = tokio::sync::mpsc::unbounded_channel();
    let mut outboxes = Vec::new();
    let mut shards = Vec::new();
    let (ready_sender, ready) = std::sync::mpsc::channel();
    for (number, (cpu, listeners)) in config.shard_cpus.iter().copied().zip(by_shard).enumerate() {
        let failed = |source| ServeError::Shard { shard: number, source };
        let (outbox, inbox) = path(config.limits.shard_queue_batches_max)
            .map_err(|source| failed(RuntimeError::Doorbell { what: "make", source }))?;
        outboxes.push(outbox);
        let setup = shard::ShardSetup {
            number,
            cpu,
            config: config.clone(),
            epoch,
            demand: demand.clone(),
            memory: memory.clone(),
            connections_max: capacity.connections_max,
            admission: Admission { addresses: addresses.clone(), sockets_max: capacity.sockets_max },
        };
        let (ready, ended) = (ready_sender.clone(), end_sender.clone());
        let handle = spawn_shard(
            ShardStart {
                setup,
                ring: ring(choice.ring, &capacity, listeners, doors),
                layers: Layers {
                    secure: identity.clone().filter(|_| !listen_tls.is_empty()).map(|identity| Secure {
                        identity,
                        from: listen.len(),
                        addresses: listen.len() + listen_tls.len(),
                        proxied: proxied.clone(),
                    }),
                    streams: streams(&config.limits, &capacity),
                },
                inbox,
            },
            move || _ = ready.send(number),
            move |result| {
                let result = result.as_ref().map(|_| ()).map_err(ToString::to_string);
                drop(ended.send(ShardEnd::new(number, result)));
            },
        );
        shards.push(handle.map_err(failed)?);
    }
    drop((ready_sender, end_sender));
    let shards = await_ready(&ready, shards)?;
    let meter = Meter::new();
    let reading = meter.read().without_sockets();
    let in_use = memory::in_use(&reading, &memory, reading.resident);
    if let Err(line) = memory::check_ceiling(&config, &reading, &in_use) {
        for (outbox, shard) in outboxes.iter().zip(shards) {
            // A queue that nothing was sent to has room.
            let _ = outbox.try_send(Message::End);
            let _ = shard.join();
        }
        return Err(ServeError::Ceiling(line));
    }
    let ceiling = memory::report(&config, &reading, &in_use);
    let manager = Manager::from_environment();
    let manager = Arc::new(manager);
    let watchdog = manager.watchdog;
    let teller = manager.clone();
    let tell = move |tidings| match tidings {
        Tidings::Reloading => teller.reloading(),
        Tidings::Reloaded => teller.ready(),
        Tidings::Draining => teller.stopping(),
        Tidings::HandedOver(heir) => teller.follow(heir),
        Tidings::Alive => teller.alive(),
    };
    let Operator { reread, adopt } = with_certificates(operator, identity, automatic, has_http2);
    let surroundings = Surroundings {
        reread,
        adopt,
        tell: Box::new(tell),
        meter: Box::new(move || meter.read()),
        certificate: certificate_stats(keeper.as_ref().map(Keeper::report)),
        watchdog,
        hangups: Some(hangups),
    };
    let (mut control_addresses, control): (Vec<_>, Vec<_>) =
        control.into_iter().map(|address| (address.bound, address.listener)).unzip();
    let control_tls = control_addresses.split_off(plain_controls);
    let control_tls = control_tls.into_iter().filter_map(|address| match address {
        ControlAddress::Tcp(address) => Some(address),
        ControlAddress::Unix(_) => None,
    });
    let former = predecessor.as_ref().map(|predecessor| predecessor.path().to_path_buf());
    let path = estate.as_ref().map(|estate| estate.place.path.clone());
    let (source, submissions, past) = match stored {
        Some((source, past)) => (source, None, Some(past)),
        None if config.is_alone() => (Source::Local, None, None),
        None => {
            let (remote, submissions) = Remote::new();
            (Source::Remote(remote), Some(submissions), None)
        }
    };
    let setup = hub::HubSetup {
        surroundings,
        config: config.clone(),
        epoch,
        source,
        outboxes,
        demand,
        memory,
        egress: choice.report.clone(),
        listen: DataAddresses { plain: listen.clone(), tls: listen_tls.clone() },
        control,
        control_connections_max: capacity.control_connections_max,
        shard_ends,
        estate,
    };
    let mut hub = {
        let _entered = runtime.enter();
        hub::open(setup)
    };
    if let Some(predecessor) = predecessor {
        predecessor.succeed(&hub, &runtime)?;
    }
    if let Some(past) = past {
        runtime.block_on(hub.restore_stored(past));
    }
    match (submissions, session, &config.relay) {
        (Some(submissions), Some(session), _) => runtime.block_on(hub.follow(session, submissions)),
        (Some(submissions), None, Some(relay)) => {
            runtime.block_on(hub.relay(relay.clone(), greeting, submissions));
        }
        _ => {}
    }
    choice.log();
    for remedy in &ceiling.remedies {
        tracing::warn!("ceiling of memory: {remedy}");
    }
    started(&Started {
        listen,
        listen_tls,
        control: control_addresses,
        control_tls: control_tls.collect(),
        token_file: config.control_rules.token.as_ref().map(|token| token.file().to_path_buf()),
        asks_for_tokens: config.tokens.is_configured(),
        playground: config.pages.playground,
        shard_cpus: config.shard_cpus.clone(),
        connections_per_shard_max: capacity.connections_max,
        egress: choice.report.clone(),
        memory: sums::memory_lines(&config, &capacity, choice.ring),
        ceiling,
        acme: config.acme.as_ref().zip(keeper.as_ref()).map(|(rules, keeper)| Acme {
            domains: rules.domains.clone(),
            expires: keeper.report().expires(),
        }),
    });
    manager.ready();
    if let Some(former) = former {
        listeners::own(&config, inherited);
        upgrade::leave_no_place(&former, hub.own_place());
    }
    if holds_accepts {
        runtime.block_on(hub.open_doors());
    }
    runtime.spawn(upgrade::start_successors(upgrades, path));
    // A certificate is proved by the listeners, which are ours from now to the drain.
    let draining = hub.draining();
    runtime.spawn(async {
        if let Some(keeper) = keeper {
            keeper.keep(draining).await;
        }
    });
    let served = runtime.block_on(hub.serve(drain));
    match served {
        Ok(()) => {
            // Every shard has said that it ends; their threads have nothing left to wait for.
            for shard in shards {
                let _ = shard.join();
            }
            Ok(())
        }
        Err(HubError::Shard { shard, failure }) => Err(ServeError::ShardEnd { shard, failure }),
        Err(error) => Err(ServeError::Hub(error.to_string())),
    }
}

/// Tells the hub of what an authority signs.
fn certificate_stats(
    report: Option<Arc<acme::Report>>,
) -> Box<dyn Fn() -> Option<CertificateStats> + Send + Sync> {
    Box::new(move || {
        report.as_ref().map(|report| CertificateStats {
            expires: report.expires(),
            orders: report.orders(),
            failures: report.failures(),
        })
    })
}

/// Reads the certificates again whenever the configuration is: one that cannot be used leaves all
/// as it was.
fn with_certificates(
    operator: Operator,
    identity: Option<Identity>,
    automatic: Option<Automatic>,
    has_http2: bool,
) -> Operator {
    let Some(identity) = identity else { return operator };
    let Operator { reread, adopt } = operator;
    let read = Arc::new(Mutex::new(None));
    let kept = read.clone();
    Operator {
        reread: Box::new(move || {
            let config = reread()?;
            let handshakes =
                handshakes(&config, automatic.as_ref(), has_http2).map_err(|error| error.to_string())?;
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = handshakes;
            Ok(config)
        }),
        adopt: Box::new(move |config| {
            let handshakes = read.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(handshakes) = handshakes {
                identity.replace(handshakes);
            }
            adopt(config);
        }),
    }
}

/// What the operator says by signals.
struct Signals<D> {
    /// Resolves at the first SIGTERM or SIGINT, while the second one ends the process at once.
    drain: D,
    /// A message for each SIGHUP.
    hangups: UnboundedReceiver<()>,
    /// A message for each SIGUSR2.
    upgrades: UnboundedReceiver<()>,
}

fn signals() -> std::io::Result<Signals<impl Future<Output = ()>>> {
    let hangups = messages(SignalKind::hangup())?;
    let upgrades = messages(SignalKind::user_defined2())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let drain = async move {
        let _ = futures_util::future::select(pin!(terminate.recv()), pin!(interrupt.recv())).await;
        tokio::spawn(async move {
            let _ = futures_util::future::select(pin!(terminate.recv()), pin!(interrupt.recv())).await;
            tracing::warn!("second signal: ending without the drain");
            log::flush();
            std::process::exit(1);
        });
    };
    Ok(Signals { drain, hangups, upgrades })
}

/// A message for each signal of a kind.
fn messages(kind: SignalKind) -> std::io::Result<UnboundedReceiver<()>> {
    let mut signals = signal(kind)?;
    let (said, messages) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        // Signals that come together are one.
        while signals.recv().await.is_some() && said.send(()).is_ok() {}
    });
    Ok(messages)
}

/// Raises the descriptor limit as far as it goes.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let hard = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if setrlimit(Resource::Nofile, hard).is_err() {
        tracing::warn!(current = ?limit.current, "cannot raise the descriptor limit to its maximum");
    }
}

/// What the descriptor limit allows.
fn capacity(config: &Config, direct: bool, data: &[DataAddress]) -> Result<Capacity, ServeError> {
    let descriptors = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    let shards = config.shard_cpus.len();
    let sharers = Sharers {
        shards,
        listens: data.len() * listeners::rounds(data, shards),
        controls: config.control.len() + config.control_tls.len(),
    };
    Ok(Capacity::of(descriptors, direct, sharers, config.limits.connections_per_shard_max)?)
}

/// How a ring deals with its listeners.
#[derive(Debug, Clone, Copy)]
struct RingDoors {
    /// Others listen there too, and go on.
    keeps_listeners: bool,
    /// They are another process's still.
    holds_accepts: bool,
}

/// What the ring of a shard with these listeners needs to know.
fn ring(ring: Ring, capacity: &Capacity, listeners: Vec<OwnedFd>, doors: RingDoors) -> RingOptions {
    let RingDoors { keeps_listeners, holds_accepts } = doors;
    match ring {
        Ring::Uring { direct } => RingOptions::Uring(UringOptions {
            listeners,
            keeps_listeners,
            holds_accepts,
            accepts_per_listener: capacity.accepts_per_listener,
            slots: capacity.slots as u32,
            sockets_max: capacity.sockets_max as u32,
            direct,
            receive_buffers: RECEIVE_BUFFERS,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        }),
        Ring::Epoll => RingOptions::Epoll(EpollOptions {
            listeners,
            holds_accepts,
            accepts_per_listener: capacity.accepts_per_listener,
            sockets_max: capacity.sockets_max as u32,
            receive_buffer_bytes: RECEIVE_BUFFER_BYTES,
        }),
    }
}

/// What connections may carry.
fn streams(limits: &Limits, capacity: &Capacity) -> StreamRules {
    StreamRules {
        first_slot: capacity.slots as u32,
        streams_max: capacity.connections_max + H2_STREAMS_SPARE,
        per_carrier_max: limits.h2_streams_max,
        head_bytes_max: limits.handshake_bytes_max,
        head_ms_max: limits.handshake_ms_max,
        stall_ms_max: limits.stall_ms_max,
    }
}

/// The handshakes of TLS, if there are any to be made; `has_http2` as at the start.
fn handshakes(
    config: &Config,
    automatic: Option<&Automatic>,
    has_http2: bool,
) -> Result<Option<Arc<ServerConfig>>, IdentityError> {
    let load = |files| tls::load_with(files, automatic);
    let handshakes = config.tls.as_ref().map(load).transpose()?;
    Ok(handshakes.map(|all| if has_http2 { all } else { tls::without_http2(&all) }))
}

/// Waits until every shard has said that it is ready; fails with the first that is not.
fn await_ready(
    ready: &Receiver<usize>,
    mut shards: Vec<ShardHandle>,
) -> Result<Vec<ShardHandle>, ServeError> {
    let mut silent: BTreeSet<usize> = (0..shards.len()).collect();
    while let Some(first) = silent.first().copied() {
        match ready.recv() {
            Ok(shard) => drop(silent.remove(&shard)),
            // A shard that is silent has ended: it was not even made.
            Err(_) => {
                let source = shards.swap_remove(first).why_not_ready();
                return Err(ServeError::Shard { shard: first, source });
            }
        }
    }
    Ok(shards)
}

// With its place in the table of sockets of either ring.
const _: () = assert!(size_of::<Connection>() + size_of::<Slot>() + size_of::<usize>() <= CONNECTION_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_publish_has_its_memory_told_whatever_lets_them() {
        let told = |config: &Config| {
            let sharers = Sharers { shards: 1, listens: 1, controls: 1 };
            let capacity = Capacity::of(10_000, false, sharers, 0).expect("room");
            let lines = sums::memory_lines(config, &capacity, Ring::Epoll);
            lines.iter().any(|(owner, _)| owner.starts_with("what clients publish"))
        };
        let mut playground = Config::default();
        assert!(!told(&playground));
        playground.pages.playground = true;
        assert!(told(&playground));
        let listed = vec!["chat/*".parse().expect("a pattern")];
        assert!(told(&Config { client_publish: listed, ..Config::default() }));
    }
}

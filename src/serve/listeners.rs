//! The listeners of both planes: bound, passed by the service manager, or taken over from a process
//! whose place this one takes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use super::ServeError;
use super::upgrade::Predecessor;
use crate::config::limits::KERNEL_PATIENCE_MS;
use crate::config::{Config, ControlAddress};
use crate::egress::listener::{configure, listen, listen_alone, take_over};
use crate::handover::talk::ControlOffer;
use crate::hub::{Certificates, ControlListener};

/// The addresses that could not be bound.
#[derive(Default)]
pub(super) struct Failures(Vec<(ControlAddress, Occupied)>);

impl Failures {
    pub fn check(self) -> Result<(), ServeError> {
        let is_without_scope = |address: &ControlAddress| match address {
            ControlAddress::Tcp(SocketAddr::V6(address)) => {
                address.ip().is_unicast_link_local() && address.scope_id() == 0
            }
            _ => false,
        };
        let remedy = match self.0.as_slice() {
            all if all.iter().all(|(address, _)| is_without_scope(address)) => {
                "name its interface by number, as in [fe80::1%2]:8080; `ip link` shows it"
            }
            [(_, only)] => only.remedy,
            _ => CHOOSE_ANOTHER,
        };
        let failures: Vec<String> =
            self.0.iter().map(|(address, failed)| format!("{address}: {}", failed.source)).collect();
        if failures.is_empty() { Ok(()) } else { Err(ServeError::Bind { failures, remedy }) }
    }
}

/// An address of the data plane.
#[derive(Debug)]
pub(super) struct DataAddress {
    pub configured: SocketAddr,
    pub bound: SocketAddr,
    /// One for each queue of peers.
    pub listeners: Vec<OwnedFd>,
    /// The service manager has passed it, to this process or a former one.
    pub passed: bool,
    /// A former process has it until this one has its place.
    pub inherited: bool,
}

/// An address of the control plane.
#[derive(Debug)]
pub(super) struct ControlPlaneAddress {
    pub configured: ControlAddress,
    pub bound: ControlAddress,
    pub listener: ControlListener,
    pub passed: bool,
}

/// How long the kernel waits for the peers of accepted sockets.
fn user_timeout(config: &Config) -> Duration {
    Duration::from_millis(config.limits.stall_ms_max + KERNEL_PATIENCE_MS)
}

/// These addresses of the data plane in the order of the configuration: those that a former process
/// has, and of the others each bound once per shard.
pub(super) fn data_plane(
    config: &Config,
    listen_on: &[SocketAddr],
    predecessor: &mut Option<Predecessor>,
    failures: &mut Failures,
) -> Vec<DataAddress> {
    let mut addresses = Vec::new();
    for configured in listen_on {
        let inherited = predecessor.as_mut().and_then(|predecessor| predecessor.take_data(*configured));
        if let Some((offer, listeners)) = inherited {
            let (bound, passed) = (offer.bound, offer.passed);
            let configured = *configured;
            addresses.push(DataAddress { configured, bound, listeners, passed, inherited: true });
            continue;
        }
        match listen(*configured, config.shard_cpus.len(), user_timeout(config)) {
            Ok((bound, listeners)) => {
                let configured = *configured;
                addresses.push(DataAddress { configured, bound, listeners, passed: false, inherited: false });
            }
            Err(error) => failures.0.push((ControlAddress::Tcp(*configured), error.into())),
        }
    }
    addresses
}

/// Data plane listeners that were passed. All shards accept from the same queue: a listener of a
/// shard's own would have to be of the same user as the one that was passed (`SO_REUSEPORT`).
pub(super) fn passed_data_plane(
    config: &Config,
    passed: Vec<(SocketAddr, OwnedFd)>,
    failures: &mut Failures,
) -> Vec<DataAddress> {
    let mut addresses = Vec::new();
    for (bound, listener) in passed {
        match take_over(&listener, user_timeout(config)) {
            Ok(()) => {
                let listeners = vec![listener];
                let (configured, passed, inherited) = (bound, true, false);
                addresses.push(DataAddress { configured, bound, listeners, passed, inherited });
            }
            Err(error) => failures.0.push((ControlAddress::Tcp(bound), error.into())),
        }
    }
    addresses
}

/// Makes the listeners of a former process ours: what they hand on to every accepted socket is as
/// this process is configured.
pub(super) fn own(config: &Config, addresses: Vec<DataAddress>) {
    for address in &addresses {
        for listener in &address.listeners {
            if let Err(error) = configure(listener, user_timeout(config)) {
                let address = address.bound;
                tracing::warn!(%address, %error, "a listener keeps the settings of the former process");
            }
        }
    }
}

/// How many listeners of one address a shard has at most: one, but where a former process had more
/// shards.
pub(super) fn rounds(addresses: &[DataAddress], shards: usize) -> usize {
    addresses.iter().map(|address| address.listeners.len().div_ceil(shards)).max().unwrap_or(1).max(1)
}

/// The listeners of each shard, in the order of the addresses, so many times. Every queue has a
/// shard that accepts from it; where there are fewer queues, shards share one.
pub(super) fn by_shard(
    addresses: &[DataAddress],
    shards: usize,
    rounds: usize,
) -> std::io::Result<Vec<Vec<OwnedFd>>> {
    let of = |shard: usize| {
        let places = (0..rounds).flat_map(|round| addresses.iter().map(move |address| (round, address)));
        places
            .map(|(round, address)| {
                let queues = address.listeners.len();
                let own = (shard..queues).step_by(shards).count().max(1);
                address.listeners[(shard + round % own * shards) % queues].try_clone()
            })
            .collect()
    };
    (0..shards).map(of).collect()
}

/// The addresses of the control plane: those that a former process has, and the others bound.
pub(super) fn control_plane(
    config: &Config,
    predecessor: &mut Option<Predecessor>,
    failures: &mut Failures,
) -> Vec<ControlPlaneAddress> {
    let mut addresses = Vec::new();
    for configured in &config.control {
        let inherited = predecessor.as_mut().and_then(|predecessor| predecessor.take_control(configured));
        let (passed, opened) = match inherited {
            Some((offer, listener)) => {
                (offer.passed, adopt_control(&offer, listener).map_err(Occupied::from))
            }
            None => (false, bind_control_address(configured)),
        };
        match opened {
            Ok((bound, listener)) => {
                let configured = configured.clone();
                addresses.push(ControlPlaneAddress { configured, bound, listener, passed });
            }
            Err(failed) => failures.0.push((configured.clone(), failed)),
        }
    }
    addresses
}

/// The addresses of the control plane with TLS, likewise.
pub(super) fn secure_control_plane(
    config: &Config,
    certificates: &Certificates,
    predecessor: &mut Option<Predecessor>,
    failures: &mut Failures,
) -> Vec<ControlPlaneAddress> {
    let mut addresses = Vec::new();
    for address in &config.control_tls {
        let configured = ControlAddress::Tcp(*address);
        let inherited = predecessor.as_mut().and_then(|predecessor| predecessor.take_control(&configured));
        let opened = match inherited {
            Some((offer, listener)) => adopt_control(&offer, listener).map_err(Occupied::from),
            None => bind_control_address(&configured),
        };
        match opened {
            Ok((bound, ControlListener::Tcp(listener))) => {
                let listener = ControlListener::Tls(listener, certificates.clone());
                addresses.push(ControlPlaneAddress { configured, bound, listener, passed: false });
            }
            Ok(_) => unreachable!("an address of TCP"),
            Err(failed) => failures.0.push((configured, failed)),
        }
    }
    addresses
}

/// Control plane listeners that were passed.
pub(super) fn passed_control_plane(
    passed: Vec<(ControlAddress, ControlListener)>,
) -> Vec<ControlPlaneAddress> {
    let address = |(bound, listener): (ControlAddress, ControlListener)| ControlPlaneAddress {
        configured: bound.clone(),
        bound,
        listener,
        passed: true,
    };
    passed.into_iter().map(address).collect()
}

/// A control plane listener of a former process.
fn adopt_control(
    offer: &ControlOffer,
    listener: OwnedFd,
) -> std::io::Result<(ControlAddress, ControlListener)> {
    let bound = offer.bound.parse().map_err(|_| std::io::Error::other("the former process names none"))?;
    let listener = match bound {
        ControlAddress::Tcp(_) => ControlListener::Tcp(listener.into()),
        ControlAddress::Unix(_) => ControlListener::Unix(listener.into()),
    };
    Ok((bound, listener))
}

/// Binds one control plane address. Returns it as bound.
fn bind_control_address(address: &ControlAddress) -> Result<(ControlAddress, ControlListener), Occupied> {
    match address {
        ControlAddress::Tcp(address) => {
            let listener = listen_alone(*address)?;
            listener.set_nonblocking(true)?;
            Ok((ControlAddress::Tcp(listener.local_addr()?), ControlListener::Tcp(listener)))
        }
        ControlAddress::Unix(path) => {
            let listener = bind_unix(path)?;
            listener.set_nonblocking(true)?;
            Ok((ControlAddress::Unix(path.clone()), ControlListener::Unix(listener)))
        }
    }
}

/// What helps against most failures to bind an address.
const CHOOSE_ANOTHER: &str = "choose another with --listen or --control";

/// Why an address is not bound, and what the operator can do about it.
pub(super) struct Occupied {
    source: std::io::Error,
    remedy: &'static str,
}

impl From<std::io::Error> for Occupied {
    fn from(source: std::io::Error) -> Occupied {
        Occupied { source, remedy: CHOOSE_ANOTHER }
    }
}

/// Binds a Unix socket. A socket that nobody listens on any more is replaced; nothing else is
/// removed.
fn bind_unix(path: &Path) -> Result<UnixListener, Occupied> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {}
        other => return Ok(other?),
    }
    // Of the path itself: a link is not followed, neither here nor by bind(2).
    let found = std::fs::symlink_metadata(path)?.file_type();
    let what = match () {
        () if found.is_socket() => None,
        () if found.is_file() => Some("a regular file"),
        () if found.is_dir() => Some("a directory"),
        () if found.is_symlink() => Some("a symbolic link"),
        () => Some("something that is no socket"),
    };
    if let Some(what) = what {
        let text = format!("there is {what}, and only a socket is replaced");
        let remedy = "remove it, or choose another path with --control";
        return Err(Occupied { source: std::io::Error::new(ErrorKind::AlreadyExists, text), remedy });
    }
    let in_use = |text: String| Occupied {
        source: std::io::Error::new(ErrorKind::AddrInUse, text),
        remedy: "end the process that listens there, or choose another path with --control",
    };
    match connect_at_once(path) {
        // unix(7): ECONNREFUSED says that no listening socket has this address.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
            Ok(UnixListener::bind(path)?)
        }
        // A full backlog is that of a process that listens.
        Ok(()) => Err(in_use("a process listens on this socket".into())),
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            Err(in_use("a process listens on this socket".into()))
        }
        Err(error) => Err(in_use(format!("the socket there cannot be asked who listens: {error}"))),
    }
}

/// Connects to a Unix socket without a wait for a place in its backlog.
fn connect_at_once(path: &Path) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&socket2::SockAddr::unix(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_a_shard_whatever_their_numbers() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let open = |queues: usize| {
            let (bound, listeners) = listen(any, queues, Duration::from_secs(1)).expect("a free port");
            DataAddress { configured: any, bound, listeners, passed: false, inherited: true }
        };
        // Inodes tell which queue a descriptor is of.
        let queue = |listener: &OwnedFd| rustix::fs::fstat(listener).expect("it is open").st_ino;
        for (queues, other, shards) in [(1, 1, 1), (2, 2, 2), (4, 2, 2), (5, 3, 2), (2, 1, 3), (3, 4, 1)] {
            let addresses = [open(queues), open(other)];
            let rounds = rounds(&addresses, shards);
            let given = by_shard(&addresses, shards, rounds).expect("descriptors");
            assert!(given.iter().all(|listeners| listeners.len() == 2 * rounds));
            for (at, address) in addresses.iter().enumerate() {
                let of_address = given.iter().flat_map(|listeners| listeners.iter().skip(at).step_by(2));
                let mut served: Vec<u64> = of_address.map(queue).collect();
                served.sort_unstable();
                served.dedup();
                let mut all: Vec<u64> = address.listeners.iter().map(queue).collect();
                all.sort_unstable();
                assert_eq!(served, all, "{queues} and {other} queues, {shards} shards");
            }
        }
    }

    #[test]
    fn a_link_local_address_without_its_interface_is_told_to_name_it() {
        for (address, told) in [
            ("[fe80::1]:8080", "cannot listen on [fe80::1]:8080: invalid; name its interface by number"),
            ("[fe80::1%2]:8080", "cannot listen on [fe80::1%2]:8080: invalid; choose another"),
            (
                "unix:/run/a",
                "cannot listen on unix:/run/a: invalid; choose another with --listen or --control",
            ),
        ] {
            let address = address.parse().expect("an address");
            let failures = Failures(vec![(address, std::io::Error::other("invalid").into())]);
            let error = failures.check().expect_err("one of them failed").to_string();
            assert!(error.starts_with(told), "{error}");
        }
    }
}

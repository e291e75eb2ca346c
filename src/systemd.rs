//! The service manager: what it is told (sd_notify(3)), and the sockets that it passes
//! (sd_listen_fds(3)).
//!
//! Without a manager nothing here does anything. A manager that does not listen is no reason to
//! stop.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::time::Duration;

use listenfd::ListenFd;

use crate::config::ControlAddress;
use crate::hub::ControlListener;

/// Where the service manager listens, if there is one.
#[derive(Debug)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that we live.
    pub watchdog: Option<Duration>,
}

impl Manager {
    /// The manager that `NOTIFY_SOCKET` names, with the patience of `WATCHDOG_USEC`.
    pub fn from_environment() -> Manager {
        let variable = |name: &str| std::env::var(name).ok();
        let is_ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let patience = variable("WATCHDOG_USEC").filter(|_| is_ours).and_then(|us| us.parse().ok());
        let path = std::env::var_os("NOTIFY_SOCKET");
        Manager {
            socket: path.and_then(|path| connect(&path).ok()),
            watchdog: patience.filter(|us| *us > 0).map(Duration::from_micros),
        }
    }

    /// Serving has begun, or goes on after a reload.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving\n");
    }

    /// The drain has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=draining\n");
    }

    /// Another process has our place: it is the one to follow.
    pub fn follow(&self, heir: i32) {
        self.tell(&format!("MAINPID={heir}\n"));
    }

    /// A reload has begun; [`Manager::ready`] ends it.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let us = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={us}\n"));
    }

    /// The hub and all shards live.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1\n");
    }

    fn tell(&self, text: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(text.as_bytes())
        {
            tracing::warn!(%error, "cannot tell the service manager {:?}", text.lines().next());
        }
    }
}

/// A socket in the file system, or with `@` an abstract one.
fn connect(path: &OsStr) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match path.as_bytes().strip_prefix(b"@") {
        Some(name) => socket.connect_addr(&UnixAddress::from_abstract_name(name)?)?,
        None => socket.connect(path)?,
    }
    // A manager that does not read must not stop us.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Listening sockets that the manager has opened. They take the place of the addresses that are
/// configured for their plane.
#[derive(Debug, Default)]
pub struct Passed {
    /// Of the data plane: `FileDescriptorName=data`.
    pub data: Vec<(SocketAddr, OwnedFd)>,
    /// Of the control plane: `FileDescriptorName=control`.
    pub control: Vec<(ControlAddress, ControlListener)>,
}

impl Passed {
    /// Those of `LISTEN_FDS`, by their names in `LISTEN_FDNAMES`. Call it before the first thread:
    /// it takes the variables away, so that nobody else takes the sockets. The error is one line.
    pub fn from_environment() -> Result<Passed, String> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        let mut passed = Passed::default();
        for at in 0..sockets.len() {
            let name = names.next().unwrap_or_default();
            let failed = |error: std::io::Error| format!("socket {at} that was passed as {name:?}: {error}");
            match name {
                "data" => {
                    let listener = sockets.take_tcp_listener(at).map_err(failed)?.expect("not taken yet");
                    passed.data.push((listener.local_addr().map_err(failed)?, listener.into()));
                }
                "control" => passed.control.push(control(&mut sockets, at).map_err(failed)?),
                name => {
                    return Err(format!(
                        "a socket was passed as {name:?}; name it with FileDescriptorName=data or =control"
                    ));
                }
            }
        }
        Ok(passed)
    }

    /// Where the data plane listens, if sockets of it were passed.
    pub fn data_addresses(&self) -> Vec<SocketAddr> {
        self.data.iter().map(|(address, _)| *address).collect()
    }

    /// Where the control plane listens, if sockets of it were passed.
    pub fn control_addresses(&self) -> Vec<ControlAddress> {
        self.control.iter().map(|(address, _)| address.clone()).collect()
    }
}

fn control(sockets: &mut ListenFd, at: usize) -> std::io::Result<(ControlAddress, ControlListener)> {
    if let Ok(Some(listener)) = sockets.take_unix_listener(at) {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| std::io::Error::other("it has no path"))?;
        return Ok((ControlAddress::Unix(path.to_path_buf()), ControlListener::Unix(listener)));
    }
    let listener = sockets.take_tcp_listener(at)?.expect("not taken yet");
    listener.set_nonblocking(true)?;
    Ok((ControlAddress::Tcp(listener.local_addr()?), ControlListener::Tcp(listener)))
}

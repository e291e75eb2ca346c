//! Takes the place of a running process, step by step; and starts a process that takes ours.
//!
//! Every step before the last word is of no consequence to the process that runs: whatever fails
//! here ends this process, and that one goes on. After the last word nothing may fail any more.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;

use super::ServeError;
use super::listeners::{ControlPlaneAddress, DataAddress};
use crate::config::limits::{HAND_OVER_MS_MAX, HAND_OVER_WORD_MS_MAX};
use crate::config::{Config, ControlAddress, UpgradeSocket};
use crate::event::Epoch;
use crate::handover::place::{self, Place};
use crate::handover::state::State;
use crate::handover::talk::{ControlOffer, DataOffer, Offer, Talk, TalkError, Word};
use crate::handover::{FORMAT, VERSION};
use crate::hub::{Estate, OpenHub};

/// Where a server with this socket and this first control address waits, if it does.
fn path_of(socket: &UpgradeSocket, control: Option<&ControlAddress>) -> Option<PathBuf> {
    match socket {
        UpgradeSocket::None => None,
        UpgradeSocket::Path(path) => Some(path.clone()),
        UpgradeSocket::Derived => Some(place::path(control?, |name| std::env::var_os(name))),
    }
}

/// A process whose place is to be taken, and what it has.
#[derive(Debug)]
pub struct Predecessor {
    talk: Talk,
    path: PathBuf,
    epoch: Epoch,
    data: Vec<(DataOffer, Vec<OwnedFd>)>,
    control: Vec<(ControlOffer, OwnedFd)>,
    /// Where it waits for us.
    place: Option<OwnedFd>,
}

impl Predecessor {
    /// Asks the process that waits there. The error is one line.
    pub fn meet(socket: &UpgradeSocket, control: Option<&ControlAddress>) -> Result<Predecessor, ServeError> {
        let has_any_port = matches!(control, Some(ControlAddress::Tcp(address)) if address.port() == 0);
        let path = path_of(socket, control).filter(|_| *socket != UpgradeSocket::Derived || !has_any_port);
        let Some(path) = path else {
            let text = "say with --upgrade-socket PATH where the process waits whose place is to be taken";
            return Err(ServeError::Upgrade(text.to_string()));
        };
        let socket = place::connect(&path).map_err(|error| {
            let path = path.display();
            ServeError::Upgrade(format!(
                "nobody waits for it at {path}: {error}; start without --upgrade, or give the \
                 --upgrade-socket of the process that runs"
            ))
        })?;
        let met = Talk::new(socket).and_then(|talk| Predecessor::ask(talk, path));
        met.map_err(|error| ServeError::Upgrade(error.to_string()))
    }

    fn ask(talk: Talk, path: PathBuf) -> Result<Predecessor, TalkError> {
        let hello = Word::Hello { format: FORMAT, version: VERSION.to_string() };
        if let Err(error) = talk.say(&hello, &[]) {
            // It may have said why before it closed.
            return Err(talk.await_word(HAND_OVER_WORD_MS_MAX).err().unwrap_or(error));
        }
        let (word, _) = talk.await_word(HAND_OVER_WORD_MS_MAX)?;
        let Word::Offer(offer) = word else { return Err(TalkError::unexpected(&word)) };
        let mut listeners = Vec::new();
        // One more is of the socket where it waits.
        while listeners.len() < offer.descriptors().saturating_add(1) {
            match talk.await_word(HAND_OVER_WORD_MS_MAX)? {
                (Word::Listeners, more) if !more.is_empty() => listeners.extend(more),
                (word, _) => return Err(TalkError::unexpected(&word)),
            }
        }
        let (epoch, Offer { data, control, .. }) = (offer.epoch(), offer);
        let mut listeners = listeners.into_iter();
        let data = data.into_iter().map(|offer| {
            let own = listeners.by_ref().take(offer.listeners).collect();
            (offer, own)
        });
        let data = data.collect();
        let control = control.into_iter().zip(listeners.by_ref()).collect();
        Ok(Predecessor { talk, path, epoch, data, control, place: listeners.next() })
    }

    /// Addresses that its service manager has passed to it, of both planes. They take the place of
    /// those that are configured, as they did there.
    pub fn passed(&self) -> (Vec<SocketAddr>, Vec<ControlAddress>) {
        let data = self.data.iter().filter(|(offer, _)| offer.passed).map(|(offer, _)| offer.bound);
        let control = self.control.iter().filter(|(offer, _)| offer.passed);
        (data.collect(), control.filter_map(|(offer, _)| offer.bound.parse().ok()).collect())
    }

    /// Where it waits.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// In whose sequences we go on.
    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Its listeners of an address of the data plane.
    pub(super) fn take_data(&mut self, address: SocketAddr) -> Option<(DataOffer, Vec<OwnedFd>)> {
        let is_it = |(offer, own): &(DataOffer, Vec<OwnedFd>)| {
            (offer.configured == address || offer.bound == address) && !own.is_empty()
        };
        let at = self.data.iter().position(is_it)?;
        Some(self.data.remove(at))
    }

    /// Its listener of an address of the control plane.
    pub(super) fn take_control(&mut self, address: &ControlAddress) -> Option<(ControlOffer, OwnedFd)> {
        let address = address.to_string();
        let is_it =
            |(offer, _): &(ControlOffer, OwnedFd)| offer.configured == address || offer.bound == address;
        let at = self.control.iter().position(is_it)?;
        Some(self.control.remove(at))
    }

    /// Takes its place: what it knows first, then its listeners. Everything else is ready.
    pub(super) fn succeed(self, hub: &OpenHub, runtime: &Runtime) -> Result<(), ServeError> {
        let taken = self.try_to_succeed(hub, runtime);
        taken.map_err(|error| {
            let why = error.to_string();
            // It may be gone.
            let _ = self.talk.say(&Word::Refused { why: why.clone() }, &[]);
            ServeError::Upgrade(why)
        })
    }

    fn try_to_succeed(&self, hub: &OpenHub, runtime: &Runtime) -> Result<(), TalkError> {
        runtime.block_on(hub.fetch_keys()).map_err(TalkError::Refused)?;
        self.talk.say(&Word::Ready, &[])?;
        let patience = HAND_OVER_MS_MAX + HAND_OVER_WORD_MS_MAX;
        let (word, mut memory) = self.talk.await_word(patience)?;
        let memory = memory.pop().filter(|_| word == Word::State);
        let memory = File::from(memory.ok_or_else(|| TalkError::unexpected(&word))?);
        let state = State::read(memory).map_err(std::io::Error::other)?;
        if state.epoch != self.epoch {
            return Err(std::io::Error::other("the state is that of another process").into());
        }
        runtime.block_on(hub.restore(state));
        self.talk.say(&Word::Restored, &[])?;
        self.talk.expect_word(&Word::Go, patience)?;
        self.talk.say(&Word::Taken, &[])
    }
}

/// Where this server waits for the one that takes its place, if it shall and can.
pub(super) fn open_place(
    config: &Config,
    control: Option<&ControlAddress>,
    predecessor: &mut Option<Predecessor>,
) -> Result<Option<(Place, OwnedFd)>, ServeError> {
    let Some(path) = path_of(&config.upgrade_socket, control) else { return Ok(None) };
    if let Some(predecessor) = predecessor
        && predecessor.path == path
        && let Some(listener) = predecessor.place.take()
    {
        // It is not ours before that process has left it.
        return Ok(Some((Place { path, is_left: true }, listener)));
    }
    match Place::open(&path) {
        Ok(place) => Ok(Some(place)),
        // Who asks for it by name wants it.
        Err(error) if matches!(config.upgrade_socket, UpgradeSocket::Path(_)) => {
            let path = path.display();
            Err(ServeError::UpgradeSocket(format!("cannot wait for an upgrade at {path}: {error}")))
        }
        Err(error) => {
            tracing::info!(path = %path.display(), %error, "no process can take the place of this one");
            Ok(None)
        }
    }
}

/// Removes the socket of a former process that waited elsewhere than this one does.
pub(super) fn leave_no_place(former: &Path, estate: Option<&Estate>) {
    if estate.is_none_or(|estate| estate.place.path != former) {
        // It may have removed it itself.
        let _ = std::fs::remove_file(former);
    }
}

/// What we hand over in our turn.
pub(super) fn estate(
    (place, listener): (Place, OwnedFd),
    data: &[DataAddress],
    control: &[ControlPlaneAddress],
) -> Estate {
    let data = data.iter().map(|address| {
        let DataAddress { configured, bound, passed, .. } = address;
        DataOffer { configured: *configured, bound: *bound, listeners: 0, passed: *passed }
    });
    let control = control.iter().map(|address| {
        let ControlPlaneAddress { configured, bound, passed, .. } = address;
        ControlOffer::new(configured, bound, *passed)
    });
    Estate { place, listener, data: data.collect(), control: control.collect() }
}

/// At each message, starts the program that is there now, beside this process, with the same
/// arguments, to take the place of it; one at a time.
pub(super) async fn start_successors(mut asked: UnboundedReceiver<()>, path: Option<PathBuf>) {
    /// A process that was started here runs.
    static IS_STARTED: AtomicBool = AtomicBool::new(false);
    // As long as the file has its name: it may be replaced.
    let program = std::env::current_exe();
    while asked.recv().await.is_some() {
        let Some(path) = &path else {
            tracing::error!("upgrade: this process waits for none: --upgrade-socket");
            continue;
        };
        let program = match &program {
            Ok(program) => program,
            Err(error) => {
                tracing::error!(%error, "upgrade: this program does not know where it is");
                continue;
            }
        };
        if IS_STARTED.swap(true, Ordering::Relaxed) {
            tracing::warn!("upgrade: the process that was started is still under way");
            continue;
        }
        let mut command = Command::new(program);
        command.args(std::env::args_os().skip(1)).stdin(Stdio::null());
        command.env("FANWAVE_UPGRADE", "true").env("FANWAVE_UPGRADE_SOCKET", path);
        // It is the one to be watched then, and has another process id.
        command.env_remove("WATCHDOG_PID");
        let started = command.spawn().and_then(|mut child| {
            tracing::info!(pid = child.id(), program = %program.display(), "upgrade: started");
            std::thread::Builder::new().name("upgrade".into()).spawn(move || {
                let ended = child.wait();
                IS_STARTED.store(false, Ordering::Relaxed);
                tracing::warn!(?ended, "upgrade: the process that was started has ended");
            })
        });
        if let Err(error) = started {
            IS_STARTED.store(false, Ordering::Relaxed);
            tracing::error!(%error, program = %program.display(), "upgrade: cannot start the program");
        }
    }
}

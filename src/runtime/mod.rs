//! What runs a shard: a thread of its own, pinned to its CPU, that turns it while there is
//! something to do, and sleeps when there is not.
//!
//! A shard whose ring is io_uring's runs on a glommio executor (`executor`), one whose ring is an
//! epoll on a plain thread (`thread`). Both drive the same [`Shard::turn`].

use std::thread::JoinHandle;

use glommio::{ExecutorJoinHandle, GlommioError};
use rustix::io::Errno;

use crate::broadcast::Inbox;
use crate::clock::{Stamp, http_date, unix_ms};
use crate::config::limits::{EXECUTOR_MEMLOCK_BYTES, TICK_MS};
use crate::egress::epoll::EpollOptions;
use crate::egress::uring::UringOptions;
use crate::egress::{EgressRing, RingError};
use crate::http2::StreamRules;
use crate::shard::{Shard, ShardSetup};
use crate::tls::Identity;

mod executor;
mod thread;

pub use executor::check_locked_memory;

/// The process may lock less memory than glommio wants.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of locked memory (memlock) is {} KiB, an executor needs {} KiB",
    .allowed >> 10, EXECUTOR_MEMLOCK_BYTES >> 10
)]
pub struct LockedMemory {
    /// Bytes that it may lock.
    pub allowed: u64,
}

impl LockedMemory {
    /// What the operator can do.
    pub const REMEDY: &str = "raise ulimit -l";
}

/// Why a shard does not run: cause and remedy. A fault of the operator's system or ours; a retry
/// does not help.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The process may lock less memory than glommio wants.
    #[error("{0}: {remedy}", remedy = LockedMemory::REMEDY)]
    LockedMemory(#[from] LockedMemory),
    /// The thread of an executor could not be started.
    #[error("cannot start an executor on CPU {cpu}: {source}{}", remedy_of(source))]
    Start {
        /// Where it was to run.
        cpu: usize,
        /// What glommio said.
        source: GlommioError<()>,
    },
    /// The executor could not be made on its thread.
    #[error("cannot make its executor: {source}{}", remedy_of(source))]
    Executor {
        /// What glommio said.
        source: GlommioError<()>,
    },
    /// A plain thread could not be started.
    #[error("cannot start its thread: {source}{}", remedy(source.raw_os_error()))]
    Thread {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A plain thread could not be pinned.
    #[error("cannot pin its thread to CPU {cpu}: {source}; choose others with --cpus")]
    Pin {
        /// Where it was to run.
        cpu: usize,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Its ring could not be made, or failed.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// Its doorbell could not be made, or failed.
    #[error("cannot {what} the doorbell: {source}{}", remedy(source.raw_os_error()))]
    Doorbell {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Its thread ended without a result.
    #[error("its thread ended without a word")]
    Vanished,
}

/// What the operator can do about an executor that cannot be made.
fn remedy_of(error: &GlommioError<()>) -> &'static str {
    remedy(match error {
        GlommioError::IoError(error) => error.raw_os_error(),
        GlommioError::EnhancedIoError { source, .. } => source.raw_os_error(),
        _ => None,
    })
}

/// What the operator can do about a resource that is missing.
fn remedy(errno: Option<i32>) -> &'static str {
    match errno.map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE) => "; raise ulimit -n",
        Some(Errno::NOMEM) => "; raise ulimit -l (memlock) or the memory limit of the container",
        Some(Errno::AGAIN) => "; raise ulimit -u or the task limit of the container",
        _ => "",
    }
}

/// What one shard needs to start.
#[derive(Debug)]
pub struct ShardStart {
    /// Who it is.
    pub setup: ShardSetup,
    /// Its sockets.
    pub ring: RingOptions,
    /// What lies between its sockets and it.
    pub layers: Layers,
    /// Its end of the broadcast.
    pub inbox: Inbox,
}

/// The rings around a shard's ring.
#[derive(Debug)]
pub struct Layers {
    /// Which of its listeners speak TLS, if any does.
    pub secure: Option<Secure>,
    /// What connections may carry.
    pub streams: StreamRules,
}

/// Listeners that speak TLS.
#[derive(Debug)]
pub struct Secure {
    /// Their certificates.
    pub identity: Identity,
    /// Those from this one on.
    pub from: usize,
    /// Of so many addresses. A shard that has more listeners has them in the same order again.
    pub addresses: usize,
    /// By address: true where connections begin with a PROXY header.
    pub proxied: Vec<bool>,
}

/// Which ring a shard gets, and what that needs to know.
#[derive(Debug)]
pub enum RingOptions {
    /// io_uring.
    Uring(UringOptions),
    /// epoll.
    Epoll(EpollOptions),
}

/// A running shard; joined for its result.
#[derive(Debug)]
pub enum ShardHandle {
    /// On an executor.
    Executor(ExecutorJoinHandle<Result<(), RuntimeError>>),
    /// On a plain thread.
    Thread(JoinHandle<Result<(), RuntimeError>>),
}

impl ShardHandle {
    /// Waits for the end of its thread.
    pub fn join(self) -> Result<(), RuntimeError> {
        match self {
            ShardHandle::Executor(executor) => {
                executor.join().map_err(|source| RuntimeError::Executor { source })?
            }
            ShardHandle::Thread(thread) => thread.join().map_err(|_| RuntimeError::Vanished)?,
        }
    }

    /// Why the thread of a shard ended before it was ready. Waits for its end.
    pub fn why_not_ready(self) -> RuntimeError {
        self.join().err().unwrap_or(RuntimeError::Vanished)
    }
}

/// Starts a shard on a thread of its own, pinned to its CPU. `ready` is called once it runs, and
/// dropped if it never does; `ended` hears its result when its thread is about to end.
pub fn spawn_shard(
    start: ShardStart,
    ready: impl FnOnce() + Send + 'static,
    ended: impl FnOnce(&Result<(), RuntimeError>) + Send + 'static,
) -> Result<ShardHandle, RuntimeError> {
    let ShardStart { setup, ring, layers, inbox } = start;
    match ring {
        RingOptions::Uring(options) => {
            executor::spawn(setup, options, layers, inbox, ready, ended).map(ShardHandle::Executor)
        }
        RingOptions::Epoll(options) => {
            thread::spawn(setup, options, layers, inbox, ready, ended).map(ShardHandle::Thread)
        }
    }
}

/// When the date was last told to a shard.
#[derive(Default)]
struct Dated(Option<Stamp>);

impl Dated {
    /// Tells it every tick. A sleeping shard is woken every tick, so nobody is told a date that is
    /// much older.
    fn tell<R: EgressRing>(&mut self, shard: &mut Shard<R>, now: Stamp) {
        if self.0.is_none_or(|dated| now.ns_since(dated) >= TICK_MS * 1_000_000) {
            shard.set_date(http_date());
            shard.set_time(unix_ms(), now);
            self.0 = Some(now);
        }
    }
}

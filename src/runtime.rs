//! What runs a shard: one pinned glommio executor each, its timer, its sleep. (Beside this only
//! `egress/uring/setup` knows glommio, for the doorbell.)
//!
//! Rules kept here (read from glommio 0.9's source): no task, timer or waker per connection; a
//! cancelled task leaks, so tasks end by a flag before the executor does; sleeping in its reactor
//! and waking cost about ten system calls. So a shard sleeps only when nothing at all is left to
//! do, one wake-up serves all that has come, and a shard that has traffic dozes first: it blocks
//! its thread in poll(2), which nobody on this executor minds for so short a time.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::io::BufferedFile;
use glommio::{ExecutorJoinHandle, GlommioError, LocalExecutorBuilder, Placement};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::broadcast::{Doorbell, Inbox};
use crate::clock::{Stamp, http_date};
use crate::config::limits::{DOZE_MS, EXECUTOR_IO_BYTES, EXECUTOR_MEMLOCK_BYTES, TICK_MS};
use crate::egress::uring::{Uring, UringOptions, adopt_doorbell};
use crate::egress::{EgressRing, RingError};
use crate::shard::{Shard, ShardSetup, Turn};

/// What one shard needs to start.
#[derive(Debug)]
pub struct ShardStart {
    /// Who it is.
    pub setup: ShardSetup,
    /// Its sockets.
    pub ring: UringOptions,
    /// Its end of the broadcast.
    pub inbox: Inbox,
}

/// A running shard; joined for its result.
pub type ShardHandle = ExecutorJoinHandle<Result<(), String>>;

/// Starts a shard on a thread of its own, pinned to its CPU. `ready` hears once that it runs, or
/// why it does not; `ended` hears its result when its thread is about to end.
pub fn spawn_shard(
    start: ShardStart,
    ready: impl FnOnce(Result<(), String>) + Send + 'static,
    ended: impl FnOnce(&Result<(), String>) + Send + 'static,
) -> Result<ShardHandle, String> {
    let cpu = start.setup.cpu;
    let locked = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    if locked < EXECUTOR_MEMLOCK_BYTES {
        return Err(format!(
            "the limit of locked memory (memlock) is {} KiB, an executor needs {} KiB: raise ulimit -l",
            locked >> 10,
            EXECUTOR_MEMLOCK_BYTES >> 10
        ));
    }
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{}", start.setup.number))
        .io_memory(EXECUTOR_IO_BYTES)
        .spawn(move || async move {
            let result = run(start, ready).await;
            ended(&result);
            result
        })
        .map_err(|error| format!("cannot start an executor on CPU {cpu}: {error}{}", remedy(&error)))
}

/// Why the thread of a shard ended before it was ready: cause and remedy. Waits for its end.
pub fn why_not_ready(shard: ShardHandle) -> String {
    match shard.join() {
        Err(error) => format!("cannot make its executor: {error}{}", remedy(&error)),
        Ok(Err(cause)) => cause,
        Ok(Ok(())) => "its thread ended before it was ready".into(),
    }
}

/// What the operator can do about an executor that cannot be made.
fn remedy(error: &GlommioError<()>) -> &'static str {
    let errno = match error {
        GlommioError::IoError(error) => error.raw_os_error(),
        GlommioError::EnhancedIoError { source, .. } => source.raw_os_error(),
        _ => None,
    };
    match errno.map(Errno::from_raw_os_error) {
        Some(Errno::MFILE | Errno::NFILE) => "; raise ulimit -n",
        Some(Errno::NOMEM) => "; raise ulimit -l (memlock) or the memory limit of the container",
        Some(Errno::AGAIN) => "; raise ulimit -u or the task limit of the container",
        _ => "",
    }
}

async fn run(start: ShardStart, ready: impl FnOnce(Result<(), String>)) -> Result<(), String> {
    let doorbell = start.inbox.doorbell().clone();
    let (mut shard, bell) = match open(start, &doorbell) {
        Ok(open) => open,
        Err(cause) => {
            ready(Err(cause.clone()));
            return Err(cause);
        }
    };
    ready(Ok(()));
    let ending = Rc::new(Cell::new(false));
    let ticker = glommio::spawn_local(tick(doorbell.clone(), ending.clone())).detach();
    let result = pump(&mut shard, &doorbell, &bell).await;
    end(shard, &ending, ticker).await;
    let closed = bell.close().await.map_err(|error| format!("cannot close the doorbell: {error}"));
    result.and(closed)
}

/// Opens all that a shard ever opens by itself: its ring, and the copy of its doorbell that glommio
/// awaits.
fn open(start: ShardStart, doorbell: &Doorbell) -> Result<(Shard<Uring>, BufferedFile), String> {
    let ring = Uring::new(start.ring, doorbell.as_fd()).map_err(|error| error.to_string())?;
    let copy = rustix::io::dup(doorbell)
        .map_err(|error| format!("cannot copy the doorbell: {error}; raise ulimit -n"))?;
    Ok((Shard::new(start.setup, ring, start.inbox, Stamp::now()), adopt_doorbell(copy)))
}

/// Wakes a sleeping shard once per tick; one that is awake sees by itself that time has passed.
async fn tick(doorbell: Arc<Doorbell>, ending: Rc<Cell<bool>>) {
    while !ending.get() {
        glommio::timer::sleep(Duration::from_millis(TICK_MS)).await;
        doorbell.ring();
    }
}

/// Ends a shard, and then its ticker. In this order, for the shard's listeners end with it: nobody
/// shall come while the ticker ends, and wait for an answer.
async fn end<R>(shard: Shard<R>, ending: &Cell<bool>, ticker: impl Future) {
    drop(shard);
    ending.set(true);
    ticker.await;
}

/// Turns while there is something to do; when there is not, dozes and then sleeps on the doorbell.
async fn pump<R: EgressRing>(
    shard: &mut Shard<R>,
    doorbell: &Doorbell,
    bell: &BufferedFile,
) -> Result<(), String> {
    let mut dated: Option<Stamp> = None;
    loop {
        let now = Stamp::now();
        // A sleeping shard is woken every tick, so nobody is told a date that is much older.
        if dated.is_none_or(|dated| now.ns_since(dated) >= TICK_MS * 1_000_000) {
            shard.set_date(http_date());
            dated = Some(now);
        }
        match shard.turn(now).map_err(|error: RingError| error.to_string())? {
            Turn::Busy => glommio::executor().yield_if_needed().await,
            Turn::Idle => {
                if shard.may_sleep() {
                    let rung = doorbell.wait(Duration::from_millis(DOZE_MS));
                    if !rung.map_err(|error| format!("cannot wait for the doorbell: {error}"))? {
                        bell.read_at(0, 8)
                            .await
                            .map_err(|error| format!("cannot await the doorbell: {error}"))?;
                    }
                    shard.awake();
                }
            }
            Turn::Ended => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{SocketAddr, TcpStream};

    use futures_util::FutureExt;

    use super::*;
    use crate::broadcast::{Memory, path};
    use crate::config::Config;
    use crate::egress::listener::listen;
    use crate::event::Epoch;

    fn setup() -> ShardSetup {
        let config = Arc::new(Config::default());
        let memory = Memory::new(&config.limits);
        ShardSetup {
            number: 0,
            cpu: 0,
            config,
            epoch: Epoch(1),
            demand: Arc::default(),
            memory,
            connections_max: 4,
            admission: Default::default(),
        }
    }

    /// The ticker may take a whole tick to end.
    #[test]
    fn whoever_comes_while_the_ticker_ends_is_refused() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (address, listeners) = listen(any, 1, Duration::from_secs(1)).expect("a free port");
        let ring = UringOptions {
            keeps_listeners: false,
            listeners,
            accepts_per_listener: 2,
            slots: 8,
            sockets_max: 8,
            direct: true,
            receive_buffers: 4,
            receive_buffer_bytes: 100,
        };
        let (_outbox, inbox) = path(1).expect("a doorbell");
        let ring = Uring::new(ring, inbox.doorbell().as_fd()).expect("this kernel makes the ring");
        let mut shard = Shard::new(setup(), ring, inbox, Stamp::now());
        shard.turn(Stamp::now()).expect("a turn does not fail");
        TcpStream::connect(address).expect("it listens");

        let ending = Cell::new(false);
        let ticker = async {
            assert!(ending.get(), "the ticker is told to end");
            let refused = TcpStream::connect(address).expect_err("nobody listens any more");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        };
        end(shard, &ending, ticker).now_or_never().expect("nothing else is waited for");
    }
}

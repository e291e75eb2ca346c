//! A shard on a glommio executor, its timer, its sleep. (Beside this only `runtime` and, for the
//! doorbell, `egress/uring/setup` know glommio.)
//!
//! Rules kept here (read from glommio 0.9's source): no task, timer or waker per connection; a
//! cancelled task leaks, so tasks end by a flag before the executor does; sleeping in its reactor
//! and waking cost about ten system calls. So a shard sleeps only when nothing at all is left to
//! do, one wake-up serves all that has come, and a shard that has traffic dozes first: it blocks
//! its thread in poll(2), which nobody on this executor minds for so short a time.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::io::BufferedFile;
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};
use rustix::process::{Resource, getrlimit};

use super::{Dated, Layers, LockedMemory, RuntimeError, Secure};
use crate::broadcast::{Doorbell, Inbox};
use crate::clock::Stamp;
use crate::config::limits::{DOZE_MS, EXECUTOR_IO_BYTES, EXECUTOR_MEMLOCK_BYTES, TICK_MS};
use crate::egress::EgressRing;
use crate::egress::uring::{Uring, UringOptions, adopt_doorbell};
use crate::http2::Http2;
use crate::shard::{Shard, ShardSetup, Turn};
use crate::tls::Tls;

/// Fails if the process may not lock the memory that an executor wants.
pub fn check_locked_memory() -> Result<(), LockedMemory> {
    let allowed = getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX);
    if allowed < EXECUTOR_MEMLOCK_BYTES { Err(LockedMemory { allowed }) } else { Ok(()) }
}

/// Starts the executor; see [`super::spawn_shard`].
pub(super) fn spawn(
    setup: ShardSetup,
    ring: UringOptions,
    layers: Layers,
    inbox: Inbox,
    ready: impl FnOnce() + Send + 'static,
    ended: impl FnOnce(&Result<(), RuntimeError>) + Send + 'static,
) -> Result<ExecutorJoinHandle<Result<(), RuntimeError>>, RuntimeError> {
    check_locked_memory()?;
    let cpu = setup.cpu;
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{}", setup.number))
        .io_memory(EXECUTOR_IO_BYTES)
        .spawn(move || async move {
            let result = run(setup, ring, layers, inbox, ready).await;
            ended(&result);
            result
        })
        .map_err(|source| RuntimeError::Start { cpu, source })
}

/// A failure of the doorbell.
fn doorbell_failed<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> RuntimeError {
    move |source| RuntimeError::Doorbell { what, source: source.into() }
}

async fn run(
    setup: ShardSetup,
    ring: UringOptions,
    layers: Layers,
    inbox: Inbox,
    ready: impl FnOnce(),
) -> Result<(), RuntimeError> {
    let doorbell = inbox.doorbell().clone();
    let (ring, bell) = open(ring, &doorbell)?;
    let Layers { secure, streams } = layers;
    match secure {
        None => {
            let ring = Http2::new(ring, streams);
            serve(Shard::new(setup, ring, inbox, Stamp::now()), doorbell, bell, ready).await
        }
        Some(Secure { identity, from, addresses, proxied }) => {
            let ring = Tls::new(ring, from, addresses, identity).behind_proxies(proxied);
            let ring = Http2::new(ring, streams);
            serve(Shard::new(setup, ring, inbox, Stamp::now()), doorbell, bell, ready).await
        }
    }
}

/// Turns a shard until it ends.
async fn serve<R: EgressRing>(
    mut shard: Shard<R>,
    doorbell: Arc<Doorbell>,
    bell: BufferedFile,
    ready: impl FnOnce(),
) -> Result<(), RuntimeError> {
    ready();
    let ending = Rc::new(Cell::new(false));
    let ticker = glommio::spawn_local(tick(doorbell.clone(), ending.clone())).detach();
    let result = pump(&mut shard, &doorbell, &bell).await;
    end(shard, &ending, ticker).await;
    let closed = bell.close().await.map_err(doorbell_failed("close"));
    result.and(closed)
}

/// Opens all that a shard ever opens by itself: its ring, and the copy of its doorbell that glommio
/// awaits.
fn open(ring: UringOptions, doorbell: &Doorbell) -> Result<(Uring, BufferedFile), RuntimeError> {
    let ring = Uring::new(ring, doorbell.as_fd())?;
    let copy = rustix::io::dup(doorbell).map_err(doorbell_failed("copy"))?;
    Ok((ring, adopt_doorbell(copy)))
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
) -> Result<(), RuntimeError> {
    let mut dated = Dated::default();
    loop {
        let now = Stamp::now();
        dated.tell(shard, now);
        match shard.turn(now)? {
            Turn::Busy => glommio::executor().yield_if_needed().await,
            Turn::Idle => {
                if shard.may_sleep() {
                    let rung = doorbell.wait(Duration::from_millis(DOZE_MS));
                    if !rung.map_err(doorbell_failed("wait for"))? {
                        bell.read_at(0, 8).await.map_err(doorbell_failed("await"))?;
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
    fn a_client_that_comes_while_the_ticker_ends_is_refused() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (address, listeners) = listen(any, 1, Duration::from_secs(1)).expect("a free port");
        let ring = UringOptions {
            keeps_listeners: false,
            holds_accepts: false,
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

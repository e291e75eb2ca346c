//! Everything that knows glommio: one pinned executor per shard, its timer, its sleep.
//!
//! Rules kept here (read from glommio 0.9's source): no task, timer or waker per connection; a cancelled task leaks, so
//! tasks end by a flag before the executor does; sleeping in its reactor and waking cost about ten system calls. So a shard sleeps
//! only when nothing at all is left to do, one wake-up serves all that has come, and a shard that has traffic dozes first: it blocks
//! its thread in poll(2), which nobody on this executor minds for so short a time.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use crate::broadcast::{Doorbell, Inbox};
use crate::clock::Stamp;
use crate::config::limits::{DOZE_MS, EXECUTOR_IO_BYTES, TICK_MS};
use crate::egress::uring::{Uring, UringOptions, adopt_doorbell};
use crate::egress::{EgressRing, RingError};
use crate::shard::{Setup, Shard, Turn};

/// What one shard needs to start.
#[derive(Debug)]
pub struct ShardStart {
    /// Who it is.
    pub setup: Setup,
    /// Its sockets.
    pub ring: UringOptions,
    /// Its end of the broadcast.
    pub inbox: Inbox,
}

/// A running shard; joined for its result.
pub type ShardHandle = ExecutorJoinHandle<Result<(), String>>;

/// Starts a shard on a thread of its own, pinned to its CPU. `ready` hears once that it runs, or why it does not;
/// `ended` hears its result when its thread is about to end.
pub fn spawn_shard(
    start: ShardStart,
    ready: impl FnOnce(Result<(), String>) + Send + 'static,
    ended: impl FnOnce(&Result<(), String>) + Send + 'static,
) -> Result<ShardHandle, String> {
    let cpu = start.setup.cpu;
    LocalExecutorBuilder::new(Placement::Fixed(cpu))
        .name(&format!("shard-{}", start.setup.number))
        .io_memory(EXECUTOR_IO_BYTES)
        .spawn(move || async move {
            let result = run(start, ready).await;
            ended(&result);
            result
        })
        .map_err(|error| format!("cannot start an executor on CPU {cpu}: {error}"))
}

async fn run(start: ShardStart, ready: impl FnOnce(Result<(), String>)) -> Result<(), String> {
    let doorbell = start.inbox.doorbell().clone();
    let ring = match Uring::new(start.ring, std::os::fd::AsFd::as_fd(&*doorbell)) {
        Ok(ring) => ring,
        Err(error) => {
            ready(Err(error.to_string()));
            return Err(error.to_string());
        }
    };
    let mut shard = Shard::new(start.setup, ring, start.inbox, Stamp::now());
    ready(Ok(()));
    let ending = Rc::new(Cell::new(false));
    let ticker = glommio::spawn_local(tick(doorbell.clone(), ending.clone())).detach();
    let result = pump(&mut shard, &doorbell).await;
    ending.set(true);
    ticker.await;
    result
}

/// Wakes a sleeping shard once per tick; one that is awake sees by itself that time has passed.
async fn tick(doorbell: Arc<Doorbell>, ending: Rc<Cell<bool>>) {
    while !ending.get() {
        glommio::timer::sleep(Duration::from_millis(TICK_MS)).await;
        doorbell.ring();
    }
}

/// Turns while there is something to do; when there is not, dozes and then sleeps on the doorbell.
async fn pump<R: EgressRing>(shard: &mut Shard<R>, doorbell: &Doorbell) -> Result<(), String> {
    let descriptor =
        rustix::io::dup(doorbell).map_err(|error| format!("cannot copy the doorbell: {error}"))?;
    let bell = adopt_doorbell(descriptor);
    loop {
        match shard.turn(Stamp::now()).map_err(|error: RingError| error.to_string())? {
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
            Turn::Ended => break,
        }
    }
    bell.close().await.map_err(|error| format!("cannot close the doorbell: {error}"))
}

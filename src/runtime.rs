//! Everything that knows glommio: one pinned executor per shard, its end, its sleep.
//!
//! Rules kept here (read from glommio 0.9's source): no task, timer or waker per connection, and a cancelled task leaks. So an
//! executor has one task, the pump, and nobody waits while that blocks its thread: a shard sleeps on its doorbell in poll(2). A
//! sleep in the executor's own reactor arms three timers on two more rings and takes about ten system calls, at every wake-up.

use std::time::Duration;

use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use crate::broadcast::{Doorbell, Inbox};
use crate::clock::Stamp;
use crate::config::limits::{EXECUTOR_IO_BYTES, TICK_MS};
use crate::egress::uring::{Uring, UringOptions};
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
            let result = run(start, ready);
            ended(&result);
            result
        })
        .map_err(|error| format!("cannot start an executor on CPU {cpu}: {error}"))
}

fn run(start: ShardStart, ready: impl FnOnce(Result<(), String>)) -> Result<(), String> {
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
    pump(&mut shard, &doorbell)
}

/// Turns while there is something to do; sleeps on the doorbell when there is not, at most until the next tick.
fn pump<R: EgressRing>(shard: &mut Shard<R>, doorbell: &Doorbell) -> Result<(), String> {
    loop {
        match shard.turn(Stamp::now()).map_err(|error: RingError| error.to_string())? {
            Turn::Busy => {}
            Turn::Idle => {
                if shard.may_sleep() {
                    doorbell
                        .wait(Duration::from_millis(TICK_MS))
                        .map_err(|error| format!("cannot wait for the doorbell: {error}"))?;
                    shard.awake();
                }
            }
            Turn::Ended => return Ok(()),
        }
    }
}

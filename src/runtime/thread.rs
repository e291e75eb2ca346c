//! A shard on a plain thread, which sleeps in the epoll of its ring: its sockets wake it, its
//! doorbell does, and the next tick.

use std::os::fd::AsFd;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Dated, Layers, RuntimeError, Secure};
use crate::broadcast::Inbox;
use crate::clock::Stamp;
use crate::config::limits::TICK_MS;
use crate::egress::EgressRing;
use crate::egress::epoll::{Epoll, EpollOptions};
use crate::http2::Http2;
use crate::shard::{Shard, ShardSetup, Turn};
use crate::tls::Tls;

/// Starts the thread; see [`super::spawn_shard`].
pub(super) fn spawn(
    setup: ShardSetup,
    ring: EpollOptions,
    layers: Layers,
    inbox: Inbox,
    ready: impl FnOnce() + Send + 'static,
    ended: impl FnOnce(&Result<(), RuntimeError>) + Send + 'static,
) -> Result<JoinHandle<Result<(), RuntimeError>>, RuntimeError> {
    let thread = Builder::new().name(format!("shard-{}", setup.number));
    let work = move || {
        let result = run(setup, ring, layers, inbox, ready);
        ended(&result);
        result
    };
    thread.spawn(work).map_err(|source| RuntimeError::Thread { source })
}

fn run(
    setup: ShardSetup,
    ring: EpollOptions,
    layers: Layers,
    inbox: Inbox,
    ready: impl FnOnce(),
) -> Result<(), RuntimeError> {
    pin(setup.cpu)?;
    let ring = Epoll::new(ring, inbox.doorbell().as_fd())?;
    let Layers { secure, streams } = layers;
    match secure {
        None => {
            let ring = Http2::new(ring, streams);
            let mut shard = Shard::new(setup, ring, inbox, Stamp::now());
            ready();
            pump(&mut shard, Http2::inner_mut)
        }
        Some(Secure { identity, from, addresses, proxied }) => {
            let ring = Tls::new(ring, from, addresses, identity).behind_proxies(proxied);
            let ring = Http2::new(ring, streams);
            let mut shard = Shard::new(setup, ring, inbox, Stamp::now());
            ready();
            pump(&mut shard, |ring| ring.inner_mut().inner_mut())
        }
    }
}

/// Keeps the calling thread on one CPU.
fn pin(cpu: usize) -> Result<(), RuntimeError> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus).map_err(|errno| RuntimeError::Pin { cpu, source: errno.into() })
}

/// Turns while there is something to do; when there is not, sleeps in the ring's epoll.
fn pump<R: EgressRing>(
    shard: &mut Shard<R>,
    epoll: impl Fn(&mut R) -> &mut Epoll,
) -> Result<(), RuntimeError> {
    let mut dated = Dated::default();
    loop {
        let now = Stamp::now();
        dated.tell(shard, now);
        match shard.turn(now)? {
            Turn::Busy => {}
            Turn::Idle => {
                if shard.may_sleep() {
                    epoll(shard.ring_mut()).wait(Duration::from_millis(TICK_MS))?;
                    shard.awake();
                }
            }
            Turn::Ended => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::broadcast::{Memory, Message, path};
    use crate::config::Config;
    use crate::event::Epoch;
    use crate::http2::StreamRules;

    fn setup(cpu: usize) -> ShardSetup {
        let config = Arc::new(Config::default());
        let memory = Memory::new(&config.limits);
        ShardSetup {
            number: 0,
            cpu,
            config,
            epoch: Epoch(1),
            demand: Arc::default(),
            memory,
            connections_max: 4,
            admission: Default::default(),
        }
    }

    fn options() -> EpollOptions {
        EpollOptions {
            listeners: Vec::new(),
            holds_accepts: false,
            accepts_per_listener: 1,
            sockets_max: 4,
            receive_buffer_bytes: 100,
        }
    }

    /// The first CPU that this process may use.
    fn cpu() -> usize {
        let allowed = rustix::thread::sched_getaffinity(None).expect("our own thread");
        (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).expect("a CPU to run on")
    }

    fn layers() -> Layers {
        let limits = Config::default().limits;
        let streams = StreamRules {
            first_slot: 1 << 20,
            streams_max: 8,
            per_carrier_max: 8,
            head_bytes_max: limits.handshake_bytes_max,
            head_ms_max: limits.handshake_ms_max,
            stall_ms_max: limits.stall_ms_max,
        };
        Layers { secure: None, streams }
    }

    #[test]
    fn a_sleeping_shard_wakes_for_the_hub_and_ends_when_it_is_told_to() {
        let (outbox, inbox) = path(1).expect("a doorbell");
        let (is_ready, ready) = channel();
        let (has_ended, ended) = channel();
        let shard = spawn(
            setup(cpu()),
            options(),
            layers(),
            inbox,
            move || is_ready.send(()).expect("the test listens"),
            move |result| has_ended.send(result.is_ok()).expect("the test listens"),
        );
        ready.recv().expect("it runs");
        outbox.try_send(Message::End).expect("room");
        assert!(ended.recv().expect("it says so"), "it ended well");
        let joined = shard.expect("a thread").join().expect("no panic");
        joined.expect("it ended well");
    }

    #[test]
    fn a_shard_that_cannot_be_pinned_says_where_and_is_never_ready() {
        let (_outbox, inbox) = path(1).expect("a doorbell");
        let (is_ready, ready) = channel::<()>();
        let nowhere = CpuSet::MAX_CPU - 1;
        let shard = spawn(setup(nowhere), options(), layers(), inbox, move || drop(is_ready), |_| {});
        assert!(ready.recv().is_err(), "it does not run");
        let error = shard.expect("a thread").join().expect("no panic").expect_err("no such CPU");
        let told =
            format!("cannot pin its thread to CPU {nowhere}: Invalid argument (os error 22); choose others");
        assert!(error.to_string().starts_with(&told), "{error}");
    }
}

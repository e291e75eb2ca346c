//! Claim: no message stays behind while its shard sleeps and nobody rings.
//!
//! Set-up: the handshake of `src/broadcast/sleep.rs` itself, on loom's atomics, between a hub that sends and a shard that
//! takes, sleeps and is woken. The queue is a count with the weakest order that there is, so that nothing but the handshake
//! keeps the two sides together.
//!
//! Expectation: under every interleaving with a few preemptions, and whatever an access may still see of older values, the
//! shard takes every message. A shard that waits for a ring that never comes is a deadlock, which loom reports.

use loom::sync::atomic::{self, AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};

#[path = "../src/broadcast/sleep.rs"]
mod sleep;

use sleep::Sleep;

/// Enough that a shard is woken, takes one, and sleeps again.
const MESSAGES: usize = 2;
/// Times that a thread is interrupted where it need not wait. All there are take half a minute; a missing fence shows with two.
const PREEMPTIONS_MAX: usize = 4;

struct Path {
    sleep: Sleep,
    /// Messages ever queued.
    queued: AtomicUsize,
    bell: Notify,
}

#[test]
fn no_message_stays_behind_a_sleeping_shard() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(|| {
        let path =
            Arc::new(Path { sleep: Sleep::default(), queued: AtomicUsize::new(0), bell: Notify::new() });
        let hub = loom::thread::spawn({
            let path = path.clone();
            move || {
                for _ in 0..MESSAGES {
                    path.queued.fetch_add(1, Ordering::Relaxed);
                    if path.sleep.must_wake() {
                        path.bell.notify();
                    }
                }
            }
        });
        let mut taken = 0;
        while taken < MESSAGES {
            let queued = path.queued.load(Ordering::Relaxed);
            if queued == taken && path.sleep.begin(|| path.queued.load(Ordering::Relaxed) == taken) {
                path.bell.wait();
                path.sleep.end();
            }
            taken = queued;
        }
        hub.join().expect("the hub sends everything");
    });
}

//! Claim: no message stays behind while its shard sleeps and nobody rings.
//!
//! Set-up: the handshake of `src/broadcast/sleep.rs` itself, on loom's atomics, between a hub that
//! sends and a shard that takes, sleeps and is woken. There are two queues, of messages and of
//! questions, with one doorbell. Each is a count with the weakest order that there is, so that
//! nothing but the handshake keeps the two sides together.
//!
//! Expectation: under every interleaving with a few preemptions, and whatever an access may still
//! see of older values, the shard takes everything from both queues. A shard that waits for a ring
//! that never comes is a deadlock, which loom reports.

use loom::sync::atomic::{self, AtomicUsize, Ordering};
use loom::sync::{Arc, Notify};

#[path = "../src/broadcast/sleep.rs"]
mod sleep;

use sleep::Sleep;

/// What the hub sends, by queue: enough that a shard is woken by either, takes one, and sleeps
/// again.
const SENT: [usize; 2] = [1, 1];
/// Times that a thread is interrupted where it need not wait. All there are take half a minute; a
/// missing fence shows with two.
const PREEMPTIONS_MAX: usize = 4;

struct Path {
    sleep: Sleep,
    /// What was ever queued: messages, and questions.
    queued: [AtomicUsize; 2],
    bell: Notify,
}

#[test]
fn no_message_stays_behind_a_sleeping_shard() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS_MAX);
    model.check(|| {
        let queued = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let path = Arc::new(Path { sleep: Sleep::default(), queued, bell: Notify::new() });
        let hub = loom::thread::spawn({
            let path = path.clone();
            move || {
                for (queue, sent) in path.queued.iter().zip(SENT) {
                    for _ in 0..sent {
                        queue.fetch_add(1, Ordering::Relaxed);
                        if path.sleep.must_wake() {
                            path.bell.notify();
                        }
                    }
                }
            }
        });
        let queued = || path.queued.each_ref().map(|queue| queue.load(Ordering::Relaxed));
        let mut taken = [0, 0];
        while taken != SENT {
            let waiting = queued();
            if waiting == taken && path.sleep.begin(|| queued() == taken) {
                path.bell.wait();
                path.sleep.end();
            }
            taken = waiting;
        }
        hub.join().expect("the hub sends everything");
    });
}

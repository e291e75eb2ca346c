//! Whether a shard may be asleep, and so whether a sender of work must wake it.
//!
//! Both sides write first and look afterwards, with a SeqCst fence in between: the shard announces
//! its sleep before it looks for work, the sender queues its work before it looks for a sleeper. So
//! at least one of them sees the other, and no work waits for a shard that sleeps and that nobody
//! wakes. `tests/doorbell.rs` runs this file under the orders of memory accesses that the language
//! allows.
//!
//! Not here: the queue and the wake-up itself.

// Of the standard library in the server, of loom in the test.
use super::atomic::{AtomicBool, Ordering, fence};

/// The sleep of one shard; `default` is an awake one.
#[derive(Debug, Default)]
pub struct Sleep {
    /// True from before the shard's last look for work until somebody took it on himself to wake
    /// it, or it woke.
    announced: AtomicBool,
}

impl Sleep {
    /// The shard announces its sleep and then looks for work: true if it is `idle` and may sleep.
    /// On false it counts as awake.
    pub fn begin(&self, idle: impl FnOnce() -> bool) -> bool {
        self.announced.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let idle = idle();
        if !idle {
            self.end();
        }
        idle
    }

    /// The shard is awake, by a ring or by itself.
    pub fn end(&self) {
        self.announced.store(false, Ordering::Relaxed);
    }

    /// True if the caller, who has queued work, must wake the shard; of several callers one must.
    /// Costs a fence and a load while the shard is awake.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.announced.load(Ordering::Relaxed)
            && self.announced.compare_exchange(true, false, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

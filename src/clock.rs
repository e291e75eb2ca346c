//! Monotonic time as one integer, the time of day, and the date for the answers of HTTP.
//!
//! Stamps cross threads inside events, and processes in a hand-over, so all of them count from the
//! same origin: the boot of the machine. Sans-IO code takes a [`Stamp`], a time or a date as an
//! argument and never asks the clock itself.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// Nanoseconds of monotonic time since the machine was booted (`CLOCK_MONOTONIC`,
/// clock_gettime(2)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Now, by the monotonic clock.
    pub fn now() -> Stamp {
        // Instants are of this clock, and do not tell their numbers.
        static ORIGIN: OnceLock<(Instant, u64)> = OnceLock::new();
        let (origin, since_boot) = ORIGIN.get_or_init(|| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            (Instant::now(), now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
        });
        Stamp(since_boot + origin.elapsed().as_nanos() as u64)
    }

    /// Nanoseconds from `earlier` to here; 0 if `earlier` is later.
    pub fn ns_since(self, earlier: Stamp) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// This stamp moved into the future.
    pub fn plus(self, duration: Duration) -> Stamp {
        Stamp(self.0.saturating_add(duration.as_nanos() as u64))
    }
}

/// Milliseconds since 1970 by the clock of the system, which may be set forward and back.
pub fn unix_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}

/// Now, as HTTP writes it: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
pub fn http_date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

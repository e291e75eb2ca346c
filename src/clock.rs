//! Monotonic time as one integer, the time of day, and the date for the answers of HTTP.
//!
//! Stamps cross threads inside events, so all threads count from the same origin. Sans-IO code
//! takes a [`Stamp`], a time or a date as an argument and never asks the clock itself.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// Nanoseconds of monotonic time since the process first asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Now, by the monotonic clock.
    pub fn now() -> Stamp {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        Stamp(ORIGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64)
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

//! How long to wait before the next attempt.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// The wait after the first failure.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest wait, its random part not included.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Waits that double from [`WAIT_MIN`] to [`WAIT_MAX`], each with up to a quarter more by chance,
/// so that the subscribers of a server that restarts do not come back in one instant.
#[derive(Debug, Default)]
pub struct Backoff {
    /// Attempts in a row that brought nothing.
    failures: u32,
}

impl Backoff {
    /// The stream works: the next wait is the shortest again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next attempt, at least what the server asked for.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = WAIT_MIN.saturating_mul(1 << self.failures.min(16)).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        let wait = doubled.max(asked.unwrap_or_default());
        // The keys of the standard hasher are random, and a wait needs no better dice.
        let chance = RandomState::new().build_hasher().finish() % 1_000;
        wait.saturating_add(wait.mul_f64(chance as f64 / 4_000.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_about(wait: Duration, ms: u64) {
        let base = Duration::from_millis(ms);
        assert!(wait >= base && wait <= base + base / 4, "{wait:?} is not about {base:?}");
    }

    #[test]
    fn waits_double_up_to_five_seconds_and_start_again_after_success() {
        let mut backoff = Backoff::default();
        for ms in [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000] {
            assert_about(backoff.next(None), ms);
        }
        for _ in 0..100 {
            assert_about(backoff.next(None), 5_000);
        }
        backoff.reset();
        assert_about(backoff.next(None), 100);
    }

    #[test]
    fn what_the_server_asks_for_is_the_least() {
        let mut backoff = Backoff::default();
        assert_about(backoff.next(Some(Duration::from_secs(3))), 3_000);
        assert_about(backoff.next(Some(Duration::from_millis(1))), 200);
        assert_about(backoff.next(Some(Duration::from_secs(60))), 60_000);
    }
}

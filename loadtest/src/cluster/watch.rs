//! When publishers and subscribers are well again after something was killed.
//!
//! The moment of the kill is a mark. A publisher is well again once an event that it began after
//! the mark is acknowledged, a subscriber once it has heard such an event.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::stamp::now_ns;

/// Shared by all who publish and hear.
#[derive(Debug, Default)]
pub struct Watch {
    /// `CLOCK_MONOTONIC` nanoseconds of the mark; 0 before the first one.
    since_ns: AtomicU64,
    state: Mutex<State>,
}

/// How many are well again, and when the last of them was.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    publishers: usize,
    published_ns: u64,
    subscribers: usize,
    heard_ns: u64,
}

/// How long it took until all were well again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Recovery {
    /// Seconds until every publisher was acknowledged.
    pub acknowledged: f64,
    /// Seconds until every subscriber had heard.
    pub heard: f64,
}

impl Watch {
    /// Sets a mark at this moment.
    pub fn mark(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State::default();
        self.since_ns.store(now_ns(), Ordering::Release);
    }

    /// The mark, if an event of this time comes after it and its owner is not well since then;
    /// `well` is the mark at which the owner was found well last.
    fn news(&self, event_ns: u64, well: u64) -> Option<u64> {
        let since = self.since_ns.load(Ordering::Acquire);
        (event_ns >= since && well != since).then_some(since)
    }

    /// A publisher's event of this time was acknowledged.
    pub fn acknowledged(&self, event_ns: u64, well: &mut u64) {
        if let Some(since) = self.news(event_ns, *well) {
            *well = since;
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.publishers += 1;
            state.published_ns = now_ns();
        }
    }

    /// A subscriber has heard an event of this time.
    pub fn heard(&self, event_ns: u64, well: &mut u64) {
        if let Some(since) = self.news(event_ns, *well) {
            *well = since;
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.subscribers += 1;
            state.heard_ns = now_ns();
        }
    }

    /// How long it took, once so many publishers and subscribers are well.
    pub fn recovery(&self, publishers: usize, subscribers: usize) -> Option<Recovery> {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let since = self.since_ns.load(Ordering::Acquire);
        let seconds = |ns: u64| ns.saturating_sub(since) as f64 / 1e9;
        (state.publishers >= publishers && state.subscribers >= subscribers)
            .then(|| Recovery { acknowledged: seconds(state.published_ns), heard: seconds(state.heard_ns) })
    }

    /// How many publishers and subscribers are well.
    pub fn well(&self) -> (usize, usize) {
        let state = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.publishers, state.subscribers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_counts_once_for_each_mark_and_only_with_an_event_after_it() {
        let watch = Watch::default();
        let (mut publisher, mut subscriber) = (u64::MAX, u64::MAX);
        let before = now_ns();
        watch.mark();
        watch.acknowledged(before, &mut publisher);
        assert_eq!(watch.well(), (0, 0), "that event began before the mark");
        let after = now_ns();
        for _ in 0..2 {
            watch.acknowledged(after, &mut publisher);
            watch.heard(after, &mut subscriber);
        }
        assert_eq!(watch.well(), (1, 1));
        assert_eq!(watch.recovery(2, 1), None);
        let recovery = watch.recovery(1, 1).expect("both are well");
        assert!(recovery.acknowledged > 0.0 && recovery.heard >= recovery.acknowledged, "{recovery:?}");
        watch.mark();
        assert_eq!(watch.well(), (0, 0));
        watch.heard(now_ns(), &mut subscriber);
        assert_eq!(watch.well(), (0, 1));
    }
}

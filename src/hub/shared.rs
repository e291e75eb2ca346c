//! One answer for all who ask at the same time: hundreds of parallel scrapes cost the shards two.
//!
//! An answer is as new as its asker wants: what it tells was gathered after the question came.
//! Those who ask while one is being gathered share the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// The last answer, kept for those who wait for it.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// Gatherings that have begun.
    begun: AtomicU64,
    /// The last answer and the number of its gathering, from 1. Locked while one is under way; the
    /// lock is fair.
    last: Mutex<Option<(u64, Arc<T>)>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared { begun: AtomicU64::new(0), last: Mutex::new(None) }
    }
}

impl<T> Shared<T> {
    /// An answer that was gathered after this call. If the caller gives up while it gathers, the
    /// next in line does so.
    pub(super) async fn get(&self, gather: impl Future<Output = T>) -> Arc<T> {
        let begun = self.begun.load(Ordering::Relaxed);
        let mut last = self.last.lock().await;
        if let Some((number, answer)) = &*last
            && *number > begun
        {
            return answer.clone();
        }
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = Arc::new(gather.await);
        *last = Some((number, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::future::join_all;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_together_share_two_answers_each_gathered_after_its_question() {
        let (shared, gathered) = (Shared::default(), Cell::new(0));
        let ask = async || {
            let asked_at = gathered.get();
            let gather = async {
                let number = gathered.get() + 1;
                gathered.set(number);
                yield_now().await;
                number
            };
            let answer = *shared.get(gather).await;
            assert!(answer > asked_at, "answer {answer} to a question after {asked_at} were begun");
        };
        join_all((0..300).map(|_| ask())).await;
        assert!(gathered.get() <= 2, "{} gatherings", gathered.get());
        ask().await;
        assert!(gathered.get() >= 2, "a later question is not answered with an older answer");
    }

    #[tokio::test]
    async fn one_who_gives_up_keeps_nobody_waiting() {
        let shared = Shared::default();
        let never = tokio::time::timeout(std::time::Duration::ZERO, shared.get(std::future::pending()));
        assert!(never.await.is_err());
        assert_eq!(*shared.get(async { 7 }).await, 7);
    }
}

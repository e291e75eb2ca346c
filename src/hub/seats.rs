//! The connections of one control listener: those at work, those that are idle, and which of them
//! leave when room is short.
//!
//! Invariants worth naming:
//! - A connection is at work from the begin of a request until the body of its answer is over; else
//!   it is idle, and that includes one that has said nothing yet or only a part of a head.
//! - When room is short the longest idle leaves, so that connections that say nothing keep nobody
//!   out.
//! - Some places are kept: when all others are at work, those that come still get `/healthz`,
//!   `/stats`, `/metrics` and `/slow`, and are told so if they ask for more.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::limits::{
    CONTROL_SILENCE_MS_MIN, CONTROL_SPARE_MAX, CONTROL_SPARE_SHARE, CONTROL_TLS_HANDSHAKES_MAX,
};

/// All seats of one listener.
pub(super) struct Seats {
    /// Those that are taken, in the order of their coming; also some that were left since the last
    /// look.
    taken: Vec<Arc<Seat>>,
    /// How many of them are at work.
    working: Arc<AtomicUsize>,
    /// The most that may be taken.
    max: usize,
    /// The log knows that room is short.
    told: bool,
}

/// The place of one connection.
pub(super) struct Seat {
    /// Since when it is idle; `None` while it is at work.
    idle_since: Mutex<Option<Instant>>,
    /// It was told to leave.
    leave: Notify,
    /// Its TLS handshake is under way.
    shakes: AtomicBool,
    working: Arc<AtomicUsize>,
    /// Places that may be at work with anything but those.
    working_max: usize,
}

/// A request that is at work; the seat is idle again when it is dropped.
pub(super) struct Work(Arc<Seat>);

impl Seats {
    pub(super) fn new(max: usize) -> Seats {
        Seats { taken: Vec::new(), working: Arc::default(), max, told: false }
    }

    /// Places that are kept for questions after the state of the server.
    fn spare(&self) -> usize {
        (self.max / CONTROL_SPARE_SHARE).clamp(1, CONTROL_SPARE_MAX)
    }

    /// True if one more may come.
    pub(super) fn has_room(&self) -> bool {
        self.taken.len() < self.max
    }

    /// A seat for a new connection. If that makes room short, another one leaves.
    pub(super) fn take(&mut self) -> Arc<Seat> {
        let seat = Arc::new(Seat {
            idle_since: Mutex::new(Some(Instant::now())),
            leave: Notify::new(),
            shakes: AtomicBool::new(false),
            working: self.working.clone(),
            working_max: self.max.saturating_sub(self.spare()),
        });
        self.taken.push(seat.clone());
        if self.taken.len() > self.max - self.spare().min(self.max) {
            let patience = match self.has_room() {
                true => Duration::from_millis(CONTROL_SILENCE_MS_MIN),
                false => Duration::ZERO,
            };
            self.make_room(patience, Some(&seat));
        }
        seat
    }

    /// A seat for a new connection whose TLS handshake comes first. If too many are under way, the
    /// oldest one leaves.
    pub(super) fn take_to_shake(&mut self) -> Arc<Seat> {
        let seat = self.take();
        seat.shakes.store(true, Ordering::Relaxed);
        self.sort_out();
        let mut shaking = self.taken.iter().filter(|seat| seat.shakes.load(Ordering::Relaxed));
        let oldest = shaking.next();
        if shaking.count() >= CONTROL_TLS_HANDSHAKES_MAX
            && let Some(oldest) = oldest
        {
            // It leaves as soon as it hears it, and is none of them any more.
            oldest.shakes.store(false, Ordering::Relaxed);
            oldest.leave.notify_one();
        }
        seat
    }

    /// Tells the longest idle one to leave, if it is idle for longer than `patience`.
    pub(super) fn make_room(&mut self, patience: Duration, but: Option<&Arc<Seat>>) {
        let others = self.taken.iter().filter(|seat| but.is_none_or(|but| !Arc::ptr_eq(seat, but)));
        let idle = others.filter_map(|seat| Some((seat.idle_since()?, seat)));
        let longest = idle.min_by_key(|(since, _)| *since).filter(|(since, _)| since.elapsed() >= patience);
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                max = self.max,
                "control connections run short: idle ones are closed to make room, others may get 503"
            );
        }
        if let Some((_, seat)) = longest {
            seat.leave.notify_one();
        }
    }

    /// Forgets the seats of connections that have ended.
    pub(super) fn sort_out(&mut self) {
        self.taken.retain(|seat| Arc::strong_count(seat) > 1);
    }
}

impl Seat {
    /// A request begins. `Err` if all places for such a request are at work already.
    pub(super) fn begin(self: &Arc<Seat>, path: &str) -> Result<Work, Work> {
        *self.idle() = None;
        let others = self.working.fetch_add(1, Ordering::Relaxed);
        let work = Work(self.clone());
        let is_small = matches!(path, "/healthz" | "/stats" | "/metrics" | "/slow");
        if others < self.working_max || is_small { Ok(work) } else { Err(work) }
    }

    /// Its TLS handshake is over.
    pub(super) fn note_handshake(&self) {
        self.shakes.store(false, Ordering::Relaxed);
    }

    /// Resolves when it is to leave.
    pub(super) async fn told_to_leave(&self) {
        self.leave.notified().await;
    }

    fn idle_since(&self) -> Option<Instant> {
        *self.idle()
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.idle_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.0.working.fetch_sub(1, Ordering::Relaxed);
        *self.0.idle() = Some(Instant::now());
    }
}

/// The body of an answer, which keeps its connection at work.
pub(super) struct Working<B> {
    body: B,
    _work: Work,
}

impl<B> Working<B> {
    pub(super) fn new(body: B, work: Work) -> Working<B> {
        Working { body, _work: work }
    }
}

impl<B: Body + Unpin> Body for Working<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn leaves(seat: &Seat) -> bool {
        seat.told_to_leave().now_or_never().is_some()
    }

    fn at_work(seat: &Arc<Seat>) -> Work {
        seat.begin("/publish").ok().expect("a place for it")
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_idle_leaves_and_who_is_at_work_stays() {
        let mut seats = Seats::new(16);
        let mut taken = Vec::new();
        for _ in 0..14 {
            taken.push(seats.take());
            tokio::time::advance(Duration::from_millis(200)).await;
        }
        let _first = at_work(&taken[0]);
        drop(at_work(&taken[1]));
        assert!(!taken.iter().any(|seat| leaves(seat)), "there is room for 14");
        let _one_more = seats.take();
        let left: Vec<usize> = (0..14).filter(|at| leaves(&taken[*at])).collect();
        assert_eq!(left, [2], "the first is at work, the second was just now");
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_just_come_stays_until_there_is_no_room_at_all() {
        let mut seats = Seats::new(16);
        let taken: Vec<_> = (0..15).map(|_| seats.take()).collect();
        assert!(!taken.iter().any(|seat| leaves(seat)), "all of them may be about to ask");
        let _last = seats.take();
        assert!(!seats.has_room());
        assert!(leaves(&taken[0]));
        drop(taken);
        seats.sort_out();
        assert_eq!(seats.taken.len(), 1);
    }

    #[tokio::test]
    async fn of_too_many_handshakes_the_oldest_leaves() {
        let mut seats = Seats::new(4 * CONTROL_TLS_HANDSHAKES_MAX);
        let over = seats.take_to_shake();
        over.note_handshake();
        let taken: Vec<_> = (0..CONTROL_TLS_HANDSHAKES_MAX).map(|_| seats.take_to_shake()).collect();
        assert!(!taken.iter().any(|seat| leaves(seat)), "so many may be under way");
        let more: Vec<_> = (0..2).map(|_| seats.take_to_shake()).collect();
        let left: Vec<usize> = (0..taken.len()).filter(|at| leaves(&taken[*at])).collect();
        assert_eq!(left, [0, 1]);
        assert!(!leaves(&over) && !more.iter().any(|seat| leaves(seat)));
    }

    #[tokio::test]
    async fn when_all_are_at_work_the_state_of_the_server_is_told_all_the_same() {
        let mut seats = Seats::new(8);
        let taken: Vec<_> = (0..8).map(|_| seats.take()).collect();
        let work: Vec<_> = taken[..7].iter().map(at_work).collect();
        assert!(taken[7].begin("/publish").is_err());
        for path in ["/healthz", "/stats"] {
            assert!(taken[7].begin(path).is_ok(), "{path}");
        }
        drop(work);
        assert!(taken[7].begin("/publish").is_ok());
    }
}

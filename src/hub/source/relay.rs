//! Another server as the source of events: this one follows it, and keeps its ids.
//!
//! Invariants worth naming:
//! - What the origin tells comes in once, by rising sequences. After a break it is asked for from
//!   the last one on; what it cannot tell any more is a hole, and so is all that was before the
//!   first event that was heard.
//! - A hole is told when the next event is known: it ends before that one. Where nothing can lie
//!   between two events there is no hole.
//! - An origin that has begun anew has another epoch; it is ours from its first word on.
//! - Nobody publishes here: who tries hears where to go.
//!
//! Not here: the connection and its language (`relay`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Hub, OpenHub};
use super::{Submission, Submissions};
use crate::client::backoff::Backoff;
use crate::config::Relay;
use crate::config::limits::{RELAY_DEGRADED_MS, RELAY_HISTORY_MS_MAX, RELAY_QUIET_MS};
use crate::event::EventId;
use crate::log::Pace;
use crate::refusal::{Refusal, RefusalReason};
use crate::relay::{Line, Start, Told, Unheard};

/// What operators hear of it.
#[derive(Debug, Default)]
pub(in crate::hub) struct Status {
    /// The origin is heard.
    pub connected: AtomicBool,
    /// Sequence of what was heard last.
    pub read: AtomicU64,
    /// Times the connection broke.
    pub breaks: AtomicU64,
    /// Times the origin began anew.
    pub epochs: AtomicU64,
    /// Holes that subscribers were told of.
    pub holes: AtomicU64,
}

/// What is followed, and how far.
#[derive(Debug)]
struct Follower {
    relay: Relay,
    hub: Arc<Hub>,
    /// The last event that was heard; its sequence is 0 before the first.
    last: EventId,
    /// Events behind `last` may be missing.
    lacks: bool,
    /// Something was placed and not flushed.
    is_due: bool,
    status: Arc<Status>,
}

/// A connection that has said where it stands, and what it said before.
#[derive(Debug)]
pub struct Greeting {
    line: Line,
    told: Vec<Told>,
    at: EventId,
    /// Where the origin stood before: its history is here once we have come so far.
    head: EventId,
}

impl Greeting {
    /// Connects for the first time, with `events` of the history of each pattern. Tries again for
    /// `patience` where nobody answers.
    pub async fn get(relay: &Relay, events: usize, patience: Duration) -> Result<Greeting, Unheard> {
        let (begin, mut backoff) = (Instant::now(), Backoff::default());
        loop {
            let opened = match Line::open(relay, Start::Now).await {
                Ok((line, _, head)) => {
                    line.leave().await;
                    Line::open(relay, Start::Last(events)).await.map(|opened| (opened, head))
                }
                Err(unheard) => Err(unheard),
            };
            match opened {
                Ok(((line, told, at), head)) => return Ok(Greeting { line, told, at, head }),
                Err(Unheard::Lost { why, asked }) if begin.elapsed() < patience => {
                    tracing::warn!("the origin is not there yet: {why}");
                    sleep(backoff.next(asked)).await;
                }
                Err(unheard) => return Err(unheard),
            }
        }
    }

    /// Whose ids the origin gives.
    pub fn at(&self) -> EventId {
        self.at
    }
}

impl OpenHub {
    /// Follows the origin from here on: from its greeting, or, without one, from where the process
    /// was whose place this one takes. Returns once its history is here.
    pub async fn relay(&self, relay: Relay, greeting: Option<Greeting>, submissions: Submissions) {
        let hub = self.hub.clone();
        let last = hub.intake().last();
        tokio::spawn(refuse(submissions, relay.name.clone()));
        // What was before the first event that is told is not known here.
        let lacks = greeting.is_some();
        let status = hub.relay.get_or_init(Arc::default).clone();
        let mut follower = Follower { relay, hub, last, lacks, is_due: false, status };
        let line = match greeting {
            Some(greeting) => follower.begin(greeting).await,
            None => None,
        };
        tokio::spawn(follower.follow(line));
    }
}

impl Follower {
    /// Takes the history of the origin in.
    async fn begin(&mut self, Greeting { line, told, at, head }: Greeting) -> Option<Line> {
        let begin = Instant::now();
        let patience = Duration::from_millis(RELAY_HISTORY_MS_MAX);
        let mut line = Some(line);
        for told in told {
            self.take(told).await;
        }
        while let Some(open) = &mut line
            && self.last.sequence < head.sequence
            && begin.elapsed() < patience
        {
            // The newest events of the origin may be of topics that are not followed.
            match timeout(Duration::from_millis(RELAY_QUIET_MS), open.next()).await {
                Ok(Ok(told)) => drop(self.take(told).await),
                Ok(Err(_)) => line = None,
                Err(_) => break,
            }
        }
        if self.last.sequence == 0 && at.sequence > 0 {
            self.hole_up_to(at.sequence);
        }
        self.hub.flush();
        tracing::info!(origin = self.relay.name, last = %self.last, "the history of the origin is here");
        line
    }

    /// Hears the origin as long as the hub takes events.
    async fn follow(mut self, mut line: Option<Line>) {
        let (mut backoff, mut pace) = (Backoff::default(), Pace::WARNING);
        let mut away = Instant::now();
        loop {
            let unheard = match line.take() {
                Some(open) => {
                    self.status.connected.store(true, Ordering::Relaxed);
                    let unheard = self.hear(open, &mut backoff).await;
                    away = Instant::now();
                    self.status.connected.store(false, Ordering::Relaxed);
                    self.status.breaks.fetch_add(1, Ordering::Relaxed);
                    unheard
                }
                None => match Line::open(&self.relay, Start::After(self.last)).await {
                    Ok((open, told, at)) => {
                        for told in told.into_iter().chain([Told::Stands(at)]) {
                            self.take(told).await;
                        }
                        self.is_back();
                        line = Some(open);
                        continue;
                    }
                    Err(unheard) => Some(unheard),
                },
            };
            let Some(unheard) = unheard else { return };
            if let Some(left_out) = pace.admit(self.hub.now()) {
                tracing::warn!(left_out, "the origin is not heard: {unheard}");
            }
            if away.elapsed() >= Duration::from_millis(RELAY_DEGRADED_MS) {
                self.is_away(&unheard);
            }
            let asked = if let Unheard::Lost { asked, .. } = unheard { asked } else { None };
            sleep(backoff.next(asked)).await;
        }
    }

    /// Takes what a connection tells until it ends. `None` once the hub takes nothing more.
    async fn hear(&mut self, mut line: Line, backoff: &mut Backoff) -> Option<Unheard> {
        loop {
            // What is there already goes to the shards together.
            let told = tokio::select! {
                biased;
                told = line.next() => told,
                () = yield_now(), if self.is_due => {
                    self.is_due = false;
                    self.hub.flush();
                    continue;
                }
            };
            match told {
                Ok(told) => {
                    backoff.reset();
                    if !self.take(told).await {
                        line.leave().await;
                        return None;
                    }
                }
                Err(unheard) => {
                    self.hub.flush();
                    return Some(unheard);
                }
            }
        }
    }

    /// Takes in what was told. False once the hub takes nothing more.
    async fn take(&mut self, told: Told) -> bool {
        match told {
            Told::Gap => self.lacks = true,
            Told::Stands(at) => self.begin_epoch_of(at),
            Told::Event { at, event, unix_ms } => {
                if self.comes_to(at) {
                    self.is_due = true;
                    return self.hub.place_at(event, at.sequence, unix_ms, self.hub.now()).await;
                }
            }
            Told::Unfit(at, cause) => {
                if self.comes_to(at) {
                    self.hub.counted(Refusal::new(RefusalReason::Foreign, cause));
                    self.hole_up_to(at.sequence);
                }
            }
        }
        !self.hub.intake().is_over()
    }

    /// The origin has come to this place. False if it was here before.
    fn comes_to(&mut self, at: EventId) -> bool {
        self.begin_epoch_of(at);
        if at.sequence <= self.last.sequence {
            return false;
        }
        if self.lacks && at.sequence - 1 > self.last.sequence {
            self.hole_up_to(at.sequence - 1);
        }
        self.lacks = false;
        self.last = at;
        self.status.read.store(at.sequence, Ordering::Relaxed);
        true
    }

    fn hole_up_to(&mut self, sequence: u64) {
        tracing::info!(from = %self.last, to = sequence, "events of the origin may be missing");
        self.last.sequence = sequence;
        self.is_due = true;
        self.status.holes.fetch_add(1, Ordering::Relaxed);
        self.status.read.store(sequence, Ordering::Relaxed);
        self.hub.change(|intake| intake.tell_hole(sequence));
    }

    fn begin_epoch_of(&mut self, at: EventId) {
        if at.epoch == self.last.epoch {
            return;
        }
        tracing::warn!(old = %self.last.epoch, new = %at.epoch, "the origin has begun anew: ids are of a new epoch");
        self.last = EventId { sequence: 0, ..at };
        self.is_due = true;
        self.status.epochs.fetch_add(1, Ordering::Relaxed);
        self.hub.change(|intake| intake.begin_era(at.epoch));
    }

    fn is_back(&self) {
        self.hub.flush();
        if self.hub.intake().degraded().is_some() {
            self.hub.intake().degrade(None);
        }
        tracing::info!(origin = self.relay.name, "the origin is heard again");
    }

    fn is_away(&self, unheard: &Unheard) {
        if self.hub.intake().degraded().is_none() {
            tracing::error!("the origin is away; subscribers stay: {unheard}");
        }
        self.hub.intake().degrade(Some(format!("the origin is away: {unheard}")));
    }
}

/// Tells who publishes where to go.
async fn refuse(mut submissions: Submissions, origin: String) {
    while let Some(Submission { reply, .. }) = submissions.recv().await {
        let text = format!("this server follows {origin}: publish there");
        reply.tell(Err(Refusal::new(RefusalReason::Follows, text)));
    }
}

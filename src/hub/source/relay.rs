//! Another server as the source of events: this one follows it, and keeps its ids.
//!
//! Invariants worth naming:
//! - What the origin tells comes in once, by rising sequences. After a break it is asked for from
//!   the last one on; what it cannot tell any more is a hole, and so is all that was before the
//!   first event that was heard.
//! - Where the origin has events no more, all that were not heard are one hole, up to where it
//!   stands: the topic that lacks them may be any.
//! - An event that cannot be one here is a hole of its topic alone, unless that cannot be one either.
//! - An origin that has begun anew has another epoch; it is ours from its first word on.
//! - Nobody publishes here: who tries hears where to go.
//!
//! Not here: the connection and its language (`relay`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use super::super::{Hub, OpenHub};
use super::{Submission, Submissions};
use crate::client::backoff::Backoff;
use crate::clock::{Stamp, unix_ms};
use crate::config::Relay;
use crate::config::limits::{RELAY_DEGRADED_MS, RELAY_HISTORY_MS_MAX, RELAY_QUIET_MS, RELAY_RETRY_MS_MAX};
use crate::event::{Event, EventId, Topic};
use crate::handover::state::{PastEvent, State, TopicState};
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
    /// The origin has events behind `last` no more.
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
                    sleep(backoff.next(asked).min(patience.saturating_sub(begin.elapsed()))).await;
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
        let status = hub.relay.get_or_init(Arc::default).clone();
        let mut follower = Follower { relay, hub, last, lacks: false, is_due: false, status };
        let line = match greeting {
            Some(greeting) => {
                let (line, state) = follower.begin(greeting).await;
                self.restore(state).await;
                line
            }
            None => None,
        };
        tokio::spawn(follower.follow(line));
    }
}

/// What hub and shards begin with: of each topic what was heard, and that it may be all that there
/// is behind the first event.
struct History {
    now: Stamp,
    now_ms: u64,
    topics: HashMap<Topic, TopicState>,
    events: Vec<PastEvent>,
    /// The last sequence.
    last: u64,
    /// The origin has said that something before the next event may be missing.
    lacks: bool,
    /// Up to here events of any topic may be missing; 0 if none are.
    hole: u64,
}

impl History {
    fn new(now: Stamp) -> History {
        History {
            now,
            now_ms: unix_ms(),
            topics: HashMap::new(),
            events: Vec::new(),
            last: 0,
            lacks: false,
            hole: 0,
        }
    }

    /// The origin has come to this sequence. False if it was here before.
    fn comes_to(&mut self, sequence: u64) -> bool {
        if sequence <= self.last {
            return false;
        }
        if std::mem::take(&mut self.lacks) {
            self.hole = sequence - 1;
        }
        self.last = sequence;
        true
    }

    /// What is known of a topic by now, of which something has this sequence.
    fn topic(&mut self, name: Topic, sequence: u64) -> &mut TopicState {
        let topic = self.topics.entry(name).or_insert_with_key(|name| TopicState {
            name: name.clone(),
            remembered: true,
            sequence,
            id: None,
            events: 0,
            bytes: 0,
            // What was before it is not known here.
            evicted: sequence - 1,
            cut: None,
            hole: 0,
        });
        topic.sequence = sequence;
        topic
    }

    /// Takes the place of an event that is not fit for this process: its topic lacks it. One whose
    /// topic is none here may be anybody's, by a pattern.
    fn leave_out(&mut self, sequence: u64, topic: Option<Topic>) {
        if !self.comes_to(sequence) {
            return;
        }
        match topic {
            Some(name) => self.topic(name, sequence).hole = sequence,
            None => self.hole = sequence,
        }
    }

    /// Takes an event in.
    fn add(&mut self, sequence: u64, event: Event, unix_ms: u64) {
        if !self.comes_to(sequence) {
            return;
        }
        let topic = self.topic(event.topic.clone(), sequence);
        topic.id = event.id.clone();
        topic.events += 1;
        topic.bytes += event.published_bytes() as u64;
        // An event is as old as the origin says.
        let age_ns = self.now_ms.saturating_sub(unix_ms).saturating_mul(1_000_000);
        let intake = Stamp(self.now.0.saturating_sub(age_ns));
        self.events.push(PastEvent { sequence, intake, unix_ms, event });
    }

    /// Of topics that were not heard of nothing is known up to here.
    fn state(self, last: EventId) -> State {
        let mut topics: Vec<TopicState> = self.topics.into_values().collect();
        topics.sort_by_key(|topic| topic.sequence);
        State {
            epoch: last.epoch,
            sequence: last.sequence,
            // What the origin has said at the end is said of all that was heard.
            hole: if self.lacks { last.sequence } else { self.hole },
            topics,
            events: self.events,
            forgotten: Vec::new(),
            dropped: last.sequence,
            keys: Vec::new(),
        }
    }
}

impl Follower {
    /// Hears the history of the origin, for hub and shards to begin with.
    async fn begin(&mut self, Greeting { line, told, at, head }: Greeting) -> (Option<Line>, State) {
        let (begin, patience) = (Instant::now(), Duration::from_millis(RELAY_HISTORY_MS_MAX));
        let mut history = History::new(self.hub.now());
        let mut line = Some(line);
        let mut told = VecDeque::from(told);
        while let Some(open) = &mut line
            && history.last < head.sequence
            && begin.elapsed() < patience
        {
            let next = match told.pop_front() {
                Some(next) => Ok(Ok(next)),
                // The newest events of the origin may be of topics that are not followed.
                None => timeout(Duration::from_millis(RELAY_QUIET_MS), open.next()).await,
            };
            match next {
                // One that has begun anew meanwhile is followed from there.
                Ok(Ok(Told::Event { at, .. } | Told::Unfit { at, .. } | Told::Stands(at)))
                    if at.epoch != head.epoch =>
                {
                    line = None;
                }
                Ok(Ok(Told::Event { at, event, unix_ms })) => {
                    let refusal = self.hub.intake().unfit(&event);
                    match refusal {
                        None => history.add(at.sequence, event, unix_ms),
                        Some(refusal) => {
                            self.hub.counted(refusal);
                            history.leave_out(at.sequence, topic_of(event));
                        }
                    }
                }
                Ok(Ok(Told::Unfit { at, topic, cause })) => {
                    self.hub.counted(Refusal::new(RefusalReason::Foreign, cause));
                    history.leave_out(at.sequence, topic);
                }
                Ok(Ok(Told::Gap)) => history.lacks = true,
                Ok(Ok(Told::Stands(_))) => {}
                Ok(Err(_)) => line = None,
                Err(_) => break,
            }
        }
        // What came with the first words and was not looked at comes again.
        if !told.is_empty() {
            line = None;
        }
        let sequence = if history.last > 0 { history.last } else { at.sequence };
        self.last.sequence = sequence;
        self.status.read.store(sequence, Ordering::Relaxed);
        tracing::info!(origin = self.relay.name, last = %self.last, "the history of the origin is here");
        (line, history.state(self.last))
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
                None => match Line::open(&self.relay, self.start()).await {
                    Ok((open, told, at)) => {
                        self.meet(told, at).await;
                        self.is_back();
                        // Where events are missing it is asked once more, without them.
                        line = Some(open).filter(|_| !self.lacks);
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
            // What stands before an origin may ask for hours, and it may be back in a minute.
            sleep(backoff.next(asked).min(Duration::from_millis(RELAY_RETRY_MS_MAX))).await;
        }
    }

    /// Where the next connection begins. A topic whose events are missing may be any: so all that
    /// were not heard are given up together, by one hole.
    fn start(&self) -> Start {
        if self.lacks { Start::Now } else { Start::After(self.last) }
    }

    /// Takes in what a new connection has told, and where it stands.
    async fn meet(&mut self, told: Vec<Told>, at: EventId) {
        let is_anew = at.epoch != self.last.epoch;
        self.begin_epoch_of(at).await;
        if self.lacks {
            self.lacks = false;
            if at.sequence > self.last.sequence {
                self.hole_up_to(at.sequence).await;
            }
        }
        for told in told {
            // What is missing of the epoch before was told with its end.
            if !(is_anew && told == Told::Gap) {
                self.take(told).await;
            }
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
                    if self.lacks {
                        self.hub.flush();
                        line.leave().await;
                        return Some(Unheard::Lost { why: "it has events no more".to_string(), asked: None });
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
            Told::Stands(at) => self.begin_epoch_of(at).await,
            Told::Event { at, event, unix_ms } => {
                if self.comes_to(at).await {
                    let refusal = self.hub.intake().unfit(&event);
                    let Some(refusal) = refusal else {
                        self.is_due = true;
                        return self.hub.place_at(event, at.sequence, unix_ms, self.hub.now()).await;
                    };
                    self.leave_out(at.sequence, topic_of(event), refusal).await;
                }
            }
            Told::Unfit { at, topic, cause } => {
                if self.comes_to(at).await {
                    let refusal = Refusal::new(RefusalReason::Foreign, cause);
                    self.leave_out(at.sequence, topic, refusal).await;
                }
            }
        }
        !self.hub.intake().is_over()
    }

    /// The origin has come to this place. False if it was here before.
    async fn comes_to(&mut self, at: EventId) -> bool {
        self.begin_epoch_of(at).await;
        if at.sequence <= self.last.sequence {
            return false;
        }
        self.last = at;
        self.status.read.store(at.sequence, Ordering::Relaxed);
        true
    }

    /// The event that was heard last is not fit for this process.
    async fn leave_out(&mut self, sequence: u64, topic: Option<Topic>, refusal: Refusal) {
        self.hub.counted(refusal);
        let Some(topic) = topic else { return self.hole_up_to(sequence).await };
        tracing::debug!(%topic, sequence, "an event of the origin is none here");
        self.is_due = true;
        self.status.holes.fetch_add(1, Ordering::Relaxed);
        self.hub.place_word(|intake| intake.tell_hole_of(topic, sequence)).await;
    }

    async fn hole_up_to(&mut self, sequence: u64) {
        tracing::info!(from = %self.last, to = sequence, "events of the origin may be missing");
        self.last.sequence = sequence;
        self.is_due = true;
        self.status.holes.fetch_add(1, Ordering::Relaxed);
        self.status.read.store(sequence, Ordering::Relaxed);
        self.hub.place_word(|intake| intake.tell_hole(sequence)).await;
    }

    async fn begin_epoch_of(&mut self, at: EventId) {
        if at.epoch == self.last.epoch {
            return;
        }
        tracing::warn!(old = %self.last.epoch, new = %at.epoch, "the origin has begun anew: ids are of a new epoch");
        self.last = EventId { sequence: 0, ..at };
        self.is_due = true;
        self.status.epochs.fetch_add(1, Ordering::Relaxed);
        self.hub.place_word(|intake| intake.begin_era(at.epoch)).await;
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

/// The topic of an event that is not fit for this process, if it may be one here.
fn topic_of(event: Event) -> Option<Topic> {
    Some(event.topic).filter(|topic| !topic.as_str().contains('*'))
}

/// Tells who publishes where to go.
async fn refuse(mut submissions: Submissions, origin: String) {
    while let Some(Submission { reply, .. }) = submissions.recv().await {
        let text = format!("this server follows {origin}: publish there");
        reply.tell(Err(Refusal::new(RefusalReason::Follows, text)));
    }
}

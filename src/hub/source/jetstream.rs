//! A stream of NATS JetStream as the source of events.
//!
//! Three tasks on the hub's thread: one reads the stream and places what it says, one hands
//! publishes to the stream and answers them, one looks whether the stream is still there and still
//! the same.
//!
//! Invariants worth naming:
//! - What is published comes in by the stream alone, like what other nodes publish. So all nodes
//!   have one order.
//! - Nothing of a stream that is another one is placed before its epoch has begun here. All nodes
//!   take that epoch from one entry (`jetstream::EpochPlace`).
//! - A removal is a message too: so every node forgets the same events. What it removed is taken
//!   out of the stream afterwards, for nodes that start later.
//!
//! Not here: subjects, headers, consumers (`jetstream`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::super::{Hub, OpenHub};
use super::{Reply, Submission, Submissions, Wish, core, nodes};
use crate::broadcast::{Outcome, Taken};
use crate::clock::{Stamp, unix_ms};
use crate::config::limits::{
    NATS_ACK_MS_MAX, NATS_DEGRADED_MS, NATS_IDLE_MS, NATS_LOOK_MS, NATS_LOOKS_BEHIND, NATS_NOTE_MS,
    NATS_READ_BACK_MESSAGES, NATS_READ_BACK_MS_MAX, NATS_RETRY_MS,
};
use crate::event::{Epoch, Event};
use crate::jetstream::{
    Entry, Foreign, LookFault, Mark, Nodes, PublishFault, ReadFault, Reader, Receipt, Received, Said,
    Session, Start, created_ns,
};
use crate::log::Pace;
use crate::publishing::IdempotencyKey;
use crate::refusal::{Refusal, RefusalReason};

/// A stream that is read.
struct Feed {
    session: Session,
    reader: Reader,
    status: Arc<Status>,
    /// Something before the next message may be missing.
    begins: bool,
}

/// What the hub has of a stream that is its source.
#[derive(Debug)]
pub(in crate::hub) struct Stream {
    pub status: Arc<Status>,
    pub nodes: Nodes,
}

/// What the tasks tell each other, and operators.
#[derive(Debug)]
pub(in crate::hub) struct Status {
    inner: Mutex<Told>,
    /// Rung when the stream may be another one.
    doubt: Notify,
}

/// What operators hear of the stream.
#[derive(Debug, Clone)]
pub(in crate::hub) struct Told {
    /// The epoch as it is followed here.
    pub entry: Entry,
    /// What was read last.
    pub last: Option<Mark>,
    /// The newest message of the stream, as it was seen last.
    pub head: u64,
    /// A server is connected.
    pub connected: bool,
    /// When a server of the stream last gave a sign of life.
    pub alive: Stamp,
    /// What is wrong since then.
    pub cause: Option<String>,
    /// Publishes that were acknowledged.
    pub acknowledged: u64,
    /// Those that were taken before, under the same key.
    pub duplicates: u64,
    /// Publishes without an answer yet.
    pub in_flight: usize,
    /// Messages that were not taken as they were.
    pub foreign: Foreign,
    /// Of subjects outside of the stream.
    pub core: Core,
    /// Times the stream was another one.
    pub epochs: u64,
    /// Times reading broke off.
    pub breaks: u64,
}

/// What came on subjects outside of the stream.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(in crate::hub) struct Core {
    /// Messages that were understood.
    pub taken: u64,
    /// Messages that cannot be events.
    pub skipped: u64,
    /// Headers that were left out.
    pub left_out: u64,
    /// Events that were not published.
    pub refused: u64,
}

impl Status {
    fn new(entry: Entry) -> Status {
        let told = Told {
            entry,
            last: None,
            head: entry.head.sequence,
            connected: true,
            alive: Stamp::now(),
            cause: None,
            acknowledged: 0,
            duplicates: 0,
            in_flight: 0,
            foreign: Foreign::default(),
            core: Core::default(),
            epochs: 0,
            breaks: 0,
        };
        Status { inner: Mutex::new(told), doubt: Notify::new() }
    }

    pub(in crate::hub) fn told(&self) -> MutexGuard<'_, Told> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    /// Fills the histories: as much as they keep.
    async fn read_back(&mut self, hub: &Hub) {
        let (now, now_ms, begin) = (hub.now(), unix_ms(), Instant::now());
        // An event is as old as the stream says.
        let intake_of = |sent_ms: u64| {
            let age_ns = now_ms.saturating_sub(sent_ms).saturating_mul(1_000_000);
            Stamp(now.0.saturating_sub(age_ns))
        };
        let mut count = 0;
        loop {
            let next = match self.reader.open().await {
                Ok(()) if self.reader.has_caught_up() => break,
                Ok(()) => match timeout(Duration::from_millis(NATS_IDLE_MS), self.reader.next()).await {
                    Ok(next) => next,
                    // What there is may be none of ours.
                    Err(_) if self.reader.pending() == Some(0) => break,
                    Err(_) => Ok(Vec::new()),
                },
                Err(fault) => Err(fault),
            };
            match next {
                Ok(messages) => {
                    count += messages.len();
                    if !self.place(hub, messages, intake_of).await {
                        return;
                    }
                }
                Err(ReadFault::Away(_)) => sleep(Duration::from_millis(NATS_RETRY_MS)).await,
                Err(ReadFault::Changed) => self.settle(hub).await,
            }
            if begin.elapsed() >= Duration::from_millis(NATS_READ_BACK_MS_MAX) {
                tracing::warn!("NATS: the histories are not read back to their end: that takes too long");
                break;
            }
        }
        if self.begins
            && let Ok(info) = self.session.look().await
        {
            // Nothing of it was read, so nothing of it is known.
            self.tell_lost(hub, Some(info.state.last_sequence + 1));
        }
        hub.flush();
        let ms = begin.elapsed().as_millis() as u64;
        tracing::info!(events = count, ms, "NATS: the histories are read back");
    }

    /// The stream is another one: agrees with the other nodes on its epoch, and begins it here.
    async fn settle(&mut self, hub: &Hub) {
        let seen = {
            let told = self.status.told();
            told.last.map_or(told.entry, |last| Entry { head: last, ..told.entry })
        };
        let mut pace = Pace::WARNING;
        let entry = loop {
            match self.session.place.settle(&self.session.stream, Some(&seen)).await {
                Ok(entry) => break entry,
                Err(error) => {
                    if let Some(left_out) = pace.admit(hub.now()) {
                        tracing::warn!(left_out, "NATS: {error}");
                    }
                    sleep(Duration::from_millis(NATS_RETRY_MS)).await;
                }
            }
            if hub.intake().is_over() {
                return;
            }
        };
        if entry.epoch == seen.epoch {
            // The same stream after all.
            let last = self.reader.last();
            self.reader.restart(entry.created_ns, last.map_or(Start::First, Start::Behind));
            self.status.told().entry = entry;
            return;
        }
        tracing::error!(
            old = %seen.epoch,
            new = %entry.epoch,
            "NATS: the stream was made anew or has lost its newest messages; ids are of a new epoch, and subscribers \
             are told of a gap"
        );
        // What came since is all that is behind the time of what was read last.
        let start = self.reader.last().map_or(Start::First, |last| Start::Time(last.unix_ns + 1));
        self.status.told().entry = entry;
        self.begin(hub, start);
    }

    /// Begins the epoch of the entry here; the stream is read from `start` on.
    fn begin(&mut self, hub: &Hub, start: Start) {
        let entry = self.status.told().entry;
        self.reader.restart(entry.created_ns, start);
        hub.change(|intake| intake.begin_era(entry.epoch));
        hub.flush();
        self.begins = true;
        let mut told = self.status.told();
        told.last = None;
        told.epochs += 1;
    }

    /// Tells of what is missing before `next`, the next message, if something may be.
    fn tell_lost(&mut self, hub: &Hub, next: Option<u64>) {
        let lost = self.reader.take_lost();
        let before = match (self.begins, next) {
            (true, Some(next)) => next - 1,
            _ => lost.unwrap_or(0),
        };
        self.begins &= next.is_none();
        hub.change(|intake| {
            if before > intake.era.id(intake.sequence()).sequence {
                intake.tell_hole(before);
            }
        });
    }

    /// Places messages. `age` says how old they are to be taken for. False once the hub is over.
    async fn place(&mut self, hub: &Hub, messages: Vec<Received>, intake_of: impl Fn(u64) -> Stamp) -> bool {
        self.tell_lost(hub, messages.first().map(|message| message.mark.sequence));
        let mut last = None;
        let placed = {
            let intake = hub.intake();
            intake.era.id(intake.sequence()).sequence
        };
        // What was told as missing and comes after all has no place any more.
        for Received { mark, said } in messages.into_iter().filter(|message| message.mark.sequence > placed) {
            let unix_ms = u64::try_from(mark.unix_ns / 1_000_000).unwrap_or(0);
            match said {
                Said::Event(event) => {
                    if !hub.place_at(event, mark.sequence, unix_ms, intake_of(unix_ms)).await {
                        return false;
                    }
                }
                Said::Removal(topic) => hub.change(|intake| intake.place_removal(topic, mark.sequence)),
            }
            last = Some(mark);
        }
        hub.flush();
        let mut told = self.status.told();
        told.last = self.reader.last().or(last);
        told.foreign = self.reader.foreign();
        told.head = told.head.max(told.last.map_or(0, |last| last.sequence));
        true
    }
}

impl OpenHub {
    /// Makes the stream of `session` the source: fills the histories from it, before anybody
    /// listens, and follows it from then on. A hub that goes on where a former process was reads on
    /// behind what that one had.
    pub async fn follow(&self, session: Session, submissions: Submissions) {
        let hub = &self.hub;
        let (sequence, epoch, history_ms_max) = {
            let config = hub.config();
            let by_rules = config.rules.iter().map(|rule| rule.history.age_ms);
            let history_ms_max = by_rules.fold(config.limits.window_ms_max, u64::max);
            let intake = hub.intake();
            (intake.era.id(intake.sequence()).sequence, intake.era.epoch, history_ms_max)
        };
        let start = if sequence > 0 { Start::After(sequence) } else { start_of(&session, history_ms_max) };
        let reader = session.reader(&session.entry, start);
        let status = Arc::new(Status::new(session.entry));
        let mut feed = Feed { session, reader, status, begins: sequence == 0 };
        if epoch != feed.session.entry.epoch {
            feed.begin(hub, Start::First);
        }
        feed.read_back(hub).await;
        let own = Epoch::random().map_or_else(|_| std::process::id().to_string(), |epoch| epoch.to_string());
        let nodes = feed.session.nodes(own);
        let _ = hub.stream.set(Stream { status: feed.status.clone(), nodes: nodes.clone() });
        hub.begin_to_read_stream(&feed.session, feed.status.clone());
        tokio::spawn(nodes::serve(hub.clone(), nodes));
        for subject in feed.session.core() {
            let (session, status) = (feed.session.clone(), feed.status.clone());
            tokio::spawn(core::hear(hub.clone(), session, status, subject.clone()));
        }
        tokio::spawn(publish(hub.clone(), feed.session.clone(), submissions, feed.status.clone()));
        tokio::spawn(look(hub.clone(), feed.session.clone(), feed.status.clone()));
        tokio::spawn(read(hub.clone(), feed));
    }
}

/// From where a start reads `session`, with histories of this age.
fn start_of(session: &Session, history_ms_max: u64) -> Start {
    let info = session.stream.cached_info();
    if info.state.messages <= NATS_READ_BACK_MESSAGES {
        return Start::First;
    }
    let oldest = unix_ms().saturating_sub(history_ms_max);
    Start::Time(i64::try_from(oldest.saturating_mul(1_000_000)).unwrap_or(0))
}

/// Places what the stream says, as long as the hub lives.
async fn read(hub: Arc<Hub>, mut feed: Feed) {
    let mut pace = Pace::WARNING;
    loop {
        let status = feed.status.clone();
        let next = tokio::select! {
            biased;
            () = status.doubt.notified() => Err(ReadFault::Changed),
            next = feed.reader.next() => next,
        };
        match next {
            Ok(messages) => {
                let now = hub.now();
                if !feed.place(&hub, messages, |_| now).await {
                    return;
                }
            }
            Err(ReadFault::Away(cause)) => {
                feed.status.told().breaks += 1;
                if let Some(left_out) = pace.admit(hub.now()) {
                    tracing::warn!(left_out, "NATS: nothing is read from the stream: {cause}");
                }
                sleep(Duration::from_millis(NATS_RETRY_MS)).await;
            }
            Err(ReadFault::Changed) => feed.settle(&hub).await,
        }
        if hub.intake().is_over() {
            return;
        }
    }
}

/// Hands publishes to the stream in their order, and answers them as they are acknowledged.
async fn publish(hub: Arc<Hub>, session: Session, mut submissions: Submissions, status: Arc<Status>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        let Submission { wish, intake, reply, .. } = tokio::select! {
            Some(()) = under_way.next() => continue,
            submission = submissions.recv() => match submission {
                Some(submission) => submission,
                None => break,
            },
        };
        // Publishes beyond what may be in flight wait here, in their order, but not for ever.
        let sent = loop {
            if hub.now().ns_since(intake) > NATS_ACK_MS_MAX * 1_000_000 {
                break Err(PublishFault::Full);
            }
            let sent = match &wish {
                Wish::Publish(event, key) => session.publisher.send(event, key.as_ref(), "").await,
                Wish::Remove(topic) => session.publisher.send_removal(topic).await,
            };
            match sent {
                Err(PublishFault::Full) if !under_way.is_empty() => {
                    under_way.next().await;
                }
                sent => break sent,
            }
        };
        match sent {
            Ok(sent) => {
                let (hub, session, status) = (hub.clone(), session.clone(), status.clone());
                under_way.push(async move {
                    let outcome = match sent.outcome().await {
                        Ok(receipt) => acknowledged(&hub, &session, &status, wish, intake, receipt).await,
                        Err(fault) => Err(refusal(fault)),
                    };
                    reply.tell(outcome);
                });
            }
            Err(fault) => refuse(reply, fault),
        }
        status.told().in_flight = under_way.len();
    }
    while under_way.next().await.is_some() {}
}

fn refuse(reply: Reply, fault: PublishFault) {
    reply.tell(Err(refusal(fault)));
}

fn refusal(fault: PublishFault) -> Refusal {
    let reason = match &fault {
        PublishFault::NotSent(_) | PublishFault::Full | PublishFault::Refused(_) => RefusalReason::Source,
        PublishFault::TooLarge { .. } => RefusalReason::TooLarge,
        PublishFault::Unknown => RefusalReason::OutcomeUnknown,
        PublishFault::Conflict => RefusalReason::Conflict,
    };
    Refusal::new(reason, fault.to_string())
}

/// What a publisher is told of a message that is in the stream.
async fn acknowledged(
    hub: &Hub,
    session: &Session,
    status: &Status,
    wish: Wish,
    intake: Stamp,
    receipt: Receipt,
) -> Outcome {
    let Receipt { sequence, duplicate } = receipt;
    {
        let mut told = status.told();
        told.acknowledged += 1;
        told.duplicates += u64::from(duplicate);
        (told.alive, told.cause) = (hub.now(), None);
    }
    match wish {
        Wish::Publish(event, Some(key)) => {
            if duplicate && !session.says(sequence, &event).await {
                return Err(refusal(PublishFault::Conflict));
            }
            remember(hub, &event, key, sequence, intake);
        }
        Wish::Publish(_, None) => {}
        Wish::Remove(topic) => {
            if let Err(cause) = session.purge(&topic, sequence).await {
                tracing::warn!(%topic, "NATS: what was removed is still in the stream: {cause}");
            }
        }
    }
    Ok(Taken { sequence, duplicate })
}

fn remember(hub: &Hub, event: &Event, key: IdempotencyKey, sequence: u64, now: Stamp) {
    hub.intake().remember(event, key, sequence, now);
}

/// Looks at the stream and its epoch again and again, as long as the hub lives.
async fn look(hub: Arc<Hub>, session: Session, status: Arc<Status>) {
    let mut ticks = interval(Duration::from_millis(NATS_LOOK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut behind, mut missing, mut placeless, mut noted) = (0, 0, 0, Instant::now());
    loop {
        ticks.tick().await;
        if hub.intake().is_over() {
            return;
        }
        let (entry, last) = {
            let told = status.told();
            (told.entry, told.last)
        };
        let looked = match session.link.fault() {
            Some(fault) => Err(LookFault::Away(fault)),
            None if !session.link.is_up() => Err(LookFault::Away("no NATS server is connected".to_string())),
            None => session.look().await,
        };
        let info = match looked {
            Ok(info) => info,
            Err(fault) => {
                missing = if fault == LookFault::Missing { missing + 1 } else { 0 };
                if missing >= NATS_LOOKS_BEHIND {
                    missing = 0;
                    make_anew(&session).await;
                }
                tell_away(&hub, &session, &status, fault.to_string());
                continue;
            }
        };
        missing = 0;
        tell_alive(&hub, &status, info.state.last_sequence);
        let is_behind = last.is_some_and(|last| info.state.last_sequence < last.sequence);
        behind = if is_behind { behind + 1 } else { 0 };
        // Another node may have found out first.
        let now = session.place.read().await;
        placeless = if now.is_err() { placeless + 1 } else { 0 };
        if placeless >= NATS_LOOKS_BEHIND {
            placeless = 0;
            make_anew(&session).await;
        }
        let other = now.as_ref().is_ok_and(|now| now.is_none_or(|now| now.epoch != entry.epoch));
        if created_ns(&info) != entry.created_ns || behind >= NATS_LOOKS_BEHIND || other {
            behind = 0;
            status.doubt.notify_one();
            continue;
        }
        let is_due = noted.elapsed() >= Duration::from_millis(NATS_NOTE_MS);
        if let (Ok(Some(now)), Some(last)) = (now, last)
            && last.sequence > now.head.sequence
            && is_due
            && behind == 0
        {
            noted = Instant::now();
            // Another node may be faster, and JetStream may be away: the next look tells.
            let _ = session.place.note(&now, last).await;
        }
    }
}

/// A server has come back empty, or somebody has deleted the stream or the place of its epoch: what
/// is made in their place is another stream, as all nodes find out.
async fn make_anew(session: &Session) {
    match session.make_anew().await {
        Ok(()) => tracing::error!("NATS: the stream or its epoch was gone; it is made anew"),
        Err(cause) => tracing::error!("NATS: the stream or its epoch is gone: {cause}"),
    }
}

fn tell_alive(hub: &Hub, status: &Status, head: u64) {
    let was_degraded = {
        let mut told = status.told();
        (told.alive, told.cause, told.head, told.connected) = (hub.now(), None, head, true);
        hub.intake().degraded().is_some()
    };
    if was_degraded {
        hub.intake().degrade(None);
        tracing::info!("NATS: the stream is back");
    }
}

fn tell_away(hub: &Hub, session: &Session, status: &Status, cause: String) {
    let since = {
        let mut told = status.told();
        told.connected = session.link.is_up();
        told.cause = Some(cause.clone());
        told.alive
    };
    let away_ms = hub.now().ns_since(since) / 1_000_000;
    if away_ms >= NATS_DEGRADED_MS && hub.intake().degraded().is_none() {
        let why = format!("the stream of events is away: {cause}");
        tracing::error!("NATS: {why}; publishes are refused, subscribers stay");
        hub.intake().degrade(Some(why));
    }
}

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
//! Not here: what publishers are told (`publish`); subjects, headers, consumers (`jetstream`).

mod publish;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::super::{Hub, OpenHub};
use super::{Submissions, core, nodes};
use crate::clock::{Stamp, unix_ms};
use crate::config::limits::{
    NATS_DEGRADED_MS, NATS_IDLE_MS, NATS_LOOK_MS, NATS_LOOKS_MISSING, NATS_NOTE_MS, NATS_READ_BACK_MESSAGES,
    NATS_READ_BACK_MS_MAX, NATS_RETRY_MS,
};
use crate::event::{Epoch, Event, EventId};
use crate::jetstream::{
    Entry, Foreign, LookFault, Mark, Nodes, ReadFault, Reader, Received, Said, Session, Start,
};
use crate::log::Pace;

/// A stream that is read.
struct Feed {
    session: Session,
    reader: Reader,
    status: Arc<Status>,
    /// Something before the next message may be missing.
    begins: bool,
    /// What is retained from before the first message that is read is still to be found.
    seeks_values: bool,
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
    /// The last look that found the stream the same.
    looks: watch::Sender<Option<Looked>>,
}

/// At some time after `begun` the stream was that of this epoch.
#[derive(Debug, Clone, Copy)]
struct Looked {
    begun: Instant,
    epoch: Epoch,
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

impl Told {
    /// By what this process knows the stream: its epoch, and the message that was read last.
    fn seen(&self) -> Entry {
        self.last.map_or(self.entry, |last| Entry { head: last, ..self.entry })
    }
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
        Status { inner: Mutex::new(told), doubt: Notify::new(), looks: watch::Sender::new(None) }
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
                    let first = messages.first().map(|message| message.mark.sequence);
                    if !self.place_retained(hub, first, intake_of).await
                        || !self.place(hub, messages, intake_of).await
                    {
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
            // Nothing of it was read, so nothing else of it is known.
            let next = Some(info.state.last_sequence + 1);
            self.place_retained(hub, next, intake_of).await;
            self.tell_lost(hub, next).await;
        }
        hub.flush();
        let ms = begin.elapsed().as_millis() as u64;
        tracing::info!(events = count, ms, "NATS: the histories are read back");
    }

    /// Before the first message that is read, `next`, there may be values of topics that are
    /// retained. Then they are placed, in their order. False once the hub is over.
    async fn place_retained(
        &mut self,
        hub: &Hub,
        next: Option<u64>,
        intake_of: impl Fn(u64) -> Stamp,
    ) -> bool {
        let Some(next) = next.filter(|_| std::mem::take(&mut self.seeks_values)) else { return true };
        let config = hub.config();
        let rules = config.rules.iter().filter(|rule| rule.retain);
        let patterns: Vec<_> = rules.map(|rule| rule.pattern.clone()).collect();
        let bytes_max = config.limits.retained_memory_max();
        let found = self.session.values(&patterns, next, bytes_max).await;
        let values = found.unwrap_or_else(|cause| {
            tracing::warn!("NATS: what is retained from before the histories is not found: {cause}");
            Vec::new()
        });
        let is_retained =
            |event: &Event| config.rules.of(event.topic.as_str()).is_some_and(|rule| rule.retain);
        let values: Vec<(u64, u64, Event)> = values
            .into_iter()
            .filter_map(|Received { mark, said, .. }| match said {
                Said::Event(event) if is_retained(&event) => Some((mark.sequence, mark.unix_ms(), event)),
                _ => None,
            })
            .collect();
        // Of what is known without a break up to `next` nothing is missing.
        let whole = values.iter().rev().zip((0..next).rev()).take_while(|(value, at)| value.0 == *at).count();
        let first_whole = next - whole as u64;
        for (sequence, unix_ms, event) in values {
            let last = hub.intake().last().sequence;
            if sequence == first_whole
                && sequence - 1 > last
                && !hub.place_word(|intake| intake.tell_hole(sequence - 1)).await
            {
                return false;
            }
            if !hub.place_at(event, sequence, unix_ms, intake_of(unix_ms)).await {
                return false;
            }
        }
        true
    }

    /// The stream is another one: agrees with the other nodes on its epoch, and begins it here.
    async fn settle(&mut self, hub: &Hub) {
        let seen = self.status.told().seen();
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
        self.begin(hub, start).await;
    }

    /// Begins the epoch of the entry here; the stream is read from `start` on.
    async fn begin(&mut self, hub: &Hub, start: Start) {
        let entry = self.status.told().entry;
        self.reader.restart(entry.created_ns, start);
        hub.place_word(|intake| intake.begin_era(entry.epoch)).await;
        hub.flush();
        self.begins = true;
        let mut told = self.status.told();
        told.last = None;
        told.epochs += 1;
    }

    /// Tells of what is missing before `next`, the next message, if something may be. False once the
    /// hub is over.
    async fn tell_lost(&mut self, hub: &Hub, next: Option<u64>) -> bool {
        let lost = self.reader.take_lost();
        let before = match (self.begins, next) {
            (true, Some(next)) => next - 1,
            _ => lost.unwrap_or(0),
        };
        self.begins &= next.is_none();
        // Nobody else places anything.
        let last = hub.intake().last().sequence;
        before <= last || hub.place_word(|intake| intake.tell_hole(before)).await
    }

    /// Places messages. `age` says how old they are to be taken for. False once the hub is over.
    async fn place(&mut self, hub: &Hub, messages: Vec<Received>, intake_of: impl Fn(u64) -> Stamp) -> bool {
        if !self.tell_lost(hub, messages.first().map(|message| message.mark.sequence)).await {
            return false;
        }
        let (mut last, mut own) = (None, Vec::new());
        let EventId { epoch, sequence: placed } = hub.intake().last();
        // What was told as missing and comes after all has no place any more.
        for Received { mark, said, sent } in
            messages.into_iter().filter(|message| message.mark.sequence > placed)
        {
            let unix_ms = mark.unix_ms();
            match said {
                Said::Event(event) => {
                    if !hub.place_at(event, mark.sequence, unix_ms, intake_of(unix_ms)).await {
                        return false;
                    }
                }
                Said::Removal(topic) => {
                    if !hub.place_word(|intake| intake.place_removal(topic, mark.sequence)).await {
                        return false;
                    }
                }
            }
            own.extend(sent.map(|number| (number, EventId { epoch, sequence: mark.sequence })));
            last = Some(mark);
        }
        hub.flush();
        own.into_iter().for_each(|(number, at)| self.session.publisher.was_read(number, at));
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
            let EventId { epoch, sequence } = hub.intake().last();
            (sequence, epoch, history_ms_max)
        };
        let start = if sequence > 0 { Start::After(sequence) } else { start_of(&session, history_ms_max) };
        let reader = session.reader(&session.entry, start);
        let status = Arc::new(Status::new(session.entry));
        // Elsewhere all of it is read, or was.
        let seeks_values = matches!(start, Start::Time(_));
        let mut feed = Feed { session, reader, status, begins: sequence == 0, seeks_values };
        if epoch != feed.session.entry.epoch {
            feed.begin(hub, Start::First).await;
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
        tokio::spawn(publish::serve(hub.clone(), feed.session.clone(), submissions, feed.status.clone()));
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

/// Looks at the stream and its epoch again and again, as long as the hub lives.
async fn look(hub: Arc<Hub>, session: Session, status: Arc<Status>) {
    let mut ticks = interval(Duration::from_millis(NATS_LOOK_MS));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut missing, mut placeless, mut noted) = (0, 0, Instant::now());
    loop {
        ticks.tick().await;
        if hub.intake().is_over() {
            return;
        }
        let (seen, begun) = (status.told().seen(), Instant::now());
        let looked = match session.link.fault() {
            Some(fault) => Err(LookFault::Away(fault)),
            None if !session.link.is_up() => Err(LookFault::Away("no NATS server is connected".to_string())),
            None => session.look().await,
        };
        let info = match looked {
            Ok(info) => info,
            Err(fault) => {
                missing = if fault == LookFault::Missing { missing + 1 } else { 0 };
                if missing >= NATS_LOOKS_MISSING {
                    missing = 0;
                    make_anew(&session).await;
                }
                tell_away(&hub, &session, &status, fault.to_string());
                continue;
            }
        };
        missing = 0;
        tell_alive(&hub, &status, info.state.last_sequence);
        let is_same = session.is_same(&info, &seen).await;
        // Another node may have found out first.
        let now = session.place.read().await;
        placeless = if now.is_err() { placeless + 1 } else { 0 };
        if placeless >= NATS_LOOKS_MISSING {
            placeless = 0;
            make_anew(&session).await;
        }
        let other = now.as_ref().is_ok_and(|now| now.is_none_or(|now| now.epoch != seen.epoch));
        if is_same == Ok(false) || other {
            status.doubt.notify_one();
            continue;
        }
        let (Ok(true), Ok(Some(now))) = (is_same, now) else { continue };
        status.looks.send_replace(Some(Looked { begun, epoch: seen.epoch }));
        let is_due = noted.elapsed() >= Duration::from_millis(NATS_NOTE_MS);
        if is_due && seen.head.sequence > now.head.sequence {
            noted = Instant::now();
            // Another node may be faster, and JetStream may be away: the next look tells.
            let _ = session.place.note(&now, seen.head).await;
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

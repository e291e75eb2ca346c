//! The hub: the one thread that takes events in, gives them sequences, encodes them, and broadcasts
//! them.
//!
//! Invariants worth naming:
//! - Everything here runs on one thread (a tokio current-thread runtime that the caller makes), so
//!   the lock around [`Intake`] is never contended; no guard lives across an await.
//! - An accepted event reaches every shard: a publish flushes the queue itself, before it is
//!   answered; only when a shard's queue is full does one task retry, every [`STALL_RETRY_MS`].
//! - A drain keeps the order: the last batch, then [`Message::Drain`], to every shard; when all are
//!   done, control connections end, and then the shards by [`Message::End`]. So newcomers are
//!   refused and counted until all have what is theirs.
//!
//! Reading order: `intake` (events to batches), `source` (who gives the sequences), `control` (who
//! asks), `stream` (NDJSON), `uplink` (what clients publish), `guard` and `principal` (who may),
//! `jwks` (keys of tokens), `head` (what is no request), `listen`, `secure` and `seats`
//! (connections), `reload` (another configuration). Not here: signals, binding of addresses,
//! threads (`serve`).

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::broadcast::{Demand, Doors, Drain, Memory, Message, Outbox, Outcome, Refused};
use crate::clock::{Stamp, unix_ms};
use crate::config::Config;
use crate::config::limits::{
    DRAIN_GRACE_MS, END_STEP_MS, GIVE_BACK_MS, GIVE_BACK_PAGE_BYTES, HAND_OVER_LINGER_MS, LISTINGS_MAX,
    SCRAPES_MAX, STALL_RETRY_MS, TOPIC_RETRY_MS,
};
use crate::event::{CustomId, Epoch, Event, EventId, Topic};
use crate::log::Pace;
use crate::publishing::IdempotencyKey;
use crate::refusal::{Refusal, RefusalCounts, RefusalReason};

mod accept;
mod asked;
pub mod backfill;
mod control;
mod failure;
mod guard;
mod head;
mod intake;
mod jwks;
mod keys;
mod listen;
mod listing;
pub mod memory;
mod metrics;
mod openmetrics;
mod pages;
mod past;
mod presence;
mod principal;
mod process;
mod refusal;
mod reload;
mod scrape;
mod seats;
mod secure;
mod shared;
#[cfg(feature = "sim")]
pub mod sim;
mod slow;
pub mod source;
mod stats;
mod stream;
mod topics;
mod upgrade;
mod uplink;

pub use self::asked::DataAddresses;
use self::backfill::Archive;
pub use self::failure::{HubError, ShardEnd, ShardFailure};
pub use self::intake::{Flushed, HubCounters, Intake, NoRoom};
use self::jwks::Keyring;
pub use self::listen::ControlListener;
use self::memory::Watch;
pub use self::reload::{CertificateStats, Surroundings, Tidings};
pub use self::secure::Certificates;
use self::shared::Shared;
use self::source::{Published, Source};
pub use self::stats::EgressReport;
pub use self::topics::{TopicRecord, TopicTable};
pub use self::upgrade::Estate;

/// What the hub needs to run. The caller has bound the listeners and started the shards.
#[derive(Debug)]
pub struct HubSetup {
    /// The validated configuration.
    pub config: Arc<Config>,
    /// Whose sequences ids have, from the start.
    pub epoch: Epoch,
    /// Who gives them.
    pub source: Source,
    /// The queue to each shard, by shard number.
    pub outboxes: Vec<Outbox>,
    /// Which formats have subscribers.
    pub demand: Arc<Demand>,
    /// What all events alive weigh.
    pub memory: Arc<Memory>,
    /// How the shards reach their sockets.
    pub egress: EgressReport,
    /// Where subscribers connect, as bound.
    pub listen: DataAddresses,
    /// Where the control API listens: already bound, non-blocking.
    pub control: Vec<ControlListener>,
    /// Connections that each of them may have open.
    pub control_connections_max: usize,
    /// One message per shard when its thread ends.
    pub shard_ends: UnboundedReceiver<ShardEnd>,
    /// Those who started it.
    pub surroundings: Surroundings,
    /// What is handed over to a process that takes our place, if one may.
    pub estate: Option<Estate>,
}

/// Where the process is in its life. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Publishes are taken.
    Serving,
    /// Publishes are refused, the shards finish.
    Draining,
    /// Every shard is done; control connections end, and then the shards.
    Stopped,
}

/// What all requests of the control API share.
#[derive(Debug)]
struct Hub {
    /// As it is now: a reload replaces it. [`Hub::config`].
    config: Mutex<Arc<Config>>,
    egress: EgressReport,
    /// Where subscribers connect, as bound.
    listen: DataAddresses,
    /// TLS handshakes of control connections that came to their end.
    control_handshakes: AtomicU64,
    started: Stamp,
    /// `started` by the runtime's clock, which a test may hold still.
    began: Instant,
    started_at: SystemTime,
    intake: Mutex<Intake>,
    /// Rung when the queue got shorter, and at the drain.
    room: Notify,
    /// Rung when a shard's queue was full.
    stalled: Notify,
    stage: watch::Sender<Stage>,
    /// Where publishers come in.
    control_listeners: Mutex<Vec<Weak<listen::Listener>>>,
    /// Whether clients come in, of both planes.
    doors: watch::Sender<Doors>,
    surroundings: Surroundings,
    scrapes: Semaphore,
    reloads: Semaphore,
    shared: Answers,
    keyring: Keyring,
    memory_watch: Mutex<Watch>,
    /// Of lines about single control connections.
    head_pace: Mutex<Pace>,
    listings: Semaphore,
    /// Of the stream that is the source, if one is.
    stream: OnceLock<source::jetstream::Stream>,
    /// What keeps events that have left the windows, if something does; not while it is asked.
    archive: Mutex<Option<Box<dyn Archive>>>,
    /// Of the server that is followed, if one is.
    relay: OnceLock<Arc<source::relay::Status>>,
}

/// Answers that are shared by all who ask at the same time.
#[derive(Debug, Default)]
struct Answers {
    stats: Shared<Bytes>,
    slow: Shared<Bytes>,
    prometheus: Shared<Bytes>,
    open_metrics: Shared<Bytes>,
}

/// Serves the control API and broadcasts what is published, until `drain` resolves and every shard
/// has ended.
///
/// Fails with the first shard that failed or ended while serving (the others are drained first),
/// with those that do not end within [`DRAIN_GRACE_MS`] after they were told to, or if a listener
/// is unusable. They are told as soon as all are done, at the latest [`DRAIN_GRACE_MS`] after
/// `drain_ms_max`.
pub async fn run(setup: HubSetup, drain: impl Future<Output = ()>) -> Result<(), HubError> {
    open(setup).serve(drain).await
}

/// A hub that does not serve yet: it may take over from a former process first.
pub struct OpenHub {
    hub: Arc<Hub>,
    ends: Ends,
    entrance: Entrance,
}

impl std::fmt::Debug for OpenHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenHub").finish_non_exhaustive()
    }
}

impl OpenHub {
    /// Serves as [`run`] says.
    pub async fn serve(self, drain: impl Future<Output = ()>) -> Result<(), HubError> {
        serve(self.hub, self.ends, self.entrance, drain).await
    }
}

/// Where publishers and operators come in, and who takes our place.
struct Entrance {
    estate: Option<Estate>,
    control: Vec<ControlListener>,
    connections_max: usize,
    hangups: Option<UnboundedReceiver<()>>,
}

/// A hub that does not serve yet.
pub fn open(setup: HubSetup) -> OpenHub {
    let HubSetup {
        config,
        epoch,
        source,
        outboxes,
        demand,
        memory,
        egress,
        listen,
        control,
        control_connections_max,
        shard_ends,
        mut surroundings,
        estate,
    } = setup;
    let running = (0..outboxes.len()).collect();
    let ends = Ends { receiver: shard_ends, running, serving: true, failure: None };
    let hub = Hub::new(config, epoch, outboxes, demand, memory, egress, listen);
    let hangups = surroundings.hangups.take();
    let entrance = Entrance { estate, control, connections_max: control_connections_max, hangups };
    let hub = Hub { surroundings, ..hub };
    hub.intake().source = source;
    hub.begin_to_watch();
    OpenHub { hub: Arc::new(hub), ends, entrance }
}

/// The life of an open hub, as [`run`] says.
async fn serve(
    hub: Arc<Hub>,
    mut ends: Ends,
    entrance: Entrance,
    drain: impl Future<Output = ()>,
) -> Result<(), HubError> {
    let listening =
        listen::start(entrance.control, entrance.connections_max, &hub).map_err(HubError::Listener)?;
    let retry = tokio::spawn(retry_stalls(hub.clone()));
    let uplinks = tokio::spawn(uplink::serve(hub.clone()));
    let stored = tokio::spawn(source::store::serve(hub.clone()));
    let presences = tokio::spawn(presence::serve(hub.clone()));
    let pasts = tokio::spawn(backfill::serve(hub.clone()));
    let keys = tokio::spawn(jwks::serve(hub.clone()));
    let give_back = tokio::spawn(give_back_memory());
    let looks = tokio::spawn(memory::watch(hub.clone()));
    let life =
        hub.surroundings.watchdog.map(|patience| tokio::spawn(reload::tell_of_life(hub.clone(), patience)));
    let reloads =
        entrance.hangups.map(|hangups| tokio::spawn(reload::reload_at_hangups(hub.clone(), hangups)));
    let handing_over = async {
        match entrance.estate {
            Some(estate) => upgrade::serve(hub.clone(), estate).await,
            None => std::future::pending().await,
        }
    };
    let heir = tokio::select! {
        biased;
        () = drain => {
            tracing::info!("draining");
            None
        }
        () = ends.next() => {
            tracing::error!("draining because a shard ended");
            None
        }
        heir = handing_over => {
            tracing::info!(heir, "another process serves now: draining");
            Some(heir)
        }
    };
    ends.serving = false;
    match heir {
        None => {
            // A draining server answers those who still come.
            ends.during(hub.resume()).await;
            (hub.surroundings.tell)(Tidings::Draining);
        }
        Some(heir) => (hub.surroundings.tell)(Tidings::HandedOver(heir)),
    }
    let drain_ms_max = hub.config().limits.drain_ms_max;
    let deadline = hub.now().plus(Duration::from_millis(drain_ms_max));
    hub.begin_drain();
    let done = ends.during(async {
        hub.settle_source().await;
        hub.flush_all().await;
        if heir.is_some() {
            hub.turn_doors(Doors::Left).await;
        }
        hub.drain_shards(deadline).await;
        if heir.is_some() {
            // Those who had just come in, and have said nothing yet, are answered too.
            sleep(Duration::from_millis(HAND_OVER_LINGER_MS)).await;
        }
    });
    // Who is not done by then is told to end all the same.
    let _ = timeout(Duration::from_millis(drain_ms_max + DRAIN_GRACE_MS), done).await;
    hub.stage.send_replace(Stage::Stopped);
    listening.join_all().await;
    hub.close_source().await;
    stored.abort();
    retry.abort();
    uplinks.abort();
    presences.abort();
    pasts.abort();
    keys.abort();
    give_back.abort();
    looks.abort();
    for task in life.into_iter().chain(reloads) {
        task.abort();
    }
    let ended = async {
        ends.during(hub.tell_shards(|| Message::End)).await;
        while !ends.running.is_empty() {
            ends.next().await;
        }
    };
    let in_time = is_done_within(DRAIN_GRACE_MS, ended).await;
    match ends.failure {
        Some(failure) => Err(failure),
        None if !in_time => Err(HubError::Unfinished(ends.running.into_iter().collect())),
        None => Ok(()),
    }
}

/// True if `work` is done before this process has run for so many milliseconds. The time in which a
/// machine stands still, or stops the process, counts as one step, because nobody ran in it.
async fn is_done_within(ms: u64, work: impl Future<Output = ()>) -> bool {
    let mut work = pin!(work);
    for _ in 0..ms.div_ceil(END_STEP_MS) {
        if timeout(Duration::from_millis(END_STEP_MS), &mut work).await.is_ok() {
            return true;
        }
    }
    false
}

/// Which shards run, and the first that ended as it should not.
struct Ends {
    receiver: UnboundedReceiver<ShardEnd>,
    running: BTreeSet<usize>,
    /// True until the drain; no shard may end before.
    serving: bool,
    failure: Option<HubError>,
}

impl Ends {
    /// Lets `work` come to its end, and hears meanwhile of shards that ended.
    async fn during(&mut self, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                () = &mut work => return,
                () = self.next(), if !self.running.is_empty() => {}
            }
        }
    }

    /// Waits for the end of one more shard. Nothing is lost if the wait is given up.
    async fn next(&mut self) {
        match self.receiver.recv().await {
            Some(ShardEnd { shard, result: Ok(()) }) if self.serving => {
                self.ended(shard, Err(ShardFailure::Untold));
            }
            Some(ShardEnd { shard, result }) => self.ended(shard, result),
            None => {
                for shard in std::mem::take(&mut self.running) {
                    self.ended(shard, Err(ShardFailure::Silent));
                }
            }
        }
    }

    fn ended(&mut self, shard: usize, result: Result<(), ShardFailure>) {
        self.running.remove(&shard);
        if let Err(failure) = result {
            tracing::error!(shard, "{failure}");
            self.failure.get_or_insert(HubError::Shard { shard, failure });
        }
    }
}

/// Tries stalled queues again until they are not.
async fn retry_stalls(hub: Arc<Hub>) {
    loop {
        hub.stalled.notified().await;
        hub.flush_all().await;
    }
}

/// Lets the allocator give freed memory back to the kernel. mimalloc (v3) does so some seconds
/// after memory was freed, but looks only when it frees a whole page: a server that has become
/// quiet would keep what its last burst took. So a page is taken, not touched, and freed now and
/// then.
async fn give_back_memory() {
    loop {
        sleep(Duration::from_millis(GIVE_BACK_MS)).await;
        drop(std::hint::black_box(Vec::<u8>::with_capacity(GIVE_BACK_PAGE_BYTES)));
    }
}

impl Hub {
    fn new(
        config: Arc<Config>,
        epoch: Epoch,
        outboxes: Vec<Outbox>,
        demand: Arc<Demand>,
        memory: Arc<Memory>,
        egress: EgressReport,
        listen: DataAddresses,
    ) -> Hub {
        let memory_watch = Mutex::new(Watch::new(config.limits.history_memory_max()));
        let intake = Intake::new(epoch, &config.limits, demand, memory, outboxes);
        let keyring = Keyring::new(&config);
        Hub {
            keyring,
            config: Mutex::new(config),
            egress,
            listen,
            control_handshakes: AtomicU64::new(0),
            started: Stamp::now(),
            began: Instant::now(),
            started_at: SystemTime::now(),
            intake: Mutex::new(intake),
            room: Notify::new(),
            stalled: Notify::new(),
            stage: watch::Sender::new(Stage::Serving),
            control_listeners: Mutex::new(Vec::new()),
            doors: watch::Sender::new(Doors::Open),
            surroundings: Surroundings::default(),
            scrapes: Semaphore::new(SCRAPES_MAX),
            reloads: Semaphore::new(1),
            shared: Answers::default(),
            memory_watch,
            head_pace: Mutex::new(Pace::DETAIL),
            listings: Semaphore::new(LISTINGS_MAX),
            stream: OnceLock::new(),
            archive: Mutex::new(None),
            relay: OnceLock::new(),
        }
    }

    /// The configuration as it is now.
    fn config(&self) -> Arc<Config> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another configuration is valid from now on.
    fn adopt(&self, config: Arc<Config>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }

    /// Now, by the runtime's clock.
    fn now(&self) -> Stamp {
        self.started.plus(self.began.elapsed())
    }

    /// The state behind the lock; never hold it across an await.
    fn intake(&self) -> MutexGuard<'_, Intake> {
        self.intake.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What keeps events that have left the windows; never hold it across an await.
    fn archive(&self) -> MutexGuard<'_, Option<Box<dyn Archive>>> {
        self.archive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where publishers come in, as long as they do.
    fn control_listeners(&self) -> MutexGuard<'_, Vec<Weak<listen::Listener>>> {
        self.control_listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pace of lines about single control connections.
    fn head_pace(&self) -> MutexGuard<'_, Pace> {
        self.head_pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A control connection has TLS now.
    fn note_control_handshake(&self) {
        self.control_handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Does something to the intake, then wakes the retry if a shard's queue is full.
    fn change<T>(&self, change: impl FnOnce(&mut Intake) -> T) -> T {
        let mut intake = self.intake();
        let result = change(&mut intake);
        if intake.is_stalled() {
            self.stalled.notify_one();
        }
        result
    }

    /// Takes one event in and broadcasts it at once, or has its source take it.
    async fn publish(&self, event: Event, key: Option<IdempotencyKey>) -> Outcome {
        let published = self.change(|intake| {
            intake.tell_time(unix_ms());
            intake.publish(event, key, self.now())
        })?;
        self.flush();
        self.outcome_of(published).await
    }

    /// Removes what came of a topic so far, on all shards. Tells the place of that in the order.
    async fn remove(&self, topic: Topic) -> Outcome {
        let published = self.change(|intake| {
            intake.tell_time(unix_ms());
            intake.publish_removal(topic, self.now())
        })?;
        self.flush();
        self.outcome_of(published).await
    }

    /// What becomes of a publish. A refusal that comes later is counted here.
    async fn outcome_of(&self, published: Published) -> Outcome {
        match published {
            Published::Taken(taken) => Ok(taken),
            Published::Later(waiting) => self.counted_outcome(waiting.await),
        }
    }

    /// Counts an answer of a source that is a refusal.
    fn counted_outcome(&self, outcome: Outcome) -> Outcome {
        outcome.map_err(|refusal| self.counted(refusal))
    }

    /// The time of a chunk of a stream's body, which the intake is told too.
    fn intake_time(&self) -> Stamp {
        self.intake().tell_time(unix_ms());
        self.now()
    }

    /// Takes one event in; [`Hub::flush`] once the body chunk is used up.
    fn accept(
        &self,
        event: Event,
        key: Option<IdempotencyKey>,
        intake_at: Stamp,
    ) -> Result<Published, Refusal> {
        self.change(|intake| intake.publish(event, key, intake_at))
    }

    /// Broadcasts what is queued, as far as the shards have room.
    fn flush(&self) -> Flushed {
        let (flushed, shorter) = self.change(|intake| {
            let before = intake.queue().0;
            (intake.flush(), intake.queue().0 < before)
        });
        // Only on progress: one who waits for room flushes too, and must not wake itself for
        // nothing.
        if shorter {
            self.room.notify_waiters();
        }
        flushed
    }

    /// Broadcasts what is queued, however long the shards take.
    async fn flush_all(&self) {
        while self.flush() == Flushed::Stalled {
            sleep(Duration::from_millis(STALL_RETRY_MS)).await;
        }
    }

    /// Returns once an event of a stream has room; refuses when the drain begins.
    async fn wait_for_room(&self, topic: &Topic, memory: usize) -> Result<(), Refusal> {
        loop {
            let room = self.room.notified();
            self.flush();
            let no_room = {
                let mut intake = self.intake();
                if intake.is_draining() {
                    return intake.refuse(Refusal::draining());
                }
                match intake.room_for_stream(topic, memory) {
                    Ok(()) => return Ok(()),
                    Err(no_room) => no_room,
                }
            };
            match no_room {
                NoRoom::Queue => room.await,
                // Nobody tells when the last shard lets go of an event.
                NoRoom::Memory | NoRoom::Ceiling | NoRoom::Source => {
                    drop(timeout(Duration::from_millis(TOPIC_RETRY_MS), room).await)
                }
            }
        }
    }

    /// Counts a refusal that was found before the intake, and gives it back.
    fn counted(&self, refusal: Refusal) -> Refusal {
        self.intake().count(&refusal);
        refusal
    }

    /// From now on publishes are refused, and streams end.
    fn begin_drain(&self) {
        self.intake().drain();
        self.stage.send_replace(Stage::Draining);
        self.room.notify_waiters();
    }

    /// Resolves once the life of the process has come to `stage`.
    async fn reached(&self, stage: Stage) {
        // The sender lives as long as `self`, so the wait cannot fail.
        let _ = self.stage.subscribe().wait_for(|now| *now >= stage).await;
    }

    /// Tells every shard to drain, after all batches, and waits until each is done or gone.
    async fn drain_shards(&self, deadline: Stamp) {
        let mut said = Vec::new();
        self.tell_shards(|| {
            let (drain, done) = Drain::new(deadline);
            said.push(done);
            Message::Drain(drain)
        })
        .await;
        for done in said {
            // One that is gone says nothing.
            let _ = done.await;
        }
    }

    /// Says something to every shard, however long those take whose queue is full.
    async fn tell_shards(&self, mut message: impl FnMut() -> Message) {
        let mut untold: Vec<_> =
            (0..self.intake().outboxes().len()).map(|shard| (shard, message())).collect();
        loop {
            untold = self.tell(untold);
            if untold.is_empty() {
                return;
            }
            sleep(Duration::from_millis(STALL_RETRY_MS)).await;
        }
    }

    /// Says to each shard what is meant for it. Returns what did not fit into its queue.
    fn tell(&self, messages: Vec<(usize, Message)>) -> Vec<(usize, Message)> {
        let intake = self.intake();
        let told =
            messages.into_iter().map(|(shard, message)| (shard, intake.outboxes()[shard].try_send(message)));
        told.filter_map(|(shard, told)| match told {
            Ok(()) | Err(Refused::Gone(_)) => None,
            Err(Refused::Full(message)) => Some((shard, message)),
        })
        .collect()
    }

    /// Whose sequences come now.
    fn epoch(&self) -> Epoch {
        self.intake().era.epoch
    }
}

/// The id that subscribers see: the publisher's, else `ours`.
fn id_text(custom: Option<&CustomId>, ours: EventId) -> String {
    custom.map_or_else(|| ours.to_string(), |id| id.as_str().to_string())
}

#[cfg(test)]
mod tests;

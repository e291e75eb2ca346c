//! The thread that writes a log: what waits for it goes to the disk together.
//!
//! Invariants worth naming:
//! - Nobody waits for it but by its answers: its queue is bounded in number and bytes, and a hub
//!   whose entry finds no place refuses the publish.
//! - Entries are written in the order of their sequences. Under [`Promise::Always`] each is given
//!   back once it is on the disk, or has failed. Under the others nobody waits; what could not be
//!   written is kept and tried again, and meanwhile no publishes are taken.
//! - While the disk refuses, it is tried again every [`STORE_RETRY_MS`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::files::Files;
use super::log::{Forgotten, Log, NotWritten};
use super::past::{StorePast, Windows};
use super::reader::PastReader;
use super::record::{self, Stored};
use super::{Promise, Settings, StoreError};
use crate::clock::{Stamp, unix_ms};
use crate::config::Limits;
use crate::config::limits::{
    STORE_BATCH_BYTES_MAX, STORE_BATCH_MAX, STORE_QUEUE_BYTES_MAX, STORE_QUEUE_MAX, STORE_RETRY_MS,
    STORE_SYNC_MS, STORE_TIDY_MS, STORE_UNSYNCED_BYTES_MAX,
};
use crate::event::{Epoch, Event, Topic};
use crate::publishing::IdempotencyKey;

/// What is to be stored.
#[derive(Debug)]
pub enum Said {
    /// An event, under its key.
    Event(Event, Option<IdempotencyKey>),
    /// What came of a topic so far is gone.
    Removal(Topic),
    /// Nothing; it asks whether all before it is on the disk.
    Nothing,
}

/// One thing in its place, and whom it is of.
#[derive(Debug)]
pub struct Entry<T> {
    /// Its sequence.
    pub sequence: u64,
    /// When it came, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What it is.
    pub said: Said,
    /// Who waits for it; `None`: nobody does, and it is not given back.
    pub token: Option<T>,
}

/// What a store tells.
#[derive(Debug)]
pub enum News<T> {
    /// These are on the disk, in their order.
    Done(Vec<Entry<T>>),
    /// These are not.
    Failed(Vec<Entry<T>>, Failure),
    /// The disk takes nothing, and why, in one line; `None`: it does again.
    Degraded(Option<String>),
}

/// Why something is not on the disk.
#[derive(Debug, Clone)]
pub struct Failure {
    /// One line.
    pub why: String,
    /// Nobody knows whether it is.
    pub is_unknown: bool,
}

/// What was counted.
#[derive(Debug, Default)]
struct Counters {
    entries: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    failures: AtomicU64,
    damaged: AtomicU64,
    disk_bytes: AtomicU64,
    queued_bytes: AtomicUsize,
}

/// The same at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct StoreReport {
    /// Events and removals that were written.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Times that the disk was told to have them for good.
    pub syncs: u64,
    /// Times that it refused.
    pub failures: u64,
    /// Segments that were found damaged when they were to go.
    pub damaged: u64,
    /// Bytes of all segments, now.
    pub disk_bytes: u64,
    /// Bytes that wait to be written, now.
    pub queued_bytes: u64,
}

impl Counters {
    /// So many bytes wait no more.
    fn let_go(&self, bytes: usize) {
        self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The hub's end of a store.
#[derive(Debug)]
pub struct Store<T> {
    /// `None` once it is closed.
    queue: Option<Sender<Entry<T>>>,
    promise: Promise,
    /// Sequences up to here may be given.
    reserved: Arc<AtomicU64>,
    /// The disk refuses.
    fails: Arc<AtomicBool>,
    /// The thread is to come to its end.
    closing: Arc<AtomicBool>,
    counters: Arc<Counters>,
    /// Until somebody takes it.
    reader: Option<PastReader>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Store<T> {
    /// Opens the store of a directory, or makes it, with `fresh` as its epoch then. `tell` hears of
    /// what comes later, on another thread.
    pub fn open(
        files: impl Files,
        settings: Settings,
        limits: &Limits,
        memory_of: fn(&Event) -> usize,
        fresh: Epoch,
        tell: impl Fn(News<T>) + Send + 'static,
    ) -> Result<(Store<T>, StorePast), StoreError> {
        let mut windows = Windows::new(limits, &settings.rules, memory_of, unix_ms(), Stamp::now());
        let promise = settings.promise;
        let glass = files.glass();
        let (log, opening) = Log::open(files, settings, fresh, &mut windows)?;
        let past = windows.past(&opening);
        let (queue, entries) = bounded(STORE_QUEUE_MAX);
        let reserved = Arc::new(AtomicU64::new(log.reserved()));
        let (fails, closing) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        log.progress().wrote(opening.sequence);
        let reader = Some(PastReader::new(glass, log.progress().clone(), opening.floor));
        let counters = Arc::<Counters>::default();
        let writer = Writer {
            log,
            promise,
            entries,
            tell: Box::new(tell),
            reserved: reserved.clone(),
            fails: fails.clone(),
            closing: closing.clone(),
            counters: counters.clone(),
            unwritten: Vec::new(),
            given: opening.sequence,
            is_dirty: false,
            synced: Instant::now(),
            tidied: Instant::now(),
            is_stuck: false,
        };
        let thread = std::thread::Builder::new().name("store".into()).spawn(move || writer.run());
        let thread = thread.map_err(|source| StoreError::Io {
            what: "start the thread that writes",
            place: String::new(),
            source,
        })?;
        let thread = Some(thread);
        let queue = Some(queue);
        Ok((Store { queue, promise, reserved, fails, closing, counters, reader, thread }, past))
    }

    /// The promise.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// True if an entry of this sequence would be taken now. The last one may be of any size.
    pub fn has_room(&self, sequence: u64) -> bool {
        let has_place = self.queue.as_ref().is_some_and(|queue| !queue.is_full());
        let bytes = self.counters.queued_bytes.load(Ordering::Relaxed);
        has_place && bytes < STORE_QUEUE_BYTES_MAX && sequence <= self.reserved.load(Ordering::Acquire)
    }

    /// Hands an entry over; false if it is not taken.
    pub fn submit(&self, entry: Entry<T>) -> bool {
        let Some(queue) = self.queue.as_ref().filter(|_| self.has_room(entry.sequence)) else {
            return false;
        };
        let bytes = weight(&entry);
        self.counters.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_taken = queue.try_send(entry).is_ok();
        if !is_taken {
            self.counters.let_go(bytes);
        }
        is_taken
    }

    /// What reads the log on another thread, to be taken once.
    pub fn take_reader(&mut self) -> Option<PastReader> {
        self.reader.take()
    }

    /// What was counted.
    pub fn report(&self) -> StoreReport {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreReport {
            entries: read(&self.counters.entries),
            bytes: read(&self.counters.bytes),
            syncs: read(&self.counters.syncs),
            failures: read(&self.counters.failures),
            damaged: read(&self.counters.damaged),
            disk_bytes: read(&self.counters.disk_bytes),
            queued_bytes: self.counters.queued_bytes.load(Ordering::Relaxed) as u64,
        }
    }

    /// True while the disk refuses.
    pub fn fails(&self) -> bool {
        self.fails.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Store<T> {
    /// Leaves the log in order: what was handed over is written first.
    fn drop(&mut self) {
        self.queue = None;
        self.closing.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It may wait for another try.
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the thread that writes the store has panicked");
            }
        }
    }
}

struct Writer<F: Files, T> {
    log: Log<F>,
    promise: Promise,
    entries: Receiver<Entry<T>>,
    tell: Box<dyn Fn(News<T>) + Send>,
    reserved: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    closing: Arc<AtomicBool>,
    counters: Arc<Counters>,
    /// What nobody waits for and the disk did not take; nothing more is read from the queue then.
    unwritten: Vec<Entry<T>>,
    /// The newest sequence that was given.
    given: u64,
    /// Something was written that is not synced.
    is_dirty: bool,
    synced: Instant,
    tidied: Instant,
    /// Retained values alone take more than the store may: removing more gains nothing.
    is_stuck: bool,
}

impl<F: Files, T> Writer<F, T> {
    fn run(mut self) {
        self.note_size();
        loop {
            let batch = if self.unwritten.is_empty() { self.next_batch() } else { self.wait_to_retry() };
            let Some(batch) = batch else { break };
            self.write(batch);
            self.sync_if_due();
            self.tidy();
        }
        if self.unwritten.is_empty() {
            if let Err(error) = self.log.close(self.given) {
                tracing::error!(%error, "the store is not left in order");
            }
        } else {
            let events = self.unwritten.len();
            tracing::error!(events, "the store ends without events that the disk did not take");
        }
    }

    /// What waits, at most a batch's worth; nothing after a while. `None` if nobody is left.
    fn next_batch(&mut self) -> Option<Vec<Entry<T>>> {
        let patience = match (self.is_dirty && self.promise == Promise::Interval, self.fails()) {
            (true, _) => Duration::from_millis(STORE_SYNC_MS).saturating_sub(self.synced.elapsed()),
            (false, true) => Duration::from_millis(STORE_RETRY_MS),
            (false, false) => Duration::from_millis(STORE_TIDY_MS),
        };
        let mut batch = match self.entries.recv_timeout(patience) {
            Ok(first) => vec![first],
            Err(RecvTimeoutError::Timeout) => {
                if self.fails() {
                    self.probe();
                }
                return Some(Vec::new());
            }
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        let mut bytes = weight(&batch[0]);
        while batch.len() < STORE_BATCH_MAX
            && bytes < STORE_BATCH_BYTES_MAX
            && let Ok(next) = self.entries.try_recv()
        {
            bytes += weight(&next);
            batch.push(next);
        }
        Some(batch)
    }

    /// The disk has refused what nobody waits for: it is tried again.
    fn wait_to_retry(&mut self) -> Option<Vec<Entry<T>>> {
        let began = Instant::now();
        let left = || Duration::from_millis(STORE_RETRY_MS).checked_sub(began.elapsed());
        while let Some(left) = left() {
            if self.closing.load(Ordering::Acquire) {
                // A last try.
                let batch = std::mem::take(&mut self.unwritten);
                self.write(batch);
                return self.unwritten.is_empty().then(Vec::new);
            }
            std::thread::park_timeout(left);
        }
        Some(std::mem::take(&mut self.unwritten))
    }

    fn fails(&self) -> bool {
        self.fails.load(Ordering::Relaxed)
    }

    fn write(&mut self, batch: Vec<Entry<T>>) {
        // The last one may only ask for an earlier one.
        let Some(newest) = batch.iter().map(|entry| entry.sequence).max() else { return };
        self.given = self.given.max(newest);
        let (mut bytes, mut newest, mut unix_ms) = (Vec::new(), 0, 0);
        for Entry { sequence, unix_ms: at, said, .. } in &batch {
            match said {
                Said::Event(event, key) => {
                    record::write_event(&mut bytes, false, *sequence, *at, event, key.as_ref());
                    (newest, unix_ms) = (*sequence, *at);
                }
                Said::Removal(topic) => {
                    record::write_removal(&mut bytes, *sequence, topic);
                    newest = *sequence;
                }
                Said::Nothing => {}
            }
        }
        let outcome = match bytes.is_empty() {
            true => Ok(()),
            false => self.log.append(&mut bytes, newest, unix_ms).map_err(|not_written| {
                let NotWritten { error, is_unknown } = not_written;
                Failure { why: error.to_string(), is_unknown }
            }),
        };
        let outcome = outcome.and_then(|()| match self.promise {
            Promise::Always if !bytes.is_empty() => {
                self.counters.syncs.fetch_add(1, Ordering::Relaxed);
                self.log.sync().map_err(|error| Failure { why: error.to_string(), is_unknown: true })
            }
            _ => Ok(()),
        });
        match outcome {
            Ok(()) => {
                // One without a byte says nothing of the disk.
                if self.fails() && !bytes.is_empty() {
                    self.recover();
                }
                self.is_dirty |= !bytes.is_empty();
                self.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.wrote(batch);
            }
            Err(failure) => self.refuse(batch, failure),
        }
    }

    /// A batch is in the log.
    fn wrote(&mut self, batch: Vec<Entry<T>>) {
        self.log.progress().wrote(self.given);
        let mut waited = Vec::new();
        self.counters.let_go(batch.iter().map(weight).sum());
        for entry in batch {
            match &entry.said {
                Said::Event(event, _) => {
                    self.counters.entries.fetch_add(1, Ordering::Relaxed);
                    if self.log.retains(&event.topic) {
                        let (sequence, unix_ms, event) = (entry.sequence, entry.unix_ms, event.clone());
                        self.log.note(&Stored { sequence, unix_ms, event, idempotency: None });
                    }
                }
                Said::Removal(topic) => {
                    self.counters.entries.fetch_add(1, Ordering::Relaxed);
                    self.log.note_removal(topic);
                }
                Said::Nothing => {}
            }
            waited.extend(entry.token.is_some().then_some(entry));
        }
        if !waited.is_empty() {
            (self.tell)(News::Done(waited));
        }
        self.reserve();
        self.note_size();
    }

    /// Keeps enough sequences reserved.
    fn reserve(&mut self) {
        let before = self.log.reserved();
        match self.log.reserve(self.given) {
            Ok(()) if self.log.reserved() != before => {
                self.reserved.store(self.log.reserved(), Ordering::Release);
            }
            Ok(()) => {}
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn refuse(&mut self, batch: Vec<Entry<T>>, failure: Failure) {
        self.fail(&failure.why);
        let (waited, others): (Vec<_>, Vec<_>) = batch.into_iter().partition(|entry| entry.token.is_some());
        self.unwritten = others;
        self.counters.let_go(waited.iter().map(weight).sum());
        if !waited.is_empty() {
            (self.tell)(News::Failed(waited, failure));
        }
    }

    fn fail(&mut self, why: &str) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        if !self.fails.swap(true, Ordering::Relaxed) {
            tracing::error!("the store takes no events: {why}; publishers get 503 until it does");
            (self.tell)(News::Degraded(Some(format!("the store takes no events: {why}"))));
        }
    }

    fn recover(&mut self) {
        self.fails.store(false, Ordering::Relaxed);
        tracing::info!("the store takes events again");
        (self.tell)(News::Degraded(None));
    }

    /// Asks the disk whether it takes something again.
    fn probe(&mut self) {
        match self.log.probe() {
            Ok(()) => self.recover(),
            Err(_) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn sync_if_due(&mut self) {
        match self.promise {
            Promise::Interval if self.is_dirty => {
                let is_due = self.synced.elapsed() >= Duration::from_millis(STORE_SYNC_MS);
                if !is_due && self.log.unsynced() < STORE_UNSYNCED_BYTES_MAX {
                    return;
                }
                self.counters.syncs.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = self.log.sync() {
                    // The log has it still, and writes it again before anything else.
                    self.fail(&error.to_string());
                }
            }
            _ => {}
        }
        self.is_dirty = false;
        self.synced = Instant::now();
    }

    /// Removes what is promised no more, now and then.
    fn tidy(&mut self) {
        let is_pressed = self.log.is_over() && !self.is_stuck;
        if self.tidied.elapsed() < Duration::from_millis(STORE_TIDY_MS) && !is_pressed {
            return;
        }
        self.tidied = Instant::now();
        let before = self.log.bytes();
        // What is written again comes behind these.
        for _ in 0..self.log.segments() {
            match self.log.forget(unix_ms()) {
                Ok(Forgotten::Segment) => {}
                Ok(Forgotten::Nothing) => break,
                Ok(Forgotten::Damaged(segment, at)) => {
                    self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        segment,
                        at,
                        "an old segment of the store was damaged when it was removed: retained values \
                         that were nowhere else are lost with this process"
                    );
                }
                Err(error) => {
                    tracing::warn!(%error, "an old segment of the store is not removed");
                    match self.log.is_behind() {
                        // What was acknowledged is on no disk: that is tried again soon.
                        true => self.fail(&error.to_string()),
                        false => _ = self.counters.failures.fetch_add(1, Ordering::Relaxed),
                    }
                    break;
                }
            }
        }
        self.is_stuck = self.log.is_over() && self.log.bytes() >= before;
        self.note_size();
    }

    fn note_size(&self) {
        self.counters.disk_bytes.store(self.log.bytes(), Ordering::Relaxed);
    }
}

/// Bytes that an entry takes, about.
fn weight<T>(entry: &Entry<T>) -> usize {
    match &entry.said {
        Said::Event(event, _) => event.weight(),
        Said::Removal(_) | Said::Nothing => 64,
    }
}

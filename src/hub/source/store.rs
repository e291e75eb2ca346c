//! The hub's own source with a memory that outlives it (`store`).
//!
//! Invariants worth naming:
//! - This process gives the sequences. Under [`Promise::Always`] an event has its place once the
//!   disk has it, in the order of the sequences; under the others at once.
//! - A repeat of a publish that the disk does not have yet is answered with it: both are taken, or
//!   neither.
//! - What the disk refuses leaves its sequence unused.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Published, Reply, Source, Waiting, owed};
use crate::clock::Stamp;
use crate::config::limits::{REMOTE_BYTES_MAX, STORE_BATCH_MAX, STORE_QUEUE_MAX};
use crate::config::store::Promise;
use crate::event::{Event, Topic};
use crate::handover::state::PastKey;
use crate::hub::{Hub, Intake, OpenHub};
use crate::publishing::IdempotencyKey;
use crate::refusal::{Refusal, RefusalReason};
use crate::store::{Entry, News, PastReader, Said, Store, StorePast, StoreReport};

/// Who waits for the disk.
#[derive(Debug)]
pub struct Owed {
    reply: Reply,
    intake: Stamp,
}

/// Where a store tells its news, and where the hub hears them.
pub fn news() -> (UnboundedSender<News<Owed>>, UnboundedReceiver<News<Owed>>) {
    unbounded_channel()
}

/// A store and what the hub knows of it.
#[derive(Debug)]
pub struct Stored {
    store: Store<Owed>,
    /// The next sequence.
    next: u64,
    /// The disk has all up to here.
    done: u64,
    /// Bytes that wait for the disk and have no answer.
    held: Arc<AtomicUsize>,
    /// Until the hub hears them.
    news: Option<UnboundedReceiver<News<Owed>>>,
}

impl Stored {
    /// What a store tells comes by `news`.
    pub fn new(store: Store<Owed>, news: UnboundedReceiver<News<Owed>>) -> Stored {
        Stored { store, next: 1, done: 0, held: Arc::default(), news: Some(news) }
    }

    /// What reads the log for those who lack more than windows hold, to be taken once.
    pub(in crate::hub) fn take_reader(&mut self) -> Option<PastReader> {
        self.store.take_reader()
    }

    /// The newest sequence that may have been given before.
    pub(in crate::hub) fn begin_after(&mut self, sequence: u64) {
        (self.next, self.done) = (sequence + 1, sequence);
    }

    pub(super) fn has_room(&self) -> bool {
        super::held(&self.held) < REMOTE_BYTES_MAX && self.store.has_room(self.next)
    }

    pub(super) fn is_idle(&self) -> bool {
        super::held(&self.held) == 0
    }

    pub(in crate::hub) fn report(&self) -> StoreReport {
        self.store.report()
    }

    fn is_strict(&self) -> bool {
        self.store.promise() == Promise::Always
    }

    /// Hands something over that somebody waits for.
    fn submit(
        &mut self,
        sequence: u64,
        said: Said,
        at: (Stamp, u64),
        bytes: usize,
    ) -> Result<Waiting, Refusal> {
        let (reply, waiting) = owed(bytes, &self.held);
        let token = Some(Owed { reply, intake: at.0 });
        let entry = Entry { sequence, unix_ms: at.1, said, token };
        if self.store.submit(entry) { Ok(waiting) } else { Err(Refusal::source_full()) }
    }

    /// Hands something over that nobody waits for.
    fn tell(&mut self, said: Said, unix_ms: u64) -> Result<u64, Refusal> {
        let entry = Entry { sequence: self.next, unix_ms, said, token: None };
        if !self.store.submit(entry) {
            return Err(Refusal::source_full());
        }
        self.next += 1;
        Ok(self.next - 1)
    }
}

impl Intake {
    /// What is stored; there is a store.
    fn stored(&mut self) -> &mut Stored {
        match &mut self.source {
            Source::Store(stored) => stored,
            Source::Local | Source::Remote(_) => unreachable!("asked for by those who found it"),
        }
    }

    /// Takes an event of a publisher into the store, unless it was taken before.
    pub(in crate::hub) fn publish_stored(
        &mut self,
        event: Event,
        key: Option<IdempotencyKey>,
        now: Stamp,
    ) -> Result<Published, Refusal> {
        let unix_ms = self.unix_ms();
        if let Some(key) = &key
            && let Some(sequence) = self.find_key(&event, key, now)?
        {
            if sequence <= self.stored().done || !self.stored().is_strict() {
                return Ok(Published::Taken(self.taken(sequence, true)));
            }
            // The one that it repeats is on its way.
            let waiting = self.stored().submit(sequence, Said::Nothing, (now, unix_ms), event.weight());
            return waiting.map(Published::Later).or_else(|refusal| self.refuse(refusal));
        }
        self.admit(&event, now)?;
        let said = Said::Event(event.clone(), key.clone());
        let published = match self.stored().is_strict() {
            true => {
                let sequence = self.stored().next;
                let submitted = self.stored().submit(sequence, said, (now, unix_ms), event.weight());
                let waiting = submitted.or_else(|refusal| self.refuse(refusal))?;
                self.stored().next += 1;
                (sequence, Published::Later(waiting))
            }
            false => {
                let told = self.stored().tell(said, unix_ms);
                let sequence = told.or_else(|refusal| self.refuse(refusal))?;
                self.place(event.clone(), sequence, unix_ms, now);
                (sequence, Published::Taken(self.taken(sequence, false)))
            }
        };
        let (sequence, published) = published;
        if let Some(key) = key {
            self.keys.note(event.topic.clone(), key, PastKey::said_by(&event), sequence, now);
        }
        Ok(published)
    }

    /// The same with a removal.
    pub(in crate::hub) fn remove_stored(&mut self, topic: Topic, now: Stamp) -> Result<Published, Refusal> {
        let unix_ms = self.unix_ms();
        self.admit_removal(&topic, now)?;
        let said = Said::Removal(topic.clone());
        if self.stored().is_strict() {
            let sequence = self.stored().next;
            let bytes = topic.as_str().len();
            let submitted = self.stored().submit(sequence, said, (now, unix_ms), bytes);
            let waiting = submitted.or_else(|refusal| self.refuse(refusal))?;
            self.stored().next += 1;
            return Ok(Published::Later(waiting));
        }
        let told = self.stored().tell(said, unix_ms);
        let sequence = told.or_else(|refusal| self.refuse(refusal))?;
        self.place_removal(topic, sequence);
        Ok(Published::Taken(self.taken(sequence, false)))
    }
}

/// Events under a key that were not stored, the newest of them: as many as may be repeated on their
/// way.
#[derive(Debug, Default)]
struct Failed(BTreeSet<u64>);

impl Failed {
    /// Repeats that wait for this one are not taken either.
    fn note(&mut self, sequence: u64) {
        self.0.insert(sequence);
        if self.0.len() > STORE_QUEUE_MAX + STORE_BATCH_MAX {
            self.0.pop_first();
        }
    }
}

/// Hears what the store tells, until it is closed and has told all.
pub(in crate::hub) async fn serve(hub: Arc<Hub>) {
    let news = match &mut hub.intake().source {
        Source::Store(stored) => stored.news.take(),
        Source::Local | Source::Remote(_) => None,
    };
    let Some(mut news) = news else { return };
    // Not with the store, which may be closed while some of its news are still to be heard.
    let mut failed = Failed::default();
    while let Some(news) = news.recv().await {
        match news {
            News::Done(entries) => hub.place_stored(entries, &failed).await,
            News::Failed(entries, failure) => {
                for Entry { sequence, said, token, .. } in entries {
                    if let Said::Event(event, Some(key)) = said {
                        hub.intake().keys.forget(&event.topic, &key);
                        failed.note(sequence);
                    }
                    let text = format!("the event is not stored: {}", failure.why);
                    let refusal = match failure.is_unknown {
                        true => Refusal::outcome_unknown(),
                        false => Refusal::new(RefusalReason::Source, text),
                    };
                    if let Some(Owed { reply, .. }) = token {
                        reply.tell(Err(refusal));
                    }
                }
            }
            News::Degraded(why) => {
                hub.intake().degrade(why);
                hub.room.notify_waiters();
            }
        }
    }
}

impl Hub {
    /// Broadcasts what the disk has, and answers those who waited for that.
    async fn place_stored(&self, entries: Vec<Entry<Owed>>, failed: &Failed) {
        let mut answers = Vec::with_capacity(entries.len());
        for Entry { sequence, unix_ms, said, token } in entries {
            let Some(Owed { reply, intake }) = token else { continue };
            let mut duplicate = false;
            match said {
                Said::Event(event, _) => _ = self.place_at(event, sequence, unix_ms, intake).await,
                Said::Removal(topic) => {
                    _ = self.place_word(|intake| intake.place_removal(topic, sequence)).await;
                }
                Said::Nothing if failed.0.contains(&sequence) => {
                    reply.tell(Err(Refusal::outcome_unknown()));
                    continue;
                }
                Said::Nothing => duplicate = true,
            }
            let mut intake = self.intake();
            if let Source::Store(stored) = &mut intake.source {
                stored.done = stored.done.max(sequence);
            }
            answers.push((reply, intake.taken(sequence, duplicate)));
        }
        self.flush();
        answers.into_iter().for_each(|(reply, taken)| reply.tell(Ok(taken)));
    }

    /// Leaves the store in order: nothing is taken any more.
    pub(in crate::hub) async fn close_source(&self) {
        let source = std::mem::take(&mut self.intake().source);
        // Its thread may have to wait for the disk.
        let _ = tokio::task::spawn_blocking(move || drop(source)).await;
    }
}

impl OpenHub {
    /// Goes on where a store ends: hub and shards. Nobody was let in yet.
    pub async fn restore_stored(&self, past: StorePast) {
        let StorePast { state, removals } = past;
        self.hub.begin_to_read_store(removals);
        self.restore(state).await;
    }
}

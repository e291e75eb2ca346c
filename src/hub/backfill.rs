//! The past for subscribers who lack more than the windows of their shards hold: asks of the shards
//! are answered from the source, one after the other, each shard in its turn.
//!
//! Invariants worth naming:
//! - A search takes no longer than its client waits, so that stretches have their turns.
//! - No shard waits for this, and the hub's thread reads and encodes nothing of a store: a thread of
//!   its own does (`store`).
//! - Frames are made by the encoder of all events, so they are the bytes that the window had.
//! - Subscribers who ask for the same share a stretch: those that were read last are kept, and one
//!   who begins in the midst of one gets the rest of it, and then the same as all others.
//! - What was removed before an ask is not given any more; that it is missing is told.
//!
//! Not here: how much a subscriber gets and when (`shard/backfill`).

use std::collections::VecDeque;
use std::fmt::Debug;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::Hub;
use crate::broadcast::{Encoded, Era, PastAnswer, PastAsk, PastTopicAsk, Stretch};
use crate::clock::Stamp;
use crate::config::limits::{SEARCH_MS_MAX, STRETCH_BYTES_MAX, STRETCHES_KEPT};
use crate::event::Topic;
use crate::store::Stored;
use crate::topic_pattern::Pattern;
use crate::wire::Format;

mod removals;
pub(super) mod store;
pub(super) mod stream;

pub(super) use removals::Removals;

/// What is wanted of a topic or of the topics of a pattern.
#[derive(Debug, Clone)]
pub struct WantedTopic {
    name: Topic,
    pattern: Option<Pattern>,
    /// Events after this sequence.
    after: u64,
}

/// Which events of a source are wanted, in its sequences.
#[derive(Debug, Clone)]
pub struct Wanted {
    topics: Vec<WantedTopic>,
    /// Topics that were removed, and when: nothing before counts.
    removed: Vec<(Topic, u64)>,
}

impl Wanted {
    /// True for an event of this topic and sequence.
    pub fn has(&self, topic: &str, sequence: u64) -> bool {
        let is_it = |wanted: &WantedTopic| {
            sequence > wanted.after
                && match &wanted.pattern {
                    None => wanted.name.as_str() == topic,
                    Some(pattern) => pattern.matches(topic),
                }
        };
        self.topics.iter().any(is_it)
            && !self.removed.iter().any(|(removed, at)| sequence < *at && removed.as_str() == topic)
    }

    /// The names of all topics that may be wanted; `None` if there are patterns.
    pub fn names(&self) -> Option<Vec<&str>> {
        let names = self.topics.iter();
        names.map(|wanted| wanted.pattern.is_none().then(|| wanted.name.as_str())).collect()
    }

    /// The names and patterns.
    pub fn all(&self) -> impl Iterator<Item = &Topic> {
        self.topics.iter().map(|wanted| &wanted.name)
    }
}

/// Events that were found, in the order of their sequences.
#[derive(Debug, Default)]
pub struct Found {
    /// They are as they were published.
    pub events: Vec<Stored>,
    /// None of those that are wanted is missing up to here, save what may be gone.
    pub to: u64,
    /// Events up to here may be gone.
    pub floor: u64,
}

/// The same, encoded.
#[derive(Debug)]
pub struct Pages {
    bytes: Bytes,
    /// Position of each event, and where its frame ends.
    ends: Vec<(u64, usize)>,
    to: u64,
    floor: u64,
}

/// How events become bytes.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Whose sequences they have.
    pub era: Era,
    /// The format.
    pub format: Format,
}

impl Style {
    /// Makes the frames.
    pub fn pages(self, found: Found) -> Pages {
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(found.events.len()));
        for Stored { sequence, unix_ms, event, .. } in found.events {
            let position = self.era.base + sequence;
            let encoded = Encoded::new(event, self.era, position, Stamp(0)).taken_at(unix_ms);
            bytes.extend_from_slice(&encoded.frame(self.format));
            ends.push((position, bytes.len()));
        }
        let (to, floor) = (self.era.base + found.to, self.era.base + found.floor);
        Pages { bytes: bytes.into(), ends, to, floor }
    }
}

/// The source cannot be read now.
#[derive(Debug)]
pub struct Away;

/// What will be found.
pub type Finding<'a, T> = Pin<Box<dyn Future<Output = Result<T, Away>> + Send + 'a>>;

/// A source that keeps events. Sequences are its own.
pub trait Archive: Debug + Send {
    /// The next events after `after` and up to `until`, about a stretch.
    fn pages(&mut self, wanted: Wanted, span: (u64, u64), style: Style) -> Finding<'_, Pages>;

    /// The sequence after which the last so many events up to `until` come, or all that are left.
    fn before_last(&mut self, wanted: Wanted, until: u64, events: u64) -> Finding<'_, u64>;

    /// The sequence after which events come that were taken in at this time or later, in
    /// milliseconds since 1970.
    fn before_time(&mut self, unix_ms: u64) -> Finding<'_, u64>;
}

/// A stretch that others may ask for too.
#[derive(Debug)]
struct Kept {
    topics: Vec<Topic>,
    format: Format,
    after: u64,
    pages: Pages,
}

/// The stretches that were read last.
#[derive(Debug, Default)]
struct Shelf {
    kept: VecDeque<Kept>,
    /// What they depend on: the epoch, and how many topics were removed by then.
    state: Option<(Era, u64)>,
}

impl Shelf {
    /// What is kept after a position, for those who ask for all of these topics from the same place
    /// on.
    fn find(&self, topics: &[Topic], format: Format, (after, until): (u64, u64)) -> Option<Stretch> {
        let kept = self.kept.iter().find(|kept| {
            kept.after <= after && after < kept.pages.to && kept.format == format && kept.topics == topics
        })?;
        Some(kept.pages.cut(after, until))
    }

    fn keep(&mut self, kept: Kept) {
        self.kept.push_front(kept);
        self.kept.truncate(STRETCHES_KEPT);
        // A stretch of one large event may weigh as much as many others.
        let weight = |kept: &Kept| kept.pages.bytes.len();
        let mut bytes: usize = self.kept.iter().map(weight).sum();
        while bytes > STRETCHES_KEPT * STRETCH_BYTES_MAX
            && self.kept.len() > 1
            && let Some(oldest) = self.kept.pop_back()
        {
            bytes -= weight(&oldest);
        }
    }
}

impl Pages {
    /// The events after `after` and up to `until`.
    fn cut(&self, after: u64, until: u64) -> Stretch {
        let first = self.ends.partition_point(|(position, _)| *position <= after);
        let last = self.ends.partition_point(|(position, _)| *position <= until);
        let end_of = |events: usize| events.checked_sub(1).map_or(0, |at| self.ends[at].1);
        let bytes = self.bytes.slice(end_of(first)..end_of(last.max(first)));
        let frames = last.saturating_sub(first) as u32;
        Stretch { bytes, frames, to: self.to.min(until), lost: Vec::new() }
    }
}

/// What a search finds. Its client does not wait for longer, and others wait for the archive.
async fn search(found: impl Future<Output = Result<Vec<u64>, Away>>) -> Result<PastAnswer, Away> {
    match timeout(Duration::from_millis(SEARCH_MS_MAX), found).await {
        Ok(found) => found.map(PastAnswer::Begins),
        Err(_) => Ok(PastAnswer::Away),
    }
}

/// For so long a source counts as away that was.
const AWAY_NS: u64 = 200_000_000;

/// Answers asks for the past as long as the hub lives.
pub(super) async fn serve(hub: Arc<Hub>) {
    let mut shelf = Shelf::default();
    let mut first = 0;
    // One that does not answer is not asked for everybody.
    let mut away_since: Option<Stamp> = None;
    loop {
        poll_fn(|context| {
            let intake = hub.intake();
            // Registered before the look: see `broadcast::backfill`.
            intake.outboxes().iter().for_each(|outbox| outbox.past().wake_with(context.waker()));
            match intake.outboxes().iter().all(|outbox| outbox.past().is_empty()) {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
        let shards = hub.intake().outboxes().len();
        let mut archive = hub.archive().take();
        for shard in (0..shards).map(|at| (first + at) % shards) {
            let ask = hub.intake().outboxes()[shard].past().take();
            let Some((number, ask)) = ask else { continue };
            let is_away = away_since.is_some_and(|since| hub.now().ns_since(since) < AWAY_NS);
            let answer = match &mut archive {
                Some(archive) if !is_away => hub.find_past(archive.as_mut(), &mut shelf, ask).await,
                _ => Err(Away),
            };
            if !is_away {
                away_since = answer.is_err().then(|| hub.now());
            }
            let answer = answer.unwrap_or(PastAnswer::Away);
            hub.intake().outboxes()[shard].tell_past(number, answer);
        }
        *hub.archive() = archive;
        first += 1;
        tokio::task::yield_now().await;
    }
}

impl Hub {
    /// What one ask is answered.
    async fn find_past(
        &self,
        archive: &mut dyn Archive,
        shelf: &mut Shelf,
        ask: PastAsk,
    ) -> Result<PastAnswer, Away> {
        match ask {
            PastAsk::Stretch { topics, after, until, format } => self
                .find_stretch(archive, shelf, &topics, (after, until), format)
                .await
                .map(PastAnswer::Stretch),
            PastAsk::Last(topics, events) => search(self.find_last(archive, &topics, events)).await,
            PastAsk::Since(topics, unix_ms) => {
                let era = self.intake().era;
                let found = async {
                    let before = era.base + archive.before_time(unix_ms).await?;
                    Ok(vec![before; topics.len()])
                };
                search(found).await
            }
        }
    }

    /// After which position each of these topics has its last so many events.
    async fn find_last(
        &self,
        archive: &mut dyn Archive,
        topics: &[PastTopicAsk],
        events: Vec<u64>,
    ) -> Result<Vec<u64>, Away> {
        let mut begins = Vec::new();
        for (asked, events) in topics.iter().zip(events) {
            let all = PastTopicAsk { name: asked.name.clone(), at: 0, told: 0 };
            let (era, wanted, _) = self.wanted(&[all], 0);
            let until = asked.at.saturating_sub(era.base);
            let before = archive.before_last(wanted, until, events).await?;
            begins.push(era.base + before);
        }
        Ok(begins)
    }

    /// What of these topics is wanted after the position at which each stands, in sequences of the
    /// present era, and which of them were removed since, as far as that is not known.
    fn wanted(&self, asked: &[PastTopicAsk], after: u64) -> (Era, Wanted, Vec<(usize, u64)>) {
        let intake = self.intake();
        let era = intake.era;
        let pattern_of = |asked: &PastTopicAsk| {
            let name = asked.name.as_str();
            name.contains('*').then(|| Pattern::new(name).ok()).flatten()
        };
        let patterns: Vec<Option<Pattern>> = asked.iter().map(pattern_of).collect();
        let matches = |at: usize, topic: &Topic| match &patterns[at] {
            None => asked[at].name == *topic,
            Some(pattern) => pattern.matches(topic.as_str()),
        };
        let (mut removed, mut lost) = (Vec::new(), Vec::new());
        for (position, topic) in intake.removals.after(after) {
            let mut of = (0..asked.len()).filter(|at| asked[*at].at < position && matches(*at, topic));
            let Some(first) = of.next() else { continue };
            removed.push((topic.clone(), position.saturating_sub(era.base)));
            let untold = std::iter::once(first).chain(of).filter(|at| asked[*at].told < position);
            lost.extend(untold.map(|at| (at, position)));
        }
        let floor = intake.removals.floor();
        lost.extend((0..asked.len()).filter(|at| asked[*at].at < floor).map(|at| (at, floor)));
        let topics = asked.iter().zip(patterns).map(|(asked, pattern)| WantedTopic {
            name: asked.name.clone(),
            pattern,
            after: asked.at.max(floor).saturating_sub(era.base),
        });
        (era, Wanted { topics: topics.collect(), removed }, lost)
    }

    async fn find_stretch(
        &self,
        archive: &mut dyn Archive,
        shelf: &mut Shelf,
        asked: &[PastTopicAsk],
        (after, until): (u64, u64),
        format: Format,
    ) -> Result<Stretch, Away> {
        let (era, wanted, mut lost) = self.wanted(asked, after);
        let up_to = |floor: u64| {
            let lacks = (0..asked.len()).filter(|at| asked[*at].at < floor);
            lacks.map(|at| (at, floor)).collect::<Vec<_>>()
        };
        if until <= era.base {
            // The source has begun anew since.
            return Ok(Stretch { to: until, lost: up_to(until), ..Stretch::default() });
        }
        let state_now = || {
            let intake = self.intake();
            (intake.era, intake.counters().removals)
        };
        let state = state_now();
        if shelf.state != Some(state) {
            *shelf = Shelf { kept: VecDeque::new(), state: Some(state) };
        }
        // Who has the same of all topics may share.
        let is_even =
            wanted.removed.is_empty() && after >= era.base && asked.iter().all(|asked| asked.at <= after);
        let names: Vec<Topic> = asked.iter().map(|asked| asked.name.clone()).collect();
        if is_even && let Some(stretch) = shelf.find(&names, format, (after, until)) {
            return Ok(stretch);
        }
        let span = (after.saturating_sub(era.base), until - era.base);
        let pages = archive.pages(wanted, span, Style { era, format }).await?;
        lost.extend(up_to(pages.floor));
        // Of each the last one.
        lost.sort_unstable_by_key(|(at, up_to)| (*at, std::cmp::Reverse(*up_to)));
        lost.dedup_by_key(|(at, _)| *at);
        let mut stretch = pages.cut(0, until);
        stretch.lost = lost;
        // Nothing of it has changed since, or it is not for others.
        let is_same = shelf.state == Some(state_now());
        if is_even && is_same && stretch.lost.is_empty() && pages.to > after {
            shelf.keep(Kept { topics: names, format, after, pages });
        }
        Ok(stretch)
    }
}

/// So many bytes are about a stretch.
pub(super) const PAGES_BYTES: usize = STRETCH_BYTES_MAX;

#[cfg(test)]
mod tests;

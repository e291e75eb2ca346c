//! `GET /topics` and `GET /topics/{topic}`: what the hub and the shards know of topics, merged.
//!
//! Subscribers add up over shards. Windows and retained values do not: all shards keep the same
//! ones of a topic, so the largest window is told. It may lag what is still queued to a busy shard.
//! A shard that gave no report is named under `unavailable`, and its subscribers are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::stats::{Amount, ByFamily};
use super::topics::TopicRecord;
use super::{Hub, id_text};
use crate::broadcast::{Era, Question, TopicQuery};
use crate::config::limits::{PAGE_TOPICS, PAGE_TOPICS_MAX, TOPICS_PER_ANSWER_MAX};
use crate::event::Topic;
use crate::metrics::TopicReport;
use crate::publishing::parse_query;
use crate::refusal::{Refusal, RefusalReason};
use crate::wire::Family;

/// Which page of the list, in the order of names (by bytes).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Only names greater than this; empty for the first page.
    after: String,
    /// 1 <= limit <= [`PAGE_TOPICS_MAX`].
    limit: usize,
}

/// One page.
#[derive(Serialize)]
pub(super) struct Listing {
    topics: Vec<TopicView>,
    /// `after` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Topic>,
    /// Shards that gave no report.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailable: Vec<usize>,
}

/// One topic.
#[derive(Serialize)]
pub(super) struct TopicView {
    topic: Topic,
    subscribers: ByFamily<u64>,
    /// Id of the last event; ours where the publisher's is forgotten. `null` before the first
    /// event.
    last_id: Option<String>,
    /// Sequence of the last event, 0 before the first.
    sequence: u64,
    /// Published since the hub remembers the topic. `null` where the hub has forgotten events that
    /// a window still holds: it would be less than the window.
    published: Option<Amount>,
    window: Amount,
    /// Retained values, left out where there are none.
    #[serde(skip_serializing_if = "is_zero")]
    retained: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Page {
    /// Reads `limit` and `after` from a query.
    pub(super) fn parse(query: Option<&str>) -> Result<Page, Refusal> {
        let mut page = Page { after: String::new(), limit: PAGE_TOPICS };
        for (name, value) in parse_query(query, &["limit", "after"])? {
            if name == "after" {
                page.after = value;
                continue;
            }
            page.limit = match value.parse() {
                Ok(limit @ 1..=PAGE_TOPICS_MAX) => limit,
                _ => {
                    let text = format!("limit={value:?} is not a number from 1 to {PAGE_TOPICS_MAX}");
                    return Err(Refusal::new(RefusalReason::BadQuery, text));
                }
            };
        }
        Ok(page)
    }
}

impl Hub {
    /// One page of all topics that the hub or a shard knows, put together in slices of bounded
    /// work: between two of them publishers have their turn, and so have the shards' subscribers.
    pub(super) async fn list_topics(&self, page: &Page) -> Listing {
        // The semaphore is never closed; without a permit the listing would only be less bounded.
        let _permit = self.listings.acquire().await.ok();
        let mut topics = Vec::new();
        let mut unavailable = BTreeSet::new();
        let mut after = Some(Arc::<str>::from(page.after.as_str()));
        while let Some(from) = after {
            // One more than the page holds says that there is a next one.
            let wanted = page.limit + 1 - topics.len();
            let most = wanted.min(TOPICS_PER_ANSWER_MAX);
            let ask = |answer| Question::Topics(TopicQuery::Page { after: from.clone(), most }, answer);
            let reports = self.scrape_without(&unavailable, ask).await;
            unavailable.extend(silent(&reports));
            let (slice, end) = self.slice(&from, most, &reports);
            topics.extend(slice);
            after = end.filter(|_| topics.len() <= page.limit);
        }
        let more = topics.len() > page.limit;
        topics.truncate(page.limit);
        let next = topics.last().filter(|_| more).map(|last| last.topic.clone());
        Listing { topics, next, unavailable: unavailable.into_iter().collect() }
    }

    /// The topics after `from` as far as everybody has told of them: the hub and each shard tell of
    /// `most`, or of all that there are. Gives the name after which there may be more.
    fn slice(
        &self,
        from: &str,
        most: usize,
        reports: &[Option<Vec<TopicReport>>],
    ) -> (Vec<TopicView>, Option<Arc<str>>) {
        // Behind the answers, so that the hub's record has every event that a shard told of, unless
        // it is forgotten.
        let intake = self.intake();
        let records: Vec<&TopicRecord> = intake.topics().after(from).take(most).collect();
        let reports: Vec<&[TopicReport]> = reports.iter().flatten().map(Vec::as_slice).collect();
        let ends = reports.iter().filter(|report| report.len() == most).filter_map(|report| report.last());
        let ends = ends.map(|report| &report.topic);
        let end = ends.chain(records.get(most - 1).map(|record| &record.topic)).min();
        let is_told = |name: &Topic| end.is_none_or(|end| name <= end);
        let mut views: BTreeMap<&Topic, View<'_>> = BTreeMap::new();
        for report in reports.into_iter().flatten().filter(|report| is_told(&report.topic)) {
            views.entry(&report.topic).or_default().add(report);
        }
        for record in records.into_iter().filter(|record| is_told(&record.topic)) {
            views.entry(&record.topic).or_default();
        }
        for (name, view) in &mut views {
            view.record = intake.topics().get(name);
        }
        let topics = views.into_iter().map(|(name, view)| view.told(name, intake.era)).collect();
        (topics, end.map(|end| end.as_str().into()))
    }

    /// One topic; `Ok(None)` if nobody knows it, `Err` holds the shards that should have been asked
    /// but gave no report while no other knows it.
    pub(super) async fn find_topic(&self, topic: Topic) -> Result<Option<TopicView>, Vec<usize>> {
        let reports = self.scrape(|answer| Question::Topics(TopicQuery::One(topic.clone()), answer)).await;
        let intake = self.intake();
        let mut view = View { record: intake.topics().get(&topic), ..View::default() };
        for report in reports.iter().flatten().flatten() {
            if report.topic == topic {
                view.add(report);
            }
        }
        if view.record.is_some() || view.reported {
            return Ok(Some(view.told(&topic, intake.era)));
        }
        match silent(&reports).collect::<Vec<_>>() {
            missing if missing.is_empty() => Ok(None),
            missing => Err(missing),
        }
    }
}

/// What is gathered of one topic.
#[derive(Default)]
struct View<'a> {
    record: Option<&'a TopicRecord>,
    /// True once a shard has reported the topic.
    reported: bool,
    subscribers: [u64; Family::COUNT],
    window: Amount,
    /// The newest event in any window, or retained; 0 if there is none.
    newest: u64,
    retained: u64,
}

impl View<'_> {
    /// What is told of it.
    fn told(self, topic: &Topic, era: Era) -> TopicView {
        let (id, position) = match self.record {
            Some(record) => (record.id.as_ref(), record.sequence),
            None => (None, self.newest),
        };
        let ours = era.id(position);
        TopicView {
            topic: topic.clone(),
            subscribers: ByFamily(self.subscribers),
            last_id: (position > 0).then(|| id_text(id, ours)),
            sequence: ours.sequence,
            published: self.published(),
            window: self.window,
            retained: self.retained,
        }
    }

    /// What the record says, unless the window knows better.
    fn published(&self) -> Option<Amount> {
        let record = self.record.map(|record| Amount { events: record.events, bytes: record.bytes });
        let held = self.window.events.max(self.retained);
        record.or(Some(Amount::default())).filter(|published| published.events >= held)
    }

    fn add(&mut self, report: &TopicReport) {
        self.reported = true;
        for (sum, count) in self.subscribers.iter_mut().zip(report.subscribers) {
            *sum += count;
        }
        self.window.events = self.window.events.max(report.window_events);
        self.window.bytes = self.window.bytes.max(report.window_bytes);
        self.newest = self.newest.max(report.newest);
        self.retained = self.retained.max(report.retained);
    }
}

/// The shards that gave no report.
pub(super) fn silent<T>(reports: &[Option<T>]) -> impl Iterator<Item = usize> {
    reports.iter().enumerate().filter(|(_, report)| report.is_none()).map(|(shard, _)| shard)
}

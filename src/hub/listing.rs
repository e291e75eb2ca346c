//! `GET /topics` and `GET /topics/{topic}`: what the hub and the shards know of topics, merged.
//!
//! Subscribers add up over shards. Windows do not: all shards keep the same events of a topic, so the largest window
//! is told. A shard that gave no report is named under `unavailable`, and its subscribers are missing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Hub;
use super::publish::parse_query;
use super::refusal::{Refusal, RefusalReason};
use super::stats::{Amount, ByFormat};
use super::topics::TopicRecord;
use crate::broadcast::{Question, TopicQuery};
use crate::config::limits::{PAGE_TOPICS, PAGE_TOPICS_MAX};
use crate::event::Topic;
use crate::metrics::TopicReport;
use crate::wire::Format;

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
    subscribers: ByFormat<u64>,
    /// Id of the last event; ours where the publisher's is forgotten. `null` before the first event.
    last_id: Option<String>,
    /// Sequence of the last event, 0 before the first.
    sequence: u64,
    /// Published since the hub remembers the topic.
    published: Amount,
    window: Amount,
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

    /// Of names that are unique and in no order: those of the page and one more, if there are so many.
    fn select<'a>(&self, names: impl Iterator<Item = &'a Topic>) -> Vec<&'a Topic> {
        let mut names: Vec<&Topic> = names.filter(|name| name.as_str() > self.after.as_str()).collect();
        if names.len() > self.limit + 1 {
            names.select_nth_unstable(self.limit);
            names.truncate(self.limit + 1);
        }
        names
    }
}

impl Hub {
    /// One page of all topics that the hub or a shard knows.
    pub(super) async fn list_topics(&self, page: &Page) -> Listing {
        let reports = self.scrape(|answer| Question::Topics(TopicQuery::All, answer)).await;
        let unavailable = unavailable(&reports);
        let intake = self.intake();
        let mut views: BTreeMap<&Topic, View<'_>> = BTreeMap::new();
        for name in page.select(intake.topics().iter().map(|record| &record.topic)) {
            views.insert(name, View::default());
        }
        for report in reports.iter().flatten() {
            for name in page.select(report.iter().map(|topic| &topic.topic)) {
                views.entry(name).or_default();
            }
        }
        let more = views.len() > page.limit;
        while views.len() > page.limit {
            views.pop_last();
        }
        let next = views.keys().next_back().filter(|_| more).map(|&last| last.clone());
        for topic in reports.iter().flatten().flatten() {
            if let Some(view) = views.get_mut(&topic.topic) {
                view.add(topic);
            }
        }
        for (name, view) in &mut views {
            view.record = intake.topics().get(name);
        }
        let topics = views.into_iter().map(|(name, view)| self.view(name, view)).collect();
        Listing { topics, next, unavailable }
    }

    /// One topic; `Ok(None)` if nobody knows it, `Err` holds the shards that should have been asked but gave no
    /// report while no other knows it.
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
            return Ok(Some(self.view(&topic, view)));
        }
        match unavailable(&reports) {
            missing if missing.is_empty() => Ok(None),
            missing => Err(missing),
        }
    }

    fn view(&self, topic: &Topic, view: View<'_>) -> TopicView {
        let (id, sequence) = match view.record {
            Some(record) => (record.id.as_ref(), record.sequence),
            None => (None, view.newest),
        };
        TopicView {
            topic: topic.clone(),
            subscribers: ByFormat(view.subscribers),
            last_id: (sequence > 0).then(|| self.id_text(id, sequence)),
            sequence,
            published: view
                .record
                .map_or(Amount::default(), |record| Amount { events: record.events, bytes: record.bytes }),
            window: view.window,
        }
    }
}

/// What is gathered of one topic.
#[derive(Default)]
struct View<'a> {
    record: Option<&'a TopicRecord>,
    /// True once a shard has reported the topic.
    reported: bool,
    subscribers: [u64; Format::COUNT],
    window: Amount,
    /// The newest event in any window, 0 if there is none.
    newest: u64,
}

impl View<'_> {
    fn add(&mut self, report: &TopicReport) {
        self.reported = true;
        for (sum, count) in self.subscribers.iter_mut().zip(report.subscribers) {
            *sum += count;
        }
        self.window.events = self.window.events.max(report.window_events);
        self.window.bytes = self.window.bytes.max(report.window_bytes);
        self.newest = self.newest.max(report.newest);
    }
}

fn unavailable(reports: &[Option<Vec<TopicReport>>]) -> Vec<usize> {
    reports.iter().enumerate().filter(|(_, report)| report.is_none()).map(|(shard, _)| shard).collect()
}

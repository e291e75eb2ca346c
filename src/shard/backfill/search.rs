//! Where `since` and `last` begin, if that is before the windows: the hub is asked, and the client
//! waits for that. Without an answer in time the windows count alone.

use std::sync::Arc;

use crate::broadcast::{PastAsk, PastTopicAsk};
use crate::clock::Stamp;
use crate::config::limits::{HELD_BACK_MAX, SEARCH_MS_MAX};
use crate::egress::Slot;
use crate::event::Topic;
use crate::shard::connections::{FAR, Phase};
use crate::shard::publishers::Until;
use crate::shard::state::State;
use crate::wire::{SlowPolicy, Start};

/// Where the topics of a client begin that asks for more than the windows hold.
#[derive(Debug)]
pub(super) struct Search {
    pub(super) number: u64,
    pub(super) topics: Arc<[PastTopicAsk]>,
    pub(super) begun: Stamp,
    /// `Some(None)`: it is not known.
    pub(super) found: Option<Option<Vec<u64>>>,
}

/// Where `since` and `last` begin.
impl State {
    /// True if a client has to wait until it is known where its topics begin, because the windows
    /// hold less than it asks for.
    pub(in crate::shard) fn must_search(&mut self, slot: Slot, topics: &[Topic], start: &Start) -> bool {
        if !matches!(start, Start::Since(_) | Start::Last(_)) || !self.may_backfill(SlowPolicy::Close) {
            return false;
        }
        if let Some(search) = self.backfills.searches.get(&slot) {
            return search.found.is_none();
        }
        let end_of = |name: &Topic| {
            let Some(index) = self.topics.find(name) else { return self.topics.forgotten_up_to(name) };
            let after = match start {
                Start::Since(ms) => self.topics.since(index, *ms, self.now).0,
                Start::Last(events) => self.topics.last(index, *events, self.now).0,
                Start::Now | Start::After(_) => FAR,
            };
            let evicted = self.topics.get(index).window.evicted();
            if after <= evicted { evicted } else { 0 }
        };
        let asked = topics.iter().map(|name| PastTopicAsk { name: name.clone(), at: end_of(name), told: 0 });
        let asked: Arc<[PastTopicAsk]> = asked.filter(|asked| asked.at > 0).collect();
        let has_room = self.backfills.searches.len() < HELD_BACK_MAX && self.backfills.may_ask();
        if asked.is_empty() || !has_room {
            return false;
        }
        let number = self.backfills.number();
        let ask = match start {
            // What the windows have need not be found.
            Start::Last(events) => {
                let here = |asked: &PastTopicAsk| {
                    let index = self.topics.find(&asked.name);
                    index.map_or(0, |index| self.topics.newer_than(index, asked.at) as u64)
                };
                let missing = asked.iter().map(|asked| events.saturating_sub(here(asked)));
                PastAsk::Last(asked.clone(), missing.collect())
            }
            Start::Since(ms) => PastAsk::Since(asked.clone(), self.unix_ms().saturating_sub(*ms)),
            Start::Now | Start::After(_) => return false,
        };
        self.backfills.ask(number, ask, 0);
        let search = Search { number, topics: asked, begun: self.now, found: None };
        self.backfills.searches.insert(slot, search);
        true
    }

    /// A search has an answer, or is given up.
    pub(super) fn search_ends(&mut self, number: u64, positions: Option<Vec<u64>>) {
        let found = self.backfills.searches.iter_mut().find(|(_, search)| search.number == number);
        let Some((slot, search)) = found else { return };
        let slot = *slot;
        search.found = Some(positions.filter(|positions| positions.len() == search.topics.len()));
        self.publishers.let_go_on(slot, Until::Found);
        if self.connections.get(slot).phase == Phase::Handshake {
            self.read_again(slot, false);
            self.backfills.forget_search(slot);
        }
    }

    pub(super) fn end_late_searches(&mut self) {
        let is_late = |search: &Search| {
            search.found.is_none() && self.now.ns_since(search.begun) > SEARCH_MS_MAX * 1_000_000
        };
        let late = self.backfills.searches.values().filter(|search| is_late(search));
        for number in late.map(|search| search.number).collect::<Vec<_>>() {
            self.search_ends(number, None);
        }
    }
}

//! How many subscribers topics have on all shards, for clients that ask by command.
//!
//! Invariants worth naming:
//! - All that wait when the hub wakes up are answered by one question to each shard, and the next
//!   ones after it: so asks cost a shard no more than scrapes do, however many clients ask.
//! - Where a shard does not answer in time nobody is told a number that is too small.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::Hub;
use crate::broadcast::{Crowds, Question, Ticket};
use crate::event::Topic;
use crate::wire::Family;

/// Answers asks as long as the hub lives.
pub(super) async fn serve(hub: Arc<Hub>) {
    loop {
        poll_fn(|context| {
            let intake = hub.intake();
            // Registered before the look: see `broadcast::presence`.
            intake.outboxes().iter().for_each(|outbox| outbox.presence().wake_with(context.waker()));
            match intake.outboxes().iter().all(|outbox| outbox.presence().is_empty()) {
                true => Poll::Pending,
                false => Poll::Ready(()),
            }
        })
        .await;
        hub.tell_presence().await;
    }
}

impl Hub {
    /// Answers what is asked now.
    async fn tell_presence(&self) {
        let mut asks: Vec<(usize, Ticket, Topic)> = Vec::new();
        for (shard, outbox) in self.intake().outboxes().iter().enumerate() {
            asks.extend(
                std::iter::from_fn(|| outbox.presence().take()).map(|(ticket, topic)| (shard, ticket, topic)),
            );
        }
        let mut crowds: BTreeMap<Topic, [u64; Family::COUNT]> =
            asks.iter().map(|(_, _, topic)| (topic.clone(), Default::default())).collect();
        let topics: Arc<[Topic]> = crowds.keys().cloned().collect();
        let answers = self.scrape(|answer| Question::Presence(topics.clone(), answer)).await;
        let is_whole = answers.iter().all(Option::is_some);
        for answer in answers.into_iter().flatten() {
            for (crowd, here) in crowds.values_mut().zip(answer) {
                crowd.iter_mut().zip(here).for_each(|(all, some)| *all += some);
            }
        }
        let intake = self.intake();
        for (shard, ticket, topic) in asks {
            let crowd: Crowds = is_whole.then(|| crowds[&topic]);
            intake.outboxes()[shard].tell_presence(ticket, crowd);
        }
    }
}

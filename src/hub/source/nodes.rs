//! `GET /topics/{topic}?scope=cluster`: how many subscribers a topic has on all nodes that share a
//! stream.

use std::sync::Arc;

use serde::Serialize;

use super::super::Hub;
use super::super::stats::ByFamily;
use crate::broadcast::Question;
use crate::event::Topic;
use crate::jetstream::{Crowd, Nodes};
use crate::refusal::{Refusal, RefusalReason};
use crate::wire::Family;

/// The answer.
#[derive(Serialize)]
pub(in crate::hub) struct ClusterView {
    topic: Topic,
    scope: &'static str,
    subscribers: ByFamily<u64>,
    /// Nodes that were counted, this one among them.
    nodes: usize,
    /// Nodes that are there and did not answer in time: their subscribers are missing.
    silent: usize,
}

const _: () = assert!(Family::COUNT == 2, "nodes tell each other of two families");

impl Hub {
    /// Subscribers of a topic on all nodes.
    pub(in crate::hub) async fn find_in_cluster(&self, topic: Topic) -> Result<ClusterView, Refusal> {
        let busy = |text: String| Refusal::new(RefusalReason::Source, text);
        let others = async {
            match self.stream.get() {
                Some(stream) => stream.nodes.ask(&topic).await.map_err(busy),
                None => Ok(Crowd::default()),
            }
        };
        let (others, own) = tokio::join!(others, self.count_subscribers(topic.clone()));
        let Crowd { mut counts, nodes, silent } = others?;
        let own = own.ok_or_else(|| busy("some shards of this node did not answer".to_string()))?;
        counts.iter_mut().zip(own).for_each(|(all, some)| *all = all.saturating_add(some));
        let subscribers = ByFamily(counts);
        Ok(ClusterView { topic, scope: "cluster", subscribers, nodes: nodes + 1, silent })
    }

    /// Subscribers of a topic here; `None` if some shard does not say.
    async fn count_subscribers(&self, topic: Topic) -> Option<[u64; Family::COUNT]> {
        let topics: Arc<[Topic]> = [topic].into();
        let answers = self.scrape(|answer| Question::Presence(topics.clone(), answer)).await;
        let mut counts = [0; Family::COUNT];
        for answer in answers {
            let answer = answer?;
            for (all, some) in counts.iter_mut().zip(answer.into_iter().next()?) {
                *all += some;
            }
        }
        Some(counts)
    }
}

/// Tells other nodes of this one, and answers them, as long as the hub lives.
pub(super) async fn serve(hub: Arc<Hub>, nodes: Nodes) {
    let count = |topic| {
        let hub = hub.clone();
        async move { hub.count_subscribers(topic).await }
    };
    nodes.serve(count).await;
}

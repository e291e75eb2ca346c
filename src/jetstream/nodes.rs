//! The nodes that share a stream: who is there, and how many subscribers they have together.
//!
//! Invariants worth naming:
//! - This is NATS without JetStream: nothing is stored, and what gets lost is asked again by those
//!   who want to know.
//! - Each node says that it is there; one that is silent for [`NODE_SILENT_MS`] is forgotten. At
//!   most [`NODES_MAX`] are known.
//! - Subscribers are counted where they are, when somebody asks. So nothing is sent while nobody
//!   does, however many topics there are.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval, sleep, timeout_at};

use super::connect::{Link, innermost};
use crate::config::limits::{
    NATS_RETRY_MS, NODE_ANSWER_MS_MAX, NODE_ANSWERS_MAX, NODE_HELLO_MS, NODE_SILENT_MS, NODES_MAX,
};
use crate::event::Topic;

/// Event streams and WebSockets.
pub type Counts = [u64; 2];

/// The nodes of one stream, this one among them.
#[derive(Debug, Clone)]
pub struct Nodes {
    link: Link,
    /// What the subjects begin with.
    base: String,
    /// This one.
    own: Arc<str>,
    others: Arc<Mutex<HashMap<String, Instant>>>,
}

/// What other nodes have said of a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Their subscribers.
    pub counts: Counts,
    /// Nodes that have answered.
    pub nodes: usize,
    /// Nodes that are known and have not.
    pub silent: usize,
}

impl Crowd {
    /// One node more has answered. Others may publish there too, so numbers may be of any size.
    fn add(&mut self, counts: Counts) {
        self.nodes += 1;
        self.counts.iter_mut().zip(counts).for_each(|(all, some)| *all = all.saturating_add(some));
    }
}

#[derive(Serialize, Deserialize)]
struct AnswerJson {
    node: String,
    counts: Option<Counts>,
}

impl Nodes {
    /// Those that share `stream`. `own` is a name that no other node has.
    pub fn new(link: Link, stream: &str, own: String) -> Nodes {
        // Outside of the stream's own subjects, which begin with the prefix and a dot.
        let base = format!("fanwave-nodes-of.{stream}");
        Nodes { link, base, own: own.into(), others: Arc::default() }
    }

    /// Says that this node is there, hears of others, and answers them, for ever. `count` tells how
    /// many subscribers a topic has here, if all shards say.
    pub async fn serve<F>(&self, count: impl Fn(Topic) -> F)
    where
        F: Future<Output = Option<Counts>>,
    {
        loop {
            let subscribed = self.subscribe(">").await;
            match subscribed {
                Ok(heard) => self.hear(heard, &count).await,
                Err(cause) => tracing::debug!("NATS: other nodes are not heard: {cause}"),
            }
            sleep(Duration::from_millis(NATS_RETRY_MS)).await;
        }
    }

    async fn subscribe(&self, rest: &str) -> Result<Subscriber, String> {
        let subject = format!("{}.{rest}", self.base);
        self.client().subscribe(subject).await.map_err(|error| innermost(&error))
    }

    async fn hear<F>(&self, mut heard: Subscriber, count: &impl Fn(Topic) -> F)
    where
        F: Future<Output = Option<Counts>>,
    {
        let mut hellos = interval(Duration::from_millis(NODE_HELLO_MS));
        let hello = format!("{}.hello", self.base);
        let mut answers = futures_util::stream::FuturesUnordered::new();
        loop {
            tokio::select! {
                _ = hellos.tick() => {
                    // Nobody hears it while the connection is down, and then it is said again.
                    if self.link.is_up() {
                        let _ = self.client().publish(hello.clone(), Bytes::from(self.own.to_string())).await;
                    }
                }
                Some(()) = answers.next() => {}
                message = heard.next() => match message {
                    None => return,
                    Some(message) if message.subject.ends_with(".hello") => self.know(&message),
                    Some(message) => {
                        // One too many is a silent node to the one who asks.
                        if answers.len() < NODE_ANSWERS_MAX {
                            answers.push(self.answer(message, count));
                        }
                    }
                },
            }
        }
    }

    fn client(&self) -> &Client {
        &self.link.client
    }

    fn others(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node is there.
    fn know(&self, message: &Message) {
        let Ok(node) = std::str::from_utf8(&message.payload) else { return };
        if node == &*self.own || node.len() > 64 {
            return;
        }
        let mut others = self.others();
        others.retain(|_, since| since.elapsed() < Duration::from_millis(NODE_SILENT_MS));
        if others.len() < NODES_MAX || others.contains_key(node) {
            others.insert(node.to_string(), Instant::now());
        }
    }

    async fn answer<F>(&self, message: Message, count: &impl Fn(Topic) -> F)
    where
        F: Future<Output = Option<Counts>>,
    {
        let topic = std::str::from_utf8(&message.payload).ok().and_then(|name| Topic::new(name).ok());
        let (Some(topic), Some(reply)) = (topic, message.reply) else { return };
        let counts = count(topic).await;
        let answer = AnswerJson { node: self.own.to_string(), counts };
        let answer = serde_json::to_vec(&answer).expect("text and numbers are JSON");
        let _ = self.client().publish(reply, answer.into()).await;
    }

    /// Asks the other nodes for the subscribers of a topic. The error is one line.
    pub async fn ask(&self, topic: &Topic) -> Result<Crowd, String> {
        if !self.link.is_up() {
            return Err("no NATS server is connected".to_string());
        }
        let mut awaited: BTreeSet<String> = {
            let mut others = self.others();
            others.retain(|_, since| since.elapsed() < Duration::from_millis(NODE_SILENT_MS));
            others.keys().cloned().collect()
        };
        let mut crowd = Crowd::default();
        if awaited.is_empty() {
            return Ok(crowd);
        }
        let inbox = self.client().new_inbox();
        let failed = |cause: String| format!("the other nodes cannot be asked: {cause}");
        let mut answers =
            self.client().subscribe(inbox.clone()).await.map_err(|error| failed(innermost(&error)))?;
        let ask = format!("{}.ask", self.base);
        let topic = Bytes::from(topic.as_str().to_string());
        let asked = self.client().publish_with_reply(ask, inbox, topic).await;
        asked.map_err(|error| failed(innermost(&error)))?;
        let deadline = Instant::now() + Duration::from_millis(NODE_ANSWER_MS_MAX);
        while !awaited.is_empty() {
            let Ok(Some(message)) = timeout_at(deadline, answers.next()).await else { break };
            let Ok(AnswerJson { node, counts }) = serde_json::from_slice(&message.payload) else { continue };
            // This node hears itself too, and a node may be new.
            if node == *self.own || !awaited.remove(&node) {
                continue;
            }
            match counts {
                Some(counts) => crowd.add(counts),
                None => crowd.silent += 1,
            }
        }
        crowd.silent += awaited.len();
        Ok(crowd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_size_are_added_without_an_end() {
        let mut crowd = Crowd::default();
        [[u64::MAX, 1], [7, 2]].into_iter().for_each(|counts| crowd.add(counts));
        assert_eq!(crowd, Crowd { counts: [u64::MAX, 3], nodes: 2, silent: 0 });
    }
}

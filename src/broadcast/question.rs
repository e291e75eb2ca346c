//! What the hub asks of a shard: the side path beside the events.
//!
//! A question overtakes the events that wait for a saturated shard, so that the operator of an
//! overloaded server is answered. It does not overtake what the shard can take at once: see
//! `Shard::turn`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::HistorySlice;
use crate::auth::Keys;
use crate::event::Topic;
use crate::metrics::{ShardReport, SlowReport, TopicReport};
use crate::wire::Family;

/// Which topics a shard shall tell of.
#[derive(Debug, Clone)]
pub enum TopicQuery {
    /// This one, if the shard knows it.
    One(Topic),
    /// Of all that have subscribers or events those whose names come first after `after`, in the
    /// order of names: `most`, at most
    /// [`TOPICS_PER_ANSWER_MAX`](crate::config::limits::TOPICS_PER_ANSWER_MAX). Fewer say that
    /// there are no more.
    Page {
        /// A name, or nothing for the first ones.
        after: Arc<str>,
        /// As many fit.
        most: usize,
    },
}

/// A question of the control API to one shard, and where the answer goes. A shard that is gone
/// drops it.
#[derive(Debug)]
pub enum Question {
    /// Its counters and histograms.
    Counters(oneshot::Sender<ShardReport>),
    /// How many subscribers these topics have there, by family.
    Presence(Arc<[Topic]>, oneshot::Sender<Vec<[u64; Family::COUNT]>>),
    /// The subscribers whose sends wait longest.
    Slow(oneshot::Sender<Vec<SlowReport>>),
    /// To check tokens with these keys from now on. It is no question, but as urgent as one.
    Keys(Arc<Keys>, oneshot::Sender<()>),
    /// What it knows of some topics.
    Topics(TopicQuery, oneshot::Sender<Vec<TopicReport>>),
    /// Copies of its listeners, in the order in which it was given them.
    Listeners(oneshot::Sender<io::Result<Vec<OwnedFd>>>),
    /// The next part of its histories, after this sequence of this topic; `None` for the first.
    History(Option<(Topic, u64)>, oneshot::Sender<HistorySlice>),
}

impl Question {
    /// True if nobody waits for the answer any more.
    pub fn is_given_up(&self) -> bool {
        match self {
            Question::Counters(answer) => answer.is_closed(),
            Question::Keys(..) => false,
            Question::Presence(_, answer) => answer.is_closed(),
            Question::Slow(answer) => answer.is_closed(),
            Question::Topics(_, answer) => answer.is_closed(),
            Question::Listeners(answer) => answer.is_closed(),
            Question::History(_, answer) => answer.is_closed(),
        }
    }
}

//! The topics of a shard by name: each found in one step, and all of them page by page in the order
//! of names (by bytes).

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::connections::TopicIndex;
use crate::event::Topic;

/// Index of each topic by its name.
#[derive(Debug, Default)]
pub struct Names {
    by_name: HashMap<Topic, TopicIndex>,
    /// The same in order.
    in_order: BTreeMap<Topic, TopicIndex>,
}

impl Names {
    /// No name yet. Growing moves all names at once, so there are places for `topics` from the
    /// start; those that are not used take no memory.
    pub fn for_topics(topics: usize) -> Names {
        Names { by_name: HashMap::with_capacity(topics), in_order: BTreeMap::new() }
    }

    /// The index of `name`.
    pub fn get(&self, name: &Topic) -> Option<&TopicIndex> {
        self.by_name.get(name)
    }

    /// `name` has this index from now on.
    pub fn insert(&mut self, name: Topic, index: TopicIndex) {
        self.in_order.insert(name.clone(), index);
        self.by_name.insert(name, index);
    }

    /// `name` has no index any more.
    pub fn remove(&mut self, name: &Topic) {
        self.in_order.remove(name);
        self.by_name.remove(name);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// The indexes of the names greater than `after` that begin with `prefix`, in the order of
    /// names.
    pub fn from<'a>(&'a self, after: &'a str, prefix: &'a str) -> impl Iterator<Item = TopicIndex> + 'a {
        let begin = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let names = self.in_order.range::<str, _>((begin, Bound::Unbounded));
        names.take_while(move |(name, _)| name.as_str().starts_with(prefix)).map(|(_, index)| *index)
    }

    /// The indexes of the names greater than `after`, in the order of names. Each costs a step, the
    /// first a few more.
    pub fn after(&self, after: &str) -> impl Iterator<Item = TopicIndex> {
        self.in_order.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)).map(|(_, index)| *index)
    }
}

//! Holes of one topic: events of it that never came here, or may not have.
//!
//! A window remembers its newest hole, and so do the patterns of its topic. The histories stay as
//! they are: what is in them comes behind the notice.

use super::{TopicIndex, Topics};
use crate::event::Topic;

impl Topics {
    /// Events of a topic up to this position, which is above all before it, may be missing. True if
    /// somebody subscribes to it, by its name or by a pattern.
    pub fn note_hole(&mut self, name: &Topic, position: u64) -> bool {
        let concerned = self.named_or_matched(name);
        for index in &concerned {
            self.get_mut(*index).window.note_hole(position);
        }
        if self.find(name).is_none() {
            // It may be remembered without being here.
            self.forgotten.take(name);
            self.forgotten.note(name.clone(), position);
            self.bound_forgotten();
        }
        concerned.iter().any(|index| !self.get(*index).subscribers.is_empty())
    }

    /// A topic, if it is here, and the patterns that it is one of.
    pub fn named_or_matched(&self, name: &Topic) -> Vec<TopicIndex> {
        assert!(!name.as_str().contains('*'), "only subscribers name patterns");
        self.find(name).into_iter().chain(self.patterns_of(name)).collect()
    }
}

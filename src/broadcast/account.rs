//! What the events alive weigh, in the whole process and by topic, so that declared memory is the
//! bound.
//!
//! Invariants worth naming:
//! - An event counts from when the hub makes it until the last holder lets go of it and of its
//!   frames: queues, windows of all shards, sends in the kernel. It counts once, with all frames
//!   that it keeps.
//! - The hub alone adds, and asks for room before; everybody subtracts. So the bounds are never
//!   exceeded.
//! - History is at most half of the memory, and of one topic at most half of what that topic may
//!   hold (`config/limits`). So a topic without room has events beyond its history: subscribers
//!   that are behind, or events on their way.
//!
//! Two counters are touched per event, none per delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::pressure::{Holdings, Pressure, Told};
use crate::config::Limits;

/// Memory of all events alive.
#[derive(Debug)]
pub struct Memory {
    held: AtomicUsize,
    bytes_max: usize,
    topic_bytes_max: usize,
    told: Told,
}

impl Memory {
    /// No event yet.
    pub fn new(limits: &Limits) -> Arc<Memory> {
        Arc::new(Memory {
            held: AtomicUsize::new(0),
            bytes_max: limits.window_bytes_total_max,
            topic_bytes_max: limits.topic_memory_max(),
            told: Told::default(),
        })
    }

    /// Bytes of all events alive, at most `bytes_max`.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The bound.
    pub fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// True if so many bytes more are within the bound.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.held() + bytes <= self.bytes_max
    }

    /// True while little is left. Then topics that hold more than their history wait sooner, and a
    /// slow send gets less patience, so that the others go on.
    pub fn is_pressed(&self) -> bool {
        self.held() > self.bytes_max - self.bytes_max / 4 || self.pressure() >= Pressure::Newcomers
    }

    /// How short the process is of memory.
    pub fn pressure(&self) -> Pressure {
        self.told.pressure()
    }

    /// The hub has looked how short it is.
    pub fn set_pressure(&self, pressure: Pressure) {
        self.told.set_pressure(pressure);
    }

    /// What a shard tells of its memory, in place of what it told `before`.
    pub fn tell(&self, before: Holdings, now: Holdings) {
        self.told.replace(before, now);
    }

    /// What all shards have told.
    pub fn holdings(&self) -> Holdings {
        self.told.holdings()
    }
}

/// Subscribers of a topic on one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crowd {
    /// All of them.
    pub subscribers: usize,
    /// Those that are far behind.
    pub behind: usize,
}

/// One topic's share.
#[derive(Debug)]
pub struct Account {
    memory: Arc<Memory>,
    held: AtomicUsize,
    /// Of all shards on which the topic is pressed.
    subscribers: AtomicUsize,
    behind: AtomicUsize,
}

impl Account {
    /// The account of a topic without events.
    pub fn new(memory: &Arc<Memory>) -> Arc<Account> {
        let zero = || AtomicUsize::new(0);
        Arc::new(Account { memory: memory.clone(), held: zero(), subscribers: zero(), behind: zero() })
    }

    /// True if the topic may have an event of so many bytes more.
    pub fn has_room(&self, bytes: usize) -> bool {
        let most = self.memory.topic_bytes_max;
        let most = if self.memory.is_pressed() { pressed_from(most) } else { most };
        // A topic that holds more than its history can leaves the last of the memory to the others.
        let exceeds = self.held() > self.memory.topic_bytes_max / 2;
        let reserve = if exceeds { self.memory.bytes_max / RESERVED } else { 0 };
        self.held() + bytes <= most && self.memory.has_room(bytes + reserve)
    }

    /// True while its events take more than its history can: the topic may have no room for its
    /// next event.
    pub fn is_pressed(&self) -> bool {
        self.held() > pressed_from(self.memory.topic_bytes_max)
    }

    /// Bytes of its events alive.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// The memory of the whole process.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What a shard says of its subscribers, in place of what it said `before`.
    pub fn count(&self, before: Crowd, now: Crowd) {
        let replace = |counter: &AtomicUsize, before: usize, now: usize| {
            // Wraps around and back: what a shard takes away it has added.
            counter.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
        };
        replace(&self.subscribers, before.subscribers, now.subscribers);
        replace(&self.behind, before.behind, now.behind);
    }

    /// True if less than half of the subscribers of all shards are far behind: the publisher is not
    /// too fast, they are too slow.
    pub fn behind_are_few(&self) -> bool {
        self.behind.load(Ordering::Relaxed) * 2 < self.subscribers.load(Ordering::Relaxed)
    }

    /// True if more than half of them are: what keeps them is not one or the other socket.
    pub fn behind_are_most(&self) -> bool {
        self.behind.load(Ordering::Relaxed) * 2 > self.subscribers.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: usize) {
        self.memory.held.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.memory.held.fetch_sub(bytes, Ordering::Relaxed);
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One part in so many of the memory is for topics that hold no more than their history.
const RESERVED: usize = 8;

/// What a topic that may hold `bytes` holds at least while it is pressed. Its history is at most
/// half, and its largest event a quarter: so its next event has room beside the history, and it is
/// pressed whenever an event has none.
fn pressed_from(bytes: usize) -> usize {
    bytes - bytes / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: usize) -> Arc<Memory> {
        Memory::new(&Limits { window_bytes_total_max: bytes, ..Limits::default() })
    }

    #[test]
    fn a_topic_holds_a_quarter_and_all_together_the_whole() {
        let memory = memory(1_000);
        let accounts: Vec<_> = (0..5).map(|_| Account::new(&memory)).collect();
        assert!(accounts[0].has_room(250) && !accounts[0].has_room(251));
        for account in &accounts[..3] {
            account.take(250);
        }
        assert!(accounts[0].is_pressed() && !memory.is_pressed());
        accounts[3].take(10);
        assert!(memory.is_pressed());
        assert!(accounts[3].has_room(178) && !accounts[3].has_room(179), "three quarters of it");
        // A history may take half of a topic's share: the next event has room beside it.
        accounts[3].take(115);
        assert!(accounts[3].has_room(62) && !accounts[3].is_pressed());
        accounts[4].take(120);
        assert!(!accounts[4].has_room(6) && memory.held() == 995);
        assert!(!memory.has_room(6) && memory.has_room(5));
        accounts[0].give_back(250);
        assert_eq!((accounts[0].held(), memory.held()), (0, 745));
    }

    #[test]
    fn shards_tell_of_their_sockets_in_place_of_what_they_told_before() {
        let memory = memory(1_000);
        let first = Holdings { sockets: 7, waiting: 2, histories: 100 };
        let second = Holdings { sockets: 5, waiting: 1, histories: 100 };
        memory.tell(Holdings::default(), first);
        memory.tell(Holdings::default(), second);
        assert_eq!(memory.holdings(), Holdings { sockets: 12, waiting: 3, histories: 100 });
        memory.tell(first, Holdings { sockets: 1, waiting: 0, histories: 40 });
        assert_eq!(memory.holdings(), Holdings { sockets: 6, waiting: 1, histories: 40 });
        assert!(!memory.is_pressed());
        for pressure in Pressure::ALL {
            memory.set_pressure(pressure);
            assert_eq!(memory.pressure(), pressure);
            assert_eq!(memory.is_pressed(), pressure >= Pressure::Newcomers, "slow sends get one second");
        }
    }

    #[test]
    fn those_behind_are_few_by_the_word_of_all_shards() {
        let account = Account::new(&memory(1_000));
        let none = Crowd::default();
        let lone = Crowd { subscribers: 1, behind: 1 };
        account.count(none, lone);
        assert!(account.behind_are_most());
        assert!(!account.behind_are_few());
        account.count(none, Crowd { subscribers: 1, behind: 0 });
        assert!(!account.behind_are_few(), "one of two is half of them");
        assert!(!account.behind_are_most());
        let many = Crowd { subscribers: 3, behind: 0 };
        account.count(none, many);
        assert!(account.behind_are_few());
        account.count(many, none);
        assert!(!account.behind_are_few());
    }
}

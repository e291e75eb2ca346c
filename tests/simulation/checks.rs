//! What a peer must have heard, by the log of all that was published.

use std::collections::HashMap;

use super::*;

impl World {
    /// A peer that was let in and stayed has all events of its topics, save those told as lost.
    pub fn check_complete(&self, slot: usize, peer: &Peer) {
        let has = begins_after(peer);
        for topic in &peer.topics {
            let told = peer.lost.get(topic).copied().unwrap_or(0);
            let newest = newest_of(&[*topic], &self.log, self.log.len() as u64).unwrap_or(0);
            if let Some(seen) = &self.latest[slot] {
                let began = peer.after.or(peer.opened_at).unwrap_or(0).max(told);
                let has = seen.get(topic).copied().unwrap_or(0);
                assert!(
                    newest <= has.max(began),
                    "slot {slot} lacks the latest, {newest}, of {topic}: {peer:?}"
                );
                continue;
            }
            assert!(newest <= has.max(told), "slot {slot} lacks {newest} of topic {topic}: {peer:?}");
        }
    }

    /// At rest the counters say what the sockets took.
    pub fn check_counters(&mut self) {
        let formats = &self.shard.metrics().families;
        let sum = |count: fn(&FamilyCounters) -> u64| formats.iter().map(count).sum::<u64>();
        let (sends, bytes, frames) = (sum(|c| c.sends), sum(|c| c.bytes), sum(|c| c.frames));
        assert_eq!(sum(|c| c.sends_in_flight), 0, "nobody is waited for");
        assert!(frames <= self.heard, "{frames} frames are counted, {} events were read", self.heard);
        let latencies: u64 = self.shard.metrics().intake_to_written.iter().map(|written| written.len()).sum();
        let exact = !self.shard.ring_mut().refuses;
        assert!(
            latencies == frames || latencies > frames && !exact,
            "{latencies} latencies of {frames} frames"
        );
        let ring = self.shard.ring_mut();
        if !ring.is_secure() {
            assert_eq!((sends, bytes), (ring.sends, ring.bytes));
        }
    }
}

/// The sequence of the last of the first so many events.
pub fn position_of(log: &[usize], events: u64) -> u64 {
    let numbered = (1..).zip(log).filter(|(_, topic)| **topic != HOLE);
    events.checked_sub(1).and_then(|last| numbered.map(|(at, _)| at).nth(last as usize)).unwrap_or(0)
}

/// How many events there were.
pub fn count_of(log: &[usize]) -> u64 {
    log.iter().filter(|topic| **topic != HOLE).count() as u64
}

/// Sequence of the newest event of these topics among the first `until`.
pub fn newest_of(topics: &[usize], log: &[usize], until: u64) -> Option<u64> {
    (1..=until).rev().find(|sequence| topics.contains(&log[*sequence as usize - 1]))
}

/// Up to here the peer has everything of its topics, save what it was told to have lost.
pub fn begins_after(peer: &Peer) -> u64 {
    let opened = peer.opened_at.expect("events follow the head");
    peer.last.or(peer.after).unwrap_or(opened)
}

/// An event must be the next one of the peer's topics, save what was told as lost.
pub fn check_event(peer: &mut Peer, sequence: u64, log: &[usize]) {
    let topic = log[sequence as usize - 1];
    assert!(peer.topics.contains(&topic), "an event of another topic: {sequence}");
    let last = peer.last.or(peer.after);
    assert!(last.is_none_or(|last| sequence > last), "order holds, across a gap too: {sequence}, {peer:?}");
    let has = begins_after(peer);
    for topic in &peer.topics {
        let told = peer.lost.get(topic).copied().unwrap_or(0);
        let before = newest_of(&[*topic], log, sequence - 1).unwrap_or(0);
        assert!(before <= has.max(told), "{before} of topic {topic} comes before {sequence}: {peer:?}");
    }
    peer.lost.remove(&topic);
    peer.last = Some(sequence);
}

/// An event of a peer that wants the latest alone: never an older one.
pub fn check_latest(peer: &mut Peer, sequence: u64, log: &[usize], seen: &mut HashMap<usize, u64>) {
    let topic = log[sequence as usize - 1];
    assert!(peer.topics.contains(&topic), "an event of another topic: {sequence}");
    let last = peer.last.or(peer.after);
    assert!(last.is_none_or(|last| sequence > last), "it never goes back: {sequence}, {peer:?}");
    seen.insert(topic, sequence);
    peer.last = Some(sequence);
}

/// The topics that these topics and patterns stand for, by the definition.
pub fn covered(names: &[&str]) -> Vec<usize> {
    fn matches(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            (["**"], [_, ..]) => true,
            ([first, pattern @ ..], [name, topic @ ..]) => {
                (*first == "*" || first == name) && matches(pattern, topic)
            }
            _ => false,
        }
    }
    let segments = |name: &'static str| name.split('/').collect::<Vec<_>>();
    let is_covered = |topic: &usize| {
        let topic = segments(TOPICS[*topic]);
        names.iter().any(|name| matches(&name.split('/').collect::<Vec<_>>(), &topic))
    };
    (0..TOPICS.len()).filter(is_covered).collect()
}

/// A gap may be told only of topics whose windows can have lost some of the events that the shard
/// has taken, `log`.
pub fn check_gap(peer: &mut Peer, topics: &[String], log: &[usize], window_events: usize) {
    let seen = peer.last.or(peer.after).unwrap_or(peer.connected_at);
    let newest = log.len() as u64;
    for name in topics {
        let topics = covered(&[name]);
        let since =
            |topic: usize| log[seen.min(newest) as usize..].iter().filter(move |other| **other == topic);
        assert!(
            topics.iter().any(|topic| since(*topic).count() > window_events),
            "{name} has no gap after {seen}: its window still holds all since"
        );
        peer.lost.extend(topics.into_iter().map(|topic| (topic, newest)));
    }
}

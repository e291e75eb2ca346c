//! Events that never came here: the source has lost them, or may have.
//!
//! Invariants worth naming:
//! - A hole has a place in the order. All who are here when it comes are told of a gap before they
//!   get anything from behind it: the shard takes no further message until it has told them, a
//!   bounded number in each turn.
//! - Nobody's cursor moves for it. What came before the hole and is still under way goes out,
//!   behind the notice, and so does what comes behind the hole.
//! - A subscriber that comes back later with an id from before the hole is told when it comes
//!   (`start`).
//! - Where it is known which topic has lost something, nobody else is told, and a gap names that
//!   topic or the patterns by which a subscriber has it. Else it names all that a subscriber has.

use super::connections::{FAR, Phase, TopicIndex};
use super::state::State;
use crate::broadcast::{Era, TopicHole};
use crate::config::limits::{ENTRIES_LOOKED_AT_MAX, HOLES_TOLD_MAX};
use crate::egress::Slot;
use crate::event::Topic;
use crate::wire::gap::{Gap, GapReason};

/// How far all connections have been told of a hole.
#[derive(Debug)]
pub(super) struct Telling {
    /// The next slot.
    next: usize,
    reason: GapReason,
    /// Up to where the hole goes.
    until: u64,
    /// What the ids are of that gaps name.
    era: Era,
    /// The topic that lacks something; `None`: it may be any.
    of: Option<Topic>,
}

impl State {
    /// Events up to this position may be missing.
    pub(super) fn take_hole(&mut self, position: u64) {
        let era = self.eras.present();
        self.begin_hole(position, GapReason::Expired, era);
    }

    /// The same, and another epoch has begun there.
    pub(super) fn take_era(&mut self, era: Era) {
        let before = self.eras.present();
        self.begin_hole(era.base, GapReason::Unknown, before);
        self.eras.begin(era);
        self.held_back.iter_mut().for_each(|held| held.end_epoch(era.base));
    }

    /// Events of one topic may be missing.
    pub(super) fn take_topic_hole(&mut self, hole: &TopicHole) {
        assert!(hole.position > self.sequence, "the hub broadcasts in order");
        self.sequence = hole.position;
        if self.topics.note_hole(&hole.topic, hole.position) {
            let (era, of) = (self.eras.present(), Some(hole.topic.clone()));
            let (reason, until) = (GapReason::Expired, hole.position);
            self.telling = Some(Telling { next: 0, reason, until, era, of });
        }
    }

    fn begin_hole(&mut self, position: u64, reason: GapReason, era: Era) {
        assert!(position > self.sequence, "the hub broadcasts in order");
        self.sequence = position;
        self.hole = position;
        self.telling = Some(Telling { next: 0, reason, until: position, era, of: None });
    }

    /// Up to where events of a topic, or of a pattern, may be missing that never came here.
    pub(super) fn hole_of(&self, topic: TopicIndex) -> u64 {
        self.hole.max(self.topics.get(topic).window.hole())
    }

    /// Tells the next connections of a hole. One that comes meanwhile and names an event from
    /// before it may be told twice.
    pub(super) fn tell_of_hole(&mut self) {
        let Some(telling) = self.telling.take() else { return };
        let (first, reason, until, era) = (telling.next, telling.reason, telling.until, telling.era);
        let lacking = telling.of.as_ref().map(|topic| self.topics.named_or_matched(topic));
        let capacity = self.connections.capacity();
        let end = (first + ENTRIES_LOOKED_AT_MAX).min(capacity);
        let mut told = 0;
        let mut next = first;
        while next < end && told < HOLES_TOLD_MAX {
            let slot = next as Slot;
            next += 1;
            let Some((cursor, topics)) = self.lacks(slot, until, lacking.as_deref()) else { continue };
            told += 1;
            let (after, topics) = (era.id(cursor).to_string(), self.names(topics.into_iter()));
            self.tell_gap(slot, &Gap { after: Some(after), reason, topics });
        }
        self.telling = (next < capacity).then_some(Telling { next, ..telling });
    }

    /// What a connection has that is still before a hole of these topics, `None` for any, and where
    /// it is. `None` if that is nothing.
    fn lacks(&self, slot: Slot, until: u64, of: Option<&[TopicIndex]>) -> Option<(u64, Vec<TopicIndex>)> {
        let connection = self.connections.get(slot);
        let mut cursor = connection.cursor;
        if cursor == FAR {
            cursor = self.backfills.lowest(slot).unwrap_or(cursor);
        }
        if connection.phase != Phase::Open || cursor >= until {
            return None;
        }
        let is_before = |topic: TopicIndex| {
            let from = connection.memberships.begins_after(topic, connection.cursor);
            let from = if from == FAR { self.backfills.reached(slot, topic) } else { Some(from) };
            from.is_some_and(|from| from < until)
        };
        let has = connection.memberships.as_slice().iter().map(|member| member.topic);
        let topics: Vec<TopicIndex> = match of {
            None => has.collect(),
            Some(of) => has.filter(|topic| of.contains(topic) && is_before(*topic)).collect(),
        };
        (!topics.is_empty()).then_some((cursor, topics))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::broadcast::{Demand, EncodedBatch, Era, Memory, Message, Outbox, TopicHole, path};
    use crate::clock::Stamp;
    use crate::config::limits::{HOLES_TOLD_MAX, NODE_BEHIND_MS_MAX};
    use crate::config::{Config, Nats};
    use crate::egress::Slot;
    use crate::egress::sim::{SimRing, Weather};
    use crate::event::{Epoch, Event, EventId, Topic};
    use crate::shard::fixtures::encoded;
    use crate::shard::{Shard, ShardSetup};

    const ROOM: usize = 1_024;

    struct Bench {
        shard: Shard<SimRing>,
        outbox: Outbox,
        demand: Arc<Demand>,
        now: Stamp,
    }

    impl Bench {
        fn new() -> Bench {
            Bench::with(Config::default())
        }

        /// One beside other nodes that read the same stream.
        fn beside_others() -> Bench {
            let nats = Nats::new("nats://a".parse().expect("a server"));
            Bench::with(Config { nats: Some(nats), ..Config::default() })
        }

        fn with(config: Config) -> Bench {
            let config = Arc::new(config);
            let (outbox, inbox) = path(8).expect("eventfd");
            let (demand, now) = (Arc::<Demand>::default(), Stamp(1_000_000_000));
            let setup = ShardSetup {
                number: 0,
                cpu: 0,
                memory: Memory::new(&config.limits),
                config,
                epoch: Epoch(7),
                demand: demand.clone(),
                connections_max: ROOM,
                admission: Default::default(),
            };
            let ring = SimRing::new(ROOM, Weather::Fair, 1).recording();
            Bench { shard: Shard::new(setup, ring, inbox, now), outbox, demand, now }
        }

        fn turns(&mut self) {
            for _ in 0..40 {
                self.now = Stamp(self.now.0 + 1_000_000);
                self.shard.turn(self.now).expect("a turn does not fail");
            }
        }

        fn say(&mut self, message: Message, newest: u64) {
            self.demand.announce(newest);
            self.outbox.try_send(message).expect("room");
        }

        fn publish(&mut self, topic: &str, sequence: u64, era: Era) {
            let Event { topic, data, name, id, retry_ms, key } = encoded(topic, sequence).event.clone();
            let event = Event { topic, data, name, id, retry_ms, key };
            let event = crate::broadcast::Encoded::new(event, era, sequence, Stamp(sequence));
            let batch = EncodedBatch { events: [Arc::new(event)].into() };
            self.say(Message::Batch(Arc::new(batch)), sequence);
        }

        fn subscribe(&mut self, query: &str) -> Slot {
            let slot = self.shard.ring_mut().connect().expect("a free slot");
            let head = format!("GET /sse?{query} HTTP/1.0\r\nHost: h\r\n\r\n");
            self.shard.ring_mut().peer_sends(slot, head.as_bytes());
            self.turns();
            slot
        }

        /// Data of events, and gaps with what they come after.
        fn heard(&mut self, slot: Slot) -> Vec<String> {
            let bytes = self.shard.ring_mut().peer_takes(slot);
            let text = String::from_utf8(bytes).expect("UTF-8");
            let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
            data.map(|data| match serde_json::from_str::<serde_json::Value>(data) {
                Ok(gap) if gap["gap"].is_object() => {
                    format!("gap {} {}", gap["gap"]["after"].as_str().expect("an id"), gap["gap"]["reason"])
                }
                _ => data.to_string(),
            })
            .collect()
        }
    }

    fn id(epoch: u64, sequence: u64) -> String {
        EventId { epoch: Epoch(epoch), sequence }.to_string()
    }

    fn gap(epoch: u64, sequence: u64, reason: &str) -> String {
        format!("gap {} {reason:?}", id(epoch, sequence))
    }

    const FIRST: Era = Era { epoch: Epoch(7), base: 0 };

    #[test]
    fn all_who_are_here_are_told_of_a_hole_between_what_came_before_and_after_it() {
        let mut bench = Bench::new();
        let slots: Vec<Slot> = (0..2 * HOLES_TOLD_MAX + 9).map(|_| bench.subscribe("topic=a")).collect();
        let both = bench.subscribe("topic=a&topic=b");
        bench.publish("a", 3, FIRST);
        bench.turns();
        bench.say(Message::Hole(8), 8);
        bench.publish("a", 10, FIRST);
        bench.turns();
        for slot in slots {
            assert_eq!(bench.heard(slot), ["3".to_string(), gap(7, 3, "expired"), "10".to_string()]);
        }
        assert_eq!(bench.heard(both), ["3".to_string(), gap(7, 3, "expired"), "10".to_string()]);
    }

    #[test]
    fn who_comes_back_from_before_a_hole_is_told_and_gets_all_that_is_here() {
        let mut bench = Bench::new();
        for sequence in [2, 4] {
            bench.publish("a", sequence, FIRST);
        }
        bench.say(Message::Hole(8), 8);
        bench.publish("a", 9, FIRST);
        bench.turns();
        for (after, expected) in [
            (2, vec![gap(7, 2, "expired"), "4".into(), "9".into()]),
            (5, vec![gap(7, 5, "expired"), "9".into()]),
            (8, vec!["9".to_string()]),
            (9, vec![]),
        ] {
            let slot = bench.subscribe(&format!("topic=a&after={}", id(7, after)));
            assert_eq!(bench.heard(slot), expected, "after {after}");
        }
        let slot = bench.subscribe("topic=a");
        bench.publish("a", 11, FIRST);
        bench.turns();
        assert_eq!(bench.heard(slot), ["11"], "a newcomer has lost nothing");
    }

    /// What was said to a subscriber: data of events, and the topics of gaps.
    fn told(bench: &mut Bench, slot: Slot) -> Vec<String> {
        bench.turns();
        let text = String::from_utf8(bench.shard.ring_mut().peer_takes(slot)).expect("UTF-8");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| match serde_json::from_str::<serde_json::Value>(data) {
            Ok(gap) if gap["gap"].is_object() => gap["gap"]["topics"].to_string(),
            _ => data.to_string(),
        })
        .collect()
    }

    fn lacks(topic: &str, position: u64) -> Message {
        let topic = Topic::new(topic).expect("a topic");
        Message::TopicHole(Arc::new(TopicHole { topic, position }))
    }

    #[test]
    fn a_hole_of_one_topic_is_told_to_those_who_have_it_alone_and_takes_nothing_from_anybody() {
        let mut bench = Bench::new();
        let queries = ["topic=n/a", "match=n/*", "topic=n/a&topic=n/b", "topic=n/b", "match=m/**"];
        let slots = queries.map(|query| bench.subscribe(query));
        bench.publish("n/a", 3, FIRST);
        bench.turns();
        bench.say(lacks("n/a", 8), 8);
        bench.publish("n/a", 10, FIRST);
        bench.publish("n/b", 11, FIRST);
        let heard = slots.map(|slot| told(&mut bench, slot));
        let [own, pattern, both, other, stranger] = heard.each_ref().map(Vec::as_slice);
        assert_eq!(own, ["3", r#"["n/a"]"#, "10"]);
        assert_eq!(pattern, ["3", r#"["n/*"]"#, "10", "11"]);
        assert_eq!(both, ["3", r#"["n/a"]"#, "10", "11"]);
        assert_eq!((other, stranger), (&["11".to_string()][..], &[][..]));
        // One that nobody has heard of.
        bench.say(lacks("z/1", 12), 12);
        for (query, after, expected) in [
            ("topic=n/a", 2, &[r#"["n/a"]"#, "3", "10"][..]),
            ("topic=n/a", 7, &[r#"["n/a"]"#, "10"]),
            ("topic=n/a", 8, &["10"]),
            ("topic=n/b", 2, &["11"]),
            ("topic=n/a&topic=n/b", 3, &[r#"["n/a"]"#, "10", "11"]),
            ("match=n/*", 7, &[r#"["n/*"]"#, "10", "11"]),
            ("match=n/*", 8, &["10", "11"]),
            // A pattern that is new here knows it too.
            ("match=n/**", 7, &[r#"["n/**"]"#, "10", "11"]),
            ("match=n/**", 8, &["10", "11"]),
            ("topic=z/1", 11, &[r#"["z/1"]"#]),
            ("topic=z/1", 12, &[]),
            ("match=z/*", 11, &[r#"["z/*"]"#]),
        ] {
            let slot = bench.subscribe(&format!("{query}&after={}", id(7, after)));
            assert_eq!(told(&mut bench, slot), expected, "{query} after {after}");
        }
        let newcomer = bench.subscribe("topic=n/a&last=9");
        assert_eq!(told(&mut bench, newcomer), ["3", "10"], "a hole takes no history");
    }

    /// Another node may have read it first.
    #[test]
    fn a_client_that_is_ahead_of_its_node_waits_a_while_for_the_event_that_it_names() {
        let mut bench = Bench::beside_others();
        bench.publish("a", 3, FIRST);
        bench.turns();
        let ahead = bench.subscribe(&format!("topic=a&after={}", id(7, 5)));
        let beyond = bench.subscribe(&format!("topic=a&after={}", id(7, 900)));
        assert!(bench.heard(ahead).is_empty());
        for sequence in 4..=6 {
            bench.publish("a", sequence, FIRST);
        }
        bench.turns();
        assert_eq!(bench.heard(ahead), ["6"], "nothing twice, and no gap");
        let later = |bench: &mut Bench, ms: u64| {
            bench.now = Stamp(bench.now.0 + ms * 1_000_000);
            bench.turns();
        };
        later(&mut bench, 5_000);
        assert!(bench.heard(beyond).is_empty(), "a node reads on 5 s after a server of NATS has died");
        later(&mut bench, NODE_BEHIND_MS_MAX);
        assert_eq!(bench.heard(beyond)[0], gap(7, 900, "unknown"));
        let mut alone = Bench::new();
        alone.publish("a", 3, FIRST);
        alone.turns();
        let unknown = alone.subscribe(&format!("topic=a&after={}", id(7, 5)));
        assert_eq!(alone.heard(unknown)[0], gap(7, 5, "unknown"), "there is no other node");
    }

    /// Another node had more of the epoch before. Where this one has begun the next, its positions
    /// are those of other events, also for a shard that has not heard of it yet.
    #[test]
    fn an_id_from_behind_the_end_of_an_epoch_here_is_unknown_also_before_the_next_one_has_come() {
        for (sequence, is_known) in [(3, true), (4, false), (5, false), (6, false), (7, false), (900, false)]
        {
            let mut bench = Bench::beside_others();
            bench.publish("a", 3, FIRST);
            bench.turns();
            let second = Era { epoch: Epoch(8), base: 4 };
            bench.demand.announce_era(4);
            bench.demand.announce(6);
            let slot = bench.subscribe(&format!("topic=a&after={}", id(7, sequence)));
            assert!(bench.heard(slot).is_empty(), "it has all, or waits");
            bench.outbox.try_send(Message::Era(second)).expect("room");
            bench.publish("a", 6, second);
            bench.turns();
            // All that is here comes behind a gap whose id is not known.
            let events = if is_known { &["6"][..] } else { &["3", "6"] };
            let told = gap(7, sequence, "unknown");
            assert_eq!(bench.heard(slot), [&[told.as_str()], events].concat(), "{sequence}");
        }
    }

    /// It waits for an event that another node may have read, and the epoch ends here before it.
    #[test]
    fn a_client_that_waits_for_an_event_behind_the_end_of_its_epoch_hears_so_at_that_end() {
        let mut bench = Bench::beside_others();
        bench.publish("a", 3, FIRST);
        bench.turns();
        let ahead = bench.subscribe(&format!("topic=a&after={}", id(7, 900)));
        assert!(bench.heard(ahead).is_empty(), "it waits");
        let second = Era { epoch: Epoch(8), base: 4 };
        bench.say(Message::Era(second), 4);
        bench.turns();
        let heard = bench.heard(ahead);
        assert_eq!((&heard[0], heard.last().map(String::as_str)), (&gap(7, 900, "unknown"), Some("3")));
        bench.publish("a", 6, second);
        bench.turns();
        assert_eq!(bench.heard(ahead), ["6"]);
    }

    #[test]
    fn another_epoch_is_a_hole_and_nothing_is_given_twice() {
        let mut bench = Bench::new();
        let slot = bench.subscribe("topic=a");
        bench.publish("a", 2, FIRST);
        bench.turns();
        let second = Era { epoch: Epoch(8), base: 3 };
        bench.say(Message::Era(second), 3);
        bench.publish("a", 4, second);
        bench.turns();
        assert_eq!(bench.heard(slot), ["2".to_string(), gap(7, 2, "unknown"), "4".to_string()]);
        let old = bench.subscribe(&format!("topic=a&after={}", id(7, 2)));
        assert_eq!(bench.heard(old), [gap(7, 2, "expired"), "4".to_string()]);
        let new = bench.subscribe(&format!("topic=a&after={}", id(8, 1)));
        assert!(bench.heard(new).is_empty(), "its first event is position 4");
        let beyond = bench.subscribe(&format!("topic=a&after={}", id(8, 2)));
        assert_eq!(bench.heard(beyond)[0], gap(8, 2, "unknown"), "nothing has it yet");
    }
}

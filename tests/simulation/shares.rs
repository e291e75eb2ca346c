//! Promise: a topic that has no room gets some again as soon as its subscribers come on, are cut or
//! leave, no other topic pays for it, and no event goes to a subscriber of another topic.
//!
//! Set-up: one shard with the least memory that the limits allow, its topics played one by one:
//! some subscribers read nothing, or now and then.
//!
//! Expectation: publishers wait some seconds at most; a topic whose subscribers read everything is
//! never refused; a turn drops a bounded number of events.

use fanwave::config::limits::{CUT_MS_MAX, DROPS_PER_TURN_MAX};

use super::*;

/// One shard, played event by event.
struct Small {
    shard: Shard<SimRing>,
    outbox: Outbox,
    demand: Arc<Demand>,
    memory: Arc<Memory>,
    accounts: TopicTable,
    now: Stamp,
    sequence: u64,
}

/// The least memory for such events.
fn least() -> Limits {
    let mut limits = Limits { message_bytes_max: 10_000, window_bytes_max: 46_000, ..Limits::default() };
    limits.window_bytes_total_max = 16 * limits.event_memory_max();
    limits
}

impl Small {
    fn new(limits: Limits, overrun: SlowPolicy) -> Small {
        limits.check().expect("legal limits");
        let now = Stamp(1_000_000_000);
        let demand = Arc::new(Demand::default());
        let memory = Memory::new(&limits);
        let accounts = TopicTable::new(limits.topics_max, memory.clone());
        let config = Arc::new(Config { limits, slow: overrun, ..Config::default() });
        let (outbox, inbox) = path(config.limits.shard_queue_batches_max).expect("eventfd");
        let ring = SimRing::new(64, Weather::Fair, 1).recording();
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            config,
            epoch: EPOCH,
            demand: demand.clone(),
            memory: memory.clone(),
            connections_max: 64,
            admission: Default::default(),
        };
        let shard = Shard::new(setup, ring, inbox, now);
        Small { shard, outbox, demand, memory, accounts, now, sequence: 0 }
    }

    fn turn(&mut self, ms: u64) {
        self.now = Stamp(self.now.0 + ms * 1_000_000);
        self.shard.turn(self.now).expect("the simulated ring does not fail");
        assert!(self.memory.held() <= self.memory.bytes_max());
    }

    fn turns(&mut self) {
        for _ in 0..12 {
            self.turn(0);
        }
    }

    fn join(&mut self, topics: &[&str], after: Option<u64>) -> Slot {
        let slot = self.shard.ring_mut().connect().expect("a free slot");
        let id = after.map(|sequence| EventId { epoch: EPOCH, sequence }.to_string());
        let head = support::peer::request(Protocol::Sse, topics, id.as_deref());
        self.shard.ring_mut().peer_sends(slot, head.as_bytes());
        self.turns();
        slot
    }

    fn read(&mut self, slot: Slot) -> String {
        String::from_utf8_lossy(&self.shard.ring_mut().peer_takes(slot)).into_owned()
    }

    /// An event, unless the hub has no room for it.
    fn event(&mut self, topic: &str, data: &str, forgets: Option<&str>) -> Option<Arc<Encoded>> {
        let topic_of = |name: &str| Topic::new(name).expect("legal");
        let event = Event {
            topic: topic_of(topic),
            data: Data::text(Bytes::from(data.to_string())).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        if !self.accounts.has_room(&event.topic, Encoded::memory_of(&event)) {
            return None;
        }
        self.sequence += 1;
        self.demand.announce(self.sequence);
        let account = self.accounts.record(&event, self.sequence, event.published_bytes()).account;
        let encoded = Encoded::new(event, EPOCH, self.sequence, self.now);
        Some(Arc::new(encoded.forgetting(forgets.map(topic_of)).counted_in(&account)))
    }

    /// True if the hub takes it.
    fn publish(&mut self, topic: &str, data: &str) -> bool {
        let Some(event) = self.event(topic, data, None) else { return false };
        self.send(vec![event]);
        self.turns();
        true
    }

    fn send(&mut self, events: Vec<Arc<Encoded>>) {
        let batch = EncodedBatch { events: events.into() };
        self.outbox.try_send(Message::Batch(Arc::new(batch))).expect("the shard keeps up");
    }

    fn closed(&self) -> u64 {
        self.shard.metrics().closed.iter().sum()
    }

    /// Milliseconds until the hub takes this event.
    fn wait_for_room(&mut self, topic: &str, data: &str) -> u64 {
        let mut ms = 0;
        while !self.publish(topic, data) && ms < 60_000 {
            self.turn(50);
            self.turns();
            ms += 50;
        }
        ms
    }
}

/// A run that is remembered by the index of its topic is not for the topic that has the index next.
#[test]
fn nobody_gets_events_of_a_topic_that_had_the_index_before() {
    let limits = Limits { send_bytes_max: 4 << 10, ..Limits::default() };
    let mut small = Small::new(limits, SlowPolicy::Close);
    for number in 0..10 {
        assert!(small.publish("a", &format!("secret {number} {}", "x".repeat(1_000))));
    }
    let first = small.join(&["a"], Some(0));
    small.turns();
    assert!(small.read(first).contains("secret 9"));
    small.shard.ring_mut().peer_resets(first);
    small.turns();
    let event = small.event("c", "hello", Some("a")).expect("room");
    small.send(vec![event]);
    small.turns();
    let next = small.join(&["c"], Some(0));
    small.turns();
    let said = small.read(next);
    assert!(said.contains("hello") && !said.contains("secret"), "{said}");
}

/// Subscribers that are cut, and those that wait with the newest event beyond the history, give
/// back what their sends hold.
#[test]
fn a_full_topic_has_room_again_soon_after_its_slow_subscribers_are_cut() {
    for (subscribers, stalled, bytes) in [(24, 8, 2_400), (8, 2, 9_900)] {
        let mut small = Small::new(least(), SlowPolicy::Close);
        let slots: Vec<Slot> = (0..subscribers).map(|_| small.join(&["a"], None)).collect();
        let data = "x".repeat(bytes);
        let mut waited = 0;
        for number in 0..1_000 {
            if let Some(slot) = slots[..stalled].get(number) {
                small.shard.ring_mut().stall(*slot, true);
            }
            if !small.publish("a", &data) {
                waited = waited.max(small.wait_for_room("a", &data));
            }
            small.turn(20);
        }
        assert!(waited <= CUT_MS_MAX + 2_000, "publishers waited {waited} ms");
        assert_eq!(small.closed(), stalled as u64);
    }
}

/// Runs that a shard remembers keep frames, and with them memory that others wait for.
#[test]
fn remembered_runs_hold_up_no_publisher() {
    let mut small = Small::new(Limits { window_events_max: 4, ..least() }, SlowPolicy::Close);
    let names: Vec<String> = (0..40).map(|number| format!("t{number}")).collect();
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let slot = small.join(&all, None);
    // Short lines: the frame on an event stream is twice as long.
    let data = "xxxxx\n".repeat(1_650);
    let mut waited = 0;
    for name in &names {
        let mut ms = 0;
        while !small.publish(name, &data) && ms < 60_000 {
            small.turn(100);
            small.turns();
            // A topic that nobody watches here goes on, so that no tick is quiet.
            assert!(small.publish("unwatched", "tick"));
            ms += 100;
        }
        waited = waited.max(ms);
        small.read(slot);
    }
    assert!(waited <= 2_000, "publishers waited {waited} ms");
}

/// Subscribers that skip cost no memory beyond the history, and keep their patience.
#[test]
fn a_subscriber_that_skips_is_not_cut_for_a_full_topic() {
    let limits = Limits { window_events_max: 1_024, ..least() };
    let mut small = Small::new(limits, SlowPolicy::Skip);
    let slots: Vec<Slot> = (0..9).map(|_| small.join(&["a"], None)).collect();
    small.shard.ring_mut().stall(slots[0], true);
    let data = "x".repeat(9_000);
    for _ in 0..400 {
        assert!(small.publish("a", &data), "there is room");
        small.turn(50);
        for slot in &slots[1..] {
            small.read(*slot);
        }
    }
    assert_eq!(small.closed(), 0);
}

/// Five topics whose only subscribers read now and then, and one whose subscriber reads everything.
#[test]
fn a_topic_that_keeps_up_is_not_refused_while_others_take_all_they_can() {
    let mut small = Small::new(least(), SlowPolicy::Close);
    let names: Vec<String> = (0..5).map(|number| format!("slow{number}")).collect();
    let slow: Vec<Slot> = names.iter().map(|name| small.join(&[name], None)).collect();
    let healthy = small.join(&["c"], None);
    let data = "x".repeat(9_000);
    for slot in &slow {
        small.shard.ring_mut().stall(*slot, true);
    }
    let (mut tried, mut taken, mut beside) = (0, 0, 0);
    for step in 0..1_500 {
        for name in &names {
            while small.publish(name, &data) {
                beside += 1;
            }
        }
        if step % 5 == 0 {
            tried += 1;
            taken += u32::from(small.publish("c", &data));
        }
        small.turn(20);
        if step % 25 == 0 {
            for stalled in [false, true] {
                for slot in &slow {
                    small.shard.ring_mut().stall(*slot, stalled);
                }
                small.turns();
            }
        }
        for slot in slow.iter().chain([&healthy]) {
            small.read(*slot);
        }
    }
    assert!(beside > 100, "the others took {beside}");
    assert!(taken * 10 >= tried * 9, "{taken} of {tried} were taken");
}

/// When a subscriber that was far behind is cut, what it held goes in several turns.
#[test]
fn a_turn_drops_a_bounded_number_of_events() {
    let limits = Limits { window_bytes_total_max: 128 << 20, ..Limits::default() };
    let mut small = Small::new(limits, SlowPolicy::Close);
    let slots: Vec<Slot> = (0..4).map(|_| small.join(&["a"], None)).collect();
    small.shard.ring_mut().stall(slots[0], true);
    let (mut most, mut held) = (0, 0);
    while small.closed() == 0 || small.shard.excess().0 > 0 {
        let mut events = Vec::new();
        if small.closed() == 0 {
            for _ in 0..BATCH_EVENTS_MAX {
                events.extend(small.event("a", "x", None));
            }
        }
        if !events.is_empty() {
            small.send(events);
        }
        for _ in 0..4 {
            let before = small.shard.excess().0;
            small.turn(TICK_MS / 4);
            most = most.max(before.saturating_sub(small.shard.excess().0));
            held = held.max(before);
        }
        for slot in &slots {
            small.read(*slot);
        }
    }
    assert!(held > DROPS_PER_TURN_MAX, "{held} events were held, too few for this test");
    assert!(most <= DROPS_PER_TURN_MAX, "{most} events were dropped in one turn");
}

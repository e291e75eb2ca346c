//! What one peer hears on the simulated ring: answers, pongs, and the end after its own.

use std::sync::Arc;

use super::*;
use crate::broadcast::{Demand, EncodedBatch, Memory, Message, Outbox, path};
use crate::clock::Stamp;
use crate::config::Config;
use crate::egress::sim::{SimRing, Weather};
use crate::event::{CustomId, Epoch};
use crate::shard::fixtures::{encoded, encoded_alone};
use crate::shard::{Shard, ShardSetup};

struct Bench {
    shard: Shard<SimRing>,
    outbox: Outbox,
    demand: Arc<Demand>,
    now: Stamp,
}

impl Bench {
    fn new() -> Bench {
        let config = Arc::new(Config::default());
        let (outbox, inbox) = path(8).expect("eventfd");
        let (demand, now) = (Arc::<Demand>::default(), Stamp(1_000_000_000));
        let memory = Memory::new(&config.limits);
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            config,
            epoch: Epoch(7),
            demand: demand.clone(),
            memory,
            connections_max: 4,
            admission: Default::default(),
        };
        let ring = SimRing::new(8, Weather::Fair, 1).recording();
        Bench { shard: Shard::new(setup, ring, inbox, now), outbox, demand, now }
    }

    fn turns(&mut self) {
        for _ in 0..8 {
            self.now = Stamp(self.now.0 + 1_000_000);
            self.shard.turn(self.now).expect("a turn does not fail");
        }
    }

    /// A peer that has sent these bytes.
    fn connect(&mut self, bytes: &[u8]) -> Slot {
        let slot = self.shard.ring_mut().connect().expect("a free slot");
        self.shard.ring_mut().peer_sends(slot, bytes);
        self.turns();
        slot
    }

    fn heard(&mut self, slot: Slot) -> String {
        String::from_utf8_lossy(&self.shard.ring_mut().peer_takes(slot)).into_owned()
    }

    fn publish(&mut self, events: Vec<Arc<crate::broadcast::Encoded>>) {
        self.outbox.try_send(Message::Batch(Arc::new(EncodedBatch { events: events.into() }))).expect("room");
        self.turns();
    }
}

const WEBSOCKET: &[u8] = b"GET /ws/t HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[test]
fn answers_tell_the_date_that_the_shard_was_told_and_none_before() {
    let mut bench = Bench::new();
    let probe = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
    let slot = bench.connect(probe);
    assert!(!bench.heard(slot).contains("Date:"));
    for date in ["Mon, 30 Nov 2026 03:00:00 GMT", "Mon, 30 Nov 2026 03:00:01 GMT"] {
        bench.shard.set_date(date.to_string());
        let slot = bench.connect(probe);
        let answer = bench.heard(slot);
        assert!(answer.contains(&format!("\r\nDate: {date}\r\n")), "{answer}");
    }
}

#[test]
fn health_tells_why_nothing_can_be_published_and_subscribers_are_served() {
    let mut bench = Bench::new();
    let probe = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
    for (degraded, body) in
        [(None, "ok\n"), (Some("the disk is full"), "degraded: the disk is full\n"), (None, "ok\n")]
    {
        bench.demand.tell_degraded(degraded);
        let slot = bench.connect(probe);
        let answer = bench.heard(slot);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
}

/// A client that only publishes makes the hub encode nothing.
#[test]
fn a_format_is_wanted_exactly_while_somebody_of_it_has_a_topic() {
    let command = |text: &str| {
        let head = [0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
        [&head[..], text.as_bytes()].concat()
    };
    let mut bench = Bench::new();
    let request = String::from_utf8_lossy(WEBSOCKET).replace("/ws/t", "/ws");
    let request = request.replace("\r\n\r\n", "\r\nSec-WebSocket-Protocol: fanwave.v1.json\r\n\r\n");
    let slot = bench.connect(request.as_bytes());
    assert!(bench.heard(slot).contains(" 101 ") && !bench.demand.wants(Format::Json));
    for (text, wanted) in [
        (r#"{"ref":1,"subscribe":{"topic":"a"}}"#, true),
        (r#"{"ref":2,"subscribe":{"match":"b/*"}}"#, true),
        (r#"{"ref":3,"unsubscribe":{"topic":"a"}}"#, true),
        (r#"{"ref":4,"unsubscribe":{"match":"b/*"}}"#, false),
        (r#"{"ref":5,"subscribe":{"topic":"a"}}"#, true),
    ] {
        bench.shard.ring_mut().peer_sends(slot, &command(text));
        bench.turns();
        assert!(bench.heard(slot).contains("\"ok\""), "{text}");
        assert_eq!(bench.demand.wants(Format::Json), wanted, "{text}");
    }
    bench.shard.ring_mut().peer_sends(slot, &[0x88, 0x80, 0, 0, 0, 0]);
    bench.turns();
    assert!(!bench.demand.wants(Format::Json), "it has gone");
}

/// A client that sends pings and reads nothing makes the shard remember no more than the bound.
#[test]
fn pongs_that_nobody_takes_are_bounded() {
    let mut bench = Bench::new();
    let slot = bench.connect(WEBSOCKET);
    bench.heard(slot);
    bench.shard.ring_mut().stall(slot, true);
    let burst = [&[0x89, 0x8a, 0, 0, 0, 0][..], b"0123456789"].concat().repeat(100);
    for _ in 0..100 {
        bench.shard.ring_mut().peer_sends(slot, &burst);
        bench.turns();
    }
    let owed = bench.shard.state.connections.get(slot).control.as_ref().map_or(0, |batch| batch.len());
    let most = PONGS_BYTES_MAX + 12;
    assert!((PONGS_BYTES_MAX..=most).contains(&owed), "{owed} bytes of pongs wait");
    bench.shard.ring_mut().stall(slot, false);
    bench.turns();
    let taken = bench.heard(slot).len();
    assert!(taken > owed && taken <= owed + most, "{taken}");
    bench.shard.ring_mut().peer_sends(slot, &burst);
    bench.turns();
    assert_eq!(bench.heard(slot), "\u{fffd}\n0123456789".repeat(100), "who reads again is answered again");
}

/// Its request names an event that is still on its way here, and is answered when that has come.
#[test]
fn a_request_that_waits_for_an_event_is_answered_although_its_client_has_ended_its_side() {
    let mut bench = Bench::new();
    bench.publish(vec![encoded("t", 1)]);
    bench.demand.announce(3);
    let slot = bench.connect(b"GET /sse/t HTTP/1.1\r\nHost: h\r\nLast-Event-ID: mine\r\n\r\n");
    bench.shard.ring_mut().peer_closes(slot);
    bench.turns();
    assert_eq!(bench.heard(slot), "");
    assert!(bench.shard.ring_mut().is_open(slot), "it waits");
    let mut named = encoded_alone("t", 2);
    named.event.id = Some(CustomId::new("mine").expect("an id"));
    bench.publish(vec![Arc::new(named), encoded("t", 3)]);
    let said = bench.heard(slot);
    assert!(
        said.starts_with("HTTP/1.1 200 OK\r\n") && said.ends_with("id: 7-3\ndata: 3\n\n\r\n0\r\n\r\n"),
        "{said}"
    );
    assert_eq!(said.matches("data: ").count(), 1, "{said}");
    assert!(!bench.shard.ring_mut().is_open(slot), "and then the end");
    assert_eq!(bench.shard.metrics().closed[CloseReason::ClientGone.index()], 1);
}

/// Events go on and on, and a peer that has ended its side is not kept for them.
#[test]
fn a_peer_that_has_ended_its_side_gets_what_there_is_and_no_more() {
    let mut bench = Bench::new();
    let slot = bench.connect(b"GET /sse/t HTTP/1.1\r\nHost: h\r\n\r\n");
    bench.publish(vec![encoded("t", 1)]);
    bench.shard.ring_mut().peer_closes(slot);
    for sequence in 2..40 {
        let events = vec![encoded("t", sequence)];
        bench
            .outbox
            .try_send(Message::Batch(Arc::new(EncodedBatch { events: events.into() })))
            .expect("room");
        bench.now = Stamp(bench.now.0 + 1_000_000);
        bench.shard.turn(bench.now).expect("a turn does not fail");
    }
    let said = bench.heard(slot);
    assert!(said.contains("data: 1\n") && !said.contains("data: 39\n"), "{said}");
    assert!(!bench.shard.ring_mut().is_open(slot));
}

/// What comes at once for a request with this query: the data of the events, and the gap notices.
fn begun(bench: &mut Bench, query: &str) -> (Vec<u64>, Vec<String>) {
    let slot = bench.connect(format!("GET /sse?{query} HTTP/1.0\r\nHost: h\r\n\r\n").as_bytes());
    let said = bench.heard(slot);
    let data: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (gaps, events): (Vec<&str>, Vec<&str>) = data.iter().partition(|data| data.starts_with('{'));
    bench.shard.ring_mut().peer_resets(slot);
    bench.turns();
    let events = events.iter().map(|data| data.parse().expect("a sequence"));
    (events.collect(), gaps.into_iter().map(str::to_string).collect())
}

/// An event that came in at this millisecond.
fn at_ms(topic: &str, sequence: u64, ms: u64) -> Arc<crate::broadcast::Encoded> {
    let mut event = encoded_alone(topic, sequence);
    event.intake = Stamp(ms * 1_000_000);
    Arc::new(event)
}

#[test]
fn each_topic_begins_with_its_last_events_or_those_of_a_time() {
    let mut bench = Bench::new();
    bench.now = Stamp(100_000_000_000);
    bench.demand.announce(5);
    let ms = |seconds_ago: u64| 100_000 - 1_000 * seconds_ago;
    bench.publish(vec![
        at_ms("a", 1, ms(50)),
        at_ms("b", 2, ms(40)),
        at_ms("a", 3, ms(30)),
        at_ms("c", 4, ms(20)),
        at_ms("a", 5, ms(10)),
    ]);
    for (query, events) in [
        ("topic=a", &[][..]),
        ("topic=a&last=2", &[3, 5]),
        ("topic=a&last=0", &[]),
        ("topic=a&topic=b&last=1", &[2, 5]),
        ("topic=b&topic=a&topic=c&last=2", &[2, 3, 4, 5]),
        ("topic=a&topic=never&last=100", &[1, 3, 5]),
        ("topic=a&topic=b&since=35s", &[3, 5]),
        ("topic=a&topic=b&topic=c&since=45s", &[2, 3, 4, 5]),
        ("topic=a&since=1s", &[]),
        ("topic=a&since=555h&last=1", &[1, 3, 5]),
        ("topic=a&after=7-3&last=10", &[5]),
    ] {
        assert_eq!(begun(&mut bench, query), (events.to_vec(), vec![]), "{query}");
    }
}

/// What the bounds of a history took is no loss to a client that asks for what the history holds;
/// what left it for want of memory is.
#[test]
fn since_and_last_tell_a_gap_only_where_less_is_here_than_was_promised() {
    let mut bench = Bench::new();
    let topics = &mut bench.shard.state.topics;
    for sequence in 1..=1_030 {
        topics.push(&at_ms("a", sequence, 1_000));
    }
    bench.shard.state.sequence = 1_030;
    let (events, gaps) = begun(&mut bench, "topic=a&last=5000");
    assert_eq!((events.len(), events[0], gaps), (1_024, 7, vec![]), "the bound of the history");
    assert_eq!(begun(&mut bench, "topic=a&since=1h").1, Vec::<String>::new());
    bench.shard.state.topics.forget_oldest();
    let told = r#"{"gap":{"after":null,"reason":"expired","topics":["a"]}}"#;
    for (query, events, gap) in
        [("last=5000", 1_023, true), ("last=1023", 1_023, false), ("since=1h", 1_023, true)]
    {
        let (begun, gaps) = begun(&mut bench, &format!("topic=a&{query}"));
        assert_eq!(begun.len(), events, "{query}");
        assert_eq!(gaps, if gap { vec![told.to_string()] } else { vec![] }, "{query}");
    }
}

#[test]
fn a_pattern_has_the_histories_of_its_topics_and_each_event_once() {
    let mut bench = Bench::new();
    bench.demand.announce(6);
    let named = |topic: &str, sequence: u64, id: &str| {
        let mut event = encoded_alone(topic, sequence);
        event.event.id = Some(CustomId::new(id).expect("an id"));
        Arc::new(event)
    };
    bench.publish(vec![
        named("n/a", 1, "first"),
        encoded("n/b", 2),
        encoded("other", 3),
        encoded("n/a", 4),
        named("n/a/x", 5, "deep"),
        encoded("n/", 6),
    ]);
    for (query, events) in [
        ("match=n/*", &[][..]),
        ("match=n/*&last=10", &[1, 2, 4, 6]),
        ("match=n/**&last=2", &[5, 6]),
        ("match=n/*&topic=n/a&last=1", &[4, 6]),
        ("match=n/*&topic=n/a&match=**&topic=other&match=n/a/*&after=7-1", &[2, 3, 4, 5, 6]),
        ("match=*/*&since=1h", &[1, 2, 4, 6]),
        ("match=**&after=first", &[2, 3, 4, 5, 6]),
        ("match=n/**&after=deep", &[6]),
        ("match=none/*&after=7-0", &[]),
    ] {
        assert_eq!(begun(&mut bench, query), (events.to_vec(), vec![]), "{query}");
    }
    let (events, gaps) = begun(&mut bench, "match=n/*&after=unknown");
    assert_eq!(events, [1, 2, 4, 6], "all that is there");
    assert_eq!(gaps, [r#"{"gap":{"after":"unknown","reason":"unknown","topics":["n/*"]}}"#]);
}

#[test]
fn an_event_that_comes_by_several_names_is_sent_once_also_of_topics_that_appear_later() {
    let mut bench = Bench::new();
    let query = "match=n/*&topic=n/a&match=**&topic=a&topic=b&topic=c";
    let slot = bench.connect(format!("GET /sse?{query} HTTP/1.0\r\nHost: h\r\n\r\n").as_bytes());
    let alone = bench.connect(b"GET /sse?match=n/* HTTP/1.0\r\nHost: h\r\n\r\n");
    bench.heard(slot);
    bench.heard(alone);
    bench.publish(vec![encoded("n/a", 1), encoded("n/new", 2)]);
    bench.publish(vec![encoded("z", 3), encoded("n/a", 4)]);
    let data = |said: String| -> Vec<String> {
        said.lines().filter_map(|line| Some(line.strip_prefix("data: ")?.to_string())).collect()
    };
    let said = bench.heard(slot);
    assert_eq!(data(said), ["1", "2", "3", "4"]);
    let said = bench.heard(alone);
    assert_eq!(data(said), ["1", "2", "4"]);
}

/// A pattern is told to many topics in several turns, and its subscriber waits for that.
#[test]
fn a_new_pattern_over_many_topics_takes_several_turns_and_loses_nothing_meanwhile() {
    use crate::config::limits::PATTERN_WORK_PER_TURN;
    let mut bench = Bench::new();
    let topics = 3 * PATTERN_WORK_PER_TURN as u64;
    for sequence in 1..=topics {
        bench.shard.state.topics.push(&encoded(&format!("t/{sequence}"), sequence));
    }
    bench.shard.state.sequence = topics;
    let slot = bench.shard.ring_mut().connect().expect("a free slot");
    let request = b"GET /sse?match=t/*&last=3 HTTP/1.0\r\nHost: h\r\n\r\n";
    bench.shard.ring_mut().peer_sends(slot, request);
    let mut turns = 0;
    let mut said = String::new();
    while said.is_empty() {
        turns += 1;
        assert!(turns < 40, "it comes in");
        let (sequence, events) = (topics + turns, vec![encoded(&format!("t/{turns}"), topics + turns)]);
        let batch = Arc::new(EncodedBatch { events: events.into() });
        bench.outbox.try_send(Message::Batch(batch)).expect("room");
        assert_eq!(bench.shard.turn(bench.now).expect("a turn does not fail"), crate::shard::Turn::Busy);
        assert!(bench.shard.state.sequence >= sequence - 8);
        said = bench.heard(slot);
    }
    assert!(turns > 6, "2 events and topics cost a turn's work: {turns} turns");
    bench.turns();
    said += &bench.heard(slot);
    let data: Vec<u64> = said.lines().filter_map(|line| line.strip_prefix("data: ")?.parse().ok()).collect();
    assert!(data.len() >= 3 && data[0] >= topics, "{data:?}");
    assert!(data.is_sorted_by(|before, after| before + 1 == *after), "{data:?}");
    assert_eq!(data.last(), Some(&(topics + turns)));
}

/// A pattern that nobody wants any more goes after some seconds, and a new one has its index.
#[test]
fn a_pattern_without_subscribers_is_forgotten_and_learned_again() {
    let mut bench = Bench::new();
    bench.publish(vec![encoded("n/a", 1)]);
    assert_eq!(begun(&mut bench, "match=n/*&last=1").0, [1]);
    let patterns = |bench: &Bench| {
        let all: Vec<String> = bench
            .shard
            .state
            .topics
            .after("")
            .filter(|topic| topic.is_pattern())
            .map(|t| t.name.to_string())
            .collect();
        all
    };
    assert_eq!(patterns(&bench), ["n/*"]);
    bench.now = Stamp(bench.now.0 + 1_000_000_000);
    bench.turns();
    assert_eq!(patterns(&bench), ["n/*"], "one that comes back finds it");
    for _ in 0..24 {
        bench.now = Stamp(bench.now.0 + 250_000_000);
        bench.turns();
    }
    assert_eq!(patterns(&bench), Vec::<String>::new());
    bench.publish(vec![encoded("n/b", 2)]);
    assert_eq!(begun(&mut bench, "match=n/*&last=5").0, [1, 2]);
}

/// However far behind it is, it gets the newest event of each topic alone, and nothing is kept for
/// it but that.
#[test]
fn a_subscriber_of_the_latest_holds_back_nothing_and_gets_the_newest_event_of_each_topic() {
    let mut bench = Bench::new();
    let request = |query: &str| format!("GET /sse?{query}&slow=latest HTTP/1.0\r\nHost: h\r\n\r\n");
    let slots = ["topic=t/a", "match=t/*", "match=t/*&topic=t/b"].map(|query| {
        let slot = bench.connect(request(query).as_bytes());
        bench.heard(slot);
        bench.shard.ring_mut().stall(slot, true);
        slot
    });
    for sequence in (1..4_000).step_by(40) {
        let topic =
            |sequence| if sequence < 2_000 { "t/early" } else { ["t/a", "t/b"][sequence as usize % 2] };
        let events = (sequence..sequence + 40).map(|sequence| encoded(topic(sequence), sequence));
        bench.publish(events.collect());
    }
    assert_eq!(bench.shard.excess(), (0, 0), "no window keeps anything for them");
    let data = |said: String| -> Vec<u64> {
        said.lines().filter_map(|line| line.strip_prefix("data: ")?.parse().ok()).collect()
    };
    for (slot, newest) in
        slots.into_iter().zip([&[4_000][..], &[1_999, 3_999, 4_000], &[1_999, 3_999, 4_000]])
    {
        bench.shard.ring_mut().stall(slot, false);
        bench.turns();
        let said = data(bench.heard(slot));
        assert!(said.ends_with(newest), "{said:?}");
        // What was under way when it stopped reading went out whole.
        assert!(said.len() <= newest.len() + 40, "{} events", said.len());
        assert!(said.is_sorted_by(|before, after| before < after), "{said:?}");
    }
    assert_eq!(bench.shard.metrics().families[Family::EventStream.index()].overruns, 0);
    bench.publish(vec![encoded("t/a", 4_001), encoded("t/a", 4_002)]);
    assert_eq!(data(bench.heard(slots[0])), [4_002], "of what comes at once too");
    // Who comes back, and who asks for older ones, gets the newest of those.
    bench.demand.announce(4_002);
    for (query, events) in [
        ("topic=t/a&slow=latest&last=5", &[4_002][..]),
        ("match=t/*&slow=latest&after=7-0", &[1_999, 3_999, 4_002]),
        ("match=t/*&slow=latest", &[]),
    ] {
        assert_eq!(begun(&mut bench, query).0, events, "{query}");
    }
}

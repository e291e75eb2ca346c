//! Promises of a backfill, with one shard on the simulated ring and a test that plays the hub.

use std::sync::Arc;

use super::*;
use crate::broadcast::{
    Demand, Drain, EncodedBatch, Memory, Message, Outbox, PastAnswer, PastAsk, Stretch, path,
};
use crate::clock::Stamp;
use crate::config::limits::SEARCH_MS_MAX;
use crate::config::store::Promise;
use crate::config::{Config, Limits, StoreRules};
use crate::egress::sim::{SimRing, Weather};
use crate::event::{Epoch, EventId};
use crate::shard::fixtures::encoded;
use crate::shard::{Shard, ShardSetup};
use crate::wire::Format;

const ROOM: usize = 64;
const WINDOW: u64 = 4;

struct Bench {
    shard: Shard<SimRing>,
    outbox: Outbox,
    demand: Arc<Demand>,
    now: Stamp,
    newest: u64,
}

/// The next ask of the shard: its number, after which position, up to which.
type Asked = (u64, u64, u64);

impl Bench {
    fn new(limits: Limits, slow: SlowPolicy) -> Bench {
        let store =
            StoreRules { data: "nowhere".into(), promise: Promise::Always, bytes_max: 0, age_ms_max: None };
        let limits = Limits { window_events_max: WINDOW as usize, ..limits };
        let config = Arc::new(Config { limits, slow, store: Some(store), ..Config::default() });
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
        Bench { shard: Shard::new(setup, ring, inbox, now), outbox, demand, now, newest: 0 }
    }

    fn usual() -> Bench {
        let mut bench = Bench::new(Limits::default(), SlowPolicy::Close);
        bench.publish("a", 1..=20);
        bench
    }

    fn turns(&mut self, ms: u64) {
        for _ in 0..40 {
            self.now = Stamp(self.now.0 + ms * 1_000_000 / 40);
            self.shard.turn(self.now).expect("a turn does not fail");
        }
    }

    fn say(&mut self, message: Message) {
        self.outbox.try_send(message).expect("room");
        self.turns(10);
    }

    fn publish(&mut self, topic: &str, sequences: std::ops::RangeInclusive<u64>) {
        for sequence in sequences {
            self.newest = sequence;
            self.demand.announce(sequence);
            self.say(Message::Batch(Arc::new(EncodedBatch { events: [encoded(topic, sequence)].into() })));
        }
    }

    fn request(&mut self, head: &str) -> Slot {
        let slot = self.shard.ring_mut().connect().expect("a free slot");
        self.shard.ring_mut().peer_sends(slot, head.as_bytes());
        self.turns(10);
        slot
    }

    fn subscribe(&mut self, query: &str) -> Slot {
        self.request(&format!("GET /sse?{query} HTTP/1.0\r\nHost: h\r\n\r\n"))
    }

    fn come_back(&mut self, topics: &str, after: u64) -> Slot {
        self.subscribe(&format!("{topics}&after={}", id(after)))
    }

    /// Data of events, and gaps.
    fn heard(&mut self, slot: Slot) -> Vec<String> {
        self.turns(10);
        let text = String::from_utf8(self.shard.ring_mut().peer_takes(slot)).expect("UTF-8");
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| if data.contains("gap") { "gap".to_string() } else { data.to_string() }).collect()
    }

    fn asked(&mut self) -> Option<Asked> {
        let (number, ask) = self.outbox.past().take()?;
        match ask {
            PastAsk::Stretch { after, until, .. } => Some((number, after, until)),
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, number: u64, topic: &str, sequences: &[u64], to: u64) {
        let frames = sequences.iter().flat_map(|sequence| encoded(topic, *sequence).frame(Format::Sse));
        let bytes: Vec<u8> = frames.collect();
        let frames = sequences.len() as u32;
        let stretch = Stretch { bytes: bytes.into(), frames, to, lost: Vec::new() };
        self.tell(number, PastAnswer::Stretch(stretch));
    }

    fn tell(&mut self, number: u64, answer: PastAnswer) {
        self.outbox.tell_past(number, answer);
        self.turns(10);
    }

    fn counts(&self) -> (u64, u64, u64) {
        let backfill = &self.shard.metrics().backfill;
        (backfill.completed, backfill.serving + backfill.waiting, backfill.gaps)
    }
}

fn id(sequence: u64) -> String {
    EventId { epoch: Epoch(7), sequence }.to_string()
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn the_past_meets_the_window_without_a_gap_and_nothing_comes_twice_while_it_moves_on() {
    let mut bench = Bench::usual();
    let back = bench.come_back("topic=a", 5);
    let (first, after, until) = bench.asked().expect("an ask");
    assert_eq!((after, until), (5, 16), "the window has the last four");
    assert!(bench.heard(back).is_empty() && bench.asked().is_none(), "one ask at a time");
    bench.answer(first, "a", &[6, 7, 8], 8);
    assert_eq!(bench.heard(back), numbers(6..=8));
    bench.publish("a", 21..=23);
    let (second, after, until) = bench.asked().expect("an ask");
    assert_eq!((after, until), (8, 16), "it was asked before these came");
    bench.answer(second, "a", &numbers(9..=16).iter().map(|n| n.parse().unwrap()).collect::<Vec<_>>(), 16);
    assert_eq!(bench.heard(back), numbers(9..=16));
    // The window has moved on: it keeps what is after 19 until the rest is here.
    let (third, after, until) = bench.asked().expect("an ask");
    assert_eq!((after, until), (16, 19));
    bench.publish("a", 24..=30);
    assert_eq!(bench.shard.excess().0, 7, "20 to 26 are held");
    bench.answer(third, "a", &[17, 18, 19], 19);
    assert_eq!(bench.heard(back), numbers(17..=30));
    assert_eq!((bench.asked(), bench.counts()), (None, (1, 0, 0)));
    bench.publish("a", 31..=31);
    assert_eq!(bench.heard(back), ["31"]);
    bench.turns(1_000);
    assert_eq!(bench.shard.excess(), (0, 0));
}

#[test]
fn topics_that_were_asked_for_together_wait_together_and_others_do_not() {
    let mut bench = Bench::usual();
    bench.publish("b", 21..=21);
    let both = bench.come_back("topic=a&topic=b", 10);
    let other = bench.come_back("topic=b", 10);
    assert_eq!(bench.heard(other), ["21"]);
    assert!(bench.heard(both).is_empty(), "21 says that it has all of a up to there");
    let (number, after, until) = bench.asked().expect("an ask");
    assert_eq!((after, until), (10, 16));
    bench.answer(number, "a", &[11, 12, 13, 14, 15, 16], 16);
    assert_eq!(bench.heard(both), numbers(11..=21));
}

#[test]
fn a_source_that_is_away_for_long_is_a_gap_and_then_the_window() {
    let mut bench = Bench::usual();
    let back = bench.come_back("topic=a", 5);
    for _ in 0..BACKFILL_AWAY_MS_MAX / 500 + 2 {
        if let Some((number, ..)) = bench.asked() {
            bench.tell(number, PastAnswer::Away);
        }
        bench.turns(500);
    }
    assert_eq!(bench.heard(back), [&["gap".to_string()][..], &numbers(17..=20)].concat());
    assert_eq!((bench.asked(), bench.counts()), (None, (0, 0, 1)));
}

#[test]
fn what_the_source_has_lost_is_told_before_what_comes_behind_it() {
    let mut bench = Bench::usual();
    let back = bench.come_back("topic=a", 5);
    let (number, ..) = bench.asked().expect("an ask");
    let bytes = encoded("a", 15).frame(Format::Sse);
    let stretch = Stretch { bytes, frames: 1, to: 16, lost: vec![(0, 14)] };
    bench.tell(number, PastAnswer::Stretch(stretch));
    assert_eq!(bench.heard(back), ["gap", "15", "17", "18", "19", "20"]);
    assert_eq!(bench.counts(), (1, 0, 1));
}

#[test]
fn a_hole_is_told_to_those_who_are_still_before_it() {
    let mut bench = Bench::usual();
    let back = bench.come_back("topic=a", 5);
    let (number, ..) = bench.asked().expect("an ask");
    bench.demand.announce(30);
    bench.say(Message::Hole(30));
    assert_eq!(bench.heard(back), ["gap"]);
    bench.answer(number, "a", &[16], 16);
    assert_eq!(bench.heard(back), numbers(16..=20));
}

#[test]
fn so_many_are_served_at_once_and_who_leaves_makes_room() {
    let limits = Limits { backfills_per_shard_max: 2, ..Limits::default() };
    let mut bench = Bench::new(limits, SlowPolicy::Close);
    bench.publish("a", 1..=20);
    let slots: Vec<Slot> = (0..4).map(|_| bench.come_back("topic=a", 5)).collect();
    let asked: Vec<Asked> = std::iter::from_fn(|| bench.asked()).collect();
    assert_eq!((asked.len(), bench.counts()), (2, (0, 4, 0)));
    bench.shard.ring_mut().peer_resets(slots[0]);
    bench.shard.ring_mut().peer_resets(slots[3]);
    bench.turns(10);
    let (third, ..) = bench.asked().expect("the one who waited");
    assert_eq!((bench.asked(), bench.counts()), (None, (0, 2, 0)));
    bench.answer(asked[0].0, "a", &[6], 6);
    bench.answer(third, "a", &[6], 16);
    assert_eq!(bench.heard(slots[2]), [&["6".to_string()][..], &numbers(17..=20)].concat());
    assert!(bench.heard(slots[1]).is_empty(), "the answer for one that has gone is nobody's");
}

#[test]
fn a_slow_socket_gives_its_place_to_those_who_wait() {
    for (slow, words) in [(SlowPolicy::Close, None), (SlowPolicy::Skip, Some("gap"))] {
        let limits = Limits { backfills_per_shard_max: 1, ..Limits::default() };
        let mut bench = Bench::new(limits, slow);
        bench.publish("a", 1..=20);
        let [stalled, waits] = [(); 2].map(|()| bench.come_back("topic=a", 5));
        bench.shard.ring_mut().stall(stalled, true);
        let (number, ..) = bench.asked().expect("an ask");
        bench.answer(number, "a", &[6], 6);
        assert_eq!(bench.asked(), None);
        bench.turns(BACKFILL_SLOW_MS_MAX + 1_000);
        assert!(bench.asked().is_some(), "{slow}: the other one has its turn");
        bench.shard.ring_mut().stall(stalled, false);
        let heard = bench.heard(stalled);
        assert_eq!(heard.get(1).map(String::as_str), words, "{slow}: {heard:?}");
        assert!(bench.heard(waits).is_empty());
    }
}

#[test]
fn a_rate_is_kept_and_a_draining_shard_asks_no_more() {
    let limits = Limits { backfill_bytes_per_second: 1 << 20, ..Limits::default() };
    let mut bench = Bench::new(limits, SlowPolicy::Close);
    bench.publish("a", 1..=20);
    let slots: Vec<Slot> = (0..40).map(|_| bench.come_back("topic=a", 5)).collect();
    let mut bytes = 0;
    for _ in 0..40 {
        while let Some((number, ..)) = bench.asked() {
            bytes += STRETCH_BYTES_MAX;
            let data = vec![b'x'; STRETCH_BYTES_MAX].into();
            let stretch = Stretch { bytes: data, frames: 1, to: 6, lost: Vec::new() };
            bench.outbox.tell_past(number, PastAnswer::Stretch(stretch));
        }
        bench.turns(25);
        slots.iter().for_each(|slot| drop(bench.shard.ring_mut().peer_takes(*slot)));
    }
    let second = 1 << 20;
    assert!((second..2 * second).contains(&bytes), "{bytes} in a second");
    let (drain, _said) = Drain::new(bench.now.plus(std::time::Duration::from_secs(10)));
    while bench.asked().is_some() {}
    bench.say(Message::Drain(drain));
    bench.turns(2_000);
    assert_eq!((bench.asked(), bench.counts().1), (None, 0), "all were hung up on, and resume elsewhere");
}

#[test]
fn where_last_and_since_begin_is_asked_once_and_without_an_answer_the_window_counts() {
    let mut bench = Bench::usual();
    let last = bench.subscribe("topic=a&last=10");
    assert!(bench.heard(last).is_empty());
    let (number, ask) = bench.outbox.past().take().expect("a search");
    let PastAsk::Last(topics, events) = ask else { panic!("{ask:?}") };
    assert_eq!((topics[0].at, events), (16, vec![6]), "four are here");
    bench.tell(number, PastAnswer::Begins(vec![10]));
    let (number, after, until) = bench.asked().expect("an ask");
    assert_eq!((after, until), (10, 16));
    bench.answer(number, "a", &[11, 12, 13, 14, 15, 16], 16);
    assert_eq!(bench.heard(last), numbers(11..=20));
    let few = bench.subscribe("topic=a&last=3");
    assert_eq!(bench.heard(few), numbers(18..=20), "nothing is asked");
    let since = bench.subscribe("topic=a&since=1h");
    let (number, _) = bench.outbox.past().take().expect("a search");
    bench.tell(number, PastAnswer::Away);
    assert_eq!(bench.heard(since), numbers(17..=20), "as without a source");
    let late = bench.subscribe("topic=a&since=1h");
    bench.turns(2 * SEARCH_MS_MAX);
    assert_eq!(bench.heard(late), numbers(17..=20));
    assert_eq!(bench.counts(), (1, 0, 0));
}

#[test]
fn subscribers_of_the_newest_events_and_of_windows_alone_ask_for_nothing() {
    let mut bench = Bench::usual();
    let latest = bench.subscribe(&format!("topic=a&slow=latest&after={}", id(5)));
    assert_eq!(bench.heard(latest)[0], "gap");
    let here = bench.come_back("topic=a", 16);
    assert_eq!(bench.heard(here), numbers(17..=20));
    assert_eq!(bench.asked(), None);
    assert_eq!(std::mem::size_of::<crate::shard::connections::Connection>(), 128, "nobody pays for it");
}

#[test]
fn clients_that_ask_and_leave_fill_no_queue_and_use_up_no_rate() {
    let mut bench = Bench::usual();
    let leave = |bench: &mut Bench| {
        let slot = bench.come_back("topic=a", 5);
        bench.shard.ring_mut().peer_resets(slot);
        bench.turns(10);
    };
    for _ in 0..ASKS_UNANSWERED_MAX + 10 {
        leave(&mut bench);
    }
    let asked: Vec<Asked> = std::iter::from_fn(|| bench.asked()).collect();
    assert!(asked.len() <= ASKS_UNANSWERED_MAX, "{} asks", asked.len());
    asked.iter().for_each(|asked| bench.outbox.tell_past(asked.0, PastAnswer::Away));
    bench.turns(10);
    let back = bench.come_back("topic=a", 5);
    let (number, ..) = bench.asked().expect("what nobody waited for has cost nothing");
    bench.answer(number, "a", &[16], 16);
    assert_eq!(bench.heard(back), numbers(16..=20));
}

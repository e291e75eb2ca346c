//! What histories hold under rules, against a model that recomputes them from the log.
//!
//! Two shards get the same events under rules made by dice. One of them has subscribers that do not
//! read, so that it keeps more than it promises. A client that comes then asks for the last events
//! of a topic, or for those of a time, and gets on both shards what the model says.

use fanwave::config::Rules;
use fanwave::config::rules::{History, KEY, RuleText};
use toml::de::DeTable;

use super::*;

/// One event of the log.
struct Logged {
    topic: usize,
    sequence: u64,
    intake: Stamp,
    weight: usize,
}

struct Node {
    outbox: Outbox,
    shard: Shard<Wire>,
}

impl Node {
    fn turns(&mut self, now: Stamp) {
        for _ in 0..12 {
            self.shard.turn(now).expect("a turn does not fail");
        }
    }

    /// The sequences that a subscriber with this query gets at once.
    fn begun(&mut self, query: &str, now: Stamp) -> Vec<u64> {
        let slot = self.shard.ring_mut().connect().expect("a free slot");
        let head = format!("GET /sse?{query} HTTP/1.1\r\nHost: test\r\n\r\n");
        self.shard.ring_mut().peer_sends(slot, head.as_bytes());
        self.turns(now);
        let bytes = self.shard.ring_mut().peer_takes(slot);
        let heard = Peer::new(Protocol::Sse, Vec::new(), None, 0).hear(&bytes);
        self.shard.ring_mut().peer_resets(slot);
        self.turns(now);
        let sequence = |heard: &Heard| match heard {
            Heard::Event(sequence) => Some(*sequence),
            Heard::Opened => None,
            other => panic!("{query}: {other:?}"),
        };
        heard.iter().filter_map(sequence).collect()
    }
}

/// The rules as the file would say them, and the limits beside them.
fn some_rules(dice: &mut Dice, limits: &Limits) -> (String, Rules) {
    let mut text = String::new();
    for pattern in ["a", "*", "d/*"] {
        if dice.chance(1, 3) {
            continue;
        }
        text += &format!("[[rule]]\nmatch = \"{pattern}\"\n");
        if dice.chance(1, 2) {
            text += &format!("history.events = {}\n", [0, 1, 2, 5, 40][dice.roll(5) as usize]);
        }
        if dice.chance(1, 2) {
            text += &format!("history.bytes = {}\n", [20_000, 30_000, 60_000][dice.roll(3) as usize]);
        }
        if dice.chance(1, 2) {
            text += &format!("history.age = \"{}s\"\n", [1, 2, 30][dice.roll(3) as usize]);
        }
    }
    let file = DeTable::parse(&text).expect("TOML");
    let value = file.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).map(|(_, value)| value);
    let texts = value.map_or(Vec::new(), |value| RuleText::read(value, &text).expect("rules"));
    let rules = Rules::new(&texts, limits).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    (text, rules)
}

/// The history of a topic: the longest end of its log within the bounds.
fn model(log: &[Logged], topic: usize, history: History, now: Stamp) -> Vec<&Logged> {
    let mut kept = Vec::new();
    let mut bytes = 0;
    for event in log.iter().rev().filter(|event| event.topic == topic) {
        bytes += event.weight;
        let is_old = now.ns_since(event.intake) > history.age_ms * 1_000_000;
        if kept.len() == history.events || bytes > history.bytes || is_old {
            break;
        }
        kept.push(event);
    }
    kept.reverse();
    kept
}

fn run_rules(seed: u64) {
    let mut dice = Dice::new(seed);
    let limits = Limits { window_events_max: 16, ..Limits::default() };
    let (text, rules) = some_rules(&mut dice, &limits);
    let config = Arc::new(Config { limits: limits.clone(), rules, ..Config::default() });
    let mut now = Stamp(100_000_000_000);
    let (demand, memory) = (Arc::new(Demand::default()), Memory::new(&limits));
    let mut nodes = [2, 5].map(|seed| {
        let (outbox, shard) = build(config.clone(), Weather::Fair, seed, now, demand.clone(), memory.clone());
        Node { outbox, shard }
    });
    let slot = nodes[1].shard.ring_mut().connect().expect("a free slot");
    let all = support::peer::request(Protocol::WebSocket, &TOPICS, None);
    nodes[1].shard.ring_mut().peer_sends(slot, all.as_bytes());
    nodes[1].turns(now);
    nodes[1].shard.ring_mut().stall(slot, true);
    let mut log: Vec<Logged> = Vec::new();
    for step in 0..60 {
        let count = 1 + dice.roll(6);
        let events = (0..count).map(|_| {
            let (topic, sequence) = (dice.roll(TOPICS.len() as u64) as usize, log.len() as u64 + 1);
            let padding = "x".repeat([0, 10, 5_000][dice.roll(3) as usize]);
            let event = Event {
                topic: Topic::new(TOPICS[topic]).expect("legal"),
                data: Data::text(Bytes::from(format!("{sequence} {padding}"))).expect("UTF-8"),
                name: None,
                id: None,
                retry_ms: None,
                key: None,
            };
            log.push(Logged { topic, sequence, intake: now, weight: event.weight() });
            Arc::new(Encoded::new(event, EPOCH, sequence, now))
        });
        let batch = Arc::new(EncodedBatch { events: events.collect() });
        demand.announce(log.len() as u64);
        for node in &mut nodes {
            node.outbox.try_send(Message::Batch(batch.clone())).expect("room");
            node.turns(now);
        }
        // Times that are whole ticks: what is too old has gone by then.
        now = Stamp(now.0 + TICK_MS * 1_000_000 * dice.roll(3));
        for node in &mut nodes {
            node.turns(now);
        }
        let topic = dice.roll(TOPICS.len() as u64) as usize;
        let usual = History::of(&limits);
        let history = config.rules.of(TOPICS[topic]).map_or(usual, |rule| rule.history);
        let held = model(&log, topic, history, now);
        let (last, since) = (dice.roll(8), 1 + dice.roll(4));
        let some = |events: &[&Logged]| events.iter().map(|event| event.sequence).collect::<Vec<_>>();
        let recent: Vec<&Logged> = held
            .iter()
            .copied()
            .filter(|event| now.ns_since(event.intake) <= since * 1_000_000_000)
            .collect();
        for (query, expected) in [
            ("last=100000".to_string(), some(&held)),
            (format!("last={last}"), some(&held[held.len().saturating_sub(last as usize)..])),
            (format!("since={since}s"), some(&recent)),
        ] {
            let query = format!("topic={}&{query}", TOPICS[topic]);
            for (shard, node) in nodes.iter_mut().enumerate() {
                let begun = node.begun(&query, now);
                assert_eq!(begun, expected, "step {step}, shard {shard}, {query}:\n{text}");
            }
        }
    }
    assert!(nodes[1].shard.excess().0 > 0, "it keeps what its subscriber lacks");
}

#[test]
fn histories_are_as_their_rules_say_on_all_shards() {
    for seed in seeds(12) {
        let outcome = std::panic::catch_unwind(|| run_rules(seed));
        if let Err(panic) = outcome {
            eprintln!("FANWAVE_SIM_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

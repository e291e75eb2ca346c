//! What newcomers are greeted with, and what those get who want the latest, against a naive model.
//!
//! Three shards get the same events, keys and removals of topics, each at its own pace, under rules
//! made by dice: one remembers nothing, one by topic, one by key. All values together have little
//! room. Subscribers come to topics and patterns, early and late, read or stop reading, over
//! sockets that take sends in part.
//!
//! Expectation: a newcomer to a shard gets the values that the model has of its topics, in order,
//! and then every event that came after; one with `slow=latest` has at rest the newest event of
//! each topic or key that came after. All shards end with the same values, and the memory of all
//! events is what those weigh that live in a history or as a value.

use fanwave::config::Rules;
use fanwave::config::limits::RETAINED_VALUE_BYTES;
use fanwave::config::rules::{Conflate, KEY, RuleText};
use fanwave::event::Key;
use toml::de::DeTable;

use super::*;

const KEYS: [Option<&str>; 4] = [None, Some("x"), Some("y"), Some("z")];

/// An event, or a removal.
struct Said {
    topic: usize,
    key: Option<&'static str>,
    /// `None` for a removal.
    event: Option<Arc<Encoded>>,
}

/// What a shard should have: values by sequence, each with topic and key.
#[derive(Default)]
struct Model {
    values: Vec<(u64, usize, Option<&'static str>, usize)>,
    given_up: u64,
}

/// A subscriber and what it should get.
struct Guest {
    peer: Peer,
    is_latest: bool,
    /// The values that it should be greeted with, and where its news begin.
    values: Vec<u64>,
    from: u64,
    heard: Vec<u64>,
}

struct Node {
    outbox: Outbox,
    shard: Shard<Wire>,
    model: Model,
    /// How many of all that was said it has taken.
    taken: usize,
    guests: Vec<Option<Guest>>,
}

struct House {
    dice: Dice,
    rules: Rules,
    text: String,
    limits: Limits,
    memory: Arc<Memory>,
    demand: Arc<Demand>,
    accounts: TopicTable,
    said: Vec<Said>,
    nodes: Vec<Node>,
    now: Stamp,
    greeted: usize,
}

fn conflate_of(rules: &Rules, topic: usize) -> Conflate {
    rules.of(TOPICS[topic]).map_or(Conflate::Topic, |rule| rule.conflate)
}

impl Model {
    fn take(&mut self, sequence: u64, said: &Said, rules: &Rules, most: usize) {
        let Some(event) = &said.event else {
            self.values.retain(|value| value.1 != said.topic);
            return;
        };
        if !rules.of(TOPICS[said.topic]).is_some_and(|rule| rule.retain) {
            return;
        }
        let key = said.key.filter(|_| conflate_of(rules, said.topic) == Conflate::Key);
        self.values.retain(|value| (value.1, value.2) != (said.topic, key));
        self.values.push((sequence, said.topic, key, event.memory() + RETAINED_VALUE_BYTES));
        while self.values.iter().map(|value| value.3).sum::<usize>() > most {
            self.values.remove(0);
            self.given_up += 1;
        }
    }

    fn of(&self, topics: &[usize]) -> Vec<u64> {
        let values = self.values.iter().filter(|value| topics.contains(&value.1));
        values.map(|value| value.0).collect()
    }
}

fn some_rules(dice: &mut Dice, limits: &Limits) -> (String, Rules) {
    let mut text = String::new();
    for pattern in ["a", "d/*", "*"] {
        text += &format!("[[rule]]\nmatch = \"{pattern}\"\nhistory.bytes = 9300\n");
        text += &format!("retain = {}\n", dice.chance(3, 4));
        text += ["", "conflate = \"topic\"\n", "conflate = \"key\"\n"][dice.roll(3) as usize];
        text += ["", "history.events = 0\n", "history.events = 3\n"][dice.roll(3) as usize];
        text += ["", "history.age = \"1s\"\n"][dice.roll(2) as usize];
    }
    let file = DeTable::parse(&text).expect("TOML");
    let (_, value) = file.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).expect("rules");
    let texts = RuleText::read(value, &text).expect("rules");
    let rules = Rules::new(&texts, limits).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    (text, rules)
}

impl House {
    fn new(seed: u64) -> House {
        let mut dice = Dice::new(seed);
        let mut limits = Limits {
            message_bytes_max: 1_000,
            window_events_max: 16,
            window_bytes_max: 9_300,
            send_bytes_max: [4 << 10, 256 << 10][dice.roll(2) as usize],
            zero_copy_bytes_min: 0,
            heartbeat_ms: 1_000_000,
            stall_ms_max: 1_000_000,
            ..Limits::default()
        };
        // Room for some seven small values, or for all.
        let values = limits.event_memory_max() + RETAINED_VALUE_BYTES;
        limits.window_bytes_total_max = 16 * values * [1, 20][dice.roll(2) as usize];
        limits.check().expect("legal limits");
        let (text, rules) = some_rules(&mut dice, &limits);
        let config = Arc::new(Config { rules: rules.clone(), limits: limits.clone(), ..Config::default() });
        let now = Stamp(100_000_000_000);
        let (demand, memory) = (Arc::new(Demand::default()), Memory::new(&limits));
        let nodes = (0..3).map(|number| {
            let weather = if number == 0 || dice.chance(1, 2) { Weather::Fair } else { Weather::Rough };
            let seed = seed ^ (number << 8);
            let (outbox, shard) = build(config.clone(), weather, seed, now, demand.clone(), memory.clone());
            let guests = (0..SOCKETS).map(|_| None).collect();
            Node { outbox, shard, model: Model::default(), taken: 0, guests }
        });
        let nodes = nodes.collect();
        House {
            rules,
            text,
            accounts: TopicTable::new(limits.topics_max, memory.clone()),
            limits,
            memory,
            demand,
            said: Vec::new(),
            nodes,
            now,
            dice,
            greeted: 0,
        }
    }

    /// Somebody publishes or removes a topic.
    fn say(&mut self) {
        let topic = self.dice.roll(TOPICS.len() as u64) as usize;
        let sequence = self.said.len() as u64 + 1;
        let name = Topic::new(TOPICS[topic]).expect("legal");
        if self.dice.chance(1, 16) {
            self.demand.announce(sequence);
            self.said.push(Said { topic, key: None, event: None });
            return;
        }
        let key = KEYS[self.dice.roll(4) as usize];
        let padding = "x".repeat([0, 10, 900][self.dice.roll(3) as usize]);
        let event = Event {
            topic: name,
            data: Data::text(Bytes::from(format!("{sequence} {padding}"))).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
            key: key.map(|key| Key::new(key).expect("a key")),
        };
        if !self.accounts.has_room(&event.topic, Encoded::memory_of(&event)) {
            return;
        }
        self.demand.announce(sequence);
        let recorded = self.accounts.record(&event, sequence, event.published_bytes());
        let event = Encoded::new(event, EPOCH, sequence, self.now).counted_in(&recorded.account);
        self.said.push(Said { topic, key, event: Some(Arc::new(event)) });
    }

    /// A shard takes what comes next, if there is something.
    fn take(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let Some(said) = self.said.get(node.taken) else { return };
        let sequence = node.taken as u64 + 1;
        let message = match &said.event {
            Some(event) => Message::Batch(Arc::new(EncodedBatch { events: [event.clone()].into() })),
            None => {
                let topic = Topic::new(TOPICS[said.topic]).expect("legal");
                Message::Removal(Arc::new(Removal { topic, sequence }))
            }
        };
        if node.outbox.try_send(message).is_ok() {
            node.taken += 1;
            node.model.take(sequence, said, &self.rules, self.limits.retained_memory_max());
        }
        self.turn(at);
    }

    fn turn(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.shard.turn(self.now).expect("a turn does not fail");
        for slot in 0..SOCKETS {
            let bytes = node.shard.ring_mut().peer_takes(slot as Slot);
            let Some(guest) = &mut node.guests[slot] else { continue };
            for heard in guest.peer.hear(&bytes) {
                match heard {
                    Heard::Opened => guest.peer.opened_at = Some(0),
                    Heard::Event(sequence) => guest.heard.push(sequence),
                    other => panic!("{other:?}: {:?}", guest.peer),
                }
            }
            guest.peer.ids.clear();
            // Sockets fail, and who reads nothing while memory is short is cut.
            if node.shard.ring_mut().ended(slot as Slot) {
                node.guests[slot] = None;
                node.shard.ring_mut().peer_closes(slot as Slot);
            }
        }
    }

    fn turns(&mut self, at: usize) {
        for _ in 0..40 {
            self.turn(at);
        }
    }

    /// A newcomer, who is let in at once; it may stop reading as soon as it has read the head.
    fn come(&mut self, at: usize) {
        // All that was sent is taken, so that it is known where the newcomer begins.
        self.turns(at);
        let names = match self.dice.roll(3) {
            0 => vec![PATTERNS[self.dice.roll(PATTERNS.len() as u64) as usize]],
            1 => vec![TOPICS[self.dice.roll(TOPICS.len() as u64) as usize]],
            _ => vec!["d/**", "*", TOPICS[self.dice.roll(TOPICS.len() as u64) as usize]],
        };
        let protocol = if self.dice.chance(1, 2) { Protocol::Sse } else { Protocol::WebSocket };
        let is_latest = self.dice.chance(1, 3);
        let (reads, is_stranger) = (self.dice.chance(1, 2), self.dice.chance(1, 4));
        let node = &mut self.nodes[at];
        let Some(slot) = node.shard.ring_mut().connect() else { return };
        let mut head = support::peer::request(protocol, &names, None);
        if is_latest {
            head = head.replacen(" HTTP/", "&slow=latest HTTP/", 1);
        }
        let topics = covered(&names);
        let guest = Guest {
            peer: Peer::new(protocol, topics.clone(), None, 0),
            is_latest,
            values: node.model.of(&topics),
            from: node.taken as u64,
            heard: Vec::new(),
        };
        node.guests[slot as usize] = Some(guest);
        node.shard.ring_mut().peer_sends(slot, head.as_bytes());
        let is_open = |house: &House| {
            let guest = house.nodes[at].guests[slot as usize].as_ref();
            guest.is_none_or(|guest| guest.peer.opened_at.is_some())
        };
        for _ in 0..100 {
            if !is_open(self) {
                self.turn(at);
            }
        }
        assert!(is_open(self), "a newcomer is let in or cut");
        if !reads {
            // Perhaps some of its values have come with the head.
            self.nodes[at].shard.ring_mut().stall(slot, true);
            return;
        }
        self.turns(at);
        let Some(guest) = &self.nodes[at].guests[slot as usize] else { return };
        assert_eq!(guest.heard, guest.values, "shard {at}, {names:?}:\n{}", self.text);
        self.greeted += guest.values.len();
        if is_stranger {
            self.nodes[at].shard.ring_mut().peer_resets(slot);
            self.nodes[at].guests[slot as usize] = None;
            self.turns(at);
        }
    }

    /// Checks a subscriber at rest.
    fn check(&self, guest: &Guest) {
        let Guest { peer, heard, .. } = guest;
        assert!(heard.is_sorted_by(|one, next| one < next), "in order, and none twice: {heard:?}");
        let said = |sequence: &u64| &self.said[*sequence as usize - 1];
        let is_theirs = |sequence: &u64| peer.topics.contains(&said(sequence).topic);
        assert!(heard.iter().all(is_theirs), "{heard:?}: {peer:?}");
        let greeted: Vec<u64> = heard.iter().copied().filter(|sequence| *sequence <= guest.from).collect();
        // What is missing of its greeting has been replaced, removed or given up since.
        let mut kept = Model::default();
        let mut gone = Vec::new();
        for (at, said) in self.said.iter().enumerate() {
            let before = kept.of(&peer.topics);
            kept.take(at as u64 + 1, said, &self.rules, self.limits.retained_memory_max());
            let after = kept.of(&peer.topics);
            if at as u64 >= guest.from {
                gone.extend(before.into_iter().filter(|sequence| !after.contains(sequence)));
            }
        }
        let missing: Vec<&u64> = guest.values.iter().filter(|value| !greeted.contains(value)).collect();
        assert!(missing.iter().all(|value| gone.contains(value)), "{missing:?}: {peer:?}\n{}", self.text);
        assert!(greeted.iter().all(|value| guest.values.contains(value)), "{greeted:?}: {peer:?}");
        let mut news: Vec<u64> = (guest.from + 1..=self.said.len() as u64)
            .filter(|sequence| is_theirs(sequence) && said(sequence).event.is_some())
            .collect();
        let got: Vec<u64> = heard.iter().copied().filter(|sequence| *sequence > guest.from).collect();
        if guest.is_latest {
            // The newest of each topic or key, and nothing that came not at all.
            assert!(got.iter().all(|sequence| news.contains(sequence)), "{got:?}");
            let about = |sequence: &u64| {
                let Said { topic, key, .. } = said(sequence);
                (*topic, key.filter(|_| conflate_of(&self.rules, *topic) == Conflate::Key))
            };
            let all = news.clone();
            news.retain(|one| !all.iter().any(|later| later > one && about(later) == about(one)));
            let lacks: Vec<&u64> = news.iter().filter(|sequence| !got.contains(sequence)).collect();
            assert!(lacks.is_empty(), "lacks {lacks:?} of {got:?}: {peer:?}\n{}", self.text);
        } else {
            assert_eq!(got, news, "{peer:?}\n{}", self.text);
        }
    }

    /// Everybody reads and takes all; then all shards are alike, and memory is what lives.
    fn rest(&mut self) -> u64 {
        let mut given_up = 0;
        for at in 0..self.nodes.len() {
            while self.nodes[at].taken < self.said.len() {
                self.take(at);
            }
            for slot in 0..SOCKETS {
                self.nodes[at].shard.ring_mut().stall(slot as Slot, false);
            }
            self.turns(at);
            self.turns(at);
        }
        // Beyond the age of what ages, and past what is remembered for the next run.
        for _ in 0..8 {
            self.now = Stamp(self.now.0 + TICK_MS * 1_000_000);
            (0..self.nodes.len()).for_each(|at| self.turns(at));
        }
        for at in 0..self.nodes.len() {
            for slot in 0..SOCKETS {
                let Some(guest) = self.nodes[at].guests[slot].take() else { continue };
                assert!(guest.peer.opened_at.is_some(), "{:?}", guest.peer);
                self.check(&guest);
                // Until it has left, the newest events may be held for it.
                self.nodes[at].shard.ring_mut().peer_resets(slot as Slot);
            }
            self.turns(at);
        }
        let mut living = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            let values: Vec<u64> = node.shard.retained_values().map(|event| event.sequence).collect();
            let expected: Vec<u64> = node.model.values.iter().map(|value| value.0).collect();
            assert_eq!(values, expected, "shard {at}:\n{}", self.text);
            assert_eq!(node.shard.excess(), (0, 0), "nobody lacks anything");
            given_up = node.model.given_up;
            living.push(node.shard.living_events());
        }
        assert!(living.iter().all(|events| *events == living[0]), "all shards hold the same");
        self.said.iter_mut().for_each(|said| {
            let is_alive = |event: &Arc<Encoded>| living[0].contains(&(event.sequence, event.memory()));
            said.event = said.event.take().filter(is_alive);
        });
        let held: usize = living[0].iter().map(|(_, memory)| memory).sum();
        assert_eq!(self.memory.held(), held, "memory is what lives:\n{}", self.text);
        given_up
    }
}

fn run_retained(seed: u64) -> (usize, u64) {
    let mut house = House::new(seed);
    for _ in 0..400 {
        let at = house.dice.roll(3) as usize;
        match house.dice.roll(12) {
            0 => house.come(at),
            1..=4 => house.say(),
            5 => {
                let slot = house.dice.roll(SOCKETS as u64) as Slot;
                let is_stalled = house.dice.chance(1, 2);
                house.nodes[at].shard.ring_mut().stall(slot, is_stalled);
            }
            6 if house.dice.chance(1, 8) => {
                house.now = Stamp(house.now.0 + TICK_MS * 1_000_000);
                (0..3).for_each(|at| house.turn(at));
            }
            _ => house.take(at),
        }
    }
    let given_up = house.rest();
    (house.greeted, given_up)
}

#[test]
fn newcomers_get_the_retained_values_of_the_model_and_latest_its_newest_on_all_shards() {
    let (mut greeted, mut given_up) = (0, 0);
    for seed in seeds(24) {
        match std::panic::catch_unwind(|| run_retained(seed)) {
            Ok((values, gone)) => {
                greeted += values;
                given_up += gone;
            }
            Err(panic) => {
                eprintln!("FANWAVE_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    if seeds(24).count() >= 24 {
        assert!(greeted > 300 && given_up > 60, "{greeted} greeted, {given_up} given up");
    }
}

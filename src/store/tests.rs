//! Promises of the store, over a file system of dice and over a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, channel};

use dice::{Disk, End};

use super::*;
use crate::clock::unix_ms;
use crate::config::Limits;
use crate::config::rules::{KEY, RuleText};
use crate::egress::sim::Dice;
use crate::event::{Data, Epoch, Event, Key, Topic};
use crate::handover::state::{PastKey, State};
use crate::publishing::IdempotencyKey;

mod dice;
mod faults;
mod reader;

const FRESH: Epoch = Epoch(10_000_000_000_000_000_000);
const TOPICS: [&str; 3] = ["a", "b/c", "kept/x"];

fn rules() -> Rules {
    let text = "[[rule]]\nmatch = \"kept/*\"\nretain = true\nconflate = \"key\"\n";
    let file = toml::de::DeTable::parse(text).expect("TOML");
    let (_, value) = file.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).expect("rules");
    Rules::new(&RuleText::read(value, text).expect("rules"), &Limits::default()).expect("valid")
}

fn settings(promise: Promise) -> Settings {
    Settings { promise, bytes_max: 1 << 30, segment_bytes: 1_500, age_ms_max: 600_000, rules: rules() }
}

fn memory_of(event: &Event) -> usize {
    event.weight()
}

fn event(topic: &str, text: &str) -> Event {
    let topic = Topic::new(topic).expect("a topic");
    Event { topic, data: Data::string(text.into()), name: None, id: None, retry_ms: None, key: None }
}

/// Files by name.
type Contents = BTreeMap<String, Vec<u8>>;
/// Topic and text by sequence.
type Texts = BTreeMap<u64, (String, String)>;

/// A store, and what it tells.
struct Bench {
    store: Store<u64>,
    news: Receiver<News<u64>>,
    past: StorePast,
    next: u64,
}

fn try_open(disk: &Disk, settings: Settings) -> Result<Bench, StoreError> {
    let (tell, news) = channel();
    let tell = move |said| _ = tell.send(said);
    let limits = Limits::default();
    let (store, past) = Store::open(disk.clone(), settings, &limits, memory_of, FRESH, tell)?;
    let next = past.state.sequence + 1;
    Ok(Bench { store, news, past, next })
}

impl Bench {
    fn submit(&mut self, said: Said, waits: bool) -> u64 {
        let sequence = self.next;
        let entry = Entry { sequence, unix_ms: unix_ms(), said, token: waits.then_some(sequence) };
        assert!(self.store.submit(entry), "room");
        self.next += 1;
        sequence
    }

    /// Waits until so many have an answer. Gives those that the disk has.
    fn answers(&self, mut many: usize) -> Vec<u64> {
        let mut done = Vec::new();
        while many > 0 {
            match self.news.recv().expect("the store lives") {
                News::Done(entries) => {
                    many -= entries.len();
                    done.extend(entries.iter().map(|entry| entry.sequence));
                }
                News::Failed(entries, _) => many -= entries.len(),
                News::Degraded(_) => {}
            }
        }
        done
    }
}

/// What is there of each sequence: topic and text.
fn there(state: &State) -> Texts {
    let text = |event: &Event| String::from_utf8(event.data.bytes().to_vec()).expect("UTF-8");
    state
        .events
        .iter()
        .map(|past| (past.sequence, (past.event.topic.to_string(), text(&past.event))))
        .collect()
}

/// True if a client that lacks this event of a topic is told of a gap.
fn is_told(state: &State, topic: &str, sequence: u64) -> bool {
    let of_topic = state.topics.iter().find(|known| known.name.as_str() == topic);
    state.hole >= sequence || of_topic.map_or(state.dropped, |known| known.evicted) >= sequence
}

/// One life after the other, each of which ends anywhere.
fn lives(seed: u64, promise: Promise) {
    let mut dice = Dice::new(seed);
    let mut disk = Disk::default();
    // What was acknowledged, what was said, and the newest sequence that anybody has heard of.
    let mut acknowledged = Texts::new();
    let mut said = Texts::new();
    // What was acknowledged and is not there any more.
    let mut lost = Texts::new();
    let mut newest = 0;
    let mut may_lack = false;
    for _ in 0..6 {
        let mut bench = try_open(&disk, settings(promise)).expect("whatever ends a process, it opens");
        let state = &bench.past.state;
        assert_eq!(state.epoch, FRESH, "ids go on");
        assert!(state.sequence >= newest, "no sequence is given twice");
        let found = there(state);
        for (sequence, what) in &found {
            assert_eq!(said.get(sequence), Some(what), "nothing is there that was not said");
        }
        for (sequence, what) in &acknowledged {
            let is_there = found.get(sequence) == Some(what);
            let told = is_told(state, &what.0, *sequence);
            assert!(is_there || told, "{sequence} {what:?} is lost without a word: {state:?}");
            assert!(
                is_there || promise != Promise::Always,
                "{sequence} was on the disk before it was acknowledged"
            );
        }
        assert!(promise != Promise::Always || state.hole == 0, "nothing is missing, nobody is told so");
        assert!(
            state.hole > 0 || !may_lack || acknowledged.keys().all(|sequence| found.contains_key(sequence))
        );
        // What is not there now never will be, and that is told in all lives to come.
        lost.extend(acknowledged.extract_if(.., |sequence, _| !found.contains_key(sequence)));
        for (sequence, what) in &lost {
            assert!(is_told(state, &what.0, *sequence), "{sequence} {what:?} is told once, and then not");
        }
        if dice.chance(1, 2) {
            disk.fail_one_of(4 + dice.roll(20), seed);
        }
        let mut waiting = 0;
        for number in 0..dice.roll(60) {
            let topic = TOPICS[dice.roll(2) as usize];
            let text = format!("{number} {}", "x".repeat(dice.roll(90) as usize));
            let waits = promise == Promise::Always;
            let sequence = bench.submit(Said::Event(event(topic, &text), None), waits);
            said.insert(sequence, (topic.into(), text.clone()));
            if waits {
                waiting += 1;
            } else {
                newest = sequence;
                acknowledged.insert(sequence, (topic.into(), text));
            }
            if waiting > 0 && dice.chance(1, 5) {
                for sequence in bench.answers(std::mem::take(&mut waiting)) {
                    newest = newest.max(sequence);
                    acknowledged.insert(sequence, said[&sequence].clone());
                }
            }
        }
        disk.fail_one_of(0, seed);
        let ends_well = dice.chance(1, 3);
        if ends_well {
            let left = bench.answers(waiting);
            newest = newest.max(left.iter().copied().max().unwrap_or(0));
            acknowledged.extend(left.iter().map(|sequence| (*sequence, said[sequence].clone())));
            drop(bench);
        } else {
            let end = if dice.chance(1, 2) { End::Killed } else { End::PowerFailure };
            let after = disk.after(end, &mut dice);
            // What the former process still does, it does to another disk.
            disk = after;
        }
        may_lack = !ends_well;
    }
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// As many seeds as `FANWAVE_DICE_SEEDS` says; else as many as there is time for, which
/// `FANWAVE_DICE_MS` says. `FANWAVE_SIM_SEED` names one.
fn seeds() -> Box<dyn Iterator<Item = u64>> {
    let (one, many) = (number("FANWAVE_SIM_SEED"), number("FANWAVE_DICE_SEEDS"));
    if one.or(many).is_some() {
        return Box::new(one.map_or(0..many.unwrap_or(0), |seed| seed..seed + 1));
    }
    let patience = std::time::Duration::from_millis(number("FANWAVE_DICE_MS").unwrap_or(1_500));
    let began = std::time::Instant::now();
    Box::new((0..).take_while(move |seed| *seed < 20 || began.elapsed() < patience))
}

#[test]
fn dice_what_is_acknowledged_is_read_back_whatever_ends_the_process_and_whatever_the_disk_refuses() {
    for seed in seeds() {
        let outcome = std::panic::catch_unwind(|| lives(seed, Promise::Always));
        assert!(outcome.is_ok(), "FANWAVE_SIM_SEED={seed}");
    }
}

#[test]
fn dice_what_may_be_lost_under_a_weaker_promise_is_told() {
    for seed in seeds() {
        for promise in [Promise::Interval, Promise::Never] {
            let outcome = std::panic::catch_unwind(|| lives(seed, promise));
            assert!(outcome.is_ok(), "FANWAVE_SIM_SEED={seed}, {promise:?}");
        }
    }
}

/// Some segments, as a process that was killed leaves them, and their events.
fn some_segments() -> (Contents, Texts) {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Always)).expect("a new one");
    let mut said = BTreeMap::new();
    for number in 0..24 {
        let (topic, text) = (TOPICS[number % 2], format!("{number} {}", "x".repeat(60)));
        let sequence = bench.submit(Said::Event(event(topic, &text), None), true);
        said.insert(sequence, (topic.to_string(), text));
        assert_eq!(bench.answers(1), [sequence]);
    }
    let left = disk.after(End::Killed, &mut Dice::new(1));
    assert!(left.contents().len() >= 4, "several segments: {:?}", left.contents().keys());
    (left.contents(), said)
}

/// Opens it, and looks that nothing of `said` is missing without a word.
fn check(contents: &Contents, said: &Texts, what: &str) -> bool {
    let Ok(bench) = try_open(&Disk::with(contents), settings(Promise::Always)) else { return false };
    let state = &bench.past.state;
    let found = there(state);
    for (sequence, event) in said {
        let is_there = found.get(sequence) == Some(event);
        assert!(is_there || is_told(state, &event.0, *sequence), "{what}: {sequence} is lost without a word");
    }
    let strange = found.iter().find(|(sequence, event)| said.get(sequence) != Some(event));
    assert_eq!(strange, None, "{what}: another event");
    assert!(state.sequence >= 24, "{what}: a sequence would be given twice");
    true
}

#[test]
fn a_file_that_is_cut_off_at_any_byte_opens_right_or_is_told() {
    let (contents, said) = some_segments();
    let mut opened = 0;
    for (name, bytes) in &contents {
        for length in 0..bytes.len() {
            let mut cut = contents.clone();
            cut.insert(name.clone(), bytes[..length].to_vec());
            opened += usize::from(check(&cut, &said, &format!("{name} cut to {length}")));
        }
    }
    assert!(opened > 500, "{opened} opened");
}

#[test]
fn a_bit_that_flips_anywhere_is_told_or_does_no_harm() {
    let (contents, said) = some_segments();
    let mut dice = Dice::new(1);
    let (mut opened, mut refused) = (0, 0);
    for (name, bytes) in &contents {
        for at in 0..bytes.len() {
            let mut changed = contents.clone();
            changed.get_mut(name).expect("it is there")[at] ^= 1 << dice.roll(8);
            match check(&changed, &said, &format!("{name} changed at {at}")) {
                true => opened += 1,
                false => refused += 1,
            }
        }
    }
    assert!(opened > 20 && refused > 500, "{opened} opened, {refused} refused");
}

#[test]
fn a_segment_that_is_missing_is_told() {
    let (contents, said) = some_segments();
    for name in contents.keys().filter(|name| name.ends_with(".log")) {
        let mut less = contents.clone();
        less.remove(name);
        assert!(check(&less, &said, &format!("without {name}")), "it opens without {name}");
    }
}

#[test]
fn a_full_disk_refuses_and_loses_nothing_and_goes_on_when_there_is_room() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Always)).expect("a new one");
    let first = bench.submit(Said::Event(event("a", "1"), None), true);
    assert_eq!(bench.answers(1), [first]);
    disk.set_room(Some(100));
    bench.submit(Said::Event(event("a", &"x".repeat(500)), None), true);
    let Ok(News::Degraded(Some(why))) = bench.news.recv() else { panic!("it tells that it takes nothing") };
    assert!(why.contains("takes no events"), "{why}");
    let Ok(News::Failed(failed, failure)) = bench.news.recv() else { panic!("the event is refused") };
    assert_eq!((failed.len(), failure.is_unknown), (1, false), "nothing of it is in the log");
    assert!(bench.store.fails());
    disk.set_room(None);
    // It looks by itself.
    let Ok(News::Degraded(None)) = bench.news.recv() else { panic!("it tells that it goes on") };
    let last = bench.submit(Said::Event(event("a", "3"), None), true);
    assert_eq!(bench.answers(1), [last]);
    drop(bench);
    let again = try_open(&disk, settings(Promise::Always)).expect("it opens");
    let texts: Vec<String> = there(&again.past.state).into_values().map(|(_, text)| text).collect();
    assert_eq!((texts, again.past.state.hole), (vec!["1".to_string(), "3".to_string()], 0));
}

#[test]
fn under_a_weaker_promise_what_the_disk_refused_is_written_later() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Never)).expect("a new one");
    disk.set_room(Some(100));
    bench.submit(Said::Event(event("a", &"x".repeat(500)), None), false);
    assert!(matches!(bench.news.recv(), Ok(News::Degraded(Some(_)))));
    disk.set_room(None);
    assert!(matches!(bench.news.recv(), Ok(News::Degraded(None))));
    drop(bench);
    let again = try_open(&disk, settings(Promise::Never)).expect("it opens");
    assert_eq!((again.past.state.events.len(), again.past.state.hole), (1, 0));
}

#[test]
fn removals_keys_and_retained_values_outlive_the_process() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Interval)).expect("a new one");
    let key = IdempotencyKey::new("once").expect("a key");
    bench.submit(Said::Event(event("a", "gone"), None), false);
    bench.submit(Said::Event(event("kept/x", "gone too"), None), false);
    let removal = bench.submit(Said::Removal(Topic::new("a").expect("a topic")), false);
    bench.submit(Said::Removal(Topic::new("kept/x").expect("a topic")), false);
    bench.submit(Said::Event(event("a", "here"), Some(key.clone())), false);
    drop(bench);
    let again = try_open(&disk, settings(Promise::Interval)).expect("it opens");
    let texts: Vec<String> = there(&again.past.state).into_values().map(|(_, text)| text).collect();
    assert_eq!(texts, ["here"]);
    let [known] = again.past.state.keys.as_slice() else { panic!("one key") };
    let said = PastKey::said_by(&event("a", "here"));
    assert_eq!((known.topic.as_str(), &known.key, known.said, known.sequence), ("a", &key, said, 5));
    let topic = again.past.state.topics.iter().find(|topic| topic.name.as_str() == "a").expect("it is known");
    assert_eq!((topic.evicted, topic.sequence, again.past.state.sequence), (removal, 5, 5));
}

#[test]
fn the_oldest_segments_go_first_and_retained_values_stay() {
    let disk = Disk::default();
    let small = || Settings { bytes_max: 6_000, ..settings(Promise::Always) };
    let mut bench = try_open(&disk, small()).expect("a new one");
    let keyed = |key: &str, text: &str| Event { key: Key::new(key).ok(), ..event("kept/x", text) };
    for (key, text) in [("k1", "old"), ("k1", "one"), ("k2", "two")] {
        bench.submit(Said::Event(keyed(key, text), None), true);
    }
    bench.answers(3);
    for number in 0..200 {
        bench.submit(Said::Event(event("a", &format!("{number} {}", "x".repeat(60))), None), true);
        bench.answers(1);
    }
    drop(bench);
    let bytes: usize = disk.contents().values().map(Vec::len).sum();
    assert!(bytes < 9_000, "{bytes} bytes");
    for _ in 0..2 {
        let again = try_open(&disk, small()).expect("it opens");
        let state = &again.past.state;
        let found = there(state);
        let kept: BTreeSet<&str> =
            found.values().filter(|(topic, _)| topic == "kept/x").map(|(_, text)| text.as_str()).collect();
        assert_eq!(kept, BTreeSet::from(["one", "two"]));
        assert_eq!(found.keys().next_back(), Some(&203));
        assert!(found.len() < 120 && is_told(state, "a", 4), "what has gone is told: {}", found.len());
    }
}

/// Else the thread would write them again and again.
#[test]
fn retained_values_beyond_the_bound_do_not_keep_the_store_busy() {
    let disk = Disk::default();
    let tiny = || Settings { bytes_max: 2_000, ..settings(Promise::Always) };
    let mut bench = try_open(&disk, tiny()).expect("a new one");
    for number in 0..60 {
        let key = Key::new(&number.to_string()).ok();
        bench.submit(Said::Event(Event { key, ..event("kept/x", &"x".repeat(60)) }, None), true);
        bench.answers(1);
    }
    drop(bench);
    let again = try_open(&disk, tiny()).expect("it opens");
    assert_eq!(there(&again.past.state).len(), 60);
}

#[test]
fn what_is_too_old_goes() {
    let disk = Disk::default();
    let short = || Settings { age_ms_max: 1_000, ..settings(Promise::Never) };
    let mut bench = try_open(&disk, short()).expect("a new one");
    for number in 0..30 {
        let said = Said::Event(event("a", &format!("{number} {}", "x".repeat(90))), None);
        let entry = Entry { sequence: bench.next, unix_ms: 1_000 + number, said, token: None };
        assert!(bench.store.submit(entry), "room");
        bench.next += 1;
    }
    drop(bench);
    let (mut log, _) = log::Log::open(disk.clone(), short(), FRESH, &mut Nobody).expect("it opens");
    while log.forget(unix_ms()).expect("the disk works") != log::Forgotten::Nothing {}
    let left = disk.contents().keys().filter(|name| name.ends_with(".log")).count();
    assert_eq!(left, 1, "the one that grows");
}

/// Three events a segment, one segment an hour: the oldest goes first, once nothing of it is young
/// enough, and those who still lack it are told.
#[test]
fn a_segment_stays_until_all_of_it_is_older_than_the_age_and_what_has_gone_is_told() {
    const HOUR: u64 = 3_600_000;
    let disk = Disk::default();
    let for_hours = |hours: u64| Settings {
        age_ms_max: hours.saturating_mul(HOUR),
        segment_bytes: 500,
        ..settings(Promise::Never)
    };
    let now = unix_ms();
    let (mut log, _) = log::Log::open(disk.clone(), for_hours(5), FRESH, &mut Nobody).expect("a new one");
    for sequence in 1..=30 {
        let mut bytes = Vec::new();
        let at = now - (30 - sequence) * HOUR / 3 - 1_000;
        record::write_event(&mut bytes, false, sequence, at, &event("a", &"x".repeat(90)), None);
        log.append(&mut bytes, sequence, at).expect("room");
    }
    let segments = log.segments();
    log.close(30).expect("the disk works");
    drop(log);
    let left = |hours: u64| {
        let (mut log, _) =
            log::Log::open(disk.clone(), for_hours(hours), FRESH, &mut Nobody).expect("it opens");
        while log.forget(now).expect("the disk works") != log::Forgotten::Nothing {}
        let mut reader = PastReader::new(files::Files::glass(&disk), Default::default(), 0);
        let stretch = reader.stretch(&|_, _| true, None, (0, 30), 1 << 20).expect("it is readable");
        let first = stretch.events.first().expect("an event").sequence;
        assert_eq!(stretch.floor, first - 1, "what is before the first one is told as gone");
        assert_eq!(stretch.events.last().expect("an event").sequence, 30);
        first
    };
    assert!(segments > 6, "{segments} segments");
    assert_eq!(left(u64::MAX), 1, "of any age");
    let (eight, five) = (left(8), left(5));
    // An event of its age stays, and with it the older ones of its segment.
    assert!((4..=7).contains(&eight), "{eight}");
    assert!((13..=16).contains(&five), "{five}");
    assert_eq!(left(5), five, "nothing more goes meanwhile");
}

struct Nobody;

impl log::Reader for Nobody {
    fn record(&mut self, _: record::Record) {}
    fn broken(&mut self) {}
}

/// A directory of the system's that is gone when the test is over.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("fanwave-store-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }

    fn open(&self) -> Result<(Store<u64>, StorePast), StoreError> {
        let place = || self.0.display().to_string();
        let directory =
            Directory::open(&self.0).expect("a directory").ok_or_else(|| StoreError::Locked(place()))?;
        Store::open(directory, settings(Promise::Always), &Limits::default(), memory_of, FRESH, |_| ())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_directory_has_one_process_and_is_made_if_it_is_missing() {
    let scratch = Scratch::new("lock");
    let (store, past) = scratch.open().expect("a new one");
    assert_eq!((past.state.sequence, past.state.epoch), (0, FRESH));
    let error = scratch.open().expect_err("another one has it").to_string();
    assert!(error.contains("another process uses this directory"), "{error}");
    drop(store);
    scratch.open().expect("it is free");
}

#[test]
fn what_is_no_store_or_of_another_format_is_named() {
    let scratch = Scratch::new("foreign");
    std::fs::create_dir_all(&scratch.0).expect("a directory");
    std::fs::write(scratch.0.join("notes.txt"), "mine").expect("a file");
    let error = scratch.open().expect_err("not ours").to_string();
    assert!(error.contains("\"notes.txt\"") && error.contains("no store of fanwave"), "{error}");
    std::fs::remove_file(scratch.0.join("notes.txt")).expect("it is there");
    drop(scratch.open().expect("an empty one"));
    let format = std::fs::read_to_string(scratch.0.join("format")).expect("it is there");
    std::fs::write(scratch.0.join("format"), format.replace("format 2", "format 99")).expect("ours");
    let error = scratch.open().expect_err("of a later version").to_string();
    assert!(error.contains("of format 99") && error.contains("knows format 2"), "{error}");
    assert!(!error.contains('\n'), "one line: {error}");
}

#[test]
fn a_file_of_somebody_else_is_not_touched_whatever_its_name() {
    let scratch = Scratch::new("format");
    std::fs::create_dir_all(&scratch.0).expect("a directory");
    let file = scratch.0.join("format");
    std::fs::write(&file, "how we write dates").expect("a file");
    let error = scratch.open().expect_err("not ours").to_string();
    assert!(error.contains("\"format\"") && error.contains("no store of fanwave"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).expect("it is there"), "how we write dates");
    for begun in ["", "fanwa", "fanwave store\nformat 2\nepo", "\0\0\0\0"] {
        std::fs::write(&file, begun).expect("ours");
        drop(scratch.open().unwrap_or_else(|error| panic!("{begun:?} was begun by a store: {error}")));
        std::fs::remove_dir_all(&scratch.0).expect("it is there");
        std::fs::create_dir_all(&scratch.0).expect("a directory");
    }
}

#[test]
fn a_file_system_of_its_own_is_an_empty_directory() {
    let scratch = Scratch::new("mount");
    std::fs::create_dir_all(scratch.0.join("lost+found")).expect("a directory");
    drop(scratch.open().expect("an empty one"));
    drop(scratch.open().expect("a store"));
}

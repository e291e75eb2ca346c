//! What a reader gives beside the thread that writes: all that is wanted, in order, across segments,
//! and no more than there is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dice::Disk;
use crate::config::limits::STRETCH_LOOKED_AT_MAX;
use crate::event::{Data, Event, Topic};
use crate::store::files::{Files, Grows};
use crate::store::log::name_of;
use crate::store::progress::Progress;
use crate::store::reader::PastReader;
use crate::store::record::{self, Seal};
use crate::store::segment::{self, Begin};

fn event(sequence: u64) -> Event {
    Event {
        topic: Topic::new(["a", "b", "a", "rare"][if sequence == 41 { 3 } else { sequence as usize % 3 }])
            .expect("a topic"),
        data: Data::string(format!("{sequence}{}", "x".repeat(sequence as usize % 50 * 40))),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    }
}

/// Makes a segment of these events. Returns with which its records are read, and where it ends.
fn segment(disk: &Disk, number: u64, before: u64, sequences: std::ops::Range<u64>) -> (Seal, u64) {
    let begin = Begin { before, reserved: 1 << 20, promise: 1, hole: 0 };
    let (mut file, seal, length) = segment::begin(disk, &name_of(number), begin).expect("room");
    let mut bytes = Vec::new();
    // Written again from a segment that has gone: it has no place here.
    record::write_event(&mut bytes, true, 1, 1, &event(2), None);
    for sequence in sequences {
        record::write_event(&mut bytes, false, sequence, sequence * 10, &event(sequence), None);
    }
    record::seal(&mut bytes, seal.behind(length), length);
    file.append(&bytes).expect("room");
    (seal, length + bytes.len() as u64)
}

fn reader(disk: &Disk, written: u64) -> (PastReader, Arc<Progress>) {
    let progress = Arc::<Progress>::default();
    progress.wrote(written);
    (PastReader::new(disk.glass(), progress.clone(), 0), progress)
}

/// A deadline that no test meets.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// All sequences of a topic in a span, in stretches of so many bytes.
fn read(reader: &mut PastReader, topic: &str, (mut after, until): (u64, u64), bytes: usize) -> Vec<u64> {
    let mut all = Vec::new();
    while after < until {
        let wants = |name: &str, sequence: u64| name == topic && sequence > 2;
        let stretch = reader.stretch(&wants, Some(&[topic]), (after, until), bytes).expect("it is readable");
        assert!(stretch.to > after && stretch.to <= until, "{} after {after}", stretch.to);
        all.extend(stretch.events.iter().map(|stored| stored.sequence));
        after = stretch.to;
    }
    all
}

#[test]
fn every_span_is_read_whole_and_in_order_in_stretches_of_any_length() {
    let disk = Disk::default();
    for (number, begin) in [(1, 1), (2, 1_000), (4, 2_000)] {
        segment(&disk, number, begin - 1, begin..begin + 900);
    }
    let (mut reader, _) = reader(&disk, 2_899);
    let all: Vec<u64> = [3..901, 1_000..1_900, 2_000..2_900].into_iter().flatten().collect();
    for topic in ["a", "b", "rare"] {
        for (after, until, bytes) in
            [(2, 2_899, 1), (2, 2_899, 1 << 20), (500, 1_500, 9_000), (899, 1_000, 1)]
        {
            let is_it = |sequence: &&u64| {
                after < **sequence && **sequence <= until && event(**sequence).topic.as_str() == topic
            };
            let expected: Vec<u64> = all.iter().filter(is_it).copied().collect();
            let found = read(&mut reader, topic, (after, until), bytes);
            assert!(found == expected, "{topic} {after} {until}: {} of {}", found.len(), expected.len());
        }
    }
    let wants = |name: &str, _: u64| name == "b";
    let of_b: Vec<u64> =
        all.iter().filter(|sequence| event(**sequence).topic.as_str() == "b").copied().collect();
    for last in [1, 7, 400, of_b.len() - 1] {
        let before =
            reader.before_last(&wants, Some(&["b"]), (2_899, last as u64), later()).expect("it is readable");
        assert_eq!(of_b.iter().filter(|sequence| **sequence > before).count(), last);
    }
    assert_eq!(reader.before_last(&wants, None, (2_899, 1 << 20), later()).expect("it is readable"), 0);
    for (unix_ms, before) in [(0, 0), (10_001, 1_000), (9_100, 999), (28_990, 2_898), (1 << 40, 2_899)] {
        assert_eq!(reader.before_time(unix_ms, later()).expect("it is readable"), before, "{unix_ms}");
    }
}

#[test]
fn what_has_gone_is_told_and_what_is_not_written_is_waited_for() {
    let disk = Disk::default();
    segment(&disk, 3, 0, 1..100);
    let (seal, end) = segment(&disk, 4, 99, 100..200);
    let (mut reader, progress) = reader(&disk, 150);
    let all = |_: &str, _: u64| true;
    let mut stretch =
        |after, until| reader.stretch(&all, None, (after, until), 1 << 20).expect("it is readable");
    assert_eq!((stretch(0, 150).events.len(), stretch(0, 150).floor), (150, 0));
    // The log has it, but 250 was given to something that is still to come.
    let behind = stretch(190, 250);
    assert_eq!((behind.events.len(), behind.to), (9, 199));
    progress.wrote(260);
    assert_eq!(stretch(199, 250).to, 250, "nothing more comes up to there");
    disk.remove(&name_of(3)).expect("it is there");
    let late = stretch(20, 150);
    assert_eq!((late.floor, late.events[0].sequence, late.to), (99, 100, 150));
    // A record that is being written.
    let (mut bytes, next) = (Vec::new(), event(200));
    record::write_event(&mut bytes, false, 300, 3_000, &next, None);
    record::seal(&mut bytes, seal.behind(end), end);
    let mut file = disk.open(&name_of(4)).expect("it is there");
    file.append(&bytes[..30]).expect("room");
    assert_eq!(stretch(250, 400).events.len(), 0);
    file.append(&bytes[30..]).expect("room");
    assert_eq!(stretch(250, 400).events[0].sequence, 300);
}

#[test]
fn what_a_disk_has_changed_is_not_given() {
    let disk = Disk::default();
    segment(&disk, 1, 0, 1..100);
    let mut contents = disk.contents();
    let bytes = contents.get_mut(&name_of(1)).expect("it is there");
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    let (mut reader, _) = reader(&Disk::with(&contents), 99);
    let all = |_: &str, _: u64| true;
    assert_eq!(reader.stretch(&all, None, (0, 50), 1 << 20).expect("it is whole").events.len(), 50);
    assert!(reader.stretch(&all, None, (50, 99), 1 << 20).is_err());
}

/// A record that failed may end where the one ends that is written in its place.
#[test]
fn what_was_taken_back_does_not_hide_what_is_written_in_its_place() {
    let disk = Disk::default();
    let (seal, end) = segment(&disk, 1, 0, 1..100);
    let (mut reader, progress) = reader(&disk, 99);
    let all = |_: &str, _: u64| true;
    let record = |topic: &str, sequence: u64| {
        let mut bytes = Vec::new();
        let event = Event { topic: Topic::new(topic).expect("a topic"), ..event(200) };
        record::write_event(&mut bytes, false, sequence, 1_000, &event, None);
        record::seal(&mut bytes, seal.behind(end), end);
        bytes
    };
    let mut file = disk.open(&name_of(1)).expect("it is there");
    file.append(&record("y", 100)).expect("room");
    let seen = reader.stretch(&all, None, (90, 99), 1 << 20).expect("it is readable");
    assert_eq!((seen.events.len(), seen.to), (9, 99));
    progress.cut();
    file.cut(end).expect("it is there");
    file.append(&record("z", 101)).expect("room");
    progress.wrote(101);
    let stretch = reader.stretch(&all, Some(&["z"]), (99, 101), 1 << 20).expect("it is readable");
    let found: Vec<u64> = stretch.events.iter().map(|stored| stored.sequence).collect();
    assert_eq!((found, stretch.to), (vec![101], 101));
}

/// Else who asks for a rare topic keeps everybody else waiting while the whole log is read.
#[test]
fn segments_without_a_topic_are_looked_through_a_bounded_step_at_a_time() {
    let disk = Disk::default();
    let large = |sequence: u64| Event {
        data: Data::binary(vec![0; STRETCH_LOOKED_AT_MAX].into()),
        ..event(sequence * 3)
    };
    for number in 1..=3 {
        let begin = Begin { before: number - 1, reserved: 1 << 20, promise: 1, hole: 0 };
        let (mut file, seal, length) = segment::begin(&disk, &name_of(number), begin).expect("room");
        let mut bytes = Vec::new();
        record::write_event(&mut bytes, false, number, 1, &large(number), None);
        record::seal(&mut bytes, seal.behind(length), length);
        file.append(&bytes).expect("room");
    }
    let (mut reader, _) = reader(&disk, 3);
    let wants = |name: &str, _: u64| name == "rare";
    let mut to = |after| reader.stretch(&wants, Some(&["rare"]), (after, 3), 1 << 20).expect("readable").to;
    assert_eq!([to(0), to(1), to(2)], [1, 2, 3]);
    assert_eq!(to(0), 3, "it is known by now");
}

#[test]
fn topics_are_remembered_up_to_a_bound_over_all_segments() {
    let disk = Disk::default();
    for number in 1..=4 {
        let begin = Begin { before: (number - 1) * 100, reserved: 1 << 20, promise: 1, hole: 0 };
        let (mut file, seal, length) = segment::begin(&disk, &name_of(number), begin).expect("room");
        let mut bytes = Vec::new();
        for sequence in (number - 1) * 100 + 1..=number * 100 {
            let topic = Topic::new(&format!("t{sequence}")).expect("a topic");
            record::write_event(&mut bytes, false, sequence, 1, &Event { topic, ..event(0) }, None);
        }
        record::seal(&mut bytes, seal.behind(length), length);
        file.append(&bytes).expect("room");
    }
    let (mut reader, _) = reader(&disk, 400);
    reader.topics_max = 250;
    for sequence in [1, 150, 399] {
        let topic = format!("t{sequence}");
        let wants = |name: &str, _: u64| name == topic;
        let stretch = reader.stretch(&wants, Some(&[&topic]), (0, 400), 1 << 20).expect("it is readable");
        assert_eq!(stretch.events[0].sequence, sequence);
        assert!(reader.topics() <= 250, "{}", reader.topics());
    }
}

#[test]
fn a_search_ends_at_its_deadline() {
    let disk = Disk::default();
    segment(&disk, 1, 0, 1..100);
    let (mut reader, _) = reader(&disk, 99);
    let over = Instant::now() - Duration::from_millis(1);
    let wants = |name: &str, _: u64| name == "b";
    let last = reader.before_last(&wants, Some(&["b"]), (99, 1), over).expect_err("it is over");
    let time = reader.before_time(5, over).expect_err("it is over");
    assert_eq!([last.kind(), time.kind()], [std::io::ErrorKind::TimedOut; 2]);
    assert!(reader.before_last(&wants, Some(&["b"]), (99, 1), later()).is_ok());
}

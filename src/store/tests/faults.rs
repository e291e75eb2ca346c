//! What disks and publishers do to a store: torn ends, damage, syncs that fail, and no room.

use super::*;
use crate::config::limits::STORE_QUEUE_BYTES_MAX;
use crate::store::files::Files;

/// The texts that are there, in their order.
fn texts(bench: &Bench) -> Vec<String> {
    there(&bench.past.state).into_values().map(|(_, text)| text).collect()
}

/// The name of the last segment.
fn last_segment(contents: &Contents) -> String {
    contents.keys().rfind(|name| name.ends_with(".log")).expect("a segment").clone()
}

#[test]
fn a_hole_is_told_in_all_lives_to_come() {
    let mut disk = Disk::default();
    for promise in [Promise::Interval, Promise::Never] {
        let mut bench = try_open(&disk, settings(promise)).expect("it opens");
        let before = bench.past.state.hole;
        let sequence = bench.submit(Said::Event(event("a", "may be lost"), None), false);
        disk = disk.after(End::Killed, &mut Dice::new(1));
        let bench = try_open(&disk, settings(promise)).expect("it opens");
        let hole = bench.past.state.hole;
        assert!(hole > sequence && hole > before, "{promise:?}: {hole}");
        drop(bench);
        for promise in [promise, Promise::Always, promise] {
            let mut bench = try_open(&disk, settings(promise)).expect("it opens");
            assert_eq!(bench.past.state.hole, hole, "{promise:?}, after an end in order");
            // Segments that have gone do not take it along.
            for _ in 0..40 {
                bench.submit(Said::Event(event("a", &"x".repeat(90)), None), false);
            }
        }
    }
}

/// The bytes of a segment are known to nobody who publishes. If they were, they would be no records
/// at another place.
#[test]
fn a_torn_end_that_holds_records_is_cut_off() {
    let (contents, mut said) = some_segments();
    let mut bench = try_open(&Disk::with(&contents), settings(Promise::Always)).expect("it opens");
    let next = bench.submit(Said::Event(event("a", "of this segment"), None), true);
    assert_eq!(bench.answers(1), [next]);
    said.insert(next, ("a".into(), "of this segment".into()));
    drop(bench);
    let disk = Disk::with(&contents);
    let mut bench = try_open(&disk, settings(Promise::Always)).expect("it opens");
    let small = bench.submit(Said::Event(event("a", "of this segment"), None), true);
    assert_eq!(bench.answers(1), [small]);
    let own = disk.contents()[&last_segment(&disk.contents())].clone();
    let others = contents.values().flatten().copied();
    // Both begin with a whole record behind a header of 28 bytes.
    let data: Vec<u8> = own[28..].iter().copied().chain(others).collect();
    let before = own.len();
    let big = Event { data: Data::binary(data.into()), ..event("a", "") };
    let taken = bench.submit(Said::Event(big, None), true);
    assert_eq!(bench.answers(1), [taken]);
    let mut left = disk.after(End::Killed, &mut Dice::new(1)).contents();
    let name = last_segment(&left);
    let whole = left[&name].clone();
    // A note says that the disk had all.
    left.remove("durable");
    let begin = if whole.len() > before { before } else { 0 };
    for length in (begin + 1..whole.len()).step_by(7) {
        left.insert(name.clone(), whole[..length].to_vec());
        let opened = try_open(&Disk::with(&left), settings(Promise::Always));
        let opened = opened.unwrap_or_else(|error| panic!("cut to {length}: {error}"));
        let found = there(&opened.past.state);
        assert!(!found.contains_key(&taken), "cut to {length}");
        assert!(said.keys().filter(|sequence| **sequence <= 24).all(|sequence| found.contains_key(sequence)));
    }
}

#[test]
fn pages_of_zeros_beyond_what_the_disk_had_are_a_torn_end_and_before_that_damage() {
    let disk = Disk::default();
    let mut bench =
        try_open(&disk, Settings { segment_bytes: 1 << 20, ..settings(Promise::Always) }).expect("a new one");
    let mut ends = vec![];
    for number in 0..8 {
        // Two go to the disk together or one by one; the last is alone.
        let sequence = bench.submit(Said::Event(event("a", &format!("{number}")), None), true);
        assert_eq!(bench.answers(1), [sequence]);
        ends.push(disk.contents()["0000000001.log"].len());
    }
    let mut left = disk.after(End::Killed, &mut Dice::new(1)).contents();
    left.remove("durable");
    let whole = left["0000000001.log"].clone();
    let mut zeroed = |from: usize, to: usize| {
        let mut bytes = whole.clone();
        bytes[from..to].fill(0);
        left.insert("0000000001.log".into(), bytes);
        try_open(&Disk::with(&left), settings(Promise::Always)).map(|bench| texts(&bench).len())
    };
    // The seventh record was there before the eighth was written.
    assert_eq!(zeroed(ends[6], ends[7]).expect("its end is torn"), 7);
    let error = zeroed(ends[5], ends[6]).expect_err("the disk had it").to_string();
    assert!(error.contains(&format!("0000000001.log is damaged at byte {}", ends[5])), "{error}");
    assert!(error.contains("move it and all *.log before it away"), "{error}");
    assert_eq!(zeroed(ends[5], ends[7]).expect("nothing says that the disk had it"), 6);
}

/// A disk writes pages in any order.
#[test]
fn whole_records_behind_what_the_disk_never_had_are_no_damage() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Never)).expect("a new one");
    let mut ends = vec![];
    for number in 0..8 {
        bench.submit(Said::Event(event("a", &number.to_string()), None), false);
        while bench.store.report().entries <= number {
            std::thread::yield_now();
        }
        ends.push(disk.contents()["0000000001.log"].len());
    }
    let mut left = disk.after(End::Killed, &mut Dice::new(1)).contents();
    left.get_mut("0000000001.log").expect("it is there")[ends[2]..ends[3]].fill(0);
    let opened = try_open(&Disk::with(&left), settings(Promise::Never)).expect("its end is torn");
    assert_eq!(texts(&opened), ["0", "1", "2"]);
    assert!(is_told(&opened.past.state, "a", 8), "what has gone is told");
}

#[test]
fn a_segment_that_the_disk_never_got_is_none_and_one_that_it_had_is_missed() {
    let (contents, said) = some_segments();
    let mut left = contents.clone();
    left.insert("0000000099.log".into(), vec![0; 4_096]);
    assert!(check(&left, &said, "a file of zeros"), "its process had not begun it");
    let Ok(bench) = try_open(&Disk::with(&left), settings(Promise::Always)) else { panic!("it opens") };
    assert_eq!(bench.past.state.hole, 0, "nothing is missing");
    // One that was begun may have reserved sequences.
    let mut left = contents.clone();
    let name = last_segment(&left);
    let length = left[&name].len();
    left.insert(name, vec![0; length]);
    let Ok(bench) = try_open(&Disk::with(&left), settings(Promise::Always)) else { panic!("it opens") };
    assert!(bench.past.state.hole >= 1 << 20, "{:?}", bench.past.state.hole);
}

#[test]
fn where_all_segments_have_gone_ids_begin_anew() {
    let (mut contents, _) = some_segments();
    contents.retain(|name, _| !name.ends_with(".log"));
    let (tell, _news) = channel();
    let tell = move |said: News<u64>| _ = tell.send(said);
    let fresh = Epoch(FRESH.0 + 1);
    let opened = Store::open(
        Disk::with(&contents),
        settings(Promise::Always),
        &Limits::default(),
        memory_of,
        fresh,
        tell,
    );
    let (_store, past) = opened.expect("a new one");
    assert_eq!((past.state.epoch, past.state.sequence), (fresh, 0), "else ids would be given twice");
}

#[test]
fn what_a_failed_sync_has_lost_is_written_again() {
    for ends in [None, Some(End::Killed), Some(End::PowerFailure)] {
        let disk = Disk::default();
        let mut bench = try_open(&disk, settings(Promise::Interval)).expect("a new one");
        disk.fail_syncs(1);
        for number in 0..5 {
            bench.submit(Said::Event(event("a", &format!("{number}")), None), false);
        }
        let Ok(News::Degraded(Some(why))) = bench.news.recv() else { panic!("it tells") };
        assert!(why.contains("a sync that is to fail"), "{why}");
        assert!(matches!(bench.news.recv(), Ok(News::Degraded(None))), "it tries by itself");
        let disk = match ends {
            Some(end) => disk.after(end, &mut Dice::new(1)),
            // The kernel has taken the pages for written; in the next life the power fails.
            None => {
                drop(bench);
                disk.after(End::PowerFailure, &mut Dice::new(1))
            }
        };
        let again = try_open(&disk, settings(Promise::Interval)).expect("it opens");
        assert_eq!(texts(&again), ["0", "1", "2", "3", "4"], "{ends:?}");
        assert_eq!(again.past.state.hole == 0, ends.is_none(), "{ends:?}");
    }
}

/// The thread ends right behind the sync that failed: it may not say that all is in order.
#[test]
fn a_failed_sync_before_the_end_loses_nothing_without_a_word() {
    for promise in [Promise::Interval, Promise::Never] {
        for failing in 1..6 {
            let disk = Disk::default();
            let mut bench = try_open(&disk, settings(promise)).expect("a new one");
            disk.fail_syncs(failing);
            // Several segments' worth, so that some syncs are those of segments that are full.
            for number in 0..40 {
                bench.submit(Said::Event(event("a", &format!("{number} {}", "x".repeat(90))), None), false);
            }
            drop(bench);
            disk.fail_syncs(0);
            let disk = disk.after(End::PowerFailure, &mut Dice::new(failing));
            let again = try_open(&disk, settings(promise)).expect("it opens");
            let found = there(&again.past.state);
            for sequence in 1..=40 {
                let is_there = found.contains_key(&sequence);
                assert!(is_there || is_told(&again.past.state, "a", sequence), "{promise:?} {sequence}");
            }
        }
    }
}

/// A kill, and then a power failure: what the first left in the kernel has no other copy.
#[test]
fn what_a_killed_process_wrote_outlives_a_later_power_failure_too() {
    for seed in 0..20 {
        let disk = Disk::default();
        let mut bench = try_open(&disk, settings(Promise::Never)).expect("a new one");
        for number in 0..5 {
            bench.submit(Said::Event(event("a", &number.to_string()), None), false);
        }
        while bench.store.report().entries < 5 {
            std::thread::yield_now();
        }
        let disk = disk.after(End::Killed, &mut Dice::new(seed));
        let bench = try_open(&disk, settings(Promise::Never)).expect("it opens");
        assert_eq!(texts(&bench).len(), 5);
        let disk = disk.after(End::PowerFailure, &mut Dice::new(seed));
        let again = try_open(&disk, settings(Promise::Never)).expect("it opens");
        assert_eq!(texts(&again).len(), 5, "seed {seed}");
    }
}

#[test]
fn a_damaged_segment_that_goes_is_counted_and_what_is_behind_the_damage_is_kept() {
    let disk = Disk::default();
    let small = || Settings { bytes_max: 6_000, ..settings(Promise::Always) };
    let mut bench = try_open(&disk, small()).expect("a new one");
    let keyed = |key: &str, text: &str| Event { key: Key::new(key).ok(), ..event("kept/x", text) };
    let mut ends = vec![];
    for (key, text) in [("k1", "one"), ("k2", "two"), ("k3", "three")] {
        bench.submit(Said::Event(keyed(key, text), None), true);
        bench.answers(1);
        ends.push(disk.contents()["0000000001.log"].len());
    }
    disk.flip("0000000001.log", ends[1] - 1);
    for number in 0..200 {
        bench.submit(Said::Event(event("a", &format!("{number} {}", "x".repeat(60))), None), true);
        bench.answers(1);
    }
    while bench.store.report().damaged == 0 {
        let said = Said::Event(event("a", "more"), None);
        bench.submit(said, true);
        bench.answers(1);
    }
    assert_eq!(bench.store.report().damaged, 1);
    drop(bench);
    let again = try_open(&disk, small()).expect("it opens");
    let kept = there(&again.past.state).into_values().filter(|(topic, _)| topic == "kept/x");
    assert_eq!(
        kept.map(|(_, text)| text).collect::<BTreeSet<_>>(),
        BTreeSet::from(["one".into(), "three".into()])
    );
}

#[test]
fn what_waits_for_a_disk_that_refuses_is_bounded_in_bytes() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Interval)).expect("a new one");
    disk.set_room(Some(100));
    bench.submit(Said::Event(event("a", &"x".repeat(500)), None), false);
    assert!(matches!(bench.news.recv(), Ok(News::Degraded(Some(_)))));
    let large = event("a", &"x".repeat(1 << 20));
    let mut taken = 0;
    while bench.store.has_room(bench.next) {
        bench.submit(Said::Event(large.clone(), None), false);
        taken += 1;
    }
    assert!((32..=64).contains(&taken), "{taken} of a mebibyte");
    assert!(bench.store.report().queued_bytes as usize <= STORE_QUEUE_BYTES_MAX + large.weight());
    let entry = Entry { sequence: bench.next, unix_ms: 1, said: Said::Event(large, None), token: None };
    assert!(!bench.store.submit(entry), "a hub refuses the publish then");
    disk.set_room(None);
    assert!(matches!(bench.news.recv(), Ok(News::Degraded(None))));
    while bench.store.report().queued_bytes > 0 {
        std::thread::yield_now();
    }
    assert!(bench.store.has_room(bench.next));
    drop(bench);
    let again = try_open(&disk, settings(Promise::Interval)).expect("it opens");
    assert_eq!((again.past.state.sequence, again.past.state.hole), (taken + 1, 0));
}

/// All of a span that a reader finds, and up to where events may be gone.
fn read(reader: &mut PastReader, until: u64) -> (BTreeSet<u64>, u64) {
    let all = |_: &str, _: u64| true;
    let (mut found, mut after, mut floor) = (BTreeSet::new(), 0, 0);
    while after < until {
        let stretch = reader.stretch(&all, None, (after, until), 1 << 20).expect("it is readable");
        assert!(stretch.to > after, "nothing comes behind {after}");
        found.extend(stretch.events.iter().map(|stored| stored.sequence));
        (after, floor) = (stretch.to, stretch.floor);
    }
    (found, floor)
}

#[test]
fn what_a_failed_sync_has_lost_is_told_to_who_reads_the_log_meanwhile() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Never)).expect("a new one");
    let mut reader = bench.store.take_reader().expect("nobody has it");
    let submit = |bench: &mut Bench, number: u64| {
        bench.submit(Said::Event(event("a", &format!("{number} {}", "x".repeat(90))), None), false);
    };
    (0..5).for_each(|number| submit(&mut bench, number));
    while bench.store.report().entries < 5 {
        std::thread::yield_now();
    }
    disk.fail_syncs(1);
    // The next sync is that of the first segment that is full.
    (5..30).for_each(|number| submit(&mut bench, number));
    assert!(matches!(bench.news.recv(), Ok(News::Degraded(Some(_)))));
    assert!(matches!(bench.news.recv(), Ok(News::Degraded(None))));
    while bench.store.report().queued_bytes > 0 {
        std::thread::yield_now();
    }
    let (found, floor) = read(&mut reader, 30);
    assert!((5..30).contains(&floor), "some have gone, and that is told: {floor}");
    assert!((1..=30).all(|sequence| sequence <= floor || found.contains(&sequence)), "{floor} {found:?}");
}

#[test]
fn what_is_to_be_written_again_is_waited_for() {
    let disk = Disk::default();
    let (mut log, opening) =
        log::Log::open(disk.clone(), settings(Promise::Interval), FRESH, &mut Nobody).expect("it opens");
    let mut reader = PastReader::new(disk.glass(), log.progress().clone(), opening.floor);
    let write = |log: &mut log::Log<Disk>, sequence: u64| {
        let mut bytes = Vec::new();
        record::write_event(&mut bytes, false, sequence, 1, &event("a", "x"), None);
        log.append(&mut bytes, sequence, 1).expect("room");
        log.progress().wrote(sequence);
    };
    write(&mut log, 1);
    log.sync().expect("the disk works");
    write(&mut log, 2);
    disk.fail_syncs(1);
    log.sync().expect_err("it is to fail");
    assert!(log.is_behind());
    let all = |_: &str, _: u64| true;
    let mut to = || reader.stretch(&all, None, (0, 2), 1 << 20).expect("it is readable").to;
    assert_eq!(to(), 1, "2 is on no disk");
    log.probe().expect("the disk works");
    assert!(!log.is_behind());
    assert_eq!(to(), 2);
}

#[test]
fn who_only_asks_whether_an_earlier_one_is_there_does_not_hide_a_later_one() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Always)).expect("a new one");
    let mut reader = bench.store.take_reader().expect("nobody has it");
    let held = disk.hold();
    let first = bench.submit(Said::Event(event("a", "1"), None), true);
    // These go together while the first one is written.
    bench.submit(Said::Event(event("a", "2"), None), true);
    let removal = bench.submit(Said::Removal(Topic::new("a").expect("a topic")), true);
    let asks = Entry { sequence: first, unix_ms: 1, said: Said::Nothing, token: Some(first) };
    assert!(bench.store.submit(asks), "room");
    drop(held);
    bench.answers(4);
    assert_eq!(read(&mut reader, removal).0, BTreeSet::from([1, 2]), "all is there up to the removal");
}

/// The answer is `outcome_unknown` in both cases. It never is in another place, or under a sequence
/// that another event has.
#[test]
fn an_event_whose_outcome_is_unknown_is_given_to_nobody_or_after_a_start_in_its_place() {
    let disk = Disk::default();
    let mut bench = try_open(&disk, settings(Promise::Always)).expect("a new one");
    let mut reader = bench.store.take_reader().expect("nobody has it");
    let publish = |bench: &mut Bench, text: &str| {
        let sequence = bench.submit(Said::Event(event("a", text), None), true);
        (sequence, bench.answers(1) == [sequence])
    };
    assert_eq!(publish(&mut bench, "first"), (1, true));
    disk.fail_syncs(1);
    assert_eq!(publish(&mut bench, "refused"), (2, false));
    let next = std::iter::repeat_with(|| publish(&mut bench, "next")).find(|(_, is_there)| *is_there);
    let (next, _) = next.expect("the disk works again");
    assert_eq!(read(&mut reader, next).0, BTreeSet::from([1, next]), "nobody gets it");
    drop(bench);

    let (mut log, _) =
        log::Log::open(disk.clone(), settings(Promise::Always), FRESH, &mut Nobody).expect("ours");
    let mut bytes = Vec::new();
    record::write_event(&mut bytes, false, next + 1, unix_ms(), &event("a", "unanswered"), None);
    log.append(&mut bytes, next + 1, unix_ms()).expect("room");
    // Its process ends while it waits for the disk.
    let mut bench =
        try_open(&disk.after(End::Killed, &mut Dice::new(1)), settings(Promise::Always)).expect("ours");
    let mut reader = bench.store.take_reader().expect("nobody has it");
    let last = bench.submit(Said::Event(event("a", "last"), None), true);
    assert!(last > next + 1 && bench.answers(1) == [last]);
    assert_eq!(read(&mut reader, last).0, BTreeSet::from([1, next, next + 1, last]));
    assert_eq!(there(&bench.past.state)[&(next + 1)].1, "unanswered");
}

#[test]
fn a_sync_that_fails_as_an_old_segment_goes_is_told_and_nothing_stays_off_the_disk() {
    let disk = Disk::default();
    let small = || Settings { bytes_max: 4_000, ..settings(Promise::Interval) };
    let mut bench = try_open(&disk, small()).expect("a new one");
    let say = |bench: &mut Bench, event: Event| {
        let sequence = bench.submit(Said::Event(event, None), false);
        while bench.store.report().entries < sequence {
            std::thread::yield_now();
        }
    };
    // It is written again when its segment goes.
    say(&mut bench, Event { key: Key::new("k").ok(), ..event("kept/x", "value") });
    while bench.store.report().disk_bytes < 3_600 {
        say(&mut bench, event("a", &"x".repeat(60)));
    }
    let syncs = bench.store.report().syncs;
    say(&mut bench, event("a", "it is synced with all before it"));
    while bench.store.report().syncs == syncs {
        std::thread::yield_now();
    }
    disk.fail_syncs(1);
    say(&mut bench, event("a", &"one too many ".repeat(25)));
    let next = || bench.news.recv_timeout(std::time::Duration::from_secs(10)).expect("it tells");
    assert!(matches!(next(), News::Degraded(Some(_))));
    assert!(matches!(next(), News::Degraded(None)), "it tries by itself");
    drop(bench);
    let again = try_open(&disk, small()).expect("it opens");
    let last = texts(&again).pop().expect("events");
    assert!(last.starts_with("one too many") && again.past.state.hole == 0, "{last}");
    assert!(there(&again.past.state).values().any(|(_, text)| text == "value"));
}

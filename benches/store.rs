//! Claim: a hub with `--data` and `--fsync interval` writes and reads back at least half as many
//! events in a second as the store alone in the same run.
//!
//! Set-up: events of 200 bytes on 10,000 topics, in a directory of the system's temporary one.
//! Alone: entries go to the store, which is closed, opened and read. Behind a hub: they are
//! published to an intake with that store, encoded and broadcast to one queue, which is emptied.
//!
//! Expectation: `behind_a_hub` has at least half the throughput of `alone`.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fanwave::broadcast::{Encoded, Inbox, Memory, path};
use fanwave::clock::{Stamp, unix_ms};
use fanwave::config::Limits;
use fanwave::config::store::Promise;
use fanwave::event::{Data, Epoch, Event, Topic};
use fanwave::hub::Intake;
use fanwave::hub::source::{Owed, Source, Stored, news};
use fanwave::store::{Directory, Entry, Said, Settings, Store, StorePast};

const EPOCH: Epoch = Epoch(10_000_000_000_000_000_000);
const TOPICS: usize = 10_000;
const EVENTS: u64 = 50_000;

/// A directory that is gone when the benchmark is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let path = std::env::temp_dir().join(format!("fanwave-bench-store-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }

    fn open(&self, tell: impl Fn(fanwave::store::News<Owed>) + Send + 'static) -> (Store<Owed>, StorePast) {
        let directory = Directory::open(&self.0).expect("a directory").expect("nobody has it");
        let settings = Settings {
            promise: Promise::Interval,
            bytes_max: 1 << 30,
            segment_bytes: 32 << 20,
            age_ms_max: 600_000,
            rules: Default::default(),
        };
        Store::open(directory, settings, &Limits::default(), Encoded::memory_of, EPOCH, tell)
            .expect("a store")
    }

    /// Opens it again, and reads all of it.
    fn read_back(&self) -> usize {
        let (store, past) = self.open(|_| ());
        drop(store);
        past.state.events.len()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn events() -> Vec<Event> {
    let data = Bytes::from(vec![b'x'; 200]);
    let event = |number: usize| Event {
        topic: Topic::new(&format!("topic/{number}")).expect("a topic"),
        data: Data::text(data.clone()).expect("UTF-8"),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    };
    (0..TOPICS).map(event).collect()
}

fn alone(events: &[Event]) -> usize {
    let scratch = Scratch::new();
    let (store, past) = scratch.open(|_| ());
    for number in 1..=EVENTS {
        let sequence = past.state.sequence + number;
        while !store.has_room(sequence) {
            std::thread::yield_now();
        }
        let said = Said::Event(events[number as usize % TOPICS].clone(), None);
        assert!(store.submit(Entry { sequence, unix_ms: unix_ms(), said, token: None }), "room");
    }
    drop(store);
    scratch.read_back()
}

fn behind_a_hub(events: &[Event]) -> usize {
    let scratch = Scratch::new();
    let (tell, heard) = news();
    let (store, _) = scratch.open(move |news| _ = tell.send(news));
    let limits = Limits::default();
    let (outbox, inbox) = path(limits.shard_queue_batches_max).expect("eventfd");
    let intake = Intake::new(EPOCH, &limits, Arc::default(), Memory::new(&limits), vec![outbox]);
    let mut intake = intake.with_source(Source::Store(Box::new(Stored::new(store, heard))));
    let empty = |inbox: &Inbox| while inbox.try_recv().is_some() {};
    for number in 1..=EVENTS {
        intake.tell_time(unix_ms());
        let event = &events[number as usize % TOPICS];
        while intake.publish(event.clone(), None, Stamp(number)).is_err() {
            intake.flush();
            empty(&inbox);
            std::thread::yield_now();
        }
        if number % 64 == 0 {
            intake.flush();
            empty(&inbox);
        }
    }
    drop(intake);
    scratch.read_back()
}

fn store(criterion: &mut Criterion) {
    let events = events();
    let mut group = criterion.benchmark_group("store");
    group.sample_size(10).throughput(Throughput::Elements(EVENTS));
    group.bench_function("alone", |bencher| bencher.iter(|| assert_eq!(alone(&events), EVENTS as usize)));
    group.bench_function("behind_a_hub", |bencher| {
        bencher.iter(|| assert_eq!(behind_a_hub(&events), EVENTS as usize));
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);

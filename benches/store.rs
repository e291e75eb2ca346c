//! Claim: a hub with `--data` and `--fsync interval` writes and reads back at least half as many
//! events in a second as its store alone in the same run. Bare segments beside it tell what the
//! store's own work costs.
//!
//! Set-up: events of 200 bytes on 10,000 topics, in a directory of the system's temporary one, or of
//! `FANWAVE_BENCH_DIR`.
//! - Bare: a loop appends the same bytes to a file, each event with its length and a checksum, 64 at
//!   a time, and syncs it every 100 ms and at the end. It is read back, and the checksums are looked
//!   at.
//! - Alone: entries go to the store, which is closed, opened and read into histories.
//! - Behind a hub: they are published to an intake with that store, encoded and broadcast to one
//!   queue, which is emptied.
//!
//! Expectation: `behind_a_hub` has at least half the throughput of `alone`.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let place = std::env::var_os("FANWAVE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = place.join(format!("fanwave-bench-store-{}", std::process::id()));
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

/// Writes and reads a file, as plainly as it goes.
fn bare(events: &[Event]) -> usize {
    let scratch = Scratch::new();
    std::fs::create_dir(&scratch.0).expect("a directory");
    let path = scratch.0.join("events");
    let mut file = std::fs::File::create(&path).expect("a file");
    let (mut batch, mut synced) = (Vec::new(), Instant::now());
    for number in 1..=EVENTS {
        let Event { topic, data, .. } = &events[number as usize % TOPICS];
        let begin = batch.len();
        batch.extend_from_slice(&[0; 8]);
        batch.extend_from_slice(&number.to_le_bytes());
        batch.push(topic.as_str().len() as u8);
        batch.extend_from_slice(topic.as_str().as_bytes());
        batch.extend_from_slice(data.bytes());
        let length = (batch.len() - begin - 8) as u32;
        batch[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
        let sum = crc32fast::hash(&batch[begin + 8..]);
        batch[begin + 4..begin + 8].copy_from_slice(&sum.to_le_bytes());
        if number % 64 == 0 || number == EVENTS {
            file.write_all(&batch).expect("room on the disk");
            batch.clear();
        }
        if synced.elapsed() > Duration::from_millis(100) || number == EVENTS {
            file.sync_data().expect("the disk works");
            synced = Instant::now();
        }
    }
    let bytes = std::fs::read(&path).expect("it is there");
    let (mut rest, mut found) = (bytes.as_slice(), 0);
    while let Some((head, more)) = rest.split_first_chunk::<8>() {
        let [l0, l1, l2, l3, sum @ ..] = *head;
        let (body, others) = more.split_at(u32::from_le_bytes([l0, l1, l2, l3]) as usize);
        assert_eq!(crc32fast::hash(body).to_le_bytes(), sum);
        (rest, found) = (others, found + 1);
    }
    found
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
    group.bench_function("bare", |bencher| bencher.iter(|| assert_eq!(bare(&events), EVENTS as usize)));
    group.bench_function("alone", |bencher| bencher.iter(|| assert_eq!(alone(&events), EVENTS as usize)));
    group.bench_function("behind_a_hub", |bencher| {
        bencher.iter(|| assert_eq!(behind_a_hub(&events), EVENTS as usize));
    });
    group.finish();
}

criterion_group!(benches, store);
criterion_main!(benches);

//! What a shard does once per run of events and format: finding or building the bytes of one send.
//!
//! Runs are built for one set of topics after the other, more sets than are remembered, so that
//! none is found again and the buffers of former batches are used as they are under load. `cache
//! hit` asks for the same run twice. Times are per run; the allocations are printed beside them.

use std::cell::Cell;
use std::hint::black_box;

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use fanwave::clock::Stamp;
use fanwave::config::limits::BATCHES_CACHED;
use fanwave::config::{Limits, Rules};
use fanwave::egress::Ledger;
use fanwave::event::Topic;
use fanwave::shard::batch::{Batches, News};
use fanwave::shard::connections::{Membership, Memberships};
use fanwave::shard::topics::Topics;
use fanwave::wire::Format;

#[path = "support/counting.rs"]
mod counting;
#[path = "support/events.rs"]
mod events;
#[path = "support/pace.rs"]
mod pace;

/// Sets of topics whose runs are built in turn.
const SETS: usize = 4 * BATCHES_CACHED * Format::COUNT;
/// A send large enough for every run here.
const SEND_BYTES_MAX: usize = 1 << 20;

/// Windows with runs of `events` events for each of `SETS` subscribers of `merged` topics.
fn windows(events: usize, text_bytes: usize, merged: usize) -> (Topics, Vec<Memberships>) {
    let mut topics = Topics::new(&Limits::default(), &Rules::default());
    let text = Bytes::from("x".repeat(text_bytes));
    let mut sequence = 0;
    let mut sets = Vec::new();
    for set in 0..SETS {
        let names: Vec<Topic> = (0..merged)
            .map(|number| Topic::new(&format!("{set}/{number}")).expect("a legal topic"))
            .collect();
        for number in 0..events {
            sequence += 1;
            topics.push(&events::encoded(&names[number % merged], sequence, Stamp(0), &text));
        }
        let member = |name| Membership { topic: topics.intern(name), position: 0 };
        sets.push(Memberships::from(names.iter().map(member).collect::<Vec<_>>()));
    }
    (topics, sets)
}

/// Measures building the runs of `sets` in turn.
fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    events: usize,
    topics: &Topics,
    sets: &[Memberships],
) {
    let mut batches = Batches::new(SEND_BYTES_MAX, &Ledger::default());
    let mut next = 0;
    let mut run = || {
        next = (next + 1) % sets.len();
        let news = batches.news_after(topics, &sets[next], (Format::Sse, false), black_box(0));
        let News::Run(run) = black_box(news) else { panic!("there is news") };
        assert_eq!(run.batch.frames(), events as u32);
    };
    (0..4 * SETS).for_each(|_| run());
    let (allocations, runs) = (Cell::new(0), Cell::new(0u32));
    group.throughput(Throughput::Elements(events as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            let ((), made) = counting::counted(false, &mut run);
            allocations.set(allocations.get() + made);
            runs.set(runs.get() + 1);
        });
    });
    // None at all if the command line's filter left this one out.
    if runs.get() > 0 {
        eprintln!("{:30}{:.4} allocations per run", "", allocations.get() as f64 / f64::from(runs.get()));
    }
}

fn batch(c: &mut Criterion) {
    let mut group = c.benchmark_group("batch");
    for (name, events, text_bytes, merged) in [
        ("1 small frame", 1, 200, 1),
        ("16 small frames", 16, 200, 1),
        ("256 small frames", 256, 200, 1),
        ("16 large frames, vectored", 16, 16 << 10, 1),
        ("16 small frames of 2 merged topics", 16, 200, 2),
        ("16 small frames of 8 merged topics", 16, 200, 8),
    ] {
        let (topics, sets) = windows(events, text_bytes, merged);
        measure(&mut group, name, events, &topics, &sets);
    }
    let (topics, sets) = windows(16, 200, 1);
    measure(&mut group, "16 small frames, cache hit", 16, &topics, &sets[..1]);
    group.finish();
}

criterion_group! { name = benches; config = pace::quick(); targets = batch }
criterion_main!(benches);

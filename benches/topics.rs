//! Many topics on one shard, on the simulated ring in fair weather, all over WebSocket.
//!
//! `of a subscriber`: an event on one of the T topics that every subscriber has. An element is a
//! delivery. What T topics cost a delivery is the ratio to T = 1, which is printed.
//!
//! `disconnects`: every topic has one subscriber and an event that is still on its way round, and
//! half of the subscribers leave at once. An element is a disconnect; what the shard sends
//! meanwhile is part of the time. The total is printed.
//!
//! Run as a test, once each, everything is small.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use fanwave::config::Limits;
use fanwave::event::Topic;
use fanwave::wire::Format;

#[path = "support/counting.rs"]
mod counting;
#[path = "support/crowd.rs"]
mod crowd;
#[path = "support/events.rs"]
mod events;
#[path = "support/pace.rs"]
mod pace;

use crowd::{Crowd, Subscription};

/// Topics of each subscriber.
const TOPICS_EACH: [usize; 4] = [1, 10, 100, 1_000];
/// Deliveries until nothing grows any more.
const WARM_UP_MESSAGES: usize = 16;
/// Bytes of a request that names so many topics.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// As many, or few if everything runs only once. Criterion measures only where cargo asks for it.
fn size(many: usize, few: usize) -> usize {
    let is_asked = |flag: &str| std::env::args().any(|argument| argument == flag);
    if is_asked("--bench") && !is_asked("--test") { many } else { few }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("t{number}")).collect()
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a legal topic")
}

fn of_a_subscriber(c: &mut Criterion) {
    let text = Bytes::from("x".repeat(200));
    let subscribers = size(1_000, 20);
    let names = names(TOPICS_EACH[TOPICS_EACH.len() - 1]);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut of_one = None;
    let mut group = c.benchmark_group(format!("topics/of each of {subscribers} subscribers"));
    for each in TOPICS_EACH {
        let limits = Limits {
            topics_per_connection_max: each,
            handshake_bytes_max: REQUEST_BYTES_MAX,
            ..Limits::default()
        };
        let subscriptions: Vec<Subscription<'_>> =
            (0..subscribers).map(|_| (Format::WebSocket, &names[..each])).collect();
        let mut crowd = Crowd::gather(limits, &subscriptions);
        // Neither the first nor the last of a subscriber's.
        let news = topic(names[each / 2]);
        for _ in 0..WARM_UP_MESSAGES {
            let message = crowd.message(std::iter::once(&news), &text);
            crowd.deliver(message);
        }
        let (spent, deliveries) = (Cell::new(Duration::ZERO), Cell::new(0));
        group.throughput(Throughput::Elements(subscribers as u64));
        group.bench_function(BenchmarkId::new("topics, one with news", each), |b| {
            b.iter_custom(|iterations| {
                let mut time = Duration::ZERO;
                for _ in 0..iterations {
                    let message = crowd.message(std::iter::once(&news), &text);
                    let before = crowd.frames();
                    let start = Instant::now();
                    crowd.deliver(message);
                    time += start.elapsed();
                    let delivered = crowd.frames() - before;
                    assert_eq!(delivered, subscribers as u64, "everybody got everything");
                    deliveries.set(deliveries.get() + delivered);
                }
                spent.set(spent.get() + time);
                time
            });
        });
        // None at all if the command line's filter left this one out.
        if deliveries.get() > 0 {
            let ns = spent.get().as_nanos() as f64 / deliveries.get() as f64;
            let ratio = ns / *of_one.get_or_insert(ns);
            eprintln!("{:30}{ns:.0} ns per delivery, {ratio:.2} of the first of these", "");
        }
    }
    group.finish();
}

fn disconnects(c: &mut Criterion) {
    let text = Bytes::from("x".repeat(200));
    let (topics, leave) = (size(100_000, 1_000), size(50_000, 500));
    let names = names(topics);
    let topics: Vec<Topic> = names.iter().map(|name| topic(name)).collect();
    let each: Vec<[&str; 1]> = names.iter().map(|name| [name.as_str()]).collect();
    let subscriptions: Vec<Subscription<'_>> =
        each.iter().map(|topic| (Format::WebSocket, &topic[..])).collect();
    let limits = Limits { topics_max: topics.len(), ..Limits::default() };
    let (spent, rounds) = (Cell::new(Duration::ZERO), Cell::new(0));
    let mut group = c.benchmark_group(format!("topics/{} topics with news", topics.len()));
    // A round takes from milliseconds to seconds, and its preparation as long: as few as criterion
    // takes.
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(leave as u64));
    group.bench_function(BenchmarkId::new("disconnects", leave), |b| {
        b.iter_custom(|iterations| {
            let mut time = Duration::ZERO;
            for _ in 0..iterations {
                let mut crowd = Crowd::gather(limits.clone(), &subscriptions);
                let message = crowd.message(topics.iter(), &text);
                crowd.begin(message);
                assert!(crowd.frames() < (topics.len() - leave) as u64, "most are still on their way");
                let start = Instant::now();
                // The last half: their topics are served last, so the round has not reached them.
                crowd.leave(topics.len() - leave..topics.len());
                time += start.elapsed();
                assert_eq!(crowd.open(), (topics.len() - leave) as u64, "the others stay");
            }
            spent.set(spent.get() + time);
            rounds.set(rounds.get() + iterations as u32);
            time
        });
    });
    if rounds.get() > 0 {
        eprintln!("{:30}{:.3} s for {leave} disconnects", "", (spent.get() / rounds.get()).as_secs_f64());
    }
    group.finish();
}

criterion_group! { name = benches; config = pace::quick(); targets = of_a_subscriber, disconnects }
criterion_main!(benches);

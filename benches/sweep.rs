//! One shard, a message to all of its subscribers: windows, elevator, batches, sends, completions
//! and counters, on the simulated ring in fair weather. Half of the subscribers are SSE, half
//! WebSocket, all on one topic.
//!
//! An element is a delivery: one event to one subscriber. `ring alone` asks the simulated ring for
//! the same sends without a shard: what it takes is part of every other figure and says nothing
//! about the kernel. Compare revisions, not servers.

use std::cell::Cell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fanwave::config::Limits;
use fanwave::config::limits::SWEEP_VISITS_MAX;
use fanwave::egress::sim::{SimRing, Weather};
use fanwave::egress::{Batch, EgressRing, Ledger, SendMode, Slot};
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

const SUBSCRIBERS: [usize; 2] = [1_000, 10_000];
/// Deliveries until nothing grows any more.
const WARM_UP_MESSAGES: usize = 64;

fn sweep(c: &mut Criterion) {
    let topic = Topic::new("prices").expect("a legal topic");
    let text = Bytes::from("x".repeat(200));
    for subscribers in SUBSCRIBERS {
        let mut group = c.benchmark_group(format!("sweep/{subscribers} subscribers"));
        for in_flight in [1, 16, 256] {
            let subscriptions: Vec<Subscription<'_>> =
                (0..subscribers).map(|number| (Format::ALL[number % 2], &["prices"][..])).collect();
            let mut crowd = Crowd::gather(Limits::default(), &subscriptions);
            let topics = vec![&topic; in_flight];
            for _ in 0..WARM_UP_MESSAGES {
                let message = crowd.message(topics.iter().copied(), &text);
                crowd.deliver(message);
            }
            let (allocations, deliveries) = (Cell::new(0), Cell::new(0));
            group.throughput(Throughput::Elements((subscribers * in_flight) as u64));
            group.bench_function(BenchmarkId::new("events in flight", in_flight), |b| {
                b.iter_custom(|iterations| {
                    let mut time = Duration::ZERO;
                    for _ in 0..iterations {
                        let message = crowd.message(topics.iter().copied(), &text);
                        let before = crowd.frames();
                        let start = Instant::now();
                        let made = crowd.deliver(message);
                        time += start.elapsed();
                        let delivered = crowd.frames() - before;
                        assert_eq!(delivered, (subscribers * in_flight) as u64, "everybody got everything");
                        allocations.set(allocations.get() + made);
                        deliveries.set(deliveries.get() + delivered);
                    }
                    time
                });
            });
            // None at all if the command line's filter left this one out.
            if deliveries.get() > 0 {
                let per_delivery = allocations.get() as f64 / deliveries.get() as f64;
                eprintln!("{:30}{per_delivery:.6} allocations per delivery", "");
            }
        }
        group.finish();
    }
}

fn ring_alone(c: &mut Criterion) {
    let mut group = c.benchmark_group("sweep/ring alone");
    for sockets in SUBSCRIBERS {
        let mut ring = SimRing::new(sockets, Weather::Fair, 0);
        let slots: Vec<Slot> = (0..sockets).map(|_| ring.connect().expect("a slot per subscriber")).collect();
        let batch = Batch::answer(vec![b'x'; 200], &Ledger::default());
        group.throughput(Throughput::Elements(sockets as u64));
        group.bench_function(BenchmarkId::new("sockets", sockets), |b| {
            b.iter(|| {
                for slots in slots.chunks(SWEEP_VISITS_MAX) {
                    for slot in slots {
                        ring.send(*slot, &batch, 0, SendMode::Instant);
                    }
                    ring.submit().expect("the simulated ring does not fail");
                    ring.reap(&mut |completion| drop(completion));
                }
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = pace::quick(); targets = sweep, ring_alone }
criterion_main!(benches);

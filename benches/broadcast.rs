//! From the hub to its shards: one shared batch through one bounded queue per shard whose shard is
//! awake, so that the doorbell is looked at and not rung.
//!
//! Hub and shards take turns on one thread: this is the work that a broadcast costs both ends,
//! without the cache lines that travel between cores. Encoding is not in it.

use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fanwave::broadcast::{Encoded, EncodedBatch, Message, path};
use fanwave::clock::Stamp;
use fanwave::config::Limits;
use fanwave::config::limits::BATCH_EVENTS_MAX;
use fanwave::event::Topic;

#[path = "support/events.rs"]
mod events;
#[path = "support/pace.rs"]
mod pace;

fn broadcast(c: &mut Criterion) {
    let topic = Topic::new("prices").expect("a legal topic");
    let text = Bytes::from("x".repeat(200));
    let all: Vec<Arc<Encoded>> = (1..=BATCH_EVENTS_MAX as u64)
        .map(|sequence| events::encoded(&topic, sequence, Stamp(0), &text))
        .collect();
    for shards in [1, 2, 4] {
        let mut group = c.benchmark_group(format!("broadcast/{shards} shards"));
        let queue = Limits::default().shard_queue_batches_max;
        let (outboxes, inboxes): (Vec<_>, Vec<_>) =
            (0..shards).map(|_| path(queue).expect("an eventfd")).unzip();
        for events in [1, BATCH_EVENTS_MAX] {
            group.throughput(Throughput::Elements(events as u64));
            group.bench_function(BenchmarkId::new("events per batch", events), |b| {
                b.iter(|| {
                    let batch = Arc::new(EncodedBatch { events: all[..events].into() });
                    for outbox in &outboxes {
                        outbox.try_send(Message::Batch(batch.clone())).expect("the shards keep up");
                    }
                    drop(batch);
                    for inbox in &inboxes {
                        black_box(inbox.try_recv().expect("a message per shard"));
                    }
                });
            });
        }
        group.finish();
    }
}

criterion_group! { name = benches; config = pace::quick(); targets = broadcast }
criterion_main!(benches);

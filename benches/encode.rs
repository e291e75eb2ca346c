//! What the hub does once per event and format: the frame of an event. Bytes per second are those
//! of the data.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fanwave::clock::Stamp;
use fanwave::event::Topic;
use fanwave::wire::Format;
use fanwave::wire::format::{Frame, Given};

#[path = "support/events.rs"]
mod events;
#[path = "support/pace.rs"]
mod pace;

/// Text of `bytes` bytes in lines of at most `line_bytes`.
fn text(bytes: usize, line_bytes: usize) -> Bytes {
    (1..=bytes).map(|at| if at % line_bytes == 0 { b'\n' } else { b'x' }).collect()
}

fn encode(c: &mut Criterion) {
    let topic = Topic::new("prices/EURUSD").expect("a legal topic");
    for format in Format::ALL {
        let Frame::Made { encode, .. } = format.spec().frame else { continue };
        let mut group = c.benchmark_group(format!("encode/{format:?}"));
        for (name, bytes, line_bytes) in [
            ("200 B", 200, usize::MAX),
            ("16 KiB", 16 << 10, usize::MAX),
            ("200 B in lines of 50", 200, 50),
            ("16 KiB in lines of 80", 16 << 10, 80),
        ] {
            let encoded = events::encoded(&topic, 123_456_789, Stamp(0), &text(bytes, line_bytes));
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_with_input(BenchmarkId::from_parameter(name), &encoded.event, |b, event| {
                let given = Given { epoch: events::EPOCH, sequence: 123_456_789, unix_ms: 1_764_460_800_000 };
                b.iter(|| encode(black_box(event), black_box(&given)));
            });
        }
        group.finish();
    }
}

criterion_group! { name = benches; config = pace::quick(); targets = encode }
criterion_main!(benches);

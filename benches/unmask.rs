//! Bytes from WebSocket clients: unmasking of payloads by size, and small frames as they come off
//! the socket.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fanwave::config::limits::RECEIVE_BUFFER_BYTES;
use fanwave::wire::websocket::{Decoder, Incoming, unmask};

#[path = "support/pace.rs"]
mod pace;

const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];

fn unmasking(c: &mut Criterion) {
    let mut group = c.benchmark_group("unmask");
    for (name, length) in [("16 B", 16), ("1 KiB", 1 << 10), ("64 KiB", 64 << 10)] {
        let mut payload = vec![b'x'; length];
        group.throughput(Throughput::Bytes(length as u64));
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| unmask(black_box(&mut payload), black_box(MASK), 0));
        });
    }
    group.finish();
}

/// A masked frame with `length` bytes of text (RFC 6455 §5.2).
fn frame(length: usize) -> Vec<u8> {
    assert!(length < 126, "short frames only");
    let mut frame = vec![0x81, 0x80 | length as u8];
    frame.extend_from_slice(&MASK);
    frame.extend((0..length).map(|at| b'x' ^ MASK[at % 4]));
    frame
}

/// A receive buffer full of small text messages. Decoding unmasks in place, so each round starts
/// from a copy.
fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    for length in [4, 32, 120] {
        let frame = frame(length);
        let frames = RECEIVE_BUFFER_BYTES / frame.len();
        let received = frame.repeat(frames);
        let mut buffer = received.clone();
        let mut decoder = Decoder::default();
        group.throughput(Throughput::Elements(frames as u64));
        group.bench_function(BenchmarkId::new("frames of text bytes", length), |b| {
            b.iter(|| {
                buffer.copy_from_slice(&received);
                let mut messages = 0;
                let fed = decoder.feed(black_box(&mut buffer), 1 << 16, |incoming| {
                    messages += usize::from(matches!(incoming, Incoming::Message { text: true, .. }));
                });
                fed.expect("the frames are legal");
                assert_eq!(messages, frames, "every frame is a message");
            });
        });
    }
    group.finish();
}

criterion_group! { name = benches; config = pace::quick(); targets = unmasking, decoding }
criterion_main!(benches);

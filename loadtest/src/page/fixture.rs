//! What the tests of pages and tables share: a run with figures as they come, and a check that a
//! page is well formed.

use hdrhistogram::Histogram;

use crate::audit::Findings;
use crate::framing::Protocol;
use crate::machine::Machine;
use crate::outcome::{Cost, FloorCost, Generator, Handshakes, Interval, Latency, Outcome};
use crate::receiver::latency_histogram;
use crate::workload::{Behaviour, Crowd, Listens, Pace, Workload};

const SECONDS: u64 = 30;
const EVENTS_PER_SECOND: u64 = 100;
const CONNECTIONS: u64 = 10_000;

/// A machine.
pub fn machine() -> Machine {
    Machine {
        cpu: "Some CPU @ 2.80GHz".into(),
        cpus: 2,
        memory_bytes: 24 << 30,
        kernel: "Linux 6.18.5 #1 SMP PREEMPT_DYNAMIC".into(),
        descriptors: 20_000,
        date: "2026-11-21T06:20:00Z".into(),
        commit: Some("15b80161234a".into()),
        command: ["loadtest", "run", "ticker", "--page", "ticker.html", "--json", "ticker.json"]
            .map(str::to_owned)
            .to_vec(),
    }
}

/// A distribution around `median_ns` with a long tail, as latencies have: from fixed pseudo-random
/// numbers.
fn histogram(median_ns: f64, count: u64, mut seed: u64) -> Histogram<u64> {
    let mut histogram = latency_histogram();
    for _ in 0..count {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let even = (seed >> 11) as f64 / (1u64 << 53) as f64;
        let spread = (even / (1.0 - even)).max(1e-9).powf(0.16);
        let stall = if even > 0.9995 { 3.0 } else { 1.0 };
        histogram.saturating_record((median_ns * spread * stall) as u64);
    }
    histogram
}

fn workload() -> Workload {
    Workload {
        name: "ticker".into(),
        about: "Quotes of one instrument to ten thousand screens, a hundred per second.".into(),
        seconds: SECONDS as f64,
        warm_up_seconds: 1.0,
        topics: 1,
        payload_bytes: 200,
        keys: 1,
        speakers: Vec::new(),
        publish: Pace::Rate { per_second: EVENTS_PER_SECOND as f64 },
        subscribers: vec![Crowd {
            protocol: Protocol::Sse,
            connections: CONNECTIONS as usize,
            ramp_per_second: None,
            behaviour: Behaviour::Steady,
            listens: Listens::One,
            slow: None,
        }],
    }
}

/// A run against `server`; servers differ.
pub fn outcome(server: &str) -> Outcome {
    let slower = match server {
        "fanwave" => 1.0,
        "nchan" => 2.4,
        _ => 1.7,
    };
    let series = (1..=SECONDS)
        .map(|second| {
            let values = histogram(9e6 * slower, 4_000, second);
            let hiccup = if second == 17 { 1.9 } else { 1.0 };
            Interval {
                at: second as f64,
                seconds: 1.0,
                published: EVENTS_PER_SECOND,
                deliveries: EVENTS_PER_SECOND * CONNECTIONS - (second * 7_919) % 20_000,
                bytes: EVENTS_PER_SECOND * CONNECTIONS * 236,
                connections: CONNECTIONS,
                p50_ns: values.value_at_quantile(0.5),
                p99_ns: (values.value_at_quantile(0.99) as f64 * hiccup) as u64,
                max_ns: (values.max() as f64 * hiccup) as u64,
                generator_share: 0.6 + 0.02 * (second % 4) as f64,
                server_share: (0.27 + 0.01 * (second % 3) as f64) * slower,
                server_rss: ((14 << 20) as f64 * slower) as u64 + second * 20_000,
                kernel_bytes: (190 << 20) + (second % 5) * 3_000_000,
            }
        })
        .collect();
    let deliveries = SECONDS * EVENTS_PER_SECOND * CONNECTIONS;
    Outcome {
        workload: workload(),
        server: server.into(),
        version: "1.0.4".into(),
        seconds: SECONDS as f64 + 0.012,
        published: SECONDS * EVENTS_PER_SECOND,
        refused: 0,
        deliveries,
        bytes: deliveries * 236,
        findings: Findings { events: deliveries, ..Findings::default() },
        others: Findings::default(),
        each: Latency::of(&histogram(9e6 * slower, 300_000, 1)),
        last: Some(Latency::of(&histogram(19e6 * slower, 3_000, 2))),
        lateness: Latency::of(&histogram(21_000.0, 3_000, 3)),
        handshakes: Handshakes {
            opened: CONNECTIONS,
            seconds: 0.71,
            again: 0,
            closed_by_server: 0,
            latency: Latency::of(&histogram(11e6, CONNECTIONS, 4)),
            again_latency: Latency::default(),
        },
        cost: Some(Cost {
            cpu: 8.4 * slower,
            us_per_delivery: Some(2.81 * slower),
            rss_empty: 9 << 20,
            rss_connected: 14 << 20,
            rss_max: 15 << 20,
            rss_per_further_connection: Some(412.0 * slower),
            kernel_per_further_connection: Some(9_840.0),
        }),
        floor: Some(FloorCost {
            connections: CONNECTIONS as usize,
            frames: 1,
            every_seconds: 0.01,
            us_per_delivery: 3.02,
            ratio: Some(0.93 * slower),
            why_no_ratio: None,
        }),
        generator: Generator {
            receivers: 1,
            receivers_share: 0.61,
            receivers_us_per_delivery: Some(0.61),
            publisher_share: 0.01,
            coordinator_share: 0.005,
            cpu_share: 0.63,
        },
        others_share: 0.0,
        storm: None,
        warnings: Vec::new(),
        series,
    }
}

/// Panics unless the page's tags are balanced, its attributes quoted, its identifiers unique, and
/// it has neither script, nor event handler, nor anything to load, nor a coordinate that is no
/// number.
pub fn check(page: &str) {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let mut open: Vec<&str> = Vec::new();
    let mut identifiers = std::collections::BTreeSet::new();
    let mut rest = page;
    while let Some(start) = rest.find('<') {
        let text = &rest[..start];
        assert!(!text.contains('>') || open.last() == Some(&"style"), "a bare > in {text:?}");
        rest = &rest[start + 1..];
        if let Some(comment) = rest.strip_prefix("!--") {
            rest = &comment[comment.find("-->").expect("comments end") + 3..];
            continue;
        }
        let end = rest.find('>').expect("tags end");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        assert!(!tag.contains('<'), "a bare < in {tag:?}");
        assert!(tag.matches('"').count().is_multiple_of(2), "quotes of {tag:?} are balanced");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "tags are balanced");
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap_or_default();
        assert!(!["script", "img", "link", "iframe", "object"].contains(&name), "{tag:?} loads or runs");
        // Outside of quotes are names only; within them is what they hold.
        for (at, part) in tag.split('"').enumerate() {
            match at % 2 {
                0 => assert!(!part.contains(" on") && !part.contains(" src="), "{tag:?} runs or loads"),
                _ => assert!(!part.contains("NaN") && part != "inf", "{tag:?} has a coordinate"),
            }
        }
        if let Some(identifier) = tag.split(" id=\"").nth(1).and_then(|rest| rest.split('"').next()) {
            assert!(identifiers.insert(identifier.to_owned()), "{identifier} is unique");
        }
        if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?} stay open");
    assert!(!page.contains("NaN") && !page.contains(" inf"), "no figure is nonsense");
}

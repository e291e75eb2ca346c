//! What counts as a fault.

use super::*;
use crate::scenario::{Overrides, load};

fn judged(name: &str) -> Judged {
    let workload = load(name, &Overrides::default()).expect("built in");
    let stalled = stalled_readers(&workload);
    Judged {
        server: "fanwave".into(),
        version: "1".into(),
        published: 1_500,
        published_seconds: Some(0.5),
        again: 0,
        publish_fault: None,
        expected: 150_000,
        received: 150_000,
        arrived_seconds: Some(1.0),
        closed: 0,
        findings: Findings { events: 150_000, ..Findings::default() },
        uneven: 0,
        memory: Some(Growth {
            connected: 10 << 20,
            peak: 60 << 20,
            windows: Some(1),
            declared: Some(50 << 20),
        }),
        stalled: (stalled > 0).then_some(Stalled {
            readers: stalled,
            cut_seconds: Some(2.5),
            kept: Some(20 << 20),
            back_seconds: Some(0.1),
        }),
        reasons: Vec::new(),
        workload,
    }
}

#[test]
fn a_part_in_which_everybody_got_everything_has_no_fault() {
    assert_eq!(judged("bulk-4k-100").faults(), [""; 0]);
    assert_eq!(judged("bulk-stalled").faults(), [""; 0]);
}

#[test]
fn each_harm_is_a_fault() {
    let good = || judged("bulk-stalled");
    let found = |lost, gaps_told| Findings { lost, gaps_told, ..Findings::default() };
    let memory = |peak| Some(Growth { connected: 0, peak, windows: Some(1), declared: Some(1 << 20) });
    let stalled = |cut_seconds, back_seconds| {
        Some(Stalled { readers: 2, cut_seconds, kept: Some(90 << 20), back_seconds })
    };
    for (part, word) in [
        (Judged { closed: 49, ..good() }, "49 of 50 subscribers were closed"),
        (Judged { findings: found(7, 0), ..good() }, "7 of 150000 deliveries were lost"),
        (Judged { findings: found(0, 3), ..good() }, "3 gaps"),
        (Judged { received: 149_999, ..good() }, "149999 of 150000 deliveries were counted"),
        (Judged { uneven: 1, ..good() }, "1 subscribers got other bytes"),
        (Judged { memory: memory(3 << 20), ..good() }, "grew by 3 MiB, 1 MiB are declared"),
        (Judged { publish_fault: Some("503 full".into()), ..good() }, "503 full"),
        (Judged { stalled: stalled(None, None), ..good() }, "not closed within 7s"),
        (Judged { stalled: stalled(Some(7.5), Some(1.0)), ..good() }, "not closed within 7s"),
        (Judged { stalled: stalled(Some(1.0), None), ..good() }, "90 MiB were kept 30s after"),
    ] {
        let faults = part.faults();
        assert!(faults[0].contains(word), "{word}: {faults:?}");
    }
    assert_eq!(Judged { memory: None, ..good() }.faults(), [""; 0], "not judged");
    let silent = Growth { connected: 0, peak: 1, windows: None, declared: None };
    let ours = Judged { memory: Some(silent.clone()), ..good() };
    assert!(ours.faults()[0].contains("does not say what windows may use"), "{:?}", ours.faults());
    let other = Judged { memory: Some(silent), server: "custom".into(), ..good() };
    assert_eq!(other.faults(), [""; 0], "another server never says it");
}

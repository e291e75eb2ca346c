use bytes::Bytes;

use super::*;
use crate::event::{Data, Epoch, Event};

fn stored(sequence: u64) -> Stored {
    let event = Event {
        topic: Topic::new("t").expect("a topic"),
        data: Data::string(format!("{sequence}")),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    };
    Stored { sequence, unix_ms: 7, event, idempotency: None }
}

fn pages(sequences: &[u64], to: u64, base: u64) -> Pages {
    let style = Style { era: Era { epoch: Epoch(9), base }, format: Format::Sse };
    style.pages(Found { events: sequences.iter().map(|sequence| stored(*sequence)).collect(), to, floor: 0 })
}

fn frame(sequence: u64, base: u64) -> Bytes {
    let era = Era { epoch: Epoch(9), base };
    Encoded::new(stored(sequence).event, era, base + sequence, Stamp(5)).taken_at(7).frame(Format::Sse)
}

#[test]
fn events_of_the_past_have_the_bytes_that_the_window_had_and_are_cut_at_positions() {
    let pages = pages(&[3, 5, 8], 9, 100);
    let all = pages.cut(0, 200);
    assert_eq!((all.frames, all.to), (3, 109));
    assert_eq!(all.bytes, [frame(3, 100), frame(5, 100), frame(8, 100)].concat());
    let middle = pages.cut(103, 106);
    assert_eq!((middle.frames, middle.to, &middle.bytes[..]), (1, 106, &frame(5, 100)[..]));
    let none = pages.cut(108, 200);
    assert_eq!((none.frames, none.to, none.bytes.len()), (0, 109, 0));
}

#[test]
fn who_asks_for_the_same_shares_what_was_read_and_nobody_else() {
    let topics = vec![Topic::new("t").expect("a topic")];
    let others = vec![Topic::new("u").expect("a topic")];
    let mut shelf = Shelf::default();
    shelf.keep(Kept {
        topics: topics.clone(),
        format: Format::Sse,
        after: 2,
        pages: pages(&[3, 5, 8], 9, 0),
    });
    let whole = shelf.find(&topics, Format::Sse, (2, 20)).expect("the same");
    let rest = shelf.find(&topics, Format::Sse, (4, 20)).expect("in the midst of it");
    assert_eq!((whole.frames, rest.frames, rest.to), (3, 2, 9));
    assert_eq!(rest.bytes.as_ptr(), whole.bytes[frame(3, 0).len()..].as_ptr(), "the bytes are shared");
    assert!(shelf.find(&topics, Format::Sse, (1, 20)).is_none(), "2 may be an event");
    assert!(shelf.find(&topics, Format::Sse, (9, 20)).is_none(), "that is behind it");
    assert!(shelf.find(&topics, Format::Json, (2, 20)).is_none());
    assert!(shelf.find(&others, Format::Sse, (2, 20)).is_none());
    for after in 0..STRETCHES_KEPT as u64 {
        shelf.keep(Kept {
            topics: others.clone(),
            format: Format::Sse,
            after,
            pages: pages(&[], after + 1, 0),
        });
    }
    assert!(shelf.find(&topics, Format::Sse, (2, 20)).is_none(), "it made room");
}

#[test]
fn a_topic_that_was_removed_has_no_past_before_that() {
    let topic = |name: &str| Topic::new(name).expect("a topic");
    let wanted = |name: &str, after| WantedTopic {
        name: topic(name),
        pattern: name.contains('*').then(|| Pattern::new(name).expect("a pattern")),
        after,
    };
    let both = Wanted { topics: vec![wanted("a", 3), wanted("b/*", 5)], removed: vec![(topic("b/x"), 9)] };
    assert!(!both.has("a", 3) && both.has("a", 4) && !both.has("c", 9));
    assert!(!both.has("b/y", 5) && both.has("b/y", 6));
    assert!(!both.has("b/x", 8) && both.has("b/x", 10));
    assert_eq!(both.names(), None, "what a pattern has is not known");
    let one = Wanted { topics: vec![wanted("a", 3)], removed: Vec::new() };
    assert_eq!(one.names(), Some(vec!["a"]));
}

#[test]
fn stretches_of_large_events_are_kept_as_far_as_there_is_memory_for_stretches() {
    let topics = vec![Topic::new("t").expect("a topic")];
    let most = STRETCHES_KEPT * STRETCH_BYTES_MAX;
    let mut shelf = Shelf::default();
    let large = |after: u64| {
        let pages = pages(&[], after + 1, 0);
        let pages = Pages { bytes: vec![b'x'; most / 4 + 1].into(), ..pages };
        Kept { topics: topics.clone(), format: Format::Sse, after, pages }
    };
    for after in 0..10 {
        shelf.keep(large(after));
        let bytes: usize = shelf.kept.iter().map(|kept| kept.pages.bytes.len()).sum();
        assert!(bytes <= most, "{bytes}");
    }
    assert_eq!(shelf.kept.iter().map(|kept| kept.after).collect::<Vec<_>>(), [9, 8, 7]);
}

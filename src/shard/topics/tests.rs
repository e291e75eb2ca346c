use super::*;
use crate::event::EVENT_BYTES_FIXED;
use crate::shard::fixtures::{encoded, encoded_alone, encoded_with};

fn topics(change: impl FnOnce(&mut Limits)) -> Topics {
    let mut limits = Limits::default();
    change(&mut limits);
    Topics::new(&limits)
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a legal topic")
}

#[test]
fn every_push_sends_the_elevator_past_everybody() {
    let mut topics = topics(|_| ());
    let index = topics.intern(&topic("a"));
    for slot in 0..5 {
        topics.join(index, slot, Format::Sse);
    }
    let mut done = Vec::new();
    topics.push(&encoded("a", 1));
    let first: Vec<Slot> = (0..3).map(|_| topics.visit(index, &mut done)).collect();
    topics.push(&encoded("a", 2));
    let mut rest = Vec::new();
    while topics.next_active().is_some() {
        rest.push(topics.visit(index, &mut done));
    }
    let mut after_second = rest.clone();
    after_second.sort_unstable();
    assert_eq!(first, [0, 1, 2]);
    assert_eq!(after_second, [0, 1, 2, 3, 4], "everybody once after the last push");
    assert_eq!(done, [(Stamp(1), 1), (Stamp(2), 1)]);
}

#[test]
fn many_visits_at_once_are_as_many_one_by_one() {
    let tables = || {
        let mut topics = topics(|limits| limits.window_events_max = 16);
        let index = topics.intern(&topic("a"));
        for slot in 0..7 {
            topics.join(index, slot, Format::Sse);
        }
        (topics, index)
    };
    let ((mut many, index), (mut one, _)) = (tables(), tables());
    let (mut done_many, mut done_one) = (Vec::new(), Vec::new());
    let mut sequence = 0;
    for most in (1..=9).cycle().take(300) {
        // Pushes meet the elevator in the middle of laps and between them.
        if !many.saturated() && (most % 4 == 1 || !many.is_active()) {
            sequence += 1;
            many.push(&encoded("a", sequence));
            one.push(&encoded("a", sequence));
        }
        let ahead = many.next_visits(index, most).to_vec();
        assert!((1..=most).contains(&ahead.len()));
        many.advance(index, ahead.len(), &mut done_many);
        let visited: Vec<Slot> = ahead.iter().map(|_| one.visit(index, &mut done_one)).collect();
        assert_eq!((ahead, &done_many), (visited, &done_one));
        assert_eq!((many.is_active(), many.saturated()), (one.is_active(), one.saturated()));
    }
    assert!(done_many.len() > 30, "{} events were offered to everybody", done_many.len());
}

/// Slots in the order in which one lap passes them.
fn lap(topics: &mut Topics, index: TopicIndex, sequence: u64) -> Vec<Slot> {
    topics.push(&encoded("a", sequence));
    let mut passed = Vec::new();
    while topics.is_active() {
        passed.push(topics.visit(index, &mut Vec::new()));
    }
    passed
}

#[test]
fn a_lap_starts_with_those_whom_the_last_one_visited_last_and_everybody_is_first_once() {
    for subscribers in [1, 2, 9, LAP_OVERLAP, LAP_OVERLAP + 1, 512, 1_000] {
        let mut topics = topics(|_| ());
        let index = topics.intern(&topic("a"));
        for slot in 0..subscribers {
            topics.join(index, slot as Slot, Format::Sse);
        }
        let mut before = lap(&mut topics, index, 1);
        let mut first = vec![before[0]];
        for sequence in 2..=subscribers as u64 {
            let passed = lap(&mut topics, index, sequence);
            let again = LAP_OVERLAP.min(subscribers - 1);
            assert_eq!(passed[..again], before[subscribers - again..], "{subscribers} subscribers");
            first.push(passed[0]);
            before = passed;
        }
        first.sort_unstable();
        assert!(first.iter().copied().eq(0..subscribers as Slot), "{subscribers} subscribers: {first:?}");
    }
}

#[test]
fn a_round_that_brings_a_quarter_of_the_window_saturates_until_the_elevator_is_round() {
    let mut topics = topics(|limits| limits.window_events_max = 16);
    let index = topics.intern(&topic("a"));
    for slot in 0..2 {
        topics.join(index, slot, Format::Sse);
    }
    for sequence in 1..=4 {
        assert!(!topics.saturated());
        topics.push(&encoded("a", sequence));
    }
    assert!(topics.saturated());
    topics.visit(index, &mut Vec::new());
    assert!(topics.saturated());
    topics.visit(index, &mut Vec::new());
    assert!(!topics.saturated());
    topics.push(&encoded("unheard", 5));
    assert!(!topics.is_active(), "nobody listens");
}

#[test]
fn windows_are_bounded_by_events_bytes_age_and_total() {
    let mut topics = topics(|limits| {
        limits.window_events_max = 4;
        limits.window_bytes_max = 1_000 + 4 * EVENT_BYTES_FIXED;
        limits.window_bytes_total_max = 3_100;
        limits.window_ms_max = 1;
    });
    for sequence in 1..=6 {
        topics.push(&encoded("few", sequence));
    }
    let few = topics.find(&topic("few")).expect("known");
    assert_eq!((topics.get(few).window.len(), topics.get(few).window.evicted()), (4, 2));
    topics.push(&encoded_with("large", 7, vec![b'x'; 1_000]));
    topics.push(&encoded_with("large", 8, vec![b'x'; 1_000]));
    let large = topics.find(&topic("large")).expect("known");
    assert_eq!(topics.get(large).window.len(), 1, "two do not fit");
    topics.push(&encoded_with("other", 9, vec![b'x'; 1_400]));
    assert!(topics.find(&topic("few")).is_none(), "the oldest of all made room and left no topic behind");
    assert_eq!(topics.window_events(), 2);
    topics.expire(Stamp(9 + 1_000_001));
    assert_eq!((topics.window_events(), topics.window_bytes()), (0, 0));
    let again = topics.intern(&topic("few"));
    assert_eq!(topics.get(again).window.evicted(), 6, "its own last event, not that of others");
}

#[test]
fn what_the_hub_forgets_goes_with_its_events_unless_somebody_listens() {
    let mut topics = topics(|limits| limits.topics_max = 1);
    let heard = topics.intern(&topic("heard"));
    topics.join(heard, 0, Format::Sse);
    topics.push(&encoded("heard", 1));
    topics.push(&encoded("unheard", 2));
    for (sequence, name, forgets) in [(3, "a", "heard"), (4, "b", "unheard"), (5, "c", "never known")] {
        topics.push(&Arc::new(encoded_alone(name, sequence).forgetting(Some(topic(forgets)))));
    }
    assert_eq!(topics.get(heard).window.len(), 1, "it has a subscriber");
    assert!(topics.find(&topic("unheard")).is_none());
    assert_eq!(topics.window_events(), 4, "those of heard, a, b and c");
    let again = topics.intern(&topic("unheard"));
    assert_eq!(topics.get(again).window.evicted(), 2);
}

#[test]
fn a_topic_that_the_hub_forgot_goes_with_its_last_subscriber() {
    let mut topics = topics(|_| ());
    for (sequence, known_again) in [(1, true), (10, false)] {
        let index = topics.intern(&topic("a"));
        topics.join(index, 0, Format::Sse);
        topics.push(&encoded("a", sequence));
        topics.push(&Arc::new(encoded_alone("b", sequence + 1).forgetting(Some(topic("a")))));
        if known_again {
            topics.push(&encoded("a", sequence + 2));
        }
        topics.leave(index, 0, Format::Sse);
        assert_eq!(topics.find(&topic("a")).is_some(), known_again);
    }
    assert_eq!(topics.window_events(), 2, "both of b");
}

#[test]
fn what_is_forgotten_early_does_not_pile_up_behind_an_old_event() {
    let mut topics = topics(|_| ());
    topics.push(&encoded("old", 1));
    let mut sequence = 1;
    let mut push = |topics: &mut Topics, number: usize, forgets: Option<usize>| {
        sequence += 1;
        let event = encoded_alone(&number.to_string(), sequence);
        let forgets = forgets.map(|number| topic(&number.to_string()));
        topics.push(&Arc::new(event.forgetting(forgets)));
    };
    for number in 0..100 {
        (0..50).for_each(|_| push(&mut topics, number, None));
    }
    // Each takes the place of the one that goes for it.
    for number in 0..100 {
        push(&mut topics, 1_000 + number, Some(number));
        let (entries, events) = (topics.order.len(), topics.events);
        assert!(entries <= 2 * events + 1_025, "{entries} entries of {events} events");
    }
    assert_eq!(topics.window_events(), 101);
}

#[test]
fn only_topics_with_subscribers_take_places_from_new_ones() {
    let mut topics = topics(|limits| limits.topics_max = 2);
    for (sequence, name) in [(1, "a"), (2, "b"), (3, "c")] {
        topics.push(&encoded(name, sequence));
    }
    let names = ["a", "b", "new"].map(topic);
    let index = topics.intern(&names[0]);
    topics.join(index, 0, Format::Sse);
    topics.join(index, 1, Format::Sse);
    assert!(topics.has_room_for(&names[..2]) && topics.has_room_for(&names[2..]));
    assert!(!topics.has_room_for(&names[1..]), "that would be three");
    topics.leave(index, 0, Format::Sse);
    assert!(!topics.has_room_for(&names[1..]), "one is still there");
    topics.leave(index, 0, Format::Sse);
    assert!(topics.has_room_for(&names[1..]));
}

#[test]
fn whoever_moves_during_a_lap_is_named() {
    let mut topics = topics(|_| ());
    let index = topics.intern(&topic("a"));
    for slot in 10..13 {
        topics.join(index, slot, Format::WebSocket);
    }
    assert_eq!(topics.leave(index, 0, Format::WebSocket), Some((12, false)));
    topics.push(&encoded("a", 1));
    assert_eq!(topics.visit(index, &mut Vec::new()), 12);
    assert_eq!(topics.leave(index, 0, Format::WebSocket), Some((11, true)));
    assert_eq!(topics.leave(index, 0, Format::WebSocket), None);
    assert!(!topics.is_active(), "nobody is left to visit");
    assert!(!topics.saturated());
}

use super::*;
use crate::clock::Stamp;
use crate::config::limits::LAP_OVERLAP;
use crate::event::EVENT_BYTES_FIXED;
use crate::shard::fixtures::{encoded, encoded_alone, encoded_with};

fn topics(change: impl FnOnce(&mut Limits)) -> Topics {
    let mut limits = Limits::default();
    change(&mut limits);
    Topics::new(&limits, &Rules::default())
}

fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a legal topic")
}

/// The elevator meets the next subscriber, which has everything.
fn visit(topics: &mut Topics, index: TopicIndex, done: &mut Vec<(Stamp, u32)>) -> Slot {
    let slot = topics.next_visits(index, 1)[0];
    topics.meet(index, u64::MAX, u64::MAX, false);
    topics.advance(index, 1, done);
    slot
}

#[test]
fn every_push_sends_the_elevator_past_everybody() {
    let mut topics = topics(|_| ());
    let index = topics.intern(&topic("a"));
    for slot in 0..5 {
        topics.join(index, slot, Family::EventStream, 0);
    }
    let mut done = Vec::new();
    topics.push(&encoded("a", 1));
    let first: Vec<Slot> = (0..3).map(|_| visit(&mut topics, index, &mut done)).collect();
    topics.push(&encoded("a", 2));
    let mut rest = Vec::new();
    while topics.next_active().is_some() {
        rest.push(visit(&mut topics, index, &mut done));
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
            topics.join(index, slot, Family::EventStream, 0);
        }
        (topics, index)
    };
    let ((mut many, index), (mut one, _)) = (tables(), tables());
    let (mut done_many, mut done_one) = (Vec::new(), Vec::new());
    let mut sequence = 0;
    for most in (1..=9).cycle().take(300) {
        // Pushes meet the elevator in the middle of laps and between them.
        if most % 4 == 1 || !many.is_active() {
            sequence += 1;
            many.push(&encoded("a", sequence));
            one.push(&encoded("a", sequence));
        }
        let ahead = many.next_visits(index, most).to_vec();
        assert!((1..=most).contains(&ahead.len()));
        many.meet(index, u64::MAX, u64::MAX, false);
        many.advance(index, ahead.len(), &mut done_many);
        let visited: Vec<Slot> = ahead.iter().map(|_| visit(&mut one, index, &mut done_one)).collect();
        assert_eq!((ahead, &done_many), (visited, &done_one));
        assert_eq!((many.is_active(), many.window_events()), (one.is_active(), one.window_events()));
    }
    assert!(done_many.len() > 30, "{} events were offered to everybody", done_many.len());
}

/// Slots in the order in which one lap passes them.
fn lap(topics: &mut Topics, index: TopicIndex, sequence: u64) -> Vec<Slot> {
    topics.push(&encoded("a", sequence));
    let mut passed = Vec::new();
    while topics.is_active() {
        passed.push(visit(topics, index, &mut Vec::new()));
    }
    passed
}

#[test]
fn a_lap_starts_with_those_whom_the_last_one_visited_last_and_everybody_is_first_once() {
    for subscribers in [1, 2, 9, LAP_OVERLAP, LAP_OVERLAP + 1, 512, 1_000] {
        let mut topics = topics(|_| ());
        let index = topics.intern(&topic("a"));
        for slot in 0..subscribers {
            topics.join(index, slot as Slot, Family::EventStream, 0);
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

/// Memory of these events, each counted with its frames.
fn history_of(events: &[Arc<Encoded>]) -> usize {
    events.iter().map(|event| event.memory()).sum()
}

#[test]
fn what_leaves_the_history_stays_while_a_subscriber_lacks_it() {
    let mut topics = topics(|limits| limits.window_events_max = 4);
    let index = topics.intern(&topic("a"));
    topics.join(index, 0, Family::EventStream, 0);
    topics.join(index, 1, Family::EventStream, 0);
    let sequences = |topics: &Topics| {
        let window = &topics.get(index).window;
        let all: Vec<u64> = (0..).map_while(|at| window.get(at)).map(|event| event.sequence).collect();
        (all, window.evicted())
    };
    let round = |topics: &mut Topics, cursors: [u64; 2]| {
        for cursor in cursors {
            topics.meet(index, cursor, cursor, true);
            topics.advance(index, 1, &mut Vec::new());
        }
    };
    for sequence in 1..=6 {
        topics.push(&encoded("a", sequence));
    }
    assert_eq!(sequences(&topics), (vec![1, 2, 3, 4, 5, 6], 2), "nobody has been met yet");
    round(&mut topics, [6, 1]);
    assert_eq!(sequences(&topics), (vec![2, 3, 4, 5, 6], 2), "the second one lacks 2");
    assert_eq!(topics.excess().0, 1);
    topics.push(&encoded("a", 7));
    topics.push(&encoded("a", 8));
    round(&mut topics, [8, 3]);
    assert_eq!(sequences(&topics), (vec![4, 5, 6, 7, 8], 4));
    assert!(!topics.is_active());
    topics.look_at_excess();
    assert!(topics.is_active(), "a tick sends the elevator round where there is an excess");
    // A newcomer that begins in the middle of the round holds what it may lack from there on.
    topics.meet(index, 8, 8, false);
    topics.advance(index, 1, &mut Vec::new());
    topics.join(index, 2, Family::EventStream, 4);
    topics.push(&encoded("a", 9));
    for cursor in [8, 8, 4] {
        topics.meet(index, cursor, cursor, false);
        topics.advance(index, 1, &mut Vec::new());
    }
    assert_eq!(sequences(&topics), (vec![5, 6, 7, 8, 9], 5));
    for position in [2, 1, 0] {
        topics.leave(index, position, Family::EventStream);
    }
    assert_eq!(sequences(&topics), (vec![6, 7, 8, 9], 5), "nobody is left to need more than the history");
    assert_eq!(
        (topics.excess(), topics.memory()),
        ((0, 0), history_of(&[6, 7, 8, 9].map(|n| encoded("a", n))))
    );
}

#[test]
fn a_round_that_is_not_whole_says_nothing_of_those_it_has_not_met() {
    let mut topics = topics(|limits| limits.window_events_max = 4);
    let index = topics.intern(&topic("a"));
    for slot in 0..3 {
        topics.join(index, slot, Family::EventStream, 0);
    }
    let met = |topics: &mut Topics, cursor: u64| {
        topics.meet(index, cursor, cursor, false);
        topics.advance(index, 1, &mut Vec::new());
    };
    topics.push(&encoded("a", 1));
    met(&mut topics, 1);
    topics.push(&encoded("a", 2));
    // The round is whole with the third one, and the lap with the first.
    met(&mut topics, 0);
    met(&mut topics, 0);
    met(&mut topics, 2);
    assert!(!topics.is_active());
    for sequence in 3..=6 {
        topics.push(&encoded("a", sequence));
    }
    assert_eq!(topics.get(index).window.gone(), 0, "the second and the third one lack 1");
}

#[test]
fn the_slow_are_cut_where_they_are_few_and_take_up_the_topics_share() {
    use crate::broadcast::{Account, Memory};
    let limits = Limits { window_events_max: 4, window_bytes_total_max: 400_000, ..Limits::default() };
    let memory = Memory::new(&limits);
    let account = Account::new(&memory);
    let mut topics = Topics::new(&limits, &Rules::default());
    let index = topics.intern(&topic("a"));
    for slot in 0..3 {
        topics.join(index, slot, Family::EventStream, 0);
    }
    let mut sequence = 0;
    let mut push = |topics: &mut Topics| {
        sequence += 1;
        let event = encoded_alone("a", sequence).counted_in(&account);
        topics.push(&Arc::new(event));
        sequence
    };
    // The first one has everything; of the others `slow` wait for their sockets at 0. True if the
    // last one is cut.
    let round = |topics: &mut Topics, slow: usize| {
        let head = topics.get(index).window.newest();
        let mut cut = false;
        for at in 0..3 {
            let (cursor, waits) = if at < 3 - slow { (head, false) } else { (0, true) };
            cut = topics.meet(index, cursor, cursor, waits);
            topics.advance(index, 1, &mut Vec::new());
        }
        cut
    };
    while !account.is_pressed() {
        push(&mut topics);
        assert!(!round(&mut topics, 1), "there is room");
    }
    assert!(account.has_room(1_000), "half of the share is left");
    for _ in 0..2 {
        push(&mut topics);
        round(&mut topics, 2);
    }
    push(&mut topics);
    assert!(!round(&mut topics, 2), "two of three are a crowd: the publisher is too fast");
    push(&mut topics);
    assert!(!round(&mut topics, 1), "the last round saw two");
    push(&mut topics);
    assert!(round(&mut topics, 1), "one of three is few");
    topics.leave(index, 2, Family::EventStream);
    push(&mut topics);
    for _ in 0..2 {
        topics.meet(index, 1_000_000, 1_000_000, false);
        topics.advance(index, 1, &mut Vec::new());
    }
    assert_eq!(topics.excess(), (0, 0));
    assert!(!account.is_pressed());
}

/// A subscriber that is behind loses nothing: what leaves the histories stays as long as it lacks
/// it.
#[test]
fn histories_are_shortened_and_grow_again_as_the_hub_says() {
    let mut topics = topics(|_| ());
    let quick = topics.intern(&topic("a"));
    topics.join(quick, 0, Family::EventStream, 0);
    let events: Vec<Arc<Encoded>> =
        (21..=32).map(|sequence| encoded(["a", "b"][sequence as usize % 2], sequence)).collect();
    events.iter().for_each(|event| topics.push(event));
    let all = topics.history_memory();
    assert_eq!(all, history_of(&events));
    assert_eq!(topics.hold_histories(all), 0);
    let last = history_of(&events[8..]);
    assert_eq!(topics.hold_histories(last), 8, "the oldest of all topics");
    assert_eq!((topics.history_memory(), topics.window_events()), (last, 4));
    assert_eq!(topics.excess().0, 4, "those of its own topic");
    topics.push(&encoded("b", 33));
    assert_eq!(topics.window_events(), 4, "one comes, one goes");
    assert_eq!(topics.hold_histories(0), 4);
    topics.push(&encoded("a", 34));
    assert_eq!((topics.window_events(), topics.get(quick).window.evicted()), (0, 34));
    assert_eq!(topics.excess().0, 7, "it lacks 22, 24, … and 34");
    topics.hold_histories(usize::MAX);
    topics.push(&encoded("a", 36));
    assert_eq!(topics.window_events(), 1);
}

#[test]
fn histories_are_bounded_by_events_bytes_age_and_memory() {
    let large = |name: &str, sequence| encoded_with(name, sequence, vec![b'x'; 1_000]);
    let memory = large("large", 1).memory();
    let mut topics = topics(|limits| {
        limits.window_events_max = 4;
        limits.window_bytes_max = 1_000 + 4 * EVENT_BYTES_FIXED;
        limits.window_ms_max = 1;
        // Half of it for histories, a quarter of that for one.
        limits.window_bytes_total_max = 8 * memory;
    });
    for sequence in 1..=6 {
        topics.push(&encoded("few", sequence));
    }
    let few = topics.find(&topic("few")).expect("known");
    assert_eq!((topics.get(few).window.len(), topics.get(few).window.evicted()), (4, 2));
    topics.push(&large("large", 7));
    topics.push(&large("large", 8));
    let index = topics.find(&topic("large")).expect("known");
    assert_eq!(topics.get(index).window.len(), 1, "two do not fit");
    topics.push(&large("oth-1", 9));
    topics.push(&large("oth-2", 10));
    assert!(topics.find(&topic("few")).is_some() && topics.memory() <= 4 * memory);
    topics.push(&large("oth-3", 11));
    topics.push(&large("oth-4", 12));
    assert!(topics.find(&topic("few")).is_none(), "the oldest of all made room and left no topic behind");
    assert!(topics.find(&topic("oth-1")).is_some() && topics.memory() <= 4 * memory);
    topics.expire(Stamp(12 + 1_000_001));
    assert_eq!((topics.window_events(), topics.window_bytes(), topics.memory()), (0, 0, 0));
    let again = topics.intern(&topic("few"));
    assert_eq!(topics.get(again).window.evicted(), 6, "its own last event, not that of others");
}

#[test]
fn what_the_hub_forgets_goes_with_its_events_unless_somebody_listens() {
    let mut topics = topics(|limits| limits.topics_max = 1);
    let heard = topics.intern(&topic("heard"));
    topics.join(heard, 0, Family::EventStream, 0);
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
        topics.join(index, 0, Family::EventStream, 0);
        topics.push(&encoded("a", sequence));
        topics.push(&Arc::new(encoded_alone("b", sequence + 1).forgetting(Some(topic("a")))));
        if known_again {
            topics.push(&encoded("a", sequence + 2));
        }
        topics.leave(index, 0, Family::EventStream);
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
        let (fronts, known) = (topics.histories.fronts(), topics.by_name.len());
        assert!(fronts <= known, "{fronts} oldest events of {known} topics");
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
    topics.join(index, 0, Family::EventStream, 0);
    topics.join(index, 1, Family::EventStream, 0);
    assert!(topics.has_room_for(&names[..2]) && topics.has_room_for(&names[2..]));
    assert!(!topics.has_room_for(&names[1..]), "that would be three");
    topics.leave(index, 0, Family::EventStream);
    assert!(!topics.has_room_for(&names[1..]), "one is still there");
    topics.leave(index, 0, Family::EventStream);
    assert!(topics.has_room_for(&names[1..]));
}

#[test]
fn a_subscriber_that_moves_during_a_lap_is_named() {
    let mut topics = topics(|_| ());
    let index = topics.intern(&topic("a"));
    for slot in 10..13 {
        topics.join(index, slot, Family::WebSocket, 0);
    }
    assert_eq!(topics.leave(index, 0, Family::WebSocket), Some((12, false)));
    topics.push(&encoded("a", 1));
    assert_eq!(visit(&mut topics, index, &mut Vec::new()), 12);
    assert_eq!(topics.leave(index, 0, Family::WebSocket), Some((11, true)));
    assert_eq!(topics.leave(index, 0, Family::WebSocket), None);
    assert!(!topics.is_active(), "nobody is left to visit");
}

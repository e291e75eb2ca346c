use bytes::Bytes;

use super::*;
use crate::broadcast::{Inbox, path};
use crate::event::{CustomId, Data, EVENT_BYTES_FIXED, EventId, EventName};

const EPOCH: Epoch = Epoch(10_000_000_000_000_000_000);

fn event(data: &str) -> Event {
    Event {
        topic: Topic::new("t").expect("a topic"),
        data: Data::text(Bytes::copy_from_slice(data.as_bytes())).expect("UTF-8"),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    }
}

fn intake(shards: usize, shard_queue: usize, limits: &Limits) -> (Intake, Vec<Inbox>) {
    let (outboxes, inboxes) = (0..shards).map(|_| path(shard_queue).expect("eventfd")).unzip();
    (Intake::new(EPOCH, limits, Arc::default(), Memory::new(limits), outboxes), inboxes)
}

/// The sequences of each batch that waits in `inbox`, up to `messages`.
fn take(inbox: &Inbox, messages: usize) -> Vec<Vec<u64>> {
    std::iter::from_fn(|| inbox.try_recv())
        .take(messages)
        .map(|message| match message {
            Message::Batch(batch) => batch.events.iter().map(|encoded| encoded.sequence).collect(),
            other => panic!("not a batch: {other:?}"),
        })
        .collect()
}

#[test]
fn every_shard_gets_the_same_gapless_order() {
    let (mut intake, inboxes) = intake(2, 1_000, &Limits::default());
    for n in 1..=1_000u64 {
        assert_eq!(intake.accept(event("x"), Stamp(n)), Ok(n));
        if n % 7 == 0 {
            assert_eq!(intake.flush(), Flushed::All);
        }
    }
    intake.flush();
    let seen: Vec<Vec<Vec<u64>>> = inboxes.iter().map(|inbox| take(inbox, usize::MAX)).collect();
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].concat(), (1..=1_000).collect::<Vec<u64>>());
    assert_eq!(intake.queue(), (0, 0));
}

#[test]
fn a_full_batch_leaves_at_once_and_a_shorter_one_waits_for_the_flush() {
    let limits = Limits { window_events_max: 16, ..Limits::default() };
    let (mut intake, inboxes) = intake(1, 64, &limits);
    for _ in 0..9 {
        intake.accept(event("x"), Stamp(0)).expect("room");
    }
    assert_eq!(take(&inboxes[0], usize::MAX), [[1, 2, 3, 4], [5, 6, 7, 8]]);
    intake.flush();
    assert_eq!(take(&inboxes[0], usize::MAX), [[9]]);
}

#[test]
fn a_batch_ends_at_its_bytes_but_holds_at_least_one_event() {
    let limits = Limits { window_bytes_max: 4 * (2 * EVENT_BYTES_FIXED + 10), ..Limits::default() };
    let (mut intake, inboxes) = intake(1, 64, &limits);
    for data in ["1234", "1234", "1", &"large".repeat(10), "1"] {
        intake.accept(event(data), Stamp(0)).expect("room");
    }
    intake.flush();
    assert_eq!(take(&inboxes[0], usize::MAX), [vec![1, 2], vec![3], vec![4], vec![5]]);
}

#[test]
fn a_full_shard_queue_fills_ours_and_then_everything_arrives_once_and_in_order() {
    let limits = Limits { hub_queue_events_max: 10, window_events_max: 8, ..Limits::default() };
    let (mut intake, inboxes) = intake(2, 2, &limits);
    let mut accepted = 0;
    loop {
        match intake.accept(event("x"), Stamp(0)) {
            Ok(sequence) => accepted = sequence,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::full());
                break;
            }
        }
        intake.flush();
    }
    assert_eq!(accepted, 12, "two events in the shards' queues, ten in ours");
    assert_eq!(intake.counters().refused.get(RefusalReason::Full), 1);
    assert_eq!(intake.counters().stalls, 2, "once per shard, however often it is retried");
    assert!(intake.is_stalled());

    // Shard 1 works on while shard 0 does not: it gets one batch more, and not the one after
    // that.
    let mut seen = [Vec::new(), Vec::new()];
    seen[1].extend(take(&inboxes[1], usize::MAX).concat());
    assert_eq!(intake.flush(), Flushed::Stalled);
    seen[1].extend(take(&inboxes[1], usize::MAX).concat());
    assert_eq!(seen[1], [1, 2, 3]);
    assert_eq!(intake.queue().0, 10, "an event counts until every shard has it");

    while intake.queue().0 > 0 {
        for (seen, inbox) in seen.iter_mut().zip(&inboxes) {
            seen.extend(take(inbox, 1).concat());
        }
        intake.flush();
    }
    for (seen, inbox) in seen.iter_mut().zip(&inboxes) {
        seen.extend(take(inbox, usize::MAX).concat());
        assert_eq!(*seen, (1..=12).collect::<Vec<u64>>());
    }
    assert!(!intake.is_stalled());
    assert_eq!(intake.accept(event("x"), Stamp(0)), Ok(13), "the refused event got no sequence");
}

#[test]
fn the_queue_is_bounded_in_bytes_too() {
    let (large, small) = (Encoded::memory_of(&event("12345678")), Encoded::memory_of(&event("1")));
    assert!(small > EVENT_BYTES_FIXED + 3 * "1".len(), "frames count too");
    let limits = Limits { hub_queue_bytes_max: 2 * large + small, ..Limits::default() };
    let (mut intake, _inboxes) = intake(1, 1, &limits);
    intake.accept(event("12345678"), Stamp(0)).expect("room");
    intake.accept(event("12345678"), Stamp(0)).expect("room");
    assert_eq!(intake.queue(), (2, 2 * large));
    assert_eq!(intake.accept(event("12"), Stamp(0)), Err(Refusal::full()));
    assert_eq!(intake.accept(event("1"), Stamp(0)), Ok(3));
}

#[test]
fn an_event_whose_frame_is_too_long_is_refused_and_tells_why() {
    let limits = Limits { message_bytes_max: 10_000, ..Limits::default() };
    let (mut intake, _inboxes) = intake(1, 1, &limits);
    let refusal = intake.accept(event(&"\n".repeat(10_000)), Stamp(0)).expect_err("70,000 bytes");
    assert_eq!(refusal.reason, RefusalReason::TooLarge);
    assert!(refusal.text.contains("at most 21325 are allowed"), "{}", refusal.text);
    assert_eq!(intake.counters().refused.get(RefusalReason::TooLarge), 1);
    intake.accept(event(&"\n".repeat(2_900)), Stamp(0)).expect("20,307 bytes and an id");
    intake.accept(event(&"x".repeat(10_000)), Stamp(0)).expect("a long line costs 7 bytes");
    intake.accept(event(&"\u{1}".repeat(10_000)), Stamp(0)).expect("JSON takes it as base64");
    intake.accept(event(&"\"".repeat(10_000)), Stamp(0)).expect("a quote costs one byte more");
    let name = EventName::new(&"\u{1}".repeat(255)).expect("a name");
    let long = Event { name: Some(name), ..event(&"\"".repeat(10_000)) };
    let refusal = intake.accept(long, Stamp(0)).expect_err("a name of 1,532 bytes");
    assert!(refusal.text.contains("in JSON"), "{refusal}");
}

#[test]
fn a_topic_whose_events_are_still_needed_has_no_room_and_the_others_have() {
    let limits = Limits { window_bytes_total_max: 40_000, ..Limits::default() };
    let (mut intake, inboxes) = intake(1, 64, &limits);
    let other = || Event { topic: Topic::new("other").expect("a topic"), ..event("x") };
    let accepted = (0..1_000u64).take_while(|n| intake.accept(event("x"), Stamp(*n)).is_ok()).count();
    assert_eq!(accepted, 10_000 / Encoded::memory_of(&event("x")), "a quarter of the whole");
    assert_eq!(intake.counters().refused.get(RefusalReason::Behind), 1);
    intake.accept(other(), Stamp(0)).expect("another topic has its own share");
    intake.flush();
    let kept: Vec<Message> = std::iter::from_fn(|| inboxes[0].try_recv()).collect();
    assert_eq!(intake.accept(event("x"), Stamp(0)), Err(Refusal::behind()), "a shard has them still");
    drop(kept);
    intake.accept(event("x"), Stamp(0)).expect("nobody needs the former ones");
    assert_eq!(intake.topics().memory().held(), Encoded::memory_of(&event("x")));
}

#[test]
fn a_shard_that_is_gone_holds_nobody_up() {
    let (mut intake, mut inboxes) = intake(2, 1, &Limits::default());
    inboxes.remove(0);
    intake.accept(event("x"), Stamp(0)).expect("room");
    assert_eq!(intake.flush(), Flushed::All);
    assert_eq!(take(&inboxes[0], usize::MAX), [[1]]);
}

#[test]
fn what_only_the_server_says_is_refused_and_what_looks_like_it_is_not() {
    let (mut intake, _inboxes) = intake(1, 8, &Limits::default());
    let with_id = |id: &str| Event { id: Some(CustomId::new(id).expect("an id")), ..event("x") };
    let named = |name: &str| Event { name: Some(EventName::new(name).expect("a name")), ..event("x") };
    let ours = EventId { epoch: EPOCH, sequence: 7 }.to_string();
    let foreign = EventId { epoch: Epoch(u64::MAX), sequence: 0 }.to_string();
    for id in [&ours, &foreign] {
        let refusal = intake.accept(with_id(id), Stamp(0)).expect_err("reserved");
        assert_eq!(refusal.reason, RefusalReason::ReservedId);
        assert!(refusal.text.contains(id), "{refusal}");
    }
    let refusal = intake.accept(named("fanwave-gap"), Stamp(0)).expect_err("reserved");
    assert_eq!(refusal.reason, RefusalReason::ReservedEvent);
    assert!(refusal.text.contains("fanwave-gap"), "{refusal}");
    let refused = &intake.counters().refused;
    assert_eq!((refused.get(RefusalReason::ReservedId), refused.get(RefusalReason::ReservedEvent)), (2, 1));
    // The last two are of a shop and of Redis Streams.
    let others = ["7", &format!("{ours}x"), "1-01", "A-1", "a-b-1", "order-7", "1526919030474-55"];
    for id in others {
        assert!(intake.accept(with_id(id), Stamp(0)).is_ok(), "{id}");
    }
    assert!(intake.accept(named("fanwave-gaps"), Stamp(0)).is_ok());
    assert_eq!(intake.sequence(), 8);
}

#[test]
fn an_event_is_encoded_before_it_leaves_for_the_formats_that_have_subscribers() {
    let (mut intake, inboxes) = intake(1, 8, &Limits::default());
    // What lies within another frame brings that one.
    let mut steps = vec![(None, 3), (Some(Format::Sse), 2), (Some(Format::WebSocket), 1)];
    // An event that weighs the frames of a rare format came after the flush that saw its need.
    steps.extend([(Some(Format::Json), 1), (None, 0)]);
    for (wanted, absent) in steps {
        if let Some(format) = wanted {
            intake.demand.begin(format);
        }
        intake.accept(event("x"), Stamp(0)).expect("room");
        intake.flush();
        let sent = format!("{:?}", inboxes[0].try_recv());
        assert_eq!(sent.matches("<uninit>").count(), absent, "{sent}");
    }
}

/// Else every event would weigh what nobody asks for.
#[test]
fn json_weighs_in_events_that_come_while_somebody_reads_it_and_in_no_others() {
    let (mut intake, inboxes) = intake(1, 8, &Limits::default());
    let take = |intake: &mut Intake| {
        intake.tell_time(1_764_460_800_000);
        intake.accept(event("x"), Stamp(0)).expect("room");
        intake.flush();
        let Some(Message::Batch(batch)) = inboxes[0].try_recv() else { panic!("a batch") };
        batch.events[0].clone()
    };
    let plain = take(&mut intake);
    assert_eq!(plain.memory(), Encoded::memory_of(&event("x")));
    intake.demand.begin(Format::Json);
    intake.flush();
    let wanted = take(&mut intake);
    let json = Format::Json.frame_bytes_max(&event("x"));
    assert_eq!(wanted.memory(), plain.memory() + json);
    assert_eq!(intake.topics().memory().held(), plain.memory() + wanted.memory());
    for (encoded, is_kept) in [(plain, false), (wanted, true)] {
        let (frame, again) = (encoded.frame(Format::Json), encoded.frame(Format::Json));
        assert_eq!(frame, again);
        assert!(frame.ends_with(br#""data":"x","time":1764460800000}"#), "{frame:?}");
        assert_eq!(frame.as_ptr() == again.as_ptr(), is_kept);
    }
}

/// So the least memory that a server needs is the same, whatever format is read.
#[test]
fn an_event_that_would_be_too_heavy_with_its_json_keeps_none() {
    let limits = Limits { message_bytes_max: 10_000, ..Limits::default() };
    let (mut intake, _inboxes) = intake(1, 8, &limits);
    intake.demand.begin(Format::Json);
    intake.flush();
    // Line breaks weigh seven times on an event stream.
    let heavy = event(&format!("{}{}", "\n".repeat(1_650), "\"".repeat(8_350)));
    let light = event(&"x".repeat(10_000));
    for (event, is_kept) in [(heavy, false), (light, true)] {
        let json = Format::Json.frame_bytes_max(&event);
        let with = Encoded::memory_of(&event) + json;
        assert_eq!(with <= limits.event_memory_max(), is_kept, "{with}");
        assert_eq!(intake.memory_of(&event), if is_kept { with } else { with - json });
        intake.accept(event, Stamp(0)).expect("room");
    }
}

#[test]
fn nothing_is_accepted_while_draining() {
    let (mut intake, inboxes) = intake(1, 8, &Limits::default());
    intake.accept(event("x"), Stamp(0)).expect("room");
    intake.drain();
    assert_eq!(intake.accept(event("x"), Stamp(0)), Err(Refusal::draining()));
    intake.flush();
    assert_eq!(take(&inboxes[0], usize::MAX), [[1]]);
}

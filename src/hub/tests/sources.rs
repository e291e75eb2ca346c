//! A source that answers later.

use super::*;
use crate::broadcast::{Publish, Taken, Ticket};
use crate::event::{Data, Epoch, Event};
use crate::hub::source::{Remote, Source, Submission, Submissions, Wish};
use crate::refusal::{Refusal, RefusalReason};

fn remote_bench(shards: usize) -> (Bench, Submissions) {
    let bench = bench(shards, Limits::default());
    let (remote, submissions) = Remote::new();
    bench.hub.intake().source = Source::Remote(remote);
    (bench, submissions)
}

fn event(text: &str) -> Event {
    let topic = Topic::new("t").expect("a topic");
    Event { topic, data: Data::string(text.into()), name: None, id: None, retry_ms: None, key: None }
}

/// The next event that was handed over, and where its answer goes.
async fn next(submissions: &mut Submissions) -> (Event, crate::hub::source::Reply) {
    let Some(Submission { wish: Wish::Publish(event, _), reply, .. }) = submissions.recv().await else {
        panic!("an event")
    };
    (event, reply)
}

fn taken(sequence: u64) -> Taken {
    Taken { epoch: EPOCH, sequence, duplicate: false }
}

#[tokio::test]
async fn a_publish_is_answered_by_its_source_and_broadcast_where_it_places_it() {
    let (mut bench, mut submissions) = remote_bench(1);
    let mut seen = bench.start_shard(0);
    let hub = bench.hub.clone();
    let source = tokio::spawn(async move {
        let (event, reply) = next(&mut submissions).await;
        hub.place(event, 7, 1_764_460_800_000).await;
        reply.tell(Ok(taken(7)));
        hub.flush();
        let (_, reply) = next(&mut submissions).await;
        reply.tell(Err(Refusal::new(RefusalReason::Source, "it is away")));
        // Nobody hears what became of the third.
        drop(next(&mut submissions).await);
        submissions
    });
    let first = bench.post("/topics/t", "x").await;
    assert_eq!((first.status, first.body.contains(r#""sequence":7}"#)), (StatusCode::OK, true));
    let Some(Seen::Event(encoded)) = seen.recv().await else { panic!("an event") };
    assert_eq!((encoded.sequence, encoded.unix_ms()), (7, 1_764_460_800_000));
    let second = bench.post("/topics/t", "y").await;
    assert_eq!((second.status, second.body.contains("it is away")), (StatusCode::SERVICE_UNAVAILABLE, true));
    let third = bench.post("/topics/t", "z").await;
    assert_eq!(third.status, StatusCode::GATEWAY_TIMEOUT);
    drop(source.await);
    let fourth = bench.post("/topics/t", "z").await;
    assert_eq!(fourth.status, StatusCode::SERVICE_UNAVAILABLE, "it was sent nowhere");
    let counted = bench.hub.intake().counters().refused.clone();
    assert_eq!(
        [RefusalReason::Source, RefusalReason::OutcomeUnknown].map(|reason| counted.get(reason)),
        [2, 1]
    );
}

#[tokio::test]
async fn a_stream_goes_on_while_its_lines_wait_and_its_summary_waits_for_all() {
    let (bench, mut submissions) = remote_bench(1);
    let lines: String = (0..5).map(|n| format!("{{\"topic\":\"t\",\"data\":\"{n}\"}}\n")).collect();
    let asked = tokio::spawn(async move { bench.post("/publish", lines).await });
    let mut waiting = Vec::new();
    for n in 0..5 {
        let (event, reply) = next(&mut submissions).await;
        assert_eq!(event.data.bytes(), n.to_string().as_bytes(), "in order, before any answer");
        waiting.push(reply);
    }
    for (n, reply) in waiting.into_iter().enumerate().rev() {
        match n {
            1 => reply.tell(Err(Refusal::new(RefusalReason::Source, "it is away"))),
            3 => drop(reply),
            n => reply.tell(Ok(taken(10 + n as u64))),
        }
    }
    let answer = json_lines(&asked.await.expect("an answer").body);
    let summary = answer.last().expect("a summary");
    assert_eq!((&summary["accepted"], &summary["refused"]), (&3.into(), &2.into()));
    assert_eq!(summary["last_id"], format!("{EPOCH_TEXT}-14"));
    assert_eq!((&answer[0]["line"], &answer[1]["line"]), (&2.into(), &4.into()), "{answer:?}");
}

#[tokio::test]
async fn clients_of_a_shard_are_answered_in_their_order_whenever_the_source_answers() {
    let (mut bench, mut submissions) = remote_bench(1);
    let mut uplink = bench.inboxes[0].take_uplink();
    let serving = tokio::spawn(crate::hub::uplink::serve(bench.hub.clone()));
    let ticket = |tag| Ticket { slot: 1, number: 1, tag };
    for tag in 0..3 {
        let mut event = event("x");
        if tag == 1 {
            event.name = Some(crate::event::EventName::new("fanwave-gap").expect("a name"));
        }
        assert!(uplink.send(Publish { ticket: ticket(tag), event, key: None }));
    }
    uplink.wake_hub();
    let (_, first) = next(&mut submissions).await;
    let (_, last) = next(&mut submissions).await;
    last.tell(Ok(taken(9)));
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(uplink.answers().is_none(), "the first has no answer");
    first.tell(Ok(taken(8)));
    let mut told = Vec::new();
    until(|| {
        told.extend(std::iter::from_fn(|| uplink.answers()).flatten());
        told.len() == 3
    })
    .await;
    let said = |answer: &crate::broadcast::Answer| {
        (answer.ticket.tag, answer.outcome.as_ref().map(|taken| taken.sequence).map_err(|no| no.reason))
    };
    let told: Vec<_> = told.iter().map(said).collect();
    assert_eq!(told, [(0, Ok(8)), (1, Err(RefusalReason::ReservedEvent)), (2, Ok(9))]);
    serving.abort();
}

#[tokio::test]
async fn a_removal_is_the_sources_too() {
    let (bench, mut submissions) = remote_bench(1);
    let hub = bench.hub.clone();
    let asked =
        tokio::spawn(async move { bench.ask(Request::delete("/topics/t").body(Body::empty())).await });
    let Some(Submission { wish: Wish::Remove(topic), reply, .. }) = submissions.recv().await else {
        panic!("a removal")
    };
    hub.intake().place_removal(topic, 5);
    reply.tell(Ok(taken(5)));
    let answer = asked.await.expect("an answer");
    assert_eq!((answer.status, answer.body.contains(r#""sequence":5"#)), (StatusCode::OK, true));
    assert_eq!(hub.intake().counters().removals, 1);
}

/// What a source took in one epoch has an id of that one, although another has begun since.
#[tokio::test]
async fn an_answer_names_the_epoch_in_which_the_source_took_it() {
    let (bench, mut submissions) = remote_bench(1);
    let hub = bench.hub.clone();
    let source = tokio::spawn(async move {
        for sequence in [900, 901] {
            let (_, reply) = next(&mut submissions).await;
            assert!(hub.place_word(|intake| intake.begin_era(Epoch(EPOCH.0 + sequence))).await);
            reply.tell(Ok(taken(sequence)));
        }
        let Some(Submission { wish: Wish::Remove(_), reply, .. }) = submissions.recv().await else {
            panic!("a removal")
        };
        reply.tell(Ok(taken(902)));
    });
    let single = bench.post("/topics/t", "x").await;
    assert_eq!(single.json()["id"], format!("{EPOCH_TEXT}-900"));
    let lines = bench.post("/publish", "{\"topic\":\"t\",\"data\":\"y\"}\n").await;
    assert_eq!(json_lines(&lines.body)[0]["last_id"], format!("{EPOCH_TEXT}-901"));
    let removal = bench.ask(Request::delete("/topics/t").body(Body::empty())).await;
    assert_eq!(removal.json()["id"], format!("{EPOCH_TEXT}-902"));
    source.await.expect("it answers all");
}

#[tokio::test]
async fn removals_holes_and_epochs_wait_for_room_as_events_do_and_none_is_lost() {
    let limits = Limits { hub_queue_events_max: 4, shard_queue_batches_max: 1, ..Limits::default() };
    let bench = bench(1, limits);
    let (hub, queued) = (bench.hub.clone(), || bench.hub.intake().queue().0);
    let placing = tokio::spawn(async move {
        for sequence in 1..=30 {
            let topic = Topic::new("t").expect("a topic");
            let placed = match sequence % 4 {
                0 => hub.place_word(|intake| intake.tell_hole(sequence)).await,
                3 => hub.place_word(|intake| intake.tell_hole_of(topic, sequence)).await,
                1 => hub.place_word(|intake| intake.place_removal(topic, sequence)).await,
                _ => hub.place(event("x"), sequence, 0).await,
            };
            assert!(placed);
        }
        let epoch = Epoch(EPOCH.0 + 1);
        assert!(hub.place_word(|intake| intake.begin_era(epoch)).await);
        hub.flush();
    });
    until(|| queued() >= 4).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!placing.is_finished() && queued() <= 5, "what is not taken is bounded: {}", queued());
    let mut told = Vec::new();
    until(|| {
        let positions =
            std::iter::from_fn(|| bench.inboxes[0].try_recv()).flat_map(|message| match message {
                Message::Batch(batch) => batch.events.iter().map(|event| event.sequence).collect(),
                Message::Removal(removal) => vec![removal.sequence],
                Message::Hole(position) => vec![position],
                Message::TopicHole(hole) => vec![hole.position],
                Message::Era(era) => vec![era.base],
                other => panic!("{other:?}"),
            });
        told.extend(positions);
        bench.hub.flush();
        assert!(queued() <= 5, "{}", queued());
        told.len() == 31
    })
    .await;
    assert_eq!(told, (1..=31).collect::<Vec<u64>>(), "in their order");
}

#[tokio::test]
async fn nothing_is_placed_while_the_process_hands_over() {
    let (bench, _submissions) = remote_bench(1);
    assert!(bench.hub.place(event("x"), 1, 0).await);
    bench.hub.intake().paused = true;
    let hub = bench.hub.clone();
    let placing = tokio::spawn(async move {
        assert!(hub.place_word(|intake| intake.tell_hole(2)).await);
        hub.place(event("y"), 3, 0).await
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.hub.intake().sequence(), 1, "what is handed over has an end");
    bench.hub.resume().await;
    assert!(placing.await.expect("it is placed then"));
    assert_eq!(bench.hub.intake().sequence(), 3);
}

#[tokio::test]
async fn a_source_that_is_away_refuses_publishes_and_the_server_stays_healthy() {
    let (bench, _submissions) = remote_bench(1);
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/readyz?publish", 200)] {
        assert_eq!(bench.get(path).await.status.as_u16(), status, "{path}");
    }
    bench.hub.intake().degrade(Some("the disk is full".into()));
    let health = bench.get("/healthz").await;
    assert_eq!((health.status.as_u16(), health.body.as_str()), (200, "degraded: the disk is full\n"));
    assert_eq!(bench.get("/readyz").await.status.as_u16(), 200);
    let ready = bench.get("/readyz?publish").await;
    assert_eq!((ready.status.as_u16(), ready.body.as_str()), (503, "degraded: the disk is full\n"));
    let refused = bench.post("/topics/t", "x").await;
    assert_eq!((refused.status.as_u16(), refused.body.contains("the disk is full")), (503, true));
    assert_eq!(bench.get("/readyz?x").await.status.as_u16(), 400);
    bench.hub.intake().degrade(None);
    assert_eq!(bench.get("/readyz?publish").await.status.as_u16(), 200);
    bench.hub.begin_drain();
    assert_eq!(bench.get("/readyz").await.status.as_u16(), 503);
}

#[tokio::test]
async fn what_cannot_be_an_event_here_is_counted_and_left_out() {
    let (bench, _submissions) = remote_bench(1);
    let large = event(&"\n".repeat(3_000_000));
    assert!(bench.hub.place(large, 3, 0).await);
    assert!(bench.hub.place(event("x"), 4, 0).await);
    let intake = bench.hub.intake();
    assert_eq!((intake.sequence(), intake.counters().events), (4, 1));
    assert_eq!(intake.counters().refused.get(RefusalReason::TooLarge), 1);
}

#[tokio::test]
async fn an_epoch_that_begins_anew_counts_from_one_and_forgets_keys() {
    let (bench, _submissions) = remote_bench(1);
    assert!(bench.hub.place(event("x"), 900, 0).await);
    let other = Epoch(EPOCH.0 + 1);
    let key = crate::publishing::IdempotencyKey::new("k").expect("a key");
    let mut intake = bench.hub.intake();
    let now = bench.hub.now();
    intake.remember(&event("x"), key.clone(), 900, now);
    let repeat = intake.publish(event("x"), Some(key.clone()), now).expect("it is known");
    assert!(matches!(
        repeat,
        crate::hub::source::Published::Taken(Taken { sequence: 900, duplicate: true, .. })
    ));
    intake.begin_era(other);
    let again = intake.publish(event("x"), Some(key), now).expect("it is new");
    assert!(matches!(again, crate::hub::source::Published::Later(_)));
    intake.place(event("y"), 1, 0, now);
    assert_eq!(intake.sequence(), 902, "positions rise");
    drop(intake);
    bench.hub.flush();
    let messages: Vec<Message> = std::iter::from_fn(|| bench.inboxes[0].try_recv()).collect();
    let [Message::Batch(old), Message::Era(era), Message::Batch(new)] = messages.as_slice() else {
        panic!("{messages:?}")
    };
    assert_eq!((era.epoch, era.base), (other, 901));
    let frame = |batch: &crate::broadcast::EncodedBatch| {
        String::from_utf8(batch.events[0].frame(crate::wire::Format::Sse).to_vec()).expect("UTF-8")
    };
    assert!(frame(old).contains(&format!("id: {EPOCH_TEXT}-900\n")), "{}", frame(old));
    assert!(frame(new).contains(&format!("id: {other}-1\n")), "{}", frame(new));
}

/// A store in a directory of this name that answers when the disk has an event.
fn strict_store(name: &str) -> (Source, std::path::PathBuf) {
    use crate::config::store::Promise;
    use crate::hub::source::{Stored, news};
    use crate::store::{Directory, Settings, Store};

    let path = std::env::temp_dir().join(format!("fanwave-hub-{name}-{}", std::process::id()));
    let directory = Directory::open(&path).expect("a directory").expect("nobody has it");
    let settings = Settings {
        promise: Promise::Always,
        bytes_max: 1 << 20,
        segment_bytes: 1 << 16,
        age_ms_max: 600_000,
        rules: Default::default(),
    };
    let (tell, heard) = news();
    let tell = move |said| _ = tell.send(said);
    let weigh = |event: &Event| event.weight();
    let (store, _) =
        Store::open(directory, settings, &Limits::default(), weigh, EPOCH, tell).expect("a store");
    (Source::Store(Box::new(Stored::new(store, heard))), path)
}

#[tokio::test]
async fn a_repeat_of_what_the_disk_does_not_have_yet_is_one_and_waits_with_it() {
    let (source, path) = strict_store("repeat");
    let mut bench = bench(1, Limits::default());
    let mut seen = bench.start_shard(0);
    bench.hub.intake().source = source;
    let serving = tokio::spawn(crate::hub::source::store::serve(bench.hub.clone()));
    let publish = |text: &'static str| bench.post("/topics/t?idempotency_key=k", text);
    let (first, again, other) = tokio::join!(publish("x"), publish("x"), publish("y"));
    assert!(first.body.contains("\"sequence\":1}"), "{}", first.body);
    assert!(again.body.contains("\"sequence\":1,\"duplicate\":true"), "{}", again.body);
    assert_eq!(other.status, StatusCode::CONFLICT);
    let second = bench.post("/topics/t", "z").await;
    assert!(second.body.contains("\"sequence\":2}"), "{}", second.body);
    let mut sequences = Vec::new();
    while sequences.len() < 2 {
        let Some(Seen::Event(encoded)) = seen.recv().await else { panic!("an event") };
        sequences.push(encoded.sequence);
    }
    assert_eq!(sequences, [1, 2], "each is broadcast once");
    bench.hub.close_source().await;
    serving.await.expect("it ends with the store");
    std::fs::remove_dir_all(path).expect("ours");
}

/// A disk that hangs may have its answers ready only when the drain is over.
#[tokio::test]
async fn what_a_store_tells_after_it_was_closed_is_heard() {
    let (source, path) = strict_store("closed");
    let bench = bench(1, Limits::default());
    bench.hub.intake().source = source;
    let serving = tokio::spawn(crate::hub::source::store::serve(bench.hub.clone()));
    tokio::task::yield_now().await;
    let key = || crate::publishing::IdempotencyKey::new("k").ok();
    let publish = || bench.hub.intake().publish(event("x"), key(), bench.hub.now()).expect("room");
    let (first, again) = (publish(), publish());
    bench.hub.close_source().await;
    serving.await.expect("it ends with the store");
    assert_eq!(first.outcome().await, Ok(taken(1)));
    assert_eq!(again.outcome().await, Ok(Taken { duplicate: true, ..taken(1) }));
    std::fs::remove_dir_all(path).expect("ours");
}

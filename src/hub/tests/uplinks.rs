//! What clients of the shards publish.

use super::*;
use crate::broadcast::{Answer, Publish, Ticket, Uplink};
use crate::config::limits::{UPLINK_PUBLISHES_MAX, UPLINK_ROUND_MAX, UPLINK_SHARE};
use crate::event::{Data, Event, EventName};
use crate::refusal::RefusalReason;

fn publish(topic: &str, tag: u64) -> Publish {
    let event = Event {
        topic: Topic::new(topic).expect("a topic"),
        data: Data::string(tag.to_string()),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    };
    Publish { ticket: Ticket { slot: 3, number: 4, tag }, event, key: None }
}

/// Tags and sequences of what was taken, else reasons.
fn told(uplink: &mut Uplink) -> Vec<(u64, Result<u64, RefusalReason>)> {
    let answers = std::iter::from_fn(|| uplink.answers()).flatten();
    let tell = |Answer { ticket, outcome }: Answer| {
        assert_eq!((ticket.slot, ticket.number), (3, 4));
        (ticket.tag, outcome.map(|taken| taken.sequence).map_err(|refusal| refusal.reason))
    };
    answers.map(tell).collect()
}

#[tokio::test]
async fn what_waits_is_taken_in_turns_and_travels_in_one_batch() {
    let mut bench = bench(3, Limits::default());
    let mut uplinks: Vec<Uplink> = bench.inboxes.iter_mut().map(Inbox::take_uplink).collect();
    for tag in 0..100 {
        assert!(uplinks[0].send(publish("a", tag)));
    }
    for tag in 0..2 {
        assert!(uplinks[2].send(publish("a", tag)));
    }
    bench.hub.take_uplinks(0, &mut Default::default());
    let share = UPLINK_SHARE as u64;
    let first: Vec<_> = (0..share).map(|tag| (tag, Ok(tag + 1))).collect();
    let rest: Vec<_> = (share..100).map(|tag| (tag, Ok(tag + 3))).collect();
    assert_eq!(told(&mut uplinks[0]), [first, rest].concat());
    assert_eq!(told(&mut uplinks[2]), [(0, Ok(share + 1)), (1, Ok(share + 2))]);
    assert_eq!(told(&mut uplinks[1]), []);
    for inbox in &bench.inboxes {
        let Some(Message::Batch(batch)) = inbox.try_recv() else { panic!("a batch") };
        let sequences: Vec<u64> = batch.events.iter().map(|event| event.sequence).collect();
        assert_eq!(sequences, (1..=102).collect::<Vec<_>>());
        assert!(inbox.try_recv().is_none(), "one batch for all");
    }
}

#[tokio::test]
async fn a_round_is_bounded_and_the_next_one_begins_with_another_shard() {
    let mut bench = bench(2, Limits { hub_queue_events_max: 100_000, ..Limits::default() });
    let mut uplinks: Vec<Uplink> = bench.inboxes.iter_mut().map(Inbox::take_uplink).collect();
    for uplink in &mut uplinks {
        for tag in 0..UPLINK_PUBLISHES_MAX as u64 {
            assert!(uplink.send(publish("a", tag)));
        }
    }
    bench.hub.take_uplinks(1, &mut Default::default());
    let counts = uplinks.iter_mut().map(told).collect::<Vec<_>>();
    assert_eq!(counts.iter().map(Vec::len).sum::<usize>(), UPLINK_ROUND_MAX);
    assert_eq!(counts[1][0], (0, Ok(1)), "shard 1 came first");
    assert_eq!(counts[0][0], (0, Ok(UPLINK_SHARE as u64 + 1)));
}

#[tokio::test]
async fn a_waiting_hub_is_woken_and_refuses_as_the_control_plane_does() {
    let mut bench =
        bench(1, Limits { hub_queue_events_max: 1, shard_queue_batches_max: 1, ..Limits::default() });
    let mut uplink = bench.inboxes[0].take_uplink();
    let serving = tokio::spawn(crate::hub::uplink::serve(bench.hub.clone()));
    tokio::task::yield_now().await;
    let mut reserved = publish("a", 0);
    reserved.event.name = Some(EventName::new("fanwave-gap").expect("a name"));
    // One is with the shard, one waits for a place there, one has no place in the queue.
    let publishes = [reserved, publish("a", 1), publish("a", 2), publish("a", 3)];
    let mut heard = Vec::new();
    for publish in publishes {
        assert!(uplink.send(publish));
        uplink.wake_hub();
        let before = heard.len();
        until(|| {
            heard.append(&mut told(&mut uplink));
            heard.len() > before
        })
        .await;
    }
    let refused =
        [(0, Err(RefusalReason::ReservedEvent)), (1, Ok(1)), (2, Ok(2)), (3, Err(RefusalReason::Full))];
    assert_eq!(heard, refused);
    bench.hub.begin_drain();
    assert!(uplink.send(publish("a", 4)));
    uplink.wake_hub();
    until(|| {
        heard = told(&mut uplink);
        !heard.is_empty()
    })
    .await;
    assert_eq!(heard, [(4, Err(RefusalReason::Draining))]);
    let counted = bench.hub.intake().counters().refused.clone();
    let counts = [RefusalReason::ReservedEvent, RefusalReason::Full, RefusalReason::Draining]
        .map(|reason| counted.get(reason));
    assert_eq!(counts, [1, 1, 1]);
    // Answers wake a shard that sleeps.
    assert!(bench.inboxes[0].try_recv().is_some() && bench.inboxes[0].may_sleep());
    assert!(uplink.send(publish("a", 5)));
    uplink.wake_hub();
    until(|| !bench.inboxes[0].may_sleep()).await;
    assert_eq!(told(&mut uplink), [(5, Err(RefusalReason::Draining))]);
    serving.abort();
}

//! `DELETE /topics/{topic}`: a removal has a place in the order of events, on all shards.

use super::*;
use crate::hub::RefusalReason;

fn delete(uri: &str) -> axum::http::Result<Request<Body>> {
    Request::delete(uri).body(Body::empty())
}

/// What a shard's queue holds: sequences, removals with their topic.
fn told(inbox: &Inbox) -> Vec<(u64, Option<String>)> {
    let mut told = Vec::new();
    while let Some(message) = inbox.try_recv() {
        match message {
            Message::Batch(batch) => told.extend(batch.events.iter().map(|event| (event.sequence, None))),
            Message::Removal(removal) => told.push((removal.sequence, Some(removal.topic.to_string()))),
            other => panic!("nobody asked for {other:?}"),
        }
    }
    told
}

#[tokio::test]
async fn a_removal_reaches_every_shard_in_the_order_of_events() {
    let bench = bench(2, Limits::default());
    bench.post("/topics/a%2Fb", "x").await;
    let answer = bench.ask(delete("/topics/a%2Fb")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json(), serde_json::json!({"id": format!("{EPOCH_TEXT}-2"), "sequence": 2}));
    bench.post("/topics/a%2Fb", "y").await;
    for inbox in &bench.inboxes {
        assert_eq!(told(inbox), [(1, None), (2, Some("a/b".to_string())), (3, None)]);
    }
    assert_eq!(bench.hub.intake().counters().removals, 1);
    assert_eq!(bench.hub.intake().queue(), (0, 0));
}

#[tokio::test]
async fn a_removed_topic_is_told_with_the_place_of_its_removal() {
    let mut bench = bench(1, Limits::default());
    bench.post("/topics/a?id=mine", "x").await;
    bench.ask(delete("/topics/a")).await;
    let _shard = bench.start_shard(0);
    let view = bench.get("/topics/a").await.json();
    assert_eq!(view["last_id"], format!("{EPOCH_TEXT}-2"), "{view}");
    assert_eq!(view["published"]["events"], 1, "{view}");
}

#[tokio::test]
async fn a_removal_that_cannot_be_is_refused_and_counted_and_takes_no_sequence() {
    let bench = bench(1, Limits::default());
    for (uri, told, reason) in [
        ("/topics/", "empty", RefusalReason::BadTopic),
        ("/topics/a%0A", "control character", RefusalReason::BadTopic),
        ("/topics/a%2F*", "which stands for many topics; remove one", RefusalReason::BadTopic),
        ("/topics/a?force=1", "\"force\"", RefusalReason::BadQuery),
    ] {
        let before = bench.hub.intake().counters().refused.get(reason);
        bench.ask(delete(uri)).await.assert_error(StatusCode::BAD_REQUEST, told);
        assert_eq!(bench.hub.intake().counters().refused.get(reason), before + 1, "{uri}");
    }
    bench.hub.begin_drain();
    bench.ask(delete("/topics/a")).await.assert_error(StatusCode::SERVICE_UNAVAILABLE, "draining");
    assert_eq!(bench.hub.intake().sequence(), 0);
    assert_eq!(bench.hub.intake().counters().removals, 0);
    assert_eq!(told(&bench.inboxes[0]), []);
}

#[tokio::test]
async fn removals_wait_in_the_queue_like_events_do_and_are_bounded_with_them() {
    let bench = bench(1, Limits { hub_queue_events_max: 4, shard_queue_batches_max: 1, ..Limits::default() });
    let mut accepted = Vec::new();
    for number in 0.. {
        let answer = match number % 2 {
            0 => bench.post("/topics/a", "x").await,
            _ => bench.ask(delete("/topics/a")).await,
        };
        if answer.status != StatusCode::OK {
            answer.assert_error(StatusCode::SERVICE_UNAVAILABLE, "the queue to the shards is full");
            break;
        }
        accepted.push((number + 1, (number % 2 == 1).then(|| "a".to_string())));
    }
    assert_eq!(accepted.len(), 5, "one in the shard's queue, four in ours");
    let mut seen = Vec::new();
    while seen.len() < accepted.len() {
        seen.extend(told(&bench.inboxes[0]));
        bench.hub.flush();
    }
    assert_eq!(seen, accepted);
    assert_eq!(bench.hub.intake().queue(), (0, 0));
}

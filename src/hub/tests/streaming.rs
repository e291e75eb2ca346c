//! `POST /publish`: one request of any length, answered while it is read.

use std::io;

use axum::body::BodyDataStream;
use futures_util::{StreamExt, stream};

use super::*;
use crate::config::limits::ERROR_LINES_MAX;
use crate::hub::RefusalReason;

/// A request whose body is fed through a channel while its answer is read.
struct Open {
    feed: mpsc::UnboundedSender<io::Result<String>>,
    answer: BodyDataStream,
}

async fn open(bench: &Bench) -> Open {
    let (status, open) = ask(bench, "/publish").await;
    assert_eq!(status, StatusCode::OK, "the head comes before the body");
    open
}

/// Begins a request for `target` whose body is still to come, and waits for the head of the answer.
async fn ask(bench: &Bench, target: &str) -> (StatusCode, Open) {
    let (feed, mut fed) = mpsc::unbounded_channel::<io::Result<String>>();
    let body = Body::from_stream(stream::poll_fn(move |context| fed.poll_recv(context)));
    let request = Request::post(target).header("host", "localhost").body(body).expect("a request");
    let response = bench.router.clone().oneshot(request).await.expect("infallible");
    (response.status(), Open { feed, answer: response.into_body().into_data_stream() })
}

impl Open {
    fn send(&self, chunk: impl Into<String>) {
        self.feed.send(Ok(chunk.into())).expect("the request is read");
    }

    /// The next line of the answer.
    async fn line(&mut self) -> Value {
        let line = self.answer.next().await.expect("a line").expect("no error");
        serde_json::from_slice(&line).expect("JSON")
    }

    /// Ends the body, and gives what is left of the answer.
    async fn rest(self) -> Vec<Value> {
        let Open { feed, answer } = self;
        drop(feed);
        lines(answer).await
    }
}

/// What is left of an answer.
async fn lines(mut answer: BodyDataStream) -> Vec<Value> {
    let mut text = Vec::new();
    while let Some(chunk) = answer.next().await {
        text.extend_from_slice(&chunk.expect("no error"));
    }
    json_lines(std::str::from_utf8(&text).expect("UTF-8"))
}

fn line(data: impl std::fmt::Display) -> String {
    format!("{{\"topic\":\"a\",\"data\":\"{data}\"}}\n")
}

#[tokio::test]
async fn garbage_in_the_middle_is_told_by_its_line_number_and_the_rest_goes_on() {
    let mut bench = bench(1, Limits::default());
    let body = format!(
        "{}\r\nnonsense\n\n{}{{\"topic\":\"\",\"data\":1}}\n{}",
        line(1).trim(),
        line(2),
        line(3).trim()
    );
    let answer = bench.post("/publish", body).await;
    let lines = answer.json_lines();
    assert_eq!((&lines[0]["line"], &lines[1]["line"]), (&2.into(), &5.into()));
    assert!(lines[1]["error"].as_str().expect("an error").contains("empty"), "{}", lines[1]);
    let summary = serde_json::json!({"accepted": 3, "refused": 2, "last_id": format!("{EPOCH_TEXT}-3")});
    assert_eq!(lines[2..], [summary]);
    let mut seen = bench.start_shard(0);
    assert_eq!(events(&mut seen, 3).await, [(1, "1".into()), (2, "2".into()), (3, "3".into())]);
}

#[tokio::test]
async fn errors_and_events_flow_while_the_request_is_open() {
    let mut bench = bench(1, Limits::default());
    let mut seen = bench.start_shard(0);
    let mut open = open(&bench).await;
    for n in 1..=3u64 {
        open.send(format!("{}bad\n", line(n)));
        assert_eq!(events(&mut seen, 1).await, [(n, n.to_string())]);
        assert_eq!(open.line().await["line"], n * 2);
    }
    let summary = open.rest().await;
    assert_eq!((&summary[0]["accepted"], &summary[0]["refused"]), (&3.into(), &3.into()));
}

#[tokio::test]
async fn one_chunk_travels_in_as_few_batches_as_allowed() {
    let bench = bench(1, Limits::default());
    bench.post("/publish", (1..=600).map(line).collect::<String>()).await;
    let sizes: Vec<usize> = std::iter::from_fn(|| bench.inboxes[0].try_recv())
        .map(|message| match message {
            Message::Batch(batch) => batch.events.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(sizes, [256, 256, 88]);
}

#[tokio::test]
async fn chunks_may_end_anywhere() {
    let mut bench = bench(1, Limits::default());
    let body: String = (1..=20).map(|n| line(format!("ä{n}"))).collect();
    let bytes: Vec<Result<Vec<u8>, io::Error>> = body.bytes().map(|byte| Ok(vec![byte])).collect();
    let answer = bench.post("/publish", Body::from_stream(stream::iter(bytes))).await;
    assert_eq!(answer.json()["accepted"], 20);
    let mut seen = bench.start_shard(0);
    let want: Vec<(u64, String)> = (1..=20).map(|n| (n, format!("ä{n}"))).collect();
    assert_eq!(events(&mut seen, 20).await, want);
}

#[tokio::test]
async fn an_over_long_line_is_refused_at_once_and_skipped_to_its_end() {
    let limits = Limits { message_bytes_max: 100, ..Limits::default() };
    let mut bench = bench(1, limits);
    let mut seen = bench.start_shard(0);
    let mut open = open(&bench).await;
    open.send(line(1));
    for _ in 0..100 {
        open.send("x".repeat(1_000));
    }
    let refused = open.line().await;
    assert_eq!(refused["line"], 2, "told before the line has ended");
    open.send(format!("\n{}", line(2)));
    assert_eq!(events(&mut seen, 2).await, [(1, "1".into()), (2, "2".into())]);
    let summary = &open.rest().await[0];
    assert_eq!((&summary["accepted"], &summary["refused"]), (&2.into(), &1.into()));
    assert_eq!(bench.hub.intake().counters().refused.get(RefusalReason::LineTooLong), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_holds_the_stream_up_and_loses_no_line() {
    let limits = Limits {
        shard_queue_batches_max: 1,
        hub_queue_events_max: 4,
        window_events_max: 8,
        ..Limits::default()
    };
    let mut bench = bench(2, limits);
    let mut quick = bench.start_shard(0);
    let open = open(&bench).await;
    open.send((1..=50).map(line).collect::<String>());
    let hub = bench.hub.clone();
    until(|| hub.intake().queue().0 == 4).await;
    bench.post("/topics/a", "x").await.assert_error(StatusCode::SERVICE_UNAVAILABLE, "full");
    assert!(hub.intake().sequence() < 50, "the stream waits");

    let mut slow = bench.start_shard(1);
    let want: Vec<(u64, String)> = (1..=50).map(|n| (n, n.to_string())).collect();
    assert_eq!(events(&mut slow, 50).await, want);
    assert_eq!(events(&mut quick, 50).await, want);
    let summary = open.rest().await;
    assert_eq!(
        summary,
        [serde_json::json!({"accepted": 50, "refused": 0, "last_id": format!("{EPOCH_TEXT}-50")})]
    );
}

#[tokio::test]
async fn a_queue_for_one_event_passes_a_whole_stream() {
    let limits = Limits { hub_queue_events_max: 1, ..Limits::default() };
    let mut bench = bench(1, limits);
    let answer = bench.post("/publish", (1..=10).map(line).collect::<String>()).await;
    assert_eq!(answer.json()["accepted"], 10);
    let mut seen = bench.start_shard(0);
    assert_eq!(events(&mut seen, 10).await.len(), 10);
}

#[tokio::test]
async fn text_of_the_largest_size_may_be_written_in_ascii() {
    let limits = Limits { message_bytes_max: 10_000, ..Limits::default() };
    let mut bench = bench(1, limits);
    let mut seen = bench.start_shard(0);
    // Two bytes each, six as an escape.
    let line = format!("{{\"topic\":\"a\",\"data\":\"{}\"}}\n", "\\u0436".repeat(5_000));
    assert_eq!(bench.post("/publish", line).await.json()["accepted"], 1);
    assert_eq!(events(&mut seen, 1).await.len(), 1);
}

#[tokio::test]
async fn text_whose_escapes_are_too_long_for_a_line_is_told_of_the_way_that_takes_it() {
    let limits = Limits { message_bytes_max: 10_000, ..Limits::default() };
    let bench = bench(1, limits.clone());
    // One byte each, six as an escape, which JSON wants of them.
    let line = format!("{{\"topic\":\"a\",\"data\":\"{}\"}}\n", "\\u0001".repeat(10_000));
    let lines = bench.post("/publish", line).await.json_lines();
    let error = lines[0]["error"].as_str().expect("an error");
    for told in [format!("more than {} bytes", limits.line_bytes_max()), "POST /topics/TOPIC".to_string()] {
        assert!(error.contains(&told), "no {told:?} in {error:?}");
    }
    assert_eq!(bench.post("/topics/a", "\u{1}".repeat(10_000)).await.status, StatusCode::OK);
}

/// A stream takes every place that comes free, and a single publish does not wait for one.
#[tokio::test(start_paused = true)]
async fn a_stream_that_waits_for_room_leaves_some_to_single_publishes() {
    let limits = Limits { shard_queue_batches_max: 1, hub_queue_events_max: 16, ..Limits::default() };
    let mut bench = bench(1, limits);
    // The first event fills the queue of the shard; of the hub's the stream fills seven eighths.
    bench.post("/topics/a", "x").await;
    let open = open(&bench).await;
    open.send((1..=50).map(line).collect::<String>());
    let hub = bench.hub.clone();
    until(|| hub.intake().queue().0 == 14).await;
    for _ in 0..2 {
        assert_eq!(bench.post("/topics/a", "x").await.status, StatusCode::OK);
    }
    bench.post("/topics/a", "x").await.assert_error(StatusCode::SERVICE_UNAVAILABLE, "full");
    let mut seen = bench.start_shard(0);
    assert_eq!(events(&mut seen, 53).await.len(), 53, "the stream goes on when there is room");
    assert_eq!(open.rest().await[0]["accepted"], 50);
}

#[tokio::test]
async fn a_drain_ends_a_stream_and_names_the_first_line_not_taken() {
    let mut bench = bench(1, Limits::default());
    let mut seen = bench.start_shard(0);
    let open = open(&bench).await;
    open.send(format!("{}{}{{\"topic\":", line(1), line(2)));
    events(&mut seen, 2).await;
    bench.hub.begin_drain();
    // The publisher does not end its body.
    let Open { feed, answer } = open;
    let summary = lines(answer).await;
    assert_eq!(summary.len(), 1);
    assert_eq!(
        (&summary[0]["accepted"], &summary[0]["last_id"]),
        (&2.into(), &format!("{EPOCH_TEXT}-2").into())
    );
    assert_eq!(summary[0]["error"], "draining: lines from 3 on were not taken");
    drop(feed);
    bench.post("/publish", line(9)).await.assert_error(StatusCode::SERVICE_UNAVAILABLE, "draining");
}

/// A body that is dropped resets its publisher, who would never read why.
#[tokio::test]
async fn a_body_that_is_refused_at_once_is_read_on() {
    let bench = bench(1, Limits::default());
    let mut refused = Vec::new();
    for (target, status) in [
        ("/publish?colour=1", StatusCode::BAD_REQUEST),
        ("/topics/a?colour=1", StatusCode::BAD_REQUEST),
        ("/topics/", StatusCode::BAD_REQUEST),
        ("/topic/a", StatusCode::NOT_FOUND),
        ("/stats", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let (answered, open) = ask(&bench, target).await;
        assert_eq!(answered, status, "{target}");
        refused.push((target, open));
    }
    bench.hub.begin_drain();
    let (answered, late) = ask(&bench, "/publish").await;
    assert_eq!(answered, StatusCode::SERVICE_UNAVAILABLE);
    refused.push(("a late stream", late));
    for (target, open) in refused {
        assert!(open.feed.send(Ok(line(1))).is_ok() && !open.feed.is_closed(), "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_stream_that_waits_for_room() {
    let limits = Limits { shard_queue_batches_max: 1, hub_queue_events_max: 2, ..Limits::default() };
    let mut bench = bench(1, limits);
    // The first event fills the queue of the shard, the next two that of the hub; line 3 waits.
    bench.post("/topics/a", "x").await;
    let open = open(&bench).await;
    open.send((1..=5).map(line).collect::<String>());
    let hub = bench.hub.clone();
    until(|| hub.intake().queue().0 == 2).await;
    hub.begin_drain();
    let summary = open.rest().await;
    assert_eq!(summary[0]["accepted"], 2);
    assert_eq!(summary[0]["error"], "draining: lines from 3 on were not taken");
    let mut seen = bench.start_shard(0);
    assert_eq!(events(&mut seen, 3).await.len(), 3, "what was accepted arrives");
}

#[tokio::test]
async fn a_line_that_the_end_of_the_body_cuts_counts_only_if_it_is_whole() {
    let over_long = "x".repeat(5_000_000);
    for (rest, accepted, refused) in [
        ("{\"topic\":\"a\",\"da", 1, 1),
        (line(2).trim(), 2, 0),
        ("", 1, 0),
        (&line(2), 2, 0),
        (&over_long, 1, 1),
    ] {
        let bench = bench(1, Limits::default());
        let open = open(&bench).await;
        open.send(format!("{}{rest}", line(1)));
        open.feed.send(Err(io::Error::other("reset"))).expect("the request is read");
        let lines = open.rest().await;
        let summary = lines.last().expect("a summary");
        assert_eq!(
            (&summary["accepted"], &summary["refused"]),
            (&accepted.into(), &refused.into()),
            "{accepted} accepted, {refused} refused"
        );
        assert!(summary["error"].as_str().expect("an error").contains("broke off"), "{summary}");
        let broken = bench.hub.intake().counters().refused.get(RefusalReason::BodyBroken);
        assert_eq!(broken, 1, "one body broke off, {accepted} accepted, {refused} refused");
    }
}

#[tokio::test]
async fn a_publisher_that_does_not_read_gets_its_events_through_and_a_bounded_answer() {
    let mut bench = bench(1, Limits::default());
    let mut seen = bench.start_shard(0);
    let open = open(&bench).await;
    for _ in 0..1_000 {
        open.send("bad\n");
    }
    open.send(line(1));
    assert_eq!(events(&mut seen, 1).await, [(1, "1".into())]);
    let lines = open.rest().await;
    assert_eq!(lines.len(), ERROR_LINES_MAX + 1);
    let summary = lines.last().expect("a summary");
    assert_eq!(
        (&summary["refused"], &summary["unreported"]),
        (&1_000.into(), &(1_000 - ERROR_LINES_MAX).into())
    );
}

#[tokio::test]
async fn an_id_of_our_own_form_is_refused_in_a_stream_too() {
    let bench = bench(1, Limits::default());
    let body = format!("{{\"topic\":\"a\",\"data\":\"x\",\"id\":\"{EPOCH_TEXT}-1\"}}\n{}", line(1));
    let lines = bench.post("/publish", body).await.json_lines();
    assert_eq!((&lines[0]["line"], &lines[1]["accepted"]), (&1.into(), &1.into()));
}

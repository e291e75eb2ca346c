//! `GET /topics`, `GET /topics/{topic}`, `GET /stats`, `GET /healthz`.

use super::*;
use crate::hub::RefusalReason;

/// Names on a page.
fn names(answer: &Answer) -> Vec<String> {
    let json = answer.json();
    let topics = json["topics"].as_array().expect("topics");
    topics.iter().map(|topic| topic["topic"].as_str().expect("a name").to_string()).collect()
}

#[tokio::test]
async fn one_topic_adds_up_subscribers_and_shows_the_largest_window() {
    let mut bench = bench(2, Limits::default());
    let _seen = [bench.start_shard(0), bench.start_shard(1)];
    bench.post("/topics/a/b", "12345").await;
    bench.post("/topics/a/b?id=mine", "67").await;
    let want = serde_json::json!({
        "topic": "a/b",
        "subscribers": {"sse": 2, "websocket": 4},
        "last_id": "mine",
        "sequence": 2,
        "published": {"events": 2, "bytes": 5 + 3 + 2 + 3 + 4},
        "window": {"events": 2, "bytes": 7},
    });
    assert_eq!(bench.get("/topics/a%2Fb").await.json(), want);
    let quiet = bench.get("/topics/quiet").await.json();
    assert_eq!((&quiet["last_id"], &quiet["sequence"]), (&Value::Null, &0.into()));
    bench.get("/topics/never").await.assert_error(StatusCode::NOT_FOUND, "never");
    bench.get("/topics/a?limit=1").await.assert_error(StatusCode::BAD_REQUEST, "limit");
}

#[tokio::test]
async fn topics_are_listed_once_each_in_order_and_page_by_page() {
    let mut bench = bench(2, Limits::default());
    let _seen = [bench.start_shard(0), bench.start_shard(1)];
    for topic in ["z", "b", "a", "y", "b"] {
        bench.post(&format!("/topics/{topic}"), "x").await;
    }
    let all = bench.get("/topics").await;
    assert_eq!(names(&all), ["a", "b", "quiet", "y", "z"]);
    assert!(all.json().get("next").is_none());
    let mut pages = Vec::new();
    let mut uri = "/topics?limit=2".to_string();
    loop {
        let page = bench.get(&uri).await;
        pages.push(names(&page));
        let json = page.json();
        let Some(next) = json["next"].as_str() else { break };
        uri = format!("/topics?limit=2&after={next}");
    }
    assert_eq!(pages, [vec!["a", "b"], vec!["quiet", "y"], vec!["z"]]);
    for bad in ["limit=0", "limit=x", "limit=10001", "page=2"] {
        bench.get(&format!("/topics?{bad}")).await.assert_error(StatusCode::BAD_REQUEST, &bad[..4]);
    }
}

/// Neither a shard nor the hub deals with many topics in one go. The page has each topic once all
/// the same.
#[tokio::test]
async fn a_long_page_is_made_of_slices_and_its_numbers_agree() {
    let mut bench = bench(2, Limits::default());
    let mut lines = String::new();
    let count = 2 * TOPICS_PER_ANSWER_MAX + 3;
    for number in 0..count {
        // Some names come before "quiet", which only the shards know, and some after it.
        let topic = format!("{}{number:05}", ["a", "z"][number % 2]);
        lines.push_str(&format!("{{\"topic\":\"{topic}\",\"data\":\"x\"}}\n").repeat(1 + number % 3));
    }
    let _seen = [bench.start_shard(0), bench.start_shard(1)];
    bench.post("/publish", lines).await;
    let all = bench.get("/topics?limit=10000").await;
    let mut expected: Vec<String> =
        (0..count).map(|number| format!("{}{number:05}", ["a", "z"][number % 2])).collect();
    expected.push("quiet".into());
    expected.sort();
    assert_eq!(names(&all), expected);
    for topic in all.json()["topics"].as_array().expect("topics") {
        assert_eq!(topic["published"]["events"], topic["window"]["events"], "{topic}");
        assert_eq!(topic["subscribers"], serde_json::json!({"sse": 2, "websocket": 4}), "both shards told");
    }
    let mut pages = Vec::new();
    let mut after = String::new();
    loop {
        let page = bench.get(&format!("/topics?limit=1500&after={after}")).await;
        pages.extend(names(&page));
        let json = page.json();
        let Some(next) = json["next"].as_str() else { break };
        after = next.to_string();
    }
    assert_eq!(pages, expected);
}

/// The hub forgets a topic and learns it anew while a subscriber's shard keeps its window.
#[tokio::test]
async fn a_window_never_holds_more_than_is_said_to_be_published() {
    let mut bench = bench(1, Limits { topics_max: 1, ..Limits::default() });
    let _seen = bench.start_shard(0);
    for (topic, published) in [("t", Some(1)), ("t", Some(2)), ("other", None), ("t", None)] {
        bench.post(&format!("/topics/{topic}"), "x").await;
        let t = bench.get("/topics/t").await.json();
        assert_eq!(t["published"]["events"].as_u64(), published, "{t}");
        let listing = bench.get("/topics").await.json();
        let listed = listing["topics"].as_array().expect("topics").iter().find(|one| one["topic"] == "t");
        assert_eq!(listed, Some(&t));
    }
}

#[tokio::test]
async fn a_topic_that_the_hub_has_forgotten_is_still_known_to_its_subscribers_shards() {
    let limits = Limits { topics_max: 1, ..Limits::default() };
    let mut bench = bench(1, limits);
    let _seen = bench.start_shard(0);
    bench.post("/topics/old", "x").await;
    bench.post("/topics/new", "x").await;
    let old = bench.get("/topics/old").await.json();
    assert_eq!((&old["last_id"], &old["window"]["events"]), (&format!("{EPOCH_TEXT}-1").into(), &1.into()));
    assert_eq!(old["published"], Value::Null, "no number would agree with the window");
    assert_eq!(names(&bench.get("/topics").await), ["new", "old", "quiet"]);
}

#[tokio::test]
async fn a_question_that_is_refused_is_counted_and_a_topic_nobody_knows_is_an_answer() {
    let mut bench = bench(1, Limits::default());
    let _seen = bench.start_shard(0);
    for (uri, reason) in [
        ("/topics?limit=x", RefusalReason::BadQuery),
        ("/topics?after=%zz", RefusalReason::BadQuery),
        ("/topics/a?limit=1", RefusalReason::BadQuery),
        ("/stats?x=1", RefusalReason::BadQuery),
        ("/topics/", RefusalReason::BadTopic),
        ("/topics/%zz", RefusalReason::BadTopic),
    ] {
        let before = bench.hub.intake().counters().refused.get(reason);
        assert_eq!(bench.get(uri).await.status, StatusCode::BAD_REQUEST, "{uri}");
        assert_eq!(bench.hub.intake().counters().refused.get(reason), before + 1, "{uri}");
    }
    let refused = bench.hub.intake().counters().refused.clone();
    assert_eq!(bench.get("/topics/never").await.status, StatusCode::NOT_FOUND);
    assert_eq!(bench.hub.intake().counters().refused, refused);
}

#[tokio::test]
async fn stats_show_the_hub_each_shard_and_the_sum_of_them() {
    let mut bench = bench(2, Limits::default());
    let _seen = [bench.start_shard(0), bench.start_shard(1)];
    bench.post("/topics/a", "12345").await;
    bench.post("/topics/a?x=1", "").await;
    let stats = bench.get("/stats").await.json();
    assert_eq!((&stats["epoch"], &stats["version"]), (&EPOCH_TEXT.into(), &env!("CARGO_PKG_VERSION").into()));
    let hub = &stats["hub"];
    assert_eq!((&hub["events"], &hub["bytes"], &hub["batches"]), (&1.into(), &6.into(), &1.into()));
    assert_eq!((&hub["refused"]["bad_query"], &hub["refused"]["full"]), (&1.into(), &0.into()));
    assert_eq!(hub["queue"], serde_json::json!({"events": 0, "bytes": 0}));
    assert_eq!(hub["shard_queue_stalls"], 0);
    let shards = stats["shards"].as_array().expect("shards");
    for (number, shard) in shards.iter().enumerate() {
        assert_eq!(
            (&shard["shard"], &shard["cpu"], &shard["state"]),
            (&number.into(), &number.into(), &"ok".into())
        );
        assert_eq!(shard["formats"]["sse"]["frames"], 10 + number);
    }
    let totals = &stats["totals"];
    assert_eq!(totals["formats"]["sse"]["frames"], 21);
    assert_eq!(totals["closed"]["client_gone"], 2);
    assert_eq!(totals["window"]["events"], 6, "windows share their events");
    let latency = &totals["latency_us"]["intake_to_shard"];
    assert_eq!(latency["count"], 2);
    let max = latency["max"].as_f64().expect("a number");
    assert!((2_000.0..2_050.0).contains(&max), "{max}");
    assert_eq!(totals["latency_us"]["intake_to_written"]["websocket"]["p99"], 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_does_not_answer_is_told_and_hides_nothing_else() {
    let limits = Limits { shard_queue_batches_max: 1, ..Limits::default() };
    let mut bench = bench(3, limits);
    let _seen = bench.start_shard(0);
    // Shard 1 never looks at its questions, and those to shard 2 are as many as wait at most.
    let mut waiting = Vec::new();
    loop {
        let (answer, answered) = tokio::sync::oneshot::channel();
        if !bench.hub.intake().outboxes()[2].ask(Question::Counters(answer)) {
            break;
        }
        waiting.push(answered);
    }
    let stats = bench.get("/stats").await.json();
    let states: Vec<&str> = stats["shards"]
        .as_array()
        .expect("shards")
        .iter()
        .filter_map(|shard| shard["state"].as_str())
        .collect();
    assert_eq!(states, ["ok", "unavailable", "unavailable"]);
    assert_eq!(stats["shards"][0]["formats"]["sse"]["frames"], 10);
    assert_eq!(stats["totals"], Value::Null, "a sum that lacks a shard would fall between two scrapes");
    let metrics = bench.get("/metrics").await.body;
    for (line, times) in [
        ("fanwave_shard_up{shard=\"0\"} 1", 1),
        ("fanwave_shard_up{shard=\"1\"} 0", 1),
        ("fanwave_sent_frames_total{shard=\"0\",format=\"sse\"} 10", 1),
        ("fanwave_sent_frames_total{shard=\"1\"", 0),
        ("fanwave_publish_to_shard_seconds_count{shard=\"0\"} 1", 1),
        ("fanwave_publish_to_shard_seconds_count{shard=\"2\"}", 0),
    ] {
        assert_eq!(metrics.lines().filter(|other| other.starts_with(line)).count(), times, "{line}");
    }
    let listing = bench.get("/topics").await;
    assert_eq!(names(&listing), ["quiet"]);
    assert_eq!(listing.json()["unavailable"], serde_json::json!([1, 2]));
    bench.get("/topics/x").await.assert_error(StatusCode::SERVICE_UNAVAILABLE, "[1, 2]");
}

#[tokio::test(start_paused = true)]
async fn the_slowest_subscribers_of_all_shards_come_first() {
    let mut bench = bench(3, Limits::default());
    let _seen = [bench.start_shard(0), bench.start_shard(1)];
    let slow = bench.get("/slow").await.json();
    assert_eq!(slow["unavailable"], serde_json::json!([2]));
    let want = serde_json::json!({
        "shard": 1,
        "peer": "192.0.2.1:1001",
        "format": "websocket",
        "topics": ["a"],
        "more_topics": 2,
        "lag_events": 7,
        "seconds": 2.5,
    });
    assert_eq!((&slow["slow"][0], slow["slow"][1]["seconds"].as_f64()), (&want, Some(1.25)));
    bench.get("/slow?x=1").await.assert_error(StatusCode::BAD_REQUEST, "x");
}

#[tokio::test]
async fn health_is_good_until_the_drain() {
    let bench = bench(1, Limits::default());
    let answer = bench.get("/healthz").await;
    assert_eq!((answer.status, answer.body.trim()), (StatusCode::OK, "ok"));
    bench.hub.begin_drain();
    let answer = bench.get("/healthz").await;
    assert_eq!((answer.status, answer.body.trim()), (StatusCode::SERVICE_UNAVAILABLE, "draining"));
}

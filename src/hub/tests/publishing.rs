//! `POST /topics/{topic}` and everything that can be wrong with it.

use axum::http::header;
use futures_util::{StreamExt, stream};

use super::log::Log;
use super::*;
use crate::config::limits::LOG_DETAILS_PER_SECOND;
use crate::hub::RefusalReason;

#[tokio::test]
async fn a_published_text_reaches_every_shard_with_its_options() {
    let mut bench = bench(2, Limits::default());
    let answer = bench.post("/topics/a%2Fb/c?event=tick&id=mine&retry=250", "hällo").await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json(), serde_json::json!({"id": "mine", "sequence": 1}));
    let answer = bench.post("/topics/a", "").await;
    assert_eq!(answer.json(), serde_json::json!({"id": format!("{EPOCH_TEXT}-2"), "sequence": 2}));
    for shard in 0..2 {
        let mut seen = bench.start_shard(shard);
        let first = event(&mut seen).await;
        assert_eq!(first.event.topic.as_str(), "a/b/c");
        assert_eq!(first.event.data.bytes(), "hällo".as_bytes());
        assert!(!first.event.data.is_binary());
        assert_eq!(first.event.name.as_ref().map(|name| name.as_str()), Some("tick"));
        assert_eq!(first.event.id.as_ref().map(|id| id.as_str()), Some("mine"));
        assert_eq!(first.event.retry_ms, Some(250));
        assert_eq!(event(&mut seen).await.sequence, 2);
    }
}

#[tokio::test]
async fn a_publish_is_in_the_shards_queues_before_it_is_answered() {
    let bench = bench(2, Limits::default());
    bench.post("/topics/a", "x").await;
    for inbox in &bench.inboxes {
        assert!(matches!(inbox.try_recv(), Some(Message::Batch(_))));
    }
}

#[tokio::test]
async fn an_octet_stream_is_binary_and_anything_else_is_text() {
    let mut bench = bench(1, Limits::default());
    for (content_type, status) in [
        ("Application/Octet-Stream; x=y", StatusCode::OK),
        ("text/plain; charset=latin1", StatusCode::BAD_REQUEST),
    ] {
        let request = Request::post("/topics/a").header(header::CONTENT_TYPE, content_type);
        assert_eq!(bench.ask(request.body(Body::from(&b"ab\xff"[..]))).await.status, status);
    }
    let mut seen = bench.start_shard(0);
    let encoded = event(&mut seen).await;
    assert!(encoded.event.data.is_binary());
    assert_eq!(encoded.event.data.bytes().as_ref(), b"ab\xff");
    bench.post("/topics/a", &b"ab\xff"[..]).await.assert_error(StatusCode::BAD_REQUEST, "byte 2");
}

#[tokio::test]
async fn what_is_wrong_is_named_and_counted_and_takes_no_sequence() {
    let bench = bench(1, Limits::default());
    let long = "x".repeat(256);
    let own_id = format!("{EPOCH_TEXT}-1");
    for (uri, word, reason) in [
        ("/topics/a?colour=red".to_string(), "\"colour\"", RefusalReason::BadQuery),
        (format!("/topics/a?id={own_id}"), own_id.as_str(), RefusalReason::ReservedId),
        ("/topics/a?id=a%0Ab".to_string(), "byte 1", RefusalReason::BadId),
        ("/topics/a?retry=soon".to_string(), "soon", RefusalReason::BadRetry),
        ("/topics/".to_string(), "empty", RefusalReason::BadTopic),
        (format!("/topics/{long}"), "256", RefusalReason::BadTopic),
        ("/topics/a%00".to_string(), "byte 1", RefusalReason::BadTopic),
        ("/topics/%zz".to_string(), "bad percent escape", RefusalReason::BadTopic),
        ("/topics/a?id=%zz".to_string(), "bad percent escape", RefusalReason::BadQuery),
        ("/topics/a?event=%".to_string(), "bad percent escape", RefusalReason::BadQuery),
        ("/publish?x=1".to_string(), "\"x\"", RefusalReason::BadQuery),
    ] {
        let before = bench.hub.intake().counters().refused.get(reason);
        bench.post(&uri, "x").await.assert_error(StatusCode::BAD_REQUEST, word);
        assert_eq!(bench.hub.intake().counters().refused.get(reason), before + 1, "{uri}");
    }
    assert_eq!(bench.post("/topics/a", "x").await.json()["sequence"], 1);
}

#[tokio::test]
async fn a_message_may_have_exactly_its_limit_and_not_a_byte_more() {
    let limits = Limits { message_bytes_max: 100, ..Limits::default() };
    let bench = bench(1, limits);
    let chunked = |bytes: usize| {
        let chunks = vec!["x".repeat(7); bytes / 7].into_iter().chain(["x".repeat(bytes % 7)]);
        Body::from_stream(stream::iter(chunks.map(Ok::<_, std::convert::Infallible>)))
    };
    assert_eq!(bench.post("/topics/a", "x".repeat(100)).await.status, StatusCode::OK);
    assert_eq!(bench.post("/topics/a", chunked(100)).await.status, StatusCode::OK);
    bench.post("/topics/a", "x".repeat(101)).await.assert_error(StatusCode::PAYLOAD_TOO_LARGE, "101");
    bench.post("/topics/a", chunked(101)).await.assert_error(StatusCode::PAYLOAD_TOO_LARGE, "100");
    let endless = stream::repeat_with(|| Ok::<_, std::convert::Infallible>("x".repeat(64)));
    let answer = bench.post("/topics/a", Body::from_stream(endless.take(1_000_000))).await;
    answer.assert_error(StatusCode::PAYLOAD_TOO_LARGE, "100");
}

#[tokio::test]
async fn a_body_that_breaks_off_publishes_nothing() {
    let bench = bench(1, Limits::default());
    let chunks = [Ok("half"), Err(std::io::Error::other("reset"))];
    let answer = bench.post("/topics/a", Body::from_stream(stream::iter(chunks))).await;
    answer.assert_error(StatusCode::BAD_REQUEST, "broke off");
    assert_eq!(bench.hub.intake().sequence(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_given_up() {
    let bench = bench(1, Limits::default());
    let never = stream::pending::<Result<&str, std::io::Error>>();
    let answer = bench.post("/topics/a", Body::from_stream(never)).await;
    answer.assert_error(StatusCode::REQUEST_TIMEOUT, "did not arrive");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_answers_503_and_everything_accepted_arrives_once_and_in_order() {
    let limits = Limits { shard_queue_batches_max: 2, hub_queue_events_max: 5, ..Limits::default() };
    let mut bench = bench(2, limits);
    let mut quick = bench.start_shard(0);
    let mut accepted = 0;
    let refused = loop {
        let answer = bench.post("/topics/a", format!("{}", accepted + 1)).await;
        if answer.status != StatusCode::OK {
            break answer;
        }
        accepted += 1;
    };
    refused.assert_error(StatusCode::SERVICE_UNAVAILABLE, "full");
    assert_eq!(refused.headers[header::RETRY_AFTER], "1");
    assert_eq!(accepted, 7, "two in the queue of the stuck shard, five in the hub's");

    let mut slow = bench.start_shard(0);
    let want: Vec<(u64, String)> = (1..=7).map(|n| (n, n.to_string())).collect();
    assert_eq!(events(&mut slow, 7).await, want);
    assert_eq!(events(&mut quick, 7).await, want);
    assert_eq!(bench.post("/topics/a", "8").await.json()["sequence"], 8);
    assert_eq!(events(&mut slow, 1).await, [(8, "8".into())]);
}

#[tokio::test(start_paused = true)]
async fn the_log_tells_once_that_the_hub_is_full_until_it_was_empty() {
    let limits = Limits { shard_queue_batches_max: 1, hub_queue_events_max: 1, ..Limits::default() };
    let bench = bench(1, limits);
    let log = Log::start();
    let told = || log.lines().iter().filter(|line| line.contains("WARN") && line.contains("503")).count();
    let empty = || {
        while bench.hub.intake().queue().0 > 0 {
            bench.inboxes[0].try_recv().expect("a batch in its queue");
            bench.hub.flush();
        }
    };
    let begin = std::time::Instant::now();
    for times in 1..=2 {
        while bench.post("/topics/a", "x").await.status == StatusCode::OK {}
        assert_eq!(told(), times, "the first refusal is told");
        for _ in 0..3 {
            bench.post("/topics/a", "x").await.assert_error(StatusCode::SERVICE_UNAVAILABLE, "full");
        }
        assert_eq!(told(), times, "further ones are not");
        empty();
    }
    for _ in 0..100 {
        while bench.post("/topics/a", "x").await.status == StatusCode::OK {}
        empty();
    }
    let most = (begin.elapsed().as_secs() as usize + 1) * LOG_DETAILS_PER_SECOND as usize;
    assert!(told() <= most, "{} lines about a queue that is full again and again", told());
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_say_so_and_are_counted() {
    let bench = bench(1, Limits::default());
    bench.get("/nowhere").await.assert_error(StatusCode::NOT_FOUND, "/nowhere");
    assert_eq!(bench.hub.intake().counters().refused.get(RefusalReason::UnknownPath), 1);
    for (method, uri, allowed) in [
        ("PUT", "/topics/a", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("GET", "/publish", "POST, OPTIONS"),
        ("DELETE", "/stats", "GET, HEAD, OPTIONS"),
        ("POST", "/topics", "GET, HEAD, OPTIONS"),
    ] {
        let answer = bench.ask(Request::builder().method(method).uri(uri).body(Body::empty())).await;
        answer.assert_error(StatusCode::METHOD_NOT_ALLOWED, method);
        assert_eq!(answer.headers.get_all(header::ALLOW).iter().collect::<Vec<_>>(), [allowed]);
        let answer = bench.ask(Request::options(uri).body(Body::empty())).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::NO_CONTENT, ""));
        assert_eq!(answer.headers[header::ALLOW], allowed, "OPTIONS {uri}");
        assert!(!answer.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
    }
    assert_eq!(bench.hub.intake().counters().refused.get(RefusalReason::WrongMethod), 4);
}

#[tokio::test]
async fn help_names_every_endpoint_and_the_address_it_was_asked_at() {
    let bench = bench(1, Limits::default());
    for (host, control, data) in [
        (Some("edge.example:99"), "edge.example:99", "edge.example:8080"),
        (Some("10.1.1.1"), "10.1.1.1", "10.1.1.1:8080"),
        (None, "127.0.0.1:8081", "127.0.0.1:8080"),
    ] {
        let version = if host.is_some() { Version::HTTP_11 } else { Version::HTTP_10 };
        let request = Request::get("/").version(version);
        let request = host.into_iter().fold(request, |request, host| request.header(header::HOST, host));
        let help = bench.ask(request.body(Body::empty())).await.body;
        for word in ["POST /topics/", "POST /publish", "/stats", "/healthz"] {
            assert!(help.contains(word), "{word} is missing in {help}");
        }
        for line in [
            format!("curl -N http://{data}/sse/news\n"),
            format!("curl -d 'hello' http://{control}/topics/news\n"),
            format!("curl http://{control}/stats\n"),
        ] {
            assert!(help.contains(&line), "{host:?}: {line:?} is missing in {help}");
        }
    }
}

/// A shell would take brackets for a pattern, and `&` for the end of the command.
#[tokio::test]
async fn help_quotes_an_address_that_a_shell_would_change() {
    let bench = bench(1, Limits::default());
    let request = Request::get("/").header(header::HOST, "[::1]:99");
    let help = bench.ask(request.body(Body::empty())).await.body;
    for line in [
        "curl -N http://127.0.0.1:8080/sse/news\n",
        "curl -d 'hello' 'http://[::1]:99/topics/news'\n",
        "curl -d 'hello' 'http://[::1]:99/topics/news?event=greeting&id=1&retry=5000'\n",
        "-X POST -T - 'http://[::1]:99/publish'\n",
        "curl 'http://[::1]:99/stats'\n",
    ] {
        assert!(help.contains(line), "{line:?} is missing in {help}");
    }
}

/// A `Host` field has no scope, so nobody reaches what it says of a link-local address.
#[tokio::test]
async fn help_names_the_scope_of_a_link_local_address() {
    let bench = bench(1, Limits::default());
    let router =
        control::router(bench.hub.clone(), "[fe80::1%2]:8081".parse().expect("an address"), Scheme::Http);
    let bench = Bench { router, ..bench };
    let request = Request::get("/").header(header::HOST, "[fe80::1]:8081");
    let help = bench.ask(request.body(Body::empty())).await.body;
    let line = "curl 'http://[fe80::1%252]:8081/stats'\n";
    assert!(help.contains(line), "{line:?} is missing in {help}");
}

#[tokio::test]
async fn help_over_a_unix_socket_names_its_path() {
    let bench = bench(1, Limits::default());
    let router =
        control::router(bench.hub.clone(), "unix:/run/a b".parse().expect("an address"), Scheme::Http);
    let bench = Bench { router, ..bench };
    let request = Request::get("/").header(header::HOST, "localhost");
    let help = bench.ask(request.body(Body::empty())).await.body;
    for line in [
        "curl -N http://127.0.0.1:8080/sse/news\n",
        "curl --unix-socket '/run/a b' -d 'hello' http://localhost/topics/news\n",
        "curl --unix-socket '/run/a b' http://localhost/stats\n",
    ] {
        assert!(help.contains(line), "{line:?} is missing in {help}");
    }
    let curls = help.lines().filter(|line| line.contains("http://localhost"));
    assert!(curls.clone().count() > 3 && curls.clone().all(|line| line.contains("--unix-socket")), "{help}");
}

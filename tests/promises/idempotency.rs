//! Claim: a publisher that does not know whether its event was taken may publish it again under the
//! same idempotency key, and subscribers get it once.
//!
//! Set-up: publishes that are repeated, by query and in lines, with the same and with other data,
//! and to another topic.
//!
//! Expectation: a repeat answers the first id and sequence, and says that it is one. Other data
//! under the same key is refused. A topic's keys are its own.

use serde_json::json;

use crate::support::{Protocol, Server, Subscriber};

#[tokio::test]
async fn a_repeated_publish_is_taken_once() {
    let server = Server::start(&["--shards", "2"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["a", "b"]).await;
    let publish = async |path: &str, data: &'static str| server.answer(server.post(path).body(data)).await;
    let first = publish("/topics/a?idempotency_key=order+1&id=mine", "x").await.json();
    assert_eq!(first, json!({ "id": "mine", "sequence": 1 }));
    server.publish("a", "between").await;
    let again = publish("/topics/a?idempotency_key=order+1&id=mine", "x").await.json();
    assert_eq!(again, json!({ "id": "mine", "sequence": 1, "duplicate": true }));
    let other = publish("/topics/a?idempotency_key=order+1&id=mine", "y").await;
    assert_eq!(other.status, 409);
    assert_eq!(other.error(), "the idempotency key \"order 1\" was used for another event of this topic");
    let elsewhere = publish("/topics/b?idempotency_key=order+1", "z").await.json();
    assert_eq!(elsewhere["sequence"], 3);
    let line = r#"{"topic":"b","data":"z","idempotency_key":"order 1"}"#;
    let new = r#"{"topic":"b","data":"line","idempotency_key":"order 2"}"#;
    let conflict = r#"{"topic":"b","data":"q","idempotency_key":"order 2"}"#;
    let summary =
        server.answer(server.post("/publish").body([line, new, new, conflict].join("\n"))).await.body;
    assert!(summary.contains(r#"{"line":4,"error":"the idempotency key \"order 2\" was used"#), "{summary}");
    assert!(summary.contains(r#""accepted":3,"refused":1"#), "{summary}");
    server.publish("a", "end").await;
    assert_eq!(subscriber.texts(5).await, ["x", "between", "z", "line", "end"]);
    let refused = &server.stats().await["hub"]["refused"];
    assert_eq!(refused["conflict"], 2, "{refused}");
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let server = Server::start(&["--shards", "1"]);
    for key in ["", &"x".repeat(65), "%0A"] {
        let answer = server.answer(server.post(&format!("/topics/a?idempotency_key={key}")).body("x")).await;
        assert_eq!(answer.status, 400, "{key}");
        assert_eq!(answer.error(), "idempotency_key has 1 to 64 bytes and no control characters");
    }
}

//! Claim: where a rule says `retain`, a newcomer gets the last event of a topic, or of each key,
//! before any news, however old it is; until its publisher removes it.
//!
//! Set-up: servers with two shards and rules without any history, so that only what is retained is
//! left of what was published. Enough newcomers that both shards have some.
//!
//! Expectation: newcomers over both protocols, to topics and to patterns, get the values in the
//! order in which they were published, and then what is published. Who names a start gets none. A
//! removal takes values and history from all shards, and is a gap for who comes back.

use serde_json::json;

use super::conversation::Client;
use super::rules::File;
use crate::support::peer::request;
use crate::support::{Protocol, Said, Server, Subscriber};

const RULES: &str = "\
[[rule]]
match = \"rooms/**\"
history.events = 0
retain = true
conflate = \"key\"
presence = false
[[rule]]
match = \"lamps/*\"
history.events = 0
retain = true
";

fn server(file: &File, more: &[&str]) -> Server {
    Server::start(&[&["--shards", "2", "--config", file.path()], more].concat())
}

async fn publish_some(server: &Server) {
    server.publish("lamps/a", "off").await;
    server.publish_with("rooms/x", "?key=ann", "ann is here").await;
    server.publish("lamps/b", "b on").await;
    server.publish("lamps/a", "a on").await;
    server.publish_with("rooms/x", "?key=bob", "bob is here").await;
    server.publish_with("rooms/x", "?key=ann", "ann writes").await;
    server.publish("rooms/x", "welcome").await;
    server.publish("other", "unheard").await;
}

#[tokio::test]
async fn newcomers_get_what_is_retained_first_and_then_the_news() {
    let file = File::new("retained", RULES);
    let server = server(&file, &[]);
    publish_some(&server).await;
    let mut newcomers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket].repeat(3) {
        for (names, values) in [
            (&["lamps/a"][..], &["a on"][..]),
            (&["lamps/*"], &["b on", "a on"]),
            (&["rooms/x"], &["bob is here", "ann writes", "welcome"]),
            (&["**", "rooms/x"], &["b on", "a on", "bob is here", "ann writes", "welcome"]),
            (&["other", "lamps/b"], &["b on"]),
        ] {
            let mut newcomer = Subscriber::connect(server.data, protocol, names).await;
            assert_eq!(newcomer.texts(values.len()).await, values, "{protocol:?} {names:?}");
            newcomers.push(newcomer);
        }
    }
    for topic in ["lamps/a", "lamps/b", "rooms/x"] {
        server.publish(topic, "news").await;
    }
    for newcomer in &mut newcomers {
        assert_eq!(newcomer.text().await, "news", "and nothing between");
    }
    let view = server.get("/topics/rooms/x").await.json();
    assert_eq!((&view["retained"], &view["window"]["events"]), (&json!(3), &json!(0)), "{view}");
    assert_eq!(server.get("/topics/other").await.json()["retained"], json!(null));
    let retained = &server.stats().await["totals"]["retained"];
    assert_eq!((&retained["values"], &retained["given_up"]), (&json!(5), &json!(0)), "{retained}");
}

#[tokio::test]
async fn an_event_stream_is_given_its_place_behind_the_values() {
    let file = File::new("place", RULES);
    let server = server(&file, &[]);
    publish_some(&server).await;
    let newest = server.publish("other", "unheard").await;
    let mut newcomer = Subscriber::connect(server.data, Protocol::Sse, &["lamps/*", "other"]).await;
    let values = [newcomer.event().await, newcomer.event().await];
    assert_eq!(values.each_ref().map(|event| event.text()), ["b on", "a on"]);
    assert_eq!(newcomer.opening_id, None, "a client that leaves now gets the values again");
    assert!(matches!(newcomer.next().await, Said::Alive(_)));
    assert_eq!(newcomer.opening_id.as_deref(), Some(newest.id.as_str()));
    let mut back =
        Subscriber::resume(server.data, Protocol::Sse, &["lamps/*", "other"], Some(&newest.id)).await;
    server.publish("lamps/b", "b off").await;
    for subscriber in [&mut newcomer, &mut back] {
        assert_eq!(subscriber.text().await, "b off", "without a gap");
    }
}

#[tokio::test]
async fn who_names_a_start_gets_no_values_save_behind_a_gap() {
    let file = File::new("starts", RULES);
    let server = server(&file, &[]);
    let first = server.publish("lamps/a", "off").await;
    publish_some(&server).await;
    let id = format!("&last-event-id={}", first.id);
    for (query, told) in [("&last=10", None), ("&since=1h", None), (&id, Some("expired"))] {
        for protocol in [Protocol::Sse, Protocol::WebSocket] {
            let head = request(protocol, &["lamps/a"], None).replacen(" HTTP", &format!("{query} HTTP"), 1);
            let mut subscriber = Subscriber::request(server.data, protocol, &head).await;
            if let Some(reason) = told {
                let Said::Gap(gap) = subscriber.news().await else { panic!("a gap comes first") };
                assert_eq!((&gap["reason"], &gap["topics"]), (&json!(reason), &json!(["lamps/a"])));
                assert_eq!(subscriber.text().await, "a on", "what the topic comes to");
            }
            server.publish("lamps/a", "a on").await;
            assert_eq!(subscriber.text().await, "a on", "{query}");
        }
    }
}

#[tokio::test]
async fn a_key_goes_with_an_event_by_every_way_and_json_alone_shows_it() {
    let file = File::new("keys", RULES);
    let server = server(&file, &["--client-publish", "rooms/*"]);
    let mut json_client = Client::connect(&server, &["rooms/x"], None).await;
    let mut stream = Subscriber::connect(server.data, Protocol::Sse, &["rooms/x"]).await;
    server.publish_with("rooms/x", "?key=k%201", "1").await;
    let line = r#"{"topic":"rooms/x","data":"2","key":"k 2"}"#;
    server.answer(server.post("/publish").body(line)).await;
    let post = reqwest::Client::new().post(format!("http://{}/topics/rooms/x?key=k+3", server.data));
    assert_eq!(post.body("3").send().await.expect("an answer").status(), 200);
    for number in 1..=3 {
        let event = json_client.hear().await;
        assert_eq!(
            (&event["data"], &event["key"]),
            (&json!(number.to_string()), &json!(format!("k {number}")))
        );
    }
    let publish = |key: &str| json!({ "ref": 4, "publish": { "topic": "rooms/x", "data": "4", "key": key } });
    let (mut answers, mut events) = (0, 0);
    for message in [json_client.ask(publish("k 4")).await, json_client.hear().await] {
        answers += usize::from(message["ok"]["sequence"] == 4);
        events += usize::from(message["key"] == "k 4");
    }
    assert_eq!((answers, events), (1, 1));
    assert_eq!(json_client.refused(publish(&"k".repeat(65))).await, "bad_command");
    let refused = server.answer(server.post("/topics/rooms/x?key=").body("x")).await;
    assert_eq!(
        (refused.status, refused.error()),
        (400, "key: a key has 1 to 64 bytes and no control characters".into())
    );
    let lines =
        server.answer(server.post("/publish").body(r#"{"topic":"a","data":"x","key":"a\u0007"}"#)).await;
    assert!(lines.body.contains("key: a key has 1 to 64 bytes and no control characters"), "{}", lines.body);
    assert_eq!(server.stats().await["hub"]["refused"]["bad_key"], 2);
    assert_eq!(stream.texts(4).await, ["1", "2", "3", "4"]);
    let mut late = Client::connect(&server, &[], None).await;
    let ok = late.done(json!({ "ref": 1, "subscribe": { "match": "rooms/*" } })).await;
    assert_eq!(ok["match"], "rooms/*");
    for number in 1..=4 {
        assert_eq!(late.hear().await["key"], format!("k {number}"), "behind the ok");
    }
}

#[tokio::test]
async fn a_removal_takes_history_and_values_from_all_shards_and_is_a_gap_for_who_comes_back() {
    let text = format!("{RULES}[[rule]]\nmatch = \"kept\"\nretain = true\n");
    let file = File::new("removal", &text);
    let server = server(&file, &[]);
    publish_some(&server).await;
    let mut stays = Subscriber::connect(server.data, Protocol::Sse, &["kept", "lamps/a"]).await;
    assert_eq!(stays.text().await, "a on");
    let ids = [server.publish("kept", "1").await.id, server.publish("kept", "2").await.id];
    let delete = |topic: &str| server.delete(&format!("/topics/{topic}"));
    let removed = server.answer(delete("kept")).await;
    assert_eq!(removed.status, 200, "{removed:?}");
    let removed = removed.json();
    assert_eq!(removed["sequence"], 11, "a place in the order of events");
    server.answer(delete("lamps/a")).await;
    for protocol in [Protocol::Sse, Protocol::WebSocket].repeat(3) {
        // Also who had all that there was.
        for id in &ids {
            let mut back = Subscriber::resume(server.data, protocol, &["kept"], Some(id)).await;
            let Said::Gap(gap) = back.news().await else { panic!("a gap comes first") };
            assert_eq!((&gap["reason"], &gap["topics"]), (&json!("expired"), &json!(["kept"])));
        }
        let mut newcomer = Subscriber::connect(server.data, protocol, &["kept", "lamps/*"]).await;
        assert_eq!(newcomer.text().await, "b on", "and nothing of what was removed");
    }
    assert_eq!(stays.texts(2).await, ["1", "2"], "what was accepted arrives");
    let after = removed["id"].as_str().expect("an id");
    let mut knows = Subscriber::resume(server.data, Protocol::WebSocket, &["kept"], Some(after)).await;
    server.publish("kept", "3").await;
    assert_eq!((stays.text().await.as_str(), knows.text().await.as_str()), ("3", "3"));
    assert_eq!(server.stats().await["hub"]["removed_topics"], 2);
    for (topic, told) in [("a*", "has a '*'"), ("", "the topic is empty")] {
        let refused = server.answer(delete(topic)).await;
        assert_eq!(refused.status, 400);
        assert!(refused.error().contains(told), "{refused:?}");
    }
}

#[tokio::test]
async fn a_rule_says_where_clients_may_ask_for_presence() {
    let file = File::new("presence", RULES);
    let server = server(&file, &[]);
    let mut client = Client::connect(&server, &["rooms/x"], None).await;
    let ask = |topic: &str| json!({ "ref": 1, "presence": { "topic": topic } });
    assert_eq!(client.refused(ask("rooms/x")).await, "not_allowed");
    assert_eq!(client.done(ask("lamps/a")).await, json!({ "topic": "lamps/a", "sse": 0, "websocket": 0 }));
    let subscribers = server.get("/topics/rooms/x").await.json()["subscribers"].take();
    assert_eq!(subscribers, json!({ "sse": 0, "websocket": 1 }), "the control plane always tells");
}

#[tokio::test]
async fn what_has_no_room_any_more_is_given_up_and_told() {
    let text = "message_bytes_max = 1000\nwindow_bytes_max = \"16KiB\"\nwindow_bytes_total_max = \"160KiB\"\n\
                [[rule]]\nmatch = \"**\"\nhistory.events = 0\nretain = true\n";
    let file = File::new("room", text);
    let server = server(&file, &[]);
    for number in 0..20 {
        server.publish(&format!("t/{number}"), number.to_string()).await;
    }
    let retained = server.stats().await["totals"]["retained"].take();
    let (values, given_up) = (retained["values"].as_u64().expect("a count"), &retained["given_up"]);
    assert!((2..20).contains(&values), "{retained}");
    assert_eq!(given_up, 20 - values, "{retained}");
    let mut newcomer = Subscriber::connect(server.data, Protocol::Sse, &["t/*"]).await;
    let expected: Vec<String> = (20 - values..20).map(|number| number.to_string()).collect();
    assert_eq!(newcomer.texts(values as usize).await, expected, "the newest");
    let metrics = server.get("/metrics").await.body;
    assert!(
        metrics.contains(&format!("fanwave_retained_given_up_total{{shard=\"1\"}} {given_up}\n")),
        "{metrics}"
    );
    assert!(server.into_log().await.contains("the oldest are given up"));
}

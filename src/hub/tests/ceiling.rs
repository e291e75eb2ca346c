//! The ceiling of memory, with a planted meter: what is done for want of memory, in which order,
//! who is told, and that all of it ends. And a reload that may not be.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::broadcast::{Holdings, Pressure};
use crate::clock::Stamp;
use crate::config::MemoryMax;
use crate::config::limits::HISTORY_BYTES_LEAST;
use crate::event::{Data, Event};
use crate::handover::state::{PastEvent, State, TopicState};
use crate::hub::memory::Reading;
use crate::hub::{self, HubSetup};
use crate::log::Pace;

const MIB: u64 = 1 << 20;

/// A hub with a ceiling of 128 MiB, what its process takes, and what a reload would read.
struct Ceiling {
    bench: Bench,
    resident: Arc<AtomicU64>,
    reread: Arc<Mutex<Config>>,
}

fn ceiling() -> Ceiling {
    let config =
        Config { memory_max: MemoryMax::Bytes(128 << 20), ..(*config(2, Limits::default())).clone() };
    let (resident, reread) = (Arc::new(AtomicU64::new(20 * MIB)), Arc::new(Mutex::new(config.clone())));
    let (planted, file) = (resident.clone(), reread.clone());
    let surroundings = Surroundings {
        meter: Box::new(move || Reading { resident: planted.load(Ordering::Relaxed), ..Reading::default() }),
        reread: Box::new(move || Ok(file.lock().expect("no panic").clone())),
        ..Surroundings::default()
    };
    Ceiling { bench: bench_with(Arc::new(config), surroundings), resident, reread }
}

impl Ceiling {
    /// The process takes so much, and the hub looks.
    fn look(&self, resident: u64) -> Pressure {
        self.resident.store(resident, Ordering::Relaxed);
        self.bench.hub.look_at_memory(&mut Pressure::ALL.map(|_| Pace::WARNING));
        self.bench.hub.intake().topics().memory().pressure()
    }

    /// Shards tell that they hold so much.
    fn tell(&self, before: u64, now: u64) {
        let told = |histories: u64| Holdings { histories: histories as usize, ..Holdings::default() };
        self.bench.hub.intake().topics().memory().tell(told(before), told(now));
    }

    /// What each shard was told: 0 for a batch, else what histories may take.
    fn told(&self) -> Vec<Vec<usize>> {
        let told = |inbox: &Inbox| {
            let messages = std::iter::from_fn(|| inbox.try_recv());
            let told = messages.map(|message| match message {
                Message::Batch(_) => 0,
                Message::Histories(bytes) => bytes,
                other => panic!("{other:?}"),
            });
            told.collect()
        };
        self.bench.inboxes.iter().map(told).collect()
    }
}

#[tokio::test]
async fn histories_are_shortened_in_one_order_on_all_shards_and_grow_again() {
    let world = ceiling();
    assert_eq!(world.look(20 * MIB), Pressure::None);
    // 104 MiB are below the target, of which 84 are free.
    assert_eq!(world.told()[0].last(), Some(&((104 - 20) << 20)));
    for _ in 0..3 {
        world.bench.post("/topics/a", "x").await;
    }
    world.tell(0, 80 * MIB);
    assert_eq!(world.look(120 * MIB), Pressure::Histories);
    world.bench.post("/topics/a", "x").await;
    let told = world.told();
    assert_eq!(told[0], told[1], "one order on all shards");
    let (batches, steps) = told[0].split_at(3);
    assert_eq!(batches, [0; 3]);
    let (last, steps) = steps.split_last().expect("the event that came last");
    assert_eq!(*last, 0);
    assert!(steps.len() > 2 && steps.is_sorted_by(|a, b| a > b), "in steps: {steps:?}");
    assert_eq!(steps.last(), Some(&((80 - 16) << 20)), "down to the target");
    let stats = world.bench.hub.process_stats();
    assert_eq!((stats.history_cuts, stats.history_bytes_max), (1, 64 * MIB));

    world.tell(80 * MIB, 64 * MIB);
    for _ in 0..30 {
        world.look(90 * MIB);
    }
    assert_eq!(world.look(90 * MIB), Pressure::None);
    assert_eq!(world.told()[1], [(64 + 14) << 20], "there is room again, and that is told once");
}

/// Neither its events, which come here, nor its sockets, which the cgroup counts too.
#[tokio::test]
async fn what_a_former_process_has_is_no_part_of_what_is_in_use_at_rest() {
    let gone = Reading { resident: 20 * MIB, sockets: Some(900 * MIB), limit: Some(1_000 * MIB) };
    let reading = Arc::new(Mutex::new(gone));
    let planted = reading.clone();
    let surroundings = Surroundings {
        meter: Box::new(move || *planted.lock().expect("no panic")),
        ..Surroundings::default()
    };
    let config = config(1, Limits::default());
    let (outbox, _inbox) = path(8).expect("eventfd");
    let (_ends, shard_ends) = mpsc::unbounded_channel();
    let open = hub::open(HubSetup {
        estate: None,
        memory: Memory::new(&config.limits),
        config,
        epoch: EPOCH,
        source: crate::hub::Source::Local,
        outboxes: vec![outbox],
        demand: Arc::default(),
        egress: EgressReport::default(),
        listen: Default::default(),
        surroundings,
        control: Vec::new(),
        control_connections_max: 16,
        shard_ends,
    });
    let _past = open.hub.intake().restore(state(100), usize::MAX, 0, open.hub.now());
    let now = Reading { resident: 20 * MIB + 5_000_000, sockets: Some(0), ..gone };
    *reading.lock().expect("no panic") = now;
    open.hub.look_at_memory(&mut Pressure::ALL.map(|_| Pace::WARNING));
    let stats = open.hub.process_stats();
    assert_eq!((stats.events, stats.rest), (5_000_000, 20 * MIB));
    assert_eq!(stats.bytes_max, Some(900 * MIB), "nine tenths of what the cgroup may have");
}

/// A topic with so many events of 60,000 bytes.
fn state(events: u64) -> State {
    let topic = Topic::new("t").expect("a topic");
    let event = |sequence| {
        let data = Data::string("x".repeat(60_000));
        let event = Event { topic: topic.clone(), data, name: None, id: None, retry_ms: None, key: None };
        PastEvent { sequence, intake: Stamp(sequence), unix_ms: 7, event }
    };
    let of_topic = TopicState {
        name: topic.clone(),
        remembered: true,
        sequence: events,
        id: None,
        events,
        bytes: 60_000 * events,
        evicted: 0,
        cut: None,
        hole: 0,
    };
    State {
        epoch: EPOCH,
        sequence: events,
        hole: 0,
        topics: vec![of_topic],
        events: (1..=events).map(event).collect(),
        forgotten: Vec::new(),
        dropped: 0,
        keys: Vec::new(),
    }
}

#[tokio::test]
async fn newcomers_are_refused_before_publishers_and_a_stream_waits() {
    let mut world = ceiling();
    world.look(20 * MIB);
    world.tell(0, HISTORY_BYTES_LEAST as u64);
    assert_eq!(world.look(121 * MIB), Pressure::Newcomers);
    assert_eq!(world.bench.post("/topics/a", "x").await.status, StatusCode::OK);
    assert_eq!(world.look(125 * MIB), Pressure::Publishers);
    let refused = world.bench.post("/topics/a", "x").await;
    refused.assert_error(StatusCode::SERVICE_UNAVAILABLE, "nearly as much memory");
    assert!(refused.headers.contains_key(header::RETRY_AFTER));
    let _shards = [world.bench.start_shard(0), world.bench.start_shard(1)];
    let stats = world.bench.get("/stats").await.json();
    assert_eq!(stats["hub"]["refused"]["memory"], 1);
    let process = &stats["hub"]["process"];
    assert_eq!(process["pressure"], "publishers", "{process}");
    let told = ["bytes", "bytes_max", "history_bytes_max"].map(|name| process[name].as_u64());
    assert_eq!(told, [Some(125 * MIB), Some(128 * MIB), Some(HISTORY_BYTES_LEAST as u64)]);
    let metrics = world.bench.get("/metrics").await.body;
    for line in [
        "fanwave_memory_pressure 3\n",
        "fanwave_process_max_bytes 134217728\n",
        "fanwave_history_max_bytes 65536\n",
    ] {
        assert!(metrics.contains(line), "no {line:?} in {metrics}");
    }

    let router = world.bench.router.clone();
    let stream = tokio::spawn(async move {
        let request = Request::post("/publish").header(header::HOST, "localhost");
        let request = request.body(Body::from("{\"topic\":\"a\",\"data\":\"x\"}\n"));
        let answer = router.oneshot(request.expect("a request")).await.expect("infallible");
        axum::body::to_bytes(answer.into_body(), usize::MAX).await.expect("a whole body")
    });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!stream.is_finished(), "a stream waits");
    assert_eq!(world.look(121 * MIB), Pressure::Publishers, "it ends at the mark below");
    assert_eq!(world.look(119 * MIB), Pressure::Newcomers);
    let told = stream.await.expect("no panic");
    assert!(told.starts_with(b"{\"accepted\":1,"), "{told:?}");
    assert_eq!(world.bench.post("/topics/a", "x").await.status, StatusCode::OK);
    assert_eq!(world.look(20 * MIB), Pressure::None);
}

#[tokio::test]
async fn a_reload_takes_a_ceiling_that_histories_can_keep_and_no_lower_one() {
    let mut world = ceiling();
    world.look(60 * MIB);
    let _shards = [world.bench.start_shard(0), world.bench.start_shard(1)];
    let ask = |max: MemoryMax| {
        world.reread.lock().expect("no panic").memory_max = max;
        world.bench.post("/reload", "")
    };
    let refused = ask(MemoryMax::Bytes(64 << 20)).await;
    refused.assert_error(StatusCode::UNPROCESSABLE_ENTITY, "--memory-max is 64MiB, and 60 MiB are in use");
    let told = refused.json()["error"].as_str().expect("a line").to_string();
    let least = told.rsplit_once("at least ").expect("a remedy").1.split(' ').next().expect("a size");
    let least: MemoryMax = least.parse().expect("as the flag is written");
    assert_eq!(world.bench.hub.config().memory_max, MemoryMax::Bytes(128 << 20), "it is as it was");
    assert_eq!(ask(least).await.json()["changed"], serde_json::json!(["memory-max"]));
    assert_eq!(ask(MemoryMax::None).await.status, StatusCode::OK);
    assert_eq!(world.look(1 << 40), Pressure::None);
}

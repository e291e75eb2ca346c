//! Claim: the latencies that a run reports are what the subscribers saw, counted from the time each
//! event was due.
//!
//! Set-up: `loadtest publisher` and `loadtest receiver` as children, spoken to in JSON lines, with
//! a server of our own between them in this process, which takes events as NATS does and passes
//! them on as event streams, after a delay that a test decides. Expectation: every event is in the
//! histogram with at least the delay that it really had, and no delay is hidden by a publisher that
//! was held up together with the server's answer: what was due meanwhile counts from when it was
//! due. Lower bounds are exact; upper bounds leave room for a busy machine, but not for another
//! unit, another percentile, or a stamp of another time.

mod role;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use role::Role;

const MS: u64 = 1_000_000;

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A server that passes each event on to the subscribers of its topic, to the `s`th one, from 0, of
/// topic `t` no earlier than `delay(t, s)` nanoseconds after the time in its stamp.
struct DelayServer {
    publish: SocketAddr,
    subscribe: SocketAddr,
}

impl DelayServer {
    fn start(delay: fn(usize, usize) -> u64) -> DelayServer {
        let publish = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let subscribe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addresses = [&publish, &subscribe].map(|listener| listener.local_addr().expect("bound"));
        let (joined, subscribers) = channel();
        thread::spawn(move || {
            for socket in subscribe.incoming() {
                if joined.send(welcome(socket.expect("a subscriber comes"))).is_err() {
                    break;
                }
            }
        });
        thread::spawn(move || {
            let (publisher, _) = publish.accept().expect("the publisher comes");
            let (give, events) = channel();
            thread::spawn(move || pass_on(&events, &subscribers, delay));
            take(publisher, |topic, payload| give.send((topic, payload)).is_ok());
        });
        DelayServer { publish: addresses[0], subscribe: addresses[1] }
    }
}

/// The number at the end of a topic's name.
fn topic(name: &str) -> usize {
    name.rsplit_once('-').expect("a topic").1.parse().expect("a number")
}

/// Answers a subscriber's request; gives its topic too.
fn welcome(mut socket: TcpStream) -> (usize, TcpStream) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let path = head.split(' ').nth(1).expect("a path");
    socket.set_nodelay(true).expect("a TCP socket");
    socket
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        .expect("the subscriber reads");
    (topic(path), socket)
}

/// Takes events as NATS does until the publisher leaves.
fn take(publisher: TcpStream, mut event: impl FnMut(usize, String) -> bool) {
    let mut from = BufReader::new(publisher);
    from.get_mut().write_all(b"INFO {}\r\n").expect("the publisher reads");
    let mut line = String::new();
    let mut to = 0;
    while from.read_line(&mut line).is_ok_and(|read| read > 0) {
        match line.trim_end() {
            "PING" => from.get_mut().write_all(b"PONG\r\n").expect("the publisher reads"),
            publish if publish.starts_with("PUB ") => {
                to = topic(publish.rsplit_once(' ').expect("a length").0)
            }
            payload if payload.starts_with("~fw") && !event(to, payload.to_owned()) => return,
            _ => {}
        }
        line.clear();
    }
}

/// Writes each event to each subscriber of its topic when its time has come.
fn pass_on(
    events: &Receiver<(usize, String)>,
    subscribers: &Receiver<(usize, TcpStream)>,
    delay: fn(usize, usize) -> u64,
) {
    let mut sockets: Vec<(usize, TcpStream)> = Vec::new();
    let mut waiting: Vec<(u64, usize, String)> = Vec::new();
    let mut open = true;
    while open || !waiting.is_empty() {
        let first = waiting.iter().map(|event| event.0).min();
        let wait =
            first.map_or(Duration::from_secs(60), |at| Duration::from_nanos(at.saturating_sub(now_ns())));
        match events.recv_timeout(wait) {
            Ok((to, payload)) => {
                sockets.extend(subscribers.try_iter());
                let stamp = u64::from_str_radix(&payload[19..35], 16).expect("a stamp");
                let of_topic = (0..sockets.len()).filter(|&at| sockets[at].0 == to);
                waiting.extend(
                    of_topic.enumerate().map(|(nth, at)| (stamp + delay(to, nth), at, payload.clone())),
                );
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Without a publisher the waiting events still go out, as the clock says.
            Err(RecvTimeoutError::Disconnected) => {
                open = false;
                thread::sleep(wait.min(Duration::from_millis(1)));
            }
        }
        let now = now_ns();
        for (_, at, payload) in waiting.extract_if(.., |event| event.0 <= now) {
            // A receiver that has seen enough may be gone.
            let _ = sockets[at].1.write_all(format!("data: {payload}\n\n").as_bytes());
        }
    }
}

/// A publisher and a receiver with `connections` subscribers of `topics` topics of the server.
fn roles(server: &DelayServer, connections: usize, topics: usize) -> (Role, Role) {
    let mut receiver = Role::start("receiver");
    receiver.order(&json!({
        "do": "setup", "target": server.subscribe.to_string(), "protocol": "sse", "dialect": "plain",
        "path": "/{topic}", "topics": topics, "first": 0, "audit": true, "behaviour": {"kind": "steady"},
        "receive_buffer": null,
    }));
    receiver.ask(&json!({"do": "open", "connections": connections}), "opened");
    receiver.ask(&json!({"do": "zero", "next": 1, "raw_frame_bytes": 0}), "zeroed");
    let mut publisher = Role::start("publisher");
    publisher.ask(
        &json!({
            "do": "connect", "address": server.publish.to_string(), "way": "nats", "path": "{topic}",
            "topics": topics, "payload_bytes": 100,
        }),
        "connected",
    );
    (publisher, receiver)
}

fn go(publisher: &mut Role, per_second: f64, seconds: f64) {
    publisher
        .order(&json!({"do": "go", "pace": {"pace": "rate", "per_second": per_second}, "seconds": seconds}));
}

/// The receiver's report once so many events have been delivered.
fn report(receiver: &mut Role, last: u64, deliveries: u64) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let report = receiver.ask(&json!({"do": "report", "last": last}), "report");
        if report["findings"]["events"].as_u64() == Some(deliveries) {
            return report;
        }
        assert!(Instant::now() < deadline, "{report}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A histogram as the roles tell it: nanoseconds and count, rising.
struct Told(Vec<(u64, u64)>);

impl Told {
    fn of(value: &Value) -> Told {
        Told(serde_json::from_value(value.clone()).expect("pairs of numbers"))
    }

    /// The histogram of an interval log that has this tag.
    fn in_log(log: &[u8], wanted: &str) -> Told {
        let encoded = IntervalLogIterator::new(log).find_map(|entry| match entry.expect("well formed") {
            LogEntry::Interval(interval) if interval.tag()?.as_str() == wanted => {
                Some(interval.encoded_histogram().to_owned())
            }
            _ => None,
        });
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(encoded.expect("the tag")).expect("base64");
        let histogram: Histogram<u64> =
            Deserializer::new().deserialize(&mut &bytes[..]).expect("a histogram");
        Told(
            histogram
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_at_value()))
                .collect(),
        )
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|value| value.1).sum()
    }

    fn at_least(&self, ns: u64) -> u64 {
        self.0.iter().filter(|value| value.0 >= ns).map(|value| value.1).sum()
    }

    /// The value at a percentile, as HDR histograms define it: the smallest that so many are at or
    /// below.
    fn percentile(&self, percent: u64) -> u64 {
        let wanted = (self.count() * percent).div_ceil(100);
        let mut seen = 0;
        self.0
            .iter()
            .find(|value| {
                seen += value.1;
                seen >= wanted
            })
            .expect("not empty")
            .0
    }
}

fn assert_within(what: &str, ns: u64, lowest_ms: u64, limit_ms: u64) {
    assert!(ns >= lowest_ms * MS, "{what} is {ns} ns, in truth at least {lowest_ms} ms");
    assert!(ns < limit_ms * MS, "{what} is {ns} ns, in truth about {lowest_ms} ms");
}

/// 35 of 50 topics take 5 ms, 14 take 50 ms, one takes 200 ms; each topic has one subscriber.
fn delay_of_50(topic: usize, _subscriber: usize) -> u64 {
    match topic {
        0 => 200 * MS,
        1..15 => 50 * MS,
        _ => 5 * MS,
    }
}

/// The percentiles of 1,000 events over the 50 topics: 700 at 5 ms, 280 at 50 ms, 20 at 200 ms.
fn assert_as_delayed(told: &Told) {
    assert_eq!(told.count(), 1_000);
    assert_eq!(told.at_least(5 * MS), 1_000);
    assert!(told.at_least(50 * MS) >= 300);
    assert!(told.at_least(200 * MS) >= 20);
    assert_within("the median", told.percentile(50), 5, 45);
    assert_within("p90", told.percentile(90), 50, 190);
    assert_within("p99", told.percentile(99), 200, 1_000);
    assert_within("the maximum", told.percentile(100), 200, 3_000);
}

#[test]
fn the_percentiles_are_those_of_the_delays_that_the_server_made() {
    let server = DelayServer::start(delay_of_50);
    let (mut publisher, mut receiver) = roles(&server, 50, 50);
    go(&mut publisher, 250.0, 4.0);
    assert_eq!(publisher.word("done")["events"], 1_000);
    let report = report(&mut receiver, 1_000, 1_000);
    for fault in ["lost", "duplicated", "out_of_order", "foreign"] {
        assert_eq!(report["findings"][fault], 0, "{report}");
    }
    assert_as_delayed(&Told::of(&report["latencies"]));
}

#[test]
fn a_run_reports_the_delays_that_the_server_made() {
    let server = DelayServer::start(delay_of_50);
    let base = std::env::temp_dir().join(format!("loadtest-truth-{}", std::process::id()));
    let file = |end: &str| base.with_extension(end).to_str().expect("text").to_owned();
    let scenario = "name = \"truth\"\nabout = \"Known delays\"\nseconds = 4\nwarm_up_seconds = 0.4\ntopics = 50\n\
        payload_bytes = 100\n[publish]\npace = \"rate\"\nper_second = 250\n[[subscribers]]\nprotocol = \"sse\"\n\
        connections = 50\n";
    std::fs::write(file("toml"), scenario).expect("a temporary file");
    let run = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["run", &file("toml"), "--no-floor", "--json", &file("json"), "--hlog", &file("hlog")])
        .args(["--subscribe-sse", &format!("http://{}/{{topic}}", server.subscribe)])
        .args(["--publish-to", &format!("nats://{}/{{topic}}", server.publish)])
        .output()
        .expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(run.status.success(), "{}{}", text(&run.stdout), text(&run.stderr));
    let saved: Value = serde_json::from_slice(&std::fs::read(file("json")).expect("saved")).expect("JSON");
    let log = std::fs::read(file("hlog")).expect("saved");
    ["toml", "json", "hlog"].iter().for_each(|end| std::fs::remove_file(file(end)).expect("ours"));
    let outcome = &saved["results"][0];
    assert_eq!((&outcome["published"], &outcome["deliveries"]), (&json!(1_000), &json!(1_000)), "{outcome}");
    // Each topic has one subscriber, who is the last one too.
    for name in ["each", "last"] {
        let (latency, told) = (&outcome[name], Told::in_log(&log, name));
        assert_as_delayed(&told);
        let quantiles: Vec<(f64, u64)> = serde_json::from_value(latency["quantiles"].clone()).expect("pairs");
        for (quantile, percent) in [(0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100)] {
            assert!(quantiles.contains(&(quantile, told.percentile(percent))), "{percent} %: {quantiles:?}");
        }
    }
}

#[test]
fn the_last_subscriber_of_an_event_is_the_slowest_one() {
    fn delay(_topic: usize, subscriber: usize) -> u64 {
        [5 * MS, 80 * MS, 20 * MS][subscriber]
    }
    let server = DelayServer::start(delay);
    let (mut publisher, mut receiver) = roles(&server, 3, 1);
    go(&mut publisher, 100.0, 1.0);
    publisher.word("done");
    let told = Told::of(&report(&mut receiver, 100, 300)["latencies"]);
    assert_eq!(told.at_least(5 * MS), 300);
    assert!(told.at_least(20 * MS) >= 200);
    assert_within("p17", told.percentile(17), 5, 20);
    assert_within("the median", told.percentile(50), 20, 80);
    assert_within("p83", told.percentile(83), 80, 1_000);
    let sample = receiver.ask(&json!({"do": "sample"}), "sample");
    let lasts = sample["lasts"].as_array().expect("a list");
    assert_eq!(lasts.len(), 100, "{sample}");
    for last in lasts {
        let ns = |name: &str| last[name].as_u64().expect("a number");
        assert_within("the last arrival", ns("arrival_ns") - ns("stamp_ns"), 80, 3_000);
    }
}

/// Waits until the kernel says that the process is stopped.
fn wait_stopped(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
        if stat.rsplit_once(')').expect("a name").1.trim_start().starts_with('T') {
            return;
        }
        assert!(Instant::now() < deadline, "{stat}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_publisher_that_was_stopped_for_a_second_hides_nothing_of_it() {
    const RATE: u64 = 500;
    const EVENTS: u64 = 4 * RATE;
    const STALL: u64 = 1_000 * MS;
    let server = DelayServer::start(|_, _| 0);
    let (mut publisher, mut receiver) = roles(&server, 1, 1);
    go(&mut publisher, RATE as f64, 4.0);
    let pid = Pid::from_raw(publisher.child.id() as i32).expect("a process id");
    // Somewhere within the four seconds; how far is of no matter.
    thread::sleep(Duration::from_secs(1));
    kill_process(pid, Signal::STOP).expect("it lives");
    wait_stopped(publisher.child.id());
    let stopped = now_ns();
    while now_ns() < stopped + STALL {
        thread::sleep(Duration::from_millis(5));
    }
    kill_process(pid, Signal::CONT).expect("it lives");
    let done = publisher.word("done");
    assert_eq!(done["events"], EVENTS, "no event was left out");
    assert!(done["seconds"].as_f64().expect("a number") >= 3.99, "{done}");
    let told = Told::of(&report(&mut receiver, EVENTS, EVENTS)["latencies"]);
    assert_eq!(told.count(), EVENTS);
    let sample = publisher.ask(&json!({"do": "sample"}), "sample");
    let lateness = Told::of(&sample["lateness"]);
    assert_eq!((sample["published"].as_u64(), lateness.count()), (Some(EVENTS), EVENTS));
    // What is due t after the stop waits for 1 s - t at least: of the events due in that second,
    // evenly spread, so many wait for x or longer as are due in its first 1 s - x. One may fall
    // beside the edge of that time.
    for (what, told) in [("latency", &told), ("lateness", &lateness)] {
        for x in [0, 250, 500, 750, 990] {
            let least = RATE * (1_000 - x) / 1_000 - 1;
            let found = told.at_least((x * MS).max(MS / 2));
            assert!(found >= least, "{what}: {found} events took {x} ms or more, in truth at least {least}");
            // Events outside of that second are late only for what else the machine does.
            let most = if x == 0 { EVENTS } else { least + EVENTS / 5 };
            assert!(found <= most, "{what}: {found} events took {x} ms or more, in truth about {least}");
        }
        let max = told.percentile(100);
        assert!(max >= STALL - 1_000 * MS / RATE, "the longest {what} is {max} ns");
    }
}

#[test]
fn a_publisher_without_a_server_says_so_in_one_line_and_fails() {
    let nowhere = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    for way in ["stream", "post", "websocket", "nats"] {
        let mut publisher = Role::start("publisher");
        let failed = publisher.ask(
            &json!({
                "do": "connect", "address": nowhere.to_string(), "way": way, "path": "/{topic}", "topics": 1,
                "payload_bytes": 100,
            }),
            "failed",
        );
        let cause = failed["cause"].as_str().expect("text");
        assert!(
            cause.contains(&nowhere.to_string()) && cause.contains("is the server running?"),
            "{way}: {cause}"
        );
    }
}

//! Claim: whatever kills a server with `--data`, and however often, with `--fsync always` what was
//! acknowledged reaches every subscriber once and without a gap. With `interval` a subscriber gets
//! all that the server still has, once, and is told of a gap where it may lack something.
//!
//! Set-up: publishers at a common pace and event streams that come back with `Last-Event-ID`, while
//! the server is ended by SIGKILL and started again on its directory and its addresses. Under
//! `always` publishers repeat what has no answer under its idempotency key; under `interval` they
//! leave it alone, because nobody knows whether somebody has got it.
//!
//! Expectation: each number comes once, under ids that rise. What a subscriber has not got of what
//! was acknowledged is nothing, or, under `interval`, neither in the history of the last server nor
//! without a gap notice from before it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::store::{directory, flags};
use crate::support::{PATIENCE, Scratch, Server, raise_descriptor_limit, until};

/// Between two tries to reach a server that is down.
const PAUSE: Duration = Duration::from_millis(20);

/// What the publishers know.
struct Publishing {
    control: SocketAddr,
    /// Events in a second, of all together.
    rate: u64,
    /// What has no answer is repeated.
    repeats: bool,
    began: Instant,
    next: AtomicU64,
    /// The sequences of what was acknowledged, by number.
    taken: Mutex<HashMap<u64, u64>>,
    stop: AtomicBool,
}

impl Publishing {
    fn taken(&self) -> usize {
        self.taken.lock().expect("nobody panics").len()
    }

    /// Publishes numbers one after the other.
    async fn publish(self: Arc<Publishing>) {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            sleep_until(self.began + Duration::from_micros(number * 1_000_000 / self.rate)).await;
            let url = format!("http://{}/topics/t?idempotency_key=n{number}", self.control);
            loop {
                let answer = client.post(&url).body(number.to_string()).send().await;
                if let Ok(answer) = answer {
                    let status = answer.status().as_u16();
                    let body = answer.text().await.unwrap_or_default();
                    let sequence = serde_json::from_str(&body)
                        .ok()
                        .and_then(|body: serde_json::Value| body["sequence"].as_u64());
                    if let Some(sequence) = sequence.filter(|_| status == 200) {
                        self.taken.lock().expect("nobody panics").insert(number, sequence);
                        break;
                    }
                    assert!([200, 503, 504].contains(&status), "{status} {body}");
                } else {
                    sleep(PAUSE).await;
                }
                if !self.repeats {
                    break;
                }
            }
        }
    }
}

/// What one subscriber has got.
#[derive(Default)]
struct Heard {
    /// A bit per number.
    numbers: Vec<u64>,
    /// The last id.
    last: String,
    /// Its sequence.
    newest: u64,
    /// The sequences from which on it may lack something, as it was told.
    gaps: Vec<u64>,
    connections: u64,
}

impl Heard {
    fn has(&self, number: u64) -> bool {
        self.numbers.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn block(&mut self, block: &str) {
        // The first one is behind the head of the answer.
        let block = block.rsplit("\r\n\r\n").next().expect("the last part");
        if block.starts_with("event: fanwave-gap") {
            self.gaps.push(self.newest);
            return;
        }
        let field = |name: &str| block.split('\n').find_map(|line| line.strip_prefix(name));
        let Some(id) = field("id: ") else { return };
        let (_, sequence) = id.rsplit_once('-').expect("an id of ours");
        let sequence: u64 = sequence.parse().expect("a number");
        if let Some(number) = field("data: ") {
            assert!(sequence > self.newest, "ids rise: {sequence} after {}", self.newest);
            let number: u64 = number.parse().expect("a number");
            assert!(!self.has(number), "{number} comes once, not also as {id}");
            let at = number as usize / 64;
            self.numbers.resize(self.numbers.len().max(at + 1), 0);
            self.numbers[at] |= 1 << (number % 64);
        }
        self.last = id.to_string();
        self.newest = sequence;
    }

    /// Follows the topic over any number of connections, up to the event of this number.
    async fn follow(mut self, data: SocketAddr, end: Arc<AtomicU64>) -> Heard {
        let is_over = |heard: &Heard| heard.has(end.load(Ordering::Relaxed));
        while !is_over(&self) {
            let Ok(mut socket) = TcpStream::connect(data).await else {
                sleep(PAUSE).await;
                continue;
            };
            let last = &self.last;
            let named = if last.is_empty() { String::new() } else { format!("Last-Event-ID: {last}\r\n") };
            let head = format!("GET /sse/t HTTP/1.0\r\nHost: test\r\n{named}\r\n");
            if socket.write_all(head.as_bytes()).await.is_err() {
                continue;
            }
            self.connections += 1;
            let mut text = Vec::new();
            while !is_over(&self) {
                let mut more = [0; 16 << 10];
                let Ok(Ok(bytes @ 1..)) = timeout(PATIENCE, socket.read(&mut more)).await else { break };
                text.extend_from_slice(&more[..bytes]);
                let whole = text.windows(2).rposition(|pair| pair == b"\n\n").map_or(0, |at| at + 2);
                let blocks = str::from_utf8(&text[..whole]).expect("UTF-8");
                blocks.split("\n\n").for_each(|block| self.block(block));
                text.drain(..whole);
            }
        }
        self
    }
}

/// Kills a server under load so many times.
async fn kill_rounds(fsync: &str, rounds: u64, publishers: usize, subscribers: usize, events: usize) {
    raise_descriptor_limit();
    let scratch = Scratch::new();
    let data = directory(&scratch);
    // Nobody is away for long, so windows need not be large.
    let flags = flags(&data, fsync, &["--window-events-max", "200000", "--window-bytes-max", "64MiB"]);
    let mut server = Server::start(&flags);
    let end = Arc::new(AtomicU64::new(u64::MAX));
    let followers: Vec<_> =
        (0..subscribers).map(|_| tokio::spawn(Heard::default().follow(server.data, end.clone()))).collect();
    server.await_subscribers("t", subscribers as u64, 0).await;
    let first = server.publish("t", "0").await;
    let publishing = Arc::new(Publishing {
        control: server.control,
        rate: 5_000,
        repeats: fsync == "always",
        began: Instant::now(),
        next: AtomicU64::new(1),
        taken: Mutex::new(HashMap::from([(0, first.sequence)])),
        stop: AtomicBool::new(false),
    });
    let working: Vec<_> = (0..publishers).map(|_| tokio::spawn(publishing.clone().publish())).collect();
    for _ in 0..rounds {
        let before = publishing.taken();
        until("more events", async || (publishing.taken() >= before + events).then_some(())).await;
        server.signal(Signal::KILL);
        server.ended().await;
        server = Server::start_on(server.data, server.control, &flags);
    }
    let per_second = publishing.taken() as f64 / publishing.began.elapsed().as_secs_f64();
    publishing.stop.store(true, Ordering::Relaxed);
    for publisher in working {
        publisher.await.expect("every event has an answer in the end");
    }
    // Behind it comes nothing.
    let last = publishing.next.load(Ordering::Relaxed);
    server.publish("t", last.to_string()).await;
    end.store(last, Ordering::Relaxed);
    let (epoch, _) = first.id.rsplit_once('-').expect("an id of ours");
    let from_the_begin = Heard { last: format!("{epoch}-0"), ..Heard::default() };
    let kept = from_the_begin.follow(server.data, end.clone()).await;
    let taken = publishing.taken.lock().expect("nobody panics").clone();
    let lost: Vec<(u64, u64)> =
        taken.iter().map(|(n, s)| (*n, *s)).filter(|(number, _)| !kept.has(*number)).collect();
    eprintln!(
        "{fsync}: {} acknowledged, {per_second:.0} a second with the starts, {} of them lost",
        taken.len(),
        lost.len()
    );
    assert!(fsync != "always" || (lost.is_empty() && kept.gaps.is_empty()), "{lost:?} {:?}", kept.gaps);
    // Each connection but the first begins with a notice, also that of the last look.
    assert!(fsync == "always" || kept.gaps == [0], "{:?}", kept.gaps);
    // The queue of the thread that writes is all that a kill takes.
    assert!(lost.len() as u64 <= rounds * 16_384, "{} are lost", lost.len());
    for follower in followers {
        let heard = follower.await.expect("each event once, in order");
        assert!(heard.connections > rounds, "it came back after each kill: {}", heard.connections);
        assert!(fsync != "always" || heard.gaps.is_empty(), "nothing acknowledged is missing");
        for number in 0..=last {
            let lacks = !heard.has(number) && (kept.has(number) || taken.contains_key(&number));
            assert!(!lacks || !kept.has(number), "{number} is there, and did not come");
            let is_told = || heard.gaps.iter().any(|after| *after < taken[&number]);
            assert!(!lacks || is_told(), "{number} is lost, and nothing told so");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_reaches_everybody_once_although_the_server_is_killed() {
    kill_rounds("always", 2, 4, 10, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kill_takes_under_a_weaker_promise_is_told_and_all_else_comes_once() {
    kill_rounds("interval", 2, 4, 10, 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --long"]
async fn long_what_was_acknowledged_survives_twenty_kills_under_load() {
    kill_rounds("always", 20, 64, 500, 1_500).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: tests/run --long"]
async fn long_what_was_acknowledged_is_there_or_told_after_twenty_kills_with_interval() {
    kill_rounds("interval", 20, 64, 500, 1_000).await;
}

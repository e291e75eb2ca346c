//! `loadtest memory`: resident user-space memory per idle connection.
//!
//! A fresh server of one shard, first with few, then with many idle subscribers; the difference
//! divided by the connections between them. Nothing is published before both readings. Afterwards
//! one event shows that every connection is alive. With `--tls` the same again for subscribers that
//! speak it, and with `--h2-streams` for event streams over HTTP/2, each of which is a subscriber.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::{Bench, ServerArgs, publish_one_by_one};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, Publisher};
use crate::receiver::CrowdSetup;
use crate::report::{progress, save, say, table};
use crate::server::Doors;
use crate::unit::grouped;
use crate::usage::Memory;

/// Memory has settled when it did not change for so many milliseconds. A server, or its allocator,
/// gives back what newcomers took for a moment some seconds later: fanwave's within five.
pub const SETTLED_MS: u64 = 6_000;
/// How many times as long to wait for that at most.
const SETTLE_LIMIT: u32 = 5;
/// The usual huge page: what one of them adds is not a connection's need but its granule.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// What an idle subscriber of one topic is promised to take at most, in plain and over TLS.
const PROMISED_BYTES: [u64; 2] = [147, 350];

/// What an idle event stream over HTTP/2 and TLS is promised to take at most, its connection
/// included: alone on it, and as one of six.
const PROMISED_OF_STREAMS: [(usize, u64); 2] = [(1, 800), (6, 300)];

/// Bytes of the event at the end.
pub const PAYLOAD_BYTES: usize = 200;

/// Options of `memory`.
#[derive(Debug, Clone, Args)]
pub struct MemoryArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Idle subscribers at the first reading; for event streams over HTTP/2 so many connections, for
    /// what their handshakes leave is the same at both readings only if both had as many at a time
    #[arg(long, default_value_t = 1_000)]
    few: usize,
    /// Idle subscribers at the second reading
    #[arg(long, default_value_t = 19_000)]
    many: usize,
    /// What the subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Memory is read when it did not change for so long; a server gives back some of it later
    #[arg(long, value_name = "MS", default_value_t = SETTLED_MS)]
    settled_ms: u64,
    /// Topics of each subscriber; more than one for json alone, whose subscribers name them by
    /// commands
    #[arg(long, default_value_t = 1)]
    topics: usize,
}

/// A server's memory with few and with many idle subscribers.
#[derive(Debug, Serialize)]
pub struct Stages {
    pub few: usize,
    pub many: usize,
    pub empty: Memory,
    pub at_few: Memory,
    pub at_many: Memory,
    /// After one event to all of the many.
    pub after_event: Memory,
}

impl Stages {
    /// Reads a fresh server by `memory`. What it says unasked to subscribers that have just come
    /// takes it at most `talk`. Each reading waits until nothing has changed for `settled_ms`.
    pub fn read(
        memory: impl Fn() -> Result<Memory>,
        subscribers: CrowdSetup,
        plan: &PublishPlan,
        (few, many): (usize, usize),
        talk: Duration,
        settled_ms: u64,
    ) -> Result<Stages> {
        let settled = || settled(&memory, Duration::from_millis(settled_ms));
        let empty = settled()?;
        let mut fleet = Fleet::new(subscribers);
        fleet.open(few)?;
        std::thread::sleep(talk);
        let at_few = settled()?;
        fleet.open(many - few)?;
        std::thread::sleep(talk);
        let at_many = settled()?;
        let mut publisher = Publisher::connect(plan)?;
        publish_one_by_one(&mut publisher, &mut fleet, 1)?;
        fleet.check(1, 1)?;
        publisher.finish()?;
        Ok(Stages { few, many, empty, at_few, at_many, after_event: settled()? })
    }

    /// Bytes that each connection between the two readings added.
    pub fn per_connection(&self, of: impl Fn(&Memory) -> u64) -> f64 {
        (of(&self.at_many) as f64 - of(&self.at_few) as f64) / (self.many - self.few) as f64
    }
}

#[derive(Debug, Serialize)]
struct Reading {
    protocol: Protocol,
    tls: bool,
    /// Streams on each connection of HTTP/2.
    h2_streams: Option<usize>,
    #[serde(flatten)]
    stages: Stages,
}

impl Reading {
    fn label(&self) -> String {
        spoken(self.protocol, self.tls, self.h2_streams)
    }
}

/// Reads and prints.
pub fn run(bench: &Bench, args: &MemoryArgs) -> Result<()> {
    let most = args.server.doors.h2_streams.iter().copied().max().unwrap_or(1);
    if args.few * most >= args.many {
        bail!("--few {} with {most} streams on a connection is not less than --many {}", args.few, args.many);
    }
    if args.topics == 0 || (args.topics > 1 && args.protocol != [Protocol::Json]) {
        bail!("--topics {}: at least 1, and more than 1 with --protocol json alone", args.topics);
    }
    let mut readings = Vec::new();
    for (protocol, tls, h2_streams) in
        ways(&args.protocol, args.server.doors.tls, &args.server.doors.h2_streams)
    {
        let spoken = spoken(protocol, tls, h2_streams);
        let few = args.few * h2_streams.unwrap_or(1);
        progress(&format!("{spoken}: {few} and {} idle subscribers", args.many));
        let doors = Doors { tls, ..args.server.doors.with_streams(h2_streams) };
        let asked = ServerArgs { doors, ..args.server.clone() };
        readings.push(asked.ask(bench, &[], |server| {
            let mut subscribers = CrowdSetup { audit: true, ..bench.subscribers(&server.target, protocol)? };
            let quiet = (1..args.topics).map(|topic| format!("{{\"topic\":\"quiet-{topic}\"}}"));
            subscribers.commands.extend(quiet);
            let (plan, both) = (PublishPlan::to(&server.target, 1, PAYLOAD_BYTES)?, (few, args.many));
            let stages = Stages::read(
                || server.own_memory(),
                subscribers,
                &plan,
                both,
                Duration::ZERO,
                args.settled_ms,
            )?;
            Ok(Reading { protocol, tls, h2_streams, stages })
        })?);
    }
    say(&format!("{}\n", bench.machine.line()));
    let kib = |bytes: u64| format!("{} KiB", grouped(bytes >> 10));
    let mut rows = Vec::new();
    for reading in &readings {
        let stages = &reading.stages;
        for kind in ["VmRSS - RssFile", "Pss"] {
            let of = |memory: &Memory| if kind == "Pss" { memory.pss } else { memory.rss_own };
            let per_connection = stages.per_connection(of);
            let mut row = vec![reading.label(), kind.to_owned()];
            let all = [&stages.empty, &stages.at_few, &stages.at_many, &stages.after_event];
            row.extend(all.map(|memory| kib(of(memory))));
            row.push(format!("{per_connection:.0} B"));
            rows.push(row);
        }
    }
    let (few, many) =
        (format!("{} connections", grouped(args.few as u64)), format!("{} idle", grouped(args.many as u64)));
    table(2, &["protocol", "memory", "empty", &few, &many, "after an event", "per idle connection"], &rows);
    let [plain, tls] = PROMISED_BYTES;
    say(&format!(
        "promised of VmRSS - RssFile, with one topic: at most {plain} B in plain, {tls} B over TLS"
    ));
    if !args.server.doors.h2_streams.is_empty() {
        let promised =
            PROMISED_OF_STREAMS.map(|(streams, bytes)| format!("{bytes} B with {streams} on a connection"));
        say(&format!(
            "of a stream over HTTP/2 and TLS, its share of the connection included: {}",
            promised.join(", ")
        ));
    }
    for reading in &readings {
        let stages = &reading.stages;
        let huge = stages.at_many.huge.saturating_sub(stages.at_few.huge);
        if huge > 0 {
            say(&format!(
                "{}: {} KiB of the growth are huge pages, each a step of {:.0} B per connection",
                reading.label(),
                grouped(huge >> 10),
                HUGE_PAGE_BYTES as f64 / (stages.many - stages.few) as f64
            ));
        }
    }
    save(bench.common.json.as_deref(), "memory", &bench.machine, &readings)
}

/// What is read, one after the other: in plain first, over TLS where that is asked for, then over
/// HTTP/2, if it is asked for and can be.
fn ways(protocols: &[Protocol], tls: bool, streams: &[usize]) -> Vec<(Protocol, bool, Option<usize>)> {
    let mut ways = Vec::new();
    for &protocol in protocols {
        ways.push((protocol, false, None));
        if tls {
            ways.push((protocol, true, None));
        }
        if protocol == Protocol::Sse {
            ways.extend(streams.iter().map(|streams| (protocol, tls, Some(*streams))));
        }
    }
    ways
}

/// A protocol, whether it is spoken over TLS, and how many streams a connection of HTTP/2 has.
fn spoken(protocol: Protocol, tls: bool, streams: Option<usize>) -> String {
    let tls = if tls { ", TLS" } else { "" };
    let streams = streams.map(|streams| format!(", HTTP/2 × {streams}")).unwrap_or_default();
    format!("{}{tls}{streams}", protocol.label())
}

/// A server's memory, read by `read`, once it has stopped changing, or when the limit is over.
fn settled(read: impl Fn() -> Result<Memory>, unchanged: Duration) -> Result<Memory> {
    let deadline = Instant::now() + unchanged * SETTLE_LIMIT;
    let mut before = read()?;
    loop {
        std::thread::sleep(unchanged);
        let now = read()?;
        if now.rss_own == before.rss_own || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_2_is_read_for_event_streams_behind_the_door_that_is_asked_for() {
        let both = [Protocol::Sse, Protocol::Ws];
        let told = |tls| {
            ways(&both, tls, &[1, 6])
                .into_iter()
                .map(|(protocol, tls, streams)| spoken(protocol, tls, streams))
        };
        assert_eq!(told(false).collect::<Vec<_>>(), ["sse", "sse, HTTP/2 × 1", "sse, HTTP/2 × 6", "ws"]);
        let over_tls = ["sse", "sse, TLS", "sse, TLS, HTTP/2 × 1", "sse, TLS, HTTP/2 × 6", "ws", "ws, TLS"];
        assert_eq!(told(true).collect::<Vec<_>>(), over_tls);
    }

    #[test]
    fn the_cost_of_a_connection_is_the_difference_over_those_between() {
        let memory = |rss_own| Memory { rss_own, pss: 0, huge: 0 };
        let stages = Stages {
            few: 10,
            many: 110,
            empty: memory(1),
            at_few: memory(5_000),
            at_many: memory(25_000),
            after_event: memory(9),
        };
        assert_eq!(stages.per_connection(|memory| memory.rss_own), 200.0);
        assert_eq!(stages.per_connection(|memory| memory.pss), 0.0);
    }
}

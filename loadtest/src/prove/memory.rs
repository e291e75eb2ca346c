//! `loadtest memory`: resident user-space memory per idle connection.
//!
//! A fresh server of one shard, first with few, then with many idle subscribers; the difference
//! divided by the connections between them. Nothing is published before both readings. Afterwards
//! one event shows that every connection is alive.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::{ARRIVE_LIMIT, Bench, ServerArgs, path, publish_one_by_one};
use crate::fleet::{Fleet, FleetPlan};
use crate::framing::Protocol;
use crate::report::{progress, save, say, table};
use crate::server::Server;
use crate::target::Way;
use crate::unit::grouped;
use crate::usage::Memory;

/// Memory has settled when it did not change for so long.
const SETTLED: Duration = Duration::from_millis(500);
/// How long to wait for that.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);
/// The usual huge page: what one of them adds is not a connection's need but its granule.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Options of `memory`.
#[derive(Debug, Clone, Args)]
pub struct MemoryArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Idle subscribers at the first reading
    #[arg(long, default_value_t = 1_000)]
    few: usize,
    /// Idle subscribers at the second reading
    #[arg(long, default_value_t = 19_000)]
    many: usize,
    /// What the subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
}

#[derive(Debug, Serialize)]
struct Reading {
    protocol: Protocol,
    few: usize,
    many: usize,
    empty: Memory,
    at_few: Memory,
    at_many: Memory,
    /// After one event to all of the many.
    after_event: Memory,
}

/// Bytes that each connection between the two readings added.
fn per_connection(reading: &Reading, of: impl Fn(&Memory) -> u64) -> f64 {
    let between = (reading.many - reading.few) as f64;
    (of(&reading.at_many) as f64 - of(&reading.at_few) as f64) / between
}

/// Reads and prints.
pub fn run(bench: &Bench, args: &MemoryArgs) -> Result<()> {
    if args.few >= args.many {
        bail!("--few {} is not less than --many {}", args.few, args.many);
    }
    let mut readings = Vec::new();
    for &protocol in &args.protocol {
        progress(&format!("{}: {} and {} idle connections", protocol.label(), args.few, args.many));
        let mut server =
            Server::start(&args.server.program, Some(bench.common.sender_cpu), 1, &args.server.more)?;
        readings.push(read(bench, args, &server, protocol).map_err(|error| server.explain(error))?);
        server.stop()?;
    }
    say(&format!("{}\n", bench.machine.line()));
    let kib = |bytes: u64| format!("{} KiB", grouped(bytes >> 10));
    let mut rows = Vec::new();
    for reading in &readings {
        for kind in ["VmRSS - RssFile", "Pss"] {
            let of = |memory: &Memory| if kind == "Pss" { memory.pss } else { memory.rss_own };
            let per_connection = per_connection(reading, of);
            let mut row = vec![reading.protocol.label().to_owned(), kind.to_owned()];
            let stages = [&reading.empty, &reading.at_few, &reading.at_many, &reading.after_event];
            row.extend(stages.map(|memory| kib(of(memory))));
            row.push(format!("{per_connection:.0} B"));
            rows.push(row);
        }
    }
    let (few, many) =
        (format!("{} idle", grouped(args.few as u64)), format!("{} idle", grouped(args.many as u64)));
    table(2, &["protocol", "memory", "empty", &few, &many, "after an event", "per idle connection"], &rows);
    for reading in readings.iter().filter(|reading| reading.at_many.huge > reading.at_few.huge) {
        let step = HUGE_PAGE_BYTES as f64 / (reading.many - reading.few) as f64;
        say(&format!(
            "{}: {} KiB of the growth are huge pages, each a step of {step:.0} B per connection",
            reading.protocol.label(),
            grouped((reading.at_many.huge - reading.at_few.huge) >> 10)
        ));
    }
    save(bench.common.json.as_deref(), "memory", &bench.machine, &readings)
}

fn read(bench: &Bench, args: &MemoryArgs, server: &Server, protocol: Protocol) -> Result<Reading> {
    let empty = settled(|| server.memory())?;
    let mut fleet = Fleet::new(FleetPlan {
        cpu: Some(bench.common.receiver_cpu),
        audit: true,
        ..FleetPlan::steady(server.listen, protocol, path(protocol))
    });
    fleet.open(args.few)?;
    let at_few = settled(|| server.memory())?;
    fleet.open(args.many - args.few)?;
    let at_many = settled(|| server.memory())?;
    let mut publisher = super::publisher(server, Way::Stream, 200)?;
    fleet.zero(publisher.next(), 0)?;
    publish_one_by_one(&mut publisher, 1, |event, last| fleet.wait_for(event, ARRIVE_LIMIT, last).map(drop))?;
    fleet.check(1, 1)?;
    publisher.finish()?;
    let after_event = settled(|| server.memory())?;
    Ok(Reading { protocol, few: args.few, many: args.many, empty, at_few, at_many, after_event })
}

/// A server's memory, read by `read`, once it has stopped changing, or when the limit is over.
pub fn settled(read: impl Fn() -> Result<Memory>) -> Result<Memory> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut before = read()?;
    loop {
        std::thread::sleep(SETTLED);
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
    fn the_cost_of_a_connection_is_the_difference_over_those_between() {
        let memory = |rss_own| Memory { rss_own, pss: 0, huge: 0 };
        let reading = Reading {
            protocol: Protocol::Sse,
            few: 10,
            many: 110,
            empty: memory(1),
            at_few: memory(5_000),
            at_many: memory(25_000),
            after_event: memory(9),
        };
        assert_eq!(per_connection(&reading, |memory| memory.rss_own), 200.0);
        assert_eq!(per_connection(&reading, |memory| memory.pss), 0.0);
    }
}

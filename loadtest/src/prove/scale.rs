//! `loadtest scale`: one server process with more subscribers than it may have descriptors, and a
//! publish that reaches every one of them.
//!
//! Subscribers come from as many receiver processes as the limit demands, half of them per protocol
//! if two are named. Every connection is audited: each event once, in order, exact to the byte.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::{ARRIVE_LIMIT, Bench, ServerArgs};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, Publisher};
use crate::receiver::{CrowdSetup, latency_histogram};
use crate::report::{progress, save, say};
use crate::server::{self, Running};
use crate::unit::grouped;
use crate::usage::Memory;

/// Options of `scale`.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Subscribers in all
    #[arg(long, default_value_t = 100_000)]
    connections: usize,
    /// Shards of the server
    #[arg(long, default_value_t = 6)]
    shards: usize,
    /// What the subscribers speak, in equal parts
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: usize,
    /// Events, one in flight at a time
    #[arg(long, default_value_t = 5)]
    events: u64,
}

#[derive(Debug, Serialize)]
struct Outcome {
    connections: usize,
    shards: usize,
    receivers: usize,
    connect_seconds: f64,
    empty: Memory,
    idle: Memory,
    rss_own_per_connection: f64,
    events: u64,
    deliveries: u64,
    /// Milliseconds from each publish until every subscriber had it, as seen at the publisher.
    publish_to_last_ms: Vec<f64>,
    /// Milliseconds from publish to arrival over all deliveries: median, 99th percentile, maximum.
    arrival_ms: [f64; 3],
    /// What the server says of itself, over all shards.
    stats: serde_json::Value,
}

/// Connects, publishes, checks and prints.
pub fn run(bench: &Bench, args: &ScaleArgs) -> Result<()> {
    if args.connections < args.protocol.len()
        || args.protocol.is_empty()
        || args.shards == 0
        || args.events == 0
    {
        bail!("--connections, --protocol, --shards and --events are at least 1");
    }
    let outcome =
        server::ask(&args.server.choice(), None, args.shards, &[], |server| measure(bench, args, server))?;
    say(&bench.machine.line());
    say(&format!(
        "\n{} subscribers on {} shards of one process ({} descriptors allowed), from {} receiver processes: open in {:.1} s",
        grouped(outcome.connections as u64),
        outcome.shards,
        grouped(bench.machine.descriptors),
        outcome.receivers,
        outcome.connect_seconds
    ));
    say(&format!(
        "server memory (VmRSS - RssFile): {} KiB empty, {} KiB with all idle, {:.0} B per connection",
        grouped(outcome.empty.rss_own >> 10),
        grouped(outcome.idle.rss_own >> 10),
        outcome.rss_own_per_connection
    ));
    let times: Vec<_> = outcome.publish_to_last_ms.iter().map(|ms| format!("{ms:.0}")).collect();
    say(&format!("publish to last subscriber: {} ms", times.join(", ")));
    let [median, high, most] = outcome.arrival_ms;
    say(&format!("publish to arrival: median {median:.0} ms, p99 {high:.0} ms, maximum {most:.0} ms"));
    say(&format!(
        "{} of {} deliveries arrived: none lost, none twice, none out of order, exact to the byte",
        grouped(outcome.deliveries),
        grouped(outcome.deliveries)
    ));
    save(bench.common.json.as_deref(), "scale", &bench.machine, &outcome)
}

fn measure(bench: &Bench, args: &ScaleArgs, server: &Running) -> Result<Outcome> {
    let empty = server.own_memory()?;
    let mut fleets = Vec::new();
    let start = Instant::now();
    let mut first = 0;
    for (at, &protocol) in args.protocol.iter().enumerate() {
        let parts = args.protocol.len();
        let connections = args.connections / parts + usize::from(at < args.connections % parts);
        progress(&format!("opening {} {} connections", grouped(connections as u64), protocol.label()));
        let mut fleet = Fleet::new(CrowdSetup {
            first,
            audit: true,
            cpu: None,
            ..bench.subscribers(&server.target, protocol)?
        });
        fleet.open(connections)?;
        first += connections;
        fleets.push(fleet);
    }
    let connect_seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(1));
    let idle = server.own_memory()?;
    let stats = server.stats()?;
    check_count(&stats, args.connections)?;

    let mut publisher = Publisher::connect(&PublishPlan::to(&server.target, 1, args.size)?)?;
    for fleet in &mut fleets {
        fleet.zero(publisher.next(), 0)?;
    }
    let mut publish_to_last_ms = Vec::new();
    for event in 1..=args.events {
        let start = Instant::now();
        publisher.publish(1)?;
        for fleet in &mut fleets {
            fleet.wait_for(event, ARRIVE_LIMIT, event)?;
        }
        publish_to_last_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut latencies = latency_histogram();
    let mut deliveries = 0;
    for fleet in &mut fleets {
        let report = fleet.check(args.events, args.events)?;
        deliveries += report.totals.findings.events;
        latencies.add(&report.latencies).context("histograms have the same bounds")?;
    }
    publisher.finish()?;
    let ms = |ns: u64| ns as f64 / 1e6;
    Ok(Outcome {
        connections: args.connections,
        shards: args.shards,
        receivers: fleets.iter().map(Fleet::receivers).sum(),
        connect_seconds,
        empty,
        idle,
        rss_own_per_connection: (idle.rss_own as f64 - empty.rss_own as f64) / args.connections as f64,
        events: args.events,
        deliveries,
        publish_to_last_ms,
        arrival_ms: [
            ms(latencies.value_at_quantile(0.5)),
            ms(latencies.value_at_quantile(0.99)),
            ms(latencies.max()),
        ],
        stats: server.stats()?["totals"].take(),
    })
}

/// The server must know of as many connections as we have.
fn check_count(stats: &serde_json::Value, connections: usize) -> Result<()> {
    match stats.pointer("/totals/connections").and_then(serde_json::Value::as_u64) {
        Some(count) if count == connections as u64 => Ok(()),
        Some(count) => bail!("{connections} connections are open, /stats tells {count}"),
        None => bail!("/stats has no totals.connections"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_counts_otherwise_is_told() {
        let stats = serde_json::json!({"totals": {"connections": 7}});
        assert!(check_count(&stats, 7).is_ok());
        assert!(check_count(&stats, 8).expect_err("7 of 8").to_string().contains('7'));
        assert!(check_count(&serde_json::json!({}), 1).is_err());
    }
}

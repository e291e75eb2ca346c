//! `loadtest isolation`: what one reader that never reads costs the others and the server.
//!
//! Legs alternate: without and with a stalled reader among the subscribers, each against a fresh
//! server, at the same rates. Publishing is an open loop: events carry the time at which they were
//! due, so a publisher that is held up shows in the latencies. Latency is taken at the healthy
//! receivers, publish to arrival, every delivery.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::{ARRIVE_LIMIT, Bench, ServerArgs, path};
use crate::fleet::{Fleet, FleetPlan};
use crate::framing::Protocol;
use crate::publisher::Publisher;
use crate::report::{Spread, progress, save, say, table};
use crate::server::Server;
use crate::stamp::now_ns;
use crate::target::Way;
use crate::unit::grouped;
use crate::usage::Memory;
use crate::workload::Behaviour;

/// Receive buffer of the stalled reader; the kernel doubles it.
const STALLED_BUFFER_BYTES: usize = 4_096;
/// The stalled reader's number, beyond the healthy ones.
const STALLED_FIRST: usize = 1_000_000;
/// Events before the first stage.
const WARM_UP_EVENTS: u64 = 20;

/// Options of `isolation`.
#[derive(Debug, Clone, Args)]
pub struct IsolationArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Healthy subscribers
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// What all subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 1_024)]
    size: usize,
    /// Events per second, one stage for each
    #[arg(long, value_delimiter = ',', default_value = "50,150")]
    rate: Vec<u64>,
    /// Seconds of one stage
    #[arg(long, default_value_t = 10.0)]
    seconds_per_stage: f64,
    /// Pairs of legs
    #[arg(long, default_value_t = 5)]
    pairs: usize,
}

/// Latencies of one stage in microseconds.
#[derive(Debug, Clone, Serialize)]
struct Stage {
    rate: u64,
    deliveries: u64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

#[derive(Debug, Serialize)]
struct Leg {
    stalled: bool,
    stages: Vec<Stage>,
    memory: Memory,
    /// What the server said in the end of connections that do not keep up.
    told: String,
}

#[derive(Debug, Serialize)]
struct Comparison {
    protocol: Protocol,
    legs: Vec<Leg>,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &IsolationArgs) -> Result<()> {
    let time = super::cpu::leg_time("--seconds-per-stage", args.seconds_per_stage)?;
    if args.connections == 0 || args.pairs == 0 || args.rate.is_empty() || args.rate.contains(&0) {
        bail!("--connections, --pairs and --rate are at least 1");
    }
    let mut comparisons = Vec::new();
    for &protocol in &args.protocol {
        let mut legs = Vec::new();
        for pair in 1..=args.pairs {
            for stalled in [false, true] {
                let with = if stalled { "with" } else { "without" };
                progress(&format!(
                    "{}, pair {pair} of {}: {with} a stalled reader",
                    protocol.label(),
                    args.pairs
                ));
                let cpu = Some(bench.common.sender_cpu);
                let mut server = Server::start(&args.server.program, cpu, 1, &args.server.more)?;
                let leg = leg(bench, args, &server, protocol, stalled, time);
                legs.push(leg.map_err(|error| server.explain(error))?);
                server.stop()?;
            }
        }
        comparisons.push(Comparison { protocol, legs });
    }
    show(bench, args, &comparisons);
    save(bench.common.json.as_deref(), "isolation", &bench.machine, &comparisons)
}

fn leg(
    bench: &Bench,
    args: &IsolationArgs,
    server: &Server,
    protocol: Protocol,
    stalled: bool,
    time: Duration,
) -> Result<Leg> {
    let plan = FleetPlan {
        cpu: Some(bench.common.receiver_cpu),
        audit: true,
        ..FleetPlan::steady(server.listen, protocol, path(protocol))
    };
    let mut healthy = Fleet::new(plan.clone());
    let mut sleeper = Fleet::new(FleetPlan {
        first: STALLED_FIRST,
        behaviour: Behaviour::Stalled,
        receive_buffer: Some(STALLED_BUFFER_BYTES),
        ..plan
    });
    // The stalled reader stands in the middle of the others.
    healthy.open(args.connections / 2)?;
    if stalled {
        sleeper.open(1)?;
    }
    healthy.open(args.connections - args.connections / 2)?;
    let mut publisher = super::publisher(server, Way::Stream, args.size)?;
    healthy.zero(publisher.next(), 0)?;
    super::publish_one_by_one(&mut publisher, WARM_UP_EVENTS, |event, last| {
        healthy.wait_for(event, ARRIVE_LIMIT, last).map(drop)
    })?;
    let mut stages = Vec::new();
    for &rate in &args.rate {
        stages.push(stage(&mut healthy, &mut publisher, rate, time)?);
    }
    let (memory, told) = (server.memory()?, told(&server.stats()?));
    publisher.finish()?;
    Ok(Leg { stalled, stages, memory, told })
}

/// Publishes at `rate` for `time`, each event at its time or as soon after as it can be, stamped
/// with its time.
fn stage(healthy: &mut Fleet, publisher: &mut Publisher, rate: u64, time: Duration) -> Result<Stage> {
    healthy.zero(publisher.next(), 0)?;
    let events = (rate as f64 * time.as_secs_f64()).ceil() as u64;
    let (start, start_ns) = (Instant::now(), now_ns());
    for event in 0..events {
        let due = Duration::from_secs_f64(event as f64 / rate as f64);
        // Waiting takes in what the receivers say.
        while start.elapsed() < due {
            healthy.pump(start + due)?;
        }
        publisher.publish_stamped(1, start_ns + due.as_nanos() as u64)?;
    }
    healthy.wait_for(events, ARRIVE_LIMIT, publisher.next() - 1)?;
    let report = healthy.check(events, publisher.next() - 1)?;
    let us = |ns: u64| ns as f64 / 1e3;
    Ok(Stage {
        rate,
        deliveries: report.totals.findings.events,
        p50_us: us(report.latencies.value_at_quantile(0.5)),
        p99_us: us(report.latencies.value_at_quantile(0.99)),
        max_us: us(report.latencies.max()),
    })
}

impl Comparison {
    fn legs(&self, stalled: bool) -> impl Iterator<Item = &Leg> {
        self.legs.iter().filter(move |leg| leg.stalled == stalled)
    }

    fn stages(&self, stalled: bool, at: usize) -> impl Iterator<Item = &Stage> {
        self.legs(stalled).map(move |leg| &leg.stages[at])
    }
}

fn show(bench: &Bench, args: &IsolationArgs, comparisons: &[Comparison]) {
    say(&format!("{}\n", bench.machine.line()));
    let mut rows = Vec::new();
    for comparison in comparisons {
        for (at, &rate) in args.rate.iter().enumerate() {
            for name in ["p50", "p99"] {
                let of = |stage: &Stage| if name == "p50" { stage.p50_us } else { stage.p99_us };
                let without = Spread::of(comparison.stages(false, at).map(of));
                let with = Spread::of(comparison.stages(true, at).map(of));
                rows.push(vec![
                    comparison.protocol.label().into(),
                    name.into(),
                    rate.to_string(),
                    without.show(0),
                    with.show(0),
                    format!("{:.2}", with.median / without.median),
                ]);
            }
        }
    }
    let head =
        ["protocol", "latency", "events/s", "without, µs (min to max)", "with a stalled reader, µs", "ratio"];
    table(2, &head, &rows);
    for comparison in comparisons {
        let memory =
            |stalled| Spread::of(comparison.legs(stalled).map(|leg| leg.memory.rss_own as f64 / 1024.0));
        let (without, with) = (memory(false), memory(true));
        say(&format!(
            "\n{}: server memory (VmRSS - RssFile) {} KiB without, {} KiB with: {:+.0} KiB",
            comparison.protocol.label(),
            without.show(0),
            with.show(0),
            with.median - without.median
        ));
        if let Some(leg) = comparison.legs(true).last() {
            say(&format!("{}: /stats of the last leg with it: {}", comparison.protocol.label(), leg.told));
        }
    }
    say(&format!(
        "\n{} healthy subscribers, {} bytes per event, {} pairs; latency = due time of the publish to arrival,",
        grouped(args.connections as u64),
        args.size,
        args.pairs
    ));
    say("every delivery to a healthy subscriber; ratio = median with / median without.");
}

/// What `/stats` says of connections that do not keep up: its non-zero counters of that kind.
fn told(stats: &Value) -> String {
    let mut told = Vec::new();
    if let Some(formats) = stats.pointer("/totals/formats").and_then(Value::as_object) {
        for counters in formats.values() {
            for name in ["connections", "sends_in_flight", "deferred", "overruns", "gaps"] {
                match counters.get(name).and_then(Value::as_u64) {
                    Some(count) if count > 0 => told.push(format!("{name} {count}")),
                    _ => {}
                }
            }
        }
    }
    if let Some(closed) = stats.pointer("/totals/closed").and_then(Value::as_object) {
        let counts = closed.iter().filter_map(|(reason, count)| Some((reason, count.as_u64()?)));
        told.extend(
            counts.filter(|(_, count)| *count > 0).map(|(reason, count)| format!("closed {reason} {count}")),
        );
    }
    told.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_slow_connections_are_told_and_zeros_are_not() {
        let stats = serde_json::json!({"totals": {
            "formats": {"sse": {"connections": 5, "overruns": 1, "deferred": 0}, "websocket": {"overruns": 0}},
            "closed": {"overrun": 1, "drain": 0},
        }});
        assert_eq!(told(&stats), "connections 5, overruns 1, closed overrun 1");
        assert_eq!(told(&serde_json::json!({})), "");
    }
}

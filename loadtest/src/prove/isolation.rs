//! `loadtest isolation`: what one reader that never reads costs the others and the server.
//!
//! Legs alternate: without and with a stalled reader among the subscribers, each against a fresh
//! server, at the same rates. Publishing is an open loop: events carry the time at which they were
//! due, so a publisher that is held up shows in the latencies. Latency is taken at the healthy
//! receivers, publish to arrival, every delivery.

use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::leg::leg_time;
use super::topic::{Latencies, Topic};
use super::{Bench, ServerArgs};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, PublishProcess};
use crate::receiver::CrowdSetup;
use crate::report::{Spread, progress, save, say, table};
use crate::server::Running;
use crate::unit::grouped;
use crate::usage::Memory;
use crate::workload::Behaviour;

/// Receive buffer of the stalled reader; the kernel doubles it.
const STALLED_BUFFER_BYTES: usize = 4_096;
/// The stalled reader's number, beyond the healthy ones.
const STALLED_FIRST: usize = 1_000_000;
/// What is published before the first stage: events per second, for a moment.
const WARM_UP_RATE: f64 = 100.0;
const WARM_UP: Duration = Duration::from_millis(200);

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

#[derive(Debug, Serialize)]
struct Stage {
    rate: u64,
    #[serde(flatten)]
    latencies: Latencies,
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
    let time = leg_time("--seconds-per-stage", args.seconds_per_stage)?;
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
                legs.push(
                    args.server
                        .ask(bench, &[], |server| leg(bench, args, server, protocol, stalled, time))?,
                );
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
    server: &Running,
    protocol: Protocol,
    stalled: bool,
    time: Duration,
) -> Result<Leg> {
    let plan = CrowdSetup { audit: true, ..bench.subscribers(&server.target, protocol)? };
    let mut healthy = Fleet::new(plan.clone());
    let mut sleeper = Fleet::new(CrowdSetup {
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
    let plan = PublishPlan::to(&server.target, 1, args.size)?;
    let publisher = PublishProcess::start(&plan, Some(bench.common.receiver_cpu))?;
    let mut topic = Topic::new(vec![healthy], publisher, WARM_UP_RATE);
    topic.measured(WARM_UP)?;
    let mut stages = Vec::new();
    for &rate in &args.rate {
        topic.rate = rate as f64;
        stages.push(Stage { rate, latencies: Latencies::of(&topic.measured(time)?) });
    }
    let (memory, told) = (server.own_memory()?, told(&server.stats()?));
    topic.finish()?;
    Ok(Leg { stalled, stages, memory, told })
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
                let of = |stage: &Stage| {
                    if name == "p50" { stage.latencies.p50_us } else { stage.latencies.p99_us }
                };
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

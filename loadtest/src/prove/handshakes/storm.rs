//! What a storm of handshakes costs those who are there: legs in calm and legs beside a storm, in
//! turns.
//!
//! Newcomers open at a rate, whole handshakes all of them, subscribe to a topic on which nothing is
//! said, and stay until the leg is over. Their process gives way on its CPU to the receivers of the
//! live subscribers, so that these are measured and not the generator.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::{HandshakesArgs, emptied};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::prove::Bench;
use crate::prove::topic::{Latencies, Topic};
use crate::publisher::{PublishPlan, PublishProcess};
use crate::receiver::{CrowdSetup, latency_histogram, record};
use crate::report::{Spread, progress};
use crate::server::Running;

/// Numbers of newcomers from one storm to the next: each has source addresses of its own.
const STORM_SPAN: usize = 1_000_000;
/// Events per second that live subscribers hear.
pub(super) const LIVE_RATE: f64 = 50.0;
/// Bytes of one.
pub(super) const LIVE_BYTES: usize = 200;

/// A leg in calm and one beside a storm; latencies of the live subscribers in microseconds.
#[derive(Debug, Serialize)]
pub struct Pair {
    pub calm: Latencies,
    pub storm: Latencies,
    /// Handshakes per second that there were.
    pub per_second: f64,
    /// From when a newcomer was due until the head of its answer.
    pub newcomers: Latencies,
}

/// The ratio of 99th percentiles, storm over calm.
pub fn ratio(pairs: &[Pair]) -> Option<Spread> {
    let ratios: Vec<f64> = pairs.iter().map(|pair| pair.storm.p99_us / pair.calm.p99_us).collect();
    (!ratios.is_empty()).then(|| Spread::of(ratios))
}

/// Does the pairs of legs on a server of TLS.
pub fn pairs(bench: &Bench, args: &HandshakesArgs, server: &Running) -> Result<Vec<Pair>> {
    if args.storms == 0 {
        return Ok(Vec::new());
    }
    let subscribers = bench.subscribers(&server.target, Protocol::Ws)?;
    let mut live = Fleet::new(CrowdSetup { audit: true, ..subscribers.clone() });
    live.open(args.live)?;
    let plan = PublishPlan::stream(server.target.publish, LIVE_BYTES);
    let publisher = PublishProcess::start(&plan, Some(bench.common.receiver_cpu))?;
    let mut topic = Topic::new(vec![live], publisher, LIVE_RATE);
    let time = Duration::from_secs_f64(args.storm as f64 / args.storm_per_second);
    let mut pairs = Vec::new();
    for number in 1..=args.storms {
        progress(&format!("storm {number} of {}: {} handshakes", args.storms, args.storm));
        let calm = topic.measured(time)?;
        let mut newcomers = Fleet::new(CrowdSetup {
            path: "/ws/storm".into(),
            first: number * STORM_SPAN,
            ramp_per_second: Some(args.storm_per_second),
            gives_way: true,
            ..subscribers.clone()
        });
        let first = topic.go(time)?;
        let begin = Instant::now();
        newcomers.open(args.storm)?;
        let per_second = args.storm as f64 / begin.elapsed().as_secs_f64();
        let storm = topic.heard(first, time)?;
        let mut waited = latency_histogram();
        newcomers.sample()?.iter().for_each(|word| record(&mut waited, &word.handshakes));
        drop(newcomers);
        emptied(server, args.live)?;
        let [calm, storm, newcomers] = [&calm, &storm, &waited].map(Latencies::of);
        pairs.push(Pair { calm, storm, per_second, newcomers });
    }
    topic.finish()?;
    Ok(pairs)
}

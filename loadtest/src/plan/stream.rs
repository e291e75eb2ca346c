//! What an event costs a node that reads a stream of JetStream: once on each node, and once more on
//! the node where it is published.
//!
//! One node with one subscriber is measured beside a nats-server on the receivers' CPU: while other
//! programs publish to the stream's subject, then while events are published at the node. What an
//! idle second costs is taken off. The one subscriber's deliveries are left in: an upper bound.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::experiments::{Stand, publish_at, wait_until};
use super::fit::{Estimate, rounded};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, PublishProcess};
use crate::receiver::CrowdSetup;
use crate::report::{Spread, progress};
use crate::server::{JetStream, NatsArgs, Running};
use crate::target::Target;
use crate::usage::CpuMeter;

/// Turns of everything.
const ROUNDS: usize = 5;
/// Events per second, and bytes of one: enough to be seen beside an idle second.
const RATE: f64 = 1_000.0;
const BYTES: usize = 200;
/// One leg.
const TIME: Duration = Duration::from_millis(1_500);
/// Publishing before the first leg.
const WARM_UP: Duration = Duration::from_millis(300);

/// CPU microseconds for an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamCost {
    /// What it calls its version.
    pub nats_server: String,
    /// On every node: reading and encoding. The interval is that of the rounds.
    pub read: Estimate,
    /// More, on the node where it is published.
    pub publish: Estimate,
}

/// Measures both.
pub fn measure(stand: &Stand<'_>, nats: &NatsArgs) -> Result<StreamCost> {
    let nats = JetStream::alone(nats, Some(stand.receiver_cpu), false)?;
    progress(&format!("a node on a stream of nats-server {}, {ROUNDS} rounds", nats.version));
    let source = ["--source".to_owned(), JetStream::url_of(std::slice::from_ref(&nats))];
    let (mut reads, mut publishes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        stand.ask(&source, |node| {
            let (read, publish) = round(stand, &nats, node)?;
            reads.push(read);
            publishes.push(publish);
            Ok(())
        })?;
    }
    Ok(StreamCost { nats_server: nats.version.clone(), read: spread(reads), publish: spread(publishes) })
}

fn spread(values: Vec<f64>) -> Estimate {
    let Spread { median, min, max } = Spread::of(values.into_iter().map(|value| rounded(value.max(0.0))));
    Estimate { value: median, low: min, high: max }
}

/// Microseconds of reading an event, and of what publishing it adds.
fn round(stand: &Stand<'_>, nats: &JetStream, node: &Running) -> Result<(f64, f64)> {
    let target = &node.target;
    let path = target.path(Protocol::Ws).context("fanwave speaks WebSocket")?;
    let subscriber = CrowdSetup::steady(target.subscribe, Protocol::Ws, path.to_owned());
    let mut fleet = Fleet::new(CrowdSetup { cpu: Some(stand.receiver_cpu), ..subscriber });
    fleet.open(1)?;
    let meter = node.meter(stand.apart).context("the server's processes are known")?;
    let (before, start) = (meter.sample()?, Instant::now());
    wait_until(&mut fleet, start + TIME)?;
    let idle = meter.sample()?.since(&before) as f64 / start.elapsed().as_secs_f64();
    let beside = nats.publishing();
    let read = leg(stand, &mut fleet, &meter, &beside, idle)?;
    let both = leg(stand, &mut fleet, &meter, target, idle)?;
    Ok((read, both - read))
}

/// CPU microseconds of the node for an event that is published at `to`.
fn leg(stand: &Stand<'_>, fleet: &mut Fleet, meter: &CpuMeter, to: &Target, idle_ns: f64) -> Result<f64> {
    let plan = PublishPlan::to(to, 1, BYTES)?;
    let mut publisher = PublishProcess::start(&plan, Some(stand.receiver_cpu))?;
    fleet.zero(publisher.next(), 0)?;
    publish_at(fleet, &mut publisher, RATE, WARM_UP)?;
    let (before, start) = (meter.sample()?, Instant::now());
    let events = publish_at(fleet, &mut publisher, RATE, TIME)?;
    let (cpu, seconds) = (meter.sample()?.since(&before) as f64, start.elapsed().as_secs_f64());
    publisher.finish().context("after a leg")?;
    if events == 0 {
        bail!("nothing was published");
    }
    Ok((cpu - idle_ns * seconds) / 1e3 / events as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_rounds_and_nothing_costs_less_than_nothing() {
        let estimate = spread(vec![3.0, -1.0, 9.0]);
        assert_eq!(estimate, Estimate { value: 3.0, low: 0.0, high: 9.0 });
    }
}

//! What an event costs a node that reads a stream of JetStream: once on each node, and once more on
//! the node where it is published.
//!
//! One node with one subscriber is measured beside a nats-server on the receivers' CPU: while other
//! programs publish to the stream's subject, then while events are published at the node. What an
//! idle second costs is taken off. The one subscriber's deliveries are left in: an upper bound.
//!
//! A node that is woken for each event pays mostly for that. The faster events come, the more it
//! takes at once, and the less each costs. So both are measured at several rates: between two of
//! them the CPU of a second is on a straight line, and beyond the last an event costs what it costs
//! there.

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
/// Events per second: enough to be seen beside an idle second, and what one publisher can do.
const RATES: [f64; 3] = [500.0, 2_000.0, 8_000.0];
/// Bytes of one.
const BYTES: usize = 200;
/// One leg.
const TIME: Duration = Duration::from_millis(1_500);
/// Publishing before the first leg.
const WARM_UP: Duration = Duration::from_millis(300);

/// What events of a stream cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamCost {
    /// What the server of the stream calls its version.
    pub nats_server: String,
    /// At rising rates; at least one.
    pub at: Vec<StreamPoint>,
}

/// CPU microseconds for an event, at one rate. The intervals are those of the rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamPoint {
    /// Events per second.
    pub rate: f64,
    /// On every node: reading and encoding.
    pub read: Estimate,
    /// More, on the node where it is published.
    pub publish: Estimate,
}

impl StreamCost {
    /// CPU microseconds for reading an event, at so many per second.
    pub fn read(&self, rate: f64) -> Estimate {
        self.each(|of| per_event(&self.at, rate, |point| of(&point.read)))
    }

    /// The same for publishing one.
    pub fn publish(&self, rate: f64) -> Estimate {
        self.each(|of| per_event(&self.at, rate, |point| of(&point.publish)))
    }

    /// Events per second that one core reads at most at this utilisation, by the upper ends.
    pub fn rate_max(&self, utilisation: f64) -> f64 {
        let budget = utilisation * 1e6;
        let (mut rate, mut used) = (0.0, 0.0);
        for point in &self.at {
            let next = point.rate * point.read.high;
            if next > budget {
                return rate + (point.rate - rate) * (budget - used) / (next - used);
            }
            (rate, used) = (point.rate, next);
        }
        budget / self.at.last().expect("at least one").read.high
    }

    /// True if there are rates, and they rise.
    pub fn is_possible(&self) -> bool {
        let rates = || self.at.iter().map(|point| point.rate);
        rates().next().is_some_and(|rate| rate > 0.0) && rates().is_sorted_by(|one, next| one < next)
    }

    fn each(&self, value: impl Fn(fn(&Estimate) -> f64) -> f64) -> Estimate {
        Estimate { value: value(|of| of.value), low: value(|of| of.low), high: value(|of| of.high) }
    }
}

/// What an event costs at `rate`, where it costs `of` at each point.
fn per_event(points: &[StreamPoint], rate: f64, of: impl Fn(&StreamPoint) -> f64) -> f64 {
    let mut before = (0.0, 0.0);
    for point in points {
        let next = (point.rate, point.rate * of(point));
        if rate <= point.rate {
            let part = (rate - before.0) / (next.0 - before.0);
            let second = before.1 + part * (next.1 - before.1);
            // At no rate at all as at the first one.
            return if rate > 0.0 { second / rate } else { of(point) };
        }
        before = next;
    }
    of(points.last().expect("at least one"))
}

/// Measures it.
pub fn measure(stand: &Stand<'_>, nats: &NatsArgs) -> Result<StreamCost> {
    let nats = JetStream::alone(nats, Some(stand.receiver_cpu), false)?;
    progress(&format!("a node on a stream of nats-server {}, {ROUNDS} rounds", nats.version));
    let source = ["--source".to_owned(), JetStream::url_of(std::slice::from_ref(&nats))];
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        stand.ask(&source, |node| {
            rounds.push(round(stand, &nats, node)?);
            Ok(())
        })?;
    }
    let at = (0..RATES.len()).map(|place| {
        let legs = || rounds.iter().map(|round| &round[place]);
        StreamPoint {
            rate: RATES[place],
            read: spread(legs().map(|(read, _)| *read).collect()),
            publish: spread(legs().map(|(_, publish)| *publish).collect()),
        }
    });
    Ok(StreamCost { nats_server: nats.version.clone(), at: at.collect() })
}

fn spread(values: Vec<f64>) -> Estimate {
    let Spread { median, min, max } = Spread::of(values.into_iter().map(|value| rounded(value.max(0.0))));
    Estimate { value: median, low: min, high: max }
}

/// Microseconds of reading an event, and of what publishing it adds, at each rate.
fn round(stand: &Stand<'_>, nats: &JetStream, node: &Running) -> Result<Vec<(f64, f64)>> {
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
    let mut legs = Vec::new();
    for rate in RATES {
        let read = leg(stand, &mut fleet, &meter, &beside, (rate, idle))?;
        let both = leg(stand, &mut fleet, &meter, target, (rate, idle))?;
        legs.push((read, both - read));
    }
    Ok(legs)
}

/// CPU microseconds of the node for an event that is published at `to` at this rate, without those
/// of an idle second.
fn leg(
    stand: &Stand<'_>,
    fleet: &mut Fleet,
    meter: &CpuMeter,
    to: &Target,
    (rate, idle_ns): (f64, f64),
) -> Result<f64> {
    let plan = PublishPlan::to(to, 1, BYTES)?;
    let mut publisher = PublishProcess::start(&plan, Some(stand.receiver_cpu))?;
    fleet.zero(publisher.next(), 0)?;
    publish_at(fleet, &mut publisher, rate, WARM_UP)?;
    let (before, start) = (meter.sample()?, Instant::now());
    let events = publish_at(fleet, &mut publisher, rate, TIME)?;
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

    fn point(rate: f64, read: f64) -> StreamPoint {
        let exactly = |value| Estimate { value, low: value / 2.0, high: value };
        StreamPoint { rate, read: exactly(read), publish: exactly(2.0 * read) }
    }

    #[test]
    fn cpu_is_on_a_line_between_two_rates_and_an_event_costs_the_same_beyond_them() {
        // 10 % of a core at 1,000 per second, 22 % at 4,000.
        let cost = StreamCost {
            nats_server: "2.15.1".into(),
            at: vec![point(1_000.0, 100.0), point(4_000.0, 55.0)],
        };
        for (rate, read) in
            [(0.0, 100.0), (10.0, 100.0), (1_000.0, 100.0), (2_000.0, 70.0), (4_000.0, 55.0), (9e9, 55.0)]
        {
            let (all, both) = (cost.read(rate), cost.publish(rate));
            assert_eq!((all.value, all.low, all.high, both.value), (read, read / 2.0, read, 2.0 * read));
        }
        assert!(cost.is_possible());
        let impossible = |at| !StreamCost { nats_server: "2.15.1".into(), at }.is_possible();
        assert!(impossible(vec![]) && impossible(vec![point(0.0, 1.0)]));
        assert!(impossible(vec![point(2.0, 1.0), point(2.0, 1.0)]) && impossible(vec![point(f64::NAN, 1.0)]));
        assert_eq!(cost.rate_max(0.05), 500.0);
        assert_eq!(cost.rate_max(0.14), 2_000.0);
        assert_eq!(cost.rate_max(0.22), 4_000.0);
        assert_eq!(cost.rate_max(0.55), 10_000.0);
    }
}

//! `loadtest generator`: what this load generator costs, beside a bare multishot-receive loop.
//!
//! Three receivers stand beside each other, each with its own subscribers and its own sender, the
//! floor's: a bare loop that only adds up lengths, a receiver that counts, and one that audits
//! every stamp. Legs alternate, one burst after the other, each after the one before has arrived
//! everywhere; within a round all three get the same bytes. Only the ratio within a round counts,
//! since a drift of the machine falls on all. CPU is that of the receiver's process.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::leg::leg_time;
use super::{ARRIVE_LIMIT, Bench};
use crate::floor::{Floor, Shape};
use crate::framing::Protocol;
use crate::receiver::CrowdSetup;
use crate::report::{Spread, progress, save, say, table};
use crate::stamp::STAMP_BYTES;
use crate::unit::grouped;

/// What subscribers may cost, as a multiple of the bare loop.
const RATIO_MAX: f64 = 1.2;
/// Subscribers of the three receivers are numbered this far apart.
const FIRST_STEP: usize = 1_000_000;
/// Time of the unmeasured beginning of a leg.
const WARM_UP: Duration = Duration::from_millis(150);

/// Options of `generator`.
#[derive(Debug, Clone, Args)]
pub struct GeneratorArgs {
    /// Subscribers of each receiver
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// What the subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: u16,
    /// Events per send(2)
    #[arg(long, default_value_t = 1)]
    burst: u64,
    /// Rounds of three legs
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 2.0)]
    seconds_per_leg: f64,
}

/// How a receiver receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Bare,
    Counting,
    Audit,
}

#[derive(Debug, Serialize)]
struct Cell {
    protocol: Protocol,
    connections: usize,
    events_per_send: u64,
    kind: Kind,
    /// CPU of the receiver per delivery.
    us_per_delivery: Spread,
    /// Receiver / bare loop, over the rounds.
    ratio: Spread,
}

/// Measures, prints and saves; a broken promise is an error after that.
pub fn run(bench: &Bench, args: &GeneratorArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    if args.connections == 0 || args.rounds == 0 || args.burst == 0 {
        bail!("--connections, --rounds and --burst are at least 1");
    }
    if usize::from(args.size) < STAMP_BYTES {
        bail!("a payload holds a stamp of {STAMP_BYTES} bytes; --size {} is too small", args.size);
    }
    let mut cells = Vec::new();
    for &protocol in &args.protocol {
        cells.extend(measure(bench, args, protocol, time)?);
    }
    let worst = cells.iter().map(|cell| cell.ratio.median).fold(0.0, f64::max);
    show(bench, args, &cells, worst);
    save(bench.common.json.as_deref(), "generator", &bench.machine, &cells)?;
    kept(worst)
}

/// An error if subscribers cost more than promised.
fn kept(worst: f64) -> Result<()> {
    if worst > RATIO_MAX {
        bail!(
            "a receiver costs {worst:.2} times the bare loop, {RATIO_MAX} is promised; if other programs were running, run it again \
             without them"
        );
    }
    Ok(())
}

fn measure(bench: &Bench, args: &GeneratorArgs, protocol: Protocol, time: Duration) -> Result<Vec<Cell>> {
    let common = &bench.common;
    let mut receivers = Vec::new();
    for (at, kind) in [Kind::Bare, Kind::Counting, Kind::Audit].into_iter().enumerate() {
        let floor = Floor::start_for(args.connections, common.sender_cpu, |target| CrowdSetup {
            first: at * FIRST_STEP,
            cpu: Some(common.receiver_cpu),
            audit: kind == Kind::Audit,
            bare: kind == Kind::Bare,
            ..CrowdSetup::steady(target, protocol, "/generator".into())
        })?;
        receivers.push((kind, floor, Vec::new()));
    }
    let shape = Shape { protocol, payload_bytes: args.size, frames: args.burst };
    for round in 1..=args.rounds {
        progress(&format!("{}: round {round} of {}", protocol.label(), args.rounds));
        for (kind, floor, legs) in &mut receivers {
            legs.push(leg(floor, *kind, shape, time)?);
        }
    }
    let bare: Vec<f64> = receivers[0].2.clone();
    Ok(receivers
        .into_iter()
        .map(|(kind, _, legs)| Cell {
            protocol,
            connections: args.connections,
            events_per_send: args.burst,
            kind,
            us_per_delivery: Spread::of(legs.iter().copied()),
            ratio: ratio(&legs, &bare),
        })
        .collect())
}

fn ratio(legs: &[f64], bare: &[f64]) -> Spread {
    Spread::of(legs.iter().zip(bare).map(|(leg, bare)| leg / bare))
}

/// Bursts for `time` and their CPU microseconds per delivery at the receiver; every delivery is
/// checked as the receiver's kind can.
fn leg(floor: &mut Floor, kind: Kind, shape: Shape, time: Duration) -> Result<f64> {
    floor.shape_stamped(shape)?;
    let connections = floor.fleet().connections() as u64;
    let send = |floor: &mut Floor, time: Duration| -> Result<u64> {
        let until = Instant::now() + time;
        let mut events = 0;
        while events == 0 || Instant::now() < until {
            floor.burst(ARRIVE_LIMIT)?;
            events += shape.frames;
        }
        Ok(events)
    };
    let warm = send(floor, WARM_UP)?;
    let before = floor.fleet().report(0)?.totals.cpu_ns;
    let events = send(floor, time)?;
    let cpu_ns = floor.fleet().report(0)?.totals.cpu_ns - before;
    let all = warm + events;
    match kind {
        Kind::Bare => {
            let bytes = floor.fleet().report(all)?.totals.bytes;
            let expected = all * connections * shape.frame_bytes() as u64;
            if bytes != expected {
                bail!("the bare loop received {bytes} bytes instead of {expected}");
            }
        }
        Kind::Counting | Kind::Audit => drop(floor.fleet().check(all, all)?),
    }
    Ok(cpu_ns as f64 / 1e3 / (events * connections) as f64)
}

fn show(bench: &Bench, args: &GeneratorArgs, cells: &[Cell], worst: f64) {
    say(&format!("{}\n", bench.machine.line()));
    let rows: Vec<_> = cells
        .iter()
        .map(|cell| {
            let name = match cell.kind {
                Kind::Bare => "bare loop",
                Kind::Counting => "counting",
                Kind::Audit => "audit",
            };
            vec![
                cell.protocol.label().into(),
                name.into(),
                cell.us_per_delivery.show(3),
                if cell.kind == Kind::Bare { "1".into() } else { cell.ratio.show(2) },
            ]
        })
        .collect();
    table(2, &["protocol", "receiver", "µs CPU per delivery (min to max)", "ratio (min to max)"], &rows);
    say(&format!(
        "\n{} subscribers each, {} bytes of data, {} events per send(2), {} rounds; ratio = receiver / bare loop within",
        grouped(args.connections as u64),
        args.size,
        args.burst,
        args.rounds
    ));
    let verdict = if kept(worst).is_ok() { "kept" } else { "BROKEN" };
    say(&format!("a round; promised: at most {RATIO_MAX} times the bare loop: {verdict} ({worst:.2})"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_is_an_error() {
        assert!(kept(RATIO_MAX).is_ok());
        assert!(kept(RATIO_MAX + 0.01).is_err_and(|error| error.to_string().contains("1.21 times")));
    }

    #[test]
    fn the_ratio_is_taken_within_each_round() {
        let ratio = ratio(&[1.5, 2.2, 4.4], &[1.0, 2.0, 4.0]);
        assert!((ratio.median - 1.1).abs() < 1e-9 && (ratio.max - 1.5).abs() < 1e-9, "{ratio:?}");
    }
}

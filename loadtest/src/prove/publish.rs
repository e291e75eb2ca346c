//! `loadtest publish`: how many single publishes a second of the server's CPU is worth.
//!
//! Each way has a server of its own, all on one CPU: fanwave's data plane by `POST`, by messages of
//! a raw WebSocket and by JSON commands, and the rivals by `POST`. Clients stay connected, each
//! with a topic of its own and so many publishes under way; nobody else subscribes. A publish is
//! done when it was answered, or, on a raw WebSocket, when it has come back. In a round every way
//! has one leg, one after the other; only figures of one round are compared.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::Bench;
use super::cells::blame;
use super::leg::leg_time;
use crate::publisher::{PublishPlan, Publisher};
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::{self, FanwaveArgs, Rival, Running, ServerChoice};
use crate::stamp::STAMP_BYTES;
use crate::unit::grouped;
use crate::usage::{CpuMeter, interrupts_are_apart};
use crate::way::Way;

/// Time of the unmeasured beginning of a leg.
const WARM_UP: Duration = Duration::from_millis(150);
/// Publishes under way on one connection at most: their answers fit into a socket's buffer.
const IN_FLIGHT_MAX: u64 = 64;

/// Options of `publish`.
#[derive(Debug, Clone, Args)]
pub struct PublishArgs {
    #[command(flatten)]
    fanwave: FanwaveArgs,
    /// Servers beside fanwave that take POSTs (loadtest/rivals/install installs them); none if
    /// nothing follows
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 0.., default_value = "nchan")]
    rivals: Vec<Rival>,
    /// Clients that stay connected, of each way
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: usize,
    /// Publishes under way on each connection, one cell for each
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    in_flight: Vec<u64>,
    /// Rounds, in each of which every way has one leg
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 2.0)]
    seconds_per_leg: f64,
}

/// One way with so many publishes under way.
#[derive(Debug, Serialize)]
struct Row {
    server: String,
    way: Way,
    in_flight: u64,
    /// Publishes per second of the server's CPU.
    per_cpu_second: Spread,
    /// Publishes per second of wall time.
    per_second: Spread,
    /// Over the first rival's figure of the same round; absent without a rival.
    to_rival: Option<Spread>,
}

/// A way of publishing. Dropped in this order: nobody sees its peer go.
struct Entrant {
    way: Way,
    publisher: Publisher,
    meter: CpuMeter,
    running: Running,
}

/// What a leg gave.
struct Leg {
    per_cpu_second: f64,
    per_second: f64,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &PublishArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    if args.pairs == 0 || args.connections == 0 || args.in_flight.contains(&0) {
        bail!("--pairs, --connections and --in-flight are at least 1");
    }
    if args.size < STAMP_BYTES || args.in_flight.iter().any(|&events| events > IN_FLIGHT_MAX) {
        bail!("--size is at least {STAMP_BYTES} bytes, --in-flight at most {IN_FLIGHT_MAX}");
    }
    let own = || ServerChoice { fanwave: args.fanwave.clone(), ..ServerChoice::default() };
    let mut ways: Vec<_> = [Way::Post, Way::WebSocket, Way::Json].map(|way| (own(), way)).into();
    for &rival in &args.rivals {
        ways.push((ServerChoice { rival: Some(rival), ..ServerChoice::default() }, Way::Post));
    }
    let apart = interrupts_are_apart()?;
    let mut ring = Vec::new();
    for (choice, way) in ways {
        ring.push(enter(bench, args, apart, &choice, way)?);
    }
    let mut rows = Vec::new();
    for &in_flight in &args.in_flight {
        rows.extend(cell(args, time, in_flight, &mut ring)?);
    }
    for Entrant { publisher, running, .. } in ring {
        publisher.finish().with_context(|| format!("{}: after all legs", running.target.name))?;
        running.stop()?;
    }
    show(bench, args, &rows);
    save(bench.common.json.as_deref(), "publish", &bench.machine, &rows)
}

/// Starts a server and connects its clients.
fn enter(bench: &Bench, args: &PublishArgs, apart: bool, choice: &ServerChoice, way: Way) -> Result<Entrant> {
    let own = choice.rival.is_none();
    let more: Vec<String> = if own { ["--client-publish", "*"].map(String::from).into() } else { Vec::new() };
    let mut running = server::start(choice, Some(bench.common.sender_cpu), 1, &more)?;
    let target = &running.target;
    let (address, path) = match way {
        _ if !own => (target.publish, target.publish_path.as_str()),
        Way::Post => (target.subscribe, "/topics/{topic}"),
        Way::Json => (target.subscribe, "/ws"),
        _ => (target.subscribe, "/ws/{topic}"),
    };
    let plan = PublishPlan {
        way,
        topics: args.connections,
        lines: args.connections,
        hears: way == Way::WebSocket,
        ..PublishPlan::post(address, path.to_owned(), args.size)
    };
    let meter = running.meter(apart).context("the server's processes are not known")?;
    let publisher = Publisher::connect(&plan).map_err(|error| blame(&mut running, error))?;
    Ok(Entrant { way, publisher, meter, running })
}

/// All rounds with so many publishes under way on each connection.
fn cell(args: &PublishArgs, time: Duration, in_flight: u64, ring: &mut [Entrant]) -> Result<Vec<Row>> {
    let mut legs: Vec<Vec<Leg>> = ring.iter().map(|_| Vec::new()).collect();
    let at_once = in_flight * args.connections as u64;
    for round in 1..=args.pairs {
        progress(&format!("{in_flight} under way on each connection: round {round} of {}", args.pairs));
        for (entrant, legs) in ring.iter_mut().zip(&mut legs) {
            let leg = entrant.leg(at_once, time);
            legs.push(leg.map_err(|error| blame(&mut entrant.running, error))?);
        }
    }
    let rival = ring.iter().position(|entrant| entrant.running.target.name != "fanwave");
    let row = |(at, entrant): (usize, &Entrant)| {
        let each = |figure: fn(&Leg) -> f64| Spread::of(legs[at].iter().map(figure));
        let ratios = |rival: usize| {
            let pairs = legs[at].iter().zip(&legs[rival]);
            Spread::of(pairs.map(|(one, other)| one.per_cpu_second / other.per_cpu_second))
        };
        Row {
            server: entrant.running.target.name.clone(),
            way: entrant.way,
            in_flight,
            per_cpu_second: each(|leg| leg.per_cpu_second),
            per_second: each(|leg| leg.per_second),
            to_rival: rival.map(ratios),
        }
    };
    Ok(ring.iter().enumerate().map(row).collect())
}

impl Entrant {
    /// Publishes `at_once` events again and again, all of which are answered in between.
    fn leg(&mut self, at_once: u64, time: Duration) -> Result<Leg> {
        self.go(at_once, WARM_UP)?;
        let (before, start) = (self.meter.sample()?, Instant::now());
        let events = self.go(at_once, time)? as f64;
        let seconds = start.elapsed().as_secs_f64();
        let cpu_seconds = self.meter.sample()?.since(&before) as f64 / 1e9;
        Ok(Leg { per_cpu_second: events / cpu_seconds, per_second: events / seconds })
    }

    fn go(&mut self, at_once: u64, time: Duration) -> Result<u64> {
        let (first, until) = (self.publisher.next(), Instant::now() + time);
        while Instant::now() < until {
            self.publisher.publish(at_once)?;
            self.publisher.settle()?;
        }
        Ok(self.publisher.next() - first)
    }
}

fn show(bench: &Bench, args: &PublishArgs, rows: &[Row]) {
    say(&format!("{}\n", bench.machine.line()));
    let shown = |row: &Row| {
        let thousands = |spread: &Spread| {
            let [median, min, max] = [spread.median, spread.min, spread.max].map(|each| each / 1e3);
            format!("{median:.1} ({min:.1} to {max:.1})")
        };
        vec![
            row.server.clone(),
            match row.way {
                Way::Post => "POST",
                Way::Json => "JSON command",
                _ => "WebSocket message",
            }
            .to_owned(),
            row.in_flight.to_string(),
            thousands(&row.per_cpu_second),
            format!("{:.2}", 1e6 / row.per_cpu_second.median),
            row.to_rival.as_ref().map_or_else(|| "-".into(), |ratio| ratio.show(2)),
            format!("{:.1}", row.per_second.median / 1e3),
        ]
    };
    let head = [
        "server",
        "way",
        "in flight",
        "thousand/s of CPU",
        "µs each",
        "to the rival (min to max)",
        "thousand/s",
    ];
    table(2, &head, &rows.iter().map(shown).collect::<Vec<_>>());
    paragraph(&format!(
        "Single publishes of {} bytes by {} clients that stay connected, so many under way on each. Thousand/s of CPU = \
         publishes per second of the server's CPU, median (smallest to largest); to the rival = that of the same round \
         over the first rival's.",
        args.size,
        grouped(args.connections as u64)
    ));
}

//! `loadtest lanes`: what a delivery costs a server that does more for it than send: as JSON, by a
//! pattern, to subscribers that want the latest alone; each beside the delivery of a plain
//! WebSocket.
//!
//! Both sides have a server of their own on one CPU, as many subscribers that take everything, and
//! frames of the same length on the wire. They take turns, every second round in the other order;
//! the ratio is taken round by round, to the byte as in `cells`. Beside the subscribers that want
//! the latest stand as many that read nothing and whose sockets are full.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::leg::{CHECKED, Leg, OTHERS_SHARE_HIGH, Summary, Window, calibrate, leg_time, ratios, server_leg};
use super::{ARRIVE_LIMIT, Bench, ServerArgs, open_in_turns, publish_one_by_one};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, Publisher};
use crate::receiver::CrowdSetup;
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::{self, Running};
use crate::usage::{CpuMeter, interrupts_are_apart};
use crate::workload::{Behaviour, Listens, Slow};

/// Topics of a pattern.
const TOPICS: usize = 1_000;
/// Numbers of connections from one fleet to the next: each has source addresses of its own.
const FLEET_SPAN: usize = 1_000_000;
/// Bytes of an event that fills the sockets of those that do not read, and how many there are at
/// most.
const FILL_BYTES: usize = 512 << 10;
const FILLS_MAX: usize = 16;

/// Options of `lanes`.
#[derive(Debug, Clone, Args)]
pub struct LanesArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Subscribers of each side that take everything
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Bytes of an event's data, where the other side's frames do not ask for more
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: usize,
    /// Events under way at once, one cell for each
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    in_flight: Vec<u64>,
    /// What is measured
    #[arg(long, value_enum, value_delimiter = ',', default_value = "json,pattern,latest")]
    lane: Vec<Lane>,
    /// Pairs of legs per cell
    #[arg(long, default_value_t = 9)]
    pairs: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 1.5)]
    seconds_per_leg: f64,
}

/// What is measured beside the plain WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Lane {
    /// Events as JSON.
    Json,
    /// Subscribers of a pattern, events on a thousand topics in turn.
    Pattern,
    /// `slow=latest`, half of the subscribers stalled.
    Latest,
}

/// One cell.
#[derive(Debug, Serialize)]
struct Cell {
    lane: Lane,
    in_flight: u64,
    /// Bytes of a frame of each side.
    frame_bytes: [f64; 2],
    plain: Summary,
    other: Summary,
    /// CPU per delivery of the lane over the plain one's, by rounds.
    ratio: Spread,
}

/// A server with its subscribers. Dropped in this order: nobody sees its peer go.
struct Side {
    fleet: Fleet,
    stalled: Option<Fleet>,
    running: Running,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &LanesArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    if args.pairs == 0 || args.connections == 0 || args.in_flight.contains(&0) {
        bail!("--pairs, --connections and --in-flight are at least 1");
    }
    let mut cells = Vec::new();
    for &lane in &args.lane {
        cells.extend(measure(bench, args, lane, time)?);
    }
    show(bench, &cells);
    save(bench.common.json.as_deref(), "lanes", &bench.machine, &cells)
}

/// All cells of one lane.
fn measure(bench: &Bench, args: &LanesArgs, lane: Lane, time: Duration) -> Result<Vec<Cell>> {
    let mut sides = [side(bench, args, None, 0)?, side(bench, args, Some(lane), 2)?];
    open_in_turns(args.connections, 1, |some| {
        for Side { fleet, stalled, .. } in &mut sides {
            fleet.open(some)?;
            stalled.as_mut().map_or(Ok(Duration::ZERO), |stalled| stalled.open(some))?;
        }
        Ok(())
    })?;
    let [plain, other] = &mut sides;
    other.fill(args.connections as u64)?;
    let topics = if lane == Lane::Pattern { TOPICS } else { 1 };
    let (mut publisher, frame_bytes) = other.publisher(args.size, topics)?;
    // RFC 6455 §5.2: the length takes two bytes more from 126 bytes on.
    let header = if frame_bytes < 128.0 { 2 } else { 4 };
    let (mut plain_publisher, _) = plain.publisher(frame_bytes.round() as usize - header, 1)?;
    let apart = interrupts_are_apart()?;
    let meter = |side: &Side| side.running.meter(apart).context("the server's processes are not known");
    let meters = [meter(plain)?, meter(other)?];

    let mut cells = Vec::new();
    for &in_flight in &args.in_flight {
        if lane == Lane::Latest && in_flight > 1 {
            progress("latest: of several events at once only the last one comes; one at a time is measured");
            continue;
        }
        let mut legs = [Vec::new(), Vec::new()];
        for round in 1..=args.pairs {
            progress(&format!("{lane:?}, {in_flight} in flight: round {round} of {}", args.pairs));
            for at in if round % 2 == 1 { [0, 1] } else { [1, 0] } {
                let (side, publisher) = match at {
                    0 => (&mut *plain, &mut plain_publisher),
                    _ => (&mut *other, &mut publisher),
                };
                legs[at].push(side.leg(publisher, &meters[at], in_flight, time)?);
            }
        }
        cells.push(Cell::of(lane, in_flight, &legs));
    }
    for publisher in [plain_publisher, publisher] {
        publisher.finish()?;
    }
    for Side { fleet, stalled, running } in sides {
        drop((fleet, stalled));
        running.stop()?;
    }
    Ok(cells)
}

/// A server whose subscribers are still to connect; a plain one without a lane.
fn side(bench: &Bench, args: &LanesArgs, lane: Option<Lane>, number: usize) -> Result<Side> {
    // Who stalls stays to the end.
    let more = ["--stall-ms-max", "3600000"].map(String::from);
    let running = server::start(&args.server.choice(), Some(bench.common.sender_cpu), 1, &more)?;
    let protocol = if lane == Some(Lane::Json) { Protocol::Json } else { Protocol::Ws };
    let listens = if lane == Some(Lane::Pattern) { Listens::All } else { Listens::One };
    let slow = (lane == Some(Lane::Latest)).then_some(Slow::Latest);
    let subscribers = bench.subscribers_of(&running.target, protocol, listens, slow)?;
    let first = number * FLEET_SPAN;
    let stalled = slow.map(|_| {
        let (first, behaviour) = (first + FLEET_SPAN, Behaviour::Stalled);
        Fleet::new(CrowdSetup { first, behaviour, ..subscribers.clone() })
    });
    Ok(Side { fleet: Fleet::new(CrowdSetup { first, ..subscribers }), stalled, running })
}

impl Side {
    /// A publisher, after its first events; and the mean length of a frame.
    fn publisher(&mut self, payload_bytes: usize, topics: usize) -> Result<(Publisher, f64)> {
        let mut publisher =
            Publisher::connect(&PublishPlan::to(&self.running.target, topics, payload_bytes)?)?;
        // Each topic is known before anything is measured.
        self.fleet.zero(1, 0)?;
        publisher.publish(topics as u64)?;
        self.fleet.wait_for(topics as u64, ARRIVE_LIMIT, topics as u64)?;
        let frame_bytes = calibrate(&mut publisher, &mut self.fleet)?;
        Ok((publisher, frame_bytes))
    }

    /// Publishes large events until all that do not read have full sockets.
    fn fill(&mut self, connections: u64) -> Result<()> {
        if self.stalled.is_none() {
            return Ok(());
        }
        let plan = PublishPlan::to(&self.running.target, 1, FILL_BYTES)?;
        let mut publisher = Publisher::connect(&plan)?;
        for _ in 0..FILLS_MAX {
            publish_one_by_one(&mut publisher, &mut self.fleet, 1)?;
            let stats = self.running.stats()?;
            let waiting = stats.pointer("/totals/formats/websocket/sends_in_flight");
            if waiting.and_then(Value::as_u64) == Some(connections) {
                return publisher.finish();
            }
        }
        bail!("{FILLS_MAX} events of {FILL_BYTES} bytes did not fill the sockets of those that do not read")
    }

    fn leg(
        &mut self,
        publisher: &mut Publisher,
        meter: &CpuMeter,
        in_flight: u64,
        time: Duration,
    ) -> Result<Leg> {
        server_leg(&mut self.fleet, publisher, meter, in_flight, Window::Burst, time)
            .map_err(|error| super::cells::blame(&mut self.running, error))
    }
}

impl Cell {
    fn of(lane: Lane, in_flight: u64, [plain, other]: &[Vec<Leg>; 2]) -> Cell {
        let last = |legs: &[Leg]| legs.last().map_or(0.0, |leg| leg.frame_bytes);
        Cell {
            lane,
            in_flight,
            frame_bytes: [last(plain), last(other)],
            plain: Summary::of(plain),
            other: Summary::of(other),
            ratio: Spread::of(ratios(other, plain)),
        }
    }
}

fn show(bench: &Bench, cells: &[Cell]) {
    say(&format!("{}\n", bench.machine.line()));
    let row = |cell: &Cell| {
        vec![
            format!("{:?}", cell.lane).to_lowercase(),
            cell.in_flight.to_string(),
            format!("{:.3}", cell.plain.us_per_delivery.median),
            format!("{:.3}", cell.other.us_per_delivery.median),
            cell.ratio.show(2),
            format!("{:.0} and {:.0}", cell.frame_bytes[0], cell.frame_bytes[1]),
        ]
    };
    let head = ["lane", "in flight", "plain µs", "its µs", "ratio (min to max)", "frame bytes"];
    table(1, &head, &cells.iter().map(row).collect::<Vec<_>>());
    paragraph(&format!(
        "µs = CPU of the server per delivery, median; ratio = the lane's over the plain WebSocket's of the same round. \
         pattern = {TOPICS} topics by one pattern; latest = slow=latest, as many stalled subscribers beside. {CHECKED}"
    ));
    let others = cells.iter().flat_map(|cell| [&cell.plain, &cell.other]);
    let share = others.map(|summary| summary.others_share.median).fold(0.0, f64::max);
    if share > OTHERS_SHARE_HIGH {
        say(&format!("WARNING: other programs used up to {:.0} % of the server's CPU", share * 100.0));
    }
}

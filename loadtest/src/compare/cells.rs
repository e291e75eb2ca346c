//! CPU per delivery: the rounds of one protocol, over connections that stay for all of its cells.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Entry;
use crate::fleet::{Fleet, FleetPlan};
use crate::floor::Floor;
use crate::framing::Protocol;
use crate::prove::leg::{Leg, Window, floor_leg, server_leg};
use crate::prove::{ARRIVE_LIMIT, Bench, open_in_turns, publish_one_by_one};
use crate::publisher::{PublishPlan, Publisher};
use crate::report::{Spread, progress};
use crate::server::{self, Running, ServerChoice};
use crate::target::Target;
use crate::unit::grouped;
use crate::usage::{CpuMeter, CpuSample};

/// Events that are published before anything is measured: they show the frame's length and touch
/// every page once.
const CALIBRATION_EVENTS: u64 = 8;
/// Numbers of connections from one fleet to the next: each has source addresses of its own.
const FLEET_SPAN: usize = 1_000_000;
/// Above this share of their CPU the receivers, not the server, set the deliveries per second.
const RECEIVER_SHARE_HIGH: f64 = 0.95;
/// Above this share of the sender's CPU other programs disturb a leg.
const OTHERS_SHARE_HIGH: f64 = 0.05;
/// Above this share of its CPU a server that should be idle disturbs the one that is measured.
const IDLE_SHARE_HIGH: f64 = 0.01;

/// What is done to each server.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// What the subscribers speak.
    pub protocol: Protocol,
    /// Subscribers of each server.
    pub connections: usize,
    /// Bytes of an event's data.
    pub payload_bytes: usize,
    /// Events at once, one cell for each.
    pub in_flight: &'a [u64],
    /// Legs of each server in each cell.
    pub rounds: usize,
    /// Time of one leg.
    pub time: Duration,
    /// Whether the kernel accounts interrupts apart.
    pub apart: bool,
}

/// One protocol and number of events in flight, all servers.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub protocol: Protocol,
    pub connections: usize,
    pub in_flight: u64,
    /// Bytes of the floor's frames: the mean of the shortest frames of any server.
    pub floor_frame_bytes: f64,
    pub floor: Column,
    /// In the order of the servers; those that do not speak the protocol are missing.
    pub servers: Vec<Column>,
}

/// The legs of one sender in one cell.
#[derive(Debug, Serialize)]
pub struct Column {
    pub name: String,
    /// CPU microseconds per delivery; absent if its processes are not known.
    pub us_per_delivery: Option<Spread>,
    pub deliveries_per_second: Spread,
    /// Its CPU per delivery over the floor's, by rounds.
    pub to_floor: Option<Spread>,
    /// fanwave's CPU per delivery over its own, by rounds; absent for fanwave and the floor.
    pub fanwave_to_it: Option<Spread>,
    /// Share of the receivers' CPU while it sent.
    pub receiver_share: Spread,
    /// Share of the sender's CPU that others used meanwhile.
    pub others_share: Spread,
    /// The largest share of a CPU that it used while another was measured.
    pub idle_share_max: f64,
}

/// A server whose subscribers connect. Dropped in this order: nobody sees its peer go.
struct Seat {
    fleet: Fleet,
    running: Running,
}

/// A server in the ring. Dropped in this order too.
struct Entrant {
    fleet: Fleet,
    publisher: Publisher,
    meter: Option<CpuMeter>,
    /// Its own processes' time alone, to see that it is idle.
    idle_meter: CpuMeter,
    idle_share_max: f64,
    frame_bytes: f64,
    running: Running,
}

/// Everybody's cells of one protocol.
pub fn series(bench: &Bench, choices: &[ServerChoice], plan: &Plan<'_>) -> Result<(Vec<Entry>, Vec<Cell>)> {
    let common = &bench.common;
    let mut started = Vec::new();
    for choice in choices {
        let running = server::start(choice, Some(common.sender_cpu), 1, &[])?;
        progress(&format!(
            "{}: {} {} is ready",
            plan.protocol.label(),
            running.target.name,
            running.target.version
        ));
        started.push(running);
    }
    let entries = started.iter().map(|running| entry(&running.target)).collect();
    let mut seats = Vec::new();
    for (at, running) in started.into_iter().enumerate() {
        let Some(path) = running.target.path(plan.protocol).map(str::to_owned) else {
            progress(&format!(
                "{} does not speak {}: its cells stay empty",
                running.target.name,
                plan.protocol.label()
            ));
            running.stop()?;
            continue;
        };
        let fleet = fleet(bench, &running.target, plan.protocol, path, at * FLEET_SPAN);
        seats.push(Seat { fleet, running });
    }
    if seats.is_empty() {
        bail!("no server speaks {}", plan.protocol.label());
    }
    let first = choices.len() * FLEET_SPAN;
    let mut floor = Floor::start(0, common.sender_cpu, common.receiver_cpu, first)?;
    open_in_turns(plan.connections, |some| {
        for Seat { fleet, running } in &mut seats {
            fleet.open(some).map_err(|error| blame(running, error))?;
        }
        floor.open(some)
    })?;
    let mut ring = seats.into_iter().map(|seat| enter(plan, seat)).collect::<Result<Vec<_>>>()?;
    let floor_meter = CpuMeter::new(floor.pid(), common.sender_cpu, plan.apart);
    let mut cells = Vec::new();
    for &in_flight in plan.in_flight {
        cells.push(cell(plan, in_flight, &mut floor, &floor_meter, &mut ring)?);
    }
    for entrant in ring {
        // Variables are dropped from the last to the first: should the publisher fail, the fleet
        // goes before its server.
        let Entrant { running, fleet, publisher, .. } = entrant;
        publisher.finish().with_context(|| format!("{}: after all legs", running.target.name))?;
        drop(fleet);
        running.stop()?;
    }
    Ok((entries, cells))
}

fn entry(target: &Target) -> Entry {
    Entry { name: target.name.clone(), version: target.version.clone(), cpus: target.cpus.clone() }
}

/// Adds whose error it is, and why if the server has ended.
pub fn blame(running: &mut Running, error: anyhow::Error) -> anyhow::Error {
    running.explain(error).context(running.target.name.clone())
}

/// Subscribers of one server.
pub fn fleet(bench: &Bench, target: &Target, protocol: Protocol, path: String, first: usize) -> Fleet {
    Fleet::new(FleetPlan {
        dialect: target.dialect,
        first,
        cpu: Some(bench.common.receiver_cpu),
        ..FleetPlan::steady(target.subscribe, protocol, path)
    })
}

/// How to publish to one server, one topic.
pub fn publish_plan(target: &Target, payload_bytes: usize) -> PublishPlan {
    PublishPlan {
        address: target.publish,
        way: target.way,
        path: target.publish_path.clone(),
        topics: 1,
        payload_bytes,
    }
}

/// Connects the publisher of a server whose subscribers are there.
fn enter(plan: &Plan<'_>, mut seat: Seat) -> Result<Entrant> {
    let calibrated = calibrate(plan, &seat.running.target, &mut seat.fleet);
    let (publisher, frame_bytes) = calibrated.map_err(|error| blame(&mut seat.running, error))?;
    let Seat { fleet, running } = seat;
    Ok(Entrant {
        fleet,
        publisher,
        meter: running.meter(plan.apart),
        idle_meter: CpuMeter::over(&running.target.pids, &[], false),
        idle_share_max: 0.0,
        frame_bytes,
        running,
    })
}

/// Publishes a few events; gives the publisher and the mean length of a frame on the wire.
fn calibrate(plan: &Plan<'_>, target: &Target, fleet: &mut Fleet) -> Result<(Publisher, f64)> {
    std::thread::sleep(target.talks_after_connect());
    let mut publisher = Publisher::connect(&publish_plan(target, plan.payload_bytes))?;
    fleet.zero(publisher.next(), 0)?;
    publish_one_by_one(&mut publisher, CALIBRATION_EVENTS, |event, last| {
        fleet.wait_for(event, ARRIVE_LIMIT, last).map(drop)
    })?;
    let totals = fleet.check(CALIBRATION_EVENTS, CALIBRATION_EVENTS)?.totals;
    Ok((publisher, totals.scout_bytes as f64 / CALIBRATION_EVENTS as f64))
}

/// All rounds of one cell.
fn cell(
    plan: &Plan<'_>,
    in_flight: u64,
    floor: &mut Floor,
    floor_meter: &CpuMeter,
    ring: &mut [Entrant],
) -> Result<Cell> {
    let frame_bytes = ring.iter().map(|entrant| entrant.frame_bytes).fold(f64::INFINITY, f64::min);
    let mut floor_legs = Vec::new();
    let mut legs: Vec<Vec<Leg>> = ring.iter().map(|_| Vec::new()).collect();
    for entrant in ring.iter_mut() {
        entrant.idle_share_max = 0.0;
    }
    for round in 1..=plan.rounds {
        progress(&format!(
            "{}, {} connections each, {in_flight} in flight: round {round} of {}",
            plan.protocol.label(),
            grouped(plan.connections as u64),
            plan.rounds
        ));
        let watch = Watch::begin(ring)?;
        floor_legs.push(floor_leg(floor, floor_meter, frame_bytes.round() as usize, in_flight, plan.time)?);
        watch.end(ring, None)?;
        for at in 0..ring.len() {
            let watch = Watch::begin(ring)?;
            legs[at].push(ring[at].leg(in_flight, plan.time)?);
            watch.end(ring, Some(at))?;
        }
    }
    Ok(Cell {
        protocol: plan.protocol,
        connections: plan.connections,
        in_flight,
        floor_frame_bytes: frame_bytes,
        servers: columns(ring, legs, &floor_legs),
        floor: Column::new("floor", floor_legs, true, 0.0),
    })
}

impl Entrant {
    fn leg(&mut self, in_flight: u64, time: Duration) -> Result<Leg> {
        let unmeasured = CpuMeter::over(&[], &[], false);
        let meter = self.meter.as_ref().unwrap_or(&unmeasured);
        server_leg(&mut self.fleet, &mut self.publisher, meter, in_flight, Window::Burst, time)
            .map_err(|error| blame(&mut self.running, error))
    }
}

/// The CPU time of all servers at the beginning of somebody's leg.
struct Watch {
    start: Instant,
    before: Vec<CpuSample>,
}

impl Watch {
    fn begin(ring: &[Entrant]) -> Result<Watch> {
        let before = ring.iter().map(|entrant| entrant.idle_meter.sample()).collect::<Result<_>>()?;
        Ok(Watch { start: Instant::now(), before })
    }

    /// Keeps what each server used since the beginning, the one that was measured excepted.
    fn end(self, ring: &mut [Entrant], measured: Option<usize>) -> Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        for (at, (entrant, before)) in ring.iter_mut().zip(&self.before).enumerate() {
            if measured != Some(at) {
                let used = entrant.idle_meter.sample()?.since(before) as f64 / 1e9;
                entrant.idle_share_max = entrant.idle_share_max.max(used / seconds);
            }
        }
        Ok(())
    }
}

/// The servers' columns with their ratios. The first one is fanwave if it takes part.
fn columns(ring: &[Entrant], legs: Vec<Vec<Leg>>, floor: &[Leg]) -> Vec<Column> {
    let fanwave =
        ring.iter().position(|entrant| entrant.running.target.name == "fanwave").map(|at| legs[at].clone());
    let mut columns = Vec::new();
    for (entrant, legs) in ring.iter().zip(legs) {
        let (name, measured) = (&entrant.running.target.name, entrant.meter.is_some());
        let to_floor = measured.then(|| ratio(&legs, floor));
        let fanwave_to_it =
            fanwave.as_ref().filter(|_| measured && name != "fanwave").map(|fanwave| ratio(fanwave, &legs));
        let column = Column::new(name, legs, measured, entrant.idle_share_max);
        columns.push(Column { to_floor, fanwave_to_it, ..column });
    }
    columns
}

/// CPU per delivery of one over the other's, round by round.
fn ratio(one: &[Leg], other: &[Leg]) -> Spread {
    Spread::of(one.iter().zip(other).map(|(one, other)| one.us_per_delivery / other.us_per_delivery))
}

impl Column {
    fn new(name: &str, legs: Vec<Leg>, measured: bool, idle_share_max: f64) -> Column {
        let of = |figure: fn(&Leg) -> f64| Spread::of(legs.iter().map(figure));
        Column {
            name: name.to_owned(),
            us_per_delivery: measured.then(|| of(|leg| leg.us_per_delivery)),
            deliveries_per_second: of(|leg| leg.deliveries_per_second),
            to_floor: None,
            fanwave_to_it: None,
            receiver_share: of(|leg| leg.receiver_share),
            others_share: of(|leg| leg.others_share),
            idle_share_max,
        }
    }
}

impl Cell {
    /// The cell in words.
    pub fn name(&self) -> String {
        let connections = grouped(self.connections as u64);
        format!("{}, {connections} connections, {} in flight", self.protocol.label(), self.in_flight)
    }

    /// What makes its figures doubtful.
    pub fn warnings(&self) -> Vec<String> {
        let columns = || std::iter::once(&self.floor).chain(&self.servers);
        let mut warnings = Vec::new();
        let full: Vec<&str> = columns()
            .filter(|column| column.receiver_share.median > RECEIVER_SHARE_HIGH)
            .map(|column| column.name.as_str())
            .collect();
        if !full.is_empty() {
            let names = full.join(", ");
            warnings.push(format!("the receivers' CPU was full: the deliveries/s of {names} are theirs"));
        }
        let others = columns().map(|column| column.others_share.median).fold(0.0, f64::max);
        if others > OTHERS_SHARE_HIGH {
            let share = others * 100.0;
            warnings.push(format!("other programs used up to {share:.0} % of the sender's CPU"));
        }
        for column in columns().filter(|column| column.idle_share_max > IDLE_SHARE_HIGH) {
            let (name, share) = (&column.name, column.idle_share_max * 100.0);
            warnings.push(format!("{name} used {share:.1} % of a CPU while others were measured"));
        }
        warnings.iter().map(|warning| format!("{}: {warning}", self.name())).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn leg(us_per_delivery: f64) -> Leg {
        Leg::example(us_per_delivery, 1e6 / us_per_delivery)
    }

    /// A cell in which fanwave costs what the floor costs and a rival twice as much.
    pub fn cell() -> Cell {
        let legs = |us: f64| vec![leg(us), leg(us * 1.1), leg(us * 0.9)];
        let (floor, fanwave, rival) = (legs(2.0), legs(2.0), legs(4.0));
        Cell {
            protocol: Protocol::Ws,
            connections: 10,
            in_flight: 16,
            floor_frame_bytes: 202.0,
            servers: vec![
                Column {
                    to_floor: Some(ratio(&fanwave, &floor)),
                    ..Column::new("fanwave", fanwave.clone(), true, 0.0)
                },
                Column {
                    to_floor: Some(ratio(&rival, &floor)),
                    fanwave_to_it: Some(ratio(&fanwave, &rival)),
                    ..Column::new("<nchan>", rival, true, 0.0)
                },
            ],
            floor: Column::new("floor", floor, true, 0.0),
        }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (one, other) = (vec![leg(1.0), leg(8.0), leg(3.0)], vec![leg(2.0), leg(4.0), leg(3.0)]);
        assert_eq!(ratio(&one, &other), Spread { median: 1.0, min: 0.5, max: 2.0 });
    }

    #[test]
    fn a_server_whose_processes_are_not_known_has_a_rate_and_no_cost() {
        let column = Column::new("custom", vec![leg(2.0)], false, 0.0);
        assert_eq!(column.us_per_delivery, None);
        assert_eq!(column.deliveries_per_second.median, 500_000.0);
    }

    #[test]
    fn a_busy_bystander_full_receivers_and_other_programs_are_warned_of() {
        assert_eq!(cell().warnings(), Vec::<String>::new());
        let mut doubtful = cell();
        doubtful.servers[1].idle_share_max = 0.02;
        doubtful.servers[0].receiver_share = Spread::of([0.97]);
        doubtful.floor.others_share = Spread::of([0.2]);
        let warnings = doubtful.warnings();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for word in ["2.0 % of a CPU", "receivers", "20 %"] {
            assert!(warnings.iter().any(|warning| warning.contains(word)), "{word}: {warnings:?}");
        }
    }
}

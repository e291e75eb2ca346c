//! CPU per delivery of one or several servers beside the floor's, in the same minutes, on the same
//! kind of sockets: what `cpu` and `compare` show.
//!
//! For one protocol and number of connections all servers run at once on one CPU, each with
//! subscribers of its own that stay for all cells. In a round the floor and every server have one
//! leg, one after the other (the servers in turns from either end), so that a drift of the machine
//! falls on all; only ratios of one round count. While one is measured the others are idle, which
//! is checked. The floor sends frames as long as the shortest of any server, measured on the wire;
//! with K events in flight it does one send of K frames per socket. Connections are opened in
//! turns, since the order counts: see [`open_in_turns`].

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::leg::{Leg, OTHERS_SHARE_HIGH, Summary, Window, calibrate, floor_leg, ratios, server_leg};
use super::{Bench, open_in_turns};
use crate::fleet::Fleet;
use crate::floor::Floor;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, Publisher};
use crate::receiver::CrowdSetup;
use crate::report::{Spread, progress};
use crate::server::{self, Running, ServerChoice};
use crate::target::Target;
use crate::unit::grouped;
use crate::usage::{CpuMeter, CpuSample, interrupts_are_apart};

/// Numbers of connections from one fleet to the next: each has source addresses of its own.
const FLEET_SPAN: usize = 1_000_000;
/// Above this share of its CPU a server that should be idle disturbs the one that is measured.
const IDLE_SHARE_HIGH: f64 = 0.01;

/// What is done to each server.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// What the subscribers speak, a series of cells for each.
    pub protocols: &'a [Protocol],
    /// Subscribers of each server, a series of cells for each number.
    pub connections: &'a [usize],
    /// Bytes of an event's data.
    pub payload_bytes: usize,
    /// Check every connection and record latencies.
    pub audit: bool,
    /// Events under way, one cell for each.
    pub in_flight: &'a [u64],
    /// How more than one event is kept under way, one cell for each.
    pub windows: &'a [Window],
    /// Legs of each server in each cell.
    pub rounds: usize,
    /// Time of one leg.
    pub time: Duration,
}

/// A server that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub name: String,
    pub version: String,
    /// CPUs that it is pinned to; empty if it is not, or if that is not known.
    pub cpus: Vec<usize>,
}

/// One protocol and number of events in flight, all servers.
#[derive(Debug, Serialize)]
pub struct Cell {
    pub protocol: Protocol,
    pub connections: usize,
    pub in_flight: u64,
    pub window: Window,
    /// Bytes of the floor's frames in the last round.
    pub floor_frame_bytes: f64,
    pub floor: Column,
    /// In the order of the servers; those that do not speak the protocol are missing.
    pub servers: Vec<Column>,
}

/// The legs of one sender in one cell.
#[derive(Debug, Serialize)]
pub struct Column {
    pub name: String,
    /// Its CPU per delivery is no number if its processes are not known.
    #[serde(flatten)]
    pub summary: Summary,
    /// Its CPU per delivery over the floor's.
    pub to_floor: Option<Spread>,
    /// The same, round by round.
    pub ratios: Vec<f64>,
    /// fanwave's CPU per delivery over its own, by rounds; absent for fanwave and the floor.
    pub fanwave_to_it: Option<Spread>,
    /// Its CPU per delivery over that of the first server, by rounds; absent for that and the
    /// floor.
    pub to_first: Option<Spread>,
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

/// Everybody's cells.
pub fn measure(bench: &Bench, choices: &[ServerChoice], plan: &Plan<'_>) -> Result<(Vec<Entry>, Vec<Cell>)> {
    let apart = interrupts_are_apart()?;
    if apart {
        progress(
            "this kernel accounts interrupts apart: the softirq time of the sender's CPU is added to all sides",
        );
    }
    let (mut entries, mut cells) = (Vec::new(), Vec::new());
    for &connections in plan.connections {
        for &protocol in plan.protocols {
            let (servers, more) = series(bench, choices, plan, &Series { protocol, connections, apart })?;
            entries = servers;
            cells.extend(more);
        }
    }
    Ok((entries, cells))
}

/// What the cells over the same sockets have in common.
struct Series {
    protocol: Protocol,
    connections: usize,
    /// Whether the kernel accounts interrupts apart.
    apart: bool,
}

/// Everybody's cells of one series.
fn series(
    bench: &Bench,
    choices: &[ServerChoice],
    plan: &Plan<'_>,
    series: &Series,
) -> Result<(Vec<Entry>, Vec<Cell>)> {
    let protocol = series.protocol;
    let common = &bench.common;
    let mut started = Vec::new();
    for choice in choices {
        let running = server::start(choice, Some(common.sender_cpu), 1, &[])?;
        progress(&format!(
            "{}: {} {} is ready",
            protocol.label(),
            running.target.name,
            running.target.version
        ));
        started.push(running);
    }
    let entries = started.iter().map(|running| entry(&running.target)).collect();
    let mut seats = Vec::new();
    for (at, running) in started.into_iter().enumerate() {
        if running.target.path(protocol).is_none() {
            progress(&format!(
                "{} does not speak {}: its cells stay empty",
                running.target.name,
                protocol.label()
            ));
            running.stop()?;
            continue;
        }
        let setup = bench.subscribers(&running.target, protocol)?;
        let fleet = Fleet::new(CrowdSetup { audit: plan.audit, first: at * FLEET_SPAN, ..setup });
        seats.push(Seat { fleet, running });
    }
    if seats.is_empty() {
        bail!("no server speaks {}", protocol.label());
    }
    let first = choices.len() * FLEET_SPAN;
    let mut floor = Floor::start(0, common.sender_cpu, common.receiver_cpu, first)?;
    let streams = seats.iter().filter_map(|seat| seat.running.target.streams(protocol));
    let multiple = streams.fold(1, least_common_multiple);
    open_in_turns(series.connections, multiple, |some| {
        for Seat { fleet, running } in &mut seats {
            fleet.open(some).map_err(|error| blame(running, error))?;
        }
        floor.open(some)
    })?;
    let mut ring = seats.into_iter().map(|seat| enter(plan, series, seat)).collect::<Result<Vec<_>>>()?;
    let floor_meter = CpuMeter::new(floor.pid(), common.sender_cpu, series.apart);
    let mut cells = Vec::new();
    for &in_flight in plan.in_flight {
        // With one event in flight all windows are the same.
        let windows = if in_flight == 1 { &[Window::Burst][..] } else { plan.windows };
        for &window in windows {
            cells.push(cell(plan, series, (in_flight, window), &mut floor, &floor_meter, &mut ring)?);
        }
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

fn least_common_multiple(a: usize, b: usize) -> usize {
    (1..=b).map(|times| a * times).find(|multiple| multiple.is_multiple_of(b)).unwrap_or(a)
}

fn entry(target: &Target) -> Entry {
    Entry { name: target.name.clone(), version: target.version.clone(), cpus: target.cpus.clone() }
}

/// Adds whose error it is, and why if the server has ended.
pub fn blame(running: &mut Running, error: anyhow::Error) -> anyhow::Error {
    running.explain(error).context(running.target.name.clone())
}

/// Connects the publisher of a server whose subscribers are there.
fn enter(plan: &Plan<'_>, series: &Series, mut seat: Seat) -> Result<Entrant> {
    let connected = connect(plan, &seat.running.target, &mut seat.fleet);
    let (publisher, frame_bytes) = connected.map_err(|error| blame(&mut seat.running, error))?;
    let Seat { fleet, running } = seat;
    Ok(Entrant {
        fleet,
        publisher,
        meter: running.meter(series.apart),
        idle_meter: CpuMeter::over(&running.target.pids, &[], false),
        idle_share_max: 0.0,
        frame_bytes,
        running,
    })
}

/// Gives the publisher and the mean length of a frame on the wire.
fn connect(plan: &Plan<'_>, target: &Target, fleet: &mut Fleet) -> Result<(Publisher, f64)> {
    std::thread::sleep(target.talks_after_connect());
    let mut publisher = Publisher::connect(&PublishPlan::to(target, 1, plan.payload_bytes)?)?;
    let frame_bytes = calibrate(&mut publisher, fleet)?;
    Ok((publisher, frame_bytes))
}

/// All rounds of one cell.
fn cell(
    plan: &Plan<'_>,
    series: &Series,
    (in_flight, window): (u64, Window),
    floor: &mut Floor,
    floor_meter: &CpuMeter,
    ring: &mut [Entrant],
) -> Result<Cell> {
    let mut frame_bytes = 0.0;
    let mut floor_legs = Vec::new();
    let mut legs: Vec<Vec<Leg>> = ring.iter().map(|_| Vec::new()).collect();
    for entrant in ring.iter_mut() {
        entrant.idle_share_max = 0.0;
    }
    for round in 1..=plan.rounds {
        progress(&format!(
            "{}, {} connections each, {in_flight} in flight: round {round} of {}",
            series.protocol.label(),
            grouped(series.connections as u64),
            plan.rounds
        ));
        frame_bytes = ring.iter().map(|entrant| entrant.frame_bytes).fold(f64::INFINITY, f64::min);
        let watch = Watch::begin(ring)?;
        floor_legs.push(floor_leg(floor, floor_meter, frame_bytes.round() as usize, in_flight, plan.time)?);
        watch.end(ring, None)?;
        // In turns from either end, so that nobody always follows the same one.
        let forward = round % 2 == 1;
        for step in 0..ring.len() {
            let at = if forward { step } else { ring.len() - 1 - step };
            let watch = Watch::begin(ring)?;
            legs[at].push(ring[at].leg(in_flight, window, plan.time)?);
            watch.end(ring, Some(at))?;
        }
    }
    Ok(Cell {
        protocol: series.protocol,
        connections: series.connections,
        in_flight,
        window,
        floor_frame_bytes: frame_bytes,
        servers: columns(ring, legs, &floor_legs),
        floor: Column::new("floor", &floor_legs, true, 0.0),
    })
}

impl Entrant {
    fn leg(&mut self, in_flight: u64, window: Window, time: Duration) -> Result<Leg> {
        let unmeasured = CpuMeter::over(&[], &[], false);
        let meter = self.meter.as_ref().unwrap_or(&unmeasured);
        let leg = server_leg(&mut self.fleet, &mut self.publisher, meter, in_flight, window, time)
            .map_err(|error| blame(&mut self.running, error))?;
        self.frame_bytes = leg.frame_bytes;
        Ok(leg)
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
    let first = legs.first().cloned().unwrap_or_default();
    let first_measured = ring.first().is_some_and(|entrant| entrant.meter.is_some());
    let mut columns = Vec::new();
    for (at, (entrant, legs)) in ring.iter().zip(legs).enumerate() {
        let (name, measured) = (&entrant.running.target.name, entrant.meter.is_some());
        let ratios_to_floor = if measured { ratios(&legs, floor) } else { Vec::new() };
        let fanwave_to_it = fanwave
            .as_ref()
            .filter(|_| measured && name != "fanwave")
            .map(|fanwave| Spread::of(ratios(fanwave, &legs)));
        let compares = measured && first_measured && at > 0;
        let to_first = compares.then(|| Spread::of(ratios(&legs, &first)));
        let column = Column::new(name, &legs, measured, entrant.idle_share_max);
        columns.push(Column { fanwave_to_it, to_first, ..column.beside(ratios_to_floor) });
    }
    columns
}

impl Column {
    fn new(name: &str, legs: &[Leg], measured: bool, idle_share_max: f64) -> Column {
        let (name, mut summary) = (name.to_owned(), Summary::of(legs));
        if !measured {
            summary.us_per_delivery = Spread::of([f64::NAN]);
        }
        Column {
            name,
            summary,
            to_floor: None,
            ratios: Vec::new(),
            fanwave_to_it: None,
            to_first: None,
            idle_share_max,
        }
    }

    /// With its ratios to the floor, if there are any.
    fn beside(self, ratios: Vec<f64>) -> Column {
        let to_floor = (!ratios.is_empty()).then(|| Spread::of(ratios.iter().copied()));
        Column { to_floor, ratios, ..self }
    }

    /// CPU microseconds per delivery; none if its processes are not known.
    pub fn us_per_delivery(&self) -> Option<Spread> {
        Some(self.summary.us_per_delivery).filter(|us| us.median.is_finite())
    }
}

impl Cell {
    /// The cell in words.
    pub fn name(&self) -> String {
        let connections = grouped(self.connections as u64);
        let sliding = if self.window == Window::Sliding { " (sliding)" } else { "" };
        format!("{}, {connections} connections, {} in flight{sliding}", self.protocol.label(), self.in_flight)
    }

    /// What makes its figures doubtful.
    pub fn warnings(&self) -> Vec<String> {
        let columns = || std::iter::once(&self.floor).chain(&self.servers);
        let mut warnings = Vec::new();
        let full: Vec<&str> = columns()
            .filter(|column| column.summary.receivers_full())
            .map(|column| column.name.as_str())
            .collect();
        if !full.is_empty() {
            let names = full.join(", ");
            warnings.push(format!("the receivers' CPU was full: the deliveries/s of {names} are theirs"));
        }
        let others = columns().map(|column| column.summary.others_share.median).fold(0.0, f64::max);
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
            window: Window::Burst,
            floor_frame_bytes: 202.0,
            servers: vec![
                Column::new("fanwave", &fanwave, true, 0.0).beside(ratios(&fanwave, &floor)),
                Column {
                    fanwave_to_it: Some(Spread::of(ratios(&fanwave, &rival))),
                    ..Column::new("<nchan>", &rival, true, 0.0).beside(ratios(&rival, &floor))
                },
            ],
            floor: Column::new("floor", &floor, true, 0.0),
        }
    }

    #[test]
    fn connections_are_opened_so_many_at_a_time_that_each_has_all_of_its_streams() {
        assert_eq!(
            [(1, 1), (1, 6), (6, 6), (4, 6), (6, 1), (7, 6)].map(|(a, b)| least_common_multiple(a, b)),
            [1, 6, 6, 12, 6, 42]
        );
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let (one, other) = (vec![leg(1.0), leg(8.0), leg(3.0)], vec![leg(2.0), leg(4.0), leg(3.0)]);
        assert_eq!(Spread::of(ratios(&one, &other)), Spread { median: 1.0, min: 0.5, max: 2.0 });
    }

    #[test]
    fn a_server_whose_processes_are_not_known_has_a_rate_and_no_cost() {
        let column = Column::new("custom", &[leg(2.0)], false, 0.0);
        assert_eq!(column.us_per_delivery(), None);
        assert_eq!(column.summary.deliveries_per_second.median, 500_000.0);
    }

    #[test]
    fn a_busy_bystander_full_receivers_and_other_programs_are_warned_of() {
        assert_eq!(cell().warnings(), Vec::<String>::new());
        let mut doubtful = cell();
        doubtful.servers[1].idle_share_max = 0.02;
        doubtful.servers[0].summary.receiver_share = Spread::of([0.97]);
        doubtful.floor.summary.others_share = Spread::of([0.2]);
        let warnings = doubtful.warnings();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        for word in ["2.0 % of a CPU", "receivers", "20 %"] {
            assert!(warnings.iter().any(|warning| warning.contains(word)), "{word}: {warnings:?}");
        }
    }
}

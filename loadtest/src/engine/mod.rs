//! One measurement: a workload against a running server, from the first connection to the last
//! audit.
//!
//! The order is fixed: memory while nobody is there, a few connect, memory again, the others
//! connect, memory again, warm-up, the floor, the measured time with a sample every half second,
//! waiting until all that was published has arrived, the audit, the floor again. The publisher is
//! not told to wait for anybody within an open loop, so what falls behind shows as latency. A
//! server that goes, refuses or falls silent is an error and there is no outcome; events that are
//! missing in the end are findings, and an outcome with findings is
//! [`condemned`](verdict::condemned).
//!
//! Not here: printing and saving (`run`), starting and stopping the server (`server`).

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::audit::Findings;
use crate::fault::server_fault;
use crate::outcome::{Cost, Generator, Handshakes, Latency, Outcome};
use crate::process::raise_descriptor_limit;
use crate::publisher::TEND_EVERY;
use crate::receiver::{latency_histogram, record};
use crate::report::progress;
use crate::scenario::{self, Limits};
use crate::server::Running;
use crate::target::Target;
use crate::usage::interrupts_are_apart;
use crate::workload::{Pace, Workload};

use beside::Beside;
use course::Course;
use crowds::Crowds;
use source::Source;

mod beside;
mod course;
pub mod crowds;
pub mod kernel;
mod lasts;
mod source;
mod storm;
pub mod verdict;

/// The longest time from a publish to its arrival in a closed loop.
const ARRIVE_LIMIT: Duration = Duration::from_secs(20);
/// If nothing has arrived for so long, nothing more will: what is missing then is lost.
const QUIET_LIMIT: Duration = Duration::from_secs(5);
/// The longest wait for arrivals after the last publish.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// The wait for arrivals where nobody is steady.
const GRACE: Duration = Duration::from_secs(1);
/// A publisher may be late by so much, because the server takes its events slowly.
const LATE_LIMIT: Duration = Duration::from_secs(60);
/// From one look at the receivers' words to the next.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Events at the end of an idle run, one after the other.
const IDLE_EVENTS: u64 = 5;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// CPU of the floor's sender: the server's.
    pub sender_cpu: usize,
    /// CPU of receivers and publisher.
    pub receiver_cpu: usize,
    /// Measure the floor before and after.
    pub floor: bool,
    /// Find out what each connection costs in memory, which takes a second more to connect.
    pub memory: bool,
}

/// Everything that moves during a run.
pub struct Stage<'a> {
    running: &'a mut Running,
    crowds: Crowds,
    source: Source,
}

/// Memory of server and kernel with so many connections.
#[derive(Clone, Copy)]
struct Held {
    connections: usize,
    server: Option<u64>,
    kernel: u64,
}

/// How everybody connected.
struct Opening {
    /// The server's memory while nobody was connected.
    empty: Option<u64>,
    /// Its memory with all connected.
    full: Option<u64>,
    /// With a few connected and with all, if it is to be known what one more costs.
    few_and_all: Option<(Held, Held)>,
    /// Seconds of connecting.
    seconds: f64,
    /// From the connect to the response head, in nanoseconds.
    handshakes: Histogram<u64>,
}

/// Does `workload` to the server and tells what it showed. Errors are one line and mean that there
/// is no outcome.
pub fn measure(running: &mut Running, workload: &Workload, options: &EngineOptions) -> Result<Outcome> {
    scenario::check(workload)?;
    raise_descriptor_limit()?;
    Limits::read().check(workload.connections() as u64, running.target.subscribe.ip().is_loopback())?;
    perform(running, workload, options)
        .map_err(|error| running.explain(error))
        .with_context(|| format!("{} against {}", workload.name, running.target.name))
}

fn perform(running: &mut Running, workload: &Workload, options: &EngineOptions) -> Result<Outcome> {
    let apart = interrupts_are_apart()?;
    let cpu = Some(options.receiver_cpu);
    let (crowds, opening) = connect(running, workload, options)?;
    let mut beside = Beside::new(workload, options, apart);
    let source = Source::start(&running.target, workload, cpu)?;
    let mut stage = Stage { running, crowds, source };

    let warm_frame = stage.warm_up(workload)?;
    if let Some(bytes) = warm_frame {
        beside.measure(bytes)?;
    }
    let mut course = Course::begin(&mut stage, apart, options.receiver_cpu, workload)?;
    let before = stage.source.published();
    stage.crowds.start()?;
    let quiet = stage.publish(workload, workload.seconds, Some(&mut course))?;
    stage.arrive(Some(&mut course))?;
    course.sample(&mut stage)?;
    stage.crowds.stop()?;

    let last = stage.source.published();
    let audit = stage.crowds.findings(last)?;
    let Stage { running, crowds, source } = stage;
    source.finish()?;
    if let Some(bytes) = course.sums.steady.frame_bytes().or(warm_frame) {
        beside.measure(bytes)?;
    }
    let cost = course.cost(quiet, &opening);
    let mut outcome = outcome(&running.target, workload, &crowds, opening, course, audit);
    outcome.published = last - before;
    outcome.floor = beside.cost(cost.as_ref().and_then(|cost| cost.us_per_delivery));
    outcome.cost = cost;
    outcome.warnings = verdict::warnings(&outcome, crowds.owed(before, last));
    for warning in &outcome.warnings {
        progress(&format!("WARNING: {}: {warning}", workload.name));
    }
    Ok(outcome)
}

/// Connects everybody, with memory before, with a few connected and after.
fn connect(running: &Running, workload: &Workload, options: &EngineOptions) -> Result<(Crowds, Opening)> {
    let server = || Ok::<_, anyhow::Error>(running.memory()?.map(|memory| memory.rss_own));
    let empty = server()?;
    let start = Instant::now();
    let mut crowds = Crowds::vanguard(&running.target, workload, Some(options.receiver_cpu))?;
    let mut took = start.elapsed();
    let few = options.memory.then(|| Held::now(running, crowds.opened())).transpose()?;
    let start = Instant::now();
    let times = crowds.open_rest(&workload.name)?;
    took += start.elapsed();
    let mut handshakes = latency_histogram();
    record(&mut handshakes, &times);
    let few_and_all = match few {
        Some(few) => Some((few, Held::now(running, crowds.opened())?)),
        None => None,
    };
    let full = server()?;
    Ok((crowds, Opening { empty, full, few_and_all, seconds: took.as_secs_f64(), handshakes }))
}

/// What course and audit tell; the rest is filled in by the caller.
fn outcome(
    target: &Target,
    workload: &Workload,
    crowds: &Crowds,
    opening: Opening,
    course: Course,
    (findings, others): (Findings, Findings),
) -> Outcome {
    let (sums, seconds) = (&course.sums, course.seconds());
    let share = |ns: u64| ns as f64 / 1e9 / seconds;
    Outcome {
        workload: workload.clone(),
        server: target.name.clone(),
        version: target.version.clone(),
        seconds,
        published: 0,
        refused: sums.refused,
        deliveries: sums.steady.events,
        bytes: sums.all.bytes,
        findings,
        others,
        each: Latency::of(&course.each),
        last: (!course.last.is_empty()).then(|| Latency::of(&course.last)),
        lateness: Latency::of(&course.lateness),
        handshakes: Handshakes {
            opened: crowds.connections() as u64,
            seconds: opening.seconds,
            again: sums.all.opened,
            closed_by_server: sums.all.closed_by_server,
            latency: Latency::of(&opening.handshakes),
            again_latency: Latency::of(&course.handshakes),
        },
        cost: None,
        floor: None,
        generator: Generator {
            receivers: crowds.receivers(),
            receivers_share: share(sums.all.cpu_ns),
            receivers_us_per_delivery: (sums.all.events > 0)
                .then(|| sums.all.cpu_ns as f64 / 1e3 / sums.all.events as f64),
            publisher_share: share(sums.publisher_ns),
            coordinator_share: share(sums.own_ns),
            cpu_share: share(sums.generator_busy_ns),
        },
        others_share: course.server_cpu().map_or(0.0, |(_, others)| share(others)),
        storm: course.storm.as_ref().map(|storm| storm.told(course.handshakes.max())),
        warnings: Vec::new(),
        series: course.series,
    }
}

impl Held {
    fn now(running: &Running, connections: usize) -> Result<Held> {
        // The server, too, puts things away while the kernel does.
        let kernel = kernel::settled_bytes()?;
        Ok(Held { connections, server: running.memory()?.map(|memory| memory.rss_own), kernel })
    }

    /// Bytes that each connection since `few` cost server and kernel; none if there was no further
    /// one.
    fn each_since(&self, few: &Held) -> Option<(f64, f64)> {
        let further = self.connections.checked_sub(few.connections).filter(|&further| further > 0)?;
        let each = |after: u64, before: u64| (after as f64 - before as f64) / further as f64;
        Some((each(self.server?, few.server?), each(self.kernel, few.kernel)))
    }
}

impl Stage<'_> {
    /// Publishes before the measurement and waits until it has arrived. Gives the bytes of an event
    /// on the wire, if anything was published to steady subscribers.
    fn warm_up(&mut self, workload: &Workload) -> Result<Option<usize>> {
        if workload.warm_up_seconds == 0.0 || workload.publish == (Pace::Idle {}) {
            return Ok(None);
        }
        progress(&format!("{}: warming up for {} s", workload.name, workload.warm_up_seconds));
        self.publish(workload, workload.warm_up_seconds, None)?;
        self.arrive(None)?;
        Ok(self.crowds.sample()?.steady.frame_bytes())
    }

    /// Publishes for `seconds` as the workload says. For an idle run, gives the server's CPU
    /// nanoseconds and the deliveries of its quiet part.
    fn publish(
        &mut self,
        workload: &Workload,
        seconds: f64,
        course: Option<&mut Course>,
    ) -> Result<Option<Quiet>> {
        match workload.publish {
            Pace::Rate { .. } | Pace::Burst { .. } => {
                self.open_loop(workload.publish, seconds, course).map(|()| None)
            }
            Pace::InFlight { events } => self.closed_loop(events, seconds, course).map(|()| None),
            Pace::AtOnce { .. } => bail!("all events at once are judged by `loadtest run`, not measured"),
            Pace::Idle {} => self.idle(seconds, course),
        }
    }

    fn open_loop(&mut self, pace: Pace, seconds: f64, mut course: Option<&mut Course>) -> Result<()> {
        self.source.go(pace, seconds)?;
        // The measured time is the whole of it, also where the last event is due long before its
        // end.
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let limit = until + LATE_LIMIT;
        while !self.source.is_done()? || Instant::now() < until {
            self.look(course.as_deref_mut())?;
            if Instant::now() > limit {
                return Err(server_fault(format!(
                    "the server takes events too slowly: {} were published within {seconds} + {LATE_LIMIT:?}; \
                     give a lower rate",
                    self.source.published()
                )));
            }
        }
        Ok(())
    }

    fn closed_loop(&mut self, in_flight: u64, seconds: f64, mut course: Option<&mut Course>) -> Result<()> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut sent = self.source.published();
        let mut arrived = sent;
        while Instant::now() < until {
            let room = in_flight - (sent - arrived);
            self.source.publish(room)?;
            sent += room;
            self.crowds.wait_for(arrived + 1, ARRIVE_LIMIT, sent)?;
            arrived = self.crowds.complete().min(sent);
            if let Some(course) = course.as_deref_mut() {
                course.tick(self)?;
            }
        }
        Ok(())
    }

    fn idle(&mut self, seconds: f64, mut course: Option<&mut Course>) -> Result<Option<Quiet>> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        let mut tended = Instant::now();
        while Instant::now() < until {
            self.look(course.as_deref_mut())?;
            if tended.elapsed() >= TEND_EVERY {
                self.source.tend()?;
                tended = Instant::now();
            }
        }
        let quiet = match course {
            Some(course) => {
                course.sample(self)?;
                course.server_cpu().map(|(cpu_ns, _)| Quiet { cpu_ns, deliveries: course.sums.all.events })
            }
            None => None,
        };
        for _ in 0..IDLE_EVENTS {
            self.source.publish(1)?;
            let last = self.source.published();
            self.crowds.wait_for(last, ARRIVE_LIMIT, last)?;
        }
        Ok(quiet)
    }

    /// A short sleep, the receivers' words, a sample if one is due.
    fn look(&mut self, course: Option<&mut Course>) -> Result<()> {
        std::thread::sleep(LOOK_EVERY);
        self.crowds.drain()?;
        match course {
            Some(course) => course.tick(self),
            None => Ok(()),
        }
    }

    /// Waits until every steady subscriber has all that was published, or until nothing more comes.
    /// Nobody can say what subscribers of other kinds should have: if all are, they get a moment.
    fn arrive(&mut self, mut course: Option<&mut Course>) -> Result<()> {
        if !self.crowds.any_steady() {
            let until = Instant::now() + GRACE;
            while Instant::now() < until {
                self.look(course.as_deref_mut())?;
            }
            return Ok(());
        }
        let events = self.source.published();
        let limit = Instant::now() + DRAIN_LIMIT;
        let (mut seen, mut moved) = (self.crowds.complete(), Instant::now());
        while seen < events && moved.elapsed() < QUIET_LIMIT && Instant::now() < limit {
            self.look(course.as_deref_mut())?;
            let now = self.crowds.complete();
            // Deliveries count as movement too: the last of many connections may be long in coming.
            let delivering = course
                .as_ref()
                .is_some_and(|course| course.series.last().is_some_and(|interval| interval.deliveries > 0));
            if now > seen || delivering {
                moved = Instant::now();
            }
            seen = now;
        }
        Ok(())
    }
}

/// The part of a run in which nothing was published.
#[derive(Clone, Copy)]
pub struct Quiet {
    cpu_ns: u64,
    deliveries: u64,
}

impl Course {
    /// What the server cost. What it used while nothing was published is not charged to deliveries.
    fn cost(&self, quiet: Option<Quiet>, opening: &Opening) -> Option<Cost> {
        let (cpu_ns, _) = self.server_cpu()?;
        let (rss_empty, rss_connected) = (opening.empty?, opening.full?);
        let further = opening.few_and_all.and_then(|(few, all)| all.each_since(&few));
        let quiet = quiet.unwrap_or(Quiet { cpu_ns: 0, deliveries: 0 });
        let deliveries = self.sums.all.events - quiet.deliveries;
        Some(Cost {
            cpu: cpu_ns as f64 / 1e9,
            us_per_delivery: (deliveries > 0)
                .then(|| (cpu_ns - quiet.cpu_ns) as f64 / 1e3 / deliveries as f64),
            rss_empty,
            rss_connected,
            rss_max: self.sums.rss_max.max(rss_connected),
            rss_per_further_connection: further.map(|(server, _)| server),
            kernel_per_further_connection: further.map(|(_, kernel)| kernel),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_needs_for_any_number_is_not_charged_to_each_connection() {
        let few = Held { connections: 50, server: Some(1_000_000), kernel: 9_000_000 };
        let all = Held { connections: 1_050, server: Some(1_147_000), kernel: 18_000_000 };
        assert_eq!(all.each_since(&few), Some((147.0, 9_000.0)));
        assert_eq!(few.each_since(&few), None);
        assert_eq!(all.each_since(&Held { server: None, ..few }), None);
    }
}

//! Measures the points of a design: what a server's CPU and memory are while it does a known amount
//! of work.
//!
//! Events are published open loop, at even intervals. Every leg waits until all of its events have
//! arrived on every connection and checks the bytes; a leg with a loss is an error, not a figure.
//! Heartbeats, which nobody published, are counted by their bytes. Memory of the kernel is the
//! machine's, both ends of every connection in it, as the difference from the same server without
//! connections.

use std::collections::VecDeque;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fanwave::config::Limits;
use serde::{Deserialize, Serialize};

use super::design::{Design, Group, Load};
use super::fit::rounded;
use crate::engine::kernel;
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::prove::ARRIVE_LIMIT;
use crate::publisher::{PublishPlan, PublishProcess};
use crate::receiver::CrowdSetup;
use crate::report::progress;
use crate::server::{self, FanwaveArgs, Running, ServerChoice};
use crate::usage::{CpuMeter, CpuSample, interrupts_are_apart};
use crate::workload::Pace;

/// Publishing before a leg is measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// Time that the server gets to go quiet, so that its work after the last arrival is counted.
const SETTLE: Duration = Duration::from_millis(5);
/// Time between two looks at a publisher that is publishing.
const PUBLISH_LOOK: Duration = Duration::from_millis(10);
/// A leg in which others took more than this share of the server's CPU is tried again.
pub const OTHERS_SHARE_MAX: f64 = 0.1;
/// Tries of one leg, and repetitions over all legs: on a machine that is never quiet they would
/// only take time.
const LEG_TRIES: usize = 3;
const REPETITIONS_MAX: usize = 12;
/// Idle time for heartbeats: several of them, since the server looks at each connection once a
/// second.
const HEARTBEATS_TIME: Duration = Duration::from_secs(4);
/// Shards of the server that is started empty once per round: what a shard takes before its first
/// connection.
pub const EMPTY_SHARDS: usize = 3;
/// Time that a server gets to let go of connections whose clients are gone.
const CLOSE_TIME: Duration = Duration::from_millis(600);
/// A heartbeat on the wire: `:` and a blank line, or a ping without data (RFC 6455 §5.5.2).
const SSE_HEARTBEAT_BYTES: u64 = 3;
const WS_HEARTBEAT_BYTES: u64 = 2;

/// What a server did in a leg.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Events went out.
    #[default]
    Load,
    /// Nothing but heartbeats, if there were any.
    Idle,
    /// Connections came.
    Open,
    /// Connections went.
    Close,
}

/// The CPU of one leg, and the work it was for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuRow {
    /// Round, from 0.
    pub round: usize,
    /// What was done.
    pub kind: Kind,
    /// What the subscribers speak.
    pub protocol: Protocol,
    /// Connections.
    pub connections: usize,
    /// Topics they are spread over.
    pub topics: usize,
    /// Length of the leg.
    pub seconds: f64,
    /// Events per second as asked for; 0 without events.
    pub rate: f64,
    /// Events published.
    pub events: u64,
    /// Event × connection.
    pub deliveries: u64,
    /// Bytes of one event's data.
    pub payload_bytes: usize,
    /// Bytes on the wire per delivery.
    pub frame_bytes: f64,
    /// Connections opened.
    pub handshakes: u64,
    /// Connections closed.
    pub closes: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// CPU of the server, nanoseconds.
    pub cpu_ns: u64,
    /// Share of one CPU that the receivers used.
    pub receiver_share: f64,
    /// Share of the server's CPU that others used.
    pub others_share: f64,
}

impl CpuRow {
    /// A leg of a group in which nothing came, went or was delivered, and that cost nothing.
    pub fn nothing(round: usize, kind: Kind, group: &Group, seconds: f64) -> CpuRow {
        CpuRow {
            round,
            kind,
            protocol: group.protocol,
            connections: group.connections,
            topics: group.topics,
            seconds,
            ..CpuRow::default()
        }
    }
}

/// Memory at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryRow {
    /// Round, from 0.
    pub round: usize,
    /// What the subscribers speak.
    pub protocol: Protocol,
    /// Shards of the server; connections are there with one shard only.
    pub shards: usize,
    /// Connections open.
    pub connections: usize,
    /// Most events that the window has held so far.
    pub window_events: u64,
    /// Most bytes of data that the window has held so far.
    pub window_bytes: u64,
    /// Resident user-space memory of the server.
    pub user_bytes: u64,
    /// Kernel memory of both ends: growth since the server was empty. Negative if others gave back
    /// more.
    pub kernel_bytes: i64,
}

/// All rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// CPU.
    pub cpu: Vec<CpuRow>,
    /// Memory.
    pub memory: Vec<MemoryRow>,
}

/// Where and with what is measured.
#[derive(Debug)]
pub struct Stand<'a> {
    /// How fanwave is started.
    pub fanwave: &'a FanwaveArgs,
    /// CPU of the server.
    pub server_cpu: usize,
    /// CPU of the receivers.
    pub receiver_cpu: usize,
    /// True if the kernel keeps interrupt time out of the threads' time.
    pub apart: bool,
}

/// What has been measured so far.
#[derive(Debug)]
pub struct Notebook {
    /// The rows.
    pub measured: Measured,
    /// Repetitions of disturbed legs that are left.
    repetitions: usize,
}

impl Default for Notebook {
    fn default() -> Notebook {
        Notebook { measured: Measured::default(), repetitions: REPETITIONS_MAX }
    }
}

impl<'a> Stand<'a> {
    /// Finds out how this kernel accounts interrupts.
    pub fn new(fanwave: &'a FanwaveArgs, server_cpu: usize, receiver_cpu: usize) -> Result<Stand<'a>> {
        Ok(Stand { fanwave, server_cpu, receiver_cpu, apart: interrupts_are_apart()? })
    }

    fn choice(&self) -> ServerChoice {
        ServerChoice { fanwave: self.fanwave.clone(), ..ServerChoice::default() }
    }

    /// Asks a server of its own, with `more` arguments, of one shard on the server's CPU.
    pub fn ask<T>(&self, more: &[String], ask: impl FnOnce(&Running) -> Result<T>) -> Result<T> {
        server::ask(&self.choice(), Some(self.server_cpu), 1, more, ask)
    }
}

/// Measures the whole design.
pub fn measure(stand: &Stand<'_>, design: &Design) -> Result<Measured> {
    let mut notebook = Notebook::default();
    let time = Duration::from_secs_f64(design.seconds);
    let schedule = design.schedule();
    let groups = schedule.iter().flatten().count();
    let mut done = 0;
    for (round, groups_of_round) in schedule.iter().enumerate() {
        notebook.measured.memory.push(measure_empty(stand, round)?);
        for group in groups_of_round {
            done += 1;
            progress(&format!(
                "group {done} of {groups} (round {} of {}): {} {}, {}",
                round + 1,
                design.rounds,
                group.connections,
                group.protocol.label(),
                match group.heartbeat_ms {
                    Some(ms) => format!("idle, a heartbeat every {ms} ms"),
                    None => format!("{} loads", group.loads.len()),
                }
            ));
            measure_group(stand, group, round, time, &mut notebook)?;
        }
    }
    Ok(notebook.measured)
}

/// The memory of a server with several shards that nobody has connected to yet.
fn measure_empty(stand: &Stand<'_>, round: usize) -> Result<MemoryRow> {
    let (cpu, choice) = (Some(stand.server_cpu), stand.choice());
    server::ask(&choice, cpu, EMPTY_SHARDS, &[], |server| {
        // As long as the empty server with one shard gets.
        kernel::settled_bytes()?;
        Ok(MemoryRow {
            round,
            protocol: Protocol::Ws,
            shards: EMPTY_SHARDS,
            user_bytes: server.own_memory()?.rss_own,
            ..MemoryRow::default()
        })
    })
}

/// Measures one group on a server of its own, into the notebook.
pub fn measure_group(
    stand: &Stand<'_>,
    group: &Group,
    round: usize,
    time: Duration,
    notebook: &mut Notebook,
) -> Result<()> {
    let heartbeat = group.heartbeat_ms.map(|ms| ["--heartbeat-ms".to_owned(), ms.to_string()]);
    let more = heartbeat.as_ref().map_or(&[][..], |heartbeat| heartbeat);
    stand.ask(more, |server| {
        let meter = server.meter(stand.apart).context("the server's processes are known")?;
        let window = Window::of(group.topics);
        Leg { server, meter, group, round, window, kernel_empty: 0 }.run(stand, time, notebook)
    })
}

/// A group under measurement.
struct Leg<'a> {
    server: &'a Running,
    meter: CpuMeter,
    group: &'a Group,
    round: usize,
    window: Window,
    kernel_empty: u64,
}

impl Leg<'_> {
    fn run(mut self, stand: &Stand<'_>, time: Duration, notebook: &mut Notebook) -> Result<()> {
        let Notebook { measured, repetitions } = notebook;
        let group = self.group;
        let target = &self.server.target;
        let path = target.path(group.protocol).context("the server does not speak this protocol")?;
        let mut fleet = Fleet::new(CrowdSetup {
            cpu: Some(stand.receiver_cpu),
            topics: group.topics,
            // Who answers pings must find them between the events.
            audit: group.heartbeat_ms.is_some(),
            tls: target.tls.clone(),
            secret: target.secret.clone(),
            ..CrowdSetup::steady(target.subscribe, group.protocol, path.to_owned())
        });
        self.kernel_empty = kernel::settled_bytes()?;
        measured.memory.push(self.memory(0)?);

        let (before, start) = (self.meter.sample()?, Instant::now());
        fleet.open(group.connections)?;
        sleep(SETTLE);
        let mut row = self.row(Kind::Open, &before, start)?;
        row.handshakes = group.connections as u64;
        measured.cpu.push(row);
        kernel::settled_bytes()?;
        measured.memory.push(self.memory(group.connections)?);

        measured.cpu.push(quiet(repetitions, || self.idle(&mut fleet, time))?);
        if !group.loads.is_empty() {
            for load in &group.loads {
                measured
                    .cpu
                    .push(quiet(repetitions, || self.load(&mut fleet, load, stand.receiver_cpu, time))?);
            }
            kernel::settled_bytes()?;
            measured.memory.push(self.memory(group.connections)?);
        }

        let (before, start) = (self.meter.sample()?, Instant::now());
        drop(fleet);
        sleep(CLOSE_TIME);
        let mut row = self.row(Kind::Close, &before, start)?;
        row.closes = group.connections as u64;
        measured.cpu.push(row);
        Ok(())
    }

    /// A row with the CPU since `before`, the work yet to be filled in.
    fn row(&self, kind: Kind, before: &CpuSample, start: Instant) -> Result<CpuRow> {
        let after = self.meter.sample()?;
        let seconds = rounded(start.elapsed().as_secs_f64());
        Ok(CpuRow {
            cpu_ns: after.since(before),
            others_share: rounded(after.others_since(before) as f64 / 1e9 / seconds),
            ..CpuRow::nothing(self.round, kind, self.group, seconds)
        })
    }

    fn memory(&self, connections: usize) -> Result<MemoryRow> {
        Ok(MemoryRow {
            round: self.round,
            protocol: self.group.protocol,
            shards: 1,
            connections,
            window_events: self.window.events_max,
            window_bytes: self.window.bytes_max,
            user_bytes: self.server.own_memory()?.rss_own,
            kernel_bytes: kernel::bytes()? as i64 - self.kernel_empty as i64,
        })
    }

    /// Waits with idle connections; heartbeats are counted by their bytes.
    fn idle(&self, fleet: &mut Fleet, time: Duration) -> Result<CpuRow> {
        let time = if self.group.heartbeat_ms.is_some() { HEARTBEATS_TIME } else { time };
        fleet.zero(1, 0)?;
        let receivers = fleet.report(0)?.totals.cpu_ns;
        let (before, start) = (self.meter.sample()?, Instant::now());
        wait_until(fleet, start + time)?;
        let mut row = self.row(Kind::Idle, &before, start)?;
        let totals = fleet.report(0)?.totals;
        let heartbeat_bytes = match self.group.protocol {
            Protocol::Ws => WS_HEARTBEAT_BYTES,
            _ => SSE_HEARTBEAT_BYTES,
        };
        row.heartbeats = totals.bytes / heartbeat_bytes;
        row.receiver_share = rounded((totals.cpu_ns - receivers) as f64 / 1e9 / row.seconds);
        Ok(row)
    }

    /// Publishes at a rate, a warm-up first, and checks the arrival of everything.
    fn load(&mut self, fleet: &mut Fleet, load: &Load, cpu: usize, time: Duration) -> Result<CpuRow> {
        let plan = PublishPlan::to(&self.server.target, self.group.topics, load.bytes)?;
        let mut publisher = PublishProcess::start(&plan, Some(cpu))?;
        fleet.zero(publisher.next(), 0)?;
        let warm = publish_at(fleet, &mut publisher, load.rate, WARM_UP)?;
        let receivers = fleet.report(0)?.totals.cpu_ns;
        sleep(SETTLE);
        let (before, start) = (self.meter.sample()?, Instant::now());
        let events = publish_at(fleet, &mut publisher, load.rate, time)?;
        sleep(SETTLE);
        let mut row = self.row(Kind::Load, &before, start)?;
        let all = warm + events;
        let totals = fleet.check(all, publisher.next() - 1)?.totals;
        publisher.finish().context("after a leg")?;
        self.window.publish(all, load.bytes as u64);
        row.rate = load.rate;
        row.events = events;
        row.deliveries = events * self.group.connections as u64 / self.group.topics as u64;
        row.payload_bytes = load.bytes;
        row.frame_bytes = rounded(totals.scout_bytes as f64 / all as f64);
        row.receiver_share = rounded((totals.cpu_ns - receivers) as f64 / 1e9 / row.seconds);
        Ok(row)
    }
}

/// The leg, again if other programs took too much of the server's CPU meanwhile: the least
/// disturbed of a few. Takes from the repetitions that are left.
fn quiet(repetitions: &mut usize, mut leg: impl FnMut() -> Result<CpuRow>) -> Result<CpuRow> {
    let mut best = leg()?;
    for _ in 1..LEG_TRIES {
        if best.others_share <= OTHERS_SHARE_MAX || *repetitions == 0 {
            break;
        }
        *repetitions -= 1;
        let again = leg()?;
        if again.others_share < best.others_share {
            best = again;
        }
    }
    Ok(best)
}

/// Publishes at even intervals for `time`, one event at least, and waits until everything has
/// arrived and the interval of the last event is over: its acknowledgements belong to it.
pub fn publish_at(
    fleet: &mut Fleet,
    publisher: &mut PublishProcess,
    rate: f64,
    time: Duration,
) -> Result<u64> {
    let arrived = fleet.complete();
    let start = Instant::now();
    publisher.go(Pace::Rate { per_second: rate }, time.as_secs_f64().max(1.0 / rate))?;
    let published = loop {
        if let Some(published) = publisher.poll()? {
            break published;
        }
        fleet.pump(Instant::now() + PUBLISH_LOOK)?;
    };
    if published.refused > 0 {
        bail!(
            "the server refused {} of {} events: ask for a lower rate",
            published.refused,
            published.events
        );
    }
    wait_until(fleet, start + Duration::from_secs_f64(published.events as f64 / rate))?;
    fleet.wait_for(arrived + published.events, ARRIVE_LIMIT, publisher.next() - 1)?;
    Ok(published.events)
}

/// Waits, taking the receivers' words meanwhile: one that fails ends the wait.
pub fn wait_until(fleet: &mut Fleet, until: Instant) -> Result<()> {
    while fleet.pump(until)? {}
    Ok(())
}

/// What the server's windows have held together; events go round their topics.
#[derive(Debug)]
struct Window {
    /// The most that they hold.
    events_limit: u64,
    bytes_limit: u64,
    /// Runs of events of one size, oldest first.
    runs: VecDeque<(u64, u64)>,
    events_max: u64,
    bytes_max: u64,
}

impl Window {
    /// Of so many topics, with the server's default limits.
    fn of(topics: usize) -> Window {
        let limits = Limits::default();
        Window {
            events_limit: (topics * limits.window_events_max) as u64,
            bytes_limit: (topics * limits.window_bytes_max).min(limits.window_bytes_total_max) as u64,
            runs: VecDeque::new(),
            events_max: 0,
            bytes_max: 0,
        }
    }

    fn publish(&mut self, events: u64, bytes_each: u64) {
        let kept = events.min(self.events_limit).min(self.bytes_limit / bytes_each.max(1));
        self.runs.push_back((kept, bytes_each));
        loop {
            let events: u64 = self.runs.iter().map(|run| run.0).sum();
            let bytes: u64 = self.runs.iter().map(|run| run.0 * run.1).sum();
            let over_events = events.saturating_sub(self.events_limit);
            let over_bytes = bytes.saturating_sub(self.bytes_limit);
            let Some(oldest) = self.runs.front_mut() else { return };
            let gone = over_events.max(over_bytes.div_ceil(oldest.1.max(1))).min(oldest.0);
            if gone == 0 {
                self.events_max = self.events_max.max(events);
                self.bytes_max = self.bytes_max.max(bytes);
                return;
            }
            oldest.0 -= gone;
            if oldest.0 == 0 {
                self.runs.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::planted::load_row;

    #[test]
    fn a_disturbed_leg_is_tried_again_and_the_least_disturbed_counts() {
        let tries = |mut repetitions: usize, shares: &[f64]| {
            let mut left = shares.iter();
            let leg = || {
                let others_share = *left.next().expect("no more tries than shares");
                Ok(CpuRow { others_share, ..load_row(1, 1.0, 200) })
            };
            let share = quiet(&mut repetitions, leg).expect("no error").others_share;
            (share, left.len(), repetitions)
        };
        assert_eq!(tries(3, &[0.02, 0.5]), (0.02, 1, 3));
        assert_eq!(tries(3, &[0.5, 0.05, 0.0]), (0.05, 1, 2));
        assert_eq!(tries(3, &[0.5, 0.3, 0.4]), (0.3, 0, 1));
        assert_eq!(tries(1, &[0.5, 0.4, 0.3]), (0.4, 1, 0));
    }

    #[test]
    fn a_window_holds_the_newest_events_within_both_bounds_and_its_peak_is_kept() {
        let mut window = Window::of(1);
        window.publish(100, 200);
        assert_eq!((window.events_max, window.bytes_max), (100, 20_000));
        window.publish(2_000, 200);
        assert_eq!((window.events_max, window.bytes_max), (1_024, 204_800));
        window.publish(10, 1 << 20);
        assert_eq!(window.events_max, 1_024);
        assert_eq!(window.runs.back(), Some(&(8, 1 << 20)));
        assert_eq!(window.bytes_max, 8 << 20);
        let mut several = Window::of(3);
        several.publish(10_000, 200);
        assert_eq!((several.events_max, several.bytes_max), (3 * 1_024, 3 * 1_024 * 200));
    }
}

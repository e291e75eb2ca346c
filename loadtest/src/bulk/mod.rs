//! Everything at once: a workload whose pace is [`Pace::AtOnce`], done to a server of its own and
//! judged.
//!
//! Subscribers that take all they are offered must get every event once, in order and to the byte,
//! and none may be closed. The server's memory must not grow by more than its start declares for
//! what events hold. Stalled readers beside them must be closed in time, and then the memory must
//! come back. A fault is a figure of the workload's row in the table; only what prevents judging is
//! an error.
//!
//! Not here: what the tables look like (`show`), who receives (`engine::crowds`, `fleet`).

use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

use crate::audit::Findings;
use crate::engine::crowds::Crowds;
use crate::publisher::{PublishPlan, Publisher};
use crate::report::progress;
use crate::server::{self, Running, ServerChoice};
use crate::stamp::{STAMP_BYTES, now_ns};
use crate::way::Way;
use crate::workload::{Behaviour, Pace, Workload};

pub use show::show;

mod show;

/// What a server gets as `--stall-ms-max` where readers stall.
const STALL_MS_MAX: u64 = 2_000;
/// A stalled reader is closed so long after the last event at the latest: fanwave's limit, and the
/// 5 s that its kernel is more patient.
const CUT_LIMIT: Duration = Duration::from_millis(STALL_MS_MAX + 5_000);
/// How long memory may take to come back once stalled readers are closed.
const BACK_LIMIT: Duration = Duration::from_secs(30);
/// What may stay: a topic's window of 8 MiB, as published and encoded twice, and what an allocator
/// keeps.
const KEPT_BYTES: u64 = 40 << 20;
/// If nothing has arrived for so long, nothing more will.
const QUIET_LIMIT: Duration = Duration::from_secs(5);
/// The same where somebody was closed: those that are left need not be waited for as long.
const QUIET_LIMIT_CLOSED: Duration = Duration::from_secs(2);
/// What our own server is called.
const FANWAVE: &str = "fanwave";
/// A topic that nobody listens to.
const BESIDE: &str = "loadtest-beside";
/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What one workload showed.
#[derive(Debug, Clone, Serialize)]
pub struct Judged {
    workload: Workload,
    server: String,
    version: String,
    /// Events that were published.
    published: u64,
    /// Seconds until the server had taken all of them; absent if it has not.
    published_seconds: Option<f64>,
    /// POSTs that were refused and sent again.
    again: u64,
    /// Why not everything was published.
    publish_fault: Option<String>,
    /// Deliveries that must arrive at subscribers that take everything.
    expected: u64,
    received: u64,
    /// Seconds from the first publish until all had arrived, if they have.
    arrived_seconds: Option<f64>,
    /// Subscribers that take everything and that the server closed.
    closed: u64,
    findings: Findings,
    /// Subscribers whose bytes are not those of the others, although nobody was closed or lacks an
    /// event.
    uneven: usize,
    memory: Option<Growth>,
    /// What became of stalled readers, if there were any.
    stalled: Option<Stalled>,
    /// Connections that the server closed, by its own reasons.
    reasons: Vec<(String, u64)>,
}

/// The server's memory of its own, in bytes.
#[derive(Debug, Clone, Serialize)]
struct Growth {
    /// With everybody connected and nothing published.
    connected: u64,
    /// At its highest.
    peak: u64,
    /// What its start declares for all windows; absent if it declares nothing.
    windows: Option<u64>,
    /// The same with queues and slow sends.
    declared: Option<u64>,
}

/// Stalled readers.
#[derive(Debug, Clone, Serialize)]
struct Stalled {
    readers: u64,
    /// Seconds from the last publish until all of them were closed, if they were.
    cut_seconds: Option<f64>,
    /// Memory above what it was with everybody connected, after at most the limit.
    kept: Option<u64>,
    /// Seconds until it was back, if it came back.
    back_seconds: Option<f64>,
}

/// What a publisher did.
#[derive(Default)]
struct Published {
    events: u64,
    seconds: Option<f64>,
    again: u64,
    fault: Option<String>,
}

/// Starts a server, does `workload` to it and stops it.
pub fn judge(
    choice: &ServerChoice,
    sender_cpu: usize,
    receiver_cpu: usize,
    shards: usize,
    workload: &Workload,
) -> Result<Judged> {
    const STALL_FLAG: &str = "--stall-ms-max";
    let stalls = stalled_readers(workload) > 0;
    let given = choice.fanwave.more.iter().any(|arg| arg.starts_with(STALL_FLAG));
    let more = match stalls && !given {
        true => vec![STALL_FLAG.to_owned(), STALL_MS_MAX.to_string()],
        false => Vec::new(),
    };
    server::ask(choice, Some(sender_cpu), shards, &more, |running| {
        let of = || format!("{} against {}", workload.name, running.target.name);
        done(running, workload, receiver_cpu).with_context(of)
    })
}

fn done(running: &Running, workload: &Workload, cpu: usize) -> Result<Judged> {
    let target = &running.target;
    let Pace::AtOnce { events, posts } = workload.publish else {
        bail!("only what is published at once is judged")
    };
    let to = PublishPlan::to(target, workload.topics, workload.payload_bytes)?;
    let plan = if posts { PublishPlan { way: Way::Post, ..to } } else { to };
    let mut crowds = Crowds::vanguard(target, workload, Some(cpu))?;
    crowds.open_rest(&workload.name)?;
    let connected = running.memory()?.map(|memory| memory.rss_own);
    crowds.sample()?;
    progress(&format!("{}: publishing {events} events", workload.name));

    let limit = Duration::from_secs_f64(workload.seconds);
    let mut watch = Watch::new(workload, crowds.owed(0, events), limit);
    let done = start_publisher(plan, events, posts, limit);
    while !watch.look(running, &mut crowds, &done)? {
        thread::sleep(LOOK_EVERY);
    }
    let peak = running.memory_peak()?;
    let kept = match (connected, &watch.cut) {
        (Some(connected), Some(_)) => Some(memory_back(running, connected)?),
        _ => None,
    };
    let (findings, _) = crowds.findings(events)?;
    let whole = watch.closed == 0 && watch.received == watch.expected;
    let declared = running.declared();
    let sum = |words: &[&str]| {
        let rows = declared.iter().filter(|(owner, _)| words.iter().any(|word| owner.contains(word)));
        Some(rows.map(|(_, bytes)| bytes).sum()).filter(|&bytes: &u64| bytes > 0)
    };
    let readers = stalled_readers(workload);
    let Watch { expected, received, closed, arrived, cut, published, .. } = watch;
    let published = published.unwrap_or_else(|| Published {
        fault: Some(format!("not everything was published within {limit:?}")),
        ..Published::default()
    });
    Ok(Judged {
        workload: workload.clone(),
        server: target.name.clone(),
        version: target.version.clone(),
        published: published.events,
        published_seconds: published.seconds,
        again: published.again,
        publish_fault: published.fault,
        expected,
        received,
        arrived_seconds: arrived.map(|time| time.as_secs_f64()),
        closed,
        findings,
        uneven: if whole { crowds.uneven(events)? } else { 0 },
        memory: connected.zip(peak).map(|(connected, peak)| Growth {
            connected,
            peak,
            windows: sum(&["windows"]),
            declared: sum(&["windows"]).and(sum(&["windows", "queue", "slow sends"])),
        }),
        stalled: (readers > 0).then(|| Stalled {
            readers,
            cut_seconds: cut.map(|time| time.as_secs_f64()),
            kept: kept.map(|(bytes, _)| bytes),
            back_seconds: kept.and_then(|(_, time)| time).map(|time| time.as_secs_f64()),
        }),
        reasons: reasons(running)?,
    })
}

fn stalled_readers(workload: &Workload) -> u64 {
    let stalled = workload.subscribers.iter().filter(|crowd| crowd.behaviour == Behaviour::Stalled);
    stalled.map(|crowd| crowd.connections as u64).sum()
}

/// Publishes on a thread of its own: a server that takes events slowly must not keep anybody from
/// looking.
fn start_publisher(plan: PublishPlan, events: u64, posts: bool, limit: Duration) -> Receiver<Published> {
    let (tell, told) = channel();
    thread::spawn(move || {
        let start = Instant::now();
        let mut again = 0;
        let outcome = Publisher::connect(&plan).and_then(|mut publisher| {
            match posts {
                true => again = publisher.insist(events, now_ns(), start + limit)?,
                false => publisher.publish(events)?,
            }
            publisher.finish()
        });
        let published = match outcome {
            Ok(()) => Published { events, seconds: Some(start.elapsed().as_secs_f64()), again, fault: None },
            Err(error) => Published { again, fault: Some(format!("{error:#}")), ..Published::default() },
        };
        // Who looks has gone if the judging failed.
        let _ = tell.send(published);
    });
    told
}

/// The course of one workload.
struct Watch {
    start: Instant,
    limit: Duration,
    stalled: u64,
    /// Subscribers that take everything.
    takers: u64,
    expected: u64,
    received: u64,
    closed: u64,
    stalled_closed: u64,
    arrived: Option<Duration>,
    published: Option<Published>,
    published_at: Option<Instant>,
    cut: Option<Duration>,
    moved: Instant,
}

impl Watch {
    fn new(workload: &Workload, expected: u64, limit: Duration) -> Watch {
        let (now, stalled) = (Instant::now(), stalled_readers(workload));
        Watch {
            start: now,
            limit,
            stalled,
            takers: workload.connections() as u64 - stalled,
            expected,
            received: 0,
            closed: 0,
            stalled_closed: 0,
            arrived: None,
            published: None,
            published_at: None,
            cut: None,
            moved: now,
        }
    }

    /// Takes in what happened since the last look; true if nothing more is to be waited for.
    fn look(&mut self, running: &Running, crowds: &mut Crowds, done: &Receiver<Published>) -> Result<bool> {
        let heard = crowds.sample()?;
        self.received += heard.steady.events;
        self.closed += heard.steady.closed_by_server;
        self.stalled_closed += heard.all.closed_by_server - heard.steady.closed_by_server;
        if heard.steady.events > 0 {
            self.moved = Instant::now();
        }
        if self.arrived.is_none() && self.received >= self.expected {
            self.arrived = Some(self.start.elapsed());
        }
        if self.published.is_none() {
            match done.try_recv() {
                Ok(published) => {
                    self.published = Some(published);
                    self.published_at = Some(Instant::now());
                    self.moved = Instant::now();
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => bail!("the publisher's thread has ended"),
            }
        }
        let Some(published_at) = self.published_at else { return Ok(self.start.elapsed() > self.limit) };
        if self.stalled > 0 && self.cut.is_none() && self.all_cut(running)? {
            self.cut = Some(published_at.elapsed());
        }
        let quiet = if self.closed > 0 { QUIET_LIMIT_CLOSED } else { QUIET_LIMIT };
        let arrived = self.arrived.is_some() || self.moved.elapsed() > quiet;
        let cut = self.stalled == 0 || self.cut.is_some() || published_at.elapsed() > CUT_LIMIT;
        Ok((arrived && cut) || self.start.elapsed() > self.limit)
    }

    /// True once the server has closed all stalled readers. They hear of it late: what they do not
    /// read stands before it. So it is the server's count, once it has as many as the others are;
    /// it has fewer while others that it closed have not heard of it yet.
    fn all_cut(&self, running: &Running) -> Result<bool> {
        let open = running.stats()?.pointer("/totals/connections").and_then(Value::as_u64);
        Ok(self.stalled_closed >= self.stalled || open.is_some_and(|open| open == self.takers - self.closed))
    }
}

/// What the server keeps above `connected`, and how long it took until that was no more than it
/// may. Small events for nobody keep it from standing still: an allocator gives memory back while
/// it is used.
fn memory_back(running: &Running, connected: u64) -> Result<(u64, Option<Duration>)> {
    let target = &running.target;
    let mut beside = Publisher::connect(&PublishPlan::post(
        target.publish,
        target.publish_path.replace("{topic}", BESIDE),
        STAMP_BYTES,
    ))?;
    let start = Instant::now();
    loop {
        beside.insist(1, now_ns(), start + BACK_LIMIT)?;
        let own = running.memory()?.map_or(0, |memory| memory.rss_own);
        let kept = own.saturating_sub(connected);
        if kept <= KEPT_BYTES {
            return Ok((kept, Some(start.elapsed())));
        }
        if start.elapsed() > BACK_LIMIT {
            return Ok((kept, None));
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Why the server closed connections, as it counts them.
fn reasons(running: &Running) -> Result<Vec<(String, u64)>> {
    let stats = running.stats()?;
    let closed = stats.pointer("/totals/closed").and_then(Value::as_object);
    let counts = closed.into_iter().flatten();
    Ok(counts
        .filter_map(|(reason, count)| Some((reason.clone(), count.as_u64().filter(|&count| count > 0)?)))
        .collect())
}

impl Judged {
    /// What is wrong, one phrase each; empty is good.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        faults.extend(self.publish_fault.clone());
        if self.closed > 0 {
            faults.push(format!("{} of {} subscribers were closed", self.closed, self.takers()));
        }
        let found = &self.findings;
        if found.lost > 0 {
            faults.push(format!("{} of {} deliveries were lost", found.lost, self.expected));
        }
        if found.duplicated + found.out_of_order + found.foreign + found.gaps_told > 0 {
            faults.push(format!(
                "{} duplicated, {} out of order, {} foreign, {} gaps",
                found.duplicated, found.out_of_order, found.foreign, found.gaps_told
            ));
        }
        if found.lost == 0 && self.closed == 0 && self.received != self.expected {
            faults.push(format!("{} of {} deliveries were counted", self.received, self.expected));
        }
        if self.uneven > 0 {
            faults.push(format!("{} subscribers got other bytes than the first", self.uneven));
        }
        match self.memory.as_ref().map(|memory| (memory.grown(), memory.declared)) {
            Some((grown, Some(declared))) if grown > declared => faults.push(format!(
                "memory grew by {} MiB, {} MiB are declared",
                grown >> 20,
                declared >> 20
            )),
            // Others never say it; ours would go unjudged if its start were worded otherwise.
            Some((_, None)) if self.server == FANWAVE => {
                faults.push("its start does not say what windows may use".to_owned());
            }
            _ => {}
        }
        faults.extend(self.stalled.iter().flat_map(Stalled::faults));
        faults
    }

    /// The faults as one phrase, with the name.
    pub fn condemned(&self) -> Option<String> {
        let faults = self.faults();
        (!faults.is_empty()).then(|| format!("{}: {}", self.workload.name, faults.join(", ")))
    }

    fn takers(&self) -> u64 {
        self.workload.connections() as u64 - stalled_readers(&self.workload)
    }
}

impl Growth {
    fn grown(&self) -> u64 {
        self.peak.saturating_sub(self.connected)
    }
}

impl Stalled {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        match self.cut_seconds {
            Some(seconds) if seconds <= CUT_LIMIT.as_secs_f64() => {}
            _ => faults.push(format!("stalled readers were not closed within {CUT_LIMIT:?}")),
        }
        if let (Some(kept), None) = (self.kept, self.back_seconds) {
            faults.push(format!(
                "{} MiB were kept {BACK_LIMIT:?} after stalled readers were closed, {} MiB may be",
                kept >> 20,
                KEPT_BYTES >> 20
            ));
        }
        faults
    }
}

#[cfg(test)]
mod tests;

//! All receivers of one set of subscribers, as the coordinator sees them.
//!
//! A fleet spreads its connections over as many receiver processes as the descriptor limit demands. Every wait has a
//! limit; a receiver that fails, ends or falls silent ends the run with its cause.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;

use crate::framing::Protocol;
use crate::link::{self, Link};
use crate::process::sockets_per_process_max;
pub use crate::receiver::LastArrival;
use crate::receiver::{Order, Setup, Totals, Word, latency_histogram};
use crate::target::Dialect;
use crate::workload::Behaviour;

/// The longest silence of a receiver that opens connections; it reports a stuck opening itself, earlier.
const OPEN_LIMIT: Duration = Duration::from_secs(300);
/// The longest time until a receiver answers an order.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Sockets of one receiver process, whatever the limit allows: keeps one process's share of a large run small.
const SOCKETS_PER_RECEIVER_MAX: u64 = 19_000;

/// What to subscribe to, and how.
#[derive(Debug, Clone)]
pub struct FleetPlan {
    /// Where to connect.
    pub target: SocketAddr,
    /// What to speak.
    pub protocol: Protocol,
    /// What flows over its WebSockets.
    pub dialect: Dialect,
    /// Path and query of the request; may hold `{topic}`.
    pub path: String,
    /// Topics: connection k, counted over all fleets, subscribes to topic k mod topics. At least 1.
    pub topics: usize,
    /// Number of the first connection: fleets of one run use different source addresses.
    pub first: usize,
    /// CPU of the receivers.
    pub cpu: Option<usize>,
    /// Check every connection and record latencies.
    pub audit: bool,
    /// What the subscribers do once they are connected.
    pub behaviour: Behaviour,
    /// Handshakes started per second while they connect; as fast as the server answers if absent.
    pub ramp_per_second: Option<f64>,
    /// Receive buffer of each socket in bytes; the system's own (small ones for slow and stalled readers) if absent.
    pub receive_buffer: Option<usize>,
}

impl FleetPlan {
    /// Steady, unaudited subscribers of one topic; the rest is set by struct update.
    pub fn steady(target: SocketAddr, protocol: Protocol, path: String) -> FleetPlan {
        FleetPlan {
            target,
            protocol,
            dialect: Dialect::Plain,
            path,
            topics: 1,
            first: 0,
            cpu: None,
            audit: false,
            behaviour: Behaviour::Steady,
            ramp_per_second: None,
            receive_buffer: None,
        }
    }
}

/// What happened since the last sample, over all receivers.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Deliveries.
    pub events: u64,
    /// Bytes.
    pub bytes: u64,
    /// Connections open now.
    pub connections: u64,
    /// From the stamp to each subscriber: nanoseconds and count; empty without audit.
    pub latencies: Vec<(u64, u64)>,
    /// Events that have reached all of the fleet's connections of their topic; only with audit and steady subscribers.
    pub lasts: Vec<LastArrival>,
    /// How many events each of `lasts` stands for: 1 unless there are too many to tell.
    pub lasts_weight: u64,
    /// Handshakes that ended.
    pub opened: u64,
    /// From the connect to the response head: nanoseconds and count.
    pub handshakes: Vec<(u64, u64)>,
    /// Connections that the server ended.
    pub closed_by_server: u64,
    /// CPU nanoseconds of the receivers.
    pub cpu_ns: u64,
}

struct Member {
    link: Link,
    connections: usize,
    /// Events complete on all of the member's connections since zero.
    complete: u64,
    answer: Option<Word>,
}

/// Running receivers with their connections.
pub struct Fleet {
    plan: FleetPlan,
    members: Vec<Member>,
}

/// Counters over all receivers since zero.
#[derive(Debug)]
pub struct FleetTotals {
    /// Sums; `bytes_min` and `bytes_max` over all connections; scout figures of the first receiver.
    pub totals: Totals,
    /// Latencies of all connections in nanoseconds; empty without audit.
    pub latencies: Histogram<u64>,
}

impl Fleet {
    /// A fleet without connections.
    pub fn new(plan: FleetPlan) -> Fleet {
        Fleet { plan, members: Vec::new() }
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.members.iter().map(|member| member.connections).sum()
    }

    /// Receiver processes now.
    pub fn receivers(&self) -> usize {
        self.members.len()
    }

    /// Opens `more` connections and waits until all are open. Gives the time it took.
    pub fn open(&mut self, more: usize) -> Result<Duration> {
        let start = Instant::now();
        let per_member = sockets_per_process_max().min(SOCKETS_PER_RECEIVER_MAX) as usize;
        if per_member == 0 {
            bail!("the descriptor limit leaves no room for sockets; raise it with `ulimit -Hn`");
        }
        let mut left = more;
        let mut opening = Vec::new();
        while left > 0 {
            if self.members.last().is_none_or(|member| member.connections >= per_member) {
                self.add_member()?;
            }
            let at = self.members.len() - 1;
            let member = &mut self.members[at];
            let connections = left.min(per_member - member.connections);
            member.link.send(&Order::Open { connections })?;
            member.connections += connections;
            left -= connections;
            opening.push(at);
        }
        for at in opening {
            match self.answer(at, OPEN_LIMIT)? {
                Word::Opened { .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
        Ok(start.elapsed())
    }

    fn add_member(&mut self) -> Result<()> {
        let mut link = Link::start("receiver", self.plan.cpu)?;
        link.send(&Order::Setup(Setup {
            target: self.plan.target,
            protocol: self.plan.protocol,
            dialect: self.plan.dialect,
            path: self.plan.path.clone(),
            topics: self.plan.topics,
            first: self.plan.first + self.connections(),
            audit: self.plan.audit,
            behaviour: self.plan.behaviour,
            receive_buffer: self.plan.receive_buffer,
        }))?;
        self.members.push(Member { link, connections: 0, complete: 0, answer: None });
        Ok(())
    }

    /// Sets all counters to zero; `next` is the stamp expected first. Nothing may be in flight.
    pub fn zero(&mut self, next: u64, raw_frame_bytes: usize) -> Result<()> {
        for member in &mut self.members {
            member.link.send(&Order::Zero { next, raw_frame_bytes })?;
        }
        for at in 0..self.members.len() {
            match self.answer(at, ANSWER_LIMIT)? {
                Word::Zeroed => self.members[at].complete = 0,
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Events since zero that are complete on every connection.
    pub fn complete(&self) -> u64 {
        self.members.iter().map(|member| member.complete).min().unwrap_or(0)
    }

    /// Waits until `events` are complete on every connection; gives how many are. `last` is the last sequence
    /// published, for the error's figures.
    pub fn wait_for(&mut self, events: u64, limit: Duration, last: u64) -> Result<u64> {
        let deadline = Instant::now() + limit;
        while self.complete() < events {
            if !self.pump(deadline)? {
                return Err(self.explain_missing(events, limit, last));
            }
        }
        Ok(self.complete())
    }

    fn explain_missing(&mut self, events: u64, limit: Duration, last: u64) -> anyhow::Error {
        let complete = self.complete();
        match self.report(last) {
            Ok(report) => anyhow!(
                "event {} did not reach every subscriber within {limit:?}: {} connections have {} to {} bytes, \
                 the first one {} whole events in {} bytes",
                complete + 1,
                report.totals.connections,
                report.totals.bytes_min,
                report.totals.bytes_max,
                report.totals.scout_events,
                report.totals.scout_bytes
            ),
            Err(error) => error.context(format!("event {events} did not arrive within {limit:?}")),
        }
    }

    /// Waits until there is any word or the deadline; false at the deadline.
    pub fn pump(&mut self, deadline: Instant) -> Result<bool> {
        let links: Vec<&Link> = self.members.iter().map(|member| &member.link).collect();
        let ready = link::wait(&links, deadline)?;
        for &at in &ready {
            self.take_words(at)?;
        }
        Ok(!ready.is_empty() || Instant::now() < deadline)
    }

    fn take_words(&mut self, at: usize) -> Result<()> {
        let member = &mut self.members[at];
        while let Some(word) = member.link.take().with_context(|| format!("receiver {at}"))? {
            match word {
                Word::Progress { events } => member.complete = events,
                Word::Failed { cause } => bail!("receiver {at}: {cause}"),
                answer => member.answer = Some(answer),
            }
        }
        Ok(())
    }

    fn answer(&mut self, at: usize, limit: Duration) -> Result<Word> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = self.members[at].answer.take() {
                return Ok(answer);
            }
            if !self.pump(deadline)? {
                bail!("receiver {at} did not answer within {limit:?}");
            }
        }
    }

    /// The counters since zero, `last` being the last sequence published.
    pub fn report(&mut self, last: u64) -> Result<FleetTotals> {
        for member in &mut self.members {
            member.link.send(&Order::Report { last })?;
        }
        let mut merged = FleetTotals { totals: Totals::default(), latencies: latency_histogram() };
        for at in 0..self.members.len() {
            match self.answer(at, ANSWER_LIMIT)? {
                Word::Report(totals) => merged.add(totals, at == 0),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(merged)
    }

    /// The measurement begins: the clocks of churn and storm start here, and whoever the server has closed or will
    /// close comes back.
    pub fn start(&mut self) -> Result<()> {
        Ok(())
    }

    /// Churn ends and everybody who should reconnects; waits until all have.
    pub fn stop(&mut self) -> Result<()> {
        Ok(())
    }

    /// What happened since the last sample.
    pub fn sample(&mut self) -> Result<Sample> {
        let totals = self.report(0)?.totals;
        Ok(Sample { connections: totals.connections as u64, lasts_weight: 1, ..Sample::default() })
    }

    /// The counters, after checking that `events` arrived on every connection to the byte. A fleet with audit must
    /// also have found nothing.
    pub fn check(&mut self, events: u64, last: u64) -> Result<FleetTotals> {
        let report = self.report(last)?;
        check_totals(&report.totals, events, self.plan.audit)?;
        Ok(report)
    }
}

/// The byte-level audit: every connection has exactly the scout's bytes, and the scout has exactly the events.
fn check_totals(totals: &Totals, events: u64, audited: bool) -> Result<()> {
    if totals.scout_events != events {
        bail!("{events} events were published, the first connection received {}", totals.scout_events);
    }
    if totals.bytes_min != totals.scout_bytes || totals.bytes_max != totals.scout_bytes {
        bail!(
            "{events} events are {} bytes per connection, but connections received {} to {}",
            totals.scout_bytes,
            totals.bytes_min,
            totals.bytes_max
        );
    }
    let expected = events * totals.connections as u64;
    if audited && (!totals.findings.clean() || totals.findings.events != expected) {
        bail!("the audit expected {expected} clean deliveries and found {:?}", totals.findings);
    }
    Ok(())
}

impl FleetTotals {
    fn add(&mut self, other: Totals, first: bool) {
        for &(value, count) in &other.latencies {
            self.latencies.saturating_record_n(value, count);
        }
        let sum = &mut self.totals;
        if first {
            *sum = Totals { latencies: Vec::new(), ..other };
            return;
        }
        sum.connections += other.connections;
        sum.bytes += other.bytes;
        sum.bytes_min = sum.bytes_min.min(other.bytes_min);
        sum.bytes_max = sum.bytes_max.max(other.bytes_max);
        sum.findings.add(&other.findings);
        sum.cpu_ns += other.cpu_ns;
    }
}

fn unexpected(word: &Word) -> anyhow::Error {
    anyhow!("a receiver gave an answer that nobody asked for: {word:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Findings;

    fn totals() -> Totals {
        let findings = Findings { events: 30, ..Findings::default() };
        Totals {
            connections: 10,
            bytes: 6_000,
            bytes_min: 600,
            bytes_max: 600,
            scout_bytes: 600,
            scout_events: 3,
            findings,
            ..Totals::default()
        }
    }

    #[test]
    fn exact_totals_pass_the_check() {
        check_totals(&totals(), 3, true).expect("exact");
    }

    #[test]
    fn one_byte_more_or_less_on_one_connection_is_found() {
        assert!(check_totals(&Totals { bytes_min: 599, ..totals() }, 3, false).is_err());
        assert!(check_totals(&Totals { bytes_max: 601, ..totals() }, 3, false).is_err());
        assert!(check_totals(&totals(), 4, false).is_err());
    }

    #[test]
    fn a_finding_of_the_audit_fails_the_check_only_where_there_was_an_audit() {
        let lossy = Findings { events: 29, lost: 1, ..Findings::default() };
        assert!(check_totals(&Totals { findings: lossy, ..totals() }, 3, true).is_err());
        assert!(check_totals(&Totals { findings: lossy, ..totals() }, 3, false).is_ok());
        let short = Findings { events: 29, ..Findings::default() };
        assert!(check_totals(&Totals { findings: short, ..totals() }, 3, true).is_err());
    }

    #[test]
    fn totals_of_several_receivers_add_up_and_keep_the_extremes() {
        let mut merged = FleetTotals { totals: Totals::default(), latencies: latency_histogram() };
        merged.add(Totals { latencies: vec![(5_000, 2)], ..totals() }, true);
        merged.add(Totals { bytes_min: 1, bytes_max: 700, latencies: vec![(9_000, 1)], ..totals() }, false);
        assert_eq!(merged.totals.connections, 20);
        assert_eq!((merged.totals.bytes_min, merged.totals.bytes_max), (1, 700));
        assert_eq!(merged.totals.findings.events, 60);
        assert_eq!(merged.latencies.len(), 3);
    }
}

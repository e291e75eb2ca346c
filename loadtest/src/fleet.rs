//! All receivers of one set of subscribers, as the coordinator sees them.
//!
//! A fleet spreads its connections over as many receiver processes as the descriptor limit demands.
//! Every wait has a limit; a receiver that fails, ends or falls silent ends the run with its cause.
//! What is said of "every connection" (completion, last arrivals) holds for steady subscribers:
//! those who come and go are counted and audited, and not waited for.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;

use crate::fault::told;
use crate::link::{self, Link};
use crate::process::sockets_per_process_max;
use crate::receiver::{CrowdSetup, Order, Rota, SampleWord, Totals, Word, latency_histogram, record};
use crate::workload::Behaviour;

/// The longest silence of a receiver that opens connections; it reports a stuck opening itself,
/// earlier.
const OPEN_LIMIT: Duration = Duration::from_secs(300);
/// The longest time until a receiver answers an order.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a report waits for the last events of subscribers that came back; their replay takes a
/// moment.
const TAIL_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks at what is still on its way.
const TAIL_LOOK: Duration = Duration::from_millis(20);
/// Sockets of one receiver process, whatever the limit allows: keeps one process's share of a large
/// run small.
pub const SOCKETS_PER_RECEIVER_MAX: u64 = 19_000;

struct Member {
    link: Link,
    connections: usize,
    /// Events complete on all of the member's connections since zero.
    complete: u64,
    answer: Option<Word>,
}

/// Connections of one receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Number of the first.
    pub first: usize,
    /// How many.
    pub connections: usize,
    /// How events go round them.
    pub rota: Rota,
}

impl Group {
    /// True if any of them hears event `number`.
    pub fn hears(&self, number: u64) -> bool {
        let strand = self.rota.place(number).map(|(strand, _)| strand);
        strand.is_some_and(|strand| self.rota.listeners(strand, self.first, self.connections) > 0)
    }
}

/// Running receivers with their connections.
pub struct Fleet {
    plan: CrowdSetup,
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
    pub fn new(plan: CrowdSetup) -> Fleet {
        Fleet { plan, members: Vec::new() }
    }

    /// Connections now.
    pub fn connections(&self) -> usize {
        self.members.iter().map(|member| member.connections).sum()
    }

    /// Number of the first connection of each receiver, and how many it has.
    pub fn groups(&self) -> Vec<Group> {
        let mut first = self.plan.first;
        let group = |member: &Member| {
            first += member.connections;
            let connections = member.connections;
            Group { first: first - connections, connections, rota: self.plan.rota() }
        };
        self.members.iter().map(group).collect()
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
        if self.plan.topics == 0 {
            bail!("subscribers need at least one topic");
        }
        if let Some(rate) = self.plan.ramp_per_second
            && !(rate.is_finite() && rate > 0.0)
        {
            bail!("a ramp of {rate} connections per second never ends; give a number above 0");
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
            let share = connections as f64 / more as f64;
            let per_second = self.plan.ramp_per_second.map(|rate| rate * share);
            member.connections += connections;
            self.order(at, &Order::Open { connections, per_second })?;
            left -= connections;
            opening.push(at);
        }
        let ramp = self.plan.ramp_per_second.map_or(0.0, |rate| more as f64 / rate);
        let limit = OPEN_LIMIT.saturating_add(Duration::try_from_secs_f64(ramp).unwrap_or(Duration::MAX));
        for at in opening {
            match self.answer(at, limit)? {
                Word::Opened { .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
        Ok(start.elapsed())
    }

    fn add_member(&mut self) -> Result<()> {
        let mut link = Link::start("receiver", self.plan.cpu)?;
        let first = self.plan.first + self.connections();
        link.send(&Order::Setup(Box::new(CrowdSetup { first, ..self.plan.clone() })))?;
        self.members.push(Member { link, connections: 0, complete: 0, answer: None });
        Ok(())
    }

    /// Gives a receiver an order. One that has ended said why before it went.
    fn order(&mut self, at: usize, order: &Order) -> Result<()> {
        self.members[at].link.send(order).or_else(|error| {
            self.take_words(at)?;
            Err(error)
        })
    }

    /// Sets all counters to zero; `next` is the number of the event expected first, over all
    /// topics. Nothing may be in flight to steady subscribers.
    pub fn zero(&mut self, next: u64, raw_frame_bytes: usize) -> Result<()> {
        for at in 0..self.members.len() {
            self.order(at, &Order::Zero { next, raw_frame_bytes })?;
        }
        for at in 0..self.members.len() {
            match self.answer(at, ANSWER_LIMIT)? {
                Word::Zeroed => self.members[at].complete = 0,
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Events since zero that are complete on every connection, over all topics; always 0 unless
    /// they are steady. Topics without a connection are complete at any time, so with fewer
    /// connections than topics this runs ahead.
    pub fn complete(&self) -> u64 {
        self.members.iter().map(|member| member.complete).min().unwrap_or(0)
    }

    /// Waits until `events` are complete on every connection; gives how many are. `last` is the
    /// last sequence published, for the error's figures.
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
                Word::Failed { cause, by_server } => {
                    return Err(told(cause, by_server).context(format!("receiver {at}")));
                }
                answer => member.answer = Some(answer),
            }
        }
        Ok(())
    }

    fn answer(&mut self, at: usize, limit: Duration) -> Result<Word> {
        let deadline = Instant::now().checked_add(limit).unwrap_or_else(|| Instant::now() + OPEN_LIMIT);
        loop {
            if let Some(answer) = self.members[at].answer.take() {
                return Ok(answer);
            }
            if !self.pump(deadline)? {
                bail!("receiver {at} did not answer within {limit:?}");
            }
        }
    }

    /// The counters since zero, `last` being the number of the last event published. What is on its
    /// way to subscribers that come back or read on is waited for, for a few seconds.
    pub fn report(&mut self, last: u64) -> Result<FleetTotals> {
        let returns = matches!(self.plan.behaviour, Behaviour::Storm { .. } | Behaviour::Churn { .. });
        let waits = returns || self.plan.newest > 0;
        let deadline = Instant::now() + TAIL_LIMIT;
        loop {
            let report = self.report_now(last)?;
            if !waits || report.totals.tail == 0 || Instant::now() >= deadline {
                return Ok(report);
            }
            std::thread::sleep(TAIL_LOOK);
        }
    }

    fn report_now(&mut self, last: u64) -> Result<FleetTotals> {
        let mut merged = FleetTotals { totals: Totals::default(), latencies: latency_histogram() };
        for (at, word) in self.ask_all(|_, _| Order::Report { last }, ANSWER_LIMIT)?.into_iter().enumerate() {
            match word {
                Word::Report(totals) => merged.add(totals, at == 0),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(merged)
    }

    /// Gives every receiver an order, made from its connections and those of the fleet, and takes
    /// the answers.
    fn ask_all(&mut self, order: impl Fn(usize, usize) -> Order, limit: Duration) -> Result<Vec<Word>> {
        let all = self.connections();
        for at in 0..self.members.len() {
            self.order(at, &order(self.members[at].connections, all))?;
        }
        (0..self.members.len()).map(|at| self.answer(at, limit)).collect()
    }

    /// The measurement begins: the clocks of churn and storm start here, and whoever the server has
    /// closed or will close comes back.
    pub fn start(&mut self) -> Result<()> {
        let per_second = match self.plan.behaviour {
            Behaviour::Churn { per_second } => per_second,
            _ => 0.0,
        };
        let order = |own: usize, all: usize| Order::Start {
            churn_per_second: per_second * own as f64 / all.max(1) as f64,
        };
        for word in self.ask_all(order, ANSWER_LIMIT)? {
            let Word::Started = word else { return Err(unexpected(&word)) };
        }
        Ok(())
    }

    /// Churn and storm end and everybody who is away reconnects; waits until all of them have.
    pub fn stop(&mut self) -> Result<()> {
        for word in self.ask_all(|_, _| Order::Stop, ANSWER_LIMIT)? {
            let Word::Stopped = word else { return Err(unexpected(&word)) };
        }
        Ok(())
    }

    /// What happened since the last sample (or since zero), receiver by receiver.
    pub fn sample(&mut self) -> Result<Vec<SampleWord>> {
        let words = self.ask_all(|_, _| Order::Sample, ANSWER_LIMIT)?;
        words
            .into_iter()
            .map(|word| match word {
                Word::Sample(sample) => Ok(sample),
                other => Err(unexpected(&other)),
            })
            .collect()
    }

    /// Deliveries that the events after `from` up to `to` owe to the connections.
    pub fn owed(&self, from: u64, to: u64) -> u64 {
        self.plan.rota().owed(self.plan.first, self.connections(), from, to)
    }

    /// The counters, after checking that `events` arrived over all topics on every connection to
    /// the byte. The audit, of every connection or of each topic's first, must have found nothing.
    /// `last` is the number of the last event published.
    pub fn check(&mut self, events: u64, last: u64) -> Result<FleetTotals> {
        let report = self.report(last)?;
        let expected = Expected {
            events: (self.plan.rota().strands() == 1).then_some(events),
            deliveries: self.owed(last - events.min(last), last),
            same_bytes: report.totals.same_bytes,
            audited: self.plan.audit,
        };
        check_totals(&report.totals, &expected)?;
        Ok(report)
    }
}

/// What a fleet must have received.
#[derive(Debug, Clone, Copy)]
struct Expected {
    /// Events of every connection, where all have the same topic.
    events: Option<u64>,
    /// Events over all connections.
    deliveries: u64,
    /// All connections of a topic receive the same bytes.
    same_bytes: bool,
    audited: bool,
}

/// The byte-level audit: every connection has exactly its scout's bytes, and the scout has exactly
/// the events.
fn check_totals(totals: &Totals, expected: &Expected) -> Result<()> {
    if let Some(events) = expected.events
        && totals.scout_events != events
    {
        bail!("{events} events were published, the first connection received {}", totals.scout_events);
    }
    let one_length = totals.bytes_min == totals.scout_bytes && totals.bytes_max == totals.scout_bytes;
    let even = totals.uneven == 0 && (expected.events.is_none() || one_length);
    if expected.same_bytes && !even {
        bail!(
            "{} events are {} bytes on the first connection, but connections received {} to {}, {} of them not what \
             others of their topic did",
            totals.scout_events,
            totals.scout_bytes,
            totals.bytes_min,
            totals.bytes_max,
            totals.uneven
        );
    }
    let deliveries = expected.deliveries;
    if totals.deliveries != deliveries {
        bail!("{deliveries} deliveries were expected, {} arrived", totals.deliveries);
    }
    if expected.audited && totals.findings.events != deliveries {
        bail!("the audit expected {deliveries} deliveries and found {:?}", totals.findings);
    }
    if !totals.findings.clean() {
        bail!("the audit expected clean deliveries and found {:?}", totals.findings);
    }
    Ok(())
}

impl FleetTotals {
    fn add(&mut self, other: Totals, first: bool) {
        record(&mut self.latencies, &other.latencies);
        let sum = &mut self.totals;
        if first {
            *sum = Totals { latencies: Vec::new(), ..other };
            return;
        }
        sum.connections += other.connections;
        sum.bytes += other.bytes;
        sum.bytes_min = sum.bytes_min.min(other.bytes_min);
        sum.bytes_max = sum.bytes_max.max(other.bytes_max);
        sum.same_bytes &= other.same_bytes;
        sum.uneven += other.uneven;
        sum.deliveries += other.deliveries;
        sum.findings.add(&other.findings);
        sum.tail += other.tail;
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
            deliveries: 30,
            findings,
            ..Totals::default()
        }
    }

    fn check(totals: &Totals, events: u64, audited: bool) -> Result<()> {
        let expected = Expected { events: Some(events), deliveries: events * 10, same_bytes: true, audited };
        check_totals(totals, &expected)
    }

    #[test]
    fn exact_totals_pass_the_check() {
        check(&totals(), 3, true).expect("exact");
    }

    #[test]
    fn one_byte_more_or_less_on_one_connection_is_found() {
        assert!(check(&Totals { bytes_min: 599, ..totals() }, 3, false).is_err());
        assert!(check(&Totals { bytes_max: 601, ..totals() }, 3, false).is_err());
        assert!(check(&Totals { uneven: 1, ..totals() }, 3, false).is_err());
        assert!(check(&totals(), 4, false).is_err());
    }

    #[test]
    fn a_delivery_too_few_is_found_where_bytes_say_nothing() {
        let expected = Expected { events: None, deliveries: 30, same_bytes: false, audited: false };
        assert!(check_totals(&Totals { bytes_min: 1, ..totals() }, &expected).is_ok());
        assert!(check_totals(&Totals { deliveries: 29, ..totals() }, &expected).is_err());
    }

    #[test]
    fn a_finding_of_the_audit_fails_the_check_also_where_only_some_connections_are_audited() {
        let told = Findings { gaps_told: 1, ..totals().findings };
        for findings in [Findings { lost: 1, ..totals().findings }, told] {
            assert!(check(&Totals { findings, ..totals() }, 3, true).is_err());
            assert!(check(&Totals { findings, ..totals() }, 3, false).is_err());
        }
        let short = Findings { events: 29, ..Findings::default() };
        assert!(check(&Totals { findings: short, ..totals() }, 3, true).is_err());
        assert!(check(&Totals { findings: short, ..totals() }, 3, false).is_ok(), "one connection's");
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

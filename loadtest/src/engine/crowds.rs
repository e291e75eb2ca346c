//! The subscribers of a workload: one fleet per crowd, numbered through, so that connection k
//! subscribes to topic k mod topics whichever fleet holds it.
//!
//! Steady crowds, and those that connect once, are the measure: their deliveries count, and waiting
//! for arrival means waiting for them. The others (slow, stalled, churning, storming, and those
//! that want the latest alone) are load, and are told apart in everything this module gives. If
//! nobody is steady, the latencies are those of everybody who reads.
//!
//! Not here: what an event's latency says about a run; that is `course`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::lasts::Lasts;
use crate::audit::Findings;
use crate::fleet::Fleet;
use crate::receiver::{Counts, CrowdSetup};
use crate::report::progress;
use crate::target::Target;
use crate::unit::grouped;
use crate::workload::{Crowd, Listens, Slow, Workload};

/// One connection in so many opens first.
const VANGUARD_SHARE: usize = 4;
/// And not more of a crowd than this: beyond the handshakes that are under way at once, so that the
/// buffers of as many are there when the memory is first read.
const VANGUARD_MAX: usize = 500;

struct Member {
    fleet: Fleet,
    crowd: Crowd,
}

/// All fleets of a run.
pub struct Crowds {
    members: Vec<Member>,
    lasts: Lasts,
}

/// What was heard of all crowds since the last time.
#[derive(Debug, Default)]
pub struct Heard {
    /// Of steady subscribers.
    pub steady: Counts,
    /// Of all.
    pub all: Counts,
    /// Connections open now.
    pub connections: u64,
    /// Stamp to each subscriber that is measured: nanoseconds and count.
    pub latencies: Vec<(u64, u64)>,
    /// Stamp to the last steady subscriber: nanoseconds and the number of events it stands for.
    pub lasts: Vec<(u64, u64)>,
    /// From the connect to the response head: nanoseconds and count.
    pub handshakes: Vec<(u64, u64)>,
}

impl Crowds {
    /// Opens the vanguard of every crowd: a few connections, with which a server makes what it
    /// needs for any number.
    pub fn vanguard(target: &Target, workload: &Workload, cpu: Option<usize>) -> Result<Crowds> {
        let mut members: Vec<Member> = Vec::new();
        let mut first = 0;
        for crowd in &workload.subscribers {
            let subscription = target.subscription(crowd.protocol, crowd.listens, crowd.slow);
            let Some((path, commands)) = subscription else {
                bail!(
                    "{} offers no such {} subscriptions; give --protocol with another one",
                    target.name,
                    crowd.protocol.label()
                );
            };
            let hears_all = crowd.listens != Listens::One;
            let values = workload.keys * if hears_all { workload.topics } else { 1 };
            let mut fleet = Fleet::new(CrowdSetup {
                dialect: target.dialect,
                commands,
                topics: workload.topics,
                hears_all,
                voices: workload.speakers.len().max(1),
                newest: if crowd.slow == Some(Slow::Latest) { values } else { 0 },
                first,
                cpu,
                audit: true,
                behaviour: crowd.behaviour,
                ramp_per_second: crowd.ramp_per_second,
                tls: target.tls.clone(),
                streams: target.streams(crowd.protocol),
                secret: target.secret.clone(),
                ..CrowdSetup::steady(target.subscribe, crowd.protocol, path)
            });
            fleet.open(vanguard(crowd.connections))?;
            members.push(Member { fleet, crowd: crowd.clone() });
            first += crowd.connections;
        }
        Ok(Crowds { members, lasts: Lasts::default() })
    }

    /// Opens the rest of every crowd, one after the other, and counts from event 1 on. Gives the
    /// times of all handshakes up to now: nanoseconds and count.
    pub fn open_rest(&mut self, name: &str) -> Result<Vec<(u64, u64)>> {
        let mut handshakes = Vec::new();
        for Member { fleet, crowd, .. } in &mut self.members {
            let rest = crowd.connections - fleet.connections();
            if rest > 0 {
                progress(&format!(
                    "{name}: opening {} {} connections",
                    grouped(crowd.connections as u64),
                    crowd.protocol.label()
                ));
                fleet.open(rest)?;
            }
            // Counting anew forgets them.
            fleet.sample()?.into_iter().for_each(|word| handshakes.extend(word.handshakes));
        }
        let steady = self.members.iter().filter(|member| member.is_steady());
        self.lasts = Lasts::new(steady.flat_map(|member| member.fleet.groups()).collect());
        for member in &mut self.members {
            member.fleet.zero(1, 0)?;
        }
        Ok(handshakes)
    }

    /// Connections that were opened so far.
    pub fn opened(&self) -> usize {
        self.members.iter().map(|member| member.fleet.connections()).sum()
    }

    /// Connections that were asked for.
    pub fn connections(&self) -> usize {
        self.members.iter().map(|member| member.crowd.connections).sum()
    }

    /// Receiver processes.
    pub fn receivers(&self) -> usize {
        self.members.iter().map(|member| member.fleet.receivers()).sum()
    }

    /// The clocks of churn and storms start.
    pub fn start(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(|member| member.fleet.start())
    }

    /// Churn ends, everybody who should is connected again.
    pub fn stop(&mut self) -> Result<()> {
        self.members.iter_mut().try_for_each(|member| member.fleet.stop())
    }

    /// Takes the words that the receivers have said, without waiting: a failure is among them.
    pub fn drain(&mut self) -> Result<()> {
        let now = Instant::now();
        self.members.iter_mut().try_for_each(|member| member.fleet.pump(now).map(drop))
    }

    /// True if any crowd is steady.
    pub fn any_steady(&self) -> bool {
        self.members.iter().any(Member::is_steady)
    }

    /// Events that have reached every steady subscriber of their topics; none is missing if nobody
    /// is steady.
    pub fn complete(&self) -> u64 {
        let steady = self.members.iter().filter(|member| member.is_steady());
        steady.map(|member| member.fleet.complete()).min().unwrap_or(u64::MAX)
    }

    /// Waits until `events` have reached every steady subscriber. `last` is the last event
    /// published.
    pub fn wait_for(&mut self, events: u64, limit: Duration, last: u64) -> Result<()> {
        let steady = self.members.iter_mut().filter(|member| member.is_steady());
        steady.into_iter().try_for_each(|member| member.fleet.wait_for(events, limit, last).map(drop))
    }

    /// What happened since the last time.
    pub fn sample(&mut self) -> Result<Heard> {
        let any_steady = self.any_steady();
        let mut heard = Heard::default();
        for member in &mut self.members {
            let steady = member.is_steady();
            for word in member.fleet.sample()? {
                heard.all.add(&word.counts);
                heard.connections += word.connections;
                heard.handshakes.extend(word.handshakes);
                if steady {
                    heard.steady.add(&word.counts);
                    self.lasts.take(&word.lasts, word.lasts_shift, &mut heard.lasts);
                }
                if steady || !any_steady {
                    heard.latencies.extend(word.latencies);
                }
            }
        }
        Ok(heard)
    }

    /// What the audits found, steady crowds and others; `last` is the last event published.
    pub fn findings(&mut self, last: u64) -> Result<(Findings, Findings)> {
        let (mut steady, mut others) = (Findings::default(), Findings::default());
        for member in &mut self.members {
            let found = member.fleet.report(last).context("the audit at the end")?.totals.findings;
            if member.is_steady() { steady.add(&found) } else { others.add(&found) }
        }
        Ok((steady, others))
    }

    /// Steady connections whose bytes are not the whole events of their topic's first one; none
    /// where each connection gets bytes of its own. Says something only while nobody is gone and
    /// nothing is under way.
    pub fn uneven(&mut self, last: u64) -> Result<usize> {
        let mut uneven = 0;
        for member in self.members.iter_mut().filter(|member| member.is_steady()) {
            let totals = member.fleet.report(last).context("the byte audit at the end")?.totals;
            uneven += if totals.same_bytes { totals.uneven } else { 0 };
        }
        Ok(uneven)
    }

    /// Deliveries that the events after `from` up to `to` owe to the steady subscribers.
    pub fn owed(&self, from: u64, to: u64) -> u64 {
        let steady = self.members.iter().filter(|member| member.is_steady());
        steady.map(|member| member.fleet.owed(from, to)).sum()
    }
}

impl Member {
    fn is_steady(&self) -> bool {
        self.crowd.takes_all()
    }
}

/// How many of a crowd's connections open before the memory is first read.
fn vanguard(connections: usize) -> usize {
    (connections / VANGUARD_SHARE).clamp(1, VANGUARD_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vanguard_is_a_quarter_and_at_most_five_hundred() {
        let sizes = [(1, 1), (7, 1), (200, 50), (2_000, 500), (1_000_000, 500)];
        assert!(sizes.iter().all(|&(connections, first)| vanguard(connections) == first));
    }
}

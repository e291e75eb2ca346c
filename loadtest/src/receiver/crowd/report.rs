//! The counters of a crowd: set to zero, and told.

use super::{Crowd, Member, State, late};
use crate::audit::{Audit, Findings};
use crate::framing::Protocol;
use crate::receiver::Totals;
use crate::receiver::tally::{SampleWord, events_of};
use crate::receiver::witness::Witness;
use crate::usage::own_cpu_ns;

impl Crowd {
    /// Sets all counters to zero; `next` is the number of the event expected first. Of those who do
    /// not stay, whoever has received something expects what follows it.
    pub fn zero(&mut self, next: u64, raw_frame_bytes: usize) {
        self.tally.zero(next);
        self.witness = Witness::new(self.rota.strands());
        for at in 0..self.members.len() {
            let raw = (self.setup.protocol == Protocol::Raw).then(|| self.splitter(raw_frame_bytes));
            let member = &mut self.members[at];
            member.bytes = 0;
            let Some(split) = &mut member.split else { continue };
            if let Some(raw) = raw {
                split.splitter = raw;
            }
            let late = late(self.setup.behaviour);
            let steady = self.setup.behaviour.takes_all();
            for (audit, strand) in split.audits.iter_mut().zip(self.rota.heard(member.stream)) {
                let first = self.tally.first_of(strand);
                let begins = audit.is_joining() || audit.owed_unknown();
                if self.setup.newest > 0 {
                    *audit = Audit::newest(first, self.setup.newest);
                } else if steady || (begins && member.state == State::Open && !late) {
                    *audit = Audit::new(first);
                } else {
                    audit.forget();
                }
            }
        }
    }

    /// The counters since zero, `last` being the number of the last event published.
    pub fn report(&self, last: u64) -> Totals {
        let (mut findings, mut tail, mut uneven) = (Findings::default(), 0, 0);
        for member in &self.members {
            let heard = self.rota.heard(member.stream);
            uneven += usize::from(member.bytes != self.tally.scout(heard.start as u32).1);
            // Raw frames carry no stamps.
            let Some(split) = member.split.as_ref().filter(|_| self.setup.protocol != Protocol::Raw) else {
                continue;
            };
            for (audit, strand) in split.audits.iter().zip(heard) {
                findings.add(&audit.found());
                if late(self.setup.behaviour) && self.setup.newest == 0 {
                    continue;
                }
                let last = events_of(last, strand, self.rota.strands());
                tail += match self.witness.after_silence(split.since_ns) {
                    Some(number) if member.state == State::Open && audit.owed_unknown() => {
                        last.saturating_add(1).saturating_sub(self.witness.from(number, strand))
                    }
                    _ => audit.tail(last),
                };
            }
        }
        findings.lost += tail;
        let bytes = || self.members.iter().map(|member| member.bytes);
        let scout = |member: &Member| self.tally.scout(self.rota.heard(member.stream).start as u32);
        let scout = self.members.first().map_or((0, 0), scout);
        Totals {
            connections: self.members.len(),
            bytes: self.tally.bytes(),
            bytes_min: bytes().min().unwrap_or(0),
            bytes_max: bytes().max().unwrap_or(0),
            same_bytes: self.same_bytes,
            uneven,
            scout_bytes: scout.1,
            scout_events: scout.0,
            deliveries: self.tally.deliveries(),
            findings,
            tail,
            latencies: self.tally.latencies(),
            cpu_ns: own_cpu_ns(),
        }
    }

    /// What happened since the last sample, the CPU time excepted.
    pub fn sample(&mut self) -> SampleWord {
        SampleWord { connections: self.open, ..self.tally.sample() }
    }
}

//! What members do by the clock: ramp up, read slowly, are replaced one by one, or storm back all
//! at once.
//!
//! Churn and ramp keep to a schedule from their start: what is late is done at once and delays
//! nothing that comes after. Churn takes the oldest first, but nobody whose break would hide a loss
//! (`witness`).

use std::cmp::Reverse;

use anyhow::Result;
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::{Churn, Crowd, Member, NOBODY, PAUSE_NS, SECOND_NS, State, Task, late};
use crate::receiver::wires::{Wires, slot};
use crate::stamp::now_ns;
use crate::workload::Behaviour;

/// The shortest and the longest time between two reads of a slow reader, and the bytes of one
/// between those.
const SLOW_READ_NS: (u64, u64) = (5_000_000, 100_000_000);
const SLOW_READ_BYTES: u64 = 2_048;
/// Members that a storm breaks before the ring is reaped: what their cancellations and their
/// receives tell must fit into its completions, beside a full set of receive buffers.
const STORM_STEP: usize = 1_000;
/// How long churn waits where nobody may leave.
const CHURN_AGAIN_NS: u64 = 5_000_000;

/// How often a slow reader reads, in nanoseconds, and how many bytes at most.
pub(super) fn slow_read(bytes_per_second: u64) -> (u64, usize) {
    let rate = bytes_per_second.max(1) as f64;
    let (shortest, longest) = SLOW_READ_NS;
    let between = (SLOW_READ_BYTES as f64 / rate * SECOND_NS).clamp(shortest as f64, longest as f64);
    let between = between.max(SECOND_NS / rate);
    ((between as u64), ((rate * between / SECOND_NS) as usize).max(1))
}

impl Crowd {
    /// The measurement begins; so many members per second are replaced from here on.
    pub fn start(&mut self, churn_per_second: f64) {
        let now = now_ns();
        let returns = !self.started;
        (self.started, self.stopped) = (true, false);
        self.timers.retain(|Reverse((_, task))| !matches!(task, Task::Churn | Task::Storm(_)));
        match self.setup.behaviour {
            Behaviour::Churn { .. } if churn_per_second > 0.0 => {
                self.churn = Some(Churn { start_ns: now, per_second: churn_per_second, due: 0 });
                self.schedule_churn();
            }
            Behaviour::Storm { at_seconds, .. } => {
                let due = now.saturating_add((at_seconds * SECOND_NS) as u64);
                self.timers.push(Reverse((due, Task::Storm(0))));
            }
            _ => {}
        }
        if self.setup.behaviour == Behaviour::Once {
            return;
        }
        // Later on whoever goes away has a time to come back.
        for number in 0..self.members.len() as u32 {
            if returns && self.members[number as usize].state == State::Away {
                self.timers.push(Reverse((now + PAUSE_NS, Task::Reconnect(number))));
            }
        }
    }

    /// Churn and storm are over; members that are not here now are waited for. Members that did not
    /// read begin to, if that shows the newest values.
    pub fn stop(&mut self, wires: &mut Wires) -> Result<()> {
        self.stopped = true;
        if late(self.setup.behaviour) && self.setup.newest > 0 && !self.reads_on {
            self.read_on(wires)?;
        }
        if self.started && self.setup.behaviour != Behaviour::Once {
            let away = |number: &u32| self.members[*number as usize].state != State::Open;
            self.awaited = (0..self.members.len() as u32).filter(away).collect();
        }
        Ok(())
    }

    /// Members that were slow or stalled read everything from here on.
    fn read_on(&mut self, wires: &mut Wires) -> Result<()> {
        self.reads_on = true;
        self.timers.retain(|Reverse((_, task))| !matches!(task, Task::Read(..)));
        for number in 0..self.members.len() {
            let member = &self.members[number];
            let Some(socket) = member.socket.as_ref().filter(|_| member.state == State::Open) else {
                continue;
            };
            if self.setup.behaviour == Behaviour::Stalled {
                wires.unwatch(socket)?;
            }
            wires.receive(socket)?;
            let slot = slot(socket) as usize;
            self.be_received(slot, number as u32);
        }
        Ok(())
    }

    /// What the ring receives on a slot is a member's.
    pub(super) fn be_received(&mut self, slot: usize, number: u32) {
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, NOBODY);
        }
        self.by_slot[slot] = number;
    }

    pub(super) fn ramp(&mut self, now: u64) {
        let Some(opening) = &mut self.opening else { return };
        let all = opening.members.len();
        let allowed = match opening.per_second {
            Some(rate) => (((now - opening.start_ns) as f64 / SECOND_NS * rate) as usize + 1).min(all),
            None => all,
        };
        let due = |at: usize| {
            opening.per_second.map(|rate| opening.start_ns + (at as f64 / rate * SECOND_NS) as u64)
        };
        let first = opening.members.start;
        // Who is on another's connection comes with it.
        let members = &self.members;
        let holds = |at: &usize| members[first + at].shared_by > 0;
        self.wanted.extend((opening.asked..allowed).filter(holds).map(|at| ((first + at) as u32, due(at))));
        opening.asked = allowed;
        if let Some(rate) = opening.per_second
            && allowed < all
        {
            let due = opening.start_ns + (allowed as f64 / rate * SECOND_NS) as u64;
            self.timers.push(Reverse((due, Task::Ramp)));
        }
    }

    pub(super) fn read_slowly(&mut self, number: u32, generation: u32, now: u64) -> Result<()> {
        let Behaviour::Slow { bytes_per_second } = self.setup.behaviour else { return Ok(()) };
        let member = &self.members[number as usize];
        let Some(socket) = &member.socket else { return Ok(()) };
        if member.state != State::Open || member.generation != generation {
            return Ok(());
        }
        let (between, bytes) = slow_read(bytes_per_second);
        let mut buffer = std::mem::take(&mut self.buffer);
        let piece = bytes.min(buffer.len());
        let read = rustix::net::recv(socket, &mut buffer[..piece], RecvFlags::DONTWAIT);
        let outcome = match read {
            Ok((0, _)) => self.closed(number, "the server ended the stream"),
            Ok((read, _)) => self.take(number, &mut buffer[..read]),
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => self.closed(number, &format!("the connection broke: {error}")),
        };
        self.buffer = buffer;
        if self.members[number as usize].state == State::Open {
            self.timers.push(Reverse((now + between, Task::Read(number, generation))));
        }
        outcome
    }

    fn schedule_churn(&mut self) {
        if let Some(churn) = &mut self.churn {
            churn.due += 1;
            let after = churn.due as f64 / churn.per_second * SECOND_NS;
            self.timers.push(Reverse((churn.start_ns.saturating_add(after as u64), Task::Churn)));
        }
    }

    /// Replaces the oldest member that may leave.
    pub(super) fn replace_oldest(&mut self, now: u64, wires: &mut Wires) -> Result<()> {
        if self.stopped {
            return Ok(());
        }
        while self.ages.front().is_some_and(|age| !is_current(&self.members, *age)) {
            self.ages.pop_front();
        }
        let leaves = |age: &(u32, u32)| is_current(&self.members, *age) && self.may_leave(age.0, now);
        if let Some(at) = self.ages.iter().position(leaves)
            && let Some((number, _)) = self.ages.remove(at)
        {
            self.schedule_churn();
            return self.leave(number, now, false, wires);
        }
        match self.ages.is_empty() {
            true => self.schedule_churn(),
            // What they lack comes soon, or counts as lost soon.
            false => self.timers.push(Reverse((now + CHURN_AGAIN_NS, Task::Churn))),
        }
        Ok(())
    }

    /// A member is open in this generation from here on.
    pub(super) fn comes_of_age(&mut self, number: u32, generation: u32) {
        if self.ages.len() > 2 * self.members.len() {
            self.ages.retain(|age| is_current(&self.members, *age));
        }
        self.ages.push_back((number, generation));
    }

    /// True unless it lacks what another has and what may still be on its way: a break would hide
    /// whether it comes.
    fn may_leave(&self, number: u32, now: u64) -> bool {
        let member = &self.members[number as usize];
        member.split.as_ref().is_none_or(|split| {
            let lacks = |last: &dyn Fn(usize) -> u64| {
                let mut strands = split.audits.iter().zip(self.rota.heard(member.stream));
                strands.any(|(audit, strand)| audit.tail(last(strand)) > 0)
            };
            !lacks(&|strand| self.witness.known(strand)) || lacks(&|strand| self.witness.settled(strand, now))
        })
    }

    pub(super) fn storm(&mut self, from: u32, now: u64, wires: &mut Wires) -> Result<()> {
        let Behaviour::Storm { share, .. } = self.setup.behaviour else { return Ok(()) };
        if self.stopped {
            return Ok(());
        }
        let mut broken = 0;
        for number in from..self.members.len() as u32 {
            if broken == STORM_STEP {
                // Not before the next turn, which reaps first.
                self.timers.push(Reverse((now + 1, Task::Storm(number))));
                break;
            }
            let up_to = |members: u32| (f64::from(members) * share.clamp(0.0, 1.0)).round();
            if up_to(number + 1) > up_to(number) && self.members[number as usize].state == State::Open {
                self.leave(number, now, true, wires)?;
                broken += 1;
            }
        }
        Ok(())
    }
}

/// True while the connection is the member's and open.
fn is_current(members: &[Member], (number, generation): (u32, u32)) -> bool {
    let member = &members[number as usize];
    member.state == State::Open && member.generation == generation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_reads_keep_to_their_rate_in_pieces_that_are_neither_tiny_nor_large() {
        for rate in [1, 5, 100, 2_048, 20_000, 400_000, 10_000_000] {
            let (between, bytes) = slow_read(rate);
            let kept = bytes as f64 * SECOND_NS / between as f64;
            assert!((0.9..=1.0).contains(&(kept / rate as f64)), "{rate} became {kept}");
            assert!(between >= SLOW_READ_NS.0);
        }
        assert_eq!(slow_read(20_000), (100_000_000, 2_000));
        assert_eq!(slow_read(0).1, 1);
    }
}

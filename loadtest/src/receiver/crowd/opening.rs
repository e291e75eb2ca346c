//! How members get their connections: asked for, begun as soon as there is room for a handshake,
//! and open.
//!
//! The time of a handshake is what its user would wait: where it was due at a time (a ramp, a
//! return, a replacement), it begins then, also if it has to wait for room; where connections are
//! opened as fast as the server answers, with the connect.

use std::cmp::Reverse;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::event::epoll::EventFlags;

use super::behaviour::slow_read;
use super::{
    ADDRESSES_PER_GENERATION, Crowd, GENERATIONS, Member, Opening, SOCKETS_PER_ADDRESS, STUCK_LOOK_NS,
    STUCK_NS, Shaking, State, Task, late,
};
use crate::audit::Audit;
use crate::framing::{Dialect, Splitter};
use crate::receiver::CrowdSetup;
use crate::receiver::handshake::{self, Ask, Attempt, Step};
use crate::receiver::tally::Counting;
use crate::receiver::wires::{Wires, slot};
use crate::stamp::now_ns;
use crate::target::topic_name;
use crate::token::Signer;
use crate::workload::Behaviour;

impl Crowd {
    /// Asks for so many members more, at this rate if one is given.
    pub fn add(&mut self, more: usize, per_second: Option<f64>) {
        let first = self.members.len();
        let shared_by = self.setup.streams.unwrap_or(1).max(1);
        for at in 0..more {
            let index = first + at;
            let stream = ((self.setup.first + index) % self.rota.streams) as u32;
            let is_first = self.tally.join(self.rota.heard(stream));
            let scout = is_first && self.counting != Counting::Deliveries;
            let wanted = scout || self.counting != Counting::Bytes;
            let split = wanted.then(|| self.split(self.audits(stream)));
            self.members.push(Member {
                socket: None,
                secure: None,
                shared_by: if at % shared_by == 0 { shared_by.min(more - at) as u32 } else { 0 },
                carrier: None,
                state: State::Away,
                stream,
                generation: 0,
                scout,
                bytes: 0,
                split,
            });
        }
        let now = now_ns();
        self.opening = Some(Opening {
            start: Instant::now(),
            start_ns: now,
            per_second,
            asked: 0,
            members: first..first + more,
            left: more,
        });
        self.timers.push(Reverse((now, Task::Ramp)));
    }

    /// What a new member of a stream expects on its strands.
    fn audits(&self, stream: u32) -> Vec<Audit> {
        let expects = |strand| match self.setup.behaviour {
            _ if self.setup.newest > 0 => Audit::newest(self.tally.first_of(strand), self.setup.newest),
            Behaviour::Steady | Behaviour::Once => Audit::new(self.tally.first_of(strand)),
            _ => Audit::joining(),
        };
        self.rota.heard(stream).map(expects).collect()
    }

    /// Begins a handshake that was due at a time, or is now.
    pub(super) fn connect(&mut self, number: u32, due_ns: Option<u64>, wires: &mut Wires) -> Result<()> {
        let first = self.setup.first + number as usize;
        let asks = self.asks(first, self.members[number as usize].shared_by as usize)?;
        let member = &mut self.members[number as usize];
        let resume = member.split.as_ref().map(|split| split.resume.as_str()).filter(|id| !id.is_empty());
        let attempt = Attempt {
            asks: &asks,
            block: first / SOCKETS_PER_ADDRESS
                + member.generation as usize % GENERATIONS * ADDRESSES_PER_GENERATION,
            last_event_id: resume,
            door: self.door.as_ref(),
        };
        let begun_ns = now_ns();
        let (socket, handshake) = handshake::start(&self.setup, attempt)?;
        wires.watch(
            &socket,
            number,
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        )?;
        member.socket = Some(socket);
        for member in &mut self.members[number as usize..][..asks.len()] {
            member.state = State::Connecting;
        }
        self.handshakes.insert(number, Shaking { handshake, due_ns: due_ns.unwrap_or(begun_ns), begun_ns });
        Ok(())
    }

    /// What so many members from this one on ask for.
    fn asks(&self, first: usize, members: usize) -> Result<Vec<Ask>> {
        let ask = |index: usize| {
            let token = self.signer.as_ref().map(|signer| token_of(&self.setup, signer, index));
            Ok(Ask { topic: index % self.setup.topics, token: token.transpose()? })
        };
        (first..first + members).map(ask).collect()
    }

    /// A watched socket is ready.
    pub fn ready(&mut self, number: u32, wires: &mut Wires) -> Result<()> {
        let Some(shaking) = self.handshakes.get_mut(&number) else {
            // Only stalled readers are watched once they are open, and only for their end. They
            // learn of it by a reset: the end of the stream waits behind what they do not read.
            return match self.members[number as usize].state {
                State::Open => self.closed(number, "the server ended the stream"),
                _ => Ok(()),
            };
        };
        let member = &mut self.members[number as usize];
        let socket = member.socket.as_ref().context("a handshake has a socket")?;
        let (rest, chunked) = match shaking.handshake.go_on(socket, &self.setup, &mut self.buffer)? {
            Step::Waiting => return Ok(()),
            Step::Done { rest, chunked } => (rest, chunked),
        };
        let now = now_ns();
        self.tally.opened(now.saturating_sub(shaking.due_ns));
        let shaken = self.handshakes.remove(&number);
        let parts = shaken.map(|shaking| shaking.handshake.into_parts());
        let (secure, streams) = parts.unwrap_or_default();
        member.secure = secure;
        wires.unwatch(socket)?;
        let (generation, shared_by) = (member.generation, member.shared_by);
        (number..number + shared_by).for_each(|number| self.has_opened(number, now));
        let member = &mut self.members[number as usize];
        let socket = member.socket.as_ref().context("an open connection has a socket")?;
        match self.setup.behaviour {
            Behaviour::Stalled if !self.reads_on => {
                wires.watch(socket, number, EventFlags::RDHUP | EventFlags::ET)?;
            }
            Behaviour::Slow { bytes_per_second } if !self.reads_on => {
                let due = now + slow_read(bytes_per_second).0;
                self.timers.push(Reverse((due, Task::Read(number, generation))));
            }
            _ => {
                wires.receive(socket)?;
                let slot = slot(socket) as usize;
                self.be_received(slot, number);
            }
        }
        if matches!(self.setup.behaviour, Behaviour::Churn { .. }) {
            self.comes_of_age(number, generation);
        }
        if chunked {
            self.has_chunks(number);
        }
        if let Some(streams) = streams {
            return self.carry(number, *streams);
        }
        if rest.is_empty() {
            return Ok(());
        }
        self.arrived(number, &rest)?;
        self.answer(number)
    }

    /// A member hears what it asked for from now on.
    fn has_opened(&mut self, number: u32, now: u64) {
        let member = &mut self.members[number as usize];
        member.state = State::Open;
        self.open += 1;
        if let Some(split) = &mut member.split
            && split.audits.iter().any(Audit::is_joining)
            && !late(self.setup.behaviour)
        {
            split.since_ns = now;
            self.witness.wait(now, number);
        }
        self.awaited.remove(&number);
        if let Some(opening) = &mut self.opening
            && member.generation == 0
        {
            opening.left -= 1;
        }
    }

    /// Fails if a handshake does not end.
    pub(super) fn look_for_stuck(&mut self, now: u64) -> Result<()> {
        if self.handshakes.is_empty() || now < self.look_ns {
            return Ok(());
        }
        self.look_ns = now + STUCK_LOOK_NS;
        let stuck = |shaking: &&Shaking| now.saturating_sub(shaking.begun_ns) > STUCK_NS;
        match self.handshakes.values().filter(stuck).count() {
            0 => Ok(()),
            stuck => bail!(
                "{stuck} handshakes did not end within {} s: {} of {} connections to {} are open",
                STUCK_NS / 1_000_000_000,
                self.open,
                self.members.len(),
                self.setup.target
            ),
        }
    }

    /// What a member receives comes in chunks, which most servers may cut otherwise on each
    /// connection.
    fn has_chunks(&mut self, number: u32) {
        let even = self.setup.dialect == Dialect::Fanwave;
        self.after_event = if even { b"\r\n".len() as u64 } else { 0 };
        self.same_bytes &= even;
        if !even && self.counting == Counting::Bytes {
            self.counting = Counting::Events;
            self.tally.count_events();
            for at in 0..self.members.len() {
                if self.members[at].split.is_none() {
                    self.members[at].split = Some(self.split(self.audits(self.members[at].stream)));
                }
            }
        }
        if let Some(split) = &mut self.members[number as usize].split {
            split.splitter = Splitter::in_chunks();
        }
    }
}

/// The token of subscriber `index`, which names it: it grants the topic that it hears, or all where
/// it hears several.
fn token_of(setup: &CrowdSetup, signer: &Signer, index: usize) -> Result<String> {
    let topic = topic_name(index % setup.topics);
    let says = std::iter::once(&setup.path).chain(&setup.commands);
    let one =
        !setup.hears_all && setup.commands.len() <= 1 && says.clone().any(|said| said.contains("{topic}"));
    let patterns = if one { topic.as_str() } else { "**" };
    signer.sign(&format!("subscriber-{index}"), &[patterns], &[])
}

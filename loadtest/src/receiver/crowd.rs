//! The subscribers of one receiver: their sockets, what each got, and how they come, go and come back.
//!
//! A member is one subscriber; over time it may have several connections, one at a time. It is `Connecting` while its
//! handshake is under way (watched by epoll), `Open`, `Leaving` from the cancellation of its receive until the ring says that it
//! ended, and `Away` otherwise. Steady members never leave: one that the server ends is a failure. The others come back
//! after a short pause, an event stream with the id of the last whole event that it had, and the audit of such a
//! member goes on over the break; a WebSocket, and whoever replaces a member that churn took away, begins anew. What these
//! lacked when they left and what they are owed from the start is known from the others (`witness`).
//!
//! Whatever has a time (ramp, slow reads, reconnects, churn, the storm) waits in one queue of timers. What the ring
//! reports while it is reaped is only noted and done in [`Crowd::settle`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use fanwave::egress::{ReceiveEnd, Slot};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::Setup;
use super::handshake::{self, Attempt, Handshake, Step};
use super::tally::{Counting, Tally};
use super::wires::{Wires, slot};
use super::witness::Witness;
use crate::audit::Audit;
use crate::framing::chunked::ENDED;
use crate::framing::{Splitter, same_bytes_everywhere};
use crate::stamp::now_ns;
use crate::workload::Behaviour;
use behaviour::slow_read;

mod behaviour;
mod report;

/// Handshakes under way at once: less than any listener's backlog, so that no connection attempt is dropped.
const HANDSHAKES_MAX: usize = 256;
/// Handshakes of which none ends for so long have failed.
const STUCK_MAX: Duration = Duration::from_secs(15);
/// How often stuck handshakes are looked for.
const STUCK_LOOK: Duration = Duration::from_secs(1);
/// Sockets that share a source address. Far below the ports of one address, also while old ones are in TIME_WAIT.
const SOCKETS_PER_ADDRESS: usize = 1_000;
/// Each connection of a member comes from another address, this many further on, so that those which it left behind in
/// TIME_WAIT do not use up the ports of one; after so many it begins again.
const ADDRESSES_PER_GENERATION: usize = 1 << 14;
const GENERATIONS: usize = 900;
/// How long a member that the server closed stays away, in nanoseconds.
const PAUSE_NS: u64 = 200_000_000;
/// Bytes read at once outside of the ring.
const READ_BYTES: usize = 64 << 10;
/// Receive buffer of slow and stalled readers: small, so that what they leave unread stays with the server.
const SMALL_BUFFER_BYTES: usize = 4_096;
const SECOND_NS: f64 = 1e9;
/// How the reason of a splitter begins where the server ended a WebSocket by its own will.
const CLOSED: &str = "the server closed the WebSocket";

/// No member.
const NOBODY: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Away,
    Connecting,
    Open,
    /// Left; comes back at this time.
    Leaving {
        back_ns: u64,
        resumes: bool,
    },
}

#[derive(Debug)]
struct Member {
    socket: Option<OwnedFd>,
    state: State,
    topic: u32,
    /// Connections before this one.
    generation: u32,
    /// True for the one of its topic whose events tell where all connections' events end.
    scout: bool,
    /// Bytes after the handshake, since zero.
    bytes: u64,
    split: Option<Box<Split>>,
}

#[derive(Debug)]
struct Split {
    splitter: Splitter,
    audit: Audit,
    /// The id after which it resumes; empty if it does not.
    resume: String,
    /// When its handshake ended, or it was last told of a gap: what was published later is owed.
    since_ns: u64,
}

/// What is to be done at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// Start the handshakes that the ramp allows.
    Ramp,
    /// Connect a member again.
    Reconnect(u32),
    /// Read for a slow member, in this generation of it.
    Read(u32, u32),
    /// Replace the oldest member.
    Churn,
    /// Break the storm's share of all connections.
    Storm,
}

/// New members on their way.
#[derive(Debug)]
struct Opening {
    start: Instant,
    start_ns: u64,
    per_second: Option<f64>,
    /// Members whose handshake was asked for, and all.
    asked: usize,
    members: std::ops::Range<usize>,
    /// Members that are not open yet.
    left: usize,
}

/// Churn under way.
#[derive(Debug, Clone, Copy)]
struct Churn {
    start_ns: u64,
    per_second: f64,
    /// How many members' time has come so far.
    due: u64,
}

/// The subscribers of one receiver.
#[derive(Debug)]
pub struct Crowd {
    setup: Setup,
    counting: Counting,
    /// All connections of a topic receive the same bytes.
    same_bytes: bool,
    members: Vec<Member>,
    /// Members by the slot of their socket, or [`NOBODY`].
    by_slot: Vec<u32>,
    tally: Tally,
    witness: Witness,
    open: u64,
    opening: Option<Opening>,
    /// Members to be connected as soon as a handshake ends.
    wanted: VecDeque<u32>,
    /// Under way, with the time of their start.
    handshakes: HashMap<u32, (Handshake, u64)>,
    /// When a handshake last ended, or the first of those under way began.
    moved: Instant,
    timers: BinaryHeap<Reverse<(u64, Task)>>,
    /// Members with their generation, oldest connection first; for churn only.
    ages: VecDeque<(u32, u32)>,
    /// From the start of the measurement on, whoever is away comes back.
    started: bool,
    /// Churn and storm are over.
    stopped: bool,
    churn: Option<Churn>,
    /// Members whose return ends the stop.
    awaited: HashSet<u32>,
    /// What the ring reported of members' receives, and members that the server closed by a frame.
    ended: Vec<(u32, ReceiveEnd)>,
    closing: Vec<u32>,
    failed: Option<anyhow::Error>,
    buffer: Vec<u8>,
}

impl Crowd {
    /// Nobody yet.
    pub fn new(mut setup: Setup) -> Crowd {
        setup.topics = setup.topics.max(1);
        let small = match setup.behaviour {
            Behaviour::Slow { bytes_per_second } => {
                Some(SMALL_BUFFER_BYTES.max(2 * slow_read(bytes_per_second).1))
            }
            Behaviour::Stalled => Some(SMALL_BUFFER_BYTES),
            _ => None,
        };
        setup.receive_buffer = setup.receive_buffer.or(small);
        let same_bytes = same_bytes_everywhere(setup.protocol, setup.dialect);
        let counting = match setup.behaviour {
            Behaviour::Steady if setup.audit => Counting::Events,
            Behaviour::Steady if !same_bytes => Counting::Events,
            Behaviour::Steady => Counting::Bytes,
            _ => Counting::Deliveries,
        };
        Crowd {
            counting,
            same_bytes,
            members: Vec::new(),
            by_slot: Vec::new(),
            tally: Tally::new(counting, setup.audit, setup.topics),
            witness: Witness::new(setup.topics),
            open: 0,
            opening: None,
            wanted: VecDeque::new(),
            handshakes: HashMap::new(),
            moved: Instant::now(),
            timers: BinaryHeap::new(),
            ages: VecDeque::new(),
            started: false,
            stopped: false,
            churn: None,
            awaited: HashSet::new(),
            ended: Vec::new(),
            closing: Vec::new(),
            failed: None,
            buffer: vec![0; READ_BYTES],
            setup,
        }
    }

    /// What it receives, and how.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The counters.
    pub fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Asks for so many members more, at this rate if one is given.
    pub fn add(&mut self, more: usize, per_second: Option<f64>) {
        let first = self.members.len();
        for index in first..first + more {
            let topic = ((self.setup.first + index) % self.setup.topics) as u32;
            let first_of_topic = self.tally.join(topic);
            let scout = first_of_topic && self.counting != Counting::Deliveries;
            let split = (scout || self.counting != Counting::Bytes).then(|| {
                let audit = match self.setup.behaviour {
                    Behaviour::Steady => Audit::new(self.tally.first_of(topic)),
                    _ => Audit::joining(),
                };
                self.split(audit)
            });
            self.members.push(Member {
                socket: None,
                state: State::Away,
                topic,
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

    fn split(&self, audit: Audit) -> Box<Split> {
        Box::new(Split { splitter: self.splitter(usize::MAX), audit, resume: String::new(), since_ns: 0 })
    }

    fn splitter(&self, raw_frame_bytes: usize) -> Splitter {
        Splitter::new(self.setup.protocol, self.setup.dialect, raw_frame_bytes)
    }

    /// Seconds that the opening took, once all members asked for are open.
    pub fn all_opened(&mut self) -> Option<f64> {
        let opening = self.opening.take_if(|opening| opening.left == 0)?;
        Some(opening.start.elapsed().as_secs_f64())
    }

    /// True once everybody is back whom the stop waits for.
    pub fn all_back(&self) -> bool {
        self.awaited.is_empty()
    }

    /// True while there are sockets that epoll watches.
    pub fn watches(&self) -> bool {
        !self.handshakes.is_empty() || self.setup.behaviour == Behaviour::Stalled
    }

    /// How long nothing is to be done unless something arrives.
    pub fn rest(&self) -> Option<Duration> {
        let look = (!self.handshakes.is_empty()).then_some(STUCK_LOOK);
        let timer =
            self.timers.peek().map(|Reverse((due, _))| Duration::from_nanos(due.saturating_sub(now_ns())));
        look.into_iter().chain(timer).min()
    }

    /// Does everything whose time has come, and starts handshakes as far as there is room for them.
    pub fn advance(&mut self, wires: &mut Wires) -> Result<()> {
        let now = if self.timers.is_empty() { 0 } else { now_ns() };
        while let Some(&Reverse((due, task))) = self.timers.peek()
            && due <= now
        {
            self.timers.pop();
            match task {
                Task::Ramp => self.ramp(now),
                Task::Reconnect(number) => self.wanted.push_back(number),
                Task::Read(number, generation) => self.read_slowly(number, generation, now)?,
                Task::Churn => self.replace_oldest(now, wires)?,
                Task::Storm => self.storm(now, wires)?,
            }
        }
        while self.handshakes.len() < HANDSHAKES_MAX
            && let Some(number) = self.wanted.pop_front()
        {
            self.connect(number, wires)?;
        }
        if !self.handshakes.is_empty() && self.moved.elapsed() > STUCK_MAX {
            bail!(
                "no handshake ended within {STUCK_MAX:?}: {} of {} connections to {} are open",
                self.open,
                self.members.len(),
                self.setup.target
            );
        }
        Ok(())
    }

    fn connect(&mut self, number: u32, wires: &mut Wires) -> Result<()> {
        let member = &mut self.members[number as usize];
        let index = self.setup.first + number as usize;
        let resume = member.split.as_ref().map(|split| split.resume.as_str()).filter(|id| !id.is_empty());
        let attempt = Attempt {
            topic: member.topic as usize,
            block: index / SOCKETS_PER_ADDRESS
                + member.generation as usize % GENERATIONS * ADDRESSES_PER_GENERATION,
            last_event_id: resume,
        };
        let begun = now_ns();
        let (socket, handshake) = handshake::start(&self.setup, attempt)?;
        wires.watch(
            &socket,
            number,
            EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        )?;
        member.socket = Some(socket);
        member.state = State::Connecting;
        if self.handshakes.is_empty() {
            self.moved = Instant::now();
        }
        self.handshakes.insert(number, (handshake, begun));
        Ok(())
    }

    /// A watched socket is ready.
    pub fn ready(&mut self, number: u32, wires: &mut Wires) -> Result<()> {
        let Some((handshake, begun)) = self.handshakes.get_mut(&number) else {
            // Only stalled readers are watched once they are open, and only for their end. They learn of it by a reset: the
            // end of the stream waits behind what they do not read.
            return match self.members[number as usize].state {
                State::Open => self.closed(number, "the server ended the stream"),
                _ => Ok(()),
            };
        };
        let member = &mut self.members[number as usize];
        let socket = member.socket.as_ref().context("a handshake has a socket")?;
        let (rest, chunked) = match handshake.go_on(socket, &self.setup, &mut self.buffer)? {
            Step::Waiting => return Ok(()),
            Step::Done { rest, chunked } => (rest, chunked),
        };
        let now = now_ns();
        self.tally.opened(now.saturating_sub(*begun));
        self.handshakes.remove(&number);
        self.moved = Instant::now();
        wires.unwatch(socket)?;
        member.state = State::Open;
        self.open += 1;
        if let Some(split) = &mut member.split
            && split.audit.is_joining()
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
        match self.setup.behaviour {
            Behaviour::Stalled => wires.watch(socket, number, EventFlags::RDHUP | EventFlags::ET)?,
            Behaviour::Slow { bytes_per_second } => {
                let due = now + slow_read(bytes_per_second).0;
                self.timers.push(Reverse((due, Task::Read(number, member.generation))));
            }
            Behaviour::Steady | Behaviour::Churn { .. } | Behaviour::Storm { .. } => {
                let slot = slot(socket) as usize;
                if self.by_slot.len() <= slot {
                    self.by_slot.resize(slot + 1, NOBODY);
                }
                self.by_slot[slot] = number;
                wires.receive(socket)?;
            }
        }
        if matches!(self.setup.behaviour, Behaviour::Churn { .. }) {
            self.ages.push_back((number, member.generation));
        }
        if chunked {
            self.has_chunks(number);
        }
        if rest.is_empty() { Ok(()) } else { self.arrived(number, &rest) }
    }

    /// What a member receives comes in chunks, which the server may cut otherwise on each connection.
    fn has_chunks(&mut self, number: u32) {
        self.same_bytes = false;
        if self.counting == Counting::Bytes {
            self.counting = Counting::Events;
            self.tally.count_events();
            for at in 0..self.members.len() {
                if self.members[at].split.is_none() {
                    let audit = Audit::new(self.tally.first_of(self.members[at].topic));
                    self.members[at].split = Some(self.split(audit));
                }
            }
        }
        if let Some(split) = &mut self.members[number as usize].split {
            split.splitter = Splitter::in_chunks();
        }
    }

    /// The ring received something.
    #[inline]
    pub fn received(&mut self, slot: Slot, bytes: &[u8]) {
        let Some(&number) = self.by_slot.get(slot as usize) else { return };
        if number != NOBODY
            && let Err(error) = self.arrived(number, bytes)
        {
            self.failed.get_or_insert(error);
        }
    }

    /// The ring ended a receive.
    pub fn receive_ended(&mut self, slot: Slot, end: ReceiveEnd) {
        match self.by_slot.get(slot as usize) {
            Some(&number) if number != NOBODY => self.ended.push((number, end)),
            _ => {}
        }
    }

    fn arrived(&mut self, number: u32, bytes: &[u8]) -> Result<()> {
        let member = &mut self.members[number as usize];
        let (topic, before) = (member.topic, member.bytes);
        member.bytes += bytes.len() as u64;
        self.tally.add_bytes(topic, bytes.len() as u64);
        let Some(split) = &mut member.split else { return Ok(()) };
        let by_bytes = self.counting == Counting::Bytes;
        let now = if by_bytes { 0 } else { now_ns() };
        let Split { splitter, audit, since_ns, .. } = &mut **split;
        let (tally, witness, scout) = (&mut self.tally, &mut self.witness, member.scout);
        let late = late(self.setup.behaviour);
        let fed = splitter.feed(bytes, |event| {
            if scout {
                tally.scouted(topic, before + event.at as u64);
            }
            if by_bytes {
                return;
            }
            if event.gap {
                audit.gap();
                if !late {
                    *since_ns = now;
                    witness.wait(now, number);
                }
                return;
            }
            if let Some(stamp) = event.stamp {
                witness.saw(topic, stamp, now);
            }
            let is_new = audit.take(event.stamp.map(|stamp| stamp.sequence));
            tally.delivered(topic, event.stamp, is_new, now);
        });
        let fed = match fed {
            Ok(fed) if fed.pings == 0 => Ok(()),
            Ok(_) => {
                let answers = split.splitter.answers();
                let socket = member.socket.as_ref().context("who is pinged has a socket")?;
                // A full send buffer means a server that does not read; it will say so itself.
                match rustix::net::send(socket, &answers, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                    Ok(_) | Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET) => Ok(()),
                    Err(error) => Err(error).context("answering a ping"),
                }
            }
            Err(cause)
                if (cause.starts_with(CLOSED) || cause.starts_with(ENDED))
                    && self.setup.behaviour != Behaviour::Steady =>
            {
                self.closing.push(number);
                Ok(())
            }
            Err(cause) => Err(anyhow!("connection {number}: {cause} after {before} bytes")),
        };
        while let Some(owed) = self.witness.owed() {
            let member = &mut self.members[owed.member as usize];
            // Who left meanwhile, or was told of another gap, waits anew.
            if let Some(split) = &mut member.split
                && split.since_ns == owed.since_ns
            {
                split.audit.owe(self.witness.from(owed.number, member.topic));
            }
        }
        fed
    }

    /// Does what the last reap only noted.
    pub fn settle(&mut self, wires: &mut Wires) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for (number, end) in std::mem::take(&mut self.ended) {
            let member = &self.members[number as usize];
            match (member.state, end) {
                (State::Leaving { back_ns, resumes }, _) => self.come_back(number, back_ns, resumes),
                (State::Open, ReceiveEnd::NoBuffers) => match &member.socket {
                    Some(socket) => wires.receive(socket)?,
                    None => continue,
                },
                (State::Open, ReceiveEnd::EndOfStream) => {
                    self.closed(number, "the server ended the stream")?;
                }
                (State::Open, ReceiveEnd::Failed(errno)) => {
                    let error = std::io::Error::from_raw_os_error(errno);
                    self.closed(number, &format!("the connection broke: {error}"))?;
                }
                (State::Away | State::Connecting, _) => {}
            }
        }
        for number in std::mem::take(&mut self.closing) {
            if self.members[number as usize].state == State::Open {
                self.tally.closed_by_server();
                self.leave(number, now_ns() + PAUSE_NS, true, wires)?;
            }
        }
        Ok(())
    }

    /// The server ended a connection whose receive is not in the ring any more.
    fn closed(&mut self, number: u32, what: &str) -> Result<()> {
        if self.setup.behaviour == Behaviour::Steady {
            let bytes = self.members[number as usize].bytes;
            bail!("connection {number}: {what} after {bytes} bytes");
        }
        self.tally.closed_by_server();
        self.come_back(number, now_ns() + PAUSE_NS, true);
        Ok(())
    }

    /// Ends an open connection from our side, to come back at a time.
    fn leave(&mut self, number: u32, back_ns: u64, resumes: bool, wires: &mut Wires) -> Result<()> {
        let member = &mut self.members[number as usize];
        let Some(socket) = &member.socket else { return Ok(()) };
        if late(self.setup.behaviour) {
            self.come_back(number, back_ns, resumes);
            return Ok(());
        }
        wires.cancel(socket)?;
        member.state = State::Leaving { back_ns, resumes };
        Ok(())
    }

    /// Closes a socket that is not in the ring any more and plans the next connection.
    fn come_back(&mut self, number: u32, back_ns: u64, resumes: bool) {
        let fresh = self.splitter(usize::MAX);
        let late = late(self.setup.behaviour);
        let member = &mut self.members[number as usize];
        if let Some(socket) = member.socket.take()
            && let Some(entry) = self.by_slot.get_mut(slot(&socket) as usize)
            && *entry == number
        {
            *entry = NOBODY;
        }
        member.state = State::Away;
        member.generation += 1;
        self.open -= 1;
        if let Some(split) = &mut member.split {
            let id = std::str::from_utf8(split.splitter.last_id()).unwrap_or_default();
            if !resumes {
                split.resume.clear();
            } else if !id.is_empty() && !id.contains(char::is_control) {
                split.resume.replace_range(.., id);
            }
            // A connection that broke before its first event resumes where the one before it would have.
            if split.resume.is_empty() {
                // Nobody knows what a slow reader would have come to.
                let settled = if late { 0 } else { self.witness.settled(member.topic, now_ns()) };
                split.audit.rejoin(settled);
                split.since_ns = 0;
            }
            split.splitter = fresh;
        }
        if self.started {
            self.timers.push(Reverse((back_ns, Task::Reconnect(number))));
        }
    }
}

/// True for subscribers that leave in the socket what came long ago.
fn late(behaviour: Behaviour) -> bool {
    matches!(behaviour, Behaviour::Slow { .. } | Behaviour::Stalled)
}

//! The subscribers of one receiver: their sockets, what each got, and how they come, go and come
//! back.
//!
//! A member is one subscriber; over time it may have several connections, one at a time. It is
//! `Connecting` while its handshake is under way (watched by epoll), `Open`, `Leaving` from the
//! cancellation of its receive until the ring says that it ended, and `Away` otherwise. Steady
//! members never leave: one that the server ends is a failure. One that connects once stays away
//! when the server has ended it, and lacks everything from there on. The others come back after a
//! short pause, an event stream with the id of the last whole event that it had, and the audit of
//! such a member goes on over the break; a WebSocket, and whoever replaces a member that churn took
//! away, begins anew. What these lacked when they left and what they are owed from the start is
//! known from the others (`witness`).
//!
//! Over HTTP/2 several members share a connection (`layers`): the first of them holds it, and all
//! of them are steady.
//!
//! Slow and stalled members to which only the newest values are owed read on when everything is
//! over: then these must come.
//!
//! Whatever has a time (ramp, slow reads, reconnects, churn, the storm) waits in one queue of
//! timers. What the ring reports while it is reaped is only noted and done in [`Crowd::settle`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use fanwave::egress::{ReceiveEnd, Slot};

use super::CrowdSetup;
use super::handshake::Handshake;
use super::tally::{Counting, Rota, Tally};
use super::wires::{Wires, slot};
use super::witness::Witness;
use crate::audit::Audit;
use crate::fault::server_fault;
use crate::framing::chunked::ENDED;
use crate::framing::http2::Carrier;
use crate::framing::websocket::CLOSED;
use crate::framing::{Protocol, Splitter, same_bytes_everywhere};
use crate::secure::{Door, Secure};
use crate::stamp::now_ns;
use crate::token::Signer;
use crate::workload::Behaviour;
use behaviour::slow_read;

mod behaviour;
mod layers;
mod opening;
mod report;
#[cfg(test)]
mod tests;

/// Handshakes under way at once: less than any listener's backlog, so that no connection attempt is
/// dropped.
const HANDSHAKES_MAX: usize = 256;
/// The same for subscribers of a storm: as many as the usual backlog of 4,096 holds. Beyond it the
/// kernel answers some with a reset.
const STORM_HANDSHAKES_MAX: usize = 4_000;
/// A handshake that takes longer than so many nanoseconds has failed. A server that answers ten per
/// second is still in time.
const STUCK_NS: u64 = 30_000_000_000;
/// How often stuck handshakes are looked for, in nanoseconds.
const STUCK_LOOK_NS: u64 = 1_000_000_000;
/// Sockets that share a source address. Far below the ports of one address, also while old ones are
/// in TIME_WAIT.
const SOCKETS_PER_ADDRESS: usize = 1_000;
/// Each connection of a member comes from another address, this many further on, so that those
/// which it left behind in TIME_WAIT do not use up the ports of one; after so many it begins again.
const ADDRESSES_PER_GENERATION: usize = 1 << 14;
const GENERATIONS: usize = 900;
/// How long a member that the server closed stays away, in nanoseconds.
const PAUSE_NS: u64 = 200_000_000;
/// Bytes read at once outside of the ring.
const READ_BYTES: usize = 64 << 10;
/// Receive buffer of slow and stalled readers: small, so that what they leave unread stays with the
/// server.
const SMALL_BUFFER_BYTES: usize = 4_096;
const SECOND_NS: f64 = 1e9;

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
    /// What its open connection speaks with, if it is TLS.
    secure: Option<Box<Secure>>,
    /// Members on its connection, itself the first; 0 if it is on another's.
    shared_by: u32,
    /// Whose the data on its open connection is, if that is one of HTTP/2.
    carrier: Option<Box<Carrier>>,
    state: State,
    /// What it hears.
    stream: u32,
    /// Connections before this one.
    generation: u32,
    /// True for the one of its stream whose events tell where all connections' events end.
    scout: bool,
    /// Bytes after the handshake, since zero.
    bytes: u64,
    split: Option<Box<Split>>,
}

#[derive(Debug)]
struct Split {
    splitter: Splitter,
    /// One for each strand that it hears.
    audits: Vec<Audit>,
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
    /// Replace a member.
    Churn,
    /// Break the storm's share of all connections, from this member on.
    Storm(u32),
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

/// A handshake under way.
#[derive(Debug)]
struct Shaking {
    handshake: Handshake,
    /// When it was to begin, and when it did. due_ns <= begun_ns.
    due_ns: u64,
    begun_ns: u64,
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
    setup: CrowdSetup,
    /// TLS, and who signs tokens, where there are such.
    door: Option<Door>,
    signer: Option<Signer>,
    rota: Rota,
    counting: Counting,
    /// All connections of a stream receive the same bytes.
    same_bytes: bool,
    /// Bytes that follow the last event of a stream: the end of its chunk.
    after_event: u64,
    members: Vec<Member>,
    /// Members by the slot of their socket, or [`NOBODY`].
    by_slot: Vec<u32>,
    tally: Tally,
    witness: Witness,
    open: u64,
    opening: Option<Opening>,
    /// Members to be connected as soon as there is room, with the time at which that was due if it
    /// was due at one.
    wanted: VecDeque<(u32, Option<u64>)>,
    /// Under way.
    handshakes: HashMap<u32, Shaking>,
    /// When stuck handshakes are looked for next.
    look_ns: u64,
    timers: BinaryHeap<Reverse<(u64, Task)>>,
    /// Members with their generation, oldest connection first; for churn only.
    ages: VecDeque<(u32, u32)>,
    /// From the start of the measurement on, whoever is away comes back.
    started: bool,
    /// Churn and storm are over.
    stopped: bool,
    /// From the end on, members that were slow or stalled read everything.
    reads_on: bool,
    churn: Option<Churn>,
    /// Members whose return ends the stop.
    awaited: HashSet<u32>,
    /// What the ring reported of members' receives, and members that the server closed by a frame.
    ended: Vec<(u32, ReceiveEnd)>,
    closing: Vec<u32>,
    failed: Option<anyhow::Error>,
    buffer: Vec<u8>,
    /// Answers to pings of the member that was looked at last, until they are sent.
    answers: Vec<u8>,
}

impl Crowd {
    /// Nobody yet. An error if what TLS needs cannot be read.
    pub fn new(mut setup: CrowdSetup) -> Result<Crowd> {
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
        let rota = setup.rota();
        let has_streams = setup.streams.is_some();
        if has_streams && (setup.protocol != Protocol::Sse || setup.behaviour != Behaviour::Steady) {
            bail!("HTTP/2 (--h2-streams) is for event streams whose subscribers are steady");
        }
        let door = setup.tls.as_ref().map(|tls| Door::new(tls, has_streams)).transpose()?;
        let counting = match setup.behaviour {
            _ if setup.newest > 0 => Counting::Deliveries,
            // Each stream is looked at: a connection's bytes do not tell whose they are.
            Behaviour::Steady if has_streams => Counting::Events,
            Behaviour::Steady | Behaviour::Once if setup.audit || !same_bytes => Counting::Events,
            Behaviour::Steady | Behaviour::Once => Counting::Bytes,
            _ => Counting::Deliveries,
        };
        Ok(Crowd {
            door,
            signer: setup.secret.as_ref().map(Signer::new).transpose()?,
            counting,
            same_bytes,
            after_event: 0,
            members: Vec::new(),
            by_slot: Vec::new(),
            rota,
            tally: Tally::new(counting, setup.audit, rota.strands()),
            witness: Witness::new(rota.strands()),
            open: 0,
            opening: None,
            wanted: VecDeque::new(),
            handshakes: HashMap::new(),
            look_ns: 0,
            timers: BinaryHeap::new(),
            ages: VecDeque::new(),
            started: false,
            stopped: false,
            reads_on: false,
            churn: None,
            awaited: HashSet::new(),
            ended: Vec::new(),
            closing: Vec::new(),
            failed: None,
            buffer: vec![0; READ_BYTES],
            answers: Vec::new(),
            setup,
        })
    }

    /// What it receives, and how.
    pub fn setup(&self) -> &CrowdSetup {
        &self.setup
    }

    /// The counters.
    pub fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    fn split(&self, audits: Vec<Audit>) -> Box<Split> {
        Box::new(Split { splitter: self.splitter(usize::MAX), audits, resume: String::new(), since_ns: 0 })
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
        if !self.ended.is_empty() {
            return Some(Duration::ZERO);
        }
        let look = (!self.handshakes.is_empty()).then_some(Duration::from_nanos(STUCK_LOOK_NS));
        let timer =
            self.timers.peek().map(|Reverse((due, _))| Duration::from_nanos(due.saturating_sub(now_ns())));
        look.into_iter().chain(timer).min()
    }

    /// Does everything whose time has come, and starts handshakes as far as there is room for them.
    pub fn advance(&mut self, wires: &mut Wires) -> Result<()> {
        let waits = !self.timers.is_empty() || !self.handshakes.is_empty();
        let now = if waits { now_ns() } else { 0 };
        while let Some(&Reverse((due, task))) = self.timers.peek()
            && due <= now
        {
            self.timers.pop();
            match task {
                Task::Ramp => self.ramp(now),
                Task::Reconnect(number) => self.wanted.push_back((number, Some(due))),
                Task::Read(number, generation) => self.read_slowly(number, generation, now)?,
                Task::Churn => self.replace_oldest(now, wires)?,
                Task::Storm(from) => self.storm(from, now, wires)?,
            }
        }
        let handshakes_max = match self.setup.behaviour {
            Behaviour::Storm { .. } if self.started => STORM_HANDSHAKES_MAX,
            _ => HANDSHAKES_MAX,
        };
        while self.handshakes.len() < handshakes_max
            && let Some((number, due_ns)) = self.wanted.pop_front()
        {
            self.connect(number, due_ns, wires)?;
        }
        self.look_for_stuck(now)
    }

    /// The ring received something.
    #[inline]
    pub fn received(&mut self, slot: Slot, bytes: &mut [u8]) {
        let Some(&number) = self.by_slot.get(slot as usize) else { return };
        if number != NOBODY
            && let Err(error) = self.take(number, bytes)
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

    /// A member has so many bytes more. Gives how many it had.
    #[inline]
    fn counted(&mut self, number: u32, bytes: u64) -> u64 {
        let member = &mut self.members[number as usize];
        let before = member.bytes;
        member.bytes += bytes;
        self.tally.add_bytes(self.rota.heard(member.stream).start as u32, bytes);
        before
    }

    /// A member heard these bytes.
    fn arrived(&mut self, number: u32, bytes: &[u8]) -> Result<()> {
        let before = self.counted(number, bytes.len() as u64);
        let member = &mut self.members[number as usize];
        let heard = self.rota.heard(member.stream);
        let first = heard.start as u32;
        let Some(split) = &mut member.split else { return Ok(()) };
        let by_bytes = self.counting == Counting::Bytes;
        let raw = self.setup.protocol == Protocol::Raw;
        let now = if by_bytes { 0 } else { now_ns() };
        let Split { splitter, audits, since_ns, .. } = &mut **split;
        let (tally, witness, scout) = (&mut self.tally, &mut self.witness, member.scout);
        let late = late(self.setup.behaviour);
        let (after_event, rota) = (self.after_event, self.rota);
        let fed = splitter.feed(bytes, |event| {
            if scout {
                // With what follows it: otherwise those ahead would make up for those that lack it.
                tally.scouted(first, before + event.at as u64 + after_event);
            }
            if raw {
                return;
            }
            if event.gap {
                (0..).zip(&mut *audits).for_each(|(at, audit)| audit.gap(u64::from(at == 0)));
                if !late && !by_bytes {
                    *since_ns = now;
                    witness.wait(now, number);
                }
                return;
            }
            // What it does not hear is nobody's.
            let place = event.stamp.and_then(|stamp| rota.place(stamp.sequence));
            let place = place.filter(|(strand, _)| heard.contains(strand));
            let (strand, sequence) = place.map_or((heard.start, None), |(strand, at)| (strand, Some(at)));
            let stamp = event.stamp.filter(|_| sequence.is_some());
            if let Some(stamp) = stamp.filter(|_| !by_bytes) {
                witness.saw(stamp, now);
            }
            let is_new = audits[strand - heard.start].take(sequence);
            if !by_bytes {
                tally.delivered(strand as u32, stamp, is_new, now);
            }
        });
        let fed = match fed {
            Ok(fed) if fed.pings == 0 => Ok(()),
            Ok(_) => {
                self.answers.extend(split.splitter.answers());
                Ok(())
            }
            Err(cause)
                if (cause.starts_with(CLOSED) || cause.starts_with(ENDED))
                    && self.setup.behaviour != Behaviour::Steady =>
            {
                self.closing.push(number);
                Ok(())
            }
            Err(cause) => Err(server_fault(format!("connection {number}: {cause} after {before} bytes"))),
        };
        while let Some(owed) = self.witness.owed() {
            let member = &mut self.members[owed.member as usize];
            // Who left meanwhile, or was told of another gap, waits anew.
            if let Some(split) = &mut member.split
                && split.since_ns == owed.since_ns
            {
                for (audit, strand) in split.audits.iter_mut().zip(self.rota.heard(member.stream)) {
                    audit.owe(self.witness.from(owed.number, strand));
                }
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
                // The receive ended by itself; its cancellation is still to come.
                (State::Leaving { .. }, _) if wires.asks() => self.ended.push((number, end)),
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
                // Only a member that leaves cancels its receive.
                (State::Open, ReceiveEnd::Reset | ReceiveEnd::CarrierGone | ReceiveEnd::Against(_)) => {
                    unreachable!("these sockets carry no streams")
                }
                (State::Open, ReceiveEnd::Insecure(_)) => unreachable!("no ring of ours speaks TLS"),
                (State::Open, ReceiveEnd::Cancelled) | (State::Away | State::Connecting, _) => {}
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
            return Err(server_fault(format!("connection {number}: {what} after {bytes} bytes")));
        }
        self.tally.closed_by_server();
        self.come_back(number, now_ns() + PAUSE_NS, true);
        Ok(())
    }

    /// Ends an open connection from our side, to come back at a time.
    fn leave(&mut self, number: u32, back_ns: u64, resumes: bool, wires: &mut Wires) -> Result<()> {
        let member = &mut self.members[number as usize];
        let Some(socket) = &member.socket else { return Ok(()) };
        if late(self.setup.behaviour) && !self.reads_on {
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
        member.secure = None;
        member.state = State::Away;
        member.generation += 1;
        self.open -= 1;
        // What one that stays away has not got by now, it never gets.
        let once = self.setup.behaviour == Behaviour::Once;
        if let Some(split) = member.split.as_mut().filter(|_| !once) {
            let id = std::str::from_utf8(split.splitter.last_id()).unwrap_or_default();
            if !resumes {
                split.resume.clear();
            } else if !id.is_empty() && !id.contains(char::is_control) {
                split.resume.replace_range(.., id);
            }
            // A connection that broke before its first event resumes where the one before it would
            // have.
            if split.resume.is_empty() {
                // Nobody knows what a slow reader would have come to.
                let now = now_ns();
                for (audit, strand) in split.audits.iter_mut().zip(self.rota.heard(member.stream)) {
                    audit.rejoin(if late { 0 } else { self.witness.settled(strand, now) });
                }
                split.since_ns = 0;
            }
            split.splitter = fresh;
        }
        if self.started && !once {
            self.timers.push(Reverse((back_ns, Task::Reconnect(number))));
        }
    }
}

/// True for subscribers that leave in the socket what came long ago.
fn late(behaviour: Behaviour) -> bool {
    matches!(behaviour, Behaviour::Slow { .. } | Behaviour::Stalled)
}

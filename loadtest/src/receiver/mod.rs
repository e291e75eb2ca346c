//! The receiver process: holds the subscribers' sockets and counts what arrives.
//!
//! One thread, one epoll (edge-triggered), one read buffer shared by all connections. It counts *bytes*, so its cost
//! does not depend on a protocol's framing. Where events end is learned from one connection, the scout: all
//! connections receive the same bytes, so event k has arrived everywhere once all bytes together are connections ×
//! the scout's bytes at the end of event k. With one event in flight that is exact for every single connection; with
//! more in flight it is the connections' average. With `audit` every connection is split and checked, and the time
//! from the stamp to the arrival is recorded.
//!
//! A stalled receiver finishes the handshakes and then never reads. A receiver never reconnects: a connection that
//! ends is a failure, told with its cause, and ends the process.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use serde::{Deserialize, Serialize};

use crate::audit::{Audit, Findings};
use crate::framing::{Protocol, Splitter};
use crate::link::{Lines, write_line};
use crate::stamp::now_ns;
use crate::target::Dialect;
use crate::workload::Behaviour;

pub mod handshake;

use handshake::{Attempt, Handshake, Step};

/// The shared read buffer. Larger than what a socket holds under the largest burst, so one read drains it.
const READ_BYTES: usize = 1 << 20;
/// Events taken from epoll at once; progress is told after each such round.
const EPOLL_EVENTS: usize = 1_024;
/// Handshakes under way at once: less than any listener's backlog, so that no connection attempt is dropped.
const HANDSHAKES_MAX: usize = 256;
/// An opening in which no handshake ends for so long has failed.
const OPENING_STUCK_MAX: Duration = Duration::from_secs(15);
/// Sockets that share a source address. Far below the ports of one address, also while old ones are in TIME_WAIT.
const SOCKETS_PER_ADDRESS: usize = 1_000;
/// Longest latency that the histogram tells apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// The epoll token of standard input; sockets have their index.
const STDIN_TOKEN: u64 = u64::MAX;

/// What the coordinator asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Say what is to be received, once, before all else.
    Setup(Setup),
    /// Open this many connections more. Answered by [`Word::Opened`].
    Open {
        /// How many.
        connections: usize,
    },
    /// Set all counters to zero. Answered by [`Word::Zeroed`]. Nothing may be in flight.
    Zero {
        /// The stamp expected first from here on.
        next: u64,
        /// Frame length of [`Protocol::Raw`].
        raw_frame_bytes: usize,
    },
    /// Tell the counters. Answered by [`Word::Report`].
    Report {
        /// The last sequence that was published.
        last: u64,
    },
}

/// What a receiver process receives, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Where to connect.
    pub target: SocketAddr,
    /// What to speak.
    pub protocol: Protocol,
    /// What flows over its WebSockets.
    pub dialect: Dialect,
    /// Path and query of the request, perhaps with `{topic}`; unused for [`Protocol::Raw`].
    pub path: String,
    /// Topics, at least 1.
    pub topics: usize,
    /// Number of the first connection over all receivers: spreads topics and source addresses.
    pub first: usize,
    /// Check every connection and record latencies.
    pub audit: bool,
    /// What the subscribers do once they are connected.
    pub behaviour: Behaviour,
    /// Receive buffer of each socket in bytes.
    pub receive_buffer: Option<usize>,
}

/// When an event had reached all connections of its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastArrival {
    /// Sequence within its topic, from 1.
    pub event: u64,
    /// Its topic.
    pub topic: usize,
    /// The time in its stamp.
    pub stamp_ns: u64,
    /// When it reached the last of them.
    pub arrival_ns: u64,
}

/// What a receiver says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum Word {
    /// All connections asked for are open.
    Opened {
        /// Seconds it took.
        seconds: f64,
    },
    /// Counters are zero.
    Zeroed,
    /// This many events since zero have arrived everywhere (see the module's header for what that means).
    Progress {
        /// Events since zero.
        events: u64,
    },
    /// The counters.
    Report(Totals),
    /// It is over; the process ends.
    Failed {
        /// One line.
        cause: String,
    },
}

/// Counters since zero.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Open connections.
    pub connections: usize,
    /// Bytes of all connections.
    pub bytes: u64,
    /// Bytes of the connection that received least.
    pub bytes_min: u64,
    /// Bytes of the connection that received most.
    pub bytes_max: u64,
    /// Bytes of the scout up to the end of its last whole event.
    pub scout_bytes: u64,
    /// Whole events that the scout received.
    pub scout_events: u64,
    /// The audit's findings over all connections; all zero without audit.
    pub findings: Findings,
    /// Latencies from stamp to arrival: nanoseconds and count.
    pub latencies: Vec<(u64, u64)>,
    /// CPU nanoseconds of this process since its start.
    pub cpu_ns: u64,
}

/// A latency histogram in nanoseconds, three significant digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3).expect("constant bounds are valid")
}

/// Runs a receiver on standard input and output until the input ends. A failure is told to the coordinator, which
/// words it for the user.
pub fn run() -> Result<ExitCode> {
    match Receiver::new().and_then(|mut receiver| receiver.serve()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let cause = format!("{error:#}");
            say(&Word::Failed { cause }).map_err(|_| error)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

struct Connection {
    socket: OwnedFd,
    /// Bytes after the handshake, since zero.
    bytes: u64,
    splitter: Option<Box<(Splitter, Audit)>>,
}

/// An `Open` order under way.
struct Opening {
    start: Instant,
    /// When a handshake last ended.
    moved: Instant,
    /// Connections there shall be in the end.
    until: usize,
}

struct Receiver {
    epoll: OwnedFd,
    setup: Option<Setup>,
    connections: Vec<Connection>,
    handshakes: HashMap<usize, Handshake>,
    opening: Option<Opening>,
    buffer: Vec<u8>,
    /// Bytes of all connections since zero.
    bytes: u64,
    /// Bytes of connection 0 at the end of its events that are not complete everywhere, oldest first.
    scout_ends: VecDeque<u64>,
    scout_bytes: u64,
    scout_events: u64,
    /// Events complete everywhere, and how many of them have been told.
    complete: u64,
    told: u64,
    latencies: Histogram<u64>,
}

impl Receiver {
    fn new() -> Result<Receiver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stdin = std::io::stdin();
        epoll::add(&epoll, &stdin, epoll::EventData::new_u64(STDIN_TOKEN), epoll::EventFlags::IN)?;
        Ok(Receiver {
            epoll,
            setup: None,
            connections: Vec::new(),
            handshakes: HashMap::new(),
            opening: None,
            buffer: vec![0; READ_BYTES],
            bytes: 0,
            scout_ends: VecDeque::new(),
            scout_bytes: 0,
            scout_events: 0,
            complete: 0,
            told: 0,
            latencies: latency_histogram(),
        })
    }

    fn serve(&mut self) -> Result<()> {
        let mut lines = Lines::default();
        let mut events = Vec::with_capacity(EPOLL_EVENTS);
        let tick = Timespec { tv_sec: 1, tv_nsec: 0 };
        loop {
            self.open_more()?;
            let timeout = self.opening.is_some().then_some(&tick);
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    STDIN_TOKEN => {
                        if !lines.fill(std::io::stdin())? {
                            return Ok(());
                        }
                        while let Some(order) = lines.next()? {
                            self.obey(order)?;
                        }
                    }
                    index => self.ready(index as usize, event.flags)?,
                }
            }
            self.tell_progress()?;
        }
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Setup(setup) => self.setup = Some(setup),
            Order::Open { connections } => {
                let now = Instant::now();
                let until = self.connections.len() + connections;
                self.opening = Some(Opening { start: now, moved: now, until });
            }
            Order::Zero { next, raw_frame_bytes } => {
                self.zero(next, raw_frame_bytes)?;
                say(&Word::Zeroed)?;
            }
            Order::Report { last } => say(&Word::Report(self.report(last)))?,
        }
        Ok(())
    }

    /// Starts connections as long as there are some to open, and notices when all are open.
    fn open_more(&mut self) -> Result<()> {
        let Some(opening) = &self.opening else { return Ok(()) };
        let setup = self.setup.as_ref().context("no setup was given")?;
        while self.connections.len() < opening.until && self.handshakes.len() < HANDSHAKES_MAX {
            let index = self.connections.len();
            let number = setup.first + index;
            let attempt = Attempt {
                topic: number % setup.topics,
                block: number / SOCKETS_PER_ADDRESS,
                last_event_id: None,
            };
            let (socket, handshake) = handshake::start(setup, attempt)?;
            let flags = epoll::EventFlags::IN
                | epoll::EventFlags::OUT
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::ET;
            epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), flags)?;
            let splitter = (setup.audit || index == 0)
                .then(|| Box::new((Splitter::new(setup.protocol, usize::MAX), Audit::new(1))));
            self.connections.push(Connection { socket, bytes: 0, splitter });
            self.handshakes.insert(index, handshake);
        }
        if self.handshakes.is_empty() {
            say(&Word::Opened { seconds: opening.start.elapsed().as_secs_f64() })?;
            self.opening = None;
        } else if opening.moved.elapsed() > OPENING_STUCK_MAX {
            bail!(
                "no handshake ended within {OPENING_STUCK_MAX:?}: {} of {} connections to {} are open",
                self.connections.len() - self.handshakes.len(),
                opening.until,
                setup.target
            );
        }
        Ok(())
    }

    fn ready(&mut self, index: usize, flags: epoll::EventFlags) -> Result<()> {
        if !self.handshakes.is_empty() && self.handshakes.contains_key(&index) {
            return self.shake_hands(index, flags);
        }
        if flags.intersects(
            epoll::EventFlags::IN
                | epoll::EventFlags::RDHUP
                | epoll::EventFlags::HUP
                | epoll::EventFlags::ERR,
        ) {
            self.read(index, flags)?;
        }
        Ok(())
    }

    fn shake_hands(&mut self, index: usize, flags: epoll::EventFlags) -> Result<()> {
        let setup = self.setup.as_ref().context("no setup was given")?;
        let handshake = self.handshakes.get_mut(&index).expect("looked up by the caller");
        let socket = &self.connections[index].socket;
        let rest = match handshake.go_on(socket, setup, &mut self.buffer)? {
            Step::Waiting => return Ok(()),
            Step::Done(rest) => rest,
        };
        self.handshakes.remove(&index);
        if let Some(opening) = &mut self.opening {
            opening.moved = Instant::now();
        }
        if setup.behaviour == Behaviour::Stalled {
            epoll::delete(&self.epoll, socket)?;
            return Ok(());
        }
        // From here on only arrivals matter; the edge of what arrived meanwhile is not lost, since this reads on.
        let wanted = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(index as u64), wanted)?;
        self.arrived(index, &rest)?;
        self.read(index, flags)
    }

    /// Reads until the socket is empty.
    fn read(&mut self, index: usize, flags: epoll::EventFlags) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let ended =
            flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let outcome = loop {
            match rustix::net::recv(&self.connections[index].socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((0, _)) => break Err(self.over(index, "the server ended the stream")),
                Ok((read, _)) => {
                    if let Err(error) = self.arrived(index, &buffer[..read]) {
                        break Err(error);
                    }
                    // A short read empties the socket, and whatever comes later is a new edge; only the end of
                    // the stream may be known already.
                    if read < buffer.len() && !ended {
                        break Ok(());
                    }
                }
                Err(Errno::AGAIN) => break Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => break Err(self.over(index, &format!("the connection broke: {error}"))),
            }
        };
        self.buffer = buffer;
        outcome
    }

    fn over(&self, index: usize, what: &str) -> anyhow::Error {
        anyhow!("connection {index}: {what} after {} bytes", self.connections[index].bytes)
    }

    fn arrived(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let connection = &mut self.connections[index];
        let before = connection.bytes;
        connection.bytes += bytes.len() as u64;
        self.bytes += bytes.len() as u64;
        let Some(split) = &mut connection.splitter else { return Ok(()) };
        let (splitter, audit) = &mut **split;
        let auditing = self.setup.as_ref().is_some_and(|setup| setup.audit);
        let now = if auditing { now_ns() } else { 0 };
        let (latencies, scout_ends) = (&mut self.latencies, &mut self.scout_ends);
        let mut scouted = 0;
        splitter
            .feed(bytes, |event| {
                if auditing {
                    audit.take(event.stamp.map(|stamp| stamp.sequence));
                    if let Some(stamp) = event.stamp {
                        latencies.saturating_record(now.saturating_sub(stamp.time_ns));
                    }
                }
                if index == 0 {
                    scouted += 1;
                    scout_ends.push_back(before + event.at as u64);
                }
            })
            .map_err(|cause| anyhow!("connection {index}: {cause} after {before} bytes"))?;
        if scouted > 0 {
            self.scout_events += scouted;
            self.scout_bytes = *self.scout_ends.back().expect("just pushed");
        }
        Ok(())
    }

    fn tell_progress(&mut self) -> Result<()> {
        let connections = self.connections.len() as u64;
        while let Some(&end) = self.scout_ends.front()
            && self.bytes >= end * connections
        {
            self.scout_ends.pop_front();
            self.complete += 1;
        }
        if self.complete > self.told {
            self.told = self.complete;
            say(&Word::Progress { events: self.complete })?;
        }
        Ok(())
    }

    fn zero(&mut self, next: u64, raw_frame_bytes: usize) -> Result<()> {
        let setup = self.setup.as_ref().context("no setup was given")?;
        for connection in &mut self.connections {
            connection.bytes = 0;
            if let Some(split) = &mut connection.splitter {
                split.1 = Audit::new(next);
                if setup.protocol == Protocol::Raw {
                    split.0 = Splitter::new(Protocol::Raw, raw_frame_bytes);
                }
            }
        }
        self.bytes = 0;
        self.scout_ends.clear();
        (self.scout_bytes, self.scout_events, self.complete, self.told) = (0, 0, 0, 0);
        self.latencies.reset();
        Ok(())
    }

    fn report(&self, last: u64) -> Totals {
        let auditing = self.setup.as_ref().is_some_and(|setup| setup.audit);
        let mut findings = Findings::default();
        if auditing {
            for split in self.connections.iter().filter_map(|connection| connection.splitter.as_ref()) {
                findings.add(&split.1.findings(last));
            }
        }
        let bytes = || self.connections.iter().map(|connection| connection.bytes);
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Totals {
            connections: self.connections.len(),
            bytes: self.bytes,
            bytes_min: bytes().min().unwrap_or(0),
            bytes_max: bytes().max().unwrap_or(0),
            scout_bytes: self.scout_bytes,
            scout_events: self.scout_events,
            findings,
            latencies: self
                .latencies
                .iter_recorded()
                .map(|value| (value.value_iterated_to(), value.count_at_value()))
                .collect(),
            cpu_ns: cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64,
        }
    }
}

fn say(word: &Word) -> Result<()> {
    write_line(std::io::stdout().lock(), word)
}

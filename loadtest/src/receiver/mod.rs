//! The receiver process: holds the subscribers' sockets and counts what arrives.
//!
//! One thread. A connection is opened by `handshake`, then its socket is in the io_uring of `wires`
//! with a multishot receive until it ends; slow readers are read by the clock, stalled ones never.
//! `crowd` knows who is subscribed and comes and goes, `tally` what arrived, `witness` what others
//! must have, and this module obeys the coordinator, one JSON line per order. A coordinator that
//! does not read holds no receive up: progress is told when there is room for it, the newest alone.
//! `bare` is the loop that the receiver's own cost is measured against.
//!
//! TLS stands between the socket and the splitter (`secure`): `handshake` first lets it speak on
//! the socket, and what the ring received passes through it before it is split. Ring, members,
//! audit and counters know of plain bytes alone. Behind it HTTP/2 gives each of the streams of a
//! connection its own: each is a member, and the first of them holds the socket.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use fanwave::egress::{Completion, EgressRing, ReceiveEnd};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::audit::Findings;
use crate::fault::is_by_server;
use crate::framing::{Dialect, Protocol};
use crate::link::{Lines, has_room, write_line};
use crate::secure::TlsClient;
use crate::token::Secret;
use crate::usage::own_cpu_ns;
use crate::workload::Behaviour;
use crowd::Crowd;
use wires::Wires;

mod bare;
mod crowd;
pub mod handshake;
mod tally;
mod wires;
mod witness;

pub use tally::{Counts, Rota, SampleWord, is_told, record};

/// Longest latency that the histogram tells apart, in nanoseconds.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// The priority of a receiver that gives way: low, and on a busy machine still some of the CPU.
const NICE: i32 = 10;

/// How soon progress is told that there was no room for.
const UNTOLD: Duration = Duration::from_millis(2);

/// What the coordinator asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// Say what is to be received, once, before all else.
    Setup(Box<CrowdSetup>),
    /// Open this many connections more. Answered by [`Word::Opened`].
    Open {
        /// How many.
        connections: usize,
        /// Handshakes started per second; as fast as the server answers if absent.
        #[serde(default)]
        per_second: Option<f64>,
    },
    /// Set all counters to zero. Answered by [`Word::Zeroed`]. Nothing may be in flight.
    Zero {
        /// Number of the event expected first from here on, over all topics.
        next: u64,
        /// Frame length of [`Protocol::Raw`].
        raw_frame_bytes: usize,
    },
    /// Tell the counters. Answered by [`Word::Report`].
    Report {
        /// Number of the last event published, over all topics.
        last: u64,
    },
    /// Tell what happened since the last sample. Answered by [`Word::Sample`].
    Sample,
    /// The measurement begins. Answered by [`Word::Started`].
    Start {
        /// Connections to be replaced per second, of this receiver alone.
        churn_per_second: f64,
    },
    /// Churn and storm are over. Answered by [`Word::Stopped`] once everybody is back.
    Stop,
}

/// What to subscribe to, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CrowdSetup {
    /// Where to connect.
    pub target: SocketAddr,
    /// What to speak.
    pub protocol: Protocol,
    /// What flows over its WebSockets.
    pub dialect: Dialect,
    /// Path and query of the request, perhaps with `{topic}`; unused for [`Protocol::Raw`].
    pub path: String,
    /// What each connection says in the subscriptions that it gives as commands, perhaps with
    /// `{topic}`; for [`Protocol::Json`].
    #[serde(default)]
    pub commands: Vec<String>,
    /// Topics: connection k, counted over all fleets, names topic k mod topics. At least 1.
    pub topics: usize,
    /// Each connection hears all topics, not only the one that it names.
    #[serde(default)]
    pub hears_all: bool,
    /// Publishers that take turns on each topic.
    #[serde(default = "one")]
    pub voices: usize,
    /// How many values the events that a connection hears go round, if only the newest event of
    /// each is owed; 0 if all are.
    #[serde(default)]
    pub newest: usize,
    /// Number of the first connection over all receivers: spreads topics and source addresses.
    pub first: usize,
    /// CPU of the receivers.
    #[serde(skip)]
    pub cpu: Option<usize>,
    /// Check every connection and record latencies.
    pub audit: bool,
    /// What the subscribers do once they are connected.
    pub behaviour: Behaviour,
    /// Handshakes started per second while they connect; as fast as the server answers if absent.
    #[serde(skip)]
    pub ramp_per_second: Option<f64>,
    /// Receive buffer of each socket in bytes; the system's own (small ones for slow and stalled
    /// readers) if absent.
    pub receive_buffer: Option<usize>,
    /// Only receive and add up lengths, as the loop that a receiver is measured against.
    #[serde(default)]
    pub bare: bool,
    /// How they speak TLS, if they do.
    #[serde(default)]
    pub tls: Option<TlsClient>,
    /// How many of them share a connection, as streams of HTTP/2, if they speak that: steady ones,
    /// with [`Protocol::Sse`].
    #[serde(default)]
    pub streams: Option<usize>,
    /// What their tokens are signed with, if they bring any.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// The receiver gives way to others on its CPU.
    #[serde(default)]
    pub gives_way: bool,
}

impl CrowdSetup {
    /// Steady, unaudited subscribers of one topic of a fanwave; the rest is set by struct update.
    pub fn steady(target: SocketAddr, protocol: Protocol, path: String) -> CrowdSetup {
        CrowdSetup {
            target,
            protocol,
            dialect: Dialect::Fanwave,
            path,
            commands: Vec::new(),
            topics: 1,
            hears_all: false,
            voices: 1,
            newest: 0,
            first: 0,
            cpu: None,
            audit: false,
            behaviour: Behaviour::Steady,
            ramp_per_second: None,
            receive_buffer: None,
            bare: false,
            tls: None,
            streams: None,
            secret: None,
            gives_way: false,
        }
    }
}

impl CrowdSetup {
    /// How events go round what the connections hear.
    pub fn rota(&self) -> Rota {
        let streams = if self.hears_all { 1 } else { self.topics.max(1) };
        Rota { streams, voices: self.voices.max(1) }
    }
}

fn one() -> usize {
    1
}

/// When an event had reached all connections that hear it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastArrival {
    /// Its number, over all topics.
    pub number: u64,
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
    /// This many events since zero have arrived everywhere (see the module's header for what that
    /// means).
    Progress {
        /// Events since zero.
        events: u64,
    },
    /// The counters.
    Report(Totals),
    /// What happened since the last sample.
    Sample(SampleWord),
    /// The measurement has begun.
    Started,
    /// Everybody is back.
    Stopped,
    /// It is over; the process ends.
    Failed {
        /// One line.
        cause: String,
        /// True if the server caused it.
        by_server: bool,
    },
}

/// Counters since zero.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Subscribers.
    pub connections: usize,
    /// Bytes of all connections.
    pub bytes: u64,
    /// Bytes of the connection that received least.
    pub bytes_min: u64,
    /// Bytes of the connection that received most.
    pub bytes_max: u64,
    /// True if all connections of a topic receive the same bytes.
    #[serde(default)]
    pub same_bytes: bool,
    /// Connections that have more or fewer bytes than the whole events of their topic's first.
    pub uneven: usize,
    /// Bytes of the first connection up to the end of its last whole event.
    pub scout_bytes: u64,
    /// Whole events that the first connection received.
    pub scout_events: u64,
    /// Events delivered to all connections; without audit those that have arrived everywhere.
    pub deliveries: u64,
    /// The audit's findings over all connections; those of each topic's first one where arrival is
    /// counted in bytes.
    pub findings: Findings,
    /// Of the lost ones those at the end, which may still be on their way.
    pub tail: u64,
    /// Latencies from stamp to arrival: nanoseconds and count.
    pub latencies: Vec<(u64, u64)>,
    /// CPU nanoseconds of this process since its start.
    pub cpu_ns: u64,
}

/// A latency histogram in nanoseconds, three significant digits.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3).expect("constant bounds are valid")
}

/// Runs a receiver on standard input and output until the input ends. A failure is told to the
/// coordinator, which words it for the user.
pub fn run() -> Result<ExitCode> {
    match Receiver::new().and_then(|mut receiver| receiver.serve()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let (cause, by_server) = (format!("{error:#}"), is_by_server(&error));
            say(&Word::Failed { cause, by_server }).map_err(|_| error)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The process: what it waits for, and the crowd once it was set up.
struct Receiver {
    wires: Wires,
    lines: Lines,
    crowd: Option<Crowd>,
    /// Seen by the last reap: the end of the orders, and a failure of the channel that they come
    /// by.
    over: bool,
    orders_failed: Option<anyhow::Error>,
    stopping: bool,
    /// Progress that is to be told.
    untold: Option<u64>,
    /// CPU time at the last sample.
    sampled_cpu_ns: u64,
}

impl Receiver {
    fn new() -> Result<Receiver> {
        Ok(Receiver {
            wires: Wires::new()?,
            lines: Lines::default(),
            crowd: None,
            over: false,
            orders_failed: None,
            stopping: false,
            untold: None,
            sampled_cpu_ns: own_cpu_ns(),
        })
    }

    /// Obeys until the orders end.
    fn serve(&mut self) -> Result<()> {
        loop {
            self.turn()?;
            while let Some(order) = self.lines.next()? {
                self.obey(order)?;
            }
            if self.over {
                return Ok(());
            }
            let Some(crowd) = &mut self.crowd else { continue };
            self.untold = crowd.tally().progress().or(self.untold);
            if let Some(events) = self.untold
                && has_room(std::io::stdout())
            {
                self.untold = None;
                say(&Word::Progress { events })?;
            }
            if let Some(seconds) = crowd.all_opened() {
                say(&Word::Opened { seconds })?;
                if crowd.setup().bare {
                    return bare::serve(&mut self.wires, &mut self.lines, crowd);
                }
            }
            if self.stopping && crowd.all_back() {
                self.stopping = false;
                say(&Word::Stopped)?;
            }
        }
    }

    /// Waits for something to happen and takes it in.
    fn turn(&mut self) -> Result<()> {
        let mut ready = Vec::new();
        match &mut self.crowd {
            None => self.wires.wait(None)?,
            Some(crowd) => {
                crowd.advance(&mut self.wires)?;
                let rest = crowd.rest().into_iter().chain(self.untold.map(|_| UNTOLD)).min();
                match crowd.watches() {
                    true => ready = self.wires.wait_watching(rest)?,
                    false => self.wires.wait(rest)?,
                }
            }
        }
        let orders = self.wires.order_slot();
        let (lines, crowd) = (&mut self.lines, &mut self.crowd);
        let (over, failed) = (&mut self.over, &mut self.orders_failed);
        let mut listen_again = false;
        self.wires.ring.reap(&mut |completion| match completion {
            Completion::Received { slot, bytes } if slot == orders => {
                if let Err(error) = lines.push(bytes) {
                    failed.get_or_insert(error);
                }
            }
            Completion::Received { slot, bytes } => {
                if let Some(crowd) = crowd {
                    crowd.received(slot, bytes);
                }
            }
            Completion::ReceiveEnded { slot, end: ReceiveEnd::NoBuffers } if slot == orders => {
                listen_again = true;
            }
            Completion::ReceiveEnded { slot, .. } if slot == orders => *over = true,
            Completion::ReceiveEnded { slot, end } => {
                if let Some(crowd) = crowd {
                    crowd.receive_ended(slot, end);
                }
            }
            // Nothing else was asked of the ring.
            _ => {}
        });
        if let Some(error) = self.orders_failed.take() {
            return Err(error);
        }
        if listen_again {
            self.wires.receive_slot(orders)?;
        }
        if let Some(crowd) = &mut self.crowd {
            crowd.settle(&mut self.wires)?;
            for number in ready {
                crowd.ready(number, &mut self.wires)?;
            }
        }
        Ok(())
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        if let Order::Setup(setup) = order {
            if setup.gives_way {
                rustix::process::setpriority_process(None, NICE).context("giving way to others")?;
            }
            self.crowd = Some(Crowd::new(*setup)?);
            return Ok(());
        }
        let crowd = self.crowd.as_mut().context("no setup was given")?;
        match order {
            Order::Setup(_) => {}
            Order::Open { connections, per_second } => crowd.add(connections, per_second),
            Order::Zero { next, raw_frame_bytes } => {
                crowd.zero(next, raw_frame_bytes);
                self.untold = None;
                say(&Word::Zeroed)?;
            }
            Order::Report { last } => say(&Word::Report(crowd.report(last)))?,
            Order::Sample => {
                let used = own_cpu_ns();
                let mut sample = crowd.sample();
                sample.counts.cpu_ns = used - self.sampled_cpu_ns;
                self.sampled_cpu_ns = used;
                say(&Word::Sample(sample))?;
            }
            Order::Start { churn_per_second } => {
                crowd.start(churn_per_second);
                say(&Word::Started)?;
            }
            Order::Stop => {
                crowd.stop(&mut self.wires)?;
                self.stopping = true;
            }
        }
        Ok(())
    }
}

fn say(word: &Word) -> Result<()> {
    write_line(std::io::stdout().lock(), word)
}

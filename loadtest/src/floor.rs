//! The floor: what this kernel charges for sending the same bytes over the same kind of sockets.
//!
//! The sender is a process of its own that accepts plain TCP connections on loopback and, per
//! burst, does one bare `send(2)` of the same buffer on each of them, one after the other. Nothing
//! else runs in it but the answer to each opening request: no protocol, no queue, no event loop.
//! The same bytes can be sent by io_uring instead (see `ring`). Sockets are blocking, with
//! TCP_NODELAY and the system's buffer sizes, as a server has them.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use serde::{Deserialize, Serialize};

use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::link::{Lines, Link, write_line};
use crate::receiver::CrowdSetup;
use crate::receiver::handshake::FLOOR_HEAD;
use ring::Ring;
pub use ring::SENDS_PER_ENTER;
pub use stamped::Shape;
use stamped::{SSE_HEAD, Stamped};

mod ring;
mod stamped;

/// How the sender sends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sends {
    /// One `send(2)` per socket.
    #[default]
    Loop,
    /// io_uring SENDs, many per system call.
    Ring,
}

/// Connections waiting to be accepted; the receivers never have as many handshakes under way.
const BACKLOG: i32 = 4_096;
/// The longest time until the sender process has done an order other than a burst.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of one burst. Far above what a socket takes at once, and no burden on memory.
const BURST_BYTES_MAX: usize = 64 << 20;

/// What the coordinator asks of the sender process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Order {
    /// Accept this many connections. Answered by [`Word::Accepted`].
    Accept {
        /// How many.
        connections: usize,
    },
    /// Send so many bytes per burst from here on.
    Burst {
        /// Bytes of one `send(2)`.
        bytes: usize,
    },
    /// Send bursts of stamped frames from here on, numbered from 1.
    Stamped(Shape),
    /// Send one burst on every connection.
    Go,
    /// Send so from here on; all connections are there. Answered by [`Word::Ready`].
    By {
        /// How.
        sends: Sends,
    },
}

/// What the sender process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Word {
    /// Where it listens; said once, at the start.
    Listening {
        /// Address.
        address: SocketAddr,
    },
    /// All connections are accepted.
    Accepted,
    /// The next burst may come.
    Ready,
}

/// The sender process: obeys orders on standard input until it ends.
pub fn run() -> Result<()> {
    let listener = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        Some(ipproto::TCP),
    )?;
    rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
    rustix::net::bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    rustix::net::listen(&listener, BACKLOG)?;
    let address = rustix::net::getsockname(&listener)?;
    write_line(std::io::stdout(), &Word::Listening { address: address.try_into()? })?;

    let stdin = std::io::stdin();
    let mut lines = Lines::default();
    let mut sockets: Vec<OwnedFd> = Vec::new();
    let mut burst = Vec::new();
    let mut stamped: Option<Stamped> = None;
    let mut ring: Option<Ring> = None;
    while lines.fill(&stdin)? {
        while let Some(order) = lines.next()? {
            match order {
                Order::Accept { connections } => {
                    for _ in 0..connections {
                        let socket = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC)?;
                        let wants_stream = read_head(&socket)?;
                        send_all(&socket, if wants_stream { SSE_HEAD } else { FLOOR_HEAD })?;
                        sockets.push(socket);
                    }
                    write_line(std::io::stdout(), &Word::Accepted)?;
                }
                Order::Burst { bytes } => {
                    (burst, stamped) = (vec![b'x'; bytes], None);
                    if let Some(ring) = &mut ring {
                        ring.load(&burst);
                    }
                }
                Order::Stamped(shape) => stamped = Some(Stamped::new(shape)),
                Order::Go => {
                    if let Some(stamped) = &mut stamped {
                        stamped.load(&mut burst);
                    }
                    match &mut ring {
                        Some(ring) => {
                            if stamped.is_some() {
                                ring.load(&burst);
                            }
                            ring.send_all(&sockets)?;
                        }
                        None => sockets.iter().try_for_each(|socket| send_all(socket, &burst))?,
                    }
                }
                Order::By { sends } => {
                    ring = match sends {
                        Sends::Loop => None,
                        Sends::Ring => Some(Ring::new(&sockets, &burst)?),
                    };
                    write_line(std::io::stdout(), &Word::Ready)?;
                }
            }
        }
    }
    Ok(())
}

/// Reads a request head and forgets it; true if it asked for an event stream.
fn read_head(socket: &OwnedFd) -> Result<bool> {
    let mut head = Vec::new();
    let mut buffer = [0; 1_024];
    while !head.ends_with(b"\r\n\r\n") {
        match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((0, _)) => bail!("a receiver left before its request"),
            Ok((read, _)) => head.extend_from_slice(&buffer[..read]),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("the floor's receive"),
        }
    }
    Ok(memchr::memmem::find(&head, b"text/event-stream").is_some())
}

fn send_all(socket: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("the floor's send"),
        }
    }
    Ok(())
}

/// The floor's sender and its receivers, connected.
pub struct Floor {
    // Dropped in this order: receivers first, so that none sees its sender go.
    fleet: Fleet,
    sender: Link,
    /// Bytes of one frame and frames of one burst, as the sender knows them.
    shape: (usize, u64),
}

impl Floor {
    /// Starts the sender on `sender_cpu` and `connections` subscribers on `receiver_cpu`.
    pub fn start(connections: usize, sender_cpu: usize, receiver_cpu: usize, first: usize) -> Result<Floor> {
        Floor::start_for(connections, sender_cpu, |target| CrowdSetup {
            first,
            cpu: Some(receiver_cpu),
            ..CrowdSetup::steady(target, Protocol::Raw, String::new())
        })
    }

    /// Starts the sender on `sender_cpu` and subscribers as `plan` describes them for its address.
    pub fn start_for(
        connections: usize,
        sender_cpu: usize,
        plan: impl FnOnce(SocketAddr) -> CrowdSetup,
    ) -> Result<Floor> {
        let mut sender = Link::start("floor-sender", Some(sender_cpu))?;
        let target = match sender.next(Instant::now() + ANSWER_LIMIT)? {
            Some(Word::Listening { address }) => address,
            other => bail!("the floor's sender did not start: {other:?}"),
        };
        let mut floor = Floor { fleet: Fleet::new(plan(target)), sender, shape: (0, 0) };
        floor.open(connections)?;
        Ok(floor)
    }

    /// Connects `more` subscribers.
    pub fn open(&mut self, more: usize) -> Result<()> {
        let connections = self.fleet.connections() + more;
        crate::process::check_sockets("the floor's sender", connections as u64)?;
        self.sender.send(&Order::Accept { connections: more })?;
        self.fleet.open(more)?;
        match self.sender.next(Instant::now() + ANSWER_LIMIT)? {
            Some(Word::Accepted) => Ok(()),
            other => bail!("the floor's sender did not accept {connections} connections: {other:?}"),
        }
    }

    /// Process id of the sender.
    pub fn pid(&self) -> u32 {
        self.sender.pid()
    }

    /// The floor's subscribers.
    pub fn fleet(&mut self) -> &mut Fleet {
        &mut self.fleet
    }

    /// From here on the sender sends so. Fails with the cause where io_uring is not to be had.
    pub fn sends_by(&mut self, sends: Sends) -> Result<()> {
        self.sender.send(&Order::By { sends })?;
        match self.sender.next(Instant::now() + ANSWER_LIMIT)? {
            Some(Word::Ready) => Ok(()),
            other => bail!("the floor's sender did not change over to {sends:?}: {other:?}"),
        }
    }

    /// From here on a burst is `frames` frames of `frame_bytes` each. Zeroes the receivers'
    /// counters.
    pub fn shape(&mut self, frame_bytes: usize, frames: u64) -> Result<()> {
        let bytes = frame_bytes.saturating_mul(frames as usize);
        if bytes > BURST_BYTES_MAX {
            bail!("{frames} frames of {frame_bytes} bytes in flight are more than {BURST_BYTES_MAX} bytes");
        }
        self.sender.send(&Order::Burst { bytes })?;
        self.shape = (frame_bytes, frames);
        self.fleet.zero(1, frame_bytes)
    }

    /// From here on a burst is stamped frames, numbered from 1. Zeroes the receivers' counters.
    pub fn shape_stamped(&mut self, shape: Shape) -> Result<()> {
        let frame_bytes = shape.frame_bytes();
        if frame_bytes.saturating_mul(shape.frames as usize) > BURST_BYTES_MAX {
            bail!("{} events in one burst are more than {BURST_BYTES_MAX} bytes", shape.frames);
        }
        self.sender.send(&Order::Stamped(shape))?;
        self.shape = (frame_bytes, shape.frames);
        self.fleet.zero(1, frame_bytes)
    }

    /// Sends one burst to every subscriber and waits until all have it.
    pub fn burst(&mut self, limit: Duration) -> Result<()> {
        let target = self.fleet.complete() + self.shape.1;
        self.sender.send(&Order::Go)?;
        self.fleet.wait_for(target, limit, target)?;
        Ok(())
    }
}

//! Subscribers of a cluster: event streams that move between nodes and come back by
//! `Last-Event-ID`, each delivery checked against what the others have.
//!
//! One thread with epoll holds all of them. A subscriber whose connection ends goes to any node at
//! once; where one refuses it tries another a moment later. Nobody tells it which nodes are alive.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use memchr::memmem;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use super::journal::{Delivery, Findings, Journal, parts};
use super::stand::Places;
use super::watch::Watch;
use crate::framing::chunked::Chunks;
use crate::receiver::latency_histogram;
use crate::stamp::{Stamp, now_ns};
use crate::target::topic_name;

/// Before a subscriber tries the next node after one has refused it.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// From one look at orders and moves to the next.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Bytes of a response head, and of an event.
const HEAD_BYTES_MAX: usize = 16 << 10;
const EVENT_BYTES_MAX: usize = 17 << 20;
/// Bytes read at once, and events taken from epoll at once.
const READ_BYTES: usize = 64 << 10;
const EPOLL_EVENTS: usize = 256;
/// How long the last events may take to reach everybody.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// Who subscribes to what.
pub struct Plan {
    /// Where the nodes are.
    pub places: Places,
    /// The event of each topic that its subscribers begin behind, as its id.
    pub begin: Vec<String>,
    /// How many there are over all topics.
    pub subscribers: usize,
    /// Moves per second over all of them.
    pub moves_per_second: f64,
    /// Moves after which there are no more.
    pub moves_max: u64,
    /// Seed of who moves where.
    pub seed: u64,
    pub watch: Arc<Watch>,
    pub counters: Arc<Counters>,
}

/// What others may look at meanwhile.
#[derive(Debug, Default)]
pub struct Counters {
    /// Subscribers that are connected now.
    pub connected: AtomicU64,
    /// Moves so far.
    pub moves: AtomicU64,
}

/// What all of them have.
#[derive(Debug)]
pub struct Heard {
    /// One for each topic.
    pub journals: Vec<Journal>,
    pub findings: Findings,
    pub moves: u64,
    /// Connections that ended without having been asked to.
    pub broken: u64,
    /// From the first offer of an event to each subscriber, and to the last one of its topic, in
    /// nanoseconds.
    pub each: Histogram<u64>,
    pub last: Histogram<u64>,
}

/// One subscriber.
struct Peer {
    topic: usize,
    /// Events of its topic's journal that it has.
    place: usize,
    /// The id of the last one.
    id: String,
    /// The node that it is or was at.
    node: usize,
    link: Option<Link>,
    /// Connections so far: what epoll says of an older one is of no interest.
    tries: u32,
    /// The mark at which it was well last.
    well: u64,
}

struct Link {
    socket: TcpStream,
    stream: Stream,
}

/// The loop's own.
struct Movers {
    plan: Plan,
    peers: Vec<Peer>,
    /// Subscribers of each topic.
    of_topic: Vec<usize>,
    epoll: OwnedFd,
    /// Who is to try again, and when; the earliest first.
    away: std::collections::VecDeque<(Instant, usize)>,
    dice: SmallRng,
    heard: Heard,
}

/// Runs until the sequence of each topic's last event comes by `last`, and all have these. What is
/// not there within a minute is lost.
pub fn run(plan: Plan, last: &Receiver<Vec<u64>>) -> Result<Heard> {
    let mut movers = Movers::new(plan)?;
    let mut events = Vec::with_capacity(EPOLL_EVENTS);
    let mut buffer = vec![0; READ_BYTES];
    let start = Instant::now();
    let (mut ends, mut deadline) = (None, None);
    loop {
        match last.try_recv() {
            Ok(sequences) => {
                ends = Some(sequences);
                deadline = Some(Instant::now() + DRAIN_LIMIT);
            }
            Err(TryRecvError::Disconnected) if ends.is_none() => bail!("the run was given up"),
            Err(_) => {}
        }
        match &ends {
            None => movers.move_some(start.elapsed().as_secs_f64()),
            Some(ends) if movers.have_all(ends) || deadline.is_some_and(|end| Instant::now() > end) => {
                return Ok(movers.finish());
            }
            Some(_) => {}
        }
        movers.retry();
        let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK_EVERY.as_nanos() as i64 };
        events.clear();
        match epoll::wait(&movers.epoll, spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for events"),
        }
        for event in events.drain(..) {
            let token = event.data.u64();
            movers.ready((token >> 32) as usize, token as u32, &mut buffer)?;
        }
    }
}

impl Movers {
    fn new(plan: Plan) -> Result<Movers> {
        let journals = plan.begin.iter().map(|id| Journal::behind(id));
        let journals = journals.collect::<Option<Vec<_>>>().context("an id of fanwave's form")?;
        let topics = plan.begin.len();
        let nodes = plan.places.read().unwrap_or_else(PoisonError::into_inner).len();
        let peer = |number: usize| Peer {
            topic: number % topics,
            place: 0,
            id: plan.begin[number % topics].clone(),
            // Topics over all nodes, too.
            node: (number + number / topics) % nodes,
            link: None,
            tries: 0,
            well: u64::MAX,
        };
        let peers: Vec<Peer> = (0..plan.subscribers).map(peer).collect();
        let mut of_topic = vec![0; topics];
        peers.iter().for_each(|peer| of_topic[peer.topic] += 1);
        let now = Instant::now();
        let heard = Heard {
            journals,
            findings: Findings::default(),
            moves: 0,
            broken: 0,
            each: latency_histogram(),
            last: latency_histogram(),
        };
        Ok(Movers {
            away: (0..peers.len()).map(|number| (now, number)).collect(),
            peers,
            of_topic,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll")?,
            dice: SmallRng::seed_from_u64(plan.seed),
            heard,
            plan,
        })
    }

    /// Moves as many as are due after so many seconds.
    fn move_some(&mut self, seconds: f64) {
        let due = ((seconds * self.plan.moves_per_second) as u64).min(self.plan.moves_max);
        while self.heard.moves < due {
            let number = self.dice.random_range(0..self.peers.len());
            // Who is away is on its move already.
            if self.peers[number].link.is_none() {
                return;
            }
            self.heard.moves += 1;
            self.plan.counters.moves.store(self.heard.moves, Ordering::Relaxed);
            self.leave(number);
            self.connect(number);
        }
    }

    /// Drops the connection, wherever in an event it is.
    fn leave(&mut self, number: usize) {
        if self.peers[number].link.take().is_some_and(|link| link.stream.is_open()) {
            self.plan.counters.connected.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn retry(&mut self) {
        let now = Instant::now();
        while self.away.front().is_some_and(|(when, _)| *when <= now) {
            if let Some((_, number)) = self.away.pop_front() {
                self.connect(number);
            }
        }
    }

    /// Goes to another node, if there is one; to the first one as it was spread.
    fn connect(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        let address = {
            let places = self.plan.places.read().unwrap_or_else(PoisonError::into_inner);
            if peer.tries > 0 && places.len() > 1 {
                peer.node = (peer.node + self.dice.random_range(1..places.len())) % places.len();
            }
            places[peer.node].subscribe
        };
        peer.tries += 1;
        match open(address, &topic_name(peer.topic), &peer.id) {
            Ok(socket) => {
                let token = (number as u64) << 32 | u64::from(peer.tries);
                let data = epoll::EventData::new_u64(token);
                let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
                if epoll::add(&self.epoll, &socket, data, flags).is_ok() {
                    peer.link = Some(Link { socket, stream: Stream::default() });
                    return;
                }
                self.away.push_back((Instant::now() + AGAIN_AFTER, number));
            }
            Err(_) => self.away.push_back((Instant::now() + AGAIN_AFTER, number)),
        }
    }

    /// Reads what has come for a subscriber's connection.
    fn ready(&mut self, number: usize, tries: u32, buffer: &mut [u8]) -> Result<()> {
        let peer = &mut self.peers[number];
        let Some(link) = peer.link.as_mut().filter(|_| peer.tries == tries) else { return Ok(()) };
        let read = match link.socket.read(buffer) {
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            // A server that was killed may have reset the connection.
            Err(_) => 0,
        };
        let was_open = link.stream.is_open();
        let taken = if read == 0 {
            Err(Broken::Ended)
        } else {
            let now = now_ns();
            let Heard { journals, findings, each, last, .. } = &mut self.heard;
            let (journal, listeners) = (&mut journals[peer.topic], self.of_topic[peer.topic]);
            let (place, id, well, watch) = (&mut peer.place, &mut peer.id, &mut peer.well, &self.plan.watch);
            link.stream.feed(&buffer[..read], |event| {
                if event.is_gap {
                    findings.gaps += 1;
                    return;
                }
                let (Some((epoch, sequence)), Some(stamp)) = (parts(event.id), event.stamp) else {
                    findings.differing += 1;
                    return;
                };
                let delivery = Delivery { epoch, sequence, number: stamp.sequence };
                let heard = journal.take(place, delivery, findings);
                event.id.clone_into(id);
                if let Some(heard) = heard {
                    let took = now.saturating_sub(stamp.time_ns).max(1);
                    each.saturating_record(took);
                    if heard == listeners {
                        last.saturating_record(took);
                    }
                    watch.heard(stamp.time_ns, well);
                }
            })
        };
        if !was_open && link.stream.is_open() {
            self.plan.counters.connected.fetch_add(1, Ordering::Relaxed);
        }
        match taken {
            Ok(()) => return Ok(()),
            Err(Broken::Ended) => {}
            Err(Broken::Refused) => {
                self.leave(number);
                self.away.push_back((Instant::now() + AGAIN_AFTER, number));
                return Ok(());
            }
            Err(Broken::Nonsense(what)) => bail!("a node sent to a subscriber {what}"),
        }
        if was_open {
            self.heard.broken += 1;
        }
        self.leave(number);
        self.connect(number);
        Ok(())
    }

    /// True if everybody has the events with these sequences and all before.
    fn have_all(&self, ends: &[u64]) -> bool {
        let complete = |journal: &Journal, end: &u64| journal.last() >= *end;
        self.heard.journals.iter().zip(ends).all(|(journal, end)| complete(journal, end))
            && self.peers.iter().all(|peer| peer.place == self.heard.journals[peer.topic].len())
    }

    /// What is missing in the end is lost.
    fn finish(mut self) -> Heard {
        for peer in &self.peers {
            self.heard.findings.lost += (self.heard.journals[peer.topic].len() - peer.place) as u64;
        }
        self.heard
    }
}

/// Connects and asks for the events of a topic behind `id`.
fn open(address: SocketAddr, topic: &str, id: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
    socket.set_nonblocking(true)?;
    // A fresh socket has room for a request.
    socket.write_all(
        format!(
            "GET /sse/{topic} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\nLast-Event-ID: {id}\r\n\r\n"
        )
        .as_bytes(),
    )?;
    Ok(socket)
}

/// Why a connection is of no use any more.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    /// It ended.
    Ended,
    /// The node does not take subscribers now.
    Refused,
    /// What came is no event stream.
    Nonsense(String),
}

/// One event of a stream, or a notice that some are missing.
#[derive(Debug)]
struct Event<'a> {
    id: &'a str,
    stamp: Option<Stamp>,
    is_gap: bool,
}

/// Takes events out of a response, cut anywhere: its head, chunks, lines.
#[derive(Debug, Default)]
struct Stream {
    /// The head as far as it has come; of an open stream, what has come of the next event.
    text: Vec<u8>,
    body: Body,
}

/// How the body comes.
#[derive(Debug, Default)]
enum Body {
    /// The head is not here yet.
    #[default]
    Head,
    Plain,
    Chunked(Chunks),
}

impl Stream {
    fn is_open(&self) -> bool {
        !matches!(self.body, Body::Head)
    }

    fn feed(&mut self, bytes: &[u8], on_event: impl FnMut(Event<'_>)) -> Result<(), Broken> {
        match &mut self.body {
            Body::Plain => self.text.extend_from_slice(bytes),
            Body::Chunked(chunks) => {
                let mut at = 0;
                // The last chunk is an end like any other one.
                while let Some(data) = chunks.next(bytes, &mut at).map_err(|_| Broken::Ended)? {
                    self.text.extend_from_slice(&bytes[data]);
                }
            }
            Body::Head => {
                self.text.extend_from_slice(bytes);
                let Some(end) = memmem::find(&self.text, b"\r\n\r\n") else {
                    return if self.text.len() > HEAD_BYTES_MAX { Err(Broken::Refused) } else { Ok(()) };
                };
                let rest = self.text.split_off(end + 4);
                let head = String::from_utf8_lossy(&std::mem::take(&mut self.text)).to_ascii_lowercase();
                if !head.starts_with("http/1.1 200 ") {
                    return Err(Broken::Refused);
                }
                let is_chunked = head.contains("\r\ntransfer-encoding: chunked\r\n");
                self.body = if is_chunked { Body::Chunked(Chunks::default()) } else { Body::Plain };
                return self.feed(&rest, on_event);
            }
        }
        self.events(on_event)
    }

    /// Gives the events that are whole.
    fn events(&mut self, mut on_event: impl FnMut(Event<'_>)) -> Result<(), Broken> {
        let mut done = 0;
        while let Some(length) = memmem::find(&self.text[done..], b"\n\n") {
            let block = std::str::from_utf8(&self.text[done..done + length])
                .map_err(|_| Broken::Nonsense("an event that is no UTF-8".into()))?;
            done += length + 2;
            if let Some(event) = event_in(block) {
                on_event(event);
            }
        }
        self.text.drain(..done);
        match self.text.len() > EVENT_BYTES_MAX {
            true => Err(Broken::Nonsense(format!("an event of more than {EVENT_BYTES_MAX} bytes"))),
            false => Ok(()),
        }
    }
}

/// The event of a block of lines; none without data.
fn event_in(block: &str) -> Option<Event<'_>> {
    let (mut id, mut data, mut is_gap) = ("", None, false);
    for line in block.lines() {
        if let Some(value) = line.strip_prefix("id: ") {
            id = value;
        } else if let Some(value) = line.strip_prefix("data: ") {
            data = data.or(Some(value));
        } else if let Some(value) = line.strip_prefix("event: ") {
            is_gap = value == "fanwave-gap";
        }
    }
    data.map(|data| Event { id, stamp: Stamp::read(data.as_bytes()), is_gap })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Id, number, and whether it is a gap.
    type Told = (String, Option<u64>, bool);

    /// What comes in pieces of so many bytes, and how it ends.
    fn told(stream: &[u8], piece: usize) -> (Vec<Told>, Result<(), Broken>) {
        let (mut splitter, mut events) = (Stream::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            let fed = splitter.feed(bytes, |event| {
                let number = event.stamp.map(|stamp| stamp.sequence);
                events.push((event.id.to_owned(), number, event.is_gap));
            });
            if fed.is_err() {
                return (events, fed);
            }
        }
        (events, Ok(()))
    }

    fn event(number: u64) -> String {
        let mut data = vec![b'x'; 50];
        Stamp { sequence: number, time_ns: 1 }.write(&mut data);
        format!("id: e-{number}\ndata: {}\n\n", String::from_utf8(data).expect("ASCII"))
    }

    #[test]
    fn events_and_gaps_are_told_however_they_are_cut_with_and_without_chunks() {
        let gap = "event: fanwave-gap\ndata: {\"gap\":{}}\n\n";
        let body = format!(": hello\n\n{}{gap}{}", event(1), event(2));
        let expected = [("e-1", Some(1), false), ("", None, true), ("e-2", Some(2), false)]
            .map(|(id, number, is_gap)| (id.to_owned(), number, is_gap));
        let chunks: String = body
            .as_bytes()
            .chunks(33)
            .map(|part| format!("{:x}\r\n{}\r\n", part.len(), String::from_utf8_lossy(part)))
            .collect();
        let plain = format!("HTTP/1.1 200 OK\r\n\r\n{body}");
        let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        for stream in [&plain, &chunked] {
            for piece in [1, 7, stream.len()] {
                let (events, end) = told(stream.as_bytes(), piece);
                assert_eq!((events.as_slice(), end), (&expected[..], Ok(())), "pieces of {piece}");
            }
        }
        let (_, end) = told(format!("{chunked}0\r\n\r\n").as_bytes(), 9);
        assert_eq!(end, Err(Broken::Ended));
    }

    #[test]
    fn an_answer_that_is_no_event_stream_is_a_refusal() {
        assert_eq!(told(b"HTTP/1.1 503 Busy\r\n\r\n", 5).1, Err(Broken::Refused));
        assert_eq!(told(b"GET /sse/x HTTP/1.1\r\n\r\n", 50).1, Err(Broken::Refused));
        assert_eq!(told(&[b'x'; HEAD_BYTES_MAX + 1], 1_000).1, Err(Broken::Refused));
    }
}

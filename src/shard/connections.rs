//! The slab of connections: one small entry per socket, indexed by slot.
//!
//! Entries live in chunks that are made when first needed and never move, so growing copies nothing
//! and an idle connection costs one entry. What only some connections have (a partial head, several
//! topics, an answer that waits) is boxed and gone again when it has served.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::rc::Rc;

use super::echo::Echo;
use super::posts::Posts;
use crate::close::CloseReason;
use crate::egress::{Batch, Slot, prefetch};
use crate::wire::websocket::Decoder;
use crate::wire::{Format, SlowPolicy};

/// Index of a topic in the shard's table.
pub type TopicIndex = u32;

/// Where a topic begins whose events are still read from the source (`backfill`): no event is after
/// it.
pub const FAR: u64 = u64::MAX;

/// Entries per chunk, one behind the other.
pub const CHUNK: usize = 256;

/// Where a connection stands in its life; it only moves downwards, from `Serving` back to
/// `Handshake` for a request of another kind, and from `Closing` back to `Vacant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No connection.
    Vacant,
    /// The request head is not complete.
    Handshake,
    /// It speaks HTTP/2: its streams are connections of their own, and the ring deals with the rest.
    Carrying,
    /// Its requests are answered one after the other, as those of a publisher are.
    Serving,
    /// A subscriber.
    Open,
    /// Only last words are still to be sent.
    Finishing,
    /// Our side has ended; the peer's end of stream is awaited, so that our last words are not lost
    /// to a reset.
    Lingering,
    /// What is in the ring for it is ending; nothing more is said.
    Aborting,
    /// The slot is being freed.
    Closing,
}

/// What is known of a connection's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A PROXY header is to tell it first.
    Untold,
    /// It is known, and not counted.
    Known,
    /// This connection is counted at its address.
    Counted,
    /// It is counted, and one more than the address may have: it makes no subscriber.
    Crowded,
    /// It is a stream: its carrier is counted.
    Carried,
}

/// A subscriber's place in one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// Which topic.
    pub topic: TopicIndex,
    /// Where in that topic's list of subscribers.
    pub position: u32,
}

/// The topics of a connection.
#[derive(Debug, Default)]
pub enum Memberships {
    /// No subscriber.
    #[default]
    None,
    /// The usual case, without a box.
    One(Membership),
    /// Several.
    Many(Box<Several>),
}

/// Several topics of one connection.
#[derive(Debug)]
pub struct Several {
    /// In rising order of the topics, so that all who have the same ones share their batches.
    members: Vec<Membership>,
    /// Where the stream of each member goes on, if not all do at the cursor: after a gap each topic
    /// goes on from where it is whole. Empty otherwise.
    starts: Vec<u64>,
}

impl Memberships {
    /// All of them.
    pub fn as_slice(&self) -> &[Membership] {
        match self {
            Memberships::None => &[],
            Memberships::One(one) => std::slice::from_ref(one),
            Memberships::Many(several) => &several.members,
        }
    }

    /// All of them, to be moved.
    pub fn as_mut_slice(&mut self) -> &mut [Membership] {
        match self {
            Memberships::None => &mut [],
            Memberships::One(one) => std::slice::from_mut(one),
            Memberships::Many(several) => &mut several.members,
        }
    }

    /// All of them, each with the sequence after which its events are still to be sent to a
    /// subscriber at `cursor`.
    pub fn iter_from(&self, cursor: u64) -> impl Iterator<Item = (TopicIndex, u64)> {
        let starts: &[u64] = match self {
            Memberships::Many(several) => &several.starts,
            Memberships::None | Memberships::One(_) => &[],
        };
        let start = |at| starts.get(at).copied().unwrap_or(0);
        self.as_slice().iter().enumerate().map(move |(at, member)| (member.topic, cursor.max(start(at))))
    }

    /// True if some of them begin beyond the cursor.
    pub fn has_starts(&self) -> bool {
        matches!(self, Memberships::Many(several) if !several.starts.is_empty())
    }

    /// The sequence after which events of `topic` are still to be sent to a subscriber at `cursor`.
    pub fn begins_after(&self, topic: TopicIndex, cursor: u64) -> u64 {
        let Memberships::Many(several) = self else { return cursor };
        if several.starts.is_empty() {
            return cursor;
        }
        let place = several.members.binary_search_by_key(&topic, |member| member.topic);
        let start = place.ok().and_then(|at| several.starts.get(at));
        start.map_or(cursor, |start| cursor.max(*start))
    }

    /// A subscriber of several topics has everything up to `cursor`: starts that are behind it are
    /// forgotten.
    pub fn reach(&mut self, cursor: u64) {
        if let Memberships::Many(several) = self
            && several.starts.iter().all(|start| *start <= cursor)
        {
            several.starts = Vec::new();
        }
    }

    /// Makes the stream of each member go on after the sequence at its place in `starts`. Returns
    /// the cursor from which they do.
    pub fn start_after(&mut self, starts: Vec<u64>) -> u64 {
        let cursor = starts.iter().copied().min().unwrap_or(0);
        if let Memberships::Many(several) = self {
            let differ = starts.iter().any(|start| *start > cursor);
            several.starts = if differ { starts } else { Vec::new() };
        }
        cursor
    }

    /// Puts one in, whose stream begins after `from`, for a subscriber at `cursor`. All others go
    /// on where they were. Returns the cursor from which all do: `from`, if that is lower.
    pub fn add(&mut self, member: Membership, cursor: u64, from: u64) -> u64 {
        let mut starts: Vec<u64> = self.iter_from(cursor).map(|(_, from)| from).collect();
        let place = self.as_slice().binary_search_by_key(&member.topic, |member| member.topic);
        let at = place.expect_err("a subscriber has a topic once");
        starts.insert(at, from);
        match self {
            Memberships::None => *self = Memberships::One(member),
            Memberships::One(one) => {
                let mut members = vec![*one; 2];
                members[at] = member;
                *self = Memberships::from(members);
            }
            Memberships::Many(several) => {
                several.members.reserve_exact(1);
                several.members.insert(at, member);
            }
        }
        self.start_after(starts)
    }

    /// Takes the one of `topic` out, if it is there, for a subscriber at `cursor`. Returns it and
    /// the cursor of the others, which go on where they were.
    pub fn remove(&mut self, topic: TopicIndex, cursor: u64) -> Option<(Membership, u64)> {
        let at = self.as_slice().binary_search_by_key(&topic, |member| member.topic).ok()?;
        let mut starts: Vec<u64> = self.iter_from(cursor).map(|(_, from)| from).collect();
        starts.remove(at);
        let member = match self {
            Memberships::None => return None,
            Memberships::One(_) => {
                let one = self.pop();
                return one.map(|one| (one, cursor));
            }
            Memberships::Many(several) => several.members.remove(at),
        };
        if let Memberships::Many(several) = self
            && let [one] = several.members.as_slice()
        {
            *self = Memberships::One(*one);
        }
        Some((member, self.start_after(starts)))
    }

    /// Takes the last one out.
    pub fn pop(&mut self) -> Option<Membership> {
        match self {
            Memberships::None => None,
            Memberships::One(one) => {
                let one = *one;
                *self = Memberships::None;
                Some(one)
            }
            Memberships::Many(several) => several.members.pop(),
        }
    }
}

impl From<Vec<Membership>> for Memberships {
    fn from(members: Vec<Membership>) -> Memberships {
        match members.as_slice() {
            [] => Memberships::None,
            [one] => Memberships::One(*one),
            _ => Memberships::Many(Box::new(Several { members, starts: Vec::new() })),
        }
    }
}

/// The protocol state of one connection.
#[derive(Debug)]
pub enum Session {
    /// Bytes of a request head that is not complete, or of the PROXY header before it; or what came
    /// on a carrier that the ring does not know of yet.
    Handshake(Vec<u8>),
    /// A carrier: the ring reads what comes.
    Carrier,
    /// An event stream: nothing is expected from the client.
    Sse,
    /// WebSocket: frames from the client, parsed as they come.
    WebSocket(Decoder),
    /// Requests that publish, of which this is known.
    Posts(Box<Posts>),
    /// WebSocket that gets back what it sends.
    Echo(Box<Echo>),
}

/// An address in 18 bytes; IPv4 is kept as its IPv4-mapped form.
#[derive(Debug, Clone, Copy)]
#[repr(Rust, packed(2))]
pub struct Peer {
    ip: [u8; 16],
    port: u16,
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        let ip = match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Peer { ip: ip.octets(), port: address.port() }
    }
}

impl From<Peer> for SocketAddr {
    fn from(peer: Peer) -> SocketAddr {
        SocketAddr::new(Ipv6Addr::from(peer.ip).to_canonical(), peer.port)
    }
}

/// How many lanes there are.
pub const LANES: usize = 2 * Format::COUNT;

/// The lane of a format, for subscribers of the newest events alone or for all others.
#[inline]
pub fn lane(format: Format, latest: bool) -> usize {
    format.index() + if latest { Format::COUNT } else { 0 }
}

/// One connection. What a visit of the sweep touches comes first and fills one cache line.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Connection {
    /// Every event of its topics up to this sequence has been handed to the kernel, is in
    /// `partial`, or was told as lost. [`FAR`] while all of them are backfilled.
    pub cursor: u64,
    /// Topics and places in them.
    pub memberships: Memberships,
    /// An answer, notice or control frame that is still to be sent.
    pub control: Option<Rc<Batch>>,
    /// The batch that the kernel took only in part; its rest goes out before anything else.
    pub partial: Option<Rc<Batch>>,
    /// Bytes of the current batch that the kernel has taken; `offset < batch.len()`.
    pub offset: u32,
    /// Tick of the last change: accept, submission or completion of a send, start of lingering.
    pub since: u32,
    /// The turn in which it was last given a send. Nothing else is asked for it in that turn, and
    /// nothing in the next ones while the ring has no room.
    pub turn: u64,
    /// Where it stands.
    pub phase: Phase,
    /// What its frames look like; meaningful from `Open` on.
    pub format: Format,
    /// A receive is in the ring.
    pub receiving: bool,
    /// A send waits in the ring for room in the socket.
    pub sending: bool,
    /// It is behind and no lap will come by: attend to it when the waiting send completes.
    pub missed: bool,
    /// It is in the shard's ready queue.
    pub queued: bool,
    /// The kernel copies its zero-copy sends: use plain ones.
    pub copies: bool,
    /// What happens when it falls behind. Some exactly if it is or was a subscriber.
    pub slow: Option<SlowPolicy>,
    /// Protocol state.
    pub session: Session,
    /// Why it ends; meaningful from `Finishing` on.
    pub reason: CloseReason,
    /// The peer has ended its stream, or the socket failed: nothing more will be received.
    pub ended: bool,
    /// A ping is unanswered.
    pub pinged: bool,
    /// What is known of its address.
    pub standing: Standing,
    /// An end of our stream is in the ring.
    pub ending: bool,
    /// What is in the ring was asked to end.
    pub cancelled: bool,
    peer: Peer,
    /// When a subscriber's token is over, in seconds since 1970; without a token the tick by which
    /// it is to bring one; 0 for never. Before that not 0 exactly while its token waits to be
    /// checked.
    pub expires: u32,
    /// The key with which its token was signed, by its number; 0 for none.
    pub key: u32,
}

const _: () = assert!(std::mem::size_of::<Decoder>() <= 32);
const _: () = assert!(std::mem::size_of::<Connection>() <= 128);
const _: () = assert!(std::mem::offset_of!(Connection, session) <= 64);

impl Connection {
    /// A connection that was just accepted.
    fn new(peer: SocketAddr, tick: u32) -> Connection {
        Connection {
            cursor: 0,
            session: Session::Handshake(Vec::new()),
            memberships: Memberships::default(),
            control: None,
            partial: None,
            offset: 0,
            since: tick,
            turn: 0,
            phase: Phase::Handshake,
            format: Format::Sse,
            reason: CloseReason::ClientGone,
            receiving: false,
            sending: false,
            missed: false,
            queued: false,
            ended: false,
            copies: false,
            pinged: false,
            standing: Standing::Known,
            ending: false,
            cancelled: false,
            slow: None,
            peer: peer.into(),
            expires: 0,
            key: 0,
        }
    }

    fn vacant() -> Connection {
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        Connection { phase: Phase::Vacant, ..Connection::new(nobody, 0) }
    }

    /// What its batches depend on besides its topics: format and policy. Below [`LANES`].
    #[inline]
    pub fn lane(&self) -> usize {
        lane(self.format, self.wants_latest())
    }

    /// True if it is or was a subscriber.
    #[inline]
    pub fn subscribed(&self) -> bool {
        self.slow.is_some()
    }

    /// True if it gets the newest events alone.
    #[inline]
    pub fn wants_latest(&self) -> bool {
        self.slow == Some(SlowPolicy::Latest)
    }

    /// True if a send waits or something is to go out before any news.
    #[inline]
    pub fn is_owed(&self) -> bool {
        self.sending || self.control.is_some() || self.partial.is_some()
    }

    /// It was given a send of events up to `to`, 0 for none.
    #[inline]
    pub fn handed(&mut self, to: u64, turn: u64, tick: u32) {
        self.cursor = self.cursor.max(to);
        self.turn = turn;
        self.since = tick;
    }

    /// A proxy has told who connects.
    pub fn set_peer(&mut self, peer: SocketAddr) {
        self.peer = peer.into();
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer.into()
    }
}

/// All connections of a shard.
#[derive(Debug, Default)]
pub struct Connections {
    /// By slot; empty where none of its slots was used yet. Slots of streams are far behind those of
    /// sockets.
    chunks: Vec<Box<[Connection]>>,
    /// The numbers of the others, in the order in which they were made.
    made: Vec<u32>,
    /// Entries that are not vacant.
    len: usize,
    /// Those of them that are streams.
    streams: usize,
}

impl Connections {
    /// Takes `slot` for a new connection.
    pub fn occupy(&mut self, slot: Slot, peer: SocketAddr, tick: u32) {
        let chunk = slot as usize / CHUNK;
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, Default::default);
        }
        if self.chunks[chunk].is_empty() {
            self.chunks[chunk] = (0..CHUNK).map(|_| Connection::vacant()).collect();
            self.made.push(chunk as u32);
        }
        let entry = self.get_mut(slot);
        assert!(entry.phase == Phase::Vacant, "the ring gives only free slots");
        *entry = Connection::new(peer, tick);
        self.len += 1;
    }

    /// Takes `slot` for a new stream of `carrier`.
    pub fn occupy_stream(&mut self, slot: Slot, carrier: Slot, tick: u32) {
        let peer = self.get(carrier).peer();
        self.occupy(slot, peer, tick);
        let stream = self.get_mut(slot);
        stream.standing = Standing::Carried;
        // What follows on its request is on its way already.
        stream.receiving = true;
        self.streams += 1;
    }

    /// Frees `slot`.
    pub fn vacate(&mut self, slot: Slot) {
        let entry = self.get_mut(slot);
        assert!(entry.phase == Phase::Closing && !entry.queued, "only a closing connection is freed");
        let is_stream = entry.standing == Standing::Carried;
        *entry = Connection::vacant();
        self.len -= 1;
        self.streams -= usize::from(is_stream);
    }

    /// The entry of `slot`.
    #[inline]
    pub fn get(&self, slot: Slot) -> &Connection {
        &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    /// The entry of `slot`.
    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> &mut Connection {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }

    /// Has the entry of `slot` brought into the cache, so that the visit to come need not wait for
    /// it.
    #[inline]
    pub fn prefetch(&self, slot: Slot) {
        prefetch(self.get(slot));
    }

    /// Connections now, in any phase but `Vacant`.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Connections with a socket of their own.
    pub fn sockets(&self) -> usize {
        self.len - self.streams
    }

    /// Connections that are streams of others.
    pub fn streams(&self) -> usize {
        self.streams
    }

    /// True if every entry is vacant.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many slots have an entry, vacant ones included.
    pub fn capacity(&self) -> usize {
        self.made.len() * CHUNK
    }

    /// The slots that have an entry, from 0 to their number: each has one place, which it keeps.
    pub fn slot_at(&self, place: usize) -> Slot {
        self.made[place / CHUNK] * CHUNK as Slot + (place % CHUNK) as Slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_reads_back_as_it_was() {
        for text in ["127.0.0.1:80", "[2001:db8::1]:443", "[::1]:1"] {
            let address: SocketAddr = text.parse().expect("an address");
            assert_eq!(SocketAddr::from(Peer::from(address)), address);
        }
    }

    fn member(topic: TopicIndex) -> Membership {
        Membership { topic, position: 0 }
    }

    #[test]
    fn topics_come_and_go_and_the_others_stay_where_they_were() {
        let mut memberships = Memberships::None;
        let places = |memberships: &Memberships, cursor| memberships.iter_from(cursor).collect::<Vec<_>>();
        assert_eq!(memberships.add(member(7), 0, 50), 50);
        assert_eq!(memberships.add(member(3), 60, 60), 60, "nobody is behind");
        assert!(!memberships.has_starts());
        assert_eq!(memberships.add(member(5), 60, 40), 40, "a topic from before sets the cursor back");
        assert_eq!(places(&memberships, 40), [(3, 60), (5, 40), (7, 60)]);
        assert_eq!(memberships.add(member(1), 45, 90), 45);
        assert_eq!(places(&memberships, 45), [(1, 90), (3, 60), (5, 45), (7, 60)]);
        assert_eq!(memberships.remove(2, 45), None, "it is no topic of it");
        assert_eq!(memberships.remove(5, 45), Some((member(5), 60)));
        assert_eq!(places(&memberships, 60), [(1, 90), (3, 60), (7, 60)]);
        assert_eq!(memberships.remove(3, 60), Some((member(3), 60)));
        assert_eq!(memberships.remove(7, 60), Some((member(7), 90)), "the last one begins later");
        assert!(matches!(memberships, Memberships::One(one) if one == member(1)));
        assert_eq!(memberships.remove(1, 90), Some((member(1), 90)));
        assert!(memberships.as_slice().is_empty());
    }

    /// 138 bytes are those of a connection with one topic (`benches`, resident memory).
    #[test]
    fn ten_topics_take_little_memory() {
        let mut memberships = Memberships::None;
        for topic in 0..10 {
            memberships.add(member(topic), 5, 5);
        }
        let Memberships::Many(several) = &memberships else { panic!("ten of them") };
        let places = 2 * several.members.len() * size_of::<Slot>();
        let lists = several.members.capacity() * size_of::<Membership>() + several.starts.capacity() * 8;
        let all = size_of::<Connection>() + size_of::<Several>() + lists + places;
        assert!(all <= 400, "{all} bytes");
    }

    #[test]
    fn slots_are_taken_and_freed_in_any_order() {
        let mut connections = Connections::default();
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        connections.occupy(700, peer, 3);
        connections.occupy(0, peer, 4);
        assert_eq!((connections.len(), connections.capacity()), (2, 512));
        let places: Vec<Slot> = (0..512).map(|place| connections.slot_at(place)).collect();
        assert!(places.iter().copied().eq((512..768).chain(0..256)), "those with an entry, each once");
        connections.get_mut(700).phase = Phase::Closing;
        connections.vacate(700);
        assert_eq!(connections.get(700).phase, Phase::Vacant);
        assert_eq!((connections.get(0).since, connections.len()), (4, 1));
    }

    #[test]
    fn a_stream_is_a_connection_without_a_socket() {
        let mut connections = Connections::default();
        let peer = SocketAddr::from(([192, 0, 2, 1], 7));
        connections.occupy(3, peer, 1);
        connections.occupy_stream(1 << 20, 3, 2);
        assert_eq!(connections.get(1 << 20).peer(), peer);
        assert_eq!((connections.len(), connections.sockets(), connections.streams()), (2, 1, 1));
        assert_eq!(connections.capacity(), 512, "no entries between sockets and streams");
        connections.get_mut(1 << 20).phase = Phase::Closing;
        connections.vacate(1 << 20);
        assert_eq!((connections.sockets(), connections.streams()), (1, 0));
    }
}

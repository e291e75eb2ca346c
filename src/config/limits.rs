//! Every number that bounds something, in one place: unit last in the name, reason and cost beside
//! it.
//!
//! [`Limits`] are the operator's (each is a flag); the constants below them are ours: of a shard,
//! then of the hub. Relations that must hold between constants are asserted at compile time,
//! relations between flags in [`Limits::check`].

use crate::event::{EVENT_BYTES_BESIDE_DATA_MAX, TOPIC_BYTES_MAX};
use crate::wire::Format;

mod backfill;
mod control;
mod handover;
mod log;
mod memory;
mod nats;
mod patterns;
mod relay;
mod store;
mod tls;
mod tokens;
mod values;

pub use backfill::*;
pub use control::*;
pub use handover::*;
pub use log::*;
pub use memory::*;
pub use nats::*;
pub use patterns::*;
pub use relay::*;
pub use store::*;
pub use tls::*;
pub use tokens::*;
pub use values::*;

/// What the operator may set. `Default` gives the values of a server without flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections of one shard. 0 takes what the descriptor limit allows (`RLIMIT_NOFILE`, which
    /// also bounds a ring's table of direct descriptors). Costs one slab entry each when used, one
    /// pointer each in the kernel's table at start.
    pub connections_per_shard_max: usize,
    /// Connections of one address (IPv4) or network of 64 bits (IPv6), on all shards. 0 counts
    /// none, for behind a proxy all come from one address.
    pub connections_per_address_max: usize,
    /// Connections that one shard accepts in a second, on average; others wait in the kernel's
    /// queue. 0 accepts all.
    pub handshakes_per_second_max: usize,
    /// Bytes of a request head. Held only during the handshake.
    pub handshake_bytes_max: usize,
    /// Milliseconds from accept to a whole request head. Bounds how long a slow client holds a slot
    /// for nothing.
    pub handshake_ms_max: u64,
    /// Topics of one connection. Each costs 8 bytes per connection, 16 after a gap, and a place in
    /// the topic's list.
    pub topics_per_connection_max: usize,
    /// Topics that the hub remembers; shards drop the windows of those it forgets unless somebody
    /// listens. Also the topics with subscribers on one shard, before those of further ones get
    /// 503. So about [`TOPIC_BYTES`] each, once in the hub and twice per shard.
    pub topics_max: usize,
    /// Bytes of one published event's data.
    pub message_bytes_max: usize,
    /// Bytes of one message from a WebSocket client. It costs nothing where messages are read and
    /// dropped; where clients may publish one may hold so much, and with `--diagnostic-echo` an
    /// echo.
    pub message_in_bytes_max: usize,
    /// Events of one topic's history, from which subscribers resume. A subscriber that is further
    /// behind keeps what it lacks while there is memory (`window_bytes_total_max`).
    pub window_events_max: usize,
    /// Bytes of one topic's history: what its events weigh, as published and besides
    /// ([`Event::weight`](crate::event::Event::weight)).
    pub window_bytes_max: usize,
    /// Age of an event in a window, in milliseconds.
    pub window_ms_max: u64,
    /// Memory of all events alive, with their frames: in queues, histories, and beyond these for
    /// subscribers that are behind. Shards share their events, so this counts once. Histories take
    /// at most half of it, one topic a quarter.
    pub window_bytes_total_max: usize,
    /// Events that the hub has accepted and not yet broadcast; beyond it publishers get 503.
    pub hub_queue_events_max: usize,
    /// Bytes of those events.
    pub hub_queue_bytes_max: usize,
    /// Batches waiting in one shard's queue; when it is full the hub stops broadcasting.
    pub shard_queue_batches_max: usize,
    /// Bytes of one send. Bounds what one slow connection pins, and how long one send keeps the
    /// kernel busy.
    pub send_bytes_max: usize,
    /// Bytes of small frames laid out for sends, and of answers, per shard; beyond it the slowest
    /// are closed as stalled. Slow sends hold them. Large frames stay where they are and count as
    /// memory of their events.
    pub pinned_bytes_max: usize,
    /// Smallest send that goes out as zero copy, in bytes. 0 turns zero copy off. Pinning pages
    /// costs more than copying below some tens of KiB; where the kernel copies anyway (loopback) a
    /// connection goes back to plain sends.
    pub zero_copy_bytes_min: usize,
    /// Milliseconds between signs of life on an idle connection: an SSE comment, a WebSocket ping.
    /// Up to a quarter earlier on some connections, so that they do not march in step.
    pub heartbeat_ms: u64,
    /// Milliseconds that one send may take before the connection is closed as stalled. A subscriber
    /// slower than a send (`send_bytes_max`, or one larger event) in this time is too slow.
    pub stall_ms_max: u64,
    /// Milliseconds that a drain may take before the rest is cut off.
    pub drain_ms_max: u64,
    /// Streams that a client of HTTP/2 may have at a time on one connection; 0 offers no HTTP/2.
    /// Each is a connection of the shard, but no socket.
    pub h2_streams_max: usize,
    /// Bytes that a shard sends in a second, on average, to subscribers who lack more than its
    /// windows hold, from what the source still has. 0 tells them of a gap instead.
    pub backfill_bytes_per_second: usize,
    /// Such subscribers of one shard that are served at once; others wait. Each may pin a stretch
    /// of the past twice: as it is read and as it is sent.
    pub backfills_per_shard_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_per_shard_max: 0,
            connections_per_address_max: 0,
            handshakes_per_second_max: 0,
            handshake_bytes_max: 8 << 10,
            handshake_ms_max: 10_000,
            topics_per_connection_max: 64,
            topics_max: 100_000,
            message_bytes_max: 1 << 20,
            message_in_bytes_max: 64 << 10,
            window_events_max: 1_024,
            window_bytes_max: 8 << 20,
            window_ms_max: 300_000,
            window_bytes_total_max: 512 << 20,
            hub_queue_events_max: 16_384,
            hub_queue_bytes_max: 64 << 20,
            shard_queue_batches_max: 64,
            send_bytes_max: 256 << 10,
            pinned_bytes_max: 64 << 20,
            zero_copy_bytes_min: 32 << 10,
            heartbeat_ms: 15_000,
            stall_ms_max: 30_000,
            drain_ms_max: 10_000,
            h2_streams_max: 100,
            backfill_bytes_per_second: 16 << 20,
            backfills_per_shard_max: 64,
        }
    }
}

/// A limit that is not possible, by the name of its flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The limit is larger than the server or the kernel can keep.
    #[error("--{flag} is {value}, at most {max} is possible: {why}")]
    TooLarge {
        /// Name of the flag, without dashes before it.
        flag: &'static str,
        /// What was asked for.
        value: u64,
        /// The largest that is possible.
        max: u64,
        /// What bounds it.
        why: &'static str,
    },
    /// The limit is smaller than the server needs.
    #[error("--{flag} is {value}, at least {min} is needed: {why}")]
    TooSmall {
        /// Name of the flag, without dashes before it.
        flag: &'static str,
        /// What was asked for.
        value: u64,
        /// The smallest that is enough.
        min: u64,
        /// What needs it; names the other flag if there is one.
        why: &'static str,
    },
}

/// The most events in one broadcast. Large enough that a shard's wake-up is paid once per many
/// events.
pub const BATCH_EVENTS_MAX: usize = 256;
/// Rules of the configuration file: each costs a queue per shard, and a look at each new topic.
pub const RULES_MAX: usize = 64;
/// Milliseconds that a rule's history lasts at least: events leave histories once per tick.
pub const HISTORY_MS_MIN: u64 = 1_000;
/// What a topic costs besides its window: its names, its entries in the tables, its lap (600,
/// measured), and its place in the order of names (40, by the nodes of a tree filled at random).
pub const TOPIC_BYTES: usize = 640;
/// Memory holds at least this many of the largest events with their frames: a topic has a quarter
/// of it, half of that for its history, and is pressed before its next event has no room
/// (`broadcast::Account`).
pub const EVENTS_HELD_MIN: usize = 16;
/// A window holds at least this many broadcasts, so that taking one never overruns a subscriber
/// that keeps up.
pub const WINDOW_BATCHES_MIN: usize = 4;

/// The largest `message_bytes_max` and `send_bytes_max`. The kernel takes less than 2 GiB in one
/// send; frames are a little longer than their data, or a third longer in base64.
const SEND_BYTES_POSSIBLE: u64 = 1 << 30;
/// The longest frame: what the kernel takes in one send (`MAX_RW_COUNT`, send(2)).
const FRAME_BYTES_POSSIBLE: usize = 0x7fff_f000;
/// The largest `shard_queue_batches_max`; the queue is allocated whole, about 40 bytes a place.
const SHARD_QUEUE_BATCHES_POSSIBLE: u64 = 1 << 16;
/// The largest time, 23 days: the kernel counts `TCP_USER_TIMEOUT` in 31 bits, `KERNEL_PATIENCE_MS`
/// included.
const MS_POSSIBLE: u64 = 2_000_000_000;

impl Limits {
    /// The most events that the hub may put into one broadcast.
    pub fn batch_events_max(&self) -> usize {
        (self.window_events_max / WINDOW_BATCHES_MIN).clamp(1, BATCH_EVENTS_MAX)
    }

    /// The most bytes that the hub may put into one broadcast; a single event may fill it alone.
    pub fn batch_bytes_max(&self) -> usize {
        self.window_bytes_max / WINDOW_BATCHES_MIN
    }

    /// Memory that the events of one topic may take, in queues, history and beyond.
    pub fn topic_memory_max(&self) -> usize {
        self.window_bytes_total_max / 4
    }

    /// Memory that the history of one topic may take: half of the topic's, so that room is left for
    /// what comes.
    pub fn topic_history_memory_max(&self) -> usize {
        self.topic_memory_max() / 2
    }

    /// Memory that all histories may take: half, so that room is left for what comes.
    pub fn history_memory_max(&self) -> usize {
        self.window_bytes_total_max / 2
    }

    /// Memory that all retained values may take: a sixteenth, so that a topic that has all of them
    /// and a full history is not pressed yet (`broadcast::Account`).
    pub fn retained_memory_max(&self) -> usize {
        self.window_bytes_total_max / 16
    }

    /// The longest frame of an event. Event streams take 7 bytes for each line break and a third
    /// more for binary data; text of so many short lines that its frame is longer than this is
    /// refused.
    pub fn frame_bytes_max(&self) -> usize {
        (2 * self.message_bytes_max + EVENT_BYTES_BESIDE_DATA_MAX).min(FRAME_BYTES_POSSIBLE)
    }

    /// The most memory that one event may take: itself, and its frame in each format that every
    /// event keeps. It keeps a rare one only within this.
    pub fn event_memory_max(&self) -> usize {
        self.message_bytes_max + EVENT_BYTES_BESIDE_DATA_MAX + Format::KEPT * self.frame_bytes_max()
    }

    /// The most that clients' messages which are not whole take on one shard, where clients may
    /// publish; what would be more is refused. As much may be received from clients that are paused
    /// and not be read yet; who adds more is cut.
    pub fn incoming_bytes_max(&self) -> usize {
        INCOMING_MESSAGES_MIN * self.message_bytes_max.max(RECEIVE_BUFFER_BYTES)
    }

    /// The longest NDJSON line: what must be escaped to be ASCII (`\u0436`) is three times as long,
    /// base64 less; the other fields are short. Only control characters and escapes without need
    /// (`\u003c`) are longer, six times for each.
    pub fn line_bytes_max(&self) -> usize {
        self.message_bytes_max * 3 + (4 << 10)
    }

    /// Checks the relations between limits; the error names the flag, and the other one if there is
    /// one.
    pub fn check(&self) -> Result<(), LimitError> {
        for (flag, value, max, why) in self.maxima() {
            if value > max {
                return Err(LimitError::TooLarge { flag, value, max, why });
            }
        }
        for (flag, value, min, why) in self.minima() {
            if value < min {
                return Err(LimitError::TooSmall { flag, value, min, why });
            }
        }
        Ok(())
    }

    /// Flag, value, largest value, reason.
    pub(super) fn maxima(&self) -> [(&'static str, u64, u64, &'static str); 13] {
        let send = "the kernel takes less than 2 GiB in one send";
        let time = "the kernel counts milliseconds in 31 bits";
        [
            ("message-bytes-max", self.message_bytes_max as u64, SEND_BYTES_POSSIBLE, send),
            ("send-bytes-max", self.send_bytes_max as u64, SEND_BYTES_POSSIBLE, send),
            (
                "message-in-bytes-max",
                self.message_in_bytes_max as u64,
                u32::MAX.into(),
                "bytes of a message are counted in 32 bits",
            ),
            ("topics-max", self.topics_max as u64, u32::MAX.into(), "topics are counted in 32 bits"),
            (
                "shard-queue-batches-max",
                self.shard_queue_batches_max as u64,
                SHARD_QUEUE_BATCHES_POSSIBLE,
                "the queue's memory is taken at the start",
            ),
            ("handshake-ms-max", self.handshake_ms_max, MS_POSSIBLE, time),
            ("window-ms-max", self.window_ms_max, MS_POSSIBLE, time),
            ("heartbeat-ms", self.heartbeat_ms, MS_POSSIBLE, time),
            ("stall-ms-max", self.stall_ms_max, MS_POSSIBLE, time),
            ("drain-ms-max", self.drain_ms_max, MS_POSSIBLE, time),
            (
                "h2-streams-max",
                self.h2_streams_max as u64,
                H2_STREAMS_POSSIBLE,
                "each of them may wait for its turn in one queue",
            ),
            (
                "backfill-bytes-per-second",
                self.backfill_bytes_per_second as u64,
                BACKFILL_BYTES_POSSIBLE,
                "no shard sends more",
            ),
            (
                "backfills-per-shard-max",
                self.backfills_per_shard_max as u64,
                BACKFILLS_POSSIBLE,
                "each turn of a shard looks at all of them",
            ),
        ]
    }

    /// Flag, value, smallest value, reason; [`Limits::maxima`] are kept.
    pub(super) fn minima(&self) -> [(&'static str, u64, u64, &'static str); 18] {
        let largest_event = (self.message_bytes_max + EVENT_BYTES_BESIDE_DATA_MAX) as u64;
        let window_batches = WINDOW_BATCHES_MIN as u64;
        let tick = "timers tick once a second";
        [
            (
                "handshake-bytes-max",
                self.handshake_bytes_max as u64,
                512,
                "a browser's request head has that",
            ),
            ("handshake-ms-max", self.handshake_ms_max, 100, "a head needs a round trip"),
            (
                "topics-per-connection-max",
                self.topics_per_connection_max as u64,
                1,
                "a subscriber has a topic",
            ),
            ("topics-max", self.topics_max as u64, 1, "an event has a topic"),
            ("message-bytes-max", self.message_bytes_max as u64, 1, "an event has data"),
            ("message-in-bytes-max", self.message_in_bytes_max as u64, 1, "a message has bytes"),
            (
                "window-events-max",
                self.window_events_max as u64,
                window_batches,
                "a window holds several broadcasts",
            ),
            (
                "window-bytes-max",
                self.window_bytes_max as u64,
                window_batches * largest_event,
                "a window holds several of the largest events (--message-bytes-max)",
            ),
            (
                "window-bytes-total-max",
                self.window_bytes_total_max as u64,
                (EVENTS_HELD_MIN * self.event_memory_max()).max(self.window_bytes_max) as u64,
                "it holds sixteen of the largest events with their frames (--message-bytes-max) and one topic's history \
                 (--window-bytes-max)",
            ),
            ("window-ms-max", self.window_ms_max, 1_000, "a window holds events until they are sent"),
            ("hub-queue-events-max", self.hub_queue_events_max as u64, 1, "the hub queues what it accepts"),
            (
                "hub-queue-bytes-max",
                self.hub_queue_bytes_max as u64,
                self.event_memory_max() as u64,
                "the hub queues at least one of the largest events (--message-bytes-max)",
            ),
            ("shard-queue-batches-max", self.shard_queue_batches_max as u64, 1, "the queue holds a batch"),
            ("send-bytes-max", self.send_bytes_max as u64, 4 << 10, "a send carries at least a page"),
            ("pinned-bytes-max", self.pinned_bytes_max as u64, 1 << 20, "slow sends hold some batches"),
            ("heartbeat-ms", self.heartbeat_ms, 1_000, tick),
            ("stall-ms-max", self.stall_ms_max, 1_000, tick),
            ("backfills-per-shard-max", self.backfills_per_shard_max as u64, 1, "one has its turn at least"),
        ]
    }
}

/// Sends queued before one `io_uring_enter`. Amortises the call, whose cost is gone in the noise
/// from some tens on; few enough that the kernel's requests and the entries of the queue are still
/// in the cache when they are used again.
pub const SWEEP_VISITS_MAX: usize = 128;
/// Room is short while less than one in so many sockets of a shard is free.
pub const SOCKETS_FREE_SHARE: usize = 8;
/// Milliseconds for a request head while room is short, and for the head of a connection that is
/// refused for its address in any case.
pub const HANDSHAKE_MS_SHORT: u64 = 2_000;
/// Subscribers that a draining shard hangs up on in a millisecond at least, so that a few are gone
/// at once. 100,000 that come back together take seconds of CPU elsewhere.
pub const HANG_UPS_PER_MS: u64 = 4;
/// Sockets of a shard beyond its subscribers, so that a client too many still gets an answer.
pub const SOCKETS_SPARE: usize = 256;
/// The kernel's own bound on a table of direct descriptors (`IORING_MAX_FIXED_FILES`).
pub const SOCKETS_LIMIT: usize = 1 << 20;
/// Descriptors of a shard beside its listeners and subscribers: four rings, two doorbells, and one
/// to spare.
pub const DESCRIPTORS_OF_SHARD: usize = 8;
/// Descriptors of the rest of the process without control connections: some twelve, and as many
/// again for what is open for a moment.
pub const DESCRIPTORS_OF_HUB: usize = 32;
/// Control connections that a descriptor limit must have room for at least, beside all that the
/// server itself opens: a few publishers.
pub const CONTROL_CONNECTIONS_MIN: usize = 8;
/// Bytes that an executor sets aside for its own I/O, of which ours has next to none (default: 10
/// MiB).
pub const EXECUTOR_IO_BYTES: usize = 64 << 10;
/// Locked memory that glommio wants the process to be allowed before it makes an executor, whatever
/// the kernel counts.
pub const EXECUTOR_MEMLOCK_BYTES: u64 = 512 << 10;
/// Bytes to one socket that take a visit's time. A step is bounded by both, so that large events of
/// one topic do not hold up the small ones of another: 128 visits of so many bytes are handed over
/// in about a millisecond.
pub const VISIT_BYTES: usize = 16 << 10;
/// Visits that one topic gets before the next has its turn.
pub const TOPIC_VISITS_MAX: usize = 128;
/// Subscribers with whom one lap ends and the next begins: about as many as have all that a send
/// touches in a core's own cache (some 6 KiB each of 2 MiB). Saves 4 % of a delivery's CPU at 1,000
/// and at 9,000 subscribers; with 1,024 the others' longer intervals cost as much again. A prime,
/// so that laps of almost any length begin everywhere in turn.
pub const LAP_OVERLAP: usize = 251;
/// Milliseconds after which an event stream comes back at the earliest that could not come in.
pub const RETURN_MS_MIN: u32 = 1_000;
/// Milliseconds over which those that come back are spread.
pub const RETURN_MS_SPREAD: u32 = 4_000;
/// Seconds over which clients are spread that get a `Retry-After`, from 1 on.
pub const RETRY_AFTER_S_SPREAD: u32 = 4;
/// Messages that a shard takes from the hub in one turn.
pub const MESSAGES_PER_TURN_MAX: usize = 16;
/// Events after which a shard takes no further message in a turn.
pub const EVENTS_PER_TURN_MAX: usize = 1_024;
/// The newest events of a shard by which a subscriber of many topics finds those with news.
pub const RECENT_EVENTS: usize = 1_024;
/// Names that a shard's table of topics has places for from the start, 24 bytes each; memory is
/// taken when they are used.
pub const TOPICS_RESERVED_MAX: usize = 1 << 20;
/// Runs of events of one topic whose way to the last subscriber is timed apart; beyond it the next
/// ones are told together.
pub const MARKS_MAX: usize = 1_024;
/// Topics with events beyond their history that a shard looks at in one tick.
pub const EXCESS_TOPICS_PER_TICK_MAX: usize = 4_096;
/// Events that a shard drops in one turn, some milliseconds of work; the rest waits for the next
/// ones.
pub const DROPS_PER_TURN_MAX: usize = 16_384;
/// Bytes of a send that a subscriber takes in one tick, or it is slow: 1 MiB/s. Slow ones are cut
/// where a topic is pressed and few are far behind.
pub const SLOW_BYTES_PER_TICK: usize = 256 << 10;
/// Milliseconds that a send may wait whose subscriber was cut for being too slow.
pub const CUT_MS_MAX: u64 = 5_000;
/// Expired events that a shard drops in one tick.
pub const EXPIRED_PER_TICK_MAX: usize = 16_384;
/// Entries of the submission queue: a full sweep step plus as many receives, closes and accepts.
pub const SUBMISSIONS_MAX: u32 = 512;
/// Entries of the completion queue. The kernel keeps what does not fit and hands it over at the
/// next enter.
pub const COMPLETIONS_MAX: u32 = 4_096;
/// Accepts waiting in the kernel per shard, each with room for the peer's address. Fewer where
/// several listeners share little room.
pub const ACCEPTS_ARMED: usize = 64;
/// Milliseconds that a closed ring is waited for, which the kernel takes apart in some tens, in 140
/// with 100,000 receives. What it may still use then is never freed.
pub const RING_END_MS_MAX: u64 = 1_000;
/// Receive buffers per shard, shared by all connections: idle ones hold none.
pub const RECEIVE_BUFFERS: u16 = 256;
/// Bytes of one receive buffer: a request head or a small message in one piece.
pub const RECEIVE_BUFFER_BYTES: usize = 2_048;
/// Receives over epoll in one turn, one per socket: as many as a turn has buffers for over
/// io_uring.
pub const RECEIVES_PER_REAP_MAX: usize = RECEIVE_BUFFERS as usize;
/// Events that one look at an epoll brings, 12 bytes each; the rest comes with the next look.
pub const EPOLL_EVENTS_MAX: usize = 512;
/// Segments of one sendmsg(2): 64 large frames, 1 KiB on the stack. A send of more takes several.
pub const EPOLL_SEGMENTS_MAX: usize = 64;
/// Connections waiting in the kernel's accept queue per listener (bounded by `net.core.somaxconn`).
pub const LISTEN_BACKLOG: i32 = 4_096;
/// Milliseconds that a start waits for a port that somebody else still has, and between two looks.
pub const BIND_MS_MAX: u64 = 1_000;
/// See [`BIND_MS_MAX`].
pub const BIND_RETRY_MS: u64 = 10;
/// Milliseconds that the kernel is more patient with a peer (`TCP_USER_TIMEOUT`) than
/// `stall_ms_max`: it is the net below our own look at stalled sends, which knows the reason.
pub const KERNEL_PATIENCE_MS: u64 = 5_000;
/// Frames up to this many bytes are copied together into one contiguous batch; larger ones stay
/// where they are and go out as iovecs.
pub const CONTIGUOUS_FRAME_BYTES_MAX: usize = 4 << 10;
/// Iovecs of one send; the kernel's `UIO_MAXIOV` is 1024.
pub const SEGMENTS_MAX: usize = 512;
/// Recently built batches that a shard remembers per format, so that connections at the same cursor
/// share one.
pub const BATCHES_CACHED: usize = 4;
/// Batches of a shard that are kept for their buffers, so that steady traffic does not allocate.
/// The remembered ones hold half of them.
pub const BATCHES_POOLED: usize = 2 * BATCHES_CACHED * Format::COUNT;
/// Clients of a shard that may wait for an event on its way; further ones are told of a gap.
/// Each holds its request head.
pub const HELD_BACK_MAX: usize = 1_024;
/// Bytes of answers that may wait behind a send in flight before pings go unanswered: only the
/// latest is owed a pong (RFC 6455 §5.5.3), and a client that does not read must not make us
/// remember.
pub const PONGS_BYTES_MAX: usize = 4 << 10;
/// Bytes of answers to commands that may wait to be sent; then nothing more is received from their
/// client until they are. A client has as many again in its receive buffers, at most.
pub const REPLIES_BYTES_MAX: usize = 16 << 10;
/// Bytes of echoes that may wait behind a send in flight (`--diagnostic-echo`); a client that sends
/// more without reading is closed as stalled. All receive buffers may be one client's in a turn.
pub const ECHO_WAITING_BYTES_MAX: usize = 1 << 20;
/// Bytes of one echo, whatever `message_in_bytes_max` allows: what a batch can hold.
pub const ECHO_BYTES_MAX: usize = 1 << 30;
/// Milliseconds between ticks: heartbeats, handshake limits, stalls.
pub const TICK_MS: u64 = 250;
/// Milliseconds that an idle shard listens to its doorbell alone before it sleeps in glommio's
/// reactor, whose wake-up costs five times as much: traffic of 50 events/s and more never pays for
/// that. The shard's timer may be late by this.
pub const DOZE_MS: u64 = 20;
/// Milliseconds that a send may block while slow sends together hold more than `pinned_bytes_max`.
pub const STALL_MS_UNDER_PRESSURE: u64 = 1_000;
/// Milliseconds after which a cancellation that did not end everything is asked again.
pub const CANCEL_RETRY_MS: u64 = 1_000;
/// Milliseconds that a closing connection waits for the peer's end of stream, so that our last
/// words arrive.
pub const LINGER_MS_MAX: u64 = 2_000;
/// Bytes not yet sent that a socket queues before it counts as full (`TCP_NOTSENT_LOWAT`). Bounds
/// what a slow subscriber holds in the kernel.
pub const NOT_SENT_BYTES_MAX: u32 = 256 << 10;
/// Questions of the hub that wait for a shard, which answers one per turn: those of all scrapes
/// under way, and as many again that were given up.
pub const QUESTIONS_MAX: usize = 2 * SCRAPES_MAX;
/// Entries of the slab that a shard looks at in one turn, for what time has done to them and again
/// for the drain: some tens of microseconds each.
pub const ENTRIES_LOOKED_AT_MAX: usize = 4_096;
/// Subscribers that a shard tells of a hole in one turn: a millisecond at most.
pub const HOLES_TOLD_MAX: usize = 256;
/// Connections whose time has come that a turn queues for attention: up to so many wait then,
/// others included. Half of what a step attends to, for each is attended to twice: when it is sent
/// what it is owed, and when it may lack news besides.
pub const DUE_PER_TURN: usize = SWEEP_VISITS_MAX / 4;
/// As many are queued behind any number of others, so that heartbeats come in a storm too.
pub const DUE_PER_TURN_MIN: usize = 8;
/// What a publisher's id costs each shard beside its event, until that leaves the window: two
/// integers in a tree.
pub const ID_PLACE_BYTES: usize = 32;
/// Subscribers that a shard tells of where the operator asks who is slow: those whose sends wait
/// longest.
pub const SLOW_SENDS_MAX: usize = 16;
/// Topics that are told of each of them.
pub const SLOW_TOPICS_MAX: usize = 8;
/// Topics that a shard tells of in one turn, and the hub puts together in one go: some tenths of a
/// millisecond. A longer page takes several questions.
pub const TOPICS_PER_ANSWER_MAX: usize = 1_024;

/// So many of the largest messages of clients may be under way on one shard at once.
pub const INCOMING_MESSAGES_MIN: usize = 32;
/// Publishes of one shard's clients that have no answer yet: as many as a busy turn brings.
pub const UPLINK_PUBLISHES_MAX: usize = 1_024;
/// Bytes of one shard's publishes on their way to the hub, from which on no further one is queued;
/// the last one may be of any size. The hub takes so much in some milliseconds.
pub const UPLINK_BYTES_MAX: usize = 4 << 20;
/// Asks of one shard's clients for a topic's subscribers that have no answer yet; what comes beyond
/// is told to come again. Each is a look at a table on every shard.
pub const PRESENCES_MAX: usize = 64;
/// Publishes of one client that have no answer yet; then nothing more is received from it until
/// half of them are answered. Enough for a client that does not wait for answers, and few beside
/// [`UPLINK_PUBLISHES_MAX`], so that one client does not take all places.
pub const UNANSWERED_MAX: usize = 64;
/// Bytes that were received from one client and are not read yet because it has to wait, from which
/// on its connection ends. All receive buffers may be one client's in a turn, and in the next one
/// until the kernel has ended its receive.
pub const PAUSED_BYTES_MAX: usize = 2 << 20;
/// Clients that wait for room and go on in one turn. Each may publish [`UNANSWERED_MAX`].
pub const RESUMES_PER_TURN_MAX: usize = 64;
/// Milliseconds for the whole body of a publish on the data plane, as on the control plane.
pub const POST_BODY_MS_MAX: u64 = 60_000;
/// Milliseconds that a connection on which somebody published may be idle. Browsers keep theirs for
/// longer and open another one then.
pub const POST_IDLE_MS_MAX: u64 = 60_000;
/// The same while sockets are short: then idle ones leave theirs to newcomers.
pub const POST_SILENCE_MS_MIN: u64 = 1_000;
/// Publishes that the hub takes from one shard before the next one has its turn.
pub const UPLINK_SHARE: usize = 64;
/// Publishes that the hub takes before it broadcasts them, answers, and looks at its other work.
pub const UPLINK_ROUND_MAX: usize = 1_024;

/// Publishes of one stream that may wait for the answer of a remote source, before the stream is
/// read on: as many as one flush to the disk or one round of acknowledgements takes.
pub const STREAM_WAITING_MAX: usize = 4_096;
/// Idempotency keys that the hub remembers, about 300 bytes each; beyond it the oldest is forgotten
/// before its time.
pub const IDEMPOTENCY_KEYS_MAX: usize = 65_536;
/// Milliseconds that a key is remembered: longer than a publisher waits before it asks again.
pub const IDEMPOTENCY_MS: u64 = 120_000;
/// Of the hub's queue, one place in so many is left to single publishes: streams, which wait for
/// room, take no more than the rest.
pub const SINGLES_SHARE: usize = 8;
/// Milliseconds until a stream whose topic has no room looks again. Shards give room back at every
/// tick, or sooner.
pub const TOPIC_RETRY_MS: u64 = 10;
/// Milliseconds until a full shard queue is tried again. The timer's resolution; a full queue holds
/// far more work.
pub const STALL_RETRY_MS: u64 = 1;
/// Events and topics that a shard tells of its histories in one answer, which is one turn's work.
pub const HISTORY_PER_ANSWER_MAX: usize = 4_096;
/// Milliseconds beyond `drain_ms_max` that the shards have to say that they are done, and again to
/// end once they are told to.
pub const DRAIN_GRACE_MS: u64 = 2_000;
/// Steps in which the time is counted that shards have to end, in milliseconds.
pub const END_STEP_MS: u64 = 50;

/// Streams that one connection of HTTP/2 may be allowed: they wait for room in one queue.
const H2_STREAMS_POSSIBLE: u64 = 10_000;
/// Requests of HTTP/2 of a shard that make no subscriber, or not yet; beyond its subscribers.
pub const H2_STREAMS_SPARE: usize = 1_024;
/// Bytes that are put together for one send of a connection of HTTP/2. What its streams have beyond
/// that waits for the next one. Also what one such connection pins when its socket is full.
pub const H2_PIECE_BYTES_MAX: usize = 64 << 10;
/// Bytes of such a piece whose memory is kept for the next one; larger ones are rare.
pub const H2_PIECE_POOLED_BYTES_MAX: usize = 32 << 10;
/// Bytes of such a connection's own words, answers to pings and the like, that may wait while its
/// client reads nothing.
pub const H2_WORDS_BYTES_MAX: usize = 16 << 10;
/// Frames of one block of fields. Clients cut blocks at 16 KiB, and ours are smaller.
pub const H2_CONTINUATIONS_MAX: u8 = 8;
/// Of each kind of frame that costs us more than its sender: how many may come at once, and how
/// many more with each tick.
pub const H2_RESETS: (u16, u16) = (400, 25);
/// A client says once what it wants, and seldom again.
pub const H2_SETTINGS: (u16, u16) = (40, 1);
/// Some clients measure their round trip all the time.
pub const H2_PINGS: (u16, u16) = (200, 10);
/// Empty DATA, PRIORITY, what is not known, and frames for streams that are gone.
pub const H2_EMPTY_FRAMES: (u16, u16) = (400, 25);
/// Each frame of DATA that we send allows two more: some clients answer every one.
pub const H2_WINDOW_UPDATES: (u16, u16) = (4_000, 250);
/// What a connection of HTTP/2 takes beside its entry, and each of its streams, at rest.
pub const H2_CARRIER_BYTES: usize = 192;
/// The same for a stream.
pub const H2_STREAM_BYTES: usize = 48;
/// Milliseconds that a connection of HTTP/2 may be without a stream. Browsers keep theirs for
/// minutes, and open another one when they need it.
pub const H2_IDLE_MS_MAX: u64 = 60_000;

const _: () = assert!(DOZE_MS * 4 <= TICK_MS);
const _: () = assert!(JWKS_UPGRADE_MS_MAX * 2 <= HAND_OVER_START_MS_MAX);
const _: () = assert!(SWEEP_VISITS_MAX * 2 <= SUBMISSIONS_MAX as usize);
const _: () = assert!(SUBMISSIONS_MAX * 4 <= COMPLETIONS_MAX);
const _: () = assert!(RECEIVE_BUFFERS.is_power_of_two());
const _: () = assert!(ECHO_WAITING_BYTES_MAX > RECEIVE_BUFFERS as usize * RECEIVE_BUFFER_BYTES);
const _: () = assert!(UNANSWERED_MAX * 16 <= UPLINK_PUBLISHES_MAX);
const _: () = assert!(PAUSED_BYTES_MAX > 2 * RECEIVE_BUFFERS as usize * RECEIVE_BUFFER_BYTES);
const _: () = assert!(SEGMENTS_MAX <= 1_024);
const _: () = assert!(PAGE_TOPICS <= PAGE_TOPICS_MAX);
const _: () = assert!(MS_POSSIBLE + KERNEL_PATIENCE_MS <= i32::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_agree_with_each_other() {
        assert_eq!(Limits::default().check(), Ok(()));
    }

    #[test]
    fn a_window_too_small_for_its_events_is_refused_by_name() {
        let limits = Limits { window_bytes_max: 1 << 20, ..Limits::default() };
        let error = limits.check().expect_err("too small");
        assert!(matches!(error, LimitError::TooSmall { flag: "window-bytes-max", value: 1_048_576, .. }));
        assert!(error.to_string().starts_with("--window-bytes-max is 1048576, at least 4199"), "{error}");
    }

    #[test]
    fn what_would_overflow_is_refused_by_name() {
        let most = |limits: Limits| limits.check().expect_err("too large");
        let cases = [
            ("topics-max", Limits { topics_max: usize::MAX, ..Limits::default() }),
            ("message-bytes-max", Limits { message_bytes_max: usize::MAX, ..Limits::default() }),
            ("send-bytes-max", Limits { send_bytes_max: 4 << 30, ..Limits::default() }),
            ("shard-queue-batches-max", Limits { shard_queue_batches_max: 1 << 40, ..Limits::default() }),
            ("stall-ms-max", Limits { stall_ms_max: 1 << 31, ..Limits::default() }),
            ("drain-ms-max", Limits { drain_ms_max: u64::MAX, ..Limits::default() }),
        ];
        for (name, limits) in cases {
            let error = most(limits);
            assert!(matches!(error, LimitError::TooLarge { flag, .. } if flag == name), "{error}");
            assert!(error.to_string().starts_with(&format!("--{name} is ")), "{error}");
        }
    }
}

//! What a shard counts, and the copy of it that a scrape gets.
//!
//! A shard owns its counters as plain integers; nobody else reads them. A scrape asks on the side
//! path and gets a [`ShardReport`]. Latencies are nanoseconds, recorded by (batch, reap) with
//! counts, never per frame.

use std::net::SocketAddr;

use hdrhistogram::Histogram;

use crate::close::{CloseReason, ErrorCode};
use crate::event::Topic;
use crate::refusal::RefusalCounts;
use crate::wire::Family;

/// Largest latency that a histogram tells apart, in nanoseconds (10 minutes); longer ones count as
/// this.
pub const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Significant decimal digits of a latency histogram.
pub const LATENCY_DIGITS: u8 = 2;

/// An empty latency histogram in nanoseconds.
pub fn latency_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, LATENCY_DIGITS).expect("constant bounds are valid")
}

/// Counters of one format on one shard. All count from the start, save where "now" is said.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct FamilyCounters {
    /// Subscribers now.
    pub connections: u64,
    /// Subscribers ever.
    pub opened: u64,
    /// Frames whose bytes the kernel took.
    pub frames: u64,
    /// Bytes that the kernel took, heads and heartbeats included.
    pub bytes: u64,
    /// Sends of which the kernel took some or all bytes.
    pub sends: u64,
    /// Sends that wait in the kernel for room in their socket now.
    pub sends_in_flight: u64,
    /// Visits of the sweep that found the connection's previous send still in the kernel.
    pub deferred: u64,
    /// Connections whose cursor fell out of the window.
    pub overruns: u64,
    /// Streams that began or went on with a gap notice.
    pub gaps: u64,
    /// Events that subscribers of the newest ones passed over, as far as windows still had them.
    pub conflated: u64,
    /// Messages that clients sent whole.
    pub messages_in: u64,
}

/// Tokens that clients brought, whether they were taken or not. Refusals count under their reasons.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct TokenCounters {
    /// Signatures that were checked.
    pub checked: u64,
    /// Tokens that were known from before.
    pub remembered: u64,
    /// Times a client had to wait for its turn.
    pub waits: u64,
}

/// What came by HTTP/2.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Http2Counters {
    /// Connections that began to carry streams.
    pub carriers: u64,
    /// Streams that were opened on them, whatever became of them.
    pub opened: u64,
    /// Streams now.
    pub streams: u64,
}

/// What subscribers got from before the windows.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct BackfillCounters {
    /// Backfills that were wanted and admitted.
    pub begun: u64,
    /// Those that came up to the windows.
    pub completed: u64,
    /// Those that had no place to wait: a gap was told.
    pub refused: u64,
    /// Gaps that were told because the source had lost something, or was away.
    pub gaps: u64,
    /// Stretches that were asked for.
    pub asks: u64,
    /// Events that were sent.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Backfills that have their turn now.
    pub serving: u64,
    /// Backfills that wait for it now.
    pub waiting: u64,
}

/// Counters and histograms of one shard.
#[derive(Debug, Clone)]
pub struct ShardMetrics {
    /// By family.
    pub families: [FamilyCounters; Family::COUNT],
    /// Connections that were accepted, whatever became of them.
    pub accepted: u64,
    /// Accepts that the kernel refused for want of resources.
    pub accept_failures: u64,
    /// TLS handshakes that came to their end.
    pub tls_handshakes: u64,
    /// HTTP/2.
    pub http2: Http2Counters,
    /// What came from before the windows.
    pub backfill: BackfillCounters,
    /// Connections now, those in the handshake or closing included; streams are none.
    pub connections: u64,
    /// Connections ended, by reason.
    pub closed: [u64; CloseReason::COUNT],
    /// Events taken from the hub.
    pub events: u64,
    /// What clients published and the hub took.
    pub published: u64,
    /// What clients wanted to publish and was not taken, here or at the hub, by reason.
    pub refused: RefusalCounts,
    /// Commands of clients that were answered, or went on to the hub.
    pub commands: u64,
    /// Commands that were not carried out, by code.
    pub command_errors: [u64; ErrorCode::COUNT],
    /// Tokens that clients brought.
    pub tokens: TokenCounters,
    /// Times nothing more was received from a client until its publishes were answered.
    pub pauses: u64,
    /// `io_uring_enter` calls of the EgressRing.
    pub enters: u64,
    /// Times the shard went to sleep.
    pub sleeps: u64,
    /// Sends that the kernel was asked not to copy.
    pub zero_copy_sends: u64,
    /// Those of them that it copied all the same.
    pub zero_copy_copied: u64,
    /// Intake at the hub to the shard's window, per event.
    pub intake_to_shard: Histogram<u64>,
    /// Intake to the completion of the send that carried the event, per delivery, by family.
    pub intake_to_written: [Histogram<u64>; Family::COUNT],
    /// Intake until the sweep has handed the event to every subscriber of the shard whose socket
    /// had room, per event. Those whose previous send was still in the kernel are not waited for;
    /// `deferred` counts them.
    pub intake_to_last: Histogram<u64>,
}

impl Default for ShardMetrics {
    fn default() -> Self {
        ShardMetrics {
            families: Default::default(),
            accepted: 0,
            accept_failures: 0,
            tls_handshakes: 0,
            http2: Http2Counters::default(),
            backfill: BackfillCounters::default(),
            connections: 0,
            closed: [0; CloseReason::COUNT],
            events: 0,
            published: 0,
            refused: RefusalCounts::default(),
            commands: 0,
            command_errors: [0; ErrorCode::COUNT],
            tokens: TokenCounters::default(),
            pauses: 0,
            enters: 0,
            sleeps: 0,
            zero_copy_sends: 0,
            zero_copy_copied: 0,
            intake_to_shard: latency_histogram(),
            intake_to_written: [latency_histogram(), latency_histogram()],
            intake_to_last: latency_histogram(),
        }
    }
}

/// Retained values of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct RetainedTotals {
    /// Values now.
    pub values: u64,
    /// What they weigh.
    pub bytes: u64,
    /// Values that were given up for want of room, from the start.
    pub given_up: u64,
}

/// One topic as one shard sees it.
#[derive(Debug, Clone)]
pub struct TopicReport {
    /// The topic.
    pub topic: Topic,
    /// Subscribers now, by family.
    pub subscribers: [u64; Family::COUNT],
    /// Events in the window.
    pub window_events: u64,
    /// Bytes of the window: what its events weigh ([`Event::weight`](crate::event::Event::weight)).
    pub window_bytes: u64,
    /// Sequence of the oldest event in the window, 0 if it is empty.
    pub oldest: u64,
    /// Sequence of the newest event in the window, or of the newest retained value if it is empty;
    /// 0 if there is neither.
    pub newest: u64,
    /// Retained values.
    pub retained: u64,
}

/// A subscriber whose send waits for room in its socket.
#[derive(Debug, Clone)]
pub struct SlowReport {
    /// Its address.
    pub peer: SocketAddr,
    /// Its protocol.
    pub family: Family,
    /// Its topics, not more than are told.
    pub topics: Vec<Topic>,
    /// Topics that are left out.
    pub more_topics: usize,
    /// Events of its topics that wait behind the send.
    pub lag_events: u64,
    /// Milliseconds since the send was submitted, to a tick.
    pub waits_ms: u64,
}

/// The answer to a scrape.
#[derive(Debug, Clone)]
pub struct ShardReport {
    /// The shard's number, from 0.
    pub shard: usize,
    /// The CPU it is pinned to.
    pub cpu: usize,
    /// Counters and histograms.
    pub metrics: ShardMetrics,
    /// Events in all histories of this shard.
    pub window_events: u64,
    /// Bytes in all histories of this shard, as published.
    pub window_bytes: u64,
    /// Events beyond the histories, which subscribers that are behind still lack.
    pub excess_events: u64,
    /// Their memory, with their frames.
    pub excess_bytes: u64,
    /// Retained values.
    pub retained: RetainedTotals,
    /// Bytes of small frames and answers that are laid out for sends under way.
    pub pinned_bytes: u64,
    /// Milliseconds that the oldest send waits for room in its socket, 0 if none does.
    pub oldest_send_ms: u64,
    /// Sequence of the newest event taken from the hub.
    pub sequence: u64,
    /// Subscribers that the shard takes.
    pub subscribers_max: u64,
}

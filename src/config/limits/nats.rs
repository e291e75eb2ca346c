//! Bounds of a source in NATS JetStream.

/// Milliseconds that a start waits for a NATS server that is absent.
pub const NATS_START_MS_MAX: u64 = 30_000;
/// Milliseconds for one connection to a server, its handshake included.
pub const NATS_CONNECT_MS_MAX: u64 = 3_000;
/// Milliseconds between tries to connect again, at most.
pub const NATS_RECONNECT_MS_MAX: u64 = 1_000;
/// Milliseconds between pings; a server that leaves two without an answer is gone.
pub const NATS_PING_MS: u64 = 5_000;
/// Milliseconds for an answer of JetStream about streams and consumers.
pub const NATS_API_MS_MAX: u64 = 2_000;
/// Milliseconds for the creation of a stream: a cluster has to choose a leader first.
pub const NATS_CREATE_MS_MAX: u64 = 20_000;
/// Milliseconds from a publish to its acknowledgement. Then its outcome is unknown, and the
/// publisher is told so.
pub const NATS_ACK_MS_MAX: u64 = 5_000;
/// Publishes without an acknowledgement; beyond it publishers get 503 or wait. Each costs a few
/// hundred bytes besides its data.
pub const NATS_IN_FLIGHT_MAX: usize = 4_096;
/// Bytes of these publishes.
pub const NATS_IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// How long the same `Nats-Msg-Id` is taken for the same message, in a stream that we create.
pub const NATS_DUPLICATE_MS: u64 = 120_000;
/// Age and bytes of a stream that we create without flags.
pub const NATS_MAX_AGE_MS: u64 = 86_400_000;
/// Bytes of it.
pub const NATS_MAX_BYTES: u64 = 1 << 30;
/// Messages that the server may send before it is asked for more.
pub const NATS_PULL_MESSAGES: usize = 2_000;
/// Their bytes, if a single message is not larger.
pub const NATS_PULL_BYTES: usize = 8 << 20;
/// Milliseconds for one request for messages, after which it is made again.
pub const NATS_PULL_MS: u64 = 30_000;
/// Milliseconds between signs of life of a consumer without messages. Two that are missing mean
/// that it is gone.
pub const NATS_HEARTBEAT_MS: u64 = 1_000;
/// Seconds after which the server forgets a consumer that nobody asks.
pub const NATS_CONSUMER_S_MAX: u64 = 30;
/// Messages that are taken at once.
pub const NATS_TAKE_MAX: usize = 1_024;
/// Milliseconds between tries to read on.
pub const NATS_RETRY_MS: u64 = 250;
/// Milliseconds between looks at the stream and at the epoch.
pub const NATS_LOOK_MS: u64 = 1_000;
/// Looks in a row that must find the stream missing, or the place of its epoch silent, before they
/// are made anew.
pub const NATS_LOOKS_MISSING: u32 = 3;
/// Times that the leader of a stream is made to show that it knows all of it, while leaders change.
pub const NATS_FENCES_MAX: u32 = 8;
/// Times that it must say the same, where the stream does not allow that.
pub const NATS_LOOKS: u32 = 8;
/// Milliseconds between notes of the head beside the epoch, of all nodes together.
pub const NATS_NOTE_MS: u64 = 2_000;
/// Milliseconds without a sign of life of the stream, after which publishes are refused at once and
/// `/healthz` tells so.
pub const NATS_DEGRADED_MS: u64 = 5_000;
/// A stream of at most so many messages is read back whole, so that clients that come back after a
/// long time are told of no gap for nothing; a larger one as far back as histories go.
pub const NATS_READ_BACK_MESSAGES: u64 = 100_000;
/// Milliseconds without a message, after which a start believes that there is none to come.
pub const NATS_IDLE_MS: u64 = 1_000;
/// Milliseconds that a start may take to read windows back; what is older then is a gap.
pub const NATS_READ_BACK_MS_MAX: u64 = 60_000;

/// Milliseconds that a start may take to find what is retained from before that.
pub const NATS_VALUES_MS_MAX: u64 = 15_000;

/// Milliseconds that a client waits which names an event that another node has read and this one
/// has not: as long as a node may need to read on when the server dies that held its consumer. A
/// client that is told of a gap before that gets events again which it has from the other node.
pub const NODE_BEHIND_MS_MAX: u64 = 12_000;
/// Messages of one core subject that wait for the stream; others wait in the client.
pub const NATS_CORE_WAITING_MAX: usize = 1_024;
/// Milliseconds between words of a node that it is there, and of silence after which others forget
/// it.
pub const NODE_HELLO_MS: u64 = 1_000;
/// See [`NODE_HELLO_MS`].
pub const NODE_SILENT_MS: u64 = 5_000;
/// Nodes that are known besides this one.
pub const NODES_MAX: usize = 1_000;
/// Questions of other nodes that are answered at the same time.
pub const NODE_ANSWERS_MAX: usize = 16;
/// Milliseconds that the other nodes have for an answer; longer than a shard has.
pub const NODE_ANSWER_MS_MAX: u64 = 1_500;

const _: () = assert!(NODE_SILENT_MS > 2 * NODE_HELLO_MS, "one word may be lost");
const _: () = assert!(
    NODE_BEHIND_MS_MAX >= NATS_PING_MS + 2 * NATS_HEARTBEAT_MS + NATS_API_MS_MAX,
    "a consumer that died with its server is replaced by then"
);
const _: () = assert!(NATS_NOTE_MS >= NATS_LOOK_MS, "a note is made at a look");
const _: () = assert!(NATS_PULL_MS > 2 * NATS_HEARTBEAT_MS, "a request lives longer than a heartbeat");

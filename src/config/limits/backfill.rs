//! Limits of backfill: of what is read from the source for subscribers whose windows reach less far
//! back than they ask.

/// Bytes of a stretch of the past, from which on it ends: a socket mostly takes them at once. One
/// event may be larger.
pub const STRETCH_BYTES_MAX: usize = 64 << 10;
/// Bytes of the source that are looked through for one stretch before another one has its turn:
/// some milliseconds.
pub const STRETCH_LOOKED_AT_MAX: usize = 4 << 20;
/// Bytes that are read at once.
pub const STRETCH_READ_BYTES: usize = 256 << 10;
/// Stretches that are kept for those who ask for the same next: 8 MiB where all are full.
pub const STRETCHES_KEPT: usize = 128;
/// Asks of one shard for stretches that one turn makes.
pub const STRETCHES_PER_TURN_MAX: usize = 8;
/// Backfills of one shard at once that may be allowed, about 140 KiB each.
pub const BACKFILLS_POSSIBLE: u64 = 1_024;
/// Bytes in a second that may be allowed: a tebibyte.
pub const BACKFILL_BYTES_POSSIBLE: u64 = 1 << 40;
/// Subscribers of a shard that wait for their turn, about 200 bytes each; one more is told of a gap.
pub const BACKFILLS_WAITING_MAX: usize = 16_384;
/// Asks of one shard without an answer, some 200 bytes each. Those who can ask at once are not so
/// many: the others are of clients that have left while a slow source looks.
pub const ASKS_UNANSWERED_MAX: usize = 4_096;
/// Milliseconds that a backfill waits for a source that cannot be read, or does not have yet what is
/// asked of it. Then its subscriber is told of a gap.
pub const BACKFILL_AWAY_MS_MAX: u64 = 10_000;
/// Milliseconds that a search for where `since` and `last` begin may take, and is worked on: less
/// than a request head is waited for where room is short.
pub const SEARCH_MS_MAX: u64 = super::HANDSHAKE_MS_SHORT * 3 / 4;
/// Milliseconds that a stretch may wait for its socket while other subscribers wait for their turn.
pub const BACKFILL_SLOW_MS_MAX: u64 = 5_000;
/// Milliseconds for which a window holds events for a subscriber that has nearly come up to it.
pub const BACKFILL_HOLD_MS_MAX: u64 = 2_000;
/// Removals of topics that are remembered; what came before an older one is not read any more.
pub const REMOVALS_MAX: usize = 16_384;
/// Different topics of a segment of the store that are remembered. A segment of more is always
/// looked through.
pub const SEGMENT_TOPICS_MAX: usize = 65_536;
/// Those of all segments, however many there are.
pub const STORE_TOPICS_MAX: usize = 1 << 18;
/// What one of them takes, at most: a hash, and places that are free.
pub const STORE_TOPIC_BYTES: usize = 20;

const _: () = assert!(BACKFILLS_POSSIBLE as usize + super::HELD_BACK_MAX < ASKS_UNANSWERED_MAX);

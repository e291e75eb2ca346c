//! Limits of retained values, and of what is kept for subscribers that want the latest alone.

use super::TOPIC_BYTES;

/// What a retained value costs besides its event: its place in the tables, and its topic, which
/// lives for it.
pub const RETAINED_VALUE_BYTES: usize = TOPIC_BYTES;
/// Values that are kept for subscribers of one topic or pattern with `slow=latest` that lack them,
/// some 150 bytes each besides their events; beyond it the oldest is given up, and those who lack
/// it are told of a gap.
pub const VALUES_MAX: usize = 1 << 17;
/// Events that are looked at, the newest first, to find the newest one of each topic or key, and
/// that are counted as passed over by one send.
pub const VALUES_LOOKED_AT_MAX: usize = 16_384;
/// Bytes of retained values that a newcomer is sent at once; one value may be larger.
pub const GREETING_BYTES_MAX: usize = 16 << 10;
/// Retained values of a shard that are looked at for the next ones of a pattern: some tens of
/// microseconds.
pub const GREETING_LOOKS_MAX: usize = 1_024;

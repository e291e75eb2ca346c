//! Limits of the log.

use super::TOPIC_BYTES_MAX;

/// Milliseconds between two warnings of the log for one reason that clients or publishers provoke.
pub const LOG_WARNING_MS: u64 = 10_000;
/// Lines per second about single connections for one reason, of each shard and of the hub.
pub const LOG_DETAILS_PER_SECOND: u32 = 10;
/// Lines that wait for the thread that writes the log, with `--access-log`; further ones are left
/// out and counted.
pub const LOG_LINES_MAX: usize = 4 << 10;
/// Topics that a line of the access log names. What it holds of a subscriber, and a line that
/// waits, are mostly these.
pub const ACCESS_TOPICS_MAX: usize = 4;
/// Bytes of the longest line of the access log: each topic with escapes, and the rest.
pub const ACCESS_LINE_BYTES_MAX: usize = ACCESS_TOPICS_MAX * 6 * TOPIC_BYTES_MAX + 512;
/// Bytes that the access log holds of a subscriber; topics are shared.
pub const ACCESS_ENTRY_BYTES: usize = 160;
/// Milliseconds that the last lines of the log have to be written.
pub const LOG_FLUSH_MS_MAX: u64 = 1_000;

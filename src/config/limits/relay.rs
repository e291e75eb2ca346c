//! Limits of a server that follows another one.

/// Patterns that are followed.
pub const RELAY_MATCHES_MAX: usize = 64;
/// How long the origin may take for an answer, a connection included.
pub const RELAY_ANSWER_MS_MAX: u64 = 10_000;
/// Between an answer of the origin and our next question whether it is there.
pub const RELAY_PING_MS: u64 = 5_000;
/// How long a start waits for an origin that does not answer.
pub const RELAY_START_MS_MAX: u64 = 10_000;
/// The longest wait before an origin that has gone is asked again, whatever it has asked for.
pub const RELAY_RETRY_MS_MAX: u64 = 30_000;
/// How long the origin's history may take. Then subscribers come in.
pub const RELAY_HISTORY_MS_MAX: u64 = 10_000;
/// Where the newest events are not for us, the history is here when nothing has come for so long.
pub const RELAY_QUIET_MS: u64 = 300;
/// How long the origin may be away before operators are told.
pub const RELAY_DEGRADED_MS: u64 = 5_000;

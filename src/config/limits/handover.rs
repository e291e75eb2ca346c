//! Limits of the words between a server and the one that takes its place.

/// Milliseconds until the next word of a hand-over where nothing has to be done for it.
pub const HAND_OVER_WORD_MS_MAX: u64 = 5_000;
/// Milliseconds that a new process has to start its shards beside the one that runs.
pub const HAND_OVER_START_MS_MAX: u64 = 30_000;
/// Milliseconds for which publishers may get 503 while the state is handed over. A gibibyte takes
/// some two seconds.
pub const HAND_OVER_MS_MAX: u64 = 15_000;
/// Milliseconds that a process goes on after its last subscriber when another one has its place,
/// for those that it had let in just before.
pub const HAND_OVER_LINGER_MS: u64 = 1_000;
/// Milliseconds after which a shard is asked again that has not taken the newest event.
pub const HAND_OVER_RETRY_MS: u64 = 1;
/// Bytes of one word of a hand-over; a server with a thousand addresses tells them in it.
pub const HAND_OVER_PACKET_BYTES_MAX: usize = 128 << 10;
/// Descriptors that one word of a hand-over takes along, below the kernel's 253 (`SCM_MAX_FD`).
pub const HAND_OVER_DESCRIPTORS_MAX: usize = 128;
/// Processes that wait to speak to the one whose place they want.
pub const HAND_OVER_BACKLOG: i32 = 8;

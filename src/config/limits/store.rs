//! Limits of the store, and of sources that answer later.

/// Publishes that wait until a remote source looks at them.
pub const REMOTE_PUBLISHES_MAX: usize = 16_384;
/// Bytes of publishes that a remote source has not answered, from which on none is handed to it.
pub const REMOTE_BYTES_MAX: usize = 64 << 20;
/// Milliseconds that a draining hub waits for what its source has not answered yet.
pub const SOURCE_SETTLE_MS_MAX: u64 = 5_000;
/// Entries that wait for the thread that writes the store; of more publishers get 503, or wait.
pub const STORE_QUEUE_MAX: usize = 16_384;
/// Bytes of them, about, from which on none is taken: a disk that does not keep up, or refuses, holds
/// so much of the memory.
pub const STORE_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes that are written and not synced, with `--fsync interval`, from which on a sync does not
/// wait: they are kept in memory, so that they can be written again after a sync that failed.
pub const STORE_UNSYNCED_BYTES_MAX: usize = 8 << 20;
/// Entries that go to the disk together.
pub const STORE_BATCH_MAX: usize = 4_096;
/// Their bytes, about; the last one may be of any size.
pub const STORE_BATCH_BYTES_MAX: usize = 4 << 20;
/// Milliseconds within which the disk has an event, with `--fsync interval`.
pub const STORE_SYNC_MS: u64 = 100;
/// Milliseconds until a disk that refuses is tried again.
pub const STORE_RETRY_MS: u64 = 1_000;
/// Milliseconds between two looks for segments that are too old.
pub const STORE_TIDY_MS: u64 = 10_000;
/// Bytes of a segment: a removal of the oldest takes as much, and a start reads one at a time.
pub const STORE_SEGMENT_BYTES: u64 = 32 << 20;
/// The longest age that may be asked for, in milliseconds: ten years. It is a bound against typing
/// errors; what there is room for is bounded by bytes.
pub const STORE_AGE_MS_MAX: u64 = 87_600 * 3_600_000;
/// Least bytes that a store may have: some segments.
pub const STORE_BYTES_MIN: u64 = 8 << 20;

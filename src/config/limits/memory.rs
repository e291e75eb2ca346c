//! Limits of the process's memory: its ceiling, histories below it, what goes back to the kernel.

/// Bytes that a ceiling of memory has at least: the server itself takes about a third of it.
pub const MEMORY_BYTES_MIN: usize = 32 << 20;
/// One part in so many of a cgroup's limit stays above the ceiling: for what nobody counts, such as
/// page tables, and for what grows between two looks.
pub const MEMORY_MARGIN_SHARE: u64 = 10;
/// Milliseconds between two looks at the memory of the process: some system calls on small files of
/// the kernel.
pub const MEMORY_LOOK_MS: u64 = 250;
/// Looks that a cut of the histories has to show in the process's memory before another one: the
/// allocator gives memory back a second after it was freed, or some.
pub const MEMORY_CUT_LOOKS: u32 = 20;
/// Memory that histories keep, however short memory is: the last hundred of small events.
pub const HISTORY_BYTES_LEAST: usize = 64 << 10;
/// Histories are shortened in steps of one part in so many, so that a shard's turn stays short.
pub const HISTORY_STEPS: usize = 64;
/// What a connection costs in user space; `serve` checks it.
pub const CONNECTION_BYTES: usize = 144;
/// What an idle connection costs in the kernel: socket, file and what belongs to them (measured:
/// `docs/numbers.md`).
pub const SOCKET_BYTES: usize = 4 << 10;
/// What a send that waits for its socket holds in the kernel besides, where nobody tells: the bytes
/// that are not sent yet ([`NOT_SENT_BYTES_MAX`](super::NOT_SENT_BYTES_MAX)), and the structures
/// around them. 0.8 MiB were measured where a fast path came to a standstill, far less is usual on
/// slow ones.
pub const WAITING_SEND_BYTES: usize = 512 << 10;
/// Milliseconds between two looks of the allocator for freed memory that the kernel may have back.
pub const GIVE_BACK_MS: u64 = 4_000;
/// Bytes of an allocation that has a page of its own in mimalloc.
pub const GIVE_BACK_PAGE_BYTES: usize = 1 << 20;

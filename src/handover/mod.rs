//! The hand-over from a running server to the one that takes its place (`serve --upgrade`): what is
//! said, what is passed, and where the two find each other.
//!
//! ```text
//!   old process                                         new process
//!     |  <-- Hello: the format that it takes               |
//!     |  --> Offer: epoch and addresses, then listeners    |  starts shards that accept nobody
//!     |  <-- Ready                                         |
//!     |  takes no more publishes; tells its shards' past   |
//!     |  --> State: a memfd                                |  restores it
//!     |  <-- Restored                                      |
//!     |  accepts nobody any more                           |
//!     |  --> Go                                            |
//!     |  <-- Taken                                         |  accepts and publishes
//!     |  drains                                            |
//! ```
//!
//! Invariants worth naming:
//! - Until `Taken` the old process is the server, and whatever fails before is undone: it publishes
//!   and accepts again. From `Taken` on the new one is. The kernel makes that one moment: a packet
//!   on a local socket is either in the other's queue, where it is found even after a shutdown, or
//!   its send has failed (unix(7), `unix_dgram_sendmsg` in `net/unix/af_unix.c`).
//! - Each step has a bound in time, on both sides.
//! - Listeners are passed as what they are (`SCM_RIGHTS`, unix(7)), so that what waits in their
//!   queues is lost to nobody. Neither side shuts one down.
//! - Only a process of the same user is spoken to (`SO_PEERCRED`), over a socket in a directory
//!   that is only that user's.
//!
//! Not here: what hub and shards do for it (`hub/upgrade`, `shard`), and who starts the new process
//! (`serve`).

pub mod place;
pub mod state;
pub mod talk;

/// The format of what is said and of the state. Processes of another one do not hand over to each
/// other.
pub const FORMAT: u32 = 3;

/// The program's version, for messages.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

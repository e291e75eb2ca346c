//! Submit and reap: the shard's own io_uring, which owns every subscriber socket.
//!
//! The shard speaks to the [`EgressRing`] trait; [`uring`] is the kernel's, `sim` (of the feature
//! of that name) the seeded double that tests and benchmarks drive. What the compiler cannot check
//! of the crate is all in [`uring`], and only therefore [`prefetch`] is.

pub mod batch;
pub mod listener;
pub mod ring;
#[cfg(feature = "sim")]
pub mod sim;
pub mod uring;

pub use batch::{Batch, Ledger, Payload};
pub use ring::{Completion, EgressRing, ReceiveEnd, RingError, SendError, SendMode, Slot};
pub use uring::prefetch;

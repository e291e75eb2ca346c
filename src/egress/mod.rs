//! Submit and reap: the shard's own ring, which owns every subscriber socket.
//!
//! The shard speaks to the [`EgressRing`] trait. [`uring`] is the kernel's own, [`epoll`] takes its
//! place where that is not to be had, `sim` (of the feature of that name) is the seeded double that
//! tests and benchmarks drive. What the compiler cannot check of the crate is all in [`uring`], and
//! only therefore [`prefetch`] is.

pub mod batch;
pub mod epoll;
pub mod listener;
pub mod places;
pub mod ring;
#[cfg(feature = "sim")]
pub mod sim;
pub mod uring;

pub use batch::{Batch, Ledger, Payload};
pub use ring::{Completion, EgressRing, Insecure, ReceiveEnd, RingError, SendError, SendMode, Slot};
pub use uring::prefetch;

#[cfg(test)]
mod tests;

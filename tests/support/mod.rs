//! What the tests share.

pub mod chunks;
pub mod peer;

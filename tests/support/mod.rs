//! What the tests share.

pub mod peer;

//! A shard.
pub mod close;

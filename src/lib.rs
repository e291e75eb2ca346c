#![doc = include_str!("ARCHITECTURE.md")]

// The journey of an event, in order.
pub mod broadcast; // to every shard
pub mod egress;
pub mod event; // what a publisher says
pub mod hub; // publish: sequence, encode
pub mod shard; // windows, cursors, sweep // submit and reap: every subscriber socket

// What the stages stand on.
pub mod clock;
pub mod config;
pub mod metrics;
pub mod runtime;
pub mod serve; // puts the stages together
pub mod wire;

// The other ends.
pub mod client;

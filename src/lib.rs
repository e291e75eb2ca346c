#![doc = include_str!("ARCHITECTURE.md")]

// The journey of an event: event, hub, broadcast, shard, egress.
pub mod broadcast; // to every shard
pub mod egress; // submit and reap: every subscriber socket
pub mod event; // what a publisher says
pub mod hub; // publish: sequence, encode
pub mod shard; // windows, cursors, sweep

// What the stages stand on.
pub mod acme;
pub mod admission;
pub mod auth; // who may come in
pub mod clock;
pub mod close; // why we hang up
pub mod config;
pub mod handover; // to the process that takes our place
pub mod http2; // a ring around a ring: streams on one socket
pub mod jetstream; // the stream of events in NATS
pub mod log; // how its lines look, how many there may be
pub mod metrics;
pub mod printed; // commands for people to paste
pub mod publishing; // bytes of a publish to an event
pub mod refusal; // why a publish is not taken
pub mod runtime;
pub mod secret; // a bearer token
pub mod serve; // puts the stages together
pub mod store; // events that outlive their process
pub mod systemd; // the service manager
pub mod tls; // a ring around a ring
pub mod topic_pattern; // names for many topics
pub mod wire;

// The other ends.
pub mod client;

// What the user typed.
pub mod command;

//! What fanwave promises to those who use it, shown on the real program over real sockets.
//!
//! Each module under `promises/` is one promise: its header says the claim, the set-up and the
//! expectation. Every test starts a server of its own with small limits. Nothing here waits for a
//! time to pass: a test waits for a condition, and gives up with a clear message after
//! `support::PATIENCE`.
//!
//! Tests that are ignored say why: most need a program that not every machine has, which
//! `tests/run` installs.

#[path = "support/live.rs"]
mod support;

mod promises {
    mod acme;
    mod admission;
    mod backfill;
    mod backfill_for_long;
    mod bad_requests;
    mod browser;
    mod bulk;
    mod ceiling;
    mod client_post;
    mod client_publish;
    mod control;
    mod control_access;
    mod control_room;
    mod control_tls;
    mod conversation;
    mod dashboard;
    mod delivery;
    mod echo;
    mod firefox;
    mod first_steps;
    mod full;
    mod gap;
    mod half_closed;
    mod heartbeat;
    mod http2;
    mod idempotency;
    mod internet;
    mod interop;
    mod jetstream;
    mod jetstream_access;
    mod jetstream_backfill;
    mod jetstream_client;
    mod jetstream_cluster;
    mod jetstream_retained;
    mod latest;
    mod log;
    mod memory;
    mod metrics;
    mod ndjson;
    mod nodes_for_long;
    mod overrun;
    mod packages;
    mod pages;
    mod patterns;
    mod playground;
    mod proxies;
    mod publish;
    mod refusals;
    mod relay;
    mod reload;
    mod resume;
    mod retained;
    mod rules;
    mod secure_clients;
    mod service_manager;
    mod shutdown;
    mod stalled_reader;
    mod start_up;
    mod starts;
    mod store;
    mod store_disk;
    mod store_kills;
    mod tail;
    mod tls;
    mod tls_faults;
    mod token_matrix;
    mod tokens;
    mod topics;
    mod upgrade;
    mod websocket;
}

//! Bytes of the protocols: pure functions and small state machines, no I/O, no clock.

pub mod chunked;
pub mod format;
pub mod gap;
pub mod http;
pub mod proxy;
pub mod sse;
pub mod sse_parser;
pub mod websocket;

pub use format::{Family, Format};

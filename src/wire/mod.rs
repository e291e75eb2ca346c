//! Bytes of the protocols: pure functions and small state machines, no I/O, no clock.

pub mod chunked;
pub mod envelope;
pub mod format;
pub mod gap;
pub mod http;
pub mod http2;
pub mod json;
pub mod proxy;
pub mod slow;
pub mod sse;
pub mod sse_parser;
pub mod start;
pub mod websocket;

pub use format::{Family, Format};
pub use slow::SlowPolicy;
pub use start::Start;

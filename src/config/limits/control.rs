//! Limits of the control plane: connections, bodies, listings, scrapes.

/// Connections of one control listener; more wait in the kernel. Each may hold one message or
/// NDJSON line.
pub const CONTROL_CONNECTIONS_MAX: usize = 1_024;
/// Milliseconds without accepting control connections after the kernel refused to, for example
/// because descriptors ran out.
pub const CONTROL_ACCEPT_RETRY_MS: u64 = 100;
/// Milliseconds for a request head on a control connection, the idle time before it included.
pub const CONTROL_HEAD_MS_MAX: u64 = 60_000;
/// Milliseconds for the whole body of `POST /topics/{topic}`. Bounds how long a slow publisher
/// holds its buffer.
pub const CONTROL_BODY_MS_MAX: u64 = 60_000;
/// Bytes of the receive buffer of one control connection: the most that one body chunk carries.
pub const CONTROL_BUFFER_BYTES_MAX: usize = 256 << 10;
/// Milliseconds that control connections have to end after the last shard's subscribers have.
pub const CONTROL_GRACE_MS: u64 = 500;
/// Capacity for an incomplete NDJSON line that is kept for the next one; larger ones are given
/// back.
pub const LINE_BYTES_KEPT: usize = 16 << 10;
/// Error lines that wait for the publisher of one NDJSON stream to read them; further ones are only
/// counted.
pub const ERROR_LINES_MAX: usize = 256;
/// Bytes of one refusal's text: parsers quote what they do not know, however long it is.
pub const REFUSAL_BYTES_MAX: usize = 512;
/// Milliseconds that a shard has to answer a scrape.
pub const SCRAPE_MS_MAX: u64 = 1_000;
/// Scrapes under way at once; each holds the reports of all shards.
pub const SCRAPES_MAX: usize = 2;
/// Topics of one page of `GET /topics` without `limit`.
pub const PAGE_TOPICS: usize = 1_000;
/// Listings under way at once; each holds what it has gathered of its page.
pub const LISTINGS_MAX: usize = 2;
/// Largest `limit`. Bounds the answer; the next page goes on after its last name.
pub const PAGE_TOPICS_MAX: usize = 10_000;
/// Of a control listener's connections, one in so many is kept for `/healthz` and statistics when
/// all others are at work.
pub const CONTROL_SPARE_SHARE: usize = 8;
/// The most that are kept so; each of them is answered at once.
pub const CONTROL_SPARE_MAX: usize = 16;
/// Milliseconds that a control connection may be silent although room is short, unless there is
/// none at all: a client that has just connected is about to ask.
pub const CONTROL_SILENCE_MS_MIN: u64 = 1_000;

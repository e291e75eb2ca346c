//! Why what a publisher or an operator sent is not taken: one table with label and HTTP status.
//!
//! The hub refuses, and so does a shard, where clients may publish. Each counts what it refused
//! under the reason's label in `GET /stats`. `full`, `behind`, `draining`, `upgrading`, `busy`,
//! `source` and `outcome_unknown` are ours and a retry helps; all the others are the caller's, and
//! the same request fails again. The text of a [`Refusal`] is one line that says what is wrong and
//! where.

use http::StatusCode;
use serde::Serialize;
use serde::ser::Serializer;

use crate::config::limits::REFUSAL_BYTES_MAX;

/// The kind of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum RefusalReason {
    /// The hub's queue is full because a shard's queue is full.
    Full,
    /// The topic's events, or those of all topics, take as much memory as they may, because
    /// subscribers are behind.
    Behind,
    /// The process has nearly as much memory as it may take, and shorter histories were not enough.
    Memory,
    /// The server is draining.
    Draining,
    /// The server hands over to the process that takes its place.
    Upgrading,
    /// The topic is illegal.
    BadTopic,
    /// The event name is illegal.
    BadEvent,
    /// The id is illegal.
    BadId,
    /// The id has the form of the server's own ids.
    ReservedId,
    /// The event name is that of the server's own notice.
    ReservedEvent,
    /// The reconnection time is not a number of milliseconds.
    BadRetry,
    /// A query parameter is unknown, doubled or malformed.
    BadQuery,
    /// Text data is not UTF-8.
    NotUtf8,
    /// The data is larger than a message may be.
    TooLarge,
    /// A line of NDJSON is longer than a line may be.
    LineTooLong,
    /// A line of NDJSON is not the JSON of an event.
    BadJson,
    /// Binary data is not base64.
    BadBase64,
    /// The request body ended early or is malformed.
    BodyBroken,
    /// The request body did not arrive in time.
    BodyTimeout,
    /// The path is none of the control API's.
    UnknownPath,
    /// The path is ours, but does not take this method.
    WrongMethod,
    /// The request head is malformed or breaks off.
    BadHead,
    /// The request head is larger than allowed.
    HeadTooLarge,
    /// The request head did not arrive in time.
    HeadTimeout,
    /// The request target is longer than a head may be.
    TargetTooLong,
    /// The `Host` is missing, doubled or malformed.
    BadHost,
    /// The `Host` is a name that is not ours.
    ForeignHost,
    /// A page of a foreign origin asks.
    ForeignOrigin,
    /// The control token is missing or wrong.
    Unauthorized,
    /// The configuration that is to be loaded is wrong.
    BadConfig,
    /// The body is compressed, or encoded in another way.
    ContentCoding,
    /// The body has a transfer coding that is not understood.
    TransferCoding,
    /// As many control connections are in use as there is room for, or clients' messages under way
    /// take as much memory as they may.
    Busy,
    /// Clients may not publish to this topic.
    NotAllowed,
    /// The key or the idempotency key is illegal.
    BadKey,
    /// The idempotency key was used for another event of the topic.
    Conflict,
    /// There is no TLS where it is spoken, or its handshake failed.
    TlsHandshake,
    /// The source of events does not take it: nothing was sent to it.
    Source,
    /// It was sent to the source of events, which has not said what became of it.
    OutcomeUnknown,
    /// This server follows another one, where events are published.
    Follows,
    /// What the server that is followed says cannot be an event here.
    Foreign,
}

/// The rows of the table, in the order of [`RefusalReason`]: label, HTTP status.
const TABLE: [(RefusalReason, &str, StatusCode); RefusalReason::COUNT] = {
    use RefusalReason::*;
    [
        (Full, "full", StatusCode::SERVICE_UNAVAILABLE),
        (Behind, "behind", StatusCode::SERVICE_UNAVAILABLE),
        (Memory, "memory", StatusCode::SERVICE_UNAVAILABLE),
        (Draining, "draining", StatusCode::SERVICE_UNAVAILABLE),
        (Upgrading, "upgrading", StatusCode::SERVICE_UNAVAILABLE),
        (BadTopic, "bad_topic", StatusCode::BAD_REQUEST),
        (BadEvent, "bad_event", StatusCode::BAD_REQUEST),
        (BadId, "bad_id", StatusCode::BAD_REQUEST),
        (ReservedId, "reserved_id", StatusCode::BAD_REQUEST),
        (ReservedEvent, "reserved_event", StatusCode::BAD_REQUEST),
        (BadRetry, "bad_retry", StatusCode::BAD_REQUEST),
        (BadQuery, "bad_query", StatusCode::BAD_REQUEST),
        (NotUtf8, "not_utf8", StatusCode::BAD_REQUEST),
        (TooLarge, "too_large", StatusCode::PAYLOAD_TOO_LARGE),
        (LineTooLong, "line_too_long", StatusCode::PAYLOAD_TOO_LARGE),
        (BadJson, "bad_json", StatusCode::BAD_REQUEST),
        (BadBase64, "bad_base64", StatusCode::BAD_REQUEST),
        (BodyBroken, "body_broken", StatusCode::BAD_REQUEST),
        (BodyTimeout, "body_timeout", StatusCode::REQUEST_TIMEOUT),
        (UnknownPath, "unknown_path", StatusCode::NOT_FOUND),
        (WrongMethod, "wrong_method", StatusCode::METHOD_NOT_ALLOWED),
        (BadHead, "bad_head", StatusCode::BAD_REQUEST),
        (HeadTooLarge, "head_too_large", StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        (HeadTimeout, "head_timeout", StatusCode::REQUEST_TIMEOUT),
        (TargetTooLong, "target_too_long", StatusCode::URI_TOO_LONG),
        (BadHost, "bad_host", StatusCode::BAD_REQUEST),
        (ForeignHost, "foreign_host", StatusCode::FORBIDDEN),
        (ForeignOrigin, "foreign_origin", StatusCode::FORBIDDEN),
        (Unauthorized, "unauthorized", StatusCode::UNAUTHORIZED),
        (BadConfig, "bad_config", StatusCode::UNPROCESSABLE_ENTITY),
        (ContentCoding, "content_coding", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (TransferCoding, "transfer_coding", StatusCode::NOT_IMPLEMENTED),
        (Busy, "busy", StatusCode::SERVICE_UNAVAILABLE),
        (NotAllowed, "not_allowed", StatusCode::FORBIDDEN),
        (BadKey, "bad_key", StatusCode::BAD_REQUEST),
        (Conflict, "conflict", StatusCode::CONFLICT),
        (TlsHandshake, "tls_handshake", StatusCode::BAD_REQUEST),
        (Source, "source", StatusCode::SERVICE_UNAVAILABLE),
        (OutcomeUnknown, "outcome_unknown", StatusCode::GATEWAY_TIMEOUT),
        (Follows, "follows", StatusCode::MISDIRECTED_REQUEST),
        (Foreign, "foreign", StatusCode::BAD_GATEWAY),
    ]
};

impl RefusalReason {
    /// How many reasons there are.
    pub const COUNT: usize = RefusalReason::Foreign as usize + 1;

    /// All of them, in the order of their counts.
    pub const ALL: [RefusalReason; RefusalReason::COUNT] = {
        let mut all = [RefusalReason::Full; RefusalReason::COUNT];
        let mut at = 0;
        while at < all.len() {
            all[at] = TABLE[at].0;
            at += 1;
        }
        all
    };

    /// The label in metrics and logs.
    pub fn label(self) -> &'static str {
        TABLE[self as usize].1
    }

    /// The HTTP status that carries it.
    pub fn status(self) -> StatusCode {
        TABLE[self as usize].2
    }
}

/// One refusal: its reason and one line for the caller.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    /// The kind.
    pub reason: RefusalReason,
    /// What is wrong and where, without a line break.
    pub text: String,
}

impl Refusal {
    /// A refusal with its line of explanation, which is cut off where it quotes too much of what
    /// came. Control characters that it quotes are escaped: the line is printed on terminals.
    pub fn new(reason: RefusalReason, text: impl Into<String>) -> Refusal {
        let mut text = text.into();
        cut(&mut text);
        if text.contains(char::is_control) {
            let mut escaped = String::with_capacity(text.len() + 8);
            for c in text.chars() {
                match c.is_control() {
                    true => escaped.extend(c.escape_default()),
                    false => escaped.push(c),
                }
            }
            cut(&mut escaped);
            text = escaped;
        }
        Refusal { reason, text }
    }

    /// The hub's queue is full.
    pub fn full() -> Refusal {
        Refusal::new(RefusalReason::Full, "the queue to the shards is full")
    }

    /// Subscribers are behind.
    pub fn behind() -> Refusal {
        let text = "the topic's subscribers are behind, and its events take as much memory as they may";
        Refusal::new(RefusalReason::Behind, text)
    }

    /// Memory is short.
    pub fn memory() -> Refusal {
        Refusal::new(RefusalReason::Memory, "the server has nearly as much memory as it may take")
    }

    /// The source has as much to do as it may.
    pub fn source_full() -> Refusal {
        let text = "the source of events does not keep up: too many publishes wait for it";
        Refusal::new(RefusalReason::Source, text)
    }

    /// The source has not said what became of it.
    pub fn outcome_unknown() -> Refusal {
        let text = "it is not known whether the event was taken; the same idempotency_key tells";
        Refusal::new(RefusalReason::OutcomeUnknown, text)
    }

    /// The server is draining.
    pub fn draining() -> Refusal {
        Refusal::new(RefusalReason::Draining, "draining")
    }

    /// The server hands over.
    pub fn upgrading() -> Refusal {
        let text = "the server hands over to the process that takes its place; try again in a moment";
        Refusal::new(RefusalReason::Upgrading, text)
    }
}

/// Ends a text at [`REFUSAL_BYTES_MAX`].
fn cut(text: &mut String) {
    if text.len() > REFUSAL_BYTES_MAX {
        text.truncate(text.floor_char_boundary(REFUSAL_BYTES_MAX));
        text.push('…');
    }
}

/// Refusals by reason; serializes as an object from label to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalCounts([u64; RefusalReason::COUNT]);

impl Default for RefusalCounts {
    fn default() -> RefusalCounts {
        RefusalCounts([0; RefusalReason::COUNT])
    }
}

impl RefusalCounts {
    /// One more.
    pub fn add(&mut self, reason: RefusalReason) {
        self.add_some(reason, 1);
    }

    /// So many more.
    pub fn add_some(&mut self, reason: RefusalReason, count: u64) {
        self.0[reason as usize] += count;
    }

    /// As many more as the other one has.
    pub fn add_all(&mut self, other: &RefusalCounts) {
        for (count, more) in self.0.iter_mut().zip(other.0) {
            *count += more;
        }
    }

    /// Label and count of every reason.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        RefusalReason::ALL.into_iter().map(|reason| (reason.label(), self.get(reason)))
    }

    /// How many there were.
    pub fn get(&self, reason: RefusalReason) -> u64 {
        self.0[reason as usize]
    }
}

impl Serialize for RefusalCounts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(TABLE.iter().zip(self.0).map(|(row, count)| (row.1, count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_labels_are_unique() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
            assert_eq!(TABLE.iter().filter(|other| other.1 == row.1).count(), 1);
        }
    }

    #[test]
    fn a_refusal_that_quotes_much_is_cut_between_characters() {
        let refusal = Refusal::new(RefusalReason::BadJson, format!("a{}", "ж".repeat(1 << 20)));
        assert!(refusal.text.ends_with("ж…") && refusal.text.len() <= REFUSAL_BYTES_MAX + "…".len());
        assert_eq!(Refusal::new(RefusalReason::BadJson, "short").text, "short");
    }
}

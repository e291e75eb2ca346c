//! Why a connection ends: one table with the metric label, which is the word in the log too, how
//! the connection ends, the WebSocket code and the HTTP status.
//!
//! The shard asserts that no connection ends in another way than its row says, and a test in
//! `shard/tests` brings each reason about and compares what the peer gets.
//!
//! Beside it, why a command of a client is not carried out, which ends nothing.

/// The reason for the end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CloseReason {
    /// The client closed, with or without a WebSocket close frame. It is cut if it has asked for
    /// nothing, or if its socket takes nothing more.
    ClientGone,
    /// The socket failed: reset, timeout of the kernel, unreachable.
    SocketError,
    /// The request head is not HTTP/1.1, is malformed, or names an illegal topic.
    BadRequest,
    /// The request head is larger than allowed.
    HeadTooLarge,
    /// The request target is longer than allowed.
    TargetTooLong,
    /// The request head did not arrive in time.
    HandshakeTimeout,
    /// The path is not ours.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The client accepts no event stream.
    NotAcceptable,
    /// A WebSocket path without a proper upgrade (RFC 6455 §4.2.1).
    UpgradeRequired,
    /// A request that makes no subscriber got its answer: a health check, a CORS preflight, the
    /// front page.
    Answered,
    /// The request body is not wanted.
    BodyNotAllowed,
    /// The request body has a transfer coding that is not understood.
    UnknownCoding,
    /// The page is of an origin whose WebSockets are not let in.
    ForeignOrigin,
    /// A server for this machine alone is asked by another name than those of loopback.
    ForeignHost,
    /// There is no token, or a bad one; or its key was taken back.
    Unauthorized,
    /// The token does not allow this.
    NotAllowed,
    /// The token has expired.
    Expired,
    /// The keys that tokens are checked with were not fetched yet. A retry helps.
    NoKeys,
    /// No room: a connection limit is reached.
    Full,
    /// The process has nearly as much memory as it may take.
    Memory,
    /// The address has as many connections as one may have.
    AddressFull,
    /// The connection does not begin with the PROXY header that is expected on its address. With
    /// TLS it is cut.
    BadProxyHeader,
    /// The client speaks no TLS 1.3 to an address of TLS, not the protocol, or without the
    /// certificate that it needs. It gets the alert of the standard (RFC 8446 §6.2).
    TlsHandshake,
    /// What a client sent with TLS was changed on its way, or is against RFC 8446.
    TlsRecord,
    /// The server is draining. A subscriber that has not taken everything by the deadline is cut.
    Draining,
    /// A frame broke RFC 6455.
    WsProtocol,
    /// A text message was not UTF-8.
    WsNotUtf8,
    /// A message was larger than allowed.
    WsTooBig,
    /// The client answered no ping.
    PingTimeout,
    /// The cursor fell out of the window, or the subscriber is too slow for a topic without room.
    /// It has some seconds for the send that waits, and is cut then.
    Overrun,
    /// A send made no progress for too long, or sends of slow sockets held too many bytes.
    Stalled,
    /// The connection that carried the stream has ended.
    CarrierGone,
    /// A frame or a request of HTTP/2 is against RFC 9113, in a way that has no reason of its own.
    H2Protocol,
    /// A frame of HTTP/2 came for a stream that the client had ended.
    H2StreamClosed,
    /// A frame of HTTP/2 has a size that its type may not have.
    H2FrameSize,
    /// A client of HTTP/2 sent more than a window allows, or made ours too large.
    H2FlowControl,
    /// A block of fields cannot be read.
    H2Compression,
    /// A client asked for more streams at a time than it may have. It may ask again.
    H2RefusedStream,
    /// A client resets its requests as soon as it has asked them (CVE-2023-44487).
    H2Resets,
    /// A block of fields comes in too many frames, or is too large.
    H2Continuations,
    /// Too many SETTINGS.
    H2Settings,
    /// Too many pings of HTTP/2.
    H2Pings,
    /// Too many frames that say nothing.
    H2EmptyFrames,
    /// Too many updates of windows.
    H2WindowUpdates,
    /// A few bytes stand for very many bytes of fields.
    H2FieldBomb,
}

/// The code of the close frame that a WebSocket gets (RFC 6455 §7.4) when it ends in order. Nothing
/// is said to a connection that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// No frame goes out: the connection is none of a WebSocket yet, or it is cut.
    None,
    /// This one.
    Ours(u16),
    /// The client's own comes back (RFC 6455 §5.5.1); this one, if it gave none.
    Echo(u16),
}

impl CloseCode {
    /// The code for a client that has sent no close frame; `None` where it gets none.
    pub fn unasked(self) -> Option<u16> {
        match self {
            CloseCode::None => None,
            CloseCode::Ours(code) | CloseCode::Echo(code) => Some(code),
        }
    }
}

/// How a connection comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In order: the rest of what was begun, the last words, the end of our stream, and then the
    /// client's is awaited. A client that takes none of it is cut after a while.
    InOrder,
    /// Cut: nothing more is said, and the socket is closed with what waits in it.
    Cut,
    /// One or the other; the reason says when.
    Either,
}

impl Ending {
    /// True if a connection may end in order.
    pub fn may_be_in_order(self) -> bool {
        self != Ending::Cut
    }

    /// True if a connection may be cut without a try to end it in order.
    pub fn may_cut(self) -> bool {
        self != Ending::InOrder
    }
}

/// One row of the table.
#[derive(Debug)]
pub struct CloseRow {
    /// The reason.
    pub reason: CloseReason,
    /// Label in metrics and word in logs.
    pub label: &'static str,
    /// How the connection ends.
    pub ending: Ending,
    /// What a WebSocket is told.
    pub websocket_code: CloseCode,
    /// HTTP status where the reason refuses a request.
    pub http_status: Option<u16>,
}

/// A request gets its refusal, and the connection ends in order.
const fn refusal(reason: CloseReason, label: &'static str, http_status: u16) -> CloseRow {
    let (ending, websocket_code) = (Ending::InOrder, CloseCode::None);
    CloseRow { reason, label, ending, websocket_code, http_status: Some(http_status) }
}

/// A WebSocket is told the reason by this code; no request is refused with a status.
const fn told(reason: CloseReason, label: &'static str, ending: Ending, code: CloseCode) -> CloseRow {
    CloseRow { reason, label, ending, websocket_code: code, http_status: None }
}

/// A request gets its refusal, a WebSocket that runs this code; both end in order.
const fn both(reason: CloseReason, label: &'static str, http_status: u16, code: u16) -> CloseRow {
    CloseRow { websocket_code: CloseCode::Ours(code), ..refusal(reason, label, http_status) }
}

/// The connection is cut.
const fn cut(reason: CloseReason, label: &'static str) -> CloseRow {
    told(reason, label, Ending::Cut, CloseCode::None)
}

/// The table, in the order of [`CloseReason`].
pub const CLOSE_TABLE: [CloseRow; CloseReason::COUNT] = {
    use CloseCode::{Echo, Ours};
    use CloseReason::*;
    use Ending::{Either, InOrder};
    [
        told(ClientGone, "client_gone", Either, Echo(1000)),
        cut(SocketError, "socket_error"),
        refusal(BadRequest, "bad_request", 400),
        refusal(HeadTooLarge, "head_too_large", 431),
        refusal(TargetTooLong, "target_too_long", 414),
        cut(HandshakeTimeout, "handshake_timeout"),
        refusal(NotFound, "not_found", 404),
        refusal(MethodNotAllowed, "method_not_allowed", 405),
        refusal(NotAcceptable, "not_acceptable", 406),
        refusal(UpgradeRequired, "upgrade_required", 426),
        told(Answered, "answered", InOrder, CloseCode::None),
        refusal(BodyNotAllowed, "body_not_allowed", 413),
        refusal(UnknownCoding, "unknown_coding", 501),
        refusal(ForeignOrigin, "foreign_origin", 403),
        refusal(ForeignHost, "foreign_host", 403),
        both(Unauthorized, "unauthorized", 401, 4401),
        both(NotAllowed, "not_allowed", 403, 4403),
        both(Expired, "expired", 401, 4401),
        refusal(NoKeys, "no_keys", 503),
        refusal(Full, "full", 503),
        refusal(Memory, "memory", 503),
        CloseRow { ending: Either, ..refusal(AddressFull, "address_full", 429) },
        CloseRow { ending: Either, ..refusal(BadProxyHeader, "bad_proxy_header", 400) },
        cut(TlsHandshake, "tls_handshake"),
        cut(TlsRecord, "tls_record"),
        CloseRow { http_status: Some(503), ..told(Draining, "draining", Either, Ours(1012)) },
        told(WsProtocol, "ws_protocol", InOrder, Ours(1002)),
        told(WsNotUtf8, "ws_not_utf8", InOrder, Ours(1007)),
        told(WsTooBig, "ws_too_big", InOrder, Ours(1009)),
        cut(PingTimeout, "ping_timeout"),
        told(Overrun, "overrun", InOrder, Ours(1013)),
        cut(Stalled, "stalled"),
        cut(CarrierGone, "carrier_gone"),
        cut(H2Protocol, "h2_protocol"),
        cut(H2StreamClosed, "h2_stream_closed"),
        cut(H2FrameSize, "h2_frame_size"),
        cut(H2FlowControl, "h2_flow_control"),
        cut(H2Compression, "h2_compression"),
        cut(H2RefusedStream, "h2_refused_stream"),
        cut(H2Resets, "h2_resets"),
        cut(H2Continuations, "h2_continuations"),
        cut(H2Settings, "h2_settings"),
        cut(H2Pings, "h2_pings"),
        cut(H2EmptyFrames, "h2_empty_frames"),
        cut(H2WindowUpdates, "h2_window_updates"),
        cut(H2FieldBomb, "h2_field_bomb"),
    ]
};

impl CloseReason {
    /// How many reasons there are; arrays by reason have this length.
    pub const COUNT: usize = CloseReason::H2FieldBomb as usize + 1;

    /// The row of this reason.
    pub fn row(self) -> &'static CloseRow {
        &CLOSE_TABLE[self as usize]
    }

    /// The index into arrays by reason.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Why a command of a client is not carried out (`fanwave.v1.json`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum ErrorCode {
    /// The message is no command: malformed, unknown, or with a member that is wrong.
    BadCommand,
    /// The topic or the pattern is illegal.
    BadTopic,
    /// Clients may not do this with this topic.
    NotAllowed,
    /// There is no token, or a bad one.
    Unauthorized,
    /// The server is not set up for this.
    NotConfigured,
    /// The token has expired.
    Expired,
    /// The data is larger than allowed.
    TooLarge,
    /// The connection has as many topics as it may.
    TooMany,
    /// No room: a limit of the server is reached. A retry may help.
    Full,
    /// The server is busy. A retry helps.
    Busy,
    /// The server is draining. A retry elsewhere helps.
    Draining,
    /// The same idempotency key came with other data.
    Conflict,
    /// Nobody knows whether it was carried out.
    OutcomeUnknown,
}

/// The words of [`ErrorCode`], in its order: on the wire, in metrics and in logs.
pub const ERROR_TABLE: [(ErrorCode, &str); ErrorCode::COUNT] = {
    use ErrorCode::*;
    [
        (BadCommand, "bad_command"),
        (BadTopic, "bad_topic"),
        (NotAllowed, "not_allowed"),
        (Unauthorized, "unauthorized"),
        (NotConfigured, "not_configured"),
        (Expired, "expired"),
        (TooLarge, "too_large"),
        (TooMany, "too_many"),
        (Full, "full"),
        (Busy, "busy"),
        (Draining, "draining"),
        (Conflict, "conflict"),
        (OutcomeUnknown, "outcome_unknown"),
    ]
};

impl ErrorCode {
    /// How many codes there are; arrays by code have this length.
    pub const COUNT: usize = ErrorCode::OutcomeUnknown as usize + 1;

    /// The word of this code.
    pub fn label(self) -> &'static str {
        ERROR_TABLE[self as usize].1
    }

    /// The index into arrays by code.
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_labels_are_unique() {
        for (index, row) in CLOSE_TABLE.iter().enumerate() {
            assert_eq!(row.reason.index(), index);
            assert_eq!(CLOSE_TABLE.iter().filter(|other| other.label == row.label).count(), 1);
            let is_told = row.websocket_code != CloseCode::None || row.http_status.is_some();
            assert!(
                !is_told || row.ending.may_be_in_order(),
                "{row:?}: nothing is said to those that are cut"
            );
        }
    }

    #[test]
    fn error_codes_are_in_the_order_of_the_enum_and_their_words_are_unique() {
        for (index, (code, label)) in ERROR_TABLE.iter().enumerate() {
            assert_eq!((code.index(), code.label()), (index, *label));
            assert_eq!(ERROR_TABLE.iter().filter(|other| other.1 == *label).count(), 1);
        }
    }
}

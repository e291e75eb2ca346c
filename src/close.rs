//! Why we hang up: one table with the WebSocket code, the HTTP status, the metric label and the log
//! word.

/// The reason for the end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum CloseReason {
    /// The client closed, with or without a WebSocket close frame.
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
    /// No room: a connection limit is reached.
    Full,
    /// The address has as many connections as one may have.
    AddressFull,
    /// The connection does not begin with the PROXY header that is expected on its address.
    BadProxyHeader,
    /// The server is draining.
    Draining,
    /// A frame broke RFC 6455.
    WsProtocol,
    /// A text message was not UTF-8.
    WsNotUtf8,
    /// A message was larger than allowed.
    WsTooBig,
    /// The client answered no ping.
    PingTimeout,
    /// The cursor fell out of the window.
    Overrun,
    /// A send made no progress for too long, or sends of slow sockets held too many bytes.
    Stalled,
}

/// One row of the table.
#[derive(Debug)]
pub struct CloseRow {
    /// The reason.
    pub reason: CloseReason,
    /// Label in metrics and word in logs.
    pub label: &'static str,
    /// WebSocket close code (RFC 6455 §7.4); `None` where no close frame is owed.
    pub websocket_code: Option<u16>,
    /// HTTP status where the reason refuses a request.
    pub http_status: Option<u16>,
}

const fn row(
    reason: CloseReason,
    label: &'static str,
    websocket_code: Option<u16>,
    http_status: Option<u16>,
) -> CloseRow {
    CloseRow { reason, label, websocket_code, http_status }
}

/// The table, in the order of [`CloseReason`].
pub const CLOSE_TABLE: [CloseRow; CloseReason::COUNT] = {
    use CloseReason::*;
    [
        row(ClientGone, "client_gone", Some(1000), None),
        row(SocketError, "socket_error", None, None),
        row(BadRequest, "bad_request", None, Some(400)),
        row(HeadTooLarge, "head_too_large", None, Some(431)),
        row(TargetTooLong, "target_too_long", None, Some(414)),
        row(HandshakeTimeout, "handshake_timeout", None, None),
        row(NotFound, "not_found", None, Some(404)),
        row(MethodNotAllowed, "method_not_allowed", None, Some(405)),
        row(NotAcceptable, "not_acceptable", None, Some(406)),
        row(UpgradeRequired, "upgrade_required", None, Some(426)),
        row(Answered, "answered", None, Some(200)),
        row(BodyNotAllowed, "body_not_allowed", None, Some(413)),
        row(UnknownCoding, "unknown_coding", None, Some(501)),
        row(ForeignOrigin, "foreign_origin", None, Some(403)),
        row(Full, "full", Some(1013), Some(503)),
        row(AddressFull, "address_full", Some(1013), Some(429)),
        row(BadProxyHeader, "bad_proxy_header", None, Some(400)),
        row(Draining, "draining", Some(1012), Some(503)),
        row(WsProtocol, "ws_protocol", Some(1002), None),
        row(WsNotUtf8, "ws_not_utf8", Some(1007), None),
        row(WsTooBig, "ws_too_big", Some(1009), None),
        row(PingTimeout, "ping_timeout", None, None),
        row(Overrun, "overrun", Some(1013), None),
        row(Stalled, "stalled", None, None),
    ]
};

impl CloseReason {
    /// How many reasons there are; arrays by reason have this length.
    pub const COUNT: usize = CloseReason::Stalled as usize + 1;

    /// The row of this reason.
    pub fn row(self) -> &'static CloseRow {
        &CLOSE_TABLE[self as usize]
    }

    /// The index into arrays by reason.
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
        }
    }
}

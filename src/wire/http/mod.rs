//! HTTP/1.1 on the data plane (RFC 9112): the head of a subscriber's request in, one decision out.
//!
//! Invariants worth naming:
//! - The decision depends on the first `head_bytes_max` bytes alone, not on how they came in.
//! - Every refusal has a [`CloseReason`] with an HTTP status, and one line that says what is wrong and where.
//! - A connection carries one request: every answer but an upgrade closes it, so bodies and pipelined requests need
//!   no rules of their own. What follows the head of a subscription is the caller's.
//!
//! The parts: `target` (paths, queries, topics), `fields` (header fields), `answer` (what we say); `target` and
//! `content_type` also serve other rooms. Not here: when a head has taken too long, and whether there is room for the
//! subscriber (`shard`).

use crate::close::CloseReason;
use crate::event::Topic;
use crate::wire::Format;

mod answer;
mod content_type;
mod fields;
mod target;

pub(crate) use content_type::has_content_type;
pub(crate) use target::{EscapeFault, percent_decoded};

pub use answer::{health, preflight, refusal, sse_head, websocket_head};

use fields::Fields;
use target::{Route, Target};

/// Header fields of one request head. A browser sends about 20; the array lives on the stack while a head is parsed.
pub const HEADERS_MAX: usize = 64;

/// What the operator allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of a request head, its last blank line included.
    pub head_bytes_max: usize,
    /// Distinct topics of one subscriber.
    pub topics_max: usize,
}

/// What a request head asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The head is not whole yet.
    Partial,
    /// A subscription, and the bytes of the head; what follows them belongs to the protocol after it.
    Subscribe(Box<Subscribe>, usize),
    /// A probe of `/healthz`.
    Health {
        /// True for HEAD: the answer has no body.
        head_only: bool,
    },
    /// OPTIONS on one of our paths: a browser asks what it may send from another origin.
    Preflight,
    /// Nothing that we answer with anything but an error.
    Refused(Refusal),
}

/// A subscriber who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// How it wants its events.
    pub format: Format,
    /// Distinct, at least one, in the order given: the path's first, then the query's.
    pub topics: Vec<Topic>,
    /// The last event id that the client had: 1 to 255 bytes without NUL and line breaks, maybe not one of ours.
    pub last_event_id: Option<String>,
    /// `Sec-WebSocket-Accept` (RFC 6455 §4.2.2); some exactly if the format is a WebSocket one.
    pub accept: Option<[u8; 28]>,
}

/// Why a request is not served. The client's fault, except for `Full` and `Draining`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// A reason with an HTTP status.
    pub reason: CloseReason,
    /// One line for a human, without its end.
    pub detail: String,
}

/// A refusal for `reason`.
fn refuse(reason: CloseReason, detail: impl Into<String>) -> Refusal {
    Refusal { reason, detail: detail.into() }
}

/// Reads the head of a request from its first byte on. Call again with more bytes while it is [`Head::Partial`]; that
/// ends at `head_bytes_max` bytes at the latest.
pub fn parse_head(bytes: &[u8], limits: &HeadLimits) -> Head {
    let allowed = &bytes[..bytes.len().min(limits.head_bytes_max)];
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(allowed) {
        Ok(httparse::Status::Complete(head_bytes)) => {
            interpret(&request, head_bytes, limits).unwrap_or_else(Head::Refused)
        }
        Ok(httparse::Status::Partial) if allowed.len() < limits.head_bytes_max => Head::Partial,
        Ok(httparse::Status::Partial) => Head::Refused(too_large(allowed)),
        Err(error) => Head::Refused(malformed(allowed, error)),
    }
}

/// Decides about a whole head.
fn interpret(
    request: &httparse::Request<'_, '_>,
    head_bytes: usize,
    limits: &HeadLimits,
) -> Result<Head, Refusal> {
    let fields = Fields(request.headers);
    let http_1_0 = request.version == Some(0);
    fields.check_host(http_1_0)?;
    let target = Target::new(request.path.unwrap_or_default())?;
    match (request.method.unwrap_or_default(), &target.route) {
        ("OPTIONS", _) => return Ok(Head::Preflight),
        ("GET", _) | ("HEAD", Route::Health) => {}
        (_, Route::Health) => {
            return Err(refuse(CloseReason::MethodNotAllowed, "/healthz answers GET and HEAD"));
        }
        _ => return Err(refuse(CloseReason::MethodNotAllowed, "a subscription is a GET")),
    }
    fields.check_no_body()?;
    let Route::Subscribe(format) = target.route else {
        return Ok(Head::Health { head_only: request.method == Some("HEAD") });
    };

    let wanted = target.wanted(limits.topics_max)?;
    let last_event_id = fields.last_event_id()?.or(wanted.last_event_id);
    let accept = match format {
        Format::Sse => {
            fields.check_accepts_event_stream()?;
            None
        }
        Format::WebSocket if http_1_0 => {
            return Err(refuse(CloseReason::BadRequest, "a WebSocket needs HTTP/1.1 (RFC 6455 4.1)"));
        }
        Format::WebSocket => Some(fields.websocket_accept()?),
    };
    Ok(Head::Subscribe(
        Box::new(Subscribe { format, topics: wanted.topics, last_event_id, accept }),
        head_bytes,
    ))
}

/// The head does not end within the limit: is it its first line or the rest?
fn too_large(allowed: &[u8]) -> Refusal {
    let bytes = allowed.len();
    // Empty lines before the request line do not count (RFC 9112 §2.2).
    let start = allowed.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    match start.map(|start| &allowed[start..]) {
        Some(line) if memchr::memchr(b'\n', line).is_none() => {
            refuse(CloseReason::TargetTooLong, format!("the request line has more than {bytes} bytes"))
        }
        _ => refuse(CloseReason::HeadTooLarge, format!("the request head has more than {bytes} bytes")),
    }
}

/// What a human needs to hear about bytes that are no request head.
fn malformed(bytes: &[u8], error: httparse::Error) -> Refusal {
    use httparse::Error;
    // A TLS record of type handshake, version 3.x (RFC 8446 §5.1).
    if matches!(bytes, [0x16] | [0x16, 3, ..]) {
        return refuse(CloseReason::BadRequest, "this port speaks plain HTTP, not TLS");
    }
    let detail = match error {
        Error::TooManyHeaders => {
            let detail = format!("the request head has more than {HEADERS_MAX} header fields");
            return refuse(CloseReason::HeadTooLarge, detail);
        }
        Error::Version if bytes.starts_with(b"PRI ") => "this port speaks HTTP/1.1, not HTTP/2",
        Error::Version => "the request line does not end in HTTP/1.1 or HTTP/1.0",
        Error::Token => "the request line is not of the form: GET /path HTTP/1.1",
        Error::HeaderName => "a header field's name is malformed",
        Error::HeaderValue => "a header field's value holds a control character",
        Error::NewLine => "a line does not end in CR LF",
        Error::Status => "the request head is malformed",
    };
    refuse(CloseReason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 1_024, topics_max: 3 };
    const WEBSOCKET: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    /// A GET with a Host and these further lines, each ending in CR LF.
    fn get(target: &str, lines: &str) -> String {
        format!("GET {target} HTTP/1.1\r\nHost: e\r\n{lines}\r\n")
    }

    fn parse(head: &str) -> Head {
        parse_head(head.as_bytes(), &LIMITS)
    }

    fn subscribed(head: &str) -> Subscribe {
        match parse(head) {
            Head::Subscribe(subscribe, bytes) => {
                assert_eq!(bytes, head.len());
                *subscribe
            }
            other => panic!("{head:?} gave {other:?}"),
        }
    }

    fn refused(bytes: &[u8]) -> Refusal {
        match parse_head(bytes, &LIMITS) {
            Head::Refused(refusal) => refusal,
            other => panic!("{:?} gave {other:?}", String::from_utf8_lossy(bytes)),
        }
    }

    #[test]
    fn a_browsers_event_source_subscribes() {
        let subscribe = subscribed(&get(
            "/sse/a?topic=b&last-event-id=old",
            "Accept: text/event-stream\r\nlast-event-id: x-7\r\nCache-Control: no-cache\r\n",
        ));
        assert_eq!(subscribe.format, Format::Sse);
        assert_eq!(subscribe.topics.iter().map(Topic::as_str).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            subscribe.last_event_id.as_deref(),
            Some("x-7"),
            "the header is newer than the page's URL"
        );
        assert_eq!(subscribe.accept, None);
        let from_query = subscribed(&get("/sse/a?last-event-id=old", "Last-Event-ID:\r\n"));
        assert_eq!(from_query.last_event_id.as_deref(), Some("old"));
    }

    #[test]
    fn the_handshake_of_the_standard_gives_its_accept() {
        let subscribe = subscribed(&get("/ws/chat", WEBSOCKET));
        assert_eq!(subscribe.format, Format::WebSocket);
        assert_eq!(subscribe.accept.as_ref(), Some(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let listed = WEBSOCKET
            .replace("Upgrade: websocket", "Upgrade: h2c, WebSocket\r\nSec-WebSocket-Protocol: x")
            .replace("Connection: Upgrade", "Connection: keep-alive,upgrade");
        assert_eq!(subscribed(&get("/ws/chat", &listed)), subscribe);
        let left_over_bits = WEBSOCKET.replace("jZQ==", "jZR==");
        assert!(subscribed(&get("/ws/chat", &left_over_bits)).accept.is_some());
    }

    #[test]
    fn what_follows_the_head_is_left_alone() {
        let head = get("/ws/a", WEBSOCKET);
        let whole = parse(&head);
        for after in ["\u{1}", "GET / HTTP/1.1\r\n", &"x".repeat(2_000)] {
            assert_eq!(parse(&format!("{head}{after}")), whole);
        }
    }

    #[test]
    fn probes_and_preflights_are_told_apart() {
        assert_eq!(parse(&get("/healthz", "")), Head::Health { head_only: false });
        assert_eq!(parse("HEAD /healthz HTTP/1.0\r\n\r\n"), Head::Health { head_only: true });
        for path in ["/sse/a", "/sse", "/ws/a", "/healthz"] {
            assert_eq!(parse(&format!("OPTIONS {path} HTTP/1.1\r\nHost: e\r\n\r\n")), Head::Preflight);
        }
    }

    #[test]
    fn event_streams_work_over_http_1_0() {
        assert_eq!(subscribed("GET /sse/a HTTP/1.0\r\n\r\n").format, Format::Sse);
    }

    #[test]
    fn accept_is_weighed_by_the_most_specific_range() {
        for (accept, accepted) in [
            ("text/event-stream", true),
            ("TEXT/Event-Stream;charset=utf-8", true),
            ("text/html, text/*;q=0.1", true),
            ("*/*", true),
            ("", true),
            ("text/event-stream, */*;q=0", true),
            ("text/event-stream; q=0.001", true),
            ("application/json\r\nAccept: */*", true),
            ("application/json", false),
            ("text/html", false),
            ("text/event-stream;q=0, */*", false),
            ("*/*, text/event-stream; Q=0.000", false),
            ("text/*;q=0, */*", false),
            ("*/*;q=0.", false),
        ] {
            let head = get("/sse/a", &format!("Accept: {accept}\r\n"));
            match parse(&head) {
                Head::Subscribe(..) => assert!(accepted, "{accept}"),
                Head::Refused(refusal) => {
                    assert_eq!((refusal.reason, accepted), (CloseReason::NotAcceptable, false), "{accept}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            subscribed(&get("/ws/a", &format!("Accept: text/html\r\n{WEBSOCKET}"))).format,
            Format::WebSocket
        );
    }

    #[test]
    fn each_refusal_has_its_reason_and_says_what_is_wrong() {
        use CloseReason::*;
        let ws = |from: &str, to: &str| get("/ws/a", &WEBSOCKET.replace(from, to));
        let long_id = get("/sse/a", &format!("Last-Event-ID: {}\r\n", "x".repeat(256)));
        let table: &[(String, CloseReason, &str)] = &[
            ("\u{16}".into(), BadRequest, "plain HTTP, not TLS"),
            ("\u{16}\u{3}\u{1}\u{2}".into(), BadRequest, "plain HTTP, not TLS"),
            ("\0".into(), BadRequest, "not of the form"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), BadRequest, "not HTTP/2"),
            ("GET /sse/a HTTP/0.9\r\n".into(), BadRequest, "HTTP/1.1 or HTTP/1.0"),
            ("GET /sse/a HTTP/1.2\r\n".into(), BadRequest, "HTTP/1.1 or HTTP/1.0"),
            ("GET /sse/a\r\n".into(), BadRequest, "not of the form"),
            ("GET  /sse/a HTTP/1.1\r\n".into(), BadRequest, "not of the form"),
            (get("/sse/a", "a b: c\r\n"), BadRequest, "name is malformed"),
            (get("/sse/a", " folded\r\n"), BadRequest, "name is malformed"),
            (get("/sse/a", "a: \u{1}\r\n"), BadRequest, "control character"),
            (get("/sse/a", "Last-Event-ID: a\0\r\n"), BadRequest, "control character"),
            ("GET /sse/a HTTP/1.1\r\n\r\n".into(), BadRequest, "Host header field is missing"),
            (get("/sse/a", "host: f\r\n"), BadRequest, "Host header field comes twice"),
            (get("/", ""), NotFound, "/sse/{topic}, /sse?topic=..., /ws/{topic}, /ws?topic=..., /healthz"),
            (get("/sse", ""), BadRequest, "no topic"),
            (get("/sse/%ff", ""), BadRequest, "not UTF-8"),
            (get("/sse/a?topic=b&topic=c&topic=d", ""), BadRequest, "more than 3 topics"),
            (long_id, BadRequest, "Last-Event-ID header field is none: it has 256 bytes"),
            (
                get("/sse/a", "Last-Event-ID: 1\r\nLast-Event-ID: 1\r\n"),
                BadRequest,
                "Last-Event-ID header field comes twice",
            ),
            ("POST /sse/a HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "is a GET"),
            ("HEAD /sse/a HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "is a GET"),
            ("PUT /healthz HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "GET and HEAD"),
            ("OPTIONS * HTTP/1.1\r\nHost: e\r\n\r\n".into(), NotFound, "not a path"),
            (get("/sse/a", "Content-Length: 1\r\n"), BodyNotAllowed, "body"),
            (
                get("/sse/a", "Content-Length: 0\r\nContent-Length: 99999999999999999999\r\n"),
                BodyNotAllowed,
                "body",
            ),
            (get("/sse/a", "Transfer-Encoding: chunked\r\n"), BodyNotAllowed, "body"),
            (get("/healthz", "Content-Length: 5\r\n"), BodyNotAllowed, "body"),
            (get("/sse/a", "Content-Length: 0, 0\r\n"), BadRequest, "Content-Length"),
            (get("/sse/a", "Content-Length: -1\r\n"), BadRequest, "Content-Length"),
            (get("/ws/a", ""), UpgradeRequired, "Upgrade: websocket is missing"),
            (ws("websocket", "h2c"), UpgradeRequired, "Upgrade: websocket is missing"),
            (
                ws("Connection: Upgrade", "Connection: close"),
                UpgradeRequired,
                "Connection: Upgrade is missing",
            ),
            (ws("13", "8"), UpgradeRequired, "not 13"),
            (ws("Sec-WebSocket-Version: 13\r\n", ""), UpgradeRequired, "not 13"),
            (ws("Sec-WebSocket-Key", "X-Key"), BadRequest, "Sec-WebSocket-Key header field is missing"),
            (ws("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"), BadRequest, "base64 of 16 bytes"),
            (ws("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZWVl"), BadRequest, "base64 of 16 bytes"),
            (ws("dGhlIHNhbXBsZSBub25jZQ==", "dGhl-HNhbXBsZSBub25jZQ=="), BadRequest, "base64 of 16 bytes"),
            (format!("GET /ws/a HTTP/1.0\r\n{WEBSOCKET}\r\n"), BadRequest, "WebSocket needs HTTP/1.1"),
            (get("/sse/a", &"x: y\r\n".repeat(HEADERS_MAX)), HeadTooLarge, "more than 64 header fields"),
        ];
        for (head, reason, detail) in table {
            let refusal = refused(head.as_bytes());
            assert_eq!(refusal.reason, *reason, "{head:?}: {refusal:?}");
            assert!(refusal.detail.contains(detail), "{head:?}: {refusal:?}");
            assert!(!refusal.detail.contains(['\r', '\n']), "one line: {refusal:?}");
            assert!(reason.row().http_status.is_some());
        }
        for bytes in [
            &b"GET /sse/\xff HTTP/1.1\r\n"[..],
            b"GET /sse/a HTTP/1.1\r\nHost: e\r\nLast-Event-ID: \xff\r\n\r\n",
        ] {
            assert_eq!(refused(bytes).reason, BadRequest, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_head_may_have_the_limit_and_not_a_byte_more() {
        let with_bytes = |bytes: usize| {
            let short = get("/sse/a", "x: \r\n");
            get("/sse/a", &format!("x: {}\r\n", "y".repeat(bytes - short.len())))
        };
        assert_eq!(subscribed(&with_bytes(1_024)).format, Format::Sse);
        assert_eq!(refused(with_bytes(1_025).as_bytes()).reason, CloseReason::HeadTooLarge);
        assert_eq!(parse(&with_bytes(1_025)[..1_023]), Head::Partial);
        assert_eq!(refused(&with_bytes(1_025).as_bytes()[..1_024]).reason, CloseReason::HeadTooLarge);
        let long_line = format!("\r\nGET /sse/{}", "x".repeat(1_024));
        assert_eq!(parse(&long_line[..1_023]), Head::Partial);
        assert_eq!(refused(long_line.as_bytes()).reason, CloseReason::TargetTooLong);
        assert_eq!(refused("\r\n".repeat(512).as_bytes()).reason, CloseReason::HeadTooLarge);
    }

    /// A head that is well formed as HTTP, whatever we say to it.
    fn any_head() -> impl Strategy<Value = String> {
        let target = prop_oneof![
            Just("/sse/a".to_string()),
            Just("/healthz".to_string()),
            "/(sse|ws)(/[a-z%+2/]{0,6})?(\\?(topic|last-event-id|x)=[a-z%+&=]{0,9})?",
        ];
        let line = prop_oneof![
            Just("Accept: text/*\r\n".to_string()),
            Just(WEBSOCKET.to_string()),
            "[A-Za-z-]{1,8}: [ -~]{0,12}\r\n",
        ];
        (
            prop_oneof![Just("GET"), Just("HEAD"), Just("OPTIONS"), Just("POST")],
            target,
            proptest::collection::vec(line, 0..4),
        )
            .prop_map(|(method, target, lines)| {
                format!("{method} {target} HTTP/1.1\r\nHost: e\r\n{}\r\n", lines.concat())
            })
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_head(&bytes, &LIMITS);
        }

        #[test]
        fn a_head_is_partial_until_its_last_byte(head in any_head()) {
            for cut in 0..head.len() {
                prop_assert_eq!(parse(&head[..cut]), Head::Partial, "cut at {}", cut);
            }
            prop_assert_ne!(parse(&head), Head::Partial);
        }

        #[test]
        fn a_changed_byte_never_panics(head in any_head(), at in any::<proptest::sample::Index>(), byte: u8) {
            let mut bytes = head.into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            parse_head(&bytes, &LIMITS);
        }
    }
}

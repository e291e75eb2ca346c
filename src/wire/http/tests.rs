//! What each request head comes to, by tables of heads, and properties of all of them.

use super::*;
use proptest::prelude::*;

const RULES: HeadRules<'_> = HeadRules {
    head_bytes_max: 1_024,
    topics_max: 3,
    origins: &Origins::Any,
    is_secure: false,
    subprotocols: &Subprotocols::Any,
    echo: false,
    tokens: None,
};
const WEBSOCKET: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A GET with a Host and these further lines, each ending in CR LF.
fn get(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: e\r\n{lines}\r\n")
}

fn parse(head: &str) -> Head {
    parse_head(head.as_bytes(), &RULES).0
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

fn id(subscribe: &Subscribe) -> Option<&str> {
    subscribe.start.after().map(LastEventId::as_str)
}

fn refused(bytes: &[u8]) -> RefusedRequest {
    match parse_head(bytes, &RULES).0 {
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
    assert_eq!(subscribe.format, Format::SseChunked);
    assert_eq!(subscribe.topics.iter().map(Topic::as_str).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(id(&subscribe), Some("x-7"), "the header is newer than the page's URL");
    assert_eq!(subscribe.handshake, None);
    let from_query = subscribed(&get("/sse/a?last-event-id=old", "Last-Event-ID:\r\n"));
    assert_eq!(id(&from_query), Some("old"));
}

#[test]
fn the_handshake_of_the_standard_gives_its_accept() {
    let subscribe = subscribed(&get("/ws/chat", WEBSOCKET));
    assert_eq!(subscribe.format, Format::WebSocket);
    let accept = *b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
    assert_eq!(subscribe.handshake, Some(Handshake { accept, subprotocol: None }));
    let listed = WEBSOCKET
        .replace("Upgrade: websocket", "Upgrade: h2c, WebSocket")
        .replace("Connection: Upgrade", "Connection: keep-alive,upgrade");
    assert_eq!(subscribed(&get("/ws/chat", &listed)), subscribe);
    let left_over_bits = WEBSOCKET.replace("jZQ==", "jZR==");
    assert!(subscribed(&get("/ws/chat", &left_over_bits)).handshake.is_some());
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
    let asked = |head: &str| {
        let (head, manner) = parse_head(head.as_bytes(), &RULES);
        (head, manner.head_only, manner.allow)
    };
    assert_eq!(asked(&get("/healthz", "")), (Head::Health, false, "GET, HEAD, OPTIONS"));
    assert_eq!(asked("HEAD /healthz HTTP/1.0\r\n\r\n"), (Head::Health, true, "GET, HEAD, OPTIONS"));
    let (head, head_only, allow) = asked("HEAD /sse/a HTTP/1.1\r\nHost: e\r\n\r\n");
    let Head::StreamHead(request) = head else { panic!("{head:?}") };
    assert_eq!((request.format, head_only, allow), (Format::SseChunked, true, "GET, HEAD, OPTIONS"));
    for (path, allow) in [
        ("/sse/a", "GET, HEAD, OPTIONS"),
        ("/sse", "GET, HEAD, OPTIONS"),
        ("/ws/a", "GET, OPTIONS"),
        ("/healthz", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
        ("*", "OPTIONS"),
    ] {
        let head = format!("OPTIONS {path} HTTP/1.1\r\nHost: e\r\n\r\n");
        assert_eq!(asked(&head), (Head::Preflight, false, allow), "{path}");
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
    let table: &[(String, CloseReason, &str)] = &[
        ("\u{16}".into(), BadRequest, "plain HTTP, not TLS"),
        ("\u{16}\u{3}\u{1}\u{2}".into(), BadRequest, "plain HTTP, not TLS"),
        ("\0".into(), BadRequest, "not of the form"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), BadRequest, "not HTTP/2"),
        ("GET /sse/a HTTP/0.9\r\n".into(), BadRequest, "HTTP/1.1 or HTTP/1.0"),
        ("GET /sse/a HTTP/1.x\r\n".into(), BadRequest, "HTTP/1.1 or HTTP/1.0"),
        ("GET /sse/a HTTP/1.20\r\n".into(), BadRequest, "HTTP/1.1 or HTTP/1.0"),
        ("GET /sse/a\r\n".into(), BadRequest, "not of the form"),
        ("GET  /sse/a HTTP/1.1\r\n".into(), BadRequest, "not of the form"),
        (get("/sse/a", "a b: c\r\n"), BadRequest, "name is malformed"),
        (get("/sse/a", " folded\r\n"), BadRequest, "name is malformed"),
        (get("/sse/a", "a: \u{1}\r\n"), BadRequest, "control character"),
        (get("/sse/a", "Last-Event-ID: a\0\r\n"), BadRequest, "control character"),
        ("GET /sse/a HTTP/1.1\r\n\r\n".into(), BadRequest, "Host header field is missing"),
        (get("/sse/a", "host: f\r\n"), BadRequest, "Host header field comes twice"),
        ("GET /sse/a HTTP/1.1\r\nHost: a b\r\n\r\n".into(), BadRequest, "Host header field is malformed"),
        ("GET /sse/a HTTP/1.0\r\nHost: [::1\r\n\r\n".into(), BadRequest, "Host header field is malformed"),
        (
            get("/x", ""),
            NotFound,
            "/sse/{topic}, /sse?topic=..., /ws/{topic}, /ws?topic=..., POST /topics/{topic}, /healthz",
        ),
        (get("/sse", ""), BadRequest, "no topic"),
        (get("/sse/%ff", ""), BadRequest, "not UTF-8"),
        (get("/sse/a?topic=b&topic=c&topic=d", ""), BadRequest, "more than 3 topics"),
        ("POST /sse/a HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "is a GET"),
        ("HEAD /ws/a HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "is a GET"),
        ("PUT /healthz HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "GET, HEAD, OPTIONS"),
        ("GET * HTTP/1.1\r\nHost: e\r\n\r\n".into(), MethodNotAllowed, "only OPTIONS"),
        (get("/sse/a", "Content-Length: 1\r\n"), BodyNotAllowed, "body"),
        (
            get("/sse/a", "Content-Length: 0\r\nContent-Length: 99999999999999999999\r\n"),
            BodyNotAllowed,
            "body",
        ),
        (get("/sse/a", "Transfer-Encoding: chunked\r\n"), BodyNotAllowed, "body"),
        (get("/sse/a", "Transfer-Encoding: gzip, chunked\r\n"), UnknownCoding, "chunked"),
        (get("/healthz", "Content-Length: 5\r\n"), BodyNotAllowed, "body"),
        (get("/sse/a", "Content-Length: 0, 0\r\n"), BadRequest, "Content-Length"),
        (get("/sse/a", "Content-Length: -1\r\n"), BadRequest, "Content-Length"),
        (get("/topics/a", ""), MethodNotAllowed, "publish to it with POST"),
        (get("/ws/a", ""), UpgradeRequired, "Upgrade: websocket is missing"),
        (ws("websocket", "h2c"), UpgradeRequired, "Upgrade: websocket is missing"),
        (ws("Connection: Upgrade", "Connection: close"), UpgradeRequired, "Connection: Upgrade is missing"),
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
    assert_eq!(refused(b"GET /sse/\xff HTTP/1.1\r\n").reason, BadRequest);
}

#[test]
fn a_returning_id_is_taken_whatever_its_bytes_are() {
    let long = "x".repeat(256);
    for (value, read) in [
        (&b"x-7"[..], Some("x-7")),
        (b"  x 7\t ", Some("x 7")),
        (b"", None),
        (b" ", None),
        (b"r\xe4ume", Some("räume")),
        ("räume".as_bytes(), Some("räume")),
        (b"a\x0cb", Some("a\u{c}b")),
        (b"\x0c", Some("\u{c}")),
        (b"\x01\x7f", Some("\u{1}\u{7f}")),
        (long.as_bytes(), Some(&*long)),
    ] {
        for version in ["1.1", "1.2"] {
            let begin = format!("GET /sse/a HTTP/{version}\r\nHost: e\r\nlast-event-id:");
            let head = [begin.as_bytes(), value, b"\r\nX: y\r\n\r\n"].concat();
            let (parsed, _) = parse_head(&head, &RULES);
            let Head::Subscribe(subscribe, bytes) = parsed else { panic!("{value:?}: {parsed:?}") };
            assert_eq!((id(&subscribe), bytes), (read, head.len()), "{value:?}");
            for cut in 0..head.len() {
                assert_eq!(parse_head(&head[..cut], &RULES).0, Head::Partial, "{value:?} cut at {cut}");
            }
        }
    }
    let twice = |first: &str, second: &str| {
        subscribed(&get("/sse/a", &format!("Last-Event-ID: {first}\r\nLast-Event-ID: {second}\r\n")))
    };
    assert_eq!(id(&twice("1", "1")), Some("1"));
    assert_eq!(id(&twice("1", "2")), Some("1"));
    assert_eq!(id(&subscribed(&get("/sse/a?after=old", "Last-Event-ID: new\r\n"))), Some("new"));
}

#[test]
fn a_later_minor_version_is_served_as_1_1() {
    for version in ["1.1", "1.2", "1.9"] {
        let head = format!("\r\nGET /ws/a HTTP/{version}\r\nHost: e\r\n{WEBSOCKET}\r\n");
        assert_eq!(subscribed(&head).format, Format::WebSocket);
    }
}

#[test]
fn offered_subprotocols_are_one_list_and_the_first_is_given_back() {
    let chosen = |lines: &str| {
        let handshake = subscribed(&get("/ws/a", &format!("{lines}{WEBSOCKET}"))).handshake;
        handshake.expect("a WebSocket").subprotocol
    };
    let field = "Sec-WebSocket-Protocol";
    assert_eq!(chosen(&format!("{field}: protocolOne\r\n")).as_deref(), Some("protocolOne"));
    assert_eq!(chosen(&format!("{field}: a b, c\r\n{field}: d\r\n")).as_deref(), Some("c"));
    assert_eq!(chosen(&format!("{field}: fanwave.x\r\n{field}:  ,d\r\n")).as_deref(), Some("d"));
    assert_eq!(chosen(&format!("{field}:\r\n")), None);
    let ours = refused(get("/ws/a", &format!("{field}: fanwave.v2.json\r\n{WEBSOCKET}")).as_bytes());
    assert_eq!(ours.reason, CloseReason::BadRequest);
    let rules = HeadRules { subprotocols: &Subprotocols::Only(Vec::new()), ..RULES };
    let head = get("/ws/a", &format!("{field}: a\r\n{WEBSOCKET}"));
    let (Head::Subscribe(subscribe, _), _) = parse_head(head.as_bytes(), &rules) else { panic!("taken") };
    assert_eq!(subscribe.handshake.expect("a WebSocket").subprotocol, None);
}

#[test]
fn a_client_that_offers_our_json_speaks_it_and_may_begin_without_a_topic() {
    let offer = |names: &str| format!("Sec-WebSocket-Protocol: {names}\r\n{WEBSOCKET}");
    for (path, topics) in [("/ws", 0), ("/ws?after=x", 0), ("/ws/a", 1), ("/ws?topic=a&topic=b", 2)] {
        let subscribe = subscribed(&get(path, &offer("fanwave.v1.json, b")));
        assert_eq!((subscribe.format, subscribe.topics.len()), (Format::Json, topics), "{path}");
        assert_eq!(subscribe.handshake.expect("a WebSocket").subprotocol.as_deref(), Some("fanwave.v1.json"));
    }
    assert_eq!(subscribed(&get("/ws/a", &offer("b, fanwave.v1.json"))).format, Format::WebSocket);
    for (path, lines) in [
        ("/ws", offer("b, fanwave.v1.json")),
        ("/ws", WEBSOCKET.to_string()),
        ("/sse", "Sec-WebSocket-Protocol: fanwave.v1.json\r\n".to_string()),
    ] {
        let refusal = refused(get(path, &lines).as_bytes());
        assert!(refusal.detail.starts_with("no topic"), "{refusal:?}");
    }
}

#[test]
fn a_foreign_page_opens_no_websocket_and_is_told_nothing_of_a_stream() {
    let listed = Origins::These(vec!["https://a.example".parse().expect("an origin")]);
    let rules = HeadRules { origins: &listed, ..RULES };
    let asked = |path: &str, lines: &str| parse_head(get(path, lines).as_bytes(), &rules);
    let foreign = "Origin: https://evil.example\r\n";
    let (head, manner) = asked("/ws/a", &format!("{foreign}{WEBSOCKET}"));
    let Head::Refused(refusal) = head else { panic!("{head:?}") };
    assert_eq!((refusal.reason, manner.cors), (CloseReason::ForeignOrigin, Cors::Other));
    let (head, manner) = asked("/sse/a", foreign);
    assert!(matches!(head, Head::Subscribe(..)), "the browser keeps it from the page: {head:?}");
    assert_eq!(manner.cors, Cors::Other);
    let named = Cors::Named("https://a.example".parse().expect("an origin"));
    for (path, lines) in [("/sse/a", ""), ("/ws/a", WEBSOCKET)] {
        let (head, manner) = asked(path, &format!("Origin: https://a.example\r\n{lines}"));
        assert!(matches!(head, Head::Subscribe(..)), "{head:?}");
        assert_eq!(manner.cors, named);
        let (head, _) = asked(path, lines);
        assert!(matches!(head, Head::Subscribe(..)), "no page at all: {head:?}");
    }
}

#[test]
fn a_browser_gets_a_page_and_others_a_text() {
    for (accept, html) in [("text/html,application/xhtml+xml,*/*;q=0.8", true), ("*/*", false), ("", false)] {
        let head = parse(&get("/", &format!("Accept: {accept}\r\n")));
        let Head::Front { is_html, body } = head else { panic!("{head:?}") };
        assert_eq!(is_html, html, "{accept}");
        assert!(body.contains("http://e/sse/hello"), "{body}");
    }
}

#[test]
fn a_head_may_have_the_limit_and_not_a_byte_more() {
    let with_bytes = |bytes: usize| {
        let short = get("/sse/a", "x: \r\n");
        get("/sse/a", &format!("x: {}\r\n", "y".repeat(bytes - short.len())))
    };
    assert_eq!(subscribed(&with_bytes(1_024)).format, Format::SseChunked);
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
        parse_head(&bytes, &RULES);
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
        parse_head(&bytes, &RULES);
    }
}

/// The token of a request for `/sse/a` with this query and these fields.
fn token(query: &str, lines: &str, cookie: Option<&str>, origins: &Origins) -> Option<String> {
    let rules = HeadRules { origins, tokens: Some(TokenPlaces { cookie }), ..RULES };
    let head = get(&format!("/sse/a{query}"), lines);
    match parse_head(head.as_bytes(), &rules).0 {
        Head::Subscribe(request, _) => request.token.map(|token| token.as_str().to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_strongest_token_of_a_request_counts() {
    let any = Origins::Any;
    for (query, lines, found) in [
        ("", "", None),
        ("", "Authorization: Bearer a.b.c\r\n", Some("a.b.c")),
        ("", "authorization: bearer  a.b.c \r\n", Some("a.b.c")),
        ("", "Authorization: Basic YTpi\r\n", None),
        ("", "Authorization: Bearerx\r\n", None),
        ("?token=q.q.q", "", Some("q.q.q")),
        ("?topic=b&%74oken=q%2Eq&token=x", "", Some("q.q")),
        ("?token=", "", None),
        ("?token=q.q.q", "Authorization: Bearer a.b.c\r\n", Some("a.b.c")),
        ("?token=q.q.q", "Authorization: Basic YTpi\r\n", Some("q.q.q")),
    ] {
        assert_eq!(token(query, lines, None, &any).as_deref(), found, "{query} {lines}");
    }
    let rules = HeadRules { tokens: Some(TokenPlaces { cookie: None }), ..RULES };
    for (lines, reason) in [
        ("Authorization: Bearer\r\n", CloseReason::Unauthorized),
        ("Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", CloseReason::BadRequest),
    ] {
        let head = get("/sse/a", lines);
        match parse_head(head.as_bytes(), &rules).0 {
            Head::Refused(refusal) => assert_eq!(refusal.reason, reason),
            other => panic!("{other:?}"),
        }
    }
    // Where nobody needs one, none is looked for.
    assert_eq!(subscribed(&get("/sse/a?token=x", "Authorization: Bearer\r\n")).token, None);
    assert!(!format!("{:?}", Token::new("a.b.c")).contains("a.b"));
}

#[test]
fn a_cookie_counts_from_known_pages_alone() {
    let listed = Origins::These(vec!["https://a.example".parse().expect("an origin")]);
    for (lines, in_list, in_none) in [
        ("Cookie: t=x\r\n", false, false),
        ("Cookie: t=x\r\nSec-Fetch-Site: same-origin\r\n", true, true),
        ("Cookie: t=x\r\nSec-Fetch-Site: same-site\r\n", false, false),
        ("Cookie: t=x\r\nSec-Fetch-Site: none\r\n", false, false),
        ("Cookie: t=x\r\nSec-Fetch-Site: cross-site\r\n", false, false),
        ("Cookie: a=b; t=x\r\nOrigin: http://e\r\n", true, true),
        ("Cookie: t=x; t=y\r\nOrigin: https://a.example\r\n", true, false),
        ("Cookie: t=x\r\nOrigin: https://b.example\r\n", false, false),
        ("Cookie: t=x\r\nOrigin: https://b.example\r\nSec-Fetch-Site: same-origin\r\n", false, false),
        ("Cookie: t=x\r\nOrigin: null\r\n", false, false),
        ("Cookie: T=x; tt=x; t\r\nOrigin: http://e\r\n", false, false),
        ("Cookie: t=\r\nOrigin: http://e\r\n", false, false),
    ] {
        let found = |origins: &Origins| token("", lines, Some("t"), origins).is_some();
        assert_eq!((found(&listed), found(&Origins::None)), (in_list, in_none), "{lines}");
        assert!(!found(&Origins::Any) || lines.contains("Sec-Fetch-Site: same-origin"), "{lines}");
        assert_eq!(token("", lines, None, &listed), None, "no cookie is named");
    }
    assert_eq!(
        token("", "Cookie: a=b;t=x.y; t=z\r\nOrigin: http://e\r\n", Some("t"), &listed).as_deref(),
        Some("x.y")
    );
}

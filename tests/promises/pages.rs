//! Claim: pages of the origins that the operator names may subscribe, over both protocols, and no
//! others; a browser that opens the server's address is shown how.
//!
//! Set-up: servers with each form of `--cors-origin`, and requests with each kind of `Origin`.
//!
//! Expectation: the fields of CORS for those that are let in, 403 for WebSockets of the others; no
//! `Origin` passes.

use crate::support::peer::request;
use crate::support::raw::{RawAnswer, exchange};
use crate::support::{Protocol, Server, Subscriber};

fn with_fields(protocol: Protocol, fields: &str) -> String {
    let head = request(protocol, &["t"], None);
    format!("{}{fields}\r\n", head.strip_suffix("\r\n").expect("a head ends in a blank line"))
}

/// The head of the answer to a page that opens a stream.
async fn opened(server: &Server, protocol: Protocol, fields: &str) -> RawAnswer {
    let subscriber = Subscriber::request(server.data, protocol, with_fields(protocol, fields)).await;
    RawAnswer::parse(subscriber.head.as_bytes())
}

#[tokio::test]
async fn the_pages_of_a_list_are_let_in_with_credentials() {
    let flags = [
        "--shards=1",
        "--cors-origin=https://a.example,http://localhost:3000",
        "--cors-origin=https://b.example",
    ];
    let server = Server::start(&flags);
    for origin in ["https://a.example", "http://localhost:3000", "https://b.example"] {
        for protocol in [Protocol::Sse, Protocol::WebSocket] {
            let head = opened(&server, protocol, &format!("Origin: {origin}\r\n")).await;
            assert_eq!(head.header("Access-Control-Allow-Origin"), Some(origin));
            assert_eq!(head.header("Access-Control-Allow-Credentials"), Some("true"));
            assert_eq!(head.header("Vary"), Some("Origin"));
        }
        let preflight = format!("OPTIONS /sse/t HTTP/1.1\r\nHost: x\r\nOrigin: {origin}\r\n\r\n");
        let preflight = exchange(server.data, preflight.as_bytes()).await;
        let allowed = preflight.header("Access-Control-Allow-Headers").expect("headers are allowed");
        assert!(allowed.contains("Last-Event-ID") && allowed.contains("Authorization"), "{allowed}");
        assert_eq!(preflight.header("Access-Control-Allow-Credentials"), Some("true"));
    }
    for origin in ["https://evil.example", "null", "http://a.example", "https://a.example:8443"] {
        let fields = format!("Origin: {origin}\r\n");
        let head = opened(&server, Protocol::Sse, &fields).await;
        assert_eq!(head.header("Access-Control-Allow-Origin"), None, "the browser keeps it from {origin}");
        assert_eq!(head.header("Vary"), Some("Origin"));
        let refused = exchange(server.data, with_fields(Protocol::WebSocket, &fields).as_bytes()).await;
        assert_eq!(refused.status, 403, "{origin}");
    }
    server.await_closed("foreign_origin", 4).await;
    opened(&server, Protocol::WebSocket, "").await;
    opened(&server, Protocol::WebSocket, "Origin: https://test\r\n").await;
}

#[tokio::test]
async fn none_leaves_websockets_to_our_own_pages_and_the_default_to_all() {
    let none = Server::start(&["--shards=1", "--cors-origin=none"]);
    let all = Server::start(&["--shards=1"]);
    let evil = "Origin: https://evil.example\r\n";
    for fields in ["", "Origin: http://test\r\n"] {
        assert_eq!(opened(&none, Protocol::WebSocket, fields).await.status, 101, "{fields}");
    }
    let refused = exchange(none.data, with_fields(Protocol::WebSocket, evil).as_bytes()).await;
    assert_eq!((refused.status, refused.header("Access-Control-Allow-Origin")), (403, None));
    assert_eq!(opened(&none, Protocol::Sse, evil).await.header("Access-Control-Allow-Origin"), None);
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let head = opened(&all, protocol, evil).await;
        assert_eq!(head.header("Access-Control-Allow-Origin"), Some("*"), "{protocol:?}");
        assert_eq!(head.header("Access-Control-Allow-Credentials"), None, "{protocol:?}");
        assert_eq!(head.header("Vary"), None, "{protocol:?}");
    }
}

#[tokio::test]
async fn a_browser_is_shown_how_to_subscribe_where_it_asked() {
    let server = Server::start(&["--shards", "1"]);
    let ask = |fields: &str| format!("GET / HTTP/1.1\r\nHost: edge.example:8080\r\n{fields}\r\n");
    let page = exchange(server.data, ask("Accept: text/html,*/*;q=0.8\r\n").as_bytes()).await;
    assert_eq!((page.status, page.header("Content-Type")), (200, Some("text/html; charset=utf-8")));
    let html = String::from_utf8(page.body).expect("UTF-8");
    assert!(html.contains("new EventSource(\"http://edge.example:8080/sse/hello\")"), "{html}");
    let text = exchange(server.data, ask("Accept: */*\r\n").as_bytes()).await;
    assert_eq!((text.status, text.header("Content-Type")), (200, Some("text/plain; charset=utf-8")));
    let text = String::from_utf8(text.body).expect("UTF-8");
    assert!(text.contains("curl -N 'http://edge.example:8080/sse/hello'"), "{text}");
    let head = exchange(server.data, b"HEAD / HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n\r\n").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    server.await_closed("answered", 3).await;
}

//! What we answer to a request head. Every answer but an upgrade ends the connection, so SSE bodies are delimited by
//! its close and need no chunks (RFC 9112 §6.3).
//!
//! `cors` is the operator's value of `Access-Control-Allow-Origin`, already checked to be one header value.

use std::fmt::Write as _;

use super::Refusal;

/// Seconds that a browser may remember a preflight; none remembers longer than two hours.
const PREFLIGHT_SECONDS: u32 = 7_200;

/// The answer to a refused request: status and one line of plain text, which `head_only` leaves out (RFC 9110 §9.3.2).
///
/// # Panics
/// If the reason has no HTTP status, because then it is no reason to refuse a request.
pub fn refusal(refusal: &Refusal, cors: Option<&str>, head_only: bool) -> Vec<u8> {
    let status = refusal.reason.row().http_status.expect("a refused request has an HTTP status");
    let mut head = status_line(status);
    push_cors(&mut head, cors);
    let connection = match status {
        405 => {
            head.push_str("Allow: GET\r\n");
            "close"
        }
        426 => {
            head.push_str("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
            "Upgrade, close"
        }
        503 => {
            head.push_str("Retry-After: 1\r\n");
            "close"
        }
        _ => "close",
    };
    plain_text(head, connection, &refusal.detail, head_only)
}

/// The answer to `/healthz`: 200 `ok` while `accepting`, else 503 `draining`. `head_only` leaves the body out.
pub fn health(accepting: bool, head_only: bool) -> Vec<u8> {
    if accepting {
        return plain_text(status_line(200), "close", "ok", head_only);
    }
    let mut head = status_line(503);
    head.push_str("Retry-After: 1\r\n");
    plain_text(head, "close", "draining", head_only)
}

/// The answer to OPTIONS on one of our paths. Without `cors` it says what is allowed here, and nothing about other
/// origins.
pub fn preflight(cors: Option<&str>) -> Vec<u8> {
    let mut head = status_line(204);
    head.push_str("Allow: GET, OPTIONS\r\n");
    push_cors(&mut head, cors);
    if cors.is_some() {
        head.push_str("Access-Control-Allow-Methods: GET\r\n");
        head.push_str("Access-Control-Allow-Headers: Last-Event-ID, Cache-Control, Accept\r\n");
        push_line(&mut head, format_args!("Access-Control-Max-Age: {PREFLIGHT_SECONDS}"));
    }
    head.push_str("Connection: close\r\n\r\n");
    head.into_bytes()
}

/// The head of an event stream. `no-transform` and `X-Accel-Buffering` keep proxies from holding events back.
pub fn sse_head(cors: Option<&str>) -> Vec<u8> {
    let mut head = status_line(200);
    head.push_str("Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n");
    head.push_str("X-Accel-Buffering: no\r\nConnection: close\r\n");
    push_cors(&mut head, cors);
    head.push_str("\r\n");
    head.into_bytes()
}

/// The end of a WebSocket's opening handshake (RFC 6455 §4.2.2); frames follow. No subprotocol is chosen.
pub fn websocket_head(accept: &[u8; 28]) -> Vec<u8> {
    let mut head = status_line(101).into_bytes();
    head.extend_from_slice(b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ");
    head.extend_from_slice(accept);
    head.extend_from_slice(b"\r\n\r\n");
    head
}

fn status_line(status: u16) -> String {
    let phrase = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut head = String::with_capacity(256);
    push_line(&mut head, format_args!("HTTP/1.1 {status} {}", phrase.unwrap_or_default()));
    head
}

fn push_cors(head: &mut String, cors: Option<&str>) {
    if let Some(origin) = cors {
        push_line(head, format_args!("Access-Control-Allow-Origin: {origin}"));
    }
}

fn push_line(head: &mut String, line: std::fmt::Arguments<'_>) {
    write!(head, "{line}\r\n").expect("a string takes every write");
}

/// Ends `head` and adds `text` as one line of body.
fn plain_text(mut head: String, connection: &str, text: &str, head_only: bool) -> Vec<u8> {
    // An answer about this moment must not be remembered by a cache in between.
    head.push_str("Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n");
    push_line(&mut head, format_args!("Content-Length: {}", text.len() + 1));
    push_line(&mut head, format_args!("Connection: {connection}\r\n"));
    if !head_only {
        head.push_str(text);
        head.push('\n');
    }
    head.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::{CLOSE_TABLE, CloseReason};

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("UTF-8")
    }

    fn refused(reason: CloseReason, cors: Option<&str>) -> String {
        text(refusal(&Refusal { reason, detail: "wrong".into() }, cors, false))
    }

    #[test]
    fn a_refusal_is_one_line_of_text_and_a_close() {
        assert_eq!(
            refused(CloseReason::BadRequest, None),
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
             Content-Length: 6\r\nConnection: close\r\n\r\nwrong\n"
        );
    }

    #[test]
    fn refusals_say_what_would_be_allowed() {
        use CloseReason::*;
        for (reason, line) in [
            (NotFound, "HTTP/1.1 404 Not Found"),
            (MethodNotAllowed, "HTTP/1.1 405 Method Not Allowed"),
            (MethodNotAllowed, "Allow: GET"),
            (NotAcceptable, "HTTP/1.1 406 Not Acceptable"),
            (HandshakeTimeout, "HTTP/1.1 408 Request Timeout"),
            (HeadTooLarge, "HTTP/1.1 431 Request Header Fields Too Large"),
            (UpgradeRequired, "HTTP/1.1 426 Upgrade Required"),
            (UpgradeRequired, "Upgrade: websocket"),
            (UpgradeRequired, "Connection: Upgrade, close"),
            (UpgradeRequired, "Sec-WebSocket-Version: 13"),
            (Full, "HTTP/1.1 503 Service Unavailable"),
            (Full, "Retry-After: 1"),
            (Draining, "Retry-After: 1"),
        ] {
            let answer = refused(reason, None);
            assert!(answer.split("\r\n").any(|part| part == line), "{line} in {answer}");
        }
        let answer = refused(NotFound, Some("https://a.example"));
        assert!(answer.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\n"));
    }

    #[test]
    fn every_status_of_the_table_has_a_phrase_and_a_well_formed_answer() {
        for row in CLOSE_TABLE.iter().filter(|row| row.http_status.is_some()) {
            let answer = refused(row.reason, Some("*"));
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut response = httparse::Response::new(&mut headers);
            let head = response.parse(answer.as_bytes()).expect("a response").unwrap();
            assert_eq!(response.code, row.http_status);
            assert_ne!(response.reason, Some(""), "{answer}");
            assert_eq!(&answer[head..], "wrong\n");
        }
    }

    #[test]
    fn health_is_ok_until_the_drain() {
        assert!(text(health(true, false)).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(text(health(true, false)).ends_with("Content-Length: 3\r\nConnection: close\r\n\r\nok\n"));
        assert!(text(health(true, true)).ends_with("Content-Length: 3\r\nConnection: close\r\n\r\n"));
        assert!(
            text(health(false, false)).starts_with("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        );
        assert!(text(health(false, false)).ends_with("\r\n\r\ndraining\n"));
    }

    #[test]
    fn a_preflight_allows_other_origins_only_if_the_operator_does() {
        assert_eq!(
            text(preflight(Some("*"))),
            "HTTP/1.1 204 No Content\r\nAllow: GET, OPTIONS\r\nAccess-Control-Allow-Origin: *\r\n\
             Access-Control-Allow-Methods: GET\r\n\
             Access-Control-Allow-Headers: Last-Event-ID, Cache-Control, Accept\r\n\
             Access-Control-Max-Age: 7200\r\nConnection: close\r\n\r\n"
        );
        assert!(!text(preflight(None)).contains("Access-Control"));
    }

    #[test]
    fn a_stream_begins_with_its_head() {
        assert_eq!(
            text(sse_head(Some("*"))),
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n\
             X-Accel-Buffering: no\r\nConnection: close\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
        );
        assert!(!text(sse_head(None)).contains("Access-Control"));
        assert_eq!(
            text(websocket_head(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")),
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        );
    }
}

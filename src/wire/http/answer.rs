//! What we answer to a request head. Every answer but an upgrade ends the connection. Event streams
//! come in chunks, or for HTTP/1.0 until the connection is closed (RFC 9112 §6.3).

use std::fmt::Write as _;

use super::RefusedRequest;
use super::origin::Cors;
use super::post::Keep;

/// Seconds that a browser may remember a preflight; none remembers longer than two hours.
const PREFLIGHT_SECONDS: u32 = 7_200;

/// How the answer to one request looks, whatever it says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manner {
    /// Who may read it.
    pub cors: Cors,
    /// What may be asked at the path; empty if it is none of ours.
    pub allow: &'static str,
    /// The request was a HEAD: the answer has no body (RFC 9110 §9.3.2).
    pub head_only: bool,
}

/// An answer that is to be written. `date` is the value of its `Date`, if it is known what time it
/// is.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    manner: &'a Manner,
    date: Option<&'a str>,
    /// Seconds after which a refused client may come again, where a retry helps.
    retry_after_s: u32,
}

impl<'a> Answer<'a> {
    /// An answer in this manner, at this date (RFC 9110 §6.6.1).
    pub fn new(manner: &'a Manner, date: Option<&'a str>) -> Answer<'a> {
        Answer { manner, date, retry_after_s: 1 }
    }

    /// The same, for a client that is to come again no sooner than after so many seconds.
    pub fn after(self, retry_after_s: u32) -> Answer<'a> {
        Answer { retry_after_s, ..self }
    }

    /// To a refused request: status and one line of plain text.
    ///
    /// # Panics
    /// If the reason has no HTTP status, because then it is no reason to refuse a request.
    pub fn refusal(self, refusal: &RefusedRequest) -> Vec<u8> {
        let status = refusal.reason.row().http_status.expect("a refused request has an HTTP status");
        let mut head = self.status_line(status);
        let connection = match status {
            405 => {
                push_line(&mut head, format_args!("Allow: {}", self.manner.allow));
                "close"
            }
            401 => {
                head.push_str("WWW-Authenticate: Bearer\r\n");
                "close"
            }
            426 => {
                head.push_str("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
                "Upgrade, close"
            }
            429 | 503 => {
                push_line(&mut head, format_args!("Retry-After: {}", self.retry_after_s));
                "close"
            }
            _ => "close",
        };
        self.text(head, "text/plain", connection, &format!("{}\n", refusal.detail))
    }

    /// To `/healthz`: 200 `ok` while `accepting`, or why nothing can be published; else 503
    /// `draining`.
    pub fn health(self, accepting: bool, degraded: Option<&str>) -> Vec<u8> {
        if accepting {
            let body = degraded.map_or_else(|| "ok\n".to_string(), |why| format!("degraded: {why}\n"));
            return self.text(self.status_line(200), "text/plain", "close", &body);
        }
        let mut head = self.status_line(503);
        head.push_str("Retry-After: 1\r\n");
        self.text(head, "text/plain", "close", "draining\n")
    }

    /// A page, or plain text.
    pub fn page(self, is_html: bool, body: &str) -> Vec<u8> {
        let media_type = if is_html { "text/html" } else { "text/plain" };
        let mut head = self.status_line(200);
        head.push_str("Vary: Accept\r\n");
        self.text(head, media_type, "close", body)
    }

    /// To OPTIONS: what is allowed here, and to pages of other origins.
    pub fn preflight(self) -> Vec<u8> {
        let mut head = self.status_line(204);
        push_line(&mut head, format_args!("Allow: {}", self.manner.allow));
        let also = match self.manner.cors {
            Cors::Silent | Cors::Other => None,
            Cors::Any => Some(""),
            // `*` goes with no credentials, so nobody would send these.
            Cors::Named(_) => Some(", Authorization"),
        };
        if let Some(also) = also {
            let (methods, fields) = match self.manner.allow.starts_with("POST") {
                true => ("POST", "Content-Type"),
                false => ("GET", "Last-Event-ID, Cache-Control, Accept"),
            };
            push_line(&mut head, format_args!("Access-Control-Allow-Methods: {methods}"));
            push_line(&mut head, format_args!("Access-Control-Allow-Headers: {fields}{also}"));
            push_line(&mut head, format_args!("Access-Control-Max-Age: {PREFLIGHT_SECONDS}"));
        }
        head.push_str("Connection: close\r\n\r\n");
        head.into_bytes()
    }

    /// The head of an event stream, in chunks if `is_chunked`. `no-transform` and
    /// `X-Accel-Buffering` keep proxies from holding events back.
    pub fn sse_head(self, is_chunked: bool) -> Vec<u8> {
        let mut head = self.status_line(200);
        head.push_str("Content-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n");
        if is_chunked {
            head.push_str("Transfer-Encoding: chunked\r\n");
        }
        head.push_str("X-Accel-Buffering: no\r\nConnection: close\r\n\r\n");
        head.into_bytes()
    }

    /// An event stream that ends at once and makes a browser come back after `retry_ms`. An
    /// `EventSource` gives up for good at any status but 200 (WHATWG HTML §9.2.3); without an `id`
    /// it keeps its resume point.
    pub fn come_back(self, refusal: &RefusedRequest, retry_ms: u32) -> Vec<u8> {
        let body = format!("retry: {retry_ms}\n: {}: {}\n\n", refusal.reason.row().label, refusal.detail);
        let mut head = self.status_line(200);
        head.push_str("Content-Type: text/event-stream\r\nCache-Control: no-store\r\n");
        push_line(&mut head, format_args!("Content-Length: {}", body.len()));
        head.push_str("Connection: close\r\n\r\n");
        head.push_str(&body);
        head.into_bytes()
    }

    /// The end of a WebSocket's opening handshake (RFC 6455 §4.2.2); frames follow.
    pub fn websocket_head(self, accept: &[u8; 28], subprotocol: Option<&str>) -> Vec<u8> {
        let accept = std::str::from_utf8(accept).expect("base64 is ASCII");
        let mut head = self.status_line(101);
        head.push_str("Upgrade: websocket\r\nConnection: Upgrade\r\n");
        push_line(&mut head, format_args!("Sec-WebSocket-Accept: {accept}"));
        if let Some(name) = subprotocol {
            push_line(&mut head, format_args!("Sec-WebSocket-Protocol: {name}"));
        }
        head.push_str("\r\n");
        head.into_bytes()
    }

    /// To a publish: `body` is a line of JSON, and `field` one more header line or nothing.
    /// Appended to the answers before it.
    pub fn publish(self, out: &mut String, status: u16, keep: Keep, field: &str, body: &str) {
        self.push_status_line(out, status);
        out.push_str(field);
        out.push_str(match keep {
            Keep::Close => "Connection: close\r\n",
            Keep::Open => "",
            Keep::OpenAsAsked => "Connection: keep-alive\r\n",
        });
        out.push_str("Content-Type: application/json\r\n");
        push_line(out, format_args!("Content-Length: {}\r\n", body.len()));
        out.push_str(body);
    }

    /// The first lines of every answer.
    fn status_line(self, status: u16) -> String {
        let mut head = String::with_capacity(512);
        self.push_status_line(&mut head, status);
        head
    }

    fn push_status_line(self, head: &mut String, status: u16) {
        let phrase = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        push_line(head, format_args!("HTTP/1.1 {status} {}", phrase.unwrap_or_default()));
        if let Some(date) = self.date {
            push_line(head, format_args!("Date: {date}"));
        }
        match &self.manner.cors {
            Cors::Silent => {}
            Cors::Any => head.push_str("Access-Control-Allow-Origin: *\r\n"),
            Cors::Other => head.push_str("Vary: Origin\r\n"),
            Cors::Named(origin) => {
                push_line(head, format_args!("Access-Control-Allow-Origin: {origin}"));
                head.push_str("Access-Control-Allow-Credentials: true\r\nVary: Origin\r\n");
            }
        }
    }

    /// Ends `head` and adds `body`.
    fn text(self, mut head: String, media_type: &str, connection: &str, body: &str) -> Vec<u8> {
        push_line(&mut head, format_args!("Content-Type: {media_type}; charset=utf-8"));
        // An answer about this moment must not be remembered by a cache in between.
        head.push_str("Cache-Control: no-store\r\n");
        push_line(&mut head, format_args!("Content-Length: {}", body.len()));
        push_line(&mut head, format_args!("Connection: {connection}\r\n"));
        if !self.manner.head_only {
            head.push_str(body);
        }
        head.into_bytes()
    }
}

fn push_line(head: &mut String, line: std::fmt::Arguments<'_>) {
    write!(head, "{line}\r\n").expect("a string takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::{CLOSE_TABLE, CloseReason};

    const DATE: &str = "Mon, 30 Nov 2026 02:40:00 GMT";

    fn manner(cors: Cors) -> Manner {
        Manner { cors, allow: "GET, OPTIONS", head_only: false }
    }

    fn named() -> Cors {
        Cors::Named("https://a.example".parse().expect("an origin"))
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("UTF-8")
    }

    fn refused(reason: CloseReason, cors: Cors) -> String {
        let refusal = RefusedRequest { reason, detail: "wrong".into() };
        text(Answer::new(&manner(cors), Some(DATE)).refusal(&refusal))
    }

    #[test]
    fn a_refusal_is_one_line_of_text_and_a_close() {
        assert_eq!(
            refused(CloseReason::BadRequest, Cors::Silent),
            "HTTP/1.1 400 Bad Request\r\nDate: Mon, 30 Nov 2026 02:40:00 GMT\r\n\
             Content-Type: text/plain; charset=utf-8\r\nCache-Control: no-store\r\n\
             Content-Length: 6\r\nConnection: close\r\n\r\nwrong\n"
        );
    }

    #[test]
    fn refusals_say_what_would_be_allowed() {
        use CloseReason::*;
        for (reason, line) in [
            (NotFound, "HTTP/1.1 404 Not Found"),
            (MethodNotAllowed, "HTTP/1.1 405 Method Not Allowed"),
            (MethodNotAllowed, "Allow: GET, OPTIONS"),
            (NotAcceptable, "HTTP/1.1 406 Not Acceptable"),
            (HeadTooLarge, "HTTP/1.1 431 Request Header Fields Too Large"),
            (UpgradeRequired, "HTTP/1.1 426 Upgrade Required"),
            (UpgradeRequired, "Upgrade: websocket"),
            (UpgradeRequired, "Connection: Upgrade, close"),
            (UpgradeRequired, "Sec-WebSocket-Version: 13"),
            (ForeignOrigin, "HTTP/1.1 403 Forbidden"),
            (UnknownCoding, "HTTP/1.1 501 Not Implemented"),
            (Full, "HTTP/1.1 503 Service Unavailable"),
            (Full, "Retry-After: 1"),
            (Memory, "HTTP/1.1 503 Service Unavailable"),
            (Memory, "Retry-After: 1"),
            (Draining, "Retry-After: 1"),
            (AddressFull, "HTTP/1.1 429 Too Many Requests"),
            (AddressFull, "Retry-After: 1"),
        ] {
            let answer = refused(reason, Cors::Silent);
            assert!(answer.split("\r\n").any(|part| part == line), "{line} in {answer}");
        }
    }

    #[test]
    fn every_status_of_the_table_has_a_phrase_and_a_well_formed_answer() {
        for row in CLOSE_TABLE.iter().filter(|row| row.http_status.is_some()) {
            let answer = refused(row.reason, named());
            let mut headers = [httparse::EMPTY_HEADER; 16];
            let mut response = httparse::Response::new(&mut headers);
            let head = response.parse(answer.as_bytes()).expect("a response").unwrap();
            assert_eq!(response.code, row.http_status);
            assert_ne!(response.reason, Some(""), "{answer}");
            assert_eq!(&answer[head..], "wrong\n");
        }
    }

    #[test]
    fn every_answer_tells_its_date_and_who_may_read_it() {
        let readers = |cors: &Cors| match cors {
            Cors::Silent => &[][..],
            Cors::Any => &["Access-Control-Allow-Origin: *"],
            Cors::Other => &["Vary: Origin"],
            Cors::Named(_) => &[
                "Access-Control-Allow-Origin: https://a.example",
                "Access-Control-Allow-Credentials: true",
                "Vary: Origin",
            ],
        };
        for cors in [Cors::Silent, Cors::Any, Cors::Other, named()] {
            let manner = manner(cors);
            let answer = Answer::new(&manner, Some(DATE));
            let refusal = RefusedRequest { reason: CloseReason::NotFound, detail: "x".into() };
            for bytes in [
                answer.refusal(&refusal),
                answer.health(true, None),
                answer.health(false, None),
                answer.page(true, "<p>"),
                answer.preflight(),
                answer.sse_head(true),
                answer.websocket_head(&[b'x'; 28], None),
            ] {
                let text = text(bytes);
                let head = text.split("\r\n\r\n").next().expect("a head");
                let said: Vec<&str> = head.split("\r\n").collect();
                assert_eq!(said[1], format!("Date: {DATE}"), "{text}");
                let about_readers =
                    ["Access-Control-Allow-Origin", "Access-Control-Allow-Cred", "Vary: Origin"];
                let told: Vec<&str> = said
                    .iter()
                    .copied()
                    .filter(|line| about_readers.iter().any(|begin| line.starts_with(begin)))
                    .collect();
                assert_eq!(told, readers(&manner.cors), "{text}");
            }
        }
    }

    #[test]
    fn who_does_not_know_the_time_tells_none() {
        let manner = Manner::default();
        assert!(!text(Answer::new(&manner, None).health(true, None)).contains("Date"));
    }

    #[test]
    fn health_is_ok_until_the_drain() {
        let (get, head) = (manner(Cors::Silent), Manner { head_only: true, ..manner(Cors::Silent) });
        let health = |manner, accepting| text(Answer::new(manner, None).health(accepting, None));
        assert!(health(&get, true).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(health(&get, true).ends_with("Content-Length: 3\r\nConnection: close\r\n\r\nok\n"));
        assert!(health(&head, true).ends_with("Content-Length: 3\r\nConnection: close\r\n\r\n"));
        let degraded = text(Answer::new(&get, None).health(true, Some("the disk is full")));
        assert!(degraded.starts_with("HTTP/1.1 200 OK\r\n"), "subscribers are served");
        assert!(degraded.ends_with("\r\n\r\ndegraded: the disk is full\n"), "{degraded}");
        assert!(health(&get, false).starts_with("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"));
        assert!(health(&get, false).ends_with("\r\n\r\ndraining\n"));
    }

    #[test]
    fn a_preflight_allows_other_origins_only_if_the_operator_does() {
        let preflight = |cors| text(Answer::new(&manner(cors), None).preflight());
        assert_eq!(
            preflight(Cors::Any),
            "HTTP/1.1 204 No Content\r\nAccess-Control-Allow-Origin: *\r\nAllow: GET, OPTIONS\r\n\
             Access-Control-Allow-Methods: GET\r\n\
             Access-Control-Allow-Headers: Last-Event-ID, Cache-Control, Accept\r\n\
             Access-Control-Max-Age: 7200\r\nConnection: close\r\n\r\n"
        );
        assert!(preflight(named()).contains("Cache-Control, Accept, Authorization\r\n"));
        for cors in [Cors::Silent, Cors::Other] {
            assert!(!preflight(cors).contains("Access-Control"));
        }
    }

    #[test]
    fn a_stream_begins_with_its_head() {
        let manner = manner(Cors::Any);
        let answer = Answer::new(&manner, None);
        assert_eq!(
            text(answer.sse_head(false)),
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Type: text/event-stream\r\n\
             Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\nConnection: close\r\n\r\n"
        );
        assert!(text(answer.sse_head(true)).contains("\r\nTransfer-Encoding: chunked\r\n"));
        let refusal = RefusedRequest { reason: CloseReason::Draining, detail: "later".into() };
        assert_eq!(
            text(answer.come_back(&refusal, 1_234)),
            "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nContent-Type: text/event-stream\r\n\
             Cache-Control: no-store\r\nContent-Length: 31\r\nConnection: close\r\n\r\n\
             retry: 1234\n: draining: later\n\n"
        );
        let accept = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        assert_eq!(
            text(answer.websocket_head(accept, Some("chat"))),
            "HTTP/1.1 101 Switching Protocols\r\nAccess-Control-Allow-Origin: *\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
             Sec-WebSocket-Protocol: chat\r\n\r\n"
        );
        assert!(!text(answer.websocket_head(accept, None)).contains("Protocol:"));
    }
}

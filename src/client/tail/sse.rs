//! One event stream over as many connections as it takes (WHATWG HTML §9.2.3).

use std::ops::ControlFlow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use tokio::time::timeout;

use super::super::trust::{Trust, distrust};
use super::super::{ClientError, cannot_connect, http_client, read_refusal, retry_after, root_cause};
use super::{Addresses, EVENT_BYTES_MAX, Ended, Output, Payload};
use crate::wire::http::has_content_type;
use crate::wire::sse::GAP_EVENT;
use crate::wire::sse_parser::{ParsedEvent, Parser};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What HTTP takes away around the value of a header field (RFC 9110 §5.5).
const BLANKS: [char; 2] = [' ', '\t'];

/// The stream: its parser outlives the connections, because id and reconnection time do.
pub(super) struct Stream {
    client: reqwest::Client,
    addresses: Addresses,
    parser: Parser,
    /// True once a connection was open.
    returning: bool,
    /// From the first packet to the head of an answer, and from there to the end of a refusal.
    answer_time_max: Duration,
}

impl Stream {
    pub(super) fn new(
        addresses: Addresses,
        after: Option<String>,
        trust: &Trust,
        answer_time_max: Duration,
    ) -> Result<Stream, ClientError> {
        let after = after.unwrap_or_default();
        if !is_carried(&after) {
            let text = "--after: no header carries this id: it has control characters, or blanks around it";
            return Err(ClientError::Usage(text.to_string()));
        }
        let fields = HeaderMap::from_iter(addresses.bearer.clone().map(|bearer| (AUTHORIZATION, bearer)));
        let client = trust
            .of_http(http_client().default_headers(fields), &addresses.name)
            .and_then(reqwest::ClientBuilder::build)
            .map_err(|error| ClientError::Unreachable(root_cause(&error)))?;
        let parser = Parser::after(EVENT_BYTES_MAX, after);
        Ok(Stream { client, addresses, parser, returning: false, answer_time_max })
    }

    /// Connects once and prints until the connection is over.
    pub(super) async fn follow(&mut self, output: &mut Output<'_>) -> Ended {
        let Addresses { name, first, later, .. } = &self.addresses;
        let url = if self.returning { later } else { first };
        let request = self.client.get(url.clone()).headers(self.headers());
        let mut response = match timeout(self.answer_time_max, request.send()).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                return match distrust(name, &error) {
                    Some(line) => Ended::Refused(line),
                    None => self.lost(cannot_connect(name, &error)),
                };
            }
            Err(_) => return self.lost(format!("cannot connect to {name}: no answer in time")),
        };
        match response.status() {
            StatusCode::OK if has_content_type(response.headers(), "text/event-stream") => {}
            StatusCode::OK => {
                return Ended::Refused(format!("{name} answers, but not with an event stream"));
            }
            StatusCode::NO_CONTENT => {
                return Ended::Refused("204 No Content: the stream is over".to_string());
            }
            status if status.is_server_error() => {
                let asked = retry_after(response.headers());
                return Ended::Lost { why: read_refusal(response, self.answer_time_max).await, asked };
            }
            _ => return Ended::Refused(read_refusal(response, self.answer_time_max).await),
        }
        let returning = std::mem::replace(&mut self.returning, true);
        output.connected(name, self.lack().filter(|_| returning).as_deref());
        self.parser.restart();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    if let ControlFlow::Break(ended) = self.print(&chunk, output) {
                        return ended;
                    }
                }
                Ok(None) => return self.lost("closed: end of stream".to_string()),
                Err(error) => return self.lost(format!("closed: {}", root_cause(&error))),
            }
        }
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        let id = self.parser.last_event_id().trim_matches(BLANKS);
        if let (false, Ok(id)) = (id.is_empty(), HeaderValue::from_bytes(id.as_bytes())) {
            headers.insert(LAST_EVENT_ID, id);
        }
        headers
    }

    /// Why the next connection may not go on where the last one ended; `None` if its headers name
    /// that point.
    fn lack(&self) -> Option<String> {
        match self.parser.last_event_id() {
            "" => Some("the stream has given no id to go on from".to_string()),
            id if is_carried(id) => None,
            id => Some(format!("no header carries the last id, {id:?}, as it is")),
        }
    }

    fn print(&mut self, chunk: &[u8], output: &mut Output<'_>) -> ControlFlow<Ended> {
        let mut flow = ControlFlow::Continue(());
        let fed = self.parser.feed(chunk, |event| {
            if flow.is_continue() {
                flow = print_event(&event, output);
            }
        });
        match fed {
            _ if flow.is_break() => flow,
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Ended::Refused(error.to_string())),
        }
    }

    /// The connection is gone; the stream may have said when to come back.
    fn lost(&self, why: String) -> Ended {
        Ended::Lost { why, asked: self.parser.retry_ms().map(Duration::from_millis) }
    }
}

/// True if this value of a header field arrives as it is: it has no control characters, and no
/// blanks around it (RFC 9110 §5.5).
fn is_carried(id: &str) -> bool {
    HeaderValue::from_bytes(id.as_bytes()).is_ok() && id == id.trim_matches(BLANKS)
}

fn print_event(event: &ParsedEvent, output: &mut Output<'_>) -> ControlFlow<Ended> {
    if event.event == GAP_EVENT {
        return output.gap(&event.id, &event.data);
    }
    // What only says that it is base64 is printed as it is.
    let bytes = event.is_base64.then(|| STANDARD.decode(&event.data).ok()).flatten();
    let payload = bytes.as_deref().map_or(Payload::Text(&event.data), Payload::Binary);
    output.event(&event.event, &event.id, payload)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::tests::tail;
    use crate::client::ClientError;

    const STREAM: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n";

    /// Accepts one connection and gives its request head in lower case.
    async fn accept(listener: &TcpListener) -> (TcpStream, String) {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a request head"));
        }
        (stream, String::from_utf8(head).expect("UTF-8").to_lowercase())
    }

    /// Answers each connection in turn with one of `answers`, and gives the request heads.
    async fn serve(listener: TcpListener, answers: &[String]) -> Vec<String> {
        let mut heads = Vec::new();
        for answer in answers {
            let (mut stream, head) = accept(&listener).await;
            stream.write_all(answer.as_bytes()).await.expect("the client reads");
            heads.push(head);
        }
        heads
    }

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}/sse/hello", listener.local_addr().expect("bound"));
        (listener, url)
    }

    fn stream(events: &str) -> String {
        format!("{STREAM}{events}")
    }

    #[tokio::test]
    async fn a_lost_stream_goes_on_after_the_last_event_id() {
        let (listener, url) = listener().await;
        let answers = [
            stream(
                "retry: 150\n\nid: a-1\ndata: one\n\nid: a-2\ndata: two\ndata: lines\n\nid: a-3\ndata: cut",
            ),
            stream("id: a-3\nevent: last\ndata: three\n\n"),
        ];
        let (heads, (result, out, notes)) =
            tokio::join!(serve(listener, &answers), tail(&url, &["--count", "3"]));
        result.expect("three events");
        assert_eq!(out, "one\ntwo\nlines\nthree\n");
        assert!(
            heads[0].contains("accept: text/event-stream") && !heads[0].contains("last-event-id"),
            "{}",
            heads[0]
        );
        assert!(heads[1].contains("last-event-id: a-2\r\n"), "{}", heads[1]);
        assert!(notes.contains("closed: end of stream; reconnecting in 0."), "{notes}");
        assert!(!notes.contains("missing"), "{notes}");
    }

    /// What the second connection of a stream asks for whose first one ended after `first`, and
    /// what is noted.
    async fn return_after(first: &str, flags: &[&str]) -> (String, String) {
        let (listener, url) = listener().await;
        let answers = [stream(first), stream("data: last\n\n")];
        let flags = [flags, &["--count", "2"]].concat();
        let (mut heads, (result, out, notes)) = tokio::join!(serve(listener, &answers), tail(&url, &flags));
        result.expect("two events");
        assert_eq!(out, "one\nlast\n");
        (heads.pop().expect("two connections"), notes)
    }

    #[tokio::test]
    async fn an_id_that_no_header_carries_as_it_is_is_told_at_the_return() {
        for (id, sent, told) in [
            ("\u{1}x", None, r#""\u{1}x""#),
            ("x\u{7f}", None, r#""x\u{7f}""#),
            ("  ", None, r#""  ""#),
            (" x", Some("x"), r#"" x""#),
            ("x\t", Some("x"), r#""x\t""#),
        ] {
            let (head, notes) = return_after(&format!("id: {id}\ndata: one\n\n"), &["--from", "a-1"]).await;
            let line = head.lines().find_map(|line| line.strip_prefix("last-event-id: "));
            assert_eq!(line.map(str::trim), sent, "{id:?}");
            let told =
                format!("fanwave: events may be missing: no header carries the last id, {told}, as it is\n");
            assert_eq!(notes.matches(&told).count(), 1, "{id:?}: {notes}");
        }
    }

    #[tokio::test]
    async fn a_return_without_an_id_is_told() {
        for first in ["data: one\n\n", "id: a-1\ndata: one\n\nid\n\n"] {
            let (head, notes) = return_after(first, &[]).await;
            assert!(!head.contains("last-event-id"), "{head}");
            let told = "fanwave: events may be missing: the stream has given no id to go on from\n";
            assert_eq!(notes.matches(told).count(), 1, "{first:?}: {notes}");
        }
    }

    #[tokio::test]
    async fn from_holds_until_the_stream_gives_another_id_or_takes_it_back() {
        for (first, sent) in [
            ("data: one\n\n", Some("a-7")),
            ("id: räume ✓\ndata: one\n\n", Some("räume ✓")),
            ("id: a-8\ndata: one\n\nid\n\n", None),
        ] {
            let (head, notes) = return_after(first, &["--from", "a-7"]).await;
            let line = head.lines().find_map(|line| line.strip_prefix("last-event-id: "));
            assert_eq!(line, sent, "{first:?}");
            assert_eq!(notes.contains("missing"), sent.is_none(), "{first:?}: {notes}");
        }
    }

    #[tokio::test]
    async fn an_id_to_start_after_must_fit_a_header() {
        for id in ["\u{1}", "a\nb", " ", " x", "x\t"] {
            let (result, _, _) = tail("http://127.0.0.1:1/sse/t", &["--from", id]).await;
            match result {
                Err(ClientError::Usage(line)) => assert!(line.contains("--after"), "{line}"),
                other => panic!("{id:?}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn from_sets_the_first_last_event_id_and_json_shows_name_and_id() {
        let (listener, url) = listener().await;
        let answers = [stream("id: a-8\nevent: tick\ndata: \"x\"\n\ndata: y\n\n")];
        let flags = ["--from", "a-7", "--json", "--count", "2"];
        let (heads, (result, out, _)) = tokio::join!(serve(listener, &answers), tail(&url, &flags));
        result.expect("two events");
        assert!(heads[0].contains("last-event-id: a-7\r\n"), "{}", heads[0]);
        let events: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(events[0], serde_json::json!({ "event": "tick", "id": "a-8", "data": "\"x\"" }));
        assert_eq!(events[1], serde_json::json!({ "event": "message", "id": "a-8", "data": "y" }));
    }

    #[tokio::test]
    async fn a_server_that_is_full_is_asked_again() {
        let (listener, url) = listener().await;
        let full =
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 8\r\n\r\nno room\n";
        let answers = [full.to_string(), stream("data: x\n\n")];
        let (_, (result, out, notes)) =
            tokio::join!(serve(listener, &answers), tail(&url, &["--count", "1"]));
        result.expect("an event");
        assert_eq!(out, "x\n");
        assert!(notes.contains("503 Service Unavailable: no room; reconnecting in"), "{notes}");
    }

    #[tokio::test]
    async fn answers_that_a_retry_cannot_change_end_with_the_servers_line() {
        let answers = [
            ("404 Not Found\r\nContent-Length: 13", "no such path\n", "404 Not Found: no such path"),
            ("429 Too Many Requests\r\nContent-Length: 5", "slow\n", "429 Too Many Requests: slow"),
            ("204 No Content", "", "204 No Content: the stream is over"),
            ("200 OK\r\nContent-Type: text/html\r\nContent-Length: 2", "hi", "not with an event stream"),
        ];
        for (head, body, line) in answers {
            let (listener, url) = listener().await;
            let answer = [format!("HTTP/1.1 {head}\r\n\r\n{body}")];
            let (_, (result, out, _)) = tokio::join!(serve(listener, &answer), tail(&url, &[]));
            match result {
                Err(ClientError::Refused(text)) => assert!(text.contains(line), "{text}"),
                other => panic!("{head}: {other:?}"),
            }
            assert_eq!(out, "");
        }
    }

    #[tokio::test]
    async fn binary_data_is_told_from_text_that_looks_like_it() {
        let events = "id: 1\n: base64\ndata: AP8=\n\nid: 2\ndata: AP8=\n\nid: 3\n: base64\ndata: no!\n\n";
        let (first, url) = listener().await;
        let answers = [stream(events)];
        let (_, (_, out, _)) = tokio::join!(serve(first, &answers), tail(&url, &["--count", "3"]));
        assert_eq!(out, "<2 bytes binary>\nAP8=\nno!\n");
        let (second, url) = listener().await;
        let (_, (_, out, _)) = tokio::join!(serve(second, &answers), tail(&url, &["--json", "--count", "3"]));
        let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        let lines: Vec<_> = out.lines().map(json).collect();
        assert_eq!(lines[0], serde_json::json!({ "event": "message", "id": "1", "base64": "AP8=" }));
        assert_eq!(lines[1], serde_json::json!({ "event": "message", "id": "2", "data": "AP8=" }));
        assert_eq!(lines[2], serde_json::json!({ "event": "message", "id": "3", "data": "no!" }));
    }

    #[tokio::test]
    async fn a_gap_is_a_note_and_with_json_an_event() {
        let gap = "event: fanwave-gap\ndata: {\"gap\":{}}\n\ndata: x\n\n";
        let (first, url) = listener().await;
        let answers = [stream(gap)];
        let (_, (_, out, notes)) = tokio::join!(serve(first, &answers), tail(&url, &["--count", "1"]));
        assert_eq!(out, "x\n");
        assert!(notes.contains("events are missing: {\"gap\":{}}"), "{notes}");
        let (second, url) = listener().await;
        let (_, (_, out, _)) = tokio::join!(serve(second, &answers), tail(&url, &["--json", "--count", "1"]));
        assert!(out.contains("\"event\":\"fanwave-gap\""), "{out}");
    }
}

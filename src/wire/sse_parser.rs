//! Server-Sent Events, the reading side (WHATWG HTML §9.2.6): bytes of an event stream in, events
//! out.
//!
//! For `fanwave tail` and for tests; the server reads no event streams. Bytes may come in any
//! chunks: lines end in LF, CR or CRLF, and a CRLF may be cut in two. A line is decoded as UTF-8
//! when it is whole, with U+FFFD for what is none; no line break is ever a part of a longer
//! sequence, so this equals decoding the stream as a whole.
//!
//! Invariant: what is buffered never exceeds the given maximum (plus the one id and the one event
//! name, which are lines themselves). Not here: reconnecting and the `Last-Event-ID` header, which
//! are the client's.

use super::sse::BASE64_MARK;

/// One event as a page would see it, and whether its data is base64.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ParsedEvent {
    /// The event's name; `message` if the stream gave none.
    pub event: String,
    /// The data lines, joined with LF.
    pub data: String,
    /// The last event id of the stream when the event was dispatched; empty if there was none so
    /// far, or if an empty one took it back.
    pub id: String,
    /// A comment of the event says that its data is base64 of bytes, as fanwave writes it.
    pub is_base64: bool,
}

/// A line, or the data of one event, exceeds the maximum. The server's fault; reading on makes no
/// sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {bytes_max} bytes")]
pub struct EventTooLong {
    /// The maximum that was given to [`Parser::new`].
    pub bytes_max: usize,
}

/// An incremental parser of one event stream, or of several connections to it one after the other.
#[derive(Debug)]
pub struct Parser {
    bytes_max: usize,
    /// The line that has not ended yet.
    line: Vec<u8>,
    /// True until the first line is whole: a byte order mark may stand before it.
    first_line: bool,
    /// True exactly while the last byte was a CR: an LF that follows belongs to the same line
    /// break.
    after_cr: bool,
    /// Data lines of the event so far, each followed by LF.
    data: String,
    event: String,
    is_base64: bool,
    /// What the next dispatch makes the last event id.
    id: String,
    last_event_id: String,
    retry_ms: Option<u64>,
    too_long: bool,
}

impl Parser {
    /// A parser that holds at most `event_bytes_max` bytes of one event.
    pub fn new(event_bytes_max: usize) -> Parser {
        Parser {
            bytes_max: event_bytes_max,
            line: Vec::new(),
            first_line: true,
            after_cr: false,
            data: String::new(),
            event: String::new(),
            is_base64: false,
            id: String::new(),
            last_event_id: String::new(),
            retry_ms: None,
            too_long: false,
        }
    }

    /// A parser of a stream that goes on after the event of this id.
    pub fn after(event_bytes_max: usize, last_event_id: String) -> Parser {
        Parser { id: last_event_id.clone(), last_event_id, ..Parser::new(event_bytes_max) }
    }

    /// Reads the next bytes and calls `on` for each event that they complete. After an error every
    /// further call fails until [`Parser::restart`].
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(ParsedEvent)) -> Result<(), EventTooLong> {
        let mut rest = bytes;
        while !rest.is_empty() && !self.too_long {
            if std::mem::take(&mut self.after_cr) && rest[0] == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = memchr::memchr2(b'\n', b'\r', rest);
            let part = &rest[..end.unwrap_or(rest.len())];
            if self.line.len() + part.len() + self.data.len() > self.bytes_max {
                self.too_long = true;
                break;
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { break };
            self.after_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if let Some(event) = self.end_line() {
                on(event);
            }
        }
        if self.too_long { Err(EventTooLong { bytes_max: self.bytes_max }) } else { Ok(()) }
    }

    /// The connection has ended and another one continues the stream: forgets the incomplete event,
    /// keeps the last event id and the reconnection time.
    pub fn restart(&mut self) {
        let last_event_id = std::mem::take(&mut self.last_event_id);
        let retry_ms = self.retry_ms;
        *self = Parser { retry_ms, ..Parser::after(self.bytes_max, last_event_id) };
    }

    /// The reconnection time that the stream asked for, in milliseconds.
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry_ms
    }

    /// What `Last-Event-ID` says at the next connection; empty if there is nothing to say.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// Interprets the line that has just ended.
    fn end_line(&mut self) -> Option<ParsedEvent> {
        let mut buffer = std::mem::take(&mut self.line);
        let mut line = &buffer[..];
        if std::mem::take(&mut self.first_line) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        let event = if line.is_empty() {
            self.dispatch()
        } else {
            self.field(&String::from_utf8_lossy(line));
            None
        };
        buffer.clear();
        self.line = buffer;
        event
    }

    fn field(&mut self, line: &str) {
        // A comment is a field without a name, and so among the unknown ones.
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" if value == BASE64_MARK => self.is_base64 = true,
            "event" => self.event = value.to_string(),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = value.to_string(),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                // No digits, or more than fit, leave the time as it was.
                self.retry_ms = value.parse().ok().or(self.retry_ms);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<ParsedEvent> {
        if self.last_event_id != self.id {
            self.last_event_id.clone_from(&self.id);
        }
        let event = std::mem::take(&mut self.event);
        let is_base64 = std::mem::take(&mut self.is_base64);
        let mut data = std::mem::take(&mut self.data);
        // Every data line added an LF, so empty means that there was none.
        data.pop()?;
        let event = if event.is_empty() { "message".to_string() } else { event };
        Some(ParsedEvent { event, data, id: self.last_event_id.clone(), is_base64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(parser: &mut Parser, chunks: &[&[u8]]) -> Vec<(String, String, String)> {
        let mut events = Vec::new();
        for chunk in chunks {
            parser
                .feed(chunk, |event| events.push((event.event, event.data, event.id)))
                .expect("within the maximum");
        }
        events
    }

    fn parsed(stream: &[u8]) -> Vec<(String, String, String)> {
        parse(&mut Parser::new(1 << 16), &[stream])
    }

    fn row(event: &str, data: &str, id: &str) -> (String, String, String) {
        (event.into(), data.into(), id.into())
    }

    #[test]
    fn streams_of_the_standard_read_as_it_says() {
        type Row = (&'static str, &'static str, &'static str);
        let table: &[(&[u8], &[Row])] = &[
            (b"data: YHOO\ndata: +2\ndata: 10\n\n", &[("message", "YHOO\n+2\n10", "")]),
            // An `id` line without a value forgets the id; the event without a blank line is
            // dropped.
            (
                b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
                &[("message", "first", "1"), ("message", "second", ""), ("message", " third", "")],
            ),
            (b"data\n\ndata\ndata\n\ndata:", &[("message", "", ""), ("message", "\n", "")]),
            (b"data:test\n\ndata: test\n\n", &[("message", "test", ""), ("message", "test", "")]),
        ];
        for (stream, events) in table {
            let expected: Vec<_> = events.iter().map(|(event, data, id)| row(event, data, id)).collect();
            assert_eq!(parsed(stream), expected, "{}", String::from_utf8_lossy(stream));
        }
    }

    #[test]
    fn lines_end_in_lf_cr_or_crlf() {
        for stream in ["event: e\ndata: a\n\n", "event: e\rdata: a\r\r", "event: e\r\ndata: a\r\n\r\n"] {
            assert_eq!(parsed(stream.as_bytes()), [row("e", "a", "")], "{stream:?}");
        }
    }

    #[test]
    fn fields_that_do_not_count_are_ignored() {
        assert_eq!(
            parsed(b"id: a\0b\nDATA: x\n data: x\nfoo: x\n:data: x\ndata: y\n\n"),
            [row("message", "y", "")]
        );
        assert_eq!(parsed(b"event: a\nevent: b\nid: 1\nid: 2\ndata: y\n\n"), [row("b", "y", "2")]);
        assert_eq!(parsed(b"event: lost\n\ndata: y\n\n"), [row("message", "y", "")]);
    }

    #[test]
    fn a_byte_order_mark_counts_only_at_the_start() {
        assert_eq!(parsed(b"\xEF\xBB\xBFdata: a\n\n\xEF\xBB\xBFdata: b\n\n"), [row("message", "a", "")]);
        assert_eq!(parsed(b"\xEF\xBB\xBF\ndata: a\n\n"), [row("message", "a", "")]);
    }

    #[test]
    fn bytes_that_are_not_utf8_become_replacement_characters() {
        assert_eq!(parsed(b"data: \xff \xe2\x82\n\n"), [row("message", "\u{FFFD} \u{FFFD}", "")]);
    }

    #[test]
    fn only_digits_set_the_reconnection_time() {
        let mut parser = Parser::new(1 << 10);
        for (line, expected) in [
            ("retry: x", None),
            ("retry:", None),
            ("retry: 1500", Some(1500)),
            ("retry: -1", Some(1500)),
            ("retry: +2", Some(1500)),
            ("retry: 99999999999999999999", Some(1500)),
            ("retry:0", Some(0)),
        ] {
            parse(&mut parser, &[line.as_bytes(), b"\n"]);
            assert_eq!(parser.retry_ms(), expected, "{line}");
        }
    }

    #[test]
    fn the_last_event_id_changes_when_the_event_is_whole_and_survives_a_restart() {
        let mut parser = Parser::new(1 << 10);
        parse(&mut parser, &[b"id: 1\nretry: 5\n\nid: 2\ndata: cut"]);
        assert_eq!(parser.last_event_id(), "1");
        parser.restart();
        assert_eq!((parser.last_event_id(), parser.retry_ms()), ("1", Some(5)));
        assert_eq!(parse(&mut parser, &[b"data: whole\n\n"]), [row("message", "whole", "1")]);
    }

    #[test]
    fn a_stream_may_start_after_an_id_and_take_it_back() {
        let mut parser = Parser::after(1 << 10, "1".to_string());
        assert_eq!(parser.last_event_id(), "1");
        assert_eq!(parse(&mut parser, &[b"data: a\n\n"]), [row("message", "a", "1")]);
        assert_eq!(parse(&mut parser, &[b"id\ndata: b\n\n"]), [row("message", "b", "")]);
        assert_eq!(parser.last_event_id(), "");
    }

    #[test]
    fn an_event_above_the_maximum_is_an_error_and_stays_one() {
        let error = Err(EventTooLong { bytes_max: 16 });
        for stream in [&b"data: 12345678901"[..], b":comment without end", b"data: 123456\ndata: 7890\n\n"] {
            let mut parser = Parser::new(16);
            let mut events = 0;
            assert_eq!(parser.feed(stream, |_| events += 1), error);
            assert_eq!(parser.feed(b"\n\ndata: a\n\n", |_| events += 1), error);
            assert_eq!(events, 0);
            parser.restart();
            assert_eq!(parse(&mut parser, &[b"data: a\n\n"]).len(), 1);
        }
        let long_stream = b"data: 1234567890\n\n".repeat(100);
        assert_eq!(parse(&mut Parser::new(16), &[&long_stream]).len(), 100, "the maximum is per event");
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(
            stream in proptest::collection::vec(
                proptest::sample::select(&["\r", "\n", "data", ":", " ", "ü", "id", "\u{FEFF}"][..]),
                0..60,
            ),
            size in 1usize..7,
        ) {
            let stream = stream.concat();
            let chunks: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            prop_assert_eq!(parse(&mut Parser::new(1 << 10), &chunks), parsed(stream.as_bytes()));
        }
    }
}

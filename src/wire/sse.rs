//! Server-Sent Events, the sending side (WHATWG HTML §9.2): what the hub and the shards write on an
//! event stream.
//!
//! Invariants worth naming:
//! - A frame ends in exactly one blank line, so frames and heartbeats may follow each other in any
//!   order.
//! - Every line break of the data (LF, CR, CRLF) becomes its own `data` line; nothing a publisher
//!   says can end the event early or forge a field.
//! - The size of a frame is known before it is written, so that `chunked` builds it in one
//!   allocation.
//!
//! Not here: reading event streams (`sse_parser`), chunks (`chunked`), the response head (`http`).

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::gap::Gap;
use crate::event::{Event, EventId};

/// A comment and a blank line: a sign of life that no `EventSource` shows to its page.
pub const HEARTBEAT: &[u8] = b":\n\n";

/// Milliseconds after which a client comes back that lost its connection. Browsers take 2 or 3
/// seconds by themselves.
pub const RETRY_MS: u32 = 2_000;

/// The event name of a gap notice.
pub const GAP_EVENT: &str = "fanwave-gap";

/// The comment before data in base64.
pub const BASE64_MARK: &str = "base64";

/// Appends the frame of one event: `id`, `event` if named, `retry` if given, one `data` line per
/// line of the data, and a blank line. Empty data is one empty `data` line; binary data is one line
/// of standard base64, after a comment that says so, which parsers pass over.
pub fn write_event(frame: &mut Vec<u8>, event: &Event, id: &IdText) {
    push_field(frame, "id", id.of(event));
    if let Some(name) = &event.name {
        push_field(frame, "event", name.as_str().as_bytes());
    }
    if let Some(ms) = event.retry_ms {
        writeln!(frame, "retry: {ms}").expect("a vector takes every write");
    }
    if event.data.is_binary() {
        push_field(frame, "", BASE64_MARK.as_bytes());
        push_base64(frame, event.data.bytes());
    } else {
        for line in Lines::new(event.data.bytes()) {
            push_field(frame, "data", line);
        }
    }
    frame.push(b'\n');
}

/// Bytes that [`write_event`] appends. Takes a look at the data.
pub fn event_size(event: &Event, id: &IdText) -> usize {
    size_with_id(event, id.of(event).len())
}

/// The most bytes that it appends, whatever the sequence is.
pub fn event_size_max(event: &Event) -> usize {
    size_with_id(event, event.id.as_ref().map_or(EventId::BYTES_MAX, |id| id.as_str().len()))
}

/// Our own id of an event as text, without an allocation.
#[derive(Debug)]
pub struct IdText {
    digits: [u8; EventId::BYTES_MAX],
    /// Bytes of `digits` in use.
    len: usize,
}

impl IdText {
    /// The text of `id`.
    pub fn new(id: EventId) -> IdText {
        let mut digits = [0; EventId::BYTES_MAX];
        let mut room = &mut digits[..];
        write!(room, "{id}").expect("two u64 and a dash fit");
        let rest = room.len();
        IdText { digits, len: EventId::BYTES_MAX - rest }
    }

    /// The id that `event` shows: its publisher's, else this one.
    fn of<'a>(&'a self, event: &'a Event) -> &'a [u8] {
        event.id.as_ref().map_or(&self.digits[..self.len], |id| id.as_str().as_bytes())
    }
}

/// Bytes of the frame of `event` with an id of so many bytes.
fn size_with_id(event: &Event, id_bytes: usize) -> usize {
    let data = event.data.bytes();
    let mut size = field_size("id", id_bytes);
    size += event.name.as_ref().map_or(0, |name| field_size("event", name.as_str().len()));
    size += event.retry_ms.map_or(0, |ms| field_size("retry", decimal_digits(ms)));
    size += match event.data.is_binary() {
        true => field_size("", BASE64_MARK.len()) + field_size("data", base64_size(data.len())),
        false => text_size(data),
    };
    size + 1
}

/// What a stream begins with: the time after which a client comes back, because a refusal may have
/// given it another one, and the id of where the stream begins, without an event (WHATWG HTML
/// §9.2.6: a block without data still sets the last event id). So a client that loses its
/// connection before the first event names that point when it comes back.
pub fn opening(at: Option<EventId>) -> Bytes {
    let id = at.map(|at| format!("id: {at}\n")).unwrap_or_default();
    Bytes::from(format!("retry: {RETRY_MS}\n{id}\n"))
}

/// Asks the client to come back after so many milliseconds, should the stream end now; an
/// [`opening`] takes that back.
pub fn retry(ms: u32) -> Bytes {
    Bytes::from(format!("retry: {ms}\n\n"))
}

/// The frame that tells of a gap: event `fanwave-gap`, its data [`Gap::json`]. It has no `id`, so a
/// client that reconnects still names the last event that it really had, unless an [`opening`]
/// follows.
pub fn gap_notice(gap: &Gap) -> Bytes {
    let json = gap.json();
    let size = field_size("event", GAP_EVENT.len()) + field_size("data", json.len()) + 1;
    let mut frame = Vec::with_capacity(size);
    push_field(&mut frame, "event", GAP_EVENT.as_bytes());
    push_field(&mut frame, "data", json.as_bytes());
    frame.push(b'\n');
    Bytes::from(frame)
}

/// Bytes of `name: value\n`.
fn field_size(name: &str, value_bytes: usize) -> usize {
    name.len() + ": \n".len() + value_bytes
}

/// Appends `name: value\n`; `value` holds no line break. The space keeps a value's own leading
/// space.
fn push_field(frame: &mut Vec<u8>, name: &str, value: &[u8]) {
    frame.extend_from_slice(name.as_bytes());
    frame.extend_from_slice(b": ");
    frame.extend_from_slice(value);
    frame.push(b'\n');
}

fn decimal_digits(number: u32) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

/// Bytes of padded standard base64 (RFC 4648 §4).
fn base64_size(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

/// Appends the data line of binary data.
fn push_base64(frame: &mut Vec<u8>, data: &[u8]) {
    frame.extend_from_slice(b"data: ");
    let start = frame.len();
    frame.resize(start + base64_size(data.len()), 0);
    BASE64.encode_slice(data, &mut frame[start..]).expect("the room is the encoded size");
    frame.push(b'\n');
}

/// Bytes of the data lines of text.
fn text_size(data: &[u8]) -> usize {
    Lines::new(data).map(|line| field_size("data", line.len())).sum()
}

/// The lines of a text, at least one; a text that ends in a line break ends in an empty line.
struct Lines<'a> {
    /// What is not yet handed out; `None` after the last line.
    rest: Option<&'a [u8]>,
}

impl<'a> Lines<'a> {
    fn new(text: &'a [u8]) -> Lines<'a> {
        Lines { rest: Some(text) }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.take()?;
        let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
            return Some(rest);
        };
        let break_bytes = if rest[end..].starts_with(b"\r\n") { 2 } else { 1 };
        self.rest = Some(&rest[end + break_bytes..]);
        Some(&rest[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::super::gap::GapReason;
    use super::super::sse_parser::{ParsedEvent, Parser};
    use super::*;
    use crate::event::{CustomId, Data, Epoch, Field, Topic};
    use proptest::prelude::*;

    fn encode_event(event: &Event, epoch: Epoch, sequence: u64) -> Vec<u8> {
        let id = IdText::new(EventId { epoch, sequence });
        let mut frame = Vec::new();
        write_event(&mut frame, event, &id);
        assert_eq!(frame.len(), event_size(event, &id), "the size is computed as the frame is written");
        assert!(frame.len() <= event_size_max(event));
        frame
    }

    fn event(data: Data) -> Event {
        Event {
            topic: Topic::new("t").expect("a topic"),
            data,
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        }
    }

    fn text(data: &str) -> Data {
        Data::text(Bytes::copy_from_slice(data.as_bytes())).expect("UTF-8")
    }

    fn encoded(event: &Event) -> String {
        String::from_utf8(encode_event(event, Epoch(36), 7).to_vec()).expect("UTF-8")
    }

    #[test]
    fn every_line_break_of_the_data_makes_a_data_line() {
        for (data, lines) in [
            ("", "data: \n"),
            ("a", "data: a\n"),
            ("a\nb", "data: a\ndata: b\n"),
            ("a\rb", "data: a\ndata: b\n"),
            ("a\r\nb", "data: a\ndata: b\n"),
            ("a\n\rb", "data: a\ndata: \ndata: b\n"),
            ("a\n", "data: a\ndata: \n"),
            ("a\r\n", "data: a\ndata: \n"),
            ("\r", "data: \ndata: \n"),
            ("\n\n", "data: \ndata: \ndata: \n"),
            (" a", "data:  a\n"),
            ("id: 5\n\nevent: x", "data: id: 5\ndata: \ndata: event: x\n"),
        ] {
            assert_eq!(encoded(&event(text(data))), format!("id: 10-7\n{lines}\n"), "{data:?}");
        }
    }

    #[test]
    fn fields_come_in_the_order_id_event_retry_data() {
        let full = Event {
            name: Some(Field::new("price").expect("a name")),
            id: Some(CustomId::new("mine").expect("an id")),
            retry_ms: Some(2500),
            ..event(text("1"))
        };
        assert_eq!(encoded(&full), "id: mine\nevent: price\nretry: 2500\ndata: 1\n\n");
    }

    #[test]
    fn binary_data_is_one_line_of_base64() {
        for (data, base64) in [(&b""[..], ""), (b"\x00", "AA=="), (b"\n\r\xff\xfe", "Cg3//g==")] {
            let binary = event(Data::binary(Bytes::from_static(data)));
            assert_eq!(encoded(&binary), format!("id: 10-7\n: base64\ndata: {base64}\n\n"));
        }
    }

    #[test]
    fn the_size_of_a_frame_is_known_before_it_is_written() {
        let longest = Event { retry_ms: Some(u32::MAX), ..event(text("a\r\nb\n")) };
        for (event, epoch, sequence) in [(&event(text("x")), 0, 0), (&longest, u64::MAX, u64::MAX)] {
            let frame = encode_event(event, Epoch(epoch), sequence);
            assert!(sequence < u64::MAX || frame.len() == event_size_max(event));
        }
        for retry_ms in [0, 9, 10, 99, 100, u32::MAX] {
            assert_eq!(decimal_digits(retry_ms), retry_ms.to_string().len());
        }
    }

    #[test]
    fn a_stream_begins_with_the_time_to_come_back_and_an_id_and_no_event() {
        let mut parser = Parser::new(1 << 20);
        let begun = opening(Some(EventId { epoch: Epoch(36), sequence: 7 }));
        assert_eq!(&begun[..], b"retry: 2000\nid: 10-7\n\n");
        let mut feed = |block: &[u8]| {
            parser.feed(block, |event| panic!("no event: {event:?}")).expect("short lines");
            parser.last_event_id().to_string()
        };
        assert_eq!(feed(&begun), "10-7");
        assert_eq!(feed(&opening(None)), "10-7", "a client that named another id keeps it");
    }

    #[test]
    fn a_gap_notice_leaves_the_clients_last_id_alone() {
        let topics = vec![Topic::new("a").expect("a topic")];
        let gap = Gap { after: Some("1-2".into()), reason: GapReason::Overrun, topics };
        assert_eq!(
            gap_notice(&gap),
            "event: fanwave-gap\ndata: {\"gap\":{\"after\":\"1-2\",\"reason\":\"overrun\",\"topics\":[\"a\"]}}\n\n"
        );
    }

    /// Text in which line breaks are frequent.
    fn any_text() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![Just("\n".to_string()), Just("\r".to_string()), Just("\r\n".to_string()), ".{0,4}"],
            0..12,
        )
        .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back_in_any_chunks(
            data in any_text(),
            name in proptest::option::of("[^\0\r\n]{1,20}"),
            id in proptest::option::of("[^\0- \x7f]([^\0-\x1f\x7f]{0,18}[^\0- \x7f])?"),
            retry_ms in proptest::option::of(any::<u32>()),
            cuts in proptest::collection::vec(1usize..9, 1..40),
        ) {
            let event = Event {
                name: name.as_deref().map(|name| Field::new(name).expect("a name")),
                id: id.as_deref().map(|id| CustomId::new(id).expect("an id")),
                retry_ms,
                ..event(text(&data))
            };
            let mut stream = HEARTBEAT.to_vec();
            stream.extend_from_slice(&encode_event(&event, Epoch(36), 7));
            stream.extend_from_slice(HEARTBEAT);

            let mut parser = Parser::new(1 << 20);
            let mut events = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                parser.feed(chunk, |event| events.push(event)).expect("short events");
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            let normalised = data.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(events, vec![ParsedEvent {
                event: name.unwrap_or_else(|| "message".into()),
                data: normalised,
                id: id.unwrap_or_else(|| "10-7".into()),
                is_base64: false,
            }]);
            prop_assert_eq!(parser.retry_ms(), retry_ms.map(u64::from));
        }
    }
}

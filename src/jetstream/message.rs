//! Events as NATS messages and back.
//!
//! Invariants worth naming:
//! - The payload is the data. What else an event has stands in headers ([`EVENT`], [`ID`], [`KEY`],
//!   [`RETRY`], [`DATA`]), which other programs may set as well. Values are percent-escaped where a
//!   header would not bring them back: so a `%` in a value is written `%25`.
//! - Without [`DATA`] a payload that is UTF-8 is text, and any other one is binary.
//! - What other programs publish keeps everything that is legal. A header that is not, and what only
//!   the server may say, is left out and counted; a message that cannot be an event is skipped and
//!   counted. Nothing stops the reading.

use std::borrow::Cow;

use async_nats::HeaderMap;
use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use super::subject::Subjects;
use crate::event::{CustomId, Data, Event, EventName, Key, Topic};
use crate::publishing::{names_many, reserved};

/// Header of the event's name.
pub const EVENT: &str = "Fanwave-Event";
/// Header of the publisher's id.
pub const ID: &str = "Fanwave-Id";
/// Header of the key.
pub const KEY: &str = "Fanwave-Key";
/// Header of the reconnection time, in milliseconds.
pub const RETRY: &str = "Fanwave-Retry";
/// Header of the kind of data: `text` or `binary`.
pub const DATA: &str = "Fanwave-Data";
/// Header of a message that removes what its topic had before; its value is `1`.
pub const REMOVE: &str = "Fanwave-Remove";

/// Header of the publish that a message is: a number in hexadecimal by which the node that sent it
/// knows it again.
pub const SENT: &str = "Fanwave-Sent";

/// What a value cannot hold, and what marks it. Blanks within a value are left, those around it are
/// escaped beside.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// An event.
    Event(Event),
    /// What the topic had before is gone.
    Removal(Topic),
}

/// Why a message is no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// Its subject is that of no topic.
    Subject,
    /// Its data is larger than a message may be.
    TooLarge,
}

/// A message as it was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Understood {
    /// What it says.
    pub said: Said,
    /// Headers that were left out, because their values are illegal.
    pub illegal: u64,
    /// Headers that were left out, because only the server may say that.
    pub reserved: u64,
    /// Which publish of a node it is, if a node has sent it.
    pub sent: Option<u64>,
}

/// The headers of an event.
pub fn headers(event: &Event) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(name) = &event.name {
        headers.insert(EVENT, &*escaped(name.as_str()));
    }
    if let Some(id) = &event.id {
        headers.insert(ID, &*escaped(id.as_str()));
    }
    if let Some(key) = &event.key {
        headers.insert(KEY, &*escaped(key.as_str()));
    }
    if let Some(retry) = event.retry_ms {
        headers.insert(RETRY, retry.to_string());
    }
    if event.data.is_binary() {
        headers.insert(DATA, "binary");
    }
    headers
}

/// The headers of a removal.
pub fn removal_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(REMOVE, "1");
    headers
}

/// Bytes that headers take on the wire, at most.
pub fn headers_bytes(headers: &HeaderMap) -> usize {
    const LINE: usize = ": \r\n".len();
    const AROUND: usize = "NATS/1.0\r\n\r\n".len();
    let lines = headers.iter().flat_map(|(name, values)| {
        values.iter().map(move |value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + LINE)
    });
    AROUND + lines.sum::<usize>()
}

/// What the message of `subject` says. Data has at most `message_bytes_max`.
pub fn understand(
    subjects: &Subjects,
    subject: &str,
    headers: Option<&HeaderMap>,
    payload: Bytes,
    message_bytes_max: usize,
) -> Result<Understood, Skipped> {
    let topic = subjects.topic(subject).filter(|topic| names_many(topic, "").is_none());
    understand_as(topic.ok_or(Skipped::Subject)?, headers, payload, message_bytes_max)
}

/// The same of a subject outside of the stream: all of it is the topic.
pub fn understand_core(
    subject: &str,
    headers: Option<&HeaderMap>,
    payload: Bytes,
    message_bytes_max: usize,
) -> Result<Understood, Skipped> {
    let topic = Subjects::topic_of_all(subject).filter(|topic| names_many(topic, "").is_none());
    understand_as(topic.ok_or(Skipped::Subject)?, headers, payload, message_bytes_max)
}

/// What a message says that is for `topic`.
fn understand_as(
    topic: Topic,
    headers: Option<&HeaderMap>,
    payload: Bytes,
    message_bytes_max: usize,
) -> Result<Understood, Skipped> {
    let value = |name: &str| headers.and_then(|headers| headers.get(name)).map(|value| value.as_str());
    let sent = value(SENT).and_then(|text| u64::from_str_radix(text, 16).ok());
    if value(REMOVE) == Some("1") {
        return Ok(Understood { said: Said::Removal(topic), illegal: 0, reserved: 0, sent });
    }
    if payload.len() > message_bytes_max {
        return Err(Skipped::TooLarge);
    }
    let mut illegal = 0;
    let name = field(value(EVENT), &mut illegal, |text| EventName::new(text).ok());
    let id = field(value(ID), &mut illegal, |text| CustomId::new(text).ok());
    let key = field(value(KEY), &mut illegal, |text| Key::new(text).ok());
    let retry_ms = field(value(RETRY), &mut illegal, |text| text.parse().ok());
    let is_binary = field(value(DATA), &mut illegal, |text| match text {
        "binary" => Some(true),
        "text" => Some(false),
        _ => None,
    });
    // A copy of its size: a small event must not keep a whole receive buffer alive.
    let payload = Bytes::copy_from_slice(&payload);
    let data = match is_binary {
        Some(true) => Data::binary(payload),
        _ => match Data::text(payload.clone()) {
            Ok(text) => text,
            Err(_) => {
                illegal += u64::from(is_binary.is_some());
                Data::binary(payload)
            }
        },
    };
    let mut event = Event { topic, data, name, id, retry_ms, key };
    let mut left_out = 0;
    if event.id.is_some() && reserved(&Event { name: None, ..event.clone() }).is_some() {
        event.id = None;
        left_out += 1;
    }
    if event.name.is_some() && reserved(&event).is_some() {
        event.name = None;
        left_out += 1;
    }
    Ok(Understood { said: Said::Event(event), illegal, reserved: left_out, sent })
}

/// The value of a header, if it has one that is legal.
fn field<T>(value: Option<&str>, illegal: &mut u64, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let read = percent_decode_str(value?).decode_utf8().ok().and_then(|text| read(&text));
    *illegal += u64::from(read.is_none());
    read
}

fn escaped(text: &str) -> Cow<'_, str> {
    let inner = text.trim_matches(' ');
    if inner.len() == text.len() {
        return utf8_percent_encode(text, ESCAPED).into();
    }
    let before = text.len() - text.trim_start_matches(' ').len();
    let after = text.len() - before - inner.len();
    format!("{}{}{}", "%20".repeat(before), utf8_percent_encode(inner, ESCAPED), "%20".repeat(after)).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(data: Data) -> Event {
        Event {
            topic: Topic::new("a/b").expect("a topic"),
            data,
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        }
    }

    fn subjects() -> Subjects {
        Subjects::new("fanwave")
    }

    /// What another program publishes with these headers.
    fn foreign(headers: &[(&str, &str)], payload: &[u8]) -> Understood {
        let mut map = HeaderMap::new();
        headers.iter().for_each(|(name, value)| map.insert(*name, *value));
        let payload = Bytes::copy_from_slice(payload);
        understand(&subjects(), "fanwave.a.b", Some(&map), payload, 100).expect("an event")
    }

    #[test]
    fn another_program_may_say_all_that_an_event_has() {
        let headers =
            [(EVENT, "price"), (ID, "order-7"), (KEY, "EUR"), (RETRY, "5000"), ("Nats-Msg-Id", "x")];
        let understood = foreign(&headers, b"1.07");
        let expected = Event {
            name: EventName::new("price").ok(),
            id: CustomId::new("order-7").ok(),
            key: Key::new("EUR").ok(),
            retry_ms: Some(5_000),
            ..event(Data::string("1.07".into()))
        };
        assert_eq!(
            understood,
            Understood { said: Said::Event(expected), illegal: 0, reserved: 0, sent: None }
        );
    }

    #[test]
    fn text_is_what_is_utf_8_unless_the_message_says_something_else() {
        let data = |headers: &[(&str, &str)], payload: &[u8]| match foreign(headers, payload) {
            Understood { said: Said::Event(event), illegal, .. } => (event.data.is_binary(), illegal),
            other => panic!("{other:?}"),
        };
        assert_eq!(data(&[], "größe".as_bytes()), (false, 0));
        assert_eq!(data(&[], b"\xff"), (true, 0));
        assert_eq!(data(&[(DATA, "binary")], b"text"), (true, 0));
        assert_eq!(data(&[(DATA, "text")], b"\xff"), (true, 1));
        assert_eq!(data(&[(DATA, "json")], b"{}"), (false, 1));
    }

    #[test]
    fn what_only_the_server_may_say_and_what_is_illegal_is_left_out_and_counted() {
        let ours = format!("{}-7", "1b2c3d4e5f6g7");
        let understood = foreign(&[(EVENT, "fanwave-gap"), (ID, &ours), (KEY, "k")], b"x");
        let kept = Event { key: Key::new("k").ok(), ..event(Data::string("x".into())) };
        assert_eq!(understood, Understood { said: Said::Event(kept), illegal: 0, reserved: 2, sent: None });
        let understood = foreign(&[(EVENT, "a%0Ab"), (ID, ""), (KEY, "%FF"), (RETRY, "-1")], b"x");
        let bare = event(Data::string("x".into()));
        assert_eq!(understood, Understood { said: Said::Event(bare), illegal: 4, reserved: 0, sent: None });
    }

    #[test]
    fn what_cannot_be_an_event_is_skipped() {
        let read = |subject: &str, bytes: usize| {
            understand(&subjects(), subject, None, Bytes::from(vec![b'x'; bytes]), 100)
        };
        assert_eq!(read("fanwave.a..b", 1), Err(Skipped::Subject));
        assert_eq!(read("other.a", 1), Err(Skipped::Subject));
        assert_eq!(read("fanwave.a.%2A", 1), Err(Skipped::Subject), "a name for many topics");
        assert_eq!(read("fanwave.a", 101), Err(Skipped::TooLarge));
        assert!(read("fanwave.a", 100).is_ok());
    }

    #[test]
    fn a_removal_is_a_message_of_its_topic() {
        let removal = understand(&subjects(), "fanwave.a.b", Some(&removal_headers()), Bytes::new(), 0);
        let topic = Topic::new("a/b").expect("a topic");
        assert_eq!(removal.expect("a removal").said, Said::Removal(topic));
    }

    #[test]
    fn a_node_knows_its_own_message_again() {
        let sent = |value: &str| foreign(&[(SENT, value)], b"x").sent;
        assert_eq!((sent("00000000000000ff"), sent("x"), sent("")), (Some(255), None, None));
        assert_eq!(foreign(&[(SENT, "x")], b"x").illegal, 0, "it says nothing of the event");
    }

    proptest! {
        #[test]
        fn every_event_comes_back_from_its_message(
            data in prop::collection::vec(any::<u8>(), 0..50),
            is_binary in any::<bool>(),
            name in prop::option::of("[^\\n\\r\\x00]{1,40}"),
            id in prop::option::of("[^\\p{Cc}]{1,40}"),
            key in prop::option::of("[^\\p{Cc}]{1,20}"),
            retry_ms in prop::option::of(any::<u32>()),
        ) {
            let bytes = Bytes::from(data);
            let text = if is_binary { Err(0) } else { Data::text(bytes.clone()) };
            let event = Event {
                name: name.and_then(|name| EventName::new(&name).ok()),
                id: id.and_then(|id| CustomId::new(&id).ok()),
                key: key.and_then(|key| Key::new(&key).ok()),
                retry_ms,
                ..event(text.unwrap_or_else(|_| Data::binary(bytes.clone())))
            };
            prop_assume!(reserved(&event).is_none());
            let headers = headers(&event);
            for (_, values) in headers.iter() {
                for value in values {
                    let value = value.as_str();
                    prop_assert!(!value.contains(char::is_control) && value.trim_matches(' ') == value, "{:?}", value);
                }
            }
            let understood = understand(&subjects(), "fanwave.a.b", Some(&headers), bytes, 50);
            let understood = understood.expect("an event");
            prop_assert_eq!(understood, Understood { said: Said::Event(event), illegal: 0, reserved: 0, sent: None });
        }
    }
}

//! Events of `fanwave.v1.json`: each is one WebSocket text message, a JSON object, the same bytes
//! for every subscriber.
//!
//! Invariants worth naming:
//! - A frame is made in one allocation of its exact size.
//! - Only what JSON must escape is escaped (RFC 8259 §7), so text of other scripts costs nothing.
//! - The data of a frame is at most twice as long as that of its event: text that would be longer,
//!   because much of it is control characters, is given as base64 like binary data.
//!
//! Not here: commands and their answers (`envelope`), and what frames are (`websocket`).

use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;

use super::format::Given;
use super::websocket;
use crate::event::{Data, Event, EventId};

/// The frame of one event: `topic`, `id`, `event` if named, `data` or for binary data `base64`,
/// `time`, `retry` and `key` if given, and `at`, our own id, where the publisher gave another one.
pub fn encode_event(event: &Event, given: &Given) -> Bytes {
    let id = EventId { epoch: given.epoch, sequence: given.sequence }.to_string();
    let size = event_size(event, id.len(), decimal_digits(given.unix_ms));
    let mut frame = websocket::begin_text(size);
    let header = frame.len();
    write_event(&mut frame, event, &id, given.unix_ms);
    debug_assert_eq!(frame.len() - header, size, "the size is computed as the frame is written");
    Bytes::from(frame)
}

/// The most bytes that the frame of `event` may have, whatever it is given. Takes a look at the
/// data.
pub fn frame_bytes_max(event: &Event) -> usize {
    websocket::text_bytes(event_size(event, EventId::BYTES_MAX, decimal_digits(u64::MAX)))
}

/// Valid JSON without the white space between its tokens.
pub fn without_white_space(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if matches!(c, ' ' | '\t' | '\r' | '\n') {
            continue;
        } else {
            in_string = c == '"';
        }
        compact.push(c);
    }
    compact
}

fn write_event(json: &mut Vec<u8>, event: &Event, id: &str, unix_ms: u64) {
    json.extend_from_slice(br#"{"topic":"#);
    push_string(json, event.topic.as_str());
    json.extend_from_slice(br#","id":"#);
    push_string(json, event.id.as_ref().map_or(id, |id| id.as_str()));
    if let Some(name) = &event.name {
        json.extend_from_slice(br#","event":"#);
        push_string(json, name.as_str());
    }
    if is_base64(&event.data) {
        json.extend_from_slice(br#","base64":""#);
        let start = json.len();
        json.resize(start + base64_size(event.data.bytes().len()), 0);
        BASE64.encode_slice(event.data.bytes(), &mut json[start..]).expect("base64 of a known size fits");
        json.push(b'"');
    } else {
        json.extend_from_slice(br#","data":"#);
        push_string(json, std::str::from_utf8(event.data.bytes()).expect("text is UTF-8"));
    }
    write!(json, r#","time":{unix_ms}"#).expect("a vector takes every write");
    if let Some(ms) = event.retry_ms {
        write!(json, r#","retry":{ms}"#).expect("a vector takes every write");
    }
    if let Some(key) = &event.key {
        json.extend_from_slice(br#","key":"#);
        push_string(json, key.as_str());
    }
    if event.id.is_some() {
        write!(json, r#","at":"{id}""#).expect("a vector takes every write");
    }
    json.push(b'}');
}

/// Bytes that [`write_event`] appends with an id of ours of so many bytes, and so many digits of
/// time.
fn event_size(event: &Event, id_bytes: usize, time_digits: usize) -> usize {
    let topic = br#"{"topic":"#.len() + string_size(event.topic.as_str().as_bytes());
    let shown = event.id.as_ref().map_or(2 + id_bytes, |id| string_size(id.as_str().as_bytes()));
    let id = br#","id":"#.len() + shown;
    let name =
        event.name.as_ref().map_or(0, |name| br#","event":"#.len() + string_size(name.as_str().as_bytes()));
    let data = match is_base64(&event.data) {
        true => br#","base64":"""#.len() + base64_size(event.data.bytes().len()),
        false => br#","data":"#.len() + string_size(event.data.bytes()),
    };
    let time = br#","time":"#.len() + time_digits;
    let retry = event.retry_ms.map_or(0, |ms| br#","retry":"#.len() + decimal_digits(ms.into()));
    let key = event.key.as_ref().map_or(0, |key| br#","key":"#.len() + string_size(key.as_str().as_bytes()));
    let at = event.id.as_ref().map_or(0, |_| br#","at":"""#.len() + id_bytes);
    topic + id + name + data + time + retry + key + at + 1
}

/// True for data that is given as base64.
fn is_base64(data: &Data) -> bool {
    data.is_binary() || string_size(data.bytes()) > 2 * data.bytes().len() + 2
}

/// Appends `text` as a JSON string.
pub fn push_string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a vector takes every write");
}

/// Bytes of `text` as a JSON string, quotes included.
fn string_size(text: &[u8]) -> usize {
    // Most text needs no escape: many of its bytes can be asked at once.
    let plain = |plain: bool, &byte: &u8| plain & (byte >= 0x20) & (byte != b'"') & (byte != b'\\');
    let escapes = match text.iter().fold(true, plain) {
        true => 0,
        false => text.iter().map(|byte| usize::from(ESCAPE_COST[usize::from(*byte)])).sum(),
    };
    2 + text.len() + escapes
}

/// What a byte of text takes more in a JSON string.
const ESCAPE_COST: [u8; 256] = {
    let mut cost = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        // `\u001f`
        cost[byte] = 5;
        byte += 1;
    }
    let short = *b"\x08\t\n\x0c\r\"\\";
    let mut at = 0;
    while at < short.len() {
        cost[short[at] as usize] = 1;
        at += 1;
    }
    cost
};

fn base64_size(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

fn decimal_digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{CustomId, Epoch, Field, Key, Topic};

    const GIVEN: Given = Given { epoch: Epoch(36), sequence: 7, unix_ms: 1_764_460_800_000 };

    fn event(data: Data) -> Event {
        Event {
            topic: Topic::new("a").expect("a topic"),
            data,
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        }
    }

    /// The text of a frame.
    fn encoded(event: &Event) -> String {
        let frame = encode_event(event, &GIVEN);
        assert!(frame.len() <= frame_bytes_max(event), "{frame:?}");
        let text = websocket::text_of(&frame).expect("one whole text message");
        let vector = Vec::from(frame.clone());
        assert_eq!(vector.capacity(), vector.len(), "one allocation of the exact size");
        text.to_string()
    }

    #[test]
    fn an_event_is_one_object_in_one_text_message() {
        let plain = event(Data::string("hi \"you\"\n\u{1}ü".into()));
        assert_eq!(
            encoded(&plain),
            r#"{"topic":"a","id":"10-7","data":"hi \"you\"\n\u0001ü","time":1764460800000}"#
        );
        let full = Event {
            name: Some(Field::new("price").expect("a name")),
            id: Some(CustomId::new("mine \"1\"").expect("an id")),
            retry_ms: Some(2_500),
            key: Some(Key::new("EUR \"1\"").expect("a key")),
            ..event(Data::binary(Bytes::from_static(b"\0\xff")))
        };
        let json = r#"{"topic":"a","id":"mine \"1\"","event":"price","base64":"AP8=","time":1764460800000,"retry":2500,"key":"EUR \"1\"","at":"10-7"}"#;
        assert_eq!(encoded(&full), json);
    }

    #[test]
    fn text_that_is_more_than_twice_as_long_in_json_is_base64() {
        let json = |text: &str| encoded(&event(Data::string(text.into())));
        assert!(json("\n\"\\\t").contains(r#""data":"\n\"\\\t""#));
        assert!(json("\u{1}abcd").contains(r#""data":"\u0001abcd""#));
        assert!(json("\u{1}\u{2}").contains(r#""base64":"AQI=""#));
    }

    #[test]
    fn each_byte_costs_what_the_encoder_writes_for_it() {
        for byte in 0..=0x7f {
            let text = char::from(byte).to_string();
            let mut json = Vec::new();
            push_string(&mut json, &text);
            assert_eq!(json.len(), string_size(text.as_bytes()), "{byte:#x}");
        }
    }

    #[test]
    fn white_space_is_taken_out_between_tokens_alone() {
        let json = "{ \"a b\" :\t[ 1.0 ,\n\"x \\\" y\" ] }";
        assert_eq!(without_white_space(json), "{\"a b\":[1.0,\"x \\\" y\"]}");
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(data in "\\PC{0,40}|[\0-\u{2ff}]{0,40}", name in "[^\0\r\n]{1,20}") {
            let event = Event {
                name: Some(Field::new(&name).expect("a name")),
                ..event(Data::string(data.clone()))
            };
            let json: serde_json::Value = serde_json::from_str(&encoded(&event)).expect("JSON");
            match json["base64"].as_str() {
                Some(base64) => prop_assert_eq!(BASE64.decode(base64).expect("base64"), data.as_bytes()),
                None => prop_assert_eq!(&json["data"], &data),
            }
            prop_assert_eq!(&json["event"], &name);
        }

        #[test]
        fn bytes_read_back_from_base64(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            let event = event(Data::binary(Bytes::from(data.clone())));
            let json: serde_json::Value = serde_json::from_str(&encoded(&event)).expect("JSON");
            let base64 = json["base64"].as_str().expect("a string");
            prop_assert_eq!(BASE64.decode(base64).expect("base64"), data);
        }
    }
}

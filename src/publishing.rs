//! From the bytes of a publish to an [`Event`]: query parameters, text or binary bodies, lines of
//! NDJSON.
//!
//! Pure functions and one small state machine ([`Lines`]); no I/O, no clock. Everything that a
//! publisher can get wrong ends as a [`Refusal`] that says what is wrong and where. Bytes are
//! copied into the event, so that an event of a few bytes does not keep a whole receive buffer
//! alive in the windows.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_ENCODING;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::config::limits::LINE_BYTES_KEPT;
use crate::event::{CustomId, Data, Event, EventId, EventName, Key, Topic};
use crate::refusal::{Refusal, RefusalReason};
use crate::wire::http::{EscapeFault, percent_decoded};
use crate::wire::json::without_white_space;
use crate::wire::sse::GAP_EVENT;

/// What a publisher may say about an event besides its topic and data.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// The `event` field of SSE.
    pub name: Option<EventName>,
    /// An id in place of ours.
    pub id: Option<CustomId>,
    /// The `retry` field of SSE, in milliseconds.
    pub retry_ms: Option<u32>,
    /// What the event is about.
    pub key: Option<Key>,
    /// Under which the publish may be repeated.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// A publisher's name for one publish to a topic: 1 to 64 bytes of UTF-8 without control
/// characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

/// Longest idempotency key, in bytes of UTF-8.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 64;

/// How a key begins that belongs to somebody by name, and how long it is. One of another kind that
/// looks so is made one of this kind.
const OWNED: char = '=';
const OWNED_BYTES: usize = 44;

impl IdempotencyKey {
    /// Checks `text` and shares it.
    pub fn new(text: &str) -> Result<IdempotencyKey, Refusal> {
        let is_legal =
            (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control);
        is_legal.then(|| IdempotencyKey(text.into())).ok_or_else(|| {
            let told = "idempotency_key has 1 to 64 bytes and no control characters";
            Refusal::new(RefusalReason::BadKey, told)
        })
    }

    /// The key as one that belongs to a publisher, whose name has these parts. So two of them that
    /// choose the same key do not meet. No parts stand for those who need no name.
    pub fn of(self, principal: &[&str]) -> IdempotencyKey {
        if principal.is_empty() && self.given().is_some() {
            return self;
        }
        let mut hash = Sha256::new();
        for part in principal.iter().chain([&self.as_str()]) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        IdempotencyKey(format!("{OWNED}{}", URL_SAFE_NO_PAD.encode(hash.finalize())).into())
    }

    /// The key as its publisher wrote it, unless it was made somebody's own.
    pub fn given(&self) -> Option<&str> {
        let is_owned = self.0.len() == OWNED_BYTES && self.0.starts_with(OWNED);
        (!is_owned).then_some(&*self.0)
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Reads the options of `POST /topics/{topic}` from its query: `event`, `id`, `retry`, `key` and
/// `idempotency_key`, each at most once.
pub fn parse_options(query: Option<&str>) -> Result<Options, Refusal> {
    let mut options = Options::default();
    for (name, value) in parse_query(query, &["event", "id", "retry", "key", "idempotency_key"])? {
        match name {
            "event" => options.name = Some(parse_name(&value)?),
            "id" => options.id = Some(parse_id(&value)?),
            "key" => options.key = Some(parse_key(&value)?),
            "idempotency_key" => options.idempotency_key = Some(IdempotencyKey::new(&value)?),
            _ => {
                let retry = value.parse().map_err(|_| {
                    let text =
                        format!("retry={value:?} is not a number of milliseconds from 0 to {}", u32::MAX);
                    Refusal::new(RefusalReason::BadRetry, text)
                })?;
                options.retry_ms = Some(retry);
            }
        }
    }
    Ok(options)
}

/// Splits a query into the parameters that are `known`, decoded; refuses unknown ones, doubled
/// ones, and values with bad escapes or that are not UTF-8, by name.
pub fn parse_query<'k>(query: Option<&str>, known: &[&'k str]) -> Result<Vec<(&'k str, String)>, Refusal> {
    let bad = |text: String| Refusal::new(RefusalReason::BadQuery, text);
    let mut found: Vec<(&'k str, String)> = Vec::new();
    for pair in query.unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(&name) = known.iter().find(|&&known| known == name) else {
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            return Err(bad(format!("unknown query parameter {name:?}; known here: {known}")));
        };
        if found.iter().any(|(other, _)| *other == name) {
            return Err(bad(format!("query parameter {name:?} is given twice")));
        }
        let value = percent_decoded(value, true)
            .map_err(|fault| bad(format!("query parameter {name:?} {}", what_is_wrong(fault))))?;
        found.push((name, value.into_owned()));
    }
    Ok(found)
}

/// The topic in the percent-encoded rest of a path.
pub fn parse_topic_path(encoded: &str) -> Result<Topic, Refusal> {
    let name = percent_decoded(encoded, false).map_err(|fault| {
        Refusal::new(RefusalReason::BadTopic, format!("the topic {}", what_is_wrong(fault)))
    })?;
    parse_topic(&name)
}

/// To be said of a percent-encoded text.
fn what_is_wrong(fault: EscapeFault) -> String {
    match fault {
        EscapeFault::Malformed(at) => format!("has a bad percent escape at byte {at}"),
        EscapeFault::NotUtf8(at) => format!("is not UTF-8 at byte {at}"),
    }
}

/// Text data; the refusal names the byte up to which it is valid UTF-8.
pub fn parse_text(bytes: Bytes) -> Result<Data, Refusal> {
    Data::text(bytes).map_err(|at| {
        let text = format!(
            "the body is not UTF-8 at byte {at}; send binary data with Content-Type: application/octet-stream"
        );
        Refusal::new(RefusalReason::NotUtf8, text)
    })
}

fn parse_topic(name: &str) -> Result<Topic, Refusal> {
    Topic::new(name).map_err(|error| Refusal::new(RefusalReason::BadTopic, error.to_string()))
}

fn parse_name(text: &str) -> Result<EventName, Refusal> {
    EventName::new(text).map_err(|error| Refusal::new(RefusalReason::BadEvent, format!("event: {error}")))
}

fn parse_id(text: &str) -> Result<CustomId, Refusal> {
    CustomId::new(text).map_err(|error| Refusal::new(RefusalReason::BadId, format!("id: {error}")))
}

fn parse_key(text: &str) -> Result<Key, Refusal> {
    Key::new(text).map_err(|error| Refusal::new(RefusalReason::BadKey, format!("key: {error}")))
}

/// Why an event says what only the server may say, if it does: a gap notice, or an id that is a
/// place in our order. Every process gives ids of this form
/// ([`Epoch::is_ours`](crate::event::Epoch::is_ours)), so one of another process is none for a
/// publisher either.
pub fn reserved(event: &Event) -> Option<Refusal> {
    if let Some(refusal) = names_many(&event.topic, "publish to one") {
        return Some(refusal);
    }
    let name = event.name.as_ref().map(EventName::as_str);
    if name == Some(GAP_EVENT) {
        let text = format!("the event name {GAP_EVENT:?} is the server's own notice of a gap");
        return Some(Refusal::new(RefusalReason::ReservedEvent, text));
    }
    let is_ours = |id: &&str| id.parse::<EventId>().is_ok_and(|id| id.epoch.is_ours());
    let id = event.id.as_ref().map(CustomId::as_str).filter(is_ours)?;
    let text = format!("the id {id:?} has the form of the server's own ids, <epoch>-<number>");
    Some(Refusal::new(RefusalReason::ReservedId, text))
}

/// The refusal of a name that stands for many topics, where one is needed; with a remedy.
pub fn names_many(topic: &Topic, remedy: &str) -> Option<Refusal> {
    topic.as_str().contains('*').then(|| {
        let text = format!("the topic {topic} has a '*', which stands for many topics; {remedy}");
        Refusal::new(RefusalReason::BadTopic, text)
    })
}

/// One line of NDJSON as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineJson<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    base64: Option<String>,
    event: Option<String>,
    id: Option<String>,
    retry: Option<u32>,
    key: Option<String>,
    idempotency_key: Option<String>,
}

/// Reads one line of NDJSON: `{"topic":"a","data":"text"}` or `{"topic":"a","base64":"…"}`, with
/// `event`, `id`, `retry` (milliseconds), `key` and `idempotency_key` if wanted. `data` that is an
/// object, an array, a number or a boolean is published as its JSON text without white space
/// between tokens; digits and the order of members stay as written.
pub fn parse_line(line: &[u8], message_bytes_max: usize) -> Result<(Event, Option<IdempotencyKey>), Refusal> {
    let line = std::str::from_utf8(line).map_err(|error| {
        let text = format!("the line is not UTF-8 at byte {}", error.valid_up_to());
        Refusal::new(RefusalReason::NotUtf8, text)
    })?;
    // The parser would also take an array of the members' values.
    if !line.trim_start_matches([' ', '\t', '\r']).starts_with('{') {
        let text = "a line is a JSON object with `topic` and `data` or `base64`";
        return Err(Refusal::new(RefusalReason::BadJson, text));
    }
    let json: LineJson<'_> = serde_json::from_str(line).map_err(|error| bad_json(&error, 0))?;
    let data = match (json.data, json.base64) {
        (Some(data), None) => text_of(data, line)?,
        (None, Some(base64)) => {
            let bytes = STANDARD.decode(base64).map_err(|error| {
                Refusal::new(RefusalReason::BadBase64, format!("base64: {}", lower_first(&error.to_string())))
            })?;
            Data::binary(bytes.into())
        }
        (None, None) => return Err(Refusal::new(RefusalReason::BadJson, "needs `data` or `base64`")),
        (Some(_), Some(_)) => {
            return Err(Refusal::new(RefusalReason::BadJson, "has both `data` and `base64`"));
        }
    };
    check_size(data.bytes().len(), message_bytes_max)?;
    let key = json.idempotency_key.as_deref().map(IdempotencyKey::new).transpose()?;
    let event = Event {
        topic: parse_topic(&json.topic)?,
        data,
        name: json.event.as_deref().map(parse_name).transpose()?,
        id: json.id.as_deref().map(parse_id).transpose()?,
        retry_ms: json.retry,
        key: json.key.as_deref().map(parse_key).transpose()?,
    };
    Ok((event, key))
}

/// Refuses a body that is compressed, or encoded in another way (RFC 9110 §8.4): subscribers would
/// get it as it is.
pub fn check_content_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let values = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings =
        values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    check_coding(codings.find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")))
}

/// Refuses a body that has a coding.
pub fn check_coding(coding: Option<&[u8]>) -> Result<(), Refusal> {
    match coding {
        Some(coding) => {
            let coding = String::from_utf8_lossy(coding);
            let text = format!("the body has the coding {coding:?}; send it without Content-Encoding");
            Err(Refusal::new(RefusalReason::ContentCoding, text))
        }
        None => Ok(()),
    }
}

/// Refuses data that is larger than a message may be.
pub fn check_size(bytes: usize, message_bytes_max: usize) -> Result<(), Refusal> {
    if bytes <= message_bytes_max {
        return Ok(());
    }
    let text = format!("the data has {bytes} bytes, at most {message_bytes_max} are allowed");
    Err(Refusal::new(RefusalReason::TooLarge, text))
}

/// The text that `data`, a part of `line`, publishes: what a JSON string holds, else the JSON
/// itself.
fn text_of(data: &RawValue, line: &str) -> Result<Data, Refusal> {
    let json = data.get();
    let text = if json.starts_with('"') {
        let before = json.as_ptr().addr() - line.as_ptr().addr();
        serde_json::from_str::<String>(json).map_err(|error| bad_json(&error, before))?
    } else {
        without_white_space(json)
    };
    Ok(Data::string(text))
}

/// The parser's words with the column alone: it saw one line, so its "line 1" would mislead.
/// `before` are the bytes of the line before what it saw.
fn bad_json(error: &serde_json::Error, before: usize) -> Refusal {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = match text.strip_suffix(&place) {
        Some(text) => format!("{text} at column {}", before + error.column()),
        None => text,
    };
    Refusal::new(RefusalReason::BadJson, text)
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// One line, or what is left of it.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// The line of this number (from 1), without its LF. It may be blank or end in CR.
    Whole(u64, &'a [u8]),
    /// The line of this number is longer than allowed; the rest of it is skipped.
    TooLong(u64),
}

/// Cuts a body that comes in chunks of any size into lines. A line that lies in one chunk is not
/// copied; of a line over several chunks at most `line_bytes_max` are held.
#[derive(Debug)]
pub struct Lines {
    /// The begin of the line that is not complete; at most `line_bytes_max` bytes. Still the whole
    /// last line if `delivered`.
    held: Vec<u8>,
    /// True exactly while `held` was already given out as a line.
    delivered: bool,
    /// True exactly while the rest of an over-long line is skipped.
    skipping: bool,
    /// Number of the line that is not complete, from 1.
    number: u64,
    line_bytes_max: usize,
}

impl Lines {
    /// Before line 1.
    pub fn new(line_bytes_max: usize) -> Lines {
        Lines { held: Vec::new(), delivered: false, skipping: false, number: 1, line_bytes_max }
    }

    /// Number of the line that is not complete yet, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Cuts the next line off the front of `chunk`; `None` once `chunk` is used up.
    pub fn next<'a, 'c: 'a>(&'a mut self, chunk: &mut &'c [u8]) -> Option<Line<'a>> {
        self.forget_delivered();
        loop {
            let rest = *chunk;
            let end = memchr::memchr(b'\n', rest);
            let piece = &rest[..end.unwrap_or(rest.len())];
            *chunk = &rest[end.map_or(rest.len(), |end| end + 1)..];
            if self.skipping {
                end?;
                self.skipping = false;
                self.number += 1;
                continue;
            }
            if self.held.len() + piece.len() > self.line_bytes_max {
                self.held = Vec::new();
                let number = self.number;
                self.number += u64::from(end.is_some());
                self.skipping = end.is_none();
                return Some(Line::TooLong(number));
            }
            if end.is_none() {
                self.held.extend_from_slice(piece);
                return None;
            }
            self.number += 1;
            if self.held.is_empty() {
                return Some(Line::Whole(self.number - 1, piece));
            }
            self.held.extend_from_slice(piece);
            self.delivered = true;
            return Some(Line::Whole(self.number - 1, &self.held));
        }
    }

    /// The line that the end of the body leaves without LF, if there is one.
    pub fn finish(&mut self) -> Option<Line<'_>> {
        self.forget_delivered();
        if self.held.is_empty() {
            return None;
        }
        self.delivered = true;
        self.number += 1;
        Some(Line::Whole(self.number - 1, &self.held))
    }

    fn forget_delivered(&mut self) {
        if self.delivered {
            self.delivered = false;
            self.held.clear();
            self.held.shrink_to(LINE_BYTES_KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::REFUSAL_BYTES_MAX;

    fn line(text: &str) -> Result<Event, Refusal> {
        parse_line(text.as_bytes(), 100).map(|(event, _)| event)
    }

    fn text(event: &Event) -> &str {
        std::str::from_utf8(event.data.bytes()).expect("text")
    }

    #[test]
    fn a_key_of_one_publisher_is_never_that_of_another() {
        let key = |text: &str| IdempotencyKey::new(text).expect("a key");
        let own = key("k").of(&["issuer", "ann"]);
        assert_eq!(own, key("k").of(&["issuer", "ann"]));
        assert_eq!(IdempotencyKey::new(own.as_str()), Ok(own.clone()), "it may be kept and handed over");
        assert_eq!((own.given(), key("k").of(&[]).given()), (None, Some("k")));
        for other in [
            key("k").of(&["issuer", "bob"]),
            key("k").of(&["other", "ann"]),
            key("k").of(&["issuera", "nn"]),
            key("l").of(&["issuer", "ann"]),
            key("k").of(&["", ""]),
            key("k").of(&[]),
            key(own.as_str()).of(&[]),
        ] {
            assert_ne!(own, other);
        }
    }

    #[test]
    fn a_line_may_carry_text_or_base64_and_every_option() {
        let event = line(r#"{"topic":"a/b","data":"x\ny","event":"tick","id":"7","retry":500,"key":"EUR"}"#)
            .expect("valid");
        assert_eq!((event.topic.as_str(), text(&event)), ("a/b", "x\ny"));
        assert_eq!(event.name, Some(EventName::new("tick").expect("a name")));
        assert_eq!(event.id, Some(CustomId::new("7").expect("an id")));
        assert_eq!(event.retry_ms, Some(500));
        assert_eq!(event.key, Key::new("EUR").ok());
        assert!(!event.data.is_binary());
        let event = line("{\"topic\":\"a\",\"base64\":\"AP8=\"}\r").expect("CR is white space");
        assert!(event.data.is_binary());
        assert_eq!(event.data.bytes().as_ref(), [0, 255]);
    }

    #[test]
    fn data_that_is_json_is_published_as_its_compact_text() {
        for (data, published) in [
            (r#"{ "b" : 1.50, "a" : [ 1 , "x \" y" ] }"#, r#"{"b":1.50,"a":[1,"x \" y"]}"#),
            (r#"[ "\\" , " " ]"#, r#"["\\"," "]"#),
            ("12345678901234567890123", "12345678901234567890123"),
            ("true", "true"),
            (r#""""#, ""),
        ] {
            let event = line(&format!(r#"{{"topic":"a","data":{data}}}"#)).expect("valid");
            assert_eq!(text(&event), published);
        }
    }

    #[test]
    fn a_bad_line_is_refused_with_its_reason_and_place() {
        use RefusalReason::*;
        let long = format!(r#"{{"topic":"a","data":"{}"}}"#, "x".repeat(101));
        for (bad, reason, word) in [
            ("nonsense", BadJson, "a line is a JSON object"),
            (r#"["a","hi",null,null,null,null]"#, BadJson, "a line is a JSON object"),
            ("null", BadJson, "a line is a JSON object"),
            ("1", BadJson, "a line is a JSON object"),
            (r#" "x""#, BadJson, "a line is a JSON object"),
            (r#"{"topic":"a" "data":"x"}"#, BadJson, "column 14"),
            (r#"{"topic":"a","data":"\ud800"}"#, BadJson, "at column 28"),
            (r#" {"data": "\ud800","topic":"a"}"#, BadJson, "at column 18"),
            (r#"{"topic":"a","data":"x""#, BadJson, "column"),
            (r#"{"topic":"a","data":"x"} {}"#, BadJson, "trailing"),
            (r#"{"topic":"a","data":"x","colour":1}"#, BadJson, "`colour`"),
            (r#"{"topic":"a","topic":"b","data":"x"}"#, BadJson, "`topic`"),
            (r#"{"data":"x"}"#, BadJson, "`topic`"),
            (r#"{"topic":"a"}"#, BadJson, "`data`"),
            (r#"{"topic":"a","data":null}"#, BadJson, "`data`"),
            (r#"{"topic":"a","data":"x","base64":""}"#, BadJson, "both"),
            (r#"{"topic":"a","data":"x","retry":-1}"#, BadJson, "u32"),
            (r#"{"topic":"a","base64":"A!=="}"#, BadBase64, "offset 1"),
            (r#"{"topic":"","data":"x"}"#, BadTopic, "empty"),
            (r#"{"topic":"a\n","data":"x"}"#, BadTopic, "byte 1"),
            (r#"{"topic":"a","data":"x","event":"a\nb"}"#, BadEvent, "byte 1"),
            (r#"{"topic":"a","data":"x","id":"\u0000"}"#, BadId, "byte 0"),
            (r#"{"topic":"a","data":"x","key":""}"#, BadKey, "key: a key has 1 to 64 bytes"),
            (r#"{"topic":"a","data":"x","key":7}"#, BadJson, "string"),
            (&long, TooLarge, "101"),
        ] {
            let refusal = line(bad).expect_err(bad);
            assert_eq!(refusal.reason, reason, "{bad}: {refusal}");
            assert!(refusal.text.contains(word), "{bad}: {refusal}");
            assert!(!refusal.text.contains("line 1"), "{refusal}");
        }
        let refusal = parse_line(b"{\"topic\":\"\xff\"}", 100).expect_err("not UTF-8");
        assert_eq!((refusal.reason, refusal.text.as_str()), (NotUtf8, "the line is not UTF-8 at byte 10"));
    }

    #[test]
    fn query_parameters_are_decoded_and_unknown_or_doubled_ones_named() {
        let options = parse_options(Some("event=a+b&id=%C3%A4&retry=10&key=k%2B1&")).expect("valid");
        assert_eq!(options.key, Key::new("k+1").ok());
        assert_eq!(options.name.expect("a name").as_str(), "a b");
        assert_eq!(options.id.expect("an id").as_str(), "ä");
        assert_eq!(options.retry_ms, Some(10));
        assert_eq!(parse_options(None), Ok(Options::default()));
        for (query, reason, word) in [
            ("colour=1", RefusalReason::BadQuery, "\"colour\""),
            ("id=1&id=2", RefusalReason::BadQuery, "\"id\""),
            ("event=%FF", RefusalReason::BadQuery, "not UTF-8 at byte 0"),
            ("event=%", RefusalReason::BadQuery, "\"event\" has a bad percent escape at byte 0"),
            ("id=a+%zz", RefusalReason::BadQuery, "\"id\" has a bad percent escape at byte 2"),
            ("id=%2", RefusalReason::BadQuery, "bad percent escape"),
            ("event", RefusalReason::BadEvent, "empty"),
            ("id=%0A", RefusalReason::BadId, "byte 0"),
            ("key=a%0A", RefusalReason::BadKey, "key: a key has 1 to 64 bytes and no control characters"),
            ("key=", RefusalReason::BadKey, "key: a key has 1 to 64 bytes"),
            ("retry=4294967296", RefusalReason::BadRetry, "4294967296"),
        ] {
            let refusal = parse_options(Some(query)).expect_err(query);
            assert_eq!(refusal.reason, reason, "{query}");
            assert!(refusal.text.contains(word), "{refusal}");
        }
    }

    #[test]
    fn a_topic_in_a_path_is_decoded_once() {
        assert_eq!(parse_topic_path("a%2Fb%20c+d/%2525").map(|t| t.to_string()), Ok("a/b c+d/%25".into()));
        assert_eq!(parse_topic_path("a%FF").expect_err("not UTF-8").text, "the topic is not UTF-8 at byte 1");
        let refusal = parse_topic_path("a/%zz").expect_err("no escape");
        let bad_escape = "the topic has a bad percent escape at byte 2";
        assert_eq!((refusal.reason, refusal.text.as_str()), (RefusalReason::BadTopic, bad_escape));
        assert_eq!(parse_topic_path("").expect_err("empty").reason, RefusalReason::BadTopic);
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_at_its_byte() {
        let refusal = parse_text(Bytes::from_static(b"ab\xffc")).expect_err("not UTF-8");
        assert!(refusal.text.contains("byte 2"), "{refusal}");
    }

    /// The lines of `chunks`, as text; an over-long one is "-".
    fn cut(chunks: &[&[u8]], line_bytes_max: usize) -> Vec<(u64, String)> {
        let mut lines = Lines::new(line_bytes_max);
        let mut cut = Vec::new();
        let mut note = |line: Line<'_>| {
            cut.push(match line {
                Line::Whole(number, bytes) => (number, String::from_utf8_lossy(bytes).into_owned()),
                Line::TooLong(number) => (number, "-".into()),
            });
        };
        for mut chunk in chunks.iter().copied() {
            while let Some(line) = lines.next(&mut chunk) {
                note(line);
            }
            assert!(chunk.is_empty());
            assert!(lines.held.len() <= line_bytes_max);
        }
        if let Some(line) = lines.finish() {
            note(line);
        }
        cut
    }

    #[test]
    fn lines_are_the_same_wherever_chunks_end() {
        let body = b"one\r\n\ntoo long a line\nfour\n\nlast";
        let want: Vec<(u64, String)> = [(1, "one\r"), (2, ""), (3, "-"), (4, "four"), (5, ""), (6, "last")]
            .map(|(n, t)| (n, t.into()))
            .into();
        for first in 0..=body.len() {
            for second in first..=body.len() {
                let chunks = [&body[..first], &body[first..second], &body[second..]];
                assert_eq!(cut(&chunks, 10), want, "cut at {first} and {second}");
            }
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(cut(&bytes, 10), want);
    }

    #[test]
    fn an_over_long_line_is_told_once_and_not_held() {
        let chunk = [b'x'; 64];
        let mut chunks: Vec<&[u8]> = vec![&chunk; 100];
        chunks.push(b"\nok\n");
        assert_eq!(cut(&chunks, 100), [(1, "-".to_string()), (2, "ok".to_string())]);
        assert_eq!(cut(&[b"12345\n123456\n1234567"], 6)[2], (3, "-".to_string()));
    }

    #[test]
    fn a_refusal_is_one_line_whatever_it_quotes() {
        let line = parse_line(br#"{"topic":"a","e\n\u001b[2J\u00e9":1}"#, 10);
        let text = line.expect_err("no member has this name").text;
        assert!(text.starts_with(r"unknown field `e\n\u{1b}[2Jé`, expected "), "{text}");
        let refusal = Refusal::new(RefusalReason::BadJson, "\n".repeat(1 << 20));
        assert!(refusal.text.starts_with("\\n\\n") && refusal.text.ends_with("…"));
        assert!(refusal.text.len() <= REFUSAL_BYTES_MAX + "…".len());
    }
}

//! Commands of `fanwave.v1.json`: a text message in, a command or its error out; and what is
//! answered. Pure functions.
//!
//! Invariants worth naming:
//! - A command names itself by one member beside `ref`. Members that are unknown, doubled or of the
//!   wrong kind are errors: nothing that a client says is passed over in silence.
//! - `ref` is given back as it was written, and can be read wherever the message is JSON at all.
//! - An answer is one line of JSON in one text message.
//!
//! Not here: carrying commands out (`shard/commands`), events (`json`), and what an event may hold
//! (`publishing`).

use std::io::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::http::{LastEventId, Token};
use super::json::push_string;
use super::start::SINCE_MS_MAX;
use super::{SlowPolicy, Start, websocket};
use crate::close::ErrorCode;
use crate::event::{EventId, Topic};
use crate::topic_pattern::Pattern;

/// Longest `ref`, in bytes: of a string what it holds, of a number its digits.
pub const REF_BYTES_MAX: usize = 64;

/// Bytes of an error's detail: parsers quote what they do not know, however long it is.
const DETAIL_BYTES_MAX: usize = 512;

/// A command and the `ref` that its answer gives back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// A JSON number or string, as it was written.
    pub reference: &'a str,
    /// What is to be done.
    pub command: Command<'a>,
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// Events of a topic, or of all topics of a pattern.
    Subscribe {
        /// Which.
        of: Named,
        /// Where they begin.
        start: Start,
        /// What happens when the subscriber falls behind; the rule's or the server's choice if it
        /// does not say.
        slow: Option<SlowPolicy>,
    },
    /// No events of it any more.
    Unsubscribe(Named),
    /// An event: the JSON object that says it, as of a line of NDJSON.
    Publish(&'a str),
    /// How many subscribers a topic has.
    Presence(Topic),
    /// A new token.
    Auth(Token),
    /// A sign of life.
    Ping,
}

/// A topic, or topics by a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// `topic`.
    Topic(Topic),
    /// `match`.
    Match(Pattern),
}

impl Named {
    /// The name of the topic, or of the pattern.
    pub fn name(&self) -> &Topic {
        match self {
            Named::Topic(topic) => topic,
            Named::Match(pattern) => pattern.name(),
        }
    }
}

/// Why a message is no command. The client's fault; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault<'a> {
    /// As in [`Request`]; `None` where none could be read.
    pub reference: Option<&'a str>,
    /// The kind.
    pub code: ErrorCode,
    /// What is wrong, in a few words.
    pub detail: String,
}

/// What a command comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To `subscribe`: events follow that come after this one.
    Subscribed {
        /// What was named.
        of: &'a Named,
        /// The position.
        after: EventId,
    },
    /// To `unsubscribe`.
    Unsubscribed(&'a Named),
    /// To `publish`.
    Published {
        /// The id that subscribers see.
        id: &'a str,
        /// Its place in the order.
        sequence: u64,
        /// It was taken before, under the same key.
        duplicate: bool,
    },
    /// To `presence`: subscribers now.
    Present {
        /// Of this topic.
        topic: &'a Topic,
        /// By event stream.
        sse: u64,
        /// By WebSocket.
        websocket: u64,
    },
    /// To `auth`.
    Authorized {
        /// When the token ends, in seconds since 1970; `None` for never.
        expires: Option<u64>,
    },
    /// To `ping`.
    Pong,
    /// It was not carried out.
    Error {
        /// The kind.
        code: ErrorCode,
        /// One line.
        detail: &'a str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RequestJson<'a> {
    #[serde(borrow, rename = "ref")]
    reference: Option<&'a RawValue>,
    #[serde(borrow)]
    subscribe: Option<&'a RawValue>,
    #[serde(borrow)]
    unsubscribe: Option<&'a RawValue>,
    #[serde(borrow)]
    publish: Option<&'a RawValue>,
    #[serde(borrow)]
    presence: Option<&'a RawValue>,
    #[serde(borrow)]
    auth: Option<&'a RawValue>,
    #[serde(borrow)]
    ping: Option<&'a RawValue>,
}

/// What a message has of a command that is none.
#[derive(Deserialize)]
struct RefJson<'a> {
    #[serde(borrow, rename = "ref")]
    reference: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SubscribeJson {
    topic: Option<String>,
    r#match: Option<String>,
    after: Option<String>,
    since_ms: Option<u64>,
    last: Option<u64>,
    slow: Option<SlowPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedJson {
    topic: Option<String>,
    r#match: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicJson {
    topic: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthJson {
    token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PingJson {}

/// What is wrong with the inside of a command.
type Wrong = (ErrorCode, String);

/// Reads the inside of a command.
type ReadCommand = fn(&str) -> Result<Command<'_>, Wrong>;

/// Reads one text message.
pub fn parse(text: &str) -> Result<Request<'_>, Fault<'_>> {
    let fault = |reference, (code, mut detail): Wrong| {
        detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        Fault { reference, code, detail }
    };
    let json: RequestJson<'_> = object(text).map_err(|detail| {
        let known = object::<RefJson<'_>>(text).ok().and_then(|json| json.reference);
        fault(known.and_then(reference_of), bad(detail))
    })?;
    let Some(reference) = json.reference.and_then(reference_of) else {
        let detail = format!("ref is a number, or a string of at most {REF_BYTES_MAX} bytes");
        return Err(fault(None, bad(detail)));
    };
    let commands: [(Option<&RawValue>, ReadCommand); 6] = [
        (json.subscribe, subscribe),
        (json.unsubscribe, |json| Ok(Command::Unsubscribe(named(inside(json)?)?))),
        (json.publish, |json| Ok(Command::Publish(json))),
        (json.presence, |json| Ok(Command::Presence(topic(&inside::<TopicJson>(json)?.topic)?))),
        (json.auth, |json| Ok(Command::Auth(Token::new(inside::<AuthJson>(json)?.token)))),
        (json.ping, |json| inside::<PingJson>(json).map(|PingJson {}| Command::Ping)),
    ];
    let mut given = commands.into_iter().filter_map(|(json, read)| Some((json?.get(), read)));
    let command = match (given.next(), given.next()) {
        (Some((json, read)), None) => read(json),
        (None, _) => {
            Err(bad("no command: one of subscribe, unsubscribe, publish, presence, auth, ping is needed"))
        }
        (Some(_), Some(_)) => Err(bad("a message is one command")),
    };
    command.map(|command| Request { reference, command }).map_err(|wrong| fault(Some(reference), wrong))
}

/// The answer to the command of `reference`, `None` where none could be read: a text message in one
/// frame.
pub fn answer(reference: Option<&str>, reply: &Reply<'_>) -> Vec<u8> {
    let mut json = Vec::with_capacity(128);
    json.extend_from_slice(br#"{"ref":"#);
    json.extend_from_slice(reference.unwrap_or("null").as_bytes());
    json.extend_from_slice(if matches!(reply, Reply::Error { .. }) {
        br#","error":{"#
    } else {
        br#","ok":{"#
    });
    write_reply(&mut json, reply).expect("a vector takes every write");
    json.extend_from_slice(b"}}");
    let text = String::from_utf8(json).expect("JSON is UTF-8");
    websocket::text_frame(&text)
}

fn write_reply(json: &mut Vec<u8>, reply: &Reply<'_>) -> std::io::Result<()> {
    match reply {
        Reply::Subscribed { of, after } => {
            write_named(json, of);
            write!(json, r#","after":"{after}""#)
        }
        Reply::Unsubscribed(of) => {
            write_named(json, of);
            Ok(())
        }
        Reply::Published { id, sequence, duplicate } => {
            json.write_all(br#""id":"#)?;
            push_string(json, id);
            write!(json, r#","sequence":{sequence}"#)?;
            json.write_all(if *duplicate { br#","duplicate":true"# } else { b"" })
        }
        Reply::Present { topic, sse, websocket } => {
            json.write_all(br#""topic":"#)?;
            push_string(json, topic.as_str());
            write!(json, r#","sse":{sse},"websocket":{websocket}"#)
        }
        Reply::Authorized { expires } => match expires {
            Some(seconds) => write!(json, r#""expires":{seconds}"#),
            None => json.write_all(br#""expires":null"#),
        },
        Reply::Pong => Ok(()),
        Reply::Error { code, detail } => {
            write!(json, r#""code":"{}","detail":"#, code.label())?;
            push_string(json, detail);
            Ok(())
        }
    }
}

fn write_named(json: &mut Vec<u8>, of: &Named) {
    let (key, name) = match of {
        Named::Topic(topic) => (&br#""topic":"#[..], topic.as_str()),
        Named::Match(pattern) => (&br#""match":"#[..], pattern.as_str()),
    };
    json.extend_from_slice(key);
    push_string(json, name);
}

/// A `ref` as it was written, if it is a legal one.
fn reference_of(json: &RawValue) -> Option<&str> {
    let text = json.get();
    let bytes = match text.as_bytes()[0] {
        b'"' => serde_json::from_str::<String>(text).ok()?.len(),
        // One that no program can read, as `1e999`, would be none in the answer either.
        b'-' | b'0'..=b'9' => serde_json::from_str::<serde_json::Number>(text).ok().map(|_| text.len())?,
        _ => return None,
    };
    (bytes <= REF_BYTES_MAX).then_some(text)
}

fn subscribe(json: &str) -> Result<Command<'_>, Wrong> {
    let json: SubscribeJson = inside(json)?;
    let of = named(NamedJson { topic: json.topic, r#match: json.r#match })?;
    let start = match (json.after, json.since_ms, json.last) {
        (None, None, None) => Start::Now,
        (Some(after), None, None) => LastEventId::from_text(&after).map_or(Start::Now, Start::After),
        (None, Some(ms), None) if ms <= SINCE_MS_MAX => Start::Since(ms),
        (None, Some(_), None) => return Err(bad(format!("since_ms is at most {SINCE_MS_MAX}"))),
        (None, None, Some(events)) => Start::Last(events),
        _ => return Err(bad("after, since_ms and last exclude each other")),
    };
    Ok(Command::Subscribe { of, start, slow: json.slow })
}

fn named(json: NamedJson) -> Result<Named, Wrong> {
    match (json.topic, json.r#match) {
        (Some(name), None) => topic(&name).map(Named::Topic),
        (None, Some(pattern)) => {
            let pattern = Pattern::new(&pattern);
            pattern.map(Named::Match).map_err(|error| (ErrorCode::BadTopic, error.to_string()))
        }
        (None, None) => Err(bad("needs topic or match")),
        (Some(_), Some(_)) => Err(bad("topic and match exclude each other")),
    }
}

fn topic(name: &str) -> Result<Topic, Wrong> {
    let topic = Topic::new(name).map_err(|error| (ErrorCode::BadTopic, error.to_string()))?;
    match name.contains('*') {
        true => Err((ErrorCode::BadTopic, "a topic has no *: use match for many topics".to_string())),
        false => Ok(topic),
    }
}

/// The members of a command.
fn inside<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Wrong> {
    object(json).map_err(bad)
}

/// A JSON object: the parser would also take an array of the members' values.
fn object<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, String> {
    if !json.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err("not a JSON object".to_string());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn bad(detail: impl Into<String>) -> Wrong {
    (ErrorCode::BadCommand, detail.into())
}

#[cfg(test)]
mod tests;

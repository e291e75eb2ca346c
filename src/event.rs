//! What a publisher says, and how it is named.
//!
//! Everything here is validated at construction: a [`Topic`], a [`CustomId`] or an [`EventName`]
//! that exists is safe to put on the wire. Sequences are given by the hub alone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;

/// Longest topic, in bytes of UTF-8.
pub const TOPIC_BYTES_MAX: usize = 255;
/// Longest publisher-given id and longest event name, in bytes of UTF-8.
pub const FIELD_BYTES_MAX: usize = 255;
/// Longest key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 64;

/// What an event costs besides its own bytes and those of its frames: its structures, its place in
/// a window, the count of its memory. Measured with half a million events of one byte with the
/// frames of both protocols: 559 bytes each, 67 of them counted as data, names and frames.
pub const EVENT_BYTES_FIXED: usize = 496;
/// The most that an event weighs besides its data: topic, name, id and key at their longest.
pub const EVENT_BYTES_BESIDE_DATA_MAX: usize =
    EVENT_BYTES_FIXED + TOPIC_BYTES_MAX + 2 * FIELD_BYTES_MAX + KEY_BYTES_MAX;

/// The address of events: 1 to 255 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// Why a string is no topic. The client's or publisher's fault; a retry does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The topic has no bytes.
    #[error("the topic is empty")]
    Empty,
    /// The topic has more than [`TOPIC_BYTES_MAX`] bytes.
    #[error("the topic has {0} bytes, at most {TOPIC_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// The topic holds a control character at this byte.
    #[error("the topic has a control character at byte {0}")]
    Control(usize),
}

impl Topic {
    /// Checks `name` and shares it.
    pub fn new(name: &str) -> Result<Topic, TopicError> {
        if name.is_empty() {
            return Err(TopicError::Empty);
        }
        if name.len() > TOPIC_BYTES_MAX {
            return Err(TopicError::TooLong(name.len()));
        }
        if let Some((at, _)) = name.char_indices().find(|(_, c)| c.is_control()) {
            return Err(TopicError::Control(at));
        }
        Ok(Topic(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl serde::Serialize for Topic {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// A one-line field of an SSE event: 1 to 255 bytes of UTF-8 without NUL, LF and CR (WHATWG HTML
/// §9.2.6).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Field(Arc<str>);

/// An event name, the `event` field of SSE.
pub type EventName = Field;

/// Why a string cannot be a field. The publisher's fault; a retry does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// No bytes at all: in SSE an empty id means "forget the last id".
    #[error("it is empty")]
    Empty,
    /// More than [`FIELD_BYTES_MAX`] bytes.
    #[error("it has {0} bytes, at most {FIELD_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// NUL, LF or CR at this byte.
    #[error("it has a NUL or a line break at byte {0}")]
    LineBreak(usize),
}

impl Field {
    /// Checks `text` and shares it.
    pub fn new(text: &str) -> Result<Field, FieldError> {
        if text.is_empty() {
            return Err(FieldError::Empty);
        }
        if text.len() > FIELD_BYTES_MAX {
            return Err(FieldError::TooLong(text.len()));
        }
        if let Some(at) = text.bytes().position(|b| matches!(b, 0 | b'\n' | b'\r')) {
            return Err(FieldError::LineBreak(at));
        }
        Ok(Field(text.into()))
    }

    /// The field as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An id that the publisher chose in place of ours: a [`Field`] that `Last-Event-ID` brings back as
/// it was.
///
/// A client sends the UTF-8 of its last id as the value of that header field (WHATWG HTML §9.2.3).
/// Such a value may hold every byte from 0x80 on, but no control character besides tabs, and loses
/// the blanks and tabs around it (RFC 9110 §5.5). So an id has no control characters, tabs
/// included, and no blank at its begin or end.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CustomId(Field);

/// Why a string cannot be an id. The publisher's fault; a retry does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CustomIdError {
    /// It is no field of an event stream.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// A byte below 0x20, or 0x7f, at this byte.
    #[error(
        "it has a control character at byte {0}; an id is 1 to {FIELD_BYTES_MAX} bytes of UTF-8 without any"
    )]
    Control(usize),
    /// A blank is its first or its last byte.
    #[error(
        "it begins or ends with a blank, which HTTP takes away on its way back; blanks may stand inside an id"
    )]
    OuterBlank,
}

impl CustomId {
    /// Checks `text` and shares it.
    pub fn new(text: &str) -> Result<CustomId, CustomIdError> {
        let field = Field::new(text)?;
        if let Some(at) = text.bytes().position(|byte| byte.is_ascii_control()) {
            return Err(CustomIdError::Control(at));
        }
        if text.starts_with(' ') || text.ends_with(' ') {
            return Err(CustomIdError::OuterBlank);
        }
        Ok(CustomId(field))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// What an event is about, of several things that one topic tells of: 1 to 64 bytes of UTF-8
/// without control characters. Of the events with one key the newest counts, where a rule says so.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key(Arc<str>);

/// The string cannot be a key. The publisher's fault; a retry does not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key has 1 to {KEY_BYTES_MAX} bytes and no control characters")]
pub struct KeyError;

impl Key {
    /// Checks `text` and shares it.
    pub fn new(text: &str) -> Result<Key, KeyError> {
        let is_legal = (1..=KEY_BYTES_MAX).contains(&text.len()) && !text.contains(char::is_control);
        if is_legal { Ok(Key(text.into())) } else { Err(KeyError) }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What an event carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Data {
    bytes: Bytes,
    /// False exactly while `bytes` is valid UTF-8 and is meant as text.
    binary: bool,
}

impl Data {
    /// Text; `Err` holds the byte up to which it is valid UTF-8.
    pub fn text(bytes: Bytes) -> Result<Data, usize> {
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Data { bytes, binary: false }),
            Err(error) => Err(error.valid_up_to()),
        }
    }

    /// Text that is known to be UTF-8.
    pub fn string(text: String) -> Data {
        Data { bytes: text.into(), binary: false }
    }

    /// Bytes without a meaning to us.
    pub fn binary(bytes: Bytes) -> Data {
        Data { bytes, binary: true }
    }

    /// True for binary data, which SSE carries as base64.
    pub fn is_binary(&self) -> bool {
        self.binary
    }

    /// The bytes as the publisher sent them.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// What a publisher said, before the hub gave it a sequence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The address.
    pub topic: Topic,
    /// The payload.
    pub data: Data,
    /// The `event` field of SSE; WebSocket raw does not carry it.
    pub name: Option<EventName>,
    /// The publisher's id in place of `<epoch>-<sequence>`.
    pub id: Option<CustomId>,
    /// The `retry` field of SSE, in milliseconds.
    pub retry_ms: Option<u32>,
    /// What it is about; only JSON carries it.
    pub key: Option<Key>,
}

impl Event {
    /// Bytes of topic, data, name, id and key as published.
    pub fn published_bytes(&self) -> usize {
        let name = self.name.as_ref().map_or(0, |name| name.as_str().len());
        let id = self.id.as_ref().map_or(0, |id| id.as_str().len());
        let key = self.key.as_ref().map_or(0, |key| key.as_str().len());
        self.topic.as_str().len() + self.data.bytes().len() + name + id + key
    }

    /// Bytes that queues and windows count for this event: those published, and what an event costs
    /// besides.
    pub fn weight(&self) -> usize {
        EVENT_BYTES_FIXED + self.published_bytes()
    }
}

/// Which process gave a sequence: 64 random bits, written in base 36. No clock is asked, so two
/// processes that start together do not share an epoch, nor does one whose clock was set back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Most digits in base 36: those of `u64::MAX`.
    const DIGITS_MAX: usize = 13;

    /// A new one, from the kernel's source of randomness; one that [`Epoch::is_ours`].
    pub fn random() -> std::io::Result<Epoch> {
        loop {
            let epoch = Epoch::any()?;
            if epoch.is_ours() {
                return Ok(epoch);
            }
        }
    }

    /// True for what a server of this program takes for an epoch: 13 digits, one of them a letter.
    /// That is three of four numbers. So ids such as `order-7`, or milliseconds as other systems
    /// count them, are left to publishers.
    pub fn is_ours(self) -> bool {
        let text = self.to_string();
        text.len() == Epoch::DIGITS_MAX && text.bytes().any(|digit| digit.is_ascii_lowercase())
    }

    /// 64 random bits.
    fn any() -> std::io::Result<Epoch> {
        let mut bytes = [0; size_of::<u64>()];
        let mut filled = 0;
        while filled < bytes.len() {
            use rustix::rand::{GetRandomFlags, getrandom};
            match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
                Ok(more) => filled += more,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Epoch(u64::from_ne_bytes(bytes)))
    }
}

/// `<epoch>-<sequence>`: an exact resume point, whatever the set of topics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventId {
    /// The process that gave the sequence.
    pub epoch: Epoch,
    /// The hub's number of the event; 0 stands before the first event.
    pub sequence: u64,
}

impl EventId {
    /// Longest text, in bytes: the epoch, the dash, 20 decimal digits.
    pub const BYTES_MAX: usize = Epoch::DIGITS_MAX + 1 + 20;
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0u8; Epoch::DIGITS_MAX];
        let mut at = digits.len();
        let mut rest = self.0;
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        f.write_str(std::str::from_utf8(&digits[at..]).expect("base 36 is ASCII"))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.sequence)
    }
}

/// The text is not of the form `<epoch>-<sequence>`; it may be a publisher's own id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <epoch>-<sequence>")]
pub struct EventIdError;

impl FromStr for EventId {
    type Err = EventIdError;

    /// Accepts only what `Display` writes, so that a publisher's id is never mistaken for ours.
    fn from_str(text: &str) -> Result<EventId, EventIdError> {
        let (epoch, sequence) = text.split_once('-').ok_or(EventIdError)?;
        let id = EventId {
            epoch: Epoch(u64::from_str_radix(epoch, 36).map_err(|_| EventIdError)?),
            sequence: sequence.parse().map_err(|_| EventIdError)?,
        };
        if id.to_string() == text { Ok(id) } else { Err(EventIdError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_1_to_255_bytes_without_control_characters() {
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new(&"x".repeat(256)), Err(TopicError::TooLong(256)));
        assert_eq!(Topic::new("a\nb"), Err(TopicError::Control(1)));
        assert_eq!(Topic::new("a\u{85}b"), Err(TopicError::Control(1)));
        assert_eq!(Topic::new("räume/1").map(|t| t.to_string()), Ok("räume/1".to_string()));
    }

    #[test]
    fn fields_are_one_line() {
        assert_eq!(Field::new(""), Err(FieldError::Empty));
        assert_eq!(Field::new("a\rb"), Err(FieldError::LineBreak(1)));
        assert_eq!(Field::new("a\0"), Err(FieldError::LineBreak(1)));
        assert!(Field::new("ok").is_ok());
    }

    #[test]
    fn keys_are_1_to_64_bytes_without_control_characters() {
        for key in ["a", "räume/1", "a b", &"x".repeat(64)] {
            assert_eq!(Key::new(key).expect(key).as_str(), key);
        }
        for key in ["", &"x".repeat(65), "a\n", "\u{85}"] {
            assert_eq!(Key::new(key), Err(KeyError), "{key:?}");
        }
    }

    #[test]
    fn custom_ids_come_back_from_a_header_as_they_were() {
        for id in ["order 2", "räume/✓", "\u{a0}x\u{85}", &"x".repeat(255)] {
            assert_eq!(CustomId::new(id).expect(id).as_str(), id);
        }
        use CustomIdError::{Control, Field, OuterBlank};
        for (id, error) in [
            ("", Field(FieldError::Empty)),
            ("a\nb", Field(FieldError::LineBreak(1))),
            (&"x".repeat(256), Field(FieldError::TooLong(256))),
            ("\u{1}x", Control(0)),
            ("x\u{1f}", Control(1)),
            ("a\tb", Control(1)),
            ("ü\u{7f}", Control(2)),
            (" ", OuterBlank),
            (" x", OuterBlank),
            ("x ", OuterBlank),
        ] {
            assert_eq!(CustomId::new(id), Err(error), "{id:?}");
        }
    }

    #[test]
    fn no_two_epochs_are_alike_and_every_bit_of_them_is_random() {
        let epochs: Vec<u64> =
            (0..100).map(|_| Epoch::random().expect("the kernel has randomness").0).collect();
        let distinct: std::collections::HashSet<u64> = epochs.iter().copied().collect();
        assert_eq!(distinct.len(), epochs.len());
        let ever_set = epochs.iter().fold(0, |bits, epoch| bits | epoch);
        let always_set = epochs.iter().fold(u64::MAX, |bits, epoch| bits & epoch);
        assert_eq!((ever_set, always_set), (u64::MAX, 0));
        assert!(epochs.iter().all(|epoch| Epoch(*epoch).is_ours()));
    }

    #[test]
    fn every_bit_of_an_epoch_comes_back_from_an_id() {
        for bit in 0..64 {
            for epoch in [1 << bit, !(1 << bit), u64::MAX >> bit, u64::MAX << bit] {
                for sequence in [0, 1 << bit, u64::MAX] {
                    let id = EventId { epoch: Epoch(epoch), sequence };
                    let text = id.to_string();
                    assert_eq!(text.parse(), Ok(id), "{text}");
                    assert!(text.len() <= EventId::BYTES_MAX, "{text}");
                    assert_eq!(CustomId::new(&text).expect("it survives a header").as_str(), text);
                }
            }
        }
        let longest = EventId { epoch: Epoch(u64::MAX), sequence: u64::MAX }.to_string();
        assert_eq!(
            (longest.as_str(), longest.len()),
            ("3w5e11264sgsf-18446744073709551615", EventId::BYTES_MAX)
        );
        assert_eq!("3w5e11264sgsg-1".parse::<EventId>(), Err(EventIdError), "more than 64 bits");
    }

    #[test]
    fn ids_read_back_what_they_write_and_nothing_else() {
        for (epoch, sequence) in [(0, 0), (35, 1), (36, 2), (u64::MAX, u64::MAX)] {
            let id = EventId { epoch: Epoch(epoch), sequence };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        for text in ["", "-", "1", "1-", "-1", "+1-1", "1-+1", "01-1", "1-01", "A-1", "1-1-1", "$-1"] {
            assert_eq!(text.parse::<EventId>(), Err(EventIdError), "{text}");
        }
    }
}

//! What stands in a segment: records, one behind the other, each with its length and a checksum.
//!
//! ```text
//!   length of the body (u32) | CRC-32 of length and body (u32) | body
//!   body: kind (u8), sequence (u64), then
//!     Event, Kept   unix_ms (u64), flags (u8), retry_ms (u32), topic, name, id, key,
//!                   idempotency key (length u8 and UTF-8 each, empty if missing), data
//!     Removal       topic
//!     Reserved      promise (u8); the sequence is the last that may be given without another word
//!     Closed        the sequence is the newest that was given
//! ```
//!
//! Numbers are little-endian. The reader trusts nothing: a record is whole and as it was written, or
//! it is none.

use bytes::Bytes;

use crate::event::{CustomId, Data, Event, EventName, Key, Topic};
use crate::publishing::IdempotencyKey;

/// Bytes before a body.
pub(super) const HEAD_BYTES: usize = 8;
/// No body is longer: the largest event and what it has besides.
pub(super) const BODY_BYTES_MAX: usize = (1 << 30) + 4_096;
/// Kind and sequence.
const BODY_BYTES_MIN: usize = 9;

const BINARY: u8 = 1;
const HAS_RETRY: u8 = 2;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// An event, in its place.
    Event(Stored),
    /// An event of a segment that has gone: it is a retained value still.
    Kept(Stored),
    /// What came of a topic so far is gone.
    Removal(u64, Topic),
    /// Sequences up to this one may be given, under a promise.
    Reserved(u64, u8),
    /// The log was left in order, and this was the newest sequence.
    Closed(u64),
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// When it was taken in, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What was published.
    pub event: Event,
    /// Under which key.
    pub idempotency: Option<IdempotencyKey>,
}

/// What is at a place of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A record, and where it ends.
    Record(Record, usize),
    /// The end of the bytes.
    End,
    /// No whole record.
    Nothing,
}

/// Writes an event, of this segment or of one that goes.
pub(super) fn write_event(
    out: &mut Vec<u8>,
    is_kept: bool,
    sequence: u64,
    unix_ms: u64,
    event: &Event,
    idempotency: Option<&IdempotencyKey>,
) {
    let Event { topic, data, name, id, retry_ms, key } = event;
    write(out, if is_kept { 2 } else { 1 }, sequence, |out| {
        out.extend_from_slice(&unix_ms.to_le_bytes());
        let flags = u8::from(data.is_binary()) * BINARY + u8::from(retry_ms.is_some()) * HAS_RETRY;
        out.push(flags);
        out.extend_from_slice(&retry_ms.unwrap_or(0).to_le_bytes());
        text(out, topic.as_str());
        text(out, name.as_ref().map_or("", EventName::as_str));
        text(out, id.as_ref().map_or("", CustomId::as_str));
        text(out, key.as_ref().map_or("", Key::as_str));
        text(out, idempotency.map_or("", IdempotencyKey::as_str));
        out.extend_from_slice(data.bytes());
    });
}

/// Writes a removal.
pub(super) fn write_removal(out: &mut Vec<u8>, sequence: u64, topic: &Topic) {
    write(out, 3, sequence, |out| text(out, topic.as_str()));
}

/// Writes up to where sequences may be given, and under which promise.
pub(super) fn write_reserved(out: &mut Vec<u8>, sequence: u64, promise: u8) {
    write(out, 4, sequence, |out| out.push(promise));
}

/// Writes that the log is left in order.
pub(super) fn write_closed(out: &mut Vec<u8>, sequence: u64) {
    write(out, 5, sequence, |_| ());
}

fn write(out: &mut Vec<u8>, kind: u8, sequence: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    out.push(kind);
    out.extend_from_slice(&sequence.to_le_bytes());
    body(out);
    let length = (out.len() - begin - HEAD_BYTES) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
    let sum = checksum(&out[begin..begin + 4], &out[begin + HEAD_BYTES..]);
    out[begin + 4..begin + HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
}

fn text(out: &mut Vec<u8>, text: &str) {
    // Topics, names, ids and keys have at most 255 bytes.
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn checksum(length: &[u8], body: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(length);
    sum.update(body);
    sum.finalize()
}

/// Reads what is at `at`.
pub(super) fn read(bytes: &[u8], at: usize) -> Found {
    let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) else { return Found::End };
    let Some((head, rest)) = rest.split_first_chunk::<HEAD_BYTES>() else { return Found::Nothing };
    let [l0, l1, l2, l3, sum @ ..] = *head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&length) || rest.len() < length {
        return Found::Nothing;
    }
    let body = &rest[..length];
    if checksum(&head[..4], body) != u32::from_le_bytes(sum) {
        return Found::Nothing;
    }
    match record(body) {
        Some(record) => Found::Record(record, at + HEAD_BYTES + length),
        None => Found::Nothing,
    }
}

/// What a record says of itself; its checksum is not looked at.
#[derive(Debug)]
pub(super) struct Glance<'a> {
    /// An event, in its place.
    pub is_event: bool,
    /// Its sequence, or what that stands for.
    pub sequence: u64,
    /// Of an event: when it was taken in.
    pub unix_ms: u64,
    /// Of an event: its topic.
    pub topic: &'a str,
    /// Where it ends.
    pub end: usize,
}

/// What a glance at a place of a segment finds.
#[derive(Debug)]
pub(super) enum Seen<'a> {
    /// A record.
    Record(Glance<'a>),
    /// So many bytes from there on are needed to see it.
    Short(usize),
    /// No record.
    Nothing,
}

/// Looks at what is at `at`, without the checksum.
pub(super) fn glance(bytes: &[u8], at: usize) -> Seen<'_> {
    let rest = bytes.get(at..).unwrap_or_default();
    let Some((head, behind)) = rest.split_first_chunk::<HEAD_BYTES>() else { return Seen::Short(HEAD_BYTES) };
    let [l0, l1, l2, l3, ..] = *head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if !(BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&length) {
        return Seen::Nothing;
    }
    let Some(body) = behind.get(..length) else { return Seen::Short(HEAD_BYTES + length) };
    let mut input = Input(body);
    let mut look = || {
        let is_event = match input.byte()? {
            1 => true,
            2..=5 => false,
            _ => return None,
        };
        let sequence = input.long()?;
        let end = at + HEAD_BYTES + length;
        if !is_event {
            return Some(Glance { is_event, sequence, unix_ms: 0, topic: "", end });
        }
        let unix_ms = input.long()?;
        (input.byte()?, input.number()?);
        Some(Glance { is_event, sequence, unix_ms, topic: input.text()?, end })
    };
    look().map_or(Seen::Nothing, Seen::Record)
}

fn record(body: &[u8]) -> Option<Record> {
    let mut input = Input(body);
    let kind = input.byte()?;
    let sequence = input.long()?;
    let record = match kind {
        1 => Record::Event(input.event(sequence)?),
        2 => Record::Kept(input.event(sequence)?),
        3 => Record::Removal(sequence, Topic::new(input.text()?).ok()?),
        4 => Record::Reserved(sequence, input.byte()?),
        5 => Record::Closed(sequence),
        _ => return None,
    };
    input.0.is_empty().then_some(record)
}

/// The rest of a body.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn long(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn number(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::from(self.byte()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    /// A text that may be missing, as what it stands for.
    fn optional<T, E>(&mut self, read: impl FnOnce(&str) -> Result<T, E>) -> Option<Option<T>> {
        match self.text()? {
            "" => Some(None),
            text => read(text).ok().map(Some),
        }
    }

    fn event(&mut self, sequence: u64) -> Option<Stored> {
        let unix_ms = self.long()?;
        let flags = self.byte()?;
        let retry = self.number()?;
        let topic = Topic::new(self.text()?).ok()?;
        let name = self.optional(EventName::new)?;
        let id = self.optional(CustomId::new)?;
        let key = self.optional(Key::new)?;
        let idempotency = self.optional(IdempotencyKey::new)?;
        let data = Bytes::copy_from_slice(std::mem::take(&mut self.0));
        let data = if flags & BINARY != 0 { Data::binary(data) } else { Data::text(data).ok()? };
        let retry_ms = (flags & HAS_RETRY != 0).then_some(retry);
        Some(Stored { sequence, unix_ms, event: Event { topic, data, name, id, retry_ms, key }, idempotency })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Stored {
        let event = Event {
            topic: Topic::new("news/ä").expect("a topic"),
            data: Data::string("hello".into()),
            name: EventName::new("greeting").ok(),
            id: CustomId::new("order 7").ok(),
            retry_ms: Some(0),
            key: Key::new("k").ok(),
        };
        let idempotency = IdempotencyKey::new("once").ok();
        Stored { sequence: 7, unix_ms: 1_764_460_800_000, event, idempotency }
    }

    fn written() -> (Vec<u8>, Vec<Record>) {
        let (plain, mut binary) = (event(), event());
        binary.event.data = Data::binary(Bytes::from_static(&[0xff, 0]));
        binary.event.retry_ms = None;
        binary.idempotency = None;
        let topic = plain.event.topic.clone();
        let mut bytes = Vec::new();
        for (is_kept, stored) in [(false, &plain), (true, &binary)] {
            let Stored { sequence, unix_ms, event, idempotency } = stored;
            write_event(&mut bytes, is_kept, *sequence, *unix_ms, event, idempotency.as_ref());
        }
        write_removal(&mut bytes, 8, &topic);
        write_reserved(&mut bytes, u64::MAX, 2);
        write_closed(&mut bytes, 9);
        let records = vec![
            Record::Event(plain),
            Record::Kept(binary),
            Record::Removal(8, topic),
            Record::Reserved(u64::MAX, 2),
            Record::Closed(9),
        ];
        (bytes, records)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (bytes, records) = written();
        let mut at = 0;
        for record in records {
            let Found::Record(found, end) = read(&bytes, at) else { panic!("a record at {at}") };
            assert_eq!(found, record);
            at = end;
        }
        assert_eq!(read(&bytes, at), Found::End);
    }

    #[test]
    fn a_record_that_is_cut_off_or_changed_anywhere_is_none() {
        let mut bytes = Vec::new();
        let Stored { sequence, unix_ms, event, idempotency } = event();
        write_event(&mut bytes, false, sequence, unix_ms, &event, idempotency.as_ref());
        for length in 1..bytes.len() {
            assert_eq!(read(&bytes[..length], 0), Found::Nothing, "{length} bytes");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(read(&changed, 0), Found::Nothing, "bit {bit} of byte {at}");
            }
        }
    }
}

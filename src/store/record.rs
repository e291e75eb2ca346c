//! What stands in a segment: records, one behind the other, each with its length and checksums.
//!
//! ```text
//!   length of the body (u32) | ahead (u32) | CRC-32 of the body (u32) | CRC-32 of the head (u32) | body
//!   ahead: bytes before this record that the disk may not have had when it was written
//!   body: kind (u8), sequence (u64), then
//!     Event, Kept   unix_ms (u64), flags (u8), retry_ms (u32), topic, name, id, key,
//!                   idempotency key (length u8 and UTF-8 each, empty if missing), data
//!     Removal       topic
//!     Reserved      promise (u8), hole (u64); the sequence is the last that may be given without
//!                   another word, and events up to the hole may be missing
//!     Closed        the sequence is the newest that was given
//! ```
//!
//! Numbers are little-endian. The reader trusts nothing: a record is whole and as it was written, or
//! it is none. The checksums begin with the [`Seal`] of the segment, and that of the head counts the
//! place of the record too. So bytes of another segment or of another place are no record, and nobody
//! who does not see the files can make one up.

use bytes::Bytes;

use crate::event::{CustomId, Data, Event, EventName, Key, Topic};
use crate::publishing::IdempotencyKey;

/// Bytes before a body.
pub(super) const HEAD_BYTES: usize = 16;
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
    /// Sequences up to this one may be given, under a promise; events up to the last number may be
    /// missing.
    Reserved(u64, u8, u64),
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

/// A random number that a segment has, and nothing else, and where in it some bytes begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seal {
    number: u64,
    base: u64,
}

impl Seal {
    /// The seal of a whole segment.
    pub fn new(number: u64) -> Seal {
        Seal { number, base: 0 }
    }

    /// The number of the segment.
    pub fn number(self) -> u64 {
        self.number
    }

    /// The same for bytes that begin there in the segment.
    pub fn behind(self, base: u64) -> Seal {
        Seal { base, ..self }
    }

    fn of_body(self, body: &[u8]) -> [u8; 4] {
        let mut sum = crc32fast::Hasher::new_with_initial((self.number >> 32) as u32);
        sum.update(body);
        sum.finalize().to_le_bytes()
    }

    /// `said`: the head without this checksum; `at` counts from the base.
    fn of_head(self, at: usize, said: &[u8]) -> [u8; 4] {
        let mut sum = crc32fast::Hasher::new_with_initial(self.number as u32);
        sum.update(&(self.base + at as u64).to_le_bytes());
        sum.update(said);
        sum.finalize().to_le_bytes()
    }
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

/// Writes up to where sequences may be given, under which promise, and up to where events may be
/// missing.
pub(super) fn write_reserved(out: &mut Vec<u8>, sequence: u64, promise: u8, hole: u64) {
    write(out, 4, sequence, |out| {
        out.push(promise);
        out.extend_from_slice(&hole.to_le_bytes());
    });
}

/// Writes that the log is left in order.
pub(super) fn write_closed(out: &mut Vec<u8>, sequence: u64) {
    write(out, 5, sequence, |_| ());
}

/// Writes a record without its checksums: they depend on its place ([`seal`]).
fn write(out: &mut Vec<u8>, kind: u8, sequence: u64, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend_from_slice(&[0; HEAD_BYTES]);
    out.push(kind);
    out.extend_from_slice(&sequence.to_le_bytes());
    body(out);
    let length = (out.len() - begin - HEAD_BYTES) as u32;
    out[begin..begin + 4].copy_from_slice(&length.to_le_bytes());
}

/// Makes records fit for the place that the seal says, in a segment of which the disk has all up to
/// `synced`.
pub(super) fn seal(records: &mut [u8], seal: Seal, synced: u64) {
    let (mut rest, mut at) = (records, 0);
    while let Some((head, more)) = rest.split_first_chunk_mut::<HEAD_BYTES>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let (body, others) = more.split_at_mut(length);
        let ahead = u32::try_from(seal.base + at as u64 - synced).expect("a segment has less than 4 GiB");
        head[4..8].copy_from_slice(&ahead.to_le_bytes());
        head[8..12].copy_from_slice(&seal.of_body(body));
        let sum = seal.of_head(at, &head[..12]);
        head[12..].copy_from_slice(&sum);
        at += HEAD_BYTES + length;
        rest = others;
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    // Topics, names, ids and keys have at most 255 bytes.
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// Reads what is at `at`.
pub(super) fn read(bytes: &[u8], at: usize, seal: Seal) -> Found {
    if at >= bytes.len() {
        return Found::End;
    }
    match whole(bytes, at, seal).and_then(|(_, body)| Some((record(body)?, body.len()))) {
        Some((record, length)) => Found::Record(record, at + HEAD_BYTES + length),
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

/// Up to where the disk had the segment, as a whole record at `at` says.
pub(super) fn synced(bytes: &[u8], at: usize, seal: Seal) -> Option<u64> {
    let (ahead, body) = whole(bytes, at, seal)?;
    record(body).map(|_| seal.base + at as u64 - ahead)
}

/// What a record at `at` says of what is before it, and its body, if its checksums are right. It
/// looks at the body last, so a look at a place without a record costs little.
fn whole(bytes: &[u8], at: usize, seal: Seal) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.get(at..)?.split_first_chunk::<HEAD_BYTES>()?;
    let [l0, l1, l2, l3, a0, a1, a2, a3, b0, b1, b2, b3, sum @ ..] = *head;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let ahead = u64::from(u32::from_le_bytes([a0, a1, a2, a3]));
    let fits = (BODY_BYTES_MIN..=BODY_BYTES_MAX).contains(&length) && length <= rest.len();
    if !fits || ahead > seal.base + at as u64 {
        return None;
    }
    if seal.of_head(at, &head[..12]) != sum {
        return None;
    }
    let body = &rest[..length];
    (seal.of_body(body) == [b0, b1, b2, b3]).then_some((ahead, body))
}

fn record(body: &[u8]) -> Option<Record> {
    let mut input = Input(body);
    let kind = input.byte()?;
    let sequence = input.long()?;
    let record = match kind {
        1 => Record::Event(input.event(sequence)?),
        2 => Record::Kept(input.event(sequence)?),
        3 => Record::Removal(sequence, Topic::new(input.text()?).ok()?),
        4 => Record::Reserved(sequence, input.byte()?, input.long()?),
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

    const SEAL: Seal = Seal { number: 0x1234_5678_9abc_def0, base: 0 };

    /// Records behind 20 bytes of something else, of which the disk has 8.
    fn written() -> (Vec<u8>, Vec<Record>) {
        let (plain, mut binary) = (event(), event());
        binary.event.data = Data::binary(Bytes::from_static(&[0xff, 0]));
        binary.event.retry_ms = None;
        binary.idempotency = None;
        let topic = plain.event.topic.clone();
        let mut bytes = vec![0; 20];
        for (is_kept, stored) in [(false, &plain), (true, &binary)] {
            let Stored { sequence, unix_ms, event, idempotency } = stored;
            write_event(&mut bytes, is_kept, *sequence, *unix_ms, event, idempotency.as_ref());
        }
        write_removal(&mut bytes, 8, &topic);
        write_reserved(&mut bytes, u64::MAX, 2, 6);
        write_closed(&mut bytes, 9);
        seal(&mut bytes[20..], SEAL.behind(20), 8);
        let records = vec![
            Record::Event(plain),
            Record::Kept(binary),
            Record::Removal(8, topic),
            Record::Reserved(u64::MAX, 2, 6),
            Record::Closed(9),
        ];
        (bytes, records)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let (bytes, records) = written();
        let mut at = 20;
        for record in records {
            assert_eq!(synced(&bytes, at, SEAL), Some(8));
            let Found::Record(found, end) = read(&bytes, at, SEAL) else { panic!("a record at {at}") };
            assert_eq!(found, record);
            at = end;
        }
        assert_eq!(read(&bytes, at, SEAL), Found::End);
    }

    #[test]
    fn a_record_of_another_segment_or_of_another_place_is_none() {
        let (bytes, _) = written();
        assert!(matches!(read(&bytes, 20, SEAL), Found::Record(..)));
        for bit in 0..64 {
            assert_eq!(read(&bytes, 20, Seal::new(SEAL.number ^ (1 << bit))), Found::Nothing, "bit {bit}");
        }
        assert_eq!(read(&bytes[1..], 19, SEAL), Found::Nothing);
        assert_eq!(read(&[&[0], &bytes[..]].concat(), 21, SEAL), Found::Nothing);
        // A part of the segment is read by a seal that says where it begins.
        assert!(matches!(read(&bytes[1..], 19, SEAL.behind(1)), Found::Record(..)));
        assert_eq!(synced(&bytes[20..], 0, SEAL.behind(20)), Some(8));
    }

    #[test]
    fn a_record_that_is_cut_off_or_changed_anywhere_is_none() {
        let mut bytes = Vec::new();
        let Stored { sequence, unix_ms, event, idempotency } = event();
        write_event(&mut bytes, false, sequence, unix_ms, &event, idempotency.as_ref());
        seal(&mut bytes, SEAL, 0);
        for length in 1..bytes.len() {
            assert_eq!(read(&bytes[..length], 0, SEAL), Found::Nothing, "{length} bytes");
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(read(&changed, 0, SEAL), Found::Nothing, "bit {bit} of byte {at}");
            }
        }
    }
}

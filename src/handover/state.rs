//! What a server knows, as bytes: the epoch and the next sequence, the topics, the events of all
//! histories and retained values, what is kept of forgotten topics, and the idempotency keys.
//!
//! ```text
//!   magic (16) | format (u32) | epoch, sequence, newest hole, newest dropped (u64)
//!   | topics | events | forgotten | keys      each with its number (u32) before it
//!   | SHA-1 of all before (20)
//! ```
//!
//! Numbers are little-endian. A text is a length (one byte) and UTF-8; a text that may be missing
//! has no bytes then. The reader trusts nothing: a state that is cut off, changed, or of another
//! format is refused, and what it takes is bounded by what is there.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};

use bytes::Bytes;
use sha1::{Digest, Sha1};

use super::{FORMAT, VERSION};
use crate::clock::Stamp;
use crate::event::{CustomId, Data, Epoch, Event, EventName, Key, Topic};
use crate::publishing::IdempotencyKey;

const MAGIC: &[u8; 16] = b"fanwave state \r\n";
/// Bytes of the checksum at the end.
const CHECKSUM_BYTES: u64 = 20;
/// Bytes that are read or written at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// Everything but the events, which are given one by one when a state is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Whose sequences these are.
    pub epoch: Epoch,
    /// The newest sequence that was given, 0 before the first.
    pub sequence: u64,
    /// Events up to this sequence may be missing, of whatever topic; 0 if none are.
    pub hole: u64,
    /// Every topic that the hub remembers, the one published to longest ago first, and those of
    /// which only retained values are left.
    pub topics: Vec<TopicState>,
    /// The events of all histories and all retained values, in the order of their sequences. One
    /// that is not newer than what its topic has evicted is a value alone.
    pub events: Vec<PastEvent>,
    /// The last sequences of topics of which nothing is left.
    pub forgotten: Vec<(Topic, u64)>,
    /// The newest sequence of the forgotten topics that are not kept.
    pub dropped: u64,
    /// Idempotency keys, the oldest first.
    pub keys: Vec<PastKey>,
}

/// What is known of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicState {
    /// Its name.
    pub name: Topic,
    /// The hub remembers it.
    pub remembered: bool,
    /// The sequence of its last event.
    pub sequence: u64,
    /// The publisher's id of its last event, if it gave one.
    pub id: Option<CustomId>,
    /// Events published to it.
    pub events: u64,
    /// Their bytes.
    pub bytes: u64,
    /// No event up to this sequence is history.
    pub evicted: u64,
    /// The newest event that left the history for want of memory.
    pub cut: Option<PastCut>,
    /// Events up to this sequence may be missing that never came; 0 if none are.
    pub hole: u64,
}

/// An event that left a history before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastCut {
    /// Its sequence.
    pub sequence: u64,
    /// When it was taken in.
    pub intake: Stamp,
    /// Bytes that it counted as published.
    pub published: u64,
}

/// An event of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastEvent {
    /// Its sequence.
    pub sequence: u64,
    /// When it was taken in.
    pub intake: Stamp,
    /// The same in milliseconds since 1970.
    pub unix_ms: u64,
    /// What was published.
    pub event: Event,
}

/// The same where it is: what the writer takes.
#[derive(Debug, Clone, Copy)]
pub struct EventView<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// When it was taken in.
    pub intake: Stamp,
    /// The same in milliseconds since 1970.
    pub unix_ms: u64,
    /// What was published.
    pub event: &'a Event,
}

/// A publish that was taken under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastKey {
    /// The topic.
    pub topic: Topic,
    /// The publisher's name for it.
    pub key: IdempotencyKey,
    /// A hash of what was said.
    pub said: u64,
    /// The sequence that it got.
    pub sequence: u64,
    /// When it was taken.
    pub since: Stamp,
}

impl PastKey {
    /// A hash of all that an event says besides its topic. One who makes two events with the same
    /// hash deceives itself alone.
    pub fn said_by(event: &Event) -> u64 {
        let mut hash = Sha1::new();
        // What may be missing, and the length of what has no end of its own.
        let mut add = |part: Option<&[u8]>| {
            hash.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            hash.update(part.unwrap_or_default());
        };
        add(Some(event.data.bytes()));
        add(event.data.is_binary().then_some(&[]));
        add(event.name.as_ref().map(|name| name.as_str().as_bytes()));
        add(event.id.as_ref().map(|id| id.as_str().as_bytes()));
        add(event.key.as_ref().map(|key| key.as_str().as_bytes()));
        add(event.retry_ms.map(u32::to_le_bytes).as_ref().map(<[u8; 4]>::as_slice));
        let hash: [u8; 20] = hash.finalize().into();
        u64::from_le_bytes(*hash.first_chunk().expect("8 of 20 bytes"))
    }
}

/// Why bytes are no state that can be taken. A retry does not help.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("the state cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("the state is none of fanwave's")]
    Foreign,
    /// It is of another format.
    #[error("the state has format {0}, and fanwave {VERSION} takes format {FORMAT}")]
    Format(u32),
    /// Some of it has changed or is missing.
    #[error("the state is damaged: its checksum is another one")]
    Checksum,
    /// It says what cannot be.
    #[error("the state is damaged: {0}")]
    Content(&'static str),
}

impl State {
    /// Writes a state whose events are `events`, in the order of their sequences, each of one of
    /// its topics; those in [`State::events`] are left out.
    pub fn write<'a>(
        &self,
        events: impl ExactSizeIterator<Item = EventView<'a>>,
        out: impl Write,
    ) -> io::Result<()> {
        let mut out = Writer { out: BufWriter::with_capacity(BUFFER_BYTES, out), hash: Sha1::new() };
        out.bytes(MAGIC)?;
        out.number(FORMAT)?;
        for number in [self.epoch.0, self.sequence, self.hole, self.dropped] {
            out.long(number)?;
        }
        let mut numbers = HashMap::with_capacity(self.topics.len());
        out.count(self.topics.len())?;
        for (number, topic) in self.topics.iter().enumerate() {
            numbers.insert(&topic.name, number as u32);
            out.text(topic.name.as_str())?;
            out.text(topic.id.as_ref().map_or("", CustomId::as_str))?;
            out.bytes(&[u8::from(topic.remembered)])?;
            for number in [topic.sequence, topic.events, topic.bytes, topic.evicted] {
                out.long(number)?;
            }
            let cut = topic.cut.unwrap_or(PastCut { sequence: 0, intake: Stamp(0), published: 0 });
            for number in [cut.sequence, cut.intake.0, cut.published, topic.hole] {
                out.long(number)?;
            }
        }
        out.count(events.len())?;
        for EventView { sequence, intake, unix_ms, event } in events {
            let topic = numbers.get(&event.topic).copied();
            out.number(topic.ok_or_else(|| io::Error::other("an event of an unknown topic"))?)?;
            for number in [sequence, intake.0, unix_ms] {
                out.long(number)?;
            }
            out.event(event)?;
        }
        out.count(self.forgotten.len())?;
        for (topic, sequence) in &self.forgotten {
            out.text(topic.as_str())?;
            out.long(*sequence)?;
        }
        out.count(self.keys.len())?;
        for key in &self.keys {
            out.text(key.topic.as_str())?;
            out.text(key.key.as_str())?;
            for number in [key.said, key.sequence, key.since.0] {
                out.long(number)?;
            }
        }
        out.end()
    }

    /// Reads a state from the begin of `input` to its end.
    pub fn read(mut input: impl Read + Seek) -> Result<State, StateError> {
        let length = check(&mut input)?;
        input.rewind()?;
        let mut input = Reader { input: BufReader::with_capacity(BUFFER_BYTES, input), left: length };
        let mut head = [0; MAGIC.len() + 4];
        input.fill(&mut head)?;
        let state = input.state()?;
        match input.left {
            0 => Ok(state),
            _ => Err(StateError::Content("something follows the last part")),
        }
    }
}

/// Looks at the begin and the checksum of a state. Returns the bytes before the checksum.
fn check(input: &mut (impl Read + Seek)) -> Result<u64, StateError> {
    let whole = input.seek(io::SeekFrom::End(0))?;
    input.rewind()?;
    let mut head = [0; MAGIC.len() + 4];
    let length = whole.checked_sub(CHECKSUM_BYTES).filter(|length| *length >= head.len() as u64);
    let Some(length) = length else { return Err(StateError::Foreign) };
    input.read_exact(&mut head)?;
    let (magic, format) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(StateError::Foreign);
    }
    let format = u32::from_le_bytes(format.try_into().expect("4 bytes"));
    if format != FORMAT {
        return Err(StateError::Format(format));
    }
    let mut hash = Sha1::new_with_prefix(head);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut left = length - head.len() as u64;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        input.read_exact(&mut buffer[..most])?;
        hash.update(&buffer[..most]);
        left -= most as u64;
    }
    let mut sum = [0; CHECKSUM_BYTES as usize];
    input.read_exact(&mut sum)?;
    if hash.finalize().as_slice() == sum { Ok(length) } else { Err(StateError::Checksum) }
}

/// Writes and hashes.
struct Writer<W: Write> {
    out: BufWriter<W>,
    hash: Sha1,
}

impl<W: Write> Writer<W> {
    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    fn number(&mut self, number: u32) -> io::Result<()> {
        self.bytes(&number.to_le_bytes())
    }

    fn long(&mut self, number: u64) -> io::Result<()> {
        self.bytes(&number.to_le_bytes())
    }

    fn count(&mut self, count: usize) -> io::Result<()> {
        self.number(u32::try_from(count).map_err(|_| io::Error::other("too many for the format"))?)
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let length = u8::try_from(text.len()).map_err(|_| io::Error::other("too long for the format"))?;
        self.bytes(&[length])?;
        self.bytes(text.as_bytes())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        let Event { topic: _, data, name, id, retry_ms, key } = event;
        self.text(name.as_ref().map_or("", EventName::as_str))?;
        self.text(id.as_ref().map_or("", CustomId::as_str))?;
        self.text(key.as_ref().map_or("", Key::as_str))?;
        self.bytes(&[u8::from(data.is_binary()) | u8::from(retry_ms.is_some()) << 1])?;
        self.number(retry_ms.unwrap_or(0))?;
        self.count(data.bytes().len())?;
        self.bytes(data.bytes())
    }

    fn end(mut self) -> io::Result<()> {
        self.out.write_all(&self.hash.finalize())?;
        self.out.flush()
    }
}

/// Reads what the checksum has vouched for.
struct Reader<R> {
    input: R,
    /// Bytes before the checksum that were not read yet.
    left: u64,
}

impl<R: Read> Reader<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StateError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(StateError::Content("it ends too early"))?;
        Ok(self.input.read_exact(bytes)?)
    }

    fn byte(&mut self) -> Result<u8, StateError> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<u32, StateError> {
        let mut bytes = [0; 4];
        self.fill(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn long(&mut self) -> Result<u64, StateError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// So many bytes; they are there.
    fn bytes(&mut self, length: usize) -> Result<Vec<u8>, StateError> {
        if length as u64 > self.left {
            return Err(StateError::Content("it ends too early"));
        }
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String, StateError> {
        let length = self.byte()?;
        let bytes = self.bytes(usize::from(length))?;
        String::from_utf8(bytes).map_err(|_| StateError::Content("a text is not UTF-8"))
    }

    fn topic(&mut self) -> Result<Topic, StateError> {
        Topic::new(&self.text()?).map_err(|_| StateError::Content("a topic is illegal"))
    }

    fn id(&mut self) -> Result<Option<CustomId>, StateError> {
        let text = self.text()?;
        let id = (!text.is_empty()).then(|| CustomId::new(&text)).transpose();
        id.map_err(|_| StateError::Content("an id is illegal"))
    }

    /// A number of things, each of which takes at least `least` bytes, and an empty list with room
    /// for those.
    fn list<T>(&mut self, least: u64) -> Result<(usize, Vec<T>), StateError> {
        let count = self.number()?;
        if u64::from(count) * least > self.left {
            return Err(StateError::Content("it ends too early"));
        }
        Ok((count as usize, Vec::with_capacity(count as usize)))
    }

    fn state(&mut self) -> Result<State, StateError> {
        let (epoch, sequence) = (Epoch(self.long()?), self.long()?);
        let (hole, dropped) = (known(self.long()?, sequence)?, self.long()?);
        if !epoch.is_ours() {
            return Err(StateError::Content("its epoch is none"));
        }
        let topics = self.topics(sequence)?;
        let events = self.events(&topics, sequence)?;
        let (count, mut forgotten) = self.list(10)?;
        for _ in 0..count {
            forgotten.push((self.topic()?, known(self.long()?, sequence)?));
        }
        let (count, mut keys) = self.list(28)?;
        for _ in 0..count {
            let topic = self.topic()?;
            let key = IdempotencyKey::new(&self.text()?);
            let key = key.map_err(|_| StateError::Content("an idempotency key is illegal"))?;
            let said = self.long()?;
            let of = known(self.long()?, sequence)?;
            keys.push(PastKey { topic, key, said, sequence: of, since: Stamp(self.long()?) });
        }
        let dropped = known(dropped, sequence)?;
        Ok(State { epoch, sequence, hole, topics, events, forgotten, dropped, keys })
    }

    fn topics(&mut self, newest: u64) -> Result<Vec<TopicState>, StateError> {
        let (count, mut topics) = self.list::<TopicState>(68)?;
        let mut names = HashSet::with_capacity(count);
        for _ in 0..count {
            let (name, id, remembered) = (self.topic()?, self.id()?, self.byte()? != 0);
            let sequence = known(self.long()?, newest)?;
            let (events, bytes) = (self.long()?, self.long()?);
            let evicted = known(self.long()?, newest)?;
            let cut = PastCut {
                sequence: known(self.long()?, newest)?,
                intake: Stamp(self.long()?),
                published: self.long()?,
            };
            if !names.insert(name.clone()) {
                return Err(StateError::Content("a topic stands twice"));
            }
            let cut = (cut.sequence > 0).then_some(cut);
            let hole = known(self.long()?, newest)?;
            topics.push(TopicState { name, remembered, sequence, id, events, bytes, evicted, cut, hole });
        }
        Ok(topics)
    }

    fn events(&mut self, topics: &[TopicState], newest: u64) -> Result<Vec<PastEvent>, StateError> {
        let (count, mut events) = self.list::<PastEvent>(40)?;
        let mut before = 0;
        for _ in 0..count {
            let topic = topics.get(self.number()? as usize);
            let topic = topic.ok_or(StateError::Content("an event has no topic"))?;
            let (sequence, intake, unix_ms) = (self.long()?, Stamp(self.long()?), self.long()?);
            if known(sequence, newest)? <= before {
                return Err(StateError::Content("sequences do not rise"));
            }
            before = sequence;
            events.push(PastEvent { sequence, intake, unix_ms, event: self.event(topic)? });
        }
        Ok(events)
    }

    fn event(&mut self, topic: &TopicState) -> Result<Event, StateError> {
        let name = self.text()?;
        let name = (!name.is_empty()).then(|| EventName::new(&name)).transpose();
        let name = name.map_err(|_| StateError::Content("an event name is illegal"))?;
        let id = self.id()?;
        let key = self.text()?;
        let key = (!key.is_empty()).then(|| Key::new(&key)).transpose();
        let key = key.map_err(|_| StateError::Content("a key is illegal"))?;
        let (flags, retry_ms) = (self.byte()?, self.number()?);
        let length = self.number()? as usize;
        let data = Bytes::from(self.bytes(length)?.into_boxed_slice());
        let data = match flags & 1 {
            0 => Data::text(data).map_err(|_| StateError::Content("text data is not UTF-8"))?,
            _ => Data::binary(data),
        };
        let retry_ms = (flags & 2 != 0).then_some(retry_ms);
        Ok(Event { topic: topic.name.clone(), data, name, id, retry_ms, key })
    }
}

/// A sequence that was given before `newest`, or is it.
fn known(sequence: u64, newest: u64) -> Result<u64, StateError> {
    if sequence <= newest { Ok(sequence) } else { Err(StateError::Content("a sequence was never given")) }
}

#[cfg(test)]
mod tests;

//! The log of a store: segments, one behind the other, of which the last one grows.
//!
//! ```text
//!   DIR/format            the format and the epoch
//!   DIR/durable           up to where the disk had it all, as it was written last; not synced
//!   DIR/0000000001.log    magic (8) | newest sequence before it (u64) | CRC-32 (u32), then records
//!   DIR/0000000002.log
//! ```
//!
//! Invariants worth naming:
//! - Sequences of events and removals rise from record to record. A segment knows the newest one
//!   before it, so one that is missing or too short is noticed by the next.
//! - No sequence is given beyond what a synced record reserves. After an end without order the next
//!   ones come from behind that, so none is given twice.
//! - Each start begins a segment. Only the tail of the last one may be torn: it is cut off, unless
//!   whole records follow what is broken. Those say that the disk has changed something, and then
//!   nothing is opened.
//! - A segment is removed whole. What is a retained value of it is written again before.

use std::collections::{HashMap, VecDeque};
use std::io;

use super::files::{Files, Grows};
use super::record::{self, Found, Record, Stored};
use super::{Promise, Settings, StoreError};
use crate::event::{Epoch, Key, Topic};

const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "format";
const DURABLE_FILE: &str = "durable";
const MAGIC: &[u8; 8] = b"fanwave\n";
pub(super) const HEADER_BYTES: usize = 20;
/// Sequences that one record reserves.
const RESERVED_EACH: u64 = 1 << 20;
/// Retained values that are written again when their segment goes; of more some are lost.
const KEPT_MAX: usize = 1 << 18;

/// A segment that does not grow any more.
#[derive(Debug)]
struct Sealed {
    name: String,
    bytes: u64,
    /// When its newest event was taken in.
    unix_ms: u64,
}

/// Which events are the retained values of topics, as far as rules say.
#[derive(Debug, Default)]
struct Kept {
    newest: HashMap<Topic, HashMap<Option<Key>, u64>>,
    count: usize,
}

impl Kept {
    fn note(&mut self, stored: &Stored, settings: &Settings) {
        let event = &stored.event;
        let Some(rule) = settings.rules.of(event.topic.as_str()).filter(|rule| rule.retain) else { return };
        let by_key = rule.conflate == crate::config::rules::Conflate::Key;
        let key = event.key.clone().filter(|_| by_key);
        let known = self.newest.get_mut(&event.topic).and_then(|of_topic| of_topic.get_mut(&key));
        match known {
            Some(newest) => *newest = stored.sequence.max(*newest),
            None if self.count < KEPT_MAX => {
                self.count += 1;
                self.newest.entry(event.topic.clone()).or_default().insert(key, stored.sequence);
            }
            None => {}
        }
    }

    fn remove(&mut self, topic: &Topic) {
        self.count -= self.newest.remove(topic).map_or(0, |of_topic| of_topic.len());
    }

    fn has(&self, stored: &Stored) -> bool {
        let of_topic = self.newest.get(&stored.event.topic);
        let is_it = |key: &Option<Key>| {
            of_topic.and_then(|of_topic| of_topic.get(key)).is_some_and(|newest| *newest == stored.sequence)
        };
        is_it(&stored.event.key) || is_it(&None)
    }
}

/// What a log tells of itself when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Opening {
    /// Whose sequences these are.
    pub epoch: Epoch,
    /// The newest sequence that may have been given.
    pub sequence: u64,
    /// Events up to here may be missing; 0 if none are.
    pub hole: u64,
    /// The newest event before the oldest segment that is whole.
    pub floor: u64,
}

/// Who hears of the records when a log is opened.
pub(super) trait Reader {
    /// The next one.
    fn record(&mut self, record: Record);
    /// What came before is not all: it counts no more.
    fn broken(&mut self);
}

/// Where a log ends.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    number: u64,
    length: u64,
    sequence: u64,
}

/// The log.
#[derive(Debug)]
pub(super) struct Log<F: Files> {
    files: F,
    settings: Settings,
    sealed: VecDeque<Sealed>,
    current: F::File,
    name: String,
    number: u64,
    /// Whole records of the current segment end here.
    length: u64,
    /// And ended here when it was begun.
    begun: u64,
    /// Something behind `length` could not be cut off.
    is_torn: bool,
    /// A segment that could not be begun is still to be removed.
    has_debris: bool,
    /// When its newest event was taken in.
    unix_ms: u64,
    /// Of its oldest one; 0 before the first.
    since_ms: u64,
    /// The newest sequence that was written.
    sequence: u64,
    /// Sequences up to here may be given.
    reserved: u64,
    kept: Kept,
}

pub(super) fn name_of(number: u64) -> String {
    format!("{number:010}.log")
}

pub(super) fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

impl<F: Files> Log<F> {
    /// Opens what is there, or makes it, with `fresh` as its epoch then.
    pub fn open(
        files: F,
        settings: Settings,
        fresh: Epoch,
        reader: &mut impl Reader,
    ) -> Result<(Log<F>, Opening), StoreError> {
        let place = files.place();
        let failed = |what: &'static str| {
            let place = place.clone();
            move |source: io::Error| StoreError::Io { what, place, source }
        };
        let names = files.names().map_err(failed("read"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        let has_format = names.iter().any(|name| name == FORMAT_FILE);
        let strangers = names
            .iter()
            .find(|name| number_of(name).is_none() && *name != FORMAT_FILE && *name != DURABLE_FILE);
        if !has_format && (strangers.is_some() || !numbers.is_empty()) {
            let what = strangers.cloned().unwrap_or_else(|| name_of(numbers[0]));
            return Err(StoreError::Foreign { place, what });
        }
        let epoch = match has_format {
            true => epoch_of(&files, &numbers)?,
            false => None,
        };
        let epoch = match epoch {
            Some(epoch) => epoch,
            None => {
                // One without a segment was never used.
                if has_format {
                    files.remove(FORMAT_FILE).map_err(failed("write"))?;
                }
                write_format(&files, fresh).map_err(failed("write"))?;
                fresh
            }
        };
        let mut scan = Scan::default();
        let mut kept = Kept::default();
        let mut sealed: VecDeque<Sealed> = VecDeque::new();
        let mut empty = Vec::new();
        for (at, number) in numbers.iter().enumerate() {
            let is_last = at + 1 == numbers.len();
            let name = name_of(*number);
            let bytes = files.read(&name).map_err(failed("read"))?;
            let Some(before) = header(&bytes, &name)? else {
                // Its process ended before it could be used.
                empty.push(name);
                continue;
            };
            if at == 0 {
                (scan.newest, scan.floor) = (before, before);
            } else if before > scan.newest {
                tracing::error!(
                    place,
                    segment = name,
                    "events from {} to {before} are missing before this segment: what came earlier is no history any more",
                    scan.newest + 1
                );
                (scan.newest, scan.floor) = (before, before);
                kept = Kept::default();
                reader.broken();
            } else if before < scan.newest {
                return Err(StoreError::Damaged {
                    file: name,
                    at: 8,
                    why: "its place in the order is another one",
                });
            }
            let length = scan.segment(&name, &bytes, is_last, |record| {
                match &record {
                    Record::Event(stored) | Record::Kept(stored) => kept.note(stored, &settings),
                    Record::Removal(_, topic) => kept.remove(topic),
                    Record::Reserved(..) | Record::Closed(_) => {}
                }
                reader.record(record);
            })?;
            if length < bytes.len() {
                tracing::warn!(place, segment = name, at = length, "its torn end is cut off");
                let mut file = files.open(&name).map_err(failed("write"))?;
                file.cut(length as u64).and_then(|()| file.sync()).map_err(failed("write"))?;
            }
            match scan.has_events {
                true => sealed.push_back(Sealed { name, bytes: length as u64, unix_ms: scan.unix_ms }),
                false => empty.push(name),
            }
        }
        let durable = durable(&files);
        let is_in_order = scan.closed.is_some() || numbers.is_empty();
        let sequence = match scan.closed {
            Some(closed) => closed.max(scan.newest),
            None => scan.reserved.max(scan.newest),
        };
        // Under the strictest promise nobody has heard of what the disk did not have.
        let may_lack = scan.promise != Promise::Always.code() || scan.newest < durable;
        let hole = if !is_in_order && may_lack { sequence } else { 0 };
        let number = numbers.last().map_or(1, |last| last + 1);
        let reserved = sequence + RESERVED_EACH;
        let (current, length) =
            begin(&files, number, scan.newest, reserved, settings.promise).map_err(failed("write"))?;
        // The new segment says all that these did.
        for name in empty {
            files.remove(&name).map_err(failed("write"))?;
        }
        let log = Log {
            files,
            settings,
            sealed,
            current,
            name: name_of(number),
            number,
            length,
            begun: length,
            is_torn: false,
            has_debris: false,
            unix_ms: 0,
            since_ms: 0,
            sequence: scan.newest,
            reserved,
            kept,
        };
        Ok((log, Opening { epoch, sequence, hole, floor: scan.floor }))
    }

    /// Up to where sequences may be given.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Writes records behind what is there. They are on the disk after the next
    /// [`Log::sync`]. On an error nothing of them is in the log.
    pub fn append(&mut self, records: &[u8], newest: u64, unix_ms: u64) -> io::Result<()> {
        self.mend()?;
        if self.length > HEADER_BYTES as u64
            && self.length + records.len() as u64 > self.settings.segment_bytes
        {
            self.roll()?;
        }
        let appended = self.current.append(records);
        if appended.is_err() {
            self.is_torn = true;
            // It is tried again before anything else is written.
            let _ = self.mend();
        }
        appended?;
        self.length += records.len() as u64;
        self.sequence = newest.max(self.sequence);
        if unix_ms > 0 {
            self.unix_ms = unix_ms;
            self.since_ms = if self.since_ms == 0 { unix_ms } else { self.since_ms };
        }
        Ok(())
    }

    /// True if the store takes more than it may, and has something to remove.
    pub fn is_over(&self) -> bool {
        self.bytes() > self.settings.bytes_max && !self.sealed.is_empty()
    }

    /// True if a rule retains the newest event of a topic.
    pub fn retains(&self, topic: &Topic) -> bool {
        self.settings.rules.of(topic.as_str()).is_some_and(|rule| rule.retain)
    }

    /// An event of the records that were appended.
    pub fn note(&mut self, stored: &Stored) {
        self.kept.note(stored, &self.settings);
    }

    /// A removal of them.
    pub fn note_removal(&mut self, topic: &Topic) {
        self.kept.remove(topic);
    }

    /// What was appended is there for good.
    pub fn sync(&mut self) -> io::Result<()> {
        self.current.sync()?;
        let mut note = self.sequence.to_le_bytes().to_vec();
        note.extend_from_slice(&crc32fast::hash(&note).to_le_bytes());
        // It only helps to tell a loss; the log is what counts.
        if let Err(error) = self.files.note(DURABLE_FILE, &note) {
            tracing::debug!(%error, "the note of what is on the disk is not written");
        }
        Ok(())
    }

    /// Takes away what was appended since the log had this end, as far as that is possible: the disk
    /// did not say that it has it.
    pub fn take_back(&mut self, end: End) {
        // It may be the first of a segment that was begun since.
        self.length = if end.number == self.number { end.length } else { self.begun };
        self.sequence = end.sequence;
        self.is_torn = true;
        let _ = self.mend();
    }

    /// Where the log ends.
    pub fn end(&self) -> End {
        End { number: self.number, length: self.length, sequence: self.sequence }
    }

    /// Takes away what an append or the begin of a segment has left that failed: nothing is written
    /// before that is gone.
    fn mend(&mut self) -> io::Result<()> {
        if self.has_debris {
            match self.files.remove(&name_of(self.number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.files.sync_names()?,
            }
            self.has_debris = false;
        }
        if self.is_torn {
            self.current.cut(self.length)?;
            self.current.sync()?;
            self.is_torn = false;
        }
        Ok(())
    }

    /// Reserves more sequences, if `given` is near the end of those that are.
    pub fn reserve(&mut self, given: u64) -> io::Result<()> {
        if given + RESERVED_EACH / 2 < self.reserved {
            return Ok(());
        }
        let reserved = given + RESERVED_EACH;
        self.write_reserved(reserved)?;
        self.reserved = reserved;
        Ok(())
    }

    /// Writes and syncs something of no consequence: whether the disk takes anything.
    pub fn probe(&mut self) -> io::Result<()> {
        self.write_reserved(self.reserved)
    }

    fn write_reserved(&mut self, reserved: u64) -> io::Result<()> {
        let mut word = Vec::new();
        record::write_reserved(&mut word, reserved, self.settings.promise.code());
        let end = self.end();
        self.append(&word, 0, 0)?;
        let synced = self.sync();
        if synced.is_err() {
            self.take_back(end);
        }
        synced
    }

    /// Says that the log is left in order, and that this was the newest sequence.
    pub fn close(&mut self, given: u64) -> io::Result<()> {
        let mut word = Vec::new();
        record::write_closed(&mut word, given.max(self.sequence));
        self.append(&word, 0, 0)?;
        self.sync()
    }

    /// Begins another segment.
    fn roll(&mut self) -> io::Result<()> {
        self.current.sync()?;
        let (number, promise) = (self.number + 1, self.settings.promise);
        let begun = begin(&self.files, number, self.sequence, self.reserved, promise);
        self.has_debris = begun.is_err();
        let (current, length) = begun?;
        let name = std::mem::replace(&mut self.name, name_of(number));
        self.sealed.push_back(Sealed { name, bytes: self.length, unix_ms: self.unix_ms });
        (self.current, self.length, self.number) = (current, length, number);
        self.begun = length;
        (self.unix_ms, self.since_ms) = (0, 0);
        Ok(())
    }

    /// Segments that do not grow any more.
    pub fn segments(&self) -> usize {
        self.sealed.len()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.length + self.sealed.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    /// Removes the oldest segments of which nothing is promised any more: too old by all rules, or
    /// more than the store may take. At most one at a time; true if there may be more.
    pub fn forget(&mut self, unix_ms: u64) -> io::Result<bool> {
        let age_ms = self.settings.age_ms_max;
        // One that grows slowly must not keep what is too old.
        if self.since_ms > 0 && unix_ms.saturating_sub(self.since_ms) > age_ms / 4 {
            self.mend()?;
            self.roll()?;
        }
        let Some(oldest) = self.sealed.front() else { return Ok(false) };
        let is_old = unix_ms.saturating_sub(oldest.unix_ms) > age_ms;
        if !is_old && self.bytes() <= self.settings.bytes_max {
            return Ok(false);
        }
        let (name, before) = (oldest.name.clone(), self.end());
        let bytes = self.files.read(&name)?;
        let mut at = HEADER_BYTES;
        let mut again = Vec::new();
        while let Found::Record(found, end) = record::read(&bytes, at) {
            if let Record::Event(stored) | Record::Kept(stored) = found
                && self.kept.has(&stored)
            {
                let Stored { sequence, unix_ms, event, idempotency } = &stored;
                record::write_event(&mut again, true, *sequence, *unix_ms, event, idempotency.as_ref());
            }
            at = end;
        }
        if !again.is_empty() {
            self.append(&again, 0, 0)?;
            if let Err(error) = self.current.sync() {
                self.take_back(before);
                return Err(error);
            }
        }
        self.files.remove(&name)?;
        self.sealed.pop_front();
        Ok(true)
    }
}

/// What was found in the segments so far.
#[derive(Debug, Default)]
struct Scan {
    newest: u64,
    floor: u64,
    reserved: u64,
    promise: u8,
    /// The last record says that the log was left in order.
    closed: Option<u64>,
    /// Of the last segment.
    has_events: bool,
    unix_ms: u64,
}

impl Scan {
    /// Reads a segment. Returns where its whole records end.
    fn segment(
        &mut self,
        name: &str,
        bytes: &[u8],
        is_last: bool,
        mut each: impl FnMut(Record),
    ) -> Result<usize, StoreError> {
        let damaged = |at: usize, why| StoreError::Damaged { file: name.to_string(), at, why };
        let mut at = HEADER_BYTES;
        (self.has_events, self.unix_ms) = (false, 0);
        loop {
            let (found, end) = match record::read(bytes, at) {
                Found::Record(found, end) => (found, end),
                Found::End => return Ok(at),
                Found::Nothing if is_last && !has_record_behind(bytes, at) => {
                    self.closed = None;
                    return Ok(at);
                }
                Found::Nothing => return Err(damaged(at, "a record is broken, and others follow")),
            };
            self.closed = None;
            match &found {
                Record::Event(Stored { sequence, .. }) | Record::Removal(sequence, _) => {
                    if *sequence <= self.newest {
                        return Err(damaged(at, "its sequences do not rise"));
                    }
                    self.newest = *sequence;
                    self.has_events = true;
                }
                Record::Kept(_) => self.has_events = true,
                Record::Reserved(sequence, promise) => {
                    (self.reserved, self.promise) = (self.reserved.max(*sequence), *promise);
                }
                Record::Closed(sequence) => self.closed = Some(*sequence),
            }
            if let Record::Event(stored) = &found {
                self.unix_ms = stored.unix_ms;
            }
            each(found);
            at = end;
        }
    }
}

/// True if a whole record begins anywhere behind `at`.
fn has_record_behind(bytes: &[u8], at: usize) -> bool {
    let is_kind =
        |begin: usize| bytes.get(begin + record::HEAD_BYTES).is_some_and(|kind| (1..=5).contains(kind));
    (at + 1..bytes.len())
        .any(|begin| is_kind(begin) && matches!(record::read(bytes, begin), Found::Record(..)))
}

/// The newest sequence before a segment; `None` if it was never begun. Had it been, and had events,
/// the next segment would say so.
pub(super) fn header(bytes: &[u8], name: &str) -> Result<Option<u64>, StoreError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let (said, sum) = header.split_at(HEADER_BYTES - 4);
    if said[..8] != MAGIC[..] || crc32fast::hash(said).to_le_bytes() != sum {
        return Err(StoreError::Damaged { file: name.into(), at: 0, why: "its begin is broken" });
    }
    Ok(Some(u64::from_le_bytes(said[8..].try_into().expect("8 bytes"))))
}

/// Makes a segment that reserves sequences; it is there for good.
fn begin<F: Files>(
    files: &F,
    number: u64,
    before: u64,
    reserved: u64,
    promise: Promise,
) -> io::Result<(F::File, u64)> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&before.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    record::write_reserved(&mut bytes, reserved, promise.code());
    let mut file = files.create(&name_of(number))?;
    file.append(&bytes)?;
    file.sync()?;
    files.sync_names()?;
    Ok((file, bytes.len() as u64))
}

fn write_format(files: &impl Files, epoch: Epoch) -> io::Result<()> {
    let mut file = files.create(FORMAT_FILE)?;
    let text = format!("fanwave store\nformat {FORMAT}\nepoch {epoch}\n");
    let sum = crc32fast::hash(text.as_bytes());
    file.append(format!("{text}sum {sum:08x}\n").as_bytes())?;
    file.sync()?;
    files.sync_names()
}

/// The epoch of a store; `None` if it was never used.
fn epoch_of(files: &impl Files, segments: &[u64]) -> Result<Option<Epoch>, StoreError> {
    let read = files.read(FORMAT_FILE);
    let bytes = read.map_err(|source| StoreError::Io { what: "read", place: files.place(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let format = lines.next().filter(|line| *line == "fanwave store").and(lines.next());
    let format = format.and_then(|line| line.strip_prefix("format ")?.parse::<u32>().ok());
    if let Some(found) = format
        && found != FORMAT
    {
        return Err(StoreError::Format { place: files.place(), found, known: FORMAT });
    }
    let epoch = lines.next().and_then(|line| line.strip_prefix("epoch ")).and_then(|epoch| {
        // An id is read by the same rules.
        let id: crate::event::EventId = format!("{epoch}-0").parse().ok()?;
        Some(id.epoch)
    });
    let sum = |epoch: &Epoch| {
        let text = format!("fanwave store\nformat {FORMAT}\nepoch {epoch}\n");
        format!("{text}sum {:08x}\n", crc32fast::hash(text.as_bytes()))
    };
    match epoch.filter(|epoch| format.is_some() && bytes == sum(epoch).as_bytes()) {
        Some(epoch) => Ok(Some(epoch)),
        None if segments.is_empty() => Ok(None),
        None => {
            Err(StoreError::Damaged { file: FORMAT_FILE.into(), at: 0, why: "it is not as it was written" })
        }
    }
}

/// Up to where the disk had all, as it was noted last.
fn durable(files: &impl Files) -> u64 {
    let Ok(bytes) = files.read(DURABLE_FILE) else { return 0 };
    let Some((sequence, sum)) = bytes.split_first_chunk::<8>() else { return 0 };
    let is_whole = sum == crc32fast::hash(sequence).to_le_bytes();
    if is_whole { u64::from_le_bytes(*sequence) } else { 0 }
}

//! The log of a store: segments, one behind the other, of which the last one grows.
//!
//! ```text
//!   DIR/format            the format and the epoch (`format`)
//!   DIR/durable           up to where the disk had it all, as it was noted last (`format`)
//!   DIR/0000000001.log    a segment (`segment`)
//!   DIR/0000000002.log
//! ```
//!
//! Invariants worth naming:
//! - Sequences of events and removals rise from record to record. A segment knows the newest one
//!   before it, so one that is missing or too short is noticed by the next.
//! - No sequence is given beyond what a synced record reserves. After an end without order the next
//!   ones come from behind that, so none is given twice.
//! - Each start begins a segment (`open`). All but the last are on the disk for good. Each record
//!   says how much of its segment was too: what is broken beyond that is a torn end and is cut off;
//!   what is broken before is damage, and then nothing is opened.
//! - A sync that failed proves nothing when it succeeds later: the kernel has taken the pages for
//!   written (fsync(2)). What the disk may lack is cut off, and written again or told as a hole.
//! - Each segment says up to where events may be missing, so that is told in all later lives.
//! - A segment is removed whole. What is a retained value of it is written again before.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::files::{Files, Grows};
use super::format::Note;
use super::kept::Kept;
use super::progress::Progress;
use super::record::{self, Record, Seal, Stored};
use super::segment::{self, Begin, HEADER_BYTES, Segment};
use super::{Promise, Settings};
use crate::event::{Epoch, Topic};

/// Sequences that one record reserves.
pub(super) const RESERVED_EACH: u64 = 1 << 20;

/// A segment that does not grow any more.
#[derive(Debug)]
pub(super) struct Sealed {
    pub name: String,
    pub bytes: u64,
    /// When its newest event was taken in.
    pub unix_ms: u64,
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

/// Why something was not appended.
#[derive(Debug)]
pub(super) struct NotWritten {
    pub error: io::Error,
    /// Some of it may be in the log all the same, when the process ends now.
    pub is_unknown: bool,
}

impl From<io::Error> for NotWritten {
    fn from(error: io::Error) -> NotWritten {
        NotWritten { error, is_unknown: false }
    }
}

/// What came of a look for what is promised no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Forgotten {
    /// There is nothing to remove.
    Nothing,
    /// A segment has gone.
    Segment,
    /// So has this one, and its record at this place was broken: retained values of it may be lost.
    Damaged(String, usize),
}

/// The log.
#[derive(Debug)]
pub(super) struct Log<F: Files> {
    pub(super) files: F,
    pub(super) settings: Settings,
    pub(super) sealed: VecDeque<Sealed>,
    current: F::File,
    name: String,
    number: u64,
    seal: Seal,
    /// Whole records of the current segment end here.
    length: u64,
    /// The disk has it up to here for good; `synced <= length`.
    synced: u64,
    /// The newest sequence up to there.
    synced_sequence: u64,
    /// What was appended since then, under [`Promise::Interval`].
    unsynced: Vec<u8>,
    /// What the disk may have lost, or a word of that; it is written before anything else.
    again: Vec<u8>,
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
    /// Events up to here may be missing.
    hole: u64,
    kept: Kept,
    progress: Arc<Progress>,
    /// Up to here the log had all, before the end of it was taken back that is in `again`.
    taken_back: u64,
}

/// The name of a segment.
pub(super) fn name_of(number: u64) -> String {
    format!("{number:010}.log")
}

/// The number of a segment; `None` if that is not a name of one.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

impl<F: Files> Log<F> {
    /// Begins the segment of this number behind those that are there.
    pub(super) fn begin(
        files: F,
        settings: Settings,
        sealed: VecDeque<Sealed>,
        kept: Kept,
        (number, begin): (u64, Begin),
    ) -> io::Result<Log<F>> {
        let name = name_of(number);
        let (current, seal, length) = segment::begin(&files, &name, begin)?;
        let log = Log {
            files,
            settings,
            sealed,
            current,
            name,
            number,
            seal,
            length,
            synced: length,
            synced_sequence: begin.before,
            unsynced: Vec::new(),
            again: Vec::new(),
            is_torn: false,
            has_debris: false,
            unix_ms: 0,
            since_ms: 0,
            sequence: begin.before,
            reserved: begin.reserved,
            hole: begin.hole,
            kept,
            progress: Arc::default(),
            taken_back: 0,
        };
        log.note_durable();
        Ok(log)
    }

    /// How far it is, for who reads it.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// True while what was appended before is still to be written again, or to be taken away.
    pub fn is_behind(&self) -> bool {
        self.is_torn || !self.again.is_empty()
    }

    /// Up to where sequences may be given.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Writes records behind what is there. They are on the disk after the next [`Log::sync`]. On
    /// an error nothing of them is in the log.
    pub fn append(&mut self, records: &mut [u8], newest: u64, unix_ms: u64) -> Result<(), NotWritten> {
        self.mend()?;
        if self.length > HEADER_BYTES as u64
            && self.length + records.len() as u64 > self.settings.segment_bytes
        {
            self.roll()?;
        }
        self.write(records)?;
        self.sequence = newest.max(self.sequence);
        if unix_ms > 0 {
            self.unix_ms = unix_ms;
            self.since_ms = if self.since_ms == 0 { unix_ms } else { self.since_ms };
        }
        Ok(())
    }

    /// The same for what is fit for the current segment.
    fn write(&mut self, records: &mut [u8]) -> Result<(), NotWritten> {
        record::seal(records, self.seal.behind(self.length), self.synced);
        if let Err(error) = self.current.append(records) {
            // A disk that takes nothing at all, as a read-only one, leaves nothing to cut off.
            self.is_torn = self.current.bytes().ok() != Some(self.length);
            // It is tried again before anything else is written.
            let is_unknown = self.cut().is_err();
            return Err(NotWritten { error, is_unknown });
        }
        self.length += records.len() as u64;
        if self.settings.promise == Promise::Interval {
            self.unsynced.extend_from_slice(records);
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

    /// Bytes that wait for a sync, as far as they are kept in memory.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// What was appended is there for good. On an error under [`Promise::Always`] it is not in the
    /// log; under [`Promise::Interval`] it is written again before anything else; under
    /// [`Promise::Never`] it is missing, and a subscriber that comes back later is told so.
    pub fn sync(&mut self) -> io::Result<()> {
        if let Err(error) = self.current.sync() {
            self.distrust();
            // It is tried again before anything else is written.
            let _ = self.cut();
            return Err(error);
        }
        self.synced = self.length;
        self.synced_sequence = self.sequence;
        self.unsynced.clear();
        self.note_durable();
        Ok(())
    }

    fn note_durable(&self) {
        let (segment, sequence, reserved) = (self.number, self.synced_sequence, self.reserved);
        Note { segment, sequence, reserved }.write(&self.files);
    }

    /// The disk did not say that it has what was appended since the last sync.
    fn distrust(&mut self) {
        match self.settings.promise {
            Promise::Always => self.sequence = self.synced_sequence,
            Promise::Interval => {
                let written = self.progress.take_back(self.synced_sequence);
                self.taken_back = self.taken_back.max(written);
                self.again.append(&mut self.unsynced);
            }
            Promise::Never if self.length > self.synced => {
                self.hole = self.hole.max(self.sequence);
                self.progress.lose(self.hole);
                self.sequence = self.synced_sequence;
                self.again.clear();
                let (reserved, promise) = (self.reserved, self.promise());
                record::write_reserved(&mut self.again, reserved, promise, self.hole);
            }
            Promise::Never => {}
        }
        self.length = self.synced;
        self.is_torn = true;
    }

    fn promise(&self) -> u8 {
        self.settings.promise.code()
    }

    /// Takes away what is behind the whole records.
    fn cut(&mut self) -> io::Result<()> {
        if !self.is_torn {
            return Ok(());
        }
        self.progress.cut();
        self.current.cut(self.length)?;
        if let Err(error) = self.current.sync() {
            self.distrust();
            return Err(error);
        }
        self.is_torn = false;
        self.synced = self.length;
        self.unsynced.clear();
        // Else the newest ones are still to be written.
        if self.again.is_empty() {
            self.synced_sequence = self.sequence;
        }
        Ok(())
    }

    /// Takes away what an append, a sync or the begin of a segment has left that failed, and writes
    /// again what may be lost: nothing is written before that is done.
    fn mend(&mut self) -> io::Result<()> {
        if self.has_debris {
            match self.files.remove(&name_of(self.number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.files.sync_names()?,
            }
            self.has_debris = false;
        }
        self.cut()?;
        if !self.again.is_empty() {
            let mut again = std::mem::take(&mut self.again);
            if let Err(NotWritten { error, .. }) = self.write(&mut again) {
                self.again = again;
                return Err(error);
            }
            self.sync()?;
        }
        self.progress.wrote(std::mem::take(&mut self.taken_back));
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
        self.note_durable();
        Ok(())
    }

    /// Writes and syncs something of no consequence: whether the disk takes anything.
    pub fn probe(&mut self) -> io::Result<()> {
        self.write_reserved(self.reserved)
    }

    fn write_reserved(&mut self, reserved: u64) -> io::Result<()> {
        let mut word = Vec::new();
        record::write_reserved(&mut word, reserved, self.promise(), self.hole);
        self.append(&mut word, 0, 0).map_err(|not_written| not_written.error)?;
        self.sync()
    }

    /// Says that the log is left in order, and that this was the newest sequence.
    pub fn close(&mut self, given: u64) -> io::Result<()> {
        let mut word = Vec::new();
        record::write_closed(&mut word, given.max(self.sequence));
        self.append(&mut word, 0, 0).map_err(|not_written| not_written.error)?;
        self.sync()
    }

    /// Begins another segment.
    fn roll(&mut self) -> io::Result<()> {
        self.sync()?;
        let (number, name) = (self.number + 1, name_of(self.number + 1));
        let begin = Begin {
            before: self.sequence,
            reserved: self.reserved,
            promise: self.promise(),
            hole: self.hole,
        };
        let begun = segment::begin(&self.files, &name, begin);
        self.has_debris = begun.is_err();
        let (current, seal, length) = begun?;
        let name = std::mem::replace(&mut self.name, name);
        self.sealed.push_back(Sealed { name, bytes: self.length, unix_ms: self.unix_ms });
        (self.current, self.seal, self.number) = (current, seal, number);
        (self.length, self.synced, self.synced_sequence) = (length, length, self.sequence);
        (self.unix_ms, self.since_ms) = (0, 0);
        self.note_durable();
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

    /// Removes the oldest segment if nothing of it is promised any more: it is too old, or the store
    /// takes more than it may.
    pub fn forget(&mut self, unix_ms: u64) -> io::Result<Forgotten> {
        let age_ms = self.settings.age_ms_max;
        // One that grows slowly must not keep what is too old.
        if self.since_ms > 0 && unix_ms.saturating_sub(self.since_ms) > age_ms / 4 {
            self.mend()?;
            self.roll()?;
        }
        let Some(oldest) = self.sealed.front() else { return Ok(Forgotten::Nothing) };
        let is_old = unix_ms.saturating_sub(oldest.unix_ms) > age_ms;
        if !is_old && self.bytes() <= self.settings.bytes_max {
            return Ok(Forgotten::Nothing);
        }
        let name = oldest.name.clone();
        let bytes = self.files.read(&name)?;
        let mut again = Vec::new();
        let broken = match Segment::new(&bytes) {
            Ok(segment) => segment.salvage(|record| self.keep(&record, &mut again)),
            Err(_) => Some(0),
        };
        if !again.is_empty() {
            self.append(&mut again, 0, 0).map_err(|not_written| not_written.error)?;
            self.sync()?;
        }
        self.files.remove(&name)?;
        self.sealed.pop_front();
        Ok(broken.map_or(Forgotten::Segment, |at| Forgotten::Damaged(name, at)))
    }

    /// Writes a record again, if it is a retained value.
    fn keep(&self, record: &Record, again: &mut Vec<u8>) {
        if let Record::Event(stored) | Record::Kept(stored) = record
            && self.kept.has(stored)
        {
            let Stored { sequence, unix_ms, event, idempotency } = stored;
            record::write_event(again, true, *sequence, *unix_ms, event, idempotency.as_ref());
        }
    }
}

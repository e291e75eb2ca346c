//! Opens a log: what its segments hold, where its end is torn, and what may be missing.

use std::collections::VecDeque;
use std::io;

use super::files::{Files, Grows};
use super::format::{self, FORMAT_FILE, NOTE_FILE, Note};
use super::kept::Kept;
use super::log::{Log, Opening, RESERVED_EACH, Reader, Sealed, name_of, number_of};
use super::record::{Found, Record, Stored};
use super::segment::{Begin, HEADER_BYTES, NoSegment, Segment};
use super::{Promise, Settings, StoreError};
use crate::event::Epoch;

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
        let epoch = epoch(&files, &names, &numbers, fresh)?;
        let mut scan = Scan::default();
        let mut kept = Kept::default();
        let mut sealed: VecDeque<Sealed> = VecDeque::new();
        let mut empty = Vec::new();
        for (at, number) in numbers.iter().enumerate() {
            let is_last = at + 1 == numbers.len();
            let name = name_of(*number);
            let bytes = files.read(&name).map_err(failed("read"))?;
            let segment = match Segment::new(&bytes) {
                Ok(segment) => segment,
                // Had it been begun, and had events, the next one would say so.
                Err(NoSegment::NotBegun) => {
                    empty.push(name);
                    continue;
                }
                Err(NoSegment::Broken) => {
                    return Err(StoreError::Damaged { file: name, at: 0, why: "its begin is broken" });
                }
            };
            if scan.follows(&segment, &place, &name)? {
                kept = Kept::default();
                reader.broken();
            }
            scan.last = *number;
            let length = scan.segment(&name, &segment, is_last, |record| {
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
                file.cut(length as u64).map_err(failed("write"))?;
            }
            if is_last {
                // Its process may have ended before the disk had the rest, and the kernel may take
                // for written what is not (fsync(2)). From now on it counts as written.
                let rest = segment.synced(scan.last_at).unwrap_or(0);
                files.write_over(&name, rest as u64, &bytes[rest..length]).map_err(failed("write"))?;
                let mut file = files.open(&name).map_err(failed("write"))?;
                file.sync().map_err(failed("sync"))?;
            }
            match scan.has_events {
                true => sealed.push_back(Sealed { name, bytes: length as u64, unix_ms: scan.unix_ms }),
                false => empty.push(name),
            }
        }
        let (sequence, hole) = match numbers.is_empty() {
            true => (0, 0),
            false => scan.end(Note::read(&files)),
        };
        let number = numbers.last().map_or(1, |last| last + 1);
        let promise = settings.promise.code();
        let begin = Begin { before: scan.newest, reserved: sequence + RESERVED_EACH, promise, hole };
        let log = Log::begin(files, settings, sealed, kept, (number, begin)).map_err(failed("write"))?;
        // The new segment says all that these did.
        for name in empty {
            log.files.remove(&name).map_err(failed("write"))?;
        }
        Ok((log, Opening { epoch, sequence, hole, floor: scan.floor }))
    }
}

/// The epoch of what is there; without a segment it is a new one.
fn epoch<F: Files>(files: &F, names: &[String], numbers: &[u64], fresh: Epoch) -> Result<Epoch, StoreError> {
    let failed = |source| StoreError::Io { what: "write", place: files.place(), source };
    let has_format = names.iter().any(|name| name == FORMAT_FILE);
    let strangers =
        names.iter().find(|name| number_of(name).is_none() && *name != FORMAT_FILE && *name != NOTE_FILE);
    if !has_format && (strangers.is_some() || !numbers.is_empty()) {
        let what = strangers.cloned().unwrap_or_else(|| name_of(numbers[0]));
        return Err(StoreError::Foreign { place: files.place(), what });
    }
    if !numbers.is_empty() {
        return format::epoch(files);
    }
    // One without a segment was never used, or nobody knows any more which sequences were given.
    if has_format {
        if !format::is_ours(&format::check(files)?) {
            return Err(StoreError::Foreign { place: files.place(), what: FORMAT_FILE.to_string() });
        }
        files.remove(FORMAT_FILE).map_err(failed)?;
    }
    format::write(files, fresh).map_err(failed)?;
    Ok(fresh)
}

/// What was found in the segments so far.
#[derive(Debug, Default)]
struct Scan {
    newest: u64,
    floor: u64,
    reserved: u64,
    promise: u8,
    /// Events up to here may be missing, as a former life knew.
    hole: u64,
    /// The last record says that the log was left in order.
    closed: Option<u64>,
    /// The number of the last segment that was begun; 0 before the first.
    last: u64,
    /// Of the last segment.
    has_events: bool,
    unix_ms: u64,
    /// Where its last whole record is.
    last_at: usize,
}

impl Scan {
    /// Looks what is before a segment. True if something is missing there.
    fn follows(&mut self, segment: &Segment<'_>, place: &str, name: &str) -> Result<bool, StoreError> {
        let before = segment.before;
        if self.last > 0 && before < self.newest {
            let why = "its place in the order is another one";
            return Err(StoreError::Damaged { file: name.to_string(), at: 8, why });
        }
        let is_short = self.last > 0 && before > self.newest;
        if is_short {
            tracing::error!(
                place,
                segment = name,
                "events from {} to {before} are missing before this segment: what came earlier is no history any more",
                self.newest + 1
            );
        }
        if self.last == 0 || is_short {
            (self.newest, self.floor) = (before, before);
        }
        Ok(is_short)
    }

    /// Reads a segment. Returns where its whole records end.
    fn segment(
        &mut self,
        name: &str,
        segment: &Segment<'_>,
        is_last: bool,
        mut each: impl FnMut(Record),
    ) -> Result<usize, StoreError> {
        let mut at = HEADER_BYTES;
        (self.has_events, self.unix_ms, self.last_at) = (false, 0, at);
        loop {
            let (found, end, why) = match segment.at(at) {
                Found::End => return Ok(at),
                Found::Record(found, end) if self.rises(&found) => (Some(found), end, ""),
                Found::Record(..) => (None, at, "its sequences do not rise"),
                Found::Nothing => (None, at, "a record is broken that the disk had"),
            };
            let Some(found) = found else {
                // The disk has all of those that others follow.
                if !is_last || segment.was_synced(at) {
                    return Err(StoreError::Damaged { file: name.to_string(), at, why });
                }
                self.closed = None;
                return Ok(at);
            };
            self.closed = None;
            match &found {
                Record::Event(Stored { sequence, .. }) | Record::Removal(sequence, _) => {
                    self.newest = *sequence;
                    self.has_events = true;
                }
                Record::Kept(_) => self.has_events = true,
                Record::Reserved(sequence, promise, hole) => {
                    (self.reserved, self.promise) = (self.reserved.max(*sequence), *promise);
                    self.hole = self.hole.max(*hole);
                }
                Record::Closed(sequence) => self.closed = Some(*sequence),
            }
            if let Record::Event(stored) = &found {
                self.unix_ms = stored.unix_ms;
            }
            each(found);
            (self.last_at, at) = (at, end);
        }
    }

    fn rises(&self, record: &Record) -> bool {
        match record {
            Record::Event(Stored { sequence, .. }) | Record::Removal(sequence, _) => *sequence > self.newest,
            Record::Kept(_) | Record::Reserved(..) | Record::Closed(_) => true,
        }
    }

    /// The newest sequence that may have been given, and up to where events may be missing.
    fn end(&self, note: Note) -> (u64, u64) {
        // The last segments have gone, or what the disk had of them.
        let is_short = self.last < note.segment || self.newest < note.sequence;
        if is_short {
            tracing::error!(
                segment = name_of(note.segment),
                "the disk had all events up to {}, and some of them are not there any more",
                note.sequence
            );
        }
        match self.closed.filter(|_| !is_short) {
            Some(closed) => (closed.max(self.newest), self.hole),
            None => {
                let sequence = self.reserved.max(note.reserved).max(self.newest);
                // Under the strictest promise nobody has heard of what the disk did not have.
                let may_lack = is_short || self.promise != Promise::Always.code();
                (sequence, if may_lack { sequence } else { self.hole })
            }
        }
    }
}

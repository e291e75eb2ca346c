//! The small files of a store: what it is, and a note of what the disk has.
//!
//! ```text
//!   DIR/format    "fanwave store", its format, its epoch, and a checksum; four lines
//!   DIR/durable   number of the segment that grows, newest sequence in it that the disk has, last
//!                 sequence that is reserved (u64 each) | CRC-32 (u32); not synced
//! ```
//!
//! The note is never ahead of the segments. It helps to tell when some of them have gone, or have
//! lost their end; what is in the segments is what counts.

use std::io;

use super::StoreError;
use super::files::{Files, Grows};
use crate::event::Epoch;

/// The format of all files of a store. Another one is not read.
pub(super) const FORMAT: u32 = 2;
pub(super) const FORMAT_FILE: &str = "format";
pub(super) const NOTE_FILE: &str = "durable";

/// What the file of the format begins with.
const FIRST_LINE: &str = "fanwave store";

fn text(epoch: Epoch) -> String {
    let text = format!("{FIRST_LINE}\nformat {FORMAT}\nepoch {epoch}\n");
    format!("{text}sum {:08x}\n", crc32fast::hash(text.as_bytes()))
}

/// Writes what the store is; it is there for good.
pub(super) fn write(files: &impl Files, epoch: Epoch) -> io::Result<()> {
    let mut file = files.create(FORMAT_FILE)?;
    file.append(text(epoch).as_bytes())?;
    file.sync()?;
    files.sync_names()
}

/// The epoch of a store that has segments.
pub(super) fn epoch(files: &impl Files) -> Result<Epoch, StoreError> {
    let bytes = check(files)?;
    let epoch = String::from_utf8_lossy(&bytes).lines().nth(2).and_then(|line| {
        // An id is read by the same rules.
        let id: crate::event::EventId = format!("{}-0", line.strip_prefix("epoch ")?).parse().ok()?;
        Some(id.epoch)
    });
    let damaged = StoreError::Damaged { file: FORMAT_FILE.into(), at: 0, why: "it is not as it was written" };
    epoch.filter(|epoch| bytes == text(*epoch).as_bytes()).ok_or(damaged)
}

/// Fails if it says that the store is of another format. Returns what it says.
pub(super) fn check(files: &impl Files) -> Result<Vec<u8>, StoreError> {
    let read = files.read(FORMAT_FILE);
    let bytes = read.map_err(|source| StoreError::Io { what: "read", place: files.place(), source })?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let format = lines.next().filter(|line| *line == FIRST_LINE).and(lines.next());
    match format.and_then(|line| line.strip_prefix("format ")?.parse::<u32>().ok()) {
        Some(found) if found != FORMAT => {
            Err(StoreError::Format { place: files.place(), found, known: FORMAT })
        }
        _ => Ok(bytes),
    }
}

/// True if a process may have begun to write this as what a store is, and have ended in the midst
/// of it: the file may be cut off, or be of zeros.
pub(super) fn is_ours(bytes: &[u8]) -> bool {
    let begin = &bytes[..bytes.len().min(FIRST_LINE.len())];
    FIRST_LINE.as_bytes().starts_with(begin) || bytes.iter().all(|byte| *byte == 0)
}

/// What the disk has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// The number of the segment that grows.
    pub segment: u64,
    /// The newest sequence that it had for good.
    pub sequence: u64,
    /// Sequences up to here may be given.
    pub reserved: u64,
}

impl Note {
    /// Writes it. It only helps to tell a loss, so it may fail.
    pub fn write(&self, files: &impl Files) {
        let mut bytes = Vec::with_capacity(28);
        for number in [self.segment, self.sequence, self.reserved] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        if let Err(error) = files.write_over(NOTE_FILE, 0, &bytes) {
            tracing::debug!(%error, "the note of what is on the disk is not written");
        }
    }

    /// The last one that was written whole; else nothing is known.
    pub fn read(files: &impl Files) -> Note {
        let Ok(bytes) = files.read(NOTE_FILE) else { return Note::default() };
        let Some((said, sum)) = bytes.split_first_chunk::<24>() else { return Note::default() };
        if sum != crc32fast::hash(said).to_le_bytes() {
            return Note::default();
        }
        let number = |at: usize| u64::from_le_bytes(said[at..at + 8].try_into().expect("8 bytes"));
        Note { segment: number(0), sequence: number(8), reserved: number(16) }
    }
}

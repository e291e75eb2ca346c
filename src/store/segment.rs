//! One segment of a log: its header, and the records behind that.
//!
//! ```text
//!   magic (8) | newest sequence before it (u64) | seal (u64) | CRC-32 (u32), then records
//! ```
//!
//! The seal is random. The checksums of the records begin with it (`record`). So what a publisher
//! says, or what a disk block held before, is never taken for a record.

use std::io;

use super::files::{Files, Grows};
use super::record::{self, Found, Record, Seal};

const MAGIC: &[u8; 8] = b"fanwave\n";
/// Bytes before the first record.
pub(super) const HEADER_BYTES: usize = 28;

/// The bytes of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    bytes: &'a [u8],
    /// With which its records are read.
    pub seal: Seal,
    /// The newest sequence before it.
    pub before: u64,
}

/// Why bytes are no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSegment {
    /// It was not begun: its process ended before it could be used.
    NotBegun,
    /// Its header is not as it was written.
    Broken,
}

impl<'a> Segment<'a> {
    /// Reads the header.
    pub fn new(bytes: &'a [u8]) -> Result<Segment<'a>, NoSegment> {
        // The header is synced before anything else is written. A disk that has not got it has
        // nothing, or a file of zeros.
        let is_empty = bytes.len() < HEADER_BYTES || bytes.iter().all(|byte| *byte == 0);
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>().filter(|_| !is_empty) else {
            return Err(NoSegment::NotBegun);
        };
        let (said, sum) = header.split_at(HEADER_BYTES - 4);
        if said[..8] != MAGIC[..] || crc32fast::hash(said).to_le_bytes() != sum {
            return Err(NoSegment::Broken);
        }
        let number = |at: usize| u64::from_le_bytes(said[at..at + 8].try_into().expect("8 bytes"));
        Ok(Segment { bytes, seal: Seal::new(number(16)), before: number(8) })
    }

    /// What is at a place; the first record is at [`HEADER_BYTES`].
    pub fn at(&self, at: usize) -> Found {
        record::read(self.bytes, at, self.seal)
    }

    /// Up to where the disk had it, as the record at `at` says.
    pub fn synced(&self, at: usize) -> Option<usize> {
        record::synced(self.bytes, at, self.seal).map(|synced| synced as usize)
    }

    /// True if a record behind `at` says that the disk had what is there.
    pub fn was_synced(&self, at: usize) -> bool {
        (at + 1..self.bytes.len()).any(|behind| self.synced(behind).is_some_and(|synced| synced > at))
    }

    /// Where the next whole record begins behind a broken one.
    pub fn next_behind(&self, at: usize) -> Option<usize> {
        (at + 1..self.bytes.len()).find(|behind| self.synced(*behind).is_some())
    }

    /// All its whole records, also those behind broken ones. Returns where the first broken one is.
    pub fn salvage(&self, mut each: impl FnMut(Record)) -> Option<usize> {
        let (mut at, mut broken) = (HEADER_BYTES, None);
        loop {
            match self.at(at) {
                Found::Record(record, end) => {
                    each(record);
                    at = end;
                }
                Found::End => return broken,
                Found::Nothing => {
                    broken = broken.or(Some(at));
                    match self.next_behind(at) {
                        Some(next) => at = next,
                        None => return broken,
                    }
                }
            }
        }
    }
}

/// What a segment begins with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begin {
    pub before: u64,
    pub reserved: u64,
    pub promise: u8,
    pub hole: u64,
}

/// Makes a segment under this name; it is there for good. Returns also its seal and its length.
pub(super) fn begin<F: Files>(files: &F, name: &str, begin: Begin) -> io::Result<(F::File, Seal, u64)> {
    // An epoch is a random number too.
    let seal = Seal::new(crate::event::Epoch::random()?.0);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&begin.before.to_le_bytes());
    bytes.extend_from_slice(&seal.number().to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    record::write_reserved(&mut bytes, begin.reserved, begin.promise, begin.hole);
    record::seal(&mut bytes[HEADER_BYTES..], seal.behind(HEADER_BYTES as u64), 0);
    let mut file = files.create(name)?;
    file.append(&bytes)?;
    file.sync()?;
    files.sync_names()?;
    Ok((file, seal, bytes.len() as u64))
}

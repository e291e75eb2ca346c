//! Reads the log while it grows, on a thread that is not the one that writes it.
//!
//! Invariants worth naming:
//! - What is given is an event whose checksum is right, in the order of the sequences, and nothing
//!   between two of them is left out. What may be gone is told (`floor`).
//! - Nothing is given beyond what is asked for. A sequence that was broadcast leaves the log with
//!   its segment, or where a disk did not take it; then the writer has said so before (`progress`).
//! - A segment is looked through once, in whole; then it is known which topics it has, and about
//!   where each sequence stands. So a topic that is rare costs next to nothing in segments without
//!   it.
//!
//! Not here: who asks, and how much (`hub/backfill`).

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::files::Glass;
use super::log::{name_of, number_of};
use super::progress::Progress;
use super::record::{self, Found, Record, Seal, Seen, Stored};
use super::segment::{self, HEADER_BYTES, NoSegment};
use crate::config::limits::{
    SEGMENT_TOPICS_MAX, STORE_TOPICS_MAX, STRETCH_LOOKED_AT_MAX, STRETCH_READ_BYTES,
};

/// Bytes of a segment between two places that are remembered.
const MARK_BYTES: u64 = 256 << 10;
/// What the frame of an event has besides what was published, about.
const FRAME_BYTES: usize = 64;

/// What is wanted: a topic, and a sequence of it.
pub type Wants<'a> = dyn Fn(&str, u64) -> bool + 'a;

/// Events of the log, in their order.
#[derive(Debug, Default)]
pub struct Stretch {
    /// Those that are wanted.
    pub events: Vec<Stored>,
    /// None is missing up to here, save what may be gone.
    pub to: u64,
    /// Events up to here may be gone.
    pub floor: u64,
}

/// What is known of a segment.
#[derive(Debug)]
struct Segment {
    /// With which its records are read.
    seal: Seal,
    /// The newest sequence before it.
    before: u64,
    /// It was looked through up to here.
    seen: u64,
    /// Sequences, and where the records behind them begin, both rising.
    marks: Vec<(u64, u64)>,
    /// Its topics, by their hashes; `None`: too many.
    topics: Option<HashSet<u64>>,
    /// The newest sequence of its events; `before` if there are none.
    newest: u64,
    /// When its newest event was taken in.
    newest_ms: u64,
}

impl Segment {
    fn new(seal: Seal, before: u64) -> Segment {
        Segment {
            seal,
            before,
            seen: HEADER_BYTES as u64,
            marks: vec![(before, HEADER_BYTES as u64)],
            topics: Some(HashSet::new()),
            newest: before,
            newest_ms: 0,
        }
    }

    /// How many topics are remembered of it.
    fn topics(&self) -> usize {
        self.topics.as_ref().map_or(0, HashSet::len)
    }

    /// Where the records behind a sequence begin, or some before them.
    fn place_after(&self, sequence: u64) -> u64 {
        let behind = self.marks.partition_point(|(newest, _)| *newest <= sequence);
        self.marks[behind.saturating_sub(1)].1
    }

    /// True if it may have events of some of these topics; `None`: of any.
    fn may_have(&self, topics: Option<&[u64]>) -> bool {
        match (&self.topics, topics) {
            (Some(here), Some(topics)) => topics.iter().any(|topic| here.contains(topic)),
            _ => true,
        }
    }
}

/// Reads a log.
#[derive(Debug)]
pub struct PastReader {
    files: Box<dyn Glass>,
    progress: Arc<Progress>,
    /// The cuts that `segments` know of.
    cuts: u64,
    /// Events up to here are gone, or may be.
    floor: u64,
    segments: BTreeMap<u64, Segment>,
    /// So many topics of all segments are remembered.
    pub(super) topics_max: usize,
}

/// The hash by which a topic is remembered.
fn hash_of(topic: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    topic.hash(&mut hasher);
    hasher.finish()
}

fn hashes(topics: Option<&[&str]>) -> Option<Vec<u64>> {
    topics.map(|topics| topics.iter().map(|topic| hash_of(topic)).collect())
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the log is not as it was written")
}

/// True for what comes about where files change while they are read.
fn is_of_change(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
}

/// Fails behind a deadline.
fn in_time(deadline: Instant) -> io::Result<()> {
    if Instant::now() <= deadline { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// What a walk over records does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    On,
    Enough,
}

impl PastReader {
    /// Reads files that another thread writes, which is so far. Events up to `floor` may be gone.
    pub(super) fn new(files: Box<dyn Glass>, progress: Arc<Progress>, floor: u64) -> PastReader {
        PastReader {
            files,
            progress,
            cuts: 0,
            floor,
            segments: BTreeMap::new(),
            topics_max: STORE_TOPICS_MAX,
        }
    }

    /// The next events after `after` and up to `until` that are wanted, about so many bytes.
    /// `topics` are all that may be wanted; `None` if that is not known.
    pub fn stretch(
        &mut self,
        wants: &Wants<'_>,
        topics: Option<&[&str]>,
        (after, until): (u64, u64),
        bytes_max: usize,
    ) -> io::Result<Stretch> {
        let topics = hashes(topics);
        self.again_if_changed(|reader| {
            reader.try_stretch(wants, topics.as_deref(), (after, until), bytes_max)
        })
    }

    fn try_stretch(
        &mut self,
        wants: &Wants<'_>,
        topics: Option<&[u64]>,
        (after, until): (u64, u64),
        bytes_max: usize,
    ) -> io::Result<Stretch> {
        // Before the look: all up to here is in what is seen then.
        let written = self.progress.written();
        self.look_around()?;
        let mut stretch = Stretch { floor: self.floor, to: after.max(self.floor), ..Stretch::default() };
        let (mut bytes, mut looked) = (0, 0);
        let begins = self.segments.range(..).rev().find(|(_, segment)| segment.before <= stretch.to);
        let first = begins.map_or(0, |(number, _)| *number);
        let numbers: Vec<u64> = self.segments.range(first..).map(|(number, _)| *number).collect();
        for number in numbers {
            if stretch.to >= until {
                break;
            }
            looked += self.look_through(number)?;
            let segment = &self.segments[&number];
            if !segment.may_have(topics) {
                stretch.to = stretch.to.max(segment.newest).min(until);
                if looked >= STRETCH_LOOKED_AT_MAX && stretch.to > after {
                    // Others have their turn.
                    return Ok(stretch);
                }
                continue;
            }
            let from = segment.place_after(stretch.to);
            let mut to = stretch.to;
            let mut next = Next::On;
            let seal = segment.seal;
            self.walk(number, from, |glance, record, at| {
                looked += record.len();
                if glance.sequence <= to || !glance.is_event {
                    return Ok(Next::On);
                }
                if glance.sequence > until {
                    to = until;
                    next = Next::Enough;
                    return Ok(next);
                }
                if wants(glance.topic, glance.sequence) {
                    let Found::Record(Record::Event(stored), _) = record::read(record, 0, seal.behind(at))
                    else {
                        return Err(damaged());
                    };
                    bytes += stored.event.published_bytes() + FRAME_BYTES;
                    stretch.events.push(stored);
                }
                to = glance.sequence;
                if bytes >= bytes_max || looked >= STRETCH_LOOKED_AT_MAX {
                    next = Next::Enough;
                }
                Ok(next)
            })?;
            stretch.to = to;
            if next == Next::Enough {
                return Ok(stretch);
            }
            stretch.to = to.max(self.segments[&number].newest).min(until);
        }
        stretch.to = stretch.to.max(written.min(until));
        Ok(stretch)
    }

    /// The sequence after which the last so many events up to `until` come that are wanted, or all
    /// that are left. Fails with `TimedOut` behind the deadline; what was looked through counts.
    pub fn before_last(
        &mut self,
        wants: &Wants<'_>,
        topics: Option<&[&str]>,
        (until, events): (u64, u64),
        deadline: Instant,
    ) -> io::Result<u64> {
        let topics = hashes(topics);
        self.again_if_changed(|reader| {
            reader.look_around()?;
            let mut missing = events;
            let numbers: Vec<u64> = reader.segments.keys().rev().copied().collect();
            for number in numbers {
                if reader.segments[&number].before >= until {
                    continue;
                }
                in_time(deadline)?;
                reader.look_through(number)?;
                if !reader.segments[&number].may_have(topics.as_deref()) {
                    continue;
                }
                let mut found = Vec::new();
                reader.walk(number, HEADER_BYTES as u64, |glance, _, _| {
                    if glance.is_event && glance.sequence <= until && wants(glance.topic, glance.sequence) {
                        found.push(glance.sequence);
                    }
                    Ok(if glance.sequence > until && glance.is_event { Next::Enough } else { Next::On })
                })?;
                let here = found.len() as u64;
                if here >= missing {
                    let at = here - missing;
                    return Ok(found.get(at as usize).map_or(until, |first| first - 1));
                }
                missing -= here;
            }
            Ok(reader.floor)
        })
    }

    /// The sequence after which events come that were taken in at this time or later; with a
    /// deadline too.
    pub fn before_time(&mut self, unix_ms: u64, deadline: Instant) -> io::Result<u64> {
        self.again_if_changed(|reader| {
            reader.look_around()?;
            let numbers: Vec<u64> = reader.segments.keys().copied().collect();
            let mut newest = reader.floor;
            for number in numbers {
                in_time(deadline)?;
                reader.look_through(number)?;
                let segment = &reader.segments[&number];
                if segment.newest_ms < unix_ms {
                    newest = newest.max(segment.newest);
                    continue;
                }
                let mut before = None;
                reader.walk(number, HEADER_BYTES as u64, |glance, _, _| {
                    if glance.is_event && glance.unix_ms >= unix_ms {
                        before = Some(glance.sequence - 1);
                        return Ok(Next::Enough);
                    }
                    Ok(Next::On)
                })?;
                return Ok(before.unwrap_or(newest).max(reader.floor));
            }
            Ok(newest)
        })
    }

    /// Does something once more if the files have changed meanwhile.
    fn again_if_changed<T>(
        &mut self,
        mut what: impl FnMut(&mut PastReader) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut is_second = false;
        loop {
            let cuts = self.progress.cuts();
            if std::mem::replace(&mut self.cuts, cuts) != cuts {
                // The end of the last segment was taken back, and may have been written anew.
                self.segments.clear();
            }
            let outcome = what(self);
            let is_same = self.progress.cuts() == cuts;
            match outcome {
                Ok(found) if is_same => return Ok(found),
                Ok(_) if is_second => return Err(damaged()),
                Ok(_) => {}
                Err(error) if is_second || !is_of_change(&error) => return Err(error),
                // A segment has gone, or was cut while it was read.
                Err(_) => self.segments.clear(),
            }
            is_second = true;
        }
    }

    /// Finds out which segments there are.
    fn look_around(&mut self) -> io::Result<()> {
        let names = self.files.names()?;
        let numbers: HashSet<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        self.segments.retain(|number, _| numbers.contains(number));
        for number in numbers {
            if self.segments.contains_key(&number) {
                continue;
            }
            let name = name_of(number);
            let bytes = match self.files.read_at(&name, 0, HEADER_BYTES) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            match segment::Segment::new(&bytes) {
                Ok(segment) => {
                    self.segments.insert(number, Segment::new(segment.seal, segment.before));
                }
                // One that is being begun is none yet.
                Err(NoSegment::NotBegun) => {}
                Err(NoSegment::Broken) => return Err(damaged()),
            }
        }
        let first = self.segments.values().next().map_or(0, |segment| segment.before);
        self.floor = self.floor.max(first).max(self.progress.lost());
        Ok(())
    }

    /// Looks at what a segment has that was not looked at. Returns how many bytes that were.
    fn look_through(&mut self, number: u64) -> io::Result<usize> {
        let Some(mut segment) = self.segments.remove(&number) else { return Ok(0) };
        let mut looked = 0;
        let begin = segment.seen;
        let walked = self.walk(number, begin, |glance, record, _| {
            looked += record.len();
            let begins = segment.seen;
            segment.seen += record.len() as u64;
            if !glance.is_event {
                return Ok(Next::On);
            }
            let last = segment.marks.last().map_or(0, |(_, at)| *at);
            if begins >= last + MARK_BYTES {
                segment.marks.push((segment.newest, begins));
            }
            segment.newest = glance.sequence;
            segment.newest_ms = segment.newest_ms.max(glance.unix_ms);
            if let Some(topics) = &mut segment.topics {
                topics.insert(hash_of(glance.topic));
                if topics.len() > SEGMENT_TOPICS_MAX {
                    segment.topics = None;
                }
            }
            Ok(Next::On)
        });
        self.segments.insert(number, segment);
        if looked > 0 {
            self.forget_topics();
        }
        walked.map(|()| looked)
    }

    /// Topics that are remembered, of all segments.
    pub(super) fn topics(&self) -> usize {
        self.segments.values().map(Segment::topics).sum()
    }

    /// Forgets those of the segments that have most of them, if they are too many.
    fn forget_topics(&mut self) {
        let mut all = self.topics();
        while all > self.topics_max
            && let Some(largest) = self.segments.values_mut().max_by_key(|segment| segment.topics())
        {
            all -= largest.topics();
            largest.topics = None;
        }
    }

    /// Passes the records of a segment from `offset` on, each with its place, up to the end as it is
    /// now.
    fn walk(
        &self,
        number: u64,
        mut offset: u64,
        mut each: impl FnMut(&record::Glance<'_>, &[u8], u64) -> io::Result<Next>,
    ) -> io::Result<()> {
        let name = name_of(number);
        let mut wanted = STRETCH_READ_BYTES;
        loop {
            let bytes = self.files.read_at(&name, offset, wanted)?;
            let is_end = bytes.len() < wanted;
            let mut at = 0;
            wanted = STRETCH_READ_BYTES;
            loop {
                match record::glance(&bytes, at) {
                    Seen::Record(glance) => {
                        let end = glance.end;
                        if each(&glance, &bytes[at..end], offset + at as u64)? == Next::Enough {
                            return Ok(());
                        }
                        at = end;
                    }
                    // What is being written is not whole yet.
                    Seen::Short(_) if is_end => return Ok(()),
                    Seen::Short(needed) => {
                        wanted = wanted.max(needed);
                        break;
                    }
                    Seen::Nothing => return Err(damaged()),
                }
            }
            offset += at as u64;
        }
    }
}

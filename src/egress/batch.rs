//! The bytes of one send, shared by every connection at the same cursor.
//!
//! A [`Batch`] never changes while it is shared: it is filled through `Rc::get_mut`, handed out as
//! `Rc`, and its memory stays where it is until the last holder (a send in the kernel, the cache, a
//! connection in mid-send) lets go. The [`Ledger`] counts the bytes of all batches alive, so that
//! slow sockets cannot pin memory without bound.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;

use bytes::Bytes;

use super::uring::header::MessageHeader;
use crate::clock::Stamp;

/// Bytes that batches alive on one shard have for themselves. Frames are not among them: they
/// belong to their events.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Rc<Cell<usize>>);

impl Ledger {
    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.0.get()
    }
}

/// Where the bytes are.
#[derive(Debug)]
pub enum Payload {
    /// Bytes that nobody else counts: an answer to one connection, or a frame that its event does
    /// not keep.
    Own(Bytes),
    /// One frame, shared with the windows of all shards.
    Frame(Bytes),
    /// Small frames, laid out one behind the other once.
    Contiguous(Vec<u8>),
    /// The first so many bytes of a buffer that is used again.
    Front(Vec<u8>, usize),
    /// Large frames, left where they are.
    Vectored(Vec<Bytes>),
}

impl Payload {
    /// Total bytes.
    fn len(&self) -> usize {
        match self {
            Payload::Own(bytes) | Payload::Frame(bytes) => bytes.len(),
            Payload::Contiguous(bytes) => bytes.len(),
            Payload::Front(_, used) => *used,
            Payload::Vectored(segments) => segments.iter().map(Bytes::len).sum(),
        }
    }

    /// Bytes that no event counts.
    fn own(&self) -> usize {
        match self {
            Payload::Own(bytes) => bytes.len(),
            Payload::Contiguous(bytes) => bytes.len(),
            Payload::Front(bytes, _) => bytes.len(),
            Payload::Frame(_) | Payload::Vectored(_) => 0,
        }
    }
}

/// The bytes of a run of events in one Format, or of an answer to one connection.
#[derive(Debug)]
pub struct Batch {
    payload: Payload,
    /// Total bytes of `payload`, never 0 once handed out.
    len: usize,
    /// Sequence of the last event inside; 0 if there is none.
    to: u64,
    /// Events inside.
    frames: u32,
    /// How many events were taken in when: runs, in order. Their counts add up to `frames`, save
    /// those that are told again.
    intakes: Vec<(Stamp, u32)>,
    /// Sends of this batch that were taken whole and are not in the latencies yet.
    pub(crate) completed: Cell<u32>,
    /// The kernel's view of a vectored payload, made at the first send.
    pub(super) header: OnceCell<MessageHeader>,
    ledger: Ledger,
}

impl Batch {
    /// An empty batch to be filled.
    pub fn empty(ledger: &Ledger) -> Batch {
        Batch {
            payload: Payload::Contiguous(Vec::new()),
            len: 0,
            to: 0,
            frames: 0,
            intakes: Vec::new(),
            completed: Cell::new(0),
            header: OnceCell::new(),
            ledger: ledger.clone(),
        }
    }

    /// An answer to one connection: a head, a control frame, a notice.
    pub fn answer(bytes: impl Into<Bytes>, ledger: &Ledger) -> Rc<Batch> {
        let mut batch = Batch::empty(ledger);
        batch.fill(Payload::Own(bytes.into()), 0);
        Rc::new(batch)
    }

    /// An empty batch to be filled, counted where this one is.
    pub fn sibling(&self) -> Batch {
        Batch::empty(&self.ledger)
    }

    /// So many events that are told again, to one connection: how long ago they were taken in says
    /// nothing of their delivery.
    pub fn retold(payload: Payload, events: u32, ledger: &Ledger) -> Rc<Batch> {
        let mut batch = Batch::empty(ledger);
        batch.frames = events;
        batch.fill(payload, 0);
        Rc::new(batch)
    }

    /// Empties the batch and gives its former payload, so that filling again does not allocate.
    pub fn recycle(&mut self) -> Payload {
        self.discharge();
        self.completed.set(0);
        self.frames = 0;
        self.intakes.clear();
        std::mem::replace(&mut self.payload, Payload::Contiguous(Vec::new()))
    }

    /// Notes one event of the payload to come.
    pub fn note(&mut self, intake: Stamp) {
        self.frames += 1;
        match self.intakes.last_mut() {
            Some((last, count)) if *last == intake => *count += 1,
            _ => self.intakes.push((intake, 1)),
        }
    }

    /// Sets the bytes and the sequence of the last event inside.
    pub fn fill(&mut self, payload: Payload, to: u64) {
        self.discharge();
        self.len = payload.len();
        self.payload = payload;
        self.to = to;
        self.ledger.0.set(self.ledger.0.get() + self.payload.own());
    }

    /// Takes this batch's bytes out of the ledger, and with them the kernel's view of them.
    fn discharge(&mut self) {
        self.ledger.0.set(self.ledger.0.get() - self.payload.own());
        self.len = 0;
        self.header = OnceCell::new();
    }

    /// Total bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True while nothing was filled in.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sequence of the last event inside; 0 if there is none.
    pub fn to(&self) -> u64 {
        self.to
    }

    /// Events inside.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// How many events were taken in when.
    pub fn intakes(&self) -> &[(Stamp, u32)] {
        &self.intakes
    }

    /// The segments, if the payload is vectored.
    pub fn segments(&self) -> Option<&[Bytes]> {
        match &self.payload {
            Payload::Vectored(segments) => Some(segments),
            Payload::Own(_) | Payload::Frame(_) | Payload::Contiguous(_) | Payload::Front(..) => None,
        }
    }

    /// The contiguous bytes from `offset` on: up to the end, or to the end of the segment that
    /// holds `offset`.
    #[inline]
    pub fn bytes_at(&self, offset: usize) -> &[u8] {
        match &self.payload {
            Payload::Own(bytes) | Payload::Frame(bytes) => &bytes[offset..],
            Payload::Contiguous(bytes) => &bytes[offset..],
            Payload::Front(bytes, used) => &bytes[offset..*used],
            Payload::Vectored(segments) => bytes_within(segments, offset),
        }
    }
}

/// The rest of the segment that holds `offset`.
fn bytes_within(segments: &[Bytes], offset: usize) -> &[u8] {
    let mut start = 0;
    for segment in segments {
        if offset < start + segment.len() {
            return &segment[offset - start..];
        }
        start += segment.len();
    }
    &[]
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.discharge();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_counts_batches_while_they_live() {
        let ledger = Ledger::default();
        let one = Batch::answer(&b"abc"[..], &ledger);
        let mut two = Batch::empty(&ledger);
        two.fill(Payload::Contiguous(b"defgh".to_vec()), 7);
        assert_eq!((ledger.bytes(), two.to()), (8, 7));
        assert!(matches!(two.recycle(), Payload::Contiguous(bytes) if bytes == b"defgh"));
        assert_eq!(ledger.bytes(), 3);
        drop(one);
        assert_eq!(ledger.bytes(), 0);
    }

    #[test]
    fn a_vectored_payload_is_read_segment_by_segment() {
        let mut batch = Batch::empty(&Ledger::default());
        batch.fill(Payload::Vectored(vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")]), 1);
        assert_eq!(batch.len(), 5);
        assert_eq!(
            (batch.bytes_at(0), batch.bytes_at(2), batch.bytes_at(3)),
            (&b"abc"[..], &b"c"[..], &b"de"[..])
        );
    }

    #[test]
    fn intakes_are_kept_as_runs() {
        let mut batch = Batch::empty(&Ledger::default());
        for intake in [5, 5, 9] {
            batch.note(Stamp(intake));
        }
        assert_eq!(batch.intakes(), [(Stamp(5), 2), (Stamp(9), 1)]);
        assert_eq!(batch.frames(), 3);
    }
}

//! Sealed bytes on their way: the pieces of connections, and the memory that they use again.
//!
//! Invariants worth naming:
//! - Nothing is allocated per delivery: pieces and their buffers come back once the inner ring has
//!   let go of them. Of those only as many bytes are kept as one submit takes.
//! - Of the bytes of a buffer those in front are the piece. The others stay as they were, so that
//!   no byte is cleared before it is written.
//! - The piece that was used last is used first, because it is still in the cache; and so that it
//!   is, a submit takes a bounded number of sealed bytes.

use std::rc::Rc;

use super::record::{CONTENT_MAX, OVERHEAD};
use super::session::Session;
use crate::config::limits::{PIECES_POOLED, SEALED_BYTES_PER_SUBMIT};
use crate::egress::{Batch, Ledger, Payload};

/// Sealed bytes that grow.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    /// So many of them count.
    used: usize,
}

impl Buffer {
    /// The next `more` bytes, to be written whole.
    #[inline]
    pub fn grow(&mut self, more: usize) -> &mut [u8] {
        let (from, to) = (self.used, self.used + more);
        if to > self.bytes.len() {
            self.bytes.resize(to, 0);
        }
        self.used = to;
        &mut self.bytes[from..to]
    }

    /// Appends what is sealed already.
    pub fn append(&mut self, sealed: &[u8]) {
        self.grow(sealed.len()).copy_from_slice(sealed);
    }
}

/// Pieces and their memory.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    spare: Vec<Rc<Batch>>,
    buffers: Vec<Vec<u8>>,
    /// Bytes of `buffers`.
    pooled: usize,
    /// Bytes that were sealed since the inner ring had let go of all that was before.
    under_way: usize,
    /// What lies in several segments of a batch, for one record.
    gathered: Vec<u8>,
    /// Of bytes that belong to no batch.
    pub ledger: Ledger,
}

impl Pieces {
    /// Whether a submit takes more.
    #[inline]
    pub fn have_room(&self) -> bool {
        self.under_way < SEALED_BYTES_PER_SUBMIT
    }

    /// The inner ring has let go of all instant sends.
    pub fn settle(&mut self) {
        self.under_way = 0;
    }

    /// Seals a batch for a connection, behind what the connection itself has to say.
    #[inline]
    pub fn seal(&mut self, session: &mut Session, batch: &Batch) -> Rc<Batch> {
        let mut sealed = self.buffer(batch.len() + batch.len().div_ceil(CONTENT_MAX) * OVERHEAD);
        session.take_own(&mut sealed);
        let mut offset = 0;
        while offset < batch.len() {
            let wanted = (batch.len() - offset).min(CONTENT_MAX);
            let bytes = batch.bytes_at(offset);
            match bytes.get(..wanted) {
                Some(bytes) => session.send.seal_data(bytes, &mut sealed),
                None => {
                    self.gather(batch, offset, wanted);
                    session.send.seal_data(&self.gathered, &mut sealed);
                }
            }
            offset += wanted;
        }
        self.under_way += sealed.used;
        self.piece(sealed, batch)
    }

    /// A piece that the inner ring has let go of.
    pub fn take_back(&mut self, mut piece: Rc<Batch>) {
        let Some(free) = Rc::get_mut(&mut piece) else { return };
        if let Payload::Front(buffer, _) = free.recycle()
            && self.spare.len() < PIECES_POOLED
        {
            if self.pooled + buffer.len() <= SEALED_BYTES_PER_SUBMIT {
                self.pooled += buffer.len();
                self.buffers.push(buffer);
            }
            self.spare.push(piece);
        }
    }

    /// An empty buffer with room for `bytes`.
    fn buffer(&mut self, bytes: usize) -> Buffer {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        self.pooled -= buffer.len();
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        Buffer { bytes: buffer, used: 0 }
    }

    /// The bytes of `batch` from `offset` on, `wanted` of them, next to each other.
    fn gather(&mut self, batch: &Batch, offset: usize, wanted: usize) {
        self.gathered.clear();
        while self.gathered.len() < wanted {
            let bytes = batch.bytes_at(offset + self.gathered.len());
            let missing = wanted - self.gathered.len();
            self.gathered.extend_from_slice(&bytes[..bytes.len().min(missing)]);
        }
    }

    /// The sealed bytes of `batch`, counted where its own are.
    fn piece(&mut self, sealed: Buffer, batch: &Batch) -> Rc<Batch> {
        let mut piece = self.spare.pop().unwrap_or_else(|| Rc::new(batch.sibling()));
        let filled = Rc::get_mut(&mut piece).expect("nobody else holds a spare piece");
        filled.fill(Payload::Front(sealed.bytes, sealed.used), 0);
        piece
    }
}

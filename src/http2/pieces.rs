//! Batches and buffers of pieces, used again.

use std::rc::Rc;

use crate::config::limits::{H2_PIECE_POOLED_BYTES_MAX, PIECES_POOLED};
use crate::egress::{Batch, Ledger, Payload};

/// Those that nobody uses now: nothing is allocated per delivery.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    spare: Vec<Rc<Batch>>,
    buffers: Vec<Vec<u8>>,
    /// Of bytes that belong to no batch.
    ledger: Ledger,
}

impl Pieces {
    /// An empty buffer.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    /// These bytes as a batch.
    pub(super) fn piece(&mut self, bytes: Vec<u8>) -> Rc<Batch> {
        let mut piece = self.spare.pop().unwrap_or_else(|| Rc::new(Batch::empty(&self.ledger)));
        let filled = Rc::get_mut(&mut piece).expect("nobody else holds a spare piece");
        filled.fill(Payload::Contiguous(bytes), 0);
        piece
    }

    /// A piece that the inner ring has let go of.
    pub(super) fn take_back(&mut self, mut piece: Rc<Batch>) {
        let Some(free) = Rc::get_mut(&mut piece) else { return };
        if let Payload::Contiguous(mut buffer) = free.recycle()
            && self.spare.len() < PIECES_POOLED
        {
            if buffer.capacity() <= H2_PIECE_POOLED_BYTES_MAX && self.buffers.len() < PIECES_POOLED {
                buffer.clear();
                self.buffers.push(buffer);
            }
            self.spare.push(piece);
        }
    }
}

//! The end of a ring (S4).

use io_uring::types::CancelBuilder;

use super::Uring;
use crate::egress::ring::{EgressRing, RingError};

impl Drop for Uring {
    fn drop(&mut self) {
        // A cancellation that fails leaves the rest to the leak below; there is nobody to tell.
        let _ = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        for _ in 0..16 {
            if !self.in_kernel() || self.submit_nothing().is_err() {
                break;
            }
            self.discard_completions();
        }
        if self.in_kernel() {
            // S4: the kernel may still read or write these.
            std::mem::forget(std::mem::take(&mut self.held));
            std::mem::forget(std::mem::take(&mut self.lent));
            std::mem::forget(std::mem::take(&mut self.accepts));
            self.buffers.leak();
        }
    }
}

impl Uring {
    /// Completions of everything in the kernel, discarded. Used only at the end.
    fn discard_completions(&mut self) {
        self.reap(&mut |_| {});
    }

    pub(super) fn in_kernel(&self) -> bool {
        self.receives + self.sends + self.accepts_armed() > 0 || self.lent.len() > self.lent_free.len()
    }

    /// Lets the kernel run its deferred work without arming anything new.
    fn submit_nothing(&mut self) -> Result<(), RingError> {
        self.ring.submit().map(|_| ()).map_err(|source| RingError {
            what: "ending the io_uring",
            source,
            remedy: "",
        })
    }
}

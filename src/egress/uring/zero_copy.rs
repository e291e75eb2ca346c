//! Zero-copy sends: lent to the kernel until their notification (S1), and completed twice.

use std::rc::Rc;

use io_uring::cqueue;

use super::{Uring, plain_result};
use crate::egress::batch::Batch;
use crate::egress::ring::{Completion, SendError, Slot};

/// Asks for a word in the notification on whether the kernel copied (`IORING_SEND_ZC_REPORT_USAGE`,
/// Linux 6.2).
pub const ZERO_COPY_REPORT: u16 = 1 << 3;
/// The word: it copied (`IORING_NOTIF_USAGE_ZC_COPIED`).
const ZERO_COPY_COPIED: u32 = 1 << 31;

/// A zero-copy send between its submission and its notification.
pub struct Lent {
    slot: Slot,
    /// `closes` of the slot when the send was submitted.
    closes: u8,
    batch: Rc<Batch>,
}

impl Uring {
    pub(super) fn lend(&mut self, slot: Slot, batch: &Rc<Batch>) -> u32 {
        let lent = Some(Lent { slot, closes: self.closes[slot as usize], batch: batch.clone() });
        let index = match self.lent_free.pop() {
            Some(index) => {
                self.lent[index as usize] = lent;
                index
            }
            None => {
                self.lent.push(lent);
                self.lent.len() as u32 - 1
            }
        };
        self.lent_at.insert(slot, index);
        index
    }

    /// A zero-copy send completes twice: when its bytes are queued, and when the kernel no longer
    /// reads them.
    pub(super) fn zero_copy_sent(
        &mut self,
        index: u32,
        entry: &cqueue::Entry,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let lent =
            self.lent[index as usize].as_ref().expect("a zero-copy send is lent until its notification");
        let slot = lent.slot;
        if cqueue::notif(entry.flags()) {
            if entry.result() as u32 & ZERO_COPY_COPIED != 0 && lent.closes == self.closes[slot as usize] {
                handle(Completion::Copied { slot });
            }
        } else {
            self.lent_at.remove(&slot);
            let result = match -entry.result() {
                libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS | libc::EINVAL => Err(SendError::NoZeroCopy),
                _ => plain_result(entry.result()),
            };
            handle(Completion::Sent { slot, batch: lent.batch.clone(), result });
        }
        if !cqueue::more(entry.flags()) {
            self.lent[index as usize] = None;
            self.lent_free.push(index);
        }
    }
}

//! The provided-buffer ring: receive buffers that the kernel picks from when bytes arrive.
//!
//! A buffer belongs to the kernel from `give_back` (or registration) until a completion names it,
//! and to us from then until it is given back. Idle connections hold none.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::egress::ring::RingError;

/// The only buffer group of a ring.
pub const BUFFER_GROUP: u16 = 0;

/// The kernel wants the ring of entries on a page of its own; no page of Linux is larger than this.
const PAGE: usize = 64 << 10;

/// Receive buffers and the ring of entries through which they change hands.
pub struct ReceiveBuffers {
    /// Buffers, a power of two.
    count: u16,
    /// Bytes of one buffer.
    size: usize,
    /// `count` entries, page-aligned, shared with the kernel.
    entries: *mut BufRingEntry,
    /// `count × size` bytes.
    memory: *mut u8,
    /// Where the next buffer given back goes; the kernel sees it at `publish`.
    tail: u16,
    leaked: bool,
}

/// `count` things of `bytes` each, on pages of their own.
fn layout(count: u16, bytes: usize) -> Layout {
    let bytes = usize::from(count).checked_mul(bytes).expect("receive buffers fit into memory");
    Layout::from_size_align(bytes, PAGE).expect("receive buffers fit into memory")
}

fn entries_layout(count: u16) -> Layout {
    layout(count, std::mem::size_of::<BufRingEntry>())
}

fn allocate(layout: Layout) -> *mut u8 {
    // SAFETY: both layouts have a size above 0: `register` asserts it.
    let memory = unsafe { alloc_zeroed(layout) };
    if memory.is_null() {
        handle_alloc_error(layout);
    }
    memory
}

impl ReceiveBuffers {
    /// Makes `count` buffers of `size` bytes and hands all of them to the kernel.
    pub fn register(ring: &IoUring, count: u16, size: usize) -> Result<ReceiveBuffers, RingError> {
        assert!(
            count.is_power_of_two() && size > 0 && u32::try_from(size).is_ok(),
            "the kernel takes such buffers"
        );
        let mut buffers = ReceiveBuffers {
            count,
            size,
            entries: allocate(entries_layout(count)).cast(),
            memory: allocate(layout(count, size)),
            tail: 0,
            leaked: false,
        };
        // SAFETY: the entries are page-aligned, zeroed, of the size named, and live until `drop`,
        // which runs after the ring has ended or, if the kernel still uses them, not at all.
        let registered = unsafe {
            ring.submitter().register_buf_ring_with_flags(buffers.entries as u64, count, BUFFER_GROUP, 0)
        };
        registered.map_err(|source| RingError {
            what: "registering receive buffers with the io_uring",
            source,
            remedy: "; Linux 6.1 or newer is needed",
        })?;
        for buffer in 0..count {
            buffers.give_back(buffer);
        }
        buffers.publish();
        Ok(buffers)
    }

    /// The bytes that a completion put into `buffer`.
    pub fn bytes(&mut self, buffer: u16, length: usize) -> &mut [u8] {
        assert!(buffer < self.count && length <= self.size, "the kernel names a buffer of ours");
        // SAFETY: in bounds by the assertion; the completion gave this buffer to us, and `&mut
        // self` keeps it from being given back while the slice lives.
        unsafe {
            let start = self.memory.add(usize::from(buffer) * self.size);
            std::slice::from_raw_parts_mut(start, length)
        }
    }

    /// Returns `buffer` to the kernel at the next `publish`.
    pub fn give_back(&mut self, buffer: u16) {
        assert!(buffer < self.count, "only buffers of this group");
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: `index` and `buffer` are in bounds; the kernel reads entries only below the
        // published tail, and an entry is free again once its buffer was named by a completion. The
        // fields are written one by one because the tail itself lies in the first entry's reserved
        // bytes.
        unsafe {
            let entry = &mut *self.entries.add(index);
            entry.set_addr(self.memory.add(usize::from(buffer) * self.size) as u64);
            entry.set_len(self.size as u32);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was given back.
    pub fn publish(&mut self) {
        // SAFETY: the tail lies in the first entry, which lives as long as `self`; the kernel reads
        // it with acquire order.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast_mut().cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    /// Leaves the memory to the kernel for ever.
    pub fn leak(&mut self) {
        self.leaked = true;
    }
}

impl Drop for ReceiveBuffers {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: allocated with these layouts; no receive is in the kernel any more.
            unsafe {
                dealloc(self.entries.cast(), entries_layout(self.count));
                dealloc(self.memory, layout(self.count, self.size));
            }
        }
    }
}

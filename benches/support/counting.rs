//! The server's allocator, counting what the calling thread asks of it.
//!
//! Counted are `alloc`, `alloc_zeroed` and `realloc`: whatever may go to the heap for more. Frees
//! are not. Each thread has its own count, so other threads of a test or of criterion do not
//! disturb it.

#![allow(unsafe_code)] // GlobalAlloc is an unsafe trait; everything is passed on as it came

use std::alloc::{GlobalAlloc, Layout};
use std::backtrace::Backtrace;
use std::cell::Cell;

use mimalloc::MiMalloc;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    // Const and without a destructor, so that neither reading nor writing them allocates.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static TRACE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and returns what it returned and how many allocations it made on this thread.
/// With `trace`, the first of them prints its backtrace on standard error.
pub fn counted<T>(trace: bool, work: impl FnOnce() -> T) -> (T, u64) {
    TRACE.set(trace);
    let before = ALLOCATIONS.get();
    let outcome = work();
    let after = ALLOCATIONS.get();
    TRACE.set(false);
    (outcome, after - before)
}

fn count() {
    let allocations = ALLOCATIONS.get() + 1;
    if TRACE.replace(false) {
        eprintln!("allocation at:\n{}", Backtrace::force_capture());
    }
    // Set last: what the backtrace allocated is not the work's.
    ALLOCATIONS.set(allocations);
}

// SAFETY: every call goes to mimalloc unchanged; counting touches only thread-local cells, and a
// backtrace is made with tracing off, so it does not come back here for another one.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps GlobalAlloc's contract, which is mimalloc's.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`; the pointer came from mimalloc because all of ours do.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }
}

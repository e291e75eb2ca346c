//! The end of a ring (S4): it is closed and then waited for.
//!
//! The kernel takes a closed ring apart by itself: it ends every request, and lets go of the ring's
//! files only when the last one is over, the notification of a zero-copy send included. So one of
//! the files is the writing end of a pipe, and the end of what its reading end brings tells that
//! nothing of ours is used any more. Zero-copy sends are not waited for: their bytes are in use
//! until the peers have read them.
//!
//! The kernel ends all requests in one pass, however many there are. Asked to cancel all, it would
//! look for each among all others: 108 s with 100,000 receives.

use std::io::{self, PipeReader};
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;

use super::Uring;
use crate::config::limits::RING_END_MS_MAX;

impl Drop for Uring {
    fn drop(&mut self) {
        // SAFETY: `self` ends here.
        if !unsafe { self.end() } {
            self.leak();
        }
    }
}

impl Uring {
    /// Ends the listeners and closes the ring. True once the kernel uses nothing of ours any more,
    /// false if that takes too long or depends on the peers.
    ///
    /// # Safety
    /// The ring must not be used again.
    pub(super) unsafe fn end(&mut self) -> bool {
        for listener in self.listeners.iter().filter(|_| !self.keeps_listeners && !self.holding) {
            // From here on nobody comes. A closed listener would take clients for as long as the
            // kernel has accepts on it. This does not fail for a socket that listens.
            let _ = rustix::net::shutdown(listener, Shutdown::Read);
        }
        let last_file = self.register_last_file();
        // SAFETY: the caller promises that nobody uses the ring again.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        let lends_any = self.lent.len() > self.lent_free.len();
        !lends_any && last_file.is_ok_and(|file| is_let_go(&file))
    }

    /// Puts the writing end of a pipe among the ring's files; returns the reading end.
    fn register_last_file(&self) -> io::Result<PipeReader> {
        let (reader, writer) = io::pipe()?;
        let submitter = self.ring.submitter();
        match self.direct {
            // Whatever socket was there is not needed any more.
            true => submitter.register_files_update(0, &[writer.as_raw_fd()]).map(|_| ())?,
            false => submitter.register_files(&[writer.as_raw_fd()])?,
        }
        Ok(reader)
    }

    /// S4: leaves to the kernel for ever what it may still read or write.
    fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.held));
        std::mem::forget(std::mem::take(&mut self.lent));
        std::mem::forget(std::mem::take(&mut self.accepts));
        self.buffers.leak();
    }
}

/// True once nobody has the writing end of this pipe any more, false if that takes too long.
fn is_let_go(file: &PipeReader) -> bool {
    let until = Instant::now() + Duration::from_millis(RING_END_MS_MAX);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(file, PollFlags::empty())], Some(&left)) {
            Ok(ended) => return ended > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

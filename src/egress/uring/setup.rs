//! Making the ring: which features to ask for, how to tell that they work, and what to tell the
//! operator if not.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use glommio::io::BufferedFile;
use io_uring::{IoUring, opcode};

use crate::egress::ring::RingError;

/// User data of the self-test's no-op.
const SELF_TEST: u64 = 0x5e1f;

/// Makes a ring as every shard's will be, tests it and throws it away, so that a start fails with
/// cause and remedy before anything else uses io_uring. On a thread of its own, because a ring
/// belongs to the thread that made it.
pub fn try_out(submissions: u32, completions: u32) -> Result<(), RingError> {
    let failed = |source| RingError { what: "preparing the io_uring's self-test", source, remedy: "" };
    let doorbell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    let attempt = std::thread::Builder::new()
        .name("self-test".into())
        .spawn(move || self_test(&mut build(submissions, completions)?, doorbell.as_fd()))
        .map_err(failed)?;
    attempt.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The best ring that this kernel makes: without a submission array (Linux 6.6), with task work
/// deferred to our own enters (6.1), or at least without interrupts for it (6.0, the first that
/// knows a single issuer).
pub fn build(submissions: u32, completions: u32) -> Result<IoUring, RingError> {
    let mut last = None;
    for (no_array, defer) in [(true, true), (false, true), (false, false)] {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_submit_all()
            .setup_cqsize(completions)
            .setup_taskrun_flag()
            .dontfork();
        if no_array {
            builder.setup_no_sqarray();
        }
        if defer {
            builder.setup_defer_taskrun();
        } else {
            builder.setup_coop_taskrun();
        }
        match builder.build(submissions) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(refused(error)),
        }
    }
    Err(refused(last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))))
}

fn refused(source: io::Error) -> RingError {
    RingError { remedy: remedy(&source), what: "making an io_uring", source }
}

/// What the operator can do about a ring that is refused or does not work.
fn remedy(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSYS) => {
            "; this kernel has no io_uring: Linux 6.1 or newer built with CONFIG_IO_URING is needed"
        }
        Some(libc::EPERM) => {
            "; io_uring is forbidden here: set sysctl kernel.io_uring_disabled=0 and let the container's seccomp \
             profile pass io_uring_setup, io_uring_enter and io_uring_register"
        }
        Some(libc::ENOMEM) => {
            "; there is too little memory for it: raise the memory limit of the container or ulimit -l (memlock)"
        }
        Some(libc::EMFILE | libc::ENFILE) => "; no descriptor is left: raise ulimit -n",
        _ => "; Linux 6.1 or newer is needed",
    }
}

/// Sends a no-op through the ring and sees that its completion rings the doorbell; the doorbell is
/// quiet afterwards.
pub fn self_test(ring: &mut IoUring, doorbell: BorrowedFd<'_>) -> Result<(), RingError> {
    let failed = |what, source| RingError { remedy: remedy(&source), what, source };
    ring.submitter()
        .register_eventfd(doorbell.as_raw_fd())
        .map_err(|source| failed("registering the doorbell with the io_uring", source))?;
    let nop = opcode::Nop::new().build().user_data(SELF_TEST);
    // SAFETY: a no-op has no pointers.
    unsafe { ring.submission().push(&nop) }.expect("a new submission queue has room");
    ring.submit_and_wait(1).map_err(|source| failed("the io_uring's self-test", source))?;
    let completed = ring.completion().next().is_some_and(|entry| entry.user_data() == SELF_TEST);
    let broken = |what| RingError {
        what,
        source: io::Error::other("it did not happen"),
        remedy: "; Linux 6.1 or newer is needed",
    };
    if !completed {
        return Err(broken("completing a no-op in the io_uring's self-test"));
    }
    let mut ready = [rustix::event::PollFd::new(&doorbell, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let rung = rustix::event::poll(&mut ready, Some(&now)).unwrap_or(0) > 0;
    if !rung {
        return Err(broken("ringing the doorbell in the io_uring's self-test"));
    }
    rustix::io::read(doorbell, &mut [0; 8])
        .map_err(|error| failed("reading the doorbell in the io_uring's self-test", error.into()))?;
    ring.completion().disable_eventfd();
    Ok(())
}

/// True if this kernel frees the sockets of closed direct descriptors at once. Before Linux 6.13
/// they are freed in the order in which they were closed, each only after every request that was
/// under way then: one idle subscriber's receive would hold all sockets closed after it came.
pub fn frees_direct_descriptors() -> bool {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(13))
}

/// Makes the sparse table of direct descriptors.
pub fn sockets_table(ring: &IoUring, slots: u32) -> Result<(), RingError> {
    ring.submitter().register_files_sparse(slots).map_err(|source| {
        let remedy = match source.raw_os_error() {
            Some(libc::EMFILE) => "; raise ulimit -n or lower --connections-per-shard-max",
            Some(libc::ENOMEM) => "; lower --connections-per-shard-max",
            _ => "; Linux 6.1 or newer is needed",
        };
        RingError { what: "registering the table of sockets with the io_uring", source, remedy }
    })
}

/// The doorbell as a file that glommio can await a read of.
pub fn adopt_doorbell(doorbell: OwnedFd) -> BufferedFile {
    // SAFETY: the descriptor is open and its ownership moves into the file.
    unsafe { BufferedFile::from_raw_fd(doorbell.into_raw_fd()) }
}

//! Message headers: what the kernel wants to know of a vectored payload.

use bytes::Bytes;

/// The kernel's view of a vectored payload: the same message header for every connection that gets
/// it.
#[derive(Debug)]
pub struct MessageHeader {
    /// What `header` points to.
    _iovecs: Box<[libc::iovec]>,
    pub(super) header: Box<libc::msghdr>,
}

impl MessageHeader {
    pub(super) fn new(segments: &[Bytes]) -> MessageHeader {
        let mut iovecs: Box<[libc::iovec]> = segments
            .iter()
            .map(|segment| libc::iovec {
                iov_base: segment.as_ptr().cast_mut().cast(),
                iov_len: segment.len(),
            })
            .collect();
        // SAFETY: msghdr is plain old data for which all zeroes means "nothing".
        let mut header: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        header.msg_iov = iovecs.as_mut_ptr();
        header.msg_iovlen = iovecs.len() as _;
        MessageHeader { _iovecs: iovecs, header }
    }
}

//! Request heads that hyper refuses before any route sees them: counted, and answered with the line
//! of reason.
//!
//! hyper answers a head that it cannot take by itself, without a body, and tells the cause only
//! when the connection is over. So as long as no request of a connection has got to the router,
//! hyper is not heard ([`Muted`]): it could only say such an answer, and ours takes its place.
//! Before a later head there may be answers that are still on their way, so hyper's own stands
//! there; it is counted all the same.
//!
//! A later minor version of HTTP/1 in the first head is served as HTTP/1.1 (RFC 9110 §2.5), which
//! hyper would refuse.
//!
//! A connection that has said nothing of a request is refused nothing. Such a connection was only
//! opened, or it ends or is given up between two requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::{Refusal, RefusalReason};
use crate::clock::http_date;
use crate::config::limits::{CONTROL_HEAD_MS_MAX, LINGER_MS_MAX};
use crate::wire::http::HEADERS_MAX;

/// hyper's own bound on a target.
const TARGET_BYTES_MAX: usize = u16::MAX as usize;

/// A socket that takes what is written to it and sends nothing of it, until a request has got to
/// the router.
pub(super) struct Muted<S> {
    socket: S,
    asked: Asked,
    version: Version,
}

/// What is known of the requests of a connection. Clones tell the same.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<Known>);

#[derive(Default)]
struct Known {
    /// A request has got to the router.
    asked: AtomicBool,
    /// The first head came with a later version than 1.1.
    mended: AtomicBool,
}

impl Asked {
    /// A request is on its way to the router.
    pub(super) fn note(&self) {
        self.0.asked.store(true, Ordering::Relaxed);
    }

    /// True if later heads will not be taken.
    pub(super) fn is_mended(&self) -> bool {
        self.0.mended.load(Ordering::Relaxed)
    }

    fn is_true(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }
}

/// How far the version in the first line of a connection has come.
enum Version {
    /// So many bytes of [`Version::BEFORE_MINOR`] were the last ones; fewer than all.
    Awaited(usize),
    /// It is over, or there is none.
    Seen,
}

impl Version {
    const BEFORE_MINOR: &[u8] = b" HTTP/1.";

    /// Looks at what comes next. A minor version beyond 1 becomes 1; true if there was one.
    fn mend(&mut self, bytes: &mut [u8]) -> bool {
        for byte in bytes {
            let Version::Awaited(matched) = self else { return false };
            if *matched == Version::BEFORE_MINOR.len() {
                *self = Version::Seen;
                if (b'2'..=b'9').contains(byte) {
                    *byte = b'1';
                    return true;
                }
            } else if *byte == Version::BEFORE_MINOR[*matched] {
                *matched += 1;
            } else {
                // Only its first byte can begin it anew.
                *matched = usize::from(*byte == Version::BEFORE_MINOR[0]);
            }
        }
        false
    }
}

impl<S> Muted<S> {
    pub(super) fn new(socket: S, asked: Asked) -> Muted<S> {
        Muted { socket, asked, version: Version::Awaited(0) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Muted<S> {
    /// Ends a connection whose last head was refused: with our answer, unless hyper was heard
    /// already. Reads on for a while, because a client that still sends would be reset before it
    /// has read why.
    pub(super) async fn refuse(mut self, refusal: &Refusal) {
        if !self.asked.is_true() && self.socket.write_all(&answer(refusal)).await.is_err() {
            return;
        }
        if self.socket.shutdown().await.is_ok() {
            let rest = async { while matches!(self.socket.read(&mut [0; 4 << 10]).await, Ok(1..)) {} };
            let _ = timeout(Duration::from_millis(LINGER_MS_MAX), rest).await;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Muted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.socket).poll_read(context, buffer);
        if self.version.mend(&mut buffer.filled_mut()[before..]) {
            self.asked.0.mended.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Muted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.asked.is_true() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.asked.is_true() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// The refusal behind the `error` that a connection ended with, if it was for a request head;
/// `unread` is what has come of the next one.
pub(super) fn refusal_of(error: &hyper::Error, unread: &[u8], head_bytes_max: usize) -> Option<Refusal> {
    let begun = unread.iter().any(|byte| !b"\r\n".contains(byte));
    // Empty lines before the request line do not count (RFC 9112 §2.2).
    let start = unread.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(unread.len());
    let line = unread[start..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    let (reason, text) = if error.is_parse_too_large() && line.len() >= head_bytes_max.min(TARGET_BYTES_MAX) {
        let text = format!("the request line has {} bytes or more, which is too long", line.len());
        (RefusalReason::TargetTooLong, text)
    } else if error.is_parse_too_large() {
        let text =
            format!("{error}; a request head has at most {head_bytes_max} bytes and {HEADERS_MAX} fields");
        (RefusalReason::HeadTooLarge, text)
    } else if error.is_parse() {
        (RefusalReason::BadHead, format!("the request head is malformed: {error}"))
    } else if error.is_timeout() && begun {
        let text = format!("the request head did not arrive within {CONTROL_HEAD_MS_MAX} ms");
        (RefusalReason::HeadTimeout, text)
    } else if error.is_incomplete_message() && begun {
        (RefusalReason::BadHead, "the request head breaks off".to_string())
    } else {
        return None;
    };
    Some(Refusal::new(reason, text))
}

/// The whole answer to a connection's first head, after which the connection ends.
fn answer(refusal: &Refusal) -> Vec<u8> {
    let status = refusal.reason.status();
    let body = serde_json::json!({ "error": refusal.text }).to_string();
    let (date, length) = (http_date(), body.len() + 1);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\
         date: {date}\r\n\r\n{body}\n"
    )
    .into_bytes()
}

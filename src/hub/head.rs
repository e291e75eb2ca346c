//! Request heads that hyper refuses before any route sees them: counted, and answered with the line of reason.
//!
//! hyper answers a head that it cannot take by itself, without a body, and tells the cause only when the connection is
//! over. So as long as no request of a connection has got to the router, hyper is not heard ([`Muted`]): it could only
//! say such an answer, and ours takes its place. Before a later head there may be answers that are still on their way,
//! so hyper's own stands there; it is counted all the same.
//!
//! Whoever has said nothing of a request is refused nothing: a connection that was only opened, or that ends or is given
//! up between two requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::{Refusal, RefusalReason};
use crate::config::limits::{CONTROL_HEAD_MS_MAX, LINGER_MS_MAX};
use crate::wire::http::HEADERS_MAX;

/// A socket that takes what is written to it and sends nothing of it, until a request has got to the router.
pub(super) struct Muted<S> {
    socket: S,
    asked: Asked,
}

/// Whether a request of a connection has got to the router. Clones tell the same.
#[derive(Clone, Default)]
pub(super) struct Asked(Arc<AtomicBool>);

impl Asked {
    /// A request is on its way to the router.
    pub(super) fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_true(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S> Muted<S> {
    pub(super) fn new(socket: S, asked: Asked) -> Muted<S> {
        Muted { socket, asked }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Muted<S> {
    /// Ends a connection whose last head was refused: with our answer, unless hyper was heard already. Reads on for a
    /// while, because a client that still sends would be reset before it has read why.
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
        Pin::new(&mut self.socket).poll_read(context, buffer)
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

/// The refusal behind the `error` that a connection ended with, if it was for a request head; `unread` is what has come
/// of the next one.
pub(super) fn refusal_of(error: &hyper::Error, unread: &[u8], head_bytes_max: usize) -> Option<Refusal> {
    let begun = unread.iter().any(|byte| !b"\r\n".contains(byte));
    let (reason, text) = if error.is_parse_too_large() {
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
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

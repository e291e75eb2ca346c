//! TLS of control connections: handshakes, bounded in time, number and rate, and what is told of
//! one that fails.
//!
//! Invariants worth naming:
//! - The hub's thread makes these handshakes, between its other work. So a listener accepts only as
//!   many connections in a second as leave it time to publish; the others wait in the kernel.
//! - So many handshakes are under way. One more ends the oldest of them: peers that say nothing
//!   keep nobody out.
//! - A connection that has not said a byte is refused nothing.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::head::{Asked, Muted};
use super::listen::serve;
use super::seats::Seat;
use super::{Hub, Refusal, RefusalReason, Stage};
use crate::admission::Bucket;
use crate::clock::Stamp;
use crate::config::limits::{CONTROL_TLS_MS_MAX, CONTROL_TLS_PER_SECOND_MAX};

/// Gives the certificates of now, as a handshake wants them.
#[derive(Clone)]
pub struct Certificates(Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>);

impl Certificates {
    /// Asked at each handshake.
    pub fn new(now: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static) -> Certificates {
        Certificates(Arc::new(now))
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

/// How many connections a listener may accept now.
#[derive(Debug, Default)]
pub(super) struct Valve {
    bucket: Bucket,
    /// 0 <= left <= [`Bucket::most`].
    left: usize,
}

impl Valve {
    /// True if one more may come.
    pub(super) fn is_open(&mut self, now: Stamp) -> bool {
        let come = self.bucket.fill(CONTROL_TLS_PER_SECOND_MAX, now.0);
        self.left = (self.left + come).min(Bucket::most(CONTROL_TLS_PER_SECOND_MAX));
        self.left > 0
    }

    /// One has come.
    pub(super) fn take(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

/// Why there is no connection.
enum Failed {
    /// The peer went before it said anything.
    Silent,
    /// It asks without TLS. It can be answered.
    Plain(TcpStream),
    /// As rustls says.
    Handshake(io::Error),
    /// It took too long.
    Slow,
}

/// Makes the handshake on a connection and serves requests on it.
pub(super) async fn serve_secure(
    socket: TcpStream,
    certificates: Certificates,
    router: Router,
    hub: Arc<Hub>,
    seat: Arc<Seat>,
) {
    let patience = Duration::from_millis(CONTROL_TLS_MS_MAX);
    let mut has_begun = false;
    let shaken = tokio::select! {
        biased;
        () = seat.told_to_leave() => Err(Failed::Slow),
        () = hub.reached(Stage::Stopped) => return,
        shaken = timeout(patience, shake(socket, certificates, &mut has_begun)) => {
            shaken.unwrap_or(Err(Failed::Slow))
        }
    };
    let failed = match shaken {
        Ok(stream) => {
            hub.note_control_handshake();
            seat.note_handshake();
            return serve(stream, router, hub, seat).await;
        }
        Err(failed) => failed,
    };
    let text = match &failed {
        Failed::Silent => return,
        Failed::Slow if !has_begun => return,
        Failed::Plain(_) => "this address speaks TLS: write https://".to_string(),
        Failed::Handshake(error) => format!("the TLS handshake failed: {error}"),
        Failed::Slow => "the TLS handshake was not over in time".to_string(),
    };
    let refusal = hub.counted(Refusal::new(RefusalReason::TlsHandshake, text));
    if let Some(left_out) = hub.head_pace().admit(Stamp::now()) {
        tracing::debug!(reason = refusal.reason.label(), left_out, "refused a control connection: {refusal}");
    }
    if let Failed::Plain(socket) = failed {
        Muted::new(socket, Asked::default()).refuse(&refusal).await;
    }
}

async fn shake(
    socket: TcpStream,
    certificates: Certificates,
    has_begun: &mut bool,
) -> Result<TlsStream<TcpStream>, Failed> {
    let mut first = [0];
    match socket.peek(&mut first).await {
        Ok(1..) if first[0].is_ascii_uppercase() => return Err(Failed::Plain(socket)),
        Ok(1..) => *has_begun = true,
        Ok(0) | Err(_) => return Err(Failed::Silent),
    }
    TlsAcceptor::from(certificates.0()).accept(socket).await.map_err(Failed::Handshake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_accepts_at_its_rate_and_keeps_half_a_second() {
        let mut valve = Valve::default();
        let come = |valve: &mut Valve, ms: u64| {
            let mut come = 0;
            while valve.is_open(Stamp(ms * 1_000_000)) {
                valve.take();
                come += 1;
            }
            come
        };
        let most = Bucket::most(CONTROL_TLS_PER_SECOND_MAX);
        assert_eq!(come(&mut valve, 1_000_000), most);
        assert_eq!(come(&mut valve, 1_000_000), 0);
        assert_eq!(come(&mut valve, 1_000_100), CONTROL_TLS_PER_SECOND_MAX / 10);
    }
}

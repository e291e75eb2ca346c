//! Control connections: accepting them, serving HTTP/1.1 on them, ending them.
//!
//! `axum::serve` has no limit on the time of a request head, so hyper is driven here directly. Each
//! listener has a bounded number of connections; beyond it new ones wait in the kernel, until an
//! idle one has left (`seats`). At the end each connection finishes the request it is in, and what
//! has not ended after [`CONTROL_GRACE_MS`] is cut off.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::asked::Scheme;
use super::head::{Asked, Muted, refusal_of};
use super::seats::{Seat, Seats, Working};
use super::secure::{Certificates, Valve, serve_secure};
use super::stream::refused_unread;
use super::{Hub, Refusal, RefusalReason, Stage, control};
use crate::broadcast::Doors;
use crate::clock::Stamp;
use crate::config::ControlAddress;
use crate::config::limits::{
    CONTROL_ACCEPT_RETRY_MS, CONTROL_BUFFER_BYTES_MAX, CONTROL_GRACE_MS, CONTROL_HEAD_MS_MAX,
    CONTROL_TLS_WAIT_MS,
};
use crate::log::Pace;
use crate::wire::http::HEADERS_MAX;

/// A control address, bound and non-blocking.
#[derive(Debug)]
pub enum ControlListener {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// TCP with TLS.
    Tls(std::net::TcpListener, Certificates),
    /// A Unix stream socket.
    Unix(std::os::unix::net::UnixListener),
}

impl ControlListener {
    /// Where it listens; a path is absolute.
    fn address(&self) -> io::Result<ControlAddress> {
        match self {
            ControlListener::Tcp(listener) | ControlListener::Tls(listener, _) => {
                listener.local_addr().map(ControlAddress::Tcp)
            }
            ControlListener::Unix(listener) => {
                let address = listener.local_addr()?;
                let path = address.as_pathname().ok_or_else(|| io::Error::other("the socket has no path"))?;
                std::path::absolute(path).map(ControlAddress::Unix)
            }
        }
    }
}

/// The same, known to the runtime.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, Certificates),
    Unix(UnixListener),
}

/// One accepted connection.
enum Socket {
    Tcp(TcpStream),
    Tls(TcpStream, Certificates),
    Unix(UnixStream),
}

/// Serves the control API on every listener, on so many connections each. The tasks end after
/// [`Stage::Stopped`].
pub(super) fn start(
    listeners: Vec<ControlListener>,
    connections_max: usize,
    hub: &Arc<Hub>,
) -> io::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let mut known = Vec::new();
    for listener in listeners {
        let scheme = match listener {
            ControlListener::Tls(..) => Scheme::Https,
            ControlListener::Tcp(_) | ControlListener::Unix(_) => Scheme::Http,
        };
        let router = control::router(hub.clone(), listener.address()?, scheme);
        let listener = match listener {
            ControlListener::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
            ControlListener::Tls(listener, certificates) => {
                Listener::Tls(TcpListener::from_std(listener)?, certificates)
            }
            ControlListener::Unix(listener) => Listener::Unix(UnixListener::from_std(listener)?),
        };
        let listener = Arc::new(listener);
        known.push(Arc::downgrade(&listener));
        tasks.spawn(accept(listener, router, hub.clone(), connections_max));
    }
    *hub.control_listeners() = known;
    Ok(tasks)
}

async fn accept(listener: Arc<Listener>, router: Router, hub: Arc<Hub>, connections_max: usize) {
    let mut connections = JoinSet::new();
    let mut seats = Seats::new(connections_max);
    let mut pace = Pace::WARNING;
    let mut valve = matches!(*listener, Listener::Tls(..)).then(Valve::default);
    let mut stopped = pin!(hub.reached(Stage::Stopped));
    let mut doors = hub.doors.subscribe();
    let mut listener = Some(listener);
    loop {
        let turned = *doors.borrow_and_update();
        if turned == Doors::Left {
            listener = None;
        }
        let has_room = turned == Doors::Open && seats.has_room();
        let comes_in = has_room && valve.as_mut().is_none_or(|valve| valve.is_open(Stamp::now()));
        let accepted = tokio::select! {
            biased;
            () = &mut stopped => break,
            Some(_) = connections.join_next() => {
                seats.sort_out();
                continue;
            }
            // Its sender lives as long as the hub.
            _ = doors.changed() => continue,
            accepted = accept_one(listener.as_deref()), if comes_in => accepted,
            () = tokio::time::sleep(Duration::from_millis(CONTROL_TLS_WAIT_MS)), if has_room && !comes_in => {
                continue;
            }
        };
        match accepted {
            Ok(socket) => {
                let (router, hub) = (router.clone(), hub.clone());
                if let Some(valve) = &mut valve {
                    valve.take();
                }
                match socket {
                    Socket::Tcp(socket) => connections.spawn(serve(socket, router, hub, seats.take())),
                    Socket::Unix(socket) => connections.spawn(serve(socket, router, hub, seats.take())),
                    Socket::Tls(socket, certificates) => {
                        let seat = seats.take_to_shake();
                        connections.spawn(serve_secure(socket, certificates, router, hub, seat))
                    }
                };
            }
            Err(error) => {
                if let Some(left_out) = pace.admit(Stamp::now()) {
                    tracing::warn!(%error, left_out, "cannot accept a control connection");
                }
                seats.make_room(Duration::ZERO, None);
                tokio::time::sleep(Duration::from_millis(CONTROL_ACCEPT_RETRY_MS)).await;
            }
        }
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What is still open then is cut off when `connections` is dropped.
    let _ = tokio::time::timeout(Duration::from_millis(CONTROL_GRACE_MS), ended).await;
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(listener) | Listener::Tls(listener, _) => listener.as_fd(),
            Listener::Unix(listener) => listener.as_fd(),
        }
    }
}

async fn accept_one(listener: Option<&Listener>) -> io::Result<Socket> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                Ok(Socket::Tcp(socket))
            }
            Listener::Tls(listener, certificates) => {
                let (socket, _) = listener.accept().await?;
                socket.set_nodelay(true)?;
                Ok(Socket::Tls(socket, certificates.clone()))
            }
            Listener::Unix(listener) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

/// Serves requests on one connection until either side has enough of it, or its seat is needed.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    router: Router,
    hub: Arc<Hub>,
    seat: Arc<Seat>,
) {
    let head_bytes_max = hub.config().limits.handshake_bytes_max;
    let asked = Asked::default();
    let socket = Muted::new(socket, asked.clone());
    let service = service_fn(|request| answer(request, &router, &hub, &seat, &asked));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(CONTROL_HEAD_MS_MAX))
        .max_header_size(head_bytes_max)
        .max_headers(HEADERS_MAX)
        .max_buf_size(CONTROL_BUFFER_BYTES_MAX)
        // A client that has sent its request and half-closed still gets its answer.
        .half_close(true)
        .serve_connection(TokioIo::new(socket), service);
    let ended = tokio::select! {
        biased;
        () = seat.told_to_leave() => return,
        ended = &mut connection => ended,
        () = hub.reached(Stage::Stopped) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let Err(error) = ended else { return };
    let http1::Parts { io, read_buf, .. } = connection.into_parts();
    match refusal_of(&error, &read_buf, head_bytes_max) {
        Some(refusal) => {
            let refusal = hub.counted(refusal);
            if let Some(left_out) = hub.head_pace().admit(Stamp::now()) {
                tracing::debug!(
                    reason = refusal.reason.label(),
                    left_out,
                    "refused a request head: {refusal}"
                );
            }
            io.into_inner().refuse(&refusal).await;
        }
        None => {
            if let Some(left_out) = hub.head_pace().admit(Stamp::now()) {
                tracing::debug!(%error, left_out, "a control connection ended");
            }
        }
    }
}

/// The answer to one request; its connection is at work until the body of the answer is over.
async fn answer(
    request: Request<Incoming>,
    router: &Router,
    hub: &Arc<Hub>,
    seat: &Arc<Seat>,
    asked: &Asked,
) -> Result<Response, Infallible> {
    asked.note();
    let (response, work) = match seat.begin(request.uri().path()) {
        Ok(work) => (TowerToHyperService::new(router.clone()).call(request).await?, work),
        Err(work) => {
            let text =
                "all control connections are at work; only /healthz, /stats, /metrics and /slow are answered";
            let refusal = Refusal::new(RefusalReason::Busy, text);
            let body = Body::new(request.into_body()).into_data_stream();
            let mut response = refused_unread(hub, refusal, body);
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            (response, work)
        }
    };
    let mut response = response.map(|body| Body::new(Working::new(body, work)));
    // What follows on such a connection would be refused; another process takes it.
    if asked.is_mended() || hub.is_left() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

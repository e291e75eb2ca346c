//! Opening one subscriber connection: connect, the handshake of TLS where that is spoken, request,
//! response head.
//!
//! Non-blocking: [`Handshake::go_on`] does what is possible and is called again when the socket is
//! ready. The raw protocol opens as WebSocket does, so that the floor's sockets are of the same
//! kind as a server's: a connection that has only ever received acknowledges otherwise than one
//! that has sent a request.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow, bail};
use memchr::memmem;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use super::CrowdSetup;
use crate::fault::server_fault;
use crate::framing::http2::{Carrier, Request};
use crate::framing::websocket::{TEXT, client_frame};
use crate::framing::{Dialect, Protocol, Splitter, json, nats};
use crate::secure::{Door, Secure};
use crate::target::with_topic;
use crate::token::head_line;
use crate::workload::Behaviour;

/// The floor's answer to any request head: as long as a WebSocket server's, so that its sockets
/// have lived through the same.
pub const FLOOR_HEAD: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// Bytes of a response head that are read before giving up.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Bytes of an opening that are kept before giving up: more than the longest line of a NATS server
/// that its parser takes.
const OPENING_BYTES_MAX: usize = 256 << 10;
/// Runs of data that are kept of streams that are open before others of their connection.
const EARLY_RUNS_MAX: usize = 4_096;
/// The nonce of RFC 6455 §1.3 and the answer that it demands: a load test needs no surprise.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A connection that is not open yet.
#[derive(Debug)]
pub struct Handshake {
    /// What is still to be sent, as it goes over the socket.
    request: Vec<u8>,
    /// TLS, and the request that waits for its keys.
    secure: Option<(Box<Secure>, Vec<u8>)>,
    /// What has come of the response's head, and of what follows it as long as the opening is not
    /// over.
    head: Vec<u8>,
    opening: Opening,
    /// The streams that are asked for, where HTTP/2 is spoken.
    streams: Option<Box<Streams>>,
}

/// A connection of HTTP/2 whose streams are being opened.
#[derive(Debug)]
pub struct Streams {
    /// What the connection is.
    pub carrier: Carrier,
    /// Data of streams that came before all of them were open, and whose it is.
    pub early: Vec<(usize, Vec<u8>)>,
}

/// What the client still has to say and hear after the response's head.
#[derive(Debug)]
enum Opening {
    /// Nothing.
    None,
    /// This, once the head is here; then so many answers are awaited: the server's `PONG`, or one
    /// for each command.
    Say(Vec<u8>, u32),
    /// So many answers; the splitter has been fed what followed the head so far.
    Hear(Box<Splitter>, u32),
}

/// How far a handshake is.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// The socket must get ready first.
    Waiting,
    /// Open; these bytes followed the head, and a new splitter is to be fed all of them.
    Done {
        /// The bytes.
        rest: Vec<u8>,
        /// True if they and all that follow come in chunks (RFC 9112 §7.1).
        chunked: bool,
    },
}

/// One connection to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Attempt<'a> {
    /// What is asked for: one subscription, or one on each stream of HTTP/2. At least one.
    pub asks: &'a [Ask],
    /// Which source address of 127.0.0.0/8 a loopback target sees, so that ports do not run out.
    pub block: usize,
    /// The id after which an event stream, or a subscriber that gives commands, resumes.
    pub last_event_id: Option<&'a str>,
    /// TLS, if it is spoken.
    pub door: Option<&'a Door>,
}

/// One subscription.
#[derive(Debug)]
pub struct Ask {
    /// Index of the topic.
    pub topic: usize,
    /// The token that is brought, if one is.
    pub token: Option<String>,
}

/// Begins a connection.
pub fn start(setup: &CrowdSetup, attempt: Attempt<'_>) -> Result<(OwnedFd, Handshake)> {
    let family = if setup.target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP)).context(
        "opening a socket failed; if its descriptors are used up, raise the limit with `ulimit -n`",
    )?;
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    if let Some(bytes) = setup.receive_buffer {
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    if let IpAddr::V4(target) = setup.target.ip()
        && target.is_loopback()
    {
        let source = SocketAddr::from((source_address(attempt.block)?, 0));
        rustix::net::bind(&socket, &source)
            .with_context(|| format!("no free port at source address {source}"))?;
    }
    match rustix::net::connect(&socket, &setup.target) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(refused(setup, error)),
    }
    let opening = match (setup.protocol, setup.dialect) {
        (Protocol::Ws, Dialect::Nats) => {
            let path = with_topic(&setup.path, attempt.asks[0].topic);
            Opening::Say(nats::opening(nats::subject_of(&path)), 1)
        }
        (Protocol::Json, _) if !setup.commands.is_empty() => {
            let numbered = (1..).zip(&setup.commands);
            let frames = numbered.flat_map(|(number, of)| {
                let of = with_topic(of, attempt.asks[0].topic);
                let command = json::subscribe(number, &of, attempt.last_event_id);
                client_frame(TEXT, command.as_bytes())
            });
            Opening::Say(frames.collect(), setup.commands.len() as u32)
        }
        _ => Opening::None,
    };
    let (request, streams) = match setup.streams {
        None => (request(setup, attempt), None),
        Some(_) => {
            let (carrier, begin) = carrier(setup, attempt)?;
            (begin, Some(Box::new(Streams { carrier, early: Vec::new() })))
        }
    };
    let (request, secure) = match attempt.door {
        None => (request, None),
        Some(door) => {
            let (secure, hello) = Secure::begin(door)?;
            (hello, Some((Box::new(secure), request)))
        }
    };
    Ok((socket, Handshake { request, secure, head: Vec::new(), opening, streams }))
}

fn refused(setup: &CrowdSetup, error: Errno) -> anyhow::Error {
    let target = setup.target;
    match error {
        Errno::ADDRNOTAVAIL => anyhow!(
            "cannot connect to {target}: no port is left for it; widen net.ipv4.ip_local_port_range or use fewer connections"
        ),
        Errno::CONNRESET | Errno::PIPE => {
            server_fault(format!("{target} broke the connection within the handshake: {error}"))
        }
        _ => server_fault(format!("cannot connect to {target}: {error}; is the server running?")),
    }
}

/// 127.1.0.1 and those after it.
fn source_address(block: usize) -> Result<Ipv4Addr> {
    let number = block + 1;
    if number >= 250 << 16 {
        bail!("the source addresses of 127.0.0.0/8 are used up");
    }
    Ok(Ipv4Addr::new(127, 1 + (number >> 16) as u8, (number >> 8) as u8, number as u8))
}

/// A connection of HTTP/2 that asks for its streams.
fn carrier(setup: &CrowdSetup, attempt: Attempt<'_>) -> Result<(Carrier, Vec<u8>)> {
    let request = |ask: &Ask| Request {
        path: with_topic(&setup.path, ask.topic),
        authority: setup.target.to_string(),
        token: ask.token.clone(),
        is_secure: attempt.door.is_some(),
    };
    let requests: Vec<Request> = attempt.asks.iter().map(request).collect();
    Carrier::begin(&requests).map_err(anyhow::Error::msg)
}

fn request(setup: &CrowdSetup, attempt: Attempt<'_>) -> Vec<u8> {
    let Ask { topic, token } = &attempt.asks[0];
    let (path, host) = (with_topic(&setup.path, *topic), setup.target);
    let bearer = head_line(token.as_deref());
    match setup.protocol {
        Protocol::Sse => {
            let resume =
                attempt.last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
            format!(
                "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n{resume}{bearer}\r\n"
            )
            .into_bytes()
        }
        Protocol::Ws | Protocol::Json | Protocol::Raw => {
            websocket_request(setup.protocol, &path, host, token.as_deref())
        }
    }
}

/// The request that opens a WebSocket, with a token if one is given; its answer ends where
/// [`head_end`] says.
pub fn websocket_request(protocol: Protocol, path: &str, host: SocketAddr, token: Option<&str>) -> Vec<u8> {
    let bearer = head_line(token);
    let offer = match protocol {
        Protocol::Json => format!("Sec-WebSocket-Protocol: {}\r\n", json::SUBPROTOCOL),
        _ => String::new(),
    };
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{offer}{bearer}\r\n"
    )
    .into_bytes()
}

impl Handshake {
    /// Sends and reads as far as the socket lets it.
    pub fn go_on(&mut self, socket: &OwnedFd, setup: &CrowdSetup, buffer: &mut [u8]) -> Result<Step> {
        if let Err(error) = rustix::net::sockopt::socket_error(socket)? {
            return Err(refused(setup, error));
        }
        if !self.send(socket, setup)? {
            return Ok(Step::Waiting);
        }
        if self.are_streams_open() {
            return Ok(Step::Done { rest: Vec::new(), chunked: false });
        }
        // A stalled reader shall leave the stream's bytes in the socket: it reads the head in small
        // pieces.
        let piece = if setup.behaviour == Behaviour::Stalled { 1 } else { buffer.len() };
        loop {
            match rustix::net::recv(socket, &mut buffer[..piece], RecvFlags::empty()) {
                Ok((0, _)) => {
                    let (target, said) = (setup.target, self.said());
                    return Err(server_fault(format!("{target} closed within the handshake{said}")));
                }
                Ok((read, _)) => {
                    let before = self.head.len();
                    self.take(&mut buffer[..read])?;
                    if self.streams.is_some() {
                        self.hear_streams()?;
                        if !self.send(socket, setup)? {
                            return Ok(Step::Waiting);
                        }
                        if self.are_streams_open() {
                            return Ok(Step::Done { rest: Vec::new(), chunked: false });
                        }
                        continue;
                    }
                    // What does not go out now does when the socket has room.
                    self.send(socket, setup)?;
                    if let Opening::Hear(splitter, left) = &mut self.opening {
                        *left = left.saturating_sub(heard(splitter, &self.head[before..])?);
                        if *left == 0 {
                            return Ok(Step::Done { rest: std::mem::take(&mut self.head), chunked: false });
                        }
                        if self.head.len() > OPENING_BYTES_MAX {
                            bail!(
                                "the server sent {OPENING_BYTES_MAX} bytes and no answer to the subscription"
                            );
                        }
                        continue;
                    }
                }
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(Step::Waiting),
                Err(error) => return Err(refused(setup, error)),
            }
            if let Some(end) = head_end(setup.protocol, &self.head)? {
                let rest = self.head.split_off(end);
                let chunked = setup.protocol == Protocol::Sse && is_chunked(&self.head)?;
                let Opening::Say(opening, answers) = std::mem::replace(&mut self.opening, Opening::None)
                else {
                    return Ok(Step::Done { rest, chunked });
                };
                let mut splitter = Box::new(Splitter::new(setup.protocol, setup.dialect, 0));
                // No server answers before it was asked.
                heard(&mut splitter, &rest)?;
                self.head = rest;
                self.say(&opening)?;
                self.opening = Opening::Hear(splitter, answers);
                if !self.send(socket, setup)? {
                    return Ok(Step::Waiting);
                }
            }
        }
    }

    /// What came from the socket: TLS takes its own, the rest is the server's answer.
    fn take(&mut self, bytes: &mut [u8]) -> Result<()> {
        let Some((secure, waiting)) = &mut self.secure else {
            self.head.extend_from_slice(bytes);
            return Ok(());
        };
        let head = &mut self.head;
        let mut keep = |data: &[u8]| {
            head.extend_from_slice(data);
            Ok(())
        };
        secure.read(bytes, &mut self.request, &mut keep)?;
        if secure.is_open() && !waiting.is_empty() {
            if self.streams.is_some() && !secure.speaks_http2() {
                return Err(server_fault("the server does not take `h2` (ALPN)"));
            }
            let request = std::mem::take(waiting);
            self.say(&request)?;
        }
        Ok(())
    }

    /// Has something to be sent.
    fn say(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.secure {
            None => self.request.extend_from_slice(bytes),
            Some((secure, _)) => self.request.extend(secure.seal(bytes)?),
        }
        Ok(())
    }

    /// Gives what has come to the streams.
    fn hear_streams(&mut self) -> Result<()> {
        let Some(Streams { carrier, early }) = self.streams.as_deref_mut() else { return Ok(()) };
        let mut at = 0;
        while let Some((stream, run)) = carrier.next(&self.head, &mut at).map_err(server_fault)? {
            early.push((stream, self.head[run].to_vec()));
        }
        if early.len() > EARLY_RUNS_MAX {
            bail!("the server sends data on some streams of a connection and no heads on others");
        }
        self.head.clear();
        let answers = carrier.answers();
        if answers.is_empty() { Ok(()) } else { self.say(&answers) }
    }

    /// True once all streams are open. Never where there are none.
    fn are_streams_open(&self) -> bool {
        self.streams.as_ref().is_some_and(|streams| streams.carrier.is_open())
    }

    /// What the open connection speaks with: TLS, and streams of HTTP/2, if it is either.
    pub fn into_parts(self) -> (Option<Box<Secure>>, Option<Box<Streams>>) {
        (self.secure.map(|(secure, _)| secure), self.streams)
    }

    /// Sends what is left of the request; false if the socket must get ready first.
    fn send(&mut self, socket: &OwnedFd, setup: &CrowdSetup) -> Result<bool> {
        while !self.request.is_empty() {
            match rustix::net::send(socket, &self.request, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.request.drain(..sent)),
                Err(Errno::AGAIN | Errno::NOTCONN) => return Ok(false),
                Err(error) => return Err(refused(setup, error)),
            }
        }
        Ok(true)
    }

    fn said(&self) -> String {
        match self.head.is_empty() {
            true => String::new(),
            false => format!(", after {:?}", String::from_utf8_lossy(&self.head)),
        }
    }
}

/// The server's answers among these bytes.
fn heard(splitter: &mut Splitter, bytes: &[u8]) -> Result<u32> {
    match splitter.feed(bytes, |_| ()) {
        Ok(fed) => Ok(fed.pongs),
        Err(cause) => Err(server_fault(format!("the subscription failed: {cause}"))),
    }
}

/// Where the head ends, if all of it is here; an error if the server refused.
pub fn head_end(protocol: Protocol, bytes: &[u8]) -> Result<Option<usize>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
        if bytes.len() > HEAD_BYTES_MAX {
            bail!("the server's response head has more than {HEAD_BYTES_MAX} bytes");
        }
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let status = head.lines().next().unwrap_or_default();
    let wanted = if protocol == Protocol::Sse { "200" } else { "101" };
    if status.split(' ').nth(1) != Some(wanted) || !status.starts_with("HTTP/1.") {
        let body = String::from_utf8_lossy(&bytes[end + 4..]);
        return Err(server_fault(format!(
            "the server refused the connection: {status}: {}",
            body.lines().next().unwrap_or_default().trim()
        )));
    }
    let field = |wanted: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned()))
    };
    if protocol == Protocol::Json && field("sec-websocket-protocol").as_deref() != Some(json::SUBPROTOCOL) {
        return Err(server_fault(format!("the server does not speak {}", json::SUBPROTOCOL)));
    }
    if matches!(protocol, Protocol::Ws | Protocol::Json) {
        let accept = field("sec-websocket-accept");
        if accept.as_deref() != Some(ACCEPT) {
            bail!("the server's Sec-WebSocket-Accept is {accept:?}, not {ACCEPT:?}");
        }
    }
    Ok(Some(end + 4))
}

/// Whether a response's body comes in chunks; an error if in another transfer coding (RFC 9112
/// §6.1).
fn is_chunked(head: &[u8]) -> Result<bool> {
    let head = String::from_utf8_lossy(head);
    let codings: Vec<&str> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"))
        .flat_map(|(_, value)| value.split(','))
        .map(str::trim)
        .filter(|coding| !coding.is_empty())
        .collect();
    match codings[..] {
        [] => Ok(false),
        [coding] if coding.eq_ignore_ascii_case("chunked") => Ok(true),
        _ => bail!("the server sends its stream in {}; only chunked is understood", codings.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_at_the_blank_line_and_the_rest_is_stream() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hi\n\n";
        let end = head_end(Protocol::Sse, bytes).expect("200").expect("whole");
        assert_eq!(&bytes[end..], b": hi\n\n");
        assert_eq!(head_end(Protocol::Sse, &bytes[..30]).expect("no error yet"), None);
    }

    #[test]
    fn a_refusal_is_told_with_its_status_and_reason() {
        let error =
            head_end(Protocol::Sse, b"HTTP/1.1 503 Service Unavailable\r\n\r\nfull\n").expect_err("503");
        assert!(error.to_string().contains("503") && error.to_string().contains("full"), "{error}");
        assert!(head_end(Protocol::Ws, b"HTTP/1.1 200 OK\r\n\r\n").is_err());
        assert!(head_end(Protocol::Sse, b"SSH-2.0 200\r\n\r\n").is_err());
    }

    #[test]
    fn a_websocket_answer_must_carry_the_right_accept_value() {
        let answer =
            |accept: &str| format!("HTTP/1.1 101 X\r\nsec-websocket-accept: {accept}\r\n\r\n").into_bytes();
        assert!(head_end(Protocol::Ws, &answer(ACCEPT)).expect("right").is_some());
        assert!(head_end(Protocol::Ws, &answer("wrong")).is_err());
        assert!(head_end(Protocol::Ws, b"HTTP/1.1 101 X\r\n\r\n").is_err());
    }

    #[test]
    fn a_chunked_body_is_known_by_its_head_and_other_codings_are_refused() {
        let head = |line: &str| format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n").into_bytes();
        assert!(is_chunked(&head("transfer-encoding:  Chunked ")).expect("a coding"));
        assert!(!is_chunked(&head("Content-Type: text/event-stream")).expect("none"));
        let error = is_chunked(&head("Transfer-Encoding: gzip, chunked")).expect_err("gzip");
        assert!(error.to_string().contains("gzip, chunked"), "{error}");
    }

    #[test]
    fn source_addresses_are_many_and_distinct() {
        assert_eq!(source_address(0).expect("valid"), Ipv4Addr::new(127, 1, 0, 1));
        assert_eq!(source_address(255).expect("valid"), Ipv4Addr::new(127, 1, 1, 0));
        assert_eq!(source_address(65_535).expect("valid"), Ipv4Addr::new(127, 2, 0, 0));
        assert!(source_address(250 << 16).is_err());
    }
}

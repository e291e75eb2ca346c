//! One direction or both of a connection to the server, written without ever waiting for ever.
//!
//! While the other end does not read, a [`Pipe`] goes on hearing what it says: a server whose
//! answers nobody reads would in the end stop reading too.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::fault::{ServerFault, server_fault};

/// How long a server may leave a publish unread, or unanswered.
pub const STUCK_LIMIT: Duration = Duration::from_secs(20);
/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// What is said of a server that hangs up.
pub const CLOSED: &str = "the server closed the publisher's connection";

/// A connection to a publishers' port, without Nagle's algorithm.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, CONNECT_LIMIT).map_err(|error| match error.kind() {
        ErrorKind::AddrNotAvailable => anyhow!(
            "cannot connect to {address} to publish: no port is left for it; widen net.ipv4.ip_local_port_range"
        ),
        _ => server_fault(format!("cannot connect to {address} to publish: {error}; is the server running?")),
    })?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// What is said of a connection that does not end as it should.
pub fn broke(error: impl Into<Error>) -> Error {
    error.into().context(ServerFault("the server broke the publisher's connection".into()))
}

/// A non-blocking descriptor.
#[derive(Debug)]
pub struct Pipe {
    fd: OwnedFd,
    /// True if the other end may say something.
    two_way: bool,
    /// How long the other end may leave bytes unread.
    limit: Duration,
}

impl Pipe {
    /// Connects to `address`.
    pub fn connect(address: SocketAddr) -> Result<Pipe> {
        let socket = connect(address)?;
        socket.set_nonblocking(true)?;
        Ok(Pipe { fd: socket.into(), two_way: true, limit: STUCK_LIMIT })
    }

    /// Over the writing end of a pipe.
    pub fn one_way(fd: OwnedFd) -> Result<Pipe> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Pipe { fd, two_way: false, limit: STUCK_LIMIT })
    }

    /// Writes all of `bytes`. `hear` gets what comes meanwhile; what it complains of is the error
    /// in place of a broken connection's.
    pub fn send(&mut self, mut bytes: &[u8], mut hear: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut deadline = None;
        while !bytes.is_empty() {
            match rustix::io::write(&self.fd, bytes) {
                Ok(written) => {
                    bytes = &bytes[written..];
                    deadline = None;
                }
                Err(Errno::AGAIN) => {
                    let deadline = *deadline.get_or_insert_with(|| Instant::now() + self.limit);
                    let ready = self.wait(PollFlags::OUT, deadline)?;
                    if ready.is_empty() {
                        return Err(self.unread(bytes.len()));
                    }
                    if self.two_way && !ready.contains(PollFlags::OUT) {
                        self.hear(&mut hear)?;
                    }
                }
                Err(Errno::INTR) => {}
                Err(error) => {
                    if !self.two_way {
                        return Err(error.into());
                    }
                    // What was said before the end is the better reason; nothing may have been.
                    self.hear(&mut hear)?;
                    return Err(broke(error));
                }
            }
        }
        Ok(())
    }

    /// What is said of an other end that does not read: a server, or the user's own program.
    fn unread(&self, bytes: usize) -> Error {
        let stuck = format!("has not read for {:?}; {bytes} bytes of a publish are unsent", self.limit);
        match self.two_way {
            true => server_fault(format!("the server {stuck}")),
            false => anyhow!("it {stuck}"),
        }
    }

    /// Hands what has come to `hear`, without waiting; an error at the end of the stream.
    pub fn hear(&mut self, mut hear: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self.read(&mut hear)? {
            true => Ok(()),
            false => Err(server_fault(CLOSED)),
        }
    }

    /// The same; false at the end of the stream.
    fn read(&mut self, hear: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        let mut chunk = [0; READ_BYTES];
        loop {
            match rustix::io::read(&self.fd, &mut chunk[..]) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    hear(&chunk[..read])?;
                    if read < chunk.len() {
                        return Ok(true);
                    }
                }
                Err(Errno::AGAIN) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(broke(error)),
            }
        }
    }

    /// Hears until `enough` says so after each piece, the stream ends (false), or the limit is over
    /// (an error).
    pub fn hear_until(&mut self, mut enough: impl FnMut(&[u8]) -> Result<bool>) -> Result<bool> {
        let deadline = Instant::now() + self.limit;
        let mut done = false;
        while !done {
            if self.wait(PollFlags::IN, deadline)?.is_empty() {
                return Err(server_fault(format!("the server did not answer within {:?}", self.limit)));
            }
            let open = self.read(&mut |bytes| {
                done |= enough(bytes)?;
                Ok(())
            })?;
            if !open {
                return Ok(done);
            }
        }
        Ok(true)
    }

    /// Waits until the descriptor is ready for `flags` or has something to read; empty at the
    /// deadline.
    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<PollFlags> {
        let flags = if self.two_way { flags | PollFlags::IN } else { flags };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let fd = self.fd.as_fd();
            let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(PollFlags::empty()),
                Ok(_) => return Ok(fds[0].revents()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("waiting for the server"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A pipe with a short limit, and the server's end of it.
    fn pair() -> (Pipe, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let pipe = Pipe::connect(listener.local_addr().expect("bound")).expect("it listens");
        let (server, _) = listener.accept().expect("just connected");
        (Pipe { limit: Duration::from_millis(100), ..pipe }, server)
    }

    #[test]
    fn a_server_that_stops_reading_is_told_after_the_limit() {
        let (mut pipe, _server) = pair();
        let error = pipe.send(&vec![0; 64 << 20], |_| Ok(())).expect_err("nobody reads");
        assert!(error.to_string().contains("has not read for 100ms"), "{error}");
    }

    #[test]
    fn what_the_server_says_is_heard_while_it_does_not_read() {
        let (mut pipe, mut server) = pair();
        let writer = std::thread::spawn(move || {
            server.write_all(&vec![b'y'; 16 << 20]).expect("the publisher hears");
            server.read_exact(&mut vec![0; 16 << 20]).expect("the publisher goes on");
            server
        });
        let mut heard = 0;
        pipe.limit = STUCK_LIMIT;
        pipe.send(&vec![0; 16 << 20], |bytes| {
            heard += bytes.len();
            Ok(())
        })
        .expect("the server reads in the end");
        assert!(heard > 0, "neither would have gone on");
        while heard < 16 << 20 {
            // What the server had said by then may still be on its way.
            let more = |bytes: &[u8]| {
                heard += bytes.len();
                Ok(true)
            };
            assert!(pipe.hear_until(more).expect("it goes on"));
        }
        assert_eq!(heard, 16 << 20);
        drop(writer.join().expect("no panic"));
        assert!(!pipe.hear_until(|_| Ok(false)).expect("it ends"));
        assert!(pipe.hear(|_| Ok(())).expect_err("it has ended").to_string().contains("closed"));
    }

    #[test]
    fn an_answer_that_does_not_come_is_told_after_the_limit() {
        let (mut pipe, _server) = pair();
        let error = pipe.hear_until(|_| Ok(true)).expect_err("silence");
        assert!(error.to_string().contains("did not answer within 100ms"), "{error}");
    }
}

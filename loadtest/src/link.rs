//! JSON lines between the coordinator and its child processes, over the children's standard input
//! and output.
//!
//! The coordinator gives orders, a child answers with words; both are serde types of the module
//! that owns the child. A child ends when its input ends. Waiting for a word is bounded everywhere:
//! a deadline is an argument. Writing waits for whoever reads, so each side writes only what the
//! other has asked for or is about to read; what nobody need read now is written only where
//! [`has_room`] says so.

use std::ffi::OsString;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::process::{Child, describe};

/// Bytes read at once from a pipe.
const READ_BYTES: usize = 16 << 10;
/// The longest line: a report with a histogram has some tens of KiB.
const LINE_BYTES_MAX: usize = 4 << 20;

/// Lines read from a descriptor.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    /// Reads once; false if the other end has closed.
    pub fn fill(&mut self, from: impl AsFd) -> Result<bool> {
        let mut chunk = [0; READ_BYTES];
        match rustix::io::read(from, &mut chunk[..]) {
            Ok(0) => Ok(false),
            Ok(read) => {
                self.push(&chunk[..read])?;
                Ok(true)
            }
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes bytes that were read elsewhere.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > LINE_BYTES_MAX {
            bail!("a line of more than {LINE_BYTES_MAX} bytes between our own processes");
        }
        Ok(())
    }

    /// The next whole line as JSON, if there is one.
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(end) = memchr::memchr(b'\n', &self.buffer) else { return Ok(None) };
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        serde_json::from_slice(&line)
            .map(Some)
            .with_context(|| format!("a line between our own processes: {}", String::from_utf8_lossy(&line)))
    }
}

/// Writes one value as a line.
pub fn write_line(mut to: impl Write, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()?;
    Ok(())
}

/// True if a line of less than a page can be written without waiting for whoever reads: a pipe that
/// is ready has a page.
pub fn has_room(to: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&to, PollFlags::OUT)];
    // An end that is closed or cannot be asked is ready: writing to it tells why.
    !matches!(rustix::event::poll(&mut fds, Some(&Timespec::default())), Ok(0))
}

/// The coordinator's end of one child.
#[derive(Debug)]
pub struct Link {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    lines: Lines,
}

impl Link {
    /// Starts this program again as `role`, pinned to `cpu`.
    pub fn start(role: &str, cpu: Option<usize>) -> Result<Link> {
        let own = std::env::current_exe().context("finding this program's own file")?;
        let stdio = [Stdio::piped(), Stdio::piped(), Stdio::inherit()];
        let mut child = Child::start(role, cpu, own.as_os_str(), &[OsString::from(role)], stdio)?;
        let stdin = child.pipes().stdin.take().context("the child's input is a pipe")?;
        let stdout = child.pipes().stdout.take().context("the child's output is a pipe")?;
        Ok(Link { child, stdin, stdout, lines: Lines::default() })
    }

    /// Process id of the child.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Gives an order.
    pub fn send(&mut self, order: &impl Serialize) -> Result<()> {
        write_line(&mut self.stdin, order).map_err(|error| self.ended_or(error))
    }

    /// The next word, or `None` if none has come by `deadline`.
    pub fn next<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<Option<T>> {
        loop {
            if let Some(word) = self.lines.next()? {
                return Ok(Some(word));
            }
            if wait(&[&*self], deadline)?.is_empty() {
                if Instant::now() < deadline {
                    continue;
                }
                return Ok(None);
            }
            if !self.lines.fill(&self.stdout)? {
                return Err(self.ended_or(anyhow!("its output ended")));
            }
        }
    }

    /// A word that is here already.
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        self.next(Instant::now())
    }

    fn ended_or(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.child.stop(rustix::process::Signal::KILL, std::time::Duration::from_secs(1)) {
            Ok(status) => error.context(format!("a child process ended: {}", describe(status))),
            Err(_) => error,
        }
    }
}

/// Waits until one of the links has something to read; gives the indexes of those that have, none
/// at the deadline.
pub fn wait(links: &[&Link], deadline: Instant) -> Result<Vec<usize>> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
    let mut fds: Vec<_> = links.iter().map(|link| PollFd::new(&link.stdout, PollFlags::IN)).collect();
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("waiting for the child processes"),
    }
    Ok((0..fds.len()).filter(|&at| !fds[at].revents().is_empty()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_out_whole_however_they_were_written() {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let mut lines = Lines::default();
        rustix::io::write(&write, b"[1,2]\n[3").expect("room");
        assert!(lines.fill(&read).expect("readable"));
        assert_eq!(lines.next::<Vec<u8>>().expect("JSON"), Some(vec![1, 2]));
        assert_eq!(lines.next::<Vec<u8>>().expect("JSON"), None);
        rustix::io::write(&write, b"]\nnonsense\n").expect("room");
        assert!(lines.fill(&read).expect("readable"));
        assert_eq!(lines.next::<Vec<u8>>().expect("JSON"), Some(vec![3]));
        assert!(lines.next::<Vec<u8>>().is_err());
        drop(write);
        assert!(!lines.fill(&read).expect("readable"));
    }

    #[test]
    fn a_full_pipe_has_no_room_until_somebody_reads_and_a_closed_one_is_not_waited_for() {
        let (read, write) = rustix::pipe::pipe().expect("a pipe");
        let mut lines = 0;
        while has_room(&write) {
            rustix::io::write(&write, &[b'x'; 40]).expect("room");
            lines += 1;
            assert!(lines < 1 << 20, "a pipe is bounded");
        }
        assert!(lines > 1);
        let mut left = 40 * lines;
        while left > 0 {
            left -= rustix::io::read(&read, &mut vec![0; left][..]).expect("readable");
        }
        assert!(has_room(&write));
        drop(read);
        assert!(has_room(&write));
    }
}

//! A server's process: started on a CPU, its output watched, ended when it is dropped.
//!
//! The last lines of its output are kept, so that an early end is told with the server's own
//! reason. Ready is when its output has said everything that the caller waits for.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;

use crate::fault::ServerFault;
use crate::process::{Child, describe};

/// How long a server may take to be ready.
pub const START_LIMIT: Duration = Duration::from_secs(20);
/// How long a server may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long an error waits for the end of a server that may be the cause.
const END_LIMIT: Duration = Duration::from_millis(300);
/// Lines of its output that are kept for an error.
const LINES_KEPT: usize = 6;
/// Lines of its output that are kept from its start, where it says what it may use.
const FIRST_LINES_KEPT: usize = 64;
/// Bytes of a line; a longer one counts as several.
const LINE_BYTES_MAX: u64 = 4 << 10;

/// A running server process. Dropping it kills it.
pub struct Program {
    child: Child,
    /// What errors call it, for example `fanwave`.
    name: String,
    first_lines: FirstLines,
    last_lines: LastLines,
    told: Receiver<String>,
}

type FirstLines = Arc<Mutex<Vec<String>>>;
type LastLines = Arc<Mutex<VecDeque<String>>>;

impl Program {
    /// Starts `program` with `args` on `cpu` alone if one is given.
    pub fn start(name: &str, cpu: Option<usize>, program: &OsStr, args: &[OsString]) -> Result<Program> {
        let stdio = [Stdio::null(), Stdio::piped(), Stdio::piped()];
        let mut child = Child::start(name, cpu, program, args, stdio)?;
        let (first_lines, last_lines) = (FirstLines::default(), LastLines::default());
        let (tell, told) = channel();
        let stdout = child.pipes().stdout.take().context("the server's output is a pipe")?;
        let stderr = child.pipes().stderr.take().context("the server's errors are a pipe")?;
        watch(stdout, Some(Arc::clone(&first_lines)), Arc::clone(&last_lines), tell.clone());
        watch(stderr, None, Arc::clone(&last_lines), tell);
        Ok(Program { child, name: name.to_owned(), first_lines, last_lines, told })
    }

    /// Waits until `ready`, fed with each line of output, gives something; an error if it ends or
    /// stays silent before.
    pub fn wait_ready<T>(&mut self, mut ready: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START_LIMIT;
        // A server that talks without end is no more ready than a silent one.
        while let Some(left) = deadline.checked_duration_since(Instant::now())
            && let Ok(line) = self.told.recv_timeout(left)
        {
            if let Some(found) = ready(&line) {
                // Whatever comes from here on is kept for errors only.
                self.told = channel().1;
                return Ok(found);
            }
        }
        Err(self.not_started())
    }

    /// Why it is not ready.
    fn not_started(&mut self) -> anyhow::Error {
        let why = match self.ended_soon() {
            Some(status) => self.end(status),
            None => format!("not ready within {START_LIMIT:?}: {}", shown(&self.last_lines)),
        };
        anyhow!("{} did not start: {why}", self.name)
    }

    /// How it ended, if it does so by itself within a moment: its output and its sockets close
    /// before its end can be seen.
    fn ended_soon(&mut self) -> Option<ExitStatus> {
        self.child.ended_within(END_LIMIT)
    }

    /// An end in words. Its last lines are its reason if it ended by itself; a panic does that by
    /// SIGABRT. Whoever was killed has not said why.
    fn end(&self, status: ExitStatus) -> String {
        match status.signal() {
            Some(signal) if signal != Signal::ABORT.as_raw() => describe(status),
            _ => format!("{}: {}", describe(status), shown(&self.last_lines)),
        }
    }

    /// The first lines of its standard output, as far as they have come.
    pub fn first_lines(&self) -> Vec<String> {
        self.first_lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Adds to an error how the server ended, and what it said, if it has ended: then that is the
    /// cause.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.ended_soon() {
            Some(status) => error.context(ServerFault(format!("{} ended: {}", self.name, self.end(status)))),
            None => error,
        }
    }

    /// SIGTERM, and an end that `well` accepts within the limit.
    pub fn stop(&mut self, well: impl FnOnce(ExitStatus) -> bool) -> Result<()> {
        let status = self.child.stop(Signal::TERM, STOP_LIMIT)?;
        if !well(status) {
            bail!("{} ended badly after SIGTERM: {}", self.name, self.end(status));
        }
        Ok(())
    }
}

/// Copies lines away until the stream ends, so that the server never blocks on its output.
fn watch(
    from: impl Read + Send + 'static,
    first_lines: Option<FirstLines>,
    last_lines: LastLines,
    tell: Sender<String>,
) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            // A server may print what is no UTF-8.
            let text = String::from_utf8_lossy(line.trim_ascii_end()).into_owned();
            line.clear();
            if let Some(first) = &first_lines {
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                if first.len() < FIRST_LINES_KEPT {
                    first.push(text.clone());
                }
            }
            let mut kept = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back(text.clone());
            if kept.len() > LINES_KEPT {
                kept.pop_front();
            }
            drop(kept);
            // Nobody listens any more once the server is ready.
            let _ = tell.send(text);
        }
    });
}

fn shown(last_lines: &LastLines) -> String {
    let kept = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
    match kept.is_empty() {
        true => "it printed nothing".into(),
        false => kept.iter().map(String::as_str).collect::<Vec<_>>().join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shown_in_their_order() {
        let lines = LastLines::default();
        assert_eq!(shown(&lines), "it printed nothing");
        lines.lock().expect("not poisoned").extend(["a".to_string(), "b".to_string()]);
        assert_eq!(shown(&lines), "a | b");
    }

    #[test]
    fn output_that_is_no_text_and_has_no_end_of_line_is_taken_to_its_end() {
        let (lines, (tell, told)) = (LastLines::default(), channel());
        let output =
            [b"ready \xff\n".to_vec(), vec![b'x'; 10 * LINE_BYTES_MAX as usize], b"\nlast".to_vec()].concat();
        let first = FirstLines::default();
        watch(std::io::Cursor::new(output), Some(Arc::clone(&first)), lines, tell);
        let told: Vec<String> = told.iter().collect();
        assert_eq!((told[0].as_str(), told[told.len() - 1].as_str()), ("ready \u{fffd}", "last"));
        assert!(told.iter().all(|line| line.len() as u64 <= LINE_BYTES_MAX));
        assert_eq!(*first.lock().expect("not poisoned"), told, "few enough to be kept");
    }
}

//! The log: how its lines look, how many a reason may have, and who writes them.
//!
//! Invariants worth naming:
//! - What clients provoke is bounded: each reason has a [`Pace`], which counts what it leaves out.
//! - An access log must not make a shard wait for whatever reads standard error. So with one, all
//!   lines go through a bounded queue to a thread; a line that finds it full is left out and
//!   counted ([`left_out`]). Without one nothing of this is there.
//! - No line tells a request's query: it may hold a token.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::clock::Stamp;
use crate::config::LogFormat;
use crate::config::limits::{LOG_DETAILS_PER_SECOND, LOG_FLUSH_MS_MAX, LOG_LINES_MAX, LOG_WARNING_MS};

/// The target of access lines.
pub const ACCESS: &str = "access";

/// How many lines one reason may have.
#[derive(Debug, Clone)]
pub struct Pace {
    lines_max: u32,
    every_ms: u64,
    /// When the first of the last `lines` was written.
    since: Option<Stamp>,
    /// 0 <= lines <= lines_max.
    lines: u32,
    left_out: u64,
}

impl Pace {
    /// One line in ten seconds.
    pub const WARNING: Pace = Pace::new(1, LOG_WARNING_MS);
    /// Some lines per second.
    pub const DETAIL: Pace = Pace::new(LOG_DETAILS_PER_SECOND, 1_000);

    const fn new(lines_max: u32, every_ms: u64) -> Pace {
        Pace { lines_max, every_ms, since: None, lines: 0, left_out: 0 }
    }

    /// `Some` if a line may be written now: with the number of those that were left out since the
    /// last one.
    pub fn admit(&mut self, now: Stamp) -> Option<u64> {
        if self.since.is_none_or(|since| now.ns_since(since) >= self.every_ms * 1_000_000) {
            (self.since, self.lines) = (Some(now), 0);
        }
        if self.lines == self.lines_max {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

/// What waits for the thread that writes.
enum Said {
    Line(Vec<u8>),
    /// All before this is to be written, then said.
    Flush(Sender<()>),
}

static QUEUE: OnceLock<Sender<Said>> = OnceLock::new();
/// Sets another filter.
static FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();
static LEFT_OUT: AtomicU64 = AtomicU64::new(0);

/// Lines that found the queue full, from the start.
pub fn left_out() -> u64 {
    LEFT_OUT.load(Ordering::Relaxed)
}

/// Begins the log on standard error; `filter` was checked. With `access` it takes access lines,
/// whatever the filter says.
pub fn start(filter: &str, format: LogFormat, access: bool) {
    let filter = whole_filter(filter, access);
    if access {
        let (queue, said) = bounded(LOG_LINES_MAX);
        let spawned = std::thread::Builder::new().name("log".into()).spawn(move || write(&said));
        // Without the thread every line is written where it is said.
        if spawned.is_ok() {
            QUEUE.get_or_init(|| queue);
        }
    }
    let lines = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(LogWriter(()));
    match format {
        LogFormat::Text => {
            let lines = lines.with_ansi(io::stderr().is_terminal()).with_filter_reloading();
            let handle = lines.reload_handle();
            FILTER.get_or_init(|| Box::new(move |filter| drop(handle.reload(filter))));
            lines.init();
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            FILTER.get_or_init(|| Box::new(move |filter| drop(handle.reload(filter))));
            lines.init();
        }
    }
}

/// Another filter for the log that has begun; it was checked.
pub fn set_filter(filter: &str, access: bool) {
    if let Some(set) = FILTER.get() {
        set(EnvFilter::new(whole_filter(filter, access)));
    }
}

/// What the operator wants to see, and access lines whatever that is.
fn whole_filter(filter: &str, access: bool) -> String {
    // The client of NATS writes without a pace; what matters of it is told by `jetstream`. A filter
    // that names it counts.
    let filter = format!("async_nats=off,{filter}");
    if access { format!("{filter},{ACCESS}=info") } else { filter }
}

/// Waits until all lines so far are written, for a while.
pub fn flush() {
    let Some(queue) = QUEUE.get() else { return };
    let patience = Duration::from_millis(LOG_FLUSH_MS_MAX);
    let (done, written) = bounded(1);
    if queue.send_timeout(Said::Flush(done), patience).is_ok() {
        let _ = written.recv_timeout(patience);
    }
}

/// Writes what is said, for as long as the process lives.
fn write(said: &Receiver<Said>) {
    let mut out = io::BufWriter::new(io::stderr());
    while let Ok(next) = said.recv() {
        // Nobody can be told that standard error is gone.
        let _ = match next {
            Said::Line(line) => out.write_all(&line),
            Said::Flush(done) => out.flush().and_then(|()| done.try_send(()).map_err(io::Error::other)),
        };
        if said.is_empty() {
            let _ = out.flush();
        }
    }
}

/// Takes one line at a time, whole.
struct LogWriter(());

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> LogWriter {
        LogWriter(())
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Some(queue) = QUEUE.get() else { return io::stderr().write(line) };
        if queue.try_send(Said::Line(line.to_vec())).is_err() {
            LEFT_OUT.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_has_so_many_lines_and_the_next_one_tells_how_many_were_left_out() {
        let mut pace = Pace::DETAIL;
        let at = |ms: u64| Stamp(ms * 1_000_000);
        let admitted = (0..1_000).filter(|ms| pace.admit(at(*ms)).is_some()).count();
        assert_eq!(admitted, LOG_DETAILS_PER_SECOND as usize);
        assert_eq!(pace.admit(at(1_000)), Some(1_000 - admitted as u64));
        assert_eq!(pace.admit(at(1_001)), Some(0));
        let mut pace = Pace::WARNING;
        assert_eq!((pace.admit(at(5)), pace.admit(at(6))), (Some(0), None));
        assert_eq!(pace.admit(at(5 + LOG_WARNING_MS)), Some(1));
    }
}

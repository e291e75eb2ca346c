//! The log of one test: nobody else's lines are in it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::dispatcher::{DefaultGuard, Dispatch, set_default};

/// Collects what this thread logs, until it is dropped. For tests whose tasks are all on this
/// thread.
pub(super) struct Log {
    written: Written,
    /// tracing remembers per log line whether anybody wants it. While there is a single subscriber,
    /// a thread without one may settle that for all threads; with two it asks them.
    _second: Dispatch,
    _guard: DefaultGuard,
}

/// The bytes of the log.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub(super) fn start() -> Log {
        let written = Written::default();
        let writer = written.clone();
        let collector = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let second = Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish());
        Log { written, _second: second, _guard: set_default(&Dispatch::new(collector)) }
    }

    /// The lines of this crate so far.
    pub(super) fn lines(&self) -> Vec<String> {
        let written = self.written.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&written);
        text.lines().filter(|line| line.contains("fanwave::")).map(str::to_string).collect()
    }
}

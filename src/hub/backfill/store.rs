//! A store's past: its log is read, and its events are encoded, on a thread of its own.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use tokio::sync::oneshot;

use super::{Archive, Away, Finding, Found, PAGES_BYTES, Pages, Style, Wanted};
use crate::clock::Stamp;
use crate::config::limits::SEARCH_MS_MAX;
use crate::event::Topic;
use crate::hub::Hub;
use crate::hub::source::Source;
use crate::log::Pace;
use crate::store::PastReader;

type Job = Box<dyn FnOnce(&mut PastReader) + Send>;

/// The way to the thread. It ends with this.
#[derive(Debug)]
struct StorePast {
    jobs: Sender<Job>,
    pace: Pace,
}

impl StorePast {
    fn begin(mut reader: PastReader) -> io::Result<StorePast> {
        let (jobs, work) = unbounded::<Job>();
        std::thread::Builder::new().name("backfill".into()).spawn(move || {
            for job in work {
                job(&mut reader);
            }
        })?;
        Ok(StorePast { jobs, pace: Pace::WARNING })
    }

    /// Has the thread find something; the hub asks for one thing at a time.
    async fn find<T: Send + 'static>(
        &mut self,
        find: impl FnOnce(&mut PastReader) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Away> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |reader| drop(answer.send(find(reader))));
        self.jobs.send(job).map_err(|_| Away)?;
        match answered.await {
            Ok(Ok(found)) => Ok(found),
            // Nobody waits for it any more.
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(Away),
            Ok(Err(error)) => {
                if let Some(left_out) = self.pace.admit(Stamp::now()) {
                    tracing::warn!(%error, left_out, "the store is not read for those who lack more than windows hold");
                }
                Err(Away)
            }
            Err(_) => Err(Away),
        }
    }
}

/// Then a search that begins now is worth nothing any more.
fn search_deadline() -> Instant {
    Instant::now() + Duration::from_millis(SEARCH_MS_MAX)
}

impl Archive for StorePast {
    fn pages(&mut self, wanted: Wanted, span: (u64, u64), style: Style) -> Finding<'_, Pages> {
        Box::pin(self.find(move |reader| {
            let names = wanted.names();
            let has = |topic: &str, sequence| wanted.has(topic, sequence);
            let crate::store::Stretch { events, to, floor } =
                reader.stretch(&has, names.as_deref(), span, PAGES_BYTES)?;
            Ok(style.pages(Found { events, to, floor }))
        }))
    }

    fn before_last(&mut self, wanted: Wanted, until: u64, events: u64) -> Finding<'_, u64> {
        let deadline = search_deadline();
        Box::pin(self.find(move |reader| {
            let names = wanted.names();
            let has = |topic: &str, sequence| wanted.has(topic, sequence);
            reader.before_last(&has, names.as_deref(), (until, events), deadline)
        }))
    }

    fn before_time(&mut self, unix_ms: u64) -> Finding<'_, u64> {
        let deadline = search_deadline();
        Box::pin(self.find(move |reader| reader.before_time(unix_ms, deadline)))
    }
}

impl Hub {
    /// The store is the past of those who lack more than windows hold, save what was removed.
    pub(in crate::hub) fn begin_to_read_store(&self, removals: Vec<(Topic, u64)>) {
        let mut intake = self.intake();
        removals.into_iter().for_each(|(topic, sequence)| intake.removals.note(topic, sequence));
        let reader = match &mut intake.source {
            Source::Store(stored) => stored.take_reader(),
            Source::Local | Source::Remote(_) => None,
        };
        drop(intake);
        match reader.map(StorePast::begin) {
            Some(Ok(past)) => *self.archive() = Some(Box::new(past)),
            Some(Err(error)) => {
                tracing::error!(%error, "there is no thread to read the store: nobody is backfilled")
            }
            None => {}
        }
    }
}

//! The past of a stream of JetStream.

use std::sync::{Arc, Weak};

use super::{Archive, Away, Finding, Found, PAGES_BYTES, Pages, Style, Wanted};
use crate::clock::Stamp;
use crate::hub::Hub;
use crate::hub::source::jetstream::Status;
use crate::jetstream::{PastStream, Session, event_of};
use crate::log::Pace;
use crate::store::Stored;

/// The stream, as the hub follows it.
#[derive(Debug)]
struct StreamPast {
    past: PastStream,
    status: Arc<Status>,
    hub: Weak<Hub>,
    pace: Pace,
}

impl StreamPast {
    fn away(&mut self, cause: String) -> Away {
        if let Some(left_out) = self.pace.admit(Stamp::now()) {
            tracing::warn!(
                left_out,
                "NATS: the past is not read for those who lack more than windows hold: {cause}"
            );
        }
        Away
    }
}

impl Archive for StreamPast {
    fn pages(&mut self, wanted: Wanted, span: (u64, u64), style: Style) -> Finding<'_, Pages> {
        Box::pin(async move {
            let entry = self.status.told().entry;
            if entry.epoch != style.era.epoch {
                return Err(Away);
            }
            let filters = self.past.filters(wanted.all());
            let read = self.past.span(filters, span, entry.created_ns, PAGES_BYTES).await;
            let read = read.map_err(|cause| self.away(cause))?;
            let hub = self.hub.upgrade().ok_or(Away)?;
            let (to, floor) = (read.to, read.first.saturating_sub(1));
            let events = read.messages.into_iter().filter_map(event_of).filter(|(mark, event)| {
                // What was not fit for the windows is not fit for this.
                wanted.has(event.topic.as_str(), mark.sequence) && hub.intake().unfit(event).is_none()
            });
            let events = events.map(|(mark, event)| Stored {
                sequence: mark.sequence,
                unix_ms: u64::try_from(mark.unix_ns / 1_000_000).unwrap_or(0),
                event,
                idempotency: None,
            });
            Ok(style.pages(Found { events: events.collect(), to, floor }))
        })
    }

    fn before_last(&mut self, wanted: Wanted, until: u64, events: u64) -> Finding<'_, u64> {
        Box::pin(async move {
            let filters = self.past.filters(wanted.all());
            let before = self.past.before_last(filters, until, events).await;
            before.map_err(|cause| self.away(cause))
        })
    }

    fn before_time(&mut self, unix_ms: u64) -> Finding<'_, u64> {
        Box::pin(async move {
            let before = self.past.before_time(unix_ms).await;
            before.map_err(|cause| self.away(cause))
        })
    }
}

impl Hub {
    /// The stream is the past of those who lack more than windows hold.
    pub(in crate::hub) fn begin_to_read_stream(self: &Arc<Hub>, session: &Session, status: Arc<Status>) {
        let (past, hub) = (session.past(), Arc::downgrade(self));
        *self.archive() = Some(Box::new(StreamPast { past, status, hub, pace: Pace::WARNING }));
    }
}

//! What operators hear of the source: as JSON, and for Prometheus.

use serde::Serialize;

use super::super::Hub;
use super::super::openmetrics::Kind::{Counter, Gauge};
use super::super::openmetrics::Page;
use super::jetstream::Core;
use crate::jetstream::Foreign;

/// The source in `/stats`.
#[derive(Serialize)]
pub(in crate::hub) struct SourceStats {
    /// `local` or `jetstream`.
    kind: &'static str,
    /// Why it takes no publishes, if it does not.
    degraded: Option<String>,
    #[serde(flatten)]
    stream: Option<StreamStats>,
}

/// A stream of JetStream.
#[derive(Serialize)]
pub(in crate::hub) struct StreamStats {
    connected: bool,
    /// Milliseconds since the stream gave a sign of life.
    silent_ms: u64,
    /// What is wrong since then.
    cause: Option<String>,
    /// Newest sequence of the stream.
    head: u64,
    /// Sequence that was read last.
    read: u64,
    in_flight: usize,
    acknowledged: u64,
    duplicates: u64,
    breaks: u64,
    epochs: u64,
    foreign: ForeignStats,
    core: Core,
}

/// What was not taken as it was.
#[derive(Serialize)]
struct ForeignStats {
    subject: u64,
    too_large: u64,
    illegal: u64,
    reserved: u64,
}

impl Hub {
    /// The source as it is now.
    pub(in crate::hub) fn source_stats(&self) -> SourceStats {
        let degraded = self.intake().degraded().map(str::to_string);
        let stream = self.stream.get().map(|stream| {
            let told = stream.status.told().clone();
            let Foreign { subject, too_large, illegal, reserved } = told.foreign;
            StreamStats {
                connected: told.connected,
                silent_ms: self.now().ns_since(told.alive) / 1_000_000,
                cause: told.cause,
                head: told.head,
                read: told.last.map_or(0, |last| last.sequence),
                in_flight: told.in_flight,
                acknowledged: told.acknowledged,
                duplicates: told.duplicates,
                breaks: told.breaks,
                epochs: told.epochs,
                foreign: ForeignStats { subject, too_large, illegal, reserved },
                core: told.core,
            }
        });
        let kind = if stream.is_some() { "jetstream" } else { "local" };
        SourceStats { kind, degraded, stream }
    }

    /// The same for Prometheus.
    pub(in crate::hub) fn write_source(&self, page: &mut Page) {
        let SourceStats { kind, degraded, stream } = self.source_stats();
        page.family("fanwave_source_up", Gauge, "1 while the source takes publishes, else 0.");
        page.sample(&[("kind", kind)], u8::from(degraded.is_none()));
        let Some(stream) = stream else { return };
        page.single("fanwave_source_head", Gauge, "Newest sequence of the stream.", stream.head);
        page.single("fanwave_source_read", Gauge, "Sequence that was read last.", stream.read);
        let in_flight = "Publishes without an acknowledgement.";
        page.single("fanwave_source_in_flight", Gauge, in_flight, stream.in_flight);
        let acknowledged = "Publishes that the stream acknowledged.";
        page.single("fanwave_source_acknowledged_total", Counter, acknowledged, stream.acknowledged);
        let duplicates = "Of these, repeats under an idempotency key.";
        page.single("fanwave_source_duplicates_total", Counter, duplicates, stream.duplicates);
        page.single("fanwave_source_breaks_total", Counter, "Times that reading broke off.", stream.breaks);
        let epochs = "Times that the stream was another one.";
        page.single("fanwave_source_epochs_total", Counter, epochs, stream.epochs);
        page.family("fanwave_source_foreign_total", Counter, "Messages and headers that were left out.");
        let ForeignStats { subject, too_large, illegal, reserved } = stream.foreign;
        let foreign =
            [("subject", subject), ("too_large", too_large), ("illegal", illegal), ("reserved", reserved)];
        for (reason, count) in foreign {
            page.sample(&[("reason", reason)], count);
        }
        let core = "Messages of --nats-core: published, skipped, or refused.";
        page.family("fanwave_source_core_messages_total", Counter, core);
        let Core { taken, skipped, refused, .. } = stream.core;
        for (outcome, count) in
            [("published", taken.saturating_sub(refused)), ("skipped", skipped), ("refused", refused)]
        {
            page.sample(&[("outcome", outcome)], count);
        }
    }
}

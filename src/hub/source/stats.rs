//! What operators hear of the source: as JSON, and for Prometheus.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::super::Hub;
use super::super::openmetrics::Kind::{Counter, Gauge};
use super::super::openmetrics::Page;
use super::jetstream::Core;
use crate::jetstream::Foreign;

/// The source in `/stats`.
#[derive(Serialize)]
pub(in crate::hub) struct SourceStats {
    /// `local`, `jetstream` or `relay`.
    kind: &'static str,
    /// Why it takes no publishes, if it does not.
    degraded: Option<String>,
    #[serde(flatten)]
    stream: Option<StreamStats>,
    #[serde(flatten)]
    relay: Option<RelayStats>,
}

/// A server that is followed.
#[derive(Serialize)]
pub(in crate::hub) struct RelayStats {
    connected: bool,
    /// Sequence that was heard last.
    read: u64,
    breaks: u64,
    epochs: u64,
    holes: u64,
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
    headers: u64,
    illegal: u64,
    reserved: u64,
}

impl Hub {
    /// The source as it is now.
    pub(in crate::hub) fn source_stats(&self) -> SourceStats {
        let degraded = self.intake().degraded().map(str::to_string);
        let stream = self.stream.get().map(|stream| {
            let told = stream.status.told().clone();
            let Foreign { subject, too_large, headers, illegal, reserved } = told.foreign;
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
                foreign: ForeignStats { subject, too_large, headers, illegal, reserved },
                core: told.core,
            }
        });
        let relay = self.relay.get().map(|status| {
            let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
            RelayStats {
                connected: status.connected.load(Ordering::Relaxed),
                read: count(&status.read),
                breaks: count(&status.breaks),
                epochs: count(&status.epochs),
                holes: count(&status.holes),
            }
        });
        let kind = match (&stream, &relay) {
            (Some(_), _) => "jetstream",
            (None, Some(_)) => "relay",
            (None, None) => "local",
        };
        SourceStats { kind, degraded, stream, relay }
    }

    /// The same for Prometheus.
    pub(in crate::hub) fn write_source(&self, page: &mut Page) {
        let SourceStats { kind, degraded, stream, relay } = self.source_stats();
        page.family("fanwave_source_up", Gauge, "1 while the source takes publishes, else 0.");
        page.sample(&[("kind", kind)], u8::from(degraded.is_none()));
        if let Some(relay) = relay {
            page.single(
                "fanwave_source_connected",
                Gauge,
                "1 while the origin is heard.",
                u8::from(relay.connected),
            );
            page.single("fanwave_source_read", Gauge, "Sequence that was read last.", relay.read);
            page.single(
                "fanwave_source_breaks_total",
                Counter,
                "Times that reading broke off.",
                relay.breaks,
            );
            page.single(
                "fanwave_source_epochs_total",
                Counter,
                "Times that the origin began anew.",
                relay.epochs,
            );
            let holes = "Holes that subscribers were told of.";
            page.single("fanwave_source_holes_total", Counter, holes, relay.holes);
        }
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
        let ForeignStats { subject, too_large, headers, illegal, reserved } = stream.foreign;
        let foreign = [
            ("subject", subject),
            ("too_large", too_large),
            ("headers", headers),
            ("illegal", illegal),
            ("reserved", reserved),
        ];
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

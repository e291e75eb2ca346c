//! `GET /metrics`: the same counters as `GET /stats`, for Prometheus and what reads its formats.
//!
//! Names are `fanwave_<noun>_<unit>[_total]`, in seconds and bytes. A shard that gave no report has
//! `fanwave_shard_up` 0 and no other samples: a counter that fell would look like a restart.

use hdrhistogram::Histogram;

use super::memory::ProcessStats;
use super::openmetrics::Kind::{Counter, Gauge, Info};
use super::openmetrics::{Exposition, Kind, Page};
use super::stats::Moment;
use super::{CertificateStats, Hub, process};
use crate::close::{CLOSE_TABLE, ERROR_TABLE};
use crate::log;
use crate::metrics::{FamilyCounters, ShardMetrics, ShardReport};
use crate::wire::Family;

/// Name, kind, help, and where the figure stands.
type Row<T> = (&'static str, Kind, &'static str, fn(&T) -> u64);

/// Figures of a shard.
const OF_SHARD: [Row<ShardReport>; 37] = [
    ("fanwave_connections", Gauge, "Connections, those in the handshake or closing included.", |shard| {
        shard.metrics.connections
    }),
    ("fanwave_subscribers_max", Gauge, "Subscribers that the shard takes.", |shard| shard.subscribers_max),
    ("fanwave_accepted_connections_total", Counter, "Connections that were accepted.", |shard| {
        shard.metrics.accepted
    }),
    ("fanwave_accept_failures_total", Counter, "Accepts that the kernel refused.", |shard| {
        shard.metrics.accept_failures
    }),
    ("fanwave_tls_handshakes_total", Counter, "TLS handshakes that came to their end.", |shard| {
        shard.metrics.tls_handshakes
    }),
    ("fanwave_http2_connections_total", Counter, "Connections that began to carry streams.", |shard| {
        shard.metrics.http2.carriers
    }),
    ("fanwave_http2_opened_streams_total", Counter, "Streams that were opened on them.", |shard| {
        shard.metrics.http2.opened
    }),
    ("fanwave_http2_streams", Gauge, "Streams of HTTP/2.", |shard| shard.metrics.http2.streams),
    ("fanwave_backfills_total", Counter, "Subscribers that lacked more than windows hold.", |shard| {
        shard.metrics.backfill.begun
    }),
    ("fanwave_backfill_completed_total", Counter, "Of these, those that got all of it.", |shard| {
        shard.metrics.backfill.completed
    }),
    (
        "fanwave_backfill_refused_total",
        Counter,
        "Subscribers told of a gap because too many wait for a backfill.",
        |shard| shard.metrics.backfill.refused,
    ),
    ("fanwave_backfill_gaps_total", Counter, "Gaps that were told in the midst of backfills.", |shard| {
        shard.metrics.backfill.gaps
    }),
    ("fanwave_backfill_asks_total", Counter, "Times that the source was asked for events.", |shard| {
        shard.metrics.backfill.asks
    }),
    ("fanwave_backfill_events_total", Counter, "Events from before the windows that were sent.", |shard| {
        shard.metrics.backfill.events
    }),
    ("fanwave_backfill_bytes_total", Counter, "Their bytes.", |shard| shard.metrics.backfill.bytes),
    ("fanwave_backfill_serving", Gauge, "Subscribers that are being backfilled.", |shard| {
        shard.metrics.backfill.serving
    }),
    ("fanwave_backfill_waiting", Gauge, "Subscribers that wait for that.", |shard| {
        shard.metrics.backfill.waiting
    }),
    ("fanwave_shard_events_total", Counter, "Events that the shard has taken from the hub.", |shard| {
        shard.metrics.events
    }),
    ("fanwave_client_published_events_total", Counter, "Events that clients published.", |shard| {
        shard.metrics.published
    }),
    (
        "fanwave_client_pauses_total",
        Counter,
        "Times that a client was not read from until its publishes were answered.",
        |shard| shard.metrics.pauses,
    ),
    ("fanwave_tokens_checked_total", Counter, "Signatures of tokens that were checked.", |shard| {
        shard.metrics.tokens.checked
    }),
    ("fanwave_tokens_remembered_total", Counter, "Tokens that were known from before.", |shard| {
        shard.metrics.tokens.remembered
    }),
    ("fanwave_token_waits_total", Counter, "Times that a client waited for a check of its token.", |shard| {
        shard.metrics.tokens.waits
    }),
    ("fanwave_client_commands_total", Counter, "Commands of clients that were answered.", |shard| {
        shard.metrics.commands
    }),
    ("fanwave_ring_enters_total", Counter, "System calls of the shard's ring.", |shard| shard.metrics.enters),
    ("fanwave_shard_sleeps_total", Counter, "Times that the shard had nothing to do.", |shard| {
        shard.metrics.sleeps
    }),
    ("fanwave_zero_copy_sends_total", Counter, "Sends that the kernel was asked not to copy.", |shard| {
        shard.metrics.zero_copy_sends
    }),
    (
        "fanwave_zero_copy_copied_total",
        Counter,
        "Sends that the kernel was asked not to copy, and copied all the same.",
        |shard| shard.metrics.zero_copy_copied,
    ),
    ("fanwave_history_events", Gauge, "Events in all histories; shards share them.", |shard| {
        shard.window_events
    }),
    ("fanwave_history_bytes", Gauge, "Bytes of these events as published.", |shard| shard.window_bytes),
    ("fanwave_excess_events", Gauge, "Events beyond the histories that subscribers still lack.", |shard| {
        shard.excess_events
    }),
    ("fanwave_excess_bytes", Gauge, "Memory of these events with their frames.", |shard| shard.excess_bytes),
    ("fanwave_retained_values", Gauge, "Retained values; shards share them.", |shard| shard.retained.values),
    ("fanwave_retained_bytes", Gauge, "What these weigh.", |shard| shard.retained.bytes),
    (
        "fanwave_retained_given_up_total",
        Counter,
        "Retained values that were given up for want of room; the same on all shards.",
        |shard| shard.retained.given_up,
    ),
    ("fanwave_pinned_bytes", Gauge, "Bytes laid out for sends and answers under way.", |shard| {
        shard.pinned_bytes
    }),
    ("fanwave_last_sequence", Gauge, "Sequence of the last event that the shard has taken.", |shard| {
        shard.sequence
    }),
];

/// Figures of a family on a shard.
const OF_FAMILY: [Row<FamilyCounters>; 11] = [
    ("fanwave_subscribers", Gauge, "Subscribers.", |family| family.connections),
    ("fanwave_opened_subscribers_total", Counter, "Subscribers that came.", |family| family.opened),
    ("fanwave_sent_frames_total", Counter, "Deliveries: events that a subscriber's socket took.", |family| {
        family.frames
    }),
    (
        "fanwave_sent_bytes_total",
        Counter,
        "Bytes that subscribers' sockets took, heads and heartbeats included.",
        |family| family.bytes,
    ),
    ("fanwave_sends_total", Counter, "Sends of which the kernel took bytes.", |family| family.sends),
    ("fanwave_waiting_sends", Gauge, "Sends that wait for room in their socket.", |family| {
        family.sends_in_flight
    }),
    (
        "fanwave_deferred_visits_total",
        Counter,
        "Visits of the sweep that found the last send still waiting.",
        |family| family.deferred,
    ),
    ("fanwave_overruns_total", Counter, "Subscribers that fell out of a window.", |family| family.overruns),
    ("fanwave_gaps_total", Counter, "Streams that began or went on with a gap notice.", |family| family.gaps),
    (
        "fanwave_conflated_events_total",
        Counter,
        "Events that subscribers with slow=latest passed over, as far as histories still told.",
        |family| family.conflated,
    ),
    ("fanwave_received_messages_total", Counter, "Messages that clients sent.", |family| family.messages_in),
];

impl Hub {
    /// The whole text.
    pub(super) async fn metrics(&self, exposition: Exposition) -> String {
        let moment = self.moment().await;
        let mut page = Page::new(exposition);
        self.write_hub(&mut page, &moment);
        let shards: Vec<_> =
            moment.reports.iter().flatten().map(|one| (one.shard.to_string(), one)).collect();
        write_shards(&mut page, &shards);
        write_latencies(&mut page, &shards);
        self.write_limits(&mut page);
        page.end()
    }

    fn write_hub(&self, page: &mut Page, moment: &Moment) {
        page.family("fanwave_build_info", Info, "Version, and the epoch of this process in ids.");
        page.sample(&[("version", env!("CARGO_PKG_VERSION")), ("epoch", &self.epoch().to_string())], 1);
        page.family("fanwave_egress_info", Info, "Which ring carries the bytes, over which descriptors.");
        page.sample(&[("ring", self.egress.ring), ("sockets", self.egress.sockets)], 1);
        process::write(page, self.started_at);
        let hub = &moment.hub;
        page.single("fanwave_published_events_total", Counter, "Events accepted.", hub.events);
        page.single("fanwave_published_bytes_total", Counter, "Their bytes.", hub.bytes);
        page.single(
            "fanwave_broadcast_batches_total",
            Counter,
            "Batches that every shard has got.",
            hub.batches,
        );
        page.single(
            "fanwave_control_tls_handshakes_total",
            Counter,
            "TLS handshakes of control connections that came to their end.",
            hub.tls_handshakes,
        );
        if let Some(CertificateStats { expires, orders, failures }) = hub.certificate {
            let ends = "When the certificate of --acme ends, in seconds since 1970; 0 if there is none.";
            page.single("fanwave_acme_certificate_expiry_timestamp_seconds", Gauge, ends, expires);
            page.single("fanwave_acme_orders_total", Counter, "Orders that gave a certificate.", orders);
            page.single("fanwave_acme_order_failures_total", Counter, "Orders that gave none.", failures);
        }
        page.single(
            "fanwave_removed_topics_total",
            Counter,
            "Topics whose history and retained values were removed.",
            hub.removed_topics,
        );
        page.single(
            "fanwave_shard_queue_stalls_total",
            Counter,
            "Times that a batch met a shard's full queue.",
            hub.shard_queue_stalls,
        );
        page.single(
            "fanwave_log_left_out_lines_total",
            Counter,
            "Lines of the log that found its queue full.",
            log::left_out(),
        );
        page.single("fanwave_holes_total", Counter, "Times that a source told of missing events.", hub.holes);
        if let Some(store) = &hub.store {
            let entries = "Events and removals that the store has written.";
            page.single("fanwave_store_entries_total", Counter, entries, store.entries);
            page.single("fanwave_store_bytes_total", Counter, "Their bytes.", store.bytes);
            page.single("fanwave_store_syncs_total", Counter, "Times that the disk was synced.", store.syncs);
            let failures = "Times that the disk has refused.";
            page.single("fanwave_store_failures_total", Counter, failures, store.failures);
            let damaged = "Segments that were damaged when they were to go.";
            page.single("fanwave_store_damaged_segments_total", Counter, damaged, store.damaged);
            page.single(
                "fanwave_store_disk_bytes",
                Gauge,
                "Bytes of the store's segments.",
                store.disk_bytes,
            );
            let queued = "Bytes that wait to be written by the store.";
            page.single("fanwave_store_queued_bytes", Gauge, queued, store.queued_bytes);
        }
        page.single("fanwave_hub_queue_events", Gauge, "Events that not every shard has.", hub.queue.events);
        page.single("fanwave_hub_queue_bytes", Gauge, "Memory of these events.", hub.queue.bytes);
        page.single("fanwave_topics", Gauge, "Topics that the hub remembers.", hub.topics);
        page.single(
            "fanwave_memory_bytes",
            Gauge,
            "Memory of all events with their frames.",
            hub.memory.bytes,
        );
        page.single("fanwave_memory_max_bytes", Gauge, "The most that they may take.", hub.memory.bytes_max);
        page.single("fanwave_keys", Gauge, "Keys that tokens are checked with.", hub.keys.keys);
        page.single(
            "fanwave_key_fetches_total",
            Counter,
            "Fetches of keys that gave a set.",
            hub.keys.fetches,
        );
        let failures = "Fetches of keys that gave none.";
        page.single("fanwave_key_fetch_failures_total", Counter, failures, hub.keys.failures);
        let checked = "Signatures of publishers' tokens that the control plane has checked.";
        page.single("fanwave_control_tokens_checked_total", Counter, checked, hub.keys.checked);
        write_process(page, &hub.process);
        self.write_source(page);
        let refused = "Requests of publishers and operators that were refused.";
        page.family("fanwave_refused_requests_total", Counter, refused);
        for (reason, count) in hub.refused.iter() {
            page.sample(&[("reason", reason)], count);
        }
        page.family("fanwave_shard_up", Gauge, "1 if the shard answers, else 0.");
        for (shard, report) in moment.reports.iter().enumerate() {
            page.sample(&[("shard", &shard.to_string())], u8::from(report.is_some()));
        }
        page.family("fanwave_shard_queue_batches", Gauge, "Messages that wait in the shard's queue.");
        for (shard, queue) in moment.queues.iter().enumerate() {
            page.sample(&[("shard", &shard.to_string())], queue);
        }
        let lag = "Events that the hub has accepted and the shard has not taken.";
        page.family("fanwave_shard_lag_events", Gauge, lag);
        for report in moment.reports.iter().flatten() {
            let lag = hub.sequence.saturating_sub(report.sequence);
            page.sample(&[("shard", &report.shard.to_string())], lag);
        }
        page.family("fanwave_oldest_send_seconds", Gauge, "How long the oldest send waits for its socket.");
        for report in moment.reports.iter().flatten() {
            let seconds = report.oldest_send_ms as f64 / 1_000.0;
            page.sample(&[("shard", &report.shard.to_string())], seconds);
        }
    }

    /// What the operator may set.
    fn write_limits(&self, page: &mut Page) {
        let limits: Vec<_> = self.config().limits.values().collect();
        let families = [
            ("fanwave_limit", "N", 1.0, "Flags that bound a number."),
            ("fanwave_limit_bytes", "BYTES", 1.0, "Flags that bound bytes."),
            ("fanwave_limit_seconds", "MS", 1_000.0, "Flags that bound a time."),
        ];
        for (name, unit, divisor, help) in families {
            page.family(name, Gauge, help);
            for (limit, _, value) in limits.iter().filter(|limit| limit.1 == unit) {
                page.sample(&[("limit", limit)], *value as f64 / divisor);
            }
        }
    }
}

fn write_process(page: &mut Page, process: &ProcessStats) {
    page.family(
        "fanwave_process_bytes",
        Gauge,
        "What the process takes, the kernel's for its sockets included.",
    );
    for (kind, bytes) in [
        ("events", process.events),
        ("connections", process.connections),
        ("sockets", process.sockets),
        ("rest", process.rest),
    ] {
        page.sample(&[("kind", kind)], bytes);
    }
    let most = process.bytes_max.map_or_else(|| "+Inf".to_string(), |bytes| bytes.to_string());
    page.single("fanwave_process_max_bytes", Gauge, "The ceiling of that, +Inf without one.", most);
    let pressure = "How short memory is: 1 histories are cut, 2 newcomers are refused, 3 publishers are.";
    page.single("fanwave_memory_pressure", Gauge, pressure, process.level as u8);
    let most = "What all histories may take now.";
    page.single("fanwave_history_max_bytes", Gauge, most, process.history_bytes_max);
    let cuts = "Times that histories were cut for want of memory.";
    page.single("fanwave_history_cuts_total", Counter, cuts, process.history_cuts);
}

fn write_shards(page: &mut Page, shards: &[(String, &ShardReport)]) {
    for (name, kind, help, figure) in OF_SHARD {
        page.family(name, kind, help);
        for (shard, report) in shards {
            page.sample(&[("shard", shard)], figure(report));
        }
    }
    for (name, kind, help, figure) in OF_FAMILY {
        page.family(name, kind, help);
        for (shard, report) in shards {
            for (family, counters) in Family::ALL.iter().zip(&report.metrics.families) {
                page.sample(&[("shard", shard), ("format", family.label())], figure(counters));
            }
        }
    }
    page.family("fanwave_client_refused_publishes_total", Counter, "Publishes of clients that were refused.");
    for (shard, report) in shards {
        for (reason, count) in report.metrics.refused.iter() {
            page.sample(&[("shard", shard), ("reason", reason)], count);
        }
    }
    page.family("fanwave_client_refused_commands_total", Counter, "Commands of clients that were refused.");
    for (shard, report) in shards {
        for ((_, code), count) in ERROR_TABLE.iter().zip(report.metrics.command_errors) {
            page.sample(&[("shard", shard), ("code", code)], count);
        }
    }
    page.family("fanwave_closed_connections_total", Counter, "Connections that ended.");
    for (shard, report) in shards {
        for (row, count) in CLOSE_TABLE.iter().zip(report.metrics.closed) {
            page.sample(&[("shard", shard), ("reason", row.label)], count);
        }
    }
}

fn write_latencies(page: &mut Page, shards: &[(String, &ShardReport)]) {
    let mut write = |name, help, histogram: fn(&ShardMetrics) -> &Histogram<u64>| {
        page.family(name, Kind::Histogram, help);
        for (shard, report) in shards {
            page.histogram(&[("shard", shard)], histogram(&report.metrics));
        }
    };
    write("fanwave_publish_to_shard_seconds", "Until a shard took the event.", |one| &one.intake_to_shard);
    write(
        "fanwave_publish_to_last_seconds",
        "Until the sweep had offered the event to every subscriber of the shard.",
        |one| &one.intake_to_last,
    );
    let written = "Until a subscriber's socket had taken the event.";
    page.family("fanwave_publish_to_written_seconds", Kind::Histogram, written);
    for (shard, report) in shards {
        for (family, histogram) in Family::ALL.iter().zip(&report.metrics.intake_to_written) {
            page.histogram(&[("shard", shard), ("format", family.label())], histogram);
        }
    }
}

//! The largest sums of memory that a configuration may take, for the banner.

use super::*;
use crate::config::limits::{
    STORE_BATCH_BYTES_MAX, STORE_QUEUE_BYTES_MAX, STORE_SEGMENT_BYTES, STORE_TOPIC_BYTES, STORE_TOPICS_MAX,
    STORE_UNSYNCED_BYTES_MAX,
};

/// User-space memory at the limits, one line per owner.
pub(super) fn memory_lines(config: &Config, capacity: &Capacity, ring: Ring) -> Vec<(&'static str, u64)> {
    let limits = &config.limits;
    let shards = config.shard_cpus.len() as u64;
    let (per_slot, rings) = match ring {
        Ring::Uring { .. } => {
            let receive = usize::from(RECEIVE_BUFFERS) * RECEIVE_BUFFER_BYTES;
            (size_of::<usize>(), SUBMISSIONS_MAX as usize * 64 + COMPLETIONS_MAX as usize * 16 + receive)
        }
        // Beside its receive buffer the events and completions of a turn.
        Ring::Epoll => {
            (SLOT_BYTES, RECEIVE_BUFFER_BYTES + (EPOLL_EVENTS_MAX + SUBMISSIONS_MAX as usize) * 64)
        }
    };
    let per_socket = size_of::<Connection>() + size_of::<Slot>() + per_slot;
    let controls = config.control.len() + config.control_tls.len();
    let control = capacity.control_connections_max * (CONTROL_BUFFER_BYTES_MAX + limits.line_bytes_max());
    // The shortest topic and the shortest id have a byte each.
    let events_max = limits.history_memory_max() / (EVENT_BYTES_FIXED + 2);
    let sum = |per_shard: usize| (per_shard as u64).saturating_mul(shards);
    let mut lines = vec![
        ("connections, when all are in use", sum(capacity.slots * per_socket)),
        (
            "request heads, when all come at once",
            sum(capacity.sockets_max.saturating_mul(limits.handshake_bytes_max)),
        ),
        ("control connections, when all are in use", (control * controls) as u64),
        ("topics, when all are known", (limits.topics_max * TOPIC_BYTES) as u64 * (2 * shards + 1)),
        ("events and their frames, in queues and windows", limits.window_bytes_total_max as u64),
        ("publishers' ids, when every event has one", sum(events_max * ID_PLACE_BYTES)),
        ("patterns' logs, when they are full", sum(PATTERN_PLACES_MAX * PATTERN_PLACE_BYTES)),
        ("batches of slow sends", sum(limits.pinned_bytes_max)),
        ("rings and receive buffers", sum(rings)),
    ];
    if config.keeps_past() && limits.backfill_bytes_per_second > 0 {
        // As they are read, and as they are sent; and those that are kept for others.
        let per_shard = 2 * STRETCH_BYTES_MAX * limits.backfills_per_shard_max;
        let known = if config.store.is_some() { STORE_TOPICS_MAX * STORE_TOPIC_BYTES } else { 0 };
        let kept = (STRETCH_BYTES_MAX * STRETCHES_KEPT + known) as u64;
        lines.push(("stretches of the past, when all are full", sum(per_shard).saturating_add(kept)));
    }
    if limits.h2_streams_max > 0 {
        let per_stream = size_of::<Connection>() + size_of::<Slot>() + H2_STREAM_BYTES;
        let all = (capacity.connections_max + H2_STREAMS_SPARE) * per_stream;
        let carriers = capacity.sockets_max * H2_CARRIER_BYTES;
        lines.push(("streams of HTTP/2, when all are in use", sum(all + carriers)));
    }
    if !config.listen_tls.is_empty() {
        // The begin of a record, once keys are there, takes less than the handshake did.
        let handshake = TLS_HANDSHAKE_BYTES_MAX + TLS_HANDSHAKE_STATE_BYTES;
        lines.push(("keys, when all connections have TLS", sum(capacity.slots * TLS_SESSION_BYTES)));
        let all = capacity.sockets_max.saturating_mul(handshake);
        lines.push(("TLS handshakes, when all come at once", sum(all)));
    }
    if !config.control_tls.is_empty() {
        let most = config.control_tls.len() * capacity.control_connections_max * CONTROL_TLS_BYTES_MAX;
        lines.push(("TLS of control connections, when all are in use", most as u64));
    }
    if config.has_client_publishers() {
        // Messages that are not whole, what paused clients have said, and what is on its way.
        let uplink = UPLINK_BYTES_MAX + limits.message_bytes_max;
        lines.push((
            "what clients publish, until the hub has it",
            sum(2 * limits.incoming_bytes_max() + uplink),
        ));
    }
    if config.tokens.is_configured() {
        let known = TOKENS_KNOWN_MAX * CLAIMS_BYTES_MAX + 2 * TOKENS_KNOWN_MAX * KNOWN_TOKEN_BYTES;
        let held = capacity.connections_max.saturating_mul(CLAIMS_BYTES_MAX);
        // The hub knows those of publishers.
        let all = sum(known.saturating_add(held)).saturating_add(known as u64);
        lines.push(("tokens, when all grant as much as they can", all));
    }
    if config.rules.iter().any(|rule| rule.retain) {
        let values_max = limits.retained_memory_max() / (EVENT_BYTES_FIXED + RETAINED_VALUE_BYTES);
        lines.push(("retained values, besides their events", sum(values_max * RETAINED_VALUE_BYTES)));
    }
    if config.store.is_some() {
        // What waits, a batch as it is written, what is not synced, and a segment that goes.
        let writing = STORE_BATCH_BYTES_MAX + 2 * STORE_UNSYNCED_BYTES_MAX;
        let all = STORE_QUEUE_BYTES_MAX + writing;
        lines.push(("what the store writes, and reads to forget", all as u64 + STORE_SEGMENT_BYTES));
    }
    if config.access_log {
        let waiting = LOG_LINES_MAX * ACCESS_LINE_BYTES_MAX;
        lines.push(("access log", sum(capacity.slots * ACCESS_ENTRY_BYTES) + waiting as u64));
    }
    if limits.connections_per_address_max > 0 {
        lines.push(("counters of connections by address", Addresses::BYTES as u64));
    }
    lines
}

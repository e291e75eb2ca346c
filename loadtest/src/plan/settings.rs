//! What an operator must set on each node: limits of descriptors, limits of the kernel, flags of
//! fanwave.
//!
//! Each is the least that is enough; what a machine has anyway may be more. Not here:
//! `net.core.somaxconn`, whose default is fanwave's backlog, since how long that queue gets depends
//! on how fast clients come back.

use fanwave::config::Limits;
use fanwave::config::capacity::Sharers;
use fanwave::config::limits::{EVENTS_HELD_MIN, SOCKETS_SPARE, WINDOW_BATCHES_MIN};
use fanwave::event::EVENT_BYTES_BESIDE_DATA_MAX;
use serde::Serialize;

use super::question::Question;

/// What the kernel keeps beside the bytes of one event under way: its buffer's head and rounding.
pub const BUFFER_BYTES: f64 = 768.0;
/// Descriptors of one process that Linux gives at most without more settings (`fs.nr_open`), and
/// entries that a table of direct descriptors has at most.
pub const DESCRIPTORS_MOST: f64 = 1_048_576.0;
/// Standard deviations from the mean that the fullest shard may be off: one in 30,000 is fuller.
const SHARD_DEVIATIONS: f64 = 4.0;
/// Seconds for which a firewall goes on tracking a connection that has ended
/// (`nf_conntrack_tcp_timeout_time_wait`).
const TRACKED_SECONDS: f64 = 120.0;
/// Unit of `net.ipv4.tcp_mem`, and of what the kernel charges to one socket.
const PAGE_BYTES: f64 = 4_096.0;

/// Settings of one node.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Connections of the fullest shard (`--connections-per-shard-max`).
    pub connections_per_shard_most: f64,
    /// What `ulimit -n` must be on one node with direct descriptors (Linux 6.13 on): it bounds each
    /// shard's table, and those take none of the process's.
    pub descriptors_direct: f64,
    /// What it must be with plain descriptors, which all shards share.
    pub descriptors_plain: f64,
    /// Open files of one node (`fs.file-max`, at least): every socket is one, whatever its
    /// descriptor.
    pub files: f64,
    /// Pages of one event on its way to everybody, as the kernel charges them to the sockets of one
    /// node (`net.ipv4.tcp_mem`, the second number at least).
    pub tcp_pages: f64,
    /// Connections that a firewall on one node tracks (`net.netfilter.nf_conntrack_max`, at least):
    /// everybody's old and new one after a storm, and those that ended lately.
    pub tracked: f64,
    /// Flags that fanwave needs because its defaults are other limits.
    pub flags: Vec<String>,
}

/// What a node needs where there are so many nodes.
pub fn of_node(question: &Question, limits: &Limits, frame_bytes: f64, nodes: f64) -> Settings {
    let connections = connections(question, nodes);
    let ended = question.churn / nodes * TRACKED_SECONDS;
    Settings {
        connections_per_shard_most: fullest_shard(connections, question.node_cores),
        descriptors_direct: direct_descriptors(question, nodes),
        descriptors_plain: plain_descriptors(question, nodes),
        files: connections + question.node_cores * SOCKETS_SPARE as f64,
        tcp_pages: tcp_pages(question, frame_bytes, connections),
        tracked: (2.0 * connections + ended).ceil(),
        flags: flags(limits),
    }
}

/// Connections of one of so many nodes.
fn connections(question: &Question, nodes: f64) -> f64 {
    (question.subscribers / nodes).ceil()
}

/// Direct descriptors of the fullest shard of one of so many nodes.
pub fn direct_descriptors(question: &Question, nodes: f64) -> f64 {
    fullest_shard(connections(question, nodes), question.node_cores) + SOCKETS_SPARE as f64
}

/// Plain descriptors of one of so many nodes: fanwave gives each shard the same part of what it
/// does not need itself.
pub fn plain_descriptors(question: &Question, nodes: f64) -> f64 {
    let sharers = Sharers { shards: question.node_cores as usize, listens: 1, controls: 1 };
    let beside = sharers.own() + sharers.control_connections();
    question.node_cores * direct_descriptors(question, nodes) + beside as f64
}

/// Connections of the fullest of a node's shards. The kernel deals them out by a hash
/// (`SO_REUSEPORT`), so their number is binomial.
fn fullest_shard(connections: f64, shards: f64) -> f64 {
    let mean = connections / shards;
    let deviation = (mean * (1.0 - 1.0 / shards)).sqrt();
    (mean + SHARD_DEVIATIONS * deviation).min(connections).ceil()
}

/// Pages that the kernel charges for one event on its way: whole ones for each socket.
fn tcp_pages(question: &Question, frame_bytes: f64, connections: f64) -> f64 {
    let each = ((frame_bytes + BUFFER_BYTES) / PAGE_BYTES).ceil();
    if question.rate > 0.0 { (connections / question.topics).ceil() * each } else { 0.0 }
}

/// fanwave's default limits, or as many topics, as large events and such heartbeats as are asked
/// for.
pub fn limits(question: &Question) -> Limits {
    let default = Limits::default();
    let message_bytes_max = default.message_bytes_max.max(question.bytes as usize);
    let event_memory = Limits { message_bytes_max, ..default.clone() }.event_memory_max();
    Limits {
        topics_max: default.topics_max.max(question.topics as usize),
        message_bytes_max,
        // As much as fanwave asks for: several events with their names and ids.
        window_bytes_max: default
            .window_bytes_max
            .max(WINDOW_BATCHES_MIN * (message_bytes_max + EVENT_BYTES_BESIDE_DATA_MAX)),
        window_bytes_total_max: default.window_bytes_total_max.max(EVENTS_HELD_MIN * event_memory),
        hub_queue_bytes_max: default.hub_queue_bytes_max.max(event_memory),
        heartbeat_ms: (question.heartbeat * 1e3) as u64,
        ..default
    }
}

/// What of these limits is not the default, as flags.
fn flags(limits: &Limits) -> Vec<String> {
    let default = Limits::default();
    [
        ("topics-max", limits.topics_max, default.topics_max),
        ("message-bytes-max", limits.message_bytes_max, default.message_bytes_max),
        ("window-bytes-max", limits.window_bytes_max, default.window_bytes_max),
        ("window-bytes-total-max", limits.window_bytes_total_max, default.window_bytes_total_max),
        ("hub-queue-bytes-max", limits.hub_queue_bytes_max, default.hub_queue_bytes_max),
        ("heartbeat-ms", limits.heartbeat_ms as usize, default.heartbeat_ms as usize),
    ]
    .into_iter()
    .filter(|(_, needed, default)| needed != default)
    .map(|(flag, needed, _)| format!("--{flag} {needed}"))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::question::tests::asked;

    fn settings(line: &str, frame_bytes: f64, nodes: f64) -> Settings {
        let question = asked(line).expect("possible").expect("asked");
        of_node(&question, &limits(&question), frame_bytes, nodes)
    }

    #[test]
    fn the_settings_of_half_a_million_connections_are_as_worked_by_hand() {
        let node = settings("--subscribers 1000000 --rate 1 --churn 1000", 204.0, 2.0);
        // 125,000 + 4 √(500,000 × 1/4 × 3/4) in the fullest shard; 256 sockets of each are spare.
        assert_eq!(node.connections_per_shard_most, 126_225.0);
        // The hub's own and those of four shards, and the control connections.
        let beside = 32.0 + 4.0 * 9.0 + 1_024.0;
        assert_eq!((node.descriptors_direct, node.descriptors_plain), (126_481.0, 4.0 * 126_481.0 + beside));
        assert_eq!(node.files, 500_000.0 + 4.0 * 256.0);
        // 204 + 768 bytes are a page of each socket; 500 of the 1,000 that leave per second are
        // tracked for 120 s.
        assert_eq!((node.tcp_pages, node.tracked), (500_000.0, 1_000_000.0 + 500.0 * 120.0));
        assert!(node.flags.is_empty(), "{:?}", node.flags);
    }

    #[test]
    fn an_event_of_several_pages_is_under_way_to_the_subscribers_of_its_topic_only() {
        // 5,030 + 768 bytes are two pages of 100 sockets.
        assert_eq!(settings("--subscribers 10000 --topics 100", 5_030.0, 1.0).tcp_pages, 200.0);
        assert_eq!(settings("--subscribers 10000 --rate 0", 5_030.0, 1.0).tcp_pages, 0.0);
    }

    #[test]
    fn the_fullest_shard_has_four_standard_deviations_more_and_never_more_than_all() {
        assert_eq!(fullest_shard(1_000.0, 1.0), 1_000.0);
        // 10,000 + 4 √(40,000 × 1/4 × 3/4) = 10,346.4
        assert_eq!(fullest_shard(40_000.0, 4.0), 10_347.0);
        assert_eq!(fullest_shard(3.0, 64.0), 1.0);
        assert_eq!(fullest_shard(1.0, 2.0), 1.0);
    }

    #[test]
    fn flags_are_those_without_which_fanwave_would_refuse_or_do_otherwise() {
        assert!(settings("--subscribers 1000 --topics 100 --bytes 1048576", 1.0, 1.0).flags.is_empty());
        let line = "--subscribers 200001 --topics 200000 --bytes 16777216 --heartbeat 30";
        let large = [
            "--topics-max 200000",
            "--message-bytes-max 16777216",
            "--window-bytes-max 67114164",
            "--window-bytes-total-max 1342240880",
            "--hub-queue-bytes-max 83890055",
            "--heartbeat-ms 30000",
        ];
        assert_eq!(settings(line, 1.0, 1.0).flags, large);
        let question = asked(line).expect("possible").expect("asked");
        limits(&question).check().expect("fanwave starts with them");
    }
}

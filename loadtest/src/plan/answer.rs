//! From a model and a question to nodes: cores, memory, network, descriptors, ports, storms. What
//! must be set on a node is in `settings`.
//!
//! Pure arithmetic, no measuring. Subscribers and topics are taken to be spread evenly over nodes,
//! by chance over a node's shards, and events to come at even intervals. Where the model gives an
//! interval, nodes are counted with its upper end. The measured machine's core is the unit: a
//! faster core needs fewer.

use anyhow::{Result, bail};
use fanwave::config::Limits;
use fanwave::config::limits::TOPIC_BYTES;
use fanwave::wire::Format;
use serde::Serialize;

use super::caveats::{self, Caveat};
use super::fit::Estimate;
use super::model::Model;
use super::question::Question;
use super::settings::{self, BUFFER_BYTES, DESCRIPTORS_MOST, Settings};
use super::stream::StreamCost;
use super::work::Work;
use crate::framing::Protocol;

/// TCP payload of one packet: an Ethernet frame of 1,500 bytes less IPv4, TCP and its timestamps.
const SEGMENT_BYTES: f64 = 1_448.0;
/// What each packet adds on the wire: preamble and gap 20, Ethernet 18, IPv4 20, TCP with
/// timestamps 32.
const PACKET_BYTES: f64 = 90.0;
/// Segments that one acknowledgement covers at least, unless it is the last.
const SEGMENTS_PER_ACK: f64 = 2.0;
/// Bytes of a GiB.
const GIB: f64 = (1_u64 << 30) as f64;
/// Local ports of one source address towards one server address (`net.ipv4.ip_local_port_range`,
/// Linux's default).
const PORTS: f64 = 28_232.0;
/// No plan needs more.
const CORES_MAX: f64 = 1e6;
/// Share of the cores that a reconnect storm may fill.
const STORM_SHARE: f64 = 0.9;
/// Bytes of a heartbeat on the wire: a ping; `:` and a blank line.
const PING_BYTES: f64 = 2.0;
const COMMENT_BYTES: f64 = 3.0;

/// What is needed. Figures of "all" are over all nodes that are needed, spare ones not counted.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// What was asked.
    pub question: Question,
    /// CPU seconds per second of all.
    pub cpu: Estimate,
    /// Cores at the planned utilisation, by the upper end of the CPU; whole.
    pub cores: f64,
    /// Nodes by cores, by memory, by network and by direct descriptors; the largest counts.
    pub nodes_by: [(&'static str, f64); 4],
    /// Nodes needed, the largest of `nodes_by`.
    pub nodes: f64,
    /// With the spare ones.
    pub nodes_in_all: f64,
    /// CPU seconds per second of one node for reading the stream that all share; none without one.
    pub stream_per_node: Option<Estimate>,
    /// Events per second of the stream that one node reads at most, at the planned utilisation of
    /// one core.
    pub stream_rate_max: Option<f64>,
    /// Shards of one node.
    pub shards_per_node: f64,
    /// Connections of one node when none is spare.
    pub connections_per_node: f64,
    /// Connections of one shard then, on average.
    pub connections_per_shard: f64,
    /// Share of the cores in use when no node is missing, and when the spare ones are.
    pub share: f64,
    /// When the spare ones are missing.
    pub share_without_spare: f64,
    /// User-space memory of one node, bytes.
    pub user_per_node: Estimate,
    /// Kernel memory of the connections of one node, bytes: half of both ends.
    pub kernel_per_node: Estimate,
    /// Kernel memory of one event on its way to everybody, one node, bytes.
    pub under_way_per_node: f64,
    /// Deliveries per second of all.
    pub deliveries: f64,
    /// Heartbeats per second of all.
    pub heartbeats: f64,
    /// Bits per second that all send.
    pub bits_out: f64,
    /// Bits per second that all receive: acknowledgements and publishes.
    pub bits_in: f64,
    /// Packets per second that all send.
    pub packets_out: f64,
    /// Packets per second that all receive.
    pub packets_in: f64,
    /// Nodes needed with plain descriptors: `nodes`, or more; none if so many shards share too few.
    pub nodes_plain: Option<f64>,
    /// What must be set on each node.
    pub settings: Settings,
    /// Source addresses that a load generator or proxy needs towards one node.
    pub addresses: f64,
    /// Seconds in which everybody is back after a storm, by CPU alone; none if the events leave no
    /// CPU for it.
    pub storm_seconds: Option<Estimate>,
    /// Where the answer goes beyond what was measured.
    pub extrapolates: Vec<String>,
    /// What to know of the model behind it.
    pub caveats: Vec<Caveat>,
}

/// What flows.
struct Traffic {
    deliveries: f64,
    heartbeats: f64,
    frame_bytes: f64,
    bits_out: f64,
    packets_out: f64,
    packets_in: f64,
    bits_in_per_node: f64,
    bits_in_acks: f64,
}

/// Answers.
pub fn answer(model: &Model, question: &Question) -> Result<Answer> {
    let stream = stream(model, question)?;
    let traffic = traffic(model, question);
    let cores = cores(model, question, &traffic)?;
    let limits = settings::limits(question);
    let Nodes { by: nodes_by, all: nodes, plain: nodes_plain } =
        nodes(model, question, &limits, &traffic, cores)?;
    let in_all = nodes + question.spare;
    let cpu = |nodes: f64| cpu(model, question, &traffic, nodes * question.node_cores);
    let busy = cpu(nodes);
    let storm = storm(model, question, busy.value, nodes * question.node_cores);
    let (user, kernel, under_way) = memory(model, question, &limits, &traffic, nodes);
    let connections_per_node = (question.subscribers / nodes).ceil();
    let connections_per_shard = (connections_per_node / question.node_cores).ceil();
    let share = cpu(in_all).value / (in_all * question.node_cores);
    let share_without_spare = busy.value / (nodes * question.node_cores);
    Ok(Answer {
        question: question.clone(),
        cpu: busy,
        cores,
        nodes_by,
        nodes,
        nodes_in_all: in_all,
        stream_per_node: stream.map(|cost| cost.read(question.rate).times(question.rate * 1e-6)),
        stream_rate_max: stream.map(|cost| cost.rate_max(question.utilisation)),
        shards_per_node: question.node_cores,
        connections_per_node,
        connections_per_shard,
        share,
        share_without_spare,
        user_per_node: user,
        kernel_per_node: kernel,
        under_way_per_node: under_way,
        deliveries: traffic.deliveries,
        heartbeats: traffic.heartbeats,
        bits_out: traffic.bits_out,
        bits_in: traffic.bits_in_acks + nodes * traffic.bits_in_per_node,
        packets_out: traffic.packets_out,
        packets_in: traffic.packets_in + nodes * question.rate * segments(question.bytes),
        nodes_plain,
        settings: settings::of_node(question, &limits, traffic.frame_bytes, nodes),
        addresses: (connections_per_node / PORTS).ceil(),
        storm_seconds: storm,
        caveats: caveats::of_answer(model, question.node_cores),
        extrapolates: extrapolates(model, question, connections_per_shard, share_without_spare),
    })
}

/// How many nodes are needed.
struct Nodes {
    /// By what.
    by: [(&'static str, f64); 4],
    /// The most of these.
    all: f64,
    /// With plain descriptors.
    plain: Option<f64>,
}

fn nodes(
    model: &Model,
    question: &Question,
    limits: &Limits,
    traffic: &Traffic,
    cores: f64,
) -> Result<Nodes> {
    let by_network = nodes_for(|nodes| {
        let out = traffic.bits_out / nodes;
        let inward = traffic.bits_in_acks / nodes + traffic.bits_in_per_node;
        out.max(inward) <= question.utilisation * question.node_network * 1e9
    });
    let by_memory = nodes_for(|nodes| {
        let (user, kernel, under_way) = memory(model, question, limits, traffic, nodes);
        user.high + kernel.high + under_way <= question.node_memory * GIB
    });
    let by_direct = nodes_for(|nodes| settings::direct_descriptors(question, nodes) <= DESCRIPTORS_MOST);
    let by_plain = nodes_for(|nodes| settings::plain_descriptors(question, nodes) <= DESCRIPTORS_MOST);
    let (Some(by_network), Some(by_memory), Some(by_direct)) = (by_network, by_memory, by_direct) else {
        bail!(
            "no number of nodes is enough: the events alone fill a node's network or memory; give larger nodes"
        );
    };
    let by = [
        ("cores", (cores / question.node_cores).ceil()),
        ("memory", by_memory),
        ("network", by_network),
        ("descriptors", by_direct),
    ];
    let all = by.iter().map(|(_, nodes)| *nodes).fold(1.0, f64::max);
    Ok(Nodes { by, all, plain: by_plain.map(|by_plain| all.max(by_plain)) })
}

fn segments(bytes: f64) -> f64 {
    (bytes / SEGMENT_BYTES).ceil()
}

/// Events per second of one connection.
fn rate_per_connection(question: &Question) -> f64 {
    question.rate / question.topics
}

fn traffic(model: &Model, question: &Question) -> Traffic {
    let deliveries = question.subscribers * rate_per_connection(question);
    // A connection that hears something more often than the heartbeat needs none; others take about
    // this many: some beat up to a quarter earlier, and each is looked at once a second only.
    let idle = rate_per_connection(question) * question.heartbeat < 1.0;
    let heartbeats = if idle { question.subscribers / question.heartbeat } else { 0.0 };
    let frame_bytes = model.frame_bytes(question.protocol, question.bytes);
    let packets = deliveries * segments(frame_bytes);
    let acks = deliveries * (segments(frame_bytes) / SEGMENTS_PER_ACK).ceil();
    let (heartbeat_bytes, answers) =
        if question.protocol == Protocol::Ws { (PING_BYTES, 1.0) } else { (COMMENT_BYTES, 0.0) };
    // The kernel acknowledges each pong, at most by a packet of its own.
    let acks_out = heartbeats * answers;
    let bytes_out = deliveries * frame_bytes
        + heartbeats * heartbeat_bytes
        + (packets + heartbeats + acks_out) * PACKET_BYTES;
    // A heartbeat is acknowledged, by the pong where there is one; a pong is masked, 6 bytes (RFC
    // 6455 §5.2).
    let acks_in = acks + heartbeats;
    let bytes_in = acks_in * PACKET_BYTES + heartbeats * answers * 6.0;
    let publish_bytes = question.rate * (question.bytes + segments(question.bytes) * PACKET_BYTES);
    Traffic {
        deliveries,
        heartbeats,
        frame_bytes,
        bits_out: 8.0 * bytes_out,
        packets_out: packets + heartbeats + acks_out,
        packets_in: acks_in,
        bits_in_per_node: 8.0 * publish_bytes,
        bits_in_acks: 8.0 * bytes_in,
    }
}

/// CPU seconds per second of so many shards together. Each shard is charged each event whole, as
/// the one shard of the measurement was, hub and all: an upper bound.
fn cpu(model: &Model, question: &Question, traffic: &Traffic, shards: f64) -> Estimate {
    let shard = Work {
        protocol: question.protocol,
        seconds: 1.0,
        connections: question.subscribers / shards,
        events: question.rate,
        deliveries: traffic.deliveries / shards,
        rate: rate_per_connection(question),
        frame_bytes: traffic.frame_bytes,
        handshakes: question.churn / shards,
        closes: question.churn / shards,
        heartbeats: traffic.heartbeats / shards,
    };
    let all = model.cpu(&shard).times(shards);
    let Some(cost) = model.stream.as_ref().filter(|_| question.source.is_some()) else { return all };
    // Each node reads each event once, in place of one shard's taking it in; one node publishes it.
    let taken_in = model.cpu.value("publish");
    let reading = |read: f64| (read - taken_in).max(0.0) * shards / question.node_cores;
    let (read, publish) = (cost.read(question.rate), cost.publish(question.rate));
    let stream = |read: f64, publish: f64| question.rate * 1e-6 * (reading(read) + publish);
    Estimate {
        value: all.value + stream(read.value, publish.value),
        low: all.low + stream(read.low, publish.low),
        high: all.high + stream(read.high, publish.high),
    }
}

/// What the stream costs that the nodes share, if they do. One task of a node reads it, so one core
/// must be enough.
fn stream<'a>(model: &'a Model, question: &Question) -> Result<Option<&'a StreamCost>> {
    if question.source.is_none() {
        return Ok(None);
    }
    let Some(cost) = &model.stream else {
        bail!("this model does not know what a stream costs: measure one with --source nats --save FILE");
    };
    let most = cost.rate_max(question.utilisation);
    if question.rate > most {
        bail!(
            "no number of nodes is enough: each reads every event, and one core reads at most {most:.0} events/s at {} %; \
             publish less often, or divide the topics between clusters",
            question.utilisation * 100.0
        );
    }
    Ok(Some(cost))
}

/// The fewest shards whose CPU, at its upper end, stays within the planned utilisation; one shard
/// has one core.
fn cores(model: &Model, question: &Question, traffic: &Traffic) -> Result<f64> {
    let enough = |shards: f64| cpu(model, question, traffic, shards).high <= question.utilisation * shards;
    match fewest(CORES_MAX, enough) {
        Some(shards) => Ok(shards),
        None => bail!(
            "no number of cores is enough: {} events/s alone keep every shard busier than {} %; publish less often or \
             raise --utilisation",
            question.rate,
            question.utilisation * 100.0
        ),
    }
}

fn nodes_for(enough: impl Fn(f64) -> bool) -> Option<f64> {
    fewest(CORES_MAX, enough)
}

/// The smallest whole number from 1 to `most` that is enough; what is enough stays so for larger
/// ones.
fn fewest(most: f64, enough: impl Fn(f64) -> bool) -> Option<f64> {
    let mut high = 1.0;
    while !enough(high) {
        if high >= most {
            return None;
        }
        high = (high * 2.0).min(most);
    }
    let mut low = (high / 2.0).floor();
    while high - low > 1.0 {
        let middle = ((low + high) / 2.0).floor();
        if enough(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

/// Of one of so many nodes: user space, kernel, and an event under way to everybody.
fn memory(
    model: &Model,
    question: &Question,
    limits: &Limits,
    traffic: &Traffic,
    nodes: f64,
) -> (Estimate, Estimate, f64) {
    let connections = question.subscribers / nodes;
    let shards = question.node_cores;
    let (events, bytes) = window(question, limits);
    // Each node knows all topics: the hub once, and each shard once more.
    let topics = question.topics * (shards + 1.0) * TOPIC_BYTES as f64;
    let user = model.user(question.protocol, shards, connections, (events, bytes));
    let user = Estimate { value: user.value + topics, low: user.low + topics, high: user.high + topics };
    // On loopback both ends were in the measured figure; they are made of the same objects.
    let kernel = model.kernel(question.protocol, shards, connections).times(0.5);
    let under_way =
        if question.rate > 0.0 { connections * (traffic.frame_bytes + BUFFER_BYTES) } else { 0.0 };
    (user, kernel, under_way / question.topics)
}

/// Events and bytes that all histories hold in the end. Memory is counted with the frames of both
/// protocols.
fn window(question: &Question, limits: &Limits) -> (f64, f64) {
    let aged = rate_per_connection(question) * limits.window_ms_max as f64 / 1e3;
    let of_topic = aged
        .min(limits.window_events_max as f64)
        .min((limits.window_bytes_max as f64 / question.bytes).floor());
    let memory = (1.0 + Format::KEPT as f64) * question.bytes;
    let of_topic = of_topic.min((limits.topic_history_memory_max() as f64 / memory).floor());
    let total = (limits.history_memory_max() as f64 / memory).floor();
    let events = (of_topic * question.topics).min(total);
    (events, events * question.bytes)
}

/// Seconds until all subscribers are back, on the cores that the events leave free; none if they
/// leave none.
fn storm(model: &Model, question: &Question, busy: f64, cores: f64) -> Option<Estimate> {
    let free = STORM_SHARE * cores - busy;
    if free <= 0.0 {
        return None;
    }
    let everybody = Work {
        handshakes: question.subscribers,
        closes: question.subscribers,
        protocol: question.protocol,
        ..Work::default()
    };
    Some(model.cpu(&everybody).times(1.0 / free))
}

fn extrapolates(model: &Model, question: &Question, connections: f64, share: f64) -> Vec<String> {
    let rate = rate_per_connection(question);
    let mut notes = model.domain.outside(connections, rate, if rate > 0.0 { question.bytes } else { 0.0 });
    if share > model.domain.share {
        notes.push(format!(
            "cores are {:.0} % busy, measured were up to {:.0} %: near a full core deliveries merge, so that the CPU is \
             an upper bound",
            share * 100.0,
            model.domain.share * 100.0
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::planted::exact;
    use crate::plan::question::tests::asked;
    use crate::plan::stream::StreamPoint;

    /// Half of `apart` is paid at one event per second. Microseconds: base 1,000, publish 100,
    /// delivery 2 and 2 more apart, heartbeat of SSE 5, handshake and close 10. Bytes: 1 MB, 0.3 MB
    /// per shard and 0.2 in use, 100 per connection, 500 and 1 per event and byte in windows, 8,000
    /// in the kernel at both ends.
    fn model() -> Model {
        let cpu = [1_000.0, 100.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 5.0, 5.0, 10.0, 10.0, 10.0];
        let user = [1e6, 0.3e6, 0.2e6, 100.0, 100.0, 500.0, 1.0];
        let mut model = exact(cpu, user, [0.0, 8_000.0, 8_000.0]);
        model.apart_ms = 1_000.0;
        model.sse_overhead_bytes = 30.0;
        model
    }

    fn answered(line: &str) -> Result<Answer> {
        answer(&model(), &asked(line).expect("possible").expect("asked"))
    }

    #[track_caller]
    fn near(value: f64, expected: f64) {
        assert!((value - expected).abs() <= 1e-6 * expected.abs(), "{value} is not {expected}");
    }

    #[test]
    fn a_million_websockets_come_out_as_worked_by_hand() {
        let answer = answered("--subscribers 1000000 --rate 1 --bytes 200 --churn 1000").expect("possible");
        // 1,000,000 deliveries of 3 µs and 1,000 changes of 20 µs; each shard 1,100 µs more: 3.02 +
        // 0.0011 k <= 0.5 k.
        assert_eq!(answer.cores, 7.0);
        let nodes = [("cores", 2.0), ("memory", 1.0), ("network", 1.0), ("descriptors", 1.0)];
        assert_eq!(answer.nodes_by, nodes);
        assert_eq!((answer.nodes, answer.nodes_in_all), (2.0, 3.0));
        near(answer.cpu.value, 3.0288);
        near(answer.share_without_spare, 3.0288 / 8.0);
        near(answer.share, 3.0332 / 12.0);
        assert_eq!((answer.connections_per_node, answer.connections_per_shard), (500_000.0, 125_000.0));
        // 300 events of 200 bytes are in the window after its 300 s; the topic is known five times.
        near(answer.user_per_node.value, 1e6 + 4.0 * 0.5e6 + 50e6 + 300.0 * 700.0 + 5.0 * 640.0);
        near(answer.kernel_per_node.value, 500_000.0 * 4_000.0);
        near(answer.under_way_per_node, 500_000.0 * (204.0 + 768.0));
        near(answer.bits_out, 8.0 * 1e6 * (204.0 + 90.0));
        near(answer.bits_in, 8.0 * (1e6 * 90.0 + 2.0 * (200.0 + 90.0)));
        near(answer.packets_out, 1e6);
        near(answer.packets_in, 1e6 + 2.0);
        assert_eq!(answer.heartbeats, 0.0);
        assert_eq!((answer.addresses, answer.nodes_plain), (18.0, Some(2.0)));
        // 20 µs for each of a million, on 0.9 × 8 cores of which 3.0288 are busy.
        near(answer.storm_seconds.expect("cores are free").value, 20.0 / (7.2 - 3.0288));
        assert!(answer.extrapolates.iter().any(|note| note.contains("125,000 connections per shard")));
    }

    #[test]
    fn large_events_on_many_topics_take_several_packets_and_idle_streams_get_heartbeats() {
        let answer = answered("--subscribers 10000 --topics 100 --rate 1 --bytes 5000 --protocol sse")
            .expect("possible");
        near(answer.deliveries, 100.0);
        near(answer.heartbeats, 10_000.0 / 15.0);
        // 5,030 bytes are 4 packets, acknowledged by 2.
        near(answer.bits_out, 8.0 * (100.0 * 5_030.0 + 400.0 * 90.0 + 10_000.0 / 15.0 * 93.0));
        near(answer.packets_out, 400.0 + 10_000.0 / 15.0);
        near(answer.packets_in, 200.0 + 10_000.0 / 15.0 + 4.0);
        assert_eq!((answer.nodes, answer.nodes_in_all), (1.0, 2.0));
        // 3 events of each topic in 300 s; the hub and 4 shards know each topic.
        near(answer.user_per_node.value, 1e6 + 2e6 + 1e6 + 300.0 * 5_500.0 + 100.0 * 5.0 * 640.0);
        near(answer.under_way_per_node, 100.0 * (5_030.0 + 768.0));
    }

    #[test]
    fn a_websocket_heartbeat_is_a_ping_a_pong_and_an_acknowledgement() {
        let answer = answered("--subscribers 15000 --rate 0").expect("possible");
        near(answer.heartbeats, 1_000.0);
        near(answer.bits_out, 8.0 * 1_000.0 * (2.0 + 90.0 + 90.0));
        near(answer.packets_out, 2_000.0);
        // The pong acknowledges the ping.
        near(answer.bits_in, 8.0 * 1_000.0 * (6.0 + 90.0));
        near(answer.packets_in, 1_000.0);
    }

    #[test]
    fn a_storm_never_ends_on_cores_that_the_events_fill() {
        // 306,000 deliveries of 3 µs fill 0.918 of the one core; a storm may bring it to 0.9.
        let line = "--subscribers 306000 --rate 1 --node-cores 1 --utilisation 0.95";
        let answer = answered(line).expect("possible");
        assert_eq!((answer.nodes, answer.storm_seconds), (1.0, None));
    }

    #[test]
    fn memory_network_and_descriptors_each_can_ask_for_the_most_nodes() {
        let first = |line: &str| {
            let answer = answered(line).expect("possible");
            let most = answer.nodes_by.iter().max_by(|a, b| a.1.total_cmp(&b.1)).copied();
            (most.map(|most| most.0), answer.nodes)
        };
        // 4,100 bytes each, and about 3 MB: 2 GiB hold 523,000 of them.
        assert_eq!(first("--subscribers 1000000 --rate 0 --node-memory 2"), (Some("memory"), 2.0));
        // 8 × 1,094 bytes × 100,000 per second are 0.875 Gbit/s; 0.1 Gbit/s are planned for each
        // node.
        let line = "--subscribers 10000 --rate 10 --bytes 1000 --node-network 0.2 --node-cores 64";
        assert_eq!(first(line), (Some("network"), 9.0));
        let line = "--subscribers 3000000 --rate 0 --heartbeat 600 --node-memory 1000 --node-cores";
        assert_eq!(first(&format!("{line} 1")), (Some("descriptors"), 3.0));
        // Each shard has a table of its own, unless descriptors are plain.
        assert_eq!(first(&format!("{line} 64")).1, 1.0);
        assert_eq!(answered(&format!("{line} 64")).expect("possible").nodes_plain, Some(4.0));
        // 4,096 shards with 256 spare ones each leave no plain descriptor for a subscriber.
        assert_eq!(answered(&format!("{line} 4096")).expect("possible").nodes_plain, None);
    }

    #[test]
    fn a_frame_that_fills_a_packet_takes_one_and_a_byte_more_takes_another() {
        // A WebSocket frame has 4 bytes of head here; 90 bytes of TCP, IP and Ethernet go with each
        // packet.
        for (bytes, packets, acks) in [(1_444, 1.0, 1.0), (1_445, 2.0, 1.0), (2_893, 3.0, 2.0)] {
            let answer = answered(&format!("--subscribers 1000 --rate 1 --bytes {bytes}")).expect("possible");
            near(answer.packets_out, 1_000.0 * packets);
            near(answer.bits_out, 8.0 * 1_000.0 * (f64::from(bytes) + 4.0 + 90.0 * packets));
            // The node's publishes are packets too.
            let published = (f64::from(bytes) / 1_448.0).ceil();
            near(answer.packets_in, 1_000.0 * acks + published);
            near(answer.bits_in, 8.0 * (1_000.0 * acks * 90.0 + f64::from(bytes) + 90.0 * published));
        }
    }

    #[test]
    fn windows_are_bounded_by_events_bytes_age_and_the_total() {
        let held = |line: &str| window(&asked(line).expect("possible").expect("asked"), &Limits::default());
        assert_eq!(held("--subscribers 10 --rate 1 --bytes 200"), (300.0, 60_000.0));
        assert_eq!(held("--subscribers 10 --rate 100 --bytes 200").0, 1_024.0);
        assert_eq!(held("--subscribers 10 --rate 100 --bytes 1048576").0, 8.0);
        let (events, bytes) = held("--subscribers 1000 --topics 1000 --rate 100000 --bytes 1048576");
        assert_eq!((events, bytes), (85.0, 85.0 * 1_048_576.0), "three bytes of memory for each");
        assert_eq!(held("--subscribers 10 --rate 0"), (0.0, 0.0));
    }

    #[test]
    fn more_events_than_a_shard_can_take_in_are_refused_in_one_line() {
        let error =
            answered("--subscribers 10 --topics 10 --rate 10000").expect_err("100 µs each").to_string();
        assert!(error.contains("10000 events/s") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn every_node_pays_for_reading_the_stream_and_one_for_publishing() {
        let exactly = |value| Estimate { value, low: value, high: value };
        let mut model = model();
        let line = "--subscribers 1000000 --rate 1 --bytes 200 --churn 1000 --source nats";
        let question = asked(line).expect("possible").expect("asked");
        let error = answer(&model, &question).expect_err("nothing is known of a stream").to_string();
        assert!(error.contains("--source nats --save"), "{error}");
        // 0.1 s more for each event on each node than a local event's 100 µs, 0.05 s where it is
        // published.
        let (read, publish) = (exactly(100_100.0), exactly(50_000.0));
        let at = vec![StreamPoint { rate: 1.0, read, publish }];
        model.stream = Some(StreamCost { nats_server: "2.15.1".into(), at });
        let shared = answer(&model, &question).expect("possible");
        // 3.02 + 0.05 + (0.0011 + 0.1 / 4) k <= 0.5 k.
        assert_eq!((shared.cores, shared.nodes), (7.0, 2.0));
        near(shared.cpu.value, 3.0288 + 2.0 * 0.1 + 0.05);
        near(shared.stream_per_node.expect("shared").value, 0.1001);
        near(shared.stream_rate_max.expect("shared"), 0.5e6 / 100_100.0);
        let alone = Question { source: None, ..question.clone() };
        near(answer(&model, &alone).expect("possible").cpu.value, 3.0288);
        let fast = Question { rate: 6.0, ..question };
        let error = answer(&model, &fast).expect_err("one core is not enough").to_string();
        assert!(error.contains("at most 5 events/s") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn the_upper_end_of_the_interval_decides_on_nodes() {
        let question = asked("--subscribers 1000000 --rate 1").expect("possible").expect("asked");
        let mut model = model();
        let sure = answer(&model, &question).expect("possible");
        model.cpu.scatter = 0.3;
        let unsure = answer(&model, &question).expect("possible");
        // 1.73 standard deviations either way: Student's t for 32 fitted points less 13 terms.
        let (low, high) = (unsure.cpu.low / unsure.cpu.value, unsure.cpu.high / unsure.cpu.value);
        assert!(
            (low - (1.0 - 1.73 * 0.3)).abs() < 0.001 && (high - (1.0 + 1.73 * 0.3)).abs() < 0.001,
            "{low} {high}"
        );
        // 1.519 × (3 + 0.0011 k) <= 0.5 k; without scatter 6.01.
        assert_eq!((sure.cores, unsure.cores), (7.0, 10.0));
    }

    #[test]
    fn the_fewest_that_are_enough_are_found() {
        for least in [1.0, 2.0, 3.0, 7.0, 1_000.0, 999_999.0, CORES_MAX] {
            assert_eq!(fewest(CORES_MAX, |number| number >= least), Some(least));
        }
        assert_eq!(fewest(CORES_MAX, |_| false), None);
    }
}

//! Several nodes of fanwave as one service: `loadtest run --nodes` and `loadtest recovery`.
//!
//! `stand` starts the processes: NATS servers and nodes that share their stream, or an origin and
//! relays. `publishers` publish on any node and repeat what is not acknowledged; `movers` are
//! subscribers that go from node to node and come back by `Last-Event-ID`. What these hear is
//! checked by a `journal`: nothing lost, nothing twice, one order and one id on all nodes. `watch`
//! says how long it takes until all are well after a kill. A `world` is all of that at once.
//!
//! Nothing is pinned to a CPU: there are more processes than CPUs. Not here: `loadtest compare`,
//! whose one node and one nats-server share a CPU.

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

pub use recovery::RecoveryArgs;
pub use stand::Common;

use crate::machine::Machine;
use crate::report::{say, table};
use crate::server::{NatsArgs, ServerChoice};
use crate::unit::{Unit, grouped};
use crate::workload::{Behaviour, Listens, Pace, Workload};
use publishers::Load;
use stand::Stand;
use world::{Told, World};

mod journal;
mod movers;
mod publishers;
pub mod recovery;
mod stand;
mod watch;
mod world;

/// Options of `run` for several nodes.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Start so many nodes that share a source; subscribers speak SSE and move between them
    #[arg(long, value_name = "N", requires = "source")]
    pub nodes: Option<usize>,
    /// What the nodes share: a stream of nats-servers that are started too, or an origin that they
    /// follow
    #[arg(long, requires = "nodes")]
    source: Option<Common>,
    /// NATS servers, 1 or 3
    #[arg(long, value_name = "N", default_value_t = 3)]
    nats_servers: usize,
    #[command(flatten)]
    nats: NatsArgs,
    /// Moves of subscribers from node to node, spread over the run
    #[arg(long, default_value_t = 1_000)]
    moves: u64,
    /// Publishers, each on a node of its own as long as it acknowledges
    #[arg(long, default_value_t = 3)]
    publishers: usize,
}

/// One run.
#[derive(Debug, Serialize)]
pub struct ClusterOutcome {
    workload: Workload,
    nodes: usize,
    source: Common,
    /// What the nodes read from, in words.
    source_name: String,
    version: String,
    moves_asked: u64,
    told: Told,
}

/// Runs one workload on a cluster.
pub fn measure(args: &ClusterArgs, choice: &ServerChoice, workload: &Workload) -> Result<ClusterOutcome> {
    let (Some(nodes), Some(source)) = (args.nodes, args.source) else {
        bail!("--nodes and --source belong together");
    };
    if choice.custom.is_given() || choice.rival.is_some() || choice.doors.tls {
        bail!("--nodes starts fanwave itself, without TLS: leave out --rival, --tls and URLs");
    }
    if choice.doors.token_hs256_file.is_some() {
        bail!("--nodes: subscribers that move bring no tokens");
    }
    let load = load_of(workload, args.publishers)?;
    let stand = Stand::start(&choice.fanwave, &args.nats, source, nodes, args.nats_servers)?;
    let (source_name, version) = (stand.source_name(), stand.version());
    let pace = world::Moves { per_second: 1.1 * args.moves as f64 / workload.seconds, most: args.moves };
    let mut world = World::start(stand, load, workload.connections(), pace)?;
    world.go_on(workload.seconds)?;
    let told = world.finish()?;
    let (workload, moves_asked) = (workload.clone(), args.moves);
    Ok(ClusterOutcome { workload, nodes, source, source_name, version, moves_asked, told })
}

/// What publishers do in a cluster; a scenario that asks for more is refused.
fn load_of(workload: &Workload, publishers: usize) -> Result<Load> {
    let Pace::Rate { per_second } = workload.publish else {
        bail!("{}: a cluster is published to at a rate", workload.name);
    };
    let is_plain = workload.subscribers.iter().all(|crowd| {
        crowd.behaviour == Behaviour::Steady && crowd.listens == Listens::One && crowd.slow.is_none()
    });
    if !is_plain || workload.keys > 1 || !workload.speakers.is_empty() {
        bail!(
            "{}: in a cluster subscribers hear one topic each and move; all else is one node's",
            workload.name
        );
    }
    if publishers == 0 {
        bail!("--publishers is at least 1");
    }
    let (topics, payload_bytes) = (workload.topics, workload.payload_bytes);
    Ok(Load { publishers, rate: per_second, topics, payload_bytes })
}

impl ClusterOutcome {
    /// What went wrong, if anything did.
    pub fn condemned(&self) -> Option<String> {
        let findings = &self.told.findings;
        (!findings.are_clean()).then(|| format!("{}: {}", self.workload.name, findings.line()))
    }
}

/// Prints runs.
pub fn show(machine: &Machine, outcomes: &[ClusterOutcome]) {
    say(&machine.line());
    for outcome in outcomes {
        let ClusterOutcome { workload, told, .. } = outcome;
        say(&format!(
            "\n{}: {} nodes of fanwave {} on {}",
            workload.name, outcome.nodes, outcome.version, outcome.source_name
        ));
        say(&format!(
            "subscribers  {} by SSE on {} topics; {} of {} moves between nodes, {} connections broke",
            grouped(workload.connections() as u64),
            workload.topics,
            grouped(told.moves),
            grouped(outcome.moves_asked),
            grouped(told.broken)
        ));
        say(&format!(
            "published    {} events of {} bytes acknowledged; {} publishes repeated",
            grouped(told.acknowledged),
            workload.payload_bytes,
            grouped(told.repeated)
        ));
        say(&format!("audit        {}\n", told.findings.line()));
        table(1, &["latency", "median", "p99", "largest", "values"], &told.latency_rows());
    }
}

/// A time in seconds as tables show it.
fn seconds(value: f64) -> String {
    Unit::Seconds.show(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{self, Overrides};

    #[test]
    fn a_scenario_that_a_cluster_cannot_do_is_refused_by_its_name() {
        let of = |name| load_of(&scenario::load(name, &Overrides::default()).expect("built in"), 3);
        let load = of("ticker").expect("at a rate, steady");
        assert_eq!((load.publishers, load.rate, load.topics, load.payload_bytes), (3, 20.0, 1, 120));
        for name in ["burst", "conflation", "patterns", "slow-readers", "chat"] {
            let error = of(name).expect_err(name).to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }
}

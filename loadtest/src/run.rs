//! `loadtest run`: scenarios against a server, each with a server of its own, told as table, JSON,
//! page and interval log.
//!
//! Everything that can be known to be wrong is said before the first server starts; files are
//! written and tables printed after the last scenario, so a run that fails leaves no results.
//! Subscribers who did not get what was published are a failure too, but then the figures are
//! shown, since they say what went wrong.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use tempfile::NamedTempFile;

use crate::bulk;
use crate::cluster::{self, ClusterArgs, ClusterOutcome};
use crate::engine::verdict::condemned;
use crate::engine::{EngineOptions, measure};
use crate::hlog;
use crate::outcome::{Latency, Outcome};
use crate::page::run_page;
use crate::process::sockets_per_process_max;
use crate::prove::Bench;
use crate::report::{check_place, outcome_table, progress, save, say, table};
use crate::scenario::{self, Limits, Overrides};
use crate::server::{self, ServerChoice};
use crate::unit::grouped;
use crate::workload::{Pace, Workload};

/// What several nodes do where no scenario is named.
const CLUSTER_SCENARIO: &str = "ticker";
/// The rules of a server whose topics have a value for each key.
const CONFLATE_BY_KEY: &[u8] = b"[[rule]]\nmatch = \"**\"\nconflate = \"key\"\n";

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Scenarios: names of built-in ones, or paths of TOML files
    #[arg(value_name = "SCENARIO", required_unless_present_any = ["list", "all", "nodes"])]
    scenarios: Vec<String>,
    /// List the built-in scenarios
    #[arg(long)]
    list: bool,
    /// Every built-in scenario but bulk, one after the other
    #[arg(long, conflicts_with = "scenarios")]
    all: bool,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    server: ServerChoice,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Shards of a fanwave that is started here, all on the server's CPU [default: as many as its
    /// connections need]
    #[arg(long)]
    shards: Option<usize>,
    /// Leave out the floor before and after each scenario
    #[arg(long)]
    no_floor: bool,
    #[command(flatten)]
    files: Files,
}

/// Where results go beside the terminal; `--json` is an option of every command.
#[derive(Debug, Clone, Default, Args)]
pub struct Files {
    /// Save a self-contained HTML page
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// Save the latencies as an HdrHistogram interval log
    #[arg(long, value_name = "FILE")]
    hlog: Option<PathBuf>,
    /// Save all three in this directory, named after the command: .json, .html and .hlog
    #[arg(long, value_name = "DIR", conflicts_with_all = ["json", "page", "hlog"])]
    out: Option<PathBuf>,
}

impl RunArgs {
    /// True if several nodes are started, which need all CPUs.
    pub fn needs_all_cpus(&self) -> bool {
        self.cluster.nodes.is_some()
    }
}

/// Runs the scenarios. The error of a run whose audit found something is told after its tables.
pub fn run(bench: &Bench, args: &RunArgs) -> Result<()> {
    if args.list {
        return list();
    }
    if args.shards == Some(0) {
        bail!("--shards 0: a server has at least 1");
    }
    let names: Vec<String> = match args.all {
        true => scenario::built_in()?.into_iter().map(|workload| workload.name).collect(),
        false if args.scenarios.is_empty() => vec![CLUSTER_SCENARIO.to_owned()],
        false => scenario::expand(&args.scenarios),
    };
    let workloads =
        names.iter().map(|name| scenario::load(name, &args.overrides)).collect::<Result<Vec<Workload>>>()?;
    // A server that runs already may be elsewhere; the engine asks where before it connects.
    for workload in workloads.iter().filter(|_| !args.server.custom.is_given()) {
        Limits::read().check(workload.connections() as u64, true).with_context(|| workload.name.clone())?;
    }
    if args.cluster.nodes.is_some() {
        return run_cluster(bench, args, &workloads);
    }
    let at_once = workloads.iter().filter(|workload| matches!(workload.publish, Pace::AtOnce { .. })).count();
    if at_once > 0 {
        if at_once < workloads.len() {
            bail!("what is published at once is judged, not measured: run it apart from other scenarios");
        }
        return run_bulk(bench, args, &workloads);
    }
    let files = args.files.resolve(bench.common.json.as_deref(), "run")?;
    if args.no_floor {
        progress("--no-floor: the kernel's floor is not measured, so no figure has a ratio to it");
    }
    let options = EngineOptions {
        sender_cpu: bench.common.sender_cpu,
        receiver_cpu: bench.common.receiver_cpu,
        floor: !args.no_floor,
        memory: true,
    };
    let mut outcomes = Vec::new();
    for workload in &workloads {
        let shards = args.shards.unwrap_or_else(|| shards_for(workload));
        if shards > 1 {
            progress(&format!("{}: the server gets {shards} shards on its CPU", workload.name));
        }
        let cpu = Some(bench.common.sender_cpu);
        let wants = ServerWants::of(&args.server, workload)?;
        let mut running = server::start(&args.server, cpu, shards, &wants.args)?;
        outcomes.push(measure(&mut running, workload, &options)?);
        running.stop()?;
    }
    save(files.json.as_deref(), "run", &bench.machine, &outcomes)?;
    files.write(&outcomes, || run_page(&outcomes, &bench.machine))?;
    say(&bench.machine.line());
    for outcome in &outcomes {
        say("");
        outcome_table(outcome);
    }
    let bad: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| condemned(outcome).map(|cause| format!("{}: {cause}", outcome.workload.name)))
        .collect();
    if !bad.is_empty() {
        bail!("{}", bad.join("; "));
    }
    Ok(())
}

/// Judges workloads that publish everything at once. Faults are told after the table, as one error.
fn run_bulk(bench: &Bench, args: &RunArgs, workloads: &[Workload]) -> Result<()> {
    let Files { page, hlog, out } = &args.files;
    if page.is_some() || hlog.is_some() || out.is_some() {
        bail!(
            "what is published at once is judged: it has no page and no interval log; give --json for a file"
        );
    }
    let common = &bench.common;
    let mut parts = Vec::new();
    for workload in workloads {
        let shards = args.shards.unwrap_or_else(|| shards_for(workload));
        parts.push(bulk::judge(&args.server, common.sender_cpu, common.receiver_cpu, shards, workload)?);
    }
    save(common.json.as_deref(), "run", &bench.machine, &parts)?;
    say(&bench.machine.line());
    say("");
    bulk::show(&parts);
    let bad: Vec<String> = parts.iter().filter_map(bulk::Judged::condemned).collect();
    match bad.is_empty() {
        true => Ok(()),
        false => bail!("{}", bad.join("; ")),
    }
}

/// Runs workloads on several nodes. What was lost is told after the tables, as one error.
fn run_cluster(bench: &Bench, args: &RunArgs, workloads: &[Workload]) -> Result<()> {
    let Files { page, hlog, out } = &args.files;
    if page.is_some() || hlog.is_some() || out.is_some() {
        bail!("--nodes has no page and no interval log; give --json for a file");
    }
    let measure = |workload| cluster::measure(&args.cluster, &args.server, workload);
    let outcomes = workloads.iter().map(measure).collect::<Result<Vec<_>>>()?;
    save(bench.common.json.as_deref(), "run", &bench.machine, &outcomes)?;
    cluster::show(&bench.machine, &outcomes);
    let bad: Vec<String> = outcomes.iter().filter_map(ClusterOutcome::condemned).collect();
    match bad.is_empty() {
        true => Ok(()),
        false => bail!("{}", bad.join("; ")),
    }
}

/// What a fanwave that is started for a workload needs to do it.
pub struct ServerWants {
    /// Further arguments.
    pub args: Vec<String>,
    /// Read at its start; gone with this.
    _config: Option<NamedTempFile>,
}

impl ServerWants {
    /// Nothing where no fanwave is started.
    pub fn of(choice: &ServerChoice, workload: &Workload) -> Result<ServerWants> {
        let own = !choice.custom.is_given() && choice.rival.is_none();
        let (mut args, mut config) = (Vec::new(), None);
        if own && !workload.speakers.is_empty() {
            args.extend(["--client-publish", "*"].map(String::from));
        }
        if own && workload.keys > 1 {
            let mut file = NamedTempFile::new().context("making a temporary file")?;
            file.write_all(CONFLATE_BY_KEY)?;
            args.extend(["--config".to_owned(), file.path().to_string_lossy().into_owned()]);
            config = Some(file);
        }
        Ok(ServerWants { args, _config: config })
    }
}

/// Shards that a fanwave needs to hold the workload's connections under the descriptor limit, which
/// bounds each shard; a tenth is for shards that get more than their share.
pub fn shards_for(workload: &Workload) -> usize {
    let connections = workload.connections();
    let room = sockets_per_process_max().max(1) as usize;
    (connections + connections / 10).div_ceil(room).max(1)
}

fn list() -> Result<()> {
    let rows: Vec<_> = scenario::listed()?
        .into_iter()
        .map(|(name, about, connections)| vec![name, about, grouped(connections as u64)])
        .collect();
    table(2, &["scenario", "about", "connections"], &rows);
    Ok(())
}

/// The files to write, settled and found possible.
pub struct Destinations {
    /// JSON document.
    pub json: Option<PathBuf>,
    page: Option<PathBuf>,
    hlog: Option<PathBuf>,
}

impl Files {
    /// Settles where to write, `--out` included, and refuses places where nothing can be written
    /// before time is spent.
    pub fn resolve(&self, json: Option<&Path>, stem: &str) -> Result<Destinations> {
        let files = match &self.out {
            Some(out) => {
                fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))?;
                let file = |suffix: &str| Some(out.join(format!("{stem}.{suffix}")));
                Destinations { json: file("json"), page: file("html"), hlog: file("hlog") }
            }
            None => Destinations {
                json: json.map(Path::to_owned),
                page: self.page.clone(),
                hlog: self.hlog.clone(),
            },
        };
        [&files.json, &files.page, &files.hlog]
            .into_iter()
            .flatten()
            .try_for_each(|file| check_place(file))?;
        Ok(files)
    }
}

impl Destinations {
    /// Writes page and interval log; `page` makes the former.
    pub fn write(&self, outcomes: &[Outcome], page: impl FnOnce() -> String) -> Result<()> {
        if let Some(file) = &self.page {
            fs::write(file, page()).with_context(|| format!("writing {}", file.display()))?;
        }
        if let Some(file) = &self.hlog {
            hlog::write(file, &tagged(outcomes))?;
        }
        Ok(())
    }
}

/// Every latency with its tag and its seconds; scenarios are told apart by their place and name if
/// there are several.
fn tagged(outcomes: &[Outcome]) -> Vec<(String, f64, &Latency)> {
    let mut tagged = Vec::new();
    for (at, outcome) in outcomes.iter().enumerate() {
        let prefix = match outcomes.len() {
            1 => String::new(),
            _ => format!("{}-{}-", at + 1, outcome.workload.name),
        };
        let kinds = [
            ("each", Some(&outcome.each)),
            ("last", outcome.last.as_ref()),
            ("late", Some(&outcome.lateness)),
            ("handshake", Some(&outcome.handshakes.latency)),
            ("handshake-again", Some(&outcome.handshakes.again_latency)),
        ];
        for (kind, latency) in kinds {
            if let Some(latency) = latency.filter(|latency| latency.count > 0) {
                tagged.push((format!("{prefix}{kind}"), outcome.seconds, latency));
            }
        }
    }
    tagged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_where_nothing_can_be_written_is_refused_before_anything_runs() {
        let absent = Files { page: Some("absent-directory/x.html".into()), ..Files::default() };
        assert!(absent.resolve(None, "run").err().expect("absent").to_string().contains("absent-directory"));
        assert!(Files::default().resolve(Some(Path::new("/")), "run").is_err());
        let here = Files { hlog: Some("x.hlog".into()), ..Files::default() };
        assert!(here.resolve(Some(Path::new("x.json")), "run").expect("possible").json.is_some());
    }
}

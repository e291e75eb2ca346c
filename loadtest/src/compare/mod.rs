//! `loadtest compare`: fanwave and its rivals under the same workload, in the same minutes, beside
//! the floor.
//!
//! For one protocol all servers run at once on one CPU, each with subscribers of its own, and take
//! turns: floor, fanwave, nchan, NATS, floor, … While one is measured the others are idle, which is
//! checked. So a drift of the machine falls on all, and only ratios of one round count.
//! `prove::cells` measures CPU, [`memory`] idle connections, [`show`] and [`picture`] tell the
//! outcome. [`through`] asks something else: what a stream of JetStream behind fanwave costs in time.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::framing::Protocol;
use crate::prove::Bench;
use crate::prove::cells::{self, Cell, Entry};
use crate::prove::leg::{Window, leg_time};
use crate::prove::memory::SETTLED_MS;
use crate::report::{check_place, save};
use crate::server::doors::streams_parser;
use crate::server::{CustomArgs, Doors, FanwaveArgs, NatsArgs, Rival, ServerChoice};
use crate::stamp::STAMP_BYTES;
use memory::Reading;

mod memory;
mod picture;
mod show;
mod through;

/// Options of `compare`.
#[derive(Debug, Clone, Args)]
pub struct CompareArgs {
    #[command(flatten)]
    fanwave: FanwaveArgs,
    /// Subscribers of all servers speak TLS 1.3, with one suite (AES-128-GCM) and certificates of one
    /// kind (ECDSA P-256); servers that run already cannot take part
    #[arg(long)]
    tls: bool,
    /// Event streams come over HTTP/2, so many on each connection: by ALPN with --tls, by prior
    /// knowledge without
    #[arg(long, value_name = "STREAMS", value_parser = streams_parser())]
    h2_streams: Option<usize>,
    /// Servers beside fanwave (loadtest/rivals/install installs them); none if nothing follows
    #[arg(long, value_name = "NAMES", value_delimiter = ',', num_args = 0.., default_value = "nchan,nats")]
    rivals: Vec<Rival>,
    #[command(flatten)]
    custom: CustomArgs,
    /// What the subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Subscribers of each server, one series of cells for each number
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    connections: Vec<usize>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: usize,
    /// Events published at once, the next ones when all have arrived everywhere
    #[arg(long, value_delimiter = ',', default_value = "1,16")]
    in_flight: Vec<u64>,
    /// Rounds, in each of which every server and the floor have one leg
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 3.0)]
    seconds_per_leg: f64,
    /// Idle subscribers at the two readings of memory
    #[arg(long, value_name = "FEW,MANY", value_delimiter = ',', default_value = "1000,9000")]
    memory_connections: Vec<usize>,
    /// Memory is read when it did not change for so long; servers give back some of it later
    #[arg(long, value_name = "MS", default_value_t = SETTLED_MS)]
    memory_settled_ms: u64,
    /// Measure in place of all that: publish to the last subscriber, and events per second, with
    /// fanwave on a stream of JetStream, beside NATS's own WebSocket with the same stream
    #[arg(long)]
    through_cluster: bool,
    #[command(flatten)]
    nats: NatsArgs,
    /// Events per second with --through-cluster, for the time to the last subscriber
    #[arg(long, value_name = "PER_SECOND", default_value_t = 20.0)]
    rate: f64,
    /// Save the report as one HTML file that needs nothing but a browser
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
}

/// The outcome.
#[derive(Debug, Serialize)]
struct Comparison {
    /// fanwave first.
    servers: Vec<Entry>,
    /// Subscribers spoke TLS.
    tls: bool,
    /// Streams on each connection of HTTP/2, if events came over it.
    h2_streams: Option<usize>,
    payload_bytes: usize,
    cells: Vec<Cell>,
    memory: Vec<Reading>,
    /// What makes the figures doubtful.
    warnings: Vec<String>,
}

/// Measures everything, prints the tables and saves what was asked for.
pub fn run(bench: &Bench, args: &CompareArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    let (few, many) = check(args)?;
    if args.through_cluster {
        return through::run(bench, args);
    }
    args.page.as_deref().map_or(Ok(()), check_place)?;
    let choices = choices(args);
    let plan = cells::Plan {
        protocols: &args.protocol,
        connections: &args.connections,
        payload_bytes: args.size,
        audit: false,
        in_flight: &args.in_flight,
        windows: &[Window::Burst],
        rounds: args.pairs,
        time,
    };
    let (servers, cells) = cells::measure(bench, &choices, &plan)?;
    let mut outcome = Comparison {
        servers,
        tls: args.tls,
        h2_streams: args.h2_streams,
        payload_bytes: args.size,
        cells,
        memory: Vec::new(),
        warnings: Vec::new(),
    };
    for &protocol in &args.protocol {
        for choice in &choices {
            outcome.memory.extend(memory::read(
                bench,
                choice,
                protocol,
                (few, many),
                args.memory_settled_ms,
            )?);
        }
    }
    memory::relate(&mut outcome.memory);
    outcome.warnings = unpinned(&outcome.servers, bench.common.sender_cpu);
    outcome.warnings.extend(outcome.cells.iter().flat_map(Cell::warnings));
    save(bench.common.json.as_deref(), "compare", &bench.machine, &outcome)?;
    if let Some(file) = &args.page {
        fs::write(file, picture::page(&outcome, &bench.machine))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    show::show(bench, &outcome);
    Ok(())
}

/// Servers that do not run under the conditions of the others.
fn unpinned(servers: &[Entry], cpu: usize) -> Vec<String> {
    let elsewhere = servers.iter().filter(|server| server.cpus != [cpu]);
    elsewhere
        .map(|server| {
            let name = &server.name;
            format!("{name} is not pinned to CPU {cpu} as the others are: `taskset -acp {cpu} PID` pins it")
        })
        .collect()
}

/// Refuses impossible options; gives the connections of the two readings of memory.
fn check(args: &CompareArgs) -> Result<(usize, usize)> {
    if args.pairs == 0 || args.connections.contains(&0) || args.in_flight.contains(&0) {
        bail!("--pairs, --connections and --in-flight are at least 1");
    }
    doors(args).only_for_event_streams(&args.protocol)?;
    if args.size < STAMP_BYTES {
        bail!("a payload holds a stamp of {STAMP_BYTES} bytes; --size {} is too small", args.size);
    }
    let own = args.custom.server_name.as_str();
    if args.custom.is_given() && ["floor", "fanwave", "nchan", "nats"].contains(&own) {
        bail!("--server-name {own} is somebody else's in this comparison; give another name");
    }
    let &[few, many] = &args.memory_connections[..] else {
        bail!("--memory-connections takes two numbers, for example 1000,9000");
    };
    if few == 0 || few >= many {
        bail!("--memory-connections {few},{many}: the first number is at least 1 and less than the second");
    }
    Ok((few, many))
}

/// What subscribers of all servers go through.
fn doors(args: &CompareArgs) -> Doors {
    Doors { tls: args.tls, ..Doors::default().with_streams(args.h2_streams) }
}

/// Everybody who takes part, fanwave first.
fn choices(args: &CompareArgs) -> Vec<ServerChoice> {
    let doors = doors(args);
    let choice = ServerChoice { doors, ..ServerChoice::default() };
    let mut choices = vec![ServerChoice { fanwave: args.fanwave.clone(), ..choice.clone() }];
    for &rival in &args.rivals {
        choices.push(ServerChoice { rival: Some(rival), ..choice.clone() });
    }
    if args.custom.is_given() {
        choices.push(ServerChoice { custom: args.custom.clone(), ..choice });
    }
    choices
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CompareArgs,
    }

    fn args(line: &str) -> CompareArgs {
        Line::try_parse_from(format!("compare {line}").split_whitespace()).expect(line).args
    }

    #[test]
    fn fanwave_comes_first_and_everybody_who_was_asked_for_takes_part() {
        let rivals = |line: &str| choices(&args(line)).iter().map(|choice| choice.rival).collect::<Vec<_>>();
        assert_eq!(rivals(""), [None, Some(Rival::Nchan), Some(Rival::Nats)]);
        assert_eq!(rivals("--rivals nats"), [None, Some(Rival::Nats)]);
        assert_eq!(rivals("--rivals"), [None]);
        let own = choices(&args("--rivals --subscribe-sse http://h/ --publish-to http://h/"));
        assert_eq!(own.iter().map(|choice| choice.custom.is_given()).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_server_on_other_cpus_is_warned_of() {
        let entry = |cpus: &[usize]| Entry { name: "mine".into(), version: "1".into(), cpus: cpus.to_vec() };
        assert_eq!(unpinned(&[entry(&[0])], 0), Vec::<String>::new());
        for cpus in [&[][..], &[1], &[0, 1]] {
            let warnings = unpinned(&[entry(cpus)], 0);
            assert!(warnings.len() == 1 && warnings[0].contains("taskset"), "{warnings:?}");
        }
    }

    #[test]
    fn impossible_options_are_told_by_name() {
        for (line, option) in [
            ("--pairs 0", "--pairs"),
            ("--connections 0", "--connections"),
            ("--in-flight 1,0", "--in-flight"),
            ("--size 8", "--size 8"),
            ("--h2-streams 6", "--protocol sse"),
            ("--memory-connections 9,9", "--memory-connections 9,9"),
            ("--memory-connections 0,9", "--memory-connections"),
            ("--pid 1 --server-name nats", "--server-name nats"),
        ] {
            let error = check(&args(line)).expect_err(line).to_string();
            assert!(error.contains(option), "{error}");
        }
        assert_eq!(check(&args("")).expect("the defaults are possible"), (1_000, 9_000));
    }
}

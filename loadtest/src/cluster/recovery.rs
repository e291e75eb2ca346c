//! `loadtest recovery`: how long a cluster takes until it is well after a kill, and that the kill
//! costs nothing that was acknowledged.
//!
//! Each round kills one after the other, under load: a NATS server that does not lead the stream,
//! the one that leads it, a node; and in a world of its own, an origin with relays, one relay.
//! Whatever was killed is started again and everything is well before the next kill.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::publishers::Load;
use super::seconds;
use super::stand::{Common, Stand};
use super::watch::Recovery;
use super::world::{Moves, Told, World};
use crate::prove::Bench;
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::{FanwaveArgs, NatsArgs};
use crate::stamp::STAMP_BYTES;
use crate::unit::grouped;

/// Seconds between a cluster that is well and the next kill.
const CALM_SECONDS: f64 = 0.5;

/// Options of `recovery`.
#[derive(Debug, Clone, Args)]
pub struct RecoveryArgs {
    #[command(flatten)]
    fanwave: FanwaveArgs,
    #[command(flatten)]
    nats: NatsArgs,
    /// What is killed, one after the other
    #[arg(long, value_delimiter = ',', default_value = "follower,leader,node,relay")]
    kill: Vec<Kill>,
    /// Rounds, in each of which everything is killed once
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Nodes that share the stream, or relays that follow an origin less one
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Subscribers, spread over the nodes
    #[arg(long, default_value_t = 2_000)]
    connections: usize,
    /// Events per second
    #[arg(long, default_value_t = 60.0)]
    rate: f64,
    /// Publishers, each of which publishes one event at a time
    #[arg(long, default_value_t = 3)]
    publishers: usize,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    payload_bytes: usize,
    /// Moves of subscribers between nodes, per second, beside the kills
    #[arg(long, default_value_t = 10.0)]
    moves_per_second: f64,
}

/// What is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kill {
    /// A NATS server that does not lead the stream.
    Follower,
    /// The NATS server that leads the stream.
    Leader,
    /// A node.
    Node,
    /// A relay of two that follow an origin.
    Relay,
}

impl Kill {
    fn words(self) -> &'static str {
        match self {
            Kill::Follower => "a NATS server that follows",
            Kill::Leader => "the NATS server that leads",
            Kill::Node => "a node",
            Kill::Relay => "a relay of two",
        }
    }
}

/// How long it took in each round.
#[derive(Debug, Serialize)]
struct Row {
    kill: Kill,
    rounds: Vec<Recovery>,
}

/// One world.
#[derive(Debug, Serialize)]
struct Part {
    /// What the nodes read from, in words.
    source: String,
    nodes: usize,
    rows: Vec<Row>,
    told: Told,
}

/// Measures and prints. What was lost is an error after the table.
pub fn run(bench: &Bench, args: &RecoveryArgs) -> Result<()> {
    check(args)?;
    let (of_relays, of_nats): (Vec<Kill>, Vec<Kill>) =
        args.kill.iter().partition(|kill| **kill == Kill::Relay);
    let mut parts = Vec::new();
    if !of_nats.is_empty() {
        parts.push(part(args, Common::Nats, args.nodes, &of_nats)?);
    }
    if !of_relays.is_empty() {
        parts.push(part(args, Common::Relay, args.nodes - 1, &of_relays)?);
    }
    save(bench.common.json.as_deref(), "recovery", &bench.machine, &parts)?;
    say(&bench.machine.line());
    show(args, &parts);
    let bad: Vec<String> = parts
        .iter()
        .map(|part| &part.told.findings)
        .filter(|found| !found.are_clean())
        .map(|found| found.line())
        .collect();
    match bad.is_empty() {
        true => Ok(()),
        false => bail!("{}", bad.join("; ")),
    }
}

fn check(args: &RecoveryArgs) -> Result<()> {
    if args.rounds == 0 || args.publishers == 0 || args.connections == 0 {
        bail!("--rounds, --publishers and --connections are at least 1");
    }
    if args.nodes < 3 {
        bail!("--nodes {}: give at least 3, so that others are there when one is killed", args.nodes);
    }
    if !(args.rate > 0.0 && args.rate <= 10_000.0) {
        bail!("--rate {} is not between 0 and 10,000 events per second", args.rate);
    }
    if !(0.0..=10_000.0).contains(&args.moves_per_second) {
        bail!("--moves-per-second {} is not between 0 and 10,000", args.moves_per_second);
    }
    if args.payload_bytes < STAMP_BYTES {
        bail!("--payload-bytes {}: a stamp alone has {STAMP_BYTES}", args.payload_bytes);
    }
    Ok(())
}

fn part(args: &RecoveryArgs, common: Common, nodes: usize, kills: &[Kill]) -> Result<Part> {
    let stand = Stand::start(&args.fanwave, &args.nats, common, nodes, 3)?;
    let source = stand.source_name();
    let load =
        Load { publishers: args.publishers, rate: args.rate, topics: 1, payload_bytes: args.payload_bytes };
    let moves = Moves { per_second: args.moves_per_second, most: u64::MAX };
    let mut world = World::start(stand, load, args.connections, moves)?;
    let mut rows: Vec<Row> = kills.iter().map(|&kill| Row { kill, rounds: Vec::new() }).collect();
    for round in 0..args.rounds {
        for row in &mut rows {
            world.recover()?;
            world.go_on(CALM_SECONDS)?;
            let recovery = kill(&mut world, row.kill, round)?;
            progress(&format!(
                "round {} of {}: {} killed; publishes acknowledged again after {}, all hear after {}",
                round + 1,
                args.rounds,
                row.kill.words(),
                seconds(recovery.acknowledged),
                seconds(recovery.heard)
            ));
            row.rounds.push(recovery);
        }
    }
    world.recover()?;
    let told = world.finish()?;
    Ok(Part { source, nodes, rows, told })
}

/// Kills one, waits until all are well, starts it again.
fn kill(world: &mut World, kill: Kill, round: usize) -> Result<Recovery> {
    match kill {
        Kill::Node | Kill::Relay => {
            let number = round % world.stand.nodes();
            world.stand.kill_node(number);
            let recovery = world.recover()?;
            world.stand.revive_node(number)?;
            Ok(recovery)
        }
        Kill::Leader | Kill::Follower => {
            let leader = world.stand.leader()?;
            let number = if kill == Kill::Leader { leader } else { (leader + 1 + round % 2) % 3 };
            world.stand.kill_server(number);
            let recovery = world.recover()?;
            world.stand.revive_server(number)?;
            Ok(recovery)
        }
    }
}

fn rows_of(part: &Part) -> Vec<Vec<String>> {
    let spread = |row: &Row, figure: fn(&Recovery) -> f64| {
        let Spread { median, min, max } = Spread::of(row.rounds.iter().map(figure));
        format!("{} ({} to {})", seconds(median), seconds(min), seconds(max))
    };
    let cells = |row: &Row| {
        vec![
            row.kill.words().to_owned(),
            row.rounds.len().to_string(),
            spread(row, |recovery| recovery.acknowledged),
            spread(row, |recovery| recovery.heard),
        ]
    };
    part.rows.iter().map(cells).collect()
}

fn show(args: &RecoveryArgs, parts: &[Part]) {
    for part in parts {
        say(&format!("\n{} nodes on {}\n", part.nodes, part.source));
        table(
            1,
            &["killed", "rounds", "publishes acknowledged again", "all subscribers hear again"],
            &rows_of(part),
        );
        say("");
        let told = &part.told;
        paragraph(&format!(
            "{} events acknowledged, {} publishes repeated; {} moves, {} connections broke; {}",
            grouped(told.acknowledged),
            grouped(told.repeated),
            grouped(told.moves),
            grouped(told.broken),
            told.findings.line()
        ));
    }
    say("");
    paragraph(&format!(
        "{} subscribers, {} events/s of {} bytes by {} publishers; seconds from the kill until every publisher is \
         acknowledged an event that it began after the kill, and every subscriber has heard one: median of the rounds, \
         smallest and largest.",
        grouped(args.connections as u64),
        args.rate,
        args.payload_bytes,
        args.publishers
    ));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RecoveryArgs,
    }

    fn args(line: &str) -> RecoveryArgs {
        Line::try_parse_from(format!("recovery {line}").split_whitespace()).expect(line).args
    }

    #[test]
    fn impossible_options_are_told_by_name() {
        check(&args("")).expect("the defaults are possible");
        for (line, option) in [
            ("--rounds 0", "--rounds"),
            ("--nodes 2", "--nodes 2"),
            ("--rate 0", "--rate 0"),
            ("--moves-per-second nan", "--moves-per-second"),
            ("--payload-bytes 8", "--payload-bytes 8"),
        ] {
            let error = check(&args(line)).expect_err(line).to_string();
            assert!(error.contains(option), "{error}");
        }
    }

    #[test]
    fn a_row_has_the_median_with_the_smallest_and_the_largest() {
        let recovery = |acknowledged, heard| Recovery { acknowledged, heard };
        let rounds = vec![recovery(4.0, 5.0), recovery(3.0, 6.0), recovery(9.0, 7.0)];
        let told = Told {
            acknowledged: 1,
            repeated: 0,
            findings: Default::default(),
            moves: 0,
            broken: 0,
            publish: Default::default(),
            each: Default::default(),
            last: Default::default(),
        };
        let part =
            Part { source: "x".into(), nodes: 3, rows: vec![Row { kill: Kill::Leader, rounds }], told };
        let rows = rows_of(&part);
        assert_eq!(rows[0][1..], ["3", "4 s (3 s to 9 s)", "6 s (5 s to 7 s)"]);
    }
}

//! `loadtest compare --through-cluster`: what a stream of JetStream behind fanwave costs in time,
//! beside NATS's own WebSocket with the same stream.
//!
//! In turns, each with servers of its own on one CPU: fanwave alone; fanwave on a stream; NATS
//! whose WebSockets hear the stream's subject as it is published (core NATS, which waits for no
//! log); NATS whose WebSockets hear what one JetStream consumer delivers from the stream, as a node
//! of fanwave reads it. Two questions to each: how long from a publish until the last subscriber
//! has it, at a modest rate; and how many events per second a hundred subscribers get, with a fixed
//! number under way. Only ratios within a round count.

use anyhow::{Result, bail};
use serde::Serialize;

use super::CompareArgs;
use crate::engine::verdict::condemned;
use crate::engine::{EngineOptions, measure};
use crate::framing::Protocol;
use crate::outcome::Outcome;
use crate::prove::Bench;
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::{self, JetStream, ServerChoice};
use crate::target::topic_name;
use crate::unit::{Unit, grouped};
use crate::workload::{Behaviour, Crowd, Listens, Pace, Workload};

/// Subscribers whose events per second are counted.
const FEW: usize = 100;
/// Events under way meanwhile.
const IN_FLIGHT: u64 = 256;

/// Who fans out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    Fanwave,
    FanwaveOnStream,
    NatsBesideStream,
    NatsBehindStream,
}

const SIDES: [Side; 4] =
    [Side::Fanwave, Side::FanwaveOnStream, Side::NatsBesideStream, Side::NatsBehindStream];

impl Side {
    fn words(self) -> &'static str {
        match self {
            Side::Fanwave => "fanwave alone",
            Side::FanwaveOnStream => "fanwave on JetStream",
            Side::NatsBesideStream => "NATS WebSocket, core",
            Side::NatsBehindStream => "NATS WebSocket, JetStream consumer",
        }
    }
}

/// One turn of one side.
#[derive(Debug, Clone, Serialize)]
struct Turn {
    /// Nanoseconds from the publish, as intended, to the last subscriber.
    last_p50: f64,
    last_p99: f64,
    /// Events per second to a hundred subscribers.
    events_per_second: f64,
    /// Share of the servers' CPU that other programs used.
    others_share: f64,
}

/// All turns of one side.
#[derive(Debug, Serialize)]
struct Row {
    side: Side,
    turns: Vec<Turn>,
}

/// The outcome.
#[derive(Debug, Serialize)]
struct Through {
    connections: usize,
    rate: f64,
    payload_bytes: usize,
    nats: String,
    rows: Vec<Row>,
}

/// Measures, prints and saves.
pub fn run(bench: &Bench, args: &CompareArgs) -> Result<()> {
    if args.page.is_some() || args.tls || args.custom.is_given() {
        bail!("--through-cluster compares fanwave and NATS in plain: leave out --page, --tls and URLs");
    }
    if !(args.rate > 0.0 && args.rate <= 10_000.0) {
        bail!("--rate {} is not between 0 and 10,000 events per second", args.rate);
    }
    let &[connections] = &args.connections[..] else {
        bail!("--through-cluster takes one number of --connections");
    };
    let mut rows: Vec<Row> = SIDES.map(|side| Row { side, turns: Vec::new() }).into();
    let mut nats = String::new();
    for round in 0..args.pairs {
        // From either end in turns, so that a drift falls on all.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for at in order {
            let side = rows[at].side;
            progress(&format!("round {} of {}: {}", round + 1, args.pairs, side.words()));
            let (turn, version) = turn(bench, args, side, connections)?;
            nats = version.unwrap_or(nats);
            rows[at].turns.push(turn);
        }
    }
    let (rate, payload_bytes) = (args.rate, args.size);
    let through = Through { connections, rate, payload_bytes, nats, rows };
    save(bench.common.json.as_deref(), "compare", &bench.machine, &through)?;
    say(&format!("{}\n", bench.machine.line()));
    show(&through);
    Ok(())
}

/// Both questions to one side; the version of its nats-server too.
fn turn(bench: &Bench, args: &CompareArgs, side: Side, connections: usize) -> Result<(Turn, Option<String>)> {
    let cpu = Some(bench.common.sender_cpu);
    let nats = match side {
        Side::Fanwave => None,
        _ => Some(JetStream::alone(&args.nats, cpu, true)?),
    };
    let choice = ServerChoice { fanwave: args.fanwave.clone(), ..ServerChoice::default() };
    let source =
        nats.as_ref().map(|nats| ["--source".to_owned(), JetStream::url_of(std::slice::from_ref(nats))]);
    // A node makes the stream, so that it is the same for all.
    let mut node = server::start(&choice, cpu, 1, source.as_ref().map_or(&[][..], |source| source))?;
    let mut ask = |workload: &Workload| -> Result<Outcome> {
        let outcome = match (side, &nats) {
            (Side::NatsBesideStream, Some(nats)) => {
                measure(&mut nats.beside_stream()?, workload, &options(bench))?
            }
            (Side::NatsBehindStream, Some(nats)) => {
                let mut running = nats.behind_stream(&topic_name(0))?;
                let outcome = measure(&mut running, workload, &options(bench));
                nats.forget_consumer()?;
                outcome?
            }
            _ => measure(&mut node, workload, &options(bench))?,
        };
        match condemned(&outcome) {
            Some(cause) => bail!("{}: {cause}", side.words()),
            None => Ok(outcome),
        }
    };
    let rate = Pace::Rate { per_second: args.rate };
    let calm = ask(&workload("publish-to-last", connections, args, rate))?;
    let full = ask(&workload("events-per-second", FEW, args, Pace::InFlight { events: IN_FLIGHT }))?;
    node.stop()?;
    let at =
        |quantile| calm.last.as_ref().and_then(|last| last.at(quantile)).map_or(f64::NAN, |ns| ns as f64);
    let turn = Turn {
        last_p50: at(0.5),
        last_p99: at(0.99),
        events_per_second: full.published as f64 / full.seconds,
        others_share: calm.others_share,
    };
    Ok((turn, nats.map(|nats| nats.version.clone())))
}

fn options(bench: &Bench) -> EngineOptions {
    let (sender_cpu, receiver_cpu) = (bench.common.sender_cpu, bench.common.receiver_cpu);
    EngineOptions { sender_cpu, receiver_cpu, floor: false, memory: false }
}

fn workload(name: &str, connections: usize, args: &CompareArgs, publish: Pace) -> Workload {
    let crowd = Crowd {
        protocol: Protocol::Ws,
        connections,
        ramp_per_second: None,
        behaviour: Behaviour::Steady,
        listens: Listens::One,
        slow: None,
    };
    Workload {
        name: name.to_owned(),
        about: "Through the cluster".to_owned(),
        seconds: args.seconds_per_leg,
        warm_up_seconds: 0.5,
        topics: 1,
        payload_bytes: args.size,
        keys: 1,
        speakers: Vec::new(),
        publish,
        subscribers: vec![crowd],
    }
}

/// A side's figures, and fanwave's on the stream over them, round by round.
fn row_of(row: &Row, fanwave: &Row) -> Vec<String> {
    let figure = |of: fn(&Turn) -> f64| Spread::of(row.turns.iter().map(of));
    let ratio = |of: fn(&Turn) -> f64| {
        let ratios = fanwave.turns.iter().zip(&row.turns).map(|(fanwave, it)| of(fanwave) / of(it));
        match row.side {
            Side::FanwaveOnStream => "1".to_owned(),
            _ => Spread::of(ratios).show(2),
        }
    };
    let time = |of| Unit::Nanoseconds.show(figure(of).median);
    vec![
        row.side.words().to_owned(),
        time(|turn| turn.last_p50),
        ratio(|turn| turn.last_p50),
        time(|turn| turn.last_p99),
        ratio(|turn| turn.last_p99),
        Unit::PerSecond.show(figure(|turn| turn.events_per_second).median),
        ratio(|turn| turn.events_per_second),
    ]
}

fn show(through: &Through) {
    let Some(fanwave) = through.rows.iter().find(|row| row.side == Side::FanwaveOnStream) else { return };
    let rows: Vec<Vec<String>> = through.rows.iter().map(|row| row_of(row, fanwave)).collect();
    table(
        1,
        &["server", "p50", "on JetStream / it", "p99", "on JetStream / it", "events/s", "on JetStream / it"],
        &rows,
    );
    say("");
    paragraph(&format!(
        "p50 and p99: publish to the last of {} WebSockets, {} events/s of {} bytes. events/s: to {FEW} WebSockets with \
         {IN_FLIGHT} events under way. nats-server {}. All servers of a side share one CPU. Medians of the rounds; ratios \
         of fanwave on JetStream to the others within each round, smallest and largest in parentheses. \"core\": \
         subscribers hear what is published without waiting for the stream. \"JetStream consumer\": one consumer \
         delivers what the stream has stored to all.",
        grouped(through.connections as u64),
        through.rate,
        through.payload_bytes,
        through.nats
    ));
    let disturbed = through.rows.iter().flat_map(|row| &row.turns).map(|turn| turn.others_share);
    let most = disturbed.fold(0.0, f64::max);
    if most > OTHERS_HIGH {
        say(&format!("WARNING: other programs used up to {} of the servers' CPU", Unit::Share.show(most)));
    }
}

/// Above this share of the servers' CPU other programs disturb a turn. A nats-server beside a node
/// counts as one.
const OTHERS_HIGH: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_one_round() {
        let turn = |last_p50, events_per_second| Turn {
            last_p50,
            last_p99: 1.0,
            events_per_second,
            others_share: 0.0,
        };
        let fanwave = Row { side: Side::FanwaveOnStream, turns: vec![turn(2e6, 10.0), turn(6e6, 30.0)] };
        let nats = Row { side: Side::NatsBesideStream, turns: vec![turn(1e6, 20.0), turn(2e6, 30.0)] };
        let cells = row_of(&nats, &fanwave);
        assert_eq!(cells[2], "2.50 (2.00 to 3.00)");
        assert_eq!(cells[6], "0.75 (0.50 to 1.00)");
        assert_eq!(row_of(&fanwave, &fanwave)[2], "1");
    }
}

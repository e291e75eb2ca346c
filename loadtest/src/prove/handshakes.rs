//! `loadtest handshakes`: what subscribers cost when they come: TLS handshakes per second of the
//! server's CPU beside bare ones of rustls, tokens, and what a storm of handshakes costs those who
//! are there.
//!
//! In a round bare handshakes and every way to come have one leg, one after the other, on one CPU;
//! ratios are taken round by round. A leg opens so many connections: connect, handshake, request,
//! the head of the answer. They stay until it was measured. What a plain connection costs is taken
//! off one with TLS to see the handshake alone; the ratio with all of it is shown too.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use rustls::crypto::aws_lc_rs::default_provider;
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

use super::{Bench, ServerArgs};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::receiver::CrowdSetup;
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::doors::{Certificate, scratch_directory};
use crate::server::{self, Doors, Running, ServerChoice};
use crate::unit::grouped;
use crate::usage::{CpuMeter, interrupts_are_apart};
use bare::Bare;
use storm::{LIVE_BYTES, LIVE_RATE, Pair};

mod bare;
mod storm;

/// Numbers of connections from one leg to the next: each has source addresses of its own.
const LEG_SPAN: usize = 20_000;
/// How long a server may take to see that all of a leg have gone.
const GONE_LIMIT: Duration = Duration::from_secs(20);
/// From one look at it to the next.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Time that a server gets to go quiet.
const SETTLE: Duration = Duration::from_millis(5);
/// The server's patience for a request head, in milliseconds: where others use the machine, those
/// that give way come late.
const PATIENCE_MS: u64 = 60_000;
/// Below this share of the rate that was asked for a storm says little.
const RATE_SHARE_LOW: f64 = 0.8;
/// The share of bare handshakes per second that a server should reach.
const SHARE_TARGET: f64 = 0.6;

/// Options of `handshakes`.
#[derive(Debug, Clone, Args)]
pub struct HandshakesArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Connections that come in one leg, and bare handshakes of one
    #[arg(long, default_value_t = 2_000)]
    connections: usize,
    /// Rounds, in each of which bare handshakes and every way to come have one leg
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How keys are agreed on
    #[arg(long, value_enum, value_delimiter = ',', default_value = "x25519,hybrid")]
    key_exchange: Vec<KeyExchange>,
    /// Subscribers that are there in a storm
    #[arg(long, default_value_t = 1_000)]
    live: usize,
    /// Handshakes of one storm
    #[arg(long, default_value_t = 10_000)]
    storm: usize,
    /// Of these, in a second
    #[arg(long, default_value_t = 2_000.0)]
    storm_per_second: f64,
    /// Storms, each beside as long a calm; none if 0
    #[arg(long, default_value_t = 3)]
    storms: usize,
}

/// How keys are agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum KeyExchange {
    /// X25519 alone.
    X25519,
    /// X25519MLKEM768, as browsers do.
    Hybrid,
}

/// A way to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    tls: bool,
    token: bool,
}

const WAYS: [Way; 4] = [
    Way { tls: false, token: false },
    Way { tls: false, token: true },
    Way { tls: true, token: false },
    Way { tls: true, token: true },
];

/// What one way to come costs.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    /// CPU microseconds of the server.
    us: Spread,
    /// Bare handshakes' CPU over its own, by rounds: its share of their rate.
    of_bare: Option<Spread>,
}

/// All ways, with keys agreed on in one way.
#[derive(Debug, Serialize)]
struct Cell {
    key_exchange: KeyExchange,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    cells: Vec<Cell>,
    storms: Vec<Pair>,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &HandshakesArgs) -> Result<()> {
    args.check()?;
    let place = scratch_directory("handshakes")?;
    let secret = place.path().join("secret");
    std::fs::write(&secret, random_text()?).with_context(|| format!("writing {}", secret.display()))?;
    let start = |token: bool| {
        let token_hs256_file = token.then(|| secret.clone());
        let doors = Doors { tls: true, token_hs256_file, ..Doors::default() };
        let choice = ServerChoice { doors, ..args.server.choice() };
        let patience = format!("--handshake-ms-max={PATIENCE_MS}");
        server::start(&choice, Some(bench.common.sender_cpu), 1, &[patience])
    };
    let mut servers = [start(false)?, start(true)?];
    let measured = measure(bench, args, &place, &servers);
    let [open, _] = &mut servers;
    let outcome = measured.map_err(|error| open.explain(error))?;
    servers.into_iter().try_for_each(Running::stop)?;
    show(bench, args, &outcome);
    save(bench.common.json.as_deref(), "handshakes", &bench.machine, &outcome)
}

impl HandshakesArgs {
    fn check(&self) -> Result<()> {
        if self.server.doors.tls || self.server.doors.token_hs256_file.is_some() {
            bail!("--tls and --token-hs256-file are part of this measurement: leave them out");
        }
        if self.connections == 0 || self.connections > LEG_SPAN || self.rounds == 0 {
            bail!("--connections is 1 to {LEG_SPAN}, --rounds at least 1");
        }
        let rate = self.storm_per_second;
        if self.live == 0 || self.storm == 0 || !(rate.is_finite() && rate > 0.0) {
            bail!("--live, --storm and --storm-per-second are above 0; --storms 0 leaves storms out");
        }
        Ok(())
    }
}

fn measure(bench: &Bench, args: &HandshakesArgs, place: &TempDir, servers: &[Running; 2]) -> Result<Outcome> {
    let mut cells = Vec::new();
    for (number, &key_exchange) in args.key_exchange.iter().enumerate() {
        let first = number * (args.rounds + 1) * WAYS.len();
        cells.push(rounds(bench, args, place, servers, key_exchange, first)?);
    }
    let storms = storm::pairs(bench, args, &servers[0])?;
    Ok(Outcome { cells, storms })
}

/// All rounds of one way of agreeing on keys; `first` is the number of the first leg.
fn rounds(
    bench: &Bench,
    args: &HandshakesArgs,
    place: &TempDir,
    servers: &[Running; 2],
    key_exchange: KeyExchange,
    first: usize,
) -> Result<Cell> {
    let mut certificate = Certificate::make(place.path())?;
    certificate.client.hybrid = key_exchange == KeyExchange::Hybrid;
    let bare = Bare::new(&certificate, bench.common.sender_cpu)?;
    let apart = interrupts_are_apart()?;
    let meter = |server: &Running| server.meter(apart).context("the server's processes are not known");
    let meters = [meter(&servers[0])?, meter(&servers[1])?];
    let (mut bare_us, mut ways_us) = (Vec::new(), WAYS.map(|_| Vec::new()));
    let mut number = first;
    // The first round warms up.
    for round in 0..=args.rounds {
        progress(&format!("handshakes, {key_exchange:?}: round {round} of {}", args.rounds));
        let bare_leg = bare.measure(args.connections)?;
        let mut legs = [0.0; WAYS.len()];
        for step in 0..WAYS.len() {
            let at = if round % 2 == 0 { step } else { WAYS.len() - 1 - step };
            let (server, meter) =
                (&servers[usize::from(WAYS[at].token)], &meters[usize::from(WAYS[at].token)]);
            number += 1;
            let setup = WAYS[at].setup(bench, server, key_exchange, number * LEG_SPAN)?;
            legs[at] = leg(server, meter, setup, args.connections)?;
        }
        if round > 0 {
            bare_us.push(bare_leg);
            legs.iter().zip(&mut ways_us).for_each(|(&us, all)| all.push(us));
        }
    }
    Ok(Cell { key_exchange, rows: rows(&bare_us, &ways_us) })
}

impl Way {
    fn setup(self, bench: &Bench, server: &Running, keys: KeyExchange, first: usize) -> Result<CrowdSetup> {
        let mut setup = CrowdSetup { first, ..bench.subscribers(&server.target, Protocol::Ws)? };
        match &mut setup.tls {
            Some(tls) if self.tls => tls.hybrid = keys == KeyExchange::Hybrid,
            _ => (setup.tls, setup.target) = (None, server.target.clients),
        }
        Ok(setup)
    }
}

/// CPU microseconds of the server for each of `connections` that come.
fn leg(server: &Running, meter: &CpuMeter, setup: CrowdSetup, connections: usize) -> Result<f64> {
    let mut fleet = Fleet::new(setup);
    std::thread::sleep(SETTLE);
    let before = meter.sample()?;
    fleet.open(connections)?;
    std::thread::sleep(SETTLE);
    let used = meter.sample()?.since(&before);
    drop(fleet);
    emptied(server, 0)?;
    Ok(used as f64 / 1e3 / connections as f64)
}

/// Waits until the server has no more than `left` connections.
fn emptied(server: &Running, left: usize) -> Result<()> {
    let deadline = Instant::now() + GONE_LIMIT;
    loop {
        let stats = server.stats()?;
        let connections = stats.pointer("/totals/connections").and_then(Value::as_u64);
        let connections = connections.context("/stats tells no connections")?;
        if connections <= left as u64 {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("the server still has {connections} connections, {GONE_LIMIT:?} after they were closed");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The table's rows; all lists have a value for each round.
fn rows(bare: &[f64], ways: &[Vec<f64>; WAYS.len()]) -> Vec<Row> {
    let [plain, plain_token, tls, tls_token] = ways;
    let less = |more: &[f64], less: &[f64]| -> Vec<f64> {
        more.iter().zip(less).map(|(more, less)| more - less).collect()
    };
    let of_bare = |own: &[f64]| Some(Spread::of(bare.iter().zip(own).map(|(bare, own)| bare / own)));
    let row = |what, us: &[f64], of_bare| Row { what, us: Spread::of(us.iter().copied()), of_bare };
    let handshake = less(tls, plain);
    vec![
        row("a bare handshake of rustls", bare, None),
        row("a handshake of the server (TLS less plain)", &handshake, of_bare(&handshake)),
        row("a subscriber that comes by TLS, all of it", tls, of_bare(tls)),
        row("a subscriber that comes in plain", plain, None),
        row("its token (plain)", &less(plain_token, plain), None),
        row("its token (TLS)", &less(tls_token, tls), None),
    ]
}

/// 64 hexadecimal digits that nobody knows.
fn random_text() -> Result<String> {
    let mut bytes = [0; 32];
    let filled = default_provider().secure_random.fill(&mut bytes);
    filled.ok().context("there are no random bits")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn show(bench: &Bench, args: &HandshakesArgs, outcome: &Outcome) {
    say(&format!("{}\n", bench.machine.line()));
    let row = |cell: &Cell, row: &Row| {
        vec![
            format!("{:?}", cell.key_exchange).to_lowercase(),
            row.what.to_owned(),
            row.us.show(1),
            // A difference within the noise has no rate.
            if row.us.min > 0.0 { grouped((1e6 / row.us.median) as u64) } else { "-".into() },
            row.of_bare.map_or_else(|| "-".into(), |share| share.show(2)),
        ]
    };
    let rows: Vec<_> =
        outcome.cells.iter().flat_map(|cell| cell.rows.iter().map(move |of| row(cell, of))).collect();
    table(2, &["keys", "what", "CPU µs (min to max)", "per second", "of bare (min to max)"], &rows);
    paragraph(&format!(
        "CPU of the server, one shard on one CPU, median of {} rounds of {} connections each; per second = of that CPU; \
         of bare = share of the rate of bare handshakes (ECDSA P-256, the server's half, same provider, this run), \
         {SHARE_TARGET} or more is the target. A subscriber comes with connect, request and the head of its answer. \
         Each token is another one.",
        args.rounds,
        grouped(args.connections as u64),
    ));
    let Some(ratio) = storm::ratio(&outcome.storms) else { return };
    say("");
    let ms = |of: fn(&Pair) -> f64| Spread::of(outcome.storms.iter().map(|pair| of(pair) / 1e3)).show(2);
    let rows = [
        vec!["median".into(), ms(|pair| pair.calm.p50_us), ms(|pair| pair.storm.p50_us)],
        vec!["p99".into(), ms(|pair| pair.calm.p99_us), ms(|pair| pair.storm.p99_us)],
        vec!["largest".into(), ms(|pair| pair.calm.max_us), ms(|pair| pair.storm.max_us)],
    ];
    table(1, &["live subscribers", "calm, ms (min to max)", "in the storm, ms"], &rows);
    let rate = Spread::of(outcome.storms.iter().map(|pair| pair.per_second));
    paragraph(&format!(
        "p99 in the storm over calm: {} of {} storms. Each is {} whole handshakes at {} per second beside {} subscribers \
         that hear {} events/s of {LIVE_BYTES} bytes over TLS; all arrived, complete and in order. p99 of the newcomers, from \
         due to answered: {} ms.",
        ratio.show(2),
        outcome.storms.len(),
        grouped(args.storm as u64),
        rate.show(0),
        grouped(args.live as u64),
        LIVE_RATE,
        ms(|pair| pair.newcomers.p99_us),
    ));
    if rate.median < RATE_SHARE_LOW * args.storm_per_second {
        say(&format!(
            "WARNING: a storm had {:.0} handshakes per second in place of {}: where others use the machine it is none",
            rate.median, args.storm_per_second
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_what_tls_costs_beyond_a_plain_connection_and_its_share_is_by_rounds() {
        let ways = [vec![50.0, 60.0], vec![55.0, 66.0], vec![200.0, 220.0], vec![207.0, 229.0]];
        let rows = rows(&[90.0, 80.0], &ways);
        let us: Vec<f64> = rows.iter().map(|row| row.us.median).collect();
        assert_eq!(us, [85.0, 155.0, 210.0, 55.0, 5.5, 8.0]);
        assert_eq!(rows[1].of_bare.expect("a share").max, 90.0 / 150.0);
        assert_eq!(rows[2].of_bare.expect("a share").min, 80.0 / 220.0);
    }

    #[test]
    fn secrets_are_long_enough_and_differ() {
        let [one, other] = [random_text(), random_text()].map(|text| text.expect("random bits"));
        assert!(one.len() == 64 && one != other);
    }
}

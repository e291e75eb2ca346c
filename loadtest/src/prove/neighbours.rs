//! `loadtest neighbours`: what large events, a busy topic and listings cost others on the same
//! server.
//!
//! Three questions, each with a server of its own on which everybody is connected from the start.
//! Legs alternate, with and without the neighbour: large events to some beside a small topic, many
//! small events beside single POSTs, `GET /topics` pages one after the other beside a small topic.
//! A pair of legs is void if the generator's CPU was full in either, or if the neighbour's
//! subscribers were not left alone: its figures are shown and its ratio does not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::leg::leg_time;
use super::topic::{Latencies, Topic};
use super::{Bench, ServerArgs};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::publisher::{PublishPlan, PublishProcess, Publisher};
use crate::receiver::{CrowdSetup, latency_histogram};
use crate::report::{Spread, paragraph, progress, save, say, table};
use crate::server::Running;
use crate::stamp::STAMP_BYTES;
use crate::unit::grouped;
use crate::usage::{cpu_busy_ns, own_cpu_ns};
use crate::workload::Behaviour;
use listing::list_pages;

mod listing;

/// Above this share of its CPU the generator sets the figures.
const GENERATOR_SHARE_HIGH: f64 = 0.9;
/// Events per second of the small topic.
const SMALL_RATE: f64 = 100.0;
/// Bytes of an event of the small and of the busy topic.
const SMALL_BYTES: usize = 100;
/// Bytes of a large event.
const LARGE_BYTES: usize = 1 << 20;
/// From the answer of a single POST to the next one.
const POST_PAUSE: Duration = Duration::from_millis(2);
/// First number of the neighbour's subscribers: they have other source addresses.
const NEIGHBOUR_FIRST: usize = 100_000;

/// Options of `neighbours`.
#[derive(Debug, Clone, Args)]
pub struct NeighboursArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Subscribers of the small topic, half of them SSE
    #[arg(long, default_value_t = 200)]
    connections: usize,
    /// Subscribers of large events
    #[arg(long, default_value_t = 100)]
    large_connections: usize,
    /// Large events per second, a question for each
    #[arg(long, value_delimiter = ',', default_value = "2,20")]
    large_rate: Vec<f64>,
    /// Subscribers of the busy topic
    #[arg(long, default_value_t = 2_000)]
    busy_connections: usize,
    /// Events per second of the busy topic
    #[arg(long, default_value_t = 1_000.0)]
    busy_rate: f64,
    /// Topics that the server remembers while they are listed
    #[arg(long, default_value_t = 100_000)]
    topics: usize,
    /// Seconds of one leg
    #[arg(long, default_value_t = 2.0)]
    seconds_per_leg: f64,
    /// Pairs of legs
    #[arg(long, default_value_t = 5)]
    pairs: usize,
}

/// One leg; latencies in microseconds.
#[derive(Debug, Clone, Serialize)]
struct Leg {
    #[serde(flatten)]
    latencies: Latencies,
    /// Share of the generator's CPU that was busy, other programs included.
    generator_share: f64,
    /// The generator's own part of that.
    own_share: f64,
    /// Why it is void, if the neighbour is the reason.
    disturbed: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Pair {
    alone: Leg,
    beside: Leg,
}

#[derive(Debug, Serialize)]
struct Question {
    /// Whose latency it is.
    what: String,
    /// Beside what.
    beside: String,
    /// Median over the pairs that are not void, if there are any.
    p99_ratio: Option<f64>,
    pairs: Vec<Pair>,
}

/// What a leg gives.
struct Heard {
    latencies: Histogram<u64>,
    /// CPU nanoseconds of receivers and publishers.
    used_ns: u64,
    /// What the neighbour's subscribers suffered.
    disturbed: Option<String>,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &NeighboursArgs) -> Result<()> {
    let time = leg_time("--seconds-per-leg", args.seconds_per_leg)?;
    let numbers = [args.large_connections, args.busy_connections, args.topics, args.pairs];
    if args.connections < 2 || numbers.contains(&0) {
        bail!("--connections is at least 2, other numbers are at least 1");
    }
    let rates = args.large_rate.iter().chain([&args.busy_rate]);
    if let Some(rate) = rates.into_iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
        bail!("{rate} is no rate; give a number of events per second above 0");
    }
    let mut questions = Vec::new();
    for &rate in &args.large_rate {
        questions.push(large(bench, args, time, rate)?);
    }
    questions.push(posts(bench, args, time)?);
    questions.push(listed(bench, args, time)?);
    show(bench, args, &questions);
    save(bench.common.json.as_deref(), "neighbours", &bench.machine, &questions)
}

/// A small topic beside large events.
fn large(bench: &Bench, args: &NeighboursArgs, time: Duration, rate: f64) -> Result<Question> {
    args.server.ask(bench, &[], |server| {
        let mut small = small(bench, args, server)?;
        let many = args.large_connections;
        let mut large = neighbour(bench, server, "large", many, LARGE_BYTES, rate)?;
        let beside = format!("{rate} events/s of 1 MiB to {}", grouped(many as u64));
        question(bench, args, "a small topic", beside, |with| {
            small.used()?;
            large.used()?;
            let told = if with { Some(large.go(time)?) } else { None };
            let latencies = small.measured(time)?;
            let disturbed = told.map(|first| large.settle(first)).transpose()?.flatten();
            Ok(Heard { latencies, used_ns: small.used()? + large.used()?, disturbed })
        })
    })
}

/// Single POSTs beside a busy topic.
fn posts(bench: &Bench, args: &NeighboursArgs, time: Duration) -> Result<Question> {
    args.server.ask(bench, &[], |server| {
        let (many, rate) = (args.busy_connections, args.busy_rate);
        let mut busy = neighbour(bench, server, "busy", many, SMALL_BYTES, rate)?;
        let mut publisher = Publisher::connect(&PublishPlan::post(
            server.target.publish,
            "/topics/single".into(),
            SMALL_BYTES,
        ))?;
        let beside = format!("{rate} events/s to {}", grouped(many as u64));
        question(bench, args, "a single POST, to its answer", beside, |with| {
            busy.used()?;
            let told = if with { Some(busy.go(time)?) } else { None };
            let mut latencies = latency_histogram();
            let until = Instant::now() + time;
            while Instant::now() < until {
                let start = Instant::now();
                publisher.publish(1)?;
                latencies.saturating_record(start.elapsed().as_nanos() as u64);
                thread::sleep(POST_PAUSE);
            }
            let disturbed = told.map(|first| busy.settle(first)).transpose()?.flatten();
            Ok(Heard { latencies, used_ns: busy.used()?, disturbed })
        })
    })
}

/// A small topic beside listings of very many topics.
fn listed(bench: &Bench, args: &NeighboursArgs, time: Duration) -> Result<Question> {
    let room = ["--topics-max".to_owned(), (args.topics + 1_000).to_string()];
    args.server.ask(bench, &room, |server| {
        progress(&format!("publishing to {} topics", grouped(args.topics as u64)));
        let mut names = Publisher::connect(&PublishPlan {
            topics: args.topics,
            ..PublishPlan::stream(server.target.publish, STAMP_BYTES)
        })?;
        names.publish(args.topics as u64)?;
        names.finish()?;
        let mut small = small(bench, args, server)?;
        let control = server.target.publish;
        let mut pages = 0;
        let beside = format!("GET /topics of {}, page by page", grouped(args.topics as u64));
        let mut asked = question(bench, args, "a small topic", beside, |with| {
            small.used()?;
            let over = Arc::new(AtomicBool::new(!with));
            let lister = thread::spawn({
                let over = Arc::clone(&over);
                move || list_pages(control, &over)
            });
            let latencies = small.measured(time);
            over.store(true, Ordering::Relaxed);
            pages += lister.join().map_err(|_| anyhow!("the listing broke"))??;
            Ok(Heard { latencies: latencies?, used_ns: small.used()?, disturbed: None })
        })?;
        let seconds = time.as_secs_f64() * args.pairs as f64;
        asked.beside += &format!(" ({} pages/s)", grouped((pages as f64 / seconds).round() as u64));
        Ok(asked)
    })
}

/// Does the pairs of legs. `leg` is told whether the neighbour is to be there; every second pair
/// begins with it.
fn question(
    bench: &Bench,
    args: &NeighboursArgs,
    what: &str,
    beside: String,
    mut leg: impl FnMut(bool) -> Result<Heard>,
) -> Result<Question> {
    let cpu = bench.common.receiver_cpu;
    let mut measured = |with: bool| -> Result<Leg> {
        let (start, busy, own) = (Instant::now(), cpu_busy_ns(cpu)?, own_cpu_ns());
        let heard = leg(with)?;
        let share = |ns: u64| ns as f64 / start.elapsed().as_nanos() as f64;
        let own = share(heard.used_ns + own_cpu_ns() - own);
        Ok(Leg::of(&heard, share(cpu_busy_ns(cpu)? - busy), own))
    };
    let mut pairs = Vec::new();
    for number in 0..args.pairs {
        progress(&format!("{what} beside {beside}: pair {} of {}", number + 1, args.pairs));
        let (first, second) = (measured(number % 2 == 1)?, measured(number % 2 == 0)?);
        let (alone, beside) = if number % 2 == 0 { (first, second) } else { (second, first) };
        pairs.push(Pair { alone, beside });
    }
    Ok(Question { what: what.to_owned(), beside, p99_ratio: ratio(&pairs), pairs })
}

/// The small topic of the proofs' name, half of its subscribers SSE.
fn small(bench: &Bench, args: &NeighboursArgs, server: &Running) -> Result<Topic> {
    let mut fleets = Vec::new();
    let half = args.connections / 2;
    for (protocol, first, connections) in
        [(Protocol::Sse, 0, half), (Protocol::Ws, half, args.connections - half)]
    {
        let mut fleet =
            Fleet::new(CrowdSetup { audit: true, first, ..bench.subscribers(&server.target, protocol)? });
        fleet.open(connections)?;
        fleets.push(fleet);
    }
    let plan = PublishPlan::stream(server.target.publish, SMALL_BYTES);
    let publisher = PublishProcess::start(&plan, Some(bench.common.receiver_cpu))?;
    Ok(Topic::new(fleets, publisher, SMALL_RATE))
}

/// The topic `name` with subscribers that are only counted.
fn neighbour(
    bench: &Bench,
    server: &Running,
    name: &str,
    connections: usize,
    payload_bytes: usize,
    rate: f64,
) -> Result<Topic> {
    let mut fleet = Fleet::new(CrowdSetup {
        path: format!("/ws/{name}"),
        first: NEIGHBOUR_FIRST,
        behaviour: Behaviour::Once,
        ..bench.subscribers(&server.target, Protocol::Ws)?
    });
    fleet.open(connections)?;
    let plan = PublishPlan::post(server.target.publish, format!("/topics/{name}"), payload_bytes);
    let publisher = PublishProcess::start(&plan, Some(bench.common.receiver_cpu))?;
    Ok(Topic::new(vec![fleet], publisher, rate))
}

impl Leg {
    fn of(heard: &Heard, generator_share: f64, own_share: f64) -> Leg {
        Leg {
            latencies: Latencies::of(&heard.latencies),
            generator_share,
            own_share,
            disturbed: heard.disturbed.clone(),
        }
    }

    /// Why it says nothing, if it does.
    fn void(&self) -> Option<String> {
        let full = (self.generator_share > GENERATOR_SHARE_HIGH).then(|| {
            format!(
                "the generator's CPU was full ({:.0} %, the generator's own {:.0} %)",
                self.generator_share * 100.0,
                self.own_share * 100.0
            )
        });
        self.disturbed.clone().or(full)
    }
}

impl Pair {
    fn void(&self) -> Option<String> {
        self.beside.void().or_else(|| self.alone.void())
    }
}

/// The median of beside / alone of the 99th percentiles, over the pairs that are not void.
fn ratio(pairs: &[Pair]) -> Option<f64> {
    let valid = pairs.iter().filter(|pair| pair.void().is_none());
    let ratios: Vec<f64> =
        valid.map(|pair| pair.beside.latencies.p99_us / pair.alone.latencies.p99_us).collect();
    (!ratios.is_empty()).then(|| Spread::of(ratios).median)
}

fn show(bench: &Bench, args: &NeighboursArgs, questions: &[Question]) {
    say(&format!("{}\n", bench.machine.line()));
    for question in questions {
        say(&format!("{} beside {}", question.what, question.beside));
        let rows: Vec<Vec<String>> = ["p50", "p99"].map(|quantile| row(question, quantile)).into();
        table(1, &["latency", "alone, µs (min to max)", "beside, µs", "ratio"], &rows);
        let void: Vec<String> = question.pairs.iter().filter_map(Pair::void).collect();
        if let Some(first) = void.first() {
            let many = format!("{} of {} pairs are void: {first}", void.len(), question.pairs.len());
            paragraph(&match question.p99_ratio {
                Some(_) => {
                    format!("{many}. The figures are of all pairs, the ratio of p99 is of the others.")
                }
                None => format!("{many}. There is no ratio."),
            });
        }
        say("");
    }
    paragraph(&format!(
        "{} pairs of legs of {} s; a small topic: {SMALL_BYTES} bytes at {SMALL_RATE} events/s to {} subscribers, due time \
         of the publish to arrival, every delivery. The neighbour's receivers run on the same CPU as the small topic's and \
         take part in its tail. ratio of p99: median over pairs; of p50: median beside / median alone.",
        args.pairs,
        args.seconds_per_leg,
        grouped(args.connections as u64)
    ));
}

fn row(question: &Question, quantile: &str) -> Vec<String> {
    let of = |leg: &Leg| if quantile == "p50" { leg.latencies.p50_us } else { leg.latencies.p99_us };
    let alone = Spread::of(question.pairs.iter().map(|pair| of(&pair.alone)));
    let beside = Spread::of(question.pairs.iter().map(|pair| of(&pair.beside)));
    let shown = match (quantile, question.p99_ratio) {
        (_, None) => "void".to_owned(),
        ("p50", Some(_)) => format!("{:.2}", beside.median / alone.median),
        (_, Some(ratio)) => format!("{ratio:.2}"),
    };
    vec![quantile.to_owned(), alone.show(0), beside.show(0), shown]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(alone: f64, beside: f64, generator_share: f64, disturbed: Option<&str>) -> Pair {
        let leg = |p99_us, disturbed: Option<&str>| Leg {
            latencies: Latencies { count: 1, p50_us: p99_us / 2.0, p99_us, max_us: p99_us },
            generator_share,
            own_share: 0.4,
            disturbed: disturbed.map(str::to_owned),
        };
        Pair { alone: leg(alone, None), beside: leg(beside, disturbed) }
    }

    #[test]
    fn the_ratio_is_the_median_over_pairs_that_are_not_void() {
        let mut pairs = vec![
            pair(100.0, 200.0, 0.5, None),
            pair(100.0, 900.0, 0.95, None),
            pair(100.0, 300.0, 0.5, None),
            pair(100.0, 950.0, 0.5, Some("closed")),
            pair(200.0, 800.0, 0.5, None),
        ];
        assert_eq!(ratio(&pairs), Some(3.0));
        assert!(pairs[1].void().expect("void").contains("full (95 %, the generator's own 40 %)"));
        assert_eq!(pairs[3].void().as_deref(), Some("closed"));
        pairs.retain(|pair| pair.void().is_some());
        assert_eq!(ratio(&pairs), None);
        let question = Question { what: "a".into(), beside: "b".into(), p99_ratio: None, pairs };
        assert_eq!(row(&question, "p99"), ["p99", "100 (100 to 100)", "925 (900 to 950)", "void"]);
    }
}

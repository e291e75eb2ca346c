//! `loadtest knee`: the highest rate that a server carries.
//!
//! The rate doubles from step to step, on an open loop, until a rate fails; then the gap between
//! the highest rate that held and the lowest that failed is halved until it is within 5 %
//! (`--within`). A rate fails if two steps at it fail, so that one disturbance of the machine is no
//! knee. A step holds if p99 stays below the limit, if all that was published arrived soon after
//! its end, and if the publisher kept its pace. A step that the generator could not drive says so:
//! then the knee is the generator's, not the server's. A server that ends, or refuses or ends
//! connections, above a rate that held has found its limit; any other error ends the search without
//! a knee.
//!
//! The search itself ([`Search`]) takes verdicts and gives rates; it knows no server and no clock.

use anyhow::{Context, Error, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::engine::verdict::{condemned, generator_full, others_warning, publisher_short};
use crate::engine::{EngineOptions, measure};
use crate::fault::is_by_server;
use crate::framing::Protocol;
use crate::outcome::Outcome;
use crate::page::svg::{Axis, Line, Lines, lines};
use crate::page::{Notice, Page};
use crate::prove::Bench;
use crate::report::{progress, save, say, table};
use crate::run::{Files, ServerWants, shards_for};
use crate::scenario::{self, Overrides};
use crate::server::{self, ServerChoice};
use crate::unit::{Unit, grouped};
use crate::workload::{Behaviour, Pace, Workload};

/// The finest search: below it no machine gives the same answer twice.
const WITHIN_PERCENT_MIN: f64 = 1.0;
/// Steps at most: enough to double from 1 to a million, to bisect to 1 % and to repeat what fails.
const STEPS_MAX: usize = 40;
/// A share of the step's time beyond which waiting for the last arrivals means that deliveries fell
/// behind.
const BEHIND_SHARE: f64 = 0.25;
/// Waiting that is no sign of falling behind, whatever the step's length.
const BEHIND_SECONDS_MIN: f64 = 0.7;
/// Steps warm up briefly: each is like the one before, but for its rate.
const WARM_UP_SECONDS_MAX: f64 = 0.5;
/// A publisher whose lateness is more than this share of the latencies is their cause.
const LATE_SHARE: f64 = 0.5;
/// Above this share of its one CPU the server is busy with nothing else.
const SERVER_SHARE_FULL: f64 = 0.9;

/// Options of `knee`.
#[derive(Debug, Clone, Args)]
pub struct KneeArgs {
    /// The scenario whose subscribers and payload are used; its own pace is not
    #[arg(value_name = "SCENARIO", default_value = "ticker")]
    scenario: String,
    /// The limit: publish to each subscriber, 99th percentile, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50.0, allow_negative_numbers = true)]
    p99_ms: f64,
    /// Events per second of the first step
    #[arg(long, value_name = "PER_SECOND", default_value_t = 10.0, allow_negative_numbers = true)]
    from: f64,
    /// Seconds of each step
    #[arg(long, default_value_t = 3.0, allow_negative_numbers = true)]
    seconds: f64,
    /// The search ends when the lowest rate that failed is at most so many percent above the
    /// highest that held
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, allow_negative_numbers = true)]
    within: f64,
    /// Subscribers in all
    #[arg(long)]
    connections: Option<usize>,
    /// Bytes of one event's data, at least the stamp's 36
    #[arg(long, value_name = "BYTES")]
    payload_bytes: Option<usize>,
    /// What all subscribers speak, in place of the scenario's
    #[arg(long)]
    protocol: Option<Protocol>,
    #[command(flatten)]
    server: ServerChoice,
    #[command(flatten)]
    files: Files,
}

/// What ended the rise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Limit {
    /// The latency's 99th percentile.
    Latency,
    /// Deliveries came later and later.
    Behind,
    /// The server ended connections, lost events or refused them.
    Server,
    /// The publisher did not keep its pace.
    Publisher,
    /// The generator's CPU was full.
    Generator,
}

impl Limit {
    /// The word in tables.
    fn label(self) -> &'static str {
        match self {
            Limit::Latency => "latency",
            Limit::Behind => "fell behind",
            Limit::Server => "server failed",
            Limit::Publisher => "publisher late",
            Limit::Generator => "generator full",
        }
    }
}

/// One rate that was tried.
#[derive(Debug, Serialize)]
struct Step {
    per_second: f64,
    /// What broke; absent if the step held.
    broke: Option<Limit>,
    /// In words; empty if the step held.
    why: String,
    /// What makes it doubtful that the server broke by itself; empty if the step held.
    doubts: Vec<String>,
    /// Absent if the step ended with an error.
    outcome: Option<Outcome>,
}

/// The knee and the way to it.
#[derive(Debug, Serialize)]
struct Knee {
    p99_ms: f64,
    /// Highest events per second that held; absent if the first step did not.
    held: Option<f64>,
    /// Lowest that failed; absent if none did.
    failed: Option<f64>,
    /// What broke there.
    limit: Option<Limit>,
    /// What makes the knee doubtful; empty is good.
    warnings: Vec<String>,
    steps: Vec<Step>,
}

/// Searches and tells.
pub fn run(bench: &Bench, args: &KneeArgs) -> Result<()> {
    if !(args.p99_ms.is_finite() && args.p99_ms > 0.0) {
        bail!("--p99-ms {} is no limit; give milliseconds above 0", args.p99_ms);
    }
    if !(args.within.is_finite() && args.within >= WITHIN_PERCENT_MIN) {
        bail!("--within {} is not possible; give {WITHIN_PERCENT_MIN} percent or more", args.within);
    }
    let overrides = Overrides {
        seconds: Some(args.seconds),
        connections: args.connections,
        payload_bytes: args.payload_bytes,
        protocol: args.protocol,
        rate: None,
    };
    let mut workload = scenario::load(&args.scenario, &overrides)?;
    if workload.subscribers.iter().any(|crowd| crowd.behaviour != Behaviour::Steady) {
        bail!("{}: a knee needs subscribers who all stay and read; choose another scenario", workload.name);
    }
    workload.publish = Pace::Rate { per_second: args.from };
    workload.warm_up_seconds = workload.warm_up_seconds.min(WARM_UP_SECONDS_MAX);
    scenario::check(&workload)?;
    let files = args.files.resolve(bench.common.json.as_deref(), "knee")?;
    let knee = search(bench, args, &workload)?;
    save(files.json.as_deref(), "knee", &bench.machine, &knee)?;
    let outcomes: Vec<Outcome> = knee.steps.iter().filter_map(|step| step.outcome.clone()).collect();
    files.write(&outcomes, || page(bench, args, &workload, &knee))?;
    show(bench, args, &workload, &knee);
    match knee.held {
        Some(_) => Ok(()),
        None => {
            let why = knee.steps.last().map_or("", |step| step.why.as_str());
            bail!("already {} events/s broke: {why}; give a lower --from", args.from)
        }
    }
}

fn search(bench: &Bench, args: &KneeArgs, workload: &Workload) -> Result<Knee> {
    let options = EngineOptions {
        sender_cpu: bench.common.sender_cpu,
        receiver_cpu: bench.common.receiver_cpu,
        floor: false,
        memory: false,
    };
    let mut search = Search::from(args.from, args.within);
    let mut steps = Vec::new();
    while let Some(per_second) = search.next() {
        if steps.len() == STEPS_MAX {
            break;
        }
        progress(&format!("knee: step {}, {per_second:.0} events/s", steps.len() + 1));
        let workload = Workload { publish: Pace::Rate { per_second }, ..workload.clone() };
        let (cpu, shards) = (Some(bench.common.sender_cpu), shards_for(&workload));
        let wants = ServerWants::of(&args.server, &workload)?;
        let mut running = server::start(&args.server, cpu, shards, &wants.args)?;
        let step = match measure(&mut running, &workload, &options) {
            Ok(outcome) => Step::of(per_second, outcome, args.p99_ms),
            Err(error) => Step::ended(per_second, search.held, error)?,
        };
        if step.broke.is_none() {
            running.stop()?;
        }
        let again = steps.last().is_some_and(|before: &Step| before.per_second == per_second);
        if step.broke.is_none() || again {
            search.take(per_second, step.broke.is_none());
        } else {
            progress(&format!("knee: {per_second:.0} events/s broke ({}); once more", step.why));
        }
        steps.push(step);
    }
    let failed = search.failed;
    let broken = failed.and_then(|rate| steps.iter().rfind(|step| step.per_second == rate));
    let limit = broken.and_then(|step| step.broke);
    let warnings = broken.map_or_else(Vec::new, |step| step.doubts.clone());
    Ok(Knee { p99_ms: args.p99_ms, held: search.held, failed, limit, warnings, steps })
}

impl Step {
    fn of(per_second: f64, outcome: Outcome, p99_ms: f64) -> Step {
        let (broke, why) = judge(&outcome, p99_ms).unzip();
        let doubts = broke.map_or_else(Vec::new, |limit| doubts(&outcome, limit));
        Step { per_second, broke, why: why.unwrap_or_default(), doubts, outcome: Some(outcome) }
    }

    /// A step that ended with an error: the server's limit if the server caused it and has carried
    /// a lower rate, and otherwise no step but a failure of the run.
    fn ended(per_second: f64, held: Option<f64>, error: Error) -> Result<Step> {
        match held {
            None => Err(error),
            Some(held) if !is_by_server(&error) => Err(error).with_context(|| {
                format!(
                    "no knee: {held:.0} events/s held, and at {per_second:.0} the measurement itself failed"
                )
            }),
            Some(_) => Ok(Step {
                per_second,
                broke: Some(Limit::Server),
                why: format!("{error:#}"),
                doubts: Vec::new(),
                outcome: None,
            }),
        }
    }
}

/// What else may have broken a step that `limit` is said to have broken.
fn doubts(outcome: &Outcome, limit: Limit) -> Vec<String> {
    let mut doubts = Vec::new();
    if matches!(limit, Limit::Generator | Limit::Publisher) {
        doubts.push(
            "the generator, not the server, set this knee: the server's own is higher or not known"
                .to_owned(),
        );
    } else if generator_full(outcome) {
        doubts.push(
            "the generator's CPU was full too where the server broke: the server's own knee may be higher"
                .to_owned(),
        );
    }
    doubts.extend(others_warning(outcome).map(|warning| format!("where the server broke, {warning}")));
    doubts
}

/// True if the server's one CPU was busy with nothing else most of the time.
fn server_full(outcome: &Outcome) -> bool {
    let full = outcome.series.iter().filter(|interval| interval.server_share > SERVER_SHARE_FULL);
    full.count() > outcome.series.len() / 2
}

/// What broke in a step, if anything did. Of several causes the generator's come first: it is then
/// not known what the server would have done.
fn judge(outcome: &Outcome, p99_ms: f64) -> Option<(Limit, String)> {
    let p99 = outcome.each.at(0.99).unwrap_or(0) as f64 / 1e6;
    let waited = outcome.seconds - outcome.workload.seconds;
    let behind = waited > (outcome.workload.seconds * BEHIND_SHARE).max(BEHIND_SECONDS_MIN);
    let lateness = outcome.lateness.at(0.99).unwrap_or(0) as f64 / 1e6;
    let short = publisher_short(outcome);
    if !short && !behind && p99 <= p99_ms && condemned(outcome).is_none() && outcome.refused == 0 {
        return None;
    }
    // Latencies count from the time when an event was due, so lateness is a part of them.
    let late = short || (p99 > p99_ms && lateness > p99 * LATE_SHARE);
    let server_full = server_full(outcome);
    let generator = &outcome.generator;
    Some(if generator_full(outcome) && !server_full {
        let own = generator.receivers_share + generator.publisher_share + generator.coordinator_share;
        let share = own.max(generator.cpu_share) * 100.0;
        (Limit::Generator, format!("the generator's CPU was full ({share:.0} %)"))
    } else if outcome.refused > 0 {
        (Limit::Server, format!("the server refused {} events", grouped(outcome.refused)))
    } else if let Some(cause) = condemned(outcome) {
        (Limit::Server, cause)
    } else if late && server_full {
        (Limit::Server, format!("its CPU was full and it took events {lateness:.1} ms late at p99"))
    } else if late {
        (Limit::Publisher, format!("the publisher was {lateness:.1} ms late at p99"))
    } else if behind {
        (Limit::Behind, format!("the last deliveries came {waited:.1} s after the last publish was due"))
    } else {
        (Limit::Latency, format!("p99 was {p99:.1} ms"))
    })
}

/// Doubling, then bisecting.
#[derive(Debug)]
struct Search {
    first: f64,
    /// The gap at which it ends, as a factor.
    within: f64,
    /// Highest rate that held.
    held: Option<f64>,
    /// Lowest rate that failed; above `held`.
    failed: Option<f64>,
}

impl Search {
    fn from(first: f64, within_percent: f64) -> Search {
        Search { first, within: 1.0 + within_percent / 100.0, held: None, failed: None }
    }

    /// The next rate to try; none when the knee is known closely enough, or when the first rate
    /// fails.
    fn next(&self) -> Option<f64> {
        match (self.held, self.failed) {
            (None, None) => Some(self.first),
            (Some(held), None) => Some(held * 2.0),
            (None, Some(_)) => None,
            (Some(held), Some(failed)) => (failed > held * self.within).then(|| (held + failed) / 2.0),
        }
    }

    fn take(&mut self, rate: f64, held: bool) {
        *(if held { &mut self.held } else { &mut self.failed }) = Some(rate);
    }
}

impl Knee {
    /// The result in words.
    fn sentence(&self, workload: &Workload) -> String {
        let connections = workload.connections();
        let deliveries = |rate: f64| rate * connections as f64 / workload.topics as f64;
        let why = self
            .steps
            .iter()
            .rfind(|step| Some(step.per_second) == self.failed)
            .map_or(String::new(), |step| step.why.clone());
        match (self.held, self.failed) {
            (Some(held), Some(failed)) => format!(
                "knee: {} events/s ({} deliveries/s) held with p99 at most {} ms; {} events/s broke: {why}",
                grouped(held.round() as u64),
                grouped(deliveries(held).round() as u64),
                self.p99_ms,
                grouped(failed.round() as u64)
            ),
            (Some(held), None) => {
                format!("no knee up to {} events/s ({STEPS_MAX} steps)", grouped(held.round() as u64))
            }
            _ => format!("no rate held: {why}"),
        }
    }

    fn rows(&self) -> Vec<Vec<String>> {
        self.steps
            .iter()
            .map(|step| {
                let figure = |show: &dyn Fn(&Outcome) -> String| {
                    step.outcome.as_ref().map_or_else(|| "-".to_owned(), show)
                };
                let percentile = |quantile: f64| {
                    figure(&|outcome| format!("{:.2}", outcome.each.at(quantile).unwrap_or(0) as f64 / 1e6))
                };
                let share = |share: f64| format!("{:.0} %", share * 100.0);
                vec![
                    step.broke.map_or("held", Limit::label).to_owned(),
                    grouped(step.per_second.round() as u64),
                    figure(&|outcome| grouped((outcome.deliveries as f64 / outcome.seconds) as u64)),
                    percentile(0.5),
                    percentile(0.99),
                    figure(&|outcome| {
                        outcome.cost.as_ref().map_or("-".into(), |cost| share(cost.cpu / outcome.seconds))
                    }),
                    figure(&|outcome| {
                        share(outcome.generator.receivers_share + outcome.generator.publisher_share)
                    }),
                ]
            })
            .collect()
    }
}

const HEAD: [&str; 7] = ["result", "events/s", "deliveries/s", "p50 ms", "p99 ms", "server", "generator"];

fn show(bench: &Bench, args: &KneeArgs, workload: &Workload, knee: &Knee) {
    say(&format!("{}\n", bench.machine.line()));
    say(&format!("{}: {}; steps of {} s\n", workload.name, workload.about, args.seconds));
    table(1, &HEAD, &knee.rows());
    say(&format!("\n{}", knee.sentence(workload)));
    for warning in &knee.warnings {
        say(&format!("WARNING: {warning}"));
    }
}

fn page(bench: &Bench, args: &KneeArgs, workload: &Workload, knee: &Knee) -> String {
    let mut page = Page::new(&format!("knee · {}", workload.name), &workload.about, &bench.machine);
    let kind = match knee.limit {
        Some(Limit::Generator | Limit::Publisher) => Notice::Warning,
        _ if knee.held.is_some() => Notice::Good,
        _ => Notice::Bad,
    };
    page.notice(kind, &knee.sentence(workload));
    page.warnings(&knee.warnings);
    let mut measured: Vec<&Outcome> = knee.steps.iter().filter_map(|step| step.outcome.as_ref()).collect();
    let rate = |outcome: &Outcome| match outcome.workload.publish {
        Pace::Rate { per_second } => per_second,
        _ => 0.0,
    };
    measured.sort_by(|a, b| rate(a).total_cmp(&rate(b)));
    let line = |name: &str, quantile: f64| {
        let seconds = |outcome: &Outcome| outcome.each.at(quantile).unwrap_or(0) as f64;
        Line::new(name, measured.iter().map(|outcome| (rate(outcome), seconds(outcome))).collect())
    };
    let (x, y) = (
        Axis::log("events published per second", Unit::PerSecond),
        Axis::log("publish to each subscriber", Unit::Nanoseconds),
    );
    let about = "Publish to each subscriber, median and 99th percentile, at each rate that was tried";
    let mut plot = Lines::new("Latency by rate", about, x, y, vec![line("p99", 0.99), line("median", 0.5)]);
    plot.limits.push((args.p99_ms * 1e6, format!("limit {} ms", args.p99_ms)));
    page.figure(&lines(&plot), "where p99 leaves the ground is the knee");
    page.table("Every step, in order", 1, &HEAD, &knee.rows());
    page.html()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Findings;
    use crate::fault::server_fault;
    use crate::outcome::{Generator, Latency};
    use crate::page::fixture::outcome;

    /// Searches for a known capacity; gives the rates tried and the end.
    fn find(first: f64, capacity: f64) -> (Vec<f64>, Search) {
        find_within(5.0, first, capacity)
    }

    fn find_within(percent: f64, first: f64, capacity: f64) -> (Vec<f64>, Search) {
        let mut search = Search::from(first, percent);
        let mut tried = Vec::new();
        while let Some(rate) = search.next() {
            assert!(tried.len() < STEPS_MAX, "{tried:?}");
            tried.push(rate);
            search.take(rate, rate <= capacity);
        }
        (tried, search)
    }

    #[test]
    fn the_search_doubles_then_bisects_to_within_5_percent() {
        let (tried, search) = find(10.0, 333.0);
        assert_eq!(tried[..7], [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0]);
        let (held, failed) = (search.held.expect("held"), search.failed.expect("failed"));
        assert!(held <= 333.0 && 333.0 < failed && failed <= held * 1.05, "{held} {failed}");
    }

    #[test]
    fn a_coarser_search_ends_sooner() {
        let (tried, search) = find_within(25.0, 50.0, 70.0);
        assert_eq!(tried, [50.0, 100.0, 75.0, 62.5]);
        assert_eq!((search.held, search.failed), (Some(62.5), Some(75.0)));
    }

    #[test]
    fn any_capacity_is_found_within_the_steps() {
        for capacity in [1.0, 7.3, 1_000.0, 999_999.0] {
            let (_, search) = find(1.0, capacity);
            assert!(search.held.expect("held") * 1.05 >= capacity, "{capacity}");
        }
    }

    #[test]
    fn a_first_rate_that_fails_ends_the_search() {
        let (tried, search) = find(10.0, 5.0);
        assert_eq!((tried, search.held), (vec![10.0], None));
    }

    #[test]
    fn each_cause_of_a_broken_step_is_told_apart() {
        let good = outcome("fanwave");
        assert!(judge(&good, 1_000.0).is_none());
        let late = Latency { quantiles: vec![(0.99, 800_000_000)], ..Latency::default() };
        let lost = Findings { events: 9, lost: 1, ..Findings::default() };
        let busy = |share: f64| Generator { receivers: 1, receivers_share: share, ..Generator::default() };
        let mut full = outcome("fanwave");
        full.series.iter_mut().for_each(|interval| interval.server_share = 0.99);
        full.lateness = late.clone();
        for (outcome, p99_ms, limit) in [
            (good.clone(), 1.0, Limit::Latency),
            (Outcome { seconds: 45.0, ..good.clone() }, 1_000.0, Limit::Behind),
            (Outcome { findings: lost, ..good.clone() }, 1_000.0, Limit::Server),
            (Outcome { refused: 3, ..good.clone() }, 1_000.0, Limit::Server),
            (full, 1.0, Limit::Server),
            (Outcome { lateness: late, ..good.clone() }, 1.0, Limit::Publisher),
            (Outcome { published: 2_000, ..good.clone() }, 1_000.0, Limit::Publisher),
            (Outcome { generator: busy(0.97), ..good.clone() }, 1.0, Limit::Generator),
        ] {
            let (broke, why) = judge(&outcome, p99_ms).expect("broken");
            assert_eq!(broke, limit, "{why}");
        }
        let fast = Outcome { generator: busy(0.97), ..good };
        assert!(judge(&fast, 1_000.0).is_none(), "a busy generator breaks nothing by itself");
    }

    #[test]
    fn a_knee_that_something_else_may_have_set_is_doubted() {
        let good = outcome("fanwave");
        let generator = Generator { cpu_share: 0.97, ..Generator::default() };
        let both = Outcome { generator, ..good.clone() };
        let disturbed = Outcome { others_share: 0.3, ..good.clone() };
        assert!(doubts(&good, Limit::Latency).is_empty());
        for (outcome, limit, word) in [
            (&good, Limit::Publisher, "the generator, not the server"),
            (&both, Limit::Generator, "the generator, not the server"),
            (&both, Limit::Server, "full too"),
            (&disturbed, Limit::Latency, "other programs used 30 %"),
        ] {
            let said = doubts(outcome, limit);
            assert!(said.len() == 1 && said[0].contains(word), "{word}: {said:?}");
        }
    }

    #[test]
    fn only_an_error_of_the_server_is_its_limit() {
        let refused = || server_fault("the server refused a publish: 503").context("ticker against x");
        let step = Step::ended(80.0, Some(40.0), refused()).expect("its limit");
        assert_eq!(step.broke, Some(Limit::Server));
        assert!(step.why.contains("503"), "{}", step.why);
        assert!(Step::ended(80.0, None, refused()).is_err(), "a server that carries nothing has no knee");
        let own = Error::msg("no free port at source address 127.0.0.2");
        let said = format!("{:#}", Step::ended(80.0, Some(40.0), own).expect_err("not the server's"));
        assert!(said.contains("40 events/s held") && said.contains("127.0.0.2"), "{said}");
    }
}

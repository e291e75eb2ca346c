//! What makes an outcome doubtful, and what makes it bad.
//!
//! A warning leaves the figures standing and says whose they may be: the generator's, the
//! publisher's, other programs'. A condemned outcome is one whose subscribers did not get what was
//! published.

use crate::outcome::{Generator, Outcome};
use crate::workload::{Behaviour, Crowd, Pace, Slow};

/// Above this share of its CPU the generator, not the server, may set the figures.
const GENERATOR_SHARE_HIGH: f64 = 0.9;
/// Above this share of the server's CPU other programs disturb a run.
const OTHERS_SHARE_HIGH: f64 = 0.05;
/// A publisher that is later than this for 1 event in 100 is part of the latencies.
const LATENESS_P99_NS_HIGH: u64 = 5_000_000;
/// Below this share of what was planned the publisher did not keep its pace.
const PUBLISHED_SHARE_LOW: f64 = 0.98;
/// An interval this long was not of the measurement's own choosing.
const INTERVAL_SECONDS_HIGH: f64 = 1.0;

/// Receivers whose CPU per delivery is more than this share of the server's are hardly faster than
/// it.
const RECEIVERS_COST_HIGH: f64 = 0.9;
/// Deliveries that fall due at the same moment, from which on it matters how fast the receivers
/// take them.
const AT_ONCE_HIGH: f64 = 100.0;
/// An interval shorter than this is too short for the clock ticks in which the kernel counts busy
/// time.
const INTERVAL_SECONDS_LOW: f64 = 0.2;

/// True if the generator's CPU was full, be it with receivers, publisher and coordinator or with
/// other programs.
pub fn generator_full(outcome: &Outcome) -> bool {
    let Generator { receivers_share, publisher_share, coordinator_share, cpu_share, .. } = outcome.generator;
    (receivers_share + publisher_share + coordinator_share).max(cpu_share) > GENERATOR_SHARE_HIGH
}

/// How many intervals had the generator's CPU full, and how many there are.
fn full_intervals(outcome: &Outcome) -> (usize, usize) {
    let long = outcome.series.iter().filter(|interval| interval.seconds >= INTERVAL_SECONDS_LOW);
    let full = long.clone().filter(|interval| interval.generator_share > GENERATOR_SHARE_HIGH);
    (full.count(), long.count())
}

/// Deliveries that fall due at the same moment.
fn at_once(outcome: &Outcome) -> f64 {
    let workload = &outcome.workload;
    let connections = workload.connections();
    let events = match workload.publish {
        Pace::Rate { .. } | Pace::Idle {} => 1,
        Pace::Burst { events, .. } | Pace::InFlight { events } | Pace::AtOnce { events, .. } => events,
    };
    events as f64 * connections as f64 / workload.topics as f64
}

/// The receivers' and the server's CPU microseconds per delivery, if the receivers are hardly
/// faster: then deliveries that fall due together wait for the receivers as much as for the server,
/// although nobody's CPU is full on average.
fn slow_receivers(outcome: &Outcome) -> Option<(f64, f64)> {
    let receivers = outcome.generator.receivers_us_per_delivery?;
    let server = outcome.cost.as_ref()?.us_per_delivery?;
    (outcome.each.count > 0 && at_once(outcome) >= AT_ONCE_HIGH && receivers >= server * RECEIVERS_COST_HIGH)
        .then_some((receivers, server))
}

/// What the generator may have done to the figures.
fn generator_warning(outcome: &Outcome) -> Option<String> {
    if generator_full(outcome) {
        let generator = &outcome.generator;
        return Some(format!(
            "the generator's CPU was full (receivers {:.0} %, publisher {:.0} %, coordinator {:.0} %, busy in all {:.0} %): \
             rates and latencies are its own, not the server's; use fewer connections or a lower rate",
            generator.receivers_share * 100.0,
            generator.publisher_share * 100.0,
            generator.coordinator_share * 100.0,
            generator.cpu_share * 100.0
        ));
    }
    let (full, all) = full_intervals(outcome);
    if full > 0 {
        return Some(format!(
            "the generator's CPU was full in {full} of {all} intervals: the tail of the latencies may be its own; use fewer \
             connections or a lower rate"
        ));
    }
    slow_receivers(outcome).map(|(receivers, server)| {
        format!(
            "a delivery cost the receivers {receivers:.2} µs of CPU and the server {server:.2} µs: where many are due at \
             once, the tail of the latencies may be the generator's"
        )
    })
}

/// Events that the pace asks for, if it asks for a number.
fn planned(outcome: &Outcome) -> Option<f64> {
    let seconds = outcome.workload.seconds;
    match outcome.workload.publish {
        Pace::Rate { per_second } => Some(per_second * seconds),
        Pace::Burst { events, every_ms } => Some((seconds * 1e3 / every_ms as f64).floor() * events as f64),
        Pace::InFlight { .. } | Pace::AtOnce { .. } | Pace::Idle {} => None,
    }
}

/// True if the publisher did not publish all that was planned.
pub fn publisher_short(outcome: &Outcome) -> bool {
    // One event more or less is a matter of where the seconds end.
    planned(outcome).is_some_and(|planned| (outcome.published as f64) < planned * PUBLISHED_SHARE_LOW - 1.0)
}

/// True if the publisher fell short or did not publish when it was due.
fn publisher_late(outcome: &Outcome) -> bool {
    publisher_short(outcome) || outcome.lateness.at(0.99).is_some_and(|ns| ns > LATENESS_P99_NS_HIGH)
}

/// What other programs may have done to the figures.
pub fn others_warning(outcome: &Outcome) -> Option<String> {
    let share = outcome.others_share;
    (share > OTHERS_SHARE_HIGH).then(|| {
        format!("other programs used {:.0} % of the server's CPU; stop them and run again", share * 100.0)
    })
}

/// What makes the figures doubtful. `owed` are the deliveries that arithmetic expects.
pub fn warnings(outcome: &Outcome, owed: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(generator_warning(outcome));
    if publisher_late(outcome) {
        warnings.push(format!(
            "the publisher was late: {} of {:.0} events, p99 {:.1} ms behind its schedule; the latencies include that",
            outcome.published,
            planned(outcome).unwrap_or(0.0),
            outcome.lateness.at(0.99).unwrap_or(0) as f64 / 1e6
        ));
    }
    warnings.extend(others_warning(outcome));
    if let Some(longest) = outcome.series.iter().map(|interval| interval.seconds).reduce(f64::max)
        && longest > INTERVAL_SECONDS_HIGH
    {
        warnings.push(format!("the measurement was interrupted: one interval took {longest:.1} s"));
    }
    if outcome.refused > 0 {
        warnings.push(format!("the server refused {} events; they count as lost", outcome.refused));
    }
    if outcome.deliveries != owed && outcome.findings.clean() {
        warnings.push(format!(
            "{} deliveries to steady subscribers were counted, {owed} were due: some fell outside of the measured time",
            outcome.deliveries
        ));
    }
    if let Some(cause) = condemned(outcome) {
        warnings.push(cause);
    }
    warnings
}

/// Why an outcome is bad, if it is: subscribers who must get everything exactly once and in order
/// did not. Slow and stalled readers, who lose by definition, are not judged.
pub fn condemned(outcome: &Outcome) -> Option<String> {
    // Those that want the latest alone are owed it, however slow they are.
    let loses = |crowd: &Crowd| {
        let late = matches!(crowd.behaviour, Behaviour::Slow { .. } | Behaviour::Stalled);
        late && crowd.slow != Some(Slow::Latest)
    };
    let judged = !outcome.workload.subscribers.iter().any(loses);
    let (steady, others) = (&outcome.findings, &outcome.others);
    let (who, found) = if !steady.clean() {
        ("steady", steady)
    } else if judged && others.faults() > 0 {
        ("other", others)
    } else {
        return None;
    };
    Some(format!(
        "the audit of the {who} subscribers found {} lost, {} duplicated, {} out of order, {} foreign, {} gaps in {} deliveries",
        found.lost, found.duplicated, found.out_of_order, found.foreign, found.gaps_told, found.events
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Findings;
    use crate::outcome::{Interval, Latency};
    use crate::page::fixture;
    use crate::scenario;

    /// A good outcome of a built-in scenario.
    fn outcome(name: &str) -> Outcome {
        let workload = scenario::load(name, &scenario::Overrides::default()).expect("built in");
        let published = (20.0 * workload.seconds) as u64;
        Outcome { workload, published, deliveries: 320_000, ..fixture::outcome("fanwave") }
    }

    #[test]
    fn an_undisturbed_outcome_has_no_warnings() {
        assert_eq!(warnings(&outcome("ticker"), 320_000), [""; 0]);
    }

    #[test]
    fn each_disturbance_has_its_warning() {
        let good = || outcome("ticker").generator;
        let full =
            Generator { receivers_share: 0.5, publisher_share: 0.3, coordinator_share: 0.15, ..good() };
        let foreign = Generator { cpu_share: 0.95, ..good() };
        let slow = Generator { receivers_us_per_delivery: Some(2.6), ..good() };
        let burst = Interval { seconds: 0.5, generator_share: 0.97, ..Interval::default() };
        let late = Latency { quantiles: vec![(0.99, 9_000_000)], ..Latency::default() };
        let long = Interval { seconds: 2.5, ..Interval::default() };
        let lost = Findings { events: 9, lost: 1, ..Findings::default() };
        for (outcome, owed, word) in [
            (Outcome { generator: full, ..outcome("ticker") }, 320_000, "generator's CPU was full ("),
            (Outcome { generator: foreign, ..outcome("ticker") }, 320_000, "busy in all 95 %"),
            (Outcome { generator: slow, ..outcome("ticker") }, 320_000, "may be the generator's"),
            (Outcome { series: vec![burst], ..outcome("ticker") }, 320_000, "full in 1 of 1 intervals"),
            (Outcome { lateness: late, ..outcome("ticker") }, 320_000, "publisher was late"),
            (Outcome { published: 120, ..outcome("ticker") }, 320_000, "120 of 160"),
            (Outcome { series: vec![long], ..outcome("ticker") }, 320_000, "interrupted"),
            (Outcome { refused: 2, ..outcome("ticker") }, 320_000, "refused 2"),
            (Outcome { findings: lost, ..outcome("ticker") }, 320_000, "1 lost"),
            (Outcome { others_share: 0.2, ..outcome("ticker") }, 320_000, "other programs used 20 %"),
            (outcome("ticker"), 320_001, "320001 were due"),
        ] {
            let said = warnings(&outcome, owed);
            assert!(said.len() == 1 && said[0].contains(word), "{word}: {said:?}");
        }
    }

    #[test]
    fn slow_receivers_matter_where_many_deliveries_are_due_at_once() {
        let generator = Generator { receivers_us_per_delivery: Some(2.6), ..outcome("ticker").generator };
        let slow = |name: &str| slow_receivers(&Outcome { generator: generator.clone(), ..outcome(name) });
        assert_eq!(slow("burst"), Some((2.6, 2.81)));
        assert_eq!(slow("many-topics"), None);
    }

    #[test]
    fn only_subscribers_who_must_get_everything_condemn_an_outcome() {
        let faults = Findings { events: 9, duplicated: 1, ..Findings::default() };
        let gap = Findings { events: 9, gaps_told: 1, ..Findings::default() };
        assert!(condemned(&Outcome { findings: faults, ..outcome("slow-readers") }).is_some());
        assert!(condemned(&Outcome { findings: gap, ..outcome("ticker") }).is_some());
        assert!(condemned(&Outcome { others: faults, ..outcome("slow-readers") }).is_none());
        assert!(condemned(&Outcome { others: faults, ..outcome("reconnect-storm") }).is_some());
        assert!(condemned(&Outcome { others: gap, ..outcome("reconnect-storm") }).is_none());
    }
}

//! A point outside of the fit: predicted first, measured then, and the error said plainly.
//!
//! By default four times the connections of the largest group that was fitted, with another size
//! and another rate than any that was. Each round has a server of its own; the medians of the
//! rounds are compared.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use super::design::{Design, Group, Load};
use super::experiments::{CpuRow, Kind, Measured, MemoryRow, Notebook, Stand, measure_group};
use super::fit::{Estimate, rounded};
use super::model::{Checked, ERROR_MAX, Model};
use super::work::Work;
use crate::framing::Protocol;
use crate::report::{Spread, progress};

/// How much larger than what was fitted.
const TIMES: usize = 4;
/// Rates to choose from; none of them is in the usual designs.
const RATES: [f64; 8] = [1.0, 2.0, 4.0, 6.0, 14.0, 28.0, 70.0, 200.0];
/// The share of a core that the chosen rate shall keep busy at most, as predicted.
const SHARE: f64 = 0.55;
/// Seconds of one leg.
const SECONDS: f64 = 3.0;

/// Options of `--held-out`.
#[derive(Debug, Clone, Args)]
pub struct HeldOutArgs {
    /// Measure a point outside of the fit and compare it with the prediction
    #[arg(long)]
    pub held_out: bool,
    /// Its connections [default: 4 × the largest that was fitted]
    #[arg(long, value_name = "N", requires = "held_out")]
    pub held_out_connections: Option<usize>,
    /// Its events per second [default: chosen so that a core is about half busy]
    #[arg(long, value_name = "R", requires = "held_out")]
    pub held_out_rate: Option<f64>,
    /// Its bytes of an event's data
    #[arg(long, value_name = "B", requires = "held_out", default_value_t = 500)]
    pub held_out_bytes: usize,
    /// What its subscribers speak
    #[arg(long, value_name = "PROTOCOL", requires = "held_out", default_value = "ws")]
    pub held_out_protocol: Protocol,
    /// Rounds
    #[arg(long, value_name = "N", requires = "held_out", default_value_t = 3)]
    pub held_out_rounds: usize,
}

impl HeldOutArgs {
    /// Connections of the point where `largest` is the largest group of the fit.
    pub fn connections(&self, largest: usize) -> usize {
        self.held_out_connections.unwrap_or(largest.saturating_mul(TIMES))
    }
}

/// One figure of the comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Compared {
    /// What it is.
    pub what: &'static str,
    /// As the model says: seconds per second, or bytes.
    pub predicted: Estimate,
    /// As it was, over the rounds.
    pub measured: Spread,
    /// (predicted - measured) / measured, of the median. None if that is not above 0: the kernel's
    /// memory is the whole machine's, and others may have given back as much as the point took.
    pub error: Option<f64>,
}

impl Compared {
    /// The error without its sign, the largest of all if there is none.
    fn size(&self) -> f64 {
        self.error.map_or(f64::INFINITY, f64::abs)
    }
}

/// The comparison.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOut {
    /// What was measured.
    pub group: Group,
    /// CPU, user memory, kernel memory.
    pub compared: Vec<Compared>,
    /// The rows.
    pub measured: Measured,
}

impl HeldOut {
    /// What a model keeps of it: nothing if a figure could not be measured.
    pub fn checked(&self) -> Option<Checked> {
        let load = self.group.loads.first();
        Some(Checked {
            connections: self.group.connections as f64,
            rate: load.map_or(0.0, |load| load.rate),
            bytes: load.map_or(0.0, |load| load.bytes as f64),
            error: rounded(self.worst()?.error?.abs()),
        })
    }

    /// The figure that is furthest off, or could not be measured.
    pub fn worst(&self) -> Option<&Compared> {
        self.compared.iter().max_by(|a, b| a.size().total_cmp(&b.size()))
    }

    /// True if every prediction is near enough.
    pub fn holds(&self) -> bool {
        self.compared.iter().all(|compared| compared.size() <= ERROR_MAX)
    }

    /// An error in one line if a prediction is too far off, with the worst one, or could not be
    /// compared.
    pub fn require(&self) -> Result<()> {
        match self.worst() {
            Some(Compared { what, error: None, .. }) => bail!(
                "the held-out prediction is not checked: {what} did not grow, other programs gave back as much \
                 meanwhile: measure again on a quiet machine, or more connections (--held-out-connections)"
            ),
            Some(Compared { what, error: Some(error), .. }) if error.abs() > ERROR_MAX => bail!(
                "the held-out prediction does not hold: {what} is {:+.1} % off, more than {:.0} %: measure again on a quiet \
                 machine, or plan nearer to the measured points",
                error * 100.0,
                ERROR_MAX * 100.0
            ),
            _ => Ok(()),
        }
    }
}

/// Measures the point and compares.
pub fn run(stand: &Stand<'_>, model: &Model, args: &HeldOutArgs) -> Result<HeldOut> {
    let group = point(model, args)?;
    let mut notebook = Notebook::default();
    for round in 0..args.held_out_rounds {
        let load = group.loads[0];
        progress(&format!(
            "held out, round {} of {}: {} {}, {} events/s of {} bytes",
            round + 1,
            args.held_out_rounds,
            group.connections,
            group.protocol.label(),
            load.rate,
            load.bytes
        ));
        measure_group(stand, &group, round, Duration::from_secs_f64(SECONDS), &mut notebook)?;
    }
    let measured = notebook.measured;
    let compared = compare(model, &measured)?;
    Ok(HeldOut { group, compared, measured })
}

fn point(model: &Model, args: &HeldOutArgs) -> Result<Group> {
    if !(1..=100).contains(&args.held_out_rounds) {
        bail!("--held-out-rounds {} is not between 1 and 100", args.held_out_rounds);
    }
    let connections = args.connections(model.domain.connections.1 as usize);
    let protocol = args.held_out_protocol;
    let bytes = args.held_out_bytes;
    let busy = |rate: f64| {
        let frame_bytes = model.frame_bytes(protocol, bytes as f64);
        let work = Work::second(protocol, connections as f64, rate, frame_bytes);
        model.cpu(&work).value
    };
    let chosen = RATES.into_iter().rfind(|rate| busy(*rate) <= SHARE).unwrap_or(RATES[0]);
    let rate = args.held_out_rate.unwrap_or(chosen);
    let group =
        Group { protocol, connections, topics: 1, heartbeat_ms: None, loads: vec![Load { rate, bytes }] };
    let design = Design { group: vec![group.clone()], ..model.design.clone() };
    design.check().context("the held-out point")?;
    Ok(group)
}

fn compare(model: &Model, measured: &Measured) -> Result<Vec<Compared>> {
    let loads: Vec<&CpuRow> = measured.cpu.iter().filter(|row| row.kind == Kind::Load).collect();
    let idle: Vec<&MemoryRow> =
        measured.memory.iter().filter(|row| row.connections > 0 && row.window_events == 0).collect();
    let after: Vec<&MemoryRow> = measured.memory.iter().filter(|row| row.window_events > 0).collect();
    let (Some(load), Some(connected), Some(loaded)) = (loads.first(), idle.first(), after.first()) else {
        bail!("the held-out point gave no figures");
    };
    let work = Work::of(load);
    let per_second = 1.0 / work.seconds;
    let connections = connected.connections as f64;
    let window = (loaded.window_events as f64, loaded.window_bytes as f64);
    let protocol = load.protocol;
    let one = |what, predicted: Estimate, measured: Vec<f64>| {
        let measured = Spread::of(measured);
        let error = (measured.median > 0.0).then(|| predicted.value / measured.median - 1.0);
        Compared { what, predicted, measured, error }
    };
    Ok(vec![
        one(
            "CPU, share of a core",
            model.cpu(&work).times(per_second),
            loads.iter().map(|row| row.cpu_ns as f64 / 1e9 / row.seconds).collect(),
        ),
        one(
            "user memory, idle",
            model.user(protocol, 1.0, connections, (0.0, 0.0)),
            idle.iter().map(|row| row.user_bytes as f64).collect(),
        ),
        one(
            "user memory, after events",
            model.user(protocol, 1.0, connections, window),
            after.iter().map(|row| row.user_bytes as f64).collect(),
        ),
        one(
            "kernel memory, both ends",
            model.kernel(protocol, 1.0, connections),
            idle.iter().map(|row| row.kernel_bytes as f64).collect(),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::planted::{exact, load_row, memory_row};

    fn args() -> HeldOutArgs {
        HeldOutArgs {
            held_out: true,
            held_out_connections: None,
            held_out_rate: None,
            held_out_bytes: 500,
            held_out_protocol: Protocol::Ws,
            held_out_rounds: 3,
        }
    }

    /// 1,000 µs per second and 5 µs per delivery; 1 MB, 100 bytes per connection; 8,000 bytes in
    /// the kernel.
    fn model() -> Model {
        let cpu = [1_000.0, 0.0, 5.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        exact(cpu, [1e6, 0.0, 0.0, 100.0, 100.0, 500.0, 1.0], [0.0, 8_000.0, 8_000.0])
    }

    #[test]
    fn the_point_is_four_times_the_largest_group_at_about_half_a_core() {
        let group = point(&model(), &args()).expect("possible");
        assert_eq!((group.connections, group.topics), (16_000, 1));
        // 16,000 × 6 × 5 µs are 0.48 of a core, 14 per second would be more than one.
        assert_eq!(group.loads, [Load { rate: 6.0, bytes: 500 }]);
        let asked = HeldOutArgs { held_out_connections: Some(9), held_out_rate: Some(0.5), ..args() };
        let group = point(&model(), &asked).expect("possible");
        assert_eq!((group.connections, group.loads[0].rate), (9, 0.5));
    }

    #[test]
    fn an_impossible_point_is_refused() {
        for wrong in [
            HeldOutArgs { held_out_rounds: 0, ..args() },
            HeldOutArgs { held_out_connections: Some(0), ..args() },
            HeldOutArgs { held_out_rate: Some(f64::NAN), ..args() },
            HeldOutArgs { held_out_bytes: 1, ..args() },
        ] {
            assert!(point(&model(), &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn predictions_are_compared_with_the_medians_of_the_rounds_and_one_too_far_off_is_an_error() {
        let load = |round, cpu_ns| CpuRow { round, cpu_ns, ..load_row(1_000, 10.0, 500) };
        let memory = |events, user_bytes, kernel_bytes| MemoryRow {
            user_bytes,
            kernel_bytes,
            ..memory_row(Protocol::Ws, 1_000, events, 500 * events)
        };
        let measured = Measured {
            cpu: vec![load(0, 90_000_000), load(1, 102_000_000), load(2, 300_000_000)],
            memory: vec![memory(0, 1_000_000, 10_000_000), memory(20, 1_120_000, 0)],
        };
        let compared = compare(&model(), &measured).expect("complete");
        let errors: Vec<f64> = compared.iter().filter_map(|compared| compared.error).collect();
        // 0.102 CPU seconds in 2; 1.1 MB to 1.0; 1.12 MB with 20 events of 500 bytes; 8 MB to 10.
        assert_eq!(errors.len(), 4);
        for (error, expected) in errors.iter().zip([0.0, 0.1, 0.0, -0.2]) {
            assert!((error - expected).abs() < 1e-9, "{errors:?}");
        }
        assert_eq!(compared[0].measured, Spread { median: 0.051, min: 0.045, max: 0.15 });
        assert!(compare(&model(), &Measured::default()).is_err());
        let group = point(&model(), &args()).expect("possible");
        let mut held_out = HeldOut { group, compared, measured };
        assert_eq!(held_out.checked().map(|checked| checked.error), Some(0.2));
        let error = held_out.require().expect_err("20 % off").to_string();
        assert!(
            error.contains("kernel memory, both ends is -20.0 % off") && !error.contains('\n'),
            "{error}"
        );
        held_out.compared.pop();
        held_out.require().expect("10 % off");
    }

    #[test]
    fn memory_that_did_not_grow_has_no_error_and_is_told_instead_of_an_infinite_one() {
        let grown = |round, kernel_bytes| MemoryRow {
            round,
            user_bytes: 1_100_000,
            kernel_bytes,
            ..memory_row(Protocol::Ws, 1_000, 0, 0)
        };
        let loaded = MemoryRow { user_bytes: 1_120_000, ..memory_row(Protocol::Ws, 1_000, 20, 10_000) };
        for nothing in [0, -4_096] {
            let measured = Measured {
                cpu: vec![CpuRow { cpu_ns: 102_000_000, ..load_row(1_000, 10.0, 500) }],
                memory: vec![grown(0, nothing), grown(1, -9_000), grown(2, 8_000_000), loaded.clone()],
            };
            let compared = compare(&model(), &measured).expect("complete");
            assert_eq!(compared[3].error, None);
            let held_out = HeldOut { group: point(&model(), &args()).expect("possible"), compared, measured };
            assert!(!held_out.holds() && held_out.checked().is_none());
            let error = held_out.require().expect_err("not compared").to_string();
            assert!(error.contains("kernel memory, both ends did not grow"), "{error}");
            let json = serde_json::to_string(&held_out).expect("serializable");
            assert!(json.contains(r#""error":null"#), "{json}");
        }
    }
}

//! The cost model: what a server's work costs in CPU and memory, fitted to measured points, saved
//! as JSON.
//!
//! CPU is a sum over the work done (`work`). Memory is a sum over the process, its shards,
//! connections and windows. What the model does not hold: near a full core deliveries to one
//! connection merge and each costs less, so such points are left out of the fit and a prediction
//! there is an upper bound.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::design::Design;
use super::experiments::{CpuRow, Kind, Measured, OTHERS_SHARE_MAX};
use super::fit::{self, Estimate, Fit};
use super::rows::{self, by_protocol};
use super::stream::StreamCost;
use super::work::{CPU_TERMS, Work};
use crate::framing::Protocol;
use crate::machine::Machine;
use crate::report::write_json;

/// The form of the file; another one is refused.
const VERSION: u32 = 3;
/// Terms of user-space memory, in bytes each, and what they are.
pub const USER_TERMS: [(&str, &str); 7] = [
    ("process", "the process without connections"),
    ("shard", "a shard"),
    ("shard_used", "a shard's first use"),
    ("connection_ws", "a WebSocket"),
    ("connection_sse", "an SSE stream"),
    ("window_event", "an event in a window"),
    ("window_byte", "a byte of data in a window"),
];
/// Terms of kernel memory of both ends on loopback, in bytes each, and what they are.
pub const KERNEL_TERMS: [(&str, &str); 3] =
    [("shard", "a shard"), ("connection_ws", "a WebSocket"), ("connection_sse", "an SSE stream")];
/// Candidates for the interval at which half of `apart` is paid, in milliseconds: around the 40
/// within which Linux acknowledges. Far from there a fit would only follow noise.
const APART_MS: [f64; 5] = [30.0, 36.0, 43.0, 52.0, 62.0];
/// What a prediction is allowed to be off.
pub const ERROR_MAX: f64 = 0.15;
/// Above this share of a core deliveries merge, or the receivers are the bottleneck: such points
/// are left out.
const SHARE_MAX: f64 = 0.85;

/// A fitted model with everything that it was fitted to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    version: u32,
    /// Where, when, from which commit and by which command it was measured.
    pub machine: Machine,
    /// What was measured.
    pub design: Design,
    /// Interval between deliveries at which half of `apart` is paid, in milliseconds.
    pub apart_ms: f64,
    /// Bytes that SSE adds to an event's data.
    pub sse_overhead_bytes: f64,
    /// CPU in microseconds; see [`CPU_TERMS`].
    pub cpu: Fit,
    /// User-space memory in bytes; see [`USER_TERMS`].
    pub user: Fit,
    /// Kernel memory of both ends in bytes; see [`KERNEL_TERMS`].
    pub kernel: Fit,
    /// The range of the points.
    pub domain: Domain,
    /// What a stream of JetStream behind the nodes costs, if that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamCost>,
    /// How a point outside of that range was predicted, if one was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked: Option<Checked>,
    /// The points.
    pub measured: Measured,
}

/// The range of the points that were fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Connections of one shard, fewest and most.
    pub connections: (f64, f64),
    /// Events per second of one connection.
    pub rate: (f64, f64),
    /// Bytes of one event's data.
    pub bytes: (f64, f64),
    /// The largest share of one core that was used.
    pub share: f64,
}

/// A point outside of the fit that was predicted and measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Its connections.
    pub connections: f64,
    /// Its events per second.
    pub rate: f64,
    /// Bytes of one event's data.
    pub bytes: f64,
    /// The largest error of CPU, user memory and kernel memory, as a share of what was measured; at
    /// least 0.
    pub error: f64,
}

impl Checked {
    /// True if the predictions were near enough.
    pub fn holds(&self) -> bool {
        self.error <= ERROR_MAX
    }
}

impl Model {
    /// Fits a model to what a design showed.
    pub fn of(machine: Machine, design: Design, measured: Measured) -> Result<Model> {
        let seed = design.seed;
        let used: Vec<&CpuRow> = measured.cpu.iter().filter(|row| !saturated(row)).collect();
        let loads: Vec<&CpuRow> = used.iter().copied().filter(|row| row.kind == Kind::Load).collect();
        if loads.is_empty() {
            bail!("no measured point is below {SHARE_MAX} of a core: ask for lower rates");
        }
        let names = names_of(&CPU_TERMS);
        fit::check("CPU model", &names, &rows::cpu(&used, APART_MS[0]))?;
        let apart_ms = best_apart_ms(&used);
        let cpu = Fit::of("CPU model", &names, &rows::cpu(&used, apart_ms), seed)?;
        let user = Fit::of("user memory model", &names_of(&USER_TERMS), &rows::user(&measured.memory), seed)?;
        let kernel =
            Fit::of("kernel memory model", &names_of(&KERNEL_TERMS), &rows::kernel(&measured.memory), seed)?;
        let overheads: Vec<f64> = loads
            .iter()
            .filter(|row| row.protocol == Protocol::Sse)
            .map(|row| row.frame_bytes - row.payload_bytes as f64)
            .collect();
        let sse_overhead_bytes = fit::rounded(overheads.iter().sum::<f64>() / overheads.len().max(1) as f64);
        let domain = Domain::of(&loads);
        let version = VERSION;
        Ok(Model {
            version,
            machine,
            design,
            apart_ms,
            sse_overhead_bytes,
            cpu,
            user,
            kernel,
            domain,
            stream: None,
            checked: None,
            measured,
        })
    }

    /// Legs that were measured and not fitted, since a core was full.
    pub fn left_out(&self) -> usize {
        self.measured.cpu.iter().filter(|row| saturated(row)).count()
    }

    /// The share of the fitted legs in which other programs took much of the server's CPU.
    pub fn disturbed(&self) -> f64 {
        disturbed(&self.measured)
    }

    /// CPU seconds for the work.
    pub fn cpu(&self, work: &Work) -> Estimate {
        self.cpu.predict(&work.amounts(self.apart_ms)).times(1e-6)
    }

    /// User-space memory in bytes of a process whose shards hold so many connections together.
    pub fn user(&self, protocol: Protocol, shards: f64, connections: f64, window: (f64, f64)) -> Estimate {
        let (ws, sse) = by_protocol(protocol, connections);
        self.user.predict(&[1.0, shards, shards, ws, sse, window.0, window.1])
    }

    /// Kernel memory of both ends in bytes of so many connections.
    pub fn kernel(&self, protocol: Protocol, shards: f64, connections: f64) -> Estimate {
        let (ws, sse) = by_protocol(protocol, connections);
        self.kernel.predict(&[shards, ws, sse])
    }

    /// Bytes on the wire of one event's delivery, before TCP.
    pub fn frame_bytes(&self, protocol: Protocol, payload_bytes: f64) -> f64 {
        match protocol {
            // RFC 6455 §5.2: the length takes 0, 2 or 8 bytes more.
            Protocol::Ws if payload_bytes < 126.0 => payload_bytes + 2.0,
            Protocol::Ws if payload_bytes < 65_536.0 => payload_bytes + 4.0,
            Protocol::Ws => payload_bytes + 10.0,
            Protocol::Sse => payload_bytes + self.sse_overhead_bytes,
            // Neither is planned.
            Protocol::Json | Protocol::Raw => payload_bytes,
        }
    }

    /// Saves the model.
    pub fn save(&self, file: &Path) -> Result<()> {
        write_json(file, self).context("the model")
    }

    /// Reads a saved model. What this program did not write is refused in one line.
    pub fn load(file: &Path) -> Result<Model> {
        let name = file.display();
        let text = fs::read_to_string(file).with_context(|| {
            format!("reading the model {name} (measure one with `loadtest plan --save {name}`)")
        })?;
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head = serde_json::from_str(&text).with_context(|| format!("{name} is no model"))?;
        if head.version != VERSION {
            bail!(
                "the model {name} has version {}, this program knows {VERSION}: measure it again with --save",
                head.version
            );
        }
        let model: Model =
            serde_json::from_str(&text).with_context(|| format!("the model {name} is broken"))?;
        model.check().with_context(|| format!("the model {name} is broken"))?;
        Ok(model)
    }

    fn check(&self) -> Result<()> {
        self.cpu.check(&names_of(&CPU_TERMS))?;
        self.user.check(&names_of(&USER_TERMS))?;
        self.kernel.check(&names_of(&KERNEL_TERMS))?;
        let domain = &self.domain;
        let numbers = [
            self.apart_ms,
            self.sse_overhead_bytes,
            domain.connections.0,
            domain.connections.1,
            domain.rate.0,
            domain.rate.1,
            domain.bytes.0,
            domain.bytes.1,
            domain.share,
        ];
        let checked =
            self.checked.iter().flat_map(|point| [point.connections, point.rate, point.bytes, point.error]);
        let points = self.stream.iter().flat_map(|cost| &cost.at);
        let stream = points.flat_map(|point| [point.read, point.publish]);
        let stream = stream.flat_map(|cost| [cost.low, cost.value, cost.high]);
        if !numbers.into_iter().chain(checked).chain(stream).all(|number| number.is_finite() && number >= 0.0)
            || self.apart_ms == 0.0
            || !self.stream.iter().all(StreamCost::is_possible)
        {
            bail!("it has a number that is impossible");
        }
        Ok(())
    }
}

impl Domain {
    fn of(loads: &[&CpuRow]) -> Domain {
        let range = |of: fn(&CpuRow) -> f64| {
            let values = || loads.iter().map(|row| of(row));
            (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max))
        };
        Domain {
            connections: range(|row| row.connections as f64),
            rate: range(|row| row.rate / row.topics as f64),
            bytes: range(|row| row.payload_bytes as f64),
            share: fit::rounded(range(share).1),
        }
    }

    /// What of this lies outside, in words; empty is good.
    pub fn outside(&self, connections: f64, rate: f64, bytes: f64) -> Vec<String> {
        let one = |what: &str, value: f64, (low, high): (f64, f64)| {
            (value > 0.0 && !(low..=high).contains(&value)).then(|| {
                format!(
                    "{} {what} lie outside the measured {} to {}",
                    number(value),
                    number(low),
                    number(high)
                )
            })
        };
        [
            one("connections per shard", connections, self.connections),
            one("events/s per connection", rate, self.rate),
            one("bytes per event", bytes, self.bytes),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn names_of(terms: &[(&'static str, &str)]) -> Vec<&'static str> {
    terms.iter().map(|(name, _)| *name).collect()
}

/// A number in words: whole if it is large, three digits if it is small.
fn number(value: f64) -> String {
    if value >= 100.0 {
        crate::unit::grouped(value.round() as u64)
    } else {
        format!("{}", fit::to_digits(value, 3))
    }
}

/// The share of the legs with events in which other programs took much of the server's CPU.
pub fn disturbed(measured: &Measured) -> f64 {
    let legs = || measured.cpu.iter().filter(|row| row.kind == Kind::Load);
    let disturbed = legs().filter(|row| row.others_share > OTHERS_SHARE_MAX).count();
    disturbed as f64 / legs().count().max(1) as f64
}

fn share(row: &CpuRow) -> f64 {
    row.cpu_ns as f64 / 1e9 / row.seconds
}

fn saturated(row: &CpuRow) -> bool {
    row.kind == Kind::Load && (share(row) > SHARE_MAX || row.receiver_share > SHARE_MAX)
}

/// The candidate that leaves least unexplained.
fn best_apart_ms(legs: &[&CpuRow]) -> f64 {
    let loss = |apart_ms: f64| fit::loss(&rows::cpu(legs, apart_ms), CPU_TERMS.len());
    APART_MS.into_iter().min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap_or(APART_MS[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::planted::{
        APART_TRUTH, CPU_TRUTH, KERNEL_TRUTH, NOISE, QUIET, USER_TRUTH, dot, machine, model, planted,
    };

    const MIB: f64 = 1_048_576.0;

    /// How many of what each fit was asked are covered, as a share.
    fn coverage(covered: &[u32], fits: u64) -> Vec<f64> {
        covered.iter().map(|covered| f64::from(*covered) / fits as f64).collect()
    }

    #[test]
    fn the_intervals_of_costs_and_answers_cover_planted_ones_as_often_as_they_say() {
        const FITS: u64 = 100;
        let works = [
            Work::second(Protocol::Ws, 4_000.0, 20.0, 204.0),
            Work::second(Protocol::Ws, 16_000.0, 6.0, 504.0),
            Work::second(Protocol::Sse, 8_000.0, 6.0, 230.0),
            Work { handshakes: 1e6, closes: 1e6, protocol: Protocol::Ws, ..Work::default() },
        ];
        let truth = [&CPU_TRUTH[..], &USER_TRUTH, &KERNEL_TRUTH].concat();
        let mut terms = vec![0; truth.len()];
        let mut answers = vec![0; works.len()];
        for seed in 0..FITS {
            let design = Design { seed, ..Design::usual(seed % 2 == 1) };
            let model = Model::of(machine(), design.clone(), planted(&design, NOISE, seed)).expect("regular");
            let fitted = model.cpu.terms.iter().chain(&model.user.terms).chain(&model.kernel.terms);
            for ((term, truth), covered) in fitted.zip(&truth).zip(&mut terms) {
                *covered += u32::from(term.low <= *truth && *truth <= term.high);
            }
            for (work, covered) in works.iter().zip(&mut answers) {
                let truth = dot(&work.amounts(APART_TRUTH), &CPU_TRUTH) / 1e6;
                let answer = model.cpu(work);
                *covered += u32::from(answer.low <= truth && truth <= answer.high);
            }
        }
        let (terms, answers) = (coverage(&terms, FITS), coverage(&answers, FITS));
        let mean = terms.iter().sum::<f64>() / terms.len() as f64;
        assert!((0.86..0.96).contains(&mean), "{mean} on average: {terms:?}");
        assert!(terms.iter().all(|share| *share >= 0.65), "{terms:?}");
        assert!(answers.iter().all(|share| *share >= 0.85), "{answers:?}");
    }

    #[test]
    fn the_usual_design_finds_planted_costs() {
        let model = model();
        for (name, truth) in [("handshake_ws", 13.0), ("close", 9.0), ("heartbeat_ws", 7.0)] {
            let value = model.cpu.value(name);
            assert!((value / truth - 1.0).abs() < 0.1, "{name} {value}");
        }
        assert!((30.0..=62.0).contains(&model.apart_ms), "{}", model.apart_ms);
    }

    #[test]
    fn four_times_the_connections_are_predicted_within_fifteen_percent_from_noisy_points() {
        let model = model();
        let work = Work::second(Protocol::Ws, 16_000.0, 6.0, 504.0);
        let truth = dot(&work.amounts(APART_TRUTH), &CPU_TRUTH);
        let predicted = model.cpu(&work);
        assert!((predicted.value * 1e6 / truth - 1.0).abs() < 0.15, "{predicted:?} for {truth} µs");
        assert!(predicted.low < predicted.value && predicted.value < predicted.high, "{predicted:?}");
        let user = model.user(Protocol::Ws, 1.0, 16_000.0, (0.0, 0.0)).value;
        assert!((user / (1.9e6 + 145.0 * 16_000.0) - 1.0).abs() < 0.15, "{user}");
        let several = model.user(Protocol::Ws, 6.0, 16_000.0, (0.0, 0.0)).value;
        assert!((several / (0.9e6 + 6.0 * 1e6 + 145.0 * 16_000.0) - 1.0).abs() < 0.1, "{several}");
        let kernel = model.kernel(Protocol::Ws, 1.0, 16_000.0).value;
        assert!((kernel / (0.5e6 + 8_700.0 * 16_000.0) - 1.0).abs() < 0.15, "{kernel}");
    }

    /// The points of the committed model are fitted anew; what was measured beside them stands in
    /// `plan.txt` there.
    #[test]
    fn the_held_out_point_of_the_kept_run_is_predicted_within_ten_percent() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/runs/2026-11-21-xeon-2cpu/model.json");
        let kept = Model::load(Path::new(file)).expect("a model of this version");
        let model = Model::of(machine(), kept.design, kept.measured).expect("as it was fitted");
        let frame_bytes = model.frame_bytes(Protocol::Ws, 500.0);
        let figures = [
            ("CPU", model.cpu(&Work::second(Protocol::Ws, 16_000.0, 6.0, frame_bytes)), 0.504),
            ("user memory", model.user(Protocol::Ws, 1.0, 16_000.0, (0.0, 0.0)), 3.86 * MIB),
            ("kernel memory", model.kernel(Protocol::Ws, 1.0, 16_000.0), 136.0 * MIB),
        ];
        for (what, predicted, measured) in figures {
            let error = predicted.value / measured - 1.0;
            assert!(error.abs() < 0.1, "{what}: {predicted:?}, measured {measured}");
        }
    }

    #[test]
    fn the_quick_design_tells_all_terms_apart_too() {
        let design = Design::usual(true);
        let model =
            Model::of(machine(), design.clone(), planted(&design, QUIET, 1)).expect("a regular design");
        let delivery = model.cpu.terms[2].value;
        assert!((delivery / CPU_TRUTH[2] - 1.0).abs() < 0.25, "{delivery}");
    }

    #[test]
    fn a_full_core_is_left_out_and_nothing_else_to_fit_is_refused() {
        let mut measured = planted(&Design::usual(false), QUIET, 1);
        let at = measured.cpu.iter().position(|row| row.kind == Kind::Load).expect("there are loads");
        measured.cpu[at].cpu_ns = 1_450_000_000;
        let model = Model::of(machine(), Design::usual(false), measured.clone()).expect("enough is left");
        assert_eq!(model.left_out(), 1);
        assert!(model.domain.share < 0.85, "{:?}", model.domain);
        assert_eq!(model.disturbed(), 0.0);
        measured.cpu.iter_mut().for_each(|row| row.others_share = 0.2);
        assert_eq!(disturbed(&measured), 1.0);
        measured.cpu.iter_mut().for_each(|row| row.receiver_share = 0.99);
        let error = Model::of(machine(), Design::usual(false), measured).expect_err("all full").to_string();
        assert!(error.contains("lower rates"), "{error}");
    }

    #[test]
    fn fewer_points_than_terms_are_refused_in_one_line() {
        for connections in [250, 1_000] {
            let mut measured = planted(&Design::usual(false), QUIET, 1);
            measured.cpu.retain(|row| row.connections == connections && row.kind == Kind::Load);
            let error = Model::of(machine(), Design::usual(false), measured).expect_err("few").to_string();
            assert!(error.contains("measure more points") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_design_without_one_protocol_is_refused_with_the_term_that_it_cannot_tell() {
        let mut measured = planted(&Design::usual(false), QUIET, 1);
        measured.cpu.retain(|row| row.protocol == Protocol::Ws);
        let error = Model::of(machine(), Design::usual(false), measured).expect_err("no SSE").to_string();
        assert!(error.contains("\"delivery_sse\"") && !error.contains('\n'), "{error}");
    }

    fn file(name: &str) -> std::path::PathBuf {
        std::env::temp_dir().join(format!("fanwave-model-{}-{name}.json", std::process::id()))
    }

    /// What loading a file with this text says.
    fn refused(name: &str, text: &str) -> String {
        let file = file(name);
        fs::write(&file, text).expect("writable");
        let error = format!("{:#}", Model::load(&file).expect_err("refused"));
        fs::remove_file(&file).expect("removable");
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn a_saved_model_is_the_same_when_it_is_loaded() {
        let mut model = model();
        model.checked = Some(Checked { connections: 16_000.0, rate: 6.0, bytes: 500.0, error: 0.07 });
        let file = file("same");
        model.save(&file).expect("writable");
        let loaded = Model::load(&file).expect("our own");
        fs::remove_file(&file).expect("removable");
        assert_eq!(loaded, model);
    }

    #[test]
    fn a_file_that_is_absent_broken_of_another_version_or_with_impossible_numbers_is_refused_in_one_line() {
        let absent = format!("{:#}", Model::load(Path::new("no-such-model.json")).expect_err("absent"));
        assert!(absent.contains("no-such-model.json") && absent.contains("--save"), "{absent}");
        assert!(refused("json", "{\"version\": 3,").contains("no model"));
        assert!(refused("other", "[]").contains("no model"));
        assert!(refused("version", "{\"version\": 99}").contains("version 99"));
        assert!(refused("part", "{\"version\": 3}").contains("broken"));
        let text = serde_json::to_string(&model()).expect("serializable");
        assert!(refused("typo", &text.replace("\"apart_ms\"", "\"apart\"")).contains("apart"));
        assert!(refused("terms", &text.replace("\"publish\"", "\"publsih\"")).contains("terms"));
        let mut negative = model();
        negative.cpu.terms[2].value = -1.0;
        let text = serde_json::to_string(&negative).expect("serializable");
        assert!(refused("negative", &text).contains("negative"));
        let mut nothing = model();
        nothing.apart_ms = 0.0;
        assert!(
            refused("zero", &serde_json::to_string(&nothing).expect("serializable")).contains("impossible")
        );
        nothing.apart_ms = f64::NAN;
        assert!(refused("nan", &serde_json::to_string(&nothing).expect("serializable")).contains("broken"));
    }

    #[test]
    fn frames_are_as_long_as_the_standards_say() {
        let model = model();
        let ws = |bytes| model.frame_bytes(Protocol::Ws, bytes);
        assert_eq!((ws(125.0), ws(126.0), ws(65_535.0), ws(65_536.0)), (127.0, 130.0, 65_539.0, 65_546.0));
        assert_eq!(model.frame_bytes(Protocol::Sse, 200.0), 230.0);
    }

    #[test]
    fn what_lies_outside_of_the_measured_range_is_said() {
        let domain =
            Domain { connections: (250.0, 4_000.0), rate: (3.0, 600.0), bytes: (200.0, 4_000.0), share: 0.5 };
        assert!(domain.outside(4_000.0, 3.0, 200.0).is_empty());
        assert!(domain.outside(4_000.0, 0.0, 0.0).is_empty());
        let notes = domain.outside(16_000.0, 0.5, 5_000.0);
        assert_eq!(notes.len(), 3);
        assert_eq!(notes[0], "16,000 connections per shard lie outside the measured 250 to 4,000");
        assert_eq!(notes[1], "0.5 events/s per connection lie outside the measured 3 to 600");
    }
}

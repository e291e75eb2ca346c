//! The cost model: what a server's work costs in CPU and memory, fitted to measured points, saved as JSON.
//!
//! CPU is a sum over the work done (`work`). Memory is a sum over the process, its shards, connections and windows.
//! What the model does not hold: near a full core deliveries to one connection merge and each costs less, so such
//! points are left out of the fit and a prediction there is an upper bound.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::design::Design;
use super::experiments::{CpuRow, Kind, Measured, MemoryRow, OTHERS_SHARE_MAX};
use super::fit::{self, Estimate, Fit, Row};
use super::work::{CPU_TERMS, Work};
use crate::framing::Protocol;
use crate::machine::Machine;

/// The form of the file; another one is refused.
const VERSION: u32 = 1;
/// Terms of user-space memory, in bytes each.
pub const USER_TERMS: [&str; 6] =
    ["process", "shard", "connection_ws", "connection_sse", "window_event", "window_byte"];
/// Terms of kernel memory of both ends on loopback, in bytes each.
pub const KERNEL_TERMS: [&str; 3] = ["shard", "connection_ws", "connection_sse"];
/// Candidates for the interval at which half of `apart` is paid, in milliseconds: around the 40 within which Linux
/// acknowledges. Far from there a fit would only follow noise.
const APART_MS: [f64; 5] = [30.0, 36.0, 43.0, 52.0, 62.0];
/// What a CPU figure is uncertain by: relative, and microseconds per second of a leg.
const CPU_NOISE: (f64, f64) = (0.05, 500.0);
/// What a memory figure is uncertain by: relative, and bytes (of user space, of the kernel).
const MEMORY_NOISE: f64 = 0.02;
const USER_NOISE_BYTES: f64 = (64 << 10) as f64;
const KERNEL_NOISE_BYTES: f64 = (1 << 20) as f64;
/// Above this share of a core deliveries merge, or the receivers are the bottleneck: such points are left out.
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
    /// The largest error of CPU, user memory and kernel memory, as a share of what was measured; at least 0.
    pub error: f64,
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
        let names = CPU_TERMS.map(|(name, _)| name);
        let apart_ms = best_apart_ms(&used);
        let cpu = Fit::of("CPU model", &names, &cpu_rows(&used, apart_ms), seed)?;
        let user = Fit::of("user memory model", &USER_TERMS, &user_rows(&measured.memory), seed)?;
        let kernel = Fit::of("kernel memory model", &KERNEL_TERMS, &kernel_rows(&measured.memory), seed)?;
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
            checked: None,
            measured,
        })
    }

    /// Points that were measured and not fitted, since the machine was full.
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
        self.user.predict(&[1.0, shards, ws, sse, window.0, window.1])
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
            Protocol::Raw => payload_bytes,
        }
    }

    /// Saves the model.
    pub fn save(&self, file: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(file, text).with_context(|| format!("writing the model {}", file.display()))
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
        let fits: [(&Fit, Vec<&str>); 3] = [
            (&self.cpu, CPU_TERMS.map(|(name, _)| name).to_vec()),
            (&self.user, USER_TERMS.to_vec()),
            (&self.kernel, KERNEL_TERMS.to_vec()),
        ];
        for (fit, names) in fits {
            fit.check(&names)?;
        }
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
        if !numbers.into_iter().chain(checked).all(|number| number.is_finite() && number >= 0.0)
            || self.apart_ms == 0.0
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

/// A number in words: whole if it is large, three digits if it is small.
fn number(value: f64) -> String {
    if value >= 100.0 {
        crate::report::grouped(value.round() as u64)
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

fn by_protocol(protocol: Protocol, connections: f64) -> (f64, f64) {
    if protocol == Protocol::Sse { (0.0, connections) } else { (connections, 0.0) }
}

fn cpu_rows(rows: &[&CpuRow], apart_ms: f64) -> Vec<Row> {
    let row = |row: &&CpuRow| {
        let y = row.cpu_ns as f64 / 1e3;
        // A leg in which the server had to share its CPU says less.
        let disturbed = 1.0 + row.others_share / OTHERS_SHARE_MAX;
        let sigma = (CPU_NOISE.0 * y).hypot(CPU_NOISE.1 * row.seconds) * disturbed;
        Row { x: Work::of(row).amounts(apart_ms), y, sigma }
    };
    rows.iter().map(row).collect()
}

/// The candidate that leaves least unexplained.
fn best_apart_ms(rows: &[&CpuRow]) -> f64 {
    let loss = |apart_ms: f64| fit::loss(&cpu_rows(rows, apart_ms), CPU_TERMS.len());
    APART_MS.into_iter().min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap_or(APART_MS[0])
}

fn user_rows(rows: &[MemoryRow]) -> Vec<Row> {
    let row = |row: &MemoryRow| {
        let (ws, sse) = by_protocol(row.protocol, row.connections as f64);
        let y = row.user_bytes as f64;
        let used = f64::from(u8::from(row.connections > 0));
        let x = vec![1.0, used, ws, sse, row.window_events as f64, row.window_bytes as f64];
        Row { x, y, sigma: (MEMORY_NOISE * y).hypot(USER_NOISE_BYTES) }
    };
    rows.iter().map(row).collect()
}

/// Rows right after the connections came: later ones hold what the rest of the machine did meanwhile.
fn kernel_rows(rows: &[MemoryRow]) -> Vec<Row> {
    let fresh = rows.iter().filter(|row| row.connections > 0 && row.window_events == 0);
    let row = |row: &MemoryRow| {
        let (ws, sse) = by_protocol(row.protocol, row.connections as f64);
        let y = row.kernel_bytes as f64;
        Row { x: vec![1.0, ws, sse], y, sigma: (MEMORY_NOISE * y).hypot(KERNEL_NOISE_BYTES) }
    };
    fresh.map(row).collect()
}

#[cfg(test)]
pub mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::plan::design::{Group, Load};
    use crate::plan::random::Random;

    /// CPU microseconds, in the order of [`CPU_TERMS`].
    const CPU_TRUTH: [f64; 13] = [700.0, 12.0, 2.0, 2.1, 2.5, 0.4, 0.3, 30.0, 7.0, 5.0, 13.0, 12.0, 9.0];
    const USER_TRUTH: [f64; 6] = [1.3e6, 0.6e6, 145.0, 135.0, 550.0, 1.5];
    const KERNEL_TRUTH: [f64; 3] = [0.5e6, 8_700.0, 8_600.0];
    /// Interval at which half of `apart` is paid.
    const APART_TRUTH: f64 = 43.0;

    fn machine() -> Machine {
        Machine::describe(20_000)
    }

    /// Numbers with noise of a relative size.
    struct Noise(Random, f64);

    impl Noise {
        fn on(&mut self, exact: f64) -> f64 {
            let uniform = |random: &mut Random| random.below(1_000_000) as f64 / 1e6;
            let normal: f64 = (0..12).map(|_| uniform(&mut self.0)).sum::<f64>() - 6.0;
            exact * (1.0 + self.1 * normal)
        }
    }

    fn dot(x: &[f64], truth: &[f64]) -> f64 {
        x.iter().zip(truth).map(|(x, truth)| x * truth).sum()
    }

    /// What a design would show on a machine that is exactly as the model says, but for noise of this relative size.
    fn planted(design: &Design, noise: f64) -> Measured {
        let mut noise = Noise(Random::new(7), noise);
        let mut measured = Measured::default();
        for (round, groups) in design.schedule().iter().enumerate() {
            for group in groups {
                for mut row in cpu_legs(group, round) {
                    let us = dot(&Work::of(&row).amounts(APART_TRUTH), &CPU_TRUTH);
                    row.cpu_ns = noise.on(us * 1e3) as u64;
                    measured.cpu.push(row);
                }
                for mut row in memory_looks(group, round) {
                    row.user_bytes = noise.on(dot(&user_rows(&[row.clone()])[0].x, &USER_TRUTH)) as u64;
                    let (ws, sse) = by_protocol(group.protocol, row.connections as f64);
                    row.kernel_bytes = noise.on(dot(&[1.0, ws, sse], &KERNEL_TRUTH)) as i64;
                    measured.memory.push(row);
                }
            }
        }
        measured
    }

    /// The legs of a group, without their CPU.
    fn cpu_legs(group: &Group, round: usize) -> Vec<CpuRow> {
        let connections = group.connections as u64;
        let idle = CpuRow {
            round,
            kind: Kind::Idle,
            protocol: group.protocol,
            connections: group.connections,
            topics: 1,
            seconds: 1.5,
            rate: 0.0,
            events: 0,
            deliveries: 0,
            payload_bytes: 0,
            frame_bytes: 0.0,
            handshakes: 0,
            closes: 0,
            heartbeats: 0,
            cpu_ns: 0,
            receiver_share: 0.1,
            others_share: 0.0,
        };
        let overhead = if group.protocol == Protocol::Sse { 30.0 } else { 4.0 };
        let loads = group.loads.iter().map(|load| {
            let events = (load.rate * 1.5).ceil() as u64;
            CpuRow {
                kind: Kind::Load,
                rate: load.rate,
                events,
                deliveries: events * connections,
                payload_bytes: load.bytes,
                frame_bytes: load.bytes as f64 + overhead,
                ..idle.clone()
            }
        });
        let heartbeats = if group.heartbeat_ms.is_some() { connections } else { 0 };
        let others = [
            CpuRow { kind: Kind::Open, seconds: 0.3, handshakes: connections, ..idle.clone() },
            CpuRow { kind: Kind::Close, seconds: 0.6, closes: connections, ..idle.clone() },
            CpuRow { heartbeats, ..idle.clone() },
        ];
        loads.chain(others).collect()
    }

    /// The looks at the memory of a group, without what is seen.
    fn memory_looks(group: &Group, round: usize) -> [MemoryRow; 3] {
        let events = |load: &Load| (load.rate * 1.7) as u64;
        let look = |connections, window_events, window_bytes| MemoryRow {
            round,
            protocol: group.protocol,
            connections,
            window_events,
            window_bytes,
            user_bytes: 0,
            kernel_bytes: 0,
        };
        let window_events = group.loads.iter().map(events).sum();
        let window_bytes = group.loads.iter().map(|load| events(load) * load.bytes as u64).sum();
        [look(0, 0, 0), look(group.connections, 0, 0), look(group.connections, window_events, window_bytes)]
    }

    /// A model of planted points with noise of 3 %; fitted once for all tests.
    pub fn model() -> Model {
        static MODEL: LazyLock<Model> = LazyLock::new(|| {
            Model::of(machine(), Design::usual(false), planted(&Design::usual(false), 0.03))
                .expect("a regular design")
        });
        MODEL.clone()
    }

    /// A model with these costs and no uncertainty.
    pub fn exact(cpu: [f64; 13], user: [f64; 6], kernel: [f64; 3]) -> Model {
        let mut model = model();
        let fits = [(&mut model.cpu, &cpu[..]), (&mut model.user, &user), (&mut model.kernel, &kernel)];
        for (fit, values) in fits {
            for (term, value) in fit.terms.iter_mut().zip(values) {
                (term.value, term.low, term.high) = (*value, *value, *value);
            }
            fit.resamples.iter_mut().for_each(|resample| resample.copy_from_slice(values));
            fit.scatter = 0.0;
        }
        model
    }

    #[test]
    fn the_usual_design_finds_planted_costs_and_its_intervals_cover_most_of_them() {
        let model = model();
        let mut covered = 0;
        let truth = CPU_TRUTH.iter().chain(&USER_TRUTH).chain(&KERNEL_TRUTH);
        let terms = || model.cpu.terms.iter().chain(&model.user.terms).chain(&model.kernel.terms);
        for (term, truth) in terms().zip(truth) {
            covered += u32::from(term.low <= *truth && *truth <= term.high);
        }
        let all = terms().count() as u32;
        assert!(covered * 10 >= all * 8, "{covered} of {all} are covered: {:?}", model.cpu.terms);
        for (name, truth) in [("handshake_ws", 13.0), ("close", 9.0), ("heartbeat_ws", 7.0)] {
            let value = model.cpu.value(name);
            assert!((value / truth - 1.0).abs() < 0.1, "{name} {value}");
        }
        assert!((30.0..=62.0).contains(&model.apart_ms), "{}", model.apart_ms);
    }

    #[test]
    fn four_times_the_connections_are_predicted_within_fifteen_percent_from_noisy_points() {
        let model = model();
        let work = Work {
            protocol: Protocol::Ws,
            seconds: 1.0,
            connections: 16_000.0,
            events: 6.0,
            deliveries: 96_000.0,
            rate: 6.0,
            frame_bytes: 504.0,
            handshakes: 0.0,
            closes: 0.0,
            heartbeats: 0.0,
        };
        let truth: f64 = work.amounts(APART_TRUTH).iter().zip(CPU_TRUTH).map(|(x, truth)| x * truth).sum();
        let predicted = model.cpu(&work);
        assert!((predicted.value * 1e6 / truth - 1.0).abs() < 0.15, "{predicted:?} for {truth} µs");
        assert!(predicted.low < predicted.value && predicted.value < predicted.high, "{predicted:?}");
        let user = model.user(Protocol::Ws, 1.0, 16_000.0, (0.0, 0.0)).value;
        assert!((user / (1.9e6 + 145.0 * 16_000.0) - 1.0).abs() < 0.15, "{user}");
        let kernel = model.kernel(Protocol::Ws, 1.0, 16_000.0).value;
        assert!((kernel / (0.5e6 + 8_700.0 * 16_000.0) - 1.0).abs() < 0.15, "{kernel}");
    }

    #[test]
    fn the_quick_design_tells_all_terms_apart_too() {
        let design = Design::usual(true);
        let model = Model::of(machine(), design.clone(), planted(&design, 0.01)).expect("a regular design");
        let delivery = model.cpu.terms[2].value;
        assert!((delivery / CPU_TRUTH[2] - 1.0).abs() < 0.25, "{delivery}");
    }

    #[test]
    fn a_full_core_is_left_out_and_nothing_else_to_fit_is_refused() {
        let mut measured = planted(&Design::usual(false), 0.01);
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
    fn a_design_without_one_protocol_is_refused_with_the_term_that_it_cannot_tell() {
        let mut measured = planted(&Design::usual(false), 0.01);
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
        assert!(refused("json", "{\"version\": 1,").contains("no model"));
        assert!(refused("other", "[]").contains("no model"));
        assert!(refused("version", "{\"version\": 99}").contains("version 99"));
        assert!(refused("part", "{\"version\": 1}").contains("broken"));
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

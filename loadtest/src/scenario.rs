//! Scenarios: a [`Workload`] as a small TOML file, read, changed by flags and checked before
//! anything is started.
//!
//! The scenarios of `loadtest/scenarios/` are part of the program and found by their name; whatever
//! looks like a path is read as a file. A mistake is one line: file, line or key, what is wrong,
//! what is right. Whether this machine can hold the connections is arithmetic over [`Limits`], done
//! here too, with the figures in the message.
//!
//! Not here: what only a server can know (which protocols it speaks) and what only running it can
//! show.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use serde_json::Value;

use crate::fleet::SOCKETS_PER_RECEIVER_MAX;
use crate::framing::Protocol;
use crate::process::sockets_per_process_max;
use crate::workload::{Behaviour, Pace, Workload};
use built_in::{BUILT_IN, BULK, BULK_PARTS};

pub use built_in::{built_in, expand, listed};
pub use check::check;

mod built_in;
mod check;

/// The form of a scenario, for `run --help`.
pub const FORM: &str = r#"A scenario file:
  name = "mine"              # letters, digits, hyphens
  about = "One sentence"
  seconds = 10               # measured, after the warm-up
  warm_up_seconds = 1
  topics = 1                 # event k goes to topic k mod topics, connection k listens to topic k mod topics
  payload_bytes = 200        # of one event's data, at least 36
  keys = 1                   # values of each topic, which its events go round, told by their keys
  speakers = ["ws"]          # in place of one publisher: clients that publish over the data plane and hear themselves, on
                             # each topic one of each kind: "ws" (a message), "json" (a command), "post"
  [publish]
  pace = "rate"              # or "burst" (events, every_ms), "in_flight" (events), "idle", "at_once" (events, posts)
  per_second = 100
  [[subscribers]]            # one table for each kind of subscribers
  protocol = "sse"           # or "ws", "json"
  connections = 1000
  ramp_per_second = 5000     # may be left out
  behaviour = { kind = "steady" } # or "slow" (bytes_per_second), "stalled", "churn" (per_second), "storm" (at_seconds, share)
                             # or "once": whom the server closes is counted and stays away
  listens = "one"            # or "all" topics, by a pattern; "both": by a pattern and one by its name
  slow = "close"             # or "skip", "latest": the subscription's policy; of "latest" the newest value is owed, not all

bulk (pace "at_once") publishes all events of a part at once, as one stream or one POST after the other, and judges:
every subscriber must get every event, none may be closed, and the server's memory must not grow by more than its start
declares for windows, queues and slow sends. Readers of kind "stalled" beside must be closed in time (the server gets
--stall-ms-max 2000 then) and the memory must come back. Any fault is exit status 1. `seconds` is the longest that a part
may take; there is no warm-up, no floor, no page and no interval log. A part can be run by its name.
"#;

/// Receiver processes that are started at most; one holds up to 19,000 sockets where the descriptor
/// limit allows.
const RECEIVERS_MAX: u64 = 64;
/// Sockets that share a source address on loopback.
const SOCKETS_PER_ADDRESS: u64 = 1_000;
/// Files that the rest of the machine may have open.
const FILES_SPARE: u64 = 10_000;

/// Flags that change a scenario.
#[derive(Debug, Clone, Default, Args)]
pub struct Overrides {
    /// Seconds of measurement, in place of the scenario's; the warm-up is not longer then
    #[arg(long, allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// Subscribers in all: scales every crowd of the scenario, and its topics if it has fewer
    /// subscribers then
    #[arg(long)]
    pub connections: Option<usize>,
    /// Events per second, for scenarios that publish at a rate or in bursts
    #[arg(long, value_name = "PER_SECOND", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// Bytes of one event's data, at least the stamp's 36
    #[arg(long, value_name = "BYTES")]
    pub payload_bytes: Option<usize>,
    /// What all subscribers speak, in place of the scenario's: for servers that speak only one of
    /// them
    #[arg(long)]
    pub protocol: Option<Protocol>,
}

/// Finds, reads, changes and checks a scenario: a name, or a path (it holds a `/` or ends in
/// `.toml`).
pub fn load(name_or_path: &str, overrides: &Overrides) -> Result<Workload> {
    let is_path = name_or_path.contains('/') || name_or_path.ends_with(".toml");
    let mut workload = if is_path {
        let text = fs::read_to_string(Path::new(name_or_path))
            .with_context(|| format!("reading the scenario {name_or_path}"))?;
        parse(&text, name_or_path)?
    } else {
        let mut all = BUILT_IN.iter().chain(&BULK_PARTS);
        let (_, text) = all.find(|(name, _)| *name == name_or_path).ok_or_else(|| {
            let names: Vec<_> = BUILT_IN.iter().map(|(name, _)| *name).chain([BULK]).collect();
            anyhow!(
                "there is no scenario {name_or_path:?}; built in: {}; a file needs a path or .toml",
                names.join(", ")
            )
        })?;
        parse(text, &format!("scenario {name_or_path}"))?
    };
    overrides
        .apply(&mut workload)
        .and_then(|()| check(&workload))
        .with_context(|| name_or_path.to_owned())?;
    Ok(workload)
}

/// Reads a workload; `file` is what errors call it. The numbers are not checked yet.
fn parse(text: &str, file: &str) -> Result<Workload> {
    let at = |error: &toml::de::Error| match error.span() {
        Some(span) => format!("{file}: line {}", line_of(text, span.start, quoted(error.message()))),
        None => file.to_owned(),
    };
    let said = |error: toml::de::Error| anyhow!("{}: {}", at(&error), error.message().replace('\n', "; "));
    let given: toml::Table = toml::from_str(text).map_err(said)?;
    let workload: Workload = toml::from_str(text).map_err(said)?;
    // Kinds without options take any key silently; what does not come out again was not understood.
    if let Some(key) = unknown_key(&serde_json::to_value(given)?, &serde_json::to_value(&workload)?) {
        bail!("{file}: line {}: `{key}` means nothing here; remove it", line_of(text, 0, Some(&key)));
    }
    Ok(workload)
}

/// The word in the first pair of backquotes.
fn quoted(message: &str) -> Option<&str> {
    let (_, rest) = message.split_once('`')?;
    rest.split_once('`').map(|(word, _)| word)
}

/// The line number of `start`, or of the first line from there on that sets `key` or holds it as a
/// value: for nested tables an error tells only where the outermost one begins.
fn line_of(text: &str, start: usize, key: Option<&str>) -> usize {
    let first = text.get(..start).unwrap_or_default().matches('\n').count();
    let names = |line: &str| {
        let Some(key) = key else { return false };
        let code = line.split('#').next().unwrap_or_default();
        code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).any(|word| word == key)
    };
    text.lines().skip(first).position(names).map_or(first, |further| first + further) + 1
}

/// The first key of `given` that `known` lacks.
fn unknown_key(given: &Value, known: &Value) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            given.iter().find_map(|(key, value)| match known.get(key) {
                None => Some(key.clone()),
                Some(known) => unknown_key(value, known),
            })
        }
        (Value::Array(given), Value::Array(known)) => {
            given.iter().zip(known).find_map(|(given, known)| unknown_key(given, known))
        }
        _ => None,
    }
}

impl Overrides {
    fn apply(&self, workload: &mut Workload) -> Result<()> {
        if let Some(seconds) = self.seconds {
            if !(seconds.is_finite() && seconds > 0.0) {
                bail!("--seconds {seconds} is no time; give a number above 0");
            }
            // A storm keeps its place in the course of the measurement.
            let factor = seconds / workload.seconds;
            for crowd in &mut workload.subscribers {
                if let Behaviour::Storm { at_seconds, .. } = &mut crowd.behaviour {
                    *at_seconds *= factor;
                }
            }
            workload.seconds = seconds;
            // Who wants a short run has no use for a longer beginning.
            workload.warm_up_seconds = workload.warm_up_seconds.min(seconds);
        }
        if let Some(connections) = self.connections {
            scale(workload, connections)?;
        }
        if let Some(rate) = self.rate {
            if !(rate.is_finite() && rate > 0.0) {
                bail!("--rate {rate} is no rate; give a number of events per second above 0");
            }
            match &mut workload.publish {
                Pace::Rate { per_second } => *per_second = rate,
                Pace::Burst { events, every_ms } => {
                    *every_ms = (*events as f64 * 1e3 / rate).round().max(1.0) as u64;
                }
                Pace::InFlight { .. } | Pace::AtOnce { .. } | Pace::Idle {} => {
                    bail!("--rate does not fit: this scenario publishes neither at a rate nor in bursts");
                }
            }
        }
        if let Some(bytes) = self.payload_bytes {
            workload.payload_bytes = bytes;
        }
        if let Some(protocol) = self.protocol {
            workload.subscribers.iter_mut().for_each(|crowd| crowd.protocol = protocol);
        }
        Ok(())
    }
}

/// Scales the crowds to `connections` in all, their churn with them, and the topics down to the
/// subscribers.
fn scale(workload: &mut Workload, connections: usize) -> Result<()> {
    let total = workload.connections();
    let crowds = workload.subscribers.len();
    if connections < crowds || total == 0 {
        bail!(
            "--connections {connections} is too few for {crowds} crowds of subscribers; give at least {crowds}"
        );
    }
    let share = |of: usize| ((of as u128 * connections as u128 / total as u128) as usize).max(1);
    let largest = (0..crowds).max_by_key(|&at| workload.subscribers[at].connections).unwrap_or(0);
    let others: usize =
        (0..crowds).filter(|&at| at != largest).map(|at| share(workload.subscribers[at].connections)).sum();
    if others >= connections {
        bail!("--connections {connections} is too few for the proportions of {crowds} crowds; give more");
    }
    for (at, crowd) in workload.subscribers.iter_mut().enumerate() {
        let before = crowd.connections;
        crowd.connections = if at == largest { connections - others } else { share(before) };
        if let Behaviour::Churn { per_second } = &mut crowd.behaviour {
            *per_second *= crowd.connections as f64 / before as f64;
        }
    }
    if connections < total {
        workload.topics = workload.topics.min(share(workload.topics));
    }
    Ok(())
}

/// What this machine allows; read once, so that the arithmetic can be tested.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sockets that one process may hold.
    pub sockets_per_process: u64,
    /// Open files of the whole machine (`fs.file-max`).
    pub files: u64,
    /// Ports of one address (`net.ipv4.ip_local_port_range`).
    pub ports: u64,
}

impl Limits {
    /// Of this machine now. What cannot be read does not limit.
    pub fn read() -> Limits {
        let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let ports = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok().and_then(|text| {
            let mut ends = text.split_ascii_whitespace().map_while(|end| end.parse::<u64>().ok());
            Some((ends.next()?, ends.next()?))
        });
        Limits {
            sockets_per_process: sockets_per_process_max(),
            files: number("/proc/sys/fs/file-max").unwrap_or(u64::MAX),
            ports: ports.map_or(u64::MAX, |(low, high)| (high + 1).saturating_sub(low)),
        }
    }

    /// Refuses more connections than descriptors or ports allow. On `loopback` every thousand
    /// connections have a source address of their own; elsewhere all share one.
    pub fn check(&self, connections: u64, loopback: bool) -> Result<()> {
        let each = self.sockets_per_process.min(SOCKETS_PER_RECEIVER_MAX);
        if each == 0 || connections.div_ceil(each) > RECEIVERS_MAX {
            bail!(
                "{connections} connections are too many: the descriptor limit leaves {each} sockets to a process, and \
                 {RECEIVERS_MAX} receiver processes hold {}; raise it with `ulimit -Hn` (as root) or give --connections",
                RECEIVERS_MAX * each
            );
        }
        // On loopback the server's ends are open files of this machine too.
        let files = if loopback { 2 * connections } else { connections } + FILES_SPARE;
        if files > self.files {
            bail!(
                "{connections} connections are too many: their ends and {FILES_SPARE} spare ones are {files} open files, \
                 the machine allows {}; raise it with `sysctl -w fs.file-max={files}` or give --connections",
                self.files
            );
        }
        let (need, why) = match loopback {
            true => (
                connections.min(SOCKETS_PER_ADDRESS),
                "each source address of 127.0.0.0/8 carries up to 1,000",
            ),
            false => (connections, "all come from one source address"),
        };
        if need > self.ports {
            bail!(
                "{connections} connections are too many: {why} and needs {need} ports, ip_local_port_range has {}; \
                 widen it with `sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"` or give --connections",
                self.ports
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Crowd;

    const SMALL: &str = "name = \"small\"\nabout = \"x\"\nseconds = 2\npayload_bytes = 100\n\n[publish]\n\
                         pace = \"rate\"\nper_second = 10\n\n[[subscribers]]\nprotocol = \"sse\"\nconnections = 10\n";

    fn small() -> Workload {
        parse(SMALL, "small.toml").expect("a scenario")
    }

    fn refusal(text: &str) -> String {
        let error = match parse(text, "f.toml") {
            Ok(workload) => check(&workload).expect_err("a mistake"),
            Err(error) => error,
        };
        let line = format!("{error:#}");
        assert!(!line.contains('\n'), "{line}");
        line
    }

    #[test]
    fn every_built_in_scenario_can_be_done_under_its_own_name() {
        let parts = BULK_PARTS.iter().map(|(name, text)| parse(text, name).expect("well formed"));
        for ((name, _), workload) in
            BUILT_IN.iter().zip(built_in().expect("all are well formed")).chain(BULK_PARTS.iter().zip(parts))
        {
            assert_eq!(*name, workload.name);
            check(&workload).unwrap_or_else(|error| panic!("{name}: {error:#}"));
            assert_eq!(load(name, &Overrides::default()).expect("found"), workload);
        }
    }

    #[test]
    fn at_once_is_for_subscribers_that_connect_once() {
        let at_once = SMALL.replace("pace = \"rate\"\nper_second = 10", "pace = \"at_once\"\nevents = 5");
        assert!(refusal(&at_once).contains("kind \"once\""));
        let once = format!("{at_once}behaviour = {{ kind = \"once\" }}\n");
        check(&parse(&once, "f.toml").expect("well formed")).expect("possible");
    }

    #[test]
    fn the_form_in_the_help_is_a_scenario() {
        let (_, text) = FORM.split_once('\n').expect("a title");
        let (text, _) = text.split_once("\nbulk").expect("a scenario, then words");
        check(&parse(text, "help").expect("well formed")).expect("possible");
    }

    #[test]
    fn a_typing_error_is_named_with_its_line_at_every_depth() {
        for (from, to, line, word) in [
            ("seconds", "secnods", 3, "secnods"),
            ("per_second", "per_secnod", 8, "per_secnod"),
            ("\"rate\"", "\"rat\"", 7, "rat"),
            ("connections", "conections", 12, "conections"),
            ("\"sse\"", "\"ssl\"", 11, "ssl"),
            ("connections = 10", "connections = \"ten\"", 12, "ten"),
            (
                "connections = 10",
                "connections = 10\nbehaviour = { kind = \"steady\", speed = 3 }",
                13,
                "speed",
            ),
            (
                "connections = 10",
                "connections = 10\nbehaviour = { kind = \"storm\", share = 1 }",
                13,
                "at_seconds",
            ),
            ("connections = 10", "connections == 10", 12, ""),
        ] {
            let said = refusal(&SMALL.replace(from, to));
            assert!(said.starts_with(&format!("f.toml: line {line}: ")), "{to}: {said}");
            assert!(said.contains(word), "{to}: {said}");
        }
    }

    #[test]
    fn an_impossible_number_is_named_by_its_key() {
        for (from, to, key) in [
            ("seconds = 2", "seconds = nan", "seconds = NaN"),
            ("seconds = 2", "seconds = 0", "seconds = 0"),
            ("seconds = 2", "seconds = 2\ntopics = 0", "topics = 0"),
            ("seconds = 2", "seconds = 2\ntopics = 11", "topics = 11"),
            ("seconds = 2", "seconds = 2\nwarm_up_seconds = -1", "warm_up_seconds = -1"),
            ("seconds = 2", "seconds = 2\nkeys = 0", "keys = 0"),
            ("seconds = 2", "seconds = 2\nspeakers = [\"nats\"]", "speakers = [Nats]"),
            ("seconds = 2", "seconds = 2\nkeys = 2\nspeakers = [\"ws\"]", "speakers"),
            (
                "connections = 10",
                "connections = 10\nslow = \"latest\"\nbehaviour = { kind = \"churn\", per_second = 1 }",
                "slow = \"latest\"",
            ),
            ("payload_bytes = 100", "payload_bytes = 35", "payload_bytes = 35"),
            ("per_second = 10", "per_second = 0", "publish.per_second = 0"),
            ("per_second = 10", "per_second = inf", "publish.per_second = inf"),
            ("per_second = 10", "per_second = nan", "publish.per_second = NaN"),
            ("connections = 10", "connections = 0", "connections = 0"),
            ("connections = 10", "connections = 10\nramp_per_second = 0", "ramp_per_second = 0"),
            (
                "connections = 10",
                "connections = 10\nbehaviour = { kind = \"churn\", per_second = 1e300 }",
                "behaviour.per_second = 1000",
            ),
            (
                "connections = 10",
                "connections = 10\nbehaviour = { kind = \"storm\", at_seconds = 1, share = 1.5 }",
                "share = 1.5",
            ),
            (
                "connections = 10",
                "connections = 10\nbehaviour = { kind = \"storm\", at_seconds = 2, share = 1 }",
                "at_seconds = 2",
            ),
            ("name = \"small\"", "name = \"../x\"", "name = \"../x\""),
        ] {
            let said = refusal(&SMALL.replace(from, to));
            assert!(said.contains(key), "{to}: {said}");
        }
    }

    #[test]
    fn flags_change_time_crowds_rate_and_size() {
        let mut workload = small();
        let storm = Behaviour::Storm { at_seconds: 1.0, share: 1.0 };
        let churn = Behaviour::Churn { per_second: 4.0 };
        workload.subscribers.push(Crowd { behaviour: storm, ..workload.subscribers[0].clone() });
        workload.subscribers.push(Crowd {
            behaviour: churn,
            connections: 80,
            ..workload.subscribers[0].clone()
        });
        let flags = Overrides {
            seconds: Some(4.0),
            connections: Some(50),
            rate: Some(7.0),
            payload_bytes: Some(64),
            protocol: Some(Protocol::Ws),
        };
        flags.apply(&mut workload).expect("possible");
        assert_eq!((workload.seconds, workload.payload_bytes), (4.0, 64));
        assert_eq!(workload.publish, Pace::Rate { per_second: 7.0 });
        assert!(workload.subscribers.iter().all(|crowd| crowd.protocol == Protocol::Ws));
        let crowds: Vec<_> = workload.subscribers.iter().map(|crowd| crowd.connections).collect();
        assert_eq!(crowds, [5, 5, 40]);
        assert_eq!(workload.subscribers[1].behaviour, Behaviour::Storm { at_seconds: 2.0, share: 1.0 });
        assert_eq!(workload.subscribers[2].behaviour, Behaviour::Churn { per_second: 2.0 });
        assert_eq!(workload.warm_up_seconds, 1.0);
        let short = Overrides { seconds: Some(0.4), ..Overrides::default() };
        short.apply(&mut workload).expect("possible");
        assert_eq!((workload.seconds, workload.warm_up_seconds), (0.4, 0.4));
        let few = Overrides { connections: Some(2), ..Overrides::default() };
        assert!(few.apply(&mut workload).expect_err("3 crowds").to_string().contains("--connections 2"));
        workload.publish = Pace::Idle {};
        let rate = Overrides { rate: Some(1.0), ..Overrides::default() };
        assert!(rate.apply(&mut workload).expect_err("idle").to_string().contains("--rate"));
    }

    #[test]
    fn more_connections_than_the_machine_allows_are_refused_with_the_arithmetic() {
        let limits = Limits { sockets_per_process: 100, files: 20_000, ports: 500 };
        for (connections, loopback, words) in [
            (6_401, true, ["6401 connections", "hold 6400", "ulimit"]),
            (5_001, true, ["5001 connections", "20002 open files", "fs.file-max"]),
            (501, true, ["501 connections", "has 500", "ip_local_port_range"]),
            (501, false, ["501 connections", "one source address", "ip_local_port_range"]),
        ] {
            let said = limits.check(connections, loopback).expect_err("too many").to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
        }
        limits.check(500, true).expect("possible");
        assert!(Limits { sockets_per_process: 0, ..limits }.check(1, true).is_err());
    }

    #[test]
    fn a_name_that_is_not_built_in_and_a_file_that_is_absent_are_told() {
        let none = Overrides::default();
        let said = format!("{:#}", load("tickr", &none).expect_err("a typing error"));
        assert!(said.contains("tickr") && said.contains("ticker"), "{said}");
        assert!(format!("{:#}", load("./absent.toml", &none).expect_err("absent")).contains("./absent.toml"));
    }
}

//! The design of experiments: which points are measured, and in which order.
//!
//! A group is one fanwave with its subscribers; its points share the sockets. Every group is
//! measured once per round, groups in a new random order each round and points in a new random
//! order within, so that a drift of the machine spreads over all of them instead of looking like
//! the effect of one. The seed is part of the saved model.

use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::framing::Protocol;
use crate::stamp::STAMP_BYTES;

/// Everything that is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Design {
    /// Repetitions of everything, at least 3: with fewer a disturbed one cannot be told from a good
    /// one.
    pub rounds: usize,
    /// Seconds of one point.
    pub seconds: f64,
    /// Seed of the order.
    pub seed: u64,
    /// What is measured.
    pub group: Vec<Group>,
}

/// One server with its subscribers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// What the subscribers speak.
    pub protocol: Protocol,
    /// How many there are.
    pub connections: usize,
    /// Topics; connection k subscribes to topic k mod topics.
    #[serde(default = "one")]
    pub topics: usize,
    /// Interval of heartbeats, which are then measured on idle connections; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// What is published, one point each.
    #[serde(default)]
    pub loads: Vec<Load>,
}

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Events per second over all topics.
    pub rate: f64,
    /// Bytes of one event's data.
    pub bytes: usize,
}

/// Fewest repetitions.
const ROUNDS_MIN: usize = 3;
/// Designs that are part of the program.
const USUAL: &str = include_str!("../../scenarios/plan/usual.toml");
const QUICK: &str = include_str!("../../scenarios/plan/quick.toml");

fn one() -> usize {
    1
}

impl Design {
    /// The usual design: about three minutes, or half of it.
    pub fn usual(quick: bool) -> Design {
        toml::from_str(if quick { QUICK } else { USUAL }).expect("the tests read it")
    }

    /// A design from a TOML file.
    pub fn read(file: &Path) -> Result<Design> {
        let name = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("reading the design {name}"))?;
        let design: Design = toml::from_str(&text)
            .map_err(|error| anyhow::anyhow!("the design {name} is not usable: {}", error.message()))?;
        design.check().with_context(|| format!("the design {name}"))?;
        Ok(design)
    }

    /// Refuses what cannot be measured.
    pub fn check(&self) -> Result<()> {
        if !(ROUNDS_MIN..=100).contains(&self.rounds) {
            bail!("rounds = {} is not between {ROUNDS_MIN} and 100", self.rounds);
        }
        if !(0.1..=60.0).contains(&self.seconds) {
            bail!("seconds = {} is not between 0.1 and 60", self.seconds);
        }
        if self.group.is_empty() {
            bail!("it has no group: nothing would be measured");
        }
        for group in &self.group {
            if matches!(group.protocol, Protocol::Json | Protocol::Raw) {
                let label = group.protocol.label();
                bail!("protocol = \"{label}\" is no protocol that is planned: give \"ws\" or \"sse\"");
            }
            if group.connections == 0 || group.topics == 0 || group.topics > group.connections {
                bail!("a group needs at least one connection, and one for each topic");
            }
            if group.heartbeat_ms.is_some_and(|ms| !(1_000..=60_000).contains(&ms)) {
                bail!("heartbeat_ms is not between 1,000 and 60,000");
            }
            if group.heartbeat_ms.is_some() && !group.loads.is_empty() {
                bail!("a group with heartbeats is idle: it has no loads");
            }
            for load in &group.loads {
                if !(0.1..=100_000.0).contains(&load.rate) {
                    bail!("rate = {} is not between 0.1 and 100,000 events per second", load.rate);
                }
                if !(STAMP_BYTES..=1 << 20).contains(&load.bytes) {
                    bail!("bytes = {} is not between {STAMP_BYTES} and 1,048,576", load.bytes);
                }
            }
        }
        Ok(())
    }

    /// The rounds in the order of measurement.
    pub fn schedule(&self) -> Vec<Vec<Group>> {
        let mut random = SmallRng::seed_from_u64(self.seed);
        let round = |_| {
            let mut groups = self.group.clone();
            groups.shuffle(&mut random);
            for group in &mut groups {
                group.loads.shuffle(&mut random);
            }
            groups
        };
        (0..self.rounds).map(round).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_designs_can_be_measured() {
        for quick in [false, true] {
            Design::usual(quick).check().expect("usual");
        }
    }

    #[test]
    fn every_round_measures_everything_in_an_order_of_its_own_that_the_seed_repeats() {
        let design = Design::usual(false);
        let rounds = design.schedule();
        assert_eq!(rounds.len(), design.rounds);
        let key = |group: &Group| (group.connections, group.protocol.label(), group.loads.len());
        let mut expected: Vec<_> = design.group.iter().map(key).collect();
        expected.sort_unstable();
        for round in &rounds {
            let mut keys: Vec<_> = round.iter().map(key).collect();
            keys.sort_unstable();
            assert_eq!(keys, expected);
        }
        assert_ne!(rounds[0], rounds[1]);
        assert_eq!(rounds, design.schedule());
    }

    #[test]
    fn impossible_designs_are_refused_by_name() {
        let usual = Design::usual(true);
        let with = |change: fn(&mut Design)| {
            let mut design = usual.clone();
            change(&mut design);
            design.check().expect_err("impossible").to_string()
        };
        assert!(with(|design| design.rounds = 2).contains("rounds"));
        assert!(with(|design| design.seconds = f64::NAN).contains("seconds"));
        assert!(with(|design| design.group.clear()).contains("no group"));
        assert!(with(|design| design.group[0].protocol = Protocol::Raw).contains("raw"));
        assert!(with(|design| design.group[0].connections = 0).contains("connection"));
        assert!(with(|design| design.group[0].topics = 501).contains("topic"));
        assert!(with(|design| design.group[0].loads[0].rate = -1.0).contains("rate"));
        assert!(with(|design| design.group[0].loads[0].rate = f64::NAN).contains("rate"));
        assert!(with(|design| design.group[0].loads[0].bytes = 1).contains("bytes"));
        assert!(with(|design| design.group[0].heartbeat_ms = Some(1)).contains("heartbeat_ms"));
        assert!(with(|design| design.group[0].heartbeat_ms = Some(1_000)).contains("idle"));
    }

    #[test]
    fn a_design_file_that_is_absent_or_has_a_typo_is_told_by_name() {
        let error = format!("{:#}", Design::read(Path::new("no-such.toml")).expect_err("absent"));
        assert!(error.contains("no-such.toml"), "{error}");
        let file = std::env::temp_dir().join(format!("fanwave-design-{}.toml", std::process::id()));
        std::fs::write(&file, "rounds = 3\nseconds = 1\nseed = 1\ngruop = []\n").expect("writable");
        let error = format!("{:#}", Design::read(&file).expect_err("typo"));
        std::fs::remove_file(&file).expect("removable");
        assert!(error.contains("gruop") && !error.contains('\n'), "{error}");
    }
}

//! What a user asks the planner, and the nodes that there are to answer with.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::framing::Protocol;

/// The most of anything: beyond it the arithmetic means nothing.
const MOST: f64 = 1e10;

/// What is asked; how much of everything, and on what.
#[derive(Debug, Clone, Args)]
pub struct QuestionArgs {
    /// Subscribers; with it the planner answers
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    subscribers: Option<f64>,
    #[command(flatten)]
    question: Question,
}

/// The question: how many subscribers, how much, on what.
#[derive(Debug, Clone, PartialEq, Serialize, Args)]
pub struct Question {
    /// Subscribers, at least 1.
    #[arg(skip)]
    pub subscribers: f64,
    /// Events per second over all topics
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub rate: f64,
    /// Bytes of one event's data
    #[arg(long, value_name = "B", default_value_t = 200.0, allow_negative_numbers = true)]
    pub bytes: f64,
    /// What the subscribers speak
    #[arg(long, default_value = "ws")]
    pub protocol: Protocol,
    /// Subscribers that leave and others that come, per second
    #[arg(long, value_name = "C", default_value_t = 0.0, allow_negative_numbers = true)]
    pub churn: f64,
    /// Topics; each subscriber has one, each event goes to one
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    pub topics: f64,
    /// Seconds between heartbeats of idle connections (fanwave's --heartbeat-ms)
    #[arg(long, value_name = "SECONDS", default_value_t = 15.0, allow_negative_numbers = true)]
    pub heartbeat: f64,
    /// Cores of one node; fanwave runs one shard on each
    #[arg(long, value_name = "CORES", default_value_t = 4.0, allow_negative_numbers = true)]
    pub node_cores: f64,
    /// Memory of one node that subscribers may take, in GiB
    #[arg(long, value_name = "GIB", default_value_t = 8.0, allow_negative_numbers = true)]
    pub node_memory: f64,
    /// Network of one node, in Gbit/s
    #[arg(long, value_name = "GBIT", default_value_t = 10.0, allow_negative_numbers = true)]
    pub node_network: f64,
    /// The share of cores and network that is planned to be used
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, allow_negative_numbers = true)]
    pub utilisation: f64,
    /// What the nodes share: each reads every event of a stream of JetStream; without it each node is
    /// published to by itself
    #[arg(long)]
    pub source: Option<Shared>,
    /// Nodes more than needed, which may fail or be restarted
    #[arg(long, value_name = "NODES", default_value_t = 1.0, allow_negative_numbers = true)]
    pub spare: f64,
}

/// What nodes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// A stream of NATS JetStream.
    Nats,
}

impl QuestionArgs {
    /// True if nodes read a stream.
    pub fn reads_stream(&self) -> bool {
        self.question.source == Some(Shared::Nats)
    }

    /// The question, if one was asked; an impossible number is refused by its option.
    pub fn question(&self) -> Result<Option<Question>> {
        let Some(subscribers) = self.subscribers else { return Ok(None) };
        let within = |option: &str, value: f64, low: f64, high: f64| {
            if !(low..=high).contains(&value) {
                bail!("--{option} {value} is impossible: it is from {low} to {high}");
            }
            Ok(())
        };
        let whole = |option: &str, value: f64, low: f64, high: f64| {
            if value.fract() != 0.0 {
                bail!("--{option} {value} is no whole number");
            }
            within(option, value, low, high)
        };
        whole("subscribers", subscribers, 1.0, MOST)?;
        let asked = &self.question;
        within("rate", asked.rate, 0.0, 1e7)?;
        within("bytes", asked.bytes, 1.0, 16_777_216.0)?;
        within("churn", asked.churn, 0.0, MOST)?;
        whole("topics", asked.topics, 1.0, subscribers)?;
        within("heartbeat", asked.heartbeat, 1.0, 86_400.0)?;
        whole("node-cores", asked.node_cores, 1.0, 4_096.0)?;
        within("node-memory", asked.node_memory, 0.1, 1e6)?;
        within("node-network", asked.node_network, 0.001, 1e6)?;
        within("utilisation", asked.utilisation, 0.05, 0.95)?;
        whole("spare", asked.spare, 0.0, 1e6)?;
        if asked.protocol == Protocol::Json {
            bail!("--protocol json is not planned: give \"ws\" or \"sse\"");
        }
        Ok(Some(Question { subscribers, ..asked.clone() }))
    }
}

#[cfg(test)]
pub mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        question: QuestionArgs,
    }

    /// What a command line asks.
    pub fn asked(line: &str) -> Result<Option<Question>> {
        let words = std::iter::once("plan").chain(line.split_whitespace());
        Line::try_parse_from(words).expect("options that exist").question.question()
    }

    #[test]
    fn nothing_is_asked_without_subscribers() {
        assert_eq!(asked("--rate 5").expect("possible"), None);
        let question =
            asked("--subscribers 100000 --rate 2.5 --protocol sse").expect("possible").expect("asked");
        assert_eq!((question.subscribers, question.rate, question.bytes), (100_000.0, 2.5, 200.0));
        assert_eq!(question.protocol, Protocol::Sse);
    }

    #[test]
    fn an_impossible_number_is_refused_in_one_line_by_its_option() {
        for (line, option) in [
            ("--subscribers 0", "--subscribers 0"),
            ("--subscribers -5", "--subscribers -5"),
            ("--subscribers 1.5", "--subscribers 1.5"),
            ("--subscribers NaN", "--subscribers NaN"),
            ("--subscribers inf", "--subscribers inf"),
            ("--subscribers 10 --rate -1", "--rate -1"),
            ("--subscribers 10 --rate NaN", "--rate NaN"),
            ("--subscribers 10 --bytes 0", "--bytes 0"),
            ("--subscribers 10 --churn -0.1", "--churn -0.1"),
            ("--subscribers 10 --topics 11", "--topics 11"),
            ("--subscribers 10 --topics 0", "--topics 0"),
            ("--subscribers 10 --heartbeat 0", "--heartbeat 0"),
            ("--subscribers 10 --node-cores 0", "--node-cores 0"),
            ("--subscribers 10 --node-cores 1.5", "--node-cores 1.5"),
            ("--subscribers 10 --node-memory 0", "--node-memory 0"),
            ("--subscribers 10 --node-network 0", "--node-network 0"),
            ("--subscribers 10 --utilisation 1", "--utilisation 1"),
            ("--subscribers 10 --spare -1", "--spare -1"),
            ("--subscribers 10 --protocol json", "--protocol json"),
        ] {
            let error = asked(line).expect_err(line).to_string();
            assert!(error.starts_with(option) && !error.contains('\n'), "{line}: {error}");
        }
    }
}

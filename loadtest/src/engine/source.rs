//! Where a run's events come from: a publisher process on an open loop, or a publisher in this
//! process that waits for arrivals.
//!
//! An open loop needs a clock of its own, which nothing here can hold up, so it is a process. A
//! closed loop publishes when something has arrived, which is known here, so it is in this process
//! and its CPU is ours.

use anyhow::{Context, Result, bail};

use crate::publisher::{PublishPlan, PublishProcess, PublishSample, Publisher};
use crate::target::Target;
use crate::usage::own_cpu_ns;
use crate::workload::{Pace, Workload};

/// The publisher of a run.
pub enum Source {
    /// Open loop.
    Process(PublishProcess),
    /// Closed loop, and the last events of an idle run.
    Own {
        /// It.
        publisher: Publisher,
        /// Events published and this process's CPU at the last sample.
        sampled: (u64, u64),
    },
}

impl Source {
    /// Connects; pinned to `cpu` if it is a process.
    pub fn start(target: &Target, workload: &Workload, cpu: Option<usize>) -> Result<Source> {
        let plan = PublishPlan::of(target, workload)?;
        match workload.publish {
            Pace::Rate { .. } | Pace::Burst { .. } => PublishProcess::start(&plan, cpu).map(Source::Process),
            Pace::InFlight { .. } | Pace::AtOnce { .. } | Pace::Idle {} => {
                let publisher = Publisher::connect(&plan)?;
                Ok(Source::Own { publisher, sampled: (0, own_cpu_ns()) })
            }
        }
    }

    /// Begins to publish at a pace for a time; [`is_done`](Self::is_done) tells when it has.
    pub fn go(&mut self, pace: Pace, seconds: f64) -> Result<()> {
        match self {
            Source::Process(process) => process.go(pace, seconds),
            Source::Own { .. } => bail!("a closed loop has no pace"),
        }
    }

    /// True once what [`go`](Self::go) asked for has been published.
    pub fn is_done(&mut self) -> Result<bool> {
        match self {
            Source::Process(process) => Ok(process.poll()?.is_some()),
            Source::Own { .. } => Ok(true),
        }
    }

    /// Publishes now, stamped with the present time.
    pub fn publish(&mut self, events: u64) -> Result<()> {
        match self {
            Source::Process(_) => bail!("an open loop publishes by its own clock"),
            Source::Own { publisher, .. } => publisher.publish(events),
        }
    }

    /// Keeps the connection alive while nothing is published; a process does so by itself.
    pub fn tend(&mut self) -> Result<()> {
        match self {
            Source::Process(_) => Ok(()),
            Source::Own { publisher, .. } => publisher.tend(),
        }
    }

    /// Events published since the start.
    pub fn published(&self) -> u64 {
        match self {
            Source::Process(process) => process.next() - 1,
            Source::Own { publisher, .. } => publisher.next() - 1,
        }
    }

    /// True if the publisher's CPU is this process's.
    pub fn is_own(&self) -> bool {
        matches!(self, Source::Own { .. })
    }

    /// What happened since the last sample.
    pub fn sample(&mut self) -> Result<PublishSample> {
        match self {
            Source::Process(process) => process.sample(),
            Source::Own { publisher, sampled } => {
                let now = (publisher.next() - 1, own_cpu_ns());
                let (published, cpu_ns) = (now.0 - sampled.0, now.1 - sampled.1);
                *sampled = now;
                Ok(PublishSample { published, refused: 0, lateness: Vec::new(), cpu_ns })
            }
        }
    }

    /// Ends it; the server must have taken every event that it did not refuse.
    pub fn finish(self) -> Result<()> {
        match self {
            Source::Process(process) => process.finish().map(drop),
            Source::Own { publisher, .. } => publisher.finish().map(drop),
        }
        .context("ending the publisher")
    }
}

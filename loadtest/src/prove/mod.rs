//! The proofs: each command measures one promise of the server and prints the figure beside what
//! was promised.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::machine::Machine;
use crate::process::{check_cpus, check_sockets, pin_self, raise_descriptor_limit};
use crate::publisher::Publisher;
use crate::receiver::CrowdSetup;
use crate::report::check_place;
use crate::server::{self, Doors, FanwaveArgs, Running, ServerChoice};
use crate::target::Target;
use crate::workload::{Listens, Slow};

pub mod cells;
pub mod cpu;
pub mod floor;
pub mod generator;
pub mod handshakes;
pub mod isolation;
pub mod lanes;
pub mod leg;
pub mod memory;
pub mod neighbours;
pub mod publish;
pub mod scale;
pub mod silent;
pub mod syscalls;
pub mod topic;

/// The longest time from a publish to its arrival on every connection.
pub const ARRIVE_LIMIT: Duration = Duration::from_secs(20);
/// Connections that one side opens before the next opens as many.
const OPENED_IN_TURN: usize = 50;

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// CPU of the sender: the server or the floor
    #[arg(long, global = true, value_name = "CPU", default_value_t = 0)]
    pub sender_cpu: usize,
    /// CPU of the receivers and of the coordinator
    #[arg(long, global = true, value_name = "CPU", default_value_t = 1)]
    pub receiver_cpu: usize,
    /// Save the results as JSON with machine, command line and commit: of the checkout around you,
    /// not of the program
    #[arg(long, global = true, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Options of commands that start a server.
#[derive(Debug, Clone, Args)]
pub struct ServerArgs {
    /// The fanwave program; it is started as `PROGRAM serve …` for this measurement alone
    #[arg(long = "server", value_name = "PROGRAM")]
    pub program: PathBuf,
    /// A further argument for `serve`; repeatable
    #[arg(long = "server-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub more: Vec<String>,
    #[command(flatten)]
    pub doors: Doors,
}

/// What a command knows beside its own options.
#[derive(Debug)]
pub struct Bench {
    /// Where it runs.
    pub machine: Machine,
    /// Options of every command.
    pub common: Common,
}

impl Bench {
    /// Prepares a measurement with this process beside the receivers.
    pub fn pinned(common: Common) -> Result<Bench> {
        let receiver_cpu = common.receiver_cpu;
        check_cpus(common.sender_cpu, receiver_cpu)?;
        let bench = Bench::unpinned(common)?;
        pin_self(receiver_cpu)?;
        Ok(bench)
    }

    /// Prepares a measurement in which CPUs do not matter.
    pub fn unpinned(common: Common) -> Result<Bench> {
        common.json.as_deref().map_or(Ok(()), check_place)?;
        Ok(Bench { machine: Machine::describe(raise_descriptor_limit()?), common })
    }

    /// Subscribers of a server on the receivers' CPU.
    pub fn subscribers(&self, target: &Target, protocol: Protocol) -> Result<CrowdSetup> {
        self.subscribers_of(target, protocol, Listens::One, None)
    }

    /// The same with what each of them hears, and what happens to one that falls behind.
    pub fn subscribers_of(
        &self,
        target: &Target,
        protocol: Protocol,
        listens: Listens,
        slow: Option<Slow>,
    ) -> Result<CrowdSetup> {
        let subscription = target.subscription(protocol, listens, slow);
        let (path, commands) =
            subscription.with_context(|| format!("{} does not speak {}", target.name, protocol.label()))?;
        let (dialect, cpu) = (target.dialect, Some(self.common.receiver_cpu));
        let hears_all = listens != Listens::One;
        let steady = CrowdSetup::steady(target.subscribe, protocol, path);
        let (tls, secret) = (target.tls.clone(), target.secret.clone());
        let streams = target.streams(protocol);
        Ok(CrowdSetup { dialect, cpu, commands, hears_all, tls, streams, secret, ..steady })
    }
}

impl ServerArgs {
    /// The server that is meant.
    pub fn choice(&self) -> ServerChoice {
        let fanwave = FanwaveArgs { program: Some(self.program.clone()), more: self.more.clone() };
        ServerChoice { fanwave, doors: self.doors.clone(), ..ServerChoice::default() }
    }

    /// Asks a server of its own, with `more` arguments, of one shard on the sender's CPU.
    pub fn ask<T>(
        &self,
        bench: &Bench,
        more: &[String],
        ask: impl FnOnce(&Running) -> Result<T>,
    ) -> Result<T> {
        server::ask(&self.choice(), Some(bench.common.sender_cpu), 1, more, ask)
    }
}

/// Opens `connections` connections on each of the sides that are to be compared; `open` opens so
/// many more on every one of them, until the last time a multiple of `multiple`.
///
/// Whichever side opens all of its own first comes out dearer, at 9,000 connections by 1 to 3 %,
/// also where both sides are floors; probably its sockets lie worse in the kernel's memory. So they
/// are opened in turns. One of the sides is a floor.
pub fn open_in_turns(
    connections: usize,
    multiple: usize,
    mut open: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    // Before thousands are open rather than at the first too many.
    check_sockets("the floor's sender", connections as u64)?;
    let mut left = connections;
    while left > 0 {
        let some = left.min(OPENED_IN_TURN.next_multiple_of(multiple));
        open(some)?;
        left -= some;
    }
    Ok(())
}

/// Publishes `events` events one by one, each after the one before has arrived everywhere. The
/// fleet counts from there on.
pub fn publish_one_by_one(publisher: &mut Publisher, fleet: &mut Fleet, events: u64) -> Result<()> {
    fleet.zero(publisher.next(), 0)?;
    for event in 1..=events {
        publisher.publish(1)?;
        fleet.wait_for(event, ARRIVE_LIMIT, publisher.next() - 1)?;
    }
    Ok(())
}

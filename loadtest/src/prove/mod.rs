//! The proofs: each command measures one promise of the server and prints the figure beside what
//! was promised.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::framing::Protocol;
use crate::machine::Machine;
use crate::process::{check_cpus, check_sockets, pin_self, raise_descriptor_limit};
use crate::publisher::{PublishPlan, Publisher};
use crate::report::check_place;
use crate::server::Server;
use crate::target::{Way, with_topic};

pub mod cpu;
pub mod floor;
pub mod generator;
pub mod isolation;
pub mod leg;
pub mod memory;
pub mod neighbours;
pub mod scale;
pub mod syscalls;

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
}

/// The subscriber path of the proofs' topic.
pub fn path(protocol: Protocol) -> String {
    with_topic(&format!("/{}/{{topic}}", protocol.label()), 0)
}

/// A publisher of the proofs' topic.
pub fn publisher(server: &Server, way: Way, payload_bytes: usize) -> Result<Publisher> {
    if !matches!(way, Way::Stream | Way::Post) {
        bail!("fanwave takes stamped events by stream or post; give --way stream or --way post");
    }
    let path = "/topics/{topic}".into();
    Publisher::connect(&PublishPlan { address: server.control, way, path, topics: 1, payload_bytes })
}

/// Opens `connections` connections on each of the sides that are to be compared; `open` opens so
/// many more on every one of them.
///
/// Whichever side opens all of its own first comes out dearer, at 9,000 connections by 1 to 3 %,
/// also where both sides are floors; probably its sockets lie worse in the kernel's memory. So they
/// are opened in turns. One of the sides is a floor.
pub fn open_in_turns(connections: usize, mut open: impl FnMut(usize) -> Result<()>) -> Result<()> {
    // Before thousands are open rather than at the first too many.
    check_sockets("the floor's sender", connections as u64)?;
    let mut left = connections;
    while left > 0 {
        let some = left.min(OPENED_IN_TURN);
        open(some)?;
        left -= some;
    }
    Ok(())
}

/// Publishes `events` events one by one, each after the one before has arrived everywhere.
/// `arrived` waits until so many events since zero have arrived.
pub fn publish_one_by_one(
    publisher: &mut Publisher,
    events: u64,
    mut arrived: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    for event in 1..=events {
        publisher.publish(1)?;
        arrived(event, publisher.next() - 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_opened_some_at_a_time_and_no_more_than_there_is_room_for() {
        let mut steps = Vec::new();
        open_in_turns(120, |some| {
            steps.push(some);
            Ok(())
        })
        .expect("there is room for 120");
        assert_eq!(steps, [50, 50, 20]);
        open_in_turns(usize::MAX, |_| panic!("refused before the first is open")).expect_err("too many");
    }
}

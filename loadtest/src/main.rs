//! `loadtest`: measures a fan-out server from outside, with the kernel's floor beside every figure.
//!
//! One coordinator (this process) starts everything else as processes pinned to CPUs: the server
//! under test, the floor's sender, receivers that hold the subscribers' sockets, a publisher with a
//! clock of its own. Servers are driven through their public interfaces only.
//!
//! Reading order: `workload` (what is asked), `target` (of whom), `outcome` (what it showed) are
//! the vocabulary. Commands: `run` and `knee` do a `scenario` by way of `engine`, or `bulk` where
//! all events come at once; `compare` puts rivals side by side; `plan` fits a cost model and
//! answers from it; `prove/` measures one promise each. They stand on `server` (starts who is
//! measured), `publisher`, and `fleet`, which drives `receiver` processes over a `link`; a receiver
//! splits bytes with `framing` and checks them with `audit`. `floor` and `usage` say what the
//! kernel and a process cost, `fault` whose error it is. Results leave through `report` (tables,
//! JSON), `page` (HTML), `hlog`, with their units in `unit`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use machine::Machine;
use prove::{Bench, Common};

mod audit;
mod bulk;
mod compare;
mod engine;
mod fault;
mod fleet;
mod floor;
mod framing;
mod hlog;
mod http;
mod knee;
mod link;
mod machine;
mod outcome;
mod page;
mod plan;
mod process;
mod prove;
mod publisher;
mod receiver;
mod report;
mod run;
mod scenario;
mod server;
mod stamp;
mod target;
mod unit;
mod usage;
mod workload;

/// Measures a fan-out server from outside, with the kernel's floor beside every figure.
///
/// Each command starts what it needs on loopback, checks every delivery, prints a table and ends by
/// itself. Sender and receivers are pinned to two CPUs; leave those alone meanwhile. Absolute
/// figures drift with the machine: compare ratios within one run.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Scenarios against a server: latencies, cost, memory, and whether every event arrived once
    /// and in order
    #[command(after_long_help = scenario::FORM)]
    Run {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Box<run::RunArgs>,
    },
    /// The highest rate that a server carries before latencies or deliveries break
    Knee {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: Box<knee::KneeArgs>,
    },
    /// fanwave and its rivals under the same workload, beside the floor
    Compare {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: compare::CompareArgs,
    },
    /// How many servers a number of subscribers and events needs: measures a cost model, answers
    /// from it
    Plan {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: plan::PlanArgs,
    },
    /// What this kernel charges for a bare send(2) loop, and for io_uring sends, over the same kind
    /// of sockets
    Floor {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::floor::FloorArgs,
    },
    /// CPU per delivery of the server, interleaved with the floor
    Cpu {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::cpu::CpuArgs,
    },
    /// System calls of the server per 1,000 deliveries (needs strace)
    Syscalls {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::syscalls::SyscallsArgs,
    },
    /// Resident memory of the server per idle connection
    Memory {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::memory::MemoryArgs,
    },
    /// Very many idle subscribers, and events that reach every one of them
    Scale {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::scale::ScaleArgs,
    },
    /// What one stalled reader costs the others and the server
    Isolation {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::isolation::IsolationArgs,
    },
    /// What large events, a busy topic and listings cost others on the same server
    Neighbours {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::neighbours::NeighboursArgs,
    },
    /// CPU per delivery of this load generator, beside a bare receive loop
    Generator {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        args: prove::generator::GeneratorArgs,
    },
    /// A receiver process (started by the other commands)
    #[command(hide = true)]
    Receiver,
    /// A publisher process on an open loop (started by the other commands)
    #[command(hide = true)]
    Publisher,
    /// The floor's sender process (started by the other commands)
    #[command(hide = true)]
    FloorSender,
    /// Become another program, pinned to a CPU (started by the other commands)
    #[command(hide = true)]
    Pin {
        #[arg(long)]
        cpu: Option<usize>,
        #[arg(long)]
        parent: u32,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // Who has closed standard error learns it from the exit code.
            let _ = writeln!(std::io::stderr(), "loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run { common, args } => run::run(&bench(common)?, &args)?,
        Command::Knee { common, args } => knee::run(&bench(common)?, &args)?,
        Command::Compare { common, args } => compare::run(&bench(common)?, &args)?,
        Command::Plan { common, args } => plan::run(common, &args)?,
        Command::Floor { common, args } => prove::floor::run(&bench(common)?, &args)?,
        Command::Cpu { common, args } => prove::cpu::run(&bench(common)?, &args)?,
        Command::Syscalls { common, args } => prove::syscalls::run(&bench(common)?, &args)?,
        Command::Memory { common, args } => prove::memory::run(&bench(common)?, &args)?,
        Command::Scale { common, args } => prove::scale::run(&unpinned(common)?, &args)?,
        Command::Isolation { common, args } => prove::isolation::run(&bench(common)?, &args)?,
        Command::Neighbours { common, args } => prove::neighbours::run(&bench(common)?, &args)?,
        Command::Generator { common, args } => prove::generator::run(&bench(common)?, &args)?,
        Command::Receiver => return receiver::run(),
        Command::Publisher => return publisher::run(),
        Command::FloorSender => floor::run()?,
        Command::Pin { cpu, parent, command } => return Err(process::become_pinned(cpu, parent, &command)),
    }
    report::said()?;
    Ok(ExitCode::SUCCESS)
}

/// Prepares a measurement with this process beside the receivers.
fn bench(common: Common) -> Result<Bench> {
    let receiver_cpu = common.receiver_cpu;
    process::check_cpus(common.sender_cpu, receiver_cpu)?;
    let bench = unpinned(common)?;
    process::pin_self(receiver_cpu)?;
    Ok(bench)
}

/// Prepares a measurement in which CPUs do not matter.
fn unpinned(common: Common) -> Result<Bench> {
    common.json.as_deref().map_or(Ok(()), report::check_place)?;
    let descriptors = process::raise_descriptor_limit()?;
    Ok(Bench { machine: Machine::describe(descriptors), common })
}

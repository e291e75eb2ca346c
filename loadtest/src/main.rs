//! `loadtest`: measures a fan-out server from outside, with the kernel's floor beside every figure.
//!
//! One coordinator (this process) starts everything else as processes pinned to CPUs: the server
//! under test, the floor's sender, receivers that hold the subscribers' sockets, a publisher with a
//! clock of its own. Servers are driven through their public interfaces only.
//!
//! Reading order: `workload` (what is asked), `target` (of whom), `outcome` (what it showed) are
//! the vocabulary. Commands: `run` and `knee` do a `scenario` by way of `engine`, or `bulk` where
//! all events come at once, or `cluster` where there are several nodes, which `recovery` kills;
//! `compare` puts rivals side by side; `plan` fits a cost model and answers from it; `prove/`
//! measures one promise each, by `prove::cells` where it is CPU. They stand on `server` (starts who
//! is measured), `publisher`, and `fleet`, which drives `receiver` processes over a `link`; a
//! receiver splits bytes with `framing` and checks them with `audit`, behind TLS where that is
//! spoken; `token` signs what bearers bring. `floor` and `usage` say what the kernel and a process
//! cost, `fault` whose error it is. Results leave through `report` (tables, JSON), `page` (HTML),
//! `hlog`, with their units in `unit`.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use prove::{Bench, Common};

mod audit;
mod bulk;
mod cluster;
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
mod secure;
mod server;
mod stamp;
mod target;
mod token;
mod unit;
mod usage;
mod way;
mod workload;

/// Measures a fan-out server from outside, with the kernel's floor beside every figure.
///
/// Each command starts what it needs on loopback, checks every delivery, prints a table and ends by
/// itself. Sender and receivers are pinned to two CPUs; leave those alone meanwhile. Absolute
/// figures drift with the machine: compare ratios within one run.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Scenarios against a server: latencies, cost, memory, and whether every event arrived once
    /// and in order
    #[command(after_long_help = scenario::FORM)]
    Run(Box<run::RunArgs>),
    /// The highest rate that a server carries before latencies or deliveries break
    Knee(Box<knee::KneeArgs>),
    /// fanwave and its rivals under the same workload, beside the floor
    Compare(Box<compare::CompareArgs>),
    /// How many servers a number of subscribers and events needs: measures a cost model, answers
    /// from it
    Plan(Box<plan::PlanArgs>),
    /// How long a cluster takes to be well again when one of its processes is killed under load, and
    /// that nothing acknowledged is lost
    Recovery(Box<cluster::RecoveryArgs>),
    /// What this kernel charges for a bare send(2) loop, and for io_uring sends, over the same kind
    /// of sockets
    Floor(prove::floor::FloorArgs),
    /// CPU per delivery of the server, interleaved with the floor
    Cpu(prove::cpu::CpuArgs),
    /// CPU per delivery as JSON, by a pattern and to subscribers that want the latest, beside a
    /// plain WebSocket's
    Lanes(prove::lanes::LanesArgs),
    /// System calls of the server per 1,000 deliveries (needs strace)
    Syscalls(prove::syscalls::SyscallsArgs),
    /// Resident memory of the server per idle connection
    Memory(prove::memory::MemoryArgs),
    /// Very many idle subscribers, and events that reach every one of them
    Scale(prove::scale::ScaleArgs),
    /// What one stalled reader costs the others and the server
    Isolation(prove::isolation::IsolationArgs),
    /// What thousands of silent connections from one address cost those who come from others
    Silent(prove::silent::SilentArgs),
    /// What large events, a busy topic and listings cost others on the same server
    Neighbours(prove::neighbours::NeighboursArgs),
    /// Single publishes per second of the server's CPU: by POST, WebSocket and JSON, beside nchan's
    Publish(prove::publish::PublishArgs),
    /// TLS handshakes per second of the server's CPU, beside bare ones of rustls, and what a storm of
    /// them costs live subscribers
    Handshakes(prove::handshakes::HandshakesArgs),
    /// CPU per delivery of this load generator, beside a bare receive loop
    Generator(prove::generator::GeneratorArgs),
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
    let Cli { common, command } = Cli::parse();
    match run(common, command) {
        Ok(code) => code,
        Err(error) => {
            // Who has closed standard error learns it from the exit code.
            let _ = writeln!(std::io::stderr(), "loadtest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(common: Common, command: Command) -> Result<ExitCode> {
    let bench = || Bench::pinned(common.clone());
    match command {
        Command::Run(args) if args.needs_all_cpus() => run::run(&Bench::unpinned(common)?, &args)?,
        Command::Run(args) => run::run(&bench()?, &args)?,
        Command::Knee(args) => knee::run(&bench()?, &args)?,
        Command::Compare(args) => compare::run(&bench()?, &args)?,
        Command::Plan(args) => plan::run(common, &args)?,
        Command::Recovery(args) => cluster::recovery::run(&Bench::unpinned(common)?, &args)?,
        Command::Floor(args) => prove::floor::run(&bench()?, &args)?,
        Command::Cpu(args) => prove::cpu::run(&bench()?, &args)?,
        Command::Lanes(args) => prove::lanes::run(&bench()?, &args)?,
        Command::Syscalls(args) => prove::syscalls::run(&bench()?, &args)?,
        Command::Memory(args) => prove::memory::run(&bench()?, &args)?,
        Command::Scale(args) => prove::scale::run(&Bench::unpinned(common)?, &args)?,
        Command::Isolation(args) => prove::isolation::run(&bench()?, &args)?,
        Command::Silent(args) => prove::silent::run(&bench()?, &args)?,
        Command::Neighbours(args) => prove::neighbours::run(&bench()?, &args)?,
        Command::Publish(args) => prove::publish::run(&bench()?, &args)?,
        Command::Handshakes(args) => prove::handshakes::run(&bench()?, &args)?,
        Command::Generator(args) => prove::generator::run(&bench()?, &args)?,
        Command::Receiver => return receiver::run(),
        Command::Publisher => return publisher::run(),
        Command::FloorSender => floor::run()?,
        Command::Pin { cpu, parent, command } => return Err(process::become_pinned(cpu, parent, &command)),
    }
    report::said()?;
    Ok(ExitCode::SUCCESS)
}

//! plan
pub mod design;
pub mod experiments;
pub mod fit;
pub mod kernel;
pub mod model;
pub mod random;

use std::path::PathBuf;
use anyhow::Result;
use clap::Args;
use crate::prove::{Bench, ServerArgs};

/// Options of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[arg(long)]
    points: Option<PathBuf>,
    #[arg(long)]
    quick: bool,
}

pub fn run(bench: &Bench, args: &PlanArgs) -> Result<()> {
    let design = match &args.points { Some(file) => design::Design::read(file)?, None => design::Design::usual(args.quick) };
    let stand = experiments::Stand { program: &args.server.program, more: &args.server.more, server_cpu: bench.common.sender_cpu, receiver_cpu: bench.common.receiver_cpu };
    let start = std::time::Instant::now();
    let measured = experiments::measure(&stand, &design)?;
    crate::report::say(&format!("{:?}", start.elapsed()));
    crate::report::save(bench.common.json.as_deref(), "plan", &bench.machine, &measured)
}

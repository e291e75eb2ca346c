//! `loadtest plan`: how many servers a number of subscribers and events needs.
//!
//! A few minutes of measuring (`design`, `experiments`) give points, whose `rows` make by least
//! squares (`fit`) a cost `model` of a shard's `work`, which is saved as JSON. A `question` is then
//! answered (`answer`) from a saved model by arithmetic alone, on any machine, with what must be
//! set there (`settings`). `held_out` measures a point outside of the fit and tells how wrong the
//! prediction was. `stream` measures what nodes pay for a stream that they share. `caveats` says
//! what to know of the model behind it, `show` words it all. `planted` is what the tests stand on.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use self::answer::Answer;
use self::design::Design;
use self::experiments::Stand;
use self::held_out::{HeldOut, HeldOutArgs};
use self::model::Model;
use self::question::QuestionArgs;
use crate::machine::Machine;
use crate::process::{check_sockets, raise_descriptor_limit};
use crate::prove::{Bench, Common};
use crate::report::{check_place, save};
use crate::server::{FanwaveArgs, NatsArgs};

mod answer;
mod caveats;
mod design;
mod experiments;
mod fit;
mod held_out;
mod model;
#[cfg(test)]
mod planted;
mod question;
mod rows;
mod settings;
mod show;
mod stream;
mod work;

/// Options of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    fanwave: FanwaveArgs,
    /// Answer from this saved model instead of measuring one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save", "quick", "points"])]
    model: Option<PathBuf>,
    /// Save the measured model
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Measure fewer points, in about half the time
    #[arg(long)]
    quick: bool,
    /// Measure the points of this TOML file
    #[arg(long, value_name = "FILE", conflicts_with = "quick")]
    points: Option<PathBuf>,
    /// Write a page (HTML) with the model and the answer
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    #[command(flatten)]
    question: QuestionArgs,
    #[command(flatten)]
    held_out: HeldOutArgs,
    #[command(flatten)]
    nats: NatsArgs,
}

/// What `--json` saves.
#[derive(Debug, Serialize)]
struct Plan<'a> {
    /// Absent where the model was read from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a Model>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<&'a HeldOut>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a Answer>,
}

/// Measures or reads a model, and answers.
pub fn run(common: Common, args: &PlanArgs) -> Result<()> {
    // What cannot be answered is refused before minutes are spent on measuring.
    let question = args.question.question()?;
    let loaded = args.model.as_deref().map(Model::load).transpose()?;
    let design = match &args.points {
        Some(file) => Design::read(file)?,
        None => Design::usual(args.quick),
    };
    let stand = || Stand::new(&args.fanwave, common.sender_cpu, common.receiver_cpu);
    // Only who measures needs two CPUs.
    let machine = match loaded.is_none() || args.held_out.held_out {
        true => Bench::pinned(common.clone())?.machine,
        false => Machine::describe(raise_descriptor_limit()?),
    };
    for file in [&args.save, &args.page].into_iter().flatten() {
        check_place(file)?;
    }
    let largest = match &loaded {
        Some(model) => model.domain.connections.1 as usize,
        None => design.group.iter().map(|group| group.connections).max().unwrap_or(0),
    };
    match args.held_out.held_out {
        true => check_sockets("the held-out point", args.held_out.connections(largest) as u64)?,
        false if loaded.is_none() => check_sockets("the largest group", largest as u64)?,
        false => {}
    }
    let measured = loaded.is_none();
    let mut model = match loaded {
        Some(model) => model,
        None => {
            // First, so that a nats-server that is missing costs no time.
            let stream =
                args.question.reads_stream().then(|| stream::measure(&stand()?, &args.nats)).transpose()?;
            let measured = experiments::measure(&stand()?, &design)?;
            let mut model = Model::of(machine.clone(), design, measured)?;
            model.stream = stream;
            model
        }
    };
    if let Some(file) = &args.save {
        model.save(file)?;
    }
    let held_out = match args.held_out.held_out {
        true => Some(held_out::run(&stand()?, &model, &args.held_out)?),
        false => None,
    };
    if let Some(held_out) = &held_out {
        model.checked = held_out.checked();
    }
    // Saved before too: a held-out point that fails does not lose the measured ones.
    if let (Some(file), Some(_)) = (&args.save, &held_out) {
        model.save(file)?;
    }
    let answer = question.map(|question| answer::answer(&model, &question)).transpose()?;
    show::print(&model, held_out.as_ref(), answer.as_ref());
    if let Some(file) = &args.page {
        let page = show::page(&model, &machine, held_out.as_ref(), answer.as_ref());
        fs::write(file, page).with_context(|| format!("writing {}", file.display()))?;
    }
    let plan =
        Plan { model: measured.then_some(&model), held_out: held_out.as_ref(), answer: answer.as_ref() };
    save(common.json.as_deref(), "plan", &machine, &plan)?;
    // Last: what was measured is shown and saved even where the prediction was wrong.
    held_out.iter().try_for_each(HeldOut::require)
}

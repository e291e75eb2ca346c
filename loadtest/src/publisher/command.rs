//! A program of the user's own: `sh -c` with the data of one event per line on its standard input.
//!
//! One process takes all topics, unless the command holds `{topic}`: then every topic has its own.
//! What it prints as errors goes where ours go; its end before ours is an error.

use std::ffi::OsStr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::pipe::{Pipe, STUCK_LIMIT};
use super::{Batch, PublishPlan, Refusals, Sink, Template};
use crate::process::{Child, describe};
use crate::target::with_topic;

/// How long a broken pipe waits for the end of the process behind it.
const END_LIMIT: Duration = Duration::from_millis(300);

/// The running programs.
#[derive(Debug)]
pub struct Commands {
    programs: Vec<Program>,
    template: Template,
}

#[derive(Debug)]
struct Program {
    pipe: Pipe,
    child: Child,
    /// What is to be written.
    out: Vec<u8>,
}

impl Commands {
    /// Starts the programs.
    pub fn start(plan: &PublishPlan) -> Result<Commands> {
        let each = with_topic(&plan.path, 0) != plan.path;
        if each {
            plan.check_lines("program")?;
        }
        let template = Template::new(plan, |_| Vec::new(), [&plan.filler()[..], b"\n"].concat());
        let programs = (0..if each { plan.topics } else { 1 })
            .map(|topic| Program::start(&with_topic(&plan.path, topic)))
            .collect::<Result<_>>()?;
        Ok(Commands { programs, template })
    }
}

impl Program {
    fn start(command: &str) -> Result<Program> {
        let stdio = [Stdio::piped(), Stdio::null(), Stdio::inherit()];
        let args = ["-c".into(), command.into()];
        let mut child = Child::start("the publish command", None, OsStr::new("sh"), &args, stdio)?;
        let stdin = child.pipes().stdin.take().context("the command's input is a pipe")?;
        Ok(Program { pipe: Pipe::one_way(stdin.into())?, child, out: Vec::new() })
    }

    fn write(&mut self) -> Result<()> {
        let written = self.pipe.send(&self.out, |_| Ok(()));
        self.out.clear();
        written.map_err(|error| match self.child.ended_within(END_LIMIT) {
            Some(status) => early(status),
            None => error.context("writing to the publish command"),
        })
    }

    /// Ends its input and waits for its own end.
    fn finish(self) -> Result<()> {
        let Program { pipe, mut child, .. } = self;
        drop(pipe);
        match child.ended_within(STUCK_LIMIT) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the publish command failed ({})", describe(status)),
            None => bail!("the publish command did not end within {STUCK_LIMIT:?} of the end of its input"),
        }
    }
}

fn early(status: ExitStatus) -> anyhow::Error {
    anyhow!("the publish command ended before the publishing did ({})", describe(status))
}

impl Sink for Commands {
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals> {
        let programs = self.programs.len();
        for event in batch.events() {
            self.template.put(event, &mut self.programs[event.0 % programs].out);
        }
        for topic in batch.topics().take(programs) {
            self.programs[topic % programs].write()?;
        }
        Ok(Refusals::default())
    }

    fn tend(&mut self) -> Result<()> {
        for program in &mut self.programs {
            if let Some(status) = program.child.ended() {
                return Err(early(status));
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>, _events: u64, _refused: u64) -> Result<()> {
        self.programs.into_iter().try_for_each(Program::finish)
    }
}

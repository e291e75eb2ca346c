//! The server under test: which one, started where, and how to reach it.
//!
//! Three are started here, on free loopback ports, with their own directories, on the CPU that is
//! asked for, and are killed and removed when a [`Running`] is dropped: fanwave, nchan (a module of
//! nginx) and NATS. A fourth, the user's own, runs already and is named by URLs. What was started
//! is asked for its version before anything is measured. `jetstream` is the log behind fanwave where
//! nodes share one.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use tempfile::TempDir;

pub use custom::CustomArgs;
pub use doors::Doors;
pub use jetstream::{JetStream, NatsArgs};

use crate::framing::Dialect;
use crate::http;
use crate::process::cpus_allowed;
use crate::target::Target;
use crate::usage::{CpuMeter, Memory, memory, memory_peak};
use program::Program;

mod custom;
pub mod doors;
mod fanwave;
mod jetstream;
mod nats;
mod nchan;
mod program;

/// What to tell a user who lacks a rival.
const INSTALL: &str = "install it with loadtest/rivals/install (Debian, as root)";

/// Which server to measure: a fanwave of our own unless a rival or URLs are given.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerChoice {
    #[command(flatten)]
    pub fanwave: FanwaveArgs,
    /// Measure this server in place of fanwave; loadtest/rivals/install installs it
    #[arg(long, value_name = "NAME", conflicts_with_all = ["program", "more"])]
    pub rival: Option<Rival>,
    #[command(flatten)]
    pub custom: CustomArgs,
    #[command(flatten)]
    pub doors: Doors,
}

/// How fanwave is started.
#[derive(Debug, Clone, Default, Args)]
pub struct FanwaveArgs {
    /// The fanwave program, started as `PROGRAM serve …` for this measurement alone [default: the
    /// `fanwave` beside this program]
    #[arg(long = "server", value_name = "PROGRAM")]
    pub program: Option<PathBuf>,
    /// A further argument for `serve`; repeatable
    #[arg(long = "server-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub more: Vec<String>,
}

/// Servers that Debian packages and that do what fanwave does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rival {
    /// The nchan module in nginx: Server-Sent Events and WebSocket.
    Nchan,
    /// nats-server: the NATS client protocol in WebSockets.
    Nats,
}

/// A server under test. Dropping it kills it, if it was started here, and removes its files.
pub struct Running {
    /// Where it is.
    pub target: Target,
    // Dropped in this order: the program, what may be left of it, its directory. None of them if it
    // is not ours and runs on when we are done.
    program: Option<Program>,
    _guard: Option<nchan::Guard>,
    _scratch: Option<TempDir>,
}

/// Starts the chosen server on `cpu` alone if one is given, and waits until it is ready. `shards`
/// and `more` (further arguments of `fanwave serve`) are fanwave's; rivals have one worker. A
/// server named by URLs is only looked up.
pub fn start(choice: &ServerChoice, cpu: Option<usize>, shards: usize, more: &[String]) -> Result<Running> {
    if choice.custom.is_given() {
        let FanwaveArgs { program, more } = &choice.fanwave;
        if choice.rival.is_some() || program.is_some() || !more.is_empty() {
            bail!("a server named by URLs runs already: leave out --server, --server-arg and --rival");
        }
        if choice.doors.tls {
            bail!(
                "--tls is for servers that are started here; one named by URLs is measured at its plain port"
            );
        }
        let (secret, h2_streams) = (choice.doors.secret()?, choice.doors.streams()?);
        let target = Target { secret, h2_streams, ..choice.custom.target()? };
        return Ok(Running { target, program: None, _guard: None, _scratch: None });
    }
    match choice.rival {
        Some(Rival::Nchan) => nchan::start(cpu, choice.doors.without_tokens("nchan")?),
        Some(Rival::Nats) => nats::start(cpu, choice.doors.without_tokens("nats-server")?),
        None => {
            let more = [&choice.fanwave.more, more].concat();
            fanwave::start(&choice.fanwave.program()?, cpu, shards, &more, &choice.doors)
        }
    }
}

/// Starts a server as [`start`] does, asks it and stops it. An error says what the server said, if
/// it has ended.
pub fn ask<T>(
    choice: &ServerChoice,
    cpu: Option<usize>,
    shards: usize,
    more: &[String],
    ask: impl FnOnce(&Running) -> Result<T>,
) -> Result<T> {
    let mut running = start(choice, cpu, shards, more)?;
    let answer = ask(&running).map_err(|error| running.explain(error))?;
    running.stop()?;
    Ok(answer)
}

impl FanwaveArgs {
    /// The program that was given, or the one beside our own executable.
    pub fn program(&self) -> Result<PathBuf> {
        if let Some(program) = &self.program {
            return Ok(program.clone());
        }
        let own = std::env::current_exe().context("finding this program's own file")?;
        let beside = own.with_file_name("fanwave");
        if !beside.is_file() {
            bail!("there is no fanwave beside {}: name one with --server PROGRAM", own.display());
        }
        Ok(beside)
    }
}

impl Running {
    /// Ends it if it was started here. A server that ends otherwise than it should is an error.
    pub fn stop(mut self) -> Result<()> {
        let ours = self.is_fanwave();
        let well = |status: ExitStatus| if ours { status.success() } else { status.code().is_some() };
        self.program.as_mut().map_or(Ok(()), |program| program.stop(well))
    }

    /// Adds to an error what the server said, if it has ended.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match &mut self.program {
            Some(program) => program.explain(error),
            None => error,
        }
    }

    fn is_fanwave(&self) -> bool {
        self.target.dialect == Dialect::Fanwave
    }

    /// What it may use at its limits, owner and bytes, as far as it says so itself.
    pub fn declared(&self) -> Vec<(String, u64)> {
        let program = self.program.as_ref().filter(|_| self.is_fanwave());
        program.map_or_else(Vec::new, |program| fanwave::declared_in(&program.first_lines()))
    }

    /// Its counters (`GET /stats`); null if it has no such.
    pub fn stats(&self) -> Result<Value> {
        if !self.is_fanwave() {
            return Ok(Value::Null);
        }
        let answer = http::get(self.target.publish, "/stats")?;
        serde_json::from_slice(&answer.body).context("/stats is no JSON")
    }

    /// The most memory of its own since its start, over all of its processes; `None` if they are
    /// not known.
    pub fn memory_peak(&self) -> Result<Option<u64>> {
        let peaks = self.target.pids.iter().map(|&pid| memory_peak(pid)).collect::<Result<Vec<u64>>>()?;
        Ok((!peaks.is_empty()).then(|| peaks.iter().sum()))
    }

    /// Its memory now, over all of its processes; `None` if its processes are not known.
    pub fn memory(&self) -> Result<Option<Memory>> {
        let mut sum: Option<Memory> = None;
        for &pid in &self.target.pids {
            let more = memory(pid)?;
            sum = Some(sum.map_or(more, |sum| sum.plus(&more)));
        }
        Ok(sum)
    }

    /// The same of a server whose processes are known.
    pub fn own_memory(&self) -> Result<Memory> {
        self.memory()?.context("the server's processes are not known")
    }

    /// Reads its CPU time; `None` if its processes are not known. `apart` is what
    /// [`crate::usage::interrupts_are_apart`] says.
    pub fn meter(&self, apart: bool) -> Option<CpuMeter> {
        let Target { pids, cpus, .. } = &self.target;
        (!pids.is_empty()).then(|| CpuMeter::over(pids, cpus, apart))
    }
}

/// The first line that a program says of its version, without the program's own name.
fn version_of(program: &OsStr, args: &[&str], remedy: &str) -> Result<String> {
    let shown = Path::new(program).display();
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {shown}; {remedy}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) if output.status.success() => Ok(bare_version(line)),
        line => {
            bail!("`{shown} {}` failed: {}; {remedy}", args.join(" "), line.unwrap_or("it printed nothing"))
        }
    }
}

/// The word that begins with a digit in a line such as `nginx version: nginx/1.22.1`; the whole
/// line if there is none.
fn bare_version(line: &str) -> String {
    line.split([' ', '/'])
        .map(|word| word.trim_start_matches('v'))
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
        .unwrap_or(line)
        .to_owned()
}

/// A server's configuration as a file in its directory.
fn write_config(directory: &Path, server: &str, config: &str) -> Result<PathBuf> {
    let file = directory.join(format!("{server}.conf"));
    fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
    Ok(file)
}

/// The CPUs of a process that are fewer than ours may be; none if it may use all of them.
fn pinned_to(allowed: &[usize]) -> Vec<usize> {
    if cpus_allowed().iter().all(|cpu| allowed.contains(cpu)) { Vec::new() } else { allowed.to_vec() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        choice: ServerChoice,
    }

    fn choice(line: &str) -> Result<ServerChoice, clap::Error> {
        Line::try_parse_from(format!("run {line}").split_whitespace()).map(|line| line.choice)
    }

    fn refused(line: &str) -> String {
        let choice = choice(line).expect(line);
        match start(&choice, None, 1, &[]) {
            Ok(_) => panic!("{line} was started"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn two_servers_at_once_are_refused() {
        assert!(choice("--rival nats --server x").is_err());
        assert!(choice("--publish-to http://h/ --publish-command x").is_err());
        let urls = "--subscribe-sse http://127.0.0.1:1/ --publish-to http://127.0.0.1:1/";
        assert!(refused(&format!("{urls} --rival nats")).contains("leave out"));
        assert!(refused(&format!("{urls} --server x")).contains("leave out"));
        assert!(refused(&format!("{urls} --server-arg x")).contains("leave out"));
    }

    #[test]
    fn a_server_named_by_urls_is_found_and_left_alone() {
        let urls = "--subscribe-sse http://127.0.0.1:7/e --publish-to ws://127.0.0.1:9/p --server-name mine";
        let pid = std::process::id();
        let choice = choice(&format!("{urls} --pid {pid}")).expect("complete");
        let running = start(&choice, None, 1, &[]).expect("nothing is asked of it yet");
        assert_eq!((running.target.name.as_str(), running.target.subscribe.port()), ("mine", 7));
        assert!(running.memory().expect("we are alive").is_some_and(|memory| memory.rss_own > 0));
        assert!(running.meter(false).is_some());
        running.stop().expect("nothing is stopped");
    }

    #[test]
    fn a_program_that_is_absent_or_no_server_is_told_with_the_remedy() {
        let absent = refused("--server /nowhere/fanwave");
        assert!(absent.contains("cannot run /nowhere/fanwave") && absent.contains("cargo build"), "{absent}");
        assert!(refused("--server /bin/false").contains("failed"));
    }

    #[test]
    fn versions_are_the_words_that_begin_with_a_digit() {
        for (line, version) in [
            ("nginx version: nginx/1.22.1", "1.22.1"),
            ("nats-server: v2.9.10", "2.9.10"),
            ("fanwave 0.1.0", "0.1.0"),
            ("something else", "something else"),
        ] {
            assert_eq!(bare_version(line), version);
        }
    }
}

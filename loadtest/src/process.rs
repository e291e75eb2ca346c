//! Child processes: pinned to a CPU, and gone when the coordinator is gone.
//!
//! Every child is started through our own `pin` wrapper, which sets the CPU affinity of the whole
//! process and asks the kernel to kill it when its parent dies, then becomes the program. So
//! children end on every exit of the coordinator, Ctrl-C and SIGKILL included, without a signal
//! handler; dropping a [`Child`] ends it at once. The kernel's parent-death signal follows the
//! *thread* that started the child: start children from the main thread only.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Descriptors that a process of ours needs beside its sockets: standard streams, epoll, libraries,
/// margin.
const DESCRIPTORS_SPARE: u64 = 500;

/// From one look for a child's end to the next.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A running child. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct Child {
    inner: std::process::Child,
    name: String,
}

impl Child {
    /// Starts `program` with `args`, pinned to `cpu` if one is given. `name` is what errors call
    /// it.
    pub fn start(
        name: &str,
        cpu: Option<usize>,
        program: &OsStr,
        args: &[OsString],
        stdio: [Stdio; 3],
    ) -> Result<Child> {
        let own = std::env::current_exe().context("finding this program's own file")?;
        let mut command = Command::new(own);
        command.arg("pin").arg("--parent").arg(std::process::id().to_string());
        if let Some(cpu) = cpu {
            command.arg("--cpu").arg(cpu.to_string());
        }
        let [stdin, stdout, stderr] = stdio;
        command.arg("--").arg(program).args(args).stdin(stdin).stdout(stdout).stderr(stderr);
        let inner = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Child { inner, name: name.to_owned() })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.inner.id()
    }

    /// The standard library's handle, for its pipes.
    pub fn pipes(&mut self) -> &mut std::process::Child {
        &mut self.inner
    }

    /// How the child ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.inner.try_wait().ok().flatten()
    }

    /// How the child ended, if it does so by itself within the limit.
    pub fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.ended();
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Asks the child to end with `signal` and waits for it, at most `limit`.
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> Result<ExitStatus> {
        // Whose end was seen has no process id any more: another process may have it.
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        if let Some(pid) = Pid::from_raw(self.pid() as i32) {
            rustix::process::kill_process(pid, signal).with_context(|| format!("ending {}", self.name))?;
        }
        match self.ended_within(limit) {
            Some(status) => Ok(status),
            None => bail!("{} did not end within {limit:?} of {signal:?}", self.name),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // An error means that it has ended already; both calls are then without effect.
        let _ = self.inner.kill();
        let _ = self.inner.wait();
    }
}

/// How a process ended, in words.
pub fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        // The standard library knows its name: `signal: 9 (SIGKILL)`.
        None => status.to_string().replace("signal: ", "signal "),
    }
}

/// The wrapper: pins this process, ties its life to `parent`, and becomes `command`. Returns only
/// on failure.
pub fn become_pinned(cpu: Option<usize>, parent: u32, command: &[OsString]) -> anyhow::Error {
    let Some((program, args)) = command.split_first() else {
        return anyhow::anyhow!("pin: no command given");
    };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("pin: asking for the parent's death signal");
    }
    // The parent may have died before the request took effect.
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get() as u32) != Some(parent) {
        return anyhow::anyhow!("pin: the parent process {parent} is gone");
    }
    if let Some(cpu) = cpu
        && let Err(error) = pin_self(cpu)
    {
        return error;
    }
    let error = Command::new(program).args(args).exec();
    anyhow::Error::new(error).context(format!("cannot run {}", program.display()))
}

/// Pins the calling process (its threads yet to come included) to one CPU.
pub fn pin_self(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    if cpu < CpuSet::MAX_CPU {
        set.set(cpu);
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot pin to CPU {cpu}"))
}

/// CPUs that this process may run on.
pub fn cpus_allowed() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// Refuses CPUs on which sender and receivers cannot be kept apart.
pub fn check_cpus(sender: usize, receiver: usize) -> Result<()> {
    let allowed = cpus_allowed();
    for (option, cpu) in [("sender", sender), ("receiver", receiver)] {
        if !allowed.contains(&cpu) {
            bail!("--{option}-cpu {cpu} is not among the CPUs that this process may use: {allowed:?}");
        }
    }
    if sender == receiver {
        bail!(
            "sender and receivers share CPU {sender}: give --sender-cpu and --receiver-cpu two of {allowed:?}"
        );
    }
    Ok(())
}

/// Raises the soft descriptor limit to the hard one; children inherit it. Gives the limit now.
pub fn raise_descriptor_limit() -> Result<u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        rustix::process::setrlimit(Resource::Nofile, raised).context("raising the descriptor limit")?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Sockets that one process may hold under the descriptor limit.
pub fn sockets_per_process_max() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit.saturating_sub(DESCRIPTORS_SPARE).min(u64::from(u32::MAX))
}

/// Refuses a number of sockets that one process cannot hold.
pub fn check_sockets(what: &str, sockets: u64) -> Result<()> {
    let max = sockets_per_process_max();
    if sockets > max {
        bail!(
            "{what} needs {sockets} sockets in one process, the descriptor limit leaves {max}; \
             raise it with `ulimit -Hn {}` (as root) or ask for fewer connections",
            sockets.saturating_add(DESCRIPTORS_SPARE)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_sockets_beyond_the_limit_is_refused_with_the_remedy() {
        let error = check_sockets("one receiver", u64::from(u32::MAX) + 1).expect_err("too many").to_string();
        assert!(error.contains("ulimit"), "{error}");
        assert!(check_sockets("one receiver", 1).is_ok());
    }

    #[test]
    fn cpus_that_cannot_be_had_or_kept_apart_are_refused_by_option() {
        let cpu = cpus_allowed()[0];
        assert!(check_cpus(CpuSet::MAX_CPU, cpu).expect_err("absent").to_string().contains("--sender-cpu"));
        assert!(check_cpus(cpu, CpuSet::MAX_CPU).expect_err("absent").to_string().contains("--receiver-cpu"));
        assert!(check_cpus(cpu, cpu).expect_err("the same").to_string().contains("share"));
    }
}

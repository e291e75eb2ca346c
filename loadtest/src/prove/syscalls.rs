//! `loadtest syscalls`: how many system calls the server makes per 1,000 deliveries, counted by
//! strace.
//!
//! strace slows every call down, so times under it mean nothing; counts do, because one event is in
//! flight at a time and the number of calls per event does not depend on their speed.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::process::Signal;
use serde::Serialize;

use super::leg::CHECKED;
use super::{Bench, ServerArgs, publish_one_by_one};
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::process::Child;
use crate::publisher::{PublishPlan, Publisher};
use crate::report::{paragraph, progress, save, say, table};
use crate::server::Running;
use crate::unit::grouped;

/// Events before strace is attached.
const WARM_UP_EVENTS: u64 = 20;
/// How long strace may take to attach, and to print its table.
const STRACE_LIMIT: Duration = Duration::from_secs(15);

/// Options of `syscalls`.
#[derive(Debug, Clone, Args)]
pub struct SyscallsArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Subscribers
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// What the subscribers speak
    #[arg(long, value_delimiter = ',', default_value = "sse,ws")]
    protocol: Vec<Protocol>,
    /// Bytes of an event's data
    #[arg(long, value_name = "BYTES", default_value_t = 200)]
    size: usize,
    /// Events, one in flight at a time
    #[arg(long, default_value_t = 200)]
    events: u64,
}

/// One line of strace's table.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Calls {
    name: String,
    calls: u64,
}

#[derive(Debug, Serialize)]
struct Count {
    protocol: Protocol,
    deliveries: u64,
    calls: u64,
    per_1000_deliveries: f64,
    table: Vec<Calls>,
}

/// Counts and prints.
pub fn run(bench: &Bench, args: &SyscallsArgs) -> Result<()> {
    if args.connections == 0 || args.events == 0 {
        bail!("--connections and --events are at least 1");
    }
    let mut counts = Vec::new();
    for &protocol in &args.protocol {
        progress(&format!(
            "{}: {} events to {} connections",
            protocol.label(),
            args.events,
            args.connections
        ));
        let counted = args.server.ask(bench, &[], |server| count(bench, args, server, protocol))?;
        let deliveries = args.events * args.connections as u64;
        let calls = counted.iter().map(|line| line.calls).sum();
        let per_1000_deliveries = calls as f64 * 1_000.0 / deliveries as f64;
        counts.push(Count { protocol, deliveries, calls, per_1000_deliveries, table: counted });
    }
    say(&bench.machine.line());
    for count in &counts {
        say(&format!(
            "\n{}: {} system calls for {} deliveries = {:.2} per 1,000",
            count.protocol.label(),
            grouped(count.calls),
            grouped(count.deliveries),
            count.per_1000_deliveries
        ));
        let share = |calls: u64| format!("{:.3}", calls as f64 * 1_000.0 / count.deliveries as f64);
        let rows: Vec<_> = count
            .table
            .iter()
            .map(|line| vec![line.name.clone(), grouped(line.calls), share(line.calls)])
            .collect();
        table(1, &["system call", "calls", "per 1,000 deliveries"], &rows);
    }
    say("");
    paragraph(CHECKED);
    save(bench.common.json.as_deref(), "syscalls", &bench.machine, &counts)
}

fn count(bench: &Bench, args: &SyscallsArgs, server: &Running, protocol: Protocol) -> Result<Vec<Calls>> {
    let mut fleet = Fleet::new(bench.subscribers(&server.target, protocol)?);
    fleet.open(args.connections)?;
    let mut publisher = Publisher::connect(&PublishPlan::to(&server.target, 1, args.size)?)?;
    publish_one_by_one(&mut publisher, &mut fleet, WARM_UP_EVENTS)?;
    let strace = Strace::attach(server.target.pids[0])?;
    publish_one_by_one(&mut publisher, &mut fleet, args.events)?;
    let table = strace.detach()?;
    fleet.check(args.events, publisher.next() - 1)?;
    publisher.finish()?;
    Ok(table)
}

/// A strace that counts the calls of all threads of one process.
struct Strace {
    child: Child,
    lines: Receiver<String>,
}

impl Strace {
    fn attach(pid: u32) -> Result<Strace> {
        let args: Vec<OsString> = ["-c", "-f", "-S", "calls", "-p"]
            .into_iter()
            .map(OsString::from)
            .chain([pid.to_string().into()])
            .collect();
        let stdio = [Stdio::null(), Stdio::null(), Stdio::piped()];
        let mut child = Child::start("strace", None, OsStr::new("strace"), &args, stdio)?;
        let stderr = child.pipes().stderr.take().context("strace's output is a pipe")?;
        let (tell, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        let strace = Strace { child, lines };
        let deadline = Instant::now() + STRACE_LIMIT;
        let mut said = Vec::new();
        loop {
            match strace.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains("attached") => return Ok(strace),
                Ok(line) => said.push(line),
                Err(_) => bail!(
                    "strace did not attach: {}; install it (Debian: `apt-get install strace`) and allow ptrace \
                     (root, or `sysctl kernel.yama.ptrace_scope=0`)",
                    said.join(" | ")
                ),
            }
        }
    }

    fn detach(mut self) -> Result<Vec<Calls>> {
        // It prints its table and detaches; its exit status is that of the signal.
        self.child.stop(Signal::INT, STRACE_LIMIT)?;
        let text: Vec<String> = self.lines.iter().collect();
        let table = parse_table(&text);
        if table.is_empty() {
            bail!("strace printed no table: {}", text.join(" | "));
        }
        Ok(table)
    }
}

/// Reads the table of `strace -c`: `% time, seconds, usecs/call, calls, [errors,] syscall` between
/// two rules.
fn parse_table(lines: &[String]) -> Vec<Calls> {
    let mut rules = 0;
    let mut table = Vec::new();
    for line in lines {
        if line.starts_with("------") {
            rules += 1;
        } else if rules == 1 {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if let (5 | 6, Some(Ok(calls))) = (fields.len(), fields.get(3).map(|field| field.parse())) {
                table.push(Calls { name: fields[fields.len() - 1].to_owned(), calls });
            }
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_read_with_and_without_errors() {
        let text = "\
strace: Process 7 attached with 3 threads
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 90.12    0.123456          60      2048           io_uring_enter
  9.88    0.000001           1         7         3 read
------ ----------- ----------- --------- --------- ----------------
100.00    0.123457          60      2055         3 total";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let line = |name: &str, calls| Calls { name: name.into(), calls };
        assert_eq!(parse_table(&lines), [line("io_uring_enter", 2_048), line("read", 7)]);
        assert_eq!(parse_table(&[]), []);
    }
}

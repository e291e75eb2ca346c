//! What a process costs, as the kernel accounts it: CPU time and memory, read from `/proc`.
//!
//! CPU time is the sum of `schedstat` over the threads of the process, in nanoseconds: it covers user, system and the
//! softirq work that a send does inline on its own thread (the receive half of loopback TCP), because the kernel
//! charges interrupts to whoever runs. A kernel built with `CONFIG_IRQ_TIME_ACCOUNTING` charges them to nobody; that
//! is detected by measurement and the CPU's softirq time is then added. Softirq work that overflows into the CPU's
//! `ksoftirqd` is added always. If a thread ended between two samples its time would be missing from the sum, so the
//! process's own total, exact to a clock tick, is used instead.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

/// `/proc/PID/stat` counts in ticks of 1/100 s: `USER_HZ` is 100 on every architecture that Linux has today but Alpha.
const TICK_NS: u64 = 10_000_000;

/// Reads the CPU time of one process, and of the softirq work done for it elsewhere on the CPU it is pinned to.
#[derive(Debug, Clone)]
pub struct CpuMeter {
    pid: u32,
    /// The CPU whose interrupt time counts as the process's.
    cpu: usize,
    ksoftirqd: Option<u32>,
    /// True if the kernel keeps interrupt time out of the threads' time.
    interrupts_apart: bool,
}

/// One reading.
#[derive(Debug, Clone)]
pub struct CpuSample {
    threads_ns: BTreeMap<u32, u64>,
    process_ns: u64,
    ksoftirqd_ns: u64,
    softirq_ns: u64,
}

impl CpuMeter {
    /// A meter for the process `pid`, which is pinned to `cpu`.
    pub fn new(pid: u32, cpu: usize, interrupts_apart: bool) -> CpuMeter {
        CpuMeter { pid, cpu, ksoftirqd: find_process(&format!("ksoftirqd/{cpu}")), interrupts_apart }
    }

    /// Reads the process's CPU time up to now.
    pub fn sample(&self) -> Result<CpuSample> {
        let pid = self.pid;
        let mut threads_ns = BTreeMap::new();
        let tasks =
            fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} has ended"))?;
        for task in tasks.flatten() {
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A thread may end between the listing and the reading; the difference of two samples notices.
            if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
                threads_ns.insert(tid, schedstat(&text)?.0);
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let softirq_ns = match self.interrupts_apart {
            true => softirq_ns(&fs::read_to_string("/proc/stat")?, self.cpu)?,
            false => 0,
        };
        let ksoftirqd_ns = match self.ksoftirqd {
            Some(pid) => schedstat(&fs::read_to_string(format!("/proc/{pid}/schedstat"))?)?.0,
            None => 0,
        };
        Ok(CpuSample { threads_ns, process_ns: process_ns(&stat)?, ksoftirqd_ns, softirq_ns })
    }
}

impl CpuSample {
    /// CPU nanoseconds from `earlier` to this sample.
    pub fn since(&self, earlier: &CpuSample) -> u64 {
        let all_alive = earlier.threads_ns.keys().all(|tid| self.threads_ns.contains_key(tid));
        let own = if all_alive {
            let before = |tid| earlier.threads_ns.get(tid).copied().unwrap_or(0);
            self.threads_ns.iter().map(|(tid, ns)| ns.saturating_sub(before(tid))).sum()
        } else {
            self.process_ns.saturating_sub(earlier.process_ns)
        };
        own + self.ksoftirqd_ns.saturating_sub(earlier.ksoftirqd_ns)
            + self.softirq_ns.saturating_sub(earlier.softirq_ns)
    }
}

/// Nanoseconds on a CPU and nanoseconds waiting for one.
fn schedstat(text: &str) -> Result<(u64, u64)> {
    let mut fields = text.split_ascii_whitespace().map(str::parse);
    match (fields.next(), fields.next()) {
        (Some(Ok(ran)), Some(Ok(waited))) => Ok((ran, waited)),
        _ => Err(anyhow!("this kernel gives no schedstat (CONFIG_SCHED_INFO): CPU time cannot be measured")),
    }
}

/// User and system time of a process from `/proc/PID/stat`, ended threads included.
fn process_ns(stat: &str) -> Result<u64> {
    // The name in parentheses may hold anything; fields count from behind it, the state being field 3.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let mut fields = rest.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(user)), Some(Ok(system))) => Ok((user + system) * TICK_NS),
        _ => Err(anyhow!("/proc/PID/stat has no times")),
    }
}

fn softirq_ns(stat: &str, cpu: usize) -> Result<u64> {
    let name = format!("cpu{cpu} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)).context("/proc/stat lacks the CPU")?;
    let mut ticks = line.split_ascii_whitespace().skip(5).map(str::parse::<u64>);
    match (ticks.next(), ticks.next()) {
        (Some(Ok(hard)), Some(Ok(soft))) => Ok((hard + soft) * TICK_NS),
        _ => Err(anyhow!("/proc/stat has no interrupt times")),
    }
}

fn find_process(name: &str) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then_some(pid)
    })
}

/// True if this kernel keeps interrupt time out of a thread's time. Found by measurement: a thread that sends to itself
/// over loopback and never sleeps has wall time = time on CPU + time waiting for it + what the kernel charged elsewhere.
pub fn interrupts_are_apart() -> Result<bool> {
    const TRIES: usize = 3;
    const TRY_MS: u64 = 20;
    const APART_SHARE: f64 = 0.15;
    let socket = UdpSocket::bind("127.0.0.1:0").context("opening a loopback socket")?;
    socket.connect(socket.local_addr()?)?;
    let mut least = f64::MAX;
    for _ in 0..TRIES {
        let before = schedstat(&fs::read_to_string("/proc/thread-self/schedstat")?)?;
        let start = Instant::now();
        let mut byte = [0];
        while start.elapsed() < Duration::from_millis(TRY_MS) {
            socket.send(&byte)?;
            socket.recv(&mut byte)?;
        }
        let wall = start.elapsed().as_nanos() as f64;
        let after = schedstat(&fs::read_to_string("/proc/thread-self/schedstat")?)?;
        let charged = (after.0 - before.0 + after.1 - before.1) as f64;
        least = least.min((wall - charged) / wall);
    }
    Ok(least > APART_SHARE)
}

/// Memory of one process, in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// `VmRSS` without `RssFile`: resident pages that are the process's own, not its program's file.
    pub rss_own: u64,
    /// `Pss` of `smaps_rollup`: everything resident, shared pages in proportion.
    pub pss: u64,
}

/// Reads the memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("reading smaps_rollup of process {pid}"))?;
    let rss = kilobytes(&status, "VmRSS:")?;
    let file = kilobytes(&status, "RssFile:")?;
    Ok(Memory { rss_own: rss.saturating_sub(file), pss: kilobytes(&rollup, "Pss:")? })
}

/// The value of a `Name:   123 kB` line, in bytes.
fn kilobytes(text: &str, name: &str) -> Result<u64> {
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name} line"))?;
    let number = line.trim().strip_suffix(" kB").unwrap_or(line.trim());
    Ok(number.trim().parse::<u64>().with_context(|| format!("{name}{line}"))? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(threads: &[(u32, u64)], process_ns: u64) -> CpuSample {
        CpuSample {
            threads_ns: threads.iter().copied().collect(),
            process_ns,
            ksoftirqd_ns: 0,
            softirq_ns: 0,
        }
    }

    #[test]
    fn a_busy_thread_costs_its_time() {
        let meter = CpuMeter::new(std::process::id(), 0, false);
        let before = meter.sample().expect("alive");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) {
            std::hint::black_box(start.elapsed());
        }
        let used = meter.sample().expect("alive").since(&before);
        assert!(used > 5_000_000, "{used} ns");
    }

    #[test]
    fn new_threads_count_in_full_and_ended_ones_are_not_lost() {
        assert_eq!(sample(&[(1, 50), (2, 7)], 0).since(&sample(&[(1, 20)], 0)), 37);
        assert_eq!(
            sample(&[(1, 50)], 90 * TICK_NS).since(&sample(&[(1, 20), (2, 9)], TICK_NS)),
            89 * TICK_NS
        );
    }

    #[test]
    fn proc_files_are_read_at_the_right_fields() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 300 40 0 0";
        assert_eq!(process_ns(stat).expect("well formed"), 340 * TICK_NS);
        let machine = "cpu  9 9 9 9 9 9 9 9\ncpu1 1 2 3 4 5 6 7 8\ncpu10 0 0 0 0 0 0 0 0\n";
        assert_eq!(softirq_ns(machine, 1).expect("well formed"), 13 * TICK_NS);
        assert!(softirq_ns(machine, 2).is_err());
        assert_eq!(schedstat("12 34 5\n").expect("well formed"), (12, 34));
        assert!(schedstat("").is_err());
        assert_eq!(kilobytes("Rss: 8 kB\nPss:      4 kB\n", "Pss:").expect("well formed"), 4_096);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = memory(std::process::id()).expect("alive");
        assert!(memory.rss_own > 0 && memory.pss > 0);
    }

    #[test]
    fn whether_interrupts_are_apart_can_be_found_out() {
        interrupts_are_apart().expect("measurable");
    }
}

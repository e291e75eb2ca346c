//! What a process costs, as the kernel accounts it: CPU time and memory, read from `/proc`.
//!
//! CPU time is the sum of `schedstat` over the threads of the process, in nanoseconds: it covers
//! user, system and the softirq work that a send does inline on its own thread (the receive half of
//! loopback TCP), because the kernel charges interrupts to whoever runs. A kernel built with
//! `CONFIG_IRQ_TIME_ACCOUNTING` charges them to nobody; that is detected by measurement and the
//! CPU's softirq time is then added. Softirq work that overflows into the CPU's `ksoftirqd` is
//! added always. If a thread ended between two samples its time would be missing from the sum, so
//! the process's own total, exact to a clock tick, is used instead. That total tells also how much
//! of it is user and how much is system time.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

/// `/proc/PID/stat` counts in ticks of 1/100 s: `USER_HZ` is 100 on every architecture that Linux
/// has today but Alpha.
const TICK_NS: u64 = 10_000_000;

/// Reads the CPU time of a server's processes, and of the softirq work done for them elsewhere on
/// the CPUs they are pinned to.
#[derive(Debug, Clone)]
pub struct CpuMeter {
    pids: Vec<u32>,
    /// The CPUs whose interrupt time counts as the processes'.
    cpus: Vec<usize>,
    /// `ksoftirqd` of each of them.
    ksoftirqd: Vec<u32>,
    /// True if the kernel keeps interrupt time out of the threads' time.
    interrupts_apart: bool,
}

/// One reading.
#[derive(Debug, Clone)]
pub struct CpuSample {
    threads_ns: BTreeMap<u32, u64>,
    /// User and system time of the processes.
    process_ns: [u64; 2],
    ksoftirqd_ns: u64,
    /// Interrupt time of the CPU that is in no thread's time; 0 where the kernel charges it to
    /// threads.
    softirq_ns: u64,
    /// Time in which the CPU was not idle, whoever used it, in whole ticks.
    cpu_busy_ns: u64,
}

impl CpuMeter {
    /// A meter for the process `pid`, which is pinned to `cpu`.
    pub fn new(pid: u32, cpu: usize, interrupts_apart: bool) -> CpuMeter {
        CpuMeter::over(&[pid], &[cpu], interrupts_apart)
    }

    /// A meter for several processes, which are pinned to `cpus`. Without CPUs only the processes'
    /// own time is read, and others are not seen.
    pub fn over(pids: &[u32], cpus: &[usize], interrupts_apart: bool) -> CpuMeter {
        CpuMeter {
            pids: pids.to_vec(),
            cpus: cpus.to_vec(),
            ksoftirqd: cpus.iter().filter_map(|cpu| find_process(&format!("ksoftirqd/{cpu}"))).collect(),
            interrupts_apart,
        }
    }

    /// Reads the processes' CPU time up to now.
    pub fn sample(&self) -> Result<CpuSample> {
        let mut threads_ns = BTreeMap::new();
        let mut total_ns = [0; 2];
        for pid in &self.pids {
            let tasks = fs::read_dir(format!("/proc/{pid}/task"))
                .with_context(|| format!("process {pid} has ended"))?;
            for task in tasks.flatten() {
                let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else {
                    continue;
                };
                // A thread may end between the listing and the reading; the difference of two
                // samples notices.
                if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
                    threads_ns.insert(tid, schedstat(&text)?.0);
                }
            }
            let more = process_ns(&fs::read_to_string(format!("/proc/{pid}/stat"))?)?;
            total_ns = [total_ns[0] + more[0], total_ns[1] + more[1]];
        }
        let machine = fs::read_to_string("/proc/stat")?;
        let (mut interrupts_ns, mut cpu_busy_ns) = (0, 0);
        for &cpu in &self.cpus {
            let times = CpuTimes::read(&machine, cpu)?;
            interrupts_ns += times.interrupts_ns;
            cpu_busy_ns += times.busy_ns;
        }
        let mut ksoftirqd_ns = 0;
        for pid in &self.ksoftirqd {
            ksoftirqd_ns += schedstat(&fs::read_to_string(format!("/proc/{pid}/schedstat"))?)?.0;
        }
        Ok(CpuSample {
            threads_ns,
            process_ns: total_ns,
            ksoftirqd_ns,
            softirq_ns: if self.interrupts_apart { interrupts_ns } else { 0 },
            cpu_busy_ns,
        })
    }
}

impl CpuSample {
    /// CPU nanoseconds from `earlier` to this sample.
    pub fn since(&self, earlier: &CpuSample) -> u64 {
        let all_alive = earlier.threads_ns.keys().all(|tid| self.threads_ns.contains_key(tid));
        let own: u64 = if all_alive {
            let before = |tid| earlier.threads_ns.get(tid).copied().unwrap_or(0);
            self.threads_ns.iter().map(|(tid, ns)| ns.saturating_sub(before(tid))).sum()
        } else {
            self.process_since(earlier).iter().sum()
        };
        own + self.ksoftirqd_ns.saturating_sub(earlier.ksoftirqd_ns)
            + self.softirq_ns.saturating_sub(earlier.softirq_ns)
    }

    /// User and system nanoseconds of the processes since `earlier`, as the kernel's clock ticks
    /// met them: of short times a rough measure.
    pub fn process_since(&self, earlier: &CpuSample) -> [u64; 2] {
        [0, 1].map(|at| self.process_ns[at].saturating_sub(earlier.process_ns[at]))
    }

    /// Nanoseconds since `earlier` in which the CPU was busy with something other than the process.
    pub fn others_since(&self, earlier: &CpuSample) -> u64 {
        (self.cpu_busy_ns.saturating_sub(earlier.cpu_busy_ns)).saturating_sub(self.since(earlier))
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
fn process_ns(stat: &str) -> Result<[u64; 2]> {
    // The name in parentheses may hold anything; fields count from behind it, the state being field
    // 3.
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let mut fields = rest.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(user)), Some(Ok(system))) => Ok([user * TICK_NS, system * TICK_NS]),
        _ => Err(anyhow!("/proc/PID/stat has no times")),
    }
}

/// What one CPU did since the machine started, in whole ticks.
#[derive(Debug, PartialEq, Eq)]
struct CpuTimes {
    /// Everything but idle and waiting for I/O; time that a hypervisor took included.
    busy_ns: u64,
    /// Hardware and software interrupts.
    interrupts_ns: u64,
}

impl CpuTimes {
    /// From `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
    fn read(stat: &str, cpu: usize) -> Result<CpuTimes> {
        let name = format!("cpu{cpu} ");
        let line =
            stat.lines().find_map(|line| line.strip_prefix(&name)).context("/proc/stat lacks the CPU")?;
        let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        let &[user, nice, system, _, _, hard, soft, steal, ..] = &ticks[..] else {
            return Err(anyhow!("/proc/stat has too few times"));
        };
        Ok(CpuTimes {
            busy_ns: (user + nice + system + hard + soft + steal) * TICK_NS,
            interrupts_ns: (hard + soft) * TICK_NS,
        })
    }
}

/// Nanoseconds since the machine started in which a CPU was not idle, whoever used it, in whole
/// ticks.
pub fn cpu_busy_ns(cpu: usize) -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    Ok(CpuTimes::read(&stat, cpu)?.busy_ns)
}

/// CPU nanoseconds of this process since its start.
pub fn own_cpu_ns() -> u64 {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64
}

fn find_process(name: &str) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then_some(pid)
    })
}

/// True if this kernel keeps interrupt time out of a thread's time. Found by measurement: a thread
/// that sends to itself over loopback and never sleeps has wall time = time on CPU + time waiting
/// for it + what the kernel charged elsewhere.
pub fn interrupts_are_apart() -> Result<bool> {
    const TRIES: usize = 3;
    const TRY_MS: u64 = 20;
    const APART_SHARE: f64 = 0.15;
    let socket = UdpSocket::bind("127.0.0.1:0").context("opening a loopback socket")?;
    socket.connect(socket.local_addr()?)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
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
    /// `VmRSS` without `RssFile`: resident pages that are the process's own, not its program's
    /// file.
    pub rss_own: u64,
    /// `Pss` of `smaps_rollup`: everything resident, shared pages in proportion.
    pub pss: u64,
    /// `AnonHugePages` of `smaps_rollup`: the part that comes in huge pages, whole or not at all.
    pub huge: u64,
}

impl Memory {
    /// The memory of two processes.
    pub fn plus(&self, other: &Memory) -> Memory {
        Memory {
            rss_own: self.rss_own + other.rss_own,
            pss: self.pss + other.pss,
            huge: self.huge + other.huge,
        }
    }
}

/// Reads the memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("reading the memory of process {pid}, which needs its user or root"))?;
    let rss = kilobytes(&status, "VmRSS:")?;
    let file = kilobytes(&status, "RssFile:")?;
    Ok(Memory {
        rss_own: rss.saturating_sub(file),
        pss: kilobytes(&rollup, "Pss:")?,
        huge: kilobytes(&rollup, "AnonHugePages:")?,
    })
}

/// The most memory of its own that a process has had since its start, in bytes: `VmHWM` without
/// what `RssFile` is now.
pub fn memory_peak(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    Ok(kilobytes(&status, "VmHWM:")?.saturating_sub(kilobytes(&status, "RssFile:")?))
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
        let threads_ns = threads.iter().copied().collect();
        CpuSample { threads_ns, process_ns: [process_ns, 0], ksoftirqd_ns: 0, softirq_ns: 0, cpu_busy_ns: 0 }
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
    fn the_cpu_time_of_others_is_what_the_process_did_not_use() {
        let before = sample(&[(1, 0)], 0);
        let after = CpuSample { cpu_busy_ns: 70, ..sample(&[(1, 50)], 0) };
        assert_eq!(after.others_since(&before), 20);
        let after = CpuSample { cpu_busy_ns: 40, ..sample(&[(1, 50)], 0) };
        assert_eq!(after.others_since(&before), 0);
    }

    #[test]
    fn user_and_system_time_of_a_process_are_told_apart() {
        let after = CpuSample { process_ns: [40, 10], ..sample(&[], 0) };
        assert_eq!(after.process_since(&sample(&[], 10)), [30, 10]);
    }

    #[test]
    fn proc_files_are_read_at_the_right_fields() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 300 40 0 0";
        assert_eq!(process_ns(stat).expect("well formed"), [300 * TICK_NS, 40 * TICK_NS]);
        let machine = "cpu  9 9 9 9 9 9 9 9\ncpu1 1 2 3 4 5 6 7 8\ncpu10 0 0 0 0 0 0 0 0\n";
        let times = CpuTimes { busy_ns: 27 * TICK_NS, interrupts_ns: 13 * TICK_NS };
        assert_eq!(CpuTimes::read(machine, 1).expect("well formed"), times);
        assert!(CpuTimes::read(machine, 2).is_err());
        assert_eq!(schedstat("12 34 5\n").expect("well formed"), (12, 34));
        assert!(schedstat("").is_err());
        assert_eq!(kilobytes("Rss: 8 kB\nPss:      4 kB\n", "Pss:").expect("well formed"), 4_096);
    }

    #[test]
    fn this_process_has_memory() {
        let memory = memory(std::process::id()).expect("alive");
        assert!(memory.rss_own > 0 && memory.pss > 0);
        let held = vec![1_u8; 32 << 20];
        assert!(std::hint::black_box(&held).iter().all(|&byte| byte == 1));
        drop(held);
        assert!(memory_peak(std::process::id()).expect("alive") > 32 << 20, "what it gave back counts");
    }

    #[test]
    fn whether_interrupts_are_apart_can_be_found_out() {
        interrupts_are_apart().expect("measurable");
    }
}

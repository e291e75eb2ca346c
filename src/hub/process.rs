//! What Prometheus wants to know of every process, by its own names.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::openmetrics::{Kind, Page};

/// Writes when the process began, its CPU time and its resident memory.
pub(super) fn write(page: &mut Page, started_at: SystemTime) {
    let since = started_at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let help = "Start of the process, in seconds of Unix time.";
    page.single("process_start_time_seconds", Kind::Gauge, help, since.as_secs_f64());
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let used = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    page.single("process_cpu_seconds_total", Kind::Counter, "CPU time of all threads.", used);
    if let Some(bytes) = resident_bytes() {
        page.single("process_resident_memory_bytes", Kind::Gauge, "Resident memory.", bytes);
    }
}

/// `VmRSS` in proc_pid_status(5).
fn resident_bytes() -> Option<u64> {
    resident_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// The same in the text of that file.
pub(super) fn resident_in(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))?;
    Some(kib.trim().parse::<u64>().ok()? << 10)
}

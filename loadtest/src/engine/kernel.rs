//! Memory that the kernel keeps for sockets, over the whole machine.
//!
//! Counted are the slab caches that hold sockets, files and packet buffers (`SUnreclaim` of
//! `/proc/meminfo`), the sockets' inodes (`sock_inode_cache` of `/proc/slabinfo`, which only root
//! may read) and the pages of TCP's send and receive queues (`mem` of the `TCP` line in
//! `/proc/net/sockstat`). Both ends of a loopback connection are in it, and whatever else runs on
//! the machine; a difference within one run is what counts. A queued byte whose buffer comes from a
//! slab is in two of the figures; idle connections queue nothing. Not counted: the reclaimable
//! caches of file systems, which change with every file that anybody opens, and with them the
//! sockets' names (two of 192 bytes per connection); tables from `vmalloc`, such as the descriptor
//! tables of processes and rings.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Two readings this far apart tell whether memory is still being given back.
const LOOK_AGAIN: Duration = Duration::from_millis(150);
/// The longest wait for that.
const SETTLE_MAX: Duration = Duration::from_millis(600);
/// A change below this is no trend.
const STEADY_BYTES: u64 = 128 << 10;

/// Bytes now.
pub fn bytes() -> Result<u64> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let slab = slab_bytes(&read("/proc/meminfo")?).context("/proc/meminfo has no SUnreclaim")?;
    let pages = queued_pages(&read("/proc/net/sockstat")?).context("/proc/net/sockstat has no TCP mem")?;
    // Not being root is no error: the figure is smaller then, by the same everywhere in the run.
    let inode_pages =
        fs::read_to_string("/proc/slabinfo").ok().and_then(|text| inode_pages(&text)).unwrap_or(0);
    Ok(slab + (pages + inode_pages) * rustix::param::page_size() as u64)
}

/// Bytes once the kernel has put away what came before: sockets that were closed go in the
/// background.
pub fn settled_bytes() -> Result<u64> {
    let deadline = Instant::now() + SETTLE_MAX;
    let mut before = bytes()?;
    loop {
        thread::sleep(LOOK_AGAIN);
        let now = bytes()?;
        if now.abs_diff(before) < STEADY_BYTES || Instant::now() > deadline {
            return Ok(now);
        }
        before = now;
    }
}

fn slab_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SUnreclaim:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1_024)
}

fn queued_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

/// Pages of the cache of sockets' inodes: its slabs times the pages of one.
fn inode_pages(slabinfo: &str) -> Option<u64> {
    let line = slabinfo.lines().find(|line| line.starts_with("sock_inode_cache "))?;
    let (counts, slabs) = line.split_once(": slabdata")?;
    let pages_per_slab: u64 = counts.split_ascii_whitespace().nth(5)?.parse().ok()?;
    let slabs: u64 = slabs.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(slabs * pages_per_slab)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_and_queues_are_read_from_their_lines() {
        assert_eq!(
            slab_bytes("Slab: 9 kB\nSReclaimable: 1 kB\nSUnreclaim:       614784 kB\n"),
            Some(629_538_816)
        );
        assert_eq!(slab_bytes("MemTotal: 9 kB\n"), None);
        let sockstat = "sockets: used 9\nTCP: inuse 6 orphan 0 tw 3 alloc 6 mem 109\nUDP: inuse 0 mem 7\n";
        assert_eq!(queued_pages(sockstat), Some(109));
        assert_eq!(queued_pages("UDP: inuse 0 mem 7\n"), None);
        let slabinfo = "sock_inode_cache    2100   2679    832   19    4 : tunables    0    0    0 : slabdata    141    142      0\n";
        assert_eq!(inode_pages(slabinfo), Some(142 * 4));
        assert_eq!(inode_pages("filp 1 2 3 4 5 : tunables 0 0 0 : slabdata 1 2 0\n"), None);
        assert!(bytes().expect("Linux") > 0);
    }
}

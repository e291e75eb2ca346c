//! Memory that the kernel keeps for sockets, over the whole machine.
//!
//! Counted are the slab caches (`Slab` of `/proc/meminfo`: the sockets themselves, their inodes and files, small
//! packet buffers) and the pages of TCP's send and receive queues (`mem` of the `TCP` line in `/proc/net/sockstat`).
//! Both ends of a loopback connection are in it, and whatever else runs on the machine; a difference within one run
//! is what counts. A queued byte whose buffer comes from a slab is in both figures; idle connections queue nothing.
//! Not counted: tables from `vmalloc`, such as the descriptor tables of processes and rings.

use std::fs;

use anyhow::{Context, Result};

/// Bytes now.
pub fn bytes() -> Result<u64> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let slab = slab_bytes(&read("/proc/meminfo")?).context("/proc/meminfo has no Slab")?;
    let pages = queued_pages(&read("/proc/net/sockstat")?).context("/proc/net/sockstat has no TCP mem")?;
    Ok(slab + pages * rustix::param::page_size() as u64)
}

fn slab_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Slab:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1_024)
}

fn queued_pages(sockstat: &str) -> Option<u64> {
    let line = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "mem");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slab_and_queues_are_read_from_their_lines() {
        assert_eq!(
            slab_bytes("MemTotal: 9 kB\nSlab:             614784 kB\nSReclaimable: 1 kB\n"),
            Some(629_538_816)
        );
        assert_eq!(slab_bytes("MemTotal: 9 kB\n"), None);
        let sockstat = "sockets: used 9\nTCP: inuse 6 orphan 0 tw 3 alloc 6 mem 109\nUDP: inuse 0 mem 7\n";
        assert_eq!(queued_pages(sockstat), Some(109));
        assert_eq!(queued_pages("UDP: inuse 0 mem 7\n"), None);
        assert!(bytes().expect("Linux") > 0);
    }
}

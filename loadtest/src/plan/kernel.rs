//! Kernel memory of the whole machine: what sockets live in.
//!
//! The sum of `Slab` (socket, file and inode objects, small buffers), `PageTables` and `VmallocUsed` (tables of the
//! rings) from `/proc/meminfo`, and the pages that TCP holds in socket buffers from `/proc/net/sockstat`. It belongs
//! to everybody: only differences within a short time mean something, and on loopback both ends of a connection are
//! in them.

use std::fs;

use anyhow::{Context, Result, bail};

/// Kernel memory of the machine now, in bytes.
pub fn kernel_bytes() -> Result<u64> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    parse(&read("/proc/meminfo")?, &read("/proc/net/sockstat")?, rustix::param::page_size() as u64)
}

fn parse(meminfo: &str, sockstat: &str, page_bytes: u64) -> Result<u64> {
    let mut kib = 0;
    for name in ["Slab:", "PageTables:", "VmallocUsed:"] {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        match number.map(|number| number.trim().parse::<u64>()) {
            Some(Ok(number)) => kib += number,
            _ => bail!("/proc/meminfo has no {name} line: kernel memory cannot be measured here"),
        }
    }
    let tcp = sockstat.lines().find_map(|line| line.strip_prefix("TCP:"));
    let mut words = tcp.context("/proc/net/sockstat has no TCP line")?.split_ascii_whitespace();
    let pages: u64 = words
        .find(|word| *word == "mem")
        .and_then(|_| words.next())
        .and_then(|pages| pages.parse().ok())
        .context("/proc/net/sockstat does not tell TCP's pages")?;
    Ok(kib * 1_024 + pages * page_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal: 9 kB\nSlab:      10 kB\nPageTables:   2 kB\nVmallocUsed:  1 kB\n";
    const SOCKSTAT: &str =
        "sockets: used 14\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 88\nUDP: inuse 0 mem 7\n";

    #[test]
    fn kilobytes_and_pages_add_up_in_bytes() {
        assert_eq!(parse(MEMINFO, SOCKSTAT, 4_096).expect("well formed"), 13 * 1_024 + 88 * 4_096);
        assert!(parse("Slab: 10 kB\n", SOCKSTAT, 4_096).is_err());
        assert!(parse(MEMINFO, "UDP: inuse 0 mem 7\n", 4_096).is_err());
    }

    #[test]
    fn this_machine_tells_its_kernel_memory() {
        assert!(kernel_bytes().expect("readable") > 0);
    }
}

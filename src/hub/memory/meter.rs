//! Reads what the process takes, and what its cgroup may have: small files of the kernel.
//!
//! - The process: `VmRSS` of /proc/self/status, which `ps` and `top` show too.
//! - The kernel's buffers of its sockets: `sock` of memory.stat (cgroups v2), where the process is
//!   alone in its cgroup or the cgroup has a limit. Elsewhere they are estimated from what the
//!   shards tell. Counting socket by socket would take as many system calls as there are sockets,
//!   and direct descriptors have no number to ask with. /proc/net/sockstat tells the sum of the
//!   whole machine.
//! - The limit: the least of memory.max and memory.high of the cgroup and those above it, or
//!   memory.limit_in_bytes of cgroups v1.

use std::path::{Path, PathBuf};

use crate::hub::process::resident_in;

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Bytes of the process in memory.
    pub resident: u64,
    /// Bytes in the buffers of its sockets, where the kernel tells.
    pub sockets: Option<u64>,
    /// Bytes that its cgroup may have.
    pub limit: Option<u64>,
}

/// Where to read.
#[derive(Debug, Clone)]
pub struct Meter {
    status: PathBuf,
    /// Each may hold a limit.
    limits: Vec<PathBuf>,
    /// memory.stat of the cgroup, if its sockets are ours.
    stat: Option<PathBuf>,
}

impl Meter {
    /// For this process.
    pub fn new() -> Meter {
        Meter::below(Path::new("/"))
    }

    /// The same with the kernel's files below `root`.
    fn below(root: &Path) -> Meter {
        let cgroups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let mounted = root.join("sys/fs/cgroup");
        let (mut limits, mut stat) = (Vec::new(), None);
        // "0::/path" is the one of version 2, "4:memory:/path" one of version 1.
        for line in cgroups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            match controllers {
                "" if mounted.join("cgroup.controllers").exists() => {
                    let own = directories(&mounted, path);
                    stat = own.first().map(|own| own.join("memory.stat")).filter(|path| path.exists());
                    let files = |own: &PathBuf| ["memory.max", "memory.high"].map(|name| own.join(name));
                    limits.extend(own.iter().flat_map(files));
                    let is_ours = own.first().is_some_and(|own| is_alone(own) || has_limit(own));
                    stat = stat.filter(|_| is_ours);
                }
                names if names.split(',').any(|name| name == "memory") => {
                    let own = directories(&mounted.join("memory"), path);
                    limits.extend(own.iter().map(|own| own.join("memory.limit_in_bytes")));
                }
                _ => {}
            }
        }
        limits.retain(|path| path.exists());
        Meter { status: root.join("proc/self/status"), limits, stat }
    }

    /// What is to be read now. What cannot be read counts as nothing.
    pub fn read(&self) -> Reading {
        let status = std::fs::read_to_string(&self.status).unwrap_or_default();
        let stat = self.stat.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let sock = |stat: &str| stat.lines().find_map(|line| line.strip_prefix("sock ")?.trim().parse().ok());
        Reading {
            resident: resident_in(&status).unwrap_or_default(),
            sockets: stat.as_deref().and_then(sock),
            limit: self.limits.iter().filter_map(|path| limit(path)).min(),
        }
    }
}

impl Default for Meter {
    fn default() -> Meter {
        Meter::new()
    }
}

/// The directory of a cgroup and those above it, as far as they are to be seen from here. In a
/// container the mount is often the container's own cgroup, whatever the path says.
fn directories(mounted: &Path, path: &str) -> Vec<PathBuf> {
    // Where it is not below what is mounted, that is all there is to be seen.
    let path = if path.contains("..") { "" } else { path.trim_start_matches('/') };
    let path = Path::new(path);
    path.ancestors().map(|path| mounted.join(path)).filter(|path| path.is_dir()).collect()
}

fn limit(path: &Path) -> Option<u64> {
    // "max" is none; so is the largest number of pages, which is what version 1 says.
    let bytes: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

fn has_limit(own: &Path) -> bool {
    limit(&own.join("memory.max")).is_some()
}

fn is_alone(own: &Path) -> bool {
    let processes = std::fs::read_to_string(own.join("cgroup.procs")).unwrap_or_default();
    processes.lines().count() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is removed in the end.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Root {
            let root = std::env::temp_dir().join(format!("fanwave-meter-{}-{name}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().expect("a directory")).expect("our own directory");
                std::fs::write(path, text).expect("our own directory");
            }
            Root(root)
        }

        fn read(&self) -> Reading {
            Meter::below(&self.0).read()
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            // What stays is the system's to remove.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const STATUS: (&str, &str) = ("proc/self/status", "Name:\tfanwave\nVmRSS:\t   4096 kB\nThreads:\t3\n");
    const RESIDENT: u64 = 4 << 20;

    #[test]
    fn a_service_of_its_own_has_the_least_limit_above_it_and_its_sockets() {
        let root = Root::new(
            "service",
            &[
                STATUS,
                ("proc/self/cgroup", "0::/system.slice/fanwave.service\n"),
                ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
                ("sys/fs/cgroup/system.slice/memory.max", "2000000\n"),
                ("sys/fs/cgroup/system.slice/fanwave.service/memory.max", "max\n"),
                ("sys/fs/cgroup/system.slice/fanwave.service/memory.high", "3000000\n"),
                ("sys/fs/cgroup/system.slice/fanwave.service/cgroup.procs", "7\n"),
                ("sys/fs/cgroup/system.slice/fanwave.service/memory.stat", "anon 5\nsock 12345\nshmem 0\n"),
            ],
        );
        assert_eq!(
            root.read(),
            Reading { resident: RESIDENT, sockets: Some(12_345), limit: Some(2_000_000) }
        );
    }

    #[test]
    fn a_container_has_the_limit_of_what_is_mounted() {
        let root = Root::new(
            "container",
            &[
                STATUS,
                ("proc/self/cgroup", "0::/../../seen/from/outside\n"),
                ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
                ("sys/fs/cgroup/memory.max", "4000000\n"),
                ("sys/fs/cgroup/cgroup.procs", "1\n7\n"),
                ("sys/fs/cgroup/memory.stat", "sock 77\n"),
            ],
        );
        assert_eq!(root.read(), Reading { resident: RESIDENT, sockets: Some(77), limit: Some(4_000_000) });
    }

    #[test]
    fn others_in_a_cgroup_without_a_limit_are_not_counted_as_ours() {
        let root = Root::new(
            "shared",
            &[
                STATUS,
                ("proc/self/cgroup", "0::/user.slice\n"),
                ("sys/fs/cgroup/cgroup.controllers", "memory\n"),
                ("sys/fs/cgroup/user.slice/memory.max", "max\n"),
                ("sys/fs/cgroup/user.slice/cgroup.procs", "7\n8\n"),
                ("sys/fs/cgroup/user.slice/memory.stat", "sock 99\n"),
            ],
        );
        assert_eq!(root.read(), Reading { resident: RESIDENT, sockets: None, limit: None });
    }

    #[test]
    fn version_one_has_a_limit_and_its_largest_number_is_none() {
        let read = |limit: &str| {
            let files = [
                STATUS,
                ("proc/self/cgroup", "5:cpu:/\n4:memory:/docker/a\n0::/\n"),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", limit),
            ];
            Root::new(&format!("one-{}", limit.trim()), &files).read()
        };
        assert_eq!(read("5000000\n").limit, Some(5_000_000));
        assert_eq!(read("9223372036854771712\n"), Reading { resident: RESIDENT, ..Reading::default() });
    }

    #[test]
    fn where_nothing_is_to_be_read_nothing_is_in_use() {
        assert_eq!(Root::new("nothing", &[]).read(), Reading::default());
        assert!(Meter::new().read().resident > 1 << 20, "the kernel tells of this process");
    }
}

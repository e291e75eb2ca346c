//! Where and from what a figure comes: machine, kernel, commit, command line, date.
//!
//! The commit is that of the checkout in which the command was given. Nothing here looks into the
//! programs that are measured: whoever names a program built elsewhere knows its commit better.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Everything that a reader needs to judge a figure or to repeat it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// `model name` of the first CPU.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Total memory in bytes.
    pub memory_bytes: u64,
    /// Release and version of the running kernel.
    pub kernel: String,
    /// Descriptors per process.
    pub descriptors: u64,
    /// Date and time in UTC, RFC 3339.
    pub date: String,
    /// Commit of the checkout of this project in which the command was given, with `-dirty` if it
    /// has changes; absent elsewhere. The measured program may have been built from another one.
    pub commit: Option<String>,
    /// The command line as given.
    pub command: Vec<String>,
}

impl Machine {
    /// Describes this machine now.
    pub fn describe(descriptors: u64) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Machine {
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cpus: crate::process::cpus_allowed().len(),
            memory_bytes: field(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
                .unwrap_or(0)
                * 1_024,
            kernel: format!(
                "Linux {} {}",
                read("/proc/sys/kernel/osrelease").trim(),
                read("/proc/sys/kernel/version").trim()
            ),
            descriptors,
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: commit(Path::new(".")),
            command: command_line(std::env::args()),
        }
    }

    /// One line for the head of a report.
    pub fn line(&self) -> String {
        format!(
            "{}, {} CPUs, {} GiB, {}, {}, commit {}",
            self.cpu,
            self.cpus,
            self.memory_bytes >> 30,
            self.kernel.split(" #").next().unwrap_or(&self.kernel),
            self.date,
            self.commit.as_deref().unwrap_or("unknown")
        )
    }
}

/// The arguments, programs by their file name: where they lie says nothing about a figure.
fn command_line(args: impl Iterator<Item = String>) -> Vec<String> {
    args.map(|arg| match Path::new(&arg).file_name() {
        Some(name) if arg.starts_with('/') => name.to_string_lossy().into_owned(),
        _ => arg,
    })
    .collect()
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The commit of the checkout of this project that `directory` is in.
fn commit(directory: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let output = git_in(directory).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let root = git(&["rev-parse", "--show-toplevel"])?;
    let manifest = fs::read_to_string(Path::new(&root).join("loadtest/Cargo.toml")).ok()?;
    if !manifest.contains(concat!("name = \"", env!("CARGO_PKG_NAME"), "\"")) {
        return None;
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    Some(if dirty { format!("{commit}-dirty") } else { commit })
}

/// `git` in `directory`, whatever repository a hook that called us belongs to.
fn git_in(directory: &Path) -> Command {
    let mut git = Command::new("git");
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(name);
    }
    git.arg("-C").arg(directory);
    git
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_what_stands_behind_the_colon() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "absent"), None);
    }

    #[test]
    fn only_a_checkout_of_this_project_gives_its_commit() {
        let directory = std::env::temp_dir().join(format!("loadtest-commit-{}", std::process::id()));
        fs::create_dir_all(directory.join("loadtest")).expect("a temporary directory");
        let git = |args: &[&str]| {
            let output = git_in(&directory).args(args).output().expect("git runs");
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        git(&["init", "--quiet"]);
        let author = ["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false"];
        git(&[&author[..], &["commit", "--quiet", "--allow-empty", "-m", "first"]].concat());
        assert_eq!(commit(&directory), None, "somebody else's repository says nothing about fanwave");
        let manifest = format!("[package]\nname = \"{}\"\n", env!("CARGO_PKG_NAME"));
        fs::write(directory.join("loadtest/Cargo.toml"), manifest).expect("written");
        assert_eq!(commit(&directory.join("loadtest")), Some(git(&["rev-parse", "--short=12", "HEAD"])));
        fs::remove_dir_all(&directory).expect("our own directory");
    }

    #[test]
    fn a_command_line_does_not_tell_where_programs_lie() {
        let args = ["/somewhere/loadtest", "cpu", "--server", "/elsewhere/fanwave", "--size", "200"];
        let shown = command_line(args.iter().map(|arg| (*arg).to_string()));
        assert_eq!(shown, ["loadtest", "cpu", "--server", "fanwave", "--size", "200"]);
    }
}

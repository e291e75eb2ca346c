//! Claim: while the disk of `--data` is full or read-only, publishes are refused with its reason,
//! subscribers go on, and `/healthz` tells it. Nothing acknowledged is lost, and when the disk takes
//! events again, so does the server, by itself.
//!
//! Set-up: a mount namespace with a small disk in memory (tmpfs(5)), held by a process that sleeps.
//! Servers begin in it; the test fills the disk, or mounts the directory read-only on itself. That
//! needs root; elsewhere the tests say that they are skipped.
//!
//! Expectation: 503 (`source`) with the words of the kernel, `degraded` with 200, `/readyz?publish`
//! with 503, and after it all a subscriber that comes back gets what was acknowledged.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::support::{Protocol, Scratch, Server, Subscriber, until};

/// A namespace with a disk of its own, for as long as this lives.
struct SmallDisk {
    holder: Child,
    /// Where it is mounted.
    place: PathBuf,
    _scratch: Scratch,
}

impl SmallDisk {
    /// One of so many mebibytes; `None`, and a word of it, where this process may not mount.
    fn new(mebibytes: u32) -> Option<SmallDisk> {
        let scratch = Scratch::new();
        let place = scratch.path("disk");
        std::fs::create_dir(&place).expect("a directory");
        let script =
            format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$0\" && echo mounted && exec sleep 600");
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(&place)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let holder = command.spawn().ok().filter(|_| rustix::process::geteuid().is_root());
        let mut holder = match holder {
            Some(holder) => holder,
            None => {
                eprintln!("skipped: only root mounts a small disk");
                return None;
            }
        };
        let mut line = String::new();
        let mut output = std::io::BufReader::new(holder.stdout.take().expect("piped"));
        std::io::BufRead::read_line(&mut output, &mut line).expect("text");
        let disk = SmallDisk { holder, place, _scratch: scratch };
        if line != "mounted\n" {
            eprintln!("skipped: this machine lets nobody mount a small disk");
            return None;
        }
        Some(disk)
    }

    /// A program that runs in the namespace.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program);
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program).args(arguments).arg(self.data()).status().expect("it starts");
        assert!(status.success(), "{program} {arguments:?}");
    }

    /// The directory of the store.
    fn data(&self) -> String {
        self.place.join("store").to_str().expect("a path in UTF-8").to_string()
    }

    fn serve(&self, fsync: &str) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_fanwave"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1"]);
        // Segments of a mebibyte.
        command.args(["--data", &self.data(), "--fsync", fsync, "--data-bytes-max", "8MiB"]);
        command.env("FANWAVE_UPGRADE_SOCKET", "none").stdin(Stdio::null());
        command
    }

    /// Takes the rest of the disk.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.filler()).expect("a file on it");
        while file.write_all(&[0; 4_096]).is_ok() {}
    }

    fn filler(&self) -> PathBuf {
        let below_root = self.place.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(below_root).join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Publishes events of 32 KiB, until one is refused with these words. Returns the numbers of those
/// that were acknowledged.
async fn publish_until_refused(server: &Server, from: usize, why: &str) -> std::ops::Range<usize> {
    let mut next = from;
    loop {
        assert!(next < from + 1_000, "it takes more than the disk has");
        let text = format!("{next} {}", "x".repeat(32 << 10));
        let answer = server.answer(server.post("/topics/t").body(text)).await;
        if answer.status == 200 {
            next += 1;
            continue;
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        let error = answer.error();
        assert!(error.contains(why), "{error}");
        return from..next;
    }
}

/// A server whose disk takes nothing, and then takes it again: `harm` and `heal` do that.
async fn goes_on(disk: &SmallDisk, fsync: &str, why: &str, harm: impl Fn(), heal: impl Fn()) {
    let mut server = Server::run(disk.serve(fsync));
    let first = server.publish("t", "first").await;
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    harm();
    let taken = publish_until_refused(&server, 0, why).await;
    let number = |text: String| text.split(' ').next().expect("a number").to_string();
    for expected in taken.clone() {
        assert_eq!(number(subscriber.text().await), expected.to_string(), "{fsync}");
    }
    let health = until("it tells", async || {
        let health = server.get("/healthz").await;
        health.body.contains("degraded").then_some(health)
    })
    .await;
    assert_eq!(health.status, 200, "it serves subscribers: {health:?}");
    assert!(health.body.contains(why), "{health:?}");
    assert_eq!(server.get("/readyz?publish").await.status, 503);
    let refused = server.stats().await["hub"]["refused"]["source"].as_u64();
    assert!(refused >= Some(1), "a refusal is counted: {refused:?}");
    // It gets what was acknowledged, and stays.
    let mut newcomer = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&first.id)).await;
    for expected in taken.clone() {
        assert_eq!(number(newcomer.text().await), expected.to_string(), "{fsync}");
    }
    heal();
    until("it takes events again", async || {
        let health = server.get("/healthz").await;
        (!health.body.contains("degraded")).then_some(())
    })
    .await;
    let text = format!("{} again", taken.end);
    server.publish("t", text.clone()).await;
    assert_eq!((subscriber.text().await, newcomer.text().await), (text.clone(), text.clone()), "{fsync}");
    // What was acknowledged before and meanwhile outlives the process.
    server.signal(if fsync == "always" { Signal::KILL } else { Signal::TERM });
    server.ended().await;
    let server = Server::run(disk.serve(fsync));
    let mut back = Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&first.id)).await;
    for expected in taken.clone() {
        assert_eq!(number(back.text().await), expected.to_string(), "{fsync}");
    }
    assert_eq!(back.text().await, text, "{fsync}");
}

#[tokio::test]
async fn a_full_disk_refuses_with_its_reason_and_recovers() {
    for fsync in ["always", "interval"] {
        let Some(disk) = SmallDisk::new(4) else { return };
        let heal = || std::fs::remove_file(disk.filler()).expect("it is there");
        goes_on(&disk, fsync, "No space left on device", || disk.fill(), heal).await;
    }
}

#[tokio::test]
async fn a_read_only_disk_refuses_with_its_reason_and_recovers() {
    let Some(disk) = SmallDisk::new(64) else { return };
    let harm = || {
        disk.run("mount", &["--bind", &disk.data()]);
        disk.run("mount", &["-o", "remount,bind,ro"]);
    };
    // The segment that grows is open; the next cannot be made.
    goes_on(&disk, "always", "Read-only file system", harm, || disk.run("umount", &[])).await;
    harm();
    let output = disk.serve("always").output().expect("the program starts");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success() && text.contains("Read-only file system"), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.contains("--data")), "{text}");
}

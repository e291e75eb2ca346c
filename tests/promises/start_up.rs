//! Claim: a server that cannot start says why in one line and ends with an exit code other than 0.
//! One that only lacks io_uring starts without it, and says so.
//!
//! Set-up: ports in use, CPUs that the process may not use, limits that contradict each other or
//! the machine, io_uring forbidden or missing, files that are missing or wrong.
//!
//! Expectation: exit code 1 for what this machine does not allow, 2 for what makes no sense;
//! standard error has one line that names the cause, standard output nothing. Without io_uring both
//! protocols are served over epoll; banner, log and `/stats` tell cause, cost and remedy.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::support::server::{answer, client, lines_of};
use crate::support::{PATIENCE, Protocol, Server, Subscriber};

const ANYWHERE: [&str; 4] = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];

/// Runs the program, which must end by itself.
fn run(flags: &[&str], environment: &[(&str, &str)]) -> Output {
    under("true", flags).envs(environment.iter().copied()).output().expect("the program runs")
}

/// The program under a limit that the shell sets first (`ulimit -n 26`). `timeout` of coreutils
/// guards a server that starts after all; in the foreground it hands a signal on once, and a second
/// one would end the drain.
fn under(limit: &str, flags: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("{limit} && exec timeout --foreground 60 \"$0\" \"$@\"")])
        .arg(env!("CARGO_BIN_EXE_fanwave"))
        .args(flags)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .stdin(Stdio::null());
    command
}

fn assert_refused(what: &str, output: &Output, code: i32, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{what}: {stderr}");
    assert_eq!(output.stdout, b"", "{what}: nothing was ready");
    assert_eq!(stderr.lines().count(), 1, "{what}: one line: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{what}: no {part:?} in {stderr}");
    }
}

#[test]
fn a_port_in_use_is_named_with_the_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for flags in [
        ["--listen", address.as_str(), "--control", "127.0.0.1:0"],
        ["--control", address.as_str(), "--listen", "127.0.0.1:0"],
    ] {
        let output = run(&flags, &[]);
        assert_refused(&address, &output, 1, &[&address, "in use", "--listen or --control"]);
    }
}

/// A second server that is started by mistake finds both ports in use.
#[test]
fn both_ports_in_use_are_named() {
    let taken = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [data, control] = taken.each_ref().map(|taken| taken.local_addr().expect("bound").to_string());
    let output = run(&["--listen", &data, "--control", &control], &[]);
    assert_refused("two ports", &output, 1, &[&data, &control, "in use", "--listen or --control"]);
}

#[test]
fn a_flag_of_other_servers_is_told_what_ours_is_called() {
    let output = run(&["--port", "8080"], &[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--listen 0.0.0.0:8080"), "{stderr}");
}

/// Neither plane is open on IPv4 if only IPv6 addresses were named, the private one least of all.
#[tokio::test]
async fn an_ipv6_address_opens_nothing_on_ipv4() {
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
        eprintln!("skipped: this machine has no IPv6");
        return;
    }
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let server = Server::start_on(any, any, &["--shards", "1", "--control-open"]);
    for bound in [server.data, server.control] {
        TcpStream::connect((Ipv6Addr::LOCALHOST, bound.port())).expect("it listens");
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, bound.port())).expect_err("not on IPv4");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{bound}");
    }
}

/// A mistyped path must not cost the operator a file.
#[test]
fn a_path_that_is_no_socket_of_the_dead_survives_a_start_on_it() {
    let directory = temporary("no-socket");
    let file = directory.join("notes.txt");
    std::fs::write(&file, "precious").expect("a file");
    let link = directory.join("link");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let nested = directory.join("nested");
    std::fs::create_dir(&nested).expect("a directory");
    let dead = directory.join("dead.sock");
    drop(UnixListener::bind(&dead).expect("a socket file"));
    let link_to_dead = directory.join("link.sock");
    std::os::unix::fs::symlink(&dead, &link_to_dead).expect("a link");
    for (path, what) in [
        (&file, "a regular file"),
        (&link, "a symbolic link"),
        (&nested, "a directory"),
        (&link_to_dead, "a symbolic link"),
    ] {
        let address = format!("unix:{}", path.display());
        let output = run(&["--listen", "127.0.0.1:0", "--control", &address], &[]);
        assert_refused(what, &output, 1, &[&address, what, "remove it, or choose another path"]);
    }
    assert_eq!(std::fs::read(&file).expect("it is there"), b"precious");
    for link in [&link, &link_to_dead] {
        assert!(std::fs::symlink_metadata(link).expect("it is there").is_symlink());
    }
    assert!(nested.is_dir() && dead.exists());
    std::fs::remove_dir_all(&directory).expect("our own directory");
}

/// Also one whose backlog is full, for whom a connect would wait.
#[test]
fn a_socket_that_somebody_listens_on_is_not_taken_away() {
    let directory = temporary("live-socket");
    let path = directory.join("live.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&socket2::SockAddr::unix(&path).expect("a short path")).expect("a free path");
    socket.listen(0).expect("a bound socket");
    let address = format!("unix:{}", path.display());
    // The first start leaves a connection in the backlog that fills it.
    for _ in 0..3 {
        let output = run(&["--listen", "127.0.0.1:0", "--control", &address], &[]);
        assert_refused("a live socket", &output, 1, &[&address, "listens", "choose another path"]);
    }
    std::fs::remove_dir_all(&directory).expect("our own directory");
}

/// A directory of this test's own.
fn temporary(name: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("fanwave-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    directory
}

/// Listeners share their port among the shards of one server, not with a second server.
#[tokio::test]
async fn a_second_server_on_the_same_port_is_refused() {
    let first = Server::start(&["--shards", "1"]);
    let address = first.data.to_string();
    let output = run(&["--listen", &address, "--control", "127.0.0.1:0"], &[]);
    assert_refused("a second server", &output, 1, &[&address, "in use"]);
    let mut subscriber = Subscriber::connect(first.data, Protocol::Sse, &["t"]).await;
    first.publish("t", "still ours").await;
    assert_eq!(subscriber.text().await, "still ours");
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--cpus", "1000"], &["--cpus", "CPU 1000"]),
        (&["--window-events-max", "1"], &["--window-events-max", "at least 4"]),
        (&["--window-bytes-max", "1MiB"], &["--window-bytes-max", "--message-bytes-max"]),
        (&["--heartbeat-ms", "1"], &["--heartbeat-ms"]),
        (&["--shard-queue-batches-max", "1000000000000"], &["--shard-queue-batches-max", "at most"]),
        (&["--config", "/nonexistent/fanwave.toml"], &["/nonexistent/fanwave.toml", "No such file"]),
        (&["--listen", "127.0.0.1:9", "--control", "127.0.0.1:9"], &["--control", "127.0.0.1:9"]),
        (&["--listen", "127.0.0.1:9", "--listen", "127.0.0.1:9"], &["--listen", "twice"]),
    ];
    for (flags, parts) in cases {
        assert_refused(&format!("{flags:?}"), &run(flags, &[]), 2, parts);
    }
    let output = run(&[], &[("FANWAVE_SHARDS", "many")]);
    assert_refused("the environment", &output, 2, &["environment", "--shards"]);
}

#[test]
fn more_connections_than_descriptors_are_refused_with_the_remedy() {
    let flags =
        ["--connections-per-shard-max", "100000000", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
    assert_refused(
        "too many connections",
        &run(&flags, &[]),
        1,
        &["--connections-per-shard-max", "ulimit -n"],
    );
}

/// From hardly any descriptor to one too few: no such server starts, aborts, or finds out later.
#[test]
fn a_descriptor_limit_below_what_the_server_itself_needs_is_refused() {
    for sockets in ["direct", "plain"] {
        for limit in [16, 20, 26, 28, 40, 57] {
            let flags = [&ANYWHERE[..], &["--shards", "2", "--sockets", sockets]].concat();
            let output = under(&format!("ulimit -n {limit}"), &flags).output().expect("the program runs");
            let what = format!("{limit} descriptors, {sockets} sockets");
            let told = format!("the descriptor limit of {limit}, of which the server itself needs ");
            assert_refused(&what, &output, 1, &[&told, "room for 0 connections", "raise ulimit -n"]);
        }
    }
}

#[tokio::test]
async fn the_lowest_descriptor_limit_that_is_taken_serves_both_planes() {
    let flags = [&ANYWHERE[..], &["--shards", "2", "--sockets", "direct"]].concat();
    let mut command = under("ulimit -n 58", &flags);
    let mut server =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let lines = lines_of(server.stdout.take().expect("piped"));
    let address = |label| {
        let mut banner = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok());
        let line = banner.find_map(|line| line.strip_prefix(label).map(str::to_string));
        line.expect("a banner with this address").parse::<SocketAddr>().expect("an address")
    };
    let (data, control) = (address("data plane    "), address("control plane "));
    let mut subscribers = Vec::new();
    for _ in 0..20 {
        subscribers.push(Subscriber::connect(data, Protocol::Sse, &["t"]).await);
    }
    let publish = client(reqwest::Client::builder()).post(format!("http://{control}/topics/t")).body("x");
    assert_eq!(answer(publish).await.status, 200);
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "x");
    }
    // `timeout` hands it on.
    kill_process(Pid::from_child(&server), Signal::TERM).expect("our own child");
    assert_eq!(server.wait().expect("our own child").code(), Some(0));
}

/// io_uring forbidden, as by the seccomp profile of most containers, or not there at all: the
/// system call, the errno that answers it, and what an operator is told.
fn without_uring() -> [(libc::c_long, i32, Vec<&'static str>); 4] {
    let forbidden = ["Operation not permitted", "kernel.io_uring_disabled", "seccomp", "io_uring"];
    let missing = ["Function not implemented", "Linux 6.1 or newer", "CONFIG_IO_URING", "io_uring"];
    [
        (libc::SYS_io_uring_setup, libc::EPERM, forbidden.into()),
        (libc::SYS_io_uring_setup, libc::ENOSYS, missing.into()),
        (libc::SYS_io_uring_register, libc::EPERM, forbidden.into()),
        (libc::SYS_io_uring_enter, libc::EPERM, forbidden.into()),
    ]
}

/// glommio panics without io_uring, so it must not be asked first.
#[test]
fn a_start_that_insists_on_io_uring_names_the_cause_and_the_remedy() {
    for (call, errno, parts) in without_uring() {
        let what = format!("system call {call} answered with {errno}");
        let flags = [&ANYWHERE[..], &["--egress", "uring"]].concat();
        let output = filtered(call, Vec::new(), errno, move || run(&flags, &[]));
        assert_refused(&what, &output, 1, &parts);
    }
}

#[tokio::test]
async fn a_server_without_io_uring_serves_over_epoll_and_says_so() {
    for (call, errno, parts) in without_uring() {
        let flags = ["--shards", "2", "--egress", "auto"];
        let server = filtered(call, Vec::new(), errno, move || Server::start(&flags));
        serves(&server).await;
        let banner = server.banner.join("\n");
        let stats = server.stats().await["egress"].clone();
        let log = server.into_log().await;
        let warning = log.lines().find(|line| line.contains("over epoll")).expect("a warning");
        assert!(warning.contains("WARN"), "{warning}");
        assert!(banner.contains("\negress        epoll on plain descriptors: no io_uring: "), "{banner}");
        assert_eq!((&stats["ring"], &stats["sockets"]), (&"epoll".into(), &"plain".into()));
        for told in [&banner, warning, &stats.to_string()] {
            for part in parts.iter().chain(&["one system call per send"]) {
                assert!(told.contains(part), "system call {call}, errno {errno}: no {part:?} in {told}");
            }
        }
    }
}

/// A subscriber of each protocol gets what is published.
async fn serves(server: &Server) {
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
    }
    server.publish("t", "hello").await;
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "hello");
    }
}

#[tokio::test]
async fn an_egress_that_was_asked_for_is_told_without_a_warning() {
    for (asked, told) in [("uring", "io_uring on "), ("epoll", "epoll on plain ")] {
        let server = Server::start(&["--shards", "1", "--egress", asked]);
        serves(&server).await;
        let banner = server.banner.join("\n");
        assert!(banner.contains(&format!("\negress        {told}")), "{banner}");
        let stats = server.stats().await["egress"].clone();
        assert_eq!(stats["ring"], asked);
        assert_eq!(stats["why"], format!("--egress {asked} asks for it"));
        assert!(stats["remedy"].is_null(), "{stats}");
        let log = server.into_log().await;
        assert!(!log.contains("WARN") && log.contains(&format!("--egress {asked} asks for it")), "{log}");
    }
}

/// The rings of our own are made, those of glommio, which have 128 entries, are not.
#[test]
fn a_shard_whose_executor_cannot_be_made_is_named_with_the_cause_and_the_remedy() {
    let glommio = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 128);
    let rule = SeccompRule::new(vec![glommio.expect("a condition")]).expect("a rule");
    let start = || run(&ANYWHERE, &[]);
    let output = filtered(libc::SYS_io_uring_setup, vec![rule], libc::EMFILE, start);
    let parts = ["shard 0: cannot make its executor: ", "Too many open files", "raise ulimit -n"];
    assert_refused("an executor that cannot be made", &output, 1, &parts);
}

/// Does something where the system call `call`, if it matches one of `rules` or there is none, is
/// answered with `errno`.
fn filtered<T: Send + 'static>(
    call: libc::c_long,
    rules: Vec<SeccompRule>,
    errno: i32,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let filter = SeccompFilter::new(
        [(call, rules)].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().expect("an architecture that io_uring has"),
    );
    let program: BpfProgram = filter.expect("a filter").try_into().expect("a small filter");
    // A filter stays for good with the thread that sets it, and goes on to the processes that it
    // starts.
    let filtered = std::thread::spawn(move || {
        seccompiler::apply_filter(&program).expect("every kernel with io_uring has seccomp");
        work()
    });
    filtered.join().expect("the program runs")
}

/// glommio asks for 512 KiB, whether or not the kernel holds this user to the limit.
#[test]
fn a_limit_of_locked_memory_that_is_too_low_for_io_uring_is_named_with_the_remedy() {
    let flags = [&ANYWHERE[..], &["--shards", "2", "--egress", "uring"]].concat();
    let output = under("ulimit -l 64", &flags).output().expect("the program runs");
    let parts = ["shard 0: ", "(memlock) is 64 KiB", "needs 512 KiB", "raise ulimit -l"];
    assert_refused("64 KiB of locked memory", &output, 1, &parts);
}

/// 64 KiB are what containers have.
#[test]
fn a_limit_of_locked_memory_that_is_too_low_for_io_uring_is_enough_for_epoll() {
    let flags = [&ANYWHERE[..], &["--shards", "2"]].concat();
    let mut server = under("ulimit -l 64", &flags);
    let mut server = server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let lines = lines_of(server.stdout.take().expect("piped"));
    let banner: Vec<String> = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok())
        .take_while(|line| !line.contains("/topics/hello"))
        .collect();
    // `timeout` hands it on.
    kill_process(Pid::from_child(&server), Signal::TERM).expect("our own child");
    assert_eq!(server.wait().expect("our own child").code(), Some(0));
    let banner = banner.join("\n");
    for part in ["egress        epoll", "(memlock) is 64 KiB", "remedy: raise ulimit -l"] {
        assert!(banner.contains(part), "no {part:?} in {banner}");
    }
}

#[test]
fn a_mistyped_flag_is_answered_with_the_usage() {
    for flags in [&["--lsten", "x"][..], &["--shards", "0"], &["--listen", "nowhere"], &["serv"]] {
        let output = run(flags, &[]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(flags[0]), "{flags:?}: {stderr}");
        assert_eq!(output.stdout, b"");
    }
}

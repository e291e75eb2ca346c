//! `loadtest compare`: what cannot be measured is told in one line, with its remedy and no figures;
//! and, where nchan and NATS are installed (loadtest/rivals/install), a small comparison with them
//! is complete and leaves nothing behind.
//!
//! Servers that misbehave are shell scripts which stand in for the real programs on a PATH of their
//! own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

/// A directory for a test's files and for the temporary files of loadtest, in separate places.
struct Place {
    root: PathBuf,
}

impl Place {
    fn new(name: &str) -> Place {
        let root = std::env::temp_dir().join(format!("compare-test-{}-{name}", std::process::id()));
        for part in ["bin", "tmp"] {
            fs::create_dir_all(root.join(part)).expect("room");
        }
        Place { root }
    }

    /// Writes a shell script and gives its path.
    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.join("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("ours");
        path
    }

    /// `loadtest compare` of a tiny workload; servers are looked for on `path`.
    fn compare(&self, path: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.arg("compare").args(args).env("PATH", path).env("TMPDIR", self.root.join("tmp"));
        command
    }

    /// The same with only our scripts to be found.
    fn among_scripts(&self, args: &[&str]) -> Output {
        let bin = self.root.join("bin");
        self.compare(bin.to_str().expect("UTF-8"), args).output().expect("loadtest runs")
    }

    /// What loadtest left in its temporary directory.
    fn left_behind(&self) -> Vec<String> {
        let entries = fs::read_dir(self.root.join("tmp")).expect("ours");
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// The error of a run that failed: its last line, after which nothing is printed.
fn failure(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it succeeded: {errors}");
    assert!(output.stdout.is_empty(), "it printed figures: {}", String::from_utf8_lossy(&output.stdout));
    errors.lines().last().unwrap_or_default().to_owned()
}

/// A fanwave that says it is ready at `port` of loopback and stays.
fn ready_at(port: u16) -> String {
    format!(
        "if [ \"$1\" = --version ]; then echo 'fanwave 9.8.7'; exit; fi\n\
         echo 'data plane 127.0.0.1:{port}'; echo 'control plane 127.0.0.1:{port}'; exec /bin/sleep 60"
    )
}

const TINY: [&str; 12] = [
    "--connections",
    "20",
    "--pairs",
    "1",
    "--seconds-per-leg",
    "0.2",
    "--memory-connections",
    "20,60",
    "--memory-settled-ms",
    "500",
    "--in-flight",
    "1,4",
];

fn with_tiny<'a>(args: &[&'a str]) -> Vec<&'a str> {
    TINY.iter().chain(args).copied().collect()
}

#[test]
fn impossible_arguments_are_told_by_name_and_nothing_is_measured() {
    let place = Place::new("arguments");
    for (args, word) in [
        (&["--pairs", "0"][..], "--pairs"),
        (&["--size", "8"], "--size 8"),
        (&["--memory-connections", "9,9"], "--memory-connections 9,9"),
        (&["--seconds-per-leg", "0"], "--seconds-per-leg 0"),
        (&["--sender-cpu", "9999"], "--sender-cpu 9999"),
        (&["--page", "/nowhere/at/all.html"], "make the directory /nowhere/at"),
        (&["--json", "/nowhere/at/all.json"], "make the directory /nowhere/at"),
        (&["--rivals", "redis"], "--help"),
        (&["--server", "/nowhere/fanwave"], "cannot run /nowhere/fanwave"),
    ] {
        let error = failure(&place.among_scripts(args));
        assert!(error.contains(word), "{args:?}: {error}");
    }
    let fanwave = place.script("fanwave", &ready_at(1));
    let fanwave = fanwave.to_str().expect("UTF-8");
    for (args, word) in [
        (&["--subscribe-sse", "https://127.0.0.1/", "--publish-to", "http://127.0.0.1/"][..], "plain port"),
        (&["--subscribe-sse", "http://127.0.0.1/"], "--publish-command"),
        (&["--publish-to", "http://127.0.0.1/"], "--subscribe-ws"),
    ] {
        let args = [&["--server", fanwave, "--rivals"][..], args].concat();
        let error = failure(&place.among_scripts(&args));
        assert!(error.contains(word), "{args:?}: {error}");
    }
}

#[test]
fn a_server_that_is_absent_incomplete_or_ends_early_is_told_with_the_reason() {
    let place = Place::new("absent");
    let fanwave = place.script("fanwave", &ready_at(1));
    let fanwave = fanwave.to_str().expect("UTF-8");
    let with = |rival: &str| failure(&place.among_scripts(&["--server", fanwave, "--rivals", rival]));

    for (rival, program) in [("nchan", "nginx"), ("nats", "nats-server")] {
        let error = with(rival);
        assert!(error.contains(&format!("cannot run {program}")), "{error}");
        assert!(error.contains("loadtest/rivals/install"), "{error}");
    }

    place.script("nginx", "if [ $1 = -v ]; then echo nginx/1.2.3; else echo --modules-path=/nowhere >&2; fi");
    let error = with("nchan");
    assert!(error.contains("nginx 1.2.3 has no nchan") && error.contains("rivals/install"), "{error}");

    place.script("env", "shift $(($# - 3)); exec \"$@\"");
    place.script("nats-server", "if [ $1 = --version ]; then echo v4.5.6; else echo no room >&2; exit 3; fi");
    let error = with("nats");
    assert!(error.contains("nats-server did not start: exit code 3: no room"), "{error}");

    place.script("fanwave", "if [ \"$1\" = --version ]; then echo 1.0; else echo a bad day; exit 4; fi");
    let error = with("nats");
    assert!(error.contains("exit code 4: a bad day"), "{error}");
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
fn a_server_that_was_killed_is_told_by_the_signal_and_not_by_what_it_had_printed() {
    let place = Place::new("killed-early");
    for (name, ready) in [
        ("before", "echo a banner".to_owned()),
        ("after", "echo a banner; echo data plane 127.0.0.1:1; echo control plane 127.0.0.1:1".to_owned()),
    ] {
        let fanwave = place.script(
            name,
            &format!("if [ \"$1\" = --version ]; then echo 1.0; exit; fi; {ready}; kill -s KILL $$"),
        );
        let fanwave = fanwave.to_str().expect("UTF-8");
        let error = failure(&place.among_scripts(&with_tiny(&["--server", fanwave, "--rivals"])));
        assert!(error.contains("signal 9 (SIGKILL)") && !error.contains("banner"), "{error}");
    }
}

#[test]
fn a_server_that_refuses_or_speaks_another_protocol_is_told_by_its_name() {
    let place = Place::new("refuses");
    let fanwave = place.script("fanwave", &ready_at(1));
    let error = failure(&place.among_scripts(&with_tiny(&[
        "--server",
        fanwave.to_str().expect("UTF-8"),
        "--rivals",
    ])));
    assert!(error.contains("fanwave") && error.contains("is the server running?"), "{error}");

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    thread::spawn(move || {
        use std::io::{Read, Write};
        for mut socket in listener.incoming().flatten() {
            let _ = socket.read(&mut [0; 1_024]);
            let _ = socket.write_all(b"SSH-2.0-not-a-web-server\r\n\r\n");
        }
    });
    let fanwave = place.script("fanwave", &ready_at(port));
    let error = failure(&place.among_scripts(&with_tiny(&[
        "--server",
        fanwave.to_str().expect("UTF-8"),
        "--rivals",
    ])));
    assert!(error.contains("fanwave") && error.contains("SSH-2.0"), "{error}");
}

/// The fanwave that is built beside loadtest.
fn fanwave() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(path.is_file(), "build it first: cargo build --workspace");
    path
}

fn everywhere() -> String {
    std::env::var("PATH").expect("a PATH")
}

#[test]
#[ignore = "needs nchan and nats-server: loadtest/rivals/install"]
fn rival_comparison_is_complete_and_leaves_nothing_behind() {
    let place = Place::new("rivals");
    let (json, page) = (place.root.join("compare.json"), place.root.join("compare.html"));
    let server = fanwave();
    let paths = [&server, &json, &page].map(|path| path.to_str().expect("UTF-8"));
    let args = with_tiny(&["--server", paths[0], "--json", paths[1], "--page", paths[2]]);
    let output = place.compare(&everywhere(), &args).output().expect("loadtest runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let document: Value = serde_json::from_slice(&fs::read(&json).expect("saved")).expect("JSON");
    let results = &document["results"];
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list");
        list.iter().map(|one| one["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(&results["servers"]), ["fanwave", "nchan", "nats"]);
    let cells = results["cells"].as_array().expect("cells");
    let shape: Vec<_> =
        cells.iter().map(|cell| (cell["protocol"].as_str(), cell["in_flight"].as_u64())).collect();
    let (sse, ws) = (Some("sse"), Some("ws"));
    assert_eq!(shape, [(sse, Some(1)), (sse, Some(4)), (ws, Some(1)), (ws, Some(4))]);
    for cell in cells {
        let all =
            if cell["protocol"] == "sse" { &["fanwave", "nchan"][..] } else { &["fanwave", "nchan", "nats"] };
        assert_eq!(names(&cell["servers"]), all);
        for column in cell["servers"].as_array().expect("columns") {
            assert!(column["us_per_delivery"]["median"].as_f64().is_some_and(|us| us > 0.0), "{column}");
            assert!(column["to_floor"]["median"].as_f64().is_some_and(|ratio| ratio > 0.0), "{column}");
            assert_eq!(column["fanwave_to_it"].is_null(), column["name"] == "fanwave");
        }
    }
    let memory = results["memory"].as_array().expect("readings");
    assert_eq!(memory.len(), 5);
    assert!(
        memory.iter().all(|reading| reading["at_many"]["rss_own"].as_u64().is_some_and(|bytes| bytes > 0))
    );

    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(table.contains("no Server-Sent Events"), "{table}");
    let page = fs::read_to_string(&page).expect("saved");
    assert!(page.contains("<svg") && page.contains("nats 2."), "the page lacks pictures or versions");
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
#[ignore = "needs nchan and nats-server: loadtest/rivals/install"]
fn rival_comparison_over_tls_has_everybody_and_says_where_the_time_goes() {
    let place = Place::new("rivals-tls");
    let (json, server) = (place.root.join("compare.json"), fanwave());
    let paths = [&server, &json].map(|path| path.to_str().expect("UTF-8"));
    let args = with_tiny(&["--tls", "--server", paths[0], "--json", paths[1]]);
    let output = place.compare(&everywhere(), &args).output().expect("loadtest runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&fs::read(&json).expect("saved")).expect("JSON");
    let cells = document["results"]["cells"].as_array().expect("cells");
    let servers: Vec<usize> =
        cells.iter().map(|cell| cell["servers"].as_array().expect("columns").len()).collect();
    assert_eq!(servers, [2, 2, 3, 3]);
    let columns = cells.iter().flat_map(|cell| cell["servers"].as_array().expect("columns"));
    let measured = |column: &Value| column["us_per_delivery"]["median"].as_f64().is_some_and(|us| us > 0.0);
    assert!(columns.clone().all(measured), "{document}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("user + system µs") && said.contains("AES-128-GCM"), "{said}");
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
#[ignore = "needs nchan: loadtest/rivals/install"]
fn rival_comparison_over_http_2_has_nchan_beside_fanwave() {
    let place = Place::new("rivals-http2");
    let (json, server) = (place.root.join("compare.json"), fanwave());
    let paths = [&server, &json].map(|path| path.to_str().expect("UTF-8"));
    let args = with_tiny(&["--tls", "--server", paths[0], "--json", paths[1]]);
    let streams = ["--rivals", "nchan", "--protocol", "sse", "--h2-streams", "6"];
    let args = [&args[..], &streams].concat();
    let output = place.compare(&everywhere(), &args).output().expect("loadtest runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&fs::read(&json).expect("saved")).expect("JSON");
    for cell in document["results"]["cells"].as_array().expect("cells") {
        assert_eq!(
            (&cell["servers"][0]["name"], &cell["servers"][1]["name"]),
            (&"fanwave".into(), &"nchan".into())
        );
        let ratio = cell["servers"][1]["fanwave_to_it"]["median"].as_f64();
        assert!(ratio.is_some_and(|ratio| ratio > 0.0), "{cell}");
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("over HTTP/2, 6 on a connection"), "{said}");
    assert_eq!(place.left_behind(), Vec::<String>::new());
}

#[test]
#[ignore = "needs nchan: loadtest/rivals/install"]
fn rival_servers_die_with_a_comparison_that_is_killed_or_interrupted_at_its_terminal() {
    let place = Place::new("killed");
    let server = fanwave();
    let server = server.to_str().expect("UTF-8");
    let args = ["--server", server, "--rivals", "nchan", "--connections", "20", "--pairs", "1000"];
    for interrupted in [false, true] {
        let mut comparison = place
            .compare(&everywhere(), &args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("loadtest runs");
        let worker = until(|| {
            let master = children(comparison.id()).into_iter().find(|&pid| is_nginx(pid))?;
            children(master).first().copied()
        });
        let pid = Pid::from_raw(comparison.id() as i32).expect("a process id");
        match interrupted {
            false => comparison.kill().expect("it runs"),
            // As Ctrl-C does, to all that it has started in its group.
            true => kill_process_group(pid, Signal::INT).expect("it runs"),
        }
        comparison.wait().expect("it ended");
        until(|| (!is_nginx(worker)).then_some(()));
    }
}

/// A fanwave of the test's own, which plays a server that runs already.
struct Own {
    process: Child,
    data: String,
    control: String,
}

impl Own {
    fn start() -> Own {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0", "--shards", "1"];
        let mut process =
            Command::new(fanwave()).args(arguments).stdout(Stdio::piped()).spawn().expect("fanwave runs");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut address = |label: &str| {
            let line = lines.find(|line| line.trim_start().starts_with(label)).expect("it tells its address");
            let words = line.split_whitespace();
            let word =
                words.map(|word| word.trim_start_matches("http://")).find(|word| word.starts_with("127."));
            word.expect("an address").to_owned()
        };
        let (data, control) = (address("data plane"), address("control plane"));
        Own { process, data, control }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "needs fanwave beside loadtest: cargo build --workspace"]
fn rival_named_by_urls_is_measured_however_events_are_published_to_it() {
    let place = Place::new("urls");
    let own = Own::start();
    let server = fanwave();
    let server = server.to_str().expect("UTF-8");
    let (sse, ws) = (format!("http://{}/sse/{{topic}}", own.data), format!("ws://{}/ws/{{topic}}", own.data));
    let (pid, json) = (own.process.id().to_string(), place.root.join("compare.json"));
    let post = format!("http://{}/topics/{{topic}}", own.control);
    let command = format!("{server} publish --server http://{} --lines {{topic}}", own.control);
    for (way, how) in [("--publish-to", post.as_str()), ("--publish-command", command.as_str())] {
        let urls = ["--subscribe-sse", &sse, "--subscribe-ws", &ws, way, how, "--pid", &pid];
        let rest = ["--server-name", "mine", "--server", server, "--rivals", "--json"];
        let args = with_tiny(&[&urls[..], &rest, &[json.to_str().expect("UTF-8")]].concat());
        let output = place.compare(&everywhere(), &args).output().expect("loadtest runs");
        assert!(output.status.success(), "{way}: {}", String::from_utf8_lossy(&output.stderr));
        let document: Value = serde_json::from_slice(&fs::read(&json).expect("saved")).expect("JSON");
        assert_eq!(
            document["results"]["memory"].as_array().map(Vec::len),
            Some(2),
            "{way}: fanwave alone is fresh"
        );
        for cell in document["results"]["cells"].as_array().expect("cells") {
            assert_eq!(cell["servers"][1]["name"], "mine", "{way}");
            let cost = cell["servers"][1]["fanwave_to_it"]["median"].as_f64();
            assert!(cost.is_some_and(|ratio| ratio > 0.0), "{way}: {cell}");
        }
    }
    assert!(Path::new(&format!("/proc/{pid}/stat")).exists(), "it runs on");
}

/// Asks again and again, for at most 20 s.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "it did not happen within 20 s");
        thread::sleep(Duration::from_millis(10));
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// True if the process is an nginx that has not ended.
fn is_nginx(pid: u32) -> bool {
    // A process that has ended and that nobody has asked for has no command line any more.
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains("nginx")
}

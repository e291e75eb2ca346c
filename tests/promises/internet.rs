//! Claim: `docs/internet.md` brings a server to the Internet, line by line as it stands there.
//!
//! Set-up: the page's blocks in their order, as one script. Its paths lead into a directory of the
//! test, its addresses to ports that are free. Stand-ins take the place of what a test cannot be:
//! the service manager, which starts and reloads the server; certbot, which has a certificate of
//! the test's authority; the group that files are given to. curl and openssl find the host name at
//! the test's port.
//!
//! Expectation: every command succeeds; what the page says that it prints is printed; the listener
//! hears what is published; every metric that it names is there.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::Scratch;
use crate::support::secure::Authority;

const PAGE: &str = include_str!("../../docs/internet.md");

/// The blocks of the page: language and text.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let mut parts = PAGE.split("```");
    parts.next();
    let mut blocks = Vec::new();
    while let (Some(block), Some(_)) = (parts.next(), parts.next()) {
        blocks.push(block.split_once('\n').expect("a block has a first line"));
    }
    blocks
}

/// A directory of the test, as the page's machine.
struct Machine {
    scratch: Scratch,
    /// The data plane's, with TLS, the control plane's.
    ports: [u16; 3],
}

impl Machine {
    fn new() -> Machine {
        let any = || TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let ports = [any(), any(), any()].map(|listener| listener.local_addr().expect("bound").port());
        let machine = Machine { scratch: Scratch::new(), ports };
        let authority = Authority::new(&machine.scratch);
        let (certificate, key) = authority.certificate_for(&["events.example.com"]);
        for directory in ["bin", "made", "fanwave", "letsencrypt", "systemd", "run", "work"] {
            std::fs::create_dir(machine.scratch.path(directory)).expect("our own directory");
        }
        machine.scratch.write("made/fullchain.pem", &certificate);
        machine.scratch.write("made/privkey.pem", &key);
        machine.stand_ins();
        machine
    }

    fn path(&self, name: &str) -> String {
        self.scratch.path(name).to_str().expect("UTF-8").to_string()
    }

    /// Programs that come first in the script's path.
    fn stand_ins(&self) {
        let (here, [_, tls, _]) = (self.path(""), self.ports);
        let program = env!("CARGO_BIN_EXE_fanwave");
        let others = std::env::var("PATH").expect("a path");
        let real = format!("PATH='{others}' exec");
        let start = format!(
            "{program} serve --config {here}fanwave/fanwave.toml --shards 1 --upgrade-socket none \
             > {here}banner 2> {here}log & echo $! > {here}pid\n\
             until grep -q /topics/hello {here}banner; do kill -0 $(cat {here}pid); sleep 0.05; done"
        );
        let certbot = format!(
            "mkdir -p {here}letsencrypt/live/events.example.com\n\
             cp {here}made/*.pem {here}letsencrypt/live/events.example.com\n\
             for hook; do :; done; exec $hook"
        );
        for (name, body) in [
            ("fanwave", format!("exec {program} \"$@\"")),
            (
                "systemctl",
                format!(
                    "case \"$*\" in\n\"restart fanwave\")\n{start} ;;\n\
                     \"reload fanwave\") kill -HUP \"$(cat {here}pid)\" ;;\nesac"
                ),
            ),
            ("certbot", certbot),
            ("chgrp", String::new()),
            ("sysctl", String::new()),
            ("install", format!("shift 4; {real} install -m 640 \"$@\"")),
            (
                "curl",
                format!(
                    "{real} curl --noproxy '*' --cacert {here}ca.pem \
                     --connect-to events.example.com:443:127.0.0.1:{tls} \"$@\""
                ),
            ),
            (
                "openssl",
                format!(
                    "if [ \"$1\" = s_client ]; then shift 3; set -- s_client -connect 127.0.0.1:{tls} \"$@\"; fi\n\
                     {real} openssl \"$@\""
                ),
            ),
        ] {
            let path = self.scratch.write(&format!("bin/{name}"), &format!("#!/bin/sh\nset -e\n{body}\n"));
            let mode = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(path, mode).expect("our own file");
        }
    }

    /// A block of the page, with this machine's paths and addresses.
    fn here(&self, text: &str) -> String {
        let [data, tls, control] = self.ports;
        [
            ("/etc/", self.path("")),
            ("/run/fanwave", self.path("run")),
            ("/var/lib/fanwave", self.path("lib")),
            ("\"0.0.0.0:443\", \"[::]:443\"", format!("\"127.0.0.1:{tls}\"")),
            ("127.0.0.1:8080", format!("127.0.0.1:{data}")),
            ("127.0.0.1:8081", format!("127.0.0.1:{control}")),
        ]
        .iter()
        .fold(text.to_string(), |text, (page, here)| text.replace(page, here))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.path("pid")).ok();
        if let Some(pid) = pid.and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?)) {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
#[ignore = "needs curl and openssl: tests/run installs them"]
fn internet_every_command_of_the_page_works_as_it_stands() {
    let machine = Machine::new();
    let mut script = format!("set -eu\ncd {}\n", machine.path("work"));
    let mut others = Vec::new();
    for (language, text) in blocks() {
        let text = machine.here(text);
        match language {
            "toml" if text.contains("acme") => others.push(text),
            "toml" => {
                let path = machine.path("fanwave/fanwave.toml");
                script.push_str(&format!("cat > {path} <<'TOML'\n{text}TOML\n"));
            }
            // A listener stands beside the rest, and hears at once.
            "sh" if text.starts_with("curl -N") => {
                script.push_str(&format!("(exec {text}) > heard 2> meter &\nlistener=$!\n"));
                script.push_str("until grep -q ^retry: heard; do kill -0 $listener; sleep 0.05; done\n");
            }
            "sh" => script.push_str(&text),
            _ => {}
        }
    }
    script.push_str("until grep -q '^data: hello, world' heard; do sleep 0.05; done\nkill $listener\n");
    let control = SocketAddr::from(([127, 0, 0, 1], machine.ports[2]));
    script.push_str(&format!(
        "curl --fail -H \"Authorization: Bearer $(cat {})\" http://{control}/metrics > metrics\n",
        machine.path("fanwave/control-token")
    ));
    let path = format!("{}:{}", machine.path("bin"), std::env::var("PATH").expect("a path"));
    let script = machine.scratch.write("script", &script);
    let output = Command::new("timeout").args(["60", "sh", &script]).env("PATH", path).output();
    let output = output.expect("a shell");
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
    let log = std::fs::read_to_string(machine.path("log")).unwrap_or_default();
    assert!(output.status.success(), "{stdout}\n{stderr}\nthe server's log:\n{log}");
    assert!(stdout.contains("401\n403\n401\nno TLS 1.2\n"), "{stdout}");
    assert!(stdout.contains("notAfter="), "{stdout}");
    // The lines for a certificate that the server has signed by itself.
    let [acme] = others.as_slice() else { panic!("one block of them: {others:?}") };
    let config = std::fs::read_to_string(machine.path("fanwave/fanwave.toml")).expect("our file");
    let kept = config.lines().filter(|line| !line.starts_with("tls_"));
    let config = acme.lines().chain(kept).collect::<Vec<_>>().join("\n");
    let config = machine.scratch.write("acme.toml", &config);
    let checked = Command::new(env!("CARGO_BIN_EXE_fanwave")).args(["check-config", &config]).output();
    let checked = checked.expect("it runs");
    assert!(checked.status.success(), "{checked:?}");
    // What is to be watched is there to be seen.
    let metrics = std::fs::read_to_string(machine.path("work/metrics")).expect("the script's file");
    let named = PAGE.split('`').filter(|word| word.starts_with("fanwave_") && !word.contains("_acme_"));
    for name in named {
        assert!(metrics.contains(&format!("# TYPE {}", name.trim_end_matches("_total"))), "no {name}");
    }
}

//! Claim: what `deploy/` holds works as it stands.
//!
//! Set-up: the configuration of the package, read by the server; the unit files, read by
//! `systemd-analyze verify` where it is installed.
//!
//! Expectation: the server takes the file and listens where it says; systemd finds nothing to
//! complain about.

use std::path::Path;
use std::process::Command;

use crate::support::{Scratch, Server};

fn deployed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

#[tokio::test]
async fn the_configuration_of_the_package_starts_a_server() {
    let scratch = Scratch::new();
    let socket = scratch.path("control.sock");
    let text = deployed("fanwave.toml").replace("/run/fanwave/control.sock", &socket.display().to_string());
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        assert!(text.contains(address), "{text}");
    }
    let text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8081", "127.0.0.1:0");
    let file = scratch.write("fanwave.toml", &text);
    // What is commented out is valid too.
    let file_with_all = scratch.write(
        "all.toml",
        &text
            .replace("#cors", "cors")
            .replace("#proxy", "proxy")
            .replace("#connections", "connections")
            .replace("#log", "log")
            .replace("#control_token_file = \"/run/credentials/fanwave.service/control-token\"", ""),
    );
    for file in [file, file_with_all] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
        command.args(["serve", "--config", &file, "--shards", "1"]).env_clear();
        let server = Server::run(command);
        assert!(server.banner.iter().any(|line| line.contains(&format!("unix:{}", socket.display()))));
        assert_eq!(server.get("/healthz").await.status, 200);
        drop(server);
    }
}

#[test]
fn the_units_are_right() {
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if analyze.is_err() {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    }
    let scratch = Scratch::new();
    let program = env!("CARGO_BIN_EXE_fanwave");
    let units = ["fanwave.service", "fanwave.socket", "fanwave-control.socket"].map(|name| {
        // The program of the package is not installed here.
        let text = deployed(&format!("systemd/{name}"));
        scratch.write(name, &text.replace("/usr/bin/fanwave", program))
    });
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{told}");
}

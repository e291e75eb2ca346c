//! Claim: bad input costs one clear line, not a run.
//!
//! Set-up: servers that are absent, refuse, close early or answer garbage; scenarios with typing
//! errors and impossible numbers; limits of the machine. Expectation: exit code 1 (2 where the
//! command line itself is wrong), nothing on standard output, and a last line on standard error
//! that names cause and remedy.

use std::process::{Command, Output};

use toy::{answer, answer_all_with, at, loadtest_among_others, scratch, small_scenario};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

/// Checks the form of a refusal and gives its line.
fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().last().expect("an error is told").to_owned();
    assert!(last.starts_with("loadtest: "), "{said}");
    last
}

fn against(address: std::net::SocketAddr) -> String {
    let file = small_scenario(&format!("bad-{}", address.port()), 3, 10.0);
    let [sse, events, to, publish] = &at(address);
    refusal(&loadtest_among_others(&["run", &file, "--no-floor", sse, events, to, publish]))
}

fn scenario(text: &str) -> String {
    static COUNT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let file = scratch(&format!("bad-{number}.toml"));
    std::fs::write(&file, text).expect("a file");
    let output = loadtest_among_others(&["run", &file]);
    let said = refusal(&output);
    // Nothing was started, so nothing but the refusal was said.
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1, "{said}");
    said
}

const GOOD: &str = "name = \"good\"\nabout = \"a test\"\nseconds = 1\npayload_bytes = 100\n\n[publish]\npace = \"rate\"\n\
                    per_second = 10\n\n[[subscribers]]\nprotocol = \"sse\"\nconnections = 3\n";

#[test]
fn a_server_that_is_absent_is_told_with_its_address() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let said = against(address);
    assert!(said.contains(&address.to_string()) && said.contains("is the server running?"), "{said}");
}

#[test]
fn a_server_that_refuses_is_quoted() {
    let address = answer_all_with(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nfull\n");
    let said = against(address);
    assert!(said.contains("503"), "{said}");
}

#[test]
fn a_server_that_closes_early_is_told() {
    let address = answer(drop);
    let said = against(address);
    assert!(said.contains("closed within the handshake") || said.contains("reset"), "{said}");
}

#[test]
fn a_server_that_answers_garbage_is_told() {
    let address = answer_all_with(b"220 mail.example ESMTP\r\n\r\n");
    let said = against(address);
    assert!(said.contains("220 mail.example"), "{said}");
}

#[test]
fn a_server_program_that_is_absent_is_named() {
    let said = refusal(&loadtest_among_others(&["run", "ticker", "--server", "/absent/fanwave"]));
    assert!(said.contains("/absent/fanwave"), "{said}");
}

#[test]
fn a_typing_error_in_a_scenario_is_told_with_its_line() {
    let said = scenario(&GOOD.replace("per_second", "per_secnod"));
    assert!(said.contains("line 8") && said.contains("per_secnod"), "{said}");
    let said = scenario(&GOOD.replace("connections = 3", "connections = 3\nconections = 3"));
    assert!(said.contains("line 13") && said.contains("conections"), "{said}");
}

#[test]
fn impossible_numbers_are_told_by_key_before_anything_starts() {
    for (from, to, word) in [
        ("payload_bytes = 100", "payload_bytes = 20", "payload_bytes = 20"),
        ("per_second = 10", "per_second = 0", "per_second = 0"),
        ("per_second = 10", "per_second = nan", "per_second = NaN"),
        ("seconds = 1", "seconds = 1\ntopics = 0", "topics = 0"),
        ("connections = 3", "connections = 0", "connections = 0"),
        ("connections = 3", "connections = 90000000", "90000000 connections"),
    ] {
        let said = scenario(&GOOD.replace(from, to));
        assert!(said.contains(word), "{to}: {said}");
    }
    let said = refusal(&loadtest_among_others(&["run", "ticker", "--rate", "-3"]));
    assert!(said.contains("--rate -3"), "{said}");
    let said = refusal(&loadtest_among_others(&["knee", "--p99-ms", "0"]));
    assert!(said.contains("--p99-ms 0"), "{said}");
    let said = refusal(&loadtest_among_others(&["knee", "--within", "0"]));
    assert!(said.contains("--within 0"), "{said}");
}

#[test]
fn a_scenario_that_is_not_there_is_told_with_those_that_are() {
    let said = refusal(&loadtest_among_others(&["run", "tickr"]));
    assert!(said.contains("tickr") && said.contains("ticker"), "{said}");
    assert!(refusal(&loadtest_among_others(&["run", "absent.toml"])).contains("absent.toml"));
}

#[test]
fn a_descriptor_limit_is_told_with_the_arithmetic_and_the_remedy() {
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 600 && exec \"$0\" run ticker --connections 50000"])
        .arg(env!("CARGO_BIN_EXE_loadtest"))
        .output()
        .expect("a shell");
    let said = refusal(&output);
    assert!(said.contains("50000 connections") && said.contains("ulimit"), "{said}");
}

#[test]
fn a_place_where_results_cannot_go_is_told_before_anything_starts() {
    let said = refusal(&loadtest_among_others(&["run", "ticker", "--json", "/absent/directory/x.json"]));
    assert!(said.contains("/absent/directory/x.json"), "{said}");
}

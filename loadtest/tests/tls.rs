//! Claim: subscribers that speak TLS, and such that bring tokens, are measured and checked as plain
//! ones are, and `loadtest handshakes` tells what their coming costs.
//!
//! Set-up: the fanwave beside this test's program, few subscribers, legs of a fraction of a second.
//! Expectation: every side has its figures, every event is there and in order, what cannot be
//! measured is told by name. What the figures are is not judged.

use std::fs;
use std::path::Path;

use serde_json::Value;
use toy::{loadtest, loadtest_among_others, scratch};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

/// Runs a command against fanwave and gives its results and what it printed.
fn measured(command: &str, name: &str, options: &[&str]) -> (Value, String) {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    let (fanwave, file) = (fanwave.to_str().expect("text"), scratch(&format!("tls-{name}.json")));
    let output =
        loadtest_among_others(&[&[command, "--server", fanwave, "--json", &file][..], options].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("it was written")).expect("JSON");
    (document["results"].clone(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn positive(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_f64).is_some_and(|number| number > 0.0)
}

const SHORT: [&str; 6] = ["--connections", "20", "--pairs", "1", "--seconds-per-leg", "0.1"];

#[test]
fn tls_stands_beside_plain_with_a_ratio_however_many_events_are_in_flight() {
    for audit in [&[][..], &["--audit"]] {
        let options = [&SHORT[..], &["--tls", "--in-flight", "1,100", "--window", "sliding"], audit].concat();
        let (cells, said) = measured("cpu", "cpu", &options);
        let cells = cells.as_array().expect("a list");
        let protocols: Vec<_> = cells.iter().map(|cell| cell["protocol"].as_str().expect("text")).collect();
        assert_eq!(protocols, ["sse", "sse", "ws", "ws"]);
        for cell in cells {
            assert!(cell["servers"][0]["to_first"].is_null(), "{cell}");
            assert!(positive(cell, "/servers/1/to_first/median"), "{cell}");
        }
        assert!(said.contains("TLS") && said.contains("user + system"), "{said}");
    }
}

#[test]
fn idle_memory_is_told_for_plain_subscribers_and_for_those_with_tls() {
    let options = ["--tls", "--protocol", "ws", "--few", "20", "--many", "60", "--settled-ms", "500"];
    let (readings, said) = measured("memory", "memory", &options);
    let told: Vec<_> = readings.as_array().expect("a list").iter().map(|one| one["tls"].as_bool()).collect();
    assert_eq!(told, [Some(false), Some(true)]);
    assert!(said.contains("ws, TLS"), "{said}");
}

/// One stream and six on each connection, beside event streams over HTTP/1.1.
#[test]
fn http_2_stands_beside_http_1_with_a_ratio_however_many_streams_a_connection_has() {
    let options = ["--tls", "--protocol", "sse", "--h2-streams", "1,6", "--in-flight", "1,20"];
    let (cells, said) = measured("cpu", "http2", &[&SHORT[..], &options].concat());
    for cell in cells.as_array().expect("a list") {
        assert!(cell["servers"][0]["to_first"].is_null(), "{cell}");
        for column in ["/servers/1", "/servers/2"] {
            assert!(positive(cell, &format!("{column}/to_first/median")), "{cell}");
        }
    }
    assert!(said.contains("TLS HTTP/2 × 1") && said.contains("TLS HTTP/2 × 6"), "{said}");
}

/// By prior knowledge, each stream of a connection with a topic of its own.
#[test]
fn a_scenario_of_steady_event_streams_runs_over_http_2_and_loses_nothing() {
    let options = ["many-topics", "--seconds", "1", "--no-floor", "--connections", "60", "--h2-streams", "7"];
    let (outcomes, _) = measured("run", "run-http2", &options);
    assert!(positive(&outcomes[0], "/deliveries"), "{outcomes}");
}

/// Churn, storms and resumption go through TLS and tokens too.
#[test]
fn scenarios_run_over_tls_with_tokens_and_lose_nothing() {
    let secret = scratch("tls-secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef\n").expect("room");
    let options = ["reconnect-storm", "chat-room", "--seconds", "1.5", "--no-floor", "--tls"];
    let scale = ["--connections", "60", "--token-hs256-file", &secret];
    let (outcomes, _) = measured("run", "run", &[&options[..], &scale].concat());
    let outcomes = outcomes.as_array().expect("a list");
    assert_eq!(outcomes.len(), 2);
    for outcome in outcomes {
        assert!(positive(outcome, "/deliveries"), "{outcome}");
    }
}

#[test]
fn handshakes_have_their_share_of_bare_ones_and_a_storm_its_tail() {
    let rates = ["--connections", "60", "--rounds", "1"];
    let storm = ["--live", "20", "--storm", "100", "--storm-per-second", "200", "--storms", "1"];
    let (outcome, said) = measured("handshakes", "handshakes", &[&rates[..], &storm].concat());
    let cells = outcome["cells"].as_array().expect("a list");
    assert_eq!(cells.len(), 2);
    for cell in cells {
        assert!(positive(cell, "/rows/0/us/median") && positive(cell, "/rows/2/of_bare/median"), "{cell}");
    }
    let pair = &outcome["storms"][0];
    // 25 events to 20 subscribers, and one answer to each newcomer.
    assert_eq!((pair["calm"]["count"].as_u64(), pair["storm"]["count"].as_u64()), (Some(500), Some(500)));
    assert_eq!(pair["newcomers"]["count"].as_u64(), Some(100));
    assert!(said.contains("of bare") && said.contains("p99 in the storm over calm"), "{said}");
}

#[test]
fn what_cannot_be_measured_is_told_by_name() {
    let url = "http://127.0.0.1:1/";
    let own = ["--subscribe-sse", url, "--publish-to", url];
    for (options, word) in [
        (&["handshakes", "--server", "x", "--tls"][..], "--tls"),
        (&["handshakes", "--server", "x", "--rounds", "0"], "--rounds"),
        (&["handshakes", "--server", "x", "--storm-per-second", "0"], "--storm-per-second"),
        (&["run", "ticker", "--server", "x", "--token-hs256-file", "/nowhere/secret"], "/nowhere/secret"),
        (&["run", "ticker", "--rival", "nats", "--token-hs256-file", "/etc/hostname"], "no tokens"),
        (&[&["run", "ticker", "--tls"][..], &own].concat(), "plain port"),
        (&["cpu", "--server", "x", "--h2-streams", "6"], "--protocol sse"),
        (&["run", "ticker", "--h2-streams", "1,6"], "takes one number here"),
    ] {
        let output = loadtest(options);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(word), "{options:?}: {said}");
    }
}

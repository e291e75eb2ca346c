//! Claim: `loadtest run` and `loadtest knee` tell what a server did.
//!
//! Set-up: every built-in scenario, scaled down, against the fanwave beside this test's program;
//! toy servers that lose an event, end connections, or carry only so many events per second.
//! Expectation: against fanwave nothing is lost, duplicated or out of order, and the figures add
//! up; each planted fault is told and fails the run; the knee is found at the planted capacity.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use toy::{Deed, at, fan_out, loadtest, loadtest_among_others, loadtest_into, scratch, small_scenario};

mod cluster;
#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

fn json(file: &str) -> Value {
    let text = std::fs::read_to_string(file).expect("the file was written");
    serde_json::from_str(&text).expect("JSON")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A whole number in a document.
fn number(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer} in {value}"))
}

#[test]
fn every_scenario_against_fanwave_loses_nothing_and_repeats_nothing() {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    let folder = scratch("all");
    let output = loadtest_among_others(&[
        "run",
        "--all",
        "--seconds",
        "0.6",
        "--connections",
        "60",
        "--no-floor",
        "--out",
        &folder,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let document = json(&format!("{folder}/run.json"));
    let outcomes = document["results"].as_array().expect("a list");
    assert_eq!(outcomes.len(), 12);
    for outcome in outcomes {
        let name = outcome["workload"]["name"].as_str().expect("text");
        let (deliveries, published) = (number(outcome, "/deliveries"), number(outcome, "/published"));
        // Some topics of a scaled storm have nobody who stays.
        let may_be_few = name == "storm";
        assert!(published > 0 && deliveries > 0, "{name}: {deliveries} of {published}");
        assert!(may_be_few || deliveries >= published, "{name}: {deliveries} of {published}");
        for fault in ["lost", "duplicated", "out_of_order", "foreign"] {
            assert_eq!(outcome["findings"][fault], 0, "{name}: {fault}");
            // Slow and stalled readers lose by definition.
            assert!(name == "slow-readers" || outcome["others"][fault] == 0, "{name}: others {fault}");
        }
        assert_eq!(number(outcome, "/each/count"), deliveries, "{name}: a latency for each delivery");
        assert!(number(outcome, "/last/count") > 0, "{name}: publish to last");
        let series = outcome["series"].as_array().expect("a list");
        let sum: u64 = series.iter().map(|interval| number(interval, "/deliveries")).sum();
        assert!(sum >= deliveries, "{name}: the intervals hold all");
        assert!(outcome["cost"]["rss_connected"].as_u64() > Some(0), "{name}: memory");
        assert!(text(&output.stdout).contains(&format!("{name}: ")), "{name} has a table");
    }
    let storm = &outcomes[8];
    assert_eq!(storm["workload"]["name"], "reconnect-storm");
    assert!(number(storm, "/handshakes/again") > 0, "storming subscribers came back");
    for file in ["run.html", "run.hlog"] {
        let written = std::fs::metadata(format!("{folder}/{file}")).expect("the file was written");
        assert!(written.len() > 1_000, "{file}");
    }
}

#[test]
fn a_closed_loop_and_the_floor_beside_it_are_measured() {
    let file = scratch("closed.toml");
    let scenario = "name = \"closed\"\nabout = \"a test\"\nseconds = 1\nwarm_up_seconds = 0.3\ntopics = 3\npayload_bytes = 100\n\
                    publish = { pace = \"in_flight\", events = 4 }\n\n[[subscribers]]\nprotocol = \"ws\"\nconnections = 30\n\n\
                    [[subscribers]]\nprotocol = \"sse\"\nconnections = 20\n";
    std::fs::write(&file, scenario).expect("a file");
    let out = scratch("closed.json");
    let output = loadtest_among_others(&["run", &file, "--json", &out]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let outcome = &json(&out)["results"][0];
    assert!(number(outcome, "/published") > 20);
    assert_eq!(outcome["findings"]["lost"], 0);
    let floor = outcome["floor"]["us_per_delivery"].as_f64().expect("a floor");
    let ratio = outcome["floor"]["ratio"].as_f64().expect("a ratio");
    let server = outcome["cost"]["us_per_delivery"].as_f64().expect("a cost");
    assert!(floor > 0.0 && (ratio - server / floor).abs() < 1e-6, "{server} / {floor} is not {ratio}");
}

#[test]
fn a_lost_event_is_counted_told_and_fails_the_run() {
    let address = fan_out(1e6, |event, subscriber| match (event, subscriber) {
        (40, 3) => Deed::Drop,
        _ => Deed::Send,
    });
    let (file, out) = (small_scenario("lossy", 5, 40.0), scratch("lossy.json"));
    let [sse, events, to, publish] = &at(address);
    let output =
        loadtest_among_others(&["run", &file, "--no-floor", "--json", &out, sse, events, to, publish]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.lines().last().expect("an error").contains("1 lost"), "{said}");
    assert_eq!(json(&out)["results"][0]["findings"]["lost"], 1);
}

#[test]
fn a_server_that_stands_still_shows_in_every_event_that_was_due_meanwhile() {
    let address = fan_out(1e6, |event, subscriber| match (event, subscriber) {
        (40, 0) => Deed::Stall,
        _ => Deed::Send,
    });
    let (file, out) = (small_scenario("stalled", 5, 40.0), scratch("stalled.json"));
    let [sse, events, to, publish] = &at(address);
    let output =
        loadtest_among_others(&["run", &file, "--no-floor", "--json", &out, sse, events, to, publish]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let outcome = &json(&out)["results"][0];
    // 24 of 60 events were due within 600 ms of standing still: they waited from all of it down to
    // none.
    let milliseconds = |at: usize| number(outcome, &format!("/each/quantiles/{at}/1")) / 1_000_000;
    assert!((300..600).contains(&milliseconds(1)), "p90 is {} ms", milliseconds(1));
    assert!((580..2_000).contains(&milliseconds(5)), "the largest is {} ms", milliseconds(5));
    assert_eq!(number(outcome, "/last/count"), 60);
}

#[test]
fn a_server_that_ends_a_connection_ends_the_run_without_results() {
    let address = fan_out(1e6, |event, subscriber| match (event, subscriber) {
        (30, 2) => Deed::HangUp,
        _ => Deed::Send,
    });
    let file = small_scenario("ending", 5, 40.0);
    let [sse, events, to, publish] = &at(address);
    let output = loadtest_among_others(&["run", &file, "--no-floor", sse, events, to, publish]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    let error = said.lines().last().expect("an error");
    assert!(error.contains("ending against custom") && error.contains("ended the stream"), "{said}");
}

#[test]
fn whoever_does_not_read_what_is_printed_holds_nothing_up_and_costs_no_results() {
    let address = fan_out(1e6, |_, _| Deed::Send);
    let (file, out) = (small_scenario("unread", 5, 40.0), scratch("unread.json"));
    let [sse, events, to, publish] = &at(address);
    let (_unread, full) = rustix::pipe::pipe().expect("a pipe");
    let room = rustix::pipe::fcntl_getpipe_size(&full).expect("a pipe");
    assert_eq!(rustix::io::write(&full, &vec![b'x'; room]), Ok(room));
    let (reader, closed) = rustix::pipe::pipe().expect("a pipe");
    drop(reader);
    let args = ["run", &file, "--no-floor", "--json", &out, sse, events, to, publish];
    let ended = loadtest_into(&args, Stdio::null(), full.into()).expect("it waits for nobody");
    assert!(ended.success(), "{ended}");
    let errors = scratch("unread.txt");
    let ended = loadtest_into(&args, closed.into(), std::fs::File::create(&errors).expect("a file").into());
    assert_eq!(ended.expect("it ends").code(), Some(1));
    let said = std::fs::read_to_string(&errors).expect("ours");
    assert!(said.lines().last().expect("an error").contains("standard output"), "{said}");
    assert_eq!(json(&out)["results"][0]["findings"]["lost"], 0, "saved all the same");
}

#[test]
fn the_knee_is_found_at_the_capacity_that_was_planted() {
    // 70 events/s are far below what any machine does, and 200 ms are far above what a busy one is
    // late by; what is too much for the server is later than that within a second.
    let address = fan_out(70.0, |_, _| Deed::Send);
    let (file, out) = (small_scenario("knee", 5, 1.0), scratch("knee.json"));
    let [sse, events, to, publish] = &at(address);
    let limits = ["--from", "50", "--seconds", "1", "--p99-ms", "200", "--within", "25", "--json", &out];
    let output = loadtest(&[&["knee", &file][..], &limits, &[sse, events, to, publish]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let knee = &json(&out)["results"];
    let held = knee["held"].as_f64().expect("a knee");
    assert!((50.0..=87.5).contains(&held), "{knee}");
    assert!(knee["limit"].is_string() && knee["failed"].as_f64() > Some(held), "{knee}");
    assert!(text(&output.stdout).contains("knee: "), "{}", text(&output.stdout));
}

#[test]
fn the_scenarios_are_listed_without_measuring() {
    let output = loadtest_among_others(&["run", "--list"]);
    assert!(output.status.success());
    let said = text(&output.stdout);
    for name in [
        "ticker",
        "chat-room",
        "score-push",
        "many-topics",
        "burst",
        "reconnect-storm",
        "slow-readers",
        "idle-mass",
        "bulk",
    ] {
        assert!(said.lines().any(|line| line.starts_with(name)), "{name}: {said}");
    }
}

//! Claim: `loadtest publish` and `loadtest lanes` measure what publishes and lanes cost.
//!
//! Set-up: the fanwave beside this test's program, few clients, legs of a fraction of a second.
//! Expectation: every way and every lane has its figures, and impossible options are told. What the
//! figures are is not judged.

use std::path::Path;

use serde_json::Value;
use toy::{loadtest, loadtest_among_others, scratch};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

/// Runs a proof against fanwave and gives its results.
fn measured(command: &str, options: &[&str]) -> Vec<Value> {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    let (fanwave, file) = (fanwave.to_str().expect("text"), scratch(&format!("{command}.json")));
    let small = ["--server", fanwave, "--pairs", "1", "--seconds-per-leg", "0.1", "--json", &file];
    let output = loadtest_among_others(&[&[command][..], &small, options].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value =
        serde_json::from_str(&std::fs::read_to_string(&file).expect("it was written")).expect("JSON");
    document["results"].as_array().expect("a list").clone()
}

fn positive(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_f64).is_some_and(|number| number > 0.0)
}

#[test]
fn publishes_of_every_way_have_a_rate_per_second_of_cpu() {
    let rows = measured("publish", &["--rivals", "--connections", "4", "--in-flight", "1,3"]);
    let told: Vec<_> = rows.iter().map(|row| (row["way"].as_str(), row["in_flight"].as_u64())).collect();
    let ways = ["post", "websocket", "json"];
    let expected = [1, 3].map(|in_flight| ways.map(|way| (Some(way), Some(in_flight)))).concat();
    assert_eq!(told, expected);
    assert!(rows.iter().all(|row| positive(row, "/per_cpu_second/min")), "{rows:?}");
}

#[test]
#[ignore = "needs nginx with nchan"]
fn rival_publishes_are_measured_in_the_same_rounds() {
    let rows = measured("publish", &["--connections", "4", "--in-flight", "2"]);
    assert_eq!(rows.last().map(|row| &row["server"]), Some(&Value::from("nchan")));
    assert!(rows.iter().all(|row| positive(row, "/to_rival/median")), "{rows:?}");
}

#[test]
fn every_lane_has_its_ratio_to_the_plain_websocket() {
    let cells = measured("lanes", &["--connections", "20", "--in-flight", "1"]);
    let told: Vec<_> = cells.iter().map(|cell| cell["lane"].as_str()).collect();
    assert_eq!(told, ["json", "pattern", "latest"].map(Some));
    for cell in &cells {
        assert!(positive(cell, "/ratio/min"), "{cell}");
        let frames = [0, 1].map(|side| cell["frame_bytes"][side].as_f64().expect("a number"));
        // An id has a digit more from time to time.
        assert!((frames[0] - frames[1]).abs() < 4.0, "{frames:?}");
    }
}

#[test]
fn impossible_options_are_told_by_name() {
    for (command, options) in [
        ("publish", &["--in-flight", "65"][..]),
        ("publish", &["--connections", "0"]),
        ("lanes", &["--server", "x", "--pairs", "0"]),
        ("memory", &["--server", "x", "--topics", "3"]),
    ] {
        let output = loadtest(&[&[command][..], options].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = options[options.len() - 2];
        assert!(output.status.code() == Some(1) && said.contains(name), "{said}");
    }
}

//! Claim: `loadtest neighbours` puts each neighbour beside the others on one server, and counts
//! every delivery.
//!
//! Set-up: the fanwave beside this test's program, few subscribers and topics, legs of a fraction
//! of a second. Expectation: every question has its pairs, a small topic's legs hold a latency for
//! each delivery, and a ratio is there exactly if a pair is not void. How fast anything is depends
//! on the machine and is not looked at.

use std::path::Path;

use serde_json::Value;
use toy::{loadtest_among_others, scratch};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

/// A share of the generator's CPU above this makes a pair void.
const FULL: f64 = 0.9;

fn void(pair: &Value) -> bool {
    let is_void = |leg: &Value| {
        !leg["disturbed"].is_null() || leg["generator_share"].as_f64().is_none_or(|share| share > FULL)
    };
    is_void(&pair["alone"]) || is_void(&pair["beside"])
}

#[test]
fn every_neighbour_is_there_and_every_delivery_is_counted() {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    let (fanwave, out) = (fanwave.to_string_lossy().into_owned(), scratch("neighbours.json"));
    let sizes = ["--connections", "6", "--large-connections", "2", "--large-rate", "5", "--topics", "500"];
    let busy = ["--busy-connections", "5", "--busy-rate", "50", "--seconds-per-leg", "0.4", "--pairs", "2"];
    let output = loadtest_among_others(
        &[&["neighbours", "--server", &fanwave, "--json", &out][..], &sizes, &busy].concat(),
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value =
        serde_json::from_str(&std::fs::read_to_string(&out).expect("the file was written")).expect("JSON");
    let questions = document["results"].as_array().expect("a list");
    let names: Vec<&str> =
        questions.iter().map(|question| question["what"].as_str().expect("text")).collect();
    assert_eq!(names, ["a small topic", "a single POST, to its answer", "a small topic"]);
    for question in questions {
        let pairs = question["pairs"].as_array().expect("a list");
        assert_eq!(pairs.len(), 2);
        assert_eq!(question["p99_ratio"].is_null(), pairs.iter().all(void), "{question}");
        for leg in pairs.iter().flat_map(|pair| [&pair["alone"], &pair["beside"]]) {
            // 40 events to 6 subscribers.
            let small = question["what"] == "a small topic";
            assert!(if small { leg["count"] == 240 } else { leg["count"].as_u64() > Some(0) }, "{leg}");
            assert!(leg["disturbed"].is_null(), "{leg}");
        }
        assert!(said.contains(question["beside"].as_str().expect("text")), "{said}");
    }
    let listed = questions[2]["beside"].as_str().expect("text");
    assert!(listed.contains("GET /topics of 500") && !listed.contains("(0 pages/s)"), "{listed}");
}

#[test]
fn a_number_that_measures_nothing_is_refused_before_a_server_starts() {
    for (flag, value) in [("--pairs", "0"), ("--topics", "0"), ("--busy-rate", "nan"), ("--connections", "1")]
    {
        let output = loadtest_among_others(&["neighbours", "--server", "/nowhere", flag, value]);
        assert_eq!(output.status.code(), Some(1), "{flag}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains("nowhere"), "{said}");
    }
}

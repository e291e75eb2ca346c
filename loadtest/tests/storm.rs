//! Claim: a storm and a crowd that says nothing are told with what they cost the others.
//!
//! Set-up: the fanwave beside this test's program, a hundred of everything, a second or two.
//! Expectation: nobody loses or doubles an event over a storm, and everybody is back; every
//! newcomer beside silent connections is answered, and each of those is closed. How fast anything
//! is depends on the machine and is not looked at.

use std::path::Path;

use serde_json::Value;
use toy::{loadtest_among_others, scratch};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

fn fanwave() -> String {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    fanwave.to_string_lossy().into_owned()
}

/// Standard output and the results of a run that succeeds.
fn results(name: &str, args: &[&str]) -> (String, Value) {
    let out = scratch(name);
    let output = loadtest_among_others(&[args, &["--json", &out]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&out).expect("the file was written");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    (String::from_utf8_lossy(&output.stdout).into_owned(), document["results"].clone())
}

#[test]
fn nobody_loses_or_doubles_an_event_over_a_storm_and_those_who_stay_have_figures_for_both() {
    let fanwave = fanwave();
    let sizes = ["--connections", "160", "--seconds", "1.5", "--no-floor"];
    let (said, results) =
        results("storm.json", &[&["run", "storm", "--server", &fanwave][..], &sizes].concat());
    let outcome = &results[0];
    for fault in ["lost", "duplicated", "out_of_order", "foreign", "gaps_told"] {
        assert_eq!(outcome["findings"][fault], 0, "{fault}");
        assert_eq!(outcome["others"][fault], 0, "those who came back: {fault}");
    }
    let storm = &outcome["storm"];
    assert_eq!((&storm["dropped"], &outcome["handshakes"]["again"]), (&150.into(), &150.into()), "{storm}");
    assert!(storm["back_seconds"].as_f64().is_some(), "all are back: {storm}");
    let count = |phase: &str| storm[phase]["count"].as_u64().expect("a number");
    assert!(count("calm") > 0 && count("during") > 0, "{storm}");
    assert_eq!(Some(count("calm") + count("during")), outcome["each"]["count"].as_u64(), "none is left out");
    assert!(said.contains("150 dropped at once, the last was back after "), "{said}");
}

#[test]
fn newcomers_are_answered_beside_silent_connections_and_each_of_those_is_closed() {
    let fanwave = fanwave();
    let sizes = ["--silent", "200", "--per-second", "60", "--seconds-per-leg", "0.5"];
    let limits = ["--patience-ms", "500", "--address-max", "50"];
    let (said, rounds) =
        results("silent.json", &[&["silent", "--server", &fanwave][..], &sizes, &limits].concat());
    let rounds = rounds.as_array().expect("a list");
    let limits: Vec<_> = rounds.iter().map(|round| round["address_max"].as_u64()).collect();
    assert_eq!(limits, [None, Some(50)]);
    for round in rounds {
        assert_eq!((&round["calm"]["count"], &round["beside"]["count"]), (&30.into(), &30.into()), "{round}");
        assert_eq!(round["closed"], 200, "{round}");
        // The server looks at its connections once in 250 ms.
        assert!(round["closed_seconds"].as_f64() >= Some(0.25), "not before the patience is over: {round}");
    }
    assert!(said.contains("with a limit of 50: "), "{said}");
}

#[test]
fn silence_that_cannot_be_is_refused_before_a_server_starts() {
    for (flag, value, words) in [
        ("--silent", "0", "--silent 0"),
        ("--silent", "30000", "--silent 30000"),
        ("--per-second", "nan", "--per-second"),
        ("--seconds-per-leg", "-1", "--seconds-per-leg"),
        ("--address-max", "10", "--address-max 10"),
    ] {
        let flag = format!("{flag}={value}");
        let output = loadtest_among_others(&["silent", "--server", "/nowhere", &flag]);
        assert_eq!(output.status.code(), Some(1), "{flag}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(words) && !said.contains("nowhere"), "{said}");
    }
}

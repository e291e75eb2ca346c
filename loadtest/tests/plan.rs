//! Claim: a plan that cannot be made says why in one line, exits with an error and prints nothing
//! on standard output.
//!
//! Set-up: the program itself, with options that are wrong in one thing each. Expectation: the
//! cause and the remedy by name, within a moment: nothing is measured first.

use std::process::Command;

/// Runs `loadtest plan` and gives the one line that it says; panics if it does anything else.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .arg("plan")
        .args(arguments)
        .output()
        .expect("the program starts");
    assert!(!output.status.success(), "{arguments:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn a_model_that_is_absent_or_no_model_is_told_by_name_with_the_remedy() {
    let said = refused(&["--model", "no-such-model.json", "--subscribers", "1000"]);
    assert!(said.contains("no-such-model.json") && said.contains("--save"), "{said}");
    let file = std::env::temp_dir().join(format!("fanwave-plan-{}.json", std::process::id()));
    std::fs::write(&file, "{\"version\": 99}\n").expect("writable");
    let said = refused(&["--model", file.to_str().expect("text"), "--subscribers", "1000"]);
    std::fs::remove_file(&file).expect("removable");
    assert!(said.contains("version 99"), "{said}");
}

#[test]
fn impossible_questions_are_refused_before_anything_is_measured() {
    for (arguments, option) in [
        (["--subscribers", "0", "--rate", "1"], "--subscribers 0"),
        (["--subscribers", "10", "--rate", "-1"], "--rate -1"),
        (["--subscribers", "10", "--bytes", "NaN"], "--bytes NaN"),
        (["--subscribers", "inf", "--rate", "1"], "--subscribers inf"),
    ] {
        let said = refused(&arguments);
        assert!(said.contains(option), "{said}");
    }
}

#[test]
fn points_that_cannot_be_read_or_measured_are_refused_by_file() {
    assert!(refused(&["--points", "no-such-points.toml"]).contains("no-such-points.toml"));
    let file = std::env::temp_dir().join(format!("fanwave-points-{}.toml", std::process::id()));
    std::fs::write(&file, "rounds = 1\nseconds = 1\nseed = 1\ngroup = []\n").expect("writable");
    let said = refused(&["--points", file.to_str().expect("text")]);
    std::fs::remove_file(&file).expect("removable");
    assert!(said.contains("rounds = 1"), "{said}");
}

#[test]
fn a_server_that_does_not_exist_is_told_by_name() {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["plan", "--quick", "--server", "no-such-server"])
        .output()
        .expect("the program starts");
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.lines().last().is_some_and(|line| line.contains("no-such-server")), "{said}");
}

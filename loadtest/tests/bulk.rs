//! Claim: `loadtest run` judges what is published at once: whoever takes everything gets
//! everything.
//!
//! Set-up: small workloads of pace `at_once` against the fanwave beside this test's program, and
//! against toy servers that lose an event or end a connection. Expectation: where everybody gets
//! everything the exit status is 0 and the figures add up; each planted fault is a figure, is told
//! and fails the run, and what the others got is counted all the same.

use std::path::Path;

use serde_json::Value;
use toy::{Deed, at, fan_out, loadtest_among_others, scratch};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod toy;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A file with events at once for subscribers that connect once, five for each of these protocols.
fn at_once(name: &str, publish: &str, bytes: usize, protocols: &[&str], more: &str) -> String {
    let mut scenario = format!(
        "name = \"{name}\"\nabout = \"a test\"\nseconds = 20\nwarm_up_seconds = 0\npayload_bytes = {bytes}\n\
         publish = {{ pace = \"at_once\", {publish} }}\n"
    );
    for protocol in protocols {
        scenario += &format!(
            "[[subscribers]]\nprotocol = \"{protocol}\"\nconnections = 5\nbehaviour = {{ kind = \"once\" }}\n"
        );
    }
    let file = scratch(&format!("{name}.toml"));
    std::fs::write(&file, scenario + more).expect("a file");
    file
}

fn part(file: &str) -> Value {
    let text = std::fs::read_to_string(file).expect("the file was written");
    let document: Value = serde_json::from_str(&text).expect("JSON");
    document["results"][0].clone()
}

/// The last line of what was said.
fn verdict(said: &[u8]) -> String {
    text(said).lines().last().expect("an error").to_owned()
}

#[test]
fn against_fanwave_everybody_gets_everything_by_stream_and_by_posts() {
    let fanwave = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("fanwave");
    assert!(fanwave.is_file(), "{} is missing: run `cargo build` first", fanwave.display());
    for (name, publish) in [("stream", "events = 60"), ("posts", "events = 60, posts = true")] {
        let file = at_once(name, publish, 2_000, &["sse", "ws"], "");
        let out = scratch(&format!("{name}.json"));
        let output = loadtest_among_others(&["run", &file, "--json", &out]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let part = part(&out);
        for (figure, value) in [("expected", 600), ("received", 600), ("closed", 0), ("published", 60)] {
            assert_eq!(part[figure], value, "{name}: {figure}");
        }
        assert_eq!(part["findings"]["lost"], 0);
        assert_eq!(part["uneven"], 0);
        assert!(part["arrived_seconds"].as_f64() > Some(0.0), "{part}");
        let declared = part["memory"]["declared"].as_u64().expect("fanwave declares what it may use");
        assert!(declared >= part["memory"]["windows"].as_u64().expect("windows too"), "{part}");
        assert!(text(&output.stdout).contains("10"), "ten subscribers in the table");
    }
}

#[test]
fn a_stalled_reader_beside_is_closed_in_time_and_harms_nobody() {
    let reader = "[[subscribers]]\nprotocol = \"ws\"\nconnections = 1\nbehaviour = { kind = \"stalled\" }\n";
    // More than the buffers of its connection hold, and less than a window.
    let file = at_once("beside", "events = 100", 100_000, &["ws"], reader);
    let out = scratch("beside.json");
    let output =
        loadtest_among_others(&["run", &file, "--json", &out, "--server-arg=--window-bytes-max=16MiB"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let part = part(&out);
    assert_eq!((part["received"].as_u64(), part["closed"].as_u64()), (Some(500), Some(0)), "{part}");
    assert_eq!(part["stalled"]["readers"], 1);
    assert!(part["stalled"]["cut_seconds"].as_f64().is_some_and(|seconds| seconds <= 7.0), "{part}");
    assert!(part["stalled"]["back_seconds"].is_f64(), "its memory came back: {part}");
}

#[test]
fn a_subscriber_that_is_closed_stays_away_and_lacks_the_rest_and_the_others_are_judged() {
    let address = fan_out(1e6, |event, subscriber| match (event, subscriber) {
        (30, 2) => Deed::HangUp,
        _ => Deed::Send,
    });
    let (file, out) = (at_once("closing", "events = 40", 100, &["sse"], ""), scratch("closing.json"));
    let [sse, events, to, publish] = &at(address);
    let output = loadtest_among_others(&["run", &file, "--json", &out, sse, events, to, publish]);
    assert_eq!(output.status.code(), Some(1));
    let said = verdict(&output.stderr);
    assert!(said.contains("closing: 1 of 5 subscribers were closed, 11 of 200 deliveries"), "{said}");
    let part = part(&out);
    assert_eq!((&part["received"], &part["findings"]["lost"]), (&Value::from(189), &Value::from(11)));
    assert!(text(&output.stdout).contains("FAULT"), "shown too");
}

#[test]
fn a_lost_event_is_counted_and_told() {
    let address = fan_out(1e6, |event, subscriber| match (event, subscriber) {
        (7, 3) => Deed::Drop,
        _ => Deed::Send,
    });
    let (file, out) = (at_once("losing", "events = 40", 100, &["sse"], ""), scratch("losing.json"));
    let [sse, events, to, publish] = &at(address);
    let output = loadtest_among_others(&["run", &file, "--json", &out, sse, events, to, publish]);
    assert_eq!(output.status.code(), Some(1));
    let said = verdict(&output.stderr);
    assert!(said.ends_with("losing: 1 of 200 deliveries were lost"), "{said}");
    assert_eq!(part(&out)["closed"], 0);
    assert!(text(&output.stdout).contains("memory is not judged"), "a server that is not ours");
}

#[test]
fn what_is_judged_has_no_page_and_no_company() {
    let file = at_once("apart", "events = 4", 100, &["sse"], "");
    for more in [&["--page", "x.html"][..], &["ticker"]] {
        let output = loadtest_among_others(&[&["run", &file][..], more].concat());
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        assert!(verdict(&output.stderr).contains("judged"), "{}", text(&output.stderr));
    }
}

//! Claim: a publisher process keeps to its schedule and tells what it did, and a program of the
//! user's own gets every event.
//!
//! Set-up: `loadtest publisher` as a child, spoken to in JSON lines, that publishes to a shell
//! command. Expectation: the command reads each event once, with the sequences and times of the
//! schedule; samples add up; a command that ends early ends the process with its exit code.

mod role;

use serde_json::{Value, json};

use role::Role;

fn connect(command: &str, topics: usize) -> Value {
    json!({
        "do": "connect", "address": "127.0.0.1:9", "way": "command", "path": command, "topics": topics,
        "payload_bytes": 40,
    })
}

/// Topic-wise: the files that the command writes, as lines of number and time.
fn lines(path: &str) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(path).expect("the command wrote it");
    text.lines()
        .map(|line| {
            assert_eq!(line.len(), 40, "{line:?}");
            let hex = |at: usize| u64::from_str_radix(&line[at..at + 16], 16).expect("a stamp");
            (hex(3), hex(19))
        })
        .collect()
}

#[test]
fn a_command_reads_every_event_with_the_times_of_the_schedule_and_samples_add_up() {
    let base = std::env::temp_dir().join(format!("loadtest-publisher-{}", std::process::id()));
    let base = base.to_str().expect("text").to_owned();
    let mut publisher = Role::start("publisher");
    publisher.ask(&connect(&format!("cat > {base}-{{topic}}"), 2), "connected");
    publisher.order(&json!({"do": "go", "pace": {"pace": "rate", "per_second": 1_000.0}, "seconds": 0.5}));
    let mut published = 0;
    for _ in 0..50 {
        published +=
            publisher.ask(&json!({"do": "sample"}), "sample")["published"].as_u64().expect("a number");
    }
    assert_eq!(publisher.word("done")["events"], 500);
    let last = publisher.ask(&json!({"do": "sample"}), "sample");
    assert_eq!(published + last["published"].as_u64().expect("a number"), 500);
    publisher.order(&json!({
        "do": "go", "pace": {"pace": "burst", "events": 20, "every_ms": 50}, "seconds": 0.09,
    }));
    publisher.word("done");
    publisher.ask(&json!({"do": "finish"}), "finished");

    let topics = [0, 1].map(|topic| format!("{base}-loadtest-{topic}"));
    let read = topics.clone().map(|path| lines(&path));
    topics.iter().for_each(|path| std::fs::remove_file(path).expect("ours"));
    for (topic, events) in (0..).zip(&read) {
        let numbers: Vec<u64> = events.iter().map(|event| event.0).collect();
        assert_eq!(numbers, (0..270).map(|at| 2 * at + topic + 1).collect::<Vec<u64>>());
    }
    // Event k of the rate is due k milliseconds after the first, to the nanosecond, whenever it was
    // written.
    let due = |number: usize| read[number % 2][number / 2].1;
    for number in 0..500 {
        assert_eq!(due(number) - due(0), number as u64 * 1_000_000);
    }
    for number in 500..540 {
        assert_eq!(due(number) - due(500), if number < 520 { 0 } else { 50_000_000 });
    }
}

#[test]
fn a_command_that_ends_early_is_told_with_its_exit_code() {
    let mut publisher = Role::start("publisher");
    publisher.ask(&connect("read line; exit 7", 1), "connected");
    publisher.order(&json!({"do": "go", "pace": {"pace": "rate", "per_second": 100.0}, "seconds": 20.0}));
    let failed = publisher.word("failed");
    assert!(failed["cause"].as_str().expect("text").contains("exit code 7"), "{failed}");
}

#[test]
fn a_command_that_fails_at_the_end_is_told_too() {
    let mut publisher = Role::start("publisher");
    publisher.ask(&connect("cat > /dev/null; exit 3", 1), "connected");
    publisher.order(&json!({"do": "go", "pace": {"pace": "rate", "per_second": 10.0}, "seconds": 0.2}));
    publisher.word("done");
    let failed = publisher.ask(&json!({"do": "finish"}), "failed");
    assert!(failed["cause"].as_str().expect("text").contains("failed (exit code 3)"), "{failed}");
}

#[test]
fn a_pace_that_nobody_can_keep_is_refused() {
    let mut publisher = Role::start("publisher");
    publisher.ask(&connect("cat > /dev/null", 1), "connected");
    publisher.order(&json!({"do": "go", "pace": {"pace": "rate", "per_second": 0.0}, "seconds": 1.0}));
    let failed = publisher.word("failed");
    assert!(failed["cause"].as_str().expect("text").contains("per_second: 0"), "{failed}");
}

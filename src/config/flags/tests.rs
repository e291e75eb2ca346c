use super::super::PageRules;
use super::*;
use crate::command::Command;
use crate::command::tests::parse_with;

/// The configuration of the server where it may use the CPUs 0, 1 and 3.
pub fn config(args: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
    match parse_with(args, environment) {
        Ok(Command::Serve(flags)) => flags.config_on(&[0, 1, 3]).map_err(|error| error.to_string()),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn without_flags_every_limit_has_its_default() {
    for args in [&[][..], &["serve"]] {
        let config = config(args, &[]).expect("defaults are valid");
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.listen, ["127.0.0.1:8080".parse().expect("an address")]);
        assert_eq!(config.control, ["127.0.0.1:8081".parse().expect("an address")]);
        assert_eq!(config.shard_cpus, [0, 1, 3]);
        assert_eq!(config.pages, PageRules::default());
        assert_eq!(config.slow, SlowPolicy::Close);
        assert_eq!(config, Config { shard_cpus: vec![0, 1, 3], ..Config::default() });
    }
}

#[test]
fn what_is_wrong_names_its_flag_and_its_source() {
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 29] = [
        (&["--listen", "8080"], &[], &["--listen", "0.0.0.0:8080"]),
        (&["--port", "8080"], &[], &["--port", "--listen 0.0.0.0:8080"]),
        (&["--shards=1", "--host"], &[], &["--host", "--listen 0.0.0.0:8080"]),
        (&["--listen", "example.org:8080"], &[], &["--listen", "0.0.0.0:8080"]),
        (&["--control", "unix:"], &[], &["--control", "path is missing"]),
        (&["--shards", "0"], &[], &["--shards", "from 1"]),
        (&["--cpus", "0,x"], &[], &["--cpus", "`x`"]),
        (&["--cpus", "3-0"], &[], &["--cpus", "backwards"]),
        (&["--cpus", "0,0"], &[], &["--cpus", "twice"]),
        (&["--cpus", "0-2"], &[], &["--cpus", "CPU 2", "0-1,3"]),
        (&["--cors-origin", "a, b"], &[], &["--cors-origin", "none"]),
        (&["--overrun", "drop"], &[], &["--slow", "skip"]),
        (&["--egress", "select"], &[], &["--egress", "uring", "epoll"]),
        (&["--sockets=direct"], &[("FANWAVE_EGRESS", "epoll")], &["--sockets direct", "--egress epoll"]),
        (&["--log", "fanwave=loud"], &[], &["--log"]),
        (&["--log", "loud"], &[], &["--log", "`loud` is no level", "trace, or target=level"]),
        (&["--log", "info, inof"], &[], &["--log", "`inof` is no level"]),
        (&["--log-format", "yaml"], &[], &["--log-format", "json"]),
        (&["--window-bytes-max", "8MB"], &[], &["--window-bytes-max", "8MiB"]),
        (&["--memory-max", "0"], &[], &["--memory-max", "at least 32MiB", "none"]),
        (&[], &[("FANWAVE_MEMORY_MAX", "1GB")], &["environment: ", "--memory-max", "1GiB, or auto"]),
        (&["--heartbeat-ms", "15s"], &[], &["--heartbeat-ms", "milliseconds"]),
        (&["--heartbeat-ms", "1"], &[], &["--heartbeat-ms", "1000"]),
        (&["--listen", "127.0.0.1:8081"], &[], &["--control", "also a --listen"]),
        (&["--listen", "[::]:1,[::]:1"], &[], &["--listen [::]:1", "twice"]),
        (&[], &[("FANWAVE_SHARDS", "many")], &["environment: ", "--shards", "'many'"]),
        (&[], &[("FANWAVE_HEARTBEAT_MS", "5")], &["environment: --heartbeat-ms is 5, at least 1000"]),
        (&[], &[("FANWAVE_MESSAGE_BYTES_MAX", "2GiB")], &["environment: --message-bytes-max", "at most"]),
        (&[], &[("FANWAVE_CONFIG", "/nowhere.toml")], &["--config /nowhere.toml: "]),
    ];
    for (args, environment, parts) in cases {
        let error = config(args, environment).expect_err("invalid");
        for part in parts {
            assert!(error.contains(part), "{args:?} {environment:?}: no {part:?} in {error:?}");
        }
    }
}

/// A restart finds what is promised to be there, so a store may not keep less.
#[test]
fn a_store_keeps_events_for_as_long_as_histories_promise_or_longer() {
    let store = |flags: &[&str]| {
        let config = config(&[&["--data", "d"], flags].concat(), &[])?;
        let store = config.store.clone().expect("a store");
        Ok::<u64, String>(store.age_ms(&config.limits, &config.rules))
    };
    for (flags, age_ms) in [
        (&[][..], 300_000),
        (&["--window-ms-max", "1000"], 120_000),
        (&["--window-ms-max", "7200000"], 7_200_000),
        (&["--data-age-max", "5m"], 300_000),
        (&["--data-age-max", "720h"], 720 * 3_600_000),
        (&["--data-age-max", "0s"], u64::MAX),
    ] {
        assert_eq!(store(flags), Ok(age_ms), "{flags:?}");
    }
    for (flags, words) in [
        (&["--data-age-max", "4m"][..], &["--data-age-max is 4m", "of the last 5m", "0s"][..]),
        (&["--data-age-max", "1m", "--window-ms-max", "1000"], &["--data-age-max is 1m", "of the last 2m"]),
        (&["--data-age-max", "30d"], &["--data-age-max", "24h"]),
        (&["--data-age-max", "87601h"], &["--data-age-max", "at most 87600h"]),
    ] {
        let error = store(flags).expect_err("too short, or no age");
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
    }
    let error = config(&["--data-age-max", "24h"], &[]).expect_err("there is no store");
    assert!(error.contains("--data-age-max") && error.contains("--data DIR"), "{error}");
}

#[test]
fn localhost_is_an_address() {
    let args = ["--listen", "localhost:80,LOCALHOST:81", "--control", "localhost:82"];
    let config = config(&args, &[]).expect("valid");
    assert_eq!(config.listen, ["127.0.0.1:80", "127.0.0.1:81"].map(|text| text.parse().expect("an address")));
    assert_eq!(config.control, ["127.0.0.1:82".parse().expect("an address")]);
    for text in ["localhost", "localhost:", "localhost:x", "localhost:65536", "localhosts:1"] {
        assert!(super::super::tcp_address(text).is_none(), "{text}");
    }
}

#[test]
fn levels_and_targets_are_what_a_log_filter_may_name() {
    for filter in ["off", "WARN", "fanwave=debug,info", "fanwave::hub", "[accept]", "info,,"] {
        assert!(config(&["--log", filter], &[]).is_ok(), "{filter}");
    }
}

#[test]
fn shards_beyond_the_cpus_take_them_in_turn() {
    let cpus = |args| config(args, &[]).expect("valid").shard_cpus;
    assert_eq!(cpus(&["--shards", "5"]), [0, 1, 3, 0, 1]);
    assert_eq!(cpus(&["--shards", "1"]), [0]);
    assert_eq!(cpus(&["--cpus", "3,0-1"]), [3, 0, 1]);
    assert_eq!(cpus(&["--cpus", "3", "--shards", "2"]), [3, 3]);
}

#[test]
fn help_names_every_limit_with_its_default() {
    let help = parse_with(&["--shards", "1", "--help"], &[]).expect_err("help").to_string();
    assert!(help.contains("--window-bytes-max <BYTES>") && help.contains("[default: 8MiB]"), "{help}");
    let help = parse_with(&["--help"], &[]).expect_err("help").to_string();
    assert!(help.contains("publish") && help.contains("tail"), "{help}");
}

#[test]
fn help_tells_the_bounds_of_every_limit_that_has_some() {
    let help = parse_with(&["serve", "--help"], &[]).expect_err("help").to_string();
    let text = |flag: &str| {
        let (_, rest) = help.split_once(&format!("      --{flag} <")).expect(flag);
        rest.split_once("\n      --").map_or(rest, |(text, _)| text).to_string()
    };
    for (flag, bounds) in [
        ("heartbeat-ms", "[1000 to 2000000000]"),
        ("handshake-bytes-max", "[at least 512]"),
        ("message-bytes-max", "[1 to 1GiB]"),
        ("drain-ms-max", "[at most 2000000000]"),
        ("window-bytes-max", "at least 4 x (--message-bytes-max + 1,325 B)"),
        ("window-bytes-total-max", "at least --window-bytes-max and 80 x --message-bytes-max + 63,600 B"),
        ("hub-queue-bytes-max", "at least 5 x --message-bytes-max + 3,975 B"),
    ] {
        assert!(text(flag).contains(bounds), "--{flag}: no {bounds:?} in {}", text(flag));
    }
    assert!(!text("window-bytes-max").contains("[at least"), "{}", text("window-bytes-max"));
}

#[test]
fn relations_between_limits_are_as_the_help_says() {
    let sizes = |window: usize, total: usize, queue: usize| {
        let flags = [
            "--message-bytes-max=1000".to_string(),
            format!("--window-bytes-max={window}"),
            format!("--window-bytes-total-max={total}"),
            format!("--hub-queue-bytes-max={queue}"),
        ];
        config(&flags.each_ref().map(String::as_str), &[]).map(drop)
    };
    let total = 80 * 1_000 + 63_600;
    assert_eq!(sizes(4 * 2_325, total, 8_975), Ok(()));
    for (flag, refused) in [
        ("--window-bytes-max ", sizes(4 * 2_325 - 1, total, 8_975)),
        ("--window-bytes-total-max ", sizes(4 * 2_325, total - 1, 8_975)),
        ("--window-bytes-total-max ", sizes(total + 1, total, 8_975)),
        ("--hub-queue-bytes-max ", sizes(4 * 2_325, total, 8_974)),
    ] {
        assert!(refused.expect_err(flag).starts_with(flag), "{flag}");
    }
}

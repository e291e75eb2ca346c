//! Claim: what fuzzing has found once stays mended, and every fuzz target runs.
//!
//! Set-up: the corpora under `tests/fuzz/corpus`, fed to the functions that cargo-fuzz drives;
//! each input also cut off, with a bit flipped, and joined with its neighbour.
//!
//! Expectation: no function panics; the input that breaks a promise is named.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[path = "fuzz/targets.rs"]
mod targets;

/// Corpora are read by people: a large file explains nothing.
const INPUT_BYTES_MAX: usize = 100_000;

/// The inputs of one target, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a directory that can be read").path();
            (path.display().to_string(), std::fs::read(&path).expect("a file"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// An input and what fuzzing would make of it first.
fn variants<'a>(input: &'a [u8], next: &'a [u8]) -> impl Iterator<Item = Vec<u8>> + 'a {
    let places = (1..8).map(|part| input.len() * part / 8);
    let cut = places.clone().map(|at| input[..at].to_vec());
    let flipped = places.filter(|at| *at < input.len()).map(|at| {
        let mut bytes = input.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    cut.chain(flipped).chain([input.to_vec(), [input, next].concat()])
}

fn feed(name: &str) {
    let (_, run) = targets::ALL.into_iter().find(|(known, _)| *known == name).expect("a target");
    let inputs = corpus(name);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    for (at, (path, input)) in inputs.iter().enumerate() {
        assert!(input.len() < INPUT_BYTES_MAX, "{path} has {} bytes", input.len());
        for bytes in variants(input, &inputs[(at + 1) % inputs.len()].1) {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(&bytes)));
            assert!(outcome.is_ok(), "{path}, as \"{}\"", bytes.escape_ascii());
        }
    }
}

macro_rules! targets {
    ($($name:ident)+) => {
        const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(
            #[test]
            fn $name() {
                feed(stringify!($name));
            }
        )+
    };
}

targets! {
    request_head
    target_and_query
    websocket_decoder
    ndjson_lines
    single_publish
    sse_parser
    proxy_header
    commands
    tls_records
    tokens
    topic_patterns
    rules
    h2_fields
    h2_frames
    whole_shard
}

#[test]
fn every_target_is_fed() {
    assert_eq!(NAMES.len(), targets::ALL.len());
}

/// The fuzzer's packages are locked by a file that no other test reads.
#[test]
fn each_package_of_the_fuzzer_is_locked_once() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/Cargo.lock");
    let text = std::fs::read_to_string(path).expect("a file");
    let lock: toml::Table = toml::from_str(&text).expect("TOML");
    let packages = lock["package"].as_array().expect("a list");
    let mut names: Vec<_> = packages.iter().map(|package| (&package["name"], &package["version"])).collect();
    names.sort_by_key(|(name, version)| (name.as_str(), version.as_str()));
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1], "cargo does not read such a file");
    }
}

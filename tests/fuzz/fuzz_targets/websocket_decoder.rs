#![no_main]
#![allow(dead_code, reason = "the other targets")]

#[path = "../../support/records.rs"]
mod records;
#[path = "../shard.rs"]
mod shard;
#[path = "../targets.rs"]
mod targets;
#[path = "../tls.rs"]
mod tls;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::websocket_decoder(data));

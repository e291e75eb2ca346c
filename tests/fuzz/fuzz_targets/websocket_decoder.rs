#![no_main]
#![allow(dead_code, reason = "the other targets")]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::websocket_decoder(data));

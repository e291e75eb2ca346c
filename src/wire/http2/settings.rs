//! SETTINGS (RFC 9113 §6.5): what a client wants, and what we offer.

use super::Fault;
use super::frame::{self, PAYLOAD_MAX, WINDOW, WINDOW_MAX, kind};

const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
const MAX_FRAME_SIZE: u16 = 5;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Bytes of one setting.
const SETTING: usize = 6;

/// What a client has said of itself so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The window of a new stream; at most 2^31 - 1.
    pub window: u32,
    /// Payload bytes of a frame that it takes; 2^14 to 2^24 - 1.
    pub payload_max: u32,
    /// It has said how many bytes of fields it remembers, since we have said that it is to remember
    /// none of ours.
    pub table_changed: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        // Our first block of fields says that no table is used.
        Settings { window: WINDOW, payload_max: PAYLOAD_MAX as u32, table_changed: true }
    }
}

impl Settings {
    /// Applies the payload of a SETTINGS frame, in its order. What is not known has no meaning.
    pub fn apply(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let settings = payload.chunks_exact(SETTING);
        if !settings.remainder().is_empty() {
            return Err(Fault::FRAME_SIZE);
        }
        for setting in settings {
            let [a, b, value @ ..] = setting else { unreachable!("a setting has six bytes") };
            let value = u32::from_be_bytes(value.try_into().expect("four of them"));
            match u16::from_be_bytes([*a, *b]) {
                HEADER_TABLE_SIZE => self.table_changed = true,
                ENABLE_PUSH if value > 1 => return Err(Fault::PROTOCOL),
                INITIAL_WINDOW_SIZE if i64::from(value) > WINDOW_MAX => return Err(Fault::FLOW_CONTROL),
                INITIAL_WINDOW_SIZE => self.window = value,
                MAX_FRAME_SIZE if !(PAYLOAD_MAX as u32..1 << 24).contains(&value) => {
                    return Err(Fault::PROTOCOL);
                }
                MAX_FRAME_SIZE => self.payload_max = value,
                _ => {}
            }
        }
        Ok(())
    }
}

/// Our own SETTINGS: no table of fields, so many streams at a time, so many bytes of fields.
pub fn push_ours(out: &mut Vec<u8>, streams: u32, field_bytes: u32) {
    let settings =
        [(HEADER_TABLE_SIZE, 0), (MAX_CONCURRENT_STREAMS, streams), (MAX_HEADER_LIST_SIZE, field_bytes)];
    let mut payload = Vec::with_capacity(settings.len() * SETTING);
    for (setting, value) in settings {
        payload.extend_from_slice(&setting.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    frame::push(out, kind::SETTINGS, 0, 0, &payload);
}

//! Server-Sent Events.
use bytes::Bytes;

use crate::event::{Epoch, Event};

/// The frame of one event.
pub fn encode_event(_event: &Event, _epoch: Epoch, _sequence: u64) -> Bytes {
    Bytes::new()
}

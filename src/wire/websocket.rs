//! WebSocket.
use bytes::Bytes;

use crate::event::Event;

/// The frame of one event.
pub fn encode_event(_event: &Event) -> Bytes {
    Bytes::new()
}

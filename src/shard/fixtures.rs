//! Events for this module's unit tests.

use std::sync::Arc;

use bytes::Bytes;

use crate::broadcast::Encoded;
use crate::clock::Stamp;
use crate::event::{Data, Epoch, Event, Topic};

/// An event of `topic` whose data is its sequence in decimal.
pub fn encoded(topic: &str, sequence: u64) -> Arc<Encoded> {
    encoded_with(topic, sequence, sequence.to_string().into_bytes())
}

/// The same before it is shared.
pub fn encoded_alone(topic: &str, sequence: u64) -> Encoded {
    Arc::into_inner(encoded(topic, sequence)).expect("nobody else has it")
}

/// An event of `topic` with this text.
pub fn encoded_with(topic: &str, sequence: u64, text: Vec<u8>) -> Arc<Encoded> {
    let event = Event {
        topic: Topic::new(topic).expect("a legal topic"),
        data: Data::text(Bytes::from(text)).expect("UTF-8"),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    };
    Arc::new(Encoded::new(event, Epoch(7), sequence, Stamp(sequence)))
}

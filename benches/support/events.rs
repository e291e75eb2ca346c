//! Events as the hub hands them to the shards.

use std::sync::Arc;

use bytes::Bytes;
use fanwave::broadcast::{Encoded, Wanted};
use fanwave::clock::Stamp;
use fanwave::event::{Data, Epoch, Event, Topic};
use fanwave::wire::Format;

/// An epoch as long as nearly all are: 13 digits.
pub const EPOCH: Epoch = Epoch(u64::MAX);

/// An event with its frames in all formats, as the hub makes it where all have subscribers.
pub fn encoded(topic: &Topic, sequence: u64, intake: Stamp, text: &Bytes) -> Arc<Encoded> {
    let event = Event {
        topic: topic.clone(),
        data: Data::text(text.clone()).expect("the benchmarks' data is ASCII"),
        name: None,
        id: None,
        retry_ms: None,
        key: None,
    };
    let encoded = Encoded::new(event, EPOCH, sequence, intake).keeping(Wanted::of(Format::ALL));
    for format in Format::ALL {
        encoded.frame(format);
    }
    Arc::new(encoded)
}

//! Bringing a subscriber to a standstill: it does not read, and large events fill every buffer on
//! the way to it.

use super::server::label;
use super::{Protocol, Server, Subscriber};

/// Data of one event; some tens of them fill a socket of the loopback interface.
pub const EVENT_BYTES: usize = 64 << 10;
/// Far more events than all buffers of one socket hold.
const EVENTS_MAX: usize = 4_000;

/// Data of the event `number`: its number and padding.
pub fn padded(number: usize) -> String {
    let mut data = format!("{number} ");
    data.extend(std::iter::repeat_n('x', EVENT_BYTES - data.len()));
    data
}

/// The number at the beginning of an event's data.
pub fn number_of(data: &str) -> usize {
    data.split(' ').next().and_then(|number| number.parse().ok()).expect("data begins with its number")
}

/// Publishes [`padded`] events from `first` on until `stuck` of them in a row have passed the one
/// subscriber of `slow` without any send to it ending. The `others` get every event before the next
/// one is published. Returns the number after the last event.
pub async fn publish_until_stuck(
    server: &Server,
    topic: &str,
    slow: Protocol,
    others: &mut [Subscriber],
    first: usize,
    stuck: usize,
) -> usize {
    let mut sends = None;
    let mut passed = 0;
    for number in first..first + EVENTS_MAX {
        server.publish(topic, padded(number)).await;
        for other in &mut *others {
            assert_eq!(other.text().await, padded(number));
        }
        let stats = server.stats().await;
        let counters = &stats["totals"]["formats"][label(slow)];
        assert_eq!(counters["connections"], 1, "the slow subscriber is there: {}", stats["totals"]["closed"]);
        let now = counters["sends"].as_u64();
        passed = if counters["sends_in_flight"] == 1 && now == sends { passed + 1 } else { 0 };
        sends = now;
        if passed == stuck {
            return number + 1;
        }
    }
    panic!("{EVENTS_MAX} events of {EVENT_BYTES} bytes do not block a subscriber that reads nothing");
}

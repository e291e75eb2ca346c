//! Promise: a shard in the steady state makes no allocation between broadcast and submit.
//!
//! Set-up: 1,000 subscribers, as many of each format, on two topics, every fifth on both; a shard
//! on the simulated ring in fair weather. Several hundred messages let every buffer, queue and
//! window reach its size, those of the simulated ring included.
//!
//! Expectation: from then on the shard's turns allocate nothing, whatever the mix of messages.
//! Making the events and the message is the hub's part and is not counted. The first allocation
//! prints where it happened. The rings of the kernel's sockets are asked apart (`rings`).

use std::time::Duration;

use bytes::Bytes;
use fanwave::config::Limits;
use fanwave::event::Topic;
use fanwave::wire::Format;

#[path = "../benches/support/counting.rs"]
mod counting;
#[path = "../benches/support/crowd.rs"]
mod crowd;
#[path = "../benches/support/events.rs"]
mod events;
#[path = "allocations/rings.rs"]
mod rings;

use crowd::{Crowd, Subscription};

const SUBSCRIBERS: usize = 1_000;
const BURST: usize = 16;
/// More than the shard's list of all events in its windows ever holds.
const WARM_UP_EVENTS: usize = 4_800;
const STEADY_ROUNDS: usize = 200;

struct Scene {
    crowd: Crowd,
    topics: [Topic; 2],
    text: Bytes,
    /// Events published so far.
    events: usize,
    /// Frames that the subscribers are owed for them.
    owed: u64,
}

impl Scene {
    fn new(text_bytes: usize) -> Scene {
        // Small windows are full soon, so that evicting is part of the steady state.
        let limits = Limits { window_events_max: 4 * BURST, ..Limits::default() };
        let subscriptions: Vec<Subscription<'_>> = (0..SUBSCRIBERS)
            .map(|number| {
                let format = Format::ALL[number / 5 % Format::COUNT];
                let topics: &[&str] = match number % 5 {
                    0 | 1 => &["a"],
                    2 | 3 => &["b"],
                    _ => &["a", "b"],
                };
                (format, topics)
            })
            .collect();
        Scene {
            crowd: Crowd::gather(limits, &subscriptions),
            topics: ["a", "b"].map(|name| Topic::new(name).expect("a legal topic")),
            text: Bytes::from("x".repeat(text_bytes)),
            events: 0,
            owed: 0,
        }
    }

    /// Publishes `count` events in one message, the topics in turn, and returns what the shard
    /// allocated.
    fn publish(&mut self, count: usize) -> u64 {
        let first = self.events;
        self.events += count;
        self.owed += (count * SUBSCRIBERS * 3 / 5) as u64;
        let topics = (first..self.events).map(|number| &self.topics[number % 2]);
        let message = self.crowd.message(topics, &self.text);
        self.crowd.deliver(message)
    }

    /// Publishes messages of these sizes in turn: first until nothing grows any more, then
    /// expecting no allocation.
    fn steady(&mut self, sizes: &[usize]) {
        let warm = self.events + WARM_UP_EVENTS;
        let mut warm_up = sizes.iter().cycle();
        while self.events < warm {
            self.publish(*warm_up.next().expect("a cycle has no end"));
        }
        self.crowd.trace = true;
        for round in 0..STEADY_ROUNDS {
            let allocations = self.publish(sizes[round % sizes.len()]);
            assert_eq!(
                allocations, 0,
                "messages of {sizes:?} events: number {round} made the shard allocate"
            );
        }
        self.crowd.trace = false;
        assert_eq!(self.crowd.frames(), self.owed, "every subscriber got every event");
    }
}

#[test]
fn one_event_at_a_time_allocates_nothing() {
    Scene::new(200).steady(&[1]);
}

#[test]
fn bursts_allocate_nothing() {
    Scene::new(200).steady(&[BURST]);
}

#[test]
fn a_changing_load_allocates_nothing() {
    let mut scene = Scene::new(200);
    scene.steady(&[1, BURST, 1, 1, 3, BURST, 2]);
    scene.steady(&[1]);
    scene.steady(&[BURST]);
}

#[test]
fn large_frames_allocate_nothing() {
    Scene::new(6 << 10).steady(&[1, 4, BURST]);
}

/// Time passes: a tick in every tenth turn or so. Nothing that traffic needs is thrown away while
/// there is traffic.
#[test]
fn ticks_under_load_allocate_nothing() {
    let mut scene = Scene::new(200);
    scene.crowd.turn_time = Duration::from_millis(20);
    scene.steady(&[1, BURST]);
}

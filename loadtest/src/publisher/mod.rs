//! Publishing to a server, with stamped payloads, over whichever way it takes events.
//!
//! [`Publisher`] is the closed loop's: it publishes when it is told to, in the caller's process.
//! [`PublishProcess`] is the open loop's: a process of its own with its own clock. Both write
//! through one [`Sink`] per [`Way`]; every sink writes on sockets of its own, as few writes as the
//! way allows, and no wait is without a limit. Event k, from 1, goes to topic (k - 1) mod topics
//! and carries the sequence (k - 1) / topics + 1, so each topic's sequences start at 1 and have no
//! gaps.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::fault::server_fault;
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};
use crate::target::{Target, Way};

mod command;
mod nats;
mod pipe;
mod post;
mod process;
mod schedule;
mod stream;
mod websocket;

pub use process::{PublishProcess, PublishSample, TEND_EVERY, run};

/// The largest payload, beyond what servers take.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// What is written at once, so that a late open loop does not build one enormous write.
const CHUNK_BYTES_MAX: usize = 256 << 10;
/// How long an event that was refused waits until it is published again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// Topics that have a connection or process of their own.
const LINES_MAX: usize = 1_024;

/// Where and what to publish.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PublishPlan {
    /// Where to connect; unused by [`Way::Command`].
    pub address: SocketAddr,
    /// How.
    pub way: Way,
    /// Path, subject or command, perhaps with `{topic}`; unused by [`Way::Stream`].
    pub path: String,
    /// Topics, at least 1.
    pub topics: usize,
    /// Bytes of one event's data, the stamp included.
    pub payload_bytes: usize,
}

impl PublishPlan {
    /// To a server as it wants it.
    pub fn to(target: &Target, topics: usize, payload_bytes: usize) -> PublishPlan {
        let Target { publish: address, way, publish_path: path, .. } = target.clone();
        PublishPlan { address, way, path, topics, payload_bytes }
    }

    /// To a fanwave's control plane, by one stream, to the first topic.
    pub fn stream(address: SocketAddr, payload_bytes: usize) -> PublishPlan {
        PublishPlan { address, way: Way::Stream, path: String::new(), topics: 1, payload_bytes }
    }

    /// To one path, by POSTs.
    pub fn post(address: SocketAddr, path: String, payload_bytes: usize) -> PublishPlan {
        PublishPlan { way: Way::Post, path, ..PublishPlan::stream(address, payload_bytes) }
    }

    fn check(&self) -> Result<()> {
        let PublishPlan { payload_bytes: bytes, topics, .. } = *self;
        if bytes < STAMP_BYTES {
            bail!("a payload holds a stamp of {STAMP_BYTES} bytes; a size of {bytes} is too small");
        }
        if bytes > PAYLOAD_BYTES_MAX {
            bail!("a size of {bytes} is too large; at most {PAYLOAD_BYTES_MAX} bytes are published at once");
        }
        if topics == 0 {
            bail!("there is no topic to publish to; give at least one");
        }
        Ok(())
    }

    /// The payload behind its stamp.
    fn filler(&self) -> Vec<u8> {
        vec![b'x'; self.payload_bytes - STAMP_BYTES]
    }

    /// Refuses more topics than there may be connections or processes of their own.
    fn check_lines(&self, what: &str) -> Result<()> {
        if self.topics > LINES_MAX {
            bail!(
                "{} topics need as many {what}s, at most {LINES_MAX} are opened; \
                 use fewer topics or another way to publish",
                self.topics
            );
        }
        Ok(())
    }
}

/// Events to be written now, oldest first.
#[derive(Debug, Clone, Copy)]
struct Batch<'a> {
    /// Number of the first one, from 1, over all topics.
    first: u64,
    /// The time that each carries.
    times: &'a [u64],
    topics: usize,
}

impl Batch<'_> {
    /// Topic and stamp of each event.
    fn events(&self) -> impl Iterator<Item = (usize, Stamp)> {
        let (first, topics) = (self.first - 1, self.topics as u64);
        self.times.iter().zip(first..).map(move |(&time_ns, number)| {
            ((number % topics) as usize, Stamp { sequence: number / topics + 1, time_ns })
        })
    }

    /// The topics that the events go to, each once.
    fn topics(&self) -> impl Iterator<Item = usize> {
        let topics = self.topics;
        let first = ((self.first - 1) % topics as u64) as usize;
        (0..topics.min(self.times.len())).map(move |at| (first + at) % topics)
    }

    /// Without the events before `at`.
    fn skip(&self, at: usize) -> Self {
        Batch { first: self.first + at as u64, times: &self.times[at..], ..*self }
    }
}

/// What stands around the stamp on the wire.
#[derive(Debug)]
struct Template {
    /// Before it, for each topic.
    before: Vec<Vec<u8>>,
    /// After it.
    after: Vec<u8>,
}

impl Template {
    fn new(plan: &PublishPlan, before: impl Fn(usize) -> Vec<u8>, after: Vec<u8>) -> Template {
        Template { before: (0..plan.topics).map(before).collect(), after }
    }

    /// Bytes of one event of this topic.
    fn bytes(&self, topic: usize) -> usize {
        self.before[topic].len() + STAMP_BYTES + self.after.len()
    }

    fn put(&self, (topic, stamp): (usize, Stamp), out: &mut Vec<u8>) {
        let mut bytes = [0; STAMP_BYTES];
        stamp.write(&mut bytes);
        out.extend_from_slice(&self.before[topic]);
        out.extend_from_slice(&bytes);
        out.extend_from_slice(&self.after);
    }
}

/// Events that the server refused because it was busy.
#[derive(Debug, Default, PartialEq, Eq)]
struct Refusals {
    events: u64,
    /// What it said to the first of them.
    first: Option<String>,
}

/// One way of publishing.
trait Sink: Send + std::fmt::Debug {
    /// Hands all events of the batch to the kernel. An error names what the server said, if it said
    /// anything.
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals>;

    /// Reads what the server has said, and answers it; does not wait.
    fn tend(&mut self) -> Result<()>;

    /// Ends the publishing of `events` events in all, of which `refused` were refused; an error if
    /// the server says that it did not take the others.
    fn finish(self: Box<Self>, events: u64, refused: u64) -> Result<()>;
}

/// A connected publisher.
#[derive(Debug)]
pub struct Publisher {
    sink: Box<dyn Sink>,
    topics: usize,
    /// Events that are written at once, at most.
    chunk_events: usize,
    /// Number of the next event, from 1, over all topics.
    next: u64,
    refused: u64,
    times: Vec<u64>,
}

impl Publisher {
    /// Connects as planned.
    pub fn connect(plan: &PublishPlan) -> Result<Publisher> {
        plan.check()?;
        let mut chunk_events = (CHUNK_BYTES_MAX / plan.payload_bytes).max(1);
        let sink: Box<dyn Sink> = match plan.way {
            Way::Stream => Box::new(stream::Stream::connect(plan)?),
            Way::Post => {
                chunk_events = chunk_events.min(post::PIPELINED_MAX);
                Box::new(post::Post::connect(plan)?)
            }
            Way::WebSocket => Box::new(websocket::WebSockets::connect(plan)?),
            Way::Nats => Box::new(nats::Nats::connect(plan)?),
            Way::Command => Box::new(command::Commands::start(plan)?),
        };
        Ok(Publisher { sink, topics: plan.topics, chunk_events, next: 1, refused: 0, times: Vec::new() })
    }

    /// The number that the next event gets, from 1, over all topics.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Publishes `events` events, stamped with the present time.
    pub fn publish(&mut self, events: u64) -> Result<()> {
        self.publish_stamped(events, now_ns())
    }

    /// Publishes `events` events with the time `time_ns` in their stamps. A refusal is an error:
    /// whoever waits for an event to arrive must know that it will not.
    pub fn publish_stamped(&mut self, events: u64, time_ns: u64) -> Result<()> {
        let mut times = std::mem::take(&mut self.times);
        times.clear();
        times.resize(events as usize, time_ns);
        let refusals = self.send(&times);
        self.times = times;
        match refusals?.first {
            Some(said) => Err(server_fault(format!("the server refused a publish: {said}"))),
            None => Ok(()),
        }
    }

    /// Publishes `events` events with the time `time_ns`, one after the other; one that a busy
    /// server refuses is published again until `deadline`. Gives how often that was. For ways that
    /// answer each event.
    pub fn insist(&mut self, events: u64, time_ns: u64, deadline: Instant) -> Result<u64> {
        let mut again = 0;
        for _ in 0..events {
            while let Some(said) = self.send(&[time_ns])?.first {
                if Instant::now() > deadline {
                    let told = format!("the server refused event {} to the end: {said}", self.next - 1);
                    return Err(server_fault(told));
                }
                // It was not taken, so its number is free.
                self.next -= 1;
                self.refused -= 1;
                again += 1;
                std::thread::sleep(AGAIN_AFTER);
            }
        }
        Ok(again)
    }

    /// Publishes one event for each of these times.
    fn send(&mut self, times: &[u64]) -> Result<Refusals> {
        let mut refusals = Refusals::default();
        for times in times.chunks(self.chunk_events) {
            let more = self.sink.send(Batch { first: self.next, times, topics: self.topics })?;
            self.next += times.len() as u64;
            self.refused += more.events;
            refusals.events += more.events;
            refusals.first = refusals.first.or(more.first);
        }
        Ok(refusals)
    }

    /// Reads what the server has said, and answers its pings. To be called every [`TEND_EVERY`]
    /// while nothing is published.
    pub fn tend(&mut self) -> Result<()> {
        self.sink.tend()
    }

    /// Ends the publishing; checks, where the way allows it, that the server took every event.
    pub fn finish(self) -> Result<()> {
        self.sink.finish(self.next - 1, self.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> PublishPlan {
        PublishPlan {
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            way: Way::Post,
            path: "/{topic}".into(),
            topics: 1,
            payload_bytes: 100,
        }
    }

    #[test]
    fn a_plan_that_cannot_be_kept_is_refused_before_connecting() {
        for payload_bytes in [STAMP_BYTES - 1, PAYLOAD_BYTES_MAX + 1] {
            let error = Publisher::connect(&PublishPlan { payload_bytes, ..plan() }).expect_err("impossible");
            assert!(error.to_string().contains(&format!("a size of {payload_bytes} ")), "{error}");
        }
        let error = Publisher::connect(&PublishPlan { topics: 0, ..plan() }).expect_err("impossible");
        assert!(error.to_string().contains("at least one"), "{error}");
        for way in [Way::WebSocket, Way::Command] {
            let path = "echo {topic}".to_string();
            let many = PublishPlan { way, path, topics: LINES_MAX + 1, ..plan() };
            let error = Publisher::connect(&many).expect_err("impossible");
            assert!(error.to_string().contains("use fewer topics"), "{error}");
        }
    }

    #[test]
    fn events_go_round_the_topics_and_each_topic_counts_for_itself() {
        let batch = Batch { first: 5, times: &[7, 8, 9], topics: 2 };
        let stamp = |sequence, time_ns| Stamp { sequence, time_ns };
        let events: Vec<_> = batch.events().collect();
        assert_eq!(events, [(0, stamp(3, 7)), (1, stamp(3, 8)), (0, stamp(4, 9))]);
        assert_eq!(batch.topics().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(batch.skip(2).events().collect::<Vec<_>>(), events[2..]);
        assert_eq!(Batch { topics: 7, ..batch }.topics().collect::<Vec<_>>(), [4, 5, 6]);
    }
}

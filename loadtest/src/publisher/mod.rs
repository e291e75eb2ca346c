//! Publishing to a server, with stamped payloads, over whichever way it takes events.
//!
//! [`Publisher`] is the closed loop's: it publishes when it is told to, in the caller's process.
//! [`PublishProcess`] is the open loop's: a process of its own with its own clock. Both write
//! through one [`Sink`] per [`Way`]; every sink writes on sockets of its own, as few writes as the
//! way allows, and no wait is without a limit. Event k, from 1, carries the number k. It goes to
//! topic (k - 1) mod topics; where several publishers take turns, all of them publish to a topic
//! before the next one's turn comes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::fault::server_fault;
use crate::framing::Dialect;
use crate::receiver::Rota;
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};
use crate::target::Target;
use crate::token::Signer;
use crate::way::Way;
use crate::workload::Workload;

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
    /// Values of each topic, which the events go round, each told by its key; none has a key if it
    /// is 1. For [`Way::Stream`].
    #[serde(default = "one")]
    pub keys: usize,
    /// Connections of [`Way::Post`]; the events of a topic are all on one.
    #[serde(default = "one")]
    pub lines: usize,
    /// A client that publishes over a WebSocket hears what it said, once and in order.
    #[serde(default)]
    pub hears: bool,
    /// The token that it brings, if it does.
    #[serde(default)]
    pub token: Option<String>,
    /// Publishers that take turns on each topic, in place of this one.
    #[serde(default)]
    pub speakers: Vec<PublishPlan>,
}

fn one() -> usize {
    1
}

/// The token of a publisher, which may hear and say everything, where the server asks for one.
fn token_of(target: &Target, subject: &str) -> Result<Option<String>> {
    let sign = |secret| Signer::new(secret)?.sign(subject, &["**"], &["**"]);
    target.secret.as_ref().map(sign).transpose()
}

impl PublishPlan {
    /// To a server as it wants it.
    pub fn to(target: &Target, topics: usize, payload_bytes: usize) -> Result<PublishPlan> {
        let Target { publish: address, way, publish_path: path, .. } = target.clone();
        let token = token_of(target, "publisher")?;
        Ok(PublishPlan { way, path, topics, token, ..PublishPlan::stream(address, payload_bytes) })
    }

    /// To a server, as a workload wants it.
    pub fn of(target: &Target, workload: &Workload) -> Result<PublishPlan> {
        let plan = PublishPlan::to(target, workload.topics, workload.payload_bytes)?;
        if !workload.speakers.is_empty() && target.dialect != Dialect::Fanwave {
            bail!("{} has no clients that publish: this scenario is fanwave's alone", target.name);
        }
        let speaker = |(number, &way): (usize, &Way)| {
            let path = match way {
                Way::Post => "/topics/{topic}",
                Way::Json => "/ws",
                _ => "/ws/{topic}",
            };
            let (address, path) = (target.clients, path.to_owned());
            let token = token_of(target, &format!("speaker-{number}"))?;
            Ok(PublishPlan { address, way, path, token, hears: true, ..plan.clone() })
        };
        let speakers = workload.speakers.iter().enumerate().map(speaker).collect::<Result<_>>()?;
        Ok(PublishPlan { keys: workload.keys, speakers, ..plan })
    }

    /// To a fanwave's control plane, by one stream, to the first topic.
    pub fn stream(address: SocketAddr, payload_bytes: usize) -> PublishPlan {
        PublishPlan {
            address,
            way: Way::Stream,
            path: String::new(),
            topics: 1,
            payload_bytes,
            keys: 1,
            lines: 1,
            hears: false,
            token: None,
            speakers: Vec::new(),
        }
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
        if self.keys > 1 && self.way != Way::Stream {
            bail!("events with keys are published by fanwave's stream alone");
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
    turn: Turn,
}

/// Whose events a sink takes: those of one voice of a rota whose streams are the topics.
#[derive(Debug, Clone, Copy)]
struct Turn {
    rota: Rota,
    voice: usize,
}

impl Turn {
    /// The sequence among its own events on a topic; `None` of what others said.
    fn own(self, topic: usize, number: u64) -> Option<u64> {
        let (strand, sequence) = self.rota.place(number)?;
        (strand == topic * self.rota.voices + self.voice).then_some(sequence)
    }
}

impl Batch<'_> {
    /// Topic and stamp of each event of the sink.
    fn events(&self) -> impl Iterator<Item = (usize, Stamp)> {
        let Turn { rota, voice } = self.turn;
        self.times.iter().zip(self.first..).filter_map(move |(&time_ns, sequence)| {
            let (strand, _) = rota.place(sequence)?;
            (strand % rota.voices == voice).then_some((strand / rota.voices, Stamp { sequence, time_ns }))
        })
    }

    /// The topics that the events go to, each once.
    fn topics(&self) -> impl Iterator<Item = usize> {
        let Rota { streams, voices } = self.turn.rota;
        let before = (self.first - 1) as usize % (streams * voices);
        let first = before / voices;
        let touched = (before + self.times.len()).div_ceil(voices) - first;
        (0..touched.min(streams)).map(move |at| (first + at) % streams)
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

    /// Waits until all that was sent is answered or has come back, where it is to be.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }

    /// Ends the publishing of `events` events in all, of which `refused` were refused; an error if
    /// the server says that it did not take the others.
    fn finish(self: Box<Self>, events: u64, refused: u64) -> Result<()>;
}

/// A connected publisher.
#[derive(Debug)]
pub struct Publisher {
    /// One for each voice.
    sinks: Vec<Box<dyn Sink>>,
    rota: Rota,
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
        let alone = std::slice::from_ref(plan);
        let plans = if plan.speakers.is_empty() { alone } else { &plan.speakers };
        let rota = Rota { streams: plan.topics, voices: plans.len() };
        let mut chunk_events = (CHUNK_BYTES_MAX / plan.payload_bytes).max(1);
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        for (voice, plan) in plans.iter().enumerate() {
            let turn = Turn { rota, voice };
            sinks.push(match plan.way {
                Way::Stream => Box::new(stream::Stream::connect(plan)?),
                Way::Post => {
                    chunk_events = chunk_events.min(post::PIPELINED_MAX * plan.lines);
                    Box::new(post::Post::connect(plan)?)
                }
                Way::WebSocket | Way::Json => Box::new(websocket::WebSockets::connect(plan, turn)?),
                Way::Nats => Box::new(nats::Nats::connect(plan)?),
                Way::Command => Box::new(command::Commands::start(plan)?),
            });
        }
        Ok(Publisher { sinks, rota, chunk_events, next: 1, refused: 0, times: Vec::new() })
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
            for (voice, sink) in self.sinks.iter_mut().enumerate() {
                let batch = Batch { first: self.next, times, turn: Turn { rota: self.rota, voice } };
                if batch.events().next().is_some() {
                    let more = sink.send(batch)?;
                    self.refused += more.events;
                    refusals.events += more.events;
                    refusals.first = refusals.first.or(more.first);
                }
            }
            self.next += times.len() as u64;
        }
        Ok(refusals)
    }

    /// Reads what the server has said, and answers its pings. To be called every [`TEND_EVERY`]
    /// while nothing is published.
    pub fn tend(&mut self) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| sink.tend())
    }

    /// Waits until all that was published is answered or has come back, where it is to be.
    pub fn settle(&mut self) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| sink.settle())
    }

    /// Ends the publishing; checks, where the way allows it, that the server took every event.
    pub fn finish(self) -> Result<()> {
        let (events, refused) = (self.next - 1, self.refused);
        self.sinks.into_iter().try_for_each(|sink| sink.finish(events, refused))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> PublishPlan {
        PublishPlan::post(SocketAddr::from(([127, 0, 0, 1], 1)), "/{topic}".into(), 100)
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
    fn events_go_round_the_topics_and_the_voices_of_each() {
        let turn = |streams, voices, voice| Turn { rota: Rota { streams, voices }, voice };
        let batch = |turn| Batch { first: 5, times: &[7, 8, 9], turn };
        let stamp = |sequence, time_ns| Stamp { sequence, time_ns };
        let alone = batch(turn(2, 1, 0));
        let events = [(0, stamp(5, 7)), (1, stamp(6, 8)), (0, stamp(7, 9))];
        assert_eq!(alone.events().collect::<Vec<_>>(), events);
        assert_eq!(alone.topics().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(batch(turn(7, 1, 0)).topics().collect::<Vec<_>>(), [4, 5, 6]);
        // Events 5 and 6 are both voices of topic 2, event 7 is the first one's on topic 0.
        let of = |voice| batch(turn(3, 2, voice));
        assert_eq!(of(0).events().collect::<Vec<_>>(), [(2, stamp(5, 7)), (0, stamp(7, 9))]);
        assert_eq!(of(1).events().collect::<Vec<_>>(), [(2, stamp(6, 8))]);
        assert_eq!(of(1).topics().collect::<Vec<_>>(), [2, 0]);
        let own = [6, 5, 12].map(|number| of(1).turn.own(2, number));
        assert_eq!(own, [Some(1), None, Some(2)]);
    }
}

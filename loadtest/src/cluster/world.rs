//! A cluster under load: processes, publishers and subscribers, and what came of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use serde::Serialize;

use super::journal::Findings;
use super::movers::{self, Counters, Heard, Plan};
use super::publishers::{Acknowledged, Load, Published, Publishers};
use super::stand::Stand;
use super::watch::{Recovery, Watch};
use crate::fault::server_fault;
use crate::outcome::Latency;
use crate::report::progress;
use crate::target::topic_name;
use crate::unit::{Unit, grouped};

/// How long all subscribers may take to connect.
const OPEN_LIMIT: Duration = Duration::from_secs(60);
/// How long all may take to be well again after a kill.
const WELL_LIMIT: Duration = Duration::from_secs(60);
/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Who moves where.
const SEED: u64 = 18;

/// How subscribers move.
#[derive(Debug, Clone, Copy)]
pub struct Moves {
    /// Over all subscribers.
    pub per_second: f64,
    /// Moves after which there are no more.
    pub most: u64,
}

/// Everything that runs.
pub struct World {
    /// The processes.
    pub stand: Stand,
    load: Load,
    subscribers: usize,
    publishers: Option<Publishers>,
    movers: Option<JoinHandle<Result<Heard>>>,
    last: Sender<Vec<u64>>,
    watch: Arc<Watch>,
    counters: Arc<Counters>,
    /// The sequence that each topic's subscribers begin behind.
    begin: Vec<u64>,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Told {
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Publishes that were offered again.
    pub repeated: u64,
    pub findings: Findings,
    /// Moves that subscribers made.
    pub moves: u64,
    /// Connections that ended without having been asked to.
    pub broken: u64,
    /// From the first offer of an event to its acknowledgement.
    pub publish: Latency,
    /// The same to each subscriber.
    pub each: Latency,
    /// The same to the last subscriber.
    pub last: Latency,
}

impl World {
    /// Connects so many subscribers, spread over the nodes, and begins to publish.
    pub fn start(mut stand: Stand, load: Load, subscribers: usize, moves: Moves) -> Result<World> {
        if subscribers < load.topics {
            bail!("{subscribers} subscribers are fewer than {} topics", load.topics);
        }
        if moves.per_second > 0.0 && stand.nodes() < 2 {
            progress("one node: subscribers that move come back to it");
        }
        let begin = (0..load.topics).map(|topic| stand.publish_one(&topic_name(topic)));
        let begin = begin.collect::<Result<Vec<String>>>().map_err(|error| stand.explain(error))?;
        let (last, told) = channel();
        let (watch, counters) = (Arc::new(Watch::default()), Arc::new(Counters::default()));
        let sequences = begin.iter().filter_map(|id| super::journal::parts(id)).map(|(_, sequence)| sequence);
        let mut world = World {
            begin: sequences.collect(),
            stand,
            load,
            subscribers,
            publishers: None,
            movers: None,
            last,
            watch: Arc::clone(&watch),
            counters: Arc::clone(&counters),
        };
        let places = world.stand.places();
        let plan = Plan {
            places: Arc::clone(&places),
            begin,
            subscribers,
            moves_per_second: moves.per_second,
            moves_max: moves.most,
            seed: SEED,
            watch: Arc::clone(&watch),
            counters,
        };
        progress(&format!("{} subscribers connect", grouped(subscribers as u64)));
        world.movers = Some(spawn(move || movers::run(plan, &told)));
        let deadline = Instant::now() + OPEN_LIMIT;
        while world.counters.connected.load(Ordering::Relaxed) < subscribers as u64 {
            world.look()?;
            if Instant::now() > deadline {
                let connected = world.counters.connected.load(Ordering::Relaxed);
                let told =
                    format!("{connected} of {subscribers} subscribers connected within {OPEN_LIMIT:?}");
                return Err(world.stand.explain(server_fault(told)));
            }
        }
        world.publishers = Some(Publishers::start(load, &places, &watch));
        Ok(world)
    }

    /// Waits a moment; an error if somebody has failed meanwhile.
    fn look(&mut self) -> Result<()> {
        sleep(LOOK_EVERY);
        if self.publishers.as_ref().is_some_and(Publishers::have_failed) {
            let failed = self.publishers.take().map(Publishers::finish);
            let error = failed.and_then(Result::err).unwrap_or_else(|| anyhow!("a publisher ended"));
            return Err(self.stand.explain(error));
        }
        if self.movers.as_ref().is_some_and(JoinHandle::is_finished) {
            let error = self.heard().err().unwrap_or_else(|| anyhow!("the subscribers ended"));
            return Err(self.stand.explain(error));
        }
        Ok(())
    }

    fn heard(&mut self) -> Result<Heard> {
        let movers = self.movers.take().context("the subscribers have ended")?;
        movers.join().map_err(|_| anyhow!("the subscribers' thread broke down"))?
    }

    /// Lets it run.
    pub fn go_on(&mut self, seconds: f64) -> Result<()> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < until {
            self.look()?;
        }
        Ok(())
    }

    /// How long from now until each publisher has been acknowledged an event that it begins from
    /// now on, and each subscriber has heard one.
    pub fn recover(&mut self) -> Result<Recovery> {
        self.watch.mark();
        let deadline = Instant::now() + WELL_LIMIT;
        loop {
            if let Some(recovery) = self.watch.recovery(self.load.publishers, self.subscribers) {
                return Ok(recovery);
            }
            self.look()?;
            if Instant::now() > deadline {
                let (publishers, subscribers) = self.watch.well();
                return Err(self.stand.explain(server_fault(format!(
                    "after {WELL_LIMIT:?} {publishers} of {} publishers were acknowledged and {subscribers} of {} \
                     subscribers heard",
                    self.load.publishers, self.subscribers
                ))));
            }
        }
    }

    /// Ends publishing, waits until everybody has everything, stops the processes.
    pub fn finish(mut self) -> Result<Told> {
        let publishers = self.publishers.take().context("there are publishers")?;
        let published = publishers.finish().map_err(|error| self.stand.explain(error))?;
        let mut ends = self.begin.clone();
        for event in &published.acknowledged {
            ends[event.topic] = ends[event.topic].max(event.sequence);
        }
        // A server that has ended says why below.
        let _ = self.last.send(ends);
        let heard = self.heard().map_err(|error| self.stand.explain(error))?;
        self.stand.stop()?;
        told(&published, heard, self.subscribers, self.load.topics)
    }
}

/// Sets what was acknowledged beside what was heard.
fn told(published: &Published, heard: Heard, subscribers: usize, topics: usize) -> Result<Told> {
    let Heard { journals, mut findings, moves, broken, each, last } = heard;
    for &Acknowledged { topic, number, sequence } in &published.acknowledged {
        match journals[topic].sequence_of(number) {
            Some(heard) if heard == sequence => {}
            Some(_) => findings.differing += 1,
            None => findings.lost += subscribers_of(topic, subscribers, topics),
        }
    }
    let latency = |histogram: &Histogram<u64>| Latency::of(histogram);
    Ok(Told {
        acknowledged: published.acknowledged.len() as u64,
        repeated: published.repeated,
        findings,
        moves,
        broken,
        publish: latency(&published.latency),
        each: latency(&each),
        last: latency(&last),
    })
}

/// Subscribers of a topic: subscriber k has topic k mod topics.
fn subscribers_of(topic: usize, subscribers: usize, topics: usize) -> u64 {
    ((subscribers + topics - 1 - topic) / topics) as u64
}

impl Told {
    /// A row for each latency.
    pub fn latency_rows(&self) -> Vec<Vec<String>> {
        let rows = [
            ("publish → acknowledged", &self.publish),
            ("publish → each", &self.each),
            ("publish → last", &self.last),
        ];
        let row = |(what, latency): (&str, &Latency)| {
            let at = |quantile| {
                latency.at(quantile).map_or_else(|| "-".to_owned(), |ns| Unit::Nanoseconds.show(ns as f64))
            };
            vec![what.to_owned(), at(0.5), at(0.99), at(1.0), grouped(latency.count)]
        };
        rows.into_iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{Delivery, Journal};
    use super::*;
    use crate::receiver::latency_histogram;

    #[test]
    fn what_was_acknowledged_and_nobody_heard_is_lost_to_all_its_subscribers() {
        let mut journal = Journal::behind("e-1").expect("an id");
        let mut findings = Findings::default();
        journal.take(&mut 0, Delivery { epoch: "e", sequence: 2, number: 1 }, &mut findings);
        journal.take(&mut 1, Delivery { epoch: "e", sequence: 3, number: 2 }, &mut findings);
        let heard = Heard {
            journals: vec![journal],
            findings,
            moves: 4,
            broken: 0,
            each: latency_histogram(),
            last: latency_histogram(),
        };
        let event = |number, sequence| Acknowledged { topic: 0, number, sequence };
        let published = Published {
            acknowledged: vec![event(1, 2), event(2, 9), event(3, 4)],
            repeated: 0,
            latency: latency_histogram(),
        };
        let told = told(&published, heard, 5, 1).expect("told");
        assert_eq!((told.findings.lost, told.findings.differing, told.acknowledged), (5, 1, 3));
        assert!(!told.findings.are_clean());
    }

    #[test]
    fn subscribers_are_spread_over_topics_evenly() {
        let of = |topic| subscribers_of(topic, 7, 3);
        assert_eq!([of(0), of(1), of(2)], [3, 2, 2]);
    }
}

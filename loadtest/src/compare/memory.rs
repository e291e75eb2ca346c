//! User-space memory per idle connection: a fresh server, first with few, then with many
//! subscribers that hear nothing.
//!
//! The difference divided by the connections between the two readings; what a server takes once,
//! for itself or in advance, is in neither. Afterwards one event shows that every connection is
//! alive. A server that was not started here has served others before and holds what they left: it
//! is not read.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::cells::{blame, fleet, publish_plan};
use crate::framing::Protocol;
use crate::prove::memory::settled;
use crate::prove::{ARRIVE_LIMIT, Bench, publish_one_by_one};
use crate::publisher::Publisher;
use crate::report::progress;
use crate::server::{self, Running, ServerChoice};
use crate::usage::Memory;

/// Bytes of the event at the end.
const PAYLOAD_BYTES: usize = 200;

/// What one server took for one protocol.
#[derive(Debug, Serialize)]
pub struct Reading {
    pub server: String,
    pub protocol: Protocol,
    pub few: usize,
    pub many: usize,
    pub empty: Memory,
    pub at_few: Memory,
    pub at_many: Memory,
    /// Bytes of `VmRSS - RssFile` that each connection between the two readings added.
    pub per_connection: f64,
    /// How many times as much as fanwave's; absent for fanwave.
    pub times_fanwave: Option<f64>,
}

/// Reads one server; `None` if it does not speak the protocol or was not started here.
pub fn read(
    bench: &Bench,
    choice: &ServerChoice,
    protocol: Protocol,
    few: usize,
    many: usize,
) -> Result<Option<Reading>> {
    if choice.custom.is_given() {
        progress("memory per connection shows in fresh servers only: the one that runs already is left out");
        return Ok(None);
    }
    let mut running = server::start(choice, Some(bench.common.sender_cpu), 1, &[])?;
    let reading = match running.target.path(protocol).map(str::to_owned) {
        Some(path) => {
            progress(&format!(
                "{}, {}: memory with {few} and {many} idle connections",
                protocol.label(),
                running.target.name
            ));
            let outcome = stages(bench, &running, protocol, path, few, many);
            Some(outcome.map_err(|error| blame(&mut running, error))?)
        }
        None => None,
    };
    running.stop()?;
    Ok(reading)
}

fn stages(
    bench: &Bench,
    running: &Running,
    protocol: Protocol,
    path: String,
    few: usize,
    many: usize,
) -> Result<Reading> {
    let target = &running.target;
    let talk: Duration = target.talks_after_connect();
    let now = || running.memory().map(|memory| memory.expect("it was started here"));
    let empty = settled(now)?;
    let mut fleet = fleet(bench, target, protocol, path, 0);
    fleet.open(few)?;
    std::thread::sleep(talk);
    let at_few = settled(now)?;
    fleet.open(many - few)?;
    std::thread::sleep(talk);
    let at_many = settled(now)?;
    let mut publisher = Publisher::connect(&publish_plan(target, PAYLOAD_BYTES))?;
    fleet.zero(publisher.next(), 0)?;
    publish_one_by_one(&mut publisher, 1, |event, last| fleet.wait_for(event, ARRIVE_LIMIT, last).map(drop))?;
    fleet.check(1, 1)?;
    publisher.finish()?;
    Ok(Reading {
        server: target.name.clone(),
        protocol,
        few,
        many,
        empty,
        at_few,
        at_many,
        per_connection: (at_many.rss_own as f64 - at_few.rss_own as f64) / (many - few) as f64,
        times_fanwave: None,
    })
}

/// Sets each rival's reading beside fanwave's of the same protocol.
pub fn relate(readings: &mut [Reading]) {
    let fanwave: Vec<(Protocol, f64)> = readings
        .iter()
        .filter(|reading| reading.server == "fanwave" && reading.per_connection > 0.0)
        .map(|reading| (reading.protocol, reading.per_connection))
        .collect();
    for reading in readings.iter_mut().filter(|reading| reading.server != "fanwave") {
        let own = fanwave.iter().find(|(protocol, _)| *protocol == reading.protocol);
        reading.times_fanwave = own.map(|(_, bytes)| reading.per_connection / bytes);
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn reading(server: &str, protocol: Protocol, per_connection: f64) -> Reading {
        let memory = Memory { rss_own: 4 << 20, pss: 0, huge: 0 };
        Reading {
            server: server.into(),
            protocol,
            few: 10,
            many: 110,
            empty: memory,
            at_few: memory,
            at_many: memory,
            per_connection,
            times_fanwave: None,
        }
    }

    #[test]
    fn a_rival_is_set_beside_fanwave_of_the_same_protocol() {
        let mut readings = [
            reading("fanwave", Protocol::Sse, 100.0),
            reading("nchan", Protocol::Sse, 5_000.0),
            reading("fanwave", Protocol::Ws, 200.0),
            reading("nchan", Protocol::Ws, 5_000.0),
        ];
        relate(&mut readings);
        assert_eq!(readings.map(|reading| reading.times_fanwave), [None, Some(50.0), None, Some(25.0)]);
    }
}

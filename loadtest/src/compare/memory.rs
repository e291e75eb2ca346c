//! User-space memory per idle connection: a fresh server, first with few, then with many
//! subscribers that hear nothing.
//!
//! The difference divided by the connections between the two readings; what a server takes once,
//! for itself or in advance, is in neither. Afterwards one event shows that every connection is
//! alive. A server that was not started here has served others before and holds what they left: it
//! is not read.

use anyhow::Result;
use serde::Serialize;

use crate::framing::Protocol;
use crate::prove::Bench;
use crate::prove::cells::blame;
use crate::prove::memory::{PAYLOAD_BYTES, Stages};
use crate::publisher::PublishPlan;
use crate::report::progress;
use crate::server::{self, ServerChoice};

/// What one server took for one protocol.
#[derive(Debug, Serialize)]
pub struct Reading {
    pub server: String,
    pub protocol: Protocol,
    #[serde(flatten)]
    pub stages: Stages,
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
    (few, many): (usize, usize),
    settled_ms: u64,
) -> Result<Option<Reading>> {
    if choice.custom.is_given() {
        progress("memory per connection shows in fresh servers only: the one that runs already is left out");
        return Ok(None);
    }
    let mut running = server::start(choice, Some(bench.common.sender_cpu), 1, &[])?;
    let target = running.target.clone();
    if target.path(protocol).is_none() {
        running.stop()?;
        return Ok(None);
    }
    let (name, server) = (protocol.label(), target.name.clone());
    progress(&format!("{name}, {server}: memory with {few} and {many} idle connections"));
    let (subscribers, plan) =
        (bench.subscribers(&target, protocol)?, PublishPlan::to(&target, 1, PAYLOAD_BYTES)?);
    let talk = target.talks_after_connect();
    let stages = Stages::read(|| running.own_memory(), subscribers, &plan, (few, many), talk, settled_ms)
        .map_err(|error| blame(&mut running, error))?;
    running.stop()?;
    let per_connection = stages.per_connection(|memory| memory.rss_own);
    Ok(Some(Reading { server, protocol, stages, per_connection, times_fanwave: None }))
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
    use crate::usage::Memory;

    pub fn reading(server: &str, protocol: Protocol, per_connection: f64) -> Reading {
        let memory = Memory { rss_own: 4 << 20, pss: 0, huge: 0 };
        Reading {
            server: server.into(),
            protocol,
            stages: Stages {
                few: 10,
                many: 110,
                empty: memory,
                at_few: memory,
                at_many: memory,
                after_event: memory,
            },
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

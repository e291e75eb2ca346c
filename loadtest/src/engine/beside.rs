//! The floor beside a run: bare `send(2)` of the run's own frames over as many sockets, right before and right after.
//!
//! Its sockets are open only meanwhile, so that they are in none of the run's figures. One send carries one event,
//! whatever the run's pace is: a server that merges events under way can be below the floor.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::fleet::SOCKETS_PER_RECEIVER_MAX;
use crate::floor::Floor;
use crate::outcome::FloorCost;
use crate::process::sockets_per_process_max;
use crate::prove::leg::floor_leg;
use crate::usage::CpuMeter;

/// Time of one leg. Long enough for thousands of sends also over the most sockets.
const LEG: Duration = Duration::from_millis(700);
/// The floor's subscribers are numbered from here on, beyond those of a run.
const FIRST: usize = 4_000_000;

/// Legs of the floor around one run.
pub struct Beside {
    connections: usize,
    sender_cpu: usize,
    receiver_cpu: usize,
    interrupts_apart: bool,
    us_per_delivery: Vec<f64>,
}

impl Beside {
    /// For a run with so many connections; as many of them as one process holds.
    pub fn new(connections: usize, sender_cpu: usize, receiver_cpu: usize, interrupts_apart: bool) -> Beside {
        let connections = connections.min(sockets_per_process_max().min(SOCKETS_PER_RECEIVER_MAX) as usize);
        Beside { connections, sender_cpu, receiver_cpu, interrupts_apart, us_per_delivery: Vec::new() }
    }

    /// Measures one leg with frames of so many bytes.
    pub fn measure(&mut self, frame_bytes: usize) -> Result<()> {
        let mut floor = Floor::start(self.connections, self.sender_cpu, self.receiver_cpu, FIRST)
            .context("the floor beside the run (--no-floor leaves it out)")?;
        let meter = CpuMeter::new(floor.pid(), self.sender_cpu, self.interrupts_apart);
        let leg = floor_leg(&mut floor, &meter, frame_bytes, 1, LEG).context("the floor beside the run")?;
        self.us_per_delivery.push(leg.us_per_delivery);
        Ok(())
    }

    /// The mean of the legs beside what the server cost.
    pub fn cost(&self, server_us_per_delivery: Option<f64>) -> Option<FloorCost> {
        if self.us_per_delivery.is_empty() {
            return None;
        }
        let mean = self.us_per_delivery.iter().sum::<f64>() / self.us_per_delivery.len() as f64;
        Some(FloorCost {
            connections: self.connections,
            us_per_delivery: mean,
            ratio: server_us_per_delivery.map(|us| us / mean),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_to_the_mean_of_the_legs_before_and_after() {
        let mut beside = Beside::new(10, 0, 1, false);
        assert!(beside.cost(Some(1.0)).is_none());
        beside.us_per_delivery = vec![1.0, 3.0];
        let cost = beside.cost(Some(3.0)).expect("measured");
        assert_eq!((cost.connections, cost.us_per_delivery, cost.ratio), (10, 2.0, Some(1.5)));
        assert_eq!(beside.cost(None).expect("measured").ratio, None);
    }
}

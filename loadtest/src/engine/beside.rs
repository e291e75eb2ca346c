//! The floor beside a run: bare `send(2)` of the run's own frames over as many sockets, right
//! before and right after.
//!
//! Its bursts come at the run's pace, since a delivery that comes alone costs more than one among
//! many: caches are cold, and each is acknowledged by itself. Where a run has several topics, each
//! of the floor's sockets gets as many frames as a subscriber, but all sockets get them at the same
//! moment. Its sockets are open only meanwhile, so that they are in none of the run's figures;
//! opened last, they are a little cheaper than the run's (see `open_in_turns`). A server that
//! merges events under way can be below the floor.
//!
//! Invariant: there is a ratio only where deliveries to readers who stay are all that the server
//! did.

use std::time::Duration;

use anyhow::{Context, Result};

use super::EngineOptions;
use crate::fleet::SOCKETS_PER_RECEIVER_MAX;
use crate::floor::Floor;
use crate::outcome::FloorCost;
use crate::process::sockets_per_process_max;
use crate::prove::leg::paced_floor_leg;
use crate::usage::CpuMeter;
use crate::workload::{Crowd, Listens, Pace, Workload};

/// The shortest leg: long enough for thousands of sends also over the most sockets.
const LEG_MIN: Duration = Duration::from_millis(700);
/// The longest leg.
const LEG_MAX: Duration = Duration::from_secs(3);
/// Bursts of a leg, if the longest leg has room for them.
const BURSTS: u32 = 20;
/// The longest time from one burst to the next: beyond it caches are as cold as they get.
const EVERY_MAX: Duration = Duration::from_secs(1);
/// Bytes of one send at most.
const SEND_BYTES_MAX: usize = 16 << 20;
/// The floor's subscribers are numbered from here on, beyond those of a run.
const FIRST: usize = 4_000_000;

/// Legs of the floor around one run.
pub struct Beside {
    connections: usize,
    sender_cpu: usize,
    receiver_cpu: usize,
    interrupts_apart: bool,
    /// None where nothing is to be measured.
    bursts: Option<Bursts>,
    why_no_ratio: Option<String>,
    us_per_delivery: Vec<f64>,
}

/// What each socket gets.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bursts {
    /// Frames in one send.
    frames: u64,
    /// From one send to the next; zero if they come back to back.
    every: Duration,
}

impl Beside {
    /// For a run of `workload`; over as many sockets as one process holds at most. Nothing is
    /// measured where the run publishes nothing to speak of, or where no floor is wanted.
    pub fn new(workload: &Workload, options: &EngineOptions, interrupts_apart: bool) -> Beside {
        let connections = workload.connections();
        let steady = workload.subscribers.iter().all(Crowd::takes_all);
        let one_topic = workload.subscribers.iter().all(|crowd| crowd.listens == Listens::One);
        let why_no_ratio = match () {
            () if !steady => Some("some subscribers come, go or do not read"),
            () if !one_topic => Some("some subscribers hear more than one topic"),
            () if !workload.speakers.is_empty() => Some("its clients publish, too"),
            () => None,
        };
        Beside {
            connections: connections.min(sockets_per_process_max().min(SOCKETS_PER_RECEIVER_MAX) as usize),
            sender_cpu: options.sender_cpu,
            receiver_cpu: options.receiver_cpu,
            interrupts_apart,
            bursts: if options.floor { Bursts::of(workload) } else { None },
            why_no_ratio: why_no_ratio
                .map(|why| format!("the server's CPU holds more than such deliveries, since {why}")),
            us_per_delivery: Vec::new(),
        }
    }

    /// Measures one leg with frames of so many bytes.
    pub fn measure(&mut self, frame_bytes: usize) -> Result<()> {
        let Some(bursts) = self.bursts.map(|bursts| bursts.within(frame_bytes)) else { return Ok(()) };
        let mut floor = Floor::start(self.connections, self.sender_cpu, self.receiver_cpu, FIRST)
            .context("the floor beside the run (--no-floor leaves it out)")?;
        let meter = CpuMeter::new(floor.pid(), self.sender_cpu, self.interrupts_apart);
        let Bursts { frames, every } = bursts;
        let leg = paced_floor_leg(&mut floor, &meter, frame_bytes, frames, every, bursts.leg())
            .context("the floor beside the run")?;
        self.us_per_delivery.push(leg.us_per_delivery);
        self.bursts = Some(bursts);
        Ok(())
    }

    /// The mean of the legs beside what the server cost.
    pub fn cost(self, server_us_per_delivery: Option<f64>) -> Option<FloorCost> {
        let Bursts { frames, every } = self.bursts?;
        if self.us_per_delivery.is_empty() {
            return None;
        }
        let mean = self.us_per_delivery.iter().sum::<f64>() / self.us_per_delivery.len() as f64;
        let ratio = server_us_per_delivery.filter(|_| self.why_no_ratio.is_none()).map(|us| us / mean);
        Some(FloorCost {
            connections: self.connections,
            frames,
            every_seconds: every.as_secs_f64(),
            us_per_delivery: mean,
            ratio,
            why_no_ratio: self.why_no_ratio,
        })
    }
}

impl Bursts {
    /// What one subscriber of the workload gets; none if that is next to nothing.
    fn of(workload: &Workload) -> Option<Bursts> {
        let topics = workload.topics as f64;
        // Of `events` at once a subscriber gets its topic's share, a whole one less often if it is
        // less than one.
        let shared = |events: u64| (events as f64 / topics).round().max(1.0);
        let bursts = |frames: f64, every_seconds: f64| Bursts {
            frames: frames as u64,
            every: Duration::try_from_secs_f64(every_seconds).map_or(EVERY_MAX, |every| every.min(EVERY_MAX)),
        };
        match workload.publish {
            Pace::Rate { per_second } => Some(bursts(1.0, topics / per_second)),
            Pace::Burst { events, every_ms } => {
                let frames = shared(events);
                Some(bursts(frames, every_ms as f64 / 1e3 * frames * topics / events as f64))
            }
            Pace::InFlight { events } => Some(bursts(shared(events), 0.0)),
            Pace::AtOnce { .. } | Pace::Idle {} => None,
        }
    }

    /// The same with no more frames than one send takes.
    fn within(self, frame_bytes: usize) -> Bursts {
        let room = (SEND_BYTES_MAX / frame_bytes.max(1)).max(1) as u64;
        Bursts { frames: self.frames.min(room), ..self }
    }

    fn leg(&self) -> Duration {
        (self.every * BURSTS).clamp(LEG_MIN, LEG_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Overrides, load};

    const OPTIONS: EngineOptions =
        EngineOptions { sender_cpu: 0, receiver_cpu: 1, floor: true, memory: true };

    fn built_in(name: &str) -> Workload {
        load(name, &Overrides::default()).expect("built in")
    }

    fn bursts(publish: Pace, topics: usize) -> Option<(u64, u64)> {
        let bursts = Bursts::of(&Workload { publish, topics, ..built_in("ticker") })?;
        Some((bursts.frames, bursts.every.as_millis() as u64))
    }

    #[test]
    fn the_ratio_is_to_the_mean_of_the_legs_before_and_after() {
        let measured = |name: &str, legs: &[f64]| {
            let beside = Beside::new(&built_in(name), &OPTIONS, false);
            Beside { us_per_delivery: legs.to_vec(), ..beside }
        };
        assert!(measured("ticker", &[]).cost(Some(1.0)).is_none());
        let cost = measured("ticker", &[1.0, 3.0]).cost(Some(3.0)).expect("measured");
        assert_eq!((cost.connections, cost.us_per_delivery, cost.ratio), (2_000, 2.0, Some(1.5)));
        assert_eq!((cost.frames, cost.every_seconds, cost.why_no_ratio), (1, 0.05, None));
        assert_eq!(measured("ticker", &[1.0]).cost(None).expect("measured").ratio, None);
    }

    #[test]
    fn a_run_whose_subscribers_do_not_all_stay_has_a_floor_but_no_ratio() {
        for name in ["chat-room", "reconnect-storm", "slow-readers"] {
            let beside = Beside::new(&built_in(name), &OPTIONS, false);
            let cost = Beside { us_per_delivery: vec![2.0], ..beside }.cost(Some(3.0)).expect("measured");
            assert_eq!((cost.us_per_delivery, cost.ratio), (2.0, None), "{name}");
            assert!(cost.why_no_ratio.is_some(), "{name}");
        }
    }

    #[test]
    fn the_floor_sends_at_the_pace_at_which_a_subscriber_receives() {
        assert_eq!(bursts(Pace::Rate { per_second: 20.0 }, 1), Some((1, 50)));
        assert_eq!(bursts(Pace::Rate { per_second: 200.0 }, 10), Some((1, 50)));
        assert_eq!(bursts(Pace::Rate { per_second: 0.01 }, 1), Some((1, 1_000)));
        assert_eq!(bursts(Pace::Burst { events: 50, every_ms: 500 }, 1), Some((50, 500)));
        assert_eq!(bursts(Pace::Burst { events: 50, every_ms: 500 }, 10), Some((5, 500)));
        assert_eq!(bursts(Pace::Burst { events: 5, every_ms: 100 }, 10), Some((1, 200)));
        assert_eq!(bursts(Pace::InFlight { events: 32 }, 4), Some((8, 0)));
        assert_eq!(bursts(Pace::Idle {}, 1), None);
    }

    #[test]
    fn a_leg_is_bounded_in_time_and_a_send_in_bytes() {
        let every = |ms: u64| Bursts { frames: 100, every: Duration::from_millis(ms) };
        let seconds = [0, 50, 500, 1_000].map(|ms| every(ms).leg().as_secs_f64());
        assert_eq!(seconds, [0.7, 1.0, 3.0, 3.0]);
        assert_eq!(every(0).within(1 << 20).frames, 16);
        assert_eq!(every(0).within(usize::MAX).frames, 1);
    }
}

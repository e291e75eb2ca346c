//! One leg of a comparison: a few seconds of sending by one sender, and what they cost it.
//!
//! A leg warms up first, unmeasured, then sends until its time is over, waits until everything has
//! arrived, and checks the arrival to the byte. CPU is read before and after, with the sender
//! quiet.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use super::{ARRIVE_LIMIT, publish_one_by_one};
use crate::fleet::Fleet;
use crate::floor::Floor;
use crate::publisher::Publisher;
use crate::report::Spread;
use crate::usage::CpuMeter;

/// Time of the unmeasured beginning of a leg.
const WARM_UP: Duration = Duration::from_millis(150);
/// Time that a sender gets to go quiet, so that its work after the last arrival is counted.
const SETTLE: Duration = Duration::from_millis(3);

/// Events that are published before anything is measured.
const CALIBRATION_EVENTS: u64 = 8;
/// Above this share of their CPU the receivers, not the sender, set the deliveries per second.
const RECEIVER_SHARE_HIGH: f64 = 0.95;
/// Above this share of the sender's CPU other programs disturb its legs.
pub const OTHERS_SHARE_HIGH: f64 = 0.05;

/// What a comparison's checks can see, said beneath its figures.
pub const CHECKED: &str = "Where all connections get the same bytes, each was checked to the byte and the first by its \
    stamps: on the others a fault that leaves the length as it should be (an event in place of another, two swapped) would \
    not show. Elsewhere (NATS, event streams in chunks) all were checked by their stamps.";

/// How several events are kept in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// Publish so many at once, wait until all have arrived everywhere, repeat.
    Burst,
    /// Publish more whenever some have arrived, so that about so many are always under way.
    Sliding,
}

impl Window {
    /// The word in tables.
    pub fn label(self) -> &'static str {
        match self {
            Window::Burst => "burst",
            Window::Sliding => "sliding",
        }
    }
}

/// A leg's time from its option, whose name errors tell.
pub fn leg_time(option: &str, seconds: f64) -> Result<Duration> {
    if !(0.1..=600.0).contains(&seconds) {
        bail!("{option} {seconds} is not possible; give 0.1 to 600 seconds");
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// What a leg showed.
#[derive(Debug, Clone)]
pub struct Leg {
    /// Events sent.
    pub events: u64,
    /// From the first publish to the last arrival.
    pub seconds: f64,
    /// CPU of the sender per delivery, in microseconds.
    pub us_per_delivery: f64,
    /// Nanoseconds that the kernel's clock ticks met it in user space and in the kernel.
    pub parts_ns: [u64; 2],
    /// Deliveries per second of wall time.
    pub deliveries_per_second: f64,
    /// Mean bytes on the wire per event and connection.
    pub frame_bytes: f64,
    /// Share of one CPU that the receivers used; near 1 they were the bottleneck.
    pub receiver_share: f64,
    /// Share of the sender's CPU that other programs used, or a hypervisor took; to a clock tick.
    pub others_share: f64,
}

/// The legs of one sender, summed up.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// CPU of the sender per delivery, in microseconds.
    pub us_per_delivery: Spread,
    /// The share of it in user space, over all legs; none if no clock tick met it.
    pub user_share: Option<f64>,
    /// Deliveries per second of wall time.
    pub deliveries_per_second: Spread,
    /// Share of the receivers' CPU while it sent.
    pub receiver_share: Spread,
    /// Share of the sender's CPU that others used meanwhile.
    pub others_share: Spread,
}

impl Summary {
    /// Over at least one leg.
    pub fn of(legs: &[Leg]) -> Summary {
        let of = |figure: fn(&Leg) -> f64| Spread::of(legs.iter().map(figure));
        let parts = |at: usize| legs.iter().map(|leg| leg.parts_ns[at]).sum::<u64>() as f64;
        let (user, system) = (parts(0), parts(1));
        Summary {
            us_per_delivery: of(|leg| leg.us_per_delivery),
            user_share: (user + system > 0.0).then(|| user / (user + system)),
            deliveries_per_second: of(|leg| leg.deliveries_per_second),
            receiver_share: of(|leg| leg.receiver_share),
            others_share: of(|leg| leg.others_share),
        }
    }

    /// CPU per delivery in user space and in the kernel, in microseconds: `0.4 + 2.1`.
    pub fn parts(&self) -> String {
        let us = self.us_per_delivery.median;
        match self.user_share {
            Some(user) if us.is_finite() => {
                format!("{:.2} + {:.2}", us * user, us * (1.0 - user))
            }
            _ => "-".into(),
        }
    }

    /// True if the receivers, not the sender, set the deliveries per second.
    pub fn receivers_full(&self) -> bool {
        self.receiver_share.median > RECEIVER_SHARE_HIGH
    }
}

/// CPU per delivery of one sender over another's, leg by leg.
pub fn ratios(one: &[Leg], other: &[Leg]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one.us_per_delivery / other.us_per_delivery).collect()
}

/// Publishes a few events, which touch every page once; gives the mean length of a frame on the
/// wire.
pub fn calibrate(publisher: &mut Publisher, fleet: &mut Fleet) -> Result<f64> {
    publish_one_by_one(publisher, fleet, CALIBRATION_EVENTS)?;
    let totals = fleet.check(CALIBRATION_EVENTS, publisher.next() - 1)?.totals;
    Ok(totals.scout_bytes as f64 / CALIBRATION_EVENTS as f64)
}

#[cfg(test)]
impl Leg {
    /// One event on one connection, undisturbed.
    pub fn example(us_per_delivery: f64, deliveries_per_second: f64) -> Leg {
        Leg {
            events: 1,
            seconds: 1.0,
            us_per_delivery,
            parts_ns: [250, 750],
            deliveries_per_second,
            frame_bytes: 200.0,
            receiver_share: 0.5,
            others_share: 0.0,
        }
    }
}

/// Runs `send` between two readings of the CPU. `send` gets the time to stop at and gives the
/// events it sent.
fn measure(
    meter: &CpuMeter,
    connections: usize,
    time: Duration,
    send: impl FnOnce(Instant) -> Result<u64>,
) -> Result<Leg> {
    std::thread::sleep(SETTLE);
    let before = meter.sample()?;
    let start = Instant::now();
    let events = send(start + time)?;
    let seconds = start.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    let after = meter.sample()?;
    let cpu_ns = after.since(&before);
    let deliveries = events * connections as u64;
    Ok(Leg {
        events,
        seconds,
        us_per_delivery: cpu_ns as f64 / 1_000.0 / deliveries as f64,
        parts_ns: after.process_since(&before),
        deliveries_per_second: deliveries as f64 / seconds,
        frame_bytes: 0.0,
        receiver_share: 0.0,
        others_share: after.others_since(&before) as f64 / 1e9 / seconds,
    })
}

/// A leg of the floor: bursts of `frames` frames of `frame_bytes`, each after the one before has
/// arrived everywhere.
pub fn floor_leg(
    floor: &mut Floor,
    meter: &CpuMeter,
    frame_bytes: usize,
    frames: u64,
    time: Duration,
) -> Result<Leg> {
    paced_floor_leg(floor, meter, frame_bytes, frames, Duration::ZERO, time)
}

/// The same with a burst due `every` so often; a floor that cannot keep to it sends them back to
/// back. Warming up takes one such interval at least.
pub fn paced_floor_leg(
    floor: &mut Floor,
    meter: &CpuMeter,
    frame_bytes: usize,
    frames: u64,
    every: Duration,
    time: Duration,
) -> Result<Leg> {
    floor.shape(frame_bytes, frames)?;
    let connections = floor.fleet().connections();
    let send = |floor: &mut Floor, until: Instant| -> Result<u64> {
        let mut events = 0;
        let mut due = Instant::now() + every;
        while events == 0 || due.max(Instant::now()) < until {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            floor.burst(ARRIVE_LIMIT)?;
            events += frames;
            due += every;
        }
        Ok(events)
    };
    let warm = send(floor, Instant::now() + WARM_UP)?;
    let receivers_before = floor.fleet().report(0)?.totals.cpu_ns;
    let mut leg = measure(meter, connections, time, |until| send(floor, until))?;
    let events = warm + leg.events;
    let totals = floor.fleet().check(events, events)?.totals;
    leg.frame_bytes = totals.scout_bytes as f64 / events as f64;
    leg.receiver_share = (totals.cpu_ns - receivers_before) as f64 / 1e9 / leg.seconds;
    Ok(leg)
}

/// A leg of the server: `in_flight` events under way, as `window` says.
pub fn server_leg(
    fleet: &mut Fleet,
    publisher: &mut Publisher,
    meter: &CpuMeter,
    in_flight: u64,
    window: Window,
    time: Duration,
) -> Result<Leg> {
    fleet.zero(publisher.next(), 0)?;
    let connections = fleet.connections();
    let mut sent = 0;
    let mut send = |fleet: &mut Fleet, publisher: &mut Publisher, until: Instant| -> Result<u64> {
        let first = sent;
        let mut arrived = sent;
        while sent == first || Instant::now() < until {
            let room = in_flight - (sent - arrived);
            publisher.publish(room)?;
            sent += room;
            let target = if window == Window::Burst { sent } else { arrived + 1 };
            // A server that repeats events seems to be ahead until the check tells.
            arrived = fleet.wait_for(target, ARRIVE_LIMIT, publisher.next() - 1)?.min(sent);
        }
        fleet.wait_for(sent, ARRIVE_LIMIT, publisher.next() - 1)?;
        Ok(sent - first)
    };
    let warm = send(fleet, publisher, Instant::now() + WARM_UP)?;
    let receivers_before = fleet.report(0)?.totals.cpu_ns;
    let mut leg = measure(meter, connections, time, |until| send(fleet, publisher, until))?;
    let events = warm + leg.events;
    let totals = fleet.check(events, publisher.next() - 1)?.totals;
    leg.frame_bytes = totals.scout_bytes as f64 / events as f64;
    leg.receiver_share = (totals.cpu_ns - receivers_before) as f64 / 1e9 / leg.seconds;
    Ok(leg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_per_delivery_is_shared_between_user_and_kernel_over_all_legs() {
        let legs = |parts: [[u64; 2]; 2]| parts.map(|parts_ns| Leg { parts_ns, ..Leg::example(4.0, 1.0) });
        assert_eq!(Summary::of(&legs([[0, 1_000], [500, 500]])).parts(), "1.00 + 3.00");
        assert_eq!(Summary::of(&legs([[0, 0]; 2])).parts(), "-");
    }

    #[test]
    fn an_impossible_time_is_refused() {
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            let error = leg_time("--some-time", seconds).expect_err("impossible").to_string();
            assert!(error.contains("--some-time"), "{error}");
        }
        assert!(leg_time("--some-time", 0.5).is_ok());
    }
}

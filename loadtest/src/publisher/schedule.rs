//! When events are due in an open loop: a function of the number, never of what happened. No clock,
//! no I/O.

use anyhow::{Result, bail};

use crate::workload::Pace;

/// Events per second, or at once, beyond what any publisher does.
const EVENTS_MAX: f64 = 100_000_000.0;
/// Events of a schedule: years of publishing, and far from where numbers overflow.
const ALL_EVENTS_MAX: f64 = 1e15;
/// The longest schedule.
const SECONDS_MAX: f64 = 1_000_000.0;

/// The times at which a bounded number of events are due, rising.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    start_ns: u64,
    events: u64,
    /// Events that are due together.
    at_once: u64,
    /// From one such group to the next.
    every_ns: f64,
}

impl Schedule {
    /// All events of `pace` that are due within `seconds` of `start_ns`; at least one.
    pub fn new(pace: Pace, seconds: f64, start_ns: u64) -> Result<Schedule> {
        let (at_once, every_ns) = match pace {
            Pace::Rate { per_second } if per_second > 0.0 && per_second <= EVENTS_MAX => {
                (1, 1e9 / per_second)
            }
            Pace::Burst { events, every_ms } if every_ms > 0 && (1..=EVENTS_MAX as u64).contains(&events) => {
                (events, every_ms as f64 * 1e6)
            }
            Pace::Rate { .. } | Pace::Burst { .. } => bail!("no publisher can keep to this: {pace:?}"),
            Pace::InFlight { .. } | Pace::AtOnce { .. } | Pace::Idle {} => {
                bail!("a closed loop has no schedule: {pace:?}")
            }
        };
        if !(seconds > 0.0 && seconds <= SECONDS_MAX) {
            bail!("cannot publish for {seconds} seconds; give more than 0 and at most {SECONDS_MAX}");
        }
        // A group that falls on the very end is not due within; the margin is for what 0.1 cannot
        // say in binary.
        let groups = (seconds * 1e9 / every_ns - 1e-6).ceil().max(1.0);
        if groups * at_once as f64 > ALL_EVENTS_MAX {
            bail!("no publisher can keep to this for {seconds} seconds: {pace:?}");
        }
        Ok(Schedule { start_ns, events: groups as u64 * at_once, at_once, every_ns })
    }

    /// Events in all.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// When event `number`, from 0, is due.
    pub fn due(&self, number: u64) -> u64 {
        self.start_ns + ((number / self.at_once) as f64 * self.every_ns) as u64
    }

    /// How many events are due at `now_ns`, those before included.
    pub fn due_by(&self, now_ns: u64) -> u64 {
        let Some(since) = now_ns.checked_sub(self.start_ns) else { return 0 };
        let mut groups = (since as f64 / self.every_ns) as u64;
        if groups > self.events / self.at_once {
            return self.events;
        }
        // The division may be off by one against the multiplication in `due`, which is what holds.
        while groups > 0 && self.due((groups - 1) * self.at_once) > now_ns {
            groups -= 1;
        }
        while self.due(groups * self.at_once) <= now_ns {
            groups += 1;
        }
        (groups * self.at_once).min(self.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000_000_000_000;

    #[test]
    fn a_rate_is_due_at_even_intervals_and_only_within_the_time() {
        let schedule = Schedule::new(Pace::Rate { per_second: 1_000.0 }, 2.0, START).expect("possible");
        assert_eq!(schedule.events(), 2_000);
        assert_eq!(
            (schedule.due(0), schedule.due(1), schedule.due(1_999)),
            (START, START + 1_000_000, START + 1_999_000_000)
        );
        assert_eq!(schedule.due_by(START - 1), 0);
        assert_eq!(schedule.due_by(START), 1);
        assert_eq!(schedule.due_by(START + 999_999), 1);
        assert_eq!(schedule.due_by(START + 1_000_000), 2);
        assert_eq!(schedule.due_by(u64::MAX), 2_000);
        let schedule = Schedule::new(Pace::Rate { per_second: 0.1 }, 30.0, START).expect("possible");
        assert_eq!(schedule.events(), 3);
        let schedule = Schedule::new(Pace::Rate { per_second: 0.1 }, 1.0, START).expect("possible");
        assert_eq!(schedule.events(), 1);
    }

    #[test]
    fn a_burst_is_due_all_at_once() {
        let schedule =
            Schedule::new(Pace::Burst { events: 5, every_ms: 10 }, 0.025, START).expect("possible");
        assert_eq!(schedule.events(), 15);
        assert_eq!((schedule.due(4), schedule.due(5)), (START, START + 10_000_000));
        assert_eq!(schedule.due_by(START), 5);
        assert_eq!(schedule.due_by(START + 10_000_000), 10);
    }

    #[test]
    fn what_is_due_and_when_agree_at_every_rate() {
        for per_second in [0.3, 3.0, 7.7, 333.3, 12_345.6, 1_000_000.0] {
            let schedule = Schedule::new(Pace::Rate { per_second }, 1e3, START).expect("possible");
            for number in (0..300).chain((1..300).map(|n| n * schedule.events() / 301)) {
                let number = number.min(schedule.events() - 1);
                let due = schedule.due(number);
                assert!(schedule.due_by(due) > number, "{per_second} {number}");
                assert!(schedule.due_by(due - 1) <= number, "{per_second} {number}");
            }
        }
    }

    #[test]
    fn a_pace_or_time_that_is_impossible_is_refused() {
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Schedule::new(Pace::Rate { per_second }, 1.0, START).is_err(), "{per_second}");
        }
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(Schedule::new(Pace::Rate { per_second: 1.0 }, seconds, START).is_err(), "{seconds}");
        }
        assert!(Schedule::new(Pace::Burst { events: 0, every_ms: 1 }, 1.0, START).is_err());
        assert!(Schedule::new(Pace::Burst { events: 1, every_ms: 0 }, 1.0, START).is_err());
        assert!(Schedule::new(Pace::Idle {}, 1.0, START).is_err());
    }
}

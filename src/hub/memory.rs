//! The ceiling of memory: looks at what the process takes, a few times in a second, and has
//! histories shortened, newcomers refused, and publishers refused, in this order.
//!
//! `rule` decides, `meter` reads. Here is what is counted for whom, and who is told.
//!
//! Not here: how a history is shortened on all shards alike ([`Message::Histories`]), and who is
//! refused ([`Pressure`]).
//!
//! [`Message::Histories`]: crate::broadcast::Message::Histories

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use super::Hub;
use crate::broadcast::{Memory, Pressure};
use crate::config::limits::{CONNECTION_BYTES, MEMORY_LOOK_MS, SOCKET_BYTES, WAITING_SEND_BYTES};
use crate::config::units::{Size, rounded};
use crate::config::{Config, MemoryMax};
use crate::log::Pace;

mod meter;
mod rule;

pub use meter::{Meter, Reading};
pub use rule::{InUse, Look, Watch};

/// What `/stats` tells of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ProcessStats {
    /// In use, all kinds together.
    pub(super) bytes: u64,
    /// The ceiling; `None` without one.
    pub(super) bytes_max: Option<u64>,
    /// How short memory is.
    pub(super) pressure: &'static str,
    #[serde(skip)]
    pub(super) level: Pressure,
    /// In use, by kind.
    pub(super) events: u64,
    pub(super) connections: u64,
    pub(super) sockets: u64,
    pub(super) rest: u64,
    /// What histories may take now.
    pub(super) history_bytes_max: u64,
    /// Times that they were cut for want of memory.
    pub(super) history_cuts: u64,
}

/// How the ceiling came about, for the banner.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CeilingReport {
    /// `None` without one.
    pub bytes: Option<u64>,
    /// Why it is this one.
    pub why: String,
    /// What does not fit together, and what to do.
    pub remedies: Vec<String>,
}

/// What is in use by this reading and by what hub and shards count, where so much was in use before
/// the first event.
pub fn in_use(reading: &Reading, memory: &Memory, base: u64) -> InUse {
    let holdings = memory.holdings();
    let connections = ((holdings.sockets * CONNECTION_BYTES) as u64).min(reading.resident);
    let resident = reading.resident - connections;
    // They are counted with frames that may not be made yet.
    let events = (memory.held() as u64).min(resident.saturating_sub(base));
    let waiting = (holdings.waiting * WAITING_SEND_BYTES) as u64;
    InUse {
        events,
        connections,
        sockets: (holdings.sockets * SOCKET_BYTES) as u64 + reading.sockets.unwrap_or(waiting),
        rest: resident - events,
    }
}

/// Checks the ceiling of a configuration against what is in use beside events: `Err` is one line
/// with the remedy.
pub fn check_ceiling(config: &Config, reading: &Reading, in_use: &InUse) -> Result<(), String> {
    let (MemoryMax::Bytes(_), Some(ceiling)) = (config.memory_max, config.memory_max.ceiling(reading.limit))
    else {
        return Ok(());
    };
    let used = in_use.beside_events();
    let least = rule::least_ceiling(used);
    if ceiling >= least {
        return Ok(());
    }
    let capped = match Size(ceiling as usize) {
        size if config.memory_max == MemoryMax::Bytes(size.0) => String::new(),
        size => format!(", of which the cgroup leaves {size}"),
    };
    Err(format!(
        "--memory-max is {}{capped}, and {} are in use beside events: at least {} is needed",
        config.memory_max,
        rounded(used),
        Size((least as usize).next_multiple_of(1 << 20))
    ))
}

/// What is told of the ceiling at the start.
pub fn report(config: &Config, reading: &Reading, in_use: &InUse) -> CeilingReport {
    let max = config.memory_max;
    let bytes = rule::kept_ceiling(max, reading.limit, in_use.beside_events());
    let limit = reading.limit.map(rounded);
    let why = match (max, limit, bytes) {
        (MemoryMax::None, _, _) => "as --memory-max says".to_string(),
        (MemoryMax::Auto, None, _) => "the cgroup has no limit".to_string(),
        (MemoryMax::Auto, Some(limit), Some(_)) => format!("nine tenths of the cgroup's {limit}"),
        (MemoryMax::Auto, Some(limit), None) => format!("the cgroup's {limit} are too few"),
        (MemoryMax::Bytes(asked), Some(limit), Some(bytes)) if bytes < asked as u64 => {
            format!("nine tenths of the cgroup's {limit}, which are less than --memory-max {max}")
        }
        (MemoryMax::Bytes(_), ..) => "as --memory-max says".to_string(),
    };
    let mut remedies = Vec::new();
    if max == MemoryMax::Auto && bytes.is_none() && reading.limit.is_some() {
        let least = rule::least_ceiling(in_use.beside_events()) / 9 * 10;
        remedies.push(format!("give the cgroup {} or more", rounded(least.next_multiple_of(1 << 20))));
    }
    let declared = config.limits.window_bytes_total_max as u64;
    let left = bytes.map(|bytes| rule::target(bytes).saturating_sub(in_use.beside_events()));
    if let Some(left) = left.filter(|left| declared / 2 > *left) {
        remedies.push(format!(
            "histories may take {} by --window-bytes-total-max, and have {} below the ceiling: raise \
             --memory-max, or expect shorter ones",
            rounded(declared / 2),
            rounded(left)
        ));
    }
    CeilingReport { bytes, why, remedies }
}

/// Looks again and again.
pub(super) async fn watch(hub: Arc<Hub>) {
    let mut looks = interval(Duration::from_millis(MEMORY_LOOK_MS));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut paces = Pressure::ALL.map(|_| Pace::WARNING);
    loop {
        looks.tick().await;
        hub.look_at_memory(&mut paces);
    }
}

impl Hub {
    pub(super) fn memory_watch(&self) -> MutexGuard<'_, Watch> {
        self.memory_watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look, and what it asks for.
    pub(super) fn look_at_memory(&self, paces: &mut [Pace; Pressure::ALL.len()]) {
        let reading = (self.surroundings.meter)();
        let config = self.config();
        let mut intake = self.intake();
        let memory = intake.topics().memory();
        let mut watch = self.memory_watch();
        let before = (watch.histories(), watch.pressure());
        let in_use = in_use(&reading, memory, watch.base().unwrap_or_default());
        watch.look(Look {
            in_use,
            events: memory.held() as u64,
            histories: memory.holdings().histories as u64,
            max: config.memory_max,
            limit: reading.limit,
        });
        let after = (watch.histories(), watch.pressure());
        memory.set_pressure(after.1);
        let ceiling = watch.ceiling().unwrap_or(u64::MAX);
        drop(watch);
        if after.0 != before.0 {
            intake.hold_histories(after.0 as usize);
        }
        drop(intake);
        if after.0 != before.0 {
            self.flush();
        }
        if after.1 >= Pressure::Newcomers {
            give_back_at_once();
        }
        if after.1 != before.1
            && let Some(left_out) = paces[after.1 as usize].admit(self.now())
        {
            tell(after.1, &in_use, ceiling, left_out);
        }
    }

    /// What is told of it.
    pub(super) fn process_stats(&self) -> ProcessStats {
        let watch = self.memory_watch();
        let in_use = watch.in_use();
        ProcessStats {
            bytes: in_use.total(),
            bytes_max: watch.ceiling(),
            pressure: watch.pressure().label(),
            level: watch.pressure(),
            events: in_use.events,
            connections: in_use.connections,
            sockets: in_use.sockets,
            rest: in_use.rest,
            history_bytes_max: watch.histories(),
            history_cuts: watch.cuts(),
        }
    }
}

fn tell(pressure: Pressure, in_use: &InUse, ceiling: u64, left_out: u64) {
    let (used, events, sockets) = (rounded(in_use.total()), rounded(in_use.events), rounded(in_use.sockets));
    let ceiling = rounded(ceiling);
    let done = match pressure {
        Pressure::None => {
            tracing::info!(used, ceiling, left_out, "memory is no longer short: histories grow again");
            return;
        }
        Pressure::Histories => "histories are cut",
        Pressure::Newcomers => "newcomers get 503, slow sends have one second",
        Pressure::Publishers => "newcomers and publishers get 503",
    };
    tracing::warn!(used, ceiling, events, sockets, left_out, "memory is short: {done}");
}

/// Has the allocator look at once for what it can give back, instead of some seconds later.
fn give_back_at_once() {
    // mimalloc collects what other threads have freed once in 10,000 allocations beyond the
    // smallest ones (`generic_collect` in its `src/options.c`).
    for _ in 0..10_000 {
        drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 10)));
    }
}

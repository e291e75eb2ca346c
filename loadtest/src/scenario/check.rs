//! Whether anybody can do what a workload asks: its numbers, and what does not go together. A
//! mistake is told by its key, with what is possible.

use anyhow::{Context, Result, anyhow, bail};

use crate::framing::Protocol;
use crate::stamp::STAMP_BYTES;
use crate::way::Way;
use crate::workload::{Behaviour, Crowd, Listens, Pace, Slow, Workload};

/// The longest measurement: a day is a soak test, more is a typing error.
const SECONDS_MAX: f64 = 86_400.0;
/// The largest payload, beyond what servers take.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// The most topics: each costs the publisher and every receiver a table entry.
const TOPICS_MAX: usize = 1_000_000;
/// Events per second beyond which no publisher can go.
const RATE_MAX: f64 = 10e6;
/// Handshakes per second, of a ramp or of churn, beyond which no machine can go.
const HANDSHAKE_RATE_MAX: f64 = 1e6;
/// Bytes published at once, by a burst or to fill a window: they are built in memory.
const AT_ONCE_BYTES_MAX: u64 = 1 << 30;

/// Refuses numbers that nobody can do, by key, with what is possible.
pub fn check(workload: &Workload) -> Result<()> {
    let name_ok = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if workload.name.is_empty() || !workload.name.chars().all(name_ok) {
        bail!("name = {:?} names files; give letters, digits and hyphens", workload.name);
    }
    if !(workload.seconds.is_finite() && workload.seconds > 0.0 && workload.seconds <= SECONDS_MAX) {
        bail!(
            "seconds = {} is no time to measure; give a number above 0, at most {SECONDS_MAX}",
            workload.seconds
        );
    }
    let warm_up = workload.warm_up_seconds;
    if !(warm_up.is_finite() && (0.0..=SECONDS_MAX).contains(&warm_up)) {
        bail!("warm_up_seconds = {warm_up} is no time; give 0 to {SECONDS_MAX}");
    }
    if workload.topics == 0 || workload.topics > TOPICS_MAX {
        bail!("topics = {}; give 1 to {TOPICS_MAX}", workload.topics);
    }
    if workload.payload_bytes < STAMP_BYTES || workload.payload_bytes > PAYLOAD_BYTES_MAX {
        bail!(
            "payload_bytes = {}: each event carries a stamp of {STAMP_BYTES} bytes; give {STAMP_BYTES} to {PAYLOAD_BYTES_MAX}",
            workload.payload_bytes
        );
    }
    check_pace(workload)?;
    check_speakers(workload)?;
    if workload.subscribers.is_empty() {
        bail!("nobody subscribes; add a table [[subscribers]] with protocol and connections");
    }
    for (at, crowd) in workload.subscribers.iter().enumerate() {
        check_crowd(crowd, workload.seconds).with_context(|| format!("[[subscribers]] number {}", at + 1))?;
    }
    let total = workload.connections();
    let one_each = workload.subscribers.iter().all(|crowd| crowd.listens == Listens::One);
    if workload.topics > total && one_each {
        bail!(
            "topics = {} but only {total} connections: nobody would receive some topics; give at most {total} topics",
            workload.topics
        );
    }
    Ok(())
}

fn check_pace(workload: &Workload) -> Result<()> {
    let at_once = |events: u64| -> Result<()> {
        let bytes = events.saturating_mul(workload.payload_bytes as u64);
        if events == 0 || bytes > AT_ONCE_BYTES_MAX {
            bail!(
                "publish.events = {events} of {} bytes at once; give at least 1 event and at most {AT_ONCE_BYTES_MAX} bytes",
                workload.payload_bytes
            );
        }
        Ok(())
    };
    match workload.publish {
        Pace::Rate { per_second } if !(per_second > 0.0 && per_second <= RATE_MAX) => {
            bail!("publish.per_second = {per_second} is no rate; give a number above 0, at most {RATE_MAX}")
        }
        Pace::Burst { every_ms: 0, .. } => {
            bail!("publish.every_ms = 0 leaves no time between bursts; give at least 1")
        }
        Pace::Burst { events, .. } | Pace::InFlight { events } | Pace::AtOnce { events, .. } => {
            at_once(events)
        }
        Pace::Rate { .. } | Pace::Idle {} => Ok(()),
    }?;
    let behaviours = || workload.subscribers.iter().map(|crowd| crowd.behaviour);
    if matches!(workload.publish, Pace::AtOnce { .. })
        && !(behaviours().all(|behaviour| matches!(behaviour, Behaviour::Once | Behaviour::Stalled))
            && behaviours().any(|behaviour| behaviour == Behaviour::Once))
    {
        bail!(
            "publish.pace = \"at_once\" judges what subscribers of kind \"once\" get, beside \"stalled\" ones if you \
             like; give a crowd of kind \"once\" and no others"
        );
    }
    let steady = |crowd: &Crowd| crowd.behaviour == Behaviour::Steady && crowd.takes_all();
    let steady = workload.subscribers.iter().any(steady);
    if matches!(workload.publish, Pace::InFlight { .. }) && !steady {
        bail!(
            "publish.pace = \"in_flight\" waits for arrivals at steady subscribers; add a crowd that is steady"
        );
    }
    Ok(())
}

fn check_speakers(workload: &Workload) -> Result<()> {
    let (keys, speakers) = (workload.keys, &workload.speakers);
    if keys == 0 || workload.topics.saturating_mul(keys) > TOPICS_MAX {
        bail!("keys = {keys}; give at least 1, and at most {TOPICS_MAX} for all topics together");
    }
    let open_loop = matches!(workload.publish, Pace::Rate { .. } | Pace::Burst { .. });
    if !speakers.is_empty() && (keys > 1 || !open_loop) {
        bail!(
            "speakers publish at a rate or in bursts, without keys; change publish.pace, or leave them out"
        );
    }
    if let Some(way) = speakers.iter().find(|way| !matches!(way, Way::WebSocket | Way::Json | Way::Post)) {
        bail!("speakers = [{way:?}] is no way of a client; give \"ws\", \"json\", \"post\"");
    }
    Ok(())
}

fn check_crowd(crowd: &Crowd, seconds: f64) -> Result<()> {
    if crowd.protocol == Protocol::Raw {
        bail!("protocol = \"raw\" is the floor's own; give \"sse\", \"ws\" or \"json\"");
    }
    if crowd.connections == 0 {
        bail!("connections = 0; give at least 1, or remove the table");
    }
    let positive = |key: &str, number: f64| match number > 0.0 && number <= HANDSHAKE_RATE_MAX {
        true => Ok(()),
        false => {
            Err(anyhow!("{key} = {number} is no rate; give a number above 0, at most {HANDSHAKE_RATE_MAX}"))
        }
    };
    if let Some(ramp) = crowd.ramp_per_second {
        positive("ramp_per_second", ramp)?;
    }
    let returns = matches!(crowd.behaviour, Behaviour::Churn { .. } | Behaviour::Storm { .. });
    if crowd.slow == Some(Slow::Latest) && returns {
        bail!("slow = \"latest\" goes with subscribers that stay; leave it out, or change behaviour");
    }
    match crowd.behaviour {
        Behaviour::Steady | Behaviour::Once | Behaviour::Stalled => Ok(()),
        Behaviour::Slow { bytes_per_second: 0 } => {
            bail!("behaviour.bytes_per_second = 0 is what `kind = \"stalled\"` says; give at least 1")
        }
        Behaviour::Slow { .. } => Ok(()),
        Behaviour::Churn { per_second } => positive("behaviour.per_second", per_second),
        Behaviour::Storm { at_seconds, share } => {
            if !(share > 0.0 && share <= 1.0) {
                bail!("behaviour.share = {share} is no share; give a number above 0, at most 1");
            }
            if !(at_seconds >= 0.0 && at_seconds < seconds) {
                bail!(
                    "behaviour.at_seconds = {at_seconds} is outside of the {seconds} seconds of measurement"
                );
            }
            Ok(())
        }
    }
}

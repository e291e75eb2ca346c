//! A mass of connections whose time comes at once, on the simulated ring.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::broadcast::{Drain, EncodedBatch, Memory, Message, Outbox, path};
use crate::clock::Stamp;
use crate::config::{Config, Limits};
use crate::egress::sim::{SimRing, Weather};
use crate::event::Epoch;
use crate::shard::fixtures::encoded_with;
use crate::shard::{Shard, ShardSetup, Turn};
use crate::wire::Format;

const HEARTBEAT: &[u8] = b"3\r\n:\n\n\r\n";
/// Sockets beside those of the crowd.
const SPARE: usize = 32;

struct Crowd {
    shard: Shard<SimRing>,
    outbox: Outbox,
    now: Stamp,
    subscribers: Vec<Slot>,
}

impl Crowd {
    /// So many event streams of one topic, that have read all they got.
    fn of(count: usize) -> Crowd {
        let config = Arc::new(Config::default());
        let (outbox, inbox) = path(8).expect("eventfd");
        let now = Stamp(1_000_000_000);
        let epoch = Epoch(7);
        let memory = Memory::new(&config.limits);
        let setup = ShardSetup {
            number: 0,
            cpu: 0,
            config,
            epoch,
            demand: Arc::default(),
            memory,
            connections_max: count + SPARE,
            admission: Default::default(),
        };
        let ring = SimRing::new(count + SPARE, Weather::Fair, 1).recording();
        let mut crowd =
            Crowd { shard: Shard::new(setup, ring, inbox, now), outbox, now, subscribers: Vec::new() };
        for _ in 0..count {
            let slot = crowd.connect();
            crowd.subscribers.push(slot);
        }
        crowd.rest();
        for slot in crowd.subscribers.clone() {
            crowd.shard.ring_mut().peer_takes(slot);
        }
        crowd
    }

    fn connect(&mut self) -> Slot {
        let ring = self.shard.ring_mut();
        let slot = ring.connect().expect("a free slot");
        ring.peer_sends(slot, b"GET /sse/t HTTP/1.1\r\nHost: x\r\n\r\n");
        slot
    }

    fn turn(&mut self, ms: u64) -> Turn {
        self.now = self.now.plus(Duration::from_millis(ms));
        self.shard.turn(self.now).expect("the simulated ring does not fail")
    }

    /// Turns at one moment until there is nothing to do. Returns how many.
    fn rest(&mut self) -> usize {
        let busy = (1..100_000).find(|_| self.turn(0) == Turn::Idle);
        busy.expect("the shard comes to rest")
    }

    fn publish(&mut self, bytes: usize) {
        let events = [encoded_with("t", 1, vec![b'x'; bytes])].into();
        let batch = Message::Batch(Arc::new(EncodedBatch { events }));
        self.outbox.try_send(batch).expect("room");
    }

    /// Turns that it takes to let a newcomer in.
    fn turns_to_a_head(&mut self) -> usize {
        let slot = self.connect();
        let heard = |crowd: &mut Crowd| {
            crowd.turn(0);
            !crowd.shard.ring_mut().peer_takes(slot).is_empty()
        };
        let turns = (1..1_000).find(|_| heard(self)).expect("a head");
        self.shard.ring_mut().peer_closes(slot);
        turns
    }
}

/// All have been quiet since the same event.
#[test]
fn heartbeats_of_equal_subscribers_are_spread_and_none_is_late() {
    const COUNT: usize = 1_000;
    let mut crowd = Crowd::of(COUNT);
    crowd.publish(10);
    crowd.rest();
    let heartbeat_ms = Limits::default().heartbeat_ms;
    let mut last = vec![0; COUNT];
    for slot in crowd.subscribers.clone() {
        assert!(!crowd.shard.ring_mut().peer_takes(slot).is_empty(), "the event");
    }
    let (mut beats, mut most) = (0, 0);
    for tick in 1..=(4 * heartbeat_ms / TICK_MS) {
        crowd.turn(TICK_MS);
        crowd.rest();
        let now_ms = tick * TICK_MS;
        let mut together = 0;
        for (slot, last) in crowd.subscribers.clone().into_iter().zip(&mut last) {
            let heard = crowd.shard.ring_mut().peer_takes(slot);
            let quiet_ms = now_ms - *last;
            assert!(quiet_ms <= heartbeat_ms + 1_000, "slot {slot} heard nothing for {quiet_ms} ms");
            if !heard.is_empty() {
                assert_eq!(heard, HEARTBEAT);
                assert!(quiet_ms >= heartbeat_ms / 4 * 3, "slot {slot} is bothered after {quiet_ms} ms");
                *last = now_ms;
                together += 1;
            }
        }
        beats += together;
        most = most.max(together);
    }
    assert!(beats >= 3 * COUNT, "{beats} heartbeats");
    assert!(most <= COUNT / 5, "{most} of {COUNT} beat together");
}

#[test]
fn a_mass_of_heartbeats_delays_no_newcomer() {
    let mut crowd = Crowd::of(3 * ENTRIES_LOOKED_AT_MAX);
    let alone = crowd.turns_to_a_head();
    crowd.rest();
    // Nobody looked for so long: all are due in this moment.
    crowd.turn(2 * Limits::default().heartbeat_ms);
    for _ in 0..10 {
        let left = crowd.shard.state.look.left;
        assert_eq!(crowd.turns_to_a_head(), alone);
        let looked_at = left - crowd.shard.state.look.left;
        assert!(looked_at > 0 && looked_at <= alone * ENTRIES_LOOKED_AT_MAX, "{looked_at} entries");
    }
    assert!(crowd.shard.state.look.left > 0, "most heartbeats are still to come");
    crowd.rest();
    for slot in crowd.subscribers.clone() {
        assert_eq!(crowd.shard.ring_mut().peer_takes(slot), HEARTBEAT, "slot {slot}");
    }
}

fn draining(crowd: &mut Crowd) -> oneshot::Receiver<()> {
    let (drain, done) = Drain::new(crowd.now.plus(Duration::from_secs(60)));
    crowd.outbox.try_send(Message::Drain(drain)).expect("room");
    done
}

#[test]
fn a_drain_looks_at_a_bounded_number_of_connections_per_turn_and_ends() {
    let mut crowd = Crowd::of(3 * ENTRIES_LOOKED_AT_MAX);
    let mut done = draining(&mut crowd);
    let mut turns = 0;
    while done.try_recv().is_err() {
        let come_to = |crowd: &Crowd| crowd.shard.state.drain_pass.as_ref().map(|pass| pass.next);
        let before = come_to(&crowd);
        crowd.turn(1);
        let walked = match (before, come_to(&crowd)) {
            (before, Some(now)) => now - before.unwrap_or(0),
            (Some(before), None) => crowd.shard.state.connections.capacity() - before,
            (None, None) => 0,
        };
        assert!(walked <= ENTRIES_LOOKED_AT_MAX, "{walked} entries in a turn");
        for slot in crowd.subscribers.clone() {
            let ring = crowd.shard.ring_mut();
            if ring.ended(slot) {
                ring.peer_closes(slot);
            }
        }
        turns += 1;
        assert!(turns < 10_000, "the drain ends");
    }
    assert_eq!(crowd.shard.state.subscribers, [0; Format::COUNT]);
}

/// Nothing but time can help those who do not read: the shard sleeps until it does.
#[test]
fn a_drain_that_waits_for_slow_sockets_does_not_spin() {
    let mut crowd = Crowd::of(2 * ENTRIES_LOOKED_AT_MAX);
    for slot in crowd.subscribers.clone() {
        crowd.shard.ring_mut().stall(slot, true);
    }
    crowd.publish(100);
    crowd.rest();
    let mut done = draining(&mut crowd);
    assert!(crowd.rest() < 20, "one look, and then sleep");
    crowd.turn(1);
    assert!(crowd.rest() < 20);
    assert!(done.try_recv().is_err(), "they are still there");
    crowd.turn(61_000);
    crowd.rest();
    crowd.turn(CANCEL_RETRY_MS);
    crowd.rest();
    assert!(done.try_recv().is_ok(), "at the deadline all are cut off");
}

/// As the peers see it: who was hung up on, and after how many milliseconds it may come back.
fn told_to_return(crowd: &mut Crowd) -> Vec<u32> {
    let ring = crowd.shard.ring_mut();
    let said = crowd.subscribers.iter().map(|slot| ring.peer_takes(*slot)).collect::<Vec<_>>();
    let told = said.iter().filter_map(|said| {
        let text = std::str::from_utf8(said).expect("an event stream is UTF-8");
        text.split_once("retry: ")?.1.split_once('\n')?.0.parse().ok()
    });
    told.collect()
}

#[test]
fn a_few_subscribers_of_a_draining_shard_leave_at_once() {
    let mut crowd = Crowd::of(900);
    let mut done = draining(&mut crowd);
    crowd.rest();
    let told = told_to_return(&mut crowd);
    assert_eq!(told.len(), 900, "without any time that passes");
    assert!(told.iter().all(|ms| (1_000..5_000).contains(ms)), "{told:?}");
    for slot in crowd.subscribers.clone() {
        crowd.shard.ring_mut().peer_closes(slot);
    }
    crowd.rest();
    crowd.turn(TICK_MS);
    crowd.rest();
    assert!(done.try_recv().is_ok());
}

#[test]
fn many_subscribers_of_a_draining_shard_leave_one_after_the_other() {
    let mut crowd = Crowd::of(8_000);
    let _done = draining(&mut crowd);
    crowd.rest();
    let mut gone = vec![told_to_return(&mut crowd).len()];
    for _ in 0..8 {
        crowd.turn(TICK_MS);
        crowd.rest();
        gone.push(told_to_return(&mut crowd).len());
    }
    // Four in a millisecond: 2 s for all.
    assert_eq!(gone, [1, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 999]);
}

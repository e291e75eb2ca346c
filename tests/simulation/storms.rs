//! Promise: when very many subscribers come back in the same moment, each of them goes on from the
//! event that it names, no turn does more than its share, and those who stayed wait for no more
//! than a few turns.
//!
//! Set-up: one shard in fair weather with many hundred subscribers, a few of which stay. All others
//! are reset in one turn and connect with their last ids in one other turn, while events go on, and
//! all of their requests are there before the next one.
//!
//! Expectation: the bounds of every turn; all events once and in order; a bound for the turns from
//! a publish until it has reached those who stayed.

use super::*;

/// Subscribers in all, far more than one turn visits.
const CROWD: usize = 600;
/// Those who stay, spread over the slots.
const STAYS_EVERY: usize = 50;
/// Bytes of an event's data: large ones make what the returning ones lack long.
const SIZES: [usize; 2] = [40, 900];

/// A world of [`CROWD`] peers, all of them connected.
fn crowd(seed: u64) -> World {
    let mut dice = Dice::new(seed);
    let mut config = (*config(1_024, SlowPolicy::Close, &mut dice)).clone();
    config.limits.window_ms_max = 60_000;
    config.limits.window_bytes_total_max = 512 << 20;
    let config = Arc::new(config);
    let mut world = World::with(config.clone(), 1_024, SlowPolicy::Close, Weather::Fair, seed, dice);
    let (now, demand, memory) = (world.now, world.demand.clone(), world.memory.clone());
    (world.outbox, world.shard) = build_for(CROWD, config, Weather::Fair, 2, now, demand, memory);
    world.make_room_for(CROWD);
    for number in 0..CROWD {
        join(&mut world, number % TOPICS.len(), None);
    }
    for _ in 0..CROWD {
        if world.turn(0) == Turn::Idle {
            break;
        }
    }
    assert!(world.peers.iter().flatten().all(|peer| peer.opened_at.is_some()), "everybody is there");
    world
}

/// A subscriber of one topic connects and asks at once.
fn join(world: &mut World, topic: usize, after: Option<u64>) {
    let protocol =
        if after.is_some() || world.dice.chance(1, 2) { Protocol::Sse } else { Protocol::WebSocket };
    let id = after.map(|sequence| EventId { epoch: EPOCH, sequence }.to_string());
    let head = support::peer::request(protocol, &[TOPICS[topic]], id.as_deref());
    let slot = world.shard.ring_mut().connect().expect("a free slot");
    world.shard.ring_mut().peer_sends(slot, head.as_bytes());
    let taken = world.shard.metrics().events;
    world.asked[slot as usize] = vec![TOPICS[topic]];
    world.peers[slot as usize] = Some(Peer::new(protocol, vec![topic], after, taken));
}

fn stays(slot: usize) -> bool {
    slot.is_multiple_of(STAYS_EVERY)
}

/// Sequence of the newest event that all who stayed have, of their topics.
fn reached(world: &World, sequence: u64) -> bool {
    let peers = world.peers.iter().enumerate().filter(|(slot, _)| stays(*slot));
    peers.filter_map(|(_, peer)| peer.as_ref()).all(|peer| {
        let newest = newest_of(&peer.topics, &world.log, sequence).unwrap_or(0);
        begins_after(peer) >= newest
    })
}

/// Turns until all who stayed have all there is.
fn until_reached(world: &mut World) {
    for _ in 0..1_000 {
        if reached(world, world.log.len() as u64) {
            return;
        }
        world.turn(1);
    }
    panic!("those who stayed lack events");
}

#[test]
fn a_storm_of_returning_subscribers_keeps_every_turn_within_bounds_and_loses_nothing() {
    // A lap past all of them, twice, and what they lack in pieces of a turn's bytes.
    let turns_max = 4 * CROWD.div_ceil(SWEEP_VISITS_MAX) + 32;
    for (seed, size) in seeds(2).zip(SIZES.into_iter().cycle()) {
        let mut world = crowd(seed);
        for _ in 0..5 {
            world.publish_events(&[size; 4]);
            world.turn(1);
        }
        until_reached(&mut world);
        for slot in (0..CROWD).filter(|slot| !stays(*slot)) {
            let peer = world.peers[slot].as_mut().expect("it is there");
            peer.left = true;
            world.shard.ring_mut().peer_resets(slot as Slot);
        }
        // What they miss.
        for _ in 0..12 {
            world.publish_events(&[size; 4]);
            world.turn(1);
        }
        until_reached(&mut world);
        assert_eq!(world.left.len(), CROWD - CROWD / STAYS_EVERY, "all of them are gone");
        for (names, last) in std::mem::take(&mut world.left) {
            let topic = TOPICS.iter().position(|name| *name == names[0]).expect("one of them");
            join(&mut world, topic, Some(last));
        }
        let (mut published, mut waited) = (0, 0);
        let mut visits = 0;
        while published < 8 || world.peers.iter().flatten().any(|peer| peer.opened_at.is_none()) {
            if reached(&world, world.log.len() as u64) {
                waited = 0;
                published += 1;
                world.publish_events(&[size; 2]);
            }
            world.turn(1);
            waited += 1;
            visits = visits.max(world.shard.work().visits);
            assert!(waited <= turns_max, "seed {seed}: those who stayed wait for {waited} turns");
        }
        assert!(visits >= SWEEP_VISITS_MAX, "turns are full: {visits}");
        world.settle();
        assert_eq!(world.peers.iter().flatten().count(), CROWD, "everybody is back");
        let metrics = world.shard.metrics();
        assert_eq!(metrics.families.iter().map(|family| family.gaps).sum::<u64>(), 0, "seed {seed}");
        assert_eq!(metrics.families.iter().map(|family| family.overruns).sum::<u64>(), 0, "seed {seed}");
    }
}

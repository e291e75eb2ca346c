//! Promise: a subscriber that takes what it is offered loses nothing, within declared memory.
//!
//! Set-up: the worlds of this simulation, with bursts of every size on little and on much memory;
//! and a topic with one subscriber that reads nothing. The test admits events as the hub does.
//!
//! Expectation: in fair weather nobody overruns; memory stays within its bound at every turn; the
//! one that reads nothing is cut before its topic stands still, and nobody else is.

use super::*;

/// In fair weather nobody overruns and nothing is lost, whatever the sizes, windows, batches,
/// formats and topics are: the hub takes no more than memory holds, and an event stays while a
/// subscriber lacks it.
#[test]
fn in_fair_weather_nobody_overruns_whatever_is_published() {
    const PEERS: usize = 10;
    let (mut published, mut refused) = (0, 0);
    for seed in seeds(24) {
        let mut world = World::new(seed, Weather::Fair);
        for _ in 0..PEERS {
            world.connect();
        }
        world.turns();
        let (least, most) =
            [(0, 40), (0, 10_000), (3_000, 5_000), (60_000, 130_000)][world.dice.roll(4) as usize];
        let batch = [1, 30, 256][world.dice.roll(3) as usize];
        let mut bytes = 0;
        for _ in 0..300 {
            if bytes < 4 << 20 && world.log.len() < 10_000 {
                let sizes: Vec<usize> =
                    (0..batch).map(|_| least + world.dice.roll((most - least) as u64) as usize).collect();
                let free = world.stuck.is_none();
                let taken = world.publish_events(&sizes);
                published += taken;
                if free {
                    refused += sizes.len() - taken;
                }
                bytes += sizes.iter().sum::<usize>();
            }
            world.offer();
            world.turn(0);
        }
        world.settle();
        let metrics = world.shard.metrics();
        assert_eq!(metrics.families.iter().map(|family| family.overruns).sum::<u64>(), 0, "seed {seed}");
        assert_eq!(metrics.families.iter().map(|family| family.gaps).sum::<u64>(), 0, "seed {seed}");
        assert_eq!(metrics.events, count_of(&world.log), "the shard took what was published");
        assert_eq!(world.peers.iter().flatten().count(), PEERS, "everybody is still there");
    }
    assert!(published > 10_000 && refused > 1_000, "{published} published, {refused} refused");
}

/// One subscriber that reads nothing beside others that read everything: it is cut when its topic's
/// share is used up, the others lose nothing, and its memory is given back.
#[test]
fn a_stalled_subscriber_is_cut_before_its_topic_stands_still() {
    for (seed, protocol) in [(1, Protocol::WebSocket), (2, Protocol::Sse)] {
        let mut dice = Dice::new(seed);
        let mut config = (*config(64, SlowPolicy::Close, &mut dice)).clone();
        config.limits = Limits {
            window_events_max: 64,
            window_bytes_total_max: 4 << 20,
            shard_queue_batches_max: 4,
            ..Limits::default()
        };
        let mut world = World::with(Arc::new(config), 64, SlowPolicy::Close, Weather::Fair, seed * 3, dice);
        let mut join = |protocol| {
            let slot = world.shard.ring_mut().connect().expect("a free slot");
            let head = support::peer::request(protocol, &TOPICS, None);
            world.shard.ring_mut().peer_sends(slot, head.as_bytes());
            world.peers[slot as usize] = Some(Peer::new(protocol, (0..TOPICS.len()).collect(), None, 0));
            slot
        };
        let stalled = join(protocol);
        for _ in 0..4 {
            join(Protocol::Sse);
            join(Protocol::WebSocket);
        }
        world.turns();
        world.shard.ring_mut().stall(stalled, true);
        let mut taken = 0;
        for _ in 0..4_000 {
            taken += world.publish_events(&[500; 4]);
            world.turn(1);
            if world.shard.metrics().families.iter().any(|family| family.overruns > 0) {
                break;
            }
        }
        let overruns: u64 = world.shard.metrics().families.iter().map(|family| family.overruns).sum();
        assert_eq!(overruns, 1, "the stalled one, after {taken} events");
        assert!(taken > 4 * 64, "not before it is beyond the history");
        // What it held goes with the next rounds.
        for _ in 0..100 {
            world.publish_events(&[500; 4]);
            world.turn(1);
        }
        let mut taken = 0;
        for _ in 0..500 {
            taken += world.publish_events(&[500; 4]);
            world.turn(1);
        }
        assert_eq!(taken, 2_000, "nobody is refused any more");
        world.shard.ring_mut().peer_resets(stalled);
        world.peers[stalled as usize] = None;
        world.settle();
        assert_eq!(world.peers.iter().flatten().count(), 8);
    }
}

//! Claim: what `jetstream_cluster` claims holds for a thousand moves, and while the NATS server that
//! leads the stream, another one, and a node are killed under load, one after the other.
//!
//! Set-up: as there, with more movers; and servers that are not there at all. Prints how long the
//! next events took.
//!
//! Expectation: as there.

use std::time::Instant;

use rustix::process::Signal;

use super::jetstream::node;
use super::jetstream_access::refused;
use super::jetstream_cluster::World;
use crate::support::nats::Nats;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server and time: tests/run --long"]
async fn a_thousand_moves() {
    let world = World::new(4, 20, 2).await;
    world.go_on(2_000, 1_000).await;
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server and time: tests/run --long"]
async fn the_leader_a_follower_and_a_node_die_under_load() {
    let mut world = World::new(3, 12, 3).await;
    world.go_on(200, 50).await;
    let leader = world.leader().await;
    for nats in [leader, (leader + 1) % 3] {
        world.nats[nats].kill();
        let died = Instant::now();
        world.go_on(50, 10).await;
        eprintln!("NATS server {nats} killed, 50 events and 10 moves later: {:?}", died.elapsed());
        world.nats[nats].run().await;
        world.go_on(100, 20).await;
    }
    let died = Instant::now();
    let dead = {
        let mut nodes = world.nodes.write().await;
        let next = node(&world.source, &[]);
        std::mem::replace(&mut nodes[1], next)
    };
    dead.signal(Signal::KILL);
    world.go_on(100, 30).await;
    eprintln!("a node killed, 100 events and 30 moves later: {:?}", died.elapsed());
    world.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server and time: tests/run --long"]
async fn a_start_whose_server_is_absent_or_hangs_ends_after_half_a_minute_with_the_remedy() {
    let [mut absent, hangs] = [Nats::start().await, Nats::start().await];
    absent.kill();
    hangs.pause().await;
    let sources = [absent.url(), hangs.url()];
    let (absent_says, hangs_says) =
        tokio::join!(refused(&sources[0], &[], &[]), refused(&sources[1], &[], &[]));
    for line in [absent_says, hangs_says] {
        assert!(line.contains("no NATS server answers at nats://127.0.0.1"), "{line}");
        assert!(line.contains("nats-server --jetstream") && line.contains("--source"), "{line}");
    }
}

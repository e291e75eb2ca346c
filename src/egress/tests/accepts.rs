//! Accepts of several listeners that share a shard's room.

use super::*;
use crate::config::capacity::Sharers;

/// Each client that comes while there is room gets in, whichever listener the others come to.
fn an_idle_listener_keeps_nobody_out_of_a_busy_one<K: Kind>() {
    const LISTENERS: [&str; 3] = ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"];
    let sharers = Sharers { shards: 1, listens: LISTENERS.len(), controls: 0 };
    for descriptors in [100, 120, 200] {
        let wanted = 100 - LISTENERS.len();
        let room = Capacity::of(descriptors, true, sharers, wanted).expect("room");
        for busy in 0..LISTENERS.len() {
            let mut rig = Rig::<K>::in_room(&LISTENERS, room);
            let mut peers = Vec::new();
            for _ in 0..wanted {
                peers.push(TcpStream::connect(rig.addresses[busy]).expect("a place in the backlog"));
                rig.accepted();
            }
            // Beside all subscribers everybody's listener has a place, for an answer to one too
            // many.
            for address in rig.addresses.clone() {
                peers.push(TcpStream::connect(address).expect("a place in the backlog"));
                rig.accepted();
            }
        }
    }
}

/// The others wait in the kernel's queue.
fn no_more_come_in_than_may<K: Kind>() {
    let mut rig = Rig::<K>::new(16);
    rig.ring.allow_accepts(0, 0);
    let mut peers = Vec::new();
    for _ in 0..6 {
        peers.push(TcpStream::connect(rig.addresses[0]).expect("a place in the backlog"));
    }
    rig.settle();
    assert!(rig.seen.is_empty(), "nobody may come: {:?}", rig.seen);
    for (more, most) in [(2, 5), (9, 1)] {
        rig.ring.allow_accepts(more, most);
        for _ in 0..more.min(most) {
            rig.accepted();
        }
        rig.settle();
        assert!(rig.seen.is_empty(), "one too many: {:?}", rig.seen);
    }
    rig.ring.allow_accepts(usize::MAX, usize::MAX);
    for _ in 0..3 {
        rig.accepted();
    }
}

/// A rig on a listener that somebody else has too.
fn shared<K: Kind>() -> (Rig<K>, std::net::TcpListener) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (bound, mut listeners) = listen(any, 1, PATIENCE).expect("a free port");
    let listener = listeners.remove(0);
    let copy = listener.try_clone().expect("a descriptor");
    let doorbell = Doorbell::new().expect("an eventfd");
    let room = Capacity {
        slots: 64,
        sockets_max: 64,
        connections_max: 64,
        control_connections_max: 1,
        accepts_per_listener: 16,
    };
    let ring = K::open(vec![listener], room, &doorbell);
    (Rig { ring, doorbell, addresses: vec![bound], seen: Vec::new() }, copy.into())
}

impl<K: Kind> Rig<K> {
    /// Turns until no accept waits in the kernel.
    fn hold(&mut self) {
        self.ring.hold_accepts();
        let start = Instant::now();
        while !self.ring.holds_accepts() {
            assert!(start.elapsed() < PATIENCE, "accepts are called back");
            self.turn();
            self.ring.retry_accepts();
        }
    }
}

fn nobody_comes_in_while_accepts_are_held_and_then_all_do<K: Kind>() {
    let mut rig = Rig::<K>::new(16);
    rig.peer();
    for _ in 0..3 {
        rig.hold();
        let peers = [(); 4].map(|()| TcpStream::connect(rig.addresses[0]).expect("a place in the backlog"));
        rig.settle();
        assert!(rig.seen.is_empty(), "nobody may come: {:?}", rig.seen);
        rig.ring.open_accepts().expect("it is still there");
        for _ in &peers {
            let (slot, _) = rig.accepted();
            rig.close(slot);
        }
    }
}

/// A connection that waits in the queue meanwhile is lost to nobody either.
fn a_listener_that_was_left_lives_on_elsewhere<K: Kind>() {
    let (mut rig, elsewhere) = shared::<K>();
    let (_first, slot) = rig.peer();
    rig.hold();
    let waiting = TcpStream::connect(rig.addresses[0]).expect("a place in the backlog");
    rig.ring.leave_listeners();
    rig.settle();
    elsewhere.set_nonblocking(false).expect("a mode");
    let (_, peer) = elsewhere.accept().expect("the one who waits");
    assert_eq!(peer, waiting.local_addr().expect("connected"));
    let later = TcpStream::connect(rig.addresses[0]).expect("a place in the backlog");
    rig.settle();
    assert!(rig.seen.is_empty(), "who comes later comes elsewhere: {:?}", rig.seen);
    rig.close(slot);
    drop(rig);
    let (_, peer) = elsewhere.accept().expect("the later one");
    assert_eq!(peer, later.local_addr().expect("connected"));
}

/// A process that fails before it has taken over ends its rings, and nothing else.
fn a_ring_that_holds_its_accepts_ends_without_ending_its_listeners<K: Kind>() {
    let (mut rig, elsewhere) = shared::<K>();
    rig.hold();
    let waiting = TcpStream::connect(rig.addresses[0]).expect("a place in the backlog");
    drop(rig);
    elsewhere.set_nonblocking(false).expect("a mode");
    let (_, peer) = elsewhere.accept().expect("the one who waits");
    assert_eq!(peer, waiting.local_addr().expect("connected"));
}

on_every_ring!(
    an_idle_listener_keeps_nobody_out_of_a_busy_one,
    no_more_come_in_than_may,
    nobody_comes_in_while_accepts_are_held_and_then_all_do,
    a_listener_that_was_left_lives_on_elsewhere,
    a_ring_that_holds_its_accepts_ends_without_ending_its_listeners,
);

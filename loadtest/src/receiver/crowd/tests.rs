//! Promises of a crowd that need a ring and a clock of the test's own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use fanwave::egress::EgressRing;

use super::*;
use crate::framing::Protocol;
use crate::target::Dialect;

/// A crowd, what it waits for, and its server.
struct Scene {
    crowd: Crowd,
    wires: Wires,
    server: TcpListener,
    _orders: UnixStream,
}

impl Scene {
    fn new(behaviour: Behaviour) -> Scene {
        let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (orders, obeyed) = UnixStream::pair().expect("sockets");
        let crowd = Crowd::new(Setup {
            target: server.local_addr().expect("bound"),
            protocol: Protocol::Sse,
            dialect: Dialect::Plain,
            path: "/x".into(),
            topics: 1,
            first: 0,
            audit: true,
            behaviour,
            receive_buffer: None,
            bare: false,
        });
        Scene { crowd, wires: Wires::obeying(obeyed).expect("a ring"), server, _orders: orders }
    }

    /// Accepts a connection and reads its request.
    fn accept(&mut self) -> TcpStream {
        self.crowd.advance(&mut self.wires).expect("connects");
        let (mut socket, _) = self.server.accept().expect("a subscriber");
        self.turn_until(|crowd| crowd.handshakes.values().len() > 0);
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        let start = Instant::now();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(start.elapsed() < Duration::from_secs(10), "no whole request");
            self.look();
            let mut piece = [0; 1_024];
            let read = socket.read(&mut piece).expect("a request");
            head.extend_from_slice(&piece[..read]);
        }
        socket
    }

    fn look(&mut self) {
        for number in self.wires.wait_watching(Some(Duration::from_millis(10))).expect("waits") {
            self.crowd.ready(number, &mut self.wires).expect("goes on");
        }
    }

    fn turn_until(&mut self, done: impl Fn(&Crowd) -> bool) {
        let start = Instant::now();
        while !done(&self.crowd) {
            assert!(start.elapsed() < Duration::from_secs(10), "nothing happens");
            self.look();
        }
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

#[test]
fn a_descriptor_is_not_closed_before_the_kernel_has_taken_its_cancellation() {
    let mut scene = Scene::new(Behaviour::Churn { per_second: 1.0 });
    scene.crowd.add(1, None);
    scene.accept().write_all(OK).expect("room");
    scene.turn_until(|crowd| crowd.open == 1);
    let Scene { crowd, wires, .. } = &mut scene;
    wires.ring.submit().expect("the receive is in the kernel");
    crowd.leave(0, 0, false, wires).expect("room");
    let slot = slot(crowd.members[0].socket.as_ref().expect("a socket"));
    crowd.receive_ended(slot, ReceiveEnd::NoBuffers);
    crowd.settle(wires).expect("no failure");
    assert!(crowd.members[0].socket.is_some() && crowd.rest() == Some(Duration::ZERO));
    wires.ring.submit().expect("the cancellation is in the kernel");
    crowd.settle(wires).expect("no failure");
    assert!(crowd.members[0].socket.is_none() && crowd.members[0].state == State::Away);
}

#[test]
fn a_handshake_that_never_ends_is_found_although_others_end() {
    let mut scene = Scene::new(Behaviour::Steady);
    scene.crowd.add(1, None);
    let _silent = scene.accept();
    let late = now_ns() + STUCK_NS + STUCK_LOOK_NS;
    scene.crowd.look_for_stuck(late - 2 * STUCK_LOOK_NS).expect("it may still come");
    scene.crowd.add(1, None);
    scene.accept().write_all(OK).expect("room");
    scene.turn_until(|crowd| crowd.open == 1);
    let error = scene.crowd.look_for_stuck(late).expect_err("one is stuck").to_string();
    assert!(error.contains("1 handshakes did not end") && error.contains("1 of 2"), "{error}");
}

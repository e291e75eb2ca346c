//! Promises of a crowd that need a ring and a clock of the test's own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use fanwave::egress::{Completion, EgressRing};

use super::*;
use crate::framing::http2::tests::{data, heads};
use crate::framing::{Dialect, Protocol};
use crate::secure::tests::both_ends;
use crate::stamp::{STAMP_BYTES, Stamp};

/// A crowd, what it waits for, and its server.
struct Scene {
    crowd: Crowd,
    wires: Wires,
    server: TcpListener,
    _orders: UnixStream,
    /// The server's ends.
    sockets: Vec<TcpStream>,
}

impl Scene {
    fn new(behaviour: Behaviour) -> Scene {
        Scene::of(CrowdSetup { dialect: Dialect::Plain, audit: true, behaviour, ..Scene::setup() })
    }

    /// Steady subscribers of a server that is still to be bound.
    fn setup() -> CrowdSetup {
        CrowdSetup::steady(([127, 0, 0, 1], 0).into(), Protocol::Sse, "/x".into())
    }

    fn of(setup: CrowdSetup) -> Scene {
        let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (orders, obeyed) = UnixStream::pair().expect("sockets");
        let setup = CrowdSetup { target: server.local_addr().expect("bound"), ..setup };
        let crowd = Crowd::new(setup).expect("no TLS");
        Scene {
            crowd,
            wires: Wires::obeying(obeyed).expect("a ring"),
            server,
            _orders: orders,
            sockets: Vec::new(),
        }
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

    /// Takes what the ring receives until there were so many deliveries.
    fn deliver_until(&mut self, deliveries: u64) {
        let start = Instant::now();
        let Scene { crowd, wires, .. } = self;
        while crowd.tally.deliveries() < deliveries {
            assert!(start.elapsed() < Duration::from_secs(10), "nothing arrives");
            wires.wait(Some(Duration::from_millis(10))).expect("waits");
            wires.ring.reap(&mut |completion| {
                if let Completion::Received { slot, bytes } = completion {
                    crowd.received(slot, bytes);
                }
            });
        }
    }

    /// Takes what the ring receives until there were so many bytes.
    fn receive_until(&mut self, bytes: u64) {
        let start = Instant::now();
        let Scene { crowd, wires, .. } = self;
        while crowd.tally.bytes() < bytes {
            assert!(start.elapsed() < Duration::from_secs(10), "nothing arrives");
            wires.wait(Some(Duration::from_millis(10))).expect("waits");
            wires.ring.reap(&mut |completion| {
                if let Completion::Received { slot, bytes } = completion {
                    crowd.received(slot, bytes);
                }
            });
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
fn churn_takes_nobody_whose_break_would_hide_a_loss() {
    const LATER_NS: u64 = 1 << 62;
    let mut scene = Scene::new(Behaviour::Churn { per_second: 1.0 });
    for open in 1..=2 {
        scene.crowd.add(1, None);
        let mut socket = scene.accept();
        socket.write_all(OK).expect("room");
        scene.turn_until(|crowd| crowd.open == open);
        // The older one has one event less than the younger.
        for sequence in 1..=open + 1 {
            let mut stamp = [0; STAMP_BYTES];
            Stamp { sequence, time_ns: 1 }.write(&mut stamp);
            socket.write_all(&[b"data: ", &stamp[..], b"\n\n"].concat()).expect("room");
        }
        scene.sockets.push(socket);
    }
    scene.deliver_until(5);
    let states = |crowd: &Crowd| [0, 1].map(|at: usize| crowd.members[at].state);
    let left = |back_ns| State::Leaving { back_ns, resumes: false };
    let Scene { crowd, wires, .. } = &mut scene;
    // At the beginning of time the third event is new, whenever it came.
    crowd.replace_oldest(0, wires).expect("room");
    assert_eq!(states(crowd), [State::Open, left(0)], "the younger, who lacks nothing");
    crowd.replace_oldest(0, wires).expect("room");
    assert_eq!(states(crowd), [State::Open, left(0)], "nobody");
    assert!(crowd.timers.iter().any(|Reverse((_, task))| *task == Task::Churn), "soon again");
    crowd.replace_oldest(LATER_NS, wires).expect("room");
    assert_eq!(states(crowd), [left(LATER_NS), left(0)], "it will not come any more");
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

/// Of several subscribers those that are ahead by the end of a chunk do not make up for one that
/// lacks the event.
#[test]
fn an_event_in_chunks_is_complete_when_each_connection_has_it_and_the_end_of_its_chunk() {
    let mut scene = Scene::of(CrowdSetup { dialect: Dialect::Fanwave, audit: false, ..Scene::setup() });
    const MEMBERS: usize = 60;
    let event = b"10\r\ndata: 12345678\n\n\r\n";
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    for open in 1..=MEMBERS {
        scene.crowd.add(1, None);
        let mut socket = scene.accept();
        socket.write_all(head).expect("room in the socket");
        scene.turn_until(|crowd| crowd.open == open as u64);
        scene.sockets.push(socket);
    }
    scene.crowd.zero(1, 0);
    for socket in &mut scene.sockets[..MEMBERS - 1] {
        socket.write_all(event).expect("room in the socket");
    }
    scene.receive_until(((MEMBERS - 1) * event.len()) as u64);
    assert_eq!(scene.crowd.tally.progress(), None, "one connection lacks the event");
    scene.sockets[MEMBERS - 1].write_all(event).expect("room in the socket");
    scene.receive_until((MEMBERS * event.len()) as u64);
    assert_eq!(scene.crowd.tally.progress(), Some(1));
}

/// Answers so many subscribers over TLS, each with these events and a record for each.
fn answer_over_tls(
    listener: TcpListener,
    config: &std::sync::Arc<rustls::ServerConfig>,
    subscribers: usize,
    events: &[u64],
) -> Vec<TcpStream> {
    let mut sockets = Vec::new();
    for _ in 0..subscribers {
        let (mut socket, _) = listener.accept().expect("a subscriber");
        let mut tls = rustls::ServerConnection::new(config.clone()).expect("a server");
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut piece = [0; 1_024];
            let read = stream.read(&mut piece).expect("a request");
            request.extend_from_slice(&piece[..read]);
        }
        stream.write_all(OK).expect("room in the socket");
        for &sequence in events {
            let mut stamp = [0; STAMP_BYTES];
            Stamp { sequence, time_ns: 1 }.write(&mut stamp);
            stream.write_all(&[b"data: ", &stamp[..], b"\n\n"].concat()).expect("room in the socket");
        }
        sockets.push(socket);
    }
    sockets
}

#[test]
fn an_event_that_is_lost_over_tls_is_found_as_it_is_in_plain() {
    let (client, config) = both_ends();
    let setup = CrowdSetup { dialect: Dialect::Plain, audit: true, tls: Some(client), ..Scene::setup() };
    let mut scene = Scene::of(setup);
    let listener = scene.server.try_clone().expect("a descriptor");
    let server = std::thread::spawn(move || answer_over_tls(listener, &config, 1, &[1, 3]));
    scene.crowd.add(1, None);
    scene.crowd.advance(&mut scene.wires).expect("connects");
    scene.turn_until(|crowd| crowd.open == 1);
    scene.deliver_until(2);
    let found = scene.crowd.report(3).findings;
    assert_eq!((found.events, found.lost), (2, 1));
    drop(server.join().expect("it answered"));
}

/// The first of them opens its records, the others read heads alone.
#[test]
fn bytes_over_tls_are_those_that_records_hold_on_every_connection() {
    let (client, config) = both_ends();
    let setup = CrowdSetup { dialect: Dialect::Plain, tls: Some(client), ..Scene::setup() };
    let mut scene = Scene::of(setup);
    let listener = scene.server.try_clone().expect("a descriptor");
    let server = std::thread::spawn(move || answer_over_tls(listener, &config, 3, &[1, 2]));
    scene.crowd.add(3, None);
    scene.crowd.advance(&mut scene.wires).expect("connects");
    scene.turn_until(|crowd| crowd.open == 3);
    let event = (b"data: \n\n".len() + STAMP_BYTES) as u64;
    scene.receive_until(3 * 2 * event);
    let totals = scene.crowd.report(2);
    assert_eq!((totals.bytes, totals.bytes_min, totals.bytes_max), (6 * event, 2 * event, 2 * event));
    assert_eq!(totals.uneven, 0);
    assert_eq!(scene.crowd.tally.progress(), Some(2));
    drop(server.join().expect("they were answered"));
}

/// Three subscribers, two of them on one connection.
#[test]
fn what_a_stream_lacks_is_not_made_up_for_by_another_on_its_connection() {
    let event = |sequence| {
        let mut stamp = [0; STAMP_BYTES];
        Stamp { sequence, time_ns: 1 }.write(&mut stamp);
        [b"data: ", &stamp[..], b"\n\n"].concat()
    };
    let mut scene = Scene::of(CrowdSetup { dialect: Dialect::Fanwave, streams: Some(2), ..Scene::setup() });
    scene.crowd.add(3, None);
    scene.crowd.advance(&mut scene.wires).expect("connects");
    assert_eq!(scene.crowd.handshakes.len(), 2);
    let mut sockets: Vec<TcpStream> = [2, 1]
        .map(|streams| {
            let (mut socket, _) = scene.server.accept().expect("a connection");
            socket.write_all(&heads(streams)).expect("room in the socket");
            socket
        })
        .into();
    scene.turn_until(|crowd| crowd.open == 3);
    scene.crowd.zero(1, 0);
    let both = [data(0, &event(1)), data(1, &event(1)), data(0, &event(2))].concat();
    sockets[0].write_all(&both).expect("room in the socket");
    sockets[1].write_all(&[data(0, &event(1)), data(0, &event(2))].concat()).expect("room in the socket");
    scene.deliver_until(5);
    assert_eq!(scene.crowd.tally.progress(), Some(1), "the second stream lacks the second event");
    let found = scene.crowd.report(2).findings;
    assert_eq!((found.events, found.lost), (5, 1));
    sockets[0].write_all(&data(1, &event(2))).expect("room in the socket");
    scene.deliver_until(6);
    assert_eq!(scene.crowd.tally.progress(), Some(2));
    let totals = scene.crowd.report(2);
    assert_eq!((totals.findings.lost, totals.uneven, totals.bytes), (0, 0, 6 * event(1).len() as u64));
    sockets[0].write_all(&data(1, &event(2))).expect("room in the socket");
    scene.deliver_until(7);
    assert_eq!(scene.crowd.report(2).findings.duplicated, 1);
}

#[test]
fn streams_are_for_steady_subscribers_of_event_streams() {
    let storm = Behaviour::Storm { at_seconds: 1.0, share: 1.0 };
    for setup in [
        CrowdSetup { behaviour: storm, streams: Some(2), ..Scene::setup() },
        CrowdSetup { protocol: Protocol::Ws, streams: Some(2), ..Scene::setup() },
    ] {
        let error = Crowd::new(setup).expect_err("not possible").to_string();
        assert!(error.contains("--h2-streams"), "{error}");
    }
}

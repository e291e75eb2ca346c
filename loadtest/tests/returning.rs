//! Claim: subscribers that come and go do so as they were told, and what they lose over it is told.
//!
//! Set-up: `loadtest receiver` as a child, as in `receiver.rs`; the server breaks off, is left, or
//! is read slowly. Expectation: event streams resume after their last whole event and are audited
//! over the break; whoever begins anew is audited from where it must be subscribed; what others
//! have and one lacks is lost, and what may be on its way is not.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rig::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

#[allow(dead_code, reason = "each test program uses a part of it")]
mod rig;

#[test]
fn a_stream_in_chunks_resumes_after_its_last_whole_event() {
    let (listener, address) = listener();
    let behaviour = json!({"kind": "churn", "per_second": 0.001});
    let mut receiver = Receiver::with(address, json!({"behaviour": behaviour}));
    receiver.open(1);
    let mut socket = subscriber(&listener, SSE_CHUNKED);
    receiver.opened();
    receiver.started();
    socket.write_all(&in_chunks(&stream(1..=12, sse), 5)).expect("room");
    socket.write_all(b"0\r\n\r\n").expect("room");
    let (mut socket, head) = request(&listener, SSE_CHUNKED);
    assert!(head.contains("\r\nLast-Event-ID: 12\r\n"), "{head}");
    socket.write_all(&in_chunks(&stream(13..=14, sse), 20)).expect("room");
    assert_eq!(receiver.report_of(14, 14)["findings"], findings(14, 0, 0, 0));
    assert_eq!(receiver.sample()["closed_by_server"], 1);
}

#[test]
fn after_a_storm_event_streams_resume_and_the_audit_goes_on_over_the_break() {
    // What the server sends after the break, and what is found then.
    let cases: [(&[u64], bool, Value); 4] = [
        (&[4, 5], false, findings(10, 0, 0, 0)),
        (&[5], false, findings(8, 2, 0, 0)),
        (&[3, 4, 5], false, findings(12, 0, 2, 0)),
        (&[5], true, findings(8, 0, 0, 2)),
    ];
    for (sequences, gap, expected) in cases {
        let (listener, address) = listener();
        let mut receiver = Receiver::with(address, json!({"behaviour": storm()}));
        receiver.open(2);
        let mut sockets: Vec<_> = (0..2).map(|_| subscriber(&listener, SSE_OK)).collect();
        receiver.opened();
        for socket in &mut sockets {
            socket.write_all(&stream(1..=3, sse)).expect("room");
            // The start of an event that never ends must not be taken for one.
            socket.write_all(b"id: 4\ndata: ~fw").expect("room");
        }
        receiver.report_of(3, 6);
        receiver.started();
        sockets.iter_mut().for_each(left);
        receiver.stop();
        let mut sockets = Vec::new();
        for _ in 0..2 {
            let (mut socket, head) = request(&listener, SSE_OK);
            assert!(head.contains("\r\nLast-Event-ID: 3\r\n"), "{head}");
            if gap {
                socket.write_all(GAP).expect("room");
            }
            socket.write_all(&stream(sequences.iter().copied(), sse)).expect("room");
            sockets.push(socket);
        }
        assert_eq!(receiver.word()["say"], "stopped");
        let events = expected["events"].as_u64().expect("a number");
        assert_eq!(receiver.report_of(5, events)["findings"], expected, "{sequences:?}");
        let sample = receiver.sample();
        assert_eq!((&sample["opened"], &sample["closed_by_server"]), (&json!(2), &json!(0)));
        assert!(!sample["handshakes"].as_array().expect("a list").is_empty());
    }
}

#[test]
fn a_storm_that_tells_more_than_the_ring_holds_at_once_breaks_all_and_all_come_back() {
    /// More cancellations than the ring has completions.
    const CROWD: usize = 4_500;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 2 * CROWD as u64) {
        eprintln!("skipped: the descriptor limit is below {}", 2 * CROWD);
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("up to the hard limit");
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"behaviour": storm()}));
    receiver.open(CROWD);
    let mut sockets: Vec<_> = (0..CROWD).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.opened();
    receiver.started();
    sockets.iter_mut().for_each(left);
    let _back: Vec<_> = (0..CROWD).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.stop();
    assert_eq!(receiver.word()["say"], "stopped");
    assert_eq!(receiver.sample()["opened"], CROWD);
}

#[test]
fn after_a_storm_websockets_begin_anew_and_are_audited_from_there() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"protocol": "ws", "behaviour": storm()}));
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    receiver.opened();
    socket.write_all(&stream(1..=3, ws)).expect("room");
    receiver.report_of(3, 3);
    receiver.started();
    left(&mut socket);
    let (mut socket, head) = request(&listener, WS_OK);
    assert!(!head.contains("Last-Event-ID"), "{head}");
    socket.write_all(&stream([8, 9, 11], ws)).expect("room");
    assert_eq!(receiver.report_of(11, 6)["findings"], findings(6, 1, 0, 0));
}

#[test]
fn what_a_subscriber_lacked_before_a_break_is_lost_although_it_begins_anew() {
    let (listener, address) = listener();
    let behaviour = json!({"kind": "storm", "at_seconds": 2.5, "share": 1.0});
    let mut receiver = Receiver::with(address, json!({"behaviour": behaviour}));
    receiver.open(2);
    let mut sockets: Vec<_> = (0..2).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.opened();
    // Nothing ever comes to the second one, which so has no id to resume after.
    sockets[0].write_all(&stream(1..=3, sse)).expect("room");
    receiver.report_of(3, 3);
    receiver.started();
    sockets.iter_mut().for_each(left);
    for _ in 0..2 {
        let (mut socket, head) = request(&listener, SSE_OK);
        let sequences = if head.contains("Last-Event-ID: 3") { 4..=1_000 } else { 1_000..=1_000 };
        socket.write_all(&stream(sequences, sse)).expect("room");
        sockets.push(socket);
    }
    assert_eq!(receiver.report_of(1_000, 1_001)["findings"], findings(1_001, 3, 0, 0));
}

#[test]
fn a_newcomer_that_gets_nothing_of_what_others_do_lost_it_and_a_quiet_time_is_no_loss() {
    let (listener, address) = listener();
    let behaviour = json!({"kind": "churn", "per_second": 1.0});
    let mut receiver =
        Receiver::with(address, json!({"protocol": "ws", "topics": 2, "behaviour": behaviour}));
    receiver.open(2);
    let mut sockets: Vec<_> = (0..2).map(|_| request(&listener, WS_OK).0).collect();
    receiver.opened();
    sockets[0].write_all(&ws(1)).expect("room");
    sockets[1].write_all(&ws(2)).expect("room");
    receiver.report_of(2, 2);
    // The next one would leave two seconds after the first: long enough for all that follows.
    receiver.order(json!({"do": "start", "churn_per_second": 0.5}));
    assert_eq!(receiver.word()["say"], "started");
    left(&mut sockets[0]);
    receiver.stop();
    let _newcomer = request(&listener, WS_OK);
    assert_eq!(receiver.word()["say"], "stopped");
    assert_eq!(receiver.report(2)["findings"]["lost"], 0, "all is quiet");
    // Event 4, of the other topic: event 5 is the newcomer's, and so must be the third of its
    // topic.
    sockets[1].write_all(&ws_of(stamped(4, LATER_NS))).expect("room");
    assert_eq!(receiver.report_of(4, 3)["findings"], findings(3, 0, 0, 0));
    assert_eq!(receiver.report(7)["tail"], 3, "events 5 and 7, and 6 of the other one");
}

#[test]
fn where_nobody_gets_anything_after_a_break_the_last_event_published_tells() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"protocol": "ws", "behaviour": storm()}));
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    receiver.opened();
    // Ten events per second for four seconds.
    let now = now_ns();
    let frame = |sequence| ws_of(stamped(sequence, now - (41 - sequence) * 100_000_000));
    socket.write_all(&(1..=41).flat_map(frame).collect::<Vec<u8>>()).expect("room");
    receiver.report_of(41, 41);
    receiver.started();
    left(&mut socket);
    receiver.stop();
    let _back = subscriber(&listener, WS_OK);
    assert_eq!(receiver.word()["say"], "stopped");
    assert_eq!(receiver.report(60)["findings"]["lost"], 0, "all of them may be older than the subscription");
    let lost = receiver.report(1_000)["findings"]["lost"].as_u64().expect("a number");
    assert!((700..=918).contains(&lost), "{lost}");
}

#[test]
fn a_gap_that_is_told_last_of_all_is_no_loss() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", true);
    receiver.open(2);
    let mut sockets: Vec<_> = (0..2).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.opened();
    sockets[0].write_all(&stream(1..=5, sse)).expect("room");
    sockets[1].write_all(&[sse(1), GAP.to_vec()].concat()).expect("room");
    receiver.report_with(5, "gaps_told", 1);
    assert_eq!(receiver.report_of(5, 6)["findings"], findings(6, 0, 0, 1));
    let later = format!("data: {}\n\n", stamped(6, LATER_NS));
    sockets[0].write_all(later.as_bytes()).expect("room");
    assert_eq!(receiver.report_of(6, 7)["findings"], findings(7, 1, 0, 1), "what is published later is owed");
}

#[test]
fn churn_replaces_the_oldest_by_somebody_new() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"behaviour": {"kind": "churn", "per_second": 20.0}}));
    receiver.open(3);
    let mut sockets: Vec<_> = (0..3).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.opened();
    for socket in &mut sockets {
        socket.write_all(&stream(1..=2, sse)).expect("room");
    }
    receiver.report_of(2, 6);
    receiver.order(json!({"do": "start", "churn_per_second": 20.0}));
    assert_eq!(receiver.word()["say"], "started");
    // A whole round, the newest last, and the newcomers after those who were there.
    for round in 0..6 {
        left(&mut sockets[0]);
        sockets.remove(0);
        let (socket, head) = request(&listener, SSE_OK);
        assert!(!head.contains("Last-Event-ID"), "a newcomer: {head}");
        sockets.push(socket);
        for (at, socket) in sockets.iter_mut().enumerate() {
            // The first newcomer misses an event behind its first one.
            let sequences = if round == 0 && at == 2 {
                vec![3, 5]
            } else {
                vec![3 * round + 3, 3 * round + 4, 3 * round + 5]
            };
            socket.write_all(&stream(sequences, sse)).expect("room");
        }
    }
    receiver.stop();
    // Whoever was on the way when the churn ended has still to be answered.
    let patience = Patience::new();
    loop {
        patience.is_left("the end of the churn");
        listener.set_nonblocking(true).expect("a mode");
        if let Ok((socket, _)) = listener.accept() {
            socket.set_nonblocking(false).expect("a mode");
            (&socket).write_all(SSE_OK.as_bytes()).expect("the subscriber reads");
            sockets.push(socket);
        }
        receiver.order(json!({"do": "report", "last": 20}));
        let word = receiver.word();
        if word["say"] == "stopped" {
            break;
        }
    }
    assert_eq!(receiver.word()["say"], "report");
    let report = receiver.report_with(20, "lost", 1);
    assert_eq!(report["findings"]["duplicated"], 0, "{report}");
    let sample = receiver.sample();
    assert_eq!((&sample["connections"], &sample["closed_by_server"]), (&json!(3), &json!(0)));
    assert!(sample["opened"].as_u64() >= Some(6), "{sample}");
}

#[test]
fn a_slow_reader_keeps_to_its_rate_and_resumes_where_the_server_closed_it() {
    const RATE: u64 = 4_000;
    let (listener, address) = listener();
    let behaviour = json!({"kind": "slow", "bytes_per_second": RATE});
    let mut receiver = Receiver::with(address, json!({"behaviour": behaviour}));
    receiver.open(1);
    let mut socket = subscriber(&listener, SSE_OK);
    receiver.opened();
    receiver.started();
    let start = Instant::now();
    socket.write_all(&stream(1..=30, sse)).expect("room");
    let patience = Patience::new();
    let events = loop {
        patience.is_left("ten events");
        let report = receiver.report(30);
        let bytes = report["bytes"].as_u64().expect("a number");
        // One piece is read in the moment between the two looks at the clock.
        let allowed = RATE as f64 * (start.elapsed().as_secs_f64() + 0.2);
        assert!((bytes as f64) <= allowed, "{bytes} bytes after {:?}", start.elapsed());
        assert_eq!(report["findings"]["lost"], 0, "what is still on its way is not lost");
        if let Some(events @ 10..) = report["findings"]["events"].as_u64() {
            break events;
        }
    };
    assert!(events < 30, "all at once is not slow");
    // The server loses patience, and the second time before it has sent anything.
    for _ in 0..2 {
        socket.shutdown(std::net::Shutdown::Write).expect("a socket");
        let head;
        (socket, head) = request(&listener, SSE_OK);
        assert!(head.contains("\r\nLast-Event-ID: 30\r\n"), "{head}");
    }
    socket.write_all(&sse(31)).expect("room");
    assert_eq!(receiver.report_of(31, 31)["findings"], findings(31, 0, 0, 0));
    assert_eq!(receiver.sample()["closed_by_server"], 2);
}

#[test]
fn a_stalled_reader_reads_nothing_and_its_end_is_counted() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"behaviour": {"kind": "stalled"}}));
    receiver.open(1);
    let socket = subscriber(&listener, SSE_OK);
    receiver.opened();
    receiver.started();
    // Far more than its receive buffer; the rest stays in our own socket.
    socket.set_nonblocking(true).expect("a mode");
    let all = vec![b'x'; 64 << 20];
    let mut taken = 0;
    while let Ok(more) = (&socket).write(&all) {
        taken += more;
    }
    assert!(taken > 0 && taken < all.len(), "{taken} bytes");
    assert_eq!(receiver.report(0)["bytes"], 0);
    assert_eq!(receiver.sample()["closed_by_server"], 0);
    socket.set_nonblocking(false).expect("a mode");
    reset(socket);
    let _back = subscriber(&listener, SSE_OK);
    assert_eq!(receiver.sample()["closed_by_server"], 1);
}

/// Ends a connection at once, whatever is still under way on it.
fn reset(socket: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).expect("a socket");
}

#[test]
fn a_websocket_that_the_server_closes_is_counted_and_comes_back_unless_it_is_steady() {
    let (listener, address) = listener();
    let behaviour = json!({"kind": "churn", "per_second": 0.001});
    let mut receiver = Receiver::with(address, json!({"protocol": "ws", "behaviour": behaviour}));
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    receiver.opened();
    receiver.started();
    socket.write_all(&[ws(1), vec![0x88, 6, 0x03, 0xf5], b"slow".to_vec()].concat()).expect("room");
    drop(socket);
    let mut socket = subscriber(&listener, WS_OK);
    socket.write_all(&ws(5)).expect("room");
    assert_eq!(receiver.report_of(5, 2)["findings"], findings(2, 0, 0, 0));
    assert_eq!(receiver.sample()["closed_by_server"], 1);
}

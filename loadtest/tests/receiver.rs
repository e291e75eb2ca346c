//! Claim: a receiver process tells the truth about what its connections got.
//!
//! Set-up: `loadtest receiver` as a child, spoken to in JSON lines, against a server of our own in this process that
//! sends exactly what a test says, faults included. Expectation: each planted loss, duplicate, swap and stray
//! byte is in the report, also over a break that a subscriber resumes; a stream without faults is clean; subscribers come,
//! go and read as they were told; and a server that refuses, hangs up or talks nonsense ends the process with its reason.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rig::*;
use serde_json::{Value, json};

mod rig;

#[test]
fn a_stream_without_faults_is_clean_on_every_connection_and_exact_to_the_byte() {
    type Frame = fn(u64) -> Vec<u8>;
    for (protocol, answer, frame) in [("sse", SSE_OK, sse as Frame), ("ws", WS_OK, ws as Frame)] {
        let (listener, address) = listener();
        let mut receiver = Receiver::start(address, protocol, true);
        receiver.open(3);
        let mut sockets: Vec<_> = (0..3).map(|_| subscriber(&listener, answer)).collect();
        receiver.opened();
        let stream: Vec<u8> = (1..=12).flat_map(frame).collect();
        for socket in &mut sockets {
            socket.write_all(&stream).expect("room");
        }
        receiver.wait_for(12);
        let report = receiver.report(12);
        assert_eq!(report["connections"], 3);
        assert_eq!(report["scout_events"], 12);
        for field in ["bytes_min", "bytes_max", "scout_bytes"] {
            assert_eq!(report[field], stream.len(), "{protocol} {field}");
        }
        let findings = json!({"events": 36, "lost": 0, "duplicated": 0, "out_of_order": 0, "foreign": 0, "gaps_told": 0});
        assert_eq!(report["findings"], findings, "{protocol}");
        assert!(!report["latencies"].as_array().expect("a list").is_empty());
    }
}

#[test]
fn an_event_stream_in_chunks_is_counted_by_its_events_and_its_last_chunk_is_its_end() {
    for audit in [false, true] {
        let (listener, address) = listener();
        let mut receiver = Receiver::start(address, "sse", audit);
        receiver.open(2);
        let mut sockets = [subscriber(&listener, SSE_CHUNKED), subscriber(&listener, SSE_CHUNKED)];
        receiver.opened();
        let stream = stream(1..=3, sse);
        // Another cut for each connection: the bytes differ, the events do not.
        sockets[0].write_all(&in_chunks(&stream, 7)).expect("room");
        sockets[1].write_all(&in_chunks(&stream[..stream.len() - 1], 50)).expect("room");
        receiver.wait_for(2);
        sockets[1].write_all(&in_chunks(b"\n", 1)).expect("room");
        receiver.wait_for(3);
        let report = receiver.report(3);
        assert_eq!((&report["deliveries"], &report["same_bytes"]), (&json!(6), &json!(false)));
        assert_eq!(report["findings"], findings(6, 0, 0, 0));
        sockets[1].write_all(b"0\r\n\r\n").expect("room");
        let word = receiver.word();
        assert!(
            word["cause"].as_str().expect("text").contains("ended the stream by its last chunk"),
            "{word}"
        );
    }
}

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
fn the_connection_whose_bytes_count_for_all_is_audited() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", false);
    receiver.open(2);
    let mut sockets = [subscriber(&listener, SSE_OK), subscriber(&listener, SSE_OK)];
    receiver.opened();
    for socket in &mut sockets {
        socket.write_all(&stream([1, 2, 4, 4], sse)).expect("room");
    }
    receiver.wait_for(4);
    let report = receiver.report(4);
    assert_eq!((&report["uneven"], &report["deliveries"]), (&json!(0), &json!(8)));
    assert_eq!(report["findings"], findings(4, 1, 1, 0), "of the same length as it should be");
}

#[test]
fn an_event_in_one_segment_with_the_response_head_counts_as_any_other() {
    type Frame = fn(u64) -> Vec<u8>;
    let cases = [("sse", SSE_OK, sse as Frame), ("ws", WS_OK, ws as Frame)];
    for (audit, (protocol, head, frame)) in
        [false, true].into_iter().flat_map(|audit| cases.map(|case| (audit, case)))
    {
        let (listener, address) = listener();
        let mut receiver = Receiver::start(address, protocol, audit);
        receiver.open(1);
        let answer = [head.as_bytes(), &frame(1)].concat();
        let mut socket = subscriber(&listener, answer);
        receiver.wait_for(1);
        socket.write_all(&frame(2)).expect("room");
        receiver.wait_for(2);
        let report = receiver.report(2);
        assert_eq!(report["findings"], findings(2, 0, 0, 0), "{protocol}");
        assert_eq!(report["bytes"], 2 * frame(1).len(), "{protocol}");
    }
}

#[test]
fn progress_waits_for_the_last_byte_of_the_last_connection() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", false);
    receiver.open(2);
    let mut sockets = [subscriber(&listener, SSE_OK), subscriber(&listener, SSE_OK)];
    receiver.opened();
    let (event, last) = (sse(1), sse(2));
    sockets[0].write_all(&event).expect("room");
    sockets[1].write_all(&event[..event.len() - 1]).expect("room");
    let report = |receiver: &mut Receiver| {
        receiver.order(json!({"do": "report", "last": 1}));
        let word = receiver.any_word();
        assert_eq!(word["say"], "report", "progress was told too early");
        word["bytes"].as_u64() == Some(2 * event.len() as u64 - 1)
    };
    let patience = Patience::new();
    while !report(&mut receiver) {
        patience.is_left("all bytes but one");
    }
    // Progress is told after the orders of its turn are obeyed: there was none if none comes before the next report.
    assert!(report(&mut receiver));
    sockets[1].write_all(&event[event.len() - 1..]).expect("room");
    assert_eq!(receiver.any_word(), json!({"say": "progress", "events": 1}));
    sockets[1].write_all(&last).expect("room");
    sockets[0].write_all(&last).expect("room");
    assert_eq!(receiver.any_word(), json!({"say": "progress", "events": 2}));
}

#[test]
fn a_receiver_whose_words_nobody_reads_goes_on_receiving_and_tells_the_newest_in_the_end() {
    const EVENTS: u64 = 400;
    let (listener, address) = listener();
    let mut receiver = Receiver::deaf(address, json!({"protocol": "ws", "audit": false}));
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    for event in 1..=EVENTS {
        // Each event is taken by itself, as the answer to the ping behind it says.
        socket.write_all(&[ws(event), vec![0x89, 0]].concat()).expect("room");
        socket.read_exact(&mut [0; 6]).expect("it goes on");
    }
    receiver.hear();
    receiver.wait_for(EVENTS);
}

#[test]
fn each_planted_loss_duplicate_swap_and_stray_event_is_in_the_report() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", true);
    receiver.open(5);
    let mut sockets: Vec<_> = (0..5).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.opened();
    let streams: [&[u64]; 5] = [&[1, 2, 3, 4], &[1, 2, 4], &[1, 2, 2, 3, 4], &[1, 3, 2, 4], &[1, 2, 3, 4]];
    let mut bytes = 0;
    for (at, (socket, sequences)) in sockets.iter_mut().zip(streams).enumerate() {
        let mut stream: Vec<u8> = sequences.iter().flat_map(|&sequence| sse(sequence)).collect();
        if at == 4 {
            stream.extend(b"data: who is this\n\n");
        }
        bytes += stream.len() as u64;
        socket.write_all(&stream).expect("room");
    }
    let patience = Patience::new();
    let report = loop {
        patience.is_left("all bytes");
        let report = receiver.report(4);
        if report["bytes"].as_u64() == Some(bytes) {
            break report;
        }
    };
    let findings =
        json!({"events": 21, "lost": 1, "duplicated": 1, "out_of_order": 1, "foreign": 1, "gaps_told": 0});
    assert_eq!(report["findings"], findings);
    assert_ne!(report["bytes_min"], report["bytes_max"]);
}

#[test]
fn a_refusal_ends_the_receiver_with_the_servers_words() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", false);
    receiver.open(1);
    subscriber(&listener, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nfull\n");
    let word = receiver.word();
    assert_eq!(word["say"], "failed");
    assert!(word["cause"].as_str().expect("text").contains("503"), "{word}");
    assert!(!receiver.ended().success());
}

#[test]
fn a_server_that_hangs_up_or_is_absent_ends_the_receiver_with_the_reason() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "ws", false);
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    receiver.opened();
    socket.write_all(&[0x88, 6, 0x03, 0xf5]).expect("room");
    socket.write_all(b"slow").expect("room");
    let word = receiver.word();
    assert!(word["cause"].as_str().expect("text").contains("1013 slow"), "{word}");

    drop((listener, socket));
    let mut receiver = Receiver::start(address, "ws", false);
    receiver.open(1);
    let word = receiver.word();
    assert!(word["cause"].as_str().expect("text").contains("is the server running?"), "{word}");
}

#[test]
fn each_topic_is_expected_on_its_connections_alone_and_the_last_arrival_of_each_event_is_told() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"topics": 3, "first": 3, "path": "/t/{topic}"}));
    receiver.open(4);
    let mut sockets = Vec::new();
    for topic in [0, 1, 2, 0] {
        let (socket, head) = request(&listener, SSE_OK);
        assert!(head.starts_with(&format!("GET /t/loadtest-{topic} ")), "{head}");
        sockets.push(socket);
    }
    assert_eq!(receiver.word()["say"], "opened");
    // Event 5 is the second of topic 1.
    receiver.order(json!({"do": "zero", "next": 5, "raw_frame_bytes": 0}));
    assert_eq!(receiver.word()["say"], "zeroed");
    for (at, sequences) in [(0, 3..=3), (1, 2..=3), (2, 2..=2)] {
        sockets[at].write_all(&stream(sequences, sse)).expect("room");
    }
    // Events 5 and 6 are here, 7 is not: one connection of topic 0 lacks it.
    receiver.wait_for(2);
    sockets[3].write_all(&sse(3)).expect("room");
    receiver.wait_for(4);
    assert_eq!(receiver.report(8)["findings"], findings(5, 0, 0, 0));
    assert_eq!(receiver.report(9)["findings"]["lost"], 1, "event 9 has not come");
    let sample = receiver.sample();
    let mut lasts: Vec<(u64, u64)> = sample["lasts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|last| (last["topic"].as_u64().expect("a topic"), last["event"].as_u64().expect("an event")))
        .collect();
    lasts.sort_unstable();
    assert_eq!(lasts, [(0, 3), (1, 2), (1, 3), (2, 2)]);
    assert_eq!((&sample["events"], &sample["connections"]), (&json!(5), &json!(4)));
    assert_eq!(sample["closed_by_server"], 0);
    assert_eq!(receiver.sample()["lasts"], json!([]), "told once");
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
    sockets[1].write_all(&ws(1)).expect("room");
    receiver.report_of(2, 2);
    receiver.order(json!({"do": "start", "churn_per_second": 4.0}));
    assert_eq!(receiver.word()["say"], "started");
    left(&mut sockets[0]);
    receiver.stop();
    let _newcomer = request(&listener, WS_OK);
    assert_eq!(receiver.word()["say"], "stopped");
    assert_eq!(receiver.report(2)["findings"]["lost"], 0, "all is quiet");
    // Event 4, of the other topic: event 5 is the newcomer's, and so must be the third of its topic.
    sockets[1].write_all(&ws_of(stamped(2, LATER_NS))).expect("room");
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
fn a_told_gap_is_counted_on_steady_connections_and_is_no_loss() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "ws", true);
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    receiver.opened();
    socket.write_all(&ws(1)).expect("room");
    let notice = br#"{"gap":{"after":null,"reason":"overrun","topics":[]}}"#;
    socket.write_all(&[&[0x81, notice.len() as u8], &notice[..]].concat()).expect("room");
    socket.write_all(&ws(9)).expect("room");
    assert_eq!(receiver.report_of(9, 2)["findings"], findings(2, 0, 0, 1));
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
fn churn_takes_nobody_whose_break_would_hide_a_loss() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"behaviour": {"kind": "churn", "per_second": 5.0}}));
    receiver.open(2);
    let mut sockets: Vec<_> = (0..2).map(|_| subscriber(&listener, SSE_OK)).collect();
    receiver.opened();
    for socket in &mut sockets {
        socket.write_all(&stream(1..=2, sse)).expect("room");
    }
    // The older one does not get the third.
    sockets[1].write_all(&sse(3)).expect("room");
    receiver.report_of(3, 5);
    receiver.order(json!({"do": "start", "churn_per_second": 5.0}));
    assert_eq!(receiver.word()["say"], "started");
    left(&mut sockets[1]);
    sockets[0].write_all(&sse(4)).expect("it is still there");
    assert_eq!(receiver.report_of(4, 6)["findings"], findings(6, 1, 0, 0));
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

#[test]
fn a_ramp_is_as_slow_as_asked_for() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", false);
    receiver.order(json!({"do": "open", "connections": 11, "per_second": 40.0}));
    let sockets: Vec<_> = (0..11).map(|_| subscriber(&listener, SSE_OK)).collect();
    let word = receiver.word();
    assert_eq!((word["say"].as_str(), sockets.len()), (Some("opened"), 11));
    let seconds = word["seconds"].as_f64().expect("a number");
    assert!((0.25..5.0).contains(&seconds), "10 of 11 come later than the first: {seconds} s");
}

#[test]
fn the_time_of_a_handshake_begins_when_it_was_due_and_not_when_there_was_room_for_it() {
    const CONNECTIONS: usize = 300;
    const HELD: Duration = Duration::from_millis(400);
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", false);
    receiver.order(json!({"do": "open", "connections": CONNECTIONS, "per_second": 100_000.0}));
    // As many as it opens at once; all others wait for one of these.
    let mut sockets: Vec<_> = (0..256).map(|_| subscriber(&listener, "")).collect();
    std::thread::sleep(HELD);
    sockets.iter_mut().for_each(|socket| socket.write_all(SSE_OK.as_bytes()).expect("room"));
    sockets.extend((256..CONNECTIONS).map(|_| subscriber(&listener, SSE_OK)));
    assert_eq!(receiver.word()["say"], "opened");
    let sample = receiver.sample();
    let handshakes = sample["handshakes"].as_array().expect("a list").iter();
    let long = handshakes.filter(|entry| entry[0].as_u64() >= Some(HELD.as_nanos() as u64 * 9 / 10));
    assert_eq!(long.filter_map(|entry| entry[1].as_u64()).sum::<u64>(), CONNECTIONS as u64, "{sample}");
}

#[test]
fn garbage_and_a_server_that_closes_early_end_the_receiver_with_the_reason() {
    let cases: [(&str, &str, &[u8], &str); 5] = [
        ("sse", "", b"", "closed within the handshake"),
        ("sse", "HTTP/1.1 200 OK\r\n", b"", "closed within the handshake"),
        ("sse", "SSH-2.0-server 200\r\n\r\n", b"", "SSH-2.0"),
        ("ws", WS_OK, &[0x81, 0x81, 0, 0, 0, 0, 0], "masked"),
        ("sse", SSE_OK, b"data: x\n\n", "ended the stream"),
    ];
    for (protocol, answer, then, expected) in cases {
        let (listener, address) = listener();
        let mut receiver = Receiver::start(address, protocol, true);
        receiver.open(1);
        let mut socket = subscriber(&listener, answer);
        socket.write_all(then).expect("room");
        socket.shutdown(std::net::Shutdown::Write).expect("a socket");
        let mut word = receiver.word();
        if word["say"] == "opened" {
            word = receiver.word();
        }
        assert_eq!(word["say"], "failed", "{answer:?}");
        let cause = word["cause"].as_str().expect("text");
        assert!(cause.contains(expected) && !cause.contains('\n'), "{cause}");
        assert!(!receiver.ended().success());
    }
}

#[test]
fn a_nats_server_that_talks_without_end_before_it_subscribes_is_given_up() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"protocol": "ws", "dialect": "nats"}));
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    let talk = [vec![0x82, 100], b"+OK\r\n".repeat(20)].concat().repeat(8_000);
    // Whether all of it finds room is the receiver's business.
    let _ = socket.write_all(&talk);
    let word = receiver.word();
    assert_eq!(word["say"], "failed", "{word}");
    assert!(word["cause"].as_str().expect("text").contains("no PONG"), "{word}");
}

#[test]
fn a_descriptor_limit_is_named_with_its_remedy() {
    let (listener, address) = listener();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 40; exec \"$0\" receiver", env!("CARGO_BIN_EXE_loadtest")]);
    let mut receiver = Receiver::spawn(command, address, json!({}));
    receiver.open(100);
    let word = receiver.word();
    assert_eq!(word["say"], "failed");
    assert!(word["cause"].as_str().expect("text").contains("ulimit"), "{word}");
    assert!(!receiver.ended().success());
    drop(listener);
}

#[test]
fn the_bare_loop_counts_bytes_and_tells_when_all_connections_must_have_an_event() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"protocol": "ws", "bare": true}));
    receiver.open(2);
    let mut sockets: Vec<_> = (0..2).map(|_| subscriber(&listener, WS_OK)).collect();
    assert_eq!(receiver.word()["say"], "opened");
    let event = ws(1);
    receiver.order(json!({"do": "zero", "next": 1, "raw_frame_bytes": event.len()}));
    assert_eq!(receiver.word()["say"], "zeroed");
    for (round, frame) in [&event, &ws(2)].into_iter().enumerate() {
        for socket in &mut sockets {
            socket.write_all(frame).expect("room");
        }
        assert_eq!(receiver.any_word(), json!({"say": "progress", "events": round + 1}));
    }
    assert_eq!(receiver.report(2)["bytes"], 4 * event.len());
    drop(sockets.pop());
    let word = receiver.word();
    assert!(word["cause"].as_str().expect("text").contains("lost connection"), "{word}");
}

//! Claim: a receiver process tells the truth about what its connections got.
//!
//! Set-up: `loadtest receiver` as a child, spoken to in JSON lines, against a server of our own in
//! this process that sends exactly what a test says, faults included. Expectation: each planted
//! loss, duplicate, swap and stray byte is in the report; a stream without faults is clean;
//! subscribers come as they were told; and a server that refuses, hangs up or talks nonsense ends
//! the process with its reason. Who comes and goes is in `returning.rs`.

use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

use rig::*;
use serde_json::json;

#[allow(dead_code, reason = "each test program uses a part of it")]
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
    // Progress is told after the orders of its turn are obeyed: there was none if none comes before
    // the next report.
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
    for (at, numbers) in [(0, vec![7]), (1, vec![5, 8]), (2, vec![6])] {
        sockets[at].write_all(&stream(numbers, sse)).expect("room");
    }
    // Events 5 and 6 are here, 7 is not: one connection of topic 0 lacks it.
    receiver.wait_for(2);
    sockets[3].write_all(&sse(7)).expect("room");
    receiver.wait_for(4);
    assert_eq!(receiver.report(8)["findings"], findings(5, 0, 0, 0));
    assert_eq!(receiver.report(9)["findings"]["lost"], 1, "event 9 has not come");
    let sample = receiver.sample();
    let mut lasts: Vec<u64> = sample["lasts"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|last| last["number"].as_u64().expect("a number"))
        .collect();
    lasts.sort_unstable();
    assert_eq!(lasts, [5, 6, 7, 8]);
    assert_eq!((&sample["events"], &sample["connections"]), (&json!(5), &json!(4)));
    assert_eq!(sample["closed_by_server"], 0);
    assert_eq!(receiver.sample()["lasts"], json!([]), "told once");
}

#[test]
fn a_json_subscriber_is_open_once_its_commands_are_answered_and_resumes_by_the_last_id() {
    let (listener, address) = listener();
    let commands = json!(["{\"topic\":\"{topic}\"}", "{\"match\":\"b/*\"}"]);
    let mut receiver = Receiver::with(
        address,
        json!({"protocol": "json", "path": "/ws", "commands": commands, "behaviour": storm()}),
    );
    receiver.open(1);
    let (mut socket, head) = request(&listener, JSON_OK);
    assert!(head.contains("Sec-WebSocket-Protocol: fanwave.v1.json\r\n"), "{head}");
    let asked = commands_of(&mut socket, 2);
    assert_eq!(asked[0], json!({"ref": 1_000_000_001, "subscribe": {"topic": "loadtest-0"}}));
    assert_eq!(asked[1], json!({"ref": 1_000_000_002, "subscribe": {"match": "b/*"}}));
    socket.write_all(&[answer(1), json_event(1), answer(2)].concat()).expect("room");
    receiver.opened();
    socket.write_all(&[json_event(2), json_event(3)].concat()).expect("room");
    receiver.report_of(3, 2);
    receiver.started();
    left(&mut socket);
    let (mut socket, _) = request(&listener, JSON_OK);
    let after = commands_of(&mut socket, 2).remove(1);
    assert_eq!(after["subscribe"], json!({"match": "b/*", "after": "E-3"}));
    socket.write_all(&[answer(1), answer(2), json_event(5)].concat()).expect("room");
    assert_eq!(receiver.report_of(5, 3)["findings"], findings(3, 1, 0, 0), "event 4 is lost over the break");
}

#[test]
fn a_json_server_that_answers_twice_or_with_an_error_is_told() {
    let error = ws_of("{\"ref\":1000000001,\"error\":{\"code\":\"full\"}}".to_owned());
    for said in [error, [answer(1), answer(1)].concat()] {
        let (listener, address) = listener();
        let commands = json!(["{\"topic\":\"{topic}\"}"]);
        let mut receiver =
            Receiver::with(address, json!({"protocol": "json", "path": "/ws", "commands": commands}));
        receiver.open(1);
        let (mut socket, _) = request(&listener, JSON_OK);
        commands_of(&mut socket, 1);
        socket.write_all(&said).expect("room");
        let mut word = receiver.word();
        if word["say"] == "opened" {
            word = receiver.word();
        }
        assert!(word["cause"].as_str().is_some_and(|cause| cause.contains("was due")), "{word}");
    }
}

#[test]
fn a_stalled_subscriber_of_the_latest_reads_on_at_the_end_and_must_find_the_newest_of_each_value() {
    let (listener, address) = listener();
    let mut receiver =
        Receiver::with(address, json!({"protocol": "ws", "behaviour": {"kind": "stalled"}, "newest": 2}));
    receiver.open(1);
    let mut socket = subscriber(&listener, WS_OK);
    receiver.opened();
    socket.write_all(&stream([1, 2, 5], ws)).expect("room");
    assert_eq!(receiver.report(8)["tail"], 2, "nothing was read");
    receiver.stop();
    assert_eq!(receiver.word()["say"], "stopped");
    receiver.report_of(8, 3);
    assert_eq!(receiver.report(5)["tail"], 1, "event 4 is the newest of the second value");
    socket.write_all(&stream([8, 6, 9], ws)).expect("room");
    let report = receiver.report_of(9, 6);
    let out_of_order = &report["findings"]["out_of_order"];
    assert_eq!((&report["tail"], out_of_order), (&json!(0), &json!(1)), "{report}");
}

#[test]
fn a_subscriber_of_all_topics_is_owed_every_event_in_order_and_one_of_a_topic_none_of_others() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"topics": 3, "hears_all": true}));
    receiver.open(2);
    let mut sockets = [subscriber(&listener, SSE_OK), subscriber(&listener, SSE_OK)];
    receiver.opened();
    sockets[0].write_all(&stream(1..=4, sse)).expect("room");
    sockets[1].write_all(&stream([1, 3, 2, 4], sse)).expect("room");
    receiver.wait_for(4);
    assert_eq!(receiver.report(4)["findings"]["out_of_order"], 1);

    let (listener, address) = rig::listener();
    let mut receiver = Receiver::with(address, json!({"topics": 3}));
    receiver.open(1);
    let mut socket = subscriber(&listener, SSE_OK);
    receiver.opened();
    socket.write_all(&stream([1, 2, 4], sse)).expect("room");
    assert_eq!(receiver.report_of(4, 3)["findings"]["foreign"], 1, "event 2 is of another topic");
}

#[test]
fn a_subscriber_of_a_topic_with_several_voices_expects_each_of_them_in_order() {
    let (listener, address) = listener();
    let mut receiver = Receiver::with(address, json!({"topics": 2, "voices": 2, "first": 1}));
    receiver.open(1);
    let mut socket = subscriber(&listener, SSE_OK);
    receiver.opened();
    // Topic 1 has the events 3, 7, 11 of one voice and 4, 8, 12 of the other.
    socket.write_all(&stream([3, 7, 4, 11, 8], sse)).expect("room");
    assert_eq!(receiver.report_of(11, 5)["findings"], findings(5, 0, 0, 0));
    assert_eq!(receiver.report(12)["tail"], 1);
    socket.write_all(&stream([12, 11], sse)).expect("room");
    assert_eq!(receiver.report_of(12, 7)["findings"]["duplicated"], 1);
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
    assert!(word["cause"].as_str().expect("text").contains("no answer to the subscription"), "{word}");
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

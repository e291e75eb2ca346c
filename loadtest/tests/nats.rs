//! Claim: a receiver subscribes to a NATS server over WebSocket, loses nothing that comes with or
//! right after the server's agreement, and answers its pings.
//!
//! Set-up: `loadtest receiver` as a child, against a server of our own in this process that cuts
//! what it says into frames with no regard to messages. Expectation: the opening is as the protocol
//! wants it, each event is counted once, a ping gets its pong, and a refusal ends the process with
//! the server's words.

mod role;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use role::Role;

const OPEN: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A receiver that opens one connection, and the listener that it comes to.
fn receiver() -> (Role, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let target = listener.local_addr().expect("bound").to_string();
    let mut receiver = Role::start("receiver");
    receiver.order(&json!({
        "do": "setup", "target": target, "protocol": "ws", "dialect": "nats", "path": "/{topic}", "topics": 4,
        "first": 3, "audit": true, "behaviour": {"kind": "steady"}, "receive_buffer": null,
    }));
    receiver.order(&json!({"do": "open", "connections": 1}));
    (receiver, listener)
}

/// Accepts the connection, up to the WebSocket handshake's end.
fn accept(listener: &TcpListener) -> TcpStream {
    let (mut socket, _) = listener.accept().expect("the receiver comes");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("not zero");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"GET /loadtest-3 HTTP/1.1\r\n"));
    socket.write_all(OPEN).expect("the receiver reads");
    socket
}

/// Sends bytes in binary frames of at most `frame` bytes.
fn send(socket: &mut TcpStream, bytes: &[u8], frame: usize) {
    for part in bytes.chunks(frame) {
        let mut frame = vec![0x82, 126];
        frame.extend((part.len() as u16).to_be_bytes());
        frame.extend(part);
        socket.write_all(&frame).expect("the receiver reads");
    }
}

/// Reads one masked binary frame of less than 64 KiB.
fn hear(socket: &mut TcpStream) -> Vec<u8> {
    let mut byte = || {
        let mut byte = [0];
        socket.read_exact(&mut byte).expect("a frame");
        byte[0]
    };
    assert_eq!(byte(), 0x82);
    let length = match byte() {
        254 => usize::from(u16::from_be_bytes([byte(), byte()])),
        short => usize::from(short.checked_sub(0x80).expect("masked")),
    };
    let key = [byte(), byte(), byte(), byte()];
    (0..length).map(|at| byte() ^ key[at % 4]).collect()
}

/// Event `sequence` of the last of four topics.
fn message(sequence: u64) -> Vec<u8> {
    let payload = format!("~fw{:016x}{:016x}~and more", 4 * sequence, 1);
    format!("MSG loadtest-3 1 {}\r\n{payload}\r\n", payload.len()).into_bytes()
}

#[test]
fn a_subscription_counts_every_event_whatever_the_frames_and_answers_pings() {
    for frame in [1, 7, 60_000] {
        let (mut receiver, listener) = receiver();
        let mut socket = accept(&listener);
        send(&mut socket, b"INFO {\"version\":\"2.9\"}\r\n", frame);
        let opening = String::from_utf8(hear(&mut socket)).expect("text");
        let lines: Vec<_> = opening.split("\r\n").collect();
        let options = lines[0].strip_prefix("CONNECT ").expect("a greeting");
        let options: serde_json::Value = serde_json::from_str(options).expect("JSON");
        assert_eq!(options["verbose"], false);
        assert_eq!(lines[1..], ["SUB loadtest-3 1", "PING", ""]);
        send(&mut socket, b"PONG\r\n", frame);
        receiver.word("opened");
        receiver.ask(&json!({"do": "zero", "next": 4, "raw_frame_bytes": 0}), "zeroed");
        let mut said: Vec<u8> = (1..=100).flat_map(message).collect();
        said.extend(b"PING\r\n");
        said.extend((101..=120).flat_map(message));
        send(&mut socket, &said, frame);
        assert_eq!(hear(&mut socket), b"PONG\r\n");
        let report = loop {
            let report = receiver.ask(&json!({"do": "report", "last": 480}), "report");
            if report["findings"]["events"] == 120 {
                break report;
            }
        };
        for fault in ["lost", "duplicated", "out_of_order", "foreign"] {
            assert_eq!(report["findings"][fault], 0, "frames of {frame}: {report}");
        }
    }
}

#[test]
fn a_refused_subscription_is_told_in_the_servers_words() {
    let (mut receiver, listener) = receiver();
    let mut socket = accept(&listener);
    send(&mut socket, b"INFO {}\r\n-ERR 'Authorization Violation'\r\n", 9);
    let failed = receiver.word("failed");
    assert!(failed["cause"].as_str().expect("text").contains("Authorization Violation"), "{failed}");
}

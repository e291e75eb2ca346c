//! Claim: a receiver process tells the truth about what its connections got.
//!
//! Set-up: `loadtest receiver` as a child, spoken to in JSON lines, against a server of our own in this process that
//! sends exactly what a test says, faults included. Expectation: each planted loss, duplicate, swap and stray
//! byte is in the report, a stream without faults is clean, and a server that refuses or hangs up ends the process
//! with its reason.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

struct Receiver {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Receiver {
    fn start(target: SocketAddr, protocol: &str, audit: bool) -> Receiver {
        let mut child = Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .arg("receiver")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the receiver starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut receiver = Receiver { child, stdin, stdout };
        receiver.order(json!({
            "do": "setup", "target": target.to_string(), "protocol": protocol, "path": "/x", "first": 0,
            "audit": audit, "dialect": "plain", "topics": 1, "behaviour": {"kind": "steady"}, "receive_buffer": null,
        }));
        receiver
    }

    fn order(&mut self, order: Value) {
        writeln!(self.stdin, "{order}").expect("the receiver listens");
    }

    /// The next word that is not progress.
    fn word(&mut self) -> Value {
        loop {
            let word = self.any_word();
            if word["say"] != "progress" {
                return word;
            }
        }
    }

    fn any_word(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the receiver speaks");
        serde_json::from_str(&line).expect("JSON")
    }

    fn wait_for(&mut self, events: u64) {
        while self.any_word()["events"].as_u64() != Some(events) {}
    }

    fn open(&mut self, connections: usize) {
        self.order(json!({"do": "open", "connections": connections}));
    }

    fn opened(&mut self) {
        assert_eq!(self.word()["say"], "opened");
        self.order(json!({"do": "zero", "next": 1, "raw_frame_bytes": 0}));
        assert_eq!(self.word()["say"], "zeroed");
    }

    fn report(&mut self, last: u64) -> Value {
        self.order(json!({"do": "report", "last": last}));
        self.word()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Accepts one subscriber and answers its request head.
fn subscriber(listener: &TcpListener, answer: &str) -> TcpStream {
    let (mut socket, _) = listener.accept().expect("a subscriber comes");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"GET /x HTTP/1.1\r\n"));
    socket.write_all(answer.as_bytes()).expect("the subscriber reads");
    socket
}

const SSE_OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const WS_OK: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn payload(sequence: u64) -> String {
    format!("~fw{sequence:016x}{:016x}~and more", 1)
}

fn sse(sequence: u64) -> Vec<u8> {
    format!("id: {sequence}\ndata: {}\n\n", payload(sequence)).into_bytes()
}

fn ws(sequence: u64) -> Vec<u8> {
    let payload = payload(sequence);
    let mut frame = vec![0x81, payload.len() as u8];
    frame.extend(payload.into_bytes());
    frame
}

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
fn progress_waits_for_the_last_byte_of_the_last_connection() {
    let (listener, address) = listener();
    let mut receiver = Receiver::start(address, "sse", false);
    receiver.open(2);
    let mut sockets = [subscriber(&listener, SSE_OK), subscriber(&listener, SSE_OK)];
    receiver.opened();
    let (event, last) = (sse(1), sse(2));
    sockets[0].write_all(&event).expect("room");
    sockets[1].write_all(&event[..event.len() - 1]).expect("room");
    // The answer to an order comes after whatever progress there was: there is none.
    loop {
        receiver.order(json!({"do": "report", "last": 1}));
        let word = receiver.any_word();
        assert_eq!(word["say"], "report", "progress was told too early");
        if word["bytes"].as_u64() == Some(2 * event.len() as u64 - 1) {
            break;
        }
    }
    sockets[1].write_all(&event[event.len() - 1..]).expect("room");
    assert_eq!(receiver.any_word(), json!({"say": "progress", "events": 1}));
    sockets[1].write_all(&last).expect("room");
    sockets[0].write_all(&last).expect("room");
    assert_eq!(receiver.any_word(), json!({"say": "progress", "events": 2}));
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
    let report = loop {
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
    assert!(!receiver.child.wait().expect("it ends").success());
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

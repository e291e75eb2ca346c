//! A receiver as a child process, spoken to in JSON lines, and the server that it meets. No wait is
//! without end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// As many as a storm of the receiver opens at once; the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4_096;
/// The smallest pipe.
const PIPE_BYTES: usize = 4_096;

/// Fails once a test has waited for too long.
pub struct Patience(Instant);

impl Patience {
    pub fn new() -> Patience {
        Patience(Instant::now())
    }

    pub fn is_left(&self, what: &str) {
        assert!(self.0.elapsed() < PATIENCE, "waited for too long: {what}");
    }
}

/// A receiver process; dropping it kills it.
pub struct Receiver {
    child: Child,
    stdin: ChildStdin,
    /// Its words, read by a thread of their own, so that no wait for one is without end.
    words: mpsc::Receiver<Value>,
    /// Whether they are read: as soon as this is gone.
    deaf: Option<mpsc::Sender<()>>,
}

impl Receiver {
    pub fn start(target: SocketAddr, protocol: &str, audit: bool) -> Receiver {
        Receiver::with(target, json!({"protocol": protocol, "audit": audit}))
    }

    /// One of steady subscribers to `/x`, but for what `more` says.
    pub fn with(target: SocketAddr, more: Value) -> Receiver {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.arg("receiver");
        Receiver::spawn(command, target, more)
    }

    /// One whose words nobody reads, of which few find room, before [`Receiver::hear`].
    pub fn deaf(target: SocketAddr, more: Value) -> Receiver {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.arg("receiver");
        Receiver::spawn_heard(command, target, more, false)
    }

    pub fn hear(&mut self) {
        self.deaf = None;
    }

    pub fn spawn(command: Command, target: SocketAddr, more: Value) -> Receiver {
        Receiver::spawn_heard(command, target, more, true)
    }

    fn spawn_heard(mut command: Command, target: SocketAddr, more: Value, heard: bool) -> Receiver {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the receiver starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = child.stdout.take().expect("piped");
        let (deaf, hears) = mpsc::channel();
        if !heard {
            rustix::pipe::fcntl_setpipe_size(&stdout, PIPE_BYTES).expect("a pipe");
        }
        let (tell, words) = mpsc::channel();
        std::thread::spawn(move || {
            // Nothing is ever sent: it ends when the other side goes.
            let _: Result<(), _> = hears.recv();
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let word = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
                if tell.send(word).is_err() {
                    break;
                }
            }
        });
        let mut receiver = Receiver { child, stdin, words, deaf: (!heard).then_some(deaf) };
        let mut setup = json!({
            "do": "setup", "target": target.to_string(), "protocol": "sse", "path": "/x", "first": 0, "audit": true,
            "dialect": "plain", "topics": 1, "behaviour": {"kind": "steady"}, "receive_buffer": null,
        });
        for (name, value) in more.as_object().expect("an object") {
            setup[name] = value.clone();
        }
        receiver.order(setup);
        receiver
    }

    pub fn order(&mut self, order: Value) {
        writeln!(self.stdin, "{order}").expect("the receiver listens");
    }

    /// The next word that is not progress.
    pub fn word(&mut self) -> Value {
        let patience = Patience::new();
        loop {
            patience.is_left("a word that is no progress");
            let word = self.any_word();
            if word["say"] != "progress" {
                return word;
            }
        }
    }

    pub fn any_word(&mut self) -> Value {
        self.words.recv_timeout(PATIENCE).expect("the receiver speaks")
    }

    /// Takes its last words and waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        let patience = Patience::new();
        loop {
            patience.is_left("the end of the receiver");
            match self.words.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the receiver does not end"),
            }
        }
        // Its output is closed, so it is ending.
        self.child.wait().expect("a child")
    }

    /// Waits for the progress of so many events.
    pub fn wait_for(&mut self, events: u64) {
        let patience = Patience::new();
        while self.any_word()["events"].as_u64() != Some(events) {
            patience.is_left("events");
        }
    }

    pub fn open(&mut self, connections: usize) {
        self.order(json!({"do": "open", "connections": connections}));
    }

    pub fn opened(&mut self) {
        assert_eq!(self.word()["say"], "opened");
        self.order(json!({"do": "zero", "next": 1, "raw_frame_bytes": 0}));
        assert_eq!(self.word()["say"], "zeroed");
    }

    pub fn started(&mut self) {
        self.order(json!({"do": "start", "churn_per_second": 0.0}));
        assert_eq!(self.word()["say"], "started");
    }

    pub fn stop(&mut self) {
        self.order(json!({"do": "stop"}));
    }

    pub fn sample(&mut self) -> Value {
        self.order(json!({"do": "sample"}));
        self.word()
    }

    /// The report in which so many events have arrived, however often it has to be asked for.
    pub fn report_of(&mut self, last: u64, events: u64) -> Value {
        self.report_with(last, "events", events)
    }

    /// The report with this finding.
    pub fn report_with(&mut self, last: u64, finding: &str, value: u64) -> Value {
        let patience = Patience::new();
        loop {
            let report = self.report(last);
            assert_eq!(report["say"], "report", "{report}");
            if report["findings"][finding].as_u64() == Some(value) {
                return report;
            }
            patience.is_left(&format!("{finding} of {value}, {report}"));
        }
    }

    pub fn report(&mut self, last: u64) -> Value {
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

/// A listener with room for all who come at once. Where its queue is full the kernel drops a
/// connection attempt, and the client tries again after seconds, then twice as many (tcp(7)).
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    rustix::net::listen(&listener, BACKLOG).expect("it listens already");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Accepts one subscriber of `/x` and answers its request head.
pub fn subscriber(listener: &TcpListener, answer: impl AsRef<[u8]>) -> TcpStream {
    let (socket, head) = request(listener, answer);
    assert!(head.starts_with("GET /x HTTP/1.1\r\n"), "{head}");
    socket
}

/// Accepts one subscriber and answers its request head, which is given too.
pub fn request(listener: &TcpListener, answer: impl AsRef<[u8]>) -> (TcpStream, String) {
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let comes = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit)).expect("a listener");
    assert_eq!(comes, 1, "no subscriber comes");
    let (mut socket, _) = listener.accept().expect("a subscriber comes");
    socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
    socket.set_write_timeout(Some(PATIENCE)).expect("a socket");
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        socket.read_exact(&mut byte).expect("a whole head");
        head.push(byte[0]);
    }
    socket.write_all(answer.as_ref()).expect("the subscriber reads");
    (socket, String::from_utf8(head).expect("text"))
}

/// Waits until the subscriber has left.
pub fn left(socket: &mut TcpStream) {
    match socket.read(&mut [0; 64]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("the subscriber is still there: {other:?}"),
    }
}

pub fn stream(sequences: impl IntoIterator<Item = u64>, frame: fn(u64) -> Vec<u8>) -> Vec<u8> {
    sequences.into_iter().flat_map(frame).collect()
}

pub fn findings(events: u64, lost: u64, duplicated: u64, gaps_told: u64) -> Value {
    json!({"events": events, "lost": lost, "duplicated": duplicated, "out_of_order": 0, "foreign": 0,
        "gaps_told": gaps_told})
}

const STORM: &str = r#"{"kind": "storm", "at_seconds": 0.0, "share": 1.0}"#;
pub const GAP: &[u8] =
    b"event: fanwave-gap\ndata: {\"gap\":{\"after\":null,\"reason\":\"overrun\",\"topics\":[]}}\n\n";

pub fn storm() -> Value {
    serde_json::from_str(STORM).expect("JSON")
}

pub const SSE_OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
pub const SSE_CHUNKED: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
pub const WS_OK: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub fn payload(sequence: u64) -> String {
    stamped(sequence, 1)
}

pub fn stamped(sequence: u64, time_ns: u64) -> String {
    format!("~fw{sequence:016x}{time_ns:016x}~and more")
}

/// A time long after whatever a test does.
pub const LATER_NS: u64 = 1 << 62;

pub fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub fn sse(sequence: u64) -> Vec<u8> {
    format!("id: {sequence}\ndata: {}\n\n", payload(sequence)).into_bytes()
}

/// The same in chunks of so many bytes.
pub fn in_chunks(stream: &[u8], bytes: usize) -> Vec<u8> {
    let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    stream.chunks(bytes).flat_map(chunk).collect()
}

pub fn ws(sequence: u64) -> Vec<u8> {
    ws_of(payload(sequence))
}

pub fn ws_of(payload: String) -> Vec<u8> {
    let mut frame = vec![0x81, payload.len() as u8];
    frame.extend(payload.into_bytes());
    frame
}

pub const JSON_OK: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                     Sec-WebSocket-Protocol: fanwave.v1.json\r\n\r\n";

/// Event `number` as JSON.
pub fn json_event(number: u64) -> Vec<u8> {
    ws_of(format!("{{\"topic\":\"a\",\"id\":\"E-{number}\",\"data\":\"{}\"}}", payload(number)))
}

/// The answer to a client's command.
pub fn answer(number: u64) -> Vec<u8> {
    ws_of(format!("{{\"ref\":{},\"ok\":{{}}}}", 1_000_000_000 + number))
}

/// The next commands of a client: short masked messages, whose key is zeros.
pub fn commands_of(socket: &mut TcpStream, commands: usize) -> Vec<Value> {
    let command = |_| {
        let mut head = [0; 6];
        socket.read_exact(&mut head).expect("a command");
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        socket.read_exact(&mut payload).expect("its payload");
        serde_json::from_slice(&payload).expect("JSON")
    };
    (0..commands).map(command).collect()
}

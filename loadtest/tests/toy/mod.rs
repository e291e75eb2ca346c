//! A toy server for the tests of commands: Server-Sent Events out, one POST per event in, on one
//! port.
//!
//! It does what a test plants: a capacity, a lost event, a refusal, an early end, an answer that is
//! no HTTP. One thread per connection and one that fans out; they end with the test's process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

const SSE_OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
const POST_OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// What the fan-out does to event `event` (from 1) for subscriber `subscriber` (from 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Send,
    Drop,
    HangUp,
    /// Stand still for [`STALL`], then send.
    Stall,
}

/// How long a stall is.
pub const STALL: Duration = Duration::from_millis(600);

/// Starts a server that sends each published event to every subscriber, at most `capacity` events
/// per second.
pub fn fan_out(capacity: f64, deed: fn(u64, usize) -> Deed) -> SocketAddr {
    let subscribers = Arc::new(Mutex::new(Vec::new()));
    let (tell, told) = channel();
    let waiting = Arc::clone(&subscribers);
    thread::spawn(move || deliver(&told, &waiting, capacity, deed));
    answer(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        while let Some((first_line, body)) = request(&mut reader) {
            if first_line.starts_with("GET") {
                let mut stream = stream;
                // The subscriber is known before it is told so: no event published after that can
                // miss it.
                let mut subscribers = locked(&subscribers);
                let _ = stream.write_all(SSE_OK);
                subscribers.push(Some(stream));
                return;
            }
            publish(&tell, body);
            let mut writer = &stream;
            if writer.write_all(POST_OK).is_err() {
                return;
            }
        }
    })
}

/// Starts a server that does `act` with every connection, each on a thread of its own.
pub fn answer(act: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = stream.set_nodelay(true);
            let act = act.clone();
            thread::spawn(move || act(stream));
        }
    });
    address
}

/// Starts a server that reads a request head and answers with these bytes, then closes.
pub fn answer_all_with(bytes: &'static [u8]) -> SocketAddr {
    answer(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let _ = request(&mut reader);
        let _ = stream.write_all(bytes);
    })
}

fn publish(tell: &Sender<Vec<u8>>, body: Vec<u8>) {
    // Nobody delivers any more once the test is over.
    let _ = tell.send(body);
}

fn deliver(
    told: &Receiver<Vec<u8>>,
    subscribers: &Mutex<Vec<Option<TcpStream>>>,
    capacity: f64,
    deed: fn(u64, usize) -> Deed,
) {
    let each = Duration::from_secs_f64(1.0 / capacity);
    let mut free = Instant::now();
    for (event, body) in (1..).zip(told.iter()) {
        free = free.max(Instant::now()) + each;
        thread::sleep(free.saturating_duration_since(Instant::now()));
        let frame = [b"data: ", &body[..], b"\n\n"].concat();
        for (at, subscriber) in locked(subscribers).iter_mut().enumerate() {
            let Some(stream) = subscriber else { continue };
            let gone = match deed(event, at) {
                Deed::Send => stream.write_all(&frame).is_err(),
                Deed::Drop => false,
                Deed::HangUp => true,
                Deed::Stall => {
                    thread::sleep(STALL);
                    stream.write_all(&frame).is_err()
                }
            };
            if gone {
                *subscriber = None;
            }
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next request's first line and body.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|&read| read > 0)?;
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
        match line.trim_end() {
            "" => break,
            header => {
                if let Some((name, value)) = header.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().ok()?;
                }
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, body))
}

/// Who measures time holds it alone: measurements share the machine's CPUs.
static CPUS: RwLock<()> = RwLock::new(());

/// Runs `loadtest` with these arguments to its end, with no other beside it.
pub fn loadtest(args: &[&str]) -> Output {
    let _alone = CPUS.write().unwrap_or_else(PoisonError::into_inner);
    finished(args)
}

/// The same beside others of its kind: for what does not depend on how fast the machine is.
pub fn loadtest_among_others(args: &[&str]) -> Output {
    let _shared = CPUS.read().unwrap_or_else(PoisonError::into_inner);
    finished(args)
}

/// Runs `loadtest` beside others with these for its output. None if it has not ended after a
/// minute.
pub fn loadtest_into(args: &[&str], stdout: Stdio, stderr: Stdio) -> Option<ExitStatus> {
    let _shared = CPUS.read().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let mut child = command.args(args).stdout(stdout).stderr(stderr).spawn().expect("loadtest starts");
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().expect("a child") {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.kill().expect("it runs");
    child.wait().expect("a child");
    None
}

fn finished(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(args).output().expect("loadtest starts")
}

/// The options that name a toy server.
pub fn at(address: SocketAddr) -> [String; 4] {
    [
        "--subscribe-sse".to_owned(),
        format!("http://{address}/events/{{topic}}"),
        "--publish-to".to_owned(),
        format!("http://{address}/publish/{{topic}}"),
    ]
}

/// A file of a test's own beneath the directory that cargo gives to tests.
pub fn scratch(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    folder.join(format!("{}-{name}", std::process::id())).to_string_lossy().into_owned()
}

/// A small scenario: SSE subscribers of one topic.
pub fn small_scenario(name: &str, connections: usize, per_second: f64) -> String {
    let file = scratch(&format!("{name}.toml"));
    let text = format!(
        "name = \"{name}\"\nabout = \"a test\"\nseconds = 1.5\nwarm_up_seconds = 0.5\npayload_bytes = 100\n\n[publish]\n\
         pace = \"rate\"\nper_second = {per_second}\n\n[[subscribers]]\nprotocol = \"sse\"\nconnections = {connections}\n"
    );
    std::fs::write(&file, text).expect("a file");
    file
}

//! `run` over real sockets: serving, draining, failing.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::config::limits::DRAIN_GRACE_MS;
use crate::hub::{ControlListener, HubError, HubSetup, is_done_within, run};

/// A running hub.
struct Server {
    control: SocketAddr,
    drain: Arc<Notify>,
    ended: JoinHandle<Result<(), HubError>>,
    ends: mpsc::UnboundedSender<ShardEnd>,
    inboxes: Vec<Inbox>,
}

fn serve(shards: usize, limits: Limits, more: Option<ControlListener>) -> Server {
    let (outboxes, inboxes) =
        (0..shards).map(|_| path(limits.shard_queue_batches_max).expect("eventfd")).unzip();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let control = listener.local_addr().expect("bound");
    let (ends, shard_ends) = mpsc::unbounded_channel();
    let drain = Arc::new(Notify::new());
    let drained = drain.clone();
    let memory = Memory::new(&limits);
    let setup = HubSetup {
        estate: None,
        config: config(shards, limits),
        epoch: EPOCH,
        source: crate::hub::Source::Local,
        outboxes,
        demand: Arc::default(),
        memory,
        egress: EgressReport::default(),
        listen: Default::default(),
        surroundings: Default::default(),
        control: [ControlListener::Tcp(listener)].into_iter().chain(more).collect(),
        control_connections_max: 16,
        shard_ends,
    };
    let ended = tokio::spawn(run(setup, async move { drained.notified().await }));
    Server { control, drain, ended, ends, inboxes }
}

impl Server {
    fn start_shard(&mut self, number: usize) -> mpsc::UnboundedReceiver<Seen> {
        start_shard(self.inboxes.remove(0), number, Some(self.ends.clone()))
    }
}

/// One request on its own connection; the whole answer as text.
async fn ask(control: SocketAddr, method: &str, uri: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(control).await.expect("it listens");
    let length = body.len();
    let request = format!(
        "{method} {uri} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test]
async fn a_drain_sends_the_last_batch_before_it_tells_the_shards_and_ends_when_they_have() {
    let mut server = serve(2, Limits { shard_queue_batches_max: 2, ..Limits::default() }, None);
    for n in 1..=5 {
        assert!(ask(server.control, "POST", "/topics/a", &n.to_string()).await.starts_with("HTTP/1.1 200"));
    }
    server.drain.notify_one();
    // Both queues are full, so the drain cannot be over before the shards are started.
    let refused = loop {
        let answer = ask(server.control, "POST", "/topics/a", "6").await;
        if !answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
    };
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    assert!(refused.contains("draining"), "{refused}");
    assert!(ask(server.control, "GET", "/healthz", "").await.starts_with("HTTP/1.1 503"));
    let shards = [server.start_shard(0), server.start_shard(1)];
    for mut seen in shards {
        let mut sequence = 0;
        while let Seen::Event(encoded) = seen.recv().await.expect("a drain") {
            sequence += 1;
            assert_eq!(encoded.sequence, sequence);
        }
        assert!(sequence >= 5, "every accepted event came before the drain");
    }
    server.ended.await.expect("no panic").expect("a clean end");
    let gone = TcpStream::connect(server.control).await.expect_err("nobody listens");
    assert_eq!(gone.kind(), ErrorKind::ConnectionRefused);
}

/// What the hub says next to a shard that nobody plays.
async fn next(inbox: &Inbox) -> Message {
    loop {
        match inbox.try_recv() {
            Some(message) => return message,
            None => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn no_shard_is_told_to_end_before_all_are_done() {
    let server = serve(2, Limits::default(), None);
    server.drain.notify_one();
    let mut drains = Vec::new();
    for inbox in &server.inboxes {
        let Message::Drain(drain) = next(inbox).await else { panic!("the drain comes first") };
        drains.push(drain);
    }
    drains[0].say_done();
    // The control API serves as long as a shard delivers.
    assert!(ask(server.control, "GET", "/healthz", "").await.starts_with("HTTP/1.1 503"));
    assert!(server.inboxes[0].try_recv().is_none(), "the other shard is not done");
    drains[1].say_done();
    for inbox in &server.inboxes {
        assert!(matches!(next(inbox).await, Message::End));
    }
    // By the time that shards end, nobody can ask any more who has ended.
    let gone = TcpStream::connect(server.control).await.expect_err("nobody listens");
    assert_eq!(gone.kind(), ErrorKind::ConnectionRefused);
    for shard in [0, 1] {
        server.ends.send(ShardEnd { shard, result: Ok(()) }).expect("it runs");
    }
    server.ended.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn an_endless_publish_gets_its_summary_at_the_drain() {
    let mut server = serve(1, Limits::default(), None);
    let mut seen = server.start_shard(0);
    let mut socket = TcpStream::connect(server.control).await.expect("it listens");
    let head = "POST /publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.expect("sent");
    let mut buffer = [0; 4_096];
    let count = socket.read(&mut buffer).await.expect("an answer while the request is open");
    assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
    let line = "{\"topic\":\"a\",\"data\":\"1\"}\n";
    socket.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await.expect("sent");
    assert_eq!(events(&mut seen, 1).await, [(1, "1".into())]);
    server.drain.notify_one();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("a proper end");
    assert!(
        answer.contains(&format!("\"accepted\":1,\"refused\":0,\"last_id\":\"{EPOCH_TEXT}-1\"")),
        "{answer}"
    );
    assert!(answer.contains("lines from 2 on were not taken"), "{answer}");
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    server.ended.await.expect("no panic").expect("a clean end");
}

#[tokio::test]
async fn an_idle_control_connection_does_not_hold_up_the_end() {
    let mut server = serve(1, Limits::default(), None);
    let mut seen = server.start_shard(0);
    let mut socket = TcpStream::connect(server.control).await.expect("it listens");
    socket.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
    let mut buffer = [0; 4_096];
    assert!(socket.read(&mut buffer).await.expect("an answer") > 0);
    server.drain.notify_one();
    assert!(matches!(seen.recv().await, Some(Seen::Drain)));
    server.ended.await.expect("no panic").expect("a clean end");
    assert_eq!(socket.read(&mut buffer).await.expect("a proper end"), 0);
}

#[tokio::test]
async fn a_shard_that_fails_ends_the_server_by_name_and_drains_the_others() {
    for result in [Err("the ring broke".to_string()), Ok(())] {
        let mut server = serve(2, Limits::default(), None);
        drop(server.inboxes.remove(1));
        let mut seen = server.start_shard(0);
        server.ends.send(ShardEnd::new(1, result.clone())).expect("it runs");
        assert!(matches!(seen.recv().await, Some(Seen::Drain)));
        let error = server.ended.await.expect("no panic").expect_err("a failure");
        let cause = result.err().unwrap_or("ended without being told to".into());
        assert_eq!(error.to_string(), format!("shard 1: {cause}"));
    }
}

#[tokio::test(start_paused = true)]
async fn shards_that_do_not_end_are_named_and_not_waited_for() {
    let mut server = serve(3, Limits { shard_queue_batches_max: 1, ..Limits::default() }, None);
    let mut seen = server.start_shard(0);
    server.drain.notify_one();
    assert!(matches!(seen.recv().await, Some(Seen::Drain)));
    let error = server.ended.await.expect("no panic").expect_err("two shards are stuck");
    assert!(matches!(&error, HubError::Unfinished(shards) if *shards == [1, 2]), "{error}");
}

#[tokio::test]
async fn a_publisher_of_too_much_reads_its_answer() {
    let server = serve(1, Limits { message_bytes_max: 1_000, ..Limits::default() }, None);
    let answer = ask(server.control, "POST", "/topics/a", &"x".repeat(3_000_000)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("3000000"), "{answer}");
}

#[tokio::test]
async fn the_control_api_listens_on_a_unix_socket_too() {
    let directory = std::env::temp_dir().join(format!("fanwave-hub-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let path = directory.join("control");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a fresh path");
    listener.set_nonblocking(true).expect("a socket");
    let mut server = serve(1, Limits::default(), Some(ControlListener::Unix(listener)));
    let mut seen = server.start_shard(0);
    let mut socket = UnixStream::connect(&path).await.expect("it listens");
    std::fs::remove_dir_all(&directory).expect("our own directory");
    let request = "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
    socket.write_all(request.as_bytes()).await.expect("sent");
    // A client that half-closes after its request still gets the answer.
    socket.shutdown().await.expect("half-closed");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(events(&mut seen, 1).await, [(1, "x".into())]);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stood_still_has_lost_no_time_in_which_its_shards_may_end() {
    let shards = Arc::new(Notify::new());
    let theirs = shards.clone();
    let ends = tokio::spawn(is_done_within(DRAIN_GRACE_MS, async move { theirs.notified().await }));
    tokio::task::yield_now().await;
    tokio::time::advance(Duration::from_millis(10 * DRAIN_GRACE_MS)).await;
    tokio::task::yield_now().await;
    shards.notify_one();
    assert!(ends.await.expect("no panic"));
}

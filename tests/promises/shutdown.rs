//! Claim: SIGTERM and SIGINT lose nothing that was accepted, refuse what comes, and end the process
//! in time.
//!
//! Set-up: subscribers with a backlog that their sockets do not take, so that the drain is held
//! open for as long as the test wants; publishers, probes and new subscribers that come meanwhile;
//! a subscriber that never reads.
//!
//! Expectation: a subscriber that reads gets everything accepted and then its end (WebSocket 1012,
//! SSE end of stream); meanwhile `/healthz` and publishers get 503; exit code 0, at the latest
//! after `--drain-ms-max`. A second signal ends the process at once.

use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::support::peer::request;
use crate::support::raw::exchange;
use crate::support::slow::{number_of, publish_until_stuck};
use crate::support::{Protocol, Said, Server, Subscriber, until, within};

async fn await_draining(server: &Server) {
    until("the drain to begin", async || (server.get("/healthz").await.status == 503).then_some(())).await;
}

/// The subscriber reads everything from 0 to `next`, then its proper end.
async fn read_all_and_end(subscriber: &mut Subscriber, from: usize, next: usize) {
    for number in from..next {
        assert_eq!(number_of(&subscriber.text().await), number, "what was accepted arrives");
    }
    let said = subscriber.news().await;
    match subscriber.protocol {
        Protocol::Sse => assert_eq!(said, Said::End),
        Protocol::WebSocket => {
            assert!(matches!(&said, Said::Close(1012, reason) if reason.contains("draining")), "{said:?}");
            assert_eq!(subscriber.next().await, Said::End);
        }
    }
}

async fn drained(slow: Protocol, fast: Protocol, signal: Signal) {
    let mut server =
        Server::start(&["--shards", "2", "--drain-ms-max", "120000", "--stall-ms-max", "120000"]);
    let mut behind = Subscriber::connect(server.data, slow, &["t"]).await;
    let mut others = [Subscriber::connect(server.data, fast, &["t"]).await];
    let next = publish_until_stuck(&server, "t", slow, &mut others, 0, 10).await;
    server.signal(signal);
    await_draining(&server).await;

    let [mut other] = others;
    read_all_and_end(&mut other, next, next).await;
    let refused = server.answer(server.post("/topics/t").body("late")).await;
    assert_eq!((refused.status, refused.retry_after.as_deref()), (503, Some("1")), "{refused:?}");
    assert_eq!(refused.error(), "draining");
    let refused = server.answer(server.post("/publish").body("{\"topic\":\"t\",\"data\":\"late\"}\n")).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(server.runs(), "a subscriber with a backlog holds the drain open");

    read_all_and_end(&mut behind, 0, next).await;
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_backlog_reaches_an_event_stream_before_sigterm_ends_it() {
    drained(Protocol::Sse, Protocol::WebSocket, Signal::TERM).await;
}

#[tokio::test]
async fn a_backlog_reaches_a_websocket_before_sigint_ends_it() {
    drained(Protocol::WebSocket, Protocol::Sse, Signal::INT).await;
}

/// New subscribers and probes of the data plane are answered while the drain lasts.
#[tokio::test]
async fn a_draining_data_plane_answers_503() {
    let server = Server::start(&["--shards", "1", "--drain-ms-max", "120000", "--stall-ms-max", "120000"]);
    let _behind = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    publish_until_stuck(&server, "t", Protocol::Sse, &mut [], 0, 3).await;
    server.signal(Signal::TERM);
    await_draining(&server).await;
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let refused = exchange(server.data, request(protocol, &["t"], None).as_bytes()).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!((1..=4).contains(&refused.retry_after_s()), "{refused:?}");
        assert!(refused.line().contains("draining"));
    }
    let probe = exchange(server.data, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((probe.status, probe.line()), (503, "draining"));
    server.await_closed("draining", 2).await;
}

/// A shard whose own subscribers have gone answers and counts until those of the others have.
#[tokio::test]
async fn every_shard_of_a_draining_data_plane_answers_503() {
    let mut server =
        Server::start(&["--shards", "2", "--drain-ms-max", "120000", "--stall-ms-max", "120000"]);
    let mut behind = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let next = publish_until_stuck(&server, "t", Protocol::Sse, &mut [], 0, 3).await;
    server.signal(Signal::TERM);
    await_draining(&server).await;
    let accepted = async || {
        let stats = server.stats().await;
        [0, 1].map(|shard| stats["shards"][shard]["accepted"].as_u64())
    };
    let before = accepted().await.map(|count| count.expect("both shards run"));
    until("many probes of both shards", async || {
        let probe = exchange(server.data, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert_eq!((probe.status, probe.line()), (503, "draining"));
        let now = accepted().await;
        let enough = |shard: usize| now[shard].is_some_and(|now| now >= before[shard] + 30);
        (enough(0) && enough(1)).then_some(())
    })
    .await;
    read_all_and_end(&mut behind, 0, next).await;
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_subscriber_that_never_reads_is_cut_off_at_the_limit() {
    let mut server = Server::start(&["--shards", "1", "--drain-ms-max", "1000", "--stall-ms-max", "120000"]);
    let _stalled = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    publish_until_stuck(&server, "t", Protocol::WebSocket, &mut [], 0, 3).await;
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let mut server =
        Server::start(&["--shards", "1", "--drain-ms-max", "3600000", "--stall-ms-max", "3600000"]);
    let _stalled = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    publish_until_stuck(&server, "t", Protocol::Sse, &mut [], 0, 3).await;
    server.signal(Signal::TERM);
    await_draining(&server).await;
    assert!(server.runs());
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(1));
}

#[tokio::test]
async fn an_idle_server_ends_with_its_connections() {
    let mut server = Server::start(&["--shards", "2"]);
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        for _ in 0..10 {
            subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
        }
    }
    let half = within("a connection", tokio::net::TcpStream::connect(server.data)).await.expect("accepted");
    server.signal(Signal::TERM);
    for subscriber in &mut subscribers {
        read_all_and_end(subscriber, 0, 0).await;
    }
    assert_eq!(server.ended().await.code(), Some(0));
    drop(half);
}

/// A stream of NDJSON that is open when the drain begins is told how far it came; so far everything
/// arrives.
#[tokio::test]
async fn an_open_publish_ends_with_its_summary() {
    let mut server = Server::start(&["--shards", "1"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let (chunks, mut receiver) = mpsc::channel::<String>(1);
    let body = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    let body = futures_util::StreamExt::map(body, Ok::<_, std::io::Error>);
    let request = server.post("/publish").body(reqwest::Body::wrap_stream(body));
    let lines: String = (0..500).map(|n| format!("{{\"topic\":\"t\",\"data\":\"{n} \"}}\n")).collect();
    within("room for a chunk", chunks.send(lines)).await.expect("an open request");
    let response = within("the head of the answer", request.send()).await.expect("an answer at once");
    assert_eq!(subscriber.text().await, "0 ");
    server.signal(Signal::TERM);
    let summary = within("the summary", response.text()).await.expect("an answer to its end");
    let summary: Value = serde_json::from_str(&summary).expect("one line");
    let accepted = summary["accepted"].as_u64().expect("a number") as usize;
    assert!(summary["error"].as_str().is_some_and(|error| error.contains("draining")), "{summary}");
    read_all_and_end(&mut subscriber, 1, accepted).await;
    assert_eq!(server.ended().await.code(), Some(0));
    drop(chunks);
}

//! Claim: the log says who came and what they got if it is asked to, in lines for people or for
//! programs; clients cannot fill it; no token gets into it.
//!
//! Set-up: servers with `--access-log` and `--log-format json`; a slow subscriber and one that
//! names a token; a flood of malformed requests.
//!
//! Expectation: a line for each subscriber that comes and goes, whose events and bytes are those of
//! `/stats`; a bounded number of lines about the flood, which tell how many were left out.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::raw::exchange;
use crate::support::slow::publish_until_stuck;
use crate::support::{Protocol, Server, Subscriber};

/// The lines of the log of a server that is told to end, each a JSON object.
async fn lines_of_ended(server: Server) -> Vec<Value> {
    let log = log_of_ended(server).await;
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

async fn log_of_ended(mut server: Server) -> String {
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(0));
    server.log()
}

/// The access lines with this message.
fn access<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["target"] == "access" && line["message"] == message).collect()
}

#[tokio::test]
async fn each_subscriber_has_a_line_when_it_comes_and_one_with_what_it_got() {
    let server = Server::start(&["--shards", "1", "--log-format", "json", "--access-log"]);
    let request = "GET /sse?topic=t&token=sEcReT HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut sse = Subscriber::request(server.data, Protocol::Sse, request).await;
    let topics = ["1", "2", "3", "4", "5", "6"];
    let websocket = Subscriber::connect(server.data, Protocol::WebSocket, &topics).await;
    for number in 0..3 {
        server.publish("t", number.to_string()).await;
        assert_eq!(sse.text().await, number.to_string());
    }
    let peers = [sse.address().to_string(), websocket.address().to_string()];
    drop(sse);
    server.await_closed("client_gone", 1).await;
    let counters = server.stats().await["totals"]["formats"]["sse"].clone();
    let lines = lines_of_ended(server).await;

    let came = access(&lines, "subscribed");
    assert_eq!((came.len(), &came[0]["peer"], &came[1]["peer"]), (2, &json!(peers[0]), &json!(peers[1])));
    assert_eq!((&came[0]["topics"], &came[0]["format"]), (&json!("[\"t\"]"), &json!("sse")));
    let told = json!("[\"1\", \"2\", \"3\", \"4\"]");
    assert_eq!((&came[1]["topics"], &came[1]["more_topics"]), (&told, &json!(2)));
    let went = access(&lines, "closed");
    assert_eq!((went.len(), &went[0]["peer"], &went[1]["peer"]), (2, &json!(peers[0]), &json!(peers[1])));
    assert_eq!((&went[0]["reason"], &went[1]["reason"]), (&json!("client_gone"), &json!("draining")));
    assert_eq!((&went[0]["events"], &went[0]["bytes"]), (&json!(3), &counters["bytes"]));
    assert!(went[0]["seconds"].as_f64() > Some(0.0), "{}", went[0]);
    assert_eq!((&went[1]["topics"], &went[1]["events"]), (&told, &json!(0)));
    assert!(!lines.iter().any(|line| line.to_string().contains("sEcReT")), "no line tells a token");
}

#[tokio::test]
async fn what_a_slow_subscriber_got_is_told_exactly() {
    let server = Server::start(&["--shards", "1", "--log-format", "json", "--access-log"]);
    let mut slow = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    let count = publish_until_stuck(&server, "t", Protocol::WebSocket, &mut [], 0, 3).await;
    slow.texts(count).await;
    drop(slow);
    server.await_closed("client_gone", 1).await;
    let counters = server.stats().await["totals"]["formats"]["websocket"].clone();
    let lines = lines_of_ended(server).await;
    let went = access(&lines, "closed");
    assert_eq!((went.len(), &went[0]["events"], &went[0]["bytes"]), (1, &json!(count), &counters["bytes"]));
    assert_eq!(counters["frames"], count);
}

#[tokio::test]
async fn without_an_access_log_nobody_is_told_of() {
    let server = Server::start(&["--shards", "1"]);
    drop(Subscriber::connect(server.data, Protocol::Sse, &["t"]).await);
    server.await_closed("client_gone", 1).await;
    let log = log_of_ended(server).await;
    assert!(log.contains("draining") && !log.contains("access") && !log.contains("subscribed"), "{log}");
}

#[tokio::test]
async fn a_flood_of_refusals_has_a_bounded_number_of_lines_that_tell_what_was_left_out() {
    let server = Server::start(&["--shards", "1", "--log-format", "json"]);
    let begin = Instant::now();
    let mut refused = 0;
    // Into another second, which has lines again: the first of them tells what was left out.
    while begin.elapsed() < Duration::from_secs(2) {
        assert_eq!(exchange(server.data, b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n").await.status, 400);
        refused += 1;
    }
    let seconds = begin.elapsed().as_secs() + 2;
    let lines = lines_of_ended(server).await;
    let about: Vec<&Value> = lines.iter().filter(|line| line["reason"] == "bad_request").collect();
    assert!(about.len() as u64 <= 10 * seconds, "{} lines in {seconds} s", about.len());
    let left_out: u64 = about.iter().filter_map(|line| line["left_out"].as_u64()).sum();
    // Each refusal has two lines: as such, and as the reason for the end of its connection. Those
    // that were left out of the last second are not told any more.
    let told = about.len() as u64 + left_out;
    assert!((about.len() as u64..=2 * refused).contains(&told), "{told} were told or counted of {refused}");
    assert!(refused <= 20 || left_out > 0, "a flood of {refused} leaves lines out");
}

//! Request heads that no route sees: what is told of them, to whom asked and to the operator.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::log::Log;
use super::*;
use crate::hub::seats::Seats;
use crate::hub::{RefusalCounts, RefusalReason, listen};
use crate::wire::http::HEADERS_MAX;

/// A control connection without a socket; the task is the server's side.
fn connect(bench: &Bench) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = duplex(64 << 10);
    let seat = Seats::new(16).take();
    (client, tokio::spawn(listen::serve(server, bench.router.clone(), bench.hub.clone(), seat)))
}

/// What the server says to somebody who sends `bytes`, and then ends its side or waits for ever.
async fn exchange(bench: &Bench, bytes: &[u8], ends: bool) -> String {
    let (mut client, served) = connect(bench);
    client.write_all(bytes).await.expect("room");
    if ends {
        client.shutdown().await.expect("open");
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("a proper end");
    drop(client);
    served.await.expect("no panic");
    answer
}

fn refused(bench: &Bench) -> RefusalCounts {
    bench.hub.intake().counters().refused.clone()
}

#[track_caller]
fn assert_told(answer: &str, status: &str, word: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some(format!("HTTP/1.1 {status}").as_str()), "{word}");
    let length = format!("content-length: {}", body.len());
    let mut fields: Vec<&str> = lines.collect();
    let date = fields.pop().and_then(|last| last.strip_prefix("date: ")).expect("a date");
    httpdate::parse_http_date(date).expect("a date of HTTP");
    assert_eq!(fields, ["content-type: application/json", "connection: close", &length]);
    let json: Value = serde_json::from_str(body).expect("JSON");
    let error = json["error"].as_str().expect("an error");
    assert!(error.contains(word) && !error.contains('\n'), "no {word:?} in {error:?}");
}

const BAD: &str = "400 Bad Request";
const LONG: &str = "414 URI Too Long";
const LARGE: &str = "431 Request Header Fields Too Large";

#[tokio::test(start_paused = true)]
async fn a_head_that_no_route_sees_is_told_and_counted_under_its_reason() {
    use RefusalReason::*;
    let bench = bench(1, Limits { handshake_bytes_max: 2_000, ..Limits::default() });
    let get = |fields: &str| format!("GET / HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let mut expected = RefusalCounts::default();
    for (bytes, ends, status, word, reason) in [
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_string(), false, BAD, "method", BadHead),
        ("GET / HTTP/3.0\r\n\r\n".to_string(), false, BAD, "version", BadHead),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_string(), false, BAD, "HTTP2", BadHead),
        ("GET / HTTP/1.x\r\n\r\n".to_string(), false, BAD, "version", BadHead),
        (get("no colon\r\n"), false, BAD, "header", BadHead),
        ("GET /topics/<b> HTTP/1.1\r\nHost: localhost\r\n\r\n".to_string(), false, BAD, "URI", BadHead),
        (get("Content-Length: x\r\n"), false, BAD, "content-length", BadHead),
        ("GET / HT".to_string(), true, BAD, "breaks off", BadHead),
        (get(&format!("X: {}\r\n", "x".repeat(2_000))), false, LARGE, "2000 bytes", HeadTooLarge),
        (format!("GET /{}", "x".repeat(10_000)), false, LONG, "too long", TargetTooLong),
        (format!("\r\nGET /{} HTTP/1.1\r\n\r\n", "x".repeat(2_000)), false, LONG, "too long", TargetTooLong),
        (get(&"x: y\r\n".repeat(HEADERS_MAX)), false, LARGE, "64 fields", HeadTooLarge),
        ("\r\nGET / HT".to_string(), false, "408 Request Timeout", "60000 ms", HeadTimeout),
    ] {
        assert_told(&exchange(&bench, bytes.as_bytes(), ends).await, status, word);
        expected.add(reason);
        assert_eq!(refused(&bench), expected, "{word}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_nothing_is_refused_nothing() {
    let bench = bench(1, Limits::default());
    for (bytes, ends) in [("", true), ("\r\n", true), ("", false), ("\r\n", false)] {
        assert_eq!(exchange(&bench, bytes.as_bytes(), ends).await, "", "{bytes:?}");
    }
    // Between two requests as well, whether client or server ends the connection, and after a body.
    for ends in [true, false] {
        let requests = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n\
            POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx";
        let answers = exchange(&bench, requests.as_bytes(), ends).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answers}");
        assert_eq!(answers.matches("HTTP/1.1").count(), 2, "{answers}");
    }
    assert_eq!(refused(&bench), RefusalCounts::default());
}

#[tokio::test(start_paused = true)]
async fn a_later_head_of_a_connection_is_counted_too() {
    let bench = bench(1, Limits::default());
    let mut expected = RefusalCounts::default();
    for (second, ends, status, reason) in [
        ("GET nothing\r\n\r\n", false, Some("HTTP/1.1 400"), RefusalReason::BadHead),
        ("GET / HT", true, None, RefusalReason::BadHead),
        ("GET / HT", false, None, RefusalReason::HeadTimeout),
    ] {
        let bytes = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n{second}");
        let answers = exchange(&bench, bytes.as_bytes(), ends).await;
        let rest = answers.strip_prefix("HTTP/1.1 200 OK\r\n").expect("the first answer");
        assert_eq!(rest.find("HTTP/1.1").map(|at| &rest[at..at + 12]), status, "{answers}");
        expected.add(reason);
        assert_eq!(refused(&bench), expected, "{second}");
    }
}

#[tokio::test]
async fn a_client_that_still_sends_reads_why_its_head_was_refused() {
    let bench = bench(1, Limits::default());
    let (mut client, served) = connect(&bench);
    client.write_all(&[b'x'; 32 << 10]).await.expect("room");
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer, *b"HTTP/1.1 414");
    client.write_all(&[b'x'; 256 << 10]).await.expect("the server reads on");
    drop(client);
    served.await.expect("no panic");
}

#[tokio::test(start_paused = true)]
async fn a_refused_head_is_a_line_in_the_log() {
    let bench = bench(1, Limits::default());
    let log = Log::start();
    exchange(&bench, b"GET / HTTP/3.0\r\n\r\n", false).await;
    exchange(&bench, b"", true).await;
    let lines = log.lines();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let words = ["DEBUG", "bad_head", "the request head is malformed: invalid HTTP version parsed"];
    assert!(words.iter().all(|word| lines[0].contains(word)), "{lines:?}");
}

/// hyper takes 1.0 and 1.1 alone; RFC 9110 §2.5 wants later minor versions to be taken for the
/// latest that we speak.
#[tokio::test(start_paused = true)]
async fn a_later_minor_version_is_served_as_the_latest_that_is_known() {
    let bench = bench(1, Limits::default());
    for version in ["1.2", "1.9"] {
        let head = format!("GET /healthz HTTP/{version}\r\nHost: localhost\r\n\r\n");
        let answer = exchange(&bench, head.as_bytes(), false).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
    }
    // Wherever the head is cut.
    let (mut client, served) = connect(&bench);
    for byte in b"GET /a HTTP/1.2\r\nHost: localhost\r\n\r\n" {
        client.write_all(&[*byte]).await.expect("room");
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("a proper end");
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    served.await.expect("no panic");
    assert_eq!(refused(&bench).get(RefusalReason::BadHead), 0);
}

#[tokio::test]
async fn a_seat_that_is_needed_ends_its_silent_connection() {
    let bench = bench(1, Limits::default());
    let mut seats = Seats::new(1);
    let (mut client, server) = duplex(64);
    let seat = seats.take();
    let served = tokio::spawn(listen::serve(server, bench.router.clone(), bench.hub.clone(), seat));
    client.write_all(b"GET / HT").await.expect("room");
    seats.make_room(std::time::Duration::ZERO, None);
    assert_eq!(client.read(&mut [0; 8]).await.expect("an end"), 0);
    served.await.expect("no panic");
}

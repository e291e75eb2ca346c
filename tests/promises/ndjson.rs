//! Claim: a stream of NDJSON goes on whatever single lines are, tells which of them were wrong, and
//! may last for ever.
//!
//! Set-up: one `POST /publish` with good lines between garbage of every kind; one whose body stays
//! open.
//!
//! Expectation: good lines arrive in order, each refused one is answered with its number and its
//! reason, the summary counts both. On an open request events and error lines come through at once.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::subscriber::Event;
use crate::support::{Protocol, Server, Subscriber, within};

#[tokio::test]
async fn garbage_lines_are_told_by_number_and_the_rest_goes_on() {
    let server = Server::start(&["--shards", "2", "--message-bytes-max", "1000"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let large = format!("{{\"topic\":\"t\",\"data\":\"{}\"}}", "x".repeat(1_001));
    let endless = "y".repeat(100_000);
    let lines: [(&[u8], Option<&str>); 23] = [
        (br#"{"topic":"t","data":"first"}"#, None),
        (b"garbage", Some("a line is a JSON object")),
        (b"null", Some("a line is a JSON object")),
        (br#"["t","array",null,null,null,null]"#, Some("a line is a JSON object")),
        (br#"{"topic":"t","data":"\ud800"}"#, Some("at column 28")),
        (b"", None),
        (br#"{"topic":"t","data":"unfinished"#, Some("EOF")),
        (br#"{"topic":"","data":"x"}"#, Some("empty")),
        (br#"{"data":"x"}"#, Some("topic")),
        (br#"{"topic":"t"}"#, Some("`data` or `base64`")),
        (br#"{"topic":"t","data":"x","base64":"eA=="}"#, Some("both")),
        (br#"{"topic":"t","base64":"?"}"#, Some("base64")),
        (br#"{"topic":"t","data":"x","id":"a\u0000b"}"#, Some("id")),
        (br#"{"topic":"t","data":"x","id":"a\nb"}"#, Some("line break")),
        (br#"{"topic":"t","data":"x","id":"23z405fz79tds-7"}"#, Some("the server's own ids")),
        (br#"{"topic":"t","data":"x","event":"fanwave-gap"}"#, Some("the server's own notice")),
        (br#"{"topic":"t","data":"x","retry":-1}"#, Some("-1")),
        (br#"{"topic":"t","data":"x","evnt":"y"}"#, Some("evnt")),
        (b"{\"topic\":\"t\",\"data\":\"\xff\"}", Some("UTF-8")),
        (large.as_bytes(), Some("1001 bytes")),
        (endless.as_bytes(), Some("bytes and was skipped")),
        (br#"{"topic":"t","base64":"AP8=","event":"e","id":"i","retry":7}"#, None),
        // The last line needs no line break.
        (br#"{"topic":"t","data":{"a" : [1, 2.50, " x "]}}"#, None),
    ];
    let body = lines.map(|(line, _)| line).join(&b'\n');
    let answer = server.answer(server.post("/publish").body(body)).await;
    assert_eq!(answer.status, 200);
    let mut told = answer.body.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    for (number, part) in (1..).zip(lines.map(|(_, part)| part)) {
        let Some(part) = part else { continue };
        let line = told.next().expect("a line per refused event");
        assert_eq!(line["line"], number, "{line}");
        assert!(line["error"].as_str().is_some_and(|text| text.contains(part)), "no {part:?} in {line}");
    }
    let summary = told.next().expect("a summary");
    assert_eq!((&summary["accepted"], &summary["refused"]), (&3.into(), &19.into()), "{summary}");
    assert_eq!(told.next(), None);

    assert_eq!(subscriber.text().await, "first");
    let named = subscriber.event().await;
    let expected = Event {
        id: Some("i".into()),
        name: Some("e".into()),
        retry: Some(7),
        data: b"AP8=".to_vec(),
        binary: false,
    };
    assert_eq!(named, expected);
    let last = subscriber.event().await;
    assert_eq!(last.text(), r#"{"a":[1,2.50," x "]}"#, "JSON data travels as its text");
    assert_eq!(last.id.as_deref(), summary["last_id"].as_str());
}

#[tokio::test]
async fn an_open_request_publishes_and_answers_at_once() {
    let server = Server::start(&["--shards", "1"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    let (chunks, mut receiver) = mpsc::channel::<&'static str>(1);
    let body = futures_util::stream::poll_fn(move |context| receiver.poll_recv(context));
    let body = futures_util::StreamExt::map(body, Ok::<_, std::io::Error>);
    let request = server.post("/publish").body(reqwest::Body::wrap_stream(body));
    let send = async |chunk| within("room for a chunk", chunks.send(chunk)).await.expect("an open request");

    send("{\"topic\":\"t\",\"data\":\"1\"}\n{\"topic\":").await;
    let mut response = within("the head of the answer", request.send()).await.expect("an answer at once");
    assert_eq!(subscriber.text().await, "1");
    send("\"t\",\"data\":\"2\"}\n").await;
    assert_eq!(subscriber.text().await, "2", "a line cut between two chunks is one line");
    send("nonsense\n").await;
    let line = within("the error line", response.chunk()).await.expect("open").expect("not the end");
    let line: Value = serde_json::from_slice(&line).expect("one line of JSON");
    assert_eq!(line["line"], 3);
    send("{\"topic\":\"t\",\"data\":\"3\"}\n").await;
    assert_eq!(subscriber.text().await, "3");
    drop(chunks);
    let rest = within("the summary", response.text()).await.expect("the end");
    let summary: Value = serde_json::from_str(&rest).expect("one line");
    let last = summary["last_id"].as_str().expect("an id");
    assert!(last.ends_with("-3"), "{summary}");
    assert_eq!(summary, json!({ "accepted": 3, "refused": 1, "last_id": last }));
}

/// The publisher is gone in the middle of a line: what was whole is published, the rest is not.
#[tokio::test]
async fn a_request_that_breaks_off_publishes_its_whole_lines() {
    use tokio::io::AsyncWriteExt;

    let server = Server::start(&["--shards", "1"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let mut socket =
        within("a connection", tokio::net::TcpStream::connect(server.control)).await.expect("accepted");
    let whole = "{\"topic\":\"t\",\"data\":\"whole\"}\n";
    let head = format!("POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{whole}");
    within("room", socket.write_all(head.as_bytes())).await.expect("open");
    within("room", socket.write_all(b"{\"topic\":\"t\",\"da")).await.expect("open");
    assert_eq!(subscriber.text().await, "whole");
    drop(socket);
    crate::support::until("the broken line to be counted", async || {
        (server.stats().await["hub"]["refused"]["body_broken"] == 1).then_some(())
    })
    .await;
    server.publish("t", "after").await;
    assert_eq!(subscriber.text().await, "after");
}

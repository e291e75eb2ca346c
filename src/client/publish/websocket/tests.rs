use serde_json::{Value, json};

use super::super::super::fixtures::{End, listener};
use super::super::tests::{Outcome, publish_to};
use super::*;

/// Answers that a publish was taken.
async fn take(end: &mut End, number: Value, sequence: u64) {
    let id = format!("10-{sequence}");
    end.say(json!({ "ref": number, "ok": { "id": id, "sequence": sequence } })).await;
}

async fn publish(url: &str, args: &[&str], input: impl AsyncRead + Send + Unpin + 'static) -> Outcome {
    publish_to(PATIENCE, &["--ws", url], args, input).await
}

const PATIENCE: Patience = super::super::PATIENCE;

#[tokio::test]
async fn an_event_is_said_with_all_that_its_flags_say_and_its_id_is_printed() {
    let (listener, url) = listener("http").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        assert_eq!(end.target, "/ws");
        let (number, publish) = end.hear("publish").await;
        end.say(json!({ "topic": "t", "id": "10-6", "data": "news of others" })).await;
        take(&mut end, number, 7).await;
        assert!(matches!(end.socket.next().await, Some(Ok(Message::Close(_)))), "the client takes leave");
        publish
    };
    let flags = ["--event", "e", "--id", "i", "--retry", "5", "--key", "k", "--idempotency-key", "once"];
    let args = [&["t", "hi \"you\""][..], &flags].concat();
    let (said, (result, out, notes)) = tokio::join!(server, publish(&url, &args, tokio::io::empty()));
    result.expect("published");
    let expected = json!({
        "topic": "t", "data": "hi \"you\"", "event": "e", "id": "i", "retry": 5, "key": "k",
        "idempotency_key": "once",
    });
    assert_eq!((said, out.as_str(), notes.as_str()), (expected, "10-7\n", ""));
}

#[tokio::test]
async fn standard_input_is_one_event_and_may_be_bytes() {
    for (args, input, event) in [
        (&["t"][..], &b"a\nb\r\n"[..], json!({ "topic": "t", "data": "a\nb" })),
        (&["t", "--binary"], b"\0\xff\n", json!({ "topic": "t", "base64": "AP8K" })),
    ] {
        let (listener, url) = listener("http").await;
        let server = async {
            let mut end = End::accept(&listener).await;
            let (number, publish) = end.hear("publish").await;
            take(&mut end, number, 7).await;
            publish
        };
        let (said, (result, _, _)) = tokio::join!(server, publish(&url, args, input));
        result.expect("published");
        assert_eq!(said, event);
    }
    let (result, _, _) = publish("ws://127.0.0.1:1", &["t"], &b"\xff"[..]).await;
    let Err(ClientError::Usage(line)) = result else { panic!("{result:?}") };
    assert_eq!(line, "the data is not UTF-8 at byte 0; --binary publishes any bytes");
}

#[tokio::test]
async fn a_server_without_room_is_asked_again_and_any_other_error_is_told_by_its_code() {
    let (listener, url) = listener("http").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        for code in ["full", "busy", "not_allowed"] {
            let (number, publish) = end.hear("publish").await;
            assert_eq!(publish["data"], "x");
            end.refuse(number, code).await;
        }
    };
    let ((), (result, out, notes)) = tokio::join!(server, publish(&url, &["t", "x"], tokio::io::empty()));
    assert!(
        matches!(&result, Err(ClientError::Refused(line)) if line == "not_allowed: not now"),
        "{result:?}"
    );
    assert_eq!(out, "");
    assert_eq!(notes.matches("; trying again in 0.").count(), 2, "{notes}");
    assert!(notes.contains("full: not now") && notes.contains("busy: not now"), "{notes}");
}

#[tokio::test]
async fn a_server_without_a_place_for_the_connection_is_asked_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (listener, url) = listener("http").await;
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.read_u8().await.expect("a request");
        let answer =
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 8\r\n\r\nno room\n";
        stream.write_all(answer.as_bytes()).await.expect("the client reads");
        let mut end = End::accept(&listener).await;
        let (number, _) = end.hear("publish").await;
        take(&mut end, number, 7).await;
        end
    };
    let (_, (result, out, notes)) = tokio::join!(server, publish(&url, &["t", "x"], tokio::io::empty()));
    result.expect("published");
    assert_eq!(out, "10-7\n");
    assert!(notes.contains("503 Service Unavailable: no room; trying again in 0.1 s"), "{notes}");
}

#[tokio::test]
async fn an_event_without_an_answer_may_or_may_not_be_published() {
    let (listener, url) = listener("http").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        end.hear("publish").await;
        end.close(1012).await;
        let mut end = End::accept(&listener).await;
        end.hear("publish").await;
        end.close(1009).await;
    };
    let two = async {
        let first = publish(&url, &["t", "x"], tokio::io::empty()).await.0;
        (first, publish(&url, &["t", "x"], tokio::io::empty()).await.0)
    };
    let ((), (first, second)) = tokio::join!(server, two);
    let Err(ClientError::Unreachable(line)) = first else { panic!("{first:?}") };
    let told = format!("{url}/: closed: 1012 enough; what was sent may or may not be published");
    assert_eq!(line, told);
    assert!(
        matches!(&second, Err(ClientError::Refused(line)) if line == "closed: 1009 enough"),
        "{second:?}"
    );
}

#[tokio::test]
async fn lines_are_under_way_together_up_to_a_bound() {
    let (listener, url) = listener("http").await;
    let lines: String = (1..=100).map(|number| format!("{number}\n")).collect();
    let server = async {
        let mut end = End::accept(&listener).await;
        let mut numbers = Vec::new();
        for expected in 1..=UNANSWERED_MAX as u64 {
            let (number, publish) = end.hear("publish").await;
            assert_eq!((&number, &publish["data"]), (&json!(expected), &json!(expected.to_string())));
            numbers.push(number);
        }
        // No more of them comes before an answer.
        end.socket.send(Message::Ping("more?".into())).await.expect("open");
        assert!(matches!(end.socket.next().await, Some(Ok(Message::Pong(_)))), "it waits");
        for sequence in 1..=100 {
            take(&mut end, numbers.remove(0), sequence).await;
            if sequence <= 100 - UNANSWERED_MAX as u64 {
                numbers.push(end.hear("publish").await.0);
            }
        }
    };
    let input = std::io::Cursor::new(lines);
    let ((), (result, out, notes)) = tokio::join!(server, publish(&url, &["t", "--lines"], input));
    result.expect("all are taken");
    let summary: Value = serde_json::from_str(&out).expect("a summary");
    assert_eq!(summary, json!({ "accepted": 100, "refused": 0, "last_id": "10-100" }));
    assert_eq!(notes, "");
}

#[tokio::test]
async fn a_refused_line_costs_no_other_and_one_without_room_comes_again() {
    let (listener, url) = listener("http").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        let mut numbers = Vec::new();
        for (number, data) in [(1, "one"), (3, "three"), (4, "four")] {
            let (said, publish) = end.hear("publish").await;
            assert_eq!((&said, &publish["data"]), (&json!(number), &json!(data)));
            numbers.push(said);
        }
        let [one, three, four] = <[Value; 3]>::try_from(numbers).expect("three");
        end.refuse(one, "full").await;
        end.refuse(three, "too_large").await;
        take(&mut end, four, 1).await;
        let (number, publish) = end.hear("publish").await;
        assert_eq!((&number, &publish["data"]), (&json!(1), &json!("one")));
        take(&mut end, number, 2).await;
    };
    let input = &b"one\n\xff\nthree\nfour"[..];
    let ((), (result, out, notes)) = tokio::join!(server, publish(&url, &["t", "--lines"], input));
    let told = "lines: 2 accepted, 1 refused by the server, 1 left out here";
    assert!(matches!(&result, Err(ClientError::Refused(line)) if line == told), "{result:?}");
    let summary: Value = serde_json::from_str(&out).expect("a summary");
    assert_eq!(summary, json!({ "accepted": 2, "refused": 1, "last_id": "10-2" }));
    for told in
        ["line 2 is left out: not UTF-8 at byte 0", "line 3: too_large: not now", "full: not now; trying"]
    {
        assert!(notes.contains(told), "no {told:?} in {notes}");
    }
}

#[tokio::test]
async fn lines_without_an_answer_are_counted_when_the_connection_ends() {
    let (listener, url) = listener("http").await;
    let (keyboard, input) = tokio::io::duplex(64);
    let mut keyboard = keyboard;
    let server = async {
        let mut end = End::accept(&listener).await;
        tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"one\ntwo\n").await.expect("room");
        let (one, _) = end.hear("publish").await;
        end.hear("publish").await;
        take(&mut end, one, 1).await;
        end.close(1012).await;
    };
    let ((), (result, out, _)) = tokio::join!(server, publish(&url, &["t", "--lines"], input));
    let told = "closed: 1012 enough; 1 lines may or may not be published; \
                lines: 1 accepted, 0 refused by the server, 0 left out here";
    assert!(matches!(&result, Err(ClientError::Refused(line)) if line == told), "{result:?}");
    let summary: Value = serde_json::from_str(&out).expect("a summary");
    assert_eq!(summary["error"], "closed: 1012 enough");
    drop(keyboard);
}

#[tokio::test]
async fn a_server_that_owes_an_answer_is_not_waited_for_without_end() {
    let (listener, url) = listener("http").await;
    let brief = std::time::Duration::from_millis(50);
    let patience = Patience { answer: brief, last_lines: brief, ..PATIENCE };
    let deaf = async {
        for _ in 0..2 {
            let mut end = End::accept(&listener).await;
            end.hear("publish").await;
            while let Some(Ok(_)) = end.socket.next().await {}
        }
    };
    let two = async {
        // More lines may come.
        let (keyboard, input) = tokio::io::duplex(64);
        let input = tokio::io::AsyncReadExt::chain(&b"one\n"[..], input);
        let lines = publish_to(patience, &["--ws", &url], &["t", "--lines"], input).await.0;
        drop(keyboard);
        (lines, publish_to(patience, &["--ws", &url], &["t", "one"], tokio::io::empty()).await.0)
    };
    let ((), (lines, one)) = tokio::join!(deaf, two);
    for result in [lines, one] {
        let line = result.expect_err("no answer").to_string();
        assert!(line.contains("no answer within 0.05 s") && line.contains("may or may not"), "{line}");
    }
}

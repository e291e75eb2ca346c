use serde_json::{Value, json};
use tokio_tungstenite::accept_async;

use super::super::super::fixtures::{End, listener};
use super::super::tests::{options, tail};
use super::*;

/// Hears a `subscribe` and answers it.
async fn subscribe(end: &mut End, after: &str) -> Value {
    let (reference, subscribe) = end.hear("subscribe").await;
    end.say(json!({ "ref": reference, "ok": { "after": after } })).await;
    subscribe
}

async fn event(end: &mut End, topic: &str, sequence: u64) {
    let event = json!({ "topic": topic, "id": format!("10-{sequence}"), "data": sequence.to_string() });
    end.say(event).await;
}

const JSON: &str = "--json-protocol";

#[tokio::test]
async fn each_topic_is_subscribed_where_it_was_when_the_connection_was_cut() {
    let (listener, url) = listener("ws").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        assert_eq!(end.target, "/ws?token=x");
        assert_eq!(subscribe(&mut end, "10-1").await, json!({ "topic": "a b", "last": 2 }));
        assert_eq!(subscribe(&mut end, "10-3").await, json!({ "topic": "c", "last": 2 }));
        assert_eq!(subscribe(&mut end, "10-9").await, json!({ "match": "d/*", "last": 2 }));
        event(&mut end, "a b", 2).await;
        let own = json!({ "topic": "d/1", "id": "mine", "base64": "AP8=", "at": "10-10" });
        end.say(own).await;
        drop(end);
        let mut end = End::accept(&listener).await;
        assert_eq!(subscribe(&mut end, "10-2").await, json!({ "topic": "a b", "after": "10-2" }));
        assert_eq!(subscribe(&mut end, "10-3").await, json!({ "topic": "c", "after": "10-3" }));
        assert_eq!(subscribe(&mut end, "10-10").await, json!({ "match": "d/*", "after": "10-10" }));
        event(&mut end, "c", 12).await;
        end.socket.next().await
    };
    let url = format!("{url}/ws/a%20b?topic=c&token=x&last=2&topic=c");
    let args = [JSON, "--match", "d/*", "--count", "3"];
    let (left, (result, out, notes)) = tokio::join!(server, tail(&url, &args));
    result.expect("three events");
    assert_eq!(out, "2\n<2 bytes binary>\n12\n");
    assert!(matches!(left, Some(Ok(Message::Close(_)))), "the client takes leave");
    assert!(notes.contains("reconnecting in 0.1"), "{notes}");
    assert!(!notes.contains("missing"), "{notes}");
}

/// A topic that begins lower than the pattern that it is one of gets events again.
#[tokio::test]
async fn what_comes_by_two_subscriptions_is_printed_once() {
    let (listener, url) = listener("ws").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        subscribe(&mut end, "10-1").await;
        event(&mut end, "a", 2).await;
        event(&mut end, "b", 3).await;
        subscribe(&mut end, "10-0").await;
        for (topic, sequence) in [("a", 1), ("a", 2), ("a", 4), ("b", 5)] {
            event(&mut end, topic, sequence).await;
        }
        drop(end);
        let mut end = End::accept(&listener).await;
        assert_eq!(subscribe(&mut end, "10-5").await["after"], "10-5");
        // Before the answer to the second one its events come by the first one.
        event(&mut end, "a", 6).await;
        assert_eq!(subscribe(&mut end, "10-4").await["after"], "10-4");
        for (topic, sequence) in [("a", 6), ("a", 7)] {
            event(&mut end, topic, sequence).await;
        }
        end.socket.next().await
    };
    let url = format!("{url}/ws?match=*&topic=a");
    let (_, (result, out, _)) = tokio::join!(server, tail(&url, &[JSON, "--count", "7"]));
    result.expect("seven events");
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["2", "3", "1", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn json_shows_all_that_was_said_of_an_event_and_gaps_among_them() {
    let (listener, url) = listener("ws").await;
    let event = json!({
        "topic": "a", "id": "mine", "event": "x", "base64": "AP8=", "time": 5, "key": "k", "at": "10-7",
    });
    let gap = r#"{"gap":{"after":"10-1","reason":"expired","topics":["a"]}}"#;
    let server = async {
        let mut end = End::accept(&listener).await;
        assert_eq!(
            subscribe(&mut end, "10-6").await,
            json!({ "topic": "a", "after": "10-1", "slow": "skip" })
        );
        end.socket.send(Message::text(gap)).await.expect("open");
        end.socket.send(Message::Ping("are you there".into())).await.expect("open");
        assert!(matches!(end.socket.next().await, Some(Ok(Message::Pong(_)))));
        end.say(json!({ "news": { "of": "the future" } })).await;
        end.say(event.clone()).await;
        end.socket.next().await
    };
    let url = format!("{url}/ws?topic=a&slow=close&after=10-0");
    let args = [JSON, "--json", "--count", "2", "--after", "10-1", "--slow", "skip"];
    let (_, (result, out, notes)) = tokio::join!(server, tail(&url, &args));
    result.expect("two lines");
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0], json!({ "event": "fanwave-gap", "id": "10-1", "data": gap }));
    assert_eq!(lines[1], event);
    assert!(!notes.contains("missing"), "{notes}");
}

#[tokio::test]
async fn an_error_ends_tail_unless_it_may_pass() {
    let (listener, url) = listener("ws").await;
    let refuse = async |code: &str| {
        let mut end = End::accept(&listener).await;
        let (reference, subscribe) = end.hear("subscribe").await;
        end.refuse(reference, code).await;
        subscribe
    };
    let server = async {
        for code in ["full", "busy", "draining"] {
            assert_eq!(refuse(code).await, json!({ "topic": "t", "since_ms": 30_000 }), "as at first");
        }
        refuse("too_many").await
    };
    let url = format!("{url}/ws/t");
    let (_, (result, out, notes)) = tokio::join!(server, tail(&url, &[JSON, "--since", "30s"]));
    assert!(
        matches!(&result, Err(ClientError::Refused(line)) if line == "t: too_many: not now"),
        "{result:?}"
    );
    assert_eq!(out, "");
    for code in ["full", "busy", "draining"] {
        assert!(notes.contains(&format!("t: {code}: not now; reconnecting in ")), "{notes}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_speak_json_is_left() {
    let (listener, url) = listener("ws").await;
    let server = async {
        let (stream, _) = listener.accept().await.expect("a connection");
        // The library refuses to agree to nothing; what it has sent is all that the client sees.
        let _ = accept_async(stream).await;
    };
    let name = format!("{url}/ws/t");
    let ((), (result, _, _)) = tokio::join!(server, tail(&name, &[JSON]));
    let told = format!("{name} does not speak fanwave.v1.json");
    assert!(matches!(&result, Err(ClientError::Refused(line)) if *line == told), "{result:?}");
    for said in ["hello", r#"{"ref":0,"ok":{}}"#, r#"{"ref":7,"ok":{"after":"10-1"}}"#] {
        let server = async {
            let mut end = End::accept(&listener).await;
            end.hear("subscribe").await;
            end.socket.send(Message::text(said)).await.expect("open");
            end.socket.next().await
        };
        let (_, (result, _, _)) = tokio::join!(server, tail(&name, &[JSON]));
        let is_told = matches!(&result, Err(ClientError::Refused(line)) if line.starts_with(&told));
        assert!(is_told, "{said}: {result:?}");
    }
}

/// More topics than may wait for an answer.
#[tokio::test]
async fn subscriptions_go_out_as_answers_come() {
    let (listener, url) = listener("ws").await;
    let server = async {
        let mut end = End::accept(&listener).await;
        for sequence in 1..=40 {
            let subscribe = subscribe(&mut end, &format!("10-{sequence}")).await;
            assert_eq!(subscribe, json!({ "topic": format!("t{sequence}") }));
        }
        event(&mut end, "t40", 41).await;
        end.socket.next().await
    };
    let topics: Vec<String> = (1..=40).map(|number| format!("topic=t{number}")).collect();
    let url = format!("{url}/ws?{}", topics.join("&"));
    let (_, (result, out, _)) = tokio::join!(server, tail(&url, &[JSON, "--count", "1"]));
    result.expect("an event");
    assert_eq!(out, "41\n");
}

#[test]
fn an_address_that_cannot_be_subscribed_is_told() {
    for (url, told) in [
        ("ws://h/ws", "`ws://h/ws` names no topic; write ws://HOST:PORT/ws/TOPIC, or --match PATTERN"),
        ("ws://h/sse/a", "`ws://h/sse/a` is not of the form ws://HOST:PORT/ws/TOPIC"),
        ("ws://h/ws/a*", "`ws://h/ws/a*` has a * in a topic; use --match for many topics"),
        ("ws://h/ws/a?last=x", "`ws://h/ws/a?last=x` has last=x; write a number of events"),
        ("ws://h/ws/a?since=30", "`ws://h/ws/a?since=30` has since=30; write 500ms, 30s, 5m or 1h"),
        ("ws://h/ws/a?slow=no", "`ws://h/ws/a?slow=no` has slow=no; write close, skip or latest"),
    ] {
        let stream = Url::parse(url).map(|name| {
            Stream::new(name, &options(url, &[JSON]), None, Trust::default(), Duration::from_secs(1))
                .map(|_| ())
        });
        let Ok(Err(ClientError::Usage(line))) = stream else { panic!("{url}") };
        assert_eq!(line, told);
    }
}

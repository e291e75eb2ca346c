use proptest::prelude::*;

use super::*;
use crate::event::Epoch;

fn topic_named(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

fn command(text: &str) -> Command<'_> {
    parse(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}")).command
}

fn fault(text: &str) -> (Option<&str>, ErrorCode, String) {
    let Fault { reference, code, detail } = parse(text).expect_err(text);
    (reference, code, detail)
}

/// The text of an answer.
fn text(reference: Option<&str>, reply: &Reply<'_>) -> String {
    let frame = answer(reference, reply);
    websocket::text_of(&frame).expect("one whole text message").to_string()
}

#[test]
fn every_command_is_read() {
    let a = Named::Topic(topic_named("a"));
    let subscribe = |start, slow| Command::Subscribe { of: a.clone(), start, slow };
    let id = Start::After(LastEventId::from_text("E-7").expect("an id"));
    let news = Pattern::new("news/**").expect("a pattern");
    for (text, expected) in [
        (r#"{"ref":1,"subscribe":{"topic":"a"}}"#, subscribe(Start::Now, None)),
        (r#"{"ref":1,"subscribe":{"topic":"a","after":"E-7"}}"#, subscribe(id, None)),
        (r#"{"ref":1,"subscribe":{"topic":"a","after":""}}"#, subscribe(Start::Now, None)),
        (r#"{"ref":1,"subscribe":{"topic":"a","since_ms":30000}}"#, subscribe(Start::Since(30_000), None)),
        (r#"{"ref":1,"subscribe":{"topic":"\u0061","last":10}}"#, subscribe(Start::Last(10), None)),
        (
            r#"{"ref":1,"subscribe":{"topic":"a","slow":"latest"}}"#,
            subscribe(Start::Now, Some(SlowPolicy::Latest)),
        ),
        (
            r#"{"ref":1,"subscribe":{"match":"news/**"}}"#,
            Command::Subscribe { of: Named::Match(news), start: Start::Now, slow: None },
        ),
        (" {\n \"unsubscribe\" : {\"topic\":\"a\"}, \"ref\":1}\n", Command::Unsubscribe(a.clone())),
        (r#"{"ref":1,"publish":{"topic":1}}"#, Command::Publish(r#"{"topic":1}"#)),
        (r#"{"ref":1,"presence":{"topic":"a"}}"#, Command::Presence(topic_named("a"))),
        (r#"{"ref":1,"auth":{"token":"x.y.z"}}"#, Command::Auth(Token::new("x.y.z"))),
        (r#"{"ref":1,"ping":{}}"#, Command::Ping),
    ] {
        assert_eq!(command(text), expected, "{text}");
    }
}

#[test]
fn a_ref_is_given_back_as_it_was_written() {
    for reference in ["1", "-0.5e3", r#""a""#, r#""\u00fc \"""#, &format!("\"{}\"", "x".repeat(64)), "\"\""] {
        let text = format!(r#"{{"ref":{reference},"ping":{{}}}}"#);
        assert_eq!(parse(&text).expect(reference).reference, reference);
    }
    for reference in
        ["null", "1e999", "true", "[1]", "{}", &format!("\"{}\"", "x".repeat(65)), &"1".repeat(65)]
    {
        let text = format!(r#"{{"ref":{reference},"ping":{{}}}}"#);
        let detail = "ref is a number, or a string of at most 64 bytes";
        assert_eq!(fault(&text), (None, ErrorCode::BadCommand, detail.to_string()), "{reference}");
    }
}

#[test]
fn what_is_wrong_is_told_with_the_ref_where_there_is_one() {
    use ErrorCode::{BadCommand, BadTopic};
    let commands = "one of subscribe, unsubscribe, publish, presence, auth, ping is needed";
    let long = format!(r#"{{"ref":1,"{}":1}}"#, "x".repeat(2_000));
    for (text, reference, code, detail) in [
        ("", None, BadCommand, "not a JSON object"),
        ("[1]", None, BadCommand, "not a JSON object"),
        (r#"{"ref":7"#, None, BadCommand, "EOF while parsing"),
        (r#"{"ping":{}}"#, None, BadCommand, "ref is a number"),
        (r#"{"ref":7}"#, Some("7"), BadCommand, commands),
        (r#"{"ref":7,"ping":null}"#, Some("7"), BadCommand, commands),
        (r#"{"ref":7,"ping":{},"auth":{"token":""}}"#, Some("7"), BadCommand, "a message is one command"),
        (r#"{"ref":7,"ping":{},"ping":{}}"#, Some("7"), BadCommand, "duplicate field `ping`"),
        (r#"{"ref":7,"ref":8,"ping":{}}"#, None, BadCommand, "duplicate field `ref`"),
        (r#"{"ref":7,"pong":{}}"#, Some("7"), BadCommand, "unknown field `pong`"),
        (r#"{"ref":7,"ping":[]}"#, Some("7"), BadCommand, "not a JSON object"),
        (r#"{"ref":7,"ping":{"x":1}}"#, Some("7"), BadCommand, "unknown field `x`"),
        (r#"{"ref":7,"subscribe":{}}"#, Some("7"), BadCommand, "needs topic or match"),
        (r#"{"ref":7,"subscribe":{"topic":"a","match":"a"}}"#, Some("7"), BadCommand, "exclude each other"),
        (r#"{"ref":7,"subscribe":{"topic":"a","last":1,"after":"x"}}"#, Some("7"), BadCommand, "exclude"),
        (r#"{"ref":7,"subscribe":{"topic":"a","last":-1}}"#, Some("7"), BadCommand, "invalid value"),
        (r#"{"ref":7,"subscribe":{"topic":"a","since_ms":9e99}}"#, Some("7"), BadCommand, "invalid type"),
        (r#"{"ref":7,"subscribe":{"topic":"a","since_ms":2000000001}}"#, Some("7"), BadCommand, "at most"),
        (r#"{"ref":7,"subscribe":{"topic":"a","slow":"x"}}"#, Some("7"), BadCommand, "unknown variant `x`"),
        (r#"{"ref":7,"subscribe":{"topic":""}}"#, Some("7"), BadTopic, "the topic is empty"),
        (r#"{"ref":7,"subscribe":{"topic":"a\nb"}}"#, Some("7"), BadTopic, "control character"),
        (r#"{"ref":7,"subscribe":{"topic":"a/*"}}"#, Some("7"), BadTopic, "use match"),
        (r#"{"ref":7,"subscribe":{"match":"a*"}}"#, Some("7"), BadTopic, "the segment \"a*\""),
        (r#"{"ref":7,"unsubscribe":{"topic":"a","last":1}}"#, Some("7"), BadCommand, "unknown field `last`"),
        (r#"{"ref":7,"presence":{}}"#, Some("7"), BadCommand, "missing field `topic`"),
        (&long, Some("1"), BadCommand, "unknown field `xxx"),
    ] {
        let (told, kind, line) = fault(text);
        assert_eq!((told, kind), (reference, code), "{text}");
        assert!(line.contains(detail) && line.len() <= DETAIL_BYTES_MAX, "{text}: {line}");
    }
}

#[test]
fn answers_are_one_object() {
    let at = EventId { epoch: Epoch(36), sequence: 7 };
    let (topic, news) = (topic_named("a\"b"), Pattern::new("news/**").expect("a pattern"));
    let (of, many) = (Named::Topic(topic.clone()), Named::Match(news));
    for (reference, reply, json) in [
        (
            Some("1"),
            Reply::Subscribed { of: &of, after: at },
            r#"{"ref":1,"ok":{"topic":"a\"b","after":"10-7"}}"#,
        ),
        (
            Some("\"x\""),
            Reply::Subscribed { of: &many, after: at },
            r#"{"ref":"x","ok":{"match":"news/**","after":"10-7"}}"#,
        ),
        (Some("1"), Reply::Unsubscribed(&of), r#"{"ref":1,"ok":{"topic":"a\"b"}}"#),
        (
            Some("1"),
            Reply::Published { id: "10-7", sequence: 7, duplicate: false },
            r#"{"ref":1,"ok":{"id":"10-7","sequence":7}}"#,
        ),
        (
            Some("1"),
            Reply::Published { id: "10-7", sequence: 7, duplicate: true },
            r#"{"ref":1,"ok":{"id":"10-7","sequence":7,"duplicate":true}}"#,
        ),
        (
            Some("1"),
            Reply::Present { topic: &topic, sse: 2, websocket: 3 },
            r#"{"ref":1,"ok":{"topic":"a\"b","sse":2,"websocket":3}}"#,
        ),
        (Some("1"), Reply::Pong, r#"{"ref":1,"ok":{}}"#),
        (
            None,
            Reply::Error { code: ErrorCode::BadCommand, detail: "no\n\"way\"" },
            r#"{"ref":null,"error":{"code":"bad_command","detail":"no\n\"way\""}}"#,
        ),
    ] {
        assert_eq!(text(reference, &reply), json);
        serde_json::from_str::<serde_json::Value>(json).expect("JSON");
    }
}

proptest! {
    #[test]
    fn what_serde_writes_is_read_as_it_was_meant(
        topic in "[^*\\p{Cc}]{1,40}",
        number in any::<i64>(),
        after in proptest::option::of("\\PC{1,30}"),
        pretty in any::<bool>(),
    ) {
        let mut subscribe = serde_json::json!({ "topic": topic });
        if let Some(after) = &after {
            subscribe["after"] = after.clone().into();
        }
        let request = serde_json::json!({ "subscribe": subscribe, "ref": number });
        let text = if pretty { serde_json::to_string_pretty(&request) } else { serde_json::to_string(&request) };
        let text = text.expect("JSON");
        let start = after.map_or(Start::Now, |id| Start::After(LastEventId::from_text(&id).expect("an id")));
        let of = Named::Topic(topic_named(&topic));
        prop_assert_eq!(parse(&text), Ok(Request {
            reference: &number.to_string(),
            command: Command::Subscribe { of, start, slow: None },
        }));
    }

    /// Whatever comes, the error is short and its answer is JSON.
    #[test]
    fn every_text_has_an_answer(text in "\\PC{0,60}|[{}\\[\\]\",:a-z0-9]{0,60}|\\{\"ref\":.{0,40}\\}") {
        if let Err(Fault { reference, code, detail }) = parse(&text) {
            prop_assert!(detail.len() <= DETAIL_BYTES_MAX);
            let answered = self::text(reference, &Reply::Error { code, detail: &detail });
            let json: serde_json::Value = serde_json::from_str(&answered).expect("JSON");
            prop_assert_eq!(&json["error"]["detail"], &detail);
        }
    }
}

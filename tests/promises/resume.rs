//! Claim: a client that comes back with the id of its last event loses nothing and gets nothing
//! twice.
//!
//! Set-up: subscribers that drop their connection, at rest or in the middle of a stream, while
//! events go on. They come back with `Last-Event-ID` as a header or in the query, with our ids or
//! with the publisher's, for one topic or several.
//!
//! Expectation: the first event after the return is the next one, and the stream goes on live,
//! without a gap notice. An id that a `Last-Event-ID` header would not bring back as it was is
//! refused at the publisher.

use std::sync::Arc;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};

use crate::support::peer::request;
use crate::support::{Protocol, Said, Server, Subscriber};

/// How a client names the last event that it had.
#[derive(Debug, Clone, Copy)]
enum Named {
    Header,
    Query,
}

const WAYS: [(Protocol, Named); 4] = [
    (Protocol::Sse, Named::Header),
    (Protocol::Sse, Named::Query),
    (Protocol::WebSocket, Named::Header),
    (Protocol::WebSocket, Named::Query),
];

async fn resume(server: &Server, way: (Protocol, Named), topics: &[&str], after: &str) -> Subscriber {
    match way {
        (protocol, Named::Query) => Subscriber::resume(server.data, protocol, topics, Some(after)).await,
        (protocol, Named::Header) => {
            let head = request(protocol, topics, None);
            let head = head.strip_suffix("\r\n").expect("a head ends in a blank line");
            let head = format!("{head}Last-Event-ID: {after}\r\n\r\n");
            Subscriber::request(server.data, protocol, &head).await
        }
    }
}

async fn assert_no_gaps(server: &Server) {
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        assert_eq!(server.counter(protocol, "gaps").await, 0, "{protocol:?}");
    }
}

/// An event stream begins with the id of where it begins, so that not even an event before the
/// first one is lost.
#[tokio::test]
async fn a_connection_that_drops_before_its_first_event_loses_nothing() {
    let server = Server::start(&["--shards", "2"]);
    server.publish("t", "before").await;
    let mut first = Subscriber::connect(server.data, Protocol::Sse, &["t", "other"]).await;
    first.next().await;
    let opening = first.opening_id.take().expect("the stream begins with an id");
    drop(first);
    server.publish("t", "meanwhile").await;
    for way in WAYS {
        let mut again = resume(&server, way, &["t", "other"], &opening).await;
        assert_eq!(again.text().await, "meanwhile", "{way:?}");
        assert_eq!(again.opening_id, None, "a client that resumes keeps its own id until the next event");
    }
    assert_no_gaps(&server).await;
}

#[tokio::test]
async fn a_dropped_connection_goes_on_with_the_next_event() {
    let server = Server::start(&["--shards", "2"]);
    for (number, way) in WAYS.into_iter().enumerate() {
        let topic = format!("t{number}");
        let topics = [topic.as_str()];
        let mut ids = Vec::new();
        for number in 0..5 {
            ids.push(server.publish(&topic, number.to_string()).await.id);
        }
        let mut first = resume(&server, way, &topics, &ids[1]).await;
        assert_eq!(first.texts(2).await, ["2", "3"], "{way:?}");
        drop(first);
        server.publish(&topic, "5").await;
        server.publish("another", "x").await;
        let mut second = resume(&server, way, &topics, &ids[3]).await;
        assert_eq!(second.texts(2).await, ["4", "5"], "{way:?}: what was missed");
        let live = server.publish(&topic, "live").await;
        let event = second.event().await;
        assert_eq!(event.text(), "live", "{way:?}: then what comes");
        assert_eq!(event.id, (way.0 == Protocol::Sse).then_some(live.id), "{way:?}");
    }
    assert_no_gaps(&server).await;
}

/// An id is a resume point whatever the topics: that of an event of another topic, and that of the
/// newest event.
#[tokio::test]
async fn an_id_resumes_any_set_of_topics() {
    let server = Server::start(&["--shards", "1"]);
    let mut ids = Vec::new();
    for number in 0..12 {
        ids.push(server.publish(["a", "b", "c"][number % 3], number.to_string()).await.id);
    }
    for way in WAYS {
        let mut all = resume(&server, way, &["c", "a", "b"], &ids[4]).await;
        assert_eq!(all.texts(7).await, ["5", "6", "7", "8", "9", "10", "11"], "{way:?}");
        let mut two = resume(&server, way, &["a", "c"], &ids[4]).await;
        assert_eq!(two.texts(5).await, ["5", "6", "8", "9", "11"], "{way:?}: the id is of topic b");
    }
    let before_the_first = ids[0].replace("-1", "-0");
    let mut whole = resume(&server, WAYS[0], &["b"], &before_the_first).await;
    assert_eq!(whole.texts(4).await, ["1", "4", "7", "10"]);
    let mut newest = resume(&server, WAYS[0], &["a", "b"], &ids[11]).await;
    server.publish("a", "next").await;
    assert_eq!(newest.text().await, "next", "nothing is repeated");
    assert_no_gaps(&server).await;
}

#[tokio::test]
async fn the_publishers_own_ids_are_resume_points() {
    let server = Server::start(&["--shards", "1"]);
    for number in 0..6 {
        let topic = ["a", "b"][number % 2];
        let accepted = server.publish_with(topic, &format!("?id=order+{number}"), number.to_string()).await;
        assert_eq!(accepted.id, format!("order {number}"));
    }
    for (protocol, named) in WAYS {
        let id = match named {
            Named::Header => "order 2",
            Named::Query => "order%202",
        };
        let mut one = resume(&server, (protocol, named), &["a"], id).await;
        let event = one.event().await;
        assert_eq!(event.text(), "4");
        assert_eq!(event.id.as_deref(), (protocol == Protocol::Sse).then_some("order 4"));
        let mut both = resume(&server, (protocol, named), &["a", "b"], id).await;
        assert_eq!(both.texts(3).await, ["3", "4", "5"], "{protocol:?} {named:?}");
    }
    // The same id twice: the older event is meant, so that nothing is lost.
    for data in ["first", "between", "second", "after"] {
        let id = if matches!(data, "first" | "second") { "?id=twice" } else { "" };
        server.publish_with("again", id, data).await;
    }
    let mut again = resume(&server, WAYS[1], &["again"], "twice").await;
    assert_eq!(again.texts(3).await, ["between", "second", "after"]);
    assert_no_gaps(&server).await;
}

/// Browsers send the id's UTF-8 as it is (WHATWG HTML §9.2.3). HTTP takes away blanks and tabs
/// around a value, and nothing else (RFC 9110 §5.5).
#[tokio::test]
async fn a_publishers_id_comes_back_whatever_its_characters() {
    let server = Server::start(&["--shards", "1"]);
    let longest = "ü".repeat(127);
    let ids = [
        "räume/✓ 7",
        "a  b",
        "\u{a0}x\u{a0}",
        "\u{85}",
        "\u{feff}",
        "\u{2003}",
        ":\"#%&+,;='",
        "😀",
        &longest,
    ];
    for (number, id) in ids.into_iter().enumerate() {
        let topic = format!("t{number}");
        let encoded = utf8_percent_encode(id, NON_ALPHANUMERIC).to_string();
        let accepted = server.publish_with(&topic, &format!("?id={encoded}"), "known").await;
        assert_eq!(accepted.id, id);
        server.publish(&topic, "next").await;
        for way in WAYS {
            let after = if matches!(way.1, Named::Query) { &encoded } else { id };
            let mut subscriber = resume(&server, way, &[&topic], after).await;
            assert_eq!(subscriber.text().await, "next", "{way:?} {id:?}");
        }
    }
    assert_no_gaps(&server).await;
}

/// Not every client sends the UTF-8 of an id: some send its Latin-1, and some have taken our UTF-8
/// for Latin-1.
#[tokio::test]
async fn an_id_is_known_in_whatever_bytes_a_client_brings_it_back() {
    let server = Server::start(&["--shards", "1"]);
    server.publish_with("t", "?id=r%C3%A4ume+7", "known").await;
    server.publish("t", "next").await;
    let double: String = "räume 7".bytes().map(char::from).collect();
    for (protocol, bytes) in [Protocol::Sse, Protocol::WebSocket].into_iter().flat_map(|protocol| {
        [&b"r\xe4ume 7"[..], "räume 7".as_bytes(), double.as_bytes()].map(|bytes| (protocol, bytes))
    }) {
        let head = request(protocol, &["t"], None);
        let head = head.strip_suffix("\r\n").expect("a head ends in a blank line").as_bytes();
        let head = [head, b"Last-Event-ID: ", bytes, b"\r\n\r\n"].concat();
        let mut subscriber = Subscriber::request(server.data, protocol, &head).await;
        assert_eq!(subscriber.text().await, "next", "{protocol:?} {}", bytes.escape_ascii());
        let query = percent_encode(bytes, NON_ALPHANUMERIC).to_string();
        let head = request(protocol, &["t"], Some(&query));
        let mut subscriber = Subscriber::request(server.data, protocol, &head).await;
        assert_eq!(subscriber.text().await, "next", "{protocol:?} {query}");
    }
    assert_no_gaps(&server).await;
}

/// An error would end an `EventSource` for good.
#[tokio::test]
async fn an_id_that_nobody_here_gave_is_a_gap_and_no_error() {
    let server = Server::start(&["--shards", "1"]);
    server.publish("t", "held").await;
    let long = "i".repeat(256);
    for (bytes, told) in [
        (&b"\xff\xfe"[..], "ÿþ"),
        (b"a\x0cb", "a\u{c}b"),
        (b"\x7f", "\u{7f}"),
        (long.as_bytes(), &long),
        (b"1\r\nLast-Event-ID: 1", "1"),
        (b"1\r\nLast-Event-ID: 2", "1"),
    ] {
        let head = request(Protocol::Sse, &["t"], None);
        let head = head.strip_suffix("\r\n").expect("a head ends in a blank line").as_bytes();
        let head = [head, b"Last-Event-ID: ", bytes, b"\r\n\r\n"].concat();
        let mut subscriber = Subscriber::request(server.data, Protocol::Sse, &head).await;
        let expected = serde_json::json!({ "after": told, "reason": "unknown", "topics": ["t"] });
        assert_eq!(subscriber.next().await, Said::Gap(expected));
        assert_eq!(subscriber.text().await, "held");
    }
    for query in ["%FF", "a%00b", "a%0D%0Ab", "%zz", &long] {
        let head = request(Protocol::Sse, &["t"], Some(query));
        let mut subscriber = Subscriber::request(server.data, Protocol::Sse, &head).await;
        assert!(matches!(subscriber.next().await, Said::Gap(gap) if gap["reason"] == "unknown"), "{query}");
        assert_eq!(subscriber.text().await, "held");
    }
}

#[tokio::test]
async fn the_query_names_the_last_id_as_other_servers_do() {
    let server = Server::start(&["--shards", "1"]);
    let mut ids = Vec::new();
    for data in ["0", "1", "2"] {
        ids.push(server.publish("t", data).await.id);
    }
    let [first, second, _] = ids.as_slice() else { panic!("three ids") };
    for query in [
        format!("lastEventId={first}"),
        format!("lastEventID={first}"),
        format!("last_event_id={first}"),
        format!("Last-Event-ID={first}"),
        format!("after={first}"),
        format!("last-event-id={first}&lastEventId={first}"),
        format!("after={first}&last-event-id={second}"),
    ] {
        let head = format!("GET /sse/t?{query} HTTP/1.1\r\nHost: test\r\n\r\n");
        let mut subscriber = Subscriber::request(server.data, Protocol::Sse, &head).await;
        assert_eq!(subscriber.texts(2).await, ["1", "2"], "{query}");
    }
    let head = format!("GET /sse/t?after={first} HTTP/1.1\r\nHost: test\r\nLast-Event-ID: {second}\r\n\r\n");
    let mut subscriber = Subscriber::request(server.data, Protocol::Sse, &head).await;
    assert_eq!(subscriber.text().await, "2", "a header is newer than the page's URL");
    assert_no_gaps(&server).await;
}

/// A client could never name it: its header would be malformed, another id, or none at all.
#[tokio::test]
async fn an_id_that_no_header_brings_back_is_refused_wherever_it_enters() {
    let server = Server::start(&["--shards", "1"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
    let control = ["\u{1}x", "x\u{1f}", "a\tb", "x\u{7f}", "\u{1b}"].map(|id| (id, "control character"));
    let blank = [" ", "  ", " x", "x ", " x "].map(|id| (id, "blank"));
    let tab = ["\t", "\tx"].map(|id| (id, "control character"));
    let ids: Vec<_> = [&control[..], &blank, &tab, &[("", "empty")]].concat();
    for &(id, part) in &ids {
        let path = format!("/topics/t?id={}", utf8_percent_encode(id, NON_ALPHANUMERIC));
        let refused = server.answer(server.post(&path).body("x")).await;
        assert_eq!(refused.status, 400, "{id:?}: {refused:?}");
        assert!(refused.error().contains(part), "{id:?}: {refused:?}");

        let line = serde_json::json!({ "topic": "t", "data": "x", "id": id }).to_string();
        let answer = server.answer(server.post("/publish").body(line)).await.body;
        let told: serde_json::Value =
            serde_json::from_str(answer.lines().next().expect("a line")).expect("JSON");
        assert_eq!(told["line"], 1, "{id:?}: {answer}");
        assert!(told["error"].as_str().is_some_and(|text| text.contains(part)), "{id:?}: {answer}");
    }
    assert_eq!(server.stats().await["hub"]["refused"]["bad_id"], 2 * ids.len(), "each is counted");
    server.publish("t", "next").await;
    assert_eq!(subscriber.text().await, "next", "nothing of it was published");
}

/// A subscriber that drops its connection every few events, wherever that may be in the stream,
/// while a publisher goes on. `id_of` is the query with which an event is published.
async fn dropping(id_of: fn(usize) -> String) {
    const EVENTS: usize = 1_500;
    let server = Arc::new(Server::start(&["--shards", "2", "--window-events-max", "4096"]));
    let start = server.publish("t", "start").await;
    let publisher = tokio::spawn({
        let server = server.clone();
        async move {
            for number in 0..EVENTS {
                let data = format!("{number} {}", "x".repeat(number % 700));
                server.publish_with(["t", "u"][number % 2], &id_of(number), data).await;
            }
        }
    });
    let mut last_id = start.id;
    let mut seen = 0;
    let mut round = 0;
    while seen < EVENTS {
        let mut subscriber = resume(&server, WAYS[round % 2], &["t", "u"], &last_id).await;
        for _ in 0..1 + round % 40 {
            let event = subscriber.event().await;
            let number = event.text().split(' ').next().expect("one part at least");
            assert_eq!(number, seen.to_string(), "round {round}: the next event, once");
            last_id = event.id.expect("an event stream has ids");
            seen += 1;
            if seen == EVENTS {
                break;
            }
        }
        round += 1;
    }
    publisher.await.expect("everything is published");
    assert!(round > 10, "the connection was dropped {round} times");
    assert_no_gaps(&server).await;
}

#[tokio::test]
async fn dropping_again_and_again_loses_and_doubles_nothing() {
    dropping(|_| String::new()).await;
}

#[tokio::test]
async fn dropping_again_and_again_with_the_publishers_ids_loses_and_doubles_nothing() {
    dropping(|number| format!("?id=order-no-{number}")).await;
}

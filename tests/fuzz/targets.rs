//! What fuzzing feeds with bytes of any kind: one function per target. `tests/corpora.rs` feeds the
//! corpora to the same functions, and `tests/fuzz` is the workspace of cargo-fuzz.
//!
//! A function panics if a promise is broken. Besides "no panic" these are: what comes out does not
//! depend on how the bytes are cut, what was accepted can be written and read again, patterns mean
//! what their definition says, and whatever peers do, a shard stays within its bounds and lets go
//! of everything.

use bytes::Bytes;
use fanwave::auth::{Key, KeySet, Keys, Signer, open, peek};
use fanwave::broadcast::Encoded;
use fanwave::clock::Stamp;
use fanwave::command::check_config::told_of;
use fanwave::config::limits::RULES_MAX;
use fanwave::config::rules::{KEY, RuleText, Rules};
use fanwave::config::{Config, Limits};
use fanwave::event::{Data, Epoch, Event, EventId, Topic};
use fanwave::publishing::{Line, Lines, parse_line, parse_options, parse_text, parse_topic_path};
use fanwave::topic_pattern::Pattern;
use fanwave::wire::envelope::{self, Command, Fault, Reply, Request};
use fanwave::wire::http::{
    BodyReader, Head, HeadRules, Manner, Origins, PostHead, Subprotocols, TokenPlaces, begins_post,
    parse_head, parse_post,
};
use fanwave::wire::proxy::{self, Preface};
use fanwave::wire::sse_parser::Parser;
use fanwave::wire::websocket::{Decoder, Incoming, text_of};
use fanwave::wire::{Family, Format};

#[path = "http2.rs"]
pub mod http2;
#[path = "../support/records.rs"]
#[allow(dead_code, reason = "what the tests over sockets need")]
mod records;
#[path = "shard.rs"]
pub mod shard;
#[path = "tls.rs"]
pub mod tls;

/// A target: its name is that of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 15] = [
    ("request_head", request_head),
    ("target_and_query", target_and_query),
    ("websocket_decoder", websocket_decoder),
    ("ndjson_lines", ndjson_lines),
    ("single_publish", single_publish),
    ("sse_parser", sse_parser),
    ("proxy_header", proxy_header),
    ("commands", commands),
    ("tls_records", tls::tls_records),
    ("tokens", tokens),
    ("topic_patterns", topic_patterns),
    ("rules", rules_of_a_file),
    ("h2_fields", http2::fields),
    ("h2_frames", http2::frames),
    ("whole_shard", shard::whole_shard),
];

const EPOCH: Epoch = Epoch(12_345);
const MESSAGE_BYTES_MAX: usize = 4_096;

/// The first byte chooses the rules and the cuts; the rest is what a client sends.
pub fn request_head(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let rules = rules(*choice);
    let (whole, _) = parse_head(bytes, &rules);
    let step = 1 + usize::from(choice >> 4) * 7;
    // The caller asks again as bytes come, until it is told something.
    let first = (0..=bytes.len()).step_by(step).chain([bytes.len()]).find_map(|end| {
        let (head, manner) = parse_head(&bytes[..end], &rules);
        (head != Head::Partial).then_some((head, manner))
    });
    match first {
        None => assert_eq!(whole, Head::Partial),
        Some((head, manner)) => {
            let is_same = match (&head, &whole) {
                // What is wrong may be told of another byte.
                (Head::Refused(_), Head::Refused(_)) => true,
                _ => head == whole,
            };
            assert!(is_same, "told {head:?} of a part and {whole:?} of all");
            check_head(&head, &manner, bytes, &rules);
        }
    }
    assert!(bytes.len() < rules.head_bytes_max || whole != Head::Partial, "a head ends at its limit");
    if begins_post(bytes) {
        check_post(bytes, &rules, step);
    }
}

/// A publish is the same however its head and its body are cut.
fn check_post(bytes: &[u8], rules: &HeadRules<'_>, step: usize) {
    let whole = parse_post(bytes, rules);
    let ends = (0..=bytes.len()).step_by(step).chain([bytes.len()]);
    let first = ends.filter(|end| begins_post(&bytes[..*end])).find_map(|end| {
        let head = parse_post(&bytes[..end], rules);
        (head != PostHead::Partial).then_some(head)
    });
    let post = match (first, whole) {
        (None, PostHead::Partial) => {
            assert!(bytes.len() < rules.head_bytes_max, "a head ends at its limit");
            return;
        }
        // What is wrong may be told of another byte.
        (Some(PostHead::Refused(..)), PostHead::Refused(refusal, _)) => {
            assert!(refusal.reason.row().http_status.is_some(), "{refusal:?}");
            assert!(!refusal.detail.contains(['\r', '\n']), "one line: {refusal:?}");
            return;
        }
        (Some(PostHead::Post(first)), PostHead::Post(whole)) => {
            assert_eq!(first, whole);
            whole
        }
        (first, whole) => panic!("told {first:?} of a part and {whole:?} of all"),
    };
    assert!(post.head_bytes <= bytes.len().min(rules.head_bytes_max));
    let body = &bytes[post.head_bytes..];
    let read = |cut: usize| {
        let (mut reader, mut data, mut used) = (BodyReader::new(post.length), Vec::new(), 0);
        for piece in body.chunks(cut) {
            let Ok(read) = reader.feed(piece, |piece| data.extend_from_slice(piece)) else { return None };
            used += read;
            if read < piece.len() {
                assert!(reader.is_whole(), "only its end stops a body");
                break;
            }
        }
        Some((data, used, reader.is_whole()))
    };
    assert_eq!(read(step), read(usize::MAX), "in pieces of {step}");
}

/// The target of a request whose other lines are as they should be.
pub fn target_and_query(data: &[u8]) {
    let Some((choice, target)) = data.split_first() else { return };
    let head = [
        b"GET ",
        target,
        b" HTTP/1.1\r\nHost: e\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
          Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    ]
    .concat();
    let rules = HeadRules { head_bytes_max: 1 << 20, ..rules(*choice) };
    let (parsed, manner) = parse_head(&head, &rules);
    assert_ne!(parsed, Head::Partial);
    check_head(&parsed, &manner, &head, &rules);
}

fn rules(choice: u8) -> HeadRules<'static> {
    HeadRules {
        head_bytes_max: if choice & 1 == 0 { 1_024 } else { 256 },
        topics_max: 3,
        origins: if choice & 2 == 0 { &Origins::Any } else { &Origins::None },
        is_secure: choice & 16 == 0,
        subprotocols: &Subprotocols::Any,
        echo: choice & 4 == 0,
        tokens: (choice & 8 == 0).then_some(TokenPlaces { cookie: Some("token") }),
    }
}

fn check_head(head: &Head, manner: &Manner, bytes: &[u8], rules: &HeadRules<'_>) {
    let _ = manner;
    match head {
        Head::Subscribe(subscribe, used) => {
            assert!(*used <= bytes.len().min(rules.head_bytes_max));
            assert!((1..=rules.topics_max).contains(&subscribe.topics.len()));
            for (at, topic) in subscribe.topics.iter().enumerate() {
                assert!(!subscribe.topics[..at].contains(topic), "{topic:?} twice");
            }
            assert_eq!(subscribe.handshake.is_some(), subscribe.format.family() == Family::WebSocket);
        }
        Head::Echo(_, used) => assert!(rules.echo && *used <= bytes.len()),
        Head::Refused(refusal) => {
            assert!(refusal.reason.row().http_status.is_some(), "{refusal:?}");
            assert!(!refusal.detail.contains(['\r', '\n']), "one line: {refusal:?}");
        }
        _ => {}
    }
}

/// The first byte chooses the cuts; the rest is what a client sends after the handshake.
pub fn websocket_decoder(data: &[u8]) {
    let Some((choice, bytes)) = data.split_first() else { return };
    let whole = decoded(bytes, usize::MAX, false);
    let cut = 1 + usize::from(*choice) % 29;
    assert_eq!(decoded(bytes, cut, false), whole, "in pieces of {cut}");
    assert_eq!(decoded(bytes, cut, true), whole, "with its payload, in pieces of {cut}");
}

/// What a decoder says, and how it ends.
fn decoded(bytes: &[u8], cut: usize, showing: bool) -> (Vec<String>, Option<&'static str>) {
    let mut decoder = Decoder::default();
    let mut bytes = bytes.to_vec();
    let (mut said, mut payload) = (Vec::new(), Vec::new());
    for piece in bytes.chunks_mut(cut) {
        let mut on = |incoming: Incoming<'_>| match incoming {
            Incoming::Payload(piece) => {
                assert!(showing && !piece.is_empty());
                payload.extend_from_slice(piece);
            }
            Incoming::Message { bytes, text } => {
                let payload = std::mem::take(&mut payload);
                assert!(bytes <= MESSAGE_BYTES_MAX as u64);
                if showing {
                    assert_eq!(payload.len() as u64, bytes);
                    assert!(!text || std::str::from_utf8(&payload).is_ok(), "a text is UTF-8");
                }
                said.push(format!("message {bytes} {text}"));
            }
            Incoming::Ping(payload) => {
                assert!(payload.len() <= 125);
                said.push(format!("ping {payload:?}"));
            }
            Incoming::Pong => said.push("pong".to_string()),
            Incoming::Close { code, reply } => said.push(format!("close {code:?} {reply:?}")),
        };
        let fed = match showing {
            true => decoder.feed_showing(piece, MESSAGE_BYTES_MAX as u64, &mut on),
            false => decoder.feed(piece, MESSAGE_BYTES_MAX as u64, &mut on),
        };
        if let Err(violation) = fed {
            assert!(violation.reason.row().websocket_code.unasked().is_some(), "{violation:?}");
            return (said, Some(violation.detail));
        }
    }
    (said, None)
}

/// The first byte chooses the cuts; the rest is the body of a stream of lines.
pub fn ndjson_lines(data: &[u8]) {
    let Some((choice, body)) = data.split_first() else { return };
    let whole = lines(body, usize::MAX);
    let cut = 1 + usize::from(*choice) % 61;
    assert_eq!(lines(body, cut), whole, "in pieces of {cut}");
    for line in whole.iter().flatten() {
        match parse_line(line, MESSAGE_BYTES_MAX) {
            Ok((event, _)) => check_event(event),
            Err(refusal) => assert!(!refusal.text.contains('\n'), "one line: {refusal:?}"),
        }
    }
}

/// The lines of a body that comes in such pieces; `None` for one that is too long.
fn lines(body: &[u8], cut: usize) -> Vec<Option<Vec<u8>>> {
    let mut lines = Lines::new(MESSAGE_BYTES_MAX);
    let mut found = Vec::new();
    let mut keep = |line: Line<'_>| {
        let (number, line) = match line {
            Line::Whole(number, line) => (number, Some(line.to_vec())),
            Line::TooLong(number) => (number, None),
        };
        found.push(line);
        assert_eq!(number, found.len() as u64, "lines are numbered from 1");
    };
    for mut chunk in body.chunks(cut) {
        while let Some(line) = lines.next(&mut chunk) {
            keep(line);
        }
    }
    if let Some(line) = lines.finish() {
        keep(line);
    }
    found
}

/// Up to two LF end the path and the query; the rest is the body.
pub fn single_publish(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (path, query, body) = (part(), part(), part());
    let (Ok(path), Ok(query)) = (std::str::from_utf8(path), std::str::from_utf8(query)) else { return };
    let data = match path.strip_prefix('!') {
        Some(_) => Ok(Data::binary(Bytes::copy_from_slice(body))),
        None => parse_text(Bytes::copy_from_slice(body)),
    };
    let topic = parse_topic_path(path.trim_start_matches('!'));
    let (topic, options, data) = match (topic, parse_options(Some(query)), data) {
        (Ok(topic), Ok(options), Ok(data)) => (topic, options, data),
        (Err(refusal), _, _) | (_, Err(refusal), _) | (_, _, Err(refusal)) => {
            assert!(!refusal.text.contains('\n'), "one line: {refusal:?}");
            return;
        }
    };
    check_event(Event {
        topic,
        data,
        name: options.name,
        id: options.id,
        retry_ms: options.retry_ms,
        key: options.key,
    });
}

/// An event that was accepted fits its frames, and reads back as it was written.
fn check_event(event: Event) {
    let encoded = Encoded::new(event.clone(), EPOCH, 7, Stamp(0));
    let frames = Format::ALL.map(|format| encoded.frame(format));
    let made = Format::ALL.iter().map(|format| format.frame_bytes_max(&event)).sum::<usize>();
    // A frame within another one takes no memory of its own.
    let most = frames.iter().map(Bytes::len).sum::<usize>() - frames[Format::Sse.index()].len();
    assert!(most <= made, "{most} of {made} bytes");
    let (stream, chunk) = (&frames[Format::Sse.index()], &frames[Format::SseChunked.index()]);
    let line = format!("{:x}\r\n", stream.len());
    assert_eq!(*chunk, [line.as_bytes(), stream, b"\r\n"].concat());
    let json = text_of(&frames[Format::Json.index()]).expect("one whole text message");
    let json: serde_json::Value = serde_json::from_str(json).expect("an event is JSON");
    assert_eq!(json["topic"], event.topic.as_str());
    match json["data"].as_str() {
        Some(data) => assert_eq!(data.as_bytes(), event.data.bytes()),
        None => assert!(json["base64"].is_string()),
    }
    let mut read = Vec::new();
    let mut parser = Parser::new(1 << 20);
    parser.feed(stream, |event| read.push(event)).expect("a short event");
    let [read] = read.as_slice() else { panic!("one event in {stream:?}, not {read:?}") };
    let id = event.id.as_ref().map(|id| id.as_str().to_string());
    assert_eq!(read.id, id.unwrap_or_else(|| EventId { epoch: EPOCH, sequence: 7 }.to_string()));
    assert_eq!(read.event, event.name.as_ref().map_or("message", |name| name.as_str()));
    assert_eq!(read.is_base64, event.data.is_binary());
    assert_eq!(parser.retry_ms(), event.retry_ms.map(u64::from));
    if !event.data.is_binary() {
        let text = std::str::from_utf8(event.data.bytes()).expect("text is UTF-8");
        // An event stream has one kind of line break.
        assert_eq!(read.data, text.replace("\r\n", "\n").replace('\r', "\n"));
    }
}

/// Commands as text messages, one in each line. Whatever they are, the answer is one JSON object
/// with the `ref` as it was written; a publish that is read can be written in every format.
pub fn commands(data: &[u8]) {
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(text) = std::str::from_utf8(line) else { continue };
        let (reference, reply) = match &envelope::parse(text) {
            Ok(Request { reference, command }) => {
                if let Command::Publish(json) = command
                    && let Ok((event, _)) = parse_line(json.as_bytes(), MESSAGE_BYTES_MAX)
                {
                    check_event(event);
                }
                (Some(*reference), envelope::answer(Some(reference), &Reply::Pong))
            }
            Err(Fault { reference, code, detail }) => {
                assert!(detail.len() <= 512, "{detail}");
                (*reference, envelope::answer(*reference, &Reply::Error { code: *code, detail }))
            }
        };
        let answer = text_of(&reply).expect("one whole text message");
        let answer: serde_json::Value = serde_json::from_str(answer).expect("an answer is JSON");
        let reference = reference.map_or(Ok(serde_json::Value::Null), serde_json::from_str);
        assert_eq!(answer["ref"], reference.expect("a ref is JSON"));
    }
}

/// The first byte chooses the cuts; the rest is an event stream.
pub fn sse_parser(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let read = |cut: usize| {
        let mut parser = Parser::new(MESSAGE_BYTES_MAX);
        let mut events = Vec::new();
        let mut is_too_long = false;
        for piece in stream.chunks(cut) {
            is_too_long |= parser.feed(piece, |event| events.push(event)).is_err();
        }
        (events, is_too_long, parser.retry_ms(), parser.last_event_id().to_string())
    };
    let whole = read(usize::MAX);
    for event in &whole.0 {
        assert!(event.data.len() <= MESSAGE_BYTES_MAX, "{} bytes of data", event.data.len());
        assert!(!event.id.contains(['\0', '\n', '\r']), "{event:?}");
    }
    let cut = 1 + usize::from(*choice) % 61;
    assert_eq!(read(cut), whole, "in pieces of {cut}");
}

/// What a proxy, or who claims to be one, sends first.
pub fn proxy_header(data: &[u8]) {
    let whole = proxy::parse(data);
    // The caller asks again as bytes come, until it is told something.
    let first =
        (0..=data.len()).map(|end| proxy::parse(&data[..end])).find(|told| *told != Ok(Preface::Partial));
    match first {
        None => assert_eq!(whole, Ok(Preface::Partial)),
        Some(told) => assert_eq!(told.is_ok(), whole.is_ok(), "told {told:?} of a part and {whole:?} of all"),
    }
    if let Ok(Preface::Whole { bytes, .. }) = whole {
        assert!((b"PROXY UNKNOWN\r\n".len()..=data.len()).contains(&bytes) && bytes <= 4_096);
        assert_eq!(proxy::parse(&data[..bytes]), whole);
        assert!(proxy::begins_like_one(data));
    }
    assert!(data.len() < 4_096 || whole != Ok(Preface::Partial), "a header ends at its limit");
}

/// The secret of the server that is asked.
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// Tokens, claims that a key of ours has signed, and sets of keys: any bytes are read or refused.
/// Nobody but the key's owner makes a token, and what a token grants can be named.
pub fn tokens(data: &[u8]) {
    let keys = Keys::new([Some(&KeySet::of(Key::from_secret(SECRET).expect("a secret")))]);
    let signer = Signer::from_secret(SECRET).expect("a secret");
    let text = String::from_utf8_lossy(data);
    let _ = peek(&text);
    assert!(open(&text, &keys).is_err(), "a token that nobody signed");
    let signed = signer.sign_payload(data).expect("a token");
    match open(&signed, &keys) {
        Ok(claims) => {
            for pattern in &claims.subscribe {
                assert!(claims.lets_subscribe(pattern.name()), "{pattern} is granted");
            }
            for topic in claims.publish.iter().filter_map(|pattern| pattern.topic()) {
                assert!(claims.lets_publish(topic.as_str()), "{topic} is granted");
            }
            let over = claims.expires_ms.is_some_and(|ms| claims.check_time(ms).is_ok());
            assert!(!over, "a token ends at its end");
        }
        Err(refused) => {
            let line = refused.to_string();
            assert!(!line.contains(char::is_control) && line.len() < 1_024, "one short line: {line:?}");
        }
    }
    for takes_secrets in [false, true] {
        if let Ok(set) = KeySet::read(data, takes_secrets) {
            assert!(!set.is_empty() && set.iter().all(|key| key.number() != 0));
        }
    }
    let _ = Signer::read(data);
}

/// Two lines are patterns, if they are legal; the others are topics.
pub fn topic_patterns(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let [first, second] = [(); 2].map(|()| lines.next().unwrap_or_default());
    let topics: Vec<&str> = lines.filter(|line| Topic::new(line).is_ok()).collect();
    let (Some(one), Some(other)) = (pattern(first), pattern(second)) else { return };
    for pattern in [&one, &other] {
        assert!(pattern.contains(pattern) && pattern.overlaps(pattern), "{pattern} is itself");
        assert_eq!(pattern.topic().is_none(), pattern.as_str().contains('*'), "{pattern}");
    }
    for topic in &topics {
        for pattern in [&one, &other] {
            let expected = stands_for(&segments(pattern.as_str()), &segments(topic));
            assert_eq!(pattern.matches(topic), expected, "{pattern} and {topic}");
        }
        let both = one.matches(topic) && other.matches(topic);
        assert!(!both || one.overlaps(&other), "{one} and {other} meet in {topic}");
    }
    check_containment(&one, &other);
    check_containment(&other, &one);
    assert_eq!(one.overlaps(&other), other.overlaps(&one), "{one} and {other}");
    if one.overlaps(&other) {
        let topic = meeting(&segments(one.as_str()), &segments(other.as_str()));
        assert!(one.matches(&topic) && other.matches(&topic), "{one} and {other} meet in {topic}");
    }
}

/// A segment that is in none of the patterns' places by chance.
const STRANGER: &str = "a stranger's segment";

/// Reads a pattern; what is one does not depend on who says so.
fn pattern(text: &str) -> Option<Pattern> {
    let parts = segments(text);
    let last = parts.len() - 1;
    let is_legal = |(at, part): (usize, &&str)| match *part {
        "*" => true,
        "**" => at == last,
        part => !part.contains('*'),
    };
    let expected = Topic::new(text).is_ok() && parts.iter().enumerate().all(is_legal);
    match Pattern::new(text) {
        Ok(pattern) => {
            assert!(expected, "{text:?} is no pattern");
            assert_eq!(pattern.to_string().parse().as_ref(), Ok(&pattern));
            Some(pattern)
        }
        Err(error) => {
            assert!(!expected, "{text:?} is one: {error}");
            assert!(!error.to_string().contains('\n'), "one line: {error}");
            None
        }
    }
}

fn segments(text: &str) -> Vec<&str> {
    text.split('/').collect()
}

/// The definition of a pattern, word by word.
fn stands_for(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["**"], [_, ..]) => true,
        (["*", pattern @ ..], [_, topic @ ..]) => stands_for(pattern, topic),
        ([part, pattern @ ..], [name, topic @ ..]) => part == name && stands_for(pattern, topic),
        _ => false,
    }
}

/// One pattern contains another one if it stands for two of its topics: those of strangers in place
/// of each `*`, and of one and of very many in place of `**`.
fn check_containment(outer: &Pattern, inner: &Pattern) {
    let outer_parts = segments(outer.as_str());
    let expected = [1, outer_parts.len() + 1].into_iter().all(|rest| {
        let topic: Vec<&str> = segments(inner.as_str())
            .into_iter()
            .flat_map(|part| match part {
                "*" => vec![STRANGER],
                "**" => vec![STRANGER; rest],
                part => vec![part],
            })
            .collect();
        stands_for(&outer_parts, &topic)
    });
    assert_eq!(outer.contains(inner), expected, "{outer} and {inner}");
    assert!(!expected || outer.overlaps(inner), "{outer} and {inner}");
}

/// A topic of both patterns, which overlap.
fn meeting(one: &[&str], other: &[&str]) -> String {
    let any = |part: &str| if part.starts_with('*') { STRANGER.to_string() } else { part.to_string() };
    let mut topic: Vec<String> = Vec::new();
    for at in 0..one.len().max(other.len()) {
        topic.push(match (one.get(at), other.get(at)) {
            (Some(&"**") | None, Some(part)) | (Some(part), Some(&"**") | None) => any(part),
            (Some(&"*"), Some(part)) | (Some(part), _) => any(part),
            (None, None) => unreachable!("one of them is as long"),
        });
    }
    topic.join("/")
}

/// The first line is a topic, the rest a configuration file, of which the rules are read. What is
/// wrong with them is told in one line; of valid ones each topic is told what holds for it.
pub fn rules_of_a_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (topic, file) = text.split_once('\n').unwrap_or((text, ""));
    let Ok(table) = toml::de::DeTable::parse(file) else { return };
    let Some((_, value)) = table.get_ref().iter().find(|(key, _)| key.get_ref() == KEY) else { return };
    let limits = Limits::default();
    let rules = match RuleText::read(value, file).and_then(|texts| Rules::new(&texts, &limits)) {
        Ok(rules) => rules,
        Err(error) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains(['\n', '\r']), "one line: {error:?}");
            return;
        }
    };
    let lines: Vec<usize> = rules.iter().map(|rule| rule.line).collect();
    assert!(lines.len() <= RULES_MAX && lines.is_sorted(), "{lines:?}");
    assert!(lines.iter().all(|line| (1..=1 + file.matches('\n').count()).contains(line)), "{lines:?}");
    let Ok(topic) = Topic::new(topic) else { return };
    let names = segments(topic.as_str());
    let first = rules.iter().find(|rule| stands_for(&segments(rule.pattern.as_str()), &names)).cloned();
    assert_eq!(rules.of(topic.as_str()), first.as_ref(), "the first one that stands for {topic}");
    let told = told_of(&topic, &Config { rules, limits, ..Config::default() });
    let which = first.map_or("no rule".to_string(), |rule| format!("the rule in line {}", rule.line));
    assert!(told.starts_with(&format!("{topic}: {which}")) && told.ends_with('\n'), "{told}");
}

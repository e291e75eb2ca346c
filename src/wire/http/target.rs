//! The target of a request (RFC 9112 §3.2): which of our paths it is, and which topics and id it
//! names.
//!
//! In a path `+` is a plus; in a query it is a space (application/x-www-form-urlencoded). Places
//! are told as bytes of the target, from 0. A malformed escape is refused where it matters to us,
//! and not looked at in what we ignore.

use std::borrow::Cow;

use super::last_event_id::LastEventId;
use super::{RefusedRequest, refuse};
use crate::close::CloseReason;
use crate::event::Topic;
use crate::topic_pattern::Pattern;
use crate::wire::start::{SINCE_MS_MAX, parse_duration_ms};
use crate::wire::{Family, SlowPolicy, Start};

/// Names under which a query may bring the last event id: ours, and those that other servers taught
/// their clients.
pub(crate) const LAST_EVENT_ID_NAMES: [&str; 6] =
    ["last-event-id", "lastEventId", "lastEventID", "last_event_id", "Last-Event-ID", "after"];

/// Said to those who ask for another path.
const PATHS: &str = "not a path of ours: /sse/{topic}, /sse?topic=..., /ws/{topic}, /ws?topic=..., \
     POST /topics/{topic}, /healthz";

/// Where the path of a topic begins that is published to.
const TOPIC_PATH: &str = "/topics/";

/// Which of our paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// `/sse` or `/ws`.
    Subscribe(Family),
    /// `/healthz`.
    Health,
    /// `/`.
    Front,
    /// `/echo`, where the operator allows it.
    Echo,
    /// `/topics/{topic}`, to publish to.
    Topic,
    /// `*`: the server as a whole (RFC 9110 §9.3.7).
    Server,
}

impl Route {
    /// The value of `Allow`: what may be asked there.
    pub(super) fn allow(self) -> &'static str {
        match self {
            // The handshake of a WebSocket is a GET, and has no head alone.
            Route::Subscribe(Family::WebSocket) | Route::Echo => "GET, OPTIONS",
            Route::Server => "OPTIONS",
            Route::Topic => "POST, OPTIONS",
            Route::Subscribe(Family::EventStream) | Route::Health | Route::Front => "GET, HEAD, OPTIONS",
        }
    }
}

/// A target on one of our paths, its parts still escaped.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) route: Route,
    /// The path's topic, if the path has that part.
    topic: Option<Part<'a>>,
    query: Option<Part<'a>>,
}

/// What a subscriber wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Distinct, perhaps none. Those with a `*` are patterns.
    pub(super) topics: Vec<Topic>,
    /// From the query.
    pub(super) start: Start,
    /// What happens when it falls behind, if the query says so.
    pub(super) slow: Option<SlowPolicy>,
}

/// A piece of the target and the byte where it begins.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Part<'a> {
    /// The part from its byte `from` to its byte `to`.
    fn slice(self, from: usize, to: usize) -> Part<'a> {
        Part { text: &self.text[from..to], at: self.at + from }
    }

    /// The parts before and after the first `separator`.
    fn split(self, separator: char) -> (Part<'a>, Option<Part<'a>>) {
        match self.text.find(separator) {
            Some(at) => (self.slice(0, at), Some(self.slice(at + separator.len_utf8(), self.text.len()))),
            None => (self, None),
        }
    }
}

impl<'a> Target<'a> {
    /// Finds the path; the rest is looked at by [`Target::wanted`]. `/echo` is one only if `echo`.
    pub(super) fn new(target: &'a str, echo: bool) -> Result<Target<'a>, RefusedRequest> {
        if let Some(at) = target.find('#') {
            return Err(bad(format!("a '#' at byte {at} of the target; a topic writes it as %23")));
        }
        let (path, query) = without_authority(target).split('?');
        for (part, query) in [(Some(path), false), (query, true)] {
            let Some(part) = part else { continue };
            if let Some((at, c)) = must_be_escaped(part.text, query) {
                let at = part.at + at;
                return Err(bad(format!(
                    "a '{c}' at byte {at} of the target; write it as %{:02X}",
                    c as u32
                )));
            }
        }
        let (route, topic) = match path.text {
            "" if path.at > 0 => (Route::Front, None),
            "/" => (Route::Front, None),
            "*" => (Route::Server, None),
            "/healthz" => (Route::Health, None),
            "/echo" if echo => (Route::Echo, None),
            "/sse" => (Route::Subscribe(Family::EventStream), None),
            "/ws" => (Route::Subscribe(Family::WebSocket), None),
            text => {
                let (route, prefix) = if text.starts_with("/sse/") {
                    (Route::Subscribe(Family::EventStream), "/sse/")
                } else if text.starts_with("/ws/") {
                    (Route::Subscribe(Family::WebSocket), "/ws/")
                } else if text.starts_with(TOPIC_PATH) {
                    (Route::Topic, TOPIC_PATH)
                } else {
                    return Err(refuse(CloseReason::NotFound, PATHS));
                };
                (route, Some(path.slice(prefix.len(), text.len())))
            }
        };
        Ok(Target { route, topic, query })
    }

    /// The topic that the path names, still escaped.
    pub(super) fn topic(&self) -> Option<&'a str> {
        self.topic.map(|part| part.text)
    }

    /// The query, still escaped.
    pub(super) fn query(&self) -> Option<&'a str> {
        self.query.map(|part| part.text)
    }

    /// The first token of the query, if one stands there.
    pub(super) fn token(&self) -> Result<Option<String>, RefusedRequest> {
        let mut rest = self.query;
        while let Some(query) = rest {
            let (pair, behind) = query.split('&');
            rest = behind;
            if let Some(value) = token_in(pair) {
                let token = decoded(value, true).map_err(|fault| fault.refusal("the token"))?;
                return Ok(Some(token.into_owned()));
            }
        }
        Ok(None)
    }

    /// The topics and where they begin, decoded and checked. The strongest start alone counts: an
    /// id, then `since`, then `last`; of several of a kind the first.
    pub(super) fn wanted(&self, topics_max: usize) -> Result<Wanted, RefusedRequest> {
        let mut wanted = Wanted { topics: Vec::with_capacity(1), start: Start::Now, slow: None };
        let (mut after, mut since, mut last) = (None, None, None);
        if let Some(part) = self.topic {
            wanted.add_topic(part, false, topics_max)?;
        }
        let mut rest = self.query;
        while let Some(query) = rest {
            let (pair, behind) = query.split('&');
            rest = behind;
            let (name, value) = pair.split('=');
            let value = value.unwrap_or(name.slice(name.text.len(), name.text.len()));
            match decoded(name, true).as_deref() {
                Ok("topic") => wanted.add_topic(value, true, topics_max)?,
                Ok("match") => wanted.add_pattern(value, topics_max)?,
                // What it holds is the client's matter, as in the header field.
                Ok("slow") => wanted.slow = wanted.slow.or(Some(parse_slow(value)?)),
                Ok("since") => since = since.or(Some(parse_since(value)?)),
                Ok("last") => last = last.or(Some(parse_last(value)?)),
                Ok(name) if LAST_EVENT_ID_NAMES.contains(&name) && after.is_none() => {
                    let spaced = value.text.replace('+', " ");
                    let bytes: Cow<'_, [u8]> = percent_encoding::percent_decode_str(&spaced).into();
                    after = LastEventId::new(&bytes);
                }
                _ => {}
            }
        }
        let others = since.map(Start::Since).or(last.map(Start::Last));
        wanted.start = after.map(Start::After).or(others).unwrap_or_default();
        Ok(wanted)
    }

    /// Refuses a subscriber of no topic.
    pub(super) fn no_topic(&self) -> RefusedRequest {
        let path = if self.route == Route::Subscribe(Family::EventStream) { "/sse" } else { "/ws" };
        bad(format!("no topic: ask for {path}/{{topic}}, {path}?topic=... or {path}?match=..."))
    }
}

impl Wanted {
    fn add_topic(
        &mut self,
        part: Part<'_>,
        plus_is_space: bool,
        topics_max: usize,
    ) -> Result<(), RefusedRequest> {
        let name = decoded(part, plus_is_space).map_err(|fault| fault.refusal("the topic"))?;
        let topic = Topic::new(&name)
            .map_err(|error| bad(format!("{error}; it begins at byte {} of the target", part.at)))?;
        if name.contains('*') {
            let at = part.at;
            return Err(bad(format!(
                "a '*' in the topic that begins at byte {at} of the target; for many topics use match: ?match=news/**"
            )));
        }
        self.add(topic, topics_max)
    }

    fn add_pattern(&mut self, part: Part<'_>, topics_max: usize) -> Result<(), RefusedRequest> {
        let text = decoded(part, true).map_err(|fault| fault.refusal("the pattern"))?;
        let pattern = Pattern::new(&text)
            .map_err(|error| bad(format!("{error}; it begins at byte {} of the target", part.at)))?;
        self.add(pattern.into_name(), topics_max)
    }

    fn add(&mut self, topic: Topic, topics_max: usize) -> Result<(), RefusedRequest> {
        if self.topics.contains(&topic) {
            return Ok(());
        }
        if self.topics.len() >= topics_max {
            return Err(bad(format!(
                "more than {topics_max} topics on one connection (--topics-per-connection-max)"
            )));
        }
        self.topics.push(topic);
        Ok(())
    }
}

/// What stands behind `token=`, if the pair of a query is of that name and says something.
fn token_in(pair: Part<'_>) -> Option<Part<'_>> {
    let (name, value) = pair.split('=');
    let is_token = decoded(name, true).is_ok_and(|name| name == "token");
    value.filter(|value| is_token && !value.text.is_empty())
}

/// A query without its tokens, for those who read all of it.
pub(super) fn without_token(query: &str) -> Cow<'_, str> {
    let is_token = |pair: &&str| token_in(Part { text: pair, at: 0 }).is_some();
    match query.split('&').any(|pair| is_token(&pair)) {
        true => query.split('&').filter(|pair| !is_token(pair)).collect::<Vec<_>>().join("&").into(),
        false => query.into(),
    }
}

/// How far back in time a subscriber begins.
fn parse_since(value: Part<'_>) -> Result<u64, RefusedRequest> {
    parse_duration_ms(value.text).filter(|ms| *ms <= SINCE_MS_MAX).ok_or_else(|| {
        let at = value.at;
        bad(format!("since is no time at byte {at} of the target; write 500ms, 30s, 5m or 1h, at most 555h"))
    })
}

/// What happens when a subscriber falls behind.
fn parse_slow(value: Part<'_>) -> Result<SlowPolicy, RefusedRequest> {
    value
        .text
        .parse()
        .map_err(|told| bad(format!("slow is no policy at byte {} of the target; {told}", value.at)))
}

/// With how many events of each topic a subscriber begins.
fn parse_last(value: Part<'_>) -> Result<u64, RefusedRequest> {
    let number = value.text.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.text.parse().ok());
    number.flatten().ok_or_else(|| {
        let at = value.at;
        bad(format!("last is no number of events at byte {at} of the target; write for example last=10"))
    })
}

/// True if a request line goes on with the target of a topic that is published to.
pub(super) fn is_topic_target(line: &[u8]) -> bool {
    if line.starts_with(TOPIC_PATH.as_bytes()) {
        return true;
    }
    let target = line.split(|byte| matches!(byte, b' ' | b'\r' | b'\n')).next().unwrap_or_default();
    let target = std::str::from_utf8(target).unwrap_or_default();
    without_authority(target).text.starts_with(TOPIC_PATH)
}

/// Path and query of a target, which may also come in absolute form (RFC 9112 §3.2.2).
fn without_authority(target: &str) -> Part<'_> {
    let whole = Part { text: target, at: 0 };
    let has =
        |scheme: &&str| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    match ["http://", "https://"].iter().copied().find(has) {
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let start = rest.find(['/', '?']).map_or(target.len(), |at| scheme.len() + at);
            whole.slice(start, target.len())
        }
        None => whole,
    }
}

/// The first character that no target may hold as it is (RFC 3986 §3.3, §3.4), and where; those
/// that browsers leave as they are may stand. The control plane's parser is as strict.
pub(crate) fn must_be_escaped(text: &str, is_query: bool) -> Option<(usize, char)> {
    let never: &[char] = match is_query {
        true => &['"', '<', '>'],
        false => &['<', '>', '`'],
    };
    text.find(never).and_then(|at| Some((at, text[at..].chars().next()?)))
}

/// Why a part cannot be decoded.
#[derive(Debug, Clone, Copy)]
struct Fault<'a> {
    part: Part<'a>,
    /// Its places are bytes of the part.
    fault: EscapeFault,
}

impl Fault<'_> {
    fn refusal(self, what: &str) -> RefusedRequest {
        let begin = self.part.at;
        bad(match self.fault {
            EscapeFault::Malformed(at) => {
                format!("{what} has a bad percent escape at byte {} of the target", begin + at)
            }
            EscapeFault::NotUtf8(_) => {
                format!("{what} is not UTF-8; it begins at byte {begin} of the target")
            }
        })
    }
}

fn decoded(part: Part<'_>, plus_is_space: bool) -> Result<Cow<'_, str>, Fault<'_>> {
    percent_decoded(part.text, plus_is_space).map_err(|fault| Fault { part, fault })
}

/// Why a percent-encoded text cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EscapeFault {
    /// A `%` without two hexadecimal digits at this byte of the text as given.
    Malformed(usize),
    /// The decoded text is UTF-8 up to this byte only.
    NotUtf8(usize),
}

/// Percent-decodes `text` to UTF-8 (RFC 3986 §2.1); `plus_is_space` in queries.
pub(crate) fn percent_decoded(text: &str, plus_is_space: bool) -> Result<Cow<'_, str>, EscapeFault> {
    let bytes = text.as_bytes();
    for at in memchr::memchr_iter(b'%', bytes) {
        let escape = bytes.get(at + 1..at + 3);
        if !escape.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
            return Err(EscapeFault::Malformed(at));
        }
    }
    let not_utf8 = |error: std::str::Utf8Error| EscapeFault::NotUtf8(error.valid_up_to());
    if plus_is_space && text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8().map_err(not_utf8)?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_encoding::percent_decode_str(text).decode_utf8().map_err(not_utf8)
}

fn bad(detail: String) -> RefusedRequest {
    refuse(CloseReason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(target: &str) -> Result<Wanted, RefusedRequest> {
        let target = Target::new(target, false)?;
        let wanted = target.wanted(3)?;
        if wanted.topics.is_empty() { Err(target.no_topic()) } else { Ok(wanted) }
    }

    #[test]
    fn topics_come_from_path_and_query_distinct_and_in_order() {
        for (target, topics) in [
            ("/sse/a", &["a"][..]),
            ("/ws/a/b", &["a/b"]),
            ("/sse//a/", &["/a/"]),
            ("/sse/a%2Fb%20c", &["a/b c"]),
            ("/sse/a+b", &["a+b"]),
            ("/sse?topic=a+b%2B", &["a b+"]),
            ("/sse/r%C3%A4ume", &["räume"]),
            ("/sse/räume", &["räume"]),
            ("/sse?topic=a&topic=b&topic=a", &["a", "b"]),
            ("/sse/c?topic=b&topic=c&&x=%zz&y&%zz=1&topic=a", &["c", "b", "a"]),
            ("/sse?%74opic=a=b", &["a=b"]),
            ("HTTP://edge.example:80/sse/a?topic=b", &["a", "b"]),
            ("https://edge.example/sse/a", &["a"]),
            ("/sse/a?match=b/*&topic=c", &["a", "b/*", "c"]),
            ("/ws?match=a&topic=a&match=%2A%2A", &["a", "**"]),
            ("/sse/{\"a\"|^}?topic=`{|}", &["{\"a\"|^}", "`{|}"]),
        ] {
            let names: Vec<String> =
                wanted(target).expect(target).topics.iter().map(Topic::to_string).collect();
            assert_eq!(names, topics, "{target}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let long = format!("/sse?topic={}", "x".repeat(256));
        for (target, detail) in [
            ("/sse", "no topic: ask for /sse/{topic}, /sse?topic=... or /sse?match=..."),
            ("/ws?", "no topic: ask for /ws/{topic}, /ws?topic=... or /ws?match=..."),
            (
                "/sse/a/*",
                "a '*' in the topic that begins at byte 5 of the target; for many topics use match: ?match=news/**",
            ),
            (
                "/ws?topic=%2A",
                "a '*' in the topic that begins at byte 10 of the target; for many topics use match: ?match=news/**",
            ),
            ("/sse/a?slow=", "slow is no policy at byte 12 of the target; write close, skip or latest"),
            ("/sse?match=", "the pattern is empty; it begins at byte 11 of the target"),
            (
                "/sse/a?match=**/b",
                "** stands before the end of the pattern; it is its last segment or none; it begins at byte 13 of the target",
            ),
            ("/sse?match=%+1", "the pattern has a bad percent escape at byte 11 of the target"),
            ("/sse/", "the topic is empty; it begins at byte 5 of the target"),
            ("/sse/a?topic=", "the topic is empty; it begins at byte 13 of the target"),
            ("/sse/a?topic", "the topic is empty; it begins at byte 12 of the target"),
            ("/sse/a%0Ab", "the topic has a control character at byte 1; it begins at byte 5 of the target"),
            (&long, "the topic has 256 bytes, at most 255 are allowed; it begins at byte 11 of the target"),
            ("/sse/a%2", "the topic has a bad percent escape at byte 6 of the target"),
            ("/sse?topic=%+1", "the topic has a bad percent escape at byte 11 of the target"),
            ("http://e/sse/%", "the topic has a bad percent escape at byte 13 of the target"),
            ("/sse/a?topic=b%ff", "the topic is not UTF-8; it begins at byte 13 of the target"),
            ("/sse/a#b", "a '#' at byte 6 of the target; a topic writes it as %23"),
            (
                "/sse?topic=a&topic=b&topic=c&topic=d",
                "more than 3 topics on one connection (--topics-per-connection-max)",
            ),
            ("/sse/<b>", "a '<' at byte 5 of the target; write it as %3C"),
            ("/sse/a`b", "a '`' at byte 6 of the target; write it as %60"),
            ("/sse?topic=>", "a '>' at byte 11 of the target; write it as %3E"),
            ("https://e/sse?topic=\"", "a '\"' at byte 20 of the target; write it as %22"),
        ] {
            let refusal = wanted(target).expect_err(target);
            assert_eq!((refusal.reason, &*refusal.detail), (CloseReason::BadRequest, detail), "{target}");
        }
    }

    #[test]
    fn the_query_may_name_the_last_event_id() {
        for (target, id) in [
            ("/sse/a?last-event-id=x-1", Some("x-1")),
            ("/sse/a?last-event-id=a+b%2B", Some("a b+")),
            ("/sse/a?last-event-id=", None),
            ("/sse/a?Last-Event-ID=x", Some("x")),
            ("/sse/a?lastEventId=x", Some("x")),
            ("/sse/a?lastEventID=x", Some("x")),
            ("/sse/a?last_event_id=x", Some("x")),
            ("/sse/a?after=x", Some("x")),
            ("/sse/a?after=x&last-event-id=x", Some("x")),
            ("/sse/a?after=x&last-event-id=y&after=z", Some("x")),
            ("/sse/a?lastEventId=&after=x", Some("x")),
            ("/sse/a?LastEventId=x", None),
            ("/sse/a?after=x%00", Some("x\0")),
            ("/sse/a?after=%x+%", Some("%x %")),
            ("/sse/a?after=%fe%C3%A4", Some("þÃ¤")),
            ("/sse/a?after=%C3%A4", Some("ä")),
        ] {
            let wanted = wanted(target).expect(target);
            assert_eq!(wanted.start.after().map(LastEventId::as_str), id, "{target}");
        }
    }

    #[test]
    fn the_strongest_start_of_a_query_counts() {
        let id = |text| Start::After(LastEventId::from_text(text).expect("an id"));
        for (target, start) in [
            ("/sse/a", Start::Now),
            ("/sse/a?since=30s", Start::Since(30_000)),
            ("/ws/a?last=10", Start::Last(10)),
            ("/sse/a?last=10&since=5m", Start::Since(300_000)),
            ("/sse/a?last=10&since=5m&after=x", id("x")),
            ("/sse/a?after=&last=3&last=4", Start::Last(3)),
            ("/sse/a?since=0s&since=1s", Start::Since(0)),
        ] {
            assert_eq!(wanted(target).expect(target).start, start, "{target}");
        }
        for (target, detail) in [
            (
                "/sse/a?since=30",
                "since is no time at byte 13 of the target; write 500ms, 30s, 5m or 1h, at most 555h",
            ),
            (
                "/sse/a?after=x&since=556h",
                "since is no time at byte 21 of the target; write 500ms, 30s, 5m or 1h, at most 555h",
            ),
            (
                "/sse/a?last=",
                "last is no number of events at byte 12 of the target; write for example last=10",
            ),
            (
                "/ws/a?last=-1",
                "last is no number of events at byte 11 of the target; write for example last=10",
            ),
        ] {
            let refusal = wanted(target).expect_err(target);
            assert_eq!((refusal.reason, &*refusal.detail), (CloseReason::BadRequest, detail), "{target}");
        }
    }

    #[test]
    fn only_our_paths_are_found() {
        for target in ["/ss", "/ssex", "/SSE/a", "/healthz/", "/echo", "sse/a", "", "ftp://e", "/%73se/a"] {
            assert_eq!(wanted(target).expect_err(target).reason, CloseReason::NotFound, "{target}");
        }
        for (target, route) in [
            ("/healthz?x", Route::Health),
            ("/", Route::Front),
            ("/?x", Route::Front),
            ("http://e", Route::Front),
            ("https://e?topic=a", Route::Front),
            ("*", Route::Server),
        ] {
            assert_eq!(Target::new(target, false).map(|target| target.route), Ok(route), "{target}");
        }
        assert_eq!(Target::new("/echo?x", true).map(|target| target.route), Ok(Route::Echo));
    }
}

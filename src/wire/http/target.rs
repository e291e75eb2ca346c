//! The target of a request (RFC 9112 §3.2): which of our paths it is, and which topics and id it names.
//!
//! In a path `+` is a plus; in a query it is a space (application/x-www-form-urlencoded). Places are told as bytes of
//! the target, from 0. A malformed escape is refused where it matters to us, and not looked at in what we ignore.

use std::borrow::Cow;

use super::{Refusal, refuse};
use crate::close::CloseReason;
use crate::event::{Field, FieldError, Topic};
use crate::wire::Format;

/// Said to those who ask for another path.
const PATHS: &str = "not a path of ours: /sse/{topic}, /sse?topic=..., /ws/{topic}, /ws?topic=..., /healthz";

/// Which of our paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// `/sse` or `/ws`.
    Subscribe(Format),
    /// `/healthz`.
    Health,
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
    /// Distinct, at least one.
    pub(super) topics: Vec<Topic>,
    /// From the query; never empty.
    pub(super) last_event_id: Option<String>,
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
    /// Finds the path; the rest is looked at by [`Target::wanted`].
    pub(super) fn new(target: &'a str) -> Result<Target<'a>, Refusal> {
        if let Some(at) = target.find('#') {
            return Err(bad(format!("a '#' at byte {at} of the target; a topic writes it as %23")));
        }
        let (path, query) = without_authority(target).split('?');
        let (route, topic) = match path.text {
            "/healthz" => (Route::Health, None),
            "/sse" => (Route::Subscribe(Format::Sse), None),
            "/ws" => (Route::Subscribe(Format::WebSocket), None),
            text => {
                let (format, prefix) = if text.starts_with("/sse/") {
                    (Format::Sse, "/sse/")
                } else if text.starts_with("/ws/") {
                    (Format::WebSocket, "/ws/")
                } else {
                    return Err(refuse(CloseReason::NotFound, PATHS));
                };
                (Route::Subscribe(format), Some(path.slice(prefix.len(), text.len())))
            }
        };
        Ok(Target { route, topic, query })
    }

    /// The topics and the last event id, decoded and checked.
    pub(super) fn wanted(&self, topics_max: usize) -> Result<Wanted, Refusal> {
        let mut wanted = Wanted { topics: Vec::with_capacity(1), last_event_id: None };
        let mut id_seen = false;
        if let Some(part) = self.topic {
            wanted.add_topic(part, false, topics_max)?;
        }
        let mut rest = self.query;
        while let Some(query) = rest {
            let (pair, after) = query.split('&');
            rest = after;
            let (name, value) = pair.split('=');
            let value = value.unwrap_or(name.slice(name.text.len(), name.text.len()));
            match decoded(name, true).as_deref() {
                Ok("topic") => wanted.add_topic(value, true, topics_max)?,
                Ok("last-event-id") => {
                    if std::mem::replace(&mut id_seen, true) {
                        return Err(bad(format!("a second last-event-id at byte {} of the target", name.at)));
                    }
                    let what = "the query's last-event-id";
                    let id = decoded(value, true).map_err(|fault| fault.refusal(what))?;
                    wanted.last_event_id = checked_id(&id).map_err(|error| {
                        bad(format!("{what} at byte {} of the target is none: {error}", value.at))
                    })?;
                }
                _ => {}
            }
        }
        if wanted.topics.is_empty() {
            let path = if self.route == Route::Subscribe(Format::Sse) { "/sse" } else { "/ws" };
            return Err(bad(format!("no topic: ask for {path}/{{topic}} or {path}?topic=...")));
        }
        Ok(wanted)
    }
}

impl Wanted {
    fn add_topic(&mut self, part: Part<'_>, plus_is_space: bool, topics_max: usize) -> Result<(), Refusal> {
        let name = decoded(part, plus_is_space).map_err(|fault| fault.refusal("the topic"))?;
        let topic = Topic::new(&name)
            .map_err(|error| bad(format!("{error}; it begins at byte {} of the target", part.at)))?;
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

/// Checks a last event id. An empty one says that the client has none (WHATWG HTML §9.2.4).
pub(super) fn checked_id(id: &str) -> Result<Option<String>, FieldError> {
    match Field::new(id) {
        Ok(_) => Ok(Some(id.to_string())),
        Err(FieldError::Empty) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Path and query of a target, which may also come in absolute form (RFC 9112 §3.2.2).
fn without_authority(target: &str) -> Part<'_> {
    const SCHEME: &str = "http://";
    let whole = Part { text: target, at: 0 };
    match target.get(..SCHEME.len()) {
        Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => {
            let start = target[SCHEME.len()..].find(['/', '?']).map_or(target.len(), |at| SCHEME.len() + at);
            whole.slice(start, target.len())
        }
        _ => whole,
    }
}

/// Why a part cannot be decoded.
#[derive(Debug, Clone, Copy)]
struct Fault<'a> {
    part: Part<'a>,
    /// Its places are bytes of the part.
    fault: EscapeFault,
}

impl Fault<'_> {
    fn refusal(self, what: &str) -> Refusal {
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

fn bad(detail: String) -> Refusal {
    refuse(CloseReason::BadRequest, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(target: &str) -> Result<Wanted, Refusal> {
        Target::new(target).and_then(|target| target.wanted(3))
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
            ("/sse", "no topic: ask for /sse/{topic} or /sse?topic=..."),
            ("/ws?", "no topic: ask for /ws/{topic} or /ws?topic=..."),
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
            (
                "/sse/a?last-event-id=x%00",
                "the query's last-event-id at byte 21 of the target is none: it has a NUL or a line break at byte 1",
            ),
            (
                "/sse/a?last-event-id=%x",
                "the query's last-event-id has a bad percent escape at byte 21 of the target",
            ),
            (
                "/sse/a?last-event-id=%fe",
                "the query's last-event-id is not UTF-8; it begins at byte 21 of the target",
            ),
            ("/sse/a?last-event-id=1&last-event-id=2", "a second last-event-id at byte 23 of the target"),
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
            ("/sse/a?Last-Event-ID=x", None),
        ] {
            assert_eq!(wanted(target).expect(target).last_event_id.as_deref(), id, "{target}");
        }
    }

    #[test]
    fn only_our_paths_are_found() {
        for target in [
            "/",
            "/ss",
            "/ssex",
            "/SSE/a",
            "/healthz/",
            "*",
            "http://e",
            "http://e?topic=a",
            "sse/a",
            "/%73se/a",
        ] {
            assert_eq!(wanted(target).expect_err(target).reason, CloseReason::NotFound, "{target}");
        }
        assert_eq!(Target::new("/healthz?x").map(|target| target.route), Ok(Route::Health));
    }
}

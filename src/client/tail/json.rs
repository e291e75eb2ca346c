//! One subscription over `fanwave.v1.json`, over as many connections as it takes.
//!
//! Topics and patterns are subscribed by commands, a few at a time. Each of them remembers up to
//! which position it has its events, and begins there when the connection was cut: `since` and
//! `last` count until the server has named a position.
//!
//! A topic may be one of several patterns. What begins lower than the others gets events again that
//! came by another one: they are told by their position, and printed once. This rests on the order
//! of a connection: after the `ok` of a subscription its events come by rising sequences, whatever
//! else is subscribed (`shard/connections`).

use std::ops::ControlFlow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use reqwest::Url;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use super::super::ClientError;
use super::super::conversation::{Done, Event, Failure, Heard, SUBPROTOCOL, command};
use super::super::trust::Trust;
use super::super::websocket::{Read, Socket, Target, leave};
use super::{Ended, Options, Output, Payload};
use crate::event::{EventId, Topic};
use crate::wire::SlowPolicy;
use crate::wire::envelope::Named;
use crate::wire::http::{LAST_EVENT_ID_NAMES, percent_decoded};
use crate::wire::start::parse_duration_ms;

/// Subscriptions that may wait for their answer at a time. Their commands and answers fit the
/// kernel's buffers, so neither side waits for the other one.
const UNANSWERED_MAX: usize = 16;

/// The subscription.
pub(super) struct Stream {
    /// As the user wrote it.
    name: Url,
    /// Without topics and starts, which commands say.
    url: Url,
    subscriptions: Vec<Subscription>,
    start: Start,
    slow: Option<SlowPolicy>,
    /// What lets us in.
    bearer: Option<HeaderValue>,
    trust: Trust,
    answer_time_max: Duration,
}

/// A topic or a pattern.
struct Subscription {
    of: Named,
    /// What it has; `None` until the server has named a position.
    span: Option<Span>,
    /// True exactly while the connection that is open has its `ok`.
    is_open: bool,
}

/// Sequences whose events came or were not asked for: `after < sequence <= until` came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    after: EventId,
    until: u64,
}

/// Where subscriptions begin at first, as a command says it.
type Start = Option<(&'static str, serde_json::Value)>;

impl Span {
    fn has(&self, at: EventId) -> bool {
        self.after.epoch == at.epoch && (self.after.sequence + 1..=self.until).contains(&at.sequence)
    }

    fn position(&self) -> EventId {
        EventId { sequence: self.until, ..self.after }
    }
}

impl Subscription {
    /// Takes note of the position that the server has named.
    fn open(&mut self, after: EventId) {
        self.is_open = true;
        if self.span.is_none_or(|span| span.position() != after) {
            self.span = Some(Span { after, until: after.sequence });
        }
    }

    fn is_about(&self, topic: &str) -> bool {
        match &self.of {
            Named::Topic(name) => name.as_str() == topic,
            Named::Match(pattern) => pattern.matches(topic),
        }
    }

    /// The members of the command that subscribes.
    fn members(&self, start: &Start, slow: Option<SlowPolicy>) -> serde_json::Value {
        let mut members = serde_json::Map::new();
        let kind = if matches!(self.of, Named::Topic(_)) { "topic" } else { "match" };
        members.insert(kind.to_string(), self.of.name().as_str().into());
        match (&self.span, start) {
            (Some(span), _) => {
                members.insert("after".to_string(), span.position().to_string().into());
            }
            (None, Some((name, value))) => {
                members.insert(name.to_string(), value.clone());
            }
            (None, None) => {}
        }
        if let Some(slow) = slow {
            members.insert("slow".to_string(), slow.to_string().into());
        }
        members.into()
    }
}

impl Stream {
    pub(super) fn new(
        name: Url,
        options: &Options,
        bearer: Option<HeaderValue>,
        trust: Trust,
        answer_time_max: Duration,
    ) -> Result<Stream, ClientError> {
        let usage = |cause: String| ClientError::Usage(format!("`{}` {cause}", options.url));
        let Asked { url, mut wanted, start, slow } = Asked::of(&name).map_err(usage)?;
        wanted.extend(options.matches.iter().cloned().map(Named::Match));
        if wanted.is_empty() {
            return Err(usage(
                "names no topic; write ws://HOST:PORT/ws/TOPIC, or --match PATTERN".to_string(),
            ));
        }
        let mut subscriptions: Vec<Subscription> = Vec::new();
        for of in wanted {
            // A pattern without a `*` is that topic.
            if !subscriptions.iter().any(|other| other.of.name() == of.name()) {
                subscriptions.push(Subscription { of, span: None, is_open: false });
            }
        }
        // A flag is stronger than what the address says.
        let flag: Start = match (&options.after, options.since, options.last) {
            (Some(id), _, _) => Some(("after", id.as_str().into())),
            (None, Some(ms), _) => Some(("since_ms", ms.into())),
            (None, None, last) => last.map(|events| ("last", events.into())),
        };
        let (start, slow) = (flag.or(start), options.slow.or(slow));
        Ok(Stream { name, url, subscriptions, start, slow, bearer, trust, answer_time_max })
    }

    /// Connects once and prints until the connection is over.
    pub(super) async fn follow(&mut self, output: &mut Output<'_>) -> Ended {
        let target = Target {
            url: &self.url,
            name: &self.name,
            subprotocol: Some(SUBPROTOCOL),
            bearer: self.bearer.as_ref(),
            trust: &self.trust,
        };
        let mut socket = match target.open(self.answer_time_max).await {
            Ok(socket) => socket,
            Err(unopened) => return unopened.into(),
        };
        output.connected(&self.name, None);
        for subscription in &mut self.subscriptions {
            subscription.is_open = false;
        }
        let ended = match self.converse(&mut socket, output).await {
            ControlFlow::Break(ended) => ended,
            ControlFlow::Continue(never) => match never {},
        };
        leave(&mut socket, !matches!(ended, Ended::Lost { .. })).await;
        ended
    }

    /// Subscribes, and prints what comes.
    async fn converse(
        &mut self,
        socket: &mut Socket,
        output: &mut Output<'_>,
    ) -> ControlFlow<Ended, std::convert::Infallible> {
        let (mut said, mut answered) = (0, 0);
        let mut due = Instant::now() + self.answer_time_max;
        loop {
            while said < self.subscriptions.len().min(answered + UNANSWERED_MAX) {
                let members = self.subscriptions[said].members(&self.start, self.slow);
                let message = Message::text(command(said as u64, "subscribe", members));
                // What the server says tells more than a send that fails.
                if timeout_at(due, socket.send(message)).await.is_err() {
                    return self.is_silent();
                }
                said += 1;
            }
            let next = match answered < said {
                true => timeout_at(due, socket.next()).await,
                false => Ok(socket.next().await),
            };
            let Ok(next) = next else { return self.is_silent() };
            let text = match Read::of(next) {
                Read::Message(Message::Text(text)) => text,
                Read::Message(_) => return self.is_foreign("a binary message"),
                Read::Alive => continue,
                Read::Over(over) => return ControlFlow::Break(Ended::lost(over.why)),
            };
            match serde_json::from_str(&text) {
                Ok(Heard::Done { reference, ok }) if reference == answered as u64 && answered < said => {
                    self.opened(answered, &ok)?;
                    answered += 1;
                    due = Instant::now() + self.answer_time_max;
                }
                Ok(Heard::Failed { reference, error }) => return self.failed(reference, &error),
                Ok(Heard::Gap { gap }) => output.gap(gap.after.as_deref().unwrap_or_default(), &text)?,
                Ok(Heard::Event(event)) => self.print(&event, output)?,
                Ok(Heard::Other(_)) => {}
                Ok(Heard::Done { .. }) => return self.is_foreign("an answer to nothing"),
                Err(error) => return self.is_foreign(&error.to_string()),
            }
        }
    }

    /// The server owes an answer for too long.
    fn is_silent<T>(&self) -> ControlFlow<Ended, T> {
        ControlFlow::Break(Ended::lost(format!("{}: no answer in time", self.name)))
    }

    /// The server says what it cannot say in our language.
    fn is_foreign<T>(&self, what: &str) -> ControlFlow<Ended, T> {
        let line = format!("{} does not speak {SUBPROTOCOL}: {what}", self.name);
        ControlFlow::Break(Ended::Refused(line))
    }

    fn opened(&mut self, index: usize, ok: &Done) -> ControlFlow<Ended> {
        match ok.after.as_deref().and_then(|id| id.parse().ok()) {
            Some(after) => self.subscriptions[index].open(after),
            None => return self.is_foreign("a subscription without a position"),
        }
        ControlFlow::Continue(())
    }

    fn failed<T>(&self, reference: Option<u64>, error: &Failure) -> ControlFlow<Ended, T> {
        let subscription = reference.and_then(|number| self.subscriptions.get(number as usize));
        let line = match subscription {
            Some(subscription) => format!("{}: {error}", subscription.of.name()),
            None => error.to_string(),
        };
        ControlFlow::Break(match error.is_of_this_server() {
            true => Ended::lost(line),
            false => Ended::Refused(line),
        })
    }

    fn print(&mut self, event: &Event, output: &mut Output<'_>) -> ControlFlow<Ended> {
        let Ok(at) = event.position().parse::<EventId>() else {
            return self.is_foreign("an event without a position");
        };
        if !self.is_new(&event.topic, at) {
            return ControlFlow::Continue(());
        }
        if output.json {
            return match serde_json::to_string(event) {
                Ok(line) => output.line(line),
                Err(error) => self.is_foreign(&error.to_string()),
            };
        }
        // What only says that it is base64 is printed as it is.
        let bytes = event.base64.as_ref().and_then(|base64| STANDARD.decode(base64).ok());
        let text = event.data.as_ref().or(event.base64.as_ref()).map(String::as_str).unwrap_or_default();
        output.data(bytes.as_deref().map_or(Payload::Text(text), Payload::Binary))
    }

    /// Takes note of an event; false if it came before.
    fn is_new(&mut self, topic: &str, at: EventId) -> bool {
        let mut came = false;
        for subscription in self.subscriptions.iter_mut().filter(|one| one.is_open && one.is_about(topic)) {
            let Some(span) = &mut subscription.span else { continue };
            came |= span.has(at);
            if span.after.epoch == at.epoch {
                span.until = span.until.max(at.sequence);
            }
        }
        !came
    }
}

/// What an address asks for, read as the server reads a request's target.
struct Asked {
    /// The address without that.
    url: Url,
    wanted: Vec<Named>,
    start: Start,
    slow: Option<SlowPolicy>,
}

impl Asked {
    fn of(name: &Url) -> Result<Asked, String> {
        let mut url = name.clone();
        url.set_query(None);
        let mut wanted = Vec::new();
        match name.path().strip_prefix("/ws") {
            Some("") => {}
            None if name.path() == "/" => {}
            Some(rest) if rest.starts_with('/') => {
                let text =
                    percent_decoded(&rest[1..], false).map_err(|_| "names no topic in UTF-8".to_string())?;
                wanted.push(topic(&text)?);
            }
            _ => return Err("is not of the form ws://HOST:PORT/ws/TOPIC".to_string()),
        }
        url.set_path("/ws");
        let (mut after, mut since, mut last, mut slow) = (None, None, None, None);
        let mut rest: Vec<&str> = Vec::new();
        for pair in name.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value, true).map_err(|_| format!("has no UTF-8 behind {key}="))?;
            let wrong = |how: &str| format!("has {key}={value}; {how}");
            match percent_decoded(key, true).as_deref() {
                Ok("topic") => wanted.push(topic(&value)?),
                Ok("match") => wanted.push(Named::Match(value.parse().map_err(unusable)?)),
                Ok("since") => {
                    let ms = parse_duration_ms(&value).ok_or_else(|| wrong("write 500ms, 30s, 5m or 1h"))?;
                    since.get_or_insert(("since_ms", ms.into()));
                }
                Ok("last") => {
                    let events = value.parse::<u64>().map_err(|_| wrong("write a number of events"))?;
                    last.get_or_insert(("last", events.into()));
                }
                Ok("slow") => {
                    slow.get_or_insert(value.parse().map_err(|told: String| wrong(&told))?);
                }
                Ok(name) if LAST_EVENT_ID_NAMES.contains(&name) => {
                    if !value.is_empty() {
                        after.get_or_insert(("after", value.as_ref().into()));
                    }
                }
                _ => rest.push(pair),
            }
        }
        if !rest.is_empty() {
            url.set_query(Some(&rest.join("&")));
        }
        Ok(Asked { url, wanted, start: after.or(since).or(last), slow })
    }
}

fn topic(name: &str) -> Result<Named, String> {
    match Topic::new(name) {
        Ok(_) if name.contains('*') => Err("has a * in a topic; use --match for many topics".to_string()),
        other => other.map(Named::Topic).map_err(unusable),
    }
}

fn unusable(error: impl std::fmt::Display) -> String {
    format!("cannot be used: {error}")
}

#[cfg(test)]
mod tests;

//! The connection to a server that is followed: one WebSocket with `fanwave.v1.json`.
//!
//! Invariants worth naming:
//! - All patterns stand in the address, with one start: so the connection has one cursor, and its
//!   events come by rising sequences (`shard/connections`).
//! - A command that subscribes once more to what is subscribed changes nothing, and its answer names
//!   the position. By that the epoch is known before the first event.
//! - A peer that does not answer pings is gone.
//!
//! Not here: what becomes of the events (`hub/source/relay`).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use http::HeaderValue;
use reqwest::Url;
use tokio::time::{Instant, timeout_at};
use tokio_tungstenite::tungstenite::Message;

use crate::client::conversation::{self, Heard, SUBPROTOCOL, command};
use crate::client::push_query;
use crate::client::trust::Trust;
use crate::client::websocket::{Read, Socket, Target, Unopened, leave};
use crate::config::Relay;
use crate::config::limits::{RELAY_ANSWER_MS_MAX, RELAY_PING_MS};
use crate::event::{CustomId, Data, Event, EventId, EventName, Key, Topic};
use crate::secret::Secret;

/// What the origin says.
#[derive(Debug, PartialEq)]
pub enum Told {
    /// Events behind this one follow.
    Stands(EventId),
    /// Something was published.
    Event {
        /// Its place.
        at: EventId,
        /// What.
        event: Event,
        /// When the origin took it in, in milliseconds since 1970.
        unix_ms: u64,
    },
    /// Events before the next one may be missing.
    Gap,
    /// An event that cannot be one here; its place is used.
    Unfit {
        /// Its place.
        at: EventId,
        /// Its topic, if it may be one here.
        topic: Option<Topic>,
        /// What is wrong with it.
        cause: String,
    },
}

/// Why nothing is heard of the origin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unheard {
    /// It does not want us, or does not speak our language.
    #[error("{0}")]
    Refused(String),
    /// It cannot be reached, or the connection broke.
    #[error("{why}")]
    Lost {
        /// In one line.
        why: String,
        /// How long it asked us to wait.
        asked: Option<Duration>,
    },
}

/// Where a connection begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the next event.
    Now,
    /// With so many events of each pattern.
    Last(usize),
    /// Behind this event.
    After(EventId),
}

/// An open connection to the origin.
pub struct Line {
    socket: Socket,
    name: String,
    /// When we ask the next time whether it is there.
    ask_at: Instant,
    /// Until when an answer has to come, while one is owed.
    owed: Option<Instant>,
    /// References of commands.
    asked: u64,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reference of the command that asks for the position; pings have higher ones.
const POSITION: u64 = 1;

fn answer_time() -> Duration {
    Duration::from_millis(RELAY_ANSWER_MS_MAX)
}

impl Line {
    /// Connects, and returns once the origin has said where it stands. What it has told before that
    /// is in front of the position.
    pub async fn open(relay: &Relay, start: Start) -> Result<(Line, Vec<Told>, EventId), Unheard> {
        let refused = |cause: String| Unheard::Refused(cause);
        let bearer = match &relay.token_file {
            None => None,
            Some(file) => {
                let secret =
                    Secret::read(file).map_err(|error| refused(format!("--relay-token-file {error}")))?;
                let mut value = HeaderValue::from_bytes(&secret.bearer()).expect("a token is visible ASCII");
                value.set_sensitive(true);
                Some(value)
            }
        };
        let trust = Trust::of(relay.ca.as_deref(), &relay.origin)
            .map_err(|error| refused(format!("--relay-ca: {error}")))?;
        let url = address(relay, start);
        let target = Target {
            url: &url,
            name: &relay.origin,
            subprotocol: Some(SUBPROTOCOL),
            trust: &trust,
            bearer: bearer.as_ref(),
        };
        let socket = target.open(answer_time()).await?;
        let (ask_at, name) =
            (Instant::now() + Duration::from_millis(RELAY_PING_MS), relay.origin.to_string());
        let mut line = Line { socket, name, ask_at, owed: None, asked: POSITION };
        let first = relay.matches.first().expect("a relay follows something");
        line.say(command(POSITION, "subscribe", serde_json::json!({ "match": first.as_str() }))).await?;
        let mut told = Vec::new();
        loop {
            match line.next().await? {
                Told::Stands(position) => return Ok((line, told, position)),
                other => told.push(other),
            }
        }
    }

    /// What the origin says next.
    pub async fn next(&mut self) -> Result<Told, Unheard> {
        loop {
            let due = self.owed.unwrap_or(self.ask_at);
            let Ok(next) = timeout_at(due, self.socket.next()).await else {
                if self.owed.is_some() {
                    return Err(self.lost("no answer in time"));
                }
                self.asked += 1;
                self.say(command(self.asked, "ping", "{}")).await?;
                continue;
            };
            let text = match Read::of(next) {
                Read::Message(Message::Text(text)) => text,
                Read::Message(_) => return Err(self.foreign("a binary message")),
                Read::Alive => continue,
                Read::Over(over) => return Err(self.lost(&over.why)),
            };
            match serde_json::from_str(&text) {
                Ok(Heard::Done { reference, ok }) => {
                    self.heard();
                    if reference == POSITION {
                        return ok
                            .after
                            .as_deref()
                            .and_then(position)
                            .map(Told::Stands)
                            .ok_or_else(|| self.foreign("a subscription without a position"));
                    }
                }
                Ok(Heard::Failed { error, .. }) if error.is_of_this_server() => {
                    return Err(self.lost(&error.to_string()));
                }
                Ok(Heard::Failed { error, .. }) => {
                    return Err(Unheard::Refused(format!("{}: {error}", self.name)));
                }
                Ok(Heard::Gap { .. }) => return Ok(Told::Gap),
                Ok(Heard::Event(event)) => return self.event(event),
                Ok(Heard::Other(_)) => {}
                Err(error) => return Err(self.foreign(&error.to_string())),
            }
        }
    }

    /// Takes leave.
    pub async fn leave(mut self) {
        leave(&mut self.socket, true).await;
    }

    /// Says a command, whose answer is owed from now on.
    async fn say(&mut self, text: String) -> Result<(), Unheard> {
        let due = Instant::now() + answer_time();
        self.owed = Some(due);
        match timeout_at(due, self.socket.send(Message::text(text))).await {
            // What the server says tells more than a send that fails.
            Ok(_) => Ok(()),
            Err(_) => Err(self.lost("it takes nothing")),
        }
    }

    fn heard(&mut self) {
        self.owed = None;
        self.ask_at = Instant::now() + Duration::from_millis(RELAY_PING_MS);
    }

    fn event(&self, heard: conversation::Event) -> Result<Told, Unheard> {
        let Some(at) = position(heard.position()) else {
            return Err(self.foreign("an event without a position"));
        };
        let unix_ms = heard.time.unwrap_or_default();
        let topic = Topic::new(&heard.topic).ok().filter(|topic| !topic.as_str().contains('*'));
        Ok(match event_of(heard) {
            Ok(event) => Told::Event { at, event, unix_ms },
            Err(cause) => Told::Unfit { at, topic, cause },
        })
    }

    fn lost(&self, cause: &str) -> Unheard {
        Unheard::Lost { why: format!("{}: {cause}", self.name), asked: None }
    }

    fn foreign(&self, what: &str) -> Unheard {
        Unheard::Refused(format!("{} does not speak {SUBPROTOCOL}: {what}", self.name))
    }
}

impl From<Unopened> for Unheard {
    fn from(unopened: Unopened) -> Unheard {
        match unopened {
            Unopened::Refused(line) => Unheard::Refused(line),
            Unopened::Lost { why, asked } => Unheard::Lost { why, asked },
        }
    }
}

/// No origin comes near this sequence: at a million events per second it would take eight years.
/// Positions rise over epochs, so many of them fit into what positions have.
const SEQUENCE_MAX: u64 = u64::MAX >> 16;

/// A position that may be one.
fn position(text: &str) -> Option<EventId> {
    text.parse::<EventId>().ok().filter(|id| id.sequence <= SEQUENCE_MAX)
}

/// The address that names all patterns and the start. A relay that falls behind comes back for what
/// it lacks, whatever the origin's rules say of slow subscribers.
fn address(relay: &Relay, start: Start) -> Url {
    let mut url = relay.origin.clone();
    url.set_path("/ws");
    for pattern in &relay.matches {
        push_query(&mut url, "match", pattern.as_str());
    }
    push_query(&mut url, "slow", "close");
    match start {
        Start::Now => {}
        Start::Last(events) => push_query(&mut url, "last", &events.to_string()),
        Start::After(id) => push_query(&mut url, "after", &id.to_string()),
    }
    url
}

/// What was published, from what is told of it.
fn event_of(heard: conversation::Event) -> Result<Event, String> {
    let data = match (heard.data, &heard.base64) {
        (Some(text), _) => Data::string(text),
        (None, Some(base64)) => {
            Data::binary(STANDARD.decode(base64).map_err(|error| error.to_string())?.into())
        }
        (None, None) => return Err("it has no data".to_string()),
    };
    // An event has an id of its publisher's exactly where its position is told beside it.
    let id = match &heard.at {
        Some(_) => Some(CustomId::new(&heard.id).map_err(|error| error.to_string())?),
        None => None,
    };
    let name = match heard.name.as_str() {
        conversation::UNNAMED => None,
        name => Some(EventName::new(name).map_err(|error| error.to_string())?),
    };
    let key = heard.key.as_deref().map(Key::new).transpose().map_err(|error| error.to_string())?;
    let topic = Topic::new(&heard.topic).map_err(|error| error.to_string())?;
    Ok(Event { topic, data, name, id, retry_ms: heard.retry, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each new epoch begins behind all positions before it.
    #[test]
    fn origins_that_begin_anew_again_and_again_do_not_use_up_all_positions() {
        let at = |sequence: u64| position(&format!("2pso73xk2pzlx-{sequence}")).map(|id| id.sequence);
        assert_eq!((at(0), at(SEQUENCE_MAX)), (Some(0), Some(SEQUENCE_MAX)));
        assert_eq!((at(SEQUENCE_MAX + 1), at(u64::MAX >> 1), at(u64::MAX)), (None, None, None));
        let last = (1..1 << 16).fold(0u64, |newest, _| (newest + 1).saturating_add(SEQUENCE_MAX));
        assert!(last < u64::MAX);
    }
}

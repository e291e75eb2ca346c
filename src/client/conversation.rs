//! What a client says and hears over `fanwave.v1.json`.
//!
//! Commands bear numbers as `ref`. What the server says is read as far as it is known here: other
//! members and other messages are passed over, so that a newer server may say more.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::close::ErrorCode;

pub use crate::wire::http::JSON as SUBPROTOCOL;

/// The name of an event that has none, as an `EventSource` calls it.
pub const UNNAMED: &str = "message";

/// A message of the server.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub enum Heard {
    /// A command was carried out.
    Done {
        #[serde(rename = "ref")]
        reference: u64,
        ok: Done,
    },
    /// A command was not; without a number where the server could read none.
    Failed {
        #[serde(rename = "ref")]
        reference: Option<u64>,
        error: Failure,
    },
    Gap {
        gap: Gap,
    },
    Event(Event),
    /// Something that is not known here.
    Other(serde::de::IgnoredAny),
}

/// What is told of a command that was carried out.
#[derive(Debug, Deserialize)]
pub struct Done {
    /// Of a subscription: the position after which its events follow.
    pub after: Option<String>,
    /// Of a publish.
    pub id: Option<String>,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, Deserialize)]
pub struct Failure {
    pub code: String,
    pub detail: String,
}

impl Failure {
    /// True if the same may be said again with success: there was no room.
    pub fn passes(&self) -> bool {
        [ErrorCode::Full, ErrorCode::Busy].iter().any(|code| code.label() == self.code)
    }

    /// True if another server, or this one when it is back, may say something else.
    pub fn is_of_this_server(&self) -> bool {
        self.passes() || self.code == ErrorCode::Draining.label()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

/// Events are missing.
#[derive(Debug, Deserialize)]
pub struct Gap {
    /// The id that the client had.
    pub after: Option<String>,
}

/// An event, as it is told and as `tail --json` prints it.
#[derive(Debug, Deserialize, Serialize)]
pub struct Event {
    pub topic: String,
    #[serde(rename = "event", default = "unnamed")]
    pub name: String,
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The server's id, where the publisher gave another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl Event {
    /// Its place in the server's order.
    pub fn position(&self) -> &str {
        self.at.as_deref().unwrap_or(&self.id)
    }
}

fn unnamed() -> String {
    UNNAMED.to_string()
}

/// A command: the JSON of its members under its name.
pub fn command(reference: u64, name: &str, members: impl fmt::Display) -> String {
    format!(r#"{{"ref":{reference},"{name}":{members}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Heard {
        serde_json::from_str(text).expect("a message")
    }

    #[test]
    fn each_message_is_told_from_the_others() {
        let done = heard(r#"{"ref":1,"ok":{"topic":"a","after":"E-7"}}"#);
        assert!(matches!(done, Heard::Done { reference: 1, ok } if ok.after.as_deref() == Some("E-7")));
        assert!(matches!(heard(r#"{"ref":6,"ok":{}}"#), Heard::Done { reference: 6, .. }));
        let failed = heard(r#"{"ref":null,"error":{"code":"full","detail":"no room"}}"#);
        assert!(matches!(failed, Heard::Failed { reference: None, error } if error.passes()));
        let gap = heard(r#"{"gap":{"after":null,"reason":"expired","topics":["a"]}}"#);
        assert!(matches!(gap, Heard::Gap { gap: Gap { after: None } }));
        assert!(matches!(heard(r#"{"news":{"from":"the future"}}"#), Heard::Other(_)));
    }

    #[test]
    fn an_event_is_printed_as_it_was_told() {
        let text = r#"{"topic":"a","id":"mine","event":"x","base64":"AP8=","time":5,"retry":2,"key":"k","at":"E-7"}"#;
        let Heard::Event(event) = heard(text) else { panic!("an event") };
        assert_eq!(event.position(), "E-7");
        let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        assert_eq!(json(&serde_json::to_string(&event).expect("JSON")), json(text));
        let Heard::Event(event) = heard(r#"{"topic":"a","id":"E-8","data":"hi","time":6}"#) else {
            panic!("an event")
        };
        assert_eq!((event.position(), event.name.as_str()), ("E-8", "message"));
    }

    #[test]
    fn a_command_is_one_object() {
        let said = command(7, "subscribe", serde_json::json!({ "topic": "a\"b" }));
        assert_eq!(said, r#"{"ref":7,"subscribe":{"topic":"a\"b"}}"#);
    }

    #[test]
    fn only_what_may_pass_is_worth_a_retry() {
        let failure = |code: &str| Failure { code: code.to_string(), detail: String::new() };
        for (code, passes, elsewhere) in [
            ("full", true, true),
            ("busy", true, true),
            ("draining", false, true),
            ("not_allowed", false, false),
            ("too_many", false, false),
        ] {
            let failure = failure(code);
            assert_eq!((failure.passes(), failure.is_of_this_server()), (passes, elsewhere), "{code}");
        }
    }
}

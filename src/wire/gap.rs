//! What a subscriber is told when events are missing between what it had and what it gets now.
//!
//! The notice is the same JSON in every format: SSE carries it as the data of a `fanwave-gap`
//! event, WebSocket as a text message. It is one line whatever the topics and ids hold, because
//! JSON escapes every control character. Not here: who finds a gap (`shard`), and the framing
//! (`sse`, `websocket`).

use serde::Serialize;

use crate::event::Topic;

/// Why events are missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GapReason {
    /// The window no longer holds the events after the client's id.
    Expired,
    /// The client's id is of another epoch, or of an event that this process does not know.
    Unknown,
    /// The subscriber was too slow: it goes on with the next event of the topics that lost some.
    Overrun,
}

/// Events are missing, told in-band.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Gap {
    /// The last event id that the client had; `None` (JSON `null`) if it had none.
    pub after: Option<String>,
    /// Why events are missing.
    pub reason: GapReason,
    /// The topics whose events may be missing.
    pub topics: Vec<Topic>,
}

impl Gap {
    /// One line of JSON without its end: `{"gap":{"after":…,"reason":…,"topics":[…]}}`.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Notice<'a> {
            gap: &'a Gap,
        }
        serde_json::to_string(&Notice { gap: self }).expect("strings and lists of strings are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(after: Option<&str>, reason: GapReason) -> Gap {
        let topics = ["a", "räume/\"1\""].map(|name| Topic::new(name).expect("a topic"));
        Gap { after: after.map(str::to_string), reason, topics: topics.to_vec() }
    }

    #[test]
    fn a_gap_is_one_line_of_json() {
        assert_eq!(
            gap(Some("x\u{1}-7"), GapReason::Expired).json(),
            r#"{"gap":{"after":"x\u0001-7","reason":"expired","topics":["a","räume/\"1\""]}}"#
        );
    }

    #[test]
    fn each_reason_has_its_word_and_no_id_is_null() {
        for (reason, word) in [
            (GapReason::Expired, "expired"),
            (GapReason::Unknown, "unknown"),
            (GapReason::Overrun, "overrun"),
        ] {
            let start = format!(r#"{{"gap":{{"after":null,"reason":"{word}","#);
            assert!(gap(None, reason).json().starts_with(&start), "{word}");
        }
    }
}

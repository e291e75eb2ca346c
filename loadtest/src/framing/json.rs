//! `fanwave.v1.json` over WebSocket: each text message is an event, an answer to a command, or a
//! notice that events are missing.
//!
//! Commands are numbered from 1 on each connection, as `ref`s of one width ([`reference()`]), so
//! that a frame's length does not depend on the number. Each must be answered once, in order; an
//! error as the answer is an error here. Events of one topic must come with ids that rise. Only the
//! start of a message is looked at, and nothing in it needs an escape: the topics are our own.

use memchr::memmem;

use super::websocket::Frames;
use super::{EventEnd, Fed, GAP_DATA};
use crate::stamp::{STAMP_BYTES, Stamp};

/// The subprotocol that a client offers.
pub const SUBPROTOCOL: &str = "fanwave.v1.json";
/// Bytes of a message that are looked at: its topic, its id and the stamp are among them.
const PREFIX_BYTES: usize = 256;
/// Below all `ref`s that a client gives.
const REF_BASE: u64 = 1_000_000_000;

/// The `ref` of a connection's command `number`, from 1: ten digits.
pub fn reference(number: u64) -> u64 {
    REF_BASE + number
}

/// The message with which command `number` subscribes. `of` is what stands in `subscribe`, without
/// an `after`.
pub fn subscribe(number: u64, of: &str, after: Option<&str>) -> String {
    let inside = of.trim_end_matches('}');
    let after = after.map(|id| format!(",\"after\":{}", serde_json::Value::from(id))).unwrap_or_default();
    format!("{{\"ref\":{},\"subscribe\":{inside}{after}}}}}", reference(number))
}

/// Takes messages out of a server's stream.
#[derive(Debug, Default)]
pub struct JsonSplitter {
    frames: Frames,
    /// The first bytes of the current message.
    prefix: Vec<u8>,
    /// Commands that were answered.
    answered: u64,
    /// Topic and id of the last event.
    last_topic: Vec<u8>,
    last_id: Vec<u8>,
}

impl JsonSplitter {
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) -> Result<Fed, String> {
        let (mut at, before) = (0, self.answered);
        while let Some(piece) = self.frames.next(bytes, &mut at)? {
            let payload = &bytes[piece.payload];
            self.prefix.extend_from_slice(&payload[..payload.len().min(PREFIX_BYTES - self.prefix.len())]);
            if piece.ends {
                if let Some((stamp, gap)) = self.message()? {
                    on_event(EventEnd { at, stamp, gap });
                }
                self.prefix.clear();
            }
        }
        Ok(Fed { pings: self.frames.unanswered(), pongs: (self.answered - before) as u32 })
    }

    pub(super) fn answers(&mut self) -> Vec<u8> {
        self.frames.answer()
    }

    pub(super) fn last_id(&self) -> &[u8] {
        &self.last_id
    }

    /// The current message: the stamp of an event and whether it is a gap; `None` for an answer.
    fn message(&mut self) -> Result<Option<(Option<Stamp>, bool)>, String> {
        let message = &self.prefix[..];
        if message.starts_with(GAP_DATA) {
            return Ok(Some((None, true)));
        }
        if let Some(rest) = message.strip_prefix(b"{\"ref\":") {
            let due = format!("{},\"ok\":", reference(self.answered + 1));
            if !rest.starts_with(due.as_bytes()) {
                let said = String::from_utf8_lossy(message);
                return Err(format!("the server answered {said} where \"ref\":{due} was due"));
            }
            self.answered += 1;
            return Ok(None);
        }
        let parts = message.strip_prefix(b"{\"topic\":\"").and_then(|rest| {
            let topic = &rest[..memchr::memchr(b'"', rest)?];
            let rest = rest[topic.len()..].strip_prefix(b"\",\"id\":\"")?;
            let id = &rest[..memchr::memchr(b'"', rest)?];
            Some((topic, id, &rest[id.len()..]))
        });
        let Some((topic, id, rest)) = parts else {
            let said = String::from_utf8_lossy(message);
            return Err(format!("the server sent {said}, which is no event"));
        };
        if topic == self.last_topic && sequence(id).is_some_and(|new| sequence(&self.last_id) >= Some(new)) {
            let [new, last] = [id, &self.last_id].map(String::from_utf8_lossy);
            return Err(format!("the server sent event {new} after {last}"));
        }
        let data = memmem::find(rest, b"\"data\":\"").map(|at| &rest[at + b"\"data\":\"".len()..]);
        let stamp = data.and_then(|data| Stamp::read(&data[..data.len().min(STAMP_BYTES)]));
        self.last_topic.clear();
        self.last_topic.extend_from_slice(topic);
        self.last_id.clear();
        self.last_id.extend_from_slice(id);
        Ok(Some((stamp, false)))
    }
}

/// The number in an id of the server's own form.
fn sequence(id: &[u8]) -> Option<u64> {
    std::str::from_utf8(id).ok()?.rsplit_once('-')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::payload;
    use super::super::websocket::tests::server_frame;
    use super::*;

    fn event(topic: &str, number: u64) -> String {
        let data = String::from_utf8(payload(number, 90)).expect("ASCII");
        format!("{{\"topic\":\"{topic}\",\"id\":\"2pso73xk2pzlx-{number}\",\"data\":\"{data}\",\"time\":1}}")
    }

    fn answer(number: u64) -> String {
        format!("{{\"ref\":{},\"ok\":{{}}}}", reference(number))
    }

    /// The numbers of the events in these messages and how many commands were answered.
    fn split(messages: &[String], piece: usize) -> Result<(Vec<Option<u64>>, u32), String> {
        let stream: Vec<u8> = messages.iter().flat_map(|text| server_frame(0x81, text.as_bytes())).collect();
        let (mut splitter, mut events, mut answers) = (JsonSplitter::default(), Vec::new(), 0);
        for bytes in stream.chunks(piece) {
            let on_event = |event: EventEnd| events.push(event.stamp.map(|stamp| stamp.sequence));
            answers += splitter.feed(bytes, on_event)?.pongs;
        }
        Ok((events, answers))
    }

    #[test]
    fn events_and_answers_are_told_apart_however_the_bytes_arrive() {
        let messages = [answer(1), event("a", 7), answer(2), event("b", 8), event("a", 9)];
        for piece in [1, 5, 100, 10_000] {
            assert_eq!(split(&messages, piece), Ok((vec![Some(7), Some(8), Some(9)], 2)), "{piece}");
        }
        let gap = "{\"gap\":{\"after\":null}}".to_owned();
        assert_eq!(split(&[gap], 9), Ok((vec![None], 0)));
    }

    #[test]
    fn an_answer_too_many_out_of_turn_or_with_an_error_is_told() {
        let error = format!("{{\"ref\":{},\"error\":{{\"code\":\"not_allowed\"}}}}", reference(1));
        for messages in [vec![answer(1), answer(1)], vec![answer(2)], vec![error]] {
            let told = split(&messages, 100).expect_err("a fault");
            assert!(told.contains("was due"), "{told}");
        }
    }

    #[test]
    fn an_event_of_a_topic_whose_id_does_not_rise_is_told() {
        let told = split(&[event("a", 8), event("a", 7)], 100).expect_err("a fault");
        assert!(told.contains("-7 after 2pso73xk2pzlx-8"), "{told}");
        assert!(split(&[event("a", 8), event("b", 7)], 100).is_ok(), "of another topic");
    }

    #[test]
    fn a_subscription_is_a_command_of_one_width() {
        assert_eq!(
            subscribe(2, "{\"topic\":\"a\"}", Some("E-1")),
            "{\"ref\":1000000002,\"subscribe\":{\"topic\":\"a\",\"after\":\"E-1\"}}"
        );
        assert_eq!(
            subscribe(1, "{\"match\":\"*\"}", None),
            "{\"ref\":1000000001,\"subscribe\":{\"match\":\"*\"}}"
        );
    }
}

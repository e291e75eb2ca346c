//! Commands of `fanwave.v1.json`: what a client asks for while its connection runs.
//!
//! Invariants worth naming:
//! - Commands are carried out and answered in the order in which they came, each once. Publishes go
//!   to the hub without waiting for the answers of those before; everything else waits until
//!   nothing is unanswered (`publishers`).
//! - No event of a topic goes out before the `ok` of its subscription, and none after the `ok` of
//!   its end: an answer waits in `control`, which goes out before any news and after what was
//!   handed over before.
//! - A topic that begins below the cursor sets it back; all other topics keep their places as
//!   starts (`Memberships::add`). So bytes that were handed over once do not move the cursor again.
//! - A client that does not read its answers is not read either, beyond
//!   [`REPLIES_BYTES_MAX`](crate::config::limits::REPLIES_BYTES_MAX).
//! - An idle connection has no state here.
//!
//! Not here: what a message means (`wire::envelope`), and what an event may hold (`publishing`).

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::backfill::PastPart;
use super::connections::{FAR, Membership, Memberships, Phase, Session};
use super::publishers::{Message, Until};
use super::start::Begin;
use super::state::State;
use super::subscribe::HeldBack;
use super::tokens::{Denied, Passage};
use crate::broadcast::{Crowds, Outcome, Ticket};
use crate::clock::Stamp;
use crate::close::{CloseReason, ErrorCode};
use crate::config::limits::{HELD_BACK_MAX, PONGS_BYTES_MAX, REPLIES_BYTES_MAX};
use crate::egress::Slot;
use crate::event::{CustomId, Event, Topic};
use crate::publishing::{IdempotencyKey, parse_line};
use crate::refusal::{Refusal, RefusalReason};
use crate::wire::envelope::{self, Command, Fault, Named, Reply, Request};
use crate::wire::gap::{Gap, GapReason};
use crate::wire::http::{LastEventId, Token};
use crate::wire::websocket::{self, Incoming};
use crate::wire::{Family, SlowPolicy, Start};

/// Capacity of the buffer in which messages are put together that is kept for the next one.
const MESSAGE_BYTES_KEPT: usize = 4 << 10;

/// What is remembered of a client that has commands under way.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// How to answer what the hub was asked, in order.
    asked: VecDeque<Asked>,
    /// A message that was read and has to wait.
    waiting: Option<Said>,
}

impl Conversation {
    /// True if nothing is under way.
    pub(super) fn is_over(&self) -> bool {
        self.asked.is_empty() && self.waiting.is_none()
    }

    /// True if an answer of the hub is owed to the client.
    pub(super) fn awaits_hub(&self) -> bool {
        !self.asked.is_empty()
    }
}

/// A command that the hub carries out.
#[derive(Debug)]
struct Asked {
    reference: Box<str>,
    of: AskedOf,
}

#[derive(Debug)]
enum AskedOf {
    /// A publish, with the publisher's id.
    Publish(Option<CustomId>),
    /// A count of subscribers.
    Presence(Topic),
}

/// A whole message of a client.
#[derive(Debug)]
struct Said {
    /// `None` if there was no memory for it.
    payload: Option<Vec<u8>>,
    /// Text, which is UTF-8; else binary.
    text: bool,
    /// It has waited for an event on its way.
    asked_again: bool,
}

/// What comes after a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// The next one.
    Message,
    /// A pause, then the next one.
    Pause(Until),
    /// A pause, then the same one again.
    Again(Until),
}

/// Why a command is not carried out.
type Wrong = (ErrorCode, String);

impl State {
    /// Frames from a client that speaks JSON, perhaps in part.
    pub(super) fn handle_commands(&mut self, slot: Slot, bytes: &mut [u8]) {
        let mut at = 0;
        let mut said = self.publishers.conversation(slot).and_then(|talk| talk.waiting.take());
        loop {
            if said.is_none() && at < bytes.len() {
                let Some((read, whole)) = self.read_message(slot, &mut bytes[at..]) else { return };
                at += read;
                said = whole;
            }
            let Some(message) = said.take() else { break };
            let next = self.carry_out(slot, message);
            if self.connections.get(slot).phase != Phase::Open {
                return;
            }
            let waiting = self.connections.get(slot).control.as_ref().map_or(0, |batch| batch.len());
            let pause = match next {
                Next::Pause(until) | Next::Again(until) => until,
                Next::Message if waiting + self.replies.len() > REPLIES_BYTES_MAX => Until::Sent,
                Next::Message => continue,
            };
            self.pause(slot, &bytes[at..], pause);
            break;
        }
        self.say_replies(slot);
        self.publishers.forget_if_idle(slot);
    }

    /// Reads up to the end of the next message. Returns the bytes that it took, and the message if
    /// it is whole; `None` if the connection ends.
    fn read_message(&mut self, slot: Slot, bytes: &mut [u8]) -> Option<(usize, Option<Said>)> {
        let connection = self.connections.get_mut(slot);
        let waiting = connection.control.as_ref().map_or(0, |batch| batch.len());
        let Session::WebSocket(decoder) = &mut connection.session else { return None };
        let mut message = self.publishers.take_message(slot);
        if message == Message::default() {
            message = Message::Collected(std::mem::take(&mut self.message));
        }
        let message_bytes_max = self.setup.config.limits.message_in_bytes_max as u64;
        let (mut closed, mut whole) = (None, None);
        let replies = &mut self.replies;
        let fed = decoder.feed_until(bytes, message_bytes_max, |incoming| {
            match incoming {
                Incoming::Ping(payload) if waiting + replies.len() <= PONGS_BYTES_MAX => {
                    replies.extend_from_slice(&websocket::pong_frame(payload));
                }
                Incoming::Ping(_) | Incoming::Pong => {}
                Incoming::Payload(piece) => message.push(piece),
                Incoming::Message { text, .. } => {
                    whole = Some(text);
                    return ControlFlow::Break(());
                }
                Incoming::Close { reply, .. } => closed = Some(reply),
            }
            ControlFlow::Continue(())
        });
        let read = *fed.as_ref().unwrap_or(&bytes.len());
        if closed.is_some() || fed.is_err() {
            self.say_replies(slot);
            self.end_of_frames(slot, closed, fed.map(drop));
            return None;
        }
        let said = whole.map(|text| Said { payload: message.take(), text, asked_again: false });
        if said.is_some() {
            self.metrics.families[Family::WebSocket.index()].messages_in += 1;
        } else if message.len() > 0 || message == Message::Dropped {
            let incoming_bytes_max = self.setup.config.limits.incoming_bytes_max();
            self.publishers.keep_message(slot, message, incoming_bytes_max);
        } else {
            self.keep_buffer(message.take());
        }
        Some((read, said))
    }

    /// Keeps the buffer of a message for the next one.
    fn keep_buffer(&mut self, buffer: Option<Vec<u8>>) {
        if let Some(mut buffer) = buffer.filter(|buffer| buffer.capacity() <= MESSAGE_BYTES_KEPT) {
            buffer.clear();
            self.message = buffer;
        }
    }

    /// Sends what was answered.
    fn say_replies(&mut self, slot: Slot) {
        if !self.replies.is_empty() {
            let replies = bytes::Bytes::copy_from_slice(&self.replies);
            self.replies.clear();
            self.answer(slot, replies);
        }
    }

    /// Carries out what a message says, and answers it.
    fn carry_out(&mut self, slot: Slot, said: Said) -> Next {
        let next = match (&said.payload, said.text) {
            (Some(text), true) => {
                let text = std::str::from_utf8(text).expect("the decoder has checked it");
                self.carry_out_text(slot, text, said.asked_again)
            }
            (Some(_), false) => {
                let detail = "a command is a text message, and this was a binary one".to_string();
                self.refuse_command(slot, None, (ErrorCode::BadCommand, detail))
            }
            (None, _) => {
                let detail = "messages that are under way take as much memory as they may".to_string();
                self.refuse_command(slot, None, (ErrorCode::Busy, detail))
            }
        };
        match next {
            Next::Again(until) => {
                let asked_again = said.asked_again || until == Until::Event;
                self.publishers.conversation_of(slot).waiting = Some(Said { asked_again, ..said });
            }
            Next::Message | Next::Pause(_) => {
                self.metrics.commands += 1;
                self.keep_buffer(said.payload);
            }
        }
        next
    }

    fn carry_out_text(&mut self, slot: Slot, text: &str, asked_again: bool) -> Next {
        let Request { reference, command } = match envelope::parse(text) {
            Ok(request) => request,
            Err(Fault { reference, code, detail }) => {
                return self.refuse_command(slot, reference, (code, detail));
            }
        };
        if let Command::Publish(json) = command {
            return match self.event_of(slot, json) {
                Ok((event, key)) => self.publish_for(slot, reference, event, key),
                Err(wrong) => self.refuse_command(slot, Some(reference), wrong),
            };
        }
        if self.publishers.unanswered(slot) > 0 {
            return Next::Again(Until::Quiet);
        }
        let outcome = match command {
            Command::Subscribe { of, start, slow } => {
                self.subscribe_to(slot, reference, (&of, &start, slow), asked_again)
            }
            Command::Unsubscribe(of) => {
                self.unsubscribe_from(slot, &of);
                self.say(reference, &Reply::Unsubscribed(&of));
                Ok(Next::Message)
            }
            Command::Presence(topic) if !self.setup.config.tells_presence(topic.as_str()) => {
                let detail = "the rule of this topic has presence = false".to_string();
                Err((ErrorCode::NotAllowed, detail))
            }
            Command::Presence(topic) => self.ask_presence(slot, reference, topic),
            Command::Auth(token) => self.authorize(slot, reference, &token),
            Command::Ping => {
                self.say(reference, &Reply::Pong);
                Ok(Next::Message)
            }
            Command::Publish(_) => unreachable!("carried out above"),
        };
        outcome.unwrap_or_else(|wrong| self.refuse_command(slot, Some(reference), wrong))
    }

    fn say(&mut self, reference: &str, reply: &Reply<'_>) {
        self.replies.extend_from_slice(&envelope::answer(Some(reference), reply));
    }

    /// Answers that a command is not carried out, behind the answers that are owed before.
    fn refuse_command(&mut self, slot: Slot, reference: Option<&str>, (code, detail): Wrong) -> Next {
        if self.publishers.unanswered(slot) > 0 {
            return Next::Again(Until::Quiet);
        }
        self.metrics.command_errors[code.index()] += 1;
        let reply = Reply::Error { code, detail: &detail };
        self.replies.extend_from_slice(&envelope::answer(reference, &reply));
        Next::Message
    }

    /// Makes the client a subscriber of a topic.
    fn subscribe_to(
        &mut self,
        slot: Slot,
        reference: &str,
        (of, start, slow): (&Named, &Start, Option<SlowPolicy>),
        asked_again: bool,
    ) -> Result<Next, Wrong> {
        let topic = name_of(of);
        self.check_hearing(slot, topic).map_err(wrong_of)?;
        let connection = self.connections.get_mut(slot);
        let slow = slow.or(connection.slow).unwrap_or_default();
        if connection.memberships.as_slice().is_empty() {
            connection.slow = Some(slow);
        } else if connection.slow != Some(slow) {
            let now = connection.slow.unwrap_or_default();
            let detail = format!("slow is {now} for all subscriptions of this connection");
            return Err((ErrorCode::BadCommand, detail));
        }
        let connection = self.connections.get(slot);
        let (cursor, format) = (connection.cursor, connection.format);
        let members = connection.memberships.as_slice();
        let known = self.topics.find(topic);
        let is_member = known.is_some_and(|index| members.iter().any(|member| member.topic == index));
        if let Some(index) = known.filter(|_| is_member) {
            let sequence = connection.memberships.begins_after(index, cursor);
            let after = self.eras.id(self.backfills.reached(slot, index).unwrap_or(sequence));
            self.say(reference, &Reply::Subscribed { of, after });
            return Ok(Next::Message);
        }
        let topics_max = self.setup.config.limits.topics_per_connection_max;
        if members.len() >= topics_max {
            let detail =
                format!("more than {topics_max} topics on one connection (--topics-per-connection-max)");
            return Err((ErrorCode::TooMany, detail));
        }
        if self.drain.is_some() {
            return Err((ErrorCode::Draining, "the server is draining".to_string()));
        }
        if !self.topics.has_room_for(std::slice::from_ref(topic)) {
            let detail = "the server has subscribers to as many topics as it takes".to_string();
            return Err((ErrorCode::Full, detail));
        }
        if !self.topics.know(std::slice::from_ref(topic)) {
            if self.learning.len() >= HELD_BACK_MAX {
                let detail = "too many subscribers wait for new patterns".to_string();
                return Err((ErrorCode::Busy, detail));
            }
            self.topics.want(std::slice::from_ref(topic));
            self.learning.push((slot, vec![topic.clone()]));
            return Ok(Next::Again(Until::Known));
        }
        if self.must_search(slot, std::slice::from_ref(topic), start) {
            return Ok(Next::Again(Until::Found));
        }
        // A topic that is not known has no events that an id could name.
        let alone =
            known.map_or(Memberships::None, |topic| Memberships::One(Membership { topic, position: 0 }));
        let named = start.after().and_then(|id| self.named_by(&alone, id));
        let newest = self.setup.demand.newest();
        let may_come = start.after().is_some() && named.is_none() && self.sequence < newest && !asked_again;
        let ahead = start.after().filter(|_| !asked_again).and_then(|id| self.not_read_yet(slot, id));
        let deadline = Stamp(u64::MAX);
        let held = ahead.or(may_come.then_some(HeldBack { slot, until: newest, deadline }));
        if let Some(held) = held.filter(|_| self.held_back.len() < HELD_BACK_MAX) {
            self.held_back.push(held);
            return Ok(Next::Again(Until::Event));
        }
        let index = self.topics.intern(topic);
        let past = match self.may_backfill(slow) {
            true => self.begins_in_past(slot, index, start, named).filter(|_| self.admits_backfill()),
            false => None,
        };
        self.backfills.forget_search(slot);
        let begin = match past {
            Some(after) => self.begins_from_past(index, after, start),
            None => self.begins(index, start, named),
        };
        let Begin { after: sequence, is_short, greets_after } = begin;
        let from = if past.is_some() { FAR } else { sequence };
        let position = self.join_topic(slot, index, format, slow, from);
        let connection = self.connections.get_mut(slot);
        let member = Membership { topic: index, position };
        connection.cursor = connection.memberships.add(member, cursor, from);
        let after = self.eras.id(sequence);
        self.say(reference, &Reply::Subscribed { of, after });
        if is_short {
            let after = start.after().map(LastEventId::as_str);
            let reason = match named.is_none() && after.is_some() {
                true => GapReason::Unknown,
                false => GapReason::Expired,
            };
            let gap = Gap { after: after.map(str::to_string), reason, topics: vec![topic.clone()] };
            self.say_replies(slot);
            self.tell_gap(slot, &gap);
        }
        if let Some(part) = self.greeting_of(index, greets_after, sequence) {
            // Behind the answer and the notice.
            self.say_replies(slot);
            self.greet(slot, vec![part], None);
        }
        if past.is_some() {
            let told = self.told_by(start, sequence);
            self.begin_backfill(slot, vec![PastPart::new(index, sequence, told)]);
        }
        // It may lack events from before.
        self.mark_ready(slot);
        Ok(Next::Message)
    }

    /// Ends a subscription, if there is one.
    fn unsubscribe_from(&mut self, slot: Slot, of: &Named) {
        let Some(index) = self.topics.find(name_of(of)) else { return };
        let connection = self.connections.get_mut(slot);
        let (format, latest) = (connection.format, connection.wants_latest());
        if let Some((member, cursor)) = connection.memberships.remove(index, connection.cursor) {
            connection.cursor = cursor;
            self.greet_no_more_of(slot, index);
            self.backfill_no_more_of(slot, index);
            self.leave_topic(member, format, latest);
            self.ask_for_a_topic(slot);
        }
    }

    /// The event that a client wants to publish.
    fn event_of(&self, slot: Slot, json: &str) -> Result<(Event, Option<IdempotencyKey>), Wrong> {
        let parsed = parse_line(json.as_bytes(), self.setup.config.limits.message_bytes_max);
        let (event, key) = parsed.map_err(|Refusal { reason, text }| (code_of(reason), text))?;
        if event.topic.as_str().contains('*') {
            return Err((ErrorCode::BadTopic, "a topic has no *".to_string()));
        }
        if !self.setup.config.lets_clients_publish(event.topic.as_str()) {
            let detail = "clients may not publish to this topic (--client-publish)".to_string();
            return Err((ErrorCode::NotAllowed, detail));
        }
        self.check_speaking(slot, &event.topic).map_err(wrong_of)?;
        Ok((event, key.map(|key| self.own_key(slot, key))))
    }

    /// Takes another token in the place of the last one. A client that it allows less than it hears
    /// is told so and hung up on: the issuer has taken that back.
    fn authorize(&mut self, slot: Slot, reference: &str, token: &Token) -> Result<Next, Wrong> {
        if !self.tokens.are_needed() {
            let detail = "this server has no keys to check tokens with".to_string();
            return Err((ErrorCode::NotConfigured, detail));
        }
        match self.renew(slot, token) {
            Passage::Later => Ok(Next::Again(Until::Checked)),
            Passage::Open(claims) => {
                let expires = claims.and_then(|claims| claims.expires_ms).map(|ms| ms / 1_000);
                self.say(reference, &Reply::Authorized { expires });
                Ok(Next::Message)
            }
            Passage::Closed(denied) => {
                let next = self.refuse_command(slot, Some(reference), wrong_of(denied.clone()));
                if matches!(denied, Denied::Topic(_)) {
                    self.say_replies(slot);
                    self.hang_up(slot, CloseReason::NotAllowed, "the new token allows less than is heard");
                }
                Ok(next)
            }
        }
    }

    fn publish_for(
        &mut self,
        slot: Slot,
        reference: &str,
        event: Event,
        key: Option<IdempotencyKey>,
    ) -> Next {
        let id = event.id.clone();
        if self.publish_once(slot, 0, event, key).is_err() {
            return Next::Again(Until::Room);
        }
        let asked = Asked { reference: reference.into(), of: AskedOf::Publish(id) };
        self.publishers.conversation_of(slot).asked.push_back(asked);
        Next::Message
    }

    fn ask_presence(&mut self, slot: Slot, reference: &str, topic: Topic) -> Result<Next, Wrong> {
        self.check_hearing(slot, &topic).map_err(wrong_of)?;
        let ticket = self.publishers.ticket(slot);
        if !self.asker.ask(ticket, topic.clone()) {
            self.publishers.note(ticket);
            return Err((ErrorCode::Busy, "too many clients ask for subscribers".to_string()));
        }
        let asked = Asked { reference: reference.into(), of: AskedOf::Presence(topic) };
        self.publishers.conversation_of(slot).asked.push_back(asked);
        Ok(Next::Pause(Until::Quiet))
    }

    /// What became of the oldest publish of a client.
    pub(super) fn command_answered(&mut self, slot: Slot, outcome: Outcome) {
        let Some(Asked { reference, of: AskedOf::Publish(id) }) = self.next_asked(slot) else { return };
        let frame = match outcome {
            Ok(taken) => {
                let ours = taken.id().to_string();
                let id = id.as_ref().map_or(ours.as_str(), CustomId::as_str);
                let reply = Reply::Published { id, sequence: taken.sequence, duplicate: taken.duplicate };
                envelope::answer(Some(&reference), &reply)
            }
            Err(Refusal { reason, text }) => {
                let code = code_of(reason);
                self.metrics.command_errors[code.index()] += 1;
                envelope::answer(Some(&reference), &Reply::Error { code, detail: &text })
            }
        };
        self.answer(slot, frame);
    }

    /// Hears how many subscribers topics have.
    pub(super) fn take_crowds(&mut self) {
        while let Some((ticket, crowds)) = self.asker.next_answer() {
            if self.publishers.note(ticket) {
                self.presence_answered(ticket, crowds);
            }
        }
    }

    fn presence_answered(&mut self, Ticket { slot, .. }: Ticket, crowds: Crowds) {
        let Some(Asked { reference, of: AskedOf::Presence(topic) }) = self.next_asked(slot) else { return };
        let reply = match crowds {
            Some(crowds) => Reply::Present {
                topic: &topic,
                sse: crowds[Family::EventStream.index()],
                websocket: crowds[Family::WebSocket.index()],
            },
            None => {
                self.metrics.command_errors[ErrorCode::Busy.index()] += 1;
                Reply::Error { code: ErrorCode::Busy, detail: "a shard did not say how many it has" }
            }
        };
        self.answer(slot, envelope::answer(Some(&reference), &reply));
    }

    /// The oldest command that the hub has just answered.
    fn next_asked(&mut self, slot: Slot) -> Option<Asked> {
        let asked = self.publishers.conversation(slot)?.asked.pop_front();
        self.publishers.forget_if_idle(slot);
        asked
    }
}

/// As the error of a command.
fn wrong_of(denied: Denied) -> Wrong {
    (denied.error_code(), denied.detail())
}

/// The topic or pattern that is meant, by its name here.
fn name_of(of: &Named) -> &Topic {
    match of {
        Named::Topic(topic) => topic,
        Named::Match(pattern) => pattern.name(),
    }
}

/// The word for a client of why its publish is not taken.
fn code_of(reason: RefusalReason) -> ErrorCode {
    match reason {
        RefusalReason::Full | RefusalReason::Behind | RefusalReason::Memory => ErrorCode::Full,
        RefusalReason::Busy | RefusalReason::Upgrading | RefusalReason::Source => ErrorCode::Busy,
        RefusalReason::OutcomeUnknown => ErrorCode::OutcomeUnknown,
        RefusalReason::Draining => ErrorCode::Draining,
        RefusalReason::BadTopic => ErrorCode::BadTopic,
        RefusalReason::TooLarge | RefusalReason::LineTooLong => ErrorCode::TooLarge,
        RefusalReason::NotAllowed | RefusalReason::Follows => ErrorCode::NotAllowed,
        RefusalReason::Conflict => ErrorCode::Conflict,
        _ => ErrorCode::BadCommand,
    }
}

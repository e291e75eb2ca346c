//! Clients that publish: what is on its way to the hub, and what waits for room.
//!
//! Invariants worth naming:
//! - What a client publishes goes to the hub in the order in which it came, and each publish is
//!   answered once ([`State::answered`]). An answer to a client that has left meets nobody: each
//!   client has a number of its own.
//! - A client with [`UNANSWERED_MAX`] publishes on their way, or one that finds the uplink full, is
//!   paused: what was received and not read is kept, and its receive is ended. So it fills its own
//!   TCP window. It goes on where it stopped when half of its publishes are answered.
//! - Only clients with something on its way have an entry. Others cost nothing.
//!
//! Not here: what a protocol makes of its bytes (`subscribe` for WebSockets in raw mode, `posts`
//! for HTTP).

use std::collections::{HashMap, VecDeque};

use super::commands::Conversation;
use super::connections::{Phase, Session};
use super::state::State;
use crate::broadcast::{Answer, Outcome, Publish, Ticket, Uplink};
use crate::close::CloseReason;
use crate::config::limits::{PAUSED_BYTES_MAX, RESUMES_PER_TURN_MAX, UNANSWERED_MAX};
use crate::egress::{EgressRing, Slot};
use crate::event::Event;
use crate::publishing::IdempotencyKey;

/// There is no room for the publish. A caller asks for room before it makes an event, and pauses
/// its client where there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy;

/// What a paused client waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Room for a publish more.
    Room,
    /// The answer to its last publish.
    Quiet,
    /// That what it was answered is sent.
    Sent,
    /// An event on its way.
    Event,
    /// That a pattern is known to its topics.
    Known,
    /// That its token may be checked.
    Checked,
    /// Where its topics begin.
    Found,
}

impl Until {
    /// True for a client with so many unanswered publishes, as far as it is up to them.
    fn is_over(self, unanswered: usize) -> bool {
        match self {
            Until::Room => unanswered <= UNANSWERED_MAX / 2,
            Until::Quiet => unanswered == 0,
            Until::Sent | Until::Event | Until::Known | Until::Checked | Until::Found => false,
        }
    }
}

/// A client that has publishes on their way, is paused, or is in the middle of a message.
#[derive(Debug)]
struct Client {
    /// Nobody else has or had it.
    number: u64,
    /// 0 <= unanswered <= UNANSWERED_MAX.
    unanswered: usize,
    paused: Option<Paused>,
    /// What has come of a message that is not whole.
    message: Message,
    /// Its commands under way.
    conversation: Conversation,
}

impl Client {
    /// True if there is nothing to remember of it.
    fn is_idle(&self) -> bool {
        let is_quiet = self.unanswered == 0 && self.paused.is_none();
        is_quiet && self.message == Message::default() && self.conversation.is_over()
    }
}

/// A message, as far as it has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Its payload, empty before its first byte.
    Collected(Vec<u8>),
    /// There was no memory for it: its rest is dropped too.
    Dropped,
}

impl Default for Message {
    fn default() -> Message {
        Message::Collected(Vec::new())
    }
}

impl Message {
    /// The next piece of it.
    pub(super) fn push(&mut self, piece: &[u8]) {
        if let Message::Collected(bytes) = self {
            bytes.extend_from_slice(piece);
        }
    }

    /// All of it, now that it is whole; `None` if it was dropped. The next one may begin.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        match std::mem::take(self) {
            Message::Collected(bytes) => Some(bytes),
            Message::Dropped => None,
        }
    }

    /// Bytes that were collected.
    pub(super) fn len(&self) -> usize {
        match self {
            Message::Collected(bytes) => bytes.len(),
            Message::Dropped => 0,
        }
    }

    /// Bytes of memory that it takes.
    fn held(&self) -> usize {
        match self {
            Message::Collected(bytes) => bytes.capacity(),
            Message::Dropped => 0,
        }
    }
}

#[derive(Debug)]
struct Paused {
    until: Until,
    /// What was received and not read, in its order.
    unread: Vec<u8>,
    /// It is in `Publishers::due`.
    is_due: bool,
}

/// All that publish.
#[derive(Debug)]
pub(super) struct Publishers {
    uplink: Uplink,
    clients: HashMap<Slot, Client>,
    /// The last number that was given.
    number: u64,
    /// Clients that are paused now.
    paused: usize,
    /// Memory of all messages that are not whole.
    held: usize,
    /// Bytes that were received from paused clients and not read.
    unread: usize,
    /// Those of them that may go on, by slot and number, in the order in which they could.
    due: VecDeque<(Slot, u64)>,
    /// Who was answered in this turn and is to be told.
    answered: Vec<Slot>,
    /// Whose receives are to end. May hold a slot twice, or one that is not paused any more.
    to_pause: Vec<Slot>,
}

impl Publishers {
    pub(super) fn new(uplink: Uplink) -> Publishers {
        Publishers {
            uplink,
            clients: HashMap::new(),
            number: 0,
            paused: 0,
            held: 0,
            unread: 0,
            due: VecDeque::new(),
            answered: Vec::new(),
            to_pause: Vec::new(),
        }
    }

    /// How many publishes more of this client would be taken now.
    pub(super) fn room(&self, slot: Slot) -> usize {
        (UNANSWERED_MAX - self.unanswered(slot)).min(self.uplink.room())
    }

    /// Publishes of this client without an answer.
    pub(super) fn unanswered(&self, slot: Slot) -> usize {
        self.clients.get(&slot).map_or(0, |client| client.unanswered)
    }

    /// True while nothing is to be received from this client.
    pub(super) fn is_paused(&self, slot: Slot) -> bool {
        self.paused > 0 && self.clients.get(&slot).is_some_and(|client| client.paused.is_some())
    }

    /// The slot is somebody else's from now on, or its client has nothing more to say.
    pub(super) fn forget(&mut self, slot: Slot) {
        if !self.clients.is_empty()
            && let Some(client) = self.clients.remove(&slot)
        {
            if let Some(paused) = client.paused {
                self.paused -= 1;
                self.unread -= paused.unread.len();
            }
            self.held -= client.message.held();
        }
    }

    /// What has come of the message under way.
    pub(super) fn take_message(&mut self, slot: Slot) -> Message {
        let Some(client) = self.clients.get_mut(&slot) else { return Message::default() };
        let message = std::mem::take(&mut client.message);
        self.held -= message.held();
        message
    }

    /// Keeps what has come of a message until more of it comes. All of them take at most
    /// `bytes_max`: what would be more is dropped, and what comes of it later.
    pub(super) fn keep_message(&mut self, slot: Slot, message: Message, bytes_max: usize) {
        let more = message.held();
        let message = if more > 0 && self.held + more > bytes_max { Message::Dropped } else { message };
        if message != Message::default() {
            self.held += message.held();
            self.client(slot).message = message;
        } else if self.clients.get(&slot).is_some_and(Client::is_idle) {
            self.clients.remove(&slot);
        }
    }

    /// The commands of a client, if it is remembered.
    pub(super) fn conversation(&mut self, slot: Slot) -> Option<&mut Conversation> {
        self.clients.get_mut(&slot).map(|client| &mut client.conversation)
    }

    /// The commands of a client, which is remembered from now on.
    pub(super) fn conversation_of(&mut self, slot: Slot) -> &mut Conversation {
        &mut self.client(slot).conversation
    }

    /// True if the hub owes the client an answer to a command.
    pub(super) fn awaits_hub(&self, slot: Slot) -> bool {
        !self.clients.is_empty()
            && self.clients.get(&slot).is_some_and(|client| client.conversation.awaits_hub())
    }

    /// Forgets a client of which there is nothing to remember.
    pub(super) fn forget_if_idle(&mut self, slot: Slot) {
        if !self.clients.is_empty() && self.clients.get(&slot).is_some_and(Client::is_idle) {
            self.clients.remove(&slot);
        }
    }

    /// Counts something that the client asks of the hub, and names it.
    pub(super) fn ticket(&mut self, slot: Slot) -> Ticket {
        let client = self.client(slot);
        client.unanswered += 1;
        Ticket { slot, number: client.number, tag: 0 }
    }

    /// What a paused client waits for has come. False if it does not wait for that.
    pub(super) fn let_go_on(&mut self, slot: Slot, waits_for: Until) -> bool {
        if self.paused == 0 {
            return false;
        }
        let Some(Client { number, paused: Some(paused), .. }) = self.clients.get_mut(&slot) else {
            return false;
        };
        let goes_on = paused.until == waits_for && !std::mem::replace(&mut paused.is_due, true);
        if goes_on {
            self.due.push_back((slot, *number));
        }
        goes_on
    }

    /// Wakes the hub for what was queued in this turn.
    pub(super) fn wake_hub(&mut self) {
        self.uplink.wake_hub();
    }

    /// True if a paused client may go on at once.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty() && self.has_room()
    }

    /// True if the uplink takes more.
    pub(super) fn has_room(&self) -> bool {
        self.uplink.room() > 0
    }

    /// Answers for this client have gathered, and are to be sent once all are here.
    pub(super) fn note_answers(&mut self, slot: Slot) {
        self.answered.push(slot);
    }

    fn client(&mut self, slot: Slot) -> &mut Client {
        self.clients.entry(slot).or_insert_with(|| {
            self.number += 1;
            Client {
                number: self.number,
                unanswered: 0,
                paused: None,
                message: Message::default(),
                conversation: Conversation::default(),
            }
        })
    }

    /// Notes an answer. False if its client has left.
    pub(super) fn note(&mut self, ticket: Ticket) -> bool {
        let Some(client) = self.clients.get_mut(&ticket.slot).filter(|client| client.number == ticket.number)
        else {
            return false;
        };
        client.unanswered -= 1;
        let unanswered = client.unanswered;
        if client.is_idle() {
            self.clients.remove(&ticket.slot);
            return true;
        }
        if let Some(paused) = &mut client.paused
            && paused.until.is_over(unanswered)
            && !std::mem::replace(&mut paused.is_due, true)
        {
            self.due.push_back((ticket.slot, ticket.number));
        }
        true
    }

    /// The next paused client that may go on, and what it said before; it is paused no more.
    fn next_due(&mut self) -> Option<(Slot, Vec<u8>)> {
        while self.uplink.room() > 0 {
            let (slot, number) = self.due.pop_front()?;
            let Some(client) = self.clients.get_mut(&slot).filter(|client| client.number == number) else {
                continue;
            };
            let Some(paused) = client.paused.take() else { continue };
            self.paused -= 1;
            self.unread -= paused.unread.len();
            if client.is_idle() {
                self.clients.remove(&slot);
            }
            return Some((slot, paused.unread));
        }
        None
    }
}

impl State {
    /// Publishes `event` for the client of `slot`. The outcome comes to [`State::answered`], with
    /// the same tag; those of one client come in the order of its publishes.
    pub(super) fn publish(&mut self, slot: Slot, tag: u64, event: Event) -> Result<(), Busy> {
        self.publish_once(slot, tag, event, None)
    }

    /// The same under a key, if there is one.
    pub(super) fn publish_once(
        &mut self,
        slot: Slot,
        tag: u64,
        event: Event,
        key: Option<IdempotencyKey>,
    ) -> Result<(), Busy> {
        if self.publishers.room(slot) == 0 {
            return Err(Busy);
        }
        let client = self.publishers.client(slot);
        client.unanswered += 1;
        let ticket = Ticket { slot, number: client.number, tag };
        if !self.publishers.uplink.send(Publish { ticket, event, key }) {
            // The hub is gone: the process is about to end.
            self.publishers.note(ticket);
        }
        Ok(())
    }

    /// Reads nothing more from a client until it may go on; `unread` is what comes first then.
    pub(super) fn pause(&mut self, slot: Slot, unread: &[u8], until: Until) {
        let client = self.publishers.client(slot);
        assert!(client.paused.is_none(), "a paused client says nothing");
        // What waits for the uplink alone is due as soon as that has room.
        let is_due = until.is_over(client.unanswered);
        client.paused = Some(Paused { until, unread: unread.to_vec(), is_due });
        let number = client.number;
        if is_due {
            self.publishers.due.push_back((slot, number));
        }
        self.publishers.paused += 1;
        self.publishers.unread += unread.len();
        self.publishers.to_pause.push(slot);
        self.metrics.pauses += 1;
    }

    /// Keeps what still comes from a paused client. False if it is not paused, and the bytes are to
    /// be read.
    pub(super) fn keep_unread(&mut self, slot: Slot, bytes: &[u8]) -> bool {
        if self.publishers.paused == 0 {
            return false;
        }
        let Some(Client { paused: Some(paused), .. }) = self.publishers.clients.get_mut(&slot) else {
            return false;
        };
        paused.unread.extend_from_slice(bytes);
        let of_one = paused.unread.len();
        self.publishers.unread += bytes.len();
        let of_all = self.publishers.unread;
        if of_one > PAUSED_BYTES_MAX || of_all > self.setup.config.limits.incoming_bytes_max() {
            self.abort(slot, CloseReason::Stalled);
        } else {
            // The end of its receive may have come between two waits of it.
            self.publishers.to_pause.push(slot);
        }
        true
    }

    /// Ends the receives of those that were paused.
    pub(super) fn end_receives(&mut self, ring: &mut impl EgressRing) {
        while ring.room() > 0
            && let Some(slot) = self.publishers.to_pause.pop()
        {
            let connection = self.connections.get(slot);
            let listens = matches!(connection.phase, Phase::Handshake | Phase::Serving | Phase::Open);
            if listens && connection.receiving && self.publishers.is_paused(slot) {
                ring.pause(slot);
            }
        }
    }

    /// Hears what became of publishes, and lets paused clients go on, a bounded number.
    pub(super) fn take_answers(&mut self) {
        while let Some(answers) = self.publishers.uplink.answers() {
            for Answer { ticket, outcome } in answers {
                match &outcome {
                    Ok(_) => self.metrics.published += 1,
                    Err(refusal) => self.metrics.refused.add(refusal.reason),
                }
                if self.publishers.note(ticket) {
                    self.answered(ticket.slot, ticket.tag, outcome);
                }
            }
        }
        let mut answered = std::mem::take(&mut self.publishers.answered);
        answered.drain(..).for_each(|slot| self.say_answers(slot));
        self.publishers.answered = answered;
        for _ in 0..RESUMES_PER_TURN_MAX {
            let Some((slot, mut unread)) = self.publishers.next_due() else { break };
            // Even if nothing is unread: it may wait with a request that was read.
            self.handle_received(slot, &mut unread);
            self.tokens.pass_by(slot);
            // It is listened to again.
            self.mark_ready(slot);
        }
    }

    /// What became of a publish of a client that is still there. Each protocol tells it in its own
    /// way; a raw WebSocket is told nothing.
    fn answered(&mut self, slot: Slot, _tag: u64, outcome: Outcome) {
        match self.connections.get(slot).session {
            Session::Posts(_) => self.post_answered(slot, outcome),
            Session::WebSocket(_) => self.command_answered(slot, outcome),
            Session::Handshake(_) | Session::Carrier | Session::Sse | Session::Echo(_) => {}
        }
    }
}

//! Who may hear and say what: tokens of clients, from their request to their expiry.
//!
//! Invariants worth naming:
//! - A turn checks at most `VERIFICATIONS_PER_TURN_MAX` signatures. Clients beyond that wait behind
//!   all who wait already, and are read from when it is their turn. A token that was checked before
//!   waits for nobody.
//! - Newcomers and clients that are paused have a line each. A paused client goes on with room in
//!   the uplink alone, and no newcomer waits for that.
//! - Nothing here is on the way of an event. What a connection may hear is settled when it
//!   subscribes; the walk over the slab ends it when its token is over, or when its key is gone.
//! - Claims are kept of those alone that may ask for more later, beside the slab: of clients that
//!   speak JSON, and of those in raw mode that publish.
//! - Without keys everybody may come in, and nothing here costs anything.
//!
//! Not here: what a token grants (`auth`), where it stands in a request (`wire::http`), and how
//! keys are fetched (`hub`).

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::connections::Phase;
use super::publishers::Until;
use super::state::State;
use crate::auth::{Claims, Keys, KnownTokens, Refused};
use crate::clock::Stamp;
use crate::close::{CloseReason, ErrorCode};
use crate::config::limits::{TICK_MS, VERIFICATIONS_PER_TURN_MAX, VERIFICATIONS_WAITING_MAX};
use crate::egress::Slot;
use crate::event::Topic;
use crate::publishing::IdempotencyKey;
use crate::refusal::RefusalReason;
use crate::wire::Format;
use crate::wire::http::{RefusedRequest, Subscribe, Token};

/// Paused clients whose turn it is and that have not gone on: half of a turn's signatures, so that
/// the other half is the newcomers' in any case.
const PASSING_MAX: usize = VERIFICATIONS_PER_TURN_MAX / 2;

/// What a client is told that brings no token.
const NONE_BROUGHT: &str = "a token is needed here: Authorization: Bearer TOKEN, or token=TOKEN in the query";

/// All that a shard knows of tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    keys: Arc<Keys>,
    known: KnownTokens,
    /// Milliseconds since 1970, and when that was told.
    told: (u64, Stamp),
    /// Signatures that may still be checked in this turn.
    left: usize,
    /// Newcomers that wait for one, in order. Some of them may have left.
    newcomers: VecDeque<Slot>,
    /// Paused clients that wait for one, in order. Some of them may have left.
    paused: VecDeque<Slot>,
    /// Who has waited and may check one without another wait: a newcomer goes on at once, and of
    /// paused clients there are at most `PASSING_MAX`.
    next: Vec<Slot>,
    /// What those may do that may ask for more.
    held: HashMap<Slot, Rc<Claims>>,
}

/// Whether a request may pass.
#[derive(Debug)]
pub(super) enum Passage {
    /// It may, with these claims; without any where no token is needed.
    Open(Option<Rc<Claims>>),
    /// It may not.
    Closed(Denied),
    /// It is asked again when it is its turn.
    Later,
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// A token is missing, or it is refused.
    Token(Option<Refused>),
    /// The token does not allow it.
    Topic(String),
    /// Too many wait for the check of theirs.
    Busy,
}

impl Denied {
    /// As the end of a connection.
    pub(super) fn close_reason(&self) -> CloseReason {
        match self {
            Denied::Token(Some(Refused::Expired)) => CloseReason::Expired,
            Denied::Token(Some(Refused::NoKeys)) => CloseReason::NoKeys,
            Denied::Token(_) => CloseReason::Unauthorized,
            Denied::Topic(_) => CloseReason::NotAllowed,
            Denied::Busy => CloseReason::Full,
        }
    }

    /// As the error of a command.
    pub(super) fn error_code(&self) -> ErrorCode {
        match self {
            Denied::Token(Some(Refused::Expired)) => ErrorCode::Expired,
            Denied::Token(Some(Refused::NoKeys)) | Denied::Busy => ErrorCode::Busy,
            Denied::Token(_) => ErrorCode::Unauthorized,
            Denied::Topic(_) => ErrorCode::NotAllowed,
        }
    }

    /// As the refusal of a publish.
    pub(super) fn refusal_reason(&self) -> RefusalReason {
        match self {
            Denied::Token(Some(Refused::NoKeys)) | Denied::Busy => RefusalReason::Busy,
            Denied::Token(_) => RefusalReason::Unauthorized,
            Denied::Topic(_) => RefusalReason::NotAllowed,
        }
    }

    /// One line for the client.
    pub(super) fn detail(&self) -> String {
        match self {
            Denied::Token(None) => NONE_BROUGHT.to_string(),
            Denied::Token(Some(refused)) => refused.to_string(),
            Denied::Topic(text) => text.clone(),
            Denied::Busy => "too many tokens wait to be checked".to_string(),
        }
    }

    /// As the refusal of a request.
    pub(super) fn request(&self) -> RefusedRequest {
        RefusedRequest { reason: self.close_reason(), detail: self.detail() }
    }
}

/// An idempotency key as one of those who bring these claims.
pub(super) fn own(key: IdempotencyKey, claims: Option<&Claims>) -> IdempotencyKey {
    match claims {
        Some(claims) => key.of(&claims.principal()),
        None => key.of(&[]),
    }
}

impl Tokens {
    pub(super) fn new(keys: Keys, now: Stamp) -> Tokens {
        Tokens {
            keys: Arc::new(keys),
            known: KnownTokens::default(),
            told: (0, now),
            left: 0,
            newcomers: VecDeque::new(),
            paused: VecDeque::new(),
            next: Vec::new(),
            held: HashMap::new(),
        }
    }

    /// True if tokens are needed.
    pub(super) fn are_needed(&self) -> bool {
        self.keys.is_configured()
    }

    /// A turn begins. Those that have not gone on in the last one may in this one.
    pub(super) fn begin_turn(&mut self) {
        self.left = VERIFICATIONS_PER_TURN_MAX - self.next.len();
    }

    /// The client of the slot has left, or has nothing more to say.
    pub(super) fn forget(&mut self, slot: Slot) {
        if !self.held.is_empty() {
            self.held.remove(&slot);
        }
        self.pass_by(slot);
    }

    /// The client of the slot has gone on. If it has checked nothing, it waits again for its turn:
    /// a turn that it kept would be nobody's.
    pub(super) fn pass_by(&mut self, slot: Slot) {
        if !self.next.is_empty() {
            self.next.retain(|next| *next != slot);
        }
    }

    /// The line in which a client waits.
    fn line(&mut self, is_newcomer: bool) -> &mut VecDeque<Slot> {
        if is_newcomer { &mut self.newcomers } else { &mut self.paused }
    }
}

impl State {
    /// At `now` it is this time of day: milliseconds since 1970.
    pub(super) fn tell_time(&mut self, unix_ms: u64, now: Stamp) {
        self.tokens.told = (unix_ms, now);
    }

    /// Milliseconds since 1970 at the begin of this turn.
    pub(super) fn unix_ms(&self) -> u64 {
        let (unix_ms, told) = self.tokens.told;
        unix_ms + self.now.ns_since(told) / 1_000_000
    }

    /// Other keys are in force: what was checked with the old ones is checked again.
    pub(super) fn take_keys(&mut self, keys: Arc<Keys>) {
        if *keys != *self.tokens.keys {
            self.tokens.keys = keys;
            self.tokens.known.forget();
        }
    }

    /// What a token grants now. `None`: its client waits for its turn.
    fn check_token(&mut self, slot: Slot, token: &Token) -> Option<Result<Rc<Claims>, Denied>> {
        let now_ms = self.unix_ms();
        let token = token.as_str();
        let unknown = match self.tokens.known.find(token, now_ms) {
            Ok(known) => {
                // It may have waited for a turn that it does not need any more.
                self.tokens.pass_by(slot);
                self.metrics.tokens.remembered += 1;
                return Some(known.map_err(|refused| Denied::Token(Some(refused))));
            }
            Err(unknown) => unknown,
        };
        let has_waited = self.tokens.next.iter().position(|next| *next == slot);
        let is_newcomer = self.connections.get(slot).phase == Phase::Handshake;
        let waiting = self.tokens.newcomers.len() + self.tokens.paused.len();
        match has_waited {
            Some(at) => drop(self.tokens.next.swap_remove(at)),
            None if self.tokens.left > 0 && self.tokens.line(is_newcomer).is_empty() => {
                self.tokens.left -= 1;
            }
            None if waiting >= VERIFICATIONS_WAITING_MAX => return Some(Err(Denied::Busy)),
            // It has said more while it waits.
            None if self.awaits_check(slot) => return None,
            None => {
                self.tokens.line(is_newcomer).push_back(slot);
                if is_newcomer {
                    self.connections.get_mut(slot).expires = 1;
                }
                self.metrics.tokens.waits += 1;
                return None;
            }
        }
        self.metrics.tokens.checked += 1;
        let keys = self.tokens.keys.clone();
        let checked = self.tokens.known.check(unknown, token, &keys, now_ms);
        Some(checked.map_err(|refused| Denied::Token(Some(refused))))
    }

    /// True if somebody waits for the check of a token whose turn it could be.
    pub(super) fn has_waiting(&self) -> bool {
        !self.tokens.newcomers.is_empty() || self.passes_paused()
    }

    /// True if a paused client waits and could go on.
    fn passes_paused(&self) -> bool {
        !self.tokens.paused.is_empty() && self.tokens.next.len() < PASSING_MAX && self.publishers.has_room()
    }

    /// Lets those go on whose turn it is to have their token checked, of both lines one after the
    /// other.
    pub(super) fn check_waiting(&mut self) {
        while self.tokens.left > 0 && self.has_waiting() {
            if self.passes_paused()
                && let Some(slot) = self.tokens.paused.pop_front()
                // Another client may have the slot by now.
                && self.publishers.let_go_on(slot, Until::Checked)
            {
                self.tokens.left -= 1;
                self.tokens.next.push(slot);
            }
            if self.tokens.left > 0
                && let Some(slot) = self.tokens.newcomers.pop_front()
                && self.awaits_check(slot)
            {
                self.connections.get_mut(slot).expires = 0;
                self.tokens.left -= 1;
                self.tokens.next.push(slot);
                self.read_again(slot, false);
                // It may be refused for another reason by now.
                self.tokens.pass_by(slot);
            }
        }
    }

    /// Whether a subscriber may come in.
    pub(super) fn passage_of(&mut self, slot: Slot, request: &Subscribe) -> Passage {
        if !self.tokens.are_needed() {
            return Passage::Open(None);
        }
        let config = &self.setup.config;
        let are_public = request.topics.iter().all(|topic| config.is_public(topic.as_str()));
        let claims = match &request.token {
            // A client that speaks JSON may bring its token by command.
            None if are_public => return Passage::Open(None),
            None => return Passage::Closed(Denied::Token(None)),
            Some(_) if are_public && request.format != Format::Json => return Passage::Open(None),
            Some(token) => match self.check_token(slot, token) {
                None => return Passage::Later,
                Some(Err(denied)) => return Passage::Closed(denied),
                Some(Ok(claims)) => claims,
            },
        };
        let mut topics = request.topics.iter();
        match topics.find(|topic| !self.is_heard(topic, Some(&claims))) {
            Some(topic) => Passage::Closed(not_heard(topic)),
            None => Passage::Open(Some(claims)),
        }
    }

    /// True if a topic, or all topics of a pattern, may be heard with these claims.
    fn is_heard(&self, name: &Topic, claims: Option<&Claims>) -> bool {
        claims.is_some_and(|claims| claims.lets_subscribe(name)) || self.setup.config.is_public(name.as_str())
    }

    /// A subscriber has come in: its token bounds its time, and what it may ask for later.
    pub(super) fn bind_claims(&mut self, slot: Slot, claims: Option<Rc<Claims>>) {
        if !self.tokens.are_needed() {
            return;
        }
        let Some(claims) = claims else {
            self.ask_for_a_topic(slot);
            return;
        };
        // By the clock on the wall, which may be set meanwhile, and goes on while the machine
        // sleeps. Beyond 2106 is never.
        let expires = claims.expires_ms.map_or(0, |ms| u32::try_from(ms / 1_000).map_or(0, |s| s.max(1)));
        let connection = self.connections.get_mut(slot);
        connection.expires = expires;
        connection.key = claims.key;
        let asks_more = match connection.format {
            Format::Json => true,
            Format::WebSocket => !claims.publish.is_empty() && self.setup.config.has_client_publishers(),
            _ => false,
        };
        if asks_more {
            self.tokens.held.insert(slot, claims);
        }
    }

    /// A subscriber without a token has some time to bring one, or to find a topic that needs none,
    /// whenever it hears no topic.
    pub(super) fn ask_for_a_topic(&mut self, slot: Slot) {
        let connection = self.connections.get(slot);
        let hears_none = connection.memberships.as_slice().is_empty();
        if self.tokens.are_needed() && hears_none && connection.key == 0 && connection.expires == 0 {
            let ms = self.setup.config.limits.handshake_ms_max;
            self.connections.get_mut(slot).expires = self.tick_in(ms);
        }
    }

    /// The last tick that begins within so many milliseconds. Never 0.
    fn tick_in(&self, ms: u64) -> u32 {
        let ticks = (u64::from(self.tick) * TICK_MS + self.ms_in_tick()).saturating_add(ms) / TICK_MS;
        // Further away than a shard lives is never.
        u32::try_from(ticks).map_or(0, |ticks| ticks.max(1))
    }

    /// Looks whether the time of a subscriber is over. True if it was hung up on.
    pub(super) fn is_over(&mut self, slot: Slot) -> bool {
        let connection = self.connections.get(slot);
        let (expires, key) = (connection.expires, connection.key);
        // A token ends with the begin of the tick in which it is over, so that the walk, which takes
        // four, ends its stream within a second.
        let is_over = |unix_ms: u64| unix_ms + TICK_MS > u64::from(expires) * 1_000;
        if expires != 0 && key != 0 && is_over(self.unix_ms().saturating_sub(self.ms_in_tick())) {
            self.hang_up(slot, CloseReason::Expired, "the token has expired");
            return true;
        }
        if expires != 0 && key == 0 && self.tick >= expires {
            let connection = self.connections.get_mut(slot);
            // It may have found public topics meanwhile, and needs no token for those.
            connection.expires = 0;
            if connection.memberships.as_slice().is_empty() {
                self.hang_up(slot, CloseReason::Unauthorized, "no token came in time");
                return true;
            }
        }
        if key != 0 && !self.tokens.keys.has(key) {
            self.hang_up(slot, CloseReason::Unauthorized, "the key of the token is not valid any more");
            return true;
        }
        false
    }

    /// The claims of a client that asks for more; those of one that has none where no token is
    /// needed for `name` are nothing.
    fn claims_for(
        &self,
        slot: Slot,
        allows: impl Fn(Option<&Claims>) -> Option<Denied>,
    ) -> Result<(), Denied> {
        if !self.tokens.are_needed() {
            return Ok(());
        }
        let claims = self.tokens.held.get(&slot);
        if let Some(claims) = claims {
            // The walk ends it within a second; until then it gets nothing more.
            claims.check_time(self.unix_ms()).map_err(|refused| Denied::Token(Some(refused)))?;
        }
        allows(claims.map(|claims| &**claims)).map_or(Ok(()), Err)
    }

    /// Refuses what a client that speaks JSON may not hear, nor count the subscribers of.
    pub(super) fn check_hearing(&self, slot: Slot, name: &Topic) -> Result<(), Denied> {
        self.claims_for(slot, |claims| match claims {
            _ if self.is_heard(name, claims) => None,
            None => Some(Denied::Token(None)),
            Some(_) => Some(not_heard(name)),
        })
    }

    /// Refuses what the client of a WebSocket may not publish, rules aside.
    pub(super) fn check_speaking(&self, slot: Slot, topic: &Topic) -> Result<(), Denied> {
        self.claims_for(slot, |claims| self.why_not_spoken(topic, claims))
    }

    /// An idempotency key as one of the client's own.
    pub(super) fn own_key(&self, slot: Slot, key: IdempotencyKey) -> IdempotencyKey {
        own(key, self.tokens.held.get(&slot).map(|claims| &**claims))
    }

    fn why_not_spoken(&self, topic: &Topic, claims: Option<&Claims>) -> Option<Denied> {
        let name = topic.as_str();
        match claims {
            _ if self.setup.config.is_public(name) => None,
            None => Some(Denied::Token(None)),
            Some(claims) if claims.lets_publish(name) => None,
            Some(_) => {
                Some(Denied::Topic(format!("the token does not allow to publish to the topic {name:?}")))
            }
        }
    }

    /// Whether a request may publish, rules aside.
    pub(super) fn passage_to_publish(&mut self, slot: Slot, topic: &Topic, token: Option<&Token>) -> Passage {
        if !self.tokens.are_needed() || self.setup.config.is_public(topic.as_str()) {
            return Passage::Open(None);
        }
        let Some(token) = token else { return Passage::Closed(Denied::Token(None)) };
        match self.check_token(slot, token) {
            None => Passage::Later,
            Some(Err(denied)) => Passage::Closed(denied),
            Some(Ok(claims)) => match self.why_not_spoken(topic, Some(&claims)) {
                Some(denied) => Passage::Closed(denied),
                None => Passage::Open(Some(claims)),
            },
        }
    }

    /// A client that speaks JSON brings another token. It takes the place of the one before, if it
    /// allows all that the client hears.
    pub(super) fn renew(&mut self, slot: Slot, token: &Token) -> Passage {
        let claims = match self.check_token(slot, token) {
            None => return Passage::Later,
            Some(Err(denied)) => return Passage::Closed(denied),
            Some(Ok(claims)) => claims,
        };
        let members = self.connections.get(slot).memberships.as_slice();
        let mut names = members.iter().map(|member| &self.topics.get(member.topic).name);
        if let Some(name) = names.find(|name| !self.is_heard(name, Some(&claims))) {
            return Passage::Closed(not_heard(name));
        }
        self.bind_claims(slot, Some(claims.clone()));
        Passage::Open(Some(claims))
    }

    /// True if the request of a client waits for the check of its token.
    pub(super) fn awaits_check(&self, slot: Slot) -> bool {
        let connection = self.connections.get(slot);
        connection.expires != 0 && connection.phase == Phase::Handshake
    }
}

fn not_heard(name: &Topic) -> Denied {
    let kind = if name.as_str().contains('*') { "pattern" } else { "topic" };
    Denied::Topic(format!("the token does not allow the {kind} {:?}", name.as_str()))
}

#[cfg(test)]
mod tests;

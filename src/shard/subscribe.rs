//! What a client says: its request head, and afterwards its WebSocket frames.
//!
//! A head becomes a subscriber with a cursor, or an answer and the end. Where its topics begin is
//! found in `start`.

use std::rc::Rc;
use std::time::Duration;

use super::connections::{Membership, Memberships, Phase, Session, Standing, TopicIndex};
use super::publishers::Until;
use super::state::State;
use super::tokens::Passage;
use crate::auth::Claims;
use crate::broadcast::Pressure;
use crate::clock::Stamp;
use crate::close::CloseReason;
use crate::config::limits::{
    HELD_BACK_MAX, NODE_BEHIND_MS_MAX, PONGS_BYTES_MAX, RETRY_AFTER_S_SPREAD, RETURN_MS_MIN, RETURN_MS_SPREAD,
};
use crate::config::{Config, SseRefusals};
use crate::egress::Slot;
use crate::event::{EventId, Topic};
use crate::refusal::RefusalReason;
use crate::wire::gap::Gap;
use crate::wire::http::{
    Answer, Head, HeadRules, LastEventId, Manner, RefusedRequest, Subscribe, TokenPlaces,
};
use crate::wire::websocket::{Incoming, Violation};
use crate::wire::{Family, Format, SlowPolicy, http, http2, websocket};

/// Bytes that a client of HTTP/2 may send before it is answered: its requests, and the window of
/// their bodies.
const CARRIER_BYTES_MAX: usize = 256 << 10;

/// What the operator allows in the head of a request that comes with TLS or without.
pub(super) fn head_rules(config: &Config, is_secure: bool) -> HeadRules<'_> {
    HeadRules {
        head_bytes_max: config.limits.handshake_bytes_max,
        topics_max: config.limits.topics_per_connection_max,
        origins: config.origins(),
        is_secure,
        subprotocols: &config.pages.subprotocols,
        echo: config.diagnostic_echo,
        tokens: config
            .tokens
            .is_configured()
            .then_some(TokenPlaces { cookie: config.tokens.cookie.as_deref() }),
    }
}

/// A client that is asked again once an event has come.
#[derive(Debug)]
pub(super) struct HeldBack {
    pub(super) slot: Slot,
    /// Once this position is taken.
    pub(super) until: u64,
    /// Then in any case: only where the event may come to another node alone.
    pub(super) deadline: Stamp,
}

impl HeldBack {
    /// Its epoch has ended at this position: what another node may have read behind it does not
    /// come here.
    pub(super) fn end_epoch(&mut self, base: u64) {
        if self.deadline != Stamp(u64::MAX) {
            self.until = self.until.min(base);
        }
    }
}

impl State {
    /// Bytes from the client of `slot`.
    pub(super) fn handle_received(&mut self, slot: Slot, bytes: &mut [u8]) {
        if self.keep_unread(slot, bytes) {
            return;
        }
        let connection = self.connections.get_mut(slot);
        connection.pinged = false;
        match connection.phase {
            Phase::Handshake if connection.standing == Standing::Untold => {
                self.handle_proxy_header(slot, bytes);
            }
            Phase::Handshake => {
                let Session::Handshake(partial) = &mut connection.session else { return };
                let mut whole = std::mem::take(partial);
                if whole.is_empty() {
                    if self.begins_carrier(slot, bytes) {
                        return;
                    }
                    if let Some(used) = self.handle_head(slot, bytes, false) {
                        self.handle_frames(slot, &mut bytes[used..]);
                    }
                } else {
                    whole.extend_from_slice(bytes);
                    if self.begins_carrier(slot, &whole) {
                        return;
                    }
                    let connection = self.connections.get_mut(slot);
                    let Session::Handshake(partial) = &mut connection.session else { return };
                    let limits = &self.setup.config.limits;
                    if whole.len() < limits.handshake_bytes_max && !bytes.contains(&b'\n') {
                        // No line has ended: what was not a head is none yet.
                        *partial = whole;
                        return;
                    }
                    if let Some(used) = self.handle_head(slot, &whole, false) {
                        self.handle_frames(slot, &mut whole[used..]);
                    }
                }
            }
            Phase::Carrying => self.keep_for_carrier(slot, bytes),
            Phase::Serving => self.handle_posts(slot, bytes),
            Phase::Open => self.handle_frames(slot, bytes),
            // A client that is being hung up on has said enough.
            _ => {}
        }
    }

    /// True if `bytes` begin like HTTP/2, as far as they go: they are kept. A connection that is one
    /// too many of its address carries nothing.
    fn begins_carrier(&mut self, slot: Slot, bytes: &[u8]) -> bool {
        let connection = self.connections.get_mut(slot);
        // Behind an answer that may be under way no other protocol begins.
        let is_fresh = connection.turn == 0 && !connection.is_owed();
        let may_carry = self.carries && is_fresh && connection.standing != Standing::Carried;
        if !may_carry || !http2::begins_preface(bytes) {
            return false;
        }
        connection.session = Session::Handshake(bytes.to_vec());
        if bytes.len() < http2::PREFACE.len() {
            return true;
        }
        if connection.standing == Standing::Crowded {
            self.abort(slot, CloseReason::AddressFull);
        } else {
            connection.phase = Phase::Carrying;
            self.mark_ready(slot);
        }
        true
    }

    /// Bytes on a carrier that the ring does not know of yet: the step of this turn tells it, or one
    /// of the next.
    fn keep_for_carrier(&mut self, slot: Slot, bytes: &[u8]) {
        let Session::Handshake(kept) = &mut self.connections.get_mut(slot).session else { return };
        if kept.len() + bytes.len() > CARRIER_BYTES_MAX {
            return self.abort(slot, CloseReason::H2FlowControl);
        }
        kept.extend_from_slice(bytes);
    }

    /// A request head, perhaps in part. Returns the bytes of a head that made a subscriber.
    fn handle_head(&mut self, slot: Slot, bytes: &[u8], asked_again: bool) -> Option<usize> {
        if http::begins_post(bytes) {
            self.begin_posts(slot, bytes);
            return None;
        }
        let (head, manner) = http::parse_head(bytes, &head_rules(&self.setup.config, self.secure.has(slot)));
        let accepting = self.drain.is_none();
        let mut claims = None;
        if let Head::Subscribe(request, _) | Head::StreamHead(request) = &head {
            match self.passage_of(slot, request) {
                Passage::Open(granted) => claims = granted,
                Passage::Closed(denied) => {
                    self.turn_away(slot, &denied.request(), request, &manner);
                    return None;
                }
                Passage::Later => {
                    self.connections.get_mut(slot).session = Session::Handshake(bytes.to_vec());
                    return None;
                }
            }
        }
        let answer = match head {
            Head::Partial => {
                self.connections.get_mut(slot).session = Session::Handshake(bytes.to_vec());
                return None;
            }
            Head::Subscribe(subscribe, _) if self.must_learn(slot, &subscribe.topics) => {
                if self.learning.len() >= HELD_BACK_MAX {
                    let detail = "too many subscribers wait for new patterns".into();
                    self.refuse(slot, &RefusedRequest { reason: CloseReason::Full, detail }, &manner);
                    return None;
                }
                self.topics.want(&subscribe.topics);
                self.connections.get_mut(slot).session = Session::Handshake(bytes.to_vec());
                self.learning.push((slot, subscribe.topics));
                return None;
            }
            Head::Subscribe(subscribe, _)
                if self.why_no_subscriber(slot, &subscribe.topics).is_none()
                    && self.must_search(slot, &subscribe.topics, &subscribe.start) =>
            {
                self.connections.get_mut(slot).session = Session::Handshake(bytes.to_vec());
                return None;
            }
            Head::Subscribe(subscribe, used) => {
                if !asked_again && let Some(held) = self.must_wait(slot, &subscribe) {
                    self.connections.get_mut(slot).session = Session::Handshake(bytes.to_vec());
                    self.held_back.push(held);
                    return None;
                }
                return self.subscribe(slot, *subscribe, claims, &manner).then_some(used);
            }
            Head::Echo(handshake, used) => {
                return self.open_echo(slot, &handshake, &manner).then_some(used);
            }
            Head::StreamHead(request) => match self.why_no_subscriber(slot, &[]) {
                Some(refusal) => {
                    self.refuse(slot, &refusal, &manner);
                    return None;
                }
                None => self.answer_in(&manner).sse_head(request.format == Format::SseChunked),
            },
            Head::Health => {
                self.answer_in(&manner).health(accepting, self.setup.demand.degraded().as_deref())
            }
            Head::Front { is_html, body } => self.answer_in(&manner).page(is_html, &body),
            Head::Preflight => self.answer_in(&manner).preflight(),
            Head::Refused(refusal) => {
                self.refuse(slot, &refusal, &manner);
                return None;
            }
        };
        self.answer(slot, answer);
        self.finish(slot, CloseReason::Answered);
        None
    }

    /// An answer in this manner, of now.
    pub(super) fn answer_in<'a>(&'a self, manner: &'a Manner) -> Answer<'a> {
        Answer::new(manner, self.date.as_deref())
    }

    /// How long the request waits: it names an event by a publisher's id that no window here holds,
    /// while events are on their way to us, or one that another node may have read first.
    fn must_wait(&self, slot: Slot, request: &Subscribe) -> Option<HeldBack> {
        let id = request.start.after()?;
        if self.held_back.len() >= HELD_BACK_MAX || self.is_held_back(slot) {
            return None;
        }
        if let Some(held) = self.not_read_yet(slot, id) {
            return Some(held);
        }
        let newest = self.setup.demand.newest();
        if self.sequence >= newest {
            return None;
        }
        let known = request.topics.iter().filter_map(|topic| self.topics.find(topic));
        let members: Vec<_> = known.map(|topic| Membership { topic, position: 0 }).collect();
        let is_unknown = self.named_by(&Memberships::from(members), id).is_none();
        is_unknown.then_some(HeldBack { slot, until: newest, deadline: Stamp(u64::MAX) })
    }

    /// How long a client waits that names an event which this node has not read from the stream
    /// that all nodes read, and another one may have.
    pub(super) fn not_read_yet(&self, slot: Slot, id: &LastEventId) -> Option<HeldBack> {
        if self.setup.config.is_alone() {
            return None;
        }
        let era = self.eras.present();
        let position = |id: &str| {
            let id = id.parse::<EventId>().ok().filter(|id| id.epoch == era.epoch)?;
            id.sequence.checked_add(era.base)
        };
        let until = id.readings().find_map(position)?;
        let deadline = self.now.plus(Duration::from_millis(NODE_BEHIND_MS_MAX));
        let newest = self.setup.demand.newest_of(era)?;
        (until > newest).then_some(HeldBack { slot, until, deadline })
    }

    /// True if some of these are patterns that not all topics know yet, and a subscriber of them
    /// may come in.
    fn must_learn(&self, slot: Slot, topics: &[Topic]) -> bool {
        !self.topics.know(topics) && self.why_no_subscriber(slot, topics).is_none()
    }

    /// True if its request waits for an event on its way, or for a pattern.
    pub(super) fn is_held_back(&self, slot: Slot) -> bool {
        let learns = self.learning.iter().any(|held| held.0 == slot);
        self.awaits_check(slot)
            || learns
            || self.backfills.searches_for(slot)
            || self.held_back.iter().any(|held| held.slot == slot)
    }

    /// Tells patterns to topics, and asks those again whose patterns are known by now.
    pub(super) fn learn(&mut self) {
        self.topics.learn_some();
        let topics = &mut self.topics;
        let due: Vec<Slot> = self
            .learning
            .extract_if(.., |(_, names)| {
                topics.want(names);
                topics.know(names)
            })
            .map(|held| held.0)
            .collect();
        for slot in due {
            self.publishers.let_go_on(slot, Until::Known);
            self.read_again(slot, false);
        }
    }

    /// Asks those again who were held back for events that have come by now, or have waited enough.
    pub(super) fn ask_again(&mut self) {
        let (sequence, now) = (self.sequence, self.now);
        let is_due = |held: &mut HeldBack| held.until <= sequence || held.deadline <= now;
        let due: Vec<Slot> = self.held_back.extract_if(.., is_due).map(|held| held.slot).collect();
        for slot in due {
            self.publishers.let_go_on(slot, Until::Event);
            self.read_again(slot, true);
        }
    }

    /// Reads a request head again that was held back.
    pub(super) fn read_again(&mut self, slot: Slot, asked_again: bool) {
        let connection = self.connections.get_mut(slot);
        let Session::Handshake(head) = &mut connection.session else { return };
        let mut head = std::mem::take(head);
        if connection.phase == Phase::Handshake
            && let Some(used) = self.handle_head(slot, &head, asked_again)
        {
            self.handle_frames(slot, &mut head[used..]);
        }
    }

    /// The client has ended its stream before its request head was whole. A client that has begun
    /// one is told, one that said nothing is just gone.
    pub(super) fn break_off_handshake(&mut self, slot: Slot) {
        let connection = self.connections.get(slot);
        let has_begun = matches!(&connection.session, Session::Handshake(head) if !head.is_empty());
        let (reason, detail) = match (has_begun, connection.standing) {
            (false, _) => return self.abort(slot, CloseReason::ClientGone),
            (true, Standing::Untold) => (CloseReason::BadProxyHeader, "the PROXY header breaks off"),
            (true, _) => (CloseReason::BadRequest, "the request head breaks off"),
        };
        let manner = Manner { cors: self.setup.config.pages.origins.cors(None), ..Manner::default() };
        self.refuse(slot, &RefusedRequest { reason, detail: detail.into() }, &manner);
    }

    /// Answers a request that makes no subscriber.
    pub(super) fn refuse(&mut self, slot: Slot, refusal: &RefusedRequest, manner: &Manner) {
        if let Some(left_out) = self.detail(refusal.reason) {
            tracing::debug!(
                peer = %self.connections.get(slot).peer(),
                reason = refusal.reason.row().label,
                detail = refusal.detail,
                left_out,
                "request refused"
            );
        }
        let retry_after_s = 1 + self.jitter.below(RETRY_AFTER_S_SPREAD);
        let answer = self.answer_in(manner).after(retry_after_s).refusal(refusal);
        self.answer(slot, answer);
        self.finish(slot, refusal.reason);
    }

    /// Why a subscriber of these topics cannot come in now, if so.
    pub(super) fn why_no_subscriber(&self, slot: Slot, topics: &[Topic]) -> Option<RefusedRequest> {
        let (reason, detail) = if self.drain.is_some() {
            (CloseReason::Draining, "the server is draining")
        } else if self.connections.get(slot).standing == Standing::Crowded {
            (CloseReason::AddressFull, "this address has as many connections as one may have")
        } else if self.setup.memory.pressure() >= Pressure::Newcomers {
            (CloseReason::Memory, "the server has nearly as much memory as it may take")
        } else if self.subscribers.iter().sum::<usize>() >= self.setup.connections_max {
            (CloseReason::Full, "the server has as many subscribers as it takes")
        } else if !self.topics.has_room_for(topics) {
            (CloseReason::Full, "the server has subscribers to as many topics as it takes")
        } else {
            return None;
        };
        Some(RefusedRequest { reason, detail: detail.into() })
    }

    /// Refuses a subscriber. An event stream that may come in later is asked to come back.
    fn turn_away(&mut self, slot: Slot, refusal: &RefusedRequest, request: &Subscribe, manner: &Manner) {
        let is_ours = matches!(refusal.reason.row().http_status, Some(429 | 503));
        let may_come_back = is_ours && self.setup.config.pages.sse_refusals == SseRefusals::Retry;
        if may_come_back && request.names_event_stream && !manner.head_only {
            let retry_ms = RETURN_MS_MIN + self.jitter.below(RETURN_MS_SPREAD);
            let answer = self.answer_in(manner).come_back(refusal, retry_ms);
            self.answer(slot, answer);
            self.finish(slot, refusal.reason);
        } else {
            self.refuse(slot, refusal, manner);
        }
    }

    /// Makes the connection a subscriber; false if it was refused.
    fn subscribe(
        &mut self,
        slot: Slot,
        request: Subscribe,
        claims: Option<Rc<Claims>>,
        manner: &Manner,
    ) -> bool {
        if let Some(refusal) = self.why_no_subscriber(slot, &request.topics) {
            self.turn_away(slot, &refusal, &request, manner);
            return false;
        }
        let format = request.format;
        let mut indexes: Vec<_> = request.topics.iter().map(|topic| self.topics.intern(topic)).collect();
        // Sorted, so that all who have the same topics share their batches.
        indexes.sort_unstable();
        let members = indexes.into_iter().map(|topic| Membership { topic, position: 0 });
        let mut memberships = Memberships::from(members.collect::<Vec<_>>());
        // Of several defaults the strictest counts.
        let usual = || request.topics.iter().map(|topic| self.setup.config.slow_of(topic.as_str())).min();
        let slow = request.slow.or_else(usual).unwrap_or(self.setup.config.slow);
        let start = self.start(slot, &mut memberships, &request.start, slow);
        for at in 0..memberships.as_slice().len() {
            let topic = memberships.as_slice()[at].topic;
            let from = memberships.begins_after(topic, start.cursor);
            memberships.as_mut_slice()[at].position = self.join_topic(slot, topic, format, slow, from);
        }

        let connection = self.connections.get_mut(slot);
        connection.phase = Phase::Open;
        connection.format = format;
        connection.slow = Some(slow);
        connection.memberships = memberships;
        connection.cursor = start.cursor;
        connection.session = match format.family() {
            Family::EventStream => Session::Sse,
            Family::WebSocket => Session::WebSocket(Default::default()),
        };
        self.bind_claims(slot, claims);
        let head = self.answer_in(manner);
        let head = match request.handshake {
            Some(handshake) => head.websocket_head(&handshake.accept, handshake.subprotocol.as_deref()),
            None => head.sse_head(format == Format::SseChunked),
        };
        self.answer(slot, head);
        if let Some(gap) = start.gap {
            self.tell_gap(slot, &gap);
        }
        let opening = format.spec().opening.map(|opening| {
            let at = self.eras.id(start.at);
            opening(start.is_new.then_some(at))
        });
        if start.greeting.is_empty() {
            if let Some(opening) = opening {
                self.answer(slot, opening);
            }
        } else {
            self.greet(slot, start.greeting, opening);
        }
        if !start.past.is_empty() {
            self.begin_backfill(slot, start.past);
        }
        self.count_in(format);
        self.log_subscribed(slot);
        true
    }

    /// Adds a subscriber to a topic, whose events it gets after `from`. Returns its position.
    pub(super) fn join_topic(
        &mut self,
        slot: Slot,
        topic: TopicIndex,
        format: Format,
        slow: SlowPolicy,
        from: u64,
    ) -> u32 {
        let memberships = &mut self.memberships[format.index()];
        *memberships += 1;
        if *memberships == 1 {
            self.setup.demand.begin(format);
        }
        if slow != SlowPolicy::Latest {
            return self.topics.join(topic, slot, format.family(), from);
        }
        // The cursor of a subscriber of the newest events holds back nothing.
        let position = self.topics.join(topic, slot, format.family(), u64::MAX);
        self.topics.begin_latest(topic, from);
        position
    }

    /// Counts a connection that is now open.
    pub(super) fn count_in(&mut self, format: Format) {
        self.subscribers[format.index()] += 1;
        let counters = &mut self.metrics.families[format.family().index()];
        counters.opened += 1;
        counters.connections += 1;
    }

    /// The names of these topics.
    pub(super) fn names(&self, topics: impl Iterator<Item = TopicIndex>) -> Vec<Topic> {
        topics.map(|topic| self.topics.get(topic).name.clone()).collect()
    }

    /// Queues the notice of a gap.
    pub(super) fn tell_gap(&mut self, slot: Slot, gap: &Gap) {
        let format = self.connections.get(slot).format;
        self.metrics.families[format.family().index()].gaps += 1;
        self.answer(slot, (format.spec().gap)(gap));
    }

    /// WebSocket frames from the client of `slot`, perhaps in part.
    fn handle_frames(&mut self, slot: Slot, bytes: &mut [u8]) {
        if self.connections.get(slot).format == Format::Json {
            return self.handle_commands(slot, bytes);
        }
        if let Some(topic) = self.publishes_to(slot).cloned() {
            return self.handle_raw(slot, bytes, &topic);
        }
        let connection = self.connections.get_mut(slot);
        let decoder = match &mut connection.session {
            Session::WebSocket(decoder) => decoder,
            Session::Echo(_) => return self.handle_echo(slot, bytes),
            // An event stream takes nothing from its client.
            Session::Handshake(_) | Session::Carrier | Session::Sse | Session::Posts(_) => return,
        };
        let message_bytes_max = self.setup.config.limits.message_in_bytes_max as u64;
        let waiting = connection.control.as_ref().map_or(0, |batch| batch.len());
        let mut pongs = Vec::new();
        let mut closed = None;
        let mut messages = 0;
        let fed = decoder.feed(bytes, message_bytes_max, |incoming| match incoming {
            // All are answered, in their order, as long as the client takes the answers (RFC 6455
            // §5.5.3).
            Incoming::Ping(payload) if waiting + pongs.len() <= PONGS_BYTES_MAX => {
                pongs.extend_from_slice(&websocket::pong_frame(payload));
            }
            Incoming::Ping(_) => {}
            Incoming::Pong | Incoming::Payload(_) => {}
            Incoming::Message { .. } => messages += 1,
            Incoming::Close { reply, .. } => closed = Some(reply),
        });
        self.metrics.families[Family::WebSocket.index()].messages_in += messages;
        if self.setup.config.has_client_publishers() {
            self.metrics.refused.add_some(RefusalReason::NotAllowed, messages);
        }
        if !pongs.is_empty() {
            self.answer(slot, pongs);
        }
        self.end_of_frames(slot, closed, fed);
    }

    /// Ends the connection if the client closed, with the code to `reply`, or broke a rule.
    pub(super) fn end_of_frames(
        &mut self,
        slot: Slot,
        closed: Option<Option<u16>>,
        fed: Result<(), Violation>,
    ) {
        if let Some(reply) = closed {
            let reason = CloseReason::ClientGone;
            if let Some(code) = reply.or(reason.row().websocket_code.unasked()) {
                self.answer(slot, websocket::close_frame(code, ""));
            }
            self.finish(slot, reason);
        } else if let Err(Violation { reason, detail }) = fed {
            self.hang_up(slot, reason, detail);
        }
    }

    /// Hangs up on a subscriber as its format wants it: a close frame, the last chunk, or just the
    /// end of the stream.
    pub(super) fn hang_up(&mut self, slot: Slot, reason: CloseReason, detail: &str) {
        let format = self.connections.get(slot).format;
        let last_words = (format.spec().close)(reason.row().websocket_code.unasked(), detail);
        if !last_words.is_empty() {
            self.answer(slot, last_words);
        }
        self.finish(slot, reason);
    }
}

#[cfg(test)]
mod tests;

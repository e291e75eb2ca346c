//! `POST /topics/{topic}` on the data plane: requests of one connection, each answered in its turn.
//!
//! Invariants worth naming:
//! - Publishes go to the hub as soon as their bodies are whole, however many of them the client
//!   sends ahead. Answers come back in the same order.
//! - All else waits until nothing is unanswered: a refusal of ours, a request of another kind, a
//!   client that waits for `100 Continue`. So answers need no order of their own.
//! - What is answered in one turn goes out in one send.
//! - A client that does not read its answers is read no further.
//! - A body that was refused before it was read ends its connection: nobody knows how long it is.
//!
//! Not here: what a head or a body is (`wire::http`), what a publish may say (`publishing`), how a
//! client is paused (`publishers`).

use std::collections::VecDeque;

use bytes::Bytes;

use super::connections::{Phase, Session};
use super::publishers::{Message, Until};
use super::state::State;
use super::subscribe::head_rules;
use super::tokens::{Passage, own};
use crate::broadcast::Outcome;
use crate::close::CloseReason;
use crate::config::limits::{REPLIES_BYTES_MAX, SOCKETS_SPARE};
use crate::egress::Slot;
use crate::event::{CustomId, Data, Event, Topic};
use crate::publishing::{
    IdempotencyKey, Options, check_coding, check_size, parse_options, parse_text, parse_topic_path,
};
use crate::refusal::{Refusal, RefusalReason};
use crate::wire::http::{
    Answer, BodyLength, BodyReader, Broken, Cors, Foreign, Keep, Manner, Post, PostHead, RefusedRequest,
    begins_post, parse_post,
};

/// What may be asked of a topic.
const ALLOW: &str = "POST, OPTIONS";

/// What a connection remembers on which somebody publishes.
#[derive(Debug, Default)]
pub struct Posts {
    /// The begin of a request head that is not whole.
    head: Vec<u8>,
    /// The request whose body is not whole, or not taken yet.
    request: Option<Request>,
    /// How to answer what is on its way to the hub, in order.
    owed: VecDeque<Reply>,
    /// What is to be refused when nothing is owed any more.
    refused: Option<(Refusal, Reply)>,
    /// Answers that go out together.
    out: String,
    /// Nothing more is read.
    is_closing: bool,
}

/// A publish under way.
#[derive(Debug)]
struct Request {
    topic: Topic,
    options: Options,
    is_binary: bool,
    body: BodyReader,
    reply: Reply,
}

/// How one request is to be answered.
#[derive(Debug)]
struct Reply {
    keep: Keep,
    cors: Cors,
    /// The publisher's id.
    id: Option<CustomId>,
}

impl Posts {
    /// True if the client is in the middle of a request.
    fn is_under_way(&self) -> bool {
        !self.head.is_empty() || self.request.is_some()
    }

    /// What the connection waits for, if nothing is on its way to the hub.
    pub(super) fn awaits(&self) -> Option<Awaited> {
        match (&self.request, self.head.is_empty()) {
            _ if !self.owed.is_empty() => None,
            (Some(_), _) => Some(Awaited::Body),
            (None, false) => Some(Awaited::Head),
            (None, true) => Some(Awaited::Request),
        }
    }
}

/// How far a client's requests were read.
enum Next {
    /// As far as they have come, or may be read now.
    More,
    /// Up to a head that is malformed. Everything before it is answered.
    Bad(RefusedRequest, Manner),
    /// Up to a request of another kind, at this place. Everything before it is answered.
    Other(usize),
}

/// What a client is to send next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaited {
    /// The rest of a body.
    Body,
    /// The rest of a head.
    Head,
    /// A request.
    Request,
}

impl State {
    /// A connection whose first bytes are those of a publish.
    pub(super) fn begin_posts(&mut self, slot: Slot, bytes: &[u8]) {
        let tick = self.tick;
        let connection = self.connections.get_mut(slot);
        connection.phase = Phase::Serving;
        connection.since = tick;
        connection.session = Session::Posts(Box::default());
        self.handle_posts(slot, bytes);
    }

    /// Bytes from a client that publishes, perhaps none: then it goes on where it had to wait.
    pub(super) fn handle_posts(&mut self, slot: Slot, bytes: &[u8]) {
        let session = std::mem::replace(&mut self.connections.get_mut(slot).session, Session::Sse);
        let Session::Posts(mut posts) = session else { unreachable!("a connection that serves has posts") };
        let mut whole = std::mem::take(&mut posts.head);
        let bytes = if whole.is_empty() {
            bytes
        } else {
            whole.extend_from_slice(bytes);
            if whole.len() < self.setup.config.limits.handshake_bytes_max && !bytes.contains(&b'\n') {
                // No line has ended: what was not a head is none yet.
                posts.head = whole;
                self.connections.get_mut(slot).session = Session::Posts(posts);
                return;
            }
            &whole
        };
        let next = self.read_posts(slot, &mut posts, bytes);
        self.connections.get_mut(slot).session = Session::Posts(posts);
        self.say_answers(slot);
        match next {
            Next::More => {}
            Next::Bad(refusal, manner) => self.refuse(slot, &refusal, &manner),
            Next::Other(from) => self.begin_anew(slot, &mut bytes[from..].to_vec()),
        }
    }

    /// Everything is answered, and the next request is none to publish: its client is a newcomer.
    fn begin_anew(&mut self, slot: Slot, bytes: &mut [u8]) {
        let tick = self.tick;
        let connection = self.connections.get_mut(slot);
        connection.phase = Phase::Handshake;
        connection.since = tick;
        connection.session = Session::Handshake(Vec::new());
        let has_left = connection.ended;
        self.handle_received(slot, bytes);
        if has_left && self.connections.get(slot).phase == Phase::Handshake {
            self.break_off_handshake(slot);
        }
        // What was answered before it may be still to be sent.
        self.mark_ready(slot);
    }

    /// Reads requests from the front of `bytes` as far as it goes.
    fn read_posts(&mut self, slot: Slot, posts: &mut Posts, bytes: &[u8]) -> Next {
        let mut at = 0;
        loop {
            let is_quiet = posts.owed.is_empty();
            if posts.refused.is_some() && !is_quiet {
                self.pause(slot, &bytes[at..], Until::Quiet);
                return Next::More;
            }
            if let Some((refusal, reply)) = posts.refused.take() {
                self.metrics.refused.add(refusal.reason);
                posts.is_closing |= reply.keep == Keep::Close;
                self.write_refusal(posts, &refusal, reply);
            }
            if posts.is_closing {
                return Next::More;
            }
            if let Some(request) = posts.request.take() {
                match self.read_body(slot, posts, request, &bytes[at..]) {
                    Some(read) => at += read,
                    None => return Next::More,
                }
                continue;
            }
            // Empty lines before a request line do not count (RFC 9112 §2.2).
            at += bytes[at..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let rest = &bytes[at..];
            if rest.is_empty() {
                return Next::More;
            }
            let waiting = self.connections.get(slot).control.as_ref().map_or(0, |batch| batch.len());
            if waiting + posts.out.len() > REPLIES_BYTES_MAX {
                self.pause(slot, rest, Until::Sent);
                return Next::More;
            }
            let head = match begins_post(rest) {
                true => Some(parse_post(rest, &head_rules(&self.setup.config, self.secure.has(slot)))),
                false => None,
            };
            match head {
                Some(PostHead::Partial) => {
                    posts.head = rest.to_vec();
                    self.connections.get_mut(slot).since = self.tick;
                    return Next::More;
                }
                Some(PostHead::Post(post)) if is_quiet || !post.awaits_continue => {
                    let Some(checked) = self.check_post(slot, &post) else {
                        self.pause(slot, rest, Until::Checked);
                        return Next::More;
                    };
                    at += post.head_bytes;
                    self.connections.get_mut(slot).since = self.tick;
                    self.begin_post(posts, post, checked, bytes.len() == at);
                }
                // All else is answered after what came before.
                _ if !is_quiet => {
                    self.pause(slot, rest, Until::Quiet);
                    return Next::More;
                }
                Some(PostHead::Refused(refusal, manner)) => return Next::Bad(refusal, manner),
                _ => return Next::Other(at),
            }
        }
    }

    /// A head is whole: its publish is begun or refused. `is_last`: nothing of the body is here.
    fn begin_post(
        &mut self,
        posts: &mut Posts,
        post: Post<'_>,
        checked: Result<(Topic, Options), Refusal>,
        is_last: bool,
    ) {
        let keep = if self.drain.is_some() { Keep::Close } else { post.keep };
        let cors = post.cors.clone();
        match checked {
            Ok((topic, options)) => {
                let body = BodyReader::new(post.length);
                if post.awaits_continue && is_last && !body.is_whole() {
                    posts.out.push_str("HTTP/1.1 100 Continue\r\n\r\n");
                }
                let reply = Reply { keep, cors, id: options.id.clone() };
                posts.request = Some(Request { topic, options, is_binary: post.is_binary, body, reply });
            }
            Err(refusal) => posts.refused = Some((refusal, Reply { keep: Keep::Close, cors, id: None })),
        }
    }

    /// What a publish says before its body, if it may. `None`: its token waits to be checked.
    fn check_post(&mut self, slot: Slot, post: &Post<'_>) -> Option<Result<(Topic, Options), Refusal>> {
        let checked = match self.check_head(post) {
            Ok(checked) => checked,
            Err(refusal) => return Some(Err(refusal)),
        };
        match self.passage_to_publish(slot, &checked.0, post.token.as_ref()) {
            Passage::Open(claims) => {
                let (topic, mut options) = checked;
                options.idempotency_key = options.idempotency_key.map(|key| own(key, claims.as_deref()));
                Some(Ok((topic, options)))
            }
            Passage::Closed(denied) => Some(Err(Refusal::new(denied.refusal_reason(), denied.detail()))),
            Passage::Later => None,
        }
    }

    /// The same without its token.
    fn check_head(&self, post: &Post<'_>) -> Result<(Topic, Options), Refusal> {
        post.admitted.map_err(|foreign| {
            let reason = match foreign {
                Foreign::Unnamed | Foreign::Origin => RefusalReason::ForeignOrigin,
                Foreign::Host => RefusalReason::ForeignHost,
            };
            Refusal::new(reason, foreign.text())
        })?;
        check_coding(post.content_coding)?;
        let topic = parse_topic_path(post.topic)?;
        if !self.setup.config.lets_clients_publish(topic.as_str()) {
            let text = format!("clients may not publish to the topic {topic:?} (--client-publish)");
            return Err(Refusal::new(RefusalReason::NotAllowed, text));
        }
        let options = parse_options(post.query.as_deref())?;
        if let BodyLength::Known(bytes) = post.length {
            check_size(bytes, self.setup.config.limits.message_bytes_max)?;
        }
        Ok((topic, options))
    }

    /// Reads from the front of `bytes` what belongs to the body of `request`, and publishes it once
    /// it is whole. Returns how much was read; nothing if the request waits for more.
    fn read_body(
        &mut self,
        slot: Slot,
        posts: &mut Posts,
        mut request: Request,
        bytes: &[u8],
    ) -> Option<usize> {
        let mut message = self.publishers.take_message(slot);
        let read = request.body.feed(bytes, |piece| message.push(piece));
        let limits = &self.setup.config.limits;
        let checked = match read {
            Err(Broken) => {
                let text = "the chunks of the body are malformed";
                Err(Refusal::new(RefusalReason::BodyBroken, text))
            }
            Ok(_) => check_size(message.len(), limits.message_bytes_max),
        };
        let (Ok(read), Ok(())) = (read, &checked) else {
            let reply = Reply { keep: Keep::Close, ..request.reply };
            posts.refused = checked.err().map(|refusal| (refusal, reply));
            return Some(bytes.len());
        };
        if !request.body.is_whole() {
            let incoming_bytes_max = limits.incoming_bytes_max();
            self.publishers.keep_message(slot, message, incoming_bytes_max);
            posts.request = Some(request);
            return None;
        }
        if self.publishers.room(slot) == 0 {
            self.publishers.keep_message(slot, message, usize::MAX);
            posts.request = Some(request);
            self.pause(slot, &bytes[read..], Until::Room);
            return None;
        }
        posts.is_closing |= request.reply.keep == Keep::Close;
        match event_of(&request, message) {
            Ok((event, key)) => {
                posts.owed.push_back(request.reply);
                self.publish_once(slot, 0, event, key).expect("it was asked for room");
            }
            Err(refusal) => {
                posts.is_closing = false;
                posts.refused = Some((refusal, request.reply));
            }
        }
        Some(read)
    }

    /// What became of the oldest publish of a client.
    pub(super) fn post_answered(&mut self, slot: Slot, outcome: Outcome) {
        let session = std::mem::replace(&mut self.connections.get_mut(slot).session, Session::Sse);
        let Session::Posts(mut posts) = session else { unreachable!("a connection that serves has posts") };
        let reply = posts.owed.pop_front().expect("each publish is answered once");
        if posts.out.is_empty() {
            self.publishers.note_answers(slot);
        }
        match outcome {
            Ok(taken) => {
                let ours = taken.id();
                let id = match &reply.id {
                    Some(id) => serde_json::to_string(id.as_str()).expect("text is JSON"),
                    None => format!("\"{ours}\""),
                };
                let duplicate = if taken.duplicate { ",\"duplicate\":true" } else { "" };
                let body = format!("{{\"id\":{id},\"sequence\":{}{duplicate}}}\n", taken.sequence);
                let manner = Manner { cors: reply.cors, allow: ALLOW, head_only: false };
                let answer = Answer::new(&manner, self.date.as_deref());
                answer.publish(&mut posts.out, 200, reply.keep, "", &body);
            }
            Err(refusal) => self.write_refusal(&mut posts, &refusal, reply),
        }
        self.connections.get_mut(slot).session = Session::Posts(posts);
    }

    fn write_refusal(&self, posts: &mut Posts, refusal: &Refusal, reply: Reply) {
        let status = refusal.reason.status().as_u16();
        let field = match status {
            401 => "WWW-Authenticate: Bearer\r\n",
            415 => "Accept-Encoding: identity\r\n",
            503 => "Retry-After: 1\r\n",
            _ => "",
        };
        let text = serde_json::to_string(&refusal.text).expect("text is JSON");
        let manner = Manner { cors: reply.cors, allow: ALLOW, head_only: false };
        let answer = Answer::new(&manner, self.date.as_deref());
        answer.publish(&mut posts.out, status, reply.keep, field, &format!("{{\"error\":{text}}}\n"));
    }

    /// Sends the answers that have gathered, and ends the connection if it is over.
    pub(super) fn say_answers(&mut self, slot: Slot) {
        let is_paused = self.publishers.is_paused(slot);
        let connection = self.connections.get_mut(slot);
        let (Session::Posts(posts), Phase::Serving) = (&mut connection.session, connection.phase) else {
            return;
        };
        let out = std::mem::take(&mut posts.out);
        let is_quiet = posts.owed.is_empty() && posts.refused.is_none() && !is_paused;
        let is_closing = posts.is_closing;
        let breaks_off = connection.ended && posts.is_under_way();
        let has_left = connection.ended;
        if !out.is_empty() {
            self.answer(slot, out);
        }
        if !is_quiet {
            return;
        }
        if is_closing {
            self.finish(slot, CloseReason::Answered);
        } else if breaks_off {
            let refusal = Refusal::new(RefusalReason::BodyBroken, "the request breaks off");
            self.end_posts(slot, &refusal);
        } else if has_left {
            self.finish(slot, CloseReason::ClientGone);
        }
    }

    /// Refuses the request under way, and ends the connection.
    pub(super) fn end_posts(&mut self, slot: Slot, refusal: &Refusal) {
        let cors = self.setup.config.pages.origins.cors(None);
        let mut posts = Posts::default();
        self.metrics.refused.add(refusal.reason);
        self.write_refusal(&mut posts, refusal, Reply { keep: Keep::Close, cors, id: None });
        self.answer(slot, posts.out);
        self.finish(slot, CloseReason::Answered);
    }

    /// True while connections that ask nothing are to leave their sockets to others.
    pub(super) fn is_short_of_sockets(&self) -> bool {
        self.connections.sockets() >= self.setup.connections_max + SOCKETS_SPARE / 2
    }
}

/// The event that a whole request publishes.
fn event_of(request: &Request, mut message: Message) -> Result<(Event, Option<IdempotencyKey>), Refusal> {
    let Some(body) = message.take() else {
        let text = "the server holds as many bytes of unfinished messages as it may";
        return Err(Refusal::new(RefusalReason::Busy, text));
    };
    let bytes = Bytes::from(body.into_boxed_slice());
    let data = if request.is_binary { Data::binary(bytes) } else { parse_text(bytes)? };
    let Options { name, id, retry_ms, key, idempotency_key } = request.options.clone();
    Ok((Event { topic: request.topic.clone(), data, name, id, retry_ms, key }, idempotency_key))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broadcast::{Answer as Word, Memory, Outbox, Publish, Taken, path};
    use crate::clock::Stamp;
    use crate::config::Config;
    use crate::config::limits::{POST_BODY_MS_MAX, POST_IDLE_MS_MAX, POST_SILENCE_MS_MIN, UNANSWERED_MAX};
    use crate::egress::sim::{SimRing, Weather};
    use crate::event::Epoch;
    use crate::shard::{Shard, ShardSetup};

    const SOCKETS: usize = 400;

    struct Bench {
        shard: Shard<SimRing>,
        outbox: Outbox,
        now: Stamp,
        sequence: u64,
    }

    impl Bench {
        fn new() -> Bench {
            let client_publish = vec!["t".parse().expect("a pattern")];
            let config = Arc::new(Config { client_publish, ..Config::default() });
            let (outbox, inbox) = path(8).expect("eventfd");
            let now = Stamp(1_000_000_000);
            let memory = Memory::new(&config.limits);
            let setup = ShardSetup {
                number: 0,
                cpu: 0,
                config,
                epoch: Epoch(7),
                demand: Arc::default(),
                memory,
                admission: Default::default(),
                connections_max: 4,
            };
            let ring = SimRing::new(SOCKETS, Weather::Fair, 1).recording();
            Bench { shard: Shard::new(setup, ring, inbox, now), outbox, now, sequence: 0 }
        }

        /// Time passes, and the hub takes all that it is offered.
        fn turns(&mut self, count: usize, ms: u64) {
            for _ in 0..count {
                self.now = Stamp(self.now.0 + ms * 1_000_000);
                self.shard.turn(self.now).expect("a turn does not fail");
                let taken = std::iter::from_fn(|| self.outbox.uplink().take());
                let words: Vec<Word> = taken
                    .map(|Publish { ticket, .. }| {
                        self.sequence += 1;
                        Word {
                            ticket,
                            outcome: Ok(Taken { epoch: Epoch(7), sequence: self.sequence, duplicate: false }),
                        }
                    })
                    .collect();
                if !words.is_empty() {
                    self.outbox.answer(words);
                }
            }
        }

        fn connect(&mut self, bytes: &[u8]) -> Slot {
            let slot = self.shard.ring_mut().connect().expect("a free slot");
            self.shard.ring_mut().peer_sends(slot, bytes);
            self.turns(8, 1);
            slot
        }

        fn heard(&mut self, slot: Slot) -> String {
            String::from_utf8(self.shard.ring_mut().peer_takes(slot)).expect("UTF-8")
        }
    }

    const POST: &[u8] = b"POST /topics/t HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx";

    #[test]
    fn answers_that_nobody_takes_are_bounded_and_hold_their_client_back() {
        let mut bench = Bench::new();
        let slot = bench.connect(POST);
        let answer = bench.heard(slot).len();
        bench.shard.ring_mut().stall(slot, true);
        for _ in 0..100 {
            bench.shard.ring_mut().peer_sends(slot, &POST.repeat(100));
            bench.turns(20, 1);
        }
        let control = |bench: &Bench| {
            bench.shard.state.connections.get(slot).control.as_ref().map_or(0, |batch| batch.len())
        };
        let most = REPLIES_BYTES_MAX + (UNANSWERED_MAX + 1) * (answer + 8);
        assert!(control(&bench) > REPLIES_BYTES_MAX && control(&bench) <= most, "{}", control(&bench));
        assert!(bench.shard.ring_mut().unreceived(slot) > 99 * POST.len(), "it is not received from");
        bench.shard.ring_mut().stall(slot, false);
        bench.turns(3_000, 0);
        assert_eq!(bench.heard(slot).matches("HTTP/1.1 200 OK\r\n").count(), 10_000);
    }

    #[test]
    fn an_idle_connection_ends_and_a_body_that_does_not_come_is_refused() {
        let mut bench = Bench::new();
        let idle = bench.connect(POST);
        let slow = bench.connect(&POST[..POST.len() - 1]);
        let cut = bench.connect(&POST[..30]);
        bench.heard(idle);
        let head_ms_max = bench.shard.state.setup.config.limits.handshake_ms_max;
        bench.turns((head_ms_max / 250) as usize + 8, 250);
        assert!(!bench.shard.ring_mut().is_open(cut), "a head has less time than a body");
        assert!(!bench.shard.ring_mut().ended(idle) && !bench.shard.ring_mut().ended(slow));
        bench.turns((POST_BODY_MS_MAX.max(POST_IDLE_MS_MAX) / 250) as usize + 8, 250);
        assert!(bench.shard.ring_mut().ended(idle) && bench.heard(idle).is_empty());
        assert!(bench.shard.ring_mut().ended(slow));
        let told = bench.heard(slow);
        assert!(told.starts_with("HTTP/1.1 408 Request Timeout\r\n") && told.contains("60000 ms"), "{told}");
    }

    #[test]
    fn idle_connections_leave_their_sockets_to_others_when_these_are_short() {
        let mut bench = Bench::new();
        let slots: Vec<Slot> = (0..4 + SOCKETS_SPARE / 2).map(|_| bench.connect(POST)).collect();
        bench.turns((POST_SILENCE_MS_MIN / 250) as usize + 8, 250);
        let ended =
            |bench: &mut Bench| slots.iter().filter(|slot| bench.shard.ring_mut().ended(**slot)).count();
        assert!(ended(&mut bench) > 0, "some have left");
        let mut bench = Bench::new();
        let slots: Vec<Slot> = (0..4 + SOCKETS_SPARE / 4).map(|_| bench.connect(POST)).collect();
        bench.turns((POST_SILENCE_MS_MIN / 250) as usize + 8, 250);
        let ended = slots.iter().filter(|slot| bench.shard.ring_mut().ended(**slot)).count();
        assert_eq!(ended, 0, "there are sockets enough");
    }
}

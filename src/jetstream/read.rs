//! Reading the stream, once per node, in order.
//!
//! Invariants worth naming:
//! - What is given out has rising sequences, each once. Holes are fine: messages are deleted, or are
//!   no events.
//! - A break is mended by a new consumer. It begins with the message that was read last, so that
//!   the time of that message tells whether the stream is still the same. The server's own order
//!   is checked by the consumer's count: a message that went missing on the way is a break.
//! - A stream that was made anew, or whose head went back, is never read on as if it were the same
//!   ([`ReadFault::Changed`]).
//! - Where sequences jump, the stream is asked what it begins with: what it has lost by its limits
//!   or by a purge before it was read is told, also while the same consumer goes on.
//! - [`Reader::next`] may be given up at any time, and nothing is lost.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, ReplayPolicy};
use async_nats::jetstream::stream::{Info, State, Stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{FutureExt, StreamExt};
use time::OffsetDateTime;
use tokio::time::timeout;

use super::connect::{Link, innermost};
use super::epoch::{Mark, created_ns};
use super::message::{Said, Skipped, understand};
use super::stream::certain;
use super::subject::Subjects;
use crate::config::limits::{
    NATS_API_MS_MAX, NATS_CONSUMER_S_MAX, NATS_HEARTBEAT_MS, NATS_PULL_BYTES, NATS_PULL_MESSAGES,
    NATS_PULL_MS, NATS_TAKE_MAX,
};

/// Consumers in a row that may break off before their first message, before that message is looked
/// at by itself.
const STUCK_MAX: u32 = 2;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where it stands in the stream.
    pub mark: Mark,
    /// What it says.
    pub said: Said,
    /// Which publish of a node it is, if a node has sent it.
    pub sent: Option<u64>,
}

/// Why nothing is read. The stream goes on where it was, or is another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadFault {
    /// JetStream does not answer; a retry helps once it does.
    #[error("{0}")]
    Away(String),
    /// The stream is not what it was.
    #[error("the stream was made anew, or has lost its newest messages")]
    Changed,
}

/// Messages that were not taken as they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Skipped: the subject is that of no topic.
    pub subject: u64,
    /// Skipped: the data is too large.
    pub too_large: u64,
    /// Skipped: the headers are none.
    pub headers: u64,
    /// Headers left out: illegal.
    pub illegal: u64,
    /// Headers left out: only the server may say that.
    pub reserved: u64,
}

/// From where on a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// From its first message.
    First,
    /// From the first message of this time on, in nanoseconds since 1970.
    Time(i64),
    /// From behind this message.
    Behind(Mark),
    /// From behind this sequence, of whose message nothing is known; 0 is before the first.
    After(u64),
}

/// Reads a stream.
pub struct Reader {
    link: Link,
    stream: Stream,
    subjects: Subjects,
    message_bytes_max: usize,
    /// When the stream was created that is read.
    created_ns: i64,
    start: Start,
    feed: Option<Feed>,
    /// Consumers in a row that broke off before their first new message.
    stuck: u32,
    /// Messages that the consumer has for us still, as it said last.
    pending: Option<u64>,
    /// The stream begins behind this, and behind what was read. The next message tells what is lost.
    suspect: Option<u64>,
    lost: Option<u64>,
    /// What was taken and not given out yet, because sequences jump in it.
    ready: Vec<Received>,
    /// Where they do: from behind one sequence to another.
    jumps: Vec<(u64, u64)>,
    /// Lost before the next message that is given out.
    owed: Option<u64>,
    /// The message that was given out last, or that is behind it and is no event.
    given: Option<Mark>,
    foreign: Foreign,
}

/// True if the client library can read them.
fn are_headers(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut lines = text.split("\r\n");
    let is_version = lines.next().is_some_and(|line| line.starts_with("NATS/1.0"));
    let is_line = |line: &str| {
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_graphic());
        line.is_empty()
            || line.starts_with([' ', '\t'])
            || line.split_once(':').is_some_and(|(name, _)| is_name(name))
    };
    is_version && lines.all(is_line)
}

/// The message behind which reading begins, if it is known.
fn mark_of(start: Start) -> Option<Mark> {
    match start {
        Start::Behind(mark) => Some(mark),
        Start::First | Start::Time(_) | Start::After(_) => None,
    }
}

/// A consumer at work.
struct Feed {
    messages: Messages,
    /// The connection that it was made on.
    connection: u64,
    /// Its count of the last message.
    count: u64,
    /// The newest message when it was made; 0 in an empty stream.
    until: u64,
}

/// What became of a message.
enum Taken {
    Message(Received),
    Skipped,
    /// One before it is missing.
    Break,
    Changed,
}

impl Reader {
    /// Reads `stream`, which was created at `created_ns`.
    pub fn new(
        link: Link,
        stream: Stream,
        subjects: Subjects,
        message_bytes_max: usize,
        created_ns: i64,
        start: Start,
    ) -> Reader {
        Reader {
            link,
            stream,
            subjects,
            message_bytes_max,
            created_ns,
            start,
            feed: None,
            stuck: 0,
            pending: None,
            suspect: None,
            lost: None,
            ready: Vec::new(),
            jumps: Vec::new(),
            owed: None,
            given: mark_of(start),
            foreign: Foreign::default(),
        }
    }

    /// Reads another stream of the same name from now on.
    pub fn restart(&mut self, created_ns: i64, start: Start) {
        self.feed = None;
        self.stuck = 0;
        self.suspect = None;
        self.pending = None;
        (self.lost, self.owed) = (None, None);
        self.ready.clear();
        self.jumps.clear();
        self.given = mark_of(start);
        (self.created_ns, self.start) = (created_ns, start);
    }

    /// The message that was read last; none before the first.
    pub fn last(&self) -> Option<Mark> {
        self.given
    }

    /// The sequence that was read last; 0 before the first.
    fn last_sequence(&self) -> u64 {
        match self.start {
            Start::Behind(mark) => mark.sequence,
            Start::After(sequence) => sequence,
            Start::First | Start::Time(_) => 0,
        }
    }

    /// Up to this sequence the stream has lost messages that were not read: to be told before the
    /// messages that [`Reader::next`] has given.
    pub fn take_lost(&mut self) -> Option<u64> {
        self.lost.take()
    }

    /// Messages that the stream has for us still; `None` while nothing is read.
    pub fn pending(&self) -> Option<u64> {
        self.pending.filter(|_| self.feed.is_some() && self.ready.is_empty())
    }

    /// True once all was read that the stream had when the consumer was made. What the server says
    /// then of how much there is to come may be nothing although there is.
    pub fn has_caught_up(&self) -> bool {
        self.ready.is_empty()
            && self.feed.as_ref().is_some_and(|feed| {
                let is_last = feed.count > 0 && self.pending == Some(0);
                is_last || self.last_sequence() >= feed.until
            })
    }

    /// What was not taken as it was, from the start.
    pub fn foreign(&self) -> Foreign {
        self.foreign
    }

    /// The next messages, at least one unless only messages were read that are no events.
    pub async fn next(&mut self) -> Result<Vec<Received>, ReadFault> {
        loop {
            if !self.ready.is_empty() {
                return self.give_ready().await;
            }
            self.open().await?;
            let Some(feed) = &mut self.feed else { continue };
            let connection = feed.connection;
            let message = tokio::select! {
                biased;
                message = feed.messages.next() => message,
                _ = self.link.came_up(connection) => None,
            };
            let mut taken = Vec::new();
            let mut next = Some(message);
            // Nothing is awaited from here on, so nothing that was taken can be given up.
            while let Some(message) = next {
                let Some(Ok(message)) = message else {
                    self.stuck += u32::from(self.pending > Some(0));
                    self.feed = None;
                    break;
                };
                match self.take(&message) {
                    Taken::Message(message) => taken.push(message),
                    Taken::Skipped => {}
                    Taken::Break => {
                        self.feed = None;
                        break;
                    }
                    Taken::Changed if taken.is_empty() => return Err(ReadFault::Changed),
                    // It is found again behind these.
                    Taken::Changed => {
                        self.feed = None;
                        break;
                    }
                }
                let Some(feed) = self.feed.as_mut().filter(|_| taken.len() < NATS_TAKE_MAX) else { break };
                next = feed.messages.next().now_or_never();
            }
            if !taken.is_empty() && !self.jumps.is_empty() {
                self.ready = taken;
                continue;
            }
            if !taken.is_empty() || self.pending == Some(0) {
                return Ok(self.give(taken));
            }
        }
    }

    /// Gives out all that was taken.
    fn give(&mut self, taken: Vec<Received>) -> Vec<Received> {
        if !taken.is_empty() {
            self.lost = self.owed.take().max(self.lost);
            self.jumps.clear();
        }
        self.given = mark_of(self.start);
        taken
    }

    /// Gives out what is ready. If the stream has lost some of what sequences jump over, that is
    /// told as late as it may be: so it is told once.
    async fn give_ready(&mut self) -> Result<Vec<Received>, ReadFault> {
        if let (Some((from, _)), Some(last)) = (self.jumps.first(), self.ready.last()) {
            let (from, last) = (*from, last.mark.sequence);
            let mut info = self.state().await?;
            if info.state.first_sequence > from + 1 {
                info = certain(&self.stream).await.map_err(ReadFault::Away)?;
            }
            let State { first_sequence: first, last_sequence, .. } = info.state;
            if created_ns(&info) != self.created_ns {
                return Err(ReadFault::Changed);
            }
            if last_sequence < last {
                return Err(ReadFault::Away("the head of the stream is behind what was read".to_string()));
            }
            let lost = self.jumps.iter().rev().find(|(from, _)| from + 1 < first).map(|(_, to)| *to);
            self.jumps.clear();
            if let Some(to) = lost {
                let at = self.ready.iter().position(|received| received.mark.sequence >= to);
                let rest = self.ready.split_off(at.unwrap_or(self.ready.len()));
                let before = std::mem::replace(&mut self.ready, rest);
                self.owed = Some(to - 1);
                if let Some(last) = before.last() {
                    self.given = Some(last.mark);
                    return Ok(before);
                }
            }
        }
        let ready = std::mem::take(&mut self.ready);
        Ok(self.give(ready))
    }

    /// What a server says of the stream.
    async fn state(&self) -> Result<Info, ReadFault> {
        let info = timeout(Duration::from_millis(NATS_API_MS_MAX), self.stream.get_info()).await;
        let info = info.map_err(|_| ReadFault::Away("no answer in time".to_string()))?;
        info.map_err(|error| ReadFault::Away(innermost(&error)))
    }

    /// Makes a consumer that begins where we are, unless there is one.
    pub async fn open(&mut self) -> Result<(), ReadFault> {
        if self.feed.is_some() {
            return Ok(());
        }
        let away = |error: &(dyn std::error::Error + 'static)| ReadFault::Away(innermost(error));
        let connection = self.link.number();
        if let Some(cause) = self.link.fault() {
            return Err(ReadFault::Away(cause));
        }
        if self.stuck >= STUCK_MAX {
            self.stuck = 0;
            self.pass_over().await;
        }
        let mut info = self.state().await?;
        let last = self.last_sequence();
        let lacks =
            |state: &State| state.last_sequence < last || (last > 0 && state.first_sequence > last + 1);
        if lacks(&info.state) {
            info = certain(&self.stream).await.map_err(ReadFault::Away)?;
        }
        if created_ns(&info) != self.created_ns {
            return Err(ReadFault::Changed);
        }
        if info.state.last_sequence < last {
            return Err(ReadFault::Changed);
        }
        self.suspect = lacks(&info.state).then(|| info.state.first_sequence - 1);
        let deliver_policy = match self.start {
            Start::First => DeliverPolicy::All,
            Start::Time(unix_ns) => match OffsetDateTime::from_unix_timestamp_nanos(unix_ns.into()) {
                Ok(start_time) => DeliverPolicy::ByStartTime { start_time },
                Err(_) => DeliverPolicy::All,
            },
            // With the last message itself, whose time tells whether the stream is the same.
            Start::Behind(_) => DeliverPolicy::ByStartSequence { start_sequence: last },
            Start::After(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 },
        };
        let config = Config {
            description: Some("a node of fanwave".to_string()),
            deliver_policy,
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: self.subjects.all(),
            inactive_threshold: Duration::from_secs(NATS_CONSUMER_S_MAX),
            num_replicas: 1,
            memory_storage: true,
            ..Config::default()
        };
        let consumer: PullConsumer =
            self.stream.create_consumer(config).await.map_err(|error| away(&error))?;
        let pending = consumer.cached_info().num_pending;
        let bytes = NATS_PULL_BYTES.max(2 * self.link.client.max_payload());
        let messages = consumer
            .stream()
            .max_messages_per_batch(NATS_PULL_MESSAGES)
            .max_bytes_per_batch(bytes)
            .heartbeat(Duration::from_millis(NATS_HEARTBEAT_MS))
            .expires(Duration::from_millis(NATS_PULL_MS))
            .messages()
            .await
            .map_err(|error| away(&error))?;
        let is_empty = info.state.messages == 0;
        let until = if is_empty { 0 } else { info.state.last_sequence };
        self.feed = Some(Feed { messages, connection, count: 0, until });
        self.pending = Some(pending);
        Ok(())
    }

    /// The client library ends its connection at a message whose headers are not UTF-8 or have no
    /// names, and would do so for ever. Where that is the next message, reading goes on behind it.
    async fn pass_over(&mut self) {
        let last = self.last_sequence();
        if last == 0 {
            // So that the message before it is known.
            self.start = Start::First;
        }
        let wanted = serde_json::json!({ "seq": last + 1, "next_by_subj": self.subjects.all() });
        let name = &self.stream.cached_info().config.name;
        let asked = self.link.context.request(format!("STREAM.MSG.GET.{name}"), &wanted).await;
        let Ok(answer): Result<serde_json::Value, _> = asked else { return };
        let message = &answer["message"];
        let headers = message["hdrs"].as_str().and_then(|text| STANDARD.decode(text).ok());
        if let (Some(sequence), Some(headers)) = (message["seq"].as_u64(), headers)
            && !are_headers(&headers)
        {
            tracing::warn!(sequence, "NATS: a message whose headers are none is passed over");
            self.foreign.headers += 1;
            self.start = Start::After(sequence);
            self.given = None;
        }
    }

    fn take(&mut self, message: &async_nats::jetstream::Message) -> Taken {
        let Some(feed) = &mut self.feed else { return Taken::Break };
        let Ok(info) = message.info() else { return Taken::Break };
        if info.consumer_sequence != feed.count + 1 {
            return Taken::Break;
        }
        feed.count += 1;
        self.pending = Some(info.pending);
        let unix_ns = i64::try_from(info.published.unix_timestamp_nanos()).unwrap_or(i64::MAX);
        let mark = Mark { sequence: info.stream_sequence, unix_ns };
        if let Start::Behind(last) = self.start
            && mark.sequence == last.sequence
            && mark.unix_ns != last.unix_ns
        {
            return Taken::Changed;
        }
        let last = self.last_sequence();
        let is_jump = last > 0 && mark.sequence > last + 1;
        match self.suspect.take() {
            Some(until) if is_jump => self.lost = Some(until.min(mark.sequence - 1)),
            _ if !is_jump => {}
            _ if self.jumps.len() < NATS_TAKE_MAX => self.jumps.push((last, mark.sequence)),
            // One stands for both.
            _ => self.jumps.last_mut().expect("there are many").1 = mark.sequence,
        }
        if mark.sequence <= last {
            return Taken::Skipped;
        }
        self.start = Start::Behind(mark);
        self.stuck = 0;
        let payload = message.payload.clone();
        let understood = understand(
            &self.subjects,
            &message.subject,
            message.headers.as_ref(),
            payload,
            self.message_bytes_max,
        );
        match understood {
            Ok(understood) => {
                self.foreign.illegal += understood.illegal;
                self.foreign.reserved += understood.reserved;
                Taken::Message(Received { mark, said: understood.said, sent: understood.sent })
            }
            Err(Skipped::Subject) => {
                self.foreign.subject += 1;
                Taken::Skipped
            }
            Err(Skipped::TooLarge) => {
                self.foreign.too_large += 1;
                Taken::Skipped
            }
        }
    }
}
